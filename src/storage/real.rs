//! Resolves paths to the real places of files.

use std::path::{Path, PathBuf};

use super::{Host, folder_of};

/// Whether a part of the path is a symbolic link.
pub(super) fn has_links(host: &dyn Host, path: &Path) -> bool {
    let parts = path.ancestors().filter(|part| !part.as_os_str().is_empty());
    parts.into_iter().any(|part| host.is_link(part).unwrap_or(false))
}

/// Returns the place that a path leads to, without symbolic links: that of the existing file, or of the file that will
/// be created there.
pub(crate) fn real_place(host: &dyn Host, path: &Path) -> PathBuf {
    if !has_links(host, path) {
        return path.to_path_buf();
    }
    let in_folder = || {
        let name = path.file_name()?;
        // The name of a link is not free, wherever the link leads.
        let is_free = !host.is_link(path).unwrap_or(false);
        is_free.then(|| host.canonical(folder_of(path)).ok()).flatten().map(|real| real.join(name))
    };
    host.canonical(path).ok().or_else(in_folder).unwrap_or_else(|| path.to_path_buf())
}
