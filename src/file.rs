//! The image as its user has it: with the rights that he asked for, and no others.

use std::fmt;
use std::io::IoSliceMut;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};

use uuid::Uuid;

use crate::counters::Counters;
use crate::disk::{Disk, Extent, Geometry, LayerId, Zeroing};
use crate::error::{Error, ErrorKind, Result};
use crate::image::ImagePolicy;
use crate::image::open_storage;
use crate::image::{BlockCounts, CheckpointMark, Core, ImageInfo, MergeMark, ParentLink};
use crate::read::Layer;
use crate::storage::Access;
use crate::storage::FileId;
use crate::storage::LocalHost;
use crate::warning::Warning;
use crate::write::{OpenImage, Writer};

/// One VHDX image: fixed, dynamic, or a differencing one looked at alone.
///
/// As a [`Disk`], a differencing image serves what it holds itself and answers
/// [`ErrorKind::ParentRequired`] for what only its parent has; a [`DiffChain`](crate::DiffChain)
/// puts the two together. A log that is not empty is replayed in memory and the file stays as it is,
/// unless the image is opened for writing: then it is replayed to the file.
///
/// An image that a chain [hands out](crate::DiffChain::image) takes no writes, whatever the chain takes. While
/// an operation works on that layer it reads as the file then is, and it goes on when the operation is over.
///
/// # After a failure
///
/// What was flushed is never at stake. Beyond that:
///
/// - A write, zeros or a discard that fails for want of space, or because payload could not be written
///   or a file not be read, fails alone ([`ErrorKind::Io`]): each 512 bytes of its range read as before
///   or as written, nothing else changed, and the image goes on. A machine can be paused until there is
///   space, and the call be made again.
/// - A header, the log or the block tables that cannot be written, and any failed
///   [`flush`](Disk::flush) or [`close`](Self::close), poison the image: nothing is written to the file
///   any more, every later change, flush and close fails with [`ErrorKind::Poisoned`], and reads go on
///   with what the host has. A flush is not tried again, for the host may have dropped what it was to
///   write and call the next one a success. Opening the image anew recovers what is there.
/// - A failed open changes nothing that the next one does not make good.
///
/// ```no_run
/// use avhdx::{Disk, VhdxFile};
///
/// let image = VhdxFile::open("base.vhdx")?;
/// println!("{} bytes", image.geometry().size);
/// # Ok::<(), avhdx::Error>(())
/// ```
pub struct VhdxFile(Handle);

enum Handle {
    /// Opened by itself: what it takes is what was asked for.
    Own { layer: Layer, writer: Option<Arc<Writer>> },
    /// Shared with a chain, and only to be read.
    Shared(Arc<Seat>),
}

/// A layer's place in a chain, whose handle an operation may replace by another of the same file. Who was given
/// the layer goes on with the newer one.
pub(crate) struct Seat {
    layer: Layer,
    /// The chain's writer of it, to be asked for an identity that a child may link to, and for nothing else.
    writer: Weak<Writer>,
    /// Those who are at the image by way of this seat.
    users: AtomicUsize,
    next: OnceLock<Arc<Self>>,
    before: Weak<Self>,
}

/// Keeps a handle from being taken for one that nobody uses.
struct User<'a>(&'a Seat);

