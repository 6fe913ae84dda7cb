//! Copies that share bytes with the files of the disk, on a file system that can do so.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use avhdx::ops::Export;
use avhdx::storage::{LocalHost, MemStorage, Storage};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, RawDisk};
use avhdx_testkit::build::{
    Block, Data, Descriptor, Image, LogEntry, random_chain, state, write_chain,
};
use avhdx_testkit::naive;
use avhdx_testkit::rng::pattern;
use uuid::Uuid;

use crate::common::deep::deep_chain;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The block size of the file system.
const UNIT: u64 = 4 * KIB;

/// What the host says to a copy.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Yes,
    /// It cannot, and leaves other bytes.
    No,
    Fails,
}

/// Called before a copy, with its place in the file.
type Before = dyn Fn(u64) + Send + Sync;

/// A file on a file system that shares bytes.
struct Sharing {
    bytes: MemStorage,
    /// The end of the names of files on another file system.
    foreign: &'static str,
    /// What the host says from the copy of this number on.
    says: (usize, Says),
    /// Whether the disk changes after a range was chosen.
    in_use: bool,
    before: Mutex<Option<Box<Before>>>,
    count: AtomicUsize,
    shared: Mutex<Vec<Range<u64>>>,
}

impl std::fmt::Debug for Sharing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a file that shares")
    }
}

impl Sharing {
    fn new() -> Self {
        Self {
            bytes: MemStorage::new(Vec::new()),
            foreign: "of another file system",
            says: (usize::MAX, Says::Yes),
            in_use: false,
            before: Mutex::default(),
            count: AtomicUsize::default(),
            shared: Mutex::default(),
        }
    }

    fn shared_bytes(&self) -> u64 {
        self.shared.lock().unwrap().iter().map(|range| range.end - range.start).sum()
    }

    /// The ranges of the file that were shared, in order, joined.
    fn shared(&self) -> Vec<Range<u64>> {
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in self.shared.lock().unwrap().iter() {
            match joined.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push(range.clone()),
            }
        }
        joined
    }

    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes.len().unwrap() as usize];
        self.bytes.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Storage for Sharing {
    fn name(&self) -> &str {
        "the copy"
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.bytes.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.bytes.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.bytes.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.set_len(len)
    }
    fn sharing_unit(&self, from: &dyn Storage) -> Option<u64> {
        (!from.name().ends_with(self.foreign)).then_some(UNIT)
    }
    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        assert!(!from.name().ends_with(self.foreign), "{} cannot be shared", from.name());
        let is_whole = [from_at, at, len].iter().all(|n| n % UNIT == 0);
        assert!(is_whole || self.in_use, "{len} from {from_at} to {at}");
        if let Some(before) = &*self.before.lock().unwrap() {
            before(at);
        }
        let n = self.count.fetch_add(1, Ordering::SeqCst);
        let says = if n < self.says.0 { Says::Yes } else { self.says.1 };
        if says != Says::Yes {
            self.bytes.write_at(&vec![0xBD; len as usize], at)?;
            return if says == Says::No { Ok(false) } else { Err(io::Error::other("as asked")) };
        }
        let mut bytes = vec![0; len as usize];
        from.read_exact_at(&mut bytes, from_at)?;
        self.bytes.write_at(&bytes, at)?;
        self.shared.lock().unwrap().push(at..at + len);
        Ok(true)
    }
}

/// The flat contents of the only image of a chain.
pub fn naively(bytes: Vec<u8>) -> Vec<u8> {
    naive::Chain::from_bytes([bytes]).unwrap().flat(0).unwrap()
}

/// Copies the disk to raw files and onto images with blocks of several sizes, and checks their contents and the bytes
/// that are said to be shared. `make` makes the files. Returns them.
fn copies(disk: &dyn Disk, expected: &[u8], make: impl Fn() -> Sharing) -> Vec<Arc<Sharing>> {
    let geometry = disk.geometry();
    let raw = Arc::new(make());
    raw.write_at(&[0xEE; 9000], 0).unwrap();
    let done = Export::new().run(disk, raw.as_ref()).unwrap();
    assert!(raw.contents() == expected, "a raw file");
    assert_eq!((done.size, done.handed_over), (geometry.size, raw.shared_bytes()));
    assert!(done.written >= done.handed_over);
    let mut files = vec![raw];
    for block in [1, 8, 32] {
        let file = Arc::new(make());
        let image = CreateOptions::dynamic(geometry.size)
            .block_size(block << 20)
            .logical_sector(geometry.logical_sector)
            .create_in(&LocalHost, file.clone())
            .unwrap();
        let done = Export::new().onto(disk, &image).unwrap();
        image.close().unwrap();
        drop(image);
        assert!(naively(file.contents()) == expected, "blocks of {block} MiB");
        // A range of several blocks that fails in one of them is written as a whole.
        let is_all = file.says.1 == Says::Fails || done.handed_over == file.shared_bytes();
        assert!(is_all && done.handed_over <= file.shared_bytes(), "{done:?}");
        assert!(done.size == geometry.size && done.written >= done.handed_over);
        files.push(file);
    }
    files
}

