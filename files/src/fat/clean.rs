//! Whether it is certain which clusters nothing uses.

use super::entries::Parsed;
use super::{FOLDER, Fat, Node, Width, circle};
use crate::boundary::{u16_at, u32_at};
use crate::error::{Error, Result};

/// The bits of the second entry of the table: nobody has the volume in use, and nothing failed to be read or written.
const CLEAN_16: u16 = 0xC000;
const CLEAN_32: u32 = 0x0C00_0000;
/// The bits of the boot sector that say the opposite.
const DIRTY: u8 = 0x03;
/// Bytes of a table that are compared at once.
const PIECE: u64 = 64 << 10;

impl Fat {
    pub(super) fn check_closed(&self) -> Result<()> {
        let shape = &self.shape;
        let state = match shape.width {
            Width::Fat12 | Width::Fat16 => 37,
            Width::Fat32 => 65,
        };
        let is_dirty = shape.bytes.read(state, 1)?[0] & DIRTY != 0;
        let is_clean = match shape.width {
            // Without such bits.
            Width::Fat12 => true,
            Width::Fat16 => {
                u16_at(&shape.bytes.read(shape.table + 2, 2)?, 0) & CLEAN_16 == CLEAN_16
            }
            Width::Fat32 => {
                u32_at(&shape.bytes.read(shape.table + 4, 4)?, 0) & CLEAN_32 == CLEAN_32
            }
        };
        if is_dirty || !is_clean {
            let place = if is_dirty { "its boot sector" } else { "its table" };
            let message = format!("the file system is marked as dirty in {place}");
            return Err(Error::unclean("unclean.fat", message));
        }
        Ok(())
    }

    /// Refuses a volume whose tables differ, or of which a file or folder has a free cluster or too few of them.
    pub(super) fn check_chains(&self) -> Result<()> {
        self.check_copies()?;
        let shape = &self.shape;
        // Each cluster is of one file.
        let mut left = u64::from(shape.end - 2);
        let mut folders = vec![self.root_node()];
        if shape.width == Width::Fat32 {
            self.check_chain(shape.root_cluster, 0, &mut left)?;
        }
        while let Some(folder) = folders.pop() {
            for parsed in self.parsed(&folder)? {
                let Parsed::Entry { name, attributes, first, size, .. } = parsed else { continue };
                let is_folder = attributes & FOLDER != 0;
                let least = if is_folder { 1 } else { size.into() };
                let done = match (first, least) {
                    (0, 0) => Ok(()),
                    _ => self.check_chain(first, least, &mut left),
                };
                done.map_err(|error| error.at_path(&name))?;
                if is_folder {
                    folders.push(Node::Cluster { first, size: 0, is_root: false });
                }
            }
        }
        Ok(())
    }

    /// Follows a chain to its end: each cluster is one in use, and they have as many bytes as they need.
    fn check_chain(&self, first: u32, least: u64, left: &mut u64) -> Result<()> {
        let shape = &self.shape;
        let (mut cluster, mut held) = (first, 0);
        loop {
            shape.check(cluster)?;
            *left = left.checked_sub(1).ok_or_else(|| circle(first))?;
            held += shape.cluster;
            match shape.next(cluster)? {
                Some(next) => cluster = next,
                None if held >= least => return Ok(()),
                None => {
                    let message =
                        format!("the file has {least} bytes, and its clusters only {held}");
                    return Err(Error::damaged("fat.short", message));
                }
            }
        }
    }

    fn check_copies(&self) -> Result<()> {
        let shape = &self.shape;
        let (copies, len) = &shape.copies;
        // The first two entries are of no cluster.
        let start = match shape.width {
            Width::Fat12 => 3,
            Width::Fat16 => 4,
            Width::Fat32 => 8,
        };
        for copy in copies {
            for at in (start..*len).step_by(PIECE as usize) {
                let count = (len - at).min(PIECE) as usize;
                if shape.bytes.read(shape.table + at, count)?
                    != shape.bytes.read(copy + at, count)?
                {
                    let message = format!("the copies of the table differ behind their byte {at}");
                    return Err(Error::damaged("fat.copies", message));
                }
            }
        }
        Ok(())
    }
}
