//! GUID partition tables: their two copies, and how the second one follows the end of a disk.
//!
//! The copies are read and made by `gptman`, after the numbers in them are bounded.

use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;

use avhdx::{Cursor, Disk, Zeroing};
use gptman::{GPTHeader, GPTPartitionEntry};

use crate::failure::{Exit, Failure};

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// The length of a header, and of an entry, in bytes. Others are allowed, and not in use.
const HEADER_LEN: u32 = 92;
const ENTRY_LEN: u32 = 128;
/// The most entries that are read: 32 times as many as there usually are.
const MOST_ENTRIES: u32 = 4096;
/// The type of the entry in the MBR that keeps programs without GPT away.
const PROTECTIVE: u8 = 0xEE;

/// What a host writes whole or not at all, in bytes.
const PIECE: usize = 512;

/// A table whose copies agree.
#[derive(Debug)]
pub(crate) struct Gpt {
    sector: u64,
    primary: GPTHeader,
    backup: GPTHeader,
    entries: Vec<GPTPartitionEntry>,
    name: String,
    /// Whether an interrupted move left the second copy in parts.
    is_torn: bool,
    /// Where an interrupted move left a copy that the first one does not name, in bytes.
    left: Option<Range<u64>>,
}

/// Whether the disk has a copy of a GPT, in the second sector or in the last one.
pub(crate) fn has_gpt(disk: &dyn Disk) -> Result<bool, Failure> {
    let geometry = disk.geometry();
    let sector = u64::from(geometry.logical_sector);
    for at in [Some(sector), geometry.size.checked_sub(sector)].into_iter().flatten() {
        let mut signature = [0; 8];
        if at + sector <= geometry.size {
            disk.read_at(&mut signature, at)?;
        }
        if signature == *SIGNATURE {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Gpt {
    /// Reads both copies of the table. Refuses copies that are damaged or differ, and a table that others share.
    pub(crate) fn read(disk: &dyn Disk, name: &str) -> Result<Self, Failure> {
        let geometry = disk.geometry();
        let sector = u64::from(geometry.logical_sector);
        let last = (geometry.size / sector).saturating_sub(1);
        let first = read_copy(disk, sector, 1);
        // The second copy is where the first one says: not in the last sector of a disk that has grown.
        let second = match &first {
            Ok((header, _)) => header.backup_lba,
            Err(_) => last,
        };
        let backup = read_copy(disk, sector, second);
        let ((primary, entries), (backup, of_backup)) = match (first, backup) {
            (Ok(first), Ok(backup)) => (first, backup),
            (Err(why), Ok(_)) => return Err(differ(name, (1, &why), (second, "is whole"))),
            (Ok(_), Err(why)) => return Err(differ(name, (1, "is whole"), (second, &why))),
            (Err(why), Err(other)) => {
                let message = format!(
                    "{name}: neither copy of the GPT is of use: the first, in sector 1, {why}; the second, in sector \
                     {second}, {other}"
                );
                return Err(Failure::new(Exit::Refused, "resize.gpt-copies", message));
            }
        };
        if facts(&primary) != facts(&backup) || entries != of_backup {
            let said = |header: &GPTHeader, list: &[GPTPartitionEntry]| {
                let used = list.iter().filter(|entry| entry.is_used()).count();
                let (from, to) = (header.first_usable_lba, header.last_usable_lba);
                format!("has {used} partitions in the sectors {from} to {to}")
            };
            let [first, other] = [said(&primary, &entries), said(&backup, &of_backup)];
            return Err(differ(name, (1, &first), (second, &other)));
        }
        let name = name.to_owned();
        let gpt = Self { sector, primary, backup, entries, name, is_torn: false, left: None };
        gpt.check_protective(disk)?;
        Ok(gpt)
    }

    /// Reads the table to move its second copy to the end of a disk of `to` bytes, or of one that fits the partitions.
    /// A move there, or to the end that the disk has now, may have been interrupted: what it left is known by its bytes.
    pub(crate) fn resume(disk: &dyn Disk, name: &str, to: Option<u64>) -> Result<Self, Failure> {
        let mut gpt = match Self::read(disk, name) {
            Err(refused) if refused.is("resize.gpt-copies") => {
                Self::read_torn(disk, name, to)?.ok_or(refused)?
            }
            read => read?,
        };
        let size = disk.geometry().size;
        if gpt.backup_start() != gpt.place(size).start {
            let place = gpt.place(size);
            let mut bytes = vec![0; (place.end - place.start) as usize];
            disk.read_at(&mut bytes, place.start)?;
            let is_there = bytes.iter().any(|byte| *byte != 0);
            gpt.left = (is_there && gpt.check_place(disk, size).is_ok()).then_some(place);
        }
        Ok(gpt)
    }

    /// Reads a table whose second copy is in parts; `None` if the first one is damaged too, or if there are other bytes
    /// in the place of the second one than those of a move.
    fn read_torn(disk: &dyn Disk, name: &str, to: Option<u64>) -> Result<Option<Self>, Failure> {
        let size = disk.geometry().size;
        let sector = u64::from(disk.geometry().logical_sector);
        let Ok((primary, entries)) = read_copy(disk, sector, 1) else { return Ok(None) };
        let array = array_sectors(&primary, sector);
        let last = primary.backup_lba;
        let is_behind = last.checked_sub(array).is_some_and(|at| at > primary.last_usable_lba);
        // A copy that is whole is another table.
        if !is_behind || last >= size / sector || read_copy(disk, sector, last).is_ok() {
            return Ok(None);
        }
        let (backup, name) = (as_backup(&primary, array), name.to_owned());
        let gpt = Self { sector, primary, backup, entries, name, is_torn: true, left: None };
        gpt.check_protective(disk)?;
        let to = to.unwrap_or_else(|| gpt.fitting_sectors().saturating_mul(sector));
        let start = gpt.backup_start();
        let mut copies = vec![(start, gpt.copy(&gpt.backup)?.concat())];
        for moved in [size, to] {
            if let Ok(moved) = gpt.moved(moved) {
                let moved = as_backup(&moved, array);
                let bytes = gpt.copy(&moved)?.concat();
                copies.push((moved.partition_entry_lba * sector, bytes));
            }
        }
        let mut found = vec![0; copies[0].1.len()];
        disk.read_at(&mut found, start)?;
        let is_of_move = |(n, piece): (usize, &[u8])| {
            let at = start + (n * PIECE) as u64;
            let is_of = |(start, copy): &(u64, Vec<u8>)| {
                let within = at.checked_sub(*start).map(|at| at as usize);
                within.and_then(|at| copy.get(at..at + piece.len())) == Some(piece)
            };
            piece.iter().all(|byte| *byte == 0) || copies.iter().any(is_of)
        };
        Ok(found.chunks(PIECE).enumerate().all(is_of_move).then_some(gpt))
    }

    /// Whether an interrupted move left the second copy in parts.
    pub(crate) fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// How many sectors a disk needs for the partitions and the second copy.
    pub(crate) fn fitting_sectors(&self) -> u64 {
        let used = self.used().map(|(_, entry)| entry.ending_lba.saturating_add(1)).max();
        let end = used.unwrap_or(0).max(self.primary.first_usable_lba.saturating_add(1));
        end.saturating_add(self.array_sectors() + 1)
    }

    /// Moves the second copy to the end of a disk of `size` bytes, which `disk` has or will have. After a crash at any
    /// point the first copy is whole, and so is a second one unless its old and its new place overlap. Until all is done
    /// the first one names the old place, so that [`resume`](Self::resume) finds what there is to do.
    ///
    /// # Errors
    /// Those of the disk, and refusals: a partition would be cut, or there is no room for the table.
    pub(crate) fn move_backup(&self, disk: &dyn Disk, size: u64) -> Result<(), Failure> {
        let moved = self.moved(size)?;
        let backup = as_backup(&moved, self.array_sectors());
        let [entries, header] = self.copy(&backup)?;
        disk.write_at(&entries, backup.partition_entry_lba * self.sector)?;
        disk.flush()?;
        disk.write_at(&header, backup.primary_lba * self.sector)?;
        disk.flush()?;
        // What is left of the former second copy would look like data there.
        self.clear_old_backup(disk, &backup)?;
        self.set_protective(disk, size / self.sector)?;
        // One sector, which a crash does not tear where it counts. The entries stay as they are.
        let [_, header] = self.copy(&moved)?;
        disk.write_at(&header, moved.primary_lba * self.sector)?;
        Ok(disk.flush()?)
    }

    /// Refuses a size for which the table has no room, or that cuts a partition.
    pub(crate) fn check_size(&self, size: u64) -> Result<(), Failure> {
        self.moved(size).map(drop)
    }

    /// Whether the second copy lies at the end of a disk of this size.
    pub(crate) fn ends_with(&self, size: u64) -> bool {
        !self.is_torn
            && self.primary.backup_lba == size / self.sector - 1
            && self.backup_start() == self.place(size).start
    }

    /// Where the second copy lies on a disk of this size, in bytes.
    pub(crate) fn place(&self, size: u64) -> Range<u64> {
        let end = size / self.sector;
        (end - self.array_sectors() - 1) * self.sector..end * self.sector
    }

    /// Refuses to put the second copy over bytes other than zeros, apart from the former copy and what an interrupted
    /// move wrote there.
    pub(crate) fn check_place(&self, disk: &dyn Disk, size: u64) -> Result<(), Failure> {
        let place = self.place(size);
        let Range { start, end } = place.start..place.end.min(disk.geometry().size);
        let mut bytes = vec![0; end.saturating_sub(start) as usize];
        disk.read_at(&mut bytes, start.min(end))?;
        let copy = self.copy(&as_backup(&self.moved(size)?, self.array_sectors()))?.concat();
        let own: Vec<Range<u64>> = self.own_places().collect();
        let is_lost = |at: u64| !own.iter().any(|own| own.contains(&at));
        let pieces = bytes.chunks(PIECE).zip(copy.chunks(PIECE)).enumerate();
        let others = pieces.filter(|(_, (found, copy))| found != copy);
        let mut bytes =
            others.flat_map(|(n, (found, _))| (start + (n * PIECE) as u64..).zip(found));
        let lost = bytes.find(|(at, byte)| **byte != 0 && is_lost(*at));
        lost.map_or(Ok(()), |(at, _)| {
            let message = format!(
                "{}: the second copy of the GPT would replace a byte other than zero at {at} of the disk",
                self.name
            );
            Err(Failure::new(Exit::Refused, "resize.cuts", message))
        })
    }

    /// Where the second copy lies, and what else an interrupted move left, in bytes.
    fn own_places(&self) -> impl Iterator<Item = Range<u64>> {
        let (header, entries) = (self.backup.primary_lba, self.backup.partition_entry_lba);
        let places = [entries..entries + self.array_sectors(), header..header + 1];
        let in_bytes = |place: Range<u64>| place.start * self.sector..place.end * self.sector;
        places.map(in_bytes).into_iter().chain(self.left.clone())
    }

    /// The header of the first copy for a disk of this size.
    fn moved(&self, size: u64) -> Result<GPTHeader, Failure> {
        let sectors = size / self.sector;
        let last = sectors.checked_sub(self.array_sectors() + 2);
        let Some(last_usable_lba) = last.filter(|last| *last >= self.primary.first_usable_lba)
        else {
            let message = format!(
                "{}: the disk has no room for its GPT: it needs at least {} sectors, not {sectors}",
                self.name,
                self.primary.first_usable_lba + self.array_sectors() + 2
            );
            return Err(Failure::new(Exit::Refused, "resize.partition", message));
        };
        if let Some((number, cut)) = self
            .used()
            .filter(|(_, entry)| entry.ending_lba > last_usable_lba)
            .max_by_key(|(_, entry)| entry.ending_lba)
        {
            let message = format!(
                "{}: partition {number} would be cut: it ends at sector {}, and the last one that the disk would have \
                 for partitions is {last_usable_lba}",
                self.name, cut.ending_lba
            );
            return Err(Failure::new(Exit::Refused, "resize.partition", message));
        }
        let mut moved = self.primary.clone();
        (moved.last_usable_lba, moved.backup_lba) = (last_usable_lba, sectors - 1);
        Ok(moved)
    }

    /// The partitions in use with their numbers.
    fn used(&self) -> impl Iterator<Item = (usize, &GPTPartitionEntry)> {
        let numbered = self.entries.iter().enumerate().map(|(n, entry)| (n + 1, entry));
        numbered.filter(|(_, entry)| entry.is_used())
    }

    fn array_sectors(&self) -> u64 {
        array_sectors(&self.primary, self.sector)
    }

    /// The entries and the header of the copy that has this header, each in whole sectors.
    fn copy(&self, header: &GPTHeader) -> Result<[Vec<u8>; 2], Failure> {
        let mut written = Writes::default();
        let mut header = header.clone();
        header.write_into(&mut written, self.sector, &self.entries).map_err(|error| {
            Failure::new(Exit::Refused, "resize.gpt-write", format!("{}: {error}", self.name))
        })?;
        let mut runs = written.runs.into_iter().map(|(_, bytes)| bytes);
        let mut whole = |sectors: u64| {
            let mut run = runs.next().unwrap_or_default();
            run.resize((sectors * self.sector) as usize, 0);
            run
        };
        let header = whole(1);
        Ok([whole(self.array_sectors()), header])
    }

    /// Where the second copy begins, in bytes: bytes from there on are not of a partition.
    pub(crate) fn backup_start(&self) -> u64 {
        self.backup.partition_entry_lba * self.sector
    }

    /// Makes zeros of the former second copy, as far as the new one does not lie there.
    fn clear_old_backup(&self, disk: &dyn Disk, new: &GPTHeader) -> Result<(), Failure> {
        let taken = new.partition_entry_lba * self.sector..(new.primary_lba + 1) * self.sector;
        for old in self.own_places() {
            let before = old.start..old.end.min(taken.start);
            let behind = old.start.max(taken.end)..old.end;
            for part in [before, behind].into_iter().filter(|part| !part.is_empty()) {
                disk.write_zeroes(part, Zeroing::KeepSpace)?;
            }
        }
        Ok(disk.flush()?)
    }

    /// Refuses an MBR that programs without GPT use.
    fn check_protective(&self, disk: &dyn Disk) -> Result<(), Failure> {
        let mbr = read_mbr(disk)?;
        let kinds: Vec<u8> = (0..4).map(|n| mbr[450 + 16 * n]).filter(|kind| *kind != 0).collect();
        if mbr[510..512] == [0x55, 0xAA] && kinds == [PROTECTIVE] {
            return Ok(());
        }
        let shown: Vec<String> = kinds.iter().map(|kind| format!("0x{kind:02X}")).collect();
        let message = format!(
            "{}: the MBR is not the one that protects a GPT: found partitions of the types {}, expected one of the \
             type 0xEE alone",
            self.name,
            if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
        );
        Err(Failure::new(Exit::Refused, "resize.gpt-hybrid", message))
    }

    /// Has the protective MBR cover a disk of this many sectors.
    fn set_protective(&self, disk: &dyn Disk, sectors: u64) -> Result<(), Failure> {
        let mut mbr = read_mbr(disk)?;
        let Some(n) = (0..4).find(|n| mbr[450 + 16 * n] == PROTECTIVE) else { return Ok(()) };
        let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
        mbr[458 + 16 * n..][..4].copy_from_slice(&size.to_le_bytes());
        disk.write_at(&mbr, 0)?;
        Ok(disk.flush()?)
    }
}

/// What both copies must have in common.
fn facts(header: &GPTHeader) -> (u64, u64, [u8; 16], u32, u32) {
    let GPTHeader { first_usable_lba: first, last_usable_lba: last, .. } = *header;
    let (count, sum) = (header.number_of_partition_entries, header.partition_entry_array_crc32);
    (first, last, header.disk_guid, count, sum)
}

/// The second copy that belongs to this first one.
fn as_backup(primary: &GPTHeader, array: u64) -> GPTHeader {
    let mut backup = primary.clone();
    (backup.primary_lba, backup.backup_lba) = (primary.backup_lba, primary.primary_lba);
    backup.partition_entry_lba = primary.backup_lba - array;
    backup
}

fn array_sectors(header: &GPTHeader, sector: u64) -> u64 {
    (u64::from(header.number_of_partition_entries) * u64::from(ENTRY_LEN)).div_ceil(sector)
}

/// Reads the copy whose header lies in this sector; says what is wrong with it.
fn read_copy(
    disk: &dyn Disk,
    sector: u64,
    lba: u64,
) -> Result<(GPTHeader, Vec<GPTPartitionEntry>), String> {
    let sectors = disk.geometry().size / sector;
    if lba == 0 || lba >= sectors {
        return Err(format!("is not on the disk of {sectors} sectors"));
    }
    let mut raw = [0; HEADER_LEN as usize];
    disk.read_at(&mut raw, lba * sector).map_err(|error| error.to_string())?;
    if raw[..8] != *SIGNATURE {
        return Err(format!("has no header: found {:02X?}, expected \"EFI PART\"", &raw[..8]));
    }
    let number = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
    for (what, found, least, most) in [
        ("a header of", number(12), HEADER_LEN, HEADER_LEN),
        ("entries of", number(84), ENTRY_LEN, ENTRY_LEN),
        ("a number of entries of", number(80), 1, MOST_ENTRIES),
    ] {
        if !(least..=most).contains(&found) {
            let expected =
                if least == most { least.to_string() } else { format!("{least} to {most}") };
            return Err(format!("has {what} {found}, expected {expected}"));
        }
    }
    let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| raw[at + n]));
    let array = (u64::from(number(80)) * u64::from(ENTRY_LEN)).div_ceil(sector);
    let (at, first, last) = (long(72), long(40), long(48));
    // The entries of the first copy lie before the partitions, those of the second one behind them.
    let room = if lba == 1 { 2..first.min(sectors) } else { last.saturating_add(1)..lba };
    if at < room.start || at.checked_add(array).is_none_or(|end| end > room.end) {
        let Range { start, end } = room;
        return Err(format!(
            "has its entries in {array} sectors from sector {at}, expected a place in {start} to {end}"
        ));
    }
    if long(24) != lba {
        return Err(format!("says that it lies in sector {}", long(24)));
    }
    let other = long(32);
    if (lba == 1) == (other == 1) {
        return Err(format!("names sector {other} as the place of the other copy"));
    }
    let mut cursor = Cursor::new(disk);
    let damaged = |error: gptman::Error| format!("is damaged: {error}");
    let start = |at: u64, cursor: &mut Cursor<&dyn Disk>| {
        cursor.seek(SeekFrom::Start(at)).map_err(|error| damaged(error.into()))
    };
    start(lba * sector, &mut cursor)?;
    let header = GPTHeader::read_from(&mut cursor).map_err(damaged)?;
    start(at * sector, &mut cursor)?;
    let entries: Vec<GPTPartitionEntry> = (0..header.number_of_partition_entries)
        .map(|_| GPTPartitionEntry::read_from(&mut cursor))
        .collect::<Result<_, _>>()
        .map_err(|error| damaged(error.into()))?;
    let sum = header.generate_partition_entry_array_crc32(&entries);
    if sum != header.partition_entry_array_crc32 {
        let found = header.partition_entry_array_crc32;
        return Err(damaged(gptman::Error::InvalidPartitionEntryArrayChecksum(found, sum)));
    }
    let is_odd = |entry: &&GPTPartitionEntry| {
        entry.is_used()
            && !(header.first_usable_lba <= entry.starting_lba
                && entry.starting_lba <= entry.ending_lba
                && entry.ending_lba <= header.last_usable_lba)
    };
    if let Some(odd) = entries.iter().find(is_odd) {
        let (from, to) = (odd.starting_lba, odd.ending_lba);
        let (first, last) = (header.first_usable_lba, header.last_usable_lba);
        return Err(format!(
            "has a partition from sector {from} to {to}, expected one in {first} to {last}"
        ));
    }
    Ok((header, entries))
}

fn read_mbr(disk: &dyn Disk) -> Result<[u8; 512], Failure> {
    let mut mbr = [0; 512];
    disk.read_at(&mut mbr, 0)?;
    Ok(mbr)
}

/// The refusal of copies that do not agree, each with its sector and what is found there.
fn differ(name: &str, first: (u64, &str), second: (u64, &str)) -> Failure {
    let message = format!(
        "{name}: the copies of the GPT differ: the first, in sector {}, {}; the second, in sector {}, {}",
        first.0, first.1, second.0, second.1
    );
    Failure::new(Exit::Refused, "resize.gpt-copies", message)
}

/// Keeps what is written: runs of bytes, each with its place.
#[derive(Debug, Default)]
struct Writes {
    at: u64,
    runs: Vec<(u64, Vec<u8>)>,
}

impl Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.runs.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == self.at => {
                run.extend_from_slice(bytes);
            }
            _ => self.runs.push((self.at, bytes.to_vec())),
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Writes {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(at) => self.at = at,
            SeekFrom::End(_) | SeekFrom::Current(_) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests;
