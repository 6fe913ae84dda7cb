//! How images and chains are opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::chain::{ChainPolicy, DiffChain, Followed, Linkage, Opened, ParentSource, PathSource};
use crate::error::{Error, ErrorKind, Result};
use crate::file::VhdxFile;
use crate::image::{self, ImagePolicy, Lock, LogPolicy, Warning, names_log, refuse_by_name};
use crate::storage::{Access, Host, LocalHost, Storage};
use crate::tables::Budget;
use crate::write::ChildSearch;

/// How to open an image or a chain: for reading unless told otherwise.
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
    chain: ChainPolicy,
    orphan_children: bool,
    child_folders: Vec<PathBuf>,
    host: Arc<dyn Host>,
    parents: Option<Arc<dyn ParentSource>>,
}

impl OpenOptions {
    /// The defaults: shared locks, logs replayed in memory, identities verified, parents found by
    /// their recorded paths.
    pub fn new() -> Self {
        Self {
            image: ImagePolicy::default(),
            chain: ChainPolicy::default(),
            orphan_children: false,
            child_folders: Vec::new(),
            host: Arc::new(LocalHost),
            parents: None,
        }
    }

    /// Whether the image, or the tip of the chain, is opened for writing too; parents never are. A log
    /// that is not empty is then replayed to the file. First its tables are gone over, all of them, as before the first
    /// change of any image: one that would refuse to be changed is not opened, and its file stays as it is. Opening an
    /// image without a log costs nothing that grows with the disk. What holds when the host fails while it is
    /// written is said at [`VhdxFile`](crate::VhdxFile#after-a-failure).
    pub fn writable(mut self, yes: bool) -> Self {
        self.image.writable = yes;
        self
    }

    /// Has a pending log wait for the [replay](image::Core::replay) of whoever opens the image for writing.
    pub(crate) fn replay_later(mut self) -> Self {
        self.image.replay_later = true;
        self
    }

    /// Whether an image may be opened for writing although children of it are found, which a write cuts
    /// off: they know their parent by an identity that changes with it. Without this consent such an
    /// image is refused with [`ErrorKind::HasChildren`](crate::ErrorKind::HasChildren).
    pub fn orphan_children(mut self, yes: bool) -> Self {
        self.orphan_children = yes;
        self
    }

