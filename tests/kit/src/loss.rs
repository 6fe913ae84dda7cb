//! What an image lost: bytes that its table places where the file has none, or where other blocks are too.
//!
//! Determines for each sector whether it can still be read, what a repair must leave of it, and what the list of
//! losses must contain, all by slow examination of each claim and each sector.

use crate::naive::Layer;
use std::ops::Range;

const MIB: u64 = 1 << 20;

/// Why a range of the disk is on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// None of the block's bytes are in the file.
    Lost,
    /// The block's first bytes are in the file, but not these.
    Rest,
    /// The sector bitmap that separated these bytes from the parent's is lost.
    Bits,
    /// Other blocks share these bytes of the file.
    Shared,
    /// An unmapped block, which reads as zeros before and after.
    Unmapped,
}

/// Everything that an image lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Ranges of the disk, in order.
    pub list: Vec<(Range<u64>, Why)>,
    /// Whether changes must be refused.
    pub refused: bool,
    /// Whether the structures themselves are lost, so that nothing can be repaired.
    pub beyond: bool,
}

/// A partly readable disk: its bytes, and for each unit of 512 bytes whether it is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readable {
    /// Zeros where bytes are lost.
    pub bytes: Vec<u8>,
    /// For each unit of 512 bytes.
    pub lost: Vec<bool>,
}

/// One claim of the table.
#[derive(Clone, Debug)]
struct Claim {
    /// The index of the payload block or chunk.
    number: u64,
    is_bitmap: bool,
    state: u64,
    place: Range<u64>,
    /// How many bytes of it the disk, or a bitmap, needs.
    needed: u64,
}

impl Claim {
    /// The end of the bytes that are needed.
    fn needed_to(&self) -> u64 {
        self.place.start.saturating_add(self.needed)
    }
}

/// The state of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sector {
    Zero,
    Parent,
    /// This many bytes of it, from this offset.
    Here(u64, u64),
    Gone,
}

impl Layer {
    /// Determines what the image lost.
    pub fn losses(&self) -> Losses {
        let claims = self.claims();
        let mut losses = Losses::default();
        let len = self.end();
        losses.beyond = self.places().iter().any(|place| place.end > len);
        let bat = self.bat.0..self.bat.0 + self.bat.1;
        for (i, claim) in claims.iter().enumerate() {
            let others = claims[i + 1..].iter().any(|other| meet(&claim.place, &other.place));
            let over = self.places().iter().any(|place| meet(&claim.place, place));
            let lost = claim.place.start == 0 || claim.needed_to() > len;
            losses.refused |= others || over || lost;
            // No writer ever put a block at the start of the file, where the headers are.
            losses.beyond |= claim.place.start != 0 && meet(&claim.place, &bat);
        }
        losses.refused |= losses.beyond;
        for claim in claims.iter().filter(|claim| !claim.is_bitmap) {
            self.lost_of(claim, &mut losses.list);
        }
        // Blocks that stay in place, and others that share their place.
        let stay: Vec<&Claim> = claims.iter().filter(|claim| self.stays(claim, &claims)).collect();
        for (i, claim) in stay.iter().enumerate() {
            let meets = |others_unmapped: bool| {
                stay.iter().enumerate().any(|(j, other)| {
                    i != j
                        && (others_unmapped || other.state != 3)
                        && meet(&claim.place, &other.place)
                })
            };
            match (claim.is_bitmap, claim.state) {
                (false, 3) if meets(true) => losses.list.push((self.of(claim), Why::Unmapped)),
                (false, 6 | 7) if meets(false) => losses.list.push((self.of(claim), Why::Shared)),
                (true, _) if meets(false) => {
                    let partial = claims.iter().filter(|block| {
                        !block.is_bitmap
                            && block.state == 7
                            && block.number / self.ratio() == claim.number
                            && self.bits_of(block.number).is_some()
                            && !self.becomes_zero(block)
                    });
                    losses.list.extend(partial.map(|block| (self.of(block), Why::Shared)));
                }
                _ => {}
            }
        }
        losses.list.sort_by_key(|(range, why)| (range.start, range.end, *why));
        losses.list.dedup();
        losses
    }

    /// The disk as it reads, over its parent's.
    pub fn readable(&self, parent: Option<&Readable>) -> Readable {
        self.build(parent, false)
    }

    /// The disk as it must read once the losses are accepted.
    pub fn mended(&self, parent: Option<&Readable>) -> Readable {
        let mut mended = self.build(parent, true);
        // Lost bytes read as zeros from then on; what the parent lost stays lost.
        for block in 0..self.blocks() {
            let first = block * self.block_size / self.sector;
            let of = self.sectors(block, true);
            for sector in 0..self.sectors_of(block) {
                if of(sector) != Sector::Parent {
                    let unit = (first + sector) * self.sector / 512;
                    mended.lost[unit as usize..(unit + self.sector / 512) as usize].fill(false);
                }
            }
        }
        mended
    }

