//! Repairs of every kind of corruption: what is found, what is put right, what is left; each undone again.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use avhdx::ops::{Check, Repair, RepairPlan, Report, Severity, UndoRepair, Undone};
use avhdx::{CreateOptions, Disk, OpenOptions};
use avhdx_testkit::mutate::{put_u64, reseal};
use avhdx_testkit::naive::{Chain, Layer};
use avhdx_testkit::rng::Rng;

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

    /// The same by the crate, which refuses more.
    fn of_crate(image: &Path) -> Self {
        let Ok(chain) = OpenOptions::new().open(image) else { return Self(Vec::new()) };
        let size = chain.geometry().size.min(16 << 20);
        let steps = (0..size.div_ceil(STEP)).map(|n| {
            let mut bytes = vec![0; STEP.min(size - n * STEP) as usize];
            let read = chain.read_at(&mut bytes, n * STEP);
            read.map(|()| bytes).map_err(|error| error.to_string())
        });
        Self(steps.collect())
    }

    /// The pieces that both read in the same way.
    fn agreed(mut self, other: &Self) -> Self {
        for (n, piece) in self.0.iter_mut().enumerate() {
            if other.0.get(n).is_none_or(|other| other != piece) {
                *piece = Err("the readers do not agree".into());
            }
        }
        self
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

/// A repaired image, its bytes before and after, and its undo file.
fn repaired(folder: &Path) -> (PathBuf, PathBuf, Vec<u8>, Vec<u8>) {
    let kinds = more();
    let (_, from, change, _) =
        kinds.iter().find(|kind| kind.0 == "a torn header and a tail to cut off").unwrap();
    let image = write(folder, *from, Some(change));
    let old = fs::read(&image).unwrap();
    let done = Repair::new().run(&image, &mut |_| ControlFlow::Continue(())).unwrap();
    let new = fs::read(&image).unwrap();
    (image, done.undo.unwrap(), old, new)
}

#[test]
fn an_image_that_was_changed_since_is_not_undone() {
    let folder = tempfile::tempdir().unwrap();
    let (image, undo, old, new) = repaired(folder.path());
    assert_eq!(undo, folder.path().join("image.vhdx.undo"));
    let refused = |bytes: &[u8], code: &str| {
        fs::write(&image, bytes).unwrap();
        let error = UndoRepair::new().run(&image, &undo).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(fs::read(&image).unwrap() == bytes, "{error}");
    };
    // Bytes that the repair touched, and the length.
    let mut other = new.clone();
    other[(64 << 10) + 40] ^= 1;
    refused(&other, "undo.changed");
    other = new.clone();
    other.push(0);
    other.resize(old.len() + 512, 0);
    refused(&other, "undo.changed");
    refused(&new[..new.len() - 512], "undo.changed");
    // An image that was written to.
    fs::write(&image, &new).unwrap();
    let disk = OpenOptions::new().writable(true).open_image(&image).unwrap();
    disk.write_at(&[1; 512], 0).unwrap();
    disk.close().unwrap();
    drop(disk);
    let written = fs::read(&image).unwrap();
    refused(&written, "undo.changed");
    // Another image.
    let empty = CreateOptions::dynamic(8 << 20);
    empty.create(folder.path().join("other.vhdx")).unwrap().close().unwrap();
    let other = fs::read(folder.path().join("other.vhdx")).unwrap();
    refused(&other, "undo.changed");

    // The undo file itself: every byte of it counts.
    fs::write(&image, &new).unwrap();
    let whole = fs::read(&undo).unwrap();
    for at in (0..52).chain((64..whole.len()).step_by(7)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        fs::write(&undo, &bytes).unwrap();
        let error = UndoRepair::new().run(&image, &undo).unwrap_err();
        assert!(error.code().starts_with("undo."), "{at}: {error}");
    }
    for len in [0, 63, 64, 100, whole.len() - 1] {
        fs::write(&undo, &whole[..len]).unwrap();
        let error = UndoRepair::new().run(&image, &undo).unwrap_err();
        assert!(error.code().starts_with("undo."), "{len}: {error}");
    }
    assert!(fs::read(&image).unwrap() == new);
    fs::write(&undo, &whole).unwrap();
    assert_eq!(UndoRepair::new().run(&image, &undo).unwrap(), Undone::Complete);
    assert!(fs::read(&image).unwrap() == old);
}

#[test]
fn an_undo_file_replaces_nothing_and_a_refused_callback_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = corruptions();
    let (_, from, change, _) =
        kinds.iter().find(|kind| kind.0 == "reserved bits of an entry").unwrap();
    let image = write(folder.path(), *from, Some(change));
    let old = fs::read(&image).unwrap();
    let taken = folder.path().join("image.vhdx.undo");
    fs::write(&taken, "mine").unwrap();
    let error = Repair::new()
        .undo_file(&taken)
        .run(&image, &mut |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert_eq!(error.code(), "repair.undo");
    let error = Repair::new().run(&image, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.kind(), avhdx::ErrorKind::Cancelled);
    assert!(fs::read(&image).unwrap() == old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3, "l0, image, the one taken");
    let done = Repair::new().run(&image, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(done.undo, Some(folder.path().join("image.vhdx.undo-2")));
    assert_eq!(fs::read(&taken).unwrap(), b"mine");
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let of = |path: &Path| fs::metadata(path).unwrap();
        let (undo, image) = (of(&done.undo.unwrap()), of(&image));
        assert_eq!((undo.mode(), undo.uid()), (image.mode(), image.uid()));
    }
}

#[test]
fn a_loss_is_given_up_under_a_new_identity_and_never_below_children() {
    let folder = tempfile::tempdir().unwrap();
    let mut base = Start::Dynamic.image();
    base.file_length = Some(base.layout().needed_length - (1 << 20));
    let mut child = base.new_child();
    child.parent_path(".\\base.vhdx");
    let image = folder.path().join("base.vhdx");
    base.write_to(&image);
    child.write_to(folder.path().join("child.vhdx"));
    let old = fs::read(&image).unwrap();
    let identity = Layer::open(&image).unwrap().data_write_guid;
    let repair = Repair::new().accept_loss(true);
    let go_on = &mut |_: &RepairPlan| ControlFlow::Continue(());
    let error = repair.run(&image, go_on).unwrap_err();
    assert_eq!(error.kind(), avhdx::ErrorKind::HasChildren);
    assert_eq!(repair.plan(&image).unwrap_err().kind(), avhdx::ErrorKind::HasChildren);
    assert!(fs::read(&image).unwrap() == old);
    // Without the consent nothing visible changes, and children do not matter.
    assert!(Repair::new().plan(&image).unwrap().steps.is_empty());
    fs::remove_file(folder.path().join("child.vhdx")).unwrap();
    let done = repair.run(&image, go_on).unwrap();
    assert_eq!(done.plan.lost_bytes(), 1 << 20);
    assert!(done.plan.is_complete());
    let repaired = Layer::open(&image).unwrap();
    assert_ne!(repaired.data_write_guid, identity);
    // A child of the repaired image keeps it from being undone.
    let tip = OpenOptions::new().open(&image).unwrap();
    let new = CreateOptions::child_of(&tip.tip()).unwrap();
    new.create(folder.path().join("new.vhdx")).unwrap().close().unwrap();
    drop(tip);
    let undo = done.undo.unwrap();
    let error = UndoRepair::new().run(&image, &undo).unwrap_err();
    assert_eq!(error.kind(), avhdx::ErrorKind::HasChildren);
    fs::remove_file(folder.path().join("new.vhdx")).unwrap();
    assert_eq!(UndoRepair::new().run(&image, &undo).unwrap(), Undone::Complete);
    assert!(fs::read(&image).unwrap() == old);
}

#[test]
fn all_other_repairs_keep_the_identity() {
    for kind in corruptions().iter().chain(&more()) {
        let folder = tempfile::tempdir().unwrap();
        let image = write(folder.path(), kind.1, Some(&kind.2));
        let Ok(before) = Layer::open(&image) else { continue };
        let done = Repair::new().run(&image, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(!done.plan.changes_visible(), "{}", kind.0);
        let after = Layer::open(&image).unwrap();
        assert_eq!(after.data_write_guid, before.data_write_guid, "{}", kind.0);
    }
}

/// Images with a few random changes of their tables, whose sums are right again.
#[test]
fn random_damage_is_repaired_or_left_and_undone_to_the_byte() {
    let seeds = match std::env::var("AVHDX_LONG") {
        Ok(long) if long == "1" => 0..2000,
        _ => 0..150,
    };
    let (mut changed, mut given_up) = (0, 0);
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let from =
            [Start::Dynamic, Start::Fixed, Start::Child, Start::Dirty][rng.below(4) as usize];
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), from, None);
        let layout = from.image().layout();
        let mut bytes = fs::read(&path).unwrap();
        let places =
            ["header1", "header2", "region_table1", "metadata_table", "bat", "locator", "log"];
        let places: Vec<_> = places.iter().filter_map(|name| layout.find(name)).collect();
        for _ in 0..1 + rng.below(4) {
            let place = &places[rng.below(places.len() as u64) as usize];
            let len = (place.end - place.start).min(96);
            let at = place.start + rng.below(len / 8) * 8;
            match rng.below(4) {
                0 => put_u64(&mut bytes, at, rng.below(16) << 20 | rng.below(8)),
                1 => put_u64(&mut bytes, at, 0),
                2 => put_u64(&mut bytes, at, rng.next_u64()),
                _ => bytes[at as usize + rng.below(8) as usize] ^= 1 << rng.below(8),
            }
        }
        if rng.below(3) > 0 {
            reseal(&mut bytes);
        }
        if rng.below(4) == 0 {
            let len = bytes.len() as u64 - (1 << 20) + rng.below(3 << 20);
            bytes.resize(len as usize, 0);
        }
        fs::write(&path, &bytes).unwrap();
        let of_crate = Readable::of_crate(&path);
        // The other reader minds fewer rules, and may read by a table that is none.
        let readable = Readable::of(folder.path(), &path).agreed(&of_crate);
        let accepts_loss = rng.below(2) == 0;
        let repair = Repair::new().accept_loss(accepts_loss);
        let done = match repair.run(&path, &mut |_| ControlFlow::Continue(())) {
            Ok(done) => done,
            // No part of it is an image.
            Err(error) if error.kind() == avhdx::ErrorKind::NotVhdx => continue,
            Err(error) => panic!("{seed}: {error}"),
        };
        let Some(undo) = done.undo else {
            assert!(fs::read(&path).unwrap() == bytes, "{seed}");
            continue;
        };
        changed += 1;
        given_up += usize::from(done.plan.changes_visible());
        if !done.plan.changes_visible() {
            let lost = readable.lost_to(&Readable::of(folder.path(), &path));
            assert_eq!(lost, None, "{seed}: {:#?}", done.plan.steps);
            let lost = of_crate.lost_to(&Readable::of_crate(&path));
            assert_eq!(lost, None, "{seed}: {:#?}", done.plan.steps);
        }
        assert!(repair.plan(&path).unwrap().steps.is_empty(), "{seed}: done twice");
        assert_eq!(UndoRepair::new().run(&path, &undo).unwrap(), Undone::Complete, "{seed}");
        assert!(fs::read(&path).unwrap() == bytes, "{seed}");
    }
    assert!(changed > 60 && given_up > 1, "{changed} repaired, {given_up} with a loss");
}
