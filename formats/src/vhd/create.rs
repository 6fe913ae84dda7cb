//! Makes images.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use avhdx::storage::{FileId, Storage};
use avhdx::{
    Disk, DiskExt, Error, ErrorKind, Extent, FileOffset, Geometry, LayerId, Result, Source, Zeroing,
};
use uuid::Uuid;

use super::footer::{self, Footer, Kind, SECTOR};
use super::header::{self, Header};
use super::layer::UNUSED;

/// The most bytes of a disk: 2,040 GiB, as Hyper-V has it.
pub const MAX_SIZE: u64 = 2040 << 30;
const TABLE: u64 = (footer::LEN + header::LEN) as u64;
/// The bytes of blocks begin at multiples of this, so that hosts can share and align them.
const ALIGNMENT: u64 = 4096;

/// How a new image is made.
///
/// Its footer names Hyper-V as the program that made it: of such images QEMU and others take the exact size, instead of
/// what the geometry can express.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    size: u64,
    kind: Kind,
    block_size: u32,
    id: Option<Uuid>,
    created: Option<SystemTime>,
}

/// An image that is being made: a disk of zeros to be written to. It is no image before [`finish`](Self::finish).
#[derive(Debug)]
pub struct NewVhd {
    layer: LayerId,
    storage: Arc<dyn Storage>,
    footer: Footer,
    /// None for a fixed image.
    blocks: Option<NewBlocks>,
}

#[derive(Debug)]
struct NewBlocks {
    size: u64,
    bitmap: u64,
    given: Mutex<Given>,
}

/// The space that is given to blocks.
#[derive(Debug)]
struct Given {
    table: Vec<u32>,
    end: u64,
}

impl CreateOptions {
    /// An image that holds the blocks which are written, of 2 MiB each. `size` is in bytes, whole sectors of 512.
    pub fn dynamic(size: u64) -> Self {
        Self { size, kind: Kind::Dynamic, block_size: 2 << 20, id: None, created: None }
    }

    /// An image that holds all bytes of the disk; what is not written is a hole of the file.
    pub fn fixed(size: u64) -> Self {
        Self { kind: Kind::Fixed, ..Self::dynamic(size) }
    }

    /// Sets the size of the blocks of a dynamic image, in bytes: a power of two from 512 KiB to 256 MiB.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// Sets the identity. The default is a new one.
    #[must_use]
    pub fn id(mut self, id: Uuid) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets when the image was made. The default is now.
    #[must_use]
    pub fn created(mut self, time: SystemTime) -> Self {
        self.created = Some(time);
        self
    }

    /// Begins an image in an empty file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a size that is zero, no whole number of sectors or more than [`MAX_SIZE`], for a size of
    /// blocks that is not allowed, and for a file that is not empty; [`ErrorKind::Io`] if the host fails.
    pub fn create(&self, storage: Arc<dyn Storage>) -> Result<NewVhd> {
        self.check()?;
        let name = storage.name().to_owned();
        let failed = |error: std::io::Error| Error::from(error).in_file(&name);
        let len = storage.len().map_err(failed)?;
        if len > 0 {
            return Err(invalid("new-vhd.not-empty", "a new image needs an empty file")
                .in_file(&name)
                .with_found(format_args!("{len} bytes")));
        }
        let blocks = match self.kind {
            Kind::Fixed => {
                storage.set_len(self.size).map_err(failed)?;
                None
            }
            Kind::Dynamic | Kind::Differencing => Some(NewBlocks::new(self.size, self.block_size)),
        };
        let id = self.id.unwrap_or_else(Uuid::new_v4);
        let created = self.created.unwrap_or_else(SystemTime::now);
        let footer = Footer::new(self.kind, self.size, id, created);
        Ok(NewVhd { layer: LayerId::unique(), storage, footer, blocks })
    }

