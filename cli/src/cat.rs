//! `avhdx cat`: prints a file of a file system inside the disk.

use std::ffi::OsString;

use avhdx_files::Kind;
use serde::Serialize;

use crate::args::ImageArg;
use crate::failure::{Failure, Reply};
use crate::input;
use crate::next;
use crate::output::Console;
use crate::printing::print;
use crate::text::hex;
use crate::vocabulary::Answer;
use crate::volume::{self, VolumeFlags};

/// Write a file of a file system inside the disk to standard output.
///
/// FAT, NTFS, ext2, ext3 and ext4 are read. Links are followed within the volume. PATH:STREAM is an alternate data stream
/// of NTFS, and PATH::$DATA the file itself. With --json, one object per line with the bytes in hexadecimal digits.
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
    input::refuse_own_output(tree.disk())?;
    let (entry, stream) = volume::find(&tree, &volume::path(&args.path))?;
    let mut file = match tree.open(&entry, stream.as_deref()) {
        Ok(file) => file,
        Err(error) => {
            let listed = next::listing(&args.path).filter(|_| entry.kind() == Some(Kind::Folder));
            let failure = tree.failure(error);
            return Err(listed.into_iter().fold(failure, Failure::then));
        }
    };
    let all = 0..file.size();
    let read = |piece: &mut [u8], at| file.read_at(piece, at).map_err(|error| tree.failure(error));
    print(all, read, CatAnswer::of, console)
}
