//! The counters, compared with the calls that the storages recorded.
#![allow(clippy::disallowed_methods)]

mod common;

use std::sync::Arc;

use avhdx::storage::Storage;
use avhdx::{Budget, Counters, DiffChain, Disk, DiskExt, OpenOptions, Planned, VhdxFile};
use avhdx_testkit::build::{Block, Data, Image, write_chain};

use common::{Counting, MIB, file, open_stack};

const SECTOR: u64 = 512;
/// Size of a page of the tables in bytes.
const PAGE: u64 = 4096;
/// A disk whose table fills a small budget, in blocks of 1 MiB.
const SIZE: u64 = 16 << 30;

/// Two layers: a base with a few blocks, and a child with a few sectors in each of them.
fn images() -> Vec<Image> {
    let mut base = Image::dynamic(SIZE);
    base.block_size = MIB as u32;
    let places = (0..SIZE / MIB).step_by(512);
    places.clone().for_each(|b| _ = base.put(b, Block::full(Data::Pattern(b))));
    let mut child = base.new_child();
    for b in places.take(4) {
        child.put(b, Block::partial_runs(Data::Pattern(1), &[(8, 8), (40, 8)]));
    }
    vec![base, child]
}

struct Watched {
    _folder: tempfile::TempDir,
    files: Vec<Arc<Counting>>,
    chain: DiffChain,
}

impl Watched {
    fn new(images: &[Image], budget: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths = write_chain(folder.path(), images);
        let files: Vec<_> = paths.iter().map(|path| Counting::new(file(path))).collect();
        let storages: Vec<_> =
            files.iter().map(|file| Arc::clone(file) as Arc<dyn Storage>).collect();
        let chain = open_stack(OpenOptions::new().budget(Budget::new(budget)), &storages).unwrap();
        Self { _folder: folder, files, chain }
    }

    fn bytes_read(&self) -> u64 {
        self.files.iter().map(|file| file.counts().1).sum()
    }

    /// The counts of `what`, which reads this many bytes of payload, compared with those of the files.
    fn counted(&self, payload: u64, what: impl FnOnce(&DiffChain)) -> Counters {
        let (before, read) = (self.chain.counters(), self.bytes_read());
        what(&self.chain);
        let counted = self.chain.counters().since(&before);
        assert_eq!(counted.table_loads * PAGE, self.bytes_read() - read - payload);
        assert_eq!((counted.flushes, counted.log_bytes), (0, 0), "nothing is written");
        counted
    }
}

fn read(chain: &DiffChain, at: u64) {
    chain.read_at(&mut [0; SECTOR as usize], at).unwrap();
}

#[test]
fn loads_hits_and_misses_are_those_that_happened() {
    let disk = Watched::new(&images(), 64 << 20);
    assert_eq!(disk.chain.counters(), Counters::default(), "opening looks at no table");
    // The child's entry, and the entry and bits of its bitmap; the other run of the span is known afterwards.
    let first = disk.counted(SECTOR, |chain| read(chain, 8 * SECTOR));
    assert!(first.table_loads >= 2, "{first:?}");
    assert_eq!((first.index_hits, first.index_misses, first.evictions), (0, 1, 0));
    let again = disk.counted(3 * SECTOR, |chain| {
        read(chain, 8 * SECTOR);
        read(chain, 9 * SECTOR);
        read(chain, 40 * SECTOR);
    });
    assert_eq!((again.index_hits, again.index_misses, again.table_loads), (3, 0, 0));
    // Both runs and their surroundings are looked up in the base once.
    let below = disk.counted(SECTOR, |chain| read(chain, 0));
    assert_eq!((below.index_hits, below.index_misses, below.table_loads), (0, 1, 1));
    // One question per span, whatever runs it has, also where there is no data.
    let across = disk.counted(MIB, |chain| {
        chain.read_at(&mut vec![0; 2 * MIB as usize], 0).unwrap();
    });
    assert_eq!(across.index_hits + across.index_misses, 2, "{across:?}");
    let zeros = disk.counted(0, |chain| (0..5).for_each(|_| read(chain, 7 * MIB)));
    assert_eq!((zeros.index_hits, zeros.index_misses), (4, 1));

    // Extents and plans use the same index; clones and views count towards the chain.
    let extents = disk.counted(0, |chain| _ = chain.extents(0..64 * SECTOR).count());
    assert_eq!((extents.index_hits, extents.index_misses), (5, 0));
    let planned = disk.counted(0, |chain| {
        let Planned::Ready(plan) = chain.clone().plan_read(0..SECTOR).unwrap() else { panic!() };
        assert_eq!(plan.pieces().count(), 1);
    });
    assert_eq!((planned.index_hits, planned.index_misses), (1, 0));
    let base = disk.chain.layers()[1].id;
    let view = disk.chain.view(base).unwrap();
    let of_view = disk.counted(SECTOR, |_| read(&view, 0));
    assert_eq!((of_view.index_hits, of_view.index_misses), (0, 0), "a base alone has all bytes");
    assert_eq!(view.counters().table_loads, view.image(base).unwrap().counters().table_loads);
}

