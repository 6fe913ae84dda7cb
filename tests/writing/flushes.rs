//! The cost of flushes, counted on a host that records every call.
//!
//! The naive reader tells which structure each write goes to.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::sim::{Event, FOLDER, Files, SimHost, Step};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions, Zeroing};
use avhdx_testkit::naive::{Layer, Says};
use avhdx_testkit::rng::Rng;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Size in bytes of a page of the tables, a sector of the log and its descriptors, [MS-VHDX] 2.3.1.
const PAGE: u64 = 4 * KIB;

/// An image that is written on a recording host.
struct Watched {
    host: SimHost,
    tip: PathBuf,
    file: usize,
    chain: DiffChain,
}

/// What happened to the file during a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    flushes: u64,
    headers: u64,
    log: u64,
    tables: u64,
    payload: u64,
    growths: u64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Fixed,
    Dynamic,
    Child,
}

fn options(kind: Kind, size: u64, sector: u32) -> CreateOptions {
    let options = match kind {
        Kind::Fixed => CreateOptions::fixed(size),
        Kind::Dynamic | Kind::Child => CreateOptions::dynamic(size),
    };
    options.block_size(1 << 20).logical_sector(sector)
}

impl Watched {
    /// A new image; a child gets a parent with data in all of its blocks.
    fn new(kind: Kind, size: u64, sector: u32, block: u32) -> Self {
        let all: Vec<u64> = (0..size).step_by(MIB as usize).collect();
        Self::over(&all, kind, size, sector, block)
    }

    /// The same over a parent that holds data only at these offsets.
    fn over(held: &[u64], kind: Kind, size: u64, sector: u32, block: u32) -> Self {
        let host = SimHost::default();
        let path = |name: &str| Path::new(FOLDER).join(name);
        let on = || Arc::new(host.clone());
        let base = options(kind, size, sector).create_on(on(), path("base.vhdx")).unwrap();
        let mut tip = path("base.vhdx");
        if matches!(kind, Kind::Child) {
            for at in held {
                base.write_at(&[1; 8192], *at).unwrap();
            }
            base.close().unwrap();
            tip = path("child.avhdx");
            let child = CreateOptions::child_of(&base).unwrap().block_size(block);
            drop(child.create_on(on(), &tip).unwrap());
        }
        drop(base);
        let chain = OpenOptions::new().host(on()).writable(true).open(&tip).unwrap();
        let file = host.files().names[&tip];
        host.record();
        Self { host, tip, file, chain }
    }

    fn write(&self, seed: u64, at: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        Rng::new(seed).fill(&mut bytes);
        self.chain.write_at(&bytes, at).unwrap();
    }

    fn flush(&self) {
        self.chain.flush().unwrap();
    }

    /// The cost of `what`.
    fn cost(&self, what: impl FnOnce()) -> Cost {
        let (from, before) = (self.host.mark(), self.chain.counters());
        what();
        let cost = self.cost_of(from..self.host.mark());
        // The chain's own counters agree with the host's record.
        let counted = self.chain.counters().since(&before);
        assert_eq!((counted.flushes, counted.log_bytes), (cost.flushes, cost.log));
        cost
    }

    /// The cost of these events, by the present places of the structures.
    fn cost_of(&self, events: Range<usize>) -> Cost {
        let layer = self.layer();
        let (log, bitmaps) = (layer.log(), layer.bitmaps().unwrap());
        let mut cost = Cost::default();
        for event in &self.host.events()[events] {
            match event {
                Event::FlushStart(file) if *file == self.file => cost.flushes += 1,
                Event::SetLen(file, _) if *file == self.file => cost.growths += 1,
                Event::Write(file, chunk) => {
                    assert_eq!(*file, self.file, "a write to a file that is no tip");
                    let (at, end) = (chunk.at, chunk.end());
                    let in_bitmap = |block: &u64| *block < end && at < *block + MIB;
                    let place = if end <= MIB {
                        &mut cost.headers
                    } else if log.start <= at && end <= log.end {
                        &mut cost.log
                    } else if at < layer.structures_end() || bitmaps.iter().any(in_bitmap) {
                        &mut cost.tables
                    } else {
                        &mut cost.payload
                    };
                    *place += end - at;
                }
                _ => {}
            }
        }
        cost
    }

