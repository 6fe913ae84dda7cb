//! The cost of single calls without files: images in memory, through the public API.
//!
//! ```text
//! cargo bench --bench pieces [-- NAME]
//! ```

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use avhdx::storage::{Access, MemStorage, Storage};
use avhdx::{Candidate, DiffChain, Disk, FoundBy, OpenOptions, ParentLink, ParentSource, Planned};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::rng::Rng;
use divan::{Bencher, Divan};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DEPTHS: [usize; 3] = [1, 4, 64];
const SIZE: u64 = 4 * MIB;
/// How many consecutive bytes one layer holds.
const RUN: u64 = 64 * KIB;

fn main() {
    let mut divan = Divan::from_args();
    if std::env::var_os("AVHDX_BENCH_QUICK").is_some() {
        divan = divan.sample_count(5).sample_size(10);
    }
    divan.main();
}

#[divan::bench(args = DEPTHS)]
fn read_512(bencher: Bencher<'_, '_>, depth: usize) {
    read::<512>(bencher, depth);
}

#[divan::bench(args = DEPTHS)]
fn read_4k(bencher: Bencher<'_, '_>, depth: usize) {
    read::<4096>(bencher, depth);
}

#[divan::bench(args = DEPTHS)]
fn next_extent_of_4k(bencher: Bencher<'_, '_>, depth: usize) {
    let chain = open(&files(depth), false);
    let places = Places::warm::<4096>(&chain);
    bencher.bench_local(|| {
        let at = places.next();
        chain.next_extent(black_box(at..at + 4096)).unwrap()
    });
}

/// The index is warm: no table is loaded.
#[divan::bench(args = DEPTHS)]
fn plan_read_of_4k(bencher: Bencher<'_, '_>, depth: usize) {
    plan(bencher, depth, 4096);
}

#[divan::bench(args = DEPTHS)]
fn plan_read_of_1m(bencher: Bencher<'_, '_>, depth: usize) {
    plan(bencher, depth, MIB);
}

#[divan::bench(args = DEPTHS)]
fn open_chain(bencher: Bencher<'_, '_>, depth: usize) {
    let files = files(depth);
    bencher.bench_local(|| open(black_box(&files), false));
}

/// Into existing blocks: only payload is written.
#[divan::bench(args = DEPTHS)]
fn write_4k_in_place(bencher: Bencher<'_, '_>, depth: usize) {
    let chain = open(&files(depth), true);
    fill(&chain);
    let places = Places::warm::<4096>(&chain);
    let buf = [7; 4096];
    bencher.bench_local(|| chain.write_at(black_box(&buf), places.next()).unwrap());
}

/// The same, with a flush after each write.
#[divan::bench(args = DEPTHS)]
fn write_4k_in_place_and_flush(bencher: Bencher<'_, '_>, depth: usize) {
    let chain = open(&files(depth), true);
    fill(&chain);
    let places = Places::warm::<4096>(&chain);
    let buf = [7; 4096];
    bencher.bench_local(|| {
        chain.write_at(black_box(&buf), places.next()).unwrap();
        chain.flush().unwrap();
    });
}

/// A page that the tip does not hold, in a partially present block: a bit of the bitmap changes and
/// is logged.
#[divan::bench(sample_count = 50, sample_size = 100)]
fn write_4k_into_child_and_flush(bencher: Bencher<'_, '_>) {
    let mut base = Image::dynamic(64 * MIB);
    base.block_size = (2 * MIB) as u32;
    let child = base.new_child();
    let chain = open(&[&base, &child].map(in_memory), true);
    let pages = AtomicUsize::new(0);
    // Twice as many pages as samples, so that no block becomes full.
    let next = || pages.fetch_add(1, Ordering::Relaxed) as u64 * 8 * KIB % (64 * MIB);
    let buf = [7; 4096];
    bencher.bench_local(|| {
        chain.write_at(black_box(&buf), next()).unwrap();
        chain.flush().unwrap();
    });
}

