//! Builds the runs of a span, layer by layer.

use super::run::{Answer, PackedRun};
use crate::types::{FileOffset, MIB};

/// The longest span of a disk, the usual block size of differencing images. Layers with smaller blocks use spans of
/// one block.
pub(crate) const MOST_SPAN: u64 = 2 * MIB;

/// Number of words with one bit for each of a span's sectors, at the smallest sector size.
pub(crate) const SPAN_WORDS: usize = (MOST_SPAN / 512 / 64) as usize;

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
    /// The first sectors of the other runs, which are in `runs` at those indexes.
    starts: Bits,
    runs: Vec<PackedRun>,
}

impl SpanBuilder {
    /// Starts with the known runs of the span.
    pub(crate) fn new(sectors: u64, sector_shift: u32, known: &[PackedRun]) -> Self {
        let (open, starts) = (Bits::NONE, Bits::NONE);
        let runs = vec![PackedRun::default(); sectors as usize];
        let mut new = Self { sector_shift, sectors, depth: 0, open, starts, runs };
        for (i, run) in known.iter().enumerate() {
            let start = run.start();
            if let Answer::Open { depth } = run.answer() {
                new.depth = depth;
                let end = known.get(i + 1).map_or(sectors, |next| next.start());
                new.open.set(start, end);
            } else if let Some(place) = new.runs.get_mut(start as usize) {
                *place = *run;
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
                self.close(|i| mask(i, 0, there), |at| PackedRun::zero(at, Some(layer)))
            }
            SpanOwner::One(Owner::Here(place)) => {
                let run = self.here(place)?;
                self.close(|i| mask(i, 0, there), run);
            }
            SpanOwner::Mixed(place) => {
                let run = self.here(place)?;
                self.close(|i| here[i as usize], run);
            }
        }
        if there < self.sectors {
            // Data beyond the end of a layer never shows through from below it.
            self.close(|i| mask(i, there, u64::MAX), |at| PackedRun::zero(at, None));
        }
        self.depth += 1;
        Some(())
    }

    /// The runs, in order.
    pub(crate) fn into_runs(mut self) -> Vec<PackedRun> {
        let (depth, shift) = (self.depth, self.sector_shift);
        self.close(|_| u64::MAX, |at| PackedRun::open(at, depth));
        let starts = self.starts.0.iter().map(|word| word.count_ones() as usize).sum();
        let mut runs: Vec<PackedRun> = Vec::with_capacity(starts);
        for at in self.starts.iter() {
            let next = self.runs[at as usize];
            if !runs.last().is_some_and(|run| run.continues_in(next, shift)) {
                runs.push(next);
            }
        }
        runs
    }

    /// The runs of the current layer, with the span's first sector at file offset `place`. `None` if an offset is too
    /// large for a packed run.
    fn here(&self, place: FileOffset) -> Option<impl Fn(u64) -> PackedRun + use<>> {
        let (layer, shift) = (self.depth, self.sector_shift);
        // The end of the span bounds all offsets.
        let first = PackedRun::here(0, layer, place)?;
        PackedRun::here(0, layer, place + (self.sectors << shift))?;
        Some(move |at| first.later(at, shift))
    }

    /// Closes those of these sectors that are open. `run` gives each resulting run by its first sector.
    fn close(&mut self, sectors: impl Fn(u64) -> u64, run: impl Fn(u64) -> PackedRun) {
        let mut before = 0;
        for i in 0..self.sectors.div_ceil(64) {
            let closed = self.open.0[i as usize] & sectors(i);
            if closed == 0 {
                before = 0;
                continue;
            }
            let mut starts = closed & !(closed << 1 | before);
            before = closed >> 63;
            self.open.0[i as usize] &= !closed;
            self.starts.0[i as usize] |= starts;
            while starts != 0 {
                let at = i * 64 + u64::from(starts.trailing_zeros());
                self.runs[at as usize] = run(at);
                starts &= starts - 1;
            }
        }
    }
}

/// One bit for each sector that a span may have.
struct Bits([u64; SPAN_WORDS]);

impl Bits {
    const NONE: Self = Self([0; SPAN_WORDS]);

    /// Sets the bits from `first` up to `end`.
    fn set(&mut self, first: u64, end: u64) {
        let words = self.0.iter_mut().zip(0..).take(end.div_ceil(64) as usize);
        words.skip((first / 64) as usize).for_each(|(word, i)| *word |= mask(i, first, end));
    }

    /// The set bits, in order.
    fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().zip(0..).flat_map(|(word, i)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(i * 64 + u64::from(bit))
            })
        })
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
