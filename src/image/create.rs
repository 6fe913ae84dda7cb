//! Making images.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use uuid::Uuid;

use super::left_overs::clear_drafts;
use super::link::way_to;
use super::{ChildSearch, ImagePolicy, Lock, VhdxFile, Warning};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BatEntry, BlockLayout, ENTRY_LEN};
use crate::format::header::Header;
use crate::format::identifier::FileIdentifier;
use crate::format::locator::{self, ParentLocator};
use crate::format::marks::{self, CheckpointMark};
use crate::format::metadata::{
    self, FileFlags, FileParameters, ItemFlags, MetadataEntry, MetadataTable,
};
use crate::format::region::{self, RegionEntry, RegionFlags, RegionTable};
use crate::mutants::planted;
use crate::storage::{
    self, Access, Draft, FileId, FileKind, Host, Storage, folder_of, is_file, real_place,
};
use crate::types::{BlockIndex, FileOffset, MIB};

const METADATA_LEN: u32 = MIB as u32;
const MAX_SIZE: u64 = 64 << 40;
/// Bytes of the block allocation table that are written at once.
const BAT_PIECE: u64 = MIB;
/// Bytes of the log that are written at a time.
const LOG_PIECE: usize = MIB as usize;

/// What a new image is to be.
///
/// The defaults are those of Windows: blocks of 32 MiB, of 2 MiB in a differencing image, sectors of
/// 512 bytes on a disk that claims 4096, a log of 1 MiB.
///
/// ```no_run
/// use avhdx::{CreateOptions, Disk};
///
/// let base = CreateOptions::dynamic(10 << 30).create("base.vhdx")?;
/// base.write_at(b"hello", 0)?;
/// base.close()?;
/// let child = CreateOptions::child_of(&base)?.create("base_1A2B.avhdx")?;
/// # let _ = child;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CreateOptions {
    size: u64,
    block_size: u32,
    logical_sector: u32,
    physical_sector: u32,
    log_size: u32,
    is_fixed: bool,
    overwrite: bool,
    orphan_children: bool,
    child_folders: Vec<PathBuf>,
    creator: String,
    disk_id: Uuid,
    file_write_guid: Uuid,
    data_write_guid: Uuid,
    parent: Option<Parent>,
    checkpoint: Option<CheckpointMark>,
}

/// What a child takes from its parent.
#[derive(Clone, Debug)]
struct Parent {
    linkage: Uuid,
    logical_sector: u32,
    /// Whose owner and permissions the child gets. Its lock is not held for that alone.
    file: Weak<dyn Storage>,
    id: Option<FileId>,
    path: Option<PathBuf>,
    relative_path: Option<String>,
    absolute_win32_path: Option<String>,
    /// Items of the virtual disk beyond those that the format defines.
    items: Vec<(MetadataEntry, Vec<u8>)>,
}

impl CreateOptions {
    /// A dynamic image of a disk of `size` bytes: blocks get their space when they are written.
    pub fn dynamic(size: u64) -> Self {
        Self {
            size,
            block_size: 32 << 20,
            logical_sector: 512,
            physical_sector: 4096,
            log_size: MIB as u32,
            is_fixed: false,
            overwrite: false,
            orphan_children: false,
            child_folders: Vec::new(),
            creator: concat!("avhdx ", env!("CARGO_PKG_VERSION")).to_owned(),
            disk_id: Uuid::new_v4(),
            file_write_guid: Uuid::new_v4(),
            data_write_guid: Uuid::new_v4(),
            parent: None,
            checkpoint: None,
        }
    }

    /// A fixed image of a disk of `size` bytes: all space is there from the start.
    pub fn fixed(size: u64) -> Self {
        Self { is_fixed: true, ..Self::dynamic(size) }
    }

    /// A differencing image over `parent`, with its size, sectors and virtual-disk metadata.
    ///
    /// The child is that of the parent as it stands: a parent that is open for writing is flushed, and the
    /// next change of it gives it another identity, which the child does not take for its parent's.
    ///
    /// The path to the parent is recorded as Windows writes it, and tried before: names in it cannot have a `\\`
    /// and must be valid UTF-8, and where the child would not be found to lead back to this very file none is made.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when the parent's metadata cannot be read; those of [`Disk::flush`];
    /// [`ErrorKind::Unfinished`] and [`ErrorKind::Merged`] when a merge makes it no point in time.
    pub fn child_of(parent: &crate::VhdxFile) -> Result<Self> {
        parent.with(|parent| Self::child_with(parent, parent.hand_out_identity()?))
    }

