//! `Diff`, compared with the naive reader's tables and with the bytes.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};

use avhdx::ops::{Compare, Diff, Merge};
use avhdx::storage::{FileId, LockMode, LockOutcome, MemStorage, Storage};
use avhdx::{Budget, DiffChain, Disk, ErrorKind, OpenOptions, RawDisk};
use avhdx_testkit::build::{
    Block, Data, Descriptor, Image, LogEntry, SECTOR, random_chain, state, write_chain,
};
use avhdx_testkit::naive::{Chain, Says};
use avhdx_testkit::rng::Rng;
use proptest::prelude::*;
use uuid::Uuid;

use crate::common::deep::deep_chain;
use crate::common::oracle::ids;
use crate::common::{MIB, in_memory, open_images, open_stack};

/// A file in memory that the host identifies, and that keeps the ranges which were read.
#[derive(Debug)]
struct Identified {
    file: Arc<dyn Storage>,
    id: u64,
    reads: Mutex<Vec<Range<u64>>>,
}

impl Storage for Identified {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.lock().unwrap().push(offset..offset + buf.len() as u64);
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("{} is written to", self.name())
    }
    fn flush(&self) -> io::Result<()> {
        panic!("{} is flushed", self.name())
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("{} gets another length", self.name())
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(Some(FileId::new(1, self.id.into())))
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.file.try_lock(mode)
    }
}

/// The files of these images, numbered from `first` on.
fn identified(first: u64, images: &[Image]) -> Vec<Arc<Identified>> {
    let file = |(id, file)| Arc::new(Identified { file, id, reads: Mutex::default() });
    (first..).zip(in_memory(images)).map(file).collect()
}

fn open(files: &[Arc<Identified>]) -> DiffChain {
    let files: Vec<Arc<dyn Storage>> =
        files.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
    // A budget of its own: no image is shared with other chains in memory.
    open_stack(OpenOptions::new().budget(Budget::new(1 << 20)), &files).unwrap()
}

fn ranges(a: &dyn Disk, b: &dyn Disk) -> Vec<Range<u64>> {
    in_order(Diff::new().run(a, b).unwrap().map(|range| range.unwrap()).collect())
}

fn contents(a: &dyn Disk, b: &dyn Disk) -> Vec<Range<u64>> {
    in_order(Diff::new().content(true).run(a, b).unwrap().map(|range| range.unwrap()).collect())
}

/// The ranges, which ascend and do not touch.
fn in_order(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    assert!(ranges.iter().all(|range| range.start < range.end), "{ranges:?}");
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
    ranges
}

