//! Where blocks of a disk lie that no table places, by what is in them.
//!
//! A structure of a file system that says where it lies places the block around it: copies of superblocks and inodes of
//! ext with checksums that hold their numbers, file records of NTFS that are numbered, folders that name themselves. What
//! disks hold misleads: images of other disks lie in files, journals keep copies of metadata, and what was there before
//! is still there. So a place is *sure* only if two structures or more agree on it, nothing in the block speaks against
//! it, and no other block has a claim on it; see [`place`].

mod anchors;
mod boot;
mod claims;
mod ext;
mod fat;
mod head;
mod known;
mod ntfs;
mod place;
mod space;
mod superblock;
mod table;
mod volumes;
mod whole;

pub use known::{Found, Hit, Known, Loose};
pub use place::place;
pub use whole::{Whole, whole_files};
