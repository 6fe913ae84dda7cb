//! The stored forms of a span's runs: a list or a map.
//!
//! A run is one word, see [`PackedRun`]. A span with many runs of few sources, such as one whose pages many layers
//! own, is stored as a map: one byte for each unit, the largest number of sectors that divides all runs, then the
//! sources, half a word each. A lookup in a map needs no search, and a map is a fraction as long.

use super::run::{Answer, PackedRun};
use crate::sync::{AtomicU64, Ordering};
use crate::types::{FileOffset, MIB};

/// In a form of several words, the low bits hold the number of runs or sources.
const COUNT_BITS: u32 = 13;
/// In a map, the bits above that hold the base-2 logarithm of the sectors per unit.
const UNIT_BITS: u32 = 4;
const IS_MAP: u32 = 1 << (COUNT_BITS + UNIT_BITS);
/// Units per word of a map.
const PER_WORD: u64 = 8;
const MOST_SOURCES: usize = 256;
/// Words per cache line of the processor.
const LINE_WORDS: usize = 8;

/// The runs of a span as stored.
#[derive(Clone, Debug)]
pub(crate) struct PackedSpan {
    pub(crate) form: u32,
    pub(crate) words: Vec<u64>,
}

/// A run with the number of its source.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceRun {
    pub(super) start: u16,
    pub(super) number: u16,
}

/// A word of a stored span.
pub(super) trait Word {
    fn load(&self) -> u64;
}

/// The sectors of a disk's spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sectors {
    /// Number of sectors in every span but the last: a power of two.
    pub(crate) in_span: u64,
    /// Base-2 logarithm of the sector size in bytes.
    pub(crate) shift: u32,
}

impl PackedSpan {
    /// A span with a single answer.
    pub(crate) fn one(run: PackedRun) -> Self {
        Self { form: 0, words: vec![run.word()] }
    }

    /// These runs, as a list.
    pub(crate) fn list(runs: &[PackedRun]) -> Self {
        let form = if runs.len() == 1 { 0 } else { runs.len() as u32 };
        Self { form, words: runs.iter().map(|run| run.word()).collect() }
    }

    /// As [`AnswerTable::find`](super::AnswerTable::find).
    pub(crate) fn find(
        &self,
        sectors: Sectors,
        (first, last): (u64, u64),
        found: &mut [PackedRun],
    ) -> usize {
        // A list of one has form 0.
        let form = if self.form == 0 { 1 } else { self.form };
        sectors.find(form, &self.words, first, last, found)
    }
}

impl Sectors {
    /// The form in which to store these runs. A source is the run that it would be if it had the whole span.
    pub(super) fn pack(self, runs: &[SourceRun], sources: &[PackedRun]) -> PackedSpan {
        self.pack_map(runs, sources).unwrap_or_else(|| {
            let run = |run: &SourceRun| {
                sources[usize::from(run.number)].later(run.start.into(), self.shift)
            };
            PackedSpan::list(&runs.iter().map(run).collect::<Vec<_>>())
        })
    }

