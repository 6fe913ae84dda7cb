//! `DiffChain::changes`, compared with the naive reader's tables and with the bytes.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use avhdx::ops::Merge;
use avhdx::storage::{LockMode, LockOutcome, Storage};
use avhdx::{
    Budget, ChangedExtent, ChangedSource, DiffChain, Disk, ErrorKind, LayerId, OpenOptions, Zeroing,
};
use avhdx_testkit::build::{
    Block, Data, Descriptor, Image, LogEntry, SECTOR, random_chain, state, write_chain,
};
use avhdx_testkit::naive::{Chain, Layer, Says, Who};
use avhdx_testkit::rng::Rng;
use uuid::Uuid;

use crate::common::deep::{BUDGETS, deep_chain};
use crate::common::disk::flat;
use crate::common::oracle::ids;
use crate::common::{MIB, in_memory, memory, open_images, open_stack};

const GUID: Uuid = Uuid::from_u128(0xc4a0_0000_0000_4000_8000_0000_0000_0001);

/// What the tables say of a sector that may have changed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Expected {
    source: Source,
    grain: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Data { layer: usize, at: u64 },
    Zero { layer: Option<usize> },
}

/// The unit in which a layer records what it has of a sector.
fn grain(layer: &Layer, sector: u64) -> u64 {
    let ratio = (layer.sector << 23) / layer.block_size;
    let block = sector * layer.sector / layer.block_size;
    let entry = layer.bat_entry(block + block / ratio).unwrap();
    if entry & 7 == 7 { layer.sector } else { layer.block_size }
}

/// What may have changed of a sector from the layer `older` to the layer `newer`, by the naive reader's tables.
fn expected(naive: &Chain, older: Option<usize>, newer: usize, sector: u64) -> Option<Expected> {
    let of_sector = naive.0[newer].sector;
    let lowest = older.map_or(0, |older| older + 1);
    let zero_before = || {
        older.is_none_or(|older| {
            sector >= naive.0[older].size / of_sector
                || matches!(naive.who(older, sector).unwrap(), Who::Zero { .. })
        })
    };
    for n in (lowest..=newer).rev() {
        let layer = &naive.0[n];
        let (source, grain) = if sector >= layer.size / of_sector {
            (Source::Zero { layer: None }, of_sector)
        } else {
            match layer.says(sector).unwrap() {
                Says::Data(at) => (Source::Data { layer: n, at }, grain(layer, sector)),
                Says::Zero => (Source::Zero { layer: Some(n) }, grain(layer, sector)),
                Says::NotHere => continue,
            }
        };
        let is_left_out = matches!(source, Source::Zero { .. }) && zero_before();
        return (!is_left_out).then_some(Expected { source, grain });
    }
    None
}

/// The items of an answer, in order and apart, as large as they can be.
fn in_order(found: Vec<ChangedExtent>, size: u64) -> Vec<ChangedExtent> {
    for extent in &found {
        assert!(extent.range.start < extent.range.end && extent.range.end <= size, "{extent:?}");
    }
    for pair in found.windows(2) {
        let [a, b] = pair else { unreachable!() };
        assert!(a.range.end <= b.range.start, "{a:?} {b:?}");
        let len = a.range.end - a.range.start;
        let continues = match (a.source, b.source) {
            (
                ChangedSource::Data { layer: x, at: Some(p) },
                ChangedSource::Data { layer: y, at: Some(q) },
            ) => x == y && p.get() + len == q.get(),
            (ChangedSource::Zero { layer: x }, ChangedSource::Zero { layer: y }) => x == y,
            _ => false,
        };
        let is_next = a.range.end == b.range.start && a.grain == b.grain;
        assert!(!(is_next && continues), "{a:?} and {b:?} are one");
    }
    found
}

