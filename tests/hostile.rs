//! Broken images on purpose: never a panic, never a hang, never much memory, and each refusal says where and why.
//!
//! `AVHDX_LONG=1` runs a hundred times as many cases.

mod common;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use avhdx::storage::Storage;
use avhdx::{
    Budget, DiffChain, Disk, DiskExt, Error, ErrorKind, Linkage, Lock, LogPolicy, OpenOptions,
    Planned,
};
use avhdx_testkit::build::{
    Block, Contents, Data, Descriptor, Image, Item, LogEntry, SECTOR, state,
};
use avhdx_testkit::mutate::{put_u16, put_u32, put_u64, reseal};
use avhdx_testkit::rng::Rng;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use uuid::Uuid;

use common::{MIB, Shelf, memory};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What the tests may take beside the images, which are some 20 MiB: the promise is 64 MiB in all.
const MOST_MEMORY: usize = 32 << 20;
const TABLES: usize = 4 << 20;
const GUID: Uuid = Uuid::from_u128(0x1ec0_0000_0000_4000_8000_0000_0000_0001);

/// A sound chain, base first, with the places of its structures.
struct Chain {
    files: Vec<Vec<u8>>,
    structures: Vec<Vec<(String, Range<u64>)>>,
}

impl Chain {
    fn new(images: &[Image]) -> Self {
        let structures = images.iter().map(|image| {
            let layout = image.layout();
            // The part of each table that is in use, the bytes behind it, and its end.
            let used = |name: &str, range: Range<u64>| {
                let len = match name {
                    "log" | "metadata" | "payload:0" => return None,
                    "bat" => 8 * (layout.payload.len() as u64 + 3),
                    "region_table1" | "region_table2" => 16 + 4 * 32,
                    "metadata_table" => 32 * 9,
                    name if name.starts_with("header") => 96,
                    name if name.starts_with("bitmap") => 512,
                    name if name.starts_with("log_entry") => 2 * SECTOR as u64,
                    name if name.starts_with("payload") => return None,
                    _ => 600,
                };
                Some((name.to_owned(), range.start..range.end.min(range.start + len)))
            };
            let names = layout.names().into_iter();
            names.filter_map(|name| used(&name, layout.get(&name))).collect()
        });
        Self {
            structures: structures.collect(),
            files: images.iter().map(Image::to_bytes).collect(),
        }
    }
}

/// Chains that have every structure between them.
fn corpus() -> Vec<Chain> {
    let mut base = Image::dynamic(3 * MIB - 512);
    base.put(0, Block::full(Data::Pattern(1))).put(2, Block::full(Data::Pattern(2)));
    let mut child = base.new_child();
    child.put(0, Block::partial_runs(Data::Pattern(3), &[(3, 5), (100, 1000)]));
    child.put(1, Block::bare(state::ZERO));
    child.locator.set("parent_linkage2", format!("{{{GUID}}}"));
    child.locator.set("absolute_win32_path", r"\\?\d:\vm\parent.vhdx");
    let mut tip = child.new_child();
    tip.put(2, Block::partial_runs(Data::Pattern(4), &[(0, 1), (2046, 1)]));
    let plain = Chain::new(&[base.clone(), child.clone(), tip]);

    let mut fixed = Image::fixed(2 * MIB);
    fixed.logical_sector = 4096;
    fixed.put(1, Block::full(Data::Pattern(5)));
    fixed.add_region(GUID, false, b"another maker's".to_vec());
    let kept = Item::new("other", GUID, 0, Contents::Bytes(b"kept".to_vec()));
    fixed.metadata.items.push(kept);
    let mut over = fixed.new_child();
    (over.size, over.block_size) = (5 * MIB, 2 << 20);
    over.put(0, Block::partial_runs(Data::Pattern(6), &[(1, 300)]));
    let other_sizes = Chain::new(&[fixed, over]);

    let mut before = child.clone();
    before.blocks.clear();
    before.bitmap_chunks.insert(0);
    before.bitmap_at = child.layout().bitmaps;
    let mut dirty = Image::dirty(&before, &child, GUID, 1);
    let spare = dirty.layout().needed_length;
    let zeros = (0..150).map(|n| Descriptor::zero(spare + n * 4096, 4096)).collect();
    let number = dirty.log.last().map_or(0, |entry| entry.sequence_number) + 1;
    dirty.log.push(LogEntry::new(number, zeros));
    let pending = Chain::new(&[base, dirty]);
    vec![plain, other_sizes, pending]
}

