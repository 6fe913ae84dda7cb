//! Tests that users of replaced stacks keep the ranges that they read.

use std::cell::Cell;
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

use super::*;
use crate::chain::operation::PATIENCE;
use crate::ops::{Checkpoint, Merge, Merged};
use crate::sim::{FOLDER, SimHost, Step};
use crate::storage::Host;
use crate::types::MIB;
use crate::{
    Budget, CreateOptions, DiffChain, Disk, LayerId, OpenOptions, Planned, PlannedSource, ReadPlan,
    Source,
};

thread_local! {
    static OWN_PATIENCE: Cell<Duration> = const { Cell::new(PATIENCE) };
}

/// The patience of this thread's operations.
pub(in crate::chain) fn patience() -> Duration {
    OWN_PATIENCE.get()
}

const SIZE: u64 = 24 * MIB;
/// Name of the thread whose reads are delayed.
const SLOW: &str = "slow";

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Fills the block with this byte.
fn write(chain: &DiffChain, block: u64, byte: u8) {
    chain.write_at(&vec![byte; MIB as usize], block * MIB).unwrap();
}

/// A base with A in the first block and B in the second, and a tip with another block and a sector of the second.
/// Operations on them have little patience.
fn base_and_tip(budget: usize) -> (SimHost, DiffChain) {
    OWN_PATIENCE.set(Duration::from_millis(20));
    let host = SimHost::default();
    let shared: Arc<dyn Host> = Arc::new(host.clone());
    let options = CreateOptions::dynamic(SIZE).block_size(MIB as u32);
    drop(options.create_on(Arc::clone(&shared), file("base.vhdx")).unwrap());
    let options = OpenOptions::new().host(shared).writable(true).budget(Budget::new(budget));
    let chain = options.open(file("base.vhdx")).unwrap();
    write(&chain, 0, b'A');
    write(&chain, 1, b'B');
    checkpoint(&chain, "tip.avhdx");
    chain.write_at(&[b'c'; 512], MIB + 512).unwrap();
    write(&chain, 10, b'c');
    chain.flush().unwrap();
    (host, chain)
}

fn checkpoint(chain: &DiffChain, name: &str) {
    let made = Checkpoint::new().path(file(name)).block_size(MIB as u32);
    made.run(chain).unwrap();
}

fn id(chain: &DiffChain, layer: usize) -> LayerId {
    chain.layers()[layer].id
}

fn plan(chain: &DiffChain, block: u64) -> ReadPlan {
    let mut planned = chain.plan_read(block * MIB..(block + 1) * MIB).unwrap();
    loop {
        planned = match planned {
            Planned::Ready(plan) => return plan,
            Planned::Load(load) => load.load().unwrap(),
        };
    }
}

/// Whether the first piece of the plan is in that layer.
fn names(plan: &ReadPlan, expected: LayerId) -> bool {
    let first = plan.pieces().next().unwrap().source;
    matches!(first, PlannedSource::Data { layer, .. } if layer == expected)
}

fn bytes(plan: &ReadPlan) -> Vec<u8> {
    let mut bytes = vec![0xAA; (plan.range().end - plan.range().start) as usize];
    plan.read(&mut bytes).unwrap();
    bytes
}

fn are_all(bytes: &[u8], expected: u8) -> bool {
    bytes.iter().all(|byte| *byte == expected)
}

/// Merges the tip, and calls `then` as soon as data has been moved.
fn merge_tip<T: Send>(chain: &DiffChain, then: impl FnOnce() -> T + Send) -> (T, Merged) {
    let (mut then, mut done) = (Some(then), None);
    let merged = Merge::new(id(chain, 0))
        .on_progress(|progress| {
            if progress.done > 0
                && let Some(then) = then.take()
            {
                done = Some(then());
            }
            ControlFlow::Continue(())
        })
        .run(chain);
    (done.unwrap(), merged.unwrap_or_else(|error| panic!("{error}")))
}

/// Frees the first block, and allocates blocks in the free space.
fn give_away(chain: &DiffChain) {
    chain.discard(0..MIB).unwrap();
    chain.flush().unwrap();
    (2..6).for_each(|block| write(chain, block, b'Z'));
    chain.flush().unwrap();
}

fn is_still_read(merged: &Merged) -> bool {
    merged.warnings.iter().any(|warning| warning.code == "merge.still-read")
}

