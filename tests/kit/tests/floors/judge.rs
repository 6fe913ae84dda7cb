//! The rules, and their violations: upward uses, `impl` blocks outside their floor, circles, long files.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fmt::Write as _;

use crate::tree::{Target, Tree};
use crate::uses::{Edge, Kind, Uses};

/// What a crate must keep to.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// The floors from top to bottom: a name, and the modules on it, children included. `""` is the root without
    /// its children. The longest matching module decides.
    pub floors: &'a [(&'a str, &'a [&'a str])],
    /// Floors that may use only these of the floors below them.
    pub knows: &'a [(&'a str, &'a [&'a str])],
    /// Floors whose modules may not use each other.
    pub apart: &'a [&'a str],
    /// Most lines of a file, tests aside.
    pub most_lines: usize,
    /// Most lines of tests in a production file.
    pub most_test_lines: usize,
}

/// A crate and the rules it is checked against.
pub struct Checked<'a> {
    pub tree: Tree,
    pub uses: Uses,
    rules: Rules<'a>,
    /// The floor of each file.
    pub places: Vec<Option<usize>>,
    /// A prefix for the paths in messages.
    folder: String,
}

/// Files that reach each other by uses.
pub struct Circle<'a> {
    pub members: BTreeSet<usize>,
    /// A shortest cycle among them.
    way: Vec<&'a Edge>,
}

impl<'a> Checked<'a> {
    /// Reads the crate rooted at `lib.rs`. `read` returns the text of a file, given its path relative to `lib.rs`.
    pub fn read(folder: &str, rules: Rules<'a>, read: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut tree = Tree::read("lib.rs", read);
        let uses = Uses::of(&mut tree);
        let modules = tree.files.iter().map(|file| tree.module_name(file.module));
        let places = modules.map(|module| place(rules, &module).map(|(floor, _)| floor)).collect();
        Self { tree, uses, rules, places, folder: folder.to_owned() }
    }

    /// Every violation, one message each.
    pub fn violations(&self) -> Vec<String> {
        let mut violations = self.unplaced();
        violations.extend(self.upward_uses());
        violations.extend(self.excluded_uses());
        violations.extend(self.sideways_uses());
        violations.extend(self.foreign_impls());
        violations.extend(self.circles(&[Kind::Path]).iter().map(|circle| self.drawn(circle)));
        violations.extend(self.long_files());
        violations
    }

    /// Files on no floor, and modules of floors that do not exist.
    pub fn unplaced(&self) -> Vec<String> {
        let mut violations = Vec::new();
        for (file, _) in self.places.iter().enumerate().filter(|(_, place)| place.is_none()) {
            violations.push(format!("{}{}: on no floor", self.folder, self.path(file)));
        }
        let modules: BTreeSet<String> =
            self.tree.files.iter().map(|file| self.tree.module_name(file.module)).collect();
        for (floor, members) in self.rules.floors {
            for module in members.iter().filter(|module| !modules.contains(**module)) {
                violations.push(format!("{floor}: there is no module {module}"));
            }
        }
        violations
    }

    /// Uses of items of a higher floor.
    pub fn upward_uses(&self) -> Vec<String> {
        self.uses_where(|edge| self.places[edge.to] < self.places[edge.from])
    }

    /// Uses of items of a lower floor that [`Rules::knows`] excludes.
    pub fn excluded_uses(&self) -> Vec<String> {
        self.uses_where(|edge| {
            let (from, to) = (self.floor(edge.from), self.floor(edge.to));
            let mut limits = self.rules.knows.iter().filter(|(floor, _)| *floor == from);
            from != to && limits.any(|(_, known)| !known.contains(&to))
        })
    }

    /// Uses between modules of a floor in [`Rules::apart`].
    pub fn sideways_uses(&self) -> Vec<String> {
        self.uses_where(|edge| {
            let module = |file: usize| {
                let name = self.tree.module_name(self.tree.files[file].module);
                place(self.rules, &name).map(|(_, module)| module)
            };
            let (from, to) = (self.floor(edge.from), self.floor(edge.to));
            from == to && self.rules.apart.contains(&from) && module(edge.from) != module(edge.to)
        })
    }

    fn uses_where(&self, is_wrong: impl Fn(&Edge) -> bool) -> Vec<String> {
        let mut violations = Vec::new();
        for edge in self.uses.edges.iter().filter(|edge| edge.kind != Kind::Method) {
            let is_placed = self.places[edge.from].is_some() && self.places[edge.to].is_some();
            if is_placed && is_wrong(edge) {
                let at = self.at(edge.from, &edge.lines);
                let (from, to) = (self.floor(edge.from), self.floor(edge.to));
                violations.push(format!("{at}: {from} uses {} of {to}", edge.item));
            }
        }
        violations
    }

    /// The name of the floor of a file.
    fn floor(&self, file: usize) -> &'a str {
        self.places[file].map_or("no floor", |floor| self.rules.floors[floor].0)
    }

    /// `impl` blocks on a floor that owns neither the type, nor the trait, nor a type among its generic arguments.
    pub fn foreign_impls(&self) -> Vec<String> {
        let mut violations = Vec::new();
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
            violations.push(format!(
                "{}: {} has an `{what} {}`, a type of {}",
                self.at(found.file, &[found.line]),
                self.floor(found.file),
                self.tree.target_name(Target::Item(of)),
                self.floor(self.tree.items[of].file),
            ));
        }
        violations
    }

    /// The circles that edges of these kinds form, the largest first.
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

    /// Files with too many lines.
    pub fn long_files(&self) -> Vec<String> {
        let mut violations = Vec::new();
        for (file, source) in self.tree.files.iter().enumerate() {
            let tests = self.test_lines(file);
            for (lines, most, what) in [
                (source.lines - tests, self.rules.most_lines, "lines without tests"),
                (tests, self.rules.most_test_lines, "lines of tests"),
            ] {
                if lines > most {
                    let path = self.path(file);
                    violations
                        .push(format!("{}{path}: {lines} {what}, more than {most}", self.folder));
                }
            }
        }
        violations
    }

    pub fn test_lines(&self, file: usize) -> usize {
        let lines: BTreeSet<usize> = self.uses.tests[file].iter().cloned().flatten().collect();
        lines.len()
    }

    pub fn path(&self, file: usize) -> &str {
        &self.tree.files[file].path
    }

    /// A file with line numbers, in the form `path:1,2`.
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

/// A shortest cycle within a circle.
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

/// The floor with the longest module that contains this one, and that module.
fn place<'a>(rules: Rules<'a>, module: &str) -> Option<(usize, &'a str)> {
    let floors = rules.floors.iter().enumerate();
    let members = floors.flat_map(|(floor, (_, modules))| modules.iter().map(move |m| (floor, *m)));
    members.filter(|(_, outer)| holds(outer, module)).max_by_key(|(_, outer)| outer.len())
}

/// Whether a module is the other or contains it. The root contains nothing.
fn holds(outer: &str, module: &str) -> bool {
    match module.strip_prefix(outer) {
        Some(rest) => rest.is_empty() || !outer.is_empty() && rest.starts_with("::"),
        None => false,
    }
}
