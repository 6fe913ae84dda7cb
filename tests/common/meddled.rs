//! This machine with a hook that is called before each call, to swap names or to kill the
//! process.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Access, FileId, Host, LocalHost, LockMode, LockOutcome, Stat, Storage};

type Meddler = dyn Fn(&str, &[&Path]) + Send + Sync;

/// This machine with a hook that gets the name and the paths of each call.
#[derive(Clone)]
pub struct Meddled {
    meddler: Arc<Meddler>,
    /// Whether files without names are supported.
    pub has_unnamed: bool,
    /// Whether two names can be exchanged.
    pub exchanges: bool,
    /// Whether files can be identified.
    pub has_ids: bool,
    denies: Option<Arc<Denies>>,
}

type Denies = dyn Fn(&str, &Path) -> bool + Send + Sync;

impl Meddled {
    pub fn new(meddler: impl Fn(&str, &[&Path]) + Send + Sync + 'static) -> Self {
        let meddler = Arc::new(meddler);
        Self { meddler, has_unnamed: true, exchanges: true, has_ids: true, denies: None }
    }

    /// The same without the calls that other systems lack.
    #[allow(dead_code)] // not by all tests
    pub fn poor(self) -> Self {
        Self { has_unnamed: false, exchanges: false, ..self }
    }

    /// The same with calls that are denied, by name and path.
    #[allow(dead_code)] // not by all tests
    pub fn denying(self, denies: impl Fn(&str, &Path) -> bool + Send + Sync + 'static) -> Self {
        Self { denies: Some(Arc::new(denies)), ..self }
    }

    fn told(&self, what: &str, paths: &[&Path]) -> io::Result<()> {
        (self.meddler)(what, paths);
        let is_denied = |path: &&Path| self.denies.as_ref().is_some_and(|f| f(what, path));
        match paths.iter().any(is_denied) {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }

    fn wrap(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        Arc::new(MeddledFile { inner, host: self.clone() })
    }
}

impl fmt::Debug for Meddled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meddled")
    }
}

impl Host for Meddled {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.told("open", &[path])?;
        Ok(self.wrap(LocalHost.open(path, access)?))
    }
    fn open_beneath(
        &self,
        root: &Path,
        path: &Path,
        access: Access,
    ) -> io::Result<Arc<dyn Storage>> {
        self.told("open", &[&root.join(path)])?;
        Ok(self.wrap(LocalHost.open_beneath(root, path, access)?))
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.told("create", &[path])?;
        Ok(self.wrap(LocalHost.create_new(path)?))
    }
    fn create_unnamed(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        if !self.has_unnamed {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.told("create", &[path])?;
        Ok(self.wrap(LocalHost.create_unnamed(path)?))
    }
    fn link(&self, file: &dyn Storage, path: &Path) -> io::Result<()> {
        self.told("link", &[path])?;
        LocalHost.link(file, path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.told("list", &[folder])?;
        LocalHost.list(folder)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.told("stat", &[path])?;
        let mut stat = LocalHost.stat(path)?;
        stat.id = stat.id.filter(|_| self.has_ids);
        Ok(stat)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        LocalHost.canonical(path)
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.told("is_link", &[path])?;
        LocalHost.is_link(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.told("rename", &[from, to])?;
        LocalHost.rename(from, to)
    }
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        if !self.exchanges {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.told("exchange", &[one, other])?;
        LocalHost.exchange(one, other)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.told("remove", &[path])?;
        LocalHost.remove(path)
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.told("sync", &[folder])?;
        LocalHost.sync_dir(folder)
    }
}

#[derive(Debug)]
struct MeddledFile {
    inner: Arc<dyn Storage>,
    host: Meddled,
}

impl MeddledFile {
    fn told(&self, what: &str) -> io::Result<&dyn Storage> {
        self.host.told(what, &[self.inner.path().unwrap()])?;
        Ok(self.inner.as_ref())
    }
}

impl Storage for MeddledFile {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }
    fn via(&self) -> Option<&Path> {
        self.inner.via()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.told("write")?.write_at(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.told("flush")?.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.told("length")?.set_len(len)
    }
    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        self.inner.copy_from(from, from_at, at, len)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        self.inner.punch(range)
    }
    fn copy_owner_from(&self, model: &dyn Storage) -> io::Result<()> {
        self.told("owner")?.copy_owner_from(model)
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(self.inner.id()?.filter(|_| self.host.has_ids))
    }
    #[cfg(unix)]
    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.inner.as_fd()
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.told("lock")?.try_lock(mode)
    }
    fn unlock(&self) -> io::Result<()> {
        self.inner.unlock()
    }
}
