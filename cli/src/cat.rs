//! `avhdx cat`: prints a file of a file system inside the disk.

use std::ffi::OsString;

use serde::Serialize;

use crate::args::ImageArg;
use crate::failure::{Failure, Reply};
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::hex;
use crate::vocabulary::Answer;
use crate::volume::{self, VolumeFlags};

const PIECE: u64 = 1 << 20;
/// The maximum number of bytes on a line of JSON.
const LINE: usize = 64 << 10;

/// Write a file of a file system inside the disk to standard output.
///
/// FAT, NTFS, ext2, ext3 and ext4 are read. Links are followed within the volume. PATH:STREAM is an alternate data stream
/// of NTFS. With --json, one object per line with the bytes in hexadecimal digits.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The path of the file from the top of the volume.
    #[arg(value_name = "PATH")]
    path: OsString,
    #[command(flatten)]
    volume: VolumeFlags,
}

/// Bytes of a file.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CatAnswer {
    /// The place in the file.
    offset: u64,
    length: usize,
    /// The bytes, as two hexadecimal digits each.
    hex: String,
}

impl Answer for CatAnswer {
    const SCHEMA: &'static str = "avhdx.cat/1";
}

impl CatAnswer {
    fn of(offset: u64, bytes: &[u8]) -> Self {
        Self { offset, length: bytes.len(), hex: hex(bytes) }
    }
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let tree = args.volume.open(&args.image, console)?;
    let (entry, stream) = volume::find(&tree, &volume::path(&args.path))?;
    let mut file = tree.open(&entry, stream.as_deref())?;
    let (mut at, size) = (0, file.size());
    let mut buf = vec![0; size.min(PIECE) as usize];
    // Lines of JSON tell by themselves how far the read is.
    let mut meter = (!console.is_json()).then(|| ProgressMeter::beside_output(console));
    while at < size {
        let piece = &mut buf[..PIECE.min(size - at) as usize];
        file.read_at(piece, at)?;
        if console.is_json() {
            let of = |(n, part): (usize, &[u8])| CatAnswer::of(at + (n * LINE) as u64, part);
            piece.chunks(LINE).enumerate().try_for_each(|part| console.object(&of(part)))?;
        } else {
            console.bytes(piece)?;
        }
        at += piece.len() as u64;
        if let Some(meter) = &mut meter {
            meter.show(at, size);
        }
    }
    Ok(Reply::Yes)
}
