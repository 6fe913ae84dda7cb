//! The forest as JSON: `avhdx.tree/1`.

use std::path::Path;

use avhdx::FoundBy;
use avhdx::ops::forest::{ForestFinding, Lead, LeadsTo, Node, NodeId};
use serde_json::{Value, json};

use crate::facts::json::{checkpoint, merge};
use crate::text::utc;

use super::names::Names;
use super::tips::{Tip, tips};

/// The whole forest. Images are referred to by their index in `images`.
pub(super) fn document(names: &Names<'_>) -> Value {
    let forest = names.forest;
    let faults = forest.findings().iter().filter(|finding| finding.is_fault()).count();
    json!({
        "schema": "avhdx.tree/1",
        "places": names.places.iter().map(|place| path(place)).collect::<Vec<_>>(),
        "faults": faults,
        "images": forest.nodes().map(|(id, node)| image(names, id, node)).collect::<Vec<_>>(),
        "trees": ids(forest.trees()),
        "tips": tips(names).iter().map(|found| tip(names, found)).collect::<Vec<_>>(),
        "findings": forest.findings().iter().map(finding).collect::<Vec<_>>(),
    })
}

fn image(names: &Names<'_>, id: NodeId, node: &Node) -> Value {
    let facts = node.image.as_ref().ok();
    json!({
        "image": id.index(),
        "path": path(&node.path),
        "other_names": node.other_names.iter().map(|name| path(name)).collect::<Vec<_>>(),
        "outside": node.is_outside,
        "depth": node.depth,
        "parent": node.parent().map(NodeId::index),
        "children": ids(&node.children),
        "data_write_guid": node.data_write_guid.map(|guid| guid.to_string()),
        "virtual_size": facts.map(|facts| facts.geometry.size),
        "logical_sector_size": facts.map(|facts| facts.geometry.logical_sector),
        "block_size": facts.map(|facts| facts.block_size),
        "file_size": node.file_len,
        "allocated": node.allocated,
        "modified": node.modified.map(utc),
        "volume": node.volume,
        "creator": facts.map(|facts| facts.creator.as_str()),
        "log_pending": facts.map(|facts| facts.is_log_pending),
        "in_use": facts.map(|facts| facts.is_in_use),
        "labels": names.forest.labels(id),
        "checkpoint": facts.and_then(|facts| facts.checkpoint.as_ref()).map(checkpoint),
        "merge": facts.and_then(|facts| facts.merge.as_ref()).map(merge),
        "link": node.link.as_ref().map(|link| json!({
            "parent_linkage": link.recorded.linkage.to_string(),
            "parent_linkage2": link.recorded.linkage2.map(|guid| guid.to_string()),
            "relative_path": link.recorded.relative_path,
            "volume_path": link.recorded.volume_path,
            "absolute_win32_path": link.recorded.absolute_win32_path,
            "found_by": link.parent.map(|_| link.found_by.map_or("identity", found_by)),
            "leads": link.leads.iter().map(lead).collect::<Vec<_>>(),
        })),
        "error": node.image.as_ref().err().map(error),
    })
}

fn tip(names: &Names<'_>, tip: &Tip) -> Value {
    json!({
        "image": tip.node.index(),
        "complete": tip.broken.is_none(),
        "broken": tip.broken,
        "layers": ids(&tip.layers),
        "log_pending": ids(&tip.pending),
        "with_parents": ids(&tip.with_parents),
        "volumes": tip.volumes,
        "commands": tip.commands(names),
    })
}

fn finding(finding: &ForestFinding) -> Value {
    let mut object = json!({ "code": finding.code(), "fault": finding.is_fault() });
    let more = match finding {
        ForestFinding::Orphan { child, expected, .. } => {
            json!({ "image": child.index(), "expected": guids(expected) })
        }
        ForestFinding::BrokenLink { child, expected, leads_to, node, found, matches, .. } => {
            json!({
                "image": child.index(),
                "expected": guids(expected),
                "leads_to": path(leads_to),
                "leads_to_image": node.map(NodeId::index),
                "found": found.map(|guid| guid.to_string()),
                "matches": ids(matches),
            })
        }
        ForestFinding::StalePath { child, matches, .. } => {
            json!({ "image": child.index(), "matches": ids(matches) })
        }
        ForestFinding::Damaged { node, .. } | ForestFinding::UnfinishedMerge { node, .. } => {
            json!({ "image": node.index() })
        }
        ForestFinding::Loop { nodes, .. } => json!({ "images": ids(nodes) }),
        ForestFinding::SectorSizes { child, parent, .. }
        | ForestFinding::Volumes { child, parent, .. } => {
            json!({ "image": child.index(), "parent": parent.index() })
        }
        ForestFinding::Unreadable { path: at, error: why, .. } => {
            json!({ "path": path(at), "error": error(why) })
        }
        ForestFinding::NoSignature { path: at, .. }
        | ForestFinding::LinkOutside { path: at, .. } => {
            json!({ "path": path(at) })
        }
        ForestFinding::Duplicates { guid, nodes, preferred, .. } => json!({
            "data_write_guid": guid.to_string(),
            "images": ids(nodes),
            "preferred": ids(preferred),
        }),
        _ => json!({}),
    };
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

fn lead(lead: &Lead) -> Value {
    let (to, node) = match lead.to {
        LeadsTo::Parent(node) => ("parent", Some(node)),
        LeadsTo::Other(node) => ("other", Some(node)),
        LeadsTo::Stranger => ("stranger", None),
        LeadsTo::Nothing => ("nothing", None),
        LeadsTo::Denied => ("denied", None),
        _ => ("failed", None),
    };
    json!({
        "by": found_by(lead.found_by),
        "path": path(&lead.path),
        "to": to,
        "image": node.map(NodeId::index),
    })
}

/// How a parent was found, by the names of `avhdx.tree/1`.
fn found_by(by: FoundBy) -> &'static str {
    match by {
        FoundBy::Given => "given",
        FoundBy::RelativePath => "relative_path",
        FoundBy::VolumePath => "volume_path",
        FoundBy::AbsoluteWin32Path => "absolute_win32_path",
        FoundBy::FolderName => "folder-name",
        FoundBy::FolderSearch => "folder-search",
        _ => "other",
    }
}

fn error(error: &avhdx::Error) -> Value {
    json!({
        "code": error.code(),
        "message": error.to_string(),
        "offset": error.offset(),
        "found": error.found(),
        "expected": error.expected(),
        "section": error.section(),
        "cause": std::error::Error::source(error).map(ToString::to_string),
    })
}

fn guids(guids: &[impl ToString]) -> Vec<String> {
    guids.iter().map(ToString::to_string).collect()
}

fn ids(nodes: &[NodeId]) -> Vec<usize> {
    nodes.iter().map(|id| id.index()).collect()
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
