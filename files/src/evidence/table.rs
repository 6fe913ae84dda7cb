//! The partition table: where volumes begin.

use std::ops::Range;

use super::anchors::Anchors;
use super::claims::{Seen, Sightings};
use super::ext::{SUPERBLOCK_LEN, Super};
use super::ntfs::Boot;
use super::space::Space;
use super::{MIB, fat};
use crate::boundary::{u32_at, u64_at};
use crate::checksum::crc_32;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const SECOND: &str = "second GPT";
const HEADER_LEN: usize = 92;
const ENTRY_LEN: usize = 128;
const MOST_ENTRIES: usize = 1024;
const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];

/// A header of a GPT of which the checksum is right.
#[derive(Clone, Debug)]
pub(super) struct Header {
    own: u64,
    other: u64,
    array: u64,
    count: usize,
    array_checksum: u32,
    id: [u8; 16],
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

    fn len(&self) -> usize {
        self.count * ENTRY_LEN
    }
}

/// What a disk begins with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    kind: &'static str,
    sector: u32,
    /// The size of the disk, where it is said.
    size: Option<u64>,
    pub(super) partitions: Vec<Range<u64>>,
    id: [u8; 16],
    /// Where its structures lie from the beginning on.
    seen: Vec<Range<u64>>,
}

impl Head {
    /// The head of a disk that begins with these bytes.
    pub(super) fn of(first: &[u8]) -> Option<Self> {
        let gpt = [512, 4096].into_iter().find_map(|sector| Self::gpt(first, sector));
        gpt.or_else(|| Self::whole(first)).or_else(|| Self::mbr(first))
    }

