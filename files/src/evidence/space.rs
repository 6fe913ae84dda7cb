//! The bytes of the disk as far as they are placed, and the loose ones.

use std::ops::Range;

use super::claims::Placed;
use super::{Known, Loose, MIB};

/// What is placed of a disk.
pub(super) struct Space<'a> {
    pub(super) known: &'a Known<'a>,
    pub(super) loose: &'a dyn Loose,
    /// By their places on the disk.
    placed: Vec<Placed>,
}

impl<'a> Space<'a> {
    pub(super) fn new(known: &'a Known<'a>, loose: &'a dyn Loose) -> Self {
        Self { known, loose, placed: Vec::new() }
    }

    /// Takes what is placed by now.
    pub(super) fn placed(&mut self, placed: Vec<Placed>) {
        self.placed = placed;
    }

    /// Fills `buf` from the disk; returns whether the bytes are sure, and nothing if not all of them are placed.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Option<bool> {
        let (mut rest, mut at, mut sure) = (buf, at, true);
        while !rest.is_empty() {
            let end = at.checked_add(rest.len() as u64)?;
            if let Some(range) = holding(self.known.ranges, at) {
                let count = (range.end.min(end) - at) as usize;
                let (now, behind) = rest.split_at_mut(count);
                self.known.disk.read_at(now, at).ok()?;
                (rest, at) = (behind, at + count as u64);
                continue;
            }
            let next = self.placed.partition_point(|placed| placed.disk <= at);
            let placed = &self.placed[next.checked_sub(1)?];
            let held = (placed.disk + placed.len).checked_sub(at).filter(|held| *held > 0)?;
            let count = held.min(rest.len() as u64) as usize;
            let (now, behind) = rest.split_at_mut(count);
            self.loose.read_at(now, placed.file + (at - placed.disk)).ok()?;
            sure &= placed.sure;
            (rest, at) = (behind, at + count as u64);
        }
        Some(sure)
    }

    /// Bytes of the disk, with whether they are sure.
    pub(super) fn bytes(&self, at: u64, len: usize) -> Option<(Vec<u8>, bool)> {
        let mut bytes = vec![0; len];
        let sure = self.read(&mut bytes, at)?;
        Some((bytes, sure))
    }

    /// Bytes of the file, if they are loose.
    pub(super) fn loose_bytes(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let range = holding(self.loose.ranges(), at)?;
        (range.end - at >= len as u64).then_some(())?;
        let mut bytes = vec![0; len];
        self.loose.read_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    /// Shows all loose bytes but zeros, a MiB at a time; returns how many cannot be read.
    pub(super) fn scan(&self, look: &mut dyn FnMut(u64, &[u8]), read: &mut dyn FnMut(u64)) -> u64 {
        let (mut buf, zeros) = (vec![0; MIB as usize], vec![0; MIB as usize]);
        let (mut done, mut unread) = (0, 0);
        for range in self.loose.ranges() {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(MIB);
                let buf = &mut buf[..len as usize];
                match self.loose.read_at(buf, at) {
                    Ok(()) if *buf == zeros[..len as usize] => {}
                    Ok(()) => look(at, buf),
                    Err(_) => unread += len,
                }
                (at, done) = (at + len, done + len);
                read(done);
            }
        }
        unread
    }
}

/// The range that holds a place.
pub(super) fn holding(ranges: &[Range<u64>], at: u64) -> Option<&Range<u64>> {
    let next = ranges.partition_point(|range| range.start <= at);
    ranges.get(next.checked_sub(1)?).filter(|range| at < range.end)
}
