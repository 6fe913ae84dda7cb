//! The headers of extents with tables.

use avhdx::storage::Storage;
use avhdx::{Error, ErrorKind, Result};

use crate::cache::read_up_to;

pub(super) const SECTOR: u64 = 512;
/// The most sectors of a grain, as QEMU has it.
const MOST_GRAIN: u64 = 1 << 21;
/// The most sectors of a packed grain: it is unpacked as a whole.
const MOST_PACKED: u64 = 1 << 15;
/// Where the directory is said to be if a footer at the end says it.
const AT_END: u64 = u64::MAX;
/// What tables of ESX have.
const ESX_ENTRIES: u64 = 4096;

const NEW_LINES: u32 = 1;
const ZERO_GRAINS: u32 = 1 << 2;
const PACKED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;

/// What a header records of an extent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Bytes of the disk that the tables are for.
    pub(super) capacity: u64,
    /// Bytes of a grain.
    pub(super) grain: u64,
    /// Entries of a table.
    pub(super) per_table: u64,
    /// Where the directory begins.
    pub(super) directory: u64,
    pub(super) kind: Kind,
    /// Where the descriptor is, and its bytes.
    pub(super) descriptor: Option<(u64, u64)>,
    pub(super) is_dirty: bool,
}

/// The kinds of extents with tables.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Those of hosted products.
    Hosted {
        /// Whether an entry of 1 is a grain of zeros.
        has_zeros: bool,
        packing: Packing,
    },
    /// The older ones of ESX.
    Cowd,
    /// The newer ones of ESX.
    Se {
        /// Where the tables begin.
        tables: u64,
        /// The bytes of all tables.
        tables_len: u64,
        /// Where the grains begin.
        grains: u64,
    },
}

/// How grains are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    No,
    /// By zlib, after a marker.
    Marked,
    /// By zlib alone.
    Bare,
}

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Magic {
    Hosted,
    Cowd,
    Se,
    /// Perhaps a descriptor.
    None,
}

impl Magic {
    pub(super) fn of(storage: &dyn Storage) -> Result<Self> {
        let mut bytes = [0; 8];
        let read = read_up_to(storage, &mut bytes, 0)?;
        Ok(match &bytes[..read] {
            [b'K', b'D', b'M', b'V', ..] => Self::Hosted,
            [b'C', b'O', b'W', b'D', ..] => Self::Cowd,
            [0xBE, 0xBA, 0xFE, 0xCA, 0, 0, 0, 0] => Self::Se,
            _ => Self::None,
        })
    }
}

impl Header {
    pub(super) fn read(storage: &dyn Storage, len: u64) -> Result<Self> {
        let bytes = sector(storage, 0, len)?;
        let header = match Magic::of(storage)? {
            Magic::Hosted => Self::hosted(storage, &bytes, len),
            Magic::Cowd => Self::cowd(&bytes),
            Magic::Se => Self::se(storage, &bytes, len),
            Magic::None => Err(damaged("vmdk.signature", "there is no header of a VMDK extent", 0)
                .with_found(format_args!("\"{}\"", bytes[..4].escape_ascii()))
                .with_expected("\"KDMV\", \"COWD\" or 0xcafebabe")),
        }?;
        // An image without extents of its own has a descriptor alone.
        if header.capacity > 0 {
            header.check(len)?;
        }
        Ok(header)
    }

