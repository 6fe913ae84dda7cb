//! The findings in words, each with what to do next.

use std::path::Path;

use avhdx::ops::Check;
use avhdx::ops::forest::{Finding, Lead, LeadsTo, Link, NodeId};
use avhdx::{MergeState, OpenOptions};

use super::draw::count;
use super::names::{Names, argument, shown};
use crate::exit::Failure;
use crate::facts::utc;
use crate::next;
use crate::output::Console;
use crate::parents;

pub(super) fn print(names: &Names<'_>, console: &mut Console) -> Result<(), Failure> {
    let findings = names.forest.findings();
    let faults = findings.iter().filter(|finding| finding.is_fault()).count();
    let headings = [(0, count(faults, "fault")), (faults, count(findings.len() - faults, "note"))];
    for (i, finding) in findings.iter().enumerate() {
        if let Some((_, heading)) = headings.iter().rev().find(|(first, _)| *first == i) {
            console.line("")?;
            console.line(format!("{heading}:"))?;
        }
        let words = Words::of(names, finding);
        console.line(format!("{:3}. {}", i + 1, words.title))?;
        for line in words.lines {
            console.line(format!("     {line}"))?;
        }
        for command in words.next {
            console.line(format!("     next: {command}"))?;
        }
    }
    Ok(())
}

/// A finding in words.
struct Words {
    title: String,
    lines: Vec<String>,
    /// What to do.
    next: Vec<String>,
}

