//! The chain's index, compared with a reader that asks every layer for every sector.

use std::io::IoSliceMut;
use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx::{Budget, DiffChain, Disk, OpenOptions, Zeroing};
use avhdx_testkit::build::{Block, Data, Image, state, write_chain};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::rng::Rng;

use crate::common::deep::{BUDGETS, deep_chain, somewhere};
use crate::common::disk::{flat, reads_as};
use crate::common::oracle::ids;
use crate::common::{Counting, MIB, file, in_memory, open_images, open_stack};

/// Random reads into one and into several buffers.
fn reads_here_and_there(disk: &dyn Disk, expected: &[u8], seed: u64, reads: usize) {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; 3 * MIB as usize];
    for _ in 0..reads {
        let (at, len) = somewhere(&mut rng, expected.len() as u64);
        let want = &expected[at as usize..at as usize + len];
        let bytes = &mut bytes[..len];
        bytes.fill(0xAA);
        if rng.chance(1, 2) {
            disk.read_at(bytes, at).unwrap();
        } else {
            let (first, rest) = bytes.split_at_mut(rng.below(len as u64 + 1) as usize);
            let (second, third) = rest.split_at_mut(rng.below(rest.len() as u64 + 1) as usize);
            let mut bufs = [first, &mut [], second, third].map(IoSliceMut::new);
            disk.read_vectored_at(&mut bufs, at).unwrap();
        }
        assert!(bytes == want, "{len} bytes at {at}");
    }
}

fn agree(images: &[Image], seed: u64) {
    let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
    let files = in_memory(images);
    let mut rng = Rng::new(seed);
    // The tip, the layer below it, and another one.
    let top = images.len() - 1;
    let mut tips = vec![top, top.saturating_sub(1), rng.below(images.len() as u64) as usize];
    tips.sort_unstable();
    tips.dedup();
    let expected: Vec<Vec<u8>> = tips.iter().map(|tip| naive.flat(*tip).unwrap()).collect();
    for budget in BUDGETS {
        let options = OpenOptions::new().budget(Budget::new(budget));
        let chain = open_stack(options, &files).unwrap();
        let ids = ids(&chain);
        for (tip, expected) in tips.iter().zip(&expected) {
            let view = chain.view(ids[*tip]).unwrap();
            reads_here_and_there(&view, expected, rng.next_u64(), 30);
        }
        // Resolve everything else from two threads, then read all of it again.
        std::thread::scope(|scope| {
            for seed in [rng.next_u64(), rng.next_u64()] {
                let (chain, tips, expected, ids) = (&chain, &tips, &expected, &ids);
                scope.spawn(move || {
                    for (tip, expected) in tips.iter().zip(expected) {
                        let view = chain.view(ids[*tip]).unwrap();
                        reads_here_and_there(&view, expected, seed, 30);
                        assert!(flat(&view) == *expected, "layer {tip} with a budget of {budget}");
                        reads_here_and_there(&view, expected, seed, 30);
                    }
                });
            }
        });
    }
}

#[test]
fn chains_read_as_if_every_layer_were_asked_for_every_sector() {
    for (seed, layers) in [1, 2, 2, 3, 4, 5, 7, 9, 13, 21].into_iter().enumerate() {
        agree(&deep_chain(seed as u64, layers), seed as u64);
    }
}

#[test]
fn chains_of_64_layers_read_as_if_every_layer_were_asked_for_every_sector() {
    agree(&deep_chain(64, 64), 64);
    agree(&deep_chain(65, 48), 65);
}

/// Writes show at once in the chain and in its clones, and never in the layers below.
#[test]
fn what_is_written_shows_at_once() {
    for (seed, budget) in [(1, 0), (2, 2 << 10), (3, 64 << 10), (4, 64 << 20), (5, 64 << 20)] {
        let mut images = deep_chain(seed, 6);
        // The tip starts almost empty, so that the layers below show.
        let mut tip = images[5].new_child();
        tip.block_size = 1 << (20 + seed % 2);
        images.push(tip);
        let folder = tempfile::tempdir().unwrap();
        let paths = write_chain(folder.path(), &images);
        let naive = Chain::open(&paths).unwrap();
        let below = naive.flat(5).unwrap();
        let mut model = naive.flat(6).unwrap();
        let size = model.len() as u64;

        let options = OpenOptions::new().budget(Budget::new(budget)).writable(true);
        let chain = options.open(&paths[6]).unwrap();
        let clone = chain.clone();
        let parent = chain.view(chain.layers()[1].id).unwrap();
        let mut rng = Rng::new(seed);
        for round in 0..60 {
            // Read first, so that old answers are remembered.
            let (at, len) = somewhere(&mut rng, size);
            let range = at..at + len as u64;
            let place = at as usize..at as usize + len;
            let mut bytes = vec![0xAA; len];
            for disk in [&chain, &clone] {
                disk.read_at(&mut bytes, at).unwrap();
                assert!(bytes == model[place.clone()], "before round {round} of seed {seed}");
            }
            match rng.below(6) {
                0 => {
                    chain.write_zeroes(range.clone(), Zeroing::KeepSpace).unwrap();
                    bytes.fill(0);
                }
                1 => {
                    clone.discard(range.clone()).unwrap();
                    bytes.fill(0);
                }
                _ => {
                    rng.fill(&mut bytes);
                    clone.write_at(&bytes, at).unwrap();
                }
            }
            model[place.clone()].copy_from_slice(&bytes);
            let mut written = vec![0xAA; len];
            for disk in [&chain, &clone] {
                disk.read_at(&mut written, at).unwrap();
                assert!(written == bytes, "after round {round} of seed {seed}");
            }
            if at + len as u64 <= below.len() as u64 {
                parent.read_at(&mut written, at).unwrap();
                assert!(written == below[place], "below, round {round} of seed {seed}");
            }
            reads_here_and_there(&chain, &model, rng.next_u64(), 3);
            if rng.chance(1, 10) {
                chain.flush().unwrap();
            }
        }
        reads_as(&clone, &model);
        reads_as(&parent, &below);
        chain.close().unwrap();
        assert!(Chain::open(&paths).unwrap().flat(6).unwrap() == model);
        assert!(flat(&DiffChain::open(&paths[5]).unwrap()) == below);
    }
}