    fn hosted(storage: &dyn Storage, first: &[u8], len: u64) -> Result<Self> {
        let (mut at, mut bytes) = (0, first.to_vec());
        if le64(first, 56) == AT_END {
            (at, bytes) = footer(storage, len)?;
        }
        let version = le32(&bytes, 4);
        if !(1..=3).contains(&version) {
            return Err(unsupported("vmdk.version", "the extent has another version", at + 4)
                .with_found(version)
                .with_expected("1 to 3"));
        }
        let flags = le32(&bytes, 8);
        if flags & NEW_LINES != 0 && bytes[73..77] != *b"\n \r\n" {
            let message = "the file was changed as if it were text";
            return Err(damaged("vmdk.new-lines", message, at + 73)
                .with_found(format_args!("\"{}\"", bytes[73..77].escape_ascii()))
                .with_expected("\"\\n \\r\\n\""));
        }
        let packing = match (le16(&bytes, 77), flags & PACKED != 0, flags & MARKERS != 0) {
            (0, false, _) => Packing::No,
            (1, _, true) => Packing::Marked,
            (1, _, false) => Packing::Bare,
            (other, is_packed, _) => {
                let message = "grains are packed in a way that is not known";
                let flag = if is_packed { "set" } else { "clear" };
                return Err(unsupported("vmdk.compression", message, at + 77)
                    .with_found(format_args!("{other}, the flag is {flag}"))
                    .with_expected("0 (none) or 1 (deflate)"));
            }
        };
        let (descriptor_at, descriptor_len) = (le64(first, 28), le64(first, 36));
        let descriptor = match descriptor_at {
            0 => None,
            _ => Some((bytes_of(descriptor_at, 28)?, bytes_of(descriptor_len, 36)?)),
        };
        let capacity = size_of(le64(&bytes, 12), at + 12)?;
        let grain = le64(&bytes, 20);
        let most = if packing == Packing::No { MOST_GRAIN } else { MOST_PACKED };
        if capacity > 0 && !(1..=most).contains(&grain) {
            return Err(damaged("vmdk.grain-size", "grains have a size that is not read", at + 20)
                .with_found(format_args!("{grain} sectors"))
                .with_expected(format_args!("1 to {most}")));
        }
        let per_table = u64::from(le32(&bytes, 44));
        if capacity > 0 && !(1..=512).contains(&per_table) {
            let message = "tables have a length that they cannot have";
            return Err(damaged("vmdk.table-length", message, at + 44)
                .with_found(format_args!("{per_table} entries"))
                .with_expected("1 to 512"));
        }
        Ok(Self {
            capacity,
            grain: grain.saturating_mul(SECTOR),
            per_table,
            directory: bytes_of(le64(&bytes, 56), at + 56)?,
            kind: Kind::Hosted { has_zeros: flags & ZERO_GRAINS != 0, packing },
            descriptor,
            is_dirty: bytes[72] != 0,
        })
    }

    fn cowd(bytes: &[u8]) -> Result<Self> {
        let version = le32(bytes, 4);
        if version != 1 {
            return Err(unsupported("vmdk.version", "the extent has another version", 4)
                .with_found(version)
                .with_expected(1));
        }
        let capacity = size_of(le32(bytes, 12).into(), 12)?;
        let grain = u64::from(le32(bytes, 16));
        if !(1..=MOST_GRAIN).contains(&grain) || capacity == 0 {
            return Err(damaged("vmdk.grain-size", "grains have a size that is not read", 16)
                .with_found(format_args!("{grain} sectors of {} bytes in all", capacity))
                .with_expected(format_args!("1 to {MOST_GRAIN}")));
        }
        let header = Self {
            capacity,
            grain: grain * SECTOR,
            per_table: ESX_ENTRIES,
            directory: bytes_of(le32(bytes, 20).into(), 20)?,
            kind: Kind::Cowd,
            descriptor: None,
            is_dirty: false,
        };
        let entries = le32(bytes, 24).into();
        header.check_entries(entries, 24)?;
        Ok(header)
    }

    /// The layout is not published: it is read as QEMU has it, and nothing that QEMU does not know is.
    fn se(storage: &dyn Storage, bytes: &[u8], len: u64) -> Result<Self> {
        let known = [
            (8, 0x2_0000_0001, "version"),
            (24, 8, "size of grains"),
            (32, 64, "size of tables"),
            (40, 0, "flags"),
            (48, 0, "reserved number"),
            (56, 0, "reserved number"),
            (64, 0, "reserved number"),
            (72, 0, "reserved number"),
        ];
        for (at, expected, what) in known {
            if le64(bytes, at) != expected {
                let message = format!("the space-efficient extent has another {what} than is read");
                return Err(unsupported("vmdk.se-sparse", message, at as u64)
                    .with_found(format_args!("{:#x}", le64(bytes, at)))
                    .with_expected(format_args!("{expected:#x}")));
            }
        }
        let volatile = bytes_of(le64(bytes, 80), 80)?;
        let second = sector(storage, volatile, len)?;
        if le64(&second, 0) != 0xCAFE_CAFE {
            let message = "the space-efficient extent has no second header";
            return Err(damaged("vmdk.se-sparse", message, volatile)
                .with_found(format_args!("{:#x}", le64(&second, 0)))
                .with_expected("0xcafecafe"));
        }
        if le64(&second, 24) != 0 {
            let message =
                "the space-efficient extent has changes in its journal, which is not read";
            return Err(unsupported("vmdk.se-sparse", message, volatile + 24)
                .with_found(format_args!("{:#x}", le64(&second, 24)))
                .with_expected("0"));
        }
        let header = Self {
            capacity: size_of(le64(bytes, 16), 16)?,
            grain: 8 * SECTOR,
            per_table: ESX_ENTRIES,
            directory: bytes_of(le64(bytes, 128), 128)?,
            kind: Kind::Se {
                tables: bytes_of(le64(bytes, 144), 144)?,
                tables_len: bytes_of(le64(bytes, 152), 152)?,
                grains: bytes_of(le64(bytes, 192), 192)?,
            },
            descriptor: None,
            is_dirty: false,
        };
        header.check_entries(bytes_of(le64(bytes, 136), 136)? / 8, 136)?;
        Ok(header)
    }

