//! Chains from the testkit's builder, shaped like those of other writers and like edge cases of the specification,
//! compared with the naive reader.

use std::path::PathBuf;

use avhdx::{DiffChain, Disk, DiskExt, ErrorKind, OpenOptions, Source, VhdxFile};
use avhdx_testkit::build::{
    Block, Checksum, Contents, Data, IS_REQUIRED, IS_USER, Image, Item, Order, RegionEntry, braced,
    state, write_chain,
};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::rng::pattern;
use proptest::prelude::*;
use uuid::Uuid;

use crate::common::disk::{extents_name_the_bytes, keeps_its_bounds, reads_as, tiles};
use crate::common::oracle::{agrees, extents_agree, ids};
use crate::common::{GIB, MIB, in_memory, memory, open_images, open_stack};

const STRANGER: Uuid = Uuid::from_u128(0x5757_0000_0000_4000_8000_0000_0000_0001);

/// A base of `mib` blocks of 1 MiB, all fully present.
fn full_base(mib: u64) -> Image {
    let mut base = Image::dynamic(mib * MIB);
    (0..mib).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(100 + b))));
    base
}

fn refused(images: &[Image]) -> avhdx::Error {
    open_images(OpenOptions::new(), images).expect_err("a chain to be refused")
}

/// The sector at `offset` in the pattern of this seed.
fn sector_of(seed: u64, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    pattern(seed, offset, &mut bytes);
    bytes
}

fn sector_at(disk: &dyn Disk, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0xAA; 512];
    disk.read_at(&mut bytes, offset).unwrap();
    bytes
}

/// Writes the chain to a folder and opens its tip and the naive reader on the same files.
fn on_disk(images: &[Image]) -> (tempfile::TempDir, Vec<PathBuf>, DiffChain, Chain) {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), images);
    let chain = DiffChain::open(&paths[paths.len() - 1]).unwrap();
    let naive = Chain::open(&paths).unwrap();
    (folder, paths, chain, naive)
}

/// What a short middle layer cuts off never shows through from below it.
#[test]
fn layers_of_10_5_and_10_gib() {
    let mut base = Image::dynamic(10 * GIB);
    for gib in 0..10 {
        base.put(gib << 10, Block::full(Data::Pattern(gib)));
        base.put((gib << 10) + 1023, Block::full(Data::Pattern(100 + gib)));
    }
    let mut mid = base.new_child();
    mid.size = 5 * GIB;
    mid.put(1024, Block::partial_runs(Data::Pattern(200), &[(3, 2), (2047, 1)]));
    mid.put(5119, Block::partial_runs(Data::Pattern(201), &[(2047, 1)]));
    let mut tip = mid.new_child();
    tip.size = 10 * GIB;
    tip.put(2048, Block::bare(state::ZERO));
    tip.put(7 << 10, Block::partial_runs(Data::Pattern(300), &[(8, 8)]));
    tip.put(10239, Block::partial_runs(Data::Pattern(301), &[(2047, 1)]));

    let (_folder, _, chain, naive) = on_disk(&[base, mid, tip]);
    assert_eq!(chain.geometry().size, 10 * GIB);
    assert_eq!(sector_at(&chain, 0), sector_of(0, 0));
    assert_eq!(sector_at(&chain, GIB + 3 * 512), sector_of(200, GIB + 3 * 512));
    assert_eq!(sector_at(&chain, GIB + 5 * 512), sector_of(1, GIB + 5 * 512));
    assert_eq!(sector_at(&chain, 2 * GIB), [0; 512]);
    assert_eq!(sector_at(&chain, 5 * GIB - 512), sector_of(201, 5 * GIB - 512));
    // The base has data at each of these offsets.
    for gib in 5..10 {
        assert_eq!(sector_at(&chain, gib * GIB), [0; 512], "at {gib} GiB");
        assert_eq!(sector_at(&chain, gib * GIB + 1023 * MIB), [0; 512], "at {gib} GiB and more");
    }
    assert_eq!(sector_at(&chain, 7 * GIB + 4096), sector_of(300, 7 * GIB + 4096));
    assert_eq!(sector_at(&chain, 10 * GIB - 512), sector_of(301, 10 * GIB - 512));
    // Across the end of the middle layer in one read.
    let mut both = vec![0xAA; 1024];
    chain.read_at(&mut both, 5 * GIB - 512).unwrap();
    assert_eq!(both, [sector_of(201, 5 * GIB - 512), vec![0; 512]].concat());

    let upper = tiles(&chain, 5 * GIB..7 * GIB);
    assert_eq!(upper.len(), 1);
    assert_eq!(upper[0].source, Source::Zero { layer: None }, "past the end of the middle layer");
    extents_agree(&chain, &naive, 2, 0..10 * GIB);
    extents_name_the_bytes(&chain, 0..10 * GIB);
    let base = chain.view(ids(&chain)[0]).unwrap();
    assert_eq!(sector_at(&base, 9 * GIB), sector_of(9, 9 * GIB));
    extents_agree(&base, &naive, 0, 0..10 * GIB);
    let mid = chain.view(ids(&chain)[1]).unwrap();
    assert_eq!(mid.geometry().size, 5 * GIB);
    extents_agree(&mid, &naive, 1, 0..5 * GIB);
    keeps_its_bounds(&mid);
    keeps_its_bounds(&chain);
}

