//! What chains found out about their disks, kept within a budget and read without a lock.
//!
//! A table of lines, each as long as a line of the processor's cache, says what is known: a version, and a few
//! questions with their answers. An answer of one word stands there itself; for a longer one the line says
//! where its words stand in a ring of memory, into which they were written once, one answer behind the other.
//! When the ring is full, the oldest are written over. All of it is atomic words: a reader takes what it needs
//! and then looks whether the line has another version by now, or the ring's end has come by. So
//! readers write nothing that others read, and an answer that goes has no owner to wait for. What a reader
//! looks at beside the words of the answer that it wants is that one line.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicUsize;
use std::sync::{OnceLock, PoisonError};

use super::packed::Sectors;
use super::run::PackedRun;
use crate::sync::{AtomicU64, Mutex, Ordering, fence};

/// Words of memory that are taken at a time.
const PIECE: usize = 8192;
/// Lines of the table that are taken at a time.
const LINES: usize = 1024;
/// Questions of a line.
const WAYS: usize = 3;
/// How often a reader looks at a line that is changed under its eyes.
const TRIES: usize = 4;
/// Answers to neighbouring questions that share a piece of the table, one for each of its lines: the logarithm
/// to base 2.
const NEIGHBOURS: u32 = LINES.trailing_zeros();
/// Bits of a question that say which part of a disk it is about: 64 TiB in parts of 1 MiB.
const NUMBER_BITS: u32 = 26;
/// Says that the words of an answer stand in the ring. An answer of one word does not have this bit.
const IN_RING: u64 = 1 << 63;
/// Where in the ring they stand, and above that what form they have.
const PLACE_BITS: u32 = 45;
const PLACES: u64 = (1 << PLACE_BITS) - 1;
const FORMS: u64 = (IN_RING >> PLACE_BITS) - 1;
/// Less memory is of no use.
const LEAST: usize = 1024;
/// More is more than the largest disk has answers for, and its places alone would take memory.
const MOST: u64 = 16 << 30;
const WORD: usize = size_of::<u64>();

type Words = Box<[AtomicU64]>;

/// What is known of a few questions: a reader looks at one line of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    /// Odd while the line is changed.
    version: AtomicU64,
    /// A question, or 0, and its answer.
    ways: [[AtomicU64; 2]; WAYS],
}

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnswerKey(u64);

