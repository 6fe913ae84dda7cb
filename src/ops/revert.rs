//! Returns a chain to an earlier point, in a new tip.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::child::{NewChild, Removed, current_path, dangling_link, folder_warnings, remove};
use super::{FileChangeKind, Forecast, Listener, Progress};
use crate::chain::{DiffChain, Operation, Retired, path_of};
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, Lock};
use crate::storage::{LockMode, LockOutcome};
use crate::trace::operation;
use crate::warning::Warning;
use crate::write::OpenImage;
use crate::write::children_unknown;

/// Returns to an earlier point of a chain by putting a new child on that layer, which becomes the tip.
///
/// The newer layers stay as a separate branch, or are removed with [`delete_newer`](Self::delete_newer): from the tip
/// downwards, once the new tip is durable. A removal that fails or is stopped is a [warning](Reverted::warnings); the
/// files of the branch that remain are whole.
///
/// Stop any machine that runs on the disk first, because its bytes change. The chain itself may be open and in use.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Revert;
///
/// let chain = OpenOptions::new().writable(true).open("web_1A2B.avhdx")?;
/// let point = chain.layers()[1].id;
/// let made = Revert::to(point).delete_newer(true).run(&chain)?;
/// println!("go on with {}", made.path.display());
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Revert<'a> {
    to: LayerId,
    child: NewChild,
    delete_newer: bool,
    orphan_children: bool,
    folders: Vec<PathBuf>,
    progress: Listener<'a>,
}

/// The result of a revert.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reverted {
    /// The path of the new tip, unless the warning `op.renamed` says that it is unknown.
    pub path: PathBuf,
    /// The new tip.
    pub tip: LayerId,
    /// The removed files, newest first.
    pub removed: Vec<PathBuf>,
    /// Clean-up steps that failed. None of them affects the chain.
    pub warnings: Vec<Warning>,
}

impl<'a> Revert<'a> {
    /// Reverts to the disk as it was when `layer` was the tip.
    pub fn to(layer: LayerId) -> Self {
        Self {
            to: layer,
            child: NewChild::new(),
            delete_newer: false,
            orphan_children: false,
            folders: Vec::new(),
            progress: Listener::default(),
        }
    }

    /// Whether to remove the layers above the point.
    pub fn delete_newer(mut self, yes: bool) -> Self {
        self.delete_newer = yes;
        self
    }

    /// Whether to remove layers that have other children, which are then left without a parent.
    pub fn orphan_children(mut self, yes: bool) -> Self {
        self.orphan_children = yes;
        self
    }

