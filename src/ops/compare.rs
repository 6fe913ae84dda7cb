//! Compares the bytes of two disks.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::{DiskRun, DiskRuns, Listener, Progress, window_end};
use crate::disk::{Disk, LayerId, Source};
use crate::error::Result;
use crate::trace::operation;

/// Compares two disks byte by byte up to the first difference.
///
/// If one disk is longer, the contents are the same if the rest of it is zeros; that the sizes differ is
/// reported separately. Ranges that both disks map to zeros, or to the same place in a shared parent, are not read.
///
/// ```
/// use std::sync::Arc;
/// use avhdx::RawDisk;
/// use avhdx::ops::Compare;
/// use avhdx::storage::MemStorage;
///
/// let disk = |bytes: &[u8]| RawDisk::new(Arc::new(MemStorage::new(bytes.to_vec())));
///
/// let longer = Compare::new().run(&disk(b"ab")?, &disk(b"ab\0\0")?)?;
/// assert!(longer.same_contents() && !longer.same_size());
///
/// let other = Compare::new().run(&disk(b"ab")?, &disk(b"aX")?)?;
/// let difference = other.first_difference.unwrap();
/// assert_eq!((difference.offset, difference.a, difference.b), (1, Some(b'b'), Some(b'X')));
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Compare<'a> {
    progress: Listener<'a>,
}

/// The result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Comparison {
    /// Size of the first disk in bytes.
    pub size_a: u64,
    /// Size of the second disk in bytes.
    pub size_b: u64,
    /// The first byte that differs; past the end of the shorter disk, the first of the longer one that is not zero.
    pub first_difference: Option<Difference>,
}

/// A byte that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Difference {
    /// Its offset on the disks.
    pub offset: u64,
    /// The first disk's byte, `None` past its end.
    pub a: Option<u8>,
    /// The second disk's byte, `None` past its end.
    pub b: Option<u8>,
}

impl Comparison {
    /// Whether both disks hold the same bytes; past the end of the shorter one, zeros are expected.
    pub fn same_contents(&self) -> bool {
        self.first_difference.is_none()
    }

    /// Whether both disks have the same size.
    pub fn same_size(&self) -> bool {
        self.size_a == self.size_b
    }
}

impl<'a> Compare<'a> {
    /// Compares whole disks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `on` while the operation runs. A break stops it with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub fn on_progress(mut self, on: impl FnMut(Progress) -> ControlFlow<()> + Send + 'a) -> Self {
        self.progress = Listener::new(on);
        self
    }

    /// Compares `a` with `b`.
    ///
    /// # Errors
    /// As for [`Disk::read_at`] on either disk; [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled).
    pub fn run(self, a: &dyn Disk, b: &dyn Disk) -> Result<Comparison> {
        let _span = operation("compare", "two disks");
        let (size_a, size_b) = (a.geometry().size, b.geometry().size);
        let mut both = DiskPair::new(a, b);
        let total = size_a.max(size_b);
        let mut at = 0;
        let mut first_difference = None;
        self.progress.report(at, total)?;
        while at < total && first_difference.is_none() {
            (at, first_difference) = both.step(at, total)?;
            self.progress.report(at, total)?;
        }
        Ok(Comparison { size_a, size_b, first_difference })
    }
}

/// Two disks compared from front to back, with read buffers.
pub(super) struct DiskPair<'a> {
    runs: [DiskRuns<'a>; 2],
    bufs: [Vec<u8>; 2],
    /// Layers of the second disk, and the layers of the first that are the same files.
    same_files: HashMap<LayerId, LayerId>,
}

impl<'a> DiskPair<'a> {
    pub(super) fn new(a: &'a dyn Disk, b: &'a dyn Disk) -> Self {
        let runs = [DiskRuns::new(a), DiskRuns::new(b)];
        Self { runs, bufs: [Vec::new(), Vec::new()], same_files: HashMap::new() }
    }

    /// Declares that layer `b` of the second disk is the same file as layer `a` of the first.
    pub(super) fn same_file(&mut self, a: LayerId, b: LayerId) {
        self.same_files.insert(b, a);
    }

    /// Compares bytes from `at` on, which never decreases, up to `end` at most; either disk may end earlier.
    /// Returns how far it got and the first difference found.
    pub(super) fn step(&mut self, at: u64, end: u64) -> Result<(u64, Option<Difference>)> {
        let (alike_until, to_read) = self.disks_to_read(at, end)?;
        if to_read == 0 {
            return Ok((alike_until, None));
        }
        let end = window_end(at, end);
        for (runs, buf) in self.runs.iter().zip(&mut self.bufs) {
            let there = runs.size.clamp(at, end) - at;
            buf.clear();
            buf.resize((end - at) as usize, 0);
            runs.disk.read_at(&mut buf[..there as usize], at.min(runs.size))?;
        }
        let [a, b] = &self.bufs;
        if a == b {
            return Ok((end, None));
        }
        let place = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or_default();
        let offset = at + place as u64;
        let byte = |i: usize| (offset < self.runs[i].size).then(|| self.bufs[i][place]);
        Ok((end, Some(Difference { offset, a: byte(0), b: byte(1) })))
    }

    /// Returns how far [`step`](Self::step) gets from `at` if nothing differs, and how many bytes of data it reads.
    pub(super) fn predict(&mut self, at: u64, end: u64) -> Result<(u64, u64)> {
        let (alike_until, to_read) = self.disks_to_read(at, end)?;
        if to_read == 0 {
            return Ok((alike_until, 0));
        }
        let end = window_end(at, end);
        let mut bytes = 0;
        for runs in &mut self.runs {
            let (mut at, end) = (at, end.min(runs.size));
            while at < end {
                let run = runs.at(at)?;
                let run_end = run.end.min(end);
                bytes += if run.is_zero() { 0 } else { run_end - at };
                at = run_end;
            }
        }
        Ok((end, bytes))
    }

    /// Returns how far from `at` on the same number of disks has to be read, and that number: 0 if both are zeros or
    /// lie at the same place.
    pub(super) fn disks_to_read(&mut self, at: u64, end: u64) -> Result<(u64, u64)> {
        let past_end = DiskRun { start: at, end, source: Some(Source::Zero { layer: None }) };
        let mut ahead = [past_end; 2];
        for (runs, ahead) in self.runs.iter_mut().zip(&mut ahead) {
            if at < runs.size {
                *ahead = runs.at(at)?;
            }
        }
        let [a, b] = ahead;
        let is_same_place = match (a.source, b.source) {
            (
                Some(Source::Data { layer: one, at: x }),
                Some(Source::Data { layer: other, at: y }),
            ) => {
                let other = self.same_files.get(&other).copied().unwrap_or(other);
                one == other && x + (at - a.start) == y + (at - b.start)
            }
            _ => false,
        };
        let to_read =
            if is_same_place { 0 } else { ahead.iter().filter(|run| !run.is_zero()).count() };
        Ok((a.end.min(b.end).min(end), to_read as u64))
    }
}
