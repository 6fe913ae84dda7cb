//! Single corruptions, and the codes by which each is found.

use std::path::{Path, PathBuf};

use avhdx::ops::{Check, Report};
use avhdx_testkit::build::{
    Block, Checksum, Contents, Data, Descriptor, Header, IS_REQUIRED, Image, Item, Layout,
    LogEntry, REGION_BAT, REGION_METADATA, RegionEntry, SECTOR, Tail, state,
};
use avhdx_testkit::mutate::{put_u8, put_u16, put_u32, reseal};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const LOG: Uuid = Uuid::from_u128(0x1234);

/// The images to be corrupted.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    Dynamic,
    Fixed,
    /// A child of `Dynamic`, which lies beside it as l0.vhdx.
    Child,
    /// An image whose log holds all its tables.
    Dirty,
}

fn parent() -> Image {
    let mut image = Image::dynamic(8 * MIB);
    image.block_size = 2 << 20;
    image.put(0, Block::full(Data::Pattern(1)));
    image.put(2, Block::full(Data::Pattern(2)));
    image
}

impl Start {
    pub fn image(self) -> Image {
        match self {
            Self::Dynamic => parent(),
            Self::Fixed => Image::fixed(4 * MIB),
            Self::Child => {
                let mut image = parent().new_child();
                image.put(0, Block::partial_runs(Data::Pattern(3), &[(8, 16)]));
                image.put(1, Block::full(Data::Pattern(4)));
                image.parent_path(".\\l0.vhdx");
                image
            }
            Self::Dirty => {
                let mut before = parent();
                for block in [0, 2] {
                    before.bat_override.insert(block, 0);
                }
                Image::dirty(&before, &parent(), LOG, 1)
            }
        }
    }
}

pub enum Change {
    /// A change of the image description.
    Image(fn(&mut Image)),
    /// A change of the bytes, after which all checksums are corrected.
    Bytes(fn(&mut Vec<u8>, &Layout)),
}
use Change::{Bytes, Image as Of};

/// Writes the image and its parent, and checks it.
pub fn checked(from: Start, change: Option<&Change>) -> Report {
    let folder = tempfile::tempdir().unwrap();
    Check::new().run(write(folder.path(), from, change)).unwrap()
}

