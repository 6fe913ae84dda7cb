//! Determines which layer holds which bytes of a disk, and turns the answers into bytes, extents and plans.

mod ask;
mod bytes;
mod changes;
mod extent;
mod layers;
mod plan;
mod zeros;

pub(crate) use changes::{ChangeWalk, ChangedRun, LayerRuns};
pub(crate) use layers::{Layer, Layers};
pub(crate) use plan::{HasLayers, plan_read};
pub use plan::{Planned, PlannedPiece, PlannedSource, ReadPlan, TableLoad};
