//! The block allocation table: states, places, and who lies over whom.
//!
//! The table is read piece by piece and zeros are skipped. Of the blocks only the MiB units that they
//! take up are remembered, a bit each.

use std::ops::Range;

use super::bits::{self, Totals};
use super::findings::{Findings, Severity};
use crate::error::{Error, ErrorKind};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, BlockLayout, PayloadState};
use crate::format::region::RegionEntry;
use crate::image::{BlockTable, Claim, MOST_UNITS, Role, Units, check_bat_length, units};
use crate::ops::is_zero;
use crate::storage::Storage;
use crate::types::{BatIndex, BlockIndex, ChunkIndex, FileOffset, MIB};

/// Also those that stand behind the last one that the disk needs.
const ALL: BatIndex = BatIndex(u64::MAX);
/// Less than this in data that nothing names is no sign of a lost table.
const LEAST_LOST: u64 = 64 * MIB;
/// Units that are looked into for such data, and those of a fixed disk.
const MOST_SAMPLES: u64 = 64;
const MOST_SAMPLES_OF_FIXED: u64 = 256;
/// Bytes of a sample.
const SAMPLE: usize = 4096;
/// Collisions of which the other party is looked for.
const MOST_COLLISIONS: usize = 1000;

/// A table and what is needed to judge it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) region: &'a RegionEntry,
    pub(super) layout: BlockLayout,
    pub(super) has_parent: bool,
    pub(super) is_fixed: bool,
    /// Whether the image is being merged into its parent, which gives its space up bit by bit.
    pub(super) is_merging: bool,
    pub(super) file_len: u64,
    pub(super) structures: &'a [(Range<u64>, String)],
}

/// What the table comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) allocated: u64,
    pub(super) leaked: Option<u64>,
}

/// Checks the table, and the sector bitmaps that it places.
pub(super) fn check(table: &Table<'_>, findings: &mut Findings) -> Outcome {
    if let Err(error) = check_bat_length(table.region, &table.layout) {
        findings.error(error);
    }
    let mut walk = Walk::new(table, findings);
    let read = table.blocks().entries(ALL, |index, entry| walk.entry(index, entry));
    walk.finish_chunk();
    walk.tell_collisions();
    walk.tell_rest();
    let leaked = if read.is_none() { walk.tell_leaks() } else { None };
    let allocated = walk.allocated;
    if let Some(error) = read {
        findings.error(error);
    }
    Outcome { allocated, leaked }
}

impl<'a> Table<'a> {
    fn blocks(&self) -> BlockTable<'a> {
        let Self { storage, region, layout, has_parent, file_len, .. } = *self;
        BlockTable { storage, region, layout, has_parent, file_len }
    }

    fn name_of(&self, index: BatIndex) -> String {
        self.blocks().role(index).name(index)
    }
}

/// A block that lies where another does.
#[derive(Clone, Copy, Debug)]
struct Collision {
    start: u64,
    end: u64,
    index: BatIndex,
    /// Whether both start at the same place.
    is_same: bool,
    other: Option<BatIndex>,
}

/// A chunk while its entries go by.
#[derive(Debug, Default)]
struct Chunk {
    number: u64,
    /// Its partially present blocks, numbered within the chunk, and where they lie.
    partial: Vec<(u32, FileOffset)>,
    /// Its sector bitmap's entry.
    entry: Option<BatEntry>,
    /// Where its sector bitmap lies, if that is a place of its own.
    bitmap: Option<FileOffset>,
}

/// Payload entries that say something.
#[derive(Debug, Default)]
struct Named {
    /// Those that are not all zeros.
    entries: u64,
    /// Those of blocks that were given up, and whose old bytes may still lie somewhere.
    given_up: u64,
}

struct Walk<'a, 'f> {
    table: &'a Table<'a>,
    findings: &'f mut Findings,
    /// Units that structures other than blocks take up, and those that anything does.
    structural: Units,
    used: Units,
    /// Units where a block starts, and those that entries name without a meaning.
    starts: Units,
    held: Units,
    collisions: Vec<Collision>,
    more_collisions: [u64; 2],
    is_too_far: bool,
    chunk: Chunk,
    named: Named,
    totals: Totals,
    buffer: Vec<u8>,
    allocated: u64,
    fully_present: u64,
    slack: (u64, Option<BatIndex>),
}

