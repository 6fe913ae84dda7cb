//! One image file as it is read.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use uuid::Uuid;

use super::feed::Feed;
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
use crate::format::metadata::{FileFlags, FileParameters, MetadataEntry};
use crate::format::region::{RegionEntry, RegionTable};
use crate::log::Sequence;
use crate::storage::{FileId, Overlay, ReadOnly, Storage};
use crate::sync::AtomicU64;
use crate::tables::Budget;
use crate::types::{DiskOffset, FileOffset};
use crate::warning::Warning;

/// One image file that is open, as it is read. What writes to it, if anything does, stands beside it and
/// [feeds](Feed) it.
pub struct Core {
    pub(crate) id: LayerId,
    /// The file as it reads: with its log laid over it, where it has one.
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) overlay: Option<Arc<Overlay>>,
    /// The length of `storage`: the log may have grown the file.
    pub(crate) file_len: AtomicU64,
    pub(crate) identifier: FileIdentifier,
    pub(crate) headers: RwLock<Headers>,
    pub(crate) log: FoundLog,
    pub(crate) region_tables: [Result<RegionTable>; 2],
    pub(crate) bat: RegionEntry,
    pub(crate) metadata_region: RegionEntry,
    /// What no block may lie over: headers, log and regions.
    pub(crate) structures: Vec<Range<u64>>,
    /// Where the last of those ends.
    pub(crate) structures_end: u64,
    pub(crate) geometry: Geometry,
    pub(crate) file: FileParameters,
    pub(crate) has_parent: bool,
    /// What a writer may edit while others read it.
    pub(crate) metadata: RwLock<Metadata>,
    pub(crate) layout: BlockLayout,
    pub(crate) budget: Budget,
    /// There while the image is open for writing.
    pub(crate) feed: Option<Arc<Feed>>,
    pub(crate) tally: Arc<Tally>,
    /// What names the image, read alone, in the keys of answers.
    pub(crate) alone: u64,
    /// For those who read the file by a plan: as it is, and as it reads.
    pub(crate) readers: [OnceLock<Arc<dyn Storage>>; 2],
    pub(crate) warnings: Vec<Warning>,
}

/// What became of the log at the open.
#[derive(Debug)]
pub(crate) enum FoundLog {
    /// The header names none.
    Empty,
    /// Its changes lie over the file.
    Replayed(Sequence),
    /// The caller asked to leave it alone.
    Ignored,
}

impl Core {
    /// What names this image among the layers of this process.
    pub(crate) fn id(&self) -> LayerId {
        self.id
    }

    /// Size and sector sizes of the disk.
    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The file that the image is in, where the host can tell it from others.
    pub(crate) fn files(&self) -> Vec<FileId> {
        self.storage.id().ok().flatten().into_iter().collect()
    }

    /// What errors call the file, usually its path.
    pub(crate) fn name(&self) -> &str {
        self.storage.name()
    }