#[test]
fn copies_that_share_are_what_the_naive_reader_reads() {
    let mut shared = 0;
    for seed in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let images = match seed % 2 {
            0 => random_chain(seed, 4),
            _ => deep_chain(seed, 3 + seed),
        };
        let paths = write_chain(folder.path(), &images);
        let expected = naive::Chain::open(&paths).unwrap().flat(paths.len() - 1).unwrap();
        let chain = DiffChain::open(paths.last().unwrap()).unwrap();
        shared +=
            copies(&chain, &expected, Sharing::new).iter().map(|it| it.shared_bytes()).sum::<u64>();
    }
    assert!(shared > 30 * MIB, "{shared} bytes");
}

/// A base of 24 MiB with data in blocks 0 to 11 and 20, and a child with some sectors, zeros and blocks of its own.
pub fn known() -> [Image; 2] {
    let mut base = Image::dynamic(24 * MIB);
    for block in (0..12).chain([20]) {
        base.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let mut child = base.new_child();
    // Sectors 5 to 94: what follows is shared from the next 4 KiB on.
    child.put(1, Block::partial_runs(Data::Pattern(50), &[(5, 90)]));
    // 63.5 KiB, and 64 KiB that do not begin with a block of the file system.
    child.put(3, Block::partial_runs(Data::Pattern(51), &[(8, 127), (1025, 128)]));
    // 64 KiB.
    child.put(5, Block::partial_runs(Data::Pattern(52), &[(1024, 128)]));
    child.put(7, Block::bare(state::ZERO));
    // Zeros that are stored.
    child.put(22, Block::full(Data::Zeros));
    [base, child]
}

#[test]
fn whole_units_of_long_runs_are_shared_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let [base, child] = known();
    let expected = child.flat(Some(&base.flat(None)));
    let paths = write_chain(folder.path(), &[base, child]);
    let chain = DiffChain::open(&paths[1]).unwrap();
    let raw = copies(&chain, &expected, Sharing::new).swap_remove(0);
    let kib = |from: u64, to: u64| from * KIB..to * KIB;
    assert_eq!(
        raw.shared(),
        [
            // Before sectors 5 to 94 of block 1 are 2.5 KiB; after them, 47.5 KiB from its start on.
            kib(0, 1024),
            kib(1024 + 48, 3 * 1024 + 4),
            // Between the two, from 67.5 to 512.5 KiB; after them, from 576.5 KiB on.
            kib(3 * 1024 + 68, 3 * 1024 + 512),
            kib(3 * 1024 + 580, 7 * 1024),
            kib(8 * 1024, 12 * 1024),
            kib(20 * 1024, 21 * 1024),
            kib(22 * 1024, 23 * 1024),
        ]
    );
}

#[test]
fn nothing_is_shared_where_that_is_not_wanted_or_not_possible() {
    let folder = tempfile::tempdir().unwrap();
    let [base, child] = known();
    let expected = child.flat(Some(&base.flat(None)));
    let paths = write_chain(folder.path(), &[base, child]);
    let chain = DiffChain::open(&paths[1]).unwrap();
    let unwanted = Sharing::new();
    let done = Export::new().share(false).run(&chain, &unwanted).unwrap();
    assert_eq!((done.handed_over, unwanted.count.load(Ordering::SeqCst)), (0, 0));
    assert!(unwanted.contents() == expected);

    // The space of a fixed image is its own: writes to it cannot run out of space.
    let fixed = Arc::new(Sharing::new());
    let image = CreateOptions::fixed(24 * MIB).create_in(&LocalHost, fixed.clone()).unwrap();
    let done = Export::new().onto(&chain, &image).unwrap();
    image.close().unwrap();
    assert_eq!((done.handed_over, fixed.count.load(Ordering::SeqCst)), (0, 0));
    assert!(naively(fixed.contents()) == expected);

    // Layers on another file system than the copy are read, and zeros in them left out.
    let name = paths[1].file_name().unwrap().to_str().unwrap().to_owned();
    let make = || Sharing { foreign: Box::leak(name.clone().into_boxed_str()), ..Sharing::new() };
    for file in copies(&chain, &expected, make) {
        let shared = file.shared_bytes();
        assert!((10 * MIB..13 * MIB).contains(&shared), "{shared} bytes of the base alone");
    }

    // A host that shares nothing.
    let (plain, other) = (MemStorage::new(Vec::new()), MemStorage::new(Vec::new()));
    let done = Export::new().run(&chain, &plain).unwrap();
    assert_eq!((done.handed_over, plain.sharing_unit(&other)), (0, None));
    // The block of stored zeros is left out.
    assert!(done.written < 13 * MIB);
    assert!(plain.into_bytes() == expected);
}