/// One change to one file.
#[derive(Clone, Debug)]
enum Mutation {
    /// Bits flipped in a byte of a structure.
    Flip { structure: usize, at: u64, bits: u8 },
    /// A field set, of so many bytes.
    Set { structure: usize, at: u64, width: u8, value: u64 },
    /// The first so many bytes are left, counted in 4 KiB and a few.
    Cut { sectors: u64, more: u64 },
    /// Bytes of one structure put over another.
    Copy { from: usize, to: usize, len: u64 },
}

impl Mutation {
    fn apply(&self, file: &mut Vec<u8>, structures: &[(String, Range<u64>)]) {
        let place = |structure: &usize, at: u64, width: u64| {
            let (_, range) = &structures[structure % structures.len()];
            let room = (range.end - range.start).saturating_sub(width).max(1);
            range.start + at % room
        };
        let len = file.len() as u64;
        match self {
            Self::Flip { structure, at, bits } => {
                let at = place(structure, *at, 1);
                if at < len {
                    file[at as usize] ^= bits;
                }
            }
            Self::Set { structure, at, width, value } => {
                let width = u64::from(*width);
                let at = place(structure, *at, width) / width * width;
                if at + width <= len {
                    set(file, at, width, *value);
                }
            }
            Self::Cut { sectors, more } => file.truncate((sectors * 4096 + more) as usize),
            Self::Copy { from, to, len: bytes } => {
                let (from, to) = (place(from, 0, 1), place(to, 0, 1));
                let bytes = *bytes % 300;
                if from.max(to) + bytes <= len {
                    file.copy_within(from as usize..(from + bytes) as usize, to as usize);
                }
            }
        }
    }
}

fn set(file: &mut [u8], at: u64, width: u64, value: u64) {
    match width {
        2 => put_u16(file, at, value as u16),
        4 => put_u32(file, at, value as u32),
        _ => put_u64(file, at, value),
    }
}

/// Values that overflow, misalign, or lie just within and without what is allowed.
const EXTREMES: [u64; 24] = [
    0,
    1,
    2,
    7,
    511,
    512,
    4095,
    4096,
    0x1_0000,
    0xF_FFFF,
    MIB,
    MIB + 1,
    256 * MIB,
    512 * MIB,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFF0_0000,
    0xFFFF_FFFF,
    64 << 40,
    i64::MAX as u64,
    1 << 63,
    !0 << 20,
    !0 - 1,
    !0,
];

fn any_mutation() -> impl Strategy<Value = Mutation> {
    let at = || prop_oneof![0..64_u64, 0..5000_u64];
    let structure = || 0..1000_usize;
    let width = || prop_oneof![Just(2_u8), Just(4), Just(8)];
    let value = || {
        prop_oneof![
            proptest::sample::select(&EXTREMES[..]),
            any::<u64>(),
            // A small number of MiB and a block state.
            (0..12_u64, 0..8_u64).prop_map(|(mib, state)| mib << 20 | state),
        ]
    };
    prop_oneof![
        4 => (structure(), at(), 1..=255_u8)
            .prop_map(|(structure, at, bits)| Mutation::Flip { structure, at, bits }),
        8 => (structure(), at(), width(), value())
            .prop_map(|(structure, at, width, value)| Mutation::Set { structure, at, width, value }),
        1 => (0..3000_u64, prop_oneof![Just(0_u64), 0..4096_u64])
            .prop_map(|(sectors, more)| Mutation::Cut { sectors, more }),
        1 => (structure(), structure(), any::<u64>())
            .prop_map(|(from, to, len)| Mutation::Copy { from, to, len }),
    ]
}

