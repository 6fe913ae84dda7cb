//! What an image lost, and what has to become of its tables so that it can be written again.
//!
//! A block whose bytes are gone becomes ZERO, never NOT_PRESENT, which would show what a parent had before. One of
//! which the file has a part keeps that, and one whose other sectors are the parent's keeps those: both read zeros
//! where bytes were lost. Of a sector bitmap block that is lost nobody knows any more which sectors are here and which
//! the parent's: either may be old bytes, so that the blocks which it spoke of count as lost whole.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Core;
use super::block_table::{Claim, Role};
use super::claims::Claims;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, PayloadState};
use crate::types::{BatIndex, BlockIndex, ChunkIndex, FileOffset, MIB};

/// Damaged blocks of which the list is kept in memory.
const MOST_BLOCKS: usize = 1 << 20;

/// A part of a disk that its image has no longer, or that is not sure to be its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Which bytes of the disk.
    pub range: Range<u64>,
    /// What became of them.
    pub kind: LossKind,
    /// Where the block allocation table placed the block that they are of.
    pub at: FileOffset,
}

/// What became of a part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LossKind {
    /// Nothing of the block is in the file, or it lies over the file's own structures. The bytes read as zeros
    /// from now on.
    Lost,
    /// The file ends within the block, before these bytes. They read as zeros from now on, and what is there stays.
    Rest,
    /// The sector bitmap is lost that told which of the block's sectors are here and which are the parent's. All of
    /// them read as zeros from now on.
    Bits,
    /// The table has the same bytes of the file for other blocks too. Each block gets a copy of them, and reads
    /// as before: what it reads may be what was written to another.
    Shared,
    /// The block is gone, and the parent has it: from a merge that is under way, which came past it and noted that.
    /// It reads as before.
    Merged,
    /// An unmapped block whose place is lost, or also another's. It reads as zeros before and after.
    Unmapped,
}

impl LossKind {
    /// Whether the bytes are gone.
    pub fn is_lost(self) -> bool {
        matches!(self, Self::Lost | Self::Rest | Self::Bits)
    }

    /// Its name in the list that is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Rest => "rest-lost",
            Self::Bits => "bits-lost",
            Self::Shared => "shared",
            Self::Merged => "merged",
            Self::Unmapped => "unmapped",
        }
    }
}

/// What makes an image whole again: first what is lost, at once, then the copies, at once.
#[derive(Debug, Default)]
pub(crate) struct Mend {
    /// In the order of the disk.
    pub(crate) losses: Vec<Loss>,
    pub(crate) lost: Entries,
    /// To what length the file grows together with those.
    pub(crate) len: Option<u64>,
    pub(crate) copies: Vec<Copy>,
    /// Beside those of the copies.
    pub(crate) unmapped: Entries,
}

/// New entries of the block allocation table.
pub(crate) type Entries = BTreeMap<BatIndex, BatEntry>;

/// A block that gets a place of its own.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) index: BatIndex,
    pub(crate) from: FileOffset,
    pub(crate) len: u64,
    pub(crate) entry: BatEntry,
}

impl Mend {
    /// Bytes by which the file of this length grows: for blocks that stay where it ends, and for copies. Not every
    /// host has holes for what is not written there.
    pub(crate) fn room(&self, file_len: u64) -> u64 {
        let ends = self.copies.iter().map(|copy| (copy.entry.offset() + copy.len).get());
        ends.chain(self.len).max().unwrap_or_default().saturating_sub(file_len)
    }
}

impl Core {
    /// What is to be done so that the image can be changed again, `None` where nothing is.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when the structures themselves are lost, or what the table says cannot be told from
    /// the bytes of a block; [`ErrorKind::Limit`] when more is damaged than is kept in memory.
    pub(crate) fn plan_mend(&self) -> Result<Option<Mend>> {
        let claims = self.claims(MOST_BLOCKS)?;
        let Err(refusal) = claims.check(self) else { return Ok(None) };
        if claims.lost.is_empty() && claims.shared.is_empty() || !claims.lost_structures.is_empty()
        {
            return Err(refusal);
        }
        let count = claims.unlisted.iter().sum::<u64>();
        if count > 0 {
            return Err(self.too_much(MOST_BLOCKS as u64 + count));
        }
        self.refuse_over_tables(&claims)?;
        let mut planner = Planner::new(self);
        planner.look(&claims)?;
        Ok(Some(planner.finish(&claims)?))
    }

