//! Rescue of ruined images. Expectations come from flat models and from QEMU, never from the images that are read.
#![allow(clippy::disallowed_methods, clippy::single_range_in_vec_init)]

mod chains;
mod damaged;
mod files;
mod judge;
mod placed;
mod unread;
