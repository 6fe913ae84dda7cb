//! Finds the path to a parent that a child can record.

use std::path::{Path, PathBuf};

use super::recorded::{from_folder, relative, unrecordable};
use super::unsafe_paths;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{FileId, Host};

/// Returns the path from a folder to a parent in the form in which it is recorded, after verifying that following it
/// leads back to the parent.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if there is no such path; [`ErrorKind::Unsupported`] if the recorded path would lead
/// elsewhere or nowhere; [`ErrorKind::Io`] if the host cannot resolve the paths.
pub(crate) fn recordable_path(
    host: &dyn Host,
    folder: &Path,
    parent: &Path,
    file: Option<FileId>,
) -> Result<String> {
    let (folder, target) = (canonical(host, folder)?, canonical(host, parent)?);
    let unrecordable = || unrecordable(&folder, &target);
    let Some(path) = relative(&folder, &target) else {
        return Err(unrecordable().map_or_else(
            || no_recordable_path(parent),
            |(place, why)| unrecordable_path(place, why),
        ));
    };
    let stat = host.stat(&target).map_err(|error| not_told(&target, error))?;
    if file.is_some() && stat.id.is_some() && file != stat.id {
        return Err(unrecordable_path(parent, "a name that another file has by now"));
    }
    let is_parent = |place: &PathBuf| match (host.stat(place), stat.id) {
        (Err(_), _) => false,
        (Ok(found), Some(id)) => found.id == Some(id),
        (Ok(_), None) => host.canonical(place).is_ok_and(|place| place == target),
    };
    // Readers do not follow unsafe paths, wherever they lead.
    if let Some(why) = unsafe_paths::in_relative(&path) {
        let found = format!("{path:?}, which {why}");
        return Err(unrecordable().map_or_else(
            || unrecordable_path(parent, found),
            |(place, why)| unrecordable_path(place, why),
        ));
    }
    // The first one that exists is the one that a reader tries first.
    let places = from_folder(&host, &folder, &path);
    let first = places.iter().find(|place| host.stat(place).is_ok()).or(places.first());
    if first.is_some_and(is_parent) {
        return Ok(path);
    }
    Err(match (unrecordable(), first) {
        (Some((place, why)), _) => unrecordable_path(place, why),
        (None, Some(first)) => {
            unrecordable_path(parent, format_args!("{path:?}, which leads to {}", first.display()))
        }
        (None, None) => unrecordable_path(parent, format_args!("{path:?}, which leads nowhere")),
    })
}

/// Code of the refusal if no path leads to the parent.
pub(crate) const NO_RECORDABLE_PATH: &str = "create.parent-path";

pub(crate) fn no_recordable_path(parent: &Path) -> Error {
    let message = "no path leads from the child to its parent";
    Error::new(ErrorKind::InvalidInput, NO_RECORDABLE_PATH, message)
        .with_section("2.6.2.6.3")
        .with_found(parent.display())
        .with_expected("a parent on the volume of the child")
}

fn unrecordable_path(place: &Path, found: impl std::fmt::Display) -> Error {
    let message = "no path that can be recorded leads to the parent";
    Error::new(ErrorKind::Unsupported, "parent.astray", message)
        .in_path(place)
        .with_section("2.6.2.6.3")
        .with_found(found)
        .with_expected("names that recorded paths can contain, on a path that is not too long")
}

pub(crate) fn canonical(host: &dyn Host, path: &Path) -> Result<PathBuf> {
    host.canonical(path).map_err(|error| not_told(path, error))
}

fn not_told(path: &Path, error: std::io::Error) -> Error {
    Error::io("link.path", "cannot resolve the path of the file", error).in_path(path)
}
