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

mod judge;
mod link;
mod order;
mod walk;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use crate::chain::{FoundBy, PathSource};
use crate::disk::Geometry;
use crate::error::{Error, Result};
use crate::image::{CheckpointMark, MergeMark, ParentLink};

/// All images in some folders and their relations.
#[derive(Debug)]
pub struct Forest {
    /// In display order: each tree's root first, children below their parents.
    nodes: Vec<Node>,
    trees: Vec<NodeId>,
    findings: Vec<Finding>,
    children: HashMap<Uuid, Vec<NodeId>>,
}

/// Identifies a node of one [`Forest`]. Ids ascend in display order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

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

/// A fact about the forest worth reporting: a fault or a note.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finding {
    /// No file with the recorded identity was found, and no recorded path leads to a file.
    #[non_exhaustive]
    Orphan {
        /// The image whose parent is missing.
        child: NodeId,
        /// The identities that the parent may have: one or two.
        expected: Vec<Uuid>,
    },
    /// A recorded path leads to a file with another identity than recorded, and no other
    /// recorded path leads to the parent.
    #[non_exhaustive]
    BrokenLink {
        /// The image with the broken link.
        child: NodeId,
        /// The identities that the parent may have: one or two.
        expected: Vec<Uuid>,
        /// The file that the path leads to.
        leads_to: PathBuf,
        /// The node of that file, if it lies in the scanned places.
        node: Option<NodeId>,
        /// The identity found there. `None` for files outside the scanned places, whose identity is not
        /// revealed, and for files whose headers cannot be read.
        found: Option<Uuid>,
        /// Other files with an expected identity; the first is used as the parent.
        matches: Vec<NodeId>,
    },
    /// The parent was found by its identity alone: no recorded path leads to a file.
    #[non_exhaustive]
    StalePath {
        /// The image with the stale paths.
        child: NodeId,
        /// The files with an expected identity; the first is used as the parent.
        matches: Vec<NodeId>,
    },
    /// An image that cannot be opened because it is damaged or unsupported; its node has the reason.
    #[non_exhaustive]
    Damaged {
        /// The image.
        node: NodeId,
    },
    /// Images that are each other's ancestors, or an image that is its own.
    #[non_exhaustive]
    Loop {
        /// Each is the parent of the one before it, and the first is the parent of the last.
        nodes: Vec<NodeId>,
    },
    /// A child and a parent with different logical sector sizes, which the format does not allow.
    #[non_exhaustive]
    SectorSizes {
        /// The image above.
        child: NodeId,
        /// Its parent.
        parent: NodeId,
    },
    /// A folder or file that cannot be read. Images may be missing because of it.
    #[non_exhaustive]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        error: Error,
    },
    /// A file that is named as an image but lacks the signature.
    #[non_exhaustive]
    NoSignature {
        /// The file.
        path: PathBuf,
        /// The reason, including the actual format if it is recognized.
        error: Error,
    },
    /// An image that is being merged into its parent, or the parent if the child was not found. The
    /// node's merge mark says which.
    #[non_exhaustive]
    UnfinishedMerge {
        /// The child, or the parent where the child was not found.
        node: NodeId,
    },
    /// Several files with the same identity: copies, or images that diverged after copying.
    #[non_exhaustive]
    Duplicates {
        /// The identity.
        guid: Uuid,
        /// The files that have it.
        nodes: Vec<NodeId>,
        /// Those that a recorded path leads to.
        preferred: Vec<NodeId>,
    },
    /// A child and a parent on different volumes.
    #[non_exhaustive]
    Volumes {
        /// The image above.
        child: NodeId,
        /// Its parent.
        parent: NodeId,
    },
    /// A symbolic link that leads out of the scanned places and was not followed.
    #[non_exhaustive]
    LinkOutside {
        /// The link.
        path: PathBuf,
    },
}

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
        let found = walk::walk(parents.its_host(), places)?;
        let linked = link::link(found, &parents.remembering());
        let mut forest = order::grow(linked);
        judge::judge(&mut forest);
        Ok(forest)
    }

    /// All images, in order of ancestry: each tree's root first, children below their parents.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i), node))
    }

    /// Returns a node.
    ///
    /// # Panics
    /// May panic if `id` belongs to another forest.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The roots of the trees, ordered by path.
    pub fn trees(&self) -> &[NodeId] {
        &self.trees
    }

    /// The findings: faults first, each group in display order.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The labels that checkpoints gave to the point in time that the image `point` holds.
    pub fn labels(&self, point: NodeId) -> Vec<&str> {
        let children = self.node(point).children.iter().filter_map(|child| {
            let node = self.node(*child);
            Some(node.image.as_ref().ok()?.checkpoint.as_ref()?.label.as_str())
        });
        let mut labels: Vec<&str> = children.filter(|label| !label.is_empty()).collect();
        labels.dedup();
        labels
    }

    /// The images that record `data_write_guid` as their parent's identity, whether or not that parent was found.
    pub fn children_of(&self, data_write_guid: Uuid) -> impl Iterator<Item = NodeId> + '_ {
        self.children.get(&data_write_guid).into_iter().flatten().copied()
    }

    /// The layers of a disk, from `tip` down to the last image that was found. Stops before
    /// an image that occurred already.
    pub fn layers(&self, tip: NodeId) -> Vec<NodeId> {
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        let mut next = Some(tip);
        while let Some(id) = next.filter(|id| seen.insert(*id)) {
            layers.push(id);
            next = self.node(id).parent();
        }
        layers
    }
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
        self.recorded.recorded().map(|(_, path)| path)
    }
}

impl Finding {
    /// A short, stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Orphan { .. } => "orphan",
            Self::BrokenLink { .. } => "broken-link",
            Self::StalePath { .. } => "stale-path",
            Self::Damaged { .. } => "damaged",
            Self::Loop { .. } => "loop",
            Self::SectorSizes { .. } => "sector-sizes",
            Self::Unreadable { .. } => "unreadable",
            Self::NoSignature { .. } => "no-signature",
            Self::UnfinishedMerge { .. } => "unfinished-merge",
            Self::Duplicates { .. } => "duplicates",
            Self::Volumes { .. } => "volumes",
            Self::LinkOutside { .. } => "link-outside",
        }
    }

    /// Whether it is a fault, as opposed to a note.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Duplicates { .. } | Self::Volumes { .. } | Self::LinkOutside { .. })
    }

    /// The image concerned, or the first of several.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Orphan { child, .. }
            | Self::BrokenLink { child, .. }
            | Self::StalePath { child, .. }
            | Self::SectorSizes { child, .. }
            | Self::Volumes { child, .. } => Some(*child),
            Self::Damaged { node } | Self::UnfinishedMerge { node } => Some(*node),
            Self::Loop { nodes } | Self::Duplicates { nodes, .. } => nodes.first().copied(),
            Self::Unreadable { .. } | Self::NoSignature { .. } | Self::LinkOutside { .. } => None,
        }
    }
}
