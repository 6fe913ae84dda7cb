//! Puts an image on another base without changing its disk.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::child::current_path;
use super::new_parent::{NewParent, left_to_parent};
use super::pair::DiskPair;
use super::{FileChangeKind, Forecast, Listener, Pace, Progress, WINDOW};
use crate::chain::DiffChain;
use crate::disk::{Disk, Source, Zeroing};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, PayloadState};
use crate::image::{Core, is_zero};
use crate::mover::{PIECE, flush_behind, read_ahead};
use crate::options::OpenOptions;
use crate::storage::Access;
use crate::trace::operation;
use crate::types::{DiskOffset, len};
use crate::warning::Warning;
use crate::write::Writer;

/// Puts a differencing image on another base, and keeps its disk as it is: where the image defers to its parent and the
/// new base differs, the bytes of the old parent are written into the image first.
///
/// Only what may differ is read. Layers that both parents have in common, and zeros, are known from the tables; the rest
/// is read from both, and only sectors that differ are written, to the block allocation table alone where whole blocks
/// are zeros. So the base may be an ancestor of the present parent, which takes the layers between into the image; or any
/// other image, of another size or block size.
///
/// All of that is durable before one step changes the link. The old link is valid until the new one is durable, and the
/// image reads the same over both: after a crash or a failure at any point, nothing has changed for its reader, and
/// another run reads and writes what is left. The image keeps its identity, and its children are unaffected.
///
/// Neither parent is written to. The image must not be in use: machines that write to it have to stop meanwhile.
///
/// [`Reparent`](super::Reparent) changes the link alone, where that leaves the disk as it is.
///
/// ```no_run
/// use avhdx::ops::Rebase;
///
/// let done = Rebase::new("/vm/base-2.vhdx").run("/vm/web_1A2B.avhdx")?;
/// println!("{} bytes were taken into the image", done.written);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rebase<'a> {
    base: PathBuf,
    options: OpenOptions,
    pace: Pace,
    progress: Listener<'a>,
}

/// The result of a rebase.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rebased {
    /// The path of the image, unless the warning `op.renamed` says that it is unknown.
    pub path: PathBuf,
    /// The path of the base as recorded in the image; the warning `op.renamed` says if another file has that name by
    /// now.
    pub parent: PathBuf,
    /// The identity of the base, \[MS-VHDX\] 2.6.2.6.3.
    pub linkage: Uuid,
    /// Whether the base was the parent already, so that there was nothing to do.
    pub was_parent: bool,
    /// Bytes of data read from both parents.
    pub read: u64,
    /// Bytes of the disk written into the image.
    pub written: u64,
    /// Bytes of the disk that the image now has as blocks of zeros, which take no space.
    pub zeroed: u64,
    /// Warnings from all images that were opened.
    pub warnings: Vec<Warning>,
}

