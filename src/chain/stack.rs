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

/// The layers of a chain at one moment, as a view has them.
#[derive(Clone)]
pub(crate) struct Stack {
    /// From the chain's tip down to the base. Never empty.
    pub(crate) links: Arc<[Link]>,
    /// The layer that this view has for its tip.
    pub(crate) tip: usize,
    /// What is read: the layers from that one on.
    pub(super) layers: Box<[read::Layer]>,
    /// Counts the questions of all clones and views which layer has some bytes.
    pub(super) tally: Arc<AnswerTally>,
    pub(super) is_counted: bool,
    /// What writes to the tip: there in the chain itself, where that was asked for, and in no view.
    pub(crate) writer: Option<Arc<Writer>>,
    /// What goes when nobody has these layers any more.
    pub(super) kept: Arc<Kept>,
}

/// A layer, and how it was found from the one above.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) layer: read::Layer,
    /// Where those find the image who were given this layer.
    pub(crate) seat: Arc<Seat>,
    pub(crate) found_by: Option<FoundBy>,
}

/// Facts of one layer of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layer {
    /// What names the layer in extents.
    pub id: LayerId,
    /// What errors call its file.
    pub name: String,
    /// Where the file lies, if it lies in a folder.
    pub path: Option<PathBuf>,
    /// The name that it was opened by, where symbolic links led from that to its path.
    pub via: Option<PathBuf>,
    /// Its identity, \[MS-VHDX\] 2.2.2.
    pub data_write_guid: Uuid,
    /// Size and sector sizes of the disk as this layer has it.
    pub geometry: Geometry,
    /// Bytes of a payload block.
    pub block_size: u32,
    /// Length of the file in bytes, a replayed log included.
    pub file_len: u64,
    /// Whether a log was replayed in memory.
    pub log_pending: bool,
    /// How it was found from the layer above; `None` for the tip.
    pub found_by: Option<FoundBy>,
}

/// A pin in an image that is written to.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) image: Arc<Core>,
    pub(super) ticket: Option<Ticket>,
}

/// The pins that go with a stack, and all who have it.
pub(super) type Kept = Mutex<Vec<Arc<Pinned>>>;

/// A stack that was left behind.
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
        // Where there is one layer it has all bytes, unless they may change.
        let is_counted = links.len() > tip + 1 || links[tip].is_written();
        Self { links, tip, layers, tally, is_counted, writer, kept }
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links[self.tip..]
    }

    pub(crate) fn tip(&self) -> &Core {
        &self.layers[0].image
    }

    /// Where below the tip a layer is.
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

/// Names the stacks, and has those who can change remember it.
pub(super) fn named(mut layers: Vec<Link>) -> Arc<[Link]> {
    name_stacks(&mut layers);
    layers.iter().for_each(|link| link.image.keeps_answers(link.stack, link.span));
    layers.into()
}

/// Gives each layer, over those below it, what names it in the keys of answers and the length of its spans.
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
