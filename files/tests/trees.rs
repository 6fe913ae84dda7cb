//! Whole trees of each file system, compared with the files that its own tools put there.

use std::collections::BTreeMap;

use avhdx_files::{ErrorKind, FileSystem, Kind, Options};

use crate::images::{self, MIB, Model, Mounted, ext_model, model, tree, tree_with};

/// Everything that a walk finds, by its path.
pub fn walked(tree: &FileSystem) -> BTreeMap<String, Model> {
    let mut found = BTreeMap::new();
    for entry in tree.walk(&tree.root().unwrap()) {
        let entry = entry.unwrap();
        let model = match entry.kind().unwrap() {
            Kind::Folder => Model::Folder,
            Kind::Link => Model::Link(String::from_utf8(tree.target(&entry).unwrap()).unwrap()),
            _ => {
                let mut file = tree.open(&entry, None).unwrap();
                assert_eq!(file.size(), entry.size());
                Model::File(file.read_to_end(64 << 20).unwrap())
            }
        };
        let path = String::from_utf8(entry.path().to_vec()).unwrap();
        assert!(found.insert(path.clone(), model).is_none(), "{path} is there twice");
    }
    found
}

/// Fails with the first difference: whole trees are too long to print.
pub fn assert_same(mut found: BTreeMap<String, Model>, expected: &BTreeMap<String, Model>) {
    for (path, model) in expected {
        let found = found.remove(path).unwrap_or_else(|| panic!("{path:?} is missing"));
        assert!(found == *model, "{path:?} differs");
    }
    assert!(found.is_empty(), "there are more: {:?}", found.keys());
}

/// Reads each file in pieces that end anywhere.
fn read_in_pieces(tree: &FileSystem, expected: &BTreeMap<String, Model>) {
    for (path, model) in expected {
        let Model::File(bytes) = model else { continue };
        let file = tree.lookup(path.as_bytes()).unwrap();
        let mut file = tree.open(&file, None).unwrap();
        for (at, len) in [(0, 1), (4095, 2), (511, 1025), (65_535, 70_000), (3, 0)] {
            let Some(part) = bytes.get(at..at + len) else { continue };
            let mut read = vec![1; len];
            file.read_at(&mut read, at as u64).unwrap();
            assert!(read == part, "{path}: {len} bytes at {at}");
        }
        let error = file.read_at(&mut [0], bytes.len() as u64).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "files.range"));
        assert_eq!(error.path(), Some(&format!("/{path}")[..]));
    }
}

#[test]
fn ext_reads_as_it_was_written() {
    for (kind, block) in [("ext2", "1024"), ("ext3", "1024"), ("ext4", "4096")] {
        let Some(image) = images::ext(kind, block) else { return };
        let tree = tree(&image);
        let mut expected = ext_model();
        expected.insert("lost+found".into(), Model::Folder);
        assert_same(walked(&tree), &expected);
        read_in_pieces(&tree, &expected);
        assert_eq!((tree.kind(), tree.label()), (kind, Some("of ext")));
        let small = tree.lookup(b"small.txt").unwrap();
        assert_eq!(small.mode(), Some(0o4751));
        assert!(tree.warnings().is_empty());
        let file = tree.open(&tree.lookup(b"holed").unwrap(), None).unwrap();
        let len = block.parse::<u64>().unwrap();
        assert_eq!(file.hole_end(20_000), 500_000 / len * len);
        assert_eq!(file.hole_end(500_001), 500_001);
        // Links lead on, within the volume, and are not followed where they are asked for.
        assert_eq!(tree.lookup(b"to small").unwrap().kind(), Some(Kind::Link));
        assert_eq!(tree.resolve(b"to small").unwrap().path(), b"small.txt");
        let through = tree.lookup(b"/to many/../to many/file number 7.dat").unwrap();
        assert_eq!((through.path(), through.size()), (&b"many/file number 7.dat"[..], 49));
        for (path, code) in [
            (&b"nowhere"[..], "files.not-found"),
            (b"in a circle", "files.link"),
            (b"SMALL.TXT", "files.not-found"),
            (b"a\\level 0", "files.not-found"),
            (b"small.txt/x", "files.not-folder"),
        ] {
            assert_eq!(tree.resolve(path).unwrap_err().code(), code, "{path:?}");
        }
    }
}

#[test]
fn fat_reads_as_it_was_written() {
    for bits in ["12", "16", "32"] {
        let Some(image) = images::fat(bits) else { return };
        let tree = tree(&image);
        assert_same(walked(&tree), &model());
        read_in_pieces(&tree, &model());
        assert_eq!(tree.kind(), format!("FAT{bits}"));
        assert_eq!((tree.label(), tree.id()), (Some("OF FAT"), Some("1234abcd")));
        for path in [
            &b"MIXED CASE.TXT"[..],
            b"MIXEDC~1.TXT",
            b"/a\\..\\Mixed Case.Txt",
            b"./mixed case.txt",
        ] {
            assert_eq!(tree.lookup(path).unwrap().path(), b"Mixed Case.Txt", "{path:?}");
        }
        let upper = tree.lookup("NAME WITH ÜNÏCODE €.TXT".as_bytes()).unwrap();
        assert_eq!(upper.name(), "name with ünïcode €.txt".as_bytes());
    }
}

