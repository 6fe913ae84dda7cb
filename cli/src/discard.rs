//! `avhdx discard`: marks a range of the disk as unused.

use serde_json::json;

use crate::args::{ImageArg, WriteFlags};
use crate::failure::{Answer, Failure};
use crate::input::range;
use crate::output::Console;
use crate::text::size;
use crate::values;
use crate::writing::WritableImage;

/// Mark a range of the disk as unused: it reads as zeros, never as the parent's data.
///
/// Whole blocks release their space, unless the image is fixed.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The offset on the disk.
    #[arg(long, value_name = "N", value_parser = values::bytes)]
    offset: u64,
    /// The number of bytes to discard.
    #[arg(long, value_name = "N", value_parser = values::bytes)]
    length: u64,
    #[command(flatten)]
    writing: WriteFlags,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Answer, Failure> {
    let within = |size| range(args.offset, args.length, size).map(drop);
    let image = WritableImage::open(&args.image.image, &args.writing, console, within)?;
    let range = range(args.offset, args.length, image.size())?;
    let name = image.name();
    image.change_range(range, console, |disk, range| disk.discard(range))?;
    console.done();
    if console.is_json() {
        console.document(&json!({
            "schema": "avhdx.discard/1",
            "image": name,
            "offset": args.offset,
            "length": args.length,
        }))?;
    } else {
        console.line(format!("{name}: {} discarded at {}", size(args.length), args.offset))?;
    }
    Ok(Answer::Yes)
}
