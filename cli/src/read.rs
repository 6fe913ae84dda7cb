//! `avhdx read`: bytes of the disk to standard output.

use crate::args::{self, Format, Opening};
use crate::exit::{Failure, Outcome};
use crate::input::{self, Input};
use crate::output::Console;

const PIECE: u64 = 1 << 20;

/// Write bytes of the disk to standard output.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// Where on the disk to start.
    #[arg(long, value_name = "N", value_parser = args::bytes, default_value = "0")]
    offset: u64,
    /// How many bytes to read.
    #[arg(long, value_name = "N", value_parser = args::bytes)]
    length: u64,
    /// What the input is.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    opening: Opening,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let disk = input.disk();
    input::refuse_own_output(disk)?;
    let size = disk.geometry().size;
    let end = args.offset.checked_add(args.length).filter(|end| *end <= size).ok_or_else(|| {
        let message = format!(
            "{} bytes at {} do not lie within the disk, which has {size}",
            args.length, args.offset
        );
        Failure::usage("disk.out-of-range", message)
    })?;
    let mut buf = vec![0; args.length.min(PIECE) as usize];
    let mut at = args.offset;
    while at < end {
        // Pieces end at multiples of their size, so that blocks are not cut more than needed.
        let piece = &mut buf[..(PIECE - at % PIECE).min(end - at) as usize];
        disk.read_at(piece, at)?;
        console.bytes(piece)?;
        at += piece.len() as u64;
    }
    Ok(Outcome::Yes)
}
