//! Changes images that open for writing, and checks refusals.
//!
//! A model knows the previous contents of each part of the disk and what was written to it. Whatever is wrong with the
//! image, only the written bytes change, a refused file stays the same, and everything stays within the
//! bounds of [`Sparse`].

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use avhdx::ops::{Check, Severity};
use avhdx::storage::Storage;
use avhdx::{Budget, DiffChain, Disk, Error, ErrorKind, OpenOptions, Zeroing};
use avhdx_testkit::rng::Rng;

use crate::TABLES;
use crate::common::sparse::{Bounds, Sparse};
use crate::common::{MIB, ReadOnly, Shelf};
use crate::reading::{is_told, unchanging};

/// The size of the parts that are read and written, at the start and at the end of a disk.
const WINDOW: u64 = 4 * MIB;
const PIECE: u64 = 32 << 10;

/// Writes to the last of these files as the tip of a chain, if it opens for writing.
pub fn change(files: &[Arc<Vec<u8>>], seed: u64) {
    let mut rng = Rng::new(seed);
    let (tip, parents) = files.split_last().expect("a file");
    let bounds = Bounds { tells: rng.chance(3, 4), zeros: rng.chance(3, 4), ..Bounds::default() };
    let tip = Sparse::new("tip", Arc::clone(tip), bounds);
    let named = parents.iter().enumerate();
    let parents: Vec<Arc<dyn Storage>> =
        named.map(|(n, bytes)| unchanging(format!("l{n}"), bytes)).collect();
    let options = |writable: bool| {
        OpenOptions::new()
            .writable(writable)
            .orphan_children(true)
            .budget(Budget::new(TABLES))
            .parents(Shelf(parents.clone()))
    };
    let opened = match options(true).open_file(Arc::clone(&tip) as Arc<dyn Storage>) {
        Ok(opened) => opened,
        Err(error) => {
            is_told(&error);
            assert!(tip.is_as_before(), "refused, and not as before: {error}");
            return;
        }
    };
    // The log may have been replayed; ignore those changes.
    tip.take_done();
    let chain = match options(true).open_chain(opened) {
        Ok(chain) => chain,
        Err(error) => {
            is_told(&error);
            assert!(tip.take_done().writes.is_empty(), "refused, and changed: {error}");
            return;
        }
    };
    let faults = faults(&tip, &parents);
    let mut model = Model::of(&chain);
    let changed = act(&chain, &tip, &mut model, &mut rng);
    model.check(&chain);
    chain.close().unwrap_or_else(|error| panic!("closing: {error}"));
    model.check(&chain);
    drop(chain);
    if !changed {
        let done = tip.take_done();
        assert!(done.writes.is_empty() && done.lengths.is_empty(), "refused, and changed");
    }
    let read = ReadOnly(Arc::clone(&tip) as Arc<dyn Storage>);
    let again =
        options(false).open_file(Arc::new(read)).and_then(|image| options(false).open_chain(image));
    model.check(&again.unwrap_or_else(|error| panic!("to be read again: {error}")));
    let new: Vec<_> = self::faults(&tip, &parents).difference(&faults).copied().collect();
    assert!(new.is_empty(), "new findings: {new:?}");
    // Again, in the next session.
    let again = options(true).open_file(Arc::clone(&tip) as Arc<dyn Storage>);
    let again = again.and_then(|image| options(true).open_chain(image));
    let again = again.unwrap_or_else(|error| panic!("to be written again: {error}"));
    act(&again, &tip, &mut model, &mut rng);
    model.check(&again);
}

/// Makes random changes. Returns whether the image accepts any.
fn act(chain: &DiffChain, tip: &Sparse, model: &mut Model, rng: &mut Rng) -> bool {
    let mut is_refused = false;
    for n in 0..10 {
        let Some(range) = model.any_range(rng) else { break };
        tip.take_done();
        let done = match rng.below(10) {
            0 => chain.write_zeroes(range.clone(), Zeroing::KeepSpace).map(|()| Some(None)),
            1 => chain.write_zeroes(range.clone(), Zeroing::MayUnmap).map(|()| Some(None)),
            2 => chain.discard(range.clone()).map(|()| Some(None)),
            3 => chain.flush().map(|()| None),
            4 => chain.close().map(|()| None),
            _ => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                rng.fill(&mut bytes);
                chain.write_at(&bytes, range.start).map(|()| Some(Some(bytes)))
            }
        };
        match done {
            Ok(bytes) => {
                if let Some(bytes) = bytes {
                    model.write(range, bytes.as_deref());
                }
                // Zeros over zeros are not a change.
                model.is_written |= !tip.take_done().writes.is_empty();
            }
            Err(error) if error.code().starts_with("claim.") => {
                is_told(&error);
                let done = tip.take_done();
                assert!(done.writes.is_empty() && done.lengths.is_empty(), "{error}");
                assert!(is_refused || n == 0 || !model.is_written, "only later: {error}");
                is_refused = true;
            }
            Err(error) => {
                is_told_of_change(&error);
                model.forget(range);
            }
        }
    }
    assert!(!(is_refused && model.is_written), "refused, and yet changed");
    !is_refused
}

