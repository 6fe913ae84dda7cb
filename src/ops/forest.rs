//! The forest of checkpoints in folders: every image found, linked by identity, and what is wrong.
//!
//! Files are known by their signature, whatever they are called, and parents by the identity that
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

/// All images below some folders, and how they hang together.
#[derive(Debug)]
pub struct Forest {
    /// In the order in which they are drawn.
    nodes: Vec<Node>,
    trees: Vec<NodeId>,
    findings: Vec<Finding>,
    children: HashMap<Uuid, Vec<NodeId>>,
}

/// Names a node of one [`Forest`]. Nodes count up in the order in which they are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// An image file.
#[derive(Debug)]
#[non_exhaustive]
pub struct Node {
    /// Where the file was found.
    pub path: PathBuf,
    /// Other names of the same file that were found.
    pub other_names: Vec<PathBuf>,
    /// Whether it lies outside the scanned places, and was found as the parent of another.
    pub is_outside: bool,
    /// The identity that its children record, where the headers could be read.
    pub data_write_guid: Option<Uuid>,
    /// Length of the file in bytes.
    pub file_len: u64,
    /// Bytes that the file takes up on its volume, where the host tells.
    pub allocated: Option<u64>,
    /// When the file was last written to, where the host tells.
    pub modified: Option<SystemTime>,
    /// The volume that it lies on, where the host tells.
    pub volume: Option<u64>,
    /// What the image says of itself, or why it cannot be opened.
    pub image: Result<Image>,
    /// Where it hangs in the forest, for a differencing image that could be opened.
    pub link: Option<Link>,
    /// The images drawn below it, in the order of their file times, then by name. Every image is drawn
    /// once: where parents lead round in a loop, the loop's first image is drawn as a root.
    pub children: Vec<NodeId>,
    /// How many images are drawn above it.
    pub depth: usize,
}

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Image {
    /// Size and sector sizes of the virtual disk.
    pub geometry: Geometry,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// The program that made the file, as it named itself.
    pub creator: String,
    /// Whether a log waits to be replayed.
    pub is_log_pending: bool,
    /// Whether another program holds the file for writing.
    pub is_in_use: bool,
    /// What the point in time below the image is called, where a checkpoint made the image.
    pub checkpoint: Option<CheckpointMark>,
    /// The merge that concerns the image, where one is not over.
    pub merge: Option<MergeMark>,
}

/// The link from a differencing image to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Link {
    /// What the child recorded.
    pub recorded: ParentLink,
    /// The parent, where a file with the recorded identity was found.
    pub parent: Option<NodeId>,
    /// What led to the parent; `None` where its identity alone did, among the scanned files.
    pub found_by: Option<FoundBy>,
    /// Where the paths that were tried lead: files that the caller named, then recorded paths.
    pub leads: Vec<Lead>,
}

/// Where one path of a link leads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lead {
    /// Which of the paths it is.
    pub found_by: FoundBy,
    /// The path on this machine.
    pub path: PathBuf,
    /// What is there.
    pub to: LeadsTo,
}

/// What is found where a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeadsTo {
    /// An image with the recorded identity.
    Parent(NodeId),
    /// An image of the scanned places that has another identity, or none that can be read.
    Other(NodeId),
    /// A file outside the scanned places that is not the parent. Nothing else is told of it: its
    /// identity, for one, is what keeps strangers from linking to it.
    Stranger,
    /// Nothing.
    Nothing,
    /// A file that policy or host do not let us read.
    Denied,
    /// A file that could not be opened for another reason.
    Failed,
}

