//! Mutated chains: a repair settles what it says, the disk reads as before unless it says otherwise, and undoing it gives
//! the old bytes.

use std::ops::ControlFlow;

use avhdx::ops::{Check, Repair, UndoRepair};
use avhdx::{DiffChain, Disk};
use avhdx_testkit::sim::Sum;

use crate::input::Input;
use crate::mutated::mutated;
use crate::place::{Place, path};

/// The part of the disk that is compared, from the start on.
const MOST_READ: u64 = 8 << 20;
const PIECE: u64 = 32 << 10;

pub fn run(input: &mut Input<'_>) {
    let place = Place::new(&mutated(input));
    let tip = path(place.count - 1);
    let sum = |place: &Place| -> Vec<Option<Sum>> {
        let files = place.host.files();
        (0..place.count).map(|n| files.file(&path(n)).map(|file| file.sum())).collect()
    };
    let before = sum(&place);
    let read = place.open(&place.options()).ok().map(|chain| pieces(&chain));
    let accepts = input.chance(1, 3);
    let repair = Repair::new().options(place.options()).accept_loss(accepts);
    let repaired = match repair.run(&tip, &mut |_| ControlFlow::Continue(())) {
        Ok(repaired) => repaired,
        Err(error) => {
            assert!(!error.code().is_empty() && !error.message().is_empty());
            return assert_eq!(sum(&place), before, "refused, and changed: {error}");
        }
    };
    let steps: Vec<_> = repaired.plan.steps.iter().flat_map(|step| &step.codes).collect();
    let Some(undo) = &repaired.undo else {
        return assert_eq!(sum(&place), before, "nothing is repaired, but changed: {steps:?}");
    };
    let after = Check::new().options(place.options()).run(&tip);
    let after = after.unwrap_or_else(|error| panic!("a check after {steps:?}: {error}"));
    let left = |code: &str| repaired.plan.left.iter().any(|left| left.finding.code == code);
    for finding in &after.findings {
        let is_settled = steps.iter().any(|code| **code == finding.code) && !left(finding.code);
        let is_of_tip = finding.layer == tip.display().to_string();
        assert!(!(is_settled && is_of_tip), "still there after {steps:?}: {finding:?}");
    }
    if let (Some(read), false) = (read, repaired.plan.changes_visible()) {
        let chain = place.open(&place.options());
        let chain = chain.unwrap_or_else(|error| panic!("not open after {steps:?}: {error}"));
        for (n, (was, is)) in read.into_iter().zip(pieces(&chain)).enumerate() {
            assert!(was.is_none() || was == is, "piece {n} differs after {steps:?}");
        }
    }
    let undone = UndoRepair::new().options(place.options()).run(&tip, undo);
    undone.unwrap_or_else(|error| panic!("undoing {steps:?}: {error}"));
    assert_eq!(sum(&place), before, "undone, and not as before: {steps:?}");
}

/// What of the disk can be read.
fn pieces(chain: &DiffChain) -> Vec<Option<Vec<u8>>> {
    let size = chain.geometry().size.min(MOST_READ);
    let piece = |at: u64| {
        let mut bytes = vec![0; (size - at).min(PIECE) as usize];
        chain.read_at(&mut bytes, at).ok().map(|()| bytes)
    };
    (0..size).step_by(PIECE as usize).map(piece).collect()
}
