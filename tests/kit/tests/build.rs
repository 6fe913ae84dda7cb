//! The builder compared with the naive reader: what an image describes is what is read.

#![allow(clippy::disallowed_methods)]

use avhdx_testkit::build::*;
use avhdx_testkit::naive::{Chain, Layer, Says, Who};
use avhdx_testkit::rng::{Rng, pattern};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// The reader sees the described contents of these images, base first.
fn agrees(images: &[Image]) -> Chain {
    let chain = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
    let mut below: Option<Vec<u8>> = None;
    for (n, image) in images.iter().enumerate() {
        let flat = image.flat(below.as_deref());
        assert!(chain.flat(n).unwrap() == flat, "layer {n}");
        below = Some(flat);
    }
    chain
}

#[test]
fn three_layers_with_partial_blocks() {
    let mut base = Image::dynamic(4 * MIB);
    base.put(0, Block::full(Data::Pattern(1))).put(1, Block::full(Data::Pattern(2)));
    let mut mid = base.new_child();
    mid.put(0, Block::partial_runs(Data::Pattern(3), &[(0, 8), (100, 1)]));
    mid.put(1, Block::bare(state::ZERO));
    let mut tip = mid.new_child();
    tip.put(0, Block::partial_runs(Data::Pattern(4), &[(4, 1), (2047, 1)]));
    tip.put(1, Block::partial_runs(Data::Pattern(5), &[(1, 1)]));
    let chain = agrees(&[base, mid, tip]);
    let layer = |s| match chain.who(2, s).unwrap() {
        Who::Data { layer, .. } => Some(layer),
        Who::Zero { .. } => None,
    };
    assert_eq!([3, 4, 5, 8, 100, 2047].map(layer), [1, 2, 1, 0, 1, 2].map(Some));
    assert_eq!(layer(2049), Some(2));
    assert_eq!(chain.who(2, 2048).unwrap(), Who::Zero { layer: Some(1) });
    assert_eq!(chain.who(2, 4096).unwrap(), Who::Zero { layer: None });
}

/// In a chain of 10, 5 and 10 MiB the upper half of the base never shows through.
#[test]
fn layers_of_other_lengths_and_block_sizes() {
    let mut base = Image::dynamic(10 * MIB);
    (0..10).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(b))));
    let mut mid = Image::child(5 * MIB, base.data_write_guid());
    mid.block_size = 2 << 20;
    mid.put(1, Block::partial_runs(Data::Pattern(20), &[(7, 2)]));
    let mut tip = Image::child(10 * MIB, mid.data_write_guid());
    tip.block_size = 4 << 20;
    tip.put(2, Block::partial_runs(Data::Pattern(30), &[(0, 1)]));
    let chain = agrees(&[base, mid, tip]);
    assert!(chain.read(2, 9 * MIB, 512).unwrap().iter().all(|b| *b == 0));
    assert_ne!(chain.read(2, 5 * MIB - 512, 512).unwrap(), vec![0; 512]);
}

/// Random bits, states, orders and sector sizes.
#[test]
fn random_chains() {
    for seed in 0..12 {
        agrees(&random_chain(seed, 1 + seed as usize % 4));
    }
}

#[test]
fn every_state_over_a_parent() {
    let mut base = Image::fixed(8 * MIB);
    (0..8).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(b + 1))));
    let mut tip = base.new_child();
    for s in [0, 1, 2, 3, 5, 6, 7] {
        let mut block = Block::partial_runs(Data::Pattern(40), &[(0, 64)]);
        block.state = s;
        tip.put(s.into(), block);
    }
    let chain = agrees(&[base, tip.clone()]);
    let at = |b: u64| chain.0[1].says(b * 2048).unwrap();
    assert_eq!(at(0), Says::NotHere);
    assert_eq!([1, 2, 3, 5].map(at), [Says::Zero; 4]);
    assert!(matches!([at(6), at(7)], [Says::Data(_), Says::Data(_)]));
    tip.put(4, Block::bare(4));
    let reserved = Layer::from_bytes(tip.to_bytes()).unwrap();
    assert!(reserved.says(4 * 2048).is_err());
}

