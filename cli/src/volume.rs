//! The file system of a disk that a verb reads.

use std::ffi::OsStr;
use std::ops::Deref;
use std::path::PathBuf;
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

/// A file system of a disk, with what messages call it.
pub(crate) struct Tree {
    system: FileSystem,
    disk: Arc<dyn Disk>,
    /// The files that hold the disk.
    paths: Vec<PathBuf>,
    /// The image as typed.
    image: String,
    volume: String,
}

impl Deref for Tree {
    type Target = FileSystem;

    fn deref(&self) -> &FileSystem {
        &self.system
    }
}

impl Tree {
    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// A path, behind what it lies in.
    pub(crate) fn place(&self, path: &[u8]) -> String {
        format!("{}: {}: /{}", self.image, self.volume, shown(path))
    }

    /// What an error says, and of which image.
    pub(crate) fn told(&self, error: &avhdx_files::Error) -> String {
        told(&self.image, error)
    }

    /// What keeps anything but the name of an entry from being known.
    pub(crate) fn problem_of(&self, entry: &Entry, problem: &avhdx_files::Error) -> String {
        format!("{}: {}", self.place(entry.path()), problem.message())
    }

    pub(crate) fn failure(&self, error: avhdx_files::Error) -> Failure {
        failure(&self.image, error)
    }
}

/// What an error says, and of which image.
pub(crate) fn told(image: &str, error: &avhdx_files::Error) -> String {
    format!("{image}: {error}")
}

/// The failure, which names the image unless it names the file that could not be read.
pub(crate) fn failure(image: &str, error: avhdx_files::Error) -> Failure {
    let is_of_disk = error.disk_error().is_some();
    let failure = Failure::from(error);
    if is_of_disk { failure } else { failure.within(image) }
}

impl VolumeFlags {
    /// The volumes of the image's disk. Prints their warnings.
    pub(crate) fn volumes(
        &self,
        image: &ImageArg,
        console: &mut Console,
    ) -> Result<Volumes, Failure> {
        let input = self.input(image, console)?;
        volumes_of(input.into_disk(), image, console)
    }

    fn input(&self, image: &ImageArg, console: &mut Console) -> Result<Input, Failure> {
        avhdx_files::silence_caught_panics();
        Input::open(&image.image, self.format, &self.opening, console)
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
    pub(crate) fn open(&self, image: &ImageArg, console: &mut Console) -> Result<Tree, Failure> {
        let input = self.input(image, console)?;
        let paths = input.paths();
        let disk = input.into_disk();
        let volumes = volumes_of(Arc::clone(&disk), image, console)?;
        let image = image.name();
        let options = Options::default().system(self.system);
        let opened = volumes
            .select(self.volume.as_deref())
            .and_then(|volume| Ok((volume.name(), volume.open_with(options)?)));
        let (volume, system) = opened.map_err(|error| failure(&image, error))?;
        for warning in system.warnings() {
            console.warn("files.volume", &format!("{image}: {volume}: {warning}"));
        }
        Ok(Tree { system, disk, paths, image, volume })
    }
}

/// The volumes of the image's disk. Prints their warnings.
fn volumes_of(
    disk: Arc<dyn Disk>,
    image: &ImageArg,
    console: &mut Console,
) -> Result<Volumes, Failure> {
    let image = image.name();
    let volumes = Volumes::of(disk).map_err(|error| failure(&image, error))?;
    for warning in volumes.warnings() {
        console.warn("files.table", &format!("{image}: {warning}"));
    }
    Ok(volumes)
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

/// Splits what was typed into a path and the stream that follows a colon, as `PATH:STREAM` or `PATH:STREAM:$DATA`;
/// `PATH::$DATA` is the file itself. Only NTFS has streams: a colon is a part of names elsewhere.
pub(crate) fn split<'t>(tree: &FileSystem, typed: &'t [u8]) -> (&'t [u8], Option<&'t [u8]>) {
    let last = typed.iter().rposition(|byte| matches!(byte, b'/' | b'\\')).map_or(0, |at| at + 1);
    let colon =
        typed[last..].iter().position(|byte| *byte == b':').filter(|_| tree.kind() == "NTFS");
    match colon {
        Some(at) => (&typed[..last + at], stream(&typed[last + at + 1..])),
        None => (typed, None),
    }
}

/// The stream that is meant by what follows the first colon; none if it is the file itself.
fn stream(named: &[u8]) -> Option<&[u8]> {
    const DATA: &[u8] = b":$DATA";
    let name = named.len().checked_sub(DATA.len());
    match name.filter(|name| named[*name..].eq_ignore_ascii_case(DATA)) {
        Some(0) => None,
        Some(name) => Some(&named[..name]),
        None => Some(named),
    }
}

/// Finds what was typed, and the stream of it.
pub(crate) fn find(tree: &Tree, typed: &[u8]) -> Result<(Entry, Option<Vec<u8>>), Failure> {
    let (path, stream) = split(tree, typed);
    let entry = tree.resolve(path).map_err(|error| tree.failure(error))?;
    Ok((entry, stream.map(<[u8]>::to_vec)))
}

/// A path as it is shown.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
