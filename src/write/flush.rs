//! Flushing: makes every write that returned before durable, payload before the tables that name
//! it.
//!
//! The order is: snapshot of the tables, with the changes whose payload is written → flush → log
//! entries, as few as possible, metadata and sector bitmaps before the block allocation table →
//! flush. The next commit starts by writing the pages to their places, and its first flush makes
//! them durable: its entry depends on no earlier entry.
//!
//! Where every change of the snapshot [allows it](super::exposure), the first flush is left out: payload, log
//! entry and the pages of the commit before become durable together, in any order. The entry then depends
//! on the one before, whose pages may be lost.

use std::sync::atomic::Ordering;

use super::growth::GrowthPause;
use super::headers::flush;
use super::session_state::Session;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::format::bat::ENTRY_LEN;
use crate::format::log_entry::Change;
use crate::log::Appended;
use crate::tables::PAGE;
use crate::tables::{Order, PageKind, Snapshot};
use crate::trace;
use crate::types::{BatIndex, FileOffset, MIB};

impl Writer {
    /// Makes every write that returned before this call durable. Concurrent calls share one commit.
    pub(crate) fn commit(&self) -> Result<()> {
        self.flushes.request(&self.session, |session| {
            self.check()?;
            let done = self.poison_on_panic(|| self.commit_session(session));
            done.map_err(|error| self.poisoned_by(error))
        })
    }

    fn commit_session(&self, session: &mut Session) -> Result<()> {
        let has_payload = self.payload_written.swap(false, Ordering::AcqRel);
        if !has_payload && !self.feed.changed.read().any_dirty() {
            return Ok(());
        }
        let _span = trace::commit(self.file.name());
        // The file keeps its length until the last entry is written: each entry names a durable
        // length, and one that holds everything the entry refers to.
        let pause = self.space.pause();
        self.apply(session)?;
        // The freed space precedes the snapshot, which then contains the changes that freed it.
        let freed = self.space.take_freed();
        let (pages, order) = self.feed.changed.write().snapshot();
        if pages.is_empty() || order == Order::PayloadFirst || !session.fits_one_entry(&pages) {
            self.sync(session)?;
        }
        if !pages.is_empty() {
            self.log_pages(session, pages, pause)?;
        }
        if let Some(freed) = freed {
            self.space.reuse(freed);
        }
        Ok(())
    }

    fn log_pages(
        &self,
        session: &mut Session,
        pages: Vec<Snapshot>,
        pause: GrowthPause<'_>,
    ) -> Result<()> {
        let Some(log) = &session.log else { unreachable!("a change began the session") };
        let most = log.most_changes();
        let groups = if pages.len() <= most { vec![pages] } else { self.split(pages, most)? };
        let last = groups.len() - 1;
        let mut pause = Some(pause);
        for (i, group) in groups.into_iter().enumerate() {
            if i > 0 {
                self.apply(session)?;
                self.sync(session)?;
            }
            if !session.log.as_ref().is_some_and(|log| log.fits(group.len())) {
                // No earlier entry is needed any more: this one lets go of them all.
                self.append(session, &[])?.durable(self, session)?;
            }
            let entry = self.append(session, &group)?;
            if i == last {
                pause.take();
            }
            entry.durable(self, session)?;
            self.note_logged(group);
        }
        Ok(())
    }

    fn note_logged(&self, group: Vec<Snapshot>) {
        let mut changed = self.feed.changed.write();
        for page in group {
            changed.logged(page.at, page.page);
        }
    }

