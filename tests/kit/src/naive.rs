//! An oracle that reads a chain sector by sector, asking every layer each time, with no cache, no
//! shortcut and no code shared with the crate under test.
//!
//! Where the specification allows a choice, it reads zeros: UNDEFINED, UNMAPPED (and 5, its
//! value in a draft), and everything past the end of a file. What no reader may serve is an `Err`.

use crate::build::{
    ITEM_DISK_ID, ITEM_DISK_SIZE, ITEM_FILE_PARAMETERS, ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR, REGION_BAT, REGION_METADATA,
};
use crate::crc::sealed;
use crate::io::read_at;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// The source of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This layer's file (0 is the base), at this offset.
    Data {
        /// Index in the chain.
        layer: usize,
        /// File offset.
        at: u64,
    },
    /// Zeros according to this layer's block state; `None` if the search ended below the base
    /// or beyond a layer's end.
    Zero {
        /// Index in the chain.
        layer: Option<usize>,
    },
}

/// One layer's answer for a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Here, at this file offset.
    Data(u64),
    /// Zeros.
    Zero,
    /// The parent decides; in an image without a parent: zeros.
    NotHere,
}

/// Bytes that are neither contiguous in memory nor in a file.
pub trait Bytes: std::fmt::Debug + Send + Sync {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `at` on, with zeros past the end.
    fn read(&self, at: u64, buf: &mut [u8]);
}

/// One image, its log replayed in memory.
#[derive(Clone, Debug)]
pub struct Layer {
    file: Source,
    /// The log's updates in order, unless they are already applied to the bytes.
    updates: Vec<Update>,
    /// The head's last file offset, if there is a log.
    pub(crate) last_file_offset: Option<u64>,
    /// The log and the regions: offset and length of each.
    pub(crate) structures: Vec<(u64, u64)>,
    /// Virtual size in bytes.
    pub size: u64,
    /// Payload block size in bytes.
    pub block_size: u64,
    /// Logical sector size in bytes.
    pub sector: u64,
    /// Whether it is a differencing image.
    pub has_parent: bool,
    /// The identity that its children record.
    pub data_write_guid: Uuid,
    /// The parent locator's pairs.
    pub locator: Vec<(String, String)>,
    /// All metadata items in the order of their table: GUID, flags and bytes.
    pub items: Vec<(Uuid, u32, Vec<u8>)>,
    pub(crate) bat: (u64, u64),
}

#[derive(Clone, Debug)]
enum Source {
    Bytes(Arc<Vec<u8>>),
    File(Arc<File>),
    Other(Arc<dyn Bytes>),
}

/// What the log writes at a file offset.
#[derive(Clone, Debug)]
struct Update {
    at: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Data(Vec<u8>),
    Zeros(u64),
}

impl Update {
    fn len(&self) -> u64 {
        match &self.what {
            What::Data(bytes) => bytes.len() as u64,
            What::Zeros(len) => *len,
        }
    }

    fn byte(&self, n: u64) -> u8 {
        match &self.what {
            What::Data(bytes) => bytes[n as usize],
            What::Zeros(_) => 0,
        }
    }
}

type Result<T> = std::result::Result<T, String>;

