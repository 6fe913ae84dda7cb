//! The steps of a commit: what is written to the file before each flush.
//!
//! A commit takes one step after the other, by whoever carries them out: [`Writer::commit`](super::writer::Writer), or
//! the caller of a planned flush.

use std::collections::VecDeque;
use std::iter;

use super::growth::GrowthPause;
use super::headers::flush;
use super::session_state::Session;
use super::space::Freed;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::format::bat::ENTRY_LEN;
use crate::format::log_entry::Change;
use crate::image::Generation;
use crate::log::{Appended, LogWriter};
use crate::tables::{Order, PAGE, Page, PageKind, Snapshot};
use crate::trace;
use crate::types::{BatIndex, FileOffset, MIB};

/// A commit in progress. The caller has the session from the first step to the last.
#[derive(Debug)]
pub(super) struct Commit {
    left: VecDeque<Task>,
    /// The strictest order that a change of the snapshot needs.
    order: Order,
    freed: Option<(Generation, Vec<Freed>)>,
    /// The file keeps its length until the last entry exists: each entry names a durable length, and one that holds
    /// everything the entry refers to.
    pause: Option<GrowthPause>,
}

#[derive(Debug)]
enum Task {
    /// Writes the logged pages to their places.
    Apply,
    Snapshot,
    Sync,
    Entry {
        pages: Vec<Snapshot>,
        is_last: bool,
        /// Whether the log was emptied for it.
        has_room: bool,
    },
}

/// What a commit comes to next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A [step](Commit::step).
    Step,
    Done,
    /// More pages changed than one log entry holds.
    TooMany,
}

/// Writes to the file in any order, and a flush of it once all of them have returned.
#[derive(Debug)]
pub(super) struct Step {
    what: What,
    /// Length of the file in bytes, which the flush makes durable.
    file_len: u64,
}

#[derive(Debug)]
enum What {
    Apply(Vec<(u64, Box<Page>)>),
    Sync,
    Entry(Appended, Vec<Snapshot>),
}

impl Commit {
    pub(super) fn new(pause: GrowthPause) -> Self {
        let left = VecDeque::from([Task::Snapshot]);
        Self { left, order: Order::Any, freed: None, pause: Some(pause) }
    }

    /// Decides on the next step. A snapshot that is too large for one log entry is split if it `may_split`, which reads
    /// the file.
    ///
    /// # Errors
    /// If a page of the tables cannot be read.
    pub(super) fn turn(
        &mut self,
        writer: &Writer,
        session: &mut Session,
        may_split: bool,
    ) -> Result<Turn> {
        loop {
            match self.left.front() {
                None => {
                    if let Some(freed) = self.freed.take() {
                        writer.space.reuse(freed);
                    }
                    return Ok(Turn::Done);
                }
                Some(Task::Snapshot) => {
                    if !self.take_snapshot(writer, session, may_split)? {
                        return Ok(Turn::TooMany);
                    }
                }
                Some(_) => return Ok(Turn::Step),
            }
        }
    }

    /// Takes the next step, after [`Turn::Step`].
    pub(super) fn step(&mut self, writer: &Writer, session: &mut Session) -> Step {
        match self.left.pop_front() {
            Some(Task::Apply) => writer.apply_step(),
            Some(Task::Entry { pages, is_last, has_room }) => {
                if !has_room && !session.log.as_ref().is_some_and(|log| log.fits(pages.len())) {
                    // No earlier entry is needed any more: an empty one lets go of them all.
                    self.left.push_front(Task::Entry { pages, is_last, has_room: true });
                    return writer.entry_step(session, Vec::new());
                }
                let step = writer.entry_step(session, pages);
                if is_last {
                    self.pause = None;
                }
                step
            }
            Some(Task::Sync | Task::Snapshot) | None => writer.sync_step(),
        }
    }

    /// Lets the file grow again.
    pub(super) fn resume_growth(&mut self) {
        self.pause = None;
    }

