//! What changed between two points in time: from the tables alone, and tracked while a chain is in use.
#![allow(clippy::disallowed_methods)] // real files
#![allow(clippy::single_range_in_vec_init)] // lists of ranges, of which there may be one

#[path = "../common/mod.rs"]
mod common;
mod diff;
mod tables;
mod tracking;

use avhdx_testkit::sim;
