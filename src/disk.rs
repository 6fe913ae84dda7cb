//! The interface of a virtual disk: its bytes, and the extents that say where they are stored.

use std::any::Any;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileId;
use crate::types::FileOffset;

/// Buffers are written together up to this total size.
const TOGETHER: usize = 256 << 10;

/// The bytes of a virtual disk.
///
/// Offsets and lengths are in bytes and need no alignment. All calls take `&self` and can be made
/// from several threads at once.
///
/// ```
/// use avhdx::storage::MemStorage;
/// use avhdx::{Disk, RawDisk};
///
/// let disk = RawDisk::new(std::sync::Arc::new(MemStorage::new(b"boot sector".to_vec())))?;
/// let mut word = [0; 4];
/// disk.read_at(&mut word, 0)?;
/// assert_eq!(&word, b"boot");
/// # Ok::<(), avhdx::Error>(())
/// ```
///
/// # Implementing a disk
///
/// Every operation of this crate takes any disk, so another format or a store of another kind is one `impl` away. A
/// read-only disk needs three methods. [`Geometry::check_range`] refuses what lies outside the disk,
/// [`LayerId::unique`] names its data in extents, and [`Error`] has what failures need. An implementation keeps these
/// promises:
///
/// - A range that does not lie within the disk is refused with [`ErrorKind::InvalidInput`], and nothing changes. An
///   empty range within the disk, its end included, succeeds. A range whose end is before its start is empty.
/// - A read-only disk refuses every change with [`ErrorKind::ReadOnly`].
/// - A change affects its range only, whatever the alignment, also while other threads change bytes beside it.
/// - Extents follow each other without gaps and overlaps, and the bytes of a [`Source::Zero`] read as zeros.
/// - An error that concerns a file [names it](Error::in_file).
///
/// ```
/// use std::ops::Range;
/// use avhdx::{Disk, Extent, FileOffset, Geometry, LayerId, Result, Source};
///
/// /// A read-only disk in memory.
/// struct Rom {
///     layer: LayerId,
///     bytes: &'static [u8],
/// }
///
/// impl Disk for Rom {
///     fn geometry(&self) -> Geometry {
///         Geometry::new(self.bytes.len() as u64, 512, 512)
///     }
///
///     fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
///         self.geometry().check_range(offset, buf.len() as u64)?;
///         buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
///         Ok(())
///     }
///
///     fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
///         self.geometry().check_range(range.start, range.end.saturating_sub(range.start))?;
///         let at = FileOffset::new(range.start);
///         let source = Source::Data { layer: self.layer, at };
///         Ok((!range.is_empty()).then_some(Extent { range, source }))
///     }
/// }
///
/// let rom = Rom { layer: LayerId::unique(), bytes: &[7; 1024] };
/// let mut bytes = [0; 2];
/// rom.read_at(&mut bytes, 1022)?;
/// assert_eq!(bytes, [7; 2]);
/// assert_eq!(rom.write_at(b"x", 0).unwrap_err().kind(), avhdx::ErrorKind::ReadOnly);
/// # Ok::<(), avhdx::Error>(())
/// ```
pub trait Disk: Send + Sync {
    /// The size and the sector sizes of the disk.
    fn geometry(&self) -> Geometry;

