//! What file systems say of their files, in the same words for all of them.

use std::any::Any;
use std::fmt;
use std::ops::Range;

use crate::changed::Changed;
use crate::error::{Error, ErrorKind, Result};

/// A folder with more names is not listed: they are all in memory at once.
const MOST_NAMES: usize = 1 << 20;

/// A file system, as its readers implement it. Paths and limits of walks are the caller's.
pub(crate) trait System: Any {
    fn about(&self) -> &About;
    fn root(&self) -> Result<Item>;
    /// What a folder holds, in any order, without `.` and `..`.
    fn list(&self, folder: &Item) -> Result<Vec<Item>>;
    /// What a folder has under this name, by the file system's own rule of equal names.
    fn child(&self, folder: &Item, name: &[u8]) -> Result<Option<Item>>;
    /// The streams of a file besides its contents.
    fn streams(&self, _: &Item) -> Result<Vec<StreamInfo>> {
        Ok(Vec::new())
    }
    /// The bytes of a file, or of one of its streams.
    fn open(&self, file: &Item, stream: Option<&[u8]>) -> Result<Box<dyn Stream>>;
    /// Where a link leads.
    fn target(&self, link: &Item) -> Result<Vec<u8>>;
    /// The bytes of a file, or of one of its streams, to tell where they are stored, however that is; `None` if it has none.
    fn stored(&self, file: &Item, stream: Option<&[u8]>) -> Result<Option<Box<dyn Stream>>>;
    /// What else makes the file what it is, such as where a link leads, in bytes of the file system's own.
    fn nature(&self, _: &Item) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// What of the volume counts as changed besides what did, since another state of the file system understands it in
    /// another way; `None` if that is all of it.
    fn reframed(&self, other: &dyn System, changed: &Changed) -> Result<Option<Vec<Range<u64>>>>;
    /// How many bytes of the volume the file system gives out.
    fn capacity(&self) -> u64;
    /// The ranges of the volume, in bytes, of what it gives out that nothing uses, in order.
    fn free(&self, each: &mut dyn FnMut(Range<u64>)) -> Result<()>;
    /// Refuses a file system that was not closed cleanly, or in which something holds on to space that is called free.
    fn check_clean(&self) -> Result<()>;
    /// Refuses a file system of which a file, or what it keeps itself, lies in space that is called free. Reads where all
    /// files lie, and none of their bytes.
    fn check_free(&self) -> Result<()>;
}

/// The bytes of a file.
pub(crate) trait Stream {
    fn len(&self) -> u64;
    /// Fills `buf` with the bytes at `offset`; the range lies within the stream.
    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// The end of the hole at `offset`; `offset` itself if bytes are stored there, or if this is unknown.
    fn hole_end(&self, offset: u64) -> u64 {
        offset
    }
    /// How the bytes from `offset` on are stored, up to where others are stored in another way or place.
    fn piece(&mut self, offset: u64) -> Result<Piece>;
}

/// Bytes of a file that are stored in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// At least 1.
    pub(crate) len: u64,
    pub(crate) place: Place,
}

/// What decides bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// They are zeros.
    Zeros,
    /// As they are, from this byte of the volume on.
    At(u64),
    /// These bytes of the volume together, in units of so many bytes.
    Packed(Vec<Range<u64>>, u64),
    /// They lie within what describes the file.
    Inside,
}

/// What a file system says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    /// Its kind, such as `NTFS` or `FAT32`.
    pub(crate) kind: &'static str,
    pub(crate) label: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) warnings: Vec<String>,
    /// Whether a backslash separates names too.
    pub(crate) has_backslash: bool,
    /// Whether the file system has more bytes than its volume.
    pub(crate) is_cut: bool,
}

impl About {
    /// Refuses a file system whose end is not there.
    pub(crate) fn check_whole(&self) -> Result<()> {
        match self.is_cut {
            true => {
                let message = "the file system has more bytes than its volume";
                Err(Error::unclean("unclean.cut", message))
            }
            false => Ok(()),
        }
    }
}

/// What a folder holds under a name.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) name: Vec<u8>,
    pub(crate) node: Node,
    pub(crate) facts: Result<Facts>,
}

/// How a file system finds a file again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// A file record of NTFS.
    Record { number: u64, sequence: u16 },
    /// A first cluster of FAT; 0 is an empty file or the root folder in its fixed place.
    Cluster { first: u32, size: u32, is_root: bool },
    /// An inode of ext.
    Inode(u32),
}

