//! A simulated host: files in memory, and a record of everything that happens to them.
//!
//! A hook sees each step before it happens, and may make it fail or do other things first, such as
//! letting another thread write. In addition, a refusal makes steps fail as on a host that is out of space
//! or broken, and determines how much of a failed write took effect nevertheless.

mod bytes;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use avhdx::storage::{Access, FileId, FileKind, Host, LockMode, LockOutcome, Stat, Storage};

#[allow(unused_imports)] // shared by tests, not all of which use all
pub use bytes::{Bytes, Chunk, PAGE, STALE, Sum, mix};

/// The folder of all files of a simulated host.
pub const FOLDER: &str = "/sim";

/// An event, in one order over all files.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were written; the file grows to hold them.
    Write(usize, Arc<Chunk>),
    /// The length changed.
    SetLen(usize, u64),
    /// A name changed.
    Name(NameChange),
    /// A flush of the file started: everything before is durable when it returns.
    FlushStart(usize),
    /// The flush that started at this event returned.
    FlushEnd(usize, usize),
    /// A flush of the names started.
    SyncStart,
    /// The flush of the names that started at this event returned.
    SyncEnd(usize),
    /// A mark set by the user of the disk.
    Mark,
}

/// A change of names.
#[derive(Clone, Debug)]
pub enum NameChange {
    /// A new file was created under the name.
    Create(PathBuf, usize),
    /// The file with the first name was given the second.
    Rename(PathBuf, PathBuf, usize),
    /// The two files with these names and numbers exchanged names.
    Exchange(PathBuf, PathBuf, (usize, usize)),
    /// The name was removed.
    Remove(PathBuf),
}

/// A step that is about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A read of the file.
    Read {
        /// The file.
        file: usize,
        /// The offset.
        at: u64,
    },
    /// A write to the file.
    Write {
        /// The file.
        file: usize,
        /// The offset.
        at: u64,
        /// The number of bytes.
        len: usize,
    },
    /// A change of the length.
    SetLen {
        /// The file.
        file: usize,
        /// The new length.
        len: u64,
    },
    /// The start of a flush.
    Flush(usize),
    /// The return of a flush.
    Flushed(usize),
    /// A file gets its first name or another one.
    Name,
    /// A flush of the names.
    Sync,
}

/// How a step fails.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// The error, as a number of the operating system.
    pub code: i32,
    /// How much of it took effect nevertheless.
    pub arrived: Arrived,
}

/// How much of a failed write or change of the length took effect nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// Nothing.
    Nothing,
    /// The first half of the units; nothing of a single unit.
    Half,
    /// All of it, though it is reported as failed.
    All,
}

/// ENOSPC.
const NO_SPACE: i32 = 28;
/// The unit that reaches the disk completely or not at all.
const UNIT: u64 = 512;

/// All files and names.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The contents, by number; a file without a name is kept.
    pub files: Vec<Bytes>,
    /// The number of the file behind each name.
    pub names: BTreeMap<PathBuf, usize>,
    /// Whether the host of these files may show stale bytes where a crash lost the first write to space that a
    /// file grew by. Another host shows zeros there.
    pub shows_stale: bool,
}

impl Files {
    /// A checksum over all names and their files, minus what `but` returns for each file.
    pub fn sum_but(&self, but: impl Fn(&Path, &Bytes) -> Sum) -> Sum {
        let named = self.names.iter().map(|(path, number)| {
            // The random part of a temporary name is ignored.
            let name = path.as_os_str().as_encoded_bytes();
            let name = if name.ends_with(b".tmp") { b"tmp" } else { name };
            let name = name.iter().fold(7, |sum, byte| mix(sum, u64::from(*byte) + 1));
            let file = &self.files[*number];
            let sum = file.sum() ^ but(path, file);
            Sum { exact: mix(sum.exact | 1, name), plain: mix(sum.plain | 1, name) }
        });
        named.fold(Sum::default(), |sum, part| sum ^ part)
    }

    /// A checksum over everything.
    pub fn sum(&self) -> Sum {
        self.sum_but(|_, _| Sum::default())
    }