impl<'a> Rebase<'a> {
    /// Makes the image at `base` the parent, with its own parents below it.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        let (options, pace) = (OpenOptions::new(), Pace::new());
        Self { base: base.into(), options, pace, progress: Listener::default() }
    }

    /// How to open the images: the host, the memory budget, and where parents come from, both those of the image and
    /// those of the base. Identities are always verified and logs always replayed.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Limits how fast both parents are read.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`]; what was written into the
    /// image stays, and shortens the next run.
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do at most: bytes that turn out to be the same need not be written, and take
    /// no space. Reads no data of the disk and changes nothing.
    ///
    /// # Errors
    /// As for `run`.
    pub fn forecast(&self, image: impl AsRef<Path>) -> Result<Forecast> {
        let new = self.open(image.as_ref(), Access::Read)?;
        let path = new.held.storage.path().unwrap_or(image.as_ref());
        let mut forecast = Forecast::on(new.held.options.host_used().as_ref(), path)?;
        let link = new.link_len()?;
        if link == 0 {
            return Ok(forecast);
        }
        forecast.add(path, FileChangeKind::Changed);
        forecast.written = link;
        let Some(old) = old_parent(&new)? else { return Ok(forecast) };
        let mut both = DiskPair::new(&old, &new.base)?;
        let mut space = Space { image: &new.held.image, chunk: None };
        // The last block looked at, and whether the table alone can hold it.
        let mut block = (u64::MAX, false);
        for range in left_to_parent(&new.held.image) {
            let range = range?;
            let mut at = range.start;
            while at < range.end {
                let (end, bytes) = both.predict(at, range.end)?;
                forecast.read += bytes;
                let differing = if bytes > 0 { at..end } else { end..end };
                for part in blocks(&new.held.image, differing) {
                    let whole = block_of(&new.held.image, part.start);
                    if block.0 != whole.start {
                        block = (whole.start, is_block_of_zeros(&whole, &range, &old)?);
                        forecast.peak += if block.1 { 0 } else { space.needed_at(part.start)? };
                    }
                    forecast.written += if block.1 { 0 } else { len(&part) };
                }
                at = end;
            }
        }
        Ok(forecast)
    }

    /// Puts the image at `image` on the base.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::InvalidInput`] if the image has no parent, if the base is the image itself
    /// or one of its descendants, or if their logical sector sizes differ; [`ErrorKind::Merged`] and
    /// [`ErrorKind::Unfinished`] if a merge of either is unfinished; [`ErrorKind::InUse`]; for the present parent, if the
    /// image leaves bytes to it, and for the base, as [`OpenOptions::open`](crate::OpenOptions::open). Later
    /// [`ErrorKind::Cancelled`], and as [`Disk::read_at`] and [`Disk::write_at`]: the image then has the old link, and
    /// reads as before. While the link is changed [`ErrorKind::Io`] and [`ErrorKind::Poisoned`]: the image then has
    /// either link, and reads as before.
    pub fn run(self, image: impl AsRef<Path>) -> Result<Rebased> {
        let _span = operation("rebase", &image.as_ref().to_string_lossy());
        let mut new = self.open(image.as_ref(), Access::ReadWrite)?;
        let was_parent = new.link_len()? == 0;
        let mut moved = Moved::default();
        let old = if was_parent { None } else { old_parent(&new)? };
        let writer = new.held.writer()?;
        new.held.warnings.extend(writer.core().warnings().iter().cloned());
        let done = (|| {
            if let Some(old) = &old {
                moved = self.take_in(&writer, old, &new.base)?;
            }
            // The metadata of a commit become durable before its tables: the link needs one of its own.
            writer.commit()?;
            if was_parent { Ok(()) } else { new.relink(&writer) }
        })();
        // What was taken in before a failure is kept.
        let closed = writer.close();
        done.and(closed)?;
        let host = new.held.options.host_used().as_ref();
        let known = new.held.image.path().map(Path::to_path_buf).unwrap_or_default();
        let linkage = new.base.tip_image().data_write_guid();
        current_path(host, &new.base.tip_image(), &mut new.held.warnings);
        let path = current_path(host, &new.held.image, &mut new.held.warnings).unwrap_or(known);
        let (parent, warnings) = (new.base_path, new.held.warnings);
        let Moved { read, written, zeroed } = moved;
        Ok(Rebased { path, parent, linkage, was_parent, read, written, zeroed, warnings })
    }

    fn open(&self, image: &Path, access: Access) -> Result<NewParent> {
        let new = NewParent::open(&self.options, image, &self.base, access, false)?;
        new.held.image.check_states()?;
        Ok(new)
    }

    /// Writes into the image what it leaves to the old parent and the base has differently.
    fn take_in(&self, image: &Writer, old: &DiffChain, base: &DiffChain) -> Result<Moved> {
        let size = image.core().geometry().size;
        let mut differing = Differing::new(image.core(), old, base)?;
        let mut into = Taker { image, moved: Moved::default(), zeros: 0..0, has_begun: false };
        let (mut at, mut reported) = (0, 0);
        self.progress.report(0, size)?;
        // A run after a kill need not take in again what was made durable meanwhile.
        flush_behind(&|| image.commit(), |behind| {
            read_ahead(
                |buf| differing.next_piece(buf),
                |Piece { parts, end, read }, bytes| {
                    let mut go_on = || self.progress.call(Progress::new(at, size));
                    if read > 0 && self.pace.wait(read, &mut go_on).is_break() {
                        return Err(Error::cancelled());
                    }
                    into.moved.read += read;
                    let before = into.moved.written;
                    into.take(parts, bytes)?;
                    behind.wrote(into.moved.written - before)?;
                    at = end;
                    if at - reported >= WINDOW {
                        self.progress.report(at, size)?;
                        reported = at;
                    }
                    Ok(())
                },
            )
        })?;
        into.write_zeros()?;
        self.progress.report(size, size)?;
        Ok(into.moved)
    }
}

