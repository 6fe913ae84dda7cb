//! Blocks of disks in any order are placed by what is in them, and what is called sure is right.
#![allow(clippy::disallowed_methods)] // the tools work on files

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use avhdx::{Disk, RawDisk, storage::MemStorage};
use avhdx_files::evidence::{Found, Known, Loose, place, whole_files};
use avhdx_files::{FileSystem, Kind, Volumes};
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
        let range = [Range { start: FIRST, end: FIRST + order.len() as u64 * block }];
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

/// A disk of which the first block is placed, and nothing else.
#[test]
fn what_is_known_already_is_of_use_and_is_not_placed_again() {
    let folder = tempfile::tempdir().unwrap();
    fill(&folder.path().join("files"), 5, 30 * MIB);
    let part = MIB..255 * MIB;
    let Some(disk) = gpt(folder.path(), 256 * MIB, std::slice::from_ref(&part)) else { return };
    let Some(()) = ext(&disk, &part, CHECKED, &folder.path().join("files")) else { return };
    let cut = Cut::new(&disk, 2 * MIB, 3).without(&[0]);
    let mut first = vec![0; 2 << 20];
    File::open(&disk).unwrap().read_exact_at(&mut first, 0).unwrap();
    first.resize(256 << 20, 0);
    let known_disk = RawDisk::new(std::sync::Arc::new(MemStorage::new(first))).unwrap();
    let ranges = std::slice::from_ref(&(0..2 * MIB));
    let known = Known {
        disk: &known_disk,
        ranges,
        size: Some(256 * MIB),
        block_size: Some(2 << 20),
        sector: Some(512),
    };
    let mut told = Vec::new();
    let found = place(&known, &cut, &mut |done, total| told.push((done, total)));
    assert!(share(&cut, &found, "the first block is known").sure >= 8, "{found:#?}");
    assert!(found.hits.iter().all(|hit| hit.disk_offset >= 2 * MIB));
    assert!(told.is_sorted() && told.last().is_some_and(|(done, total)| done == total));
    // The table that the disk has is the one that counts.
    let known = Known { size: None, ..known };
    let found = place(&known, &cut, &mut |_, _| {});
    assert!(share(&cut, &found, "without the size").sure >= 8, "{found:#?}");
}

/// What a block held before it was moved, as in a file that was never compacted.
#[test]
fn of_two_blocks_that_claim_a_place_neither_is_sure() {
    let folder = tempfile::tempdir().unwrap();
    fill(&folder.path().join("files"), 5, 20 * MIB);
    let part = MIB..255 * MIB;
    let Some(disk) = gpt(folder.path(), 256 * MIB, std::slice::from_ref(&part)) else { return };
    let Some(()) = ext(&disk, &part, CHECKED, &folder.path().join("files")) else { return };
    let once = Cut::new(&disk, 2 * MIB, 3);
    let found = placed(&once, Some(once.size()), Some(2 << 20));
    let sure: Vec<u64> =
        found.hits.iter().filter(|hit| hit.sure).map(|hit| hit.disk_offset).collect();
    assert!(sure.len() >= 8, "{found:#?}");
    for (twice, seed) in sure.iter().zip(0..) {
        let mut order = once.order.clone();
        order.push(*twice);
        Rng::new(seed).shuffle(&mut order);
        let cut = Cut::of(File::open(&disk).unwrap(), 2 * MIB, order);
        let found = placed(&cut, Some(cut.size()), Some(2 << 20));
        let again = found.hits.iter().find(|hit| hit.disk_offset == *twice && hit.sure);
        assert_eq!(again, None, "{:?}", found.notes);
    }
}

/// Bytes of loose blocks that are changed where structures are.
struct Lying<'a> {
    cut: &'a Cut,
    rng: std::sync::Mutex<Rng>,
}