#[test]
fn table_pages_read_by_others_count_too() {
    for by_caller in [false, true] {
        let disk = Watched::new(&images(), 64 << 20);
        let mut rounds = 0;
        let counted = disk.counted(0, |chain| {
            let mut planned = chain.plan_read(8 * SECTOR..9 * SECTOR).unwrap();
            while let Planned::Load(tables) = planned {
                rounds += 1;
                planned = if by_caller {
                    let mut page = vec![0; tables.len()];
                    tables.storage().read_exact_at(&mut page, tables.at().get()).unwrap();
                    tables.supply(&page).unwrap()
                } else {
                    tables.load().unwrap()
                };
            }
        });
        assert_eq!(counted.table_loads, rounds);
        assert!(rounds >= 2);
    }
}

#[test]
fn an_image_alone_counts_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_chain(folder.path(), &images()[..1]);
    let image = VhdxFile::open(&paths[0]).unwrap();
    (0..3).for_each(|_| image.read_at(&mut [0; 512], 0).unwrap());
    let counted = image.counters();
    assert_eq!((counted.table_loads, counted.index_hits, counted.index_misses), (1, 0, 0));
}

/// Every page that had been read and is gone was evicted: as many as are read again.
#[test]
fn pages_driven_out_are_those_that_are_loaded_again() {
    const BYTES: u64 = 64 << 10;
    let disk = Watched::new(&images()[..1], BYTES as usize);
    // The whole table, entry by entry: answers about the disk have no part in that.
    let pass = |chain: &DiffChain| {
        let tip = chain.tip();
        assert!(tip.extents(0..SIZE).map(Result::unwrap).count() > 0);
    };
    // An entry for each block, and for the sector bitmaps of all chunks but the last.
    let all = ((SIZE / MIB + 3) * 8).div_ceil(PAGE);
    let first = disk.counted(0, pass);
    assert_eq!(first.table_loads, all);
    let kept = all - first.evictions;
    assert!((BYTES / 2..BYTES).contains(&(kept * PAGE)), "{first:?}");
    let second = disk.counted(0, pass);
    assert_eq!(
        (second.table_loads, second.evictions),
        (all, all),
        "a page goes for each that comes"
    );
}

/// An answer that has to be found again was evicted.
#[test]
fn answers_driven_out_are_those_that_are_found_out_again() {
    const BYTES: u64 = 256 << 10;
    let budget = Budget::new(BYTES as usize);
    let folder = tempfile::tempdir().unwrap();
    let mut base = Image::dynamic(SIZE);
    base.block_size = MIB as u32;
    let paths = write_chain(folder.path(), &[base.clone(), base.new_child()]);
    let chain = OpenOptions::new().budget(budget).open(&paths[1]).unwrap();
    let spans = || (0..SIZE).step_by(MIB as usize);
    let pass = |spans: &mut dyn Iterator<Item = u64>| {
        let before = chain.counters();
        spans.for_each(|at| read(&chain, at));
        chain.counters().since(&before)
    };
    let few = [(); 2].map(|()| pass(&mut spans().take(100)));
    assert_eq!(
        few.map(|few| (few.index_hits, few.index_misses, few.evictions)),
        [(0, 100, 0), (100, 0, 0)]
    );
    let (first, second) = (pass(&mut spans().skip(100)), pass(&mut spans().skip(100)));
    let all = spans().count() as u64 - 100;
    assert_eq!((first.index_hits, first.index_misses), (0, all));
    assert_eq!(second.index_hits + second.index_misses, all);
    // Half of the budget is for answers, which take at least two words each.
    let room = BYTES / 2 / 16;
    let pages = few[0].table_loads + first.table_loads;
    assert!((all + 100 - room..=all + 100 + pages).contains(&first.evictions), "{first:?}");
    assert!(second.index_misses <= first.evictions + second.evictions, "{second:?}");
}

#[test]
fn threads_lose_no_count() {
    let disk = Watched::new(&images(), 64 << 20);
    read(&disk.chain, 0);
    let counted = disk.counted(24 * 2000 * SECTOR, |chain| {
        std::thread::scope(|scope| {
            for _ in 0..24 {
                scope.spawn(|| (0..2000).for_each(|_| read(chain, 0)));
            }
        });
    });
    assert_eq!((counted.index_hits, counted.index_misses), (24 * 2000, 0));
}
