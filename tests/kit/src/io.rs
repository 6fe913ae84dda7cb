//! Positional and sparse file access, the same on all systems.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// Ranges that are not written stay holes in units of this size.
pub(crate) const PAGE: usize = 4096;

/// Reads at `offset` until `buf` is full or the file ends; returns how much was read.
pub(crate) fn read_at(file: &File, mut offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        #[cfg(unix)]
        let n = std::os::unix::fs::FileExt::read_at(file, &mut buf[done..], offset)?;
        #[cfg(windows)]
        let n = std::os::windows::fs::FileExt::seek_read(file, &mut buf[done..], offset)?;
        if n == 0 {
            break;
        }
        done += n;
        offset += n as u64;
    }
    Ok(done)
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_at(file: &mut File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

/// Writes pieces in any order and leaves zero pages as holes.
pub(crate) struct SparseFile {
    file: File,
    /// Pages that hold data already: zeros written over them must reach the file.
    written: HashSet<u64>,
}

impl SparseFile {
    pub(crate) fn new(file: File) -> Self {
        Self { file, written: HashSet::new() }
    }

    pub(crate) fn put(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        // Consecutive pages are written in one call; `run` is where the current ones start.
        let mut run: Option<(u64, &[u8])> = None;
        let mut run_len = 0;
        while !bytes.is_empty() {
            let room = PAGE - (offset % PAGE as u64) as usize;
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            let page = offset / PAGE as u64;
            if is_zero(part) && !self.written.contains(&page) {
                if let Some((at, from)) = run.take() {
                    write_at(&mut self.file, at, &from[..run_len])?;
                }
                run_len = 0;
            } else {
                self.written.insert(page);
                run.get_or_insert((offset, bytes));
                run_len += part.len();
            }
            offset += part.len() as u64;
            bytes = rest;
        }
        if let Some((at, from)) = run {
            write_at(&mut self.file, at, &from[..run_len])?;
        }
        Ok(())
    }

    /// Sets the length of the file: extends it with a hole, or truncates it.
    pub(crate) fn finish(self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0) && rest.iter().all(|b| *b == 0)
}

/// Returns the value, or panics with the name of the file.
pub(crate) fn ok<T>(path: &std::path::Path, result: io::Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
