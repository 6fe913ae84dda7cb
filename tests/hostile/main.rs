//! Deliberately broken images: no panics, no hangs, bounded memory, and errors that say where and why.
//!
//! Images that open are read by every operation, and written to if possible. `AVHDX_LONG=1` runs every case, and
//! a hundred times as many random ones; `AVHDX_SEED` changes the random ones.

#[path = "../common/mod.rs"]
mod common;
mod corpus;
mod reading;
mod reshaping;
mod watch;
mod writing;

use std::sync::Arc;

use avhdx::{Budget, Disk, ErrorKind, Lock, OpenOptions};
use avhdx_testkit::build::{Block, Data, Descriptor, Image, LogEntry};
use avhdx_testkit::fields::{bat_entries, fields};
use avhdx_testkit::mutate::{put_u64, reseal};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use common::{MIB, memory};
use corpus::{Chain, GUID, Mutation, any_mutation, corpus, set};
use reading::{exercise, read_all};
use reshaping::reshape;
use watch::{alone, watched};
use writing::change;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that the tests may take besides the images, which are about 20 MiB: the limit is 64 MiB in total.
const MOST_MEMORY: usize = 32 << 20;
const TABLES: usize = 4 << 20;

fn times(short: u32) -> u32 {
    let long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    short * if long { 100 } else { 1 }
}

/// Reads the chain and its files alone, then writes to the chain and to the broken image.
fn both(files: Vec<Vec<u8>>, broken: usize, seed: u64) {
    let files: Vec<_> = files.into_iter().map(Arc::new).collect();
    exercise(&files);
    change(&files, seed);
    if broken + 1 < files.len() {
        change(&files[..=broken], seed);
    }
}

/// The seed of the random cases.
fn seed() -> u64 {
    std::env::var("AVHDX_SEED").map_or(0, |seed| seed.parse().expect("a number"))
}

#[test]
fn this_binary_checks_overflows() {
    // Backtraces take memory, and more of it with more debug information.
    let _alone = alone();
    let most = std::hint::black_box(u64::MAX);
    let added = std::panic::catch_unwind(|| most + std::hint::black_box(1));
    assert!(added.is_err(), "hostile images are opened with overflow checks");
}

#[test]
fn sound_chains_are_read_and_written() {
    let _alone = alone();
    for chain in corpus() {
        let count = chain.files.len();
        let files = chain.files.clone();
        watched(|| "a sound chain".into(), || both(files, 1, 0));
        let files: Vec<_> = chain.files.into_iter().map(|bytes| memory("l", bytes)).collect();
        let opened = common::open_stack(OpenOptions::new(), &files).unwrap();
        assert_eq!(opened.layers().len(), count);
    }
}

#[test]
fn mutated_images() {
    let _alone = alone();
    mutated(150, both);
}

/// Compactions, resizes, rebases and changes of the type.
#[test]
fn mutated_images_are_reshaped() {
    let _alone = alone();
    let mut done = [0; 4];
    for (chain, seed) in corpus().into_iter().zip(1..) {
        let files: Vec<_> = chain.files.into_iter().map(Arc::new).collect();
        for count in 1..=files.len() {
            let mut of_chain = [false; 4];
            let what = || format!("{count} of sound chain {seed}");
            watched(what, || of_chain = reshape(&files[..count], seed));
            done.iter_mut().zip(of_chain).for_each(|(done, is)| *done += u32::from(is));
        }
    }
    assert!(done.iter().all(|count| *count > 0), "sound images are reshaped: {done:?}");
    mutated(50, |files, broken, seed| {
        let files: Vec<_> = files.into_iter().map(Arc::new).collect();
        reshape(&files, seed);
        if broken + 1 < files.len() {
            reshape(&files[..=broken], seed);
        }
    });
}

/// Runs a case on chains with some changes, the last of them in the layer that is told.
fn mutated(cases: u32, run: impl Fn(Vec<Vec<u8>>, usize, u64)) {
    let corpus = corpus();
    let strategy = (
        0..corpus.len(),
        proptest::collection::vec((0..3_usize, any_mutation()), 1..4),
        proptest::bool::weighted(0.8),
        any::<u64>(),
    );
    let config = Config { cases: times(cases), max_shrink_iters: 500, ..Config::default() };
    let config = Config { source_file: Some(file!()), ..config };
    let case = |(chain, mutations, sealed, seed): (usize, Vec<(usize, Mutation)>, bool, u64)| {
        let what = || format!("chain {chain}, sealed {sealed}, seed {seed}, {mutations:?}");
        let chain = &corpus[chain];
        let mut files = chain.files.clone();
        for (layer, mutation) in &mutations {
            let layer = layer % files.len();
            mutation.apply(&mut files[layer], &chain.structures[layer]);
        }
        if sealed {
            files.iter_mut().for_each(|file| reseal(file));
        }
        let last = mutations.last().map_or(0, |(layer, _)| layer % files.len());
        watched(what, || run(files, last, seed));
        Ok(())
    };
    TestRunner::new(config).run(&strategy, case).unwrap_or_else(|error| panic!("{error}"));
}

