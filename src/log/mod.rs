//! The log, \[MS-VHDX\] 2.3: finds the active sequence and replays it.

mod ring;
mod scan;
mod writer;

use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
use crate::format::log_entry::{Descriptor, SECTOR};
use crate::format::{MOST_NEEDED, OnError, guid_bytes, region};
use crate::storage::{Overlay, Patch, Storage, length_of};

use ring::Ring;
pub(crate) use ring::check_place;
use scan::LogEntry;
pub(crate) use scan::{Gap, Sequence, Survey};
pub(crate) use writer::{Appended, LogWriter};

/// How many pieces a replay in memory may consist of. A writer's log stays far below this, since each piece is
/// a sector of the log; only a log crafted to exhaust memory has this many zero descriptors.
const MAX_PIECES: usize = 1 << 18;

/// Finds the changes that the log of `header` holds, \[MS-VHDX\] 2.3.2.
///
/// The header must have a log GUID; without one there is nothing to find.
pub(crate) fn find(storage: &dyn Storage, header: &Header) -> Result<Sequence> {
    let file_len = length_of(storage)?;
    let sequence = find_at_any_length(storage, header)?;
    let ring = Ring::new(storage, header, file_len)?;
    let head = sequence.head();
    if file_len < head.flushed_file_offset {
        let message = "the file is shorter than it was when the log was written";
        let at = ring.file_offset(head.position) + 48;
        return Err(Error::damaged("log.truncated-file", "2.3.3", at, message)
            .with_found(format_args!("{file_len} bytes"))
            .with_expected(format_args!("at least {}", head.flushed_file_offset)));
    }
    Ok(sequence)
}

/// The same, even if the file is shorter than it was when the log was written.
pub(crate) fn find_at_any_length(storage: &dyn Storage, header: &Header) -> Result<Sequence> {
    let mut ring = Ring::new(storage, header, length_of(storage)?)?;
    scan::active_sequence(&mut ring, header.log_guid)
}

/// A sector that an intact entry of the log holds, whether a replay needs it or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoggedSector {
    /// Where it belongs in the file.
    pub(crate) at: u64,
    pub(crate) sequence_number: u64,
    pub(crate) patch: Patch,
}

/// All sectors that intact entries of the log of `header` hold, up to a limit, in the order of the ring.
pub(crate) fn logged_sectors(storage: &dyn Storage, header: &Header) -> Result<Vec<LoggedSector>> {
    let mut ring = Ring::new(storage, header, length_of(storage)?)?;
    let mut sectors = Vec::new();
    for entry in scan::valid_entries(&mut ring, header.log_guid)? {
        let mut data = entry.position + entry.descriptor_sectors * SECTOR;
        for i in 0..entry.descriptor_count {
            let (descriptor, _) = ring.descriptor(entry.position, i, entry.sequence_number)?;
            let Descriptor::Data { at, leading, trailing } = descriptor else { continue };
            if sectors.len() >= MAX_PIECES {
                return Ok(sectors);
            }
            let patch = Patch::Sector { at: ring.file_offset(data), leading, trailing };
            let sequence_number = entry.sequence_number;
            sectors.push(LoggedSector { at: at.get(), sequence_number, patch });
            data += SECTOR;
        }
    }
    Ok(sectors)
}

/// The logs that have entries in the place of this header's log, intact or not, up to a limit.
pub(crate) fn guids(storage: &dyn Storage, header: &Header) -> Result<Vec<Uuid>> {
    let mut ring = Ring::new(storage, header, length_of(storage)?)?;
    scan::guids(&mut ring)
}

/// Whether the ring holds remains of the entry that would follow this sequence.
pub(crate) fn has_remains_after(
    storage: &dyn Storage,
    header: &Header,
    sequence: &Sequence,
) -> Result<bool> {
    let mut ring = Ring::new(storage, header, length_of(storage)?)?;
    scan::has_remains(&mut ring, header.log_guid, sequence.head().sequence_number)
}

/// Replays a sequence in memory, \[MS-VHDX\] 2.3.3, leaving the file unchanged.
pub(crate) fn replay_over(
    storage: &Arc<dyn Storage>,
    header: &Header,
    sequence: &Sequence,
) -> Result<Overlay> {
    let file_len = length_of(storage.as_ref())?;
    let mut overlay = Overlay::new(Arc::clone(storage), file_len);
    let mut ring = Ring::new(storage.as_ref(), header, file_len)?;
    check_last_length(sequence.head(), &ring, file_len)?;
    for entry in &sequence.entries {
        let mut data = entry.position + entry.descriptor_sectors * SECTOR;
        for i in 0..entry.descriptor_count {
            let (descriptor, at) = ring.descriptor(entry.position, i, entry.sequence_number)?;
            let range = target(&descriptor, at, header, file_len)?;
            if overlay.pieces() >= MAX_PIECES {
                return Err(too_many_changes(at, sequence));
            }
            match descriptor {
                Descriptor::Zero { .. } if range.is_empty() => {}
                Descriptor::Zero { .. } => overlay.lay(range, Patch::Zero, entry.sequence_number),
                Descriptor::Data { leading, trailing, .. } => {
                    let patch = Patch::Sector { at: ring.file_offset(data), leading, trailing };
                    overlay.lay(range, patch, entry.sequence_number);
                    data += SECTOR;
                }
            }
        }
    }
    overlay.grow(sequence.head().last_file_offset);
    Ok(overlay)
}