/// Opens the files as a chain and each alone, and asks for everything that can be asked for.
fn exercise(files: Vec<Vec<u8>>) {
    let files: Vec<Arc<dyn Storage>> =
        files.into_iter().enumerate().map(|(n, bytes)| memory(format!("l{n}"), bytes)).collect();
    let (tip, parents) = files.split_last().expect("a file");
    for (log, linkage) in [
        (LogPolicy::Replay, Linkage::Verify),
        (LogPolicy::Ignore, Linkage::Ignore),
        (LogPolicy::Refuse, Linkage::Ignore),
    ] {
        let options = OpenOptions::new()
            .log(log)
            .linkage(linkage)
            .budget(Budget::new(TABLES))
            .parents(Shelf(parents.to_vec()));
        let tip = match options.open_file(Arc::clone(tip)) {
            Ok(tip) => tip,
            Err(error) => {
                is_told(&error);
                continue;
            }
        };
        let alone = format!("{:?}", tip.info());
        assert!(!alone.is_empty());
        tip.count_blocks().map_or_else(|error| is_told(&error), drop);
        tip.parent_link().map_or_else(|error| is_told(&error), drop);
        read_all(&tip);
        match options.open_chain(tip) {
            Ok(chain) => read_chain(&chain),
            Err(error) => is_told(&error),
        }
    }
    for parent in parents {
        let options = OpenOptions::new().budget(Budget::new(TABLES));
        match options.open_file(Arc::clone(parent)) {
            Ok(parent) => read_all(&parent),
            Err(error) => is_told(&error),
        }
    }
}

fn read_chain(chain: &DiffChain) {
    plan_some(chain);
    read_all(chain);
    for layer in chain.layers() {
        read_all(&chain.view(layer.id).expect("a layer of the chain"));
    }
}

/// Plans here and there come to an end, and give the bytes that reads do or say what is wrong.
fn plan_some(chain: &DiffChain) {
    let size = chain.geometry().size;
    let mut rng = Rng::new(size);
    let mut buf = vec![0; 300_001];
    for start in [0, size.saturating_sub(300_000), rng.below(size.max(1)), rng.below(size.max(1))] {
        let len = (size - start).min(300_001) as usize;
        let mut planned = chain.plan_read(start..start + len as u64);
        for loads in 0.. {
            assert!(loads < 1000, "no end of loads");
            match planned {
                Ok(Planned::Load(load)) => planned = load.load(),
                _ => break,
            }
        }
        let read = chain.read_at(&mut buf[..len], start);
        match planned {
            Ok(Planned::Load(_)) => unreachable!("all are loaded"),
            Ok(Planned::Ready(plan)) => {
                let mut bytes = vec![0; len];
                plan.read(&mut bytes).expect("places that are there");
                assert!(read.is_ok() && bytes == buf[..len], "{len} bytes at {start}: {read:?}");
            }
            Err(error) => {
                is_told(&error);
                let is_over = error.kind() == ErrorKind::LogOverlay;
                assert!(is_over || read.is_err(), "{len} bytes at {start}: {error}");
            }
        }
    }
}

/// All bytes and extents of a disk that is small, and of one that is not those at both ends and some
/// between.
fn read_all(disk: &dyn Disk) {
    const WINDOW: u64 = 4 << 20;
    let size = disk.geometry().size;
    let mut starts = vec![0, size.saturating_sub(WINDOW)];
    let mut rng = Rng::new(size);
    starts.extend((0..4).map(|_| if size > WINDOW { rng.below(size) } else { 0 }));
    starts.dedup();
    let mut buf = vec![0; 300_001];
    for start in starts {
        let end = size.min(start.saturating_add(WINDOW));
        let mut at = start;
        while at < end {
            let len = (end - at).min(buf.len() as u64);
            if let Err(error) = disk.read_at(&mut buf[..len as usize], at) {
                is_told(&error);
            }
            at += len;
        }
        for extent in disk.extents(start..end) {
            extent.map_or_else(|error| is_told(&error), drop);
        }
    }
    // The whole disk in runs, though not in too many.
    for extent in disk.extents(0..size).take(300) {
        extent.map_or_else(|error| is_told(&error), drop);
    }
}

