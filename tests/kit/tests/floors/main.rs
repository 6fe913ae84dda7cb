//! The floors of the library, of the program and of the package for files: imports point down, and no files form a circle.
//!
//! The test parses the sources. It resolves every path in `use` declarations, code, types, patterns, macro tokens
//! and attributes to the file that defines the item, through imports, globs, renames and re-exports. Code that only
//! test or documentation builds contain (`#[cfg(test)]`, `#[cfg(doc)]`) is skipped.
//!
//! # Rules
//! - **No use points up.** A `pub use` of an item of a higher floor counts too.
//! - **An `impl` stands on the floor of its type**, of its trait, or of a type among the trait's generic arguments
//!   (`impl From<Mine> for Error`).
//! - **No files form a circle.** A `pub use` of an item that a child module defines is no edge. A parent module that
//!   uses such an item in its own code is an edge to the child, and `super::Item` is one to the file that defines
//!   `Item`: items that children share and their parent builds on belong in a file of their own. Method calls are
//!   no edges, so the `impl` blocks of one type may call each other across the files of a floor.
//! - **No file is long**: at most 700 lines without tests, and fewer than 300 lines of tests.
//!
//! The test builds none of them:
//! ```text
//! cargo test -p avhdx-testkit --test floors
//! ```

#![allow(clippy::disallowed_methods)]

mod checker;
mod judge;
mod public;
mod tree;
mod uses;

use std::path::Path;

use judge::{Checked, Rules};

/// The library, from top to bottom.
const LIBRARY: Rules<'_> = Rules {
    floors: &[
        ("the root", &[""]),
        ("ops", &["ops"]),
        ("create", &["create"]),
        ("options", &["options"]),
        ("chain", &["chain"]),
        ("file", &["file"]),
        ("write", &["write"]),
        ("read", &["read"]),
        ("image", &["image"]),
        ("tables", &["tables"]),
        ("answers", &["answers"]),
        ("log", &["log"]),
        ("format", &["format"]),
        ("raw", &["raw"]),
        ("part", &["part"]),
        ("cursor", &["cursor"]),
        ("warning", &["warning"]),
        ("disk", &["disk"]),
        ("names", &["names"]),
        ("storage", &["storage"]),
        ("counters", &["counters"]),
        ("trace", &["trace"]),
        ("mover", &["mover"]),
        ("sync", &["sync"]),
        ("error", &["error"]),
        ("types", &["types"]),
    ],
    knows: &[("format", &["types", "error"])],
    apart: &[],
    most_lines: 700,
    most_test_lines: 299,
};

/// The program, from top to bottom.
const PROGRAM: Rules<'_> = Rules {
    floors: &[
        ("the root", &[""]),
        (
            "the verbs",
            &[
                "bench",
                "cat",
                "check",
                "checkpoint",
                "compact",
                "compare",
                "complete",
                "convert",
                "cp",
                "create",
                "delete",
                "df",
                "diff",
                "discard",
                "explain",
                "flatten",
                "info",
                "label",
                "ls",
                "map",
                "measure",
                "merge",
                "metadata",
                "pages",
                "read",
                "rebase",
                "relink",
                "repair",
                "reparent",
                "rescue",
                "resize",
                "revert",
                "seal",
                "snapshots",
                "tree",
                "verify",
                "versions",
                "write",
                "zero",
            ],
        ),
        ("merges and copies", &["merging", "copying"]),
        ("branches", &["forks", "seals"]),
        ("changes", &["operation", "writing", "new_file", "printing"]),
        ("volumes", &["digest", "unused", "volume"]),
        ("copies to other formats", &["qcow2", "vhd"]),
        ("inputs", &["endings", "input", "loss", "partitions"]),
        ("what is read of inputs", &["keeping"]),
        ("other formats", &["foreign"]),
        ("facts", &["facts", "parents"]),
        ("partition tables", &["gpt"]),
        ("flags", &["args", "points"]),
        ("progress", &["interrupt", "progress"]),
        ("output", &["output"]),
        ("render", &["render"]),
        ("next", &["next"]),
        ("typed", &["typed"]),
        ("failure", &["failure"]),
        ("values", &["examples", "point", "shell", "table", "values", "vocabulary"]),
        ("text", &["paint", "screen", "text"]),
    ],
    knows: &[],
    apart: &["the verbs", "changes", "inputs", "facts", "flags", "progress", "values"],
    ..LIBRARY
};

/// The package for volumes and files, from top to bottom.
const FILES: Rules<'_> = Rules {
    floors: &[
        ("the root", &[""]),
        ("looks", &["compare", "evidence", "seen"]),
        ("volumes", &["volumes"]),
        ("tree", &["tree"]),
        ("file systems", &["ext", "fat", "ntfs"]),
        ("content", &["content"]),
        ("boundary", &["boundary"]),
        ("item", &["item", "bitmap", "checksum"]),
        ("changed", &["changed"]),
        ("error", &["error"]),
    ],
    knows: &[],
    apart: &["file systems"],
    ..LIBRARY
};

/// The package for seals, from top to bottom.
const SEALS: Rules<'_> = Rules {
    floors: &[
        ("the root", &[""]),
        ("operations", &["carry", "verify"]),
        ("layers as a whole", &["sealing", "prove"]),
        ("pieces", &["build", "layer", "leaves"]),
        ("files and threads", &["file", "work"]),
        ("format", &["format"]),
        ("map", &["map"]),
        ("hash", &["hash"]),
    ],
    knows: &[],
    apart: &["operations"],
    ..LIBRARY
};

/// The package for other formats, from top to bottom.
const FORMATS: Rules<'_> = Rules {
    floors: &[
        ("the root", &[""]),
        ("formats", &["qcow2", "vhd", "vmdk"]),
        ("stack", &["stack"]),
        ("files", &["cache", "file"]),
    ],
    knows: &[],
    apart: &[],
    ..LIBRARY
};

#[test]
fn the_library_keeps_to_its_floors() {
    keeps_to(LIBRARY, "src");
}

#[test]
fn the_program_keeps_to_its_floors() {
    keeps_to(PROGRAM, "cli/src");
}

#[test]
fn the_package_for_files_keeps_to_its_floors() {
    keeps_to(FILES, "files/src");
}

#[test]
fn the_package_for_seals_keeps_to_its_floors() {
    keeps_to(SEALS, "seals/src");
}

#[test]
fn the_package_for_other_formats_keeps_to_its_floors() {
    keeps_to(FORMATS, "formats/src");
}

fn keeps_to(rules: Rules<'_>, folder: &str) {
    let folder = format!("{folder}/");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(&folder);
    let checked =
        Checked::read(&folder, rules, &|path| std::fs::read_to_string(root.join(path)).ok());
    let violations = checked.violations();
    assert!(violations.is_empty(), "{}\n{} violations", violations.join("\n"), violations.len());
}