    fn build(&self, parent: Option<&Readable>, for_mend: bool) -> Readable {
        let (bytes, lost) = (vec![0; self.size as usize], vec![false; self.size as usize / 512]);
        let mut out = Readable { bytes, lost };
        for block in 0..self.blocks() {
            let of = self.sectors(block, for_mend);
            for sector in 0..self.sectors_of(block) {
                let at = block * self.block_size + sector * self.sector;
                let bytes = at as usize..(at + self.sector) as usize;
                let units = bytes.start / 512..bytes.end / 512;
                match of(sector) {
                    Sector::Zero => {}
                    Sector::Parent => {
                        let Some(parent) = parent.filter(|p| p.bytes.len() >= bytes.end) else {
                            continue;
                        };
                        out.bytes[bytes.clone()].copy_from_slice(&parent.bytes[bytes]);
                        out.lost[units.clone()].copy_from_slice(&parent.lost[units]);
                    }
                    Sector::Here(from, there) => {
                        let part = bytes.start..bytes.start + there as usize;
                        out.bytes[part].copy_from_slice(&self.get(from, there).unwrap());
                        if there < self.sector {
                            out.lost[units].fill(true);
                        }
                    }
                    Sector::Gone => out.lost[units].fill(true),
                }
            }
        }
        out
    }

    /// The state of a block's sectors, now or for a repair.
    fn sectors(&self, block: u64, for_mend: bool) -> impl Fn(u64) -> Sector {
        let (entry, len, size) = (self.entry(block), self.end(), self.sector);
        let place = entry >> 20 << 20;
        let is_usable = self.is_usable(place, self.block_size);
        let bits = match (entry & 7, for_mend) {
            (7, true) => self.bits_of(block),
            (7, false) => self.bits_of(block).filter(|_| self.has_whole_bitmap(block)),
            _ => None,
        };
        let has_parent = self.has_parent;
        move |sector| {
            let from = place.saturating_add(sector * size);
            let here = match is_usable && from < len {
                true => Sector::Here(from, size.min(len - from)),
                false => Sector::Gone,
            };
            match (entry & 7, &bits) {
                (0, _) if has_parent => Sector::Parent,
                (6, _) => here,
                (7, Some(bits)) if has_parent => {
                    let is_here = bits[(sector / 8) as usize] >> (sector % 8) & 1 == 1;
                    if is_here { here } else { Sector::Parent }
                }
                (7, _) => Sector::Gone,
                _ => Sector::Zero,
            }
        }
    }

    /// The ranges of a payload block that are lost.
    fn lost_of(&self, claim: &Claim, list: &mut Vec<(Range<u64>, Why)>) {
        let whole = self.of(claim);
        if claim.state == 3 {
            if !self.is_here(claim) || claim.needed_to() > self.end() {
                list.push((whole, Why::Unmapped));
            }
            return;
        }
        if claim.state == 7 && !self.has_parent {
            let lost = claim.needed_to() > self.end() || !self.is_here(claim);
            let rest = self.end().saturating_sub(claim.place.start);
            match self.is_here(claim) {
                true if lost => list.push((whole.start + rest..whole.end, Why::Rest)),
                false => list.push((whole, Why::Lost)),
                true => {}
            }
            return;
        }
        if claim.state == 7 && self.bits_of(claim.number).is_none() {
            // Without a bitmap entry, nothing was lost with it.
            if self.bitmap_entry(claim.number) & 7 == 6 {
                list.push((whole, Why::Bits));
            } else if !self.is_here(claim) {
                list.push((whole, Why::Lost));
            }
            return;
        }
        let why = if self.is_here(claim) { Why::Rest } else { Why::Lost };
        let mut run: Option<Range<u64>> = None;
        let of = self.sectors(claim.number, true);
        for sector in 0..self.sectors_of(claim.number) {
            let start = whole.start + sector * self.sector;
            let lost_from = match of(sector) {
                Sector::Gone => Some(start),
                Sector::Here(_, there) if there < self.sector => Some(start + there),
                _ => None,
            };
            match (lost_from, &mut run) {
                (Some(from), None) => run = Some(from..start + self.sector),
                (Some(_), Some(run)) => run.end = start + self.sector,
                (None, _) => list.extend(run.take().map(|run| (run, why))),
            }
        }
        list.extend(run.map(|run| (run, why)));
    }

