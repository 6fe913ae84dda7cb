//! Compactions beside a naive reader, and a planner that tries every length of the file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use avhdx::ops::{Check, Compact, Severity};
use avhdx::storage::{Host, MemStorage};
use avhdx::{Budget, DiffChain, Disk, ErrorKind, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image, random_chain, state};
use avhdx_testkit::bytes::{difference, is_zero};
use avhdx_testkit::naive::{Chain, Layer, Says};
use avhdx_testkit::rng::Rng;

use super::MIB;
use super::ledger::Ledger;
use super::sim::{FOLDER, Files, SimHost};

const SEEDS: u64 = 14;

fn file(layer: usize) -> PathBuf {
    Path::new(FOLDER).join(format!("l{layer}.vhdx"))
}

fn host_of(images: &[Image]) -> SimHost {
    let host = SimHost::new(Files::default());
    for (n, image) in images.iter().enumerate() {
        let mut image = image.clone();
        if n > 0 {
            image.parent_path(&format!(".\\l{}.vhdx", n - 1));
        }
        host.create_new(&file(n)).unwrap().write_at(&image.to_bytes(), 0).unwrap();
    }
    host
}

fn open(host: &SimHost, layer: usize) -> DiffChain {
    let options = OpenOptions::new().host(Arc::new(host.clone())).budget(Budget::new(8 << 20));
    options.writable(true).open(file(layer)).unwrap_or_else(|error| panic!("{error}"))
}

fn bytes_of(host: &SimHost, layer: usize) -> Vec<u8> {
    let files = host.files();
    let bytes = files.file(&file(layer)).unwrap();
    let mut all = vec![0; bytes.len() as usize];
    bytes.read(0, &mut all);
    all
}

fn layer(host: &SimHost, layer: usize) -> Layer {
    Layer::from_bytes(bytes_of(host, layer)).unwrap()
}

/// What the naive reader reads of a disk.
fn flat(host: &SimHost, tip: usize) -> Vec<u8> {
    Chain((0..=tip).map(|n| layer(host, n)).collect()).flat(tip).unwrap()
}

/// A random chain whose tip has blocks that are not worth their space.
fn wasteful(seed: u64) -> Vec<Image> {
    let mut rng = Rng::new(seed ^ 0xC0_4AC7);
    let layers = 1 + rng.below(3) as usize;
    let mut images = random_chain(seed, layers);
    let mut below: Option<Vec<u8>> = None;
    for image in &images[..layers - 1] {
        below = Some(image.flat(below.as_deref()));
    }
    let tip = &mut images[layers - 1];
    for number in 0..tip.block_count() {
        let (at, len) = ((number * u64::from(tip.block_size)) as usize, tip.block_size as usize);
        let shown = below
            .as_ref()
            .map_or(&[][..], |below| &below[at.min(below.len())..(at + len).min(below.len())]);
        let shown = Data::Bytes([shown, &vec![0; len - shown.len()][..]].concat());
        let sectors = tip.sectors_per_block() as usize;
        let some = |rng: &mut Rng| (0..sectors).map(|_| rng.chance(1, 3)).collect();
        let block = match rng.below(8) {
            0 => Block::full(Data::Zeros),
            1 if tip.has_parent => Block::full(shown),
            2 if tip.has_parent => Block::partial(shown, some(&mut rng)),
            3 if tip.has_parent => Block::partial(Data::Zeros, some(&mut rng)),
            4 => Block::bare(state::ZERO),
            _ => continue,
        };
        tip.put(number, block);
    }
    if tip.has_parent && rng.chance(1, 3) {
        tip.bitmap_chunks.insert(0);
    }
    if rng.chance(1, 2) {
        // As after a resize there and back: the table is behind the blocks, and may be longer than it needs to be.
        let first = tip.bat_offset;
        tip.data_offset = Some(if rng.chance(1, 2) { first } else { first + MIB });
        tip.bat_length = Some((MIB * [1, 1, 3][rng.below(3) as usize]) as u32);
        tip.bat_offset = 1 << 30;
        let end = tip.layout().payload.values().max().map_or(first, |at| at + 2 * MIB);
        let bitmaps = tip.layout().bitmaps.values().max().map_or(first, |at| at + MIB);
        tip.bat_offset = end.max(bitmaps) + MIB * rng.below(3);
    } else if !tip.has_parent && rng.chance(1, 4) {
        // Some writers let the file end with the disk.
        tip.file_length = Some(Layer::from_bytes(tip.to_bytes()).unwrap().needed_length());
    }
    images
}

