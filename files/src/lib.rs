//! Files inside a Hyper-V virtual disk, at any point in time: the volumes of a disk, the file system of a volume, its
//! tree, and the bytes of its files. For reading alone, without mounting anything.
//!
//! A point in time is an [`avhdx::Disk`]; start at [`Volumes`]. FAT12, FAT16, FAT32, NTFS, ext2, ext3 and ext4 are read.
//! What is recognized and not read is refused by its name, before the first byte: no file reads as zeros that it does
//! not hold.
//!
//! A volume is hostile until proven otherwise. All that is read of it is bounded, a walk finds folders that lie within
//! themselves, and a panic of a crate that reads a file system becomes an [`Error`] with volume and path.
//!
//! Modules from top to bottom, imports point down only:
//!
//! 1. `seen`: what a look found, and which bytes that rests on; `compare`: which files differ between two points;
//! 2. `volumes`: partition tables, and the volumes in them;
//! 3. `tree`: paths, walks, files;
//! 4. `ext`, `fat`, `ntfs`: the file systems;
//! 5. `content`: what a volume holds, by its first bytes;
//! 6. `boundary`: what all of them read through;
//! 7. `item`: what file systems say of files; `bitmap`: which space they do not use; `checksum`: those of ext;
//! 8. `changed`: which bytes may differ between two points;
//! 9. `error`.

mod bitmap;
mod boundary;
mod changed;
mod checksum;
mod compare;
mod content;
mod error;
pub mod evidence;
mod ext;
mod fat;
mod item;
mod ntfs;
mod seen;
mod tree;
mod volumes;

pub use boundary::silence_caught_panics;
pub use compare::{Change, Compare, FileChange, FileChanges, Side, Totals, Unread};
pub use content::Content;
pub use error::{Error, ErrorKind, Result};
pub use item::{Kind, StreamInfo, Time, Times};
pub use seen::Seen;
pub use tree::{Entry, FileReader, FileSystem, Options, Walk};
pub use volumes::{Volume, Volumes};
