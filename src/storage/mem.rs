//! Files in memory.

use std::io;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::{LockMode, LockOutcome, Storage};

/// A file in memory, for images that never touch a disk and for tests. Zeros that extend the file
/// take up no memory until something is written after them.
///
/// ```
/// use std::sync::Arc;
///
/// use avhdx::storage::MemStorage;
/// use avhdx::{Disk, RawDisk};
///
/// let disk = RawDisk::new(Arc::new(MemStorage::new(vec![0; 1 << 20])))?;
/// disk.write_at(b"hello", 4096)?;
/// let mut read = [0; 5];
/// disk.read_at(&mut read, 4096)?;
/// assert_eq!(&read, b"hello");
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Debug)]
pub struct MemStorage {
    contents: RwLock<MemContents>,
    name: String,
}

#[derive(Debug)]
struct MemContents {
    /// The bytes up to the last one written.
    bytes: Vec<u8>,
    /// The length of the file; bytes beyond `bytes` are zeros.
    len: u64,
}

impl MemStorage {
    /// Creates a file with these contents.
    pub fn new(bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self { contents: RwLock::new(MemContents { bytes, len }), name: "memory".into() }
    }

    /// Sets the name used in errors.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Returns the contents, including zeros at the end.
    pub fn into_bytes(self) -> Vec<u8> {
        let MemContents { mut bytes, len } =
            self.contents.into_inner().unwrap_or_else(PoisonError::into_inner);
        bytes.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        bytes
    }

    fn contents(&self) -> RwLockReadGuard<'_, MemContents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut MemContents) -> R) -> R {
        change(&mut self.contents.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Storage for MemStorage {
    fn name(&self) -> &str {
        &self.name
    }

    /// A crash leaves nothing.
    fn lost_writes_read_as_zeros(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let contents = self.contents();
        let len = contents.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let written = usize::try_from(offset).ok().and_then(|start| contents.bytes.get(start..));
        let written = written.unwrap_or_default();
        let (there, behind) = buf[..len].split_at_mut(len.min(written.len()));
        there.copy_from_slice(&written[..there.len()]);
        behind.fill(0);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.change(|MemContents { bytes, len }| {
            if bytes.len() < end {
                bytes.try_reserve(end - bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(buf);
            *len = (*len).max(end as u64);
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.contents().len)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let end = self.contents().bytes.len() as u64;
        Ok((from < end).then_some(from..end))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|contents| {
            // When the file grows, this truncates nothing.
            contents.bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
            contents.len = len;
        });
        Ok(())
    }

    fn zero(&self, range: Range<u64>) -> io::Result<bool> {
        self.change(|MemContents { bytes, .. }| {
            let within =
                |at: u64| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
            let (start, end) = (within(range.start), within(range.end));
            bytes[start.min(end)..end].fill(0);
        });
        Ok(true)
    }

    /// Always succeeds: no other program can reach the bytes.
    fn try_lock(&self, _: LockMode) -> io::Result<LockOutcome> {
        Ok(LockOutcome::Locked)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}