    /// The same for a parent that is going to be known by this identity.
    pub(crate) fn child_with(parent: &VhdxFile, linkage: Uuid) -> Result<Self> {
        parent.check_point()?;
        let geometry = parent.geometry();
        Ok(Self {
            block_size: 2 << 20,
            logical_sector: geometry.logical_sector,
            physical_sector: geometry.physical_sector,
            disk_id: parent.disk_id(),
            parent: Some(Parent {
                linkage,
                logical_sector: geometry.logical_sector,
                file: Arc::downgrade(parent.bare_storage()),
                id: parent.bare_storage().id().ok().flatten(),
                path: parent.path().map(Path::to_path_buf),
                relative_path: None,
                absolute_win32_path: None,
                items: parent.disk_items()?,
            }),
            ..Self::dynamic(geometry.size)
        })
    }

    /// Size of the disk in bytes, a multiple of the logical sector size, at most 64 TiB. A child may
    /// be larger than its parent.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = bytes;
        self
    }

    /// Size of a payload block in bytes: a power of two from 1 MiB to 256 MiB.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// Logical sector size in bytes: 512 or 4096. A child must have its parent's.
    pub fn logical_sector(mut self, bytes: u32) -> Self {
        self.logical_sector = bytes;
        self
    }

    /// Physical sector size in bytes: 512 or 4096.
    pub fn physical_sector(mut self, bytes: u32) -> Self {
        self.physical_sector = bytes;
        self
    }

    /// Size of the log in bytes: a multiple of 1 MiB.
    pub fn log_size(mut self, bytes: u32) -> Self {
        self.log_size = bytes;
        self
    }

    /// How the program that makes the file names itself, up to 256 UTF-16 units.
    pub fn creator(mut self, name: impl Into<String>) -> Self {
        self.creator = name.into();
        self
    }

    /// The identity of the virtual disk: a new one unless told otherwise, in a child the parent's.
    pub fn disk_id(mut self, id: Uuid) -> Self {
        self.disk_id = id;
        self
    }

    /// The file's first `FileWriteGuid` and `DataWriteGuid`, for images that are to be the same each
    /// time they are made.
    pub fn write_guids(mut self, file: Uuid, data: Uuid) -> Self {
        (self.file_write_guid, self.data_write_guid) = (file, data);
        self
    }

    /// The parent's path as a Windows machine knows it, recorded beside the path from the child's
    /// folder. Without a parent it has no effect.
    pub fn absolute_win32_path(mut self, path: impl Into<String>) -> Self {
        if let Some(parent) = &mut self.parent {
            parent.absolute_win32_path = Some(path.into());
        }
        self
    }

    /// Marks the image as made by a checkpoint: what the point in time below it is called, up to 4096 bytes,
    /// and when that was, to the second. See [`VhdxFile::checkpoint`](crate::VhdxFile::checkpoint).
    pub fn checkpoint(mut self, label: impl Into<String>, time: SystemTime) -> Self {
        self.checkpoint = Some(CheckpointMark { label: label.into(), time });
        self
    }

    /// Whether the new file may take the name of one that is there. That one stays as it is until the
    /// new one is complete. It may be an image, though not one that others have for their parent.
    pub fn overwrite(mut self, yes: bool) -> Self {
        self.overwrite = yes;
        self
    }

    /// Whether the image that is [overwritten](Self::overwrite) may be one of which children are found, which
    /// have no parent then.
    pub fn orphan_children(mut self, yes: bool) -> Self {
        self.orphan_children = yes;
        self
    }

    /// A folder to look for its children in, beside its own. Each call adds one.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.child_folders.push(folder.into());
        self
    }

    /// Makes the image at `path` on this machine and opens it for writing.
    ///
    /// # Errors
    /// As [`create_on`](Self::create_on).
    pub fn create(&self, path: impl AsRef<Path>) -> Result<crate::VhdxFile> {
        self.create_on(Arc::new(crate::storage::LocalHost), path)
    }

    /// Makes the image at `path` on a host and opens it for writing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for sizes that the format does not have, and for a child that would take the
    /// place of its parent; [`ErrorKind::HasChildren`] when the file that it would take the place of has
    /// children; [`ErrorKind::Unsupported`] when no path that can be recorded leads to the parent, see
    /// [`child_of`](Self::child_of); [`ErrorKind::Io`] when the host fails or, unless [`overwrite`](Self::overwrite) was asked for, the name is taken. A failed
    /// call leaves nothing behind, but for a complete image that took the name of another file already.
    pub fn create_on(
        &self,
        host: Arc<dyn Host>,
        path: impl AsRef<Path>,
    ) -> Result<crate::VhdxFile> {
        // Nobody can have linked to an identity that is new. A given one may be another file's.
        let children = ChildSearch { orphans: true, ..ChildSearch::beside(Arc::clone(&host)) };
        let policy =
            ImagePolicy { writable: true, children: Some(children), ..ImagePolicy::default() };
        let mut warnings = Vec::new();
        let old = self.check_replaced(&host, path.as_ref(), &mut warnings)?;
        let mut image = self.create_over(host.as_ref(), path.as_ref(), &policy, old)?;
        image.warnings.extend(warnings);
        Ok(crate::VhdxFile::own(image))
    }

    /// The file whose place is to be taken, if there is one. Refuses one that others need, and warns of what could
    /// not be looked at.
    fn check_replaced(
        &self,
        host: &Arc<dyn Host>,
        path: &Path,
        warnings: &mut Vec<Warning>,
    ) -> Result<Option<Arc<dyn Storage>>> {
        let stat = match host.stat(path) {
            Ok(stat) if self.overwrite => stat,
            _ => return Ok(None),
        };
        let regular = match stat.kind {
            FileKind::File => host.open(path, Access::Read),
            FileKind::Folder => Err(io::ErrorKind::IsADirectory.into()),
            FileKind::Other => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
            }
        };
        let file = regular.map_err(|error| {
            let what = "cannot look at the file that is to be replaced";
            Error::io("create.file", what, error).in_path(path).limits_named()
        })?;
        let id = file.id().ok().flatten();
        if self.parent.as_ref().is_some_and(|parent| id.is_some() && parent.id == id) {
            let message = "the new image would take the place of its own parent";
            return Err(Error::new(ErrorKind::InvalidInput, "create.own-parent", message)
                .in_path(path)
                .with_expected("another name"));
        }
        let search = ChildSearch {
            folders: self.child_folders.clone(),
            orphans: self.orphan_children,
            ..ChildSearch::beside(Arc::clone(host))
        };
        warnings.extend(search.refuse_loss(file.as_ref())?);
        Ok(Some(file))
    }

    /// The same, and opens the image as the policy says.
    pub(crate) fn create_as(
        &self,
        host: &dyn Host,
        path: &Path,
        policy: &ImagePolicy,
    ) -> Result<VhdxFile> {
        self.create_over(host, path, policy, None)
    }

    fn create_over(
        &self,
        host: &dyn Host,
        path: &Path,
        policy: &ImagePolicy,
        old: Option<Arc<dyn Storage>>,
    ) -> Result<VhdxFile> {
        let path = &real_place(host, path);
        let failed = |what| {
            move |error| Error::io("create.file", format!("cannot {what}"), error).in_path(path)
        };
        self.check_free(host, path)?;
        let options = self.with_paths(host, path).map_err(|error| error.in_path(path))?;
        options.validate().map_err(|error| error.in_path(path))?;
        // Unless the image's opening does so.
        let left_over = match &policy.children {
            Some(search) if policy.writable && !search.orphans => Vec::new(),
            _ => clear_drafts(host, folder_of(path)),
        };
        let draft = Draft::new(host, path).map_err(failed("create the file"))?;
        let filled = options.fill(host, draft.storage().as_ref(), draft.mark());
        filled.map_err(|error| error.in_path(path))?;
        let old_left = draft.publish(old.as_deref()).map_err(failed("give the file its name"))?;
        let opened = options.name_durably(host, path).and_then(|()| {
            let storage = reopened(host, path, policy, draft.storage().as_ref())?;
            VhdxFile::from_storage(storage, policy)
        });
        let mut image = opened.inspect_err(|_| {
            // The file is ours, and complete: it goes, unless it took the place of another, of which
            // nothing would be left then.
            if old.is_none() && !planted("failed-create-left-behind") {
                let is_ours = |path: &Path| is_file(host, path, draft.storage().as_ref());
                drop(storage::remove(host, path, &is_ours));
            }
        })?;
        image.warnings.extend(left_over);
        image.warnings.extend(old_left.map(|old| Warning {
            code: "create.old-left",
            message: format!("{}: the file that was replaced could not be removed", old.display()),
        }));
        Ok(image)
    }

    /// Bytes that the new file is long, with sizes that an image can have.
    pub(crate) fn file_len(&self) -> u64 {
        self.payload_at() + self.payload_len()
    }

    fn payload_at(&self) -> u64 {
        MIB + u64::from(self.log_size) + u64::from(METADATA_LEN) + u64::from(self.bat_len())
    }

    fn bat_len(&self) -> u32 {
        (self.layout().entries_reserved() * ENTRY_LEN).next_multiple_of(MIB) as u32
    }

    fn payload_len(&self) -> u64 {
        let layout = self.layout();
        if self.is_fixed { layout.blocks() * layout.block_size() } else { 0 }
    }

    fn layout(&self) -> BlockLayout {
        BlockLayout::new(self.block_size, self.logical_sector, self.size)
    }

    /// Makes the image in an empty file of the caller's on `host` and opens it for writing. Naming the file
    /// when all is well, and removing it otherwise, is the caller's part. A child's path to its parent is
    /// the one from the folder that the file lies in.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for sizes that the format does not have; [`ErrorKind::InUse`];
    /// [`ErrorKind::Io`] when the host fails.
    pub fn create_in(&self, host: &dyn Host, storage: Arc<dyn Storage>) -> Result<crate::VhdxFile> {
        self.fill_at(host, &storage, storage.path(), None)?;
        crate::OpenOptions::new().writable(true).orphan_children(true).open_file(storage)
    }

    /// Makes the image in a draft and opens it for writing, as a draft until that is
    /// [published](Draft::publish), which is to be when the image is closed. A child's path to its parent is the one
    /// from the folder that the draft is going to lie in.
    ///
    /// # Errors
    /// As [`create_in`](Self::create_in).
    pub fn create_draft(&self, host: &dyn Host, draft: &Draft<'_>) -> Result<crate::VhdxFile> {
        let storage = draft.storage();
        let seal = self.fill_at(host, storage, Some(draft.target()), draft.mark())?;
        draft.seal_with(seal);
        // The draft has the lock, if there can be one.
        let policy = ImagePolicy { writable: true, lock: Lock::None, ..ImagePolicy::default() };
        VhdxFile::from_storage(Arc::clone(storage), &policy).map(crate::VhdxFile::own)
    }

    fn name_durably(&self, host: &dyn Host, path: &Path) -> Result<()> {
        if planted("create-without-folder-flush") {
            return Ok(());
        }
        host.sync_dir(folder_of(path)).map_err(|error| {
            Error::io("create.file", "cannot flush the folder", error).in_path(path)
        })
    }

    /// Makes the empty file in `storage`, which is going to be called `path`, the image, as one that keeps the mark
    /// of a draft. Returns what is to stand in the place of that.
    fn fill_at(
        &self,
        host: &dyn Host,
        storage: &Arc<dyn Storage>,
        path: Option<&Path>,
        mark: Option<String>,
    ) -> Result<Option<Vec<u8>>> {
        let named = |error: Error| error.in_file(storage.name());
        let options = match path {
            Some(path) => self.with_paths(host, path).map_err(named)?,
            None => self.clone(),
        };
        options.validate().map_err(named)?;
        let seal = mark.is_some().then(|| options.identifier(None));
        options.write_to(storage.as_ref(), mark).map_err(named)?;
        options.complete(host, storage.as_ref()).map_err(named)?;
        Ok(seal)
    }

    /// Makes the empty file in `storage` the image, and makes that durable. Until it is complete it bears the mark.
    fn fill(&self, host: &dyn Host, storage: &dyn Storage, mark: Option<String>) -> Result<()> {
        let is_marked = mark.is_some();
        self.write_to(storage, mark)?;
        if is_marked {
            storage.write_at(&self.identifier(None), 0).map_err(|error| {
                Error::io("create.write", "cannot write the new image", error).at(0)
            })?;
        }
        self.complete(host, storage)
    }

    /// Does to a new image what remains to be done to its file, and makes all of it durable.
    fn complete(&self, host: &dyn Host, storage: &dyn Storage) -> Result<()> {
        let failed = |what: &str, error| Error::io("create.file", format!("cannot {what}"), error);
        let given = match self.parent.as_ref().and_then(|parent| parent.model(host).transpose()) {
            Some(model) => model.and_then(|model| storage.copy_owner_from(model.as_ref())),
            None => Ok(()),
        };
        given.map_err(|error| failed("take over mode and owner", error))?;
        if planted("create-without-flush") {
            return Ok(());
        }
        storage.flush().map_err(|error| failed("flush the file", error))
    }

    /// Writes the structures of the image into an empty file, the identifier first: by its mark a draft is known.
    fn write_to(&self, storage: &dyn Storage, mark: Option<String>) -> Result<()> {
        let layout = self.layout();
        let log_at = MIB;
        let metadata_at = log_at + u64::from(self.log_size);
        let bat_at = metadata_at + u64::from(METADATA_LEN);
        let (bat_len, payload_at, len) = (self.bat_len(), self.payload_at(), self.file_len());

        let write = |bytes: &[u8], at| {
            storage.write_at(bytes, at).map_err(|error| {
                Error::io("create.write", "cannot write the new image", error).at(at)
            })
        };
        write(&self.identifier(mark), 0)?;
        let sized = if self.is_fixed { storage.reserve(len) } else { storage.set_len(len) };
        sized.map_err(|error| {
            Error::io("create.size", format!("cannot make room for {len} bytes"), error)
        })?;
        // Zeros that are written rather than a hole: the host finds room for an entry now, and no flush of one
        // has to wait for its own tables.
        let zeros = vec![0; LOG_PIECE.min(self.log_size as usize)];
        for at in (0..u64::from(self.log_size)).step_by(zeros.len()) {
            write(&zeros, log_at + at)?;
        }
        for (i, at) in Header::OFFSETS.into_iter().enumerate() {
            write(&self.header(i as u64, log_at).to_bytes(), at)?;
        }
        let regions = RegionTable {
            entries: vec![
                required_region(region::BAT, bat_at, bat_len),
                required_region(region::METADATA, metadata_at, METADATA_LEN),
            ],
        };
        for at in RegionTable::OFFSETS {
            write(&regions.to_bytes(), at)?;
        }
        write(&self.metadata()?, metadata_at)?;
        if self.is_fixed {
            write_full_bat(&layout, payload_at, &|bytes, at| write(bytes, bat_at + at))?;
        }
        Ok(())
    }

    /// The file type identifier, with the mark of a draft in the place of the creator's name.
    fn identifier(&self, mark: Option<String>) -> Vec<u8> {
        let creator = mark.unwrap_or_else(|| self.creator.clone());
        FileIdentifier { creator }.to_bytes().to_vec()
    }

    fn header(&self, sequence_number: u64, log_offset: u64) -> Header {
        Header {
            sequence_number,
            file_write_guid: self.file_write_guid,
            data_write_guid: self.data_write_guid,
            log_guid: Uuid::nil(),
            log_version: 0,
            version: 1,
            log_length: self.log_size,
            log_offset,
        }
    }

    /// The bytes of the metadata region as far as they are used.
    fn metadata(&self) -> Result<Vec<u8>> {
        let mut flags = FileFlags::empty();
        flags.set(FileFlags::LEAVE_BLOCKS_ALLOCATED, self.is_fixed);
        flags.set(FileFlags::HAS_PARENT, self.parent.is_some());
        let file = FileParameters { block_size: self.block_size, flags };
        let disk = ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED;
        let mut items: Vec<(Uuid, ItemFlags, Vec<u8>)> = vec![
            (metadata::FILE_PARAMETERS, ItemFlags::REQUIRED, file.to_bytes().to_vec()),
            (metadata::VIRTUAL_DISK_SIZE, disk, self.size.to_le_bytes().to_vec()),
            (metadata::VIRTUAL_DISK_ID, disk, self.disk_id.to_bytes_le().to_vec()),
            (metadata::LOGICAL_SECTOR_SIZE, disk, self.logical_sector.to_le_bytes().to_vec()),
            (metadata::PHYSICAL_SECTOR_SIZE, disk, self.physical_sector.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = &self.parent {
            let locator = parent.locator().to_bytes()?;
            items.push((metadata::PARENT_LOCATOR, ItemFlags::REQUIRED, locator));
            let copied = parent.items.iter();
            items.extend(copied.map(|(entry, bytes)| (entry.item, entry.flags, bytes.clone())));
        }
        if let Some(mark) = &self.checkpoint {
            items.push((marks::CHECKPOINT, ItemFlags::USER, mark.to_bytes()));
        }
        let mut table = MetadataTable { entries: Vec::new() };
        let mut bytes = vec![0; MetadataTable::LEN];
        for (item, flags, contents) in items {
            let (offset, length) = (bytes.len() as u32, contents.len() as u32);
            let offset = if length == 0 { 0 } else { offset };
            table.entries.push(MetadataEntry { item, offset, length, flags });
            bytes.extend(contents);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        if bytes.len() > METADATA_LEN as usize {
            let message = "the parent's metadata items do not fit into the metadata region";
            return Err(Error::new(ErrorKind::Unsupported, "create.metadata", message)
                .with_found(format_args!("{} bytes", bytes.len()))
                .with_expected(format_args!("at most {METADATA_LEN}")));
        }
        bytes[..MetadataTable::LEN].copy_from_slice(&table.to_bytes());
        Ok(bytes)
    }

    fn validate(&self) -> Result<()> {
        let refuse = |what: &str, found: u64, expected: &str| {
            Err(Error::new(ErrorKind::InvalidInput, "create.options", format!("impossible {what}"))
                .with_found(found)
                .with_expected(expected))
        };
        let block = u64::from(self.block_size);
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
            return refuse("block size", block, "a power of two from 1 MiB to 256 MiB");
        }
        for sector in [self.logical_sector, self.physical_sector] {
            if ![512, 4096].contains(&sector) {
                return refuse("sector size", sector.into(), "512 or 4096");
            }
        }
        let is_sized = self.size > 0 && self.size <= MAX_SIZE;
        if !is_sized || !self.size.is_multiple_of(self.logical_sector.into()) {
            let expected = "a multiple of the logical sector size, at most 64 TiB";
            return refuse("disk size", self.size, expected);
        }
        let log = u64::from(self.log_size);
        if log == 0 || !log.is_multiple_of(MIB) {
            return refuse("log size", log, "a multiple of 1 MiB, not zero");
        }
        let creator = self.creator.encode_utf16().count();
        if creator > 256 {
            return refuse("length of the creator", creator as u64, "at most 256 UTF-16 units");
        }
        let label = self.checkpoint.as_ref().map_or(0, |mark| mark.label.len());
        if label > CheckpointMark::MOST_LABEL {
            let expected = format!("at most {} bytes", CheckpointMark::MOST_LABEL);
            return refuse("length of the label", label as u64, &expected);
        }
        let Some(parent) = &self.parent else { return Ok(()) };
        if parent.logical_sector != self.logical_sector {
            let expected = format!("the parent's {}", parent.logical_sector);
            return refuse("logical sector size", self.logical_sector.into(), &expected);
        }
        if parent.relative_path.is_none() && parent.absolute_win32_path.is_none() {
            let message = "no path leads from the child to its parent";
            return Err(Error::new(ErrorKind::InvalidInput, "create.parent-path", message)
                .with_section("2.6.2.6.3")
                .with_found("a parent that lies in no folder, or on another volume")
                .with_expected("a relative path, or an absolute Windows path as an option"));
        }
        Ok(())
    }

    /// Refuses to make the image at `path` where that is known beforehand to fail.
    pub(crate) fn check_at(&self, host: &dyn Host, path: &Path) -> Result<()> {
        self.check_free(host, path)?;
        let checked = self.with_paths(host, path).and_then(|options| options.validate());
        checked.map_err(|error| error.in_path(path))
    }

    /// Refuses a name that is not free, be it that of a link which leads nowhere.
    fn check_free(&self, host: &dyn Host, path: &Path) -> Result<()> {
        if self.overwrite || host.stat(path).is_err() && !host.is_link(path).unwrap_or(false) {
            return Ok(());
        }
        let error = io::ErrorKind::AlreadyExists.into();
        Err(Error::io("create.exists", "cannot create the file", error)
            .in_path(path)
            .with_found("another file of that name")
            .with_expected("a name that is free"))
    }

    /// The same with the path from the new file's folder to the parent, where there is one.
    fn with_paths(&self, host: &dyn Host, path: &Path) -> Result<Self> {
        let mut options = self.clone();
        let Some(parent) = &mut options.parent else { return Ok(options) };
        let Some(target) = parent.path.clone() else { return Ok(options) };
        let is_named = parent.absolute_win32_path.is_some();
        if cfg!(windows) && !is_named {
            let target = host.canonical(&target).ok();
            parent.absolute_win32_path =
                target.and_then(|target| target.to_str().map(str::to_owned));
        }
        match way_to(host, folder_of(path), &target, parent.id) {
            Ok(way) => parent.relative_path = Some(way),
            // The caller says by what other path Windows is to find it, or it has one of that kind.
            Err(_) if is_named || parent.absolute_win32_path.is_some() => {}
            Err(error) => return Err(error),
        }
        Ok(options)
    }
}

impl Parent {
    /// The parent's file, whose owner and permissions the child gets, by the handle that it was opened with, or
    /// where that is closed by its name, if it is still the same file's.
    fn model(&self, host: &dyn Host) -> io::Result<Option<Arc<dyn Storage>>> {
        if let Some(file) = self.file.upgrade() {
            return Ok(Some(file));
        }
        let Some(path) = &self.path else { return Ok(None) };
        let file = host.open(path, Access::Read)?;
        if file.id()? != self.id {
            return Err(io::Error::other("the parent's name is another file's by now"));
        }
        Ok(Some(file))
    }

    fn locator(&self) -> ParentLocator {
        let linkage = format!("{{{}}}", self.linkage.hyphenated());
        let mut entries = vec![("parent_linkage".to_owned(), linkage)];
        let paths = [
            ("relative_path", &self.relative_path),
            ("absolute_win32_path", &self.absolute_win32_path),
        ];
        for (key, path) in paths {
            entries.extend(path.iter().map(|path| (key.to_owned(), path.clone())));
        }
        ParentLocator { locator_type: locator::VHDX_TYPE, entries }
    }
}

/// The new file by its name, opened and locked as any other image is.
fn reopened(
    host: &dyn Host,
    path: &Path,
    policy: &ImagePolicy,
    made: &dyn Storage,
) -> Result<Arc<dyn Storage>> {
    let failed =
        |error| Error::io("file.open", "cannot open the file", error).in_path(path).limits_named();
    let access = if policy.writable { Access::ReadWrite } else { Access::Read };
    let storage = host.open(path, access).map_err(failed)?;
    let ids = made.id().and_then(|made| Ok((made, storage.id()?))).map_err(failed)?;
    if ids.0 != ids.1 {
        let message = "another file took the name of the new image";
        return Err(Error::new(ErrorKind::InUse, "create.swapped", message)
            .in_path(path)
            .with_found("another file")
            .with_expected("the one that was made"));
    }
    // Two handles do not have one lock.
    match made.unlock() {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(failed(error)),
        _ => Ok(storage),
    }
}

fn required_region(guid: Uuid, at: u64, length: u32) -> RegionEntry {
    RegionEntry { guid, offset: FileOffset::new(at), length, flags: RegionFlags::REQUIRED }
}

/// Writes the table of a disk whose blocks lie one after the other from `payload_at` on.
fn write_full_bat(
    layout: &BlockLayout,
    payload_at: u64,
    write: &dyn Fn(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut piece = Vec::new();
    let mut piece_at = 0;
    for block in (0..layout.blocks()).map(BlockIndex) {
        let place = layout.payload_index(block).0 * ENTRY_LEN;
        if place - piece_at >= BAT_PIECE {
            write(&piece, piece_at)?;
            piece.clear();
            piece_at = place;
        }
        // Sector bitmap entries in between stay zero.
        piece.resize((place - piece_at) as usize, 0);
        let at = FileOffset::new(payload_at + block.0 * layout.block_size());
        piece.extend(BatEntry::new(6, at).to_bytes());
    }
    write(&piece, piece_at)
}