/// Something about the forest that its user should hear of.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finding {
    /// No file with the recorded identity was found, and no recorded path leads to a file.
    #[non_exhaustive]
    Orphan {
        /// The image without its parent.
        child: NodeId,
        /// The identities that the parent may have: one or two.
        expected: Vec<Uuid>,
    },
    /// A recorded path leads to a file, but to one with another identity than recorded; no other
    /// recorded path is right.
    #[non_exhaustive]
    BrokenLink {
        /// The image whose link it is.
        child: NodeId,
        /// The identities that the parent may have: one or two.
        expected: Vec<Uuid>,
        /// The file that the path leads to.
        leads_to: PathBuf,
        /// The same as a node, where it lies in the scanned places.
        node: Option<NodeId>,
        /// The identity found there. `None` for files outside the scanned places, whose identity is not
        /// shown, and for files whose headers cannot be read.
        found: Option<Uuid>,
        /// Other files with an expected identity; the first is taken for the parent.
        matches: Vec<NodeId>,
    },
    /// The parent was found by its identity alone: no recorded path leads anywhere.
    #[non_exhaustive]
    StalePath {
        /// The image whose link it is.
        child: NodeId,
        /// The files with an expected identity; the first is taken for the parent.
        matches: Vec<NodeId>,
    },
    /// An image that cannot be opened, damaged or of a kind unknown; its node says why.
    #[non_exhaustive]
    Damaged {
        /// The image.
        node: NodeId,
    },
    /// Images that are each other's ancestors, or one that is its own.
    #[non_exhaustive]
    Loop {
        /// Each the parent of the one before, and the first that of the last.
        nodes: Vec<NodeId>,
    },
    /// A link between disks of different logical sector sizes, which no chain can have.
    #[non_exhaustive]
    SectorSizes {
        /// The image above.
        child: NodeId,
        /// Its parent.
        parent: NodeId,
    },
    /// A folder or file that cannot be read, so that images may be missing here.
    #[non_exhaustive]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        error: Error,
    },
    /// A file with the name of an image and without the signature of one.
    #[non_exhaustive]
    NoSignature {
        /// The file.
        path: PathBuf,
        /// The refusal to open it, which says what it is where its bytes tell.
        error: Error,
    },
    /// An image that is being merged into its parent, or that is the parent alone of one that was not found. The
    /// mark of its node says which.
    #[non_exhaustive]
    UnfinishedMerge {
        /// The child, or the parent where the child was not found.
        node: NodeId,
    },
    /// Several files with one identity: copies, or images that went different ways since.
    #[non_exhaustive]
    Duplicates {
        /// The identity.
        guid: Uuid,
        /// The files that have it.
        nodes: Vec<NodeId>,
        /// Those of them that a recorded path leads to.
        preferred: Vec<NodeId>,
    },
    /// A link between files on different volumes.
    #[non_exhaustive]
    Volumes {
        /// The image above.
        child: NodeId,
        /// Its parent.
        parent: NodeId,
    },
    /// A symbolic link out of the scanned places, which was not followed.
    #[non_exhaustive]
    LinkOutside {
        /// The link.
        path: PathBuf,
    },
}

impl Forest {
    /// Finds all images in `places`, files or folders and what lies below them, and links them.
    ///
    /// The host is that of `parents`, which also says where else parents may be: files and folders that
    /// the caller names, path mappings, confines. A parent that lies elsewhere but is found by its
    /// recorded path, and has the recorded identity, is part of the forest too.
    ///
    /// Symbolic links below the places are not followed out of them, and temporary names of files that are
    /// not complete are passed over. Folders and files that cannot be
    /// read become findings. Images are opened one after the other, without keeping writers away.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when the host does not know one of the places.
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

    /// A node.
    ///
    /// # Panics
    /// When the name is that of another forest's node, and this one has not so many.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The roots of the trees, in the order of their paths.
    pub fn trees(&self) -> &[NodeId] {
        &self.trees
    }

    /// What is to be said of the forest: faults first, in order of ancestry.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What the point in time that an image is was called by the checkpoints that were made of it.
    pub fn labels(&self, point: NodeId) -> Vec<&str> {
        let children = self.node(point).children.iter().filter_map(|child| {
            let node = self.node(*child);
            Some(node.image.as_ref().ok()?.checkpoint.as_ref()?.label.as_str())
        });
        let mut labels: Vec<&str> = children.filter(|label| !label.is_empty()).collect();
        labels.dedup();
        labels
    }

    /// The images whose parent is one with this identity, whether or not that is in the forest.
    pub fn children_of(&self, data_write_guid: Uuid) -> impl Iterator<Item = NodeId> + '_ {
        self.children.get(&data_write_guid).into_iter().flatten().copied()
    }

    /// The images that a disk is made of, from `tip` down to the last one that was found. Ends before
    /// an image that came already.
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
    /// The node's place in the order of the forest, from 0.
    pub fn index(self) -> usize {
        self.0
    }
}

impl Node {
    /// The parent, where it was found.
    pub fn parent(&self) -> Option<NodeId> {
        self.link.as_ref()?.parent
    }
}

impl Link {
    /// The identities that the parent may have: one or two.
    pub fn expected(&self) -> Vec<Uuid> {
        [Some(self.recorded.linkage), self.recorded.linkage2].into_iter().flatten().collect()
    }

    /// The recorded paths as they stand in the child, in the order in which they are tried.
    pub fn recorded_paths(&self) -> impl Iterator<Item = &str> {
        self.recorded.recorded().map(|(_, path)| path)
    }
}

impl Finding {
    /// A short, stable name.
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

    /// Whether something is wrong or unknown, rather than merely worth knowing.
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Duplicates { .. } | Self::Volumes { .. } | Self::LinkOutside { .. })
    }

    /// The image that the finding is of, or the first of several.
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
