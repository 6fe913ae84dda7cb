//! Every interleaving of threads, for the parts that stand alone.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --lib orders`, in a target folder of its own. A
//! deadlock fails the test like a failed assertion.

use std::sync::Arc as StdArc;

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::block_locks::BlockLocks;
use super::change_lock::ChangeLock;
use super::flush_requests::FlushRequests;
use super::growth::Growth;
use super::space::Ahead;
use super::tracker::ChangeTracker;
use crate::image::{Generation, Pins, Ticket};
use crate::storage::{MemStorage, Storage};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::types::{BlockIndex, MIB};

/// Runs `what` in all interleavings with at most `switches` preemptions.
fn in_every_order(switches: usize, what: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(what);
}

/// Bytes that threads must not read and write at once.
#[derive(Debug)]
struct Bytes(AtomicUsize);

const WRITTEN: usize = 100;

impl Bytes {
    fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    // Relaxed: only the code under test synchronizes the threads.

    fn read(&self) {
        assert!(self.0.fetch_add(1, Ordering::Relaxed) < WRITTEN, "read while written");
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn write(&self) {
        assert_eq!(self.0.fetch_add(WRITTEN, Ordering::Relaxed), 0, "written while in use");
        self.0.fetch_sub(WRITTEN, Ordering::Relaxed);
    }
}

#[test]
fn an_exclusive_lock_on_a_block_excludes_all_others() {
    in_every_order(3, || {
        let shared = Arc::new((BlockLocks::default(), Bytes::new()));
        let spawn = |work: fn(&(BlockLocks, Bytes))| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared))
        };
        let threads = [
            spawn(|(locks, bytes)| {
                let _locked = locks.lock_exclusive(BlockIndex(1));
                bytes.write();
            }),
            spawn(|(locks, bytes)| {
                let _shared = locks.lock_shared(BlockIndex(1));
                bytes.read();
            }),
        ];
        {
            let (locks, bytes) = &*shared;
            drop(locks.lock_shared(BlockIndex(1)));
            let _locked = locks.lock_exclusive(BlockIndex(1));
            // Another block of the same shard is not affected.
            let _other = locks.lock_exclusive(BlockIndex(33));
            bytes.write();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn shared_locks_on_a_block_do_not_wait_for_each_other() {
    in_every_order(3, || {
        let locks = Arc::new(BlockLocks::default());
        let first = locks.lock_shared(BlockIndex(1));
        let second = {
            let locks = Arc::clone(&locks);
            thread::spawn(move || drop(locks.lock_shared(BlockIndex(1))))
        };
        // It finishes although the block is locked here.
        second.join().unwrap();
        drop(first);
        drop(locks.lock_exclusive(BlockIndex(1)));
    });
}

/// The successive places of a block.
struct Places {
    pins: Pins,
    /// Relaxed: readers look it up without a lock.
    now: AtomicUsize,
    places: [Bytes; 3],
}

impl Places {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            pins: Pins::default(),
            now: AtomicUsize::new(0),
            places: [Bytes::new(), Bytes::new(), Bytes::new()],
        })
    }

    fn enter(&self, lane: usize) -> (Ticket, usize) {
        let ticket = self.pins.enter_lane(lane);
        (ticket, self.now.load(Ordering::Relaxed))
    }

    fn read(&self, lane: usize) {
        let (ticket, now) = self.enter(lane);
        self.places[now].read();
        self.pins.leave(&ticket);
    }

    /// Moves the block; returns its old place and the generation of pins that may know of it.
    fn move_on(&self) -> (usize, Generation) {
        let old = self.now.fetch_add(1, Ordering::Relaxed);
        (old, self.pins.end_generation())
    }

    /// Writes to an old place if it may be reused.
    fn give_away(&self, (old, generation): (usize, Generation)) -> bool {
        let is_free = generation < self.pins.oldest();
        if is_free {
            self.places[old].write();
        }
        is_free
    }
}

#[test]
fn no_place_is_given_away_under_a_reader() {
    in_every_order(3, || {
        let places = Places::new();
        let readers = [(0, 1), (1, 2)].map(|(lane, times)| {
            let places = Arc::clone(&places);
            thread::spawn(move || (0..times).for_each(|_| places.read(lane)))
        });
        let first = places.move_on();
        let is_given = places.give_away(first);
        let second = places.move_on();
        let both = [is_given || places.give_away(first), places.give_away(second)];
        for reader in readers {
            reader.join().unwrap();
        }
        // Without readers every place is reused.
        assert!(both[0] || places.give_away(first));
        assert!(both[1] || places.give_away(second));
    });
}

#[test]
fn what_a_pin_that_is_left_elsewhere_keeps_is_not_given_away_before() {
    in_every_order(3, || {
        let places = Places::new();
        let (ticket, now) = places.enter(0);
        let other = {
            let places = Arc::clone(&places);
            thread::spawn(move || {
                places.places[now].read();
                places.pins.leave(&ticket);
            })
        };
        let moved = places.move_on();
        // A pin of a later generation does not matter.
        let (late, _) = places.enter(0);
        let is_given = places.give_away(moved);
        other.join().unwrap();
        assert!(is_given || places.give_away(moved));
        places.pins.leave(&late);
    });
}

