//! Reads one image file: its structures and the data that it holds.

mod block_table;
mod bytes;
mod claims;
mod core;
mod feed;
mod foreign;
mod info;
mod last_bitmap;
mod link;
mod loss;
mod marks;
mod metadata;
mod open;
mod packing;
mod pins;
mod point;
mod policy;
mod resolve;
mod start;
mod states;
mod units;

pub use info::{
    BlockCounts, HeaderInfo, ImageInfo, ItemInfo, LocatorInfo, LogGap, LogInfo, LogState,
    RegionInfo,
};
pub use link::ParentLink;
pub use loss::{Loss, LossKind};
pub use policy::{Lock, LogPolicy, OneFlush};

pub(crate) use crate::format::marks::Moved;
pub use crate::format::marks::{CheckpointMark, MergeMark, MergeRequest, MergeState};

pub(crate) use block_table::{BlockTable, Claim, Role, is_zero};
pub(crate) use bytes::{read_what_is_there, too_short};
pub(crate) use claims::Claims;
pub(crate) use core::{Core, FoundLog, cannot_read};
pub(crate) use feed::{Feed, IssueIdentity};
pub(crate) use foreign::{folder, named, not_regular, open_storage, refuse_by_name};
pub(crate) use loss::{Copy, Entries, Mend};
pub(crate) use marks::Marks;
pub(crate) use metadata::{Inspected, Metadata, PlacedLocator, table_bytes};
pub(crate) use open::{Start, check_bat_length, inspect_regions, lock, log_pending};
pub(crate) use packing::{Packing, TablePlace, Target};
pub(crate) use pins::{Generation, Pins, Ticket};
pub(crate) use point::no_point;
pub(crate) use policy::ImagePolicy;
pub(crate) use start::{
    identity_if_any, is_signed, names_log, probe_identity, probe_in_silence, read_creator,
    read_headers, why_no_image,
};
pub(crate) use units::{MOST_UNITS, Units, units};