    fn layer(&self) -> Layer {
        layer(&self.host.files(), &self.tip)
    }
}

fn layer(files: &Files, path: &Path) -> Layer {
    Layer::from_source(Arc::new(files.file(path).unwrap().clone())).unwrap()
}

/// Size in bytes of a log entry that changes `pages` pages: a header of 64 bytes and descriptors of 32, in
/// whole sectors, and a sector for each page.
fn entry_len(pages: u64) -> u64 {
    (64 + 32 * pages).next_multiple_of(PAGE) + pages * PAGE
}

const ALL: [(Kind, u32); 5] = [
    (Kind::Fixed, 512),
    (Kind::Dynamic, 512),
    (Kind::Dynamic, 4096),
    (Kind::Child, 512),
    (Kind::Child, 4096),
];

#[test]
fn a_session_pays_for_what_it_changes() {
    for (kind, sector) in ALL {
        let disk = Watched::new(kind, 8 * MIB, sector, 1 << 20);
        let what = format!("{kind:?} with sectors of {sector}");
        let grows = !matches!(kind, Kind::Fixed);
        assert_eq!(disk.cost(|| disk.flush()), Cost::default(), "{what}: nothing began");

        // Write an entry that makes the log valid, and a header that names it; the other one is
        // durable with the next flush.
        let cost = disk.cost(|| disk.write(1, 64 * KIB, 4 * KIB));
        assert_eq!((cost.flushes, cost.tables, cost.payload), (2, 0, 4 * KIB), "{what}: first");
        assert_eq!((cost.headers, cost.log), (2 * PAGE, entry_len(0)), "{what}: first write");

        let cost = disk.cost(|| disk.flush());
        assert_eq!(cost.flushes, if grows { 2 } else { 1 }, "{what}: flush");
        assert_eq!((cost.headers, cost.tables, cost.payload), (0, 0, 0), "{what}: flush");
        assert_eq!(cost.log > 0, grows, "{what}: flush");
        assert_eq!(disk.cost(|| disk.flush()), Cost::default(), "{what}: nothing since");

        // Existing sectors: only payload changes. The tables wait in the log.
        let cost = disk.cost(|| disk.write(2, 64 * KIB + 100, 2 * KIB));
        assert_eq!((cost.flushes, cost.log, cost.tables, cost.growths), (0, 0, 0, 0), "{what}");
        let cost = disk.cost(|| disk.flush());
        assert_eq!((cost.flushes, cost.log, cost.headers), (1, 0, 0), "{what}: payload only");
        assert_eq!(cost.tables, 0, "{what}: payload only");
        assert_eq!(disk.cost(|| disk.flush()), Cost::default(), "{what}: nothing since");

        // A new block: in a child over data.
        disk.write(3, 5 * MIB, 4 * KIB);
        let cost = disk.cost(|| disk.flush());
        let flushes = if matches!(kind, Kind::Child) { 2 } else { 1 };
        assert_eq!(cost.flushes, flushes, "{what}: a new block");

        // Freeing blocks changes only the tables.
        let cost = disk.cost(|| disk.chain.discard(5 * MIB..6 * MIB).unwrap());
        assert_eq!((cost.flushes, cost.log, cost.tables), (0, 0, 0), "{what}: discard");
        assert_eq!(cost.payload, if grows { 0 } else { MIB }, "{what}: discard");
        let cost = disk.cost(|| disk.flush());
        assert_eq!(cost.flushes, 1, "{what}: flush of a discard");

        // Tables to their places, both headers; the file is truncated if possible.
        let len = disk.layer().log().start.max(disk.host.files().files[disk.file].len());
        let cost = disk.cost(|| disk.chain.close().unwrap());
        let was_cut = u64::from(disk.host.files().files[disk.file].len() < len);
        assert_eq!(cost.flushes, 3 + was_cut, "{what}: close");
        assert_eq!((cost.headers, cost.log), (2 * PAGE, 0), "{what}: close");
        assert_eq!(was_cut == 1, grows, "{what}: the discarded block lay at the end");
        let cost = disk.cost(|| disk.chain.close().unwrap());
        assert_eq!(cost, Cost::default(), "{what}: nothing to close");

        // A close flushes, and the next session writes its headers again.
        assert_eq!(disk.cost(|| disk.write(4, MIB, 512)).flushes, 2, "{what}: another session");
        let len = disk.host.files().files[disk.file].len();
        let cost = disk.cost(|| disk.chain.close().unwrap());
        let was_cut = u64::from(disk.host.files().files[disk.file].len() < len);
        assert_eq!(cost.flushes, if grows { 2 } else { 1 } + 3 + was_cut, "{what}: a full close");
    }
}

