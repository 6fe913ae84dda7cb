//! Records which parts of a disk changed, and when, for callers that copy what changed since a point in time.
//!
//! Time is counted in periods, each of which a point ends. A change is recorded when it ends, in the period of that
//! moment: a reader who begins after a point sees what all earlier periods changed.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::PoisonError;

use crate::sync::{Mutex, MutexGuard};

/// Grains per page of the record.
const GRAINS: u64 = 512;
/// Bytes that a page takes up, with its place in the map.
const PAGE_BYTES: usize = 4 * GRAINS as usize + 32;

/// Why it is unknown what changed since a point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownReason {
    /// The point was made by other tracking, perhaps before the chain was closed, or before a crash.
    OtherSession,
    /// This tracking has not made the point.
    NoSuchPoint,
    /// A layer of the chain was merged into its parent since then.
    Merged,
    /// The chain was reverted to an earlier point since then.
    Reverted,
    /// Another program, or another handle of this one, wrote to a file of the chain since then.
    ForeignWrite,
    /// The headers of a file of the chain cannot be read, so that a foreign write cannot be ruled out.
    Unverified,
    /// More points were made since then than can be told apart.
    Overflow,
}

/// Records changes of a disk in a limited amount of memory.
#[derive(Debug)]
pub(crate) struct ChangeRecord(Mutex<Record>);

/// The periods in which grains of the disk changed last. Grains double in size when they become too many.
pub(crate) struct Record {
    grain: u64,
    most_pages: usize,
    /// For each grain, how many periods after the first it changed last, counted from 1; 0 for never.
    pages: BTreeMap<u64, Box<[u32; GRAINS as usize]>>,
    /// The present period.
    now: u64,
    /// The first period of which all changes are known.
    first: u64,
    /// Why those of earlier periods are not.
    lost: UnknownReason,
    /// Parts of the disk that may change at any time.
    restless: Vec<Range<u64>>,
}

impl ChangeRecord {
    /// Creates a record with grains of this many bytes, a power of two, that takes up about `budget` bytes.
    pub(crate) fn new(grain: u64, budget: usize) -> Self {
        Self(Mutex::new(Record {
            grain,
            most_pages: (budget / PAGE_BYTES).max(1),
            pages: BTreeMap::new(),
            now: 1,
            first: 1,
            lost: UnknownReason::NoSuchPoint,
            restless: Vec::new(),
        }))
    }

    /// Records a change that has ended, complete or in part.
    pub(super) fn changed(&self, range: &Range<u64>) {
        if !range.is_empty() {
            self.lock().mark(range);
        }
    }

    /// Records that these bytes may change at any time from now on: a write to them is in progress and is not known to
    /// end.
    pub(super) fn changes_for_good(&self, range: Range<u64>) {
        if !range.is_empty() {
            self.lock().restless.push(range);
        }
    }

    /// Locks the record: no change ends, and no point is made, until the guard is dropped.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// Ends the present period, and returns its number.
    pub(crate) fn end_period(&mut self) -> u64 {
        if self.now - self.first >= u64::from(u32::MAX) - 1 {
            self.lose(UnknownReason::Overflow);
        }
        self.now += 1;
        self.now - 1
    }

    /// The parts of a disk of `size` bytes that changed after this period, and the size of a grain.
    pub(crate) fn since(
        &mut self,
        period: u64,
        size: u64,
    ) -> Result<(Vec<Range<u64>>, u64), UnknownReason> {
        if period >= self.now || period == 0 {
            return Err(UnknownReason::NoSuchPoint);
        }
        if period < self.first {
            return Err(self.lost);
        }
        let restless = std::mem::take(&mut self.restless);
        restless.iter().for_each(|range| self.mark(range));
        self.restless = restless;
        let last = (period - self.first + 1) as u32;
        let mut found: Vec<Range<u64>> = Vec::new();
        for (page, grains) in &self.pages {
            let changed = grains.iter().enumerate().filter(|(_, period)| **period > last);
            for (n, _) in changed {
                let start = (page * GRAINS + n as u64) * self.grain;
                let end = (start + self.grain).min(size);
                match found.last_mut() {
                    Some(run) if run.end == start => run.end = end,
                    _ if start < end => found.push(start..end),
                    _ => {}
                }
            }
        }
        Ok((found, self.grain))
    }

    /// Makes all points so far unknown.
    pub(crate) fn lose(&mut self, reason: UnknownReason) {
        self.now += 1;
        self.first = self.now;
        self.lost = reason;
        self.pages.clear();
    }

