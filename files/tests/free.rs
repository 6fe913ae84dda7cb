//! Whether free space is certain: file systems that were not closed cleanly, and bitmaps and tables that lie.
#![allow(clippy::disallowed_methods)] // the tools work on files

use std::collections::BTreeMap;

use avhdx_files::{ErrorKind, FileSystem, Volumes};
use avhdx_testkit::rng::pattern;

use crate::images::{self, MIB, Model, Mounted, debugfs, disk, ext_of, tree};

const SHADOW_ID: [u8; 16] = [
    0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52,
];

/// Space is verified as it is told, and that of no other.
fn assert_certain(tree: &FileSystem) {
    let (mut told, mut verified) = (Vec::new(), Vec::new());
    tree.check_clean().unwrap();
    let told_sum = tree.free(&mut |range| told.push(range)).unwrap();
    let verified_sum = tree.verified_free(&mut |range| verified.push(range)).unwrap();
    assert_eq!((told, told_sum), (verified, verified_sum));
}

/// The code with which space is not passed on, of a file system that is clean or not.
fn refused(image: &[u8], is_clean: bool, what: &str) -> &'static str {
    let tree = tree(image);
    let error = tree.verified_free(&mut |_| panic!("{what}: passed on")).expect_err(what);
    let kind = if is_clean { ErrorKind::Damaged } else { ErrorKind::Unclean };
    assert_eq!(error.kind(), kind, "{what}: {error}");
    assert_eq!(tree.check_clean().is_ok(), is_clean, "{what}: {error}");
    error.code()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(seed, 0, &mut bytes);
    bytes
}

/// Where these bytes lie in the image.
fn find(image: &[u8], bytes: &[u8]) -> usize {
    (0..image.len()).step_by(512).find(|at| image[*at..].starts_with(bytes)).unwrap()
}

