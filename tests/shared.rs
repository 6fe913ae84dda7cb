//! A file that is a parent in several chains with one budget is opened once, and what one chain learns
//! about it serves the others: counted in reads, files and memory.
#![allow(clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::{FileId, Host, LocalHost, LockMode, LockOutcome, MemStorage, Storage};
use avhdx::{Budget, DiffChain, Disk, DiskExt, Lock, LogPolicy, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::crc::sealed;
use peak_alloc::PeakAlloc;

use common::disk::reads_as;
use common::oracle::ids;
use common::{Counting, MIB, file, open_stack};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// One test at a time: the allocator and the list of open files count per process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of an identifier and two headers, all that is read of a file that is open already.
const LOOKED_AT: u64 = 64 * 1024 + 2 * 4096;

fn full_base(mib: u64) -> Image {
    let mut base = Image::dynamic(mib * MIB);
    (0..mib).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(100 + b))));
    base
}

/// Children of one base, each with a sector of its own, and their names.
struct Family {
    folder: tempfile::TempDir,
    base: Image,
    children: Vec<Image>,
}

impl Family {
    fn new(base: Image, count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        base.write_to(folder.path().join("parent.vhdx"));
        let child = |n| {
            let mut child = base.new_child();
            child.put(0, Block::partial_runs(Data::Pattern(n), &[(n as usize, 1)])).reseed(n + 1);
            child.write_to(folder.path().join(format!("{n}.avhdx")));
            child
        };
        let children = (0..count).map(child).collect();
        Self { folder, base, children }
    }

    fn path(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("{n}.avhdx"))
    }

    fn base_path(&self) -> PathBuf {
        self.folder.path().join("parent.vhdx")
    }

    fn flat(&self, n: usize) -> Vec<u8> {
        self.children[n].flat(Some(&self.base.flat(None)))
    }

    /// Opens a child over a separate handle of the base, and counts the reads through it.
    fn counted(&self, options: &OpenOptions, n: usize) -> (DiffChain, Arc<Counting>) {
        let counting = Counting::new(file(&self.base_path()));
        let files = [Arc::clone(&counting) as Arc<dyn Storage>, file(&self.path(n))];
        (open_stack(options.clone(), &files).unwrap(), counting)
    }
}

fn options() -> OpenOptions {
    OpenOptions::new().budget(Budget::new(8 << 20))
}

#[test]
fn a_base_of_many_chains_is_read_once() {
    let _alone = alone();
    let family = Family::new(full_base(4), 3);
    let options = options();
    let (first, through_first) = family.counted(&options, 0);
    let (_, opened) = through_first.counts();
    reads_as(&first, &family.flat(0));
    let tables_known = through_first.counts();
    let (second, through_second) = family.counted(&options, 1);
    assert_eq!(ids(&first)[0], ids(&second)[0]);
    let (_, looked_at) = through_second.counts();
    assert!(looked_at <= 2 * LOOKED_AT && looked_at < opened, "{looked_at} of {opened} bytes");
    // A table page and the payload are read through the first chain's handle, and the table page is not
    // read again.
    let mut sector = [0; 512];
    second.read_at(&mut sector, 3 * MIB).unwrap();
    assert_eq!(sector[..], family.flat(1)[3 << 20..][..512]);
    let now = through_first.counts();
    assert_eq!((now.0 - tables_known.0, now.1 - tables_known.1), (1, 512));
    reads_as(&second, &family.flat(1));
    assert_eq!(through_second.counts().1, looked_at);

    // It stays open until its last user is gone, whichever that is.
    let view = second.view(ids(&second)[0]).unwrap();
    let copy = second.clone();
    drop(first);
    reads_as(&second, &family.flat(1));
    drop(second);
    reads_as(&view, &family.base.flat(None));
    reads_as(&copy, &family.flat(1));
    let (third, through_third) = family.counted(&options, 2);
    assert_eq!(ids(&third)[0], view.layers()[0].id);
    drop((third, view, copy));
    let before = through_third.counts();
    let (again, through_it) = family.counted(&options, 2);
    assert!(through_it.counts().1 >= opened, "nobody had it open");
    reads_as(&again, &family.flat(2));
    assert_eq!(through_third.counts(), before);
}

