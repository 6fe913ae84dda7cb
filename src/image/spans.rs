//! What chains found out about their disks, kept within a budget and read without a lock.
//!
//! The words of an answer are written once, one answer behind the other, into a ring of memory; when it is
//! full, the oldest ones are written over. A table of slots says where in the ring an answer stands. All
//! of it is atomic words: a reader takes what it needs and then looks whether the ring's end has
//! come by meanwhile. So readers write nothing that others read, and an answer that goes has no owner to
//! wait for.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use crate::sync::{AtomicU64, Mutex, Ordering, fence};

/// Words of memory that are taken at a time.
const PIECE: usize = 8192;
/// Slots that an answer may stand in: a line of the processor's cache.
const WAYS: usize = 8;
/// Answers to neighbouring questions that share a piece of the table.
const NEIGHBOURS: u32 = 10;
/// Words before those of an answer: what it is the answer to.
const HEAD: usize = 2;
const COUNT_BITS: u32 = 16;
/// A slot has the place of an answer in its lower bits, and bits of the hash above.
const PLACE_BITS: u32 = 48;
const PLACES: u64 = (1 << PLACE_BITS) - 1;
/// Less memory is of no use.
const LEAST: usize = 1024;
const WORD: usize = size_of::<u64>();

type Words = Box<[AtomicU64]>;

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanKey {
    /// The layers that were asked. What they answer never changes.
    pub(crate) stack: u64,
    /// The part of the disk, below 2^48.
    pub(crate) number: u64,
}

/// Answers: sorted words.
#[derive(Debug)]
pub(crate) struct Spans {
    /// Pieces of the table, as many as a power of two. Memory is taken when it is needed.
    slots: Box<[OnceLock<Words>]>,
    slots_per_piece: usize,
    ring: Box<[OnceLock<Words>]>,
    /// A power of two.
    words_per_piece: usize,
    /// Places in the ring go on counting round after round. Those before this one are written over.
    floor: AtomicU64,
    /// Where the next answer goes.
    head: Mutex<u64>,
    /// Bytes of memory taken.
    held: AtomicUsize,
    seed: [u64; 2],
}

