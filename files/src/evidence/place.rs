//! Placing loose blocks: from the partition table to the structures of file systems.

use super::anchors::Anchors;
use super::claims::{self, Ground, Sightings};
use super::known::{Found, Known, Loose};
use super::space::Space;
use super::{table, volumes};

/// Places loose blocks by what is in them.
///
/// A block is *sure* if at least two structures in it agree on its place by their own numbers and checksums, in a volume
/// of which the partition table and the superblock or boot sector are sure too, if next to nothing in it contradicts, and
/// if no other block has a credible claim on the place. All else is a guess, or not placed. Metadata that was copied as a
/// whole, with the block that it is a copy of lost, cannot be told from what it is a copy of.
///
/// Reads all loose bytes twice; takes memory for structures, up to a limit of tens of MiB.
///
/// `on_progress` takes how many bytes were read, and how many are to be read.
pub fn place(known: &Known<'_>, loose: &dyn Loose, on_progress: &mut dyn FnMut(u64, u64)) -> Found {
    let mut notes = Vec::new();
    let mut space = Space::new(known, loose);
    let sum: u64 = loose.ranges().iter().map(|range| range.end - range.start).sum();
    let mut read = |done: u64| on_progress(done, 2 * sum);
    let mut anchors = Anchors::default();
    let unread = space.scan(&mut |at, bytes| anchors.look(at, bytes), &mut read);
    if unread > 0 {
        notes.push(format!("{unread} bytes of loose blocks cannot be read"));
    }
    let mut sightings = Sightings::default();
    let Some(root) = table::find(&space, &anchors, &mut sightings, &mut notes) else {
        notes.push("no partition table is found, and nothing says where volumes begin".into());
        return Found { notes, ..Found::default() };
    };
    let size = known.size.or(root.size);
    let mut ground = Ground::new(known, loose.ranges(), size, &anchors.journal_marks);
    ground.volumes.push(claims::Volume::new("the partition table", root.sure));
    space.placed(claims::resolve(&sightings, &ground));
    let mut volumes =
        volumes::find(&space, &root, &anchors, &mut sightings, &mut ground, &mut notes);
    space.placed(claims::resolve(&sightings, &ground));
    space.scan(&mut |at, bytes| volumes.look(at, bytes, &mut sightings), &mut |done| {
        read(sum + done);
    });
    space.placed(claims::resolve(&sightings, &ground));
    // What inodes and file records say counts once they are placed.
    volumes.follow(&space, &anchors, &mut sightings, &mut ground);
    let hits = claims::resolve(&sightings, &ground);
    if sightings.is_full() {
        notes.push("there are more structures than are kept: nothing is sure".into());
    }
    notes.extend(ground.doubts(&hits));
    let disk_size = root.size.map(|size| (size, root.what.clone()));
    Found { hits: claims::joined(hits, &ground), disk_size, sector: Some(root.sector), notes }
}
