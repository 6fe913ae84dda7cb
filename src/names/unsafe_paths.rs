//! Detects recorded paths that must not be followed: to another drive or machine, to a device, or into a stream
//! of a file. On some systems, merely looking up such a name can reveal the user's credentials.

use std::io;

use crate::error::Error;

/// Whether a path states its own root: a drive (`D:`), another machine (`\\server`) or a device.
pub(crate) fn is_absolute(path: &str) -> bool {
    names_machine(path) || has_drive(path)
}

/// Returns why a path relative to a folder must not be followed.
pub(crate) fn in_relative(path: &str) -> Option<&'static str> {
    if names_machine(path) {
        return Some("names another machine or a device instead of a path from a folder");
    }
    if has_drive(path) {
        return Some("names a drive instead of a path from a folder");
    }
    in_names(path.split(['\\', '/']))
}

/// Returns why path components must not be followed.
pub(crate) fn in_names<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let has_colon = names.any(|name| name.contains(':'));
    has_colon.then_some("has a : in a name, which denotes a drive or a stream of a file")
}

/// Returns why an absolute Windows path without a mapping must not be followed.
pub(crate) fn in_absolute(path: &str) -> Option<&'static str> {
    let path = match path.strip_prefix(r"\\?\") {
        Some(path) if has_drive(path) => path,
        Some(path) if path.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("volume{")) => {
            return in_names(path.split(['\\', '/']));
        }
        Some(_) => return Some("names another machine or a device"),
        None => path,
    };
    if names_machine(path) {
        return Some("names another machine or a device");
    }
    in_names(path.get(2..).unwrap_or_default().split(['\\', '/']))
}

/// A path that is not followed, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("the path {0}, and is followed only where the caller maps it")]
struct Refused(&'static str);

pub(crate) fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, Refused(why))
}

/// A file outside the folders that parents may come from.
#[derive(Debug, thiserror::Error)]
#[error("outside the folders that parents may come from")]
struct OutOfBounds;

pub(crate) fn out_of_bounds() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, OutOfBounds)
}

/// Returns why a path was not followed, if that caused the error.
pub(crate) fn why_refused(error: &Error) -> Option<&'static str> {
    let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
    Some(source.get_ref()?.downcast_ref::<Refused>()?.0)
}

/// Whether a path begins with two separators, of either kind.
fn names_machine(path: &str) -> bool {
    path.chars().take(2).filter(|c| matches!(c, '\\' | '/')).count() == 2
}

fn has_drive(path: &str) -> bool {
    let path = path.as_bytes();
    path.len() >= 2 && path[0].is_ascii_alphabetic() && path[1] == b':'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_away_from_their_folder_are_known() {
        for fair in [r".\a.vhdx", r"..\vm\a b.vhdx", "sub/a.vhdx", r"\vm\a.vhdx", "ä.vhdx", ""] {
            assert_eq!(in_relative(fair), None, "{fair}");
        }
        for foul in [
            r"D:\vm\a.vhdx",
            "d:a.vhdx",
            r"\\server\share\a.vhdx",
            r"\\?\D:\a.vhdx",
            r"\\.\pipe\a",
            r".\a.vhdx:stream",
            r".\D:\a.vhdx",
            "sub/a:b/c.vhdx",
        ] {
            assert!(in_relative(foul).is_some(), "{foul}");
        }
    }

    #[test]
    fn absolute_paths_that_lead_off_the_machine_are_known() {
        let volume = r"\\?\Volume{01234567-89ab-cdef-0123-456789abcdef}\vm\a.vhdx";
        for fair in [r"D:\vm\a.vhdx", r"\\?\D:\vm\a.vhdx", volume, "d:/vm/a.vhdx"] {
            assert_eq!(in_absolute(fair), None, "{fair}");
        }
        for foul in [
            r"\\server\share\a.vhdx",
            "//server/share/a.vhdx",
            r"\\?\UNC\server\share\a.vhdx",
            r"\\?\GLOBALROOT\Device\Harddisk0",
            r"\\.\PhysicalDrive0",
            r"D:\vm\a.vhdx:stream",
            r"D:\E:\a.vhdx",
        ] {
            assert!(in_absolute(foul).is_some(), "{foul}");
        }
    }
}
