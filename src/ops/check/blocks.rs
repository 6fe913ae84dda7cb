//! Checks the block allocation table: states, file offsets and overlaps.
//!
//! The table is read piece by piece, skipping zeros. Of each block only the 1 MiB units that it takes up are
//! remembered, in one bit each.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::bits::{self, Totals};
use super::findings::Findings;
use super::severity::Severity;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, BlockLayout, PayloadState};
use crate::format::region::RegionEntry;
use crate::image::{BlockTable, Claim, MOST_UNITS, Role, Units, check_bat_length, units};
use crate::ops::is_zero;
use crate::storage::Storage;
use crate::types::{BatIndex, BlockIndex, ChunkIndex, FileOffset, MIB, counted};

/// Includes the entries beyond those that the disk needs.
const ALL: BatIndex = BatIndex(u64::MAX);
/// Unreferenced data below this size is not evidence of lost entries.
const LEAST_LOST: u64 = 64 * MIB;
/// How many unreferenced units are sampled for data.
const MOST_SAMPLES: u64 = 64;
/// The same for a fixed disk.
const MOST_SAMPLES_OF_FIXED: u64 = 256;
/// Size of a sample in bytes.
const SAMPLE: usize = 4096;
/// How many overlaps are examined for the other block.
const MOST_COLLISIONS: usize = 1000;

/// A table and the facts needed to check it.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) region: RegionEntry,
    pub(super) layout: BlockLayout,
    pub(super) has_parent: bool,
    pub(super) is_fixed: bool,
    /// Whether the image is being merged into its parent, and frees its space step by step.
    pub(super) is_merging: bool,
    pub(super) file_len: u64,
    pub(super) structures: Vec<(Range<u64>, String)>,
}

/// The space that the table accounts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) allocated: u64,
    pub(super) leaked: Option<u64>,
}

/// Checks the table and the sector bitmaps that it refers to. Calls `on` with the bytes of the disk whose entries are
/// checked.
///
/// # Errors
/// Those of `on`.
pub(super) fn check(
    table: &Table,
    findings: &mut Findings,
    on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Outcome> {
    if let Err(error) = check_bat_length(&table.region, &table.layout) {
        findings.error(error);
    }
    let mut walk = TableCheck::new(table, findings);
    let mut stopped = None;
    let read =
        table.blocks().entries_while(ALL, |index, entry| match walk.entry(index, entry, on) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                stopped = Some(error);
                ControlFlow::Break(())
            }
        });
    if let Some(error) = stopped {
        return Err(error);
    }
    walk.finish_chunk();
    walk.report_collisions();
    walk.report_totals();
    let leaked = if read.is_none() { walk.report_leaks() } else { None };
    let allocated = walk.allocated;
    if let Some(error) = read {
        findings.error(error);
    }
    Ok(Outcome { allocated, leaked })
}

impl Table {
    /// Size of the disk in bytes.
    pub(super) fn disk_size(&self) -> u64 {
        self.layout.size()
    }

    fn blocks(&self) -> BlockTable<'_> {
        let Self { storage, region, layout, has_parent, file_len, .. } = self;
        let (layout, has_parent, file_len) = (*layout, *has_parent, *file_len);
        BlockTable {
            storage: storage.as_ref(),
            region,
            layout,
            has_parent,
            file_len,
            changed: None,
        }
    }

    fn name_of(&self, index: BatIndex) -> String {
        self.blocks().role(index).name(index)
    }
}

/// A block that overlaps another.
#[derive(Clone, Copy, Debug)]
struct Collision {
    start: u64,
    end: u64,
    index: BatIndex,
    /// Whether both start at the same offset.
    is_same: bool,
    other: Option<BatIndex>,
}

/// The chunk whose entries are being read.
#[derive(Debug, Default)]
struct Chunk {
    number: u64,
    /// Its partially present blocks by index in the chunk, with their file offsets.
    partial: Vec<(u32, FileOffset)>,
    /// The entry of its sector bitmap.
    entry: Option<BatEntry>,
    /// The file offset of its sector bitmap, if it overlaps nothing.
    bitmap: Option<FileOffset>,
}

/// Counts of payload entries in use.
#[derive(Debug, Default)]
struct Named {
    /// Entries that are not all zeros.
    entries: u64,
    /// Entries of discarded blocks, whose old bytes may remain in the file.
    given_up: u64,
}

