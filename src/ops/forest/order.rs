//! Orders the nodes: the roots, and all others below their parents.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::node::{LeadsTo, Node, NodeId};
use super::trees::Forest;
use super::walk::Scanned;

/// Numbers the nodes in display order and lists children under their parents.
pub(super) fn order_nodes(found: Scanned) -> Forest {
    let mut nodes = found.nodes;
    let is_root = roots(&nodes);
    let mut children = vec![Vec::new(); nodes.len()];
    let mut trees = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        match node.parent() {
            Some(parent) if !is_root[i] => children[parent.0].push(i),
            _ => trees.push(i),
        }
    }
    trees.sort_by(|a, b| nodes[*a].path.cmp(&nodes[*b].path));
    for siblings in &mut children {
        siblings.sort_by(|a, b| by_age(&nodes[*a], &nodes[*b]));
    }

    // Old indexes in the new order. Not recursive: the depth of a chain is not bounded.
    let mut order = Vec::with_capacity(nodes.len());
    let mut pending: Vec<(usize, usize)> = trees.iter().rev().map(|root| (*root, 0)).collect();
    while let Some((i, depth)) = pending.pop() {
        nodes[i].depth = depth;
        order.push(i);
        pending.extend(children[i].iter().rev().map(|child| (*child, depth + 1)));
    }
    let mut new = vec![NodeId(0); nodes.len()];
    for (number, old) in order.iter().enumerate() {
        new[*old] = NodeId(number);
    }
    for (node, below) in nodes.iter_mut().zip(children) {
        node.children = below.into_iter().map(|child| new[child]).collect();
        renumber(node, &new);
    }
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    let nodes: Vec<Node> = order.iter().filter_map(|old| slots[*old].take()).collect();
    Forest {
        trees: trees.into_iter().map(|root| new[root]).collect(),
        children: by_linkage(&nodes),
        nodes,
        findings: found.findings,
    }
}

/// Returns which nodes are shown as roots: those without a parent, and the first by path of each loop.
fn roots(nodes: &[Node]) -> Vec<bool> {
    let mut is_root: Vec<bool> = nodes.iter().map(|node| node.parent().is_none()).collect();
    // The walk that visited a node, counted from 1.
    let mut walked = vec![0; nodes.len()];
    for start in 0..nodes.len() {
        let mut at = start;
        while walked[at] == 0 {
            walked[at] = start + 1;
            match nodes[at].parent() {
                Some(parent) => at = parent.0,
                None => break,
            }
        }
        // A walk that met its own track found a loop.
        if walked[at] == start + 1 && nodes[at].parent().is_some() {
            let first = loop_from(nodes, at).min_by_key(|i| &nodes[*i].path);
            is_root[first.unwrap_or(at)] = true;
        }
    }
    is_root
}

/// The nodes of the loop that contains `start`.
fn loop_from(nodes: &[Node], start: usize) -> impl Iterator<Item = usize> + '_ {
    std::iter::successors(Some(start), move |at| {
        nodes[*at].parent().map(|parent| parent.0).filter(|parent| *parent != start)
    })
}

/// Orders siblings by file time, which is a hint only: copying files may change it.
fn by_age(a: &Node, b: &Node) -> Ordering {
    a.modified.cmp(&b.modified).then_with(|| a.path.cmp(&b.path))
}

fn renumber(node: &mut Node, new: &[NodeId]) {
    let Some(link) = &mut node.link else { return };
    link.parent = link.parent.map(|parent| new[parent.0]);
    for lead in &mut link.leads {
        if let LeadsTo::Parent(id) | LeadsTo::Other(id) = &mut lead.to {
            *id = new[id.0];
        }
    }
}

fn by_linkage(nodes: &[Node]) -> HashMap<uuid::Uuid, Vec<NodeId>> {
    let mut children: HashMap<_, Vec<NodeId>> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        let Some(link) = &node.link else { continue };
        let mut expected = link.expected();
        expected.dedup();
        for guid in expected.into_iter().filter(|guid| link.recorded.accepts(*guid)) {
            children.entry(guid).or_default().push(NodeId(i));
        }
    }
    children
}
