//! Remembers where a sector bitmap block lies.

use crate::sync::{AtomicU64, Ordering};
use crate::types::{ChunkIndex, FileOffset, MIB};

/// The place of one chunk's sector bitmap block, so that a chunk's blocks do not each look up the bitmap's entry: a
/// chain that learns about a span would do so in every layer.
#[derive(Debug, Default)]
pub(crate) struct LastBitmap(AtomicU64);

impl LastBitmap {
    /// Bits for the place in MiB. The number of the chunk plus one is above them; 0 is no chunk.
    const PLACE_BITS: u32 = u64::BITS - MIB.trailing_zeros();

    pub(super) fn get(&self, chunk: ChunkIndex) -> Option<FileOffset> {
        let last = self.0.load(Ordering::Relaxed);
        let place = last & ((1 << Self::PLACE_BITS) - 1);
        (last >> Self::PLACE_BITS == chunk.0 + 1).then(|| FileOffset::new(place * MIB))
    }

    pub(super) fn set(&self, chunk: ChunkIndex, place: FileOffset) {
        // The largest disk has 2^14 chunks.
        if (chunk.0 + 1).leading_zeros() >= Self::PLACE_BITS {
            let chunk = (chunk.0 + 1) << Self::PLACE_BITS;
            self.0.store(chunk | (place.get() / MIB), Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_chunk_that_was_told_has_a_place() {
        let last = LastBitmap::default();
        assert_eq!(last.get(ChunkIndex(0)), None);
        // The first and the last chunk of the largest disk, at either end of the largest file.
        for (chunk, place) in [(0, MIB), (16_383, u64::MAX / MIB * MIB)] {
            last.set(ChunkIndex(chunk), FileOffset::new(place));
            for other in [0, 1, 16_382, 16_383, 16_384] {
                let expected = (other == chunk).then(|| FileOffset::new(place));
                assert_eq!(last.get(ChunkIndex(other)), expected, "chunk {other} after {chunk}");
            }
        }
    }

    #[test]
    fn a_chunk_beyond_the_largest_disk_is_not_remembered_as_another() {
        let last = LastBitmap::default();
        last.set(ChunkIndex(1 << 20), FileOffset::new(MIB));
        assert_eq!([0, 1 << 20].map(|chunk| last.get(ChunkIndex(chunk))), [None, None]);
    }
}
