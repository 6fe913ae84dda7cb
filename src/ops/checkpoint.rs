//! A point in time kept, and a new tip on it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use super::child::{NewChild, place_of, remove, told_of_folder};
use super::{Forecast, Progress, report};
use crate::chain::{DiffChain, Operation, path_of};
use crate::disk::{Disk, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, LinkPaths, Warning};
use crate::mutants::planted;

/// Freezes the tip of a chain and goes on writing in a new child of it.
///
/// The chain may be in use: a write that is under way is in the frozen layer or in the new tip, as a whole, and
/// none waits longer than it takes to flush what was written last. The frozen file is left as it is, but for
/// what its own session has still to write; label and time are kept in the child. From then on the tip's
/// path is another one, which whoever starts the machine must know: it is durable before the first flush of
/// the new tip returns.
///
/// After a crash the child is there as a whole or not at all. Where it is there it reads as the tip did: go on
/// with it, or remove it. Where the tip was written to while the child was made, it may be refused with
/// [`ErrorKind::ParentMismatch`], and the tip is what to go on with.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use avhdx::OpenOptions;
/// use avhdx::ops::Checkpoint;
///
/// let chain = OpenOptions::new().writable(true).open("web.vhdx")?;
/// let made = Checkpoint::new().label("before the upgrade").run(&chain, &mut |_| ControlFlow::Continue(()))?;
/// println!("go on with {}", made.path.display());
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    child: NewChild,
}

/// What a checkpoint made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checkpointed {
    /// Where the new tip lies, unless the warning `op.renamed` says that nobody knows.
    pub path: PathBuf,
    /// The new tip.
    pub tip: LayerId,
    /// The layer that was frozen.
    pub frozen: LayerId,
    /// What could not be brought to its end, and does no harm to the chain.
    pub warnings: Vec<Warning>,
}

impl Checkpoint {
    /// A checkpoint without a label, under a name like Hyper-V's.
    pub fn new() -> Self {
        Self { child: NewChild::new() }
    }

    /// What the point in time is called, up to 4096 bytes. It is kept in the new child and names what lies below.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.child.label = Some(label.into());
        self
    }

    /// Where the new tip is to lie: beside the old one unless told otherwise, named after the disk and a new
    /// GUID.
    pub fn path(mut self, path: impl Into<PathBuf>) -> Self {
        self.child.path = Some(path.into());
        self
    }

    /// Size of the new tip's payload blocks in bytes, 2 MiB unless told otherwise.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.child.block_size = Some(bytes);
        self
    }

    /// What [`run`](Self::run) is going to do, on the same chain opened for writing. Nothing is changed.
    ///
    /// # Errors
    /// As those of `run` that are found before anything is done.
    pub fn forecast(&self, chain: &DiffChain) -> Result<Forecast> {
        let op = chain.operate()?;
        let tip = op.images().swap_remove(0);
        let forecast = self.child.forecast(&op, &tip)?;
        tip.check_claims()?;
        Ok(forecast)
    }

    /// Makes the checkpoint, on the chain itself and all its clones. Views stay at their points.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the tip's file lost bytes of the disk, as a write to it would say;
    /// [`ErrorKind::ReadOnly`] when the tip is not open for writing; [`ErrorKind::NoSpace`] before a byte is
    /// written; [`ErrorKind::Io`] when the host fails, also where the new name is taken;
    /// [`ErrorKind::InUse`] while another operation changes the chain; [`ErrorKind::Cancelled`]. The chain is
    /// then as it was, and goes on.
    pub fn run(
        self,
        chain: &DiffChain,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Checkpointed> {
        let op = chain.operate()?;
        let tip = writable_tip(&op)?;
        // What it lost can be settled as long as no child stands on it, and not once this one does.
        tip.check_claims()?;
        self.child.forecast(&op, &tip)?.check()?;
        report(on, 0, 1)?;
        let child = self.child.make(&op, &tip)?;
        let path = path_of(&child)?.to_owned();
        let (made, frozen) = (child.id(), tip.id());
        if let Err(error) = switch(&op, &tip, &child) {
            drop(remove(&op, &child));
            drop(child);
            // The child may still be there, and must not take what comes for what it was made on.
            drop(tip.hand_out_identity());
            return Err(error);
        }
        let mut warnings = told_of_folder(&op, &child);
        if let Err(error) = op.settle(&tip) {
            let message = format!("{}: the frozen layer was not closed: {error}", tip.name());
            warnings.push(Warning { code: "checkpoint.not-closed", message });
        }
        // There is nothing left to be stopped.
        let _ = report(on, 1, 1);
        // By its name the new tip finds what it stands on.
        let host = op.host().as_ref();
        place_of(host, &tip, &mut warnings);
        let path = place_of(host, &child, &mut warnings).unwrap_or(path);
        Ok(Checkpointed { path, tip: made, frozen, warnings })
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self::new()
    }
}

fn switch(op: &Operation<'_>, tip: &Core, child: &Arc<Core>) -> Result<()> {
    // Whoever writes first in the child, or waits for the last flush of the tip, is not to pay for what can be
    // done before.
    child.begin_with_next_identity()?;
    tip.flush()?;
    let link = child.parent_link()?.map(|link| link.linkage);
    tip.freeze(|| {
        // A session that began meanwhile gave the tip another.
        let guid = tip.data_write_guid();
        if link != Some(guid) && !planted("child-of-an-older-identity") {
            child.relink(guid, None, LinkPaths::Keep)?;
        }
        // Nobody has to be waited for: what they read stays as it is.
        drop(op.put_on(Arc::clone(child), 0));
        Ok(())
    })
}

fn writable_tip(op: &Operation<'_>) -> Result<Arc<Core>> {
    let tip = op.images().swap_remove(0);
    if tip.takes_writes() {
        return Ok(tip);
    }
    Err(Error::new(ErrorKind::ReadOnly, "checkpoint.read-only", "the tip is open for reading only")
        .in_file(tip.name())
        .with_found("a chain that others may write to")
        .with_expected("one that is open for writing"))
}
