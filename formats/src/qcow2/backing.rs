//! Where backing files come from.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Access, Host, Storage};
use avhdx::{Error, ErrorKind, ParentLink, ParentSource, PathSource, Result};

/// Where backing files may come from; by default from nowhere. qcow2 records the name of a backing file and no identity, so
/// names alone tell which file is meant, and they are taken as QEMU takes them: from the folder of the name by which the
/// image was opened, without changing a letter.
///
/// ```
/// use avhdx_formats::qcow2::BackingFiles;
///
/// // What is recorded may lie in /mnt/vm or below; a file of the recorded name may lie in /backup.
/// let files = BackingFiles::new().confined_to("/mnt/vm").confined_to("/backup").folder("/backup");
/// # let _ = files;
/// ```
#[derive(Clone, Debug, Default)]
pub struct BackingFiles {
    confines: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
    opened: Vec<(String, Arc<dyn Storage>)>,
}

impl BackingFiles {
    /// No backing files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the recorded file if it lies in this folder or below, after following links. Each call adds a folder; nothing
    /// outside of all of them is opened then.
    #[must_use]
    pub fn confined_to(mut self, folder: impl Into<PathBuf>) -> Self {
        self.confines.push(folder.into());
        self
    }

    /// Opens a file of the recorded name, without its folders, in this folder, if the recorded one is not opened.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Opens this file in place of a recorded one of the same name, whatever its folder.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Takes this open file for a recorded one of exactly this name, as for images that have no names yet.
    #[must_use]
    pub fn opened(mut self, recorded: impl Into<String>, storage: Arc<dyn Storage>) -> Self {
        self.opened.push((recorded.into(), storage));
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        let Self { confines, folders, files, opened } = self;
        confines.is_empty() && folders.is_empty() && files.is_empty() && opened.is_empty()
    }

    /// Opens the file that `child` records by this name; `None` if it is nowhere.
    pub(super) fn open(
        &self,
        host: &Arc<dyn Host>,
        child: &dyn Storage,
        recorded: &str,
    ) -> Result<Option<Arc<dyn Storage>>> {
        if let Some((_, storage)) = self.opened.iter().find(|(name, _)| name == recorded) {
            return Ok(Some(Arc::clone(storage)));
        }
        let recorded = Path::new(recorded);
        let name = recorded.file_name();
        let given = self.files.iter().filter(|file| name.is_some() && file.file_name() == name);
        for file in given {
            if let Some(found) = self.at(host, file.clone(), None)? {
                return Ok(Some(found));
            }
        }
        let opened_by = child.via().or(child.path());
        let folder = opened_by.and_then(Path::parent);
        if let Some(folder) = folder.filter(|_| !self.confines.is_empty())
            && let Some(found) = self.at(host, folder.join(recorded), None)?
        {
            return Ok(Some(found));
        }
        for folder in &self.folders {
            let Some(name) = name else { continue };
            if let Some(found) = self.at(host, folder.join(name), Some(folder))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Opens the file at a path, if it is within bounds.
    fn at(
        &self,
        host: &Arc<dyn Host>,
        path: PathBuf,
        folder: Option<&PathBuf>,
    ) -> Result<Option<Arc<dyn Storage>>> {
        let mut source = PathSource::new().host(Arc::clone(host)).file(&path);
        // No link leads out of a folder that was named.
        let bounds = if self.confines.is_empty() { folder.into_iter() } else { None.into_iter() };
        for bound in self.confines.iter().chain(bounds) {
            source = source.confined_to(bound);
        }
        let link = ParentLink::new("", uuid::Uuid::nil());
        let Some(candidate) = source.candidates(&link, Access::Read).next() else {
            return Ok(None);
        };
        match candidate.opened {
            Ok(storage) => Ok(Some(storage)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Out of bounds: not even whether there is a file is told.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && error.raw_os_error().is_none() =>
            {
                Ok(None)
            }
            Err(error) => {
                let message = format!("the backing file cannot be opened: {error}");
                Err(Error::new(ErrorKind::Io, "qcow2.parent-open", message).in_file(candidate.name))
            }
        }
    }
}
