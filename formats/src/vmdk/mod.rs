//! VMDK, the format of VMware: images with their extents and with the images that they are changes to.
//!
//! ```no_run
//! use avhdx::ops::Export;
//! use avhdx_formats::vmdk::OpenOptions;
//!
//! let old = OpenOptions::new().open("old.vmdk")?;
//! let new = avhdx::CreateOptions::dynamic(old.size()).create("new.vhdx")?;
//! Export::new().onto(&old, &new)?;
//! new.close()?;
//! # Ok::<(), avhdx::Error>(())
//! ```
//!
//! # The format
//!
//! All numbers are little-endian, in sectors of 512 bytes. A *descriptor*, a text of its own or in the only file, lists the
//! *extents* of the disk, one after the other: files with the bytes as they are, zeros, or files with tables. There, the disk
//! is divided into *grains*. A directory leads to tables, which have an entry for each grain: the place of its bytes in the
//! file, that they are zeros, or that the image below has them, if there is one. Grains may be packed.
//!
//! [VMware's Virtual Disk Format 1.1 and 5.0](https://www.vmware.com/app/vmdk/?src=vmdk) describe two kinds of such files:
//! those of hosted products (`KDMV`) and the older ones of ESX (`COWD`). The layout of the newer ones of ESX (`SESPARSE`) is not
//! published: an image is refused if anything in their headers is not as QEMU knows it, or if their journal holds changes.
//!
//! The name of an image below is a hint, and its 32 bits of identity, the CID, change with its content.
//!
//! # Why no other package reads it
//!
//! `vmdk-core` reads these formats too, but one caller at a time (by `&mut`). It keeps whole directories and every table that it
//! met in memory. It does not tell where the bytes of a grain are, and takes a grain of zeros for one that the image below has.
//! Extents and parents it opens by their recorded names itself, and sums of numbers in the newer extents of ESX may overflow.
//!
//! Modules from top to bottom:
//!
//! 1. `open`: opens images, their extents and the images below;
//! 2. `disk`: the disk of them;
//! 3. `layer`: one image;
//! 4. `sparse`: one extent with tables;
//! 5. `descriptor`: which extents there are; `header`: what an extent says of itself; `facts`: what is told of both.

mod descriptor;
mod disk;
mod facts;
mod header;
mod layer;
mod open;
mod sparse;

pub use disk::VmdkDisk;
pub use facts::{ExtentKind, VmdkExtent, VmdkImage};
pub use open::OpenOptions;