impl Layer {
    /// Reads an image from memory; the log is replayed into the bytes.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::new(Source::Bytes(Arc::new(bytes)))
    }

    /// Reads an image from bytes of any kind.
    pub fn from_source(bytes: Arc<dyn Bytes>) -> Result<Self> {
        Self::new(Source::Other(bytes))
    }

    /// Reads an image by streaming: only the log's updates are held in memory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = File::open(path.as_ref());
        let file = file.map_err(|e| format!("{}: {e}", path.as_ref().display()))?;
        Self::new(Source::File(Arc::new(file)))
    }

    fn new(file: Source) -> Result<Self> {
        let mut it = Self {
            file,
            updates: Vec::new(),
            last_file_offset: None,
            structures: Vec::new(),
            size: 0,
            block_size: 0,
            sector: 0,
            has_parent: false,
            data_write_guid: Uuid::nil(),
            locator: Vec::new(),
            items: Vec::new(),
            bat: (0, 0),
        };
        if &it.get(0, 8)?[..] != b"vhdxfile" {
            return Err("no VHDX file".into());
        }
        it.header_and_log()?;
        it.regions_and_metadata()?;
        Ok(it)
    }

    /// Reads the current header, then the log. [MS-VHDX] 2.2.2, 2.3.3
    fn header_and_log(&mut self) -> Result<()> {
        let mut best: Option<Vec<u8>> = None;
        for at in [64 << 10, 128 << 10] {
            let h = self.get(at, 4096)?;
            let valid = &h[0..4] == b"head" && le32(&h, 4) == sealed(&h, 4);
            match &best {
                _ if !valid => {}
                Some(b) if le(b, 8) > le(&h, 8) => {}
                Some(b) if le(b, 8) == le(&h, 8) && *b != h => return Err("two headers".into()),
                _ => best = Some(h),
            }
        }
        let h = best.ok_or("no valid header")?;
        if h[66..68] != [1, 0] {
            return Err("unknown version".into());
        }
        self.data_write_guid = guid(&h, 32);
        let log_guid = guid(&h, 48);
        self.structures.push((le(&h, 72), le32(&h, 68).into()));
        if log_guid.is_nil() {
            return Ok(());
        }
        if h[64..66] != [0, 0] {
            return Err("unknown log version".into());
        }
        let (length, offset) = (u64::from(le32(&h, 68)), le(&h, 72));
        if length == 0 || !length.is_multiple_of(1 << 20) || !offset.is_multiple_of(1 << 20) {
            return Err("log out of place".into());
        }
        if offset.checked_add(length).is_none_or(|end| end > self.len()) {
            return Err("log past the end of the file".into());
        }
        // The head's last file offset needs no handling here:
        // past the end of the file everything is zeros anyway.
        let (updates, flushed, last) = active_sequence(&self.get(offset, length)?, log_guid)?;
        if self.len() < flushed {
            return Err("truncated".into());
        }
        self.updates = updates;
        self.last_file_offset = Some(last);
        if let Source::Bytes(bytes) = &mut self.file {
            let bytes = Arc::make_mut(bytes);
            let end = self.updates.iter().map(|u| u.at.saturating_add(u.len())).max();
            // An update far out is kept as an update, because a wrong offset could take all memory.
            if end.is_some_and(|e| e <= bytes.len() as u64 + (64 << 20)) {
                for u in self.updates.drain(..) {
                    let (at, end) = (u.at as usize, (u.at + u.len()) as usize);
                    bytes.resize(bytes.len().max(end), 0);
                    (at..end).for_each(|i| bytes[i] = u.byte((i - at) as u64));
                }
            }
        }
        Ok(())
    }

    /// [MS-VHDX] 2.2.3, 2.6
    fn regions_and_metadata(&mut self) -> Result<()> {
        let mut tables =
            [self.get(192 << 10, 64 << 10)?, self.get(256 << 10, 64 << 10)?].into_iter();
        let table = tables
            .find(|t| &t[0..4] == b"regi" && le32(t, 4) == sealed(t, 4))
            .ok_or("no valid region table")?;
        let mut metadata = None;
        for i in 0..le32(&table, 8).min(2047) as usize {
            let e = &table[16 + 32 * i..][..32];
            let place = (le(e, 16), u64::from(le32(e, 24)));
            self.structures.push(place);
            match guid(e, 0) {
                REGION_BAT => self.bat = place,
                REGION_METADATA => metadata = Some(place.0),
                _ if le32(e, 28) & 1 == 1 => return Err("unknown required region".into()),
                _ => {}
            }
        }
        let metadata = metadata.ok_or("no metadata region")?;
        let table = self.get(metadata, 64 << 10)?;
        if &table[0..8] != b"metadata" {
            return Err("no metadata table".into());
        }
        for i in 0..usize::from(u16::from_le_bytes([table[10], table[11]])).min(2047) {
            let e = &table[32 + 32 * i..][..32];
            let (offset, length) = (u64::from(le32(e, 16)), u64::from(le32(e, 20)));
            let item = self.get(metadata.saturating_add(offset), length.min(1 << 20))?;
            let flags = le32(e, 24);
            self.items.push((guid(e, 0), flags, item.clone()));
            if flags & 1 == 1 {
                // A user item: its GUID has no meaning to us.
                match flags & 4 {
                    0 => continue,
                    _ => return Err("unknown required item".into()),
                }
            }
            match guid(e, 0) {
                ITEM_FILE_PARAMETERS if item.len() >= 8 => {
                    self.block_size = le32(&item, 0).into();
                    self.has_parent = le32(&item, 4) & 2 != 0;
                }
                ITEM_DISK_SIZE if item.len() >= 8 => self.size = le(&item, 0),
                ITEM_LOGICAL_SECTOR if item.len() >= 4 => self.sector = le32(&item, 0).into(),
                ITEM_PARENT_LOCATOR => self.locator = pairs(&item)?,
                ITEM_DISK_ID | ITEM_PHYSICAL_SECTOR => {}
                _ if flags & 4 != 0 => return Err("unknown required item".into()),
                _ => {}
            }
        }
        let possible = self.block_size.is_power_of_two()
            && (1 << 20..=256 << 20).contains(&self.block_size)
            && [512, 4096].contains(&self.sector)
            && self.size.is_multiple_of(self.sector)
            && self.size <= 64 << 40;
        if possible { Ok(()) } else { Err("impossible block, sector or disk size".into()) }
    }

    /// The file's bytes after replay; zeros past its end.
    pub fn get(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut buf = vec![0; len as usize];
        match &self.file {
            Source::Bytes(b) => {
                let b = b.get(at as usize..).unwrap_or(&[]);
                let n = b.len().min(buf.len());
                buf[..n].copy_from_slice(&b[..n]);
            }
            Source::Other(o) => o.read(at, &mut buf),
            Source::File(f) => {
                read_at(f, at, &mut buf).map_err(|e| e.to_string())?;
            }
        }
        for u in &self.updates {
            let end = u.at.saturating_add(u.len()).min(at.saturating_add(len));
            (u.at.max(at)..end).for_each(|i| buf[(i - at) as usize] = u.byte(i - u.at));
        }
        Ok(buf)
    }

    pub(crate) fn len(&self) -> u64 {
        match &self.file {
            Source::Bytes(b) => b.len() as u64,
            Source::File(f) => f.metadata().map_or(0, |m| m.len()),
            Source::Other(o) => o.len(),
        }
    }

    /// Whether the log is pending.
    pub fn log_is_pending(&self) -> bool {
        self.last_file_offset.is_some()
    }

    /// The file offsets of the sector bitmap blocks.
    pub fn bitmaps(&self) -> Result<Vec<u64>> {
        if !self.has_parent {
            return Ok(Vec::new());
        }
        let ratio = (self.sector << 23) / self.block_size;
        let chunks = self.size.div_ceil(self.block_size).div_ceil(ratio);
        let entries = (0..chunks).map(|chunk| self.bat_entry(chunk * (ratio + 1) + ratio));
        let entries = entries.collect::<Result<Vec<u64>>>()?.into_iter();
        Ok(entries.filter(|entry| entry & 7 == 6).map(|entry| entry >> 20 << 20).collect())
    }

    /// The range of the log.
    pub fn log(&self) -> std::ops::Range<u64> {
        let (at, len) = self.structures[0];
        at..at + len
    }

    /// The range of the block allocation table.
    pub fn bat(&self) -> std::ops::Range<u64> {
        self.bat.0..self.bat.0 + self.bat.1
    }

    /// The end of the last of log and regions.
    pub fn structures_end(&self) -> u64 {
        self.structures.iter().map(|(at, len)| at + len).max().unwrap_or_default()
    }

    /// The BAT entry with this index, read each time.
    pub fn bat_entry(&self, index: u64) -> Result<u64> {
        if (index + 1) * 8 > self.bat.1 {
            return Err(format!("BAT too short for entry {index}"));
        }
        Ok(le(&self.get(self.bat.0.saturating_add(8 * index), 8)?, 0))
    }

    /// This layer's own answer for a sector below its size. [MS-VHDX] 2.5.1
    pub fn says(&self, sector: u64) -> Result<Says> {
        let ratio = (self.sector << 23) / self.block_size;
        let per_block = self.block_size / self.sector;
        let (block, within) = (sector / per_block, sector % per_block);
        let entry = self.bat_entry(block + block / ratio)?;
        let here = Says::Data((entry & !0xF_FFFF).saturating_add(within * self.sector));
        match entry & 7 {
            0 => Ok(Says::NotHere),
            1 | 2 | 3 | 5 => Ok(Says::Zero),
            6 => Ok(here),
            7 if self.has_parent => {
                let chunk = block / ratio;
                let bitmap = self.bat_entry(chunk * (ratio + 1) + ratio)?;
                if bitmap & 7 != 6 {
                    return Err(format!("block {block} is partial without a bitmap"));
                }
                let bit = (block % ratio) * per_block + within;
                let byte = self.get((bitmap & !0xF_FFFF).saturating_add(bit / 8), 1)?[0];
                Ok(if byte >> (bit % 8) & 1 == 1 { here } else { Says::NotHere })
            }
            state => Err(format!("block {block} has state {state}")),
        }
    }
}

