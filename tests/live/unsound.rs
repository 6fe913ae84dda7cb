//! Layers with faults that would block a merge: nothing is marked or changed.

use std::path::{Path, PathBuf};

use avhdx::ops::Merge;
use avhdx::{DiffChain, Disk, ErrorKind, OpenOptions};
use avhdx_testkit::build::{
    Block, Contents, Data, IS_USER, IS_VIRTUAL_DISK, Image, Item, state, write_chain,
};
use uuid::Uuid;

use super::unfinished::stopped_at;
use super::{MIB, naively, writable};

const SIZE: u64 = 16 * MIB;
const FILLER: Uuid = Uuid::from_u128(0xf111_0000_0000_4000_8000_0000_0000_0001);

/// A base, and two layers with partially present blocks.
fn three() -> [Image; 3] {
    let mut base = Image::dynamic(SIZE);
    for block in 0..8 {
        base.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let mut middle = base.new_child();
    middle.put(1, Block::full(Data::Pattern(21)));
    middle.put(2, Block::partial_runs(Data::Pattern(22), &[(3, 40)]));
    middle.put(3, Block::partial_runs(Data::Pattern(23), &[(500, 8)]));
    let mut tip = middle.new_child();
    tip.put(2, Block::partial_runs(Data::Pattern(32), &[(0, 16)]));
    tip.put(5, Block::partial_runs(Data::Pattern(35), &[(64, 1)]));
    [base, middle, tip]
}

/// The merges of three layers: of the tip, of the layer below it, and of both.
const MERGES: [&str; 3] = ["the tip", "the middle", "both"];

fn merge(chain: &DiffChain, what: &str) -> Merge<'static> {
    let ids: Vec<_> = chain.layers().iter().map(|layer| layer.id).collect();
    match what {
        "the tip" => Merge::new(ids[0]),
        "the middle" => Merge::new(ids[1]),
        _ => Merge::new(ids[0]).into_layer(ids[2]),
    }
}

/// The merges that involve a layer, numbered from the base.
fn merges_with(of: usize) -> Vec<(&'static str, usize)> {
    let is_in = [("the tip", 1..3), ("the middle", 0..2), ("both", 0..3)];
    is_in
        .into_iter()
        .filter(|(_, layers)| layers.contains(&of))
        .map(|(what, _)| (what, of))
        .collect()
}

fn contents(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Exactly these merges are refused with this code for the file with this number, in forecasts, runs and runs
/// in low space; nothing is changed then.
fn refused(images: &[Image; 3], code: &str, merges: &[(&str, usize)]) {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), images);
    let before = contents(&paths);
    for what in MERGES {
        let chain = writable(&paths[2]);
        let Some((_, of)) = merges.iter().find(|(refused, _)| *refused == what) else {
            // The fault does not concern this merge.
            merge(&chain, what).forecast(&chain).unwrap_or_else(|error| panic!("{what}: {error}"));
            continue;
        };
        let told = [
            merge(&chain, what).forecast(&chain).map(drop),
            merge(&chain, what).run(&chain).map(drop),
            merge(&chain, what).low_space(true).run(&chain).map(drop),
        ];
        for told in told {
            let error = told.expect_err(what);
            assert_eq!(
                (error.code(), error.file()),
                (code, paths[*of].to_str()),
                "{what}: {error}"
            );
            assert!(error.section().is_some() && error.found().is_some(), "{what}: {error}");
        }
        drop(chain);
        assert!(contents(&paths) == before, "{what}: {code}");
    }
    // None of the files is marked.
    let chain = OpenOptions::new().open(&paths[2]).unwrap();
    assert!(chain.warnings().is_empty(), "{:?}", chain.warnings());
}

#[test]
fn a_merge_is_refused_where_partially_present_blocks_have_no_sector_bitmap() {
    for of in [1, 2] {
        let mut images = three();
        let index = images[of].bitmap_index(0);
        images[of].bat_override.insert(index, 0);
        refused(&images, "bat.bitmap-missing", &merges_with(of));
    }
}

#[test]
fn the_refusal_names_the_block_its_place_and_that_of_the_missing_bitmap() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = three();
    let index = images[1].bitmap_index(0);
    images[1].bat_override.insert(index, 0);
    let paths = write_chain(folder.path(), &images);
    let chain = writable(&paths[2]);
    let error = merge(&chain, "the tip").forecast(&chain).unwrap_err();
    let layout = images[1].layout();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(error.offset(), Some(layout.bitmap_entry(0).start), "{error}");
    assert_eq!(error.section(), Some("2.5.1.2"), "{error}");
    let place = format!("block 2, which the file has at {:#x}", layout.payload[&2]);
    assert!(error.message().contains(&place), "{error}");
}

#[test]
fn a_merge_is_refused_where_a_block_is_in_a_state_that_means_nothing() {
    for (of, block, bits) in [(0, 6, 4), (1, 6, 4), (2, 9, 4), (0, 3, 7)] {
        let mut images = three();
        let place = images[of].layout().payload.get(&block).copied().unwrap_or_default();
        let index = images[of].bat_index(block);
        images[of].bat_override.insert(index, place | bits);
        refused(&images, "bat.state", &merges_with(of));
    }
}

