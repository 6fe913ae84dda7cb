//! What two states of a volume of NTFS understand in different ways.

use std::ops::Range;

use crate::ntfs::runs::Outside;

/// Where records of files lie that the other table of files has elsewhere; `None` if it has fewer. A table that has only
/// grown has all its records where they were.
pub(super) fn moved(table: &Outside, other: &Outside) -> Option<Vec<Range<u64>>> {
    let held = |table: &Outside| table.size.min(table.initialized);
    if held(other) < held(table) {
        return None;
    }
    let mut moved = Vec::new();
    for run in &table.runs {
        let (mut vcn, end) = (run.vcn, run.vcn + run.len);
        while vcn < end {
            let place = run.lcn.map(|lcn| lcn + vcn - run.vcn);
            let there = other.run(vcn);
            let next = there.map_or(end, |there| end.min(there.vcn + there.len));
            let there = there.and_then(|there| Some(there.lcn? + vcn - there.vcn));
            if let Some(place) = place.filter(|place| Some(*place) != there) {
                moved.push(place * table.cluster..(place + next - vcn) * table.cluster);
            }
            vcn = next;
        }
    }
    Some(moved)
}