/// Compares the changes between two layers, counted from the base, sector by sector. Returns how many bytes were
/// returned, and how many of them differ.
fn compare(
    chain: &DiffChain,
    naive: &Chain,
    older: Option<usize>,
    newer: usize,
    points: &[Vec<u8>],
) -> [u64; 2] {
    let ids = ids(chain);
    let view = chain.view(ids[newer]).unwrap();
    let changes = view.changes(older.map(|older| ids[older])).unwrap();
    assert_eq!(changes.size(), naive.0[newer].size);
    assert_eq!(changes.size_before(), older.map_or(0, |older| naive.0[older].size));
    let found = in_order(changes.collect::<Result<_, _>>().unwrap(), naive.0[newer].size);

    let sector = naive.0[newer].sector;
    let position = |id: LayerId| ids.iter().position(|other| *other == id).unwrap();
    let mut extents = found.iter().peekable();
    let (mut returned, mut differ) = (0, 0);
    for n in 0..naive.0[newer].size / sector {
        let bytes = n * sector..(n + 1) * sector;
        while extents.next_if(|extent| extent.range.end <= bytes.start).is_some() {}
        let extent = extents.peek().filter(|extent| extent.range.start < bytes.end);
        let actual = extent.map(|extent| {
            let holds = extent.range.start <= bytes.start && bytes.end <= extent.range.end;
            assert!(holds, "{extent:?} cuts a sector");
            let source = match extent.source {
                ChangedSource::Data { layer, at } => {
                    let at = at.unwrap().get() + bytes.start - extent.range.start;
                    Source::Data { layer: position(layer), at }
                }
                ChangedSource::Zero { layer } => Source::Zero { layer: layer.map(position) },
            };
            Expected { source, grain: u64::from(extent.grain) }
        });
        let what = || format!("sector {n} from {older:?} to {newer}");
        assert_eq!(actual, expected(naive, older, newer, n), "{}", what());

        let range = bytes.start as usize..bytes.end as usize;
        let new = &points[newer][range.clone()];
        let is_same = match older.map(|older| points[older].get(range)) {
            Some(Some(old)) => old == new,
            _ => new.iter().all(|byte| *byte == 0),
        };
        assert!(is_same || actual.is_some(), "{} differs and is left out", what());
        returned += if actual.is_some() { sector } else { 0 };
        differ += if is_same { 0 } else { sector };
    }
    [returned, differ]
}

/// Compares the changes between all pairs of these, or of some layers of a long chain.
fn compare_all(options: OpenOptions, images: &[Image]) -> [u64; 2] {
    let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
    let chain = open_images(options, images).unwrap();
    let points: Vec<Vec<u8>> = (0..images.len()).map(|n| naive.flat(n).unwrap()).collect();
    let step = images.len().div_ceil(6);
    let mut sums = [0; 2];
    for newer in (0..images.len()).rev().step_by(step) {
        let olders = (0..=newer).step_by(step).chain(newer.checked_sub(1)).map(Some);
        for older in olders.chain([None]) {
            let now = compare(&chain, &naive, older, newer, &points);
            assert!(older != Some(newer) || now == [0, 0], "a point and itself");
            sums = [sums[0] + now[0], sums[1] + now[1]];
        }
    }
    sums
}

#[test]
fn changes_are_those_that_the_tables_show() {
    for seed in 0..12 {
        let options = OpenOptions::new().budget(Budget::new(BUDGETS[seed as usize % 5]));
        let images = match seed % 2 {
            0 => random_chain(seed, 4),
            _ => deep_chain(seed, 5),
        };
        let [returned, differ] = compare_all(options, &images);
        assert!(differ > 0 && returned >= differ, "seed {seed}: {returned}, {differ}");
    }
}

#[test]
fn changes_through_64_layers_are_those_that_the_tables_show() {
    compare_all(OpenOptions::new(), &deep_chain(640, 64));
}

/// A disk that is shrunk and grown again reads zeros where the older one has data, and so does what a child
/// covers with zeros. What is zeros before and after is no change.
#[test]
fn zeros_are_changes_where_the_older_disk_has_data() {
    let mut base = Image::dynamic(6 * MIB);
    base.block_size = 1 << 20;
    base.put(1, Block::full(Data::Pattern(1))).put(4, Block::full(Data::Pattern(2)));
    let mut short = base.new_child();
    short.size = 3 * MIB;
    let mut long = short.new_child();
    long.size = 8 * MIB;
    long.put(1, Block::bare(state::ZERO)).put(2, Block::bare(state::UNMAPPED));
    long.put(3, Block::bare(state::ZERO)).put(7, Block::full(Data::Pattern(3)));
    let images = [base, short, long];
    compare_all(OpenOptions::new(), &images);

    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let ids = ids(&chain);
    let changes = |view: &DiffChain, older: usize| -> Vec<(Range<u64>, bool, u32)> {
        let found = view.changes(Some(ids[older])).unwrap().map(|change| change.unwrap());
        let all = found.map(|change| {
            (change.range, matches!(change.source, ChangedSource::Zero { .. }), change.grain)
        });
        all.collect()
    };
    let block = 1 << 20;
    let zeroed = (MIB..2 * MIB, true, block);
    let new = (7 * MIB..8 * MIB, false, block);
    // Of the base, block 4 lies behind the end of the layer between.
    assert_eq!(changes(&chain, 0), [zeroed.clone(), (4 * MIB..5 * MIB, true, 512), new.clone()]);
    assert_eq!(changes(&chain, 1), [zeroed, new]);
    // What the base has behind the end of the newer disk is gone.
    let view = chain.view(ids[1]).unwrap();
    assert_eq!(changes(&view, 0), []);
    let changes = view.changes(Some(ids[0])).unwrap();
    assert_eq!((changes.size(), changes.size_before()), (3 * MIB, 6 * MIB));
}

