//! An image open for writing. It is closed on every path.

use std::ops::Range;

use avhdx::{DiffChain, Disk, OpenOptions};

use crate::args::{ImageArg, RangeFlags, WriteFlags};
use crate::failure::{Exit, Failure};
use crate::input::{self, Resolved};
use crate::interrupt::{InProgress, in_progress};
use crate::loss;
use crate::output::Console;
use crate::parents;
use crate::progress::ProgressMeter;

/// Ranges are changed in pieces that end at multiples of this: no block is split, and an interruption waits
/// briefly.
const PIECE: u64 = 1 << 30;

/// An image open for writing, with its parents.
#[derive(Debug)]
pub(crate) struct WritableImage {
    chain: DiffChain,
}

impl WritableImage {
    /// Opens the image. `check` gets the size of the disk before anything changes, and may refuse.
    pub(crate) fn open(
        image: &ImageArg,
        flags: &WriteFlags,
        console: &mut Console,
        check: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        Self::open_with(image, flags, &flags.options()?, console, check)
    }

    /// Like [`open`](Self::open), with the verb's own options.
    pub(crate) fn open_with(
        image: &ImageArg,
        flags: &WriteFlags,
        options: &OpenOptions,
        console: &mut Console,
        check: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let Resolved { path, is_tip } = input::resolve(&image.image, &flags.inspecting(), console)?;
        if !is_tip {
            return Err(below_the_tip(image));
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
        Ok(Self { chain })
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

/// Opens the image, changes the range piece by piece, and closes the image.
pub(crate) fn change_range(
    image: &ImageArg,
    range: &RangeFlags,
    flags: &WriteFlags,
    console: &mut Console,
    change: impl Fn(&dyn Disk, Range<u64>) -> avhdx::Result<()>,
) -> Result<(), Failure> {
    let check = |size| range.within(size).map(drop);
    let image = WritableImage::open(image, flags, console, check)?;
    let Range { start, end } = range.within(image.size())?;
    let mut meter = ProgressMeter::new(console);
    let mut at = start;
    while at < end {
        let next = end.min((at / PIECE + 1).saturating_mul(PIECE));
        if let Err(failure) = image.change(|disk| change(disk, at..next)) {
            return Err(image.close_after(failure));
        }
        at = next;
        meter.show(at - start, end - start);
    }
    drop(meter);
    image.close()?;
    console.done();
    Ok(())
}

/// The refusal to change a layer below the tip.
pub(crate) fn below_the_tip(image: &ImageArg) -> Failure {
    let argument = image.name();
    let message = format!(
        "{argument}: a point in time below the tip cannot be written: the disks above it would change"
    );
    Failure::new(Exit::Refused, "point.below-tip", message)
}
