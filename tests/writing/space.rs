//! Space begins where no table claims any: images that are cut short, or whose tables claim space that is not theirs,
//! opened for writing.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{Check, Checkpoint, Merge, Reparent, Severity};
use avhdx::storage::{FileId, LockMode, LockOutcome, MemStorage, Storage};
use avhdx::{Disk, Error, ErrorKind, OpenOptions, Result, VhdxFile, Zeroing};
use avhdx_testkit::build::{
    Block, Data, Descriptor, Image, LogEntry, RegionEntry, SECTOR, state, write_chain,
};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::naive;
use uuid::Uuid;

use crate::common::MIB;

const REGION: Uuid = Uuid::from_u128(0x5ace_0000_0000_4000_8000_0000_0000_0001);
const LOG: Uuid = Uuid::from_u128(0x5ace_0000_0000_4000_8000_0000_0000_0002);

fn bytes_of(file: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn open(bytes: &[u8]) -> (Arc<dyn Storage>, VhdxFile) {
    let file: Arc<dyn Storage> = Arc::new(MemStorage::new(bytes.to_vec()).named("image"));
    let options = OpenOptions::new().writable(true).orphan_children(true);
    let image = options.open_file(Arc::clone(&file)).unwrap();
    (file, image)
}

/// The broken rules, as codes with the offsets of the faults.
fn broken(bytes: Vec<u8>) -> Vec<(&'static str, Option<u64>)> {
    let report = Check::new().run_file(Arc::new(MemStorage::new(bytes))).unwrap();
    let findings = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    findings.map(|finding| (finding.code, finding.offset)).collect()
}

type Change = fn(&VhdxFile) -> Result<()>;

/// Every kind of change, each to a block without faults.
const CHANGES: [Change; 4] = [
    |image| image.write_at(&[1; 512], 10 * MIB),
    |image| image.write_at(&[1; 5], 7),
    |image| image.discard(0..MIB),
    |image| image.write_zeroes(3..90_000, Zeroing::KeepSpace),
];

/// Each change of the image is refused with this code at this file offset, the file stays the same, and everything
/// readable before stays readable.
fn refuses(bytes: &[u8], code: &str, at: u64) -> Error {
    let read = |image: &VhdxFile| {
        let blocks = 0..image.geometry().size / MIB;
        let read = |block| {
            let mut buf = vec![0; MIB as usize];
            image.read_at(&mut buf, block * MIB).map(|()| buf).map_err(|error| error.kind())
        };
        blocks.map(read).collect::<Vec<_>>()
    };
    let before = read(&OpenOptions::new().open_file(open(bytes).0).unwrap());
    let mut last = None;
    for change in CHANGES {
        let (file, image) = open(bytes);
        for _ in 0..2 {
            let error = change(&image).unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, code), "{error}");
            assert_eq!((error.file(), error.offset()), (Some("image"), Some(at)), "{error}");
            assert!(error.found().is_some() && error.expected().is_some(), "{error}");
            last = Some(error);
        }
        assert!(read(&image) == before, "{code}: it reads on");
        image.flush().unwrap();
        image.close().unwrap();
        drop(image);
        assert!(bytes_of(file.as_ref()) == bytes, "{code}: byte for byte");
    }
    assert!(!broken(bytes.to_vec()).is_empty(), "{code}: a check finds it too");
    last.unwrap()
}

fn sound(file: &dyn Storage) {
    let bytes = bytes_of(file);
    assert_eq!(broken(bytes.clone()), []);
    assert_eq!(naive::Layer::from_bytes(bytes).unwrap().faults(), Vec::<String>::new());
}

/// The naive reader finds these bytes on the disk of the file.
fn holds(file: &dyn Storage, want: &[u8]) {
    let chain = naive::Chain::from_bytes([bytes_of(file)]).unwrap();
    let found = chain.flat(0).unwrap();
    let first = difference(&found, want);
    assert!(first.is_none(), "differs at {first:x?}");
}

