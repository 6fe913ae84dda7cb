//! The path from a child to its parent, as it is to be recorded.

use std::path::{Path, PathBuf};

use super::recorded::{from_folder, relative, unfit};
use super::traps;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{FileId, Host};

/// The path from a folder to a parent as it is recorded, once it is sure to lead there: whoever follows it later finds
/// the same file.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] where there is no such path; [`ErrorKind::Unsupported`] where there is one that
/// leads elsewhere or nowhere; [`ErrorKind::Io`] when the host cannot tell where the files lie.
pub(crate) fn way_to(
    host: &dyn Host,
    folder: &Path,
    parent: &Path,
    file: Option<FileId>,
) -> Result<String> {
    let (folder, target) = (canonical(host, folder)?, canonical(host, parent)?);
    let unfit = || unfit(&folder, &target);
    let Some(way) = relative(&folder, &target) else {
        return Err(unfit().map_or_else(|| no_way(parent), |(place, why)| astray(place, why)));
    };
    let stat = host.stat(&target).map_err(|error| not_told(&target, error))?;
    if file.is_some() && stat.id.is_some() && file != stat.id {
        return Err(astray(parent, "a name that another file has by now"));
    }
    let is_parent = |place: &PathBuf| match (host.stat(place), stat.id) {
        (Err(_), _) => false,
        (Ok(found), Some(id)) => found.id == Some(id),
        (Ok(_), None) => host.canonical(place).is_ok_and(|place| place == target),
    };
    // Whoever reads it does not follow it, wherever it leads.
    if let Some(why) = traps::in_relative(&way) {
        let found = format!("{way:?}, which {why}");
        return Err(
            unfit().map_or_else(|| astray(parent, found), |(place, why)| astray(place, why))
        );
    }
    // The first that is there is the one that is looked at first.
    let places = from_folder(&host, &folder, &way);
    let first = places.iter().find(|place| host.stat(place).is_ok()).or(places.first());
    if first.is_some_and(is_parent) {
        return Ok(way);
    }
    Err(match (unfit(), first) {
        (Some((place, why)), _) => astray(place, why),
        (None, Some(first)) => {
            astray(parent, format_args!("{way:?}, which leads to {}", first.display()))
        }
        (None, None) => astray(parent, format_args!("{way:?}, which leads nowhere")),
    })
}

pub(crate) const NO_WAY: &str = "create.parent-path";

pub(crate) fn no_way(parent: &Path) -> Error {
    let message = "no path leads from the child to its parent";
    Error::new(ErrorKind::InvalidInput, NO_WAY, message)
        .with_section("2.6.2.6.3")
        .with_found(parent.display())
        .with_expected("a parent on the volume of the child")
}

fn astray(place: &Path, found: impl std::fmt::Display) -> Error {
    let message = "no path to the parent that could be recorded would lead back to it";
    Error::new(ErrorKind::Unsupported, "parent.astray", message)
        .in_path(place)
        .with_section("2.6.2.6.3")
        .with_found(found)
        .with_expected("names that recorded paths can have, on a path that is not too long")
}

pub(crate) fn canonical(host: &dyn Host, path: &Path) -> Result<PathBuf> {
    host.canonical(path).map_err(|error| not_told(path, error))
}

fn not_told(path: &Path, error: std::io::Error) -> Error {
    Error::io("link.path", "cannot tell where the file lies", error).in_path(path)
}