fn number(image: &[u8], at: usize, len: usize) -> u64 {
    image[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[test]
fn space_of_clean_file_systems_is_certain() {
    let made = [
        images::ext("ext4", "4096"),
        images::ext("ext4", "1024"),
        images::ext("ext3", "1024"),
        images::ext("ext2", "1024"),
        images::ext_with(&images::ext_model(), &["-O", "^metadata_csum,uninit_bg", "-b", "1024"]),
        images::ext_with(&images::ext_model(), &["-O", "bigalloc,mmp,quota", "-b", "1024"]),
        images::ext_with(&images::ext_model(), &["-O", "orphan_file,metadata_csum_seed,ea_inode"]),
        images::fat("12"),
        images::fat("16"),
        images::fat("32"),
        images::ntfs().cloned(),
        crate::ntfs::image().map(|(image, _)| image.clone()),
    ];
    made.iter().flatten().for_each(|image| assert_certain(&tree(image)));
}

/// The first byte of each attribute of a record of NTFS, by its kind.
fn attribute(image: &[u8], record: usize, kind: u64) -> usize {
    let mut at = record + number(image, record + 20, 2) as usize;
    while number(image, at, 4) != kind {
        assert!(number(image, at, 4) != 0xFFFF_FFFF);
        at += number(image, at + 4, 4) as usize;
    }
    at
}

/// Where the data of a record of the file system itself lies, as far as its first run goes.
fn data_of_record(image: &[u8], number_of: usize) -> usize {
    let mft = number(image, 48, 8) as usize * 4096;
    let data = attribute(image, mft + number_of * 1024, 0x80);
    let run = data + number(image, data + 32, 2) as usize;
    let (of_len, of_place) = (usize::from(image[run] & 15), usize::from(image[run] >> 4));
    number(image, run + 1 + of_len, of_place) as usize * 4096
}

#[test]
fn a_bitmap_of_ntfs_that_lies_is_found() {
    let Some((image, _)) = crate::ntfs::image() else { return };
    let bitmap = data_of_record(image, 6);
    // Contents, a stream, one of many pieces, compressed bytes, and what the file system keeps itself.
    let pieces = bytes(1000 + 150, 5000);
    let places = [
        find(image, &bytes(2, 4096)),
        find(image, &bytes(3, 4096)),
        find(image, &pieces[..4096]),
        find(image, &bytes(1, 4096)[..512]),
        data_of_record(image, 0),
        data_of_record(image, 2) + 40 * 4096,
        bitmap,
        0,
    ];
    for place in places {
        let cluster = place / 4096;
        let mut lies = image.clone();
        assert!(lies[bitmap + cluster / 8] >> (cluster % 8) & 1 == 1, "{place}");
        lies[bitmap + cluster / 8] &= !(1 << (cluster % 8));
        assert_eq!(refused(&lies, true, &format!("{place}")), "ntfs.bitmap");
    }
}

#[test]
fn a_file_record_that_cannot_be_read_leaves_nothing_certain() {
    let Some((image, _)) = crate::ntfs::image() else { return };
    // Records of files, which say their own number; the first ones have copies.
    let records: Vec<usize> = (0..image.len())
        .step_by(1024)
        .filter(|at| image[*at..].starts_with(b"FILE") && image[at + 22] & 1 == 1)
        .filter(|at| number(image, at + 44, 4) >= 24)
        .collect();
    for (at, byte) in [(0, b'B'), (510, 0x77)] {
        let mut broken = image.clone();
        broken[records[0] + at] ^= byte;
        assert_eq!(refused(&broken, true, &format!("byte {at}")), "ntfs.record");
    }
    // A record that continues another one is not in use any more.
    let further = records.iter().find(|at| number(image, **at + 32, 6) != 0).unwrap();
    let mut broken = image.clone();
    broken[further + 22] &= !1;
    assert_eq!(refused(&broken, true, "a record that continues"), "ntfs.record");
}

/// Two restart pages as they are published: LSNs, clients and flags of each, of this version.
fn restart_pages(version: [u8; 4], pages: [(u64, u16, u16); 2]) -> Vec<u8> {
    let mut log = Vec::new();
    for (lsn, client, flags) in pages {
        let mut page = vec![0_u8; 4096];
        page[..4].copy_from_slice(b"RSTR");
        // Nine marks against torn writes, behind the header of 30 bytes.
        page[4..8].copy_from_slice(&[30, 0, 9, 0]);
        page[16..20].copy_from_slice(&4096_u32.to_le_bytes());
        page[20..24].copy_from_slice(&4096_u32.to_le_bytes());
        page[24..26].copy_from_slice(&48_u16.to_le_bytes());
        page[26..30].copy_from_slice(&version);
        page[48..56].copy_from_slice(&lsn.to_le_bytes());
        page[56..58].copy_from_slice(&1_u16.to_le_bytes());
        page[58..60].copy_from_slice(&0xFFFF_u16.to_le_bytes());
        page[60..62].copy_from_slice(&client.to_le_bytes());
        page[62..64].copy_from_slice(&flags.to_le_bytes());
        page[30..32].copy_from_slice(&[7, 0]);
        (0..8).for_each(|stride| page[stride * 512 + 510..][..2].copy_from_slice(&[7, 0]));
        log.extend(page);
    }
    log
}

#[test]
fn a_log_of_ntfs_in_which_changes_may_wait_is_not_clean() {
    let Some(image) = images::ntfs() else { return };
    let log = data_of_record(image, 2);
    assert!(image[log..log + 65536].iter().all(|byte| *byte == 0xFF));
    let with = |bytes: &[u8]| {
        let mut image = image.clone();
        image[log..log + bytes.len()].copy_from_slice(bytes);
        image
    };
    const WINDOWS_7: [u8; 4] = [1, 0, 1, 0];
    const WINDOWS_8: [u8; 4] = [0, 0, 2, 0];
    for version in [WINDOWS_7, WINDOWS_8] {
        // Closed: by the flag, or as nobody has anything in the log; the newer page counts.
        for pages in [
            [(9, 0, 2), (9, 0, 2)],
            [(9, 0xFFFF, 0), (9, 0xFFFF, 0)],
            [(9, 0, 0), (10, 0, 2)],
            [(10, 0, 2), (9, 0, 0)],
        ] {
            assert_certain(&tree(&with(&restart_pages(version, pages))));
        }
        for pages in [
            [(9, 0, 0), (9, 0, 0)],
            [(9, 0, 2), (10, 0, 0)],
            [(10, 0, 0), (9, 0, 2)],
            [(9, 0, 2), (9, 0, 0)],
        ] {
            let image = with(&restart_pages(version, pages));
            assert_eq!(refused(&image, false, &format!("{pages:?}")), "unclean.ntfs-log");
        }
    }
    let clean = restart_pages(WINDOWS_7, [(9, 0, 2), (9, 0, 2)]);
    let changed = |at: usize, byte: u8| {
        let mut log = clean.clone();
        log[at] = byte;
        with(&log)
    };
    // Torn, of chkdsk, of an unknown version, with something behind the beginning of an emptied log.
    for image in [changed(510, 8), changed(4096 + 1022, 8), changed(0, b'C'), changed(4096, 0)] {
        assert_eq!(refused(&image, false, "a page"), "unclean.ntfs-log");
    }
    assert_eq!(refused(&changed(28, 3), false, "version"), "unclean.ntfs-log");
    let mut touched = image.clone();
    touched[log + 100_000] = 0;
    assert_eq!(refused(&touched, false, "an emptied log"), "unclean.ntfs-log");
}

#[test]
fn a_dirty_or_hibernated_volume_of_ntfs_is_not_clean() {
    let Some(image) = images::ntfs() else { return };
    let mft = number(image, 48, 8) as usize * 4096;
    let mut dirty = image.clone();
    let information = attribute(image, mft + 3 * 1024, 0x70);
    let value = information + number(image, information + 20, 2) as usize;
    dirty[value + 10] |= 1;
    assert_eq!(refused(&dirty, false, "the flag"), "unclean.ntfs");

    for (head, is_clean) in [
        (&b"hibr"[..], false),
        (b"HIBR", false),
        (b"RSTR", false),
        (b"wake", true),
        (b"\0\0", true),
    ] {
        let Some(mounted) = Mounted::new(12 * MIB, "4096") else { return };
        let mut file = vec![0; 10_000];
        file[..head.len()].copy_from_slice(head);
        std::fs::write(mounted.at.join("hiberfil.sys"), file).unwrap();
        let image = mounted.finish();
        match is_clean {
            true => assert_certain(&tree(&image)),
            false => assert_eq!(refused(&image, false, "hibernated"), "unclean.hibernated"),
        }
    }
}

#[test]
fn a_volume_of_ntfs_with_shadow_copies_is_not_clean() {
    let Some(image) = images::ntfs() else { return };
    let with = |kind: u64, catalog: u64| {
        let mut image = image.clone();
        let free = 8 * MIB as usize;
        image[0x1E00..][..16].copy_from_slice(&SHADOW_ID);
        image[0x1E00 + 48..][..8].copy_from_slice(&catalog.to_le_bytes());
        image[free..free + 16384].fill(0);
        image[free..][..16].copy_from_slice(&SHADOW_ID);
        image[free + 20] = 2;
        image[free + 5 * 128..][..8].copy_from_slice(&kind.to_le_bytes());
        image
    };
    for (kind, catalog) in [(2, 8 * MIB), (3, 8 * MIB), (0, 4096), (0, u64::MAX - 5)] {
        let image = with(kind, catalog);
        assert_eq!(refused(&image, false, &format!("{catalog}")), "unclean.shadow-copies");
    }
    assert_certain(&tree(&with(1, 8 * MIB)));
    assert_certain(&tree(&with(2, 0)));
}

#[test]
fn a_table_of_fat_that_lies_is_found() {
    for bits in ["12", "16", "32"] {
        let Some(image) = images::fat(bits) else { return };
        let sector = number(&image, 11, 2);
        let reserved = number(&image, 14, 2) * sector;
        let per_table = match number(&image, 22, 2) {
            0 => number(&image, 36, 4),
            short => short,
        } * sector;
        let data = reserved + 2 * per_table + number(&image, 17, 2) * 32;
        let place = find(&image, &bytes(3, 512)) as u64;
        let cluster = (place - data) / (number(&image, 13, 1) * sector) + 2;
        for within in [0, 1, 5] {
            let mut lies = image.clone();
            for table in [reserved, reserved + per_table] {
                let at = |width: u64| (table + (cluster + within) * width) as usize;
                match bits {
                    "12" => {
                        let entry = cluster + within;
                        let at = (table + entry * 3 / 2) as usize;
                        let both = number(&lies, at, 2) as u16;
                        let both = if entry.is_multiple_of(2) { both & 0xF000 } else { both & 0xF };
                        lies[at..at + 2].copy_from_slice(&both.to_le_bytes());
                    }
                    "16" => lies[at(2)..at(2) + 2].fill(0),
                    _ => lies[at(4)..at(4) + 4].fill(0),
                }
            }
            assert_eq!(refused(&lies, true, &format!("FAT{bits}, {within}")), "fat.cluster");
        }
        let mut differs = image.clone();
        differs[(reserved + per_table + 60) as usize] ^= 1;
        assert_eq!(refused(&differs, true, "a copy"), "fat.copies");
        // The flags of the boot sector, and those of the table.
        let state = if bits == "32" { 65 } else { 37 };
        for bit in [1, 2] {
            let mut dirty = image.clone();
            dirty[state] |= bit;
            assert_eq!(refused(&dirty, false, "the boot sector"), "unclean.fat");
        }
        let (at, flags): (u64, &[u8]) = match bits {
            "12" => continue,
            "16" => (3, &[0x80, 0x40]),
            _ => (7, &[0x08, 0x04]),
        };
        for flag in flags {
            let mut dirty = image.clone();
            dirty[(reserved + at) as usize] &= !flag;
            assert_eq!(refused(&dirty, false, "the table"), "unclean.fat");
        }
    }
}

/// An image of ext with a few files after these commands of `debugfs`.
fn after(features: &str, commands: &str) -> Option<Vec<u8>> {
    let file = |seed, len| Model::File(bytes(seed, len));
    let mut model = BTreeMap::from([
        ("one".to_owned(), file(1, 3000)),
        ("far".into(), Model::Link("x".repeat(200))),
    ]);
    model.insert("large".into(), file(2, 900_000));
    let mut pieces = vec![0; 40 << 10];
    pieces.chunks_mut(2 << 10).for_each(|piece| piece[..1 << 10].fill(7));
    model.insert("pieces".into(), Model::File(pieces));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, ext_of(&model, "ext4", "1024", features)?).unwrap();
    debugfs(&path, commands)?;
    Some(std::fs::read(&path).unwrap())
}

#[test]
fn a_bitmap_of_ext_that_lies_is_found() {
    for features in
        ["metadata_csum", "^metadata_csum,uninit_bg", "^extent,^metadata_csum,^uninit_bg,^64bit"]
    {
        // Contents, what says where they lie, a link, a folder, the journal, and room for descriptors.
        for block in ["<12>", "large", "far", "/", "<8>", "<7>"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            let Some(image) = after(features, "") else { return };
            std::fs::write(&path, &image).unwrap();
            assert_certain(&tree(&image));
            let said = debugfs(&path, &format!("blocks {block}\n")).unwrap();
            let line = said.lines().find(|line| line.starts_with(|c: char| c.is_ascii_digit()));
            let blocks: Vec<&str> =
                line.unwrap_or_else(|| panic!("{said}")).split_whitespace().collect();
            for block in [blocks[0], blocks[blocks.len() / 2], blocks[blocks.len() - 1]] {
                let Some(image) = after(features, &format!("freeb {block}\n")) else { return };
                assert_eq!(refused(&image, true, &format!("{features}: {block}")), "ext.bitmap");
            }
        }
        // The superblock's neighbours, the bitmaps and the inodes of the first group.
        for at in [0, 4, 8] {
            let image = after(features, "").unwrap();
            let block = number(&image, 2048 + at, 4);
            let image = after(features, &format!("freeb {block}\n")).unwrap();
            assert_eq!(refused(&image, true, &format!("{features}: {at}")), "ext.bitmap");
        }
        let image = after(features, "freeb 2\n").unwrap();
        assert_eq!(refused(&image, true, features), "ext.bitmap");
        // What says where the pieces of a file lie: one line of extents is of a node.
        if !features.contains("^extent") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            std::fs::write(&path, after(features, "").unwrap()).unwrap();
            let said = debugfs(&path, "ex pieces\n").unwrap();
            let node = said.lines().find(|line| line.starts_with(" 0/ 1")).unwrap();
            let block = node.split_whitespace().rev().nth(1).unwrap();
            let image = after(features, &format!("freeb {block}\n")).unwrap();
            assert_eq!(refused(&image, true, &format!("{features}: a node")), "ext.bitmap");
        }
        // A file whose inode the bitmap calls free is one inode more than its group counts.
        let image = after(features, "freei <12>\n").unwrap();
        assert_eq!(refused(&image, true, &format!("{features}: an inode")), "ext.counts");
    }
}