/// Bases and middle layers are shared, tips are not: the layers that two chains have in common are resolved once.
#[test]
fn what_one_chain_found_out_serves_the_others() {
    let _alone = alone();
    let base = full_base(4);
    let mut middle = base.new_child();
    // Alternating sectors, so that the layers' bitmaps must be read.
    middle.put(2, Block::partial_runs(Data::Pattern(7), &[(0, 5), (9, 5), (100, 1)])).reseed(50);
    let folder = tempfile::tempdir().unwrap();
    base.write_to(folder.path().join("base.vhdx"));
    let base_flat = base.flat(None);
    let middle_flat = middle.flat(Some(&base_flat));
    middle.write_to(folder.path().join("parent.avhdx"));
    let tips: Vec<_> = (0..2)
        .map(|n| {
            let mut tip = middle.new_child();
            tip.put(0, Block::partial_runs(Data::Pattern(n), &[(n as usize, 1)])).reseed(n + 60);
            let path = folder.path().join(format!("{n}.avhdx"));
            tip.write_to(&path);
            (path, tip.flat(Some(&middle_flat)))
        })
        .collect();
    // In such a small budget another image evicts all table pages; there is room for answers.
    let crowd = folder.path().join("crowd.vhdx");
    Image::dynamic(4 << 40).write_to(&crowd);
    let options = OpenOptions::new().budget(Budget::new(64 << 10));
    let opened = tips.iter().map(|(tip, _)| {
        let counting =
            ["base.vhdx", "parent.avhdx"].map(|n| Counting::new(file(&folder.path().join(n))));
        let [base, middle] = counting.each_ref().map(|file| Arc::clone(file) as Arc<dyn Storage>);
        let chain = open_stack(options.clone(), &[base, middle, file(tip)]).unwrap();
        (chain, counting)
    });
    let opened: Vec<_> = opened.collect();
    let [(first, counting), (second, _)] = &opened[..] else { unreachable!() };
    assert_eq!(ids(first)[..2], ids(second)[..2]);
    let middle_of = |chain: &DiffChain| chain.view(ids(chain)[1]).unwrap();
    reads_as(&middle_of(first), &middle_flat);
    assert!(options.open_image(&crowd).unwrap().extents(0..4 << 40).all(|e| e.is_ok()));
    let before: Vec<_> = counting.iter().map(|file| file.counts().0).collect();
    let mut sector = [0; 512];
    middle_of(second).read_at(&mut sector, 2 * MIB + 9 * 512).unwrap();
    assert_eq!(sector[..], middle_flat[(2 << 20) + 9 * 512..][..512]);
    let after: Vec<_> = counting.iter().map(|file| file.counts().0).collect();
    assert_eq!(after, [before[0], before[1] + 1], "the sector itself and no table");
    for ((chain, _), (_, flat)) in opened.iter().zip(&tips) {
        reads_as(chain, flat);
    }
}

#[test]
fn fifty_chains_over_one_base_hold_it_once() {
    let _alone = alone();
    const COUNT: usize = 50;
    let mut base = Image::dynamic(64 << 30);
    base.put(0, Block::full(Data::Pattern(5)));
    let family = Family::new(base, COUNT as u64);
    let options = options();
    let read_all = |chain: &DiffChain, n: usize| {
        // Each page of the base's table.
        let mut sector = [0; 512];
        for at in (0..64 << 30).step_by(1 << 29) {
            chain.read_at(&mut sector, at).unwrap();
        }
        let mut start = vec![0; MIB as usize];
        chain.read_at(&mut start, 0).unwrap();
        let mut expected = vec![0; MIB as usize];
        avhdx_testkit::rng::pattern(5, 0, &mut expected);
        avhdx_testkit::rng::pattern(n as u64, n as u64 * 512, &mut expected[n * 512..][..512]);
        assert_eq!(start, expected, "child {n}");
    };
    let first = options.open(family.path(0)).unwrap();
    read_all(&first, 0);
    let (memory, files) = (MEMORY.current_usage(), open_files(&family.base_path()));
    let chains: Vec<_> = (1..COUNT).map(|n| options.open(family.path(n)).unwrap()).collect();
    let grown = (MEMORY.current_usage() - memory) / (COUNT - 1);
    assert!(grown < 10 << 10, "{grown} bytes for each further chain");
    assert_eq!(open_files(&family.base_path()), files, "the base's file is open once");
    for (chain, n) in chains.iter().zip(1..) {
        read_all(chain, n);
    }
    drop(first);
    for (chain, n) in chains.iter().zip(1..) {
        read_all(chain, n);
    }
    assert_eq!(open_files(&family.base_path()), files);
    drop(chains);
    assert_eq!(open_files(&family.base_path()), 0);
}

/// How often this process has a file open, if the host can tell.
fn open_files(path: &Path) -> usize {
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return 0 };
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target == path).count()
}

