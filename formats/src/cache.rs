//! Tables of an image, read as they are needed: what an image says of the length of its tables costs no memory.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use avhdx::storage::Storage;
use avhdx::{Error, Result};
use lru::LruCache;

const PAGE: u64 = 4096;

/// Recently used pages of a file.
#[derive(Debug)]
pub(crate) struct Pages {
    storage: Arc<dyn Storage>,
    held: Mutex<LruCache<u64, Arc<[u8]>>>,
}

impl Pages {
    /// Keeps up to this many pages of 4 KiB.
    pub(crate) fn new(storage: Arc<dyn Storage>, most: NonZeroUsize) -> Self {
        Self { storage, held: Mutex::new(LruCache::new(most)) }
    }

    /// Fills `buf`. What lies past the end of the file is an error at its offset.
    pub(crate) fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let page = self.page(offset / PAGE)?;
            let within = (offset % PAGE) as usize;
            let Some(bytes) = page.get(within..).filter(|bytes| !bytes.is_empty()) else {
                let error = Error::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
                return Err(error.in_file(self.storage.name()).at(offset));
            };
            let count = bytes.len().min(buf.len());
            buf[..count].copy_from_slice(&bytes[..count]);
            (buf, offset) = (&mut buf[count..], offset + count as u64);
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Result<Arc<[u8]>> {
        let held = || self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = held().get(&number) {
            return Ok(Arc::clone(page));
        }
        let mut bytes = vec![0; PAGE as usize];
        let len = read_up_to(self.storage.as_ref(), &mut bytes, number * PAGE)?;
        bytes.truncate(len);
        let page: Arc<[u8]> = bytes.into();
        held().put(number, Arc::clone(&page));
        Ok(page)
    }
}

/// Reads until `buf` is full or the file ends; returns how much was read.
pub(crate) fn read_up_to(storage: &dyn Storage, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match storage.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::from(error).in_file(storage.name()).at(offset)),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use avhdx::storage::MemStorage;

    use super::*;

    #[test]
    fn pages_are_read_once_and_end_with_the_file() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let pages = Pages::new(Arc::new(MemStorage::new(bytes.clone())), NonZeroUsize::MIN);
        for (offset, len) in [(0, 10), (4090, 10), (4096, 4096), (9_990, 10), (3, 9_000)] {
            let mut buf = vec![0; len];
            pages.read(&mut buf, offset).unwrap();
            assert_eq!(buf, bytes[offset as usize..][..len]);
        }
        let error = pages.read(&mut [0; 2], 9_999).unwrap_err();
        assert_eq!((error.offset(), error.kind()), (Some(10_000), avhdx::ErrorKind::Io));
    }
}
