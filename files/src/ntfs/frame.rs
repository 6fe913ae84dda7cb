//! What two states of a volume of NTFS understand in different ways.

use std::ops::Range;

use crate::ntfs::Ntfs;

/// Where records of files lie that the other state has elsewhere; `None` if things are elsewhere altogether. A table of
/// files that has only grown has all its records where they were.
pub(super) fn reframed(one: &Ntfs, other: &Ntfs) -> Option<Vec<Range<u64>>> {
    let facts = |ntfs: &Ntfs| {
        let shape = &ntfs.shape;
        let volume = (shape.bytes.start(), shape.bytes.len());
        (volume, shape.cluster, shape.clusters, shape.record, ntfs.shows_system)
    };
    let held = |ntfs: &Ntfs| ntfs.mft.size.min(ntfs.mft.initialized);
    if facts(one) != facts(other) || held(other) < held(one) {
        return None;
    }
    let mut moved = Vec::new();
    for run in &one.mft.runs {
        let (mut vcn, end) = (run.vcn, run.vcn + run.len);
        while vcn < end {
            let place = run.lcn.map(|lcn| lcn + vcn - run.vcn);
            let there = other.mft.run(vcn);
            let next = there.map_or(end, |there| end.min(there.vcn + there.len));
            let there = there.and_then(|there| Some(there.lcn? + vcn - there.vcn));
            if let Some(place) = place.filter(|place| Some(*place) != there) {
                let cluster = one.shape.cluster;
                moved.push(place * cluster..(place + next - vcn) * cluster);
            }
            vcn = next;
        }
    }
    Some(moved)
}
