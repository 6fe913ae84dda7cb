//! The footer, which says what an image is.

use std::time::{Duration, SystemTime};

use avhdx::{Error, ErrorKind, Result};
use uuid::Uuid;

pub(super) const SECTOR: u64 = 512;
/// The bytes of a footer.
pub(super) const LEN: usize = 512;
pub(super) const COOKIE: &[u8; 8] = b"conectix";
/// Seconds from 1970 to 2000, where the format's clock begins.
const EPOCH: u64 = 946_684_800;
/// What the data offset of a fixed image is.
const NOWHERE: u64 = u64::MAX;

/// The kind of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The file has all bytes of the disk.
    Fixed,
    /// The file has the blocks that were written.
    Dynamic,
    /// The file has what was written since its parent was left alone.
    Differencing,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        })
    }
}

/// What a footer records.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    pub(super) kind: Kind,
    /// Where the dynamic header is.
    pub(super) data_offset: u64,
    /// When the image was made, in seconds since 2000.
    pub(super) stamp: u32,
    pub(super) creator: [u8; 4],
    /// Bytes of the disk now, and when it was made.
    pub(super) size: u64,
    pub(super) original_size: u64,
    pub(super) id: Uuid,
    pub(super) is_saved_state: bool,
}

impl Footer {
    /// Reads a footer that was found at `offset` of its file.
    pub(super) fn parse(bytes: &[u8; LEN], offset: u64) -> Result<Self> {
        if &bytes[..8] != COOKIE {
            return Err(damaged("vhd.footer", "there is no footer of a VHD image", offset)
                .with_found(shown(&bytes[..8]))
                .with_expected("\"conectix\""));
        }
        let (recorded, sum) = (be32(bytes, 64), checksum(bytes, 64));
        if recorded != sum {
            let message = "the checksum of the footer does not fit its bytes";
            return Err(damaged("vhd.checksum", message, offset + 64)
                .with_found(format_args!("{recorded:#010x}"))
                .with_expected(format_args!("{sum:#010x}")));
        }
        if be32(bytes, 12) >> 16 != 1 {
            let message = "the image has another version of the format";
            return Err(Error::new(ErrorKind::Unsupported, "vhd.version", message)
                .at(offset + 12)
                .with_found(format_args!("{:#010x}", be32(bytes, 12)))
                .with_expected("0x00010000"));
        }
        let kind = match be32(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => {
                let message = "the image has a kind that is not known";
                return Err(Error::new(ErrorKind::Unsupported, "vhd.kind", message)
                    .at(offset + 60)
                    .with_found(other)
                    .with_expected("2 (fixed), 3 (dynamic) or 4 (differencing)"));
            }
        };
        let size = be64(bytes, 48);
        if size == 0 || !size.is_multiple_of(SECTOR) || size > i64::MAX as u64 {
            let message = "the size of the disk is not one that a disk can have";
            return Err(damaged("vhd.size", message, offset + 48)
                .with_found(format_args!("{size} bytes"))
                .with_expected("whole sectors of 512 bytes, fewer than 2^63 bytes"));
        }
        Ok(Self {
            kind,
            data_offset: be64(bytes, 16),
            stamp: be32(bytes, 24),
            creator: array(bytes, 28),
            size,
            original_size: be64(bytes, 40),
            id: Uuid::from_bytes(array(bytes, 68)),
            is_saved_state: bytes[84] != 0,
        })
    }

    /// The bytes of the footer.
    pub(super) fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, COOKIE);
        // A reserved bit that is always set.
        put(8, &2_u32.to_be_bytes());
        put(12, &0x0001_0000_u32.to_be_bytes());
        put(16, &self.data_offset.to_be_bytes());
        put(24, &self.stamp.to_be_bytes());
        put(28, &self.creator);
        put(32, &0x000A_0000_u32.to_be_bytes());
        put(36, b"Wi2k");
        put(40, &self.original_size.to_be_bytes());
        put(48, &self.size.to_be_bytes());
        put(56, &cylinders_heads_sectors(self.size));
        let kind: u32 = match self.kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        put(60, &kind.to_be_bytes());
        put(68, self.id.as_bytes());
        put(84, &[u8::from(self.is_saved_state)]);
        let sum = checksum(&bytes, 64);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The footer of a new image.
    pub(super) fn new(kind: Kind, size: u64, id: Uuid, created: SystemTime) -> Self {
        Self {
            kind,
            data_offset: if kind == Kind::Fixed { NOWHERE } else { LEN as u64 },
            stamp: stamp(created),
            // For images of Hyper-V, every reader takes the size and not the geometry.
            creator: *b"win ",
            size,
            original_size: size,
            id,
            is_saved_state: false,
        }
    }
}

/// The geometry that a disk of some size claims to have, by the algorithm of the specification's appendix. It is the most
/// that it can express from 127 GiB on.
fn cylinders_heads_sectors(size: u64) -> [u8; 4] {
    const MOST: u64 = 65_535 * 16 * 255;
    let sectors = (size / SECTOR).min(MOST);
    let (cylinders_times_heads, heads, per_track) = if sectors >= 65_535 * 16 * 63 {
        (sectors / 255, 16, 255)
    } else {
        let tracks = sectors / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads * 1024 && heads <= 16 {
            (tracks, heads, 17)
        } else if sectors / 31 < 16 * 1024 {
            (sectors / 31, 16, 31)
        } else {
            (sectors / 63, 16, 63)
        }
    };
    let cylinders = (cylinders_times_heads / heads) as u16;
    let [high, low] = cylinders.to_be_bytes();
    [high, low, heads as u8, per_track]
}

/// A time of the format.
pub(super) fn time(stamp: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH + u64::from(stamp))
}

/// The nearest time of the format.
pub(super) fn stamp(time: SystemTime) -> u32 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(since.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// The complement of the sum of all bytes but those of the checksum itself.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let others = bytes[..at].iter().chain(&bytes[at + 4..]);
    !others.fold(0, |sum: u32, byte| sum.wrapping_add(u32::from(*byte)))
}

/// An image that breaks a rule of the format.
pub(super) fn damaged(code: &'static str, message: impl Into<String>, offset: u64) -> Error {
    Error::new(ErrorKind::Damaged, code, message).at(offset)
}

/// Bytes as they are shown in an error.
pub(super) fn shown(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand, from the appendix.
    #[test]
    fn geometries_are_those_of_the_appendix() {
        let of = |mib: u64| cylinders_heads_sectors(mib << 20);
        let chs = |c: u16, h, s| [c.to_be_bytes()[0], c.to_be_bytes()[1], h, s];
        assert_eq!(of(4), chs(120, 4, 17));
        assert_eq!(of(100), chs(1003, 12, 17));
        assert_eq!(of(4 << 20), chs(65_535, 16, 255));
    }

    #[test]
    fn the_clock_begins_with_2000() {
        assert_eq!(stamp(SystemTime::UNIX_EPOCH), 0);
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(951_782_400);
        assert_eq!((stamp(day), time(stamp(day))), (59 * 86_400, day));
    }
}
