//! The findings as text, each with commands.

use std::io;
use std::path::Path;

use avhdx::ops::Check;
use avhdx::ops::forest::{ForestFinding, Lead, LeadsTo, Link, NodeId};
use avhdx::storage::{FileKind, Host, LocalHost};
use avhdx::{MergeState, OpenOptions};

use super::names::Names;
use crate::failure::Failure;
use crate::next;
use crate::output::Console;
use crate::parents;
use crate::shell::argument;
use crate::text::{count, printable, utc};

pub(super) fn print(names: &Names<'_>, console: &mut Console) -> Result<(), Failure> {
    let findings = names.forest.findings();
    let faults = findings.iter().filter(|finding| finding.is_fault()).count();
    let headings = [(0, count(faults, "fault")), (faults, count(findings.len() - faults, "note"))];
    for (i, finding) in findings.iter().enumerate() {
        if let Some((_, heading)) = headings.iter().rev().find(|(first, _)| *first == i) {
            console.line("")?;
            console.line(format!("{heading}:"))?;
        }
        let note = Note::of(names, finding);
        console.line(format!("{:3}. {}", i + 1, note.title))?;
        for line in note.lines {
            console.line(format!("     {line}"))?;
        }
        for command in note.next {
            console.line(format!("     next: {command}"))?;
        }
    }
    Ok(())
}

/// The text of a finding.
struct Note {
    title: String,
    lines: Vec<String>,
    /// Suggested commands.
    next: Vec<String>,
}

