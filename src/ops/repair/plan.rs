//! What a repair does, or would do.

use crate::image::Loss;
use crate::ops::check::{Finding, Remedy, Report};

/// What a repair does, in which order, and what it leaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RepairPlan {
    /// What it does, in order. Empty if there is nothing to do, or nothing that can be done without guessing.
    pub steps: Vec<RepairStep>,
    /// What it leaves, and why.
    pub left: Vec<RepairLeft>,
    /// The lost or doubtful ranges of the disk, if the repair may give up what is lost.
    pub losses: Vec<Loss>,
    /// The length of the undo file in bytes; 0 if none is needed.
    pub undo_bytes: u64,
    /// Bytes by which the file grows.
    pub grows: u64,
    /// The check before.
    pub report_before: Report,
    /// The check of the repaired image.
    pub report_after: Report,
}

/// A step of a repair.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RepairStep {
    /// The codes of the findings that it puts right.
    pub codes: Vec<&'static str>,
    /// What it does, in the words of a sentence.
    pub meaning: String,
    /// Whether bytes of the disk read otherwise afterwards. The image then gets a new identity.
    pub changes_visible: bool,
    /// How many bytes of the file it changes, in units of 512.
    pub bytes: u64,
}

/// A finding that a repair leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairLeft {
    /// The finding.
    pub finding: Finding,
    /// Why it is left.
    pub why: String,
    /// What puts it right; `None` if nothing of this crate does.
    pub next: Option<Remedy>,
}

impl RepairPlan {
    /// Bytes of the disk that the repair gives up as lost.
    pub fn lost_bytes(&self) -> u64 {
        let lost = self.losses.iter().filter(|loss| loss.kind.is_lost());
        lost.map(|loss| loss.range.end - loss.range.start).sum()
    }

    /// Whether bytes of the disk read otherwise afterwards.
    pub fn changes_visible(&self) -> bool {
        self.steps.iter().any(|step| step.changes_visible)
    }
}
