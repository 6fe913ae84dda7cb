//! The tips of the forest: the disks, their state, and commands for them.

use avhdx::FoundBy;
use avhdx::ops::forest::{Forest, NodeId};

use super::names::Names;
use crate::args::MAX_DEPTH;
use crate::failure::Failure;
use crate::output::Console;
use crate::text::{count, printable, units};

/// A tip and the layers below it.
pub(super) struct Tip {
    pub(super) node: NodeId,
    /// From the tip down, as far as the chain goes.
    pub(super) layers: Vec<NodeId>,
    /// Why the disk cannot be read.
    pub(super) broken: Option<String>,
    /// The layers with a pending log.
    pub(super) pending: Vec<NodeId>,
    /// The parents that are not at a recorded path: verbs need --with-parent.
    pub(super) with_parents: Vec<NodeId>,
    /// The volumes of the layers, as far as known.
    pub(super) volumes: Vec<u64>,
}

pub(super) fn print(names: &Names<'_>, console: &mut Console) -> Result<(), Failure> {
    let tips = tips(names);
    let labels: Vec<String> = tips.iter().map(|tip| names.of(tip.node)).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).clamp(3, 60);
    console
        .line(format!("{:width$}  {:>10}  {:>6}  {:7}  state", "tip", "disk", "layers", "log"))?;
    for (tip, label) in tips.iter().zip(&labels) {
        let image = names.forest.node(tip.node).image.as_ref();
        let disk = image.map_or_else(|_| "?".into(), |image| units(image.geometry.size));
        let log = if tip.pending.is_empty() { "clean" } else { "pending" };
        let state = state(tip);
        console.line(format!(
            "{label:width$}  {disk:>10}  {:>6}  {log:7}  {state}",
            tip.layers.len()
        ))?;
        for command in tip.commands(names) {
            console.line(format!("    {command}"))?;
        }
    }
    let faults = names.forest.findings().iter().filter(|finding| finding.is_fault()).count();
    if faults > 0 {
        console.line("")?;
        console.line(format!(
            "{}: avhdx tree {} lists them",
            count(faults, "fault"),
            names.place_arguments()
        ))?;
    }
    Ok(())
}

/// The images without children, in the order of the drawing.
pub(super) fn tips(names: &Names<'_>) -> Vec<Tip> {
    let leaves = names.forest.nodes().filter(|(_, node)| node.children.is_empty());
    leaves.map(|(id, _)| Tip::of(names, id)).collect()
}

impl Tip {
    fn of(names: &Names<'_>, node: NodeId) -> Self {
        let forest = names.forest;
        let layers = forest.layers(node);
        let is_pending =
            |id: &NodeId| forest.node(*id).image.as_ref().is_ok_and(|image| image.is_log_pending);
        let mut volumes: Vec<u64> =
            layers.iter().filter_map(|id| forest.node(*id).volume).collect();
        volumes.sort_unstable();
        volumes.dedup();
        Self {
            node,
            broken: broken(names, &layers),
            pending: layers.iter().copied().filter(is_pending).collect(),
            with_parents: with_parents(forest, &layers),
            volumes,
            layers,
        }
    }

    /// Suggested commands.
    pub(super) fn commands(&self, names: &Names<'_>) -> Vec<String> {
        let image = names.argument(self.node);
        if self.broken.is_some() {
            return vec![format!("avhdx info --chain {image}")];
        }
        let mut flags = String::new();
        for parent in &self.with_parents {
            flags += &format!(" --with-parent {}", names.argument(*parent));
        }
        if self.layers.len() > MAX_DEPTH {
            flags += &format!(" --max-depth {}", self.layers.len());
        }
        vec![
            format!("avhdx info --chain{flags} {image}"),
            format!("avhdx convert -O raw{flags} {image} OUT"),
        ]
    }
}

fn state(tip: &Tip) -> String {
    let volumes = match tip.volumes.len() {
        0 => String::new(),
        1 => ", on one volume".into(),
        several => format!(", on {several} volumes"),
    };
    match &tip.broken {
        Some(why) => format!("broken: {why}"),
        None if tip.with_parents.is_empty() => format!("complete{volumes}"),
        None => format!("complete with --with-parent{volumes}"),
    }
}

/// The first fault from the tip down that prevents reading.
fn broken(names: &Names<'_>, layers: &[NodeId]) -> Option<String> {
    let forest = names.forest;
    for (i, id) in layers.iter().enumerate() {
        let node = forest.node(*id);
        let name = || names.of(*id);
        let image = match &node.image {
            Ok(image) => image,
            Err(error) => return Some(format!("{}: {}", name(), printable(error.message()))),
        };
        let link = node.link.as_ref()?;
        let Some(parent) = link.parent else {
            return Some(format!("the parent of {} is missing", name()));
        };
        if layers[..=i].contains(&parent) {
            return Some(format!("{} leads back to {}", name(), names.of(parent)));
        }
        if let Ok(below) = &forest.node(parent).image
            && below.geometry.logical_sector != image.geometry.logical_sector
        {
            return Some(format!("{} and its parent have different sector sizes", name()));
        }
    }
    None
}

fn with_parents(forest: &Forest, layers: &[NodeId]) -> Vec<NodeId> {
    let links = layers.iter().filter_map(|id| forest.node(*id).link.as_ref());
    let unled = links.filter(|link| link.found_by != Some(FoundBy::RelativePath));
    unled.filter_map(|link| link.parent).collect()
}
