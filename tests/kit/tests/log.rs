//! Logs of all kinds, replayed by the naive reader and by QEMU.

#![allow(clippy::disallowed_methods)]

use avhdx_testkit::build::*;
use avhdx_testkit::mutate::{put_u8, put_u64, reseal, u64_at};
use avhdx_testkit::naive::{Chain, Layer};
use avhdx_testkit::qemu::Qemu;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0001);
const OLD: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0002);

/// An image whose BAT in the file is empty, and one that has two blocks.
fn before_and_after() -> (Image, Image) {
    let before = Image::dynamic(8 * MIB);
    let mut after = before.clone();
    after.put(1, Block::full(Data::Pattern(1))).put(6, Block::full(Data::Pattern(2)));
    (before, after)
}

/// The update that writes `after`'s BAT, and an empty one.
fn bats() -> (Image, Descriptor, Descriptor) {
    let (before, after) = before_and_after();
    let image = Image::dirty(&before, &after, GUID, 1);
    let full = image.log[0].descriptors[0].clone();
    let empty = Descriptor::zero(after.layout().get("bat").start, 4096);
    (image, full, empty)
}

/// The reader and QEMU see `want`.
fn reads(image: &Image, want: &[u8]) {
    reads_alone(image, want);
    let Some(qemu) = Qemu::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("i.vhdx"), dir.path().join("i.raw"));
    image.write_to(&path);
    qemu.repair(&path);
    qemu.to_raw(&path, &raw);
    assert!(std::fs::read(&raw).unwrap() == want, "QEMU");
    assert!(Chain::open([&path]).unwrap().flat(0).unwrap() == want, "after QEMU's replay");
}

/// The reader, in memory and streaming, sees `want`; for images that QEMU reads differently.
fn reads_alone(image: &Image, want: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.vhdx");
    image.write_to(&path);
    let chain = Chain::from_bytes([image.to_bytes()]).unwrap();
    assert!(chain.flat(0).unwrap() == want, "in memory");
    assert!(Chain::open([&path]).unwrap().flat(0).unwrap() == want, "streaming");
}

fn refused(image: &Image) -> String {
    Layer::from_bytes(image.to_bytes()).unwrap_err()
}

#[test]
fn a_dirty_image() {
    let (before, after) = before_and_after();
    let image = Image::dirty(&before, &after, GUID, 1);
    reads(&image, &after.flat(None));
    // In the file there is nothing yet.
    let mut forgotten = image.clone();
    forgotten.set_log_guid(Uuid::nil());
    reads(&forgotten, &before.flat(None));
}

#[test]
fn several_descriptor_sectors() {
    let (image, full, empty) = bats();
    let mut many = image.clone();
    let spare = many.layout().needed_length;
    // More than the 126 in the first sector, with a data sector after them all; they write to a
    // slack area whose existence the last one proves.
    many.file_length = Some(spare + MIB);
    let zeros = (0..200).map(|n| Descriptor::zero(spare + n * 4096, 4096));
    let updates: Vec<_> = [empty].into_iter().chain(zeros).chain([full]).collect();
    many.log = vec![LogEntry::new(9, updates)];
    assert_eq!(many.log[0].length(), 3 * SECTOR);
    // QEMU reads all descriptor sectors to the place of the first.
    reads_alone(&many, &before_and_after().1.flat(None));
}

#[test]
fn an_entry_wraps_around() {
    let (image, full, empty) = bats();
    let mut wraps = image.clone();
    let end = wraps.log_length - SECTOR as u32;
    let first = LogEntry::new(41, vec![empty]).at(end - SECTOR as u32);
    wraps.log = vec![first, LogEntry::new(42, vec![full.clone()])];
    assert_eq!(wraps.layout().get("log_entry:1").end, wraps.layout().get("log").end);
    reads(&wraps, &before_and_after().1.flat(None));
}

