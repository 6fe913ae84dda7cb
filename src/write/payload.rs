//! Payload to be written: bytes in memory, or bytes that lie in another image's file.

use std::cell::{Cell, RefCell};

use crate::image::Core;
use crate::types::FileOffset;

/// Bytes to be written.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    /// These.
    Bytes(&'a [u8]),
    /// So many, from there in another image's file on.
    InFile { len: u64, from: &'a Core, at: FileOffset, copier: &'a Copier },
}

/// Copies payload from file to file, one operation long.
#[derive(Debug)]
pub(crate) struct Copier {
    /// Whether the host is still asked to copy by itself.
    pub(super) by_host: Cell<bool>,
    pub(super) shared: Cell<u64>,
    pub(super) buffer: RefCell<Vec<u8>>,
}

impl Copier {
    /// Has the host copy by itself, which lets files share their bytes where it can, or moves all bytes by
    /// a buffer.
    pub(crate) fn new(share: bool) -> Self {
        Self { by_host: Cell::new(share), shared: Cell::new(0), buffer: RefCell::default() }
    }

    /// How many bytes the host copied by itself. It does not tell which of them the files share.
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

    /// The first `len` bytes, of which there are as many.
    pub(super) fn first(self, len: u64) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[..len as usize]),
            Self::InFile { from, at, copier, .. } => Self::InFile { len, from, at, copier },
        }
    }

    /// What comes after the first `len` bytes.
    pub(super) fn after(self, len: u64) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[len as usize..]),
            Self::InFile { len: all, from, at, copier } => {
                Self::InFile { len: all - len, from, at: at + len, copier }
            }
        }
    }
}