/// A block of the file before a compaction.
struct Placed {
    range: Range<u64>,
    /// Bytes that a move copies.
    present: u64,
    is_bitmap: bool,
}

/// What a compaction has to do at least: bytes of data that go, and the shortest file with the bytes that move there.
struct Least {
    content: u64,
    moved: u64,
    end: u64,
    /// Where the table is afterwards.
    table: Range<u64>,
}

fn least(file: &[u8], own: &[u8], below: Option<&[u8]>, reads_data: bool) -> Least {
    let tip = &Layer::from_bytes(file.to_vec()).unwrap();
    let ratio = (tip.sector << 23) / tip.block_size;
    let mut placed = Vec::new();
    let mut content = 0;
    let blocks = tip.size.div_ceil(tip.block_size);
    let mut needs_bits = vec![false; blocks.div_ceil(ratio) as usize];
    for block in 0..blocks {
        let entry = tip.bat_entry(block + block / ratio).unwrap();
        if !matches!(entry & 7, 6 | 7) {
            continue;
        }
        let place = entry >> 20 << 20;
        let on_disk = block * tip.block_size..tip.size.min((block + 1) * tip.block_size);
        let shows = &own[on_disk.start as usize..on_disk.end as usize];
        let is_parents = below.is_some_and(|below| {
            let at = |n: u64| below.len().min(n as usize);
            let shown = &below[at(on_disk.start)..at(on_disk.end)];
            difference(&shows[..shown.len()], shown).is_none() && is_zero(&shows[shown.len()..])
        });
        if reads_data && (is_zero(shows) || is_parents) {
            content += tip.block_size;
            continue;
        }
        let bit = |n: u64| {
            let at = bitmap_of(tip, block / ratio) + (block % ratio * per_block(tip) + n) / 8;
            file[at as usize] >> ((block % ratio * per_block(tip) + n) % 8) & 1 == 1
        };
        let present = match entry & 7 {
            6 => tip.block_size,
            _ => (0..per_block(tip)).filter(|n| bit(*n)).count() as u64 * tip.sector,
        };
        needs_bits[(block / ratio) as usize] |= entry & 7 == 7;
        placed.push(Placed { range: place..place + tip.block_size, present, is_bitmap: false });
    }
    for chunk in (0..needs_bits.len()).filter(|chunk| needs_bits[*chunk]) {
        let at = bitmap_of(tip, chunk as u64);
        placed.push(Placed { range: at..at + MIB, present: MIB, is_bitmap: true });
    }
    let (stay, needs) = (tip.bat(), MIB);
    let is_free = |at: u64| {
        let all = placed.iter().map(|placed| placed.range.clone());
        let mut all = all.chain([0..MIB, tip.log(), 2 * MIB..3 * MIB]);
        all.all(|range| range.end <= at || at + needs <= range.start)
    };
    let hole = (0..stay.start).step_by(MIB as usize).find(|at| is_free(*at)).unwrap_or(stay.start);
    let table_and_end = [stay, hole..hole + needs].map(|table| {
        let last = placed.iter().map(|placed| placed.range.end).max().unwrap_or_default();
        let first = table.end.max(tip.log().end).max(3 * MIB);
        let mut ends = (first..=last.max(first)).step_by(MIB as usize);
        let end = ends.find(|end| fits(tip, &table, &placed, *end)).unwrap();
        (table, end)
    });
    let (table, end) = table_and_end.into_iter().min_by_key(|(_, end)| *end).unwrap();
    let moves = placed.iter().filter(|placed| placed.range.end > end);
    Least { content, moved: moves.map(|placed| placed.present).sum(), end, table }
}

fn per_block(layer: &Layer) -> u64 {
    layer.block_size / layer.sector
}

fn bitmap_of(layer: &Layer, chunk: u64) -> u64 {
    let ratio = (layer.sector << 23) / layer.block_size;
    layer.bat_entry(chunk * (ratio + 1) + ratio).unwrap() >> 20 << 20
}

