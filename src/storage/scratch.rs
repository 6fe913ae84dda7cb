//! A file with changes laid over it in memory, which can itself be written to.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{FileId, LockMode, LockOutcome, Storage};

/// How many written bytes are kept in memory.
const MOST_BYTES: usize = 64 << 20;
/// The unit in which changes are told apart from the file: a host writes it completely or not at all.
const UNIT: u64 = 512;
/// How many bytes are compared at once.
const PIECE: u64 = 1 << 20;

/// Takes all writes for a file, which itself stays as it is.
///
/// Written bytes are kept in memory, up to a limit. Zeros cost nothing, and neither do copies of ranges of the file.
#[derive(Debug)]
pub(crate) struct Scratch {
    base: Arc<dyn Storage>,
    base_len: u64,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    len: u64,
    /// Bytes of the file from here on are hidden: the length was less at some time.
    shown: u64,
    /// Ranges by start that differ from the file below. They do not overlap.
    pieces: BTreeMap<u64, Piece>,
    held: usize,
}

#[derive(Clone, Debug)]
struct Piece {
    end: u64,
    what: What,
}

/// What a range holds.
#[derive(Clone, Debug)]
enum What {
    Zeros,
    /// The bytes of this vector from this index on.
    Bytes(Arc<Vec<u8>>, usize),
    /// Those of the file below from this offset on.
    Base(u64),
}

/// A range that is not what the file has there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangedRange {
    pub(crate) range: Range<u64>,
    /// Whether it is all zeros now.
    pub(crate) is_zero: bool,
}

impl Scratch {
    /// No changes over a file.
    ///
    /// # Errors
    /// Errors of the host.
    pub(crate) fn over(base: Arc<dyn Storage>) -> io::Result<Self> {
        let len = base.len()?;
        let state = State { len, shown: len, pieces: BTreeMap::new(), held: 0 };
        Ok(Self { base, base_len: len, state: Mutex::new(state) })
    }

    /// The same changes over the same file, to be continued apart from these.
    pub(crate) fn fork(&self) -> Self {
        let state = Mutex::new(self.state().clone());
        Self { base: Arc::clone(&self.base), base_len: self.base_len, state }
    }

    /// Takes over the changes of another one over the same file.
    pub(crate) fn take(&self, other: &Self) {
        let taken = other.state().clone();
        *self.state() = taken;
    }

    /// The file below.
    pub(crate) fn base(&self) -> &Arc<dyn Storage> {
        &self.base
    }

    /// The length of the file below.
    pub(crate) fn base_len(&self) -> u64 {
        self.base_len
    }

    /// Gives the bytes of one range to another, which may lie behind the end.
    pub(crate) fn copy(&self, from: u64, to: u64, len: u64) {
        let mut state = self.state();
        for (range, what) in state.resolve(from..from.saturating_add(len)) {
            let start = range.start - from + to;
            let end = range.end - from + to;
            state.lay(start..end, what);
            state.len = state.len.max(end);
        }
    }

    /// Takes back the changes of a range.
    pub(crate) fn restore(&self, range: Range<u64>) {
        self.state().clear(&range);
    }

    /// The ranges that differ from the file below, in order, at most 1 MiB each; those within the length that both have
    /// in units of 512 bytes. What a new length alone cuts off or adds as zeros is not listed.
    ///
    /// # Errors
    /// Errors of the host.
    pub(crate) fn changes(&self) -> io::Result<Vec<ChangedRange>> {
        let (touched, len) = {
            let state = self.state();
            let pieces = state.pieces.iter().map(|(start, piece)| *start..piece.end);
            // Cut off and grown again.
            let hidden = state.shown..state.len.min(self.base_len);
            let mut touched: Vec<_> = pieces.chain([hidden]).filter(|it| !it.is_empty()).collect();
            touched.sort_by_key(|range| range.start);
            (touched, state.len)
        };
        let both = len.min(self.base_len);
        let mut changes: Vec<ChangedRange> = Vec::new();
        let mut done = 0;
        for range in touched {
            let mut at = (range.start - range.start % UNIT).max(done);
            let end = range.end.next_multiple_of(UNIT).min(len);
            while at < end {
                // The ends of the file may lie within a unit.
                let border = if at < both { both } else { end };
                let piece_end = end.min(border).min(at - at % PIECE + PIECE);
                self.compare(at..piece_end, &mut changes)?;
                at = piece_end;
            }
            done = done.max(end);
        }
        Ok(changes)
    }

