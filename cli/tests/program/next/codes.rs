//! The codes that end the program, and why some are not provoked.

use std::collections::BTreeSet;

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
            "header.log-length",
            "header.log-offset",
            "header.log-version",
            "header.same-sequence",
            "header.signature",
            "identifier.length",
            "limit.file-length",
            "limit.losses",
            "locator.count",
            "locator.duplicate",
            "locator.length",
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
            "metadata.incomplete-file",
            "metadata.item-length",
            "metadata.length",
            "metadata.locator",
            "metadata.missing",
            "metadata.offset",
            "metadata.overlap",
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
            "region.signature",
            "region.table-length",
        ],
    ),
    ("a warning or a note, not a refusal", &["forest.unreadable", "merge.unfinished"]),
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
            "convert.differs",
            "create.file",
            "create.write",
            "export.room",
            "file.flush",
            "file.identity",
            "file.length",
            "file.read",
            "header.write",
            "image.poisoned",
            "import.read",
            "link.path",
            "lock.failed",
            "log.read",
            "log.replay",
            "loss.grow",
            "loss.write",
            "man.render",
            "compact.holes",
            "compact.punch",
            "merge.holes",
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
            "payload.zero",
            "raw.flush",
            "raw.punch",
            "raw.read",
            "raw.write",
            "resize.gpt-write",
            "space.cut",
            "space.punch",
            "table.read",
            "table.write",
        ],
    ),
    (
        "needs a folder or file whose rights the user of the tests, who may do all, does not lack",
        &[
            "compact.children-unknown",
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
            "op.renamed",
            "output.swapped",
            "point.gone",
            "session.changed",
            "stdin.changed",
        ],
    ),
    (
        "needs a caller of the library: the program opens whole chains by path, looks at arguments first, and plans no writes",
        &[
            "block.no-parent",
            "chain.layer",
            "chain.others-tip",
            "chain.read",
            "chain.vanishing",
            "chain.view",
            "chain.viewed",
            "checkpoint.label",
            "checkpoint.read-only",
            "create.own-parent",
            "disk.read-only",
            "export.own-source",
            "flush.step",
            "image.frozen",
            "import.not-new",
            "image.parent-required",
            "io",
            "link.no-parent",
            "op.no-path",
            "other",
            "part.empty",
            "part.unaligned",
            "plan.alignment",
            "plan.buffer-length",
            "plan.table-length",
            "point.no-path",
            "raw.extents",
            "resize.guest",
            "resize.read-only",
            "tracking.grain",
            "write.plans-lost",
            "write.plans-open",
            "write.sector-planned",
        ],
    ),
    (
        "an interruption ends in the command that resumes, or in none",
        &["interrupted", "op.cancelled"],
    ),
    ("on Unix, every file has a path from every folder", &["create.parent-path"]),
    (
        "needs an unfinished merge in another branch: see cli/tests/program/merge.rs",
        &["compact.merging", "merge.other"],
    ),
    (
        "needs parents of two sector sizes, or none, in a chain that opens: see cli/tests/program/reparent.rs",
        &["link.sector-size"],
    ),
];

/// The codes that end the program, by the page that is compared with the sources. Those of findings alone are answers.
pub fn of_the_page() -> BTreeSet<String> {
    let page = include_str!("../../../../docs/errors.md");
    let mut codes = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [code, _, exits, _] = cells[..] else { panic!("not four cells: {line}") };
        if exits.split(", ").any(|exit| !matches!(exit, "–" | "0" | "1")) {
            codes.insert(code.trim_matches('`').to_owned());
        }
    }
    assert!(codes.len() > 200, "{} codes", codes.len());
    codes
}

/// Why the tests do not provoke a code.
pub fn reason_against(code: &str) -> Option<&'static str> {
    let found = NOT_PROVOKED.iter().find(|(_, codes)| codes.contains(&code));
    found.map(|(reason, _)| *reason)
}

/// Listed codes that end nothing.
pub fn stale() -> impl Iterator<Item = &'static str> {
    let known = of_the_page();
    let listed = NOT_PROVOKED.iter().flat_map(|(_, codes)| codes.iter().copied());
    listed.filter(move |code| !known.contains(*code))
}
