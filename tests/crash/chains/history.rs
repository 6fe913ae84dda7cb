//! The operations on a chain, and what each of its files may be afterwards.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::{Access, Host};
use avhdx::{CreateOptions, DiffChain, Disk};
use uuid::Uuid;

use crate::driver::{KIB, MIB, fixed_identities, path, pattern};
use crate::model::Model;
use crate::sim::{Bytes, Event, Files, SimHost};
use crate::verdict;

/// An initial layer.
pub struct Layer {
    pub name: &'static str,
    pub size: u64,
    /// Writes to it, as offset and length.
    pub writes: &'static [(u64, u64)],
    /// Blocks that are discarded in it.
    pub discards: &'static [u64],
    /// How many empty user metadata items it has.
    pub items: u16,
}

/// A disk and its expected contents.
#[derive(Clone, Debug, Default)]
pub struct Point {
    pub size: u64,
    pub bytes: Bytes,
}

/// A file by which the chain may be opened from a certain time on, and the disk that it then has.
#[derive(Clone, Debug)]
pub struct Tip {
    pub path: PathBuf,
    /// From when on the file may be the tip.
    pub begun: usize,
    /// From when on earlier tips are no longer tips.
    pub done: usize,
    /// The index of its model.
    pub model: usize,
}

/// Everything needed to judge what a crash leaves of a chain.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub start: Files,
    pub events: Vec<Event>,
    pub models: Vec<Model>,
    pub tips: Vec<Tip>,
    /// The contents of each file when opened as a point in time.
    pub points: Vec<(PathBuf, Point)>,
    /// When the first operation began.
    pub begun: Option<usize>,
    /// Parents into which something is merged, and what is merged into each.
    pub targets: Vec<PathBuf>,
    pub merged: Vec<PathBuf>,
    /// Parents of a tip that keeps its name: they are the tip until they get that name.
    pub keeping: Vec<PathBuf>,
    /// New children, which are not images before their operation is complete.
    pub made: Vec<PathBuf>,
    /// Files that no longer exist after this time.
    pub gone: Vec<(usize, PathBuf)>,
    /// The first cut to explore.
    pub from: usize,
}

/// A recording host with a chain.
pub struct Scene {
    pub host: SimHost,
    pub layers: Vec<PathBuf>,
    history: Mutex<History>,
}

pub const SIZE: u64 = 4 * MIB;

pub const BASE: Layer = Layer {
    name: "base.vhdx",
    size: SIZE,
    writes: &[
        (0, 20 * KIB),
        (90 * KIB, 20 * KIB),
        (MIB, 20 * KIB),
        (2 * MIB, 20 * KIB),
        (3 * MIB, 20 * KIB),
        (3 * MIB + 90 * KIB, 20 * KIB),
    ],
    discards: &[],
    items: 0,
};

pub const MIDDLE: Layer = Layer {
    name: "middle.avhdx",
    size: SIZE,
    writes: &[(6 * KIB, 4 * KIB), (MIB, MIB), (3 * MIB + 80 * KIB, 15 * KIB)],
    discards: &[2],
    items: 0,
};

pub const TIP: Layer = Layer {
    name: "tip.avhdx",
    size: SIZE,
    writes: &[(8 * KIB, 4 * KIB), (2 * MIB + 4 * KIB, 2 * KIB)],
    discards: &[3],
    items: 0,
};

