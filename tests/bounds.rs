//! Extreme sizes and numbers in files and arguments: none overflows or is accepted beyond its limit.
#![allow(clippy::disallowed_methods)] // some of the files are real

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use avhdx::ops::{Check, Checkpoint, Report};
use avhdx::storage::{Access, Host, LocalHost, Storage};
use avhdx::{Budget, CreateOptions, Disk, DiskExt, Error, ErrorKind, OpenOptions, VhdxFile};
use avhdx_testkit::build::{Block, Data, Descriptor, Image, LogEntry, SECTOR};
use avhdx_testkit::mutate::{put_u32, put_u64, reseal};
use avhdx_testkit::naive;
use uuid::Uuid;

use common::sparse::{Bounds, Sparse};
use common::{MIB, Shelf, memory, open_images};

const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0001);
const TIB: u64 = 1 << 40;
/// The file offsets of the two headers. [MS-VHDX] 2.2
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];

/// An image of two blocks, and the contents of its disk.
fn image() -> (Image, Vec<u8>) {
    let mut image = Image::dynamic(4 * MIB);
    image.put(1, Block::full(Data::Pattern(1))).put(3, Block::full(Data::Pattern(2)));
    let disk = image.flat(None);
    (image, disk)
}

/// The same image whose table is only in the log, as left by a writer that was killed. `more` edits the log
/// entry.
fn dirty(more: impl FnOnce(&mut LogEntry, u64)) -> (Image, Vec<u8>) {
    let (after, disk) = image();
    let mut before = Image::dynamic(4 * MIB);
    before.reseed(9);
    let mut image = Image::dirty(&before, &after, GUID, 1);
    let end = image.layout().needed_length;
    more(&mut image.log[0], end);
    (image, disk)
}

fn sparse(image: &Image, bounds: Bounds) -> Arc<Sparse> {
    Sparse::new("image", Arc::new(image.to_bytes()), bounds)
}

fn writable(file: &Arc<Sparse>) -> avhdx::Result<VhdxFile> {
    OpenOptions::new().writable(true).open_file(Arc::clone(file) as Arc<dyn Storage>)
}

/// The image is refused with a complete error, and the file is unchanged.
#[track_caller]
fn refused(file: &Arc<Sparse>, kind: ErrorKind, code: &str) -> Error {
    let error = writable(file).unwrap_err();
    assert_eq!((error.kind(), error.code()), (kind, code), "{error}");
    assert!(error.offset().is_some() && error.section().is_some(), "{error}");
    assert!(error.found().is_some() && error.expected().is_some(), "{error}");
    assert_eq!(error.file(), Some("image"));
    assert!(file.is_as_before(), "{error}");
    error
}

#[track_caller]
fn reads(disk: &dyn Disk, want: &[u8]) {
    let mut bytes = vec![0xAA; disk.geometry().size as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == want);
}

fn check(bytes: Vec<u8>) -> Report {
    Check::new().run_file(memory("image", bytes)).unwrap()
}

fn codes(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|finding| finding.code).collect()
}

#[test]
fn this_binary_checks_overflows() {
    let most = std::hint::black_box(u64::MAX);
    let added = std::panic::catch_unwind(|| most + std::hint::black_box(1));
    assert!(added.is_err(), "tests of hostile images are run with overflow checks");
}

