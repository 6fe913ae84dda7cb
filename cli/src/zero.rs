//! `avhdx zero`: zeros over a range of the disk.

use avhdx::Zeroing;
use serde_json::json;

use crate::args;
use crate::exit::{Failure, Outcome};
use crate::output::{Console, size};
use crate::writing::{Writing, range};

/// Make a range of the disk read as zeros. Whole blocks may give up their space.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// Where on the disk to start.
    #[arg(long, value_name = "N", value_parser = args::bytes)]
    offset: u64,
    /// How many bytes to zero.
    #[arg(long, value_name = "N", value_parser = args::bytes)]
    length: u64,
    /// Keep the space that the range has in the file.
    #[arg(long)]
    keep_space: bool,
    #[command(flatten)]
    writing: args::Writing,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let within = |size| range(args.offset, args.length, size).map(drop);
    let image = Writing::open(&args.image.image, &args.writing, console, within)?;
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
    Ok(Outcome::Yes)
}