#[test]
fn a_base_that_was_replaced_or_changed_is_another() {
    let _alone = alone();
    let family = Family::new(full_base(3), 2);
    let options = options().lock(Lock::None);
    let first = options.open(family.path(0)).unwrap();
    // A copy takes its name: the same identity, another file.
    let copy = family.folder.path().join("copy");
    std::fs::copy(family.base_path(), &copy).unwrap();
    std::fs::rename(&copy, family.base_path()).unwrap();
    let second = options.open(family.path(1)).unwrap();
    assert_ne!(ids(&first)[0], ids(&second)[0]);
    reads_as(&first, &family.flat(0));
    reads_as(&second, &family.flat(1));

    // A session that writes the same data: contents and identity may be the same again if the owner restores
    // the identity, but the file is not the one that was opened.
    let changed = OpenOptions::new().lock(Lock::None).orphan_children(true).writable(true);
    let guid = {
        let image = changed.open_image(family.base_path()).unwrap();
        let guid = image.data_write_guid();
        image.write_at(&family.base.flat(None)[..512], 0).unwrap();
        image.close().unwrap();
        guid
    };
    put_identity_back(&family.base_path(), guid);
    let third = options.open(family.path(1)).unwrap();
    assert!(!ids(&second).contains(&ids(&third)[0]));
    reads_as(&third, &family.flat(1));

    // A file that grew, with the same header.
    let file = std::fs::OpenOptions::new().append(true).open(family.base_path()).unwrap();
    file.set_len(file.metadata().unwrap().len() + MIB).unwrap();
    let fourth = options.open(family.path(0)).unwrap();
    assert_ne!(ids(&third)[0], ids(&fourth)[0]);
    reads_as(&fourth, &family.flat(0));
    let fifth = options.open(family.path(1)).unwrap();
    assert_eq!(ids(&fifth)[0], ids(&fourth)[0], "and this one is shared in turn");
}

/// Writes an identity into both headers of a file, [MS-VHDX] 2.2.2.
fn put_identity_back(path: &Path, guid: uuid::Uuid) {
    let mut bytes = std::fs::read(path).unwrap();
    for at in [64 << 10, 128 << 10] {
        let header = &mut bytes[at..at + 4096];
        header[32..48].copy_from_slice(&guid.to_bytes_le());
        let sum = sealed(header, 4);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    // In place, so that it stays the same file.
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::io::Write::write_all(&mut &file, &bytes).unwrap();
}

#[test]
fn other_policies_budgets_and_nameless_files_are_not_shared() {
    let _alone = alone();
    let family = Family::new(full_base(2), 2);
    let of = |options: &OpenOptions, n: usize| options.open(family.path(n)).unwrap();
    let options = options();
    let first = of(&options, 0);
    let base = ids(&first)[0];
    assert_eq!(ids(&of(&options, 1))[0], base);
    assert_ne!(ids(&of(&options.clone().lock(Lock::None), 1))[0], base);
    assert_ne!(ids(&of(&options.clone().log(LogPolicy::Refuse), 1))[0], base);
    assert_ne!(ids(&of(&options.clone().budget(Budget::new(1 << 20)), 1))[0], base);
    // The base alone, and as a tip that is written.
    assert_ne!(options.open_image(family.base_path()).unwrap().id(), base);

    let shelf = |n: usize| {
        let bytes = std::fs::read(family.base_path()).unwrap();
        let parent: Arc<dyn Storage> = Arc::new(MemStorage::new(bytes).named("parent.vhdx"));
        open_stack(options.clone(), &[parent, file(&family.path(n))]).unwrap()
    };
    let (left, right) = (shelf(0), shelf(1));
    assert_ne!(ids(&left)[0], ids(&right)[0]);
    reads_as(&right, &family.flat(1));
}

/// The lock of the first stays while the second is open.
#[test]
fn a_shared_parent_stays_locked_until_its_last_user_goes() {
    let _alone = alone();
    let family = Family::new(full_base(1), 2);
    let options = options();
    let first = options.open(family.path(0)).unwrap();
    let second = options.open(family.path(1)).unwrap();
    let is_locked = || {
        let file = LocalHost.open(&family.base_path(), avhdx::storage::Access::ReadWrite).unwrap();
        !matches!(file.try_lock(LockMode::Exclusive).unwrap(), LockOutcome::Locked)
    };
    drop(first);
    assert!(is_locked());
    drop(second);
    assert!(!is_locked());
}

/// Threads that open and drop chains over one base all the time.
#[test]
fn chains_come_and_go_in_many_threads() {
    let _alone = alone();
    let family = Family::new(full_base(1), 4);
    let options = options();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (family, options) = (&family, &options);
            scope.spawn(move || {
                let flat = family.flat(n);
                for round in 0..40 {
                    let chain = options.open(family.path(n)).unwrap();
                    let at = round * 24_576 % (1 << 20);
                    let mut bytes = [0; 4096];
                    chain.read_at(&mut bytes, at as u64).unwrap();
                    assert_eq!(bytes, flat[at..at + 4096]);
                }
            });
        }
    });
    assert_eq!(open_files(&family.base_path()), 0);
    let id: Option<FileId> = file(&family.base_path()).id().unwrap();
    assert!(id.is_some());
}