#[test]
fn a_plan_that_outlives_the_merge_of_the_tip_keeps_what_it_names_in_the_parent() {
    let (_, chain) = base_and_tip(8 << 20);
    // Views of the tip share its stack.
    let view = chain.view(id(&chain, 0)).unwrap();
    let (plans, merged) = merge_tip(&chain, || [plan(&chain, 0), plan(&view, 0)]);
    assert!(is_still_read(&merged), "{:?}", merged.warnings);
    drop(view);
    give_away(&chain);
    assert!(plans.iter().all(|plan| are_all(&bytes(plan), b'A')));
    // The range is not truncated either, and the next session and another tip do not reuse it.
    chain.close().unwrap();
    checkpoint(&chain, "next.avhdx");
    write(&chain, 6, b'Z');
    let [plan, other] = plans;
    drop(other);
    assert!(are_all(&bytes(&plan), b'A'));
    // Merges do not write to the file until the plan is dropped.
    let merge = || Merge::new(id(&chain, 0)).run(&chain);
    for _ in 0..3 {
        assert_eq!(merge().map(drop).unwrap_err().code(), "chain.read");
    }
    assert!(are_all(&bytes(&plan), b'A'));
    drop(plan);
    merge().unwrap();
}

#[test]
fn what_an_outlived_plan_kept_is_for_others_once_it_is_dropped() {
    let (host, chain) = base_and_tip(8 << 20);
    let (plan, _) = merge_tip(&chain, || plan(&chain, 0));
    chain.discard(0..MIB).unwrap();
    chain.flush().unwrap();
    let len = || host.files().file(&file("base.vhdx")).unwrap().len();
    let before = len();
    drop(plan);
    write(&chain, 2, b'Z');
    assert_eq!(len(), before);
}

#[test]
fn tables_that_are_waited_for_over_the_end_of_a_merge_keep_what_the_plan_found() {
    let (_, chain) = base_and_tip(0);
    let base = id(&chain, 1);
    let (mut load, merged) = merge_tip(&chain, || {
        let mut planned = chain.plan_read(0..2 * MIB).unwrap();
        // The tables of both layers, and then the sector bitmap of the tip's second block.
        for _ in 0..2 {
            let Planned::Load(load) = planned else { panic!("nothing to load") };
            planned = load.load().unwrap();
        }
        let Planned::Load(load) = planned else { panic!("nothing to load") };
        load
    });
    assert!(is_still_read(&merged) && load.layer() != base);
    give_away(&chain);
    let plan = loop {
        match load.load().unwrap() {
            Planned::Ready(plan) => break plan,
            Planned::Load(next) => load = next,
        }
    };
    assert!(are_all(&bytes(&plan)[..MIB as usize], b'A'));
}

/// Delays the thread named [`SLOW`] when it reads the first block from the base.
struct Slow {
    // A callback that waits for it must be `Send`.
    arrived: Mutex<Receiver<()>>,
    go_on: Sender<()>,
}

impl Slow {
    fn new(host: &SimHost, chain: &DiffChain) -> Self {
        let base = host.files().names[&file("base.vhdx")];
        let first = chain.next_extent(0..512).unwrap().unwrap().source;
        let Source::Data { at: place, .. } = first else { panic!("{first:?}") };
        let ((arrive, arrived), (go_on, gone)) = (channel(), channel());
        let (arrive, gone) = (Mutex::new(arrive), Mutex::new(gone));
        host.hook(move |step| {
            let is_slow = std::thread::current().name() == Some(SLOW);
            if is_slow
                && matches!(step, Step::Read { file, at } if file == base && at == place.get())
            {
                arrive.lock().unwrap().send(()).unwrap();
                gone.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            }
            Ok(())
        });
        Self { arrived: Mutex::new(arrived), go_on }
    }