    /// The file with this name.
    pub fn file(&self, path: &Path) -> Option<&Bytes> {
        Some(&self.files[*self.names.get(path)?])
    }

    /// Applies a change to the files.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Write(file, chunk) => self.file_mut(*file).write_chunk(chunk),
            Event::SetLen(file, len) => self.file_mut(*file).set_len(*len),
            Event::Name(NameChange::Create(path, file)) => {
                self.file_mut(*file);
                self.names.insert(path.clone(), *file);
            }
            Event::Name(NameChange::Rename(from, to, file)) => {
                self.file_mut(*file);
                self.names.remove(from);
                self.names.insert(to.clone(), *file);
            }
            Event::Name(NameChange::Exchange(one, other, files)) => {
                self.file_mut(files.0.max(files.1));
                self.names.insert(one.clone(), files.1);
                self.names.insert(other.clone(), files.0);
            }
            Event::Name(NameChange::Remove(path)) => drop(self.names.remove(path)),
            _ => {}
        }
    }

    /// A file comes into existence with whichever part of it reaches the disk first.
    pub fn file_mut(&mut self, file: usize) -> &mut Bytes {
        while self.files.len() <= file {
            self.files.push(Bytes::default());
        }
        &mut self.files[file]
    }
}

type Hook = dyn Fn(Step) -> io::Result<()> + Send + Sync;
type Refuse = dyn Fn(&SimHost, Step) -> Option<Refusal> + Send + Sync;

/// A host in memory. Clones are the same host.
#[derive(Clone, Default)]
pub struct SimHost(Arc<World>);

#[derive(Default)]
struct World {
    volume: Volume,
    files: RwLock<Files>,
    history: Mutex<Option<Vec<Event>>>,
    hook: RwLock<Option<Arc<Hook>>>,
    refuse: RwLock<Option<Arc<Refuse>>>,
    free_space: Mutex<Option<u64>>,
    /// Whether the host cannot copy from file to file itself.
    copies_by_hand: AtomicBool,
    /// Whether the host takes back no part of a file.
    keeps_space: AtomicBool,
}

/// Distinguishes the files of one host from those of others: images may share a budget across hosts.
struct Volume(u64);

impl Default for Volume {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl SimHost {
    /// A host with these files and no record.
    pub fn new(files: Files) -> Self {
        Self(Arc::new(World { files: RwLock::new(files), ..World::default() }))
    }

    /// An empty host that shows stale bytes, or zeros, where a crash lost the first write to grown space.
    pub fn showing_stale(shows_stale: bool) -> Self {
        Self::new(Files { shows_stale, ..Files::default() })
    }

    /// The files as a program would see them now.
    pub fn files(&self) -> Files {
        self.read().clone()
    }

    /// Starts recording; the present files count as durable.
    pub fn record(&self) {
        *self.history() = Some(Vec::new());
    }

    /// The record so far.
    pub fn events(&self) -> Vec<Event> {
        self.history().clone().unwrap_or_default()
    }

    /// Adds a mark to the record and returns its position.
    pub fn mark(&self) -> usize {
        self.note(Event::Mark)
    }

    /// Calls `hook` before each step from now on.
    pub fn hook(&self, hook: impl Fn(Step) -> io::Result<()> + Send + Sync + 'static) {
        *self.0.hook.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    }

    /// Removes the hook.
    pub fn unhook(&self) {
        *self.0.hook.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Asks `refuse` before each step from now on whether it fails.
    pub fn refuse(&self, refuse: impl Fn(&Self, Step) -> Option<Refusal> + Send + Sync + 'static) {
        *self.0.refuse.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(refuse));
    }

    /// Removes the refusal.
    pub fn relent(&self) {
        *self.0.refuse.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs out of space at the `n`th step from now on that may need some, counted from 0, and all later ones:
    /// writes, growth and new names. Returns a counter of these steps.
    pub fn run_out_at(&self, n: usize, arrived: Arrived) -> Arc<AtomicUsize> {
        self.run_out(n..usize::MAX, arrived)
    }

    /// Runs out of space at these of the steps from now on that may need some, counted from 0: writes, growth and
    /// new names. Returns a counter of these steps.
    pub fn run_out(&self, steps: Range<usize>, arrived: Arrived) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        self.refuse(move |host, step| {
            let needs_space = match step {
                Step::Write { .. } | Step::Name => true,
                Step::SetLen { file, len } => len > host.read().files[file].len(),
                _ => false,
            };
            let is_out = needs_space && steps.contains(&counted.fetch_add(1, Ordering::SeqCst));
            is_out.then_some(Refusal { code: NO_SPACE, arrived })
        });
        count
    }

