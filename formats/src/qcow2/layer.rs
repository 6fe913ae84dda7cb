//! One image: where its bytes are.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use avhdx::storage::Storage;
use avhdx::{Error, ErrorKind, LayerId, Result};

use super::header::{Header, OFFSET, Packing, be64, damaged};
use crate::cache::{Pages, read_up_to};
use crate::stack::{Found, Layer, find_raw};

/// The pages of tables that a layer keeps, of 4 KiB each.
const PAGES: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// The most clusters that one look passes over.
const MOST_CLUSTERS: u64 = 1 << 14;
const PACKED: u64 = 1 << 62;
const ZEROS: u64 = 1;
/// A cluster has 2 MiB at most: no frame needs more memory.
const MOST_WINDOW: u64 = 8 << 20;
/// Parts of a cluster that have states of their own.
const PARTS: u64 = 32;

/// An image.
#[derive(Debug)]
pub(super) struct Qcow2Layer {
    ids: [LayerId; 2],
    storage: Arc<dyn Storage>,
    len: u64,
    pub(super) header: Header,
    pages: Pages,
    /// The cluster that was unpacked last, by its place on the disk.
    unpacked: Mutex<Option<(u64, Vec<u8>)>>,
}

/// A disk without a format, below images.
#[derive(Debug)]
pub(super) struct RawLayer {
    id: LayerId,
    storage: Arc<dyn Storage>,
    size: u64,
}

/// An image or a disk without a format.
#[derive(Debug)]
pub(super) enum AnyLayer {
    Qcow2(Box<Qcow2Layer>),
    Raw(RawLayer),
}

/// What an entry says of the bytes at an offset.
struct Entry {
    found: Found,
    /// The end of what the entry says so, on the disk.
    end: u64,
}