/// Writes the image, as image.vhdx, and its parent.
pub fn write(folder: &Path, from: Start, change: Option<&Change>) -> PathBuf {
    parent().write_to(folder.join("l0.vhdx"));
    let path = folder.join("image.vhdx");
    let mut image = from.image();
    if let Some(Change::Image(change)) = change {
        change(&mut image);
    }
    if let Some(Change::Bytes(change)) = change {
        let mut bytes = image.to_bytes();
        change(&mut bytes, &image.layout());
        reseal(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    } else {
        image.write_to(&path);
    }
    path
}

fn headers(image: &mut Image) -> impl Iterator<Item = &mut Header> {
    image.headers.iter_mut().flatten()
}

fn entries(image: &mut Image, guid: Uuid) -> impl Iterator<Item = &mut RegionEntry> {
    let tables = image.region_tables.iter_mut().flatten();
    tables.flat_map(|table| &mut table.entries).filter(move |entry| entry.guid == guid)
}

/// What is corrupted, in which image, how, and the codes of all resulting errors and warnings, with
/// a `~` before those of warnings.
pub type Corruption = (&'static str, Start, Change, &'static [&'static str]);

/// Returns all corruptions.
pub fn corruptions() -> Vec<Corruption> {
    use Start::{Child, Dirty, Dynamic};
    let mut all: Vec<Corruption> = vec![
        (
            "the signature of the file",
            Dynamic,
            Of(|i| i.signature[0] = b'V'),
            &["identifier.signature"],
        ),
        (
            "the sum of the header that does not count",
            Dynamic,
            Of(|i| i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong),
            &["~header.checksum"],
        ),
        (
            "the sums of both headers",
            Dynamic,
            Of(|i| headers(i).for_each(|h| h.checksum = Checksum::Wrong)),
            &["header.checksum"],
        ),
        (
            "the signatures of both headers",
            Dynamic,
            Of(|i| headers(i).for_each(|h| h.signature = *b"HEAD")),
            &["header.signature"],
        ),
        (
            "the version",
            Dynamic,
            Of(|i| i.headers[1].as_mut().unwrap().version = 2),
            &["header.version"],
        ),
        (
            "the version of the log",
            Dirty,
            Of(|i| i.headers[1].as_mut().unwrap().log_version = 1),
            &["header.log-version", "~log.not-replayed"],
        ),
        (
            "the length of the log",
            Dynamic,
            Of(|i| i.headers[1].as_mut().unwrap().log_length = Some(512 << 10)),
            &["header.log-length"],
        ),
        (
            "the place of the log",
            Dynamic,
            Of(|i| i.headers[1].as_mut().unwrap().log_offset = Some(MIB + 4096)),
            &["header.log-offset", "region.overlap"],
        ),
        (
            "a log past the end of the file",
            Dynamic,
            Of(|i| i.headers[1].as_mut().unwrap().log_offset = Some(1 << 40)),
            &["log.place"],
        ),
        (
            "two headers of one number",
            Dynamic,
            Of(|i| {
                i.headers[0].as_mut().unwrap().sequence_number = 2;
                i.headers[0].as_mut().unwrap().data_write_guid = LOG;
            }),
            &["header.same-sequence"],
        ),
        (
            "reserved bytes of a header",
            Dynamic,
            Bytes(|b, l| put_u8(b, l.get("header2").start + 4000, 1)),
            &["~header.reserved"],
        ),
        (
            "the sum of a region table",
            Dynamic,
            Of(|i| i.region_tables[0].as_mut().unwrap().checksum = Checksum::Wrong),
            &["region.checksum"],
        ),
        (
            "a region table in ruins, and the other sound",
            Dynamic,
            Of(|i| {
                let table = i.region_tables[0].as_mut().unwrap();
                table.checksum = Checksum::Wrong;
                table.entries.clear();
            }),
            &["region.checksum"],
        ),
        (
            "the signature of a region table",
            Dynamic,
            Of(|i| i.region_tables[1].as_mut().unwrap().signature = *b"REGI"),
            &["region.signature"],
        ),
        (
            "the number of regions",
            Dynamic,
            Of(|i| i.region_tables[0].as_mut().unwrap().entry_count = Some(2048)),
            &["region.count", "region.duplicate", "region.length", "region.offset"],
        ),
        (
            "two region tables that differ",
            Dynamic,
            Of(|i| i.region_tables[1].as_mut().unwrap().entries.reverse()),
            &["region.copies-differ"],
        ),
        (
            "a region twice",
            Dynamic,
            Of(|i| {
                for table in i.region_tables.iter_mut().flatten() {
                    let mut twin = RegionEntry::new(REGION_BAT);
                    twin.offset = Some(8 * MIB);
                    twin.length = Some(1 << 20);
                    table.entries.push(twin);
                }
            }),
            &["region.duplicate", "region.place"],
        ),
        (
            "the place of a region",
            Dynamic,
            Of(|i| entries(i, REGION_BAT).for_each(|e| e.offset = Some(3 * MIB + 4096))),
            &["region.offset"],
        ),
        (
            "the length of a region",
            Dynamic,
            Of(|i| entries(i, REGION_BAT).for_each(|e| e.length = Some(4096))),
            &["region.length"],
        ),
        (
            "two regions in one place",
            Dynamic,
            Of(|i| entries(i, REGION_METADATA).for_each(|e| e.offset = Some(3 * MIB))),
            &["metadata.signature", "region.overlap"],
        ),
        (
            "a region past the end of the file",
            Dynamic,
            Of(|i| entries(i, REGION_METADATA).for_each(|e| e.offset = Some(1 << 40))),
            &["region.place"],
        ),
        (
            "an unknown region that is required",
            Dynamic,
            Of(|i| {
                i.add_region(LOG, true, vec![1]);
            }),
            &["region.unknown-required"],
        ),
        (
            "no metadata region",
            Dynamic,
            Of(|i| {
                for table in i.region_tables.iter_mut().flatten() {
                    table.entries.retain(|e| e.guid != REGION_METADATA);
                }
            }),
            &["region.missing"],
        ),
        (
            "a known region that is not required",
            Dynamic,
            Of(|i| entries(i, REGION_BAT).for_each(|e| e.required = 0)),
            &["~region.flags"],
        ),
        (
            "reserved flags of a region",
            Dynamic,
            Of(|i| entries(i, REGION_BAT).for_each(|e| e.required = 3)),
            &["~region.reserved"],
        ),
        (
            "the signature of the metadata",
            Dynamic,
            Of(|i| i.metadata.signature = *b"METADATA"),
            &["metadata.signature"],
        ),
        (
            "the number of metadata items",
            Dynamic,
            Of(|i| i.metadata.entry_count = Some(2048)),
            &["metadata.count", "metadata.duplicate"],
        ),
        (
            "the flags of a metadata item",
            Dynamic,
            Of(|i| i.item("disk_size").flags = IS_REQUIRED),
            &["metadata.flags"],
        ),
        (
            "reserved flags of a metadata item",
            Dynamic,
            Of(|i| i.item("disk_size").flags |= 8),
            &["~metadata.reserved"],
        ),
        (
            "reserved bytes of the metadata table",
            Dynamic,
            Bytes(|b, l| put_u8(b, l.get("metadata_table").start + 20, 1)),
            &["~metadata.reserved"],
        ),
        (
            "reserved flags of the file parameters",
            Dynamic,
            Bytes(|b, l| put_u8(b, l.get("metadata_item:file_parameters").start + 5, 1)),
            &["~metadata.reserved"],
        ),
        (
            "a metadata item twice",
            Dynamic,
            Of(|i| {
                let twin = i.item("disk_id").clone();
                i.metadata.items.push(twin);
            }),
            &["metadata.duplicate"],
        ),
        (
            "two metadata items in one place",
            Dynamic,
            Of(|i| i.item("physical_sector").offset = Some((64 << 10) + 20)),
            &["metadata.overlap"],
        ),
        (
            "the place of a metadata item",
            Dynamic,
            Bytes(|b, l| put_u32(b, l.get("metadata_entry:disk_id").start + 16, 1 << 20)),
            &["metadata.offset"],
        ),
        (
            "the length of a metadata item, beyond all bounds",
            Dynamic,
            Of(|i| i.item("disk_id").length = Some((1 << 20) + 1)),
            &["metadata.length"],
        ),
        (
            "the length of a metadata item",
            Dynamic,
            Of(|i| i.item("disk_id").length = Some(15)),
            &["metadata.item-length"],
        ),
        (
            "a place for an empty item",
            Dynamic,
            Of(|i| {
                let mut item = Item::new("mine", LOG, 0, Contents::Bytes(Vec::new()));
                item.offset = Some(70_000);
                i.metadata.items.push(item);
            }),
            &["~metadata.empty-item"],
        ),
        (
            "no virtual disk ID",
            Dynamic,
            Of(|i| i.metadata.items.retain(|item| item.name != "disk_id")),
            &["metadata.missing"],
        ),
        (
            "an unknown item that is required",
            Dynamic,
            Of(|i| {
                let item = Item::new("mine", LOG, IS_REQUIRED, Contents::Bytes(vec![1]));
                i.metadata.items.push(item);
            }),
            &["metadata.unknown-required"],
        ),
        (
            "the block size",
            Dynamic,
            Bytes(|b, l| put_u32(b, l.get("metadata_item:file_parameters").start, 3 << 20)),
            &["~bat.not-checked", "metadata.block-size"],
        ),
        (
            "the logical sector size",
            Dynamic,
            Bytes(|b, l| put_u32(b, l.get("metadata_item:logical_sector").start, 1024)),
            &["~bat.not-checked", "metadata.sector-size"],
        ),
        (
            "the physical sector size",
            Dynamic,
            Bytes(|b, l| put_u32(b, l.get("metadata_item:physical_sector").start, 0)),
            &["metadata.sector-size"],
        ),
        (
            "the size of the disk",
            Dynamic,
            Of(|i| i.size += 1),
            &["~bat.not-checked", "metadata.disk-size"],
        ),
        ("a parent without a locator", Dynamic, Of(|i| i.has_parent = true), &["metadata.missing"]),
        (
            "a locator without a parent",
            Child,
            Of(|i| i.has_parent = false),
            &["~bat.bitmap-unexpected", "bat.state", "metadata.locator"],
        ),
    ];
    all.extend(locator_and_chain());
    all.extend(blocks());
    all.extend(logs());
    all
}

fn locator_and_chain() -> Vec<Corruption> {
    use Start::Child;
    vec![
        ("the type of the locator", Child, Of(|i| i.locator.kind = LOG), &["locator.type"]),
        (
            "reserved bytes of the locator",
            Child,
            Of(|i| i.locator.reserved = 1),
            &["~locator.reserved"],
        ),
        (
            "the number of locator entries",
            Child,
            Of(|i| i.locator.count = Some(9000)),
            &["locator.count", "locator.string-place"],
        ),
        (
            "a key twice",
            Child,
            Of(|i| i.locator.pairs.push(("relative_path".into(), ".\\l0.vhdx".into()))),
            &["locator.duplicate"],
        ),
        (
            "no linkage",
            Child,
            Of(|i| {
                i.locator.remove("parent_linkage");
            }),
            &["locator.linkage-missing"],
        ),
        (
            "a linkage that is no GUID",
            Child,
            Of(|i| {
                i.locator.set("parent_linkage", "{}");
            }),
            &["locator.linkage"],
        ),
        (
            "no path",
            Child,
            Of(|i| {
                i.locator.remove("relative_path");
            }),
            &["locator.no-path", "parent.missing"],
        ),
        (
            "a path that is not a Windows one",
            Child,
            Of(|i| {
                i.locator.set("relative_path", "./l0.vhdx");
            }),
            &["~locator.posix-path"],
        ),
        (
            "an absolute path without its prefix",
            Child,
            Of(|i| {
                i.locator.set("absolute_win32_path", "C:\\l0.vhdx");
            }),
            &["~locator.path-form"],
        ),
        (
            "a NUL in a path",
            Child,
            Of(|i| {
                i.locator.set("volume_path", "\\\\?\\Volume{1}\\a\0b");
            }),
            &["locator.string"],
        ),
        (
            "the place of a string",
            Child,
            Bytes(|b, l| put_u32(b, l.get("locator").start + 20 + 12, 1 << 24)),
            &["locator.no-path", "locator.string-place", "parent.missing"],
        ),
        (
            "the length of a string",
            Child,
            Bytes(|b, l| put_u16(b, l.get("locator").start + 20 + 12 + 10, 17)),
            &["locator.no-path", "locator.string-length", "parent.missing"],
        ),
        (
            "the identity of the parent",
            Child,
            Of(|i| {
                i.locator.set("parent_linkage", format!("{{{LOG}}}"));
            }),
            &["parent.mismatch"],
        ),
        (
            "the path of the parent",
            Child,
            Of(|i| {
                i.parent_path(".\\l9.vhdx");
            }),
            &["parent.missing"],
        ),
        (
            "another sector size than the parent's",
            Child,
            Of(|i| i.logical_sector = 4096),
            &["chain.sector-size"],
        ),
        ("another disk ID than the parent's", Child, Of(|i| i.disk_id = LOG), &["~chain.disk-id"]),
        ("a smaller disk than the parent's", Child, Of(|i| i.size -= MIB), &["~chain.size"]),
        (
            "an image that is its own parent",
            Child,
            Of(|i| {
                let guid = i.data_write_guid();
                i.locator.set("parent_linkage", format!("{{{guid}}}"));
                i.parent_path(".\\image.vhdx");
            }),
            &["chain.loop"],
        ),
    ]
}

fn blocks() -> Vec<Corruption> {
    use Start::{Child, Dynamic, Fixed};
    vec![
        (
            "state 4",
            Dynamic,
            Of(|i| {
                i.put(1, Block::bare(4));
            }),
            &["bat.state"],
        ),
        (
            "state 5",
            Dynamic,
            Of(|i| {
                i.put(1, Block::bare(5));
            }),
            &["bat.state"],
        ),
        (
            "reserved bits of an entry",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(3, 1 << 3);
            }),
            &["bat.reserved-bits"],
        ),
        (
            "a block past the end of the file",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(1, 1 << 40 | 6);
            }),
            &["bat.payload-place"],
        ),
        (
            "a block at 0",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(1, 6);
            }),
            &["bat.payload-place"],
        ),
        (
            "two blocks in one place",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(1, i.layout().payload[&0] | 6);
            }),
            &["bat.duplicate"],
        ),
        (
            "a block that reaches into another",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(1, (i.layout().payload[&0] + MIB) | 6);
            }),
            &["bat.overlap"],
        ),
        (
            "a block over the log",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(1, MIB | 6);
            }),
            &["bat.overlap"],
        ),
        (
            "an unmapped block over the table",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(1, (3 * MIB) | 3);
            }),
            &["bat.overlap"],
        ),
        (
            "a sector bitmap over a block",
            Child,
            Of(|i| {
                i.bat_override.insert(i.bitmap_index(0), i.layout().payload[&1] | 6);
            }),
            &["bat.duplicate"],
        ),
        (
            "a sector bitmap past the end of the file",
            Child,
            Of(|i| {
                i.bat_override.insert(i.bitmap_index(0), 1 << 40 | 6);
            }),
            &["bat.bitmap-place"],
        ),
        (
            "a zero block that keeps a place",
            Dynamic,
            Of(|i| {
                i.put(1, Block::full(Data::Zeros).with_state(state::ZERO));
            }),
            &["~bat.idle-place"],
        ),
        (
            "a partially present block without a parent",
            Dynamic,
            Of(|i| {
                i.bat_override.insert(0, i.layout().payload[&0] | 7);
            }),
            &["bat.state"],
        ),
        (
            "a partially present block without a bitmap",
            Child,
            Of(|i| {
                i.bat_override.insert(i.bitmap_index(0), 0);
            }),
            &["bat.bitmap-missing"],
        ),
        (
            "a sector bitmap without a parent",
            Dynamic,
            Of(|i| {
                i.bitmap_chunks.insert(0);
            }),
            &["~bat.bitmap-unexpected"],
        ),
        (
            "the state of a sector bitmap",
            Child,
            Of(|i| {
                i.put(0, Block::full(Data::Pattern(3)));
                i.bat_override.insert(i.bitmap_index(0), 2);
            }),
            &["bat.bitmap-state"],
        ),
        (
            "a fixed disk with a block that is not there",
            Fixed,
            Of(|i| {
                i.put(1, Block::bare(state::NOT_PRESENT));
            }),
            &["~bat.fixed"],
        ),
        (
            "a table without room for the disk",
            Dynamic,
            Of(|i| {
                i.bat_length = Some(1 << 20);
                i.size = 512 << 30;
            }),
            &["bat.length"],
        ),
        (
            "the end of the file cut off",
            Dynamic,
            Of(|i| i.file_length = Some(i.layout().needed_length - MIB)),
            &["bat.truncated"],
        ),
        (
            "the end of the file cut off, behind the end of the disk",
            Dynamic,
            Of(|i| {
                i.size = 5 * MIB;
                i.file_length = Some(i.layout().needed_length - MIB);
            }),
            &["~bat.truncated"],
        ),
        (
            "a length of the file that is misaligned",
            Dynamic,
            Of(|i| i.file_length = Some(i.layout().needed_length + 512)),
            &["~file.length"],
        ),
    ]
}

