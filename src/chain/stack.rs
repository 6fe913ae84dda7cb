//! The layers of a chain at one moment.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use uuid::Uuid;

use super::locate::FoundBy;
use super::parents::Registry;
use crate::answers::MOST_SPAN;
use crate::counters::AnswerTally;
use crate::disk::{Geometry, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::file::Seat;
use crate::image::{Core, Ticket};
use crate::read;
use crate::write::{OpenImage, Writer};

/// The layers of a chain at one moment, from the tip of one view down.
#[derive(Clone)]
pub(crate) struct Stack {
    /// From the chain's tip down to the base. Never empty.
    pub(crate) links: Arc<[Link]>,
    /// The index of this view's tip in `links`.
    pub(crate) tip: usize,
    /// The layers to read from: `links` from `tip` on.
    pub(super) layers: Box<[read::Layer]>,
    /// Counts the answers looked up by all clones and views.
    pub(super) tally: Arc<AnswerTally>,
    pub(super) is_counted: bool,
    /// Released when these layers have no user left: before the writer, which then gives back what they kept.
    pub(super) kept: Arc<Kept>,
    /// The writer of the tip, if the chain is open for writing. `None` in every view.
    pub(crate) writer: Option<Arc<Writer>>,
}

/// A layer, and how it was found from the layer above.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) layer: read::Layer,
    /// Gives handed-out images of this layer their current handle.
    pub(crate) seat: Arc<Seat>,
    pub(crate) found_by: Option<FoundBy>,
}

/// Facts of one layer of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Layer {
    /// Identifies the layer in extents.
    pub id: LayerId,
    /// The name of its file in errors.
    pub name: String,
    /// The path of the file, if it is in a folder.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::types::shown_path"))]
    pub path: Option<PathBuf>,
    /// The path that it was opened by, if symbolic links led from there to `path`.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::types::shown_path"))]
    pub via: Option<PathBuf>,
    /// Its `DataWriteGuid`, by which children identify it, \[MS-VHDX\] 2.2.2.
    pub data_write_guid: Uuid,
    /// Size and sector sizes of the disk according to this layer.
    pub geometry: Geometry,
    /// Size of a payload block in bytes.
    pub block_size: u32,
    /// Length of the file in bytes, including a replayed log.
    pub file_len: u64,
    /// Whether a log was replayed in memory.
    pub log_pending: bool,
    /// How it was found from the layer above; `None` for the tip.
    pub found_by: Option<FoundBy>,
}

/// A pin in an image that is open for writing.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) image: Arc<Core>,
    pub(super) ticket: Option<Ticket>,
}

/// The pins that a stack holds, shared by all its copies.
pub(super) type Kept = Mutex<Vec<Arc<Pinned>>>;

/// A stack that the chain has replaced.
pub(super) struct Past {
    pub(super) layers: Weak<[Link]>,
    pub(super) kept: Weak<Kept>,
}

impl Stack {
    pub(super) fn new(
        links: Arc<[Link]>,
        tip: usize,
        writer: Option<Arc<Writer>>,
        tally: Arc<AnswerTally>,
        kept: Arc<Kept>,
    ) -> Self {
        let layers = links[tip..].iter().map(|link| link.layer.clone()).collect();
        // A single layer holds all bytes, and needs no answers unless it can change.
        let is_counted = links.len() > tip + 1 || links[tip].is_written();
        Self { links, tip, layers, tally, is_counted, writer, kept }
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links[self.tip..]
    }

    pub(crate) fn tip(&self) -> &Core {
        &self.layers[0].image
    }

    /// The position of a layer below the tip.
    pub(super) fn position(&self, layer: LayerId) -> Result<usize> {
        let found = self.links().iter().position(|link| link.image.id() == layer);
        found.ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "chain.layer", "no such layer in the chain")
                .in_file(self.tip().name())
                .with_found(layer)
                .with_expected(format_args!("one of its {} layers", self.links().len()))
        })
    }
}

impl Link {
    pub(super) fn new(image: &OpenImage, found_by: Option<FoundBy>) -> Self {
        let layer = read::Layer::new(Arc::clone(&image.core));
        Self { layer, seat: Seat::new(image), found_by }
    }

    /// The same layer with another handle of its file.
    pub(super) fn with_image(&self, image: &OpenImage) -> Self {
        let layer = read::Layer { image: Arc::clone(&image.core), ..self.layer.clone() };
        Self { layer, seat: self.seat.replace(image), found_by: self.found_by }
    }
}

impl Deref for Link {
    type Target = read::Layer;

    fn deref(&self) -> &read::Layer {
        &self.layer
    }
}

impl Layer {
    pub(super) fn of(link: &Link) -> Self {
        let image = &link.image;
        Self {
            id: image.id(),
            name: image.name().to_owned(),
            path: image.path().map(Path::to_path_buf),
            via: image.via().map(Path::to_path_buf),
            data_write_guid: image.data_write_guid(),
            geometry: image.geometry(),
            block_size: image.block_size(),
            file_len: image.file_len(),
            log_pending: image.has_replayed_log(),
            found_by: link.found_by,
        }
    }
}

/// Names the stacks, and registers the names with the layers that can change.
pub(super) fn named(mut layers: Vec<Link>) -> Arc<[Link]> {
    name_stacks(&mut layers);
    layers.iter().for_each(|link| link.image.keeps_answers(link.stack, link.span));
    layers.into()
}

/// Gives each layer, with those below it, the name used in the keys of answers, and the length of its spans.
fn name_stacks(layers: &mut [Link]) {
    let (mut below, mut span) = (0, MOST_SPAN);
    for link in layers.iter_mut().rev() {
        let layer = &mut link.layer;
        layer.stack = Registry::of(layer.image.budget()).stack(layer.image.id(), below);
        below = layer.stack;
        span = span.min(layer.image.block_size().into());
        layer.span = span;
    }
}

impl Past {
    pub(super) fn of(stack: &Stack) -> Self {
        Self { layers: Arc::downgrade(&stack.links), kept: Arc::downgrade(&stack.kept) }
    }

    pub(super) fn is_left(&self) -> bool {
        self.layers.strong_count() > 0
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let (Some(pins), Some(ticket)) = (self.image.pins(), self.ticket.take()) {
            pins.leave(&ticket);
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.links().iter().map(|link| &link.image)).finish()
    }
}
