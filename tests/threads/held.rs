//! One thread is held at a step of its work, while the others must continue and do no harm.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

use avhdx::{DiffChain, Disk, DiskExt, Source};

use crate::sim::{FOLDER, SimHost, Step};
use crate::tags::{self, PARENT, Says};
use crate::{MIB, Pair, SECTOR, flat};

/// The name of the thread to be held.
const HELD: &str = "held";
/// Anything that ends at all ends long before.
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds the named thread at the first matching step, until it is released or dropped.
struct Gate {
    arrived: Receiver<()>,
    release: Option<Sender<()>>,
}

impl Gate {
    fn new(host: &SimHost, is_it: impl Fn(Step) -> bool + Send + Sync + 'static) -> Self {
        let (at_gate, arrived) = channel();
        let (release, wait) = channel::<()>();
        let hold = Mutex::new(Some((at_gate, wait)));
        host.hook(move |step| {
            if std::thread::current().name() == Some(HELD)
                && is_it(step)
                && let Some((at_gate, wait)) = hold.lock().unwrap().take()
            {
                at_gate.send(()).unwrap();
                let _ = wait.recv();
            }
            Ok(())
        });
        Self { arrived, release: Some(release) }
    }

    fn wait_for_arrival(&self) {
        self.arrived.recv_timeout(PATIENCE).expect("a thread that comes to the gate");
    }

    fn release(&mut self) {
        self.release = None;
    }

    /// Runs this while the thread is held, and releases the thread rather than hang.
    fn meanwhile(&mut self, what: &str, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let done = in_thread(scope, work);
            if done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                self.release();
                panic!("{what}: waits for the thread that is held");
            }
        });
    }
}

/// A channel that closes when the work is done.
fn in_thread<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    work: impl FnOnce() + Send + 'scope,
) -> Receiver<()> {
    let (done, wait) = channel();
    scope.spawn(move || {
        work();
        drop(done);
    });
    wait
}

pub fn pair(size: u64) -> (SimHost, Pair, DiffChain) {
    let host = SimHost::default();
    let pair = Pair::new(Arc::new(host.clone()), Path::new(FOLDER), size);
    let chain = pair.open(true, 64 << 20);
    (host, pair, chain)
}

/// After the session, the disk has the same contents by the crate and the naive reader, and checks clean.
pub fn close_and_judge(chain: DiffChain, pair: &Pair) {
    chain.close().unwrap();
    let bytes = flat(&chain);
    drop(chain);
    assert!(pair.judge() == bytes);
}

/// Writes these sectors, tagged with `turn`.
pub fn write(chain: &DiffChain, turn: u64, first: u64, sectors: u64) {
    chain.write_at(&tags::run(1, turn, first..first + sectors), first * SECTOR).unwrap();
}

pub fn read(chain: &DiffChain, sector: u64) -> Says {
    let mut bytes = [0xAA; SECTOR as usize];
    chain.read_at(&mut bytes, sector * SECTOR).unwrap();
    tags::says(&bytes)
}

pub fn tag(turn: u64, sector: u64) -> Says {
    Says::Tag { writer: 1, turn, sector }
}

/// The file offset of the block that starts at `at`.
pub fn place(chain: &DiffChain, at: u64) -> u64 {
    let extent = chain.extents(at..at + SECTOR).next().unwrap().unwrap();
    match extent.source {
        Source::Data { at, .. } => at.get(),
        other => panic!("{other:?}"),
    }
}

pub const BLOCK: u64 = MIB / SECTOR;
/// The number of the file that is written, in the order of creation.
const TIP: usize = 2;