/// Four consecutive blocks of 1 MiB on a disk of 16 MiB.
fn four_blocks() -> Image {
    let mut image = Image::dynamic(16 * MIB);
    for block in 0..4 {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    image
}

#[test]
fn a_write_does_not_take_the_place_of_a_block_that_was_lost() {
    let mut image = four_blocks();
    let whole = image.layout();
    // All of the last block, and parts of it down to a sector.
    for lost in [MIB, MIB / 2, 512, 1] {
        image.file_length = Some(whole.file_length - lost);
        let error = refuses(&image.to_bytes(), "claim.lost", whole.payload_entry(3).start);
        assert!(error.message().starts_with("block 3 lost bytes"), "{error}");
    }
    // Two are lost: the first is named and the other counted.
    image.file_length = Some(whole.file_length - MIB - 4096);
    let error = refuses(&image.to_bytes(), "claim.lost", whole.payload_entry(2).start);
    assert!(error.message().starts_with("block 2 (and 1 more) lost bytes"), "{error}");
    // Nothing is lost, and the same changes succeed.
    image.file_length = None;
    for change in CHANGES {
        let (file, image) = open(&image.to_bytes());
        change(&image).unwrap();
        image.close().unwrap();
        sound(file.as_ref());
    }
}

/// A disk of 40 MiB in blocks of 32 MiB, whose file ends with the disk.
fn cut_behind_the_disk(blocks: &[u64]) -> (Image, Vec<u8>) {
    let mut image = Image::dynamic(40 * MIB);
    image.block_size = 32 << 20;
    for block in blocks {
        image.put(*block, Block::full(Data::Pattern(block + 1)));
    }
    let place = image.layout().payload[&1];
    image.file_length = Some(place + 8 * MIB);
    let flat = image.flat(None);
    (image, flat)
}

#[test]
fn a_block_cut_off_behind_the_end_of_the_disk_keeps_its_space() {
    let (image, mut flat) = cut_behind_the_disk(&[1]);
    let (file, disk) = open(&image.to_bytes());
    disk.write_at(&[7; 3 << 20], MIB).unwrap();
    flat[MIB as usize..4 << 20].fill(7);
    disk.flush().unwrap();
    holds(file.as_ref(), &flat);
    disk.close().unwrap();
    sound(file.as_ref());
    holds(file.as_ref(), &flat);
    // The same in the next session.
    let (file, disk) = open(&bytes_of(file.as_ref()));
    disk.write_at(&[8; 8 << 20], 32 * MIB).unwrap();
    flat[32 << 20..].fill(8);
    disk.close().unwrap();
    sound(file.as_ref());
    holds(file.as_ref(), &flat);
}

#[test]
fn space_freed_beyond_the_old_end_of_the_file_belongs_to_no_other_block() {
    let (image, mut flat) = cut_behind_the_disk(&[0, 1]);
    for discarded in [0, 1] {
        let (file, disk) = open(&image.to_bytes());
        disk.write_at(&[7; 4096], 9 * MIB).unwrap();
        flat[9 << 20..(9 << 20) + 4096].fill(7);
        let range = [0..32 * MIB, 32 * MIB..40 * MIB][discarded].clone();
        disk.discard(range.clone()).unwrap();
        disk.flush().unwrap();
        disk.write_at(&[9; 4096], range.start + MIB).unwrap();
        let mut flat = flat.clone();
        flat[range.start as usize..range.end as usize].fill(0);
        flat[(range.start + MIB) as usize..][..4096].fill(9);
        let mut read = vec![0; flat.len()];
        disk.read_at(&mut read, 0).unwrap();
        assert!(read == flat);
        disk.close().unwrap();
        sound(file.as_ref());
        holds(file.as_ref(), &flat);
    }
}

/// Everything in an older image is discarded, and the image is closed and written to again without growing.
#[test]
fn space_given_up_before_a_close_is_used_again_after_it() {
    let mut image = Image::dynamic(80 * MIB);
    for block in 0..40 {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let (file, disk) = open(&image.to_bytes());
    let len = file.len().unwrap();
    for round in 1..4_u8 {
        disk.discard(0..80 * MIB).unwrap();
        disk.flush().unwrap();
        disk.close().unwrap();
        assert_eq!(file.len().unwrap(), len, "round {round}");
        for block in 0..40 {
            disk.write_at(&[round; 4096], 2 * block * MIB).unwrap();
        }
        disk.flush().unwrap();
        assert_eq!(file.len().unwrap(), len, "round {round}");
    }
    disk.close().unwrap();
    sound(file.as_ref());
}

#[test]
fn a_block_cut_off_in_the_middle_of_a_mib_keeps_its_space() {
    // The disk, and with it the file, ends at no alignment.
    for size in [5 * MIB + 512, 7 * MIB - 512, 4 * MIB + MIB / 2] {
        let mut image = Image::dynamic(size);
        image.block_size = 4 << 20;
        image.put(1, Block::full(Data::Pattern(4)));
        let place = image.layout().payload[&1];
        image.file_length = Some(place + size - 4 * MIB);
        let mut flat = image.flat(None);
        let (file, disk) = open(&image.to_bytes());
        disk.write_at(&[3; 700], 2 * MIB - 7).unwrap();
        flat[(2 << 20) - 7..][..700].fill(3);
        disk.write_at(&[5; 700], size - 701).unwrap();
        flat[size as usize - 701..][..700].fill(5);
        disk.close().unwrap();
        sound(file.as_ref());
        holds(file.as_ref(), &flat);
    }
}

#[test]
fn entries_that_claim_what_the_file_does_not_have_stop_a_change() {
    let image = four_blocks();
    let layout = image.layout();
    let end = layout.file_length;
    let far = [end, end + MIB, end + (1 << 40), (1 << 48) - MIB, 1 << 48, !0 << 20, 1 << 63, 0];
    for place in far {
        for found in [state::FULLY_PRESENT, state::PARTIALLY_PRESENT, state::UNMAPPED] {
            if place == 0 && found == state::UNMAPPED {
                continue; // no offset at all
            }
            let mut image = image.clone();
            let index = image.bat_index(9);
            image.bat_override.insert(index, place | u64::from(found));
            refuses(&image.to_bytes(), "claim.lost", layout.payload_entry(9).start);
        }
        // Offsets in other states are not used, whatever they are.
        for found in [state::NOT_PRESENT, state::UNDEFINED, state::ZERO] {
            let mut image = image.clone();
            let index = image.bat_index(9);
            image.bat_override.insert(index, place | u64::from(found));
            let (file, disk) = open(&image.to_bytes());
            disk.write_at(&[1; 512], 10 * MIB).unwrap();
            disk.close().unwrap();
            assert_eq!(file.len().unwrap(), end + MIB, "right behind the end");
            let mut flat = image.flat(None);
            flat[10 << 20..(10 << 20) + 512].fill(1);
            holds(file.as_ref(), &flat);
        }
    }
}

#[test]
fn entries_that_claim_the_same_bytes_stop_a_change() {
    let mut image = four_blocks();
    image.block_size = 2 << 20;
    let layout = image.layout();
    let places: Vec<u64> = layout.payload.values().copied().collect();
    let cases = [
        // The same block twice, half of it, and one over the end of the table.
        (places[1] | 6, 1, "block 6 has it"),
        ((places[1] + MIB) | 6, 1, "block 6 has it"),
        ((places[0] - MIB) | 6, 0, "block 6 has it"),
        (places[1] | 3, 1, "block 6 has it"),
        ((2 * MIB) | 6, 6, "the BAT region has it"),
        (MIB | 6, 6, "the log has it"),
    ];
    for (entry, first, other) in cases {
        let mut image = image.clone();
        let index = image.bat_index(6);
        image.bat_override.insert(index, entry);
        let at = layout.payload_entry(first).start;
        let bytes = image.to_bytes();
        // The first in the table is named, with the block it shares its space with.
        let error = refuses(&bytes, "claim.shared", at);
        assert!(format!("{error}").contains(other), "{error}");
    }
    // Offsets in other states claim nothing.
    for found in [state::NOT_PRESENT, state::UNDEFINED, state::ZERO] {
        let mut image = image.clone();
        let index = image.bat_index(6);
        image.bat_override.insert(index, places[1] | u64::from(found));
        let (_, disk) = open(&image.to_bytes());
        disk.write_at(&[1; 512], 10 * MIB).unwrap();
    }
}

#[test]
fn a_sector_bitmap_is_claimed_where_there_is_a_parent() {
    let base = Image::dynamic(16 * MIB);
    let mut child = base.new_child();
    child.put(3, Block::partial_runs(Data::Pattern(1), &[(4, 9)]));
    let layout = child.layout();
    let index = child.bitmap_index(0);
    let at = layout.bitmap_entry(0).start;
    let refused = |entry: u64| {
        let mut child = child.clone();
        child.bat_override.insert(index, entry);
        let (file, image) = open(&child.to_bytes());
        let error = image.write_at(&[1; 512], 10 * MIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        drop(image);
        assert!(bytes_of(file.as_ref()) == child.to_bytes());
        (error.code(), error.offset())
    };
    for place in [layout.file_length, layout.file_length - MIB / 2 + MIB / 2, !0 << 20, 0] {
        assert_eq!(refused(place | 6), ("claim.lost", Some(at)));
    }
    let block = layout.payload_entry(3).start;
    assert_eq!(refused(layout.payload[&3] | 6), ("claim.shared", Some(block)));
    // Without a parent there is no bitmap, whatever an older writer left there.
    let mut image = four_blocks();
    let index = image.bitmap_index(0);
    for entry in [(!0 << 20) | 6, image.layout().payload[&2] | 6] {
        image.bat_override.insert(index, entry);
        let (file, disk) = open(&image.to_bytes());
        disk.write_at(&[1; 512], 10 * MIB).unwrap();
        disk.close().unwrap();
        let mut flat = image.flat(None);
        flat[10 << 20..(10 << 20) + 512].fill(1);
        holds(file.as_ref(), &flat);
    }
}

#[test]
fn regions_of_either_table_are_claimed() {
    let mut image = four_blocks();
    image.add_region(REGION, false, vec![0x5A; 512]);
    let layout = image.layout();
    let table = layout.get("region_table2").start;
    let place = |image: &mut Image, offset: u64| {
        let mut entry = RegionEntry::new(REGION);
        (entry.offset, entry.required) = (Some(offset), 0);
        image.region_tables[1].as_mut().unwrap().entries[2] = entry;
    };
    // Over a block, and beyond the end of the file.
    let mut over = image.clone();
    place(&mut over, layout.payload[&2]);
    let error = refuses(&over.to_bytes(), "claim.shared", layout.payload_entry(2).start);
    assert!(format!("{error}").contains(&format!("region {REGION} has it")), "{error}");
    for offset in [layout.file_length, layout.file_length + MIB, 1 << 60] {
        let mut behind = image.clone();
        place(&mut behind, offset);
        let (file, disk) = open(&behind.to_bytes());
        let error = disk.write_at(&[1; 512], 10 * MIB).unwrap_err();
        let told = (error.kind(), error.code(), error.offset());
        assert_eq!(told, (ErrorKind::Damaged, "claim.lost", Some(table + 16 + 64)), "{error}");
        drop(disk);
        assert!(bytes_of(file.as_ref()) == behind.to_bytes());
        // An invalid table claims nothing.
        behind.region_tables[1].as_mut().unwrap().signature = *b"REGI";
        let (_, disk) = open(&behind.to_bytes());
        disk.write_at(&[1; 512], 10 * MIB).unwrap();
    }
}

#[test]
fn a_table_that_a_replay_brought_is_gone_over_too() {
    let image = four_blocks();
    let layout = image.layout();
    let bat = layout.get("bat").start;
    let dirty = |entry: u64, length: u64| {
        let mut dirty = image.clone();
        let mut page = image.to_bytes()[bat as usize..][..SECTOR].to_vec();
        page[9 * 8..10 * 8].copy_from_slice(&entry.to_le_bytes());
        dirty.set_log_guid(LOG);
        let mut change = LogEntry::new(1, vec![Descriptor::data(bat, page)]);
        change.last_file_offset = Some(length);
        dirty.log = vec![change];
        dirty.to_bytes()
    };
    let end = layout.file_length;
    // The replay would extend the file to the length in the log. Claims beyond that are lost.
    for entry in [(end + MIB) | 6, (!0 << 20) | 6] {
        let before = dirty(entry, end);
        let file: Arc<dyn Storage> = Arc::new(MemStorage::new(before.clone()));
        let options = OpenOptions::new().writable(true);
        let error = options.open_file(Arc::clone(&file)).unwrap_err();
        assert_eq!(error.code(), "claim.lost", "{error}");
        assert_eq!(error.offset(), Some(layout.payload_entry(9).start));
        assert!(bytes_of(file.as_ref()) == before);
    }
    let (file, disk) = open(&dirty(end | 6, end + MIB));
    disk.write_at(&[1; 512], 10 * MIB).unwrap();
    disk.close().unwrap();
    sound(file.as_ref());
    let mut flat = image.flat(None);
    flat[10 << 20..(10 << 20) + 512].fill(1);
    holds(file.as_ref(), &flat);
}

/// A chain of a base and a child in a folder, one of them cut short by 1 MiB.
fn chain_with_a_loss(folder: &Path, cut: usize) -> (Vec<std::path::PathBuf>, Vec<Vec<u8>>) {
    let base = four_blocks();
    let mut child = base.new_child();
    child.put(1, Block::full(Data::Pattern(8))).put(5, Block::full(Data::Pattern(9)));
    let mut images = [base, child];
    images[cut].file_length = Some(images[cut].layout().file_length - MIB);
    (write_chain(folder, &images), images.iter().map(Image::to_bytes).collect())
}

#[test]
#[allow(clippy::disallowed_methods)]
fn operations_leave_files_alone_that_lost_something() {
    let names = |folder: &Path| {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let all = |folder: &Path| {
        names(folder).iter().map(|n| std::fs::read(folder.join(n)).unwrap()).collect::<Vec<_>>()
    };
    for cut in [0, 1] {
        let folder = tempfile::tempdir().unwrap();
        let (paths, _) = chain_with_a_loss(folder.path(), cut);
        let before = all(folder.path());
        let told = |what: &str, error: Error| {
            assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "claim.lost"), "{error}");
            assert_eq!(error.file(), paths[cut].to_str(), "{what}: {error}");
            assert!(all(folder.path()) == before, "{what}: {error}");
        };
        let chain = OpenOptions::new().writable(true).open(&paths[1]).unwrap();
        let merge = || Merge::new(chain.layers()[0].id);
        told("the forecast of a merge", merge().forecast(&chain).unwrap_err());
        told("a merge", merge().run(&chain).unwrap_err());
        told("a merge without much space", merge().low_space(true).run(&chain).unwrap_err());
        if cut == 1 {
            let checkpoint = Checkpoint::new();
            told("the forecast of a checkpoint", checkpoint.forecast(&chain).unwrap_err());
            told("a checkpoint", Checkpoint::new().run(&chain).unwrap_err());
            told("a write", chain.write_at(&[1], 3 * MIB).unwrap_err());
            drop(chain);
            let other = folder.path().join("other.vhdx");
            std::fs::copy(&paths[0], &other).unwrap();
            let reparent = Reparent::new(&other).unproven(true);
            let error = reparent.run(&paths[1]).unwrap_err();
            std::fs::remove_file(other).unwrap();
            // It reads both disks first.
            assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
            assert!(all(folder.path()) == before, "{error}");
        } else {
            // Writes to the child do not change the base.
            chain.write_at(&[1], 5 * MIB).unwrap();
        }
    }
}

/// A file that another program writes to after it was opened.
#[derive(Debug)]
struct Unlocked(Arc<dyn Storage>);

impl Storage for Unlocked {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(from)
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(None)
    }
    fn try_lock(&self, _: LockMode) -> io::Result<LockOutcome> {
        Ok(LockOutcome::Locked)
    }
}

#[test]
fn a_file_that_another_changed_since_it_was_opened_is_not_written_to() {
    let bytes = four_blocks().to_bytes();
    let file: Arc<dyn Storage> = Arc::new(MemStorage::new(bytes).named("image"));
    let open = || {
        let file: Arc<dyn Storage> = Arc::new(Unlocked(Arc::clone(&file)));
        OpenOptions::new().writable(true).open_file(file).unwrap()
    };
    let (first, second, third) = (open(), open(), open());
    second.write_at(&[2; 512], 10 * MIB).unwrap();
    second.close().unwrap();
    let before = bytes_of(file.as_ref());
    for _ in 0..2 {
        let error = first.write_at(&[1; 512], 12 * MIB).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "session.changed"), "{error}");
    }
    drop(first);
    assert!(bytes_of(file.as_ref()) == before);
    // The same if only the length differs.
    drop(third);
    let third = open();
    file.set_len(before.len() as u64 + 512).unwrap();
    let error = third.write_at(&[1; 512], 12 * MIB).unwrap_err();
    assert_eq!(error.code(), "session.changed", "{error}");
}
