//! Volumes and file systems that the tools of Linux make, read back through the public API.

mod compare;
mod evidence;
mod ext;
mod free;
mod images;
mod journal;
mod ntfs;
mod refused;
mod seen;
mod space;
mod trees;
mod volumes;
