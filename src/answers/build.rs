//! Builds the runs of a span, layer by layer.

use super::packed::{PackedSpan, Sectors, SourceRun};
use super::run::{Answer, PackedRun};
use crate::types::{FileOffset, MIB};

/// The longest span of a disk, the usual block size of differencing images. Layers with smaller blocks use spans of
/// one block.
pub(crate) const MOST_SPAN: u64 = 2 * MIB;

/// Number of words with one bit for each of a span's sectors, at the smallest sector size.
pub(crate) const SPAN_WORDS: usize = (MOST_SPAN / 512 / 64) as usize;

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
    open: Bits,
    /// The first sectors of the other runs.
    starts: Bits,
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
        let (open, starts, sources) = (Bits::NONE, Bits::NONE, Sources::new());
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
                new.starts.set(start, start + 1);
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
        (first / 64..end.div_ceil(64)).any(|i| self.open.0[i as usize] & mask(i, first, end) != 0)
    }

    /// Adds the next layer's answer for the first `there` sectors of the span, after which the layer's disk ends. If
    /// owners differ, `here` has a bit for each sector that the layer holds. `None` if an offset is too large for a
    /// packed run.
    pub(crate) fn add(
        &mut self,
        owner: SpanOwner,
        here: &[u64; SPAN_WORDS],
        there: u64,
    ) -> Option<()> {
        let layer = self.depth;
        match owner {
            SpanOwner::One(Owner::Parent) => {}
            SpanOwner::One(Owner::Zero) => {
                self.close(&Bits::of(0, there), PackedRun::zero(0, Some(layer)));
            }
            SpanOwner::One(Owner::Here(place)) => {
                let source = self.here(place)?;
                self.close(&Bits::of(0, there), source);
            }
            SpanOwner::Mixed(place) => {
                let source = self.here(place)?;
                self.close(here, source);
            }
        }
        if there < self.sectors {
            // Data beyond the end of a layer never shows through from below it.
            self.close(&Bits::of(there, self.sectors), PackedRun::zero(0, None));
        }
        self.depth += 1;
        Some(())
    }

    /// The runs in the form in which to store them. `sectors` tells of a regular span.
    pub(crate) fn pack(mut self, sectors: Sectors) -> PackedSpan {
        self.close(&[u64::MAX; SPAN_WORDS], PackedRun::open(0, self.depth));
        let count = self.starts.0.iter().map(|word| word.count_ones() as usize).sum();
        let mut runs: Vec<SourceRun> = Vec::with_capacity(count);
        let mut last = None;
        for (word, first) in self.starts.0.iter().zip((0..).step_by(64)) {
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

    /// The run of the current layer if it held the whole span, whose first sector would be at file offset `place`.
    /// `None` if an offset is too large for a packed run.
    fn here(&self, place: FileOffset) -> Option<PackedRun> {
        // The end of the span bounds all offsets.
        PackedRun::here(0, self.depth, place + (self.sectors << self.sector_shift))?;
        PackedRun::here(0, self.depth, place)
    }

    /// Closes those of these sectors that are open, with this source.
    fn close(&mut self, sectors: &[u64; SPAN_WORDS], source: PackedRun) {
        let mut before = 0;
        let mut number = None;
        for i in 0..SPAN_WORDS {
            let closed = self.open.0[i] & sectors[i];
            if closed == 0 {
                before = 0;
                continue;
            }
            let number = *number.get_or_insert_with(|| self.sources.number(source));
            let mut starts = closed & !(closed << 1 | before);
            before = closed >> 63;
            self.open.0[i] &= !closed;
            self.starts.0[i] |= starts;
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
    /// By kind and layer: the number plus one of the last such source, or 0.
    last: [[u16; LAYERS]; 3],
}

impl Sources {
    fn new() -> Self {
        Self { all: Vec::new(), last: [[0; LAYERS]; 3] }
    }

    /// The number of this source.
    fn number(&mut self, source: PackedRun) -> u16 {
        let (kind, layer) = match source.answer() {
            Answer::Here { layer, .. } => (0, Some(layer)),
            Answer::Zero { layer } => (1, layer),
            Answer::Open { depth } => (2, Some(depth)),
        };
        // A layer holds a span contiguously, so it has one source of each kind. Others only take more numbers.
        let last = &mut self.last[kind][layer.map_or(0, |layer| layer + 1) % LAYERS];
        if let Some(number) = last.checked_sub(1)
            && self.all[usize::from(number)] == source
        {
            return number;
        }
        let number = self.all.len() as u16;
        self.all.push(source);
        *last = number + 1;
        number
    }
}

/// One bit for each sector that a span may have.
struct Bits([u64; SPAN_WORDS]);

impl Bits {
    const NONE: Self = Self([0; SPAN_WORDS]);

    /// The bits from `first` up to `end`.
    fn of(first: u64, end: u64) -> [u64; SPAN_WORDS] {
        let mut bits = Self::NONE;
        bits.set(first, end);
        bits.0
    }

    /// Sets the bits from `first` up to `end`.
    fn set(&mut self, first: u64, end: u64) {
        let words = self.0.iter_mut().zip(0..).take(end.div_ceil(64) as usize);
        words.skip((first / 64) as usize).for_each(|(word, i)| *word |= mask(i, first, end));
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

    fn add(span: &mut SpanBuilder, says: &Says) {
        let mut here = [0; SPAN_WORDS];
        for sector in (0..says.there).filter(|sector| holds(says, *sector)) {
            here[sector as usize / 64] |= 1 << (sector % 64);
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
            let sectors = Sectors { in_span: SECTORS, shift: 9 };
            let unpack = |span: &PackedSpan| {
                let mut runs = vec![PackedRun::default(); SECTORS as usize];
                let count = span.find(sectors, (0, SECTORS - 1), &mut runs);
                runs.truncate(count);
                runs
            };
            let mut known = vec![PackedRun::open(0, 0)];
            for part in [&layers[..first.min(layers.len())], &layers[first.min(layers.len())..]] {
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
                let found = run.later_by(sector - run.start());
                prop_assert_eq!(found, walked(&layers, sector), "sector {}", sector);
            }
        }
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
