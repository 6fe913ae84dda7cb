//! Compares the bytes of two disks.

use std::ops::ControlFlow;

use super::pair::DiskPair;
use super::{Listener, Progress};
use crate::disk::Disk;
use crate::error::Result;
use crate::trace::operation;

/// Compares two disks byte by byte up to the first difference.
///
/// If one disk is longer, the contents are the same if the rest of it is zeros; that the sizes differ is
/// reported separately. Ranges that both disks map to zeros, to the same place in a file, or to layers that two chains
/// have in common, are not read: see [`Diff`](super::Diff), which lists all that differs.
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
        let mut both = DiskPair::new(a, b)?;
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

impl DiskPair<'_> {
    /// Compares bytes from `at` on, which never decreases, up to `end` at most; either disk may end earlier.
    /// Returns how far it got and the first difference found.
    pub(super) fn step(&mut self, at: u64, end: u64) -> Result<(u64, Option<Difference>)> {
        let (until, has_read) = self.read(at, end)?;
        let [a, b] = self.bytes();
        if !has_read || a == b {
            return Ok((until, None));
        }
        let place = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or_default();
        let offset = at + place as u64;
        let sizes = self.sizes();
        let byte = |of: &[u8], size: u64| (offset < size).then(|| of[place]);
        let difference = Difference { offset, a: byte(a, sizes[0]), b: byte(b, sizes[1]) };
        Ok((until, Some(difference)))
    }
}