/// Readers may ignore an empty log; writers need one with room.
#[test]
fn a_log_without_length_does_not_harm_readers() {
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

/// Runs as many of the cases as there is time for.
fn some<T>(cases: Vec<T>, wanted: u32, mut run: impl FnMut(T)) {
    // A prime, so that no structure is skipped systematically.
    let step = match cases.len() / times(wanted) as usize {
        0 | 1 => 1,
        step => (step..).find(|n| (2..*n).all(|d| !n.is_multiple_of(d))).expect("a prime"),
    };
    let first = seed() as usize % step;
    cases.into_iter().skip(first).step_by(step).for_each(&mut run);
}

/// Each number in each structure at its extremes; in the short form a sample of them.
#[test]
fn each_field_at_its_extremes() {
    let _alone = alone();
    let corpus = corpus();
    let mut cases = Vec::new();
    for (c, chain) in corpus.iter().enumerate() {
        for (layer, image) in chain.images.iter().enumerate() {
            for field in fields(image) {
                let values = field.extremes(field.value(&chain.files[layer]));
                cases.extend(values.into_iter().map(|value| (c, layer, field.clone(), value)));
            }
        }
    }
    assert!(cases.len() > 4000, "{}", cases.len());
    some(cases, 150, |(c, layer, field, value)| {
        let mut files = corpus[c].files.clone();
        field.set(&mut files[layer], value);
        reseal(&mut files[layer]);
        let what = || format!("chain {c}, layer {layer}, {}: {value:#x}", field.name);
        watched(what, || both(files, layer, value));
    });
}

/// Each entry of a block allocation table in each state and at each offset likely to break a reader.
#[test]
fn each_block_at_every_place() {
    let _alone = alone();
    let corpus = corpus();
    let mut cases = Vec::new();
    for (c, chain) in corpus.iter().enumerate() {
        for (layer, image) in chain.images.iter().enumerate() {
            let layout = image.layout();
            let places: Vec<u64> =
                layout.payload.values().chain(layout.bitmaps.values()).copied().collect();
            let blocks = (0..image.block_count()).map(|block| layout.payload_entry(block).start);
            for at in blocks.chain([layout.bitmap_entry(0).start]) {
                let entries = bat_entries(&places, layout.file_length);
                cases.extend(entries.into_iter().map(|entry| (c, layer, at, entry)));
            }
        }
    }
    some(cases, 120, |(c, layer, at, entry)| {
        let mut files = corpus[c].files.clone();
        put_u64(&mut files[layer], at, entry);
        let what = || format!("chain {c}, layer {layer}, entry at {at:#x}: {entry:#x}");
        watched(what, || both(files, layer, entry));
    });
}

/// Logs of valid entries with extreme contents: numbers, file lengths and targets.
#[test]
fn logs_of_extreme_numbers() {
    const NUMBERS: [u64; 12] = [
        0,
        4096,
        MIB,
        64 << 20,
        1 << 40,
        80 << 40,
        1 << 60,
        (1 << 63) - MIB,
        1 << 63,
        !0 << 20,
        u64::MAX - 4095,
        u64::MAX,
    ];
    let _alone = alone();
    let corpus = corpus();
    let (Chain { images, files, .. }, layer) = (&corpus[2], 1);
    let mut logs: Vec<(String, Vec<LogEntry>)> = Vec::new();
    let log = &images[layer].log;
    for number in [1, 2, (1 << 32) - 2, 1 << 63, u64::MAX - 2, u64::MAX - 1, u64::MAX] {
        let mut entries = log.clone();
        for (entry, n) in entries.iter_mut().zip(0..) {
            entry.sequence_number = number.wrapping_add(n);
        }
        logs.push((format!("entries from {number} on"), entries));
    }
    for number in NUMBERS {
        let mut set = |what: &str, change: &dyn Fn(&mut LogEntry)| {
            let mut entries = log.clone();
            entries.iter_mut().for_each(change);
            logs.push((format!("{what} {number:#x}"), entries));
        };
        set("last", &|entry| entry.last_file_offset = Some(number));
        set("flushed", &|entry| entry.flushed_file_offset = Some(number));
        let end = images[layer].layout().needed_length;
        for at in NUMBERS.into_iter().chain([end, end - MIB, 3 * MIB]) {
            set(&format!("zeros at {at:#x} of"), &|entry| {
                entry.descriptors.push(Descriptor::zero(at, number));
                entry.last_file_offset = Some(end);
            });
        }
    }
    some(logs, 80, |(what, entries)| {
        let mut image = images[layer].clone();
        image.log = entries;
        let files = vec![files[0].clone(), image.to_bytes()];
        watched(|| what.clone(), || both(files, layer, 5));
    });
}

/// Zero descriptors are short, and each becomes a piece in memory: a log with as many as allowed, and
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
        // No two of them are adjacent.
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
