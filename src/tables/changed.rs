//! Changed pages of block tables and metadata that are not yet written to their places in the file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::tables::Page;

/// Changed pages by file offset.
///
/// A page goes from *dirty* (changed in memory only) to *logged* (durable in the log) to its place in the file, and
/// may become dirty again on the way.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pages: RwLock<Changed>,
    /// Increases whenever pages are written to their places. Pages read from the file before that may be outdated.
    epoch: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Changed {
    pages: BTreeMap<u64, ChangedPage>,
    dirty: usize,
    /// The strictest order that a change since the last snapshot needs.
    order: Order,
}

/// What must be durable before the log entry that holds a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Nothing: without the payload, the disk reads as before the change.
    #[default]
    Any,
    /// The payload: without it, bytes that the change exposes would read as they never were.
    PayloadFirst,
}

#[derive(Debug)]
struct ChangedPage {
    /// The current contents.
    now: Box<Page>,
    /// Whether `now` holds changes that are in no log entry.
    dirty: bool,
    /// The contents in the log, until they are written to the page's place.
    logged: Option<Box<Page>>,
    /// The pass of a commit that logs the page.
    kind: PageKind,
    /// Whether `now` may differ from the page's place in the file.
    is_ahead: bool,
    /// How many planned writes will change the page, and must not have to read it again.
    holds: usize,
}

/// The kinds of pages, in the order of logging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PageKind {
    /// The metadata region, whose changed pages are all logged in one entry.
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
    /// The page as a replay of the log would leave it before this snapshot, if known.
    pub(crate) before: Option<Box<Page>>,
}

impl Tables {
    /// The changed pages. While the guard is held, no page is removed, so the epoch matches them.
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
    /// The current contents of the page at `at`, if it was changed.
    pub(crate) fn page(&self, at: u64) -> Option<&Page> {
        self.pages.get(&at).map(|page| &*page.now)
    }

    pub(crate) fn has(&self, at: u64) -> bool {
        self.pages.contains_key(&at)
    }

    /// The place of the first changed page in this part of the file.
    pub(crate) fn first_in(&self, part: Range<u64>) -> Option<u64> {
        self.pages.range(part).next().map(|(at, _)| *at)
    }

    /// The current contents of the changed pages in this part of the file.
    pub(crate) fn pages_in(&self, part: Range<u64>) -> Vec<(u64, Box<Page>)> {
        self.pages.range(part).map(|(at, page)| (*at, page.now.clone())).collect()
    }

    /// Adds a page with its contents in the file.
    pub(crate) fn add(&mut self, at: u64, page: Box<Page>, kind: PageKind) {
        let page =
            ChangedPage { now: page, dirty: false, logged: None, kind, is_ahead: false, holds: 0 };
        self.pages.entry(at).or_insert(page);
    }

    /// Keeps the page at `at` in memory until it is [let go](Self::let_go), if it is here.
    pub(crate) fn hold(&mut self, at: u64) -> bool {
        let page = self.pages.get_mut(&at);
        page.map(|page| page.holds += 1).is_some()
    }

    /// Ends a [hold](Self::hold).
    pub(crate) fn let_go(&mut self, at: u64) {
        let Some(page) = self.pages.get_mut(&at) else { return };
        page.holds -= 1;
        if page.holds == 0 && !page.is_ahead {
            self.pages.remove(&at);
        }
    }

    /// Records the order that a change needs.
    pub(crate) fn require(&mut self, order: Order) {
        self.order = self.order.max(order);
    }

    /// The page at `at`, to be changed. It must have been added.
    pub(crate) fn change(&mut self, at: u64) -> Option<&mut Page> {
        let page = self.pages.get_mut(&at)?;
        self.dirty += usize::from(!std::mem::replace(&mut page.dirty, true));
        page.is_ahead = true;
        Some(&mut page.now)
    }

    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty
    }

    pub(crate) fn any_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// The dirty pages: metadata first, then sector bitmaps, then the block allocation table; and the order that their
    /// changes need. They count as clean from here on; later changes belong to the next snapshot. `None` if there are
    /// more than `most`.
    pub(crate) fn snapshot(&mut self, most: usize) -> Option<(Vec<Snapshot>, Order)> {
        if self.dirty > most {
            return None;
        }
        let mut pages: Vec<Snapshot> = Vec::new();
        self.dirty = 0;
        for (at, page) in self.pages.iter_mut().filter(|(_, page)| page.dirty) {
            page.dirty = false;
            let before = page.logged.clone();
            pages.push(Snapshot { at: *at, kind: page.kind, page: page.now.clone(), before });
        }
        pages.sort_by_key(|page| page.kind);
        Some((pages, std::mem::take(&mut self.order)))
    }

    /// Returns pages of a snapshot that were not logged to the next one.
    pub(crate) fn take_back(&mut self, pages: &[Snapshot], order: Order) {
        for page in pages {
            self.change(page.at);
        }
        self.require(order);
    }

    /// Records that a page is durable in the log.
    pub(crate) fn logged(&mut self, at: u64, page: Box<Page>) {
        if let Some(changed) = self.pages.get_mut(&at) {
            changed.logged = Some(page);
        }
    }

    /// Whether there are logged pages to write to their places.
    pub(crate) fn has_logged(&self) -> bool {
        self.pages.values().any(|page| page.logged.is_some())
    }

    /// The logged pages to write to their places.
    pub(crate) fn to_apply(&self) -> Vec<(u64, Box<Page>)> {
        let logged = self.pages.iter().filter_map(|(at, page)| Some((*at, page.logged.clone()?)));
        logged.collect()
    }

    /// Records that pages were written to their places, and removes those without newer changes.
    pub(crate) fn applied(&mut self, pages: &[(u64, Box<Page>)]) {
        for (at, page) in pages {
            let Some(changed) = self.pages.get_mut(at) else { continue };
            changed.logged = None;
            // A page may also hold changes that a later part of the same commit logs.
            if !changed.dirty && changed.now == *page {
                changed.is_ahead = false;
                if changed.holds == 0 {
                    self.pages.remove(at);
                }
            }
        }
    }
}
