//! The undo file: what a repair overwrites, and what it leaves there.
//!
//! | at | what |
//! |---|---|
//! | 0 | `avhdx undo\n`, NUL to 16 bytes |
//! | 16 | version 1, number of entries (u32 each) |
//! | 24 | length of the image before and after, length of this file (u64 each) |
//! | 48 | CRC-32C of the entries, CRC-32C of these 52 bytes (u32 each) |
//! | 64 | the entries, 64 bytes each |
//! | behind | old and new bytes |
//!
//! An entry: start and end in the image, place of the old and of the new bytes in this file (0 if there are none), CRC-32C of
//! both, and what they are: bytes, zeros, a hole, or behind the old end. All numbers are little-endian. Entries are in
//! the order of the image and do not overlap. Behind the old end, the new bytes are not stored: their CRC-32C is.

use std::io;
use std::ops::Range;

use byteorder::{ByteOrder, LittleEndian};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Headers};
use crate::ops::is_zero;
use crate::storage::{ChangedRange, Scratch, Storage};

const MAGIC: &[u8; 16] = b"avhdx undo\n\0\0\0\0\0";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const ENTRY_LEN: usize = 64;
/// The longest range of an entry.
const MOST_RANGE: u64 = 1 << 20;
/// How many entries are read.
const MOST_ENTRIES: u64 = 1 << 22;
/// The unit that is either old or new.
const UNIT: usize = 512;

/// What a range held, or holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bytes,
    Zeros,
    /// Zeros without space on the host.
    Hole,
    /// The file ended before.
    Beyond,
    /// Only the sum of them is known.
    Sum,
}

#[derive(Clone, Debug)]
struct Entry {
    range: Range<u64>,
    old: Kind,
    old_at: u64,
    old_sum: u32,
    new: Kind,
    new_at: u64,
    new_sum: u32,
}

/// An undo file: its table, whose bytes lie behind it.
#[derive(Clone, Debug)]
pub(super) struct Undo {
    pub(super) old_len: u64,
    pub(super) new_len: u64,
    len: u64,
    entries: Vec<Entry>,
}

/// How far a repair has got in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It has not begun, or is undone.
    Old,
    /// It is complete.
    New,
    /// It was interrupted, or undoing it was.
    Mixed,
}

impl Undo {
    /// The table for these changes, without the sums.
    pub(super) fn of(image: &Scratch, changes: &[ChangedRange]) -> Result<Self> {
        let base = image.base();
        let (old_len, new_len) = (image.base_len(), image.len().map_err(unreadable)?);
        let mut at = (HEADER_LEN + ENTRY_LEN * changes.len()) as u64;
        let mut entries = Vec::new();
        for ChangedRange { range, is_zero } in changes {
            let len = range.end - range.start;
            let mut place = || {
                at += len;
                at - len
            };
            let (old, new) = if range.start >= old_len {
                (Kind::Beyond, Kind::Sum)
            } else {
                let is_hole = match base.next_data(range.start) {
                    Ok(data) => data.is_none_or(|data| data.start >= range.end),
                    Err(_) => false,
                };
                let old = if is_hole { Kind::Hole } else { Kind::Bytes };
                (old, if *is_zero { Kind::Zeros } else { Kind::Bytes })
            };
            let old_at = if old == Kind::Bytes { place() } else { 0 };
            let new_at = if new == Kind::Bytes { place() } else { 0 };
            let range = range.clone();
            entries.push(Entry { range, old, old_at, old_sum: 0, new, new_at, new_sum: 0 });
        }
        Ok(Self { old_len, new_len, len: at, entries })
    }