#[test]
fn ntfs_reads_as_it_was_written() {
    let Some(image) = images::ntfs() else { return };
    let tree = tree(image);
    assert_same(walked(&tree), &model());
    read_in_pieces(&tree, &model());
    assert_eq!((tree.kind(), tree.label()), ("NTFS", Some("of NTFS")));
    assert!(tree.warnings().is_empty(), "{:?}", tree.warnings());
    for path in [&b"MIXED CASE.TXT"[..], b"\\a\\..\\Mixed Case.Txt", b"mixed case.txt"] {
        assert_eq!(tree.lookup(path).unwrap().path(), b"Mixed Case.Txt", "{path:?}");
    }
    let upper = tree.lookup("NAME WITH ÜNÏCODE €.TXT".as_bytes()).unwrap();
    assert_eq!(upper.name(), "name with ünïcode €.txt".as_bytes());
    // The files of the file system itself are there for who asks for them.
    assert_eq!(tree.lookup(b"$MFT").unwrap_err().code(), "files.not-found");
    let tree = tree_with(image, Options::default().system(true));
    let table = tree.lookup(b"$mft").unwrap();
    assert_eq!(table.id(), Some(0));
    let mut first = [0; 4];
    tree.open(&table, None).unwrap().read_at(&mut first, 0).unwrap();
    assert_eq!(&first, b"FILE");
    assert!(tree.lookup(b"$Extend/$Reparse").is_ok());
}

#[test]
fn other_sizes_of_sectors_and_clusters_read_the_same() {
    for (sector, cluster) in [("512", "512"), ("512", "65536"), ("4096", "4096")] {
        let Some(mounted) = Mounted::with_sectors(40 * MIB, sector, cluster) else { return };
        mounted.fill(&model());
        let image = mounted.finish();
        assert_same(walked(&tree(&image)), &model());
        read_in_pieces(&tree(&image), &model());
    }
    let Some(image) = images::fat_with(&model(), "12", "4096") else { return };
    assert_same(walked(&tree(&image)), &model());
    // So many groups that their descriptors lie in several of them.
    let groups = ["-b", "1024", "-g", "512", "-N", "384", "-O", "meta_bg,^resize_inode"];
    let Some(image) = images::ext_with(&model(), &groups) else {
        return;
    };
    let mut expected = model();
    expected.insert("lost+found".into(), Model::Folder);
    assert_same(walked(&tree(&image)), &expected);
}

#[test]
fn what_is_read_is_recorded() {
    let Some(image) = images::ntfs() else { return };
    let look = |image: &[u8]| {
        let tree = tree_with(image, Options::default().record(true));
        let file = tree.lookup(b"many/file number 250.dat").unwrap();
        let bytes = tree.open(&file, None).unwrap().read_to_end(1 << 20).unwrap();
        (bytes, tree.touched())
    };
    let (bytes, touched) = look(image);
    let sum: u64 = touched.iter().map(|range| range.end - range.start).sum();
    assert!(touched.windows(2).all(|pair| pair[0].end < pair[1].start));
    assert!(sum > 1750 && sum < images::MIB, "{sum} bytes");
    // Whatever else changes, the same calls answer the same.
    let mut changed = vec![0xA5; image.len()];
    for range in touched.iter().map(|range| range.start as usize..range.end as usize) {
        changed[range.clone()].copy_from_slice(&image[range]);
    }
    changed[..512].copy_from_slice(&image[..512]);
    assert!(look(&changed) == (bytes, touched));
}

/// Only some clusters of a file are kept in memory, and its pieces are found from them in any order.
#[test]
fn a_file_of_fat_in_thousands_of_pieces_is_read_from_anywhere() {
    let Some(mut image) = images::fat_of(&BTreeMap::new(), "16") else { return };
    let number = |at: usize| usize::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let (sector, cluster) = (number(11), number(11) * usize::from(image[13]));
    let (reserved, tables, per_table) = (number(14), usize::from(image[16]), number(22));
    let root = (reserved + tables * per_table) * sector;
    let data = root + number(17) * 32;
    // Every third cluster, backwards in the second half.
    let mut chain: Vec<usize> = (0..3500).map(|n| 2 + n * 3).collect();
    chain[1800..].reverse();
    let mut bytes = vec![0; chain.len() * cluster - 77];
    avhdx_testkit::rng::pattern(9, 0, &mut bytes);
    for (n, of) in chain.iter().enumerate() {
        let next = chain.get(n + 1).map_or(0xFFFF, |next| *next as u16).to_le_bytes();
        for table in 0..tables {
            let at = (reserved + table * per_table) * sector + 2 * of;
            image[at..at + 2].copy_from_slice(&next);
        }
        let part = &bytes[n * cluster..bytes.len().min((n + 1) * cluster)];
        image[data + (of - 2) * cluster..][..part.len()].copy_from_slice(part);
    }
    let free = (root..data).step_by(32).find(|at| image[*at] == 0).unwrap();
    image[free..free + 11].copy_from_slice(b"PIECES  BIN");
    image[free + 26..free + 28].copy_from_slice(&2_u16.to_le_bytes());
    image[free + 28..free + 32].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    let tree = tree(&image);
    let file = tree.lookup(b"pieces.bin").unwrap();
    let mut read = tree.open(&file, None).unwrap();
    assert!(read.read_to_end(1 << 30).unwrap() == bytes);
    let mut rng = avhdx_testkit::rng::Rng::new(3);
    for _ in 0..200 {
        let at = rng.below(bytes.len() as u64);
        let len = 1 + rng.below((bytes.len() as u64 - at).min(9000));
        let mut found = vec![0; len as usize];
        read.read_at(&mut found, at).unwrap();
        assert!(found == bytes[at as usize..(at + len) as usize], "{len} bytes at {at}");
    }
}
