//! The region table, \[MS-VHDX\] 2.2.3.

use bitflags::bitflags;
use uuid::{Uuid, uuid};

use super::{Fields, FieldsMut, OnError, check_reserved, check_signature, check_sum, seal, strict};
use crate::error::{Error, Result};
use crate::types::{FileOffset, KIB, MIB};

pub(crate) const BAT: Uuid = uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
pub(crate) const METADATA: Uuid = uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");

const HEADER_LEN: usize = 16;
const ENTRY_LEN: usize = 32;
pub(super) const MAX_ENTRIES: u32 = 2047;

/// The table of the regions.
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
    /// What the region requires of readers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct RegionFlags: u32 {
        /// A program that does not know the region must not open the file.
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
    /// The first four bytes.
    pub(crate) const SIGNATURE: &[u8; 4] = b"regi";
    /// Size of a copy in bytes.
    pub(crate) const LEN: usize = 64 * KIB as usize;
    /// The file offsets of the two copies.
    pub(crate) const OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];

    /// Parses a copy and checks everything that does not depend on the rest of the file.
    pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        strict(|on| Self::inspect(bytes, at, on))
    }

    /// Parses what it can and reports every fault. Invalid entries are kept, so that
    /// indexes stay the same.
    pub(crate) fn inspect(bytes: &[u8], at: u64, on: OnError<'_>) -> Option<Self> {
        let (section, what) = ("2.2.3.1", "region table");
        let signed = check_signature(bytes, Self::SIGNATURE, at, "region.signature", section, what);
        if let Err(error) = signed {
            on(error);
            return None;
        }
        if let Err(error) = check_sum(bytes, at, "region.checksum", section, what) {
            on(error);
        }
        let count = Fields(bytes).u32(8);
        if count > MAX_ENTRIES {
            let message = "too many regions";
            on(Error::damaged("region.count", "2.2.3.1", at + 8, message)
                .with_found(count)
                .with_expected(format_args!("at most {MAX_ENTRIES}")));
        }
        let mut entries: Vec<RegionEntry> = Vec::new();
        for i in 0..count.min(MAX_ENTRIES) as usize {
            let start = HEADER_LEN + ENTRY_LEN * i;
            let entry = RegionEntry::read(Fields(bytes).from(start));
            entry.inspect(at + start as u64, on);
            if entries.iter().any(|other| other.guid == entry.guid) {
                let message = "duplicate region";
                let place = at + start as u64;
                on(Error::damaged("region.duplicate", "2.2.3.2", place, message)
                    .with_found(entry.guid)
                    .with_expected("every GUID once"));
            }
            entries.push(entry);
        }
        Some(Self { entries })
    }

    /// Reports reserved fields that are not zero. Readers ignore them.
    pub(crate) fn inspect_reserved(&self, bytes: &[u8], at: u64, on: OnError<'_>) {
        let code = "region.reserved";
        check_reserved(&bytes[12..16], at + 12, code, "2.2.3.1", "the region table", on);
        for (i, entry) in self.entries.iter().enumerate() {
            if !RegionFlags::REQUIRED.contains(entry.flags) {
                let place = Self::entry_at(at, i) + 28;
                let message = format!("undefined flags of region {}", entry.guid);
                on(Error::damaged(code, "2.2.3.2", place, message)
                    .with_found(format_args!("{:#x}", entry.flags.bits()))
                    .with_expected("0 or 1"));
            }
        }
    }

    /// The file offset of entry `i` of the table at `at`.
    pub(crate) fn entry_at(at: u64, i: usize) -> u64 {
        at + (HEADER_LEN + ENTRY_LEN * i) as u64
    }

    /// Serializes a copy, including the checksum.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::LEN];
        let mut fields = FieldsMut(&mut bytes);
        fields.bytes(0, Self::SIGNATURE);
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

/// Returns the name of a region that the format defines.
pub(crate) fn name(guid: Uuid) -> Option<&'static str> {
    match guid {
        BAT => Some("BAT"),
        METADATA => Some("Metadata"),
        _ => None,
    }
}

/// Returns the name of a region in messages.
pub(crate) fn title(guid: Uuid) -> String {
    name(guid).map_or_else(|| format!("region {guid}"), |name| format!("the {name} region"))
}

impl RegionEntry {
    fn read(fields: Fields<'_>) -> Self {
        Self {
            guid: fields.guid(0),
            offset: FileOffset::new(fields.u64(16)),
            length: fields.u32(24),
            flags: RegionFlags::from_bits_retain(fields.u32(28)),
        }
    }

    /// Whether offset and length of the region are valid.
    pub(crate) fn is_placed(&self) -> bool {
        let mut is_placed = true;
        self.inspect(0, &mut |_| is_placed = false);
        is_placed
    }

    fn inspect(&self, at: u64, on: OnError<'_>) {
        let offset = self.offset.get();
        if offset < MIB || !offset.is_multiple_of(MIB) {
            let message = format!("invalid offset of region {}", self.guid);
            on(Error::damaged("region.offset", "2.2.3.2", at + 16, message)
                .with_found(self.offset)
                .with_expected("a multiple of 1 MiB, from 1 MiB on"));
        }
        if self.length == 0 || !u64::from(self.length).is_multiple_of(MIB) {
            let message = format!("misaligned length of region {}", self.guid);
            on(Error::damaged("region.length", "2.2.3.2", at + 24, message)
                .with_found(self.length)
                .with_expected("a multiple of 1 MiB, not zero"));
        }
    }
}
