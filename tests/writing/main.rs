//! Tests of writing, of creating images, and of the operations on files and folders.
#![allow(clippy::disallowed_methods)] // many look at real files from outside

#[path = "../common/mod.rs"]
mod common;

mod accept_loss;
mod children;
mod create;
mod failures;
mod flushes;
mod forest;
mod import;
mod left_overs;
mod loops;
mod metadata;
mod one_flush;
mod ops;
mod progress;
mod provision;
mod rebase;
mod reparent;
mod replaced;
mod sharing;
mod space;
mod swaps;
mod write;
#[cfg(target_os = "linux")]
mod xfs;

use avhdx_testkit::sim;
