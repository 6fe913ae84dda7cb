//! Caches answers about disks within a budget, for reading without a lock.
//!
//! The table consists of lines, each as long as a cache line of the processor. A line holds a version and a few keys
//! with their answers. An answer of one word is in the line itself; for a longer one, the line holds the position of
//! its words in a ring buffer, to which answers are appended. When the ring is full, the oldest answers are
//! overwritten. All of this is atomic words: a reader loads the words it needs, and then checks whether the line's
//! version has changed or the end of the ring has passed them. So readers write nothing that others read, and an
//! overwritten answer has no owner to wait for. Besides the words of the answer, a reader touches only that one line.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicUsize;
use std::sync::{OnceLock, PoisonError};

use super::packed::Sectors;
use super::run::PackedRun;
use crate::sync::{AtomicU64, Mutex, Ordering, fence};

/// Words of memory per allocation.
const PIECE: usize = 8192;
/// Lines of the table per allocation.
const LINES: usize = 1024;
/// Keys per line.
const WAYS: usize = 3;
/// Attempts of a reader at a line that is being changed.
const TRIES: usize = 4;
/// Base-2 logarithm of the number of neighbouring keys that share a piece of the table, one for each of its lines.
const NEIGHBOURS: u32 = LINES.trailing_zeros();
/// Bits of a key that number the part of a disk: 64 TiB in parts of 1 MiB.
const NUMBER_BITS: u32 = 26;
/// Marks an answer whose words are in the ring. An answer of one word does not have this bit.
const IN_RING: u64 = 1 << 63;
/// Bits for the position in the ring; the form is above them.
const PLACE_BITS: u32 = 45;
const PLACES: u64 = (1 << PLACE_BITS) - 1;
const FORMS: u64 = (IN_RING >> PLACE_BITS) - 1;
/// Less memory is of no use.
const LEAST: usize = 1024;
/// The largest disk has no answers for more, and the positions alone would take memory.
const MOST: u64 = 16 << 30;
const WORD: usize = size_of::<u64>();

type Words = Box<[AtomicU64]>;

/// The answers to a few keys, in one cache line of the processor.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    /// Odd while the line is being changed.
    version: AtomicU64,
    /// A key, or 0, and its answer.
    ways: [[AtomicU64; 2]; WAYS],
}

/// The subject of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnswerKey(u64);

impl AnswerKey {
    /// A new number for a stack of layers.
    pub(crate) fn new_stack() -> u64 {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// The key for this part of a stack's disk; `None` if the numbers do not fit. No stack has the number 0.
    pub(crate) fn new(stack: u64, number: u64) -> Option<Self> {
        let fits = stack >> (u64::BITS - NUMBER_BITS) == 0 && number >> NUMBER_BITS == 0;
        (fits && stack > 0).then_some(Self(stack << NUMBER_BITS | number))
    }

    fn stack(self) -> u64 {
        self.0 >> NUMBER_BITS
    }

    fn number(self) -> u64 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }
}

/// A stored answer.
enum Stored<'a> {
    /// A single word.
    Word(u64),
    /// Words of some form, possibly followed by others. Until the ring's floor shows that they were intact, they may
    /// have any values.
    Words { form: u32, words: &'a [AtomicU64], at: u64 },
}

/// The cached answers.
#[derive(Debug)]
pub(crate) struct AnswerTable {
    /// Pieces of the table, a power of two. Each is allocated when first needed.
    lines: Box<[OnceLock<Box<[Line]>>]>,
    /// A power of two.
    lines_per_piece: usize,
    /// Also a power of two.
    ring: Box<[OnceLock<Words>]>,
    /// A power of two.
    words_per_piece: usize,
    /// Positions in the ring count on from round to round. Those before this one are overwritten.
    floor: AtomicU64,
    head: Mutex<Head>,
    /// Bytes of memory allocated.
    held: AtomicUsize,
    /// Number of answers overwritten by others, as far as known.
    evicted: AtomicUsize,
    seed: [u64; 2],
}

