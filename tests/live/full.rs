//! Hosts that run out of space during a change of a chain.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use avhdx::ops::{Checkpoint, Forecast, Merge, Revert};
use avhdx::storage::Host;
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, Zeroing};
use avhdx_testkit::naive;
use avhdx_testkit::rng::Rng;

use super::sim::{Arrived, Event, FOLDER, Files, SimHost};
use super::{MIB, bytes, paths};

const SIZE: u64 = 9 * MIB + 512 * 3;

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn open(host: &SimHost, tip: &Path) -> DiffChain {
    let options = OpenOptions::new().host(Arc::new(host.clone())).writable(true);
    options.open(tip).unwrap_or_else(|error| panic!("{error}"))
}

/// Three layers, all durable, and the contents of each point, tip first.
fn three() -> (Files, [Vec<u8>; 3]) {
    let host = SimHost::default();
    let shared: Arc<dyn Host> = Arc::new(host.clone());
    let options = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    drop(options.create_on(shared, file("base.vhdx")).unwrap());
    let chain = open(&host, &file("base.vhdx"));
    let mut rng = Rng::new(11);
    let mut points = Vec::new();
    for name in ["base", "middle", "tip"] {
        if name != "base" {
            let path = file(&format!("{name}.avhdx"));
            Checkpoint::new().path(path).run(&chain).unwrap();
        }
        for _ in 0..5 {
            let at = rng.below(SIZE - 200_000);
            let len = 1 + rng.below(200_000);
            chain.write_at(&vec![rng.next_u64() as u8 | 1; len as usize], at).unwrap();
        }
        let whole = rng.below(9) * MIB;
        chain.write_at(&[rng.next_u64() as u8 | 1; 1 << 20], whole).unwrap();
        chain.write_zeroes(7 * MIB - 5..8 * MIB, Zeroing::MayUnmap).unwrap();
        chain.flush().unwrap();
        points.insert(0, bytes(&chain));
    }
    chain.close().unwrap();
    (host.files(), points.try_into().unwrap())
}

/// What the naive reader reads from these files, tip first.
fn naively(host: &SimHost, paths: &[PathBuf]) -> Vec<u8> {
    let files = host.files();
    let layers = paths.iter().rev().map(|path| {
        let file = files.file(path).unwrap();
        let mut bytes = vec![0; file.len() as usize];
        file.read(0, &mut bytes);
        bytes
    });
    naive::Chain::from_bytes(layers).unwrap().flat(paths.len() - 1).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Checkpoint,
    Revert,
    /// The layer, and whether space is short.
    Merge(usize, bool),
}

impl Change {
    fn run(self, chain: &DiffChain) -> avhdx::Result<()> {
        match self {
            Self::Checkpoint => {
                let path = file("new.avhdx");
                Checkpoint::new().path(path).run(chain).map(drop)
            }
            Self::Revert => {
                let revert = Revert::to(chain.layers()[1].id).path(file("new.avhdx"));
                revert.run(chain).map(drop)
            }
            Self::Merge(..) => self.merge(chain, false),
        }
    }

    fn merge(self, chain: &DiffChain, again: bool) -> avhdx::Result<()> {
        let Self::Merge(layer, low_space) = self else { unreachable!("{self:?}") };
        let id = chain.layers()[layer].id;
        let merge = if again { Merge::resume(id) } else { Merge::new(id) };
        merge.low_space(low_space).run(chain).map(drop)
    }

    fn forecast(self, chain: &DiffChain) -> avhdx::Result<Forecast> {
        match self {
            Self::Checkpoint => Checkpoint::new().path(file("new.avhdx")).forecast(chain),
            Self::Revert => {
                Revert::to(chain.layers()[1].id).path(file("new.avhdx")).forecast(chain)
            }
            Self::Merge(layer, low_space) => {
                Merge::new(chain.layers()[layer].id).low_space(low_space).forecast(chain)
            }
        }
    }
}

const CHANGES: [Change; 6] = [
    Change::Checkpoint,
    Change::Revert,
    Change::Merge(0, false),
    Change::Merge(1, false),
    Change::Merge(0, true),
    Change::Merge(1, true),
];