#[test]
fn a_bitmap_block_at_the_end_of_all_numbers_is_an_error() {
    let mut base = Image::dynamic(2 * MIB);
    base.put(0, Block::full(Data::Pattern(1)));
    let mut child = base.new_child();
    child.put(0, Block::partial_runs(Data::Pattern(2), &[(3, 5)]));
    for place in [!0 << 20, !1 << 20, 1 << 63, 1 << 62, 0] {
        child.bat_override.insert(child.bitmap_index(0), place | 6);
        let layers = [base.clone(), child.clone()];
        let chain = open_images(OpenOptions::new(), &layers).unwrap();
        let error = chain.read_at(&mut [0; 4096], 0).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.bitmap-place"));
        assert!(chain.extents(0..MIB).next().unwrap().is_err());
        let tip = sparse(&child, Bounds::default());
        let options =
            OpenOptions::new().writable(true).parents(Shelf(vec![memory("base", base.to_bytes())]));
        let opened =
            options.open_file(Arc::clone(&tip) as _).and_then(|tip| options.open_chain(tip));
        let error = opened.and_then(|chain| chain.write_at(&[1; 512], 512)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        let report = check(child.to_bytes());
        assert!(codes(&report).contains(&"bat.bitmap-place"), "{:?}", codes(&report));
    }
}

#[test]
fn a_header_without_numbers_above_its_own_is_read_and_not_written() {
    const LAST: u64 = u64::MAX - (1 << 32);
    let (clean, disk) = image();
    let (dirty, _) = dirty(|_, _| {});
    for (number, is_writable) in
        [(u64::MAX, false), (u64::MAX - 1, false), (LAST + 1, false), (LAST, true)]
    {
        for image in [&clean, &dirty] {
            let mut bytes = image.to_bytes();
            put_u64(&mut bytes, HEADERS[0] + 8, number - 1);
            put_u64(&mut bytes, HEADERS[1] + 8, number);
            reseal(&mut bytes);
            let file = OpenOptions::new().open_file(memory("image", bytes.clone())).unwrap();
            reads(&file, &disk);
            let info = file.info();
            assert_eq!(info.headers[info.current_header].as_ref().unwrap().sequence_number, number);
            let warned = codes(&check(bytes.clone())).contains(&"limit.header-sequence");
            assert_eq!(warned, !is_writable);
            assert!(check(bytes.clone()).is_sound());
            let file = Sparse::new("image", Arc::new(bytes), Bounds::default());
            if !is_writable {
                let error = refused(&file, ErrorKind::Limit, "limit.header-sequence");
                assert_eq!(error.offset(), Some(HEADERS[1] + 8));
                assert_eq!(error.found(), Some(&*number.to_string()));
                continue;
            }
            let image = writable(&file).unwrap();
            reads(&image, &disk);
            image.write_at(&[7; 512], 0).unwrap();
            image.close().unwrap();
            drop(image);
            assert_eq!(naive::Chain::from_bytes([file.bytes()]).unwrap().flat(0).unwrap()[0], 7);
        }
    }
}

#[test]
fn the_largest_possible_budget_works() {
    for bytes in [usize::MAX, usize::MAX / 2, 1 << (usize::BITS - 2), 0, 1] {
        let (image, disk) = image();
        let tip = image.new_child();
        let options = OpenOptions::new().budget(Budget::new(bytes));
        let chain = open_images(options, &[image, tip]).unwrap();
        reads(&chain, &disk);
        reads(&chain, &disk);
    }
}

#[test]
fn a_log_without_whole_sectors_is_checked_but_not_scanned() {
    for length in [164, (1 << 20) + 164, 4095, 4096, (1 << 20) + 4096, u32::MAX] {
        for image in [image().0, dirty(|_, _| {}).0] {
            let mut bytes = image.to_bytes();
            HEADERS.iter().for_each(|at| put_u32(&mut bytes, at + 68, length));
            reseal(&mut bytes);
            let report = check(bytes.clone());
            assert!(!report.is_sound(), "{length}");
            assert!(codes(&report).contains(&"header.log-length"), "{:?}", codes(&report));
            let error = OpenOptions::new().open_file(memory("image", bytes.clone())).unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "header.log-length"));
            let file = Sparse::new("image", Arc::new(bytes.clone()), Bounds::default());
            refused(&file, ErrorKind::Damaged, "header.log-length");
            // A header with a wrong checksum is still evaluated as far as possible.
            HEADERS.iter().for_each(|at| put_u32(&mut bytes, at + 4, 7));
            assert!(codes(&check(bytes)).contains(&"log.place"));
        }
    }
}

