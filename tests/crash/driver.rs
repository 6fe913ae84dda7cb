//! Drives a workload: every change is made to both the disk and the model.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::ops::Reparent;
use avhdx::storage::Host;
use avhdx::{CreateOptions, DiffChain, Disk, VhdxFile, Zeroing};
use avhdx_testkit::rng::Rng;
use uuid::Uuid;

use crate::faults::{Call, Faults, Met};
use crate::model::Model;
use crate::outcomes::Explorer;
use crate::sim::{Bytes, Event, FOLDER, Files, SimHost};
use crate::verdict::{self, Judge};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// How much of a range written during the setup is compared, in bytes.
const LONGEST_WATCHED: u64 = 64 * KIB;

/// A host, a writable image on it, and the model of its disk. Clones share them.
#[derive(Clone)]
pub struct Driver {
    pub host: SimHost,
    pub tip: PathBuf,
    model: Arc<Mutex<Model>>,
    start: Arc<Files>,
    from: Arc<AtomicUsize>,
    /// Present if steps of the host are to be counted or to fail.
    faults: Option<Arc<Faults>>,
}

/// A history with everything needed to judge it.
pub struct Recorded {
    pub start: Files,
    pub events: Vec<Event>,
    pub model: Model,
    pub judge: Judge,
    /// The files at the end.
    pub end: Files,
    /// The first cut to explore.
    pub from: usize,
    /// Where a step of the host failed.
    pub failed_at: Option<usize>,
}

/// The disk before the record starts.
#[derive(Clone)]
pub struct Setup {
    pub host: SimHost,
    pub tip: PathBuf,
    pub disk: Bytes,
    pub watched: Vec<std::ops::Range<u64>>,
    pub size: u64,
    pub block_size: u64,
}

thread_local! {
    static SHOWS_STALE: Cell<bool> = const { Cell::new(false) };
}

/// Makes this thread's new hosts such that show stale bytes, or zeros, where a crash lost the first write to grown
/// space.
pub fn show_stale(shows_stale: bool) {
    SHOWS_STALE.set(shows_stale);
}

/// A new host.
pub fn host() -> SimHost {
    SimHost::showing_stale(SHOWS_STALE.get())
}

pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Options that create the same image each time.
pub fn fixed_identities(options: CreateOptions, seed: u64) -> CreateOptions {
    let mut rng = Rng::new(seed);
    options.write_guids(rng.uuid(), rng.uuid()).disk_id(Uuid::from_u128(7)).creator("explorer")
}

/// Bytes that are unique to this write and offset.
pub fn pattern(seed: u64, at: u64, len: u64) -> Vec<u8> {
    let first = at / 512 * 512;
    let mut bytes = vec![0; (at + len).next_multiple_of(512) as usize - first as usize];
    avhdx_testkit::rng::pattern(seed, first, &mut bytes);
    bytes[(at - first) as usize..][..len as usize].to_vec()
}

impl Setup {
    pub fn base(options: CreateOptions, size: u64, block_size: u32) -> Self {
        let host = host();
        let tip = path("base.vhdx");
        let options = fixed_identities(options.block_size(block_size), 1);
        drop(options.create_on(Arc::new(host.clone()), &tip).unwrap());
        Self {
            host,
            tip,
            disk: Bytes::default(),
            watched: Vec::new(),
            size,
            block_size: block_size.into(),
        }
    }

    /// Writes to the topmost image, in a session of its own.
    pub fn write(self, at: u64, len: u64) -> Self {
        let bytes = pattern(1000 + self.watched.len() as u64, at, len);
        self.write_bytes(at, &bytes)
    }

    /// Writes zeros as data, in the same way.
    pub fn write_zeros(self, at: u64, len: u64) -> Self {
        self.write_bytes(at, &vec![0; len as usize])
    }

