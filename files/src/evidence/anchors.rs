//! What can be recognized in loose bytes before anything is known of the disk.

use std::collections::BTreeMap;
use std::ops::Range;

use super::MIB;
use super::ext::{SUPERBLOCK_LEN, Super};
use super::ntfs::Boot;
use super::table::{Head, Header};
use crate::boundary::{number, u16_at, u32_at, u64_at};
use crate::content;
use crate::ntfs::fix_up;

const SECTOR: usize = 512;
/// The first bytes of blocks of a journal of ext; their kinds follow.
const JOURNAL: &[u8] = b"\xC0\x3B\x39\x98";
const JOURNAL_KINDS: std::ops::RangeInclusive<u64> = 1..=5;
/// More of one kind are not kept.
const MOST: usize = 1 << 18;
const RECORD_BITS: u64 = (1 << 48) - 1;
/// Lengths of file records and of nodes of indexes.
const LENGTHS: Range<usize> = 512..64 << 10;

/// File records of NTFS that are numbered one after the other.
#[derive(Clone, Debug)]
pub(super) struct Records {
    pub(super) file: u64,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) len: u64,
}

/// A node of an index of names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) file: u64,
    pub(super) len: u64,
    pub(super) vcn: u64,
    /// The record of the folder, and its use.
    pub(super) folder: u64,
    pub(super) sequence: u16,
}

/// What is recognized, by the places in the file.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    /// What a disk begins with.
    pub(super) heads: Vec<(u64, Head)>,
    pub(super) headers: Vec<(u64, Header)>,
    pub(super) ext: Vec<(u64, Super)>,
    pub(super) ntfs: Vec<(u64, Boot)>,
    pub(super) fat: Vec<(u64, Vec<u8>)>,
    pub(super) records: Vec<Records>,
    pub(super) nodes: Vec<Node>,
    /// Pages at which a log of NTFS is begun again.
    pub(super) restarts: Vec<u64>,
    /// Folders of FAT with their own first clusters.
    pub(super) folders: Vec<(u64, u32)>,
    /// The first and the last block of a journal in each MiB that has any.
    pub(super) journal_marks: BTreeMap<u64, (u64, u64)>,
}

fn keep<T>(all: &mut Vec<T>, one: T) {
    if all.len() < MOST {
        all.push(one);
    }
}

impl Anchors {
    /// Looks at bytes of the file, which begin at a MiB.
    pub(super) fn look(&mut self, at: u64, bytes: &[u8]) {
        if let Some(head) = Head::of(bytes) {
            keep(&mut self.heads, (at, head));
        }
        let mut offset = 0;
        while let Some(rest) = bytes.get(offset..).filter(|rest| rest.len() >= SECTOR) {
            let place = at + offset as u64;
            offset += SECTOR;
            match &rest[..4] {
                [0, 0, 0, 0] => {}
                b"FILE" => self.record(place, rest),
                b"INDX" => self.node(place, rest),
                b"RSTR" => keep(&mut self.restarts, place),
                b"EFI " => {
                    let header = Header::of(rest);
                    header.into_iter().for_each(|header| keep(&mut self.headers, (place, header)));
                }
                JOURNAL if JOURNAL_KINDS.contains(&u64::from(u32_at(rest, 4).swap_bytes())) => {
                    let marks = self.journal_marks.entry(at & !(MIB - 1));
                    marks.or_insert((place, place)).1 = place;
                }
                [0xEB | 0xE9, ..] if rest[510..512] == [0x55, 0xAA] => self.boot(place, rest),
                b".   " => self.folder(place, rest),
                _ => {}
            }
            if rest[56..58] == [0x53, 0xEF]
                && let Some(raw) = rest.get(..SUPERBLOCK_LEN)
                && let Some(found) = Super::of(raw)
            {
                keep(&mut self.ext, (place, found));
            }
        }
    }

    fn record(&mut self, file: u64, rest: &[u8]) {
        let len = u32_at(rest, 28) as usize;
        let Some(raw) = rest.get(..len).filter(|_| LENGTHS.contains(&len)) else { return };
        if fix_up(&mut raw.to_vec()).is_none() {
            return;
        }
        let number = u64::from(u32_at(raw, 44));
        let len = len as u64;
        if let Some(last) = self.records.last_mut()
            && last.len == len
            && last.file + last.count * len == file
            && last.first + last.count == number
        {
            last.count += 1;
            return;
        }
        keep(&mut self.records, Records { file, first: number, count: 1, len });
    }

    fn node(&mut self, file: u64, rest: &[u8]) {
        // The header of the node says how long it is, behind its own 24 bytes.
        let len = (u32_at(rest, 32) as usize).saturating_add(24);
        let Some(raw) = rest.get(..len).filter(|_| LENGTHS.contains(&len)) else { return };
        let mut raw = raw.to_vec();
        let first = 24 + u32_at(&raw, 24) as usize;
        let is_last = number(&raw, first.saturating_add(12), 2) & 2 != 0;
        if fix_up(&mut raw).is_none() || is_last || first.saturating_add(24) > raw.len() {
            return;
        }
        let folder = u64_at(&raw, first + 16);
        let vcn = u64_at(&raw, 16);
        let (sequence, folder) = ((folder >> 48) as u16, folder & RECORD_BITS);
        keep(&mut self.nodes, Node { file, len: len as u64, vcn, folder, sequence });
    }

    fn boot(&mut self, place: u64, rest: &[u8]) {
        if let Some(boot) = Boot::of(rest) {
            keep(&mut self.ntfs, (place, boot));
        } else if content::is_fat(rest) {
            keep(&mut self.fat, (place, rest[..SECTOR].to_vec()));
        }
    }

    /// The first two entries of a folder are itself and its parent.
    fn folder(&mut self, place: u64, rest: &[u8]) {
        let is_pair = rest[..11] == *b".          "
            && rest[32..43] == *b"..         "
            && [11, 43].iter().all(|at| rest[*at] & 0x18 == 0x10);
        if is_pair {
            let own = u32::from(u16_at(rest, 20)) << 16 | u32::from(u16_at(rest, 26));
            keep(&mut self.folders, (place, own));
        }
    }
}
