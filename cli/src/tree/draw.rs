//! The drawing of the forest.

use std::collections::HashMap;

use avhdx::ops::forest::{Forest, ForestFinding, Node, NodeId};

use super::names::Names;
use crate::failure::Failure;
use crate::output::Console;
use crate::paint::{Look, Painted};
use crate::text::{cells, count, minute, padded, printable, shortened, units};

/// The number of levels that are indented; deeper ones show their depth instead.
const MAX_INDENT: usize = 24;
/// The maximum width of the name column, where the width of the whole line is not limited.
const MAX_NAME: usize = 60;
/// What the name column keeps on a narrow terminal, whose lines are longer then.
const LEAST_NAME: usize = 24;
/// The width of a level's indentation.
const LEVEL: usize = 3;

const BOX: [&str; 5] = ["├─ ", "└─ ", "│  ", "   ", "…"];
const ASCII: [&str; 5] = ["|- ", "`- ", "|  ", "   ", "..."];

pub(super) fn print(names: &Names<'_>, ascii: bool, console: &mut Console) -> Result<(), Failure> {
    let forest = names.forest;
    console.line(summary(names, console.width()))?;
    if forest.nodes().len() == 0 {
        return Ok(());
    }
    let signs = if ascii { &ASCII } else { &BOX };
    let taken = forest.nodes().any(|(id, _)| taken(forest, id).is_some());
    let drawing = Drawing::of(names, signs, taken, console.width());
    let marks = marks(forest);
    console.line("")?;
    console.line(drawing.header(if taken { "taken (UTC)" } else { "written (UTC)" }))?;
    for ((id, node), row) in forest.nodes().zip(&drawing.rows) {
        if node.depth == 0 && id.index() > 0 {
            console.line("")?;
        }
        let marks = marks.get(&id).map_or(&[][..], Vec::as_slice);
        for line in drawing.lines(row, marks, console.width()) {
            console.painted(&line)?;
        }
    }
    if taken {
        console.line("")?;
        console.line("* no time of a checkpoint is recorded: when the file was last written to")?;
    }
    Ok(())
}

/// An image as it is drawn.
struct Row {
    branches: String,
    name: String,
    look: Look,
    /// The branches on further lines of the image.
    below: String,
    disk: String,
    file: String,
    identity: String,
    time: String,
}

struct Drawing {
    rows: Vec<Row>,
    /// The widths of the columns of names, disks, files and times.
    widths: [usize; 4],
    /// What stands for the middle of a name.
    gap: &'static str,
}

impl Drawing {
    fn of(names: &Names<'_>, signs: &[&'static str; 5], taken: bool, limit: Option<usize>) -> Self {
        let of = |(id, node): (NodeId, &Node)| Row {
            branches: String::new(),
            name: String::new(),
            look: if node.children.is_empty() { Look::Tip } else { Look::Plain },
            below: String::new(),
            disk: node.image.as_ref().map_or_else(|_| "?".into(), |i| units(i.geometry.size)),
            file: units(node.file_len),
            identity: short_guid(node),
            time: time(names.forest, id, node, taken),
        };
        let mut rows: Vec<Row> = names.forest.nodes().map(of).collect();
        let widest = |column: fn(&Row) -> &str, least: usize| {
            rows.iter().map(|row| cells(column(row))).max().unwrap_or_default().max(least)
        };
        let time = widest(|row| &row.time, "written (UTC)".len());
        let (disk, file) = match limit {
            Some(_) => (widest(|row| &row.disk, 4), widest(|row| &row.file, 4)),
            None => (10, 10),
        };
        let room = |limit: usize| limit.saturating_sub(disk + file + 8 + time + 4 * 2);
        let room = limit.map(|limit| room(limit).max(LEAST_NAME));
        let most = room.map_or(MAX_INDENT, |room| MAX_INDENT.min(room / 2 / LEVEL));
        add_names(&mut rows, names, signs, most);
        let widths = rows.iter().map(|row| cells(&row.branches) + cells(&row.name));
        let name = match room {
            Some(room) => widths.max().unwrap_or_default().min(room),
            None => widths.filter(|width| *width <= MAX_NAME).max().unwrap_or(MAX_NAME),
        };
        Self { rows, widths: [name.max("image".len()), disk, file, time], gap: signs[4] }
    }

    fn header(&self, time: &str) -> String {
        let [name, disk, file, _] = self.widths;
        format!("{:name$}  {:>disk$}  {:>file$}  {:8}  {time}", "image", "disk", "file", "identity")
    }

    /// The line of an image. Marks that do not fit beside it follow, each on a line of its own.
    fn lines(&self, row: &Row, marks: &[(Look, String)], limit: Option<usize>) -> Vec<Painted> {
        let [width, disk, file, time] = self.widths;
        let branches = cells(&row.branches);
        let name = match limit {
            Some(_) => shortened(&row.name, width.saturating_sub(branches), self.gap),
            None => row.name.clone(),
        };
        let blanks = padded("", width.saturating_sub(branches + cells(&name)), false);
        let Row { disk: of_disk, file: of_file, identity, time: of_time, .. } = row;
        let mut line = Painted::from(row.branches.clone()).with(row.look, name);
        line.push(
            Look::Plain,
            format!("{blanks}  {of_disk:>disk$}  {of_file:>file$}  {identity:8}  {of_time}"),
        );
        if marks.is_empty() {
            return vec![line];
        }
        let mut marked = line.clone();
        marked.push(Look::Plain, padded("", time.saturating_sub(cells(of_time)), false));
        for (look, mark) in marks {
            marked.push(Look::Plain, "  ");
            marked.push(*look, mark);
        }
        let Some(limit) = limit.filter(|limit| marked.cells() > *limit) else {
            return vec![marked];
        };
        let room = limit.saturating_sub(width + 2);
        let further = marks.iter().map(|(look, mark)| {
            let margin = padded(&row.below, width + 2, false);
            Painted::from(margin).with(*look, shortened(mark, room, self.gap))
        });
        [line].into_iter().chain(further).collect()
    }
}