/// What is known of a file.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    pub(crate) times: Times,
    pub(crate) id: Option<u64>,
    pub(crate) links: Option<u32>,
    pub(crate) mode: Option<u16>,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) attributes: Option<u32>,
    /// What tells apart the files that had the same number one after the other.
    pub(crate) generation: Option<u32>,
    /// Why its contents are not read.
    pub(crate) refusal: Option<(&'static str, String)>,
}

impl Facts {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            size: 0,
            times: Times::default(),
            id: None,
            links: None,
            mode: None,
            owner: None,
            device: None,
            attributes: None,
            generation: None,
            refusal: None,
        }
    }

    /// Whether both say the same, but for the last access.
    pub(crate) fn says(&self, other: &Self) -> bool {
        let of = |facts: &Self| {
            let Times { created, modified, changed, accessed: _ } = facts.times;
            let of_unix = (facts.links, facts.mode, facts.owner);
            (facts.kind, facts.size, created, modified, changed, of_unix, facts.attributes)
        };
        of(self) == of(other)
    }

    /// Refuses what cannot be read as a file.
    pub(crate) fn check_readable(&self) -> Result<()> {
        match &self.refusal {
            Some((code, message)) => Err(Error::unsupported(code, message.clone())),
            None => Ok(()),
        }
    }
}

impl Item {
    /// The same once more.
    pub(crate) fn again(&self) -> Self {
        let (name, node) = (self.name.clone(), self.node.clone());
        Self { name, node, facts: self.facts().cloned() }
    }

    /// The facts, or again the error instead of them.
    pub(crate) fn facts(&self) -> Result<&Facts> {
        self.facts.as_ref().map_err(|error| Error::new(error.kind(), error.code(), error.message()))
    }
}

/// Refuses folders that hold more than is listed.
pub(crate) fn check_count(names: usize) -> Result<()> {
    if names <= MOST_NAMES {
        return Ok(());
    }
    let message = format!("the folder holds more than {MOST_NAMES} names");
    Err(Error::new(ErrorKind::Limit, "files.walk", message))
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A file with bytes.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, or a junction of NTFS.
    Link,
    /// Something without bytes, such as a device, by its name.
    Other(&'static str),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Link => "link",
            Self::Other(name) => name,
        })
    }
}

/// The times of a file, as far as the file system keeps them. Those of FAT are in the time zone of whoever wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Times {
    /// When the file was made.
    pub created: Option<Time>,
    /// When its bytes changed last.
    pub modified: Option<Time>,
    /// When anything of it changed last, such as its name or its rights.
    pub changed: Option<Time>,
    /// When it was read last.
    pub accessed: Option<Time>,
}

/// A moment, in seconds since 1970 in UTC and nanoseconds after that. NTFS counts in units of 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970; negative before.
    pub seconds: i64,
    /// Nanoseconds after that second.
    pub nanoseconds: u32,
}

/// A stream of a file besides its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// Its name, as it follows a colon.
    pub name: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
}

/// The text of UTF-16 as bytes: UTF-8, in which half pairs keep their number.
pub(crate) fn bytes_of_utf16(units: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(units.len());
    for decoded in char::decode_utf16(units.iter().copied()) {
        match decoded {
            Ok(char) => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(half) => {
                let unit = half.unpaired_surrogate();
                let [high, mid, low] = [unit >> 12, unit >> 6 & 0x3F, unit & 0x3F];
                bytes.extend([0xE0 | high as u8, 0x80 | mid as u8, 0x80 | low as u8]);
            }
        }
    }
    bytes
}

/// The reverse of [`bytes_of_utf16`]; `None` if the bytes are none of its results.
pub(crate) fn utf16_of_bytes(bytes: &[u8]) -> Option<Vec<u16>> {
    let mut units = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).ok()?,
        };
        units.extend(valid.encode_utf16());
        rest = &rest[valid.len()..];
        match rest {
            [] => {}
            [0xED, mid @ 0xA0..=0xBF, low @ 0x80..=0xBF, ..] => {
                units.push(0xD000 | u16::from(mid & 0x3F) << 6 | u16::from(low & 0x3F));
                rest = &rest[3..];
            }
            _ => return None,
        }
    }
    Some(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_utf16_name_has_bytes_of_its_own() {
        for units in [
            &[0x61, 0xE4, 0x20AC, 0xD83D, 0xDE00][..],
            &[0xD800],
            &[0xDFFF, 0x41],
            &[0x41, 0xDC00, 0xD800],
        ] {
            assert_eq!(utf16_of_bytes(&bytes_of_utf16(units)).as_deref(), Some(units));
        }
        assert_eq!(bytes_of_utf16(&[0x61, 0x20AC]), "a€".as_bytes());
        assert_eq!(utf16_of_bytes(b"\xFF"), None);
    }
}