/// What a replay would do again stays small, and so does what is written.
#[test]
fn a_page_that_changes_with_every_flush_is_written_once_in_eight() {
    let disk = Watched::over(&[], Kind::Dynamic, 64 * MIB, 512, 1 << 20);
    let tables: Vec<u64> = (0..33)
        .map(|block| {
            disk.write(block, block * MIB, 4 * KIB);
            disk.cost(|| disk.flush()).tables
        })
        .collect();
    // The first writes begin the session, whose first entry has no page.
    for (flush, tables) in tables.iter().enumerate() {
        let is_eighth = flush > 0 && flush % 8 == 0;
        assert_eq!(*tables, if is_eighth { PAGE } else { 0 }, "flush {flush}: {tables:?}");
    }
}

#[test]
fn a_thousand_scattered_writes_are_flushed_by_two_flushes() {
    for (kind, sector) in ALL.into_iter().skip(1) {
        let disk = Watched::new(kind, 64 * MIB, sector, 2 << 20);
        let mut rng = Rng::new(5);
        let from = disk.host.mark();
        for i in 0..1000 {
            disk.write(i, rng.below(64 * MIB - 9000), rng.below(9000) + 1);
        }
        let written = from..disk.host.mark();
        let cost = disk.cost(|| disk.flush());
        assert_eq!(cost.flushes, 2, "{kind:?}, {sector}");
        // The page of the blocks' entries; in a child also bitmaps with a bit per sector, and the entry of their
        // block, which follows the entries of all blocks of the chunk.
        let pages = match kind {
            Kind::Child => 1 + (64 * MIB / u64::from(sector) / 8).div_ceil(PAGE) + 1,
            _ => 1,
        };
        assert_eq!(cost.log, entry_len(pages), "{kind:?}, {sector}");
        // The writes themselves paid only for the start of the session.
        let cost = disk.cost_of(written);
        assert_eq!((cost.flushes, cost.headers, cost.log), (2, 2 * PAGE, entry_len(0)));
        assert_eq!(cost.tables, 0);
    }
}

#[test]
fn a_commit_of_several_entries_costs_at_most_three_more_flushes_for_each() {
    let disk = Watched::over(&[0], Kind::Child, 132 * 1024 * MIB, 512, 1 << 20);
    disk.write(1, 0, 4 * KIB);
    disk.flush();
    // A page holds 512 entries; a log entry holds 252 pages.
    for page in 0..250 {
        disk.chain.discard(page * 512 * MIB + 100 * MIB..page * 512 * MIB + 101 * MIB).unwrap();
    }
    let from = disk.host.mark();
    // Two blocks without space in two chunks: two bitmap blocks and two more pages of the table.
    disk.write(2, 31 * 4096 * MIB - KIB, 2 * KIB);
    disk.flush();
    let events = from..disk.host.mark();
    let log = disk.layer().log();
    let is_entry = |event: &&Event| {
        matches!(event, Event::Write(_, chunk)
            if log.contains(&chunk.at) && chunk.data.starts_with(b"loge"))
    };
    let entries = disk.host.events()[events.clone()].iter().filter(is_entry).count() as u64;
    let flushes = disk.cost_of(events).flushes;
    assert!(entries > 1, "{entries} entries");
    // Each entry is flushed, and what it refers to before it.
    assert!((entries + 1..=2 + 3 * (entries - 1)).contains(&flushes), "{entries}: {flushes}");
}

