//! Who may still use places in the file, so that none is given to another block under a reader.
//!
//! Readers come in generations. Whoever frees places begins a new generation once nobody who looks for the
//! block can find them any more. The places are for others when all pins of the generations before are gone,
//! and neither side ever waits for the other: readers come and go, and whoever wants space asks
//! whether they are gone.
//!
//! That a place is not given away while it may be read rests on two orders:
//!
//! - A pin is taken before its owner looks for a place. Pins are counted in lanes, each a word with the
//!   generation beside the count, and both sides change these words in one step. Where a new generation came to
//!   a lane first, the pin is of the new one, and its owner sees all that happened before that generation
//!   began: the tables without the old place. Where the pin came first, it is counted, and the new generation
//!   finds it in the count.
//! - A pin is left after its owner's last read. Whoever finds the generation gone has seen that step, in the
//!   lane or under the lock, so that what it then writes comes after that read.
//!
//! A pin may go in another thread than it came in.

use std::collections::VecDeque;
use std::sync::PoisonError;

use crate::sync::{AtomicU64, Lanes, Mutex, MutexGuard, Ordering, own_lane};

/// The lower bits of a lane count pins, the others have the generation, as far as there is room.
const COUNT_BITS: u32 = 28;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Pins, by the generation they came in.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    lanes: Lanes<AtomicU64>,
    past: Mutex<Past>,
}

/// What is known of generations that are over.
#[derive(Debug, Default)]
struct Past {
    /// The generation that is not over yet.
    now: u64,
    /// Those that pins are left of, and how many, oldest first.
    left: VecDeque<(u64, u64)>,
}

/// A pin that its owner [leaves](Pins::leave), once.
#[derive(Debug)]
#[must_use = "what is not left keeps its space for ever"]
pub(crate) struct Ticket {
    lane: usize,
    /// As far as a lane has room for it.
    generation: u64,
}

/// A pin for as long as this is there, from before a place is looked for until it is read from.
#[derive(Debug)]
pub(crate) struct Pin<'a> {
    pins: &'a Pins,
    ticket: Ticket,
}

/// The number of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(u64);

impl Pins {
    /// Keeps all places that can be found from now on from being given to others.
    pub(crate) fn pin(&self) -> Pin<'_> {
        Pin { pins: self, ticket: self.enter() }
    }

    /// As [`pin`](Self::pin), until the ticket is given back.
    pub(crate) fn enter(&self) -> Ticket {
        self.enter_lane(own_lane())
    }

    pub(crate) fn enter_lane(&self, lane: usize) -> Ticket {
        let before = self.lanes.at(lane).fetch_add(1, Ordering::AcqRel);
        Ticket { lane, generation: before >> COUNT_BITS }
    }

    /// Lets go of what a ticket that was had here keeps.
    pub(crate) fn leave(&self, ticket: &Ticket) {
        let lane = self.lanes.at(ticket.lane);
        let mut now = lane.load(Ordering::Relaxed);
        while now >> COUNT_BITS == ticket.generation {
            match lane.compare_exchange(now, now - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => now = seen,
            }
        }
        // Its generation is over, or is just being ended by somebody who has the lock.
        let mut past = self.past();
        let of_it = |(n, _): &(u64, u64)| in_lane(*n) == ticket.generation;
        if let Some(at) = past.left.iter().position(of_it) {
            past.left[at].1 -= 1;
            if past.left[at].1 == 0 {
                past.left.remove(at);
            }
        }
    }

    /// Begins a new generation, whose pins find nothing of what was freed before, and says which one is over.
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

    /// The first generation that may have pins left. Waits for none.
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

/// The part of a generation's number that a lane has room for. No pin lives long enough to meet it again.
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
        // Whoever has it may be another thread than the one that came.
        std::thread::scope(|scope| _ = scope.spawn(|| pins.leave(&older)));
        assert!(third < pins.oldest(), "those that came later count for nothing");
        let fourth = pins.end_generation();
        assert!(pins.oldest() <= fourth);
        drop(newest);
        assert!(fourth < pins.oldest());
    }
}
