//! Chains with damaged and missing parents.

use std::path::Path;

use avhdx::ops::{Grade, Rescue};
use avhdx::{Linkage, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image, random_chain, write_chain};
use avhdx_testkit::rng::Rng;

use crate::damaged::zero;
use crate::judge::{Share, judge};

const MIB: u64 = 1 << 20;

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn three() -> (Vec<Image>, Vec<u8>) {
    let mut base = Image::dynamic(12 * MIB);
    base.block_size = 2 << 20;
    for block in 0..5 {
        base.put(block, Block::full(Data::Pattern(block)));
    }
    let mut middle = base.new_child();
    middle.put(1, Block::partial_runs(Data::Pattern(11), &[(8, 900)]));
    middle.put(2, Block::full(Data::Pattern(12)));
    let mut tip = middle.new_child();
    tip.put(0, Block::partial_runs(Data::Pattern(21), &[(0, 16), (4000, 96)]));
    let flat = tip.flat(Some(&middle.flat(Some(&base.flat(None)))));
    (vec![base, middle, tip], flat)
}

#[test]
fn a_chain_is_read_as_far_as_its_files_are_sound() {
    let (images, flat) = three();
    let dir = tempfile::tempdir().unwrap();
    let paths = write_chain(dir.path(), &images);
    let ruin = Rescue::new().open(&paths[2]).unwrap();
    let share = judge(&ruin, &flat, "a sound chain");
    assert_eq!((share.sure, share.right), (share.all, share.all), "{:#?}", ruin.traces());
    drop(ruin);
    // The region tables of the middle, and a page of the base's table.
    damage(&paths[1], |bytes| zero(bytes, 192 << 10..320 << 10));
    let share = judge(&Rescue::new().open(&paths[2]).unwrap(), &flat, "a damaged middle");
    assert_eq!(share.right, share.all);
    damage(&paths[0], |bytes| zero(bytes, images[0].layout().get("bat")));
    let ruin = Rescue::new().open(&paths[2]).unwrap();
    let share = judge(&ruin, &flat, "a damaged base");
    share.print("a base without its table");
    assert!(ruin.pieces().any(|piece| piece.grade == Grade::Lost));
}

#[test]
fn a_child_without_its_parent_gives_its_own_sectors() {
    let (images, flat) = three();
    let dir = tempfile::tempdir().unwrap();
    let paths = write_chain(dir.path(), &images);
    std::fs::remove_file(&paths[0]).unwrap();
    let ruin = Rescue::new().open(&paths[2]).unwrap();
    judge(&ruin, &flat, "no base");
    let bytes_of = |grade| -> u64 {
        let pieces = ruin.pieces().filter(|piece| piece.grade == grade);
        pieces.map(|piece| piece.range.end - piece.range.start).sum()
    };
    // Block 2 of the middle, 900 of its sectors, and 112 of the tip.
    assert_eq!(bytes_of(Grade::Sure), (2 << 20) + (900 + 112) * 512);
    assert_eq!(bytes_of(Grade::ParentMissing), 12 * MIB - bytes_of(Grade::Sure));
    assert!(ruin.traces().iter().any(|trace| trace.grade == Grade::ParentMissing));
}

#[test]
fn a_parent_of_another_identity_is_used_only_on_demand() {
    let (images, flat) = three();
    let dir = tempfile::tempdir().unwrap();
    let paths = write_chain(dir.path(), &images);
    let mut other = images[0].clone();
    other.reseed(99);
    other.write_to(&paths[0]);
    let ruin = Rescue::new().open(&paths[2]).unwrap();
    assert_eq!(ruin.names().len(), 2);
    let options = OpenOptions::new().linkage(Linkage::Ignore);
    let ruin = Rescue::new().options(options).open(&paths[2]).unwrap();
    let share = judge(&ruin, &flat, "a parent of another identity");
    assert_eq!(share.right, share.all);
    assert!(ruin.pieces().any(|piece| piece.grade == Grade::Guessed));
}

#[test]
fn an_image_that_is_its_own_parent_has_none() {
    let (mut images, _) = three();
    let dir = tempfile::tempdir().unwrap();
    let tip = images.last_mut().unwrap();
    let guid = tip.data_write_guid();
    tip.locator.set("parent_linkage", format!("{{{guid}}}"));
    tip.parent_path(".\\tip.avhdx");
    let path = dir.path().join("tip.avhdx");
    tip.write_to(&path);
    let ruin = Rescue::new().open(&path).unwrap();
    assert_eq!(ruin.names().len(), 1);
    assert!(ruin.pieces().any(|piece| piece.grade == Grade::ParentMissing));
}

#[test]
fn what_is_sure_of_chains_is_right_wherever_four_kib_are_lost() {
    let mut total = Share::default();
    for seed in 0..12 {
        let images = random_chain(seed, 3);
        let mut flat = Vec::new();
        for image in &images {
            flat = image.flat(Some(&flat));
        }
        let mut rng = Rng::new(seed);
        for n in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let paths = write_chain(dir.path(), &images);
            for _ in 0..=n / 2 {
                let layer = rng.below(3) as usize;
                let layout = images[layer].layout();
                let mut places = vec![0..MIB, layout.get("metadata"), layout.get("bat")];
                places.extend(layout.find("bitmap:0"));
                let range = places[rng.below(places.len() as u64) as usize].clone();
                let near = if rng.chance(1, 2) { 512 } else { 72 << 10 };
                let within = rng.below((range.end - range.start).min(near)) / 512 * 512;
                let at = range.start + within;
                damage(&paths[layer], |bytes| zero(bytes, at..at + 4096));
            }
            let what = format!("chain {seed}, case {n}");
            match Rescue::new().open(&paths[2]) {
                Ok(ruin) => total.add(judge(&ruin, &flat, &what)),
                Err(error) => assert_eq!(error.code(), "rescue.size-unknown", "{what}"),
            }
        }
    }
    total.print("4 KiB of chains");
}
