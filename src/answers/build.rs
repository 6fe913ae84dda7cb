//! Builds the runs of a span, layer by layer.

use std::borrow::Cow;

use super::packed::{PackedSpan, Sectors, SourceRun};
use super::run::{Answer, PackedRun};
use crate::types::{FileOffset, MIB};

/// The longest span of a disk, the usual block size of differencing images. Layers with smaller blocks use spans of
/// one block.
pub(crate) const MOST_SPAN: u64 = 2 * MIB;

/// Number of words with one bit for each of a span's sectors, at the smallest sector size. One more word has a bit for
/// each of them.
const SPAN_WORDS: usize = (MOST_SPAN / 512 / 64) as usize;
const _: () = assert!(SPAN_WORDS == u64::BITS as usize);

/// The most sectors in a span.
const MOST_SECTORS: usize = SPAN_WORDS * 64;
/// Layers whose sources are found by number.
const LAYERS: usize = 512;

/// The owner of a run of bytes, as far as one image can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This image's file, from this offset on.
    Here(FileOffset),
    /// None: zeros.
    Zero,
    /// The parent.
    Parent,
}

/// The owners of a span's sectors, as far as one image can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanOwner {
    /// The same owner for all sectors.
    One(Owner),
    /// This image's file, from this offset on, for some sectors, and the parent for the others.
    Mixed(FileOffset),
}

/// The runs of a span under construction.
pub(crate) struct SpanBuilder {
    sector_shift: u32,
    /// Number of sectors in the span.
    sectors: u64,
    /// Number of layers asked.
    depth: usize,
    /// Sectors that no layer has answered for.
    open: SpanBits,
    /// The first sectors of the other runs.
    starts: [u64; SPAN_WORDS],
    /// For each of these, its source.
    numbers: Box<[u16; MOST_SECTORS]>,
    sources: Sources,
}

impl SpanBuilder {
    /// Starts with the known runs of the span.
    pub(crate) fn new(sectors: u64, sector_shift: u32, known: &[PackedRun]) -> Self {
        // Through a vector: an array would be built on the stack first.
        let numbers = vec![0; MOST_SECTORS].into_boxed_slice();
        let numbers = numbers.try_into().unwrap_or_else(|_| unreachable!("the length is right"));
        let (open, sources) = (SpanBits::new(), Sources::new(known.len()));
        let starts = [0; SPAN_WORDS];
        let mut new = Self { sector_shift, sectors, depth: 0, open, starts, numbers, sources };
        for (i, run) in known.iter().enumerate() {
            let start = run.start();
            if let Answer::Open { depth } = run.answer() {
                new.depth = depth;
                let end = known.get(i + 1).map_or(sectors, |next| next.start());
                new.open.set(start, end);
            } else if start < sectors {
                let number = new.sources.number(run.at_start(sector_shift));
                new.numbers[start as usize] = number;
                new.starts[start as usize / 64] |= 1 << (start % 64);
            }
        }
        new
    }

    /// Number of layers asked.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether any sector from `first` up to `end` is open.
    pub(crate) fn is_open(&self, first: u64, end: u64) -> bool {
        let words = (first / 64..end.div_ceil(64)).filter(|i| self.open.any >> i & 1 == 1);
        words.into_iter().any(|i| self.open.words[i as usize] & mask(i, first, end) != 0)
    }

    /// Adds the next layer's answer for the first `there` sectors of the span, after which the layer's disk ends. If
    /// owners differ, `here` has the sectors that the layer holds. `None` if an offset is too large for a packed run.
    pub(crate) fn add(&mut self, owner: SpanOwner, here: &SpanBits, there: u64) -> Option<()> {
        let layer = self.depth;
        match owner {
            SpanOwner::One(Owner::Parent) => {}
            SpanOwner::One(Owner::Zero) => {
                self.close(&self.up_to(there), PackedRun::zero(0, Some(layer)));
            }
            SpanOwner::One(Owner::Here(place)) => {
                let source = self.here(place)?;
                self.close(&self.up_to(there), source);
            }
            SpanOwner::Mixed(place) => {
                let source = self.here(place)?;
                self.close(here, source);
            }
        }
        if there < self.sectors {
            // Data beyond the end of a layer never shows through from below it.
            self.close(&SpanBits::of(there, self.sectors), PackedRun::zero(0, None));
        }
        self.depth += 1;
        Some(())
    }

