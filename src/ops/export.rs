//! The flat disk, written out.

use std::io;
use std::ops::{ControlFlow, Range};

use super::{Progress, Runs, WINDOW, is_zero, report, window_end};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::types::KIB;

/// Zeros are left out of files in pieces of this size, the page of most file systems.
const GRAIN: u64 = 4 * KIB;

/// Writes out a disk as it reads, in one pass from its start to its end.
///
/// ```
/// use std::ops::ControlFlow;
/// use avhdx::RawDisk;
/// use avhdx::ops::Export;
/// use avhdx::storage::MemStorage;
///
/// let disk = RawDisk::new(std::sync::Arc::new(MemStorage::new(vec![7; 9000])))?;
/// let copy = MemStorage::new(Vec::new());
/// let exported = Export::new().run(&disk, &copy, &mut |_| ControlFlow::Continue(()))?;
/// assert_eq!((exported.size, copy.into_bytes()), (9000, vec![7; 9000]));
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Export {}

/// What an export did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Bytes of the disk, and so of what was made.
    pub size: u64,
    /// Bytes that were written; the rest are zeros that a file need not hold.
    pub written: u64,
}

impl Export {
    /// An export of the whole disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the file `to` the disk's flat copy, and makes it durable. What the file held is gone. Zeros are not written: where
    /// the disk's maps say so they are not read either, and where data holds them in 4 KiB pieces they
    /// are left out.
    ///
    /// # Errors
    /// As [`Disk::read_at`]; [`ErrorKind::Io`](crate::ErrorKind::Io) when the host cannot write;
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) when `on` asks to stop. The file is then
    /// of no use.
    pub fn run(
        self,
        disk: &dyn Disk,
        to: &dyn Storage,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Exported> {
        let size = disk.geometry().size;
        let failed = |at: u64, error| {
            Error::io("export.write", "cannot write the copy", error).in_file(to.name()).at(at)
        };
        // First of all, so that a disk too large for the file system is refused at once.
        to.set_len(0).and_then(|()| to.set_len(size)).map_err(|error| failed(size, error))?;
        let mut written = 0;
        pieces(disk, on, |range, bytes| {
            for part in bytes.map_or_else(Vec::new, |bytes| parts_with_data(range.start, bytes)) {
                written += part.1.len() as u64;
                to.write_at(part.1, part.0).map_err(|error| failed(part.0, error))?;
            }
            Ok(())
        })?;
        to.flush().map_err(|error| failed(0, error))?;
        Ok(Exported { size, written })
    }

    /// Writes every byte of the disk to `to`, in order.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn stream(
        self,
        disk: &dyn Disk,
        to: &mut dyn io::Write,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Exported> {
        let size = disk.geometry().size;
        let zeros = vec![0; WINDOW as usize];
        let failed =
            |at: u64, error| Error::io("export.write", "cannot write the copy", error).at(at);
        pieces(disk, on, |range, bytes| {
            if let Some(bytes) = bytes {
                return to.write_all(bytes).map_err(|error| failed(range.start, error));
            }
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(WINDOW);
                to.write_all(&zeros[..len as usize]).map_err(|error| failed(at, error))?;
                at += len;
            }
            Ok(())
        })?;
        to.flush().map_err(|error| failed(size, error))?;
        Ok(Exported { size, written: size })
    }
}

/// Hands out the disk piece by piece: bytes that were read, or `None` for zeros.
fn pieces(
    disk: &dyn Disk,
    on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    mut take: impl FnMut(Range<u64>, Option<&[u8]>) -> Result<()>,
) -> Result<()> {
    let size = disk.geometry().size;
    let mut runs = Runs::new(disk);
    let mut buf = vec![0; WINDOW.min(size) as usize];
    let mut at = 0;
    report(on, at, size)?;
    while at < size {
        let run = runs.at(at)?;
        let end = if run.is_zero {
            take(at..run.end, None)?;
            run.end
        } else {
            // The whole window, whatever follows the run: small extents would make small reads.
            let end = window_end(at, size);
            let bytes = &mut buf[..(end - at) as usize];
            disk.read_at(bytes, at)?;
            take(at..end, Some(bytes))?;
            end
        };
        at = end;
        report(on, at, size)?;
    }
    Ok(())
}

/// The parts of bytes at `at` that are not zeros, with their places, cut at multiples of the grain.
fn parts_with_data(at: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut parts: Vec<(u64, &[u8])> = Vec::new();
    let mut start = 0;
    let mut from = None;
    while start < bytes.len() {
        let grain = GRAIN - (at + start as u64) % GRAIN;
        let end = bytes.len().min(start + grain as usize);
        match (is_zero(&bytes[start..end]), from) {
            (true, Some(first)) => {
                parts.push((at + first as u64, &bytes[first..start]));
                from = None;
            }
            (false, None) => from = Some(start),
            _ => {}
        }
        start = end;
    }
    parts.extend(from.map(|first| (at + first as u64, &bytes[first..])));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_at_the_grain() {
        let mut bytes = vec![0; 5 * 4096];
        assert_eq!(parts_with_data(0, &bytes), []);
        bytes[4096 + 7] = 1;
        bytes[2 * 4096] = 2;
        bytes[5 * 4096 - 1] = 3;
        let places = |at| -> Vec<(u64, usize)> {
            parts_with_data(at, &bytes).iter().map(|(at, part)| (*at, part.len())).collect()
        };
        assert_eq!(places(0), [(4096, 8192), (16384, 4096)]);
        // From the middle of a page: pages of the file count, not those of the buffer.
        assert_eq!(places(512), [(4096, 8192), (20480, 512)]);
    }
}