    /// Where the file lies, if it lies in a folder, symbolic links resolved.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.storage.path()
    }

    /// The name that it was opened by, where symbolic links led from that to [`path`](Self::path).
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

    /// Bytes of a payload block, a power of two from 1 MiB to 256 MiB.
    pub(crate) fn block_size(&self) -> u32 {
        self.file.block_size
    }

    /// The link to the parent, `None` where there is none, \[MS-VHDX\] 2.6.2.6.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the locator has no valid `parent_linkage`.
    pub(crate) fn parent_link(&self) -> Result<Option<ParentLink>> {
        let metadata = self.metadata();
        let Some(placed) = &metadata.locator else { return Ok(None) };
        let linkages = metadata.linkages(placed).map_err(|error| error.in_file(self.name()))?;
        let locator = &placed.locator;
        let link =
            ParentLink::from_locator(locator, linkages, self.name(), self.path(), self.via());
        Ok(Some(link))
    }

    /// What the user of the image should hear of.
    pub(crate) fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What was done since the image was opened.
    pub(crate) fn counters(&self) -> Counters {
        Counters {
            flushes: self.tally.flushes.now(),
            log_bytes: self.tally.log_bytes.now(),
            table_loads: self.tally.table_loads.now(),
            evictions: self.budget.evictions(),
            ..Counters::default()
        }
    }

    /// Whether nobody has begun a session in the file in `storage` that this image does not know of.
    pub(crate) fn has_headers_of(&self, storage: &dyn Storage) -> bool {
        read_headers(storage).is_ok_and(|headers| headers.current() == self.headers().current())
    }

    pub(crate) fn headers(&self) -> RwLockReadGuard<'_, Headers> {
        self.headers.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn metadata(&self) -> RwLockReadGuard<'_, Metadata> {
        self.metadata.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps places in the file from being given to other blocks while bytes are read from there.
    pub(crate) fn pin(&self) -> Option<Pin<'_>> {
        Some(self.pins()?.pin())
    }

    /// Who keeps places in the file from being given to other blocks, where it may be written.
    pub(crate) fn pins(&self) -> Option<&Pins> {
        Some(&self.feed.as_ref()?.pins)
    }

    /// Whether the image is open for writing.
    pub(crate) fn is_written(&self) -> bool {
        self.feed.is_some()
    }

    /// Whether it may still change: it is open for writing and not frozen.
    pub(crate) fn takes_writes(&self) -> bool {
        self.feed.as_ref().is_some_and(|feed| feed.takes_writes())
    }

    /// Drops answers that are kept for this stack, about spans of this length, when a write makes them wrong.
    pub(crate) fn keeps_answers(&self, stack: u64, span: u64) {
        if let Some(feed) = &self.feed {
            feed.answers.add(stack, span);
        }
    }

    /// Answers are kept for this stack, and for the image read alone, and for no other any more.
    pub(crate) fn keeps_answers_only(&self, stack: u64) {
        if let Some(feed) = &self.feed {
            feed.answers.keep_only(&[stack, self.alone]);
        }
    }

    /// A number that rises when another layer has a part of the disk than before.
    pub(crate) fn changes(&self) -> u64 {
        self.feed.as_ref().map_or(0, |feed| feed.answers.changes())
    }

    /// Whether several questions came since the last such change, this one counted.
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

    /// The file as it is, without what a pending log lays over it.
    pub(crate) fn bare_storage(&self) -> &Arc<dyn Storage> {
        self.overlay.as_ref().map_or(&self.storage, |overlay| overlay.base())
    }

    /// The file as it is, for somebody who is only to read it.
    pub(crate) fn bare_reader(&self) -> &Arc<dyn Storage> {
        self.readers[0].get_or_init(|| Arc::new(ReadOnly(Arc::clone(self.bare_storage()))))
    }

    /// The same, as it reads.
    pub(crate) fn reader(&self) -> &Arc<dyn Storage> {
        match self.overlay {
            None => self.bare_reader(),
            Some(_) => {
                self.readers[1].get_or_init(|| Arc::new(ReadOnly(Arc::clone(&self.storage))))
            }
        }
    }

    /// The log entry that supplies the byte of the file at `at`, if one does.
    pub(crate) fn log_entry_at(&self, at: FileOffset) -> Option<u64> {
        self.overlay.as_ref()?.entry_at(at.get())
    }

    /// Reads bytes of the disk that lie at `at` in the file.
    pub(crate) fn read_payload(&self, buf: &mut [u8], at: FileOffset) -> Result<()> {
        let read = self.storage.read_exact_at(buf, at.get());
        read.map_err(|error| self.cannot_read(buf.len(), at, error))
    }

    /// Reads bytes of the disk that lie at `at` in the file into one buffer after the other.
    pub(crate) fn read_payload_vectored(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        at: FileOffset,
    ) -> Result<()> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        let read = self.storage.read_exact_vectored_at(bufs, at.get());
        read.map_err(|error| self.cannot_read(len, at, error))
    }

    /// Says which bytes of the disk the file does not give.
    #[cold]
    pub(crate) fn cannot_read(&self, len: usize, at: FileOffset, error: io::Error) -> Error {
        Error::io("payload.read", format!("cannot read {len} bytes"), error)
            .in_file(self.name())
            .at(at.get())
    }

    /// Refuses to name a place for bytes that a log entry, not the file, supplies.
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

    /// Length of the file as the host has it, without what a replayed log adds.
    pub(crate) fn len_of_file(&self) -> u64 {
        self.overlay.as_ref().map_or_else(|| self.file_len(), |overlay| overlay.base_len())
    }

    /// How many of these bytes, which no log entry supplies, lie in the file: what lies behind its end, in a
    /// part that a pending log has it grown by, is zeros.
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
