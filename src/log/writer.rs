//! Writes new entries to the ring, \[MS-VHDX\] 2.3.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::format::log_entry::{Change, DESCRIPTOR_LEN, HEADER_LEN, NewEntry, SECTOR};
use crate::storage::Storage;

/// The log of a writing session: where the next entry goes, and what must not be overwritten.
///
/// Space is free only outside the range from tail to head that the newest durable entry names, because a crash
/// replays that range. One sector always stays free for an empty entry that moves the tail.
#[derive(Debug)]
pub(crate) struct LogWriter {
    start: u64,
    len: u64,
    guid: Uuid,
    next_sequence: u64,
    /// The position of the next entry.
    head: u64,
    /// How many bytes before `head` are needed by the newest durable entry and any entries after it.
    kept: u64,
}

impl LogWriter {
    /// A log of `len` bytes at file offset `start` that holds no entry of `guid` yet.
    pub(crate) fn new(start: u64, len: u64, guid: Uuid) -> Self {
        Self { start, len, guid, next_sequence: 1, head: 0, kept: 0 }
    }

    /// How many one-sector changes an entry can hold at most, in a log that holds only one
    /// other entry.
    pub(crate) fn most_changes(&self) -> usize {
        Self::most_changes_in(self.len)
    }

    /// The same for a log of `len` bytes; 0 if none fits, as in a log without length, which an image that is only
    /// read may have.
    pub(crate) fn most_changes_in(len: u64) -> usize {
        let room = len.saturating_sub(2 * SECTOR);
        let mut most = (room / (SECTOR + DESCRIPTOR_LEN as u64)) as usize;
        while most > 0 && entry_len(most) > room {
            most -= 1;
        }
        most
    }

    /// Whether an entry with `changes` one-sector changes fits beside what must be kept.
    pub(crate) fn fits(&self, changes: usize) -> bool {
        self.kept + entry_len(changes) + SECTOR <= self.len
    }

    /// Writes an entry that starts a new run: its tail is itself. All changes of earlier
    /// entries must be durable in their places. The entry is durable after the next flush, after which
    /// [`retire`](Self::retire) must be called.
    pub(crate) fn append(
        &mut self,
        storage: &dyn Storage,
        changes: Vec<Change>,
        flushed_file_offset: u64,
        last_file_offset: u64,
    ) -> Result<Appended> {
        let entry = NewEntry {
            tail: self.head as u32,
            sequence_number: self.next_sequence,
            log_guid: self.guid,
            flushed_file_offset,
            last_file_offset,
            changes,
        };
        let bytes = entry.to_bytes();
        let first = (self.len - self.head).min(bytes.len() as u64) as usize;
        self.write(storage, &bytes[..first], self.head)?;
        self.write(storage, &bytes[first..], 0)?;
        let length = bytes.len() as u64;
        self.head = (self.head + length) % self.len;
        self.kept += length;
        self.next_sequence += 1;
        Ok(Appended { length })
    }

    /// Declares the entry durable, which frees the space of everything before it.
    pub(crate) fn retire(&mut self, entry: &Appended) {
        self.kept = entry.length;
    }

    fn write(&self, storage: &dyn Storage, bytes: &[u8], position: u64) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let at = self.start + position;
        storage
            .write_at(bytes, at)
            .map_err(|error| Error::io("log.write", "cannot write to the log", error).at(at))
    }
}

/// An entry that has been written and may not be durable yet.
#[derive(Debug)]
#[must_use]
pub(crate) struct Appended {
    pub(crate) length: u64,
}

/// Size in bytes of an entry with `changes` one-sector changes.
fn entry_len(changes: usize) -> u64 {
    let descriptors = (HEADER_LEN + DESCRIPTOR_LEN * changes) as u64;
    descriptors.next_multiple_of(SECTOR) + changes as u64 * SECTOR
}
