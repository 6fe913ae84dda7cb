//! Plans how the blocks of a file move down so that the file can be cut.
//!
//! Only blocks that lie above the new end move, each once, to space that nothing used before: then a crash finds every
//! block in its old or its new place. So the new end is the lowest one below which there is room for all blocks that
//! reach beyond it. Holes that are too short for a payload block take sector bitmap blocks, or stay.

use std::ops::{ControlFlow, Range};

use super::Core;
use super::block_table::{Claim, Role};
use super::units::{MOST_UNITS, Units, units};
use crate::error::{Error, Result};
use crate::format::bat::{BatEntry, PayloadState};
use crate::types::{BatIndex, FileOffset, KIB, MIB};

/// What a host allocates and takes back of a file at least, in bytes.
const HOST_PAGE: u64 = 4 * KIB;

/// What takes up the space of a file: three bits for each MiB.
#[derive(Debug)]
pub(crate) struct Packing {
    used: Units,
    /// The first units of payload blocks.
    payload: Units,
    /// The units of sector bitmap blocks.
    bitmaps: Units,
    /// Units of a payload block.
    block: u64,
    /// End of what does not move, in units.
    floor: u64,
    /// End of all that is used, in units.
    end: u64,
}

/// The moves that let a file be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Length of the file after the cut, in bytes.
    pub(crate) end: u64,
    /// Number of payload blocks that move.
    pub(crate) payload: u64,
    /// Number of sector bitmap blocks that move.
    pub(crate) bitmaps: u64,
}

/// The space that blocks move to, from the lowest on.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    packing: &'a Packing,
    /// Where the search for space for payload goes on, in units.
    at: u64,
    end: u64,
}

impl Core {
    /// What takes up the space of the file: its structures, and those blocks that `takes` confirms.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the table cannot be read, and those of `takes`.
    pub(crate) fn packing(&self, mut takes: impl FnMut(&Claim) -> Result<bool>) -> Result<Packing> {
        let mut packing = Packing::new(self.layout().block_size());
        for structure in self.claimed_structures() {
            packing.keep(structure.range.start, structure.range.end - structure.range.start);
        }
        self.each_claim(|claim| {
            if takes(&claim)? {
                packing.add(claim.role, claim.entry.offset(), claim.len);
            }
            Ok(())
        })?;
        Ok(packing)
    }

    /// Calls `each` for every block that has space, in table order, until it fails.
    ///
    /// # Errors
    /// As for [`packing`](Self::packing).
    pub(crate) fn each_claim(&self, mut each: impl FnMut(Claim) -> Result<()>) -> Result<()> {
        self.each_entry(|index, entry| self.claim_of(index, entry).map_or(Ok(()), &mut each))
    }

