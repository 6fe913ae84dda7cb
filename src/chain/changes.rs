//! What changed between two points in time of a chain.

use std::ops::Range;
use std::sync::Arc;

use super::diff_chain::DiffChain;
use super::stack::Stack;
use crate::answers::Answer;
#[cfg(doc)]
use crate::disk::Disk;
use crate::disk::LayerId;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::read::{ChangeWalk, ChangedRun};
use crate::types::FileOffset;

/// What may differ between two points in time, in ascending order. Made by [`DiffChain::changes`]; ends after the
/// first error.
///
/// It holds on to the layers as they were at the call. Merges of these layers are refused with [`ErrorKind::InUse`]
/// until it is dropped; checkpoints and reverts are not.
#[derive(Debug)]
pub struct Changes {
    stack: Arc<Stack>,
    /// Keeps the older point from being merged away.
    older: Option<DiffChain>,
    walk: ChangeWalk,
    /// What the walk found and has not been returned.
    rest: Option<ChangedRun>,
    ahead: Option<ChangedExtent>,
    failed: bool,
}

/// A range of the disk that may differ between two points in time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangedExtent {
    /// The range of the newer disk, in bytes.
    pub range: Range<u64>,
    /// The source of its bytes in the newer disk.
    pub source: ChangedSource,
    /// The unit in which the layer recorded the change, in bytes. It is the size of a logical sector if a sector
    /// bitmap tells changed sectors apart, \[MS-VHDX\] 2.5.1.1, and otherwise the block size of that layer: of such an
    /// extent, any part may be as it was.
    pub grain: u32,
}

/// The source of the bytes of a [`ChangedExtent`]. Exhaustive on purpose, as [`Source`](crate::Source) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedSource {
    /// Data of a layer.
    Data {
        /// The layer whose file holds the bytes.
        layer: LayerId,
        /// The file offset of the first byte. `None` if a pending log supplies some of the bytes, which can then be
        /// read with [`Disk::read_at`] alone.
        at: Option<FileOffset>,
    },
    /// Zeros, as determined by `layer`, or by no layer if the disk of one of the newer layers ends before.
    Zero {
        /// The layer that determines the zeros.
        layer: Option<LayerId>,
    },
}

impl DiffChain {
    /// Returns what may differ between the disk of this chain or view and the disk as it was when the layer `from`
    /// was the tip. With `None`, returns all data of the disk: what differs from an empty one.
    ///
    /// The answer comes from the tables alone, no payload is read. It contains every byte that differs, and others: a
    /// block that a newer layer holds as a whole is returned as a whole, see [`ChangedExtent::grain`]. Zeros are left
    /// out where the tables show that the older disk has zeros too. Data of a newer layer is never left out, even if it
    /// equals what the older disk has.
    ///
    /// Disks of different sizes are compared as if zeros followed the end of the older one. What the older disk has
    /// past the end of the newer one is gone and not returned: compare [`Changes::size`] and [`Changes::size_before`].
    ///
    /// The tip may be written to meanwhile. The answer then covers each write, zeroing and discard that returned
    /// before this call; later ones may be in it or not, and [`ChangedSource::Data::at`] is valid until the tip changes
    /// there again. [`ChangeTracking`](crate::ChangeTracking) tells changes of the tip itself apart by time.
    ///
    /// The extents follow each other in ascending order and do not overlap. Neighbours that continue each other and
    /// have the same grain are joined. Memory does not grow with the disk.
    ///
    /// ```no_run
    /// use avhdx::{Disk, DiffChain};
    ///
    /// let chain = DiffChain::open("web_77F0.avhdx")?;
    /// let yesterday = chain.layers()[1].id;
    /// let mut bytes = Vec::new();
    /// for change in chain.changes(Some(yesterday))? {
    ///     let range = change?.range;
    ///     bytes.resize((range.end - range.start) as usize, 0);
    ///     chain.read_at(&mut bytes, range.start)?;
    ///     // Store the bytes with their offset.
    /// }
    /// # Ok::<(), avhdx::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the layer is not in this chain or view; [`ErrorKind::Unfinished`] if another
    /// layer is being merged into it. The items are errors as for [`Disk::next_extent`], but never
    /// [`ErrorKind::LogOverlay`].
    pub fn changes(&self, from: Option<LayerId>) -> Result<Changes> {
        let older = from.map(|layer| self.view(layer)).transpose()?;
        let stack = self.stack_now();
        let above = match from {
            Some(layer) => stack.position(layer)?,
            None => stack.layers.len(),
        };
        let walk = ChangeWalk::new(&stack.layers, above);
        Ok(Changes { stack, older, walk, rest: None, ahead: None, failed: false })
    }
}

impl Changes {
    /// Limits an answer of which nothing has been taken yet to a range of the disk in bytes, of any alignment: to go
    /// on behind an error, or to divide the work.
    pub fn within(mut self, range: Range<u64>) -> Self {
        self.walk.limit(&range);
        self
    }

    /// Size of the newer disk in bytes.
    pub fn size(&self) -> u64 {
        self.stack.tip().geometry().size
    }

    /// Size of the older disk in bytes; 0 if there is none.
    pub fn size_before(&self) -> u64 {
        self.older.as_ref().map_or(0, |older| older.stack().tip().geometry().size)
    }

    fn step(&mut self) -> Result<Option<ChangedExtent>> {
        if let Some(extent) = self.ahead.take() {
            return Ok(Some(extent));
        }
        let layers = &self.stack.layers;
        let run = match self.rest.take() {
            Some(rest) => rest,
            None => match self.walk.next(layers)? {
                Some(run) => run,
                None => return Ok(None),
            },
        };
        let id = |n: usize| layers[n].image.id();
        let (len, source) = match run.answer {
            Answer::Here { layer, at } => {
                let (len, place) = run.place(&layers[layer], at);
                if len < run.len {
                    let answer = Answer::Here { layer, at: at + len };
                    self.rest =
                        Some(ChangedRun { at: run.at + len, len: run.len - len, answer, ..run });
                }
                (len, ChangedSource::Data { layer: id(layer), at: place })
            }
            Answer::Zero { layer } => (run.len, ChangedSource::Zero { layer: layer.map(id) }),
            Answer::Open { .. } => unreachable!("the walk ends at such a run"),
        };
        Ok(Some(ChangedExtent { range: run.at..run.at + len, source, grain: run.grain }))
    }

    fn joined(&mut self) -> Result<Option<ChangedExtent>> {
        let Some(mut extent) = self.step()? else { return Ok(None) };
        loop {
            match self.step() {
                Ok(Some(next)) if extent.continues_in(&next) => extent.range.end = next.range.end,
                Ok(next) => {
                    self.ahead = next;
                    return Ok(Some(extent));
                }
                // The extent is returned first; the next call meets the error again.
                Err(_) => return Ok(Some(extent)),
            }
        }
    }
}

impl Iterator for Changes {
    type Item = Result<ChangedExtent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.joined().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

impl ChangedExtent {
    /// Whether `next` starts where this extent ends, and continues its source in the same grain.
    fn continues_in(&self, next: &Self) -> bool {
        let len = self.range.end - self.range.start;
        let is_same_source = match (self.source, next.source) {
            (ChangedSource::Data { layer: a, at: x }, ChangedSource::Data { layer: b, at: y }) => {
                a == b && x.map(|x| x + len) == y
            }
            (ChangedSource::Zero { layer: a }, ChangedSource::Zero { layer: b }) => a == b,
            _ => false,
        };
        is_same_source && self.grain == next.grain && self.range.end == next.range.start
    }
}
