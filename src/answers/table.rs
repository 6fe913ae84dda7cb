//! Caches answers about disks within a budget, for reading without a lock.
//!
//! The table consists of lines, each as long as a cache line of the processor. A line holds a version and the answers
//! for a few neighbouring parts of one disk, so that the lines of a disk in use are few enough to stay in the
//! processor's caches. An answer of one word is in the line itself; for a longer one, the line holds the position of
//! its words in a ring buffer, to which answers are appended. When the ring is full, the oldest answers are
//! overwritten. All of this is atomic words: a reader loads the words it needs, and then checks whether the line's
//! version has changed or the end of the ring has passed them. So readers write nothing that others read, and an
//! overwritten answer has no owner to wait for. Besides the words of the answer, a reader nearly always touches only
//! one line: a few lines form a set, and the first of them that is free takes new neighbours.

#[cfg(all(test, not(loom)))]
mod tests;

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
/// Neighbouring keys whose answers share a line.
const NEIGHBOURS: u64 = 6;
/// Lines per set: as many groups of neighbours with the same home are remembered.
const WAYS: usize = if cfg!(loom) { 2 } else { 4 };
/// Attempts of a reader at a line that is being changed.
const TRIES: usize = 4;
/// Base-2 logarithm of the number of neighbouring lines of a disk that share a piece of the table, one for each of its
/// sets.
const IN_PIECE: u32 = (LINES / WAYS).trailing_zeros();
/// As for pieces: after this many of them, a disk's parts move on by one.
const IN_TURN: u32 = 7;
/// Spreads all bits of a number over the high ones: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
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