    fn wait_for_arrival(&self) {
        self.arrived.lock().unwrap().recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn a_read_that_outlives_the_merge_of_the_tip_reads_no_others_bytes() {
    type Read = fn(&DiffChain, &mut [u8]);
    let reads: [Read; 2] = [
        |chain, bytes| chain.read_at(bytes, 0).unwrap(),
        |chain, bytes| {
            let (first, rest) = bytes.split_at_mut(1000);
            let mut bufs = [IoSliceMut::new(first), IoSliceMut::new(rest)];
            chain.read_vectored_at(&mut bufs, 0).unwrap();
        },
    ];
    for read in reads {
        let (host, chain) = base_and_tip(8 << 20);
        let slow = Slow::new(&host, &chain);
        let found = std::thread::scope(|scope| {
            let (reader, merged) = merge_tip(&chain, || {
                let clone = chain.clone();
                let reader = Builder::new().name(SLOW.into()).spawn_scoped(scope, move || {
                    let mut bytes = vec![0xAA; MIB as usize];
                    read(&clone, &mut bytes);
                    bytes
                });
                slow.wait_for_arrival();
                reader.unwrap()
            });
            assert!(is_still_read(&merged), "{:?}", merged.warnings);
            give_away(&chain);
            slow.go_on.send(()).unwrap();
            reader.join().unwrap()
        });
        assert!(are_all(&found, b'A'));
    }
}

/// The moved block is where the merge extended the parent, and is freed before the merge is stopped.
#[test]
fn a_plan_that_outlives_a_merge_that_is_stopped_keeps_what_it_names_in_the_parent() {
    let (_, chain) = base_and_tip(8 << 20);
    let mut held = None;
    let merge = Merge::new(id(&chain, 0)).low_space(true);
    let error = merge
        .on_progress(|_| {
            let plan = plan(&chain, 10);
            if !names(&plan, id(&chain, 1)) {
                return ControlFlow::Continue(());
            }
            held = Some(plan);
            chain.discard(10 * MIB..11 * MIB).unwrap();
            chain.flush().unwrap();
            ControlFlow::Break(())
        })
        .run(&chain);
    assert_eq!(error.map(drop).unwrap_err().kind(), ErrorKind::Cancelled);
    let plan = held.unwrap();
    assert!(are_all(&bytes(&plan), b'c'));
    let resume = || Merge::resume(id(&chain, 0)).run(&chain);
    for _ in 0..2 {
        assert_eq!(resume().map(drop).unwrap_err().kind(), ErrorKind::InUse);
    }
    assert!(are_all(&bytes(&plan), b'c'));
    drop(plan);
    resume().unwrap();
}

#[test]
fn a_plan_that_a_merge_in_low_space_gives_up_for_keeps_what_it_names_in_the_child() {
    let (_, chain) = base_and_tip(8 << 20);
    checkpoint(&chain, "next.avhdx");
    let (child, mut held) = (id(&chain, 1), None);
    let merge = Merge::new(child).low_space(true);
    let error = merge
        .on_progress(|progress| {
            if progress.done > 0 && held.is_none() {
                held = Some(plan(&chain, 10));
                assert!(names(held.as_ref().unwrap(), id(&chain, 1)));
            }
            ControlFlow::Continue(())
        })
        .run(&chain);
    assert_eq!(error.map(drop).unwrap_err().kind(), ErrorKind::InUse);
    assert!(are_all(&bytes(&held.unwrap()), b'c'));
    Merge::resume(id(&chain, 1)).run(&chain).unwrap();
}

/// The first attempt reopens the layer while reads through the old handle continue.
#[test]
fn a_merge_is_refused_however_often_it_is_tried_while_its_parent_is_read_as_it_was() {
    let refused = |chain: &DiffChain| {
        for attempt in 0..3 {
            let merged = Merge::new(id(chain, 0)).run(chain);
            let error = merged.map(|_| format!("attempt {attempt}")).unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "chain.read"));
        }
    };
    // Read by a plan.
    let (_, chain) = base_and_tip(8 << 20);
    let held = plan(&chain, 0);
    refused(&chain);
    drop(held);
    Merge::new(id(&chain, 0)).run(&chain).unwrap();

    // Read by the image itself.
    let (host, chain) = base_and_tip(8 << 20);
    let slow = Slow::new(&host, &chain);
    let image = chain.image(id(&chain, 1)).unwrap();
    std::thread::scope(|scope| {
        let read = move || {
            let mut bytes = vec![0xAA; MIB as usize];
            image.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        let reader = Builder::new().name(SLOW.into()).spawn_scoped(scope, read).unwrap();
        slow.wait_for_arrival();
        refused(&chain);
        slow.go_on.send(()).unwrap();
        assert!(are_all(&reader.join().unwrap(), b'A'));
    });
    Merge::new(id(&chain, 0)).run(&chain).unwrap();
}
