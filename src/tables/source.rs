//! How a look at the block tables comes by their pages: by reading them, or not at all.
//!
//! What block states mean does not depend on that, so whoever asks says how far to reach, and the one place
//! that knows the states takes it from there.

use std::collections::HashMap;

use super::cache::{PAGE, Page, new_page};
use crate::disk::LayerId;
use crate::error::{Error, Result};
use crate::image::Core;
use crate::types::FileOffset;

/// Where pages of block tables may come from.
pub(crate) trait Reach: Copy {
    /// Why there is no answer.
    type Stop: From<Error>;

    /// Whether what the pages say may be remembered.
    fn is_proven(self) -> bool;

    /// Applies `look` to the page that lies at `at` in the file of `image`. It was not changed in memory when
    /// the tables had this epoch.
    fn page<T>(
        self,
        image: &Core,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(&Page) -> T,
    ) -> Result<T, Self::Stop>;
}

/// Where in its course the writer of an image was; `None` where nobody writes. While it is the same, pages
/// that were not changed in memory stand in the file as they are.
pub(crate) type Epoch = Option<u64>;

/// Reads what is not at hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load;

impl Reach for Load {
    type Stop = Error;

    fn is_proven(self) -> bool {
        true
    }

    fn page<T>(
        self,
        image: &Core,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(&Page) -> T,
    ) -> Result<T> {
        let load = |page: &mut Page| image.load_page(at, page);
        image.budget.with_page(image.id, at, load, || image.epoch() == epoch, look)
    }
}

/// Takes what is in memory and reads nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtHand<'a>(pub(crate) &'a Carried);

/// Why there is no answer from what is in memory.
#[derive(Debug)]
pub(crate) enum Stop {
    Failed(Error),
    /// That page must be read first.
    NotAtHand(Missing),
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

impl Reach for AtHand<'_> {
    type Stop = Stop;

    fn is_proven(self) -> bool {
        !self.0.has_news
    }

    fn page<T>(
        self,
        image: &Core,
        at: FileOffset,
        epoch: Epoch,
        look: impl FnOnce(&Page) -> T,
    ) -> Result<T, Stop> {
        let missing = Missing { image: image.id, at, epoch };
        if let Some(page) = self.0.page(missing) {
            return Ok(look(page));
        }
        image.budget.at_hand(image.id, at, look).map_err(|_| Stop::NotAtHand(missing))
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
    pub(crate) fn share<'a>(&mut self, image: impl Fn(LayerId) -> Option<&'a Core>) {
        if !std::mem::take(&mut self.has_news) {
            return;
        }
        for ((id, at), read) in self.pages.iter_mut().filter(|(_, read)| read.is_news) {
            read.is_news = false;
            let Some(image) = image(*id) else { continue };
            let still = || image.epoch() == read.epoch;
            image.budget.keep_page(*id, *at, read.page.clone(), still);
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