/// Whichever step finds no space, the chain reads as before, at once and when reopened, and an unfinished
/// merge can be completed once there is space.
#[test]
fn a_change_that_runs_out_of_space_harms_nothing() {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|long| long == "1");
    let (files, points) = three();
    for change in CHANGES {
        // Permanently, or temporarily.
        for (arrived, most) in
            [(Arrived::Nothing, usize::MAX), (Arrived::Half, usize::MAX), (Arrived::Nothing, 1)]
        {
            // Where space is short for good, at every step; otherwise at some of them.
            let each = if is_long || arrived == Arrived::Nothing && most > 1 { 1 } else { 5 };
            for n in (0_usize..).step_by(each) {
                let what = format!("{change:?}, no space for {most} from {n} on, {arrived:?}");
                let host = SimHost::new(files.clone());
                let chain = open(&host, &file("tip.avhdx"));
                let count = host.run_out(n..n.saturating_add(most), arrived);
                let done = change.run(&chain);
                let steps = count.load(Ordering::SeqCst);
                if let Err(error) = &done {
                    assert_eq!(error.kind(), ErrorKind::Io, "{what}: {error}");
                }
                let after = match (change, &done) {
                    (Change::Revert, Ok(())) => &points[1],
                    _ => &points[0],
                };
                assert!(bytes(&chain) == *after, "{what}");
                let now = paths(&chain);
                // Its closing finds no space either, or just enough.
                if n % 2 == 0 {
                    host.relent();
                }
                drop(chain);
                host.relent();

                let tip = if done.is_ok() { now[0].clone() } else { file("tip.avhdx") };
                let chain = match host.files().file(&tip) {
                    Some(_) => open(&host, &tip),
                    // The tip's merge was complete except for a report.
                    None => open(&host, &now[0]),
                };
                assert!(bytes(&chain) == *after, "{what}, opened anew");
                let mark = match change {
                    Change::Merge(layer, _) => chain.layers().get(layer).and_then(|layer| {
                        let options = OpenOptions::new().host(Arc::new(host.clone()));
                        options.open_image(layer.path.as_ref()?).ok()?.merge_mark()
                    }),
                    _ => None,
                };
                if mark.is_some_and(|mark| mark.state != avhdx::MergeState::Target) {
                    change.merge(&chain, true).unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(chain.layers().len(), 2, "{what}");
                }
                chain.write_at(&[1; 3], 0).unwrap();
                chain.close().unwrap();
                let mut model = after.clone();
                model[..3].fill(1);
                let paths = paths(&chain);
                drop(chain);
                assert!(naively(&host, &paths) == model, "{what}");
                let warnings = open(&host, &paths[0]).warnings();
                assert!(warnings.is_empty(), "{what}: {warnings:?}");
                host.empty();
                if steps <= n {
                    assert!(done.is_ok(), "{what}: {:?}", done.unwrap_err());
                    break;
                }
            }
        }
    }
}

/// The space that files take in whole MiB: all of it at first, then what is written and not freed.
struct Space {
    files: Files,
    taken: BTreeMap<usize, BTreeSet<u64>>,
}

impl Space {
    fn of(files: Files) -> Self {
        let whole = |number: &usize| (0..files.files[*number].len().div_ceil(MIB)).collect();
        let taken = files.names.values().map(|number| (*number, whole(number))).collect();
        Self { files, taken }
    }

    fn bytes(&self) -> u64 {
        let named = self.files.names.values().filter_map(|number| self.taken.get(number));
        named.map(|taken| taken.len() as u64 * MIB).sum()
    }

    fn apply(&mut self, event: &Event) {
        self.files.apply(event);
        match event {
            Event::Write(file, chunk) => {
                let taken = self.taken.entry(*file).or_default();
                let end = chunk.at + chunk.data.len() as u64;
                let is_whole = chunk.at.is_multiple_of(MIB) && end.is_multiple_of(MIB);
                for place in chunk.at / MIB..end.div_ceil(MIB) {
                    // Zeros over whole MiB free space.
                    match is_whole && chunk.data.iter().all(|byte| *byte == 0) {
                        true => taken.remove(&place),
                        false => taken.insert(place),
                    };
                }
            }
            Event::SetLen(file, len) => {
                let end = len.div_ceil(MIB);
                self.taken.entry(*file).or_default().retain(|place| *place < end);
            }
            _ => {}
        }
    }
}

