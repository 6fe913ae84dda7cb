//! Packs a run of a span's sectors into one word: its first sector in the upper bits, so that words sort by it, then
//! the layer, then the offset in that layer's file. A run ends where the next one starts.

use crate::types::FileOffset;

/// The answer for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The layer with this number among those asked holds it, from `at` on in its file.
    Here { layer: usize, at: FileOffset },
    /// Zeros, recorded by this layer, or without a layer because the disks of the layers asked end before.
    Zero { layer: Option<usize> },
    /// None of this many layers holds it.
    Open { depth: usize },
}

/// A run of a span, starting at one of the span's sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PackedRun(u64);

const START_SHIFT: u32 = 52;
const LAYER_SHIFT: u32 = 38;
/// Offsets are stored in units of the smallest sector.
const UNIT_SHIFT: u32 = 9;
const PLACES: u64 = (1 << LAYER_SHIFT) - 1;
const ZERO: u64 = PLACES;
const OPEN: u64 = PLACES - 1;

impl PackedRun {
    /// Number of layers that can be distinguished, and the value that stands for no layer.
    pub(crate) const LAYERS: usize = (1 << (START_SHIFT - LAYER_SHIFT)) - 1;

    /// `None` if the offset is 128 TiB or more.
    pub(crate) fn here(sector: u64, layer: usize, at: FileOffset) -> Option<Self> {
        let place = at.get() >> UNIT_SHIFT;
        (place < OPEN).then_some(Self::new(sector, layer, place))
    }

    pub(crate) fn zero(sector: u64, layer: Option<usize>) -> Self {
        Self::new(sector, layer.unwrap_or(Self::LAYERS), ZERO)
    }

    pub(crate) fn open(sector: u64, depth: usize) -> Self {
        Self::new(sector, depth, OPEN)
    }

    fn new(sector: u64, layer: usize, place: u64) -> Self {
        Self(sector << START_SHIFT | (layer as u64) << LAYER_SHIFT | place)
    }

    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(crate) fn word(self) -> u64 {
        self.0
    }

    /// Its first sector.
    pub(crate) fn start(self) -> u64 {
        self.0 >> START_SHIFT
    }

    pub(crate) fn answer(self) -> Answer {
        let layer = (self.0 >> LAYER_SHIFT) as usize & Self::LAYERS;
        match self.0 & PLACES {
            ZERO => Answer::Zero { layer: (layer < Self::LAYERS).then_some(layer) },
            OPEN => Answer::Open { depth: layer },
            place => Answer::Here { layer, at: FileOffset::new(place << UNIT_SHIFT) },
        }
    }

    /// The part of this run from `sector` on. The run must start at the span's first sector, with room in the word for
    /// the offsets of the whole span.
    #[inline]
    pub(crate) fn later(self, sector: u64, sector_shift: u32) -> Self {
        Self(self.0.wrapping_add(self.distance(sector, sector_shift)))
    }

    /// The inverse of [`later`](Self::later): a run that starts where the span does.
    pub(crate) fn at_start(self, sector_shift: u32) -> Self {
        Self(self.0.wrapping_sub(self.distance(self.start(), sector_shift)))
    }

    /// What the words of two runs of one source differ by, if this many sectors are between their starts.
    fn distance(self, sectors: u64, sector_shift: u32) -> u64 {
        let places = match self.0 & PLACES {
            ZERO | OPEN => 0,
            _ => sectors << (sector_shift - UNIT_SHIFT),
        };
        (sectors << START_SHIFT).wrapping_add(places)
    }
}
