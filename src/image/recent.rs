//! The entries of the block allocation table that were used last, for readers to have without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::bat::BatEntry;
use crate::types::BatIndex;

const SLOTS: usize = 1024;
/// Bits 3–19 of an entry are reserved. Here they say whose entry a slot holds; 0 for nobody's.
const OWNER: u64 = 0xF_FFF8;
const OWNER_SHIFT: u32 = OWNER.trailing_zeros();

/// One slot for all entries whose numbers are equal modulo the number of slots.
///
/// A slot is one word, so that readers see an entry and whose it is at once.
#[derive(Debug)]
pub(super) struct RecentEntries(Box<[AtomicU64; SLOTS]>);

impl RecentEntries {
    /// What one takes of memory.
    pub(super) const BYTES: usize = SLOTS * size_of::<AtomicU64>();

    pub(super) fn new() -> Self {
        Self(Box::new([const { AtomicU64::new(0) }; SLOTS]))
    }

    pub(super) fn get(&self, index: BatIndex) -> Option<BatEntry> {
        let word = self.slot(index).load(Ordering::Relaxed);
        (word & OWNER == owner(index)?).then_some(BatEntry(word & !OWNER))
    }

    /// Remembers an entry, unless it has no room to say whose it is.
    pub(super) fn put(&self, index: BatIndex, entry: BatEntry) {
        if let (Some(owner), 0) = (owner(index), entry.0 & OWNER) {
            self.slot(index).store(entry.0 | owner, Ordering::Relaxed);
        }
    }

    fn slot(&self, index: BatIndex) -> &AtomicU64 {
        &self.0[index.0 as usize % SLOTS]
    }
}

/// What tells the entries of one slot apart, where it fits: up to 64 TiB in blocks of 1 MiB.
fn owner(index: BatIndex) -> Option<u64> {
    let owner = (index.0 / SLOTS as u64 + 1) << OWNER_SHIFT;
    (owner <= OWNER).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT_COUNT: u64 = SLOTS as u64;

    #[test]
    fn answers_for_the_last_entry_of_a_slot_alone() {
        let recent = RecentEntries::new();
        assert_eq!(recent.get(BatIndex(0)), None);
        let entries = [(0, 7 << 20 | 6), (SLOT_COUNT, 0), (5 * SLOT_COUNT + 3, u64::MAX << 20 | 7)];
        for (index, entry) in entries {
            recent.put(BatIndex(index), BatEntry(entry));
            assert_eq!(recent.get(BatIndex(index)), Some(BatEntry(entry)));
        }
        assert_eq!(recent.get(BatIndex(0)), None, "its slot went to another");
        assert_eq!(recent.get(BatIndex(SLOT_COUNT)), Some(BatEntry(0)));
        assert_eq!(recent.get(BatIndex(3)), None);
    }

    #[test]
    fn leaves_out_what_does_not_fit() {
        let recent = RecentEntries::new();
        for reserved in (3..20).map(|bit| 1 << bit) {
            recent.put(BatIndex(9), BatEntry(1 << 20 | reserved | 6));
            assert_eq!(recent.get(BatIndex(9)), None);
        }
        // The table's length in bytes has 32 bits: these are the last number of a 64 TiB disk in
        // blocks of 1 MiB, the last with a name here, the first without, and the last there can be.
        let last = (1 << 26) + (1 << 14);
        let named = 0x1_FFFF * SLOT_COUNT - 1;
        for (index, fits) in
            [(last, true), (named, true), (named + 1, false), ((1 << 29) - 1, false)]
        {
            recent.put(BatIndex(index), BatEntry(1 << 20 | 6));
            assert_eq!(recent.get(BatIndex(index)).is_some(), fits, "{index}");
            assert_eq!(recent.get(BatIndex(index % SLOT_COUNT)), None);
        }
    }
}
