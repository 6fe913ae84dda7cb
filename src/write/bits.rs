//! Ranges of bits in the pages of a sector bitmap block.

use std::ops::Range;

use crate::tables::{Changed, PAGE, PageKind};
use crate::types::FileOffset;

/// The pages of a bitmap that hold these bits.
pub(super) fn bitmap_pages(
    bitmap: FileOffset,
    bits: &Range<u64>,
) -> impl Iterator<Item = (u64, PageKind)> + use<> {
    let pages = bits.start / (8 * PAGE)..bits.end.div_ceil(8 * PAGE);
    pages.map(move |page| (bitmap.get() + page * PAGE, PageKind::SectorBitmap))
}

/// Splits a bit range by page: the page's offset in the file, and the bits within it.
fn parts_by_page(
    bitmap: FileOffset,
    bits: &Range<u64>,
) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
    let bits = bits.clone();
    bitmap_pages(bitmap, &bits).map(move |(at, _)| {
        let first_bit = (at - bitmap.get()) * 8;
        let within = bits.start.max(first_bit)..bits.end.min(first_bit + 8 * PAGE);
        (at, (within.start - first_bit) as usize..(within.end - first_bit) as usize)
    })
}

/// The bytes of a bit range: the first and the last with the mask of their bits, and the range of
/// those in between, all of whose bits are included.
fn bytes_of(bits: &Range<usize>) -> ([(usize, u8); 2], Range<usize>) {
    let (first, last) = (bits.start / 8, (bits.end - 1) / 8);
    let head = 0xFF_u8 << (bits.start % 8);
    let tail = 0xFF_u8 >> (7 - (bits.end - 1) % 8);
    if first == last {
        return ([(first, head & tail), (last, 0)], first..first);
    }
    ([(first, head), (last, tail)], first + 1..last)
}

pub(super) fn set_bits(changed: &mut Changed, bitmap: FileOffset, bits: &Range<u64>, value: bool) {
    for (at, within) in parts_by_page(bitmap, bits) {
        let Some(page) = changed.change(at) else { continue };
        let (ends, middle) = bytes_of(&within);
        for (byte, mask) in ends {
            page[byte] = if value { page[byte] | mask } else { page[byte] & !mask };
        }
        page[middle].fill(if value { 0xFF } else { 0 });
    }
}

pub(super) fn all_set(changed: &Changed, bitmap: FileOffset, bits: &Range<u64>) -> bool {
    parts_by_page(bitmap, bits).all(|(at, within)| {
        let (ends, middle) = bytes_of(&within);
        changed.page(at).is_some_and(|page| {
            ends.iter().all(|(byte, mask)| page[*byte] & mask == *mask)
                && page[middle].iter().all(|byte| *byte == 0xFF)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_of_a_bit_range_are_those_of_a_walk_bit_by_bit(start in 0_usize..200, len in 1_usize..200) {
            let bits = start..start + len;
            let mut expected = [0_u8; 50];
            for bit in bits.clone() {
                expected[bit / 8] |= 1 << (bit % 8);
            }
            let mut found = [0_u8; 50];
            let (ends, middle) = bytes_of(&bits);
            for (byte, mask) in ends {
                found[byte] |= mask;
            }
            found[middle].fill(0xFF);
            prop_assert_eq!(found, expected);
        }
    }
}
