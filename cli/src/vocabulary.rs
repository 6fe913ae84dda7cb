//! What the JSON of all verbs has in common. `docs/json.md` lists the names.

use std::path::Path;

use avhdx::ops::forest::NodeId;
use avhdx::{CheckpointMark, FoundBy, Layer, MergeMark, MergeState};
use serde::Serialize;
use uuid::Uuid;

use crate::text::utc;

/// A JSON object with a schema in `docs/schema`.
pub(crate) trait Answer: Serialize {
    /// The name and version of the schema, such as `avhdx.info/1`.
    const SCHEMA: &'static str;
}

/// An answer on one line.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Line<'a, T> {
    schema: &'static str,
    #[serde(flatten)]
    answer: &'a T,
}

/// A whole answer.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Document<'a, T> {
    schema: &'static str,
    #[serde(flatten)]
    answer: &'a T,
    /// The data lost in the repair that came before, with --accept-loss; left out without a repair.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_loss: Option<&'a AcceptedLoss>,
}

impl<'a, T: Answer> Line<'a, T> {
    pub(crate) fn of(answer: &'a T) -> Self {
        Self { schema: T::SCHEMA, answer }
    }
}

impl<'a, T: Answer> Document<'a, T> {
    pub(crate) fn of(answer: &'a T, accepted_loss: Option<&'a AcceptedLoss>) -> Self {
        Self { schema: T::SCHEMA, answer, accepted_loss }
    }
}

/// An image and its identity.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ImageRef {
    pub(crate) image: String,
    pub(crate) data_write_guid: Uuid,
}

impl From<&Layer> for ImageRef {
    fn from(layer: &Layer) -> Self {
        Self { image: layer.name.clone(), data_write_guid: layer.data_write_guid }
    }
}

/// The mark that a checkpoint leaves in the image it makes, about the point in time below.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CheckpointFacts {
    /// Empty without a label.
    pub(crate) label: String,
    /// When the checkpoint was taken.
    pub(crate) time: String,
}

impl From<&CheckpointMark> for CheckpointFacts {
    fn from(mark: &CheckpointMark) -> Self {
        Self { label: mark.label.clone(), time: utc(mark.time) }
    }
}

/// The mark of an unfinished merge.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MergeFacts {
    /// What the image is to the merge.
    pub(crate) state: MergeRole,
    /// The identity of the other image of the merge.
    pub(crate) other_data_write_guid: Uuid,
    /// The file name of the other image of the merge.
    pub(crate) other_name: String,
    /// Whether the merge frees data of the child before it ends.
    pub(crate) low_space: bool,
}

/// What an image is to an unfinished merge.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MergeRole {
    /// The child, whose data is being merged.
    Merging,
    /// The child, whose data is merged completely; the file is still to be removed.
    Spent,
    /// The parent, which is inconsistent without the child.
    Target,
    Other,
}

impl From<&MergeMark> for MergeFacts {
    fn from(mark: &MergeMark) -> Self {
        Self {
            state: match mark.state {
                MergeState::Merging => MergeRole::Merging,
                MergeState::Spent => MergeRole::Spent,
                MergeState::Target => MergeRole::Target,
                _ => MergeRole::Other,
            },
            other_data_write_guid: mark.other,
            other_name: mark.name.clone(),
            low_space: mark.low_space,
        }
    }
}

/// How a parent was found. Keys of the locator are spelled as the format has them.
#[derive(Clone, Copy, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FoundByName {
    /// By --with-parent.
    Given,
    #[serde(rename = "relative_path")]
    RelativePath,
    #[serde(rename = "volume_path")]
    VolumePath,
    #[serde(rename = "absolute_win32_path")]
    AbsoluteWin32Path,
    /// By its name in a folder of --parent-dir.
    FolderName,
    /// By its identity in a folder of --parent-dir.
    FolderSearch,
    /// By its identity among the images found.
    Identity,
    Other,
}

impl From<FoundBy> for FoundByName {
    fn from(by: FoundBy) -> Self {
        match by {
            FoundBy::Given => Self::Given,
            FoundBy::RelativePath => Self::RelativePath,
            FoundBy::VolumePath => Self::VolumePath,
            FoundBy::AbsoluteWin32Path => Self::AbsoluteWin32Path,
            FoundBy::FolderName => Self::FolderName,
            FoundBy::FolderSearch => Self::FolderSearch,
            _ => Self::Other,
        }
    }
}

/// The data lost in a repair, with --accept-loss.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct AcceptedLoss {
    /// The path of the file that lists the lost ranges.
    pub(crate) report: String,
    /// The number of bytes of the disk that are lost.
    pub(crate) bytes: u64,
    pub(crate) list: Vec<LostRange>,
}

/// A range of the disk that a repair changed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LostRange {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// What became of the range, such as `lost` or `shared`.
    pub(crate) what: &'static str,
    pub(crate) file_offset: u64,
}

/// A path as JSON shows it. Bytes that are not Unicode are replaced.
pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The numbers of images of a forest.
pub(crate) fn ids(nodes: &[NodeId]) -> Vec<usize> {
    nodes.iter().map(|id| id.index()).collect()
}
