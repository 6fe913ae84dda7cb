//! Forecasts compared with what happens, to the byte: a host counts reads, writes and space.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Checkpoint, Export, Forecast, Measure, Merge, Reparent, Revert};
use avhdx::storage::Host;
use avhdx::{Budget, CreateOptions, DiffChain, Disk, DiskExt, Extent, OpenOptions, Source};
use avhdx_testkit::build::{Block, Data, Image, random_chain, state};
use avhdx_testkit::naive::{Layer, Says};
use avhdx_testkit::rng::Rng;

use super::MIB;
use super::common::deep::deep_chain;
use super::ledger::{Done, Ledger, Space};
use super::sim::{FOLDER, Files, SimHost};

/// How many random chains are tried.
const SEEDS: u64 = 15;

fn file(layer: usize) -> PathBuf {
    Path::new(FOLDER).join(format!("l{layer}.vhdx"))
}

/// A host with these images, base first.
fn host_of(images: &[Image], has_holes: bool) -> Ledger {
    let host = SimHost::new(Files::default());
    for (n, image) in images.iter().enumerate() {
        let mut image = image.clone();
        if n > 0 {
            image.parent_path(&format!(".\\l{}.vhdx", n - 1));
        }
        host.create_new(&file(n)).unwrap().write_at(&image.to_bytes(), 0).unwrap();
    }
    Ledger::new(host.files(), has_holes)
}

fn open(host: &Ledger, tip: usize, writable: bool) -> DiffChain {
    let options = OpenOptions::new().host(Arc::new(host.clone())).budget(Budget::new(8 << 20));
    options.writable(writable).open(file(tip)).unwrap_or_else(|error| panic!("{error}"))
}

fn layer(host: &Ledger, path: &Path) -> Layer {
    let files = host.host().files();
    let bytes = files.file(path).unwrap();
    let mut all = vec![0; bytes.len() as usize];
    bytes.read(0, &mut all);
    Layer::from_bytes(all).unwrap()
}

/// The ranges of the payload blocks in the file.
fn blocks(layer: &Layer) -> Vec<Range<u64>> {
    let ratio = (layer.sector << 23) / layer.block_size;
    let all = 0..layer.size.div_ceil(layer.block_size);
    let there = all.filter(|block| has_space(layer, block * layer.block_size));
    let entries = there.map(|block| layer.bat_entry(block + block / ratio).unwrap());
    entries.map(|entry| entry >> 20 << 20).map(|at| at..at + layer.block_size).collect()
}

/// The ranges of everything else, with log and metadata where new images have them.
fn tables(layer: &Layer) -> Vec<Range<u64>> {
    assert!(layer.log() == (MIB..2 * MIB));
    let bitmaps = layer.bitmaps().unwrap().into_iter().map(|at| at..at + MIB);
    [0..3 * MIB, layer.bat()].into_iter().chain(bitmaps).collect()
}

/// Whether the block at this offset of the disk has space.
fn has_space(layer: &Layer, at: u64) -> bool {
    let (ratio, block) = ((layer.sector << 23) / layer.block_size, at / layer.block_size);
    at < layer.size && matches!(layer.bat_entry(block + block / ratio).unwrap() & 7, 6 | 7)
}

