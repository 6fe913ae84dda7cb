//! Helpers for several test files: storages that watch, parents in memory, checks that every disk passes.
#![allow(dead_code, clippy::disallowed_methods)] // each test file uses a part of it, and touches real files

pub mod deep;
pub mod disk;
pub mod meddled;
pub mod oracle;
pub mod sparse;
pub mod tools;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use avhdx::storage::{Access, FileId, LocalHost, LockMode, LockOutcome, MemStorage, Storage};
use avhdx::{Candidate, DiffChain, FoundBy, OpenOptions, ParentLink, ParentSource};
use avhdx_testkit::build::Image;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// A read-only file that panics on any change.
#[derive(Debug)]
pub struct ReadOnly(pub Arc<dyn Storage>);

impl Storage for ReadOnly {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn path(&self) -> Option<&Path> {
        self.0.path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        panic!("{} bytes written at {offset:#x} of {}", buf.len(), self.name())
    }
    fn flush(&self) -> io::Result<()> {
        panic!("{} flushed", self.name())
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        panic!("{} set to {len} bytes", self.name())
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        self.0.id()
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        assert_eq!(mode, LockMode::Shared, "{}", self.name());
        self.0.try_lock(mode)
    }
}

/// Counts the reads of a file and their bytes.
#[derive(Debug)]
pub struct Counting {
    inner: Arc<dyn Storage>,
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    pub fn new(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner, calls: AtomicU64::new(0), bytes: AtomicU64::new(0) })
    }

    /// Calls and bytes so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.calls.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Storage for Counting {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.inner.read_at(buf, offset)?;
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(from)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        self.inner.id()
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.inner.try_lock(mode)
    }
}

/// A read-only file in memory.
pub fn memory(name: impl Into<String>, bytes: Vec<u8>) -> Arc<dyn Storage> {
    Arc::new(ReadOnly(Arc::new(MemStorage::new(bytes).named(name))))
}

/// A file of this machine that panics when written to.
pub fn file(path: &Path) -> Arc<dyn Storage> {
    let file = avhdx::storage::Host::open(&LocalHost, path, Access::Read);
    Arc::new(ReadOnly(file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
}

/// Parents without paths: each file is offered to every child, in this order.
#[derive(Clone, Debug, Default)]
pub struct Shelf(pub Vec<Arc<dyn Storage>>);

impl ParentSource for Shelf {
    fn candidates<'a>(
        &'a self,
        _: &'a ParentLink,
        access: Access,
    ) -> Box<dyn Iterator<Item = Candidate> + 'a> {
        assert_eq!(access, Access::Read);
        let offer = |file: &Arc<dyn Storage>| {
            Candidate::new(file.name(), FoundBy::Other, Ok(Arc::clone(file)))
        };
        Box::new(self.0.iter().map(offer))
    }
}

/// Opens the last of these files, given base first, over the others.
pub fn open_stack(options: OpenOptions, files: &[Arc<dyn Storage>]) -> avhdx::Result<DiffChain> {
    let (tip, parents) = files.split_last().expect("at least one file");
    let options = options.parents(Shelf(parents.to_vec()));
    options.open_chain(options.open_file(Arc::clone(tip))?)
}

/// The same for images, written to memory as `l0`, `l1` and so on.
pub fn open_images(options: OpenOptions, images: &[Image]) -> avhdx::Result<DiffChain> {
    open_stack(options, &in_memory(images))
}

pub fn in_memory(images: &[Image]) -> Vec<Arc<dyn Storage>> {
    images.iter().enumerate().map(|(n, image)| memory(format!("l{n}"), image.to_bytes())).collect()
}

/// Lists every file below a folder, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
