//! Merges of a tip that is written to all the time: they end, move no more than necessary, and hardly delay the
//! writers.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use avhdx::ops::{Checkpoint, Merge, Merged, Pace};
use avhdx::storage::Host;
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, MergeState, OpenOptions, Zeroing};
use avhdx_testkit::naive;
use avhdx_testkit::rng::Rng;

use super::sim::{Arrived, FOLDER, Refusal, SimHost, Step};
use super::{MIB, bytes, paths};

const SIZE: u64 = 24 * MIB;
const PAGE: u64 = 4096;
/// The unit in which changes are marked, and how much may be moved while writers wait.
const GRAIN: u64 = 64 << 10;
const SHORT: u64 = 4 * MIB;
/// Of the child's file and of the parent's.
const FLUSHES: [usize; 2] = [3, 6];

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn open(host: &SimHost, tip: &Path) -> DiffChain {
    let options = OpenOptions::new().host(Arc::new(host.clone())).writable(true);
    options.open(tip).unwrap_or_else(|error| panic!("{error}"))
}

/// A base and a tip, of which every third MiB is full, and their expected contents.
struct Machine {
    host: SimHost,
    chain: DiffChain,
    model: Mutex<Vec<u8>>,
    /// Bytes that the tip holds.
    held: u64,
    written: AtomicU64,
}

impl Machine {
    fn new(block: u64) -> Self {
        let host = SimHost::default();
        let shared: Arc<dyn Host> = Arc::new(host.clone());
        let options = CreateOptions::dynamic(SIZE).block_size(block as u32);
        drop(options.create_on(shared, file("base.vhdx")).unwrap());
        let chain = open(&host, &file("base.vhdx"));
        let mut model = vec![0; SIZE as usize];
        let mut put = |at: u64, with: u8| {
            chain.write_at(&vec![with; MIB as usize], at).unwrap();
            model[at as usize..(at + MIB) as usize].fill(with);
        };
        (0..SIZE / MIB).step_by(2).for_each(|n| put(n * MIB, 1));
        let made = Checkpoint::new().path(file("tip.avhdx")).block_size(block as u32);
        made.run(&chain).unwrap();
        (0..SIZE / MIB).step_by(3).for_each(|n| put(n * MIB, 2));
        chain.flush().unwrap();
        let held = SIZE / 3;
        Self { host, chain, model: Mutex::new(model), held, written: AtomicU64::new(0) }
    }

    fn number(&self, name: &str) -> usize {
        self.host.files().names[&file(name)]
    }

    fn write(&self, at: u64, len: u64, with: u8) {
        self.chain.write_at(&vec![with; len as usize], at).unwrap();
        self.wrote(at, len, with);
    }

    fn wrote(&self, at: u64, len: u64, with: u8) {
        self.model.lock().unwrap()[at as usize..(at + len) as usize].fill(with);
        let grains = (at + len).div_ceil(GRAIN) - at / GRAIN;
        self.written.fetch_add(grains * GRAIN, Ordering::SeqCst);
    }

    /// Zeros a range. Zeros of partial blocks may have to be moved as bytes.
    fn zero(&self, range: std::ops::Range<u64>) {
        self.chain.write_zeroes(range.clone(), Zeroing::MayUnmap).unwrap();
        self.wrote(range.start, range.end - range.start, 0);
    }

    fn merge(&self) -> Merge<'_> {
        Merge::new(self.chain.layers()[0].id)
    }

    /// The merge moved no more than allowed, and lost nothing.
    fn is_merged(&self, merged: &Merged) {
        assert!(merged.warnings.is_empty(), "{:?}", merged.warnings);
        let moved = merged.moved + merged.mirrored;
        let written = self.written.load(Ordering::SeqCst);
        let most = (self.held + written) * 3 / 2;
        assert!(
            moved <= most,
            "{} and {} moved, {} held, {written} written",
            merged.moved,
            merged.mirrored,
            self.held
        );
        self.reads();
        assert_eq!(paths(&self.chain), [file("base.vhdx")]);
    }

    /// The disk has the expected contents, also according to the naive reader.
    fn reads(&self) {
        let model = self.model.lock().unwrap();
        assert!(bytes(&self.chain) == *model);
        self.chain.flush().unwrap();
        let files = self.host.files();
        let layers = paths(&self.chain).into_iter().rev().map(|path| {
            let file = files.file(&path).unwrap();
            let mut bytes = vec![0; file.len() as usize];
            file.read(0, &mut bytes);
            bytes
        });
        let naive = naive::Chain::from_bytes(layers).unwrap();
        assert!(naive.flat(naive.0.len() - 1).unwrap() == *model);
    }
}

