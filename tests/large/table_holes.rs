//! Tables that are mostly holes of their file: what is there is found, and holes are passed over.

use std::collections::BTreeSet;
use std::path::Path;

use avhdx::ops::{Checkpoint, Measure};
use avhdx::{CreateOptions, Disk, DiskExt, OpenOptions, Source};
use avhdx_testkit::rng::Rng;

const MIB: u64 = 1 << 20;
/// On a disk of 64 TiB.
const BLOCKS: u64 = 64 << 20;
/// On one of 1 TiB.
const FEWER: u64 = 1 << 20;

/// Blocks far apart and in groups, and those at the edges of the disk, of chunks and of pages of the table.
fn blocks(seed: u64, of: u64) -> BTreeSet<u64> {
    let mut rng = Rng::new(seed);
    let mut blocks = BTreeSet::from([0, of - 1, 4095, 4096, 511, 512, 513, 8191]);
    for _ in 0..40 {
        let at = rng.below(of - 8);
        blocks.extend(at..=at + rng.below(4));
        // Where a chunk of sector bitmaps begins: its entry lies between those of blocks.
        blocks.insert(at / 4096 * 4096);
        // Alone, as the first entry of a page: 4096 blocks share an entry for their bitmap.
        let chunk = rng.below(of / 4096);
        blocks.insert(chunk * 4096 + (512 - chunk * 4097 % 512) % 512);
    }
    blocks
}

/// The blocks in which the disk lists data of its own, and how many extents it lists.
fn listed(disk: &dyn Disk) -> (BTreeSet<u64>, usize) {
    let (mut found, mut extents) = (BTreeSet::new(), 0);
    let mut end = 0;
    for extent in disk.extents(0..disk.geometry().size) {
        let extent = extent.unwrap();
        assert_eq!(extent.range.start, end, "extents follow each other");
        end = extent.range.end;
        extents += 1;
        if let Source::Data { .. } = extent.source {
            found.extend(extent.range.start / MIB..extent.range.end.div_ceil(MIB));
        }
    }
    assert_eq!(end, disk.geometry().size);
    (found, extents)
}

fn write(path: &Path, blocks: &BTreeSet<u64>) {
    let chain = OpenOptions::new().writable(true).open(path).unwrap();
    for block in blocks {
        chain.write_at(&[1; 4096], block * MIB).unwrap();
    }
    chain.close().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn blocks_behind_holes_of_the_table_are_found_without_reading_the_holes() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.vhdx");
    drop(CreateOptions::dynamic(BLOCKS * MIB).block_size(1 << 20).create(&base).unwrap());
    let (below, above) = (blocks(1, BLOCKS), blocks(2, BLOCKS));
    write(&base, &below);
    let chain = OpenOptions::new().writable(true).open(&base).unwrap();
    let made = Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
    chain.close().unwrap();
    drop(chain);
    write(&made.path, &above);

    let chain = OpenOptions::new().open(&made.path).unwrap();
    let (found, extents) = listed(&chain);
    let all: BTreeSet<u64> = below.union(&above).copied().collect();
    assert_eq!(found, all);
    assert!(extents < 10 * all.len(), "{extents}");
    // A page of either table for each group of blocks, and those that a look ahead passes: not the 262,144 pages of both.
    let loads = chain.counters().table_loads;
    assert!(loads < 8000, "{loads} pages were read");
    for (layer, expected) in chain.layers().iter().zip([&above, &below]) {
        let image = chain.image(layer.id).unwrap();
        assert_eq!(listed(&*image).0, *expected, "{}", layer.name);
    }
    let measured = Measure::vhdx(1 << 20).run(&chain).unwrap();
    let empty = Measure::vhdx(1 << 20).run(&OpenOptions::new().open(&base).unwrap()).unwrap();
    assert_eq!(
        measured.required - empty.required,
        (all.len() - below.len()) as u64 * MIB,
        "each block counts once"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_writer_has_not_written_to_its_table_yet_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.vhdx");
    drop(CreateOptions::dynamic(FEWER * MIB).block_size(1 << 20).create(&path).unwrap());
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    let blocks = blocks(3, FEWER);
    for block in &blocks {
        chain.write_at(&[1; 512], block * MIB).unwrap();
    }
    assert_eq!(listed(&chain).0, blocks);
    chain.flush().unwrap();
    assert_eq!(listed(&chain).0, blocks, "pages wait in the log");
    std::mem::forget(chain);
    // A log that is pending covers the table.
    let copy = folder.path().join("copy.vhdx");
    std::fs::copy(&path, &copy).unwrap();
    assert_eq!(listed(&OpenOptions::new().open(&copy).unwrap()).0, blocks);
}
