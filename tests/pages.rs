//! The pages for contributors and users refer only to files, tests and headings that exist.
#![allow(clippy::disallowed_methods)] // the pages are read as files

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Paths of the repository start with these in code spans.
const TOP: [&str; 7] = ["src/", "tests/", "cli/", "benches/", "examples/", "fixtures/", "docs/"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All pages, by their path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let folders = [root().to_path_buf(), root().join("docs")];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path());
    let pages = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.map(|path| (path.strip_prefix(root()).unwrap().into(), text(&path))).collect()
}

/// The page without its fenced code blocks.
fn prose(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

/// The texts between each `open` and the next `close`.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split_once(close)).map(|(inner, _)| inner)
}

fn code_spans(prose: &str) -> impl Iterator<Item = &str> {
    prose.split('`').skip(1).step_by(2)
}

/// The anchor of a heading in links.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Whether the file has a test with this name.
fn has_test(source: &str, name: &str) -> bool {
    source.split("#[test]").skip(1).any(|rest| {
        let signature = rest.split_once("fn ").map(|(_, signature)| signature);
        signature.is_some_and(|signature| signature.starts_with(&format!("{name}(")))
    })
}

/// What is wrong with a path of the repository, with or without a test of that file.
fn fault(span: &str) -> Option<String> {
    let (path, test) =
        span.split_once("::").map_or((span, None), |(path, test)| (path, Some(test)));
    if !root().join(path).exists() {
        return Some(format!("there is no {path}"));
    }
    let test = test?;
    let is_there = has_test(&text(&root().join(path)), test);
    (!is_there).then(|| format!("{path} has no test {test}"))
}

#[test]
fn every_file_of_tests_is_in_the_manifest() {
    let folder = root().join("tests");
    let manifest = text(&folder.join("Cargo.toml"));
    let mut found = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = match name.strip_suffix(".rs") {
            Some(_) => name.clone(),
            None if folder.join(&name).join("main.rs").exists() => format!("{name}/main.rs"),
            None => continue,
        };
        let name = name.trim_end_matches(".rs");
        let entry = format!("[[test]]\nname = \"{name}\"\npath = \"{path}\"\n");
        assert!(manifest.contains(&entry), "tests/Cargo.toml has not\n{entry}");
        found += 1;
    }
    assert!(found > 10, "{found} files of tests were found");
}

#[test]
fn every_file_and_test_that_a_page_names_exists() {
    let (mut files, mut tests, mut wrong) = (0, 0, Vec::new());
    for (page, text) in pages() {
        let prose = prose(&text);
        let is_path = |span: &&str| {
            // A placeholder, a pattern or a command is not a path.
            TOP.iter().any(|top| span.starts_with(top)) && !span.contains(['*', ' ', '<', '{'])
        };
        for span in code_spans(&prose).filter(is_path).filter(|span| !span.contains("NAME")) {
            files += 1;
            tests += usize::from(span.contains("::"));
            wrong.extend(fault(span).map(|fault| format!("{}: {fault}", page.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files > 100 && tests > 40, "only {files} files and {tests} tests were looked for");
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let pages = pages();
    let mut wrong = Vec::new();
    for (page, text) in &pages {
        let prose = prose(text);
        for link in between(&prose, "](", ")").filter(|link| !link.contains("://")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let folder = page.parent().unwrap();
            let target = if path.is_empty() { page.clone() } else { folder.join(path) };
            let Ok(place) = root().join(&target).canonicalize() else {
                wrong.push(format!("{}: there is no {link}", page.display()));
                continue;
            };
            let has_heading = || {
                let page = self::text(&place);
                let mut headings = page.lines().filter(|line| line.starts_with('#'));
                headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading)
            };
            if !heading.is_empty() && !has_heading() {
                wrong.push(format!("{}: no heading for {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_in_the_drawings_of_the_crate_exists() {
    let crate_docs = text(&root().join("src/lib.rs"));
    let lines = crate_docs.lines().filter(|line| line.starts_with("//!") && line.contains("::"));
    // Each line of a drawing ends in a file or a folder.
    let last = lines.filter_map(|line| line.split_whitespace().next_back());
    let stops: Vec<&str> =
        last.filter(|word| word.ends_with(".rs") || word.ends_with('/')).collect();
    let missing: Vec<&&str> =
        stops.iter().filter(|stop| !root().join("src").join(stop).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(stops.len() >= 5, "only {stops:?} were looked for");
}

#[test]
fn every_property_of_the_architecture_names_a_test() {
    let page = text(&root().join("ARCHITECTURE.md"));
    let (_, properties) = page.split_once("\n## Properties\n").unwrap();
    let mut bare = Vec::new();
    for number in 1..=12 {
        let (_, rest) = properties.split_once(&format!("\n{number}. **")).unwrap();
        let property = rest.split(&format!("\n{}. **", number + 1)).next().unwrap();
        if !code_spans(property).any(|span| span.contains(".rs::")) {
            bare.push(number);
        }
    }
    assert!(bare.is_empty(), "properties without a test: {bare:?}");
}

/// The names in a table of a manifest, without packages of the workspace itself.
fn dependencies(manifest: &str, is_table: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for table in manifest.split("\n[").filter(|table| is_table(table.split(']').next().unwrap())) {
        let entries = table.lines().skip(1).filter(|line| !line.starts_with('#'));
        let entries = entries.filter_map(|line| line.split_once(" = "));
        let foreign = entries.filter(|(_, what)| !what.contains("path = "));
        names.extend(foreign.map(|(name, _)| name.to_owned()));
    }
    names
}

#[test]
fn every_dependency_has_its_reason() {
    let page = text(&root().join("docs/dependencies.md"));
    let mut wrong = Vec::new();
    let mut sections: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for section in page.split("\n## ").skip(1) {
        let (heading, table) = section.split_once('\n').unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        let rows = rows.map(|line| line.trim_matches('|').split_once(" | ").unwrap());
        let rows = rows.map(|(name, why)| (name.trim().trim_matches('`').to_owned(), why.trim()));
        let (names, reasons): (BTreeSet<String>, Vec<&str>) = rows.unzip();
        wrong.extend(
            reasons.iter().filter(|why| why.len() < 10).map(|why| format!("{heading}: {why}")),
        );
        sections.insert(heading, names);
    }
    let workspace = text(&root().join("Cargo.toml"));
    let members = between(&workspace, "\nmembers = [", "]").next().unwrap();
    let members = members.split('"').skip(1).step_by(2);
    let mut headings = 0;
    for folder in members.chain([""]) {
        let manifest = text(&root().join(folder).join("Cargo.toml"));
        let name = between(&manifest, "[package]\nname = \"", "\"").next().unwrap();
        let of_tests = |table: &str| table.ends_with("dev-dependencies");
        let built_in = |table: &str| table.ends_with("dependencies") && !of_tests(table);
        for (heading, named) in [
            (name.to_owned(), dependencies(&manifest, built_in)),
            (format!("{name}: tests and benchmarks"), dependencies(&manifest, of_tests)),
        ] {
            let told = sections.remove(&*heading).unwrap_or_default();
            headings += usize::from(!named.is_empty());
            wrong.extend(
                named.difference(&told).map(|name| format!("{heading}: {name} has no reason")),
            );
            wrong.extend(
                told.difference(&named).map(|name| format!("{heading}: {name} is not used")),
            );
        }
    }
    wrong.extend(sections.keys().map(|heading| format!("there is no package {heading}")));
    assert!(wrong.is_empty(), "docs/dependencies.md:\n{}", wrong.join("\n"));
    assert!(headings >= 6, "only {headings} lists were found");
}
