//! Makes images.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::{FileId, Storage};
use avhdx::{
    Disk, Error, ErrorKind, Extent, FileOffset, Geometry, LayerId, Result, Source, Zeroing,
};
use lru::LruCache;

use crate::cache::read_up_to;

pub(super) const SECTOR: u64 = 512;
const HEADER: usize = 104;
/// The bit of an entry whose cluster nothing else uses.
const OWN: u64 = 1 << 63;
const ZEROS: u64 = 1;
/// The bytes of second tables that are kept; others are in the file.
const MOST_TABLES: u64 = 8 << 20;
/// The most bytes of a name, by the specification.
const MOST_NAME: usize = 1023;

/// How a new image is made: of version 3, with clusters of 64 KiB, unpacked.
#[derive(Clone)]
pub struct CreateOptions {
    size: u64,
    cluster_size: u32,
    backing: Option<Backing>,
}

/// The image below a new one.
#[derive(Clone)]
pub struct Backing {
    /// The name to record: a path from the folder of the new image, with `/` between names.
    pub name: String,
    /// The name of its format to record, such as `qcow2` or `raw`.
    pub format: String,
    /// Its disk, which the rest of a cluster is taken from where a part is written.
    pub disk: Arc<dyn Disk>,
}

/// An image that is being made: a disk of zeros, or of what is below, to be written to. It is no image before
/// [`finish`](Self::finish).
pub struct NewQcow2 {
    layer: LayerId,
    storage: Arc<dyn Storage>,
    size: u64,
    cluster: u64,
    backing: Option<Backing>,
    given: Mutex<Given>,
}

/// The space that is given to clusters.
struct Given {
    /// The offsets of second tables; 0 for those that are not there.
    l1: Vec<u64>,
    /// Second tables by their numbers.
    tables: LruCache<usize, Vec<u64>>,
    end: u64,
    is_finished: bool,
}

impl CreateOptions {
    /// An image of a disk of `size` bytes, whole sectors of 512.
    pub fn new(size: u64) -> Self {
        Self { size, cluster_size: 64 << 10, backing: None }
    }

    /// Sets the size of the clusters, in bytes: a power of two from 4 KiB to 2 MiB.
    #[must_use]
    pub fn cluster_size(mut self, bytes: u32) -> Self {
        self.cluster_size = bytes;
        self
    }

    /// Sets what shows where nothing is written.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = Some(backing);
        self
    }

    /// Begins an image in an empty file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a size that is zero or no whole number of sectors, a size of clusters or a name that is
    /// not allowed, and a file that is not empty; [`ErrorKind::Io`] if the host fails.
    pub fn create(&self, storage: Arc<dyn Storage>) -> Result<NewQcow2> {
        let l1_len = self.entries()?;
        let len = storage.len().map_err(|error| Error::from(error).in_file(storage.name()))?;
        if len > 0 {
            return Err(invalid("new-qcow2.not-empty", "a new image needs an empty file")
                .in_file(storage.name())
                .with_found(format_args!("{len} bytes")));
        }
        let cluster = u64::from(self.cluster_size);
        // The header comes first, then the first table.
        let end = cluster + (l1_len * 8).next_multiple_of(cluster);
        Ok(NewQcow2 {
            layer: LayerId::unique(),
            storage,
            size: self.size,
            cluster,
            backing: self.backing.clone(),
            given: Mutex::new(Given {
                l1: vec![0; l1_len as usize],
                tables: LruCache::new(kept_tables(cluster)),
                end,
                is_finished: false,
            }),
        })
    }

    /// Refuses what [`create`](Self::create) refuses of these options.
    ///
    /// # Errors
    /// As for [`create`](Self::create), but for what concerns the file.
    pub fn check(&self) -> Result<()> {
        self.entries().map(drop)
    }

    /// The entries of the first table.
    pub(super) fn entries(&self) -> Result<u64> {
        if self.size == 0 || !self.size.is_multiple_of(SECTOR) || self.size > i64::MAX as u64 {
            return Err(invalid(
                "new-qcow2.size",
                "a disk is a whole number of sectors of 512 bytes",
            )
            .with_found(format_args!("{} bytes", self.size)));
        }
        if !self.cluster_size.is_power_of_two() || !(4096..=2 << 20).contains(&self.cluster_size) {
            return Err(invalid(
                "new-qcow2.cluster-size",
                "clusters have a size that they cannot have",
            )
            .with_found(format_args!("{} bytes", self.cluster_size))
            .with_expected("a power of two from 4 KiB to 2 MiB"));
        }
        if let Some(Backing { name, format, .. }) = &self.backing
            && (name.is_empty() || name.len() > MOST_NAME || format.len() > MOST_NAME)
        {
            let message = "the name of the image below is empty, or longer than the format allows";
            return Err(invalid("new-qcow2.backing-name", message)
                .with_found(format_args!("{} bytes", name.len()))
                .with_expected(format_args!("1 to {MOST_NAME}")));
        }
        let cluster = u64::from(self.cluster_size);
        let entries = self.size.div_ceil(cluster * (cluster / 8));
        if entries * 8 > 32 << 20 {
            return Err(invalid(
                "new-qcow2.too-large",
                "the disk is too large for clusters of this size",
            )
            .with_found(format_args!("{} bytes", self.size)));
        }
        Ok(entries)
    }
}

