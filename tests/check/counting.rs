//! A file that counts what is read of it.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use avhdx::storage::{FileId, LockMode, LockOutcome, Storage};

/// Passes everything on and counts the reads.
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

/// A dynamic image of 64 TiB with blocks of 1 MiB, all of them there one after the other: as long a
/// file as hardly any file system has.
#[derive(Debug)]
pub struct Full {
    inner: Arc<dyn Storage>,
    bat: Range<u64>,
    /// The block that lies where the one before it does.
    twin: u64,
}

impl Full {
    pub fn new(inner: Arc<dyn Storage>, bat: Range<u64>, twin: u64) -> Self {
        Self { inner, bat, twin }
    }

    /// [MS-VHDX] 2.5: after 4096 blocks comes the entry of a sector bitmap.
    fn entry(&self, index: u64) -> u64 {
        let (chunk, within) = (index / 4097, index % 4097);
        let block = chunk * 4096 + within;
        if within == 4096 || block >= 1 << 26 {
            return 0;
        }
        let place = if block == self.twin { block - 1 } else { block };
        (self.bat.end + (place << 20)) | 6
    }
}

impl Storage for Full {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.bat.contains(&offset) {
            return self.inner.read_at(buf, offset);
        }
        let first = (offset - self.bat.start) / 8;
        for (bytes, index) in buf.chunks_exact_mut(8).zip(first..) {
            bytes.copy_from_slice(&self.entry(index).to_le_bytes());
        }
        Ok(buf.len())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a check writes nothing");
    }

    fn flush(&self) -> io::Result<()> {
        panic!("a check flushes nothing");
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bat.end + (64 << 40))
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a check resizes nothing");
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.inner.try_lock(mode)
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