impl Loose for Lying<'_> {
    fn ranges(&self) -> &[Range<u64>] {
        self.cut.ranges()
    }

    fn read_at(&self, buf: &mut [u8], file_offset: u64) -> avhdx::Result<()> {
        self.cut.read_at(buf, file_offset)?;
        let mut rng = self.rng.lock().unwrap();
        for sector in buf.chunks_mut(512).filter(|sector| sector.iter().any(|byte| *byte != 0)) {
            // Even from one reading to the next.
            for _ in 0..rng.below(3) {
                let (at, value) = (rng.below(sector.len() as u64) as usize, rng.next_u64());
                let value = [0, 0xFF, 0x80, value as u8][value as usize >> 8 & 3];
                let fields = if rng.chance(1, 2) { at } else { at % 128 };
                let len = sector.len();
                sector[fields.min(len - 1)] = value;
            }
        }
        Ok(())
    }
}

#[test]
fn bytes_that_lie_place_nothing_for_sure_and_panic_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let part = MIB..40 * MIB;
    let images = [
        images::ntfs().cloned(),
        images::ext("ext4", "4096"),
        images::ext("ext4", "1024"),
        images::ext("ext3", "1024"),
        images::fat("32"),
        images::fat("16"),
    ];
    for bytes in images.into_iter().flatten() {
        let parts = std::slice::from_ref(&part);
        let Some(disk) = gpt(folder.path(), 41 * MIB, parts) else { return };
        write(&disk, part.start, &bytes);
        for seed in 0..20 {
            let block = [MIB, 2 * MIB][seed as usize % 2];
            let cut = Cut::new(&disk, block, seed);
            // What is known does not lie, so that the rest is looked at.
            let mut first = vec![0; MIB as usize];
            File::open(&disk).unwrap().read_exact_at(&mut first, 0).unwrap();
            first.resize(41 << 20, 0);
            let lying = Lying { cut: &cut, rng: std::sync::Mutex::new(Rng::new(seed)) };
            let disk = RawDisk::new(std::sync::Arc::new(MemStorage::new(first))).unwrap();
            let ranges = std::slice::from_ref(&(0..MIB));
            let ranges = if seed % 4 == 0 { &[][..] } else { ranges };
            let size = (seed % 3 != 0).then_some(41 * MIB);
            let block_size = (seed % 5 != 0).then_some(block as u32);
            let known = Known { disk: &disk, ranges, size, block_size, sector: None };
            let found = place(&known, &lying, &mut |_, _| {});
            for hit in found.hits.iter().filter(|hit| hit.sure) {
                let from = hit.file_offset - FIRST;
                let truth = cut.order[(from / block) as usize] + from % block;
                assert_eq!(truth, hit.disk_offset, "{hit:?}");
            }
        }
    }
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

/// Blocks as they are, and with a part of them lost; nothing that is sure may be wrong.
fn lossy(disk: &Path, what: &str) -> Share {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let (mut whole, seeds) = (Share::default(), if is_long { 12 } else { 3 });
    for (block, known) in [(2, true), (1, true), (32, true), (2, false)] {
        if !is_long && (block, known) == (2, false) {
            continue;
        }
        let block = block * MIB;
        for seed in 0..seeds {
            let mut cut = Cut::new(disk, block, seed);
            if seed > 0 {
                let mut rng = Rng::new(seed);
                // The first block is lost more often than others.
                let mut lost: Vec<u64> =
                    cut.order.iter().copied().filter(|_| rng.chance(1, 4)).collect();
                lost.extend((seed % 2 == 0).then_some(0));
                cut = cut.without(&lost);
            }
            let size = known.then_some(cut.size());
            let found = placed(&cut, size, known.then_some(block as u32));
            let (mib, lost) = (block / MIB, if seed > 0 { "a part lost" } else { "whole" });
            let share = share(&cut, &found, &format!("{what}, {mib} MiB, {known}, {lost}"));
            if seed == 0 && block == 2 * MIB && known {
                whole = share;
            }
        }
    }
    whole
}