fn overlap(ranges: &[Range<u64>], places: &[Range<u64>]) -> u64 {
    let of = |a: &Range<u64>, b: &Range<u64>| a.end.min(b.end).saturating_sub(a.start.max(b.start));
    ranges.iter().map(|range| places.iter().map(|place| of(range, place)).sum::<u64>()).sum()
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// Bytes in pages of tables and headers that a change may fill if they are holes.
const ASIDE: u64 = 96 << 10;

/// The results of a merge, with its forecast.
struct Beside {
    forecast: Forecast,
    read: u64,
    written: Option<u64>,
    freed: u64,
    cut: (u64, u64),
    /// The peak of additional space.
    most: Space,
    /// Bytes of freed blocks in the children besides the data that was moved.
    rest: u64,
}

/// Merges the layer into one further down, with as little space as possible if `low_space`.
fn merge(
    host: &Ledger,
    chain: &DiffChain,
    layers: Range<usize>,
    asked: impl Fn(Merge) -> Merge,
    low_space: bool,
) -> Beside {
    let of_chain = chain.layers();
    let path = |layer: usize| of_chain[layer].path.clone().unwrap();
    let merge = Merge::new(of_chain[layers.start].id).into_layer(of_chain[layers.end].id);
    let merge = asked(merge.low_space(low_space).shrink(true));
    if low_space {
        host.host().set_free_space(Some(0));
        let least = merge.forecast(chain).unwrap().peak;
        host.host().set_free_space(Some(least));
    }
    let forecast = merge.forecast(chain).unwrap();
    let images: Vec<_> =
        (layers.start..=layers.end).map(|n| (host.id(&path(n)), layer(host, &path(n)))).collect();
    let (parent, children) = images.split_last().unwrap();
    let files = host.host().files();
    let freed = layers.clone().map(|n| files.file(&path(n)).unwrap().len()).sum();
    host.begin();
    let before = host.now();
    let done = merge.run(chain).unwrap_or_else(|error| panic!("{error}"));
    host.host().set_free_space(None);
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    assert_eq!(done.removed.len(), layers.len());
    assert_eq!((done.moved, done.cut), (forecast.read, forecast.cut));
    let read = images.iter().map(|(id, image)| {
        let Done { read, lent, .. } = host.done(*id);
        overlap(&[read, lent].concat(), &blocks(image))
    });
    let read = read.sum();
    let after = layer(host, &path(layers.end));
    let places = [tables(&parent.1), tables(&after)].concat();
    // The place of a table that moved in between is unknown.
    let is_known = layers.len() == 1 || parent.1.bat() == after.bat();
    let Done { written, copied, .. } = host.done(parent.0);
    let of_blocks = [written, copied].concat().into_iter().filter(|range| {
        !places.iter().any(|place| place.start <= range.start && range.end <= place.end)
    });
    let space: u64 = children.iter().flat_map(|(_, image)| blocks(image)).map(|at| len(&at)).sum();
    Beside {
        read,
        written: is_known.then(|| of_blocks.map(|range| len(&range)).sum()),
        freed,
        cut: cut(&images.iter().rev().map(|(_, image)| image).collect::<Vec<_>>()),
        most: host.most() - before,
        rest: space - read,
        forecast,
    }
}

/// By how much the disk shrinks as layers are merged downwards, the lowest first, and how much data is lost.
fn cut(layers: &[&Layer]) -> (u64, u64) {
    let (mut cut, mut lost) = (0, 0);
    let mut ends: Vec<u64> = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let old = if n == 0 { layer.size } else { layers[n - 1].size };
        let sector = layer.sector;
        cut += old.saturating_sub(layer.size);
        let mut at = layer.size;
        while at < old {
            let holds = |(below, end): (&&Layer, &u64)| {
                at < *end && matches!(below.says(at / sector).unwrap(), Says::Data(_))
            };
            let has_space = layers[..n].iter().any(|below| has_space(below, at));
            let step = if has_space { sector } else { (at / MIB + 1) * MIB - at };
            lost += if has_space && layers.iter().zip(&ends).any(holds) { sector } else { 0 };
            at += step;
        }
        ends.iter_mut().for_each(|end| *end = layer.size.min(*end));
        ends.push(layer.size);
    }
    (cut, lost)
}

impl Beside {
    /// Compares the numbers with what happened: all are exact, except for the space if only parts of blocks are
    /// moved.
    fn is_right(&self, what: &str, is_exact: bool) {
        let Self { forecast, read, written, freed, cut, most, rest } = self;
        assert_eq!(forecast.read, *read, "read, {what}");
        assert_eq!(forecast.written, written.unwrap_or(forecast.written), "written, {what}");
        assert_eq!(forecast.freed, *freed, "freed, {what}");
        assert_eq!((forecast.cut, forecast.cut_data), *cut, "cut, {what}");
        assert!(most.room <= forecast.peak, "{} of {} bytes, {what}", most.room, forecast.peak);
        let most_held = forecast.peak + ASIDE;
        assert!(most.held <= most_held, "{} of {most_held} bytes held, {what}", most.held);
        if is_exact {
            assert!(
                forecast.peak <= most.room + rest,
                "{} of {}, {what}",
                most.room,
                forecast.peak
            );
        }
    }
}

