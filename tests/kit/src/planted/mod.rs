//! Bugs planted in a copy of the sources, to show that the tests find them.
//!
//! The bugs are in `tests/bugs/*.bugs`. Each is a change of the code as it stands, which the quick test
//! `tests/planted.rs` keeps up to date; the program `hunt` builds a copy that holds all of them and has the tests hunt
//! for one after the other.

mod bugs;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use bugs::Hunk;
pub use bugs::{Bug, Hunt, read_bugs};
use tokens::tokens;

/// What the copy has beside the sources: whether a bug is the selected one.
const MODULE: &str = r#"//! Whether a bug is planted: `AVHDX_MUTANT` names the one that is.

pub(crate) fn is(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("AVHDX_MUTANT").unwrap_or_default()) == name
}
"#;

/// The sources that bugs are planted in.
#[derive(Debug)]
pub struct Sources(Vec<Source>);

#[derive(Debug)]
struct Source {
    path: PathBuf,
    text: String,
    tokens: Vec<Range<usize>>,
}

/// A change of a source: text that goes and text that comes, at bytes of it.
struct Edit<'a> {
    place: Range<usize>,
    text: &'a str,
    bug: &'a Bug,
}

impl Sources {
    /// Reads all Rust files below `src/` of a checkout.
    ///
    /// # Panics
    ///
    /// Where they cannot be read.
    pub fn read(checkout: &Path) -> Self {
        let mut paths = files_below(&checkout.join("src"));
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).expect("a source is readable text");
            let path = path.strip_prefix(checkout).expect("it is below").to_path_buf();
            Source { tokens: tokens(&text), path, text }
        };
        Self(paths.into_iter().map(read).collect())
    }

    /// The sources that change, with all bugs in them.
    ///
    /// # Errors
    ///
    /// What does not fit: code that is not there exactly once, and bugs that change the same code.
    pub fn plant(&self, bugs: &[Bug]) -> Result<Vec<(PathBuf, String)>, Vec<String>> {
        let index = Index::new(self);
        let mut wrong = Vec::new();
        let mut edits: Vec<Vec<Edit<'_>>> = self.0.iter().map(|_| Vec::new()).collect();
        for bug in bugs {
            for hunk in &bug.hunks {
                match index.find(hunk) {
                    Ok((source, first)) => {
                        edits[source].extend(self.0[source].edits(hunk, first, bug));
                    }
                    Err(why) => wrong.push(format!("{}: {}: {why}", bug.file, bug.name)),
                }
            }
        }
        let mut changed = Vec::new();
        for (source, edits) in self.0.iter().zip(edits).filter(|(_, edits)| !edits.is_empty()) {
            match source.changed(edits) {
                Ok(text) => changed.push((source.path.clone(), text)),
                Err(why) => wrong.push(why),
            }
        }
        if wrong.is_empty() { Ok(changed) } else { Err(wrong) }
    }
}

impl Source {
    fn line(&self, token: usize) -> String {
        let start = self.tokens.get(token).map_or(self.text.len(), |token| token.start);
        format!("{}:{}", self.path.display(), self.text[..start].matches('\n').count() + 1)
    }

    /// The changes of a hunk whose code starts at this token.
    fn edits<'a>(&self, hunk: &'a Hunk, first: usize, bug: &'a Bug) -> Vec<Edit<'a>> {
        let mut edits = Vec::new();
        for (at, text) in &hunk.added {
            let before = (first + at).checked_sub(1).map_or(0, |token| self.tokens[token].end);
            edits.push(Edit { place: before..before, text, bug });
        }
        let mut at = 0;
        for run in hunk.removed.chunk_by(|a, b| a == b) {
            let (start, end) = (first + at, first + at + run.len());
            at += run.len();
            if run[0] {
                let place = self.tokens[start].start..self.tokens[end - 1].end;
                edits.push(Edit { place, text: "", bug });
            }
        }
        edits
    }

    fn changed(&self, mut edits: Vec<Edit<'_>>) -> Result<String, String> {
        // Additions at one place stay in the order of the bugs.
        edits.sort_by_key(|edit| (edit.place.start, !edit.place.is_empty()));
        let (mut text, mut at, mut last) = (String::new(), 0, "");
        for Edit { place, text: added, bug } in edits {
            if place.start < at {
                let path = self.path.display();
                return Err(format!(
                    "{}: {} and {last} change the same code of {path}: have one of them add around it (+) instead \
                     of replacing it",
                    bug.file, bug.name
                ));
            }
            text.push_str(&self.text[at..place.start]);
            if place.is_empty() {
                write!(text, "\n{added}\n").expect("a string takes all");
            } else {
                last = &bug.name;
            }
            at = place.end;
        }
        Ok(text + &self.text[at..])
    }
}

/// The tokens of all sources as numbers, which are quick to compare.
struct Index<'a> {
    sources: &'a [Source],
    numbers: HashMap<&'a str, usize>,
    streams: Vec<Vec<usize>>,
    /// Where each token stands: the source, and which token it is there.
    places: Vec<Vec<(usize, usize)>>,
}