    /// The runs in the form in which to store them. `sectors` tells of a regular span.
    pub(crate) fn pack(mut self, sectors: Sectors) -> PackedSpan {
        self.close(&SpanBits::ALL, PackedRun::open(0, self.depth));
        let count = self.starts.iter().map(|word| word.count_ones() as usize).sum();
        let mut runs: Vec<SourceRun> = Vec::with_capacity(count);
        let mut last = None;
        for (word, first) in self.starts.iter().zip((0..).step_by(64)) {
            let mut left = *word;
            while left != 0 {
                let start = first + left.trailing_zeros() as usize;
                left &= left - 1;
                let number = self.numbers[start % MOST_SECTORS];
                // Runs of one source continue each other.
                if last.replace(number) != Some(number) {
                    runs.push(SourceRun { start: start as u16, number });
                }
            }
        }
        sectors.pack(&runs, &self.sources.all)
    }

    /// The first sectors of the span.
    fn up_to(&self, there: u64) -> Cow<'static, SpanBits> {
        match there == self.sectors {
            true => Cow::Borrowed(&SpanBits::ALL),
            false => Cow::Owned(SpanBits::of(0, there)),
        }
    }

    /// The run of the current layer if it held the whole span, whose first sector would be at file offset `place`.
    /// `None` if an offset is too large for a packed run.
    fn here(&self, place: FileOffset) -> Option<PackedRun> {
        // The end of the span bounds all offsets.
        PackedRun::here(0, self.depth, place + (self.sectors << self.sector_shift))?;
        PackedRun::here(0, self.depth, place)
    }

    /// Closes those of these sectors that are open, with this source.
    fn close(&mut self, sectors: &SpanBits, source: PackedRun) {
        // Whether the last sector of a word was closed, as the bit for the one that follows it.
        let (mut before, mut after) = (0, 0);
        let mut number = None;
        let mut left = self.open.any & sectors.any;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            left &= left - 1;
            let closed = self.open.words[i] & sectors.words[i];
            if closed == 0 {
                continue;
            }
            let number = *number.get_or_insert_with(|| self.sources.number(source));
            let follows = if i == after { before } else { 0 };
            let mut starts = closed & !(closed << 1 | follows);
            (before, after) = (closed >> 63, i + 1);
            self.open.put(i, self.open.words[i] & !closed);
            self.starts[i] |= starts;
            while starts != 0 {
                self.numbers[i * 64 + starts.trailing_zeros() as usize] = number;
                starts &= starts - 1;
            }
        }
    }
}

/// The sources of a span's runs. A source is written as the run that it would be if it had the whole span.
struct Sources {
    all: Vec<PackedRun>,
    /// By kind and layer: the number plus one of the last such source, or 0. Empty unless runs were known: a layer that
    /// is asked is a new source.
    last: Vec<u16>,
}

impl Sources {
    /// For a span with this many known runs.
    fn new(known: usize) -> Self {
        let kinds = if known > 1 { 3 } else { 0 };
        Self { all: Vec::with_capacity(64), last: vec![0; kinds * LAYERS] }
    }

