//! A file that counts reads.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use avhdx::storage::{FileId, LockMode, LockOutcome, Storage};

/// Forwards all calls and counts the reads.
#[derive(Debug)]
pub struct Counting {
    inner: Arc<dyn Storage>,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Calls and bytes so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
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
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a check writes nothing");
    }

    fn flush(&self) -> io::Result<()> {
        panic!("a check flushes nothing");
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a check resizes nothing");
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        self.inner.id()
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        assert_eq!(mode, LockMode::Shared);
        self.inner.try_lock(mode)
    }
}
