//! Where the pages of block tables come from: from the file where they are not in memory, or from memory alone.
//!
//! What block states mean does not depend on that: whoever asks chooses the source, and the one place that knows the
//! states takes it from there.

use std::collections::HashMap;

use super::cache::{Budget, PAGE, Page, new_page};
use crate::disk::LayerId;
use crate::error::{Error, Result};
use crate::types::FileOffset;

/// A file that has block tables.
pub(crate) trait TableFile {
    /// What names it among the layers of this process.
    fn id(&self) -> LayerId;

    /// The memory that its pages are kept in.
    fn budget(&self) -> &Budget;

    /// Where its writer is now; what was read from the file in another epoch may be older than the file.
    fn epoch(&self) -> Epoch;

    /// Reads the page that starts at `at` from the file.
    fn load_page(&self, at: FileOffset, page: &mut Page) -> Result<()>;
}

/// Where pages of block tables come from.
pub(crate) trait PageSource: Copy {
    /// Why there is no answer.
    type Stop: From<Error>;

    /// Applies `look` to the page that lies at `at` in the file. It was not changed in memory when the tables had
    /// this epoch.
    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(&Page) -> T,
    ) -> Result<T, Self::Stop>;
}

/// Where in its course the writer of an image was; `None` where nobody writes. While it is the same, pages
/// that were not changed in memory stand in the file as they are.
pub(crate) type Epoch = Option<u64>;

/// Reads from the file what is not in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromFile;

impl PageSource for FromFile {
    type Stop = Error;

    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(&Page) -> T,
    ) -> Result<T> {
        let load = |page: &mut Page| file.load_page(at, page);
        file.budget().with_page(file.id(), at, load, || file.epoch() == epoch, look)
    }
}

/// Takes what is in memory, and these pages, and reads nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromMemory<'a>(pub(crate) &'a Carried);

/// Why there is no answer from what is in memory.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Error),
    /// That page must be read first.
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

    fn page<T>(
        self,
        file: &impl TableFile,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(&Page) -> T,
    ) -> Result<T, Stop> {
        let missing = Missing { image: file.id(), at, epoch };
        if let Some(page) = self.0.page(missing) {
            return Ok(look(page));
        }
        file.budget().at_hand(file.id(), at, look).map_err(|_| Stop::Missing(missing))
    }
}

/// Pages that were read on behalf of one question, which it keeps for itself however small the budget is.
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
    /// Bytes of a page.
    pub(crate) const PAGE: usize = PAGE as usize;

    /// Takes a page along that was read from the file after it was found missing. `bytes` are as many as a
    /// page has.
    pub(crate) fn take(&mut self, missing: Missing, bytes: &[u8]) {
        let mut page = new_page();
        page.copy_from_slice(bytes);
        let read = Read { epoch: missing.epoch, page, is_news: true };
        self.pages.insert((missing.image, missing.at), read);
        self.has_news = true;
    }

    /// Lets the budgets of these images have what was taken along, once that is known to make sense.
    pub(crate) fn share<'a, F: TableFile + 'a>(&mut self, file: impl Fn(LayerId) -> Option<&'a F>) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        for ((id, at), read) in self.pages.iter_mut().filter(|(_, read)| read.is_news) {
            read.is_news = false;
            let Some(file) = file(*id) else { continue };
            let still = || file.epoch() == read.epoch;
            file.budget().keep_page(*id, *at, read.page.clone(), still);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// The page, if it was read in the epoch in which it is asked for. In another, it may be older than what
    /// stands in the file.
    fn page(&self, Missing { image, at, epoch }: Missing) -> Option<&Page> {
        let read = self.pages.get(&(image, at))?;
        (read.epoch == epoch).then_some(&read.page)
    }
}
