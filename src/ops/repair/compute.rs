//! Computes a repair whole, before a byte of the file changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::plan::{RepairLeft, RepairPlan, RepairStep};
use super::work::{Outcome, Refusal, Work};
use super::{bitmaps, blocks, link, metadata, root};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Lock, Loss};
use crate::ops::check::{Check, Finding, Remedy, Report, Severity};
use crate::options::OpenOptions;
use crate::storage::{ChangedRange, Scratch, Storage};

/// A kind of repair.
struct Pass {
    run: fn(&Work<'_>) -> Result<Outcome>,
    /// The proof is that the check finds nothing wrong with the file afterwards.
    by_check: bool,
    /// Whether nothing that comes after makes sense unless headers and log are settled.
    settles: bool,
    /// Whether it clears bits that count as long as a table does not have the changes of this pass.
    clears_bits: bool,
}

const fn pass(run: fn(&Work<'_>) -> Result<Outcome>) -> Pass {
    Pass { run, by_check: false, settles: false, clears_bits: false }
}

/// In the order in which what one needs is put right by those before it.
const PASSES: &[Pass] = &[
    pass(root::headers),
    pass(root::replay),
    Pass { by_check: true, settles: true, ..pass(root::forget_log) },
    pass(root::identifier),
    pass(root::region_tables),
    pass(metadata::bits),
    pass(blocks::entries),
    pass(blocks::mend),
    pass(blocks::tail),
    pass(blocks::idle_places),
    Pass { clears_bits: true, ..pass(bitmaps::bits) },
    pass(blocks::cut),
    pass(link::paths),
];

/// Remarks that may come up where something else is put right: space without an owner, logs without one, and bitmaps that
/// could not be examined before.
const LEFT_OVERS: &[&str] =
    &["space.leaked", "log.old-entry", "bitmap.empty", "bitmap.full", "bitmap.stray"];

/// A repair, computed: what it does, and the file as it will be.
pub(super) struct Computed {
    pub(super) plan: RepairPlan,
    pub(super) image: Arc<Scratch>,
    /// The file before bits are cleared: how what it grows by is written first.
    pub(super) staged: Arc<Scratch>,
    /// What changes, without what a new length alone changes.
    pub(super) changes: Vec<ChangedRange>,
}

/// Computes the repair of the file in `storage`.
pub(super) fn compute(
    options: &OpenOptions,
    accepts_loss: bool,
    storage: Arc<dyn Storage>,
) -> Result<Computed> {
    let image = Arc::new(Scratch::over(storage).map_err(unreadable)?);
    let mut work = Work { image, options, accepts_loss };
    let before = check(&work)?;
    let mut report = before.clone();
    let mut steps = Vec::new();
    let mut losses: Vec<Loss> = Vec::new();
    let mut refusals: Vec<Refusal> = Vec::new();
    let mut staged = Arc::clone(&work.image);
    for pass in PASSES {
        if pass.clears_bits {
            staged = Arc::clone(&work.image);
        }
        let image = Arc::new(work.image.fork());
        let trial = Work { image, options, accepts_loss };
        match (pass.run)(&trial) {
            Ok(Outcome::Nothing) => {}
            Ok(Outcome::Refused(refusal)) => refusals.push(refusal),
            Ok(Outcome::Did(deed)) => {
                let after = check(&trial)?;
                let codes = repaired(&report, &after);
                if let Some(why) = why_not(&report, &after, pass.by_check) {
                    let codes = if codes.is_empty() { wrong(&report) } else { codes };
                    let why = format!("it would not help that {}: {why}", deed.what);
                    refusals.push(Refusal { codes, why, next: None });
                } else {
                    let bytes = bytes_between(&work.image, &trial.image)?;
                    let changes_visible = deed.is_visible;
                    steps.push(RepairStep { codes, meaning: deed.what, changes_visible, bytes });
                    losses.extend(deed.losses);
                    (work, report) = (trial, after);
                }
            }
            // What the host does not let happen, or the caller stops.
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Cancelled) => {
                return Err(error);
            }
            Err(error) if error.kind() == ErrorKind::Limit => {
                let (codes, why) = (wrong(&report), error.to_string());
                refusals.push(Refusal { codes, why, next: None });
            }
            // What cannot be opened is left, for the reasons that the check gives.
            Err(_) => {}
        }
        if pass.settles && !root::is_settled(&work)? {
            steps.clear();
            losses.clear();
            work.image =
                Arc::new(Scratch::over(Arc::clone(work.image.base())).map_err(unreadable)?);
            report = before.clone();
            break;
        }
    }
    if !steps.is_empty() {
        finish(&work, steps.iter().any(|step| step.changes_visible))?;
        report = check(&work)?;
    }
    let changes = work.image.changes().map_err(unreadable)?;
    let len = work.image.len().map_err(unreadable)?;
    let plan = RepairPlan {
        steps,
        left: left(&report, &refusals),
        losses,
        undo_bytes: 0,
        grows: len.saturating_sub(work.image.base_len()),
        report_before: before,
        report_after: report,
    };
    Ok(Computed { plan, image: work.image, staged, changes })
}

/// Gives the headers a new session, and a new identity to a disk that reads otherwise. Drops what was written to the log,
/// which is empty.
fn finish(work: &Work<'_>, is_visible: bool) -> Result<()> {
    let mut headers = work.headers()?.1?;
    root::renew(work, &mut headers, |header| {
        header.file_write_guid = Uuid::new_v4();
        if is_visible {
            header.data_write_guid = Uuid::new_v4();
        }
    })?;
    if let Some(range) = root::log_range(work)? {
        work.image.restore(range);
    }
    Ok(())
}

fn check(work: &Work<'_>) -> Result<Report> {
    let options = work.options.clone().writable(false).lock(Lock::None);
    Check::new().options(options).run_file(Arc::clone(&work.image) as Arc<dyn Storage>)
}

/// How many findings of each code the image itself has, and how severe they are.
fn counts(report: &Report) -> BTreeMap<&'static str, (Severity, u64)> {
    let own = report.layers.first().map(|layer| layer.name.as_str()).unwrap_or_default();
    let listed = report.findings.iter().filter(|it| it.layer == own);
    let more = report.unlisted.iter().filter(|it| it.layer == own);
    let all = listed.map(|it| (it.code, it.severity, 1));
    let mut counts: BTreeMap<&'static str, (Severity, u64)> = BTreeMap::new();
    for (code, severity, count) in all.chain(more.map(|it| (it.code, it.severity, it.count))) {
        let known = counts.entry(code).or_insert((severity, 0));
        known.0 = known.0.min(severity);
        known.1 += count;
    }
    counts
}

