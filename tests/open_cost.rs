//! Opening costs nothing that grows with the disk, counted in reads, bytes and memory rather than time.
#![allow(clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use avhdx::ops::Diff;
use avhdx::storage::{Access, Host, LocalHost, Storage};
use avhdx::{Budget, DiffChain, Disk, OpenOptions, Source};
use avhdx_testkit::build::{Block, Data, Image, state, write_chain};
use peak_alloc::PeakAlloc;

use common::disk::{extents_name_the_bytes, tiles};
use common::{Counting, GIB, MIB, file, open_stack};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const TIB: u64 = 1 << 40;

/// One test at a time: the allocator counts per process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cost of opening a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    reads: u64,
    bytes: u64,
    memory: usize,
}

/// Opens these files, base first, and passes the chain to `then` with the cost.
fn opened(paths: &[PathBuf], then: impl FnOnce(&DiffChain)) -> Cost {
    let counting: Vec<Arc<Counting>> = paths.iter().map(|path| Counting::new(file(path))).collect();
    let files: Vec<Arc<dyn Storage>> =
        counting.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let chain = open_stack(OpenOptions::new().budget(Budget::new(64 << 20)), &files).unwrap();
    let memory = MEMORY.peak_usage().saturating_sub(before);
    let counts = counting.iter().map(|file| file.counts());
    let (reads, bytes) = counts.fold((0, 0), |(r, b), (reads, bytes)| (r + reads, b + bytes));
    then(&chain);
    Cost { reads, bytes, memory }
}

fn written(folder: &Path, images: &[Image]) -> Vec<PathBuf> {
    write_chain(folder, images)
}

#[test]
fn an_empty_disk_of_64_tib_opens_as_one_of_64_mib() {
    let _alone = alone();
    let cost = |size| {
        let folder = tempfile::tempdir().unwrap();
        let paths = written(folder.path(), &[Image::dynamic(size)]);
        opened(&paths, |chain| assert_eq!(chain.geometry().size, size))
    };
    cost(MIB); // warms up one-time allocations
    let (small, large) = (cost(64 * MIB), cost(64 * TIB));
    assert_eq!((small.reads, small.bytes), (large.reads, large.bytes));
    assert!(large.bytes < MIB, "{large:?}");
    assert!(large.memory < 16 << 20, "{large:?}");
    assert!(large.memory < small.memory + 4096, "{small:?} and {large:?}");
}

#[test]
fn the_blocks_of_a_disk_of_64_tib_are_counted_in_large_reads() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut image = Image::dynamic(64 * TIB);
    image.block_size = MIB as u32;
    let last = 64 * TIB / MIB - 1;
    for block in [0, 70_000, last] {
        image.put(block, Block::full(Data::Pattern(block)));
    }
    image.put(70_001, Block::bare(state::ZERO));
    let paths = written(folder.path(), &[image]);
    let counting = Counting::new(file(&paths[0]));
    let storage = Arc::clone(&counting) as Arc<dyn Storage>;
    let image = OpenOptions::new().open_file(storage).unwrap();
    let (before, _) = counting.counts();
    MEMORY.reset_peak_usage();
    let held = MEMORY.current_usage();
    let counts = image.count_blocks().unwrap();
    let (reads, _) = counting.counts();
    assert!(MEMORY.peak_usage() - held < 4 << 20);
    // Of 1 MiB each, as the storage does not tell where it has no data.
    assert!(reads - before <= 512 + 4, "{} reads", reads - before);
    assert_eq!((counts.blocks, counts.fully_present, counts.zero), (last + 1, 3, 1));
    assert_eq!(counts.not_present, last + 1 - 4);
}

#[test]
fn a_chain_16_deep_opens_as_small_ones_do() {
    let _alone = alone();
    let cost = |size| {
        let folder = tempfile::tempdir().unwrap();
        let mut images = vec![Image::dynamic(size)];
        for n in 1..16 {
            let mut child = images[n - 1].new_child();
            child.put(0, Block::partial_runs(Data::Pattern(n as u64), &[(n, 1)]));
            images.push(child);
        }
        let paths = written(folder.path(), &images);
        opened(&paths, |chain| assert_eq!(chain.layers().len(), 16))
    };
    let (small, large) = (cost(64 * MIB), cost(64 * TIB));
    assert_eq!((small.reads, small.bytes), (large.reads, large.bytes));
    assert!(large.memory < 16 << 20, "{large:?}");
    // Sixteen times one image, and the second read of the parents' headers.
    assert!(large.bytes < 16 * MIB, "{large:?}");
}

