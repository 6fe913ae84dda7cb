//! Writes out a flat disk.

mod handed;

use std::io;
use std::ops::{ControlFlow, Range};

use super::{DiskRuns, Listener, Progress, WINDOW, is_zero};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::mover::{PIECE, flush_behind, read_ahead};
use crate::storage::Storage;
use crate::trace::operation;
use crate::types::KIB;
use handed::{HandOver, Shareable, Target, ToFile, ToImage, cannot_write};

/// Zeros are left out of files in units of this size, the page of most file systems.
const GRAIN: u64 = 4 * KIB;
/// Shorter zeros between data are written, because fewer writes to an image cost less.
const SHORT: u64 = 64 * KIB;

/// Writes out a disk in one pass from start to end.
///
/// ```
/// use avhdx::RawDisk;
/// use avhdx::ops::Export;
/// use avhdx::storage::MemStorage;
///
/// let disk = RawDisk::new(std::sync::Arc::new(MemStorage::new(vec![7; 9000])))?;
/// let copy = MemStorage::new(Vec::new());
/// let exported = Export::new().run(&disk, &copy)?;
/// assert_eq!((exported.size, copy.into_bytes()), (9000, vec![7; 9000]));
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Export<'a> {
    share: bool,
    progress: Listener<'a>,
}

/// The result of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Size of the disk in bytes, and of the copy.
    pub size: u64,
    /// Bytes written; the rest are zeros that a file need not store.
    pub written: u64,
    /// How many of the written bytes the file system was asked to share.
    pub handed_over: u64,
}

impl Default for Export<'_> {
    fn default() -> Self {
        Self { share: true, progress: Listener::default() }
    }
}