#[test]
fn a_merge_reads_writes_frees_and_takes_what_its_forecast_says() {
    let (mut grown, mut several, mut saved, mut cut) = (0, 0, 0, 0);
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let layers = 2 + rng.below(4);
        let images = match seed % 3 {
            0 => random_chain(seed, layers as usize),
            _ => deep_chain(seed, layers),
        };
        let has_holes = rng.chance(1, 2);
        let host = host_of(&images, has_holes);
        let chain = open(&host, images.len() - 1, rng.chance(1, 2));
        let mut is_first = true;
        while chain.layers().len() > 1 {
            let count = chain.layers().len() as u64;
            let child = rng.below(count - 1);
            let parent = child + 1 + rng.below(count - 1 - child);
            let low_space = rng.chance(1, 3);
            let share = rng.chance(1, 2);
            let range = child as usize..parent as usize;
            let what = format!("seed {seed}: {range:?}, low space {low_space}, holes {has_holes}");
            let beside = merge(&host, &chain, range, |merge| merge.share(share), low_space);
            let Beside { most, rest, forecast, .. } = &beside;
            // Later merges fill the rest of blocks that were added before.
            beside.is_right(&what, is_first && !has_holes);
            if is_first && !has_holes && !low_space {
                assert_eq!(forecast.peak, most.room, "{what}");
            }
            grown += usize::from(most.room > 0);
            several += usize::from(parent > child + 1);
            saved += usize::from(low_space && *rest > 0);
            cut += usize::from(forecast.cut_data > 0);
            is_first = false;
        }
    }
    assert!(grown > 5 && several > 5 && saved > 5 && cut > 1, "{grown} {several} {saved} {cut}");
}

/// Also if the table moves and the last block changes, repeatedly.
#[test]
fn a_merge_of_disks_of_several_sizes_takes_what_its_forecast_says() {
    const GIB: u64 = 1 << 30;
    let (huge, half) = (129 * GIB + MIB / 2, MIB / 2);
    for sizes in [
        [2 * MIB + half, 4 * MIB + half, 6 * MIB],
        [4 * MIB, 2 * MIB + half, 5 * MIB + half],
        [6 * MIB + half, 4 * MIB + half, 2 * MIB + half],
        [100 * GIB, huge, 2 * huge],
        [huge, 3 * MIB + half, 100 * GIB + half],
        [2 * huge, huge, MIB],
    ] {
        for kind in 0..4_u64 {
            let mut images = vec![match kind {
                0 => Image::dynamic(sizes[0]),
                1 => Image::fixed(sizes[0]),
                _ => Image::dynamic(8 * MIB),
            }];
            let is_large = sizes.iter().any(|size| *size > GIB);
            if is_large && kind % 2 == 1 {
                continue;
            }
            let first = usize::from(kind > 1);
            images.truncate(1);
            for (n, size) in sizes.iter().enumerate().skip(1 - first) {
                let mut child = images.last().unwrap().new_child();
                child.size = *size;
                let last = child.block_count() - 1;
                for block in [1, last / 2, last] {
                    let data = Data::Pattern(block + n as u64);
                    let runs = &[(0, 20), (1000, 24)];
                    child.put(
                        block,
                        match (block + n as u64 + kind) % 3 {
                            0 => Block::full(data),
                            1 => Block::partial_runs(data, runs),
                            _ => Block::bare(state::ZERO),
                        },
                    );
                }
                images.push(child);
            }
            for (low_space, start) in [(true, 0), (false, 0), (false, 1)] {
                if is_large && low_space {
                    continue;
                }
                let host = host_of(&images, false);
                let chain = open(&host, images.len() - 1, false);
                let what = format!("{sizes:?}, kind {kind}, low space {low_space}, from {start}");
                let range = start..2;
                let beside = merge(&host, &chain, range, |merge| merge, low_space);
                beside.is_right(&what, true);
                if !low_space {
                    assert_eq!(beside.forecast.peak, beside.most.room, "{what}");
                }
            }
        }
    }
}