impl Note {
    fn of(names: &Names<'_>, finding: &ForestFinding) -> Self {
        let forest = names.forest;
        let link_of = |id: &NodeId| forest.node(*id).link.as_ref();
        match finding {
            ForestFinding::Orphan { child, expected, .. } => {
                let mut note = Self::new(format!("orphan: {}", names.of(*child)));
                note.lines.push(format!("expected parent identity: {}", either(expected)));
                note.lines.extend(link_of(child).map(recorded));
                note.lines.extend(link_of(child).into_iter().flat_map(|link| leads(names, link)));
                note.look_elsewhere(names, *child);
                note
            }
            ForestFinding::BrokenLink {
                child, expected, leads_to, node, found, matches, ..
            } => {
                let mut note = Self::new(format!("broken link: {}", names.of(*child)));
                note.lines.extend(link_of(child).map(recorded));
                let leads_to_path = leads_to;
                let leads_to = node.map_or_else(|| names.path(leads_to), |node| names.of(node));
                note.lines.push(format!("leads to {leads_to}"));
                note.lines.push(format!("expected identity: {}", either(expected)));
                let found = match (found, node) {
                    (Some(found), _) => found.to_string(),
                    (None, Some(_)) => "none readable".into(),
                    (None, None) => unknown(leads_to_path),
                };
                note.lines.push(format!("found identity:    {found}"));
                note.lines.push(match matches[..] {
                    [] => "no file here has the expected identity".into(),
                    _ => format!("the expected identity is that of {}", list(names, matches)),
                });
                match matches.first() {
                    Some(parent) => {
                        note.with_parent(names, *child, *parent);
                        let (child, parent) = (names.argument(*child), names.argument(*parent));
                        note.next.push(format!("avhdx reparent {child} --onto {parent}"));
                    }
                    None => {
                        note.look_elsewhere(names, *child);
                        let parent = node.map_or(leads_to_path, |node| &forest.node(node).path);
                        note.with_another(names, *child, parent);
                    }
                }
                note
            }
            ForestFinding::StalePath { child, matches, .. } => {
                let mut note = Self::new(format!("stale path: {}", names.of(*child)));
                note.lines.extend(link_of(child).map(recorded));
                note.lines.extend(link_of(child).into_iter().flat_map(|link| leads(names, link)));
                note.lines.push(format!("the parent by identity is {}", list(names, matches)));
                if let Some(parent) = matches.first() {
                    note.with_parent(names, *child, *parent);
                    let places = names.places.iter().map(|place| argument(place));
                    note.next.extend(places.map(|place| {
                        format!("avhdx relink {place}  # corrects the recorded paths")
                    }));
                }
                note
            }
            ForestFinding::Damaged { node, .. } => {
                let mut note = Self::new(format!("damaged: {}", names.of(*node)));
                if let Err(error) = &forest.node(*node).image {
                    note.lines.push(printable(&error.to_string()));
                    note.lines.extend(cause(error));
                }
                note.next.push(format!("avhdx check --layer {}", names.argument(*node)));
                note
            }
            ForestFinding::Loop { nodes, .. } => {
                let mut note = Self::new("loop: the parents form a circle");
                for id in nodes {
                    let parent =
                        forest.node(*id).parent().map_or_else(String::new, |p| names.of(p));
                    note.lines.push(format!("the parent of {} is {parent}", names.of(*id)));
                }
                note.next.extend(nodes.iter().map(|id| {
                    let modified = forest.node(*id).modified;
                    let written =
                        modified.map_or_else(String::new, |m| format!("  # written {}", utc(m)));
                    format!("avhdx info {}{written}", names.argument(*id))
                }));
                note
            }
            ForestFinding::SectorSizes { child, parent, .. } => {
                let title = format!("sector sizes: {} and its parent differ", names.of(*child));
                let mut note = Self::new(title);
                for id in [child, parent] {
                    if let Ok(image) = &forest.node(*id).image {
                        let sector = image.geometry.logical_sector;
                        note.lines.push(format!("{sector} bytes in {}", names.of(*id)));
                    }
                }
                note.next.extend(
                    [child, parent].map(|id| format!("avhdx info {}", names.argument(*id))),
                );
                note
            }
            ForestFinding::Unreadable { path, error, .. } => {
                let mut note = Self::new(format!("unreadable: {}", names.path(path)));
                note.lines.push(printable(&error.to_string()));
                note.lines.extend(cause(error));
                let of_host = std::error::Error::source(error);
                let of_host = of_host.and_then(|error| error.downcast_ref::<io::Error>());
                if of_host.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                    let path = argument(path);
                    note.next.push(format!("avhdx tree {path}  # as a user with read access"));
                }
                note
            }
            ForestFinding::NoSignature { path, error, .. } => {
                let mut note = Self::new(format!("no signature: {}", names.path(path)));
                let is_known = error.code() != "identifier.signature";
                note.lines.push(match is_known {
                    true => format!("named like an image, but {}", printable(error.message())),
                    false => "named like an image, but has no signature: truncated, overwritten or another format".into(),
                });
                if is_known {
                    note.next.extend(next::for_file(error, path));
                } else if Check::new().alone(true).run(path).is_ok() {
                    note.next.push(format!("avhdx check --layer {}", argument(path)));
                }
                note
            }
            ForestFinding::UnfinishedMerge { node, .. } => {
                let mut note = Self::new(format!("unfinished merge: {}", names.of(*node)));
                let image = forest.node(*node).image.as_ref().ok();
                if let Some(mark) = image.and_then(|image| image.merge.as_ref()) {
                    let name = printable(&mark.name);
                    note.lines.push(match mark.state {
                        MergeState::Merging => {
                            format!("being merged into {name}, which is inconsistent without it")
                        }
                        MergeState::Spent => {
                            format!("merged into {name}, and not removed yet")
                        }
                        _ => format!(
                            "receives the content of {name}, which was not found; without it, it mixes two points in \
                             time"
                        ),
                    });
                    note.next.push(match mark.state {
                        MergeState::Target => format!(
                            "avhdx tree {} DIR  # DIR: a folder that may contain {name}",
                            names.place_arguments()
                        ),
                        _ => format!("avhdx merge --resume {}", names.argument(*node)),
                    });
                }
                if image.is_some_and(|image| image.merge.is_none()) {
                    note.lines.push("its merge into the layer below has not begun".into());
                    note.next.push(format!("avhdx merge --resume {}", names.argument(*node)));
                }
                note
            }
            ForestFinding::Duplicates { guid, nodes, preferred, .. } => {
                let mut note =
                    Self::new(format!("duplicates: several files have the identity {guid}"));
                note.lines.extend(nodes.iter().map(|id| {
                    let mark = if preferred.contains(id) { "  (at a recorded path)" } else { "" };
                    format!("{}{mark}", names.of(*id))
                }));
                if let [first, rest @ ..] = &nodes[..] {
                    note.next.extend(rest.iter().map(|other| {
                        format!(
                            "avhdx compare {} {}",
                            names.argument(*first),
                            names.argument(*other)
                        )
                    }));
                }
                note
            }
            ForestFinding::Volumes { child, parent, .. } => {
                let (child, parent) = (names.of(*child), names.of(*parent));
                Self::new(format!("volumes: {child} is on another volume than {parent}"))
            }
            ForestFinding::LinkOutside { path, .. } => {
                let mut note =
                    Self::new(format!("link outside: {} was not followed", names.path(path)));
                note.next.push(format!(
                    "avhdx tree {} {}",
                    names.place_arguments(),
                    argument(path)
                ));
                note
            }
            // Findings added later.
            other => Self::new(other.code()),
        }
    }

    fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), lines: Vec::new(), next: Vec::new() }
    }

    fn with_parent(&mut self, names: &Names<'_>, child: NodeId, parent: NodeId) {
        let (child, parent) = (names.argument(child), names.argument(parent));
        self.next.push(format!("avhdx info --chain --with-parent {parent} {child}"));
    }

    /// Suggests the commands that work with the file found.
    fn with_another(&mut self, names: &Names<'_>, child: NodeId, parent: &Path) {
        let options = OpenOptions::new();
        let path = &names.forest.node(child).path;
        if parents::opens_with_another(path, &options) {
            self.next.push(format!(
                "avhdx info --chain --ignore-id-mismatch {}  # the result may be a state that the disk never had",
                names.argument(child)
            ));
        }
        self.next.extend(parents::reparent(path, parent, &options));
    }

    fn look_elsewhere(&mut self, names: &Names<'_>, child: NodeId) {
        let (places, child) = (names.place_arguments(), names.argument(child));
        self.next.push(format!("avhdx tree {places} DIR  # DIR: a folder that may contain it"));
        self.next
            .push(format!("avhdx info --chain --with-parent FILE {child}  # FILE: the file found"));
    }
}