    /// The length of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Writes the file and its sums. It is not durable yet.
    pub(super) fn write(&mut self, file: &dyn Storage, image: &Scratch) -> io::Result<()> {
        let mut bytes = Vec::new();
        for entry in &mut self.entries {
            bytes.resize((entry.range.end - entry.range.start) as usize, 0);
            if entry.old != Kind::Beyond {
                image.base().read_exact_at(&mut bytes, entry.range.start)?;
                entry.old_sum = crc32c::crc32c(&bytes);
                if entry.old == Kind::Bytes {
                    file.write_at(&bytes, entry.old_at)?;
                } else if !is_zero(&bytes) {
                    return Err(io::Error::other("a hole of the image is filled meanwhile"));
                }
            }
            image.read_exact_at(&mut bytes, entry.range.start)?;
            entry.new_sum = crc32c::crc32c(&bytes);
            if entry.new == Kind::Bytes {
                file.write_at(&bytes, entry.new_at)?;
            }
        }
        let table: Vec<u8> = self.entries.iter().flat_map(Entry::to_bytes).collect();
        file.write_at(&table, HEADER_LEN as u64)?;
        let mut header = [0; HEADER_LEN];
        header[..16].copy_from_slice(MAGIC);
        LittleEndian::write_u32(&mut header[16..], VERSION);
        LittleEndian::write_u32(&mut header[20..], self.entries.len() as u32);
        LittleEndian::write_u64_into(&[self.old_len, self.new_len, self.len], &mut header[24..48]);
        LittleEndian::write_u32(&mut header[48..], crc32c::crc32c(&table));
        let sum = crc32c::crc32c(&header[..52]);
        LittleEndian::write_u32(&mut header[52..], sum);
        file.write_at(&header, 0)
    }

    /// Reads a file, and proves that it is whole.
    pub(super) fn read(file: &dyn Storage) -> Result<Self> {
        let bad =
            |at: u64, message: &str| Error::new(ErrorKind::Damaged, "undo.damaged", message).at(at);
        let name = file.name().to_owned();
        let read = || -> Result<Self> {
            let mut header = [0; HEADER_LEN];
            let len = file.len().map_err(unreadable)?;
            if len < HEADER_LEN as u64 {
                return Err(no_undo());
            }
            file.read_exact_at(&mut header, 0).map_err(unreadable)?;
            if &header[..16] != MAGIC {
                return Err(no_undo());
            }
            let version = LittleEndian::read_u32(&header[16..]);
            if version != VERSION {
                let message = "an undo file of an unknown version";
                return Err(Error::new(ErrorKind::Unsupported, "undo.version", message)
                    .at(16)
                    .with_found(version)
                    .with_expected(VERSION));
            }
            if LittleEndian::read_u32(&header[52..]) != crc32c::crc32c(&header[..52]) {
                return Err(bad(52, "the sum of the header is wrong"));
            }
            let count = u64::from(LittleEndian::read_u32(&header[20..]));
            let mut lens = [0; 3];
            LittleEndian::read_u64_into(&header[24..48], &mut lens);
            if lens[2] != len || count > MOST_ENTRIES {
                return Err(bad(40, "the undo file is not whole")
                    .with_found(format_args!("{len} bytes"))
                    .with_expected(format_args!("{} bytes", lens[2])));
            }
            let table_len = ENTRY_LEN as u64 * count;
            if HEADER_LEN as u64 + table_len > len {
                return Err(bad(20, "the undo file is not whole"));
            }
            let mut table = vec![0; table_len as usize];
            file.read_exact_at(&mut table, HEADER_LEN as u64).map_err(unreadable)?;
            if LittleEndian::read_u32(&header[48..]) != crc32c::crc32c(&table) {
                return Err(bad(48, "the sum of the entries is wrong"));
            }
            let entries: Option<Vec<Entry>> =
                table.chunks(ENTRY_LEN).map(|bytes| Entry::parse(bytes, len)).collect();
            let undo = Self {
                old_len: lens[0],
                new_len: lens[1],
                len,
                entries: entries.ok_or_else(no_undo)?,
            };
            undo.prove(file)?;
            Ok(undo)
        };
        read().map_err(|error| error.in_file(name))
    }

    fn prove(&self, file: &dyn Storage) -> Result<()> {
        let mut before = 0;
        let mut bytes = Vec::new();
        for (i, entry) in self.entries.iter().enumerate() {
            let at = (HEADER_LEN + ENTRY_LEN * i) as u64;
            let bad =
                |message: &str| Error::new(ErrorKind::Damaged, "undo.damaged", message).at(at);
            let ends = self.old_len.max(self.new_len);
            if entry.range.start < before || entry.range.end > ends {
                return Err(bad("an entry that is out of order"));
            }
            before = entry.range.end;
            for (kind, place, sum) in
                [(entry.old, entry.old_at, entry.old_sum), (entry.new, entry.new_at, entry.new_sum)]
            {
                if kind != Kind::Bytes {
                    continue;
                }
                bytes.resize((entry.range.end - entry.range.start) as usize, 0);
                file.read_exact_at(&mut bytes, place).map_err(unreadable)?;
                if crc32c::crc32c(&bytes) != sum {
                    return Err(bad("the sum of the bytes of an entry is wrong"));
                }
            }
        }
        Ok(())
    }