#[test]
fn a_change_is_reported_before_the_lock_closes_or_refused() {
    in_every_order(3, || {
        let shared = Arc::new((ChangeLock::default(), [Bytes::new(), Bytes::new()]));
        let tracker = StdArc::new(ChangeTracker::new(2 * MIB, 512));
        drop(tracker.advance(2 * MIB));
        shared.0.track(Some(StdArc::clone(&tracker)));
        let writers = [0, 1].map(|block| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let range = block * MIB..block * MIB + 1;
                let Ok(_change) = shared.0.begin_change(range) else { return false };
                shared.1[block as usize].0.fetch_add(1, Ordering::Relaxed);
                true
            })
        });
        let written = || shared.1.each_ref().map(|bytes| bytes.0.load(Ordering::Relaxed));
        let noted = || -> Vec<u64> {
            std::iter::from_fn(|| tracker.next_marked()).map(|range| range.start / MIB).collect()
        };
        let early = noted();
        let seen = written();
        shared.0.write().close(true);
        let frozen = written();
        let late = noted();
        let done = writers.map(|writer| writer.join().unwrap());
        assert_eq!(written(), frozen, "changed after the lock was closed");
        for block in 0..2 {
            assert_eq!(frozen[block] == 1, done[block]);
            let is_in = |noted: &[u64]| noted.contains(&(block as u64));
            assert!(!is_in(&early) || seen[block] == 1, "noted before it was done");
            assert_eq!(u8::from(is_in(&early)) + u8::from(is_in(&late)), u8::from(done[block]));
        }
    });
}

fn empty_file() -> StdArc<dyn Storage> {
    StdArc::new(MemStorage::new(vec![0; MIB as usize]))
}

#[test]
fn no_file_grows_under_a_commit_and_all_who_wait_go_on() {
    in_every_order(3, || {
        let (file, growth) =
            (empty_file(), StdArc::new(Growth::new(MIB, Ahead::Little, StdArc::default())));
        let writers = [(), ()].map(|()| {
            let (file, growth) = (StdArc::clone(&file), StdArc::clone(&growth));
            thread::spawn(move || growth.allocate(file.as_ref(), MIB).unwrap().at.get())
        });
        {
            let _pause = growth.pause();
            let len = growth.file_len();
            thread::yield_now();
            assert_eq!(growth.file_len(), len);
            assert_eq!(file.len().unwrap(), len);
        }
        let places = writers.map(|writer| writer.join().unwrap());
        assert_ne!(places[0], places[1]);
        assert!(places.iter().all(|place| (MIB..3 * MIB).contains(place)));
    });
}

#[test]
fn concurrent_growth_never_lowers_the_published_length() {
    in_every_order(3, || {
        let (file, shared) = (
            empty_file(),
            Arc::new((Growth::new(MIB, Ahead::Little, StdArc::default()), AtomicU64::new(MIB))),
        );
        let writers = [(), ()].map(|()| {
            let (file, shared) = (StdArc::clone(&file), Arc::clone(&shared));
            thread::spawn(move || {
                let (growth, shown) = &*shared;
                let space = growth.allocate(file.as_ref(), MIB).unwrap();
                growth.publish_length(shown);
                let end = space.at.get() + space.len;
                assert!(shown.load(Ordering::Acquire) >= end, "no reader reaches {end}");
            })
        });
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(shared.1.load(Ordering::Acquire), 3 * MIB);
    });
}

/// The writes, and the durable state.
struct Flushed {
    tickets: FlushRequests,
    written: [AtomicUsize; 3],
    session: Mutex<Durable>,
}

#[derive(Default)]
struct Durable {
    seen: [usize; 3],
    commits: usize,
}

impl Flushed {
    /// Writes and flushes as thread `who`: the write must then be durable.
    fn write_and_flush(&self, who: usize) {
        self.written[who].store(1, Ordering::Release);
        let flushed = self.tickets.request(
            || self.session.lock().unwrap(),
            |durable| {
                let snapshot = self.written.each_ref().map(|write| write.load(Ordering::Acquire));
                // Other threads write during the flush.
                thread::yield_now();
                durable.seen = snapshot;
                durable.commits += 1;
                Ok(())
            },
        );
        flushed.unwrap();
        assert_eq!(self.session.lock().unwrap().seen[who], 1, "flushed and not durable");
    }
}

#[test]
fn a_flush_that_returned_covers_every_earlier_write() {
    static FEWEST: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(9);
    in_every_order(3, || {
        let flushed = Arc::new(Flushed {
            tickets: FlushRequests::default(),
            written: [AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0)],
            session: Mutex::new(Durable::default()),
        });
        let others = [1, 2].map(|who| {
            let flushed = Arc::clone(&flushed);
            thread::spawn(move || flushed.write_and_flush(who))
        });
        flushed.write_and_flush(0);
        for other in others {
            other.join().unwrap();
        }
        let commits = flushed.session.lock().unwrap().commits;
        FEWEST.fetch_min(commits, std::sync::atomic::Ordering::SeqCst);
    });
    // In some interleaving all three came before the first commit.
    assert_eq!(FEWEST.load(std::sync::atomic::Ordering::SeqCst), 1);
}