/// A base and 63 children over one block, each owning some of its pages: more tables than fit in a small
/// budget.
fn striped(layers: usize) -> Vec<Image> {
    let mut images = vec![Image::dynamic(2 * MIB)];
    images[0].block_size = 2 << 20;
    images[0].put(0, Block::full(Data::Pattern(0)));
    for n in 1..layers {
        let mut child = images[n - 1].new_child();
        child
            .put(0, Block::partial_runs(Data::Pattern(n as u64), &[(n * 8, 8), (n * 8 + 2048, 8)]));
        images.push(child);
    }
    images
}

fn counted(images: &[Image]) -> (Vec<Arc<Counting>>, Vec<Arc<dyn Storage>>) {
    let counting: Vec<_> = in_memory(images).into_iter().map(Counting::new).collect();
    let files = counting.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
    (counting, files)
}

fn calls(counting: &[Arc<Counting>]) -> u64 {
    counting.iter().map(|file| file.counts().0).sum()
}

/// The first read asks only the layers it needs and reads no table twice; from then on it is one read
/// however deep the chain is, even if the tables of 64 layers do not fit in the budget.
#[test]
fn a_read_through_64_layers_is_one_read() {
    let images = striped(64);
    let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
    let expected = naive.flat(63).unwrap();
    for n in [63, 40, 0] {
        // A new chain each time, so that nothing is known. Layer `n` owns page `n`.
        let (counting, files) = counted(&images);
        let options = OpenOptions::new().budget(Budget::new(96 << 10));
        let chain = open_stack(options, &files).unwrap();
        let page = n as u64 * 4096;
        let before = calls(&counting);
        let mut bytes = vec![0; 4096];
        chain.read_at(&mut bytes, page).unwrap();
        assert!(bytes == expected[page as usize..][..4096]);
        // For each layer asked: the pages with the block's entry, the bitmap's entry and the bits; the base has no
        // bitmap.
        let asked = 64 - n as u64;
        let tables = 3 * asked - if n == 0 { 2 } else { 0 };
        assert_eq!(calls(&counting) - before, tables + 1, "down to layer {n}");

        // Another page of an upper layer, and the same again: no table is read.
        let before = calls(&counting);
        for again in [page, 63 * 4096, page] {
            chain.read_at(&mut bytes, again).unwrap();
            assert!(bytes == expected[again as usize..][..4096]);
        }
        assert_eq!(calls(&counting) - before, 3);

        // All pages in random order: once the whole chain has been asked, each is one read.
        let mut order: Vec<u64> = (0..256).collect();
        Rng::new(1).shuffle(&mut order);
        let pass = || {
            for page in &order {
                let mut bytes = vec![0; 4096];
                chain.read_at(&mut bytes, page * 4096).unwrap();
                assert!(bytes == expected[*page as usize * 4096..][..4096], "page {page}");
            }
        };
        pass();
        let before = calls(&counting);
        pass();
        assert_eq!(calls(&counting) - before, 256);
        assert!(flat(&chain) == expected);
    }
}