fn debugfs(disk: &Path, at: u64, command: &str) -> Option<String> {
    let options = format!("{}?offset={at}", disk.display());
    let output = std::process::Command::new(images::tool("debugfs")?)
        .args(["-R", command, &options])
        .output()
        .unwrap();
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The blocks of a file of ext, in order.
fn blocks(disk: &Path, at: u64, file: &str) -> Option<Vec<u64>> {
    let told = debugfs(disk, at, &format!("blocks {file}"))?;
    let blocks: Vec<u64> = told.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(!blocks.is_empty(), "{told}");
    Some(blocks)
}

/// The places at which a file of ext of 4 KiB blocks has so many bytes together, at multiples of MiB.
fn run_of(disk: &Path, at: u64, file: &str, len: u64) -> Option<u64> {
    let blocks = blocks(disk, at, file)?;
    let held = |from: usize| {
        let count = (len / 4096) as usize;
        from + count <= blocks.len() && blocks[from + count - 1] == blocks[from] + count as u64 - 1
    };
    (0..blocks.len())
        .find(|from| (at + blocks[*from] * 4096).is_multiple_of(MIB) && held(*from))
        .map(|from| at + blocks[from] * 4096)
}

const CHECKED: &[&str] = &["-b", "4096"];

#[test]
fn a_disk_image_in_a_file_misleads_nobody() {
    // An image of a smaller disk, and one that calls itself as large.
    for len in [48, 512] {
        let folder = tempfile::tempdir().unwrap();
        let (outer, inner) = (folder.path().join("outer"), folder.path().join("inner"));
        fill(&outer.join("files"), 11, 30 * MIB);
        fill(&inner.join("files"), 12, 12 * MIB);
        let part = MIB..(len - 1) * MIB;
        let Some(disk) = gpt(&inner, len * MIB, std::slice::from_ref(&part)) else { return };
        let part = MIB..47 * MIB;
        let Some(()) = ext(&disk, &part, CHECKED, &inner.join("files")) else { return };
        let mut nested = vec![0; 48 << 20];
        File::open(&disk).unwrap().read_exact_at(&mut nested, 0).unwrap();
        let mut image = vec![0; 50 << 20];
        pattern(3, 0, &mut image);
        std::fs::write(outer.join("disk.img"), &image).unwrap();
        let part = MIB..511 * MIB;
        let disk = gpt(folder.path(), 512 * MIB, std::slice::from_ref(&part)).unwrap();
        ext(&disk, &part, CHECKED, &outer).unwrap();
        let at = run_of(&disk, part.start, "/disk.img", nested.len() as u64).unwrap();
        File::options().write(true).open(&disk).unwrap().write_all_at(&nested, at).unwrap();
        let whole = lossy(&disk, &format!("an image of {len} MiB in a file"));
        assert!(len == 512 || whole.sure >= 4, "{whole:?}");
    }
}

#[test]
fn what_was_there_before_misleads_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    fill(&old, 21, 30 * MIB);
    fill(&new, 22, 15 * MIB);
    let part = MIB..511 * MIB;
    let Some(disk) = gpt(folder.path(), 512 * MIB, std::slice::from_ref(&part)) else { return };
    let uuid = "b1b2b3b4-0000-4000-8000-000000000001";
    // Even one of the same identity, whose checksums begin alike, in other places.
    let before = 9 * MIB..509 * MIB;
    for id in [None, Some(uuid)] {
        let more: Vec<&str> =
            ["-b", "4096"].into_iter().chain(id.into_iter().flat_map(|id| ["-U", id])).collect();
        let Some(()) = ext(&disk, &before, &more, &old) else { return };
        let new_id = ["-b", "4096", "-E", "nodiscard", "-U", uuid];
        let offset = format!("nodiscard,offset={}", part.start);
        let len = format!("{}k", (part.end - part.start) / 1024);
        let mut args = vec!["-q", "-F", "-t", "ext4"];
        args.extend(&new_id[..2]);
        args.extend(["-U", uuid, "-E", &offset, "-d", new.to_str().unwrap()]);
        args.extend([disk.to_str().unwrap(), &len]);
        run("mkfs.ext4", &args).unwrap();
        lossy(&disk, &format!("ext before, {id:?}"));
    }
}

#[test]
fn a_file_system_of_ntfs_before_misleads_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let part = MIB..300 * MIB;
    let Some(disk) = gpt(folder.path(), 302 * MIB, std::slice::from_ref(&part)) else { return };
    let Some(old) = ntfs(280 * MIB, 31, 40 * MIB) else { return };
    let new = ntfs(299 * MIB, 32, 20 * MIB).unwrap();
    write(&disk, 9 * MIB, &old);
    write(&disk, part.start, &new);
    lossy(&disk, "NTFS before");
}

