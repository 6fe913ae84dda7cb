//! What puts each finding right.

use super::findings::Severity;

/// What puts a finding right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Remedy {
    /// A [`Repair`](crate::ops::Repair), if it finds the proof that it needs.
    Repair,
    /// A [`Repair`](crate::ops::Repair) that may give up what is lost.
    RepairAcceptLoss,
    /// A [`Relink`](crate::ops::Relink), or the parent in the place where it was recorded.
    Relink,
    /// A [`Reparent`](crate::ops::Reparent), which proves that a parent is the right one.
    Reparent,
    /// A [`Merge`](crate::ops::Merge) that is resumed.
    Merge,
    /// A [`Compact`](crate::ops::Compact).
    Compact,
    /// A copy of what the disk reads as.
    Copy,
    /// Nothing that keeps the image: what can still be read has to be searched for.
    Rescue,
}

impl Remedy {
    /// Its name in the program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::RepairAcceptLoss => "repair --accept-loss",
            Self::Relink => "relink",
            Self::Reparent => "reparent",
            Self::Merge => "merge --resume",
            Self::Compact => "compact",
            Self::Copy => "convert",
            Self::Rescue => "rescue",
        }
    }
}

/// Returns what puts findings of this code right; `None` if nothing is wrong or no program of this crate can.
pub(super) fn remedy(code: &str, severity: Severity) -> Option<Remedy> {
    Some(match code {
        "bat.duplicate"
        | "bat.idle-place"
        | "bat.reserved-bits"
        | "bat.slack"
        | "bat.bitmap-unexpected"
        | "bat.bitmap-state"
        | "bitmap.empty"
        | "bitmap.full"
        | "bitmap.stray"
        | "file.length"
        | "header.reserved"
        | "identifier.signature"
        | "locator.reserved"
        | "locator.posix-path"
        | "locator.path-form"
        | "log.file-offset"
        | "log.no-entries"
        | "log.not-replayed"
        | "log.pending"
        | "metadata.empty-item"
        | "metadata.flags"
        | "metadata.reserved"
        | "region.checksum"
        | "region.signature"
        | "region.flags"
        | "region.reserved"
        | "parent.stale-path"
        | "locator.no-path"
        | "bat.overlap" => Remedy::Repair,
        // The other copy is intact.
        "header.checksum" | "header.signature" if severity != Severity::Error => Remedy::Repair,
        "bat.truncated" if severity != Severity::Error => Remedy::Repair,
        "bat.truncated" | "bat.payload-place" | "bat.bitmap-place" | "log.gap" => {
            Remedy::RepairAcceptLoss
        }
        "parent.missing" | "parent.open" => Remedy::Relink,
        "parent.mismatch"
        | "locator.linkage"
        | "locator.linkage-missing"
        | "locator.type"
        | "chain.loop" => Remedy::Reparent,
        "merge.unfinished" | "merge.spent" | "merge.target" | "locator.linkage2" => Remedy::Merge,
        "space.leaked" => Remedy::Compact,
        "limit.header-sequence" => Remedy::Copy,
        _ if severity == Severity::Info => return None,
        "chain.disk-id"
        | "chain.size"
        | "chain.sector-size"
        | "bat.fixed"
        | "lock.in-use"
        | "lock.failed"
        | "lock.unsupported"
        | "limit.depth"
        | "file.folder"
        | "file.not-regular"
        | "file.read"
        | "parent.denied"
        | "parent.no-access"
        | "parent.linkage-ignored"
        | "parent.unusable"
        | "region.unknown-required"
        | "metadata.unknown-required"
        | "image.stale-tracker" => return None,
        _ => Remedy::Rescue,
    })
}