    /// What lies over the block allocation table may have been written there, and then the table says anything;
    /// and which of two region tables another reader goes by nobody knows.
    fn refuse_over_tables(&self, claims: &Claims) -> Result<()> {
        let bat = self.bat.offset.get()..self.bat.end();
        let firm = |range: &Range<u64>| *range != bat && self.structures.contains(range);
        for claim in &claims.shared {
            let over = |range: &Range<u64>| range.start < claim.end() && claim.start() < range.end;
            let met = claims.structures.iter().find(|met| over(&met.range) && !firm(&met.range));
            let Some(met) = met else { continue };
            let message = format!(
                "{} lies over {}, and nobody can tell what either holds",
                claim.role.name(claim.index),
                met.name
            );
            let at = self.bat_entry_at(claim.index).get();
            return Err(Error::damaged("loss.structure", "2.5.1", at, message)
                .in_file(self.name())
                .with_found(format_args!("bytes {:#x} to {:#x}", claim.start(), claim.end()))
                .with_expected(format_args!(
                    "nothing of {:#x} to {:#x}",
                    met.range.start, met.range.end
                )));
        }
        Ok(())
    }

    fn too_much(&self, found: u64) -> Error {
        let message = "more blocks are damaged than are kept in memory";
        Error::new(ErrorKind::Limit, "limit.losses", message)
            .in_file(self.name())
            .with_found(format_args!("{found} or more"))
            .with_expected(format_args!("at most {MOST_BLOCKS}"))
    }
}

/// What is known of the sectors of a partially present block.
enum Bits {
    /// A bit for each, the lowest of each byte first.
    Known(Vec<u8>),
    /// They are lost.
    Lost,
    /// The table never had a sector bitmap block for them.
    Missing,
}

/// Decides block by block.
struct Planner<'a> {
    image: &'a Core,
    file_len: u64,
    mend: Mend,
    /// Where the furthest of what stays ends.
    end: u64,
    /// What the parent has, up to this byte of the disk.
    in_parent: u64,
    /// Whether something stays that the file has a part of.
    grows: bool,
    /// Partially present blocks that stay so in a new place.
    moved: Vec<BatIndex>,
    /// Chunks whose sector bitmap block is damaged, and whether a block still needs it.
    bitmaps: BTreeMap<u64, (Claim, bool)>,
}

impl<'a> Planner<'a> {
    fn new(image: &'a Core) -> Self {
        let file_len = image.file_len();
        Self {
            image,
            file_len,
            mend: Mend::default(),
            end: file_len.next_multiple_of(MIB),
            in_parent: image.in_parent(),
            grows: false,
            moved: Vec::new(),
            bitmaps: BTreeMap::new(),
        }
    }

    /// Judges all that is lost.
    fn look(&mut self, claims: &Claims) -> Result<()> {
        let all = claims.lost.iter().chain(&claims.shared);
        let is_damaged = |claim: &&Claim| claim.is_lost(self.file_len) || !self.is_apart(claim);
        let damaged: Vec<Claim> = all.filter(is_damaged).copied().collect();
        let mut blocks: BTreeMap<u64, Claim> = BTreeMap::new();
        for claim in damaged {
            match claim.role {
                Role::Payload(block) => drop(blocks.insert(block.0, claim)),
                Role::Bitmap(chunk) => drop(self.bitmaps.insert(chunk.0, (claim, false))),
                Role::Slack => {}
            }
        }
        let chunks: Vec<u64> = self.bitmaps.keys().copied().collect();
        for chunk in chunks {
            for (block, claim) in self.partial_blocks(ChunkIndex(chunk))? {
                blocks.insert(block.0, claim);
                if blocks.len() > MOST_BLOCKS {
                    return Err(self.image.too_much(blocks.len() as u64));
                }
            }
        }
        for (block, claim) in blocks {
            self.judge(BlockIndex(block), &claim)?;
        }
        for (claim, is_needed) in std::mem::take(&mut self.bitmaps).into_values() {
            if is_needed && self.is_here(&claim) {
                self.keep(&claim);
            } else {
                self.mend.lost.insert(claim.index, BatEntry(0));
            }
        }
        self.mind_the_last_block()?;
        for index in std::mem::take(&mut self.moved) {
            let entry = BatEntry::new(7, self.allocate(self.image.layout.block_size()));
            self.mend.lost.insert(index, entry);
        }
        if self.grows {
            self.mend.len = Some(self.end);
        }
        Ok(())
    }

