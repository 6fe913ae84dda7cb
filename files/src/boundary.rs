//! The boundary around everything that reads a volume: it bounds what is read, records it, and catches panics.
//!
//! A volume is hostile until proven otherwise, and crates that read file systems are not written for that. Each call
//! into such a reader is a *task* with a budget, and reads through [`Bytes`], which ends the task once the budget is used
//! up. A panic becomes an error.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::rc::{Rc, Weak};
use std::sync::{Arc, Once};

use avhdx::Disk;

use crate::changed::Changed;
use crate::error::{Error, ErrorKind, Result};

/// Small reads go through pages of this size.
const PAGE: u64 = 16 << 10;
/// How many pages are kept.
const PAGES: usize = 256;
/// A task may read this much of a volume of any size.
const FREE_BYTES: u64 = 64 << 20;
/// A task reads no more than this, besides the bytes of files.
const MOST_BYTES: u64 = 16 << 30;
/// The reads that a task may do for each MiB that it may read: directories are read in small steps.
const READS_A_MIB: u64 = 1 << 16;

thread_local! {
    static GUARDING: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that this crate catches from being printed. For programs: it replaces the process's panic hook by one
/// that calls the present one for all other panics.
pub fn silence_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDING.get() {
                usual(info);
            }
        }));
    });
}

/// Runs what reads a volume; a panic becomes an error.
pub(crate) fn guard<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    let was = GUARDING.replace(true);
    // What a panic leaves behind is only read, and each reader bounds what it reads.
    let done = panic::catch_unwind(AssertUnwindSafe(run));
    GUARDING.set(was);
    done.unwrap_or_else(|payload| Err(Error::panicked(&*payload)))
}

/// The bytes of a volume. Clones share budget, pages and record.
#[derive(Clone)]
pub(crate) struct Bytes(Rc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    range: Range<u64>,
    left: Cell<Budget>,
    pages: RefCell<Pages>,
    touched: RefCell<Option<BTreeMap<u64, u64>>>,
    watched: RefCell<Option<Watch>>,
    twin: RefCell<Option<Twin>>,
    /// Whether something was read that is other bytes at the other point in time.
    has_met: Cell<bool>,
    is_apart: Cell<bool>,
    /// How many bytes of the disk were read.
    count: Cell<u64>,
}

/// What is watched for.
struct Watch {
    /// Where the other point may have other bytes.
    written: Rc<Changed>,
    /// What the other point understands in another way.
    reframed: Changed,
    other: Bytes,
}

/// Another point in time that has the same bytes, but for those that were written.
struct Twin {
    written: Rc<Changed>,
    other: Weak<Inner>,
}

#[derive(Clone, Copy)]
struct Budget {
    reads: u64,
    bytes: u64,
}

#[derive(Default)]
struct Pages {
    held: HashMap<u64, Box<[u8]>>,
    order: VecDeque<u64>,
}

impl Bytes {
    /// The bytes of a range that lies within the disk.
    pub(crate) fn new(disk: Arc<dyn Disk>, range: Range<u64>) -> Self {
        let bytes = Self(Rc::new(Inner {
            disk,
            range,
            left: Cell::new(Budget { reads: 0, bytes: 0 }),
            pages: RefCell::default(),
            touched: RefCell::new(None),
            watched: RefCell::new(None),
            twin: RefCell::new(None),
            has_met: Cell::new(false),
            is_apart: Cell::new(false),
            count: Cell::new(0),
        }));
        bytes.renew();
        bytes
    }

    /// Where the volume begins on the disk.
    pub(crate) fn start(&self) -> u64 {
        self.0.range.start
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.range.end - self.0.range.start
    }

    /// Begins a task: the budget is whole again.
    pub(crate) fn renew(&self) {
        let bytes = self.len().saturating_mul(2).min(MOST_BYTES) + FREE_BYTES;
        self.allow(bytes);
    }

    /// Begins a task that may read all that the file system keeps of itself, which grows with the volume.
    pub(crate) fn renew_for_all(&self) {
        self.allow(self.len().saturating_mul(2).saturating_add(FREE_BYTES));
    }

    fn allow(&self, bytes: u64) {
        self.0.left.set(Budget { reads: (bytes >> 20) * READS_A_MIB, bytes });
        // A panic may have left it.
        self.0.is_apart.set(false);
    }

