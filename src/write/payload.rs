//! Payload to be written: bytes in memory, or bytes in another file.

use std::cell::{Cell, RefCell};

use crate::storage::Storage;
use crate::types::FileOffset;

/// Bytes to be written.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// `len` bytes at `at` in another file.
    InFile { len: u64, from: &'a dyn Storage, at: FileOffset, copier: &'a Copier },
}

/// Copies payload from file to file during one operation.
#[derive(Debug)]
pub(crate) struct Copier {
    /// Whether to try copying by the host.
    pub(super) by_host: Cell<bool>,
    pub(super) shared: Cell<u64>,
    pub(super) buffer: RefCell<Vec<u8>>,
}

impl Copier {
    /// Copies by the host if `share` is set, which lets files share their bytes where it can;
    /// otherwise through a buffer.
    pub(crate) fn new(share: bool) -> Self {
        Self { by_host: Cell::new(share), shared: Cell::new(0), buffer: RefCell::default() }
    }

    /// Whether the host has copied all bytes until now, so that it is asked again.
    pub(crate) fn is_by_host(&self) -> bool {
        self.by_host.get()
    }

    /// Bytes that the host copied. It does not report how many of them the files share.
    pub(crate) fn shared(&self) -> u64 {
        self.shared.get()
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl Payload<'_> {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::InFile { len, .. } => *len,
        }
    }

    /// The first `len` bytes. There must be as many.
    pub(super) fn first(self, len: u64) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[..len as usize]),
            Self::InFile { from, at, copier, .. } => Self::InFile { len, from, at, copier },
        }
    }

    /// Everything after the first `len` bytes.
    pub(super) fn after(self, len: u64) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[len as usize..]),
            Self::InFile { len: all, from, at, copier } => {
                Self::InFile { len: all - len, from, at: at + len, copier }
            }
        }
    }
}