impl<'a, 'f> Walk<'a, 'f> {
    fn new(table: &'a Table<'a>, findings: &'f mut Findings) -> Self {
        let (mut structural, mut used) = (Units::default(), Units::default());
        for (range, _) in table.structures {
            let end = range.end.min(table.file_len).div_ceil(MIB).min(MOST_UNITS);
            for unit in range.start / MIB..end {
                structural.put(unit);
                used.put(unit);
            }
        }
        Self {
            table,
            findings,
            structural,
            used,
            starts: Units::default(),
            held: Units::default(),
            collisions: Vec::new(),
            more_collisions: [0; 2],
            is_too_far: false,
            chunk: Chunk::default(),
            named: Named::default(),
            totals: Totals::default(),
            buffer: Vec::new(),
            allocated: 0,
            fully_present: 0,
            slack: (0, None),
        }
    }

    fn entry(&mut self, index: BatIndex, entry: BatEntry) {
        let role = self.table.blocks().role(index);
        let chunk = index.0 / (self.table.layout.chunk_ratio() + 1);
        if role == Role::Slack {
            self.slack.0 += 1;
            self.slack.1.get_or_insert(index);
            return;
        }
        if chunk != self.chunk.number {
            self.finish_chunk();
            self.chunk.number = chunk;
        }
        if entry.reserved_bits() != 0 {
            self.damaged(Severity::Error, "bat.reserved-bits", "2.5.1", index, |error| {
                error
                    .with_found(format_args!("{:#018x}", entry.0))
                    .with_expected("zeros in bits 3 to 19")
            });
        }
        match role {
            Role::Payload(block) => {
                let is_given_up = matches!(entry.state_bits(), 1..=3) && entry.offset().get() == 0;
                self.named.entries += 1;
                self.named.given_up += u64::from(is_given_up);
                self.payload(index, block, entry);
            }
            _ => self.bitmap(index, entry),
        }
    }

    fn payload(&mut self, index: BatIndex, block: BlockIndex, entry: BatEntry) {
        let layout = &self.table.layout;
        let has_parent = self.table.has_parent;
        let in_disk = layout.block_size().min(layout.size() - layout.block_start(block).0);
        match entry.payload_state() {
            PayloadState::NotPresent | PayloadState::Undefined | PayloadState::Zero => {
                self.idle(index, Role::Payload(block), entry);
            }
            PayloadState::Unmapped => {
                if entry.offset().get() != 0 {
                    self.claim(index, Role::Payload(block), entry, in_disk);
                }
            }
            PayloadState::FullyPresent => {
                self.fully_present += 1;
                self.allocated += 1;
                self.claim(index, Role::Payload(block), entry, in_disk);
            }
            PayloadState::PartiallyPresent => {
                if has_parent {
                    let number = (block.0 % layout.chunk_ratio()) as u32;
                    self.chunk.partial.push((number, entry.offset()));
                } else {
                    self.bad_state(index, entry, "a partially present block without a parent");
                }
                self.allocated += 1;
                self.claim(index, Role::Payload(block), entry, in_disk);
            }
            PayloadState::DraftUnmapped | PayloadState::Reserved => {
                self.bad_state(index, entry, "a block in a reserved state");
                self.hold(Role::Payload(block), entry);
            }
        }
    }

    fn bitmap(&mut self, index: BatIndex, entry: BatEntry) {
        let role = Role::Bitmap(ChunkIndex(self.chunk.number));
        self.chunk.entry = Some(entry);
        match entry.state_bits() {
            0 => self.idle(index, role, entry),
            // Nobody looks at it, so that it does not matter where it says to lie either.
            state if !self.table.has_parent => {
                self.damaged(Severity::Warning, "bat.bitmap-unexpected", "2.5.1.2", index, |e| {
                    e.with_found(format_args!("state {state}"))
                        .with_expected("state 0, without a parent")
                });
                self.hold(role, entry);
            }
            6 => {
                if self.claim(index, role, entry, BITMAP_BLOCK_LEN) {
                    self.chunk.bitmap = Some(entry.offset());
                }
            }
            state => {
                self.damaged(Severity::Error, "bat.bitmap-state", "2.5.1.2", index, |error| {
                    error.with_found(format_args!("state {state}")).with_expected("0 or 6")
                });
                self.hold(role, entry);
            }
        }
    }