#[test]
fn a_log_that_has_the_file_grow_without_bound_is_refused() {
    for last in [1 << 60, 1 << 62, 1 << 63, u64::MAX, 90 * TIB] {
        let (image, _) = dirty(|entry, _| entry.last_file_offset = Some(last));
        let file = sparse(&image, Bounds::default());
        let error = refused(&file, ErrorKind::Damaged, "log.last-file-offset");
        assert_eq!(error.offset(), Some(MIB + 56));
        assert!(error.found().unwrap().contains(&last.to_string()), "{error}");
        let reading = OpenOptions::new().open_file(memory("image", image.to_bytes()));
        assert_eq!(reading.unwrap_err().code(), "log.last-file-offset");
        assert!(codes(&check(image.to_bytes())).contains(&"log.last-file-offset"));
    }
    // The longest file that the largest disk makes: 64 TiB, and 16 GiB of sector bitmaps.
    let (image, disk) = dirty(|entry, _| entry.last_file_offset = Some(64 * TIB + (16 << 30)));
    let file = sparse(&image, Bounds::default());
    reads(&writable(&file).unwrap(), &disk);
    assert!(file.take_done().written() < MIB, "it grows, and nothing is written for that");
}

#[test]
fn zeros_of_the_log_that_no_disk_needs_are_refused() {
    for (at, length) in [
        (0, 1 << 62),
        (0, 1 << 63),
        (0, 100 * TIB),
        (0, !4095),
        (100 * TIB, 4096),
        (1 << 63, 4096),
        ((1 << 63) - (16 << 20), 1 << 20),
        (!4095 - (16 << 20), 4096),
    ] {
        let (image, _) =
            dirty(|entry, end| entry.descriptors.push(Descriptor::zero(end + at, length)));
        let error = writable(&sparse(&image, Bounds::default())).unwrap_err();
        let code = error.code();
        let file = sparse(&image, Bounds::default());
        refused(&file, ErrorKind::Damaged, code);
        assert!(["log.zero-length", "log.target"].contains(&code), "{error}");
        assert!(codes(&check(image.to_bytes())).contains(&code));
    }
}

#[test]
fn zeros_of_the_log_behind_the_end_are_growth() {
    for (tells, zeros) in [(true, true), (false, false)] {
        let (image, disk) = dirty(|entry, end| {
            entry.descriptors.push(Descriptor::zero(end + MIB, 30 * TIB));
            // One page holds data, and later zeros surround it.
            entry.descriptors.push(Descriptor::data(end + TIB, vec![5; SECTOR]));
            entry.last_file_offset = Some(end + 31 * TIB);
        });
        let file = sparse(&image, Bounds { tells, zeros, ..Bounds::default() });
        let end = image.layout().file_length;
        reads(&writable(&file).unwrap(), &disk);
        let done = file.take_done();
        assert_eq!(done.lengths, [end + 31 * TIB]);
        assert_eq!(done.zeroed, []);
        assert!(done.written() < MIB);
        let mut page = [0; SECTOR];
        file.read_exact_at(&mut page, end + TIB).unwrap();
        assert_eq!(page, [5; SECTOR]);
    }
}

/// Zeros over existing bytes are left to the host if it can zero; otherwise bytes that are zeros already are not
/// written.
#[test]
fn zeros_of_the_log_within_the_file_are_the_hosts_to_make() {
    for (tells, zeros) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut image, disk) = image();
        // Behind the blocks: a few MiB of data and far more of nothing.
        let end = image.layout().needed_length;
        image.patches.push((end + MIB, vec![9; 3 << 20]));
        image.file_length = Some(end + 40 * MIB);
        image.log = vec![LogEntry::new(1, vec![Descriptor::zero(end, 39 * MIB)])];
        image.set_log_guid(GUID);
        let file = sparse(&image, Bounds { tells, zeros, ..Bounds::default() });
        reads(&writable(&file).unwrap(), &disk);
        let done = file.take_done();
        assert!(done.lengths.is_empty());
        assert_eq!(done.zeroed.is_empty(), !zeros);
        let limit = if zeros { MIB } else { 5 * MIB };
        assert!(done.written() < limit, "{} bytes", done.written());
        let bytes = file.bytes();
        assert!(bytes[end as usize..].iter().all(|byte| *byte == 0));
        let expected = naive::Chain::from_bytes([bytes]).unwrap().flat(0).unwrap();
        assert!(expected == disk);
    }
}

