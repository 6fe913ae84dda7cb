//! The read side of an image file.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use uuid::Uuid;

use super::feed::Feed;
use super::last_bitmap::LastBitmap;
use super::link::ParentLink;
use super::metadata::Metadata;
use super::pins::{Pin, Pins};
use super::start::read_headers;
use crate::counters::{Counters, Tally};
use crate::disk::{Geometry, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::BlockLayout;
use crate::format::header::Headers;
use crate::format::identifier::FileIdentifier;
use crate::format::metadata::{self, FileFlags, FileParameters, MetadataEntry};
use crate::format::region::{RegionEntry, RegionTable};
use crate::log::Sequence;
use crate::storage::{FileId, Overlay, ReadOnly, Storage};
use crate::sync::AtomicU64;
use crate::tables::Budget;
use crate::types::{DiskOffset, FileOffset};
use crate::warning::Warning;

/// The read side of one open image file. Its writer, if there is one, is separate and [feeds](Feed) it.
pub struct Core {
    pub(crate) id: LayerId,
    /// The file as it reads, with a replayed log over it.
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) overlay: Option<Arc<Overlay>>,
    /// The length of `storage`, which a replayed log may extend.
    pub(crate) file_len: AtomicU64,
    pub(crate) identifier: FileIdentifier,
    pub(crate) headers: RwLock<Headers>,
    pub(crate) log: FoundLog,
    pub(crate) region_tables: [Result<RegionTable>; 2],
    pub(crate) bat: RegionEntry,
    pub(crate) metadata_region: RegionEntry,
    /// The parts of the file that no block may overlap: headers, log and regions.
    pub(crate) structures: Vec<Range<u64>>,
    /// End of the last of these parts.
    pub(crate) structures_end: u64,
    pub(crate) geometry: Geometry,
    pub(crate) file: FileParameters,
    pub(crate) has_parent: bool,
    /// A writer may edit it while others read it.
    pub(crate) metadata: RwLock<Metadata>,
    pub(crate) layout: BlockLayout,
    /// The place of the sector bitmap block that was looked up last.
    pub(crate) last_bitmap: LastBitmap,
    pub(crate) budget: Budget,
    /// Present while the image is open for writing.
    pub(crate) feed: Option<Arc<Feed>>,
    pub(crate) tally: Arc<Tally>,
    /// Names the image without its parents in the keys of answers.
    pub(crate) alone: u64,
    /// Read-only handles for plans: the bare file, and the file as it reads.
    pub(crate) readers: [OnceLock<Arc<dyn Storage>>; 2],
    pub(crate) warnings: Vec<Warning>,
}

/// The log as found at the open.
#[derive(Debug)]
pub(crate) enum FoundLog {
    /// The header names no log.
    Empty,
    /// Its changes cover the file.
    Replayed(Sequence),
    /// The log was ignored as requested.
    Ignored,
}

impl Core {
    /// Identifies this image among the layers of this process.
    pub(crate) fn id(&self) -> LayerId {
        self.id
    }

    /// Size and sector sizes of the disk.
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Identifies the image's file, if the host can.
    pub(crate) fn files(&self) -> Vec<FileId> {
        self.storage.id().ok().flatten().into_iter().collect()
    }

    /// The name of the file in errors, usually its path.
    pub(crate) fn name(&self) -> &str {
        self.storage.name()
    }

