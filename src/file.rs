//! An image, with the access rights that it was opened with.

use std::any::Any;
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
use crate::image::{
    BlockCounts, CheckpointMark, Core, ImageInfo, MergeMark, MergeRequest, ParentLink,
};
use crate::read::Layer;
use crate::storage::Access;
use crate::storage::FileId;
use crate::storage::LocalHost;
use crate::warning::Warning;
use crate::write::{OpenImage, Writer};

/// One VHDX image: fixed, dynamic, or a differencing image without its parents.
///
/// As a [`Disk`], a differencing image serves the data that it holds itself and returns [`ErrorKind::ParentRequired`]
/// for data that only its parent holds; a [`DiffChain`](crate::DiffChain) combines the two. A log that is not empty
/// is replayed in memory, without changing the file; if the image is opened for writing, it is replayed to the file.
///
/// An image that a chain [hands out](crate::DiffChain::image) is read-only, even if the chain is writable. While an
/// operation works on that layer, the image reads as the file is at that time, and stays usable afterwards.
///
/// # After a failure
///
/// Flushed data is never at risk. Beyond that:
///
/// - A write, zeroing or discard that fails for lack of space, or because payload cannot be written or a file cannot
///   be read, fails alone ([`ErrorKind::Io`]): each 512 bytes of its range read as before or as written, nothing else
///   changes, and the image stays usable. A virtual machine can be paused until there is space, and the call
///   repeated.
/// - If a header, the log or the block tables cannot be written, or a [`flush`](Disk::flush) or
///   [`close`](Self::close) fails, the image is poisoned: the file is not written to again, every later change, flush
///   and close fails with [`ErrorKind::Poisoned`], and reads continue with the data that the host has. A flush is not
///   retried, because the host may have dropped the data and report success the next time. Opening the image again
///   recovers what is in the file.
/// - A failed open changes nothing that the next open does not repair.
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
    /// Opened on its own, with the access that was asked for.
    Own { layer: Layer, writer: Option<Arc<Writer>> },
    /// Shared with a chain, read-only.
    Shared(Arc<Seat>),
}

/// A layer's place in a chain. An operation may replace its handle by another of the same file; images handed out for
/// the layer then use the newer one.
pub(crate) struct Seat {
    layer: Layer,
    /// Number of users of the image through this seat.
    users: AtomicUsize,
    next: OnceLock<Arc<Self>>,
    before: Weak<Self>,
}

