//! The region table, \[MS-VHDX\] 2.2.3.

use bitflags::bitflags;
use uuid::{Uuid, uuid};

use super::{Fields, FieldsMut, check_signature, check_sum, seal};
use crate::error::{Error, Result};
use crate::types::{FileOffset, KIB, MIB};

pub(crate) const BAT: Uuid = uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
pub(crate) const METADATA: Uuid = uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");

const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 32;
const MAX_ENTRIES: u32 = 2047;

/// Where the parts of the file lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionTable {
    pub(crate) entries: Vec<RegionEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionEntry {
    pub(crate) guid: Uuid,
    pub(crate) offset: FileOffset,
    pub(crate) length: u32,
    pub(crate) flags: RegionFlags,
}

bitflags! {
    /// What a reader must do with a region.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct RegionFlags: u32 {
        /// Who does not know the region must not open the file.
        const REQUIRED = 1;
        const _ = !0;
    }
}

impl RegionEntry {
    pub(crate) fn end(&self) -> u64 {
        self.offset.get().saturating_add(self.length.into())
    }
}

impl RegionTable {
    /// Bytes of one copy.
    pub(crate) const LEN: usize = 64 * KIB as usize;
    /// Where the two copies lie.
    pub(crate) const OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];

    /// Parses one copy and checks all that can be checked without the rest of the file.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        check_signature(bytes, b"regi", at, "region.signature", "2.2.3.1", "region table")?;
        check_sum(bytes, at, "region.checksum", "2.2.3.1", "region table")?;
        let count = Fields(bytes).u32(8);
        if count > MAX_ENTRIES {
            let message = "too many regions";
            return Err(Error::damaged("region.count", "2.2.3.1", at + 8, message)
                .with_found(count)
                .with_expected(format_args!("at most {MAX_ENTRIES}")));
        }
        let mut entries: Vec<RegionEntry> = Vec::new();
        for i in 0..count as usize {
            let start = HEADER_LEN + ENTRY_LEN * i;
            let entry = RegionEntry::parse(Fields(bytes).from(start), at + start as u64)?;
            if entries.iter().any(|other| other.guid == entry.guid) {
                let message = "the same region twice";
                return Err(Error::damaged(
                    "region.duplicate",
                    "2.2.3.2",
                    at + start as u64,
                    message,
                )
                .with_found(entry.guid)
                .with_expected("every GUID once"));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    /// The bytes of one copy, checksum included.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LEN];
        let mut fields = FieldsMut(&mut bytes);
        fields.bytes(0, b"regi");
        fields.u32(8, self.entries.len() as u32);
        for (i, entry) in self.entries.iter().enumerate() {
            let start = HEADER_LEN + ENTRY_LEN * i;
            fields.guid(start, entry.guid);
            fields.u64(start + 16, entry.offset.get());
            fields.u32(start + 24, entry.length);
            fields.u32(start + 28, entry.flags.bits());
        }
        seal(&mut bytes);
        bytes
    }
}

/// The name of a region that the format defines.
pub(crate) fn name(guid: Uuid) -> Option<&'static str> {
    match guid {
        BAT => Some("BAT"),
        METADATA => Some("Metadata"),
        _ => None,
    }
}

impl RegionEntry {
    fn parse(fields: Fields<'_>, at: u64) -> Result<Self> {
        let entry = Self {
            guid: fields.guid(0),
            offset: FileOffset::new(fields.u64(16)),
            length: fields.u32(24),
            flags: RegionFlags::from_bits_retain(fields.u32(28)),
        };
        let offset = entry.offset.get();
        if offset < MIB || !offset.is_multiple_of(MIB) {
            let message = format!("misplaced region {}", entry.guid);
            return Err(Error::damaged("region.offset", "2.2.3.2", at + 16, message)
                .with_found(entry.offset)
                .with_expected("a multiple of 1 MiB, from 1 MiB on"));
        }
        if entry.length == 0 || !u64::from(entry.length).is_multiple_of(MIB) {
            let message = format!("misaligned length of region {}", entry.guid);
            return Err(Error::damaged("region.length", "2.2.3.2", at + 24, message)
                .with_found(entry.length)
                .with_expected("a multiple of 1 MiB, not zero"));
        }
        Ok(entry)
    }
}
