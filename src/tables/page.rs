//! Pages of tables in memory: as they are in the file, or without their zeros.

use crate::types::KIB;

/// Size of a page in bytes, the unit in which tables are read.
pub(crate) const PAGE: u64 = 4 * KIB;
/// Words of 64 bits in a page.
const WORDS: usize = PAGE as usize / 8;
/// Words of a page that one word has a bit for.
const GROUP: usize = u64::BITS as usize;
const GROUPS: usize = WORDS / GROUP;
/// Groups whose places fit into one word.
const PLACES: usize = 4;
/// In a page without zeros, the words before the first group.
const HEADER: usize = GROUPS / PLACES;
/// A page with more words than this, zeros aside, is kept as it is.
const MOST: usize = WORDS / 2 - HEADER - GROUPS;

/// One page of a table.
pub(crate) type Page = [u8; PAGE as usize];

/// A page as it is cached.
///
/// A layer's sector bitmaps are mostly zeros where it holds little. Without them, a page takes less memory to fill, and
/// fewer lines of the processor's cache to look at.
#[derive(Debug)]
pub(crate) enum KeptPage {
    Whole(Box<Page>),
    /// First, 16 bits for each group of words with the place where it begins. A group is a word with a bit for each of
    /// its words that is not zero, and then these.
    Sparse(Box<[u64]>),
}

/// The contents of a page, as words of 64 bits in little-endian order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PageView<'a> {
    Whole(&'a Page),
    Sparse(&'a [u64]),
}

impl KeptPage {
    #[inline(never)]
    pub(crate) fn new(page: &Page) -> Self {
        let (words, _) = page.as_chunks::<8>();
        let (groups, _) = words.as_chunks::<GROUP>();
        let mut masks = [0; GROUPS];
        for (mask, words) in masks.iter_mut().zip(groups) {
            if words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word)) != 0 {
                *mask = words_of(words);
            }
        }
        let count: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
        if count as usize > MOST {
            let page = page.to_vec().into_boxed_slice();
            let page = page.try_into();
            return Self::Whole(page.unwrap_or_else(|_| unreachable!("the length is a page's")));
        }
        let mut kept = Vec::with_capacity(HEADER + GROUPS + count as usize);
        kept.resize(HEADER, 0);
        for (group, (mask, words)) in masks.iter().zip(groups).enumerate() {
            kept[group / PLACES] |= (kept.len() as u64) << (group % PLACES * 16);
            kept.push(*mask);
            let mut left = *mask;
            while left != 0 {
                kept.push(u64::from_le_bytes(words[left.trailing_zeros() as usize % GROUP]));
                left &= left - 1;
            }
        }
        Self::Sparse(kept.into_boxed_slice())
    }

    #[inline]
    pub(crate) fn view(&self) -> PageView<'_> {
        match self {
            Self::Whole(page) => PageView::Whole(page),
            Self::Sparse(kept) => PageView::Sparse(kept),
        }
    }
}

impl PageView<'_> {
    /// The word with this number.
    #[inline]
    pub(crate) fn word(self, number: usize) -> u64 {
        match self {
            Self::Whole(page) => {
                page.as_chunks::<8>().0.get(number).map_or(0, |word| u64::from_le_bytes(*word))
            }
            Self::Sparse(kept) => {
                let group = group(kept, number / GROUP);
                let bit = 1 << (number % GROUP);
                match group[0] & bit {
                    0 => 0,
                    _ => group[1 + (group[0] & (bit - 1)).count_ones() as usize],
                }
            }
        }
    }

    pub(crate) fn byte(self, at: usize) -> u8 {
        self.word(at / 8).to_le_bytes()[at % 8]
    }

    /// Passes on the words from number `first` on that are not zero, with their numbers counted from `first`.
    #[inline]
    pub(crate) fn each_word(self, first: usize, count: usize, mut each: impl FnMut(usize, u64)) {
        match self {
            Self::Whole(page) => {
                let words = page.as_chunks::<8>().0[first..first + count].iter();
                for (i, word) in words.map(|word| u64::from_le_bytes(*word)).enumerate() {
                    if word != 0 {
                        each(i, word);
                    }
                }
            }
            Self::Sparse(kept) => {
                let (mut at, end) = (first, first + count);
                while at < end {
                    let (group, within) = (group(kept, at / GROUP), at % GROUP);
                    let here = (end - at).min(GROUP - within);
                    let before = group[0] & ((1 << within) - 1);
                    let mut left = group[0] & (u64::MAX >> (GROUP - here)) << within;
                    let mut words = group[1 + before.count_ones() as usize..].iter();
                    while left != 0
                        && let Some(word) = words.next()
                    {
                        each(at - first + left.trailing_zeros() as usize - within, *word);
                        left &= left - 1;
                    }
                    at += here;
                }
            }
        }
    }

    /// The page as it is in the file.
    pub(crate) fn to_page(self) -> Box<Page> {
        let mut page = new_page();
        match self {
            Self::Whole(whole) => *page = *whole,
            Self::Sparse(_) => {
                let (words, _) = page.as_chunks_mut::<8>();
                self.each_word(0, WORDS, |number, word| words[number] = word.to_le_bytes());
            }
        }
        page
    }
}

