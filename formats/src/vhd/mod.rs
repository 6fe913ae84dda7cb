//! VHD, the first format of Virtual PC and Hyper-V: fixed, dynamic and differencing images.
//!
//! ```no_run
//! use avhdx::ops::Export;
//! use avhdx::storage::{Host, LocalHost};
//! use avhdx_formats::vhd::{CreateOptions, OpenOptions};
//!
//! // From VHD …
//! let old = OpenOptions::new().open("old.vhd")?;
//! let new = avhdx::CreateOptions::dynamic(old.size()).create("new.vhdx")?;
//! Export::new().onto(&old, &new)?;
//! new.close()?;
//! // … and to VHD.
//! let out = CreateOptions::fixed(old.size()).create(LocalHost.create_new("copy.vhd".as_ref())?)?;
//! Export::new().onto(&old, &out)?;
//! out.finish()?;
//! # Ok::<(), avhdx::Error>(())
//! ```
//!
//! # The format
//!
//! All numbers are big-endian, and sectors have 512 bytes. A *footer* of one sector ends every image. A fixed image is the
//! bytes of the disk and the footer. A dynamic or differencing one begins with a copy of the footer, which leads to the
//! *dynamic header* of 1024 bytes, which leads to the *block allocation table*: for each block of the disk the sector at which
//! it lies, or that it lies nowhere. A block is a *sector bitmap* and its bytes. In a differencing image a clear bit means that
//! the parent has the sector; in a dynamic one the bits mean nothing, and what lies nowhere is zeros.
//!
//! The rules are those of Microsoft's Virtual Hard Disk Image Format Specification of 2006.
//!
//! Modules from top to bottom:
//!
//! 1. `open`: opens images and finds their parents; `create`: makes images;
//! 2. `disk`: the disk of an image and its parents;
//! 3. `layer`: one image; `azure`: what Azure takes;
//! 4. `footer`, `header`: their bytes.

mod azure;
mod create;
mod disk;
mod footer;
mod header;
mod layer;
mod open;

pub use azure::{AzureRule, azure_size};
pub use create::{CreateOptions, MAX_SIZE, Measured, NewVhd, measure};
pub use disk::{VhdDisk, VhdImage};
pub use footer::Kind;
pub use open::OpenOptions;