    fn mark(&mut self, range: &Range<u64>) {
        let pages = |grain: u64| (range.end - 1) / grain / GRAINS - range.start / grain / GRAINS;
        while pages(self.grain) >= self.most_pages as u64 {
            self.coarsen();
        }
        let period = (self.now - self.first + 1) as u32;
        let (start, end) = (range.start / self.grain, range.end.div_ceil(self.grain));
        let mut at = start;
        while at < end {
            let page = at / GRAINS;
            let to = end.min((page + 1) * GRAINS);
            let grains = self.pages.entry(page).or_insert_with(|| Box::new([0; GRAINS as usize]));
            grains[(at % GRAINS) as usize..=((to - 1) % GRAINS) as usize].fill(period);
            at = to;
        }
        while self.pages.len() > self.most_pages {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.grain *= 2;
        for (page, fine) in std::mem::take(&mut self.pages) {
            let coarse =
                self.pages.entry(page / 2).or_insert_with(|| Box::new([0; GRAINS as usize]));
            let half = (page % 2 * GRAINS / 2) as usize;
            for (coarse, pair) in coarse[half..].iter_mut().zip(fine.chunks_exact(2)) {
                *coarse = pair[0].max(pair[1]);
            }
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("grain", &self.grain)
            .field("pages", &self.pages.len())
            .field("now", &self.now)
            .field("first", &self.first)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherSession => "the point was made by other tracking",
            Self::NoSuchPoint => "this tracking has not made the point",
            Self::Merged => "a layer of the chain was merged into its parent since then",
            Self::Reverted => "the chain was reverted to an earlier point since then",
            Self::ForeignWrite => "another wrote to a file of the chain since then",
            Self::Unverified => "the headers of a file of the chain cannot be read",
            Self::Overflow => "more points were made since then than can be told apart",
        })
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::single_range_in_vec_init)] // lists of ranges, of which there may be one
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::{LocalHost, MemStorage, Storage};
    use crate::types::MIB;
    use crate::{CreateOptions, OpenOptions};

    const SIZE: u64 = 8 * MIB;

    fn ranges(record: &ChangeRecord, period: u64) -> Result<Vec<Range<u64>>, UnknownReason> {
        record.lock().since(period, SIZE).map(|(ranges, _)| ranges)
    }

    /// Grains keep their periods when they grow: neither an earlier nor a later change spreads to the rest.
    #[test]
    fn a_coarser_grain_has_the_latest_period_of_its_halves() {
        let record = ChangeRecord::new(512, PAGE_BYTES * 2);
        let first = record.lock().end_period();
        record.changed(&(0..1));
        record.changed(&(3 * MIB..3 * MIB + 1));
        let second = record.lock().end_period();
        record.changed(&(1024..1025));
        // A third page, and two halves of one.
        record.changed(&(5 * MIB..5 * MIB + 1));
        let grain = record.lock().grain;
        assert!(grain > 512);
        let of = |at: u64| at / grain * grain..(at / grain + 1) * grain;
        assert_eq!(ranges(&record, second), Ok(vec![of(1024), of(5 * MIB)]));
        assert_eq!(ranges(&record, first), Ok(vec![of(1024), of(3 * MIB), of(5 * MIB)]));
    }

    #[test]
    fn more_points_than_can_be_told_apart_make_the_earlier_ones_unknown() {
        let record = ChangeRecord::new(512, 0);
        let early = record.lock().end_period();
        record.changed(&(0..1));
        record.lock().now = u64::from(u32::MAX) - 3;
        let before = record.lock().end_period();
        record.changed(&(0..1));
        assert_eq!(ranges(&record, early), Ok(vec![0..512]));
        assert_eq!(ranges(&record, before), Ok(vec![0..512]));
        let found: Vec<_> = (0..8)
            .map(|_| {
                let point = record.lock().end_period();
                record.changed(&(0..1));
                (point, ranges(&record, point))
            })
            .collect();
        assert!(found.iter().all(|(_, found)| *found == Ok(vec![0..512])), "{found:?}");
        assert_eq!(ranges(&record, early), Err(UnknownReason::Overflow));
        assert_eq!(ranges(&record, before), Err(UnknownReason::Overflow));
        let last = found[7].0;
        assert_eq!(ranges(&record, last), Ok(vec![0..512]));
    }

    /// What a disk gains or loses at its end has changed.
    #[test]
    fn a_resize_is_a_change_of_the_end_of_the_disk() {
        for (size, changed) in [(5 * MIB, 5 * MIB..SIZE), (12 * MIB, SIZE..12 * MIB)] {
            let storage: Arc<dyn Storage> = Arc::new(MemStorage::new(Vec::new()));
            let options = CreateOptions::dynamic(SIZE).block_size(1 << 20);
            drop(options.create_in(&LocalHost, Arc::clone(&storage)).unwrap());
            let image = OpenOptions::new().writable(true).open_file(storage).unwrap();
            let record = Arc::new(ChangeRecord::new(4096, 1 << 20));
            image.its_writer().record_changes(&[Arc::downgrade(&record)]);
            let point = record.lock().end_period();
            image.its_writer().resize(size).unwrap();
            let found = record.lock().since(point, SIZE.max(size)).unwrap().0;
            assert_eq!(found, [changed]);
        }
    }
}