    /// An entry whose state gives its place no meaning.
    fn idle(&mut self, index: BatIndex, role: Role, entry: BatEntry) {
        if entry.offset().get() == 0 {
            return;
        }
        self.damaged(Severity::Warning, "bat.idle-place", "2.5.1.1", index, |error| {
            error
                .with_found(format_args!("state {} at {}", entry.state_bits(), entry.offset()))
                .with_expected("no place in this state")
        });
        self.hold(role, entry);
    }

    /// Remembers a place that is named without a meaning: it is no space to complain of.
    fn hold(&mut self, role: Role, entry: BatEntry) {
        let start = entry.offset().get();
        if start < MIB || start >= self.table.file_len {
            return;
        }
        for unit in units(start, self.table.blocks().len_of(role)) {
            self.held.put(unit);
        }
    }

    /// Takes a place for a block of which `in_disk` bytes are the disk's. Returns whether it is whole
    /// and nobody else's.
    fn claim(&mut self, index: BatIndex, role: Role, entry: BatEntry, in_disk: u64) -> bool {
        let table = self.table;
        let (start, len) = (entry.offset().get(), table.blocks().len_of(role));
        let is_bitmap = matches!(role, Role::Bitmap(_));
        let end = start.saturating_add(len);
        if start < MIB || start >= table.file_len || (is_bitmap && end > table.file_len) {
            let (code, section) = match is_bitmap {
                true => ("bat.bitmap-place", "2.5.1.2"),
                false => ("bat.payload-place", "2.5.1.1"),
            };
            self.damaged(Severity::Error, code, section, index, |error| {
                error
                    .with_found(entry.offset())
                    .with_expected(format_args!("1 MiB up to {:#x}", table.file_len))
            });
            return false;
        }
        if end > table.file_len {
            let is_lost = start.saturating_add(in_disk) > table.file_len;
            let severity = if is_lost { Severity::Error } else { Severity::Warning };
            self.damaged(severity, "bat.truncated", "2.5.1", index, |error| {
                error
                    .with_found(format_args!("a file of {} bytes", table.file_len))
                    .with_expected(format_args!("at least {end}"))
            });
        }
        let taken = units(start, len);
        if taken.clone().any(|unit| self.structural.has(unit)) {
            self.damaged(Severity::Error, "bat.overlap", "2.5.1", index, |error| {
                let meets = |met: &Range<u64>| met.start < end && start < met.end;
                let met = table.structures.iter().find(|(met, _)| meets(met));
                let expected = met.map_or_else(String::new, |(met, name)| {
                    format!("nothing of {name}, {:#x} to {:#x}", met.start, met.end)
                });
                let name = table.name_of(index);
                error
                    .with_found(format_args!("{name} at {start:#x} to {end:#x}"))
                    .with_expected(expected)
            });
            return false;
        }
        if taken.end > MOST_UNITS {
            self.is_too_far = true;
            return true;
        }
        let is_free = !taken.clone().any(|unit| self.used.has(unit));
        if !is_free {
            self.collide(index, taken.clone());
        }
        self.starts.put(taken.start);
        taken.for_each(|unit| self.used.put(unit));
        is_free
    }

    fn collide(&mut self, index: BatIndex, taken: Range<u64>) {
        let is_same = self.starts.has(taken.start);
        if self.collisions.len() >= MOST_COLLISIONS {
            self.more_collisions[usize::from(is_same)] += 1;
            return;
        }
        let (start, end) = (taken.start, taken.end);
        self.collisions.push(Collision { start, end, index, is_same, other: None });
    }

