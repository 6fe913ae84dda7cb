//! The drawing of the forest.

use std::collections::HashMap;

use avhdx::ops::forest::{Forest, ForestFinding, Node, NodeId};

use super::names::Names;
use crate::failure::Failure;
use crate::output::Console;
use crate::text::{count, printable, units, utc};

/// The number of levels that are indented; deeper ones show their depth instead.
const MAX_INDENT: usize = 24;
/// The maximum width of the name column.
const MAX_NAME: usize = 60;

const BOX: [&str; 5] = ["├─ ", "└─ ", "│  ", "   ", "…"];
const ASCII: [&str; 5] = ["|- ", "`- ", "|  ", "   ", "..."];

pub(super) fn print(names: &Names<'_>, ascii: bool, console: &mut Console) -> Result<(), Failure> {
    let forest = names.forest;
    console.line(summary(names))?;
    if forest.nodes().len() == 0 {
        return Ok(());
    }
    let marks = marks(forest);
    let labels = labels(names, if ascii { &ASCII } else { &BOX });
    let widest =
        labels.iter().map(|label| label.chars().count()).filter(|width| *width <= MAX_NAME);
    let width = widest.max().unwrap_or(MAX_NAME);
    console.line("")?;
    console.line(format!(
        "{:width$}  {:>10}  {:>10}  {:8}  written (UTC)",
        "image", "disk", "file", "identity"
    ))?;
    for ((id, node), label) in forest.nodes().zip(&labels) {
        if node.depth == 0 && id.index() > 0 {
            console.line("")?;
        }
        let disk = node.image.as_ref().map_or_else(|_| "?".into(), |i| units(i.geometry.size));
        let mut line = format!(
            "{label:width$}  {disk:>10}  {:>10}  {:8}  {}",
            units(node.file_len),
            short_guid(node),
            node.modified.map_or_else(|| "-".repeat(16), |time| utc(time)[..16].replace('T', " ")),
        );
        for mark in marks.get(&id).into_iter().flatten() {
            line += &format!("  {mark}");
        }
        console.line(line)?;
    }
    Ok(())
}

/// The number of images, trees and volumes.
fn summary(names: &Names<'_>) -> String {
    let forest = names.forest;
    let outside = forest.nodes().filter(|(_, node)| node.is_outside).count();
    let mut text = format!(
        "{}: {} in {}",
        names.place_arguments(),
        count(forest.nodes().len(), "image"),
        count(forest.trees().len(), "tree")
    );
    if outside > 0 {
        text += &format!(", {outside} of them outside");
    }
    let mut volumes: Vec<_> = forest.nodes().filter_map(|(_, node)| node.volume).collect();
    volumes.sort_unstable();
    volumes.dedup();
    let are_all_known = forest.nodes().all(|(_, node)| node.volume.is_some());
    match volumes.len() {
        0 => {}
        1 if !are_all_known => {}
        1 => text += ", all on one volume",
        several => text += &format!(", on {several} volumes"),
    }
    text
}

/// The remarks beside each image: findings by their number in the list, then facts.
fn marks(forest: &Forest) -> HashMap<NodeId, Vec<String>> {
    let mut marks: HashMap<NodeId, Vec<String>> = HashMap::new();
    for (i, finding) in forest.findings().iter().enumerate() {
        let what = match finding {
            ForestFinding::Duplicates { .. } => "duplicate".into(),
            ForestFinding::Volumes { .. } => "another volume than its parent".into(),
            finding => finding.code().replace('-', " "),
        };
        let mark = if finding.is_fault() { "!! " } else { "" };
        let first = finding.node();
        let concerned: &[NodeId] = match finding {
            ForestFinding::Loop { nodes, .. } | ForestFinding::Duplicates { nodes, .. } => nodes,
            _ => first.as_slice(),
        };
        for id in concerned {
            marks.entry(*id).or_default().push(format!("{mark}{what} [{}]", i + 1));
        }
    }
    for (id, node) in forest.nodes() {
        let image = node.image.as_ref().ok();
        let facts = [
            (node.is_outside, "outside"),
            (image.is_some_and(|image| image.is_log_pending), "log pending"),
            (image.is_some_and(|image| image.is_in_use), "in use"),
        ];
        let facts = facts.into_iter().filter(|(is_so, _)| *is_so);
        let labels = forest.labels(id).into_iter().map(|label| format!("@'{}'", printable(label)));
        let facts: Vec<String> = labels.chain(facts.map(|(_, fact)| format!("({fact})"))).collect();
        if !facts.is_empty() {
            marks.entry(id).or_default().extend(facts);
        }
    }
    marks
}

/// Every image's name after its branches.
fn labels(names: &Names<'_>, [tee, corner, bar, gap, more]: &[&str; 5]) -> Vec<String> {
    let forest = names.forest;
    // The last image drawn at each level, and whether it is its parent's last child.
    let mut above: Vec<(NodeId, bool)> = Vec::new();
    let mut labels = Vec::new();
    for (id, node) in forest.nodes() {
        above.truncate(node.depth);
        let Some((parent, _)) = above.last().copied() else {
            above.push((id, true));
            labels.push(names.of(id));
            continue;
        };
        let is_last = forest.node(parent).children.last() == Some(&id);
        let mut label = String::new();
        for (_, was_last) in above.iter().skip(1).take(MAX_INDENT) {
            label += if *was_last { gap } else { bar };
        }
        if node.depth > MAX_INDENT + 1 {
            label += &format!("{more}{} ", node.depth);
        }
        label += if is_last { corner } else { tee };
        label += &names.below(id, parent);
        above.push((id, is_last));
        labels.push(label);
    }
    labels
}

/// The first digits of the identity, enough for `IMAGE@HEX`.
fn short_guid(node: &Node) -> String {
    node.data_write_guid.map_or_else(|| "?".into(), |guid| guid.to_string()[..8].to_owned())
}
