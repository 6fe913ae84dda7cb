//! An image builder: every field of every structure is right by default and wrong on demand.
//!
//! An [`Image`] is a description with public fields. Nothing is computed before
//! [`Image::layout`], [`Image::to_bytes`] or [`Image::write_to`] is called, so that fields can be set
//! in any order. [`Image::patches`], which are written last, express what fields cannot.
//!
//! ```
//! use avhdx_testkit::build::{Block, Data, Image};
//! use avhdx_testkit::naive::Chain;
//!
//! let mut base = Image::dynamic(4 << 20);
//! base.put(0, Block::full(Data::Pattern(1)));
//! let mut child = base.new_child();
//! child.put(0, Block::partial_runs(Data::Pattern(2), &[(8, 16)]));
//!
//! let flat = child.flat(Some(&base.flat(None)));
//! let chain = Chain::from_bytes([base.to_bytes(), child.to_bytes()]).unwrap();
//! assert!(chain.flat(1).unwrap() == flat);
//! ```

mod block;
mod layout;
mod log;
mod paged;
mod parts;
mod random;
mod write;

pub use block::{Block, Data, Order, state};
pub use layout::Layout;
pub use log::{Descriptor, LogEntry, SECTOR, Tail};
pub use parts::*;
pub use random::random_chain;
pub use write::write_chain;

use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Where a new child looks for its parent.
const DEFAULT_PARENT: &str = ".\\parent.vhdx";

/// One VHDX file.
#[derive(Clone, Debug)]
pub struct Image {
    /// `vhdxfile`. [MS-VHDX] 2.2.1
    pub signature: [u8; 8],
    /// UTF-16 units, at most 256. [MS-VHDX] 2.2.1
    pub creator: Vec<u16>,
    /// The headers; `None` leaves zeros. By default the second one is current.
    pub headers: [Option<Header>; 2],
    /// The region tables; `None` leaves zeros.
    pub region_tables: [Option<RegionTable>; 2],
    /// Additional regions; see [`Image::add_region`].
    pub extra_regions: Vec<ExtraRegion>,
    /// The offset of the log.
    pub log_offset: u64,
    /// The length of the log, which may be 0.
    pub log_length: u32,
    /// The offset of the metadata region.
    pub metadata_offset: u64,
    /// The length of the metadata region.
    pub metadata_length: u32,
    /// The offset of the BAT.
    pub bat_offset: u64,
    /// `None`: room for the bitmap entries of all chunks, in whole MiB.
    pub bat_length: Option<u32>,
    /// Where blocks start. `None`: after all regions.
    pub data_offset: Option<u64>,
    /// Virtual size in bytes.
    pub size: u64,
    /// Payload block size in bytes.
    pub block_size: u32,
    /// 512 or 4096.
    pub logical_sector: u32,
    /// 512 or 4096.
    pub physical_sector: u32,
    /// The virtual disk's identity, the same in the whole chain.
    pub disk_id: Uuid,
    /// File parameters, bit 0: a fixed disk.
    pub leave_blocks_allocated: bool,
    /// File parameters, bit 1.
    pub has_parent: bool,
    /// The metadata table and its items.
    pub metadata: Metadata,
    /// The contents of the item with [`Contents::Locator`].
    pub locator: Locator,
    /// Blocks that are not listed are FULLY_PRESENT and zero, as on a fixed disk.
    pub allocate_all: bool,
    /// The payload blocks by number; all others are NOT_PRESENT.
    pub blocks: BTreeMap<u64, Block>,
    /// Chunks that get a bitmap block although none of their blocks has a bit or needs one.
    pub bitmap_chunks: BTreeSet<u64>,
    /// File offsets of bitmap blocks by chunk, overriding the automatic ones.
    pub bitmap_at: BTreeMap<u64, u64>,
    /// The order of blocks in the file.
    pub order: Order,
    /// Bytes left free before each block, in whole MiB.
    pub gap: u64,
    /// BAT entries by index, overriding those of the blocks; also past the last one needed.
    pub bat_override: BTreeMap<u64, u64>,
    /// The contents of the log; see [`Image::set_log_guid`].
    pub log: Vec<LogEntry>,
    /// File offsets and bytes written over everything else, including checksums.
    pub patches: Vec<(u64, Vec<u8>)>,
    /// Truncates or extends the file. `None`: the end of all structures, in whole MiB.
    pub file_length: Option<u64>,
}

