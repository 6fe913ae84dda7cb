//! Blocks of disks in any order are placed by what is in them, and what is called sure is right.
#![allow(clippy::disallowed_methods)] // the tools work on files

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use avhdx::{Disk, RawDisk, storage::MemStorage};
use avhdx_files::evidence::{Found, Known, Loose, place};
use avhdx_testkit::rng::{Rng, pattern};

use crate::images::{self, MIB, Mounted, run};

/// Where the first loose block lies in the file.
const FIRST: u64 = 4 * MIB;

/// The blocks of a disk that are not zeros, in another order.
pub struct Cut {
    disk: File,
    pub block: u64,
    /// The places on the disk of the blocks, in the order of the file.
    pub order: Vec<u64>,
    range: [Range<u64>; 1],
}

impl Cut {
    pub fn new(disk: &Path, block: u64, seed: u64) -> Self {
        let disk = File::open(disk).unwrap();
        let (len, zeros) = (disk.metadata().unwrap().len(), vec![0; block as usize]);
        let mut buf = zeros.clone();
        let mut order: Vec<u64> = (0..len)
            .step_by(block as usize)
            .filter(|at| {
                let count = (len - at).min(block) as usize;
                disk.read_exact_at(&mut buf[..count], *at).unwrap();
                buf[..count] != zeros[..count]
            })
            .collect();
        Rng::new(seed).shuffle(&mut order);
        Self::of(disk, block, order)
    }

    fn of(disk: File, block: u64, order: Vec<u64>) -> Self {
        let range = [FIRST..FIRST + order.len() as u64 * block];
        Self { disk, block, order, range }
    }

    /// The same without the blocks at these places.
    pub fn without(self, lost: &[u64]) -> Self {
        let kept = self.order.into_iter().filter(|at| !lost.contains(at)).collect();
        Self::of(self.disk, self.block, kept)
    }

    pub fn size(&self) -> u64 {
        self.disk.metadata().unwrap().len()
    }
}

impl Loose for Cut {
    fn ranges(&self) -> &[Range<u64>] {
        &self.range
    }

    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> avhdx::Result<()> {
        let (mut buf, mut at) = (buf, file_offset - FIRST);
        while !buf.is_empty() {
            let within = at % self.block;
            let count = (buf.len() as u64).min(self.block - within) as usize;
            let (now, rest) = buf.split_at_mut(count);
            let place = self.order[(at / self.block) as usize] + within;
            let held = self.size().saturating_sub(place).min(count as u64) as usize;
            now.fill(0);
            self.disk.read_exact_at(&mut now[..held], place).unwrap();
            (buf, at) = (rest, at + count as u64);
        }
        Ok(())
    }
}

/// How many blocks, or MiB where their size is not known, were placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub sure: u64,
    pub sure_wrong: u64,
    pub guessed: u64,
    pub guessed_wrong: u64,
    pub all: u64,
}

pub fn placed(cut: &Cut, size: Option<u64>, block: Option<u32>) -> Found {
    let none: RawDisk = RawDisk::new(std::sync::Arc::new(MemStorage::new(Vec::new()))).unwrap();
    let disk: &dyn Disk = &none;
    let known = Known { disk, ranges: &[], size, block_size: block, sector: None };
    place(&known, cut, &mut |_, _| {})
}

/// Judges hits by the order that the blocks were given.
pub fn share(cut: &Cut, found: &Found, what: &str) -> Share {
    let mut share = Share { all: cut.order.len() as u64, ..Share::default() };
    let mut taken = BTreeMap::new();
    for hit in &found.hits {
        for at in (0..hit.len).step_by(MIB as usize) {
            let from = hit.file_offset + at - FIRST;
            let truth = cut.order[(from / cut.block) as usize] + from % cut.block;
            let is_right = truth == hit.disk_offset + at;
            assert!(is_right || !hit.sure, "{what}: {hit:?}, and it is {truth}");
            assert!(taken.insert(truth, ()).is_none(), "{what}: {hit:?} again");
            let first = at % cut.block == 0 || hit.len < cut.block;
            match (hit.sure, is_right) {
                (true, true) => share.sure += u64::from(first),
                (true, false) => share.sure_wrong += u64::from(first),
                (false, true) => share.guessed += u64::from(first),
                (false, false) => share.guessed_wrong += u64::from(first),
            }
        }
    }
    println!("{what}: {share:?}, {:?}", found.notes);
    share
}

/// A folder with files and folders of so many bytes.
pub fn fill(folder: &Path, seed: u64, bytes: u64) {
    let mut rng = Rng::new(seed);
    let (mut left, mut number) = (bytes, 0);
    std::fs::create_dir_all(folder).unwrap();
    while left > 0 {
        let within = folder.join(format!("folder {}", rng.below(24)));
        let within = within.join(format!("of {}", rng.below(8)));
        std::fs::create_dir_all(&within).unwrap();
        let most = if rng.chance(1, 12) { 8 * MIB } else { 100_000 };
        let mut file = vec![0; (rng.below(most) + 1).min(left) as usize];
        pattern(seed + number, 0, &mut file);
        std::fs::write(within.join(format!("file {number}")), &file).unwrap();
        (left, number) = (left - file.len() as u64, number + 1);
    }
}