/// Why the identity of what a link leads to is not told.
fn unknown(path: &Path) -> String {
    match LocalHost.stat(path) {
        Ok(stat) if stat.kind != FileKind::File => format!("none: this is {}", stat.kind),
        _ => "different or none; not shown for files outside the folders given".into(),
    }
}

fn either(guids: &[impl ToString]) -> String {
    let guids: Vec<String> = guids.iter().map(ToString::to_string).collect();
    guids.join(" or ")
}

fn list(names: &Names<'_>, nodes: &[NodeId]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|id| names.of(*id)).collect();
    nodes.join(", ")
}

fn recorded(link: &Link) -> String {
    let paths: Vec<&str> = link.recorded_paths().collect();
    match paths[..] {
        [] => "no recorded path".into(),
        _ => format!("recorded: {}", printable(&paths.join(", "))),
    }
}

fn leads(names: &Names<'_>, link: &Link) -> Vec<String> {
    link.leads.iter().map(|lead| format!("tried {}", tried(names, lead))).collect()
}

fn tried(names: &Names<'_>, lead: &Lead) -> String {
    let what = match lead.to {
        LeadsTo::Parent(_) => "the parent",
        LeadsTo::Other(_) | LeadsTo::Stranger => "not the parent",
        LeadsTo::Nothing => "no file",
        LeadsTo::Denied => "denied",
        _ => "cannot be opened",
    };
    format!("{}: {what}", names.path(&lead.path))
}

fn cause(error: &avhdx::Error) -> Option<String> {
    Some(printable(&std::error::Error::source(error)?.to_string()))
}
