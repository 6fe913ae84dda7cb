//! Removes and replaces files by name, after making sure that the name refers to the intended file and
//! cannot be given to another one meanwhile.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{FileKind, Host, Storage, temporary_name};

/// The outcome of removing a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// The name is removed, and with it the file if it has no other names.
    Removed,
    /// The name did not exist any more.
    Gone,
    /// The name belongs to another file, which keeps it.
    Kept,
    /// The name belonged to another file, which now has this path because a third file has taken its name.
    LeftAt(PathBuf),
}

/// Whether `path` itself, not a link, names the file. If the host cannot identify files, the result is a guess.
///
/// # Errors
/// Errors of the host.
pub(crate) fn is_file(host: &dyn Host, path: &Path, file: &dyn Storage) -> io::Result<bool> {
    let looked = host.is_link(path).and_then(|is_link| match is_link {
        true => Ok(None),
        false => host.stat(path).map(Some),
    });
    match looked {
        Ok(Some(stat)) => Ok(stat.kind == FileKind::File && stat.id == file.id()?),
        Ok(None) => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the name `path` of the file that `is_ours` identifies. Since the name could be given to another file at any
/// moment, it is first renamed to a temporary name, which no other program uses, and then identified again.
///
/// A crash in between leaves the file under the temporary name. If there is no space for another name, only the first
/// check protects the file.
///
/// # Errors
/// Errors of the host. The file then has its name, or the error says where it is.
pub(crate) fn remove(
    host: &dyn Host,
    path: &Path,
    is_ours: &dyn Fn(&Path) -> io::Result<bool>,
) -> io::Result<Removal> {
    // A name that was swapped before need not be moved.
    if !is_ours(path)? {
        let is_there = host.is_link(path);
        return match is_there {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Removal::Gone),
            _ => Ok(Removal::Kept),
        };
    }
    let aside = temporary_name(path);
    match host.rename(path, &aside) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Removal::Gone),
        // On a full file system there may be no space for another name, and removing files must still work.
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            return host.remove(path).map(|()| Removal::Removed);
        }
        moved => moved?,
    }
    match is_ours(&aside)
        .and_then(|is_ours| if is_ours { host.remove(&aside).map(|()| true) } else { Ok(false) })
    {
        Ok(true) => Ok(Removal::Removed),
        Ok(false) => Ok(match put_back(host, &aside, path)? {
            None => Removal::Kept,
            Some(left) => Removal::LeftAt(left),
        }),
        Err(error) => Err(match put_back(host, &aside, path) {
            Ok(None) => error,
            _ => with_place(&error, &aside),
        }),
    }
}

/// Tells whether a path names a certain file.
type IsFile<'a> = dyn Fn(&Path) -> io::Result<bool> + 'a;

/// Exchanges the names `one` and `other` of two files atomically, after making sure that they belong to the files that
/// the two functions identify. If one of the names is given to a third file meanwhile, nothing changes. `false` if the
/// host cannot exchange names.
///
/// # Errors
/// Errors of the host; [`ErrorKind::AlreadyExists`] if a name belongs to another file.
pub(crate) fn exchange(
    host: &dyn Host,
    (one, is_first): (&Path, &IsFile<'_>),
    (other, is_second): (&Path, &IsFile<'_>),
) -> io::Result<bool> {
    let swapped = |name: &Path| {
        let what = format!("{}: the name belongs to another file", name.display());
        io::Error::new(ErrorKind::AlreadyExists, what)
    };
    for (name, is_its) in [(one, is_first), (other, is_second)] {
        if !is_its(name)? {
            return Err(swapped(name));
        }
    }
    match host.exchange(one, other) {
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(false),
        exchanged => exchanged?,
    }
    for (name, is_its) in [(one, is_second), (other, is_first)] {
        if !matches!(is_its(name), Ok(true)) {
            host.exchange(one, other)?;
            return Err(swapped(name));
        }
    }
    Ok(true)
}

/// Gives the file at `aside` its name back. If a third file has taken that name, returns the path where the file
/// stays.
pub(super) fn put_back(host: &dyn Host, aside: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    match host.rename(aside, path) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Some(aside.to_path_buf())),
        Err(error) => Err(with_place(&error, aside)),
    }
}

/// Adds the present path of the file to an error.
pub(super) fn with_place(error: &io::Error, place: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{error}; the file is now {}", place.display()))
}
