//! A host that accounts for the bytes read from and written to each file, and for the space of all files.

use std::collections::BTreeSet;
use std::io;
use std::ops::{Add, Range, Sub};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::{Access, FileId, Host, LockMode, LockOutcome, Stat, Storage};

use super::sim::{Files, SimHost};

pub const PAGE: u64 = 4096;
/// Pages of the log, which are written when an image is created.
const LOG: Range<u64> = 256..512;

/// The host. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ledger {
    host: SimHost,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    accounts: Vec<Account>,
    now: Space,
    most: Space,
}

/// What was done to a file.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// The ranges read and written through this process.
    pub read: Vec<Range<u64>>,
    pub written: Vec<Range<u64>>,
    /// The ranges that the host copied from it and to it.
    pub lent: Vec<Range<u64>>,
    pub copied: Vec<Range<u64>>,
}

#[derive(Debug)]
struct Account {
    id: FileId,
    done: Done,
    is_named: bool,
    len: u64,
    /// Pages that are not holes.
    held: BTreeSet<u64>,
    /// Holes whose space was freed.
    punched: BTreeSet<u64>,
}

/// The space of files in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// By their lengths, minus what was freed.
    pub room: u64,
    /// In pages that were written.
    pub held: u64,
}

impl Ledger {
    /// Files whose pages of zeros are holes if `has_holes`, except in logs of 1 MiB at the place where new
    /// images have them.
    pub fn new(files: Files, has_holes: bool) -> Self {
        let host = SimHost::new(files);
        let mut book = Book::default();
        let files = host.files();
        for (path, number) in &files.names {
            let bytes = &files.files[*number];
            let len = bytes.len();
            let is_held = |number: &u64| {
                let mut page = vec![0; (len - number * PAGE).min(PAGE) as usize];
                bytes.read(number * PAGE, &mut page);
                let is_log = LOG.contains(number);
                !has_holes || is_log || page.iter().any(|byte| *byte != 0)
            };
            let held = (0..len.div_ceil(PAGE)).filter(is_held).collect();
            let account = Account::new(host.stat(path).unwrap().id.unwrap());
            let account = Account { held, len, ..account };
            book.now = book.now + account.space();
            book.accounts.push(account);
        }
        book.most = book.now;
        Self { host, book: Arc::new(Mutex::new(book)) }
    }

    /// The host below, which does no accounting.
    pub fn host(&self) -> &SimHost {
        &self.host
    }

    /// Resets the account.
    pub fn begin(&self) {
        let mut book = self.book();
        book.most = book.now;
        book.accounts.iter_mut().for_each(|account| account.done = Done::default());
    }

    /// The identity of the file with this name.
    pub fn id(&self, path: &Path) -> FileId {
        self.host.stat(path).unwrap().id.unwrap()
    }

    /// What was done to the file since the account was reset.
    pub fn done(&self, id: FileId) -> Done {
        self.book().account(id).done.clone()
    }

    /// The present space of the files.
    pub fn now(&self) -> Space {
        self.book().now
    }

    /// The peak of the space since the account was reset.
    pub fn most(&self) -> Space {
        self.book().most
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inner: Arc<dyn Storage>) -> Arc<dyn Storage> {
        let id = inner.id().unwrap().unwrap();
        Arc::new(Kept { inner, id, ledger: self.clone() })
    }
}

impl Book {
    fn account(&mut self, id: FileId) -> &mut Account {
        let known = self.accounts.iter().position(|account| account.id == id);
        let at = known.unwrap_or(self.accounts.len());
        if known.is_none() {
            self.accounts.push(Account::new(id));
        }
        &mut self.accounts[at]
    }

    /// Changes the space of a file.
    fn change(&mut self, id: FileId, change: impl FnOnce(&mut Account)) {
        let account = self.account(id);
        let before = account.space();
        change(account);
        let after = account.space();
        self.now = self.now + after - before;
        self.most.room = self.most.room.max(self.now.room);
        self.most.held = self.most.held.max(self.now.held);
    }
}

