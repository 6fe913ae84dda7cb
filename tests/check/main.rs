//! Checks of images by other writers, of sound images, and of images with one corruption.
#![allow(clippy::disallowed_methods)]

mod corruptions;
mod counting;
mod lost;
mod repair;
mod repairs;

use std::collections::BTreeSet;
use std::sync::Arc;

use avhdx::ops::{Check, Report, Severity};
use avhdx::storage::{Access, Host, LocalHost, MemStorage};
use avhdx::{CreateOptions, Disk, ErrorKind, OpenOptions, Zeroing};
use avhdx_testkit::build::{Block, Data, Image, random_chain, state, write_chain};
use avhdx_testkit::images::{image, unpack_tree};
use avhdx_testkit::qemu::Qemu;
use avhdx_testkit::rng::Rng;
use corruptions::{Start, checked, corruptions};
use counting::Counting;

const MIB: u64 = 1 << 20;

/// The codes of findings with at least this severity.
fn codes(report: &Report, least: Severity) -> BTreeSet<&'static str> {
    report.findings.iter().filter(|f| f.severity <= least).map(|f| f.code).collect()
}

#[track_caller]
fn assert_no_error(report: &Report, what: &dyn std::fmt::Debug) {
    assert!(report.is_sound(), "{what:?}: {:#?}", report.findings);
}

#[test]
fn images_of_other_writers_have_no_error() {
    let Some(chains) = image("chains") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut seen = BTreeSet::new();
    for path in unpack_tree(&chains, folder.path()) {
        let report = Check::new().run(&path).unwrap();
        assert_no_error(&report, &path);
        seen.extend(codes(&report, Severity::Info));
    }
    // DiscUtils gives every child its own virtual disk ID and keeps the offsets of zeroed blocks.
    let expected = ["bat.idle-place", "bitmap.full", "bitmap.stray", "chain.disk-id"];
    assert_eq!(seen, expected.into());

    for (name, expected) in [("dirty-log", "log.pending"), ("swap", "log.old-entry")] {
        let Some(packed) = image(&format!("hyperv/{name}.vhdx.gz")) else { continue };
        let path = folder.path().join(name);
        avhdx_testkit::images::gunzip(&packed, &path);
        let report = Check::new().run(&path).unwrap();
        assert_eq!(codes(&report, Severity::Info), [expected].into(), "{name}");
        assert_no_error(&report, &name);
    }
}

#[test]
fn images_of_qemu_have_no_error() {
    let Some(qemu) = Qemu::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    for subformat in ["dynamic", "fixed"] {
        for block in ["1048576", "8388608", "33554432"] {
            for size in [40 * MIB, 33 * MIB + 512] {
                let path = folder.path().join("disk.vhdx");
                qemu.create(&path, size, &[("subformat", subformat), ("block_size", block)]);
                qemu.io(
                    &path,
                    &["write -P 7 3M 2M", "write -P 9 32M 64k", "flush", "write -z 0 1M"],
                );
                let report = Check::new().run(&path).unwrap();
                assert_no_error(&report, &(subformat, block, size));
                // QEMU marks no region as required, leaves the blocks of a fixed disk in state ZERO until
                // they are written, and does not round the length of its file.
                let known = ["bat.fixed", "file.length", "region.flags"];
                let known = if subformat == "fixed" { &known[..] } else { &known[2..] };
                let found = codes(&report, Severity::Warning);
                assert!(found.iter().all(|code| known.contains(code)), "{:#?}", report.findings);
                std::fs::remove_file(&path).unwrap();
            }
        }
    }
}

#[test]
fn random_chains_have_no_error() {
    for seed in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let layers = 1 + seed as usize % 4;
        let paths = write_chain(folder.path(), &random_chain(seed, layers));
        let report = Check::new().run(&paths[layers - 1]).unwrap();
        assert_no_error(&report, &seed);
        assert_eq!(report.layers.len(), layers, "{seed}");
        let alone = Check::new().alone(true).run(&paths[layers - 1]).unwrap();
        assert_no_error(&alone, &seed);
        assert_eq!(alone.layers.len(), 1);
    }
}

