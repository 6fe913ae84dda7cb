//! The file system of a disk that a verb reads.

use std::ffi::OsStr;
use std::sync::Arc;

use avhdx::{DiffChain, Disk};
use avhdx_files::{Entry, FileSystem, Options, Seen, Volumes};

use crate::args::{Format, ImageArg, ReadFlags};
use crate::failure::Failure;
use crate::input::Input;
use crate::output::Console;
use crate::point::Point;

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
    /// The format of the input [default: by the ending of its name, else VHDX].
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
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

    /// The chain of an image that is one of a chain.
    pub(crate) fn chain(
        &self,
        image: &ImageArg,
        console: &mut Console,
    ) -> Result<DiffChain, Failure> {
        avhdx_files::silence_caught_panics();
        match Input::open(&image.image, self.format, &self.opening, console)? {
            Input::Chain(chain) if Point::parse(&image.image).selector.is_none() => Ok(chain),
            _ => {
                let message =
                    format!("{}: only the tip of a chain has points in time", image.name());
                Err(Failure::usage("versions.image", message))
            }
        }
    }

    /// Looks at the file system of a disk.
    pub(crate) fn look<T>(
        &self,
        disk: Arc<dyn Disk>,
        look: impl FnOnce(&FileSystem) -> avhdx_files::Result<T>,
    ) -> Seen<T> {
        Seen::look(disk, self.volume.as_deref(), Options::default().system(self.system), look)
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

/// Splits what was typed into a path and the stream that follows a colon. Only NTFS has streams: a colon is a part of names
/// elsewhere.
pub(crate) fn split<'t>(tree: &FileSystem, typed: &'t [u8]) -> (&'t [u8], Option<&'t [u8]>) {
    let last = typed.iter().rposition(|byte| matches!(byte, b'/' | b'\\')).map_or(0, |at| at + 1);
    let colon =
        typed[last..].iter().position(|byte| *byte == b':').filter(|_| tree.kind() == "NTFS");
    match colon {
        Some(at) => (&typed[..last + at], Some(&typed[last + at + 1..])),
        None => (typed, None),
    }
}

/// Finds what was typed, and the stream of it.
pub(crate) fn find(tree: &FileSystem, typed: &[u8]) -> Result<(Entry, Option<Vec<u8>>), Failure> {
    let (path, stream) = split(tree, typed);
    Ok((tree.resolve(path)?, stream.map(<[u8]>::to_vec)))
}

/// A path as it is shown.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
