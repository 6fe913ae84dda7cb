//! Four writers, four readers and two readers with plans, all at once.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::storage::LocalHost;
use avhdx::{DiffChain, Disk, ReadPlan, Zeroing};
use avhdx_testkit::rng::Rng;

use crate::sim::{FOLDER, SimHost};
use crate::tags::{self, PARENT, Says};
use crate::{MIB, Pair, SECTOR, flat};

const WRITERS: u64 = 4;
const READERS: u64 = 4;
/// How many turns each writer takes.
const TURNS: u64 = 300;
/// How many consecutive sectors one writer owns where several share a block.
const RUN: u64 = 8;
const BLOCK: u64 = MIB / SECTOR;

/// In blocks: runs owned by each writer, sectors that anybody writes, blocks owned by one
/// writer, and blocks that nobody touches.
const SHARED: Range<u64> = 0..6;
const CONTENDED: Range<u64> = 6..12;
const PRIVATE: Range<u64> = 12..20;
const SIZE: u64 = 24 * MIB;

/// Who may have written a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    One(u64),
    Any,
    Nobody,
}

fn owner(sector: u64) -> Owner {
    let block = sector / BLOCK;
    if SHARED.contains(&block) {
        Owner::One(sector / RUN % WRITERS)
    } else if CONTENDED.contains(&block) {
        Owner::Any
    } else if PRIVATE.contains(&block) {
        Owner::One((block - PRIVATE.start) / 2)
    } else {
        Owner::Nobody
    }
}

/// Whether the sector may be zeroed: of the runs in shared blocks every other one never is, so that zeros
/// there reveal bytes that were lost or exposed too early.
fn may_be_zero(sector: u64) -> bool {
    match owner(sector) {
        Owner::Nobody => false,
        _ if SHARED.contains(&(sector / BLOCK)) => sector / RUN / WRITERS % 2 == 1,
        _ => true,
    }
}

/// How reads are judged.
#[derive(Clone, Copy)]
struct Rules {
    /// Whether the system may show a sector that is being written half old and half new.
    may_tear: bool,
}

/// A writer and the expected contents of its own sectors.
struct Writer<'a> {
    me: u64,
    chain: &'a DiffChain,
    rng: Rng,
    turn: u64,
    last: HashMap<u64, Says>,
}

impl Writer<'_> {
    fn run(mut self) -> HashMap<u64, Says> {
        for turn in 1..=TURNS {
            self.turn = turn;
            match self.rng.below(20) {
                0..9 => self.own_run(),
                9 => self.chain.flush().unwrap(),
                10..14 => self.contended(),
                _ => self.private(),
            }
            self.look();
        }
        self.last
    }

    /// Writes sectors of its own run in a block that others write too.
    fn own_run(&mut self) {
        let runs = (SHARED.end - SHARED.start) * BLOCK / RUN / WRITERS;
        let start = (self.rng.below(runs) * WRITERS + self.me) * RUN;
        let first = start + self.rng.below(RUN);
        let sectors = first..first + 1 + self.rng.below(start + RUN - first);
        match self.rng.below(4) {
            0 if may_be_zero(start) => self.zero(sectors, Zeroing::MayUnmap),
            1 if may_be_zero(start) => self.zero(sectors, Zeroing::KeepSpace),
            _ => {
                self.write(sectors.clone());
                // Writes part of a sector again, with the same bytes.
                let tag = tags::run(self.me, self.turn, sectors.start..sectors.start + 1);
                let (from, len) = (self.rng.below(400) as usize, self.rng.below(100) as usize + 1);
                let at = sectors.start * SECTOR + from as u64;
                self.chain.write_at(&tag[from..from + len], at).unwrap();
            }
        }
    }

    /// Writes sectors that everybody writes.
    fn contended(&mut self) {
        let (start, end) = (CONTENDED.start * BLOCK, CONTENDED.end * BLOCK);
        let first = start + self.rng.below(end - start);
        let sectors = first..(first + 1 + self.rng.below(100)).min(end);
        let block = first / BLOCK * MIB..(first / BLOCK + 1) * MIB;
        match self.rng.below(8) {
            0 | 1 => self.chain.discard(block).unwrap(),
            2 => {
                let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
                self.chain.write_zeroes(bytes, Zeroing::MayUnmap).unwrap();
            }
            _ => {
                let bytes = tags::run(self.me, self.turn, sectors);
                self.chain.write_at(&bytes, first * SECTOR).unwrap();
            }
        }
    }

    /// Allocates and frees blocks of its own.
    fn private(&mut self) {
        let first = (PRIVATE.start + 2 * self.me + self.rng.below(2)) * BLOCK;
        let part = first + self.rng.below(BLOCK);
        let part = part..(part + 1 + self.rng.below(64)).min(first + BLOCK);
        match self.rng.below(8) {
            0..3 => self.zero(first..first + BLOCK, Zeroing::MayUnmap),
            3 => self.zero(first..first + BLOCK, Zeroing::KeepSpace),
            4 => self.write(first..first + BLOCK),
            _ => self.write(part),
        }
    }

    fn write(&mut self, sectors: Range<u64>) {
        let bytes = tags::run(self.me, self.turn, sectors.clone());
        self.chain.write_at(&bytes, sectors.start * SECTOR).unwrap();
        for sector in sectors {
            self.last.insert(sector, Says::Tag { writer: self.me, turn: self.turn, sector });
        }
    }

    fn zero(&mut self, sectors: Range<u64>, how: Zeroing) {
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        self.chain.write_zeroes(bytes, how).unwrap();
        for sector in sectors {
            self.last.insert(sector, Says::Zero);
        }
    }

    /// Reads some of its own sectors, which nobody else writes.
    fn look(&mut self) {
        let Some(sector) = self.last.keys().nth(self.rng.below(16) as usize).copied() else {
            return;
        };
        let mut bytes = [0; SECTOR as usize];
        self.chain.read_at(&mut bytes, sector * SECTOR).unwrap();
        assert_eq!(tags::says(&bytes), self.last[&sector], "sector {sector} as its writer sees it");
    }
}

