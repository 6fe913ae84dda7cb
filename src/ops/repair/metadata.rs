//! Clears reserved bits of the metadata, and gives items of the format the flags that it prescribes.

use super::work::{Outcome, Work};
use crate::error::Result;
use crate::format::metadata::{ItemFlags, MetadataTable, flags_of};
use crate::format::region::{METADATA, RegionEntry, RegionTable};
use crate::image::{Inspected, read_what_is_there};
use crate::storage::length_of;

/// The length of an entry of the table.
const ENTRY: usize = 32;

pub(super) fn bits(work: &Work<'_>) -> Result<Outcome> {
    let Some(region) = region(work)? else { return Ok(Outcome::Nothing) };
    let at = region.offset.get();
    let mut table = vec![0; MetadataTable::LEN];
    work.read(&mut table, at)?;
    let Some(found) = Inspected::new(work.storage(), &region, &mut drop) else {
        return Ok(Outcome::Nothing);
    };
    let before = table.clone();
    table[8..10].fill(0);
    table[12..ENTRY].fill(0);
    for (i, entry) in found.table.entries.iter().enumerate() {
        let start = ENTRY * (i + 1);
        table[start + 28..start + 32].fill(0);
        let mut flags =
            entry.flags & (ItemFlags::USER | ItemFlags::VIRTUAL_DISK | ItemFlags::REQUIRED);
        if let Some(expected) = flags_of(entry.item).filter(|_| !flags.contains(ItemFlags::USER)) {
            flags = expected;
        }
        table[start + 24..start + 28].copy_from_slice(&flags.to_bytes());
        if entry.length == 0 {
            table[start + 16..start + 20].fill(0);
        }
    }
    let mut is_any = table != before;
    if is_any {
        work.write(&table, at)?;
    }
    let file = found.file.map(|(_, place)| (place + 4, [3, 0, 0, 0]));
    let locator = found.locator.map(|placed| (placed.at + 16, [0, 0, 0xFF, 0xFF]));
    for (place, kept) in file.into_iter().chain(locator) {
        let mut bytes = [0; 4];
        work.read(&mut bytes, place)?;
        let cleared: [u8; 4] = std::array::from_fn(|i| bytes[i] & kept[i]);
        if cleared != bytes {
            work.write(&cleared, place)?;
            is_any = true;
        }
    }
    Ok(match is_any {
        true => Outcome::did("reserved bits and flags of metadata items are put right"),
        false => Outcome::Nothing,
    })
}

/// The metadata region, if it is where it can be read.
fn region(work: &Work<'_>) -> Result<Option<RegionEntry>> {
    let len = length_of(work.storage())?;
    for at in RegionTable::OFFSETS {
        let mut bytes = vec![0; RegionTable::LEN];
        read_what_is_there(work.storage(), &mut bytes, at)?;
        let Ok(table) = RegionTable::parse(&bytes, at) else { continue };
        let found = table.entries.into_iter().find(|entry| entry.guid == METADATA);
        return Ok(found.filter(|entry| entry.is_placed() && entry.end() <= len));
    }
    Ok(None)
}
