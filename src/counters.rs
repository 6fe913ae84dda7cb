//! Counters of the work of images and chains.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Lanes;

/// The work of a chain or an image since it was opened, as reported by
/// [`DiffChain::counters`](crate::DiffChain::counters) and [`VhdxFile::counters`](crate::VhdxFile::counters).
///
/// Counters only increase. Work that other threads are doing at the moment may be counted in part.
///
/// ```no_run
/// use avhdx::{DiffChain, Disk};
///
/// let chain = DiffChain::open("web_1A2B.avhdx")?;
/// let before = chain.counters();
/// chain.read_at(&mut [0; 4096], 1 << 30)?;
/// let took = chain.counters().since(&before);
/// println!("{} table pages loaded, {} answers known", took.table_loads, took.index_hits);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counters {
    /// Flushes requested from the host to write the image, or the chain's tip. Includes those of opening and closing.
    pub flushes: u64,
    /// Bytes of log entries written to it, \[MS-VHDX\] 2.3.1.
    pub log_bytes: u64,
    /// Pages of 4 KiB of block allocation tables and sector bitmaps read from files, for a chain by all its layers.
    /// Includes pages of a shared parent that other chains load.
    pub table_loads: u64,
    /// Lookups of the layer that holds some bytes that found a cached answer, by this chain, its clones and its
    /// views: one for each span of the disk, or several runs in it, that a read or an extent covers. Images, and
    /// read-only chains of one layer, count none: they have only one layer to ask.
    pub index_hits: u64,
    /// Lookups that found no cached answer, so that layers were asked.
    pub index_misses: u64,
    /// Table pages evicted to make room for others, and cached answers overwritten by others, which are counted when
    /// their slot is reused. Covers all users of the [`Budget`](crate::Budget) since it was created.
    pub evictions: u64,
}

impl Counters {
    /// The counts since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            flushes: self.flushes.saturating_sub(earlier.flushes),
            log_bytes: self.log_bytes.saturating_sub(earlier.log_bytes),
            table_loads: self.table_loads.saturating_sub(earlier.table_loads),
            index_hits: self.index_hits.saturating_sub(earlier.index_hits),
            index_misses: self.index_misses.saturating_sub(earlier.index_misses),
            evictions: self.evictions.saturating_sub(earlier.evictions),
        }
    }
}

/// Counters of one image. Their cost is negligible beside the work that they count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(super) flushes: Count,
    pub(super) log_bytes: Count,
    pub(super) table_loads: Count,
}

#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts lookups of cached answers. Reading threads otherwise write no shared memory, so each lane counts for
/// itself.
#[derive(Debug, Default)]
pub(crate) struct AnswerTally(Lanes<HitsAndMisses>);

#[derive(Debug, Default)]
struct HitsAndMisses {
    hits: Count,
    misses: Count,
}

impl AnswerTally {
    #[inline]
    pub(crate) fn hit(&self) {
        self.0.own().hits.add(1);
    }

    pub(crate) fn miss(&self) {
        self.0.own().misses.add(1);
    }

    /// Hits and misses.
    pub(crate) fn now(&self) -> (u64, u64) {
        let sum = |of: fn(&HitsAndMisses) -> &Count| self.0.iter().map(|lane| of(lane).now()).sum();
        (sum(|lane| &lane.hits), sum(|lane| &lane.misses))
    }
}
