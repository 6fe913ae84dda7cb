//! A caller that has many writes planned and in flight, and does everything else in between. All by chance.

use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::Checkpoint;
use avhdx::storage::Storage;
use avhdx::{
    CreateOptions, DiffChain, Disk, Error, ErrorKind, FlushInFlight, OneFlush, PlannedFlush,
    PlannedWrite, WriteInFlight, WritePlan, Zeroing,
};
use avhdx_testkit::naive::Layer;
use avhdx_testkit::rng::{self, Rng};

use crate::model::Model;
use crate::sim::{Bytes, Event, FOLDER, SimHost};
use crate::{MIB, verdict};

const SECTOR: u64 = 512;
const BLOCKS: u64 = 6;
const MOST_OPEN: usize = 12;

thread_local! {
    static AT_ONCE: Cell<bool> = const { Cell::new(false) };
}

/// Does something that must touch no file.
pub fn at_once<T>(work: impl FnOnce() -> T) -> T {
    AT_ONCE.set(true);
    let done = work();
    AT_ONCE.set(false);
    done
}

/// Has the host panic where a file is touched [at once](at_once).
pub fn watch(host: &SimHost) {
    host.hook(|step| {
        assert!(!AT_ONCE.get(), "{step:?} where nothing may block");
        Ok(())
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A dynamic disk.
    Base,
    /// A child over data.
    Child,
}

pub struct Caller {
    pub host: SimHost,
    pub tip: PathBuf,
    kind: Kind,
    seed: u64,
    chain: Option<DiffChain>,
    parents: Vec<Layer>,
    model: Model,
    rng: Rng,
    planned: Vec<Planned>,
    flights: Vec<Flight>,
    flushing: Option<Flushing>,
    /// Steps of plans that were dropped in flight.
    late: Vec<Step>,
    lost: Vec<Range<u64>>,
    patterns: u64,
}

/// A plan counts as a write in progress from its making.
struct Planned {
    plan: WritePlan,
    write: usize,
    bytes: Vec<u8>,
}

struct Flight {
    flight: WriteInFlight,
    write: usize,
    left: Vec<Step>,
}

struct Flushing {
    flight: FlushInFlight,
    /// When it was planned.
    begun: usize,
    left: Vec<Step>,
}

struct Step {
    storage: Arc<dyn Storage>,
    at: u64,
    bytes: Vec<u8>,
}

/// What is needed to judge a history.
pub struct Recorded {
    pub tip: PathBuf,
    pub parents: Vec<Layer>,
    pub model: Model,
    pub events: Vec<Event>,
}

impl Caller {
    pub fn new(kind: Kind, seed: u64) -> Self {
        let host = SimHost::default();
        let on = || Arc::new(host.clone());
        let mut rng = Rng::new(seed);
        let size = BLOCKS * MIB - [0, 0, 5 * SECTOR][rng.below(3) as usize];
        let mut disk = Bytes::default();
        let mut patterns = 0;
        let mut fill = |chain: &DiffChain, rng: &mut Rng, blocks: &[u64]| {
            for block in blocks {
                patterns += 1;
                let whole = rng.chance(1, 2);
                let at = block * MIB + if whole { 0 } else { rng.below(100) * SECTOR };
                let len = if whole { MIB } else { 8 * SECTOR }.min(size - at);
                let bytes = pattern(patterns, at, len);
                chain.write_at(&bytes, at).unwrap();
                disk.write(at, &bytes);
            }
        };
        let mut tip = Path::new(FOLDER).join("base.vhdx");
        let options = CreateOptions::dynamic(size).block_size(1 << 20);
        drop(options.create_on(on(), &tip).unwrap());
        let mut parents = Vec::new();
        // In some, the file grows by little, and freed space is used again soon.
        let when = [OneFlush::ByHost, OneFlush::Never][seed as usize % 2];
        let open =
            |tip: &Path| verdict::options(&host).writable(true).one_flush(when).open(tip).unwrap();
        let chain = open(&tip);
        fill(&chain, &mut rng, &[1, 3, 5]);
        chain.close().unwrap();
        drop(chain);
        if kind == Kind::Child {
            parents.push(verdict::layer(&host.files(), &tip).unwrap());
            let parent = verdict::open(&host, &tip, false).unwrap();
            tip = Path::new(FOLDER).join("child.avhdx");
            let child = CreateOptions::child_of(&parent.tip()).unwrap().block_size(1 << 20);
            drop(child.create_on(on(), &tip).unwrap());
            drop(parent);
            let chain = open(&tip);
            fill(&chain, &mut rng, &[2, 3]);
            chain.close().unwrap();
        }
        let mut model = Model::new(disk, size, MIB);
        model.watch(0..size);
        watch(&host);
        host.record();
        let chain = open(&tip);
        model.opened(0, chain.tip().data_write_guid());
        let (planned, flights, flushing, late, lost) = Default::default();
        let chain = Some(chain);
        Self {
            host,
            tip,
            kind,
            seed,
            chain,
            parents,
            model,
            rng,
            planned,
            flights,
            flushing,
            late,
            lost,
            patterns: 100,
        }
    }

    pub fn chain(&self) -> &DiffChain {
        self.chain.as_ref().unwrap()
    }

    pub fn size(&self) -> u64 {
        self.model.size
    }

    /// Does one thing.
    pub fn act(&mut self) {
        match self.rng.below(46) {
            0..11 => self.plan(),
            11..17 => self.begin(),
            17..24 => self.step(),
            24..28 => self.commit(),
            28 => self.fail(),
            29 => self.drop_one(),
            30..33 => self.write(),
            33..35 => self.zero(),
            35..37 => self.flush(),
            37 => self.close_or_not(),
            38..44 => self.flush_on(),
            _ => self.compare(),
        }
    }

    /// Ends all plans, and makes everything durable.
    pub fn end_all(&mut self) {
        while !self.planned.is_empty() {
            self.begin();
        }
        while !self.flights.is_empty() {
            self.step();
            self.commit();
        }
        self.flush();
        self.finish_flush();
        self.chain().flush().unwrap();
    }

    /// Drops everything as it is, without a close.
    pub fn finish(mut self) -> Recorded {
        let events = self.host.events();
        self.chain.take();
        self.flushing.take();
        for Flight { flight, .. } in self.flights.drain(..) {
            flight.failed();
        }
        Recorded { tip: self.tip, parents: self.parents, model: self.model, events }
    }

    /// Compares the disk with what it may read as.
    pub fn compare(&mut self) {
        let now = self.host.mark();
        let segments = self.model.segments();
        for expected in self.model.live(&segments, now) {
            let Range { start, end } = expected.range;
            let mut read = vec![0; (end - start) as usize];
            self.chain().read_at(&mut read, start).unwrap();
            if let Some(at) = expected.refuses(&read) {
                let may = expected.either.len();
                let (kind, seed) = (self.kind, self.seed);
                panic!("{kind:?}, seed {seed}: at {at:#x} none of the {may} that may be there");
            }
        }
    }

    fn plan(&mut self) {
        if self.planned.len() + self.flights.len() >= MOST_OPEN {
            return;
        }
        let range = self.somewhere();
        let chain = self.chain().clone();
        let begun = self.host.mark();
        let mut planned = at_once(|| chain.plan_write(range.clone())).unwrap();
        let plan = loop {
            planned = match planned {
                PlannedWrite::Ready(plan) => break plan,
                PlannedWrite::Load(load) => {
                    let mut bytes = vec![0; load.len()];
                    load.storage().read_exact_at(&mut bytes, load.at().get()).unwrap();
                    at_once(|| load.supply(&bytes)).unwrap()
                }
                PlannedWrite::Wait(wait) => {
                    self.finish_flush();
                    wait.run().unwrap();
                    at_once(|| chain.plan_write(range.clone())).unwrap()
                }
            };
        };
        self.patterns += 1;
        let bytes = pattern(self.patterns, range.start, range.end - range.start);
        let write = self.model.begin(begun, range.start, &bytes);
        self.planned.push(Planned { plan, write, bytes });
    }

    fn begin(&mut self) {
        let Some(n) = self.pick(self.planned.len()) else { return };
        let Planned { plan, write, bytes } = self.planned.swap_remove(n);
        let range = plan.range();
        let flight = at_once(|| plan.begin());
        let mut left = Vec::new();
        let mut end = range.start;
        for step in flight.steps() {
            assert_eq!((step.range.start, step.buffer.start as u64), (end, end - range.start));
            end = step.range.end;
            let (mut at, mut bytes) = (step.at.get(), &bytes[step.buffer]);
            // In pieces, so that a step may be carried out in part.
            while !bytes.is_empty() {
                let len = bytes.len().min(SECTOR as usize * (1 + self.rng.below(4000) as usize));
                let storage = Arc::clone(step.storage);
                left.push(Step { storage, at, bytes: bytes[..len].to_vec() });
                (at, bytes) = (at + len as u64, &bytes[len..]);
            }
        }
        assert_eq!(end, range.end);
        self.flights.push(Flight { flight, write, left });
    }

    fn step(&mut self) {
        if !self.late.is_empty() && self.rng.chance(1, 4) {
            let n = self.pick(self.late.len()).unwrap();
            return self.late.swap_remove(n).carry_out();
        }
        let Some(n) = self.pick(self.flights.len()) else { return };
        let Some(m) = self.pick(self.flights[n].left.len()) else { return };
        self.flights[n].left.swap_remove(m).carry_out();
    }

    fn commit(&mut self) {
        let Some(n) = self.pick(self.flights.len()) else { return };
        let mut done = self.flights.swap_remove(n);
        if !done.left.is_empty() && !self.rng.chance(1, 2) {
            return self.flights.push(done);
        }
        done.left.drain(..).for_each(Step::carry_out);
        at_once(|| done.flight.commit()).unwrap();
        self.model.done(done.write, self.host.mark());
    }

    fn fail(&mut self) {
        let Some(n) = self.pick(self.flights.len()) else { return };
        let failed = self.flights.swap_remove(n);
        at_once(|| failed.flight.failed());
        self.model.failed(failed.write, self.host.mark());
    }

    fn drop_one(&mut self) {
        if self.rng.chance(3, 4) {
            let Some(n) = self.pick(self.planned.len()) else { return };
            let dropped = self.planned.swap_remove(n);
            self.model.never(dropped.write);
            return at_once(|| drop(dropped.plan));
        }
        // The model has it in progress for good.
        let Some(n) = self.pick(self.flights.len()) else { return };
        let lost = self.flights.swap_remove(n);
        self.lost.push(lost.flight.range());
        at_once(|| drop(lost.flight));
        self.late.extend(lost.left);
    }

    fn write(&mut self) {
        self.finish_flush();
        let mut range = self.somewhere();
        if self.rng.chance(1, 4) {
            range.start += self.rng.below(SECTOR);
            range.end -= self.rng.below(range.end - range.start);
            // The rest of its sectors stays as it is, whatever of the writes that overlapped came last.
            for at in [range.start, range.end - 1].map(|at| at / SECTOR * SECTOR) {
                let mut sector = [0; SECTOR as usize];
                self.chain().read_at(&mut sector, at).unwrap();
                self.model.found(at, &sector);
            }
        }
        self.patterns += 1;
        let bytes = pattern(self.patterns, range.start, range.end - range.start);
        let write = self.model.begin(self.host.mark(), range.start, &bytes);
        let done = self.chain().write_at(&bytes, range.start);
        self.ended(write, range, done);
    }

    fn zero(&mut self) {
        self.finish_flush();
        let mut range = self.somewhere();
        if self.rng.chance(1, 2) {
            range = range.start / MIB * MIB..range.end.next_multiple_of(MIB).min(self.size());
        }
        let zeros = vec![0; (range.end - range.start) as usize];
        let write = self.model.begin(self.host.mark(), range.start, &zeros);
        let how = [Zeroing::MayUnmap, Zeroing::KeepSpace][self.rng.below(2) as usize];
        let done = self.chain().write_zeroes(range.clone(), how);
        self.ended(write, range, done);
    }

    fn ended(&mut self, write: usize, range: Range<u64>, done: avhdx::Result<()>) {
        let now = self.host.mark();
        let Err(error) = done else { return self.model.done(write, now) };
        assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "write.sector-planned"));
        let parts = [range.start, range.end].into_iter().filter(|at| !at.is_multiple_of(SECTOR));
        let mut sectors = parts.map(|at| at / SECTOR * SECTOR..at.next_multiple_of(SECTOR));
        let planned = self.planned.iter().map(|planned| planned.plan.range());
        let flights = self.flights.iter().map(|one| one.flight.range());
        let open: Vec<_> = planned.chain(flights).chain(self.lost.iter().cloned()).collect();
        let is_met =
            sectors.any(|sector| open.iter().any(|o| o.start < sector.end && sector.start < o.end));
        assert!(is_met, "{error}");
        self.model.failed(write, now);
    }

    fn flush(&mut self) {
        self.finish_flush();
        let begun = self.host.mark();
        if self.rng.chance(3, 4) {
            return self.plan_flush(begun);
        }
        self.chain().flush().unwrap();
        self.model.flushed(begun, self.host.mark());
    }

    fn plan_flush(&mut self, begun: usize) {
        let planned = at_once(|| self.chain().plan_flush()).unwrap();
        self.take_flush(planned, begun);
    }

    /// Begins the next step of a flush, or drops it before that.
    fn take_flush(&mut self, planned: PlannedFlush, begun: usize) {
        match planned {
            PlannedFlush::Done => self.model.flushed(begun, self.host.mark()),
            PlannedFlush::Ready(plan) if self.rng.chance(1, 8) => {
                at_once(|| drop(plan));
            }
            PlannedFlush::Ready(plan) => {
                let flight = at_once(|| plan.begin());
                let storage = flight.storage();
                let left = flight.writes().map(|write| Step {
                    storage: Arc::clone(storage),
                    at: write.at.get(),
                    bytes: write.bytes.to_vec(),
                });
                let left = left.collect();
                self.flushing = Some(Flushing { flight, begun, left });
            }
            PlannedFlush::Wait(wait) => {
                wait.run().unwrap();
                self.plan_flush(begun);
            }
        }
    }

    fn flush_on(&mut self) {
        let Some(mut flushing) = self.flushing.take() else { return };
        if let Some(n) = self.pick(flushing.left.len()) {
            flushing.left.swap_remove(n).carry_out();
            self.flushing = Some(flushing);
            return;
        }
        let Flushing { flight, begun, .. } = flushing;
        if flight.has_flush() {
            flight.storage().flush().unwrap();
        }
        let planned = at_once(|| flight.done()).unwrap();
        self.take_flush(planned, begun);
    }

    fn finish_flush(&mut self) {
        while self.flushing.is_some() {
            self.flush_on();
        }
    }

    fn close_or_not(&mut self) {
        if self.flushing.is_some() {
            self.is_refused(self.chain().close(), 1 + self.planned.len() + self.flights.len());
        }
        self.finish_flush();
        let open = self.planned.len() + self.flights.len();
        if open + self.lost.len() > 0 {
            let made = Checkpoint::new().run(self.chain());
            self.is_refused(made.map(drop), open);
        }
        let begun = self.host.mark();
        let closed = self.chain().close();
        match open {
            0 => {
                closed.unwrap();
                self.model.flushed(begun, self.host.mark());
            }
            _ => self.is_refused(closed, open),
        }
    }

    fn is_refused(&self, done: avhdx::Result<()>, open: usize) {
        let error: Error = done.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        let count = if open > 0 { open } else { self.lost.len() };
        assert!(error.found().unwrap().starts_with(&format!("{count} ")), "{error}");
    }

    /// Whole sectors, often few, often in places that others are in too.
    fn somewhere(&mut self) -> Range<u64> {
        let size = self.size();
        let block = self.rng.below(BLOCKS) * MIB;
        let (at, sectors) = match self.rng.below(8) {
            0 => (block, MIB / SECTOR),
            1 => (block, 2 * MIB / SECTOR),
            2 => (block + MIB - 3 * SECTOR, 6),
            3 => (block + self.rng.below(2000) * SECTOR, 1 + self.rng.below(3000)),
            _ => (block + self.rng.below(12) * SECTOR, 1 + self.rng.below(12)),
        };
        let at = at.min(size - SECTOR);
        at..size.min(at + sectors * SECTOR)
    }

    fn pick(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.rng.below(len as u64) as usize)
    }
}

impl Step {
    fn carry_out(self) {
        self.storage.write_at(&self.bytes, self.at).unwrap();
    }
}

/// Bytes that are unique to this write and offset.
fn pattern(seed: u64, at: u64, len: u64) -> Vec<u8> {
    let first = at / SECTOR * SECTOR;
    let mut bytes = vec![0; ((at + len).next_multiple_of(SECTOR) - first) as usize];
    rng::pattern(seed, first, &mut bytes);
    bytes[(at - first) as usize..][..len as usize].to_vec()
}