/// Layers from the base (0) up to the tip.
#[derive(Debug)]
pub struct Chain(pub Vec<Layer>);

impl Chain {
    /// A chain of small images, base first.
    pub fn from_bytes(images: impl IntoIterator<Item = Vec<u8>>) -> Result<Self> {
        images.into_iter().map(Layer::from_bytes).collect::<Result<_>>().map(Self)
    }

    /// A chain of files read by streaming, base first.
    pub fn open<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self> {
        paths.into_iter().map(Layer::open).collect::<Result<_>>().map(Self)
    }

    /// The source of this sector as seen from the layer `tip`.
    pub fn who(&self, tip: usize, sector: u64) -> Result<Who> {
        for n in (0..=tip).rev() {
            let layer = &self.0[n];
            if layer.sector != self.0[tip].sector {
                return Err("sector sizes differ".into());
            }
            if sector >= layer.size / layer.sector {
                break;
            }
            match layer.says(sector)? {
                Says::Data(at) => return Ok(Who::Data { layer: n, at }),
                Says::Zero => return Ok(Who::Zero { layer: Some(n) }),
                Says::NotHere if !layer.has_parent => break,
                Says::NotHere if n == 0 => return Err("the parent is missing".into()),
                Says::NotHere => {}
            }
        }
        Ok(Who::Zero { layer: None })
    }

