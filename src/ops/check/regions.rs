//! Checks the two region tables and the regions.

use std::ops::Range;

use super::findings::Findings;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
use crate::format::region::{self, RegionEntry, RegionFlags, RegionTable};
use crate::image::{inspect_regions, read_what_is_there, too_short};
use crate::storage::Storage;
use crate::types::{MIB, counted};

/// The structures of the file.
#[derive(Debug)]
pub(super) struct Regions {
    pub(super) bat: Option<RegionEntry>,
    pub(super) metadata: Option<RegionEntry>,
    /// Header section, log and regions, with their names, which no block may overlap.
    pub(super) structures: Vec<(Range<u64>, String)>,
}

/// Checks both tables; `None` if neither can be interpreted.
pub(super) fn check(
    storage: &dyn Storage,
    file_len: u64,
    header: Option<&Header>,
    findings: &mut Findings,
) -> Result<Option<Regions>> {
    let copies = [
        read_copy(storage, RegionTable::OFFSETS[0], findings)?,
        read_copy(storage, RegionTable::OFFSETS[1], findings)?,
    ];
    if let [Some((first, true)), Some((second, true))] = &copies
        && first != second
    {
        let message = "the two region tables differ";
        findings.error(
            Error::damaged("region.copies-differ", "2.2", RegionTable::OFFSETS[1], message)
                .with_found(counted(second.entries.len() as u64, "entry", "entries"))
                .with_expected(format_args!(
                    "the first with its {}",
                    counted(first.entries.len() as u64, "entry", "entries")
                )),
        );
    }
    let Some((table, at)) = chosen(&copies) else { return Ok(None) };
    let log = header.map_or(0..0, Header::log_range);
    let (bat, metadata) =
        inspect_regions((table, at), log.clone(), file_len, &mut |error| findings.error(error));
    let mut structures = vec![(0..MIB, "the header section".to_owned())];
    if !log.is_empty() {
        structures.push((log, "the log".to_owned()));
    }
    for (i, entry) in table.entries.iter().enumerate() {
        let place = RegionTable::entry_at(at, i);
        report_kind(entry, place, file_len, findings);
        if entry.is_placed() {
            structures.push((entry.offset.get()..entry.end(), region::title(entry.guid)));
        }
    }
    // Other readers may use the other copy.
    for entry in copies.iter().flatten().filter(|copy| copy.1).flat_map(|copy| &copy.0.entries) {
        let range = entry.offset.get()..entry.end();
        if entry.is_placed() && !structures.iter().any(|(known, _)| *known == range) {
            structures.push((range, format!("{} of the other table", region::title(entry.guid))));
        }
    }
    Ok(Some(Regions { bat, metadata, structures }))
}

/// Reads a copy; also returns whether it is free of faults.
fn read_copy(
    storage: &dyn Storage,
    at: u64,
    findings: &mut Findings,
) -> Result<Option<(RegionTable, bool)>> {
    let mut bytes = vec![0; RegionTable::LEN];
    let read = read_what_is_there(storage, &mut bytes, at)?;
    if read < bytes.len() {
        findings.error(too_short("region.table-length", "2.2.3", at, read, bytes.len()));
        return Ok(None);
    }
    let mut is_sound = true;
    let table = RegionTable::inspect(&bytes, at, &mut |error| {
        is_sound = false;
        findings.error(error);
    });
    Ok(table.map(|table| {
        table.inspect_reserved(&bytes, at, &mut |error| findings.warning(error));
        (table, is_sound)
    }))
}

/// Returns the table in use: the first sound one, or else the first that can be interpreted.
fn chosen(copies: &[Option<(RegionTable, bool)>; 2]) -> Option<(&RegionTable, u64)> {
    let there = || copies.iter().zip(RegionTable::OFFSETS);
    let sound = there().find_map(|(copy, at)| match copy {
        Some((table, true)) => Some((table, at)),
        _ => None,
    });
    sound.or_else(|| there().find_map(|(copy, at)| Some((&copy.as_ref()?.0, at))))
}

fn report_kind(entry: &RegionEntry, at: u64, file_len: u64, findings: &mut Findings) {
    let is_required = entry.flags.contains(RegionFlags::REQUIRED);
    match region::name(entry.guid) {
        Some(name) if !is_required => {
            let message = format!("the {name} region is not marked as required");
            // QEMU marks neither, but every reader knows both regions.
            findings.warning(
                Error::damaged("region.flags", "2.2.3.2", at + 28, message)
                    .with_found(entry.flags.bits())
                    .with_expected(1),
            );
        }
        None if !is_required => {
            let message = "a region that the format does not define";
            findings.info(
                Error::new(ErrorKind::Unsupported, "region.unknown", message)
                    .with_section("2.2.3.2")
                    .at(at)
                    .with_found(entry.guid)
                    .with_expected("regions of the format, or regions that are not required"),
            );
            if entry.is_placed() && entry.end() > file_len {
                let message = format!("region {} reaches past the end of the file", entry.guid);
                findings.error(
                    Error::damaged("region.place", "2.2.3.2", at + 16, message)
                        .with_found(format_args!("bytes {} to {:#x}", entry.offset, entry.end()))
                        .with_expected(format_args!("an end at {file_len:#x} or before")),
                );
            }
        }
        _ => {}
    }
}
