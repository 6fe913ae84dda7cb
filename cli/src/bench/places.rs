//! Where on a disk is read and written.

use std::ops::Range;
use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx::{DiffChain, Disk, ErrorKind, LayerId, Planned, PlannedSource, Source};

use crate::exit::Failure;

/// Runs of each kind that are kept in memory; a disk that has more is looked at in part.
const MOST_RUNS: usize = 1 << 20;
/// Pieces of files that all sequential places together may consist of.
const MOST_PIECES: usize = 1 << 18;
/// What is left out where a pending log has the bytes.
const STEP: u64 = 4096;

/// Ranges of a disk in order.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Each with how many bytes come before it.
    runs: Vec<(u64, Range<u64>)>,
    total: u64,
}

impl Runs {
    fn push(&mut self, range: Range<u64>) {
        let len = range.end - range.start;
        match self.runs.last_mut() {
            Some((_, last)) if last.end == range.start => last.end = range.end,
            _ => self.runs.push((self.total, range)),
        }
        self.total += len;
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The run that has the byte with this number among all of them.
    fn with(&self, number: u64) -> Option<(&Range<u64>, u64)> {
        let after = self.runs.partition_point(|(before, _)| *before <= number);
        let (before, run) = self.runs.get(after.checked_sub(1)?)?;
        Some((run, run.start + (number - before)))
    }

    /// Aligned pages of `len` bytes that hold a byte of a run, by chance; with `whole`, only those of which a
    /// run has all.
    pub(super) fn pages(
        &self,
        count: u64,
        len: u64,
        size: u64,
        whole: bool,
        rng: &mut Rng,
    ) -> Vec<Range<u64>> {
        let mut pages = Vec::new();
        // Whole pages may be rare, or not there at all.
        for _ in 0..count.saturating_mul(4) {
            if pages.len() as u64 == count || self.total == 0 {
                break;
            }
            let Some((run, at)) = self.with(rng.below(self.total)) else { break };
            let start = at / len * len;
            let page = start..size.min(start + len);
            if !whole || (run.start <= page.start && page.end <= run.end) {
                pages.push(page);
            }
        }
        pages
    }

    /// Aligned pieces of `len` bytes that hold a byte of a run, in order.
    pub(super) fn pieces(&self, len: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
        let mut next = 0;
        self.runs.iter().flat_map(move |(_, run)| {
            let first = next.max(run.start / len);
            next = next.max(run.end.div_ceil(len));
            (first..next).map(move |number| number * len..size.min((number + 1) * len))
        })
    }
}

/// What a disk holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// What some layer holds.
    pub(super) data: Runs,
    /// What the tip itself holds.
    pub(super) in_tip: Runs,
    /// Zeros that lie in no file.
    pub(super) unwritten: Runs,
    /// Where on the disk the look ended.
    pub(super) end: u64,
}

impl Contents {
    pub(super) fn of(chain: &DiffChain) -> Result<Self, Failure> {
        let (tip, size) = (chain.tip().id(), chain.geometry().size);
        let mut new = Self::default();
        while new.end < size && !new.is_full() {
            let extent = match chain.next_extent(new.end..size) {
                Ok(Some(extent)) => extent,
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::LogOverlay => {
                    new.end = size.min((new.end / STEP + 1) * STEP);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            new.end = extent.range.end;
            new.note(extent.range, extent.source, tip);
        }
        Ok(new)
    }

    fn note(&mut self, range: Range<u64>, source: Source, tip: LayerId) {
        match source {
            Source::Data { layer, .. } => {
                if layer == tip {
                    self.in_tip.push(range.clone());
                }
                self.data.push(range);
            }
            Source::Zero { .. } => self.unwritten.push(range),
            Source::Parent => {}
        }
    }

    fn is_full(&self) -> bool {
        [&self.data, &self.in_tip, &self.unwritten].iter().any(|runs| runs.runs.len() >= MOST_RUNS)
    }
}

/// A range of the disk, and where in files its bytes lie.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) range: Range<u64>,
    /// How many bytes of the range come before each piece, and how many the piece has.
    pieces: Vec<(Range<usize>, Arc<dyn Storage>, u64)>,
}

impl Place {
    /// These ranges with their places, as many as are known; without those that a pending log has bytes of.
    pub(super) fn of(
        chain: &DiffChain,
        ranges: impl IntoIterator<Item = Range<u64>>,
    ) -> Result<Vec<Self>, Failure> {
        let (mut places, mut pieces) = (Vec::new(), 0);
        for range in ranges {
            match Self::at(chain, range) {
                Ok(place) => {
                    pieces += place.pieces.len();
                    places.push(place);
                }
                Err(error) if error.kind() == ErrorKind::LogOverlay => {}
                Err(error) => return Err(error.into()),
            }
            if pieces >= MOST_PIECES {
                break;
            }
        }
        Ok(places)
    }

    fn at(chain: &DiffChain, range: Range<u64>) -> avhdx::Result<Self> {
        let mut planned = chain.plan_read(range.clone())?;
        let plan = loop {
            match planned {
                Planned::Load(tables) => planned = tables.load()?,
                Planned::Ready(plan) => break plan,
            }
        };
        let mut pieces = Vec::new();
        for piece in plan.pieces() {
            let within = |at: u64| (at - range.start) as usize;
            if let PlannedSource::Data { storage, at, .. } = piece.source {
                let part = within(piece.range.start)..within(piece.range.end);
                pieces.push((part, Arc::clone(storage), at.get()));
            }
        }
        Ok(Self { range, pieces })
    }

    /// Reads the bytes from the files, with nothing between; zeros are left alone.
    pub(super) fn read_bare(&self, buf: &mut [u8]) -> Result<(), Failure> {
        for (part, storage, at) in &self.pieces {
            storage.read_exact_at(&mut buf[part.clone()], *at).map_err(|error| {
                Failure::io("payload.read", format!("{}: cannot read", storage.name()), &error)
            })?;
        }
        Ok(())
    }

    pub(super) fn read(&self, chain: &DiffChain, buf: &mut [u8]) -> Result<(), Failure> {
        let len = (self.range.end - self.range.start) as usize;
        Ok(chain.read_at(&mut buf[..len], self.range.start)?)
    }
}

/// Numbers that a seed decides: splitmix64.
#[derive(Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_pieces_hold_what_the_runs_have() {
        let mut runs = Runs::default();
        for run in [512..1024, 1024..5000, 20_000..40_000, 99_000..100_000] {
            runs.push(run);
        }
        assert_eq!((runs.runs.len(), runs.total()), (3, 4488 + 20_000 + 1000));
        let mut rng = Rng::new(1);
        let pages = runs.pages(1000, 4096, 100_000, false, &mut rng);
        assert_eq!(pages.len(), 1000);
        let mut starts: Vec<u64> = pages.iter().map(|page| page.start / 4096).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, [0, 1, 4, 5, 6, 7, 8, 9, 24]);
        assert!(pages.iter().all(|page| page.end == 100_000.min(page.start + 4096)));
        let whole = runs.pages(100, 4096, 100_000, true, &mut rng);
        assert!(
            !whole.is_empty() && whole.iter().all(|page| (5..9).contains(&(page.start / 4096)))
        );
        let pieces: Vec<_> = runs.pieces(32 << 10, 100_000).collect();
        assert_eq!(pieces, [0..32 << 10, 32 << 10..64 << 10, 96 << 10..100_000]);
        assert!(Runs::default().pages(3, 4096, 0, false, &mut rng).is_empty());
    }
}
