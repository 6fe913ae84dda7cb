//! The codes of the sources, and why some are not provoked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Codes that these tests do not provoke, by the reason.
const NOT_PROVOKED: &[(&str, &[&str])] = &[
    (
        "damage, answered by the row of its kind or prefix as the damage that is provoked; tests/check builds it",
        &[
            "bat.bitmap-missing",
            "bat.bitmap-place",
            "bat.length",
            "bat.overlap",
            "bat.payload-place",
            "claim.shared",
            "claim.too-far",
            "header.checksum",
            "header.data-write-guid",
            "header.log-length",
            "header.log-offset",
            "header.log-version",
            "header.reserved",
            "header.same-sequence",
            "header.signature",
            "identifier.length",
            "limit.file-length",
            "limit.losses",
            "locator.count",
            "locator.duplicate",
            "locator.length",
            "locator.reserved",
            "locator.string",
            "locator.string-length",
            "locator.string-overlap",
            "locator.string-place",
            "log.descriptor",
            "log.last-file-offset",
            "log.no-active-sequence",
            "log.place",
            "log.target",
            "log.zero-length",
            "loss.structure",
            "mark.unreadable",
            "metadata.block-size",
            "metadata.count",
            "metadata.disk-size",
            "metadata.duplicate",
            "metadata.empty-item",
            "metadata.flags",
            "metadata.incomplete-file",
            "metadata.item-length",
            "metadata.length",
            "metadata.locator",
            "metadata.missing",
            "metadata.offset",
            "metadata.overlap",
            "metadata.reserved",
            "metadata.sector-size",
            "metadata.signature",
            "metadata.unknown-required",
            "metadata.user-count",
            "region.checksum",
            "region.count",
            "region.duplicate",
            "region.length",
            "region.missing",
            "region.offset",
            "region.overlap",
            "region.reserved",
            "region.signature",
            "region.table-length",
        ],
    ),
    (
        "a warning or a note, not a refusal",
        &[
            "chain.broken",
            "convert.padded",
            "convert.sector-size",
            "create.old-left",
            "file.link",
            "folder.draft-removed",
            "folder.left-over",
            "forest.unreadable",
            "hyper-v.checkpoints",
            "image.children-unread",
            "image.other-names",
            "image.stale-tracker",
            "lock.unsupported",
            "log.ignored",
            "loss.accepted",
            "merge.name-not-kept",
            "merge.not-marked",
            "merge.unfinished",
            "op.link-left",
            "op.not-durable",
            "output.old-left",
            "parent.linkage-ignored",
            "point.resolved",
            "reparent.child",
        ],
    ),
    (
        "what relink says of an image in its answer; relink.refused is the refusal",
        &[
            "relink.ambiguous",
            "relink.changed",
            "relink.loop",
            "relink.parent-missing",
            "relink.sector-size",
            "relink.unread",
        ],
    ),
    (
        "needs a host that fails while it is used",
        &[
            "checkpoint.not-closed",
            "create.file",
            "create.write",
            "export.room",
            "file.flush",
            "file.identity",
            "file.length",
            "file.read",
            "header.write",
            "image.poisoned",
            "link.path",
            "lock.failed",
            "log.read",
            "log.replay",
            "loss.grow",
            "loss.write",
            "man.render",
            "merge.holes",
            "merge.not-closed",
            "metadata.read",
            "op.free-space",
            "op.remove",
            "op.rename",
            "op.space",
            "output.open",
            "output.rename",
            "output.stat",
            "output.sync",
            "output.write",
            "parent.open",
            "payload.copy",
            "payload.read",
            "payload.write",
            "raw.flush",
            "raw.punch",
            "raw.read",
            "raw.write",
            "revert.not-closed",
            "space.cut",
            "space.punch",
            "table.read",
            "table.write",
        ],
    ),
    (
        "needs a folder or file whose rights the user of the tests, who may do all, does not lack",
        &[
            "delete.kept",
            "image.children-unknown",
            "merge.not-removed",
            "parent.no-access",
            "revert.kept",
        ],
    ),
    (
        "needs another program that changes files while this one runs",
        &[
            "chain.busy",
            "chain.changed",
            "create.swapped",
            "file.replaced",
            "merge.child-lost",
            "op.gone",
            "op.renamed",
            "op.swapped",
            "output.swapped",
            "point.gone",
            "session.changed",
        ],
    ),
    (
        "needs a caller of the library: the program opens whole chains by path, looks at arguments first, and plans no writes",
        &[
            "block.no-parent",
            "chain.layer",
            "checkpoint.read-only",
            "chain.others-tip",
            "chain.read",
            "chain.vanishing",
            "chain.view",
            "chain.viewed",
            "checkpoint.label",
            "create.own-parent",
            "disk.read-only",
            "export.own-source",
            "flush.step",
            "image.frozen",
            "image.parent-required",
            "link.no-parent",
            "merge.still-read",
            "op.no-path",
            "part.empty",
            "part.unaligned",
            "plan.alignment",
            "plan.buffer-length",
            "plan.table-length",
            "point.no-path",
            "raw.extents",
            "resize.size",
            "tracking.grain",
            "write.plans-lost",
            "write.plans-open",
            "write.sector-planned",
        ],
    ),
    ("an interruption ends in `interrupted`, which says how to resume", &["op.cancelled"]),
    ("on Unix, every file has a path from every folder", &["create.parent-path"]),
    ("needs metadata without room for another item", &["metadata.edit-size", "metadata.full"]),
    (
        "needs an unfinished merge in another branch: see cli/tests/program/merge.rs",
        &["merge.other"],
    ),
    (
        "needs parents of two sector sizes, or none, in a chain that opens: see cli/tests/program/reparent.rs",
        &["reparent.no-parent", "reparent.sector-size"],
    ),
    ("no code: the name of an attribute of files", &["security.selinux"]),
];

