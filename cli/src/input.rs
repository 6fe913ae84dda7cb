//! From an argument to a disk.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Access, FileId, FileKind, Host, LocalHost, LockMode, LockOutcome};
#[cfg(unix)]
use avhdx::storage::{FileStorage, Storage};
use avhdx::{DiffChain, Disk, Lock, OpenOptions, RawDisk};

use crate::args::{Format, Opening};
use crate::exit::{Exit, Failure};
use crate::next;
use crate::output::Console;
use crate::parents;
use crate::point::{Point, Points};

/// A disk that a verb works on.
#[derive(Debug)]
pub(crate) enum Input {
    Chain(DiffChain),
    Raw { disk: RawDisk, path: PathBuf },
}

impl Input {
    /// Opens what the argument names, as the flags say.
    pub(crate) fn open(
        argument: &OsStr,
        format: Format,
        opening: &Opening,
        console: &mut Console,
    ) -> Result<Self, Failure> {
        match format {
            Format::Vhdx => chain(argument, opening, Lock::Shared, console).map(Self::Chain),
            Format::Raw => raw(Path::new(argument)),
        }
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        match self {
            Self::Chain(chain) => chain,
            Self::Raw { disk, .. } => disk,
        }
    }

    /// The files that the disk's bytes come from.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Chain(chain) => {
                chain.layers().into_iter().filter_map(|layer| layer.path).collect()
            }
            Self::Raw { path, .. } => vec![path.clone()],
        }
    }
}

/// Opens a chain at the point in time that the argument names, and warns of what it has to warn of.
pub(crate) fn chain(
    argument: &OsStr,
    opening: &Opening,
    lock: Lock,
    console: &mut Console,
) -> Result<DiffChain, Failure> {
    chain_with(argument, opening, &opening.options().lock(lock), console)
}

/// The same, with options of the verb's own.
pub(crate) fn chain_with(
    argument: &OsStr,
    opening: &Opening,
    options: &OpenOptions,
    console: &mut Console,
) -> Result<DiffChain, Failure> {
    let image = resolve(argument, &opening.looking(), console)?.path;
    let chain = options.open(&image).map_err(|error| parents::failure(error, &image, options))?;
    console.warnings(&chain.warnings());
    Ok(chain)
}

/// Says which file a link led to that is going to be changed.
pub(crate) fn tell_link(chain: &DiffChain, console: &mut Console) {
    let tip = chain.tip();
    if let (Some(via), Some(path)) = (tip.via(), tip.path()) {
        let message = format!("{} leads to {}", via.display(), path.display());
        console.note("file.link", &message);
    }
}

/// Refuses to write to standard output where that is one of the files that the disk is read from.
pub(crate) fn refuse_own_output(disk: &dyn Disk) -> Result<(), Failure> {
    let own = output_id();
    if own.is_none_or(|own| !disk.files().contains(&own)) {
        return Ok(());
    }
    let message = "standard output is the input itself, or one of its parents";
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

/// What an argument means.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) path: PathBuf,
    /// Whether that is the image named, not a layer below it.
    pub(crate) is_tip: bool,
}

/// The file that the argument means; `looking` says how layers are opened on the way.
///
/// Layers above the point in time are only looked at: neither a machine that writes to the tip nor a log
/// that is pending there keeps older points from being read.
pub(crate) fn resolve(
    argument: &OsStr,
    looking: &OpenOptions,
    console: &mut Console,
) -> Result<Resolved, Failure> {
    let Point { image, selector } = Point::parse(argument);
    let Some(selector) = selector else { return Ok(Resolved { path: image, is_tip: true }) };
    let argument = argument.to_string_lossy();
    let looking = looking.clone().lock(Lock::Try);
    let chain = looking.open(&image).map_err(|error| parents::failure(error, &image, &looking))?;
    let points = Points::of(&chain);
    let layer = points.resolve(&selector, &argument, console)?;
    let path = layer.path.clone().ok_or_else(|| {
        Failure::new(Exit::Refused, "point.no-path", format!("{argument}: a layer without a path"))
    })?;
    Ok(Resolved { path, is_tip: layer.id == points.layers()[0].id })
}

fn raw(path: &Path) -> Result<Input, Failure> {
    let name = path.display();
    let failed = |error| Failure::io("file.open", format!("{name}: cannot open the file"), &error);
    if LocalHost.stat(path).map_err(failed)?.kind == FileKind::Folder {
        let message = format!("{name}: a folder, not a disk");
        return Err(Failure::usage("file.folder", message));
    }
    let storage = LocalHost.open(path, Access::Read).map_err(failed)?;
    // A disk that cannot be locked where it lies is read all the same.
    if let Ok(LockOutcome::InUse(by)) = storage.try_lock(LockMode::Shared) {
        let message = format!("{name}: the file is in use elsewhere: {by}");
        let failure = Failure::new(Exit::InUse, "lock.in-use", message);
        return Err(match next::again("once nobody else has it open") {
            Some(again) => failure.then(again),
            None => failure,
        });
    }
    Ok(Input::Raw { disk: RawDisk::new(Arc::clone(&storage))?, path: path.to_path_buf() })
}