#[test]
fn blocks_of_1_2_32_and_256_mib_in_one_chain() {
    // Mostly holes: large blocks with data only at their start.
    let some = |seed, len: usize| {
        let mut bytes = vec![0; len];
        pattern(seed, 0, &mut bytes);
        Data::Bytes(bytes)
    };
    let size = GIB + 3 * MIB + 512;
    let mut chains = Vec::new();
    for order in [[1, 2, 32, 256], [256, 32, 2, 1], [32, 1, 256, 2]] {
        let mut images = Vec::<Image>::new();
        for (n, mib) in order.into_iter().enumerate() {
            let mut image = match images.last() {
                None => Image::dynamic(size),
                Some(parent) => parent.new_child(),
            };
            image.block_size = mib << 20;
            let sectors = image.sectors_per_block() as usize;
            let count = image.block_count();
            for b in (n as u64 % count..count).step_by(1.max(count as usize / 3)) {
                let data = some(1000 * u64::from(mib) + b, 3 << 19);
                let block = match (n, b % 3) {
                    (0, _) => Block::full(data),
                    (_, 0) => Block::bare(state::ZERO),
                    _ => {
                        let runs = [(0, 1), (7, 9), (2000, 200), (sectors - 1, 1)];
                        Block::partial_runs(data, &runs.map(|(s, l)| (s.min(sectors - l), l)))
                    }
                };
                image.put(b, block);
            }
            let last = count - 1;
            image.put(
                last,
                match n {
                    0 => Block::full(some(7, 4096)),
                    _ => Block::partial_runs(some(n as u64, 4096), &[(n, 1)]),
                },
            );
            images.push(image);
        }
        let (folder, _, chain, naive) = on_disk(&images);
        let sizes: Vec<u32> =
            chain.layers().iter().rev().map(|layer| layer.block_size >> 20).collect();
        assert_eq!(sizes, order);
        extents_agree(&chain, &naive, 3, 0..size);
        extents_name_the_bytes(&chain, 0..size);
        for at in (0..size).step_by(32 << 20) {
            // Around the boundaries of blocks of every size.
            let start = at.saturating_sub(70_000);
            let len = (size - start).min(140_001) as usize;
            let mut read = vec![0xAA; len];
            chain.read_at(&mut read, start).unwrap();
            assert!(read == naive.read(3, start, len).unwrap(), "around {at}");
        }
        chains.push((folder, chain));
    }
}

#[test]
fn depth_is_bounded_at_256_layers_and_the_bound_is_an_option() {
    let mut images = vec![Image::dynamic(MIB)];
    images[0].put(0, Block::full(Data::Pattern(0)));
    for n in 1..257 {
        let mut child = images[n - 1].new_child();
        child.put(0, Block::partial_runs(Data::Pattern(n as u64), &[(n, 1), (1000, 1)]));
        images.push(child);
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), &images);
    let lower = images[..256].iter().fold(Vec::new(), |below, image| image.flat(Some(&below)));

    let chain = DiffChain::open(&paths[255]).unwrap();
    assert_eq!(chain.layers().len(), 256);
    reads_as(&chain, &lower);
    assert_eq!(sector_at(&chain, 17 * 512), sector_of(17, 17 * 512));
    assert_eq!(sector_at(&chain, 1000 * 512), sector_of(255, 1000 * 512));
    assert_eq!(sector_at(&chain, 300 * 512), sector_of(0, 300 * 512));
    extents_name_the_bytes(&chain, 0..MIB);

    let error = DiffChain::open(&paths[256]).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Limit, "limit.depth"));
    assert!(error.to_string().contains("256"), "{error}");
    assert!(error.file().unwrap().ends_with("l1.vhdx"), "the last child allowed: {error}");

    let chain = OpenOptions::new().max_depth(257).open(&paths[256]).unwrap();
    assert_eq!(chain.layers().len(), 257);
    reads_as(&chain, &images[256].flat(Some(&lower)));
    let error = OpenOptions::new().max_depth(2).open(&paths[2]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.expected().unwrap().contains("2 layers"), "{error}");
    assert_eq!(OpenOptions::new().max_depth(1).open(&paths[0]).unwrap().layers().len(), 1);
}

#[test]
fn the_second_linkage_is_as_good_as_the_first() {
    let base = full_base(2);
    let mut tip = base.new_child();
    tip.put(1, Block::partial_runs(Data::Pattern(9), &[(0, 4)]));
    tip.locator.set("parent_linkage", braced(STRANGER));
    tip.locator.set("parent_linkage2", braced(base.data_write_guid()));
    agrees(&[base.clone(), tip.clone()]);
    // In upper case, too.
    let capitals = braced(base.data_write_guid()).to_uppercase();
    tip.locator.set("parent_linkage2", capitals);
    agrees(&[base.clone(), tip.clone()]);
    tip.locator.set("parent_linkage2", braced(Uuid::from_u128(1)));
    assert_eq!(refused(&[base.clone(), tip.clone()]).kind(), ErrorKind::ParentMismatch);
    // A matching first linkage does not excuse an invalid second one.
    tip.locator.set("parent_linkage", braced(base.data_write_guid()));
    tip.locator.set("parent_linkage2", "soon");
    let error = refused(&[base, tip]);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "locator.linkage"));
}

#[test]
fn the_current_header() {
    let image = full_base(1);
    let [Some(first), Some(second)] = image.headers.clone() else { unreachable!() };
    let other = |sequence_number| {
        let mut header = second.clone();
        (header.sequence_number, header.data_write_guid) = (sequence_number, STRANGER);
        header
    };
    let own = image.data_write_guid();
    let mut bad = first.clone();
    bad.checksum = Checksum::Wrong;
    let mut unsigned = first.clone();
    unsigned.signature = *b"daeh";
    let at = |n| {
        let mut header = first.clone();
        header.sequence_number = n;
        header
    };
    for (headers, guid, current) in [
        // The same header twice, as some writers leave it.
        ([Some(at(7)), Some(at(7))], own, 0),
        ([Some(at(0)), Some(at(0))], own, 0),
        ([Some(at(7)), Some(other(8))], STRANGER, 1),
        ([Some(at(9)), Some(other(8))], own, 0),
        ([Some(at(u64::MAX)), Some(other(0))], own, 0),
        ([Some(at(0)), Some(other(u64::MAX))], STRANGER, 1),
        ([Some(bad.clone()), Some(other(0))], STRANGER, 1),
        ([Some(at(0)), Some(bad.clone())], own, 0),
        ([Some(unsigned.clone()), Some(other(3))], STRANGER, 1),
        ([None, Some(other(3))], STRANGER, 1),
        ([Some(at(3)), None], own, 0),
    ] {
        let mut image = image.clone();
        image.headers = headers.clone();
        let chain = agrees(&[image]);
        assert_eq!(chain.tip().data_write_guid(), guid, "{headers:?}");
        let info = chain.tip().info();
        assert_eq!(info.current_header, current, "{headers:?}");
        assert_eq!(info.headers.iter().filter(|header| header.is_err()).count(),
            headers.iter().filter(|header| !matches!(header, Some(h) if h.checksum == Checksum::Right && h.signature == *b"head")).count());
    }
    let refusal = |headers| {
        let mut image = image.clone();
        image.headers = headers;
        refused(&[image])
    };
    // Two different headers with the same number: neither is current.
    let error = refusal([Some(at(7)), Some(other(7))]);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "header.same-sequence"));
    assert_eq!((error.offset(), error.section()), (Some(0x2_0008), Some("2.2.2.1")));
    let error = refusal([Some(bad), None]);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "header.checksum"));
    assert_eq!(error.offset(), Some(0x1_0004));
    assert_eq!(refusal([None, None]).code(), "header.signature");
    let mut newer = at(1);
    newer.version = 2;
    let error = refusal([Some(newer), None]);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, "header.version"));
    assert_eq!((error.found(), error.expected()), (Some("2"), Some("1")));
}

