//! A file in memory over constant bytes: it stores only what is written to it, counts all changes,
//! and panics if they exceed a bound.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::storage::{LockMode, LockOutcome, Storage};

const PAGE: u64 = 4096;

/// What the host can do, and the bounds on its use.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The maximum length of the file.
    pub len: u64,
    /// The maximum memory for written bytes.
    pub held: u64,
    /// The maximum number of bytes written.
    pub written: u64,
    /// Whether the host can tell holes from data.
    pub tells: bool,
    /// Whether the host can zero ranges.
    pub zeros: bool,
}

impl Default for Bounds {
    /// Bounds that no image as small as those of the tests can need to exceed.
    fn default() -> Self {
        Self { len: 80 << 40, held: 64 << 20, written: 256 << 20, tells: true, zeros: true }
    }
}

/// The changes made to a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The ranges that were written, in order.
    pub writes: Vec<Range<u64>>,
    /// The ranges that the host was asked to zero.
    pub zeroed: Vec<Range<u64>>,
    /// The lengths that were set.
    pub lengths: Vec<u64>,
    /// The number of flushes.
    pub flushes: usize,
}

impl Done {
    pub fn written(&self) -> u64 {
        self.writes.iter().map(|range| range.end - range.start).sum()
    }
}

/// The file.
#[derive(Debug)]
pub struct Sparse {
    name: String,
    base: Arc<Vec<u8>>,
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// Up to here, bytes without a page are those of the base.
    base_len: u64,
    /// Changed pages: `None` for zeros over the base.
    pages: BTreeMap<u64, Option<Box<[u8; PAGE as usize]>>>,
    done: Done,
}

impl Sparse {
    pub fn new(name: impl Into<String>, base: Arc<Vec<u8>>, bounds: Bounds) -> Arc<Self> {
        let len = base.len() as u64;
        let state = State { len, base_len: len, pages: BTreeMap::new(), done: Done::default() };
        Arc::new(Self { name: name.into(), base, bounds, state: Mutex::new(state) })
    }

    /// Returns the changes since the last call.
    pub fn take_done(&self) -> Done {
        std::mem::take(&mut self.state().done)
    }

    /// Whether contents and length are those of the base.
    pub fn is_as_before(&self) -> bool {
        let state = self.state();
        let of_base = |number: u64| {
            let mut page = [0; PAGE as usize];
            copy(&self.base, number * PAGE, &mut page);
            page
        };
        state.len == self.base.len() as u64
            && state.base_len == state.len
            && state.pages.iter().all(|(number, page)| {
                page.as_deref().copied().unwrap_or([0; PAGE as usize]) == of_base(*number)
            })
    }

    /// All bytes of a small file.
    pub fn bytes(&self) -> Vec<u8> {
        let len = self.state().len;
        assert!(len <= 1 << 30, "{len} bytes are too many");
        let mut bytes = vec![0; len as usize];
        self.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, state: &mut State, buf: &[u8], offset: u64) {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (number, within) = (at / PAGE, (at % PAGE) as usize);
            let part = &buf[done..buf.len().min(done + PAGE as usize - within)];
            let base_len = state.base_len as usize;
            let page = state.pages.entry(number).or_insert_with(|| {
                let mut page = Box::new([0; PAGE as usize]);
                copy(&self.base[..base_len], number * PAGE, &mut page[..]);
                Some(page)
            });
            let page = page.get_or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + part.len()].copy_from_slice(part);
            done += part.len();
        }
        let held = state.pages.values().flatten().count() as u64 * PAGE;
        assert!(held <= self.bounds.held, "{}: {held} bytes are held", self.name);
    }
}

/// Copies the bytes from `at` on, as far as there are any.
fn copy(from: &[u8], at: u64, to: &mut [u8]) {
    let there = usize::try_from(at).ok().and_then(|at| from.get(at..)).unwrap_or_default();
    let len = there.len().min(to.len());
    to[..len].copy_from_slice(&there[..len]);
}

impl Storage for Sparse {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state();
        let len = state.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        buf.fill(0);
        copy(&self.base[..state.base_len as usize], offset, buf);
        let end = offset + len as u64;
        for (number, page) in state.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = (number * PAGE).max(offset);
            let stop = ((number + 1) * PAGE).min(end);
            let part = &mut buf[(start - offset) as usize..(stop - offset) as usize];
            match page {
                Some(page) => part.copy_from_slice(&page[(start % PAGE) as usize..][..part.len()]),
                None => part.fill(0),
            }
        }
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        let end = offset + buf.len() as u64;
        assert!(end <= self.bounds.len, "{}: written up to {end:#x}", self.name);
        state.done.writes.push(offset..end);
        let written = state.done.written();
        assert!(written <= self.bounds.written, "{}: {written} bytes are written", self.name);
        self.put(&mut state, buf, offset);
        state.len = state.len.max(end);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.state().done.flushes += 1;
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let state = self.state();
        if !self.bounds.tells || from < state.base_len {
            let end = if self.bounds.tells { state.base_len } else { state.len };
            return Ok((from < end).then_some(from..end));
        }
        let held = |(number, page): (&u64, &Option<_>)| page.as_ref().map(|_| *number);
        let next = state.pages.range(from / PAGE..).find_map(held);
        Ok(next.map(|number| (number * PAGE).max(from)..((number + 1) * PAGE).min(state.len)))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        assert!(len <= self.bounds.len, "{}: grown to {len:#x}", self.name);
        let mut state = self.state();
        state.done.lengths.push(len);
        if len < state.len {
            let within = (len % PAGE) as usize;
            if within > 0 {
                self.put(&mut state, &[0; PAGE as usize][within..], len);
            }
            state.pages.split_off(&len.div_ceil(PAGE));
            state.base_len = state.base_len.min(len);
        }
        state.len = len;
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        if !self.bounds.zeros {
            return Ok(false);
        }
        let mut state = self.state();
        state.done.zeroed.push(range.clone());
        let (start, end) = (range.start, range.end.min(state.len));
        let whole = start.div_ceil(PAGE)..(end / PAGE).max(start.div_ceil(PAGE));
        for part in [start..end.min(whole.start * PAGE), (whole.end * PAGE).max(start)..end] {
            if part.start < part.end {
                self.put(&mut state, &vec![0; (part.end - part.start) as usize], part.start);
            }
        }
        let behind = state.pages.split_off(&whole.end);
        state.pages.split_off(&whole.start);
        state.pages.extend(behind);
        let in_base = whole.start..whole.end.min(state.base_len.div_ceil(PAGE));
        state.pages.extend(in_base.map(|number| (number, None)));
        Ok(true)
    }

    fn try_lock(&self, _: LockMode) -> io::Result<LockOutcome> {
        Ok(LockOutcome::Locked)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}