impl Image {
    /// An empty dynamic disk: 1 MiB blocks, 512-byte sectors.
    pub fn dynamic(size: u64) -> Self {
        let mut rng = Rng::new(size ^ 0x6479_6E61_6D69_6300);
        let (write, data) = (rng.uuid(), rng.uuid());
        Self {
            signature: *b"vhdxfile",
            creator: "avhdx testkit".encode_utf16().collect(),
            headers: [1, 2].map(|n| Some(Header::new(n, write, data))),
            region_tables: [Some(RegionTable::default()), Some(RegionTable::default())],
            extra_regions: Vec::new(),
            log_offset: MIB,
            log_length: MIB as u32,
            metadata_offset: 2 * MIB,
            metadata_length: MIB as u32,
            bat_offset: 3 * MIB,
            bat_length: None,
            data_offset: None,
            size,
            block_size: MIB as u32,
            logical_sector: 512,
            physical_sector: 4096,
            disk_id: Uuid::from_u128(0x6b69_7464_0000_4000_8000_0000_0000_0001),
            leave_blocks_allocated: false,
            has_parent: false,
            metadata: Metadata {
                signature: *b"metadata",
                entry_count: None,
                items: vec![
                    Item::new(
                        "file_parameters",
                        ITEM_FILE_PARAMETERS,
                        IS_REQUIRED,
                        Contents::FileParameters,
                    ),
                    disk_item("disk_size", ITEM_DISK_SIZE, Contents::DiskSize),
                    disk_item("disk_id", ITEM_DISK_ID, Contents::DiskId),
                    disk_item("logical_sector", ITEM_LOGICAL_SECTOR, Contents::LogicalSector),
                    disk_item("physical_sector", ITEM_PHYSICAL_SECTOR, Contents::PhysicalSector),
                ],
            },
            locator: Locator::default(),
            allocate_all: false,
            blocks: BTreeMap::new(),
            bitmap_chunks: BTreeSet::new(),
            bitmap_at: BTreeMap::new(),
            order: Order::Sequential,
            gap: 0,
            bat_override: BTreeMap::new(),
            log: Vec::new(),
            patches: Vec::new(),
            file_length: None,
        }
    }

    /// A fixed disk of zeros, with all blocks present.
    pub fn fixed(size: u64) -> Self {
        let mut image = Self::dynamic(size);
        image.leave_blocks_allocated = true;
        image.allocate_all = true;
        image.reseed(size ^ 0x6669_7865_6400);
        image
    }

    /// An empty differencing disk over the parent whose `data_write_guid` is `parent_linkage`;
    /// its recorded path is `parent.vhdx` beside it unless [`Image::parent_path`] sets another.
    pub fn child(size: u64, parent_linkage: Uuid) -> Self {
        let mut image = Self::dynamic(size);
        image.has_parent = true;
        image.metadata.items.push(Item::new(
            "locator",
            ITEM_PARENT_LOCATOR,
            IS_REQUIRED,
            Contents::Locator,
        ));
        image.locator.set("parent_linkage", braced(parent_linkage));
        image.locator.set("relative_path", DEFAULT_PARENT);
        // Neither its parent's GUIDs, nor those of a child of another parent.
        let (high, low) = parent_linkage.as_u64_pair();
        image.reseed(high ^ low.rotate_left(17) ^ size);
        image
    }

    /// An empty child of this image, with the same size, sectors, block size and disk ID.
    pub fn new_child(&self) -> Self {
        let mut image = Self::child(self.size, self.data_write_guid());
        image.block_size = self.block_size;
        image.logical_sector = self.logical_sector;
        image.physical_sector = self.physical_sector;
        image.disk_id = self.disk_id;
        image
    }

    /// Gives both headers write GUIDs derived from `seed`, so that siblings differ.
    pub fn reseed(&mut self, seed: u64) -> &mut Self {
        let mut rng = Rng::new(seed);
        let (write, data) = (rng.uuid(), rng.uuid());
        for h in self.headers.iter_mut().flatten() {
            (h.file_write_guid, h.data_write_guid) = (write, data);
        }
        self
    }

    /// The identity that children record, from the header with the highest number.
    pub fn data_write_guid(&self) -> Uuid {
        self.newest_header().map_or(Uuid::nil(), |h| h.data_write_guid)
    }

    /// Sets the identity in both headers.
    pub fn set_data_write_guid(&mut self, guid: Uuid) -> &mut Self {
        self.headers.iter_mut().flatten().for_each(|h| h.data_write_guid = guid);
        self
    }