/// Every block state, over data of the parent, with data, bits and offsets of its own.
#[test]
fn every_state_over_a_parent() {
    let base = full_base(8);
    let mut tip = base.new_child();
    for (b, state) in [0, 1, 2, 3, 5, 6, 7].into_iter().enumerate() {
        // The block has data, bits and space even if its state does not use them.
        let block = Block::partial_runs(Data::Pattern(500), &[(0, 3), (8, 1), (2047, 1)]);
        tip.put(b as u64, block.with_state(state));
    }
    let chain = agrees(&[base.clone(), tip.clone()]);
    assert_eq!(sector_at(&chain, 0), sector_of(100, 0), "state 0 asks the parent");
    for b in 1..5 {
        assert_eq!(sector_at(&chain, b * MIB), [0; 512], "block {b} is zeros, not the parent's");
    }
    assert_eq!(sector_at(&chain, 5 * MIB + 512 * 5), sector_of(500, 5 * MIB + 512 * 5));
    assert_eq!(sector_at(&chain, 6 * MIB + 512 * 5), sector_of(106, 6 * MIB + 512 * 5));
    assert_eq!(sector_at(&chain, 6 * MIB + 512 * 8), sector_of(500, 6 * MIB + 512 * 8));
    let counts = chain.tip().count_blocks().unwrap();
    assert_eq!((counts.blocks, counts.not_present, counts.undefined, counts.zero), (8, 2, 1, 1));
    assert_eq!((counts.unmapped, counts.fully_present, counts.partially_present), (2, 1, 1));
    assert_eq!((counts.reserved, counts.bitmaps), (0, 1));
    // A grandchild that owns a few sectors of each block sees the child's answer for the others.
    let mut grandchild = tip.new_child();
    (0..8).for_each(|b| {
        _ = grandchild.put(b, Block::partial_runs(Data::Pattern(600 + b), &[(1, 1)]))
    });
    agrees(&[base.clone(), tip, grandchild]);

    // In a base all states but 7 are valid, and none defers to a parent.
    let mut alone = full_base(8);
    for (b, state) in [0, 1, 2, 3, 5, 6].into_iter().enumerate() {
        alone.put(b as u64, Block::full(Data::Pattern(500)).with_state(state));
    }
    agrees(&[alone]);
}

#[test]
fn undefined_states_are_refused_when_they_are_read() {
    let base = full_base(3);
    let mut tip = base.new_child();
    tip.put(1, Block::bare(4));
    let chain = open_images(OpenOptions::new(), &[base.clone(), tip.clone()]).unwrap();
    assert_eq!(sector_at(&chain, 0), sector_of(100, 0));
    assert_eq!(sector_at(&chain, 2 * MIB), sector_of(102, 2 * MIB));
    for at in [MIB, 2 * MIB - 1] {
        let error = chain.read_at(&mut [0], at).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.state"));
        assert_eq!((error.file(), error.found()), (Some("l1"), Some("state 4")));
        assert_eq!(error.offset(), Some(tip.layout().payload_entry(1).start));
        assert_eq!(error.section(), Some("2.5.1.1"));
    }
    // Reads and walks over several blocks fail at this one, after what precedes it.
    assert!(chain.read_at(&mut vec![0; 3 << 20], 0).is_err());
    let walk: Vec<_> = chain.extents(0..3 * MIB).collect();
    assert_eq!(walk.len(), 2);
    assert_eq!(walk[0].as_ref().unwrap().range, 0..MIB);
    assert_eq!(walk[1].as_ref().unwrap_err().code(), "bat.state");
    assert_eq!(chain.tip().count_blocks().unwrap().reserved, 1);

    // A partially present block needs a parent and a bitmap.
    let mut alone = full_base(2);
    alone.put(1, Block::full(Data::Pattern(1)).with_state(state::PARTIALLY_PRESENT));
    let chain = open_images(OpenOptions::new(), &[alone]).unwrap();
    assert_eq!(chain.read_at(&mut [0], MIB).unwrap_err().code(), "bat.state");
    let mut tip = base.new_child();
    tip.put(1, Block::partial_runs(Data::Pattern(1), &[(0, 1)]));
    for bitmap_state in [0, 1, 2, 3, 4, 5, 7] {
        let entry = tip.layout().bitmaps[&0] | bitmap_state;
        tip.bat_override.insert(tip.bitmap_index(0), entry);
        let chain = open_images(OpenOptions::new(), &[base.clone(), tip.clone()]).unwrap();
        let error = chain.read_at(&mut [0], MIB).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.bitmap-missing"));
        assert_eq!(error.found(), Some(&*format!("state {bitmap_state}")));
        assert_eq!(error.offset(), Some(tip.layout().bitmap_entry(0).start));
    }
}