    /// Gives up, between two steps: what is left belongs to the next commit.
    pub(super) fn abandon(&mut self, writer: &Writer) {
        let mut changed = writer.feed.changed.write();
        for task in self.left.drain(..) {
            if let Task::Entry { pages, .. } = task {
                changed.take_back(&pages, self.order);
            }
        }
        drop(changed);
        if let Some((_, freed)) = self.freed.take() {
            writer.space.take_back(freed);
        }
        writer.wrote_payload();
    }

    fn take_snapshot(
        &mut self,
        writer: &Writer,
        session: &mut Session,
        may_split: bool,
    ) -> Result<bool> {
        // The freed space precedes the snapshot, which then contains the changes that freed it.
        self.freed = writer.space.take_freed();
        let in_one = session.log.as_ref().map_or(usize::MAX, LogWriter::most_changes);
        let most = if may_split { usize::MAX } else { in_one };
        let taken = writer.feed.changed.write().snapshot(most);
        let Some((pages, order)) = taken else { return Ok(false) };
        self.left.pop_front();
        self.order = order;
        if pages.is_empty() {
            self.left.push_back(Task::Sync);
            return Ok(true);
        }
        if !writer.feed.changed.read().has_logged() {
            session.pages_written();
        } else if !session.may_keep_back(&pages) {
            self.left.push_back(Task::Apply);
        }
        if order == Order::PayloadFirst || !session.fits_one_entry(&pages) || session.begins_lap() {
            self.left.push_back(Task::Sync);
        }
        let groups =
            if pages.len() <= in_one { vec![pages] } else { split(writer, pages, in_one)? };
        let last = groups.len() - 1;
        for (n, pages) in groups.into_iter().enumerate() {
            if n > 0 {
                self.left.extend([Task::Apply, Task::Sync]);
            }
            let is_last = n == last;
            self.left.push_back(Task::Entry { pages, is_last, has_room: false });
        }
        Ok(true)
    }
}

impl Step {
    /// Bytes to be written, by file offset.
    pub(super) fn writes(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let (pages, entry): (&[_], _) = match &self.what {
            What::Apply(pages) => (pages, None),
            What::Sync => (&[], None),
            What::Entry(entry, _) => (&[], Some(entry)),
        };
        let pages = pages.iter().map(|(at, page)| (*at, &page[..]));
        pages.chain(entry.into_iter().flat_map(Appended::writes))
    }

    /// Whether the file is to be flushed after the writes.
    pub(super) fn has_flush(&self) -> bool {
        !matches!(self.what, What::Apply(_))
    }

    /// Carries out the step.
    pub(super) fn carry_out(&self, writer: &Writer) -> Result<()> {
        let file = writer.file.as_ref();
        match &self.what {
            What::Apply(pages) => {
                for (at, page) in pages {
                    file.write_at(&page[..], *at).map_err(|error| {
                        let message = "cannot write a page of the block tables";
                        Error::io("table.write", message, error).at(*at)
                    })?;
                }
            }
            What::Sync => {}
            What::Entry(entry, _) => entry.write(file)?,
        }
        if self.has_flush() { flush(file, &writer.tally) } else { Ok(()) }
    }

    /// Records that the step was carried out.
    pub(super) fn done(self, writer: &Writer, session: &mut Session) {
        match self.what {
            What::Apply(pages) => {
                writer.applied(&pages);
                session.pages_written();
            }
            What::Sync => writer.flushed(session, self.file_len, None),
            What::Entry(entry, pages) => {
                writer.flushed(session, self.file_len, Some(entry));
                let mut changed = writer.feed.changed.write();
                for page in pages {
                    changed.logged(page.at, page.page);
                }
            }
        }
    }
}

impl Writer {
    /// Writes the logged pages to their places. The next flush makes them durable.
    pub(super) fn apply(&self, session: &mut Session) -> Result<()> {
        self.carry_out(self.apply_step(), session)
    }

    /// Flushes the file.
    pub(super) fn sync(&self, session: &mut Session) -> Result<()> {
        self.carry_out(self.sync_step(), session)
    }

