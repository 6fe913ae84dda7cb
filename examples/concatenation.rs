//! A disk of several parts, one behind the other, written with the public interface alone.
//!
//! ```sh
//! cargo run --release --example concatenation
//! ```
//!
//! The parts are a VHDX image and a raw file here; disks of any kind will do. Whatever takes a disk takes the whole: the
//! example writes across the seam, exports the disk and compares the copy.

use std::ops::Range;
use std::sync::Arc;

use avhdx::ops::Export;
use avhdx::storage::{FileId, MemStorage};
use avhdx::{
    CreateOptions, Disk, DiskExt, Error, ErrorKind, Extent, Geometry, RawDisk, Result, Zeroing,
};

/// Disks that are one disk, each part behind the one before it.
pub struct Concatenation {
    /// Where each part starts, and the part. None is empty.
    parts: Vec<(u64, Box<dyn Disk>)>,
    geometry: Geometry,
}

impl Concatenation {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if their logical sectors differ in size: what lies on the disk counts in sectors. Also
    /// if no offset reaches the end of the whole.
    pub fn new(disks: Vec<Box<dyn Disk>>) -> Result<Self> {
        let refused = |message| Error::new(ErrorKind::InvalidInput, "concatenation", message);
        let logical = disks.first().map_or(512, |disk| disk.geometry().logical_sector);
        let (mut size, mut physical) = (0_u64, 512);
        let mut parts = Vec::new();
        for disk in disks {
            let part = disk.geometry();
            if part.logical_sector != logical {
                return Err(refused("the disks differ in their logical sector size"));
            }
            if part.size > 0 {
                parts.push((size, disk));
            }
            size = size.checked_add(part.size).ok_or_else(|| refused("the disk is too long"))?;
            physical = physical.max(part.physical_sector);
        }
        Ok(Self { parts, geometry: Geometry::new(size, logical, physical) })
    }

    /// The parts that a range lies on: where each starts, and what of the range lies on it, counted from there.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &dyn Disk, Range<u64>)> {
        self.parts.iter().filter_map(move |(start, disk)| {
            let end = start + disk.geometry().size;
            let (from, to) = (range.start.clamp(*start, end), range.end.clamp(*start, end));
            (from < to).then(|| (*start, &**disk, from - start..to - start))
        })
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        self.geometry.check_range(range.start, range.end.saturating_sub(range.start))
    }

    /// The range of `len` bytes at `offset`, which lies within the disk.
    fn range(&self, offset: u64, len: usize) -> Result<Range<u64>> {
        self.geometry.check_range(offset, len as u64)?;
        Ok(offset..offset + len as u64)
    }
}

impl Disk for Concatenation {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = self.range(offset, buf.len())?;
        let mut rest = buf;
        for (_, disk, part) in self.within(range) {
            let (now, later) = rest.split_at_mut((part.end - part.start) as usize);
            disk.read_at(now, part.start)?;
            rest = later;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let range = self.range(offset, buf.len())?;
        let mut rest = buf;
        for (_, disk, part) in self.within(range) {
            let (now, later) = rest.split_at((part.end - part.start) as usize);
            disk.write_at(now, part.start)?;
            rest = later;
        }
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.check(&range)?;
        self.within(range).try_for_each(|(_, disk, part)| disk.write_zeroes(part, how))
    }

    fn flush(&self) -> Result<()> {
        self.parts.iter().try_for_each(|(_, disk)| disk.flush())
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        self.check(&range)?;
        let Some((start, disk, part)) = self.within(range).next() else { return Ok(None) };
        // Places are those in the parts' files, as their layers name them: only the range moves.
        Ok(disk.next_extent(part)?.map(|extent| Extent {
            range: extent.range.start + start..extent.range.end + start,
            source: extent.source,
        }))
    }

    fn files(&self) -> Vec<FileId> {
        self.parts.iter().flat_map(|(_, disk)| disk.files()).collect()
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let image = CreateOptions::dynamic(8 << 20).create(folder.path().join("first.vhdx"))?;
    let raw = RawDisk::new(Arc::new(MemStorage::new(vec![7; 4 << 20])))?;
    let disk = Concatenation::new(vec![Box::new(image), Box::new(raw)])?;

    disk.write_at(b"across the seam", (8 << 20) - 7)?;
    disk.flush()?;
    for extent in disk.extents(0..disk.geometry().size) {
        let Extent { range, source, .. } = extent?;
        println!("{:9}..{:<9} {source:?}", range.start, range.end);
    }

    let copy = MemStorage::new(Vec::new());
    let exported = Export::new().run(&disk, &copy)?;
    let copy = copy.into_bytes();
    assert_eq!(&copy[(8 << 20) - 7..][..15], b"across the seam");
    println!("exported {} bytes, {} of them data", exported.size, exported.written);
    Ok(())
}
