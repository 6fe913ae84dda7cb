//! Partition tables of the MBR, with logical partitions.

use std::collections::HashSet;
use std::ops::Range;

use crate::boundary::{Bytes, u32_at};
use crate::error::Result;
use crate::volumes::gpt::LDM;
use crate::volumes::table::{Found, Table};

/// The type that stands for a GPT.
const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// The most logical partitions that are read.
const MOST_LOGICAL: usize = 256;
const RECORDS: usize = 446;
const RECORD_LEN: usize = 16;

/// Types with a name.
const TYPES: &[(u8, &str)] = &[
    (0x01, "FAT12"),
    (0x04, "FAT16"),
    (0x06, "FAT16"),
    (0x07, "NTFS or exFAT"),
    (0x0B, "FAT32"),
    (0x0C, "FAT32"),
    (0x0E, "FAT16"),
    (0x27, "Windows recovery"),
    (0x42, LDM),
    (0x82, "Linux swap"),
    (0x83, "Linux"),
    (0x8E, "Linux LVM"),
    (0xEF, "EFI system"),
    (0xFD, "Linux RAID"),
];

/// An entry of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    kind: u8,
    start: u64,
    sectors: u64,
}

/// The entries of the first sector, those in use or not, if it is an MBR at all.
pub(crate) fn records(first: &[u8]) -> Option<[Record; 4]> {
    let raw = |index: usize| first.get(RECORDS + index * RECORD_LEN..)?.get(..RECORD_LEN);
    let is_mbr = first.get(510..512) == Some(&[0x55, 0xAA]);
    // The boot sector of a file system ends alike, with code where the entries would be.
    let are_records = (0..4).all(|index| raw(index).is_some_and(|raw| raw[0] & 0x7F == 0));
    (is_mbr && are_records).then(|| {
        std::array::from_fn(|index| {
            let raw = raw(index).unwrap_or(&[0; RECORD_LEN]);
            let (start, sectors) = (u32_at(raw, 8).into(), u32_at(raw, 12).into());
            Record { kind: raw[4], start, sectors }
        })
    })
}

/// Whether the table only keeps programs away that do not know GPT.
pub(crate) fn is_protective(records: &[Record; 4]) -> bool {
    records.iter().any(|record| record.kind == PROTECTIVE)
}

/// Whether any entry is in use.
pub(crate) fn is_used(records: &[Record; 4]) -> bool {
    records.iter().any(|record| record.kind != 0 && record.sectors != 0)
}

/// Reads the logical partitions too.
pub(crate) fn read(
    disk: &Bytes,
    sector: u64,
    first: &[u8],
    records: &[Record; 4],
) -> Result<Table> {
    let signature = u32_at(first, 440);
    let mut table = Table {
        scheme: "MBR",
        id: (signature != 0).then(|| format!("{signature:08x}")),
        found: Vec::new(),
        warnings: Vec::new(),
        own: vec![Range { start: 0, end: 512 }],
    };
    let found = |number: u32, record: &Record, base: u64| {
        let name = TYPES.iter().find(|(kind, _)| *kind == record.kind);
        let start = base.saturating_add(record.start);
        Found {
            number,
            kind: name
                .map_or_else(|| format!("type 0x{:02x}", record.kind), |(_, name)| (*name).into()),
            name: None,
            // The way in which Windows and Linux name them.
            id: (signature != 0).then(|| format!("{signature:08x}-{number:02x}")),
            range: start * sector..(start + record.sectors) * sector,
        }
    };
    for (number, record) in (1..).zip(records) {
        if record.kind != 0 && record.sectors != 0 && !EXTENDED.contains(&record.kind) {
            table.found.push(found(number, record, 0));
        }
    }
    let mut number = 5;
    for outer in records.iter().filter(|record| EXTENDED.contains(&record.kind)) {
        let (mut at, mut seen) = (outer.start, HashSet::new());
        loop {
            let is_new = seen.insert(at) && seen.len() <= MOST_LOGICAL;
            let inside = at.checked_mul(sector).filter(|start| start + 512 <= disk.len());
            let (Some(start), true) = (inside, is_new) else {
                let what = if is_new { "leaves the disk" } else { "does not end" };
                let warning = format!("the list of logical partitions {what} at sector {at}");
                table.warnings.push(warning);
                break;
            };
            table.own.push(start..start + 512);
            let Some(inner) = self::records(&disk.read(start, 512)?) else {
                let warning = format!("sector {at} has no table of logical partitions");
                table.warnings.push(warning);
                break;
            };
            let used = |record: &&Record| record.kind != 0 && record.sectors != 0;
            let (next, own): (Vec<_>, Vec<_>) =
                inner.iter().filter(used).partition(|record| EXTENDED.contains(&record.kind));
            for record in own {
                table.found.push(found(number, record, at));
                number += 1;
            }
            match next.first() {
                Some(next) => at = outer.start.saturating_add(next.start),
                None => break,
            }
        }
    }
    Ok(table)
}