/// Descriptors that a lost write left as they were before the files came: their checksums are right.
#[test]
fn old_descriptors_of_ext_leave_nothing_certain() {
    for features in
        ["metadata_csum", "^metadata_csum,uninit_bg", "^metadata_csum,^uninit_bg,^64bit,^flex_bg"]
    {
        let folder = tempfile::tempdir().unwrap();
        let [path, file] = ["image", "file"].map(|name| folder.path().join(name));
        std::fs::File::create(&path).unwrap().set_len(40 * MIB).unwrap();
        let args = ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", features];
        let args = args.map(AsRef::as_ref).into_iter().chain([path.as_os_str()]);
        let Some(()) = images::run("mkfs.ext4", &args.collect::<Vec<_>>()) else { return };
        let old = std::fs::read(&path).unwrap()[2048..3072].to_vec();
        std::fs::write(&file, bytes(1, 15 * MIB as usize)).unwrap();
        let Some(_) = debugfs(&path, &format!("write {} file\n", file.display())) else { return };
        let mut image = std::fs::read(&path).unwrap();
        assert_certain(&tree(&image));
        image[2048..3072].copy_from_slice(&old);
        // A group that has a bitmap does not match its checksum if there is one.
        let code = if features == "metadata_csum" { "ext.checksum" } else { "ext.counts" };
        assert_eq!(refused(&image, true, features), code);
    }
}