impl Words {
    fn of(names: &Names<'_>, finding: &Finding) -> Self {
        let forest = names.forest;
        let link_of = |id: &NodeId| forest.node(*id).link.as_ref();
        match finding {
            Finding::Orphan { child, expected, .. } => {
                let mut words = Self::new(format!("orphan: {}", names.of(*child)));
                words
                    .lines
                    .push(format!("expects a parent with the identity {}", either(expected)));
                words.lines.extend(link_of(child).map(recorded));
                words.lines.extend(link_of(child).into_iter().flat_map(|link| leads(names, link)));
                words.look_elsewhere(names, *child);
                words
            }
            Finding::BrokenLink { child, expected, leads_to, node, found, matches, .. } => {
                let mut words = Self::new(format!("broken link: {}", names.of(*child)));
                words.lines.extend(link_of(child).map(recorded));
                let leads_to_path = leads_to;
                let leads_to = node.map_or_else(|| names.path(leads_to), |node| names.of(node));
                words.lines.push(format!("leads to {leads_to}"));
                words.lines.push(format!("identity expected: {}", either(expected)));
                let found = match (found, node) {
                    (Some(found), _) => found.to_string(),
                    (None, Some(_)) => "none that can be read".into(),
                    (None, None) => {
                        "another, if any; not shown of a file outside the places given".into()
                    }
                };
                words.lines.push(format!("identity found:    {found}"));
                words.lines.push(match matches[..] {
                    [] => "no other file here has the identity expected".into(),
                    _ => format!("the identity expected is that of {}", list(names, matches)),
                });
                match matches.first() {
                    Some(parent) => {
                        words.with_parent(names, *child, *parent);
                        let (child, parent) = (names.argument(*child), names.argument(*parent));
                        words.next.push(format!("avhdx reparent {child} --onto {parent}"));
                    }
                    None => {
                        words.look_elsewhere(names, *child);
                        let parent = node.map_or(leads_to_path, |node| &forest.node(node).path);
                        words.with_another(names, *child, parent);
                    }
                }
                words
            }
            Finding::StalePath { child, matches, .. } => {
                let mut words = Self::new(format!("stale path: {}", names.of(*child)));
                words.lines.extend(link_of(child).map(recorded));
                words.lines.extend(link_of(child).into_iter().flat_map(|link| leads(names, link)));
                words.lines.push(format!("the parent by its identity is {}", list(names, matches)));
                if let Some(parent) = matches.first() {
                    words.with_parent(names, *child, *parent);
                    let places = names.places.iter().map(|place| argument(place));
                    words.next.extend(places.map(|place| {
                        format!("avhdx relink {place}  # records where the parents are")
                    }));
                }
                words
            }
            Finding::Damaged { node, .. } => {
                let mut words = Self::new(format!("damaged: {}", names.of(*node)));
                if let Err(error) = &forest.node(*node).image {
                    words.lines.push(shown(&error.to_string()));
                    words.lines.extend(cause(error));
                }
                words.next.push(format!("avhdx check --layer {}", names.argument(*node)));
                words
            }
            Finding::Loop { nodes, .. } => {
                let mut words = Self::new("loop: the parents lead back to where they started");
                for id in nodes {
                    let parent =
                        forest.node(*id).parent().map_or_else(String::new, |p| names.of(p));
                    words.lines.push(format!("{} has for its parent {parent}", names.of(*id)));
                }
                words.next.extend(nodes.iter().map(|id| {
                    let modified = forest.node(*id).modified;
                    let written =
                        modified.map_or_else(String::new, |m| format!("  # written {}", utc(m)));
                    format!("avhdx info {}{written}", names.argument(*id))
                }));
                words
            }
            Finding::SectorSizes { child, parent, .. } => {
                let title = format!("sector sizes: {} and its parent differ", names.of(*child));
                let mut words = Self::new(title);
                for id in [child, parent] {
                    if let Ok(image) = &forest.node(*id).image {
                        let sector = image.geometry.logical_sector;
                        words.lines.push(format!("{sector} bytes in {}", names.of(*id)));
                    }
                }
                words.next.extend(
                    [child, parent].map(|id| format!("avhdx info {}", names.argument(*id))),
                );
                words
            }
            Finding::Unreadable { path, error, .. } => {
                let mut words = Self::new(format!("unreadable: {}", names.path(path)));
                words.lines.push(shown(&error.to_string()));
                words.lines.extend(cause(error));
                words
                    .next
                    .push(format!("avhdx tree {}  # as a user who may read it", argument(path)));
                words
            }
            Finding::NoSignature { path, error, .. } => {
                let mut words = Self::new(format!("no signature: {}", names.path(path)));
                let is_known = error.code() != "identifier.signature";
                words.lines.push(match is_known {
                    true => format!("called like an image, but {}", shown(error.message())),
                    false => "called like an image, but does not start as one: cut, overwritten or another thing".into(),
                });
                if is_known {
                    words.next.extend(next::for_file(error, path));
                } else if Check::new().alone(true).run(path).is_ok() {
                    words.next.push(format!("avhdx check --layer {}", argument(path)));
                }
                words
            }
            Finding::UnfinishedMerge { node, .. } => {
                let mut words = Self::new(format!("unfinished merge: {}", names.of(*node)));
                let image = forest.node(*node).image.as_ref().ok();
                if let Some(mark) = image.and_then(|image| image.merge.as_ref()) {
                    let name = shown(&mark.name);
                    words.lines.push(match mark.state {
                        MergeState::Merging => {
                            format!("is being merged into {name}; it is read from here on up, not by {name} alone")
                        }
                        MergeState::Spent => {
                            format!("was merged into {name} and waits for being removed")
                        }
                        _ => format!(
                            "takes the content of {name}, which was not found here; alone it holds a \
                             mixture of two points in time"
                        ),
                    });
                    words.next.push(match mark.state {
                        MergeState::Target => format!(
                            "avhdx tree {} DIR  # DIR: a folder that may hold {name}",
                            names.place_arguments()
                        ),
                        _ => format!("avhdx merge --resume {}", names.argument(*node)),
                    });
                }
                words
            }
            Finding::Duplicates { guid, nodes, preferred, .. } => {
                let mut words =
                    Self::new(format!("duplicates: several files have the identity {guid}"));
                words.lines.extend(nodes.iter().map(|id| {
                    let mark =
                        if preferred.contains(id) { "  (a recorded path leads here)" } else { "" };
                    format!("{}{mark}", names.of(*id))
                }));
                if let [first, rest @ ..] = &nodes[..] {
                    words.next.extend(rest.iter().map(|other| {
                        format!(
                            "avhdx compare {} {}",
                            names.argument(*first),
                            names.argument(*other)
                        )
                    }));
                }
                words
            }
            Finding::Volumes { child, parent, .. } => {
                let (child, parent) = (names.of(*child), names.of(*parent));
                Self::new(format!("volumes: {child} lies on another volume than {parent}"))
            }
            Finding::LinkOutside { path, .. } => {
                let mut words =
                    Self::new(format!("link outside: {} was not followed", names.path(path)));
                words.next.push(format!(
                    "avhdx tree {} {}",
                    names.place_arguments(),
                    argument(path)
                ));
                words
            }
            // Findings yet to come.
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

    /// The ways to go on with the file found, where they lead anywhere.
    fn with_another(&mut self, names: &Names<'_>, child: NodeId, parent: &Path) {
        let options = OpenOptions::new();
        let path = &names.forest.node(child).path;
        if parents::opens_with_another(path, &options) {
            self.next.push(format!(
                "avhdx info --chain --ignore-id-mismatch {}  # bytes may be a mixture that never was on the disk",
                names.argument(child)
            ));
        }
        self.next.extend(parents::reparent(path, parent, &options));
    }

    fn look_elsewhere(&mut self, names: &Names<'_>, child: NodeId) {
        let (places, child) = (names.place_arguments(), names.argument(child));
        self.next.push(format!("avhdx tree {places} DIR  # DIR: a folder that may hold it"));
        self.next
            .push(format!("avhdx info --chain --with-parent FILE {child}  # FILE: what was found"));
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
        [] => "no path is recorded".into(),
        _ => format!("recorded: {}", shown(&paths.join(", "))),
    }
}

fn leads(names: &Names<'_>, link: &Link) -> Vec<String> {
    link.leads.iter().map(|lead| format!("looked at {}", led(names, lead))).collect()
}

fn led(names: &Names<'_>, lead: &Lead) -> String {
    let what = match lead.to {
        LeadsTo::Parent(_) => "the parent",
        LeadsTo::Other(_) | LeadsTo::Stranger => "not the parent",
        LeadsTo::Nothing => "nothing there",
        LeadsTo::Denied => "denied",
        _ => "cannot be opened",
    };
    format!("{}: {what}", names.path(&lead.path))
}

fn cause(error: &avhdx::Error) -> Option<String> {
    Some(shown(&std::error::Error::source(error)?.to_string()))
}
