//! The forest as JSON: `avhdx.tree/1`.

use avhdx::ops::forest::{ForestFinding, Lead, LeadsTo, Link, Node, NodeId};
use serde::Serialize;
use uuid::Uuid;

use super::names::Names;
use super::tips::{Tip, tips};
use crate::failure::ErrorFacts;
use crate::text::utc;
use crate::vocabulary::{Answer, CheckpointFacts, FoundByName, MergeFacts, ids, shown};

/// The whole forest. Images refer to each other by their numbers.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct TreeAnswer {
    /// The folders and images that were searched.
    places: Vec<String>,
    /// The number of findings that are faults.
    faults: usize,
    images: Vec<TreeImage>,
    /// The images without a parent among the images.
    root_ids: Vec<usize>,
    tips: Vec<TreeTip>,
    findings: Vec<TreeFinding>,
}

impl Answer for TreeAnswer {
    const SCHEMA: &'static str = "avhdx.tree/1";
}

/// An image. What cannot be read of it is null.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TreeImage {
    /// The number of the image, which is its place in the list.
    id: usize,
    image: String,
    /// Further names of the same file.
    other_names: Vec<String>,
    /// Whether the file lies outside the places.
    outside: bool,
    /// The number of images below it, down to its root.
    level: usize,
    parent_id: Option<usize>,
    child_ids: Vec<usize>,
    data_write_guid: Option<Uuid>,
    virtual_size: Option<u64>,
    logical_sector_size: Option<u32>,
    physical_sector_size: Option<u32>,
    block_size: Option<u32>,
    file_size: u64,
    /// The space that the file takes on its volume.
    file_allocated: Option<u64>,
    /// When the file was last written.
    modified: Option<String>,
    /// The number of the volume.
    volume: Option<u64>,
    creator: Option<String>,
    log_pending: Option<bool>,
    in_use: Option<bool>,
    /// The labels of the point in time that the image holds; its children have them.
    labels: Vec<String>,
    /// Null unless a checkpoint made the image.
    checkpoint: Option<CheckpointFacts>,
    /// Null unless a merge is unfinished.
    merge: Option<MergeFacts>,
    /// Null without a parent.
    link: Option<TreeLink>,
    error: Option<ErrorFacts>,
}

/// What an image records of its parent, and what was found of that.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TreeLink {
    parent_linkage: Uuid,
    parent_linkage2: Option<Uuid>,
    relative_path: Option<String>,
    volume_path: Option<String>,
    absolute_win32_path: Option<String>,
    /// Null if the parent was not found.
    found_by: Option<FoundByName>,
    /// The files that were tried.
    leads: Vec<TreeLead>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TreeLead {
    found_by: FoundByName,
    file: String,
    /// What is there: `parent`, `other`, `stranger`, `nothing`, `denied` or `failed`.
    leads_to: &'static str,
    image_id: Option<usize>,
}

/// An image without children.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TreeTip {
    image_id: usize,
    /// Whether the disk can be read.
    complete: bool,
    /// Why it cannot.
    broken: Option<String>,
    /// From the tip down.
    layer_ids: Vec<usize>,
    /// The layers with a pending log.
    log_pending_ids: Vec<usize>,
    /// The parents that need --with-parent.
    with_parent_ids: Vec<usize>,
    volumes: Vec<u64>,
    /// Commands that go on from here; none for a healthy tip.
    next: Vec<String>,
}

/// A finding; what does not apply is left out.
#[derive(Debug, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TreeFinding {
    code: &'static str,
    /// Whether it is a fault, not a note.
    fault: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_ids: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<usize>,
    /// A file that is not among the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_write_guid: Option<Uuid>,
    /// The identities that the parent may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<Vec<Uuid>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leads_to: Option<LedTo>,
    /// The images with an expected identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    match_ids: Option<Vec<usize>>,
    /// Those among several images of an identity that recorded paths lead to.
    #[serde(skip_serializing_if = "Option::is_none")]
    preferred_ids: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorFacts>,
}

/// The file that a link leads to, instead of the parent.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LedTo {
    file: String,
    /// Null if it is not among the images.
    image_id: Option<usize>,
    /// Null if it has none, or is not among the images.
    data_write_guid: Option<Uuid>,
}

impl TreeAnswer {
    pub(super) fn of(names: &Names<'_>) -> Self {
        let forest = names.forest;
        Self {
            places: names.places.iter().map(|place| shown(place)).collect(),
            faults: forest.findings().iter().filter(|finding| finding.is_fault()).count(),
            images: forest.nodes().map(|(id, node)| TreeImage::of(names, id, node)).collect(),
            root_ids: ids(forest.trees()),
            tips: tips(names).iter().map(|tip| TreeTip::of(names, tip)).collect(),
            findings: forest.findings().iter().map(TreeFinding::of).collect(),
        }
    }
}

