//! Places in files.

use std::sync::Arc;

use avhdx::storage::Storage;

/// A run of bytes of a file, and where they are in a buffer.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub struct FilePlace {
    pub storage: Arc<dyn Storage>,
    pub at: u64,
    pub from: usize,
    pub len: usize,
}
