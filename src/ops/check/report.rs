//! The result of a check.

use std::path::PathBuf;

use uuid::Uuid;

use super::findings::{Finding, Unlisted};
use super::severity::Severity;
use crate::chain::FoundBy;

/// The result of a check.
///
/// See [`Check`](super::Check) for an example.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// The layers checked, from the tip down.
    pub layers: Vec<CheckedLayer>,
    /// The findings, ordered by layer, and within a layer in the order of examination.
    pub findings: Vec<Finding>,
    /// Findings that are not listed because there are too many of their kind.
    pub unlisted: Vec<Unlisted>,
}

/// A layer that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CheckedLayer {
    /// The name of its file in findings.
    pub name: String,
    /// The path of the file, if it has one.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::types::shown_path"))]
    pub path: Option<PathBuf>,
    /// How it was found from the layer above; `None` for the tip.
    pub found_by: Option<FoundBy>,
    /// Length of the file in bytes, including growth from a log replayed in memory.
    pub file_len: u64,
    /// Its identity, if a header can be read.
    pub data_write_guid: Option<Uuid>,
    /// Size of the disk in bytes, if the metadata can be read.
    pub size: Option<u64>,
    /// How many blocks have space in the file, if the block allocation table can be read.
    pub allocated_blocks: Option<u64>,
    /// Unreferenced bytes of the file, if they can be determined.
    pub leaked: Option<u64>,
}

/// Codes of findings about data that may be lost, not examined, or changed during the check.
const DOUBTS: &[&str] = &[
    "bat.lost",
    "bat.not-checked",
    "bat.too-far",
    "bitmap.hidden",
    "lock.failed",
    "lock.in-use",
    "log.gap",
    "log.not-replayed",
    "parent.linkage-ignored",
];

impl Report {
    /// Whether no rule of the format is broken. There may still be warnings and [doubts](Self::is_doubtful), and the
    /// contents of blocks are not read.
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }

    /// Whether a finding says that data may be lost or was not examined, although no rule is broken. The absence of
    /// errors proves nothing then.
    pub fn is_doubtful(&self) -> bool {
        let doubts = |code: &str| DOUBTS.contains(&code);
        self.findings.iter().any(|finding| doubts(finding.code))
            || self.unlisted.iter().any(|more| doubts(more.code))
    }

    /// Counts the findings of a severity, including those not listed.
    pub fn count(&self, severity: Severity) -> u64 {
        let listed = self.findings.iter().filter(|finding| finding.severity == severity).count();
        let more = self.unlisted.iter().filter(|more| more.severity == severity);
        listed as u64 + more.map(|more| more.count).sum::<u64>()
    }
}
