//! Temporary names for files that are incomplete or being removed: `.NAME.HEX.tmp`, with 32 random
//! hexadecimal digits, beside the file NAME. Files with such names are never treated as images of a
//! chain.

use std::path::{Path, PathBuf};

use uuid::Uuid;

/// How many bytes of a name go into a new name; with a GUID and an extension it stays below the common limit of 255.
const MOST_OF_NAME: usize = 200;

/// Cuts a name so that a GUID and an extension can be appended to it.
pub(crate) fn cut_name(name: &str) -> &str {
    let most = (0..=name.len().min(MOST_OF_NAME)).rfind(|at| name.is_char_boundary(*at));
    &name[..most.unwrap_or_default()]
}

/// Returns a name beside `path` that no other file has.
pub(crate) fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{}.{}.tmp", cut_name(&name), Uuid::new_v4().simple()))
}

/// Whether a file has a temporary name, left behind by a crash or not yet complete.
pub(crate) fn is_temporary_name(path: &Path) -> bool {
    digits_of(path).is_some()
}

/// Returns the creator of an incomplete image, for its file type identifier. It contains the digits of the file's
/// name, so that a copy under another name is not mistaken for a draft. `None` for other names.
pub(crate) fn draft_mark(path: &Path) -> Option<String> {
    Some(format!("avhdx draft {}", digits_of(path)?.to_ascii_lowercase()))
}

/// Returns the digits of a temporary name.
fn digits_of(path: &Path) -> Option<&str> {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let inner = name.strip_prefix(b".")?.strip_suffix(b".tmp")?;
    let digits = inner.rsplit(|byte| *byte == b'.').next()?;
    // At least a dot and one character of a name precede them.
    let is_one = inner.len() > digits.len() + 1
        && digits.len() == 32
        && digits.iter().all(u8::is_ascii_hexdigit);
    if is_one { str::from_utf8(digits).ok() } else { None }
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
        let long = format!("/vm/{}.vhdx", "ä".repeat(125));
        let temporary = temporary_name(Path::new(&long));
        assert!(is_temporary_name(&temporary));
        assert!(temporary.file_name().unwrap().len() <= 255, "{}", temporary.display());
        let hex = "0123456789abcdef0123456789ABCDEF";
        let mark = draft_mark(Path::new(&format!("/vm/.a.vhdx.{hex}.tmp"))).unwrap();
        assert_eq!(mark, "avhdx draft 0123456789abcdef0123456789abcdef");
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
