//! Images of one layer, damaged in every structure.

use std::ops::Range;
use std::sync::Arc;

use avhdx::ops::{Grade, Rescue, Ruin};
use avhdx::storage::MemStorage;
use avhdx::{Disk, ErrorKind};
use avhdx_testkit::build::{Block, Data, Image, Layout, Order};
use avhdx_testkit::rng::Rng;

use crate::judge::{Share, judge};

const MIB: u64 = 1 << 20;

pub(crate) fn zero(bytes: &mut [u8], range: Range<u64>) {
    let end = (range.end as usize).min(bytes.len());
    bytes[(range.start as usize).min(end)..end].fill(0);
}

pub(crate) fn rescue(bytes: Vec<u8>) -> avhdx::Result<Ruin> {
    Rescue::new().open_file(Arc::new(MemStorage::new(bytes)))
}

fn images() -> Vec<(String, Image)> {
    let mut images = Vec::new();
    for (block, seed) in [(1, 1), (2, 2), (2, 3), (8, 4)] {
        let mut image = Image::dynamic(24 * MIB + 4096 * seed);
        image.block_size = (block * MIB) as u32;
        image.order = if seed % 2 == 0 { Order::Sequential } else { Order::Shuffled(seed) };
        image.scatter(seed);
        images.push((format!("{block} MiB blocks, seed {seed}"), image));
    }
    let mut image = Image::fixed(20 * MIB);
    for block in 0..20 {
        image.put(block, Block::full(Data::Pattern(block)));
    }
    images.push(("fixed".into(), image));
    images
}

type Damage = fn(&mut Vec<u8>, &Layout);

const HEADERS: Range<u64> = 64 << 10..192 << 10;
const TABLES: Range<u64> = 192 << 10..320 << 10;

/// What is damaged, and whether all of the disk is to be read as it was.
const DAMAGES: [(&str, Damage, bool); 12] = [
    ("nothing", |_, _| {}, true),
    ("the identifier", |bytes, _| zero(bytes, 0..64 << 10), true),
    ("one header", |bytes, _| zero(bytes, 128 << 10..192 << 10), true),
    ("both headers", |bytes, _| zero(bytes, HEADERS), true),
    ("one region table", |bytes, _| zero(bytes, 192 << 10..256 << 10), true),
    ("both region tables", |bytes, _| zero(bytes, TABLES), true),
    ("the first MiB", |bytes, _| zero(bytes, 0..MIB), true),
    (
        "the metadata table",
        |bytes, layout| {
            let at = layout.get("metadata").start;
            zero(bytes, at..at + (64 << 10));
        },
        false,
    ),
    ("the metadata", |bytes, layout| zero(bytes, layout.get("metadata")), false),
    (
        "metadata and region tables",
        |bytes, layout| {
            zero(bytes, layout.get("metadata"));
            zero(bytes, TABLES);
        },
        false,
    ),
    ("the block allocation table", |bytes, layout| zero(bytes, layout.get("bat")), false),
    ("half of the file", |bytes, _| bytes.truncate(bytes.len() / 2), false),
];

#[test]
fn what_is_sure_of_a_damaged_image_is_right() {
    for (what, damage, is_whole) in DAMAGES {
        let mut total = Share::default();
        for (name, image) in images() {
            let flat = image.flat(None);
            let mut bytes = image.to_bytes();
            damage(&mut bytes, &image.layout());
            let what = format!("{what} of {name}");
            let ruin = rescue(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
            let share = judge(&ruin, &flat, &what);
            total.add(share);
            if is_whole {
                assert_eq!(share.right, share.all, "{what}: {:#?}", ruin.traces());
            }
        }
        total.print(what);
        match what {
            "nothing" | "the identifier" | "one header" | "both headers" | "one region table"
            | "both region tables" | "the first MiB" => {
                assert_eq!(total.sure, total.all, "{what}");
            }
            "the block allocation table" => assert_eq!(total.sure, 0),
            "the metadata" | "metadata and region tables" => {
                assert!(total.right * 10 > total.all * 9, "{what}: {total:?}");
            }
            "half of the file" => assert!(total.sure * 3 > total.all, "{what}: {total:?}"),
            _ => {}
        }
    }
}

#[test]
fn what_is_sure_is_right_wherever_four_kib_are_lost() {
    let mut total = Share::default();
    for (name, image) in images() {
        let (flat, whole, layout) = (image.flat(None), image.to_bytes(), image.layout());
        let mut rng = Rng::new(7);
        let structures = [0..MIB, layout.get("log"), layout.get("metadata"), layout.get("bat")];
        for n in 0..24 {
            let mut bytes = whole.clone();
            for _ in 0..=rng.below(3) {
                let range = &structures[rng.below(4) as usize];
                // Close to the start, where the structures have something.
                let near = if rng.chance(1, 2) { 4096 } else { 80 << 10 };
                let within = rng.below((range.end - range.start).min(near));
                let at = range.start + if rng.chance(1, 2) { within / 4096 * 4096 } else { within };
                zero(&mut bytes, at..at + 4096);
            }
            let what = format!("{name}, case {n}");
            match rescue(bytes) {
                Ok(ruin) => total.add(judge(&ruin, &flat, &what)),
                Err(error) => assert_eq!(error.code(), "rescue.size-unknown", "{what}"),
            }
        }
    }
    total.print("4 KiB of structures");
}

#[test]
fn what_is_sure_is_right_wherever_bytes_are_wild() {
    let mut total = Share::default();
    for (name, image) in images() {
        let (flat, whole, layout) = (image.flat(None), image.to_bytes(), image.layout());
        let mut rng = Rng::new(8);
        let structures = [0..MIB, layout.get("metadata"), layout.get("bat")];
        for n in 0..12 {
            let mut bytes = whole.clone();
            let range = &structures[rng.below(3) as usize];
            let near = if rng.chance(1, 2) { 1 } else { 320 << 10 };
            let at = range.start + rng.below((range.end - range.start).min(near)) / 4096 * 4096;
            rng.fill(&mut bytes[at as usize..][..4096]);
            let what = format!("{name}, case {n}");
            match rescue(bytes) {
                Ok(ruin) => total.add(judge(&ruin, &flat, &what)),
                Err(error) => assert_eq!(error.code(), "rescue.size-unknown", "{what}"),
            }
        }
    }
    total.print("4 KiB of chance");
}

#[test]
fn files_with_nothing_of_an_image_are_refused() {
    let mut chance = vec![0; 5 << 20];
    Rng::new(3).fill(&mut chance);
    for bytes in [Vec::new(), vec![0; 100], vec![0; 9 << 20], chance] {
        let error = rescue(bytes).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::NotVhdx, "rescue.nothing"));
    }
}

