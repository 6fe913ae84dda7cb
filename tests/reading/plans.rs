//! Read plans, compared with a reader that asks every layer for every sector, over files that panic if they
//! are read while a plan is made.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use avhdx::storage::{Access, FileId, Host, LocalHost, LockMode, LockOutcome, MemStorage, Storage};
use avhdx::{
    Budget, CreateOptions, DiffChain, Disk, DiskExt, ErrorKind, OpenOptions, Planned,
    PlannedSource, ReadPlan, Source, TableLoad,
};
use avhdx_testkit::build::{Block, Data, Descriptor, Image, LogEntry, write_chain};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::rng::Rng;
use uuid::Uuid;

use crate::common::deep::{BUDGETS, deep_chain, somewhere};
use crate::common::disk::flat;
use crate::common::oracle::ids;
use crate::common::{Counting, MIB, in_memory, open_images, open_stack};

thread_local! {
    static PLANNING: Cell<bool> = const { Cell::new(false) };
}

/// Does something that must not access any file.
fn without_io<T>(work: impl FnOnce() -> T) -> T {
    PLANNING.set(true);
    let done = work();
    PLANNING.set(false);
    done
}

/// A file that panics if it is accessed while a plan is made.
#[derive(Debug)]
struct Untouched(Arc<dyn Storage>);

impl Untouched {
    fn file(&self) -> &dyn Storage {
        assert!(!PLANNING.get(), "{} touched while planning", self.0.name());
        self.0.as_ref()
    }
}

impl Storage for Untouched {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn path(&self) -> Option<&Path> {
        self.0.path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file().read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file().write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.file().flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.file().len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file().set_len(len)
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        self.file().id()
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.file().try_lock(mode)
    }
}

fn untouched(files: Vec<Arc<dyn Storage>>) -> Vec<Arc<dyn Storage>> {
    files.into_iter().map(|file| Arc::new(Untouched(file)) as Arc<dyn Storage>).collect()
}

/// The requested table bytes, read as the caller would.
fn bytes_for(load: &TableLoad) -> Vec<u8> {
    let mut bytes = vec![0; load.len()];
    load.storage().read_exact_at(&mut bytes, load.at().get()).unwrap();
    bytes
}

/// Plans a read, supplying what it asks for; returns how often it asked. It never asks twice for the same.
fn plan(chain: &DiffChain, at: u64, len: u64) -> (ReadPlan, usize) {
    let mut planned = without_io(|| chain.plan_read(at..at + len)).unwrap();
    let mut asked = HashSet::new();
    loop {
        planned = match planned {
            Planned::Ready(plan) => return (plan, asked.len()),
            Planned::Load(load) => {
                assert!(load.len() > 0 && chain.image(load.layer()).is_some());
                assert!(asked.insert((load.layer(), load.at())), "{load:?} again");
                let bytes = bytes_for(&load);
                without_io(|| load.supply(&bytes)).unwrap()
            }
        };
    }
}

/// The pieces of the plan cover its range and refer to these bytes.
fn names(plan: &ReadPlan, at: u64, expected: &[u8]) {
    assert_eq!(plan.range(), at..at + expected.len() as u64);
    let mut end = at;
    let mut last: Option<(Option<avhdx::LayerId>, u64)> = None;
    for piece in plan.pieces() {
        assert!(piece.range.start == end && piece.range.end > end, "{piece:?} after {end}");
        let len = piece.range.end - end;
        let mut bytes = vec![0; len as usize];
        let here = match piece.source {
            PlannedSource::Data { layer, storage, at } => {
                storage.read_exact_at(&mut bytes, at.get()).unwrap();
                (Some(layer), at.get())
            }
            PlannedSource::Zero => (None, 0),
        };
        assert!(bytes == expected[(end - at) as usize..][..len as usize], "{piece:?}");
        assert_ne!(last, Some(here), "neighbours that continue each other: {piece:?}");
        last = Some((here.0, if here.0.is_some() { here.1 + len } else { 0 }));
        end = piece.range.end;
    }
    assert_eq!(end, at + expected.len() as u64);
    let mut bytes = vec![0xAA; expected.len()];
    plan.read(&mut bytes).unwrap();
    assert!(bytes == expected);
}