/// Entries of another session are ignored, however high their numbers.
#[test]
fn stale_entries() {
    let (image, full, empty) = bats();
    let mut stale = image.clone();
    stale.log = vec![
        LogEntry::new(5, vec![full]),
        LogEntry::new(6, vec![empty.clone()]).guid(OLD),
        LogEntry::new(900, vec![empty]).guid(OLD).at(64 << 10),
    ];
    reads(&stale, &before_and_after().1.flat(None));
}

/// A torn last entry, or one with a wrong checksum, ends the sequence before it.
#[test]
fn torn_entries() {
    let (image, full, empty) = bats();
    let mut torn = image.clone();
    let data = Descriptor::data(image.layout().get("bat").start, vec![0xFF; SECTOR]);
    let first = LogEntry::new(1, vec![empty, full]);
    let want = before_and_after().1.flat(None);
    torn.log = vec![first.clone(), LogEntry::new(2, vec![data.clone()]).torn(1)];
    reads(&torn, &want);
    torn.log[1].lost.clear();
    torn.log[1].checksum = Checksum::Wrong;
    reads(&torn, &want);
    // The checksum is right, but the data sector is from another time.
    let Descriptor::Data { file_offset, bytes, .. } = data else { unreachable!() };
    let old =
        Descriptor::Data { file_offset, bytes, sequence_number: None, sector_sequence: Some(1) };
    torn.log[1] = LogEntry::new(2, vec![old]);
    // QEMU does not check data sectors until it replays them, and gives up there.
    reads_alone(&torn, &want);
    // Nothing is left if the only entry is torn.
    torn.log = vec![first.torn(1)];
    assert_eq!(refused(&torn), "no active log sequence");
}

/// A sequence is complete if it contains the tail of its head; of two the higher one is used. QEMU ignores
/// tails.
#[test]
fn tails() {
    let (image, full, empty) = bats();
    let (before, after) = before_and_after();
    let mut tails = image.clone();
    // Only the head is active: the update before it was applied long ago.
    tails.log = vec![
        LogEntry::new(1, vec![full.clone()]),
        LogEntry::new(2, vec![Descriptor::zero(image.layout().get("bat").end - 4096, 4096)])
            .tail(Tail::Own),
    ];
    reads_alone(&tails, &before.flat(None));
    tails.log[1].tail = Tail::First;
    reads_alone(&tails, &after.flat(None));
    tails.log[1].tail = Tail::At(512 << 10);
    assert_eq!(refused(&tails), "no active log sequence");
    let lower = LogEntry::new(1, vec![full.clone()]).at(128 << 10).tail(Tail::Own);
    let higher = LogEntry::new(7, vec![empty]).at(0).tail(Tail::Own);
    tails.log = vec![lower, higher];
    reads_alone(&tails, &before.flat(None));
}

/// Entries from the tail of the head on are active, however many they are, and wherever the ring ends. If the head is
/// torn, the entry before it is the head, with its own tail.
#[test]
fn tails_that_trail() {
    let (image, full, empty) = bats();
    let (before, after) = before_and_after();
    let slack = image.layout().needed_length;
    let beside = |n: u64| Descriptor::zero(slack + n * 4096, 4096);
    for first_at in [0, image.log_length - 5 * SECTOR as u32] {
        let mut trails = image.clone();
        trails.file_length = Some(slack + MIB);
        // The blocks come with the second entry, and are gone with the fourth.
        trails.log = vec![
            LogEntry::new(11, vec![beside(0)]).tail(Tail::Own).at(first_at),
            LogEntry::new(12, vec![full.clone()]).tail(Tail::Entry(0)),
            LogEntry::new(13, vec![beside(1)]).tail(Tail::Entry(0)),
            LogEntry::new(14, vec![empty.clone()]).tail(Tail::Entry(1)),
            LogEntry::new(15, vec![full.clone()]).tail(Tail::Entry(2)),
            LogEntry::new(16, vec![beside(2)]).tail(Tail::Entry(2)),
            LogEntry::new(17, vec![beside(3)]).tail(Tail::Entry(5)),
        ];
        // The head has let go of all that matters.
        reads_alone(&trails, &before.flat(None));
        trails.log[6] = trails.log[6].clone().torn(0);
        reads_alone(&trails, &after.flat(None));
        trails.log[5] = trails.log[5].clone().torn(0);
        reads_alone(&trails, &after.flat(None));
        trails.log[4] = trails.log[4].clone().torn(1);
        // The fourth is the last, and what it empties is what the second brought.
        reads_alone(&trails, &before.flat(None));
        trails.log[3] = trails.log[3].clone().torn(0);
        reads_alone(&trails, &after.flat(None));
        // An entry that the tail names is gone: nothing is active but what is complete before it.
        trails.log[1] = trails.log[1].clone().torn(1);
        reads_alone(&trails, &before.flat(None));
    }
}

