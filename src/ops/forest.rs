//! The images found in folders, linked to their parents by identity, with everything that is wrong.
//!
//! Files are recognized by their signature, whatever their names, and parents by the identity that
//! their children recorded, wherever they lie. Files are opened one at a time, and none stays open.
//!
//! ```no_run
//! use avhdx::PathSource;
//! use avhdx::ops::forest::Forest;
//!
//! let forest = Forest::scan(["/mnt/vm"], &PathSource::new())?;
//! for (_, node) in forest.nodes() {
//!     println!("{:indent$}{}", "", node.path.display(), indent = 2 * node.depth);
//! }
//! for finding in forest.findings().iter().filter(|finding| finding.is_fault()) {
//!     println!("{finding:?}");
//! }
//! # Ok::<(), avhdx::Error>(())
//! ```

mod examine;
mod finding;
mod link;
mod node;
mod order;
mod trees;
mod walk;

use std::path::Path;

use crate::chain::PathSource;
use crate::error::Result;

pub use finding::ForestFinding;
pub use node::{Image, Lead, LeadsTo, Link, Node, NodeId};
pub use trees::Forest;

impl Forest {
    /// Finds all images in `places`, which are files or folders, including subfolders, and links them.
    ///
    /// The host is that of `parents`, which also says where else parents may be: files and folders that
    /// the caller names, path mappings, allowed folders. A parent that lies elsewhere but is found by its
    /// recorded path and has the recorded identity is part of the forest too.
    ///
    /// Symbolic links that lead out of the places are not followed, and temporary names of
    /// incomplete files are skipped. Folders and files that cannot be
    /// read become findings. Images are opened one after the other, without excluding writers.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if one of the places cannot be looked up.
    pub fn scan<P: AsRef<Path>>(
        places: impl IntoIterator<Item = P>,
        parents: &PathSource,
    ) -> Result<Self> {
        Self::found(walk::walk(parents.its_host(), places, &mut || Ok(()))?, parents)
    }

    /// The same, and calls `on` with the number of files looked into and their total.
    ///
    /// # Errors
    /// As for [`scan`](Self::scan); those of `on`.
    pub(super) fn scan_counted<P: AsRef<Path>>(
        places: &[P],
        parents: &PathSource,
        on: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<Self> {
        let total = walk::count(parents.its_host(), places)?;
        let mut done = 0;
        let mut each = || {
            on(done, total)?;
            // Files may have come since they were counted.
            done = total.min(done + 1);
            Ok(())
        };
        let found = walk::walk(parents.its_host(), places, &mut each)?;
        let forest = Self::found(found, parents)?;
        on(total, total)?;
        Ok(forest)
    }

    fn found(found: walk::Scanned, parents: &PathSource) -> Result<Self> {
        let linked = link::link(found, &parents.remembering());
        let mut forest = order::order_nodes(linked);
        examine::add_findings(&mut forest);
        Ok(forest)
    }
}