#[test]
fn a_size_that_is_given_counts() {
    let mut image = Image::dynamic(8 * MIB);
    image.put(0, Block::full(Data::Pattern(1))).put(5, Block::full(Data::Pattern(2)));
    let mut bytes = image.to_bytes();
    zero(&mut bytes, image.layout().get("metadata"));
    zero(&mut bytes, image.layout().get("bat"));
    let open = |rescue: Rescue| rescue.open_file(Arc::new(MemStorage::new(bytes.clone())));
    assert_eq!(open(Rescue::new()).unwrap_err().code(), "rescue.size-unknown");
    assert_eq!(open(Rescue::new().size(1)).unwrap_err().code(), "rescue.given");
    let ruin = open(Rescue::new().size(8 * MIB)).unwrap();
    assert_eq!(ruin.geometry().size, 8 * MIB);
    assert!(ruin.pieces().all(|piece| piece.grade == Grade::Lost));
    assert_eq!(ruin.loose(0).unwrap().ranges().len(), 1);
}

#[test]
fn pages_of_the_log_stand_in_for_those_of_the_table() {
    let mut before = Image::dynamic(8 * MIB);
    before.put(0, Block::full(Data::Pattern(1)));
    let mut after = before.clone();
    after.put(3, Block::full(Data::Pattern(2)));
    let flat = after.flat(None);
    let guid = Rng::new(4).uuid();
    // A log that waits to be replayed: what it holds is as good as the table itself.
    let pending = Image::dirty(&before, &after, guid, 1);
    let mut bytes = pending.to_bytes();
    zero(&mut bytes, pending.layout().get("bat"));
    let share = judge(&rescue(bytes).unwrap(), &flat, "a pending log");
    assert_eq!((share.sure, share.right), (share.all, share.all));
    // The same after a replay: the log is old, and what it holds is guessed.
    let mut replayed = Image::dirty(&before, &after, guid, 1);
    replayed.set_log_guid(avhdx::uuid::Uuid::nil());
    replayed.log = replayed.log.into_iter().map(|entry| entry.guid(guid)).collect();
    replayed.bat_override = after.bat_override.clone();
    let mut bytes = replayed.to_bytes();
    zero(&mut bytes, replayed.layout().get("bat"));
    let ruin = rescue(bytes).unwrap();
    let share = judge(&ruin, &flat, "an old log");
    assert_eq!((share.sure, share.right), (0, share.all), "{:#?}", ruin.traces());
}

#[test]
fn an_old_place_of_the_table_stands_in_for_it() {
    let mut image = Image::dynamic(16 * MIB);
    for block in [1, 2, 5, 9] {
        image.put(block, Block::full(Data::Pattern(block)));
    }
    let flat = image.flat(None);
    let table = image.layout().get("bat");
    let mut bytes = image.to_bytes();
    let old = bytes[table.start as usize..table.end as usize].to_vec();
    bytes.extend(old);
    judge(&rescue(bytes.clone()).unwrap(), &flat, "two tables");
    zero(&mut bytes, table);
    let ruin = rescue(bytes).unwrap();
    let share = judge(&ruin, &flat, "the old table");
    assert_eq!((share.sure, share.right), (0, share.all), "{:#?}", ruin.traces());
}

#[test]
fn what_is_sure_is_right_wherever_a_pending_log_is_torn() {
    let mut total = Share::default();
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let mut before = Image::dynamic(12 * MIB);
        before.put(0, Block::full(Data::Pattern(1))).put(7, Block::full(Data::Pattern(7)));
        let mut after = before.clone();
        for block in 1..6 {
            after.put(block, Block::full(Data::Pattern(block + 20)));
        }
        after.metadata.items[2].name = "disk_id".into();
        after.disk_id = rng.uuid();
        let flat = after.flat(None);
        let pending = Image::dirty(&before, &after, rng.uuid(), 1);
        let (whole, layout) = (pending.to_bytes(), pending.layout());
        let share = judge(&rescue(whole.clone()).unwrap(), &flat, "a whole log");
        assert_eq!((share.sure, share.right), (share.all, share.all));
        let log = layout.get("log");
        for n in 0..20 {
            let mut bytes = whole.clone();
            // The log holds a few sectors; a header may be lost too.
            let at = log.start + rng.below(6) * 4096;
            zero(&mut bytes, at..at + 4096);
            for header in [64 << 10, 128 << 10] {
                if rng.chance(1, 3) {
                    zero(&mut bytes, header..header + 4096);
                }
            }
            let ruin = rescue(bytes).unwrap();
            total.add(judge(&ruin, &flat, &format!("log {seed}, case {n}")));
        }
    }
    total.print("a torn log");
}