#[test]
fn blocks_outside_the_file() {
    let base = full_base(2);
    for place in [0, MIB << 30, 0xFFF_FFFF_FFF0_0000] {
        let mut image = base.clone();
        image.bat_override.insert(1, place | 6);
        let chain = open_images(OpenOptions::new(), &[image.clone()]).unwrap();
        assert_eq!(sector_at(&chain, 0), sector_of(100, 0));
        let error = chain.read_at(&mut [0], MIB).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.payload-place"));
        assert_eq!(error.offset(), Some(image.layout().payload_entry(1).start));

        let mut tip = base.new_child();
        tip.put(0, Block::partial_runs(Data::Pattern(1), &[(0, 1)]));
        tip.bat_override.insert(tip.bitmap_index(0), place | 6);
        let chain = open_images(OpenOptions::new(), &[base.clone(), tip]).unwrap();
        let error = chain.read_at(&mut [0], 0).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.bitmap-place"));
    }
    // A file cut within its last block: existing sectors are served, missing ones are errors.
    let mut cut = base.clone();
    cut.file_length = Some(base.layout().payload[&1] + 4096);
    let chain = open_images(OpenOptions::new(), &[cut]).unwrap();
    assert_eq!(sector_at(&chain, MIB + 3584), sector_of(101, MIB + 3584));
    assert_eq!(chain.read_at(&mut [0], MIB + 4096).unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(chain.read_at(&mut [0; 2], MIB + 4095).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn sectors_of_4096_bytes() {
    let mut base = full_base(4);
    base.logical_sector = 4096;
    let mut tip = base.new_child();
    tip.put(0, Block::partial_runs(Data::Pattern(1), &[(0, 1), (9, 3), (255, 1)]));
    tip.put(2, Block::partial(Data::Pattern(2), [true, false].repeat(128)));
    let chain = agrees(&[base.clone(), tip.clone()]);
    assert_eq!(chain.geometry().logical_sector, 4096);
    assert_eq!(chain.tip().info().chunk_ratio, 32 << 10);
    // All layers of a chain have the same logical sector size.
    let mut other = tip.new_child();
    other.logical_sector = 512;
    let error = refused(&[base.clone(), tip.clone(), other]);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "chain.sector-size"));
    assert_eq!(
        (error.file(), error.found(), error.expected()),
        (Some("l1"), Some("4096"), Some("512"))
    );
    assert_eq!(error.section(), Some("2.6.2.4"));
    // The physical sector size may differ.
    let mut other = tip.new_child();
    other.physical_sector = 512;
    agrees(&[base, tip, other]);
}

#[test]
fn disks_that_end_within_a_block() {
    for (sector, size) in
        [(512, 3 * MIB + 512), (512, 512), (512, 4 * MIB - 512), (4096, 2 * MIB + 4096)]
    {
        for block in [1, 2, 4] {
            let mut base = Image::dynamic(size);
            (base.logical_sector, base.block_size) = (sector, block << 20);
            let last = base.block_count() - 1;
            (0..=last).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(b))));
            let mut tip = base.new_child();
            tip.put(last, Block::partial_runs(Data::Pattern(77), &[(0, 1), (100, 200)]));
            keeps_its_bounds(&agrees(&[base.clone(), tip]));
            // Larger and smaller than its parent, by less than a block.
            let mut tip = base.new_child();
            tip.size += u64::from(sector) * 3;
            agrees(&[base.clone(), tip]);
            if size > 512 {
                let mut tip = base.new_child();
                tip.size -= u64::from(sector);
                agrees(&[base, tip]);
            }
        }
    }
}

#[test]
fn disks_of_no_size() {
    let empty = Image::dynamic(0);
    let chain = agrees(std::slice::from_ref(&empty));
    keeps_its_bounds(&chain);
    assert_eq!(chain.tip().count_blocks().unwrap().blocks, 0);
    let mut larger = empty.new_child();
    larger.size = 2 * MIB;
    larger.put(1, Block::partial_runs(Data::Pattern(1), &[(1, 1)]));
    agrees(&[empty, larger]);
    let base = full_base(2);
    let mut nothing = base.new_child();
    nothing.size = 0;
    let mut over = nothing.new_child();
    over.size = 2 * MIB;
    let chain = agrees(&[base, nothing, over]);
    assert_eq!(sector_at(&chain, 0), [0; 512], "nothing shows through a layer of no size");
}

#[test]
fn tables_longer_than_needed_and_what_lies_behind_their_end() {
    let base = full_base(3);
    let mut tip = base.new_child();
    tip.put(1, Block::partial_runs(Data::Pattern(1), &[(5, 6)]));
    for image in [&base, &tip] {
        let mut long = image.clone();
        long.bat_length = Some(5 << 20);
        // Garbage just after the last entry needed and at the very end.
        for index in [3, 4, 5, 1000, 5 * 131_072 - 1] {
            long.bat_override.insert(index, 0xDEAD_BEEF_DEAD_BEEF);
        }
        match image.has_parent {
            true => agrees(&[base.clone(), long]),
            false => agrees(&[long, tip.clone()]),
        };
    }
    // Without a parent, bitmap entries are not used either.
    let mut large = Image::dynamic(5 * GIB);
    large.bat_override.insert(large.bitmap_index(0), 0xDEAD_BEEF_DEAD_BEEF);
    large.put(4095, Block::full(Data::Pattern(1)));
    large.put(4096, Block::full(Data::Pattern(2)));
    let (_folder, _, chain, naive) = on_disk(&[large.clone()]);
    extents_agree(&chain, &naive, 0, 0..5 * GIB);
    assert_eq!(chain.tip().count_blocks().unwrap().bitmaps, 0);
    assert_eq!(sector_at(&chain, 4 * GIB), sector_of(2, 4 * GIB));
    assert_eq!(sector_at(&chain, 4 * GIB - 512), sector_of(1, 4 * GIB - 512));

    // Too short a table: 64 GiB of 1 MiB blocks need 65,551 entries, and 1 MiB of table has 131,072.
    let mut short = Image::dynamic(200 * GIB);
    short.bat_length = Some(1 << 20);
    let folder = tempfile::tempdir().unwrap();
    short.write_to(folder.path().join("short.vhdx"));
    let error = DiffChain::open(folder.path().join("short.vhdx")).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.length"));
    assert_eq!(error.found(), Some("1048576 bytes"));
    let entries = 200 * 1024 + (200 * 1024 - 1) / 4096;
    assert_eq!(error.expected(), Some(&*format!("at least {}", entries * 8)));
}

