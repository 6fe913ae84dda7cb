//! Large disks with little in them.

use std::fs;
use std::time::Instant;

use avhdx::ops::Checkpoint;
use avhdx::{CreateOptions, Disk, OpenOptions};
use avhdx_seals::{Outcome, Seal, Verify};
use avhdx_testkit::rng::Rng;

use crate::common::{codes, long, open, patch, seal_of};

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

#[test]
fn another_checkpoint_of_a_deep_chain_reads_what_is_new_alone() {
    let (layers, size) = if long() { (64, 1 << 30) } else { (12, 192 << 20) };
    let part: u64 = size / 2 / layers;
    let folder = tempfile::tempdir().unwrap();
    let path = |n: u64| folder.path().join(format!("l{n}.vhdx"));
    let mut rng = Rng::new(64);
    let mut bytes = vec![0; part as usize];
    CreateOptions::dynamic(size).create(path(0)).unwrap().close().unwrap();
    // Each layer has its part of half the disk, and a little of another's.
    let mut grow = |n: u64| {
        let chain = OpenOptions::new().writable(true).open(path(n)).unwrap();
        rng.fill(&mut bytes);
        chain.write_at(&bytes, n % layers * 2 * part).unwrap();
        chain.write_at(&bytes[..8192], n * 7919 * 4096 % (size - 8192)).unwrap();
        Checkpoint::new().path(path(n + 1)).run(&chain).unwrap();
        chain.close().unwrap();
    };
    (0..layers).for_each(&mut grow);
    let seal = |n: u64| {
        let chain = open(&path(n));
        let start = Instant::now();
        let sealed = Seal::new().run(&chain).unwrap();
        let read: u64 = sealed.layers.iter().map(|layer| layer.read).sum();
        (read, start.elapsed(), sealed)
    };
    let (first, first_time, sealed) = seal(layers);
    assert!(sealed.layers.iter().all(|layer| layer.outcome == Outcome::Written));
    // The base has no map of its blocks of 32 MiB: it answers for all of them.
    let most = layers * (part + (128 << 10)) + (64 << 20);
    assert!((layers * part..most).contains(&first), "{first}");
    grow(layers);
    let (next, next_time, sealed) = seal(layers + 1);
    let written = sealed.layers.iter().filter(|layer| layer.outcome == Outcome::Written);
    // The tip was sealed while it was empty, then written to; the new tip is empty.
    assert_eq!(written.count(), 2);
    assert!((part..part + (128 << 10)).contains(&next), "{next}");
    let start = Instant::now();
    let verified = Verify::new().run(&open(&path(layers + 1))).unwrap();
    assert!(verified.is_whole());
    let seals = (0..=layers + 1).map(|n| fs::metadata(seal_of(&path(n))).unwrap().len());
    println!(
        "{layers} layers: {first} bytes in {first_time:?}; after another: {next} in {next_time:?}; verified in {:?}; \
         seals of {} bytes",
        start.elapsed(),
        seals.sum::<u64>()
    );
}