fn logs() -> Vec<Corruption> {
    use Start::{Dirty, Dynamic};
    vec![
        (
            "a log GUID without entries",
            Dynamic,
            Of(|i| {
                i.set_log_guid(LOG);
            }),
            &["log.no-entries", "~log.not-replayed"],
        ),
        (
            "a tail that is no entry",
            Dirty,
            Of(|i| i.log.iter_mut().for_each(|e| e.tail = Tail::At(512 << 10))),
            &["log.no-active-sequence", "~log.not-replayed"],
        ),
        (
            "a file shorter than the log knows it",
            Dirty,
            Of(|i| i.log.iter_mut().for_each(|e| e.flushed_file_offset = Some(1 << 40))),
            &["~log.not-replayed", "log.truncated-file"],
        ),
        (
            "a log entry over a header",
            Dirty,
            Of(|i| i.log[0].descriptors.push(Descriptor::data(64 << 10, vec![0; SECTOR]))),
            &["~log.not-replayed", "log.target"],
        ),
        (
            "a log entry over the log",
            Dirty,
            Of(|i| i.log[0].descriptors.push(Descriptor::zero(MIB, 4096))),
            &["~log.not-replayed", "log.target"],
        ),
        (
            "a log entry at a misaligned place",
            Dirty,
            Of(|i| i.log[0].descriptors.push(Descriptor::zero(3 * MIB + 512, 4096))),
            &["~log.not-replayed", "log.target"],
        ),
        (
            "a misaligned length in a log entry",
            Dirty,
            Of(|i| i.log[0].descriptors.push(Descriptor::zero(3 * MIB, 512))),
            &["~log.not-replayed", "log.zero-length"],
        ),
        (
            "a damaged log entry before an intact one",
            Dirty,
            Of(|i| {
                let number = i.log[0].sequence_number;
                i.log.push(LogEntry::new(number + 1, vec![Descriptor::zero(3 * MIB, 4096)]));
                i.log[1].checksum = Checksum::Wrong;
                i.log.push(LogEntry::new(number + 2, vec![]));
            }),
            &["~log.gap"],
        ),
        (
            "a misaligned length of the file in a log entry",
            Dirty,
            Of(|i| i.log[0].flushed_file_offset = Some(MIB + 512)),
            &["~log.file-offset"],
        ),
    ]
}
