//! What may be wrong in a forest.

use std::path::PathBuf;

use uuid::Uuid;

use super::node::NodeId;
use crate::error::Error;

/// A fact about the forest worth reporting: a fault or a note.
#[derive(Debug)]
#[non_exhaustive]
pub enum ForestFinding {
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

impl ForestFinding {
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