    /// Fills a new buffer. The length is one that the caller has bounded.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.check(offset, len as u64)?;
        let mut buf = vec![0; len];
        self.read_at(&mut buf, offset)?;
        Ok(buf)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len()) {
            return Ok(());
        }
        let size = self.len();
        let message =
            format!("{len} bytes at {offset} do not lie within the volume of {size} bytes");
        Err(Error::damaged("files.outside", message))
    }

    /// Fills `buf` with the bytes at `offset`, as far as the budget of the task goes.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        self.check(offset, len)?;
        let Budget { reads, bytes } = self.0.left.get();
        let left = reads.checked_sub(1).zip(bytes.checked_sub(len));
        let Some((reads, bytes)) = left else {
            let message = "the volume makes its reader go on without end";
            return Err(Error::new(ErrorKind::Limit, "files.budget", message));
        };
        self.0.left.set(Budget { reads, bytes });
        if let Some(touched) = &mut *self.0.touched.borrow_mut()
            && len > 0
        {
            add(touched, offset..offset + len);
        }
        self.fill(buf, offset)?;
        self.compare(buf, offset);
        Ok(())
    }

    fn fill(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        if len >= PAGE {
            self.0.count.set(self.0.count.get() + len);
            return Ok(self.0.disk.read_at(buf, self.0.range.start + offset)?);
        }
        let (mut buf, mut at) = (buf, offset);
        while !buf.is_empty() {
            let page = at / PAGE;
            let within = (at % PAGE) as usize;
            let count = buf.len().min(PAGE as usize - within);
            let (now, rest) = buf.split_at_mut(count);
            self.page(page, |bytes| now.copy_from_slice(&bytes[within..][..count]))?;
            (buf, at) = (rest, at + count as u64);
        }
        Ok(())
    }

    fn page(&self, page: u64, take: impl FnOnce(&[u8])) -> Result<()> {
        let mut pages = self.0.pages.borrow_mut();
        if let Some(held) = pages.held.get(&page) {
            take(held);
            return Ok(());
        }
        let start = page * PAGE;
        let len = PAGE.min(self.len() - start);
        let twin = self.0.twin.borrow();
        if let Some(other) = twin.as_ref().and_then(|twin| twin.having(start..start + len))
            && let Some(held) = other.pages.borrow().held.get(&page)
        {
            take(held);
            return Ok(());
        }
        let mut bytes = vec![0; len as usize].into_boxed_slice();
        self.0.count.set(self.0.count.get() + len);
        self.0.disk.read_at(&mut bytes, self.0.range.start + start)?;
        take(&bytes);
        if pages.order.len() == PAGES
            && let Some(oldest) = pages.order.pop_front()
        {
            pages.held.remove(&oldest);
        }
        pages.order.push_back(page);
        pages.held.insert(page, bytes);
        Ok(())
    }

    /// Records from now on which bytes are read.
    pub(crate) fn record(&self) {
        self.0.touched.replace(Some(BTreeMap::new()));
    }

    /// The ranges of the disk that were read since then, in order.
    pub(crate) fn touched(&self) -> Vec<Range<u64>> {
        let touched = self.0.touched.borrow();
        let start = self.0.range.start;
        touched.iter().flatten().map(|(from, to)| start + from..start + to).collect()
    }
}

impl Bytes {
    /// Watches from now on for reads of bytes that are others in `other`, among those that were written, and for what is
    /// reframed. From now on, `other` takes what was not written from the pages that are kept here.
    pub(crate) fn watch(&self, written: Changed, reframed: Changed, other: Bytes) {
        let written = Rc::new(written);
        let twin = Twin { written: Rc::clone(&written), other: Rc::downgrade(&self.0) };
        other.0.twin.replace(Some(twin));
        self.0.watched.replace(Some(Watch { written, reframed, other }));
    }

    /// Whether any of the bytes that are watched for was read since this was asked last.
    pub(crate) fn take_met(&self) -> bool {
        self.0.has_met.take()
    }

    /// Does not watch until [`take_met`](Self::take_met) is asked.
    pub(crate) fn look_away(&self) {
        self.0.has_met.set(true);
    }

    /// Takes the range for one that is read, and may be other bytes wherever it was written.
    pub(crate) fn meet(&self, range: &Range<u64>) {
        if let Some(watch) = self.watch_now()
            && (watch.reframed.meets(range) || watch.written.meets(range))
        {
            self.0.has_met.set(true);
        }
    }

