//! Writable raw disks: writes, zeros and discards compared with a flat model, on files that can punch holes and
//! on files that cannot.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use avhdx::storage::{Access, Host, LocalHost, MemStorage, Storage};
use avhdx::{Disk, DiskExt, ErrorKind, RawDisk, Source, Zeroing};
use avhdx_testkit::rng::{Rng, pattern};

use crate::sim::{FOLDER, SimHost};

const MIB: u64 = 1 << 20;
/// Not a whole number of sectors or pages, and more than one write zeroes.
const SIZE: u64 = 5 * MIB + 1234;
const BOTH: [Zeroing; 2] = [Zeroing::MayUnmap, Zeroing::KeepSpace];

/// How a file treats the next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// As the file below does.
    Willing,
    /// It cannot punch holes.
    Solid,
    /// A punch fails.
    Broken,
    /// It accepts this many writes.
    Full(usize),
}

/// A file that counts punches and bytes written.
#[derive(Debug)]
struct Moody {
    inner: MemStorage,
    mood: Mutex<Mood>,
    punches: AtomicUsize,
    written: AtomicU64,
}

impl Moody {
    fn new(bytes: Vec<u8>, mood: Mood) -> Arc<Self> {
        let (punches, written) = (AtomicUsize::new(0), AtomicU64::new(0));
        let inner = MemStorage::new(bytes).named("moody");
        Arc::new(Self { inner, mood: Mutex::new(mood), punches, written })
    }

    /// Punches and bytes written since the last call.
    fn counts(&self) -> (usize, u64) {
        (self.punches.swap(0, Ordering::SeqCst), self.written.swap(0, Ordering::SeqCst))
    }
}

impl Storage for Moody {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if let Mood::Full(left) = &mut *self.mood.lock().unwrap() {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        self.written.fetch_add(buf.len() as u64, Ordering::SeqCst);
        self.inner.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a raw disk keeps its size")
    }
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        self.punches.fetch_add(1, Ordering::SeqCst);
        match *self.mood.lock().unwrap() {
            Mood::Willing => self.inner.zero(range),
            Mood::Solid | Mood::Full(_) => Ok(false),
            Mood::Broken => Err(io::ErrorKind::Other.into()),
        }
    }
}

fn numbered(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    pattern(seed, 0, &mut bytes);
    bytes
}

fn all(storage: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0xAA; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Aligned and unaligned, short and long ranges, empty ones, and ranges up to the end.
fn somewhere(rng: &mut Rng) -> Range<u64> {
    let unit = [1, 512, 4096, MIB][rng.below(4) as usize];
    let start = rng.below(SIZE / unit + 1) * unit;
    let most = [1, 600, 70_000, 3 * MIB, SIZE][rng.below(5) as usize].min(SIZE - start);
    let end = match rng.below(6) {
        0 => SIZE,
        _ => SIZE.min((start + rng.below(most + 1)).next_multiple_of(unit)),
    };
    start.min(end)..end
}

/// Makes the same calls to the disk and to a model, and compares them after each.
fn agrees(storage: &Arc<dyn Storage>, seed: u64, rounds: usize) {
    let mut model = numbered(seed);
    storage.write_at(&model, 0).unwrap();
    let disk = RawDisk::new(Arc::clone(storage)).unwrap();
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        let range = somewhere(&mut rng);
        let place = range.start as usize..range.end as usize;
        match rng.below(5) {
            0 => {
                let mut bytes = vec![0; place.len()];
                rng.fill(&mut bytes);
                disk.write_at(&bytes, range.start).unwrap();
                model[place].copy_from_slice(&bytes);
            }
            1 => {
                disk.discard(range.clone()).unwrap();
                model[place].fill(0);
            }
            how => {
                disk.write_zeroes(range.clone(), BOTH[how as usize % 2]).unwrap();
                model[place].fill(0);
            }
        }
        let mut found = vec![0xAA; SIZE as usize];
        disk.read_at(&mut found, 0).unwrap();
        assert!(found == model, "round {round} of seed {seed}: {range:?}");
        assert!(all(storage.as_ref()) == model, "the file keeps its length, and has the bytes");
        for extent in disk.extents(0..SIZE).map(Result::unwrap) {
            if let Source::Zero { .. } = extent.source {
                let place = extent.range.start as usize..extent.range.end as usize;
                assert!(model[place].iter().all(|byte| *byte == 0), "{extent:?}");
            }
        }
    }
    disk.flush().unwrap();
}

#[test]
fn what_is_written_zeroed_and_discarded_is_as_in_a_flat_model() {
    for (seed, mood) in [(1, Mood::Willing), (2, Mood::Solid)] {
        let storage: Arc<dyn Storage> = Moody::new(numbered(0), mood);
        agrees(&storage, seed, 40);
    }
    let storage: Arc<dyn Storage> = Arc::new(MemStorage::new(numbered(0)));
    agrees(&storage, 3, 40);
    let host = SimHost::default();
    agrees(&host.create_new(&Path::new(FOLDER).join("raw")).unwrap(), 4, 20);
    let folder = tempfile::tempdir().unwrap();
    agrees(&LocalHost.create_new(&folder.path().join("raw")).unwrap(), 5, 60);
}

