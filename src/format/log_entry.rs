//! Log entries, \[MS-VHDX\] 2.3.1.

use uuid::Uuid;

use super::{Fields, FieldsMut, seal};
use crate::types::{FileOffset, KIB};

/// The sector size of the log: entries, descriptors and data consist of 4 KiB sectors.
pub(crate) const SECTOR: u64 = 4 * KIB;
/// Size of an entry's header in bytes; the first descriptors follow in the same sector.
pub(crate) const HEADER_LEN: usize = 64;
pub(crate) const DESCRIPTOR_LEN: usize = 32;

/// The header of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    pub(crate) checksum: u32,
    pub(crate) entry_length: u32,
    /// The offset in the log of the oldest entry that is still needed.
    pub(crate) tail: u32,
    pub(crate) sequence_number: u64,
    pub(crate) descriptor_count: u32,
    pub(crate) log_guid: Uuid,
    /// A length of the file that was durable when the entry was written.
    pub(crate) flushed_file_offset: u64,
    /// A length of the file that contains all its structures.
    pub(crate) last_file_offset: u64,
}

/// A change that an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// Writes zeros to a range.
    Zero { at: FileOffset, length: u64 },
    /// Writes one sector; all but its first eight and last four bytes are in a data sector.
    Data { at: FileOffset, leading: [u8; 8], trailing: [u8; 4] },
}

impl EntryHeader {
    /// Parses a header at the start of a sector. `None` is not an error: the log contains remains of
    /// earlier and incomplete entries.
    pub(crate) fn parse(sector: &[u8]) -> Option<Self> {
        let fields = Fields(sector);
        sector.starts_with(b"loge").then(|| Self {
            checksum: fields.u32(4),
            entry_length: fields.u32(8),
            tail: fields.u32(12),
            sequence_number: fields.u64(16),
            descriptor_count: fields.u32(24),
            log_guid: fields.guid(32),
            flushed_file_offset: fields.u64(48),
            last_file_offset: fields.u64(56),
        })
    }

    /// How many sectors the header and the descriptors take up.
    pub(crate) fn descriptor_sectors(&self) -> u64 {
        let bytes = HEADER_LEN as u64 + u64::from(self.descriptor_count) * DESCRIPTOR_LEN as u64;
        bytes.div_ceil(SECTOR)
    }

    /// How many sectors the entry takes up.
    pub(crate) fn sectors(&self) -> u64 {
        u64::from(self.entry_length) / SECTOR
    }
}

impl Descriptor {
    /// Parses a descriptor of the entry with this sequence number.
    pub(crate) fn parse(bytes: &[u8], sequence_number: u64) -> Option<Self> {
        let fields = Fields(bytes);
        if fields.u64(24) != sequence_number {
            return None;
        }
        let at = FileOffset::new(fields.u64(16));
        match &bytes[..4] {
            b"zero" => Some(Self::Zero { at, length: fields.u64(8) }),
            b"desc" => Some(Self::Data { at, trailing: fields.array(4), leading: fields.array(8) }),
            _ => None,
        }
    }
}

/// Whether a sector is a data sector of the entry with this sequence number.
pub(crate) fn is_data_sector(sector: &[u8], sequence_number: u64) -> bool {
    let fields = Fields(sector);
    let number = u64::from(fields.u32(4)) << 32 | u64::from(fields.u32(SECTOR as usize - 4));
    sector.starts_with(b"data") && number == sequence_number
}

/// An entry to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewEntry {
    pub(crate) tail: u32,
    pub(crate) sequence_number: u64,
    pub(crate) log_guid: Uuid,
    pub(crate) flushed_file_offset: u64,
    pub(crate) last_file_offset: u64,
    pub(crate) changes: Vec<Change>,
}

/// A change, including its data.
#[derive(Clone, Debug, PartialEq, Eq)]

pub(crate) enum Change {
    #[cfg_attr(not(test), expect(dead_code, reason = "pages are logged whole"))]
    Zero {
        at: FileOffset,
        length: u64,
    },
    Sector {
        at: FileOffset,
        bytes: Box<[u8; SECTOR as usize]>,
    },
}

impl NewEntry {
    /// Serializes the entry in whole sectors, including the checksum.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let descriptors = HEADER_LEN + DESCRIPTOR_LEN * self.changes.len();
        let mut bytes = vec![0; descriptors.next_multiple_of(SECTOR as usize)];
        let mut data = Vec::new();
        for (i, change) in self.changes.iter().enumerate() {
            let start = HEADER_LEN + DESCRIPTOR_LEN * i;
            let mut fields = FieldsMut(&mut bytes[start..start + DESCRIPTOR_LEN]);
            fields.u64(24, self.sequence_number);
            match change {
                Change::Zero { at, length } => {
                    fields.bytes(0, b"zero");
                    fields.u64(8, *length);
                    fields.u64(16, at.get());
                }
                Change::Sector { at, bytes: sector } => {
                    let (middle_end, end) = (SECTOR as usize - 4, SECTOR as usize);
                    fields.bytes(0, b"desc");
                    fields.bytes(4, &sector[middle_end..end]);
                    fields.bytes(8, &sector[..8]);
                    fields.u64(16, at.get());
                    let start = data.len();
                    data.extend_from_slice(&sector[..]);
                    let mut fields = FieldsMut(&mut data[start..]);
                    fields.bytes(0, b"data");
                    fields.u32(4, (self.sequence_number >> 32) as u32);
                    fields.u32(middle_end, self.sequence_number as u32);
                }
            }
        }
        bytes.append(&mut data);
        let length = bytes.len() as u32;
        let mut fields = FieldsMut(&mut bytes);
        fields.bytes(0, b"loge");
        fields.u32(8, length);
        fields.u32(12, self.tail);
        fields.u64(16, self.sequence_number);
        fields.u32(24, self.changes.len() as u32);
        fields.guid(32, self.log_guid);
        fields.u64(48, self.flushed_file_offset);
        fields.u64(56, self.last_file_offset);
        seal(&mut bytes);
        bytes
    }
}