/// A change is refused only for a fault of the image, and leaves it usable.
fn is_told_of_change(error: &Error) {
    is_told(error);
    assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported), "{error}");
}

/// The errors that a check finds.
pub fn faults(tip: &Arc<Sparse>, parents: &[Arc<dyn Storage>]) -> BTreeSet<&'static str> {
    let read = ReadOnly(Arc::clone(tip) as Arc<dyn Storage>);
    let options = OpenOptions::new().parents(Shelf(parents.to_vec()));
    let report = Check::new().options(options).run_file(Arc::new(read));
    let report = report.unwrap_or_else(|error| panic!("it opened, and is not checked: {error}"));
    let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
    errors.map(|finding| finding.code).collect()
}

/// The expected contents of the parts of a disk.
pub struct Model {
    windows: Vec<Range<u64>>,
    pieces: Vec<(Range<u64>, Reads)>,
    is_written: bool,
}

enum Reads {
    Bytes(Vec<u8>),
    Nothing,
    /// A change of it failed: each sector may be old or new.
    Unknown,
}

impl Model {
    pub fn of(disk: &dyn Disk) -> Self {
        let size = disk.geometry().size;
        let mut windows = vec![0..size.min(WINDOW), (size.max(2 * WINDOW) - WINDOW)..size];
        windows.retain(|window| !window.is_empty());
        let pieces = windows.iter().flat_map(|window| {
            let starts = window.clone().step_by(PIECE as usize);
            starts.map(|start| start..window.end.min(start + PIECE))
        });
        let pieces = pieces.map(|range| (range.clone(), Reads::of(disk, &range))).collect();
        Self { windows, pieces, is_written: false }
    }

    /// A range within one of the parts: of a few bytes, of many, or of whole MiB.
    fn any_range(&self, rng: &mut Rng) -> Option<Range<u64>> {
        let window = self.windows.get(rng.below(2) as usize).or(self.windows.first())?;
        let size = window.end - window.start;
        let (len, unit) = match rng.below(4) {
            0 => (1 + rng.below(2000), 1),
            1 => (MIB, MIB),
            _ => (512 * (1 + rng.below(200)), 512),
        };
        let start = window.start + rng.below(size.max(1)) / unit * unit;
        let end = window.end.min(start + len);
        (start < end).then_some(start..end)
    }

    /// Records a write of bytes, or of zeros.
    fn write(&mut self, range: Range<u64>, bytes: Option<&[u8]>) {
        for (piece, reads) in &mut self.pieces {
            let part = piece.start.max(range.start)..piece.end.min(range.end);
            if part.is_empty() {
                continue;
            }
            if part == *piece && !matches!(reads, Reads::Bytes(_)) {
                *reads = Reads::Bytes(vec![0; (part.end - part.start) as usize]);
            }
            let Reads::Bytes(now) = reads else {
                *reads = Reads::Unknown;
                continue;
            };
            let place = (part.start - piece.start) as usize..(part.end - piece.start) as usize;
            match bytes {
                Some(bytes) => {
                    let from = (part.start - range.start) as usize;
                    now[place.clone()].copy_from_slice(&bytes[from..from + place.len()]);
                }
                None => now[place].fill(0),
            }
        }
    }

    fn forget(&mut self, range: Range<u64>) {
        let met = |piece: &Range<u64>| piece.start < range.end && range.start < piece.end;
        self.pieces
            .iter_mut()
            .filter(|(piece, _)| met(piece))
            .for_each(|(_, reads)| *reads = Reads::Unknown);
    }

    /// Forgets what lies behind a new end of the disk.
    pub fn cut(&mut self, size: u64) {
        self.pieces.retain(|(range, _)| range.end <= size);
    }

    pub fn check(&self, disk: &dyn Disk) {
        for (range, reads) in &self.pieces {
            match (reads, Reads::of(disk, range)) {
                (Reads::Bytes(then), Reads::Bytes(now)) => {
                    if then != &now {
                        let at = then.iter().zip(&now).position(|(then, now)| then != now);
                        panic!("{range:?} differs at {at:?} of it");
                    }
                }
                (Reads::Nothing, Reads::Nothing) | (Reads::Unknown, _) => {}
                (Reads::Bytes(_), _) => panic!("{range:?} cannot be read any more"),
                (Reads::Nothing, _) => panic!("{range:?} could not be read before"),
            }
        }
    }
}

impl Reads {
    fn of(disk: &dyn Disk, range: &Range<u64>) -> Self {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match disk.read_at(&mut bytes, range.start) {
            Ok(()) => Self::Bytes(bytes),
            Err(error) => {
                is_told(&error);
                Self::Nothing
            }
        }
    }
}