/// The table of a differencing disk may end with its last payload entry: the bitmap entry of the last
/// chunk is then missing, and only a partially present block needs it.
#[test]
fn a_table_without_the_last_bitmap_entry() {
    // Enough blocks in the last chunk that payload entries fill the table.
    let entries = MIB / 8;
    let chunks = entries / 4097;
    let blocks = entries - chunks;
    let mut base = Image::dynamic(blocks * MIB);
    base.put(blocks - 1, Block::full(Data::Pattern(1)));
    base.bat_length = Some(1 << 20);
    let mut tip = base.new_child();
    tip.bat_length = Some(1 << 20);
    tip.put(blocks - 2, Block::full(Data::Pattern(2)));
    let (_folder, _, chain, _) = on_disk(&[base.clone(), tip.clone()]);
    let end = blocks * MIB;
    assert_eq!(sector_at(&chain, end - 512), sector_of(1, end - 512));
    assert_eq!(sector_at(&chain, end - 2 * MIB), sector_of(2, end - 2 * MIB));
    assert_eq!(chain.tip().count_blocks().unwrap().fully_present, 1);

    tip.bat_override.insert(tip.bat_index(blocks - 1), tip.layout().payload[&(blocks - 2)] | 7);
    let (_folder, _, chain, _) = on_disk(&[base, tip]);
    let error = chain.read_at(&mut [0], end - 1).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.length"));
}

#[test]
fn the_second_region_table() {
    let base = full_base(2);
    let mut broken = Vec::new();
    for fault in 0..4 {
        let mut image = base.clone();
        match (fault, &mut image.region_tables[0]) {
            (0, table) => *table = None,
            (1, Some(table)) => table.checksum = Checksum::Wrong,
            (2, Some(table)) => table.signature = *b"iger",
            (_, Some(table)) => table.entry_count = Some(2048),
            _ => unreachable!(),
        }
        let info = agrees(std::slice::from_ref(&image)).tip().info();
        assert_eq!(info.current_region_table, 1);
        assert!(info.region_tables[0].is_err() && info.region_tables[1].is_ok());
        broken.push(image);
    }
    for mut image in broken {
        image.region_tables[1] = None;
        let error = refused(&[image]);
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let at = error.offset().unwrap();
        assert!((0x3_0000..0x4_0000).contains(&at), "the first table's fault is told: {error}");
    }
    // If both are valid the first is used, even if the second differs.
    let mut image = base.clone();
    image.region_tables[1].as_mut().unwrap().entries.clear();
    assert_eq!(agrees(&[image]).tip().info().current_region_table, 0);
}

#[test]
fn invalid_regions() {
    let base = full_base(2);
    let with = |change: &dyn Fn(&mut Vec<RegionEntry>)| {
        let mut image = base.clone();
        image.region_tables.iter_mut().flatten().for_each(|table| change(&mut table.entries));
        let error = refused(&[image]);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(error.section().unwrap().starts_with("2.2.3"), "{error}");
        error.code()
    };
    assert_eq!(with(&|entries| _ = entries.remove(0)), "region.missing");
    assert_eq!(with(&|entries| _ = entries.remove(1)), "region.missing");
    assert_eq!(with(&|entries| entries.push(entries[0].clone())), "region.duplicate");
    assert_eq!(with(&|entries| entries[0].offset = Some(0)), "region.offset");
    assert_eq!(with(&|entries| entries[0].offset = Some(3 * MIB + 4096)), "region.offset");
    assert_eq!(with(&|entries| entries[0].length = Some(0)), "region.length");
    assert_eq!(with(&|entries| entries[0].length = Some(4096)), "region.length");
    assert_eq!(with(&|entries| entries[0].offset = Some(MIB << 30)), "region.place");
    assert_eq!(with(&|entries| entries[0].offset = Some(!0 << 20)), "region.place");
    assert_eq!(with(&|entries| entries[0].length = Some(1 << 30)), "region.place");
    assert_eq!(with(&|entries| entries[0].offset = Some(MIB)), "region.overlap");
    assert_eq!(with(&|entries| entries[0].offset = Some(2 * MIB)), "region.overlap");
}

#[test]
fn unknown_regions() {
    let base = full_base(2);
    let mut image = base.clone();
    image.add_region(STRANGER, false, b"kept as it is".to_vec());
    let info = agrees(std::slice::from_ref(&image)).tip().info();
    let regions = info.region_tables[0].as_ref().unwrap();
    let kept = regions.iter().find(|region| region.guid == STRANGER).unwrap();
    assert_eq!((kept.name, kept.required, kept.length), (None, false, 1 << 20));
    assert_eq!(kept.offset.get(), image.layout().get(&format!("region:{STRANGER}")).start);

    let mut image = base.clone();
    image.add_region(STRANGER, true, Vec::new());
    let error = refused(&[image]);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, "region.unknown-required"));
    assert!(error.to_string().contains(&STRANGER.to_string()), "{error}");
    assert_eq!(error.offset(), Some(0x3_0000 + 16 + 2 * 32));
    assert_eq!(error.section(), Some("2.2.3.2"));
}

#[test]
fn unknown_metadata_items() {
    let base = full_base(2);
    let with = |name: &str, id, flags, contents: &[u8]| {
        let mut image = base.clone();
        let contents = Contents::Bytes(contents.to_vec());
        image.metadata.items.insert(1, Item::new(name, id, flags, contents));
        image
    };
    for (flags, contents) in [(0, &b"optional"[..]), (IS_USER, b"a user's"), (0, b""), (2, b"disk")]
    {
        let image = with("other", STRANGER, flags, contents);
        let info = agrees(std::slice::from_ref(&image)).tip().info();
        let kept = info.metadata.iter().find(|item| item.guid == STRANGER).unwrap();
        assert_eq!((kept.name, kept.is_required), (None, false));
        assert_eq!((kept.is_user, kept.is_virtual_disk), (flags & 1 != 0, flags & 2 != 0));
        assert_eq!(kept.length as usize, contents.len());
        let place = image.layout().get("metadata_item:other");
        assert_eq!(kept.offset.map(u64::from), (!contents.is_empty()).then_some(place.start));
        assert_eq!(info.metadata.iter().filter(|item| item.name.is_some()).count(), 5);
    }
    for flags in [IS_REQUIRED, IS_REQUIRED | IS_USER] {
        let error = refused(&[with("other", STRANGER, flags, b"must know")]);
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Unsupported, "metadata.unknown-required")
        );
        assert!(error.found().unwrap().contains(&STRANGER.to_string()), "{error}");
        assert_eq!(error.offset(), Some(2 * MIB + 64));
    }
    // A user item with a known GUID is not the system item; if required, it is unknown.
    let id = base.metadata.items[0].id;
    agrees(&[with("user", id, IS_USER, b"mine")]);
    assert_eq!(
        refused(&[with("user", id, IS_USER | IS_REQUIRED, b"mine")]).code(),
        "metadata.unknown-required"
    );
}