#[test]
fn space_is_not_given_away_under_a_reader() {
    let (host, pair, chain) = pair(16 * MIB);
    write(&chain, 1, 0, BLOCK);
    chain.flush().unwrap();
    let old = place(&chain, 0);
    let gate = Gate::new(&host, move |step| matches!(step, Step::Read { at, .. } if at == old));
    std::thread::scope(|scope| {
        let mut gate = gate; // goes when an assertion fails
        let reader = || {
            let mut bytes = vec![0xAA; MIB as usize];
            chain.read_at(&mut bytes, 0).unwrap();
            bytes
        };
        let reader = Builder::new().name(HELD.into()).spawn_scoped(scope, reader).unwrap();
        // It has found the block and not read it yet.
        gate.wait_for_arrival();
        gate.meanwhile("a flush that frees the space", || {
            chain.discard(0..MIB).unwrap();
            chain.flush().unwrap();
        });
        for block in 1..4 {
            gate.meanwhile("a new block", || write(&chain, 1 + block, block * BLOCK, BLOCK));
            assert_ne!(place(&chain, block * MIB), old);
            gate.meanwhile("another flush", || chain.flush().unwrap());
        }
        gate.release();
        let bytes = reader.join().unwrap();
        for (sector, bytes) in (0..).zip(bytes.chunks(SECTOR as usize)) {
            let found = tags::says(bytes);
            assert_eq!(found, tag(1, sector), "sector {sector}");
        }
    });
    // Without the reader the space is available, before the file grows.
    let places = [4, 5, 6, 7].map(|block| {
        write(&chain, 9, block * BLOCK, BLOCK);
        place(&chain, block * MIB)
    });
    assert!(places.contains(&old), "{places:x?} and not {old:#x}");
    assert_eq!((read(&chain, 0), read(&chain, BLOCK)), (Says::Zero, tag(2, BLOCK)));
    close_and_judge(chain, &pair);
}

#[test]
fn the_file_is_not_cut_under_a_reader() {
    let (host, pair, chain) = pair(8 * MIB);
    let empty = chain.layers()[0].file_len;
    write(&chain, 1, 0, BLOCK);
    chain.flush().unwrap();
    let last = place(&chain, 0);
    let is_there = move |step| matches!(step, Step::Read { at, .. } if at == last);
    let gate = Gate::new(&host, is_there);
    std::thread::scope(|scope| {
        let mut gate = gate; // goes when an assertion fails
        let held = || assert_eq!(read(&chain, 0), tag(1, 0));
        Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
        gate.wait_for_arrival();
        gate.meanwhile("a close without the block", || {
            chain.discard(0..MIB).unwrap();
            chain.close().unwrap();
        });
        gate.release();
    });
    // The next session uses it, or cuts it off.
    write(&chain, 2, BLOCK, BLOCK);
    assert_eq!(place(&chain, MIB), last);
    chain.discard(MIB..2 * MIB).unwrap();
    chain.close().unwrap();
    assert_eq!(chain.layers()[0].file_len, empty);
    close_and_judge(chain, &pair);
}

#[test]
fn a_reader_that_is_held_blocks_nobody() {
    let (host, _, chain) = pair(8 * MIB);
    write(&chain, 1, 0, BLOCK);
    write(&chain, 2, BLOCK, BLOCK);
    chain.flush().unwrap();
    let old = place(&chain, 0);
    let gate = Gate::new(&host, move |step| matches!(step, Step::Read { at, .. } if at == old));
    std::thread::scope(|scope| {
        let mut gate = gate; // goes when an assertion fails
        let held = || assert_ne!(read(&chain, 0), Says::Torn);
        Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
        gate.wait_for_arrival();
        gate.meanwhile("a discard of the block and a flush", || {
            chain.discard(0..MIB).unwrap();
            chain.flush().unwrap();
        });
        gate.meanwhile("a reader of another block", || {
            assert_eq!(read(&chain, BLOCK), tag(2, BLOCK));
        });
        gate.meanwhile("a reader of the block that is gone", || {
            assert_eq!(read(&chain, 0), Says::Zero);
        });
        gate.meanwhile("a writer of another block", || write(&chain, 3, BLOCK, 4));
        gate.meanwhile("a flush after that", || chain.flush().unwrap());
        gate.release();
    });
    assert_eq!(read(&chain, BLOCK), tag(3, BLOCK));
}

