//! Quoting for a shell.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::text::printable;

/// A path as one argument of a command line.
pub(crate) fn argument(path: &Path) -> String {
    // A leading hyphen would start a flag.
    let path = match path.as_os_str().as_encoded_bytes().first() {
        Some(b'-') => Cow::Owned(Path::new(".").join(path)),
        _ => Cow::Borrowed(path),
    };
    word(path.as_os_str())
}

/// The same for another program, many of which take what is before a colon for a protocol or a machine.
pub(crate) fn foreign_argument(path: &Path) -> String {
    let bytes = path.as_os_str().as_encoded_bytes();
    let is_place = bytes.iter().find(|byte| matches!(byte, b':' | b'/')) == Some(&b':');
    // On Windows it is a drive.
    match is_place && !cfg!(windows) {
        true => argument(&Path::new(".").join(path)),
        false => argument(path),
    }
}

/// Words separated by spaces.
pub(crate) fn words(words: &[OsString]) -> String {
    words.iter().map(|text| word(text)).collect::<Vec<_>>().join(" ")
}

/// A word that a shell passes on unchanged.
pub(crate) fn word(word: &OsStr) -> String {
    let plain = word.to_str().filter(|text| printable(text) == *text);
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    match plain {
        Some(text) if cfg!(windows) => {
            let is_plain = |c: char| is_plain(c) || c == '\\';
            if text.chars().all(is_plain) { text.into() } else { format!("\"{text}\"") }
        }
        Some(text) if !text.is_empty() && text.chars().all(is_plain) => text.into(),
        Some(text) => format!("'{}'", text.replace('\'', r"'\''")),
        // Not Unicode, or with characters that a terminal must not get.
        None => {
            let mut quoted = String::from("$'");
            for byte in word.as_encoded_bytes() {
                match byte {
                    b'\'' | b'\\' => quoted.extend(['\\', char::from(*byte)]),
                    b' '..=b'~' => quoted.push(char::from(*byte)),
                    _ => quoted += &format!("\\x{byte:02x}"),
                }
            }
            quoted + "'"
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    #[test]
    fn arguments_are_quoted_for_a_shell() {
        use super::*;
        use std::os::unix::ffi::OsStrExt;
        let quoted = |bytes: &[u8]| argument(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(quoted(b"vm/l0.vhdx"), "vm/l0.vhdx");
        assert_eq!(quoted("wurzel ä.vhdx".as_bytes()), "'wurzel ä.vhdx'");
        assert_eq!(quoted(b"it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(b"-rf"), "./-rf");
        assert_eq!(quoted(b"a\xffb'\n"), r"$'a\xffb\'\x0a'");
        assert_eq!(foreign_argument(Path::new("nbd:x.qcow2")), "./nbd:x.qcow2");
        assert_eq!(foreign_argument(Path::new("json:{}")), "'./json:{}'");
        assert_eq!(foreign_argument(Path::new("-x.qcow2")), "./-x.qcow2");
        for path in ["vm/a:b.qcow2", "/a:b.qcow2", "x.qcow2"] {
            assert_eq!(foreign_argument(Path::new(path)), path);
        }
        assert_eq!(word(OsStr::new("--length")), "--length");
        assert_eq!(word(OsStr::new("")), "''");
    }
}
