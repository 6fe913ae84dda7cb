//! Freezes the tip of a chain and continues in a new child.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::child::{NewChild, current_path, folder_warnings, remove};
use super::{Forecast, Listener, Progress};
use crate::chain::{DiffChain, Operation, path_of};
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::trace::operation;
use crate::warning::Warning;

use crate::write::LinkPaths;
use crate::write::OpenImage;
use crate::write::Writer;

/// Freezes the tip of a chain and continues writing in a new child.
///
/// The chain may be in use. A concurrent write ends up wholly in the frozen layer or wholly in the new tip, and waits
/// no longer than a flush of the most recent writes takes. The frozen file changes only by what its session still
/// has to write; the label and the time are stored in the child. The tip's path changes with a checkpoint, and the
/// machine's configuration must follow. The new tip is durable before its first flush returns.
///
/// After a crash, the child exists completely or not at all. If it exists, it reads as the old tip did: continue
/// in it, or remove it. If the old tip was written to while the child was created, the child may be refused with
/// [`ErrorKind::ParentMismatch`]; continue in the old tip then.
///
/// ```no_run
/// use avhdx::OpenOptions;
/// use avhdx::ops::Checkpoint;
///
/// let chain = OpenOptions::new().writable(true).open("web.vhdx")?;
/// let made = Checkpoint::new().label("before the upgrade").run(&chain)?;
/// println!("go on with {}", made.path.display());
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint<'a> {
    child: NewChild,
    progress: Listener<'a>,
}

/// The result of a checkpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checkpointed {
    /// The path of the new tip, unless the warning `op.renamed` says that it is unknown.
    pub path: PathBuf,
    /// The new tip.
    pub tip: LayerId,
    /// The frozen layer.
    pub frozen: LayerId,
    /// Clean-up steps that failed. None of them affects the chain.
    pub warnings: Vec<Warning>,
}

impl<'a> Checkpoint<'a> {
    /// Creates a checkpoint without a label, in a file named as Hyper-V would.
    pub fn new() -> Self {
        Self { child: NewChild::new(), progress: Listener::default() }
    }

    /// Labels the point in time, in up to 4096 bytes. The label is stored in the new child and names the layer below.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.child.label = Some(label.into());
        self
    }

    /// The path of the new tip. The default is a file beside the old tip, named after the disk and a new GUID.
    pub fn path(mut self, path: impl Into<PathBuf>) -> Self {
        self.child.path = Some(path.into());
        self
    }

    /// The payload block size of the new tip in bytes. The default is 2 MiB.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.child.block_size = Some(bytes);
        self
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do on the same chain opened for writing, without changing anything.
    ///
    /// # Errors
    /// The errors of `run` that are found before anything is changed.
    pub fn forecast(&self, chain: &DiffChain) -> Result<Forecast> {
        let op = chain.operate()?;
        let forecast = self.child.forecast(&op, &op.images()[0])?;
        op.check_claims(0)?;
        Ok(forecast)
    }

    /// Makes the checkpoint, in this chain and all its clones. Views stay at their points.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if the tip's file has lost bytes of the disk, as for a write to it;
    /// [`ErrorKind::ReadOnly`] if the tip is not open for writing; [`ErrorKind::NoSpace`] before anything is
    /// written; [`ErrorKind::Io`] if the host fails or the new name is taken;
    /// [`ErrorKind::InUse`] while another operation changes the chain or planned writes of the tip are open;
    /// [`ErrorKind::Cancelled`]. The chain is
    /// unchanged and usable after an error.
    pub fn run(self, chain: &DiffChain) -> Result<Checkpointed> {
        let _span = operation("checkpoint", chain.stack().tip().name());
        let op = chain.operate()?;
        let writer = tip_writer(&op)?;
        let tip = writer.core();
        // Losses can be accepted only while the tip has no child.
        writer.check_claims()?;
        // Again once it is frozen; now nothing is made yet that would have to be removed.
        writer.check_plans_ended()?;
        self.child.forecast(&op, tip)?.check()?;
        self.progress.report(0, 1)?;
        let child = self.child.make(&op, tip)?;
        let path = path_of(&child.core)?.to_owned();
        let (made, frozen) = (child.core.id(), tip.id());
        if let Err(error) = switch(&op, &writer, &child) {
            drop(remove(&op, &child.core));
            drop(child);
            // The child's file may remain. A new identity of the tip keeps that child from matching later writes.
            drop(writer.hand_out_identity());
            return Err(error);
        }
        let mut warnings = folder_warnings(&op, &child.core);
        if let Err(error) = op.settle(&writer) {
            let message = format!("the frozen layer was not closed: {error}");
            let warning = Warning::new("checkpoint.not-closed", tip.name(), message);
            warnings.push(warning.of_layer(frozen));
        }
        // Too late to stop.
        let _ = self.progress.report(1, 1);
        // The new tip finds its parent by name.
        let host = op.host().as_ref();
        current_path(host, tip, &mut warnings);
        let path = current_path(host, &child.core, &mut warnings).unwrap_or(path);
        Ok(Checkpointed { path, tip: made, frozen, warnings })
    }
}

impl Default for Checkpoint<'_> {
    fn default() -> Self {
        Self::new()
    }
}

fn switch(op: &Operation<'_>, tip: &Writer, child: &OpenImage) -> Result<()> {
    // Done up front to keep the freeze short: the first writer in the child and the tip's last flush wait for less.
    let writer = child.writer.as_ref().unwrap_or_else(|| unreachable!("the chain is writable"));
    writer.begin_with_next_identity()?;
    tip.commit()?;
    let link = child.core.parent_link()?.map(|link| link.linkage);
    tip.freeze(|| {
        // A session that began since then has given the tip a new identity.
        let guid = tip.core().data_write_guid();
        if link != Some(guid) {
            writer.relink(guid, None, LinkPaths::Keep)?;
        }
        // Readers need no wait: the bytes they read stay where they are.
        drop(op.put_on(child, 0));
        Ok(())
    })
}

fn tip_writer(op: &Operation<'_>) -> Result<Arc<Writer>> {
    let tip = &op.images()[0];
    if let Some(writer) = op.writer().filter(|_| tip.takes_writes()) {
        return Ok(writer);
    }
    Err(Error::new(ErrorKind::ReadOnly, "checkpoint.read-only", "the tip is open for reading only")
        .in_file(tip.name())
        .with_found("a chain that was opened read-only")
        .with_expected("one that is open for writing"))
}
