//! Parsers for the values of flags.

use std::path::PathBuf;

/// A number of bytes: `4096`, `0x1000`, `4K`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let invalid = || {
        format!(
            "{text:?} is not a byte count: use digits, 0x and hexadecimal digits, or digits and K, M, G or T"
        )
    };
    let too_large = || format!("{text} is more than any disk can hold");
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let clean = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return u64::from_str_radix(digits, 16).ok().filter(|_| clean).ok_or_else(invalid);
    }
    let shift = match text.bytes().last().map(|byte| byte.to_ascii_uppercase()) {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        Some(b'T') => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

/// A number of bytes per second, at least 1.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        0 => Err("a rate of 0 bytes per second never finishes".into()),
        rate => Ok(rate),
    }
}

/// The label of a point in time. Selectors such as `base` and `-1` are refused: they would be ambiguous.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let is_place = |text: &str| {
        let below = text.strip_prefix('-');
        text == "base" || below.is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match text {
        "" => Err("a label cannot be empty".into()),
        text if is_place(text) => Err(format!("@{text} already means a position in the chain")),
        text => Ok(text.into()),
    }
}

/// A mapping from a Windows folder: `FROM=TO`.
pub(crate) fn path_map(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.into(), to.into())),
        _ => Err(r"expected FROM=TO, such as D:\vm=/mnt/vm".into()),
    }
}

/// An absolute Windows path, with a drive or a share.
pub(crate) fn windows_path(text: &str) -> Result<String, String> {
    match windows_folder(text) {
        Some(_) => Ok(text.to_owned()),
        None => {
            Err(r"not an absolute path with a drive or a share, such as D:\vm\base.vhdx".into())
        }
    }
}

/// A Windows folder in the form that locators use: `D:/vm/` is `\\?\D:\vm`. `None` without a drive or a share.
pub(crate) fn windows_folder(path: &str) -> Option<String> {
    let path = path.replace('/', "\\");
    let path = path.trim_end_matches('\\');
    let has_drive = |path: &str| {
        matches!(path.as_bytes(), [drive, b':', rest @ ..]
            if drive.is_ascii_alphabetic() && matches!(rest, [] | [b'\\', ..]))
    };
    let has_share = |path: &str| path.split('\\').take_while(|name| !name.is_empty()).count() >= 2;
    if let Some(plain) = path.strip_prefix(r"\\?\") {
        let share = plain.strip_prefix(r"UNC\").is_some_and(has_share);
        return (has_drive(plain) || share).then(|| path.to_owned());
    }
    if has_drive(path) {
        return Some(format!(r"\\?\{path}"));
    }
    let share = path.strip_prefix(r"\\").filter(|share| has_share(share))?;
    Some(format!(r"\\?\UNC\{share}"))
}

#[cfg(test)]
mod tests {
    use super::{bytes, windows_folder};

    #[test]
    fn windows_folders() {
        let known = [
            (r"D:\vm", r"\\?\D:\vm"),
            ("d:/vm/", r"\\?\d:\vm"),
            (r"D:\", r"\\?\D:"),
            (r"\\?\D:\vm", r"\\?\D:\vm"),
            (r"\\server\share\vm", r"\\?\UNC\server\share\vm"),
            (r"\\?\UNC\server\share", r"\\?\UNC\server\share"),
        ];
        for (from, to) in known {
            assert_eq!(windows_folder(from).as_deref(), Some(to));
        }
        for other in
            ["", "/mnt/vm", "vm", r"\vm", r"\\server", r"D:vm", r"\\?\Volume{1}\vm", "€:/vm"]
        {
            assert_eq!(windows_folder(other), None, "{other}");
        }
    }

    #[test]
    fn byte_counts() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("0x1000"), Ok(4096));
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("3M"), Ok(3 << 20));
        assert_eq!(bytes("64T"), Ok(64 << 40));
        assert_eq!(bytes("18446744073709551615"), Ok(u64::MAX));
        for wrong in [
            "",
            "K",
            "-1",
            "+1",
            "1.5G",
            "0x",
            "0x+1",
            "4KB",
            " 4",
            "18446744073709551616",
            "16777216T",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