    /// Bytes of an entry, of directories and of tables.
    pub(super) fn entry(&self) -> u64 {
        if matches!(self.kind, Kind::Se { .. }) { 8 } else { 4 }
    }

    pub(super) fn packing(&self) -> Packing {
        match self.kind {
            Kind::Hosted { packing, .. } => packing,
            _ => Packing::No,
        }
    }

    /// The entries of the directory.
    fn needed(&self) -> u64 {
        self.capacity.div_ceil(self.per_table * self.grain)
    }

    fn check_entries(&self, entries: u64, at: u64) -> Result<()> {
        if entries < self.needed() {
            let message = "the directory has no entry for the end of the extent";
            return Err(damaged("vmdk.directory", message, at)
                .with_found(format_args!("{entries} entries"))
                .with_expected(format_args!("at least {}", self.needed())));
        }
        Ok(())
    }

    /// The directory lies within the file.
    fn check(&self, len: u64) -> Result<()> {
        let bytes = self.needed() * self.entry();
        if self.directory == 0 || self.directory.checked_add(bytes).is_none_or(|end| end > len) {
            let message = "the directory does not lie within the file";
            return Err(damaged("vmdk.directory", message, self.directory)
                .with_found(format_args!("{bytes} bytes at {:#x}", self.directory))
                .with_expected(format_args!("an end up to {len:#x}")));
        }
        Ok(())
    }
}

/// The footer, which counts in place of the header: the last sector but one.
fn footer(storage: &dyn Storage, len: u64) -> Result<(u64, Vec<u8>)> {
    let end = len.div_ceil(SECTOR).saturating_mul(SECTOR);
    let at = end.saturating_sub(2 * SECTOR);
    let bytes = sector(storage, at, len)?;
    let marker = sector(storage, at.saturating_sub(SECTOR), len)?;
    if &bytes[..4] != b"KDMV" || le32(&marker, 8) != 0 || le32(&marker, 12) != 3 {
        let message = "there is no footer at the end of the file: it may be cut short";
        return Err(damaged("vmdk.footer", message, at)
            .with_found(format_args!("\"{}\"", bytes[..4].escape_ascii()))
            .with_expected("\"KDMV\" after the marker of a footer"));
    }
    if le64(&bytes, 56) == AT_END {
        let message = "the footer does not say where the directory is";
        return Err(damaged("vmdk.footer", message, at + 56).with_found("-1"));
    }
    Ok((at, bytes))
}

fn sector(storage: &dyn Storage, at: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; SECTOR as usize];
    let is_within = at.checked_add(SECTOR).is_some_and(|end| end <= len);
    if !is_within || read_up_to(storage, &mut bytes, at)? < bytes.len() {
        let message = "a header does not lie within the file";
        return Err(damaged("vmdk.header", message, at)
            .with_found(format_args!("{len} bytes in the file"))
            .with_expected(format_args!("{SECTOR} bytes at {at:#x}")));
    }
    Ok(bytes)
}

/// The bytes of a disk.
fn size_of(sectors: u64, at: u64) -> Result<u64> {
    let size = sectors.checked_mul(SECTOR).filter(|size| *size <= i64::MAX as u64);
    size.ok_or_else(|| {
        damaged("vmdk.size", "the size of the disk is not one that a disk can have", at)
            .with_found(format_args!("{sectors} sectors"))
            .with_expected("fewer than 2^63 bytes")
    })
}

/// A place or a length in the file.
fn bytes_of(sectors: u64, at: u64) -> Result<u64> {
    let bytes = sectors.checked_mul(SECTOR).filter(|bytes| *bytes <= i64::MAX as u64);
    bytes.ok_or_else(|| {
        damaged("vmdk.place", "a place is one that no file has", at)
            .with_found(format_args!("{sectors} sectors"))
            .with_expected("fewer than 2^63 bytes")
    })
}

pub(super) fn damaged(code: &'static str, message: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::Damaged, code, message).at(at)
}

pub(super) fn unsupported(code: &'static str, message: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::Unsupported, code, message).at(at)
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) | u16::from(bytes[at + 1]) << 8
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