    /// Calls `each` for every entry of the table that is not all zeros, in order, until it fails.
    ///
    /// # Errors
    /// As for [`packing`](Self::packing).
    pub(crate) fn each_entry(
        &self,
        mut each: impl FnMut(BatIndex, BatEntry) -> Result<()>,
    ) -> Result<()> {
        let end = BatIndex(self.layout().entries_reserved());
        let mut failed = Ok(());
        let unread = self.block_table().entries_while(end, |index, entry| {
            failed = each(index, entry);
            if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        failed?;
        unread.map_or(Ok(()), |error| Err(error.in_file(self.name())))
    }

    /// The space that an entry takes up, if any.
    pub(crate) fn claim_of(&self, index: BatIndex, entry: BatEntry) -> Option<Claim> {
        self.block_table().claim(index, entry)
    }

    /// How many bytes of a block are in the file, and would be copied.
    ///
    /// # Errors
    /// If the tables cannot be read.
    pub(crate) fn present_len(&self, claim: &Claim) -> Result<u64> {
        if matches!(claim.role, Role::Bitmap(_)) {
            return Ok(claim.len);
        }
        let mut bytes = 0;
        self.each_present(claim.index, claim.entry, |run| {
            bytes += run.end - run.start;
            Ok(())
        })?;
        Ok(bytes)
    }

    /// How many bytes a block takes up elsewhere, in whole pages of the host.
    ///
    /// # Errors
    /// As for [`present_len`](Self::present_len).
    pub(crate) fn pages_len(&self, claim: &Claim) -> Result<u64> {
        if matches!(claim.role, Role::Bitmap(_)) {
            return Ok(claim.len);
        }
        let (mut bytes, mut counted) = (0, 0);
        self.each_present(claim.index, claim.entry, |run| {
            let end = run.end.next_multiple_of(HOST_PAGE);
            bytes += end - counted.max(run.start / HOST_PAGE * HOST_PAGE).min(end);
            counted = end;
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Calls `each` for the parts of a payload block that are in the file, as offsets within it: all of it, also behind
    /// the end of the disk, or the runs of sectors whose bits are set.
    ///
    /// # Errors
    /// As for [`present_len`](Self::present_len), and those of `each`.
    pub(crate) fn each_present(
        &self,
        index: BatIndex,
        entry: BatEntry,
        mut each: impl FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let layout = self.layout();
        match entry.payload_state() {
            PayloadState::FullyPresent => return each(0..layout.block_size()),
            PayloadState::PartiallyPresent => {}
            _ => return Ok(()),
        }
        let block = layout.block_of_payload(index);
        let bitmap = self.bitmap_at(layout.chunk_of(block))?;
        let first = layout.bit_of(layout.block_start(block));
        let end = first + layout.block_size() / layout.sector_size();
        let mut bit = first;
        while bit < end {
            let (is_set, next) = self.bit_run(bitmap, bit, end)?;
            if is_set {
                let sector = layout.sector_size();
                each((bit - first) * sector..(next - first) * sector)?;
            }
            bit = next;
        }
        Ok(())
    }

    /// Calls `each` for the parts of a payload block's space that hold none of its bytes, as ranges of the file in whole
    /// [pages of the host](HOST_PAGE): sectors that it does not have, and what lies behind the end of the disk.
    ///
    /// # Errors
    /// As for [`present_len`](Self::present_len), and those of `each`.
    pub(crate) fn each_gap(
        &self,
        claim: &Claim,
        mut each: impl FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        if !claim.may_have_gaps() {
            return Ok(());
        }
        let mut gap = |from: u64, to: u64| {
            let start = (claim.start() + from).next_multiple_of(HOST_PAGE);
            let end = (claim.start() + to) / HOST_PAGE * HOST_PAGE;
            if start < end { each(start..end) } else { Ok(()) }
        };
        let mut at = 0;
        self.each_present(claim.index, claim.entry, |run| {
            gap(at, run.start.min(claim.needed))?;
            at = at.max(run.end.min(claim.needed));
            Ok(())
        })?;
        gap(at, claim.len)
    }

    /// How many bytes of this part of the file the host stores data for: all, if it cannot tell.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the host fails.
    pub(crate) fn stored_in(&self, range: Range<u64>) -> Result<u64> {
        let (mut at, mut stored) = (range.start, 0);
        while at < range.end {
            let data = self.bare_storage().next_data(at).map_err(|error| {
                let message = "cannot tell holes from data in the file";
                Error::io("compact.holes", message, error).in_file(self.name()).at(at)
            })?;
            let Some(data) = data.filter(|data| data.start < range.end) else { break };
            let end = data.end.min(range.end);
            stored += end - data.start.max(at);
            at = end.max(at + 1);
        }
        Ok(stored)
    }

    /// The role of an entry.
    pub(crate) fn role_of(&self, index: BatIndex) -> Role {
        self.block_table().role(index)
    }
}

impl Packing {
    /// An empty file, for payload blocks of this size in bytes.
    pub(crate) fn new(block_size: u64) -> Self {
        Self {
            used: Units::default(),
            payload: Units::default(),
            bitmaps: Units::default(),
            block: block_size / MIB,
            floor: 0,
            end: 0,
        }
    }

    /// Adds space that does not move.
    pub(crate) fn keep(&mut self, start: u64, len: u64) {
        let kept = units(start, len);
        self.used.take(kept.clone());
        self.floor = self.floor.max(kept.end.min(MOST_UNITS));
        self.end = self.end.max(self.floor);
    }

    /// Adds a block that may move.
    pub(crate) fn add(&mut self, role: Role, at: FileOffset, len: u64) {
        let taken = units(at.get(), len);
        match role {
            Role::Bitmap(_) => self.bitmaps.put(taken.start),
            _ => self.payload.put(taken.start),
        }
        self.end = self.end.max(taken.end.min(MOST_UNITS));
        self.used.take(taken);
    }

    /// Whether a block was added.
    pub(crate) fn has(&self, claim: &Claim) -> bool {
        let unit = claim.start() / MIB;
        match claim.role {
            Role::Bitmap(_) => self.bitmaps.has(unit),
            _ => self.payload.has(unit),
        }
    }

    /// End of all that is used, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.end * MIB
    }

    /// Bytes below this length of the file that nothing uses.
    pub(crate) fn unused(&self, file_len: u64) -> u64 {
        let end = file_len.div_ceil(MIB);
        (end - self.used.count(0..end)) * MIB
    }

    /// The parts of the file up to this length that nothing uses, in bytes.
    pub(crate) fn holes(&self, file_len: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let in_bytes = move |run: Range<u64>| run.start * MIB..file_len.min(run.end * MIB);
        self.free_runs(0..file_len.div_ceil(MIB)).map(in_bytes)
    }

    /// The lowest end, and the moves that it takes.
    pub(crate) fn target(&self) -> Target {
        let (mut low, mut high) = (self.floor, self.end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.fits(middle) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        let (payload, bitmaps) = self.above(high);
        Target { end: high * MIB, payload, bitmaps }
    }

    /// The space below this length of the file.
    pub(crate) fn room(&self, end: u64) -> Room<'_> {
        Room { packing: self, at: 0, end: end / MIB }
    }

    /// How many payload and sector bitmap blocks reach beyond this end.
    fn above(&self, end: u64) -> (u64, u64) {
        let first = (end + 1).saturating_sub(self.block);
        (self.payload.count(first..self.end), self.bitmaps.count(end..self.end))
    }

    fn fits(&self, end: u64) -> bool {
        let (payload, bitmaps) = self.above(end);
        let (mut blocks, mut rest) = (0, 0);
        for run in self.free_runs(0..end) {
            let len = run.end - run.start;
            blocks += len / self.block;
            rest += len % self.block;
        }
        payload <= blocks && bitmaps <= rest + (blocks - payload) * self.block
    }

    fn free_runs(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let Range { start: mut at, end } = within;
        std::iter::from_fn(move || {
            let start = self.used.next_absent(at..end)?;
            at = self.used.next(start..end).unwrap_or(end);
            Some(start..at)
        })
    }
}

impl Target {
    /// Whether nothing has to move.
    pub(crate) fn is_reached(&self) -> bool {
        self.payload == 0 && self.bitmaps == 0
    }
}

impl Room<'_> {
    /// Space for a payload block.
    pub(crate) fn for_payload(&mut self) -> Option<FileOffset> {
        let (used, block) = (&self.packing.used, self.packing.block);
        loop {
            let start = used.next_absent(self.at..self.end)?;
            let end = used.next(start..self.end.min(start + block)).unwrap_or(start + block);
            if end > self.end {
                return None;
            }
            self.at = end;
            if end - start == block {
                return Some(FileOffset::new(start * MIB));
            }
        }
    }

    /// Space for sector bitmap blocks, once all payload has [its own](Self::for_payload): first what is too short for
    /// payload.
    pub(crate) fn for_bitmaps(self) -> impl Iterator<Item = FileOffset> {
        let Self { packing, at, end } = self;
        let runs = || packing.free_runs(0..end);
        let block = packing.block;
        // Runs are filled by payload from their start.
        let rests = runs().flat_map(move |run| run.end - (run.end - run.start) % block..run.end);
        let left = runs().flat_map(move |run| {
            let whole = run.end - (run.end - run.start) % block;
            run.start.max(at).min(whole)..whole
        });
        rests.chain(left).map(|unit| FileOffset::new(unit * MIB))
    }
}
