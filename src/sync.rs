//! Synchronization primitives: those of `loom` under `--cfg loom`, which tries all thread interleavings of small
//! parts, and those of the standard library otherwise. Lanes keep threads from sharing cache lines.

use std::cell::Cell;

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering, fence},
};

/// So many threads have a lane of their own, before two share one.
#[cfg(not(loom))]
pub(crate) const LANES: usize = 16;
#[cfg(loom)]
pub(crate) const LANES: usize = 2;

/// One value for each lane.
#[derive(Debug, Default)]
pub(crate) struct Lanes<T>([Lane<T>; LANES]);

/// Alone on its lines of the processor's cache, of which some fetch two at a time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane<T>(T);

impl<T> Lanes<T> {
    /// That of this thread.
    #[inline]
    pub(crate) fn own(&self) -> &T {
        &self.0[own_lane()].0
    }

    pub(crate) fn at(&self, lane: usize) -> &T {
        &self.0[lane].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|lane| &lane.0)
    }
}

/// The lane of this thread.
#[inline]
pub(crate) fn own_lane() -> usize {
    thread_local! {
        /// One more than its number.
        static OWN: Cell<usize> = const { Cell::new(0) };
    }
    OWN.with(|own| {
        if own.get() == 0 {
            own.set(next_lane() + 1);
        }
        own.get() - 1
    })
}

#[cold]
fn next_lane() -> usize {
    use std::sync::atomic::AtomicUsize;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed) % LANES
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn threads_have_lanes_of_their_own() {
        let lanes: Vec<usize> =
            (0..LANES).map(|_| std::thread::spawn(own_lane).join().unwrap()).collect();
        let mut apart = lanes.clone();
        apart.sort_unstable();
        apart.dedup();
        // Threads of other tests may come between.
        assert!(apart.len() > LANES / 2, "{lanes:?}");
        assert!(size_of::<Lane<u64>>() >= 128 && align_of::<Lane<u64>>() >= 128);
        assert_eq!(own_lane(), own_lane());
    }
}
