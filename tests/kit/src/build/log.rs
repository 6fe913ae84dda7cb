//! Log entries, valid and invalid, and their places in the ring. [MS-VHDX] 2.3

use super::parts::Checksum;
use uuid::Uuid;

/// The unit of the log.
pub const SECTOR: usize = 4096;

/// One log entry. [MS-VHDX] 2.3.1.1
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// `loge`.
    pub signature: [u8; 4],
    /// The checksum of the entry.
    pub checksum: Checksum,
    /// Positive, one more than that of the entry before.
    pub sequence_number: u64,
    /// `None`: the current header's log GUID.
    pub guid: Option<Uuid>,
    /// The oldest entry that is still needed.
    pub tail: Tail,
    /// `None`: the length of the file.
    pub flushed_file_offset: Option<u64>,
    /// `None`: the length that the image needs, even if the file is shorter.
    pub last_file_offset: Option<u64>,
    /// The updates.
    pub descriptors: Vec<Descriptor>,
    /// Byte offset in the ring. `None`: after the entry before it, wrapping.
    pub position: Option<u32>,
    /// `None`: the true length. The checksum covers this much of the true bytes, at most all.
    pub entry_length: Option<u32>,
    /// `None`: the true number.
    pub descriptor_count: Option<u32>,
    /// Bytes set before the checksum is computed, by offset in the entry: for any wrong field.
    pub raw: Vec<(usize, Vec<u8>)>,
    /// Sectors of the entry that never reached the disk: the ring's old contents stay.
    pub lost: Vec<u32>,
}

/// The tail recorded in an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// The first entry of the list with the same GUID.
    #[default]
    First,
    /// The entry itself.
    Own,
    /// The entry with this index in the list.
    Entry(usize),
    /// This byte offset.
    At(u32),
}

/// One update. [MS-VHDX] 2.3.1.2 and 2.3.1.3
#[derive(Clone, Debug)]
pub enum Descriptor {
    /// Zeros for a range.
    Zero {
        /// The offset, a multiple of 4 KiB.
        file_offset: u64,
        /// The length, a multiple of 4 KiB.
        length: u64,
        /// `None`: the entry's number.
        sequence_number: Option<u64>,
    },
    /// 4 KiB of bytes.
    Data {
        /// The offset, a multiple of 4 KiB.
        file_offset: u64,
        /// The contents, 4 KiB.
        bytes: Vec<u8>,
        /// `None`: the entry's number.
        sequence_number: Option<u64>,
        /// The number in the data sector; a different one means a torn sector. `None`: the entry's.
        sector_sequence: Option<u64>,
    },
    /// These 32 bytes, without a data sector.
    Raw([u8; 32]),
}

impl Descriptor {
    /// A valid zero descriptor.
    pub fn zero(file_offset: u64, length: u64) -> Self {
        Self::Zero { file_offset, length, sequence_number: None }
    }

    /// A valid data descriptor; `bytes` are 4 KiB.
    pub fn data(file_offset: u64, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        assert_eq!(bytes.len(), SECTOR, "an update is one sector");
        Self::Data { file_offset, bytes, sequence_number: None, sector_sequence: None }
    }
}

