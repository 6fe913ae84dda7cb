//! What a folder of this machine holds.

use std::collections::BTreeMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub what: What,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
    pub mode: u32,
    pub inode: u64,
    pub links: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    File {
        size: u64,
        sha256: String,
    },
    Folder,
    Link(Vec<u8>),
    Special(&'static str),
    /// A file whose bytes are not read, by the code of the error.
    Refused(&'static str),
}

/// All below a folder, by its path.
pub type Facts = BTreeMap<Vec<u8>, Fact>;

pub fn walk(top: &Path) -> Facts {
    let mut facts = Facts::new();
    let mut folders = vec![top.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let what = match () {
                () if kind.is_dir() => What::Folder,
                () if kind.is_symlink() => {
                    What::Link(std::fs::read_link(&path).unwrap().into_os_string().into_vec())
                }
                () if kind.is_fifo() => What::Special("fifo"),
                () if kind.is_socket() => What::Special("socket"),
                () if kind.is_char_device() => What::Special("character device"),
                () if kind.is_block_device() => What::Special("block device"),
                () => What::File { size: meta.len(), sha256: hash(&path) },
            };
            let modified = (meta.mtime(), meta.mtime_nsec() as u32);
            let (mode, inode, links) = (meta.mode() & 0o7777, meta.ino(), meta.nlink());
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
            facts.insert(name, Fact { what, modified, mode, inode, links });
            if kind.is_dir() {
                folders.push(path);
            }
        }
    }
    facts
}

fn hash(path: &Path) -> String {
    hex(&Sha256::digest(std::fs::read(path).unwrap()))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time as JSON has it: the shortest with all its digits, in UTC.
pub fn written((seconds, nanoseconds): (i64, u32)) -> String {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let mut left = days;
    let mut year = 1970;
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let len = |year| if is_leap(year) { 366 } else { 365 };
    while left < 0 {
        year -= 1;
        left += len(year);
    }
    while left >= len(year) {
        left -= len(year);
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let fraction = match format!(".{nanoseconds:09}").trim_end_matches('0') {
        "." => String::new(),
        digits => digits.to_owned(),
    };
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z", left + 1)
}