#[test]
fn invalid_metadata() {
    let base = full_base(2);
    let with = |change: &dyn Fn(&mut Image)| {
        let mut image = base.clone();
        change(&mut image);
        let error = refused(&[image]);
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(error.offset().is_some_and(|at| at >= 2 * MIB), "{error}");
        assert!(error.found().is_some() && error.expected().is_some(), "{error}");
        error.code()
    };
    for name in ["file_parameters", "disk_size", "disk_id", "logical_sector", "physical_sector"] {
        let remove = |image: &mut Image| image.metadata.items.retain(|item| item.name != name);
        assert_eq!(with(&remove), "metadata.missing", "{name}");
        let twice = |image: &mut Image| {
            let item = image.item(name).clone();
            image.metadata.items.push(item);
        };
        assert_eq!(with(&twice), "metadata.duplicate", "{name}");
        assert_eq!(with(&|i| i.item(name).length = Some(3)), "metadata.item-length", "{name}");
        assert_eq!(with(&|i| i.item(name).length = Some(0)), "metadata.item-length", "{name}");
        assert_eq!(with(&|i| i.item(name).offset = Some(512)), "metadata.offset", "{name}");
        assert_eq!(with(&|i| i.item(name).offset = Some(!0)), "metadata.offset", "{name}");
        assert_eq!(with(&|i| i.item(name).length = Some(!0)), "metadata.length", "{name}");
    }
    let signature = |image: &mut Image| image.metadata.signature = *b"atadatem";
    assert_eq!(with(&signature), "metadata.signature");
    assert_eq!(with(&|image| image.metadata.entry_count = Some(2048)), "metadata.count");
    assert_eq!(with(&|image| image.metadata.entry_count = Some(0)), "metadata.missing");
    for size in [0, 512 << 10, 512 << 20, 3 << 20, (1 << 20) + 512, !0] {
        let item = |image: &mut Image| {
            let bytes = [u32::to_le_bytes(size), [0; 4]].concat();
            image.item("file_parameters").contents = Contents::Bytes(bytes);
        };
        assert_eq!(with(&item), "metadata.block-size", "{size}");
    }
    for size in [0_u32, 1, 511, 513, 1024, 2048, 8192, !0] {
        for name in ["logical_sector", "physical_sector"] {
            let item = |image: &mut Image| {
                image.item(name).contents = Contents::Bytes(size.to_le_bytes().into());
            };
            assert_eq!(with(&item), "metadata.sector-size", "{name} {size}");
        }
    }
    for size in [1_u64, 511, 513, (64 << 40) + 512, !0, !511] {
        let item = |image: &mut Image| {
            image.item("disk_size").contents = Contents::Bytes(size.to_le_bytes().into());
        };
        assert_eq!(with(&item), "metadata.disk-size", "{size}");
    }
    // An item above the maximum size, in a region that has room for it.
    let large = |image: &mut Image| {
        image.metadata_offset = 8 * MIB;
        image.metadata_length = 4 << 20;
        image.item("disk_id").length = Some((1 << 20) + 1);
    };
    assert_eq!(with(&large), "metadata.length");
    // Two items at the same offset.
    let overlap = |image: &mut Image| {
        image.item("disk_id").offset = Some(0x1_0000);
        image.item("disk_size").offset = Some(0x1_0008);
        image.item("file_parameters").offset = Some(0x1_0100);
    };
    assert_eq!(with(&overlap), "metadata.overlap");
}

#[test]
fn invalid_parent_locators() {
    let base = full_base(2);
    let right = base.new_child();
    let at = right.layout().get("locator").start;
    let with = |change: &dyn Fn(&mut Image)| {
        let mut tip = right.clone();
        change(&mut tip);
        let error = refused(&[base.clone(), tip]);
        assert!(error.offset().is_some_and(|place| place >= 2 * MIB), "{error}");
        assert!(error.found().is_some() && error.expected().is_some(), "{error}");
        assert_eq!(error.file(), Some("l1"), "{error}");
        assert!(error.section().is_some(), "{error}");
        (error.kind(), error.code())
    };
    let damaged = |code| (ErrorKind::Damaged, code);
    let linkage = braced(base.data_write_guid());
    assert_eq!(with(&|tip| tip.locator.kind = STRANGER), (ErrorKind::Unsupported, "locator.type"));
    let no_linkage = |tip: &mut Image| _ = tip.locator.remove("parent_linkage");
    assert_eq!(with(&no_linkage), damaged("locator.linkage-missing"));
    // Keys are case-sensitive: this is another key.
    let other_case = |tip: &mut Image| {
        no_linkage(tip);
        tip.locator.set("Parent_Linkage", &*linkage);
    };
    assert_eq!(with(&other_case), damaged("locator.linkage-missing"));
    // The second linkage does not replace the first.
    let second_only = |tip: &mut Image| {
        no_linkage(tip);
        tip.locator.set("parent_linkage2", &*linkage);
    };
    assert_eq!(with(&second_only), damaged("locator.linkage-missing"));
    for wrong in [&linkage[1..37], "{}", "", "{0}", &linkage.replace('-', ""), "\u{FEFF}", "x"] {
        let set = |tip: &mut Image| _ = tip.locator.set("parent_linkage", wrong);
        let expected = if wrong.is_empty() { "locator.string-place" } else { "locator.linkage" };
        assert_eq!(with(&set), damaged(expected), "{wrong:?}");
    }
    let twice = |tip: &mut Image| {
        tip.locator.pairs.push(("relative_path".into(), "elsewhere".into()));
    };
    assert_eq!(with(&twice), damaged("locator.duplicate"));
    let nul = |tip: &mut Image| _ = tip.locator.set("relative_path", "a\0b");
    assert_eq!(with(&nul), damaged("locator.string"));
    assert_eq!(with(&|tip| tip.locator.count = Some(500)), damaged("locator.count"));
    assert_eq!(with(&|tip| tip.locator.count = Some(0)), damaged("locator.linkage-missing"));
    let short = |tip: &mut Image| tip.item("locator").contents = Contents::Bytes(vec![0; 19]);
    assert_eq!(with(&short), damaged("locator.length"));
    // Fields of the first entry: key and value offset, key and value length.
    for (field, bytes, code) in [
        (20, &[0xFF; 4][..], "locator.string-place"),
        (24, &[0xFF; 4], "locator.string-place"),
        (28, &[0xFF; 2], "locator.string-place"),
        (30, &[0xFF; 2], "locator.string-place"),
        (28, &[0, 0], "locator.string-place"),
        (28, &[27, 0], "locator.string-length"),
        (30, &[75, 0], "locator.string-length"),
    ] {
        let patch = |tip: &mut Image| tip.patches.push((at + field, bytes.to_vec()));
        assert_eq!(with(&patch), damaged(code), "{field}: {bytes:?}");
    }
    // Half a surrogate pair is not valid text.
    let bytes = right.locator.bytes();
    let mut bytes = bytes.clone();
    let key = u32::from_le_bytes(bytes[20..24].try_into().unwrap()) as usize;
    bytes[key..key + 2].copy_from_slice(&0xD800_u16.to_le_bytes());
    let lone = |tip: &mut Image| tip.item("locator").contents = Contents::Bytes(bytes.clone());
    assert_eq!(with(&lone), damaged("locator.string"));
    let without = |tip: &mut Image| tip.metadata.items.retain(|item| item.name != "locator");
    assert_eq!(with(&without), damaged("metadata.missing"));
    let denies = |tip: &mut Image| tip.has_parent = false;
    assert_eq!(with(&denies), damaged("metadata.locator"));
    // Unknown keys are allowed.
    let mut tip = right.clone();
    tip.locator.set("else", "what");
    let info = agrees(&[base, tip]).tip().info();
    assert!(info.locator.unwrap().entries.contains(&("else".into(), "what".into())));
}