impl NewQcow2 {
    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u32 {
        self.cluster as u32
    }

    /// Completes the image, and makes it durable. Nothing can be written afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the host fails.
    pub fn finish(&self) -> Result<()> {
        let mut given = self.given();
        given.is_finished = true;
        for (number, table) in &given.tables {
            self.write(&be(table), given.l1[*number])?;
        }
        self.write(&be(&given.l1.iter().map(|at| own(*at)).collect::<Vec<_>>()), self.cluster)?;
        let (counts_at, count_clusters, end) = self.write_counts(given.end)?;
        self.write(&self.header(given.l1.len(), counts_at, count_clusters), 0)?;
        let grown = self.storage.set_len(end);
        grown.map_err(|error| Error::from(error).in_file(self.storage.name()).at(end))?;
        self.flush()
    }

    /// Writes the tables that count the uses of clusters, each of which is used once, from `at` on. Returns where the first of
    /// them is, how many clusters it has, and where they end.
    fn write_counts(&self, at: u64) -> Result<(u64, u64, u64)> {
        let used = at / self.cluster;
        let per_block = self.cluster / 2;
        let (table, blocks) = counts(used, self.cluster);
        let first = at + table * self.cluster;
        let places: Vec<u64> = (0..blocks).map(|n| first + n * self.cluster).collect();
        let mut bytes = be(&places);
        bytes.resize((table * self.cluster) as usize, 0);
        self.write(&bytes, at)?;
        let all = used + blocks + table;
        for (n, place) in (0..).zip(places) {
            let counted = (all - n * per_block).min(per_block) as usize;
            let mut block = [0, 1].repeat(counted);
            block.resize(self.cluster as usize, 0);
            self.write(&block, place)?;
        }
        Ok((at, table, first + blocks * self.cluster))
    }

