//! One file: what its blocks are, and how sure that is.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::anatomy::{Anatomy, fill};
use super::grade::Grade;
use super::shape::Shape;
use crate::disk::LayerId;
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, ENTRY_LEN, PayloadState};
use crate::format::locator::ParentLocator;
use crate::image::Units;
use crate::storage::Storage;
use crate::types::{BatIndex, BlockIndex, ChunkIndex, DiskOffset, KIB, MIB};

/// The unit in which tables are read and remembered.
const PAGE: u64 = 4 * KIB;
/// How many pages are remembered.
const MOST_PAGES: usize = 8;

pub(super) type Text = Cow<'static, str>;

/// One file of a chain.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) id: LayerId,
    pub(super) anatomy: Anatomy,
    pub(super) shape: Shape,
    pub(super) locator: Option<ParentLocator>,
    /// Units that something takes up.
    pub(super) used: Units,
    /// Units of headers, log, regions and the table.
    pub(super) structural: Units,
    /// Units that more than one entry claims.
    pub(super) shared: Units,
    /// What stands in for entries, by index.
    pub(super) found: BTreeMap<u64, Found>,
    /// The indexes of those, by their places in the file.
    pub(super) by_place: BTreeMap<u64, u64>,
    /// Units with data that no entry claims.
    pub(super) loose: Vec<Range<u64>>,
    /// What entries without a block may be.
    pub(super) empties: Empties,
    pages: Mutex<Vec<(u64, Arc<[u8]>)>>,
    /// Whether blocks have data below sectors of bitmaps, by chunk and sector; the last ones asked for.
    hidden: Mutex<Vec<((u64, u64), bool)>>,
}

/// What an entry without a block means, in view of the data that no entry claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Empties {
    /// All data of the file is claimed.
    Sure,
    /// A few of them may have lost their block.
    Guessed,
    /// Half of them or more may have.
    Lost,
}

/// An entry that does not come from its place.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) entry: BatEntry,
    pub(super) grade: Grade,
    pub(super) evidence: Text,
    /// Whether something else spoke for another block here.
    pub(super) is_contested: bool,
}

/// What an entry says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// No block, no place.
    Empty,
    /// No block, but a place that it had.
    Held(u64),
    /// Zeros.
    Zero,
    /// A block at this place.
    Block(u64),
    /// No entry of this file.
    Bad(&'static str),
}

/// What is known of a block, or of a part of it.
#[derive(Clone, Debug)]
struct Known {
    what: What,
    grade: Grade,
    evidence: Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Full(u64),
    Partial(u64),
    Zero,
    Parent,
    Lost,
}

/// Where bytes of the disk come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    File(u64),
    Zero,
    Parent,
    Lost,
}

/// Bytes that come from one place and are equally sure.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) len: u64,
    pub(super) from: From,
    pub(super) grade: Grade,
    pub(super) evidence: Text,
}

