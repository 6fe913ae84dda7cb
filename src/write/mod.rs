//! Everything that changes an image, and keeps it sound across a crash.
//!
//! A write plans, writes its payload and then commits. The block tables change in memory only once
//! the payload is written; the next flush takes them to the file, through the log. `commit.rs` is
//! the protocol; `data.rs` and `zero.rs` are the paths of a write.

mod bits;
mod block_locks;
mod change_lock;
mod children;
mod commit;
mod compact;
mod content;
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
mod held_pages;
mod holes;
mod link;
mod mend;
mod metadata_edit;
mod open;
mod open_plans;
#[cfg(all(test, loom))]
#[path = "interleavings.rs"]
mod orders;
mod payload;
mod plan;
mod planned;
mod planned_flush;
mod punch;
mod record;
mod reserved;
mod resize;
mod session;
mod session_state;
mod space;
#[cfg(all(test, not(loom)))]
mod tests;
mod tracker;
mod unused;
mod wait;
mod writer;
mod zero;

pub(crate) use children::{ChildSearch, OTHER_NAMES, children_unknown};
pub(crate) use compact::BATCH;
pub(crate) use content::{Appraiser, Worth, has_data};
pub use drafts::clear_drafts;
pub(crate) use link::{LinkPaths, disk_edits, locator_edit};
pub(crate) use metadata_edit::{ItemEdit, check_edits, edit_len};
pub(crate) use open::{OpenImage, Pending, WritePolicy, check_named};
pub(crate) use payload::Copier;
pub(crate) use plan::{FindTip, plan_write};
pub use plan::{PlannedWrite, WriteInFlight, WriteLoad, WritePlan, WriteStep};
pub(crate) use planned::Tip;
pub(crate) use planned_flush::plan_flush;
pub use planned_flush::{FlushInFlight, FlushPlan, FlushWrite, PlannedFlush};
pub use record::UnknownReason;
pub(crate) use record::{ChangeRecord, Record};
pub(crate) use resize::{check_size, fits_entry, growth_in_blocks};
pub(crate) use tracker::{ChangeTracker, HeldRange};
pub(crate) use unused::Unneeded;
pub use wait::Wait;
pub(crate) use writer::Writer;
