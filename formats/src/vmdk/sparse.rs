//! An extent with tables: where its bytes are.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx::{Error, Result};

use super::header::{Header, Kind, Packing, SECTOR, damaged, le32, le64};
use crate::cache::{Pages, read_up_to};
use crate::stack::Found;

/// The most grains that one look passes over.
const MOST_GRAINS: u64 = 1 << 14;

/// An extent with tables.
#[derive(Debug)]
pub(super) struct Sparse {
    storage: Arc<dyn Storage>,
    len: u64,
    pub(super) header: Header,
    pages: Pages,
}

/// What an entry says of the bytes at an offset.
struct Entry {
    found: Found,
    /// The end of what the entry says so, in the extent.
    end: u64,
}

impl Sparse {
    /// Opens an extent, whose tables are kept in so many pages.
    pub(super) fn open(storage: Arc<dyn Storage>, pages: NonZeroUsize) -> Result<Self> {
        let len = storage.len()?;
        let header = Header::read(storage.as_ref(), len)?;
        let pages = Pages::new(Arc::clone(&storage), pages);
        Ok(Self { storage, len, header, pages })
    }

    /// Finds the bytes at the start of a range of the extent, and how far they are together.
    pub(super) fn find(&self, range: Range<u64>) -> Result<(u64, Found)> {
        let Entry { found, mut end } = self.entry(range.start)?;
        let mut grains = 0;
        // What is alike is found together, but for packed grains, which are unpacked one by one.
        while end < range.end && grains < MOST_GRAINS && found != Found::Packed {
            let next = self.entry(end)?;
            let is_alike = match (found, next.found) {
                (Found::Data(at), Found::Data(next)) => next == at + (end - range.start),
                (one, other) => one == other,
            };
            if !is_alike {
                break;
            }
            (end, grains) = (next.end, grains + 1);
        }
        Ok((end.min(range.end), found))
    }

    /// Where the grain with the bytes at an offset begins.
    pub(super) fn grain_start(&self, offset: u64) -> u64 {
        offset / self.header.grain * self.header.grain
    }

    /// The bytes of a packed grain.
    pub(super) fn unpacked(&self, start: u64) -> Result<Vec<u8>> {
        let changed = || Error::other("the image changed while it was read");
        let at = self.entry_at(start)?.map_err(|_| changed())?;
        let place = self.number(at)? * SECTOR;
        let (mut data_at, mut most) = (place, 2 * self.header.grain);
        if self.header.packing() == Packing::Marked {
            let mut marker = [0; 12];
            self.read(&mut marker, place)?;
            let (sector, len) = (le64(&marker, 0), u64::from(le32(&marker, 8)));
            if sector != start / SECTOR || len == 0 || len > most {
                let message = "the marker of a packed grain is not the one of this place";
                return Err(damaged("vmdk.marker", message, place)
                    .with_found(format_args!("sector {sector}, {len} bytes"))
                    .with_expected(format_args!("sector {}, 1 to {most} bytes", start / SECTOR)));
            }
            (data_at, most) = (place + 12, len);
        }
        most = most.min(self.len.saturating_sub(data_at));
        let mut packed = vec![0; most as usize];
        let read = read_up_to(self.storage.as_ref(), &mut packed, data_at)?;
        packed.truncate(read);
        let needed = self.header.grain.min(self.header.capacity - start);
        inflate(&packed, self.header.grain as usize, needed as usize).map_err(|found| {
            damaged("vmdk.packed", "a packed grain cannot be unpacked", data_at)
                .with_found(found)
                .with_expected(format_args!("{needed} bytes unpacked"))
        })
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        if read_up_to(self.storage.as_ref(), buf, at)? < buf.len() {
            let message = "a grain does not lie within the file";
            return Err(damaged("vmdk.place", message, at).with_expected(format_args!(
                "{} bytes before {:#x}",
                buf.len(),
                self.len
            )));
        }
        Ok(())
    }

    /// An entry of the directory or of a table.
    fn number(&self, at: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        let entry = self.header.entry() as usize;
        self.pages.read(&mut bytes[..entry], at)?;
        Ok(le64(&bytes, 0))
    }

