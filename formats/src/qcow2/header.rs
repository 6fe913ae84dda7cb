//! The header, which says what an image is and where its tables are.

use avhdx::storage::Storage;
use avhdx::{Error, ErrorKind, Result};

use crate::cache::read_up_to;

/// The most bytes of a header with its extensions that are read: they lie in the first cluster.
const MOST_HEADER: usize = 64 << 10;
/// The most bytes of a name, by the specification.
const MOST_NAME: u32 = 1023;
/// The most bytes of the first table, as QEMU has it.
const MOST_L1: u64 = 32 << 20;

/// QEMU counts the disk in these.
const SECTOR: u64 = 512;

/// The bits of an entry of a table that are an offset.
pub(super) const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
/// Incompatible features, by their bits.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED: u64 = 1 << 4;
/// Kinds of extensions of a header.
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const FEATURE_NAMES: u32 = 0x6803_F857;

/// How clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Deflate,
    Zstd,
}

/// What a header records.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    /// Bytes of the disk, whole sectors.
    pub(super) size: u64,
    /// Bytes behind the last whole sector that are recorded as a part of the disk. QEMU has them neither.
    pub(super) cut: u64,
    pub(super) cluster_bits: u32,
    pub(super) l1_offset: u64,
    pub(super) packing: Packing,
    /// Whether clusters have 32 parts with states of their own.
    pub(super) has_subclusters: bool,
    pub(super) backing: Option<Backing>,
    pub(super) snapshots: u32,
    pub(super) is_dirty: bool,
    pub(super) is_corrupt: bool,
}

/// The image below, as it is recorded.
#[derive(Clone, Debug)]
pub(super) struct Backing {
    pub(super) name: String,
    pub(super) format: Option<String>,
}

