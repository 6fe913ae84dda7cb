//! Makes every call that changes nothing.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::forest::Forest;
use avhdx::ops::{Check, Compare, Explain, Export, Grade, Measure, Placement, Progress, Rescue};
use avhdx::storage::{Access, FileKind, Host, Stat, Storage};
use avhdx::{
    Budget, DiffChain, Disk, DiskExt, Error, ErrorKind, Linkage, LogPolicy, OpenOptions,
    PathSource, Planned,
};
use avhdx_testkit::rng::Rng;

use crate::TABLES;
use crate::common::sparse::{Bounds, Sparse};
use crate::common::{ReadOnly, Shelf};

/// A read-only file with these bytes.
pub fn unchanging(name: String, bytes: &Arc<Vec<u8>>) -> Arc<dyn Storage> {
    Arc::new(ReadOnly(Sparse::new(name, Arc::clone(bytes), Bounds::default())))
}

/// Opens the files as a chain and separately, and makes every read-only call.
pub fn exercise(files: &[Arc<Vec<u8>>]) {
    let named = files.iter().enumerate();
    let files: Vec<Arc<dyn Storage>> =
        named.map(|(n, bytes)| unchanging(format!("l{n}"), bytes)).collect();
    let (tip, parents) = files.split_last().expect("a file");
    for (log, linkage) in [
        (LogPolicy::Replay, Linkage::Verify),
        (LogPolicy::Ignore, Linkage::Ignore),
        (LogPolicy::Refuse, Linkage::Ignore),
    ] {
        let options = OpenOptions::new()
            .log(log)
            .linkage(linkage)
            .budget(Budget::new(TABLES))
            .parents(Shelf(parents.to_vec()));
        let tip = match options.open_file(Arc::clone(tip)) {
            Ok(tip) => tip,
            Err(error) => {
                is_told(&error);
                continue;
            }
        };
        let alone = format!("{:?}", tip.info());
        assert!(!alone.is_empty());
        tip.count_blocks().map_or_else(|error| is_told(&error), drop);
        tip.parent_link().map_or_else(|error| is_told(&error), drop);
        read_all(&tip);
        match options.open_chain(tip) {
            Ok(chain) => {
                read_chain(&chain);
                operate(&chain);
            }
            Err(error) => is_told(&error),
        }
    }
    examine(tip, parents);
    rescue(tip, parents);
    for parent in parents {
        let options = OpenOptions::new().budget(Budget::new(TABLES));
        match options.open_file(Arc::clone(parent)) {
            Ok(parent) => read_all(&parent),
            Err(error) => is_told(&error),
        }
    }
}

fn read_chain(chain: &DiffChain) {
    plan_some(chain);
    changes(chain);
    read_all(chain);
    for layer in chain.layers() {
        read_all(&chain.view(layer.id).expect("a layer of the chain"));
    }
}

/// Random plans complete, and supply the same bytes as reads or report an error.
fn plan_some(chain: &DiffChain) {
    let size = chain.geometry().size;
    let mut rng = Rng::new(size);
    let mut buf = vec![0; 300_001];
    for start in [0, size.saturating_sub(300_000), rng.below(size.max(1)), rng.below(size.max(1))] {
        let len = (size - start).min(300_001) as usize;
        let mut planned = chain.plan_read(start..start + len as u64);
        for loads in 0.. {
            assert!(loads < 1000, "no end of loads");
            match planned {
                Ok(Planned::Load(load)) => planned = load.load(),
                _ => break,
            }
        }
        let read = chain.read_at(&mut buf[..len], start);
        match planned {
            Ok(Planned::Load(_)) => unreachable!("all are loaded"),
            Ok(Planned::Ready(plan)) => {
                let mut bytes = vec![0; len];
                plan.read(&mut bytes).expect("places that are there");
                assert!(read.is_ok() && bytes == buf[..len], "{len} bytes at {start}: {read:?}");
            }
            Err(error) => {
                is_told(&error);
                let is_over = error.kind() == ErrorKind::LogOverlay;
                assert!(is_over || read.is_err(), "{len} bytes at {start}: {error}");
            }
        }
    }
}