impl TreeImage {
    fn of(names: &Names<'_>, id: NodeId, node: &Node) -> Self {
        let facts = node.image.as_ref().ok();
        Self {
            id: id.index(),
            image: shown(&node.path),
            other_names: node.other_names.iter().map(|name| shown(name)).collect(),
            outside: node.is_outside,
            level: node.depth,
            parent_id: node.parent().map(NodeId::index),
            child_ids: ids(&node.children),
            data_write_guid: node.data_write_guid,
            virtual_size: facts.map(|facts| facts.geometry.size),
            logical_sector_size: facts.map(|facts| facts.geometry.logical_sector),
            physical_sector_size: facts.map(|facts| facts.geometry.physical_sector),
            block_size: facts.map(|facts| facts.block_size),
            file_size: node.file_len,
            file_allocated: node.allocated,
            modified: node.modified.map(utc),
            volume: node.volume,
            creator: facts.map(|facts| facts.creator.clone()),
            log_pending: facts.map(|facts| facts.is_log_pending),
            in_use: facts.map(|facts| facts.is_in_use),
            labels: names.forest.labels(id).into_iter().map(str::to_owned).collect(),
            checkpoint: facts
                .and_then(|facts| facts.checkpoint.as_ref())
                .map(CheckpointFacts::from),
            merge: facts.and_then(|facts| facts.merge.as_ref()).map(MergeFacts::from),
            link: node.link.as_ref().map(TreeLink::from),
            error: node.image.as_ref().err().map(ErrorFacts::from),
        }
    }
}

impl From<&Link> for TreeLink {
    fn from(link: &Link) -> Self {
        let by = || link.found_by.map_or(FoundByName::Identity, FoundByName::from);
        Self {
            parent_linkage: link.recorded.linkage,
            parent_linkage2: link.recorded.linkage2,
            relative_path: link.recorded.relative_path.clone(),
            volume_path: link.recorded.volume_path.clone(),
            absolute_win32_path: link.recorded.absolute_win32_path.clone(),
            found_by: link.parent.map(|_| by()),
            leads: link.leads.iter().map(TreeLead::from).collect(),
        }
    }
}

impl From<&Lead> for TreeLead {
    fn from(lead: &Lead) -> Self {
        let (leads_to, node) = match lead.to {
            LeadsTo::Parent(node) => ("parent", Some(node)),
            LeadsTo::Other(node) => ("other", Some(node)),
            LeadsTo::Stranger => ("stranger", None),
            LeadsTo::Nothing => ("nothing", None),
            LeadsTo::Denied => ("denied", None),
            _ => ("failed", None),
        };
        Self {
            found_by: FoundByName::from(lead.found_by),
            file: shown(&lead.path),
            leads_to,
            image_id: node.map(NodeId::index),
        }
    }
}

impl TreeTip {
    fn of(names: &Names<'_>, tip: &Tip) -> Self {
        Self {
            image_id: tip.node.index(),
            complete: tip.broken.is_none(),
            broken: tip.broken.clone(),
            layer_ids: ids(&tip.layers),
            log_pending_ids: ids(&tip.pending),
            with_parent_ids: ids(&tip.with_parents),
            volumes: tip.volumes.clone(),
            next: tip.commands(names),
        }
    }
}

impl TreeFinding {
    fn of(finding: &ForestFinding) -> Self {
        let new = Self { code: finding.code(), fault: finding.is_fault(), ..Self::default() };
        match finding {
            ForestFinding::Orphan { child, expected, .. } => {
                Self { image_id: Some(child.index()), expected: Some(expected.clone()), ..new }
            }
            ForestFinding::BrokenLink {
                child, expected, leads_to, node, found, matches, ..
            } => Self {
                image_id: Some(child.index()),
                expected: Some(expected.clone()),
                leads_to: Some(LedTo {
                    file: shown(leads_to),
                    image_id: node.map(NodeId::index),
                    data_write_guid: *found,
                }),
                match_ids: Some(ids(matches)),
                ..new
            },
            ForestFinding::StalePath { child, matches, .. } => {
                Self { image_id: Some(child.index()), match_ids: Some(ids(matches)), ..new }
            }
            ForestFinding::Damaged { node, .. } | ForestFinding::UnfinishedMerge { node, .. } => {
                Self { image_id: Some(node.index()), ..new }
            }
            ForestFinding::Loop { nodes, .. } => Self { image_ids: Some(ids(nodes)), ..new },
            ForestFinding::SectorSizes { child, parent, .. }
            | ForestFinding::Volumes { child, parent, .. } => {
                Self { image_id: Some(child.index()), parent_id: Some(parent.index()), ..new }
            }
            ForestFinding::Unreadable { path, error, .. } => {
                Self { file: Some(shown(path)), error: Some(ErrorFacts::from(error)), ..new }
            }
            ForestFinding::NoSignature { path, .. } | ForestFinding::LinkOutside { path, .. } => {
                Self { file: Some(shown(path)), ..new }
            }
            ForestFinding::Duplicates { guid, nodes, preferred, .. } => Self {
                data_write_guid: Some(*guid),
                image_ids: Some(ids(nodes)),
                preferred_ids: Some(ids(preferred)),
                ..new
            },
            _ => new,
        }
    }
}