/// Whether all that reaches beyond this end has room in unused space before it. Payload goes first, into the first hole
/// that is long enough: with blocks of one length no other order fits more.
fn fits(tip: &Layer, table: &Range<u64>, placed: &[Placed], end: u64) -> bool {
    let mut used = vec![false; (end / MIB) as usize];
    let log = tip.log();
    let structures = [0..MIB, log, table.clone(), 2 * MIB..3 * MIB];
    let stay = placed.iter().map(|placed| placed.range.clone());
    for range in stay.chain(structures) {
        let units = range.start / MIB..range.end.min(end).div_ceil(MIB);
        units.for_each(|unit| used[unit as usize] = true);
    }
    let mut moves: Vec<&Placed> = placed.iter().filter(|placed| placed.range.end > end).collect();
    moves.sort_by_key(|placed| placed.is_bitmap);
    moves.into_iter().all(|placed| {
        let len = ((placed.range.end - placed.range.start) / MIB) as usize;
        let Some(at) = used.windows(len).position(|units| units.iter().all(|used| !used)) else {
            return false;
        };
        used[at..at + len].fill(true);
        true
    })
}

/// Fails unless the image is sound by the naive reader and by a check.
fn assert_sound(host: &SimHost, tip: usize, seed: u64) {
    assert_eq!(layer(host, tip).faults(), [] as [String; 0], "seed {seed}");
    let file = Arc::new(MemStorage::new(bytes_of(host, tip)));
    let report = Check::new().run_file(file).unwrap();
    let is_broken = |finding: &&avhdx::ops::Finding| {
        finding.severity == Severity::Error && finding.code != "parent.missing"
    };
    let broken: Vec<_> = report.findings.iter().filter(is_broken).collect();
    assert!(broken.is_empty(), "seed {seed}: {broken:?}");
}

#[test]
fn compacted_images_read_the_same_and_are_as_short_as_they_can_be() {
    let (mut moved, mut dropped, mut shorter, mut idle, mut tables) = (0, 0, 0, 0, 0);
    for seed in 0..SEEDS {
        let images = wasteful(seed);
        let tip = images.len() - 1;
        let below = (tip > 0).then(|| flat(&host_of(&images), tip - 1));
        for content in [false, true] {
            let host = host_of(&images);
            let (before, image) = (flat(&host, tip), layer(&host, tip));
            let least = least(&bytes_of(&host, tip), &before, below.as_deref(), content);
            let chain = open(&host, tip);
            let files = host.files().sum();
            let compact = Compact::new().content(content);
            let forecast = compact.forecast(&chain).unwrap();
            assert!(host.files().sum() == files, "seed {seed}: a forecast changes nothing");
            let mut last = None;
            let on = |progress| {
                last = Some(progress);
                std::ops::ControlFlow::Continue(())
            };
            let done = compact.on_progress(on).run(&chain).unwrap();
            let last: avhdx::ops::Progress = last.unwrap();
            assert_eq!(last.done, last.total, "seed {seed}");
            assert_eq!(done, forecast.outcome, "seed {seed}, content {content}");
            assert_eq!(done.content, content.then_some(least.content), "seed {seed}");
            if done.file_len < done.file_len_before {
                assert_eq!((done.file_len, done.moved), (least.end, least.moved), "seed {seed}");
                let is_elsewhere = least.table.start != image.bat().start;
                assert_eq!(done.table, if is_elsewhere { MIB } else { 0 }, "seed {seed}");
                tables += u64::from(least.table != image.bat());
            } else {
                assert!(done.moved == 0 && least.end >= done.file_len, "seed {seed}");
            }
            let mut read = vec![0xAA; before.len()];
            chain.read_at(&mut read, 0).unwrap();
            assert!(difference(&read, &before).is_none(), "seed {seed}, live");
            chain.close().unwrap();
            drop(chain);
            assert_eq!(bytes_of(&host, tip).len() as u64, done.file_len, "seed {seed}");
            assert!(difference(&flat(&host, tip), &before).is_none(), "seed {seed}");
            let after = layer(&host, tip);
            assert_eq!(after.data_write_guid, image.data_write_guid, "seed {seed}");
            if done.file_len < done.file_len_before {
                assert_eq!(after.bat(), least.table, "seed {seed}");
            }
            assert_sound(&host, tip, seed);
            let files = host.files().sum();
            let again = Compact::new().content(content).run(&open(&host, tip)).unwrap();
            assert_eq!((again.moved, again.file_len), (0, done.file_len), "seed {seed}");
            assert!(host.files().sum() == files, "seed {seed}: nothing is left to do");
            moved += done.moved;
            dropped += least.content;
            shorter += u64::from(done.file_len < done.file_len_before);
            idle += u64::from(done.file_len == done.file_len_before);
        }
    }
    assert!(moved > 16 * MIB && dropped > 16 * MIB, "{moved} and {dropped}");
    assert!(shorter > 14 && idle > 0, "{shorter} shorter, {idle} as long as before");
    assert!(tables > 4, "{tables} tables in another place");
}

