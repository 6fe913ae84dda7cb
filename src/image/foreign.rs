//! Files of other formats that are told by their names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Host, folder_of};

/// Images of a set that an error names.
const MOST_NAMED: usize = 4;

/// Refuses a VHD set, which no layer of a chain can be: it holds no disk, but names the images that do.
///
/// # Errors
/// [`ErrorKind::Unsupported`], with the images beside it that are called like it.
pub(crate) fn refuse_vhd_set(host: &dyn Host, path: &Path) -> Result<()> {
    if !has_extension(path, "vhds") || host.stat(path).is_err() {
        return Ok(());
    }
    let message = "a VHD set does not hold a disk: it lists the images and checkpoints of one that \
                   several machines share";
    Err(Error::new(ErrorKind::Unsupported, "file.vhd-set", message)
        .in_path(path)
        .with_found("a .vhds file")
        .with_expected(instead(&images_of(host, path))))
}

/// The images beside a set whose names start with its own, in the order of their names.
fn images_of(host: &dyn Host, set: &Path) -> Vec<PathBuf> {
    let stem = set.file_stem().map(OsStr::to_ascii_lowercase).unwrap_or_default();
    let is_of_set = |path: &PathBuf| {
        let name = path.file_name().map(OsStr::to_ascii_lowercase).unwrap_or_default();
        has_extension(path, "avhdx") && name.as_encoded_bytes().starts_with(stem.as_encoded_bytes())
    };
    // Without a look into the folder the error says less, and is the same error.
    let paths = host.list(folder_of(set)).unwrap_or_default();
    let mut images: Vec<PathBuf> = paths.into_iter().filter(is_of_set).collect();
    images.sort();
    images
}

fn instead(images: &[PathBuf]) -> String {
    if images.is_empty() {
        return "one of the .avhdx files that it lists, of which none lies beside it".into();
    }
    let names = images.iter().filter_map(|path| path.file_name());
    let names: Vec<_> = names.take(MOST_NAMED).map(OsStr::to_string_lossy).collect();
    let more = match images.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the image itself, such as those beside it: {}{more}", names.join(", "))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}