impl VhdxFile {
    /// Opens the image at `path` for reading, with the defaults of [`OpenOptions`](crate::OpenOptions).
    ///
    /// # Errors
    /// As [`OpenOptions::open_image`](crate::OpenOptions::open_image).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let storage = open_storage(&LocalHost, path.as_ref(), Access::Read)?;
        OpenImage::read(storage, &ImagePolicy::default()).map(Self::own)
    }

    /// What names this image among the layers of this process. An operation that opens the file anew gives it
    /// another.
    pub fn id(&self) -> LayerId {
        self.latest().id()
    }

    /// What errors call the file, usually its path.
    pub fn name(&self) -> &str {
        self.latest().name()
    }

    /// Where the file lies, if it lies in a folder, symbolic links resolved.
    pub fn path(&self) -> Option<&Path> {
        self.latest().path()
    }

    /// The name that it was opened by, where symbolic links led from that to [`path`](Self::path).
    pub fn via(&self) -> Option<&Path> {
        self.latest().via()
    }

    /// The identity that children of this image record, \[MS-VHDX\] 2.2.2.
    pub fn data_write_guid(&self) -> Uuid {
        self.latest().data_write_guid()
    }

    /// Whether this is a differencing image.
    pub fn has_parent(&self) -> bool {
        self.latest().has_parent()
    }

    /// Bytes of a payload block, a power of two from 1 MiB to 256 MiB.
    pub fn block_size(&self) -> u32 {
        self.latest().block_size()
    }

    /// The link to the parent, `None` where there is none, \[MS-VHDX\] 2.6.2.6.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the locator has no valid `parent_linkage`.
    pub fn parent_link(&self) -> Result<Option<ParentLink>> {
        self.latest().parent_link()
    }

    /// What the point in time below this image is called, where a checkpoint made the image.
    pub fn checkpoint(&self) -> Option<CheckpointMark> {
        self.latest().checkpoint()
    }

    /// The merge that concerns this image and is not over, if there is one.
    pub fn merge_mark(&self) -> Option<MergeMark> {
        self.latest().merge_mark()
    }

    /// What the user of the image should hear of.
    pub fn warnings(&self) -> &[Warning] {
        self.latest().warnings()
    }

    /// Whether the image was opened for writing, by whoever has it.
    pub fn is_writable(&self) -> bool {
        self.writer().is_some()
    }

    /// Everything that the image says of itself, but for the block tables.
    pub fn info(&self) -> ImageInfo {
        self.latest().info()
    }

    /// Counts the blocks by state. Reads the whole block allocation table.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the table cannot be read.
    pub fn count_blocks(&self) -> Result<BlockCounts> {
        self.with(|image| image.count_blocks())
    }

    /// What was done since the image was opened.
    pub fn counters(&self) -> Counters {
        self.latest().counters()
    }

    /// Makes all durable and leaves the log empty, so that any reader takes the file, and cuts off what
    /// the file was grown by and does not need, but for what a plan of a read may name. Dropping the image does
    /// the same but cannot report. Where the image is not open for writing there is nothing to be done.
    ///
    /// # Errors
    /// As [`Disk::flush`], and with the same effect: what was flushed before is safe all the same.
    pub fn close(&self) -> Result<()> {
        self.writer().map_or(Ok(()), |writer| writer.close())
    }

    /// An image that takes what it was opened for.
    pub(crate) fn own(OpenImage { core, writer }: OpenImage) -> Self {
        Self(Handle::Own { layer: Layer::alone(core), writer })
    }

    /// The image of a layer, for reading whatever the layer is open for.
    pub(crate) fn of_layer(seat: &Arc<Seat>) -> Self {
        Self(Handle::Shared(Arc::clone(seat)))
    }

    /// The image itself, with the writer that its opener asked for.
    pub(crate) fn into_image(self) -> OpenImage {
        match self.0 {
            Handle::Own { layer, writer } => OpenImage { core: layer.image, writer },
            Handle::Shared(seat) => {
                OpenImage { core: Arc::clone(&seat.last().layer.image), writer: None }
            }
        }
    }

    /// The identity by which a child may know the image as it stands: that is made durable, and the next
    /// visible change gives the image another.
    pub(crate) fn hand_out_identity(&self) -> Result<Uuid> {
        let writer = match &self.0 {
            Handle::Own { writer, .. } => writer.clone(),
            Handle::Shared(seat) => seat.last().writer.upgrade(),
        };
        match writer {
            Some(writer) => writer.hand_out_identity(),
            None => Ok(self.data_write_guid()),
        }
    }

    /// Has something done to the image that reads its file: nobody may replace it meanwhile.
    pub(crate) fn with<R>(&self, does: impl FnOnce(&Layer) -> R) -> R {
        match &self.0 {
            Handle::Own { layer, .. } => does(layer),
            Handle::Shared(seat) => does(&seat.enter().0.layer),
        }
    }

    /// The image, for what is known of it without a look at its file.
    fn latest(&self) -> &Core {
        match &self.0 {
            Handle::Own { layer, .. } => layer,
            Handle::Shared(seat) => &seat.last().layer,
        }
    }

    /// What writes to the image, where there is a right to.
    pub(crate) fn writer(&self) -> Option<&Arc<Writer>> {
        match &self.0 {
            Handle::Own { writer, .. } => writer.as_ref(),
            Handle::Shared(_) => None,
        }
    }

    fn writable(&self) -> Result<&Arc<Writer>> {
        self.writer().ok_or_else(|| read_only(self.name()))
    }
}