    /// Compares the image with both states. Each 512 bytes must be old or new.
    ///
    /// # Errors
    /// [`ErrorKind::Unproven`] if the image has been changed since.
    pub(super) fn compare(&self, file: &dyn Storage, image: &dyn Storage) -> Result<Found> {
        let len = image.len().map_err(unreadable)?;
        let other_length = || {
            changed(len, "another length")
                .with_found(format_args!("{len} bytes"))
                .with_expected(format_args!("{} or {} bytes", self.old_len, self.new_len))
        };
        // A crash may leave a file that has grown by a part.
        if len < self.old_len.min(self.new_len) || len > self.old_len.max(self.new_len) {
            return Err(other_length());
        }
        // Headers are written last, and restored first: once they are new, all else is.
        let mut old_headers = false;
        let (mut first_old, mut any_new) = (None, len != self.old_len);
        let mut appended_differs = None;
        let (mut there, mut old, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for entry in &self.entries {
            let size = (entry.range.end - entry.range.start) as usize;
            for bytes in [&mut there, &mut old, &mut new] {
                bytes.clear();
                bytes.resize(size, 0);
            }
            if entry.old == Kind::Beyond {
                if len == self.new_len && self.old_len < self.new_len {
                    image.read_exact_at(&mut there, entry.range.start).map_err(unreadable)?;
                    if crc32c::crc32c(&there) != entry.new_sum {
                        appended_differs.get_or_insert(entry.range.start);
                    }
                }
                continue;
            }
            if entry.range.end > len {
                continue;
            }
            image.read_exact_at(&mut there, entry.range.start).map_err(unreadable)?;
            if entry.old == Kind::Bytes {
                file.read_exact_at(&mut old, entry.old_at).map_err(unreadable)?;
            }
            if entry.new == Kind::Bytes {
                file.read_exact_at(&mut new, entry.new_at).map_err(unreadable)?;
            }
            let units = there.chunks(UNIT).zip(old.chunks(UNIT).zip(new.chunks(UNIT)));
            for (n, (there, (old, new))) in units.enumerate() {
                if there == old && old != new {
                    old_headers |= is_of_headers(&entry.range);
                    first_old.get_or_insert(entry.range.start);
                }
                any_new |= there == new && old != new;
                if there != old && there != new {
                    let at = entry.range.start + (n * UNIT) as u64;
                    return Err(changed(at, "bytes that the repair did not leave")
                        .with_expected("what was there before the repair, or what it left"));
                }
            }
        }
        match (old_headers, first_old.or(appended_differs)) {
            (false, None) if len == self.new_len => Ok(Found::New),
            (false, None) if len == self.old_len => Ok(Found::Mixed),
            (false, None) => Err(other_length()),
            (false, Some(at)) => Err(changed(at, "bytes that the repair did not leave")
                .with_expected("what the repair wrote there, as its headers are in place")),
            (true, _) if any_new => Ok(Found::Mixed),
            (true, _) => Ok(Found::Old),
        }
    }

    /// The identity that the old headers gave the image, if they did.
    pub(super) fn old_identity(&self, file: &dyn Storage) -> Result<Option<Uuid>> {
        let mut copies = [vec![0; Header::LEN], vec![0; Header::LEN]];
        for (copy, start) in copies.iter_mut().zip(Header::OFFSETS) {
            let end = start + Header::LEN as u64;
            for entry in &self.entries {
                let range = &entry.range;
                if entry.old != Kind::Bytes || range.start < start || range.end > end {
                    continue;
                }
                let within = (range.start - start) as usize..(range.end - start) as usize;
                file.read_exact_at(&mut copy[within], entry.old_at).map_err(unreadable)?;
            }
        }
        let headers = Headers::parse([&copies[0], &copies[1]]).ok();
        Ok(headers.map(|headers| headers.current().data_write_guid))
    }

    /// Puts the old bytes back, and the old length. Each part is durable when this returns.
    pub(super) fn restore(&self, file: &dyn Storage, image: &dyn Storage) -> io::Result<()> {
        if image.len()? < self.old_len {
            image.set_len(self.old_len)?;
        }
        let mut bytes = Vec::new();
        // First the headers: an image that is half restored is then one whose repair was interrupted.
        let (first, then): (Vec<&Entry>, Vec<&Entry>) =
            self.entries.iter().partition(|entry| is_of_headers(&entry.range));
        for entries in [first, then] {
            for entry in entries {
                match entry.old {
                    Kind::Beyond | Kind::Sum => continue,
                    Kind::Hole if image.punch(entry.range.clone())? => continue,
                    Kind::Hole | Kind::Zeros if image.zero(entry.range.clone())? => continue,
                    _ => {}
                }
                bytes.clear();
                bytes.resize((entry.range.end - entry.range.start) as usize, 0);
                if entry.old == Kind::Bytes {
                    file.read_exact_at(&mut bytes, entry.old_at)?;
                }
                image.write_at(&bytes, entry.range.start)?;
            }
            image.flush()?;
        }
        if image.len()? > self.old_len {
            image.set_len(self.old_len)?;
        }
        image.flush()
    }
}

/// Whether a range lies in the two headers.
pub(super) fn is_of_headers(range: &Range<u64>) -> bool {
    range.start >= 64 << 10 && range.end <= 192 << 10
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Bytes => 0,
            Self::Zeros => 1,
            Self::Hole => 2,
            Self::Beyond => 3,
            Self::Sum => 4,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Bytes, Self::Zeros, Self::Hole, Self::Beyond, Self::Sum]
            .get(usize::from(number))
            .copied()
    }
}

