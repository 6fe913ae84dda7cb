//! Tests of reading disks and chains, and of the storages beneath them.
#![allow(clippy::disallowed_methods)] // many look at real files from outside

#[path = "../common/mod.rs"]
mod common;

mod chains;
mod copies;
mod flat;
mod images;
mod locate;
mod log;
mod pending;
mod plans;
mod plugs;
mod raw;
mod reshaping;
mod storage;
mod story;
mod trouble;
#[cfg(unix)]
mod untrusted;

use avhdx_testkit::sim;