/// A disk with many chunks: bitmap entries follow the blocks of their chunk in the BAT.
#[test]
fn bitmaps_of_several_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let size = 13 << 30;
    let paths = [dir.path().join("base.vhdx"), dir.path().join("tip.vhdx")];
    let mut base = Image::dynamic(size);
    base.block_size = 2 << 20;
    let ratio = base.chunk_ratio();
    assert_eq!(ratio, 2048);
    let mut tip = base.new_child();
    tip.order = Order::Shuffled(3);
    for b in [0, ratio - 1, ratio, 3 * ratio + 5] {
        base.put(b, Block::full(Data::Pattern(b)));
        tip.put(b, Block::partial_runs(Data::Pattern(b + 1), &[(1, 1), (4095, 1)]));
    }
    base.write_to(&paths[0]);
    let layout = tip.write_to(&paths[1]);
    assert_eq!(layout.bitmaps.keys().copied().collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(layout.bitmap_entry(1).start - layout.payload_entry(ratio).start, 8 * ratio);
    let chain = Chain::open(&paths).unwrap();
    let mut want = [0; 512];
    for b in [0, ratio - 1, ratio, 3 * ratio + 5] {
        for (sector, seed) in [(0, b), (1, b + 1), (2, b), (4094, b), (4095, b + 1)] {
            let offset = b * (2 << 20) + sector * 512;
            pattern(seed, offset, &mut want);
            assert!(chain.read(1, offset, 512).unwrap() == want, "block {b}, sector {sector}");
        }
    }
}

#[test]
fn the_largest_disk_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.vhdx");
    let layout = Image::dynamic(64 << 40).write_to(&path);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let held = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(held < MIB, "{held} bytes held");
    }
    assert_eq!(layout.get("bat").end, 516 * MIB);
    let chain = Chain::open([&path]).unwrap();
    assert_eq!(chain.read(0, (64 << 40) - 512, 512).unwrap(), [0; 512]);
}

#[test]
fn wrong_fields_are_refused() {
    let refused = |change: &dyn Fn(&mut Image)| {
        let mut image = Image::dynamic(MIB);
        change(&mut image);
        Layer::from_bytes(image.to_bytes()).unwrap_err()
    };
    assert_eq!(refused(&|i| i.signature[0] = b'V'), "no VHDX file");
    assert_eq!(refused(&|i| i.headers = [None, None]), "no valid header");
    let wrong = |i: &mut Image| {
        i.region_tables.iter_mut().flatten().for_each(|t| t.checksum = Checksum::Wrong);
    };
    assert_eq!(refused(&wrong), "no valid region table");
    let guid = Uuid::from_u128(1);
    let required = |i: &mut Image| _ = i.add_region(guid, true, vec![1]);
    assert_eq!(refused(&required), "unknown required region");
    let version = |i: &mut Image| i.headers.iter_mut().flatten().for_each(|h| h.version = 2);
    assert_eq!(refused(&version), "unknown version");
    let unknown = |i: &mut Image| {
        let item = Item::new("new", guid, IS_REQUIRED, Contents::Bytes(vec![1]));
        i.metadata.items.push(item);
    };
    assert_eq!(refused(&unknown), "unknown required item");
    let size = |i: &mut Image| i.item("disk_size").contents = Contents::Bytes(vec![1; 8]);
    assert_eq!(refused(&size), "impossible block, sector or disk size");
}

