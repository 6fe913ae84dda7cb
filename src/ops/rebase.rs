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
use crate::options::OpenOptions;
use crate::storage::Access;
use crate::trace::operation;
use crate::types::{DiskOffset, MIB, len};
use crate::warning::Warning;
use crate::write::Writer;

/// How many bytes are taken in before they are made durable, so that a run after a kill need not take them in again.
const BATCH: u64 = 256 * MIB;

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
        NewParent::open(&self.options, image, &self.base, access, false)
    }

    /// Writes into the image what it leaves to the old parent and the base has differently.
    fn take_in(&self, image: &Writer, old: &DiffChain, base: &DiffChain) -> Result<Moved> {
        let core = image.core();
        let (size, sector) = (core.geometry().size, u64::from(core.geometry().logical_sector));
        let mut both = DiskPair::new(old, base)?;
        let mut into = Taker {
            image,
            moved: Moved::default(),
            zeros: 0..0,
            holds_data: None,
            has_begun: false,
        };
        let (mut reported, mut durable) = (0, 0);
        self.progress.report(0, size)?;
        for range in left_to_parent(core) {
            let range = range?;
            let mut at = range.start;
            while at < range.end {
                let (_, bytes) = both.predict(at, range.end)?;
                let mut go_on = || self.progress.call(Progress::new(at, size));
                if bytes > 0 && self.pace.wait(bytes, &mut go_on).is_break() {
                    return Err(Error::cancelled());
                }
                let (end, has_read) = both.read_sectors(at, range.end, sector)?;
                into.moved.read += bytes;
                let end = match has_read {
                    true => into.sectors(at..end, both.bytes(), &range, old)?,
                    false => end,
                };
                at = end;
                if into.moved.written - durable >= BATCH {
                    image.commit()?;
                    durable = into.moved.written;
                }
                if at - reported >= WINDOW {
                    self.progress.report(at, size)?;
                    reported = at;
                }
            }
        }
        into.write_zeros()?;
        self.progress.report(size, size)?;
        Ok(into.moved)
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
    /// Start of the last block that is known not to be one of zeros.
    holds_data: Option<u64>,
    has_begun: bool,
}

impl Taker<'_> {
    /// Takes in the sectors of `range` that differ, of which the bytes of the old parent and of the base are given. The
    /// image leaves all of `left` to its parent. Returns how far everything is taken in: past the range if a block that
    /// it ends in is one of zeros.
    fn sectors(
        &mut self,
        range: Range<u64>,
        bytes: [&[u8]; 2],
        left: &Range<u64>,
        old: &DiffChain,
    ) -> Result<u64> {
        let image = self.image;
        let core = image.core();
        let sector = core.geometry().logical_sector as usize;
        let mut done = range.start;
        for differing in differing(bytes, sector) {
            let differing = range.start + differing.start..range.start + differing.end;
            for part in blocks(core, differing) {
                let block = block_of(core, part.start);
                if part.start < done {
                    // Of a block of zeros.
                } else if self.is_of_zeros(&block, left, old)? {
                    done = block.end;
                    self.zeros(block)?;
                } else {
                    let within = (part.start - range.start) as usize;
                    let within = within..within + len(&part) as usize;
                    self.bytes(&bytes[0][within], part.start)?;
                }
            }
        }
        Ok(done.max(range.end))
    }

    fn is_of_zeros(
        &mut self,
        block: &Range<u64>,
        left: &Range<u64>,
        old: &DiffChain,
    ) -> Result<bool> {
        if self.holds_data == Some(block.start) {
            return Ok(false);
        }
        let is_of_zeros = is_block_of_zeros(block, left, old)?;
        if !is_of_zeros {
            self.holds_data = Some(block.start);
        }
        Ok(is_of_zeros)
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

/// The ranges of whole sectors that differ.
fn differing([old, new]: [&[u8]; 2], sector: usize) -> impl Iterator<Item = Range<u64>> + '_ {
    let sectors = old.chunks(sector).zip(new.chunks(sector));
    let mut differing = sectors.enumerate().filter(|(_, (old, new))| old != new).map(|(n, _)| n);
    let mut next = differing.next();
    std::iter::from_fn(move || {
        let first = next?;
        let mut end = first + 1;
        next = differing.next();
        while next == Some(end) {
            end += 1;
            next = differing.next();
        }
        Some((first * sector) as u64..(end * sector) as u64)
    })
}