/// Random reads of a huge disk load only the table pages for their offsets, and of
/// a large disk no more than of a small one.
#[test]
fn reading_loads_what_it_needs_of_the_tables() {
    let _alone = alone();
    let read_some = |size: u64| {
        let folder = tempfile::tempdir().unwrap();
        let mut base = Image::dynamic(size);
        let last = base.block_count() - 1;
        base.put(0, Block::full(Data::Pattern(1))).put(last, Block::full(Data::Pattern(2)));
        let mut tip = base.new_child();
        tip.put(last, Block::partial_runs(Data::Pattern(3), &[(2047, 1)]));
        let paths = written(folder.path(), &[base, tip]);
        let counting: Vec<Arc<Counting>> =
            paths.iter().map(|path| Counting::new(file(path))).collect();
        let files: Vec<Arc<dyn Storage>> =
            counting.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
        let chain = open_stack(OpenOptions::new().budget(Budget::new(1 << 20)), &files).unwrap();
        let total = || counting.iter().map(|file| file.counts().1).sum::<u64>();
        let before = total();
        let mut sector = [0; 512];
        for at in [0, 512, size - 512, size - 1024] {
            chain.read_at(&mut sector, at).unwrap();
            assert_ne!(sector, [0; 512], "at {at} of {size}");
        }
        let taken = total() - before;
        // Repeated, only the data itself is read.
        let before = total();
        for at in [0, 512, size - 512, size - 1024] {
            chain.read_at(&mut sector, at).unwrap();
        }
        assert_eq!(total() - before, 4 * 512);
        taken
    };
    // Two pages of each layer's table; of the tip also those with the bitmap's entry and bits.
    let most = 4 * 512 + 6 * 4096;
    assert!(read_some(2 * GIB) <= most);
    assert!(read_some(64 * TIB) <= most, "{} bytes", read_some(64 * TIB));
}

/// Before the first change the table is read once: an empty one in a few reads, whatever the
/// disk's size, and a full one with little memory.
#[test]
fn the_first_change_reads_the_table_once_outside_the_budget() {
    let _alone = alone();
    let cost = |image: &Image, at: u64| {
        let folder = tempfile::tempdir().unwrap();
        let paths = written(folder.path(), std::slice::from_ref(image));
        let file = LocalHost.open(&paths[0], Access::ReadWrite).unwrap();
        let counting = Counting::new(file);
        let storage = Arc::clone(&counting) as Arc<dyn Storage>;
        let options = OpenOptions::new().writable(true).budget(Budget::new(64 << 10));
        let disk = options.open_file(storage).unwrap();
        let before = (counting.counts(), MEMORY.current_usage());
        MEMORY.reset_peak_usage();
        disk.write_at(&[1; 512], at).unwrap();
        let first = counting.counts();
        let memory = MEMORY.peak_usage().saturating_sub(before.1);
        // The next session of the same image knows its space.
        disk.close().unwrap();
        let closed = counting.counts();
        disk.write_at(&[1; 512], at + MIB).unwrap();
        assert!(counting.counts().1 - closed.1 < MIB, "gone over again");
        Cost { reads: first.0 - before.0.0, bytes: first.1 - before.0.1, memory }
    };
    let empty = cost(&Image::dynamic(64 * TIB), 10 * TIB);
    // Holes of the table are skipped; what is left is the headers and the page that changes.
    assert!(empty.reads < 8 && empty.bytes < 64 << 10, "{empty:?}");
    assert!(empty.memory < MIB as usize, "{empty:?}");
    // Blocks far apart: each has its own page of the table.
    let mut sparse = Image::dynamic(64 * TIB);
    for block in 0..8 {
        sparse.put(block << 23, Block::full(Data::Zeros));
    }
    let sparse = cost(&sparse, 10 * TIB);
    assert!(sparse.reads < 16 && sparse.bytes < 9 * MIB, "{sparse:?}");
    // 1 TiB in blocks of 1 MiB: 8 MiB of table, a bit for each MiB of the file, and a read buffer.
    let mut full = Image::dynamic(TIB);
    let first = full.layout().needed_length;
    for block in 0..TIB / MIB {
        let index = full.bat_index(block);
        full.bat_override.insert(index, first + block * MIB + 6);
    }
    full.file_length = Some(first + TIB);
    let full = cost(&full, TIB / 2);
    assert!((8 * MIB..9 * MIB).contains(&full.bytes) && full.reads < 16, "{full:?}");
    assert!(full.memory < 2 * MIB as usize, "{full:?}");
}

