//! Writes new entries to the ring, \[MS-VHDX\] 2.3.

use std::collections::VecDeque;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::format::log_entry::{Change, DESCRIPTOR_LEN, HEADER_LEN, NewEntry, SECTOR};
use crate::storage::Storage;
use crate::types::MIB;

/// The most durable entries whose pages are not in their places, and the most bytes of them.
const MOST_KEPT_BACK: usize = 8;
const MOST_BYTES_KEPT_BACK: u64 = 4 * MIB;

/// The log of a writing session: where the next entry goes, and what must not be overwritten.
///
/// Space is free only outside the range from tail to head that the newest durable entry names, because a crash
/// replays that range. One sector always stays free for an empty entry that moves the tail.
///
/// An entry is *needed* until its pages are durable in their places: until they [were written](Self::pages_written)
/// and a flush that began after that [has returned](Self::flushed). The tail of a new entry is the oldest needed one.
#[derive(Debug)]
pub(crate) struct LogWriter {
    start: u64,
    len: u64,
    guid: Uuid,
    next_sequence: u64,
    /// The position of the next entry.
    head: u64,
    /// How many bytes before `head` are kept for the newest durable entry, from its tail on, and any entries after it.
    kept: u64,
    /// The durable entries that are still needed, oldest first, as position and length.
    needed: VecDeque<(u64, u64)>,
    /// How many of them have their pages written to their places, not durably yet.
    written: usize,
}

impl LogWriter {
    /// A log of `len` bytes at file offset `start` that holds no entry of `guid` yet.
    pub(crate) fn new(start: u64, len: u64, guid: Uuid) -> Self {
        let needed = VecDeque::new();
        Self { start, len, guid, next_sequence: 1, head: 0, kept: 0, needed, written: 0 }
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

    /// Whether the durable entries may stay needed beyond the next entry, which has `changes` one-sector changes. A page
    /// that changes in each of them is then written to its place once; a crash replays few all the same, and there is
    /// room for the next two.
    pub(crate) fn may_keep_back(&self, changes: usize) -> bool {
        let most = MOST_BYTES_KEPT_BACK.min(self.len / 2);
        self.needed.len() < MOST_KEPT_BACK
            && self.kept + 2 * entry_len(changes) <= most
            && !self.begins_lap()
    }

    /// Whether the next entry is the first behind the start of the log while entries at its end are needed. QEMU would
    /// begin its replay with that entry, whatever its tail: it must need none of them.
    pub(crate) fn begins_lap(&self) -> bool {
        self.needed.front().is_some_and(|(oldest, _)| *oldest > self.head)
    }

    /// Makes the next entry. Once it is [written](Appended::write), a crash replays it with those that are still
    /// needed. It is durable after the next flush, after which [`flushed`](Self::flushed) must be called with it.
    pub(crate) fn append(
        &mut self,
        changes: Vec<Change>,
        flushed_file_offset: u64,
        last_file_offset: u64,
    ) -> Appended {
        let position = self.head;
        let entry = NewEntry {
            tail: self.needed.front().map_or(position, |(oldest, _)| *oldest) as u32,
            sequence_number: self.next_sequence,
            log_guid: self.guid,
            flushed_file_offset,
            last_file_offset,
            changes,
        };
        let mut bytes = entry.to_bytes();
        let length = bytes.len() as u64;
        let rest = bytes.split_off((self.len - self.head).min(length) as usize);
        let mut writes = vec![(self.start + self.head, bytes)];
        if !rest.is_empty() {
            writes.push((self.start, rest));
        }
        self.head = (self.head + length) % self.len;
        self.kept += length;
        self.next_sequence += 1;
        Appended { position, length, writes }
    }

    /// Records that the pages of all durable entries were written to their places.
    pub(crate) fn pages_written(&mut self) {
        self.written = self.needed.len();
    }

    /// Records that a flush returned, and the entry that it made durable, if any. Entries whose pages were written
    /// before are no longer needed. The space before the tail of the new entry becomes free.
    pub(crate) fn flushed(&mut self, entry: Option<Appended>) {
        if let Some(Appended { position, length, .. }) = entry {
            self.needed.push_back((position, length));
            self.kept = self.needed.iter().map(|(_, length)| length).sum();
        }
        self.needed.drain(..std::mem::take(&mut self.written));
    }
}

/// An entry that may not be written or durable yet.
#[derive(Debug)]
#[must_use]
pub(crate) struct Appended {
    pub(crate) position: u64,
    pub(crate) length: u64,
    /// Its bytes, by file offset.
    writes: Vec<(u64, Vec<u8>)>,
}

impl Appended {
    /// The bytes of the entry, by file offset.
    pub(crate) fn writes(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.writes.iter().map(|(at, bytes)| (*at, bytes.as_slice()))
    }

    /// Writes the entry.
    pub(crate) fn write(&self, storage: &dyn Storage) -> Result<()> {
        self.writes().try_for_each(|(at, bytes)| {
            let written = storage.write_at(bytes, at);
            written.map_err(|error| Error::io("log.write", "cannot write to the log", error).at(at))
        })
    }
}

/// Size in bytes of an entry with `changes` one-sector changes.
fn entry_len(changes: usize) -> u64 {
    let descriptors = (HEADER_LEN + DESCRIPTOR_LEN * changes) as u64;
    descriptors.next_multiple_of(SECTOR) + changes as u64 * SECTOR
}
