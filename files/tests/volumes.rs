//! Partition tables that `sfdisk` makes, with sectors of 512 and 4096 bytes.
#![allow(clippy::disallowed_methods)] // the tool works on files

use std::io;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use avhdx::{Disk, Extent, Geometry, RawDisk, Result};
use avhdx_files::{Content, ErrorKind, Volumes};

use crate::images::{self, MIB, model, table};
use crate::trees::{assert_same, walked};

/// A disk with sectors of another size.
struct Sectors(RawDisk, u32);

impl Disk for Sectors {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.0.geometry().size, self.1, 4096)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        self.0.next_extent(range)
    }
}

fn disk(bytes: &[u8], sector: u32) -> Arc<dyn Disk> {
    let storage = avhdx::storage::MemStorage::new(bytes.to_vec());
    Arc::new(Sectors(RawDisk::new(Arc::new(storage)).unwrap(), sector))
}

fn volumes(bytes: &[u8]) -> Volumes {
    Volumes::of(disk(bytes, 512)).unwrap()
}

const TYPE_DATA: &str = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7";
const TYPE_SPACES: &str = "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D";
const SPACES_ID: &str = "11234567-89ab-cdef-0123-456789abcdef";
const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// A disk with sectors of 512 bytes by `sfdisk`, or of 4096 bytes by a crate, since not every `sfdisk` makes them.
fn gpt(sector: u32) -> Option<Vec<u8>> {
    let mut bytes = match sector {
        512 => table(&format!(
            "label: gpt\nlabel-id: {ID}\n1: start=2048, size=4096, type={TYPE_SPACES}\n\
             3: start=8192, size=24576, type={TYPE_DATA}, name=\"data\", uuid={ID}\n"
        ))?,
        _ => gpt_of_4096(),
    };
    let volume = images::ntfs()?;
    bytes[4 * MIB as usize..][..volume.len()].copy_from_slice(volume);
    Some(bytes)
}

fn gpt_of_4096() -> Vec<u8> {
    let mut disk = io::Cursor::new(vec![0; 32 * MIB as usize]);
    ::gpt::mbr::ProtectiveMBR::with_lb_size(8191).overwrite_lba0(&mut disk).unwrap();
    let config = ::gpt::GptConfig::new().logical_block_size(::gpt::disk::LogicalBlockSize::Lb4096);
    let id = ID.parse().unwrap();
    let mut table = config.writable(true).create_from_device(&mut disk, Some(id)).unwrap();
    let partition = |kind: &str, first_lba, last_lba, name: &str| ::gpt::partition::Partition {
        part_type_guid: ::gpt::partition_types::Type::from_str(kind).unwrap(),
        part_guid: if name.is_empty() { SPACES_ID.parse().unwrap() } else { id },
        first_lba,
        last_lba,
        flags: 0,
        name: name.into(),
    };
    let partitions =
        [(1, partition(TYPE_SPACES, 256, 767, "")), (3, partition(TYPE_DATA, 1024, 4095, "data"))];
    table.update_partitions(partitions.into()).unwrap();
    table.write().unwrap();
    disk.into_inner()
}

#[test]
fn a_gpt_is_read_with_sectors_of_either_size() {
    // The crate numbers its partitions anew.
    for (sector, number) in [(512, 3), (4096, 2)] {
        let Some(bytes) = gpt(sector) else { return };
        let volumes = Volumes::of(disk(&bytes, sector)).unwrap();
        assert_eq!((volumes.scheme(), volumes.id()), (Some("GPT"), Some(ID)));
        assert!(volumes.warnings().is_empty(), "{:?}", volumes.warnings());
        let [spaces, data] = &volumes.iter().collect::<Vec<_>>()[..] else { panic!("{volumes:?}") };
        assert_eq!((spaces.number(), spaces.kind()), (Some(1), Some("Storage Spaces")));
        assert_eq!(spaces.content(), Content::Refused("Storage Spaces"));
        assert_eq!((data.number(), data.range()), (Some(number), 4 * MIB..16 * MIB));
        assert_eq!((data.kind(), data.content()), (Some("basic data"), Content::Ntfs));
        assert_eq!((data.partition_name(), data.id()), (Some("data"), Some(ID)));
        assert_eq!(data.label(), Some("of NTFS"));
        let text = number.to_string();
        for selector in
            [None, Some(&text[..]), Some("of NTFS"), Some("data"), Some(&ID.to_uppercase())]
        {
            assert_eq!(volumes.select(selector).unwrap().number(), Some(number), "{selector:?}");
        }
        let error = volumes.select(Some("7")).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, "files.volume-unknown"));
        assert!(
            error.message().contains(&format!("partition {number} \"of NTFS\" (NTFS)")),
            "{error}"
        );
        assert_same(walked(&data.open().unwrap()), &model());
        assert_eq!(spaces.open().unwrap_err().code(), "files.volume-kind");
    }
}

