//! What is known of an image and of the layers below it.

use avhdx::storage::{Host, LocalHost};
use avhdx::{BlockCounts, FoundBy, ImageInfo, Layer, VhdxFile};

use crate::failure::Failure;

/// The offsets of the two headers, [MS-VHDX] 2.2.
pub(crate) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// The offsets of the two region tables, [MS-VHDX] 2.2.
pub(crate) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];

/// A chain, as far as it could be followed.
#[derive(Debug)]
pub(crate) struct ChainReport {
    /// The layers to show, from the tip down.
    pub(crate) layers: Vec<LayerFacts>,
    /// The number of layers found.
    pub(crate) depth: usize,
    /// The parent of the tip, and how it was found.
    pub(crate) parent: Option<(String, Option<FoundBy>)>,
    /// Why the chain could not be followed to its base.
    pub(crate) broken: Option<Failure>,
}

#[derive(Debug)]
pub(crate) struct LayerFacts {
    pub(crate) layer: Layer,
    pub(crate) info: ImageInfo,
    /// The number of blocks in each state, or why they cannot be counted.
    pub(crate) blocks: Result<BlockCounts, String>,
    /// The space that the file takes on its volume, in bytes.
    pub(crate) allocated: Option<u64>,
    pub(crate) in_use: bool,
    /// Why the log could not be replayed.
    pub(crate) broken_log: Option<String>,
}

impl LayerFacts {
    pub(crate) fn of(layer: Layer, image: &VhdxFile, in_use: bool) -> Self {
        let stat = layer.path.as_deref().and_then(|path| LocalHost.stat(path).ok());
        Self {
            info: image.info(),
            blocks: image.count_blocks().map_err(|error| error.to_string()),
            allocated: stat.and_then(|stat| stat.allocated),
            in_use,
            broken_log: None,
            layer,
        }
    }
}

/// The type of an image.
pub(crate) fn kind(info: &ImageInfo) -> &'static str {
    match (info.has_parent, info.leave_blocks_allocated) {
        (true, _) => "differencing",
        (false, true) => "fixed",
        (false, false) => "dynamic",
    }
}

/// How a parent was found: the key of the locator, or the flag.
pub(crate) fn found_by(by: FoundBy) -> &'static str {
    match by {
        FoundBy::Given => "with-parent",
        FoundBy::RelativePath => "relative_path",
        FoundBy::VolumePath => "volume_path",
        FoundBy::AbsoluteWin32Path => "absolute_win32_path",
        FoundBy::FolderName => "parent-dir-name",
        FoundBy::FolderSearch => "parent-dir-identity",
        _ => "other",
    }
}

/// The number of blocks in each state, in the order of the states' values.
pub(crate) fn counts(blocks: &BlockCounts) -> [(&'static str, u64); 7] {
    [
        ("not_present", blocks.not_present),
        ("undefined", blocks.undefined),
        ("zero", blocks.zero),
        ("unmapped", blocks.unmapped),
        ("reserved", blocks.reserved),
        ("fully_present", blocks.fully_present),
        ("partially_present", blocks.partially_present),
    ]
}

/// The number of blocks with space in the file.
pub(crate) fn held(blocks: &BlockCounts) -> u64 {
    blocks.fully_present + blocks.partially_present
}