/// Each chunk of 4 GiB has its own sector bitmap. Of a chunk whose bitmap was just looked up, a further block costs the
/// pages with its entry and its bits, even if no page is cached.
#[test]
fn each_chunk_has_its_own_bitmap_and_blocks_of_one_share_its_place() {
    const CHUNK: u64 = 4 << 30;
    let block = |chunk: u64, block: u64| chunk * CHUNK / (2 * MIB) + block;
    let mut base = Image::dynamic(3 * CHUNK);
    base.block_size = 2 << 20;
    let mut child = base.new_child();
    // Other sectors in each block, so that no bitmap serves for another.
    for (chunk, n) in (0..3).flat_map(|chunk| [0, 1, 9].map(|n| (chunk, n))) {
        base.put(block(chunk, n), Block::full(Data::Pattern(chunk)));
        let first = (chunk * 64 + n * 8) as usize;
        child.put(block(chunk, n), Block::partial_runs(Data::Pattern(100), &[(first, 8)]));
    }
    let images = [base, child];
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), &images);
    let naive = Chain::open(&paths).unwrap();
    let counting: Vec<_> = paths.iter().map(|path| Counting::new(file(path))).collect();
    let files: Vec<_> = counting.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
    let chain = open_stack(OpenOptions::new().budget(Budget::new(0)), &files).unwrap();
    let mut bytes = vec![0; 64 * 4096];
    for (chunk, n) in [(0, 0), (0, 1), (1, 0), (0, 9), (2, 9), (1, 9), (1, 0), (2, 0)] {
        let at = block(chunk, n) * 2 * MIB;
        chain.read_at(&mut bytes, at).unwrap();
        assert!(bytes == naive.read(1, at, bytes.len()).unwrap(), "block {n} of chunk {chunk}");
    }
    // A sector that the child holds: its entry, its bits and itself.
    for (n, calls_expected) in [(0, 3), (1, 3), (9, 3)] {
        let before = calls(&counting);
        let sector = 2 * 64 + n * 8;
        chain.read_at(&mut bytes[..512], block(2, n) * 2 * MIB + sector * 512).unwrap();
        assert_eq!(calls(&counting) - before, calls_expected, "block {n}");
    }
}

/// Bytes that are contiguous in a file are read at once, across blocks and spans and into several buffers;
/// zeros are not read.
#[test]
fn one_read_for_what_lies_in_one_piece() {
    let mut base = Image::dynamic(12 * MIB);
    for b in (0..12).filter(|b| *b != 7) {
        base.put(b, Block::full(Data::Pattern(b)));
    }
    let mut middle = base.new_child();
    middle.block_size = 4 << 20;
    let mut tip = middle.new_child();
    tip.block_size = 1 << 20;
    tip.put(3, Block::partial_runs(Data::Pattern(99), &[(100, 5)]));
    tip.put(9, Block::bare(state::ZERO));
    let images = [base, middle, tip];
    let expected = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap().flat(2).unwrap();
    let (counting, files) = counted(&images);
    let options = OpenOptions::new().budget(Budget::new(1 << 20));
    let chain = open_stack(options, &files).unwrap();
    assert!(flat(&chain) == expected);
    // To the run in block 3, that run, up to the hole in 7, 8, and from 10 on.
    for (range, reads) in
        [(0..12, 5), (0..3, 1), (1..2, 1), (3..4, 3), (4..7, 1), (7..8, 0), (6..9, 2), (9..10, 0)]
    {
        let (at, len) = (range.start * MIB, ((range.end - range.start) * MIB) as usize);
        let before = calls(&counting);
        let mut bytes = vec![0xAA; len];
        chain.read_at(&mut bytes, at).unwrap();
        assert_eq!(calls(&counting) - before, reads, "{range:?}");
        assert!(bytes == expected[at as usize..][..len], "{range:?}");
    }
}

/// Damage is reported by reads of that place, as without an index, and by no others.
#[test]
fn damage_shows_where_it_is_and_nowhere_else() {
    let mut base = Image::dynamic(8 * MIB);
    (0..8).for_each(|b| _ = base.put(b, Block::full(Data::Pattern(b))));
    // The last block of the file is cut in half.
    let end = base.to_bytes().len() as u64;
    base.file_length = Some(end - MIB / 2 - 100);
    let mut middle = base.new_child();
    middle.put(2, Block::bare(4));
    middle.put(4, Block::partial_runs(Data::Pattern(9), &[(0, 3), (2000, 4)]).at(MIB));
    let mut tip = middle.new_child();
    for b in [2, 4, 7] {
        tip.put(b, Block::partial_runs(Data::Pattern(20 + b), &[(0, 8), (1024, 8)]));
    }
    let images = [base, middle, tip];
    let chain =
        |budget| open_images(OpenOptions::new().budget(Budget::new(budget)), &images).unwrap();
    let (plain, indexed) = (chain(0), chain(1 << 20));
    let mut failed = 0;
    for pass in 0..2 {
        for at in (0..8 * MIB).step_by(1024) {
            for len in [512, 4096.min(8 * MIB - at) as usize] {
                let read = |chain: &DiffChain| {
                    let mut bytes = vec![0xAA; len];
                    chain.read_at(&mut bytes, at).map(|()| bytes)
                };
                match (read(&plain), read(&indexed)) {
                    (Ok(a), Ok(b)) => assert!(a == b, "{len} bytes at {at} in pass {pass}"),
                    (Err(a), Err(b)) => {
                        assert_eq!(a.to_string(), b.to_string(), "{len} bytes at {at}");
                        failed += 1;
                    }
                    (a, b) => panic!("{len} bytes at {at}: {:?} and {:?}", a.err(), b.err()),
                }
            }
        }
    }
    assert!(failed > 2000, "{failed}");
}