/// Whoever refuses says which file, where in it, what stands there, what should, and by which rule.
/// A storage in memory never fails by itself, so that no fault of an image may pass for one of the host.
fn is_told(error: &Error) {
    let kind = error.kind();
    assert_ne!(kind, ErrorKind::Io, "{error}");
    if matches!(
        kind,
        ErrorKind::Damaged
            | ErrorKind::Unsupported
            | ErrorKind::NotVhdx
            | ErrorKind::LogWithoutEntries
            | ErrorKind::LogPending
    ) {
        assert!(error.file().is_some(), "no file: {error}");
        assert!(error.offset().is_some(), "no offset: {error}");
        assert!(error.found().is_some_and(|found| !found.is_empty()), "nothing found: {error}");
        assert!(error.expected().is_some_and(|it| !it.is_empty()), "nothing expected: {error}");
        assert!(error.section().is_some(), "no section: {error}");
        assert!(!error.code().is_empty() && !error.message().is_empty(), "{error}");
    }
    let expected = [
        ErrorKind::Damaged,
        ErrorKind::Unsupported,
        ErrorKind::NotVhdx,
        ErrorKind::LogWithoutEntries,
        ErrorKind::LogPending,
        ErrorKind::LogOverlay,
        ErrorKind::ParentRequired,
        ErrorKind::ParentMismatch,
        ErrorKind::ParentMissing,
    ];
    assert!(expected.contains(&kind), "{kind:?}: {error}");
}

/// Runs a case under the eye of the watchdog and the allocator.
fn watched(what: impl Fn() -> String, case: impl FnOnce()) {
    watch(Some(what()));
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    case();
    let most = MEMORY.peak_usage().saturating_sub(before);
    watch(None);
    assert!(most < MOST_MEMORY, "{most} bytes of memory for {}", what());
}

/// Says which case runs from now on. One that runs for a minute is a hang and ends the process.
fn watch(case: Option<String>) {
    static CASE: Mutex<Option<(Instant, String)>> = Mutex::new(None);
    static START: Once = Once::new();
    START.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let case = CASE.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((since, what)) = &*case
                    && since.elapsed() > Duration::from_secs(60)
                {
                    eprintln!("still running after a minute: {what}");
                    std::process::abort();
                }
            }
        });
    });
    let case = case.map(|what| (Instant::now(), what));
    *CASE.lock().unwrap_or_else(PoisonError::into_inner) = case;
}

/// One test at a time: the allocator counts for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn times(short: u32) -> u32 {
    let long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    short * if long { 100 } else { 1 }
}

#[test]
fn sound_chains_are_read() {
    let _alone = alone();
    for chain in corpus() {
        let count = chain.files.len();
        watched(|| "a sound chain".into(), || exercise(chain.files.clone()));
        let files: Vec<_> = chain.files.into_iter().map(|bytes| memory("l", bytes)).collect();
        let opened = common::open_stack(OpenOptions::new(), &files).unwrap();
        assert_eq!(opened.layers().len(), count);
    }
}

#[test]
fn mutated_images() {
    let _alone = alone();
    let corpus = corpus();
    let strategy = (
        0..corpus.len(),
        proptest::collection::vec((0..3_usize, any_mutation()), 1..4),
        proptest::bool::weighted(0.8),
    );
    let config = Config { cases: times(1000), max_shrink_iters: 500, ..Config::default() };
    let config = Config { source_file: Some(file!()), ..config };
    let case = |(chain, mutations, sealed): (usize, Vec<(usize, Mutation)>, bool)| {
        let what = || format!("chain {chain}, sealed {sealed}, {mutations:?}");
        let chain = &corpus[chain];
        let mut files = chain.files.clone();
        for (layer, mutation) in &mutations {
            let layer = layer % files.len();
            mutation.apply(&mut files[layer], &chain.structures[layer]);
        }
        if sealed {
            files.iter_mut().for_each(|file| reseal(file));
        }
        watched(what, || exercise(files));
        Ok(())
    };
    TestRunner::new(config).run(&strategy, case).unwrap_or_else(|error| panic!("{error}"));
}

