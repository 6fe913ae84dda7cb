//! Reparse points: links, and files whose bytes are elsewhere or stored by a driver of their own.

use crate::boundary::{u16_at, u32_at};
use crate::item::{Kind, bytes_of_utf16};

const MOUNT_POINT: u32 = 0xA000_0003;
const SYMLINK: u32 = 0xA000_000C;
const LX_SYMLINK: u32 = 0xA000_001D;
/// The bits that differ between the tags of files in a cloud.
const CLOUD_VARIANTS: u32 = 0x0000_F000;
const CLOUD: u32 = 0x9000_001A;

/// What a reparse point makes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reparse {
    Link(Vec<u8>),
    Special(&'static str),
    /// The bytes of the file are not those that it shows.
    Refused(&'static str, String),
    /// A folder whose entries are its own all the same.
    Cloud,
}

pub(super) fn parse(value: &[u8]) -> Reparse {
    let tag = u32_at(value, 0);
    let data = value.get(8..).unwrap_or(&[]);
    let refused = |code, what: &str| Reparse::Refused(code, what.to_owned());
    match tag {
        MOUNT_POINT => link(data, 8),
        SYMLINK => link(data, 12),
        LX_SYMLINK => Reparse::Link(data.get(4..).unwrap_or(&[]).to_vec()),
        0x8000_0023 => Reparse::Special("socket"),
        0x8000_0024 => Reparse::Special("fifo"),
        0x8000_0025 => Reparse::Special("character device"),
        0x8000_0026 => Reparse::Special("block device"),
        0x8000_001B => Reparse::Special("app execution link"),
        0x8000_0017 => {
            refused("files.wof", "the file is compressed by CompactOS (WOF), which is not read")
        }
        0x8000_0013 => refused(
            "files.dedup",
            "the file is deduplicated: its bytes are in the chunk store of the volume",
        ),
        0xC000_0004 | 0x8000_0006 => refused(
            "files.offline",
            "the file was moved to other storage (HSM): its bytes are not here",
        ),
        _ if tag & !CLOUD_VARIANTS == CLOUD || tag == 0x8000_0021 => Reparse::Cloud,
        _ => Reparse::Refused(
            "files.reparse",
            format!("the file is a reparse point of the unknown kind {tag:#010x}"),
        ),
    }
}

/// The target of a link whose names begin at `names`. The name to print says the same as the other one without prefixes
/// of the kernel; it may be missing.
fn link(data: &[u8], names: usize) -> Reparse {
    let name = |at: usize| {
        let (start, len) = (usize::from(u16_at(data, at)), usize::from(u16_at(data, at + 2)));
        let units = data.get(names + start..)?.get(..len)?.chunks_exact(2);
        Some(units.map(|unit| u16_at(unit, 0)).collect::<Vec<_>>()).filter(|name| !name.is_empty())
    };
    match name(4).or_else(|| name(0)) {
        Some(target) => Reparse::Link(bytes_of_utf16(&target)),
        None => Reparse::Refused("files.reparse", "the link says nowhere it leads".into()),
    }
}

/// What the file is, by its reparse point and by whether it is a folder.
pub(super) fn kind(reparse: Option<&Reparse>, is_folder: bool) -> Kind {
    match reparse {
        Some(Reparse::Link(_)) => Kind::Link,
        Some(Reparse::Special(name)) => Kind::Other(name),
        _ if is_folder => Kind::Folder,
        _ => Kind::File,
    }
}