/// A disk of so many bytes with a GPT, and the places of its partitions.
pub fn gpt(folder: &Path, len: u64, parts: &[Range<u64>]) -> Option<PathBuf> {
    let disk = folder.join("disk");
    File::create(&disk).unwrap().set_len(len).unwrap();
    let mut args = vec!["-o".to_owned()];
    for (number, part) in (1..).zip(parts) {
        let last = part.end / 512 - 1;
        args.extend(["-n".into(), format!("{number}:{}:{last}", part.start / 512)]);
    }
    args.push(disk.to_str().unwrap().to_owned());
    run("sgdisk", &args)?;
    Some(disk)
}

/// Makes ext in a part of the disk, with the files of a folder.
pub fn ext(disk: &Path, part: &Range<u64>, more: &[&str], files: &Path) -> Option<()> {
    let offset = format!("offset={}", part.start);
    let len = format!("{}k", (part.end - part.start) / 1024);
    let mut args = vec!["-q", "-F", "-t", "ext4", "-E", &offset];
    args.extend(more);
    args.extend(["-d", files.to_str().unwrap(), disk.to_str().unwrap(), &len]);
    run("mkfs.ext4", &args)
}

/// Writes bytes to a part of the disk, but for zeros.
pub fn write(disk: &Path, at: u64, bytes: &[u8]) {
    let disk = File::options().write(true).open(disk).unwrap();
    for (piece, from) in bytes.chunks(64 << 10).zip((at..).step_by(64 << 10)) {
        if *piece != vec![0; piece.len()] {
            disk.write_all_at(piece, from).unwrap();
        }
    }
}

const EXT: [(&str, &[&str]); 5] = [
    ("ext4 4K", &["-b", "4096"]),
    ("ext4 1K", &["-b", "1024"]),
    ("ext4 without flex_bg", &["-b", "4096", "-O", "^flex_bg,^resize_inode"]),
    ("ext4 without checksums", &["-b", "4096", "-O", "^metadata_csum"]),
    ("ext4 without 64bit", &["-b", "4096", "-O", "^64bit,^metadata_csum,uninit_bg"]),
];

#[test]
fn blocks_of_ext_are_placed() {
    for (name, more) in EXT {
        let folder = tempfile::tempdir().unwrap();
        fill(&folder.path().join("files"), 5, 60 * MIB);
        let part = MIB..511 * MIB;
        let parts = std::slice::from_ref(&part);
        let Some(disk) = gpt(folder.path(), 512 * MIB, parts) else { return };
        let Some(()) = ext(&disk, &part, more, &folder.path().join("files")) else { return };
        for block in [2 * MIB, 32 * MIB] {
            let cut = Cut::new(&disk, block, 7);
            let found = placed(&cut, Some(cut.size()), Some(block as u32));
            let sure = share(&cut, &found, &format!("{name}, {} MiB", block / MIB)).sure;
            assert!(sure >= 2, "{name}: {found:#?}");
            assert_eq!(found.disk_size.as_ref().unwrap().0, 512 * MIB);
            // Less is known, and nothing of it is wrong.
            let found = placed(&cut, None, None);
            share(&cut, &found, &format!("{name}, {} MiB, unknown", block / MIB));
        }
    }
}

pub fn ntfs(len: u64, seed: u64, bytes: u64) -> Option<Vec<u8>> {
    let mounted = Mounted::new(len, "4096")?;
    fill(&mounted.at.join("files"), seed, bytes);
    Some(mounted.finish())
}

#[test]
fn blocks_of_ntfs_are_placed() {
    let folder = tempfile::tempdir().unwrap();
    let part = MIB..300 * MIB;
    let Some(disk) = gpt(folder.path(), 302 * MIB, std::slice::from_ref(&part)) else { return };
    let Some(bytes) = ntfs(299 * MIB, 5, 60 * MIB) else { return };
    write(&disk, part.start, &bytes);
    for block in [2 * MIB, 32 * MIB] {
        let cut = Cut::new(&disk, block, 8);
        let found = placed(&cut, Some(cut.size()), Some(block as u32));
        let sure = share(&cut, &found, &format!("NTFS, {} MiB", block / MIB)).sure;
        assert!(sure >= 2, "{found:#?}");
        share(&cut, &placed(&cut, None, None), "NTFS, unknown");
    }
}

#[test]
fn blocks_of_fat_are_placed() {
    let folder = tempfile::tempdir().unwrap();
    let part = MIB..37 * MIB;
    let Some(disk) = gpt(folder.path(), 40 * MIB, std::slice::from_ref(&part)) else { return };
    let Some(bytes) = images::fat("32") else { return };
    write(&disk, part.start, &bytes);
    let cut = Cut::new(&disk, 2 * MIB, 8);
    let found = placed(&cut, Some(cut.size()), Some(2 << 20));
    assert!(share(&cut, &found, "FAT32").sure >= 2, "{found:#?}");
}
