//! Repairs of every kind of corruption: what is found, what is put right, what is left; each undone again.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use avhdx::ops::{Check, Repair, RepairPlan, Report, Severity, UndoRepair, Undone};
use avhdx::{CreateOptions, Disk, OpenOptions};
use avhdx_testkit::naive::{Chain, Layer};

use super::corruptions::{Corruption, Start, corruptions, write};
use super::repairs::more;

/// Where the table stands.
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/repair.md");
const BEGIN: &str = "<!-- The test repair::every_kind writes the table below. -->\n";
/// How many bytes are read at once where a disk cannot be read whole.
const STEP: u64 = 4096;

/// What the disk reads as, piece by piece, as far as the kit's reader can read it.
struct Readable(Vec<Result<Vec<u8>, String>>);

impl Readable {
    fn of(folder: &Path, image: &Path) -> Self {
        let Ok(own) = Layer::open(image) else { return Self(Vec::new()) };
        let below = own.has_parent.then(|| folder.join("l0.vhdx"));
        let paths: Vec<PathBuf> = below.into_iter().chain([image.to_path_buf()]).collect();
        let Ok(chain) = Chain::open(&paths) else { return Self(Vec::new()) };
        let tip = paths.len() - 1;
        // No image has blocks behind that.
        let size = own.size.min(16 << 20);
        let steps = (0..size.div_ceil(STEP)).map(|n| {
            let len = STEP.min(size - n * STEP);
            chain.read(tip, n * STEP, len as usize)
        });
        Self(steps.collect())
    }

    /// The first piece that was readable and is another now.
    fn lost_to(&self, after: &Self) -> Option<usize> {
        let reads = |piece: &Result<Vec<u8>, String>, n: usize| match piece {
            Ok(bytes) => after.0.get(n).is_some_and(|after| after.as_ref() == Ok(bytes)),
            Err(_) => true,
        };
        (0..self.0.len()).find(|n| !reads(&self.0[*n], *n))
    }
}

fn codes(report: &Report, least: Severity) -> BTreeSet<&'static str> {
    report.findings.iter().filter(|found| found.severity <= least).map(|found| found.code).collect()
}

fn joined<'a>(codes: impl IntoIterator<Item = &'a str>) -> String {
    let codes: Vec<String> = codes.into_iter().map(|code| format!("`{code}`")).collect();
    if codes.is_empty() { "–".into() } else { codes.join(" ") }
}

