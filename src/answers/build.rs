//! The runs of a span while they are found, layer by layer.

use super::run::{self as word, Answer};
use crate::image::{Core, MIXED_WORDS, Owner, Piece};
use crate::tables::Reach;
use crate::types::{DiskOffset, FileOffset};

/// The runs of a span while they are found.
pub(crate) struct Runs {
    sector_shift: u32,
    /// Sectors of the span.
    sectors: u64,
    /// Layers that were asked.
    depth: usize,
    /// Sectors that none of these answered for.
    open: Bits,
    /// The first sectors of the other runs, and by their number what those are.
    starts: Bits,
    words: Vec<u64>,
}

impl Runs {
    /// Of a span of which this is known.
    pub(crate) fn new(sectors: u64, sector_shift: u32, known: Option<&[u64]>) -> Self {
        let (open, starts) = (Bits::NONE, Bits::NONE);
        let words = vec![0; sectors as usize];
        let mut new = Self { sector_shift, sectors, depth: 0, open, starts, words };
        let Some(known) = known else {
            new.open.set(0, sectors);
            return new;
        };
        for (i, word) in known.iter().enumerate() {
            let start = word::start(*word);
            if let Answer::Open { depth } = word::answer(*word) {
                new.depth = depth;
                let end = known.get(i + 1).map_or(sectors, |next| word::start(*next));
                new.open.set(start, end);
            } else if let Some(place) = new.words.get_mut(start as usize) {
                *place = *word;
                new.starts.set(start, start + 1);
            }
        }
        new
    }

    /// Layers that were asked.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether one of the sectors from `first` up to `end` is open.
    pub(crate) fn is_open(&self, first: u64, end: u64) -> bool {
        (first / 64..end.div_ceil(64)).any(|i| self.open.0[i as usize] & mask(i, first, end) != 0)
    }

    /// Asks the next layer about the span, which starts there. `None` where it cannot say for all of it.
    pub(crate) fn ask(&mut self, reach: impl Reach, image: &Core, start: DiskOffset) -> Option<()> {
        let there = image.layout().size().saturating_sub(start.0) >> self.sector_shift;
        let there = there.min(self.sectors);
        if there > 0 {
            let (layer, shift) = (self.depth, self.sector_shift);
            let mut here = [0; MIXED_WORDS];
            match image.resolve_piece(reach, start, there << shift, &mut here).ok()? {
                Piece::All(Owner::Parent) => {}
                Piece::All(Owner::Zero) => {
                    self.take(|i| mask(i, 0, there), |at| word::zero(at, Some(layer)))
                }
                Piece::All(Owner::Here(place)) => {
                    let run = self.here(place)?;
                    self.take(|i| mask(i, 0, there), run);
                }
                Piece::Mixed(place) => {
                    let run = self.here(place)?;
                    self.take(|i| here[i as usize], run);
                }
            }
        }
        if there < self.sectors {
            // What lies past the end of a layer never shows through from below it.
            self.take(|i| mask(i, there, u64::MAX), |at| word::zero(at, None));
        }
        self.depth += 1;
        Some(())
    }

    /// Notes that what all layers left open is zeros: the base has no parent.
    pub(crate) fn end(&mut self) {
        self.take(|_| u64::MAX, |at| word::zero(at, None));
    }

    /// One word for each run, in order.
    pub(crate) fn into_words(mut self) -> Vec<u64> {
        let (depth, shift) = (self.depth, self.sector_shift);
        self.take(|_| u64::MAX, |at| word::open(at, depth));
        let starts = self.starts.0.iter().map(|word| word.count_ones() as usize).sum();
        let mut runs: Vec<u64> = Vec::with_capacity(starts);
        for at in self.starts.iter() {
            let next = self.words[at as usize];
            if !runs.last().is_some_and(|run| word::continues(*run, next, shift)) {
                runs.push(next);
            }
        }
        runs
    }

    /// The runs of the layer that is asked, the first sector of the span at `place`. `None` where that is too
    /// far out for a word.
    fn here(&self, place: FileOffset) -> Option<impl Fn(u64) -> u64 + use<>> {
        let (layer, shift) = (self.depth, self.sector_shift);
        // Far enough for all of them.
        let first = word::here(0, layer, place)?;
        word::here(0, layer, place + (self.sectors << shift))?;
        Some(move |at| word::later(first, at, shift))
    }

    /// Closes those of these sectors that are open; what their runs are is said by the first of each.
    fn take(&mut self, sectors: impl Fn(u64) -> u64, run: impl Fn(u64) -> u64) {
        let mut before = 0;
        for i in 0..self.sectors.div_ceil(64) {
            let taken = self.open.0[i as usize] & sectors(i);
            if taken == 0 {
                before = 0;
                continue;
            }
            let mut starts = taken & !(taken << 1 | before);
            before = taken >> 63;
            self.open.0[i as usize] &= !taken;
            self.starts.0[i as usize] |= starts;
            while starts != 0 {
                let at = i * 64 + u64::from(starts.trailing_zeros());
                self.words[at as usize] = run(at);
                starts &= starts - 1;
            }
        }
    }
}

/// A bit for each sector that a span may have.
struct Bits([u64; MIXED_WORDS]);

impl Bits {
    const NONE: Self = Self([0; MIXED_WORDS]);

    /// Sets those from `first` up to `end`.
    fn set(&mut self, first: u64, end: u64) {
        let words = self.0.iter_mut().zip(0..).take(end.div_ceil(64) as usize);
        words.skip((first / 64) as usize).for_each(|(word, i)| *word |= mask(i, first, end));
    }

    /// The bits that are set, in order.
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

/// Those bits of the word with this number that stand for sectors from `first` up to `end`.
fn mask(word: u64, first: u64, end: u64) -> u64 {
    let below = |sector: u64| match sector.saturating_sub(word * 64) {
        bits @ 0..64 => (1 << bits) - 1,
        _ => u64::MAX,
    };
    below(end) & !below(first)
}