    fn write_bytes(mut self, at: u64, bytes: &[u8]) -> Self {
        let chain = verdict::open(&self.host, &self.tip, true).unwrap();
        chain.write_at(bytes, at).unwrap();
        self.disk.write(at, bytes);
        let end = at + bytes.len() as u64;
        // The middle of a long range is compared where it is written to.
        let (head, tail) = (end.min(at + LONGEST_WATCHED), at.max(end.saturating_sub(4 * KIB)));
        self.watched.push(at / 512 * 512..head.next_multiple_of(512));
        if head < tail {
            self.watched.push(tail / 512 * 512..end.next_multiple_of(512));
        }
        chain.close().unwrap();
        self
    }

    /// Adds a child on top.
    pub fn child(self, block_size: u32) -> Self {
        let chain = verdict::open(&self.host, &self.tip, false).unwrap();
        let options = CreateOptions::child_of(&chain.tip()).unwrap().block_size(block_size);
        let tip = path("child.avhdx");
        let options = fixed_identities(options, 2);
        drop(options.create_on(Arc::new(self.host.clone()), &tip).unwrap());
        Self { tip, block_size: block_size.into(), ..self }
    }

    /// Starts the record.
    pub fn start(self) -> Driver {
        let mut model = Model::new(self.disk, self.size, self.block_size);
        for range in self.watched {
            model.watch(range);
        }
        Driver::new(self.host, self.tip, model)
    }
}

