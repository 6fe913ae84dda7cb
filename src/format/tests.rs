//! Structures compared with literal bytes and with the bytes of an independent builder, and serialized and
//! parsed again.

use avhdx_testkit::build;
use proptest::prelude::*;
use uuid::{Uuid, uuid};

use super::bat::{BatEntry, BlockLayout, PayloadState};
use super::header::{Header, Headers};
use super::identifier::FileIdentifier;
use super::locator::{ParentLocator, VHDX_TYPE};
use super::log_entry::{
    Change, DESCRIPTOR_LEN, Descriptor, EntryHeader, HEADER_LEN, NewEntry, SECTOR, is_data_sector,
};
use super::metadata::{
    self, FileFlags, FileParameters, ItemFlags, MetadataEntry, MetadataTable, disk_id_to_bytes,
    parse_disk_id, parse_sector_size, parse_virtual_size, sector_size_to_bytes,
    virtual_size_to_bytes,
};
use super::region::{self, RegionEntry, RegionFlags, RegionTable};
use super::strict;
use crate::error::{Error, ErrorKind};
use crate::types::{BlockIndex, ChunkIndex, DiskOffset, FileOffset, MIB};

const A: Uuid = uuid!("00112233-4455-6677-8899-aabbccddeeff");
const B: Uuid = uuid!("f0e1d2c3-b4a5-9687-7869-5a4b3c2d1e0f");
const LOG: Uuid = uuid!("0badcafe-1234-5678-9abc-def012345678");

/// Bytes in hexadecimal, padded with zeros to `len`.
fn bytes(hex: &str, len: usize) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| Some(c.to_digit(16)? as u8)).collect();
    let mut bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    assert!(bytes.len() <= len);
    bytes.resize(len, 0);
    bytes
}

/// The bytes of a structure in the builder's image.
fn of_kit(image: &build::Image, name: &str) -> Vec<u8> {
    let range = image.layout().get(name);
    image.to_bytes()[range.start as usize..range.end as usize].to_vec()
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
    result.expect_err("a refusal").code()
}

// Literal bytes, written from the tables of the specification.

#[test]
fn literal_identifier() {
    let literal = bytes(
        "76 68 64 78 66 69 6c 65   4d 00 53 00 20 00 e4 00 3d d8 be dc   00 00 58 00",
        FileIdentifier::LEN,
    );
    let parsed = FileIdentifier::parse(&literal).unwrap();
    assert_eq!(parsed.creator, "MS ä\u{1F4BE}", "up to the first NUL");
    assert_eq!(parsed.to_bytes()[..18], literal[..18]);
    let mut wrong = literal.clone();
    wrong[7] = b'E';
    let error = FileIdentifier::parse(&wrong).unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::NotVhdx, Some(0)));
    assert_eq!((error.found(), error.expected()), (Some("\"vhdxfilE\""), Some("\"vhdxfile\"")));
    // A creator may fill its field, and need not be well-formed.
    let full = [&b"vhdxfile"[..], &[0x00, 0xD8].repeat(256)].concat();
    assert_eq!(FileIdentifier::parse(&full).unwrap().creator, "\u{FFFD}".repeat(256));
}

#[test]
fn literal_header() {
    let literal = bytes(
        "68 65 61 64  4d 1e 23 42
         08 07 06 05 04 03 02 01
         33 22 11 00 55 44 77 66 88 99 aa bb cc dd ee ff
         c3 d2 e1 f0 a5 b4 87 96 78 69 5a 4b 3c 2d 1e 0f
         fe ca ad 0b 34 12 78 56 9a bc de f0 12 34 56 78
         00 00  01 00  00 00 10 00  00 00 10 00 00 00 00 00",
        4096,
    );
    let header = Header {
        sequence_number: 0x0102_0304_0506_0708,
        file_write_guid: A,
        data_write_guid: B,
        log_guid: LOG,
        log_version: 0,
        version: 1,
        log_length: 0x10_0000,
        log_offset: 0x10_0000,
    };
    assert_eq!(Header::parse(&literal, 0x1_0000).unwrap(), header);
    assert_eq!(header.to_bytes(), literal);
    // The checksum covers all 4 KiB, including unused bytes.
    for at in [4, 5, 8, 79, 80, 4095] {
        let mut wrong = literal.clone();
        wrong[at] ^= 1;
        let error = Header::parse(&wrong, 0x1_0000).unwrap_err();
        assert_eq!((error.code(), error.offset()), ("header.checksum", Some(0x1_0004)));
    }
    let mut wrong = literal.clone();
    wrong[0] = b'H';
    assert_eq!(code(Header::parse(&wrong, 0)), "header.signature");
    let headers = Headers::parse([&wrong, &literal]).unwrap();
    assert_eq!((headers.current, headers.current()), (1, &header));
}

