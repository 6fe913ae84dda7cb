//! An image that a verb changes: opened with the consents given, and closed whatever happens.

use std::ffi::{OsStr, OsString};
use std::ops::Range;

use avhdx::{DiffChain, Disk, OpenOptions};

use crate::args;
use crate::exit::{Exit, Failure};
use crate::input::{self, Resolved};
use crate::interrupt::{UnderWay, under_way};
use crate::loss;
use crate::output::Console;
use crate::parents;
use crate::progress::Meter;

/// Ranges are changed in pieces that end at multiples of this, so that no block of any size is cut and
/// an interruption does not wait long.
const PIECE: u64 = 1 << 30;

/// An image open for writing, with its parents. Dropped before its [`end`](Self::end), it is closed all
/// the same.
#[derive(Debug)]
pub(crate) struct Writing {
    chain: DiffChain,
    argument: OsString,
}

impl Writing {
    /// Opens the image, once `check` found that a disk of that many bytes can be changed as was asked.
    pub(crate) fn open(
        argument: &OsStr,
        writing: &args::Writing,
        console: &mut Console,
        check: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        Self::open_with(argument, writing, &writing.options(), console, check)
    }

    /// The same, with options of the verb's own.
    pub(crate) fn open_with(
        argument: &OsStr,
        writing: &args::Writing,
        options: &OpenOptions,
        console: &mut Console,
        check: impl Fn(u64) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        args::look_into(&writing.children_in)?;
        let Resolved { path, is_tip } = input::resolve(argument, &writing.parents(), console)?;
        if !is_tip {
            return Err(below_the_tip(argument));
        }
        let failed = |error| parents::failure(error, &path, options);
        // What cannot be done is no reason to change anything, nor to give anything up.
        let looked_at = writing.parents().open(&path).map_err(failed)?;
        check(looked_at.geometry().size)?;
        drop(looked_at);
        loss::accept(&path, &writing.loss, options, console)?;
        let chain = options.open(&path).map_err(failed)?;
        check(chain.geometry().size)?;
        input::tell_link(&chain, console);
        console.warnings(&chain.warnings());
        *under_way() = UnderWay::Image(chain.clone());
        Ok(Self { chain, argument: argument.to_owned() })
    }

    /// The image's name as it was given.
    pub(crate) fn name(&self) -> String {
        self.argument.to_string_lossy().into_owned()
    }

    /// For looking at it; changes go through [`change`](Self::change).
    pub(crate) fn chain(&self) -> &DiffChain {
        &self.chain
    }

    pub(crate) fn size(&self) -> u64 {
        self.chain.geometry().size
    }

    /// Makes one change. An interruption waits until it is made.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&dyn Disk) -> avhdx::Result<()>,
    ) -> Result<(), Failure> {
        let _held = under_way();
        Ok(change(&self.chain)?)
    }

    /// Changes a range piece by piece, and ends.
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
                return Err(self.end_after(failure));
            }
            at = end;
            meter.show(at - range.start, range.end - range.start);
        }
        drop(meter);
        self.end()
    }

    /// Makes all durable and closes the image.
    pub(crate) fn end(self) -> Result<(), Failure> {
        let _held = under_way();
        self.chain.flush()?;
        Ok(self.chain.close()?)
    }

    /// The same after a failure, which stays the one to tell of.
    pub(crate) fn end_after(self, failure: Failure) -> Failure {
        match self.end() {
            Ok(()) => failure,
            Err(second) => failure.also(&format!("closing failed too: {}", second.message())),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        *under_way() = UnderWay::Nothing;
    }
}

/// The range of `length` bytes at `offset`, which must lie within a disk of `size` bytes.
pub(crate) fn range(offset: u64, length: u64, size: u64) -> Result<Range<u64>, Failure> {
    let end = offset.checked_add(length).filter(|end| *end <= size);
    end.map(|end| offset..end).ok_or_else(|| {
        let message =
            format!("{length} bytes at {offset} do not lie within the disk, which has {size}");
        Failure::usage("disk.out-of-range", message)
    })
}

/// The refusal to change a layer that others lie on.
pub(crate) fn below_the_tip(argument: &OsStr) -> Failure {
    let argument = argument.to_string_lossy();
    let message = format!(
        "{argument}: a point in time below the tip is not written to: the disks above it would change"
    );
    Failure::new(Exit::Refused, "point.below-tip", message)
}
