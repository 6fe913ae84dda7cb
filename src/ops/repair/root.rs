//! Repairs what a file starts with: identifier, headers, log, region tables.

use std::sync::Arc;

use uuid::Uuid;

use super::work::{Outcome, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Headers};
use crate::format::identifier::SIGNATURE;
use crate::format::region::{self, RegionFlags, RegionTable};
use crate::image::read_what_is_there;
use crate::log;
use crate::storage::{Storage, length_of};
use crate::types::MIB;

/// How many logs of earlier sessions are looked at.
const MOST_LOGS: usize = 64;
const OF_HEADERS: &[&str] = &["header.checksum", "header.signature", "header.same-sequence"];
const OF_LOG: &[&str] = &[
    "log.no-entries",
    "log.no-active-sequence",
    "log.not-replayed",
    "log.gap",
    "log.pending",
    "log.place",
    "log.target",
    "log.truncated-file",
    "log.zero-length",
    "log.last-file-offset",
    "log.file-offset",
    "limit.log-changes",
    "header.log-version",
];
const OF_REGIONS: &[&str] = &[
    "region.checksum",
    "region.signature",
    "region.copies-differ",
    "region.count",
    "region.duplicate",
    "region.length",
    "region.offset",
    "region.flags",
    "region.reserved",
];

/// Restores a header from the other, and clears reserved bytes of both.
pub(super) fn headers(work: &Work<'_>) -> Result<Outcome> {
    let (copies, headers) = work.headers()?;
    let mut headers = match headers {
        Ok(headers) => headers,
        Err(error) => {
            let why = format!("{}: {}", shown(&copies), error.message());
            return Ok(Outcome::refused(OF_HEADERS, why));
        }
    };
    let at = Header::OFFSETS[headers.current];
    let mut fault = None;
    headers.current().inspect(at, &mut |error| {
        fault.get_or_insert(error);
    });
    if let Some(fault) = fault {
        let why = format!("the header in use is not one to build on: {}", fault.message());
        return Ok(Outcome::refused(OF_HEADERS, why));
    }
    let is_reserved_used = copies.iter().any(|copy| copy[80..].iter().any(|byte| *byte != 0));
    if headers.other_is_damaged() {
        let other = 1 - headers.current;
        let damaged = Header::read(&copies[other]);
        let is_twin = is_twin(&copies[other], headers.current());
        let why = if is_twin { None } else { log_of_others(work, headers.current(), &damaged)? };
        if let Some(why) = why {
            let why = format!("{why}; {}", shown(&copies));
            return Ok(Outcome::refused(OF_HEADERS, why));
        }
        let at = Header::OFFSETS[other];
        let what = format!("the header at {at:#x} is written anew from the other");
        renew(work, &mut headers, |_| {})?;
        return Ok(Outcome::did(what));
    }
    if is_reserved_used {
        renew(work, &mut headers, |_| {})?;
        return Ok(Outcome::did("reserved bytes of the headers are cleared"));
    }
    Ok(Outcome::Nothing)
}

/// Writes both headers with the numbers after those that they have.
pub(super) fn renew(
    work: &Work<'_>,
    headers: &mut Headers,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    let mut header = headers.current().clone();
    change(&mut header);
    for _ in 0..2 {
        header.sequence_number = headers.current().next_number(Header::OFFSETS[headers.current])?;
        let slot = 1 - headers.current;
        work.write(&header.to_bytes(), Header::OFFSETS[slot])?;
        headers.copies[slot] = Ok(header.clone());
        headers.current = slot;
    }
    Ok(())
}

/// Whether the damaged header said what the other says, as after each complete update: its own checksum proves it, or all
/// bytes but the checksum do.
fn is_twin(damaged: &[u8], survivor: &Header) -> bool {
    let number = survivor.sequence_number;
    let numbers = [number.checked_sub(1), number.checked_add(1)];
    numbers.into_iter().flatten().any(|sequence_number| {
        let expected = Header { sequence_number, ..survivor.clone() }.to_bytes();
        let has_sum = damaged[4..8] == expected[4..8];
        has_sum || damaged[..4] == expected[..4] && damaged[8..] == expected[8..]
    })
}