/// A host that counts pages judges the forecast; with a byte less than that, nothing changes.
#[test]
fn a_compaction_takes_the_space_of_its_forecast_and_is_refused_without_it() {
    // Pages of tables and headers that are holes before.
    const ASIDE: u64 = 64 << 10;
    let (mut refused, mut free) = (0, 0);
    for (seed, has_holes) in (0..6).flat_map(|seed| [(seed, false), (seed, true)]) {
        let images = wasteful(seed);
        let tip = images.len() - 1;
        for (content, keeps) in [(false, false), (false, true), (true, false)] {
            let host = Ledger::new(host_of(&images).files(), has_holes);
            if keeps {
                host.host().keep_space();
            }
            let before = flat(host.host(), tip);
            let options = OpenOptions::new().host(Arc::new(host.clone())).writable(true);
            let chain = options.open(file(tip)).unwrap();
            let compact = Compact::new().content(content);
            let forecast = compact.forecast(&chain).unwrap();
            let what = format!("seed {seed}, holes {has_holes}, content {content}, keeps {keeps}");
            forecast.check().unwrap();
            if !content && forecast.peak > 0 {
                host.host().set_free_space(Some(forecast.peak - 1));
                let sum = host.host().files().sum();
                let told = compact.forecast(&chain).unwrap().check().unwrap_err();
                for error in [told, compact.clone().run(&chain).unwrap_err()] {
                    let is = (error.kind(), error.code(), error.file());
                    let tip = file(tip);
                    assert_eq!(is, (ErrorKind::NoSpace, "op.space", tip.to_str()), "{what}");
                    assert!(error.to_string().contains("1 bytes of space are missing"), "{error}");
                }
                assert!(host.host().files().sum() == sum, "{what}: refused, and changed");
                refused += 1;
            }
            host.host().set_free_space(Some(forecast.peak));
            host.begin();
            let start = host.now().held;
            let done = compact.run(&chain).unwrap_or_else(|error| panic!("{what}: {error}"));
            chain.close().unwrap();
            let most = host.most().held - start;
            assert!(most <= forecast.peak + ASIDE, "{what}: {most}, foreseen {}", forecast.peak);
            // Where the file has all its space, moves take none.
            assert!(has_holes || forecast.peak == 0, "{what}: {}", forecast.peak);
            free += u64::from(!has_holes && done.moved > 0);
            assert!(difference(&flat(host.host(), tip), &before).is_none(), "{what}");
        }
    }
    assert!(refused > 2 && free > 2, "{refused} refused, {free} moved without any space");
}

/// Its table has no entries; a region is never empty.
#[test]
fn a_disk_without_a_byte_keeps_a_table() {
    let mut image = Image::dynamic(0);
    image.gap = 3 * MIB;
    for behind in [0, 4 * MIB] {
        let host = host_of(std::slice::from_ref(&image));
        let mut bytes = bytes_of(&host, 0);
        bytes.resize(bytes.len() + behind as usize, 0);
        host.remove(&file(0)).unwrap();
        host.create_new(&file(0)).unwrap().write_at(&bytes, 0).unwrap();
        let chain = open(&host, 0);
        let forecast = Compact::new().forecast(&chain).unwrap();
        assert_eq!(Compact::new().run(&chain).unwrap(), forecast.outcome);
        chain.close().unwrap();
        let after = layer(&host, 0);
        assert_eq!((after.size, after.bat().end - after.bat().start), (0, MIB));
        assert_sound(&host, 0, behind);
    }
}

