//! `avhdx read`: prints bytes of the disk.

use serde::Serialize;

use crate::args::{Format, ImageArg, ReadFlags, range};
use crate::failure::{Failure, Reply};
use crate::input::{self, Input};
use crate::output::Console;
use crate::printing::print;
use crate::text::hex;
use crate::values;
use crate::vocabulary::Answer;

/// Write bytes of the disk to standard output.
///
/// With --json, one object per line with the bytes in hexadecimal digits.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The offset on the disk.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, default_value = "0")]
    offset: u64,
    /// The number of bytes to read [default: up to the end of the disk].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    length: Option<u64>,
    /// The format of the input [default: by the ending of its name, else VHDX].
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    opening: ReadFlags,
}

/// Bytes of the disk.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ReadAnswer {
    offset: u64,
    length: usize,
    /// The bytes, as two hexadecimal digits each.
    hex: String,
}

impl Answer for ReadAnswer {
    const SCHEMA: &'static str = "avhdx.read/1";
}

impl ReadAnswer {
    fn of(offset: u64, bytes: &[u8]) -> Self {
        Self { offset, length: bytes.len(), hex: hex(bytes) }
    }
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let disk = input.disk();
    input::refuse_own_output(disk)?;
    let size = disk.geometry().size;
    let length = args.length.unwrap_or(size.saturating_sub(args.offset));
    let end = range(args.offset, length, size)?.end;
    let read = |piece: &mut [u8], at| Ok(disk.read_at(piece, at)?);
    print(args.offset..end, read, ReadAnswer::of, console)
}