    fn compare(&self, range: Range<u64>, changes: &mut Vec<ChangedRange>) -> io::Result<()> {
        let mut new = vec![0; (range.end - range.start) as usize];
        self.read_exact_at(&mut new, range.start)?;
        let mut old = vec![0; new.len()];
        if range.start < self.base_len {
            self.base.read_exact_at(&mut old, range.start)?;
        }
        let mut at = range.start;
        for (new, old) in new.chunks(UNIT as usize).zip(old.chunks(UNIT as usize)) {
            let end = at + new.len() as u64;
            if new != old {
                let is_zero = new.iter().all(|byte| *byte == 0);
                match changes.last_mut() {
                    Some(last)
                        if last.range.end == at
                            && last.is_zero == is_zero
                            && at % PIECE != 0
                            && at != self.base_len =>
                    {
                        last.range.end = end;
                    }
                    _ => changes.push(ChangedRange { range: at..end, is_zero }),
                }
            }
            at = end;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What each part of the range holds; zeros behind the end.
    fn resolve(&self, range: Range<u64>) -> Vec<(Range<u64>, What)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let below = |parts: &mut Vec<_>, range: Range<u64>| {
            let border = self.shown.clamp(range.start, range.end);
            if range.start < border {
                parts.push((range.start..border, What::Base(range.start)));
            }
            if border < range.end {
                parts.push((border..range.end, What::Zeros));
            }
        };
        for (start, piece) in self.over(&range) {
            let (from, to) = (start.max(at), piece.end.min(range.end));
            below(&mut parts, at..from);
            parts.push((from..to, piece.what.from(from - start)));
            at = to;
        }
        below(&mut parts, at..range.end);
        parts
    }

    fn over(&self, range: &Range<u64>) -> Vec<(u64, Piece)> {
        if range.is_empty() {
            return Vec::new();
        }
        let before = self.pieces.range(..range.start).next_back();
        let before = before.filter(|(_, piece)| piece.end > range.start);
        let met = before.into_iter().chain(self.pieces.range(range.clone()));
        met.map(|(start, piece)| (*start, piece.clone())).collect()
    }

    fn clear(&mut self, range: &Range<u64>) {
        for (start, piece) in self.over(range) {
            self.pieces.remove(&start);
            if start < range.start {
                let left = Piece { end: range.start, what: piece.what.clone() };
                self.pieces.insert(start, left);
            }
            if piece.end > range.end {
                let what = piece.what.from(range.end - start);
                self.pieces.insert(range.end, Piece { end: piece.end, what });
            }
        }
    }

    fn lay(&mut self, range: Range<u64>, what: What) {
        if !range.is_empty() {
            self.clear(&range);
            self.pieces.insert(range.start, Piece { end: range.end, what });
        }
    }
}

impl What {
    /// The same without its first bytes.
    fn from(&self, skip: u64) -> Self {
        match self {
            Self::Zeros => Self::Zeros,
            Self::Bytes(bytes, at) => Self::Bytes(Arc::clone(bytes), at + skip as usize),
            Self::Base(at) => Self::Base(at + skip),
        }
    }
}

impl Storage for Scratch {
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
        let (parts, len) = {
            let state = self.state();
            let len = state.len.saturating_sub(offset).min(buf.len() as u64);
            (state.resolve(offset..offset.saturating_add(len)), len)
        };
        for (range, what) in parts {
            let into = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            match what {
                What::Zeros => into.fill(0),
                What::Bytes(bytes, at) => into.copy_from_slice(&bytes[at..at + into.len()]),
                What::Base(at) => self.base.read_exact_at(into, at)?,
            }
        }
        Ok(len as usize)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut state = self.state();
        let what = if buf.iter().all(|byte| *byte == 0) {
            What::Zeros
        } else {
            if state.held + buf.len() > MOST_BYTES {
                let what = format!("more than {MOST_BYTES} bytes would change");
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, what));
            }
            state.held += buf.len();
            What::Bytes(Arc::new(buf.to_vec()), 0)
        };
        state.lay(offset..end, what);
        state.len = state.len.max(end);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let state = self.state();
        let is_data = |piece: &Piece| !matches!(piece.what, What::Zeros);
        let mut met = state.over(&(from..state.len)).into_iter();
        let laid = met.find(|(_, piece)| is_data(piece)).map(|(start, piece)| start..piece.end);
        let below = match from < state.shown {
            true => self.base.next_data(from)?.filter(|data| data.start < state.shown),
            false => None,
        };
        let first = match (laid, below) {
            (Some(laid), Some(below)) if below.start < laid.start => Some(below),
            (laid, below) => laid.or(below),
        };
        let range = first.map(|data| data.start.max(from)..data.end.min(state.len));
        Ok(range.filter(|range| !range.is_empty()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            let end = state.len.max(len);
            state.clear(&(len..end));
            state.shown = state.shown.min(len);
        }
        state.len = len;
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        let mut state = self.state();
        let end = range.end.min(state.len);
        if range.start < end {
            state.lay(range.start..end, What::Zeros);
        }
        Ok(true)
    }

    fn lost_writes_read_as_zeros(&self) -> bool {
        true
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        self.base.id()
    }

    /// The file below is locked by whoever made this.
    fn try_lock(&self, _: LockMode) -> io::Result<LockOutcome> {
        Ok(LockOutcome::Locked)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemStorage;

    fn whole(file: &dyn Storage) -> Vec<u8> {
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Compares with a vector that the same changes are made to.
    #[test]
    fn changes_read_back_and_the_file_below_stays() {
        let base: Vec<u8> = (0..5000_u32).map(|n| (n % 251) as u8 + 1).collect();
        let below = Arc::new(MemStorage::new(base.clone()));
        let scratch = Scratch::over(below.clone()).unwrap();
        let mut model = base.clone();
        let mut seed = 7_u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for step in 0..400 {
            let (at, len) = (random(6000) as usize, random(700) as usize + 1);
            match random(5) {
                0 => {
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].fill(step as u8);
                    scratch.write_at(&vec![step as u8; len], at as u64).unwrap();
                }
                1 => {
                    let end = model.len().min(at + len);
                    if at < end {
                        model[at..end].fill(0);
                    }
                    scratch.zero(at as u64..(at + len) as u64).unwrap();
                }
                2 => {
                    model.resize(at + 1, 0);
                    scratch.set_len(at as u64 + 1).unwrap();
                }
                3 if at + len <= model.len() => {
                    let to = random(6000) as usize;
                    let copied = model[at..at + len].to_vec();
                    model.resize(model.len().max(to + len), 0);
                    model[to..to + len].copy_from_slice(&copied);
                    scratch.copy(at as u64, to as u64, len as u64);
                }
                _ => {
                    let forked = scratch.fork();
                    forked.write_at(&[9; 3000], 1000).unwrap();
                }
            }
            assert!(whole(&scratch) == model, "step {step}");
            let mut told = base.clone();
            told.resize(model.len(), 0);
            for ChangedRange { range, is_zero } in scratch.changes().unwrap() {
                let new = &model[range.start as usize..range.end as usize];
                assert_eq!(is_zero, new.iter().all(|byte| *byte == 0), "step {step}");
                assert!(range.end <= base.len() as u64 || range.start >= base.len() as u64);
                told[range.start as usize..range.end as usize].copy_from_slice(new);
            }
            assert!(told == model, "step {step}");
            let mut at = 0;
            while let Some(data) = scratch.next_data(at).unwrap() {
                assert!(model[at as usize..data.start as usize].iter().all(|byte| *byte == 0));
                at = data.end;
            }
            assert!(model[at as usize..].iter().all(|byte| *byte == 0), "step {step}");
        }
        assert!(whole(below.as_ref()) == base);
    }
}
