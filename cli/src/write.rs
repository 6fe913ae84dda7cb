//! `avhdx write`: writes standard input to the disk.

use std::io::{self, Read};

use serde::Serialize;

use crate::args::{ImageArg, WriteFlags, range};
use crate::failure::{Failure, Reply};
use crate::input::known_length;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::size;
use crate::values;
use crate::vocabulary::Answer;
use crate::writing::WritableImage;

/// The number of bytes per write.
const PIECE: u64 = 2 << 20;

/// Write standard input to the disk, up to its end.
///
/// An input that does not fit is refused: at once if its length is known or below 2 MiB, otherwise at the end of
/// the disk, before its last 2 MiB are written.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The offset on the disk.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    offset: u64,
    #[command(flatten)]
    writing: WriteFlags,
}

/// What was written.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct WriteAnswer {
    image: String,
    offset: u64,
    /// The number of bytes.
    written: u64,
}

impl Answer for WriteAnswer {
    const SCHEMA: &'static str = "avhdx.write/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let input = io::stdin().lock();
    let known = known_length(&input)?;
    let name = args.image.name();
    let fits = |size| {
        range(args.offset, 0, size)?;
        match known {
            Some(length) if length > size - args.offset => {
                Err(too_long(&name, size - args.offset, args.offset, known))
            }
            _ => Ok(()),
        }
    };
    let image = WritableImage::open(&args.image, &args.writing, console, fits)?;
    let mut written = 0;
    let mut meter = match known {
        Some(_) => ProgressMeter::new(console),
        None => ProgressMeter::endless(console),
    };
    let done = copy(input, &image, (&name, args.offset), &mut |so_far| {
        written = so_far;
        match known {
            Some(length) => meter.show(so_far, length),
            None => meter.show_endless(so_far),
        }
    });
    drop(meter);
    if let Err(failure) = done {
        return Err(image.close_after(failure.with_written(written)));
    }
    image.close()?;
    console.done();
    if console.is_json() {
        console.document(&WriteAnswer { image: name, offset: args.offset, written })?;
    } else {
        console.line(format!("{name}: {} written at {}", size(written), args.offset))?;
    }
    Ok(Reply::Yes)
}

/// Writes the input at `offset`, and reports the number of bytes written so far.
fn copy(
    mut input: impl Read,
    image: &WritableImage,
    (name, offset): (&str, u64),
    on: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    let end = image.size();
    let mut buf = vec![0; PIECE as usize + 1];
    let mut at = offset;
    loop {
        // Pieces end at multiples of their size, so that whole blocks are written. At the end of the disk, one
        // more byte is requested to detect an input that is too long.
        let len = PIECE - at % PIECE;
        let len = if len >= end - at { end - at + 1 } else { len };
        let piece = &mut buf[..len as usize];
        let filled = fill(&mut input, piece)
            .map_err(|error| Failure::io("stdin.read", "cannot read standard input", &error))?;
        if filled as u64 > end - at {
            return Err(too_long(name, end - offset, offset, None));
        }
        if filled > 0 {
            image.change(|disk| disk.write_at(&piece[..filled], at))?;
            at += filled as u64;
            on(at - offset);
        }
        if filled < piece.len() {
            return Ok(());
        }
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match input.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn too_long(name: &str, room: u64, offset: u64, known: Option<u64>) -> Failure {
    let input = known.map_or_else(|| "more".into(), |length| length.to_string());
    let message =
        format!("{name}: the disk has room for {room} bytes at {offset}, the input has {input}");
    Failure::usage("write.too-long", message)
}
