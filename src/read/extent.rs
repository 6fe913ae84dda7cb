//! Extents: the location of the bytes of a disk.

use std::ops::Range;

use super::layers::Layers;
use crate::answers::Answer;
use crate::disk::{Extent, Source};
use crate::error::Result;
use crate::types::DiskOffset;

impl Layers<'_> {
    pub(crate) fn next_extent(self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.tip().geometry.check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        // The place that is found may be cut off right afterwards, but not in between.
        let _pin = self.tip().pin();
        let run = self.first_run(DiskOffset(range.start), len)?;
        let source = match run.answer {
            Answer::Here { layer, at } => {
                let image = &self.layers[layer].image;
                image.check_no_overlay(at, run.len)?;
                Source::Data { layer: image.id(), at }
            }
            Answer::Zero { layer } => Source::Zero { layer: layer.map(|n| self.layers[n].id()) },
            Answer::Open { .. } => Source::Parent,
        };
        Ok(Some(Extent { range: range.start..range.start + run.len, source }))
    }
}
