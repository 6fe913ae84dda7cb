//! Pages of block allocation tables, sector bitmaps and metadata: cached within a budget, or changed and not yet
//! written to their places.

mod cache;
mod changed;
mod page;
mod source;

pub use cache::Budget;
pub(crate) use cache::InCommon;
pub(crate) use changed::{Changed, Order, PageKind, Snapshot, Tables};
pub(crate) use page::{PAGE, Page, PageView, new_page};
pub(crate) use source::{
    Carried, Epoch, FromFile, FromMemory, Missing, PageSource, Stop, TableFile,
};