#[test]
fn counts_of_ext_that_do_not_match_leave_nothing_certain() {
    let cases = [
        ("set_bg 0 free_blocks_count 700\n", "free clusters, and its bitmap has"),
        ("set_bg 0 free_inodes_count 700\n", "free inodes, and its bitmap has"),
        ("set_bg 1 flags 1\nset_bg 1 free_inodes_count 7\n", "that were never in use"),
        ("set_bg 0 itable_unused 1525\n", "behind the"),
        ("ssv free_blocks_count 700\n", "the superblock counts 700 free blocks"),
        ("ssv free_inodes_count 700\n", "the superblock counts 700 free inodes"),
    ];
    for features in ["metadata_csum", "^metadata_csum,uninit_bg", "^metadata_csum,^uninit_bg"] {
        for (commands, message) in cases {
            if features.contains("^uninit_bg")
                && (message == "behind the" || message.contains("never"))
            {
                continue;
            }
            let sums = "set_bg 0 checksum calc\nset_bg 1 checksum calc\n";
            let Some(image) = after(features, &format!("{commands}{sums}")) else { return };
            let error = tree(&image).verified_free(&mut |_| panic!("passed on")).unwrap_err();
            assert_eq!((error.code(), error.kind()), ("ext.counts", ErrorKind::Damaged), "{error}");
            assert!(error.message().contains(message), "{features}, {commands}: {error}");
        }
    }
    // The bitmap of inodes, whose checksum its descriptor has.
    let Some(mut image) = after("metadata_csum", "") else { return };
    let bitmap = number(&image, 2048 + 4, 4) * 1024;
    image[bitmap as usize + 20] ^= 0x11;
    assert_eq!(refused(&image, true, "inodes"), "ext.checksum");
}

