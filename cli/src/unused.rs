//! What an image holds of the space that the file systems inside its disk do not use.

use std::ops::Range;
use std::sync::Arc;

use avhdx::{DiffChain, Disk, Source, VhdxFile};
use avhdx_files::{Content, ErrorKind, Volume, Volumes};
use serde::Serialize;

use crate::failure::Failure;

/// Whole blocks of some size of which an image holds a part, by itself.
pub(crate) struct Held<'a> {
    image: &'a VhdxFile,
    block: u64,
    pub(crate) bytes: u64,
    ranges: Vec<Range<u64>>,
}

impl<'a> Held<'a> {
    pub(crate) fn new(image: &'a VhdxFile, block: u64) -> Self {
        Self { image, block, bytes: 0, ranges: Vec::new() }
    }

    /// Adds the blocks that lie within a range of the disk. One that ends with the disk is whole.
    pub(crate) fn add(&mut self, range: &Range<u64>) -> avhdx::Result<()> {
        let size = self.image.geometry().size;
        let end = if range.end == size { size } else { range.end / self.block * self.block };
        let mut at = range.start.next_multiple_of(self.block);
        while at < end {
            let Some(extent) = self.image.next_extent(at..end)? else { break };
            at = match extent.source {
                Source::Data { .. } => {
                    let first = extent.range.start / self.block * self.block;
                    let last = extent.range.end.next_multiple_of(self.block);
                    self.bytes += last - first;
                    match self.ranges.last_mut() {
                        Some(before) if before.end == first => before.end = last.min(size),
                        _ => self.ranges.push(first..last.min(size)),
                    }
                    last
                }
                Source::Zero { .. } | Source::Parent => extent.range.end,
            };
        }
        Ok(())
    }
}

/// What an image holds of the space that the file systems of its disk do not use.
pub(crate) struct Unused {
    /// Whole blocks that the image holds, in ranges of the disk.
    pub(crate) ranges: Vec<Range<u64>>,
    pub(crate) volumes: Vec<VolumeUnused>,
}

/// What the image holds of the space of a volume that its file system does not use.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct VolumeUnused {
    /// The number in the partition table; null for a disk without one.
    pub(crate) number: Option<u32>,
    /// The kind of file system, such as `NTFS`.
    pub(crate) file_system: String,
    /// In whole blocks; null if the volume is left alone.
    pub(crate) held: Option<u64>,
    /// Why the volume is left alone; null if it is not.
    pub(crate) left_alone: Option<String>,
}

impl Unused {
    /// Looks at the volume that the selector means, or at all that can be read. Nobody may write to the disk meanwhile.
    ///
    /// # Errors
    /// If it is not certain what a file system does not use.
    pub(crate) fn of(chain: &DiffChain, selector: Option<&str>) -> Result<Self, Failure> {
        avhdx_files::silence_caught_panics();
        let image = chain.tip();
        let disk: Arc<dyn Disk> = Arc::new(chain.clone());
        let volumes = Volumes::of(disk)?;
        let chosen = match selector {
            Some(selector) => vec![volumes.select(Some(selector))?],
            None => volumes.iter().collect(),
        };
        let mut unused = Self { ranges: Vec::new(), volumes: Vec::new() };
        for volume in chosen {
            let row = unused.add(volume, &image, selector.is_some())?;
            unused.volumes.push(row);
        }
        Ok(unused)
    }

    fn add(
        &mut self,
        volume: &Volume,
        image: &VhdxFile,
        is_asked_for: bool,
    ) -> Result<VolumeUnused, Failure> {
        let mut row = VolumeUnused {
            number: volume.number(),
            file_system: volume.content().to_string(),
            held: None,
            left_alone: None,
        };
        if !volume.is_readable() && !is_asked_for {
            row.left_alone = Some(match volume.content() {
                Content::Empty => "it has no file system".into(),
                Content::Unknown => "it has no file system of a known kind".into(),
                _ => "it is not read".into(),
            });
            return Ok(row);
        }
        let tree = match volume.open() {
            Err(error) if error.kind() == ErrorKind::Unsupported && !is_asked_for => {
                row.left_alone = Some(error.message().to_owned());
                return Ok(row);
            }
            opened => opened?,
        };
        row.file_system = tree.kind().to_owned();
        let mut held = Held::new(image, image.block_size().into());
        let mut failed = Ok(());
        tree.verified_free(&mut |range| {
            if failed.is_ok() {
                failed = held.add(&range);
            }
        })?;
        failed?;
        row.held = Some(held.bytes);
        self.ranges.append(&mut held.ranges);
        Ok(row)
    }
}

impl VolumeUnused {
    /// The volume in words.
    pub(crate) fn name(&self) -> String {
        self.number.map_or("the disk".into(), |number| format!("partition {number}"))
    }
}