#[test]
fn a_reader_that_came_later_does_not_keep_what_went_before() {
    let (host, pair, chain) = pair(16 * MIB);
    write(&chain, 1, 0, BLOCK);
    write(&chain, 1, 10 * BLOCK, BLOCK);
    chain.flush().unwrap();
    let kept = place(&chain, 10 * MIB);
    let gate = Gate::new(&host, move |step| matches!(step, Step::Read { at, .. } if at == kept));
    // Freed and durable before the reader comes.
    let freed = place(&chain, 0);
    chain.discard(0..MIB).unwrap();
    chain.flush().unwrap();
    std::thread::scope(|scope| {
        let mut gate = gate; // goes when an assertion fails
        let held = || assert_eq!(read(&chain, 10 * BLOCK), tag(1, 10 * BLOCK));
        Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
        gate.wait_for_arrival();
        gate.meanwhile("a new block", || write(&chain, 2, BLOCK, BLOCK));
        assert_eq!(place(&chain, MIB), freed);
        gate.release();
    });
    close_and_judge(chain, &pair);
}

#[test]
fn writers_of_different_blocks_do_not_wait_for_each_other() {
    // The first writes in place or allocates a new block; the last of the others shares a lock with it in a table of
    // locks for 32 blocks.
    let size = 80 * MIB;
    for first_is_new in [false, true] {
        let (host, pair, chain) = pair(size);
        write(&chain, 1, 2 * BLOCK, BLOCK);
        write(&chain, 1, 66 * BLOCK, 8);
        chain.flush().unwrap();
        let block = if first_is_new { 1 } else { 2 };
        let mut gate = Gate::new(&host, |step| matches!(step, Step::Write { len: 4096, .. }));
        std::thread::scope(|scope| {
            let held = || write(&chain, 2, block * BLOCK, 8);
            Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
            gate.wait_for_arrival();
            for (what, other) in [
                ("in place", 66),
                ("a new block", 5),
                ("a whole new block", 7),
                ("a new block of the same lock table", 32 + block),
                ("once more", 64 + block),
            ] {
                let len = if other == 7 { BLOCK } else { 8 };
                gate.meanwhile(what, || write(&chain, 3, other * BLOCK, len));
                assert_eq!(read(&chain, other * BLOCK), tag(3, other * BLOCK), "{what}");
            }
            gate.meanwhile("a discard", || chain.discard(7 * MIB..8 * MIB).unwrap());
            gate.meanwhile("a flush", || chain.flush().unwrap());
            gate.release();
        });
        assert_eq!(read(&chain, block * BLOCK), tag(2, block * BLOCK));
        close_and_judge(chain, &pair);
    }
}

#[test]
fn writers_of_the_same_present_sectors_share_their_block() {
    let (host, _, chain) = pair(4 * MIB);
    write(&chain, 1, 0, BLOCK);
    let mut gate = Gate::new(&host, |step| matches!(step, Step::Write { len: 4096, .. }));
    std::thread::scope(|scope| {
        let held = || write(&chain, 2, 0, 8);
        Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
        gate.wait_for_arrival();
        gate.meanwhile("other sectors of the block", || write(&chain, 3, 64, 8));
        gate.meanwhile("the same sectors", || write(&chain, 4, 0, 8));
        assert_eq!(read(&chain, 0), tag(4, 0));
        gate.release();
    });
    assert_eq!((read(&chain, 0), read(&chain, 64)), (tag(2, 0), tag(3, 64)));
}

#[test]
fn readers_never_wait_for_writers() {
    for first_is_new in [false, true] {
        let (host, _, chain) = pair(8 * MIB);
        write(&chain, 1, 2 * BLOCK, BLOCK);
        chain.flush().unwrap();
        let block = if first_is_new { 1 } else { 2 };
        let mut gate = Gate::new(&host, |step| matches!(step, Step::Write { len: 4096, .. }));
        std::thread::scope(|scope| {
            let held = || write(&chain, 2, block * BLOCK, 8);
            Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
            gate.wait_for_arrival();
            let parent = |sector| Says::Tag { writer: PARENT, turn: 0, sector };
            let before = if first_is_new { parent(BLOCK) } else { tag(1, 2 * BLOCK) };
            for (what, sector, expected) in [
                ("another block, of the parent", 5 * BLOCK, parent(5 * BLOCK)),
                ("the block that is written", block * BLOCK, before),
                (
                    "its other sectors",
                    block * BLOCK + 100,
                    match before {
                        Says::Tag { writer, turn, .. } => {
                            Says::Tag { writer, turn, sector: block * BLOCK + 100 }
                        }
                        other => other,
                    },
                ),
            ] {
                gate.meanwhile(what, || assert_eq!(read(&chain, sector), expected, "{what}"));
            }
            gate.release();
        });
    }
}