    /// Reads `len` bytes at `offset` as seen from the layer `tip`; both may be unaligned, the
    /// range must lie inside the disk.
    pub fn read(&self, tip: usize, offset: u64, len: usize) -> Result<Vec<u8>> {
        let size = self.0[tip].sector;
        let mut out = Vec::with_capacity(len + 2 * size as usize);
        let first = offset / size;
        for s in first..(offset + len as u64).div_ceil(size) {
            match self.who(tip, s)? {
                Who::Data { layer, at } => out.extend(self.0[layer].get(at, size)?),
                Who::Zero { .. } => out.resize(out.len() + size as usize, 0),
            }
        }
        let skip = (offset - first * size) as usize;
        Ok(out[skip..skip + len].to_vec())
    }

    /// The whole disk as seen from the layer `tip`.
    pub fn flat(&self, tip: usize) -> Result<Vec<u8>> {
        if self.0[tip].size > 1 << 32 {
            return Err("too large for memory: use stream".into());
        }
        self.read(tip, 0, self.0[tip].size as usize)
    }

    /// The whole disk as seen from the layer `tip`, as a stream.
    pub fn stream(&self, tip: usize) -> impl Read + '_ {
        Stream { chain: self, tip, at: 0 }
    }
}

struct Stream<'a> {
    chain: &'a Chain,
    tip: usize,
    at: u64,
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.chain.0[self.tip].size - self.at;
        let n = (buf.len() as u64).min(left) as usize;
        let bytes = self.chain.read(self.tip, self.at, n).map_err(std::io::Error::other)?;
        buf[..n].copy_from_slice(&bytes);
        self.at += n as u64;
        Ok(n)
    }
}

/// One valid log entry.
struct Entry {
    number: u64,
    length: u64,
    tail: u64,
    flushed: u64,
    last: u64,
    updates: Vec<Update>,
}