impl Header {
    pub(super) fn read(storage: &dyn Storage, len: u64) -> Result<Self> {
        let mut bytes = vec![0; MOST_HEADER];
        let read = read_up_to(storage, &mut bytes, 0)?;
        bytes.truncate(read);
        if !bytes.starts_with(b"QFI\xFB") || bytes.len() < 72 {
            let found = bytes.get(..4).unwrap_or(&bytes);
            return Err(damaged("qcow2.signature", "there is no header of a qcow2 image", 0)
                .with_found(format_args!("\"{}\"", found.escape_ascii()))
                .with_expected("\"QFI\\xfb\" and a header of 72 bytes"));
        }
        let version = be32(&bytes, 4);
        if !matches!(version, 2 | 3) {
            return Err(unsupported(
                "qcow2.version",
                "the image has another version of the format",
                4,
            )
            .with_found(version)
            .with_expected("2 or 3"));
        }
        if version == 3 && bytes.len() < 104 {
            return Err(damaged("qcow2.header", "the file ends within the header", len)
                .with_found(format_args!("{len} bytes"))
                .with_expected("at least 104"));
        }
        let (incompatible, length) = match version {
            3 => (be64(&bytes, 72), be32(&bytes, 100)),
            _ => (0, 72),
        };
        if version == 3 && (length < 104 || length % 8 != 0) {
            return Err(damaged("qcow2.header", "the header has a length that no header has", 100)
                .with_found(length)
                .with_expected("a multiple of 8, at least 104"));
        }
        // Old images have no mark at the end of their extensions, and the name of the image below right behind them.
        let name = usize::try_from(be64(&bytes, 8)).unwrap_or(usize::MAX);
        let end = if name >= length as usize { name.min(bytes.len()) } else { bytes.len() };
        let extensions = Extensions::read(&bytes[..end], length as usize)?;
        refuse_features(incompatible, &extensions)?;
        if be32(&bytes, 32) != 0 {
            let message = "the image is encrypted";
            return Err(unsupported("qcow2.encrypted", message, 32).with_found(be32(&bytes, 32)));
        }
        let packing = match bytes.get(104).filter(|_| version == 3 && length > 104) {
            None | Some(0) => Packing::Deflate,
            Some(1) => Packing::Zstd,
            Some(other) => {
                let message = "clusters are packed in a way that is not known";
                return Err(unsupported("qcow2.compression", message, 104)
                    .with_found(other)
                    .with_expected("0 (deflate) or 1 (zstd)"));
            }
        };
        // As QEMU has it: each of the two needs the other.
        if (packing == Packing::Zstd) != (incompatible & COMPRESSION != 0) {
            let message =
                "the image names a compression that its features do not, or the other way round";
            return Err(damaged("qcow2.header", message, 72)
                .with_found(format_args!("{packing:?}, features {incompatible:#x}"))
                .with_expected("bit 3 with zstd, and with nothing else"));
        }
        let cluster_bits = be32(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(damaged(
                "qcow2.cluster-size",
                "clusters have a size that they cannot have",
                20,
            )
            .with_found(format_args!("2^{cluster_bits} bytes"))
            .with_expected("2^9 to 2^21"));
        }
        let has_subclusters = incompatible & EXTENDED != 0;
        if has_subclusters && cluster_bits < 14 {
            let message = "clusters with parts are smaller than they can be";
            return Err(damaged("qcow2.cluster-size", message, 20)
                .with_found(format_args!("2^{cluster_bits} bytes"))
                .with_expected("2^14 at least"));
        }
        let size = be64(&bytes, 24);
        if size > i64::MAX as u64 {
            return Err(damaged(
                "qcow2.size",
                "the size of the disk is not one that a disk can have",
                24,
            )
            .with_found(format_args!("{size} bytes"))
            .with_expected("fewer than 2^63"));
        }
        let (size, cut) = (size / SECTOR * SECTOR, size % SECTOR);
        let entry_bits = if has_subclusters { 4 } else { 3 };
        let of_one = 1_u128 << (2 * cluster_bits - entry_bits);
        let needed = u128::from(size).div_ceil(of_one) as u64;
        let (l1_entries, l1_offset) = (u64::from(be32(&bytes, 36)), be64(&bytes, 40));
        if needed * 8 > MOST_L1 {
            return Err(unsupported(
                "qcow2.l1-length",
                "the first table is longer than is read",
                24,
            )
            .with_found(format_args!("{needed} entries"))
            .with_expected(format_args!("at most {}", MOST_L1 / 8)));
        }
        if l1_entries < needed {
            let message = "the first table has no entry for the end of the disk";
            return Err(damaged("qcow2.l1", message, 36)
                .with_found(format_args!("{l1_entries} entries"))
                .with_expected(format_args!("at least {needed}")));
        }
        let is_within = l1_offset.checked_add(needed * 8).is_some_and(|end| end <= len);
        if !is_within || l1_offset % (1 << cluster_bits) != 0 {
            let message = "the first table does not lie within the file, or not at a cluster";
            return Err(damaged("qcow2.l1", message, 40)
                .with_found(format_args!("{l1_offset:#x}, {needed} entries"))
                .with_expected(format_args!("whole clusters up to {len:#x}")));
        }
        refuse_shared_tables(storage, l1_offset, needed)?;
        let backing = backing(&bytes, extensions.backing_format)?;
        Ok(Self {
            version,
            size,
            cut,
            cluster_bits,
            l1_offset,
            packing,
            has_subclusters,
            backing,
            snapshots: be32(&bytes, 60),
            is_dirty: incompatible & DIRTY != 0,
            is_corrupt: incompatible & CORRUPT != 0,
        })
    }
}

/// What the extensions of a header record.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    /// The names of incompatible features by their bits.
    names: Vec<(u8, String)>,
}

