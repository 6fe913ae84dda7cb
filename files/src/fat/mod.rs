//! FAT12, FAT16 and FAT32.
//!
//! The crates for FAT keep folders and files borrowed from the volume, and names as text that is not always theirs. So a
//! reader of our own: a table and lists of entries. Tests compare it with what `mtools` was told to write.

mod clean;
mod entries;
mod oem;

use std::any::Any;
use std::ops::Range;

use crate::bitmap::FreeRuns;
use crate::boundary::{Bytes, number, u16_at, u32_at};
use crate::changed::Changed;
use crate::error::{Error, ErrorKind, Result};
use crate::item::{About, Facts, Item, Kind, Node, Piece, Place, Stream, System};
use entries::{ENTRY_LEN, Parsed};

/// A folder has no more bytes: entries are counted in 16 bits.
const MOST_FOLDER: u64 = 65536 * ENTRY_LEN as u64;
/// The clusters of FAT32 are counted in 28 bits.
const MASK: u32 = 0x0FFF_FFFF;
/// From this attribute on, a name is a folder.
const FOLDER: u8 = 0x10;

/// Entries of the table that are read at once.
const PIECE: u32 = 16 << 10;

pub(crate) struct Fat {
    about: About,
    shape: Shape,
}

/// Where things are, in bytes of the volume.
#[derive(Clone)]
struct Shape {
    bytes: Bytes,
    width: Width,
    table: u64,
    /// Where the copies of the table begin, and their length.
    copies: (Vec<u64>, u64),
    /// The root folder in its fixed place; empty on FAT32.
    root: Range<u64>,
    root_cluster: u32,
    data: u64,
    cluster: u64,
    /// The clusters are 2 to this number, without it.
    end: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

impl Fat {
    pub(crate) fn open(bytes: Bytes) -> Result<Self> {
        let first = bytes.read(0, 512)?;
        let sector = u64::from(u16_at(&first, 11));
        let per_cluster = number(&first, 13, 1);
        let reserved = u64::from(u16_at(&first, 14));
        let tables = number(&first, 16, 1);
        let root_entries = u64::from(u16_at(&first, 17));
        let long = |short: u64, at: usize| if short == 0 { number(&first, at, 4) } else { short };
        let sectors = long(u16_at(&first, 19).into(), 32);
        let is_32 = u16_at(&first, 22) == 0;
        let per_table = long(u16_at(&first, 22).into(), 36);
        let root_sectors = (root_entries * ENTRY_LEN as u64).div_ceil(sector.max(1));
        let before = reserved + tables * per_table + root_sectors;
        let rules = [
            (sector.is_power_of_two() && (512..=4096).contains(&sector), "the size of a sector"),
            (per_cluster.is_power_of_two(), "the size of a cluster"),
            (reserved > 0, "the number of reserved sectors"),
            (tables > 0, "the number of tables"),
            (per_table > 0, "the length of a table"),
            (before < sectors, "the number of sectors"),
        ];
        if let Some((_, what)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(Error::damaged("fat.boot", format!("{what} is not one of FAT")));
        }
        let mut warnings = Vec::new();
        let len = bytes.len();
        if sectors * sector > len {
            warnings.push(format!(
                "the file system has {} bytes and the volume {}: what lies behind its end is not read",
                sectors * sector,
                len
            ));
        }
        let clusters = (sectors - before) / per_cluster;
        let width = match clusters {
            _ if is_32 => Width::Fat32,
            0..4085 => Width::Fat12,
            _ => Width::Fat16,
        };
        let fits = match width {
            Width::Fat12 => (clusters + 2) * 3 / 2,
            Width::Fat16 => (clusters + 2) * 2,
            Width::Fat32 => (clusters + 2) * 4,
        };
        if fits > per_table * sector || clusters >= u64::from(MASK) - 16 {
            let message = format!("the table has no room for {clusters} clusters");
            return Err(Error::damaged("fat.boot", message));
        }
        // On FAT32, only one of the tables may be in use.
        let flags = u16_at(&first, 40);
        let active = match is_32 && flags & 0x80 != 0 {
            true => u64::from(flags & 0xF),
            false => 0,
        };
        if active >= tables {
            return Err(Error::damaged(
                "fat.boot",
                format!("table {active} of {tables} is in use"),
            ));
        }
        let root = (reserved + tables * per_table) * sector;
        let is_mirrored = !is_32 || flags & 0x80 == 0;
        let copies = (1..tables).filter(|_| is_mirrored);
        let copies = copies.map(|copy| (reserved + copy * per_table) * sector);
        let shape = Shape {
            bytes,
            width,
            table: (reserved + active * per_table) * sector,
            copies: (copies.collect(), fits),
            root: root..root + root_entries * ENTRY_LEN as u64,
            root_cluster: if is_32 { u32_at(&first, 44) & MASK } else { 0 },
            data: before * sector,
            cluster: per_cluster * sector,
            end: clusters as u32 + 2,
        };
        let extended = if is_32 { 64 } else { 36 };
        let id = (number(&first, extended + 2, 1) == 0x29)
            .then(|| format!("{:08x}", u32_at(&first, extended + 3)));
        let kind = match width {
            Width::Fat12 => "FAT12",
            Width::Fat16 => "FAT16",
            Width::Fat32 => "FAT32",
        };
        let about = About {
            kind,
            label: None,
            id,
            warnings,
            has_backslash: true,
            is_cut: sectors * sector > len,
        };
        let mut fat = Self { about, shape };
        // That of the boot sector is often stale. A root folder that cannot be read is told when it is read.
        let parsed = fat.parsed(&fat.root_node()).unwrap_or_default();
        fat.about.label = parsed.into_iter().find_map(|parsed| match parsed {
            Parsed::Label(label) => Some(label),
            Parsed::Entry { .. } => None,
        });
        Ok(fat)
    }

