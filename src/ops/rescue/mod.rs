//! Reads as much as can be read of a ruined image, or of a chain with a missing or damaged parent.

mod anatomy;
mod careful;
mod grade;
mod items;
mod layer;
mod open;
mod parents;
mod partitions;
mod place;
mod ruin;
mod settle;
mod shape;
mod signs;

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::image::{lock, open_storage};
use crate::options::OpenOptions;
use crate::storage::{Access, LockMode, Storage};
use crate::trace::operation;

pub use grade::{Grade, Piece, Trace};
pub use place::Placement;
pub use ruin::{Loose, Pieces, Ruin};

use shape::Given;

/// Reads what is left of an image whose structures are damaged, whose file was cut, or whose parent is missing.
///
/// Structures that their places do not have are looked for by their signatures. The block allocation table has none: where the region
/// tables are gone, it is the place whose entries make sense together. What may have been old, or something else, is never taken
/// for certain: each part of the disk has a [`Grade`].
///
/// Reading changes no file. A log is replayed in memory.
///
/// ```no_run
/// use avhdx::ops::{Grade, Rescue};
///
/// let ruin = Rescue::new().open("web.vhdx")?;
/// for piece in ruin.pieces().filter(|piece| piece.grade != Grade::Sure) {
///     println!("{:?}: {}, {}", piece.range, piece.grade.name(), piece.evidence);
/// }
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Rescue {
    options: OpenOptions,
    given: Given,
}

impl Rescue {
    /// Works on an image of this machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// How to open the files, and where parents are. With [`Linkage::Ignore`](crate::Linkage::Ignore), a parent whose
    /// identity is another or lost is used, and what it has is guessed.
    pub fn options(mut self, options: OpenOptions) -> Self {
        self.options = options;
        self
    }

    /// The size of the disk in bytes, whatever the image says.
    pub fn size(mut self, bytes: u64) -> Self {
        self.given.size = Some(bytes);
        self
    }

    /// The size of the image's blocks in bytes, whatever the image says.
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.given.block_size = Some(bytes);
        self
    }

    /// The sector size of the disk in bytes, whatever the image says.
    pub fn sector_size(mut self, bytes: u32) -> Self {
        self.given.sector = Some(bytes);
        self
    }

    /// Reads the image at `path`, and finds its parents as far as they are there.
    ///
    /// # Errors
    /// [`ErrorKind::NotVhdx`](crate::ErrorKind::NotVhdx) if the file has no structure of an image;
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) if nothing tells the size of the disk, until it is given;
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for sizes that the format does not have;
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the file cannot be opened;
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Ruin> {
        let path = path.as_ref();
        let _span = operation("rescue", &path.to_string_lossy());
        self.open_file(open_storage(self.options.host_used().as_ref(), path, Access::Read)?)
    }

    /// Reads the image in `storage`.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_file(&self, storage: Arc<dyn Storage>) -> Result<Ruin> {
        self.given.check()?;
        let name = storage.name().to_owned();
        let policy = self.options.policies().0.lock;
        lock(storage.as_ref(), policy, LockMode::Shared, &mut Vec::new())
            .map_err(|error| error.in_file(&name))?;
        let first = open::open(storage, &self.given).map_err(|error| error.in_file(&name))?;
        let mut seen = Vec::new();
        let guid = first.anatomy.header.as_ref().map(|header| header.data_write_guid);
        // It is the first, so that it is not there yet.
        drop(parents::remember(&mut seen, &first, guid.unwrap_or_default()));
        let mut layers = vec![first];
        let missing = loop {
            match parents::below(&self.options, &layers, &mut seen) {
                Ok(Some(parent)) => layers.push(parent),
                Ok(None) => break None,
                Err(why) => break Some(why),
            }
        };
        Ok(Ruin { layers, missing })
    }
}
