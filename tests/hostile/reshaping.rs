//! Gives images another shape: compactions, other sizes, other bases, other types.
//!
//! Each either is refused with an error that says why, or does what it says. Either way the disk reads as before, where
//! it could be read, and a check finds no fault that was not there.

use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Compact, Progress, Provision, Rebase, Resize};
use avhdx::storage::{Access, FileKind, Host, LockMode, LockOutcome, Stat, Storage};
use avhdx::{Budget, Disk, Error, ErrorKind, OpenOptions};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::rng::Rng;

use crate::TABLES;
use crate::common::sparse::{Bounds, Sparse};
use crate::common::{MIB, ReadOnly, Shelf};
use crate::reading::{is_told, unchanging};
use crate::writing::{Model, faults};

/// Has each operation change the last of these files. Returns which of them did.
pub fn reshape(files: &[Arc<Vec<u8>>], seed: u64) -> [bool; 4] {
    let mut have_done = [false; 4];
    let mut rng = Rng::new(seed);
    let other = Arc::new(other());
    for (operation, has_done) in have_done.iter_mut().enumerate() {
        let place = Place::new(files, &other, rng.chance(3, 4));
        let Ok(before) = place.open(false) else { continue };
        let mut model = Model::of(&before);
        let (size, faults_before) = (before.geometry().size, place.faults());
        // A fixed disk that grows writes blocks of zeros: here, a few of some MiB.
        let grows = before.tip().block_size() <= 4 << 20;
        drop(before);
        place.tip.take_done();
        let mut left = if operation == 1 { 5 } else { 300 };
        let on = |progress: Progress| {
            assert!(progress.done <= progress.total, "{progress:?}");
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let done = match operation {
            0 => place.open(true).and_then(|chain| {
                let compact = Compact::new().content(rng.chance(1, 2)).punch(rng.chance(1, 3));
                drop(compact.forecast(&chain));
                let done = compact.on_progress(on).run(&chain);
                chain.close()?;
                done.map(drop)
            }),
            1 => place.open(true).and_then(|chain| {
                let sizes = [size / 2, 512, 700, size + MIB, 1 << 40, size * 3];
                let size = sizes[rng.below(if grows { 6 } else { 3 }) as usize];
                let resize = Resize::to(size).shrink(rng.chance(1, 2));
                drop(resize.forecast(&chain));
                let done = resize.on_progress(on).run(&chain);
                chain.close()?;
                done.map(drop)
            }),
            2 => {
                let has_base = rng.chance(1, 2) && files.len() > 1;
                let base = if has_base { "l0" } else { "other" };
                let rebase = Rebase::new(path(base)).options(place.options(true));
                drop(rebase.forecast(path("tip")));
                rebase.on_progress(on).run(path("tip")).map(drop)
            }
            _ => {
                let fixed = rng.chance(2, 3);
                let provision = if fixed { Provision::fixed() } else { Provision::dynamic() };
                let provision = provision.options(place.options(true));
                drop(provision.forecast(path("tip")));
                provision.on_progress(on).run(path("tip")).map(drop)
            }
        };
        *has_done = done.is_ok();
        if let Err(error) = &done {
            is_told_of_operation(error);
        }
        let after = place.open(false);
        let after = after.unwrap_or_else(|error| panic!("{operation}: not to be read: {error}"));
        model.cut(size.min(after.geometry().size));
        model.check(&after);
        drop(after);
        let new: Vec<_> = place.faults().difference(&faults_before).copied().collect();
        assert!(new.is_empty(), "{operation}: new findings: {new:?}, {done:?}");
    }
    have_done
}

/// As [`is_told`]; an operation may also not be possible, or not without consent, or have been stopped.
fn is_told_of_operation(error: &Error) {
    let others = [
        ErrorKind::Cancelled,
        ErrorKind::InvalidInput,
        ErrorKind::WouldLose,
        ErrorKind::Unfinished,
        ErrorKind::Merged,
        ErrorKind::HasChildren,
    ];
    // A change needs room for its entries in the log and the metadata, which no place in the file is to blame for.
    let is_of_room = error.kind() == ErrorKind::Unsupported && error.section().is_some();
    if !others.contains(&error.kind()) && !is_of_room {
        is_told(error);
    }
}

/// A base that has nothing to do with any of the images.
fn other() -> Vec<u8> {
    let mut image = Image::dynamic(2 * MIB);
    image.reseed(77).put(1, Block::full(Data::Pattern(77)));
    image.to_bytes()
}

fn path(name: &str) -> PathBuf {
    Path::new("/place").join(name)
}

/// A folder with the tip, which can be written to, its parents, and another base.
#[derive(Clone, Debug)]
struct Place {
    tip: Arc<Sparse>,
    others: Vec<Arc<dyn Storage>>,
}

impl Place {
    fn new(files: &[Arc<Vec<u8>>], other: &Arc<Vec<u8>>, tells: bool) -> Self {
        let (tip, parents) = files.split_last().expect("a file");
        let tip = Sparse::new("tip", Arc::clone(tip), Bounds { tells, ..Bounds::default() });
        let named = parents.iter().enumerate().map(|(n, bytes)| (format!("l{n}"), bytes));
        let others = named.chain([("other".to_owned(), other)]);
        Self { tip, others: others.map(|(name, bytes)| unchanging(name, bytes)).collect() }
    }

    fn options(&self, writable: bool) -> OpenOptions {
        OpenOptions::new()
            .host(Arc::new(self.clone()))
            .writable(writable)
            .orphan_children(true)
            .budget(Budget::new(TABLES))
            .parents(Shelf(self.others.clone()))
    }

    fn open(&self, writable: bool) -> avhdx::Result<avhdx::DiffChain> {
        self.options(writable).open(path("tip"))
    }

    fn faults(&self) -> std::collections::BTreeSet<&'static str> {
        faults(&self.tip, &self.others)
    }

    fn find(&self, wanted: &Path) -> io::Result<&Arc<dyn Storage>> {
        let found = self.others.iter().find(|file| path(file.name()) == wanted);
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Host for Place {
    fn open(&self, wanted: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        if wanted != path("tip") {
            assert_eq!(access, Access::Read, "{}", wanted.display());
            return self.find(wanted).cloned();
        }
        let tip = Placed(path("tip"), Arc::clone(&self.tip));
        Ok(match access {
            Access::Read => Arc::new(ReadOnly(Arc::new(tip))),
            _ => Arc::new(tip),
        })
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        panic!("{} is created", path.display())
    }
    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        let others = self.others.iter().map(|file| path(file.name()));
        Ok(others.chain([path("tip")]).collect())
    }
    fn stat(&self, wanted: &Path) -> io::Result<Stat> {
        let len = if wanted == path("tip") { self.tip.len()? } else { self.find(wanted)?.len()? };
        Ok(Stat::new(FileKind::File, len))
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_path_buf())
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
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// A file with a path, which paths to parents start at. It can be punched where it can be zeroed.
#[derive(Debug)]
struct Placed(PathBuf, Arc<Sparse>);

impl Storage for Placed {
    fn name(&self) -> &str {
        self.1.name()
    }
    fn path(&self) -> Option<&Path> {
        Some(&self.0)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.1.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.1.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.set_len(len)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.1.set_len(len)
    }
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.1.next_data(from)
    }
    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        self.1.zero(range)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        self.1.zero(range)
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.1.try_lock(mode)
    }
    fn unlock(&self) -> io::Result<()> {
        self.1.unlock()
    }
}
