//! A file with changes laid over it in memory.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{FileId, LockMode, LockOutcome, Storage};

/// A read-only view of a file as if its log had been replayed.
///
/// The logged data stays in the file: the overlay only remembers where it is, in about 80 bytes per piece.
#[derive(Debug)]
pub(crate) struct Overlay {
    base: Arc<dyn Storage>,
    base_len: u64,
    len: u64,
    /// Pieces by start offset; they do not overlap.
    pieces: BTreeMap<u64, PatchedRange>,
}

/// How many bytes are written to the file at once.
const WRITE_BACK: u64 = 1 << 20;
/// How many bytes the host is asked to zero at once.
const ZERO_AT_ONCE: u64 = 1 << 30;

/// The contents that replace a range of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patch {
    /// Zeros.
    Zero,
    /// A sector stored at `at` in the same file, except for its first eight and last four bytes.
    Sector { at: u64, leading: [u8; 8], trailing: [u8; 4] },
}

#[derive(Clone, Copy, Debug)]
struct PatchedRange {
    end: u64,
    patch: Patch,
    /// The sequence number of the log entry that it comes from.
    sequence: u64,
}

impl Overlay {
    /// An empty overlay over a file of `base_len` bytes.
    pub(crate) fn new(base: Arc<dyn Storage>, base_len: u64) -> Self {
        Self { base, base_len, len: base_len, pieces: BTreeMap::new() }
    }

    /// Replaces `range` with `patch`, hiding earlier patches. A sector patch is as
    /// long as its range and aligned to it, so that it is always hidden completely or not at all.
    pub(crate) fn lay(&mut self, range: Range<u64>, patch: Patch, sequence: u64) {
        self.clear(&range);
        self.len = self.len.max(range.end);
        self.pieces.insert(range.start, PatchedRange { end: range.end, patch, sequence });
    }

    /// The file below, which has the descriptor.
    pub(crate) fn base(&self) -> &Arc<dyn Storage> {
        &self.base
    }

    /// The length of the file below.
    pub(crate) fn base_len(&self) -> u64 {
        self.base_len
    }

    /// How many pieces lie over the file.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Extends the file with zeros to at least `len`.
    pub(crate) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Returns the log entry that supplies the byte at `offset`, if any.
    pub(crate) fn entry_at(&self, offset: u64) -> Option<u64> {
        self.over(offset..offset.saturating_add(1)).next().map(|(_, piece)| piece.sequence)
    }

    /// Returns the first byte of `range` that a log entry supplies.
    pub(crate) fn first_within(&self, range: Range<u64>) -> Option<u64> {
        self.over(range.clone()).next().map(|(start, _)| start.max(range.start))
    }

    /// The pieces that overlap `range`, in order.
    fn over(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &PatchedRange)> {
        let before = self.pieces.range(..range.start).next_back();
        let before = before.filter(|(_, piece)| piece.end > range.start);
        before.into_iter().chain(self.pieces.range(range)).map(|(start, piece)| (*start, piece))
    }

    fn clear(&mut self, range: &Range<u64>) {
        let met: Vec<(u64, PatchedRange)> =
            self.over(range.clone()).map(|(at, piece)| (at, *piece)).collect();
        for (start, piece) in met {
            self.pieces.remove(&start);
            if start < range.start {
                self.pieces.insert(start, PatchedRange { end: range.start, ..piece });
            }
            if piece.end > range.end {
                self.pieces.insert(range.end, piece);
            }
        }
    }

