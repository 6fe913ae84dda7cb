//! Determines what the upper layers of a disk changed of the disk below them, from the tables alone.

use std::ops::Range;

use super::layers::{Layer, Layers};
use crate::answers::{Answer, Owner};
use crate::error::Result;
use crate::types::{DiskOffset, FileOffset};

/// A walk over a disk that finds what its upper layers hold.
#[derive(Debug)]
pub(crate) struct ChangeWalk {
    /// Number of layers above the older disk.
    above: usize,
    at: u64,
    end: u64,
    runs: LayerRuns,
}

/// Asks layers one by one and keeps the latest run of each, so that no table is looked through twice, however the runs
/// of the layers cut each other.
#[derive(Debug)]
pub(crate) struct LayerRuns {
    /// The latest run of each layer.
    known: Vec<KnownRun>,
}

/// Bytes that may differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChangedRun {
    pub(crate) at: u64,
    pub(crate) len: u64,
    /// Never open.
    pub(crate) answer: Answer,
    /// The unit in which that is recorded, in bytes.
    pub(crate) grain: u32,
}

#[derive(Clone, Debug)]
struct KnownRun {
    range: Range<u64>,
    owner: Owner,
    by_sector: bool,
}

impl ChangeWalk {
    /// A walk over all that these layers hold, of which the first `above` lie above the older disk.
    pub(crate) fn new(layers: &[Layer], above: usize) -> Self {
        // Nothing lies between a disk and itself.
        let end = if above == 0 { 0 } else { layers[0].layout().size() };
        Self { above, at: 0, end, runs: LayerRuns::new(layers.len()) }
    }

    /// Limits the walk, which has not begun, to these bytes.
    pub(crate) fn limit(&mut self, range: &Range<u64>) {
        (self.at, self.end) = (range.start, range.end.min(self.end));
    }

    /// The next run that may differ; `None` at the end of the disk. Stays in place on an error.
    pub(crate) fn next(&mut self, layers: &[Layer]) -> Result<Option<ChangedRun>> {
        while self.at < self.end {
            let run = self.runs.first(layers, 0..self.above, self.at, self.end - self.at)?;
            let (len, is_changed) = match run.answer {
                Answer::Here { .. } => (run.len, true),
                Answer::Open { .. } if self.above < layers.len() => (run.len, false),
                Answer::Open { .. } => {
                    return Err(Layers::new(layers, None).parent_required(DiskOffset(self.at)));
                }
                Answer::Zero { .. } => self.is_not_zero_below(layers, run.len)?,
            };
            let run = ChangedRun { len, ..run };
            self.at += len;
            if is_changed {
                return Ok(Some(run));
            }
        }
        Ok(None)
    }

    /// Whether the older disk may hold anything but zeros here, and for how many of the `len` bytes that is so. An
    /// empty disk holds nothing.
    fn is_not_zero_below(&mut self, layers: &[Layer], len: u64) -> Result<(u64, bool)> {
        if self.above == layers.len() {
            return Ok((len, false));
        }
        let older = self.runs.first(layers, self.above..layers.len(), self.at, len)?;
        Ok((older.len, !matches!(older.answer, Answer::Zero { .. })))
    }
}

impl LayerRuns {
    /// Nothing known yet of this number of layers.
    pub(crate) fn new(layers: usize) -> Self {
        let unknown = KnownRun { range: 0..0, owner: Owner::Parent, by_sector: false };
        Self { known: vec![unknown; layers] }
    }

    /// The run at the start of these bytes, as the layers `asked` have it. The bytes must not be empty.
    pub(crate) fn first(
        &mut self,
        layers: &[Layer],
        asked: Range<usize>,
        at: u64,
        mut len: u64,
    ) -> Result<ChangedRun> {
        let sector = layers[0].layout().sector_size() as u32;
        for n in asked.clone() {
            let (layer, size) = (&layers[n], layers[n].layout().size());
            if at >= size {
                let answer = Answer::Zero { layer: None };
                return Ok(ChangedRun { at, len, answer, grain: sector });
            }
            let run = self.ask(n, layer, at, size)?;
            // Of layers that end within these bytes, each has its own say behind its end.
            len = len.min(run.range.end - at);
            let answer = match run.owner {
                Owner::Here(start) => Answer::Here { layer: n, at: start + (at - run.range.start) },
                Owner::Zero => Answer::Zero { layer: Some(n) },
                Owner::Parent => continue,
            };
            let grain = if run.by_sector { sector } else { layer.block_size() };
            return Ok(ChangedRun { at, len, answer, grain });
        }
        Ok(ChangedRun { at, len, answer: Answer::Open { depth: asked.end }, grain: sector })
    }

    /// The layer's run that has the byte at `at`.
    fn ask(&mut self, n: usize, layer: &Layer, at: u64, size: u64) -> Result<&KnownRun> {
        let known = &mut self.known[n];
        if !known.range.contains(&at) {
            let (run, by_sector) = layer.resolve_recorded(DiskOffset(at), size - at)?;
            *known = KnownRun { range: at..at + run.len, owner: run.owner, by_sector };
        }
        Ok(known)
    }
}

impl ChangedRun {
    /// The place of the run's bytes in the layer's file, as far as they have one there, and how many they are: bytes
    /// that a pending log supplies have none.
    pub(crate) fn place(&self, layer: &Layer, at: FileOffset) -> (u64, Option<FileOffset>) {
        if !layer.has_replayed_log() {
            return (self.len, Some(at));
        }
        let in_block =
            layer.layout().block_size() - layer.layout().within_block(DiskOffset(self.at));
        let len = self.len.min(in_block);
        (len, layer.check_no_overlay(at, len).is_ok().then_some(at))
    }
}
