//! Bytes that a verb prints: of a disk, or of a file inside it.

use std::ops::Range;

use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::vocabulary::Answer;

const PIECE: u64 = 1 << 20;
/// The maximum number of bytes on a line of JSON.
const LINE: usize = 64 << 10;

/// Prints a range: its bytes, or lines of JSON that `answer` makes of a place and the bytes there.
pub(crate) fn print<A: Answer>(
    range: Range<u64>,
    mut read: impl FnMut(&mut [u8], u64) -> Result<(), Failure>,
    answer: impl Fn(u64, &[u8]) -> A,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let length = range.end - range.start;
    let mut buf = vec![0; length.min(PIECE) as usize];
    let mut at = range.start;
    // Lines of JSON tell by themselves how far the read is.
    let mut meter = (!console.is_json()).then(|| ProgressMeter::beside_output(console));
    while at < range.end {
        // Pieces end at multiples of their size, so that few blocks are split.
        let piece = &mut buf[..(PIECE - at % PIECE).min(range.end - at) as usize];
        read(piece, at)?;
        if console.is_json() {
            let of = |(n, part): (usize, &[u8])| answer(at + (n * LINE) as u64, part);
            piece.chunks(LINE).enumerate().try_for_each(|part| console.object(&of(part)))?;
        } else {
            console.bytes(piece)?;
        }
        at += piece.len() as u64;
        if let Some(meter) = &mut meter {
            meter.show(at - range.start, length);
        }
    }
    Ok(Reply::Yes)
}