#[test]
fn images_of_this_crate_have_nothing_to_report() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(9);
    for (sector, block, fixed) in
        [(512, MIB, false), (4096, 2 * MIB, false), (512, 32 * MIB, false), (512, 2 * MIB, true)]
    {
        let (base, child) = (folder.path().join("base.vhdx"), folder.path().join("child.vhdx"));
        let size = 40 * MIB + 4096;
        let options = if fixed { CreateOptions::fixed(size) } else { CreateOptions::dynamic(size) };
        let options = options.block_size(block as u32).logical_sector(sector);
        // The previous iteration left a child beside the base.
        let options = options.overwrite(true).orphan_children(true);
        let empty = options.create(&base).unwrap();
        empty.close().unwrap();
        drop(empty);
        let report = Check::new().run(&base).unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        assert_eq!(report.layers[0].leaked, Some(0));

        let image = OpenOptions::new().writable(true).orphan_children(true).open(&base).unwrap();
        let mut write = |image: &dyn Disk| {
            for _ in 0..20 {
                let at = rng.below(size - 100_000);
                image.write_at(&vec![5; 1 + rng.below(90_000) as usize], at).unwrap();
            }
            image.write_zeroes(0..3 * MIB, Zeroing::MayUnmap).unwrap();
        };
        write(&image);
        image.close().unwrap();
        CreateOptions::child_of(&image.tip()).unwrap().overwrite(true).create(&child).unwrap();
        drop(image);
        let tip = OpenOptions::new().writable(true).open(&child).unwrap();
        write(&tip);
        tip.flush().unwrap();
        tip.close().unwrap();
        drop(tip);
        let report = Check::new().run(&child).unwrap();
        assert_no_error(&report, &(sector, block, fixed));
        assert!(codes(&report, Severity::Warning).is_empty(), "{:#?}", report.findings);
        assert_eq!(report.layers.len(), 2);
        let allocated = report.layers.iter().map(|layer| layer.allocated_blocks.unwrap());
        assert!(allocated.sum::<u64>() > 0);
    }
}

