//! The bugs as they are written down in `tests/bugs/*.bugs`.

use std::fs;
use std::path::Path;

use super::tokens::tokens;

/// A mistake that a test must find.
#[derive(Debug)]
pub struct Bug {
    /// Its name, as `AVHDX_MUTANT` selects it.
    pub name: String,
    /// What goes wrong.
    pub what: String,
    /// The tests that find it, each on its own.
    pub hunts: Vec<Hunt>,
    /// The file that describes it.
    pub file: String,
    pub(super) hunks: Vec<Hunk>,
}

/// A test that fails once the bug is planted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hunt {
    /// A target of `cargo test --test`, or `lib`.
    pub target: String,
    /// The name of the function, with as much of its path as makes it unique.
    pub test: String,
    /// The workload of the crash explorer, where the test takes one.
    pub workload: Option<String>,
}

/// A change of one place: code as it stands, and what is added to it and removed from it.
#[derive(Debug)]
pub(super) struct Hunk {
    /// The code as it stands.
    pub(super) before: String,
    /// Whether each token of it is removed.
    pub(super) removed: Vec<bool>,
    /// What is added, and before which token.
    pub(super) added: Vec<(usize, String)>,
}

/// Reads all bugs of a folder, in the order of the files' names.
///
/// # Errors
///
/// The file and the line that cannot be read as a bug.
pub fn read_bugs(folder: &Path) -> Result<Vec<Bug>, String> {
    let failed = |error| format!("{}: {error}", folder.display());
    let entries = fs::read_dir(folder).map_err(failed)?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "bugs"));
    paths.sort();
    let mut bugs = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(failed)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        bugs.extend(parse(&text, &file)?);
    }
    Ok(bugs)
}

pub(super) fn parse(text: &str, file: &str) -> Result<Vec<Bug>, String> {
    let mut bugs: Vec<Bug> = Vec::new();
    let mut lines: Vec<&str> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("{file}:{}: {what}: {line}", number + 1);
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix("bug ") {
            close(&mut bugs, &mut lines, false).map_err(|error| wrong(&error))?;
            bugs.push(Bug {
                name: name.trim().into(),
                what: String::new(),
                hunts: Vec::new(),
                file: file.into(),
                hunks: Vec::new(),
            });
            continue;
        }
        let Some(bug) = bugs.last_mut() else {
            return Err(wrong("no bug begins before this line"));
        };
        let is_hunk = !lines.is_empty();
        if line == "@@" {
            close(&mut bugs, &mut lines, true).map_err(|error| wrong(&error))?;
            lines.push(line);
        } else if is_hunk && line.starts_with([' ', '+', '-']) {
            lines.push(line);
        } else if let Some(hunt) = line.trim().strip_prefix("found by ") {
            let Some(hunt) = parse_hunt(hunt) else {
                return Err(wrong("no test of the form TARGET TEST"));
            };
            bug.hunts.push(hunt);
        } else if !is_hunk && line.starts_with(' ') {
            bug.what = format!("{} {}", bug.what, line.trim()).trim().into();
        } else {
            return Err(wrong("neither code nor the start of a bug"));
        }
    }
    close(&mut bugs, &mut lines, false).map_err(|error| format!("{file}: at its end: {error}"))?;
    Ok(bugs)
}

/// `TARGET TEST`, or `TARGET TEST on "WORKLOAD"`.
fn parse_hunt(text: &str) -> Option<Hunt> {
    let (target, rest) = text.split_once(' ')?;
    let (test, workload) = match rest.split_once(" on ") {
        Some((test, workload)) => {
            (test, Some(workload.strip_prefix('"')?.strip_suffix('"')?.to_owned()))
        }
        None => (rest, None),
    };
    let is_word = !test.contains(char::is_whitespace);
    is_word.then(|| Hunt { target: target.into(), test: test.into(), workload })
}

/// Gives the lines since the last `@@` to the last bug, which ends there unless it `goes_on`.
fn close(bugs: &mut [Bug], lines: &mut Vec<&str>, goes_on: bool) -> Result<(), String> {
    let Some(bug) = bugs.last_mut() else { return Ok(()) };
    let lines = std::mem::take(lines);
    let failed = |what: &str| Err(format!("the bug {} {what}", bug.name));
    if !lines.is_empty() {
        let hunk = Hunk::new(&lines[1..], &bug.name);
        if !hunk.added.iter().any(|(_, text)| text.contains("planted::is")) {
            return failed("has a change that does not ask planted(), and is always there");
        }
        if hunk.removed.is_empty() {
            return failed("has a change that shows no code as it stands");
        }
        bug.hunks.push(hunk);
    }
    match () {
        () if goes_on => Ok(()),
        () if bug.what.is_empty() => failed("does not say what goes wrong"),
        () if bug.hunts.is_empty() => failed("names no test that finds it (found by TARGET TEST)"),
        () if bug.hunks.is_empty() => failed("changes no code (@@)"),
        () => Ok(()),
    }
}

impl Hunk {
    fn new(lines: &[&str], name: &str) -> Self {
        let is_planted = format!("crate::planted::is(\"{name}\")");
        let mut before = String::new();
        let (mut removed, mut added) = (Vec::new(), Vec::<(usize, String)>::new());
        for line in lines {
            let (sign, code) = line.split_at(1);
            if sign == "+" {
                let code = code.replace("planted()", &is_planted);
                match added.last_mut().filter(|(at, _)| *at == before.len()) {
                    Some((_, text)) => *text = format!("{text}\n{code}"),
                    None => added.push((before.len(), code)),
                }
                continue;
            }
            let start = before.len();
            before = before + code + "\n";
            if sign == "-" {
                removed.push(start..before.len());
            }
        }
        let tokens = tokens(&before);
        let is_removed = |at| removed.iter().any(|lines| lines.contains(&at));
        let index = |at| tokens.iter().filter(|token| token.start < at).count();
        Self {
            removed: tokens.iter().map(|token| is_removed(token.start)).collect(),
            added: added.into_iter().map(|(at, text)| (index(at), text)).collect(),
            before,
        }
    }
}
