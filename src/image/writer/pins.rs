//! Who reads from the file, so that no place is given to another block under a reader.

use std::sync::PoisonError;

use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// Readers, by the generation they came in. Whoever gives places away begins a new generation and waits
/// for those of the last, so that no reader ever waits: those who come later find no old place any more.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    /// The generation in the upper half, its readers in the lower one.
    now: AtomicU64,
    /// Readers of generations that are over.
    late: Mutex<u64>,
    left: Condvar,
}

/// A reader, from before it looks for a place until it has read from there.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pins: &'a Pins,
    generation: u64,
}

const HALF: u32 = 32;

impl Pins {
    /// Enters a reader.
    pub(crate) fn pin(&self) -> Pin<'_> {
        let before = self.now.fetch_add(1, Ordering::AcqRel);
        Pin { pins: self, generation: before >> HALF }
    }

    /// Returns once the readers that are there now are gone.
    pub(super) fn wait_for_readers(&self) {
        let mut late = self.late();
        let mut now = self.now.load(Ordering::Relaxed);
        // The generation after the last is the first again.
        while let Err(seen) = self.now.compare_exchange(
            now,
            ((now >> HALF) + 1) << HALF,
            Ordering::AcqRel,
            Ordering::Relaxed,
        ) {
            now = seen;
        }
        *late += now & u64::from(u32::MAX);
        while *late > 0 {
            late = self.left.wait(late).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn late(&self) -> MutexGuard<'_, u64> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut now = self.pins.now.load(Ordering::Relaxed);
        while now >> HALF == self.generation {
            let left =
                self.pins.now.compare_exchange(now, now - 1, Ordering::AcqRel, Ordering::Relaxed);
            match left {
                Ok(_) => return,
                Err(seen) => now = seen,
            }
        }
        // Somebody waits for this one, or is about to and holds the lock.
        let mut late = self.pins.late();
        *late -= 1;
        if *late == 0 {
            drop(late);
            self.pins.left.notify_all();
        }
    }
}