#[test]
fn two_volumes_of_the_same_bytes_mislead_nobody() {
    let folder = tempfile::tempdir().unwrap();
    fill(&folder.path().join("files"), 41, 20 * MIB);
    let parts = [MIB..101 * MIB, 101 * MIB..201 * MIB];
    let Some(disk) = gpt(folder.path(), 208 * MIB, &parts) else { return };
    let Some(()) = ext(&disk, &parts[0], CHECKED, &folder.path().join("files")) else { return };
    let mut bytes = vec![0; 100 << 20];
    File::open(&disk).unwrap().read_exact_at(&mut bytes, MIB).unwrap();
    write(&disk, 101 * MIB, &bytes);
    lossy(&disk, "twice");
    // And a copy of a volume in a file of another.
    let Some(disk) = gpt(folder.path(), 208 * MIB, &[Range { start: MIB, end: 201 * MIB }]) else {
        return;
    };
    let Some(bytes) = ntfs(60 * MIB, 42, 10 * MIB) else { return };
    write(&disk, 101 * MIB, &bytes);
    let outer = ntfs(100 * MIB, 43, 10 * MIB).unwrap();
    write(&disk, MIB, &outer);
    lossy(&disk, "NTFS behind NTFS");
}

/// A journal in which copies of metadata lie where their checksums and places could fit.
#[test]
fn copies_in_a_journal_mislead_nobody() {
    for more in [CHECKED, &["-b", "4096", "-O", "^flex_bg"]] {
        let folder = tempfile::tempdir().unwrap();
        fill(&folder.path().join("files"), 51, 12 * MIB);
        let part = MIB..511 * MIB;
        let Some(disk) = gpt(folder.path(), 512 * MIB, std::slice::from_ref(&part)) else { return };
        let Some(()) = ext(&disk, &part, more, &folder.path().join("files")) else { return };
        let Some(journal) = blocks(&disk, part.start, "<8>") else { return };
        let file = File::options().read(true).write(true).open(&disk).unwrap();
        let at_block = |block: u64| {
            let mut bytes = vec![0; 4096];
            file.read_exact_at(&mut bytes, part.start + block * 4096).unwrap();
            bytes
        };
        // Blocks of folders and of inodes, wherever they are.
        let metadata: Vec<(u64, Vec<u8>)> = (0..part.end / 4096 - 256)
            .filter(|block| !journal.contains(block))
            .map(|block| (block, at_block(block)))
            .filter(|(_, bytes)| {
                bytes[4084..4088] == [0; 4] && bytes[4088..4092] == [12, 0, 0, 0xDE]
                    || bytes
                        .chunks(256)
                        .any(|raw| raw[0x80..0x82] == [32, 0] && raw[26] != 0 && raw[27] == 0)
            })
            .collect();
        assert!(metadata.len() > 50, "{}", metadata.len());
        for (index, block) in journal.iter().enumerate().skip(1) {
            let mut bytes = vec![0; 4096];
            let fitting = metadata.iter().filter(|(own, _)| (own ^ block) % 256 == 0);
            let fitting: Vec<_> = fitting.collect();
            if index % 200 == 1 {
                // A descriptor block of a transaction.
                bytes[..12].copy_from_slice(&[0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 1, 0, 0, 0, 9]);
            } else if let Some((_, found)) = fitting.get(index / 256 % fitting.len().max(1)) {
                bytes.clone_from(found);
            } else {
                bytes.clone_from(&metadata[index % metadata.len()].1);
            }
            file.write_all_at(&bytes, part.start + block * 4096).unwrap();
        }
        let whole = lossy(&disk, &format!("a journal of copies, {more:?}"));
        assert!(whole.sure >= 3, "{whole:?}");
    }
}

/// What a whole walk of the disk reads as, by path: the bytes of files, and where links lead.
fn contents(tree: &FileSystem) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    let Ok(root) = tree.root() else { return all };
    for entry in tree.walk(&root) {
        let Ok(entry) = entry else { continue };
        let bytes = match entry.kind() {
            Some(Kind::File) => tree.open(&entry, None).and_then(|mut it| it.read_to_end(64 << 20)),
            Some(Kind::Link) => tree.target(&entry),
            Some(_) => Ok(Vec::new()),
            None => continue,
        };
        all.extend(bytes.ok().map(|bytes| (entry.path().to_vec(), bytes)));
    }
    all
}