fn read<const LEN: usize>(bencher: Bencher<'_, '_>, depth: usize) {
    let chain = open(&files(depth), false);
    let places = Places::warm::<LEN>(&chain);
    let mut buf = [0; LEN];
    bencher.bench_local(|| chain.read_at(black_box(&mut buf), places.next()).unwrap());
}

fn plan(bencher: Bencher<'_, '_>, depth: usize, len: u64) {
    let chain = open(&files(depth), false);
    let places = Places::warm::<4096>(&chain);
    bencher.bench_local(|| {
        let at = places.next() / len * len;
        match chain.plan_read(black_box(at..at + len)).unwrap() {
            Planned::Ready(plan) => plan,
            Planned::Load(_) => panic!("a table is not at hand"),
        }
    });
}

/// The offsets to visit: the whole disk, shuffled, round and round.
struct Places {
    offsets: Vec<u64>,
    next: AtomicUsize,
}

impl Places {
    /// Reads all offsets once, so that the chain knows the answers.
    fn warm<const LEN: usize>(chain: &DiffChain) -> Self {
        let mut offsets: Vec<u64> = (0..SIZE).step_by(LEN).collect();
        Rng::new(LEN as u64).shuffle(&mut offsets);
        let mut buf = [0; LEN];
        offsets.iter().for_each(|at| chain.read_at(&mut buf, *at).unwrap());
        Self { offsets, next: AtomicUsize::new(0) }
    }

    fn next(&self) -> u64 {
        self.offsets[self.next.fetch_add(1, Ordering::Relaxed) % self.offsets.len()]
    }
}

fn fill(chain: &DiffChain) {
    chain.write_at(&vec![1; SIZE as usize], 0).unwrap();
    chain.flush().unwrap();
}

/// The images of a chain whose layers hold alternating runs, base first.
fn files(depth: usize) -> Vec<Arc<dyn Storage>> {
    let mut images = vec![Image::dynamic(SIZE)];
    while images.len() < depth {
        images.push(images[images.len() - 1].new_child());
    }
    let per_block = MIB / RUN;
    let sectors = (RUN / 512) as usize;
    for (layer, image) in images.iter_mut().enumerate() {
        for block in 0..SIZE / MIB {
            let mine = (0..per_block)
                .filter(|run| ((block * per_block + run) * 37) as usize % depth == layer)
                .map(|run| (run as usize * sectors, sectors));
            let mine: Vec<_> = mine.collect();
            match layer {
                0 => _ = image.put(block, Block::full(Data::Pattern(1))),
                _ if mine.is_empty() => {}
                _ => _ = image.put(block, Block::partial_runs(Data::Pattern(1), &mine)),
            }
        }
    }
    images.iter().map(in_memory).collect()
}

fn in_memory(image: &Image) -> Arc<dyn Storage> {
    Arc::new(MemStorage::new(image.to_bytes()))
}

fn open(files: &[Arc<dyn Storage>], writable: bool) -> DiffChain {
    let (tip, parents) = files.split_last().unwrap();
    // The parent is most likely the image below, which a folder would find by name: it is offered first.
    let parents = Shelf(parents.to_vec(), AtomicUsize::new(parents.len()));
    let options = OpenOptions::new().writable(writable).parents(parents);
    options.open_chain(options.open_file(Arc::clone(tip)).unwrap()).unwrap()
}

/// Parents without paths, each offered once, the highest first.
#[derive(Debug)]
struct Shelf(Vec<Arc<dyn Storage>>, AtomicUsize);

impl ParentSource for Shelf {
    fn candidates<'a>(
        &'a self,
        _: &'a ParentLink,
        _: Access,
    ) -> Box<dyn Iterator<Item = Candidate> + 'a> {
        let below = self.1.fetch_sub(1, Ordering::Relaxed) - 1;
        let offer = |file: &Arc<dyn Storage>| {
            Candidate::new(file.name(), FoundBy::Other, Ok(Arc::clone(file)))
        };
        Box::new(self.0.get(below).map(offer).into_iter())
    }
}
