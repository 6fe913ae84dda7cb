//! The tables of partitions on a disk, and where the last partition ends.
//!
//! A guest writes them: every number is bounded before it is used.

use avhdx::{DiffChain, Disk, DiskExt, Source};

use crate::failure::{Exit, Failure};
use crate::gpt::{Gpt, has_gpt};

/// Offset of the entries of an MBR, their length and their number.
const ENTRIES: usize = 446;
const ENTRY_LEN: usize = 16;
const COUNT: usize = 4;
/// Types of partitions that hold logical partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// The most logical partitions that are followed.
const MOST_LOGICAL: usize = 1024;
/// How much of the disk is looked at in one step, backwards.
const STRIDE: u64 = 1 << 30;
/// How much is read at once.
const WINDOW: u64 = 2 << 20;

/// An entry of an MBR that is in use, in sectors.
#[derive(Clone, Copy, Debug)]
struct MbrEntry {
    kind: u8,
    start: u64,
    end: u64,
}

/// The smallest size of the disk that keeps its partitions, with the table behind them if there is one: of a disk
/// without a table, the end of its last byte that is not zero. Whole sectors, in bytes. With `resumes`, a GPT may be
/// what an interrupted move left.
pub(crate) fn fitting_size(disk: &DiffChain, name: &str, resumes: bool) -> Result<u64, Failure> {
    let geometry = disk.geometry();
    let sector = u64::from(geometry.logical_sector);
    let sectors = if has_gpt(disk)? {
        let gpt = if resumes { Gpt::resume(disk, name, None) } else { Gpt::read(disk, name) };
        Some(gpt?.fitting_sectors())
    } else {
        last_of_mbr(disk, name)?
    };
    let Some(sectors) = sectors else {
        let last = last_byte(disk)?.ok_or_else(|| {
            let message = format!("{name}: the disk is all zeros, and fits any size");
            Failure::usage("resize.empty", message)
        })?;
        return Ok((last + 1).next_multiple_of(sector));
    };
    let size = sectors.checked_mul(sector).filter(|size| *size <= geometry.size);
    size.ok_or_else(|| {
        let message = format!(
            "{name}: a partition ends at sector {sectors}, behind the end of the disk at sector {}",
            geometry.size / sector
        );
        Failure::new(Exit::Refused, "resize.partition", message)
    })
}

/// The end of the last partition of an MBR, in sectors; `None` without an MBR.
fn last_of_mbr(disk: &DiffChain, name: &str) -> Result<Option<u64>, Failure> {
    let Some(entries) = mbr_at(disk, 0)? else { return Ok(None) };
    let mut end = entries.iter().map(|entry| entry.end).max();
    for extended in entries.iter().filter(|entry| EXTENDED.contains(&entry.kind)) {
        end = end.max(last_logical(disk, extended, name)?);
    }
    Ok(end)
}

/// The end of the last logical partition, in sectors. Each is described by a table of its own, in a list.
fn last_logical(disk: &DiffChain, extended: &MbrEntry, name: &str) -> Result<Option<u64>, Failure> {
    let (mut at, mut end) = (extended.start, None);
    for _ in 0..MOST_LOGICAL {
        let Some(entries) = mbr_at(disk, at)? else { return Ok(end) };
        let of_disk = |entry: &MbrEntry, from: u64| from.saturating_add(entry.end);
        let logical = entries.iter().filter(|entry| !EXTENDED.contains(&entry.kind));
        end = end.max(logical.map(|entry| of_disk(entry, at)).max());
        match entries.iter().find(|entry| EXTENDED.contains(&entry.kind)) {
            Some(next) => at = extended.start.saturating_add(next.start),
            None => return Ok(end),
        }
    }
    let message = format!(
        "{name}: the list of logical partitions does not end: more than {MOST_LOGICAL} from sector {}",
        extended.start
    );
    Err(Failure::new(Exit::Refused, "resize.partition", message))
}

/// The entries in use of the MBR in this sector; `None` if there is none.
fn mbr_at(disk: &DiffChain, at: u64) -> Result<Option<Vec<MbrEntry>>, Failure> {
    let geometry = disk.geometry();
    let start = at.checked_mul(geometry.logical_sector.into());
    let Some(start) = start.filter(|start| start + 512 <= geometry.size) else { return Ok(None) };
    let mut bytes = [0; 512];
    disk.read_at(&mut bytes, start)?;
    Ok(parse_mbr(&bytes))
}

fn parse_mbr(bytes: &[u8; 512]) -> Option<Vec<MbrEntry>> {
    let entries: Vec<&[u8]> = bytes[ENTRIES..].chunks_exact(ENTRY_LEN).take(COUNT).collect();
    // The boot sector of a file system ends alike, with code where the entries would be.
    let are_entries = entries.iter().all(|entry| matches!(entry[0], 0 | 0x80));
    if bytes[510..] != [0x55, 0xAA] || !are_entries {
        return None;
    }
    // One without sectors is empty, whatever its type, as readers of these tables have it.
    let used = entries.into_iter().filter(|entry| entry[4] != 0 && u32_at(entry, 12) != 0);
    let used: Vec<MbrEntry> = used
        .map(|entry| {
            let start = u64::from(u32_at(entry, 8));
            MbrEntry { kind: entry[4], start, end: start + u64::from(u32_at(entry, 12)) }
        })
        .collect();
    (!used.is_empty()).then_some(used)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The offset of the last byte of the disk that is not zero.
fn last_byte(disk: &DiffChain) -> Result<Option<u64>, Failure> {
    let mut end = disk.geometry().size;
    let mut buf = Vec::new();
    while end > 0 {
        let start = (end - 1) / STRIDE * STRIDE;
        let mut runs = Vec::new();
        for extent in disk.extents(start..end) {
            let extent = extent?;
            if !matches!(extent.source, Source::Zero { .. }) {
                runs.push(extent.range);
            }
        }
        for run in runs.into_iter().rev() {
            let mut to = run.end;
            while to > run.start {
                let from = ((to - 1) / WINDOW * WINDOW).max(run.start);
                buf.resize((to - from) as usize, 0);
                disk.read_at(&mut buf, from)?;
                if let Some(place) = buf.iter().rposition(|byte| *byte != 0) {
                    return Ok(Some(from + place as u64));
                }
                to = from;
            }
        }
        end = start;
    }
    Ok(None)
}