/// What the merge's own thread did to the files.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    /// Of the child's file, and of the parent's.
    flushes: [usize; 2],
    /// Bytes written to the parent's file.
    written: u64,
}

/// Offsets of pages, in as many grains, behind and ahead of any position of the merge.
fn hot_set() -> Vec<u64> {
    (0..60).map(|n| n * 6 * GRAIN + n % 16 * PAGE).collect()
}

/// At each step of the merge in the parent, the whole hot set is written again, or right after the step if it has
/// to wait for it.
///
/// Returns what the merge had done to the files at each of its reports.
fn under_fire(machine: &Machine, merge: Merge) -> (Merged, Vec<Done>) {
    let (host, parent) = (&machine.host, machine.number("base.vhdx"));
    let me = std::thread::current().id();
    let (go, gone) = channel::<()>();
    let (done, is_done) = channel::<()>();
    let (count, mut words) = (Arc::new(Mutex::new(Done::default())), Vec::new());
    let counted = Arc::clone(&count);
    let merged = std::thread::scope(|scope| {
        scope.spawn(move || {
            for (n, ()) in gone.iter().enumerate() {
                for at in hot_set() {
                    machine.write(at, PAGE, n as u8 | 1);
                }
                machine.zero(7 * MIB + 512..7 * MIB + 1024);
                // The receiver may be gone.
                _ = done.send(());
            }
        });
        let (go, is_done) = (Mutex::new(go), Mutex::new(is_done));
        host.hook(move |step| {
            if std::thread::current().id() != me {
                return Ok(());
            }
            let is_parents = |file| usize::from(file == parent);
            match step {
                Step::Flush(file) => counted.lock().unwrap().flushes[is_parents(file)] += 1,
                Step::Write { file, len, .. } if file == parent => {
                    counted.lock().unwrap().written += len as u64;
                }
                _ => {}
            }
            if matches!(step, Step::Write { file, .. } if file == parent) {
                go.lock().unwrap().send(()).unwrap();
                // The write may have to wait for this step.
                _ = is_done.lock().unwrap().recv_timeout(Duration::from_millis(15));
            }
            Ok(())
        });
        let merged = merge
            .on_progress(|_| {
                words.push(*count.lock().unwrap());
                ControlFlow::Continue(())
            })
            .run(&machine.chain);
        // Removing the hook drops the sender, which ends the writer.
        host.unhook();
        merged.unwrap_or_else(|error| panic!("{error}"))
    });
    (merged, words)
}

#[test]
fn a_tip_that_is_written_to_in_step_with_its_merge_is_merged() {
    for block in [MIB, 4 * MIB] {
        let machine = Machine::new(block);
        let (merged, words) = under_fire(&machine, machine.merge());
        machine.is_merged(&merged);
        // Each grain of the hot set is moved once more, however often it was written.
        let again = (hot_set().len() as u64 + 1) * GRAIN;
        assert!(merged.moved <= machine.held + again, "{}", merged.moved);
        assert!(merged.mirrored > 0);

        // The last two reports are before and after the time that writers wait.
        let [.., flushed, before, after] = words[..] else { panic!("{} words", words.len()) };
        assert!(before.flushes[1] > flushed.flushes[1], "the parent is durable before that");
        let flushes = [0, 1].map(|file| after.flushes[file] - before.flushes[file]);
        let most = FLUSHES.iter().zip(flushes).all(|(most, flushes)| flushes <= *most);
        assert!(most && flushes[1] > 0, "{flushes:?} flushes while writers wait");
        let moved = after.written - before.written;
        let tables = MIB / 2;
        assert!(moved <= SHORT + tables, "{moved} bytes written while writers wait");
    }
}