    /// Splits a snapshot that is too large for one entry, in an order in which any group may be the
    /// last that survives: metadata and sector bitmaps, then the entries of the sector bitmaps,
    /// then the blocks that need them.
    fn split(&self, pages: Vec<Snapshot>, most: usize) -> Result<Vec<Vec<Snapshot>>> {
        let mut parts: [Vec<Snapshot>; 3] = Default::default();
        for page in pages {
            match page.kind {
                // These always fit into the first group.
                PageKind::Metadata | PageKind::SectorBitmap => parts[0].push(page),
                PageKind::BlockAllocationTable => {
                    parts[1].extend(self.with_bitmaps_only(&page)?);
                    parts[2].push(page);
                }
            }
        }
        let mut groups: Vec<Vec<Snapshot>> = Vec::new();
        for part in parts {
            let mut part = part.into_iter().peekable();
            while part.peek().is_some() {
                groups.push(part.by_ref().take(most).collect());
            }
        }
        Ok(groups)
    }

    /// The earlier page of the block allocation table with the sector bitmap entries of the new
    /// one; `None` if those did not change.
    fn with_bitmaps_only(&self, new: &Snapshot) -> Result<Option<Snapshot>> {
        let mut page = match &new.before {
            Some(before) => before.clone(),
            None => self.core.page_in_file(FileOffset::new(new.at))?,
        };
        let first = (new.at - self.core.bat.offset.get()) / ENTRY_LEN;
        let mut is_changed = false;
        for i in 0..PAGE / ENTRY_LEN {
            if self.core.layout.is_bitmap_index(BatIndex(first + i)) {
                let place = (i * ENTRY_LEN) as usize..((i + 1) * ENTRY_LEN) as usize;
                is_changed |= page[place.clone()] != new.page[place.clone()];
                page[place.clone()].copy_from_slice(&new.page[place]);
            }
        }
        Ok(is_changed.then_some(Snapshot { at: new.at, kind: new.kind, page, before: None }))
    }

    /// Writes the logged pages to their places. The next flush makes them durable.
    pub(super) fn apply(&self, session: &mut Session) -> Result<()> {
        self.write_logged_pages()?;
        if let Some(log) = &mut session.log {
            log.pages_written();
        }
        Ok(())
    }

    fn write_logged_pages(&self) -> Result<()> {
        let pages = self.feed.changed.read().to_apply();
        if pages.is_empty() {
            return Ok(());
        }
        for (at, page) in &pages {
            self.file.write_at(&page[..], *at).map_err(|error| {
                Error::io("table.write", "cannot write a page of the block tables", error).at(*at)
            })?;
        }
        // From here on pages read from the file before do not enter the cache, and those that did
        // are dropped before the changed pages stop hiding them.
        self.feed.changed.next_epoch();
        for (at, _) in &pages {
            self.core.budget.drop_page(self.core.id, FileOffset::new(*at));
        }
        self.feed.changed.write().applied(&pages);
        Ok(())
    }

    fn append(&self, session: &mut Session, pages: &[Snapshot]) -> Result<PendingEntry> {
        let changes = pages
            .iter()
            .map(|page| Change::Sector { at: FileOffset::new(page.at), bytes: page.page.clone() });
        let (flushed, last) =
            (session.flushed_len / MIB * MIB, self.file_len().next_multiple_of(MIB));
        let Some(log) = &mut session.log else { unreachable!("a change began the session") };
        let entry = log.append(self.file.as_ref(), changes.collect(), flushed, last)?;
        self.tally.log_bytes.add(entry.length);
        trace::log_entry(self.file.name(), entry.position, entry.length, pages.len());
        Ok(PendingEntry(entry))
    }

    /// Flushes the file.
    pub(super) fn sync(&self, session: &mut Session) -> Result<()> {
        self.sync_with(session, None)
    }

    fn sync_with(&self, session: &mut Session, entry: Option<Appended>) -> Result<()> {
        let len = self.file_len();
        flush(self.file.as_ref(), &self.tally)?;
        session.flushed_len = len;
        session.has_unflushed_header = false;
        self.space.flushed(len);
        if let Some(log) = &mut session.log {
            log.flushed(entry);
        }
        Ok(())
    }
}

/// A log entry that is not durable yet.
#[must_use]
struct PendingEntry(Appended);

impl PendingEntry {
    fn durable(self, writer: &Writer, session: &mut Session) -> Result<()> {
        writer.sync_with(session, Some(self.0))
    }
}