    fn judge(&mut self, block: BlockIndex, claim: &Claim) -> Result<()> {
        let whole = self.range(block, claim);
        let is_partial = claim.entry.payload_state() == PayloadState::PartiallyPresent;
        if claim.entry.payload_state() == PayloadState::Unmapped {
            self.lose(claim, whole, LossKind::Unmapped);
            return Ok(());
        }
        if whole.end <= self.in_parent {
            self.mend.lost.insert(claim.index, BatEntry(0));
            self.list(claim, whole, LossKind::Merged);
            return Ok(());
        }
        if is_partial && self.image.has_parent() {
            match self.bits(block)? {
                Bits::Known(bits) => {
                    self.judge_sectors(block, claim, &bits);
                    return Ok(());
                }
                Bits::Lost => {
                    self.lose(claim, whole, LossKind::Bits);
                    return Ok(());
                }
                Bits::Missing if self.is_here(claim) => {
                    self.keep(claim);
                    return Ok(());
                }
                Bits::Missing => {}
            }
        }
        if self.is_here(claim) {
            let there = claim.in_file(self.file_len);
            self.list(claim, whole.start + there..whole.end, LossKind::Rest);
            self.keep(claim);
        } else {
            self.lose(claim, whole, LossKind::Lost);
        }
        Ok(())
    }

    /// A block of which only some sectors were in the file.
    fn judge_sectors(&mut self, block: BlockIndex, claim: &Claim, bits: &[u8]) {
        let whole = self.range(block, claim);
        let sector = self.image.layout.sector_size();
        let is_here = self.is_here(claim);
        let there = if is_here { whole.start + claim.in_file(self.file_len) } else { whole.start };
        let kind = if is_here { LossKind::Rest } else { LossKind::Lost };
        let is_set = |n: u64| bits[(n / 8) as usize] >> (n % 8) & 1 == 1;
        let sectors = (whole.end - whole.start) / sector;
        let mut run: Option<Range<u64>> = None;
        let mut any_of_parent = false;
        for n in 0..sectors {
            let (start, end) = (whole.start + n * sector, whole.start + (n + 1) * sector);
            any_of_parent |= !is_set(n);
            if is_set(n) && end > there {
                let first = run.take().map_or(start.max(there), |run| run.start);
                run = Some(first..end);
            } else if let Some(run) = run.take() {
                self.list(claim, run, kind);
            }
        }
        if let Some(run) = run {
            self.list(claim, run, kind);
        }
        if !is_here && !any_of_parent {
            self.mend.lost.insert(claim.index, BatEntry::new(2, FileOffset::new(0)));
            return;
        }
        let chunk = self.image.layout.chunk_of(block);
        if let Some((_, is_needed)) = self.bitmaps.get_mut(&chunk.0) {
            *is_needed = true;
        }
        if is_here {
            self.keep(claim);
        } else {
            self.grows = true;
            self.moved.push(claim.index);
        }
    }

    /// Finds out who shares a place, once it is known what stays.
    fn finish(mut self, claims: &Claims) -> Result<Mend> {
        let stays =
            |claim: &&Claim| !self.mend.lost.contains_key(&claim.index) && self.is_here(claim);
        let mut stay: Vec<Claim> = claims.shared.iter().filter(stays).copied().collect();
        stay.sort_by_key(|claim| (claim.start(), claim.index));
        let is_unmapped = |claim: &Claim| {
            is_payload(claim) && claim.entry.payload_state() == PayloadState::Unmapped
        };
        let unmapped = sharing(&stay);
        for claim in unmapped.into_iter().filter(is_unmapped) {
            self.mend.unmapped.insert(claim.index, BatEntry::new(2, FileOffset::new(0)));
            if let Role::Payload(block) = claim.role {
                let range = self.range(block, &claim);
                self.list(&claim, range, LossKind::Unmapped);
            }
        }
        stay.retain(|claim| !is_unmapped(claim));
        let mut doubtful = BTreeSet::new();
        for claim in sharing(&stay) {
            match claim.role {
                Role::Payload(block) => self.doubt(block, &claim, &mut doubtful),
                // What says where its blocks' sectors are may be another's bytes.
                Role::Bitmap(chunk) => {
                    for (block, partial) in self.partial_blocks(chunk)? {
                        let is_zero = self.mend.lost.get(&partial.index);
                        let is_zero = is_zero.is_some_and(|entry| entry.state_bits() != 7);
                        if !is_zero && matches!(self.bits(block)?, Bits::Known(_)) {
                            self.doubt(block, &partial, &mut doubtful);
                        }
                    }
                }
                Role::Slack => {}
            }
        }
        // Of those that share a place one stays there.
        let mut taken = 0;
        for claim in stay {
            if claim.start() >= taken {
                taken = claim.end();
                continue;
            }
            let to = self.allocate(claim.len);
            self.mend.copies.push(Copy {
                index: claim.index,
                from: claim.entry.offset(),
                len: claim.len,
                entry: BatEntry::new(claim.entry.state_bits(), to),
            });
        }
        self.mend.losses.sort_by_key(|loss| (loss.range.start, loss.range.end, loss.kind));
        Ok(self.mend)
    }

