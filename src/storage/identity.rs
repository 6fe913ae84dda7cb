//! Names and the files that are meant by them: what is removed or replaced is looked at first, where no name can be
//! swapped any more.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::{FileKind, Host, Storage, temporary_name};

/// What became of a name that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone, and with it the file, if that has no other names.
    Removed,
    /// It was gone already.
    Gone,
    /// It stands for another file, which keeps it.
    Kept,
    /// It stood for another file, which now lies here, for a third one has taken its name.
    LeftAt(PathBuf),
}

/// Whether `path` itself, no link, is a name of the file. Where a host has no identities its word is all there is.
///
/// # Errors
/// What the host says.
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

/// Removes the name `path` of a file that `is_ours` knows. The name may become another file's at any moment: it is
/// given up for a temporary one first, which is nobody else's, and what has that is looked at.
///
/// A crash in between leaves the file under the temporary name. Where there is no room for one the look before has to
/// do.
///
/// # Errors
/// What the host says. The file then has its name, or the error says where it is.
pub(crate) fn remove(
    host: &dyn Host,
    path: &Path,
    is_ours: &dyn Fn(&Path) -> io::Result<bool>,
) -> io::Result<Removal> {
    // What was swapped long ago need not be moved.
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
        // A full host may have no room for another name, and is not to stay full for that.
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
            _ => said_at(&error, &aside),
        }),
    }
}

/// Gives what lies `aside` its name again, unless a third file has that by now: it then stays where it is, which is
/// the answer.
pub(super) fn put_back(host: &dyn Host, aside: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    match host.rename(aside, path) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Some(aside.to_path_buf())),
        Err(error) => Err(said_at(&error, aside)),
    }
}

/// An error that says where the file is by now.
pub(super) fn said_at(error: &io::Error, place: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{error}; the file is now {}", place.display()))
}