    fn header(&self, l1_len: usize, counts_at: u64, count_clusters: u64) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"QFI\xFB");
        put(4, &3_u32.to_be_bytes());
        put(20, &self.cluster.trailing_zeros().to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(l1_len as u32).to_be_bytes());
        put(40, &self.cluster.to_be_bytes());
        put(48, &counts_at.to_be_bytes());
        put(56, &(count_clusters as u32).to_be_bytes());
        // Counts of 2^4 bits.
        put(96, &4_u32.to_be_bytes());
        put(100, &(HEADER as u32).to_be_bytes());
        if let Some(Backing { name, format, .. }) = &self.backing {
            bytes.extend(0xE279_2ACA_u32.to_be_bytes());
            bytes.extend((format.len() as u32).to_be_bytes());
            bytes.extend(format.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
            let at = bytes.len() as u64;
            bytes[8..16].copy_from_slice(&at.to_be_bytes());
            bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            bytes.extend(name.as_bytes());
        } else {
            bytes.resize(HEADER + 8, 0);
        }
        bytes
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let written = self.storage.write_at(bytes, at);
        written.map_err(|error| Error::from(error).in_file(self.storage.name()).at(at))
    }

    /// The second table with the entry of a cluster, and the place of that in it.
    fn table<'g>(&self, given: &'g mut Given, cluster: u64) -> Result<(&'g mut Vec<u64>, usize)> {
        let entries = self.cluster / 8;
        let (number, place) = ((cluster / entries) as usize, (cluster % entries) as usize);
        if !given.tables.contains(&number) {
            let table = match given.l1[number] {
                0 => {
                    given.l1[number] = given.end;
                    given.end += self.cluster;
                    vec![0; entries as usize]
                }
                at => self.read_table(at)?,
            };
            if let Some((old, table)) = given.tables.push(number, table) {
                self.write(&be(&table), given.l1[old])?;
            }
        }
        match given.tables.get_mut(&number) {
            Some(table) => Ok((table, place)),
            None => Err(Error::other("a table of the image was lost")),
        }
    }

    fn read_table(&self, at: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; self.cluster as usize];
        read_up_to(self.storage.as_ref(), &mut bytes, at)?;
        let (numbers, _) = bytes.as_chunks::<8>();
        Ok(numbers.iter().map(|number| u64::from_be_bytes(*number)).collect())
    }

    /// The entry of a cluster.
    fn entry(&self, given: &mut Given, cluster: u64) -> Result<u64> {
        let number = (cluster / (self.cluster / 8)) as usize;
        if given.l1[number] == 0 {
            return Ok(0);
        }
        let (table, place) = self.table(given, cluster)?;
        Ok(table[place])
    }

    /// Where the bytes at the start of a range are, and how far they are together.
    fn find(&self, range: Range<u64>) -> Result<(u64, At)> {
        let mut given = self.given();
        let mut cluster = range.start / self.cluster;
        let found = At::of(self.entry(&mut given, cluster)?, range.start % self.cluster);
        loop {
            cluster += 1;
            let end = cluster * self.cluster;
            if end >= range.end {
                return Ok((range.end, found));
            }
            let next = At::of(self.entry(&mut given, cluster)?, 0);
            let is_alike = match (found, next) {
                (At::Data(at), At::Data(next)) => next == at + (end - range.start),
                (one, other) => one == other,
            };
            if !is_alike {
                return Ok((end, found));
            }
        }
    }

    /// Gives space to the clusters of a range that is to be written. What is below fills the rest of a cluster that is
    /// written in part.
    fn give(&self, range: Range<u64>) -> Result<()> {
        let mut given = self.given();
        if given.is_finished {
            return Err(
                invalid("new-qcow2.finished", "the image is finished").in_file(self.storage.name())
            );
        }
        for cluster in range.start / self.cluster..range.end.div_ceil(self.cluster) {
            let entry = self.entry(&mut given, cluster)?;
            if let At::Data(_) = At::of(entry, 0) {
                continue;
            }
            // The table comes first, so that clusters of data follow each other.
            self.table(&mut given, cluster)?;
            let at = given.end;
            given.end += self.cluster;
            let (table, place) = self.table(&mut given, cluster)?;
            table[place] = own(at);
            let start = cluster * self.cluster;
            let end = (start + self.cluster).min(self.size);
            let is_whole = range.start <= start && end <= range.end;
            if let Some(backing) = self.backing.as_ref().filter(|_| entry == 0 && !is_whole) {
                let below = self.below(backing, start..end)?;
                self.write(&below, at)?;
            }
        }
        Ok(())
    }

    /// What is below, with zeros behind its end.
    fn below(&self, backing: &Backing, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let end = backing.disk.geometry().size.min(range.end);
        if range.start < end {
            backing.disk.read_at(&mut bytes[..(end - range.start) as usize], range.start)?;
        }
        Ok(bytes)
    }

    /// Makes whole clusters zeros, whatever is below. Clusters with space keep it and are written.
    fn zero_whole(&self, clusters: Range<u64>) -> Result<()> {
        let mut given = self.given();
        for cluster in clusters {
            let entry = self.entry(&mut given, cluster)?;
            if let At::Data(at) = At::of(entry, 0) {
                self.write(&vec![0; self.cluster as usize], at)?;
            } else if self.backing.is_some() {
                let (table, place) = self.table(&mut given, cluster)?;
                table[place] = ZEROS;
            }
        }
        Ok(())
    }
}

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Data(u64),
    Zeros,
    Below,
}

