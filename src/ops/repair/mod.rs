//! Repairs what a check finds, as far as the file itself proves what belongs there.
//!
//! A repair is computed whole before a byte of the file changes. All its steps run on a [`Scratch`], which takes the writes
//! and keeps them in memory, while copies of blocks are remembered as ranges of the file. After each step the image is
//! checked again: a step after which a finding is not gone, or a new one is there, is not taken. So a plan shows the exact
//! outcome, and what the repair overwrites is known, and durable in an undo file, before the first write.
//!
//! # What an undo file can tell
//! It has the old and the new bytes of everything within the old length that changes, and the CRC-32C of what the file grows
//! by. Undoing proceeds only if each 512 bytes of those ranges are old or new, and, once the headers are new, all of them
//! are. A program that changes an image as the format demands writes its headers, so that its change is noticed; one that
//! writes to other places alone, without a header, is not noticed, and keeps what it wrote there.

mod apply;
mod bitmaps;
mod blocks;
mod compute;
mod link;
mod metadata;
mod plan;
mod root;
mod undo;
mod work;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CallerPanic, FileChangeKind, Forecast};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
use crate::image::{Lock, lock, open_storage, probe_identity};
use crate::options::OpenOptions;
use crate::storage::{self, Access, Host, LockMode, Storage, folder_of, is_file};
use crate::trace::operation;
use crate::write::check_named;

use compute::{Computed, compute};
use undo::{Found, Undo};

pub use plan::{RepairLeft, RepairPlan, RepairStep};

/// How many names are tried for an undo file.
const MOST_NAMES: u32 = 1000;

/// Repairs an image, and leaves what would be a guess.
///
/// What it does, each only with the proof that it is right:
/// - A damaged header is written anew from the other, unless the file has a log that only the damaged one may name.
/// - A damaged region table is written anew from the other.
/// - A pending log is replayed. A log is forgotten if nothing of it was ever written and all tables are sound without it.
/// - Blocks that share bytes of the file each get a copy, so that each reads as before.
/// - Reserved bits, entries that nobody reads, sector bitmaps and states are put right where the disk reads the same.
/// - The end of the file gets the length that the blocks need; unused zeros there are cut off.
/// - Recorded paths are made to lead to the parent, if its identity proves which file that is.
/// - With [`accept_loss`](Self::accept_loss) alone: lost blocks become zeros, as with [`AcceptLoss`](super::AcceptLoss).
///
/// A repair that changes what the disk reads as gives it a new identity, and is refused if the image has children. The
/// others keep the identity.
///
/// Before the first change, an undo file is durable with which [`UndoRepair`] restores the file as it was, to the byte, also
/// after a crash in the middle of the repair.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use avhdx::ops::Repair;
///
/// let repair = Repair::new();
/// for step in &repair.plan("web.vhdx")?.steps {
///     println!("{:?}: {}", step.codes, step.meaning);
/// }
/// let repaired = repair.run("web.vhdx", &mut |_| ControlFlow::Continue(()))?;
/// println!("undone by {:?}", repaired.undo);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Repair {
    options: OpenOptions,
    undo_file: Option<PathBuf>,
    accepts_loss: bool,
}

/// A repair that was made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Repaired {
    /// What was done, and what is left.
    pub plan: RepairPlan,
    /// The undo file; `None` if nothing was changed.
    pub undo: Option<PathBuf>,
}

impl Repair {
    /// Repairs without giving anything up.
    pub fn new() -> Self {
        Self { options: OpenOptions::new(), undo_file: None, accepts_loss: false }
    }