/// What is left of the chain: pieces without gaps, of which any can be read.
fn rescue(tip: &Arc<dyn Storage>, parents: &[Arc<dyn Storage>]) {
    for linkage in [Linkage::Verify, Linkage::Ignore] {
        let options = OpenOptions::new().linkage(linkage).parents(Shelf(parents.to_vec()));
        let mut ruin = match Rescue::new().options(options).open_file(Arc::clone(tip)) {
            Ok(ruin) => ruin,
            Err(error) => {
                is_told(&error);
                continue;
            }
        };
        let size = ruin.geometry().size;
        let loose = ruin.loose(0).expect("the first layer").ranges().first().cloned();
        if let Some(range) = loose {
            for disk_offset in [0, size / 2] {
                let (file_offset, grade, evidence) = (range.start, Grade::Sure, "a guess".into());
                let placement = Placement { file_offset, disk_offset, grade, evidence };
                ruin.place(0, &placement);
            }
        }
        ruin.interpolate();
        let mut at = 0;
        for piece in ruin.pieces().take(100) {
            assert!(piece.range.start == at && at < piece.range.end, "{piece:?} at {at}");
            at = piece.range.end;
            let mut bytes = vec![0; (at - piece.range.start).min(4096) as usize];
            ruin.read_at(&mut bytes, piece.range.start).expect("each byte can be read");
        }
        assert!(at <= size && !format!("{:?}", ruin.traces()).is_empty());
        ended(Export::new().on_progress(stop_at(20)).stream(&ruin, &mut std::io::sink()));
    }
}

/// Changes since each layer, at both ends of the disk: within the disk, in order, or errors.
fn changes(chain: &DiffChain) {
    const WINDOW: u64 = 4 << 20;
    let size = chain.geometry().size;
    let layers = chain.layers().into_iter().map(|layer| Some(layer.id));
    for from in layers.chain([None]) {
        for start in [0, size.saturating_sub(WINDOW)] {
            let mut last = start;
            let changes = chain.changes(from).expect("a layer of the chain");
            for change in changes.within(start..start.saturating_add(WINDOW)) {
                match change {
                    Ok(change) => {
                        let range = change.range;
                        assert!(last <= range.start && range.start < range.end, "{range:?}");
                        assert!(range.end <= size && change.grain >= 512, "{range:?}");
                        last = range.end;
                    }
                    Err(error) => is_told(&error),
                }
            }
        }
    }
}

/// Every read-only operation, on a chain that opened. Operations over whole disks are stopped if
/// the disk claims to be large.
fn operate(chain: &DiffChain) {
    let size = chain.geometry().size;
    for offset in [0, 511, size / 2, size.saturating_sub(1), size, u64::MAX] {
        match Explain::new(offset).run(chain) {
            Ok(explanation) => assert!(!format!("{explanation:?}").is_empty()),
            Err(error) if offset >= size => assert_eq!(error.kind(), ErrorKind::InvalidInput),
            Err(error) => is_told(&error),
        }
    }
    for measure in [Measure::raw(), Measure::vhdx(1 << 20), Measure::vhdx_fixed(256 << 20)] {
        measure.run(chain).map_or_else(|error| is_told_of_log(&error), drop);
    }
    let copy = Sparse::new("copy", Arc::default(), Bounds { len: 64 << 40, ..Bounds::default() });
    ended(Export::new().on_progress(stop_at(400)).run(chain, &*copy));
    ended(Export::new().on_progress(stop_at(20)).stream(chain, &mut std::io::sink()));
    let base = chain.layers().last().expect("a layer").id;
    let base = chain.view(base).expect("a layer of the chain");
    ended(Compare::new().on_progress(stop_at(400)).run(chain, &base));
    ended(Compare::new().on_progress(stop_at(400)).run(chain, &chain.clone()));
}

