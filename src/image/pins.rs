//! Keeps ranges of the file from being reused for other blocks while readers may use them.
//!
//! Readers belong to generations. After the tables stop naming a freed range, its owner begins a new generation. The
//! range can be reused once all pins of earlier generations are gone. Neither side waits for the other: readers come
//! and go, and the allocator asks whether they are gone.
//!
//! Two orders guarantee that a range is not reused while it may be read:
//!
//! - A pin is taken before its owner looks up an offset. Pins are counted in lanes. A lane is one word that holds the
//!   generation and the count, and both sides change it atomically. If a new generation reaches a lane first, the pin
//!   belongs to it, and its owner sees everything that happened before that generation began: the tables without the
//!   old offset. If the pin comes first, it is counted, and the new generation includes it in the count.
//! - A pin is released after its owner's last read. A thread that finds the generation gone has seen that release, in
//!   the lane or under the lock, so its later writes come after that read.
//!
//! A pin may be released by another thread than the one that took it.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::sync::{AtomicU64, Lanes, Mutex, MutexGuard, Ordering, own_lane};

/// The lower bits of a lane count pins; the others hold the low bits of the generation.
const COUNT_BITS: u32 = 28;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Pins, counted by generation.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    lanes: Lanes<AtomicU64>,
    past: Mutex<Past>,
}

/// The generations that have ended.
#[derive(Debug, Default)]
struct Past {
    /// The current generation.
    now: u64,
    /// Ended generations that still have pins, and how many, oldest first.
    left: VecDeque<(u64, u64)>,
}

/// A pin that its owner must [release](Pins::leave) exactly once.
#[derive(Debug)]
#[must_use = "what is not left keeps its space for ever"]
pub(crate) struct Ticket {
    lane: usize,
    /// The low bits of the generation, as in a lane.
    generation: u64,
}

/// A pin that is released when dropped. It must span the lookup of an offset and the read from it.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pins: &'a Pins,
    ticket: Ticket,
}

/// The number of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(u64);

impl Pins {
    /// Keeps every range that can be looked up from now on from being reused.
    pub(crate) fn pin(&self) -> Pin<'_> {
        Pin { pins: self, ticket: self.enter() }
    }

    /// As [`pin`](Self::pin), until the ticket is returned.
    pub(crate) fn enter(&self) -> Ticket {
        self.enter_lane(own_lane())
    }

    pub(crate) fn enter_lane(&self, lane: usize) -> Ticket {
        let before = self.lanes.at(lane).fetch_add(1, Ordering::AcqRel);
        Ticket { lane, generation: before >> COUNT_BITS }
    }

    /// Releases the pin of a ticket from this set.
    pub(crate) fn leave(&self, ticket: &Ticket) {
        let lane = self.lanes.at(ticket.lane);
        let mut now = lane.load(Ordering::Relaxed);
        while now >> COUNT_BITS == ticket.generation {
            match lane.compare_exchange(now, now - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => now = seen,
            }
        }
        // The generation has ended, or another thread that holds the lock is ending it.
        let mut past = self.past();
        let of_it = |(n, _): &(u64, u64)| in_lane(*n) == ticket.generation;
        if let Some(at) = past.left.iter().position(of_it) {
            past.left[at].1 -= 1;
            if past.left[at].1 == 0 {
                past.left.remove(at);
            }
        }
    }

    /// Begins a new generation, whose pins cannot find ranges freed before, and returns the one that ended.
    pub(crate) fn end_generation(&self) -> Generation {
        let mut past = self.past();
        let ended = past.now;
        past.now += 1;
        let next = in_lane(past.now) << COUNT_BITS;
        let mut left = 0;
        for lane in self.lanes.iter() {
            let mut now = lane.load(Ordering::Relaxed);
            while let Err(seen) =
                lane.compare_exchange(now, next, Ordering::AcqRel, Ordering::Relaxed)
            {
                now = seen;
            }
            left += now & COUNT;
        }
        if left > 0 {
            past.left.push_back((ended, left));
        }
        Generation(ended)
    }

    /// The first generation that may have pins left. Does not wait.
    pub(crate) fn oldest(&self) -> Generation {
        let past = self.past();
        Generation(past.left.front().map_or(past.now, |(generation, _)| *generation))
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.pins.leave(&self.ticket);
    }
}

/// The low bits of a generation, as stored in a lane. No pin lives long enough for them to repeat.
fn in_lane(generation: u64) -> u64 {
    generation & (u64::MAX >> COUNT_BITS)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_gone_when_all_pins_of_it_and_before_are() {
        let pins = Pins::default();
        let first = pins.end_generation();
        assert!(first < pins.oldest(), "nobody was there");

        let (old, older) = (pins.enter_lane(0), pins.enter_lane(1));
        let second = pins.end_generation();
        let new = pins.enter_lane(0);
        let third = pins.end_generation();
        let newest = pins.pin();
        assert!(first < pins.oldest() && pins.oldest() <= second);
        pins.leave(&new);
        assert!(pins.oldest() <= second, "older ones are left");
        pins.leave(&old);
        assert!(pins.oldest() <= second, "one in another lane is left");
        // A pin may be released by another thread than the one that took it.
        std::thread::scope(|scope| _ = scope.spawn(|| pins.leave(&older)));
        assert!(third < pins.oldest(), "those that came later count for nothing");
        let fourth = pins.end_generation();
        assert!(pins.oldest() <= fourth);
        drop(newest);
        assert!(fourth < pins.oldest());
    }
}
