//! A file that is not one: bytes in memory.

use std::io;
use std::sync::{PoisonError, RwLock};

use super::{LockMode, LockOutcome, Storage};

/// A file kept in memory, for images that never touch a disk and for tests.
#[derive(Debug)]
pub struct MemStorage {
    bytes: RwLock<Vec<u8>>,
    name: String,
}

impl MemStorage {
    /// A file with these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes), name: "memory".into() }
    }

    /// The same, called `name` in errors.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The bytes as they are now.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Vec<u8>) -> io::Result<R>) -> io::Result<R> {
        change(&mut self.bytes.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Storage for MemStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..));
        let rest = rest.unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(|bytes| {
            let start = in_memory(offset)?;
            let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::FileTooLarge)?;
            if bytes.len() < end {
                grow(bytes, end)?;
            }
            bytes[start..end].copy_from_slice(buf);
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|bytes| {
            let len = in_memory(len)?;
            if len <= bytes.len() {
                bytes.truncate(len);
                return Ok(());
            }
            grow(bytes, len)
        })
    }

    /// Always held: no other program can reach the bytes.
    fn try_lock(&self, _: LockMode) -> io::Result<LockOutcome> {
        Ok(LockOutcome::Locked)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}

fn in_memory(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn grow(bytes: &mut Vec<u8>, len: usize) -> io::Result<()> {
    bytes.try_reserve(len - bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(())
}