fn agree(images: &[Image], seed: u64) {
    let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
    let files = untouched(in_memory(images));
    let mut rng = Rng::new(seed);
    for budget in BUDGETS {
        let options = OpenOptions::new().budget(Budget::new(budget));
        let chain = open_stack(options, &files).unwrap();
        let ids = ids(&chain);
        let mut loads = 0;
        for tip in [images.len() - 1, images.len() / 2] {
            let view = chain.view(ids[tip]).unwrap();
            let expected = naive.flat(tip).unwrap();
            let size = expected.len() as u64;
            for _ in 0..25 {
                let (at, len) = somewhere(&mut rng, size);
                let (plan, asked) = plan(&view, at, len as u64);
                names(&plan, at, &expected[at as usize..][..len]);
                loads += asked;
            }
            let (whole, _) = plan(&view, 0, size);
            names(&whole, 0, &expected);
            if budget == 64 << 20 {
                // Everything is known by now.
                assert_eq!(plan(&view, 0, size).1, 0);
                let (at, len) = somewhere(&mut rng, size);
                assert_eq!(plan(&view, at, len as u64).1, 0);
            }
        }
        assert!(loads > 0, "nothing had to be loaded with a budget of {budget}");
    }
}

#[test]
fn plans_name_what_a_reader_of_every_layer_finds() {
    for (seed, layers) in [1, 2, 2, 3, 4, 5, 7, 9, 13].into_iter().enumerate() {
        agree(&deep_chain(seed as u64 + 100, layers), seed as u64);
    }
}

#[test]
fn plans_over_48_layers_name_what_a_reader_of_every_layer_finds() {
    agree(&deep_chain(64, 48), 64);
}

/// Planning learns as much as reading does.
#[test]
fn what_plans_find_out_serves_reads_and_the_other_way_round() {
    let images = deep_chain(7, 9);
    let expected = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap().flat(8).unwrap();
    let counting: Vec<_> = in_memory(&images).into_iter().map(Counting::new).collect();
    let files: Vec<_> = counting.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
    let calls = || counting.iter().map(|file| file.counts().0).sum::<u64>();
    let open = || {
        let options = OpenOptions::new().budget(Budget::new(64 << 20));
        open_stack(options, &untouched(files.clone())).unwrap()
    };
    let size = expected.len() as u64;
    let (planned, read) = (open(), open());
    let before = calls();
    let (whole, loads) = plan(&planned, 0, size);
    assert_eq!(calls() - before, loads as u64);
    let pieces = whole.pieces().filter(|p| !matches!(p.source, PlannedSource::Zero)).count() as u64;
    let before = calls();
    assert!(flat(&planned) == expected);
    assert_eq!(calls() - before, pieces, "one read a piece, and no tables");
    let before = calls();
    assert!(flat(&read) == expected);
    assert_eq!(calls() - before, pieces + loads as u64, "the same tables");
    assert_eq!(plan(&read, 0, size).1, 0);
}

#[test]
fn a_plan_can_load_tables_itself() {
    let images = deep_chain(3, 5);
    let expected = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap().flat(4).unwrap();
    let chain = open_images(OpenOptions::new().budget(Budget::new(0)), &images).unwrap();
    let mut planned = chain.plan_read(0..expected.len() as u64).unwrap();
    let mut loads = 0;
    let plan = loop {
        planned = match planned {
            Planned::Ready(plan) => break plan,
            Planned::Load(load) => load.load().unwrap(),
        };
        loads += 1;
    };
    assert!(loads > 0);
    names(&plan, 0, &expected);
}

