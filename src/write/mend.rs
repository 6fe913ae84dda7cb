//! Repairs an image that lost bytes: durably, through the log, under a new identity.
//!
//! One log entry records which blocks are lost. It is durable before a header names it, and that
//! header has the new identity: a crash leaves the file unchanged or one that a replay mends. The
//! file grows only after that, so that lost bytes never appear to be present. Copies come last
//! because they need space that the file has to grow for; by then no block extends beyond the end
//! of the file.
//!
//! A mend that changes more table pages than an entry holds, 252 with a log of 1 MiB, takes several
//! entries: each block is then lost or mended, and the next mend completes the rest.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::PoisonError;

use uuid::Uuid;

use super::headers::{flush, update_headers};
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::format::header::Headers;
use crate::format::log_entry::Change;
use crate::image::{Copy, Core, Entries, Mend};
use crate::log::LogWriter;
use crate::storage::Storage;
use crate::tables::{PAGE, Page};
use crate::types::{FileOffset, MIB};

impl Writer {
    /// Carries out a plan for this image, which is open for writing, has not changed since the
    /// plan, and must be reopened afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the host fails. The next plan covers what is left
    /// to do.
    pub(crate) fn mend(&self, mend: &Mend) -> Result<()> {
        let mut headers = self.core.headers.write().unwrap_or_else(PoisonError::into_inner);
        let file = self.core.bare_storage().as_ref();
        let mut mender =
            Mender { image: &self.core, file, headers: &mut headers, len: self.core.file_len() };
        mender.mend(mend).map_err(|error| error.in_file(self.core.name()))
    }
}

struct Mender<'a> {
    image: &'a Core,
    file: &'a dyn Storage,
    headers: &'a mut Headers,
    /// Length of the file.
    len: u64,
}

impl Mender<'_> {
    fn mend(&mut self, mend: &Mend) -> Result<()> {
        if !mend.lost.is_empty() || mend.len.is_some() {
            let len = mend.len.unwrap_or_else(|| self.len.next_multiple_of(MIB));
            self.commit(&mend.lost, len, mend.len.is_some())?;
        }
        if mend.copies.is_empty() && mend.unmapped.is_empty() {
            return Ok(());
        }
        self.copy(&mend.copies, &mend.unmapped)
    }

    /// Gives each of the blocks that share a place its own.
    fn copy(&mut self, copies: &[Copy], unmapped: &Entries) -> Result<()> {
        let before = self.len;
        let mut entries = unmapped.clone();
        entries.extend(copies.iter().map(|copy| (copy.index, copy.entry)));
        let ends = copies.iter().map(|copy| (copy.entry.offset() + copy.len).get());
        let end = ends.max().unwrap_or(self.len).max(self.len).next_multiple_of(MIB);
        if let Err(error) = self.set_len(end).and_then(|()| self.copy_bytes(copies)) {
            // No entry names that space yet.
            drop(self.set_len(before));
            return Err(error);
        }
        self.commit(&entries, end, false)
    }

    fn copy_bytes(&self, copies: &[Copy]) -> Result<()> {
        let mut buffer = vec![0; MIB as usize];
        for copy in copies {
            let to = copy.entry.offset();
            let mut done = 0;
            while done < copy.len {
                let piece = &mut buffer[..(copy.len - done).min(MIB) as usize];
                self.image.read_payload(piece, copy.from + done)?;
                // The new space of the file reads as zeros.
                if piece.iter().any(|byte| *byte != 0) {
                    self.write(piece, (to + done).get())?;
                }
                done += piece.len() as u64;
            }
        }
        Ok(())
    }

    /// Changes table entries durably, with as few log entries as possible. The last one records the
    /// new length of the file.
    fn commit(&mut self, entries: &Entries, len: u64, grows: bool) -> Result<()> {
        let tally = &self.image.tally;
        // Covers earlier writes and the headers without a log GUID.
        flush(self.file, tally)?;
        if self.headers.other_is_damaged() {
            update_headers(self.headers, self.file, tally, |_| {})?;
        }
        let (guid, header) = (Uuid::new_v4(), self.headers.current());
        let mut log = LogWriter::new(header.log_offset, header.log_length.into(), guid);
        let pages: Vec<(u64, Box<Page>)> = self.pages(entries)?.into_iter().collect();
        let mut groups: Vec<&[(u64, Box<Page>)]> =
            pages.chunks(log.most_changes().max(1)).collect();
        if groups.is_empty() {
            groups.push(&[]);
        }
        let last = groups.len() - 1;
        for (i, group) in groups.into_iter().enumerate() {
            // Before the last entry a replay must not make the file appear longer than it is.
            let flushed = self.len / MIB * MIB;
            let end = if i == last { len } else { flushed };
            if !log.fits(group.len()) {
                let entry = log.append(Vec::new(), flushed, flushed);
                entry.write(self.file)?;
                flush(self.file, tally)?;
                log.flushed(Some(entry));
            }
            let changes = group
                .iter()
                .map(|(at, page)| Change::Sector { at: FileOffset::new(*at), bytes: page.clone() });
            let entry = log.append(changes.collect(), flushed, end);
            entry.write(self.file)?;
            flush(self.file, tally)?;
            log.flushed(Some(entry));
            if i == 0 {
                update_headers(self.headers, self.file, tally, |header| {
                    header.file_write_guid = Uuid::new_v4();
                    header.data_write_guid = Uuid::new_v4();
                    header.log_guid = guid;
                })?;
            }
            if i == last && grows {
                self.set_len(len)?;
            }
            for (at, page) in group {
                self.write(&page[..], *at)?;
            }
            log.pages_written();
            flush(self.file, tally)?;
            log.flushed(None);
        }
        update_headers(self.headers, self.file, tally, |header| header.log_guid = Uuid::nil())
    }

    /// The table pages with the new entries.
    fn pages(&self, entries: &Entries) -> Result<BTreeMap<u64, Box<Page>>> {
        let mut pages: BTreeMap<u64, Box<Page>> = BTreeMap::new();
        for (index, entry) in entries {
            let at = self.image.bat_entry_at(*index).get();
            let (start, within) = (at - at % PAGE, (at % PAGE) as usize);
            let page = match pages.entry(start) {
                Entry::Occupied(page) => page.into_mut(),
                Entry::Vacant(none) => {
                    none.insert(self.image.page_in_file(FileOffset::new(start))?)
                }
            };
            page[within..within + 8].copy_from_slice(&entry.to_bytes());
        }
        Ok(pages)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_at(bytes, at).map_err(|error| {
            Error::io("loss.write", format!("cannot write {} bytes", bytes.len()), error).at(at)
        })
    }

    fn set_len(&mut self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|error| {
            Error::io("loss.grow", format!("cannot make the file {len} bytes long"), error)
        })?;
        self.len = len;
        Ok(())
    }
}