impl Driver {
    pub fn new(host: SimHost, tip: PathBuf, model: Model) -> Self {
        host.record();
        let start = Arc::new(host.files());
        let from = Arc::default();
        let faults = Faults::planned(&host, &start, &tip);
        Self { host, tip, model: Arc::new(Mutex::new(model)), start, from, faults }
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the image for writing, with its parents.
    pub fn open(&self) -> DiffChain {
        self.open_and(false)
    }

    /// Reopens the image after a session that ended without a close. What the disk reads then
    /// replaces those writes that were lost with the session.
    pub fn open_after_kill(&self) -> DiffChain {
        self.open_and(true)
    }

    fn open_and(&self, is_after_kill: bool) -> DiffChain {
        let mut is_after_kill = is_after_kill;
        if let Some(faults) = &self.faults {
            // A poisoned image loses unflushed data, as a killed one does.
            is_after_kill |= faults.reopened();
            self.judge(faults);
        }
        let open = || verdict::options(&self.host).writable(true).open(&self.tip);
        let chain = self.until_done(Call::Open, open);
        let segments = if is_after_kill { self.model().whole_segments() } else { Vec::new() };
        for range in segments {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.until_done(Call::Read, || chain.read_at(&mut bytes, range.start));
            let mut model = self.model();
            let write = model.begin(self.host.mark(), range.start, &bytes);
            model.done(write, self.host.mark());
        }
        let mut model = self.model();
        let at = self.host.mark();
        model.opened(at, chain.tip().data_write_guid());
        chain
    }

    /// Links the closed image to another parent with the same contents.
    pub fn reparent(&self, parent: &str) {
        self.until_done(Call::Open, || {
            let reparent = Reparent::new(path(parent)).options(verdict::options(&self.host));
            reparent.run(&self.tip)
        });
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        self.host.remove(&path(name)).unwrap();
    }

    /// Ends a session like a killed process.
    pub fn kill(&self, chain: DiffChain) {
        match &self.faults {
            // Even a regular close changes nothing any more.
            Some(faults) if faults.is_poisoned() => faults.must_be_quiet("a drop", || drop(chain)),
            _ => std::mem::forget(chain),
        }
    }

    /// Starts a new session on the same handle.
    pub fn session(&self) {
        if self.faults.as_ref().is_some_and(|faults| faults.is_poisoned()) {
            return;
        }
        let layer = verdict::layer(&self.host.files(), &self.tip).unwrap();
        let mut model = self.model();
        let at = self.host.mark();
        model.opened(at, layer.data_write_guid);
    }

    pub fn write(&self, chain: &DiffChain, seed: u64, at: u64, len: u64) {
        let bytes = pattern(seed, at, len);
        self.change(chain, at, &bytes, &|| chain.write_at(&bytes, at));
    }

    /// Writes zeros as data.
    pub fn write_zeros(&self, chain: &DiffChain, at: u64, len: u64) {
        let zeros = vec![0; len as usize];
        self.change(chain, at, &zeros, &|| chain.write_at(&zeros, at));
    }

    pub fn zero(&self, chain: &DiffChain, at: u64, len: u64, how: Zeroing) {
        let zeros = vec![0; len as usize];
        self.change(chain, at, &zeros, &|| chain.write_zeroes(at..at + len, how));
    }

    pub fn discard(&self, chain: &DiffChain, at: u64, len: u64) {
        let zeros = vec![0; len as usize];
        self.change(chain, at, &zeros, &|| chain.discard(at..at + len));
    }

    /// Makes a change. If it fails alone, compares the disk with the model and either tries again when the host
    /// has recovered, or gives up.
    fn change(
        &self,
        chain: &DiffChain,
        at: u64,
        bytes: &[u8],
        change: &dyn Fn() -> avhdx::Result<()>,
    ) {
        for attempt in 0..3 {
            if let Some(faults) = self.faults.as_ref().filter(|faults| faults.is_poisoned()) {
                return faults.must_refuse("a change", change);
            }
            let write = {
                let mut model = self.model();
                let mark = self.host.mark();
                model.begin(mark, at, bytes)
            };
            let met = self.watch(Call::Change, change);
            {
                let mut model = self.model();
                let mark = self.host.mark();
                match met {
                    Met::Done(()) => return model.done(write, mark),
                    Met::Alone | Met::Poisoned => model.failed(write, mark),
                }
            }
            let Some(faults) = &self.faults else { unreachable!("only a fault makes a call fail") };
            self.look(chain, faults, Some(write));
            if matches!(met, Met::Poisoned) {
                return self.after_poison(chain, faults);
            }
            if attempt == 0 && faults.lasts() {
                if faults.only_growth_fails() {
                    self.flush(chain);
                }
                continue; // a repeated failure is expected
            }
            if !faults.lift_and_try_again() {
                return;
            }
        }
        if let Some(faults) = &self.faults {
            faults.complain("a change fails on a host that is well".into());
        }
    }

    pub fn flush(&self, chain: &DiffChain) {
        self.flushing(chain, &|| chain.flush());
    }

    pub fn close(&self, chain: &DiffChain) {
        self.flushing(chain, &|| chain.close());
    }

    fn flushing(&self, chain: &DiffChain, flush: &dyn Fn() -> avhdx::Result<()>) {
        if let Some(faults) = self.faults.as_ref().filter(|faults| faults.is_poisoned()) {
            return faults.must_refuse("a flush", flush);
        }
        let begun = self.host.mark();
        match self.watch(Call::Flush, flush) {
            Met::Done(()) => {
                let mut model = self.model();
                let done = self.host.mark();
                model.flushed(begun, done);
            }
            Met::Alone | Met::Poisoned => {
                let Some(faults) = &self.faults else { unreachable!("only a fault fails a call") };
                self.look(chain, faults, None);
                self.after_poison(chain, faults);
            }
        }
    }

    /// Creates the image while recording.
    pub fn create(&self, options: &CreateOptions) -> VhdxFile {
        let create = || options.create_on(Arc::new(self.host.clone()), &self.tip);
        // Until this returns, the image need not exist.
        self.model().created = Some(usize::MAX);
        let image = self.until_done(Call::Create, create);
        let mut model = self.model();
        model.created = Some(self.host.mark());
        image
    }

    /// Explores no cut before this point.
    pub fn look_from_here(&self) {
        self.from.store(self.host.mark() + 1, Ordering::SeqCst);
        if let Some(faults) = &self.faults {
            faults.look_from_here();
        }
    }

    /// Ends the record.
    pub fn finish(&self) -> Recorded {
        if let Some(faults) = &self.faults {
            faults.finish(&self.host);
            self.judge(faults);
        }
        let recorded = Recorded {
            start: (*self.start).clone(),
            events: self.host.events(),
            model: self.model().clone(),
            judge: self.judge_of_it(),
            end: self.host.files(),
            from: self.from.load(Ordering::SeqCst),
            failed_at: self.faults.as_ref().and_then(|faults| faults.fired_at()),
        };
        self.host.empty();
        recorded
    }

    fn judge_of_it(&self) -> Judge {
        let mut parents = Vec::new();
        let base = path("base.vhdx");
        if self.tip != base && self.start.file(&base).is_some() {
            parents.push(verdict::layer(&self.start, &base).unwrap());
        }
        Judge { tip: self.tip.clone(), parents }
    }

    fn watch<T>(&self, call: Call, run: impl FnOnce() -> avhdx::Result<T>) -> Met<T> {
        match &self.faults {
            Some(faults) => faults.watch(&self.host, call, run),
            None => Met::Done(run().unwrap()),
        }
    }

    /// Makes a call that changes nothing when it fails, and repeats it when the host has recovered.
    fn until_done<T>(&self, call: Call, mut run: impl FnMut() -> avhdx::Result<T>) -> T {
        for _ in 0..2 {
            if let Met::Done(done) = self.watch(call, &mut run) {
                return done;
            }
            let Some(faults) = &self.faults else { unreachable!("only a fault makes a call fail") };
            if call == Call::Create && self.host.files().names != self.start.names {
                faults.complain(format!("left behind: {:?}", self.host.files().names));
            }
            self.judge(faults);
            faults.lift_and_try_again();
        }
        panic!("{call:?} fails on a host that is well")
    }

    /// Reads everything after a failure: units of a failed write are old or new, and everything else
    /// is unchanged.
    fn look(&self, chain: &DiffChain, faults: &Faults, failed: Option<usize>) {
        if faults.has_lost_writes() {
            return;
        }
        let alone = faults.alone();
        let live = {
            let model = self.model();
            model.live(&model.segments(), self.host.mark())
        };
        for segment in live {
            let mut bytes = vec![0; (segment.range.end - segment.range.start) as usize];
            let wrong = match chain.read_at(&mut bytes, segment.range.start) {
                Err(error) => Some(format!("a read after a failure: {error}")),
                Ok(()) => segment
                    .refuses(&bytes)
                    .map(|at| format!("after a failure the disk reads otherwise at {at:#x}")),
            };
            // While other calls are running, the expected contents are unknown.
            if let Some(wrong) = wrong.filter(|_| faults.is_still(alone)) {
                faults.complain(wrong);
            }
        }
        let Some(failed) = failed else { return };
        let range = self.model().range(failed);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        if chain.read_at(&mut bytes, range.start).is_ok() {
            self.model().found(range.start, &bytes);
        }
    }

    /// Makes all calls that a poisoned image must refuse.
    fn after_poison(&self, chain: &DiffChain, faults: &Faults) {
        if !faults.is_poisoned() {
            return;
        }
        faults.lift_and_try_again();
        let size = chain.geometry().size;
        let block = self.model().block_size;
        let refuse = |what, run: &dyn Fn() -> avhdx::Result<()>| faults.must_refuse(what, run);
        refuse("a flush", &|| chain.flush());
        for at in [0, (size - 1) / block * block] {
            refuse("a write", &|| chain.write_at(&[1; 700], at));
            refuse("zeros", &|| chain.write_zeroes(at..size.min(at + block), Zeroing::KeepSpace));
            refuse("zeros", &|| chain.write_zeroes(at..at + 512, Zeroing::MayUnmap));
            refuse("a discard", &|| chain.discard(at..size.min(at + block)));
        }
        refuse("a close", &|| chain.close());
        refuse("a flush", &|| chain.flush());
        self.look(chain, faults, None);
    }

    /// Judges what a crash of the process, or of the host with all unflushed data, would leave now.
    fn judge(&self, faults: &Faults) {
        if !faults.has_fired() {
            return;
        }
        let expected = {
            let model = self.model();
            model.expected(&model.segments(), self.host.mark())
        };
        let judge = self.judge_of_it();
        if let Err(why) = judge.judge(&self.host.files(), &expected) {
            faults.complain(format!("what the host has: {why}"));
        }
        if faults.has_lost_writes() {
            return; // the record does not tell what is durable
        }
        let durable = Explorer::durable((*self.start).clone(), &self.host.events());
        if let Err(why) = judge.judge(&durable, &expected) {
            faults.complain(format!("what is durable: {why}"));
        }
    }
}