/// A file that claims far more than it holds: replaying zeros over all of it takes neither space nor time.
#[test]
#[cfg(target_os = "linux")]
fn zeros_of_the_log_over_a_hole_take_no_space() {
    const LEN: u64 = 4 * TIB;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.vhdx");
    let (mut image, disk) = image();
    let end = image.layout().needed_length;
    image.log = vec![LogEntry::new(1, vec![Descriptor::zero(end, LEN - end)])];
    image.log[0].flushed_file_offset = Some(end);
    image.set_log_guid(GUID);
    image.write_to(&path);
    let file = LocalHost.open(&path, Access::ReadWrite).unwrap();
    if file.set_len(LEN).is_err() {
        return; // a file system without such files
    }
    file.write_at(&[6; 3 << 20], end + MIB).unwrap();
    file.write_at(&[6; 3 << 20], LEN - TIB).unwrap();
    file.flush().unwrap();
    drop(file);
    let before = LocalHost.stat(&path).unwrap().allocated.unwrap();
    let opened = OpenOptions::new().writable(true).open_image(&path).unwrap();
    reads(&opened, &disk);
    let after = LocalHost.stat(&path).unwrap().allocated.unwrap();
    assert!(after <= before + (8 << 20), "{before} and then {after}");
    let mut bytes = vec![1; 3 << 20];
    for at in [end + MIB, LEN - TIB] {
        let file = LocalHost.open(&path, Access::Read).unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{at:#x}");
    }
}

/// The same in many small pieces.
#[test]
#[cfg(target_os = "linux")]
fn small_zeros_of_the_log_over_a_hole_take_no_space() {
    const PIECES: u64 = 100;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.vhdx");
    let (mut image, disk) = image();
    let end = image.layout().needed_length;
    let zeros = (0..PIECES).map(|n| Descriptor::zero(end + n * MIB, MIB)).collect();
    image.log = vec![LogEntry::new(1, zeros)];
    image.log[0].flushed_file_offset = Some(end);
    image.set_log_guid(GUID);
    image.write_to(&path);
    let file = LocalHost.open(&path, Access::ReadWrite).unwrap();
    file.set_len(end + PIECES * MIB).unwrap();
    file.write_at(&[6; 5000], end + 7 * MIB + 123).unwrap();
    file.flush().unwrap();
    drop(file);
    let before = LocalHost.stat(&path).unwrap().allocated.unwrap();
    let opened = OpenOptions::new().writable(true).open_image(&path).unwrap();
    reads(&opened, &disk);
    let after = LocalHost.stat(&path).unwrap().allocated.unwrap();
    assert!(after <= before + MIB, "{before} and then {after}");
    let mut bytes = vec![1; 2 << 20];
    let file = LocalHost.open(&path, Access::Read).unwrap();
    file.read_exact_at(&mut bytes, end + 6 * MIB + MIB / 2).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

/// Stopped at any step, the file reads as if the log had been replayed, and the next open replays it.
#[test]
fn a_replay_that_is_stopped_is_done_by_the_next_open() {
    let (mut image, disk) = dirty(|entry, end| {
        entry.descriptors.push(Descriptor::zero(end + MIB, 5 * MIB));
        entry.descriptors.push(Descriptor::data(end + MIB, vec![5; SECTOR]));
    });
    let end = image.layout().needed_length;
    image.patches.push((end, vec![9; 4 << 20]));
    image.file_length = Some(end + 4 * MIB);
    // The flag is set after this many changes of the file.
    #[derive(Debug)]
    struct Stopping(Arc<Sparse>, AtomicUsize, Arc<AtomicBool>);
    impl Stopping {
        fn step(&self) {
            if self.1.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.2.store(true, Ordering::SeqCst);
            }
        }
    }
    impl Storage for Stopping {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> std::io::Result<()> {
            self.step();
            self.0.write_at(buf, offset)
        }
        fn flush(&self) -> std::io::Result<()> {
            self.step();
            self.0.flush()
        }
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.step();
            self.0.set_len(len)
        }
        fn try_lock(
            &self,
            mode: avhdx::storage::LockMode,
        ) -> std::io::Result<avhdx::storage::LockOutcome> {
            self.0.try_lock(mode)
        }
    }
    let mut stopped = 0;
    for steps in 1.. {
        let file = sparse(&image, Bounds { zeros: false, tells: false, ..Bounds::default() });
        let flag = Arc::new(AtomicBool::new(false));
        let options = OpenOptions::new().writable(true).cancel(Arc::clone(&flag));
        let stopping = Stopping(Arc::clone(&file), AtomicUsize::new(steps), flag);
        let opened = options.open_file(Arc::new(stopping));
        let left = naive::Chain::from_bytes([file.bytes()]).unwrap().flat(0).unwrap();
        assert!(left == disk, "after {steps} steps");
        match opened {
            Ok(opened) => {
                reads(&opened, &disk);
                break;
            }
            Err(error) => {
                assert_eq!((error.kind(), error.code()), (ErrorKind::Cancelled, "op.cancelled"));
                assert_eq!(error.file(), Some("image"));
                stopped += 1;
            }
        }
        let opened = writable(&file).unwrap();
        reads(&opened, &disk);
        drop(opened);
        let bytes = file.bytes();
        assert!(bytes[(end + MIB) as usize..][..SECTOR].iter().all(|byte| *byte == 5));
        assert!(bytes[(end + MIB) as usize + SECTOR..].iter().all(|byte| *byte == 0));
        assert!(Check::new().run_file(memory("image", bytes)).unwrap().is_sound());
    }
    assert!(stopped > 7, "{stopped}");
}