    /// A map, if the runs allow one and it is no longer than the runs.
    fn pack_map(self, runs: &[SourceRun], sources: &[PackedRun]) -> Option<PackedSpan> {
        let starts = runs.iter().fold(self.in_span, |all, run| all | u64::from(run.start));
        let unit_shift = starts.trailing_zeros();
        let map_words = (self.in_span >> unit_shift).div_ceil(PER_WORD) as usize;
        if sources.len() > MOST_SOURCES || map_words + sources.len().div_ceil(2) > runs.len() {
            return None;
        }
        let sources = sources.iter().map(|run| self.source(*run)).collect::<Option<Vec<u32>>>()?;
        let mut map = vec![0_u8; map_words * PER_WORD as usize];
        let mut end = (self.in_span >> unit_shift) as usize;
        for run in runs.iter().rev() {
            let start = usize::from(run.start) >> unit_shift;
            let number = run.number as u8;
            match end - start {
                1 => map[start] = number,
                _ => map[start..end].fill(number),
            }
            end = start;
        }
        let mut words = Vec::with_capacity(map_words + sources.len().div_ceil(2));
        let (map, _) = map.as_chunks::<{ PER_WORD as usize }>();
        words.extend(map.iter().map(|units| u64::from_le_bytes(*units)));
        words.extend(sources.chunks(2).map(|pair| {
            u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or_default()) << 32
        }));
        let form = IS_MAP | unit_shift << COUNT_BITS | sources.len() as u32;
        Some(PackedSpan { form, words })
    }

    /// Copies the run of sector `first` and the following runs up to sector `last` to `found`, as many as fit, and
    /// returns their number. The first run may be given with a later start than it has. Words that are being
    /// overwritten may give any result.
    #[inline]
    pub(super) fn find<W: Word>(
        self,
        form: u32,
        words: &[W],
        first: u64,
        last: u64,
        found: &mut [PackedRun],
    ) -> usize {
        if form & IS_MAP == 0 {
            let runs = words.get(..form as usize).unwrap_or_default();
            return self.find_in_runs(runs, first, last, found);
        }
        let Some((map, sources, unit_shift)) = self.parts(form, words) else { return 0 };
        let at = |unit: u64| {
            let word = map.get((unit / PER_WORD) as usize)?.load();
            Some(word >> (unit % PER_WORD * 8) & 0xFF)
        };
        let (mut unit, end) = (first >> unit_shift, last >> unit_shift);
        let mut count = 0;
        while let (Some(place), Some(number)) = (found.get_mut(count), at(unit)) {
            let Some(pair) = sources.get(number as usize / 2) else { break };
            let source = pair.load() >> (number % 2 * 32);
            *place = self.run(source as u32, unit << unit_shift);
            count += 1;
            // Most reads lie in one unit.
            if unit == end {
                break;
            }
            unit += 1;
            while unit <= end && at(unit) == Some(number) {
                unit += 1;
            }
            if unit > end {
                break;
            }
        }
        count
    }

    /// The run of sector `first`, if it reaches up to sector `last`. Otherwise as [`find`](Self::find), in fewer steps.
    #[inline]
    pub(super) fn find_one<W: Word>(
        self,
        form: u32,
        words: &[W],
        first: u64,
        last: u64,
    ) -> Option<PackedRun> {
        if form & IS_MAP == 0 {
            let mut found = [PackedRun::default(); 2];
            return (self.find(form, words, first, last, &mut found) == 1).then_some(found[0]);
        }
        let (map, sources, unit_shift) = self.parts(form, words)?;
        let at = |unit: u64| {
            let word = map.get((unit / PER_WORD) as usize)?.load();
            Some(word >> (unit % PER_WORD * 8) & 0xFF)
        };
        let (unit, end) = (first >> unit_shift, last >> unit_shift);
        let number = at(unit)?;
        // Most reads lie in one unit.
        if unit != end && !(unit + 1..=end).all(|unit| at(unit) == Some(number)) {
            return None;
        }
        let source = sources.get(number as usize / 2)?.load() >> (number % 2 * 32);
        Some(self.run(source as u32, unit << unit_shift))
    }

    /// The map, the sources, and the base-2 logarithm of the sectors per unit.
    #[inline]
    fn parts<W: Word>(self, form: u32, words: &[W]) -> Option<(&[W], &[W], u32)> {
        let unit_shift = form >> COUNT_BITS & ((1 << UNIT_BITS) - 1);
        let map_words = (self.in_span >> unit_shift).div_ceil(PER_WORD) as usize;
        let (map, sources) = words.split_at_checked(map_words)?;
        // Loads all sources before the one needed is known: waiting for two distant cache lines one after the other
        // would cost as much as the rest of a read's path.
        let used = (form as usize & ((1 << COUNT_BITS) - 1)).div_ceil(2).min(sources.len());
        let mut all = 0;
        for line in sources[..used].chunks(LINE_WORDS) {
            all ^= line[0].load();
        }
        std::hint::black_box(all);
        Some((map, sources, unit_shift))
    }

    fn find_in_runs<W: Word>(
        self,
        runs: &[W],
        first: u64,
        last: u64,
        found: &mut [PackedRun],
    ) -> usize {
        let load = |run: &W| PackedRun::from_word(run.load());
        let after = runs.partition_point(|run| load(run).start() <= first);
        let mut count = 0;
        for (run, place) in runs[after.saturating_sub(1)..].iter().zip(found.iter_mut()) {
            let run = load(run);
            if count > 0 && run.start() > last {
                break;
            }
            *place = run;
            count += 1;
        }
        count
    }

    /// A run's source in half a word: its layer, and the offset in MiB at which that layer's file would hold the
    /// span's first sector. `None` if it does not fit.
    fn source(self, run: PackedRun) -> Option<u32> {
        let (layer, place) = match run.answer() {
            Answer::Here { layer, at } => {
                let start = at.get().checked_sub(run.start() << self.shift)?;
                // Spans start at a whole MiB of their block, and blocks lie at multiples of 1 MiB.
                let place = start.is_multiple_of(MIB).then_some(start / MIB)?;
                (layer, Some(place).filter(|place| *place < OPEN)?)
            }
            Answer::Zero { layer: None } => return Some((NO_LAYER << LAYER_SHIFT) | ZERO as u32),
            Answer::Zero { layer: Some(layer) } => (layer, ZERO),
            Answer::Open { depth } => (depth, OPEN),
        };
        let layer = u32::try_from(layer).ok().filter(|layer| *layer < NO_LAYER)?;
        Some(layer << LAYER_SHIFT | place as u32)
    }

    /// The run of a source from this sector on.
    fn run(self, source: u32, sector: u64) -> PackedRun {
        let layer = source >> LAYER_SHIFT;
        let named = (layer < NO_LAYER).then_some(layer as usize);
        let layer = layer as usize;
        match u64::from(source) & PLACES {
            ZERO => PackedRun::zero(sector, named),
            OPEN => PackedRun::open(sector, layer),
            place => {
                let at = FileOffset::new(place * MIB + (sector << self.shift));
                PackedRun::here(sector, layer, at).unwrap_or_else(|| PackedRun::open(sector, 0))
            }
        }
    }
}