#[test]
fn plans_keep_their_bounds() {
    let images = deep_chain(5, 3);
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let size = chain.geometry().size;
    for at in [0, 1, size] {
        let Planned::Ready(plan) = chain.plan_read(at..at).unwrap() else { panic!("tables") };
        assert_eq!((plan.range(), plan.pieces().count()), (at..at, 0));
        plan.read(&mut []).unwrap();
    }
    for range in [0..size + 1, size..size + 1, size + 1..size + 1, u64::MAX - 1..u64::MAX] {
        assert_eq!(chain.plan_read(range).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let (plan, _) = plan(&chain, 5, 100);
    for len in [0, 99, 101] {
        let error = plan.read(&mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{len} bytes");
    }
}

#[test]
fn wrong_table_bytes_fail_one_plan_and_affect_no_other() {
    let mut base = Image::dynamic(8 * MIB);
    (0..8).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(b))));
    let mut child = base.new_child();
    child.put(3, Block::partial_runs(Data::Pattern(9), &[(100, 5)]));
    let images = [base, child];
    let expected = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap().flat(1).unwrap();
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let load = || match chain.plan_read(0..8 * MIB).unwrap() {
        Planned::Load(load) => load,
        Planned::Ready(_) => panic!("from a table that nobody read"),
    };
    for len in [0, 1, load().len() - 1, load().len() + 1] {
        let load = load();
        let name = load.storage().name().to_owned();
        let error = load.supply(&vec![0; len]).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "plan.table-length"));
        assert_eq!(error.file(), Some(name.as_str()));
    }
    // Blocks in an invalid state.
    let wrong = [4, 0, 0, 0, 0, 0, 0, 0].repeat(load().len() / 8);
    assert_eq!(load().supply(&wrong).unwrap_err().kind(), ErrorKind::Damaged);
    // It was not remembered.
    assert!(flat(&chain) == expected);
    names(&plan(&chain, 0, 8 * MIB).0, 0, &expected);
}

#[test]
fn a_log_over_payload_refuses_plans() {
    let mut image = Image::dynamic(4 * MIB);
    image.put(1, Block::full(Data::Pattern(1)));
    let at = image.layout().payload[&1] + 8192;
    image.log.push(LogEntry::new(1, vec![Descriptor::data(at, vec![0x5A; 4096])]));
    image.set_log_guid(Uuid::from_u128(5));
    let mut expected = image.flat(None);
    expected[(MIB + 8192) as usize..][..4096].fill(0x5A);

    let folder = tempfile::tempdir().unwrap();
    image.write_to(folder.path().join("a.vhdx"));
    let chain = DiffChain::open(folder.path().join("a.vhdx")).unwrap();
    let mut bytes = vec![0; 4 * MIB as usize];
    chain.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected);
    for range in [MIB..MIB + 8193, MIB + 12287..MIB + 12288, 0..4 * MIB] {
        let error = chain.plan_read(range).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::LogOverlay, "extent.log-overlay"));
    }
    for range in [MIB..MIB + 8192, MIB + 12288..4 * MIB] {
        let (plan, _) = plan(&chain, range.start, range.end - range.start);
        names(&plan, range.start, &expected[range.start as usize..range.end as usize]);
        from_descriptors(&plan, &expected);
    }
}

/// A caller that reads tables by descriptor also gets those in a pending log.
#[cfg(unix)]
#[test]
fn tables_that_a_log_lies_over_are_not_read_from_under_it() {
    use std::os::unix::fs::FileExt;
    let mut image = Image::dynamic(4 * MIB);
    image.put(1, Block::full(Data::Pattern(1))).put(2, Block::full(Data::Pattern(2)));
    let (layout, expected) = (image.layout(), image.flat(None));
    // The table in the file is empty; the log has the real one.
    let mut bytes = image.to_bytes();
    let table = (layout.payload_entry(0).start / 4096 * 4096) as usize;
    let page = bytes[table..][..4096].to_vec();
    image.log.push(LogEntry::new(1, vec![Descriptor::data(table as u64, page)]));
    image.set_log_guid(Uuid::from_u128(5));
    bytes = image.to_bytes();
    bytes[table..][..4096].fill(0);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    std::fs::write(&path, bytes).unwrap();
    let chain = OpenOptions::new().budget(Budget::new(8 << 20)).open(&path).unwrap();
    let mut planned = chain.plan_read(0..4 * MIB).unwrap();
    let plan = loop {
        planned = match planned {
            Planned::Ready(plan) => break plan,
            Planned::Load(load) => {
                let mut bytes = bytes_for(&load);
                if let Some(file) = load.storage().as_fd() {
                    let file = std::fs::File::from(file.try_clone_to_owned().unwrap());
                    file.read_exact_at(&mut bytes, load.at().get()).unwrap();
                }
                load.supply(&bytes).unwrap()
            }
        };
    };
    names(&plan, 0, &expected);
    from_descriptors(&plan, &expected);
}

