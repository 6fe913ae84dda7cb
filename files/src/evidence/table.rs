//! The partition table: where volumes begin.

use std::ops::Range;

use super::anchors::{Anchors, MOST_HEADS};
use super::claims::{Seen, Sightings};
use super::head::{HEADER_LEN, Head, SECOND};
use super::known::MIB;
use super::space::Space;
use super::superblock::Super;
use crate::checksum::crc_32;

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
        heads.len() == 1
            && anchors.heads.len().max(anchors.ext.len()) < MOST_HEADS
            && (foreign == 0 || has_second && foreign < size / 2)
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
    let is_own = |file: u64, found: &Super| {
        lies(found.len(), &|start| [start.saturating_add(found.place()); 2], file)
    };
    let mut own: Vec<&Super> = Vec::new();
    for (file, found) in &anchors.ext {
        if is_own(*file, found) && !own.iter().any(|own| own.is_kin(found)) {
            own.push(found);
        }
    }
    // A journal has copies of the superblock.
    let others = anchors.ext.iter().filter(|(_, found)| !own.iter().any(|own| own.is_kin(found)));
    let ext = others.map(|(_, found)| found.len());
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