/// A log that is empty need not be looked at by who reads; nobody writes without room for one.
#[test]
fn a_log_without_length_is_no_harm_to_readers() {
    let mut image = Image::dynamic(2 << 20);
    image.put(0, Block::full(Data::Pattern(1)));
    let mut bytes = image.to_bytes();
    // The log's length in both headers.
    for at in [(64 << 10) + 68, (128 << 10) + 68] {
        set(&mut bytes, at, 4, 0);
    }
    reseal(&mut bytes);
    let sound = memory("sound", image.to_bytes());
    let [mut read, mut expected] = [vec![0; 2 << 20], vec![1; 2 << 20]];
    OpenOptions::new().open_file(sound).unwrap().read_at(&mut expected, 0).unwrap();
    let file = OpenOptions::new().open_file(memory("l", bytes.clone())).unwrap();
    file.read_at(&mut read, 0).unwrap();
    assert!(read == expected);
    let writing = OpenOptions::new().writable(true).lock(Lock::None);
    let error = writing.open_file(memory("l", bytes)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

/// Each field of each structure at each extreme, one after the other; in the short run every so manyth.
#[test]
fn each_field_at_its_extremes() {
    let _alone = alone();
    let mut cases = Vec::new();
    let corpus = corpus();
    for (c, chain) in corpus.iter().enumerate() {
        for (layer, structures) in chain.structures.iter().enumerate() {
            for (name, range) in structures {
                // Descriptors of a log entry are alike: the first few of them do.
                let end = range.end.min(range.start + 640);
                for width in [2, 4, 8_u64] {
                    for at in (range.start..end.saturating_sub(width - 1)).step_by(width as usize) {
                        let fits = |value: &&u64| width == 8 || **value < 1 << (8 * width);
                        let values = EXTREMES.iter().filter(fits);
                        cases.extend(values.map(|value| (c, layer, name, at, width, *value)));
                    }
                }
            }
        }
    }
    let wanted = times(1500) as usize;
    // A prime, so that no structure is left out by its shape.
    let step = match cases.len() / wanted {
        0 | 1 => 1,
        step => (step..).find(|n| (2..*n).all(|d| !n.is_multiple_of(d))).expect("a prime"),
    };
    for (c, layer, name, at, width, value) in cases.into_iter().step_by(step) {
        let mut files = corpus[c].files.clone();
        set(&mut files[layer], at, width, value);
        reseal(&mut files[layer]);
        let what = || format!("chain {c}, layer {layer}, {name}: {value:#x} at {at:#x} of {width}");
        watched(what, || exercise(files));
    }
}

/// Zero descriptors are short and each is a piece to remember: a log as full of them as is allowed, and
/// one with more.
#[test]
fn logs_full_of_descriptors() {
    let _alone = alone();
    for log_mib in [8, 64] {
        let mut image = Image::dynamic(MIB);
        image.log_length = log_mib << 20;
        image.metadata_offset = (1 + u64::from(log_mib)) * MIB;
        image.bat_offset = image.metadata_offset + MIB;
        image.set_log_guid(GUID);
        let spare = image.layout().needed_length;
        let count = u64::from(image.log_length) / 32 - 2;
        // No two of them touch.
        let zeros = (0..count).map(|n| Descriptor::zero(spare + n * 8192, 4096)).collect();
        image.log = vec![LogEntry::new(7, zeros)];
        image.file_length = Some(spare);
        let bytes = image.to_bytes();
        let what = || format!("{log_mib} MiB of zero descriptors");
        let case = || {
            let options = OpenOptions::new().budget(Budget::new(TABLES));
            match options.open_file(memory("l0", bytes)) {
                Ok(file) => {
                    assert_eq!(file.info().file_len, spare + (count - 1) * 8192 + 4096);
                    read_all(&file);
                    assert_eq!(log_mib, 8);
                }
                Err(error) => {
                    assert_eq!(
                        (error.kind(), error.code()),
                        (ErrorKind::Limit, "limit.log-changes")
                    );
                    assert!(error.offset().is_some() && error.section().is_some(), "{error}");
                    assert!(error.to_string().contains(&count.to_string()), "{error}");
                    assert_eq!(log_mib, 64);
                }
            }
        };
        watched(what, case);
    }
}
