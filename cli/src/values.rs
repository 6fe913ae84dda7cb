//! Parsers for the values of flags.

use std::path::PathBuf;

use uuid::Uuid;

/// The smallest sector of a disk, in bytes.
const SECTOR: u64 = 512;

/// A number of bytes: `4096`, `0x1000`, `4K`, `4KiB`, `1.5G`. K, KB and KiB are 1024 bytes.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let invalid =
        || format!("{text:?} is not a byte count, such as 4096, 0x1000, 64M, 10GiB or 1.5T");
    let too_large = || format!("{text} is more than any disk can hold");
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let clean = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return u64::from_str_radix(digits, 16).ok().filter(|_| clean).ok_or_else(invalid);
    }
    if is_negative(text) {
        return Err("a number of bytes is not negative".into());
    }
    // The parser would also take blanks, exponents and underscores.
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let is_unit = match unit.to_ascii_uppercase().as_bytes() {
        [] | [b'B'] => true,
        [prefix, rest @ ..] => b"KMGTPE".contains(prefix) && matches!(rest, b"" | b"B" | b"IB"),
    };
    let has_digits = number.split('.').all(|digits| !digits.is_empty());
    if !is_unit || !has_digits || number.split('.').count() > 2 {
        return Err(invalid());
    }
    let config = parse_size::Config::new().with_binary();
    let bytes = config.parse_size(text).map_err(|error| match error {
        parse_size::Error::PosOverflow => too_large(),
        _ => invalid(),
    })?;
    // A fraction names a size, not a number of bytes.
    let below = bytes / SECTOR * SECTOR;
    if number.contains('.') && bytes != below {
        let above = below + SECTOR;
        return Err(format!("{text} is no whole number of sectors: {below} and {above} are"));
    }
    Ok(bytes)
}

/// The size of a disk: a number of bytes, at least one sector.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let like = "give a size such as 64M, 10G or 1.5T";
    if is_negative(text) {
        return Err(format!("a disk has no negative size: {like}"));
    }
    match bytes(text)? {
        0 => Err(format!("a disk has at least one sector, {SECTOR} bytes: {like}")),
        size => Ok(size),
    }
}

fn is_negative(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
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

/// As [`label`], or nothing.
pub(crate) fn any_label(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { label(text) }
}

/// A GUID, in braces or not.
pub(crate) fn guid(text: &str) -> Result<Uuid, String> {
    let parsed = Uuid::parse_str(text);
    parsed.map_err(|_| "not a GUID, such as 5ac1c0de-0000-4000-8000-000000000001".into())
}

/// A GUID, or a new one.
pub(crate) fn new_guid(text: &str) -> Result<Uuid, String> {
    if text == "new" { Ok(Uuid::new_v4()) } else { guid(text) }
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
    use super::{bytes, size, windows_folder};

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
        for tenth in ["10G", "10g", "10GB", "10gb", "10GiB", "10gib", "10240M", "10.0G"] {
            assert_eq!(bytes(tenth), Ok(10 << 30), "{tenth}");
        }
        assert_eq!(bytes("1.5G"), Ok(3 << 29));
        assert_eq!(bytes("0.5K"), Ok(512));
        assert_eq!(bytes("1TiB"), Ok(1 << 40));
        assert_eq!(bytes("512B"), Ok(512));
        for wrong in [
            "",
            "K",
            "-",
            "+1",
            "0x",
            "0x+1",
            " 4",
            "4 K",
            "4_096",
            "1e3",
            "1e3K",
            ".5G",
            "1.G",
            "1.2.3G",
            "4KK",
            "4iB",
            "4KiBi",
            "4X",
            "\u{664}K",
            "4\u{212a}",
            "18446744073709551616",
            "16777216T",
            "16E",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert!(bytes("-1").unwrap_err().contains("not negative"));
        assert!(size("-1").unwrap_err().contains("no negative size"));
        assert!(size("0").unwrap_err().contains("at least one sector"));
        assert_eq!(size("0.5K"), Ok(512));
        // 0.3 GiB is 322122547.2 bytes.
        let error = bytes("0.3G").unwrap_err();
        assert!(error.contains("322122240 and 322122752"), "{error}");
    }
}