#[test]
fn files_that_are_whole_read_as_they_were() {
    let images = [
        images::ntfs().cloned(),
        crate::ntfs::image().map(|(image, _)| image.clone()),
        images::ext("ext4", "4096"),
        images::ext("ext2", "1024"),
        images::fat("12"),
        images::fat("32"),
    ];
    for (number, image) in images.into_iter().flatten().enumerate() {
        let sound = contents(&images::tree(&image));
        let (mut whole, mut lost_files) = (0, 0);
        for seed in 0..12 {
            // Whatever lies in what is lost is not what it was.
            let (mut rng, mut ruined) = (Rng::new(seed), image.clone());
            let piece = [4 << 10, 64 << 10, 1 << 20][seed as usize % 3];
            let mut lost: Vec<Range<u64>> = Vec::new();
            for at in (0..image.len()).step_by(piece) {
                if rng.chance(1, 10) && seed > 0 {
                    let end = (at + piece).min(image.len());
                    if seed % 2 == 0 {
                        ruined[at..end].fill(0)
                    } else {
                        rng.fill(&mut ruined[at..end])
                    }
                    lost.push(at as u64..end as u64);
                }
            }
            let mut told = BTreeMap::new();
            let ruin = images::disk(ruined.clone());
            let _ = whole_files(&ruin, &lost, &mut |file| {
                told.insert(file.path.clone(), file);
            });
            let read = match Volumes::of(images::disk(ruined)) {
                Ok(volumes) => volumes.iter().next().and_then(|volume| volume.open().ok()),
                Err(_) => None,
            };
            let read = read.map(|tree| contents(&tree)).unwrap_or_default();
            for (path, bytes) in &sound {
                let said = told.get(path).is_some_and(|file| file.is_whole);
                let shown = String::from_utf8_lossy(path);
                if said {
                    assert!(read.get(path) == Some(bytes), "{number}, {seed}: {shown}");
                }
                let is_lost = read.get(path) != Some(bytes);
                whole += usize::from(said);
                lost_files += usize::from(is_lost);
                // Nothing is lost, and all is whole that can be read.
                assert!(said || seed > 0, "{number}: {shown}: {:?}", told.get(path));
            }
            // Nothing is whole that was not there.
            for (path, file) in told.iter().filter(|(_, file)| file.is_whole) {
                let shown = String::from_utf8_lossy(path);
                assert!(sound.contains_key(path), "{number}, {seed}: {shown}: {file:?}");
            }
        }
        println!("{number}: {whole} times a file is whole, {lost_files} times one is lost");
        assert!(whole > sound.len() && lost_files > 0);
    }
}

/// The second copy of the partition table is behind the cut, and nothing depends on it.
#[test]
fn a_disk_whose_end_is_lost_has_whole_files_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    fill(&files, 9, 20 * MIB);
    let part = MIB..127 * MIB;
    let parts = std::slice::from_ref(&part);
    let Some(disk) = gpt(folder.path(), 128 * MIB, parts) else { return };
    let Some(()) = ext(&disk, &part, &[], &files) else { return };
    let mut bytes = std::fs::read(&disk).unwrap();
    let sound = contents(&images::tree(&bytes));
    // Data lies in the first part of so empty a volume, and what is behind the middle is the rest of it.
    let cut = 40 * MIB;
    bytes[cut as usize..].fill(0);
    let (mut whole, mut lost) = (0, 0);
    let ruin = images::disk(bytes);
    whole_files(&ruin, std::slice::from_ref(&(cut..128 * MIB)), &mut |file| {
        whole += usize::from(file.is_whole);
        lost += usize::from(!file.is_whole);
        assert!(!file.is_whole || sound.contains_key(&file.path), "{file:?}");
    })
    .unwrap();
    assert!(whole > sound.len() / 2, "{whole} of {} are whole, {lost} are not", sound.len());
    // With both copies lost, or the first and what it names, nothing is certain.
    for lost in [&[0..2 * MIB, 127 * MIB..128 * MIB][..], &[0..MIB, cut..128 * MIB]] {
        let _ = whole_files(&ruin, lost, &mut |file| assert!(!file.is_whole, "{file:?}"));
    }
}