    fn check(&self) -> Result<()> {
        if self.size == 0 || !self.size.is_multiple_of(SECTOR) {
            return Err(invalid(
                "new-vhd.size",
                "a disk is a whole number of sectors of 512 bytes",
            )
            .with_found(format_args!("{} bytes", self.size)));
        }
        if self.size > MAX_SIZE {
            return Err(invalid("new-vhd.too-large", "the disk is too large for VHD")
                .with_found(format_args!("{} bytes", self.size))
                .with_expected(format_args!("at most {MAX_SIZE} (2,040 GiB)")));
        }
        let allowed = 512 << 10..=256 << 20;
        if !self.block_size.is_power_of_two() || !allowed.contains(&self.block_size) {
            return Err(invalid("new-vhd.block-size", "the blocks of a VHD cannot have this size")
                .with_found(format_args!("{} bytes", self.block_size))
                .with_expected("a power of two from 512 KiB to 256 MiB"));
        }
        Ok(())
    }
}

impl NewVhd {
    /// Bytes of a block; `None` for a fixed image.
    pub fn block_size(&self) -> Option<u32> {
        self.blocks.as_ref().map(|blocks| blocks.size as u32)
    }

    /// Completes the image, and makes it durable. What is written afterwards needs another call.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the host fails.
    pub fn finish(&self) -> Result<()> {
        let mut end = self.footer.size;
        if let Some(blocks) = &self.blocks {
            let given = blocks.given();
            end = given.end.next_multiple_of(SECTOR);
            let mut table: Vec<u8> =
                given.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            // The rest of the table's last sector has no meaning.
            table.resize(table.len().next_multiple_of(SECTOR as usize), 0xFF);
            self.write(&table, TABLE)?;
            let header = Header {
                table_offset: TABLE,
                entries: given.table.len() as u32,
                block_size: blocks.size as u32,
                parent: None,
            };
            self.write(&header.bytes(), footer::LEN as u64)?;
            self.write(&self.footer.bytes(), 0)?;
        }
        self.write(&self.footer.bytes(), end)?;
        self.flush()
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let written = self.storage.write_at(bytes, at);
        written.map_err(|error| Error::from(error).in_file(self.storage.name()).at(at))
    }

    /// Where the bytes at `offset` are, and how far they are together; `None` for zeros.
    fn find(&self, range: Range<u64>) -> (u64, Option<u64>) {
        match &self.blocks {
            None => (range.end, Some(range.start)),
            Some(blocks) => {
                let block = range.start / blocks.size;
                let end = ((block + 1) * blocks.size).min(range.end);
                let entry = blocks.given().table[block as usize];
                (end, (entry != UNUSED).then(|| blocks.place(entry) + range.start % blocks.size))
            }
        }
    }

    /// Gives space to the block at `offset`, if it has none.
    fn give(&self, blocks: &NewBlocks, offset: u64) -> Result<()> {
        let mut given = blocks.given();
        let block = (offset / blocks.size) as usize;
        if given.table[block] != UNUSED {
            return Ok(());
        }
        let data = (given.end + blocks.bitmap).next_multiple_of(ALIGNMENT);
        let start = data - blocks.bitmap;
        let end = data + blocks.size;
        let grown = self.storage.set_len(end);
        grown.map_err(|error| Error::from(error).in_file(self.storage.name()).at(end))?;
        self.write(&vec![0xFF; blocks.bitmap as usize], start)?;
        given.table[block] = (start / SECTOR) as u32;
        given.end = end;
        Ok(())
    }
}