    /// How to find the image, its parents and its children.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// The undo file to create. The default is a new file beside the image: its name and `.undo`, with a number if that
    /// name is taken.
    pub fn undo_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.undo_file = Some(path.into());
        self
    }

    /// Whether to go on without what is lost: such blocks read as zeros from then on, and a log is replayed up to where
    /// it is damaged.
    pub fn accept_loss(mut self, yes: bool) -> Self {
        self.accepts_loss = yes;
        self
    }

    /// Computes the repair of the image at `path`, without changing anything.
    ///
    /// # Errors
    /// [`ErrorKind::NotVhdx`] if no part of the file is of the format, [`ErrorKind::InUse`] if it is open elsewhere,
    /// [`ErrorKind::HasChildren`] if the repair would change what children read, and [`ErrorKind::Io`]. What cannot be
    /// repaired is no error, but [left](RepairPlan::left).
    pub fn plan(&self, path: impl AsRef<Path>) -> Result<RepairPlan> {
        let storage = self.open(path.as_ref(), Access::Read)?;
        let name = storage.name().to_owned();
        let planned = || {
            let policy = self.options.policies().0.lock;
            lock(storage.as_ref(), policy, LockMode::Shared, &mut Vec::new())?;
            Ok(self.compute(&storage)?.0.plan)
        };
        planned().map_err(|error: Error| error.in_file(name))
    }

    /// Repairs the image at `path`, which must not be open elsewhere. `on` is called with the plan once the undo file is
    /// durable and before the image changes, and can stop the operation; if there is nothing to do, it is not called.
    ///
    /// # Errors
    /// As for [`plan`](Self::plan); [`ErrorKind::NoSpace`]; [`ErrorKind::Cancelled`]. The image is unchanged after these.
    /// [`ErrorKind::Io`] with the code `repair.write` if the host fails later: [`UndoRepair`] then restores the image.
    pub fn run(
        &self,
        path: impl AsRef<Path>,
        on: &mut dyn FnMut(&RepairPlan) -> ControlFlow<()>,
    ) -> Result<Repaired> {
        let path = path.as_ref();
        let _span = operation("repair", &path.to_string_lossy());
        let storage = self.open(path, Access::ReadWrite)?;
        let name = storage.name().to_owned();
        self.run_file(path, storage, on).map_err(|error| error.in_file(name))
    }

    fn run_file(
        &self,
        path: &Path,
        storage: Arc<dyn Storage>,
        on: &mut dyn FnMut(&RepairPlan) -> ControlFlow<()>,
    ) -> Result<Repaired> {
        let host = self.options.host_used().as_ref();
        lock(storage.as_ref(), Lock::default(), LockMode::Exclusive, &mut Vec::new())?;
        check_named(host, storage.as_ref())?;
        let (Computed { plan, image, staged, changes }, mut undo) = self.compute(&storage)?;
        if plan.steps.is_empty() {
            return Ok(Repaired { plan, undo: None });
        }
        let at = storage.path().unwrap_or(path).to_path_buf();
        let mut forecast = Forecast::on(host, &at)?;
        forecast.peak = plan.grows + if self.undo_file.is_none() { plan.undo_bytes } else { 0 };
        forecast.add(&at, FileChangeKind::Changed);
        forecast.check()?;
        let (undo_path, file) = self.create_undo(host, &at)?;
        let failed = |error| {
            let message = "cannot write the undo file; nothing was changed";
            Error::io("repair.undo", message, error).in_path(&undo_path)
        };
        // It holds data of the guest: whoever may read the image may read it.
        let written = file
            .copy_owner_from(storage.as_ref())
            .and_then(|()| undo.write(file.as_ref(), &image))
            .and_then(|()| file.flush())
            .and_then(|()| host.sync_dir(folder_of(&undo_path)));
        if let Err(error) = written {
            discard(host, &undo_path, file.as_ref());
            return Err(failed(error));
        }
        let mut panic = CallerPanic::default();
        if panic.catch(|| on(&plan)).is_break() {
            discard(host, &undo_path, file.as_ref());
            panic.resume();
            return Err(Error::cancelled());
        }
        apply::apply(&image, &staged, &changes, storage.as_ref())?;
        Ok(Repaired { plan, undo: Some(undo_path) })
    }

    fn compute(&self, storage: &Arc<dyn Storage>) -> Result<(Computed, Undo)> {
        let mut computed = compute(&self.options, self.accepts_loss, Arc::clone(storage))?;
        if computed.plan.changes_visible() {
            let guid = probe_identity(storage.as_ref())?;
            let search = self.options.child_search();
            search.refuse_children(storage.as_ref(), guid, &mut Vec::new())?;
        }
        let undo = Undo::of(&computed.image, &computed.changes)?;
        if !computed.plan.steps.is_empty() {
            computed.plan.undo_bytes = undo.len();
        }
        Ok((computed, undo))
    }

    fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Storage>> {
        open_storage(self.options.host_used().as_ref(), path, access)
    }

    fn create_undo(&self, host: &dyn Host, image: &Path) -> Result<(PathBuf, Arc<dyn Storage>)> {
        let failed = |path: &Path, error| {
            let message = "cannot create the undo file; nothing was changed";
            Error::io("repair.undo", message, error).in_path(path)
        };
        if let Some(path) = &self.undo_file {
            let file = host.create_new(path).map_err(|error| failed(path, error))?;
            return Ok((path.clone(), file));
        }
        for n in 1..=MOST_NAMES {
            let mut name = image.file_name().unwrap_or_default().to_os_string();
            name.push(if n == 1 { ".undo".into() } else { format!(".undo-{n}") });
            let path = image.with_file_name(name);
            match host.create_new(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(&path, error)),
            }
        }
        Err(failed(image, io::ErrorKind::AlreadyExists.into()))
    }
}

