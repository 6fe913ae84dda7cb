//! Reads a file as far as the host can.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::image::read_what_is_there;
use crate::storage::{FileId, LockMode, LockOutcome, Storage, length_of};
use crate::types::{KIB, MIB};

/// The smallest unit that is given up.
const SECTOR: u64 = 512;
/// The unit after [`FINE`] failures.
const COARSE: u64 = 64 * KIB;
/// How many failed reads are narrowed down to sectors. Each may take a broken device seconds.
const FINE: u64 = 20_000;
/// How many are narrowed down at all.
const MOST: u64 = 200_000;
/// How many unreadable ranges are told apart.
const MOST_RANGES: usize = 1 << 20;

/// A file of which every byte can be read: what the host fails to read is zeros, and remembered. Each sector that failed
/// is asked for once.
#[derive(Debug)]
pub(super) struct Careful {
    base: Arc<dyn Storage>,
    len: u64,
    unread: Mutex<Unread>,
}

#[derive(Debug, Default)]
struct Unread {
    /// Ends by start; they neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
    failures: u64,
}

impl Careful {
    pub(super) fn new(base: Arc<dyn Storage>) -> Result<Self> {
        let len = length_of(base.as_ref())?;
        Ok(Self { base, len, unread: Mutex::default() })
    }

    /// The length of the file when it was opened.
    pub(super) fn file_len(&self) -> u64 {
        self.len
    }

    /// Fills `buf`; bytes behind the end are zeros.
    pub(super) fn fill(&self, buf: &mut [u8], at: u64) {
        let there = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        buf[there..].fill(0);
        let (mut at, mut buf) = (at, &mut buf[..there]);
        while !buf.is_empty() {
            let end = at + buf.len() as u64;
            let known = self.first_unread(at..end).unwrap_or(end..end);
            let (before, rest) = buf.split_at_mut((known.start - at) as usize);
            if !before.is_empty() {
                self.attempt(before, at);
            }
            let (lost, rest) = rest.split_at_mut((known.end - known.start) as usize);
            lost.fill(0);
            (at, buf) = (known.end, rest);
        }
    }

    /// The first range within this one that the host failed to read.
    pub(super) fn first_unread(&self, range: Range<u64>) -> Option<Range<u64>> {
        let unread = self.unread();
        let before = unread.ranges.range(..=range.start).next_back();
        let before = before.filter(|(_, end)| **end > range.start);
        let found = before.or_else(|| unread.ranges.range(range.clone()).next());
        found.map(|(start, end)| (*start).max(range.start)..(*end).min(range.end))
    }

    /// Reads what was not known to be unreadable, and halves what turns out to be.
    fn attempt(&self, buf: &mut [u8], at: u64) {
        let len = buf.len() as u64;
        match read_what_is_there(self.base.as_ref(), buf, at) {
            Ok(read) if read == buf.len() => return,
            // The file became shorter.
            Ok(read) => {
                buf[read..].fill(0);
                return self.give_up(at + read as u64..at + len);
            }
            Err(_) => {}
        }
        let failures = {
            let mut unread = self.unread();
            unread.failures += 1;
            unread.failures
        };
        let least = match failures {
            ..FINE => SECTOR,
            FINE..MOST => COARSE,
            _ => u64::MAX,
        };
        let half = (at + len / 2) / SECTOR * SECTOR;
        if len <= least || half <= at {
            buf.fill(0);
            return self.give_up(at..at + len);
        }
        let (first, second) = buf.split_at_mut((half - at) as usize);
        self.attempt(first, at);
        self.attempt(second, half);
    }

    fn give_up(&self, range: Range<u64>) {
        let mut unread = self.unread();
        let unit = if unread.ranges.len() < MOST_RANGES { SECTOR } else { MIB };
        let mut start = range.start / unit * unit;
        let mut end = range.end.next_multiple_of(unit);
        while let Some((s, e)) = unread.ranges.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if e < start {
                break;
            }
            unread.ranges.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        unread.ranges.insert(start, end);
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for Careful {
    fn name(&self) -> &str {
        self.base.name()
    }

    fn path(&self) -> Option<&Path> {
        self.base.path()
    }

    fn via(&self) -> Option<&Path> {
        self.base.via()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let there = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        self.fill(&mut buf[..there], offset);
        Ok(there)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        // A host that cannot tell has the bytes read.
        let found = self.base.next_data(from).unwrap_or(Some(from..self.len));
        let found = found.map(|range| range.start.max(from)..range.end.min(self.len));
        Ok(found.filter(|range| range.start < range.end))
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        self.base.id()
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.base.try_lock(mode)
    }

    fn unlock(&self) -> io::Result<()> {
        self.base.unlock()
    }
}