/// A table that ends just before the entry of the last sector bitmap has none for its chunk.
#[test]
fn a_merge_is_refused_where_the_table_has_no_entry_for_a_sector_bitmap() {
    // A table of 1 MiB has 131072 entries: 31 whole chunks of 4096 blocks, and 4065 blocks of another.
    let blocks = 131_072 - 31;
    let mut base = Image::dynamic(blocks * MIB);
    base.put(0, Block::full(Data::Pattern(1)));
    let mut middle = base.new_child();
    middle.bat_length = Some(MIB as u32);
    let mut tip = middle.new_child();
    tip.put(blocks - 1, Block::partial_runs(Data::Pattern(2), &[(0, 8)]));
    refused(&[base, middle, tip], "bat.length", &[("the tip", 1)]);
}

/// Fills the metadata of an image except for this many bytes.
fn fill(image: &mut Image, spare: u64) {
    let item = |bytes| Item::new("filler", FILLER, IS_USER, Contents::Bytes(bytes));
    image.metadata.items.push(item(vec![7; 8]));
    let at = image.layout().get("metadata_item:filler").start - image.metadata_offset;
    let free = u64::from(image.metadata_length) - at;
    *image.item("filler") = item(vec![7; (free - spare) as usize]);
}

#[test]
fn a_merge_is_refused_where_the_metadata_has_no_room_for_its_marks() {
    for of in 0..3 {
        let mut images = three();
        fill(&mut images[of], 8);
        refused(&images, "metadata.full", &merges_with(of));
    }
}

/// The layer above the merged one gets a path to the parent, which may be longer than its present one.
#[test]
fn a_merge_is_refused_where_the_layer_above_has_no_room_for_the_way_to_the_parent() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = three();
    images[1].parent_path(".\\a-base-of-a-rather-long-name.vhdx");
    images[2].parent_path(".\\l1.vhdx");
    fill(&mut images[2], 8);
    let paths = write_chain(folder.path(), &images);
    let base = folder.path().join("a-base-of-a-rather-long-name.vhdx");
    std::fs::rename(&paths[0], &base).unwrap();
    let paths = [base, paths[1].clone(), paths[2].clone()];
    let before = contents(&paths);
    let chain = writable(&paths[2]);
    let told = [
        merge(&chain, "the middle").forecast(&chain).map(drop),
        merge(&chain, "the middle").run(&chain).map(drop),
    ];
    for told in told {
        let error = told.unwrap_err();
        assert_eq!((error.code(), error.file()), ("metadata.full", paths[2].to_str()), "{error}");
    }
    assert!(contents(&paths) == before);
}

#[test]
fn a_merge_is_refused_where_what_is_said_of_the_disk_is_more_than_the_log_takes() {
    let mut images = three();
    for (n, name) in [(1, "one"), (2, "other")] {
        let item = Uuid::from_u128(0xf111_0000_0000_4000_8000_0000_0000_0010 + n);
        let bytes = Contents::Bytes(vec![n as u8; 600 << 10]);
        images[2].metadata.items.push(Item::new(name, item, IS_VIRTUAL_DISK, bytes));
    }
    for image in &mut images {
        image.metadata_length = 4 << 20;
        image.bat_offset = 6 * MIB;
    }
    refused(&images, "metadata.edit-size", &[("the tip", 1), ("both", 0)]);
}

/// The format allows a disk of size zero, but no disk can be resized to it.
#[test]
fn a_merge_of_a_disk_of_no_bytes_is_refused() {
    let mut base = Image::dynamic(SIZE);
    base.put(0, Block::bare(state::NOT_PRESENT));
    let middle = base.new_child();
    let mut tip = middle.new_child();
    tip.size = 0;
    refused(&[base, middle, tip], "resize.size", &[("the tip", 1), ("both", 0)]);
}

/// A merge that has begun is not blocked by faults that it need not touch.
#[test]
fn a_merge_that_has_begun_goes_on_past_damage_that_it_need_not_touch() {
    let folder = tempfile::tempdir().unwrap();
    let images = three();
    let paths = write_chain(folder.path(), &images);
    let flat = naively(&[paths[2].clone(), paths[1].clone(), paths[0].clone()]);
    // Just after the marks: nothing has been moved yet.
    for n in 1.. {
        let chain = writable(&paths[2]);
        assert!(stopped_at(n, merge(&chain, "the tip"), &chain), "over before it was marked");
        drop(chain);
        if !OpenOptions::new().open(&paths[2]).unwrap().warnings().is_empty() {
            break;
        }
    }
    damage(&paths[1], images[1].layout().payload_entry(7).start);
    let chain = writable(&paths[2]);
    Merge::resume(chain.layers()[0].id).run(&chain).unwrap();
    drop(chain);
    let chain = OpenOptions::new().open(&paths[1]).unwrap();
    let mut found = vec![0; 7 << 20];
    chain.read_at(&mut found, 0).unwrap();
    assert!(found == flat[..7 << 20]);
}

/// Gives an entry of the block allocation table an invalid state.
fn damage(path: &Path, at: u64) {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&4_u64.to_le_bytes()).unwrap();
}