    fn root_node(&self) -> Node {
        Node::Cluster { first: self.shape.root_cluster, size: 0, is_root: true }
    }

    fn parsed(&self, folder: &Node) -> Result<Vec<Parsed>> {
        let &Node::Cluster { first, is_root, .. } = folder else { return Ok(Vec::new()) };
        let shape = &self.shape;
        let bytes = if is_root && shape.width != Width::Fat32 {
            shape.bytes.read(shape.root.start, (shape.root.end - shape.root.start) as usize)?
        } else {
            let runs = shape.chain(first, MOST_FOLDER + 1)?;
            if runs.iter().map(|run| run.end - run.start).sum::<u64>() > MOST_FOLDER {
                let message = format!("the folder has more than {MOST_FOLDER} bytes");
                return Err(Error::damaged("fat.folder", message));
            }
            let mut all = Vec::new();
            for run in runs {
                all.extend(shape.bytes.read(run.start, (run.end - run.start) as usize)?);
            }
            all
        };
        Ok(entries::parse(&bytes))
    }

    fn item(&self, parsed: Parsed) -> Option<Item> {
        let Parsed::Entry { name, short: _, attributes, first, size, times } = parsed else {
            return None;
        };
        let is_folder = attributes & FOLDER != 0;
        let mut facts = Facts::new(if is_folder { Kind::Folder } else { Kind::File });
        facts.size = if is_folder { 0 } else { size.into() };
        (facts.times, facts.attributes) = (times, Some(attributes.into()));
        facts.id = (first != 0).then_some(first.into());
        // Folders are told apart by their clusters alone: their sizes say nothing.
        let size = if is_folder { 0 } else { size };
        Some(Item { name, node: Node::Cluster { first, size, is_root: false }, facts: Ok(facts) })
    }
}

impl System for Fat {
    fn about(&self) -> &About {
        &self.about
    }

    fn root(&self) -> Result<Item> {
        let facts = Ok(Facts::new(Kind::Folder));
        Ok(Item { name: Vec::new(), node: self.root_node(), facts })
    }

    fn list(&self, folder: &Item) -> Result<Vec<Item>> {
        let parsed = self.parsed(&folder.node)?;
        Ok(parsed.into_iter().filter_map(|parsed| self.item(parsed)).collect())
    }

    fn child(&self, folder: &Item, name: &[u8]) -> Result<Option<Item>> {
        let is_equal = |other: &[u8]| {
            let fold = |name: &[u8]| String::from_utf8_lossy(name).to_uppercase();
            other == name || fold(other) == fold(name)
        };
        let parsed = self.parsed(&folder.node)?;
        let mut by_short = None;
        for parsed in parsed {
            let Parsed::Entry { name: long, short, .. } = &parsed else { continue };
            if is_equal(long) {
                return Ok(self.item(parsed));
            }
            if by_short.is_none() && is_equal(short) {
                by_short = Some(parsed);
            }
        }
        Ok(by_short.and_then(|parsed| self.item(parsed)))
    }