#[test]
fn images_that_must_stay_as_they_are_are_refused() {
    let mut base = Image::dynamic(4 * MIB);
    base.put(3, Block::full(Data::Pattern(1)));
    base.gap = MIB;
    let child = base.new_child();
    let host = host_of(&[base.clone(), child]);
    let options = OpenOptions::new().host(Arc::new(host.clone())).writable(true);
    let parent = options.clone().orphan_children(true).open(file(0)).unwrap();
    let (files, known) = (host.files().sum(), layer(&host, 0).data_write_guid);
    let error = Compact::new().run(&parent).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::HasChildren, "image.children"));
    let free = Compact::new().with_children(true).free(Some(0..4 * MIB));
    assert_eq!(free.run(&parent).unwrap_err().kind(), ErrorKind::HasChildren);
    assert!(host.files().sum() == files);
    let done = Compact::new().with_children(true).content(true).run(&parent).unwrap();
    assert_eq!(done.file_len, done.file_len_before - MIB);
    parent.close().unwrap();
    drop(parent);
    assert_eq!(layer(&host, 0).data_write_guid, known, "its child accepts it");
    drop(open(&host, 1));

    let fixed = host_of(&[Image::fixed(2 * MIB)]);
    let error = Compact::new().run(&open(&fixed, 0)).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "compact.fixed"));
    let alone = host_of(&[base]);
    let chain = options.host(Arc::new(alone.clone())).writable(false).open(file(0)).unwrap();
    assert_eq!(Compact::new().run(&chain).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(Compact::new().forecast(&chain).unwrap().outcome.moved, MIB);
    let beyond = Compact::new().free(Some(0..5 * MIB));
    assert_eq!(beyond.forecast(&chain).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn declared_ranges_are_dropped_in_whole_blocks() {
    let mut base = Image::dynamic(5 * MIB - 4096);
    for block in 0..5 {
        base.put(block, Block::full(Data::Pattern(block + 1)));
    }
    let host = host_of(&[base]);
    let before = flat(&host, 0);
    let chain = open(&host, 0);
    let known = chain.layers()[0].data_write_guid;
    let compact = Compact::new().free([512..2 * MIB, 4 * MIB..5 * MIB - 4096]);
    let forecast = compact.forecast(&chain).unwrap();
    let done = compact.run(&chain).unwrap();
    assert_eq!((done, done.free), (forecast.outcome, 2 * MIB));
    chain.close().unwrap();
    assert_ne!(chain.layers()[0].data_write_guid, known);
    drop(chain);
    let mut expected = before;
    expected[MIB as usize..2 * MIB as usize].fill(0);
    expected[4 * MIB as usize..].fill(0);
    assert!(difference(&flat(&host, 0), &expected).is_none());
    assert_eq!(bytes_of(&host, 0).len() as u64, done.file_len_before - 2 * MIB);
}

/// Two write, each to sectors of its own, one discards what it wrote before, and two read.
#[test]
fn a_chain_in_use_is_compacted() {
    const BLOCKS: u64 = 24;
    let mut base = Image::dynamic(BLOCKS * MIB);
    for block in (0..BLOCKS).filter(|block| block % 3 != 1) {
        base.put(block, Block::full(Data::Pattern(block)));
    }
    base.gap = MIB;
    let mut tip = base.new_child();
    for block in 0..BLOCKS {
        let runs = [(0, 8), (block as usize * 8, 100)];
        match block % 4 {
            0 => tip.put(block, Block::full(Data::Pattern(100 + block))),
            1 => tip.put(block, Block::partial_runs(Data::Pattern(200 + block), &runs)),
            2 => tip.put(block, Block::full(Data::Zeros)),
            _ => &mut tip,
        };
    }
    tip.gap = 2 * MIB;
    // The table moves too, from behind all blocks.
    tip.data_offset = Some(tip.bat_offset + MIB);
    tip.bat_offset = 200 * MIB;
    let host = host_of(&[base, tip]);
    let mut model = flat(&host, 1);
    let before = bytes_of(&host, 1).len() as u64;
    let chain = open(&host, 1);
    let is_over = AtomicBool::new(false);
    let last: [AtomicU64; 2] = Default::default();
    // The first half of each block is written to, the second one only read.
    let place = |writer: u64, count: u64| (count % BLOCKS) * MIB + writer * 65_536 + 4096;
    std::thread::scope(|scope| {
        for (writer, last) in (0..).zip(&last) {
            let (chain, is_over) = (&chain, &is_over);
            scope.spawn(move || {
                for count in 1.. {
                    let bytes = [(count % 251) as u8; 4096];
                    chain.write_at(&bytes, place(writer, count)).unwrap();
                    last.store(count, Ordering::SeqCst);
                    if count % 16 == 0 {
                        chain.flush().unwrap();
                    }
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
            let model = &model;
            scope.spawn(move || {
                let mut rng = Rng::new(writer);
                let mut bytes = vec![0; 40_000];
                while !is_over.load(Ordering::SeqCst) {
                    let at = rng.below(BLOCKS) * MIB + MIB / 2 + rng.below(MIB / 2 - 40_000);
                    chain.read_at(&mut bytes, at).unwrap();
                    let there = &model[at as usize..at as usize + bytes.len()];
                    assert!(difference(&bytes, there).is_none(), "at {at}");
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (n, (content, punch)) in
                [(false, false), (false, true), (true, true), (true, false), (true, false)]
                    .into_iter()
                    .enumerate()
            {
                let done = Compact::new().content(content).punch(punch).run(&chain).unwrap();
                assert!(done.file_len < before, "{done:?}");
                assert_eq!(done.table, if n == 0 { MIB } else { 0 }, "{done:?}");
            }
        }));
        is_over.store(true, Ordering::SeqCst);
        done.unwrap();
    });
    for (writer, last) in (0..).zip(&last) {
        for count in 1..=last.load(Ordering::SeqCst) {
            let at = place(writer, count) as usize;
            model[at..at + 4096].fill((count % 251) as u8);
        }
    }
    let done = Compact::new().run(&chain).unwrap();
    chain.close().unwrap();
    drop(chain);
    assert_eq!(bytes_of(&host, 1).len() as u64, done.file_len);
    assert!(difference(&flat(&host, 1), &model).is_none());
    assert_sound(&host, 1, 0);
}

/// A child may know the image by its identity: bytes that change after the table has moved give it another.
#[test]
fn an_image_whose_table_moved_gets_another_identity_with_the_next_write() {
    let mut image = Image::dynamic(4 * MIB);
    image.put(1, Block::full(Data::Pattern(1)));
    image.data_offset = Some(image.bat_offset + MIB);
    image.bat_offset = 20 * MIB;
    let host = host_of(&[image.clone()]);
    let chain = open(&host, 0);
    let known = chain.layers()[0].data_write_guid;
    let done = Compact::new().run(&chain).unwrap();
    assert_eq!((done.table, done.file_len), (MIB, image.data_offset.unwrap() + MIB));
    assert_eq!(chain.layers()[0].data_write_guid, known);
    chain.write_at(&[7], MIB).unwrap();
    assert_ne!(chain.layers()[0].data_write_guid, known);
    chain.close().unwrap();
    drop(chain);
    assert_ne!(layer(&host, 0).data_write_guid, known);
    let mut expected = image.flat(None);
    expected[MIB as usize] = 7;
    assert!(difference(&flat(&host, 0), &expected).is_none());
    assert_sound(&host, 0, 0);
}

/// Another chain reads the tip by a handle that is not opened anew.
#[test]
fn a_table_stays_while_another_chain_has_the_tip() {
    let mut image = Image::dynamic(8 * MIB);
    for block in 0..8 {
        image.put(block, Block::full(Data::Pattern(1 + block)));
    }
    image.data_offset = Some(image.bat_offset + MIB);
    image.bat_offset = 30 * MIB;
    let host = host_of(&[image.clone()]);
    let mut expected = image.flat(None);
    let chain = open(&host, 0);
    let guest = OpenOptions::new().budget(Budget::new(0)).open_chain(
        Arc::try_unwrap(chain.tip()).unwrap_or_else(|_| panic!("nobody else has the tip")),
    );
    let guest = guest.unwrap();
    let forecast = Compact::new().forecast(&chain).unwrap();
    let done = Compact::new().run(&chain).unwrap();
    assert_eq!((done, done.table), (forecast.outcome, 0));
    chain.write_at(&[5; 4096], MIB).unwrap();
    expected[MIB as usize..][..4096].fill(5);
    let mut found = vec![0; expected.len()];
    guest.read_at(&mut found, 0).unwrap();
    assert!(difference(&found, &expected).is_none());
    drop(guest);
    let done = Compact::new().run(&chain).unwrap();
    assert_eq!((done.table, done.file_len), (MIB, image.data_offset.unwrap() + 8 * MIB));
    chain.read_at(&mut found, 0).unwrap();
    assert!(difference(&found, &expected).is_none());
}

/// A plan that still has to read the table looks for it where it was.
#[test]
fn a_plan_from_before_a_table_moved_reads_the_disk_as_it_was() {
    let mut image = Image::dynamic(8 * MIB);
    for block in 0..8 {
        image.put(block, Block::full(Data::Pattern(1 + block)));
    }
    image.data_offset = Some(image.bat_offset + 3 * MIB);
    image.bat_offset = 12 * MIB + image.data_offset.unwrap();
    let host = host_of(&[image.clone()]);
    let expected = image.flat(None);
    // Without a budget no page of the table is remembered.
    let options = OpenOptions::new().host(Arc::new(host.clone())).budget(Budget::new(0));
    let chain = options.writable(true).open(file(0)).unwrap();
    let avhdx::Planned::Load(load) = chain.plan_read(0..8 * MIB).unwrap() else {
        panic!("the table has not been read")
    };
    let done = Compact::new().run(&chain).unwrap();
    assert_eq!(done.table, MIB);
    // Takes whatever space may be used again.
    let rng = &mut Rng::new(1);
    for _ in 0..1 {
        for block in 0..8 {
            chain.discard(block * MIB..(block + 1) * MIB).unwrap();
            chain.flush().unwrap();
            let mut bytes = vec![0; MIB as usize];
            rng.fill(&mut bytes);
            chain.write_at(&bytes, block * MIB).unwrap();
        }
        chain.flush().unwrap();
        Compact::new().run(&chain).unwrap();
    }
    let mut planned = avhdx::Planned::Load(load);
    let plan = loop {
        planned = match planned {
            avhdx::Planned::Ready(plan) => break plan,
            avhdx::Planned::Load(load) => load.load().unwrap(),
        };
    };
    let file = bytes_of(&host, 0);
    for piece in plan.pieces() {
        let avhdx::PlannedSource::Data { at, .. } = piece.source else { panic!("{piece:?}") };
        let (start, end) = (piece.range.start as usize, piece.range.end as usize);
        let found = &file[at.get() as usize..][..end - start];
        assert!(difference(found, &expected[start..end]).is_none(), "{piece:?}");
    }
    drop(plan);
    let done = Compact::new().run(&chain).unwrap();
    assert_eq!(done.file_len, 4 * MIB + 8 * MIB, "nobody reads what is left of the past");
}

const PAGE: u64 = 4096;

/// The pages of a file of which its tables name a byte, by the naive reader.
fn named_pages(tip: &Layer, len: u64) -> Vec<bool> {
    let mut named = vec![false; len.div_ceil(PAGE) as usize];
    let mut name = |range: Range<u64>| {
        (range.start / PAGE..range.end.min(len).div_ceil(PAGE))
            .for_each(|n| named[n as usize] = true);
    };
    [0..MIB, tip.log(), tip.bat(), 2 * MIB..3 * MIB].into_iter().for_each(&mut name);
    tip.bitmaps().unwrap().into_iter().for_each(|at| name(at..at + MIB));
    let ratio = (tip.sector << 23) / tip.block_size;
    for block in 0..tip.size.div_ceil(tip.block_size) {
        let entry = tip.bat_entry(block + block / ratio).unwrap();
        if entry & 7 == 3 && entry >> 20 != 0 {
            name(entry >> 20 << 20..(entry >> 20 << 20) + tip.block_size);
        }
    }
    for sector in 0..tip.size / tip.sector {
        if let Says::Data(at) = tip.says(sector).unwrap() {
            name(at..at + tip.sector);
        }
    }
    named
}

#[test]
fn punched_images_read_the_same_and_hold_nothing_but_what_they_name() {
    let mut punched = 0;
    for seed in 0..SEEDS {
        let images = wasteful(seed);
        let tip = images.len() - 1;
        for content in [false, true] {
            let host = host_of(&images);
            let chain = open(&host, tip);
            let (before, image) = (flat(&host, tip), layer(&host, tip));
            let file = bytes_of(&host, tip);
            let compact = Compact::new().content(content).punch(true);
            let forecast = compact.forecast(&chain).unwrap();
            let done = compact.run(&chain).unwrap();
            // What a change extends the file by is a hole, but a file in memory holds data everywhere.
            let (grown, foretold) = (done.file_len - file.len() as u64, forecast.outcome);
            let least = foretold.punched.unwrap() + grown / PAGE * PAGE;
            assert!((least..least + PAGE).contains(&done.punched.unwrap()), "seed {seed}");
            assert!(done == foretold || grown > 0, "seed {seed}, content {content}");
            let mut read = vec![0xAA; before.len()];
            chain.read_at(&mut read, 0).unwrap();
            assert!(difference(&read, &before).is_none(), "seed {seed}, live");
            chain.close().unwrap();
            drop(chain);
            let (after, bytes) = (layer(&host, tip), bytes_of(&host, tip));
            assert_eq!(bytes.len() as u64, done.file_len, "seed {seed}");
            assert!(difference(&flat(&host, tip), &before).is_none(), "seed {seed}");
            assert_eq!(after.data_write_guid, image.data_write_guid, "seed {seed}");
            assert_sound(&host, tip, seed);
            let named = named_pages(&after, bytes.len() as u64);
            let mut unnamed = 0;
            for (n, named) in named.into_iter().enumerate() {
                let at = n * PAGE as usize;
                let page = &bytes[at..bytes.len().min(at + PAGE as usize)];
                if !named {
                    unnamed += page.len() as u64;
                    assert!(is_zero(page), "seed {seed}: {at:#x} is not punched");
                } else if !content {
                    let same = difference(page, &file[at..at + page.len()]).is_none();
                    assert!(same, "seed {seed}: {at:#x} has changed");
                }
            }
            assert_eq!(done.punched, Some(unnamed), "seed {seed}, content {content}");
            punched += unnamed;
        }
    }
    assert!(punched > 64 * MIB, "{punched}");
}

#[test]
fn a_fixed_disk_gives_back_what_lies_between_and_behind_its_blocks() {
    let mut image = Image::fixed(3 * MIB + 3 * 512);
    image.gap = MIB;
    let host = host_of(&[image]);
    let chain = open(&host, 0);
    let (before, file) = (flat(&host, 0), bytes_of(&host, 0));
    let both = Compact::new().punch(true).content(true);
    assert_eq!(both.run(&chain).unwrap_err().code(), "compact.fixed");
    let done = Compact::new().punch(true).run(&chain).unwrap();
    chain.close().unwrap();
    drop(chain);
    let named = named_pages(&layer(&host, 0), file.len() as u64);
    let unnamed = named.iter().filter(|named| !**named).count() as u64 * PAGE;
    assert_eq!((done.punched, done.file_len), (Some(unnamed), file.len() as u64));
    assert!(unnamed > 4 * MIB - PAGE, "{unnamed}");
    assert!(difference(&flat(&host, 0), &before).is_none());
}

#[test]
fn a_host_that_keeps_all_space_is_told_before_anything_changes() {
    let host = host_of(&wasteful(3));
    let tip = wasteful(3).len() - 1;
    let chain = open(&host, tip);
    host.keep_space();
    let files = host.files().sum();
    let error = Compact::new().content(true).punch(true).run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, "compact.punch"));
    assert!(host.files().sum() == files);
}

/// The file takes up less space on its volume, and no more than what it names.
#[cfg(target_os = "linux")]
#[test]
fn a_punched_file_takes_up_less_space() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (base, path) = (folder.path().join("base.vhdx"), folder.path().join("tip.vhdx"));
    let mut below = Image::dynamic(6 * MIB);
    below.put(0, Block::full(Data::Pattern(9)));
    let mut tip = below.new_child();
    tip.parent_path(".\\base.vhdx");
    tip.put(0, Block::full(Data::Pattern(1)));
    tip.put(2, Block::partial_runs(Data::Pattern(2), &[(8, 64), (1001, 20)]));
    tip.gap = MIB;
    std::fs::write(&base, below.to_bytes()).unwrap();
    // No holes yet, and other bytes than zeros where nothing is named.
    let mut bytes = tip.to_bytes();
    let layer = Layer::from_bytes(bytes.clone()).unwrap();
    let named = named_pages(&layer, bytes.len() as u64);
    for (page, named) in bytes.chunks_mut(PAGE as usize).zip(&named) {
        page.fill_with(|| if *named { 0 } else { 0xEE });
    }
    for (at, byte) in tip.to_bytes().into_iter().enumerate() {
        if named[at / PAGE as usize] {
            bytes[at] = byte;
        }
    }
    std::fs::write(&path, &bytes).unwrap();
    let space = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let before = space();
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    let compact = Compact::new().punch(true);
    let forecast = compact.forecast(&chain).unwrap();
    let done = compact.clone().run(&chain).unwrap();
    assert_eq!(done, forecast.outcome);
    let again = compact.run(&chain).unwrap();
    chain.close().unwrap();
    drop(chain);
    let unnamed = named.iter().filter(|named| !**named).count() as u64 * PAGE;
    assert_eq!((done.punched, again.punched), (Some(unnamed), Some(0)));
    assert!(space() <= before - unnamed, "{} of {before}, without {unnamed}", space());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes.len() as u64);
    let now = Chain::open([&base, &path]).unwrap().flat(1).unwrap();
    assert!(now == tip.flat(Some(&below.flat(None))));
}

/// The end of the session cuts what the file grew by.
#[test]
fn a_punch_in_a_session_that_has_written_ends_as_foreseen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.vhdx");
    drop(avhdx::CreateOptions::dynamic(64 * MIB).block_size(1 << 20).create(&path).unwrap());
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    chain.write_at(&vec![7; 3 << 20], 0).unwrap();
    chain.flush().unwrap();
    let compact = Compact::new().punch(true);
    let forecast = compact.forecast(&chain).unwrap();
    assert_eq!(compact.run(&chain).unwrap(), forecast.outcome);
    chain.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), forecast.outcome.file_len);
}
