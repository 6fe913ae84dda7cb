//! Changes to tables that never wait for the host: their pages are in memory already.

use super::bits::{all_set, bitmap_pages, set_bits};
use super::reserved::{Share, Stage};
use super::writer::Writer;
use crate::format::bat::BatEntry;
use crate::tables::{Changed, Order, PageKind, PageSource};
use crate::types::{DiskOffset, FileOffset};

/// Pages of tables that stay in memory until this is dropped.
#[derive(Debug)]
pub(super) struct HeldPages<W: AsRef<Writer>> {
    writer: W,
    pages: Vec<u64>,
}

impl<W: AsRef<Writer>> HeldPages<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, pages: Vec::new() }
    }

    /// Holds these pages too.
    pub(super) fn hold<S: PageSource>(
        &mut self,
        source: S,
        pages: impl IntoIterator<Item = (u64, PageKind)>,
    ) -> Result<(), S::Stop> {
        let writer = self.writer.as_ref();
        for (at, kind) in pages {
            if !self.pages.contains(&at) {
                writer.hold_page(source, at, kind)?;
                self.pages.push(at);
            }
        }
        Ok(())
    }

    pub(super) fn writer(&self) -> &W {
        &self.writer
    }
}

impl<W: AsRef<Writer>> Drop for HeldPages<W> {
    fn drop(&mut self) {
        if self.pages.is_empty() {
            return;
        }
        let mut changed = self.writer.as_ref().feed.changed.write();
        self.pages.iter().for_each(|at| changed.let_go(*at));
    }
}

impl AsRef<Self> for Writer {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Writer {
    fn hold_page<S: PageSource>(&self, source: S, at: u64, kind: PageKind) -> Result<(), S::Stop> {
        loop {
            if self.feed.changed.write().hold(at) {
                return Ok(());
            }
            let epoch = self.feed.changed.epoch();
            let page =
                self.core.table_page_with(source, FileOffset::new(at), |page| page.to_page())?;
            let mut changed = self.feed.changed.write();
            // Otherwise pages were applied meanwhile: this one may be stale.
            if self.feed.changed.epoch() == epoch {
                changed.add(at, page, kind);
                changed.hold(at);
                return Ok(());
            }
        }
    }

    /// Whether these bytes, which lie in one block, are all of it.
    pub(super) fn is_whole_block(&self, at: DiskOffset, len: u64) -> bool {
        self.core.layout.within_block(at) == 0 && len == self.core.layout.block_size()
    }

    /// The pages that [naming](Self::name_reserved) the space changes.
    pub(super) fn pages_to_name(
        &self,
        share: Share,
        bitmap: Option<FileOffset>,
    ) -> impl Iterator<Item = (u64, PageKind)> + use<> {
        let bits = self.block_bits(share.block);
        let pages = bitmap.into_iter().flat_map(move |bitmap| bitmap_pages(bitmap, &bits));
        pages.chain([self.bat_page(self.core.layout.payload_index(share.block))])
    }

    /// Has the tables name reserved space, whose bytes for this range of the block are written, or marks them if the
    /// tables name it already. Does nothing if the block was discarded meanwhile, which then is the later change. The
    /// pages must be held. `bitmap` is needed unless the range is the whole block or no parent shows.
    pub(super) fn name_reserved(
        &self,
        share: Share,
        bitmap: Option<FileOffset>,
        at: DiskOffset,
        len: u64,
        order: Order,
    ) {
        let place = share.space.at;
        let index = self.core.layout.payload_index(share.block);
        let bitmap = bitmap.filter(|_| share.shows_parent);
        let mut reserved = self.reserved.lock();
        let mut changed = self.feed.changed.write();
        let is_partial = self.entry_in(&changed, index) == Some(BatEntry::new(7, place));
        let stage = reserved.stage(share);
        if stage == Stage::Detached || stage == Stage::Named && !is_partial {
            return;
        }
        changed.require(order);
        match bitmap {
            Some(bitmap) => {
                if stage == Stage::Open {
                    // Bits left from an earlier state of the block mean nothing.
                    set_bits(&mut changed, bitmap, &self.block_bits(share.block), false);
                    self.put_entry(&mut changed, index, BatEntry::new(7, place));
                }
                self.mark_in(&mut changed, place, bitmap, at, len);
            }
            None => {
                self.put_entry(&mut changed, index, BatEntry::new(6, place));
                let start = self.core.layout.block_start(share.block);
                let in_disk = self.core.layout.size() - start.0;
                self.invalidate_answers(start, in_disk.min(self.core.layout.block_size()));
            }
        }
        reserved.set_named(share);
    }

    /// Marks sectors of a partially present block in place, unless the block changed meanwhile, which then is the later
    /// change. The pages must be held.
    pub(super) fn mark_held(
        &self,
        seen: BatEntry,
        bitmap: FileOffset,
        at: DiskOffset,
        len: u64,
        order: Order,
    ) {
        let index = self.core.layout.payload_index(self.core.layout.block_of(at));
        let mut changed = self.feed.changed.write();
        if self.entry_in(&changed, index) == Some(seen) {
            changed.require(order);
            self.mark_in(&mut changed, seen.offset(), bitmap, at, len);
        }
    }

    fn mark_in(
        &self,
        changed: &mut Changed,
        place: FileOffset,
        bitmap: FileOffset,
        at: DiskOffset,
        len: u64,
    ) {
        let block = self.core.layout.block_of(at);
        let index = self.core.layout.payload_index(block);
        set_bits(changed, bitmap, &self.bits(at, len), true);
        if all_set(changed, bitmap, &self.block_bits(block)) {
            self.put_entry(changed, index, BatEntry::new(6, place));
        }
        self.invalidate_answers(at, len);
    }
}
