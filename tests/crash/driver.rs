//! The hands of a workload: every change goes to the disk and to the model alike.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::{CreateOptions, DiffChain, Disk, VhdxFile, Zeroing};
use avhdx_testkit::rng::Rng;
use uuid::Uuid;

use crate::model::Model;
use crate::sim::{Bytes, Event, FOLDER, Files, SimHost};
use crate::verdict::{self, Judge};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A host, an image on it that is written, and the model of its disk. Clones are the same.
#[derive(Clone)]
pub struct Driver {
    pub host: SimHost,
    pub tip: PathBuf,
    model: Arc<Mutex<Model>>,
    start: Arc<Files>,
    from: Arc<AtomicUsize>,
}

/// A history with everything needed to judge it.
pub struct Recorded {
    pub start: Files,
    pub events: Vec<Event>,
    pub model: Model,
    pub judge: Judge,
    /// The files at the end.
    pub end: Files,
    /// The first cut to look at.
    pub from: usize,
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

pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Options that make the same image each time.
pub fn fixed_identities(options: CreateOptions, seed: u64) -> CreateOptions {
    let mut rng = Rng::new(seed);
    options.write_guids(rng.uuid(), rng.uuid()).disk_id(Uuid::from_u128(7)).creator("explorer")
}

/// Bytes that are those of this write and this place alone.
pub fn pattern(seed: u64, at: u64, len: u64) -> Vec<u8> {
    let first = at / 512 * 512;
    let mut bytes = vec![0; (at + len).next_multiple_of(512) as usize - first as usize];
    avhdx_testkit::rng::pattern(seed, first, &mut bytes);
    bytes[(at - first) as usize..][..len as usize].to_vec()
}

impl Setup {
    pub fn base(options: CreateOptions, size: u64, block_size: u32) -> Self {
        let host = SimHost::default();
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

    /// Writes into the image at the top, in a session of its own.
    pub fn write(mut self, at: u64, len: u64) -> Self {
        let chain = verdict::open(&self.host, &self.tip, true).unwrap();
        let bytes = pattern(1000 + self.watched.len() as u64, at, len);
        chain.write_at(&bytes, at).unwrap();
        self.disk.write(at, &bytes);
        self.watched.push(at / 512 * 512..(at + len).next_multiple_of(512));
        chain.close().unwrap();
        self
    }

    /// Puts a child on top.
    pub fn child(self, block_size: u32) -> Self {
        let chain = verdict::open(&self.host, &self.tip, false).unwrap();
        let options = CreateOptions::child_of(chain.tip()).unwrap().block_size(block_size);
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
        Self { host, tip, model: Arc::new(Mutex::new(model)), start, from }
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the image for writing, with its parents.
    pub fn open(&self) -> DiffChain {
        let chain = verdict::open(&self.host, &self.tip, true).unwrap();
        let mut model = self.model();
        let at = self.host.mark();
        model.opened(at, chain.tip().data_write_guid());
        chain
    }

    /// Opens it again after a session that just ended, with no word to the host. What of its writes
    /// was lost with it is what the disk says now.
    pub fn open_after_kill(&self) -> DiffChain {
        let chain = verdict::open(&self.host, &self.tip, true).unwrap();
        let mut model = self.model();
        for range in model.segments() {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            chain.read_at(&mut bytes, range.start).unwrap();
            let write = model.begin(self.host.mark(), range.start, &bytes);
            model.done(write, self.host.mark());
        }
        let at = self.host.mark();
        model.opened(at, chain.tip().data_write_guid());
        chain
    }

    /// Ends a session as a killed process does.
    pub fn kill(&self, chain: DiffChain) {
        std::mem::forget(chain);
    }

    pub fn write(&self, chain: &DiffChain, seed: u64, at: u64, len: u64) {
        let bytes = pattern(seed, at, len);
        self.change(at, &bytes, || chain.write_at(&bytes, at));
    }

    pub fn zero(&self, chain: &DiffChain, at: u64, len: u64, how: Zeroing) {
        self.change(at, &vec![0; len as usize], || chain.write_zeroes(at..at + len, how));
    }

    pub fn discard(&self, chain: &DiffChain, at: u64, len: u64) {
        self.change(at, &vec![0; len as usize], || chain.discard(at..at + len));
    }

    fn change(&self, at: u64, bytes: &[u8], change: impl FnOnce() -> avhdx::Result<()>) {
        let write = {
            let mut model = self.model();
            let mark = self.host.mark();
            model.begin(mark, at, bytes)
        };
        change().unwrap();
        let mut model = self.model();
        let mark = self.host.mark();
        model.done(write, mark);
    }

    pub fn flush(&self, chain: &DiffChain) {
        self.flushing(|| chain.flush());
    }

    pub fn close(&self, chain: &DiffChain) {
        self.flushing(|| chain.close());
    }

    fn flushing(&self, flush: impl FnOnce() -> avhdx::Result<()>) {
        let begun = self.host.mark();
        flush().unwrap();
        let mut model = self.model();
        let done = self.host.mark();
        model.flushed(begun, done);
    }

    /// Creates the image, on the record.
    pub fn create(&self, options: &CreateOptions) -> VhdxFile {
        let image = options.create_on(Arc::new(self.host.clone()), &self.tip).unwrap();
        let mut model = self.model();
        model.created = Some(self.host.mark());
        image
    }

    /// Looks at no cut before this one.
    pub fn look_from_here(&self) {
        self.from.store(self.host.mark() + 1, Ordering::SeqCst);
    }

    /// Ends the record.
    pub fn finish(&self) -> Recorded {
        let mut parents = Vec::new();
        let base = path("base.vhdx");
        if self.tip != base && self.start.file(&base).is_some() {
            parents.push(verdict::layer(&self.start, &base).unwrap());
        }
        Recorded {
            start: (*self.start).clone(),
            events: self.host.events(),
            model: self.model().clone(),
            judge: Judge { tip: self.tip.clone(), parents },
            end: self.host.files(),
            from: self.from.load(Ordering::SeqCst),
        }
    }
}