/// What an image leaves to the old parent and the base has differently, looked for in ascending order.
struct Differing<'a> {
    image: &'a Core,
    old: &'a DiffChain,
    both: DiskPair<'a>,
    sector: u64,
    /// The ranges that the image leaves to its parent.
    left: Box<dyn Iterator<Item = Result<Range<u64>>> + Send + 'a>,
    /// The last of them, and how far it was looked through.
    range: Range<u64>,
    at: u64,
    /// Start of the last block that is known not to be one of zeros.
    holds_data: Option<u64>,
    /// Comes after what was found before it.
    failed: Option<Error>,
}

/// Some of what differs.
#[derive(Default)]
struct Piece {
    parts: Vec<Part>,
    /// How far the disks were looked through.
    end: u64,
    /// Bytes of data read from both parents.
    read: u64,
}

/// A part of one block.
enum Part {
    /// A whole block that the old parent has as zeros.
    Block(Range<u64>),
    /// Sectors that differ. Their bytes follow those of the part before.
    Sectors(Range<u64>),
}

impl<'a> Differing<'a> {
    fn new(image: &'a Core, old: &'a DiffChain, base: &'a DiffChain) -> Result<Self> {
        Ok(Self {
            image,
            old,
            both: DiskPair::new(old, base)?,
            sector: image.geometry().logical_sector.into(),
            left: Box::new(left_to_parent(image)),
            range: 0..0,
            at: 0,
            holds_data: None,
            failed: None,
        })
    }

    /// Finds the next parts that differ, and puts the bytes of the old parent into the buffer. `None` at the end.
    fn next_piece(&mut self, buf: &mut Vec<u8>) -> Result<Option<Piece>> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        buf.clear();
        let mut piece = Piece::default();
        let from = self.at;
        let mut done = Ok(true);
        while matches!(done, Ok(true)) && (buf.len() as u64) < PIECE && self.at - from < WINDOW {
            done = self.look_on(&mut piece, buf);
        }
        piece.end = self.at;
        let is_empty = piece.end == from && piece.parts.is_empty();
        match done {
            Ok(false) if is_empty => Ok(None),
            Err(error) if is_empty => Err(error),
            done => {
                self.failed = done.err();
                Ok(Some(piece))
            }
        }
    }

    /// Looks through the next bytes that have one answer; `false` at the end.
    fn look_on(&mut self, piece: &mut Piece, buf: &mut Vec<u8>) -> Result<bool> {
        if self.at >= self.range.end {
            let Some(range) = self.left.next() else { return Ok(false) };
            self.range = range?;
            self.at = self.at.max(self.range.start);
            return Ok(true);
        }
        let most = self.range.end.min((self.at / PIECE + 1) * PIECE);
        let (_, bytes) = self.both.predict(self.at, most)?;
        let (end, has_read) = self.both.read_sectors(self.at, most, self.sector)?;
        piece.read += bytes;
        self.at = if has_read { self.sectors(end, piece, buf)? } else { end };
        Ok(true)
    }

    /// Finds the sectors that differ in what was read up to `end`. Returns how far everything is found: past that if a
    /// block that it ends in is one of zeros.
    fn sectors(&mut self, end: u64, piece: &mut Piece, buf: &mut Vec<u8>) -> Result<u64> {
        let start = self.at;
        let mut done = start;
        let mut at = start;
        while let Some(differing) = self.both.differing(start, at, self.sector) {
            at = differing.end;
            for part in blocks(self.image, differing) {
                let block = block_of(self.image, part.start);
                if part.start < done {
                    // Of a block of zeros.
                } else if self.is_of_zeros(&block)? {
                    done = block.end;
                    piece.parts.push(Part::Block(block));
                } else {
                    let within = (part.start - start) as usize;
                    buf.extend_from_slice(&self.both.bytes()[0][within..][..len(&part) as usize]);
                    piece.parts.push(Part::Sectors(part));
                }
            }
        }
        Ok(done.max(end))
    }

    fn is_of_zeros(&mut self, block: &Range<u64>) -> Result<bool> {
        if self.holds_data == Some(block.start) {
            return Ok(false);
        }
        let is_of_zeros = is_block_of_zeros(block, &self.range, self.old)?;
        if !is_of_zeros {
            self.holds_data = Some(block.start);
        }
        Ok(is_of_zeros)
    }
}

/// Bytes of data read, and bytes of the disk written into the image.
#[derive(Clone, Copy, Default)]
struct Moved {
    read: u64,
    written: u64,
    zeroed: u64,
}

/// The image that takes in bytes, in ascending order. Its disk reads as before throughout.
struct Taker<'a> {
    image: &'a Writer,
    moved: Moved,
    /// Zeros that are not written yet: more of them may make whole blocks.
    zeros: Range<u64>,
    has_begun: bool,
}