/// A raw disk says nothing of its sectors.
#[test]
fn a_gpt_of_large_sectors_is_found_on_a_raw_disk() {
    let Some(bytes) = gpt(4096) else { return };
    let names = |sector| -> Vec<String> {
        let volumes = Volumes::of(disk(&bytes, sector)).unwrap();
        assert_eq!(volumes.scheme(), Some("GPT"));
        volumes.iter().map(|volume| format!("{volume:?}")).collect()
    };
    assert_eq!(names(512), names(4096));
}

#[test]
fn the_second_copy_of_a_gpt_serves_where_the_first_is_bad() {
    let Some(good) = gpt(512) else { return };
    for (at, which) in [(512, "first"), (1024 + 40, "first"), (good.len() - 512, "second")] {
        let mut bytes = good.clone();
        bytes[at] ^= 0xFF;
        let volumes = volumes(&bytes);
        assert_eq!(volumes.select(Some("3")).unwrap().range(), 4 * MIB..16 * MIB);
        let [warning] = volumes.warnings() else { panic!("{:?}", volumes.warnings()) };
        assert!(warning.contains(&format!("the {which} copy of the GPT")), "{warning}");
    }
    let mut bytes = good;
    let last = bytes.len() - 512;
    // As many entries as there could be.
    for at in [512, last] {
        bytes[at + 80..at + 84].fill(0xFF);
    }
    let error = Volumes::of(disk(&bytes, 512)).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "files.gpt"));
    assert!(error.message().contains("4294967295"), "{error}");
}

#[test]
fn logical_partitions_of_an_mbr_are_numbered_from_five() {
    let script = "label: dos\nlabel-id: 0x1234abcd\n1: start=2048, size=2048, type=c\n2: start=8192, size=57344, type=5\n\
                  5: start=10240, size=8192, type=83\n6: start=20480, size=32768, type=7\n";
    let Some(mut bytes) = table(script) else { return };
    let Some(volume) = images::ntfs() else { return };
    bytes[10 * MIB as usize..][..volume.len()].copy_from_slice(volume);
    let told = |volumes: &Volumes| -> Vec<_> {
        volumes.iter().map(|volume| (volume.number().unwrap(), volume.range())).collect()
    };
    let read = volumes(&bytes);
    let expected = [(1, MIB..2 * MIB), (5, 5 * MIB..9 * MIB), (6, 10 * MIB..26 * MIB)];
    assert_eq!((read.scheme(), read.id()), (Some("MBR"), Some("1234abcd")));
    assert_eq!(told(&read), expected);
    assert_eq!(read.select(None).unwrap().number(), Some(6));
    assert_eq!(read.select(Some("1234abcd-05")).unwrap().kind(), Some("Linux"));
    assert_same(walked(&read.select(None).unwrap().open().unwrap()), &model());
    // The second of the tables leads back to the first.
    let mut circle = bytes.clone();
    let second = (0..bytes.len()).step_by(512).skip(8193).find(|at| {
        *at > 8192 * 512 && bytes[at + 510..at + 512] == [0x55, 0xAA] && bytes[at + 450] == 7
    });
    let second = second.unwrap();
    circle[second + 462..second + 478].copy_from_slice(&[0; 16]);
    circle[second + 466] = 5;
    circle[second + 474] = 1;
    let read = volumes(&circle);
    assert_eq!(told(&read), expected);
    assert!(read.warnings()[0].contains("does not end at sector 8192"), "{:?}", read.warnings());
    // A partition larger than the disk is told and not opened, the others are.
    let mut large = bytes;
    large[446 + 12..446 + 16].fill(0x7F);
    let read = volumes(&large);
    let error = read.select(Some("1")).unwrap().open().unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "files.partition-place"));
    assert!(read.warnings()[0].contains("1 and 5 share"), "{:?}", read.warnings());
    assert!(read.select(None).unwrap().open().is_ok());
}

#[test]
fn a_disk_without_a_table_is_one_volume() {
    let Some(image) = images::ntfs() else { return };
    let read = volumes(image);
    assert_eq!((read.scheme(), read.iter().count()), (None, 1));
    assert_eq!(
        (read.select(None).unwrap().number(), read.select(None).unwrap().size()),
        (None, 12 * MIB)
    );
    let Some(fat) = images::fat("12") else { return };
    assert_eq!(volumes(&fat).select(None).unwrap().content(), Content::Fat);
    let error = volumes(&[0; 4096]).select(None).unwrap().open().unwrap_err();
    assert!(error.message().contains("reads as zeros"), "{error}");
}

#[test]
fn without_a_selector_several_volumes_are_listed() {
    let script = "label: dos\nstart=2048, size=24576, type=7\nstart=26624, size=24576, type=7\n";
    let Some(mut bytes) = table(script) else { return };
    let Some(volume) = images::ntfs() else { return };
    for at in [MIB, 13 * MIB] {
        bytes[at as usize..][..volume.len()].copy_from_slice(volume);
    }
    let read = volumes(&bytes);
    for selector in [None, Some("of NTFS")] {
        let error = read.select(selector).unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::InvalidInput, "files.volume-ambiguous")
        );
        assert!(error.message().contains("partition 1 \"of NTFS\" (NTFS), partition 2"), "{error}");
    }
}