impl<'a> Index<'a> {
    fn new(sources: &'a Sources) -> Self {
        let (mut numbers, mut places) = (HashMap::new(), Vec::<Vec<_>>::new());
        let mut streams = Vec::new();
        for (at, source) in sources.0.iter().enumerate() {
            let mut stream = Vec::with_capacity(source.tokens.len());
            for (token, range) in source.tokens.iter().enumerate() {
                let number = *numbers.entry(&source.text[range.clone()]).or_insert(places.len());
                places.resize_with(places.len().max(number + 1), Vec::new);
                places[number].push((at, token));
                stream.push(number);
            }
            streams.push(stream);
        }
        Self { sources: &sources.0, numbers, streams, places }
    }

    /// The source and the token that a hunk's code starts at.
    fn find(&self, hunk: &Hunk) -> Result<(usize, usize), String> {
        let tokens = tokens(&hunk.before);
        let number = |token: &Range<usize>| {
            self.numbers.get(&hunk.before[token.clone()]).copied().unwrap_or(usize::MAX)
        };
        let code: Vec<usize> = tokens.iter().map(number).collect();
        let (mut found, mut nearest) = (Vec::new(), (0, 0, 0));
        for (source, first) in self.places.get(code[0]).into_iter().flatten().copied() {
            let rest = &self.streams[source][first..];
            let same = rest.iter().zip(&code).take_while(|(a, b)| a == b).count();
            if same == code.len() {
                found.push((source, first));
            }
            if same > nearest.0 {
                nearest = (same, source, first);
            }
        }
        let shown = hunk.before.trim_end().replace('\n', "\n    ");
        match found[..] {
            [only] => Ok(only),
            [] => {
                let (same, source, first) = nearest;
                let source = &self.sources[source];
                let shows = |token: Option<&Range<usize>>, text: &str| {
                    token.map_or("nothing".into(), |token| format!("`{}`", &text[token.clone()]))
                };
                let nearest = match same {
                    0 => String::new(),
                    _ => format!(
                        "\n  The nearest begins at {} and differs at {}: {} stands in the place of {}.",
                        source.line(first),
                        source.line(first + same),
                        shows(source.tokens.get(first + same), &source.text),
                        shows(tokens.get(same), &hunk.before),
                    ),
                };
                Err(format!("src/ has no such code:\n    {shown}{nearest}"))
            }
            _ => {
                let places: Vec<String> = found
                    .iter()
                    .map(|(source, first)| self.sources[*source].line(*first))
                    .collect();
                Err(format!(
                    "src/ has this code more than once, at {}:\n    {shown}",
                    places.join(", ")
                ))
            }
        }
    }
}

/// Makes a folder the copy of a checkout that holds all bugs. Files that are right already stay untouched, so that
/// only what changed is built again.
///
/// # Errors
///
/// What does not fit, as [`Sources::plant`] says it.
///
/// # Panics
///
/// Where a file cannot be read or written.
pub fn plant_copy(checkout: &Path, copy: &Path, bugs: &[Bug]) -> Result<(), Vec<String>> {
    let mut planted: HashMap<PathBuf, String> =
        Sources::read(checkout).plant(bugs)?.into_iter().collect();
    let root = PathBuf::from("src/lib.rs");
    let lib = planted
        .remove(&root)
        .unwrap_or_else(|| fs::read_to_string(checkout.join(&root)).expect("the crate has a root"));
    planted.insert(root, lib + "\nmod planted;\n");
    planted.insert("src/planted.rs".into(), MODULE.into());
    let mut kept = HashSet::new();
    for path in files_of(checkout) {
        if !planted.contains_key(&path) {
            let bytes = fs::read(checkout.join(&path)).expect("a file of the checkout is readable");
            kept.insert(update(copy, &path, &bytes));
        }
    }
    for (path, text) in &planted {
        kept.insert(update(copy, path, text.as_bytes()));
    }
    for path in files_below(copy).into_iter().filter(|path| !kept.contains(path)) {
        fs::remove_file(path).expect("a file of the copy can be removed");
    }
    Ok(())
}

fn update(copy: &Path, path: &Path, bytes: &[u8]) -> PathBuf {
    let path = copy.join(path);
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return path;
    }
    let folder = path.parent().expect("it is in the copy");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, bytes))
        .expect("the copy is writable");
    path
}

/// What git knows of, or would be asked to add.
fn files_of(checkout: &Path) -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = git.current_dir(checkout).output().expect("git can be run");
    assert!(listed.status.success(), "{} is a checkout of git", checkout.display());
    let names = String::from_utf8(listed.stdout).expect("names are UTF-8");
    let paths = names.split_terminator('\0').map(PathBuf::from);
    // One that was removed and is not committed yet is still listed.
    paths.filter(|path| checkout.join(path).is_file()).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}