/// A file that is not an image once its log is replayed is refused before the replay.
#[test]
fn a_log_that_destroys_the_image_is_not_replayed_to_the_file() {
    let (image, _) = image();
    let layout = image.layout();
    for (name, at) in [("metadata_table", 0), ("metadata_item:disk_size", 0), ("region_table1", 0)]
    {
        let mut broken = image.clone();
        let at = layout.get(name).start / SECTOR as u64 * SECTOR as u64 + at;
        let mut descriptors = vec![Descriptor::data(at, vec![0x5A; SECTOR])];
        if name == "region_table1" {
            descriptors.push(Descriptor::data(layout.get("region_table2").start, vec![0; SECTOR]));
        }
        broken.log = vec![LogEntry::new(1, descriptors)];
        broken.set_log_guid(GUID);
        let file = sparse(&broken, Bounds::default());
        assert!(
            OpenOptions::new().open_file(memory("image", broken.to_bytes())).is_err(),
            "{name}"
        );
        let error = writable(&file).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(file.is_as_before(), "{name}: {error}");
    }
}

/// A chunk that lost its sector bitmap gets no empty one, which would make all of its blocks the parent's.
#[test]
fn a_chunk_that_lost_its_sector_bitmap_gets_no_empty_one() {
    let mut base = Image::dynamic(4 * MIB);
    (0..4).for_each(|block| _ = base.put(block, Block::full(Data::Pattern(block))));
    for state in [0, 1, 2, 3, 4, 5, 7] {
        let mut child = base.new_child();
        child.put(0, Block::partial_runs(Data::Pattern(9), &[(3, 5)]));
        child.put(2, Block::full(Data::Pattern(8)));
        let disk = child.flat(Some(&base.flat(None)));
        child.bat_override.insert(child.bitmap_index(0), state);
        let tip = sparse(&child, Bounds::default());
        let options =
            OpenOptions::new().writable(true).parents(Shelf(vec![memory("base", base.to_bytes())]));
        let chain = options.open_chain(options.open_file(tip).unwrap()).unwrap();
        let mut bytes = [0; 512];
        assert!(chain.read_at(&mut bytes, 512).is_err());
        // Writing part of a block of the parent's needs a bitmap; the other changes need none.
        let error = chain.write_at(&[1; 512], MIB).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.bitmap-missing"));
        chain.write_at(&[1; 512], 2 * MIB).unwrap();
        chain.write_at(&[1; MIB as usize], 3 * MIB).unwrap();
        chain.flush().unwrap();
        assert!(chain.read_at(&mut bytes, 512).is_err(), "never the parent's");
        chain.read_at(&mut bytes, MIB).unwrap();
        assert!(bytes == disk[MIB as usize..][..512]);
        // Once no such block uses the bitmap, an empty one is right.
        chain.discard(0..MIB).unwrap();
        chain.write_at(&[1; 512], MIB).unwrap();
        chain.read_at(&mut bytes, MIB + 512).unwrap();
        assert!(bytes == disk[MIB as usize + 512..][..512]);
    }
}

