//! Where files lie, by where their bytes are found in the volume.

use avhdx_files::{Entry, FileSystem, Kind};

use crate::images::{self, Model, model, tree};

/// The place of these bytes among the sectors of the volume, if it is the only one.
fn only_place(volume: &[u8], bytes: &[u8]) -> Option<u64> {
    let mut places = (0..volume.len()).step_by(512).filter(|at| volume[*at..].starts_with(bytes));
    let place = places.next()?;
    places.next().is_none().then_some(place as u64)
}

fn who_lies_at(tree: &FileSystem, files: &[Entry], at: u64) -> Vec<String> {
    let lies = |file: &&Entry| {
        // Ranges beside it say nothing.
        let ranges = [0..0, at..at + 1, u64::MAX - 1..u64::MAX];
        tree.lies_in(file, None, &ranges).unwrap()
    };
    let path = |file: &Entry| String::from_utf8(file.path().to_vec()).unwrap();
    files.iter().filter(lies).map(path).collect()
}

#[test]
fn a_file_lies_where_its_bytes_are() {
    let volumes = [
        ("FAT16", images::fat("16")),
        ("ext4", images::ext("ext4", "1024")),
        ("ext2", images::ext("ext2", "4096")),
        ("NTFS", images::ntfs().cloned()),
    ];
    for (kind, volume) in volumes {
        let Some(volume) = volume else { continue };
        let tree = tree(&volume);
        let root = tree.root().unwrap();
        let all = tree.walk(&root).map(|entry| entry.unwrap());
        let files: Vec<Entry> = all.filter(|entry| entry.kind() == Some(Kind::File)).collect();
        let mut found = 0;
        for (path, model) in model().into_iter().step_by(7) {
            let Model::File(bytes) = model else { continue };
            if bytes.len() < 1500 {
                continue;
            }
            // The first sector, and one in the middle.
            for from in [0, bytes.len() / 2 / 512 * 512] {
                let end = bytes.len().min(from + 512);
                let Some(at) = only_place(&volume, &bytes[from..end]) else { continue };
                found += 1;
                assert_eq!(who_lies_at(&tree, &files, at), [path.as_str()], "{kind}: {path}");
            }
        }
        assert!(found > 5, "{kind}: {found}");
        assert!(who_lies_at(&tree, &files, 0).is_empty(), "{kind}: the first sector is no file's");
    }
}
