//! What two states of a volume of ext understand in different ways.

use std::ops::Range;

use crate::changed::Changed;
use crate::error::Result;
use crate::ext::shape::Shape;

/// With more groups, nothing is known to be the same.
const MOST_GROUPS: u64 = 1 << 24;

/// The blocks whose bytes wait in another place of the journal, or in one that changed, and the tables of inodes that are
/// elsewhere; `None` if things are elsewhere altogether.
pub(super) fn reframed(
    shape: &Shape,
    other: &Shape,
    changed: &Changed,
) -> Result<Option<Vec<Range<u64>>>> {
    if facts(shape) != facts(other) || shape.groups() > MOST_GROUPS {
        return Ok(None);
    }
    let bytes = |block: u64, count: u64| {
        let end = block.saturating_add(count).saturating_mul(shape.block);
        block.saturating_mul(shape.block)..end
    };
    let mut all = Vec::new();
    for (block, waiting) in shape.waiting.iter().chain(other.waiting.iter()) {
        let is_same = shape.waiting.get(block) == other.waiting.get(block);
        if !is_same || changed.meets(&bytes(waiting.at, 1)) {
            all.push(bytes(*block, 1));
        }
    }
    let changed = changed.clone().and(all.iter().cloned());
    let groups_each = shape.block / shape.descriptor_len;
    for meta in 0..shape.groups().div_ceil(groups_each) {
        if !changed.meets(&bytes(shape.descriptors(meta), 1)) {
            continue;
        }
        for group in meta * groups_each..((meta + 1) * groups_each).min(shape.groups()) {
            let (table, other) = (shape.inode_table(group)?, other.inode_table(group)?);
            if table != other {
                let len = u64::from(shape.inodes_of_group) * shape.inode_len as u64;
                all.push(bytes(table, len.div_ceil(shape.block)));
            }
        }
    }
    Ok(Some(all))
}

/// What says where things are. How much is free and when the volume was mounted is no part of it.
fn facts(shape: &Shape) -> impl PartialEq {
    (
        (shape.bytes.start(), shape.bytes.len(), shape.block, shape.blocks, shape.first_block),
        (shape.of_group, shape.inodes, shape.inodes_of_group, shape.inode_len),
        (shape.descriptor_len, shape.meta_from, shape.is_sparse),
    )
}