impl AnswerKey {
    /// What names a stack of layers that had no name yet.
    pub(crate) fn new_stack() -> u64 {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// This part of a disk as a stack of layers has it; `None` for numbers that there is no room for. No
    /// stack has the number 0.
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

/// An answer as it is stored.
enum Stored<'a> {
    /// One word.
    Word(u64),
    /// Words of some form. There may be more than the answer has, and until the ring's floor shows that they were
    /// whole all may be any words.
    Words { form: u32, words: &'a [AtomicU64], at: u64 },
}

/// The answers that are known.
#[derive(Debug)]
pub(crate) struct AnswerTable {
    /// Pieces of the table, as many as a power of two. Memory is taken when it is needed.
    lines: Box<[OnceLock<Box<[Line]>>]>,
    /// A power of two.
    lines_per_piece: usize,
    /// As many as a power of two, too.
    ring: Box<[OnceLock<Words>]>,
    /// A power of two.
    words_per_piece: usize,
    /// Places in the ring go on counting round after round. Those before this one are written over.
    floor: AtomicU64,
    head: Mutex<Head>,
    /// Bytes of memory taken.
    held: AtomicUsize,
    /// Answers that others were written over, as far as that is known.
    evicted: AtomicUsize,
    seed: [u64; 2],
}

#[derive(Debug)]
struct Head {
    /// Where in the ring the next answer goes.
    next: u64,
    /// Answers that were kept so far.
    kept: usize,
}

impl AnswerTable {
    /// Room for answers of at most `bytes`, `None` where that is too little for any.
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

    /// Bytes of memory taken so far. They stay taken.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Answers that others were written over: those that the ring came by count when their place in the table is
    /// taken again.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed) as u64
    }

    /// Keeps an answer in place of an earlier one to the same question: one word below 2^63 of form 0, or words
    /// of another form below 2^18. It is let go when there is no room for it, when somebody else keeps one at
    /// this very moment, for nobody waits, or when it is not `still` right. Whether memory was taken for it.
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
        // The same question's place, or else one that says nothing, or else any of them in turn.
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

    /// Lets go of the answers to questions, and notes it `then`: before anybody can keep another, so that one
    /// that was being found out until here, with the help of these perhaps, can tell that it is not
    /// right any more.
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

    /// Has whoever keeps answers do without, and whoever lets go of some wait, until it is dropped.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn hold(&self) -> impl Sized {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes words to the ring, over the oldest ones, and says where.
    fn write(&self, head: &mut Head, words: &[u64]) -> u64 {
        let left = self.words_per_piece - self.within_piece(head.next);
        let at = if words.len() > left { head.next + left as u64 } else { head.next };
        head.next = at + words.len() as u64;
        let capacity = (self.ring.len() * self.words_per_piece) as u64;
        self.floor.store(head.next - capacity, Ordering::Relaxed);
        // Whoever reads one of the words that follow sees the new floor afterwards.
        fence(Ordering::Release);
        let piece = self.ring[self.piece(at)].get_or_init(|| self.take_words());
        for (place, word) in piece[self.within_piece(at)..].iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        at
    }

    /// Takes what is known of sector `first` of a span and of those that follow up to `last`: their runs, as many as
    /// `found` has room for. Says how many, none where the question has no answer. The first run may be given from
    /// a later sector on than it has.
    #[inline]
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
                let count = sectors.find(form, words, first, last, found);
                if self.is_whole(at) { count } else { 0 }
            }
        }
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

    /// Whether the words from there on that were read until now are those of one answer.
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

    /// Where the answer to a question stands. Seeded, so that nobody knows whose answers share a line.
    fn home(&self, key: AnswerKey) -> Home {
        let (number, group) = (key.number(), key.number() >> NEIGHBOURS);
        let stack = self.fold(key.stack(), 0);
        Home {
            // In turn, so that all pieces and all lines of one have their share of a disk.
            piece: stack.wrapping_add(group) as usize & (self.lines.len() - 1),
            // Yet so that what lies at equal distances does not meet in a few lines.
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
    /// What the line says of a question.
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

    /// Changes what the line says. Nobody else does so meanwhile.
    fn change(&self, way: usize, known: [u64; 2]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // Whoever reads one of the words that follow sees that version afterwards.
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

/// Answers whose form is how many words they have.
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

    /// Sorted words that tell whose they are and how many they are.
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

    /// Few answers about a large disk find room wherever they lie.
    #[test]
    fn what_lies_at_equal_distances_does_not_meet() {
        for shift in 0..=20 {
            let table = AnswerTable::new(32 << 20).unwrap();
            // Room for 100,000; these are up to 16,384 on a disk of 64 TiB.
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

    /// Readers see an answer whole and of the question they ask, or none, while it is written over.
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

/// Every order in which a reader and a writer may come, and every older word that the reader may see.
#[cfg(all(test, loom))]
mod orders {
    use loom::sync::Arc;
    use loom::thread;

    use super::plain::{keep, whole};
    use super::*;

    /// Room for two answers of two words: a third is written over the first.
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
                // There are as many places: each of these takes one from another.
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

    /// What was found out before a change, or with the help of what was known before it, is not there after it.
    #[test]
    fn an_answer_that_is_no_longer_right_is_not_kept() {
        in_every_order(|| {
            let table = small();
            keep(&table, key(1), &[10], || true);
            let now = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
            let (others, writers) = (Arc::clone(&table), Arc::clone(&now));
            let writer = thread::spawn(move || {
                let [table, changes] = &*writers;
                table.store(1, Ordering::Relaxed);
                let count = || _ = changes.fetch_add(1, Ordering::AcqRel);
                others.drop_answers([key(1)], count);
            });
            let [table, changes] = &*now;
            let seen = changes.load(Ordering::Acquire);
            let known = whole(&table, key(1));
            let answer = known.map_or_else(|| 10 + table.load(Ordering::Relaxed), |known| known[0]);
            keep(&table, key(1), &[answer], || changes.load(Ordering::Acquire) == seen);
            writer.join().unwrap();
            let found = whole(&table, key(1)).unwrap_or_default();
            assert!(found.is_empty() || found == [11], "{found:?}");
        });
    }
}