#[test]
fn no_change_without_a_flush_costs_metadata_io() {
    for (kind, sector) in ALL {
        let disk = Watched::new(kind, 24 * MIB, sector, 1 << 20);
        let mut rng = Rng::new(6);
        disk.write(0, 0, 512);
        for round in 0..3 {
            let from = disk.host.mark();
            for i in 0..150 {
                let at = rng.below(22 * MIB);
                let block = at / MIB * MIB..at / MIB * MIB + MIB;
                match rng.below(10) {
                    0 => disk.chain.discard(block).unwrap(),
                    1 => disk.chain.write_zeroes(at..at + 70_000, Zeroing::MayUnmap).unwrap(),
                    2 => disk.chain.write_zeroes(block, Zeroing::KeepSpace).unwrap(),
                    3 => disk.write(i, block.start, MIB),
                    _ => disk.write(i, at, rng.below(20_000) + 1),
                }
            }
            let changed = from..disk.host.mark();
            // From here on the naive reader knows the new sector bitmaps.
            disk.flush();
            let cost = disk.cost_of(changed);
            let paid = (cost.flushes, cost.headers, cost.log, cost.tables);
            assert_eq!(paid, (0, 0, 0, 0), "{kind:?}, {sector}, round {round}");
            assert!(cost.payload > 0);
        }
    }
}

/// As few system calls as for a raw file: one for a contiguous range, whatever the number of blocks and
/// buffers; small buffers are gathered.
#[test]
fn what_lies_in_one_piece_is_written_at_once() {
    let disk = Watched::new(Kind::Dynamic, 16 * MIB, 512, 1 << 20);
    // In the order of the disk except for the sixth block, which comes last.
    for block in (0..16).filter(|block| *block != 5).chain([5]) {
        disk.write(block, block * MIB, MIB);
    }
    let writes = |what: &dyn Fn()| {
        let from = disk.host.mark();
        what();
        let events = disk.host.events();
        events[from..].iter().filter(|event| matches!(event, Event::Write(..))).count()
    };
    for (at, len, count) in [
        (0, 5 * MIB, 1),
        (MIB / 2, 4 * MIB, 1),
        (4 * MIB, 3 * MIB, 3),
        (0, 16 * MIB, 3),
        (6 * MIB, MIB, 1),
        // A sector at each end is read and written separately.
        (MIB - 100, MIB + 200, 3),
    ] {
        assert_eq!(writes(&|| disk.write(at, at, len)), count, "{len} bytes at {at}");
    }
    let mut bytes = vec![0; 600 << 10];
    Rng::new(9).fill(&mut bytes);
    let bufs: Vec<_> = bytes.chunks(4096).map(std::io::IoSlice::new).collect();
    assert_eq!(writes(&|| disk.chain.write_vectored_at(&bufs, MIB / 2).unwrap()), 3);
    let mut read = vec![0; bytes.len()];
    disk.chain.read_at(&mut read, MIB / 2).unwrap();
    assert!(read == bytes);
}

/// The tables as the naive reader sees them: BAT entries, and the owner of each sector.
struct Tables {
    entries: Vec<u64>,
    is_here: Vec<bool>,
}

impl Tables {
    fn of(layer: &Layer) -> Self {
        let ratio = (layer.sector << 23) / layer.block_size;
        let blocks = layer.size.div_ceil(layer.block_size);
        let entries = blocks.div_ceil(ratio) * (ratio + 1);
        let is_here = |sector| matches!(layer.says(sector).unwrap(), Says::Data(_));
        Self {
            entries: (0..entries).map(|i| layer.bat_entry(i).unwrap()).collect(),
            is_here: (0..layer.size / layer.sector).map(is_here).collect(),
        }
    }

