//! Pages of the block tables and the metadata that were changed and do not stand in their place in the file yet.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::tables::Page;

/// Changed pages by their place in the file.
///
/// A page goes from *dirty* (the change is in memory only) to *logged* (durable in the log) to its
/// place in the file, and may get dirty again on the way.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pages: RwLock<Changed>,
    /// Rises whenever pages go to their places: whoever read the file before may have read older ones.
    epoch: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Changed {
    pages: BTreeMap<u64, ChangedPage>,
    dirty: usize,
}

#[derive(Debug)]
struct ChangedPage {
    /// The page as it reads.
    now: Box<Page>,
    /// Whether `now` holds changes that no log entry has.
    dirty: bool,
    /// The page as the log has it, until that stands in the file.
    logged: Option<Box<Page>>,
    /// Which of the two passes of a commit it belongs to.
    kind: PageKind,
}

/// What a page belongs to, in the order in which they go to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PageKind {
    /// The metadata region: all its changed pages go to the log in one entry.
    Metadata,
    SectorBitmap,
    BlockAllocationTable,
}

/// A page to be logged.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) at: u64,
    pub(crate) kind: PageKind,
    pub(crate) page: Box<Page>,
    /// The page as a replay of the log would leave it before this snapshot, where that is known.
    pub(crate) before: Option<Box<Page>>,
}

impl Tables {
    /// The changed pages. While they are held none leaves, so that the epoch goes with them.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Changed> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Changed> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn next_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }
}

impl Changed {
    /// The page at `at` as it reads, if it was changed.
    pub(crate) fn page(&self, at: u64) -> Option<&Page> {
        self.pages.get(&at).map(|page| &*page.now)
    }

    pub(crate) fn has(&self, at: u64) -> bool {
        self.pages.contains_key(&at)
    }

    /// Adds a page as it stands in the file.
    pub(crate) fn add(&mut self, at: u64, page: Box<Page>, kind: PageKind) {
        let page = ChangedPage { now: page, dirty: false, logged: None, kind };
        self.pages.entry(at).or_insert(page);
    }

    /// The page at `at`, for a change. It must have been added.
    pub(crate) fn change(&mut self, at: u64) -> Option<&mut Page> {
        let page = self.pages.get_mut(&at)?;
        self.dirty += usize::from(!std::mem::replace(&mut page.dirty, true));
        Some(&mut page.now)
    }

    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty
    }

    pub(crate) fn any_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// The dirty pages, metadata first and then sector bitmaps. They count as clean from here on: what changes next is
    /// for the next snapshot.
    pub(crate) fn snapshot(&mut self) -> Vec<Snapshot> {
        let mut pages: Vec<Snapshot> = Vec::new();
        self.dirty = 0;
        for (at, page) in self.pages.iter_mut().filter(|(_, page)| page.dirty) {
            page.dirty = false;
            let before = page.logged.clone();
            pages.push(Snapshot { at: *at, kind: page.kind, page: page.now.clone(), before });
        }
        pages.sort_by_key(|page| page.kind);
        pages
    }

    /// Notes that the log has a page, durably.
    pub(crate) fn logged(&mut self, at: u64, page: Box<Page>) {
        if let Some(changed) = self.pages.get_mut(&at) {
            changed.logged = Some(page);
        }
    }

    /// The pages to be put in their place.
    pub(crate) fn to_apply(&self) -> Vec<(u64, Box<Page>)> {
        let logged = self.pages.iter().filter_map(|(at, page)| Some((*at, page.logged.clone()?)));
        logged.collect()
    }

    /// Notes that pages stand in their places; those that hold nothing newer leave.
    pub(crate) fn applied(&mut self, pages: &[(u64, Box<Page>)]) {
        for (at, page) in pages {
            let Some(changed) = self.pages.get_mut(at) else { continue };
            changed.logged = None;
            // A page may also hold what a later part of the same commit is yet to log.
            if !changed.dirty && changed.now == *page {
                self.pages.remove(at);
            }
        }
    }
}