/// Refuses a write to what was not opened for it.
pub(crate) fn read_only(name: &str) -> Error {
    Error::new(ErrorKind::ReadOnly, "disk.read-only", "the image is open for reading only")
        .in_file(name)
}

impl Disk for VhdxFile {
    fn geometry(&self) -> Geometry {
        self.latest().geometry()
    }

    fn files(&self) -> Vec<FileId> {
        self.latest().files()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with(|image| image.by_itself().read_at(buf, offset))
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.with(|image| image.by_itself().read_vectored_at(bufs, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.writable()?.write_at(buf, offset)
    }

    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.writable()?.write_zeroes(range, how)
    }

    fn flush(&self) -> Result<()> {
        self.writer().map_or(Ok(()), |writer| writer.commit())
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        self.with(|image| image.by_itself().next_extent(range))
    }
}

impl fmt::Debug for VhdxFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.latest().fmt(f)
    }
}

/// Tests of what is not public work on the writer itself.
#[cfg(test)]
impl std::ops::Deref for VhdxFile {
    type Target = Core;

    fn deref(&self) -> &Core {
        self.latest()
    }
}

#[cfg(test)]
impl VhdxFile {
    pub(crate) fn its_writer(&self) -> &Arc<Writer> {
        self.writer().unwrap_or_else(|| panic!("{} is open for reading only", self.name()))
    }
}

impl Seat {
    pub(crate) fn new(image: &OpenImage) -> Arc<Self> {
        Self::after(Weak::new(), image)
    }

    fn after(before: Weak<Self>, OpenImage { core, writer }: &OpenImage) -> Arc<Self> {
        let layer = Layer::alone(Arc::clone(core));
        let writer = writer.as_ref().map_or_else(Weak::new, Arc::downgrade);
        let (users, next) = (AtomicUsize::new(0), OnceLock::new());
        Arc::new(Self { layer, writer, users, next, before })
    }

    /// Puts another handle of the same file in the place of the one that sits here.
    pub(crate) fn replace(self: &Arc<Self>, image: &OpenImage) -> Arc<Self> {
        Arc::clone(self.next.get_or_init(|| Self::after(Arc::downgrade(self), image)))
    }

    /// Whether both are the same layer's, by whatever handle.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.last(), other.last())
    }

    /// Whether somebody is still at a handle that sat here before this one.
    pub(crate) fn has_earlier_users(&self) -> bool {
        let mut before = self.before.upgrade();
        while let Some(seat) = before {
            if seat.has_late_users() {
                return true;
            }
            before = seat.before.upgrade();
        }
        false
    }

    /// Whether another sits here by now, and somebody is still at this one.
    pub(crate) fn has_late_users(&self) -> bool {
        let is_replaced = self.next.get().is_some();
        fence(Ordering::SeqCst);
        is_replaced && self.users.load(Ordering::SeqCst) > 0
    }

    fn last(&self) -> &Self {
        let mut seat = self;
        while let Some(next) = seat.next.get() {
            seat = next;
        }
        seat
    }

    /// Comes to the handle that sits here now, and keeps it.
    fn enter(&self) -> User<'_> {
        loop {
            let user = User(self.last());
            user.0.users.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // Whoever replaced it meanwhile may have found nobody here.
            if user.0.next.get().is_none() {
                return user;
            }
        }
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}