impl LogEntry {
    /// A valid entry.
    pub fn new(sequence_number: u64, descriptors: Vec<Descriptor>) -> Self {
        Self {
            signature: *b"loge",
            checksum: Checksum::Right,
            sequence_number,
            guid: None,
            tail: Tail::First,
            flushed_file_offset: None,
            last_file_offset: None,
            descriptors,
            position: None,
            entry_length: None,
            descriptor_count: None,
            raw: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Places the entry at this byte offset of the ring.
    pub fn at(mut self, position: u32) -> Self {
        self.position = Some(position);
        self
    }

    /// Replaces the tail.
    pub fn tail(mut self, tail: Tail) -> Self {
        self.tail = tail;
        self
    }

    /// Replaces the GUID, as if an older session had left the entry.
    pub fn guid(mut self, guid: Uuid) -> Self {
        self.guid = Some(guid);
        self
    }

    /// Keeps only the first `sectors` of the entry; the others never reached the disk.
    pub fn torn(mut self, sectors: u32) -> Self {
        self.lost = (sectors..(self.length() / SECTOR) as u32).collect();
        self
    }

    /// The entry's true length in bytes: descriptor sectors (the header takes the room of two descriptors
    /// in the first one), then one sector per data descriptor.
    pub fn length(&self) -> usize {
        let data = self.descriptors.iter().filter(|d| matches!(d, Descriptor::Data { .. }));
        self.descriptor_sectors() * SECTOR + data.count() * SECTOR
    }

    fn descriptor_sectors(&self) -> usize {
        (self.descriptors.len() + 2).div_ceil(SECTOR / 32)
    }

    fn bytes(&self, guid: Uuid, tail: u32, flushed: u64, last: u64) -> Vec<u8> {
        let mut b = vec![0; self.length()];
        let number = self.sequence_number;
        b[0..4].copy_from_slice(&self.signature);
        let length = self.entry_length.unwrap_or(b.len() as u32);
        b[8..12].copy_from_slice(&length.to_le_bytes());
        b[12..16].copy_from_slice(&tail.to_le_bytes());
        b[16..24].copy_from_slice(&number.to_le_bytes());
        let count = self.descriptor_count.unwrap_or(self.descriptors.len() as u32);
        b[24..28].copy_from_slice(&count.to_le_bytes());
        b[32..48].copy_from_slice(&self.guid.unwrap_or(guid).to_bytes_le());
        b[48..56].copy_from_slice(&self.flushed_file_offset.unwrap_or(flushed).to_le_bytes());
        b[56..64].copy_from_slice(&self.last_file_offset.unwrap_or(last).to_le_bytes());
        let mut data_at = self.descriptor_sectors() * SECTOR;
        for (i, d) in self.descriptors.iter().enumerate() {
            let at = 64 + 32 * i;
            match d {
                Descriptor::Zero { file_offset, length, sequence_number } => {
                    b[at..at + 4].copy_from_slice(b"zero");
                    b[at + 8..at + 16].copy_from_slice(&length.to_le_bytes());
                    b[at + 16..at + 24].copy_from_slice(&file_offset.to_le_bytes());
                    let n = sequence_number.unwrap_or(number);
                    b[at + 24..at + 32].copy_from_slice(&n.to_le_bytes());
                }
                Descriptor::Data { file_offset, bytes, sequence_number, sector_sequence } => {
                    b[at..at + 4].copy_from_slice(b"desc");
                    b[at + 4..at + 8].copy_from_slice(&bytes[4092..4096]);
                    b[at + 8..at + 16].copy_from_slice(&bytes[0..8]);
                    b[at + 16..at + 24].copy_from_slice(&file_offset.to_le_bytes());
                    let n = sequence_number.unwrap_or(number);
                    b[at + 24..at + 32].copy_from_slice(&n.to_le_bytes());
                    let n = sector_sequence.unwrap_or(number);
                    let sector = &mut b[data_at..data_at + SECTOR];
                    sector[0..4].copy_from_slice(b"data");
                    sector[4..8].copy_from_slice(&((n >> 32) as u32).to_le_bytes());
                    sector[8..4092].copy_from_slice(&bytes[8..4092]);
                    sector[4092..4096].copy_from_slice(&(n as u32).to_le_bytes());
                    data_at += SECTOR;
                }
                Descriptor::Raw(raw) => b[at..at + 32].copy_from_slice(raw),
            }
        }
        for (at, bytes) in &self.raw {
            b[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        let covered = (length as usize).clamp(SECTOR, b.len());
        let sum = self.checksum.over(&b[..covered], 4);
        b[4..8].copy_from_slice(&sum.to_le_bytes());
        b
    }
}

/// The offset of every entry of the list in a ring of `ring` bytes.
pub(super) fn positions(entries: &[LogEntry], ring: u32) -> Vec<u32> {
    let mut next = 0;
    let place = |e: &LogEntry| {
        let at = e.position.unwrap_or(next);
        next = ((u64::from(at) + e.length() as u64) % u64::from(ring)) as u32;
        at
    };
    entries.iter().map(place).collect()
}

/// The whole ring.
pub(super) fn ring(
    entries: &[LogEntry],
    ring: u32,
    guid: Uuid,
    flushed: u64,
    last: u64,
) -> Vec<u8> {
    let at = positions(entries, ring);
    let mut b = vec![0; ring as usize];
    for (i, e) in entries.iter().enumerate() {
        let of = e.guid.unwrap_or(guid);
        let tail = match e.tail {
            Tail::First => {
                at[entries.iter().position(|x| x.guid.unwrap_or(guid) == of).unwrap_or(i)]
            }
            Tail::Own => at[i],
            Tail::Entry(n) => at[n],
            Tail::At(offset) => offset,
        };
        for (n, sector) in e.bytes(guid, tail, flushed, last).chunks(SECTOR).enumerate() {
            if !e.lost.contains(&(n as u32)) {
                let to = (at[i] as usize + n * SECTOR) % ring as usize;
                b[to..to + SECTOR].copy_from_slice(sector);
            }
        }
    }
    b
}
