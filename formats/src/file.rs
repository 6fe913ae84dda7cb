//! Files of images, and what is odd about them.

use std::path::Path;
use std::sync::Arc;

use avhdx::storage::{Access, FileKind, Host, LockMode, LockOutcome, Storage};
use avhdx::{Error, ErrorKind, Result};

/// What is odd about an image, though it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// A short, stable name of the exact finding, such as `vhd.parent-time`.
    pub code: &'static str,
    /// The file concerned.
    pub file: String,
    /// What is odd, without the file's name.
    pub message: String,
}

impl Warning {
    pub(crate) fn new(code: &'static str, file: &str, message: impl Into<String>) -> Self {
        Self { code, file: file.to_owned(), message: message.into() }
    }
}

/// Opens a regular file for reading.
pub(crate) fn open(host: &dyn Host, path: &Path) -> Result<Arc<dyn Storage>> {
    let named = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::ResourceBusy {
            return Error::from(error).in_file(path.display());
        }
        let message = format!("cannot open the file: {error}");
        Error::new(ErrorKind::Io, "file.open", message).in_file(path.display())
    };
    let kind = host.stat(path).map_err(named)?.kind;
    if kind != FileKind::File {
        let message = format!("this is {kind}, not an image");
        let error = Error::new(ErrorKind::Unsupported, "format.not-regular", message);
        return Err(error.in_file(path.display()));
    }
    host.open(path, Access::Read).map_err(named)
}

/// Locks a file against writers. One whose host has no locks is read all the same.
pub(crate) fn lock(storage: &dyn Storage) -> Result<()> {
    match storage.try_lock(LockMode::Shared) {
        Ok(LockOutcome::InUse(by)) => {
            let message = format!("the file is in use: {by}");
            Err(Error::new(ErrorKind::InUse, "lock.in-use", message).in_file(storage.name()))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}
