//! The tips of the forest: the disks, their state, and commands for them.

use avhdx::FoundBy;
use avhdx::ops::forest::{Forest, NodeId};

use super::names::Names;
use crate::args::MAX_DEPTH;
use crate::failure::Failure;
use crate::output::Console;
use crate::paint::{Look, Painted};
use crate::text::{cells, count, padded, printable, shortened, units, wrapped};

/// The width that is kept for the state of a disk.
const STATE: usize = 23;
/// The maximum width of the names, where the width of the whole line is not limited.
const MAX_NAME: usize = 60;

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
    let limit = console.width();
    let rows: Vec<Row> = tips.iter().map(|tip| Row::of(names, tip)).collect();
    let widest = |column: fn(&Row) -> &str, least: usize| {
        rows.iter().map(|row| cells(column(row))).max().unwrap_or_default().max(least)
    };
    let (disk, most) = match limit {
        Some(limit) => {
            let disk = widest(|row| &row.disk, 4);
            (disk, limit.saturating_sub(disk + 6 + 7 + STATE + 4 * 2))
        }
        None => (10, MAX_NAME),
    };
    let width = widest(|row| &row.name, 3).min(most.max(3));
    console.line(format!(
        "{:width$}  {:>disk$}  {:>6}  {:7}  state",
        "tip", "disk", "layers", "log"
    ))?;
    for (tip, row) in tips.iter().zip(&rows) {
        let name = match limit {
            Some(_) => shortened(&row.name, width, "…"),
            None => row.name.clone(),
        };
        let name = padded(&name, width, false);
        let line = format!("{name}  {:>disk$}  {:>6}  {:7}", row.disk, tip.layers.len(), row.log);
        let look = if tip.broken.is_some() { Look::Broken } else { Look::Plain };
        let line = Painted::from(line);
        let whole = line.clone().with(Look::Plain, "  ").with(look, &row.state);
        match limit.filter(|limit| whole.cells() > *limit) {
            None => console.painted(&whole)?,
            Some(limit) => {
                console.painted(&line)?;
                for part in wrapped(&row.state, limit.saturating_sub(2)) {
                    console.painted(&Painted::from("  ").with(look, part))?;
                }
            }
        }
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

/// A tip as text.
struct Row {
    name: String,
    disk: String,
    log: &'static str,
    state: String,
}

impl Row {
    fn of(names: &Names<'_>, tip: &Tip) -> Self {
        let image = names.forest.node(tip.node).image.as_ref();
        Self {
            name: names.of(tip.node),
            disk: image.map_or_else(|_| "?".into(), |image| units(image.geometry.size)),
            log: if tip.pending.is_empty() { "clean" } else { "pending" },
            state: state(tip),
        }
    }
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

    /// Suggested commands. A disk that every verb opens as it is needs none.
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
        if flags.is_empty() {
            return Vec::new();
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
