//! Options for opening images and chains.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::chain::{ChainPolicy, DiffChain, Followed, Linkage, Opened, ParentSource, PathSource};
use crate::error::{ErrorKind, Result};
use crate::file::VhdxFile;
use crate::image::{ImagePolicy, Lock, LogPolicy, OneFlush, names_log, open_storage};
use crate::storage::{Access, Host, LocalHost, Storage};
use crate::tables::Budget;
use crate::warning::Warning;
use crate::write::{ChildSearch, OpenImage, Pending, WritePolicy};

/// Options for opening an image or a chain. The default is read-only.
///
/// ```no_run
/// use avhdx::{LogPolicy, OpenOptions, PathSource};
///
/// let chain = OpenOptions::new()
///     .log(LogPolicy::Refuse)
///     .parents(PathSource::new().folder("/backup/parents").map(r"D:\vm", "/mnt/vm"))
///     .open("/mnt/vm/web_1A2B.avhdx")?;
/// # let _ = chain;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenOptions {
    image: ImagePolicy,
    writable: bool,
    cancel: Option<Arc<AtomicBool>>,
    chain: ChainPolicy,
    orphan_children: bool,
    child_folders: Vec<PathBuf>,
    host: Arc<dyn Host>,
    parents: Option<Arc<dyn ParentSource>>,
}

impl OpenOptions {
    /// Creates the defaults: shared locks, logs replayed in memory, identities verified, parents found by
    /// their recorded paths.
    pub fn new() -> Self {
        Self {
            image: ImagePolicy::default(),
            writable: false,
            cancel: None,
            chain: ChainPolicy::default(),
            orphan_children: false,
            child_folders: Vec::new(),
            host: Arc::new(LocalHost),
            parents: None,
        }
    }

    /// Whether to open the image, or the tip of the chain, for writing too; parents are always opened read-only. A
    /// pending log is then replayed to the file. Before that, all tables are checked, as before the first
    /// change of any image: an image that would refuse changes is not opened, and its file is not touched. Opening an
    /// image without a pending log takes no time that grows with the disk. For failures of the host during
    /// writes, see [`VhdxFile`](crate::VhdxFile#after-a-failure).
    pub fn writable(mut self, yes: bool) -> Self {
        self.writable = yes;
        self
    }

    /// Whether to open an image for writing although it has children, which a write cuts
    /// off: they identify their parent by an identity that changes with its contents. Without this consent such an
    /// image is refused with [`ErrorKind::HasChildren`](crate::ErrorKind::HasChildren).
    pub fn orphan_children(mut self, yes: bool) -> Self {
        self.orphan_children = yes;
        self
    }