    fn open(&self, file: &Item, stream: Option<&[u8]>) -> Result<Box<dyn Stream>> {
        if stream.is_some() {
            let message = "files of FAT have no further streams";
            return Err(Error::new(ErrorKind::NotFound, "files.stream", message));
        }
        let Node::Cluster { first, size, .. } = file.node else {
            return Err(Error::damaged("fat.node", "this is no file of FAT"));
        };
        Ok(Box::new(File::open(&self.shape, first, size.into())?))
    }

    fn target(&self, _: &Item) -> Result<Vec<u8>> {
        Err(Error::new(ErrorKind::InvalidInput, "files.not-link", "FAT has no links"))
    }

    fn stored(&self, file: &Item, stream: Option<&[u8]>) -> Result<Option<Box<dyn Stream>>> {
        match stream {
            None => self.open(file, None).map(Some),
            Some(_) => Ok(None),
        }
    }

    fn reframed(&self, other: &dyn System, _: &Changed) -> Result<Option<Vec<Range<u64>>>> {
        let facts = |shape: &Shape| {
            // Copies of the table are not read.
            let Shape { bytes, width, table, root, root_cluster, data, cluster, end, .. } = shape;
            let places = (bytes.start(), bytes.len(), *table, root.clone(), *data);
            (places, *width, *root_cluster, *cluster, *end)
        };
        let other = (other as &dyn Any).downcast_ref::<Self>();
        let is_same = other.is_some_and(|other| facts(&self.shape) == facts(&other.shape));
        Ok(is_same.then(Vec::new))
    }

    fn capacity(&self) -> u64 {
        u64::from(self.shape.end - 2) * self.shape.cluster
    }

    fn free(&self, each: &mut dyn FnMut(Range<u64>)) -> Result<()> {
        let Shape { bytes, table, end, .. } = &self.shape;
        let mut runs = FreeRuns::new(self.shape.data, self.shape.cluster, each);
        let (numerator, denominator) = match self.shape.width {
            Width::Fat12 => (3, 2),
            Width::Fat16 => (2, 1),
            Width::Fat32 => (4, 1),
        };
        // An even number of entries of any width.
        let mut first = 0;
        while first < *end {
            let count = (end - first).min(PIECE);
            let len = (u64::from(count) * numerator).div_ceil(denominator);
            let piece =
                bytes.read(table + u64::from(first) * numerator / denominator, len as usize)?;
            for cluster in first.max(2)..first + count {
                let at = (cluster - first) as usize;
                let entry = match self.shape.width {
                    Width::Fat12 => half_entry(u16_at(&piece, at * 3 / 2), cluster).into(),
                    Width::Fat16 => u16_at(&piece, at * 2).into(),
                    Width::Fat32 => u32_at(&piece, at * 4) & MASK,
                };
                if entry == 0 {
                    let unit = u64::from(cluster - 2);
                    runs.free(unit..unit + 1);
                }
            }
            first += count;
        }
        runs.end();
        Ok(())
    }

    fn check_clean(&self) -> Result<()> {
        self.check_closed()
    }

    fn check_free(&self) -> Result<()> {
        self.check_chains()
    }
}

fn circle(first: u32) -> Error {
    let message = format!("the clusters from {first} on form a circle");
    Error::damaged("fat.circle", message)
}

/// The entry of 12 bits of a cluster, from the two bytes that it lies in.
fn half_entry(both: u16, cluster: u32) -> u16 {
    if cluster & 1 == 0 { both & 0xFFF } else { both >> 4 }
}

impl Shape {
    /// The runs of bytes of a chain, as far as `most` bytes need. Refuses a chain that returns to itself: it is longer
    /// than there are clusters.
    fn chain(&self, first: u32, most: u64) -> Result<Vec<Range<u64>>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let (mut cluster, mut held, mut count) = (first, 0, 0);
        while held < most {
            self.check(cluster)?;
            count += 1;
            if count > self.end {
                return Err(circle(first));
            }
            let start = self.data + u64::from(cluster - 2) * self.cluster;
            match runs.last_mut() {
                Some(last) if last.end == start => last.end += self.cluster,
                _ => runs.push(start..start + self.cluster),
            }
            held += self.cluster;
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => break,
            }
        }
        Ok(runs)
    }

    fn check(&self, cluster: u32) -> Result<()> {
        if (2..self.end).contains(&cluster) {
            return Ok(());
        }
        let message = format!("cluster {cluster} is none of the {} there are", self.end - 2);
        Err(Error::damaged("fat.cluster", message))
    }

    /// The next cluster of a chain; `None` at its end.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = u64::from(cluster);
        let (next, bad) = match self.width {
            Width::Fat12 => {
                let both = u16_at(&self.bytes.read(self.table + at * 3 / 2, 2)?, 0);
                (u32::from(half_entry(both, cluster)), 0xFF7)
            }
            Width::Fat16 => (u16_at(&self.bytes.read(self.table + at * 2, 2)?, 0).into(), 0xFFF7),
            Width::Fat32 => {
                (u32_at(&self.bytes.read(self.table + at * 4, 4)?, 0) & MASK, 0x0FFF_FFF7)
            }
        };
        Ok((next <= bad).then_some(next))
    }
}