/// The updates of the active sequence, and the head's flushed and last file offsets.
/// [MS-VHDX] 2.3.3
fn active_sequence(ring: &[u8], log_guid: Uuid) -> Result<(Vec<Update>, u64, u64)> {
    let sectors = ring.len() as u64 / 4096;
    let entries: Vec<Option<Entry>> = (0..sectors).map(|s| entry(ring, s, log_guid)).collect();
    let at = |s: u64| entries[(s % sectors) as usize].as_ref();
    let mut best: Option<Vec<&Entry>> = None;
    for start in 0..sectors {
        // The longest run from here that does not overlap itself.
        let (mut run, mut places, mut next) = (Vec::<&Entry>::new(), Vec::new(), start);
        while let Some(e) = at(next) {
            let follows = run.last().is_none_or(|l| l.number.checked_add(1) == Some(e.number));
            if !follows || next + e.length / 4096 > start + sectors {
                break;
            }
            run.push(e);
            places.push(next % sectors * 4096);
            next += e.length / 4096;
        }
        let Some(head) = run.last() else { continue };
        let Some(tail) = places.iter().position(|p| *p == head.tail) else {
            continue;
        };
        if best.as_ref().and_then(|b| b.last()).is_none_or(|b| b.number < head.number) {
            best = Some(run.split_off(tail));
        }
    }
    let best = best.ok_or("no active log sequence")?;
    let head = best[best.len() - 1];
    let updates = best.iter().flat_map(|e| e.updates.clone());
    Ok((updates.collect(), head.flushed, head.last))
}

/// The entry that starts at this sector of the ring, if it is valid. [MS-VHDX] 2.3.1
fn entry(ring: &[u8], sector: u64, log_guid: Uuid) -> Option<Entry> {
    let from = sector as usize * 4096;
    let head = &ring[from..from + 64];
    let length = le32(head, 8) as usize;
    if &head[0..4] != b"loge" || length == 0 || !length.is_multiple_of(4096) || length > ring.len()
    {
        return None;
    }
    let end = (from + length).min(ring.len());
    let e = [&ring[from..end], &ring[..from + length - end]].concat();
    let (number, count) = (le(&e, 16), le32(&e, 24) as usize);
    let tail = u64::from(le32(&e, 12));
    if le32(&e, 4) != sealed(&e, 4) || number == 0 || guid(&e, 32) != log_guid {
        return None;
    }
    if !tail.is_multiple_of(4096) || tail >= ring.len() as u64 {
        return None;
    }
    let descriptor_bytes = count.checked_mul(32)?.checked_add(64)?.next_multiple_of(4096);
    let mut data = e.get(descriptor_bytes..)?.chunks_exact(4096);
    let mut updates = Vec::new();
    for d in e[64..].chunks_exact(32).take(count) {
        let at = le(d, 16);
        if le(d, 24) != number || !at.is_multiple_of(4096) {
            return None;
        }
        match &d[0..4] {
            b"zero" if le(d, 8).is_multiple_of(4096) => {
                updates.push(Update { at, what: What::Zeros(le(d, 8)) });
            }
            b"desc" => {
                let s = data.next()?;
                let torn = u64::from(le32(s, 4)) << 32 | u64::from(le32(s, 4092)) != number;
                if &s[0..4] != b"data" || torn {
                    return None;
                }
                let bytes = [&d[8..16], &s[8..4092], &d[4..8]].concat();
                updates.push(Update { at, what: What::Data(bytes) });
            }
            _ => return None,
        }
    }
    Some(Entry {
        number,
        length: length as u64,
        tail,
        flushed: le(&e, 48),
        last: le(&e, 56),
        updates,
    })
}

/// [MS-VHDX] 2.6.2.6
fn pairs(item: &[u8]) -> Result<Vec<(String, String)>> {
    let text = |at: u32, len: &[u8]| {
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        let bytes = item.get(at as usize..).and_then(|b| b.get(..len));
        let units = bytes.ok_or("locator string out of bounds")?.chunks_exact(2);
        let units: Vec<u16> = units.map(|u| u16::from_le_bytes([u[0], u[1]])).collect();
        String::from_utf16(&units).map_err(|e| e.to_string())
    };
    let count = item.get(18..20).map_or(0, |c| usize::from(u16::from_le_bytes([c[0], c[1]])));
    let entries = item.get(20..20 + 12 * count).ok_or("locator too short")?;
    entries
        .chunks_exact(12)
        .map(|e| Ok((text(le32(e, 0), &e[8..10])?, text(le32(e, 4), &e[10..12])?)))
        .collect()
}

fn le32(b: &[u8], at: usize) -> u32 {
    b[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
}

fn le(b: &[u8], at: usize) -> u64 {
    b[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn guid(b: &[u8], at: usize) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&b[at..at + 16]);
    Uuid::from_bytes_le(bytes)
}