impl Spans {
    /// Room for answers of at most `bytes`, `None` where that is too little for any.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        if bytes < LEAST {
            return None;
        }
        let slots = power_of_two_in(bytes / 4 / WORD).max(WAYS);
        let slots_per_piece = slots.min(PIECE);
        let ring = bytes / WORD - slots;
        let words_per_piece = power_of_two_in(ring).min(PIECE);
        let pieces = ring / words_per_piece;
        let seed = RandomState::new();
        Some(Self {
            slots: (0..slots / slots_per_piece).map(|_| OnceLock::new()).collect(),
            slots_per_piece,
            ring: (0..pieces).map(|_| OnceLock::new()).collect(),
            words_per_piece,
            // No slot that is empty points to a place that counts.
            floor: AtomicU64::new(1),
            head: Mutex::new((pieces * words_per_piece) as u64),
            held: AtomicUsize::new(0),
            seed: [seed.hash_one(0), seed.hash_one(1)],
        })
    }

    /// Bytes of memory taken so far. They stay taken.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Takes from an answer the last word that is not above `first` and those that follow and are not above
    /// `last`, as many as `found` has room for. Their number; 0 where there is no answer.
    pub(crate) fn find(&self, key: SpanKey, first: u64, last: u64, found: &mut [u64]) -> usize {
        let looked = self.look(key, |answer| {
            let after = answer.partition_point(|word| word.load(Ordering::Relaxed) <= first);
            let mut count = 0;
            for (word, place) in answer[after.saturating_sub(1)..].iter().zip(found.iter_mut()) {
                let word = word.load(Ordering::Relaxed);
                if count > 0 && word > last {
                    break;
                }
                *place = word;
                count += 1;
            }
            count
        });
        looked.unwrap_or_default()
    }

    /// All words of an answer.
    pub(crate) fn whole(&self, key: SpanKey) -> Option<Vec<u64>> {
        self.look(key, |answer| answer.iter().map(|word| word.load(Ordering::Relaxed)).collect())
    }

    /// Keeps an answer, in place of an earlier one to the same question. It is let go when there is no
    /// room for it, or when somebody else keeps one at this very moment: nobody waits.
    /// Whether memory was taken for it.
    pub(crate) fn keep(&self, key: SpanKey, answer: &[u64]) -> bool {
        let len = HEAD + answer.len();
        if len > self.words_per_piece || answer.len() >= 1 << COUNT_BITS {
            return false;
        }
        let Ok(mut head) = self.head.try_lock() else { return false };
        let before = self.held();
        let left = self.words_per_piece - self.within_piece(*head);
        let at = if len > left { *head + left as u64 } else { *head };
        *head = at + len as u64;
        let capacity = (self.ring.len() * self.words_per_piece) as u64;
        let floor = (*head - capacity).max(1);
        self.floor.store(floor, Ordering::Relaxed);
        // Whoever reads one of the words that follow sees the new floor afterwards.
        fence(Ordering::Release);
        let piece = self.ring[self.piece(at)].get_or_init(|| self.take(self.words_per_piece));
        let heading = [key.stack, key.number << COUNT_BITS | answer.len() as u64];
        let words = heading.iter().chain(answer);
        for (place, word) in piece[self.within_piece(at)..].iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        let home = self.home(key);
        let slots = self.slots[home.piece].get_or_init(|| self.take(self.slots_per_piece));
        let slots = &slots[home.line..home.line + WAYS];
        let chosen = slots.iter().min_by_key(|slot| {
            let slot = slot.load(Ordering::Relaxed);
            // The same question's, or else the oldest.
            let at = slot & PLACES;
            let may_be = at >= floor && slot >> PLACE_BITS == home.tag;
            (!(may_be && self.answer(key, at).is_some()), at)
        });
        if let Some(slot) = chosen {
            slot.store(home.tag << PLACE_BITS | at, Ordering::Release);
        }
        self.held() != before
    }

    /// Hands an answer to `look`, and what that made of it on if it was whole until then. Until that is
    /// known the words may be any, and their number too.
    fn look<R>(&self, key: SpanKey, mut look: impl FnMut(&[AtomicU64]) -> R) -> Option<R> {
        let home = self.home(key);
        let slots = self.slots[home.piece].get()?;
        for slot in &slots[home.line..home.line + WAYS] {
            let slot = slot.load(Ordering::Acquire);
            if slot >> PLACE_BITS != home.tag {
                continue;
            }
            let at = slot & PLACES;
            let Some(answer) = self.answer(key, at) else { continue };
            let looked = look(answer);
            fence(Ordering::Acquire);
            if self.floor.load(Ordering::Relaxed) <= at {
                return Some(looked);
            }
        }
        None
    }

    /// The words at a place of the ring, where they are the answer to this question.
    fn answer(&self, key: SpanKey, at: u64) -> Option<&[AtomicU64]> {
        let words = self.ring[self.piece(at)].get()?.get(self.within_piece(at)..)?;
        let (heading, words) = words.split_at_checked(HEAD)?;
        let [stack, number] = [0, 1].map(|n: usize| heading[n].load(Ordering::Relaxed));
        if stack != key.stack || number >> COUNT_BITS != key.number {
            return None;
        }
        words.get(..(number & ((1 << COUNT_BITS) - 1)) as usize)
    }

    fn take(&self, words: usize) -> Words {
        self.held.fetch_add(words * WORD, Ordering::Relaxed);
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    fn piece(&self, at: u64) -> usize {
        let piece = at >> self.words_per_piece.trailing_zeros();
        (piece % self.ring.len() as u64) as usize
    }

    fn within_piece(&self, at: u64) -> usize {
        at as usize & (self.words_per_piece - 1)
    }

    /// Where answers to a question stand. Seeded, so that nobody knows whose answers share slots.
    fn home(&self, key: SpanKey) -> Home {
        let fold = |state: u64, value: u64| {
            let product = u128::from(state ^ value) * u128::from(self.seed[1] | 1);
            (product >> 64) as u64 ^ product as u64
        };
        let group = key.number >> NEIGHBOURS;
        let stack = fold(self.seed[0], key.stack);
        let lines = self.slots_per_piece / WAYS;
        let line = (key.number ^ stack >> 16) as usize & (lines - 1);
        Home {
            // In turn, so that all pieces have their share of a disk.
            piece: stack.wrapping_add(group) as usize & (self.slots.len() - 1),
            line: line * WAYS,
            tag: fold(stack, group) >> PLACE_BITS ^ key.number & (u64::MAX >> PLACE_BITS),
        }
    }
}

struct Home {
    piece: usize,
    /// The first slot of a few.
    line: usize,
    /// Told apart in the slots themselves.
    tag: u64,
}

