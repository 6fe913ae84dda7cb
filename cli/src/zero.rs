//! `avhdx zero`: zeroes a range of the disk.

use avhdx::Zeroing;
use serde::Serialize;

use crate::args::{ImageArg, RangeFlags, WriteFlags};
use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::text::size;
use crate::vocabulary::Answer;
use crate::writing::change_range;

/// Zero a range of the disk. Whole blocks can release their space.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    #[command(flatten)]
    range: RangeFlags,
    /// Keep the space of the range in the file.
    #[arg(long)]
    keep_space: bool,
    #[command(flatten)]
    writing: WriteFlags,
}

/// A range that was zeroed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ZeroAnswer {
    image: String,
    offset: u64,
    length: u64,
    keep_space: bool,
}

impl Answer for ZeroAnswer {
    const SCHEMA: &'static str = "avhdx.zero/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { image, range, keep_space, writing } = &args;
    let how = if *keep_space { Zeroing::KeepSpace } else { Zeroing::MayUnmap };
    change_range(image, range, writing, console, |disk, range| disk.write_zeroes(range, how))?;
    let (name, RangeFlags { offset, length }) = (image.name(), range);
    if console.is_json() {
        console.document(&ZeroAnswer {
            image: name,
            offset: *offset,
            length: *length,
            keep_space: *keep_space,
        })?;
    } else {
        console.line(format!("{name}: {} zeroed at {offset}", size(*length)))?;
    }
    Ok(Reply::Yes)
}