    /// Adds a folder to search for children before the image is opened for writing, besides the image's own
    /// folder. A folder given here must be readable; failures in the image's own folder are only
    /// warnings.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.child_folders.push(folder.into());
        self
    }

    /// Sets whether a flush of new blocks may cost one flush of the file, where that is enough. By default the storage
    /// decides.
    pub fn one_flush(mut self, when: OneFlush) -> Self {
        self.image.one_flush = when;
        self
    }

    /// Sets a flag by which another thread can stop an open for writing while it replays a log, which
    /// may take long if it zeros much. The open then fails with
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) soon after; the disk reads as before, and the next
    /// open replays the log from the start.
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Sets how files are locked.
    pub fn lock(mut self, lock: Lock) -> Self {
        self.image.lock = lock;
        self
    }

    /// Sets how a pending log is handled.
    pub fn log(mut self, policy: LogPolicy) -> Self {
        self.image.log = policy;
        self
    }

    /// Sets whether parents must have the recorded identity.
    pub fn linkage(mut self, linkage: Linkage) -> Self {
        self.chain.linkage = linkage;
        self
    }

    /// Sets the memory budget for tables, which all holders of a clone share.
    pub fn budget(mut self, shared: Budget) -> Self {
        self.image.budget = shared;
        self
    }

    /// Sets where parents come from. The default is a [`PathSource`] over the host.
    pub fn parents(mut self, source: impl ParentSource + 'static) -> Self {
        self.parents = Some(Arc::new(source));
        self
    }

    /// Sets how many layers a chain may have. The default is 256.
    pub fn max_depth(mut self, layers: usize) -> Self {
        self.chain.max_depth = layers;
        self
    }

    /// Whether a chain may be opened at an image that an unfinished merge left without a point in time of its own: a
    /// child whose data is completely in its parent, or a parent that holds a mixture. Without this, they
    /// are refused with [`ErrorKind::Merged`](crate::ErrorKind::Merged) and
    /// [`ErrorKind::Unfinished`](crate::ErrorKind::Unfinished). For resuming merges and for forensics.
    pub fn unfinished(mut self, yes: bool) -> Self {
        self.chain.unfinished = yes;
        self
    }

    /// Sets the host of the paths given to [`open`](Self::open) and [`open_image`](Self::open_image). The
    /// default is this machine.
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Opens the image at `path` with all its parents.
    ///
    /// # Errors
    /// As for [`open_image`](Self::open_image) for each layer, and for [`open_chain`](Self::open_chain).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<DiffChain> {
        if self.writable {
            self.refuse_before_replay(path.as_ref())?;
        }
        self.open_chain(self.open_image(path)?)
    }

    /// Refuses a chain that cannot be opened, before the log of its tip is replayed to the file.
    fn refuse_before_replay(&self, path: &Path) -> Result<()> {
        // Faults of the tip itself are reported by the open for writing.
        let Ok(storage) = self.host.open(path, Access::Read) else { return Ok(()) };
        let is_pending = names_log(storage.as_ref()).map_err(|error| error.in_file(storage.name()));
        if !is_pending? {
            return Ok(());
        }
        let reading = self.clone().writable(false);
        match reading.open_file(storage) {
            Ok(tip) => reading.open_chain(tip).map(drop),
            Err(error) if error.kind() == ErrorKind::Io => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Opens the image at `path` without its parents.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the host cannot open it,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for a VHD set (`.vhds`), and as for
    /// [`open_file`](Self::open_file).
    pub fn open_image(&self, path: impl AsRef<Path>) -> Result<VhdxFile> {
        self.open_file(self.open_storage(path.as_ref())?)
    }

    fn open_storage(&self, path: &Path) -> Result<Arc<dyn Storage>> {
        let access = if self.writable { Access::ReadWrite } else { Access::Read };
        open_storage(self.host.as_ref(), path, access)
    }

    /// Opens the image at `path` for writing, as far as that goes without its pending log replayed to the file.
    pub(crate) fn open_pending(&self, path: &Path) -> Result<Pending> {
        let storage = self.clone().writable(true).open_storage(path)?;
        Pending::open(storage, &self.write_policy(), Vec::new())
    }

    /// Opens the image in `storage` without its parents.
    ///
    /// # Errors
    /// [`NotVhdx`](crate::ErrorKind::NotVhdx), [`Damaged`](crate::ErrorKind::Damaged) or
    /// [`Unsupported`](crate::ErrorKind::Unsupported) depending on the contents of the file;
    /// [`Damaged`](crate::ErrorKind::Damaged) also for faults of the tables if it is opened for writing and its
    /// log is pending;
    /// [`LogWithoutEntries`](crate::ErrorKind::LogWithoutEntries) and
    /// [`LogPending`](crate::ErrorKind::LogPending) for its log; [`InUse`](crate::ErrorKind::InUse);
    /// [`HasChildren`](crate::ErrorKind::HasChildren) if it is opened for writing.
    pub fn open_file(&self, storage: Arc<dyn Storage>) -> Result<VhdxFile> {
        let image = match self.writable {
            true => OpenImage::write(storage, &self.write_policy())?,
            false => {
                let any_locator = self.chain.linkage == Linkage::Ignore;
                OpenImage::read(storage, &ImagePolicy { any_locator, ..self.image.clone() })?
            }
        };
        Ok(VhdxFile::own(image))
    }

    /// Checks that no image needs `file` as its parent, so that it can be replaced or removed. Children are searched for
    /// as before a [write](Self::writable); places that cannot be read are returned as warnings.
    ///
    /// # Errors
    /// [`HasChildren`](crate::ErrorKind::HasChildren), unless the options consent to
    /// [orphaning](Self::orphan_children) them; [`Io`](crate::ErrorKind::Io) if the file or a folder given to
    /// [`children_in`](Self::children_in) cannot be read.
    pub fn check_childless(&self, file: &dyn Storage) -> Result<Vec<Warning>> {
        self.child_search().refuse_loss(file)
    }

    /// Finds and opens the parents of `tip`.
    ///
    /// # Errors
    /// [`ParentMissing`](crate::ErrorKind::ParentMissing),
    /// [`ParentMismatch`](crate::ErrorKind::ParentMismatch) and
    /// [`ParentDenied`](crate::ErrorKind::ParentDenied) if a parent cannot be found or used;
    /// [`Damaged`](crate::ErrorKind::Damaged) if the chain is a loop or its layers do not fit together;
    /// [`Limit`](crate::ErrorKind::Limit) if it is deeper than allowed.
    pub fn open_chain(&self, tip: VhdxFile) -> Result<DiffChain> {
        let opened = Opened {
            host: Arc::clone(&self.host),
            images: self.image.clone(),
            child_folders: self.child_folders.clone(),
        };
        DiffChain::assemble(tip, &self.chain, self.source().as_ref(), opened)
    }

    /// Finds and opens the parents of `tip` as far as possible, to examine a broken chain. The
    /// images are not connected: reading data that one does not hold is an error, never zeros.
    pub fn follow(&self, tip: VhdxFile) -> Followed {
        Followed::follow(tip, &self.chain, &self.image, self.source().as_ref())
    }

    pub(crate) fn child_search(&self) -> ChildSearch {
        ChildSearch {
            folders: self.child_folders.clone(),
            orphans: self.orphan_children,
            ..ChildSearch::beside(Arc::clone(&self.host))
        }
    }

    pub(crate) fn write_policy(&self) -> WritePolicy {
        WritePolicy {
            image: self.image.clone(),
            cancel: self.cancel.clone(),
            children: Some(self.child_search()),
        }
    }

    pub(crate) fn cancel_flag(&self) -> Option<&AtomicBool> {
        self.cancel.as_deref()
    }

    pub(crate) fn host_used(&self) -> &Arc<dyn Host> {
        &self.host
    }

    pub(crate) fn policies(&self) -> (&ImagePolicy, &ChainPolicy) {
        (&self.image, &self.chain)
    }

    pub(crate) fn source(&self) -> Arc<dyn ParentSource> {
        self.parents
            .clone()
            .unwrap_or_else(|| Arc::new(PathSource::new().host(Arc::clone(&self.host))))
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}
