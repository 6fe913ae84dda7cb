//! What a partition table says.

use std::ops::Range;

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) scheme: &'static str,
    pub(crate) id: Option<String>,
    pub(crate) found: Vec<Found>,
    pub(crate) warnings: Vec<String>,
    /// What of the disk belongs to the table itself.
    pub(crate) own: Vec<Range<u64>>,
}

/// A partition. Its range is what the table claims.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) number: u32,
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) range: Range<u64>,
}