/// Blocks that are mostly holes free next to nothing, but need space where they are
/// moved to.
#[test]
fn holes_count_neither_as_present_nor_as_freed() {
    const BLOCKS: u64 = 6;
    let mut base = Image::dynamic(2 * BLOCKS * MIB);
    // The zeros in between are data to the format.
    let thin = || Block::full(Data::Bytes(vec![7; 4096]));
    (0..BLOCKS).for_each(|block| _ = base.put(block, thin()));
    let mut middle = base.new_child();
    (0..BLOCKS).for_each(|block| _ = middle.put(block, thin()));
    let mut tip = middle.new_child();
    for block in BLOCKS..2 * BLOCKS {
        tip.put(block, Block::full(Data::Pattern(block)));
    }
    let images = [base, middle, tip];
    for low_space in [false, true] {
        for range in [0..2, 1..2, 0..1] {
            let host = host_of(&images, true);
            let chain = open(&host, 2, false);
            let what = format!("{range:?}, low space {low_space}");
            let beside = merge(&host, &chain, range.clone(), |merge| merge, low_space);
            beside.is_right(&what, false);
            let Beside { most, forecast, .. } = &beside;
            let most_held = most.held + ASIDE;
            assert!(
                forecast.peak <= most_held + 3 * 4096,
                "{} of {most_held}, {what}",
                forecast.peak
            );
            let is_low = low_space && range == (0..1);
            assert!(is_low || forecast.peak >= 5 * MIB, "{} bytes, {what}", forecast.peak);
        }
    }
}

/// The space that a new child takes is its peak, and is all taken once it is complete.
#[test]
fn a_checkpoint_and_a_revert_take_and_free_what_their_forecasts_say() {
    const GIB: u64 = 1 << 30;
    for (size, block_size) in [
        (8 * MIB, None),
        (8 * MIB, Some(1 << 20)),
        (300 * GIB + 512, None),
        (300 * GIB + 512, Some(1 << 20)),
        (64 << 40, Some(256 << 20)),
    ] {
        let mut base = Image::dynamic(8 * MIB);
        base.put(3, Block::full(Data::Pattern(3)));
        let mut images = vec![base];
        for n in 1..4 {
            let mut child = images[n - 1].new_child();
            // Large blocks are almost empty, see below.
            let is_large = size > MIB << 20;
            (child.size, child.block_size) = (size, if is_large { 256 << 20 } else { 1 << 20 });
            let block = |b| match is_large {
                true => Block::bare(state::ZERO),
                false => Block::full(Data::Pattern(b)),
            };
            (0..n as u64).for_each(|b| _ = child.put(b, block(b)));
            images.push(child);
        }
        let new = Path::new(FOLDER).join("new.avhdx");
        // `None` for a checkpoint.
        for to in [None, Some((1, false)), Some((1, true)), Some((3, true))] {
            let what = format!("{size} bytes, blocks of {block_size:?}, revert to {to:?}");
            let host = host_of(&images, false);
            let chain = open(&host, 3, true);
            // The tip's file has grown by more than it needs, and was not flushed.
            for block in 0..3 {
                chain
                    .write_at(
                        &[9; 4096],
                        (5 + block) * u64::from(images[3].block_size) % (size - 4096) / 512 * 512,
                    )
                    .unwrap();
            }
            let layers = chain.layers();
            let len = |path: &Path| host.host().files().file(path).unwrap().len();
            let (forecast, freed, before) = match to {
                None => {
                    let checkpoint = Checkpoint::new().path(&new);
                    let checkpoint =
                        block_size.iter().fold(checkpoint, |it, bytes| it.block_size(*bytes));
                    let forecast = checkpoint.forecast(&chain).unwrap();
                    host.begin();
                    let before = host.now();
                    checkpoint.run(&chain).unwrap();
                    (forecast, 0, before)
                }
                Some((to, deletes)) => {
                    let revert = Revert::to(layers[to].id).path(&new).delete_newer(deletes);
                    let forecast = revert.forecast(&chain).unwrap();
                    let gone = layers[..if deletes { to } else { 0 }].iter();
                    let freed = gone.map(|layer| len(layer.path.as_ref().unwrap())).sum();
                    host.begin();
                    let before = host.now();
                    let done = revert.run(&chain).unwrap();
                    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
                    (forecast, freed, before)
                }
            };
            let made = len(&new);
            assert_eq!((forecast.written, forecast.peak), (made, made), "{what}");
            assert_eq!((forecast.read, forecast.freed), (0, freed), "{what}");
            let most = host.most() - before;
            assert_eq!(most.room, forecast.peak, "{what}");
            // The header section, the log, and metadata; the rest is holes.
            let Done { written, .. } = host.done(host.id(&new));
            assert!(written.iter().all(|range| range.end <= 3 * MIB), "{what}");
            assert!(most.held <= 2 * MIB + ASIDE && most.held <= forecast.peak + ASIDE, "{what}");
        }
    }
}