#[test]
fn sums_of_ext_that_do_not_match_leave_nothing_certain() {
    let Some(image) = after("metadata_csum", "") else { return };
    let (bitmap, inodes) = (number(&image, 2048, 4) * 1024, number(&image, 2048 + 8, 4) * 1024);
    let inode_len = number(&image, 1024 + 88, 2);
    for at in [1024 + 300, 2048 + 12, bitmap + 900, inodes + 11 * inode_len + 50] {
        let mut broken = image.clone();
        broken[at as usize] ^= 0x10;
        assert_eq!(refused(&broken, true, &format!("{at}")), "ext.checksum");
    }
    let Some(image) = after("^metadata_csum,uninit_bg", "") else { return };
    let mut broken = image;
    broken[2048 + 12] ^= 1;
    assert_eq!(refused(&broken, true, "CRC-16"), "ext.checksum");
}

#[test]
fn a_file_system_of_ext_that_was_not_closed_is_not_clean() {
    for (commands, code) in [
        ("feature needs_recovery\n", "unclean.ext"),
        ("ssv state 0\n", "unclean.ext"),
        ("ssv state 3\n", "unclean.ext-errors"),
        ("ssv state 5\n", "unclean.ext"),
        ("ssv last_orphan 12\n", "unclean.ext-orphans"),
        ("feature orphan_present\n", "unclean.ext-orphans"),
        ("feature shared_blocks\n", "unclean.ext-features"),
    ] {
        let Some(image) = after("metadata_csum", commands) else { return };
        assert_eq!(refused(&image, false, commands), code);
    }
    // The superblock says nothing of what its journal has.
    let Some(image) = after("^metadata_csum", "") else { return };
    let journal = (0..image.len())
        .step_by(1024)
        .find(|at| image[*at..].starts_with(&[0xC0, 0x3B, 0x39, 0x98, 0, 0, 0, 4]));
    for (at, code) in [(31, "unclean.ext"), (35, "unclean.ext-errors")] {
        let mut image = image.clone();
        image[journal.unwrap() + at] = 1;
        assert_eq!(refused(&image, false, "the journal"), code);
    }
    // Somebody has it mounted.
    let Some(image) = after("^metadata_csum,mmp", "") else { return };
    assert_certain(&tree(&image));
    let block = number(&image, 1024 + 360, 8) as usize * 1024;
    let mut mounted = image;
    mounted[block + 4] ^= 1;
    assert_eq!(refused(&mounted, false, "mounted"), "unclean.ext");
}

