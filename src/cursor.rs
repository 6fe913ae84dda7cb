//! Convenience methods of every disk, and `std::io` traits over any disk, for crates that read file systems and
//! partitions.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use crate::disk::{Disk, Extents};

/// Convenience methods of every [`Disk`], also behind `dyn`.
///
/// ```no_run
/// use std::io::Read;
///
/// use avhdx::{DiffChain, Disk, DiskExt, Source};
///
/// let chain = DiffChain::open("web_77F0.avhdx")?;
/// let end = chain.geometry().size;
/// let mut held = 0;
/// for extent in chain.extents(0..end) {
///     let extent = extent?;
///     if let Source::Data { .. } = extent.source {
///         held += extent.range.end - extent.range.start;
///     }
/// }
/// let mut boot = [0; 512];
/// chain.cursor().read_exact(&mut boot)?;
/// println!("{held} of {end} bytes are no zeros");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait DiskExt: Disk {
    /// Returns the extents of `range` in order, found lazily, joining neighbours that continue each other.
    fn extents(&self, range: Range<u64>) -> Extents<'_, Self> {
        Extents::new(self, range)
    }

    /// Returns a cursor that implements [`Read`], [`Write`] and [`Seek`].
    fn cursor(&self) -> Cursor<&Self> {
        Cursor::new(self)
    }
}

impl<D: Disk + ?Sized> DiskExt for D {}

/// A position on a disk, with [`Read`], [`Write`] and [`Seek`].
///
/// Reads stop at the end of the disk, as at the end of a file; writes there fail with
/// [`io::ErrorKind::WriteZero`] through `write_all`. A write to a read-only disk, even an empty one, fails
/// with [`io::ErrorKind::PermissionDenied`].
///
/// ```no_run
/// use std::io::{Read, Seek, SeekFrom};
/// use avhdx::{Cursor, DiffChain};
///
/// let mut disk = Cursor::new(DiffChain::open("vm_1A2B.avhdx")?);
/// let mut boot = [0; 512];
/// disk.seek(SeekFrom::Start(0))?;
/// disk.read_exact(&mut boot)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Cursor<D> {
    disk: D,
    position: u64,
}

impl<D: Disk> Cursor<D> {
    /// Creates a cursor at the start of `disk`.
    pub const fn new(disk: D) -> Self {
        Self { disk, position: 0 }
    }

    /// The disk.
    pub const fn disk(&self) -> &D {
        &self.disk
    }

    /// Returns the disk.
    pub fn into_inner(self) -> D {
        self.disk
    }

    /// Limits `wanted` to the bytes between the position and the end of the disk.
    fn within(&self, wanted: usize) -> usize {
        let left = self.disk.geometry().size.saturating_sub(self.position);
        usize::try_from(left).map_or(wanted, |left| left.min(wanted))
    }
}

impl<D: Disk> Read for Cursor<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.within(buf.len());
        if len > 0 {
            self.disk.read_at(&mut buf[..len], self.position)?;
            self.position += len as u64;
        }
        Ok(len)
    }
}

impl<D: Disk> Write for Cursor<D> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = self.within(buf.len());
        // Also for an empty write, so that a read-only disk refuses it at once.
        self.disk.write_at(&buf[..len], self.position.min(self.disk.geometry().size))?;
        self.position += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(self.disk.flush()?)
    }
}

impl<D: Disk> Seek for Cursor<D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.disk.geometry().size.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "seek to before the start of the disk")
        })?;
        Ok(self.position)
    }
}
