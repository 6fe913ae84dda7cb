//! Rescue of ruined images. Expectations come from flat models and from QEMU, never from the images that are read.

mod chains;
mod damaged;
mod files;
mod judge;
mod placed;
mod unread;