impl Scene {
    /// A chain of these layers, base first, whose sessions were closed or killed.
    pub fn new(layers: &[Layer], killed: bool) -> Self {
        let host = SimHost::default();
        let shared = || Arc::new(host.clone());
        let mut history = History::default();
        let mut point = Point::default();
        let mut watched = Vec::new();
        for (n, layer) in layers.iter().enumerate() {
            let seed = 1 + n as u64;
            let file = path(layer.name);
            let options = match history.points.last() {
                None => CreateOptions::dynamic(layer.size),
                Some((parent, _)) => {
                    let parent = verdict::options(&host).open_image(parent).unwrap();
                    CreateOptions::child_of(&parent).unwrap().size(layer.size)
                }
            };
            let options = fixed_identities(options.block_size(1 << 20), seed);
            drop(options.create_on(shared(), &file).unwrap());
            add_items(&host, &file, layer.items);
            let chain = verdict::open(&host, &file, true).unwrap();
            point.size = layer.size;
            for (at, len) in layer.writes {
                let bytes = pattern(100 * seed + at / KIB, *at, *len);
                chain.write_at(&bytes, *at).unwrap();
                point.bytes.write(*at, &bytes);
                watched.push(*at..at + len);
            }
            for block in layer.discards {
                chain.discard(block * MIB..(block + 1) * MIB).unwrap();
                point.bytes.write(block * MIB, &vec![0; MIB as usize]);
            }
            match killed {
                true => {
                    chain.flush().unwrap();
                    std::mem::forget(chain);
                }
                false => chain.close().unwrap(),
            }
            history.points.push((file, point.clone()));
        }
        let layers: Vec<PathBuf> = history.points.iter().map(|(path, _)| path.clone()).collect();
        // The model provides the contents of the tip.
        let (tip, point) = history.points.pop().unwrap();
        history.models.push(model_of(&point, watched));
        history.tips.push(Tip { path: tip, begun: 0, done: 0, model: 0 });
        host.record();
        history.start = host.files();
        Self { host, layers, history: Mutex::new(history) }
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn open(&self) -> DiffChain {
        let tip = self.history().tips.last().unwrap().path.clone();
        verdict::open(&self.host, &tip, true).unwrap()
    }

    pub fn write(&self, chain: &DiffChain, seed: u64, at: u64, len: u64) {
        let bytes = pattern(seed, at, len);
        let mark = self.host.mark();
        let write = self.history().model().begin(mark, at, &bytes);
        chain.write_at(&bytes, at).unwrap();
        let mark = self.host.mark();
        self.history().model().done(write, mark);
    }

    pub fn flush(&self, chain: &DiffChain) {
        let begun = self.host.mark();
        chain.flush().unwrap();
        let done = self.host.mark();
        self.history().model().flushed(begun, done);
    }

    /// Changes the layers; the file may be the tip from the start of the change on, and is after it.
    pub fn change<T>(&self, tip: Option<&Path>, run: impl FnOnce() -> T) -> T {
        let begun = self.host.mark();
        {
            let mut history = self.history();
            history.begun.get_or_insert(begun);
            let model = history.models.len() - 1;
            if let Some(tip) = tip {
                let path = tip.to_owned();
                history.tips.push(Tip { path, begun, done: usize::MAX, model });
            }
        }
        let done = run();
        if tip.is_some() {
            let at = self.host.mark();
            self.history().tips.last_mut().unwrap().done = at;
        }
        done
    }

    /// Records that these files no longer exist.
    pub fn gone(&self, paths: impl IntoIterator<Item = PathBuf>) {
        let at = self.host.mark();
        self.history().gone.extend(paths.into_iter().map(|path| (at, path)));
    }

    /// Ends the record, and the process with it.
    pub fn kill(self, chain: DiffChain) -> History {
        std::mem::forget(chain);
        let events = self.host.events();
        self.host.empty();
        let history = self.history().clone();
        History { events, ..history }
    }
}

impl History {
    /// The model of the disk that is being written.
    pub fn model(&mut self) -> &mut Model {
        self.models.last_mut().unwrap()
    }

    /// The present contents of the tip.
    pub fn now(&self) -> Point {
        let model = self.models.last().unwrap();
        Point { size: model.size, bytes: model.now.clone() }
    }

    /// The tips that a crash at this cut may leave.
    pub fn tips_at(&self, cut: usize) -> &[Tip] {
        let last = self.tips.iter().rposition(|tip| tip.done < cut).unwrap_or(0);
        let end = self.tips.iter().take_while(|tip| tip.begun == 0 || tip.begun < cut).count();
        &self.tips[last..end]
    }

    pub fn epoch(&self, cut: usize) -> u64 {
        let models = self.models.iter().map(|model| model.epoch(cut));
        let model = models.fold(0, |sum: u64, epoch| sum.rotate_left(7) ^ epoch);
        let tips = self.tips.iter().filter(|tip| tip.done < cut || tip.begun < cut).count();
        let gone = self.gone.iter().filter(|(at, _)| *at < cut).count();
        model ^ (tips as u64) << 56 ^ (gone as u64) << 60
    }
}

/// Adds user items, \[MS-VHDX\] 2.6.1.2, to the table of a new image.
fn add_items(host: &SimHost, path: &Path, count: u16) {
    let (table, file) = (2 * MIB, host.open(path, Access::ReadWrite).unwrap());
    let mut known = [0; 2];
    file.read_exact_at(&mut known, table + 10).unwrap();
    let known = u16::from_le_bytes(known);
    for n in 0..count {
        let mut entry = [0; 32];
        entry[..16].copy_from_slice(Uuid::from_u128(u128::from(n) + 1).as_bytes());
        entry[24] = 1;
        file.write_at(&entry, table + 32 + 32 * u64::from(known + n)).unwrap();
    }
    file.write_at(&(known + count).to_le_bytes(), table + 10).unwrap();
}

pub fn model_of(point: &Point, watched: Vec<std::ops::Range<u64>>) -> Model {
    let mut model = Model::new(point.bytes.clone(), point.size, MIB);
    watched.into_iter().for_each(|range| model.watch(range));
    model
}