    fn doubt(&mut self, block: BlockIndex, claim: &Claim, doubtful: &mut BTreeSet<u64>) {
        if doubtful.insert(block.0) {
            let range = self.range(block, claim);
            self.list(claim, range, LossKind::Shared);
        }
    }

    fn lose(&mut self, claim: &Claim, range: Range<u64>, kind: LossKind) {
        self.mend.lost.insert(claim.index, BatEntry::new(2, FileOffset::new(0)));
        self.list(claim, range, kind);
    }

    /// Leaves a block where it is, and has the file hold all of it.
    fn keep(&mut self, claim: &Claim) {
        self.grows = true;
        self.end = self.end.max(claim.end());
    }

    fn list(&mut self, claim: &Claim, range: Range<u64>, kind: LossKind) {
        if range.start < range.end {
            self.mend.losses.push(Loss { range, kind, at: claim.entry.offset() });
        }
    }

    /// The file may end where the disk does, within the last block, which is then still nobody else's.
    fn mind_the_last_block(&mut self) -> Result<()> {
        let layout = &self.image.layout;
        let Some(last) = layout.blocks().checked_sub(1) else { return Ok(()) };
        let index = layout.payload_index(BlockIndex(last));
        let entry = self.image.bat_entry(index)?;
        let claim = self.image.block_table().claim(index, entry);
        if let Some(claim) = claim.filter(|claim| !claim.is_lost(self.file_len)) {
            self.end = self.end.max(claim.end());
        }
        Ok(())
    }

    fn allocate(&mut self, len: u64) -> FileOffset {
        let at = FileOffset::new(self.end);
        self.end += len;
        at
    }

    /// Whether the file has the first bytes of a block at least, and none of its structures there.
    fn is_here(&self, claim: &Claim) -> bool {
        claim.start() < self.file_len && self.is_apart(claim)
    }

    fn is_apart(&self, claim: &Claim) -> bool {
        let over = |met: &Range<u64>| met.start < claim.end() && claim.start() < met.end;
        claim.start() >= MIB && !self.image.structures.iter().any(over)
    }

    /// The partially present blocks that a sector bitmap block speaks of.
    fn partial_blocks(&self, chunk: ChunkIndex) -> Result<Vec<(BlockIndex, Claim)>> {
        let (image, layout) = (self.image, &self.image.layout);
        let first = chunk.0 * layout.chunk_ratio();
        let mut partial = Vec::new();
        for block in (first..layout.blocks().min(first + layout.chunk_ratio())).map(BlockIndex) {
            let index = layout.payload_index(block);
            let entry = image.bat_entry(index)?;
            if entry.payload_state() == PayloadState::PartiallyPresent {
                partial.extend(image.block_table().claim(index, entry).map(|claim| (block, claim)));
            }
        }
        Ok(partial)
    }

    /// The bits of those sectors of a block that the disk has.
    fn bits(&self, block: BlockIndex) -> Result<Bits> {
        let (image, layout) = (self.image, &self.image.layout);
        let index = layout.bitmap_index(layout.chunk_of(block));
        let entry = image.bat_entry(index)?;
        let Some(claim) = image.block_table().claim(index, entry) else { return Ok(Bits::Missing) };
        let start = layout.block_start(block);
        let sectors = layout.block_size().min(layout.size() - start.0) / layout.sector_size();
        let (first, len) = (layout.bit_of(start) / 8, sectors.div_ceil(8));
        debug_assert!(first + len <= BITMAP_BLOCK_LEN, "a chunk has one bitmap");
        let at = claim.entry.offset() + first;
        if !self.is_apart(&claim) || (at + len).get() > self.file_len {
            return Ok(Bits::Lost);
        }
        let mut bits = vec![0; len as usize];
        image.storage.read_exact_at(&mut bits, at.get()).map_err(|error| {
            Error::io("table.read", "cannot read a sector bitmap block", error)
                .in_file(image.name())
                .at(at.get())
        })?;
        Ok(Bits::Known(bits))
    }

    /// What of the disk a block holds.
    fn range(&self, block: BlockIndex, claim: &Claim) -> Range<u64> {
        let start = self.image.layout.block_start(block).0;
        start..start + claim.needed
    }
}

fn is_payload(claim: &Claim) -> bool {
    matches!(claim.role, Role::Payload(_))
}

/// Those of the claims, which come in the order of their places, that others lie over in part at least.
fn sharing(claims: &[Claim]) -> Vec<Claim> {
    let mut before = 0;
    let mut found = Vec::new();
    for (i, claim) in claims.iter().enumerate() {
        let next = claims.get(i + 1).map_or(u64::MAX, Claim::start);
        if claim.start() < before || next < claim.end() {
            found.push(*claim);
        }
        before = before.max(claim.end());
    }
    found
}
