//! Hashes of files inside the disk.

use avhdx_files::{Entry, FileReader, FileSystem, Result};
use clap::ValueEnum;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::text::hex;

const PIECE: u64 = 1 << 20;

/// What hashes files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum Algorithm {
    Blake3,
    Sha256,
}

impl Algorithm {
    /// As the column is called.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Blake3 => "BLAKE3",
            Self::Sha256 => "SHA-256",
        }
    }

    /// Hashes a file, or one of its streams. Returns its size too.
    pub(crate) fn of(
        self,
        tree: &FileSystem,
        entry: &Entry,
        stream: Option<&[u8]>,
    ) -> Result<(u64, String)> {
        let mut file = tree.open(entry, stream)?;
        let size = file.size();
        let hash = match self {
            Self::Blake3 => {
                let mut hash = blake3::Hasher::new();
                pieces(&mut file, |piece| {
                    hash.update(piece);
                })?;
                hash.finalize().to_hex().to_string()
            }
            Self::Sha256 => {
                let mut hash = Sha256::new();
                pieces(&mut file, |piece| hash.update(piece))?;
                hex(&hash.finalize())
            }
        };
        Ok((size, hash))
    }
}

fn pieces(file: &mut FileReader<'_>, mut take: impl FnMut(&[u8])) -> Result<()> {
    let (mut at, size) = (0, file.size());
    let mut buf = vec![0; size.min(PIECE) as usize];
    while at < size {
        let piece = &mut buf[..PIECE.min(size - at) as usize];
        file.read_at(piece, at)?;
        take(piece);
        at += piece.len() as u64;
    }
    Ok(())
}
