//! `docs/errors.md` has each code of the library and the program, with its kinds and exit codes.
#![allow(clippy::disallowed_methods)] // the page and the sources are read as files

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use avhdx::Error;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::failure::{Exit, KINDS, exit_of};

/// Literals that look like codes: attributes of files and kinds of file systems.
const OTHERS: [&str; 2] = ["security.selinux", "fuse.sshfs"];

const EXITS: [Exit; 7] = [
    Exit::Usage,
    Exit::Io,
    Exit::Damaged,
    Exit::Parent,
    Exit::InUse,
    Exit::Refused,
    Exit::Interrupted,
];

/// What the page says of a code.
struct Row {
    kinds: BTreeSet<String>,
    exits: BTreeSet<String>,
    text: String,
}

/// What the sources say of a code.
#[derive(Default)]
struct Found {
    kinds: BTreeSet<String>,
    exits: BTreeSet<String>,
    /// Whether only the check of the library makes it.
    is_of_check: bool,
}

#[test]
fn the_page_of_codes_is_that_of_the_sources() {
    let page = page();
    let found = sources();
    let wrong = missing(&page, &found);
    assert!(wrong.is_empty(), "docs/errors.md:\n{}", wrong.join("\n"));
    let wrong: Vec<String> =
        found.iter().flat_map(|(code, found)| differs(code, found, &page[code])).collect();
    assert!(wrong.is_empty(), "docs/errors.md:\n{}", wrong.join("\n"));
    let kinds = found.values().filter(|found| !found.kinds.is_empty()).count();
    assert!(found.len() > 300 && kinds > 200, "{} codes and {kinds} kinds were found", found.len());
}

#[test]
fn the_page_of_codes_says_what_findings_mean() {
    let page = page();
    let text = fs::read_to_string(root().join("src/ops/check/meaning.rs")).unwrap();
    let (_, table) = text.split_once("const MEANINGS").unwrap();
    let (table, _) = table.split_once("\n];\n").unwrap();
    let (_, table) = table.split_once("= ").unwrap();
    let tokens = tokens(&format!("{table}\n]"));
    let literals: Vec<String> =
        tokens.iter().filter_map(|token| string(token)).map(str::to_owned).collect();
    let (meanings, _) = literals.as_chunks::<2>();
    assert!(meanings.len() > 100, "{} meanings were found", meanings.len());
    for [code, meaning] in meanings {
        let row = page.get(code).unwrap_or_else(|| panic!("no row for the finding {code}"));
        assert!(
            row.text.ends_with(&format!(" *{meaning}*")),
            "{code}: {:?} has not {meaning:?}",
            row.text
        );
    }
}

fn missing(page: &BTreeMap<String, Row>, found: &BTreeMap<String, Found>) -> Vec<String> {
    let added = found.keys().filter(|code| !page.contains_key(*code));
    let gone = page.keys().filter(|code| !found.contains_key(*code));
    let added = added.map(|code| format!("{code} has no row"));
    added.chain(gone.map(|code| format!("{code} is nowhere in the sources"))).collect()
}

fn differs(code: &str, found: &Found, row: &Row) -> Vec<String> {
    let mut wrong = Vec::new();
    if row.kinds.is_empty() && row.exits.is_empty() {
        wrong.push(format!("{code}: has neither a kind nor an exit code"));
    }
    if !row.text.split(" *").next().unwrap().ends_with('.') {
        wrong.push(format!("{code}: {:?} is no sentence", row.text));
    }
    let is_finding = row.kinds.contains("finding");
    let kinds =
        row.kinds.iter().filter(|kind| !matches!(kind.as_str(), "finding" | "warning" | "note"));
    let exit = |kind: &str| match KINDS.iter().find(|(_, name)| *name == kind) {
        Some((kind, _)) => Ok(exit_of(&Error::new(*kind, code.to_owned().leak(), ""))),
        // A kind of the package for files alone.
        None if kind == "unclean" => Ok(Exit::Refused),
        None => Err(format!("{code}: there is no kind {kind}")),
    };
    let mut exits = found.exits.clone();
    for kind in kinds {
        match exit(kind) {
            Ok(exit) => drop(exits.insert((exit as u8).to_string())),
            Err(unknown) => wrong.push(unknown),
        }
    }
    if is_finding {
        exits.insert((Exit::No as u8).to_string());
    }
    // Some codes go through helpers. A warning that ends the program is one of an operation that left something behind.
    let is_right = match exits.is_empty() || row.kinds.contains("warning") {
        true => exits.is_subset(&row.exits),
        false => exits == row.exits,
    };
    if !is_right {
        wrong.push(format!("{code}: exits with {:?}, not with {exits:?}", row.exits));
    }
    if found.is_of_check && !is_finding {
        wrong.push(format!("{code}: only a check makes it, so it is a finding"));
    }
    if !is_finding && !found.kinds.is_subset(&row.kinds) {
        wrong.push(format!("{code}: is of {:?}, not of {:?}", found.kinds, row.kinds));
    }
    wrong
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rows of the page by their codes.
fn page() -> BTreeMap<String, Row> {
    let text = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [code, kinds, exits, text] = cells[..] else { panic!("not four cells: {line}") };
        let set =
            |cell: &str| cell.split(", ").filter(|one| *one != "–").map(str::to_owned).collect();
        let row = Row { kinds: set(kinds), exits: set(exits), text: text.into() };
        let known = rows.insert(code.trim_matches('`').to_owned(), row);
        assert!(known.is_none(), "{code} is there twice");
    }
    rows
}