/// Why the damaged header may have named a log that the other does not, and that a replay would have to apply; `None` if
/// no log in the file says anything that the file does not have.
fn log_of_others(work: &Work<'_>, survivor: &Header, damaged: &Header) -> Result<Option<String>> {
    let storage = work.storage();
    let len = length_of(storage)?;
    if let Err(error) = log::check_place(survivor, len) {
        return Ok(Some(format!("no log can be searched for: {}", error.message())));
    }
    let mut places = vec![survivor.clone()];
    if damaged.log_range() != survivor.log_range() && log::check_place(damaged, len).is_ok() {
        let place = Header {
            log_offset: damaged.log_offset,
            log_length: damaged.log_length,
            ..survivor.clone()
        };
        places.push(place);
    }
    for place in places {
        let found = log::identities(storage, &place, MOST_LOGS)?;
        if found.len() >= MOST_LOGS {
            return Ok(Some(format!("the log holds entries of {MOST_LOGS} logs or more")));
        }
        for guid in found {
            if guid.is_nil() || guid == survivor.log_guid {
                continue;
            }
            let of_other = Header { log_guid: guid, log_version: 0, ..place.clone() };
            // How long the file is now is no matter: a file may be cut once its log is applied.
            let Ok(sequence) = log::find_at_any_length(storage, &of_other) else { continue };
            let says_more = match log::replay_over(&as_storage(work), &of_other, &sequence) {
                // What an old log said is in the file, and often something newer.
                Ok(overlay) => {
                    let trial = work.image.fork();
                    let before = trial.changes().map_err(unreadable)?;
                    overlay.write_to(&trial).map_err(unreadable)?;
                    trial.changes().map_err(unreadable)? != before
                }
                Err(_) => true,
            };
            if says_more {
                return Ok(Some(format!(
                    "log {guid} has entries that were not replayed, or that newer changes followed: which of \
                     both only the damaged header says"
                )));
            }
        }
    }
    Ok(None)
}

/// Restores the signature of a file whose other structures are sound.
pub(super) fn identifier(work: &Work<'_>) -> Result<Outcome> {
    let mut found = [0; SIGNATURE.len()];
    work.read(&mut found, 0)?;
    if found == *SIGNATURE {
        return Ok(Outcome::Nothing);
    }
    let (_, headers) = work.headers()?;
    let is_sound = headers.is_ok_and(|headers| !headers.other_is_damaged());
    let tables = tables(work)?;
    if !is_sound || !tables.iter().any(|(_, table)| matches!(table, Some((_, true)))) {
        let why = "the headers and region tables do not prove that the file is an image";
        return Ok(Outcome::refused(&["identifier.signature"], why));
    }
    work.write(SIGNATURE, 0)?;
    Ok(Outcome::did("the signature of the file is written anew"))
}

/// Replays a pending log.
pub(super) fn replay(work: &Work<'_>) -> Result<Outcome> {
    let Some((mut headers, header)) = named_log(work)? else { return Ok(Outcome::Nothing) };
    if header.log_version != 0 {
        return Ok(Outcome::refused(OF_LOG, "the log is of an unknown version"));
    }
    let sequence = match log::find(work.storage(), &header) {
        Ok(sequence) => sequence,
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(_) => return Ok(Outcome::Nothing),
    };
    if sequence.gap.is_some() && !work.accepts_loss {
        let why = "newer entries lie behind the damage, and a replay gives them up: copy the file first, then \
                   consent";
        return Ok(Outcome::needs_consent(OF_LOG, why));
    }
    let overlay = match log::replay_over(&as_storage(work), &header, &sequence) {
        Ok(overlay) => overlay,
        Err(error) => return Ok(Outcome::refused(OF_LOG, error.message())),
    };
    // The overlay reads from the log below it, which therefore stays as it is meanwhile.
    let replayed = work.image.fork();
    overlay.write_to(&replayed).map_err(unreadable)?;
    work.image.take(&replayed);
    renew(work, &mut headers, |header| header.log_guid = Uuid::nil())?;
    Ok(Outcome::did("the pending log is replayed"))
}

/// Clears the name of a log of which nothing is in the file. Whoever calls proves that all tables pass the check as they
/// lie: no change of a table is in a log that was never written.
pub(super) fn forget_log(work: &Work<'_>) -> Result<Outcome> {
    let Some((mut headers, header)) = named_log(work)? else { return Ok(Outcome::Nothing) };
    let error = match log::find(work.storage(), &header) {
        Ok(_) => return Ok(Outcome::Nothing),
        Err(error) => error,
    };
    let refused = |why: String| Ok(Outcome::refused(OF_LOG, format!("{}; {why}", error.message())));
    match log::bears(work.storage(), &header, header.log_guid) {
        Err(error) => return refused(format!("it cannot be searched: {}", error.message())),
        Ok(true) => return refused("it holds bytes of that log, so changes may be lost".into()),
        Ok(false) => {}
    }
    renew(work, &mut headers, |header| header.log_guid = Uuid::nil())?;
    Ok(Outcome::did("the headers no longer name a log of which nothing was ever written"))
}

