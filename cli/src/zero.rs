//! `avhdx zero`: zeroes a range of the disk.

use avhdx::Zeroing;
use serde_json::json;

use crate::args::{ImageArg, WriteFlags};
use crate::failure::{Answer, Failure};
use crate::input::range;
use crate::output::Console;
use crate::text::size;
use crate::values;
use crate::writing::WritableImage;

/// Zero a range of the disk. Whole blocks can release their space.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The offset on the disk.
    #[arg(long, value_name = "N", value_parser = values::bytes)]
    offset: u64,
    /// The number of bytes to zero.
    #[arg(long, value_name = "N", value_parser = values::bytes)]
    length: u64,
    /// Keep the space of the range in the file.
    #[arg(long)]
    keep_space: bool,
    #[command(flatten)]
    writing: WriteFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Answer, Failure> {
    let within = |size| range(args.offset, args.length, size).map(drop);
    let image = WritableImage::open(&args.image.image, &args.writing, console, within)?;
    let range = range(args.offset, args.length, image.size())?;
    let name = image.name();
    let how = if args.keep_space { Zeroing::KeepSpace } else { Zeroing::MayUnmap };
    image.change_range(range, console, |disk, range| disk.write_zeroes(range, how))?;
    console.done();
    if console.is_json() {
        console.document(&json!({
            "schema": "avhdx.zero/1",
            "image": name,
            "offset": args.offset,
            "length": args.length,
            "keep_space": args.keep_space,
        }))?;
    } else {
        console.line(format!("{name}: {} zeroed at {}", size(args.length), args.offset))?;
    }
    Ok(Answer::Yes)
}
