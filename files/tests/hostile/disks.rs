//! Sound disks, and where their structures are.
#![allow(clippy::disallowed_methods)] // the tools work on files

use std::collections::BTreeMap;
use std::ops::Range;

use crate::images::{self, MIB, Model, Mounted, debugfs, model};
use crate::mutate::{Patches, sealed};

/// A sound disk.
pub struct Sound {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub sector: u32,
    /// The places of its structures; none where a look tells them.
    pub places: Vec<Range<u64>>,
    /// Completes changes so that they count.
    pub seal: Option<Seal>,
}

/// Where the two headers of a GPT and their entries are.
pub struct Seal(Vec<(usize, Range<usize>)>);

impl Sound {
    fn of(name: &'static str, bytes: Vec<u8>, sector: u32) -> Self {
        Self { name, bytes, sector, places: Vec::new(), seal: None }
    }
}

impl Seal {
    pub fn complete(&self, sound: &[u8], patches: Patches) -> Patches {
        let headers = self.0.iter();
        headers.fold(patches, |patches, (header, entries)| {
            sealed(sound, patches, *header, entries.clone())
        })
    }
}

/// Few files of each kind.
pub fn few() -> BTreeMap<String, Model> {
    let mut few = model();
    few.retain(|path, _| !path.starts_with("many/") || path.contains("1.d") || path.contains("20"));
    few
}

/// Disks of one volume.
pub fn volumes() -> Vec<Sound> {
    let mut links = few();
    links.extend([
        ("to small".into(), Model::Link("a/../small.txt".into())),
        ("circle".into(), Model::Link("circle".into())),
    ]);
    let mut sound = Vec::new();
    for (name, kind, features) in [
        ("ext2", "ext2", "^resize_inode"),
        ("ext3", "ext3", "^resize_inode"),
        // Checksums would refuse each change before it counts.
        ("ext4", "ext4", "^metadata_csum,^resize_inode"),
    ] {
        let image = images::ext_of(&links, kind, "1024", features);
        if let (Some(image), "ext4") = (&image, kind) {
            let waiting = waiting(image).map(|image| Sound::of("ext4 with a journal", image, 512));
            sound.extend(waiting);
        }
        sound.extend(image.map(|image| Sound::of(name, image, 512)));
    }
    for (name, bits, sector) in
        [("FAT12", "12", "512"), ("FAT16", "16", "4096"), ("FAT32", "32", "512")]
    {
        let image = images::fat_with(&few(), bits, sector);
        sound.extend(image.map(|image| Sound::of(name, image, sector.parse().unwrap())));
    }
    for (name, sector, cluster) in [("NTFS", "512", "1024"), ("NTFS of 4096", "4096", "4096")] {
        sound.extend(ntfs(&links, sector, cluster).map(|image| {
            let sector = sector.parse().unwrap();
            Sound::of(name, image, sector)
        }));
    }
    sound
}

fn ntfs(links: &BTreeMap<String, Model>, sector: &str, cluster: &str) -> Option<Vec<u8>> {
    let mounted = Mounted::with_sectors(8 * MIB, sector, cluster)?;
    let at = |path: &str| mounted.at.join(path);
    // Compressed from here on, where clusters are small enough.
    mounted.set("", "ntfs_attrib_be", &[0, 0, 0x08, 0x10]);
    mounted.fill(links);
    std::fs::write(at("squeezed"), b"as often as it takes ".repeat(9000)).unwrap();
    std::fs::write(at("small.txt:first"), b"a stream").unwrap();
    std::fs::write(at("small.txt:second"), vec![7; 30_000]).unwrap();
    for number in 0..60 {
        std::fs::hard_link(at("small.txt"), at(&format!("another name {number}"))).unwrap();
    }
    // What a junction leads to, twice: for the kernel and for people.
    let target: Vec<u8> = "C:\\x".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let lens = [0, target.len() as u16, target.len() as u16 + 2, target.len() as u16];
    let names = lens.into_iter().flat_map(u16::to_le_bytes);
    let data: Vec<u8> = names.chain([&target[..], &[0; 2], &target, &[0; 2]].concat()).collect();
    let head = [&0xA000_0003_u32.to_le_bytes()[..], &(data.len() as u16).to_le_bytes(), &[0; 2]];
    std::fs::create_dir(at("junction")).unwrap();
    mounted.set("junction", "ntfs_reparse_data", &[head.concat(), data].concat());
    Some(mounted.finish())
}