#[test]
fn a_volume_that_may_be_something_else_is_not_clean() {
    let Some(ext) = ext_of(&BTreeMap::new(), "ext4", "1024", "") else { return };
    let Some(fat) = images::fat("16") else { return };
    // What mkfs leaves alone: the first sector.
    let mut both = ext.clone();
    both[..512].copy_from_slice(&fat[..512]);
    assert_eq!(refused(&both, false, "two file systems"), "unclean.doubtful");
    // A partition table that was written over the whole disk's file system.
    let mut table = ext.clone();
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    table[510..512].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(refused(&table, false, "a table"), "unclean.doubtful");
    // A file system that is longer than its volume.
    assert_eq!(refused(&ext[..11 * MIB as usize], false, "cut"), "unclean.cut");

    // Partitions that share bytes with each other, or with the table.
    let gpt = "label: gpt\nstart=2048, size=24576\nstart=32768, size=8192\n";
    let Some(mut disk_of) = images::table(gpt) else { return };
    disk_of[MIB as usize..][..ext.len()].copy_from_slice(&ext);
    let check = |image: &[u8]| {
        let volumes = Volumes::of(disk(image.to_vec())).unwrap();
        let checked = volumes.select(Some("1")).unwrap().open().unwrap().check_clean();
        checked.map_err(|error| error.code())
    };
    assert_eq!(check(&disk_of), Ok(()));
    let mbr = "label: dos\nstart=2048, size=24576\n";
    let Some(mut disk_of) = images::table(mbr) else { return };
    disk_of[MIB as usize..][..ext.len()].copy_from_slice(&ext);
    assert_eq!(check(&disk_of), Ok(()));
    let second = [0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0x60, 0, 0, 0, 8, 0, 0];
    let mut overlap = disk_of.clone();
    overlap[462..478].copy_from_slice(&second);
    assert_eq!(check(&overlap), Err("unclean.doubtful"));
    // An extended partition without any others, whose table lies in the free space of the first one.
    let mut within = disk_of.clone();
    let at = (MIB + 11 * MIB) as usize;
    within[462..478].copy_from_slice(&[0, 0, 0, 0, 5, 0, 0, 0, 0, 0x60, 0, 0, 0, 8, 0, 0]);
    within[at..at + 512].fill(0);
    within[at + 510..at + 512].copy_from_slice(&[0x55, 0xAA]);
    assert_eq!(check(&within), Err("unclean.doubtful"));
    let mut on_table = ext.clone();
    on_table[..512].copy_from_slice(&disk_of[..512]);
    on_table[446 + 8..446 + 12].fill(0);
    on_table.resize(32 << 20, 0);
    let volumes = Volumes::of(disk(on_table)).unwrap();
    let error = volumes.iter().next().unwrap().open().unwrap().check_clean().unwrap_err();
    assert_eq!(error.code(), "unclean.doubtful");
}
