//! The one way to ask which layer has the bytes of a disk, the one loop that reads, and what comes of it: bytes,
//! extents and plans.

mod ask;
mod bytes;
mod extent;
mod layers;
mod plan;

pub(crate) use layers::{Layer, Layers};
pub(crate) use plan::{HasLayers, plan_read};
pub use plan::{Planned, PlannedPiece, PlannedSource, ReadPlan, TableLoad};
