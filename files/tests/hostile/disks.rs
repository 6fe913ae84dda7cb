//! Sound disks of one volume, each made by the tools of its file system.
#![allow(clippy::disallowed_methods)] // the tools work on files

use std::collections::BTreeMap;
use std::ops::Range;

use crate::images::{self, MIB, Model, Mounted, debugfs, model};
use crate::mutate::Seal;

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

impl Sound {
    fn of(name: &'static str, bytes: Vec<u8>, sector: u32) -> Self {
        Self { name, bytes, sector, places: Vec::new(), seal: None }
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