impl NewBlocks {
    fn new(size: u64, block_size: u32) -> Self {
        let block = u64::from(block_size);
        let entries = size.div_ceil(block);
        let end = (TABLE + entries * 4).next_multiple_of(SECTOR);
        let given = Given { table: vec![UNUSED; entries as usize], end };
        let bitmap = bitmap_len(block);
        Self { size: block, bitmap, given: Mutex::new(given) }
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the bytes of a block begin.
    fn place(&self, entry: u32) -> u64 {
        u64::from(entry) * SECTOR + self.bitmap
    }
}

impl Disk for NewVhd {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.footer.size, 512, 512)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let (end, found) = self.find(offset..offset + buf.len() as u64);
            let (now, rest) = buf.split_at_mut((end - offset) as usize);
            match found {
                None => now.fill(0),
                Some(at) => self
                    .storage
                    .read_exact_at(now, at)
                    .map_err(|error| Error::from(error).in_file(self.storage.name()).at(at))?,
            }
            (buf, offset) = (rest, end);
        }
        Ok(())
    }

    fn write_at(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            if let Some(blocks) = &self.blocks {
                self.give(blocks, offset)?;
            }
            let (end, found) = self.find(offset..offset + buf.len() as u64);
            let (now, rest) = buf.split_at((end - offset) as usize);
            let Some(at) = found else { continue };
            self.write(now, at)?;
            (buf, offset) = (rest, end);
        }
        Ok(())
    }

    /// Writes zeros to what has space. Nothing loses its space.
    fn write_zeroes(&self, range: Range<u64>, _: Zeroing) -> Result<()> {
        self.geometry().check_range(range.start, range.end.saturating_sub(range.start))?;
        let zeros = vec![0; (range.end.saturating_sub(range.start)).min(1 << 20) as usize];
        let mut offset = range.start;
        while offset < range.end {
            let (mut end, found) = self.find(offset..range.end);
            if let Some(at) = found {
                end = end.min(offset + zeros.len() as u64);
                self.write(&zeros[..(end - offset) as usize], at)?;
            }
            offset = end;
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
        let (end, found) = self.find(range.clone());
        let source = match found {
            Some(at) => Source::Data { layer: self.layer, at: FileOffset::new(at) },
            None => Source::Zero { layer: None },
        };
        Ok(Some(Extent { range: range.start..end, source }))
    }

    fn files(&self) -> Vec<FileId> {
        self.storage.id().ok().flatten().into_iter().collect()
    }
}

/// What a dynamic or fixed image takes, by the extents of its disk. Made by [`measure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// The length of the file now, in bytes.
    pub required: u64,
    /// The length of the file once every block has space, in bytes.
    pub fully_allocated: u64,
    /// The blocks that have space now; 0 for a fixed image.
    pub blocks: u64,
}

/// Computes what an image of this disk takes. `block_size` is in bytes, and `None` for a fixed image, which always has its
/// full length.
///
/// # Errors
/// As for [`CreateOptions::create`]; and those of the disk.
pub fn measure(disk: &dyn Disk, block_size: Option<u32>) -> Result<Measured> {
    let size = disk.geometry().size.next_multiple_of(SECTOR);
    let Some(block_size) = block_size else {
        CreateOptions::fixed(size).check()?;
        let len = size + footer::LEN as u64;
        return Ok(Measured { required: len, fully_allocated: len, blocks: 0 });
    };
    CreateOptions::dynamic(size).block_size(block_size).check()?;
    let block = u64::from(block_size);
    let mut used = 0;
    let mut next = 0;
    for extent in disk.extents(0..disk.geometry().size) {
        let Extent { range, source } = extent?;
        if let Source::Zero { .. } = source {
            continue;
        }
        let first = (range.start / block).max(next);
        let end = range.end.div_ceil(block);
        used += end.saturating_sub(first);
        next = next.max(end);
    }
    let all = size.div_ceil(block);
    let bitmap = bitmap_len(block);
    let table_end = (TABLE + all * 4).next_multiple_of(SECTOR);
    let len = |blocks: u64| match blocks {
        0 => table_end + footer::LEN as u64,
        _ => {
            let first = (table_end + bitmap).next_multiple_of(ALIGNMENT);
            let stride = (block + bitmap).next_multiple_of(ALIGNMENT);
            first + (blocks - 1) * stride + block + footer::LEN as u64
        }
    };
    Ok(Measured { required: len(used), fully_allocated: len(all), blocks: used })
}

/// The bytes of a bitmap of a block, whole sectors.
fn bitmap_len(block: u64) -> u64 {
    (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
}

fn invalid(code: &'static str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, code, message)
}