    /// Sets the log GUID in both headers; any but nil makes the log pending.
    pub fn set_log_guid(&mut self, guid: Uuid) -> &mut Self {
        self.headers.iter_mut().flatten().for_each(|h| h.log_guid = guid);
        self
    }

    /// Sets the locator's `relative_path`.
    pub fn parent_path(&mut self, windows_path: &str) -> &mut Self {
        self.locator.set("relative_path", windows_path);
        self
    }

    /// The metadata item with this name. Panics if there is none.
    pub fn item(&mut self, name: &str) -> &mut Item {
        let found = self.metadata.items.iter_mut().find(|i| i.name == name);
        found.unwrap_or_else(|| panic!("no metadata item {name:?}"))
    }

    /// Adds a region and its entry in both tables.
    pub fn add_region(&mut self, guid: Uuid, required: bool, contents: Vec<u8>) -> &mut Self {
        self.extra_regions.push(ExtraRegion { guid, offset: None, contents });
        for t in self.region_tables.iter_mut().flatten() {
            let mut entry = RegionEntry::new(guid);
            entry.required = required.into();
            t.entries.push(entry);
        }
        self
    }

    /// Sets a block.
    pub fn put(&mut self, block: u64, contents: Block) -> &mut Self {
        self.blocks.insert(block, contents);
        self
    }

    /// Payload blocks of the disk. [MS-VHDX] 2.5
    pub fn block_count(&self) -> u64 {
        self.size.div_ceil(self.block_size.into())
    }

    /// Payload blocks per bitmap block. [MS-VHDX] 2.5
    pub fn chunk_ratio(&self) -> u64 {
        let chunk = u64::from(self.logical_sector) << 23;
        (chunk / u64::from(self.block_size)).max(1)
    }

    /// Sectors of a block.
    pub fn sectors_per_block(&self) -> u64 {
        u64::from(self.block_size / self.logical_sector)
    }

    /// The BAT index of a payload block.
    pub fn bat_index(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// The BAT index of a chunk's bitmap block.
    pub fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk * (self.chunk_ratio() + 1) + self.chunk_ratio()
    }

    /// The whole virtual disk as described by `blocks`, over the flat bytes of the parent, without
    /// overrides, patches and log entries. UNDEFINED, UNMAPPED and reserved states are zeros.
    pub fn flat(&self, parent: Option<&[u8]>) -> Vec<u8> {
        let mut flat = vec![0; self.size as usize];
        let parent = if self.has_parent { parent.unwrap_or(&[]) } else { &[] };
        let from_parent = |at: usize, buf: &mut [u8]| {
            let seen = parent.get(at..).unwrap_or(&[]);
            let n = seen.len().min(buf.len());
            buf[..n].copy_from_slice(&seen[..n]);
        };
        let sector_size = self.logical_sector as usize;
        for (b, buf) in flat.chunks_mut(self.block_size as usize).enumerate() {
            let at = b * self.block_size as usize;
            match self.blocks.get(&(b as u64)) {
                None if self.allocate_all => {}
                None => from_parent(at, buf),
                Some(block) if block.state == state::NOT_PRESENT => from_parent(at, buf),
                Some(block) if block.state == state::FULLY_PRESENT => {
                    block.data.fill(at as u64, 0, buf);
                }
                Some(block) if block.state == state::PARTIALLY_PRESENT => {
                    block.data.fill(at as u64, 0, buf);
                    for (s, sector) in buf.chunks_mut(sector_size).enumerate() {
                        if !block.bit(s) {
                            sector.fill(0);
                            from_parent(at + s * sector_size, sector);
                        }
                    }
                }
                Some(_) => {}
            }
        }
        flat
    }

    fn newest_header(&self) -> Option<&Header> {
        self.headers.iter().flatten().max_by_key(|h| h.sequence_number)
    }

    /// The chunks that get a bitmap block.
    fn bitmap_chunks_all(&self) -> BTreeSet<u64> {
        let needs = |b: &Block| b.state == state::PARTIALLY_PRESENT || !b.bitmap.is_empty();
        let from_blocks = self.blocks.iter().filter(|(_, b)| needs(b));
        let mut chunks: BTreeSet<u64> = from_blocks.map(|(n, _)| n / self.chunk_ratio()).collect();
        chunks.extend(&self.bitmap_chunks);
        chunks.extend(self.bitmap_at.keys());
        chunks
    }
}

fn disk_item(name: &str, id: Uuid, contents: Contents) -> Item {
    Item::new(name, id, IS_VIRTUAL_DISK | IS_REQUIRED, contents)
}