/// The headers and the current one, if it names a log.
fn named_log(work: &Work<'_>) -> Result<Option<(Headers, Header)>> {
    let Ok(headers) = work.headers()?.1 else { return Ok(None) };
    let header = headers.current().clone();
    Ok((!header.log_guid.is_nil()).then_some((headers, header)))
}

/// Whether the headers can be built on, and name no log.
pub(super) fn is_settled(work: &Work<'_>) -> Result<bool> {
    let Ok(headers) = work.headers()?.1 else { return Ok(false) };
    let mut is_sound = !headers.other_is_damaged();
    headers.current().inspect(0, &mut |_| is_sound = false);
    Ok(is_sound && headers.are_without_log())
}

/// Restores a region table from the other, and clears reserved bits of both.
pub(super) fn region_tables(work: &Work<'_>) -> Result<Outcome> {
    let found = tables(work)?;
    let sound: Vec<RegionTable> = found
        .iter()
        .filter_map(|(_, table)| {
            Some(cleared(&table.as_ref().filter(|(_, is_sound)| *is_sound)?.0))
        })
        .collect();
    let (table, what) = match &sound[..] {
        [first, second] if first == second => {
            (first, "reserved and required bits of the region tables are put right")
        }
        [first, second] => {
            let why = format!(
                "both are valid and say different things: {}, and {}",
                places_of(first),
                places_of(second)
            );
            return Ok(Outcome::refused(OF_REGIONS, why));
        }
        [one] => (one, "a region table is written anew from the other"),
        _ => {
            let why = "neither region table is valid";
            return Ok(Outcome::refused(OF_REGIONS, why));
        }
    };
    let bytes = table.to_bytes();
    let used = 16 + 32 * table.entries.len();
    let is_other = |(old, _): &(Vec<u8>, _)| old[..used] != bytes[..used];
    if !found.iter().any(is_other) {
        return Ok(Outcome::Nothing);
    }
    for at in RegionTable::OFFSETS {
        work.write(&bytes, at)?;
    }
    Ok(Outcome::did(what))
}

/// The bytes of both region tables, and what they say, with whether that is valid.
fn tables(work: &Work<'_>) -> Result<[(Vec<u8>, Option<(RegionTable, bool)>); 2]> {
    let read = |at| -> Result<_> {
        let mut bytes = vec![0; RegionTable::LEN];
        read_what_is_there(work.storage(), &mut bytes, at)?;
        let mut is_sound = true;
        let table = RegionTable::inspect(&bytes, at, &mut |_| is_sound = false);
        Ok((bytes, table.map(|table| (table, is_sound))))
    };
    let [first, second] = RegionTable::OFFSETS;
    Ok([read(first)?, read(second)?])
}

/// The table with the flags that the format gives it.
fn cleared(table: &RegionTable) -> RegionTable {
    let mut table = table.clone();
    for entry in &mut table.entries {
        entry.flags &= RegionFlags::REQUIRED;
        if region::name(entry.guid).is_some() {
            entry.flags = RegionFlags::REQUIRED;
        }
    }
    table
}

/// Where a table has its regions.
fn places_of(table: &RegionTable) -> String {
    let one = |entry: &region::RegionEntry| {
        let name = region::title(entry.guid);
        format!("{name} at {:#x} to {:#x}", entry.offset.get(), entry.end())
    };
    let mut some: Vec<String> = table.entries.iter().take(4).map(one).collect();
    if table.entries.len() > some.len() {
        some.push("more".into());
    }
    some.join(" and ")
}

/// What both headers say, valid or not.
fn shown(copies: &[Vec<u8>; 2]) -> String {
    let one = |i: usize| {
        let (bytes, at) = (&copies[i], Header::OFFSETS[i]);
        let header = Header::read(bytes);
        let valid = if Header::parse(bytes, at).is_ok() { "valid" } else { "damaged" };
        format!(
            "the {valid} header at {at:#x} has number {}, log {}, identity {}",
            header.sequence_number, header.log_guid, header.data_write_guid
        )
    };
    format!("{}, and {}", one(0), one(1))
}

fn as_storage(work: &Work<'_>) -> Arc<dyn Storage> {
    Arc::clone(&work.image) as Arc<dyn Storage>
}

fn unreadable(error: std::io::Error) -> Error {
    Error::io("file.read", "cannot read the file", error)
}

/// The log of the image, whose bytes mean nothing once no header names it.
pub(super) fn log_range(work: &Work<'_>) -> Result<Option<std::ops::Range<u64>>> {
    let Ok(headers) = work.headers()?.1 else { return Ok(None) };
    let header = headers.current();
    let range = header.log_range();
    Ok((header.log_guid.is_nil() && range.start >= MIB).then_some(range))
}