    fn gpt(first: &[u8], sector: u64) -> Option<Self> {
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
    fn by_second(space: &Space<'_>, file: u64, header: &Header) -> Option<Self> {
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

    fn mbr(first: &[u8]) -> Option<Self> {
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
    fn whole(first: &[u8]) -> Option<Self> {
        let is_boot = first.get(510..512) == Some(&[0x55, 0xAA]);
        let (len, id) = if let Some(ext) =
            first.get(1024..1024 + SUPERBLOCK_LEN).and_then(Super::of)
            && ext.group == 0
        {
            (ext.len(), ext.uuid)
        } else if let Some(boot) = first.get(..512).filter(|_| is_boot).and_then(Boot::of) {
            (boot.size + u64::from(boot.sector), [0; 16])
        } else {
            let len = first.get(..512).filter(|_| is_boot).and_then(fat::size)?;
            (len, [0; 16])
        };
        let seen = vec![Range { start: 0, end: 2048 }];
        let partitions = vec![Range { start: 0, end: len }];
        Some(Self { kind: "file system", sector: 512, size: None, partitions, id, seen })
    }

    /// Where the last partition ends.
    fn end(&self) -> u64 {
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

/// The beginning of the disk.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) partitions: Vec<Range<u64>>,
    pub(super) size: Option<u64>,
    pub(super) sector: u32,
    pub(super) what: String,
    pub(super) sure: bool,
}

/// Finds the partition table of the disk.
pub(super) fn find(
    space: &Space<'_>,
    anchors: &Anchors,
    sightings: &mut Sightings,
    notes: &mut Vec<String>,
) -> Option<Root> {
    let size = space.known.size;
    let placed = (0..=4).rev().find_map(|bits| space.bytes(0, (MIB >> bits) as usize));
    if let Some(head) = placed.as_ref().and_then(|(first, _)| Head::of(first)) {
        let root = Root {
            size: head.size,
            sector: head.sector,
            what: format!("the {} at the beginning of the disk", head.kind),
            sure: true,
            partitions: head.partitions.clone(),
        };
        second(space, &head, anchors, sightings);
        return Some(root);
    }
    // A disk is not smaller than what it holds, and not of another size than it is.
    let held: u64 = space.loose.ranges().iter().map(|range| range.end - range.start).sum();
    let slack = space.known.block_size.map_or(256 * MIB, u64::from);
    let fits = |head: &Head| match (head.size, size) {
        (Some(own), Some(size)) => own == size,
        (Some(own), None) => own.saturating_add(slack) >= held,
        (None, Some(size)) if head.kind == "file system" => {
            head.end() <= size && size - head.end() < MIB
        }
        (None, Some(size)) => head.end() <= size,
        (None, None) => head.end().saturating_add(slack) >= held,
    };
    let seconds = anchors
        .headers
        .iter()
        .filter_map(|(file, header)| Some((*file, Head::by_second(space, *file, header)?)));
    let all: Vec<(u64, Head)> = anchors.heads.iter().cloned().chain(seconds).collect();
    let mut heads: Vec<&(u64, Head)> = all.iter().filter(|(_, head)| fits(head)).collect();
    // The second table is of use where there is no first one.
    let firsts: Vec<[u8; 16]> =
        heads.iter().filter(|(_, head)| head.kind == "GPT").map(|(_, head)| head.id).collect();
    heads.retain(|(_, head)| head.kind != SECOND || !firsts.contains(&head.id));
    // Without a size, a partition looks like a disk without a table.
    let table =
        heads.iter().find(|(_, head)| head.kind != "file system").map(|(_, head)| head.end());
    if let (None, Some(end)) = (size, table) {
        heads.retain(|(_, head)| head.kind != "file system" || head.end() > end);
    }
    heads.sort_by_key(|(_, head)| std::cmp::Reverse((head.size.is_some(), head.end())));
    let (file, head) = heads.first()?;
    if heads.len() > 1 {
        notes.push(format!("{} blocks look like the beginning of the disk", heads.len()));
    }
    // Without the size of the disk, any image of one in a file is as good as this one.
    let has_second =
        anchors.headers.iter().any(|(_, header)| header.own > 1 && header.id == head.id);
    let is_certain = size.is_some_and(|size| {
        let foreign = foreign(head, anchors);
        heads.len() == 1 && (foreign == 0 || has_second && foreign < size / 2)
    });
    for range in &head.seen {
        let seen = Seen { what: head.kind, volume: 0, strong: true };
        sightings.add(file + range.start..file + range.end, Some(range.start), seen);
    }
    second(space, head, anchors, sightings);
    Some(Root {
        partitions: head.partitions.clone(),
        size: head.size,
        sector: head.sector,
        what: format!("the {} in the block at {file} of the file", head.kind),
        sure: is_certain,
    })
}

/// The bytes of the largest file system that cannot lie in any of the partitions: the table may be one of an image in it.
fn foreign(head: &Head, anchors: &Anchors) -> u64 {
    let lies = |len: u64, places: &dyn Fn(u64) -> [u64; 2], file: u64| {
        head.partitions.iter().any(|range| {
            let is_even = |at: u64| at.wrapping_sub(file).is_multiple_of(MIB);
            len <= range.end - range.start && places(range.start).into_iter().any(is_even)
        })
    };
    let ext = anchors.ext.iter().filter_map(|(file, found)| {
        let place = |start: u64| [start.saturating_add(found.place()); 2];
        (!lies(found.len(), &place, *file)).then(|| found.len())
    });
    let ntfs = anchors.ntfs.iter().filter_map(|(file, found)| {
        let places = |start: u64| [start, start.saturating_add(found.size)];
        (!lies(found.size, &places, *file)).then_some(found.size)
    });
    ext.chain(ntfs).max().unwrap_or(0)
}

/// The second copy of the GPT, at the end of the disk.
fn second(space: &Space<'_>, head: &Head, anchors: &Anchors, sightings: &mut Sightings) {
    let sector = u64::from(head.sector);
    for (file, header) in &anchors.headers {
        let is_second = header.own > 1
            && header.other == 1
            && header.id == head.id
            && head.size.is_some_and(|size| header.own.saturating_add(1) == size / sector);
        if !is_second {
            continue;
        }
        let seen = |what| Seen { what, volume: 0, strong: true };
        let at = header.own * sector;
        let own = *file..file + HEADER_LEN as u64;
        let array = header.array.checked_mul(sector).filter(|array| *array < at);
        if let Some(array) = array
            && let Some(start) = file.checked_sub(at - array)
            && let Some(bytes) = space.loose_bytes(start, header.len())
            && crc_32(&bytes) == header.array_checksum
        {
            let range = start..start + header.len() as u64;
            sightings.add(range, Some(array), seen("the entries of the second GPT"));
        }
        sightings.add(own, Some(at), seen("the second GPT"));
    }
}