    /// Whether a repair leaves the claim in its place, which other blocks may share.
    fn stays(&self, claim: &Claim, all: &[Claim]) -> bool {
        let is_whole = claim.needed_to() <= self.end();
        if !self.is_here(claim) {
            return false;
        }
        match (claim.is_bitmap, claim.state) {
            (true, _) => {
                is_whole
                    || all.iter().any(|block| {
                        !block.is_bitmap
                            && block.state == 7
                            && block.number / self.ratio() == claim.number
                            && self.bits_of(block.number).is_some()
                            && !self.becomes_zero(block)
                    })
            }
            (false, 3) => is_whole,
            (false, _) => !self.becomes_zero(claim),
        }
    }

    /// Whether a repair leaves nothing of a block but zeros.
    fn becomes_zero(&self, claim: &Claim) -> bool {
        if claim.state == 7 && self.has_parent {
            let Some(_) = self.bits_of(claim.number) else {
                return self.bitmap_entry(claim.number) & 7 == 6 || !self.is_here(claim);
            };
            let of = self.sectors(claim.number, true);
            let mut sectors = 0..self.sectors_of(claim.number);
            let any_of_parent = sectors.any(|sector| of(sector) == Sector::Parent);
            return !self.is_here(claim) && !any_of_parent;
        }
        !self.is_here(claim)
    }

    /// Whether the claim starts within the file, and overlaps only blocks.
    fn is_here(&self, claim: &Claim) -> bool {
        self.is_usable(claim.place.start, claim.place.end - claim.place.start)
            && claim.place.start < self.end()
    }

    fn is_usable(&self, at: u64, len: u64) -> bool {
        at >= MIB && !self.places().iter().any(|place| meet(place, &(at..at.saturating_add(len))))
    }

    /// The bits of a block, if the file has all those that the disk needs.
    fn bits_of(&self, block: u64) -> Option<Vec<u8>> {
        let entry = self.bitmap_entry(block);
        let place = entry >> 20 << 20;
        let per_block = self.block_size / self.sector;
        let first = (block % self.ratio()) * per_block;
        let bytes = self.sectors_of(block).div_ceil(8);
        let is_there = entry & 7 == 6
            && self.is_usable(place, MIB)
            && place.saturating_add(first / 8 + bytes) <= self.end();
        is_there.then(|| self.get(place + first / 8, bytes).unwrap())
    }

    fn has_whole_bitmap(&self, block: u64) -> bool {
        (self.bitmap_entry(block) >> 20 << 20).saturating_add(MIB) <= self.end()
    }

    fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for block in 0..self.blocks() {
            let entry = self.entry(block);
            let (state, at) = (entry & 7, entry >> 20 << 20);
            if matches!(state, 6 | 7) || (state == 3 && at != 0) {
                let place = at..at.saturating_add(self.block_size);
                let needed = self.sectors_of(block) * self.sector;
                claims.push(Claim { number: block, is_bitmap: false, state, place, needed });
            }
        }
        let chunks = if self.has_parent { self.blocks().div_ceil(self.ratio()) } else { 0 };
        for chunk in 0..chunks {
            let entry = self.bitmap_entry(chunk * self.ratio());
            let at = entry >> 20 << 20;
            if entry & 7 == 6 {
                let place = at..at.saturating_add(MIB);
                claims.push(Claim { number: chunk, is_bitmap: true, state: 6, place, needed: MIB });
            }
        }
        claims
    }

    /// The end of the file, once its log is replayed.
    fn end(&self) -> u64 {
        self.len().max(self.last_file_offset.unwrap_or(0))
    }

    /// The header section, the log and the regions.
    pub fn places(&self) -> Vec<Range<u64>> {
        let others = self.structures.iter().map(|(at, len)| *at..at.saturating_add(*len));
        std::iter::once(0..MIB).chain(others).collect()
    }

    fn of(&self, claim: &Claim) -> Range<u64> {
        let start = claim.number * self.block_size;
        start..(start + self.block_size).min(self.size)
    }

    fn entry(&self, block: u64) -> u64 {
        self.bat_entry(block + block / self.ratio()).unwrap_or(0)
    }

    /// The entry of the bitmap that covers a block.
    fn bitmap_entry(&self, block: u64) -> u64 {
        let chunk = block / self.ratio();
        self.bat_entry(chunk * (self.ratio() + 1) + self.ratio()).unwrap_or(0)
    }

    fn ratio(&self) -> u64 {
        (self.sector << 23) / self.block_size
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block_size)
    }

    /// How many sectors of a block lie within the disk.
    fn sectors_of(&self, block: u64) -> u64 {
        self.block_size.min(self.size - block * self.block_size) / self.sector
    }
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
