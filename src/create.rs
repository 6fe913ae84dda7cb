//! Creates images.

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

/// Options of a new image.
///
/// The defaults are those of Windows: blocks of 32 MiB, of 2 MiB in a differencing image, 512-byte
/// logical and 4096-byte physical sectors, a log of 1 MiB.
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

/// The properties that a child takes from its parent.
#[derive(Clone, Debug)]
struct Parent {
    linkage: Uuid,
    logical_sector: u32,
    /// The file whose owner and permissions the child gets. A weak reference: it must not keep the
    /// lock.
    file: Weak<dyn Storage>,
    id: Option<FileId>,
    path: Option<PathBuf>,
    relative_path: Option<String>,
    absolute_win32_path: Option<String>,
    /// Items of the virtual disk other than those of the format.
    items: Vec<(MetadataEntry, Vec<u8>)>,
}

impl CreateOptions {
    /// A dynamic image of a disk of `size` bytes: space for a block is allocated when it is
    /// written.
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

    /// A fixed image of a disk of `size` bytes: all space is allocated at once.
    pub fn fixed(size: u64) -> Self {
        Self { is_fixed: true, ..Self::dynamic(size) }
    }

    /// A differencing image over `parent`, with its size, sectors and virtual-disk metadata.
    ///
    /// The child refers to the parent in its present state: a parent that is open for writing is
    /// flushed, and its next change gives it another identity, which the child does not accept.
    ///
    /// The path to the parent is recorded as Windows writes it, and checked first: its names must
    /// be valid UTF-8 without `\\`, and if it would not lead from the child back to this file, no
    /// child is created.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the parent's metadata cannot be read; those of [`Disk::flush`](crate::Disk::flush);
    /// [`ErrorKind::Unfinished`] and [`ErrorKind::Merged`] if the parent is not a point in time
    /// because of a merge.
    pub fn child_of(parent: &crate::VhdxFile) -> Result<Self> {
        let linkage = parent.hand_out_identity()?;
        parent.with(|parent| Self::child_with(parent, linkage))
    }

    /// The same for a parent that will have the identity `linkage`.
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

