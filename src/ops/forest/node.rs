//! The images of a forest, and their links.

use std::path::PathBuf;
use std::time::SystemTime;

use uuid::Uuid;

use crate::chain::FoundBy;
use crate::chain::recorded;
use crate::disk::Geometry;
use crate::error::Result;
use crate::image::{CheckpointMark, MergeMark, MergeRequest, ParentLink};

/// Identifies a node of one [`Forest`](super::Forest). Ids ascend in display order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) usize);

/// An image file.
#[derive(Debug)]
#[non_exhaustive]
pub struct Node {
    /// The path where the file was found.
    pub path: PathBuf,
    /// Other names of the same file.
    pub other_names: Vec<PathBuf>,
    /// Whether it lies outside the scanned places and was found as the parent of an image.
    pub is_outside: bool,
    /// The identity that its children record, if the headers could be read.
    pub data_write_guid: Option<Uuid>,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes that the file takes up on its volume, if the host can tell.
    pub allocated: Option<u64>,
    /// When the file was last written to, if the host can tell.
    pub modified: Option<SystemTime>,
    /// The volume that holds the file, if the host can tell.
    pub volume: Option<u64>,
    /// The facts read from the image, or the reason why it cannot be opened.
    pub image: Result<Image>,
    /// The link to its parent, for a differencing image that could be opened.
    pub link: Option<Link>,
    /// The images shown below it, ordered by file time, then by name. Every image is shown
    /// once: in a loop of parents, the first image by path is shown as a root.
    pub children: Vec<NodeId>,
    /// How many images are shown above it.
    pub depth: usize,
}

/// Facts read from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Image {
    /// Size and sector sizes of the virtual disk.
    pub geometry: Geometry,
    /// Size of a payload block in bytes.
    pub block_size: u32,
    /// The program that created the file, as recorded in it.
    pub creator: String,
    /// Whether the log is pending.
    pub is_log_pending: bool,
    /// Whether another program has the file open for writing.
    pub is_in_use: bool,
    /// The checkpoint that created the image, with the label of the point below it.
    pub checkpoint: Option<CheckpointMark>,
    /// The unfinished merge that involves the image, if any.
    pub merge: Option<MergeMark>,
    /// The request for a merge of the image into its parent, if there is one.
    pub merge_request: Option<MergeRequest>,
}

/// The link from a differencing image to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Link {
    /// The link as recorded in the child.
    pub recorded: ParentLink,
    /// The parent, if a file with the recorded identity was found.
    pub parent: Option<NodeId>,
    /// How the parent was found; `None` if by its identity alone, among the scanned files.
    pub found_by: Option<FoundBy>,
    /// Where the tried paths lead: files that the caller named, then recorded paths.
    pub leads: Vec<Lead>,
}

/// A path of a link and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lead {
    /// The kind of path.
    pub found_by: FoundBy,
    /// The path on this machine.
    pub path: PathBuf,
    /// What was found there.
    pub to: LeadsTo,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeadsTo {
    /// An image with the recorded identity.
    Parent(NodeId),
    /// An image in the scanned places with another identity, or with none that can be read.
    Other(NodeId),
    /// A file outside the scanned places that is not the parent. Nothing more is revealed about it, because its
    /// identity would allow others to link to it.
    Stranger,
    /// Nothing.
    Nothing,
    /// A file that the policy or the host does not allow to be read.
    Denied,
    /// A file that could not be opened for another reason.
    Failed,
}

impl NodeId {
    /// The node's index in display order, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

impl Node {
    /// The parent, if it was found.
    pub fn parent(&self) -> Option<NodeId> {
        self.link.as_ref()?.parent
    }
}

impl Link {
    /// The identities that the parent may have: one or two.
    pub fn expected(&self) -> Vec<Uuid> {
        [Some(self.recorded.linkage), self.recorded.linkage2].into_iter().flatten().collect()
    }

    /// The recorded paths as written in the child, in the order in which they are tried.
    pub fn recorded_paths(&self) -> impl Iterator<Item = &str> {
        recorded(&self.recorded).map(|(_, path)| path)
    }
}
