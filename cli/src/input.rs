//! Opens the disk that an argument names.

use std::ffi::OsStr;
use std::io::StdinLock;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::Ruin;
#[cfg(unix)]
use avhdx::storage::FileStorage;
use avhdx::storage::{
    Access, FileId, FileKind, Host, LocalHost, LockMode, LockOutcome, Stat, Storage,
};
use avhdx::{DiffChain, Disk, Lock, OpenOptions, RawDisk};

use crate::args::{Format, ReadFlags};
use crate::failure::{Exit, Failure};
use crate::foreign::{self, Foreign};
use crate::keeping::Keeping;
use crate::next;
use crate::output::Console;
use crate::parents;
use crate::point::Point;
use crate::points::Points;
use crate::shell;

/// A disk that a verb works on.
#[derive(Debug)]
pub(crate) enum Input {
    Chain(DiffChain),
    Foreign(Foreign),
    Raw {
        disk: RawDisk,
        path: PathBuf,
    },
    /// What is left of an image.
    Ruin(Box<Ruin>),
    /// What can be read of a disk, and its files. Its sector sizes are its own if it is a chain.
    Kept {
        disk: Keeping,
        paths: Vec<PathBuf>,
        is_chain: bool,
    },
}

impl Input {
    /// Opens the argument's disk.
    pub(crate) fn open(
        argument: &OsStr,
        asked: Option<Format>,
        opening: &ReadFlags,
        console: &mut Console,
    ) -> Result<Self, Failure> {
        match Format::of(argument, asked) {
            Format::Vhdx => chain(argument, opening, Lock::Shared, console).map(Self::Chain),
            Format::Vhd => {
                foreign::vhd(argument, opening, console).map(|disk| Self::Foreign(disk.into()))
            }
            Format::Qcow2 => {
                foreign::qcow2(argument, opening, console).map(|disk| Self::Foreign(disk.into()))
            }
            Format::Vmdk => {
                foreign::vmdk(argument, opening, console).map(|disk| Self::Foreign(disk.into()))
            }
            Format::Raw => raw(argument, asked),
        }
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        match self {
            Self::Chain(chain) => chain,
            Self::Foreign(foreign) => foreign.disk.as_ref(),
            Self::Raw { disk, .. } => disk,
            Self::Ruin(ruin) => ruin.as_ref(),
            Self::Kept { disk, .. } => disk,
        }
    }

    /// The disk, for readers that keep it.
    pub(crate) fn into_disk(self) -> Arc<dyn Disk> {
        match self {
            Self::Chain(chain) => Arc::new(chain),
            Self::Foreign(foreign) => foreign.disk,
            Self::Raw { disk, .. } => Arc::new(disk),
            Self::Ruin(ruin) => Arc::from(ruin as Box<dyn Disk>),
            Self::Kept { disk, .. } => Arc::new(disk),
        }
    }

    /// The disk as far as it can be read.
    pub(crate) fn kept(self) -> Self {
        let (paths, is_chain) = (self.paths(), matches!(self, Self::Chain(_)));
        Self::Kept { disk: Keeping::new(self.into_disk()), paths, is_chain }
    }

    /// Whether the sector sizes of the disk are recorded.
    pub(crate) fn has_sectors(&self) -> bool {
        matches!(self, Self::Chain(_) | Self::Ruin(_) | Self::Kept { is_chain: true, .. })
    }

    /// The files that hold the disk.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Chain(chain) => {
                chain.layers().into_iter().filter_map(|layer| layer.path).collect()
            }
            Self::Foreign(foreign) => {
                let files = foreign.images.iter().flat_map(|image| &image.files);
                files.filter_map(|file| file.path.clone()).collect()
            }
            Self::Raw { path, .. } => vec![path.clone()],
            Self::Ruin(ruin) => ruin.paths(),
            Self::Kept { paths, .. } => paths.clone(),
        }
    }
}

/// The files of a disk as they were, where nothing but their times tells whether they changed.
pub(crate) struct Stamps(Vec<(PathBuf, Stat)>);

impl Stamps {
    /// Looks at the files of a disk that is no chain: programs that write to them need not look at our locks.
    pub(crate) fn of(input: &Input) -> Self {
        let paths = match input {
            Input::Chain(_) | Input::Ruin(_) | Input::Kept { is_chain: true, .. } => Vec::new(),
            Input::Foreign(_) | Input::Raw { .. } | Input::Kept { .. } => input.paths(),
        };
        let stamp = |path: PathBuf| {
            let stat = LocalHost.stat(&path).ok().filter(|stat| stat.kind == FileKind::File)?;
            Some((path, stat))
        };
        Self(paths.into_iter().filter_map(stamp).collect())
    }

    /// Refuses what was read if a file changed since then.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for (path, before) in &self.0 {
            let is_same = LocalHost.stat(path).is_ok_and(|now| {
                (now.len, now.modified, now.id) == (before.len, before.modified, before.id)
            });
            if !is_same {
                let path = path.display();
                let message = format!("{path}: the file changed while it was read");
                return Err(Failure::new(Exit::InUse, "input.changed", message));
            }
        }
        Ok(())
    }
}

/// Opens the chain at the argument's point in time, and prints its warnings.
pub(crate) fn chain(
    argument: &OsStr,
    opening: &ReadFlags,
    lock: Lock,
    console: &mut Console,
) -> Result<DiffChain, Failure> {
    chain_with(argument, opening, &opening.options().lock(lock), console)
}

