//! The forest as a drawing.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use avhdx::ops::forest::{Finding, Forest, Node, NodeId};

use super::names::Names;
use crate::exit::Failure;
use crate::output::{Console, units};

/// Levels that are indented; deeper ones say their depth instead.
const MAX_INDENT: usize = 24;
/// The widest name that the columns make room for.
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

/// How many images there are, and where.
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
    match volumes.len() {
        0 => {}
        1 => text += ", all on one volume",
        several => text += &format!(", on {several} volumes"),
    }
    text
}

pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What is said beside an image: findings by their number in the list below, then facts.
fn marks(forest: &Forest) -> HashMap<NodeId, Vec<String>> {
    let mut marks: HashMap<NodeId, Vec<String>> = HashMap::new();
    for (i, finding) in forest.findings().iter().enumerate() {
        let what = match finding {
            Finding::Duplicates { .. } => "duplicate".into(),
            Finding::Volumes { .. } => "another volume than its parent".into(),
            finding => finding.code().replace('-', " "),
        };
        let mark = if finding.is_fault() { "!! " } else { "" };
        let first = finding.node();
        let concerned: &[NodeId] = match finding {
            Finding::Loop { nodes, .. } | Finding::Duplicates { nodes, .. } => nodes,
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
        let facts: Vec<String> = facts.map(|(_, fact)| format!("({fact})")).collect();
        if !facts.is_empty() {
            marks.entry(id).or_default().extend(facts);
        }
    }
    marks
}

/// Every image's name behind its branches.
fn labels(names: &Names<'_>, [tee, corner, bar, gap, more]: &[&str; 5]) -> Vec<String> {
    let forest = names.forest;
    // Of the last image drawn at each level: which it is, and whether it is its parent's last child.
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

/// The first digits of the identity: enough for `IMAGE@HEX`.
fn short_guid(node: &Node) -> String {
    node.data_write_guid.map_or_else(|| "?".into(), |guid| guid.to_string()[..8].to_owned())
}

/// A time as `2026-11-22T21:37:09Z`.
pub(super) fn utc(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -whole - i64::from(before.subsec_nanos() > 0)
        }
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days repeat every 400 years; within those, years and months are counted off.
    let (cycle, mut day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let mut year = 1970 + 400 * cycle;
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    loop {
        let length = 365 + i64::from(is_leap(year));
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let february = 28 + i64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_those_of_the_calendar() {
        // From date -u -d @SECONDS.
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(utc(UNIX_EPOCH - Duration::from_millis(1)), "1969-12-31T23:59:59Z");
    }
}
