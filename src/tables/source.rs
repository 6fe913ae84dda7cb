//! Sources for pages of block tables: the cache and the file, or memory alone.
//!
//! The interpretation of block states does not depend on the source, which the caller chooses.

use std::collections::HashMap;

use super::cache::Budget;
use super::page::{PAGE, Page, PageView, new_page};
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::types::FileOffset;

/// A file that has block tables.
pub(crate) trait TableFile {
    /// Identifies the file among the layers of this process.
    fn id(&self) -> LayerId;

    /// The budget that its pages are cached in.
    fn budget(&self) -> &Budget;

    /// The current epoch of its writer. Pages read from the file in another epoch may be outdated.
    fn epoch(&self) -> Epoch;

    /// Reads the page that starts at `at` from the file.
    fn load_page(&self, at: FileOffset, page: &mut Page) -> Result<()>;
}

/// A source of pages of block tables.
pub(crate) trait PageSource: Copy {
    /// The reason why a page is unavailable.
    type Stop: From<Error>;

    /// Whether the file may be asked.
    const READS: bool;

    /// Applies `look` to the page at file offset `at`, which was unchanged in memory when the tables had this epoch.
    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(PageView<'_>) -> T,
    ) -> Result<T, Self::Stop>;

    /// Whether the host failed to read a page. The failure is reported even if another try would succeed.
    fn is_host_failure(_stop: &Self::Stop) -> bool {
        false
    }
}

/// The progress of an image's writer; `None` without one. While it is the same, pages that are unchanged in memory
/// are current in the file.
pub(crate) type Epoch = Option<u64>;

/// Uses the cache, and reads other pages from the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromFile;

impl PageSource for FromFile {
    type Stop = Error;
    const READS: bool = true;

    fn is_host_failure(stop: &Error) -> bool {
        stop.kind() == ErrorKind::Io
    }

    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(PageView<'_>) -> T,
    ) -> Result<T> {
        let load = |page: &mut Page| file.load_page(at, page);
        file.budget().with_page(file.id(), at, load, || file.epoch() == epoch, look)
    }
}

/// Uses the cache and these pages, and reads nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromMemory<'a>(pub(crate) &'a Carried);

/// The reason why there is no answer from memory.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Error),
    /// This page must be read first.
    Missing(Missing),
}

/// A page of a table that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) image: LayerId,
    pub(crate) at: FileOffset,
    epoch: Epoch,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl PageSource for FromMemory<'_> {
    type Stop = Stop;
    const READS: bool = false;

    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(PageView<'_>) -> T,
    ) -> Result<T, Stop> {
        let missing = Missing { image: file.id(), at, epoch };
        if let Some(page) = self.0.page(missing) {
            return Ok(look(PageView::Whole(page)));
        }
        file.budget().at_hand(file.id(), at, look).map_err(|_| Stop::Missing(missing))
    }
}

/// Pages that were read for one lookup, which keeps them however small the budget is.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pages: HashMap<(LayerId, FileOffset), Read>,
    /// Whether some of them are not [shared](Self::share) yet.
    has_news: bool,
}

#[derive(Debug)]
struct Read {
    epoch: Epoch,
    page: Box<Page>,
    is_news: bool,
}

impl Carried {
    /// Size of a page in bytes.
    pub(crate) const PAGE: usize = PAGE as usize;

    /// Adds a missing page that was read from the file. `bytes` must have the size of a page.
    pub(crate) fn take(&mut self, missing: Missing, bytes: &[u8]) {
        let mut page = new_page();
        page.copy_from_slice(bytes);
        let read = Read { epoch: missing.epoch, page, is_news: true };
        self.pages.insert((missing.image, missing.at), read);
        self.has_news = true;
    }

    /// Adds the pages to the caches of these images, once they have proved valid.
    pub(crate) fn share<'a, F: TableFile + 'a>(&mut self, file: impl Fn(LayerId) -> Option<&'a F>) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        for ((id, at), read) in self.pages.iter_mut().filter(|(_, read)| read.is_news) {
            read.is_news = false;
            let Some(file) = file(*id) else { continue };
            let still = || file.epoch() == read.epoch;
            file.budget().keep_page(*id, *at, &read.page, still);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// The page, if it was read in the epoch of this request. In another epoch it may be outdated.
    fn page(&self, Missing { image, at, epoch }: Missing) -> Option<&Page> {
        let read = self.pages.get(&(image, at))?;
        (read.epoch == epoch).then_some(&read.page)
    }
}
