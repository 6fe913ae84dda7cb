//! The bugs of `tests/bugs` fit the sources, so that `hunt` can plant them.
#![allow(clippy::disallowed_methods)] // what is read is the checkout

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use avhdx_testkit::planted::{Hunt, Sources, read_bugs};

fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn every_planted_bug_fits_the_sources() {
    let bugs = read_bugs(&checkout().join("tests/bugs")).unwrap_or_else(|error| panic!("{error}"));
    if let Err(wrong) = Sources::read(checkout()).plant(&bugs) {
        panic!(
            "{}\n\n{} of the planted bugs do not fit the sources. Write in tests/bugs how the code reads now, and \
             change it so that the same goes wrong; see CONTRIBUTING.md.",
            wrong.join("\n"),
            wrong.len()
        );
    }
}

#[test]
fn every_planted_bug_has_a_name_of_its_own_and_is_hunted_by_tests_that_exist() {
    let bugs = read_bugs(&checkout().join("tests/bugs")).unwrap_or_else(|error| panic!("{error}"));
    assert!(bugs.len() > 100, "only {} bugs are planted", bugs.len());
    let (mut names, mut wrong) = (HashSet::new(), Vec::new());
    for bug in &bugs {
        if !names.insert(&bug.name) {
            wrong.push(format!("{}: {} is there twice", bug.file, bug.name));
        }
        for hunt in bug.hunts.iter().filter(|hunt| !exists(hunt)) {
            wrong.push(format!(
                "{}: {} is hunted by {hunt:?}, which does not exist",
                bug.file, bug.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn exists(hunt: &Hunt) -> bool {
    let tests = checkout().join("tests");
    let place = match &*hunt.target {
        "lib" => checkout().join("src"),
        name => tests.join(name),
    };
    let mut texts = Vec::new();
    collect(&place, &mut texts);
    collect(&place.with_extension("rs"), &mut texts);
    let function = hunt.test.rsplit("::").next().unwrap();
    let has = |text: &str| texts.iter().any(|file| file.contains(text));
    has(&format!("fn {function}()"))
        && hunt.workload.as_ref().is_none_or(|workload| has(&format!("{workload:?}")))
}

fn collect(path: &PathBuf, texts: &mut Vec<String>) {
    if let Ok(text) = std::fs::read_to_string(path) {
        texts.push(text);
    }
    for entry in std::fs::read_dir(path).into_iter().flatten() {
        collect(&entry.unwrap().path(), texts);
    }
}