    pub(super) fn carry_out(&self, step: Step, session: &mut Session) -> Result<()> {
        step.carry_out(self)?;
        step.done(self, session);
        Ok(())
    }

    fn apply_step(&self) -> Step {
        let pages = self.feed.changed.read().to_apply();
        Step { what: What::Apply(pages), file_len: self.file_len() }
    }

    fn sync_step(&self) -> Step {
        Step { what: What::Sync, file_len: self.file_len() }
    }

    fn entry_step(&self, session: &mut Session, pages: Vec<Snapshot>) -> Step {
        let file_len = self.file_len();
        let changes = pages
            .iter()
            .map(|page| Change::Sector { at: FileOffset::new(page.at), bytes: page.page.clone() });
        let (flushed, last) = (session.flushed_len / MIB * MIB, file_len.next_multiple_of(MIB));
        let Some(log) = &mut session.log else { unreachable!("a change began the session") };
        let entry = log.append(changes.collect(), flushed, last);
        self.tally.log_bytes.add(entry.length);
        trace::log_entry(self.file.name(), entry.position, entry.length, pages.len());
        Step { what: What::Entry(entry, pages), file_len }
    }

    fn applied(&self, pages: &[(u64, Box<Page>)]) {
        if pages.is_empty() {
            return;
        }
        // From here on pages read from the file before do not enter the cache, and those that did
        // are dropped before the changed pages stop hiding them.
        self.feed.changed.next_epoch();
        for (at, _) in pages {
            self.core.budget.drop_page(self.core.id, FileOffset::new(*at));
        }
        self.feed.changed.write().applied(pages);
    }

    fn flushed(&self, session: &mut Session, file_len: u64, entry: Option<Appended>) {
        session.flushed_len = file_len;
        session.has_unflushed_header = false;
        self.space.flushed(file_len);
        if let Some(log) = &mut session.log {
            log.flushed(entry);
        }
    }
}

/// Splits a snapshot that is too large for one entry, in an order in which any group may be the
/// last that survives: metadata and sector bitmaps, then the entries of the sector bitmaps,
/// then the blocks that need them.
fn split(writer: &Writer, pages: Vec<Snapshot>, most: usize) -> Result<Vec<Vec<Snapshot>>> {
    let mut parts: [Vec<Snapshot>; 3] = Default::default();
    for page in pages {
        match page.kind {
            // These always fit into the first group.
            PageKind::Metadata | PageKind::SectorBitmap => parts[0].push(page),
            PageKind::BlockAllocationTable => {
                parts[1].extend(with_bitmaps_only(writer, &page)?);
                parts[2].push(page);
            }
        }
    }
    let mut groups: Vec<Vec<Snapshot>> = Vec::new();
    for part in parts {
        let mut part = part.into_iter().peekable();
        groups.extend(iter::from_fn(|| {
            part.peek().is_some().then(|| part.by_ref().take(most).collect())
        }));
    }
    Ok(groups)
}

/// The earlier page of the block allocation table with the sector bitmap entries of the new
/// one; `None` if those did not change.
fn with_bitmaps_only(writer: &Writer, new: &Snapshot) -> Result<Option<Snapshot>> {
    let mut page = match &new.before {
        Some(before) => before.clone(),
        None => writer.core.page_in_file(FileOffset::new(new.at))?,
    };
    let first = (new.at - writer.core.bat.offset.get()) / ENTRY_LEN;
    let mut is_changed = false;
    for i in 0..PAGE / ENTRY_LEN {
        if writer.core.layout.is_bitmap_index(BatIndex(first + i)) {
            let place = (i * ENTRY_LEN) as usize..((i + 1) * ENTRY_LEN) as usize;
            is_changed |= page[place.clone()] != new.page[place.clone()];
            page[place.clone()].copy_from_slice(&new.page[place]);
        }
    }
    Ok(is_changed.then_some(Snapshot { at: new.at, kind: new.kind, page, before: None }))
}