#[test]
fn only_flushes_wait_for_a_flush() {
    let (host, _, chain) = pair(8 * MIB);
    // Room in the file for the new blocks, because growth does wait.
    for block in 0..3 {
        write(&chain, 1, block * BLOCK, BLOCK);
    }
    chain.discard(2 * MIB..3 * MIB).unwrap();
    // Creates a sector bitmap.
    write(&chain, 1, 7 * BLOCK, 8);
    chain.flush().unwrap();
    write(&chain, 2, 0, 8);
    for held_at in [Step::Flush(TIP), Step::Flushed(TIP)] {
        write(&chain, 3, BLOCK, 8);
        let mut gate = Gate::new(&host, move |step| step == held_at);
        std::thread::scope(|scope| {
            let held = || chain.flush().unwrap();
            Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
            gate.wait_for_arrival();
            gate.meanwhile("a reader", || assert_eq!(read(&chain, 0), tag(2, 0)));
            gate.meanwhile("a writer in place", || write(&chain, 4, BLOCK, 8));
            gate.meanwhile("a writer of freed space", || write(&chain, 5, 4 * BLOCK, 8));
            gate.meanwhile("a discard", || chain.discard(4 * MIB..5 * MIB).unwrap());
            assert_eq!(read(&chain, BLOCK), tag(4, BLOCK));
            gate.release();
        });
        chain.flush().unwrap();
    }
}

/// An answer that a reader found while a write changed it must not be remembered.
#[test]
fn what_was_found_out_before_a_write_is_not_remembered_after_it() {
    const MIDDLE: usize = 1;
    let (host, pair, chain) = pair(40 * MIB);
    // Answers are remembered while the disk is not written to.
    for span in 0..12 {
        read(&chain, span * BLOCK);
    }
    // The middle's sector bitmap has a separate page for this sector, which is not in memory yet.
    let sector = 33 * BLOCK + 40;
    let mut gate = Gate::new(&host, |step| matches!(step, Step::Read { file: MIDDLE, .. }));
    std::thread::scope(|scope| {
        let held = || assert_ne!(read(&chain, sector), Says::Torn);
        Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
        gate.wait_for_arrival();
        gate.meanwhile("a writer", || write(&chain, 2, sector, 8));
        gate.meanwhile("a reader", || assert_eq!(read(&chain, sector), tag(2, sector)));
        gate.release();
    });
    assert_eq!(read(&chain, sector), tag(2, sector));
    close_and_judge(chain, &pair);
}

#[test]
fn two_growing_writers_do_not_hide_each_others_length() {
    let (host, pair, chain) = pair(8 * MIB);
    write(&chain, 1, 0, 8);
    chain.flush().unwrap();
    // Between learning of the file's length and telling readers nothing asks the host, unless the fault is
    // planted that this test is for: then the writer is held there. Otherwise it is held a step later.
    let is_between = |step| matches!(step, Step::Read { at: 0, .. } | Step::Write { .. });
    let mut gate = Gate::new(&host, is_between);
    std::thread::scope(|scope| {
        let held = || write(&chain, 2, BLOCK, BLOCK);
        Builder::new().name(HELD.into()).spawn_scoped(scope, held).unwrap();
        gate.wait_for_arrival();
        for block in 2..6 {
            gate.meanwhile("another block", || write(&chain, 3, block * BLOCK, BLOCK));
        }
        gate.release();
    });
    for block in 1..6 {
        let turn = if block == 1 { 2 } else { 3 };
        assert_eq!(read(&chain, block * BLOCK), tag(turn, block * BLOCK), "block {block}");
    }
    close_and_judge(chain, &pair);
}