    /// Judges a chunk whose entries have all gone by.
    fn finish_chunk(&mut self) {
        let Chunk { number, partial, entry, bitmap } = std::mem::take(&mut self.chunk);
        let table = self.table;
        let chunk = ChunkIndex(number);
        if !partial.is_empty() && entry.is_none_or(|entry| entry.state_bits() != 6) {
            let index = table.layout.bitmap_index(chunk);
            self.damaged(Severity::Error, "bat.bitmap-missing", "2.5.1.2", index, |error| {
                let state = entry.map_or(0, BatEntry::state_bits);
                error
                    .with_found(format_args!(
                        "state {state} with {} partially present blocks",
                        partial.len()
                    ))
                    .with_expected("state 6")
            });
        }
        if let Some(at) = bitmap {
            let looked = bits::look(
                table.storage,
                at,
                &table.layout,
                chunk,
                &partial,
                &mut self.buffer,
                &mut self.totals,
            );
            if let Err(error) = looked {
                self.findings.error(error);
            }
        }
    }

    /// Finds out whom those that collided collided with, by a second look at the table.
    fn tell_collisions(&mut self) {
        let table = self.table;
        let mut met = std::mem::take(&mut self.collisions);
        if met.is_empty() {
            return;
        }
        met.sort_by_key(|collision| (collision.start, collision.index));
        let longest = table.layout.block_size() / MIB;
        table.blocks().claims(|Claim { index, entry, len, .. }| {
            let taken = units(entry.offset().get(), len);
            let near = taken.start.saturating_sub(longest);
            let first = met.partition_point(|collision| collision.start < near);
            for collision in &mut met[first..] {
                if collision.start >= taken.end {
                    break;
                }
                if collision.other.is_none()
                    && index < collision.index
                    && collision.end > taken.start
                    && (!collision.is_same || collision.start == taken.start)
                {
                    collision.other = Some(index);
                }
            }
        });
        met.sort_by_key(|collision| collision.index);
        for Collision { start, end, index, is_same, other } in met {
            let code = if is_same { "bat.duplicate" } else { "bat.overlap" };
            self.damaged(Severity::Error, code, "2.5.1", index, |error| {
                let other = other.map_or_else(|| "another block".into(), |i| table.name_of(i));
                error
                    .with_found(format_args!(
                        "{} at {:#x} to {:#x}",
                        table.name_of(index),
                        start * MIB,
                        end * MIB
                    ))
                    .with_expected(format_args!("a place of its own: {other} has it"))
            });
        }
        let [overlaps, duplicates] = self.more_collisions;
        self.findings.skip(Severity::Error, "bat.overlap", overlaps);
        self.findings.skip(Severity::Error, "bat.duplicate", duplicates);
    }

    /// What is told once for the whole table.
    fn tell_rest(&mut self) {
        let table = self.table;
        let blocks = table.layout.blocks();
        if table.is_fixed && self.fully_present < blocks {
            let message = "a fixed disk of which not every block is fully present";
            self.findings.warning(
                Error::damaged("bat.fixed", "2.5.1.1", table.region.offset.get(), message)
                    .with_found(format_args!("{} of {blocks} blocks", self.fully_present))
                    .with_expected("all"),
            );
        }
        if let (count, Some(first)) = self.slack {
            let message = "entries behind the last one that the disk needs";
            self.findings.info(
                Error::new(ErrorKind::Damaged, "bat.slack", message)
                    .with_section("2.5")
                    .at(table.blocks().place_of(first))
                    .with_found(format_args!("{count} entries that are not zero"))
                    .with_expected("zeros"),
            );
        }
        if self.is_too_far {
            let message = "blocks too far out in the file to be held against each other";
            self.findings.warning(
                Error::damaged("bat.too-far", "2.5.1", table.region.offset.get(), message)
                    .with_found(format_args!("a file of {} bytes", table.file_len))
                    .with_expected(format_args!("at most {}", MOST_UNITS * MIB)),
            );
        }
        self.totals.tell(self.findings);
    }

    /// Counts the bytes of the file that nothing names, and weighs whether a table that lost entries should.
    fn tell_leaks(&mut self) -> Option<u64> {
        if self.is_too_far {
            return None;
        }
        let end = self.table.file_len.div_ceil(MIB);
        let (free, first) = self.used.neither(&self.held, end);
        let is_free = |unit| !self.used.has(unit) && !self.held.has(unit);
        // The last unit may be less than a whole one.
        let missing = end * MIB - self.table.file_len;
        let cut = if end > 0 && is_free(end - 1) { missing } else { 0 };
        let leaked = free * MIB - cut;
        let Some(first) = first.filter(|_| free > 0) else { return Some(leaked) };
        self.weigh(leaked, free, first);
        let message = "space in the file that nothing names";
        self.findings.info(
            Error::new(ErrorKind::Damaged, "space.leaked", message)
                .at(first * MIB)
                .with_found(format_args!("{leaked} bytes in all, the first of them here"))
                .with_expected("none"),
        );
        Some(leaked)
    }