#[test]
fn fixed_disks() {
    let mut fixed = Image::fixed(5 * MIB);
    fixed.put(2, Block::full(Data::Pattern(1)));
    let chain = agrees(std::slice::from_ref(&fixed));
    assert!(chain.tip().info().leave_blocks_allocated);
    assert_eq!(tiles(&chain, 0..5 * MIB).len(), 1, "a fixed disk in order is one run");
    fixed.order = Order::Reversed;
    assert_eq!(tiles(&agrees(std::slice::from_ref(&fixed)), 0..5 * MIB).len(), 5);
    let mut tip = fixed.new_child();
    tip.put(2, Block::partial_runs(Data::Pattern(2), &[(3, 4)]));
    agrees(&[fixed.clone(), tip]);
    // Log and metadata after the data.
    fixed.order = Order::Sequential;
    (fixed.bat_offset, fixed.data_offset) = (MIB, Some(2 * MIB));
    (fixed.log_offset, fixed.metadata_offset) = (7 * MIB, 8 * MIB);
    agrees(&[fixed]);

    // Beyond 4 GiB the bitmap entries, which a fixed disk does not use, are skipped.
    let mut large = Image::fixed(9 * GIB);
    large.block_size = 32 << 20;
    for b in [0, 127, 128, 129, 255, 256, 287] {
        let mut bytes = vec![0; 4096];
        pattern(b, 0, &mut bytes);
        large.put(b, Block::full(Data::Bytes(bytes)));
    }
    let (_folder, _, chain, naive) = on_disk(&[large]);
    extents_agree(&chain, &naive, 0, 0..9 * GIB);
    assert_eq!(tiles(&chain, 0..9 * GIB).len(), 1);
    for b in [0, 127, 128, 129, 255, 256, 287] {
        assert_eq!(sector_at(&chain, b * (32 << 20)), sector_of(b, 0), "block {b}");
    }
}

#[test]
fn a_differencing_image_alone() {
    let base = full_base(4);
    let mut tip = base.new_child();
    tip.put(1, Block::full(Data::Pattern(1)));
    tip.put(2, Block::partial_runs(Data::Pattern(2), &[(4, 4)]));
    tip.put(3, Block::bare(state::ZERO));
    let alone = OpenOptions::new().open_file(in_memory(&[base, tip.clone()]).remove(1)).unwrap();
    assert!(alone.has_parent());
    assert_eq!(alone.info().metadata.len(), 6);
    assert_eq!(alone.count_blocks().unwrap().partially_present, 1);
    let extents: Vec<_> =
        tiles(&alone, 0..4 * MIB).into_iter().map(|extent| (extent.range, extent.source)).collect();
    let (full, part) = (tip.layout().payload[&1], tip.layout().payload[&2] + 2048);
    let data = |at| Source::Data { layer: alone.id(), at: avhdx::FileOffset::new(at) };
    assert_eq!(
        extents,
        [
            (0..MIB, Source::Parent),
            (MIB..2 * MIB, data(full)),
            (2 * MIB..2 * MIB + 2048, Source::Parent),
            (2 * MIB + 2048..2 * MIB + 4096, data(part)),
            (2 * MIB + 4096..3 * MIB, Source::Parent),
            (3 * MIB..4 * MIB, Source::Zero { layer: Some(alone.id()) }),
        ]
    );
    assert_eq!(sector_at(&alone, MIB), sector_of(1, MIB));
    assert_eq!(sector_at(&alone, 2 * MIB + 2048), sector_of(2, 2 * MIB + 2048));
    for (at, len) in [(0, 1), (MIB - 1, 2), (2 * MIB, 512), (2 * MIB + 4095, 2), (0, 4 << 20)] {
        let mut bytes = vec![0; len];
        let error = alone.read_at(&mut bytes, at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentRequired, "{len} bytes at {at}");
        assert!(error.file().is_some() && error.offset().is_some(), "{error}");
        assert!(error.found().is_some() && error.expected().is_some(), "{error}");
        let mut bytes = vec![0; len];
        let mut bufs = [std::io::IoSliceMut::new(&mut bytes)];
        let error = alone.read_vectored_at(&mut bufs, at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentRequired, "{len} bytes at {at}");
    }
}