    /// Where the entry of a grain is; none if its table is nowhere, with the end of what that would tell of.
    fn entry_at(&self, offset: u64) -> Result<Result<u64, u64>> {
        let header = &self.header;
        let covered = header.per_table * header.grain;
        let table = offset / covered;
        let at = header.directory + table * header.entry();
        let number = self.number(at)?;
        if number == 0 {
            return Ok(Err((table + 1).saturating_mul(covered)));
        }
        let left = (header.capacity - table * covered).div_ceil(header.grain);
        let len = left.min(header.per_table) * header.entry();
        let place = match header.kind {
            Kind::Se { tables, tables_len, .. } => {
                let within = (number & 0xFFFF_FFFF) * header.per_table * header.entry();
                let is_table = number >> 32 == 0x1000_0000 && within + len <= tables_len;
                is_table.then(|| tables.checked_add(within)).flatten()
            }
            _ => Some(number * SECTOR),
        };
        // The first sector is the header.
        let is_within = |place: &u64| {
            *place >= SECTOR && place.checked_add(len).is_some_and(|end| end <= self.len)
        };
        let Some(place) = place.filter(is_within) else {
            let message = "a table does not lie within the file";
            return Err(damaged("vmdk.place", message, at)
                .with_found(format_args!("{number:#x}"))
                .with_expected(format_args!("{len} bytes before {:#x}", self.len)));
        };
        Ok(Ok(place + offset / header.grain % header.per_table * header.entry()))
    }

    fn entry(&self, offset: u64) -> Result<Entry> {
        let at = match self.entry_at(offset)? {
            Ok(at) => at,
            Err(end) => return Ok(Entry { found: Found::Below, end }),
        };
        let start = self.grain_start(offset);
        let end = start + self.header.grain;
        let found = match self.grain(at)? {
            Grain::Below => Found::Below,
            Grain::Zeros => Found::Zeros,
            Grain::At(place) if self.header.packing() == Packing::No => {
                // What lies behind the end of the disk need not be in the file.
                let len = self.header.grain.min(self.header.capacity - start);
                if place.checked_add(len).is_none_or(|end| end > self.len) {
                    return Err(self.misplaced(at, place, len));
                }
                Found::Data(place + (offset - start))
            }
            Grain::At(place) if place >= self.len => return Err(self.misplaced(at, place, 1)),
            Grain::At(_) => Found::Packed,
        };
        Ok(Entry { found, end })
    }

    fn grain(&self, at: u64) -> Result<Grain> {
        let number = self.number(at)?;
        let unknown = || {
            damaged("vmdk.entry", "an entry of a table has no meaning", at)
                .with_found(format_args!("{number:#x}"))
        };
        match self.header.kind {
            _ if number == 0 => Ok(Grain::Below),
            Kind::Hosted { has_zeros: true, .. } if number == 1 => Ok(Grain::Zeros),
            // The place of the descriptor: a writer meant zeros, and did not say so in the header.
            Kind::Hosted { .. } if number == 1 => Err(unknown()),
            Kind::Hosted { .. } | Kind::Cowd => Ok(Grain::At(number * SECTOR)),
            Kind::Se { grains, .. } => match number >> 60 {
                // What a guest unmapped is zeros, as QEMU has it.
                1 | 2 => Ok(Grain::Zeros),
                3 => {
                    let high = number >> 48 & 0xFFF;
                    let index = high | (number & 0xFFFF_FFFF_FFFF) << 12;
                    let place = index.checked_mul(self.header.grain);
                    let place = place.and_then(|place| place.checked_add(grains));
                    place.map(Grain::At).ok_or_else(unknown)
                }
                _ => Err(unknown()),
            },
        }
    }

    fn misplaced(&self, at: u64, place: u64, len: u64) -> Error {
        damaged("vmdk.place", "a grain does not lie within the file", at)
            .with_found(format_args!("{place:#x}"))
            .with_expected(format_args!("{len} bytes before {:#x}", self.len))
    }
}

/// What an entry of a table says of a grain.
enum Grain {
    Below,
    Zeros,
    /// At this place in the file.
    At(u64),
}

/// Unpacks a stream of zlib into `needed` bytes or more, at most those of a grain.
fn inflate(packed: &[u8], grain: usize, needed: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; grain];
    let mut inflater = flate2::Decompress::new(true);
    let done = inflater.decompress(packed, &mut bytes, flate2::FlushDecompress::Finish);
    let len = inflater.total_out() as usize;
    match done {
        Err(error) => Err(error.to_string()),
        Ok(flate2::Status::StreamEnd) if (needed..=grain).contains(&len) => {
            bytes.truncate(len);
            Ok(bytes)
        }
        Ok(flate2::Status::StreamEnd) => Err(format!("{len} bytes")),
        Ok(_) => Err(format!("{len} bytes and no end of the stream")),
    }
}
