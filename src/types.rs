//! Types for offsets and indexes, so that file and disk offsets cannot be confused.

use std::fmt;
use std::ops::{Add, Range};
#[cfg(feature = "serde")]
use std::path::{Path, PathBuf};
#[cfg(feature = "serde")]
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(feature = "serde")]
use serde::Serializer;

/// Bytes in a kibibyte.
pub(crate) const KIB: u64 = 1 << 10;
/// Bytes in a mebibyte, the alignment of every object in a VHDX file.
pub(crate) const MIB: u64 = 1 << 20;

/// The length of a range.
pub(crate) fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// A number of things, in words.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Serializes a path as it is displayed, since a path need not be text.
#[cfg(feature = "serde")]
pub(crate) fn shown<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// As [`shown`], or null.
#[cfg(feature = "serde")]
pub(crate) fn shown_path<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => to.collect_str(&path.display()),
        None => to.serialize_none(),
    }
}

/// Serializes a time in whole seconds since 1970-01-01 UTC, rounded down.
#[cfg(feature = "serde")]
pub(crate) fn seconds<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs().cast_signed(),
        Err(before) => {
            let before = before.duration();
            -(before.as_secs() + u64::from(before.subsec_nanos() > 0)).cast_signed()
        }
    };
    to.serialize_i64(seconds)
}

/// As [`seconds`], or null.
#[cfg(feature = "serde")]
pub(crate) fn seconds_if_any<S: Serializer>(
    time: &Option<SystemTime>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => seconds(time, to),
        None => to.serialize_none(),
    }
}

/// An offset in a file on the host, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FileOffset(u64);

impl FileOffset {
    /// The offset `bytes` from the start of the file.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The offset in bytes from the start of the file.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<FileOffset> for u64 {
    fn from(offset: FileOffset) -> Self {
        offset.0
    }
}

impl Add<u64> for FileOffset {
    type Output = Self;

    /// Saturates: an invalid offset is refused where it is used.
    fn add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// An offset on a virtual disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DiskOffset(pub(crate) u64);

impl Add<u64> for DiskOffset {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// The index of a payload block on the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockIndex(pub(crate) u64);

/// The index of a chunk: the payload blocks that share a sector bitmap block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChunkIndex(pub(crate) u64);

/// The index of an entry in the block allocation table, counting payload and bitmap entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatIndex(pub(crate) u64);

#[cfg(all(test, feature = "serde", not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_whole_seconds_rounded_down() {
        let json = |time| seconds(&time, serde_json::value::Serializer).unwrap();
        assert_eq!(json(UNIX_EPOCH + Duration::from_millis(1999)), 1);
        assert_eq!(json(UNIX_EPOCH), 0);
        assert_eq!(json(UNIX_EPOCH - Duration::from_millis(1)), -1);
        assert_eq!(json(UNIX_EPOCH - Duration::from_secs(2)), -2);
    }
}