    /// A folder to look for children in, beside that of the image itself, before it is opened for
    /// writing. Each call adds one. One that cannot be listed is an error; what cannot be looked at in the
    /// image's own folder is warned of.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.child_folders.push(folder.into());
        self
    }

    /// A flag that another thread sets to have an open for writing stop in the middle of replaying a log, which
    /// may take long where it zeros much: the open then fails with
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) soon after. The file then reads as before, its log
    /// is still there, and the next open replays it from the start.
    pub fn cancel(mut self, flag: Arc<AtomicBool>) -> Self {
        self.image.cancel = Some(flag);
        self
    }

    /// How files are locked.
    pub fn lock(mut self, lock: Lock) -> Self {
        self.image.lock = lock;
        self
    }

    /// What to do about a log that is not empty.
    pub fn log(mut self, policy: LogPolicy) -> Self {
        self.image.log = policy;
        self
    }

    /// Whether parents must have the recorded identity.
    pub fn linkage(mut self, linkage: Linkage) -> Self {
        self.chain.linkage = linkage;
        self
    }

    /// The memory for tables, shared with whoever was given a clone of it.
    pub fn budget(mut self, shared: Budget) -> Self {
        self.image.budget = shared;
        self
    }

    /// Where parents come from. By default a [`PathSource`] over the host.
    pub fn parents(mut self, source: impl ParentSource + 'static) -> Self {
        self.parents = Some(Arc::new(source));
        self
    }

    /// Layers that a chain may have, 256 unless told otherwise.
    pub fn max_depth(mut self, layers: usize) -> Self {
        self.chain.max_depth = layers;
        self
    }

    /// Whether a chain may be opened by an image that a merge left as no point in time: a child whose contents are
    /// all in its parent by now, or a parent that holds a mixture until the merge is completed. Otherwise these
    /// are refused with [`ErrorKind::Merged`](crate::ErrorKind::Merged) and
    /// [`ErrorKind::Unfinished`](crate::ErrorKind::Unfinished). For resuming merges and for forensics.
    pub fn unfinished(mut self, yes: bool) -> Self {
        self.chain.unfinished = yes;
        self
    }

    /// The host that paths given to [`open`](Self::open) and [`open_image`](Self::open_image) lie on:
    /// this machine unless told otherwise.
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// Opens the image at `path` with all its parents.
    ///
    /// # Errors
    /// As [`open_image`](Self::open_image) for each layer, and as [`open_chain`](Self::open_chain).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<DiffChain> {
        if self.image.writable {
            self.refuse_before_replay(path.as_ref())?;
        }
        self.open_chain(self.open_image(path)?)
    }

    /// Refuses a chain that cannot be opened before the log of its tip is replayed to the file.
    fn refuse_before_replay(&self, path: &Path) -> Result<()> {
        // Whoever opens it for writing says what is wrong with the tip itself.
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

    /// Opens the image at `path` alone.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when the host cannot open it,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for a VHD set (`.vhds`), and as
    /// [`open_file`](Self::open_file).
    pub fn open_image(&self, path: impl AsRef<Path>) -> Result<VhdxFile> {
        let path = path.as_ref();
        refuse_by_name(self.host.as_ref(), path)?;
        let access = if self.image.writable { Access::ReadWrite } else { Access::Read };
        let storage = self.host.open(path, access).map_err(|error| {
            Error::io("file.open", "cannot open the file", error).in_path(path).limits_named()
        })?;
        self.open_file(storage)
    }

    /// Opens the image in `storage` alone.
    ///
    /// # Errors
    /// [`NotVhdx`](crate::ErrorKind::NotVhdx), [`Damaged`](crate::ErrorKind::Damaged) or
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for what the file is;
    /// [`Damaged`](crate::ErrorKind::Damaged) also for what its tables claim, where it is opened for writing and its log
    /// is pending;
    /// [`LogWithoutEntries`](crate::ErrorKind::LogWithoutEntries) and
    /// [`LogPending`](crate::ErrorKind::LogPending) for its log; [`InUse`](crate::ErrorKind::InUse);
    /// [`HasChildren`](crate::ErrorKind::HasChildren) when opened for writing.
    pub fn open_file(&self, storage: Arc<dyn Storage>) -> Result<VhdxFile> {
        let any_locator = self.chain.linkage == Linkage::Ignore && !self.image.writable;
        let policy =
            ImagePolicy { children: Some(self.child_search()), any_locator, ..self.image.clone() };
        image::Core::from_storage(storage, &policy).map(VhdxFile::own)
    }

    /// Looks whether a file may be replaced or removed, and says what could not be looked at: an image that others
    /// have for their parent is needed by them. They are looked for as before a [write](Self::writable).
    ///
    /// # Errors
    /// [`HasChildren`](crate::ErrorKind::HasChildren) unless consent was given to
    /// [orphan](Self::orphan_children) them; [`Io`](crate::ErrorKind::Io) when the file or a folder that was asked
    /// for cannot be read.
    pub fn check_childless(&self, file: &dyn Storage) -> Result<Vec<Warning>> {
        self.child_search().refuse_loss(file)
    }

    /// Finds and opens the parents of `tip`.
    ///
    /// # Errors
    /// [`ParentMissing`](crate::ErrorKind::ParentMissing),
    /// [`ParentMismatch`](crate::ErrorKind::ParentMismatch) and
    /// [`ParentDenied`](crate::ErrorKind::ParentDenied) when a parent cannot be had;
    /// [`Damaged`](crate::ErrorKind::Damaged) when the chain is a loop or its layers do not fit each
    /// other; [`Limit`](crate::ErrorKind::Limit) when it is deeper than allowed.
    pub fn open_chain(&self, tip: VhdxFile) -> Result<DiffChain> {
        let opened = Opened {
            host: Arc::clone(&self.host),
            images: self.image.clone(),
            child_folders: self.child_folders.clone(),
        };
        DiffChain::assemble(tip, &self.chain, self.source().as_ref(), opened)
    }

    /// Finds and opens the parents of `tip` as far as that goes, for looking at a broken chain. The
    /// images stand alone: reading what one does not hold is an error, never zeros.
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
