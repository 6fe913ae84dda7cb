//! Determines the data that an image has lost, and how its tables must change to make it writable again.
//!
//! A block whose bytes are lost becomes ZERO, never NOT_PRESENT, which would expose the parent's older data. A block
//! that is partly in the file keeps that part, and a block with sectors in the parent keeps those; lost bytes of both
//! read as zeros. If a sector bitmap block is lost, the image and the parent may each hold outdated data for any
//! sector, so the payload blocks that it covers count as completely lost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Core;
use super::block_table::{Claim, Role};
use super::claims::Claims;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, PayloadState};
use crate::types::{BatIndex, BlockIndex, ChunkIndex, FileOffset, MIB};

/// Number of damaged blocks listed in memory.
const MOST_BLOCKS: usize = 1 << 20;

/// A range of a disk that its image has lost, or that may hold another block's data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// The range of the disk, in bytes.
    pub range: Range<u64>,
    /// The kind of loss.
    pub kind: LossKind,
    /// The offset in the file that the block allocation table gives for the block.
    pub at: FileOffset,
}

/// The kind of damage to a range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LossKind {
    /// No part of the block is in the file, or the block overlaps the file's own structures. The bytes will read as
    /// zeros.
    Lost,
    /// The file ends within the block, before these bytes. They will read as zeros, and the rest of the block is
    /// kept.
    Rest,
    /// The sector bitmap that tells the block's own sectors from the parent's is lost. All of the block's sectors
    /// will read as zeros.
    Bits,
    /// Other blocks use the same bytes of the file. Each block gets its own copy and reads as before, which may be
    /// data that was written to another block.
    Shared,
    /// The block is lost, but an unfinished merge has recorded that the parent holds its data. It reads as before.
    Merged,
    /// An unmapped block whose bytes in the file are lost or shared. It reads as zeros, as before.
    Unmapped,
}

impl LossKind {
    /// Whether the data is lost.
    pub fn is_lost(self) -> bool {
        matches!(self, Self::Lost | Self::Rest | Self::Bits)
    }

    /// Its name in the written list.
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

/// The changes that repair an image: first all losses in one step, then all copies in another.
#[derive(Debug, Default)]
pub(crate) struct Mend {
    /// In disk order.
    pub(crate) losses: Vec<Loss>,
    pub(crate) lost: Entries,
    /// The length to which the file grows in the first step.
    pub(crate) len: Option<u64>,
    pub(crate) copies: Vec<Copy>,
    /// Entries that change in the second step, besides those of the copies.
    pub(crate) unmapped: Entries,
}

/// New entries of the block allocation table.
pub(crate) type Entries = BTreeMap<BatIndex, BatEntry>;

/// A block that is copied to an exclusive range of the file.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) index: BatIndex,
    pub(crate) from: FileOffset,
    pub(crate) len: u64,
    pub(crate) entry: BatEntry,
}

impl Mend {
    /// Bytes by which a file of this length grows, for blocks kept at its end and for copies. Not every host stores
    /// unwritten parts as holes.
    pub(crate) fn room(&self, file_len: u64) -> u64 {
        let ends = self.copies.iter().map(|copy| (copy.entry.offset() + copy.len).get());
        ends.chain(self.len).max().unwrap_or_default().saturating_sub(file_len)
    }
}

impl Core {
    /// The changes that make the image writable again, `None` if none are needed.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] if structures are lost, or if table contents cannot be told from block data;
    /// [`ErrorKind::Limit`] if there is more damage than can be listed in memory.
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

    /// A block that overlaps the block allocation table may have been written over it, so no entry can be trusted. If
    /// two region tables differ, another reader may use either.
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

/// The known sector bits of a partially present block.
enum Bits {
    /// One bit for each sector, the lowest of each byte first.
    Known(Vec<u8>),
    /// The sector bitmap block is lost.
    Lost,
    /// The table names no sector bitmap block for them.
    Missing,
}

/// Plans the changes block by block.
struct Planner<'a> {
    image: &'a Core,
    file_len: u64,
    mend: Mend,
    /// End of the last block that stays in place.
    end: u64,
    /// The parent holds the data before this byte of the disk.
    in_parent: u64,
    /// Whether a block that is partly in the file stays in place.
    grows: bool,
    /// Partially present blocks that stay so at a new offset.
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

    /// Classifies all losses.
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

    /// Handles a block with only some of its sectors in the file.
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

    /// Resolves shared space once the blocks that stay are known.
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
                // The bitmap may hold another block's data, so its blocks' sectors are unknown.
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
        // One of the blocks that share space stays in place.
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

    /// Keeps a block in place, and extends the file to hold all of it.
    fn keep(&mut self, claim: &Claim) {
        self.grows = true;
        self.end = self.end.max(claim.end());
    }

    fn list(&mut self, claim: &Claim, range: Range<u64>, kind: LossKind) {
        if range.start < range.end {
            self.mend.losses.push(Loss { range, kind, at: claim.entry.offset() });
        }
    }

    /// The file may end with the disk, within the last block. The rest of that block is then still exclusive to it.
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

    /// Whether at least the start of a block is in the file and overlaps none of its structures.
    fn is_here(&self, claim: &Claim) -> bool {
        claim.start() < self.file_len && self.is_apart(claim)
    }

    fn is_apart(&self, claim: &Claim) -> bool {
        let over = |met: &Range<u64>| met.start < claim.end() && claim.start() < met.end;
        claim.start() >= MIB && !self.image.structures.iter().any(over)
    }

    /// The partially present blocks that a sector bitmap block covers.
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

    /// The sector bits of a block, up to the end of the disk.
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

    /// The range of the disk that a block holds.
    fn range(&self, block: BlockIndex, claim: &Claim) -> Range<u64> {
        let start = self.image.layout.block_start(block).0;
        start..start + claim.needed
    }
}

fn is_payload(claim: &Claim) -> bool {
    matches!(claim.role, Role::Payload(_))
}

/// The claims, given in file order, that overlap others.
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
