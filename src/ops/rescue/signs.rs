//! Looks through the units of a file for what structures start with.

use uuid::Uuid;

use super::careful::Careful;
use crate::format::bat::{BatEntry, ENTRY_LEN, PayloadState};
use crate::format::header::Header;
use crate::format::log_entry::{EntryHeader, SECTOR};
use crate::storage::Storage;
use crate::types::MIB;

/// How many places of one kind are remembered.
const MOST: usize = 64;
/// Where the log is looked for when no header says where it is.
const LOG_WITHIN: u64 = 64 * MIB;
/// The length of a log that is found by its entries, in units.
const MOST_OF_LOG: u64 = 16;

/// What the units of a file start with.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Units with the signature of metadata.
    pub(super) metadata: Vec<u64>,
    /// Units that start as a block allocation table may.
    pub(super) tables: Vec<u64>,
}

impl Signs {
    pub(super) fn find(file: &Careful) -> Self {
        let mut signs = Self::default();
        let mut page = [0; SECTOR as usize];
        let mut at = MIB;
        while let Ok(Some(data)) = file.next_data(at) {
            at = at.max(data.start / MIB * MIB);
            if at >= file.file_len() {
                break;
            }
            file.fill(&mut page, at);
            if page.starts_with(b"metadata") && signs.metadata.len() < MOST {
                signs.metadata.push(at);
            } else if signs.tables.len() < MOST && is_like_table(&page, file.file_len()) {
                signs.tables.push(at);
            }
            at += MIB;
        }
        signs
    }
}

/// Whether these entries may be the start of a table, with at least one block in the file.
pub(super) fn is_like_table(page: &[u8], file_len: u64) -> bool {
    let mut named = 0;
    for entry in page.chunks_exact(ENTRY_LEN as usize).map(BatEntry::read) {
        if !is_possible(entry, file_len) {
            return false;
        }
        named += u64::from(entry.state_bits() >= 6);
    }
    named > 0
}

/// Whether this may be an entry at all.
pub(super) fn is_possible(entry: BatEntry, file_len: u64) -> bool {
    let at = entry.offset().get();
    let is_placed = (MIB..file_len).contains(&at);
    entry.reserved_bits() == 0
        && match entry.payload_state() {
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => is_placed,
            PayloadState::NotPresent => at == 0,
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => {
                at == 0 || is_placed
            }
            PayloadState::DraftUnmapped | PayloadState::Reserved => false,
        }
}

/// A header as far as it says where the log is, by the entries of the log.
pub(super) fn log_by_entries(file: &Careful) -> Option<Header> {
    let end = file.file_len().min(LOG_WITHIN) / MIB * MIB;
    let mut unit = vec![0; MIB as usize];
    let mut found: Option<(u64, u64)> = None;
    for at in (MIB..end).step_by(MIB as usize) {
        file.fill(&mut unit, at);
        let mut sectors = unit.chunks_exact(SECTOR as usize);
        let is_entry = |sector: &[u8]| {
            EntryHeader::parse(sector).is_some_and(|header| {
                u64::from(header.entry_length).is_multiple_of(SECTOR) && header.entry_length > 0
            })
        };
        match &mut found {
            None if sectors.any(is_entry) => found = Some((at, MIB)),
            Some((_, len))
                if *len < MOST_OF_LOG * MIB
                    && sectors.any(|sector| is_entry(sector) || sector.starts_with(b"data")) =>
            {
                *len += MIB;
            }
            None => {}
            Some(_) => break,
        }
    }
    let (log_offset, log_length) = found?;
    Some(Header {
        sequence_number: 0,
        file_write_guid: Uuid::nil(),
        data_write_guid: Uuid::nil(),
        log_guid: Uuid::nil(),
        log_version: 0,
        version: 1,
        log_length: log_length as u32,
        log_offset,
    })
}