struct TableCheck<'a, 'f> {
    table: &'a Table,
    findings: &'f mut Findings,
    /// Units used by structures other than blocks.
    structural: Units,
    /// Units used by anything.
    used: Units,
    /// Units at which a block starts.
    starts: Units,
    /// Units named by entries whose state does not use the offset.
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

impl<'a, 'f> TableCheck<'a, 'f> {
    fn new(table: &'a Table, findings: &'f mut Findings) -> Self {
        let (mut structural, mut used) = (Units::default(), Units::default());
        for (range, _) in &table.structures {
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

    fn entry(
        &mut self,
        index: BatIndex,
        entry: BatEntry,
        on: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let role = self.table.blocks().role(index);
        let chunk = index.0 / (self.table.layout.chunk_ratio() + 1);
        if role == Role::Slack {
            self.slack.0 += 1;
            self.slack.1.get_or_insert(index);
            return Ok(());
        }
        if chunk != self.chunk.number {
            self.finish_chunk();
            self.chunk.number = chunk;
            let layout = &self.table.layout;
            on(layout.block_start(BlockIndex(chunk * layout.chunk_ratio())).0.min(layout.size()))?;
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
        Ok(())
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
            // Readers ignore the entry, including its offset.
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

    /// Checks an entry whose state does not use its offset.
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

    /// Records space that is named without being used, so that it is not reported as leaked.
    fn hold(&mut self, role: Role, entry: BatEntry) {
        let start = entry.offset().get();
        if start < MIB || start >= self.table.file_len {
            return;
        }
        for unit in units(start, self.table.blocks().len_of(role)) {
            self.held.put(unit);
        }
    }

    /// Records the space of a block, of which `in_disk` bytes belong to the disk. Returns whether it lies in the file
    /// and overlaps nothing.
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

    /// Checks a chunk after its last entry.
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
                        "state {state} with {}",
                        counted(
                            partial.len() as u64,
                            "partially present block",
                            "partially present blocks"
                        )
                    ))
                    .with_expected("state 6")
            });
        }
        if let Some(at) = bitmap {
            let looked = bits::check(
                table.storage.as_ref(),
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

    /// Finds the other block of each overlap by reading the table again, and reports the overlaps.
    fn report_collisions(&mut self) {
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

    /// Reports what concerns the table as a whole.
    fn report_totals(&mut self) {
        let table = self.table;
        let blocks = table.layout.blocks();
        if table.is_fixed && self.fully_present < blocks {
            let message = "a fixed disk with blocks that are not fully present";
            self.findings.warning(
                Error::damaged("bat.fixed", "2.5.1.1", table.region.offset.get(), message)
                    .with_found(format_args!(
                        "{} of {}",
                        self.fully_present,
                        counted(blocks, "block", "blocks")
                    ))
                    .with_expected("all"),
            );
        }
        if let (count, Some(first)) = self.slack {
            let message = "entries in use beyond those that the disk needs";
            self.findings.info(
                Error::new(ErrorKind::Damaged, "bat.slack", message)
                    .with_section("2.5")
                    .at(table.blocks().place_of(first))
                    .with_found(counted(
                        count,
                        "entry that is not zero",
                        "entries that are not zero",
                    ))
                    .with_expected("zeros"),
            );
        }
        if self.is_too_far {
            let message = "blocks too far out in the file to be checked for overlaps";
            self.findings.warning(
                Error::damaged("bat.too-far", "2.5.1", table.region.offset.get(), message)
                    .with_found(format_args!("a file of {} bytes", table.file_len))
                    .with_expected(format_args!("at most {}", MOST_UNITS * MIB)),
            );
        }
        self.totals.report(self.findings);
    }

    /// Counts the unreferenced bytes of the file and checks whether they suggest lost entries.
    fn report_leaks(&mut self) -> Option<u64> {
        if self.is_too_far {
            return None;
        }
        let end = self.table.file_len.div_ceil(MIB);
        let (free, first) = self.used.neither(&self.held, end);
        let is_free = |unit| !self.used.has(unit) && !self.held.has(unit);
        // The last unit may be partial.
        let missing = end * MIB - self.table.file_len;
        let cut = if end > 0 && is_free(end - 1) { missing } else { 0 };
        let leaked = free * MIB - cut;
        let Some(first) = first.filter(|_| free > 0) else { return Some(leaked) };
        self.report_lost_entries(leaked, free, first);
        let message = "unreferenced space in the file";
        self.findings.info(
            Error::new(ErrorKind::Damaged, "space.leaked", message)
                .at(first * MIB)
                .with_found(format_args!("{leaked} bytes in total, starting here"))
                .with_expected("none"),
        );
        Some(leaked)
    }

    /// Reports lost entries if blocks that are not present and unreferenced data make them likely. Data left by
    /// discarded blocks is not counted.
    fn report_lost_entries(&mut self, leaked: u64, free: u64, first: u64) {
        let table = self.table;
        let (blocks, block_size) = (table.layout.blocks(), table.layout.block_size());
        let absent = blocks - self.named.entries.min(blocks);
        // A fixed disk discards no blocks, so that a single one is enough.
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
        let message = "unreferenced data beside blocks that are not present: the block allocation table \
                       has probably lost entries";
        self.findings.add(
            severity,
            Error::damaged("bat.lost", "2.5", table.region.offset.get(), message)
                .with_found(format_args!(
                    "{leaked} unreferenced bytes, the first at {:#x}, and {} without space",
                    first * MIB,
                    counted(absent, "block", "blocks")
                ))
                .with_expected("an entry for every block of data"),
        );
    }

    /// Whether samples spread evenly over the unreferenced units hold anything but zeros.
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

/// Describes the fault of an entry.
fn what(code: &str) -> &'static str {
    match code {
        "bat.reserved-bits" => "reserved bits of its entry are set",
        "bat.bitmap-unexpected" => "present in an image without a parent",
        "bat.bitmap-state" => "a reserved state",
        "bat.idle-place" => "its entry has an offset that its state does not use",
        "bat.bitmap-place" | "bat.payload-place" => "it does not lie within the file",
        "bat.truncated" => "the file ends before it does",
        "bat.duplicate" => "it lies where another block lies",
        "bat.overlap" => "it overlaps something else",
        _ => "missing, though partially present blocks need it",
    }
}
