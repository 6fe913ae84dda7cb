//! Makes a dynamic image fixed, or a fixed one dynamic, in place.

use std::ops::ControlFlow;
use std::path::Path;

use super::held::HeldImage;
use super::{FileChangeKind, Forecast, Listener, Pace, Progress, WINDOW};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::PayloadState;
use crate::image::Core;
use crate::options::OpenOptions;
use crate::storage::Access;
use crate::trace::operation;
use crate::types::BlockIndex;
use crate::warning::Warning;
use crate::write::{ItemEdit, Writer, edit_len, has_data};

/// Makes a dynamic image fixed, or a fixed one dynamic, in place: not a byte of its disk changes, and no data is moved.
///
/// A fixed image has space for all of its blocks, so that no write can run out of it. To make an image fixed, the blocks
/// without space get some, filled with zeros; then one step sets LeaveBlocksAllocated, \[MS-VHDX\] 2.6.2.1. After a crash
/// in between, the image is dynamic with more blocks, and another run goes on from there. To make one dynamic, that step
/// clears the flag: its blocks keep their space until they are discarded.
///
/// The image keeps its identity, so that its children are unaffected. It must not be in use. A differencing image is
/// refused.
///
/// ```no_run
/// use avhdx::ops::Provision;
///
/// let forecast = Provision::fixed().forecast("/vm/data.vhdx")?;
/// println!("{} bytes of space are needed", forecast.peak);
/// Provision::fixed().run("/vm/data.vhdx")?;
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Provision<'a> {
    fixed: bool,
    options: OpenOptions,
    pace: Pace,
    progress: Listener<'a>,
}

/// The result of a [`Provision`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provisioned {
    /// Bytes of space that blocks were given.
    pub allocated: u64,
    /// Whether the flag was changed.
    pub changed: bool,
    /// Warnings from the image.
    pub warnings: Vec<Warning>,
}

impl<'a> Provision<'a> {
    /// Makes an image fixed.
    pub fn fixed() -> Self {
        Self::new(true)
    }

    /// Makes an image dynamic.
    pub fn dynamic() -> Self {
        Self::new(false)
    }

    fn new(fixed: bool) -> Self {
        let (options, pace) = (OpenOptions::new(), Pace::new());
        Self { fixed, options, pace, progress: Listener::default() }
    }

    /// How to open the image: the host, the memory budget and the lock. Logs are always replayed.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// Limits how fast space is filled with zeros.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Calls `on` while the operation runs, with the bytes of blocks that are looked at. A break stops it with
    /// [`ErrorKind::Cancelled`]; blocks that have got space keep it.
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Predicts what [`run`](Self::run) will do. Changes nothing.
    ///
    /// # Errors
    /// As for `run`, but for those of writes.
    pub fn forecast(&self, image: impl AsRef<Path>) -> Result<Forecast> {
        let held = HeldImage::open(&self.options, image.as_ref(), Access::Read)?;
        check_alone(&held.image)?;
        self.forecast_of(&held, image.as_ref())
    }

    /// Changes the image at `image`, durably.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::InvalidInput`] for a differencing image; [`ErrorKind::NoSpace`];
    /// [`ErrorKind::Unfinished`] for the target of an unfinished merge; [`ErrorKind::InUse`]; as
    /// [`OpenOptions::open_image`](crate::OpenOptions::open_image). Later [`ErrorKind::Cancelled`], [`ErrorKind::Io`]
    /// and [`ErrorKind::Poisoned`]: the disk reads as before.
    pub fn run(self, image: impl AsRef<Path>) -> Result<Provisioned> {
        let _span = operation("provision", &image.as_ref().to_string_lossy());
        let mut held = HeldImage::open(&self.options, image.as_ref(), Access::ReadWrite)?;
        check_alone(&held.image)?;
        self.forecast_of(&held, image.as_ref())?.check()?;
        let writer = held.writer()?;
        held.warnings.extend(writer.core().warnings().iter().cloned());
        let changed = writer.core().keeps_blocks() != self.fixed;
        let mut allocated = 0;
        let done = (|| {
            if self.fixed {
                allocated = self.allocate(&writer)?;
            }
            // First: blocks without space are no part of a fixed image.
            writer.commit()?;
            writer.edit_metadata(&[self.flag(writer.core())])
        })();
        let closed = writer.close();
        done.and(closed)?;
        Ok(Provisioned { allocated, changed, warnings: held.warnings })
    }

    fn forecast_of(&self, held: &HeldImage, asked: &Path) -> Result<Forecast> {
        let image = &held.image;
        let path = held.storage.path().unwrap_or(asked);
        let mut forecast = Forecast::on(held.options.host_used().as_ref(), path)?;
        if self.fixed {
            let missing = image.layout().blocks() - image.count_blocks()?.fully_present;
            forecast.written = missing * u64::from(image.block_size());
            let holes = if image.keeps_blocks() { 0 } else { holes(image)? };
            forecast.peak = forecast.written + holes;
        }
        forecast.written += edit_len(image, &[self.flag(image)])?;
        if forecast.written > 0 {
            forecast.add(path, FileChangeKind::Changed);
        }
        Ok(forecast)
    }

    /// The edit that sets or clears the flag.
    fn flag(&self, image: &Core) -> ItemEdit {
        ItemEdit::leave_blocks_allocated(image, self.fixed)
    }

    /// Gives all blocks space; returns how many bytes that is.
    fn allocate(&self, image: &Writer) -> Result<u64> {
        let core = image.core();
        let block = u64::from(core.block_size());
        let blocks = core.layout().blocks();
        let size = blocks * block;
        let (mut allocated, mut reported) = (0, 0);
        self.progress.report(0, size)?;
        for n in 0..blocks {
            let at = n * block;
            let index = core.layout().payload_index(BlockIndex(n));
            let is_there = core.bat_entry(index)?.payload_state() == PayloadState::FullyPresent;
            if is_there && !core.keeps_blocks() {
                // Of a block that is there, the host may hold a part.
                image.allocate_block(BlockIndex(n))?;
            }
            if !is_there {
                let mut go_on = || self.progress.call(Progress::new(at, size));
                if self.pace.wait(block, &mut go_on).is_break() {
                    return Err(Error::cancelled());
                }
                image.allocate_block(BlockIndex(n))?;
                allocated += block;
            }
            if at - reported >= WINDOW {
                self.progress.report(at, size)?;
                reported = at;
            }
        }
        self.progress.report(size, size)?;
        Ok(allocated)
    }
}

/// Bytes of blocks that are there for which the host stores nothing, as far as it can tell.
fn holes(image: &Core) -> Result<u64> {
    let mut holes = 0;
    image.each_claim(|claim| {
        let range = claim.start()..claim.end().min(image.file_len());
        if has_data(&claim) && range.start < range.end {
            holes += (range.end - range.start) - image.stored_in(range)?;
        }
        Ok(())
    })?;
    Ok(holes)
}

/// Refuses an image that shows another's bytes, or that a merge is filling.
fn check_alone(image: &Core) -> Result<()> {
    image.check_point()?;
    if !image.has_parent() {
        return image.check_states();
    }
    let message = "a differencing image is neither fixed nor dynamic";
    Err(Error::new(ErrorKind::InvalidInput, "provision.differencing", message)
        .in_file(image.name())
        .with_section("2.6.2.1")
        .with_expected("an image without a parent"))
}