/// The codes in the production sources, with what stands beside them.
fn sources() -> BTreeMap<String, Found> {
    let mut codes: BTreeMap<String, Found> = BTreeMap::new();
    for (folder, is_library) in [
        ("src", true),
        ("files/src", true),
        ("formats/src", true),
        ("seals/src", true),
        ("cli/src", false),
    ] {
        let folder = root().join(folder);
        for path in files(&folder) {
            // Below the folder: a checkout may itself lie in one of that name.
            let inside = path.strip_prefix(&folder).unwrap();
            let is_check = inside.components().any(|part| part.as_os_str() == "check");
            let tokens = tokens(&fs::read_to_string(&path).unwrap());
            for (i, token) in tokens.iter().enumerate() {
                let Some(literal) = string(token) else { continue };
                let (kind, exit) = maker(&tokens[..i], is_library);
                // Other words beside a kind are its name in JSON.
                let is_made = tokens.get(i + 1).is_some_and(|next| next == ",")
                    && (kind.is_some() || exit.is_some());
                let is_word =
                    !literal.is_empty() && literal.chars().all(|c| c.is_ascii_lowercase());
                if OTHERS.contains(&literal) || !(is_code(literal) || is_made && is_word) {
                    continue;
                }
                let new = Found { is_of_check: is_library, ..Found::default() };
                let found = codes.entry(literal.to_owned()).or_insert(new);
                found.is_of_check &= !is_library || is_check;
                found.kinds.extend(kind);
                found.exits.extend(exit.map(|exit| (exit as u8).to_string()));
            }
        }
    }
    codes
}

/// The files of a folder without those of tests.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if !path.ends_with("tests.rs") && !path.ends_with("codes.rs") {
            files.push(path);
        }
    }
    files
}

/// The tokens of a source, flat, without attributes, comments and modules of tests.
fn tokens(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    flatten(text.parse().unwrap(), &mut all);
    all
}

fn flatten(stream: TokenStream, all: &mut Vec<String>) {
    let mut is_of_tests = false;
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        match tree {
            TokenTree::Punct(hash) if hash.as_char() == '#' => {
                let attribute = trees.find(|tree| matches!(tree, TokenTree::Group(_)));
                let text = attribute.map_or_else(String::new, |attribute| attribute.to_string());
                is_of_tests |= text.starts_with("[cfg") && text.contains("test");
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                all.push(open.into());
                flatten(group.stream(), all);
                all.push(close.into());
            }
            TokenTree::Ident(word) if is_of_tests && word == "mod" => {
                trees.find(|tree| !matches!(tree, TokenTree::Ident(_)));
                is_of_tests = false;
            }
            tree => {
                is_of_tests = false;
                all.push(tree.to_string());
            }
        }
    }
}

/// The text of a token that is a string.
fn string(token: &str) -> Option<&str> {
    token.strip_prefix('"')?.strip_suffix('"')
}

/// Whether the literal has the form of a code: words, a dot, words.
fn is_code(literal: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let is_file = [".vhdx", ".avhdx", ".rs"].iter().any(|ending| literal.ends_with(ending));
    literal.split_once('.').is_some_and(|(subject, what)| {
        let is_subject = subject.starts_with(|c: char| c.is_ascii_lowercase());
        is_subject && !is_file && subject.split('-').all(is_word) && what.split('-').all(is_word)
    })
}

/// The kind or the exit code of a failure, as far as they stand directly before its code.
fn maker(before: &[String], is_library: bool) -> (Option<String>, Option<Exit>) {
    let word = |back: usize| before.len().checked_sub(back).map_or("", |at| before[at].as_str());
    let (kind, exit) = (|kind: &str| (Some(kind.to_owned()), None), |exit| (None, Some(exit)));
    match (word(5), word(2), word(1)) {
        ("ErrorKind" | "Kind", name, ",") => {
            let known = KINDS.iter().find(|(kind, _)| format!("{kind:?}") == name);
            known.map_or((None, None), |(_, name)| kind(name))
        }
        ("Exit", name, ",") => (None, EXITS.into_iter().find(|exit| format!("{exit:?}") == name)),
        (_, "damaged", "(") if is_library => kind("damaged"),
        (_, "unsupported", "(") if is_library => kind("unsupported"),
        (_, "io", "(") if is_library => kind("io"),
        ("Warning", "new", "(") if is_library => kind("warning"),
        (_, "io", "(") => exit(Exit::Io),
        (_, "usage", "(") => exit(Exit::Usage),
        (_, "note", "(") => kind("note"),
        (_, "warn", "(") => kind("warning"),
        _ => (None, None),
    }
}