    /// Compares what was read with the other point.
    fn compare(&self, buf: &[u8], offset: u64) {
        let Some(watch) = self.watch_now() else { return };
        let mut left = offset..offset + buf.len() as u64;
        let mut is_other = watch.reframed.meets(&left);
        while !is_other && let Some(written) = watch.written.first_in(&left) {
            let own = &buf[(written.start - offset) as usize..(written.end - offset) as usize];
            let mut there = vec![0; own.len()];
            // What cannot be read there is told by who reads it there.
            is_other = watch.other.fill(&mut there, written.start).is_err() || there != own;
            left.start = written.end;
        }
        if is_other {
            self.0.has_met.set(true);
        }
    }

    /// What is watched for, unless that makes no difference.
    fn watch_now(&self) -> Option<Ref<'_, Watch>> {
        if self.0.is_apart.get() || self.0.has_met.get() {
            return None;
        }
        Ref::filter_map(self.0.watched.borrow(), Option::as_ref).ok()
    }

    /// Reads what is not watched for: two states of a file system are compared in it by other means.
    pub(crate) fn apart<T>(&self, run: impl FnOnce() -> T) -> T {
        let was = self.0.is_apart.replace(true);
        let done = run();
        self.0.is_apart.set(was);
        done
    }

    /// How many bytes of the disk were read so far.
    pub(crate) fn count(&self) -> u64 {
        self.0.count.get()
    }
}

impl Twin {
    /// The other point, if it has the same bytes in this range.
    fn having(&self, range: Range<u64>) -> Option<Rc<Inner>> {
        if self.written.meets(&range) { None } else { self.other.upgrade() }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bytes").field("range", &self.0.range).finish_non_exhaustive()
    }
}

/// The union of ranges, in order.
pub(crate) fn union(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut set = BTreeMap::new();
    ranges.filter(|range| !range.is_empty()).for_each(|range| add(&mut set, range));
    set.into_iter().map(|(start, end)| start..end).collect()
}

/// Adds a range to a set of ranges that neither overlap nor touch.
fn add(set: &mut BTreeMap<u64, u64>, range: Range<u64>) {
    let Range { mut start, mut end } = range;
    while let Some((&from, &to)) = set.range(..=end).next_back()
        && to >= start
    {
        set.remove(&from);
        (start, end) = (start.min(from), end.max(to));
    }
    set.insert(start, end);
}

/// A number of a format, little-endian; zero where the slice ends before it.
pub(crate) fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.get(..len)).unwrap_or(&[]);
    found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    number(bytes, at, 2) as u16
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    number(bytes, at, 4) as u32
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_meet_are_joined() {
        let mut set = BTreeMap::new();
        for range in [10..20, 30..40, 0..5, 20..25, 39..50, 4..11, 60..61] {
            add(&mut set, range);
        }
        assert_eq!(set.into_iter().collect::<Vec<_>>(), [(0, 25), (30, 50), (60, 61)]);
    }

    #[test]
    fn a_task_reads_no_more_than_its_budget() {
        let storage = avhdx::storage::MemStorage::new(vec![7; 1 << 20]);
        let disk = avhdx::RawDisk::new(Arc::new(storage)).unwrap();
        let bytes = Bytes::new(Arc::new(disk), 4096..1 << 20);
        assert_eq!(bytes.len(), (1 << 20) - 4096);
        // Large pieces end by their bytes, small ones by their number.
        for (len, most) in [(500_000, 66 << 20), (1, 66 << 16)] {
            bytes.renew();
            let mut buf = vec![0; len];
            let done = (0..).find(|_| bytes.read_at(&mut buf, 0).is_err()).unwrap();
            assert!(done * len <= most && done * len > most / 2, "{done} reads of {len}");
            let error = bytes.read_at(&mut buf, 0).unwrap_err();
            assert_eq!((error.kind(), error.code()), (ErrorKind::Limit, "files.budget"));
        }
        bytes.renew();
        assert_eq!(bytes.read(1, 2).unwrap(), [7, 7]);
        let error = bytes.read(bytes.len() - 1, 2).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "files.outside"));
    }

    #[test]
    fn a_panic_becomes_an_error() {
        silence_caught_panics();
        let error = guard::<()>(|| panic!("found {}", 7)).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "files.panic"));
        assert!(error.to_string().ends_with("found 7"), "{error}");
    }
}