    /// Size of the disk in bytes: a multiple of the logical sector size, at most 64 TiB. A child
    /// may be larger than its parent.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = bytes;
        self
    }

    /// Size of a payload block in bytes: a power of two from 1 MiB to 256 MiB.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// Logical sector size in bytes: 512 or 4096. It must be the parent's for a child.
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

    /// The name of the creating program, up to 256 UTF-16 units.
    pub fn creator(mut self, name: impl Into<String>) -> Self {
        self.creator = name.into();
        self
    }

    /// The identity of the virtual disk. By default it is new, and the parent's for a child.
    pub fn disk_id(mut self, id: Uuid) -> Self {
        self.disk_id = id;
        self
    }

    /// The file's first `FileWriteGuid` and `DataWriteGuid`, for reproducible images.
    pub fn write_guids(mut self, file: Uuid, data: Uuid) -> Self {
        (self.file_write_guid, self.data_write_guid) = (file, data);
        self
    }

    /// The absolute path of the parent on a Windows machine, recorded beside the relative one. It
    /// has no effect without a parent.
    pub fn absolute_win32_path(mut self, path: impl Into<String>) -> Self {
        if let Some(parent) = &mut self.parent {
            parent.absolute_win32_path = Some(path.into());
        }
        self
    }

    /// Marks the image as created by a checkpoint: the label of the point in time below it, up to
    /// 4096 bytes, and its time, to the second. See
    /// [`VhdxFile::checkpoint`](crate::VhdxFile::checkpoint).
    pub fn checkpoint(mut self, label: impl Into<String>, time: SystemTime) -> Self {
        self.checkpoint = Some(CheckpointMark { label: label.into(), time });
        self
    }

    /// Whether the new file may replace an existing one, which stays unchanged until the new file
    /// is complete. An image that has children cannot be replaced.
    pub fn overwrite(mut self, yes: bool) -> Self {
        self.overwrite = yes;
        self
    }

    /// Whether the image that is [overwritten](Self::overwrite) may have children, which then lose
    /// their parent.
    pub fn orphan_children(mut self, yes: bool) -> Self {
        self.orphan_children = yes;
        self
    }

    /// A folder to search for children of the replaced image, besides its own. Each call adds one.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.child_folders.push(folder.into());
        self
    }

    /// Creates the image at `path` on this machine and opens it for writing.
    ///
    /// # Errors
    /// Those of [`create_on`](Self::create_on).
    pub fn create(&self, path: impl AsRef<Path>) -> Result<crate::VhdxFile> {
        self.create_on(Arc::new(crate::storage::LocalHost), path)
    }

    /// Creates the image at `path` on a host and opens it for writing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for sizes that the format does not allow, and for a child that
    /// would replace its parent; [`ErrorKind::HasChildren`] if the file to be replaced has
    /// children; [`ErrorKind::Unsupported`] if no path that can be recorded leads to the parent,
    /// see [`child_of`](Self::child_of); [`ErrorKind::Io`] if the host fails or the name is taken
    /// and [`overwrite`](Self::overwrite) is not set. A failed call leaves nothing behind, except a
    /// complete image that has already replaced another file.
    pub fn create_on(
        &self,
        host: Arc<dyn Host>,
        path: impl AsRef<Path>,
    ) -> Result<crate::VhdxFile> {
        // No image refers to a new identity, but a given one may be another file's.
        let children = ChildSearch { orphans: true, ..ChildSearch::beside(Arc::clone(&host)) };
        let policy =
            WritePolicy { children: Some(children), ..WritePolicy::of(ImagePolicy::default()) };
        let mut warnings = Vec::new();
        let old = self.check_replaced(&host, path.as_ref(), &mut warnings)?;
        let open = |storage, mut more: Vec<Warning>| {
            more.extend(warnings);
            Writer::open(storage, &policy, more).map(OpenImage::from)
        };
        let image =
            self.create_replacing(host.as_ref(), path.as_ref(), Access::ReadWrite, old, open)?;
        Ok(crate::VhdxFile::own(image))
    }

    /// The file to be replaced, if there is one. Refuses a file that other images need, and warns
    /// of places that could not be examined.
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
            other => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("this is {other}"))),
        };
        let file = regular.map_err(|error| {
            let what = "cannot examine the file to be replaced";
            Error::io("create.file", what, error).in_path(path).limits_named()
        })?;
        let id = file.id().ok().flatten();
        if self.parent.as_ref().is_some_and(|parent| id.is_some() && parent.id == id) {
            let message = "the new image would replace its own parent";
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

    /// Creates the image and opens it with the policy, for writing or for reading.
    pub(crate) fn create_as(
        &self,
        host: &dyn Host,
        path: &Path,
        policy: &ImagePolicy,
        writable: bool,
    ) -> Result<OpenImage> {
        let access = if writable { Access::ReadWrite } else { Access::Read };
        self.create_replacing(host, path, access, None, |storage, warnings| {
            if writable {
                let policy = WritePolicy::of(policy.clone());
                return Writer::open(storage, &policy, warnings).map(OpenImage::from);
            }
            let mut core = Core::open(storage, policy)?;
            core.warnings.extend(warnings);
            Ok(OpenImage { core: Arc::new(core), writer: None })
        })
    }

    fn create_replacing(
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
        let filled = options.write_image(host, draft.storage().as_ref(), draft.mark());
        filled.map_err(|error| error.in_path(path))?;
        let old_left =
            draft.publish(old.as_deref()).map_err(failed("rename the file to its final name"))?;
        warnings.extend(old_left.map(|old| {
            let message = "the file that was replaced could not be removed";
            Warning::new("create.old-left", old.display(), message)
        }));
        let opened = options.sync_folder(host, path).and_then(|()| {
            let storage = open_published(host, path, access, draft.storage().as_ref())?;
            open(storage, warnings)
        });
        opened.inspect_err(|_| {
            // The new file is complete: it is removed, unless it has replaced another one, which is
            // lost already.
            if old.is_none() {
                let is_ours = |path: &Path| is_file(host, path, draft.storage().as_ref());
                drop(storage::remove(host, path, &is_ours));
            }
        })
    }

    /// Creates the image in an empty file of the caller's on `host` and opens it for writing. The
    /// caller names the file on success and removes it on failure. A child's path to its parent
    /// starts from the folder of the file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for sizes that the format does not allow; [`ErrorKind::InUse`];
    /// [`ErrorKind::Io`] if the host fails.
    pub fn create_in(&self, host: &dyn Host, storage: Arc<dyn Storage>) -> Result<crate::VhdxFile> {
        self.write_for(host, &storage, storage.path(), None)?;
        let host: Arc<dyn Host> = Arc::new(storage::LocalHost);
        let children = Some(ChildSearch { orphans: true, ..ChildSearch::beside(host) });
        let policy = WritePolicy { children, ..WritePolicy::of(ImagePolicy::default()) };
        OpenImage::write(storage, &policy).map(crate::VhdxFile::own)
    }

    /// Creates the image in a draft and opens it for writing. The image must be closed when the
    /// draft is [published](Draft::publish). A child's path to its parent starts from the final
    /// folder of the draft.
    ///
    /// # Errors
    /// Those of [`create_in`](Self::create_in).
    pub fn create_draft(&self, host: &dyn Host, draft: &Draft<'_>) -> Result<crate::VhdxFile> {
        let storage = draft.storage();
        let seal = self.write_for(host, storage, Some(draft.target()), draft.mark())?;
        draft.seal_with(seal);
        // The draft holds the lock, if the host has locks.
        let policy = ImagePolicy { lock: Lock::None, ..ImagePolicy::default() };
        OpenImage::write(Arc::clone(storage), &WritePolicy::of(policy)).map(crate::VhdxFile::own)
    }

    fn sync_folder(&self, host: &dyn Host, path: &Path) -> Result<()> {
        host.sync_dir(folder_of(path)).map_err(|error| {
            Error::io("create.file", "cannot flush the folder", error).in_path(path)
        })
    }

    /// Writes the image to the empty file in `storage`, whose final name is `path`, with the mark
    /// of a draft if there is one. Returns the bytes that replace the mark.
    fn write_for(
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
        options.finish(host, storage.as_ref()).map_err(named)?;
        Ok(seal)
    }

    /// Writes the image to the empty file in `storage`, durably. The file bears the mark until it
    /// is complete.
    fn write_image(
        &self,
        host: &dyn Host,
        storage: &dyn Storage,
        mark: Option<String>,
    ) -> Result<()> {
        let is_marked = mark.is_some();
        self.write_to(storage, mark)?;
        if is_marked {
            storage.write_at(&self.identifier(None), 0).map_err(|error| {
                Error::io("create.write", "cannot write the new image", error).at(0)
            })?;
        }
        self.finish(host, storage)
    }

    /// Sets the owner and permissions of a new file, and flushes it.
    fn finish(&self, host: &dyn Host, storage: &dyn Storage) -> Result<()> {
        let failed = |what: &str, error| Error::io("create.file", format!("cannot {what}"), error);
        let given = match self
            .parent
            .as_ref()
            .and_then(|parent| parent.permissions_source(host).transpose())
        {
            Some(source) => source.and_then(|source| storage.copy_owner_from(source.as_ref())),
            None => Ok(()),
        };
        given.map_err(|error| failed("copy the mode and owner", error))?;
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
            let expected = "a multiple of the logical sector size, from one sector to 64 TiB";
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
                .with_found("a parent without a path, or on another volume")
                .with_expected("a relative path, or an absolute Windows path as an option"));
        }
        Ok(())
    }

    /// Fails if creating the image at `path` is known to fail.
    pub(crate) fn check_at(&self, host: &dyn Host, path: &Path) -> Result<()> {
        self.check_free(host, path)?;
        let checked = self.with_paths(host, path).and_then(|options| options.validate());
        checked.map_err(|error| error.in_path(path))
    }

    /// Refuses a name in use, also by a dangling link.
    fn check_free(&self, host: &dyn Host, path: &Path) -> Result<()> {
        let there = match host.stat(path) {
            _ if self.overwrite => return Ok(()),
            Ok(stat) => stat.kind.to_string(),
            Err(_) if host.is_link(path).unwrap_or(false) => "a dangling link".into(),
            Err(_) => return Ok(()),
        };
        let error = io::ErrorKind::AlreadyExists.into();
        Err(Error::io("create.exists", "cannot create the file", error)
            .in_path(path)
            .with_found(format_args!("{there} of that name"))
            .with_expected("an unused name"))
    }

    /// The same options with the paths from the new file's folder to the parent, if there is one.
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
            // The caller gave the path for Windows, or an absolute one was found.
            Err(_) if is_named || parent.absolute_win32_path.is_some() => {}
            Err(error) => return Err(error),
        }
        Ok(options)
    }
}

impl Parent {
    /// The parent's file, whose owner and permissions the child gets: its open handle or, if that
    /// is closed, the file at its path if it is still the same.
    fn permissions_source(&self, host: &dyn Host) -> io::Result<Option<Arc<dyn Storage>>> {
        if let Some(file) = self.file.upgrade() {
            return Ok(Some(file));
        }
        let Some(path) = &self.path else { return Ok(None) };
        let file = host.open(path, Access::Read)?;
        if file.id()? != self.id {
            return Err(io::Error::other("the parent's path leads to another file now"));
        }
        Ok(Some(file))
    }
}

/// Opens and locks the new file by its name, as any other image.
fn open_published(
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
            .with_expected("the new image"));
    }
    // The two handles cannot both hold the lock.
    match made.unlock() {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(failed(error)),
        _ => Ok(storage),
    }
}
