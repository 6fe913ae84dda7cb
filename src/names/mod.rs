//! Recorded paths: resolves them on this machine, creates them, and refuses unsafe ones.

mod recordable;
mod recorded;
pub(crate) mod unsafe_paths;

pub(crate) use recordable::{NO_RECORDABLE_PATH, canonical, no_recordable_path, recordable_path};
pub(crate) use recorded::{
    Listing, NameLookup, file_name, files_of, from_folder, list, matches, parts, rooted, same_name,
};
