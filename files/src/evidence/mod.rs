//! Where blocks of a disk lie that no table places, by what is in them.
//!
//! A structure of a file system that says where it lies places the block around it: copies of superblocks and inodes of
//! ext with checksums that hold their numbers, file records of NTFS that are numbered, folders that name themselves. What
//! disks hold misleads: images of other disks lie in files, journals keep copies of metadata, and what was there before
//! is still there. So a place is *sure* only if two structures or more agree on it, nothing in the block speaks against
//! it, and no other block has a claim on it; see [`place`].

mod anchors;
mod claims;
mod ext;
mod fat;
mod ntfs;
mod space;
mod table;
mod volumes;
mod whole;

use std::ops::Range;

use avhdx::Disk;

pub use whole::{Whole, whole_files};

use anchors::Anchors;
use claims::{Ground, Sightings};
use space::Space;

const MIB: u64 = 1 << 20;

/// Ranges of the file of an image that no table claims.
pub trait Loose: Sync {
    /// The ranges in bytes, in order, aligned to MiB at both ends, neither empty nor overlapping.
    fn ranges(&self) -> &[Range<u64>];

    /// Fills `buf` with the bytes of the file at an offset within one of the ranges.
    ///
    /// # Errors
    /// Those of the host; the bytes then count as bytes that say nothing.
    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> avhdx::Result<()>;
}

/// What is known of a disk before anything is placed.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// What is placed already; the rest reads as zeros.
    pub disk: &'a dyn Disk,
    /// Which ranges of the disk are known, in order.
    pub ranges: &'a [Range<u64>],
    /// The size of the disk in bytes. Less is sure without it.
    pub size: Option<u64>,
    /// The size of a payload block in bytes; without it, each MiB is placed by itself.
    pub block_size: Option<u32>,
    /// The size of a logical sector in bytes.
    pub sector: Option<u32>,
}

/// Bytes of the file that lie at a place of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hit {
    /// Where the bytes lie in the file.
    pub file_offset: u64,
    /// Where they lie on the disk.
    pub disk_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Whether the place is certain, and no guess.
    pub sure: bool,
    /// What the place rests on.
    pub evidence: String,
}

/// What loose blocks say.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Found {
    /// Placed bytes, by their places on the disk. They overlap neither there nor in the file.
    pub hits: Vec<Hit>,
    /// The size of the disk in bytes by its partition table, and what that rests on.
    pub disk_size: Option<(u64, String)>,
    /// The size of a logical sector by the partition table.
    pub sector: Option<u32>,
    /// What was noteworthy, such as two volumes that claim the same place.
    pub notes: Vec<String>,
}

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