fn sum(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// The layer of the first `of` that decides a sector of the disk, and whether it makes it zeros.
fn decided(naive: &Chain, tip: usize, sector: u64) -> (usize, bool) {
    for n in (0..=tip).rev() {
        let layer = &naive.0[n];
        if sector >= layer.size / layer.sector {
            return (n, true);
        }
        match layer.says(sector).unwrap() {
            Says::Data(_) => return (n, false),
            Says::Zero => return (n, true),
            Says::NotHere if n == 0 => return (0, true),
            Says::NotHere => {}
        }
    }
    unreachable!("the base decides")
}

/// What differs between two disks whose chains have their first `shared` layers in common.
fn expected(
    [a, b]: [(&Chain, usize); 2],
    shared: usize,
    differs: impl Fn(u64, (usize, bool), (usize, bool)) -> bool,
) -> Vec<Range<u64>> {
    let sector = a.0.0[0].sector;
    let size = |(chain, tip): (&Chain, usize)| chain.0[tip].size;
    let (common, total) = (size(a).min(size(b)), size(a).max(size(b)));
    let mut found: Vec<Range<u64>> = Vec::new();
    for n in 0..total / sector {
        let is_found = n >= common / sector || {
            let (of_a, of_b) = (decided(a.0, a.1, n), decided(b.0, b.1, n));
            let is_shared = of_a.0 < shared && of_b.0 < shared;
            !(is_shared || of_a.1 && of_b.1) && differs(n, of_a, of_b)
        };
        match found.last_mut() {
            Some(last) if is_found && last.end == n * sector => last.end += sector,
            _ if is_found => found.push(n * sector..(n + 1) * sector),
            _ => {}
        }
    }
    found
}

/// Compares the answers for two points with those of the naive reader and of the bytes.
fn compare([a, b]: [&DiffChain; 2], [of_a, of_b]: [(&Chain, usize); 2], shared: usize) -> [u64; 2] {
    let found = ranges(a, b);
    let both = [of_a, of_b];
    assert_eq!(found, expected(both, shared, |_, _, _| true), "{shared} layers shared");
    assert_eq!(ranges(b, a), found, "the other way round");

    let sector = of_a.0.0[0].sector;
    let flats = both.map(|(chain, tip)| chain.flat(tip).unwrap());
    let differ = |n: u64, _, _| {
        let bytes = (n * sector) as usize..((n + 1) * sector) as usize;
        flats[0][bytes.clone()] != flats[1][bytes]
    };
    let bytes = contents(a, b);
    assert_eq!(bytes, expected(both, 0, differ), "contents");
    assert_eq!(contents(b, a), bytes, "the other way round");

    let compared = Compare::new().run(a, b).unwrap();
    let padded = |n: usize| flats[0].get(n).unwrap_or(&0) != flats[1].get(n).unwrap_or(&0);
    let longest = flats[0].len().max(flats[1].len());
    let first = (0..longest).find(|n| padded(*n)).map(|n| n as u64);
    assert_eq!(compared.first_difference.map(|difference| difference.offset), first);
    [sum(&found), sum(&bytes)]
}

/// The images of a branch: those of a trunk, and `above` more.
fn branch(rng: &mut Rng, trunk: &[Image], above: usize) -> Vec<Image> {
    let mut images = trunk.to_vec();
    for _ in 0..above {
        let parent = images.last().unwrap();
        let mut child = parent.new_child();
        child.reseed(rng.next_u64());
        if rng.chance(1, 3) {
            let unit = u64::from(child.logical_sector);
            child.size = 2 * MIB + rng.below(6 * MIB) / unit * unit;
        }
        child.block_size = 1 << (20 + rng.below(2));
        child.scatter(rng.next_u64());
        images.push(child);
    }
    images
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two points of one chain, of two branches on one trunk, or of two chains that have nothing in common.
    #[test]
    fn differences_are_those_that_the_tables_show(
        seed: u64,
        trunk in 1_usize..4,
        above in prop::array::uniform2(0_usize..3),
        is_copied: bool,
    ) {
        let mut rng = Rng::new(seed);
        let trunk = if rng.chance(1, 2) { random_chain(seed, trunk) } else { deep_chain(seed, trunk as u64) };
        let images = above.map(|above| branch(&mut rng, &trunk, above));
        let naive = images.each_ref().map(|images| {
            Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap()
        });
        // A copy has the same identities in other files.
        let second = if is_copied { 100 } else { 0 };
        let files = [identified(0, &images[0]), identified(second, &images[1])];
        // The layers above the trunk are files of their own.
        let mut of_b = identified(50, &images[1]);
        of_b.splice(..trunk.len(), files[1][..trunk.len()].iter().cloned());
        let chains = [open(&files[0]), open(&of_b)];
        let shared = if is_copied { 0 } else { trunk.len() };
        let tips = images.each_ref().map(Vec::len);
        let others = tips.map(|layers| rng.below(layers as u64) as usize);
        for [tip_a, tip_b] in [tips.map(|layers| layers - 1), others] {
            let a = chains[0].view(ids(&chains[0])[tip_a]).unwrap();
            let b = chains[1].view(ids(&chains[1])[tip_b]).unwrap();
            let shared = shared.min(tip_a + 1).min(tip_b + 1);
            compare([&a, &b], [(&naive[0], tip_a), (&naive[1], tip_b)], shared);
        }
    }
}

/// Points of one chain are told apart without identities of files.
#[test]
fn points_of_one_chain_share_their_layers() {
    for seed in 0..4 {
        let images = deep_chain(40 + seed, 5);
        let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
        let chain = open_images(OpenOptions::new(), &images).unwrap();
        let ids = ids(&chain);
        let mut sums = [0; 2];
        for a in [0, 2, 4] {
            for b in a..5 {
                let views = [a, b].map(|n| chain.view(ids[n]).unwrap());
                let now = compare([&views[0], &views[1]], [(&naive, a), (&naive, b)], a.min(b) + 1);
                assert!(a != b || now == [0, 0], "a point and itself");
                sums = [sums[0] + now[0], sums[1] + now[1]];
            }
        }
        assert!(sums[0] >= sums[1] && sums[1] > 0, "{sums:?}");
    }
}

/// A base of 8 MiB whose blocks 0 to 3 are data, and a child: sectors of block 0 are written, with other bytes or the
/// same, block 1 is held as a whole with the bytes of the base, block 2 is zeros, and so is block 5, as in the base.
fn base_and_child() -> [Image; 2] {
    let mut base = Image::dynamic(8 * MIB);
    base.block_size = 1 << 20;
    for block in 0..4 {
        base.put(block, Block::full(Data::Pattern(7)));
    }
    let mut child = base.new_child();
    child.put(0, Block::partial_runs(Data::Pattern(8), &[(1, 2), (5, 1)]));
    child.put(1, Block::full(Data::Pattern(7)));
    child.put(2, Block::bare(state::ZERO));
    child.put(5, Block::bare(state::UNMAPPED));
    [base, child]
}

const WRITTEN: [Range<u64>; 3] = [512..1536, 2560..3072, MIB..3 * MIB];

#[test]
fn what_was_written_is_listed_to_the_sector_and_zeros_over_zeros_are_not() {
    let images = base_and_child();
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let base = chain.view(chain.layers()[1].id).unwrap();
    assert_eq!(ranges(&base, &chain), WRITTEN);
    // A block that was written as it was before has the same bytes.
    let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
    let [_, bytes] = compare([&base, &chain], [(&naive, 0), (&naive, 1)], 1);
    assert_eq!(bytes, 1024 + 512 + MIB);
    assert_eq!(contents(&base, &chain), [512..1536, 2560..3072, 2 * MIB..3 * MIB]);
}

/// Two branches that wrote to the same place, and one of them to another.
#[test]
fn branches_differ_where_either_has_written() {
    let [base, one] = base_and_child();
    let mut other = base.new_child();
    other.reseed(99);
    other.put(0, Block::partial_runs(Data::Pattern(8), &[(1, 1), (9, 1)]));
    other.put(7, Block::full(Data::Pattern(9)));
    let trunk = identified(0, &[base]);
    let open_over = |first: u64, image: Image| {
        let mut files = trunk.clone();
        files.extend(identified(first, &[image]));
        open(&files)
    };
    let (one, other) = (open_over(1, one), open_over(2, other));
    let all = [512..1536, 2560..3072, 4608..5120, MIB..3 * MIB, 7 * MIB..8 * MIB];
    assert_eq!(ranges(&one, &other), all);
    assert!(Diff::new().run(&one, &other).unwrap().has_common_layers());
    // Both wrote the same bytes to sector 1.
    let bytes = [1024..1536, 2560..3072, 4608..5120, 2 * MIB..3 * MIB, 7 * MIB..8 * MIB];
    assert_eq!(contents(&one, &other), bytes);
}

/// Another disk, and a chain as seen through its tip alone, are compared by their extents.
#[test]
fn disks_without_common_layers_differ_in_all_that_is_data() {
    let images = base_and_child();
    let [a, b] = [0, 10].map(|first| open(&identified(first, &images[..1])));
    assert_eq!(ranges(&a, &b), [0..4 * MIB]);
    assert!(!Diff::new().run(&a, &b).unwrap().has_common_layers());
    assert_eq!(contents(&a, &b), []);
    let mut bytes = images[0].flat(None);
    bytes[3 * MIB as usize - 1] ^= 1;
    bytes.truncate(6 * MIB as usize + 100);
    bytes.extend([0; 200]);
    let raw = RawDisk::new(Arc::new(MemStorage::new(bytes))).unwrap();
    let last = 6 * MIB + 300..8 * MIB;
    assert_eq!(contents(&a, &raw), [3 * MIB - 512..3 * MIB, last.clone()]);
    let found = ranges(&raw, &a);
    assert!(found[0].start == 0 && found.last().unwrap().end == last.end, "{found:?}");
}

/// What one disk has past the end of the other differs, whatever it is, and is not read.
#[test]
fn what_is_past_the_end_of_a_disk_differs() {
    let [base, mut child] = base_and_child();
    for (size, rest) in [(3 * MIB, 3 * MIB..8 * MIB), (9 * MIB, 8 * MIB..9 * MIB)] {
        child.size = size;
        child.blocks.retain(|block, _| *block < size / MIB);
        let files = identified(0, &[base.clone(), child.clone()]);
        let chain = open(&files);
        let view = chain.view(chain.layers()[1].id).unwrap();
        let mut all = WRITTEN.to_vec();
        match all.last_mut() {
            Some(last) if last.end == rest.start => last.end = rest.end,
            _ => all.push(rest.clone()),
        }
        assert_eq!(ranges(&view, &chain), all);
        assert_eq!(ranges(&chain, &view), all);
        assert_eq!(contents(&chain, &view).last().unwrap().end, rest.end);
    }
}

/// No payload is read for what the tables tell, and for contents nothing but what may differ.
#[test]
fn only_what_may_differ_is_read() {
    let images = base_and_child();
    let payload: Vec<Vec<Range<u64>>> = images
        .iter()
        .map(|image| image.layout().payload.values().map(|at| *at..*at + MIB).collect())
        .collect();
    let read = |content: bool| -> Vec<u64> {
        let files = identified(0, &images);
        let chain = open(&files);
        let view = chain.view(chain.layers()[1].id).unwrap();
        let found = Diff::new().content(content).run(&view, &chain).unwrap();
        assert!(found.filter(|range| range.is_ok()).count() == 3);
        let of_payload = |(file, payload): (&Arc<Identified>, &Vec<Range<u64>>)| {
            let reads = file.reads.lock().unwrap();
            let met = reads.iter().filter(|read| {
                payload.iter().any(|block| read.start < block.end && block.start < read.end)
            });
            met.map(|read| read.end - read.start).sum()
        };
        files.iter().zip(&payload).map(of_payload).collect()
    };
    assert_eq!(read(false), [0, 0]);
    // Sectors of block 0, block 1 of both, and block 2 of the base alone.
    assert_eq!(read(true), [1536 + 2 * MIB, 1536 + MIB]);

    // What two chains share is not read to compare them, however they were opened.
    let (a, b) = (identified(0, &images), identified(0, &images));
    assert!(Compare::new().run(&open(&a), &open(&b)).unwrap().first_difference.is_none());
    for (files, payload) in [&a, &b].into_iter().flat_map(|files| files.iter().zip(&payload)) {
        let reads = files.reads.lock().unwrap();
        let is_met = |read: &Range<u64>| payload.iter().any(|block| block.contains(&read.start));
        assert!(!reads.iter().any(is_met), "{}", files.name());
    }
}

/// A log that is replayed in memory is a part of the tables, and a layer with one is shared by what replays it.
#[test]
fn a_pending_log_supplies_tables_and_bytes() {
    for seed in 0..4 {
        let before = random_chain(170 + seed, 3);
        let images: Vec<Image> = before
            .iter()
            .map(|after| {
                let mut old = after.clone();
                for block in after.blocks.keys().filter(|n| (*n + seed) % 2 == 0) {
                    let index = old.bat_index(*block);
                    old.bat_override.insert(index, 0);
                }
                Image::dirty(&old, after, Uuid::from_u128(5), 2)
            })
            .collect();
        let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
        let (a, b) = (open(&identified(0, &images)), open(&identified(0, &images)));
        for older in 0..3 {
            let view = a.view(ids(&a)[older]).unwrap();
            compare([&view, &b], [(&naive, older), (&naive, 2)], older + 1);
        }
    }
    let [base, mut child] = base_and_child();
    let place = child.layout().payload[&1];
    child.log = vec![LogEntry::new(7, vec![Descriptor::data(place + 8192, vec![0x5A; SECTOR])])];
    child.set_log_guid(Uuid::from_u128(5));
    let images = [base, child];
    let chain = open(&identified(0, &images));
    let base = chain.view(chain.layers()[1].id).unwrap();
    assert_eq!(ranges(&base, &chain), WRITTEN);
    assert!(contents(&base, &chain).contains(&(MIB + 8192..MIB + 8192 + SECTOR as u64)));
}

/// A fault is an error at its place, after all that comes before it. Faults in what both share are none.
#[test]
fn a_fault_is_an_error_after_what_comes_before_it() {
    let [mut base, mut child] = base_and_child();
    child.put(6, Block::bare(4));
    let chain = open_images(OpenOptions::new(), &[base.clone(), child.clone()]).unwrap();
    let view = chain.view(chain.layers()[1].id).unwrap();
    for content in [false, true] {
        let mut found = Diff::new().content(content).run(&view, &chain).unwrap();
        let all: Vec<_> = found.by_ref().take(3).map(|range| range.unwrap()).collect();
        assert_eq!(all.last().unwrap().end, 3 * MIB);
        let error = found.next().unwrap().unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "bat.state"));
        assert_eq!(error.file(), Some("l1"));
        assert!(found.next().is_none(), "it ends after the error");
    }
    child.blocks.remove(&6);
    base.put(6, Block::bare(4));
    let chain = open_images(OpenOptions::new(), &[base.clone(), child.clone()]).unwrap();
    let view = chain.view(chain.layers()[1].id).unwrap();
    assert_eq!(ranges(&view, &chain), WRITTEN);
    assert_eq!(contents(&view, &chain).len(), 3);
    // It matters where one of the two shows zeros over it.
    child.put(6, Block::bare(state::ZERO));
    let chain = open_images(OpenOptions::new(), &[base, child]).unwrap();
    let view = chain.view(chain.layers()[1].id).unwrap();
    let last = Diff::new().run(&view, &chain).unwrap().last().unwrap().unwrap_err();
    assert_eq!((last.code(), last.file()), ("bat.state", Some("l0")));
}