impl Qcow2Layer {
    pub(super) fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let name = storage.name().to_owned();
        let open = || -> Result<Self> {
            let len = storage.len()?;
            let header = Header::read(storage.as_ref(), len)?;
            let pages = Pages::new(Arc::clone(&storage), PAGES);
            let ids = [LayerId::unique(), LayerId::unique()];
            let unpacked = Mutex::new(None);
            Ok(Self { ids, storage: Arc::clone(&storage), len, header, pages, unpacked })
        };
        open().map_err(|error| error.in_file(name))
    }

    fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// A number of a table.
    fn number(&self, at: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.pages.read(&mut bytes, at)?;
        Ok(be64(&bytes, 0))
    }

    /// Where the entry of the second table for an offset is; none if the table lies nowhere, with the end of what it would
    /// tell of.
    fn entry_at(&self, offset: u64) -> Result<Result<u64, u64>> {
        let entry_len = if self.header.has_subclusters { 16 } else { 8 };
        let per_table = self.cluster() / entry_len;
        let covered = per_table.saturating_mul(self.cluster());
        let table = offset / covered;
        let at = self.header.l1_offset + table * 8;
        let place = self.number(at)? & OFFSET;
        if place == 0 {
            return Ok(Err((table + 1).saturating_mul(covered)));
        }
        self.check_place(place, self.cluster(), at, "a second table")?;
        Ok(Ok(place + offset / self.cluster() % per_table * entry_len))
    }

    fn check_place(&self, place: u64, len: u64, at: u64, what: &str) -> Result<()> {
        if !place.is_multiple_of(self.cluster())
            || place.checked_add(len).is_none_or(|end| end > self.len)
        {
            let message = format!("{what} does not lie at a cluster of the file");
            return Err(damaged("qcow2.place", message, at)
                .with_found(format_args!("{place:#x}"))
                .with_expected(format_args!(
                    "a multiple of {:#x} with {len} bytes before {:#x}",
                    self.cluster(),
                    self.len
                )));
        }
        Ok(())
    }

    fn entry(&self, offset: u64) -> Result<Entry> {
        let at = match self.entry_at(offset)? {
            Ok(at) => at,
            Err(end) => return Ok(Entry { found: Found::Below, end }),
        };
        let entry = self.number(at)?;
        let start = offset / self.cluster() * self.cluster();
        let end = start + self.cluster();
        if entry & PACKED != 0 {
            return Ok(Entry { found: Found::Packed, end });
        }
        let place = entry & OFFSET;
        if self.header.has_subclusters {
            return self.part(offset, at, place);
        }
        if entry & ZEROS != 0 {
            if self.header.version < 3 {
                let message = "a cluster is marked as zeros, which version 2 has no mark for";
                return Err(damaged("qcow2.entry", message, at)
                    .with_found(format_args!("{entry:#018x}"))
                    .with_expected("bit 0 clear"));
            }
            return Ok(Entry { found: Found::Zeros, end });
        }
        if place == 0 {
            return Ok(Entry { found: Found::Below, end });
        }
        // What lies behind the end of the disk need not be in the file.
        self.check_place(place, self.cluster().min(self.header.size - start), at, "a cluster")?;
        Ok(Entry { found: Found::Data(place + (offset - start)), end })
    }

    /// What the bits of an entry with parts say.
    fn part(&self, offset: u64, at: u64, place: u64) -> Result<Entry> {
        let bits = self.number(at + 8)?;
        let (given, zeros) = (bits as u32, (bits >> 32) as u32);
        if given & zeros != 0 {
            let message = "a part of a cluster is said to be both data and zeros";
            return Err(
                damaged("qcow2.parts", message, at + 8).with_found(format_args!("{bits:#018x}"))
            );
        }
        let len = self.cluster() / PARTS;
        let start = offset / self.cluster() * self.cluster();
        let state = |part: u64| (given >> part & 1, zeros >> part & 1);
        let first = (offset - start) / len;
        let mut next = first + 1;
        while next < PARTS && state(next) == state(first) {
            next += 1;
        }
        let end = start + next * len;
        let found = match state(first) {
            (0, 0) => Found::Below,
            (0, _) => Found::Zeros,
            _ => {
                // The parts behind need not be in the file.
                let used = (end.min(self.header.size)) - start;
                self.check_place(place, used, at, "a cluster")?;
                if place == 0 {
                    let message = "a cluster with data lies on the header";
                    return Err(damaged("qcow2.place", message, at).with_found("0x0"));
                }
                Found::Data(place + (offset - start))
            }
        };
        Ok(Entry { found, end })
    }

    fn find_unnamed(&self, range: Range<u64>) -> Result<(u64, Found)> {
        let Entry { found, mut end } = self.entry(range.start)?;
        let mut clusters = 0;
        // What is alike is found together, but for packed clusters, which are unpacked one by one.
        while end < range.end && clusters < MOST_CLUSTERS && found != Found::Packed {
            let next = self.entry(end)?;
            let is_alike = match (found, next.found) {
                (Found::Data(at), Found::Data(next)) => next == at + (end - range.start),
                (one, other) => one == other,
            };
            if !is_alike {
                break;
            }
            (end, clusters) = (next.end, clusters + 1);
        }
        Ok((end.min(range.end), found))
    }

    fn unpack_unnamed(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let start = offset / self.cluster() * self.cluster();
        let held = || self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let within = (offset - start) as usize..(offset - start) as usize + buf.len();
        if let Some((_, bytes)) = held().as_ref().filter(|(at, _)| *at == start) {
            buf.copy_from_slice(&bytes[within]);
            return Ok(());
        }
        // Without the lock: others unpack meanwhile.
        let bytes = self.unpacked(start)?;
        buf.copy_from_slice(&bytes[within]);
        *held() = Some((start, bytes));
        Ok(())
    }

    /// The bytes of a packed cluster.
    fn unpacked(&self, start: u64) -> Result<Vec<u8>> {
        let Ok(at) = self.entry_at(start)? else {
            return Err(Error::other("the image changed while it was read"));
        };
        let entry = self.number(at)?;
        // The number of sectors beyond the first, and the place of the first byte.
        let bits = 62 - (self.header.cluster_bits - 8);
        let sectors = (entry & (PACKED - 1)) >> bits;
        let place = entry & ((1 << bits) - 1);
        let most = ((sectors + 1) * 512 - place % 512).min(self.cluster() + 512);
        if place >= self.len {
            let message = "a packed cluster does not lie within the file";
            return Err(damaged("qcow2.place", message, at)
                .with_found(format_args!("{place:#x}"))
                .with_expected(format_args!("less than {:#x}", self.len)));
        }
        let mut packed = vec![0; most as usize];
        let read = read_up_to(self.storage.as_ref(), &mut packed, place)?;
        packed.truncate(read);
        let mut bytes = vec![0; self.cluster() as usize];
        match self.header.packing {
            Packing::Deflate => inflate(&packed, &mut bytes),
            Packing::Zstd => unzstd(&packed, &mut bytes),
        }
        .map_err(|found| {
            damaged("qcow2.packed", "a packed cluster cannot be unpacked", place)
                .with_found(found)
                .with_expected(format_args!("{} bytes unpacked", bytes.len()))
        })?;
        Ok(bytes)
    }
}