#[test]
fn literal_region_table() {
    let literal = bytes(
        "72 65 67 69  ae 8c 6b c6  02 00 00 00  00 00 00 00
         66 77 c2 2d 23 f6 00 42 9d 64 11 5e 9b fd 4a 08
         00 00 30 00 00 00 00 00  00 00 10 00  01 00 00 00
         06 a2 7c 8b 90 47 9a 4b b8 fe 57 5f 05 0f 88 6e
         00 00 20 00 00 00 00 00  00 00 10 00  01 00 00 00",
        0x1_0000,
    );
    let entry = |guid, offset| RegionEntry {
        guid,
        offset: FileOffset::new(offset),
        length: 1 << 20,
        flags: RegionFlags::REQUIRED,
    };
    let table = RegionTable {
        entries: vec![entry(region::BAT, 3 << 20), entry(region::METADATA, 2 << 20)],
    };
    assert_eq!(RegionTable::parse(&literal, 0x3_0000).unwrap(), table);
    assert_eq!(table.to_bytes(), literal);
    for at in [8, 16, 79, 0xFFFF] {
        let mut wrong = literal.clone();
        wrong[at] ^= 1;
        let error = RegionTable::parse(&wrong, 0x3_0000).unwrap_err();
        assert_eq!((error.code(), error.offset()), ("region.checksum", Some(0x3_0004)));
    }
}

