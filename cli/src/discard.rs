//! `avhdx discard`: a range of the disk that is not needed any more.

use serde_json::json;

use crate::args;
use crate::exit::{Failure, Outcome};
use crate::output::{Console, size};
use crate::writing::{Writing, range};

/// Say that a range of the disk is not needed any more: it reads as zeros, and whole blocks give up their
/// space unless the image is a fixed one. The parent never shows through.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// Where on the disk to start.
    #[arg(long, value_name = "N", value_parser = args::bytes)]
    offset: u64,
    /// How many bytes to discard.
    #[arg(long, value_name = "N", value_parser = args::bytes)]
    length: u64,
    #[command(flatten)]
    writing: args::Writing,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let within = |size| range(args.offset, args.length, size).map(drop);
    let image = Writing::open(&args.image.image, &args.writing, console, within)?;
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
    Ok(Outcome::Yes)
}