/// The codes of errors, warnings and notes in the sources, except those that only findings of `check` have: they are
/// answers.
pub fn of_the_sources() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    list(&root.join("src"), &mut files);
    list(&root.join("../src"), &mut files);
    assert!(files.len() > 100, "{} sources", files.len());
    let mut codes = BTreeMap::<String, bool>::new();
    for file in files {
        let is_of_check = file.starts_with(root.join("../src/ops/check"));
        let text = fs::read_to_string(&file).unwrap();
        // Tests come last in a file.
        let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
        for code in text.split('"').filter(|text| is_code(text)) {
            *codes.entry(code.into()).or_default() |= !is_of_check;
        }
    }
    codes.into_iter().filter(|(_, is_refusal)| *is_refusal).map(|(code, _)| code).collect()
}

/// Why the tests do not provoke a code.
pub fn reason_against(code: &str) -> Option<&'static str> {
    let found = NOT_PROVOKED.iter().find(|(_, codes)| codes.contains(&code));
    found.map(|(reason, _)| *reason)
}

/// Listed codes that no source has.
pub fn stale() -> impl Iterator<Item = &'static str> {
    let known = of_the_sources();
    let listed = NOT_PROVOKED.iter().flat_map(|(_, codes)| codes.iter().copied());
    listed.filter(move |code| !known.contains(*code))
}

/// Whether a text has the form of a code: `subject.what`, in lower case.
fn is_code(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    let parts = text.split_once('.');
    parts.is_some_and(|(subject, what)| {
        is_part(subject)
            && is_part(what)
            && !["vhdx", "avhdx", "raw", "rs", "vmdk"].contains(&what)
            && subject.starts_with(|c: char| c.is_ascii_lowercase())
    })
}

/// The sources in a folder and below, but not files of tests, nor the table, which names codes of others.
fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            list(&path, files);
        } else if name.ends_with(".rs") && !["tests.rs", "rows.rs"].contains(&name) {
            files.push(path);
        }
    }
}