/// The codes of which the image has fewer findings, or less severe ones.
fn repaired(before: &Report, after: &Report) -> Vec<&'static str> {
    let after = counts(after);
    let is_less = |code: &str, (severity, count): (Severity, u64)| {
        after.get(code).is_none_or(|(now, left)| *left < count || *now > severity)
    };
    let before = counts(before).into_iter();
    before.filter(|(code, found)| is_less(code, *found)).map(|(code, _)| code).collect()
}

/// The codes of what is wrong.
fn wrong(report: &Report) -> Vec<&'static str> {
    let found = counts(report).into_iter();
    found.filter(|(_, (severity, _))| *severity < Severity::Info).map(|(code, _)| code).collect()
}

/// Why the image would not be better afterwards.
fn why_not(before: &Report, after: &Report, by_check: bool) -> Option<String> {
    if repaired(before, after).is_empty() {
        return Some("the check finds the same afterwards".into());
    }
    let known = counts(before);
    for (code, (severity, count)) in counts(after) {
        let is_of_others = code.starts_with("parent.") || code.starts_with("chain.");
        if by_check && severity < Severity::Info && !is_of_others {
            return Some(format!("the file without a log has a finding {code}"));
        }
        let (was, had) = known.get(code).copied().unwrap_or((Severity::Info, 0));
        if !LEFT_OVERS.contains(&code) && (count > had || severity < was) {
            return Some(format!("the check then has a finding {code}"));
        }
    }
    None
}

/// What is left, and why.
fn left(report: &Report, refusals: &[Refusal]) -> Vec<RepairLeft> {
    let own = report.layers.first().map(|layer| layer.name.as_str()).unwrap_or_default();
    let mut left = Vec::new();
    for finding in &report.findings {
        let refusal = refusals.iter().find(|refusal| refusal.codes.contains(&finding.code));
        let refusal = refusal.filter(|_| finding.layer == own);
        if finding.severity == Severity::Info && refusal.is_none() && finding.code != "space.leaked"
        {
            continue;
        }
        let (why, next) = match refusal {
            Some(refusal) => (refusal.why.clone(), refusal.next.or_else(|| instead(finding))),
            None if finding.layer == own => (reason(finding).to_owned(), instead(finding)),
            None => {
                let why = "a repair changes one image, and this finding is of another layer";
                (why.to_owned(), finding.repaired_by)
            }
        };
        left.push(RepairLeft { finding: finding.clone(), why, next });
    }
    left
}

/// What comes next for a finding that this repair did not put right.
fn instead(finding: &Finding) -> Option<Remedy> {
    match finding.repaired_by {
        Some(Remedy::Repair | Remedy::RepairAcceptLoss) => match finding.code {
            code if code.starts_with("locator.") || code.starts_with("parent.") => {
                Some(Remedy::Reparent)
            }
            _ if finding.severity == Severity::Info => None,
            _ => Some(Remedy::Rescue),
        },
        other => other,
    }
}

fn reason(finding: &Finding) -> &'static str {
    match finding.repaired_by {
        Some(Remedy::Merge) => "an unfinished merge is completed, not repaired",
        Some(Remedy::Relink | Remedy::Reparent) => "no file is proven to be the parent",
        Some(Remedy::RepairAcceptLoss) => "bytes are lost, and giving them up needs consent",
        Some(Remedy::Copy) => "a copy starts anew",
        Some(Remedy::Compact) => "it lies between blocks, which a repair does not move",
        Some(Remedy::Rescue) => "nothing in the file proves what belongs there",
        Some(Remedy::Repair) => "something that it depends on is not repaired",
        _ => "nothing in this file is wrong, or another program has to put it right",
    }
}

/// How many bytes differ between two states of the file.
fn bytes_between(before: &Scratch, after: &Scratch) -> Result<u64> {
    let total = |image: &Scratch| -> Result<u64> {
        let changes = image.changes().map_err(unreadable)?;
        Ok(changes.iter().map(|change| change.range.end - change.range.start).sum())
    };
    Ok(total(after)?.saturating_sub(total(before)?))
}

fn unreadable(error: std::io::Error) -> Error {
    Error::io("file.read", "cannot read the file", error)
}
