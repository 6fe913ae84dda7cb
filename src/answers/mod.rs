//! Who answers for which sectors of a disk, remembered within a budget. Knows no images.

mod build;
mod packed;
pub(crate) mod run;
mod table;

pub(crate) use build::Runs;
pub(crate) use packed::{Packed, Sectors};
pub(crate) use run as word;
pub(crate) use run::Answer;
pub(crate) use table::{Known, SpanKey, Spans};
