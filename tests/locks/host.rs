//! A host with mandatory locks that belong to one handle each, as on Windows, over the simulated host.
//!
//! A file that one handle has locked exclusively cannot be read or written through another. A file that is locked for
//! reading cannot be written, not even by the holders. A second lock on one handle is refused. A hook is called
//! before each lock is taken, while the file is still unlocked.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::{Access, FileId, Host, LockMode, LockOutcome, Stat, Storage};

use crate::sim::{Files, SimHost};

/// Clones are the same host.
#[derive(Clone, Debug, Default)]
pub struct StrictHost {
    pub sim: SimHost,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// The handles that hold a lock, by file.
    locks: Mutex<HashMap<FileId, Vec<(u64, LockMode)>>>,
    handles: AtomicU64,
    before_lock: Mutex<Option<Arc<BeforeLock>>>,
}

type BeforeLock = dyn Fn(&StrictHost, &Path, LockMode) + Send + Sync;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shared").field(&self.locks).finish()
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StrictHost {
    pub fn new(files: Files) -> Self {
        Self { sim: SimHost::new(files), shared: Arc::default() }
    }

    /// Calls this hook before each lock is taken, until it is replaced.
    pub fn before_lock(&self, tell: impl Fn(&Self, &Path, LockMode) + Send + Sync + 'static) {
        *held(&self.shared.before_lock) = Some(Arc::new(tell));
    }

    pub fn tell_nobody(&self) {
        *held(&self.shared.before_lock) = None;
    }

    /// The number of locks held.
    pub fn locks(&self) -> usize {
        held(&self.shared.locks).values().map(Vec::len).sum()
    }

    fn strict(&self, file: Arc<dyn Storage>) -> Arc<dyn Storage> {
        let handle = self.shared.handles.fetch_add(1, Ordering::SeqCst);
        Arc::new(StrictFile { host: self.clone(), file, handle })
    }
}

impl Host for StrictHost {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        Ok(self.strict(self.sim.open(path, access)?))
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        Ok(self.strict(self.sim.create_new(path)?))
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.sim.list(folder)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.sim.stat(path)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.sim.canonical(path)
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.sim.is_link(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.sim.remove(path)
    }
    fn free_space(&self, folder: &Path) -> io::Result<Option<u64>> {
        self.sim.free_space(folder)
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.sim.sync_dir(folder)
    }
}

#[derive(Debug)]
struct StrictFile {
    host: StrictHost,
    file: Arc<dyn Storage>,
    handle: u64,
}

impl StrictFile {
    fn key(&self) -> FileId {
        self.file.id().unwrap().unwrap()
    }

    /// Refuses if a lock for which `binds` is true excludes this handle.
    fn check(&self, binds: impl Fn(&(u64, LockMode)) -> bool) -> io::Result<()> {
        match held(&self.host.shared.locks).get(&self.key()).is_some_and(|l| l.iter().any(binds)) {
            true => {
                Err(io::Error::new(io::ErrorKind::ResourceBusy, "another handle has it locked"))
            }
            false => Ok(()),
        }
    }

    fn may_read(&self) -> io::Result<()> {
        self.check(|(owner, mode)| *owner != self.handle && *mode == LockMode::Exclusive)
    }

    fn may_write(&self) -> io::Result<()> {
        self.check(|(owner, mode)| *owner != self.handle || *mode == LockMode::Shared)
    }
}

impl Storage for StrictFile {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn path(&self) -> Option<&Path> {
        self.file.path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.may_read()?;
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.may_write()?;
        self.file.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.may_write()?;
        self.file.set_len(len)
    }
    fn reserve(&self, len: u64) -> io::Result<()> {
        self.may_write()?;
        self.file.reserve(len)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        self.may_write()?;
        self.file.punch(range)
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        self.file.id()
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        let tell = held(&self.host.shared.before_lock).clone();
        if let (Some(tell), Some(path)) = (tell, self.path()) {
            tell(&self.host, path, mode);
        }
        let mut locks = held(&self.host.shared.locks);
        let locks = locks.entry(self.key()).or_default();
        let in_the_way = locks.iter().find(|(owner, other)| {
            *owner == self.handle || mode == LockMode::Exclusive || *other == LockMode::Exclusive
        });
        match in_the_way {
            Some((owner, _)) if *owner == self.handle => {
                Ok(LockOutcome::InUse("this handle has it locked already".into()))
            }
            Some(_) => Ok(LockOutcome::InUse("another handle has it locked".into())),
            None => {
                locks.push((self.handle, mode));
                Ok(LockOutcome::Locked)
            }
        }
    }
    fn unlock(&self) -> io::Result<()> {
        if let Some(locks) = held(&self.host.shared.locks).get_mut(&self.key()) {
            locks.retain(|(owner, _)| *owner != self.handle);
        }
        Ok(())
    }
}

impl Drop for StrictFile {
    fn drop(&mut self) {
        drop(self.unlock());
    }
}
