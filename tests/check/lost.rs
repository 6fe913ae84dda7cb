//! Tables that lost entries, and images that only look like it.

use std::sync::Arc;

use avhdx::ops::{Check, Finding, Report, Severity};
use avhdx::storage::{LocalHost, MemStorage};
use avhdx::{CreateOptions, Disk, OpenOptions, Zeroing};
use avhdx_testkit::build::{Block, Contents, Data, IS_USER, Image, Item, state};
use uuid::uuid;

use super::{MIB, codes};

fn checked(bytes: Vec<u8>) -> Report {
    Check::new().alone(true).run_file(Arc::new(MemStorage::new(bytes))).unwrap()
}

fn of_code<'a>(report: &'a Report, code: &str) -> Option<&'a Finding> {
    report.findings.iter().find(|finding| finding.code == code)
}

/// The bytes of an image with these entries of the block allocation table zeroed.
fn without(image: &Image, entries: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = image.to_bytes();
    let bat = image.layout().get("bat").start as usize;
    bytes[bat + 8 * entries.start..bat + 8 * entries.end].fill(0);
    bytes
}

/// A disk with blocks of 2 MiB, the first `data` of which hold data.
fn dynamic(blocks: u64, data: u64) -> Image {
    let mut image = Image::dynamic(blocks * 2 * MIB);
    image.block_size = 2 << 20;
    for block in 0..data {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    image
}

#[test]
fn a_fixed_disk_whose_table_is_lost_is_not_sound() {
    let mut image = Image::fixed(4 * MIB);
    for block in 0..4 {
        image.put(block, Block::full(Data::Pattern(9)));
    }
    // All entries, or one.
    for lost in [0..4, 2..3] {
        let report = checked(without(&image, lost.clone()));
        assert!(!report.is_sound(), "{lost:?}");
        let finding = of_code(&report, "bat.lost").expect("a lost table");
        assert_eq!(finding.severity, Severity::Error);
        assert_eq!(finding.offset, Some(image.layout().get("bat").start));
        let found = finding.found.as_ref().unwrap();
        let bytes = lost.len() as u64 * MIB;
        assert!(found.starts_with(&format!("{bytes} unreferenced bytes")), "{found}");
        for finding in &report.findings {
            assert!(!finding.meaning.contains("reads right"), "{finding:?}");
        }
    }
    // Blocks that were never allocated, as QEMU makes them: not reserved, but nothing is lost.
    let mut never = Image::fixed(4 * MIB);
    for block in 1..4 {
        never.put(block, Block::bare(state::ZERO));
    }
    let report = checked(never.to_bytes());
    assert!(report.is_sound(), "{:#?}", report.findings);
    assert_eq!(codes(&report, Severity::Warning), ["bat.fixed"].into());
}

#[test]
fn a_dynamic_disk_whose_table_is_lost_is_doubtful() {
    let image = dynamic(128, 40);
    // All entries, or nearly all.
    for (lost, absent) in [(0..129, 128), (0..39, 127)] {
        let report = checked(without(&image, lost.clone()));
        let finding = of_code(&report, "bat.lost").expect("a lost table");
        assert_eq!(finding.severity, Severity::Warning, "{lost:?}");
        let blocks = format!("{absent} blocks without space");
        assert!(finding.found.as_ref().unwrap().contains(&blocks), "{finding:?}");
        assert!(report.is_sound() && report.is_doubtful());
    }
    // Part of the entries.
    let image = dynamic(256, 100);
    let report = checked(without(&image, 0..64));
    let finding = of_code(&report, "bat.lost").expect("a lost table");
    assert!(
        finding.found.as_ref().unwrap().starts_with("134217728 unreferenced bytes"),
        "{finding:?}"
    );
    // The sound image has no findings.
    let report = checked(image.to_bytes());
    assert!(report.findings.is_empty() && !report.is_doubtful(), "{:#?}", report.findings);
}

#[test]
fn data_that_has_another_explanation_is_not_taken_for_a_lost_table() {
    // Data of discarded blocks, as on a host without holes.
    let storage = Arc::new(MemStorage::new(Vec::new()));
    let options = CreateOptions::dynamic(512 * MIB).block_size(2 << 20);
    let image = options.create_in(&LocalHost, storage.clone()).unwrap();
    image.write_at(&vec![5; 100 << 20], 0).unwrap();
    image.flush().unwrap();
    image.write_at(&[6; 4096], 300 * MIB).unwrap();
    image.flush().unwrap();
    image.write_zeroes(0..100 * MIB, Zeroing::MayUnmap).unwrap();
    image.close().unwrap();
    drop(image);
    let report = Check::new().run_file(storage).unwrap();
    assert_eq!(report.layers[0].leaked, Some(100 * MIB), "{:#?}", report.findings);
    assert_eq!(codes(&report, Severity::Info), ["log.old-entry", "space.leaked"].into());
    assert!(!report.is_doubtful());

    // Empty space, as from hosts and programs that grow files in advance.
    let mut ahead = dynamic(512, 3);
    ahead.file_length = Some(ahead.layout().needed_length + 200 * MIB);
    let report = checked(ahead.to_bytes());
    assert_eq!(codes(&report, Severity::Info), ["space.leaked"].into());

    // Too little data to be evidence.
    let report = checked(without(&dynamic(64, 32), 0..64));
    assert_eq!(codes(&report, Severity::Info), ["space.leaked"].into());

    // An image that is being merged frees its blocks.
    let mut merging = dynamic(256, 100);
    let mut mark = vec![1, 0, 1, 0, 1, 0, 0, 0];
    mark.extend([7; 16]);
    mark.push(b'p');
    let id = uuid!("917330e3-c6a3-4d5f-913e-f0fa001aaec7");
    merging.metadata.items.push(Item::new("merge", id, IS_USER, Contents::Bytes(mark)));
    let report = checked(without(&merging, 0..128));
    assert_eq!(codes(&report, Severity::Info), ["merge.unfinished", "space.leaked"].into());
}

#[test]
fn leaked_space_is_reported_to_the_byte() {
    for more in [1, 512, MIB - 1, MIB, MIB + 1] {
        let mut image = dynamic(8, 1);
        image.file_length = Some(image.layout().needed_length + more);
        let report = checked(image.to_bytes());
        assert_eq!(report.layers[0].leaked, Some(more));
        let found = of_code(&report, "space.leaked").unwrap().found.clone().unwrap();
        assert!(found.starts_with(&format!("{more} bytes in total")), "{found}");
    }
}

#[test]
fn sector_bitmap_entries_without_a_parent_are_strays() {
    let storage = |image: &Image| Arc::new(MemStorage::new(image.to_bytes()));
    for entry in [6, 6 | 1 << 50, 3 << 20 | 6, 4 << 20 | 6, 5, 1 << 20 | 2] {
        let mut image = Image::dynamic(4 * MIB);
        image.put(0, Block::full(Data::Pattern(1)));
        image.bat_override.insert(image.bitmap_index(0), entry);
        let report = Check::new().run_file(storage(&image)).unwrap();
        assert!(report.is_sound() && !report.is_doubtful(), "{entry:#x}: {:#?}", report.findings);
        assert_eq!(codes(&report, Severity::Warning), ["bat.bitmap-unexpected"].into());
        let options = OpenOptions::new();
        let disk = options.open_file(storage(&image)).unwrap();
        let mut read = vec![0; 4 << 20];
        disk.read_at(&mut read, 0).unwrap();
        assert!(read == image.flat(None), "{entry:#x}");
    }
}
