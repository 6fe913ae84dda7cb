//! What an image needs beyond reading so that it can be written and survive a crash.
//!
//! A write plans, moves its bytes and then commits: the block tables change in memory only once the
//! payload is written, and reach the file at the next flush, through the log. `commit.rs` has the
//! protocol, `data.rs` the ways of a write.

mod block_locks;
mod children;
mod copy_from;
#[cfg(all(test, not(loom)))]
mod crashes;
mod data;
mod drafts;
mod flush;
mod flush_requests;
mod follow;
mod freeze;
mod growth;
mod link;
mod mend;
mod metadata_edit;
mod open;
#[cfg(all(test, loom))]
#[path = "interleavings.rs"]
mod orders;
mod punch;
mod resize;
mod session;
mod space;
#[cfg(all(test, not(loom)))]
mod tests;
mod writer;

pub(crate) use children::{ChildSearch, OTHER_NAMES, children_unknown};
pub(crate) use copy_from::Copier;
pub use drafts::clear_drafts;
pub(crate) use follow::{Follow, Held};
pub(crate) use link::{LinkPaths, disk_edits, locator_edit};
pub(crate) use metadata_edit::{ItemEdit, check_edits, edit_len};
pub(crate) use open::{OpenImage, Pending, WritePolicy, check_named};
pub(crate) use resize::{check_size, fits_entry, table_len};
pub(crate) use writer::Writer;
