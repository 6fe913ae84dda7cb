//! What an image needs beyond reading so that it can be written and survive a crash.
//!
//! A write plans, moves its bytes and then commits: the block tables change in memory only once the
//! payload is written, and reach the file at the next flush, through the log. `commit.rs` has the
//! protocol, `data.rs` the ways of a write.

mod block_locks;
mod change_lock;
mod children;
mod copy_from;
#[cfg(all(test, not(loom)))]
mod crashes;
mod data;
mod drafts;
mod flush;
mod flush_requests;
mod freeze;
mod growth;
mod headers;
mod link;
mod mend;
mod metadata_edit;
mod open;
#[cfg(all(test, loom))]
#[path = "interleavings.rs"]
mod orders;
mod payload;
mod punch;
mod resize;
mod session;
mod session_state;
mod space;
#[cfg(all(test, not(loom)))]
mod tests;
mod tracker;
mod writer;

pub(crate) use children::{ChildSearch, OTHER_NAMES, children_unknown};
pub use drafts::clear_drafts;
pub(crate) use link::{LinkPaths, disk_edits, locator_edit};
pub(crate) use metadata_edit::{ItemEdit, check_edits, edit_len};
pub(crate) use open::{OpenImage, Pending, WritePolicy, check_named};
pub(crate) use payload::Copier;
pub(crate) use resize::{check_size, fits_entry, table_len};
pub(crate) use tracker::{ChangeTracker, HeldRange};
pub(crate) use writer::Writer;
