//! The trees of a forest.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::finding::ForestFinding;
use super::node::{Node, NodeId};

/// All images in some folders and their relations.
#[derive(Debug)]
pub struct Forest {
    /// In display order: each tree's root first, children below their parents.
    pub(super) nodes: Vec<Node>,
    pub(super) trees: Vec<NodeId>,
    pub(super) findings: Vec<ForestFinding>,
    pub(super) children: HashMap<Uuid, Vec<NodeId>>,
}

impl Forest {
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
    pub fn findings(&self) -> &[ForestFinding] {
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
