//! The value of an attribute, wherever it is.

use super::runs::Outside;
use crate::error::{Error, Result};
use crate::item::{Piece, Place, Stream};

/// The value of an attribute.
pub(super) enum Held {
    Inside(Vec<u8>),
    Outside(Outside),
}

impl Held {
    /// All of it, of which there are `most` bytes at most.
    pub(super) fn read_all(mut self, most: u64) -> Result<Vec<u8>> {
        let len = self.len();
        if len > most {
            let message = format!("an attribute has {len} bytes, expected {most} at most");
            return Err(Error::damaged("ntfs.attribute", message));
        }
        let mut bytes = vec![0; len as usize];
        self.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

impl Stream for Held {
    fn len(&self) -> u64 {
        match self {
            Self::Inside(value) => value.len() as u64,
            Self::Outside(outside) => outside.len(),
        }
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::Inside(value) => buf.copy_from_slice(&value[offset as usize..][..buf.len()]),
            Self::Outside(outside) => outside.read_at(buf, offset)?,
        }
        Ok(())
    }

    fn hole_end(&self, offset: u64) -> u64 {
        match self {
            Self::Inside(_) => offset,
            Self::Outside(outside) => outside.hole_end(offset),
        }
    }

    fn piece(&mut self, offset: u64) -> Result<Piece> {
        match self {
            Self::Inside(value) => {
                let len = (value.len() as u64).saturating_sub(offset).max(1);
                Ok(Piece { len, place: Place::Inside })
            }
            Self::Outside(outside) => outside.piece(offset),
        }
    }
}
