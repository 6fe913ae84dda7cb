//! What a virtual disk is to its users: bytes, and the extents that say where they lie.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileId;
use crate::types::FileOffset;

/// Buffers of no more bytes than this are written together.
const TOGETHER: usize = 256 << 10;

/// The bytes of a virtual disk.
///
/// Offsets and lengths are in bytes and need no alignment. All calls take `&self` and may be made
/// from many threads at once.
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
pub trait Disk: Send + Sync {
    /// Size and sector sizes.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from the bytes at `offset`: all of it, or an error.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the range does not lie within the disk;
    /// [`ErrorKind::ParentRequired`] when a differencing image is read alone; [`ErrorKind::Damaged`]
    /// and [`ErrorKind::Io`] when the bytes cannot be had. What `buf` holds is then unspecified.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Fills the buffers one after the other from the bytes at `offset`.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        let total = bufs.iter().map(|buf| buf.len() as u64).sum();
        check_range(&self.geometry(), offset, total)?;
        for buf in bufs {
            self.read_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes `buf` to the bytes at `offset`.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] where the disk is open for reading only, as every disk is whose type
    /// does not provide this call; [`ErrorKind::InvalidInput`] when the range does not lie within it;
    /// [`ErrorKind::Io`] when the host fails: each 512 bytes of the range are then as before or as
    /// written; [`ErrorKind::Poisoned`] after certain failures, see
    /// [`VhdxFile`](crate::VhdxFile#after-a-failure).
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _ = (buf, offset);
        Err(read_only())
    }

    /// Writes the buffers one after the other to the bytes at `offset`.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); what was written before the failure stays written.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> Result<()> {
        let (mut rest, mut together) = (bufs, Vec::new());
        while let Some(first) = rest.first() {
            let mut sum = 0;
            let small = rest.iter().take_while(|buf| {
                sum += buf.len();
                sum <= TOGETHER
            });
            let count = small.count();
            // To copy small ones costs less than to write each by itself.
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

    /// Makes a range read as zeros. In a differencing disk the parent never shows through it.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        let _ = (range, how);
        Err(read_only())
    }

    /// Says that a range is not needed any more: it reads as zeros from then on, and whole blocks give
    /// up their space where the kind of disk allows.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    fn discard(&self, range: Range<u64>) -> Result<()> {
        self.write_zeroes(range, Zeroing::MayUnmap)
    }

    /// Makes every write that returned before this call durable.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the host cannot; whether those writes survive is then open, and an image
    /// takes no more of them: [`ErrorKind::Poisoned`], see
    /// [`VhdxFile`](crate::VhdxFile#after-a-failure).
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// The extent that `range` starts with, cut at the range's end; `None` for an empty range.
    ///
    /// The bytes of one extent share one source, and lie in one piece where that is a file. Two
    /// neighbouring extents may still continue each other: [`DiskExt::extents`](crate::DiskExt::extents) joins those.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), and [`ErrorKind::LogOverlay`] where bytes of a pending log lie
    /// over the payload.
    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>>;

    /// The files that the bytes come from, first the one that writes go to, as far as the host tells files apart.
    fn files(&self) -> Vec<FileId> {
        Vec::new()
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
        }
    )*};
}

forward_disk!(&D, Box<D>, std::sync::Arc<D>);

/// Size and sector sizes of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// Size of the virtual disk.
    pub size: u64,
    /// The unit in which a machine addresses the disk: 512 or 4096.
    pub logical_sector: u32,
    /// The unit that the disk claims to write at once: 512 or 4096.
    pub physical_sector: u32,
}

impl Geometry {
    /// The geometry of a disk of `size` bytes.
    pub const fn new(size: u64, logical_sector: u32, physical_sector: u32) -> Self {
        Self { size, logical_sector, physical_sector }
    }
}

/// Whether bytes that become zeros may give up their space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Zeroing {
    /// Whole blocks may lose their space in the file.
    MayUnmap,
    /// What has space in the file keeps it, so that writing there again cannot run out of it.
    KeepSpace,
}

/// A run of virtual bytes with one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The virtual bytes.
    pub range: Range<u64>,
    /// What supplies them.
    pub source: Source,
}

/// What supplies the bytes of an [`Extent`]. A `match` names every variant: a missed one would be
/// data silently lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file of `layer`, from `at` on.
    Data {
        /// The layer whose file holds the bytes.
        layer: LayerId,
        /// Where the first of them lies in that file.
        at: FileOffset,
    },
    /// Zeros, decided by `layer`, or by none where the search ended past a layer's end.
    Zero {
        /// The layer that says zero.
        layer: Option<LayerId>,
    },
    /// Whatever the parent has: only ever said by a differencing image that is looked at alone.
    Parent,
}

/// Names a layer as long as the process lives. It is not a position in the chain and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(u64);

impl LayerId {
    pub(crate) fn next() -> Self {
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
                // What was found comes first; the error is met again at the next call.
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
    /// Whether `next`, which starts where this one ends, has the same source and goes on in it.
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

/// Refuses a range that does not lie within the disk.
#[inline]
pub(crate) fn check_range(geometry: &Geometry, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= geometry.size => Ok(()),
        _ => Err(out_of_range(geometry, offset, len)),
    }
}

#[cold]
fn out_of_range(geometry: &Geometry, offset: u64, len: u64) -> Error {
    let message = format!("{len} bytes at {offset} do not lie within the disk");
    Error::new(ErrorKind::InvalidInput, "disk.out-of-range", message)
        .with_found(format_args!("a disk of {} bytes", geometry.size))
        .with_expected(format_args!("at least {}", offset.saturating_add(len)))
}

fn read_only() -> Error {
    Error::new(ErrorKind::ReadOnly, "disk.read-only", "the disk is open for reading only")
}
