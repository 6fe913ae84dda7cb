//! qcow2, the format of QEMU: images of version 2 and 3 with their backing files.
//!
//! ```no_run
//! use avhdx::ops::Export;
//! use avhdx_formats::qcow2::OpenOptions;
//!
//! let old = OpenOptions::new().open("old.qcow2")?;
//! let new = avhdx::CreateOptions::dynamic(old.size()).create("new.vhdx")?;
//! Export::new().onto(&old, &new)?;
//! new.close()?;
//! # Ok::<(), avhdx::Error>(())
//! ```
//!
//! # The format
//!
//! All numbers are big-endian. The disk and the file are divided into *clusters*. A first table leads to second tables,
//! which have an entry for each cluster of the disk: the cluster of the file that has its bytes, that they are packed at some
//! place, that they are zeros, or that the backing file has them, if there is one. Since version 3, a cluster can have 32 parts
//! whose states differ. Tables of counts, which say how often a cluster is used, are not read.
//!
//! Modules from top to bottom:
//!
//! 1. `open`: opens images and their backing files, which `backing` finds; `create`: makes images; `measure`: what they take;
//! 2. `disk`: the disk of them;
//! 3. `layer`: one image;
//! 4. `header`: what it says of itself.

mod backing;
mod create;
mod disk;
mod header;
mod layer;
mod measure;
mod open;

pub use backing::BackingFiles;
pub use create::{Backing, CreateOptions, NewQcow2};
pub use disk::{Qcow2Disk, Qcow2Image};
pub use measure::{Measured, Measurer, measure};
pub use open::OpenOptions;