    /// Sets the reported free space; unknown by default.
    pub fn set_free_space(&self, bytes: Option<u64>) {
        *self.0.free_space.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Lets files be copied only through the program from now on.
    pub fn copy_by_hand(&self) {
        self.0.copies_by_hand.store(true, Ordering::SeqCst);
    }

    /// Takes back no part of a file from now on.
    pub fn keep_space(&self) {
        self.0.keeps_space.store(true, Ordering::SeqCst);
    }

    /// Drops all files: a killed image keeps its host alive.
    pub fn empty(&self) {
        self.write().files.iter_mut().for_each(|file| *file = Bytes::default());
        *self.history() = None;
    }

    /// Replaces all files, as after a flush that lost its data. The record does not
    /// contain this.
    pub fn lose(&self, files: Files) {
        *self.write() = files;
    }

    fn before(&self, step: Step) -> io::Result<()> {
        self.hooked(step)?;
        self.refused(step).map_or(Ok(()), |refusal| Err(refusal.error()))
    }

    fn hooked(&self, step: Step) -> io::Result<()> {
        let hook = self.0.hook.read().unwrap_or_else(PoisonError::into_inner).clone();
        hook.map_or(Ok(()), |hook| hook(step))
    }

    fn refused(&self, step: Step) -> Option<Refusal> {
        let refuse = self.0.refuse.read().unwrap_or_else(PoisonError::into_inner).clone();
        refuse?(self, step)
    }

    fn change(&self, event: Event) {
        let mut files = self.write();
        files.apply(&event);
        // Under the lock, so that the record has the order of the changes.
        self.note(event);
    }

    fn note(&self, event: Event) -> usize {
        match &mut *self.history() {
            Some(events) => {
                events.push(event);
                events.len() - 1
            }
            None => 0,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Files> {
        self.0.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Files> {
        self.0.files.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn history(&self) -> MutexGuard<'_, Option<Vec<Event>>> {
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn storage(&self, path: &Path, file: usize, access: Access) -> Arc<dyn Storage> {
        let name = path.display().to_string();
        let (path, renamed) = (path.to_path_buf(), OnceLock::new());
        Arc::new(SimFile { host: self.clone(), path, name, renamed, file, access })
    }

    fn id_of(&self, file: usize) -> FileId {
        FileId::new(self.0.volume.0, file as u128)
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.read().names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Refusal {
    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(self.code)
    }
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimHost")
    }
}

impl Host for SimHost {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        Ok(self.storage(path, self.find(path)?, access))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.before(Step::Name)?;
        let file = {
            let mut files = self.write();
            if files.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let file = files.files.len();
            let event = Event::Name(NameChange::Create(path.to_path_buf(), file));
            files.apply(&event);
            self.note(event);
            file
        };
        Ok(self.storage(path, file, Access::ReadWrite))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.read().names.keys().filter(|path| path.parent() == Some(folder)).cloned().collect())
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        if path == Path::new(FOLDER) {
            return Ok(Stat::new(FileKind::Folder, 0));
        }
        let file = self.find(path)?;
        let mut stat = Stat::new(FileKind::File, self.read().files[file].len());
        stat.id = Some(self.id_of(file));
        Ok(stat)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                std::path::Component::CurDir => {}
                std::path::Component::ParentDir => drop(plain.pop()),
                part => plain.push(part),
            }
        }
        Ok(plain)
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.find(path).map(|_| false)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.find(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = self.find(from)?;
        self.before(Step::Name)?;
        self.change(Event::Name(NameChange::Rename(from.into(), to.into(), file)));
        Ok(())
    }

    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        let files = (self.find(one)?, self.find(other)?);
        self.before(Step::Name)?;
        self.change(Event::Name(NameChange::Exchange(one.into(), other.into(), files)));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.change(Event::Name(NameChange::Remove(path.into())));
        Ok(())
    }

    fn free_space(&self, _: &Path) -> io::Result<Option<u64>> {
        Ok(*self.0.free_space.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.before(Step::Sync)?;
        let start = self.note(Event::SyncStart);
        self.note(Event::SyncEnd(start));
        Ok(())
    }
}

/// A file of a simulated host.
#[derive(Debug)]
struct SimFile {
    host: SimHost,
    path: PathBuf,
    name: String,
    renamed: OnceLock<(String, PathBuf)>,
    file: usize,
    access: Access,
}

impl SimFile {
    fn writable(&self) -> io::Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn put(&self, buf: &[u8], offset: u64) {
        let chunk = Arc::new(Chunk::new(offset, buf));
        // Growth is a separate change: the host may keep it and lose the data.
        let len = self.host.read().files[self.file].len();
        if chunk.end() > len {
            self.host.change(Event::SetLen(self.file, chunk.end()));
        }
        self.host.change(Event::Write(self.file, chunk));
    }
}

impl Storage for SimFile {
    fn name(&self) -> &str {
        self.renamed.get().map_or(&self.name, |(name, _)| name)
    }

    fn path(&self) -> Option<&Path> {
        Some(self.renamed.get().map_or(&self.path, |(_, path)| path))
    }

    fn renamed(&self, path: &Path) -> bool {
        self.renamed.set((path.display().to_string(), path.to_path_buf())).is_ok()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.host.before(Step::Read { file: self.file, at: offset })?;
        let files = self.host.read();
        let bytes = &files.files[self.file];
        let len = bytes.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        bytes.read(offset, &mut buf[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.writable()?;
        let step = Step::Write { file: self.file, at: offset, len: buf.len() };
        self.host.hooked(step)?;
        if let Some(refusal) = self.host.refused(step) {
            let end = offset + buf.len() as u64;
            let half = (offset + buf.len() as u64 / 2) / UNIT * UNIT;
            match refusal.arrived {
                Arrived::Nothing => {}
                Arrived::Half if half <= offset => {}
                Arrived::Half => self.put(&buf[..(half.min(end) - offset) as usize], offset),
                Arrived::All => self.put(buf, offset),
            }
            return Err(refusal.error());
        }
        self.put(buf, offset);
        Ok(())
    }

    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        self.writable()?;
        let id = from.id()?;
        let known = self.host.read().files.len();
        let (Some(file), false) = (
            (0..known).find(|file| id == Some(self.host.id_of(*file))),
            self.host.0.copies_by_hand.load(Ordering::SeqCst),
        ) else {
            return Ok(false);
        };
        let from = self.host.storage(from.path().unwrap_or(&self.path), file, Access::Read);
        let mut bytes = vec![0; len as usize];
        from.read_exact_at(&mut bytes, from_at)?;
        self.write_at(&bytes, at)?;
        Ok(true)
    }

    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        if self.host.0.keeps_space.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.zero(range)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        self.writable()?;
        let end = range.end.min(self.len()?);
        if range.start < end {
            self.write_at(&vec![0; (end - range.start) as usize], range.start)?;
        }
        Ok(true)
    }

    fn flush(&self) -> io::Result<()> {
        self.host.before(Step::Flush(self.file))?;
        let start = self.host.note(Event::FlushStart(self.file));
        self.host.before(Step::Flushed(self.file))?;
        self.host.note(Event::FlushEnd(self.file, start));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.host.read().files[self.file].len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        let step = Step::SetLen { file: self.file, len };
        self.host.hooked(step)?;
        let refusal = self.host.refused(step);
        if refusal.is_none_or(|refusal| refusal.arrived == Arrived::All) {
            self.host.change(Event::SetLen(self.file, len));
        }
        refusal.map_or(Ok(()), |refusal| Err(refusal.error()))
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn lost_writes_read_as_zeros(&self) -> bool {
        !self.host.read().shows_stale
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(Some(self.host.id_of(self.file)))
    }

    fn try_lock(&self, _: LockMode) -> io::Result<LockOutcome> {
        Ok(LockOutcome::Locked)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}
