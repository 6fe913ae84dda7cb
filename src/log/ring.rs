//! Reads the log region as a ring.

use crate::error::{Error, Result};
use crate::format::header::Header;
use crate::format::log_entry::{DESCRIPTOR_LEN, Descriptor, HEADER_LEN, SECTOR};
use crate::storage::Storage;
use crate::types::{KIB, MIB};

const WINDOW: u64 = 256 * KIB;

/// The sectors of the log. Positions are byte offsets from its start and wrap around at its end.
pub(super) struct Ring<'a> {
    storage: &'a dyn Storage,
    start: u64,
    len: u64,
    /// A window of the log in memory, so that not every sector is read separately.
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Ring<'a> {
    pub(super) fn new(storage: &'a dyn Storage, header: &Header, file_len: u64) -> Result<Self> {
        check_place(header, file_len)?;
        let (start, len) = (header.log_offset, u64::from(header.log_length));
        Ok(Self { storage, start, len, window: Vec::new(), window_at: 0 })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The file offset of a position.
    pub(super) fn file_offset(&self, position: u64) -> u64 {
        self.start + position % self.len
    }

    /// Returns the sector at a position.
    pub(super) fn sector(&mut self, position: u64) -> Result<&[u8]> {
        let position = position % self.len;
        let within = position.wrapping_sub(self.window_at);
        if within >= self.window.len() as u64 {
            self.window_at = position - position % WINDOW;
            let len = WINDOW.min(self.len - self.window_at);
            self.window.resize(len as usize, 0);
            let at = self.start + self.window_at;
            if let Err(error) = self.storage.read_exact_at(&mut self.window, at) {
                self.window.clear();
                return Err(Error::io("log.read", "cannot read the log", error).at(at));
            }
        }
        let within = (position - self.window_at) as usize;
        Ok(&self.window[within..within + SECTOR as usize])
    }

    /// Returns descriptor `i` of an entry, and its file offset.
    pub(super) fn descriptor(
        &mut self,
        entry: u64,
        i: u32,
        sequence_number: u64,
    ) -> Result<(Descriptor, u64)> {
        let place = entry + HEADER_LEN as u64 + u64::from(i) * DESCRIPTOR_LEN as u64;
        let at = self.file_offset(place);
        let within = (place % SECTOR) as usize;
        let bytes = &self.sector(place - place % SECTOR)?[within..within + DESCRIPTOR_LEN];
        let descriptor = Descriptor::parse(bytes, sequence_number).ok_or_else(|| {
            let message = "a log descriptor changed while it was read";
            Error::damaged("log.descriptor", "2.3.1", at, message)
                .with_found(format_args!("\"{}\"", bytes[..4].escape_ascii()))
                .with_expected(format_args!("a descriptor of entry {sequence_number}"))
        })?;
        Ok((descriptor, at))
    }
}

/// Refuses a log that does not lie within the file or is not aligned to 1 MiB.
pub(crate) fn check_place(header: &Header, file_len: u64) -> Result<()> {
    let length = u64::from(header.log_length);
    let end = header.log_offset.checked_add(length);
    let is_within = header.log_offset >= MIB && end.is_some_and(|end| end <= file_len);
    if length > 0 && header.has_aligned_log() && is_within {
        return Ok(());
    }
    let message = match is_within {
        true => "the log that the header refers to has an invalid length",
        false => "the log that the header refers to does not lie within the file",
    };
    Err(Error::damaged("log.place", "2.2.2", header.log_offset, message)
        .with_found(format_args!("{length} bytes from {:#x}", header.log_offset))
        .with_expected(format_args!("whole MiB, between 1 MiB and {file_len:#x}")))
}