/// Stops an operation after this many reports.
fn stop_at(mut reports: usize) -> impl FnMut(Progress) -> ControlFlow<()> {
    move |progress| {
        assert!(progress.done <= progress.total, "{progress:?}");
        reports = reports.saturating_sub(1);
        if reports == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn ended<T>(done: avhdx::Result<T>) {
    match done {
        Err(error) if error.kind() != ErrorKind::Cancelled => is_told(&error),
        _ => {}
    }
}

/// As [`is_told`]; an extent may also be unavailable because a log covers the payload.
fn is_told_of_log(error: &Error) {
    if error.kind() != ErrorKind::LogOverlay {
        is_told(error);
    }
}

/// Operations on images that need not open: a check of the chain and of each file, and their forest.
fn examine(tip: &Arc<dyn Storage>, parents: &[Arc<dyn Storage>]) {
    let options = OpenOptions::new().parents(Shelf(parents.to_vec()));
    for log in [LogPolicy::Replay, LogPolicy::Ignore] {
        let check = Check::new().options(options.clone().log(log));
        match check.run_file(Arc::clone(tip)) {
            Ok(report) => {
                assert!(!report.layers.is_empty());
                assert!(report.findings.iter().all(|finding| !finding.meaning.is_empty()));
            }
            Err(error) => is_told(&error),
        }
    }
    for parent in parents {
        let checked = Check::new().alone(true).run_file(Arc::clone(parent));
        checked.map_or_else(|error| is_told(&error), drop);
    }
    let folder = Folder(parents.iter().chain([tip]).cloned().collect());
    let source = PathSource::new().host(Arc::new(folder));
    let forest = Forest::scan([Folder::path("")], &source).expect("the folder is there");
    assert!(forest.nodes().len() <= parents.len() + 1);
    for (id, node) in forest.nodes() {
        assert!(!forest.layers(id).is_empty());
        node.image.as_ref().map_or_else(is_told, drop);
    }
    assert!(forest.findings().len() < 100);
}

/// Reads all bytes and extents of a small disk; of a large one those at both ends and some
/// in between.
pub fn read_all(disk: &dyn Disk) {
    const WINDOW: u64 = 4 << 20;
    let size = disk.geometry().size;
    let mut starts = vec![0, size.saturating_sub(WINDOW)];
    let mut rng = Rng::new(size);
    starts.extend((0..4).map(|_| if size > WINDOW { rng.below(size) } else { 0 }));
    starts.dedup();
    let mut buf = vec![0; 300_001];
    for start in starts {
        let end = size.min(start.saturating_add(WINDOW));
        let mut at = start;
        while at < end {
            let len = (end - at).min(buf.len() as u64);
            if let Err(error) = disk.read_at(&mut buf[..len as usize], at) {
                is_told(&error);
            }
            at += len;
        }
        for extent in disk.extents(start..end) {
            extent.map_or_else(|error| is_told(&error), drop);
        }
    }
    // The whole disk in extents, up to a limit.
    for extent in disk.extents(0..size).take(300) {
        extent.map_or_else(|error| is_told(&error), drop);
    }
}

/// An error names the file, the offset, what was found and expected, and the rule.
/// A storage in memory never fails, so that no fault of an image may be reported as one of the host.
pub fn is_told(error: &Error) {
    let kind = error.kind();
    assert_ne!(kind, ErrorKind::Io, "{error}");
    if matches!(
        kind,
        ErrorKind::Damaged
            | ErrorKind::Unsupported
            | ErrorKind::NotVhdx
            | ErrorKind::LogWithoutEntries
            | ErrorKind::LogPending
    ) {
        assert!(error.file().is_some(), "no file: {error}");
        assert!(error.offset().is_some(), "no offset: {error}");
        assert!(error.found().is_some_and(|found| !found.is_empty()), "nothing found: {error}");
        assert!(error.expected().is_some_and(|it| !it.is_empty()), "nothing expected: {error}");
        assert!(error.section().is_some(), "no section: {error}");
        assert!(!error.code().is_empty() && !error.message().is_empty(), "{error}");
    }
    let expected = [
        ErrorKind::Damaged,
        ErrorKind::Unsupported,
        ErrorKind::NotVhdx,
        ErrorKind::LogWithoutEntries,
        ErrorKind::LogPending,
        ErrorKind::LogOverlay,
        ErrorKind::ParentRequired,
        ErrorKind::ParentMismatch,
        ErrorKind::ParentMissing,
        ErrorKind::Limit,
    ];
    assert!(expected.contains(&kind), "{kind:?}: {error}");
}

/// The files in a read-only folder, under their own names.
#[derive(Debug)]
struct Folder(Vec<Arc<dyn Storage>>);

impl Folder {
    fn path(name: &str) -> PathBuf {
        Path::new("/folder").join(name)
    }

    fn find(&self, path: &Path) -> io::Result<&Arc<dyn Storage>> {
        let found = self.0.iter().find(|file| Self::path(file.name()) == path);
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Host for Folder {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        assert_eq!(access, Access::Read);
        self.find(path).cloned()
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        panic!("{} is created", path.display())
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        match folder == Self::path("") {
            true => Ok(self.0.iter().map(|file| Self::path(file.name())).collect()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        if path == Self::path("") {
            return Ok(Stat::new(FileKind::Folder, 0));
        }
        Ok(Stat::new(FileKind::File, self.find(path)?.len()?))
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.stat(path).map(|_| path.to_path_buf())
    }
    fn is_link(&self, _: &Path) -> io::Result<bool> {
        Ok(false)
    }
    fn rename(&self, from: &Path, _: &Path) -> io::Result<()> {
        panic!("{} is renamed", from.display())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        panic!("{} is removed", path.display())
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        panic!("{} is flushed", folder.display())
    }
}