    /// Writes all patches to the file, which replays the log. Checks `is_stopped` between steps and returns whether it
    /// completed. A replay can be repeated, so that a partial one does no harm.
    pub(crate) fn write_back(&self, is_stopped: &dyn Fn() -> bool) -> io::Result<bool> {
        if self.len > self.base_len {
            self.base.set_len(self.len)?;
        }
        for (start, piece) in &self.pieces {
            // The file was extended with zeros.
            let end = piece.end.min(self.base_len);
            let is_done = match piece.patch {
                Patch::Zero => self.write_zeros(*start..end, is_stopped)?,
                Patch::Sector { .. } if is_stopped() => false,
                Patch::Sector { .. } => {
                    let mut bytes = vec![0; (piece.end - start) as usize];
                    self.read_patch(piece, *start, &mut bytes, *start)?;
                    self.base.write_at(&bytes, *start)?;
                    true
                }
            };
            if !is_done {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Zeros a range of the file; returns whether it completed.
    fn write_zeros(&self, range: Range<u64>, is_stopped: &dyn Fn() -> bool) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            if is_stopped() {
                return Ok(false);
            }
            // Holes are zeros already, and may be more than the host has room for.
            let Some(data) = self.base.next_data(at)? else { break };
            at = data.start.max(at);
            let end = data.end.min(range.end).min(at.saturating_add(ZERO_AT_ONCE));
            if at >= end {
                break;
            }
            if self.base.zero(at..end)? {
                at = end;
                continue;
            }
            at = self.clear_by_hand(at..end.min(at.saturating_add(WRITE_BACK)))?;
        }
        Ok(true)
    }

    /// Writes zeros unless the range reads as zeros, so that holes stay holes. Returns the end.
    fn clear_by_hand(&self, range: Range<u64>) -> io::Result<u64> {
        let zeros = vec![0; (range.end - range.start) as usize];
        let mut there = zeros.clone();
        self.base.read_exact_at(&mut there, range.start)?;
        if there != zeros {
            self.base.write_at(&zeros, range.start)?;
        }
        Ok(range.end)
    }

    /// Writes what the file reads as to another file with the same contents as the one below, which stays as it is.
    pub(crate) fn write_to(&self, file: &dyn Storage) -> io::Result<()> {
        if self.len > self.base_len {
            file.set_len(self.len)?;
        }
        for (start, piece) in &self.pieces {
            if let Patch::Sector { .. } = piece.patch {
                let mut bytes = vec![0; (piece.end - start) as usize];
                self.read_patch(piece, *start, &mut bytes, *start)?;
                file.write_at(&bytes, *start)?;
            } else if !file.zero(*start..piece.end)? {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        Ok(())
    }

    fn read_base(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let there = self.base_len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (there, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        self.base.read_exact_at(there, offset)
    }

    fn read_patch(
        &self,
        piece: &PatchedRange,
        start: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<()> {
        let Patch::Sector { at, leading, trailing } = piece.patch else {
            buf.fill(0);
            return Ok(());
        };
        let within = offset - start;
        self.base.read_exact_at(buf, at + within)?;
        let len = piece.end - start;
        overwrite(buf, within, 0, &leading);
        overwrite(buf, within, len - trailing.len() as u64, &trailing);
        Ok(())
    }
}

/// Puts `bytes`, which belong at `place`, into a buffer of what lies from `start` on, as far as they lie in it.
fn overwrite(buf: &mut [u8], start: u64, place: u64, bytes: &[u8]) {
    let from = place.max(start);
    let to = (place + bytes.len() as u64).min(start + buf.len() as u64);
    if from < to {
        let (into, out_of) = ((from - start) as usize, (from - place) as usize);
        let len = (to - from) as usize;
        buf[into..into + len].copy_from_slice(&bytes[out_of..out_of + len]);
    }
}

impl Storage for Overlay {
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
        let len = self.len.saturating_sub(offset).min(buf.len() as u64);
        let end = offset + len;
        let mut at = offset;
        let place = |at: u64| (at - offset) as usize;
        for (start, piece) in self.over(offset..end) {
            let (from, to) = (start.max(at), piece.end.min(end));
            self.read_base(&mut buf[place(at)..place(from)], at)?;
            self.read_patch(piece, start, &mut buf[place(from)..place(to)], from)?;
            at = to;
        }
        self.read_base(&mut buf[place(at)..place(end)], at)?;
        Ok(len as usize)
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

#[cfg(test)]
mod tests {
    use super::overwrite;

    #[test]
    fn bytes_are_put_where_they_lie_in_the_buffer() {
        for (start, len) in [(0, 16), (0, 3), (2, 4), (5, 1), (7, 9), (8, 8), (11, 5), (3, 0)] {
            for (place, bytes) in [(0, &b"headhead"[..]), (12, b"tail"), (4, b""), (20, b"beyond")]
            {
                let mut buf = vec![b'.'; len];
                overwrite(&mut buf, start, place, bytes);
                let expected: Vec<u8> = (start..start + len as u64)
                    .map(|at| at.checked_sub(place).and_then(|n| bytes.get(n as usize)))
                    .map(|byte| *byte.unwrap_or(&b'.'))
                    .collect();
                assert_eq!(buf, expected, "{bytes:?} at {place} of {len} from {start} on");
            }
        }
    }
}
