//! An image open for writing. It is closed on every path.

use std::ffi::{OsStr, OsString};
use std::ops::Range;

use avhdx::{DiffChain, Disk, OpenOptions};

use crate::args::WriteFlags;
use crate::failure::{Exit, Failure};
use crate::input::{self, Resolved};
use crate::interrupt::{InProgress, in_progress};
use crate::loss;
use crate::output::Console;
use crate::parents;
use crate::progress::Meter;

/// Ranges are changed in pieces that end at multiples of this: no block is split, and an interruption waits
/// briefly.
const PIECE: u64 = 1 << 30;

/// An image open for writing, with its parents.
#[derive(Debug)]
pub(crate) struct WritableImage {
    chain: DiffChain,
    argument: OsString,
}

impl WritableImage {
    /// Opens the image. `check` gets the size of the disk before anything changes, and may refuse.
    pub(crate) fn open(
        argument: &OsStr,
        flags: &WriteFlags,
        console: &mut Console,
        check: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        Self::open_with(argument, flags, &flags.options()?, console, check)
    }

    /// Like [`open`](Self::open), with the verb's own options.
    pub(crate) fn open_with(
        argument: &OsStr,
        flags: &WriteFlags,
        options: &OpenOptions,
        console: &mut Console,
        check: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let Resolved { path, is_tip } = input::resolve(argument, &flags.inspecting(), console)?;
        if !is_tip {
            return Err(below_the_tip(argument));
        }
        let failed = |error| parents::failure(error, &path, options);
        // A change that will be refused must neither replay a log nor accept a loss.
        let inspected = flags.inspecting().open(&path).map_err(failed)?;
        check(inspected.geometry().size)?;
        drop(inspected);
        loss::accept(&path, &flags.loss, options, console)?;
        let chain = options.open(&path).map_err(failed)?;
        check(chain.geometry().size)?;
        input::note_link(&chain, console);
        console.warnings(&chain.warnings());
        *in_progress() = InProgress::Image(chain.clone());
        Ok(Self { chain, argument: argument.to_owned() })
    }

    /// The image's name as typed.
    pub(crate) fn name(&self) -> String {
        self.argument.to_string_lossy().into_owned()
    }

    /// The chain, for reading; changes go through [`change`](Self::change).
    pub(crate) fn chain(&self) -> &DiffChain {
        &self.chain
    }

    pub(crate) fn size(&self) -> u64 {
        self.chain.geometry().size
    }

    /// Makes one change. An interruption waits for it.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&dyn Disk) -> avhdx::Result<()>,
    ) -> Result<(), Failure> {
        let _held = in_progress();
        Ok(change(&self.chain)?)
    }

    /// Changes a range piece by piece, then closes the image.
    pub(crate) fn change_range(
        self,
        range: Range<u64>,
        console: &Console,
        change: impl Fn(&dyn Disk, Range<u64>) -> avhdx::Result<()>,
    ) -> Result<(), Failure> {
        let mut meter = Meter::new(console);
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / PIECE + 1).saturating_mul(PIECE));
            if let Err(failure) = self.change(|disk| change(disk, at..end)) {
                return Err(self.close_after(failure));
            }
            at = end;
            meter.show(at - range.start, range.end - range.start);
        }
        drop(meter);
        self.close()
    }

    /// Flushes and closes the image.
    pub(crate) fn close(self) -> Result<(), Failure> {
        let _held = in_progress();
        self.chain.flush()?;
        Ok(self.chain.close()?)
    }

    /// Closes the image after a failure, and returns that failure.
    pub(crate) fn close_after(self, failure: Failure) -> Failure {
        match self.close() {
            Ok(()) => failure,
            Err(second) => failure.also(&format!("closing failed too: {}", second.message())),
        }
    }
}

impl Drop for WritableImage {
    fn drop(&mut self) {
        *in_progress() = InProgress::Nothing;
    }
}

/// The refusal to change a layer below the tip.
pub(crate) fn below_the_tip(argument: &OsStr) -> Failure {
    let argument = argument.to_string_lossy();
    let message = format!(
        "{argument}: a point in time below the tip cannot be written: the disks above it would change"
    );
    Failure::new(Exit::Refused, "point.below-tip", message)
}
