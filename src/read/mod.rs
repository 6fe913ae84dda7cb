//! The one loop that reads, and what comes of it: bytes, extents and plans.

mod index;
mod plan;
mod resolve;

pub use plan::{Planned, PlannedPiece, PlannedSource, ReadPlan, TableLoad};