/// Writers all over the disk that are faster than the merge may be.
#[test]
fn a_merge_that_is_slower_than_its_writers_ends() {
    let machine = Machine::new(MIB);
    let pace = Pace::new();
    pace.limit(Some(16 * MIB));
    let is_over = AtomicBool::new(false);
    let merged = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(1);
            while !is_over.load(Ordering::SeqCst) {
                let at = rng.below(SIZE / GRAIN) * GRAIN;
                let with = rng.next_u64() as u8;
                for at in [at, at + GRAIN / 2] {
                    machine.write(at, GRAIN / 2, with);
                }
            }
        });
        let merged = machine.merge().pace(pace).run(&machine.chain);
        is_over.store(true, Ordering::SeqCst);
        merged.unwrap_or_else(|error| panic!("{error}"))
    });
    machine.is_merged(&merged);
    // Once by the merge, and once what was written meanwhile.
    assert!(merged.moved <= 2 * SIZE, "{}", merged.moved);
}

#[test]
fn a_merge_in_low_space_of_a_tip_that_is_written_to_ends() {
    let machine = Machine::new(MIB);
    let (merged, _) = under_fire(&machine, machine.merge().low_space(true));
    assert!(merged.moved <= machine.held + (hot_set().len() as u64 + 1) * GRAIN + 2 * MIB);
    machine.is_merged(&merged);
}

/// Fails this thread's writes to a file while `is_on`.
fn refuse(host: &SimHost, file: usize, who: ThreadId, is_on: Arc<AtomicBool>) {
    host.refuse(move |_, step| {
        let is_one = matches!(step, Step::Write { file: found, .. } if found == file);
        let is_mine = std::thread::current().id() == who;
        let refusal = Refusal { code: 28, arrived: Arrived::Nothing };
        (is_one && is_mine && is_on.load(Ordering::SeqCst)).then_some(refusal)
    });
}

#[test]
fn a_write_that_the_parent_refuses_fails_the_merge_and_not_the_writer() {
    let machine = Machine::new(MIB);
    let is_on = Arc::new(AtomicBool::new(false));
    refuse(&machine.host, machine.number("base.vhdx"), std::thread::current().id(), is_on.clone());
    let mut words = 0;
    let error = machine
        .merge()
        .on_progress(|_| {
            words += 1;
            is_on.store(true, Ordering::SeqCst);
            machine.write(3 * MIB + 512 * words, 512, words as u8);
            machine.zero(7 * MIB + 512..7 * MIB + 1024);
            is_on.store(false, Ordering::SeqCst);
            ControlFlow::Continue(())
        })
        .run(&machine.chain);
    let error = error.map(|merged| merged.moved).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("base.vhdx"), "{error}");
    machine.host.relent();
    // Everything goes on, and later writes go only to the child.
    assert_eq!(machine.chain.layers().len(), 2);
    machine.write(5 * MIB + 100, 5000, 9);
    machine.reads();
    let mark = machine.chain.tip().merge_mark().unwrap();
    assert_eq!(mark.state, MergeState::Merging);
    let id = machine.chain.layers()[0].id;
    let merged = Merge::resume(id).run(&machine.chain).unwrap();
    machine.is_merged(&merged);
}

/// The range of a failed write is marked, so that there is always something left to move.
#[test]
fn a_tip_whose_writes_fail_all_the_time_is_merged() {
    let machine = Machine::new(MIB);
    let is_over = AtomicBool::new(false);
    let merged = std::thread::scope(|scope| {
        let (id, its_id) = channel();
        let (machine, is_over) = (&machine, &is_over);
        scope.spawn(move || {
            id.send(std::thread::current().id()).unwrap();
            while !is_over.load(Ordering::SeqCst) {
                if let Err(error) = machine.chain.write_at(&vec![7; 8 << 20], 9 * MIB) {
                    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                }
            }
        });
        let is_on = Arc::new(AtomicBool::new(true));
        refuse(&machine.host, machine.number("tip.avhdx"), its_id.recv().unwrap(), is_on);
        let merged = machine.merge().run(&machine.chain);
        is_over.store(true, Ordering::SeqCst);
        merged.unwrap_or_else(|error| panic!("{error}"))
    });
    assert!(merged.warnings.is_empty(), "{:?}", merged.warnings);
    assert_eq!(machine.chain.layers().len(), 1);
}
