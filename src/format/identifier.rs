//! The file type identifier, \[MS-VHDX\] 2.2.1.

use super::{Fields, FieldsMut, text};
use crate::error::{Error, ErrorKind, Result};

/// The first eight bytes of a file.
pub(crate) const SIGNATURE: &[u8; 8] = b"vhdxfile";
const CREATOR_UNITS: usize = 256;

/// Identifies the file as VHDX and names its creator. Never rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentifier {
    /// The program that created the file; informational only.
    pub(crate) creator: String,
}

impl FileIdentifier {
    /// Size of the structure, at the start of its 64 KiB slot.
    pub(crate) const LEN: usize = 8 + 2 * CREATOR_UNITS;

    /// Whether a file that starts with `bytes` is a VHDX file.
    pub(crate) fn matches(bytes: &[u8]) -> bool {
        bytes.starts_with(SIGNATURE)
    }

    /// Parses the first [`LEN`](Self::LEN) bytes of a file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        if !Self::matches(bytes) {
            return Err(Error::new(
                ErrorKind::NotVhdx,
                "identifier.signature",
                "not a VHDX file: no signature",
            )
            .with_section("2.2.1")
            .at(0)
            .with_found(text(&bytes[..SIGNATURE.len()]))
            .with_expected(text(SIGNATURE)));
        }
        let units: Vec<u16> = (0..CREATOR_UNITS)
            .map(|i| Fields(bytes).u16(8 + 2 * i))
            .take_while(|unit| *unit != 0)
            .collect();
        Ok(Self { creator: String::from_utf16_lossy(&units) })
    }

    /// Serializes the structure; a creator too long for the field is cut off.
    pub(crate) fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(SIGNATURE);
        for (i, unit) in self.creator.encode_utf16().take(CREATOR_UNITS).enumerate() {
            FieldsMut(&mut bytes).u16(8 + 2 * i, unit);
        }
        bytes
    }
}
