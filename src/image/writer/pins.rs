//! Who reads from the file, so that no place is given to another block under a reader.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Readers, by the generation they came in. Whoever gives places away begins a new generation and waits
/// for those of the last, so that no reader ever waits: those who come later find no old place any more.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    generation: AtomicUsize,
    /// Readers of even and of odd generations: of more than two there never are any.
    readers: [AtomicUsize; 2],
    /// Held by the one who waits, and for a moment by readers who leave a generation that is over.
    waiting: Mutex<()>,
    left: Condvar,
}

/// A reader, from before it looks for a place until it has read from there.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pins: &'a Pins,
    generation: usize,
}

impl Pins {
    /// Enters a reader.
    pub(crate) fn pin(&self) -> Pin<'_> {
        loop {
            let generation = self.generation.load(Ordering::SeqCst);
            self.readers[generation % 2].fetch_add(1, Ordering::SeqCst);
            let pin = Pin { pins: self, generation };
            // Nobody may have waited for a generation that was over before this one counted in it.
            if self.generation.load(Ordering::SeqCst) == generation {
                return pin;
            }
        }
    }

    /// Returns once the readers that are there now are gone.
    pub(super) fn wait_for_readers(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.generation.fetch_add(1, Ordering::SeqCst);
        while self.readers[last % 2].load(Ordering::SeqCst) > 0 {
            waiting = self.left.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let pins = self.pins;
        let was_last = pins.readers[self.generation % 2].fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && pins.generation.load(Ordering::SeqCst) != self.generation {
            // Behind the lock, so that who waits has either not looked yet or hears of it.
            drop(pins.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            pins.left.notify_all();
        }
    }
}
