//! What files are called: to people, and to a shell.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use avhdx::ops::forest::{Forest, NodeId};

/// A forest, and the places it was found in.
pub(super) struct Names<'a> {
    pub(super) forest: &'a Forest,
    pub(super) places: &'a [PathBuf],
}

impl<'a> Names<'a> {
    pub(super) fn new(forest: &'a Forest, places: &'a [PathBuf]) -> Self {
        Self { forest, places }
    }

    /// A node's name, below the place where there is but one.
    pub(super) fn of(&self, id: NodeId) -> String {
        self.path(&self.forest.node(id).path)
    }

    pub(super) fn path(&self, path: &Path) -> String {
        match self.places {
            [place] => match path.strip_prefix(place) {
                Ok(below) if !below.as_os_str().is_empty() => shown(&below.to_string_lossy()),
                _ => shown(&path.to_string_lossy()),
            },
            _ => shown(&path.to_string_lossy()),
        }
    }

    /// A node's name under its parent: the file name alone where both lie in one folder.
    pub(super) fn below(&self, id: NodeId, parent: NodeId) -> String {
        let (path, above) = (&self.forest.node(id).path, &self.forest.node(parent).path);
        match path.file_name() {
            Some(name) if path.parent() == above.parent() => shown(&name.to_string_lossy()),
            _ => self.of(id),
        }
    }

    /// A node's path as an argument.
    pub(super) fn argument(&self, id: NodeId) -> String {
        argument(&self.forest.node(id).path)
    }

    /// The places as arguments.
    pub(super) fn place_arguments(&self) -> String {
        let places: Vec<String> = self.places.iter().map(|place| argument(place)).collect();
        places.join(" ")
    }
}

/// Text from a file or a file's name, with nothing in it that a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match is_unsafe(c) {
            true => safe.extend(c.escape_unicode()),
            false => safe.push(c),
        }
    }
    safe
}

/// A path as it is typed into a shell.
pub(super) fn argument(path: &Path) -> String {
    // What starts with a hyphen would be taken for a flag.
    let path = match path.as_os_str().as_encoded_bytes().first() {
        Some(b'-') => Cow::Owned(Path::new(".").join(path)),
        _ => Cow::Borrowed(path),
    };
    let plain = path.to_str().filter(|text| shown(text) == *text);
    let is_word = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    match plain {
        Some(text) if cfg!(windows) => {
            let is_word = |c: char| is_word(c) || c == '\\';
            if text.chars().all(is_word) { text.into() } else { format!("\"{text}\"") }
        }
        Some(text) if !text.is_empty() && text.chars().all(is_word) => text.into(),
        Some(text) => format!("'{}'", text.replace('\'', r"'\''")),
        // Bytes that are no text, or better not shown as they are.
        None => {
            let mut quoted = String::from("$'");
            for byte in path.as_os_str().as_encoded_bytes() {
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
    use super::*;

    #[test]
    fn nothing_shown_drives_a_terminal() {
        assert_eq!(shown("wurzel ä.vhdx"), "wurzel ä.vhdx");
        assert_eq!(shown("a\x1b[2Jb\nc"), r"a\u{1b}[2Jb\u{a}c");
        assert_eq!(shown("\u{202e}xdhv"), r"\u{202e}xdhv");
    }

    #[cfg(unix)]
    #[test]
    fn arguments_are_quoted_for_a_shell() {
        use std::os::unix::ffi::OsStrExt;
        let quoted = |bytes: &[u8]| argument(Path::new(std::ffi::OsStr::from_bytes(bytes)));
        assert_eq!(quoted(b"vm/l0.vhdx"), "vm/l0.vhdx");
        assert_eq!(quoted("wurzel ä.vhdx".as_bytes()), "'wurzel ä.vhdx'");
        assert_eq!(quoted(b"it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(b"-rf"), "./-rf");
        assert_eq!(quoted(b"a\xffb'\n"), r"$'a\xffb\'\x0a'");
    }
}
