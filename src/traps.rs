//! Recorded paths that lead where no image may send its reader: to another drive or machine, to a device, into a stream
//! beside a file. On some systems it takes no more than to look for such a name to hand out the user's credentials.

use std::io;

use crate::error::Error;

/// Whether a path says itself where it starts: on a drive (`D:`), on another machine (`\\server`), at a device.
pub(crate) fn is_absolute(path: &str) -> bool {
    path.starts_with(r"\\") || has_drive(path)
}

/// What is wrong with a path that is to lead on from a folder.
pub(crate) fn in_relative(path: &str) -> Option<&'static str> {
    if path.starts_with(r"\\") {
        return Some("names another machine or a device in the place of a path from a folder");
    }
    if has_drive(path) {
        return Some("names a drive in the place of a path from a folder");
    }
    in_names(path.split(['\\', '/']))
}

/// What is wrong with names that are to be looked up one in the other.
pub(crate) fn in_names<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let has_colon = names.any(|name| name.contains(':'));
    has_colon.then_some("has a : in a name, which is that of a drive or of a stream beside a file")
}

/// What is wrong with an absolute path on a Windows machine that no mapping leads elsewhere.
pub(crate) fn in_absolute(path: &str) -> Option<&'static str> {
    let path = match path.strip_prefix(r"\\?\") {
        Some(path) if has_drive(path) => path,
        Some(path) if path.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("volume{")) => {
            return in_names(path.split(['\\', '/']));
        }
        Some(_) => return Some("names another machine or a device"),
        None => path,
    };
    if path.starts_with(r"\\") || path.starts_with("//") {
        return Some("names another machine or a device");
    }
    in_names(path.get(2..).unwrap_or_default().split(['\\', '/']))
}

/// That a path is not followed.
#[derive(Debug, thiserror::Error)]
#[error("the path {0}, and is followed only where the caller maps it")]
struct Refused(&'static str);

pub(crate) fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, Refused(why))
}

/// That a file lies outside the folders that parents may come from.
#[derive(Debug, thiserror::Error)]
#[error("outside the folders that parents may come from")]
struct OutOfBounds;

pub(crate) fn out_of_bounds() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, OutOfBounds)
}

/// Why a path was not followed, where that is what the error is about.
pub(crate) fn why_refused(error: &Error) -> Option<&'static str> {
    let source = std::error::Error::source(error)?.downcast_ref::<io::Error>()?;
    Some(source.get_ref()?.downcast_ref::<Refused>()?.0)
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