/// Reports changes of the sequence with invalid targets, up to `most` of them.
pub(crate) fn inspect_targets(
    storage: &dyn Storage,
    header: &Header,
    sequence: &Sequence,
    mut most: usize,
    on: OnError<'_>,
) -> Result<()> {
    let file_len = length_of(storage)?;
    let mut ring = Ring::new(storage, header, file_len)?;
    if let Err(error) = check_last_length(sequence.head(), &ring, file_len) {
        on(error);
    }
    for entry in &sequence.entries {
        for i in 0..entry.descriptor_count {
            let (descriptor, at) = ring.descriptor(entry.position, i, entry.sequence_number)?;
            if let Err(error) = target(&descriptor, at, header, file_len) {
                on(error);
                most = most.saturating_sub(1);
                if most == 0 {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Counts everything in the ring that starts like an entry.
pub(crate) fn survey(storage: &dyn Storage, header: &Header) -> Result<Survey> {
    let file_len = length_of(storage)?;
    let mut ring = Ring::new(storage, header, file_len)?;
    scan::survey(&mut ring, header.log_guid)
}

/// The identities of all logs that have something like an entry in the ring, up to `most` of them.
pub(crate) fn identities(storage: &dyn Storage, header: &Header, most: usize) -> Result<Vec<Uuid>> {
    let file_len = length_of(storage)?;
    let mut ring = Ring::new(storage, header, file_len)?;
    scan::identities(&mut ring, most)
}

/// Whether the bytes of this identity lie anywhere in the log, in an entry or not.
pub(crate) fn bears(storage: &dyn Storage, header: &Header, guid: Uuid) -> Result<bool> {
    let file_len = length_of(storage)?;
    check_place(header, file_len)?;
    let wanted = guid_bytes(guid);
    let range = header.log_range();
    // What may be the start of the identity goes on into the next piece.
    let mut piece = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(1 << 20);
        let kept = piece.len().min(wanted.len() - 1);
        piece.drain(..piece.len() - kept);
        piece.resize(kept + len as usize, 0);
        storage
            .read_exact_at(&mut piece[kept..], at)
            .map_err(|error| Error::io("log.read", "cannot read the log", error).at(at))?;
        if piece.windows(wanted.len()).any(|bytes| bytes == wanted) {
            return Ok(true);
        }
        at += len;
    }
    Ok(false)
}

fn too_many_changes(at: u64, sequence: &Sequence) -> Error {
    let changes: u64 = sequence.entries.iter().map(|e| u64::from(e.descriptor_count)).sum();
    let message = "the log holds more scattered changes than fit in memory";
    Error::new(ErrorKind::Limit, "limit.log-changes", message)
        .with_section("2.3.3")
        .at(at)
        .with_found(format_args!("{changes} changes"))
        .with_expected(format_args!("at most {MAX_PIECES} that do not overlap"))
}

/// The maximum length to which a log may grow a file of this length: its length plus everything that the largest disk
/// of the format can need. A log that asks for more is damaged or hostile.
fn most_len(file_len: u64) -> u64 {
    file_len.saturating_add(MOST_NEEDED).min(i64::MAX as u64)
}

/// Refuses a sequence whose head grows the file beyond the maximum.
fn check_last_length(entry: &LogEntry, ring: &Ring<'_>, file_len: u64) -> Result<()> {
    let most = most_len(file_len);
    if entry.last_file_offset <= most {
        return Ok(());
    }
    let message = "a log entry makes the file longer than any disk needs";
    let at = ring.file_offset(entry.position) + 56;
    Err(Error::damaged("log.last-file-offset", "2.3.1.1", at, message)
        .with_found(format_args!("{} bytes", entry.last_file_offset))
        .with_expected(format_args!("at most {most}, for a file of {file_len}")))
}

/// Returns the range of the file that a descriptor changes; `at` is the file offset of the descriptor.
fn target(
    descriptor: &Descriptor,
    at: u64,
    header: &Header,
    file_len: u64,
) -> Result<std::ops::Range<u64>> {
    let (start, length) = match descriptor {
        Descriptor::Zero { at, length } => (at.get(), *length),
        Descriptor::Data { at, .. } => (at.get(), SECTOR),
    };
    let damaged = |code, place, message| Error::damaged(code, "2.3.1", at + place, message);
    if !start.is_multiple_of(SECTOR) {
        return Err(damaged("log.target", 16, "misaligned target of a log descriptor")
            .with_found(format_args!("{start:#x}"))
            .with_expected("a multiple of 4 KiB"));
    }
    // Region tables may be logged; the structures before them and the log itself may not.
    let tables = region::RegionTable::OFFSETS[0];
    let log = header.log_range();
    let over = |end: u64| {
        Err(damaged("log.target", 16, "a log descriptor targets the headers or the log")
            .with_found(format_args!("bytes {start:#x} to {end:#x}"))
            .with_expected(format_args!(
                "from {tables:#x} on, outside {:#x} to {:#x}",
                log.start, log.end
            )))
    };
    if start < tables {
        return over(start.saturating_add(length));
    }
    let most = most_len(file_len);
    if start > most - SECTOR {
        return Err(damaged(
            "log.target",
            16,
            "a log descriptor targets an offset beyond any disk",
        )
        .with_found(format_args!("{start:#x}"))
        .with_expected(format_args!("an end at {most:#x} or before")));
    }
    let end = start.checked_add(length).filter(|end| *end <= most);
    let Some(end) = end.filter(|_| length.is_multiple_of(SECTOR)) else {
        return Err(damaged("log.zero-length", 8, "invalid length of a zero descriptor")
            .with_found(format_args!("{length:#x} from {start:#x}"))
            .with_expected(format_args!(
                "a multiple of 4 KiB, and an end at {most:#x} or before"
            )));
    };
    if start < log.end && end > log.start && end > start {
        return over(end);
    }
    Ok(start..end)
}