    /// The number of this source.
    fn number(&mut self, source: PackedRun) -> u16 {
        let (kind, layer) = match source.answer() {
            Answer::Here { layer, .. } => (0, Some(layer)),
            Answer::Zero { layer } => (1, layer),
            Answer::Open { depth } => (2, Some(depth)),
        };
        // A layer holds a span contiguously, so it has one source of each kind. Others only take more numbers.
        let at = kind * LAYERS + layer.map_or(0, |layer| layer + 1) % LAYERS;
        if let Some(number) = self.last.get(at).and_then(|last| last.checked_sub(1))
            && self.all[usize::from(number)] == source
        {
            return number;
        }
        let number = self.all.len() as u16;
        self.all.push(source);
        if let Some(last) = self.last.get_mut(at) {
            *last = number + 1;
        }
        number
    }
}

/// Sectors of a span. Most layers hold few of them, so the words without any are passed over.
#[derive(Clone, Debug)]
pub(crate) struct SpanBits {
    /// The words that count: the others may be of sectors before.
    any: u64,
    /// One bit for each sector.
    words: [u64; SPAN_WORDS],
}

impl SpanBits {
    /// All sectors, and those beyond a shorter span.
    const ALL: Self = Self { any: u64::MAX, words: [u64::MAX; SPAN_WORDS] };

    /// No sector.
    pub(crate) fn new() -> Self {
        Self { any: 0, words: [0; SPAN_WORDS] }
    }

    /// The sectors from `first` up to `end`.
    fn of(first: u64, end: u64) -> Self {
        let mut bits = Self::new();
        bits.set(first, end);
        bits
    }

    pub(crate) fn clear(&mut self) {
        self.any = 0;
    }

    /// Adds the sectors of word number `word`, which has none, by their bits, of which one at least is set.
    #[inline]
    pub(crate) fn add(&mut self, word: usize, bits: u64) {
        self.words[word] = bits;
        self.any |= 1 << word;
    }

    /// Has word number `word` be these bits.
    #[inline]
    fn put(&mut self, word: usize, bits: u64) {
        self.words[word] = bits;
        let is_any = 1 << word;
        self.any = if bits == 0 { self.any & !is_any } else { self.any | is_any };
    }

    /// Removes the sectors from `end` on, all of which must be in one word.
    pub(crate) fn end_at(&mut self, end: u64) {
        if !end.is_multiple_of(64) && self.any >> (end / 64) & 1 == 1 {
            let word = (end / 64) as usize;
            self.put(word, self.words[word] & mask(end / 64, 0, end));
        }
    }

    /// The last sector.
    pub(crate) fn last(&self) -> Option<u64> {
        let word = self.any.checked_ilog2()?;
        Some(u64::from(word * 64 + self.words[word as usize].checked_ilog2()?))
    }

    /// Adds the sectors from `first` up to `end`.
    fn set(&mut self, first: u64, end: u64) {
        for i in first / 64..end.div_ceil(64) {
            let bits = if self.any >> i & 1 == 1 { self.words[i as usize] } else { 0 };
            self.put(i as usize, bits | mask(i, first, end));
        }
    }
}