/// Reads the plan's bytes through the files' descriptors.
#[cfg(unix)]
fn from_descriptors(plan: &ReadPlan, disk: &[u8]) {
    use std::os::unix::fs::FileExt;
    for piece in plan.pieces() {
        let PlannedSource::Data { storage, at, .. } = piece.source else { continue };
        let file = storage.as_fd().expect("a file of this machine").try_clone_to_owned().unwrap();
        let mut bytes = vec![0; (piece.range.end - piece.range.start) as usize];
        std::fs::File::from(file).read_exact_at(&mut bytes, at.get()).unwrap();
        assert!(bytes == disk[piece.range.start as usize..piece.range.end as usize]);
    }
}

#[cfg(not(unix))]
fn from_descriptors(_: &ReadPlan, _: &[u8]) {}

#[cfg(unix)]
#[test]
fn files_have_descriptors_and_memory_has_none() {
    let images = deep_chain(11, 4);
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), &images);
    let chain = DiffChain::open(&paths[3]).unwrap();
    let disk = flat(&chain);
    from_descriptors(&plan(&chain, 0, disk.len() as u64).0, &disk);
    assert!(MemStorage::new(vec![1]).as_fd().is_none());
    assert!(LocalHost.open(&paths[0], Access::Read).unwrap().as_fd().is_some());
}

#[test]
fn plans_live_on_in_other_threads_without_their_chain() {
    fn lives_on<T: Send + 'static>() {}
    lives_on::<ReadPlan>();
    lives_on::<TableLoad>();
    lives_on::<Planned>();

    let images = deep_chain(2, 4);
    let expected = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap().flat(3).unwrap();
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let Planned::Load(load) = chain.plan_read(0..expected.len() as u64).unwrap() else {
        panic!("from tables that nobody read")
    };
    drop(chain);
    let planner = std::thread::spawn(move || {
        let mut planned = load.load().unwrap();
        loop {
            planned = match planned {
                Planned::Ready(plan) => return plan,
                Planned::Load(load) => load.load().unwrap(),
            };
        }
    });
    names(&planner.join().unwrap(), 0, &expected);
}

/// Table bytes that were read before a flush replaced them are neither used nor remembered.
#[test]
fn tables_that_went_out_of_date_on_the_way_are_asked_for_again() {
    for budget in [0, 64 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.vhdx");
        drop(CreateOptions::dynamic(16 * MIB).block_size(1 << 20).create(&path).unwrap());
        let first = OpenOptions::new().writable(true).open(&path).unwrap();
        first.write_at(&[1; 4096], 0).unwrap();
        first.close().unwrap();
        drop(first);

        let options = OpenOptions::new().budget(Budget::new(budget)).writable(true);
        let chain = options.open(&path).unwrap();
        let Planned::Load(load) = chain.plan_read(0..4096).unwrap() else { panic!("no tables") };
        let (old, place) = (bytes_for(&load), load.at());
        chain.discard(0..MIB).unwrap();
        chain.flush().unwrap();
        // The next commit writes the page to its place.
        chain.write_at(&[2; 4096], 5 * MIB).unwrap();
        chain.flush().unwrap();
        chain.write_at(&[3; 4096], 6 * MIB).unwrap();
        chain.close().unwrap();

        let Planned::Load(load) = load.supply(&old).unwrap() else { panic!("from an old table") };
        assert_eq!(load.at(), place);
        let mut bytes = vec![0xAA; 4096];
        chain.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == [0; 4096], "the old table was remembered");
        let new = bytes_for(&load);
        assert_ne!(old, new);
        let Planned::Ready(plan) = load.supply(&new).unwrap() else { panic!("asked again") };
        names(&plan, 0, &[0; 4096]);
    }
}

/// Plans and extents refer to the same places.
#[test]
fn plans_agree_with_extents() {
    let images = deep_chain(12, 6);
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let size = chain.geometry().size;
    let (plan, _) = plan(&chain, 0, size);
    let mut extents = chain.extents(0..size).map(Result::unwrap).peekable();
    for piece in plan.pieces() {
        let PlannedSource::Data { layer, at, .. } = piece.source else {
            while extents.next_if(|e| e.range.end <= piece.range.end).is_some_and(|extent| {
                assert!(matches!(extent.source, Source::Zero { .. }), "{extent:?}");
                true
            }) {}
            continue;
        };
        let extent = extents.next().unwrap();
        assert_eq!((extent.range, extent.source), (piece.range, Source::Data { layer, at }));
    }
    assert!(extents.next().is_none());
}
