//! Finds the active sequence of the log, \[MS-VHDX\] 2.3.2.

use std::collections::HashMap;

use uuid::Uuid;

use super::ring::Ring;
use crate::error::{Error, ErrorKind, Result};
use crate::format::log_entry::{
    DESCRIPTOR_LEN, Descriptor, EntryHeader, HEADER_LEN, SECTOR, is_data_sector,
};

/// The active sequence from tail to head: the entries that a replay applies, in order.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Never empty.
    pub(crate) entries: Vec<LogEntry>,
    pub(crate) gap: Option<Gap>,
}

/// A place where an entry is damaged or missing although newer entries are intact: a replay cannot reach them.
///
/// An entry that a crash cut off has none behind it, unless its writer did not flush between the two. Entries of older
/// laps of the ring have lower sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Offset from the start of the log.
    pub(crate) position: u64,
    /// How many intact entries are newer than the head. Never zero.
    pub(crate) newer: u64,
    /// The sequence number of the newest of them.
    pub(crate) newest: u64,
}

/// A valid entry.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    /// Offset from the start of the log.
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) tail: u64,
    pub(crate) sequence_number: u64,
    pub(crate) descriptor_count: u32,
    pub(crate) descriptor_sectors: u64,
    pub(crate) flushed_file_offset: u64,
    pub(crate) last_file_offset: u64,
}

impl Sequence {
    pub(crate) fn tail(&self) -> &LogEntry {
        &self.entries[0]
    }

    pub(crate) fn head(&self) -> &LogEntry {
        &self.entries[self.entries.len() - 1]
    }
}

/// Finds the active sequence: of all runs of valid entries with consecutive sequence numbers that contain the
/// tail of their head, the one with the newest head.
pub(super) fn active_sequence(ring: &mut Ring<'_>, guid: Uuid) -> Result<Sequence> {
    let entries = valid_entries(ring, guid)?;
    if entries.is_empty() {
        let message = "the log that the header refers to holds no valid entry";
        return Err(Error::new(ErrorKind::LogWithoutEntries, "log.no-entries", message)
            .with_section("2.3.3")
            .at(ring.file_offset(0))
            .with_found("none")
            .with_expected(format_args!("an entry of log {guid}")));
    }
    let by_position: HashMap<u64, usize> =
        entries.iter().enumerate().map(|(i, entry)| (entry.position, i)).collect();
    let next = |entry: &LogEntry| {
        let next = *by_position.get(&((entry.position + entry.length) % ring.len()))?;
        (Some(entries[next].sequence_number) == entry.sequence_number.checked_add(1))
            .then_some(next)
    };
    let mut starts = vec![true; entries.len()];
    for entry in &entries {
        if let Some(next) = next(entry) {
            starts[next] = false;
        }
    }
    let mut best: Option<Vec<usize>> = None;
    for start in (0..entries.len()).filter(|i| starts[*i]) {
        // Ends, because sequence numbers ascend along a run.
        let run: Vec<usize> = std::iter::successors(Some(start), |i| next(&entries[*i])).collect();
        let head = &entries[run[run.len() - 1]];
        let Some(tail) = run.iter().position(|i| entries[*i].position == head.tail) else {
            continue;
        };
        let newer = |best: &Vec<usize>| {
            head.sequence_number > entries[best[best.len() - 1]].sequence_number
        };
        if best.as_ref().is_none_or(newer) {
            best = Some(run[tail..].to_vec());
        }
    }
    let Some(run) = best else {
        let newest = entries.iter().max_by_key(|entry| entry.sequence_number);
        let newest = newest.expect("entries is not empty");
        let message = "no run of log entries contains its own tail";
        let at = ring.file_offset(newest.position) + 12;
        return Err(Error::damaged("log.no-active-sequence", "2.3.3", at, message)
            .with_found(format_args!(
                "entry {} with its tail at {:#x} of the log",
                newest.sequence_number, newest.tail
            ))
            .with_expected("an unbroken run of entries from there"));
    };
    let gap = gap(&entries, &run, ring.len(), next);
    Ok(Sequence { entries: run.into_iter().map(|i| entries[i].clone()).collect(), gap })
}