#[test]
fn it_reports_how_far_it_is_and_stops_when_asked_to() {
    let images = base_and_child();
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let view = chain.view(chain.layers()[1].id).unwrap();
    for content in [false, true] {
        let mut reports = Vec::new();
        let diff = Diff::new().content(content).on_progress(|now| {
            reports.push((now.done, now.total));
            ControlFlow::Continue(())
        });
        assert_eq!(diff.run(&view, &chain).unwrap().count(), 3);
        assert!(reports.is_sorted() && reports.iter().all(|(_, total)| *total == 8 * MIB));
        assert_eq!((reports[0].0, reports.last().unwrap().0), (0, 8 * MIB));

        let diff = Diff::new().content(content).on_progress(|now| match now.done {
            0..MIB => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
        let found: Vec<_> = diff.run(&view, &chain).unwrap().collect();
        let (last, found) = found.split_last().unwrap();
        let found: Vec<_> = found.iter().map(|range| range.as_ref().unwrap().clone()).collect();
        assert_eq!(found, WRITTEN[..2], "what was found before is returned");
        assert_eq!(last.as_ref().unwrap_err().kind(), ErrorKind::Cancelled);
    }
}

/// It holds on to the layers: a merge would change what the older point shows.
#[test]
fn no_layer_is_merged_away_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let [base, child] = base_and_child();
    let tip = child.new_child();
    let paths = write_chain(folder.path(), &[base, child, tip]);
    let chain = OpenOptions::new().writable(true).open(&paths[2]).unwrap();
    let (middle, base) = (chain.layers()[1].id, chain.layers()[2].id);
    let view = chain.view(base).unwrap();
    let other = chain.clone();
    let mut found = Diff::new().run(&view, &chain).unwrap();
    assert_eq!(found.next().unwrap().unwrap(), WRITTEN[0]);
    let error = Merge::new(middle).run(&other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    assert_eq!(found.map(|range| range.unwrap()).collect::<Vec<_>>(), WRITTEN[1..]);
    drop(view);
    Merge::new(middle).run(&other).unwrap();
}

/// A tip that is written to is not taken for the same file as seen by others before.
#[test]
fn what_a_writer_has_in_memory_differs_from_the_point_below() {
    let folder = tempfile::tempdir().unwrap();
    let [base, child] = base_and_child();
    let tip = child.new_child();
    let paths = write_chain(folder.path(), &[base, child, tip]);
    let chain = OpenOptions::new().writable(true).open(&paths[2]).unwrap();
    let below = DiffChain::open(&paths[1]).unwrap();
    assert_eq!(ranges(&below, &chain), []);
    chain.write_at(&[3; 100], 5 * MIB + 77).unwrap();
    assert_eq!(ranges(&below, &chain), [5 * MIB..5 * MIB + 512]);
    assert_eq!(ranges(&chain, &chain), []);
}

#[test]
fn sectors_between_those_that_differ_are_not_listed() {
    let disk = |others: &[usize]| {
        let mut bytes = vec![7; 16384];
        others.iter().for_each(|at| bytes[*at] = 8);
        avhdx::RawDisk::new(Arc::new(avhdx::storage::MemStorage::new(bytes))).unwrap()
    };
    let (a, b) = (disk(&[]), disk(&[600, 1600, 5000]));
    assert_eq!(contents(&a, &b), [512..1024, 1536..2048, 4608..5120]);
}
