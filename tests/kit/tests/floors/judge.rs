//! What is wrong with a crate: uses that point up, `impl` blocks outside their floor, circles, files that are too long.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fmt::Write as _;

use crate::tree::{Target, Tree};
use crate::uses::{Edge, Kind, Uses};

/// The floors of a crate.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// From top to bottom: a name, and the modules that the floor is made of with all inside them. `""` is the root
    /// alone. Where several hold a module, the longest does.
    pub floors: &'a [(&'a str, &'a [&'a str])],
    /// Floors that may use some of those below them only.
    pub knows: &'a [(&'a str, &'a [&'a str])],
    /// Most lines of a file before its tests, and most lines of tests in it.
    pub most_lines: usize,
    pub most_test_lines: usize,
}

/// A crate, held against its plan.
pub struct House<'a> {
    pub tree: Tree,
    pub uses: Uses,
    plan: Plan<'a>,
    /// The floor of each file.
    pub places: Vec<Option<usize>>,
    /// What complaints put before the path of a file.
    folder: String,
}

/// Files that all lead to each other.
pub struct Circle<'a> {
    pub members: BTreeSet<usize>,
    /// A shortest way around among them.
    way: Vec<&'a Edge>,
}

impl<'a> House<'a> {
    /// Reads the crate whose root is `lib.rs`. `read` has the text of a file, by its path beside the root.
    pub fn read(folder: &str, plan: Plan<'a>, read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut tree = Tree::read("lib.rs", read);
        let uses = Uses::of(&mut tree);
        let modules = tree.files.iter().map(|file| tree.module_name(file.module));
        let places = modules.map(|module| place(plan, &module)).collect();
        Self { tree, uses, plan, places, folder: folder.to_owned() }
    }

    /// Everything that is wrong, one complaint each.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = self.astray();
        complaints.extend(self.upward());
        complaints.extend(self.unknown());
        complaints.extend(self.outside());
        complaints.extend(self.circles(&[Kind::Path]).iter().map(|circle| self.drawn(circle)));
        complaints.extend(self.long());
        complaints
    }

    /// Files on no floor, and floors without files.
    pub fn astray(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (file, _) in self.places.iter().enumerate().filter(|(_, place)| place.is_none()) {
            complaints.push(format!("{}{}: on no floor", self.folder, self.path(file)));
        }
        let modules: BTreeSet<String> =
            self.tree.files.iter().map(|file| self.tree.module_name(file.module)).collect();
        for (floor, planned) in self.plan.floors {
            for module in planned.iter().filter(|module| !modules.contains(**module)) {
                complaints.push(format!("{floor}: there is no module {module}"));
            }
        }
        complaints
    }

    /// Uses of what is defined on a higher floor.
    pub fn upward(&self) -> Vec<String> {
        self.wrong(|from, to| to < from)
    }

    /// Uses of what is defined on a lower floor that this one is not to know.
    pub fn unknown(&self) -> Vec<String> {
        self.wrong(|from, to| {
            let (from_name, to_name) = (self.plan.floors[from].0, self.plan.floors[to].0);
            let mut limits = self.plan.knows.iter().filter(|(floor, _)| *floor == from_name);
            from < to && limits.any(|(_, known)| !known.contains(&to_name))
        })
    }

    fn wrong(&self, is_wrong: impl Fn(usize, usize) -> bool) -> Vec<String> {
        let mut complaints = Vec::new();
        for edge in self.uses.edges.iter().filter(|edge| edge.kind != Kind::Method) {
            if let (Some(from), Some(to)) = (self.places[edge.from], self.places[edge.to])
                && is_wrong(from, to)
            {
                let at = self.at(edge.from, &edge.lines);
                let (from, to) = (self.plan.floors[from].0, self.plan.floors[to].0);
                complaints.push(format!("{at}: {from} uses {} of {to}", edge.item));
            }
        }
        complaints
    }

    /// `impl` blocks on another floor than their type, and than what of their trait is this crate's.
    pub fn outside(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for found in &self.uses.impls {
            let (Some(of), Some(here)) = (found.of, self.places[found.file]) else { continue };
            let floor = |item: usize| self.places[self.tree.items[item].file];
            let mut reasons = found.of_trait.iter().flat_map(|of_trait| &of_trait.local);
            if floor(of) == Some(here) || reasons.any(|item| floor(*item) == Some(here)) {
                continue;
            }
            let what = match &found.of_trait {
                Some(of_trait) => format!("impl {} for", of_trait.name),
                None => "impl".to_owned(),
            };
            complaints.push(format!(
                "{}: {} has an `{what} {}`, which is of {}",
                self.at(found.file, &[found.line]),
                self.plan.floors[here].0,
                self.tree.target_name(Target::Item(of)),
                floor(of).map_or("no floor", |floor| self.plan.floors[floor].0),
            ));
        }
        complaints
    }

    /// Sets of files that all lead to each other by edges of these kinds, the largest first.
    pub fn circles(&self, kinds: &[Kind]) -> Vec<Circle<'_>> {
        let mut next: Vec<BTreeMap<usize, &Edge>> = vec![BTreeMap::new(); self.tree.files.len()];
        for edge in self.uses.edges.iter().filter(|edge| kinds.contains(&edge.kind)) {
            next[edge.from].entry(edge.to).or_insert(edge);
        }
        let reached: Vec<HashSet<usize>> = (0..next.len()).map(|file| reach(&next, file)).collect();
        let mut done = BTreeSet::new();
        let mut circles = Vec::new();
        for file in 0..next.len() {
            let there = reached[file].iter().copied();
            let members: BTreeSet<usize> =
                there.filter(|other| reached[*other].contains(&file)).collect();
            if members.len() > 1 && done.insert(members.clone()) {
                let way = way(&next, &members);
                circles.push(Circle { members, way });
            }
        }
        circles.sort_by_key(|circle| std::cmp::Reverse(circle.members.len()));
        circles
    }

    pub fn drawn(&self, circle: &Circle<'_>) -> String {
        let files: Vec<&str> = circle.members.iter().map(|file| self.path(*file)).collect();
        let mut drawn = format!("circle of {} files: {}", files.len(), files.join(" "));
        for edge in &circle.way {
            let at = self.at(edge.from, &edge.lines[..1]);
            let _ = write!(drawn, "\n    {at}: uses {} of {}", edge.item, self.path(edge.to));
        }
        drawn
    }

    /// Files with too many lines before their tests, or of tests.
    pub fn long(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for (file, source) in self.tree.files.iter().enumerate() {
            let tests = self.test_lines(file);
            for (lines, most, what) in [
                (source.lines - tests, self.plan.most_lines, "lines before its tests"),
                (tests, self.plan.most_test_lines, "lines of tests"),
            ] {
                if lines > most {
                    let path = self.path(file);
                    complaints
                        .push(format!("{}{path}: {lines} {what}, {most} at most", self.folder));
                }
            }
        }
        complaints
    }

    pub fn test_lines(&self, file: usize) -> usize {
        let lines: BTreeSet<usize> = self.uses.tests[file].iter().cloned().flatten().collect();
        lines.len()
    }

    pub fn path(&self, file: usize) -> &str {
        &self.tree.files[file].path
    }

    /// A place as editors know it, with further lines behind it.
    fn at(&self, file: usize, lines: &[usize]) -> String {
        let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
        format!("{}{}:{}", self.folder, self.path(file), lines.join(","))
    }
}

