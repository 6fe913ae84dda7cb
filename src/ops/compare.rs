//! Do two disks hold the same bytes?

use std::ops::ControlFlow;

use super::{Progress, Runs, report, window_end};
use crate::disk::Disk;
use crate::error::Result;

/// Compares two disks byte by byte up to the first difference.
///
/// A disk that is longer has the same contents if it goes on in zeros; that the sizes differ is a fact
/// of its own. Where the maps of both say zero, nothing is read.
///
/// ```
/// use std::ops::ControlFlow;
/// use std::sync::Arc;
/// use avhdx::RawDisk;
/// use avhdx::ops::Compare;
/// use avhdx::storage::MemStorage;
///
/// let disk = |bytes: &[u8]| RawDisk::new(Arc::new(MemStorage::new(bytes.to_vec())));
/// let mut on = |_| ControlFlow::Continue(());
///
/// let longer = Compare::new().run(&disk(b"ab")?, &disk(b"ab\0\0")?, &mut on)?;
/// assert!(longer.same_contents() && !longer.same_size());
///
/// let other = Compare::new().run(&disk(b"ab")?, &disk(b"aX")?, &mut on)?;
/// let difference = other.first_difference.unwrap();
/// assert_eq!((difference.offset, difference.a, difference.b), (1, Some(b'b'), Some(b'X')));
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Compare {}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Comparison {
    /// Bytes of the first disk.
    pub size_a: u64,
    /// Bytes of the second disk.
    pub size_b: u64,
    /// Where they first differ; past the end of the shorter disk, where the other is first not zero.
    pub first_difference: Option<Difference>,
}

/// A byte that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Where on the disks.
    pub offset: u64,
    /// The first disk's byte, `None` past its end.
    pub a: Option<u8>,
    /// The second disk's byte, `None` past its end.
    pub b: Option<u8>,
}

impl Comparison {
    /// Whether both hold the same bytes, what is past the end of the shorter counting as zeros.
    pub fn same_contents(&self) -> bool {
        self.first_difference.is_none()
    }

    /// Whether both are of one size.
    pub fn same_size(&self) -> bool {
        self.size_a == self.size_b
    }
}

impl Compare {
    /// A comparison of whole disks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compares `a` with `b`.
    ///
    /// # Errors
    /// As [`Disk::read_at`] on either; [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) when `on`
    /// asks to stop.
    pub fn run(
        self,
        a: &dyn Disk,
        b: &dyn Disk,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Comparison> {
        let (size_a, size_b) = (a.geometry().size, b.geometry().size);
        let mut both = Both { runs: [Runs::new(a), Runs::new(b)], bufs: [Vec::new(), Vec::new()] };
        let total = size_a.max(size_b);
        let mut at = 0;
        let mut first_difference = None;
        report(on, at, total)?;
        while at < total && first_difference.is_none() {
            (at, first_difference) = both.step(at, total)?;
            report(on, at, total)?;
        }
        Ok(Comparison { size_a, size_b, first_difference })
    }
}

/// The two disks and what was last read of each.
struct Both<'a> {
    runs: [Runs<'a>; 2],
    bufs: [Vec<u8>; 2],
}

impl Both<'_> {
    /// Compares some bytes at `at`; how far that went, and the difference if there was one.
    fn step(&mut self, at: u64, total: u64) -> Result<(u64, Option<Difference>)> {
        let mut zeros_until = total;
        for runs in &mut self.runs {
            if at < runs.size {
                let run = runs.at(at)?;
                zeros_until = zeros_until.min(if run.is_zero { run.end } else { at });
            }
        }
        if zeros_until > at {
            return Ok((zeros_until, None));
        }
        let end = window_end(at, total);
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
}
