//! Planted bugs, each of which some workload must find: `mutants.sh` builds the crate for it.
//!
//! Some bugs of other writers have no place here: sector bitmap blocks are never freed, so that none can
//! be used again while an entry of the log still targets it.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The name in `src/`, the workload that finds it, and what it does wrong.
const MUTANTS: &[(&str, &str, &str)] = &[
    (
        "apply-before-entry-flush",
        "first write, empty child",
        "a log entry is applied before it is flushed",
    ),
    (
        "entry-not-flushed",
        "first write, empty child",
        "a flush returns before its log entry is durable",
    ),
    (
        "metadata-before-payload",
        "first write, empty child",
        "the log names blocks whose payload is not flushed",
    ),
    (
        "bits-before-payload",
        "a new sector, a flush meanwhile",
        "a sector counts as here before its payload is written",
    ),
    (
        "block-before-payload",
        "a new block, a flush meanwhile",
        "a block counts as here before its payload is written",
    ),
    (
        "bat-before-bitmap",
        "table larger than one entry",
        "the parts of a large commit in the wrong order",
    ),
    (
        "bitmap-block-with-the-blocks",
        "table larger than one entry",
        "blocks in one part, the bitmap they need in a later one",
    ),
    (
        "part-dropped-in-split",
        "table larger than one entry",
        "the log lets go of a part of a commit before it is applied",
    ),
    (
        "tail-moved-before-apply",
        "first write, empty child",
        "the log lets go of an entry before it is applied",
    ),
    (
        "apply-after-flush",
        "first write, empty child",
        "the log lets go of an entry that is applied and not flushed",
    ),
    (
        "live-log-space-reused",
        "entries as large as half the log",
        "an entry is written over the newest durable one",
    ),
    (
        "log-guid-before-first-entry",
        "first write, empty child",
        "the header names a log without an entry",
    ),
    (
        "first-entry-not-flushed",
        "first write, empty child",
        "the header names a log whose entry is not durable",
    ),
    (
        "log-guid-used-again",
        "sessions one after the other",
        "entries of an earlier session count in a later one",
    ),
    ("last-offset-left-behind", "growth", "LastFileOffset stays while the file grows"),
    (
        "flushed-offset-not-durable",
        "a length of no whole MiB",
        "FlushedFileOffset is a length that is not durable",
    ),
    (
        "growth-during-commit",
        "flush, a new block meanwhile",
        "the file grows between a flush and the entry",
    ),
    (
        "data-write-guid-kept",
        "first write, empty child",
        "the disk changes and DataWriteGuid does not",
    ),
    (
        "freed-space-reused-at-once",
        "discard and reuse, dynamic",
        "space is used again before its freeing is durable",
    ),
    (
        "stale-bytes-in-reused-space",
        "discard and reuse, dynamic",
        "another block's bytes stay in space used again",
    ),
    ("bits-not-rewritten", "stale bits", "old bits count when a block becomes partially present"),
    (
        "zero-block-becomes-partial",
        "zeros over the parent",
        "the parent shows through a block that was zero",
    ),
    (
        "discard-shows-parent",
        "discard and reuse, child",
        "the parent shows through a block that was discarded",
    ),
    (
        "full-before-all-bits",
        "block fills",
        "a block counts as full before all its sectors are here",
    ),
    (
        "newer-changes-dropped",
        "first write, empty child",
        "changes made while their page is logged are forgotten",
    ),
    (
        "payload-flag-cleared-late",
        "flush, a write in place meanwhile",
        "a write during a flush is not flushed by the next",
    ),
    (
        "flush-covers-later-asks",
        "flush, a write and a flush meanwhile",
        "a flush returns for one that was asked for later",
    ),
    (
        "headers-without-flush-between",
        "headers full",
        "both headers are written before either is durable",
    ),
    (
        "close-without-flush",
        "sessions one after the other",
        "the log GUID is cleared before the tables are durable",
    ),
    (
        "cut-before-log-guid-cleared",
        "close with room to cut",
        "the file is cut while the log still names its length",
    ),
    (
        "replay-without-flush",
        "replay interrupted",
        "the log GUID is cleared before the replay is durable",
    ),
    (
        "log-guid-cleared-before-replay",
        "replay interrupted",
        "the log GUID is cleared before the replay",
    ),
    (
        "replay-of-half-the-log",
        "first write, empty child",
        "a replay grows the file and applies nothing",
    ),
    ("replay-without-zeros", "replay of zeros interrupted", "a replay takes all zeros for growth"),
    (
        "fresh-space-at-file-length",
        "an end behind the end of the disk",
        "a new block lies over the end of the last one",
    ),
    (
        "end-of-file-left-behind",
        "an end behind the end of the disk",
        "space that the file does not have is used again",
    ),
    ("create-without-flush", "create", "a new file gets its name before it is durable"),
    ("create-without-folder-flush", "create", "a new file is lost with its name"),
    (
        "torn-header-left",
        "a header torn twice",
        "a header that a crash tore is left as it is before the log changes",
    ),
    (
        "link-in-two-steps",
        "another parent",
        "the identity of another parent is durable before the path to it",
    ),
];