/// However large its log, an image logs changes of its tables before they fill the memory.
#[test]
fn a_large_log_does_not_have_changes_pile_up_in_memory() {
    const LOG: u32 = 512 << 20;
    let mut parent = Image::dynamic(MIB);
    parent.size = 2000 * 512 * MIB; // 2000 pages of 512 entries
    let mut child = parent.new_child();
    child.log_offset = child.layout().needed_length;
    let file = {
        let bytes = child.to_bytes();
        child.headers.iter_mut().flatten().for_each(|header| header.log_length = Some(LOG));
        let file = Sparse::new("image", Arc::new(child.to_bytes()), Bounds::default());
        file.set_len(bytes.len() as u64 + u64::from(LOG)).unwrap();
        file
    };
    let image = writable(&file).unwrap();
    for page in 0..2000 {
        image.discard(page * 512 * MIB..(page * 512 + 1) * MIB).unwrap();
    }
    let logged = image.counters().log_bytes;
    assert!(logged > 4 * MIB, "{logged} bytes");
    image.close().unwrap();
}

/// A forecast refuses an invalid size, too.
#[test]
fn a_forecast_of_an_impossible_block_size_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("base.vhdx");
    CreateOptions::dynamic(8 * MIB).create(&path).unwrap().close().unwrap();
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    for bytes in [0, 1, 3, (1 << 20) - 1, 1 << 19, 1 << 29, 1 << 31, u32::MAX] {
        let error = Checkpoint::new().block_size(bytes).forecast(&chain).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "create.options"));
        for size in [u64::MAX, 1 << 63, 0] {
            let made =
                CreateOptions::fixed(size).block_size(bytes).create(folder.path().join("no"));
            assert_eq!(made.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}

/// Ranges given by the caller lie within the disk, or are refused.
#[test]
fn ranges_at_the_end_of_all_numbers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.vhdx");
    CreateOptions::dynamic(8 * MIB).create(&path).unwrap().close().unwrap();
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    let image = CreateOptions::dynamic(8 * MIB).create(folder.path().join("alone.vhdx")).unwrap();
    let disks: [&dyn Disk; 2] = [&chain, &image];
    for disk in disks {
        for start in [u64::MAX, u64::MAX - 511, 8 * MIB + 1, 1 << 63] {
            let mut buf = [0; 512];
            let range = start..u64::MAX;
            let errors = [
                disk.read_at(&mut buf, start),
                disk.write_at(&buf, start),
                disk.write_zeroes(range.clone(), avhdx::Zeroing::KeepSpace),
                disk.discard(range.clone()),
                disk.next_extent(range.clone()).map(drop),
                disk.read_vectored_at(&mut [std::io::IoSliceMut::new(&mut [0; 9])], start),
                disk.write_vectored_at(&[std::io::IoSlice::new(&[0; 9])], start),
                chain.plan_read(range.clone()).map(drop),
                avhdx::ops::Explain::new(start).run(&chain).map(drop),
            ];
            for error in errors {
                assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput, "{start:#x}");
            }
        }
        #[expect(clippy::reversed_empty_ranges, reason = "a caller may pass one")]
        let reversed = 4096..512;
        disk.write_zeroes(reversed.clone(), avhdx::Zeroing::KeepSpace).unwrap();
        assert!(disk.next_extent(reversed).unwrap().is_none());
    }
}
