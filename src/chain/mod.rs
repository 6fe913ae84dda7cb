//! A chain of images: read-only parents under one tip.

mod changes;
mod diff_chain;
mod disk;
mod live;
mod locate;
mod operation;
mod parents;
mod past;
mod points;
mod stack;
mod tracking;
mod upper;
mod walk;

pub use changes::{ChangedExtent, ChangedSource, Changes};
pub use diff_chain::{DiffChain, Followed};
pub(crate) use live::Opened;
pub use locate::{Candidate, FoundBy, ParentSource, PathSource};
pub(crate) use locate::{file_names, recorded};
pub(crate) use operation::{Operation, Retired, path_of};
pub use points::Point;
pub use stack::Layer;
#[cfg(all(test, not(loom)))]
pub(crate) use stack::Stack;
pub use tracking::{ChangeTracking, KnownChanges, Since, TrackingOptions, TrackingPoint};
pub(crate) use upper::{Shown, UpperLayers};
pub use walk::Linkage;
pub(crate) use walk::{
    ChainPolicy, Identity, changed_meanwhile, check_sectors, file_id, find_parent, loop_error,
    too_deep,
};