impl At {
    fn of(entry: u64, within: u64) -> Self {
        match entry & !OWN {
            0 => Self::Below,
            ZEROS => Self::Zeros,
            at => Self::Data(at + within),
        }
    }
}

impl Disk for NewQcow2 {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.size, 512, 512)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let (end, found) = self.find(offset..offset + buf.len() as u64)?;
            let (now, rest) = buf.split_at_mut((end - offset) as usize);
            match (found, &self.backing) {
                (At::Data(at), _) => {
                    // The last cluster may be longer than the file is so far.
                    let read = read_up_to(self.storage.as_ref(), now, at)?;
                    now[read..].fill(0);
                }
                (At::Below, Some(backing)) => {
                    now.copy_from_slice(&self.below(backing, offset..end)?);
                }
                (At::Below | At::Zeros, _) => now.fill(0),
            }
            (buf, offset) = (rest, end);
        }
        Ok(())
    }

    fn write_at(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        self.geometry().check_range(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        self.give(offset..end)?;
        while !buf.is_empty() {
            let (until, found) = self.find(offset..end)?;
            let (now, rest) = buf.split_at((until - offset) as usize);
            let At::Data(at) = found else {
                return Err(Error::other("a cluster of the image was lost"));
            };
            self.write(now, at)?;
            (buf, offset) = (rest, until);
        }
        Ok(())
    }

    /// Whole clusters without space become clusters of zeros. Nothing loses its space.
    fn write_zeroes(&self, range: Range<u64>, _: Zeroing) -> Result<()> {
        self.geometry().check_range(range.start, range.end.saturating_sub(range.start))?;
        if range.is_empty() {
            return Ok(());
        }
        let last = if range.end == self.size {
            range.end.div_ceil(self.cluster)
        } else {
            range.end / self.cluster
        };
        let first = range.start.div_ceil(self.cluster);
        if first < last {
            self.zero_whole(first..last)?;
        }
        let middle = (first * self.cluster).min(range.end)
            ..(last * self.cluster).clamp(range.start, range.end);
        let parts = match first < last {
            true => [range.start..middle.start, middle.end..range.end],
            false => [range.clone(), range.end..range.end],
        };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let mut offset = part.start;
            while offset < part.end {
                let (end, found) = self.find(offset..part.end)?;
                // What is zeros stays so.
                let is_zeros = found == At::Zeros || found == At::Below && self.backing.is_none();
                if !is_zeros {
                    self.write_at(&vec![0; (end - offset) as usize], offset)?;
                }
                offset = end;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let flushed = self.storage.flush();
        flushed.map_err(|error| Error::from(error).in_file(self.storage.name()))
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.geometry().check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let (end, found) = self.find(range.clone())?;
        let source = match (found, &self.backing) {
            (At::Data(at), _) => Source::Data { layer: self.layer, at: FileOffset::new(at) },
            (At::Below, Some(backing)) => {
                let size = backing.disk.geometry().size;
                if range.start < size {
                    return backing.disk.next_extent(range.start..end.min(size));
                }
                Source::Zero { layer: None }
            }
            (At::Below | At::Zeros, _) => Source::Zero { layer: None },
        };
        Ok(Some(Extent { range: range.start..end, source }))
    }

    fn files(&self) -> Vec<FileId> {
        self.storage.id().ok().flatten().into_iter().collect()
    }
}

/// The clusters that count the uses of `used` ones and their own: of the table, and of what it leads to.
pub(super) fn counts(used: u64, cluster: u64) -> (u64, u64) {
    let (mut blocks, mut table) = (1, 1);
    while blocks * (cluster / 2) < used + blocks + table {
        blocks += 1;
        table = (blocks * 8).div_ceil(cluster);
    }
    (table, blocks)
}

/// How many second tables are kept.
fn kept_tables(cluster: u64) -> NonZeroUsize {
    NonZeroUsize::new((MOST_TABLES / cluster) as usize).unwrap_or(NonZeroUsize::MIN)
}

fn be(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// The entry of a place that nothing else uses; 0 stays 0.
fn own(at: u64) -> u64 {
    if at == 0 { 0 } else { at | OWN }
}

fn invalid(code: &'static str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, code, message)
}
