//! Derives the findings from the links and the images of a forest.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use uuid::Uuid;

use super::finding::ForestFinding;
use super::node::{LeadsTo, Link, NodeId};
use super::trees::Forest;
use crate::chain::FoundBy;
use crate::image::MergeState;

/// Adds the findings, in order.
pub(super) fn add_findings(forest: &mut Forest) {
    let guids = by_guid(forest);
    let mut findings = std::mem::take(&mut forest.findings);
    for (id, node) in forest.nodes() {
        if node.image.is_err() {
            findings.push(ForestFinding::Damaged { node: id });
        }
        if let Some(link) = &node.link {
            findings.extend(link_finding(forest, id, link, &guids));
            findings.extend(pair_findings(forest, id, link));
        }
    }
    findings.extend(unfinished_merges(forest, &guids));
    findings.extend(loops(forest));
    findings.extend(duplicates(forest, &guids));
    findings.sort_by(|a, b| rank(a).cmp(&rank(b)));
    forest.findings = findings;
}

fn by_guid(forest: &Forest) -> HashMap<Uuid, Vec<NodeId>> {
    let mut guids: HashMap<Uuid, Vec<NodeId>> = HashMap::new();
    for (id, node) in forest.nodes() {
        if let Some(guid) = node.data_write_guid.filter(|guid| !guid.is_nil()) {
            guids.entry(guid).or_default().push(id);
        }
    }
    guids
}

/// Checks how a child leads to its parent.
fn link_finding(
    forest: &Forest,
    child: NodeId,
    link: &Link,
    guids: &HashMap<Uuid, Vec<NodeId>>,
) -> Option<ForestFinding> {
    // A path led there, or the caller named the place.
    if link.parent.is_some() && link.found_by.is_some() {
        return None;
    }
    let mut expected = link.expected();
    expected.dedup();
    let accepted = expected.iter().filter(|guid| link.recorded.accepts(**guid));
    let mut matches: Vec<NodeId> = accepted
        .filter_map(|guid| guids.get(guid))
        .flatten()
        .copied()
        .filter(|id| *id != child)
        .collect();
    matches.sort_by_key(|id| (Some(*id) != link.parent, *id));

    let recorded = link.leads.iter().filter(|lead| lead.found_by != FoundBy::Given);
    let wrong = recorded
        .clone()
        .find(|lead| matches!(lead.to, LeadsTo::Other(_)))
        .or_else(|| recorded.clone().find(|lead| lead.to == LeadsTo::Stranger));
    if let Some(lead) = wrong {
        let node = match lead.to {
            LeadsTo::Other(node) => Some(node),
            _ => None,
        };
        return Some(ForestFinding::BrokenLink {
            child,
            expected,
            leads_to: lead.path.clone(),
            node,
            found: node.and_then(|node| forest.node(node).data_write_guid),
            matches,
        });
    }
    Some(match link.parent {
        Some(_) => ForestFinding::StalePath { child, matches },
        None => ForestFinding::Orphan { child, expected },
    })
}

/// Compares a child with its parent.
fn pair_findings(forest: &Forest, child: NodeId, link: &Link) -> Vec<ForestFinding> {
    let Some(parent) = link.parent else { return Vec::new() };
    let (above, below) = (forest.node(child), forest.node(parent));
    let mut findings = Vec::new();
    if let (Ok(a), Ok(b)) = (&above.image, &below.image)
        && a.geometry.logical_sector != b.geometry.logical_sector
    {
        findings.push(ForestFinding::SectorSizes { child, parent });
    }
    if let (Some(a), Some(b)) = (above.volume, below.volume)
        && a != b
    {
        findings.push(ForestFinding::Volumes { child, parent });
    }
    findings
}

/// One finding for each merge, on the child if it was found.
fn unfinished_merges(forest: &Forest, guids: &HashMap<Uuid, Vec<NodeId>>) -> Vec<ForestFinding> {
    let marked = forest.nodes().filter_map(|(id, node)| {
        let image = node.image.as_ref().ok()?;
        let Some(mark) = image.merge.as_ref() else {
            image.merge_request.as_ref()?;
            return Some(ForestFinding::UnfinishedMerge { node: id });
        };
        // A child that cannot be read has no mark to report.
        let tells = |id: &NodeId| forest.node(*id).image.as_ref().is_ok_and(|i| i.merge.is_some());
        let is_told_by_child = mark.state == MergeState::Target
            && guids.get(&mark.other).is_some_and(|children| children.iter().any(tells));
        (!is_told_by_child).then_some(ForestFinding::UnfinishedMerge { node: id })
    });
    marked.collect()
}

/// One finding for each loop: a root that has a parent is the place where the loop was cut.
fn loops(forest: &Forest) -> Vec<ForestFinding> {
    let is_cut = |id: &&NodeId| forest.node(**id).parent().is_some();
    let cut = forest.trees().iter().filter(is_cut);
    cut.map(|root| ForestFinding::Loop { nodes: forest.layers(*root) }).collect()
}

fn duplicates(forest: &Forest, guids: &HashMap<Uuid, Vec<NodeId>>) -> Vec<ForestFinding> {
    let links = forest.nodes().filter_map(|(_, node)| node.link.as_ref());
    let leads = links.flat_map(|link| &link.leads).filter(|lead| lead.found_by != FoundBy::Given);
    let recorded: HashSet<NodeId> = leads
        .filter_map(|lead| match lead.to {
            LeadsTo::Parent(id) => Some(id),
            _ => None,
        })
        .collect();
    let several = guids.iter().filter(|(_, nodes)| nodes.len() > 1);
    several
        .map(|(guid, nodes)| ForestFinding::Duplicates {
            guid: *guid,
            nodes: nodes.clone(),
            preferred: nodes.iter().copied().filter(|id| recorded.contains(id)).collect(),
        })
        .collect()
}

/// The sort key: faults first, then by node, then findings without a node by path.
fn rank(finding: &ForestFinding) -> (bool, bool, Option<NodeId>, Option<&Path>) {
    let path = match finding {
        ForestFinding::Unreadable { path, .. }
        | ForestFinding::NoSignature { path, .. }
        | ForestFinding::LinkOutside { path } => Some(path.as_path()),
        _ => None,
    };
    (!finding.is_fault(), path.is_some(), finding.node(), path)
}
