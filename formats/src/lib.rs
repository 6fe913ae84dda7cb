//! Virtual disks in other formats than VHDX: each is an [`avhdx::Disk`], so that every operation of `avhdx` takes it.
//!
//! | format | read | written |
//! |---|---|---|
//! | [VHD](vhd) | fixed, dynamic, differencing | fixed, dynamic; new ones |
//! | [qcow2] | versions 2 and 3, with backing files; packed clusters, parts of clusters | version 3; new ones |
//! | [VMDK](vmdk) | sparse, flat and stream-optimized ones, those of ESX, with their extents and parents | no |
//!
//! An image of a stranger names other files: what they are is the stranger's choice. So none is opened unless the caller
//! says where parents may come from; the extents of a VMDK image come from its own folder alone.
//!
//! Modules from top to bottom, imports point down only:
//!
//! 1. `qcow2`: QEMU's format; `vhd`: Virtual PC's and Hyper-V's first format; `vmdk`: VMware's;
//! 2. `stack`: images over each other, as one disk;
//! 3. `cache`: tables of images, read as they are needed; `file`: files of images.

mod cache;
mod file;
pub mod qcow2;
mod stack;
pub mod vhd;
pub mod vmdk;

pub use file::Warning;