#[test]
fn file_lengths() {
    let (image, ..) = bats();
    let mut cut = image.clone();
    cut.log[0].flushed_file_offset = Some(image.layout().file_length + MIB);
    assert_eq!(refused(&cut), "truncated");
    // Growth that never reached the disk is made up for: the last block is a hole.
    let mut grown = image.clone();
    let last = *image.layout().payload.values().max().unwrap();
    grown.file_length = Some(last);
    let mut want = before_and_after().1;
    want.put(6, Block::full(Data::Zeros));
    // QEMU leaves the file short.
    reads_alone(&grown, &want.flat(None));
}

#[test]
fn random_dirty_children() {
    for seed in 20..28 {
        let chain = random_chain(seed, 2);
        let base = Chain::from_bytes([chain[0].to_bytes()]).unwrap().flat(0).unwrap();
        let mut before = chain[1].clone();
        before.blocks.clear();
        before.bitmap_chunks.insert(0);
        before.bitmap_at = chain[1].layout().bitmaps;
        let dirty = Image::dirty(&before, &chain[1], GUID, 1 + seed as usize % 3);
        let read = Chain::from_bytes([chain[0].to_bytes(), dirty.to_bytes()]).unwrap();
        assert!(read.flat(1).unwrap() == chain[1].flat(Some(&base)), "seed {seed}");
    }
}

/// A flipped byte breaks a checksum; resealed, only the value is wrong.
#[test]
fn resealing() {
    let (mut image, full, empty) = bats();
    // The entry wraps around, and so does its checksum.
    let end = image.log_length - SECTOR as u32;
    image.log = vec![LogEntry::new(1, vec![empty, full]).at(end)];
    image.headers[0] = None;
    image.region_tables[1] = None;
    let layout = image.layout();
    let good = image.to_bytes();
    let mut same = good.clone();
    reseal(&mut same);
    assert_eq!(Layer::from_bytes(same).unwrap().size, 8 * MIB);
    for (name, offset, broken, sealed) in [
        // A byte of the file write GUID, a reserved one, and a flushed offset of 2^56.
        ("header2", 20, "no valid header", None),
        ("region_table1", 4000, "no valid region table", None),
        ("log_entry:0", 48 + 7, "no active log sequence", Some("truncated")),
    ] {
        let mut bytes = good.clone();
        let at = layout.get(name).start + offset;
        let old = bytes[at as usize];
        put_u8(&mut bytes, at, old ^ 1);
        assert_eq!(Layer::from_bytes(bytes.clone()).unwrap_err(), broken);
        reseal(&mut bytes);
        assert_eq!(Layer::from_bytes(bytes).err().as_deref(), sealed, "{name}");
    }
    let mut bytes = good;
    let number = layout.get("header2").start + 8;
    put_u64(&mut bytes, number, 99);
    reseal(&mut bytes);
    assert_eq!(u64_at(&bytes, number), 99);
    assert_eq!(Layer::from_bytes(bytes).unwrap().size, 8 * MIB);
}
