//! What a disk begins with: a partition table, or a file system without one.

use std::ops::Range;

use super::boot::{Boot, size_of_fat};
use super::space::Space;
use super::superblock::{SUPERBLOCK_LEN, Super};
use crate::boundary::{u32_at, u64_at};
use crate::checksum::crc_32;

const SIGNATURE: &[u8; 8] = b"EFI PART";
pub(super) const SECOND: &str = "second GPT";
pub(super) const HEADER_LEN: usize = 92;
const ENTRY_LEN: usize = 128;
const MOST_ENTRIES: usize = 1024;
const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];

/// A header of a GPT of which the checksum is right.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) own: u64,
    pub(super) other: u64,
    pub(super) array: u64,
    pub(super) count: usize,
    pub(super) array_checksum: u32,
    pub(super) id: [u8; 16],
}

impl Header {
    pub(super) fn of(raw: &[u8]) -> Option<Self> {
        let raw = raw.get(..HEADER_LEN).filter(|raw| raw.starts_with(SIGNATURE))?;
        let mut bytes = raw.to_vec();
        bytes[16..20].fill(0);
        let count = u32_at(raw, 80) as usize;
        let holds = u32_at(raw, 12) as usize == HEADER_LEN
            && u32_at(raw, 84) as usize == ENTRY_LEN
            && (1..=MOST_ENTRIES).contains(&count)
            && crc_32(&bytes) == u32_at(raw, 16);
        let mut id = [0; 16];
        id.copy_from_slice(&raw[56..72]);
        holds.then(|| Self {
            own: u64_at(raw, 24),
            other: u64_at(raw, 32),
            array: u64_at(raw, 72),
            count,
            array_checksum: u32_at(raw, 88),
            id,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.count * ENTRY_LEN
    }
}

/// What a disk begins with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) kind: &'static str,
    pub(super) sector: u32,
    /// The size of the disk, where it is said.
    pub(super) size: Option<u64>,
    pub(super) partitions: Vec<Range<u64>>,
    pub(super) id: [u8; 16],
    /// Where its structures lie from the beginning on.
    pub(super) seen: Vec<Range<u64>>,
}

impl Head {
    /// The head of a disk that begins with these bytes.
    pub(super) fn of(first: &[u8]) -> Option<Self> {
        let gpt = [512, 4096].into_iter().find_map(|sector| Self::gpt(first, sector));
        gpt.or_else(|| Self::whole(first)).or_else(|| Self::mbr(first))
    }

    pub(super) fn gpt(first: &[u8], sector: u64) -> Option<Self> {
        let header = Header::of(first.get(sector as usize..)?).filter(|header| header.own == 1)?;
        let start = usize::try_from(header.array.checked_mul(sector)?).ok()?;
        let array = first.get(start..start.checked_add(header.len())?)?;
        (crc_32(array) == header.array_checksum).then_some(())?;
        let size = header.other.checked_add(1)?.checked_mul(sector)?;
        let partitions = entries(array, sector, size)?;
        let array = start as u64..start as u64 + header.len() as u64;
        let seen = vec![sector..sector + HEADER_LEN as u64, array];
        let (kind, size, sector) = ("GPT", Some(size), sector as u32);
        Some(Self { kind, sector, size, partitions, id: header.id, seen })
    }

    /// What the second copy alone says.
    pub(super) fn by_second(space: &Space<'_>, file: u64, header: &Header) -> Option<Self> {
        let sector = [512, 4096].into_iter().find(|sector| {
            let back = header.own.checked_sub(header.array).and_then(|by| by.checked_mul(*sector));
            let start = back.and_then(|back| file.checked_sub(back));
            let array = start.and_then(|start| space.loose_bytes(start, header.len()));
            header.own > 1
                && header.other == 1
                && array.is_some_and(|array| crc_32(&array) == header.array_checksum)
        })?;
        let start = file - (header.own - header.array) * sector;
        let array = space.loose_bytes(start, header.len())?;
        let size = header.own.checked_add(1)?.checked_mul(sector)?;
        let partitions = entries(&array, sector, size)?;
        let (size, sector, id) = (Some(size), sector as u32, header.id);
        Some(Self { kind: SECOND, sector, size, partitions, id, seen: Vec::new() })
    }

    pub(super) fn mbr(first: &[u8]) -> Option<Self> {
        let raw = first.get(..512).filter(|raw| raw[510..] == [0x55, 0xAA])?;
        let entries: Vec<&[u8]> = raw[446..510].chunks_exact(16).collect();
        entries.iter().all(|entry| entry[0] & 0x7F == 0).then_some(())?;
        let mut partitions = Vec::new();
        for entry in entries.iter().filter(|entry| entry[4] != 0 && u32_at(entry, 12) != 0) {
            // Without its GPT, a protective one says nothing.
            (entry[4] != PROTECTIVE && u32_at(entry, 8) != 0).then_some(())?;
            if !EXTENDED.contains(&entry[4]) {
                let [start, len] = [8, 12].map(|at| u64::from(u32_at(entry, at)) * 512);
                partitions.push(start..start + len);
            }
        }
        partitions.sort_by_key(|range| range.start);
        let is_apart = partitions.windows(2).all(|pair| pair[0].end <= pair[1].start);
        (is_apart && !partitions.is_empty()).then_some(())?;
        let mut id = [0; 16];
        id[..4].copy_from_slice(&raw[440..444]);
        let seen = vec![Range { start: 0, end: 512 }];
        Some(Self { kind: "MBR", sector: 512, size: None, partitions, id, seen })
    }

    /// A file system without a table. It has no more than the whole disk.
    pub(super) fn whole(first: &[u8]) -> Option<Self> {
        let is_boot = first.get(510..512) == Some(&[0x55, 0xAA]);
        let (len, id) = if let Some(ext) =
            first.get(1024..1024 + SUPERBLOCK_LEN).and_then(Super::of)
            && ext.group == 0
        {
            (ext.len(), ext.uuid)
        } else if let Some(boot) = first.get(..512).filter(|_| is_boot).and_then(Boot::of) {
            (boot.size + u64::from(boot.sector), [0; 16])
        } else {
            let len = first.get(..512).filter(|_| is_boot).and_then(size_of_fat)?;
            (len, [0; 16])
        };
        let seen = vec![Range { start: 0, end: 2048 }];
        let partitions = vec![Range { start: 0, end: len }];
        Some(Self { kind: "file system", sector: 512, size: None, partitions, id, seen })
    }

    /// Where the last partition ends.
    pub(super) fn end(&self) -> u64 {
        self.partitions.iter().map(|range| range.end).max().unwrap_or(0)
    }
}

fn entries(array: &[u8], sector: u64, size: u64) -> Option<Vec<Range<u64>>> {
    let mut partitions = Vec::new();
    for entry in array.chunks_exact(ENTRY_LEN).filter(|raw| raw[..16] != [0; 16]) {
        let start = u64_at(entry, 32).checked_mul(sector)?;
        let end = u64_at(entry, 40).checked_add(1)?.checked_mul(sector)?;
        (start < end && end <= size).then(|| partitions.push(start..end))?;
    }
    Some(partitions)
}