/// Finds the gap before the entries that are newer than the head of `run`. `next` is the successor of an entry.
fn gap(
    entries: &[LogEntry],
    run: &[usize],
    ring_len: u64,
    next: impl Fn(&LogEntry) -> Option<usize>,
) -> Option<Gap> {
    let head = entries[run[run.len() - 1]].sequence_number;
    let is_newer = |entry: &&LogEntry| entry.sequence_number > head;
    let newest = entries.iter().filter(is_newer).max_by_key(|entry| entry.sequence_number)?;
    // The newest entry needs all from its tail to itself. What lies elsewhere is of an older lap.
    let from_tail = |position: u64| (position + ring_len - newest.tail) % ring_len;
    let is_needed = |entry: &&LogEntry| from_tail(entry.position) <= from_tail(newest.position);
    let newer = entries.iter().filter(is_newer).filter(is_needed).count() as u64;
    let is_known = |i: &usize| run.contains(i) || is_newer(&&entries[*i]);
    let first = entries.iter().position(|entry| entry.position == newest.tail).filter(is_known);
    let last = std::iter::successors(first, |i| next(&entries[*i])).last();
    let position =
        last.map_or(newest.tail, |i| (entries[i].position + entries[i].length) % ring_len);
    Some(Gap { position, newer, newest: newest.sequence_number })
}

/// The contents of the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Valid entries of the log that the header refers to.
    pub(crate) valid: u64,
    /// Incomplete entries of that log, and the file offset of the first.
    pub(crate) torn: u64,
    pub(crate) first_torn: Option<u64>,
    /// Entries of other logs, and the file offset of the first.
    pub(crate) foreign: u64,
    pub(crate) first_foreign: Option<u64>,
}

/// The identities that headers of entries name, valid or not.
pub(super) fn identities(ring: &mut Ring<'_>, most: usize) -> Result<Vec<Uuid>> {
    let mut found = Vec::new();
    let mut position = 0;
    while position < ring.len() && found.len() < most {
        if let Some(header) = EntryHeader::parse(ring.sector(position)?)
            && !found.contains(&header.log_guid)
        {
            found.push(header.log_guid);
        }
        position += SECTOR;
    }
    Ok(found)
}

pub(super) fn survey(ring: &mut Ring<'_>, guid: Uuid) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut position = 0;
    while position < ring.len() {
        let at = ring.file_offset(position);
        let mut step = SECTOR;
        if let Some(header) = EntryHeader::parse(ring.sector(position)?) {
            if guid.is_nil() || header.log_guid != guid {
                survey.foreign += 1;
                survey.first_foreign.get_or_insert(at);
            } else if let Some(entry) = valid_entry(ring, guid, position)? {
                survey.valid += 1;
                step = entry.length;
            } else {
                survey.torn += 1;
                survey.first_torn.get_or_insert(at);
            }
        }
        position += step;
    }
    Ok(survey)
}

pub(super) fn valid_entries(ring: &mut Ring<'_>, guid: Uuid) -> Result<Vec<LogEntry>> {
    let mut entries = Vec::new();
    let mut position = 0;
    while position < ring.len() {
        match valid_entry(ring, guid, position)? {
            Some(entry) => {
                position += entry.length;
                entries.push(entry);
            }
            None => position += SECTOR,
        }
    }
    Ok(entries)
}

/// How many logs are told apart in one ring.
const MOST_GUIDS: usize = 16;

/// The logs whose entries, intact or not, the ring has.
pub(super) fn guids(ring: &mut Ring<'_>) -> Result<Vec<Uuid>> {
    let mut guids = Vec::new();
    for position in (0..ring.len()).step_by(SECTOR as usize) {
        let Some(header) = EntryHeader::parse(ring.sector(position)?) else { continue };
        if !header.log_guid.is_nil() && !guids.contains(&header.log_guid) {
            guids.push(header.log_guid);
        }
        if guids.len() == MOST_GUIDS {
            break;
        }
    }
    Ok(guids)
}

