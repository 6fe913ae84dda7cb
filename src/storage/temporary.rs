//! Names of files that are not complete yet.

use std::path::{Path, PathBuf};

use uuid::Uuid;

/// A name beside `path` for a file that will take its place once it is complete.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", Uuid::new_v4().simple()))
}

/// Whether a file that was met in a folder bears such a name: it is what a crash left behind, or becomes
/// an image only later.
pub(crate) fn is_temporary_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let inner = name.strip_prefix(b".").and_then(|rest| rest.strip_suffix(b".tmp"));
    inner.is_some_and(|inner| {
        let hex = inner.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
        // A dot and a name come before it.
        inner.len() > hex.len() + 1 && hex.len() == 32 && hex.iter().all(u8::is_ascii_hexdigit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_are_known_again() {
        for path in ["a.vhdx", "/vm/wurzel ä.avhdx", "x", ".hidden.vhdx"] {
            let temporary = temporary_name(Path::new(path));
            assert!(is_temporary_name(&temporary), "{}", temporary.display());
            assert_eq!(temporary.parent(), Path::new(path).parent());
        }
        let hex = "0123456789abcdef0123456789ABCDEF";
        assert!(is_temporary_name(Path::new(&format!("/vm/.a.vhdx.{hex}.tmp"))));
        for name in [
            format!("a.vhdx.{hex}.tmp"),
            format!(".a.vhdx.{hex}"),
            format!(".a.vhdx.{}.tmp", &hex[1..]),
            format!(".a.vhdx.0{hex}.tmp"),
            format!(".a.vhdx.g{}.tmp", &hex[1..]),
            format!(".{hex}.tmp"),
            ".tmp".to_owned(),
            "web.avhdx".to_owned(),
        ] {
            assert!(!is_temporary_name(Path::new(&name)), "{name}");
        }
    }
}