    /// The path of the file with symbolic links resolved, if it is in a folder.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.storage.path()
    }

    /// The path that it was opened by, if symbolic links led from there to [`path`](Self::path).
    pub(crate) fn via(&self) -> Option<&Path> {
        self.storage.via()
    }

    /// The identity that children of this image record, \[MS-VHDX\] 2.2.2.
    pub(crate) fn data_write_guid(&self) -> Uuid {
        self.headers().current().data_write_guid
    }

    /// Whether this is a differencing image.
    pub(crate) fn has_parent(&self) -> bool {
        self.has_parent
    }

    /// Size of a payload block in bytes, a power of two from 1 MiB to 256 MiB.
    pub(crate) fn block_size(&self) -> u32 {
        self.file.block_size
    }

    /// The link to the parent, \[MS-VHDX\] 2.6.2.6. `None` if the image has no parent.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the locator has no valid `parent_linkage`.
    pub(crate) fn parent_link(&self) -> Result<Option<ParentLink>> {
        let metadata = self.metadata();
        let Some(placed) = &metadata.locator else { return Ok(None) };
        let linkages = metadata.linkages(placed).map_err(|error| error.in_file(self.name()))?;
        let locator = &placed.locator;
        let link =
            ParentLink::from_locator(locator, linkages, self.name(), self.path(), self.via());
        Ok(Some(link))
    }

    /// Conditions that the caller should report.
    pub(crate) fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The counts since the image was opened.
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            flushes: self.tally.flushes.now(),
            log_bytes: self.tally.log_bytes.now(),
            table_loads: self.tally.table_loads.now(),
            evictions: self.budget.evictions(),
            ..Counters::default()
        }
    }

    /// Whether the file in `storage` has the headers that this image knows, so that no other session has begun.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if they cannot be read.
    pub(crate) fn has_headers_of(&self, storage: &dyn Storage) -> Result<bool> {
        // Held meanwhile, so that this image's writer changes none.
        let known = self.headers();
        match read_headers(storage) {
            Ok(headers) => Ok(headers.current() == known.current()),
            Err(error) if error.kind() == ErrorKind::Io => Err(error.in_file(self.name())),
            Err(_) => Ok(false),
        }
    }

    /// Whether the file still has the headers that this image knows. Another writer would have changed them.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if they cannot be read.
    pub(crate) fn has_known_headers(&self) -> Result<bool> {
        self.has_headers_of(self.bare_storage().as_ref())
    }

    /// The identity by which a new child may know the image as it stands: what was written is made durable, and the
    /// next visible change gives the image another identity.
    pub(crate) fn hand_out_identity(&self) -> Result<Uuid> {
        match self.feed.as_ref().and_then(|feed| feed.issuer()) {
            Some(issuer) => issuer.hand_out_identity(),
            None => Ok(self.data_write_guid()),
        }
    }

    pub(crate) fn headers(&self) -> RwLockReadGuard<'_, Headers> {
        self.headers.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn metadata(&self) -> RwLockReadGuard<'_, Metadata> {
        self.metadata.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps ranges of the file from being reused for other blocks while they are read.
    pub(crate) fn pin(&self) -> Option<Pin<'_>> {
        Some(self.pins()?.pin())
    }

    /// The pins that keep ranges of the file from being reused, if the image may be written to.
    pub(crate) fn pins(&self) -> Option<&Pins> {
        Some(&self.feed.as_ref()?.pins)
    }

    /// Whether the image is open for writing.
    pub(crate) fn is_written(&self) -> bool {
        self.feed.is_some()
    }

    /// Whether the image may still change: it is open for writing and not frozen.
    pub(crate) fn takes_writes(&self) -> bool {
        self.feed.as_ref().is_some_and(|feed| feed.takes_writes())
    }

    /// To be held by a chain that reads the image and is not the one that writes to it; `None` if nobody does.
    pub(crate) fn guest(&self) -> Option<Arc<()>> {
        self.feed.as_ref().filter(|feed| feed.takes_writes()).map(|feed| feed.guest())
    }

    /// Registers a stack, with spans of this length, whose cached answers a write has to invalidate.
    pub(crate) fn keeps_answers(&self, stack: u64, span: u64) {
        if let Some(feed) = &self.feed {
            feed.answers.add(stack, span);
        }
    }

    /// Unregisters a stack whose answers are no longer looked up.
    pub(crate) fn keeps_no_answers(&self, stack: u64) {
        if let Some(feed) = &self.feed {
            feed.answers.remove(stack);
        }
    }

    /// Increases whenever the layer that holds some bytes changes.
    pub(crate) fn changes(&self) -> u64 {
        self.feed.as_ref().map_or(0, |feed| feed.answers.changes())
    }

    /// Whether several lookups, including this one, came since the last such change.
    pub(crate) fn is_quiet(&self) -> bool {
        self.feed.as_ref().is_none_or(|feed| feed.answers.is_quiet())
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) fn disk_id(&self) -> Uuid {
        self.metadata().disk_id
    }

    /// The metadata items that describe the virtual disk and that the format does not define.
    pub(crate) fn disk_items(&self) -> Result<Vec<(MetadataEntry, Vec<u8>)>> {
        let items = self.metadata().disk_items(self.storage.as_ref(), &self.metadata_region);
        items.map_err(|error| error.in_file(self.name()))
    }

    /// The bytes of a metadata item of a user.
    pub(crate) fn user_item(&self, item: Uuid) -> Result<Vec<u8>> {
        let found = self.metadata().user_item(self.storage.as_ref(), &self.metadata_region, item);
        found
            .and_then(|found| found.ok_or_else(|| metadata::no_item(item)))
            .map_err(|error| error.in_file(self.name()))
    }

    pub(crate) fn keeps_blocks(&self) -> bool {
        self.file.flags.contains(FileFlags::LEAVE_BLOCKS_ALLOCATED)
    }

    pub(crate) fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    pub(crate) fn locator_at(&self) -> Option<u64> {
        self.metadata().locator.as_ref().map(|placed| placed.at)
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    /// The bare file, without a replayed log.
    pub(crate) fn bare_storage(&self) -> &Arc<dyn Storage> {
        self.overlay.as_ref().map_or(&self.storage, |overlay| overlay.base())
    }

    /// A read-only handle of the bare file.
    pub(crate) fn bare_reader(&self) -> &Arc<dyn Storage> {
        self.readers[0].get_or_init(|| Arc::new(ReadOnly(Arc::clone(self.bare_storage()))))
    }

    /// A read-only handle of the file as it reads.
    pub(crate) fn reader(&self) -> &Arc<dyn Storage> {
        match self.overlay {
            None => self.bare_reader(),
            Some(_) => {
                self.readers[1].get_or_init(|| Arc::new(ReadOnly(Arc::clone(&self.storage))))
            }
        }
    }

    /// The log entry that supplies the byte at file offset `at`, if there is one.
    pub(crate) fn log_entry_at(&self, at: FileOffset) -> Option<u64> {
        self.overlay.as_ref()?.entry_at(at.get())
    }

    /// Reads payload at file offset `at`.
    pub(crate) fn read_payload(&self, buf: &mut [u8], at: FileOffset) -> Result<()> {
        let read = self.storage.read_exact_at(buf, at.get());
        read.map_err(|error| self.cannot_read(buf.len(), at, error))
    }

    /// Reads payload at file offset `at` into several buffers.
    pub(crate) fn read_payload_vectored(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        at: FileOffset,
    ) -> Result<()> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        let read = self.storage.read_exact_vectored_at(bufs, at.get());
        read.map_err(|error| self.cannot_read(len, at, error))
    }

    /// The error for payload that cannot be read from the file.
    pub(crate) fn cannot_read(&self, len: usize, at: FileOffset, error: io::Error) -> Error {
        cannot_read(self.storage(), len, at, error)
    }

    /// Refuses to name a file offset for bytes that a log entry supplies.
    pub(crate) fn check_no_overlay(&self, at: FileOffset, len: u64) -> Result<()> {
        let range = at.get()..at.get().saturating_add(len);
        let Some(first) = self.overlay.as_ref().and_then(|over| over.first_within(range)) else {
            return Ok(());
        };
        let message = "a pending log lies over these bytes, so the file does not hold them";
        Err(Error::new(ErrorKind::LogOverlay, "extent.log-overlay", message)
            .in_file(self.name())
            .at(first)
            .with_section("2.3.3"))
    }

    /// Length of the file on the host, without the extension by a replayed log.
    pub(crate) fn len_of_file(&self) -> u64 {
        self.overlay.as_ref().map_or_else(|| self.file_len(), |overlay| overlay.base_len())
    }

    /// How many of these bytes, which no log entry supplies, lie within the file. If a pending log extends the file,
    /// the rest are zeros.
    pub(crate) fn len_in_file(&self, at: FileOffset, len: u64) -> u64 {
        let Some(overlay) = &self.overlay else { return len };
        len.min(overlay.base_len().saturating_sub(at.get()))
    }

    pub(crate) fn parent_required(&self, at: DiskOffset) -> Error {
        let block = self.layout.block_of(at);
        let message = format!("the parent has the byte at {} of the disk", at.0);
        Error::new(ErrorKind::ParentRequired, "image.parent-required", message)
            .in_file(self.name())
            .at(self.bat_entry_at(self.layout.payload_index(block)).get())
            .with_section("2.5.1.1")
            .with_found("a block or sector that is not in this file")
            .with_expected("the image to be opened with its parents, as a chain")
    }
}

/// The error for payload that cannot be read from a file.
#[cold]
pub(crate) fn cannot_read(
    from: &dyn Storage,
    len: usize,
    at: FileOffset,
    error: io::Error,
) -> Error {
    let error = Error::io("payload.read", format!("cannot read {len} bytes"), error);
    error.in_file(from.name()).at(at.get())
}

impl Drop for Core {
    fn drop(&mut self) {
        self.budget.forget(self.id);
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("id", &self.id)
            .field("name", &self.name())
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}