/// Repairs one image, judges the outcome, undoes it, and returns its row of the table.
fn judge((what, from, change, _): &Corruption, accepts_loss: bool) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let image = write(folder.path(), *from, Some(change));
    let original = fs::read(&image).unwrap();
    let readable = Readable::of(folder.path(), &image);
    let found = Check::new().run(&image).unwrap();
    let repair = Repair::new().accept_loss(accepts_loss);
    let plan = repair.plan(&image).unwrap();
    assert!(fs::read(&image).unwrap() == original, "{what}: a plan changes nothing");
    assert_eq!(codes(&plan.report_before, Severity::Info), codes(&found, Severity::Info), "{what}");

    let mut shown = None;
    let repaired = repair
        .run(&image, &mut |plan| {
            shown = Some(plan.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    same(&plan, &repaired.plan, what);
    let after = Check::new().run(&image).unwrap();
    assert_eq!(
        codes(&after, Severity::Info),
        codes(&plan.report_after, Severity::Info),
        "{what}: the plan shows the outcome"
    );
    // Everything that is still wrong is said, with a reason.
    let left: BTreeSet<&str> = plan.left.iter().map(|left| left.finding.code).collect();
    let wrong = codes(&after, Severity::Warning);
    assert!(wrong.iter().all(|code| left.contains(code)), "{what}: {wrong:?} {left:?}");
    assert!(plan.left.iter().all(|left| !left.why.is_empty()), "{what}");
    if !plan.changes_visible() {
        let lost = readable.lost_to(&Readable::of(folder.path(), &image));
        assert_eq!(lost, None, "{what}: a piece reads otherwise");
    }
    let is_changed = !plan.steps.is_empty();
    match &repaired.undo {
        None => {
            assert!(!is_changed && shown.is_none(), "{what}");
            assert!(fs::read(&image).unwrap() == original, "{what}: left as it was");
        }
        Some(undo) => {
            assert!(is_changed && shown.is_some(), "{what}");
            assert_eq!(fs::metadata(undo).unwrap().len(), plan.undo_bytes, "{what}");
            assert!(fs::read(&image).unwrap() != original, "{what}");
            let again = repair.plan(&image).unwrap();
            assert!(again.steps.is_empty(), "{what}: done twice: {:#?}", again.steps);
            let undone = UndoRepair::new().run(&image, undo).unwrap();
            assert_eq!(undone, Undone::Complete, "{what}");
            assert!(fs::read(&image).unwrap() == original, "{what}: undone to the byte");
            let undone = UndoRepair::new().run(&image, undo).unwrap();
            assert_eq!(undone, Undone::Nothing, "{what}");
        }
    }
    let name = |from: &Start| format!("{from:?}").to_lowercase();
    let least = if codes(&found, Severity::Warning).is_empty() {
        Severity::Info
    } else {
        Severity::Warning
    };
    let steps: BTreeSet<&str> = plan.steps.iter().flat_map(|step| step.codes.clone()).collect();
    let next: BTreeSet<&str> =
        plan.left.iter().filter_map(|left| left.next).map(|next| next.name()).collect();
    let consent = if accepts_loss { ", with consent" } else { "" };
    let row = format!(
        "| {what} ({}{consent}) | {} | {} | {} | {} |",
        name(from),
        joined(codes(&found, least)),
        joined(steps),
        joined(left),
        if next.is_empty() {
            "–".into()
        } else {
            next.into_iter().collect::<Vec<_>>().join(", ")
        },
    );
    (row, is_changed)
}

fn same(plan: &RepairPlan, done: &RepairPlan, what: &str) {
    assert_eq!(plan.steps, done.steps, "{what}");
    assert_eq!(plan.left, done.left, "{what}");
    assert_eq!(plan.undo_bytes, done.undo_bytes, "{what}");
}

#[test]
fn every_kind_is_repaired_or_left_and_the_table_says_which() {
    let only = std::env::var("AVHDX_KIND").unwrap_or_default();
    let mut table = String::from(
        "| what is wrong | found | put right | left | next |\n|---|---|---|---|---|\n",
    );
    let (mut kinds, mut changed) = (0, 0);
    for kind in corruptions().iter().chain(&more()).filter(|kind| kind.0.contains(&only)) {
        let (row, is_changed) = judge(kind, false);
        writeln!(table, "{row}").unwrap();
        kinds += 1;
        changed += usize::from(is_changed);
        if row.contains("--accept-loss") {
            let (row, is_changed) = judge(kind, true);
            writeln!(table, "{row}").unwrap();
            changed += usize::from(is_changed);
        }
    }
    if !only.is_empty() {
        print!("{table}");
        return;
    }
    assert!(kinds >= 100 && changed >= 40, "{kinds} kinds, {changed} repaired");
    let docs = fs::read_to_string(DOCS).unwrap();
    let (head, _) = docs.split_once(BEGIN).expect("the mark before the table");
    let wanted = format!("{head}{BEGIN}\n{table}");
    if std::env::var_os("UPDATE_REPAIRS").is_some() {
        fs::write(DOCS, wanted).unwrap();
    } else {
        assert!(
            docs == wanted,
            "docs/repair.md is not what repairs do: UPDATE_REPAIRS=1 writes it"
        );
    }
}

/// An image of this crate, written to in several sessions, whose log holds entries of all of them.
fn used(folder: &Path, sessions: u64) -> PathBuf {
    let path = folder.join("used.vhdx");
    CreateOptions::dynamic(64 << 20).block_size(1 << 20).create(&path).unwrap().close().unwrap();
    for session in 0..sessions {
        let image = OpenOptions::new().writable(true).open_image(&path).unwrap();
        for n in 0..2 * (sessions - session) {
            image.write_at(&[session as u8 + 1; 5000], (11 * session + n) << 20).unwrap();
            image.flush().unwrap();
        }
        image.close().unwrap();
    }
    path
}

#[test]
fn a_header_is_restored_in_an_image_with_old_logs_that_say_nothing_new() {
    for sessions in [0, 1, 2, 5] {
        for header in [64 << 10, 128 << 10] {
            let folder = tempfile::tempdir().unwrap();
            let path = used(folder.path(), sessions);
            let mut bytes = fs::read(&path).unwrap();
            bytes[header + 100] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let plan = Repair::new().plan(&path).unwrap();
            let codes: Vec<_> = plan.steps.iter().flat_map(|step| step.codes.clone()).collect();
            assert_eq!(codes, ["header.checksum"], "{sessions} {header}: {:#?}", plan.left);
        }
    }
}