/// A reader, and the newest turn that it saw in each sector of one writer.
struct Reader<'a> {
    chain: &'a DiffChain,
    rng: Rng,
    rules: Rules,
    newest: HashMap<u64, u64>,
}

impl Reader<'_> {
    fn run(mut self, done: &AtomicBool) -> u64 {
        let mut read = 0;
        while !done.load(Ordering::SeqCst) {
            let first = self.rng.below(SIZE / SECTOR);
            let end = (first + 1 + self.rng.below(200)).min(SIZE / SECTOR);
            let mut bytes = vec![0xAA; ((end - first) * SECTOR) as usize];
            self.chain.read_at(&mut bytes, first * SECTOR).unwrap();
            for (sector, bytes) in (first..end).zip(bytes.chunks_mut(SECTOR as usize)) {
                self.judge(sector, bytes);
            }
            read += 1;
        }
        read
    }

    fn judge(&mut self, sector: u64, bytes: &mut [u8]) {
        let mut found = tags::says(bytes);
        for _ in 0..1000 {
            if found != Says::Torn || !self.rules.may_tear {
                break;
            }
            self.chain.read_at(bytes, sector * SECTOR).unwrap();
            found = tags::says(bytes);
        }
        assert!(is_right(sector, found), "sector {sector}, {:?}: {found:?}", owner(sector));
        // A sector with one writer never goes back in time.
        let Owner::One(_) = owner(sector) else { return };
        let turn = match found {
            Says::Tag { writer: PARENT, .. } => 0,
            Says::Tag { turn, .. } => turn,
            Says::Zero | Says::Torn => return,
        };
        let newest = self.newest.entry(sector).or_default();
        assert!(turn >= *newest, "sector {sector} went back from turn {newest} to {turn}");
        *newest = turn;
    }
}

/// A reader that makes several plans and executes them later.
struct Planner<'a> {
    chain: &'a DiffChain,
    rng: Rng,
    rules: Rules,
}

impl Planner<'_> {
    fn run(mut self, done: &AtomicBool) -> u64 {
        let mut plans = VecDeque::new();
        let mut read = 0;
        while !done.load(Ordering::SeqCst) {
            let first = self.rng.below(SIZE / SECTOR);
            let end = (first + 1 + self.rng.below(400)).min(SIZE / SECTOR);
            plans.push_back((first, crate::plans::plan(self.chain, first, end - first)));
            while plans.len() as u64 > self.rng.below(24) {
                let Some((first, plan)) = plans.pop_front() else { break };
                self.judge(first, &plan);
                read += 1;
            }
        }
        plans.into_iter().for_each(|(first, plan)| self.judge(first, &plan));
        read
    }

    fn judge(&self, first: u64, plan: &ReadPlan) {
        let range = plan.range();
        let mut bytes = vec![0xAA; (range.end - range.start) as usize];
        for _ in 0..1000 {
            plan.read(&mut bytes).unwrap();
            let is_torn = bytes.chunks(SECTOR as usize).any(|b| tags::says(b) == Says::Torn);
            if !is_torn || !self.rules.may_tear {
                break;
            }
        }
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
            let found = tags::says(bytes);
            assert!(is_right(sector, found), "a plan: sector {sector}: {found:?}");
        }
    }
}

