//! `avhdx flatten`: copies a point in time to one new image.

use std::path::PathBuf;

use serde::Serialize;

use crate::args::{CopyFormat, Format, ImageArg};
use crate::copying::{Copied, CopyFlags, DiskCopy};
use crate::failure::{Failure, Reply};
use crate::next;
use crate::output::Console;
use crate::vocabulary::Answer;

/// Copy a point in time to one new dynamic image without a parent. The chain stays as it is.
///
/// Blocks of zeros take no space in the image: its tables leave them out. On Windows the file never gets the sparse
/// attribute, which Hyper-V refuses; on Linux, what a block has no data for is a hole in the file. `avhdx convert` makes fixed images and raw disks too.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The file to make.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    flags: CopyFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let Args { image, out, flags } = args;
    let copy = DiskCopy { image, out, flags };
    if copy.out.as_os_str() == "-" {
        let failure =
            Failure::usage("usage", "an image cannot be written to standard output, only a file");
        return Err(next::elsewhere("OUT".as_ref()).into_iter().fold(failure, Failure::then));
    }
    let input = copy.input(Some(Format::Vhdx), console)?;
    if copy.flags.dry_run {
        return copy.foresee(&input, CopyFormat::Vhdx, Some(CopyFormat::Vhdx), None, console);
    }
    let copied = copy.copy(&input, CopyFormat::Vhdx, Some(CopyFormat::Vhdx), None, console)?;
    if console.is_json() {
        console.document(&FlattenAnswer::of(&copy, &copied))?;
    } else {
        console.line(copy.line(&copied))?;
    }
    Ok(Reply::Yes)
}

/// A point in time that was copied to one image.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct FlattenAnswer {
    image: String,
    /// The file made.
    output: String,
    virtual_size: u64,
    /// The number of bytes of the disk that were written; the rest are zeros.
    written: u64,
    /// How many of them the file system was asked to share between the files.
    handed_over: u64,
    block_size: Option<u32>,
    /// Whether the copy was read back and compared with the disk.
    verified: bool,
}

impl Answer for FlattenAnswer {
    const SCHEMA: &'static str = "avhdx.flatten/1";
}

impl FlattenAnswer {
    fn of(copy: &DiskCopy, copied: &Copied) -> Self {
        Self {
            image: copy.image.name(),
            output: copy.out.to_string_lossy().into_owned(),
            virtual_size: copied.virtual_size,
            written: copied.written,
            handed_over: copied.handed_over,
            block_size: copied.block_size,
            verified: copy.flags.verify,
        }
    }
}
