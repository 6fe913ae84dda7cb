//! Takes in a disk that arrives as a stream.

use std::io::{self, Read};
use std::ops::ControlFlow;

use super::export::{joined, parts_with_data};
use super::{Listener, Progress, WINDOW};
use crate::disk::{Disk, Source};
use crate::error::{Error, ErrorKind, Result};
use crate::file::VhdxFile;
use crate::format::metadata::MAX_VIRTUAL_SIZE;
use crate::storage::Storage;
use crate::trace::operation;

/// Takes in a disk without a format from a stream, such as a pipe, from start to end. Memory does not grow with the disk.
///
/// Zeros are not written. The end of the stream is taken for the end of the disk: a pipe does not tell whether its
/// writer finished or failed.
///
/// ```
/// use avhdx::ops::Import;
/// use avhdx::storage::MemStorage;
///
/// let mut stream: &[u8] = &[7; 9000];
/// let disk = MemStorage::new(Vec::new());
/// let imported = Import::new().run(&mut stream, &disk)?;
/// assert_eq!((imported.size, disk.into_bytes()), (9000, vec![7; 9000]));
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Import<'a> {
    size: Option<u64>,
    progress: Listener<'a>,
}

/// The result of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes taken from the stream.
    pub read: u64,
    /// Bytes written; the rest are zeros that a file need not store.
    pub written: u64,
}

impl<'a> Import<'a> {
    /// Imports up to the end of the stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Size of the disk in bytes. A shorter stream is followed by zeros, a longer one is an error. By default the disk
    /// ends with the stream.
    pub fn size(self, bytes: u64) -> Self {
        Self { size: Some(bytes), ..self }
    }

    /// Calls `on` while the operation runs, with a total of 0 if the [size](Self::size) is unknown. A break stops it with
    /// [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Makes the file `to` the disk, durably. The previous contents of the file are lost.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the stream is empty or longer than the [size](Self::size), or a file cannot have
    /// that size; [`ErrorKind::Io`] if the stream
    /// cannot be read or the host cannot write; [`ErrorKind::Cancelled`]. The file is then
    /// incomplete.
    pub fn run(self, from: &mut dyn Read, to: &dyn Storage) -> Result<Imported> {
        let _span = operation("import", to.name());
        let failed = |at: u64, error| {
            Error::io("import.write", "cannot write the disk", error).in_file(to.name()).at(at)
        };
        if let Some(size) = self.size.filter(|size| i64::try_from(*size).is_err()) {
            return Err(too_large(size, i64::MAX.cast_unsigned(), "a file"));
        }
        // First, so that a disk too large for the file system is refused before the stream is taken.
        let start = to.set_len(0).and_then(|()| to.set_len(self.size.unwrap_or(0)));
        start.map_err(|error| failed(0, error))?;
        let mut written = 0;
        let read = self.pieces(from, u64::MAX, |at, bytes| {
            for (at, part) in parts_with_data(at, bytes) {
                to.write_at(part, at).map_err(|error| failed(at, error))?;
                written += part.len() as u64;
            }
            Ok(())
        })?;
        let size = self.size.unwrap_or(read);
        if size == 0 {
            return Err(empty());
        }
        to.set_len(size).and_then(|()| to.flush()).map_err(|error| failed(size, error))?;
        Ok(Imported { size, read, written })
    }