impl Word for u64 {
    #[inline]
    fn load(&self) -> u64 {
        *self
    }
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Relaxed)
    }
}

const LAYER_SHIFT: u32 = 23;
const PLACES: u64 = (1 << LAYER_SHIFT) - 1;
const ZERO: u64 = PLACES;
const OPEN: u64 = PLACES - 1;
/// Stands for no layer.
const NO_LAYER: u32 = 0x1FF;

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The stored form of these runs.
    fn pack(sectors: Sectors, runs: &[PackedRun]) -> PackedSpan {
        let sources: Vec<_> = runs.iter().map(|run| run.at_start(sectors.shift)).collect();
        let mut all = sources.clone();
        all.sort_unstable_by_key(|run| run.word());
        all.dedup();
        let number = |source| all.iter().position(|one| one == source).unwrap() as u16;
        let numbered = runs.iter().zip(&sources);
        let runs: Vec<_> = numbered
            .map(|(run, source)| SourceRun { start: run.start() as u16, number: number(source) })
            .collect();
        sectors.pack(&runs, &all)
    }

    /// All runs.
    fn unpack(sectors: Sectors, form: u32, words: &[AtomicU64]) -> Vec<PackedRun> {
        let mut runs = vec![PackedRun::default(); sectors.in_span as usize];
        let count = sectors.find(form, words, 0, sectors.in_span - 1, &mut runs);
        runs.truncate(count);
        runs
    }

    /// Runs that start at multiples of a unit, each from one of a few sources.
    fn runs(sectors: Sectors) -> impl Strategy<Value = Vec<PackedRun>> {
        let unit = 0..=sectors.in_span.trailing_zeros();
        let raw = proptest::collection::vec(
            (any::<u16>(), prop_oneof![9 => 0..70_usize, 1 => 500..530_usize], 0..9_u32),
            1..400,
        );
        (unit, raw, any::<bool>()).prop_map(move |(unit_shift, raw, is_odd)| {
            let mut starts: Vec<u64> = raw
                .iter()
                .map(|(start, ..)| {
                    (u64::from(*start) % sectors.in_span) >> unit_shift << unit_shift
                })
                .chain([0])
                .collect();
            starts.sort_unstable();
            starts.dedup();
            let of = |(start, (_, layer, kind)): (u64, &(u16, usize, u32))| match kind {
                0 => PackedRun::zero(start, None),
                1 => PackedRun::zero(start, Some(*layer)),
                2 => PackedRun::open(start, *layer),
                _ => {
                    // A block of 1 MiB, or one at an offset that is impossible for blocks.
                    let odd = if is_odd { 512 } else { 0 };
                    let block = (1 + *layer as u64) * MIB + odd;
                    let at = FileOffset::new(block + (start << sectors.shift));
                    PackedRun::here(start, *layer, at).unwrap()
                }
            };
            starts.into_iter().zip(raw.iter().cycle()).map(of).collect()
        })
    }

    fn atomic(words: &[u64]) -> Vec<AtomicU64> {
        words.iter().map(|word| AtomicU64::new(*word)).collect()
    }

    /// Describes a run's answer for one of its sectors.
    fn says(sectors: Sectors, run: PackedRun, sector: u64) -> String {
        let skipped = (sector - run.start()) << sectors.shift;
        match run.answer() {
            Answer::Here { layer, at } => format!("{layer} at {}", at + skipped),
            Answer::Zero { layer } => format!("zero by {layer:?}"),
            Answer::Open { depth } => format!("open after {depth}"),
        }
    }

    /// Describes every sector's answer.
    fn sector_by_sector(sectors: Sectors, runs: &[PackedRun]) -> Vec<String> {
        let of = |sector| {
            let run = runs.iter().rfind(|run| run.start() <= sector);
            says(sectors, *run.unwrap(), sector)
        };
        (0..sectors.in_span).map(of).collect()
    }

    fn agrees(sectors: Sectors, runs: &[PackedRun], asked: std::ops::Range<u64>) {
        let expected = sector_by_sector(sectors, runs);
        let mut all = vec![PackedRun::default(); sectors.in_span as usize];
        let span = pack(sectors, runs);
        let count = span.find(sectors, (0, sectors.in_span - 1), &mut all);
        assert_eq!(sector_by_sector(sectors, &all[..count]), expected);
        let PackedSpan { form, words } = span;
        assert!(words.len() <= runs.len());
        let words = atomic(&words);
        if form == 0 {
            assert_eq!(runs.len(), 1);
            return;
        }
        assert_eq!(sector_by_sector(sectors, &unpack(sectors, form, &words)), expected);
        for room in [1, 2, 17] {
            let mut found = vec![PackedRun::default(); room];
            let count = sectors.find(form, &words, asked.start, asked.end - 1, &mut found);
            let (found, is_all) = (&found[..count], count < room);
            if room == 2 {
                let one = sectors.find_one(form, &words, asked.start, asked.end - 1);
                assert_eq!(one, (count == 1).then_some(found[0]));
            }
            assert!(found[0].start() <= asked.start);
            for (i, run) in found.iter().enumerate() {
                let from = run.start().max(asked.start);
                let to = match found.get(i + 1) {
                    Some(next) => next.start(),
                    None if is_all => asked.end,
                    None => from + 1,
                };
                for sector in from..to {
                    let said = says(sectors, *run, sector);
                    assert_eq!(said, expected[sector as usize], "{sector}, {room}, {form:#x}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_says_of_each_sector_what_the_runs_say(
            (sectors, runs) in prop_oneof![Just((1, 9)), Just((2, 9)), Just((2, 12))]
                .prop_flat_map(|(mib, shift)| {
                    let sectors = Sectors { in_span: (mib * MIB) >> shift, shift };
                    (Just(sectors), runs(sectors))
                }),
            first in 0..4096_u64,
            len in 1..4096_u64,
        ) {
            let first = first % sectors.in_span;
            agrees(sectors, &runs, first..(first + len).min(sectors.in_span));
        }
    }

    /// Pages that alternate between 64 layers take half a KiB for each MiB of the disk.
    #[test]
    fn pages_of_many_layers_are_stored_as_a_map() {
        let sectors = Sectors { in_span: 2048, shift: 9 };
        let run = |page: u64| {
            let at = FileOffset::new((5 + page % 64 * 100) * MIB + page * 4096);
            PackedRun::here(page * 8, (page % 64) as usize, at).unwrap()
        };
        let runs: Vec<PackedRun> = (0..256).map(run).collect();
        assert_eq!(pack(sectors, &runs).words.len(), 256 / 8 + 64 / 2);
        agrees(sectors, &runs, 100..1000);
        // If layer numbers or offsets do not fit in half a word, the runs are stored.
        let far = PackedRun::here(8, 7, FileOffset::new((1 << 43) + 4096)).unwrap();
        for odd in [PackedRun::zero(8, Some(511)), PackedRun::open(8, 600), far] {
            let mut runs = runs.clone();
            runs[1] = odd;
            assert_eq!(pack(sectors, &runs).words.len(), 256);
            agrees(sectors, &runs, 0..2048);
        }
    }

    /// Words that are being overwritten may have any value; their results are discarded.
    #[test]
    fn torn_words_are_no_harm() {
        let mut rng = 1_u64;
        for form in [1, 500, IS_MAP | 3 << COUNT_BITS | 64, IS_MAP | 15 << COUNT_BITS, IS_MAP] {
            for len in [0, 1, 40, 300] {
                let next = || {
                    rng = rng.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    AtomicU64::new(rng)
                };
                let words: Vec<AtomicU64> = std::iter::repeat_with(next).take(len).collect();
                let sectors = Sectors { in_span: 2048, shift: 9 };
                assert!(sectors.find(form, &words, 3, 2000, &mut [PackedRun::default(); 17]) <= 17);
                sectors.find_one(form, &words, 3, 2000);
                unpack(sectors, form, &words);
            }
        }
    }
}