/// Whether the ring has a part of an entry of this log that is newer than `head`, or of the one right behind it.
pub(super) fn has_remains(ring: &mut Ring<'_>, guid: Uuid, head: u64) -> Result<bool> {
    let Some(next) = head.checked_add(1) else { return Ok(false) };
    for position in (0..ring.len()).step_by(SECTOR as usize) {
        let sector = ring.sector(position)?;
        let is_newer = EntryHeader::parse(sector)
            .is_some_and(|header| header.log_guid == guid && header.sequence_number > head);
        if is_newer || is_data_sector(sector, next) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the entry at `position` if it is valid.
///
/// The checksum is verified last, after no sector of the entry has turned out to be the start of another entry. Entries
/// can therefore not be nested to have the same bytes summed over and over.
fn valid_entry(ring: &mut Ring<'_>, guid: Uuid, position: u64) -> Result<Option<LogEntry>> {
    let Some(header) = EntryHeader::parse(ring.sector(position)?) else { return Ok(None) };
    let length = u64::from(header.entry_length);
    if header.log_guid != guid
        || header.sequence_number == 0
        || length == 0
        || !length.is_multiple_of(SECTOR)
        || length > ring.len()
        || header.descriptor_sectors() > header.sectors()
        || !u64::from(header.tail).is_multiple_of(SECTOR)
        || u64::from(header.tail) >= ring.len()
        || !has_its_sectors(ring, &header, position)?
        || !has_its_sum(ring, &header, position)?
    {
        return Ok(None);
    }
    Ok(Some(LogEntry {
        position,
        length,
        tail: header.tail.into(),
        sequence_number: header.sequence_number,
        descriptor_count: header.descriptor_count,
        descriptor_sectors: header.descriptor_sectors(),
        flushed_file_offset: header.flushed_file_offset,
        last_file_offset: header.last_file_offset,
    }))
}

/// Whether the descriptors and data sectors that the header promises are present.
fn has_its_sectors(ring: &mut Ring<'_>, header: &EntryHeader, position: u64) -> Result<bool> {
    let mut data_sectors = 0;
    let mut left = header.descriptor_count as usize;
    for i in 0..header.descriptor_sectors() {
        let sector = ring.sector(position + i * SECTOR)?;
        let first = if i == 0 { HEADER_LEN } else { 0 };
        for bytes in sector[first..].chunks_exact(DESCRIPTOR_LEN).take(left) {
            match Descriptor::parse(bytes, header.sequence_number) {
                Some(Descriptor::Data { .. }) => data_sectors += 1,
                Some(Descriptor::Zero { .. }) => {}
                None => return Ok(false),
            }
        }
        left = left.saturating_sub((SECTOR as usize - first) / DESCRIPTOR_LEN);
    }
    for i in header.descriptor_sectors()..header.sectors() {
        let sector = ring.sector(position + i * SECTOR)?;
        let is_sound = if data_sectors > 0 {
            data_sectors -= 1;
            is_data_sector(sector, header.sequence_number)
        } else {
            // Unused room at the end of the entry.
            EntryHeader::parse(sector).is_none()
        };
        if !is_sound {
            return Ok(false);
        }
    }
    Ok(data_sectors == 0)
}

fn has_its_sum(ring: &mut Ring<'_>, header: &EntryHeader, position: u64) -> Result<bool> {
    let mut sum = 0;
    for i in 0..header.sectors() {
        let sector = ring.sector(position + i * SECTOR)?;
        if i > 0 {
            sum = crc32c::crc32c_append(sum, sector);
            continue;
        }
        // The checksum field counts as zero.
        sum = crc32c::crc32c(&sector[..4]);
        sum = crc32c::crc32c_append(sum, &[0; 4]);
        sum = crc32c::crc32c_append(sum, &sector[8..]);
    }
    Ok(sum == header.checksum)
}