    /// Says that the table lost entries where blocks that are not present and data that nothing names make
    /// that likely. Data behind blocks that were given up is no sign of it.
    fn weigh(&mut self, leaked: u64, free: u64, first: u64) {
        let table = self.table;
        let (blocks, block_size) = (table.layout.blocks(), table.layout.block_size());
        let absent = blocks - self.named.entries.min(blocks);
        // A fixed disk gives no block up, so that one of them is enough.
        let (is_suspect, samples, severity) = if table.is_fixed {
            (absent > 0 && leaked >= block_size, MOST_SAMPLES_OF_FIXED, Severity::Error)
        } else {
            let unexplained = leaked.saturating_sub(self.named.given_up.saturating_mul(block_size));
            let weight = unexplained.min(absent.saturating_mul(block_size));
            let is_suspect = weight > LEAST_LOST.max(table.file_len / 16) && !table.is_merging;
            (is_suspect, MOST_SAMPLES, Severity::Warning)
        };
        if !is_suspect || !self.holds_data(free, samples) {
            return;
        }
        let message = "data that no block has, beside blocks that are not present: the block allocation \
                       table is likely to have lost entries";
        self.findings.add(
            severity,
            Error::damaged("bat.lost", "2.5", table.region.offset.get(), message)
                .with_found(format_args!(
                    "{leaked} bytes that nothing names, the first at {:#x}, and {absent} blocks without a place",
                    first * MIB
                ))
                .with_expected("every block of data named by an entry"),
        );
    }

    /// Whether any of some samples, evenly spread over the units that nothing names, is more than zeros.
    fn holds_data(&self, free: u64, samples: u64) -> bool {
        let table = self.table;
        let mut bytes = [0; SAMPLE];
        let mut is_data = |at: u64| {
            let end = table.file_len.min(at + SAMPLE as u64);
            let bytes = &mut bytes[..end.saturating_sub(at) as usize];
            table.storage.read_exact_at(bytes, at).is_ok() && !is_zero(bytes)
        };
        let end = table.file_len.div_ceil(MIB);
        let step = free.div_ceil(samples).max(1);
        let mut units = self.used.every_neither(&self.held, end, step);
        units.any(|unit| is_data(unit * MIB) || is_data(unit * MIB + MIB / 2))
    }

    fn bad_state(&mut self, index: BatIndex, entry: BatEntry, message: &'static str) {
        let expected = if self.table.has_parent { "0 to 3, 6 or 7" } else { "0 to 3 or 6" };
        let at = self.table.blocks().place_of(index);
        self.findings.add_with(Severity::Error, "bat.state", || {
            Error::damaged("bat.state", "2.5.1.1", at, message)
                .with_found(format_args!("state {}", entry.state_bits()))
                .with_expected(expected)
        });
    }

    fn damaged(
        &mut self,
        severity: Severity,
        code: &'static str,
        section: &'static str,
        index: BatIndex,
        values: impl FnOnce(Error) -> Error,
    ) {
        let table = self.table;
        self.findings.add_with(severity, code, || {
            let message = format!("{}: {}", table.name_of(index), what(code));
            values(Error::damaged(code, section, table.blocks().place_of(index), message))
        });
    }
}

/// What is the case with the entry.
fn what(code: &str) -> &'static str {
    match code {
        "bat.reserved-bits" => "reserved bits of its entry are set",
        "bat.bitmap-unexpected" => "there is one in an image without a parent",
        "bat.bitmap-state" => "a reserved state",
        "bat.idle-place" => "a place that its state gives no meaning",
        "bat.bitmap-place" | "bat.payload-place" => "it does not lie within the file",
        "bat.truncated" => "the file ends before it does",
        "bat.duplicate" => "it lies where another does",
        "bat.overlap" => "it lies over something else",
        _ => "partially present blocks need it, and it is not there",
    }
}