    /// Counts the pages that differ, of the BAT and of sector bitmaps.
    fn pages_changed(&self, after: &Self) -> u64 {
        let entries = (0..self.entries.len()).filter(|i| self.entries[*i] != after.entries[*i]);
        let bits = (0..self.is_here.len()).filter(|i| self.is_here[*i] != after.is_here[*i]);
        let bat: BTreeSet<_> = entries.map(|i| i as u64 * 8 / PAGE).collect();
        let bitmaps: BTreeSet<_> = bits.map(|i| i as u64 / 8 / PAGE).collect();
        (bat.len() + bitmaps.len()) as u64
    }
}

#[test]
fn a_flush_logs_the_pages_that_changed_and_one_sector_for_their_descriptors() {
    let size = 40 * MIB;
    let disk = Watched::new(Kind::Child, size, 512, 2 << 20);
    let mut rng = Rng::new(7);
    disk.write(0, 0, 512);
    disk.flush();
    let mut before = Tables::of(&disk.layer());
    let mut seen = BTreeSet::new();
    for i in 0..100 {
        disk.write(i, rng.below(size / PAGE) * PAGE, 4 * KIB);
        let cost = disk.cost(|| disk.flush());
        let after = Tables::of(&disk.layer());
        let pages = before.pages_changed(&after);
        // At most the page of the block's entry and that of its bits.
        assert!(pages <= 2, "{pages} pages for a write");
        let expected = if pages == 0 { (0, 1) } else { (entry_len(pages), 2) };
        assert_eq!((cost.log, cost.flushes), expected, "write {i}");
        seen.insert(pages);
        before = after;
    }
    assert!(seen.contains(&1) && seen.contains(&2), "{seen:?}");
}

/// Prints figures without asserting any: `cargo test --test writing flushes figures -- --nocapture`.
#[test]
fn figures() {
    println!("4 KiB at random into a child, 64 MiB, blocks of 2 MiB; per write:");
    println!("{:>16}{:>10}{:>12}{:>12}{:>12}", "writes a flush", "flushes", "log", "tables", "all");
    for every in [1, 10, 1000] {
        let disk = Watched::new(Kind::Child, 64 * MIB, 512, 2 << 20);
        let mut rng = Rng::new(8);
        disk.write(0, 0, 512);
        disk.flush();
        let count = 1000;
        let cost = disk.cost(|| {
            for i in 0..count {
                disk.write(i, rng.below(64 * MIB / PAGE) * PAGE, 4 * KIB);
                if (i + 1) % every == 0 {
                    disk.flush();
                }
            }
        });
        let all = cost.headers + cost.log + cost.tables + cost.payload;
        println!(
            "{every:>16}{:>10.3}{:>12}{:>12}{:>12}",
            cost.flushes as f64 / count as f64,
            cost.log / count,
            cost.tables / count,
            all / count
        );
        assert!(cost.flushes <= 2 * count.div_ceil(every));
        assert_eq!(cost.payload, count * 4 * KIB, "no byte of payload is written twice");
    }
}

#[test]
fn flushes_that_wait_for_each_other_share_one_commit() {
    let disk = Watched::new(Kind::Child, 8 * MIB, 512, 1 << 20);
    disk.write(1, 0, 4 * KIB);
    disk.flush();
    disk.write(2, 64 * KIB, 4 * KIB);
    let (arrived, wait_for_arrival) = channel();
    let (release, wait_for_release) = channel::<()>();
    let wait_for_release = Mutex::new(wait_for_release);
    let count = AtomicUsize::new(0);
    disk.host.hook(move |step| {
        if matches!(step, Step::Flush(_)) && count.fetch_add(1, Ordering::SeqCst) == 0 {
            arrived.send(()).unwrap();
            let _ = wait_for_release.lock().unwrap().recv();
        }
        Ok(())
    });
    let cost = disk.cost(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| disk.flush());
            wait_for_arrival.recv().unwrap();
            // During the first commit, after its snapshot.
            for i in 0..6 {
                disk.write(3 + i, (128 + 64 * i) * KIB, 4 * KIB);
            }
            for _ in 0..6 {
                scope.spawn(|| disk.flush());
            }
            drop(release);
        });
    });
    disk.host.unhook();
    // The one that was held, and one for all the others.
    assert_eq!(cost.flushes, 4);
    assert_eq!(cost.log, 2 * entry_len(1));
    let layer = disk.layer();
    for i in 0..6 {
        assert!(matches!(layer.says((128 + 64 * i) * 2).unwrap(), Says::Data(_)));
    }
}