fn reach(next: &[BTreeMap<usize, &Edge>], from: usize) -> HashSet<usize> {
    let mut reached = HashSet::new();
    let mut due: Vec<usize> = next[from].keys().copied().collect();
    while let Some(file) = due.pop() {
        if reached.insert(file) {
            due.extend(next[file].keys());
        }
    }
    reached
}

/// A shortest way from a file of a circle back to it.
fn way<'a>(next: &[BTreeMap<usize, &'a Edge>], members: &BTreeSet<usize>) -> Vec<&'a Edge> {
    let ways = members.iter().map(|start| {
        let mut before: BTreeMap<usize, &Edge> = BTreeMap::new();
        let mut due = VecDeque::from([*start]);
        while let Some(file) = due.pop_front() {
            for (to, edge) in next[file].iter().filter(|(to, _)| members.contains(to)) {
                if !before.contains_key(to) {
                    before.insert(*to, edge);
                    due.push_back(*to);
                }
            }
        }
        let mut way = vec![before[start]];
        while way[way.len() - 1].from != *start {
            way.push(before[&way[way.len() - 1].from]);
        }
        way.reverse();
        way
    });
    ways.min_by_key(Vec::len).unwrap_or_default()
}

/// The floor whose modules have the longest name that this one begins with.
fn place(plan: Plan<'_>, module: &str) -> Option<usize> {
    let floors = plan.floors.iter().enumerate();
    let fits = floors.flat_map(|(floor, (_, modules))| {
        modules.iter().filter(|outer| holds(outer, module)).map(move |outer| (outer.len(), floor))
    });
    fits.max().map(|(_, floor)| floor)
}

/// Whether a module is this one or inside it. The root holds itself alone.
fn holds(outer: &str, module: &str) -> bool {
    match module.strip_prefix(outer) {
        Some(rest) => rest.is_empty() || !outer.is_empty() && rest.starts_with("::"),
        None => false,
    }
}
