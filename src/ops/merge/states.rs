//! Tracks changed block states in two bits per block, allocated in pages on demand.

use crate::format::bat::PayloadState;

/// Blocks per word; `PER_PAGE` is blocks per page.
const PER_WORD: u64 = 32;
const WORDS: usize = 512;
const PER_PAGE: u64 = PER_WORD * WORDS as u64;

/// The states that blocks were changed to.
#[derive(Debug, Default)]
pub(super) struct States {
    pages: Vec<Option<Box<[u64; WORDS]>>>,
}

impl States {
    /// Returns the state that the block was changed to, if it was.
    pub(super) fn get(&self, block: u64) -> Option<PayloadState> {
        let page = self.pages.get((block / PER_PAGE) as usize)?.as_deref()?;
        let word = page[(block % PER_PAGE / PER_WORD) as usize];
        match word >> (2 * (block % PER_WORD)) & 3 {
            0 => None,
            1 => Some(PayloadState::Zero),
            2 => Some(PayloadState::PartiallyPresent),
            _ => Some(PayloadState::FullyPresent),
        }
    }

    /// Records one of the three states that a write leaves behind.
    pub(super) fn put(&mut self, block: u64, state: PayloadState) {
        let bits = match state {
            PayloadState::FullyPresent => 3,
            PayloadState::PartiallyPresent => 2,
            _ => 1,
        };
        let page = (block / PER_PAGE) as usize;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let words = self.pages[page].get_or_insert_with(|| Box::new([0; WORDS]));
        let word = &mut words[(block % PER_PAGE / PER_WORD) as usize];
        let shift = 2 * (block % PER_WORD);
        *word = *word & !(3 << shift) | bits << shift;
    }

    /// Removes the states of all blocks from `blocks` on.
    pub(super) fn truncate(&mut self, blocks: u64) {
        self.pages.truncate(blocks.div_ceil(PER_PAGE) as usize);
        let last = (blocks / PER_PAGE) as usize;
        let Some(Some(words)) = self.pages.get_mut(last) else { return };
        let (word, within) = ((blocks % PER_PAGE / PER_WORD) as usize, blocks % PER_WORD);
        words[word] &= (1 << (2 * within)) - 1;
        words[word + 1..].fill(0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashMap;

    use avhdx_testkit::rng::Rng;

    use super::*;

    const STATES: [PayloadState; 3] =
        [PayloadState::Zero, PayloadState::PartiallyPresent, PayloadState::FullyPresent];

    #[test]
    fn states_are_those_of_a_map() {
        let mut rng = Rng::new(7);
        let (mut states, mut model) = (States::default(), HashMap::new());
        let most = 3 * PER_PAGE + 50;
        for n in 0..40_000 {
            let (block, state) = (rng.below(most), STATES[rng.below(3) as usize]);
            states.put(block, state);
            model.insert(block, state);
            if n % 10_000 == 9_999 {
                let end = most - rng.below(2 * PER_PAGE);
                states.truncate(end);
                model.retain(|block, _| *block < end);
                for block in 0..most + 100 {
                    assert_eq!(states.get(block), model.get(&block).copied(), "{block} of {end}");
                }
            }
        }
    }

    /// A disk of 64 TiB with a state for every block of 1 MiB; a hash map would take gigabytes.
    #[test]
    fn states_of_all_blocks_of_the_largest_disk_take_16_mib() {
        let mut states = States::default();
        for block in (0..1 << 26).step_by(PER_PAGE as usize) {
            states.put(block, PayloadState::Zero);
        }
        let bytes = states.pages.iter().flatten().count() * WORDS * size_of::<u64>();
        assert_eq!(bytes, 16 << 20);
    }
}