/// Parents are compared in whole windows, even if parts of them are the same file.
#[test]
fn a_reparent_reads_and_writes_what_its_forecast_says() {
    let mut read_twice = 0;
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed + 500);
        let mut images = deep_chain(seed, 3);
        let size = images[0].size.min(images[1].size);
        (images[0].size, images[1].size) = (size, size);
        for image in &mut images[..2] {
            let count = image.block_count();
            image.blocks.retain(|block, _| *block < count);
        }
        let (first, second) = (images[0].flat(None), images[1].clone());
        let flat = second.flat(Some(&first));
        // The same bytes at other offsets, over the same base or alone.
        let mut other = if rng.chance(1, 2) { images[0].new_child() } else { Image::dynamic(size) };
        (other.size, other.logical_sector) = (size, images[0].logical_sector);
        other.block_size = 1 << (20 + rng.below(3));
        other.reseed(seed);
        let block_size = other.block_size as usize;
        for (block, bytes) in flat.chunks(block_size).enumerate() {
            let at = block * block_size;
            let is_of_base = other.has_parent && *bytes == first[at..at + bytes.len()];
            if is_of_base || !other.has_parent && bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            other.put(block as u64, Block::full(Data::Bytes(bytes.to_vec())));
        }
        images.push(other);
        let host = host_of(&images[..3], false);
        let mut other = images[3].clone();
        other.parent_path(r".\l0.vhdx");
        let made = host.host().create_new(&file(3)).unwrap();
        made.write_at(&other.to_bytes(), 0).unwrap();
        let host = Ledger::new(host.host().files(), false);
        let options = OpenOptions::new().host(Arc::new(host.clone())).budget(Budget::new(8 << 20));
        let reparent = Reparent::new(file(3)).options(options);
        let forecast = reparent.forecast(file(2)).unwrap();
        let before = layer(&host, &file(2));
        host.begin();
        let now = host.now();
        let done = reparent.run(file(2)).unwrap_or_else(|error| panic!("{seed}: {error}"));
        let read = (0..4)
            .map(|n| overlap(&host.done(host.id(&file(n))).read, &blocks(&layer(&host, &file(n)))));
        assert_eq!(forecast.read, read.sum::<u64>(), "seed {seed}");
        read_twice += usize::from(forecast.read > done.proven);
        let Done { written, .. } = host.done(host.id(&file(2)));
        // What lies between the log and the table.
        let metadata = before.log().end..before.bat().start;
        assert_eq!(forecast.written, overlap(&written, &[metadata]), "seed {seed}");
        assert_eq!((forecast.freed, forecast.peak), (0, 0));
        assert_eq!(host.most().room, now.room, "seed {seed}");
    }
    assert!(read_twice > 3, "{read_twice}");
}

/// A measured size is the size of the copy.
#[test]
fn a_copy_takes_what_was_measured() {
    for seed in 0..SEEDS {
        let images = deep_chain(seed, 3);
        let host = host_of(&images, false);
        let chain = open(&host, 2, false);
        let block_size = 1 << (20 + seed % 3);
        let needed = Measure::vhdx(block_size).run(&chain).unwrap();
        let size = chain.geometry().size;
        let sector = chain.geometry().logical_sector;
        let copy = Path::new(FOLDER).join("copy.vhdx");
        let make = CreateOptions::dynamic(size).block_size(block_size).logical_sector(sector);
        let image = make.create_on(Arc::new(host.clone()), &copy).unwrap();
        Export::new().onto(&chain, &image).unwrap();
        image.close().unwrap();
        let len = || host.host().files().file(&copy).unwrap().len();
        let disk = super::bytes(&chain);
        let of_zeros = disk.chunks(block_size as usize).enumerate().filter(|(block, bytes)| {
            let range = block * block_size as usize..block * block_size as usize + bytes.len();
            let range = range.start as u64..range.end as u64;
            let is_data = |extent: avhdx::Result<Extent>| {
                matches!(extent.unwrap().source, Source::Data { .. })
            };
            bytes.iter().all(|byte| *byte == 0) && chain.extents(range).any(is_data)
        });
        let zeros = of_zeros.count() as u64 * u64::from(block_size);
        assert_eq!(len(), needed.required - zeros, "seed {seed}");
        image.write_at(&vec![1; size as usize], 0).unwrap();
        image.close().unwrap();
        assert_eq!(len(), needed.fully_allocated, "seed {seed}");
    }
}