#[test]
fn each_single_corruption_is_found_by_its_codes() {
    for from in [Start::Dynamic, Start::Fixed, Start::Child, Start::Dirty] {
        let twin = checked(from, None);
        assert!(codes(&twin, Severity::Warning).is_empty(), "{from:?}: {:#?}", twin.findings);
    }
    let mut all = corruptions();
    all.extend(repairs::more());
    assert!(all.len() >= 30);
    let mut wrong = Vec::new();
    for (what, from, change, expected) in &all {
        let report = checked(*from, Some(change));
        let told = report.findings.iter().filter(|finding| finding.severity <= Severity::Warning);
        let found: BTreeSet<String> = told
            .map(|finding| match finding.severity {
                Severity::Error => finding.code.to_owned(),
                _ => format!("~{}", finding.code),
            })
            .collect();
        if found != expected.iter().map(|code| (*code).to_owned()).collect() {
            wrong.push(format!("{what}: found {found:?}, expected {expected:?}"));
        }
        for finding in &report.findings {
            assert!(!finding.meaning.starts_with("The host or another"), "{finding:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_disk_of_64_tib_costs_its_table_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.vhdx");
    let mut image = Image::dynamic(64 << 40);
    for i in 0..2000 {
        image.put(i * 33_000, Block::full(Data::Zeros));
    }
    let layout = image.write_to(&path);
    let storage = Arc::new(Counting::new(LocalHost.open(&path, Access::Read).unwrap()));
    let report = Check::new().run_file(storage.clone()).unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.layers[0].allocated_blocks, Some(2000));
    let table = layout.get("bat");
    let table = table.end - table.start;
    assert!(table >= 512 * MIB);
    let (reads, bytes) = storage.counts();
    assert!(bytes < table + 8 * MIB, "{bytes} bytes");
    assert!(reads < table / MIB + 64, "{reads} reads");

    // A second block at the offset of another is found among them, and both are named.
    let place = layout.payload[&(1000 * 33_000)];
    image.bat_override.insert(image.bat_index(60_000_000), place | 6);
    image.write_to(&path);
    let report = Check::new().run(&path).unwrap();
    assert_eq!(codes(&report, Severity::Info), ["bat.duplicate"].into());
    let finding = &report.findings[0];
    let at = layout.payload_entry(60_000_000).start;
    assert_eq!(finding.offset, Some(at));
    assert!(finding.found.as_ref().unwrap().contains("block 60000000 at"), "{finding:?}");
    assert!(finding.expected.as_ref().unwrap().contains("block 33000000 has it"), "{finding:?}");
}

#[test]
fn space_that_nothing_names_is_counted() {
    let mut image = Image::dynamic(8 * MIB);
    image.gap = 3 * MIB;
    image.put(0, Block::full(Data::Zeros));
    image.put(5, Block::full(Data::Zeros));
    let report = Check::new().run_file(Arc::new(MemStorage::new(image.to_bytes()))).unwrap();
    assert_eq!(codes(&report, Severity::Info), ["space.leaked"].into());
    assert_eq!(report.layers[0].leaked, Some(6 * MIB));
    assert_eq!(report.findings[0].offset, Some(4 * MIB));

    // Space at an offset that an entry keeps without using it is not reported as leaked.
    image.gap = 0;
    image.put(5, Block::full(Data::Zeros).with_state(state::ZERO));
    let report = Check::new().run_file(Arc::new(MemStorage::new(image.to_bytes()))).unwrap();
    assert_eq!(codes(&report, Severity::Info), ["bat.idle-place"].into());
    assert_eq!(report.layers[0].leaked, Some(0));
}

#[test]
fn both_blocks_of_one_place_are_named() {
    let mut image = Image::dynamic(8 * MIB);
    image.put(3, Block::full(Data::Zeros).with_state(state::UNMAPPED));
    let place = image.layout().payload[&3];
    image.bat_override.insert(6, place | 6);
    let report = Check::new().run_file(Arc::new(MemStorage::new(image.to_bytes()))).unwrap();
    assert_eq!(codes(&report, Severity::Info), ["bat.duplicate"].into());
    let finding = &report.findings[0];
    assert!(finding.found.as_ref().unwrap().starts_with("block 6 at"), "{finding:?}");
    assert!(finding.expected.as_ref().unwrap().ends_with("block 3 has it"), "{finding:?}");
}

#[test]
fn only_sectors_of_the_disk_make_a_block_full() {
    // The last block of 2 MiB has 1021 sectors on the disk.
    let mut image = Start::Child.image();
    image.size = 6 * MIB + 1021 * 512;
    for (set, expected) in [(1021, true), (1020, false), (4096, true), (1016, false)] {
        image.put(3, Block::partial(Data::Pattern(1), vec![true; set]));
        let storage = Arc::new(MemStorage::new(image.to_bytes()));
        let report = Check::new().alone(true).run_file(storage).unwrap();
        assert_eq!(codes(&report, Severity::Info).contains("bitmap.full"), expected, "{set}");
    }
}

#[test]
fn sector_bitmaps_are_held_against_states() {
    let mut image = Start::Child.image();
    image.put(0, Block::partial(Data::Pattern(1), vec![true; 4096]));
    image.put(1, Block::partial(Data::Pattern(1), vec![false; 4096]));
    let mut full = Block::full(Data::Pattern(1));
    full.bitmap = vec![true; 9];
    image.put(2, full);
    let storage = Arc::new(MemStorage::new(image.to_bytes()));
    let report = Check::new().alone(true).run_file(storage).unwrap();
    let bits = image.layout().bitmaps[&0];
    let found = |code| report.findings.iter().find(|f| f.code == code).unwrap().offset;
    assert_eq!(
        codes(&report, Severity::Info),
        ["bitmap.empty", "bitmap.full", "bitmap.hidden", "bitmap.stray"].into()
    );
    assert_eq!(found("bitmap.full"), Some(bits));
    assert_eq!(found("bitmap.empty"), Some(bits + 512));
    assert_eq!(found("bitmap.hidden"), Some(bits + 512));
    assert_eq!(found("bitmap.stray"), Some(bits + 1024));
}

#[test]
fn remarks_are_reported_although_no_rule_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let base = Image::dynamic(4 * MIB);
    let mut child = base.new_child();
    child.size += MIB;
    child.physical_sector = 512;
    child.locator.set("parent_linkage2", "{12345678-1234-1234-1234-123456789abc}");
    let paths = write_chain(folder.path(), &[base, child]);
    std::fs::write(folder.path().join("l1.vhdx.rct"), b"").unwrap();
    std::fs::create_dir(folder.path().join("moved")).unwrap();
    let moved = folder.path().join("moved/l0.vhdx");
    std::fs::rename(&paths[0], &moved).unwrap();
    let options = OpenOptions::new().parents(avhdx::PathSource::new().file(&moved));
    let report = Check::new().options(options).run(&paths[1]).unwrap();
    let expected = [
        "chain.physical-sector",
        "chain.size",
        "image.tracker",
        "locator.linkage2",
        "parent.stale-path",
    ];
    assert_eq!(codes(&report, Severity::Info), expected.into(), "{:#?}", report.findings);
    assert!(codes(&report, Severity::Warning).is_empty());

    let mut nil = Image::dynamic(MIB);
    nil.set_data_write_guid(uuid::Uuid::nil());
    let report = Check::new().run_file(Arc::new(MemStorage::new(nil.to_bytes()))).unwrap();
    assert_eq!(codes(&report, Severity::Info), ["header.data-write-guid"].into());
}

#[test]
fn only_files_that_are_not_images_are_refused() {
    for bytes in [Vec::new(), vec![0; 3 << 20], b"conectix".repeat(1 << 18), vec![7; 600]] {
        let error = Check::new().run_file(Arc::new(MemStorage::new(bytes))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotVhdx);
    }
    let whole = Start::Child.image().to_bytes();
    for len in [600, 70 << 10, 140 << 10, 200 << 10, 300 << 10, 1 << 20, 3 << 20, 4 << 20] {
        let cut = whole[..len].to_vec();
        let report = Check::new().alone(true).run_file(Arc::new(MemStorage::new(cut))).unwrap();
        assert!(!report.is_sound(), "{len}");
    }
}