/// Blocks that a layer holds as a whole and sectors of others are told apart, even if they follow each other in the
/// file.
#[test]
fn whole_blocks_and_sectors_are_not_joined() {
    let mut base = Image::dynamic(6 * MIB);
    base.block_size = 1 << 20;
    let mut child = base.new_child();
    child.put(1, Block::full(Data::Pattern(1))).put(2, Block::full(Data::Pattern(2)));
    child.put(3, Block::partial_runs(Data::Pattern(3), &[(0, 2048)]));
    child.put(4, Block::partial_runs(Data::Pattern(4), &[(0, 100)]));
    let images = [base, child];
    compare_all(OpenOptions::new(), &images);
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let found = chain.changes(Some(chain.layers()[1].id)).unwrap().map(|change| change.unwrap());
    let found: Vec<_> = found.map(|change| (change.range, change.grain)).collect();
    assert_eq!(found, [(MIB..3 * MIB, 1 << 20), (3 * MIB..4 * MIB + 51_200, 512)]);
}

/// A log that is replayed in memory is a part of the tables. Bytes that it supplies have no place in the file.
#[test]
fn a_pending_log_supplies_tables_and_bytes() {
    for seed in 0..4 {
        let before = random_chain(70 + seed, 3);
        let images: Vec<Image> = before
            .iter()
            .map(|after| {
                let mut old = after.clone();
                let gone = after.blocks.keys().copied().filter(|n| (n + seed) % 2 == 0);
                for block in gone.collect::<Vec<_>>() {
                    let index = old.bat_index(block);
                    old.bat_override.insert(index, 0);
                }
                Image::dirty(&old, after, GUID, 2)
            })
            .collect();
        let chain = open_images(OpenOptions::new(), &images).unwrap();
        assert!(chain.layers().iter().all(|layer| layer.log_pending));
        compare_all(OpenOptions::new(), &images);
    }

    let mut base = Image::dynamic(8 * MIB);
    base.block_size = 1 << 20;
    let mut child = base.new_child();
    for block in 2..6 {
        child.put(block, Block::full(Data::Pattern(block)));
    }
    let place = child.layout().payload[&3];
    let over = vec![0x5A; SECTOR];
    child.log = vec![LogEntry::new(7, vec![Descriptor::data(place + 8192, over.clone())])];
    child.set_log_guid(GUID);
    let chain = open_images(OpenOptions::new(), &[base, child]).unwrap();
    for from in [None, Some(chain.layers()[1].id)] {
        let found: Vec<_> = chain.changes(from).unwrap().map(|change| change.unwrap()).collect();
        let at = |n: usize| match found[n].source {
            ChangedSource::Data { at, .. } => at.map(avhdx::FileOffset::get),
            ChangedSource::Zero { .. } => panic!("{:?}", found[n]),
        };
        let ranges: Vec<_> = found.iter().map(|change| change.range.clone()).collect();
        assert_eq!(ranges, [2 * MIB..3 * MIB, 3 * MIB..4 * MIB, 4 * MIB..6 * MIB]);
        assert_eq!([at(0), at(1), at(2)], [Some(place - MIB), None, Some(place + MIB)]);
    }
    let mut bytes = vec![0; SECTOR];
    chain.read_at(&mut bytes, 3 * MIB + 8192).unwrap();
    assert!(bytes == over);
}

/// A file whose payload must not be read.
#[derive(Debug)]
struct TablesOnly {
    file: Arc<dyn Storage>,
    payload: Vec<Range<u64>>,
    reads: AtomicU64,
}

