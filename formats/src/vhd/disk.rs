//! The disk of an image and its parents.

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use avhdx::storage::FileId;
use avhdx::{Disk, Error, Extent, FileOffset, Geometry, LayerId, Result, Source};
use uuid::Uuid;

use super::footer::{Kind, time};
use super::layer::{Found, Layer};

/// The disk of a VHD image, for reading: of a differencing one, together with its parents. Made by
/// [`OpenOptions`](super::OpenOptions).
#[derive(Debug)]
pub struct VhdDisk {
    /// The image, then its parents.
    layers: Vec<Layer>,
    warnings: Vec<Warning>,
}

/// What an image records of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VhdImage {
    /// Identifies its data in extents.
    pub layer: LayerId,
    /// The name of the file in errors.
    pub name: String,
    /// The path of the file, if it has one.
    pub path: Option<PathBuf>,
    /// The kind.
    pub kind: Kind,
    /// The identity, by which children know it. Its bytes are in the order in which the file has them.
    pub id: Uuid,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that the disk had when it was made.
    pub original_size: u64,
    /// Bytes of a block; `None` for a fixed image.
    pub block_size: Option<u32>,
    /// When it was made.
    pub created: SystemTime,
    /// The four letters of the program that made it, such as `win ` for Hyper-V and `vpc ` for Virtual PC.
    pub creator: [u8; 4],
    /// The recorded identity of the parent.
    pub parent_id: Option<Uuid>,
    /// The recorded paths of the parent: from the folder of the image, on the machine that made it, its name.
    pub parent_paths: Vec<String>,
}

/// What is odd about an image, though it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warning {
    /// A short, stable name of the exact finding, such as `vhd.parent-changed`.
    pub code: &'static str,
    /// The file concerned.
    pub file: String,
    /// What is odd, without the file's name.
    pub message: String,
}

impl VhdDisk {
    pub(super) fn of(layers: Vec<Layer>, changed: Vec<Warning>) -> Self {
        let odd = layers.iter().flat_map(Warning::of);
        let warnings = odd.chain(changed).collect();
        Self { layers, warnings }
    }

    /// Bytes of the disk. The current size of the footer counts, never the geometry.
    pub fn size(&self) -> u64 {
        self.layers[0].footer.size
    }

    /// What the images record: of the one that was opened, then of its parents.
    pub fn images(&self) -> impl Iterator<Item = VhdImage> + '_ {
        self.layers.iter().map(VhdImage::of)
    }

    /// What is odd about the images.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Finds the bytes at the start of a range that is not empty: the layer and the place there, or zeros.
    fn find(&self, range: Range<u64>) -> Result<(u64, Option<(&Layer, u64)>)> {
        let mut end = range.end;
        for layer in &self.layers {
            // A parent may be shorter than its child.
            if range.start >= layer.footer.size {
                continue;
            }
            let (until, found) = layer.find(range.start..end.min(layer.footer.size))?;
            end = until;
            match found {
                Found::Data(at) => return Ok((end, Some((layer, at)))),
                Found::Zeros => return Ok((end, None)),
                Found::Below => {}
            }
        }
        Ok((end, None))
    }
}

impl VhdImage {
    pub(super) fn of(layer: &Layer) -> Self {
        let parent = layer.blocks.as_ref().and_then(|blocks| blocks.header.parent.as_ref());
        let paths = parent.into_iter().flat_map(|parent| {
            let name = Some(&parent.name).filter(|name| !name.is_empty());
            [parent.relative_path.as_ref(), parent.absolute_path.as_ref(), name]
        });
        Self {
            layer: layer.id,
            name: layer.storage.name().to_owned(),
            path: layer.storage.path().map(Path::to_path_buf),
            kind: layer.footer.kind,
            id: layer.footer.id,
            size: layer.footer.size,
            original_size: layer.footer.original_size,
            block_size: layer.blocks.as_ref().map(|blocks| blocks.header.block_size),
            created: time(layer.footer.stamp),
            creator: layer.footer.creator,
            parent_id: parent.map(|parent| parent.id),
            parent_paths: paths.flatten().cloned().collect(),
        }
    }
}

impl Warning {
    pub(super) fn of(layer: &Layer) -> impl Iterator<Item = Self> + '_ {
        layer.oddities.iter().map(|(code, message)| Self {
            code,
            file: layer.storage.name().to_owned(),
            message: message.clone(),
        })
    }
}

impl Disk for VhdDisk {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.size(), 512, 512)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let (end, found) = self.find(offset..offset + buf.len() as u64)?;
            let (now, rest) = buf.split_at_mut((end - offset) as usize);
            match found {
                None => now.fill(0),
                Some((layer, at)) => layer.storage.read_exact_at(now, at).map_err(|error| {
                    let name = layer.storage.name();
                    Error::from(shorter(error)).in_file(name).at(at)
                })?,
            }
            (buf, offset) = (rest, end);
        }
        Ok(())
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<()> {
        let total = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.geometry().check_range(offset, total)?;
        for buf in bufs {
            self.read_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.geometry().check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let (end, found) = self.find(range.clone())?;
        let source = match found {
            Some((layer, at)) => Source::Data { layer: layer.id, at: FileOffset::new(at) },
            None => Source::Zero { layer: None },
        };
        Ok(Some(Extent { range: range.start..end, source }))
    }

    fn files(&self) -> Vec<FileId> {
        self.layers.iter().filter_map(|layer| layer.storage.id().ok().flatten()).collect()
    }
}

/// Says what the end of a file within an image means.
fn shorter(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            io::Error::new(error.kind(), "the file became shorter since it was opened")
        }
        _ => error,
    }
}
