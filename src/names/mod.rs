//! Paths as images record them: what they lead to on this machine, and which may be followed.

mod recorded;
pub(crate) mod traps;
mod way;

pub(crate) use recorded::{
    Listing, Look, file_name, files_of, from_folder, list, matches, parts, rooted, same_name,
};
pub(crate) use way::{NO_WAY, canonical, no_way, way_to};
