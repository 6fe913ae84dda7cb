//! The flat disk, written out.

use std::io;
use std::ops::{ControlFlow, Range};

use super::{Progress, Runs, WINDOW, is_zero, report, window_end};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::types::KIB;

/// Zeros are left out of files in pieces of this size, the page of most file systems.
const GRAIN: u64 = 4 * KIB;
/// Shorter zeros between data are written along: to an image every write is work.
const SHORT: u64 = 64 * KIB;

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
    /// [`ErrorKind::InvalidInput`] when `to` is one of the files that the disk's bytes come from, by whatever
    /// name, with nothing changed; as [`Disk::read_at`]; [`ErrorKind::Io`](crate::ErrorKind::Io) when the host cannot write;
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
        let own = to.id().map_err(|error| failed(0, error))?;
        if own.is_some_and(|own| disk.files().contains(&own)) {
            return Err(onto_itself().in_file(to.name()));
        }
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

    /// Copies the disk onto `to`, a disk of at least its size that reads as zeros, such as a new image,
    /// and flushes that. Zeros are left out as in [`run`](Self::run), but for short ones between data:
    /// blocks that would hold nothing else get no space.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when `to` is smaller than the disk, or what is written to it goes to one of the
    /// files that the disk's bytes come from; as [`Disk::read_at`] and
    /// [`Disk::write_at`]; [`ErrorKind::Cancelled`] when `on` asks to stop. What `to` holds is then
    /// unspecified.
    pub fn onto(
        self,
        disk: &dyn Disk,
        to: &dyn Disk,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Exported> {
        let (size, room) = (disk.geometry().size, to.geometry().size);
        if room < size {
            let message = "the disk to copy onto is smaller than the one to be copied";
            return Err(Error::new(ErrorKind::InvalidInput, "export.room", message)
                .with_found(format_args!("{room} bytes"))
                .with_expected(format_args!("at least {size}")));
        }
        if to.files().first().is_some_and(|own| disk.files().contains(own)) {
            return Err(onto_itself());
        }
        let mut written = 0;
        pieces(disk, on, |range, bytes| {
            let Some(bytes) = bytes else { return Ok(()) };
            for part in joined(&parts_with_data(range.start, bytes)) {
                let place = (part.start - range.start) as usize..(part.end - range.start) as usize;
                to.write_at(&bytes[place], part.start)?;
                written += part.end - part.start;
            }
            Ok(())
        })?;
        to.flush()?;
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

fn onto_itself() -> Error {
    let message = "a disk cannot be copied onto what it is read from";
    Error::new(ErrorKind::InvalidInput, "export.own-source", message)
        .with_found("one of the files that its bytes come from")
        .with_expected("another file")
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
        let end = if run.is_zero() {
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

/// The places of parts, those that only short zeros keep apart as one.
fn joined(parts: &[(u64, &[u8])]) -> Vec<Range<u64>> {
    let mut places: Vec<Range<u64>> = Vec::new();
    for (at, part) in parts {
        let end = at + part.len() as u64;
        match places.last_mut() {
            Some(last) if at - last.end < SHORT => last.end = end,
            _ => places.push(*at..end),
        }
    }
    places
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

    #[test]
    fn only_short_zeros_are_written_along() {
        let mut bytes = vec![0; 512 << 10];
        for at in [8 << 10, 64 << 10, 200 << 10] {
            bytes[at] = 1;
        }
        let parts = parts_with_data(0, &bytes);
        assert_eq!(parts.len(), 3);
        assert_eq!(joined(&parts), [8 << 10..68 << 10, 200 << 10..204 << 10]);
        assert_eq!(joined(&[]), []);
    }
}