impl Account {
    fn new(id: FileId) -> Self {
        Self {
            id,
            done: Done::default(),
            is_named: true,
            len: 0,
            held: BTreeSet::new(),
            punched: BTreeSet::new(),
        }
    }

    fn space(&self) -> Space {
        let pages = |pages: &BTreeSet<u64>| pages.len() as u64 * PAGE;
        match self.is_named {
            true => Space { room: self.len - pages(&self.punched), held: pages(&self.held) },
            false => Space::default(),
        }
    }

    fn hold(&mut self, range: &Range<u64>) {
        self.len = self.len.max(range.end);
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            self.held.insert(page);
            self.punched.remove(&page);
        }
    }

    fn punch(&mut self, range: &Range<u64>) {
        for page in range.start.div_ceil(PAGE)..range.end.min(self.len) / PAGE {
            self.held.remove(&page);
            self.punched.insert(page);
        }
    }

    fn cut(&mut self, len: u64) {
        self.len = len;
        self.held.retain(|page| page * PAGE < len);
        self.punched.retain(|page| (page + 1) * PAGE <= len);
    }
}

impl Add for Space {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { room: self.room + other.room, held: self.held + other.held }
    }
}

impl Sub for Space {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { room: self.room - other.room, held: self.held - other.held }
    }
}

impl Host for Ledger {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        Ok(self.file(self.host.open(path, access)?))
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        Ok(self.file(self.host.create_new(path)?))
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.host.list(folder)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.host.stat(path)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.host.canonical(path)
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.host.is_link(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.host.rename(from, to)
    }
    fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.host.exchange(one, other)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        let id = self.host.stat(path)?.id.unwrap();
        self.host.remove(path)?;
        self.book().change(id, |account| account.is_named = false);
        Ok(())
    }
    fn free_space(&self, folder: &Path) -> io::Result<Option<u64>> {
        self.host.free_space(folder)
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.host.sync_dir(folder)
    }
}

/// A file that is accounted for.
#[derive(Debug)]
struct Kept {
    inner: Arc<dyn Storage>,
    id: FileId,
    ledger: Ledger,
}

impl Kept {
    fn change(&self, change: impl FnOnce(&mut Account)) {
        self.ledger.book().change(self.id, change);
    }
}

impl Storage for Kept {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.inner.read_at(buf, offset)?;
        self.ledger.book().account(self.id).done.read.push(offset..offset + len as u64);
        Ok(len)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(buf, offset)?;
        self.change(|account| {
            let range = offset..offset + buf.len() as u64;
            account.hold(&range);
            account.done.written.push(range);
        });
        Ok(())
    }
    fn copy_from(&self, from: &dyn Storage, from_at: u64, at: u64, len: u64) -> io::Result<bool> {
        let is_copied = self.inner.copy_from(from, from_at, at, len)?;
        if is_copied {
            self.change(|account| {
                account.hold(&(at..at + len));
                account.done.copied.push(at..at + len);
            });
            let from = from.id()?.unwrap();
            self.ledger.book().account(from).done.lent.push(from_at..from_at + len);
        }
        Ok(is_copied)
    }
    fn punch(&self, range: Range<u64>) -> io::Result<bool> {
        let is_punched = self.inner.punch(range.clone())?;
        if is_punched {
            self.change(|account| account.punch(&range));
        }
        Ok(is_punched)
    }
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let mut book = self.ledger.book();
        let account = book.account(self.id);
        let Some(first) = account.held.range(from / PAGE..).next().copied() else {
            return Ok(None);
        };
        let mut end = first;
        while account.held.contains(&end) {
            end += 1;
        }
        let data = from.max(first * PAGE)..account.len.min(end * PAGE);
        Ok((!data.is_empty()).then_some(data))
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.change(|account| account.cut(len));
        Ok(())
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        self.inner.id()
    }
    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.inner.try_lock(mode)
    }
    fn unlock(&self) -> io::Result<()> {
        self.inner.unlock()
    }
}