/// Whether the sector may hold this tag at all.
fn is_right(sector: u64, found: Says) -> bool {
    match (found, owner(sector)) {
        (Says::Torn, _) => false,
        (Says::Zero, _) => may_be_zero(sector),
        (Says::Tag { sector: at, .. }, _) if at != sector => false,
        (Says::Tag { writer: PARENT, .. }, _) => true,
        (Says::Tag { writer, .. }, Owner::One(owner)) => writer == owner,
        (Says::Tag { writer, turn, .. }, Owner::Any) => writer < WRITERS && turn <= TURNS,
        (Says::Tag { .. }, Owner::Nobody) => false,
    }
}

fn storm(pair: &Pair, budget: usize, rules: Rules) {
    let chain = pair.open(true, budget);
    let done = AtomicBool::new(false);
    let last: HashMap<u64, Says> = std::thread::scope(|scope| {
        let writers = (0..WRITERS).map(|me| {
            let rng = Rng::new(me + budget as u64);
            let writer = Writer { me, chain: &chain, rng, turn: 0, last: HashMap::new() };
            scope.spawn(|| writer.run())
        });
        let writers: Vec<_> = writers.collect();
        let readers = (0..READERS).map(|me| {
            let rng = Rng::new(1000 + me);
            let reader = Reader { chain: &chain, rng, rules, newest: HashMap::new() };
            scope.spawn(|| reader.run(&done))
        });
        let readers: Vec<_> = readers.collect();
        let planners = [2000, 2001].map(|seed| {
            let planner = Planner { chain: &chain, rng: Rng::new(seed), rules };
            scope.spawn(|| planner.run(&done))
        });
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        // Readers stop even if a writer failed.
        done.store(true, Ordering::SeqCst);
        let read: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        let planned: u64 = planners.into_iter().map(|planner| planner.join().unwrap()).sum();
        assert!(read > 0 && planned > 0);
        ended.into_iter().flat_map(|last| last.unwrap()).collect()
    });
    let bytes = flat(&chain);
    for (sector, bytes) in bytes.chunks(SECTOR as usize).enumerate() {
        let (sector, found) = (sector as u64, tags::says(bytes));
        assert!(is_right(sector, found), "at last, sector {sector}: {found:?}");
        let untouched = Says::Tag { writer: PARENT, turn: 0, sector };
        if owner(sector) != Owner::Any {
            assert_eq!(found, *last.get(&sector).unwrap_or(&untouched), "at last");
        }
    }
    chain.close().unwrap();
    assert!(flat(&chain) == bytes, "after the close");
    drop(chain);
    assert!(flat(&pair.open(false, budget)) == bytes, "opened again");
    assert!(pair.judge() == bytes, "by the naive reader");
}

#[test]
fn no_reader_sees_a_torn_or_a_foreign_sector() {
    for budget in [0, 2 << 10, 64 << 20] {
        let pair = Pair::new(Arc::new(SimHost::default()), Path::new(FOLDER), SIZE);
        storm(&pair, budget, Rules { may_tear: false });
    }
}

#[test]
fn no_reader_of_real_files_sees_a_foreign_sector() {
    let folder = tempfile::tempdir().unwrap();
    let pair = Pair::new(Arc::new(LocalHost), folder.path(), SIZE);
    storm(&pair, 64 << 20, Rules { may_tear: true });
}

#[test]
fn parts_of_one_sector_by_many_writers_are_all_kept() {
    let pair = Pair::new(Arc::new(SimHost::default()), Path::new(FOLDER), 4 * MIB);
    let chain = pair.open(true, 0);
    const PART: u64 = SECTOR / WRITERS;
    // Within a block that is allocated meanwhile, and across the boundary to the next.
    let sectors = MIB / SECTOR - 12..MIB / SECTOR + 12;
    std::thread::scope(|scope| {
        for me in 0..WRITERS {
            let (chain, sectors) = (&chain, sectors.clone());
            scope.spawn(move || {
                for turn in 0..20 {
                    for sector in sectors.clone() {
                        let part = [(turn * WRITERS + me) as u8; PART as usize];
                        chain.write_at(&part, sector * SECTOR + me * PART).unwrap();
                    }
                }
            });
        }
    });
    let bytes = flat(&chain);
    for sector in sectors {
        for me in 0..WRITERS {
            let part = &bytes[(sector * SECTOR + me * PART) as usize..][..PART as usize];
            assert_eq!(part, [(19 * WRITERS + me) as u8; PART as usize], "sector {sector}");
        }
    }
    chain.close().unwrap();
    drop(chain);
    assert!(pair.judge() == bytes);
}