/// Only holes free space, and only if bytes may lose it.
#[test]
fn holes_are_punched_only_where_space_may_be_lost() {
    let file = Moody::new(numbered(1), Mood::Willing);
    let disk = RawDisk::new(file.clone()).unwrap();
    for range in [0..SIZE, 7..8, 3 * MIB + 1..4 * MIB - 1] {
        disk.discard(range.clone()).unwrap();
        assert_eq!(file.counts(), (1, 0), "{range:?}");
        disk.write_zeroes(range.clone(), Zeroing::MayUnmap).unwrap();
        assert_eq!(file.counts(), (1, 0), "{range:?}");
        disk.write_zeroes(range.clone(), Zeroing::KeepSpace).unwrap();
        assert_eq!(file.counts(), (0, range.end - range.start), "{range:?}");
    }
    *file.mood.lock().unwrap() = Mood::Solid;
    disk.discard(5..SIZE - 5).unwrap();
    assert_eq!(file.counts(), (1, SIZE - 10));
}

/// What the host reports about space, if it supports holes.
#[test]
#[cfg(target_os = "linux")]
fn a_discard_makes_holes_in_a_file_and_zeros_that_keep_their_space_do_not() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    let storage = LocalHost.create_new(&path).unwrap();
    let bytes = numbered(1);
    storage.write_at(&bytes, 0).unwrap();
    storage.flush().unwrap();
    if !storage.punch(0..0).unwrap()
        || !LocalHost.create_new(&folder.path().join("b")).is_ok_and(|other| {
            other.set_len(8192).is_ok() && other.punch(0..4096).is_ok_and(|punched| punched)
        })
    {
        return; // a file system without holes
    }
    let disk = RawDisk::new(Arc::clone(&storage)).unwrap();
    let taken = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let before = taken();
    disk.write_zeroes(MIB..2 * MIB, Zeroing::KeepSpace).unwrap();
    disk.flush().unwrap();
    assert_eq!(taken(), before);
    // Partial pages at both ends keep their space.
    disk.discard(2 * MIB + 5..4 * MIB - 5).unwrap();
    disk.flush().unwrap();
    assert!(taken() <= before - (2 * MIB - 16 * 4096), "{} of {before}", taken());
    let mut expected = bytes;
    expected[MIB as usize..2 * MIB as usize].fill(0);
    expected[2 * MIB as usize + 5..4 * MIB as usize - 5].fill(0);
    assert!(std::fs::read(&path).unwrap() == expected);
    // And it can be written again.
    disk.write_at(&[7; 9000], 3 * MIB + 1).unwrap();
    expected[3 * MIB as usize + 1..][..9000].fill(7);
    assert!(std::fs::read(&path).unwrap() == expected);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
}

#[test]
fn ranges_that_do_not_lie_within_the_disk_are_refused_and_nothing_is_changed() {
    for mood in [Mood::Willing, Mood::Solid] {
        let bytes = numbered(1);
        let file = Moody::new(bytes.clone(), mood);
        let disk = RawDisk::new(file.clone()).unwrap();
        for range in [
            SIZE - 1..SIZE + 1,
            SIZE..SIZE + 1,
            0..SIZE + 1,
            0..u64::MAX,
            SIZE + 1..SIZE + 1,
            u64::MAX - 1..u64::MAX,
            Range { start: SIZE + 7, end: 3 },
        ] {
            let refused = |result: avhdx::Result<()>| {
                let error = result.unwrap_err();
                let is = (error.kind(), error.code());
                assert_eq!(is, (ErrorKind::InvalidInput, "disk.out-of-range"), "{range:?}");
            };
            refused(disk.discard(range.clone()));
            BOTH.iter().for_each(|how| refused(disk.write_zeroes(range.clone(), *how)));
        }
        // Empty ranges within the disk and at its end.
        let backwards = Range { start: 9, end: 3 };
        for range in [0..0, 5..5, SIZE..SIZE, backwards] {
            disk.discard(range.clone()).unwrap();
            BOTH.iter().for_each(|how| disk.write_zeroes(range.clone(), *how).unwrap());
        }
        assert_eq!(file.counts(), (0, 0));
        assert!(all(file.as_ref()) == bytes);
    }
}

#[test]
fn a_file_open_for_reading_refuses_all_of_it_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    let bytes = numbered(1);
    std::fs::write(&path, &bytes).unwrap();
    let disk = RawDisk::new(LocalHost.open(&path, Access::Read).unwrap()).unwrap();
    let refused = |result: avhdx::Result<()>| {
        let error = result.unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::ReadOnly, "disk.read-only"),
            "{error}"
        );
        assert_eq!(error.file(), Some(path.to_str().unwrap()));
    };
    refused(disk.write_at(&[1; 512], 0));
    refused(disk.discard(0..MIB));
    for how in BOTH {
        refused(disk.write_zeroes(5..7, how));
        refused(disk.write_zeroes(0..SIZE, how));
    }
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// An error of the host includes the offset, and earlier steps stay done.
#[test]
fn a_failure_names_the_file_and_the_place() {
    let bytes = numbered(1);
    let file = Moody::new(bytes.clone(), Mood::Broken);
    let disk = RawDisk::new(file.clone()).unwrap();
    let error = disk.discard(512..MIB).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "raw.punch"));
    assert_eq!((error.file(), error.offset()), (Some("moody"), Some(512)));
    assert!(all(file.as_ref()) == bytes, "it is not written over instead");
    disk.write_zeroes(512..513, Zeroing::KeepSpace).unwrap();
    *file.mood.lock().unwrap() = Mood::Full(2);
    let error = disk.discard(1000..SIZE).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "raw.write"));
    let done = 1000 + 2 * MIB;
    assert_eq!((error.file(), error.offset()), (Some("moody"), Some(done)));
    let mut expected = bytes;
    expected[512] = 0;
    expected[1000..done as usize].fill(0);
    assert!(all(file.as_ref()) == expected);
    *file.mood.lock().unwrap() = Mood::Willing;
    disk.discard(1000..SIZE).unwrap();
    expected[1000..].fill(0);
    assert!(all(file.as_ref()) == expected);
}