/// Those that only a host that fails shows.
const MUTANTS_OF_FAILURES: &[(&str, &str, &str)] = &[
    (
        "failed-payload-poisons",
        "first write, empty child",
        "payload that cannot be written poisons the image",
    ),
    ("failed-growth-poisons", "growth", "a full disk poisons the image"),
    ("failed-growth-believed", "growth", "a file counts as grown that did not grow"),
    (
        "failed-payload-forgotten",
        "first write, empty child",
        "a block counts as here although its payload could not be written",
    ),
    (
        "block-before-payload",
        "first write, empty child",
        "a failed write leaves its block in the table",
    ),
    (
        "stale-bytes-in-reused-space",
        "discard and reuse, dynamic",
        "another block's bytes stay in space used again",
    ),
    ("nothing-poisons", "first write, empty child", "the image goes on after a failed flush"),
    (
        "failed-flush-tried-again",
        "first write, empty child",
        "a failed flush is tried again, and the next one believed",
    ),
    ("zeros-not-refused", "growth", "a poisoned image says yes to zeros where there are some"),
    ("failed-create-left-behind", "create", "a failed create leaves a file behind"),
];

/// Those of operations that change the layers of a chain.
const MUTANTS_OF_CHAINS: &[(&str, &str, &str)] = &[
    (
        "identity-order-swapped",
        "merge of the middle",
        "the parent has its next identity before the child accepts it",
    ),
    ("merge-mark-left-out", "merge of the middle", "a child does not say that it is being merged"),
    ("spent-mark-left-out", "merge of the middle", "a child that is merged may be gone on with"),
    (
        "target-mark-removed-early",
        "merge whose end takes two entries",
        "a parent counts as complete before all of its tables are durable",
    ),
    ("grandchild-relinked-late", "merge of the middle", "the layer above names a removed file"),
    (
        "grandchild-relinked-early",
        "merge of the middle",
        "the layer above is linked to a parent that does not have it all yet",
    ),
    ("removed-before-relink", "merge of the middle", "a file is removed that is still named"),
    (
        "given-back-before-durable",
        "merge of the middle, low space",
        "a child gives up what the parent has not got durably",
    ),
    (
        "last-writes-not-merged",
        "merge of the tip, a write meanwhile",
        "what was written at the end of a merge is lost",
    ),
    (
        "mirror-left-out",
        "merge of the tip, a write that is mirrored",
        "what is written behind the end of a merge does not come to the parent",
    ),
    (
        "copy-over-newer-mirrored",
        "merge of the tip, a write that is mirrored",
        "an older version is copied over what a writer brought to the parent meanwhile",
    ),
    ("zeros-not-merged", "merge of the middle", "zeros over the parent's data are not merged"),
    (
        "deleted-before-new-tip",
        "revert, the newer deleted",
        "the newer layers are removed before there is another tip",
    ),
    (
        "child-of-an-older-identity",
        "checkpoint, a write meanwhile",
        "a new tip names an identity that its parent had before it was written to",
    ),
];

const CRASHES: &str = "every_outcome_of_a_crash_is_sound";
const CHAINS: &str = "chains::a_crash_leaves_a_chain_that_reads_right_and_is_completed";
const FAILURES: &str = "failures::every_failed_operation_is_an_error_and_loses_nothing_flushed";

/// Longer than any workload takes.
const PATIENCE: Duration = Duration::from_secs(600);

#[test]
#[ignore = "takes minutes; run by mutants.sh"]
fn every_mutant_is_found() {
    let only = std::env::var("AVHDX_ONLY").unwrap_or_default();
    let mut survivors = Vec::new();
    let of = |mutants: &'static [(_, _, _)], test| mutants.iter().map(move |mutant| (mutant, test));
    let all = of(MUTANTS, CRASHES)
        .chain(of(MUTANTS_OF_FAILURES, FAILURES))
        .chain(of(MUTANTS_OF_CHAINS, CHAINS));
    for ((name, workload, what), test) in all.filter(|((name, ..), _)| name.contains(&only)) {
        let started = Instant::now();
        let found = hunt(name, workload, test);
        let by = found.as_deref().unwrap_or("NOT FOUND");
        println!("{name:<34} {what}\n    {by} ({:.0} s)", started.elapsed().as_secs_f32());
        if found.is_none() {
            survivors.push(name);
        }
    }
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}

/// What found the mutant, in a process of its own.
fn hunt(name: &str, workload: &str, test: &str) -> Option<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env("AVHDX_MUTANT", name)
        .env("AVHDX_WORKLOAD", workload)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let said = said.join().unwrap();
    let found = said.lines().find(|line| line.starts_with("FOUND"));
    match found {
        Some(line) => Some(line.chars().take(300).collect()),
        // A workload that cannot even be recorded tells as much.
        None if !status.success() && !said.contains("outcomes, not") => {
            Some("a workload that did not get to its end".into())
        }
        None => None,
    }
}
