//! Making images.

mod contents;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::format::marks::CheckpointMark;
use crate::format::metadata::{self, MetadataEntry};
use crate::image::{Core, ImagePolicy, Lock};
use crate::names::recordable_path;
use crate::storage::{
    self, Access, Draft, FileId, FileKind, Host, Storage, folder_of, is_file, real_place,
};
use crate::types::MIB;
use crate::warning::Warning;
use crate::write::{ChildSearch, OpenImage, WritePolicy, Writer, clear_drafts};

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
        let linkage = parent.hand_out_identity()?;
        parent.with(|parent| Self::child_with(parent, linkage))
    }

    /// The same for a parent that is going to be known by this identity.
    pub(crate) fn child_with(parent: &Core, linkage: Uuid) -> Result<Self> {
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
            WritePolicy { children: Some(children), ..WritePolicy::of(ImagePolicy::default()) };
        let mut warnings = Vec::new();
        let old = self.check_replaced(&host, path.as_ref(), &mut warnings)?;
        let open = |storage, mut more: Vec<Warning>| {
            more.extend(warnings);
            Writer::open(storage, &policy, more).map(OpenImage::from)
        };
        let image = self.create_over(host.as_ref(), path.as_ref(), Access::ReadWrite, old, open)?;
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

    /// Makes the image, and opens it as the policy says, for writing or only to be read.
    pub(crate) fn create_as(
        &self,
        host: &dyn Host,
        path: &Path,
        policy: &ImagePolicy,
        writable: bool,
    ) -> Result<OpenImage> {
        let access = if writable { Access::ReadWrite } else { Access::Read };
        self.create_over(host, path, access, None, |storage, warnings| {
            if writable {
                let policy = WritePolicy::of(policy.clone());
                return Writer::open(storage, &policy, warnings).map(OpenImage::from);
            }
            let mut core = Core::open(storage, policy)?;
            core.warnings.extend(warnings);
            Ok(OpenImage { core: Arc::new(core), writer: None })
        })
    }

    fn create_over(
        &self,
        host: &dyn Host,
        path: &Path,
        access: Access,
        old: Option<Arc<dyn Storage>>,
        open: impl FnOnce(Arc<dyn Storage>, Vec<Warning>) -> Result<OpenImage>,
    ) -> Result<OpenImage> {
        let path = &real_place(host, path);
        let failed = |what| {
            move |error| Error::io("create.file", format!("cannot {what}"), error).in_path(path)
        };
        self.check_free(host, path)?;
        let options = self.with_paths(host, path).map_err(|error| error.in_path(path))?;
        options.validate().map_err(|error| error.in_path(path))?;
        let mut warnings = clear_drafts(host, folder_of(path));
        let draft = Draft::new(host, path).map_err(failed("create the file"))?;
        let filled = options.fill(host, draft.storage().as_ref(), draft.mark());
        filled.map_err(|error| error.in_path(path))?;
        let old_left = draft.publish(old.as_deref()).map_err(failed("give the file its name"))?;
        warnings.extend(old_left.map(|old| {
            let message = "the file that was replaced could not be removed";
            Warning::new("create.old-left", old.display(), message)
        }));
        let opened = options.name_durably(host, path).and_then(|()| {
            let storage = reopened(host, path, access, draft.storage().as_ref())?;
            open(storage, warnings)
        });
        opened.inspect_err(|_| {
            // The file is ours, and complete: it goes, unless it took the place of another, of which
            // nothing would be left then.
            if old.is_none() {
                let is_ours = |path: &Path| is_file(host, path, draft.storage().as_ref());
                drop(storage::remove(host, path, &is_ours));
            }
        })
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
        let host: Arc<dyn Host> = Arc::new(storage::LocalHost);
        let children = Some(ChildSearch { orphans: true, ..ChildSearch::beside(host) });
        let policy = WritePolicy { children, ..WritePolicy::of(ImagePolicy::default()) };
        OpenImage::write(storage, &policy).map(crate::VhdxFile::own)
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
        let policy = ImagePolicy { lock: Lock::None, ..ImagePolicy::default() };
        OpenImage::write(Arc::clone(storage), &WritePolicy::of(policy)).map(crate::VhdxFile::own)
    }

    fn name_durably(&self, host: &dyn Host, path: &Path) -> Result<()> {
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
        storage.flush().map_err(|error| failed("flush the file", error))
    }

    fn validate(&self) -> Result<()> {
        let refuse = |what: &str, found: u64, expected: &str| {
            Err(Error::new(ErrorKind::InvalidInput, "create.options", format!("invalid {what}"))
                .with_found(found)
                .with_expected(expected))
        };
        if !metadata::is_block_size(self.block_size) {
            return refuse("block size", self.block_size.into(), metadata::BLOCK_SIZES);
        }
        for sector in [self.logical_sector, self.physical_sector] {
            if !metadata::is_sector_size(sector) {
                return refuse("sector size", sector.into(), metadata::SECTOR_SIZES);
            }
        }
        if self.size == 0 || !metadata::is_disk_size(self.size, self.logical_sector) {
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
        match recordable_path(host, folder_of(path), &target, parent.id) {
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
}

/// The new file by its name, opened and locked as any other image is.
fn reopened(
    host: &dyn Host,
    path: &Path,
    access: Access,
    made: &dyn Storage,
) -> Result<Arc<dyn Storage>> {
    let failed =
        |error| Error::io("file.open", "cannot open the file", error).in_path(path).limits_named();
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
