//! The layers that a disk is read from.

use std::ops::Deref;
use std::sync::Arc;

use crate::answers::MOST_SPAN;
use crate::counters::AnswerTally;
use crate::disk::LayerId;
use crate::error::Error;
use crate::image::Core;
use crate::types::DiskOffset;

/// A layer of a disk, and how answers about it and the layers below are cached.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Other chains may share it as a parent.
    pub(crate) image: Arc<Core>,
    /// Names this layer and those below it in the keys of answers; 0 if none are cached.
    pub(crate) stack: u64,
    /// Bytes per answer: a power of two, no larger than a block of this layer or of one below.
    pub(crate) span: u64,
}

/// The layers that a disk is read from, tip first. Never empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layers<'a> {
    pub(super) layers: &'a [Layer],
    /// Counts lookups of answers.
    pub(super) tally: Option<&'a AnswerTally>,
}

impl Layer {
    /// A layer without cached answers.
    pub(crate) fn new(image: Arc<Core>) -> Self {
        Self { image, stack: 0, span: 0 }
    }

    /// An image that is read on its own.
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

    /// The layers below the tip, if there are any.
    pub(crate) fn below_tip(self) -> Option<Self> {
        let below = Self::new(&self.layers[1..], None);
        (!below.layers.is_empty()).then_some(below)
    }

    pub(super) fn image(self, id: LayerId) -> Option<&'a Core> {
        let found = self.layers.iter().find(|layer| layer.image.id() == id);
        found.map(|layer| layer.image.as_ref())
    }

    /// The error for bytes that no layer holds: they belong to a parent that is not among the layers.
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
