//! Large disks with little in them.

use std::fs;
use std::time::Instant;

use avhdx::{CreateOptions, Disk, OpenOptions};
use avhdx_seals::{Seal, Verify};

use crate::common::{codes, open, patch, seal_of};

#[test]
fn an_empty_disk_of_64_tib_is_sealed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.vhdx");
    let image = CreateOptions::dynamic(64 << 40).create(&base).unwrap();
    image.close().unwrap();
    drop(image);
    let start = Instant::now();
    let sealed = Seal::new().run(&open(&base)).unwrap();
    assert_eq!(sealed.layers[0].read, 0);
    assert_eq!(fs::metadata(seal_of(&base)).unwrap().len(), 256);
    assert!(Verify::new().run(&open(&base)).unwrap().is_whole());
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());

    // With a little data near both ends.
    let image = OpenOptions::new().writable(true).open(&base).unwrap();
    image.write_at(b"first", 5 << 20).unwrap();
    image.write_at(b"last", (64 << 40) - 4096).unwrap();
    image.close().unwrap();
    drop(image);
    let sealed = Seal::new().run(&open(&base)).unwrap();
    assert!(sealed.layers[0].read <= 128 << 20, "{}", sealed.layers[0].read);
    assert!(fs::metadata(seal_of(&base)).unwrap().len() < 256 << 10);
    let range = (64 << 40) - 4096..64 << 40;
    let near = Verify::new().range(range.clone()).run(&open(&base)).unwrap();
    assert!(near.is_whole());
    assert!(near.layers[0].read <= 65536);

    // A damaged page is named with the range that it is about, and nothing beside it is.
    let seal = seal_of(&base);
    patch(&seal, |bytes| bytes[256 + 40] ^= 1);
    let first = Verify::new().range(5 << 20..6 << 20).run(&open(&base)).unwrap();
    assert_eq!(codes(&first), ["seal.damaged"]);
    assert_eq!(first.findings[0].offset, Some(256));
    assert!(Verify::new().range(range).run(&open(&base)).unwrap().is_whole());
}