/// Like [`chain`], with the verb's own options.
pub(crate) fn chain_with(
    argument: &OsStr,
    opening: &ReadFlags,
    options: &OpenOptions,
    console: &mut Console,
) -> Result<DiffChain, Failure> {
    let image = resolve(argument, &opening.inspecting(), console)?.path;
    let chain = options.open(&image).map_err(|error| parents::failure(error, &image, options))?;
    console.warnings(&chain.warnings());
    Ok(chain)
}

/// Prints which file a link leads to, if that file is about to change.
pub(crate) fn note_link(chain: &DiffChain, console: &mut Console) {
    let tip = chain.tip();
    if let (Some(via), Some(path)) = (tip.via(), tip.path()) {
        let message = format!("{} leads to {}", via.display(), path.display());
        console.note("file.link", &message);
    }
}

/// Refuses to write to standard output if it is one of the disk's own files.
pub(crate) fn refuse_own_output(disk: &dyn Disk) -> Result<(), Failure> {
    let own = output_id();
    if own.is_none_or(|own| !disk.files().contains(&own)) {
        return Ok(());
    }
    let message = "standard output is the input or one of its parents";
    Err(Failure::new(Exit::Refused, "output.is-source", message))
}

#[cfg(unix)]
fn output_id() -> Option<FileId> {
    use std::os::fd::AsFd;
    let file = std::io::stdout().as_fd().try_clone_to_owned().ok()?;
    FileStorage::from_file(file.into(), "standard output").id().ok().flatten()
}

#[cfg(not(unix))]
fn output_id() -> Option<FileId> {
    None
}

/// The remaining length of standard input if it is a file. Refuses a folder.
#[cfg(unix)]
pub(crate) fn known_length(input: &StdinLock<'_>) -> Result<Option<u64>, Failure> {
    use std::io::Seek;
    use std::os::fd::AsFd;
    // The position is shared with standard input; a pipe has none.
    let Ok(file) = input.as_fd().try_clone_to_owned() else { return Ok(None) };
    let mut file = std::fs::File::from(file);
    let Ok(metadata) = file.metadata() else { return Ok(None) };
    if metadata.is_dir() {
        let error = std::io::ErrorKind::IsADirectory.into();
        return Err(Failure::io("stdin.read", "cannot read standard input", &error));
    }
    let at = file.stream_position().ok().filter(|_| metadata.is_file());
    Ok(at.map(|at| metadata.len().saturating_sub(at)))
}

#[cfg(not(unix))]
pub(crate) fn known_length(_: &StdinLock<'_>) -> Result<Option<u64>, Failure> {
    Ok(None)
}

/// The file that an argument means.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) path: PathBuf,
    /// Whether it is the image itself, not a layer below it.
    pub(crate) is_tip: bool,
}

/// The file that the argument means. `inspecting` opens the layers above the point in time.
///
/// These are only inspected: a writer of the tip or a pending log there does not block older points.
pub(crate) fn resolve(
    argument: &OsStr,
    inspecting: &OpenOptions,
    console: &mut Console,
) -> Result<Resolved, Failure> {
    let Point { image, selector } = Point::parse(argument);
    let Some(selector) = selector else { return Ok(Resolved { path: image, is_tip: true }) };
    let argument = argument.to_string_lossy();
    let inspecting = inspecting.clone().lock(Lock::Try);
    let chain =
        inspecting.open(&image).map_err(|error| parents::failure(error, &image, &inspecting))?;
    let points = Points::of(&chain);
    let layer = points.resolve(&selector, &argument, console)?;
    let path = layer.path.clone().ok_or_else(|| {
        Failure::new(Exit::Refused, "point.no-path", format!("{argument}: the layer has no path"))
    })?;
    Ok(Resolved { path, is_tip: layer.id == points.layers()[0].id })
}

fn raw(argument: &OsStr, asked: Option<Format>) -> Result<Input, Failure> {
    let path = Path::new(argument);
    let name = path.display();
    let failed = |error| Failure::io("file.open", format!("{name}: cannot open the file"), &error);
    let kind = LocalHost.stat(path).map_err(failed)?.kind;
    let message = format!("{name}: this is {kind}, not a disk");
    let special = || Failure::usage("file.not-regular", message.as_str());
    match kind {
        FileKind::Folder => return Err(Failure::usage("file.folder", message)),
        FileKind::Fifo => {
            let convert = format!("avhdx convert -f raw - OUT < {}", shell::argument(path));
            return Err(special().then(convert));
        }
        FileKind::Socket => return Err(special()),
        _ => {}
    }
    let storage = LocalHost.open(path, Access::Read).map_err(failed)?;
    if kind != FileKind::File && storage.len().is_ok_and(|len| len == 0) {
        return Err(special());
    }
    if asked.is_none() {
        foreign::refuse_doubtful(storage.as_ref(), &name.to_string())?;
    }
    // A disk is read even if its storage does not support locks.
    if let Ok(LockOutcome::InUse(by)) = storage.try_lock(LockMode::Shared) {
        let message = format!("{name}: the file is in use: {by}");
        let failure = Failure::new(Exit::InUse, "lock.in-use", message);
        let again = next::again();
        return Err(again.into_iter().fold(failure, |failure, again| {
            // Any other failure ends the wait.
            let in_use = Exit::InUse as u8;
            let wait = format!("while {again}; [ $? -eq {in_use} ]; do sleep 1; done");
            failure.then(format!("{wait}  # waits for the other program"))
        }));
    }
    Ok(Input::Raw { disk: RawDisk::new(Arc::clone(&storage))?, path: path.to_path_buf() })
}
