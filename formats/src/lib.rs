//! Virtual disks in other formats than VHDX: each is an [`avhdx::Disk`], so that every operation of `avhdx` takes it.
//!
//! | format | read | written |
//! |---|---|---|
//! | [VHD](vhd) | fixed, dynamic, differencing | fixed, dynamic; new ones |
//!
//! An image of a stranger names other files: what they are is the stranger's choice. So none is opened unless the caller
//! says where parents may come from.
//!
//! Modules from top to bottom, imports point down only:
//!
//! 1. `vhd`: Virtual PC's and Hyper-V's first format;
//! 2. `cache`: tables of images, read as they are needed.

mod cache;
pub mod vhd;