impl Entry {
    fn to_bytes(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        let places = [self.range.start, self.range.end, self.old_at, self.new_at];
        LittleEndian::write_u64_into(&places, &mut bytes[..32]);
        LittleEndian::write_u32_into(&[self.old_sum, self.new_sum], &mut bytes[32..40]);
        bytes[40] = self.old.number();
        bytes[41] = self.new.number();
        bytes
    }

    /// Reads an entry of a file of `len` bytes; `None` for one that no repair writes.
    fn parse(bytes: &[u8], len: u64) -> Option<Self> {
        let mut places = [0; 4];
        LittleEndian::read_u64_into(&bytes[..32], &mut places);
        let [start, end, old_at, new_at] = places;
        let size = end.checked_sub(start).filter(|size| (1..=MOST_RANGE).contains(size))?;
        let entry = Self {
            range: start..end,
            old: Kind::of(bytes[40])?,
            old_at,
            old_sum: LittleEndian::read_u32(&bytes[32..]),
            new: Kind::of(bytes[41])?,
            new_at,
            new_sum: LittleEndian::read_u32(&bytes[36..]),
        };
        let is_old = matches!(entry.old, Kind::Bytes | Kind::Zeros | Kind::Hole);
        let is_new = matches!(entry.new, Kind::Bytes | Kind::Zeros);
        let is_behind = entry.old == Kind::Beyond && entry.new == Kind::Sum;
        let lies = |kind, at: u64| {
            kind != Kind::Bytes || at.checked_add(size).is_some_and(|end| end <= len)
        };
        let is_whole = lies(entry.old, old_at) && lies(entry.new, new_at);
        ((is_old && is_new || is_behind) && is_whole).then_some(entry)
    }
}

fn no_undo() -> Error {
    let message = "not an undo file of a repair";
    Error::new(ErrorKind::InvalidInput, "undo.format", message)
        .at(0)
        .with_expected("a file that a repair of this program wrote")
}

fn changed(at: u64, what: &str) -> Error {
    let message = format!("the image was changed since the repair: it has {what}");
    Error::new(ErrorKind::Unproven, "undo.changed", message).at(at)
}

fn unreadable(error: io::Error) -> Error {
    Error::io("file.read", "cannot read the file", error)
}