    /// Writes the disk into `image`, a new one without a parent, and flushes it. The image gets the size of the disk,
    /// rounded up to a whole sector, and grows meanwhile as needed: a dynamic image takes no space for that. Short zeros
    /// between data are written along.
    ///
    /// # Errors
    /// As for [`run`](Self::run), [`Disk::write_at`] and [`Disk::flush`]; [`ErrorKind::ReadOnly`] if the image is not
    /// open for writing, and [`ErrorKind::InvalidInput`] if it has a parent or data, or the stream is longer than an image
    /// can be.
    pub fn into_image(
        self,
        from: &mut dyn Read,
        mut image: VhdxFile,
    ) -> Result<(VhdxFile, Imported)> {
        let _span = operation("import", image.name());
        let sector = u64::from(image.geometry().logical_sector);
        refuse_used(&image)?;
        if let Some(size) = self.size.filter(|size| *size > MAX_VIRTUAL_SIZE) {
            return Err(too_large(size, MAX_VIRTUAL_SIZE, "an image"));
        }
        let mut written = 0;
        let read = self.pieces(from, MAX_VIRTUAL_SIZE, |at, bytes| {
            let parts = joined(&parts_with_data(at, bytes));
            if let Some(last) = parts.last() {
                make_room(&mut image, last.end)?;
            }
            for part in parts {
                let place = (part.start - at) as usize..(part.end - at) as usize;
                image.write_at(&bytes[place], part.start)?;
                written += part.end - part.start;
            }
            Ok(())
        })?;
        let size = self.size.unwrap_or(read);
        if size == 0 {
            return Err(empty());
        }
        let size = size.next_multiple_of(sector);
        set_size(&mut image, size)?;
        image.flush()?;
        Ok((image, Imported { size, read, written }))
    }

    /// Passes the stream, of at most `most` bytes, to `take` piece by piece, with the offset of each. Returns its length.
    fn pieces(
        &self,
        from: &mut dyn Read,
        most: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<u64> {
        let most = self.size.unwrap_or(most);
        let mut buf = vec![0; WINDOW as usize];
        let mut at = 0;
        loop {
            self.progress.report(at, self.size.unwrap_or(0))?;
            let filled = fill(from, &mut buf)
                .map_err(|error| Error::io("import.read", "cannot read the input", error).at(at))?;
            if filled as u64 > most - at {
                let message = "the input is longer than the disk can be";
                return Err(Error::new(ErrorKind::InvalidInput, "import.too-long", message)
                    .with_found("more bytes")
                    .with_expected(format_args!("at most {most}")));
            }
            take(at, &buf[..filled])?;
            at += filled as u64;
            if filled < buf.len() {
                return Ok(at);
            }
        }
    }
}

/// The refusal of an empty stream: more likely a writer that failed than a disk of no bytes.
fn empty() -> Error {
    Error::new(ErrorKind::InvalidInput, "import.empty", "the input is empty")
        .with_expected("at least one byte")
}

/// The refusal of a size that is known to be too large before the stream is read.
fn too_large(size: u64, most: u64, what: &str) -> Error {
    let message = format!("the disk is larger than {what} can be");
    Error::new(ErrorKind::InvalidInput, "import.too-long", message)
        .with_found(format_args!("{size} bytes"))
        .with_expected(format_args!("at most {most}"))
}

/// Refuses an image whose bytes would show where the stream has zeros.
fn refuse_used(image: &VhdxFile) -> Result<()> {
    let found = match image.has_parent() {
        true => Some("an image with a parent".to_owned()),
        // The blocks of a fixed image are there from the start.
        false if image.info().leave_blocks_allocated => None,
        false => {
            let first = image.next_extent(0..image.geometry().size)?;
            let data = first.filter(|extent| matches!(extent.source, Source::Data { .. }));
            data.map(|extent| format!("data at {}", extent.range.start))
        }
    };
    found.map_or(Ok(()), |found| {
        let message = "a disk can be taken into a new image only";
        Err(Error::new(ErrorKind::InvalidInput, "import.not-new", message)
            .in_file(image.name())
            .with_found(found)
            .with_expected("an image without a parent and without data"))
    })
}

/// Doubles the disk until it has `end` bytes.
fn make_room(image: &mut VhdxFile, end: u64) -> Result<()> {
    let mut size = image.geometry().size;
    while size < end {
        size = size.saturating_mul(2).min(MAX_VIRTUAL_SIZE);
    }
    set_size(image, size)
}

fn set_size(image: &mut VhdxFile, size: u64) -> Result<()> {
    if image.geometry().size != size {
        *image = image.resized(size)?;
    }
    Ok(())
}

/// Reads until the buffer is full or the stream ends.
fn fill(from: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match from.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(read) if read <= buf.len() - filled => filled += read,
            Ok(_) => return Err(io::Error::other("it claims more bytes than there was room for")),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
