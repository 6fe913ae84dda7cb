//! What others depend on: what the crate shows, and what nobody may depend on.

#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};

/// The production files of a folder; those of tests are left out.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs")
                && !path.ends_with("tests.rs")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[test]
fn nothing_in_the_library_or_the_program_matches_on_the_text_of_a_message() {
    let files: Vec<_> = ["src", "cli/src"].into_iter().flat_map(sources).collect();
    assert!(files.len() > 100, "{} files", files.len());
    let questions = ["contains(", "starts_with(", "ends_with(", "find(", "split", "strip_", "eq("];
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let production = text.split("#[cfg(test)]\nmod ").next().unwrap();
        for (n, line) in production.lines().enumerate() {
            for (at, _) in line.match_indices("message") {
                let rest = &line[at + "message".len()..];
                let rest = rest.strip_prefix("()").unwrap_or(rest);
                let is_asked = rest.starts_with(" ==")
                    || rest
                        .strip_prefix('.')
                        .is_some_and(|rest| questions.iter().any(|q| rest.starts_with(q)));
                assert!(!is_asked, "{}:{}: {}", path.display(), n + 1, line.trim());
            }
        }
    }
}
