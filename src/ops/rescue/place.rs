//! Places loose blocks by what others know of their contents.

use std::borrow::Cow;

use super::grade::Grade;
use super::layer::{Found, Layer};
use crate::format::bat::BatEntry;
use crate::types::{BatIndex, DiskOffset, FileOffset, MIB};

/// Bytes of the file that someone knows to lie at a place of the disk. The whole block around them is placed.
///
/// Exhaustive on purpose: callers make it, and each of its fields decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where the bytes lie in the file of the layer.
    pub file_offset: u64,
    /// Where they lie on the disk.
    pub disk_offset: u64,
    /// [`Grade::Sure`] or [`Grade::Guessed`]; others are refused.
    pub grade: Grade,
    /// What says so.
    pub evidence: Cow<'static, str>,
}

impl Layer {
    /// Adds an entry that does not come from its place.
    pub(super) fn put(&mut self, index: BatIndex, found: Found) {
        let at = found.entry.offset().get();
        let units = self.units_of(index, at);
        self.used.take(units);
        self.by_place.insert(at, index.0);
        self.found.insert(index.0, found);
    }

    fn take_back(&mut self, index: BatIndex) {
        let Some(found) = self.found.remove(&index.0) else { return };
        let at = found.entry.offset().get();
        self.by_place.remove(&at);
        let units = self.units_of(index, at);
        self.used.remove(units);
    }

    /// Places the block around these bytes, and returns whether it is there now.
    pub(super) fn place(&mut self, placement: &Placement) -> bool {
        let Placement { file_offset, disk_offset, grade, ref evidence } = *placement;
        let layout = self.shape.layout;
        if disk_offset >= layout.size() || grade > Grade::Guessed {
            return false;
        }
        let block = layout.block_of(DiskOffset(disk_offset));
        let index = layout.payload_index(block);
        let within = layout.within_block(DiskOffset(disk_offset));
        let Some(at) = file_offset.checked_sub(within) else { return false };
        let is_placed = at >= MIB && at.is_multiple_of(MIB) && file_offset < self.anatomy.file_len;
        if !is_placed || !self.is_open(index) {
            return false;
        }
        let is_sure = grade == Grade::Sure;
        let mut outdone = Vec::new();
        if let Some(found) = self.found.get_mut(&index.0) {
            if found.entry.offset().get() == at {
                if is_sure && !found.is_contested && found.grade != Grade::Sure {
                    let is_child = self.shape.has_parent;
                    found.grade = if is_child { Grade::Guessed } else { Grade::Sure };
                    found.evidence = evidence.clone();
                }
                return true;
            }
            if !found.give_way(is_sure) {
                return false;
            }
            outdone.push(index);
        }
        let units = self.units_of(index, at);
        let end = units.end * MIB;
        let others = self.by_place.range(..end).rev();
        // No block is longer than this.
        let others = others.take_while(|(start, _)| **start + layout.block_size() > at);
        let others: Vec<BatIndex> = others.map(|(_, index)| BatIndex(*index)).collect();
        let mut own = Vec::new();
        for other in others {
            let Some(found) = self.found.get_mut(&other.0) else { continue };
            let start = found.entry.offset().get();
            let theirs = self.units_of(other, start);
            if theirs.start >= units.end || theirs.end <= units.start {
                continue;
            }
            own.push(theirs);
            if other == index {
                continue;
            }
            let Some(found) = self.found.get_mut(&other.0) else { continue };
            if !found.give_way(is_sure) {
                return false;
            }
            outdone.push(other);
        }
        // What entries of the table or structures have is theirs.
        let is_theirs =
            |unit: u64| self.used.has(unit) && !own.iter().any(|own| own.contains(&unit));
        if units.clone().any(is_theirs) {
            return false;
        }
        for other in outdone {
            self.take_back(other);
        }
        let (state, grade) = match self.shape.has_parent {
            false => (6, grade),
            // The bytes are the block's, but those around them may be the parent's.
            true if self.has_bits(block) => (7, Grade::Guessed),
            true => (6, Grade::Guessed),
        };
        let entry = BatEntry::new(state, FileOffset::new(at));
        let evidence = evidence.clone();
        self.put(index, Found { entry, grade, evidence, is_contested: false });
        true
    }
}

impl Found {
    /// Whether something else may have this one's block or place. If both are equally sure, neither is from now on.
    fn give_way(&mut self, to_sure: bool) -> bool {
        if to_sure && self.grade != Grade::Sure && !self.is_contested {
            return true;
        }
        if to_sure || self.grade != Grade::Sure {
            self.grade = Grade::Guessed;
            self.is_contested = true;
            self.evidence = "what speaks for the place of the block contradicts itself".into();
        }
        false
    }
}
