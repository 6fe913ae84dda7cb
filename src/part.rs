//! A range of a disk, as a disk.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

use crate::disk::{Disk, Extent, Geometry, Zeroing};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileId;

/// A partition, or any other range of whole sectors of a disk, as a disk of its own: byte 0 is the first byte of the
/// range, and nothing outside it can be read or changed.
///
/// What reads file systems through [`Cursor`](crate::Cursor) or [`Disk`] expects a disk that begins where the file
/// system does. `D` is a disk, or a pointer to one. Extents name the places that those of the whole disk name, and a
/// flush makes the whole disk durable.
///
/// ```
/// use std::io::Read;
/// use std::sync::Arc;
/// use avhdx::storage::MemStorage;
/// use avhdx::{Cursor, Disk, Part, RawDisk};
///
/// let disk = RawDisk::new(Arc::new(MemStorage::new(vec![0; 4096])))?;
/// disk.write_at(b"volume", 1024)?;
///
/// let partition = Part::new(&disk, 1024..3072)?;
/// assert_eq!(partition.geometry().size, 2048);
/// let mut start = [0; 6];
/// Cursor::new(&partition).read_exact(&mut start)?;
/// assert_eq!(&start, b"volume");
/// assert!(partition.write_at(b"x", 2048).is_err(), "the partition ends here");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Part<D> {
    disk: D,
    geometry: Geometry,
    start: u64,
}

impl<D: Disk> Part<D> {
    /// The bytes of `disk` at `range`. The range keeps its length when the disk is resized: what the disk no longer has is
    /// refused then.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with the code `part.empty` if the range is empty, `disk.out-of-range` if it does not
    /// lie within the disk, and `part.unaligned` if it does not consist of whole logical sectors.
    pub fn new(disk: D, range: Range<u64>) -> Result<Self> {
        let whole = disk.geometry();
        let refused = |code, message: &str| {
            Error::new(ErrorKind::InvalidInput, code, message).at(range.start)
        };
        if range.is_empty() {
            return Err(refused("part.empty", "a part of a disk without a byte")
                .with_found(format_args!("{}..{}", range.start, range.end))
                .with_expected("a range of one sector or more"));
        }
        let size = range.end - range.start;
        whole.check_range(range.start, size)?;
        let sector = u64::from(whole.logical_sector);
        if !range.start.is_multiple_of(sector) || !size.is_multiple_of(sector) {
            return Err(refused("part.unaligned", "a part of a disk that is not of whole sectors")
                .with_found(format_args!("{size} bytes at {}", range.start))
                .with_expected(format_args!("multiples of {sector} bytes")));
        }
        let geometry = Geometry { size, ..whole };
        Ok(Self { disk, geometry, start: range.start })
    }

    /// The whole disk.
    pub const fn disk(&self) -> &D {
        &self.disk
    }

    /// Where the part lies on the whole disk, in bytes.
    pub const fn range(&self) -> Range<u64> {
        self.start..self.start + self.geometry.size
    }

    /// The offset on the whole disk of `len` bytes at `offset` of the part.
    fn place(&self, offset: u64, len: u64) -> Result<u64> {
        self.geometry.check_range(offset, len)?;
        Ok(self.start + offset)
    }

    /// The range on the whole disk of a range of the part.
    fn outer(&self, range: &Range<u64>) -> Result<Range<u64>> {
        let len = range.end.saturating_sub(range.start);
        let start = self.place(range.start, len)?;
        Ok(start..start + len)
    }
}

impl<D: Disk> Disk for Part<D> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, self.place(offset, buf.len() as u64)?)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.disk.read_vectored_at(bufs, self.place(offset, len)?)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.disk.write_at(buf, self.place(offset, buf.len() as u64)?)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.disk.write_vectored_at(bufs, self.place(offset, len)?)
    }

    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.disk.write_zeroes(self.outer(&range)?, how)
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.disk.discard(self.outer(&range)?)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let extent = self.disk.next_extent(self.outer(&range)?)?;
        Ok(extent.map(|Extent { range, source }| Extent {
            range: range.start - self.start..range.end - self.start,
            source,
        }))
    }

    fn files(&self) -> Vec<FileId> {
        self.disk.files()
    }
}