/// Marks a handle as in use.
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

    /// Identifies this image among the layers of this process. An operation that reopens the file gives it another
    /// ID.
    pub fn id(&self) -> LayerId {
        self.latest().id()
    }

    /// The name of the file in errors, usually its path.
    pub fn name(&self) -> &str {
        self.latest().name()
    }

    /// The path of the file with symbolic links resolved, if it is in a folder.
    pub fn path(&self) -> Option<&Path> {
        self.latest().path()
    }

    /// The path that it was opened by, if symbolic links led from there to [`path`](Self::path).
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

    /// Size of a payload block in bytes, a power of two from 1 MiB to 256 MiB.
    pub fn block_size(&self) -> u32 {
        self.latest().block_size()
    }

    /// The link to the parent, \[MS-VHDX\] 2.6.2.6. `None` if the image has no parent.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the locator has no valid `parent_linkage`.
    pub fn parent_link(&self) -> Result<Option<ParentLink>> {
        self.latest().parent_link()
    }

    /// The name of the point in time below this image, if a checkpoint made the image.
    pub fn checkpoint(&self) -> Option<CheckpointMark> {
        self.latest().checkpoint()
    }

    /// The unfinished merge of this image, if there is one.
    pub fn merge_mark(&self) -> Option<MergeMark> {
        self.latest().merge_mark()
    }

    /// The merge of this image into its parent that was requested, if there is one. Such a merge waits for those of
    /// the layers below, and goes on with [`Merge::resume`](crate::ops::Merge::resume).
    pub fn merge_request(&self) -> Option<MergeRequest> {
        self.latest().merge_request()
    }

    /// Conditions that the caller should report.
    pub fn warnings(&self) -> &[Warning] {
        self.latest().warnings()
    }

    /// Whether the image is open for writing, through any handle.
    pub fn is_writable(&self) -> bool {
        self.writer().is_some()
    }

    /// Everything that the image records about itself, except for the block tables.
    pub fn info(&self) -> ImageInfo {
        self.latest().info()
    }

    /// The contents of a metadata item of a user, \[MS-VHDX\] 2.6.1.2: up to 1 MiB. [`info`](Self::info) lists the items,
    /// and [`EditMetadata`](crate::ops::EditMetadata) changes them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is no such item; [`ErrorKind::Io`].
    pub fn user_item(&self, item: Uuid) -> Result<Vec<u8>> {
        self.with(|image| image.user_item(item))
    }

    /// Counts the blocks by state. Reads the whole block allocation table.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the table cannot be read.
    pub fn count_blocks(&self) -> Result<BlockCounts> {
        self.with(|image| image.count_blocks())
    }

    /// The counts since the image was opened.
    pub fn counters(&self) -> Counters {
        self.latest().counters()
    }

    /// Makes all data durable, leaves the log empty, so that any reader accepts the file, and truncates space that
    /// the file was grown by and does not need, except for space that a read plan may refer to. Dropping the image
    /// does the same, but cannot report errors. Does nothing if the image is not open for writing.
    ///
    /// # Errors
    /// As for [`Disk::flush`], with the same effect: data that was flushed before stays safe.
    pub fn close(&self) -> Result<()> {
        self.writer().map_or(Ok(()), |writer| writer.close())
    }

    /// An image with the access that it was opened with.
    pub(crate) fn own(OpenImage { core, writer }: OpenImage) -> Self {
        Self(Handle::Own { layer: Layer::alone(core), writer })
    }

    /// The image of a layer, read-only whatever the layer's access.
    pub(crate) fn of_layer(seat: &Arc<Seat>) -> Self {
        Self(Handle::Shared(Arc::clone(seat)))
    }

    /// The image itself, with its writer if it was opened for writing.
    pub(crate) fn into_image(self) -> OpenImage {
        match self.0 {
            Handle::Own { layer, writer } => OpenImage { core: layer.image, writer },
            Handle::Shared(seat) => {
                OpenImage { core: Arc::clone(&seat.last().layer.image), writer: None }
            }
        }
    }

    /// The image with a disk of another size, which is then used in the place of this one. It gets another identity.
    ///
    /// # Errors
    /// Those of [`Writer::resize`] and of an open.
    pub(crate) fn resized(&self, size: u64) -> Result<Self> {
        let writer = self.writable()?;
        writer.resize(size)?;
        let resized = writer.reopen()?.shared();
        resized.take_over(writer);
        let writer = resized;
        Ok(Self::own(OpenImage { core: Arc::clone(writer.core()), writer: Some(writer) }))
    }

    /// Makes the image's identity durable and returns it, for a child to record. The next visible change gives the
    /// image a new one.
    pub(crate) fn hand_out_identity(&self) -> Result<Uuid> {
        self.with(|layer| layer.hand_out_identity())
    }

    /// Runs an action that reads the image's file. The handle is not replaced meanwhile.
    pub(crate) fn with<R>(&self, does: impl FnOnce(&Layer) -> R) -> R {
        match &self.0 {
            Handle::Own { layer, .. } => does(layer),
            Handle::Shared(seat) => does(&seat.enter().0.layer),
        }
    }

    /// The image, for facts that do not need its file.
    fn latest(&self) -> &Core {
        match &self.0 {
            Handle::Own { layer, .. } => layer,
            Handle::Shared(seat) => &seat.last().layer,
        }
    }

    /// The writer of the image, if this handle may write.
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

/// The error for a write to a read-only image.
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

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
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

/// Gives unit tests direct access to the writer.
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

    fn after(before: Weak<Self>, image: &OpenImage) -> Arc<Self> {
        let layer = Layer::alone(Arc::clone(&image.core));
        let (users, next) = (AtomicUsize::new(0), OnceLock::new());
        Arc::new(Self { layer, users, next, before })
    }

    /// Replaces the handle by another of the same file.
    pub(crate) fn replace(self: &Arc<Self>, image: &OpenImage) -> Arc<Self> {
        Arc::clone(self.next.get_or_init(|| Self::after(Arc::downgrade(self), image)))
    }

    /// Whether both belong to the same layer, through any handle.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.last(), other.last())
    }

    /// Whether an earlier handle of this seat is still in use.
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

    /// Whether this handle was replaced and is still in use.
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

    /// Marks the current handle as in use, and returns it.
    fn enter(&self) -> User<'_> {
        loop {
            let user = User(self.last());
            user.0.users.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // If the handle was replaced meanwhile, this use may have been missed.
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