/// A walk over 64 TiB reads the table once and keeps no more of it than the budget allows.
#[test]
fn a_walk_over_a_huge_disk_keeps_within_its_budget() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut image = Image::dynamic(4 * TIB);
    for b in (0..4 << 20).step_by(1 << 20) {
        image.put(b, Block::full(Data::Pattern(b)));
    }
    let paths = written(folder.path(), &[image]);
    let counting = Counting::new(file(&paths[0]));
    let budget = Budget::new(256 << 10);
    let storage = Arc::clone(&counting) as Arc<dyn Storage>;
    let chain = open_stack(OpenOptions::new().budget(budget), &[storage]).unwrap();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let found = tiles(&chain, 0..4 * TIB);
    assert!(MEMORY.peak_usage() - before < 1 << 20);
    let data = found.iter().filter(|e| matches!(e.source, Source::Data { .. })).count();
    assert_eq!((data, found.len()), (4, 8));
    // 4 Mi entries are 32 MiB of table; each page is read once or, after reading ahead, twice.
    let (_, bytes) = counting.counts();
    assert!(bytes < 80 * MIB, "{bytes} bytes");
    extents_name_the_bytes(&chain, TIB - MIB..TIB + 3 * MIB);
    assert_eq!(chain.tip().count_blocks().unwrap().fully_present, 4);
}

/// Two checkpoints of 1 TiB with 10,000 scattered sectors between them, over a base that holds everything.
#[test]
fn a_diff_of_1_tib_reads_each_table_once_and_keeps_within_its_budget() {
    const BLOCK: u64 = 2 * MIB;
    const WRITTEN: u64 = 10_000;
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut base = Image::dynamic(TIB);
    base.block_size = BLOCK as u32;
    let mut older = base.new_child();
    for block in (0..TIB / BLOCK).step_by(3) {
        // Where the base has its data does not matter here, nor whether it is there.
        let index = base.bat_index(block);
        base.bat_override.insert(index, (4096 + block) << 21 | 6);
    }
    let mut newer = older.new_child();
    let sectors = BLOCK / 512;
    let step = TIB / BLOCK / WRITTEN;
    for n in 0..WRITTEN {
        let sector = (n * 977 % sectors) as usize;
        newer.put(n * step, Block::partial_runs(Data::Zeros, &[(sector, 1)]));
    }
    older.put(5, Block::full(Data::Zeros));
    let paths = written(folder.path(), &[base, older, newer]);
    opened(&paths, |chain| {
        let view = chain.view(chain.layers()[1].id).unwrap();
        let loads = chain.counters().table_loads;
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let started = Instant::now();
        let mut found = 0;
        for range in Diff::new().run(&view, chain).unwrap() {
            let start = found * step * BLOCK + found * 977 % sectors * 512;
            assert_eq!(range.unwrap(), start..start + 512);
            found += 1;
        }
        println!("{WRITTEN} sectors of 1 TiB in {:.2} s", started.elapsed().as_secs_f32());
        assert_eq!(found, WRITTEN);
        let memory = MEMORY.peak_usage().saturating_sub(before);
        assert!(memory < 64 << 20, "{memory} bytes");
        // The table of the newer layer, and a page of a bitmap for each sector.
        let pages = TIB / BLOCK * 8 / 4096 + WRITTEN;
        let loads = chain.counters().table_loads - loads;
        assert!(loads < pages + 1000, "{loads} pages for {pages}");
    });
}
