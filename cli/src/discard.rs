//! `avhdx discard`: marks a range of the disk as unused.

use serde::Serialize;

use crate::args::{ImageArg, RangeFlags, WriteFlags};
use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::text::size;
use crate::vocabulary::Answer;
use crate::writing::change_range;

/// Mark a range of the disk as unused: it reads as zeros, never as the parent's data.
///
/// Whole blocks release their space, unless the image is fixed.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    #[command(flatten)]
    range: RangeFlags,
    #[command(flatten)]
    writing: WriteFlags,
}

/// A range that was discarded.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct DiscardAnswer {
    image: String,
    offset: u64,
    length: u64,
}

impl Answer for DiscardAnswer {
    const SCHEMA: &'static str = "avhdx.discard/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { image, range, writing } = &args;
    change_range(image, range, writing, console, |disk, range| disk.discard(range))?;
    let (name, RangeFlags { offset, length }) = (image.name(), range);
    if console.is_json() {
        console.document(&DiscardAnswer { image: name, offset: *offset, length: *length })?;
    } else {
        console.line(format!("{name}: {} discarded at {offset}", size(*length)))?;
    }
    Ok(Reply::Yes)
}