impl Extensions {
    fn read(bytes: &[u8], start: usize) -> Result<Self> {
        let mut found = Self::default();
        let mut at = start;
        while let Some(head) = bytes.get(at..at + 8) {
            let (kind, len) = (be32(head, 0), be32(head, 4) as usize);
            let data = at + 8..(at + 8).saturating_add(len);
            if kind == 0 {
                break;
            }
            let Some(data) = bytes.get(data) else {
                let message = "an extension of the header does not lie within the first 64 KiB";
                return Err(damaged("qcow2.extension", message, at as u64 + 4)
                    .with_found(format_args!("{len} bytes")));
            };
            match kind {
                BACKING_FORMAT => found.backing_format = Some(text(data)),
                FEATURE_NAMES => {
                    let names = data.chunks_exact(48).filter(|entry| entry[0] == 0);
                    found.names.extend(names.map(|entry| (entry[1], text(&entry[2..]))));
                }
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(found)
    }
}

/// Refuses a first table that names a second table twice: a write to one part of the disk would change another, and few
/// tables could make a disk whose extents have no end.
fn refuse_shared_tables(storage: &dyn Storage, l1_offset: u64, entries: u64) -> Result<()> {
    let each = |found: &mut dyn FnMut(u64, u64)| -> Result<()> {
        let mut bytes = vec![0; 64 << 10];
        let mut at = l1_offset;
        let end = l1_offset + entries * 8;
        while at < end {
            let len = ((end - at) as usize).min(bytes.len());
            let read = read_up_to(storage, &mut bytes[..len], at)?;
            let (numbers, _) = bytes[..read].as_chunks::<8>();
            let places = numbers.iter().map(|number| u64::from_be_bytes(*number) & OFFSET);
            (at..).step_by(8).zip(places).filter(|(_, place)| *place != 0).for_each(
                |(at, place)| {
                    found(at, place);
                },
            );
            // What the file lost since is found where it is read.
            at += if read < len { end - at } else { len as u64 };
        }
        Ok(())
    };
    let mut places = Vec::new();
    each(&mut |_, place| places.push(place))?;
    places.sort_unstable();
    let Some(twice) = places.windows(2).find_map(|two| (two[0] == two[1]).then_some(two[0])) else {
        return Ok(());
    };
    drop(places);
    let mut named = Vec::new();
    each(&mut |at, place| {
        if place == twice && named.len() < 2 {
            named.push(at);
        }
    })?;
    let message = "two entries of the first table name the same second table";
    Err(damaged("qcow2.l1", message, named.last().copied().unwrap_or(l1_offset))
        .with_found(format_args!("{twice:#x} twice"))
        .with_expected("a table for each"))
}

fn refuse_features(incompatible: u64, extensions: &Extensions) -> Result<()> {
    if incompatible & DATA_FILE != 0 {
        let message = "the data of the image lie in another file";
        return Err(unsupported("qcow2.data-file", message, 72));
    }
    let unknown = incompatible & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED);
    if unknown == 0 {
        return Ok(());
    }
    let bit = unknown.trailing_zeros() as u8;
    let name = extensions.names.iter().find(|(known, _)| *known == bit);
    let name = name.map_or(String::new(), |(_, name)| format!(" ({name:?})"));
    let message = "the image has a feature that is not known";
    Err(unsupported("qcow2.feature", message, 72).with_found(format_args!("bit {bit}{name}")))
}

fn backing(bytes: &[u8], format: Option<String>) -> Result<Option<Backing>> {
    let (offset, len) = (be64(bytes, 8), be32(bytes, 16));
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let name = bytes.get(start..start.saturating_add(len as usize));
    match name.filter(|_| len <= MOST_NAME) {
        Some(name) => Ok(Some(Backing { name: text(name), format })),
        None => Err(damaged(
            "qcow2.backing-name",
            "the name of the image below is not in the header",
            8,
        )
        .with_found(format_args!("{len} bytes at {offset:#x}"))
        .with_expected(format_args!("at most {MOST_NAME} bytes in the first 64 KiB"))),
    }
}

/// Text up to its first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

pub(super) fn damaged(code: &'static str, message: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::Damaged, code, message).at(at)
}

pub(super) fn unsupported(code: &'static str, message: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::Unsupported, code, message).at(at)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