/// The bits of word number `word` for the sectors from `first` up to `end`.
fn mask(word: u64, first: u64, end: u64) -> u64 {
    let below = |sector: u64| match sector.saturating_sub(word * 64) {
        bits @ 0..64 => (1 << bits) - 1,
        _ => u64::MAX,
    };
    below(end) & !below(first)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sectors in a span of 1 MiB.
    const SECTORS: u64 = 2048;

    /// What one layer says.
    #[derive(Clone, Debug)]
    struct Says {
        owner: SpanOwner,
        /// Runs of sectors that a mixed layer holds: their start and length.
        held: Vec<(u64, u64)>,
        there: u64,
    }

    fn says() -> impl Strategy<Value = Says> {
        let place = (1..5_u64).prop_map(|mib| FileOffset::new(mib * MIB));
        let owner = prop_oneof![
            1 => Just(SpanOwner::One(Owner::Zero)),
            1 => place.clone().prop_map(|at| SpanOwner::One(Owner::Here(at))),
            2 => Just(SpanOwner::One(Owner::Parent)),
            16 => place.prop_map(SpanOwner::Mixed),
        ];
        // Around the ends of words of 64 sectors as well, and by pages.
        let start = prop_oneof![
            0..SECTORS,
            (0..SECTORS / 64).prop_map(|word| (word * 64).saturating_sub(1)),
            (0..SECTORS / 8).prop_map(|page| page * 8),
        ];
        let len = prop_oneof![Just(1), Just(8), 1..200_u64];
        let there = prop_oneof![9 => Just(SECTORS), 1 => 0..SECTORS];
        (owner, proptest::collection::vec((start, len), 0..40), there)
            .prop_map(|(owner, held, there)| Says { owner, held, there })
    }

    fn holds(says: &Says, sector: u64) -> bool {
        says.held.iter().any(|(start, len)| (*start..start + len).contains(&sector))
    }

    /// The answer for a sector by asking layer after layer.
    fn walked(layers: &[Says], sector: u64) -> Answer {
        for (layer, says) in layers.iter().enumerate() {
            if sector >= says.there {
                return Answer::Zero { layer: None };
            }
            match says.owner {
                SpanOwner::One(Owner::Zero) => return Answer::Zero { layer: Some(layer) },
                SpanOwner::One(Owner::Here(at)) => {
                    return Answer::Here { layer, at: at + sector * 512 };
                }
                SpanOwner::Mixed(at) if holds(says, sector) => {
                    return Answer::Here { layer, at: at + sector * 512 };
                }
                _ => {}
            }
        }
        Answer::Open { depth: layers.len() }
    }

    /// Compares with the layers' own answers, once all of them are asked, the first some of them before the others.
    fn agrees(layers: &[Says], first: usize) {
        let sectors = Sectors { in_span: SECTORS, shift: 9 };
        let unpack = |span: &PackedSpan| {
            let mut runs = vec![PackedRun::default(); SECTORS as usize];
            let count = span.find(sectors, (0, SECTORS - 1), &mut runs);
            runs.truncate(count);
            runs
        };
        let mut known = vec![PackedRun::open(0, 0)];
        let (above, below) = layers.split_at(first.min(layers.len()));
        for part in [above, below] {
            let mut span = SpanBuilder::new(SECTORS, 9, &known);
            part.iter().for_each(|says| add(&mut span, says));
            known = unpack(&span.pack(sectors));
            // No layer is left to ask.
            if known.iter().all(|run| !matches!(run.answer(), Answer::Open { .. })) {
                break;
            }
        }
        for sector in 0..SECTORS {
            let run = known[known.partition_point(|run| run.start() <= sector) - 1];
            assert_eq!(run.later_by(sector - run.start()), walked(layers, sector), "{sector}");
        }
    }

    fn add(span: &mut SpanBuilder, says: &Says) {
        // Words of no sector may be of other ones before.
        let mut here = SpanBits::of(0, SECTORS);
        here.clear();
        for sector in (0..says.there).filter(|sector| holds(says, *sector)) {
            here.set(sector, sector + 1);
        }
        span.add(says.owner, &here, says.there).unwrap();
    }

    proptest! {
        /// In one go, and continued from what was stored.
        #[test]
        fn a_span_says_of_each_sector_what_the_first_layer_with_it_says(
            layers in proptest::collection::vec(says(), 1..30),
            first in 0..30_usize,
        ) {
            agrees(&layers, first);
        }
    }

    #[test]
    fn a_run_behind_another_layers_is_one_of_its_own() {
        let place = |mib| SpanOwner::Mixed(FileOffset::new(mib * MIB));
        let above = Says { owner: place(1), held: vec![(56, 8), (128, 8)], there: SECTORS };
        let below = Says { owner: place(2), held: vec![(0, 200)], there: SECTORS };
        agrees(&[above, below], 0);
    }

    impl PackedRun {
        fn later_by(self, sectors: u64) -> Answer {
            match self.answer() {
                Answer::Here { layer, at } => Answer::Here { layer, at: at + sectors * 512 },
                other => other,
            }
        }
    }
}
