//! What images and chains count while they work.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Lanes;

/// What a chain or an image did since it was opened, as [`DiffChain::counters`](crate::DiffChain::counters) and
/// [`VhdxFile::counters`](crate::VhdxFile::counters) have it.
///
/// All of them only rise. What threads do at the very moment is perhaps in some of them and not yet in others.
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
#[non_exhaustive]
pub struct Counters {
    /// Flushes that the host was asked for to write the image, or the chain's tip. Opening may need some, and
    /// closing.
    pub flushes: u64,
    /// Bytes of the log entries that were written to it, \[MS-VHDX\] 2.3.1.
    pub log_bytes: u64,
    /// Pages of 4 KiB of block allocation tables and sector bitmaps that were read from files, for a chain of all
    /// its layers. What other chains load of a parent that they share with this one is in here.
    pub table_loads: u64,
    /// Questions which layer has some bytes whose answer was known, for this chain with its clones and views: one
    /// for each span of the disk, or several runs in it, that a read or an extent covers. None are counted for an
    /// image, nor for a chain of one that is only read: there is one layer to ask.
    pub index_hits: u64,
    /// The questions for which layers were asked.
    pub index_misses: u64,
    /// Table pages that were evicted to make room for others, and answers that others were written over, which is
    /// noticed when their place is taken again. Of the [`Budget`](crate::Budget), with all who share
    /// it, since it was made.
    pub evictions: u64,
}

impl Counters {
    /// What was counted since `earlier`.
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

/// What one image counts: beside the work that is counted, the count costs nothing.
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

/// What is asked of the answers about a chain's disk, in the midst of reads that write nothing else that others look
/// at.
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