#[derive(Debug)]
struct Head {
    /// Position of the next answer in the ring.
    next: u64,
    /// Number of answers stored so far.
    kept: usize,
}

impl AnswerTable {
    /// Creates a table of at most `bytes`, `None` if that is too little for any answer.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        if bytes < LEAST {
            return None;
        }
        let bytes = usize::try_from(MOST).map_or(bytes, |most| bytes.min(most));
        let lines = power_of_two_in(bytes / 4 / size_of::<Line>());
        let lines_per_piece = lines.min(LINES);
        let ring = (bytes - lines * size_of::<Line>()) / WORD;
        let words_per_piece = power_of_two_in(ring).min(PIECE);
        let pieces = power_of_two_in(ring / words_per_piece);
        let seed = RandomState::new();
        Some(Self {
            lines: (0..lines / lines_per_piece).map(|_| OnceLock::new()).collect(),
            lines_per_piece,
            ring: (0..pieces).map(|_| OnceLock::new()).collect(),
            words_per_piece,
            floor: AtomicU64::new(0),
            head: Mutex::new(Head { next: (pieces * words_per_piece) as u64, kept: 0 }),
            held: AtomicUsize::new(0),
            evicted: AtomicUsize::new(0),
            seed: [seed.hash_one(0), seed.hash_one(1)],
        })
    }

    /// Bytes of memory allocated so far. They are never freed.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Number of answers overwritten by others. Answers overwritten in the ring count when their slot in the table is
    /// reused.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed) as u64
    }

    /// Stores an answer in place of an earlier one for the same key: one word below 2^63 in form 0, or words in
    /// another form below 2^18. The answer is discarded if there is no room, if another thread is storing one at the
    /// moment, or if `still` returns `false`. Never waits. Returns whether memory was allocated.
    pub(crate) fn keep(
        &self,
        key: AnswerKey,
        form: u32,
        answer: &[u64],
        still: impl FnOnce() -> bool,
    ) -> bool {
        let Ok(mut head) = self.head.try_lock() else { return false };
        if answer.len() > self.words_per_piece || u64::from(form) > FORMS {
            return false;
        }
        if !still() {
            return false;
        }
        let before = self.held();
        let known = match (form, answer) {
            (0, [word]) => *word,
            (_, words) => {
                IN_RING | u64::from(form) << PLACE_BITS | self.write(&mut head, words) & PLACES
            }
        };
        let home = self.home(key);
        let line = &self.lines[home.piece].get_or_init(|| self.take_lines())[home.line];
        let floor = self.floor.load(Ordering::Relaxed);
        let is_gone = |answer: u64| answer & IN_RING != 0 && answer & PLACES < floor;
        let load = |pair: &[AtomicU64; 2]| [0, 1].map(|n: usize| pair[n].load(Ordering::Relaxed));
        head.kept += 1;
        // Prefers the key's own slot, then one without a valid answer, then any in turn.
        let chosen = line.ways.iter().enumerate().min_by_key(|(way, pair)| {
            let [of, answer] = load(pair);
            let says = of != 0 && !is_gone(answer);
            (of != key.0, says, (way + head.kept) % WAYS)
        });
        if let Some((way, pair)) = chosen {
            let [of, answer] = load(pair);
            if of != 0 && (of != key.0 || is_gone(answer)) {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
            line.change(way, [key.0, known]);
        }
        self.held() != before
    }

    /// Drops the answers for these keys, and calls `then` before another answer can be stored. An answer determined
    /// until now, perhaps from these, can thereby detect that it is outdated.
    pub(crate) fn drop_answers(
        &self,
        keys: impl IntoIterator<Item = AnswerKey>,
        then: impl FnOnce(),
    ) {
        let _head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            let home = self.home(key);
            let Some(lines) = self.lines[home.piece].get() else { continue };
            let line = &lines[home.line];
            for (way, [of, _]) in line.ways.iter().enumerate() {
                if of.load(Ordering::Relaxed) == key.0 {
                    line.change(way, [0, 0]);
                }
            }
        }
        then();
    }

    /// Until the result is dropped, storing answers fails and dropping answers waits.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn hold(&self) -> impl Sized {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes words to the ring over the oldest ones, and returns their position.
    fn write(&self, head: &mut Head, words: &[u64]) -> u64 {
        let left = self.words_per_piece - self.within_piece(head.next);
        let at = if words.len() > left { head.next + left as u64 } else { head.next };
        head.next = at + words.len() as u64;
        let capacity = (self.ring.len() * self.words_per_piece) as u64;
        self.floor.store(head.next - capacity, Ordering::Relaxed);
        // A reader that sees one of the words written next also sees the new floor afterwards.
        fence(Ordering::Release);
        let piece = self.ring[self.piece(at)].get_or_init(|| self.take_words());
        for (place, word) in piece[self.within_piece(at)..].iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        at
    }

    /// Copies the cached runs of a span from sector `first` up to sector `last` to `found`, as many as fit, and
    /// returns their number, 0 if the key has no answer. The first run may be given with a later start than it has.
    #[inline(always)] // once for each read
    pub(crate) fn find(
        &self,
        key: AnswerKey,
        sectors: Sectors,
        (first, last): (u64, u64),
        found: &mut [PackedRun],
    ) -> usize {
        match self.stored(key) {
            None => 0,
            Some(Stored::Word(word)) => {
                found[0] = PackedRun::from_word(word);
                1
            }
            Some(Stored::Words { form, words, at }) => {
                self.find_in((form, words, at), sectors, (first, last), found)
            }
        }
    }

    /// As [`find`](Self::find), for words in the ring. Out of line, so that an answer of one word costs no call.
    #[inline(never)]
    fn find_in(
        &self,
        (form, words, at): (u32, &[AtomicU64], u64),
        sectors: Sectors,
        (first, last): (u64, u64),
        found: &mut [PackedRun],
    ) -> usize {
        let count = sectors.find(form, words, first, last, found);
        if self.is_whole(at) { count } else { 0 }
    }

    #[inline]
    fn stored(&self, key: AnswerKey) -> Option<Stored<'_>> {
        let home = self.home(key);
        let known = self.lines[home.piece].get()?[home.line].find(key)?;
        if known & IN_RING == 0 {
            return Some(Stored::Word(known));
        }
        let (at, form) = (known & PLACES, (known >> PLACE_BITS & FORMS) as u32);
        let words = self.ring[self.piece(at)].get()?.get(self.within_piece(at)..)?;
        Some(Stored::Words { form, words, at })
    }

    /// Whether the words read so far from this position on belong to one intact answer.
    #[inline]
    fn is_whole(&self, at: u64) -> bool {
        fence(Ordering::Acquire);
        self.floor.load(Ordering::Relaxed) <= at
    }

    fn take_words(&self) -> Words {
        self.held.fetch_add(self.words_per_piece * WORD, Ordering::Relaxed);
        (0..self.words_per_piece).map(|_| AtomicU64::new(0)).collect()
    }

    fn take_lines(&self) -> Box<[Line]> {
        self.held.fetch_add(self.lines_per_piece * size_of::<Line>(), Ordering::Relaxed);
        (0..self.lines_per_piece).map(|_| Line::default()).collect()
    }

    fn piece(&self, at: u64) -> usize {
        let piece = at >> self.words_per_piece.trailing_zeros();
        piece as usize & (self.ring.len() - 1)
    }

    fn within_piece(&self, at: u64) -> usize {
        at as usize & (self.words_per_piece - 1)
    }

    /// The slot of a key. Seeded, so that nothing outside can predict which answers share a line.
    fn home(&self, key: AnswerKey) -> Home {
        let (number, group) = (key.number(), key.number() >> NEIGHBOURS);
        let stack = self.fold(key.stack(), 0);
        Home {
            // In turn, so that a disk uses all pieces and all lines of a piece evenly.
            piece: stack.wrapping_add(group) as usize & (self.lines.len() - 1),
            // Mixed, so that parts at equal distances do not collide in a few lines.
            line: (number ^ self.fold(self.fold(stack, group), stack)) as usize
                & (self.lines_per_piece - 1),
        }
    }

    fn fold(&self, a: u64, b: u64) -> u64 {
        let (a, b) = (self.seed[0] ^ a.rotate_left(32) ^ b, self.seed[1] | 1);
        let product = u128::from(a) * u128::from(b);
        (product >> 64) as u64 ^ product as u64
    }
}