impl Storage for TablesOnly {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let end = offset + buf.len() as u64;
        let is_met = |block: &&Range<u64>| offset < block.end && block.start < end;
        let met = self.payload.iter().find(is_met);
        assert!(met.is_none(), "{} reads {met:x?}", self.name());
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
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.file.try_lock(mode)
    }
}

/// No payload is read, and no table is looked through again for each run of a layer below.
#[test]
fn no_payload_is_read_and_no_table_twice() {
    const BLOCKS: u64 = 20_000;
    const PAGES: u64 = BLOCKS * 8 / 4096 + 1;
    let mut base = Image::dynamic(BLOCKS * MIB);
    base.block_size = 1 << 20;
    let mut middle = base.new_child();
    let mut tip = middle.new_child();
    for block in 0..BLOCKS {
        let entry = ((4 + block) * MIB) | 6;
        let index = base.bat_index(block);
        base.bat_override.insert(index, entry);
        if block % 2 == 0 {
            middle.bat_override.insert(index, entry);
        }
        if block % 5000 == 4999 {
            tip.bat_override.insert(index, entry);
        }
    }
    let files: Vec<Arc<TablesOnly>> = [base, middle, tip]
        .iter()
        .enumerate()
        .map(|(n, image)| {
            let file = memory(format!("l{n}"), image.to_bytes());
            let file: Arc<dyn Storage> = Arc::new(Extended { file, len: (10 + BLOCKS) * MIB });
            let payload = vec![4 * MIB..(10 + BLOCKS) * MIB];
            Arc::new(TablesOnly { file, payload, reads: AtomicU64::new(0) })
        })
        .collect();
    let shared: Vec<Arc<dyn Storage>> =
        files.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
    // Too little memory for more than a few pages: a second look at a run reads its pages again.
    let chain = open_stack(OpenOptions::new().budget(Budget::new(0)), &shared).unwrap();
    let reads = |n: usize| files[n].reads.load(Ordering::Relaxed);
    let before = [reads(0), reads(1), reads(2)];
    let base = chain.layers()[2].id;
    let changes = chain.changes(Some(base)).unwrap().map(|change| change.unwrap().range);
    let found: u64 = changes.map(|range| range.end - range.start).sum();
    assert_eq!(found, (BLOCKS / 2 + BLOCKS / 5000) * MIB);
    #[allow(clippy::needless_range_loop)] // the number is also that of the layer
    for n in 1..3 {
        let reads = reads(n) - before[n];
        assert!((PAGES..=3 * PAGES).contains(&reads), "{reads} reads of layer {n}");
    }
    assert_eq!(reads(0), before[0], "data need no look at the older disk");
}

/// A file that goes on with zeros.
#[derive(Debug)]
struct Extended {
    file: Arc<dyn Storage>,
    len: u64,
}

impl Storage for Extended {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.file.read_at(buf, offset)? {
            0 if offset < self.len => {
                let len = buf.len().min((self.len - offset) as usize);
                buf[..len].fill(0);
                Ok(len)
            }
            read => Ok(read),
        }
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.file.try_lock(mode)
    }
}

