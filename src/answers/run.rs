//! A run of sectors of a span as one word: its first sector in the upper bits, so that words sort; then the
//! layer, then its place in that layer's file. It ends where the next one starts.

use crate::types::FileOffset;

/// Who answers for a run.
pub(crate) enum Answer {
    /// The layer with this number among those asked, from `at` on in its file.
    Here { layer: usize, at: FileOffset },
    /// Nobody: zeros, because that layer says so or because all ended before.
    Zero { layer: Option<usize> },
    /// None of so many layers.
    Open { depth: usize },
}

const START_SHIFT: u32 = 52;
const LAYER_SHIFT: u32 = 38;
/// Layers that can be told apart, and none.
pub(crate) const LAYERS: usize = (1 << (START_SHIFT - LAYER_SHIFT)) - 1;
/// Places are multiples of the smallest sector.
const UNIT_SHIFT: u32 = 9;
const PLACES: u64 = (1 << LAYER_SHIFT) - 1;
const ZERO: u64 = PLACES;
const OPEN: u64 = PLACES - 1;

/// `None` where the place is 128 TiB or more.
pub(crate) fn here(sector: u64, layer: usize, at: FileOffset) -> Option<u64> {
    let place = at.get() >> UNIT_SHIFT;
    (place < OPEN).then_some(sector << START_SHIFT | (layer as u64) << LAYER_SHIFT | place)
}

pub(crate) fn zero(sector: u64, layer: Option<usize>) -> u64 {
    sector << START_SHIFT | (layer.unwrap_or(LAYERS) as u64) << LAYER_SHIFT | ZERO
}

pub(crate) fn open(sector: u64, depth: usize) -> u64 {
    sector << START_SHIFT | (depth as u64) << LAYER_SHIFT | OPEN
}

/// The run that starts at this sector where one does that starts at the first: of the same place in a file
/// that has room for it.
pub(crate) fn later(first: u64, sector: u64, sector_shift: u32) -> u64 {
    first + (sector << START_SHIFT) + (sector << (sector_shift - UNIT_SHIFT))
}

pub(crate) fn start(word: u64) -> u64 {
    word >> START_SHIFT
}

pub(crate) fn answer(word: u64) -> Answer {
    let layer = (word >> LAYER_SHIFT) as usize & LAYERS;
    match word & PLACES {
        ZERO => Answer::Zero { layer: (layer < LAYERS).then_some(layer) },
        OPEN => Answer::Open { depth: layer },
        place => Answer::Here { layer, at: FileOffset::new(place << UNIT_SHIFT) },
    }
}

/// Whether the run of `next` goes on where that of `run` ends.
pub(crate) fn continues(run: u64, next: u64, sector_shift: u32) -> bool {
    let between = (start(next) - start(run)) << (sector_shift - UNIT_SHIFT);
    let distance = match run & PLACES {
        ZERO | OPEN => 0,
        _ => between,
    };
    let below_start = (1 << START_SHIFT) - 1;
    (run & below_start) + distance == next & below_start
}
