//! Everything that changes an image, and keeps it sound across a crash.
//!
//! A write plans, writes its payload and then commits. The block tables change in memory only once
//! the payload is written; the next flush takes them to the file, through the log. `flush.rs` is
//! the protocol; `data.rs` and `zero.rs` are the paths of a write.

mod bits;
mod block_locks;
mod change_lock;
mod children;
mod copy_from;
#[cfg(all(test, not(loom)))]
mod crashes;
mod data;
mod drafts;
mod exposure;
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
mod record;
mod resize;
mod session;
mod session_state;
mod space;
#[cfg(all(test, not(loom)))]
mod tests;
mod tracker;
mod writer;
mod zero;

pub(crate) use children::{ChildSearch, OTHER_NAMES, children_unknown};
pub use drafts::clear_drafts;
pub(crate) use link::{LinkPaths, disk_edits, locator_edit};
pub(crate) use metadata_edit::{ItemEdit, check_edits, edit_len};
pub(crate) use open::{OpenImage, Pending, WritePolicy, check_named};
pub(crate) use payload::Copier;
pub use record::UnknownReason;
pub(crate) use record::{ChangeRecord, Record};
pub(crate) use resize::{check_size, fits_entry, table_len};
pub(crate) use tracker::{ChangeTracker, HeldRange};
pub(crate) use writer::Writer;