impl Default for Repair {
    fn default() -> Self {
        Self::new()
    }
}

/// Restores an image as it was before a repair, complete or interrupted.
#[derive(Clone, Debug, Default)]
pub struct UndoRepair {
    options: OpenOptions,
}

/// What undoing a repair did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Undone {
    /// The image was as before the repair, and nothing changed.
    Nothing,
    /// The repair was complete, and the image is as before.
    Complete,
    /// The repair, or undoing it, had been interrupted, and the image is as before.
    Interrupted,
}

impl UndoRepair {
    /// Undoes a repair on this machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// How to open the files, and where to search for children.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Restores `image` from the undo file, which stays. Each part of the image that the repair touched must be as it left
    /// it, or as it was before: an image that was changed since is refused.
    ///
    /// # Errors
    /// [`ErrorKind::Unproven`] if the image was changed since; [`ErrorKind::InvalidInput`] and [`ErrorKind::Damaged`] if
    /// the file is no undo file or not whole; [`ErrorKind::HasChildren`] if the repair gave the image a new identity,
    /// which a child knows by now; [`ErrorKind::InUse`]; [`ErrorKind::Io`]. The image is unchanged after these, except
    /// that a failure with the code `undo.write` leaves it for another run.
    pub fn run(&self, image: impl AsRef<Path>, undo: impl AsRef<Path>) -> Result<Undone> {
        let (path, undo) = (image.as_ref(), undo.as_ref());
        let _span = operation("undo repair", &path.to_string_lossy());
        let host = self.options.host_used().as_ref();
        let file = host
            .open(undo, Access::Read)
            .map_err(|error| Error::io("file.open", "cannot open the file", error).in_path(undo))?;
        let table = Undo::read(file.as_ref())?;
        let storage = host.open(path, Access::ReadWrite).map_err(|error| {
            Error::io("file.open", "cannot open the file", error).in_path(path).limits_named()
        })?;
        let run = || -> Result<Undone> {
            lock(storage.as_ref(), Lock::default(), LockMode::Exclusive, &mut Vec::new())?;
            check_named(host, storage.as_ref())?;
            let found = table.compare(file.as_ref(), storage.as_ref())?;
            if found == Found::Old {
                return Ok(Undone::Nothing);
            }
            if let (Some(old), Ok(new)) =
                (table.old_identity(file.as_ref())?, probe_identity(storage.as_ref()))
                && old != new
            {
                let search = self.options.child_search();
                search.refuse_children(storage.as_ref(), new, &mut Vec::new())?;
            }
            table.restore(file.as_ref(), storage.as_ref()).map_err(|error| {
                let message = "undoing the repair was interrupted: it has to be repeated";
                Error::io("undo.write", message, error)
            })?;
            Ok(if found == Found::New { Undone::Complete } else { Undone::Interrupted })
        };
        run().map_err(|error| error.in_file(storage.name()))
    }
}

/// Removes an undo file of a repair that was not made, unless another file has its name by now.
fn discard(host: &dyn Host, path: &Path, file: &dyn Storage) {
    drop(storage::remove(host, path, &|path| is_file(host, path, file)));
}
