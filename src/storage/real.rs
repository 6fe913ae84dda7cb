//! From the name that was given to the place where the file really lies.

use std::path::{Path, PathBuf};

use super::{Host, folder_of};

/// Whether a part of the path is a symbolic link.
pub(super) fn has_links(host: &dyn Host, path: &Path) -> bool {
    let parts = path.ancestors().filter(|part| !part.as_os_str().is_empty());
    parts.into_iter().any(|part| host.is_link(part).unwrap_or(false))
}

/// The place without links that a name stands for: of the file that is there, else of the one that is going to
/// have the name.
pub(crate) fn real_place(host: &dyn Host, path: &Path) -> PathBuf {
    if !has_links(host, path) {
        return path.to_path_buf();
    }
    let in_folder = || {
        let name = path.file_name()?;
        // What a link has for its name is not free, wherever it leads.
        let is_free = !host.is_link(path).unwrap_or(false);
        is_free.then(|| host.canonical(folder_of(path)).ok()).flatten().map(|real| real.join(name))
    };
    host.canonical(path).ok().or_else(in_folder).unwrap_or_else(|| path.to_path_buf())
}
