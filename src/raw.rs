//! Disks without a format, stored as plain bytes in a file.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::disk::{Disk, Extent, Geometry, LayerId, Source, Zeroing};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{FileId, Storage, length_of};
use crate::types::{FileOffset, MIB};

/// A raw image: byte `n` of the file is byte `n` of the disk. Its size is fixed. Holes in the file
/// are extents of zeros if the host reports them, and a discard creates holes if the host can. Changes
/// fail with [`ErrorKind::ReadOnly`] unless the file is open for writing.
///
/// Use it only if the user asked for a raw disk. Guessing is unsafe: a guest can write the header of any format to
/// its own disk.
///
/// ```no_run
/// use avhdx::storage::{Access, Host, LocalHost};
/// use avhdx::{Disk, RawDisk};
///
/// let disk = RawDisk::new(LocalHost.open("disk.img".as_ref(), Access::ReadWrite)?)?;
/// println!("{} bytes", disk.geometry().size);
/// disk.write_at(b"boot", 0)?;
/// disk.flush()?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Debug)]
pub struct RawDisk {
    id: LayerId,
    storage: Arc<dyn Storage>,
    size: u64,
}

impl RawDisk {
    /// Opens the disk in `storage`, with sectors of 512 bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the length of the file cannot be determined.
    pub fn new(storage: Arc<dyn Storage>) -> Result<Self> {
        let size = length_of(storage.as_ref()).map_err(|error| error.in_file(storage.name()))?;
        Ok(Self { id: LayerId::unique(), storage, size })
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    /// Writes zeros to a range, keeping its space.
    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        let zeros = vec![0; (range.end - range.start).min(MIB) as usize];
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(MIB);
            self.write_at(&zeros[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }

    fn io(&self, code: &'static str, message: String, at: u64, error: io::Error) -> Error {
        Error::io(code, message, error).in_file(self.storage.name()).at(at)
    }

    /// The same for changes, which a read-only file refuses.
    fn not_changed(&self, code: &'static str, message: String, at: u64, error: io::Error) -> Error {
        let is_read_only = error.kind() == io::ErrorKind::PermissionDenied;
        let error = self.io(code, message, at, error);
        if is_read_only { error.with_kind(ErrorKind::ReadOnly, "disk.read-only") } else { error }
    }
}

impl Disk for RawDisk {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.size, 512, 512)
    }

    fn files(&self) -> Vec<FileId> {
        self.storage.id().ok().flatten().into_iter().collect()
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        self.storage.read_exact_at(buf, offset).map_err(|error| {
            self.io("raw.read", format!("cannot read {} bytes", buf.len()), offset, error)
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        self.storage.write_at(buf, offset).map_err(|error| {
            self.not_changed(
                "raw.write",
                format!("cannot write {} bytes", buf.len()),
                offset,
                error,
            )
        })
    }

    /// Punches holes into the file if bytes may lose their space and the host supports it, and writes zeros
    /// otherwise.
    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        self.geometry().check_range(range.start, len)?;
        if len == 0 {
            return Ok(());
        }
        if how == Zeroing::MayUnmap {
            let punched = self.storage.punch(range.clone()).map_err(|error| {
                let message = format!("cannot return the space of {len} bytes to the host");
                self.not_changed("raw.punch", message, range.start, error)
            })?;
            if punched {
                return Ok(());
            }
        }
        self.write_zeros(range)
    }

    fn flush(&self) -> Result<()> {
        let flushed = self.storage.flush();
        flushed.map_err(|error| self.io("raw.flush", "cannot flush".into(), 0, error))
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.geometry().check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let data = self.storage.next_data(range.start).map_err(|error| {
            self.io("raw.extents", "cannot tell holes from data".into(), range.start, error)
        })?;
        let zero = Source::Zero { layer: Some(self.id) };
        let (end, source) = match data {
            None => (range.end, zero),
            Some(data) if data.start > range.start => (data.start, zero),
            // A concurrent punch can make the data end before it starts: return at least one byte.
            Some(data) => (
                data.end.max(range.start + 1),
                Source::Data { layer: self.id, at: FileOffset::new(range.start) },
            ),
        };
        Ok(Some(Extent { range: range.start..end.min(range.end), source }))
    }
}