/// A fault in a table is an error at its place, after all that comes before it. Faults in places that the answer does
/// not depend on are none.
#[test]
fn a_fault_in_a_table_is_an_error_after_what_comes_before_it() {
    let mut base = Image::dynamic(6 * MIB);
    base.block_size = 1 << 20;
    base.put(0, Block::full(Data::Pattern(9)));
    let mut child = base.new_child();
    for block in [0, 1, 3, 4] {
        child.put(block, Block::full(Data::Pattern(block)));
    }
    for (state, code) in [(4, "bat.state"), (7, "bat.bitmap-missing")] {
        let mut image = child.clone();
        image.put(3, Block::bare(state));
        let bitmap = image.bitmap_index(0);
        image.bat_override.insert(bitmap, 0);
        let chain = open_images(OpenOptions::new(), &[base.clone(), image]).unwrap();
        let older = Some(chain.layers()[1].id);
        let mut changes = chain.changes(older).unwrap();
        assert_eq!(changes.next().unwrap().unwrap().range, 0..2 * MIB);
        let error = changes.next().unwrap().unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, code));
        assert_eq!(error.file(), Some("l1"));
        assert!(changes.next().is_none(), "it ends after the error");
    }
    // Within a range, the rest is found.
    let mut image = child.clone();
    image.put(3, Block::bare(4));
    let chain = open_images(OpenOptions::new(), &[base.clone(), image]).unwrap();
    let older = Some(chain.layers()[1].id);
    for (range, found) in [
        (4 * MIB..u64::MAX, vec![4 * MIB..5 * MIB]),
        (MIB + 77..2 * MIB + 1, vec![MIB + 77..2 * MIB]),
        (0..0, vec![]),
        (9 * MIB..10 * MIB, vec![]),
    ] {
        let changes = chain.changes(older).unwrap().within(range);
        assert_eq!(changes.map(|change| change.unwrap().range).collect::<Vec<_>>(), found);
    }
    // The older disk matters only where the newer one has zeros.
    let mut damaged = base.clone();
    damaged.put(3, Block::bare(4)).put(5, Block::bare(4));
    let chain = open_images(OpenOptions::new(), &[damaged.clone(), child.clone()]).unwrap();
    let older = Some(chain.layers()[1].id);
    assert!(chain.changes(older).unwrap().all(|change| change.is_ok()));
    child.put(5, Block::bare(state::ZERO));
    let chain = open_images(OpenOptions::new(), &[damaged, child]).unwrap();
    let older = Some(chain.layers()[1].id);
    let last = chain.changes(older).unwrap().last().unwrap().unwrap_err();
    assert_eq!((last.code(), last.file()), ("bat.state", Some("l0")));
}

#[test]
fn a_layer_that_is_not_below_is_refused() {
    let images = deep_chain(3, 3);
    let chain = open_images(OpenOptions::new(), &images).unwrap();
    let other = open_stack(OpenOptions::new(), &in_memory(&images[..1])).unwrap();
    let ids = ids(&chain);
    let view = chain.view(ids[1]).unwrap();
    for (disk, from) in [(&chain, other.tip().id()), (&view, ids[2])] {
        let error = disk.changes(Some(from)).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "chain.layer"));
    }
}

fn writable(path: &Path) -> DiffChain {
    OpenOptions::new().writable(true).open(path).unwrap()
}

/// All that was written before the call is in the answer, whatever is written meanwhile.
#[test]
fn a_tip_that_is_written_to_shows_what_was_written_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = deep_chain(11, 3);
    images.push(images[2].new_child());
    let paths = write_chain(folder.path(), &images);
    let chain = writable(&paths[3]);
    let older = chain.layers()[1].id;
    let before = flat(&chain.view(older).unwrap());
    let size = chain.geometry().size;
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(4);
            while done.load(Ordering::SeqCst) == 0 {
                // The second half.
                let at = size / 2 + rng.below(size / 2 - 4096);
                match rng.below(4) {
                    0 => chain.write_zeroes(at..at + 4096, Zeroing::MayUnmap).unwrap(),
                    1 => chain.discard(size / 2..size).unwrap(),
                    2 => chain.flush().unwrap(),
                    _ => chain.write_at(&[7; 4096], at).unwrap(),
                }
            }
        });
        let mut rng = Rng::new(5);
        for round in 0..60 {
            let at = rng.below(size / 2 - 70_000);
            let len = 1 + rng.below(70_000);
            match round % 3 {
                0 => chain.write_zeroes(at..at + len, Zeroing::MayUnmap).unwrap(),
                _ => chain.write_at(&vec![round as u8; len as usize], at).unwrap(),
            }
            let found = chain.changes(Some(older)).unwrap();
            let found = in_order(found.collect::<Result<_, _>>().unwrap(), size);
            let mut now = vec![0; size as usize / 2];
            chain.read_at(&mut now, 0).unwrap();
            let mut missing = (0..now.len()).filter(|n| now[*n] != before[*n]);
            let missing = missing.find(|n| {
                let at = *n as u64;
                !found.iter().any(|change| change.range.contains(&at))
            });
            assert_eq!(missing, None, "round {round}");
        }
        done.store(1, Ordering::SeqCst);
    });
}

/// An answer that is still being read keeps its layers from being merged.
#[test]
fn an_answer_under_way_keeps_its_points() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), &deep_chain(12, 3));
    let chain = OpenOptions::new().open(&paths[2]).unwrap();
    let layers = chain.layers();
    let changes = chain.changes(Some(layers[1].id)).unwrap();
    let merge = || Merge::new(layers[0].id).shrink(true);
    let error = merge().run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "chain.viewed"));
    assert!(changes.count() > 0);
    merge().run(&chain).unwrap();
}