#[test]
fn literal_log_entry() {
    let mut literal = bytes(
        "6c 6f 67 65  95 22 53 cd  00 20 00 00  00 30 00 00
         88 77 66 55 44 33 22 11   02 00 00 00  00 00 00 00
         fe ca ad 0b 34 12 78 56 9a bc de f0 12 34 56 78
         00 00 50 00 00 00 00 00   00 00 60 00 00 00 00 00
         7a 65 72 6f  00 00 00 00  00 20 00 00 00 00 00 00
         00 40 30 00 00 00 00 00   88 77 66 55 44 33 22 11
         64 65 73 63  f1 f2 f3 f4  01 02 03 04 05 06 07 08
         00 00 30 00 00 00 00 00   88 77 66 55 44 33 22 11",
        4096,
    );
    let mut data = bytes("64 61 74 61  44 33 22 11", 4096);
    data[8..4092].fill(0xCD);
    data[4092..].copy_from_slice(&[0x88, 0x77, 0x66, 0x55]);
    literal.extend(&data);

    let number = 0x1122_3344_5566_7788;
    let header = EntryHeader::parse(&literal).unwrap();
    assert_eq!(
        header,
        EntryHeader {
            checksum: 0xCD53_2295,
            entry_length: 8192,
            tail: 0x3000,
            sequence_number: number,
            descriptor_count: 2,
            log_guid: LOG,
            flushed_file_offset: 0x50_0000,
            last_file_offset: 0x60_0000,
        }
    );
    assert_eq!((header.descriptor_sectors(), header.sectors()), (1, 2));
    let zero = Descriptor::Zero { at: FileOffset::new(0x30_4000), length: 0x2000 };
    let desc = Descriptor::Data {
        at: FileOffset::new(0x30_0000),
        leading: [1, 2, 3, 4, 5, 6, 7, 8],
        trailing: [0xF1, 0xF2, 0xF3, 0xF4],
    };
    assert_eq!(Descriptor::parse(&literal[64..96], number), Some(zero));
    assert_eq!(Descriptor::parse(&literal[96..128], number), Some(desc));
    assert_eq!(Descriptor::parse(&literal[96..128], number + 1), None);
    assert!(is_data_sector(&literal[4096..], number));
    assert!(!is_data_sector(&literal[4096..], number - 1));
    assert!(!is_data_sector(&literal[4096..], number ^ 1 << 32));
    assert!(!is_data_sector(&literal[..4096], number));

    let mut sector = Box::new([0xCD; SECTOR as usize]);
    sector[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    sector[4092..].copy_from_slice(&[0xF1, 0xF2, 0xF3, 0xF4]);
    let entry = NewEntry {
        tail: 0x3000,
        sequence_number: number,
        log_guid: LOG,
        flushed_file_offset: 0x50_0000,
        last_file_offset: 0x60_0000,
        changes: vec![
            Change::Zero { at: FileOffset::new(0x30_4000), length: 0x2000 },
            Change::Sector { at: FileOffset::new(0x30_0000), bytes: sector },
        ],
    };
    assert_eq!(entry.to_bytes(), literal);
}

#[test]
fn literal_metadata() {
    let literal = bytes(
        "6d 65 74 61 64 61 74 61  00 00  02 00  00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         37 67 a1 ca 36 fa 43 4d b3 b6 33 f0 aa 44 e7 6b
         00 00 01 00  08 00 00 00  04 00 00 00  00 00 00 00
         ff ee dd cc bb aa 99 88 77 66 55 44 33 22 11 00
         00 00 00 00  00 00 00 00  03 00 00 00  00 00 00 00",
        0x1_0000,
    );
    let table = MetadataTable {
        entries: vec![
            MetadataEntry {
                item: uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b"),
                offset: 0x1_0000,
                length: 8,
                flags: ItemFlags::REQUIRED,
            },
            MetadataEntry {
                item: uuid!("ccddeeff-aabb-8899-7766-554433221100"),
                offset: 0,
                length: 0,
                flags: ItemFlags::USER | ItemFlags::VIRTUAL_DISK,
            },
        ],
    };
    assert_eq!(
        strict(|on| MetadataTable::inspect(&literal, 0x20_0000, 1 << 20, on)).unwrap(),
        table
    );
    assert_eq!(table.to_bytes(), literal);
    let (entry, at) = table.system(metadata::FILE_PARAMETERS, 0x20_0000).unwrap();
    assert_eq!((entry, at), (&table.entries[0], 0x20_0020));

    let item = bytes("00 00 00 02  03 00 00 00", 8);
    let file = FileParameters {
        block_size: 32 << 20,
        flags: FileFlags::LEAVE_BLOCKS_ALLOCATED | FileFlags::HAS_PARENT,
    };
    assert_eq!(FileParameters::parse(&item, 0).unwrap(), file);
    assert_eq!(file.to_bytes()[..], item);
    let item = bytes("00 00 00 80 02 00 00 00", 8);
    assert_eq!(parse_virtual_size(&item, 0, 512).unwrap(), 10 << 30);
    assert_eq!(virtual_size_to_bytes(10 << 30)[..], item);
    assert_eq!(parse_sector_size(&[0, 2, 0, 0], 0, "2.6.2.4").unwrap(), 512);
    assert_eq!(parse_sector_size(&[0, 16, 0, 0], 0, "2.6.2.5").unwrap(), 4096);
    assert_eq!(
        (sector_size_to_bytes(512), sector_size_to_bytes(4096)),
        ([0, 2, 0, 0], [0, 16, 0, 0])
    );
    let item = bytes("33 22 11 00 55 44 77 66 88 99 aa bb cc dd ee ff", 16);
    assert_eq!(parse_disk_id(&item), A);
    assert_eq!(disk_id_to_bytes(A)[..], item);
}

#[test]
fn literal_locator() {
    let literal = bytes(
        "b7 ef 4a b0 9e d1 81 4a b7 89 25 b8 e9 44 59 13   00 00  02 00
         2c 00 00 00  2e 00 00 00  02 00  04 00
         32 00 00 00  36 00 00 00  04 00  02 00
         6b 00   61 00 e4 00   6b 00 32 00   5c 00",
        56,
    );
    let locator = ParentLocator {
        locator_type: VHDX_TYPE,
        entries: vec![("k".into(), "aä".into()), ("k2".into(), r"\".into())],
    };
    assert_eq!(strict(|on| ParentLocator::inspect(&literal, 0, on)).unwrap(), locator);
    assert_eq!(locator.to_bytes().unwrap(), literal);
    assert_eq!((locator.value("k2"), locator.value("K2")), (Some(r"\"), None));
    // Strings may lie anywhere in the item, in any order, and overlap.
    let mut shared = literal.clone();
    shared[36..40].copy_from_slice(&0x2E_u32.to_le_bytes());
    shared[42..44].copy_from_slice(&4_u16.to_le_bytes());
    assert_eq!(
        strict(|on| ParentLocator::inspect(&shared, 0, on)).unwrap().value("k2"),
        Some("aä")
    );
}

#[test]
fn literal_block_entries() {
    for (raw, state, offset) in [
        (0x0000_0000_0000_0000, PayloadState::NotPresent, 0),
        (0x0000_0000_0030_0001, PayloadState::Undefined, 0x30_0000),
        (0x0000_0000_0000_0002, PayloadState::Zero, 0),
        (0x0000_0000_0050_0003, PayloadState::Unmapped, 0x50_0000),
        (0x0000_0000_0050_0004, PayloadState::Reserved, 0x50_0000),
        (0x0000_0000_0050_0005, PayloadState::DraftUnmapped, 0x50_0000),
        (0x0000_0000_0070_0006, PayloadState::FullyPresent, 0x70_0000),
        (0xFFFF_FFFF_FFF0_0007, PayloadState::PartiallyPresent, 0xFFFF_FFFF_FFF0_0000),
        // The reserved bits in between are ignored.
        (0x0000_0001_0078_FFFE, PayloadState::FullyPresent, 0x1_0070_0000),
    ] {
        let entry = BatEntry(raw);
        assert_eq!((entry.payload_state(), entry.offset().get()), (state, offset), "{raw:#x}");
        assert_eq!(u64::from(entry.state_bits()), raw & 7);
    }
    let entry = BatEntry::new(6, FileOffset::new(0x1_0070_0000));
    assert_eq!(entry.to_bytes(), [6, 0, 0x70, 0, 1, 0, 0, 0]);
}

// The bytes of the testkit's builder.

#[test]
fn the_builders_structures() {
    let base = build::Image::dynamic(9 << 30);
    let mut image = build::Image::child(9 << 30, base.data_write_guid());
    image.locator.set("absolute_win32_path", r"\\?\D:\Wurzel ä\日本.vhdx");
    image.add_region(A, false, Vec::new());
    image.set_log_guid(LOG);
    let contents = build::Contents::Bytes(vec![9; 77]);
    image.metadata.items.push(build::Item::new("user", B, build::IS_USER, contents));

    let identifier = FileIdentifier::parse(&of_kit(&image, "file_type")).unwrap();
    assert_eq!(identifier.creator, "avhdx testkit");
    assert_eq!(identifier.to_bytes()[..], of_kit(&image, "file_type")[..FileIdentifier::LEN]);
    for (i, name) in ["header1", "header2"].into_iter().enumerate() {
        let literal = of_kit(&image, name);
        let header = Header::parse(&literal, Header::OFFSETS[i]).unwrap();
        let described = image.headers[i].as_ref().unwrap();
        assert_eq!(header.sequence_number, described.sequence_number);
        assert_eq!(header.file_write_guid, described.file_write_guid);
        assert_eq!(header.data_write_guid, described.data_write_guid);
        assert_eq!(header.log_guid, LOG);
        assert_eq!((header.log_offset, header.log_length), (image.log_offset, image.log_length));
        assert_eq!(header.to_bytes(), literal, "{name}");
        assert_eq!(image.layout().get(name).start, Header::OFFSETS[i]);
    }
    for (i, name) in ["region_table1", "region_table2"].into_iter().enumerate() {
        let literal = of_kit(&image, name);
        let table = RegionTable::parse(&literal, RegionTable::OFFSETS[i]).unwrap();
        let guids: Vec<Uuid> = table.entries.iter().map(|entry| entry.guid).collect();
        assert_eq!(guids, [build::REGION_BAT, build::REGION_METADATA, A]);
        assert_eq!(table.entries[0].offset.get(), image.bat_offset);
        assert_eq!(table.entries[2].flags, RegionFlags::empty());
        assert_eq!(table.to_bytes(), literal, "{name}");
        assert_eq!(image.layout().get(name).start, RegionTable::OFFSETS[i]);
    }
    let literal = of_kit(&image, "metadata_table");
    let at = image.metadata_offset;
    let table =
        strict(|on| MetadataTable::inspect(&literal, at, image.metadata_length, on)).unwrap();
    assert_eq!(table.to_bytes(), literal);
    assert_eq!(table.entries.len(), 7);
    let items = [
        ("file_parameters", "File Parameters"),
        ("disk_size", "Virtual Disk Size"),
        ("disk_id", "Virtual Disk ID"),
        ("logical_sector", "Logical Sector Size"),
        ("physical_sector", "Physical Sector Size"),
        ("locator", "Parent Locator"),
    ];
    for (i, (short, name)) in items.into_iter().enumerate() {
        let entry = &table.entries[i];
        assert_eq!(metadata::name(entry), Some(name));
        assert_eq!(table.system(entry.item, at).unwrap().0, entry);
        let place = image.layout().get(&format!("metadata_item:{short}"));
        assert_eq!(at + u64::from(entry.offset), place.start);
        assert_eq!(u64::from(entry.length), place.end - place.start);
        assert_eq!(
            at + MetadataTable::entry_place(i),
            image.layout().get(&format!("metadata_entry:{short}")).start
        );
    }
    assert_eq!(metadata::name(&table.entries[6]), None);
    assert!(table.system(B, at).is_none(), "a user's item is no system item");

    let literal = of_kit(&image, "metadata_item:file_parameters");
    let file = FileParameters::parse(&literal, 0).unwrap();
    assert_eq!((file.block_size, file.flags), (1 << 20, FileFlags::HAS_PARENT));
    assert_eq!(file.to_bytes()[..], literal);
    let literal = of_kit(&image, "metadata_item:disk_size");
    assert_eq!(parse_virtual_size(&literal, 0, 512).unwrap(), 9 << 30);
    assert_eq!(virtual_size_to_bytes(9 << 30)[..], literal);
    let literal = of_kit(&image, "metadata_item:disk_id");
    assert_eq!(parse_disk_id(&literal), image.disk_id);
    assert_eq!(disk_id_to_bytes(image.disk_id)[..], literal);
    let literal = of_kit(&image, "metadata_item:physical_sector");
    assert_eq!(parse_sector_size(&literal, 0, "2.6.2.5").unwrap(), 4096);
    assert_eq!(sector_size_to_bytes(4096)[..], literal);
    let literal = of_kit(&image, "locator");
    let locator = strict(|on| ParentLocator::inspect(&literal, 0, on)).unwrap();
    assert_eq!(locator.entries, image.locator.pairs);
    assert_eq!(locator.linkage(0).unwrap(), base.data_write_guid());
    assert_eq!(locator.linkage2(0).unwrap(), None);
    assert_eq!(locator.to_bytes().unwrap(), literal);
}

#[test]
fn the_builders_log_entries() {
    let number = 0x89AB_CDEF_0123_4567;
    let sector: Vec<u8> = (0..SECTOR).map(|i| (i * 7 % 251) as u8).collect();
    // One sector of descriptors, two, and none.
    for count in [0, 1, 126, 127, 300] {
        let described = (0..count).map(|i| match i % 3 {
            0 => build::Descriptor::data(0x30_0000 + i * SECTOR, &*sector),
            _ => build::Descriptor::zero(0x30_0000 + i * SECTOR, SECTOR * i),
        });
        let mut image = build::Image::dynamic(MIB);
        image.set_log_guid(LOG);
        image.log_length = 2 << 20;
        (image.metadata_offset, image.bat_offset) = (3 << 20, 4 << 20);
        let mut entry = build::LogEntry::new(number, described.collect()).at(8192);
        entry.flushed_file_offset = Some(0x50_0000);
        entry.last_file_offset = Some(0x60_0000);
        image.log.push(entry);
        let literal = of_kit(&image, "log_entry:0");
        let changes = (0..count).map(|i| {
            let at = FileOffset::new(0x30_0000 + i * SECTOR);
            match i % 3 {
                0 => Change::Sector { at, bytes: Box::new(sector[..].try_into().unwrap()) },
                _ => Change::Zero { at, length: SECTOR * i },
            }
        });
        let entry = NewEntry {
            tail: 8192,
            sequence_number: number,
            log_guid: LOG,
            flushed_file_offset: 0x50_0000,
            last_file_offset: 0x60_0000,
            changes: changes.collect(),
        };
        assert!(entry.to_bytes() == literal, "{count} descriptors");
    }
}

/// Index arithmetic compared with counting entries one by one.
#[test]
fn the_place_of_each_entry_is_that_of_a_walk() {
    for (block_size, sector) in [
        (1 << 20, 512),
        (2 << 20, 512),
        (32 << 20, 512),
        (256 << 20, 512),
        (8 << 20, 4096),
        (256 << 20, 4096),
    ] {
        let chunk = u64::from(sector) * 8 * 1024 * 1024;
        let block = u64::from(block_size);
        for size in [
            0,
            u64::from(sector),
            block - 512,
            block,
            chunk - 512,
            chunk,
            chunk + 512,
            3 * chunk + block,
        ] {
            let layout = BlockLayout::new(block_size, sector, size);
            assert_eq!(layout.chunk_size(), chunk);
            let (mut index, mut at, mut last) = (0, 0, 0);
            let (mut blocks, mut chunks) = (0, 0);
            while at < size {
                // One chunk: its payload entries, then its bitmap entry.
                for _ in 0..chunk / block {
                    if at < size {
                        assert_eq!(layout.payload_index(BlockIndex(blocks)).0, index);
                        assert_eq!(layout.block_of(DiskOffset(at)), BlockIndex(blocks));
                        assert_eq!(layout.block_of(DiskOffset(at + block - 1)), BlockIndex(blocks));
                        assert_eq!(layout.within_block(DiskOffset(at)), 0);
                        assert_eq!(layout.within_block(DiskOffset(at + 513)), 513);
                        assert_eq!(layout.chunk_of(BlockIndex(blocks)), ChunkIndex(chunks));
                        let bit = (at - chunks * chunk) / u64::from(sector);
                        assert_eq!(layout.bit_of(DiskOffset(at)), bit);
                        assert_eq!(layout.bit_of(DiskOffset(at + u64::from(sector))), bit + 1);
                        blocks += 1;
                        last = index + 1;
                    }
                    index += 1;
                    at += block;
                }
                assert_eq!(layout.bitmap_index(ChunkIndex(chunks)).0, index);
                index += 1;
                chunks += 1;
            }
            assert_eq!((layout.blocks(), layout.chunks()), (blocks, chunks), "{size}");
            assert_eq!((layout.entries_needed(), layout.entries_reserved()), (last, index));
        }
    }
}

// Serialized and parsed again.

fn any_guid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn any_header() -> impl Strategy<Value = Header> {
    let guids = (any_guid(), any_guid(), any_guid());
    let numbers = (any::<u64>(), any::<u16>(), any::<u16>(), any::<u32>(), any::<u64>());
    (guids, numbers).prop_map(|((file, data, log), numbers)| {
        let (sequence_number, log_version, version, log_length, log_offset) = numbers;
        Header {
            sequence_number,
            file_write_guid: file,
            data_write_guid: data,
            log_guid: log,
            log_version,
            version,
            log_length,
            log_offset,
        }
    })
}

fn any_regions() -> impl Strategy<Value = RegionTable> {
    let entry = (any_guid(), 1..1_u64 << 44, 1..1_u32 << 12, any::<u32>());
    let entry = entry.prop_map(|(guid, at, length, flags)| RegionEntry {
        guid,
        offset: FileOffset::new(at << 20),
        length: length << 20,
        flags: RegionFlags::from_bits_retain(flags),
    });
    let guids = |entries: &Vec<RegionEntry>| {
        let guids: std::collections::HashSet<_> = entries.iter().map(|entry| entry.guid).collect();
        guids.len() == entries.len()
    };
    proptest::collection::vec(entry, 0..40)
        .prop_filter("GUIDs are unique", guids)
        .prop_map(|entries| RegionTable { entries })
}

fn any_items() -> impl Strategy<Value = MetadataTable> {
    let entry = (any_guid(), 0..5000_u32, 0..100_u32, any::<u32>());
    proptest::collection::vec(entry, 0..60).prop_map(|entries| {
        let mut next = 0x1_0000;
        let mut place = |(item, length, gap, flags): (Uuid, u32, u32, u32)| {
            let offset = if length == 0 { 0 } else { next + gap };
            next = next.max(offset + length);
            MetadataEntry { item, offset, length, flags: ItemFlags::from_bits_retain(flags) }
        };
        MetadataTable { entries: entries.into_iter().map(&mut place).collect() }
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    let sector = proptest::collection::vec(any::<u8>(), SECTOR as usize);
    prop_oneof![
        (any::<u64>(), any::<u64>())
            .prop_map(|(at, length)| Change::Zero { at: FileOffset::new(at), length }),
        (any::<u64>(), sector).prop_map(|(at, bytes)| Change::Sector {
            at: FileOffset::new(at),
            bytes: Box::new(bytes.try_into().expect("a sector")),
        }),
    ]
}

/// Parses an entry as a replay of the log does.
fn read_back(bytes: &[u8]) -> NewEntry {
    let header = EntryHeader::parse(bytes).expect("an entry");
    assert_eq!(u64::from(header.entry_length), bytes.len() as u64);
    assert_eq!(super::checksum(bytes), header.checksum);
    let number = header.sequence_number;
    let mut data = bytes[(header.descriptor_sectors() * SECTOR) as usize..].chunks(SECTOR as usize);
    let changes = (0..header.descriptor_count as usize).map(|i| {
        let place = HEADER_LEN + DESCRIPTOR_LEN * i;
        let bytes = &bytes[place..place + DESCRIPTOR_LEN];
        match Descriptor::parse(bytes, number).expect("a descriptor") {
            Descriptor::Zero { at, length } => Change::Zero { at, length },
            Descriptor::Data { at, leading, trailing } => {
                let sector = data.next().expect("a data sector");
                assert!(is_data_sector(sector, number));
                let whole = [&leading[..], &sector[8..4092], &trailing].concat();
                Change::Sector { at, bytes: Box::new(whole.try_into().expect("a sector")) }
            }
        }
    });
    let changes = changes.collect();
    assert!(data.next().is_none());
    NewEntry {
        tail: header.tail,
        sequence_number: number,
        log_guid: header.log_guid,
        flushed_file_offset: header.flushed_file_offset,
        last_file_offset: header.last_file_offset,
        changes,
    }
}

proptest! {
    #[test]
    fn identifiers_round_trip(creator in "[^\0]{0,128}") {
        let identifier = FileIdentifier { creator };
        prop_assert_eq!(FileIdentifier::parse(&identifier.to_bytes()).unwrap(), identifier);
    }

    #[test]
    fn headers_round_trip(header in any_header()) {
        prop_assert_eq!(Header::parse(&header.to_bytes(), 0).unwrap(), header);
    }

    #[test]
    fn the_newer_header_counts(mut a in any_header(), mut b in any_header()) {
        for header in [&mut a, &mut b] {
            (header.version, header.log_version) = (1, 0);
            header.log_length &= !0xF_FFFF;
            header.log_offset &= !0xF_FFFF;
        }
        prop_assume!(a.sequence_number != b.sequence_number);
        let headers = Headers::parse([&a.to_bytes(), &b.to_bytes()]).unwrap();
        let newer = if a.sequence_number > b.sequence_number { a } else { b };
        prop_assert_eq!(headers.current(), &newer);
    }

    #[test]
    fn region_tables_round_trip(table in any_regions()) {
        prop_assert_eq!(RegionTable::parse(&table.to_bytes(), 0).unwrap(), table);
    }

    #[test]
    fn log_entries_round_trip(
        tail in any::<u32>(),
        sequence_number in any::<u64>(),
        log_guid in any_guid(),
        offsets in any::<[u64; 2]>(),
        changes in proptest::collection::vec(any_change(), 0..5),
        zeros in 0..300_u64,
    ) {
        let zeros = (0..zeros).map(|i| Change::Zero { at: FileOffset::new(i * SECTOR), length: i });
        let entry = NewEntry {
            tail,
            sequence_number,
            log_guid,
            flushed_file_offset: offsets[0],
            last_file_offset: offsets[1],
            changes: zeros.chain(changes).collect(),
        };
        prop_assert_eq!(read_back(&entry.to_bytes()), entry);
    }

    #[test]
    fn block_entries_round_trip(state in 0..8_u8, mib in 0..1_u64 << 44) {
        let entry = BatEntry::new(state, FileOffset::new(mib << 20));
        let again = BatEntry(u64::from_le_bytes(entry.to_bytes()));
        prop_assert_eq!((again.state_bits(), again.offset().get()), (state, mib << 20));
    }

    #[test]
    fn metadata_tables_round_trip(table in any_items()) {
        prop_assert_eq!(strict(|on| MetadataTable::inspect(&table.to_bytes(), 0, 1 << 20, on)).unwrap(), table);
    }

    #[test]
    fn metadata_items_round_trip(shift in 20..29_u32, flags in any::<u32>(), sectors in 0..1_u64 << 37, id in any_guid()) {
        let file = FileParameters { block_size: 1 << shift, flags: FileFlags::from_bits_retain(flags) };
        prop_assert_eq!(FileParameters::parse(&file.to_bytes(), 0).unwrap(), file);
        let size = sectors * 512;
        prop_assert_eq!(parse_virtual_size(&virtual_size_to_bytes(size), 0, 512).unwrap(), size);
        prop_assert_eq!(parse_disk_id(&disk_id_to_bytes(id)), id);
    }

    #[test]
    fn locators_round_trip(
        pairs in proptest::collection::hash_map("[^\0]{1,20}", "[^\0]{1,60}", 0..8),
    ) {
        let locator = ParentLocator { locator_type: VHDX_TYPE, entries: pairs.into_iter().collect() };
        prop_assert_eq!(strict(|on| ParentLocator::inspect(&locator.to_bytes().unwrap(), 0, on)).unwrap(), locator);
    }

    /// For any bytes in place of a structure, a parser returns a result.
    #[test]
    fn parsers_answer_for_any_bytes(
        noise in proptest::collection::vec(any::<u8>(), 0..2000),
        count in any::<u32>(),
    ) {
        let with = |signature: &[u8], len: usize| {
            let mut bytes = [signature, &noise].concat();
            bytes.resize(len, 0x55);
            bytes[8..12].copy_from_slice(&count.to_le_bytes());
            bytes
        };
        let mut table = with(b"regi", RegionTable::LEN);
        super::seal(&mut table);
        let _ = RegionTable::parse(&table, 0);
        let table = with(b"metadata", MetadataTable::LEN);
        let _ = strict(|on| MetadataTable::inspect(&table, 0, 1 << 20, on));
        let _ = EntryHeader::parse(&with(b"loge", SECTOR as usize)).map(|entry| {
            (entry.descriptor_sectors(), entry.sectors())
        });
        let _ = strict(|on| ParentLocator::inspect(&noise, u64::from(count), on));
        let mut locator = [&VHDX_TYPE.to_bytes_le()[..], &noise].concat();
        locator.resize(locator.len().max(20), 0);
        locator[19] = 0;
        let _ = strict(|on| ParentLocator::inspect(&locator, 0, on));
    }
}
