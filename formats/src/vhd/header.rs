//! The dynamic header, which leads to the block allocation table and to the parent.

use avhdx::storage::Storage;
use avhdx::{Error, ErrorKind, Result};
use uuid::Uuid;

use super::footer::{Kind, SECTOR, array, be32, be64, checksum, damaged, shown};
use crate::cache::read_up_to;

pub(super) const LEN: usize = 1024;
const COOKIE: &[u8; 8] = b"cxsparse";
/// Where the parent locators are, of 24 bytes each.
const LOCATORS: usize = 576;
/// The most entries of a table that is read: a disk of 2 TiB in blocks of 512 KiB has as many.
const MOST_ENTRIES: u64 = 1 << 22;
/// The most bytes of a path.
const MOST_PATH: u32 = 64 << 10;

/// What a dynamic header records.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) table_offset: u64,
    pub(super) entries: u32,
    /// Bytes of a block.
    pub(super) block_size: u32,
    pub(super) parent: Option<Parent>,
}

/// What a differencing image records of its parent.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) id: Uuid,
    /// When the parent last changed, in seconds since 2000.
    pub(super) stamp: u32,
    /// The name, without a path on most.
    pub(super) name: String,
    pub(super) relative_path: Option<String>,
    pub(super) absolute_path: Option<String>,
}

impl Header {
    /// Reads the header at `offset` of a file of `len` bytes, for a disk of `size` bytes.
    pub(super) fn read(
        storage: &dyn Storage,
        offset: u64,
        len: u64,
        size: u64,
        kind: Kind,
    ) -> Result<Self> {
        if offset.checked_add(LEN as u64).is_none_or(|end| end > len) {
            let message = "the dynamic header does not lie within the file";
            return Err(damaged("vhd.header", message, 16)
                .with_found(format_args!("{offset:#x}"))
                .with_expected(format_args!("less than {len:#x}")));
        }
        let mut bytes = [0; LEN];
        read_up_to(storage, &mut bytes, offset)?;
        if &bytes[..8] != COOKIE {
            return Err(damaged("vhd.header", "there is no dynamic header", offset)
                .with_found(shown(&bytes[..8]))
                .with_expected("\"cxsparse\""));
        }
        let (recorded, sum) = (be32(&bytes, 36), checksum(&bytes, 36));
        if recorded != sum {
            let message = "the checksum of the dynamic header does not fit its bytes";
            return Err(damaged("vhd.checksum", message, offset + 36)
                .with_found(format_args!("{recorded:#010x}"))
                .with_expected(format_args!("{sum:#010x}")));
        }
        if be32(&bytes, 24) >> 16 != 1 {
            let message = "the dynamic header has another version";
            return Err(Error::new(ErrorKind::Unsupported, "vhd.version", message)
                .at(offset + 24)
                .with_found(format_args!("{:#010x}", be32(&bytes, 24)))
                .with_expected("0x00010000"));
        }
        let block_size = be32(&bytes, 32);
        if !block_size.is_power_of_two() || u64::from(block_size) < SECTOR {
            let message = "the size of the blocks is not one that blocks can have";
            return Err(damaged("vhd.block-size", message, offset + 32)
                .with_found(format_args!("{block_size} bytes"))
                .with_expected("a power of two, at least 512"));
        }
        let (entries, needed) = (be32(&bytes, 28), size.div_ceil(block_size.into()));
        if u64::from(entries) < needed {
            let message = "the block allocation table has no entry for the end of the disk";
            return Err(damaged("vhd.table", message, offset + 28)
                .with_found(format_args!("{entries} entries"))
                .with_expected(format_args!("at least {needed}")));
        }
        if needed > MOST_ENTRIES {
            let message = "the block allocation table is longer than is read";
            return Err(Error::new(ErrorKind::Unsupported, "vhd.table-length", message)
                .at(offset + 28)
                .with_found(format_args!("{needed} entries"))
                .with_expected(format_args!("at most {MOST_ENTRIES}")));
        }
        let table_offset = be64(&bytes, 16);
        if table_offset.checked_add(needed * 4).is_none_or(|end| end > len) {
            let message = "the block allocation table does not lie within the file";
            return Err(damaged("vhd.table", message, offset + 16)
                .with_found(format_args!("{table_offset:#x}, {needed} entries"))
                .with_expected(format_args!("an end at {len:#x} at most")));
        }
        let parent = (kind == Kind::Differencing).then(|| Parent::read(storage, &bytes, offset));
        // Only what the disk needs is read of the table.
        let entries = needed as u32;
        Ok(Self { table_offset, entries, block_size, parent: parent.transpose()? })
    }

    /// The bytes of the header of an image without a parent.
    pub(super) fn bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, COOKIE);
        put(8, &u64::MAX.to_be_bytes());
        put(16, &self.table_offset.to_be_bytes());
        put(24, &0x0001_0000_u32.to_be_bytes());
        put(28, &self.entries.to_be_bytes());
        put(32, &self.block_size.to_be_bytes());
        let sum = checksum(&bytes, 36);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

impl Parent {
    fn read(storage: &dyn Storage, header: &[u8; LEN], offset: u64) -> Result<Self> {
        let mut parent = Self {
            id: Uuid::from_bytes(array(header, 40)),
            stamp: be32(header, 56),
            name: utf16(&header[64..LOCATORS], u16::from_be_bytes),
            relative_path: None,
            absolute_path: None,
        };
        for (n, locator) in header[LOCATORS..][..8 * 24].chunks(24).enumerate() {
            let path = match &locator[..4] {
                b"W2ru" => &mut parent.relative_path,
                b"W2ku" => &mut parent.absolute_path,
                // Those of a Mac, and those in code pages that nobody names.
                _ => continue,
            };
            let at = offset + (LOCATORS + n * 24) as u64;
            let (len, place) = (be32(locator, 8), be64(locator, 16));
            if len > MOST_PATH || len % 2 != 0 {
                let message = "the path of the parent has a length that no path has";
                return Err(damaged("vhd.locator", message, at + 8)
                    .with_found(format_args!("{len} bytes"))
                    .with_expected(format_args!("an even number up to {MOST_PATH}")));
            }
            let mut bytes = vec![0; len as usize];
            // An offset beyond any file reads nothing.
            if place > i64::MAX as u64 || read_up_to(storage, &mut bytes, place)? < bytes.len() {
                let message = "the path of the parent does not lie within the file";
                return Err(damaged("vhd.locator", message, at + 16)
                    .with_found(format_args!("{len} bytes at {place:#x}"))
                    .with_expected("bytes of the file"));
            }
            *path = Some(utf16(&bytes, u16::from_le_bytes)).filter(|path| !path.is_empty());
        }
        Ok(parent)
    }
}

/// Text up to its first zero.
fn utf16(bytes: &[u8], unit: impl Fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let units = units.take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