struct Home {
    piece: usize,
    line: usize,
}

impl Line {
    /// The line's answer for a key.
    #[inline]
    fn find(&self, key: AnswerKey) -> Option<u64> {
        for _ in 0..TRIES {
            let version = self.version.load(Ordering::Acquire);
            let way = self.ways.iter().find(|way| way[0].load(Ordering::Relaxed) == key.0);
            let known = way.map(|way| way[1].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if version & 1 == 0 && self.version.load(Ordering::Relaxed) == version {
                return known;
            }
        }
        None
    }

    /// Changes a slot of the line. The caller must exclude other writers.
    fn change(&self, way: usize, known: [u64; 2]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // A reader that sees one of the words written next also sees this version afterwards.
        fence(Ordering::Release);
        for (place, word) in self.ways[way].iter().zip(known) {
            place.store(word, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }
}

fn power_of_two_in(n: usize) -> usize {
    1 << n.checked_ilog2().unwrap_or_default()
}

/// Answers whose form is their number of words.
#[cfg(test)]
mod plain {
    use super::*;

    pub(crate) fn keep(
        table: &AnswerTable,
        key: AnswerKey,
        answer: &[u64],
        still: impl FnOnce() -> bool,
    ) -> bool {
        let form = if answer.len() == 1 { 0 } else { answer.len() as u32 };
        table.keep(key, form, answer, still)
    }

    pub(crate) fn whole(table: &AnswerTable, key: AnswerKey) -> Option<Vec<u64>> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        match table.stored(key)? {
            Stored::Word(word) => Some(vec![word]),
            Stored::Words { form, words, at } => {
                let words = words.iter().take(form as usize).map(load).collect();
                table.is_whole(at).then_some(words)
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::plain::{keep, whole};
    use super::*;

    fn key(stack: u64, number: u64) -> AnswerKey {
        AnswerKey::new(stack + 1, number).unwrap()
    }

    /// Sorted words that identify their key and count.
    fn answer(key: AnswerKey, version: u64, len: u64) -> Vec<u64> {
        let word = |n| n << 48 | (of_key(key) + version * 1009 + len) & 0xFFFF_FFFF;
        (0..len).map(word).collect()
    }

    fn of_key(key: AnswerKey) -> u64 {
        key.stack() * 31 + key.number() * 7
    }

    proptest! {
        #[test]
        fn an_answer_is_the_last_one_kept_or_none(
            bytes in prop_oneof![Just(LEAST), Just(5000), Just(1 << 16), Just(3 << 20)],
            asks in proptest::collection::vec((0..3_u64, 0..40_u64, 1..200_u64, any::<bool>()), 1..400),
        ) {
            let table = AnswerTable::new(bytes).unwrap();
            let mut model = HashMap::new();
            for (version, (stack, number, len, is_kept)) in asks.into_iter().enumerate() {
                // Spread over groups of neighbours, too.
                let key = key(stack, number * 700);
                if is_kept {
                    let words = answer(key, version as u64, len);
                    keep(&table, key, &words, || true);
                    if len as usize <= table.words_per_piece {
                        let found = whole(&table, key);
                        prop_assert_eq!(found.as_ref(), Some(&words), "just kept");
                        model.insert(key.0, words);
                    }
                } else if len % 10 == 0 {
                    table.drop_answers([key], || {});
                    model.remove(&key.0);
                    prop_assert_eq!(whole(&table, key), None, "just dropped");
                } else if len % 10 == 1 {
                    keep(&table, key, &answer(key, version as u64, len), || false);
                }
                let Some(found) = whole(&table, key) else { continue };
                prop_assert_eq!(Some(&found), model.get(&key.0));
            }
            prop_assert!(table.held() <= bytes, "{} of {bytes} bytes", table.held());
        }
    }

    #[test]
    fn what_fits_is_all_there() {
        let table = AnswerTable::new(4 << 20).unwrap();
        let keys = || (0..40_000).map(|n| (key(1 + n / 30_000, n), 1 + n % 3 * 3));
        for (key, len) in keys() {
            keep(&table, key, &answer(key, 0, len), || true);
        }
        let is_lost =
            |(key, len): &(AnswerKey, u64)| whole(&table, *key) != Some(answer(*key, 0, *len));
        assert_eq!(keys().filter(is_lost).count(), 0);
    }

    /// A few answers about a large disk find room wherever they lie.
    #[test]
    fn what_lies_at_equal_distances_does_not_meet() {
        for shift in 0..=20 {
            let table = AnswerTable::new(32 << 20).unwrap();
            // Room for 100,000 answers; these are up to 16,384 on a disk of 64 TiB.
            let distance = 3_u64.pow(shift % 2) << shift;
            let numbers = (0..1 << NUMBER_BITS).step_by(distance as usize).take(1 << 14);
            let keys: Vec<AnswerKey> = numbers.map(|n| key(distance, n)).collect();
            for key in &keys {
                table.keep(*key, 0, &[key.0 & 0xFFFF], || true);
            }
            let is_there = |key: &&AnswerKey| whole(&table, **key) == Some(vec![key.0 & 0xFFFF]);
            let lost = keys.len() - keys.iter().filter(is_there).count();
            assert!(
                lost <= keys.len() / 50,
                "{lost} of {} at a distance of {distance}",
                keys.len()
            );
        }
    }

    #[test]
    fn memory_is_taken_as_it_is_needed() {
        let table = AnswerTable::new(32 << 20).unwrap();
        assert_eq!(table.held(), 0);
        assert!(keep(&table, key(1, 1), &[1], || true));
        assert!(!keep(&table, key(1, 2), &[1], || true));
        assert_eq!(table.held(), LINES * size_of::<Line>());
        assert!(keep(&table, key(1, 3), &[1, 2], || true));
        assert_eq!(table.held(), LINES * size_of::<Line>() + PIECE * WORD);
        assert!(AnswerTable::new(LEAST - 1).is_none());
    }

    #[test]
    fn a_line_is_one_of_the_processors() {
        assert_eq!((size_of::<Line>(), align_of::<Line>()), (64, 64));
    }

    #[test]
    fn questions_that_there_is_no_room_for_have_no_key() {
        assert_eq!(AnswerKey::new(0, 1), None);
        assert_eq!(AnswerKey::new(1, 1 << 26), None);
        assert_eq!(AnswerKey::new(1 << 38, 0), None);
        let last = AnswerKey::new((1 << 38) - 1, (1 << 26) - 1).unwrap();
        assert_eq!((last.stack(), last.number()), ((1 << 38) - 1, (1 << 26) - 1));
    }

    /// While an answer is overwritten, readers see a whole answer to their own key or none.
    #[test]
    fn no_reader_sees_parts_of_two_answers() {
        let table = AnswerTable::new(2000).unwrap();
        let lens = |n: u64| 1 + n * n % 23;
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let table = &table;
                scope.spawn(move || {
                    for turn in 0..40_000 {
                        let key = key(7, (turn * 5 + writer) % 12);
                        match turn % 16 {
                            0 => table.drop_answers([key], || {}),
                            _ => _ = keep(table, key, &answer(key, turn, lens(turn)), || true),
                        }
                    }
                });
            }
            for reader in 0..2 {
                let table = &table;
                scope.spawn(move || {
                    for turn in 0..80_000 {
                        let key = key(7, (turn + reader) % 12);
                        let Some(found) = whole(table, key) else { continue };
                        let low = found[0] & 0xFFFF_FFFF;
                        let is_one = found.iter().zip(0..).all(|(word, n)| *word == n << 48 | low);
                        let version = low - of_key(key) - found.len() as u64;
                        assert!(is_one && version.is_multiple_of(1009), "{found:?}");
                    }
                });
            }
        });
    }
}

/// Every interleaving of a reader and a writer, with every older word that the reader may see.
#[cfg(all(test, loom))]
mod orders {
    use loom::sync::Arc;
    use loom::thread;

    use super::plain::{keep, whole};
    use super::*;

    /// Room for two answers of two words: a third overwrites the first.
    fn small() -> Arc<AnswerTable> {
        Arc::new(AnswerTable {
            lines: Box::new([OnceLock::new()]),
            lines_per_piece: 1,
            ring: Box::new([OnceLock::new()]),
            words_per_piece: 4,
            floor: AtomicU64::new(0),
            head: Mutex::new(Head { next: 4, kept: 0 }),
            held: AtomicUsize::new(0),
            evicted: AtomicUsize::new(0),
            seed: [3, 5],
        })
    }

    fn key(number: u64) -> AnswerKey {
        AnswerKey::new(1, number).unwrap()
    }

    fn in_every_order(what: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(what);
    }

    #[test]
    fn a_reader_sees_a_whole_answer_or_none() {
        in_every_order(|| {
            let table = small();
            keep(&table, key(1), &[10, 11], || true);
            keep(&table, key(2), &[20, 21], || true);
            let writer = Arc::clone(&table);
            let writer = thread::spawn(move || {
                keep(&writer, key(1), &[12, 13], || true);
                keep(&writer, key(3), &[30, 31], || true);
            });
            let found = whole(&table, key(1));
            let sound = [None, Some(vec![10, 11]), Some(vec![12, 13])];
            assert!(sound.contains(&found), "{found:?}");
            writer.join().unwrap();
            assert_eq!(whole(&table, key(1)), Some(vec![12, 13]));
            assert_eq!(whole(&table, key(2)), None);
        });
    }

    #[test]
    fn a_reader_sees_the_answer_to_its_own_question() {
        in_every_order(|| {
            let table = small();
            (1..4).for_each(|n| _ = keep(&table, key(n), &[n * 10], || true));
            let writer = Arc::clone(&table);
            let writer = thread::spawn(move || {
                // All slots are taken, so each of these replaces another.
                keep(&writer, key(4), &[40], || true);
                writer.drop_answers([key(2)], || {});
                keep(&writer, key(1), &[11], || true);
            });
            for n in [1, 2] {
                let found = whole(&table, key(n)).unwrap_or_default();
                let own = [vec![], vec![n * 10], vec![11]];
                assert!(own.contains(&found) && (n == 1 || found != [11]), "{n}: {found:?}");
            }
            writer.join().unwrap();
            assert_eq!(whole(&table, key(2)), None);
        });
    }

    /// An answer determined before a change, or from earlier answers, is not present after it.
    #[test]
    fn an_answer_that_is_no_longer_right_is_not_kept() {
        in_every_order(|| {
            let table = small();
            keep(&table, key(1), &[10], || true);
            let now = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let (others, writers) = (Arc::clone(&table), Arc::clone(&now));
            let writer = thread::spawn(move || {
                let [entry, changes] = &*writers;
                entry.store(1, Ordering::Relaxed);
                let count = || _ = changes.fetch_add(1, Ordering::AcqRel);
                others.drop_answers([key(1)], count);
            });
            let [entry, changes] = &*now;
            let seen = changes.load(Ordering::Acquire);
            let known = whole(&table, key(1));
            let answer = known.map_or_else(|| 10 + entry.load(Ordering::Relaxed), |known| known[0]);
            keep(&table, key(1), &[answer], || changes.load(Ordering::Acquire) == seen);
            writer.join().unwrap();
            let found = whole(&table, key(1)).unwrap_or_default();
            assert!(found.is_empty() || found == [11], "{found:?}");
        });
    }
}