    /// Fills all of `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the range does not lie within the disk;
    /// [`ErrorKind::ParentRequired`] if a differencing image is read without its parent; [`ErrorKind::Damaged`]
    /// and [`ErrorKind::Io`] if the bytes cannot be read. The contents of `buf` are then unspecified.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Fills several buffers in order with the bytes at `offset`.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at).
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        let total = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.geometry().check_range(offset, total)?;
        for buf in bufs {
            self.read_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] if the disk is open for reading only, or its type does not implement this
    /// call; [`ErrorKind::InvalidInput`] if the range does not lie within the disk;
    /// [`ErrorKind::Io`] if the host fails: each 512 bytes of the range then hold either the old or the new
    /// data; [`ErrorKind::Poisoned`] after certain failures, see
    /// [`VhdxFile`](crate::VhdxFile#after-a-failure).
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _ = (buf, offset);
        Err(Error::read_only())
    }

    /// Writes several buffers in order at `offset`.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at); data written before the failure stays written.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> Result<()> {
        let (mut rest, mut together) = (bufs, Vec::new());
        while let Some(first) = rest.first() {
            let mut sum = 0;
            let small = rest.iter().take_while(|buf| {
                sum += buf.len();
                sum <= TOGETHER
            });
            let count = small.count();
            // Copying small buffers costs less than writing each separately.
            let now: &[u8] = if count > 1 {
                together.clear();
                rest[..count].iter().for_each(|buf| together.extend_from_slice(buf));
                &together
            } else {
                first
            };
            self.write_at(now, offset)?;
            offset += now.len() as u64;
            rest = &rest[count.max(1)..];
        }
        Ok(())
    }

    /// Zeros a range. In a differencing disk, the parent does not show through it.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        let _ = (range, how);
        Err(Error::read_only())
    }

    /// Discards a range that is no longer needed: it reads as zeros, and whole blocks are freed
    /// if the kind of disk allows it.
    ///
    /// # Errors
    /// As for [`write_at`](Self::write_at).
    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.write_zeroes(range, Zeroing::MayUnmap)
    }

    /// Makes all writes durable that returned before this call.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the host fails. It is then unknown whether those writes are durable, and an image
    /// refuses further writes with [`ErrorKind::Poisoned`], see
    /// [`VhdxFile`](crate::VhdxFile#after-a-failure).
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the first extent of `range`, limited to the range; `None` for an empty range.
    ///
    /// The bytes of an extent share one source, and are contiguous if that is a file. Two
    /// neighbouring extents may continue each other: [`DiskExt::extents`](crate::DiskExt::extents) joins them.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at), and [`ErrorKind::LogOverlay`] if bytes of a pending log replace
    /// the payload.
    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>>;

    /// The files that supply the disk, the one that receives writes first, if the host can identify files.
    fn files(&self) -> Vec<FileId> {
        Vec::new()
    }

    /// The disk as what it is: operations on two disks leave out what two chains share, and copies have the host copy
    /// from file to file.
    #[doc(hidden)]
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}

macro_rules! forward_disk {
    ($($pointer:ty),*) => {$(
        impl<D: Disk + ?Sized> Disk for $pointer {
            fn geometry(&self) -> Geometry {
                (**self).geometry()
            }
            fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
                (**self).read_at(buf, offset)
            }
            fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
                (**self).read_vectored_at(bufs, offset)
            }
            fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
                (**self).write_at(buf, offset)
            }
            fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
                (**self).write_vectored_at(bufs, offset)
            }
            fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
                (**self).write_zeroes(range, how)
            }
            fn discard(&self, range: Range<u64>) -> Result<()> {
                (**self).discard(range)
            }
            fn flush(&self) -> Result<()> {
                (**self).flush()
            }
            fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
                (**self).next_extent(range)
            }
            fn files(&self) -> Vec<FileId> {
                (**self).files()
            }
            fn as_any(&self) -> Option<&dyn Any> {
                (**self).as_any()
            }
        }
    )*};
}

forward_disk!(&D, Box<D>, std::sync::Arc<D>);

/// The size and the sector sizes of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Geometry {
    /// Size of the virtual disk.
    pub size: u64,
    /// The unit in which the disk is addressed: 512 or 4096.
    pub logical_sector: u32,
    /// The unit in which the disk claims to write: 512 or 4096.
    pub physical_sector: u32,
}

impl Geometry {
    /// The geometry of a disk of `size` bytes.
    pub const fn new(size: u64, logical_sector: u32, physical_sector: u32) -> Self {
        Self { size, logical_sector, physical_sector }
    }