/// The answers to neighbouring keys, in one cache line of the processor.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    /// Odd while the line is given to other neighbours.
    version: AtomicU64,
    /// Names the neighbours, or 0.
    of: AtomicU64,
    /// Their answers, 0 for those that have none.
    answers: [AtomicU64; NEIGHBOURS as usize],
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

    /// Stores an answer in place of an earlier one for the same key: one word from 1 up to 2^63 in form 0, or words in
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
            (0, [0]) => return false, // would stand for no answer
            (0, [word]) => *word,
            (_, words) => {
                IN_RING | u64::from(form) << PLACE_BITS | self.write(&mut head, words) & PLACES
            }
        };
        let home = self.home(key);
        let lines = self.lines[home.piece].get_or_init(|| self.take_lines());
        let floor = self.floor.load(Ordering::Relaxed);
        let is_gone = |answer: u64| answer & IN_RING != 0 && answer & PLACES < floor;
        head.kept += 1;
        // Prefers the line of the key's neighbours, then the first one without a valid answer, then any in turn.
        let chosen = self.set(lines, &home).enumerate().min_by_key(|(way, line)| {
            let of = line.of.load(Ordering::Relaxed);
            let says = line.all().any(|answer| !is_gone(answer));
            (of != home.of, says, if says { (way + head.kept) % WAYS } else { *way })
        });
        if let Some((_, line)) = chosen {
            let place = &line.answers[home.slot];
            let evicted = if line.of.load(Ordering::Relaxed) != home.of {
                let evicted = line.all().count();
                line.give_to(home.of);
                evicted
            } else {
                usize::from(is_gone(place.load(Ordering::Relaxed)))
            };
            self.evicted.fetch_add(evicted, Ordering::Relaxed);
            // A reader that sees the answer also sees the words that were written to the ring before.
            place.store(known, Ordering::Release);
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
            let is_its_line = |line: &&Line| line.of.load(Ordering::Relaxed) == home.of;
            if let Some(line) = self.set(lines, &home).find(is_its_line) {
                line.answers[home.slot].store(0, Ordering::Release);
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

    /// The cached run of the sectors from `first` up to `last` of a span, if they are in one. It may be given with a later
    /// start than it has.
    #[inline(always)] // once for each read
    pub(crate) fn find_one(
        &self,
        key: AnswerKey,
        sectors: Sectors,
        (first, last): (u64, u64),
    ) -> Option<PackedRun> {
        match self.stored(key)? {
            Stored::Word(word) => Some(PackedRun::from_word(word)),
            Stored::Words { form, words, at } => {
                let run = sectors.find_one(form, words, first, last)?;
                self.is_whole(at).then_some(run)
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

    #[inline(always)] // once for each read
    fn stored(&self, key: AnswerKey) -> Option<Stored<'_>> {
        let home = self.home(key);
        let lines = self.lines[home.piece].get()?;
        let known = self.set(lines, &home).find_map(|line| line.find(home.of, home.slot))?;
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

    /// The lines of a set. Those that are taken first lie together.
    #[inline]
    fn set<'a>(&self, lines: &'a [Line], home: &Home) -> impl Iterator<Item = &'a Line> {
        let (first, sets) = (home.set, self.sets_per_piece());
        (0..WAYS).filter_map(move |way| lines.get(first + way * sets))
    }

    fn sets_per_piece(&self) -> usize {
        self.lines_per_piece / WAYS
    }

    /// The place of a key. Seeded, so that nothing outside can predict which answers share a set.
    #[inline]
    fn home(&self, key: AnswerKey) -> Home {
        let (stack, number) = (key.stack(), key.number());
        let group = number / NEIGHBOURS;
        let part = group >> IN_PIECE;
        // Mixed, so that parts at equal distances do not collide in a few sets. Once more, because under some seeds
        // the folds of such parts differ in few of their low bits.
        let mixed = self.fold(stack, part).wrapping_mul(SPREAD) >> 32;
        let set = (group ^ mixed) as usize & (self.sets_per_piece() - 1);
        // In turn, so that a disk uses all pieces and all sets of a piece evenly; those at equal distances, too.
        let piece = self.fold(stack, u64::MAX).wrapping_add(part).wrapping_add(part >> IN_TURN);
        Home {
            piece: piece as usize & (self.lines.len() - 1),
            set,
            of: stack << NUMBER_BITS | group,
            slot: (number % NEIGHBOURS) as usize,
        }
    }

    fn fold(&self, a: u64, b: u64) -> u64 {
        let (a, b) = (self.seed[0] ^ a.rotate_left(32) ^ b, self.seed[1] | 1);
        let product = u128::from(a) * u128::from(b);
        (product >> 64) as u64 ^ product as u64
    }
}

/// Where a key's answer is, if anywhere.
struct Home {
    piece: usize,
    set: usize,
    /// Names the key's neighbours.
    of: u64,
    slot: usize,
}

impl Line {
    /// An answer of these neighbours, if the line is theirs.
    #[inline]
    fn find(&self, of: u64, slot: usize) -> Option<u64> {
        for _ in 0..TRIES {
            let version = self.version.load(Ordering::Acquire);
            if self.of.load(Ordering::Relaxed) != of {
                return None;
            }
            let known = self.answers[slot].load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if version & 1 == 0 && self.version.load(Ordering::Relaxed) == version {
                return (known != 0).then_some(known);
            }
        }
        None
    }

    /// Gives the line to other neighbours, without answers. The caller must exclude other writers.
    fn give_to(&self, of: u64) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // A reader that sees one of the words written next also sees this version afterwards.
        fence(Ordering::Release);
        self.of.store(of, Ordering::Relaxed);
        self.answers.iter().for_each(|answer| answer.store(0, Ordering::Relaxed));
        self.version.store(version + 2, Ordering::Release);
    }

    /// The answers that are there.
    fn all(&self) -> impl Iterator<Item = u64> {
        let answers = self.answers.iter().map(|answer| answer.load(Ordering::Relaxed));
        answers.filter(|answer| *answer != 0)
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

/// Every interleaving of a reader and a writer, with every older word that the reader may see. The thread that goes
/// first is the writer, which loads words before it stores them: the other way round, `loom` misses that the stores
/// depend on the reader's loads.
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
            lines_per_piece: WAYS,
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
            let reader = Arc::clone(&table);
            let reader = thread::spawn(move || {
                let found = whole(&reader, key(1));
                let sound = [None, Some(vec![10, 11]), Some(vec![12, 13])];
                assert!(sound.contains(&found), "{found:?}");
            });
            keep(&table, key(1), &[12, 13], || true);
            keep(&table, key(3), &[30, 31], || true);
            reader.join().unwrap();
            assert_eq!(whole(&table, key(1)), Some(vec![12, 13]));
            assert_eq!(whole(&table, key(2)), None);
        });
    }

    #[test]
    fn a_reader_sees_the_answer_to_its_own_question() {
        in_every_order(|| {
            let table = small();
            let [first, neighbour, other, third] = [0, 1, 6, 13].map(key);
            keep(&table, first, &[10], || true);
            keep(&table, neighbour, &[20], || true);
            keep(&table, other, &[30], || true);
            let reader = Arc::clone(&table);
            let reader = thread::spawn(move || {
                let found = whole(&reader, neighbour);
                assert!([None, Some(vec![20])].contains(&found), "{found:?}");
            });
            // Both lines are taken, so one is given to others.
            keep(&table, third, &[40], || true);
            reader.join().unwrap();
            table.drop_answers([neighbour], || {});
            keep(&table, first, &[11], || true);
            assert_eq!(whole(&table, neighbour), None);
            assert_eq!(whole(&table, first), Some(vec![11]));
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