/// A file. Of its chain only some clusters are kept, from which the others are found: a chain may have millions.
struct File {
    shape: Shape,
    len: u64,
    /// The number of each [`EACH`]th cluster, from the first on.
    marks: Vec<u32>,
    /// A cluster by its place in the chain: where the last read has ended.
    last: (u64, u32),
}

/// How many clusters lie between two that are kept.
const EACH: u64 = 1024;

impl File {
    /// Follows the chain of the file as far as its bytes need. Refuses one that returns to itself: it is longer than there
    /// are clusters.
    fn open(shape: &Shape, first: u32, len: u64) -> Result<Self> {
        let needed = len.div_ceil(shape.cluster);
        let mut marks = Vec::new();
        let mut cluster = first;
        for place in 0..needed {
            shape.check(cluster)?;
            if place > shape.end.into() {
                return Err(circle(first));
            }
            if place % EACH == 0 {
                marks.push(cluster);
            }
            if place + 1 == needed {
                break;
            }
            cluster = shape.next(cluster)?.ok_or_else(|| {
                let held = (place + 1) * shape.cluster;
                let message = format!("the file has {len} bytes, and its clusters only {held}");
                Error::damaged("fat.short", message)
            })?;
        }
        Ok(Self { shape: shape.clone(), len, marks, last: (0, first) })
    }

    /// The cluster at a place of the chain.
    fn cluster(&mut self, place: u64) -> Result<u32> {
        let mark = place / EACH * EACH;
        let (mut at, mut cluster) = match self.last {
            (at, cluster) if (mark..=place).contains(&at) => (at, cluster),
            _ => (mark, self.marks[(mark / EACH) as usize]),
        };
        while at < place {
            let next = self.shape.next(cluster)?;
            // The table may have changed since the file was opened.
            cluster = next.ok_or_else(|| Error::damaged("fat.short", "the chain ends early"))?;
            self.shape.check(cluster)?;
            at += 1;
        }
        self.last = (at, cluster);
        Ok(cluster)
    }
}

impl Stream for File {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let size = self.shape.cluster;
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let (mut place, within) = (at / size, at % size);
            let start = self.shape.data + u64::from(self.cluster(place)? - 2) * size;
            // Clusters that follow each other are read at once.
            let mut held = size - within;
            while held < rest.len() as u64 {
                let behind = self.shape.data + u64::from(self.cluster(place + 1)? - 2) * size;
                if behind != start + within + held {
                    break;
                }
                (place, held) = (place + 1, held + size);
            }
            let (now, later) = rest.split_at_mut(rest.len().min(held as usize));
            self.shape.bytes.read_at(now, start + within)?;
            (rest, at) = (later, at + held);
        }
        Ok(())
    }

    fn piece(&mut self, offset: u64) -> Result<Piece> {
        let size = self.shape.cluster;
        let (place, within) = (offset / size, offset % size);
        let first = self.cluster(place)?;
        let (mut count, end) = (1, self.len.div_ceil(size));
        while place + count < end
            && u64::from(self.cluster(place + count)?) == u64::from(first) + count
        {
            count += 1;
        }
        let start = self.shape.data + u64::from(first - 2) * size;
        Ok(Piece { len: count * size - within, place: Place::At(start + within) })
    }
}
