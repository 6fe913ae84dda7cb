//! The floors of the library and of the program: imports point down, and no files form a circle.
//!
//! The test reads the sources, not the build: every path in `use` declarations, code, types, patterns, macros'
//! tokens and attributes, outside what is only in test builds (`#[cfg(test)]`) or documentation (`#[cfg(doc)]`).
//! Each path is followed through imports, globs, renames and re-exports to the file that defines the item. An
//! import of `crate::Budget` is one of the file that has `struct Budget`.
//!
//! # What counts
//! - **Up**: a use of an item of a higher floor, however it is reached. A `pub use` of one counts too.
//! - **Outside**: an `impl` on another floor than its type. Not so where the trait, or a type that the trait is
//!   told (`impl From<Mine> for Error`), is of the floor that has the `impl`.
//! - **Circle**: files that lead to each other. A module's `pub use` of what is defined inside it is no edge: it
//!   only gives the item another name. A `mod.rs` that uses what is defined inside it in its own code is an edge
//!   down, and `super::Thing`, where `mod.rs` defines it, one up. Both together are a circle: what children share
//!   belongs in a file of its own.
//! - **Long**: a file with more than 700 lines before its tests, or with 300 lines of tests.
//!
//! Calls of methods are no paths. A type whose `impl` blocks stand in several files of a floor may call from one to
//! the other and back.
//!
//! To see what is wrong, nothing but this test is built:
//! ```text
//! cargo test -p avhdx-testkit --test floors
//! ```

#![allow(clippy::disallowed_methods)]

mod checker;
mod judge;
mod tree;
mod uses;

use std::path::Path;

use judge::{House, Plan};

/// The library, from top to bottom.
const LIBRARY: Plan<'_> = Plan {
    floors: &[
        ("the root", &[""]),
        ("ops", &["ops"]),
        ("options", &["options"]),
        ("chain", &["chain"]),
        ("file", &["file"]),
        ("write", &["write"]),
        ("read", &["read"]),
        ("answers", &["answers"]),
        ("image", &["image"]),
        ("tables", &["tables"]),
        ("log", &["log"]),
        ("format", &["format"]),
        ("raw", &["raw"]),
        ("cursor", &["cursor"]),
        ("disk", &["disk"]),
        ("names", &["names", "traps"]),
        ("storage", &["storage"]),
        ("counters", &["counters"]),
        ("sync", &["sync", "mutants"]),
        ("error", &["error"]),
        ("types", &["types"]),
    ],
    knows: &[("format", &["types", "error"])],
    most_lines: 700,
    most_test_lines: 299,
};

#[test]
#[ignore = "not all of the library keeps to its floors yet"]
fn the_library_keeps_to_its_floors() {
    keeps_to(LIBRARY, "src");
}

fn keeps_to(plan: Plan<'_>, folder: &str) {
    let folder = format!("{folder}/");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(&folder);
    let house = House::read(&folder, plan, &|path| std::fs::read_to_string(root.join(path)).ok());
    let complaints = house.complaints();
    assert!(complaints.is_empty(), "{}\n{} complaints", complaints.join("\n"), complaints.len());
}
