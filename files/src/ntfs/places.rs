//! What a file record alone says of places, for who has no whole volume.

use super::record::{ATTRIBUTE_LIST, DATA, INDEX_ALLOCATION, Record, Value};
use super::{NAMES, record};

/// Where the clusters of a file lie, by one record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) sequence: u16,
    /// Whether other records say more.
    pub(crate) goes_on: bool,
    /// Those of its bytes, from the first on: number within, count, place on the volume.
    pub(crate) data: Vec<(u64, u64, u64)>,
    /// Those of its index of names, in the same way.
    pub(crate) index: Vec<(u64, u64, u64)>,
}

/// Puts the last two bytes of each stride where they belong; nothing if they do not match.
pub(crate) fn fix_up(bytes: &mut [u8]) -> Option<()> {
    record::fix_up(bytes).ok()
}

/// What the bytes of a record in use say, on a volume of so many clusters.
pub(crate) fn places(bytes: Vec<u8>, number: u64, clusters: u64) -> Option<Places> {
    let record = Record::parse(bytes, number, clusters).ok()?;
    let runs = |kind: u32, name: &[u16]| {
        let mut all = Vec::new();
        for attribute in record.attributes.iter().filter(|found| found.is(kind, name)) {
            let Value::Outside { runs, .. } = &attribute.value else { continue };
            all.extend(runs.iter().filter_map(|run| Some((run.vcn, run.len, run.lcn?))));
        }
        all
    };
    let (data, index) = (runs(DATA, &[]), runs(INDEX_ALLOCATION, &NAMES));
    let goes_on = record.attributes.iter().any(|found| found.kind == ATTRIBUTE_LIST);
    record.is_used.then_some(Places { sequence: record.sequence, goes_on, data, index })
}