impl Taker<'_> {
    /// Takes in parts, of which the bytes of the old parent are given.
    fn take(&mut self, parts: Vec<Part>, mut bytes: &[u8]) -> Result<()> {
        for part in parts {
            match part {
                Part::Block(block) => self.zeros(block)?,
                Part::Sectors(range) => {
                    let (now, rest) = bytes.split_at(len(&range) as usize);
                    self.bytes(now, range.start)?;
                    bytes = rest;
                }
            }
        }
        Ok(())
    }

    /// Takes in bytes within one block.
    fn bytes(&mut self, bytes: &[u8], at: u64) -> Result<()> {
        let range = at..at + bytes.len() as u64;
        if is_zero(bytes) {
            return self.zeros(range);
        }
        self.write_zeros()?;
        self.begin()?;
        self.moved.written += len(&range);
        self.image.write_at(bytes, at)
    }

    /// Takes in zeros.
    fn zeros(&mut self, range: Range<u64>) -> Result<()> {
        if self.zeros.end != range.start {
            self.write_zeros()?;
            self.zeros.start = range.start;
        }
        self.zeros.end = range.end;
        Ok(())
    }

    fn write_zeros(&mut self) -> Result<()> {
        let image = self.image;
        let core = image.core();
        let zeros = std::mem::take(&mut self.zeros);
        for part in blocks(core, zeros) {
            self.begin()?;
            let is_block = part == block_of(core, part.start);
            *(if is_block { &mut self.moved.zeroed } else { &mut self.moved.written }) +=
                len(&part);
            image.write_zeroes(part, Zeroing::MayUnmap)?;
        }
        Ok(())
    }

    /// Has the image keep its identity.
    fn begin(&mut self) -> Result<()> {
        if !self.has_begun {
            self.image.keep_identity()?;
            self.has_begun = true;
        }
        Ok(())
    }
}

/// What the blocks that the image does not have yet take, in ascending order.
struct Space<'a> {
    image: &'a Core,
    /// The last chunk whose sector bitmap is counted.
    chunk: Option<u64>,
}

impl Space<'_> {
    /// The space for the block at `at` and its sector bitmap.
    fn needed_at(&mut self, at: u64) -> Result<u64> {
        let layout = self.image.layout();
        let block = layout.block_of(DiskOffset(at));
        let entry = self.image.bat_entry(layout.payload_index(block))?;
        if entry.payload_state() == PayloadState::PartiallyPresent {
            return Ok(0);
        }
        let chunk = layout.chunk_of(block);
        let bitmap = self.image.bat_entry(layout.bitmap_index(chunk))?;
        let is_new = bitmap.state_bits() != 6 && self.chunk.replace(chunk.0) != Some(chunk.0);
        Ok(layout.block_size() + if is_new { BITMAP_BLOCK_LEN } else { 0 })
    }
}

/// Opens the disk below the image, or returns `None` if it cannot be opened and the image leaves no bytes to it.
fn old_parent(new: &NewParent) -> Result<Option<DiffChain>> {
    match new.old_parent() {
        Ok(old) => Ok(Some(old)),
        Err(error) => match new.bytes_left_to_parent()? {
            0 => Ok(None),
            _ => Err(error),
        },
    }
}

/// The block of the disk at `at`; the last one ends with the disk.
fn block_of(image: &Core, at: u64) -> Range<u64> {
    let block = u64::from(image.block_size());
    let start = at / block * block;
    start..(start + block).min(image.geometry().size)
}

/// A range of the disk, divided into blocks.
fn blocks(image: &Core, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = block_of(image, start).end.min(range.end);
        (start < at).then_some(start..at)
    })
}

/// Whether a block is one of zeros, as the tables tell, that the image leaves to its parent as a whole: within `left`.
fn is_block_of_zeros(block: &Range<u64>, left: &Range<u64>, old: &DiffChain) -> Result<bool> {
    if block.start < left.start || left.end < block.end {
        return Ok(false);
    }
    // Zeros follow the end of the parent.
    let end = block.end.min(old.geometry().size);
    let mut at = block.start;
    while at < end {
        match old.next_extent(at..end) {
            Ok(Some(extent)) if matches!(extent.source, Source::Zero { .. }) => {
                at = extent.range.end;
            }
            Ok(None) => return Ok(true),
            Ok(Some(_)) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::LogOverlay => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