/// A chain without its parents is refused rather than served with holes.
#[test]
fn a_chain_without_its_parent() {
    let base = full_base(2);
    let tip = base.new_child();
    let stranger = full_base(3);
    let error = open_images(OpenOptions::new(), std::slice::from_ref(&tip)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
    assert!(error.expected().unwrap().contains(&base.data_write_guid().to_string()), "{error}");
    let error = open_images(OpenOptions::new(), &[stranger, tip]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch);
    let mut grown = base.new_child();
    grown.size += MIB;
    agrees(&[base, grown]);
}

#[test]
fn siblings_share_a_parent() {
    let base = full_base(2);
    let folder = tempfile::tempdir().unwrap();
    let [mut left, mut right] = [base.new_child(), base.new_child()];
    left.put(0, Block::partial_runs(Data::Pattern(1), &[(0, 9)])).reseed(1);
    right.put(0, Block::partial_runs(Data::Pattern(2), &[(3, 9)])).reseed(2);
    base.write_to(folder.path().join("parent.vhdx"));
    left.write_to(folder.path().join("left.avhdx"));
    right.write_to(folder.path().join("right.avhdx"));
    let chains =
        ["left.avhdx", "right.avhdx"].map(|name| DiffChain::open(folder.path().join(name)));
    for (chain, image) in chains.iter().zip([left, right]) {
        reads_as(chain.as_ref().unwrap(), &image.flat(Some(&base.flat(None))));
    }
    // The shared file is open once; the layers above it differ.
    let [left, right] = chains.map(|chain| chain.unwrap());
    assert_eq!(ids(&left)[0], ids(&right)[0]);
    assert_ne!(ids(&left)[1], ids(&right)[1]);
    reads_as(&left.view(ids(&right)[0]).unwrap(), &base.flat(None));
    assert_eq!(left.view(ids(&right)[1]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// A base without children, as an image and as a chain of one.
#[test]
fn a_base_is_a_chain_of_one() {
    let base = full_base(3);
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), std::slice::from_ref(&base));
    reads_as(&DiffChain::open(&paths[0]).unwrap(), &base.flat(None));
    let image = VhdxFile::open(&paths[0]).unwrap();
    reads_as(&image, &base.flat(None));
    assert!(image.parent_link().unwrap().is_none());
    assert_eq!(image.path(), Some(&*paths[0]));
    assert_eq!(image.warnings(), []);
}

#[test]
fn files_that_are_not_images() {
    for (bytes, kind) in [
        (Vec::new(), ErrorKind::NotVhdx),
        (b"vhdxfil".to_vec(), ErrorKind::NotVhdx),
        (b"conectix".repeat(1000), ErrorKind::NotVhdx),
        (b"vhdxfile".to_vec(), ErrorKind::Damaged),
        (full_base(1).to_bytes()[..0x1_0FFF].to_vec(), ErrorKind::Damaged),
        (full_base(1).to_bytes()[..0x2_1000].to_vec(), ErrorKind::Damaged),
        (full_base(1).to_bytes()[..0x5_0000].to_vec(), ErrorKind::Damaged),
        (full_base(1).to_bytes()[..3 << 20].to_vec(), ErrorKind::Damaged),
    ] {
        let len = bytes.len();
        let error = open_stack(OpenOptions::new(), &[memory("some file", bytes)]).unwrap_err();
        assert_eq!(error.kind(), kind, "{len} bytes: {error}");
        assert_eq!(error.file(), Some("some file"));
        assert!(error.offset().is_some() && error.section().is_some(), "{error}");
        assert!(error.found().is_some() && error.expected().is_some(), "{error}");
    }
}

fn any_block(is_child: bool, sectors: usize) -> impl Strategy<Value = Block> {
    let run = (0..sectors, prop_oneof![1..4_usize, 1..sectors]);
    let runs = proptest::collection::vec(run, 0..6);
    let state = match is_child {
        true => prop_oneof![2 => Just(6), 4 => Just(7), 1 => 0..4_u8, 1 => Just(5)].boxed(),
        false => prop_oneof![4 => Just(6), 1 => 0..4_u8, 1 => Just(5)].boxed(),
    };
    (state, any::<u64>(), runs, any::<bool>()).prop_map(move |(state, seed, runs, has_place)| {
        let runs: Vec<_> = runs.into_iter().map(|(s, n)| (s, n.min(sectors - s))).collect();
        let is_bare = state < 6 && !has_place;
        let data = if is_bare { Data::None } else { Data::Pattern(seed) };
        let mut block = Block::partial_runs(data, &runs).with_state(state);
        if !is_child {
            block.bitmap.clear();
        }
        block
    })
}

/// A layer over `parent`, or a base, random in everything but its identity.
fn any_layer(sector: u32, parent: Option<Image>) -> impl Strategy<Value = Image> {
    let size = (1..5 * MIB / u64::from(sector)).prop_map(move |n| n * u64::from(sector));
    let order = prop_oneof![
        Just(Order::Sequential),
        Just(Order::Reversed),
        any::<u64>().prop_map(Order::Shuffled)
    ];
    (size, any::<bool>(), 0..3_u32, order, 0..2_u64).prop_flat_map(
        move |(size, same_size, shift, order, gap)| {
            let mut image = match &parent {
                Some(parent) => parent.new_child(),
                None => Image::dynamic(size),
            };
            if !same_size {
                image.size = size;
            }
            (image.logical_sector, image.block_size) = (sector, 1 << (20 + shift));
            (image.order, image.gap) = (order, gap << 20);
            let sectors = image.sectors_per_block() as usize;
            let block = proptest::option::weighted(0.7, any_block(image.has_parent, sectors));
            proptest::collection::vec(block, image.block_count() as usize).prop_map(move |blocks| {
                let mut image = image.clone();
                for (b, block) in blocks.into_iter().enumerate() {
                    if let Some(block) = block {
                        image.put(b as u64, block);
                    }
                }
                image
            })
        },
    )
}

fn any_chain() -> impl Strategy<Value = Vec<Image>> {
    (prop_oneof![3 => Just(512), 1 => Just(4096)], 1..7_usize).prop_flat_map(|(sector, depth)| {
        let mut chain = any_layer(sector, None).prop_map(|base| vec![base]).boxed();
        for _ in 1..depth {
            chain = chain
                .prop_flat_map(move |below| {
                    any_layer(sector, below.last().cloned()).prop_map(move |layer| {
                        let mut chain = below.clone();
                        chain.push(layer);
                        chain
                    })
                })
                .boxed();
        }
        chain
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_chain_reads_as_the_naive_reader_reads_it(chain in any_chain()) {
        agrees(&chain);
    }
}