    /// Adds a folder to search for other children, besides the folders of the layers themselves.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Labels the point. Without it, the point keeps the label it has.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.child.label = Some(label.into());
        self
    }

    /// The path of the new tip, as for [`Checkpoint::path`](super::Checkpoint::path).
    pub fn path(mut self, path: impl Into<PathBuf>) -> Self {
        self.child.path = Some(path.into());
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`] before the new tip is made, with a [warning](Reverted::warnings) later.
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do, without changing anything.
    ///
    /// # Errors
    /// The errors of `run` that are found before anything is changed.
    pub fn forecast(&self, chain: &DiffChain) -> Result<Forecast> {
        let op = chain.operate()?;
        let point = self.find(&op)?;
        self.predict(&op, point)
    }

    /// Returns to the point, in this chain and all its clones.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the layer is the tip or is not in the chain;
    /// [`ErrorKind::HasChildren`] if a layer to be removed has other children, the first of which is named;
    /// [`ErrorKind::NoSpace`] before anything is written; [`ErrorKind::Io`] if the host fails; [`ErrorKind::InUse`]
    /// while another operation changes the chain or a view of a layer to be removed is open;
    /// [`ErrorKind::Cancelled`]. The chain is unchanged after an error.
    pub fn run(mut self, chain: &DiffChain) -> Result<Reverted> {
        let _span = operation("revert", chain.stack().tip().name());
        let op = chain.operate()?;
        let point = self.find(&op)?;
        self.predict(&op, point)?.check()?;
        let total = 1 + self.removals(point) as u64;
        self.progress.report(0, total)?;
        let images = op.images();
        if let Some(known) = images[point - 1].checkpoint() {
            // The child that names this point may be removed below.
            self.child.label.get_or_insert(known.label);
            self.child.time = known.time;
        }
        let parent = Arc::clone(&images[point]);
        let writer = op.writer();
        let (child, path, retired) = self.switch(&op, &parent, point)?;
        let child = child.core;
        let mut reverted = Reverted {
            path,
            tip: child.id(),
            removed: Vec::new(),
            warnings: folder_warnings(&op, &child),
        };
        if let Some(Err(error)) = writer.map(|writer| writer.close()) {
            let message = format!("the old tip was not closed: {error}");
            let warning = Warning::new("revert.not-closed", images[0].name(), message);
            reverted.warnings.push(warning.of_layer(images[0].id()));
        }
        if self.delete_newer {
            let drained = op.drained(retired, &mut || ControlFlow::Continue(()));
            for done in 0..point {
                // The new tip is in place: failures to remove old layers are only warnings.
                let go_on = drained.as_ref().map(drop).map_err(Error::same_again);
                if let Err(error) =
                    go_on.and_then(|()| self.progress.report(1 + done as u64, total))
                {
                    reverted.warnings.push(kept(&images[done], format!("is kept: {error}"))?);
                    break;
                }
                let path = path_of(&images[done])?.to_owned();
                // Another child may have been created since the first search.
                let known: Vec<_> = std::iter::once(&child).chain(&images).cloned().collect();
                if let Err(error) = self.refuse_children(&op, &known, done + 1) {
                    reverted.warnings.push(kept(&images[done], format!("is kept: {error}"))?);
                    break;
                }
                match remove(&op, &images[done]) {
                    Ok(Removed { is_gone, warning }) => {
                        reverted.warnings.extend(warning);
                        if !is_gone {
                            continue;
                        }
                    }
                    Err(error) => {
                        let message = format!("{}: is kept", error.text_about(path.display()));
                        reverted.warnings.push(kept(&images[done], message)?);
                        break;
                    }
                }
                reverted.removed.push(path);
                reverted.warnings.extend(dangling_link(&op, &images[done]));
            }
        }
        let _ = self.progress.report(total, total);
        let host = op.host().as_ref();
        current_path(host, &parent, &mut reverted.warnings);
        if let Some(path) = current_path(host, &child, &mut reverted.warnings) {
            reverted.path = path;
        }
        Ok(reverted)
    }

    fn switch(
        &self,
        op: &Operation<'_>,
        parent: &Core,
        point: usize,
    ) -> Result<(OpenImage, PathBuf, Retired)> {
        let child = self.child.make(op, parent)?;
        let path = path_of(&child.core)?.to_owned();
        let switch = || Ok(op.put_on(&child, point));
        // Writers in progress continue in the new tip.
        let switched = match op.writer().filter(|writer| writer.core().takes_writes()) {
            Some(writer) => writer.freeze(switch),
            None => switch(),
        };
        match switched {
            Ok(retired) => Ok((child, path, retired)),
            Err(error) => {
                drop(remove(op, &child.core));
                drop(child);
                Err(error)
            }
        }
    }

    fn find(&self, op: &Operation<'_>) -> Result<usize> {
        match op.find(self.to)? {
            0 => {
                let message = "the chain is already at its newest point";
                Err(Error::new(ErrorKind::InvalidInput, "revert.newest", message)
                    .in_file(op.images()[0].name())
                    .with_found("the tip")
                    .with_expected("an earlier point; to keep this one, make a checkpoint first"))
            }
            point => Ok(point),
        }
    }

    /// Refuses to remove a layer that has, or may have, children outside the chain.
    fn refuse_children(
        &self,
        op: &Operation<'_>,
        images: &[Arc<Core>],
        layer: usize,
    ) -> Result<()> {
        if self.orphan_children {
            return Ok(());
        }
        let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
        let seen = op.child_search(&self.folders).refuse_others(&images[layer], &known)?;
        let refused =
            seen.unread.map(|unread| children_unknown(unread).in_file(images[layer].name()));
        refused.map_or(Ok(()), Err)
    }

    fn removals(&self, point: usize) -> usize {
        if self.delete_newer { point } else { 0 }
    }

    fn predict(&self, op: &Operation<'_>, point: usize) -> Result<Forecast> {
        let images = op.images();
        let mut forecast = self.child.forecast(op, &images[point])?;
        for (layer, image) in images.iter().enumerate().take(self.removals(point)) {
            let path = path_of(image)?;
            op.check_unseen(layer)?;
            refuse_written(op, image)?;
            self.refuse_children(op, &images, layer)?;
            forecast.freed += image.file_len();
            forecast.add(path, FileChangeKind::Removed);
        }
        Ok(forecast)
    }
}

/// Refuses to remove a file that others write to, if the chain was opened without a lock that excludes them.
fn refuse_written(op: &Operation<'_>, image: &Core) -> Result<()> {
    if image.is_written() || !matches!(op.policy().lock, Lock::Try | Lock::None) {
        return Ok(());
    }
    let storage = image.bare_storage();
    let locked = storage.try_lock(LockMode::Shared);
    if op.policy().lock == Lock::None {
        drop(storage.unlock());
    }
    match locked {
        Ok(LockOutcome::InUse(by)) => Err(Error::in_use(by)
            .in_file(image.name())
            .with_expected("a file that no other process writes to")),
        _ => Ok(()),
    }
}

fn kept(image: &Core, message: String) -> Result<Warning> {
    Ok(Warning::new("revert.kept", path_of(image)?.display(), message).of_layer(image.id()))
}