/// The number of images, trees and volumes.
fn summary(names: &Names<'_>, limit: Option<usize>) -> String {
    let forest = names.forest;
    let outside = forest.nodes().filter(|(_, node)| node.is_outside).count();
    let mut text = format!(
        ": {} in {}",
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
    let places = names.place_arguments();
    match limit {
        Some(limit) => shortened(&places, limit.saturating_sub(cells(&text)), "…") + &text,
        None => places + &text,
    }
}

/// When the checkpoint was taken that froze the image, if a child of it has that time.
fn taken(forest: &Forest, id: NodeId) -> Option<std::time::SystemTime> {
    let children = forest.node(id).children.iter();
    let marks =
        children.filter_map(|child| forest.node(*child).image.as_ref().ok()?.checkpoint.as_ref());
    marks.map(|mark| mark.time).min()
}

/// When the image was frozen, or else when its file was last written to, which is marked if others are the former.
fn time(forest: &Forest, id: NodeId, node: &Node, are_some_taken: bool) -> String {
    match (taken(forest, id), node.modified) {
        (Some(time), _) => minute(time),
        (None, Some(time)) if are_some_taken => minute(time) + "*",
        (None, Some(time)) => minute(time),
        (None, None) => "-".repeat(16),
    }
}

/// The remarks beside each image: findings by their number in the list, then facts.
fn marks(forest: &Forest) -> HashMap<NodeId, Vec<(Look, String)>> {
    let mut marks: HashMap<NodeId, Vec<(Look, String)>> = HashMap::new();
    for (i, finding) in forest.findings().iter().enumerate() {
        let what = match finding {
            ForestFinding::Duplicates { .. } => "duplicate".into(),
            ForestFinding::Volumes { .. } => "another volume than its parent".into(),
            finding => finding.code().replace('-', " "),
        };
        let (look, mark) =
            if finding.is_fault() { (Look::Broken, "!! ") } else { (Look::Plain, "") };
        let first = finding.node();
        let concerned: &[NodeId] = match finding {
            ForestFinding::Loop { nodes, .. } | ForestFinding::Duplicates { nodes, .. } => nodes,
            _ => first.as_slice(),
        };
        for id in concerned {
            marks.entry(*id).or_default().push((look, format!("{mark}{what} [{}]", i + 1)));
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
        let facts = labels.chain(facts.map(|(_, fact)| format!("({fact})")));
        let mut facts = facts.map(|fact| (Look::Plain, fact)).peekable();
        if facts.peek().is_some() {
            marks.entry(id).or_default().extend(facts);
        }
    }
    marks
}

/// Gives every image its branches and its name. `most` levels are indented.
fn add_names(
    rows: &mut [Row],
    names: &Names<'_>,
    [tee, corner, bar, gap, more]: &[&str; 5],
    most: usize,
) {
    let forest = names.forest;
    // The last image drawn at each level, and whether it is its parent's last child.
    let mut above: Vec<(NodeId, bool)> = Vec::new();
    for ((id, node), row) in forest.nodes().zip(rows) {
        above.truncate(node.depth);
        let is_parent = !node.children.is_empty();
        let Some((parent, _)) = above.last().copied() else {
            above.push((id, true));
            row.name = names.of(id);
            row.below = if is_parent { (*bar).into() } else { String::new() };
            continue;
        };
        let is_last = forest.node(parent).children.last() == Some(&id);
        for (_, was_last) in above.iter().skip(1).take(most) {
            row.branches += if *was_last { gap } else { bar };
        }
        row.below.clone_from(&row.branches);
        // Deeper branches are drawn as if at the same level.
        row.below += if is_last { gap } else { bar };
        if is_parent && node.depth <= most {
            row.below += bar;
        }
        if node.depth > most + 1 {
            row.branches += &format!("{more}{} ", node.depth);
        }
        row.branches += if is_last { corner } else { tee };
        row.name = names.below(id, parent);
        above.push((id, is_last));
    }
}

/// The first digits of the identity, enough for `IMAGE@HEX`.
fn short_guid(node: &Node) -> String {
    node.data_write_guid.map_or_else(|| "?".into(), |guid| guid.to_string()[..8].to_owned())
}
