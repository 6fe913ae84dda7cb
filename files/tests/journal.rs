//! Changes that wait in the journal of ext, put there by `debugfs`.
#![allow(clippy::disallowed_methods)] // the tool works on files

use std::collections::BTreeMap;

use avhdx_testkit::rng::pattern;

use crate::images::{MIB, Model, debugfs, ext_of, tree};
use crate::trees::{assert_same, walked};

const BLOCK: usize = 1024;
/// What the journal's own blocks begin with.
const MAGIC: [u8; 4] = [0xC0, 0x3B, 0x39, 0x98];

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(seed, 0, &mut bytes);
    bytes
}

#[test]
fn what_waits_in_a_journal_is_shown() {
    let file = |seed| Model::File(bytes(seed, 3000));
    let before =
        BTreeMap::from(["one", "two", "three", "four"].map(|name| {
            (name.to_owned(), file(name.len() as u64 + u64::from(name.as_bytes()[1])))
        }));
    for features in ["64bit", "^64bit,^metadata_csum"] {
        let Some(image) = ext_of(&before, "ext4", "1024", features) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, image).unwrap();
        let place = |name: &str| {
            let said = debugfs(&path, &format!("blocks {name}\n"))?;
            let line =
                said.lines().find(|line| line.starts_with(|first: char| first.is_ascii_digit()));
            Some(line.unwrap().split(' ').next().unwrap().parse::<usize>().unwrap())
        };
        let mut escaped = bytes(2, BLOCK);
        escaped[..4].copy_from_slice(&MAGIC);
        // The newest of several versions counts, and a revoked one not at all.
        let mut commands = String::from("jo\n");
        for (name, bytes) in [
            ("one", bytes(1, BLOCK)),
            ("two", escaped.clone()),
            ("three", bytes(3, BLOCK)),
            ("one", bytes(4, BLOCK)),
        ] {
            let Some(place) = place(name) else { return };
            let new = folder.path().join(format!("new {}", commands.len()).replace(' ', "-"));
            std::fs::write(&new, bytes).unwrap();
            commands += &format!("jw -b {place} {}\n", new.display());
        }
        commands += &format!("jw -r {}\njc\n", place("three").unwrap());
        debugfs(&path, &commands);
        let mut expected = before.clone();
        for (name, new) in [("one", bytes(4, BLOCK)), ("two", escaped)] {
            let Some(Model::File(bytes)) = expected.get_mut(name) else { panic!() };
            bytes[..BLOCK].copy_from_slice(&new);
        }
        expected.insert("lost+found".into(), Model::Folder);
        let dirty = std::fs::read(&path).unwrap();
        let read = tree(&dirty);
        assert!(read.warnings()[0].contains("journal"), "{:?}", read.warnings());
        assert_same(walked(&read), &expected);
        // The tool agrees, and nothing waits behind it.
        debugfs(&path, "jr\n");
        let clean = std::fs::read(&path).unwrap();
        assert!(clean != dirty && clean.len() as u64 == 12 * MIB);
        assert!(tree(&clean).warnings().is_empty());
        assert_same(walked(&tree(&clean)), &expected);
    }
}

/// A file system that grew while it was in use has its new superblock in the journal alone.
#[test]
fn a_superblock_that_waits_in_the_journal_counts() {
    let model = BTreeMap::from([("one".to_owned(), Model::File(bytes(1, 3000)))]);
    for block in ["1024", "4096"] {
        let features = "64bit,^metadata_csum";
        let Some(image) = ext_of(&model, "ext4", block, features) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, &image).unwrap();
        let size: usize = block.parse().unwrap();
        let mut first = image[1024 / size * size..][..size].to_vec();
        first[1024 % size + 120..][..7].copy_from_slice(b"of log\0");
        let new = folder.path().join("new");
        std::fs::write(&new, &first).unwrap();
        let commands = format!("jo\njw -b {} {}\njc\n", 1024 / size, new.display());
        if debugfs(&path, &commands).is_none() {
            return;
        }
        let read = tree(&std::fs::read(&path).unwrap());
        assert_eq!(read.label(), Some("of log"));
        assert!(read.lookup(b"one").is_ok());
    }
}