/// The same with changes that wait in its journal.
fn waiting(image: &[u8]) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, image).unwrap();
    let new = folder.path().join("new");
    let mut commands = String::from("jo\n");
    for block in [1usize, 2, 20] {
        // As they are: all that changes is where they are read.
        let new = new.with_extension(block.to_string());
        std::fs::write(&new, &image[block * 1024..][..1024]).unwrap();
        commands += &format!("jw -b {block} {}\n", new.display());
    }
    debugfs(&path, &(commands + "jw -r 5000\njc\n"))?;
    Some(std::fs::read(path).unwrap())
}

/// Disks with tables.
pub fn tables() -> Vec<Sound> {
    let Some(volume) = images::fat_of(&few(), "12") else { return Vec::new() };
    let with_volumes = |mut disk: Vec<u8>, at: &[u64]| {
        for at in at {
            disk[(at * MIB) as usize..][..volume.len()].copy_from_slice(&volume);
        }
        disk
    };
    let script = "label: gpt\nstart=2048, size=8192\nstart=12288, size=8192\n";
    let disks = [("GPT", images::table(script), 512), ("GPT of 4096", Some(gpt_of_4096()), 4096)];
    let mut sound = Vec::new();
    for (name, disk, sector) in disks {
        let Some(disk) = disk else { return Vec::new() };
        let bytes = with_volumes(disk, &[1, 6]);
        let last = bytes.len() - sector;
        let headers = [(sector, 2 * sector), (last, last - 128 * 128)];
        let headers = headers.map(|(header, entries)| (header, entries..entries + 128 * 128));
        let places = headers.iter().flat_map(|(header, entries)| {
            [*header..header + 92, entries.start..entries.start + 384]
        });
        let places = [440..512].into_iter().chain(places);
        let places = places.map(|range| range.start as u64..range.end as u64).collect();
        let seal = Some(Seal(headers.into()));
        sound.push(Sound { name, bytes, sector: sector as u32, places, seal });
    }
    let script = "label: dos\n1: start=2048, size=8192, type=c\n2: start=10240, size=51200, type=5\n\
                  5: start=12288, size=8192, type=c\n6: start=22528, size=8192, type=c\n";
    let Some(disk) = images::table(script) else { return Vec::new() };
    let bytes = with_volumes(disk, &[1, 6, 11]);
    let sectors = (0..bytes.len()).step_by(512);
    let is_table =
        |at: &usize| bytes[at + 510..at + 512] == [0x55, 0xAA] && bytes[*at..at + 3] == [0; 3];
    let tables: Vec<usize> = sectors.filter(is_table).map(|at| at + 446).collect();
    let places: Vec<_> = tables.iter().map(|at| *at as u64..*at as u64 + 66).collect();
    // The same in larger sectors: nothing lies in parts of them.
    let mut large = bytes.clone();
    for number in tables.iter().flat_map(|at| (0..8).map(move |n| at + n / 2 * 16 + 8 + n % 2 * 4))
    {
        let old = u32::from_le_bytes(large[number..number + 4].try_into().unwrap());
        large[number..number + 4].copy_from_slice(&(old / 8).to_le_bytes());
    }
    for (name, bytes, sector) in [("MBR", bytes, 512), ("MBR of 4096", large, 4096)] {
        sound.push(Sound { name, bytes, sector, places: places.clone(), seal: None });
    }
    sound
}

fn gpt_of_4096() -> Vec<u8> {
    let mut disk = std::io::Cursor::new(vec![0; 32 * MIB as usize]);
    ::gpt::mbr::ProtectiveMBR::with_lb_size(8191).overwrite_lba0(&mut disk).unwrap();
    let config = ::gpt::GptConfig::new().logical_block_size(::gpt::disk::LogicalBlockSize::Lb4096);
    let mut table = config.writable(true).create_from_device(&mut disk, None).unwrap();
    let partition = |first_lba| ::gpt::partition::Partition {
        part_type_guid: ::gpt::partition_types::BASIC,
        part_guid: "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap(),
        first_lba,
        last_lba: first_lba + 1023,
        flags: 0,
        name: "part".into(),
    };
    table.update_partitions([(1, partition(256)), (2, partition(1536))].into()).unwrap();
    table.write().unwrap();
    disk.into_inner()
}