    /// Refuses a range of `len` bytes at `offset` that does not lie within the disk.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] with the code `disk.out-of-range`, also if `offset + len` overflows.
    #[inline]
    pub fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(out_of_range(self, offset, len)),
        }
    }
}

/// Whether zeroed bytes may lose their space in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Zeroing {
    /// Whole blocks may lose their space.
    MayUnmap,
    /// Allocated blocks keep their space, so that later writes to them cannot run out of it.
    KeepSpace,
}

/// A range of the disk with one source. Exhaustive on purpose: disks outside the crate create extents.
///
/// See [`DiskExt`](crate::DiskExt) for an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The range of the disk.
    pub range: Range<u64>,
    /// The source of its bytes.
    pub source: Source,
}

/// The source of the bytes of an [`Extent`]. Exhaustive on purpose: a missed variant would silently lose
/// data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file of `layer`, from `at` on.
    Data {
        /// The layer whose file holds the bytes.
        layer: LayerId,
        /// The file offset of the first byte.
        at: FileOffset,
    },
    /// Zeros, as determined by `layer`, or by no layer if the search ended beyond a layer's end.
    Zero {
        /// The layer that determines the zeros.
        layer: Option<LayerId>,
    },
    /// The parent's data. Occurs only if a differencing image is examined without its parent.
    Parent,
}

/// Identifies a layer for the lifetime of the process. It is not a position in the chain and is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LayerId(u64);

impl LayerId {
    /// Creates an id that differs from all others of the process: for a [`Disk`] whose extents name data of its own.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer #{}", self.0)
    }
}

/// The extents of a range, in order. Made by [`DiskExt::extents`](crate::DiskExt::extents); ends after the first error.
#[derive(Debug)]
pub struct Extents<'a, D: ?Sized> {
    disk: &'a D,
    rest: Range<u64>,
    ahead: Option<Extent>,
    failed: bool,
}

impl<'a, D: Disk + ?Sized> Extents<'a, D> {
    pub(crate) fn new(disk: &'a D, range: Range<u64>) -> Self {
        Self { disk, rest: range, ahead: None, failed: false }
    }

    fn step(&mut self) -> Result<Option<Extent>> {
        if let Some(extent) = self.ahead.take() {
            return Ok(Some(extent));
        }
        let extent = self.disk.next_extent(self.rest.clone())?;
        if let Some(extent) = &extent {
            self.rest.start = extent.range.end;
        }
        Ok(extent)
    }

    fn joined(&mut self) -> Result<Option<Extent>> {
        let Some(mut extent) = self.step()? else { return Ok(None) };
        loop {
            match self.step() {
                Ok(Some(next)) if extent.continues_in(&next) => extent.range.end = next.range.end,
                Ok(next) => {
                    self.ahead = next;
                    return Ok(Some(extent));
                }
                // The extent is returned first; the next call meets the error again.
                Err(_) => return Ok(Some(extent)),
            }
        }
    }
}

impl<D: Disk + ?Sized> Iterator for Extents<'_, D> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.joined().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

impl Extent {
    /// Whether `next`, which starts where this extent ends, continues the same source.
    fn continues_in(&self, next: &Self) -> bool {
        let len = self.range.end - self.range.start;
        match (self.source, next.source) {
            (Source::Data { layer: a, at: x }, Source::Data { layer: b, at: y }) => {
                a == b && x.get().checked_add(len) == Some(y.get())
            }
            (Source::Zero { layer: a }, Source::Zero { layer: b }) => a == b,
            (Source::Parent, Source::Parent) => true,
            _ => false,
        }
    }
}

#[cold]
fn out_of_range(geometry: &Geometry, offset: u64, len: u64) -> Error {
    let message = format!("{len} bytes at {offset} do not lie within the disk");
    Error::new(ErrorKind::InvalidInput, "disk.out-of-range", message)
        .with_found(format_args!("a disk of {} bytes", geometry.size))
        .with_expected(format_args!("at least {}", offset.saturating_add(len)))
}
