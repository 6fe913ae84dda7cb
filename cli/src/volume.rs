//! The file system of a disk that a verb reads.

use std::ffi::OsStr;

use avhdx_files::{Entry, FileSystem, Options, Volumes};

use crate::args::{Format, ImageArg, ReadFlags};
use crate::failure::Failure;
use crate::input::Input;
use crate::output::Console;

/// Which file system is read, and how.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct VolumeFlags {
    /// The volume: its number in the partition table, its label, its name or its partition id [default: the only one
    /// that can be read].
    #[arg(short = 'p', long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Show the files in which NTFS keeps itself, such as $MFT.
    #[arg(long)]
    system: bool,
    /// The format of the input.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    opening: ReadFlags,
}

impl VolumeFlags {
    /// The volumes of the image's disk. Prints their warnings.
    pub(crate) fn volumes(
        &self,
        image: &ImageArg,
        console: &mut Console,
    ) -> Result<Volumes, Failure> {
        avhdx_files::silence_caught_panics();
        let input = Input::open(&image.image, self.format, &self.opening, console)?;
        let volumes = Volumes::of(input.into_disk())?;
        volumes.warnings().iter().for_each(|warning| console.warn("files.table", warning));
        Ok(volumes)
    }

    /// The file system. Prints its warnings.
    pub(crate) fn open(
        &self,
        image: &ImageArg,
        console: &mut Console,
    ) -> Result<FileSystem, Failure> {
        let volumes = self.volumes(image, console)?;
        let volume = volumes.select(self.volume.as_deref())?;
        let tree = volume.open_with(Options::default().system(self.system))?;
        tree.warnings().iter().for_each(|warning| console.warn("files.volume", warning));
        Ok(tree)
    }
}

/// The bytes of a path in a volume, as typed.
pub(crate) fn path(typed: &OsStr) -> Vec<u8> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        typed.as_bytes().to_vec()
    }
    #[cfg(not(unix))]
    typed.to_string_lossy().into_owned().into_bytes()
}

/// Finds what was typed, and the stream of it that follows a colon. Only NTFS has streams: a colon is a part of names
/// elsewhere.
pub(crate) fn find(tree: &FileSystem, typed: &[u8]) -> Result<(Entry, Option<Vec<u8>>), Failure> {
    let last = typed.iter().rposition(|byte| matches!(byte, b'/' | b'\\')).map_or(0, |at| at + 1);
    let colon =
        typed[last..].iter().position(|byte| *byte == b':').filter(|_| tree.kind() == "NTFS");
    let (path, stream) = match colon {
        Some(at) => (&typed[..last + at], Some(typed[last + at + 1..].to_vec())),
        None => (typed, None),
    };
    Ok((tree.resolve(path)?, stream))
}

/// A path as it is shown.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
