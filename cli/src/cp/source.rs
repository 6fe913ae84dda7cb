//! What was named as SRC, and the names that copies get.

use std::ffi::OsString;

use avhdx_files::{Entry, Kind};

use crate::failure::Failure;
use crate::volume::{self, Tree};

/// What was named as SRC.
pub(super) struct Source {
    pub(super) entry: Entry,
    pub(super) stream: Option<Vec<u8>>,
    /// The last name as the volume has it; none for its top.
    pub(super) name: Vec<u8>,
}

impl Source {
    /// Finds what was typed. The last name is followed if it is a link and a `/` comes after it, or a stream is named.
    pub(super) fn find(tree: &Tree, typed: &[u8]) -> Result<Self, Failure> {
        let (path, stream) = volume::split(tree, typed);
        let failed = |error| tree.failure(error);
        let entry = tree.lookup(path).map_err(failed)?;
        let mut name = entry.name().to_vec();
        let has_backslash = !tree.kind().starts_with("ext");
        let is_followed =
            path.ends_with(b"/") || has_backslash && path.ends_with(b"\\") || path != typed;
        let is_link = entry.kind() == Some(Kind::Link);
        let entry =
            if is_link && is_followed { tree.resolve(path).map_err(failed)? } else { entry };
        if let Some(stream) = stream {
            name.extend([b":", stream].concat());
        }
        Ok(Self { entry, stream: stream.map(<[u8]>::to_vec), name })
    }

    pub(super) fn is_folder(&self) -> bool {
        self.entry.kind() == Some(Kind::Folder) && self.stream.is_none()
    }
}

/// Whether a name is no more than one name, whatever reads it by `/`.
pub(super) fn is_one(name: &[u8]) -> bool {
    !matches!(name, [] | [b'.'] | [b'.', b'.']) && !name.contains(&b'/') && !name.contains(&0)
}

/// The name as one of this machine, if it is no more than one name here.
pub(super) fn safe(name: &[u8]) -> Option<OsString> {
    if !is_one(name) {
        return None;
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        Some(OsString::from_vec(name.to_vec()))
    }
    #[cfg(not(unix))]
    {
        // Names that mean a device, a stream or another name to Windows.
        let name = std::str::from_utf8(name).ok()?;
        let base = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
        let is_port =
            |kind: &str| base.strip_prefix(kind).is_some_and(|rest| rest.chars().count() == 1);
        let is_device = matches!(&base[..], "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
            || is_port("COM")
            || is_port("LPT");
        let is_odd = name.contains(|c: char| c.is_control() || "\\:*?\"<>|".contains(c));
        (!is_device && !is_odd && !name.ends_with(['.', ' '])).then(|| name.into())
    }
}