impl<'a> Export<'a> {
    /// Exports the whole disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the copy may share bytes with the files that supply the disk, where the file system can do so (XFS, btrfs,
    /// bcachefs on Linux): this takes next to no time and space. `true` by default.
    ///
    /// Shared are runs of 64 KiB or more of a [`DiffChain`](crate::DiffChain) or a [`RawDisk`](crate::RawDisk), in whole
    /// blocks of the file system, if the copy lies on the same one as the file that holds them. Nobody looks for zeros
    /// in them: what a layer stores of zeros becomes data of the copy. Later writes to either file take new space for
    /// what they change, and can run out of it. An image of the fixed type shares nothing, because its space is its own.
    pub fn share(mut self, yes: bool) -> Self {
        self.share = yes;
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Makes the file `to` a flat copy of the disk, durably. The previous contents of the file are lost. Zeros are not
    /// written: those in the disk's map are not read either, and those in data are left out in units of 4 KiB, unless the
    /// data is [shared](Self::share).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `to` is one of the files that supply the disk, under any name; nothing is
    /// changed then. As for [`Disk::read_at`]; [`ErrorKind::Io`](crate::ErrorKind::Io) if the host cannot write;
    /// [`ErrorKind::Cancelled`]. The file is then incomplete.
    pub fn run(self, disk: &dyn Disk, to: &dyn Storage) -> Result<Exported> {
        let _span = operation("export", to.name());
        let size = disk.geometry().size;
        let failed = |at, error| cannot_write(to, at, error);
        let own = to.id().map_err(|error| failed(0, error))?;
        if own.is_some_and(|own| disk.files().contains(&own)) {
            return Err(onto_itself().in_file(to.name()));
        }
        // First, so that a disk too large for the file system is refused at once.
        to.set_len(0).and_then(|()| to.set_len(size)).map_err(|error| failed(size, error))?;
        let target = ToFile(to);
        let over = HandOver::new(disk, to, &target, self.share);
        let mut written = 0;
        let flush = || to.flush().map_err(|error| failed(0, error));
        flush_behind(&flush, |behind| {
            pieces(disk, &self.progress, Some(&over), |range, bytes| {
                for part in bytes.map_or_else(Vec::new, |bytes| parts_with_data(range.start, bytes))
                {
                    let len = part.1.len() as u64;
                    target.write(part.1, part.0)?;
                    written += len;
                    behind.wrote(len)?;
                }
                Ok(())
            })
        })?;
        flush()?;
        Ok(exported(size, written, Some(&over)))
    }

    /// Copies the disk onto `to`, a disk at least as large that reads as zeros, such as a new image,
    /// and flushes it. Zeros are left out as in [`run`](Self::run), except for short ones between data:
    /// blocks of zeros alone take no space.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `to` is smaller than the disk, or writes to it would go to one of the files that
    /// supply the disk; as for [`Disk::read_at`] and [`Disk::write_at`]; [`ErrorKind::Cancelled`]. The contents of `to` are then unspecified.
    pub fn onto(self, disk: &dyn Disk, to: &dyn Disk) -> Result<Exported> {
        let _span = operation("export", "a disk");
        let (size, room) = (disk.geometry().size, to.geometry().size);
        if room < size {
            let message = "the target disk is smaller than the source";
            return Err(Error::new(ErrorKind::InvalidInput, "export.room", message)
                .with_found(format_args!("{room} bytes"))
                .with_expected(format_args!("at least {size}")));
        }
        if to.files().first().is_some_and(|own| disk.files().contains(own)) {
            return Err(onto_itself());
        }
        let image = ToImage::of(to);
        let over = image.as_ref().map(|to| HandOver::new(disk, to.file(), to, self.share));
        let mut written = 0;
        flush_behind(&|| to.flush(), |behind| {
            pieces(disk, &self.progress, over.as_ref(), |range, bytes| {
                let Some(bytes) = bytes else { return Ok(()) };
                for part in joined(&parts_with_data(range.start, bytes)) {
                    let place =
                        (part.start - range.start) as usize..(part.end - range.start) as usize;
                    to.write_at(&bytes[place], part.start)?;
                    written += part.end - part.start;
                    behind.wrote(part.end - part.start)?;
                }
                Ok(())
            })
        })?;
        to.flush()?;
        Ok(exported(size, written, over.as_ref()))
    }

    /// Writes every byte of the disk to `to`, in order.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn stream(self, disk: &dyn Disk, to: &mut dyn io::Write) -> Result<Exported> {
        let size = disk.geometry().size;
        let zeros = vec![0; WINDOW as usize];
        let failed = |at, error| Error::io("export.write", "cannot write the copy", error).at(at);
        pieces(disk, &self.progress, None, |range, bytes| {
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
        Ok(exported(size, size, None))
    }
}

fn exported(size: u64, written: u64, over: Option<&HandOver<'_>>) -> Exported {
    let (shared, by_hand) = over.map_or((0, 0), |over| (over.shared(), over.written()));
    Exported { size, written: written + by_hand + shared, handed_over: shared }
}

fn onto_itself() -> Error {
    let message = "the target of a copy is one of its sources";
    Error::new(ErrorKind::InvalidInput, "export.own-source", message)
        .with_found("a file that supplies the disk")
        .with_expected("another file")
}

/// What a piece of the disk is, and what becomes of it.
#[derive(Clone, Copy)]
enum Piece {
    Zeros,
    /// Bytes that were read.
    Read,
    /// To be handed over to the host.
    Shared,
}

/// Passes the disk to `take` piece by piece: the bytes that were read, or `None` for zeros. What the host can share goes
/// to `over` instead.
fn pieces(
    disk: &dyn Disk,
    progress: &Listener<'_>,
    over: Option<&HandOver<'_>>,
    mut take: impl FnMut(Range<u64>, Option<&[u8]>) -> Result<()>,
) -> Result<()> {
    let size = disk.geometry().size;
    let mut runs = DiskRuns::new(disk);
    let mut shareable = over.and_then(HandOver::shareable);
    let mut at = 0;
    let read = move |buf: &mut Vec<u8>| {
        if at == size {
            return Ok(None);
        }
        let (end, piece) = next_piece(&mut runs, shareable.as_mut(), at)?;
        if matches!(piece, Piece::Read) {
            buf.resize((end - at) as usize, 0);
            disk.read_at(buf, at)?;
        }
        let range = at..end;
        at = end;
        Ok(Some((range, piece)))
    };
    progress.report(0, size)?;
    read_ahead(read, |(range, piece), bytes| {
        let end = range.end;
        match (piece, over) {
            (Piece::Shared, Some(over)) => over.hand_over(range)?,
            (Piece::Zeros, _) => take(range, None)?,
            (Piece::Read | Piece::Shared, _) => take(range, Some(bytes))?,
        }
        progress.report(end, size)
    })
}

/// Returns where the piece at `at` ends, and what it is.
fn next_piece(
    runs: &mut DiskRuns<'_>,
    shareable: Option<&mut Shareable<'_>>,
    at: u64,
) -> Result<(u64, Piece)> {
    let run = runs.at(at)?;
    if run.is_zero() {
        return Ok((run.end, Piece::Zeros));
    }
    // A whole piece, past the end of the run: small extents would cause small reads.
    let end = runs.size.min((at / PIECE + 1) * PIECE);
    let Some(shareable) = shareable else { return Ok((end, Piece::Read)) };
    let mut next = at;
    while next < end {
        match shareable.next_part(runs, next)? {
            Some(part) if part.start == at => return Ok((part.end, Piece::Shared)),
            Some(part) => return Ok((part.start.min(end), Piece::Read)),
            None => next = runs.at(next)?.end,
        }
    }
    Ok((end, Piece::Read))
}

/// Returns the parts of `bytes`, which start at `at`, that are not zeros, with their offsets, in units of [`GRAIN`].
pub(super) fn parts_with_data(at: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
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

/// Returns the ranges of the parts, joining those with only [`SHORT`] zeros between them.
pub(super) fn joined(parts: &[(u64, &[u8])]) -> Vec<Range<u64>> {
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
        // From the middle of a page: pages are aligned in the file, not in the buffer.
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