/// Unpacks a raw deflate stream, which must fill `bytes`.
fn inflate(packed: &[u8], bytes: &mut [u8]) -> Result<(), String> {
    let mut inflater = flate2::Decompress::new(false);
    let done = inflater.decompress(packed, bytes, flate2::FlushDecompress::Finish);
    match done {
        _ if inflater.total_out() == bytes.len() as u64 => Ok(()),
        Ok(_) => Err(format!("{} bytes", inflater.total_out())),
        Err(error) => Err(error.to_string()),
    }
}

/// Unpacks a frame of zstd, which must fill `bytes`.
fn unzstd(packed: &[u8], bytes: &mut [u8]) -> Result<(), String> {
    use std::io::Read;
    let window = window(packed).ok_or("no frame of zstd")?;
    if window > MOST_WINDOW {
        return Err(format!("a frame that needs {window} bytes of memory"));
    }
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
    let mut decoder = decoder.map_err(|error| error.to_string())?;
    decoder.read_exact(bytes).map_err(|error| error.to_string())
}

/// The memory that a frame of zstd needs, by its header (RFC 8878, 3.1.1.1).
fn window(frame: &[u8]) -> Option<u64> {
    let head = *frame.get(4)?;
    let is_single = head & 0x20 != 0;
    if !is_single {
        let byte = u64::from(*frame.get(5)?);
        let base = 1 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    let dictionary = [0, 1, 2, 4][usize::from(head & 3)];
    let len = [1, 2, 4, 8][usize::from(head >> 6)];
    let bytes = frame.get(5 + dictionary..)?.get(..len)?;
    Some(bytes.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte)))
}

impl Layer for Qcow2Layer {
    fn ids(&self) -> [LayerId; 2] {
        self.ids
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn size(&self) -> u64 {
        self.header.size
    }

    fn find(&self, range: Range<u64>) -> Result<(u64, Found)> {
        self.find_unnamed(range).map_err(|error| error.in_file(self.storage.name()))
    }

    fn unit(&self) -> u64 {
        self.cluster()
    }

    fn unpack(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.unpack_unnamed(buf, offset).map_err(|error| error.in_file(self.storage.name()))
    }
}

impl RawLayer {
    pub(super) fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let size = storage.len().map_err(|error| Error::from(error).in_file(storage.name()))?;
        if size > i64::MAX as u64 {
            let message = "the file is longer than any host supports";
            return Err(
                Error::new(ErrorKind::Limit, "qcow2.file-length", message).in_file(storage.name())
            );
        }
        Ok(Self { id: LayerId::unique(), storage, size })
    }
}

impl Layer for AnyLayer {
    fn ids(&self) -> [LayerId; 2] {
        match self {
            Self::Qcow2(layer) => layer.ids(),
            Self::Raw(layer) => [layer.id; 2],
        }
    }

    fn storage(&self) -> &Arc<dyn Storage> {
        match self {
            Self::Qcow2(layer) => layer.storage(),
            Self::Raw(layer) => &layer.storage,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Qcow2(layer) => layer.size(),
            Self::Raw(layer) => layer.size,
        }
    }

    fn find(&self, range: Range<u64>) -> Result<(u64, Found)> {
        match self {
            Self::Qcow2(layer) => layer.find(range),
            Self::Raw(layer) => find_raw(layer.storage.as_ref(), range),
        }
    }

    fn unit(&self) -> u64 {
        match self {
            Self::Qcow2(layer) => layer.unit(),
            Self::Raw(_) => 0,
        }
    }

    fn unpack(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::Qcow2(layer) => layer.unpack(buf, offset),
            Self::Raw(_) => Err(Error::other("a raw disk packs nothing")),
        }
    }
}