/// An action on a disk.
type Act = fn(&Watched);

#[test]
fn what_meets_a_flush_is_not_logged_before_its_payload_is_durable() {
    // The file has room for new blocks, so that no write waits for the flush.
    let writes: [(&str, Act, Range<u64>); 3] = [
        ("a new sector", |disk| disk.write(20, 512 * KIB, 4 * KIB), 512 * KIB..516 * KIB),
        ("a new block", |disk| disk.write(21, 46 * MIB, 4 * KIB), 46 * MIB..46 * MIB + 4 * KIB),
        ("a whole new block", |disk| disk.write(22, 47 * MIB, MIB), 47 * MIB..48 * MIB),
    ];
    for (what, write, range) in writes {
        let orders: [(Act, Act, usize); 2] =
            [(Watched::flush, write, 4), (write, Watched::flush, 1)];
        for (first, second, least) in orders {
            let mut steps = 0;
            while let Some((disk, start)) = at_step(steps, first, second) {
                disk.flush();
                disk.chain.close().unwrap();
                let logged = is_logged_in_order(&disk, start, &range, what);
                assert!(logged, "{what}: logged in the end");
                steps += 1;
            }
            assert!(steps >= least, "{what}: {steps} steps");
        }
    }
}

/// Runs `first` with `second` during one of its steps. Returns the disk and the files before it, if
/// there is such a step.
fn at_step(step: usize, first: Act, second: Act) -> Option<(Arc<Watched>, Files)> {
    let disk = Arc::new(Watched::new(Kind::Child, 48 * MIB, 512, 1 << 20));
    for block in 0..40 {
        disk.write(block, block * MIB, 4 * KIB);
    }
    disk.flush();
    disk.write(30, 64 * KIB, 4 * KIB);
    disk.write(31, 41 * MIB, 4 * KIB);
    let start = disk.host.files();
    disk.host.record();
    let steps = Arc::new(AtomicUsize::new(0));
    let (counted, inside) = (Arc::clone(&steps), Arc::downgrade(&disk));
    disk.host.hook(move |now| {
        // By design, a flush waits for a growing file.
        let is_step = !matches!(now, Step::Read { .. } | Step::SetLen { .. });
        if is_step && counted.fetch_add(1, Ordering::SeqCst) == step {
            second(&inside.upgrade().unwrap());
        }
        Ok(())
    });
    first(&disk);
    disk.host.unhook();
    (steps.load(Ordering::SeqCst) > step).then_some((disk, start))
}

/// Replays the record and asks the naive reader after each change whether the file or its log refers to
/// the sectors: from then on their payload must be durable. Returns whether they are ever referred to.
fn is_logged_in_order(disk: &Watched, mut files: Files, range: &Range<u64>, what: &str) -> bool {
    let (mut written, mut durable) = (0, 0);
    let mut flushing = None;
    let (first, last) = (range.start / 512, range.end / 512 - 1);
    for event in disk.host.events() {
        files.apply(&event);
        match &event {
            Event::Write(_, chunk) => {
                let layer = layer(&files, &disk.tip);
                let is_metadata = chunk.at < layer.structures_end()
                    || layer.bitmaps().unwrap().iter().any(|at| chunk.at / MIB * MIB == *at);
                if !is_metadata {
                    written += 1;
                }
                for sector in [first, last] {
                    if matches!(layer.says(sector).unwrap(), Says::Data(_)) {
                        assert!(durable > 0 && written == durable, "{what}: logged too early");
                        return true;
                    }
                }
            }
            Event::FlushStart(_) => flushing = Some(written),
            Event::FlushEnd(..) => durable = flushing.take().unwrap_or(durable),
            _ => {}
        }
    }
    false
}
