//! The facts of an image, written out.

pub(crate) mod json;
pub(crate) mod text;

use avhdx::BlockCounts;

/// Where the two headers lie, [MS-VHDX] 2.2.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the two region tables lie, [MS-VHDX] 2.2.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];

/// Blocks by state, in the order of their values, by the names that people and programs read.
fn counts(blocks: &BlockCounts) -> [(&'static str, u64); 7] {
    [
        ("not_present", blocks.not_present),
        ("undefined", blocks.undefined),
        ("zero", blocks.zero),
        ("unmapped", blocks.unmapped),
        ("reserved", blocks.reserved),
        ("fully_present", blocks.fully_present),
        ("partially_present", blocks.partially_present),
    ]
}

/// Blocks that the file has bytes for.
fn held(blocks: &BlockCounts) -> u64 {
    blocks.fully_present + blocks.partially_present
}