/// One invalid copy of each structure, and unknown things that readers may ignore.
#[test]
fn spare_copies_and_unknown_things() {
    let mut image = Image::dynamic(2 * MIB);
    image.put(1, Block::full(Data::Pattern(1)));
    image.headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
    image.region_tables[0] = None;
    image.add_region(Uuid::from_u128(2), false, vec![0xAB; 4096]);
    let user = Item::new("mine", ITEM_DISK_SIZE, IS_USER, Contents::Bytes(vec![7; 8]));
    image.metadata.items.insert(0, user);
    image.metadata.items.push(Item::new("empty", Uuid::from_u128(3), 0, Contents::Bytes(vec![])));
    agrees(std::slice::from_ref(&image));
    let (bytes, layout) = (image.to_bytes(), image.layout());
    let range = |name| {
        let r = layout.get(name);
        &bytes[r.start as usize..r.end as usize]
    };
    assert_eq!(range("metadata_item:mine"), [7; 8]);
    assert_eq!(range("metadata_entry:empty")[16..24], [0; 8]);
    assert_eq!(range(&format!("region:{}", Uuid::from_u128(2)))[..4096], [0xAB; 4096]);
}

#[test]
fn locators() {
    let parent = Image::dynamic(MIB);
    let mut child = parent.new_child();
    child.parent_path("..\\wurzel ä.vhdx");
    child.locator.set("parent_linkage", braced(Uuid::from_u128(1)));
    child.locator.set("parent_linkage2", braced(parent.data_write_guid()));
    let layer = Layer::from_bytes(child.to_bytes()).unwrap();
    assert_eq!(layer.locator, child.locator.pairs);
    assert_eq!(layer.locator[1].1, "..\\wurzel ä.vhdx");
    assert_ne!(layer.data_write_guid, parent.data_write_guid());
    child.locator.remove("parent_linkage");
    let layer = Layer::from_bytes(child.to_bytes()).unwrap();
    assert_eq!(layer.locator.len(), 2);
}

/// Both outputs are the same, also if pieces overlap and the file is cut.
#[test]
fn file_and_memory_agree() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.vhdx");
    let mut image = random_chain(5, 2).remove(1);
    let first = *image.layout().payload.values().next().unwrap();
    image.put(1, Block::full(Data::Pattern(77)).at(first));
    image.patches.push((first + 100, vec![0; 9000]));
    image.patches.push((first + 300, vec![5; 3]));
    for length in [None, Some(first + 5000), Some(first + 300 * MIB)] {
        image.file_length = length;
        image.write_to(&path);
        assert!(std::fs::read(&path).unwrap() == image.to_bytes());
    }
}

#[test]
fn chains_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write_chain(dir.path(), &random_chain(3, 3));
    let chain = Chain::open(&paths).unwrap();
    let parent = |n: usize| &chain.0[n].locator[1].1;
    assert_eq!([parent(1), parent(2)], [".\\l0.vhdx", ".\\l1.vhdx"]);
    let linkage = braced(chain.0[1].data_write_guid);
    assert_eq!(chain.0[2].locator[0], ("parent_linkage".into(), linkage));
}

#[test]
fn paged_layers() {
    let dir = tempfile::tempdir().unwrap();
    let size = 24 * MIB - 8192;
    let owns = |layer: u64, page: u64| {
        let all = layer == 0 && page / 256 != 3;
        all || page / 256 == layer || Rng::new(layer << 32 | page).chance(1, 9)
    };
    let fill = |layer: u64, page: u64, buf: &mut [u8]| pattern(layer, page * 4096, buf);
    let mut images = vec![Image::dynamic(size)];
    images.push(images[0].new_child());
    images.push(images[1].new_child());
    images[2].order = Order::Shuffled(1);
    let paths: Vec<_> = (0..3).map(|n| dir.path().join(format!("l{n}.vhdx"))).collect();
    for (n, image) in (0u64..).zip(&images) {
        let path = &paths[n as usize];
        image.write_paged(path, 4096, |p| owns(n, p), |p, buf| fill(n, p, buf));
    }
    let chain = Chain::open(&paths).unwrap();
    let mut want = vec![0; 4096];
    for page in 0..size / 4096 {
        match (0..3).rev().find(|n| owns(*n, page)) {
            Some(n) => fill(n, page, &mut want),
            None => want.fill(0),
        }
        assert!(chain.read(2, page * 4096, 4096).unwrap() == want, "page {page}");
    }
}
