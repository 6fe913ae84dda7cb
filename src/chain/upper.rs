//! What the upper layers of a chain show, above the layers that another chain has too.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::diff_chain::DiffChain;
use super::stack::Stack;
use super::walk::file_id;
use crate::answers::Answer;
use crate::disk::LayerId;
use crate::error::Result;
use crate::image::Core;
use crate::read::LayerRuns;
use crate::storage::FileId;
use crate::types::FileOffset;

/// The layers of a chain above those that it shares with another one. Holds on to the layers as they were at the call.
#[derive(Debug)]
pub(crate) struct UpperLayers {
    stack: Arc<Stack>,
    runs: LayerRuns,
    /// Number of layers that are not shared.
    above: usize,
}

/// The source of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Data in the file of a layer that is not shared, from this offset on.
    Data(LayerId, FileOffset),
    /// Zeros, as the layers that are not shared determine.
    Zeros,
    /// Whatever the shared layers show.
    Shared,
}

/// What tells the file of a layer from others.
#[derive(PartialEq)]
struct SharedFile<'a> {
    place: FilePlace<'a>,
    data_write_guid: Uuid,
    /// Otherwise, one of two images may show the file without the changes of its log.
    has_replayed_log: bool,
}

#[derive(PartialEq)]
enum FilePlace<'a> {
    Id(FileId),
    /// Where the host does not identify files.
    Path(&'a Path),
}

impl UpperLayers {
    /// All layers of a chain or view.
    pub(crate) fn new(chain: &DiffChain) -> Self {
        let stack = chain.stack_now();
        let above = stack.layers.len();
        Self { stack, runs: LayerRuns::new(above), above }
    }

    /// Leaves the layers that both chains have at their bottom to be [shared](Shown::Shared). Returns the layers of
    /// `b` whose files are those of layers of `a`, with the latter.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if a file cannot be identified.
    pub(crate) fn share(a: &mut Self, b: &mut Self) -> Result<HashMap<LayerId, LayerId>> {
        let mut same = HashMap::new();
        {
            let (of_a, of_b) = (a.files()?, b.files()?);
            for (b, of_b) in &of_b {
                let is_same = |(a, of_a): &&(LayerId, Option<SharedFile<'_>>)| {
                    a == b || of_a.is_some() && of_a == of_b
                };
                if let Some((a, _)) = of_a.iter().find(is_same) {
                    same.insert(*b, *a);
                }
            }
        }
        // What a layer shows depends on those below it, too: a file counts as long as all below it are the same.
        let pairs = a.stack.layers.iter().rev().zip(b.stack.layers.iter().rev());
        let shared = pairs.take_while(|(a, b)| same.get(&b.id()) == Some(&a.id())).count();
        a.above -= shared;
        b.above -= shared;
        Ok(same)
    }

    /// Whether any layer is shared.
    pub(crate) fn has_shared(&self) -> bool {
        self.above < self.stack.layers.len()
    }

    /// The first run of the `len` bytes at `at`, which must lie within the disk and not be empty: its length, and what
    /// it shows.
    pub(crate) fn first(&mut self, at: u64, len: u64) -> Result<(u64, Shown)> {
        let layers = &self.stack.layers;
        let run = self.runs.first(layers, 0..self.above, at, len)?;
        let shown = match run.answer {
            Answer::Here { layer, at } => Shown::Data(layers[layer].id(), at),
            Answer::Zero { .. } => Shown::Zeros,
            // The base answers for all that no layer above it does.
            Answer::Open { .. } => Shown::Shared,
        };
        Ok((run.len, shown))
    }

    /// Whether the shared layers show zeros at the start of these bytes, which must not be empty, and for how many of
    /// them that holds.
    pub(crate) fn are_zeros_below(&mut self, at: u64, len: u64) -> Result<(u64, bool)> {
        let layers = &self.stack.layers;
        let run = self.runs.first(layers, self.above..layers.len(), at, len)?;
        Ok((run.len, matches!(run.answer, Answer::Zero { .. })))
    }

    /// The layers and their files, as far as these can be told from others and do not change.
    fn files(&self) -> Result<Vec<(LayerId, Option<SharedFile<'_>>)>> {
        self.stack.layers.iter().map(|layer| Ok((layer.id(), shared_file(&layer.image)?))).collect()
    }
}

fn shared_file(image: &Core) -> Result<Option<SharedFile<'_>>> {
    // A writer has changes that another handle of the file does not show.
    if image.is_written() {
        return Ok(None);
    }
    let place = match file_id(image.storage())? {
        Some(id) => Some(FilePlace::Id(id)),
        None => image.path().map(FilePlace::Path),
    };
    Ok(place.map(|place| SharedFile {
        place,
        data_write_guid: image.data_write_guid(),
        has_replayed_log: image.has_replayed_log(),
    }))
}