impl Layer {
    /// A file whose table has not been looked at.
    pub(super) fn new(anatomy: Anatomy, shape: Shape, locator: Option<ParentLocator>) -> Self {
        Self {
            id: LayerId::unique(),
            anatomy,
            shape,
            locator,
            used: Units::default(),
            structural: Units::default(),
            shared: Units::default(),
            found: BTreeMap::new(),
            by_place: BTreeMap::new(),
            loose: Vec::new(),
            empties: Empties::Sure,
            pages: Mutex::default(),
            hidden: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.anatomy.careful.name()
    }

    pub(super) fn size(&self) -> u64 {
        self.shape.layout.size()
    }

    /// How many bytes of a block the disk has.
    pub(super) fn in_disk(&self, block: BlockIndex) -> u64 {
        let layout = &self.shape.layout;
        layout.block_size().min(layout.size() - layout.block_start(block).0)
    }

    /// The length of what an entry names.
    pub(super) fn len_of(&self, index: BatIndex) -> u64 {
        match self.shape.layout.is_bitmap_index(index) {
            true => BITMAP_BLOCK_LEN,
            false => self.in_disk(self.shape.layout.block_of_payload(index)),
        }
    }

    /// What an entry says, whatever others say.
    pub(super) fn judge(&self, index: BatIndex, entry: BatEntry) -> Judged {
        let at = entry.offset().get();
        if entry.0 == 0 {
            return Judged::Empty;
        }
        if entry.reserved_bits() != 0 {
            return Judged::Bad("the entry has bits that no writer sets");
        }
        let block = || {
            let end = at.saturating_add(self.len_of(index));
            if at < MIB || at >= self.anatomy.file_len {
                Judged::Bad("the entry names a place that the file does not have")
            } else if self
                .structural
                .has_any(at / MIB..end.min(self.anatomy.file_len).div_ceil(MIB))
            {
                Judged::Bad("the entry names a place where structures of the file lie")
            } else {
                Judged::Block(at)
            }
        };
        if self.shape.layout.is_bitmap_index(index) {
            return match entry.state_bits() {
                0 => Judged::Empty,
                6 => block(),
                _ => Judged::Bad("the entry of a sector bitmap has no state of one"),
            };
        }
        match entry.payload_state() {
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => block(),
            PayloadState::NotPresent => Judged::Held(at),
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => Judged::Zero,
            PayloadState::DraftUnmapped => Judged::Zero,
            PayloadState::Reserved => Judged::Bad("the entry has a state that means nothing"),
        }
    }

    /// The entry as the file has it; `None` if it is not there or cannot be read.
    pub(super) fn raw(&self, index: BatIndex) -> Option<BatEntry> {
        let table = self.shape.table.as_ref()?;
        let at = table.start.checked_add(index.0.checked_mul(ENTRY_LEN)?)?;
        if at >= table.end || at + ENTRY_LEN > self.anatomy.file_len {
            return None;
        }
        let page = self.page(at / PAGE * PAGE)?;
        let within = (at % PAGE) as usize;
        Some(BatEntry::read(&page[within..within + ENTRY_LEN as usize]))
    }

    /// Whether an entry, judged as it is, leaves open what its block is.
    pub(super) fn is_open(&self, index: BatIndex) -> bool {
        match self.raw(index).map(|entry| self.judge(index, entry)) {
            None | Some(Judged::Bad(_)) => true,
            Some(Judged::Empty | Judged::Held(_)) => self.empties != Empties::Sure,
            Some(Judged::Zero | Judged::Block(_)) => false,
        }
    }

    /// The block that is surely at a place.
    pub(super) fn sure_place(&self, block: BlockIndex) -> Option<u64> {
        let known = self.known(block);
        match known.what {
            What::Full(at) | What::Partial(at) if known.grade == Grade::Sure => Some(at),
            _ => None,
        }
    }

    /// The first of the `len` bytes at `at`, which lie within the disk, up to where something changes.
    pub(super) fn run(&self, at: u64, len: u64) -> Run {
        let layout = &self.shape.layout;
        let block = layout.block_of(DiskOffset(at));
        let within = layout.within_block(DiskOffset(at));
        let known = self.known(block);
        let in_block = len.min(layout.block_size() - within);
        let mut run = match known.what {
            What::Full(start) => self.data(start + within, in_block, known),
            What::Partial(start) => self.mixed(at, start + within, in_block, known),
            What::Zero => Run::new(in_block, From::Zero, known),
            What::Parent => Run::new(in_block, From::Parent, known),
            What::Lost => Run::new(in_block, From::Lost, known),
        };
        if let Some(doubt) = &self.anatomy.doubt
            && run.grade == Grade::Sure
        {
            run.grade = Grade::Guessed;
            run.evidence = doubt.clone().into();
        }
        run.len = self.pass_hole(&run, at, len).unwrap_or(run.len);
        run
    }

    /// The bytes of the file from here on, as far as they are there.
    fn data(&self, place: u64, len: u64, known: Known) -> Run {
        match self.anatomy.file_len.saturating_sub(place) {
            0 => Run {
                len,
                from: From::Lost,
                grade: Grade::Lost,
                evidence: "the block lies behind the end of the file".into(),
            },
            there => Run::new(len.min(there), From::File(place), known),
        }
    }

    /// A part of a block whose sectors are the parent's or its own.
    fn mixed(&self, at: u64, place: u64, len: u64, known: Known) -> Run {
        let layout = &self.shape.layout;
        let chunk = layout.chunk_of(layout.block_of(DiskOffset(at)));
        let index = layout.bitmap_index(chunk);
        let (bits_at, grade) = match self.found.get(&index.0) {
            Some(found) => (Some(found.entry.offset().get()), found.grade),
            None => match self.raw(index).map(|entry| self.judge(index, entry)) {
                Some(Judged::Block(at)) if self.is_shared(index, at) => (Some(at), Grade::Guessed),
                Some(Judged::Block(at)) => (Some(at), Grade::Sure),
                _ => (None, Grade::Lost),
            },
        };
        let sector = layout.sector_size();
        let bit = layout.bit_of(DiskOffset(at));
        let page = bits_at.and_then(|bits_at| self.page((bits_at + bit / 8) / PAGE * PAGE));
        let Some(page) = page else { return self.mixed_by_content(place, len) };
        let is_set = |bit: u64| page[(bit / 8 % PAGE) as usize] >> (bit % 8) & 1 == 1;
        let own = is_set(bit);
        let to_sector_end = sector - at % sector;
        let last = (bit / (8 * PAGE) + 1) * 8 * PAGE;
        let more = (bit + 1..last)
            .take_while(|bit| is_set(*bit) == own)
            .take(len.div_ceil(sector) as usize)
            .count() as u64;
        let len = len.min(to_sector_end + more * sector);
        let mut known = known;
        if grade > known.grade {
            known.grade = grade;
            known.evidence = "the place of the sector bitmap is a guess".into();
        }
        if own {
            return self.data(place, len, known);
        }
        let mut run = Run::new(len, From::Parent, known);
        if run.grade == Grade::Sure && self.hides_data(chunk, bit, bit + more, &page) {
            run.grade = Grade::Guessed;
            run.evidence = "a part of the sector bitmap is zeros, and its blocks hold data".into();
        }
        run
    }

    /// Whether the sector bitmap has any bit of this block.
    pub(super) fn has_bits(&self, block: BlockIndex) -> bool {
        let layout = &self.shape.layout;
        let index = layout.bitmap_index(layout.chunk_of(block));
        let entry = match self.found.get(&index.0) {
            Some(found) => Some(found.entry),
            None => self.raw(index),
        };
        let Some(Judged::Block(at)) = entry.map(|entry| self.judge(index, entry)) else {
            return false;
        };
        let first = layout.bit_of(layout.block_start(block)) / 8;
        let mut bits = vec![0; (layout.block_size() / layout.sector_size() / 8) as usize];
        self.anatomy.read(&mut bits, at + first);
        bits.iter().any(|byte| *byte != 0)
    }

    /// Sectors that hold data are taken for the block's.
    fn mixed_by_content(&self, place: u64, len: u64) -> Run {
        let sector = self.shape.layout.sector_size();
        let len = len.min(16 * PAGE - place % sector);
        let mut bytes = vec![0; len as usize];
        self.anatomy.read(&mut bytes, place);
        let first = (sector - place % sector).min(len) as usize;
        let is_own = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
        let own = is_own(&bytes[..first]);
        let more = bytes[first..].chunks(sector as usize).take_while(|part| is_own(part) == own);
        let len = first + more.map(<[u8]>::len).sum::<usize>();
        let known = Known {
            what: What::Lost,
            grade: Grade::Guessed,
            evidence: "the sector bitmap is lost: sectors with data are taken for the block's"
                .into(),
        };
        match own {
            true => self.data(place, len as u64, known),
            false => Run::new(len as u64, From::Parent, known),
        }
    }

    /// Whether a whole sector of the bitmap around these cleared bits is zeros although a block that it tells of has data there:
    /// the bits may have been lost.
    fn hides_data(&self, chunk: ChunkIndex, first: u64, last: u64, page: &[u8]) -> bool {
        const BITS: u64 = 8 * 512;
        let zero = |sector: u64| {
            let at = (sector % (PAGE / 512) * 512) as usize;
            page[at..at + 512].iter().all(|byte| *byte == 0)
        };
        let page_of = |sector: u64| sector / (PAGE / 512);
        let (from, to) = (first / BITS, last / BITS);
        let near = from.saturating_sub(1)..=to + 1;
        let mut suspects = near.filter(|sector| page_of(*sector) == page_of(from) && zero(*sector));
        suspects.any(|sector| {
            let mut hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
            let known = hidden.iter().find(|(at, _)| *at == (chunk.0, sector));
            if let Some((_, has)) = known {
                return *has;
            }
            let has = self.has_data_below(chunk, sector * BITS, BITS);
            if hidden.len() == MOST_PAGES {
                hidden.remove(0);
            }
            hidden.push(((chunk.0, sector), has));
            has
        })
    }

    /// Whether partially present blocks have data where these bits are.
    fn has_data_below(&self, chunk: ChunkIndex, first: u64, count: u64) -> bool {
        let layout = &self.shape.layout;
        let base = chunk.0 * layout.chunk_size();
        let (mut at, end) = (
            base + first * layout.sector_size(),
            (base + (first + count) * layout.sector_size()).min(layout.size()),
        );
        let mut buf = vec![0; (64 * KIB) as usize];
        while at < end {
            let within = layout.within_block(DiskOffset(at));
            let next = end.min(at - within + layout.block_size());
            if let What::Partial(start) = self.known(layout.block_of(DiskOffset(at))).what {
                let (mut place, stop) = (start + within, start + within + (next - at));
                while place < stop {
                    let len = (stop - place).min(buf.len() as u64) as usize;
                    self.anatomy.read(&mut buf[..len], place);
                    if buf[..len].iter().any(|byte| *byte != 0) {
                        return true;
                    }
                    place += len as u64;
                }
            }
            at = next;
        }
        false
    }

    fn known(&self, block: BlockIndex) -> Known {
        let index = self.shape.layout.payload_index(block);
        let known = |what, grade, evidence: Text| Known { what, grade, evidence };
        if let Some(found) = self.found.get(&index.0) {
            let at = found.entry.offset().get();
            let what = match found.entry.state_bits() {
                7 if self.shape.has_parent => What::Partial(at),
                _ => What::Full(at),
            };
            return known(what, found.grade, found.evidence.clone());
        }
        let Some(entry) = self.raw(index) else {
            let why = match &self.shape.table {
                None => "the block allocation table is lost",
                Some(_) => "the entry of the block cannot be read",
            };
            return known(What::Lost, Grade::Lost, why.into());
        };
        let absent = if self.shape.has_parent { What::Parent } else { What::Zero };
        match self.judge(index, entry) {
            Judged::Empty => match self.empties {
                Empties::Sure => known(absent, Grade::Sure, "the entry names no block".into()),
                Empties::Guessed => {
                    let why = "the entry names no block, but the file has data that no entry names";
                    known(absent, Grade::Guessed, why.into())
                }
                Empties::Lost => {
                    let why = "the entry is zeros, as lost ones are, and the file has data that no entry names";
                    known(What::Lost, Grade::Lost, why.into())
                }
            },
            Judged::Held(_) => {
                known(absent, Grade::Guessed, "the entry names a place, but no block".into())
            }
            Judged::Zero => {
                let grade = match entry.payload_state() {
                    PayloadState::DraftUnmapped => Grade::Guessed,
                    _ => Grade::Sure,
                };
                known(What::Zero, grade, "the entry says zeros".into())
            }
            Judged::Bad(why) => known(What::Lost, Grade::Lost, why.into()),
            Judged::Block(at) => {
                let what = match entry.state_bits() {
                    7 if self.shape.has_parent => What::Partial(at),
                    _ => What::Full(at),
                };
                if self.is_shared(index, at) {
                    let why = "another entry names the same bytes of the file";
                    known(what, Grade::Guessed, why.into())
                } else if entry.state_bits() == 7 && !self.shape.has_parent {
                    let why = "the entry says that sectors are a parent's, and there is none";
                    known(what, Grade::Guessed, why.into())
                } else if self.may_be_cut(index) {
                    let why = "the entry is the last before ones that may be lost";
                    known(what, Grade::Guessed, why.into())
                } else {
                    known(what, Grade::Sure, "the entry names the block".into())
                }
            }
        }
    }

    /// Whether another entry names any byte of this one's.
    fn is_shared(&self, index: BatIndex, at: u64) -> bool {
        let end = at.saturating_add(self.len_of(index)).min(self.anatomy.file_len);
        self.shared.has_any(at / MIB..end.div_ceil(MIB))
    }

    /// Whether the end of this entry may be lost with those behind it.
    fn may_be_cut(&self, index: BatIndex) -> bool {
        self.empties != Empties::Sure
            && self.raw(BatIndex(index.0 + 1)).is_none_or(|next| next.0 == 0)
            && index.0 + 1 < self.shape.layout.entries_needed()
    }

    /// The length of a run without blocks, up to the first entry that the host stores data for.
    fn pass_hole(&self, run: &Run, at: u64, len: u64) -> Option<u64> {
        let layout = &self.shape.layout;
        let next = at + run.len;
        let is_absent = matches!(run.from, From::Zero | From::Parent | From::Lost);
        if run.len == len || !is_absent || layout.within_block(DiskOffset(next)) != 0 {
            return None;
        }
        let first = layout.payload_index(layout.block_of(DiskOffset(next)));
        let own = layout.payload_index(layout.block_of(DiskOffset(at)));
        if self.found.contains_key(&own.0) {
            return None;
        }
        let there = self
            .shape
            .table
            .as_ref()
            .map(|table| (table.start, table.end.min(self.anatomy.file_len)));
        let mut end = match there {
            // No entry is there, nor any behind it.
            Some((start, end)) if start + own.0 * ENTRY_LEN >= end => layout.entries_needed(),
            None => layout.entries_needed(),
            Some((start, end)) => {
                let place = start + first.0 * ENTRY_LEN;
                let is_hole = place < end
                    && self.raw(own) == Some(BatEntry(0))
                    && self.raw(first) == Some(BatEntry(0));
                if !is_hole {
                    return None;
                }
                let data = self.anatomy.storage.next_data(place).ok()?;
                let data = data.map_or(end, |data| data.start).min(end);
                // Only whole pages are worth it.
                data.saturating_sub(start) / PAGE * PAGE / ENTRY_LEN
            }
        };
        if let Some((found, _)) = self.found.range(first.0..).next() {
            end = end.min(*found);
        }
        if end <= first.0 {
            return None;
        }
        let mut index = BatIndex(end.min(layout.entries_needed()));
        if layout.is_bitmap_index(index) {
            index.0 += 1;
        }
        let there = layout.block_start(layout.block_of_payload(index)).0;
        Some(there.saturating_sub(at).clamp(run.len, len))
    }

    /// A page of a table, `None` if the host cannot read it or the file ends before it.
    fn page(&self, at: u64) -> Option<Arc<[u8]>> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = pages.iter().position(|(place, _)| *place == at) {
            let page = pages.remove(i);
            pages.push(page.clone());
            return Some(page.1);
        }
        if at >= self.anatomy.file_len {
            return None;
        }
        let mut bytes = vec![0; PAGE as usize];
        fill(self.anatomy.storage.as_ref(), &mut bytes, at);
        let is_logged = self
            .anatomy
            .overlay
            .as_ref()
            .is_some_and(|log| log.first_within(at..at + PAGE).is_some());
        if !is_logged && self.anatomy.careful.first_unread(at..at + PAGE).is_some() {
            return None;
        }
        let page: Arc<[u8]> = bytes.into();
        if pages.len() == MOST_PAGES {
            pages.remove(0);
        }
        pages.push((at, Arc::clone(&page)));
        Some(page)
    }
}

impl Run {
    fn new(len: u64, from: From, known: Known) -> Self {
        Self { len, from, grade: known.grade, evidence: known.evidence }
    }
}
