//! A read-only handle to a file.

use std::io::{self, ErrorKind, IoSliceMut};
use std::ops::Range;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use super::{FileId, LockMode, LockOutcome, Storage};

/// A file that may be open for writing, handed to a user without the right to write: neither its contents nor its
/// lock can be changed.
#[derive(Debug)]
pub(crate) struct ReadOnly(pub(crate) Arc<dyn Storage>);

impl Storage for ReadOnly {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn path(&self) -> Option<&Path> {
        self.0.path()
    }

    fn via(&self) -> Option<&Path> {
        self.0.via()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.0.read_vectored_at(bufs, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        refused()
    }

    fn flush(&self) -> io::Result<()> {
        refused()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(from)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn copy_from(&self, _: &dyn Storage, _: u64, _: u64, _: u64) -> io::Result<bool> {
        refused()
    }

    fn punch(&self, _: Range<u64>) -> io::Result<bool> {
        refused()
    }

    fn zero(&self, _: Range<u64>) -> io::Result<bool> {
        refused()
    }

    fn forget(&self, range: Range<u64>) {
        self.0.forget(range);
    }

    fn lost_writes_read_as_zeros(&self) -> bool {
        self.0.lost_writes_read_as_zeros()
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        self.0.id()
    }

    fn copy_owner_from(&self, _: &dyn Storage) -> io::Result<()> {
        refused()
    }

    #[cfg(unix)]
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_fd()
    }

    fn try_lock(&self, _: LockMode) -> io::Result<LockOutcome> {
        refused()
    }

    fn unlock(&self) -> io::Result<()> {
        refused()
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(ErrorKind::PermissionDenied, "this handle is read-only"))
}
