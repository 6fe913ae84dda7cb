//! GUID partition tables. `gptman` reads the copies, after the numbers in them are bounded.

use std::io::Cursor;

use gptman::{GPTHeader, GPTPartitionEntry};

use crate::boundary::{Bytes, guard, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::volumes::table::{Found, Table};

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// The lengths of a header and of an entry, in bytes. Others are allowed, and not in use.
const HEADER_LEN: u32 = 92;
const ENTRY_LEN: u32 = 128;
/// The most entries that are read: 32 times as many as there usually are.
const MOST_ENTRIES: u32 = 4096;

/// Types with a name, by the GUID as it is written.
const TYPES: &[(&str, &str)] = &[
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"),
    ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "basic data"),
    ("de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery"),
    ("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", LDM),
    ("af9b60a0-1431-4f62-bc68-3311714a69ad", LDM),
    ("e75caf8f-f680-4cee-afa3-b001e56efc2d", STORAGE_SPACES),
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux data"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux boot"),
];
/// Types whose partitions are parts of something larger.
pub(crate) const LDM: &str = "LDM";
pub(crate) const STORAGE_SPACES: &str = "Storage Spaces";

/// Whether one of the places where a copy may be has one.
pub(crate) fn is_there(disk: &Bytes, sector: u64) -> Result<bool> {
    for at in [Some(sector), disk.len().checked_sub(sector)].into_iter().flatten() {
        let fits = at.checked_add(8).is_some_and(|end| end <= disk.len());
        if fits && disk.read(at, 8)? == SIGNATURE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the first copy, or the second one if the first one is of no use.
pub(crate) fn read(disk: &Bytes, sector: u64) -> Result<Table> {
    let last = (disk.len() / sector).saturating_sub(1);
    let (header, entries, warning) = match copy(disk, sector, 1) {
        Ok((header, entries)) => {
            let warning = match copy(disk, sector, header.backup_lba) {
                Ok((_, others)) if others == entries => None,
                Ok(_) => Some("the copies of the GPT differ: the first one is used".to_owned()),
                Err(error) if error.disk_error().is_some() => return Err(error),
                Err(error) => Some(format!("the second copy of the GPT {}", error.message())),
            };
            (header, entries, warning)
        }
        Err(error) if error.disk_error().is_some() => return Err(error),
        Err(first) => match copy(disk, sector, last) {
            Ok((header, entries)) => {
                let message = first.message();
                let warning =
                    format!("the first copy of the GPT {message}: the second one is used");
                (header, entries, Some(warning))
            }
            Err(error) if error.disk_error().is_some() => return Err(error),
            Err(second) => {
                let message = format!(
                    "neither copy of the GPT is of use: the first one {}, the second one {}",
                    first.message(),
                    second.message()
                );
                return Err(Error::damaged("files.gpt", message));
            }
        },
    };
    let used = entries.iter().enumerate().filter(|(_, entry)| entry.is_used());
    let found = used.map(|(index, entry)| {
        let kind = guid(entry.partition_type_guid);
        let name = TYPES.iter().find(|(of, _)| *of == kind).map(|(_, name)| (*name).to_owned());
        let start = entry.starting_lba.checked_mul(sector);
        let end = entry.ending_lba.checked_add(1).and_then(|end| end.checked_mul(sector));
        Found {
            number: index as u32 + 1,
            kind: name.unwrap_or(kind),
            name: Some(entry.partition_name.as_str().to_owned()).filter(|name| !name.is_empty()),
            id: Some(guid(entry.unique_partition_guid)),
            range: start.unwrap_or(u64::MAX)..end.unwrap_or(u64::MAX),
        }
    });
    let place = |lba: u64| lba.saturating_mul(sector).min(disk.len());
    let behind = place(header.last_usable_lba.saturating_add(1));
    Ok(Table {
        scheme: "GPT",
        own: vec![0..place(header.first_usable_lba), behind..disk.len()],
        id: Some(guid(header.disk_guid)),
        found: found.collect(),
        warnings: warning.into_iter().collect(),
    })
}

/// Reads the copy whose header lies in this sector. The error continues a sentence about the copy.
fn copy(disk: &Bytes, sector: u64, lba: u64) -> Result<(GPTHeader, Vec<GPTPartitionEntry>)> {
    let refused = |message: String| Err(Error::damaged("files.gpt", message));
    let sectors = disk.len() / sector;
    if lba == 0 || lba >= sectors {
        return refused(format!("would lie in sector {lba} of a disk of {sectors}"));
    }
    let raw = disk.read(lba * sector, HEADER_LEN as usize)?;
    if raw[..8] != *SIGNATURE {
        return refused(format!("has no header: found {:02x?}, expected \"EFI PART\"", &raw[..8]));
    }
    let count = u32_at(&raw, 80);
    for (what, found, least, most) in [
        ("a header of", u32_at(&raw, 12), HEADER_LEN, HEADER_LEN),
        ("entries of", u32_at(&raw, 84), ENTRY_LEN, ENTRY_LEN),
        ("a number of entries of", count, 1, MOST_ENTRIES),
    ] {
        if !(least..=most).contains(&found) {
            return refused(format!("has {what} {found}, expected {least} to {most}"));
        }
    }
    let array = u64_at(&raw, 72);
    let len = u64::from(count) * u64::from(ENTRY_LEN);
    let Some(start) = array
        .checked_mul(sector)
        .filter(|start| array > 0 && start.checked_add(len).is_some_and(|end| end <= disk.len()))
    else {
        return refused(format!("has its entries in sector {array} of a disk of {sectors}"));
    };
    let array = disk.read(start, len as usize)?;
    let damaged =
        |error: &dyn std::fmt::Display| Error::damaged("files.gpt", format!("is damaged: {error}"));
    guard(|| {
        let header = GPTHeader::read_from(&mut Cursor::new(&raw)).map_err(|e| damaged(&e))?;
        let mut rest = Cursor::new(&array);
        let entries: Vec<GPTPartitionEntry> = (0..count)
            .map(|_| GPTPartitionEntry::read_from(&mut rest))
            .collect::<Result<_, _>>()
            .map_err(|e| damaged(&e))?;
        if header.generate_partition_entry_array_crc32(&entries)
            != header.partition_entry_array_crc32
        {
            return Err(damaged(&"the checksum of its entries does not match"));
        }
        Ok((header, entries))
    })
}

/// A GUID as it is written; the first three numbers are little-endian.
fn guid(bytes: [u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "{:08x}-{:04x}-{:04x}-{}-{}",
        u32_at(&bytes, 0),
        u32_at(&bytes, 4) & 0xFFFF,
        u32_at(&bytes, 6) & 0xFFFF,
        hex(&bytes[8..10]),
        hex(&bytes[10..])
    )
}
