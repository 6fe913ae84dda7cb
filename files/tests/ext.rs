//! What only ext has: space without bytes, names of one inode, and folders that damage puts into each other.
#![allow(clippy::disallowed_methods)] // the tool works on files

use std::collections::BTreeMap;

use avhdx_files::ErrorKind;

use crate::images::debugfs;
use crate::images::{MIB, Model, ext_of, tree};

/// An image of ext4 after these commands, with the files `one` and `d/two`.
fn after(commands: &str) -> Option<(Vec<u8>, String)> {
    let file = || Model::File(vec![7; 3000]);
    let model = BTreeMap::from([
        ("one".into(), file()),
        ("d".into(), Model::Folder),
        ("d/two".into(), file()),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, ext_of(&model, "ext4", "1024", "^metadata_csum")?).unwrap();
    let said = debugfs(&path, commands)?;
    Some((std::fs::read(&path).unwrap(), said))
}

#[test]
fn space_without_bytes_reads_as_zeros() {
    let commands = "fallocate one 3 9\nsif one size 9000\nblocks one\n";
    let Some((mut image, said)) = after(commands) else { return };
    let blocks = said.lines().find(|line| line.starts_with(|first: char| first.is_ascii_digit()));
    let blocks: Vec<usize> =
        blocks.unwrap().split_whitespace().map(|block| block.parse().unwrap()).collect();
    assert_eq!(blocks.len(), 10, "{said}");
    for block in &blocks[3..] {
        image[block * 1024..][..1024].fill(0xAA);
    }
    let tree = tree(&image);
    let file = tree.lookup(b"one").unwrap();
    let read = tree.open(&file, None).unwrap().read_to_end(MIB).unwrap();
    assert_eq!(read[..3000], [7; 3000]);
    assert_eq!(read[3072..], [0; 9000 - 3072]);
}

#[test]
fn names_of_one_file_have_one_number() {
    let Some((image, _)) = after("ln one d/other\nsif one links_count 2\n") else { return };
    let tree = tree(&image);
    let (one, other) = (tree.lookup(b"one").unwrap(), tree.lookup(b"d/other").unwrap());
    assert_eq!((one.id(), one.links()), (other.id(), Some(2)));
    assert!(one.id() != tree.lookup(b"d/two").unwrap().id());
}

#[test]
fn a_folder_within_itself_is_told_and_the_rest_is_listed() {
    for commands in ["ln d d/again\n", "ln / d/top\n", "mkdir e\nln e d/e\n"] {
        let Some((image, _)) = after(commands) else { return };
        let tree = tree(&image);
        let (found, failed): (Vec<_>, Vec<_>) =
            tree.walk(&tree.root().unwrap()).partition(Result::is_ok);
        let [Err(error)] = &failed[..] else { panic!("{commands}: {failed:?}") };
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "files.loop"));
        let found: Vec<_> = found.into_iter().map(|entry| entry.unwrap().path().to_vec()).collect();
        for path in [&b"one"[..], b"d/two"] {
            assert!(found.iter().any(|found| found == path), "{commands}");
        }
    }
}