/// What does not fit is refused before anything is written, and what fits by the forecast does fit.
#[test]
fn a_change_is_refused_before_a_byte_when_the_space_will_not_do() {
    let (files, points) = three();
    for change in CHANGES {
        let host = SimHost::new(files.clone());
        let chain = open(&host, &file("tip.avhdx"));
        let before = host.files().sum();
        assert_eq!(change.forecast(&chain).unwrap().available, None);
        // The less space there is, the less a merge in low space needs.
        host.set_free_space(Some(0));
        let needed = change.forecast(&chain).unwrap().peak;
        if needed > 0 {
            host.set_free_space(Some(needed - 1));
            let error = change.run(&chain).unwrap_err();
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::NoSpace, "op.space"),
                "{change:?}"
            );
            assert!(error.to_string().contains("1 bytes of space are missing"), "{error}");
            assert_eq!(host.files().sum(), before, "{change:?}");
            assert!(bytes(&chain) == points[0]);
        }
        host.set_free_space(Some(needed));
        let mut space = Space::of(host.files());
        let (at_first, mut most) = (space.bytes(), 0);
        host.record();
        change.run(&chain).unwrap_or_else(|error| panic!("{change:?}: {error}"));
        // Files grow by more than they use, which takes no space: only writes count.
        for event in host.events() {
            space.apply(&event);
            most = most.max(space.bytes());
        }
        let grown = most.saturating_sub(at_first);
        assert!(grown <= needed, "{change:?}: {needed} said, and {grown} taken");
        drop(chain);
        host.empty();
    }
}

/// One block of the child at a time if there is no space for more, with the peak that this takes.
#[test]
fn a_merge_in_low_space_goes_by_as_little_as_a_block() {
    const BLOCKS: u64 = 12;
    for layer in [0, 1] {
        let host = SimHost::default();
        let shared: Arc<dyn Host> = Arc::new(host.clone());
        let options = CreateOptions::dynamic(BLOCKS * MIB).block_size(1 << 20);
        drop(options.create_on(shared, file("base.vhdx")).unwrap());
        let chain = open(&host, &file("base.vhdx"));
        for name in ["middle.avhdx", "tip.avhdx"] {
            let made = Checkpoint::new().path(file(name)).block_size(1 << 20);
            made.run(&chain).unwrap();
            if (name == "tip.avhdx") == (layer == 0) {
                for n in 0..BLOCKS {
                    chain.write_at(&[n as u8 + 1; 1 << 20], n * MIB).unwrap();
                }
            }
        }
        chain.flush().unwrap();
        let model = bytes(&chain);
        let merge = |low_space| Merge::new(chain.layers()[layer].id).low_space(low_space);
        let peak = |free: u64, low_space| {
            host.set_free_space(Some(free));
            merge(low_space).forecast(&chain).unwrap().peak
        };
        // A whole block needs no sector bitmap in the middle layer.
        assert_eq!(peak(0, false), BLOCKS * MIB);
        assert_eq!(peak(u64::MAX, true), BLOCKS * MIB, "one batch");
        assert_eq!(peak(0, true), MIB);
        assert_eq!(peak(5 * MIB, true), 4 * MIB, "as few batches as may be");
        host.set_free_space(Some(MIB - 1));
        let error = merge(true).run(&chain).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::NoSpace, "op.space"));

        host.set_free_space(Some(MIB));
        let mut space = Space::of(host.files());
        let (at_first, mut most) = (space.bytes(), 0);
        host.record();
        let merged = merge(true).run(&chain).unwrap();
        assert_eq!(merged.moved, BLOCKS * MIB);
        for event in host.events() {
            space.apply(&event);
            most = most.max(space.bytes());
        }
        assert_eq!(most - at_first, MIB, "what was foreseen, to the byte");
        assert!(bytes(&chain) == model);
        drop(chain);
        host.empty();
    }
}
