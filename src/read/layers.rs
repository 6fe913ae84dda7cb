//! The layers that a disk is read from.

use std::ops::Deref;
use std::sync::Arc;

use crate::answers::MOST_SPAN;
use crate::counters::AnswerTally;
use crate::disk::LayerId;
use crate::error::Error;
use crate::image::Core;
use crate::types::DiskOffset;

/// A layer of a disk, and how answers about the disk that it has with the layers below it are kept.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Other chains may have the same for a parent.
    pub(crate) image: Arc<Core>,
    /// What names the layers from this one on down in the keys of answers; 0 where none are kept.
    pub(crate) stack: u64,
    /// Bytes that an answer is about: a power of two, no more than a block of this layer or of one below.
    pub(crate) span: u64,
}

/// The layers that a disk is read from, the tip first. Never empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layers<'a> {
    pub(super) layers: &'a [Layer],
    /// Where what the answers are asked is counted.
    pub(super) tally: Option<&'a AnswerTally>,
}

impl Layer {
    /// A layer about which no answers are kept.
    pub(crate) fn new(image: Arc<Core>) -> Self {
        Self { image, stack: 0, span: 0 }
    }

    /// An image that is read alone.
    pub(crate) fn alone(image: Arc<Core>) -> Self {
        let (stack, span) = (image.alone, MOST_SPAN.min(image.block_size().into()));
        image.keeps_answers(stack, span);
        Self { image, stack, span }
    }

    /// This layer, without those above and below it.
    pub(crate) fn by_itself(&self) -> Layers<'_> {
        Layers::new(std::slice::from_ref(self), None)
    }
}

impl Deref for Layer {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.image
    }
}

impl<'a> Layers<'a> {
    pub(crate) fn new(layers: &'a [Layer], tally: Option<&'a AnswerTally>) -> Self {
        Self { layers, tally }
    }

    pub(crate) fn tip(self) -> &'a Core {
        &self.layers[0].image
    }

    pub(super) fn image(self, id: LayerId) -> Option<&'a Core> {
        let found = self.layers.iter().find(|layer| layer.image.id() == id);
        found.map(|layer| layer.image.as_ref())
    }

    /// Refuses to read bytes that no layer has: they are those of a parent that is not among the layers.
    #[cold]
    pub(super) fn parent_required(self, at: DiskOffset) -> Error {
        let image = &self.layers[self.layers.len() - 1].image;
        image.parent_required(at)
    }

    #[inline]
    pub(super) fn hit(self) {
        if let Some(tally) = self.tally {
            tally.hit();
        }
    }

    pub(super) fn miss(self) {
        if let Some(tally) = self.tally {
            tally.miss();
        }
    }
}