fn power_of_two_in(n: usize) -> usize {
    1 << n.checked_ilog2().unwrap_or_default()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(stack: u64, number: u64) -> SpanKey {
        SpanKey { stack, number }
    }

    /// Sorted words that tell whose they are and how many they are.
    fn answer(key: SpanKey, version: u64, len: u64) -> Vec<u64> {
        let word =
            |n| n << 48 | (key.stack * 31 + key.number * 7 + version * 1009 + len) & 0xFFFF_FFFF;
        (0..len).map(word).collect()
    }

    proptest! {
        #[test]
        fn an_answer_is_the_last_one_kept_or_none(
            bytes in prop_oneof![Just(LEAST), Just(5000), Just(1 << 16), Just(3 << 20)],
            asks in proptest::collection::vec((0..3_u64, 0..40_u64, 1..200_u64, any::<bool>()), 1..400),
        ) {
            let spans = Spans::new(bytes).unwrap();
            let mut model = HashMap::new();
            for (version, (stack, number, len, is_kept)) in asks.into_iter().enumerate() {
                // Spread over groups of neighbours, too.
                let key = key(stack, number * 700);
                if is_kept {
                    let words = answer(key, version as u64, len);
                    spans.keep(key, &words);
                    if len as usize + HEAD <= spans.words_per_piece {
                        let found = spans.whole(key);
                        prop_assert_eq!(found.as_ref(), Some(&words), "just kept");
                        model.insert(key.stack << 32 | key.number, words);
                    }
                }
                let Some(found) = spans.whole(key) else { continue };
                prop_assert_eq!(Some(&found), model.get(&(key.stack << 32 | key.number)));
                let mut some = [0; 5];
                let first = found.len() as u64 / 3;
                let count = spans.find(key, first << 48 | 0xFFFF_FFFF, (first + 3) << 48 | 0xFFFF_FFFF, &mut some);
                prop_assert_eq!(&some[..count], &found[first as usize..found.len().min(first as usize + 4)]);
            }
            prop_assert!(spans.held() <= bytes, "{} of {bytes} bytes", spans.held());
        }
    }

    #[test]
    fn what_fits_is_all_there() {
        let spans = Spans::new(4 << 20).unwrap();
        let keys = || (0..40_000).map(|n| key(1 + n / 30_000, n));
        for key in keys() {
            spans.keep(key, &answer(key, 0, 3));
        }
        let lost = keys().filter(|key| spans.whole(*key) != Some(answer(*key, 0, 3))).count();
        assert_eq!(lost, 0);
    }

    #[test]
    fn memory_is_taken_as_it_is_needed() {
        let spans = Spans::new(32 << 20).unwrap();
        assert_eq!(spans.held(), 0);
        assert!(spans.keep(key(1, 1), &[1]));
        assert!(!spans.keep(key(1, 2), &[1]));
        assert_eq!(spans.held(), 2 * PIECE * WORD);
        assert!(Spans::new(LEAST - 1).is_none());
    }

    /// Readers see an answer whole and of the question they ask, or none, while it is written over.
    #[test]
    fn no_reader_sees_parts_of_two_answers() {
        let spans = Spans::new(2000).unwrap();
        let lens = |n: u64| 1 + n * n % 23;
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let spans = &spans;
                scope.spawn(move || {
                    for turn in 0..40_000 {
                        let key = key(7, (turn * 5 + writer) % 12);
                        spans.keep(key, &answer(key, turn, lens(turn)));
                    }
                });
            }
            for reader in 0..2 {
                let spans = &spans;
                scope.spawn(move || {
                    for turn in 0..80_000 {
                        let key = key(7, (turn + reader) % 12);
                        let Some(found) = spans.whole(key) else { continue };
                        let low = found[0] & 0xFFFF_FFFF;
                        let is_one = found.iter().zip(0..).all(|(word, n)| *word == n << 48 | low);
                        let of_key = low - key.stack * 31 - key.number * 7 - found.len() as u64;
                        assert!(is_one && of_key.is_multiple_of(1009), "{found:?}");
                    }
                });
            }
        });
    }
}

/// Every order in which a reader and a writer may come, and every older word that the reader may see.
#[cfg(all(test, loom))]
mod orders {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    #[test]
    fn a_reader_sees_a_whole_answer_or_none() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            // Two answers fill the ring: the third is written over the first.
            let spans = Spans {
                slots: Box::new([OnceLock::new()]),
                slots_per_piece: WAYS,
                ring: Box::new([OnceLock::new()]),
                words_per_piece: 8,
                floor: AtomicU64::new(1),
                head: Mutex::new(8),
                held: AtomicUsize::new(0),
                seed: [3, 5],
            };
            let key = |number| SpanKey { stack: 1, number };
            spans.keep(key(1), &[10, 11]);
            spans.keep(key(2), &[20, 21]);
            let spans = Arc::new(spans);
            let writer = Arc::clone(&spans);
            let writer = thread::spawn(move || {
                writer.keep(key(1), &[12, 13]);
                writer.keep(key(3), &[30, 31]);
            });
            let found = spans.whole(key(1));
            let whole = [None, Some(vec![10, 11]), Some(vec![12, 13])];
            assert!(whole.contains(&found), "{found:?}");
            writer.join().unwrap();
            assert_eq!(spans.whole(key(1)), Some(vec![12, 13]));
            assert_eq!(spans.whole(key(2)), None);
        });
    }
}
