//! Storages and hosts that break one promise each, so that their suites are seen to fail.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use avhdx::storage::{Access, FileId, Host, LockMode, LockOutcome, MemStorage, Stat, Storage};
use avhdx_testkit::conformance::{host, storage};

use crate::sim::{FOLDER, SimHost};

/// A storage that breaks this promise.
#[derive(Debug)]
struct BrokenFile {
    inner: MemStorage,
    promise: &'static str,
    position: AtomicU64,
    is_locked: AtomicBool,
}

impl BrokenFile {
    fn breaks(&self, promise: &str) -> bool {
        self.promise == promise
    }
}

impl Storage for BrokenFile {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.promise {
            // As if a file had no end.
            "a read is short at the end of the file only" => {
                buf.fill(0);
                self.inner.read_at(buf, offset).map(|_| buf.len())
            }
            _ => self.inner.read_at(buf, offset),
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.breaks("an exact read fills its buffer or fails") {
            return self.inner.read_at(buf, offset).map(drop);
        }
        self.inner.read_exact_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        if self.breaks("a vectored read returns what a flat one does") {
            // Each from the same place.
            return bufs
                .iter_mut()
                .try_fold(0, |sum, buf| Ok(sum + self.inner.read_at(buf, offset)?));
        }
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match self.promise {
            "a write changes its range and grows the file" => {
                self.inner.write_at(&buf[..buf.len().min(4096)], offset)
            }
            "threads do not disturb each other" => {
                self.position.store(offset, Ordering::SeqCst);
                std::thread::yield_now();
                self.inner.write_at(buf, self.position.load(Ordering::SeqCst))
            }
            _ => self.inner.write_at(buf, offset),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        if self.breaks("what is no data reads as zeros") {
            return Ok(None);
        }
        self.inner.next_data(from)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.inner.len()?;
        self.inner.set_len(len)?;
        if self.breaks("a longer file ends in zeros, a shorter one loses its end") && len > old {
            self.inner.write_at(b"old", old)?;
        }
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        if self.breaks("reserved space keeps what the file holds") {
            self.inner.set_len(0)?;
        }
        self.inner.set_len(len)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        let is_broken = self.breaks("punched space reads as zeros, or nothing changes");
        if is_broken { Ok(true) } else { self.inner.punch(range) }
    }

    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        let is_broken = self.breaks("zeroed bytes read as zeros, or nothing changes");
        if is_broken { Ok(true) } else { self.inner.zero(range) }
    }

    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        let is_broken = self.breaks("a copy has the bytes of its source, which stays");
        if is_broken { Ok(true) } else { self.inner.copy_from(from, from_at, at, len) }
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        let is_broken = self.breaks("a file has one identity, which no other file has");
        Ok(is_broken.then(|| FileId::new(1, 1)))
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        if self.breaks("a lock can be given up and taken again")
            && self.is_locked.swap(true, Ordering::SeqCst)
        {
            return Ok(LockOutcome::InUse("itself".into()));
        }
        self.inner.try_lock(mode)
    }

    fn unlock(&self) -> io::Result<()> {
        self.inner.unlock()
    }
}

fn broken_file(promise: &'static str) -> Arc<dyn Storage> {
    let inner = MemStorage::new(Vec::new());
    Arc::new(BrokenFile { inner, promise, position: 0.into(), is_locked: false.into() })
}

/// A host that breaks this promise.
#[derive(Debug)]
struct BrokenHost {
    inner: SimHost,
    promise: &'static str,
}

impl BrokenHost {
    fn breaks(&self, promise: &str) -> bool {
        self.promise == promise
    }
}

impl Host for BrokenHost {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        match self.promise {
            "all handles of a file see the same bytes" => {
                self.inner.open(path, access).or_else(|_| self.inner.create_new(path))
            }
            "a read-only handle changes nothing" => self.inner.open(path, Access::ReadWrite),
            _ => self.inner.open(path, access),
        }
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        if self.breaks("a new file is empty and takes no other's name") {
            let _ = self.inner.remove(path);
        }
        self.inner.create_new(path)
    }

    fn create_unnamed(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        if self.breaks("a file without a name gets one that is free") {
            return self.inner.create_new(path);
        }
        self.inner.create_unnamed(path)
    }

    fn open_beneath(
        &self,
        root: &Path,
        path: &Path,
        access: Access,
    ) -> io::Result<Arc<dyn Storage>> {
        if self.breaks("nothing outside a folder is opened beneath it") {
            return self.inner.open(&self.inner.canonical(&root.join(path))?, access);
        }
        self.inner.open_beneath(root, path, access)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = self.inner.list(folder)?;
        if self.breaks("a folder lists the names in it") {
            names.pop();
        }
        Ok(names)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let mut stat = self.inner.stat(path)?;
        if self.breaks("a name stands for what its file is") {
            stat.len = 0;
        }
        Ok(stat)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        match self.breaks("a path without links is its own canonical form") {
            true => Ok(path.to_path_buf()),
            false => self.inner.canonical(path),
        }
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.inner.is_link(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.breaks("a rename takes no other file's name") {
            let _ = self.inner.remove(to);
        }
        self.inner.rename(from, to)
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        let is_broken = self.breaks("an exchange swaps two names, or changes nothing");
        if is_broken { Ok(()) } else { self.inner.exchange(one, other) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let is_broken = self.breaks("a removed name is gone, its open file is not");
        if is_broken { Ok(()) } else { self.inner.remove(path) }
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        let is_broken = self.breaks("names can be made durable");
        if is_broken { Err(io::ErrorKind::Other.into()) } else { self.inner.sync_dir(folder) }
    }
}

fn broken_host(promise: &'static str) -> host::Subject {
    let host = Arc::new(BrokenHost { inner: SimHost::default(), promise });
    host::Subject { host, folder: FOLDER.into(), guard: None }
}

fn panics(check: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(check)).is_err()
}

#[test]
fn every_promise_fails_for_a_storage_that_breaks_it() {
    for (promise, check) in storage::OF_ALL {
        assert!(panics(|| check(&|| broken_file(promise))), "goes unseen: {promise}");
        assert!(!panics(|| check(&|| broken_file("none"))), "a right storage fails: {promise}");
    }
}

#[test]
fn every_promise_fails_for_a_host_that_breaks_it() {
    for (promise, check) in host::OF_ALL {
        assert!(panics(|| check(&|| broken_host(promise))), "goes unseen: {promise}");
        assert!(!panics(|| check(&|| broken_host("none"))), "a right host fails: {promise}");
    }
}