/// A bit for each of these words that is not zero.
fn words_of(words: &[[u8; 8]; GROUP]) -> u64 {
    // In quarters, each of which needs not wait for the others, and without branches, which would go either way.
    let mut zeros = [0; 4];
    for i in (0..16).rev() {
        for (quarter, zeros) in zeros.iter_mut().enumerate() {
            let is_zero = u64::from_le_bytes(words[quarter * 16 + i]) == 0;
            *zeros = *zeros + *zeros + u64::from(is_zero);
        }
    }
    !(zeros[0] | zeros[1] << 16 | zeros[2] << 32 | zeros[3] << 48)
}

/// A group of words as kept, and what follows it.
#[inline]
fn group(kept: &[u64], number: usize) -> &[u64] {
    &kept[(kept[number / PLACES] >> (number % PLACES * 16)) as usize & 0xFFFF..]
}

pub(crate) fn new_page() -> Box<Page> {
    // Through a vector: an array would be built on the stack first.
    let bytes = vec![0; PAGE as usize].into_boxed_slice();
    bytes.try_into().unwrap_or_else(|_| unreachable!("the length is a page's"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pages with anything from no word to all of them.
    fn pages() -> impl Strategy<Value = Box<Page>> {
        let run = (0..WORDS, prop_oneof![9 => 1..4_usize, 1 => 1..WORDS], any::<u64>(), 0..64_u32);
        proptest::collection::vec(run, 0..200).prop_map(|runs| {
            let mut page = new_page();
            for (first, len, word, shift) in runs {
                let (words, _) = page.as_chunks_mut::<8>();
                let word = (word >> shift).to_le_bytes();
                words[first..WORDS.min(first + len)].iter_mut().for_each(|place| *place = word);
            }
            page
        })
    }

    proptest! {
        #[test]
        fn a_page_reads_the_same_however_it_is_kept(
            page in pages(), first in 0..WORDS, count in 0..=WORDS,
        ) {
            let kept = KeptPage::new(&page);
            let count = count.min(WORDS - first);
            for view in [kept.view(), PageView::Whole(&page)] {
                prop_assert!(view.to_page() == page);
                let at = |number: usize| page[number * 8..][..8].try_into().map(u64::from_le_bytes);
                for number in 0..WORDS {
                    prop_assert_eq!(view.word(number), at(number).unwrap());
                }
                for byte in (first * 8).saturating_sub(9)..first * 8 {
                    prop_assert_eq!(view.byte(byte), page[byte]);
                }
                let mut found = Vec::new();
                view.each_word(first, count, |number, word| found.push((number, word)));
                let words = (0..count).map(|number| (number, at(first + number).unwrap()));
                prop_assert_eq!(found, words.filter(|(_, word)| *word != 0).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn each_word_of_a_page_without_zeros_is_in_its_place() {
        let numbers = [0, 2, 63, 64, 66, 300, WORDS - 1];
        let mut page = new_page();
        for number in numbers {
            page[number * 8] = number as u8 | 1;
        }
        let kept = KeptPage::new(&page);
        assert!(matches!(kept, KeptPage::Sparse(_)));
        for number in 0..WORDS {
            let expected = if numbers.contains(&number) { u64::from(number as u8 | 1) } else { 0 };
            assert_eq!(kept.view().word(number), expected, "{number}");
        }
    }

    #[test]
    fn a_page_with_few_words_takes_little_memory() {
        let size = |words: usize| {
            let mut page = new_page();
            page[..words * 8].fill(0xFF);
            match KeptPage::new(&page) {
                KeptPage::Whole(page) => page.len(),
                KeptPage::Sparse(kept) => kept.len() * 8,
            }
        };
        assert_eq!([0, 1, MOST, MOST + 1, WORDS].map(size), [80, 88, 2048, 4096, 4096]);
    }
}