#[test]
fn what_the_host_refuses_or_fails_to_share_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let [base, child] = known();
    let expected = child.flat(Some(&base.flat(None)));
    let paths = write_chain(folder.path(), &[base, child]);
    let chain = DiffChain::open(&paths[1]).unwrap();
    for says in [Says::No, Says::Fails] {
        for n in 0..6 {
            // Other bytes are left where nothing was shared, also where the disk has zeros.
            let files = copies(&chain, &expected, || Sharing { says: (n, says), ..Sharing::new() });
            let asked = files[0].count.load(Ordering::SeqCst);
            // Pieces that were found before the refusal are still asked for.
            assert!(says == Says::Fails || asked <= n + 6, "asked {asked} times");
        }
    }
}

/// The host fails, because the file of a layer has become shorter.
#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [base, child] = known();
    let paths = write_chain(folder.path(), &[base, child]);
    let chain = DiffChain::open(&paths[1]).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&paths[0]).unwrap();
    file.set_len(8 * MIB).unwrap();
    let error = Export::new().run(&chain, &Sharing::new()).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "payload.read"), "{error}");
    assert_eq!(error.file(), paths[0].to_str());
    let image =
        CreateOptions::dynamic(24 * MIB).create_in(&LocalHost, Arc::new(Sharing::new())).unwrap();
    let error = Export::new().onto(&chain, &image).unwrap_err();
    assert_eq!((error.code(), error.file()), ("payload.read", paths[0].to_str()));
}

#[test]
fn what_a_log_holds_is_copied_and_the_rest_shared() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = Image::dynamic(12 * MIB);
    (0..12).for_each(|block| _ = image.put(block, Block::full(Data::Pattern(block))));
    let at = image.layout().payload[&4] + 8192;
    image.log.push(LogEntry::new(1, vec![Descriptor::data(at, vec![0x5A; 4096])]));
    image.set_log_guid(Uuid::from_u128(5));
    let mut expected = image.flat(None);
    expected[4 * MIB as usize + 8192..][..4096].fill(0x5A);
    let path = folder.path().join("a.vhdx");
    image.write_to(&path);
    let files = copies(&DiffChain::open(&path).unwrap(), &expected, Sharing::new);
    // The blocks are one run, whose place is looked up again 2 MiB after each failure.
    assert_eq!(files[0].shared(), std::slice::from_ref(&(6 * MIB..12 * MIB)));
}

#[test]
#[cfg(target_os = "linux")]
fn raw_disks_are_shared_but_for_their_holes_and_their_ends() {
    let mut bytes = vec![0; 3 * MIB as usize + 5000];
    pattern(3, 0, &mut bytes);
    let disk = RawDisk::new(Arc::new(MemStorage::new(bytes.clone()))).unwrap();
    let raw = Sharing::new();
    let done = Export::new().run(&disk, &raw).unwrap();
    assert!(raw.contents() == bytes);
    assert_eq!(raw.shared(), std::slice::from_ref(&(0..3 * MIB + UNIT)));
    assert_eq!((done.written, done.handed_over), (3 * MIB + 5000, 3 * MIB + UNIT));
    // Sectors of 4 KiB, of which the last one is only partly in the disk.
    let file = Arc::new(Sharing::new());
    let options = CreateOptions::dynamic(3 * MIB + 8192).logical_sector(4096);
    let image = options.create_in(&LocalHost, file.clone()).unwrap();
    Export::new().onto(&disk, &image).unwrap();
    image.close().unwrap();
    let mut expected = bytes.clone();
    expected.resize(3 * MIB as usize + 8192, 0);
    assert!(naively(file.contents()) == expected);
    assert_eq!(file.shared_bytes(), 3 * MIB + UNIT);
    // A file with holes.
    let folder = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(folder.path().join("raw")).unwrap();
    sparse.set_len(8 * MIB).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &bytes, 2 * MIB).unwrap();
    let storage = avhdx::storage::FileStorage::from_file(
        std::fs::File::open(folder.path().join("raw")).unwrap(),
        "sparse",
    );
    let disk = RawDisk::new(Arc::new(storage)).unwrap();
    let raw = Sharing::new();
    let done = Export::new().run(&disk, &raw).unwrap();
    let mut expected = vec![0; 8 * MIB as usize];
    expected[2 * MIB as usize..][..bytes.len()].copy_from_slice(&bytes);
    assert!(raw.contents() == expected);
    assert_eq!(raw.shared(), std::slice::from_ref(&(2 * MIB..5 * MIB + 2 * UNIT)));
    assert_eq!(done.handed_over, 3 * MIB + 2 * UNIT);
}

#[test]
fn progress_rises_through_what_is_shared_and_can_stop() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = Image::dynamic(70 * MIB);
    (0..70).for_each(|block| _ = image.put(block, Block::full(Data::Pattern(block))));
    let path = folder.path().join("a.vhdx");
    image.write_to(&path);
    let chain = DiffChain::open(&path).unwrap();
    let mut seen = Vec::new();
    let on = |now: avhdx::ops::Progress| {
        seen.push(now.done);
        ControlFlow::Continue(())
    };
    let raw = Sharing::new();
    Export::new().on_progress(on).run(&chain, &raw).unwrap();
    assert!(seen.is_sorted() && seen.last() == Some(&(70 * MIB)));
    assert!(seen.windows(2).all(|two| two[1] - two[0] <= 4 * MIB), "{seen:?}");
    assert_eq!(raw.shared_bytes(), 70 * MIB);
    let raw = Sharing::new();
    let stop = |now: avhdx::ops::Progress| match now.done {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let error = Export::new().on_progress(stop).run(&chain, &raw).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!((1..70 * MIB).contains(&raw.shared_bytes()));
}

/// A place is found, then its block is discarded, and everything done to have the place used again, before the host
/// copies from it.
#[test]
fn places_are_not_used_again_before_the_host_has_copied_from_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    drop(CreateOptions::dynamic(64 * MIB).block_size(1 << 20).create(&path).unwrap());
    for onto_image in [false, true] {
        let chain = OpenOptions::new().writable(true).open(&path).unwrap();
        let mut bytes = vec![0; 24 * MIB as usize];
        pattern(9, 0, &mut bytes);
        chain.write_at(&bytes, 0).unwrap();
        chain.discard(32 * MIB..64 * MIB).unwrap();
        chain.flush().unwrap();
        let file = Arc::new(Sharing::new());
        let writer = chain.clone();
        let is_first = AtomicUsize::new(0);
        *file.before.lock().unwrap() = Some(Box::new(move |_| {
            if is_first.fetch_add(1, Ordering::SeqCst) > 0 {
                return;
            }
            writer.discard(0..16 * MIB).unwrap();
            writer.flush().unwrap();
            writer.write_at(&vec![0xDD; 32 * MIB as usize], 32 * MIB).unwrap();
            writer.flush().unwrap();
        }));
        let found = if onto_image {
            let image =
                CreateOptions::dynamic(64 * MIB).create_in(&LocalHost, file.clone()).unwrap();
            Export::new().onto(&chain, &image).unwrap();
            image.close().unwrap();
            naively(file.contents())
        } else {
            Export::new().run(&chain, file.as_ref()).unwrap();
            file.contents()
        };
        // What was discarded meanwhile reads as before or as zeros, and nowhere as what was written elsewhere.
        for (n, (found, before)) in found.chunks(512).zip(bytes.chunks(512)).enumerate() {
            let is_zero = n as u64 * 512 < 16 * MIB && found.iter().all(|byte| *byte == 0);
            assert!(found == before || is_zero, "sector {n}");
        }
        assert!(file.shared_bytes() >= MIB);
        chain.close().unwrap();
    }
}

/// Writers go on; each sector of the copy is one that the disk had.
#[test]
fn a_copy_of_a_disk_in_use_has_each_sector_old_or_new() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.vhdx");
    drop(CreateOptions::dynamic(32 * MIB).block_size(1 << 20).create(&base).unwrap());
    let chain = OpenOptions::new().writable(true).open(&base).unwrap();
    let fill = |seed: u8| vec![seed; MIB as usize];
    for block in 0..32 {
        chain.write_at(&fill(1), block * MIB).unwrap();
    }
    avhdx::ops::Checkpoint::new().path(folder.path().join("tip.avhdx")).run(&chain).unwrap();
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = avhdx_testkit::rng::Rng::new(7);
            while stop.load(Ordering::SeqCst) == 0 {
                let (at, len) = (rng.below(62) * MIB / 2, 512 * (1 + rng.below(2048)));
                match rng.below(4) {
                    0 => chain.discard(at..at + len).unwrap(),
                    1 => chain.flush().unwrap(),
                    _ => chain.write_at(&fill(2)[..len.min(MIB) as usize], at).unwrap(),
                }
            }
        });
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..6 {
                let file = Sharing { in_use: true, ..Sharing::new() };
                Export::new().run(&chain, &file).unwrap();
                let found = file.contents();
                for (n, sector) in found.chunks(512).enumerate() {
                    let first = sector[0];
                    assert!(first <= 2 && sector.iter().all(|byte| *byte == first), "sector {n}");
                }
                assert!(file.shared_bytes() > 0);
            }
        }));
        stop.store(1, Ordering::SeqCst);
        looked.unwrap();
    });
}
