//! Sparse sets of the 1 MiB units of a file, one bit each.

use std::ops::Range;

use crate::types::MIB;

/// Number of units that a set can hold: files of up to 256 TiB, four times the largest disk.
pub(crate) const MOST_UNITS: u64 = 1 << 28;

const WORDS: usize = 1024;
const PAGE: u64 = 64 * WORDS as u64;

/// The units that contain the `len` bytes at `start`, a multiple of 1 MiB.
pub(crate) fn units(start: u64, len: u64) -> Range<u64> {
    start / MIB..start.saturating_add(len).div_ceil(MIB)
}

/// A set of units.
#[derive(Clone, Debug, Default)]
pub(crate) struct Units {
    pages: Vec<Option<Box<[u64; WORDS]>>>,
}

impl Units {
    /// Whether the unit is in the set. Units beyond the limit never are.
    pub(crate) fn has(&self, unit: u64) -> bool {
        let page = self.pages.get((unit / PAGE) as usize).and_then(Option::as_deref);
        page.is_some_and(|words| words[(unit % PAGE / 64) as usize] >> (unit % 64) & 1 == 1)
    }

    /// Adds a unit below the limit.
    pub(crate) fn put(&mut self, unit: u64) {
        if unit >= MOST_UNITS {
            return;
        }
        let page = (unit / PAGE) as usize;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let words = self.pages[page].get_or_insert_with(|| Box::new([0; WORDS]));
        words[(unit % PAGE / 64) as usize] |= 1 << (unit % 64);
    }

    /// Whether any of these units is in the set.
    pub(crate) fn has_any(&self, mut units: Range<u64>) -> bool {
        units.any(|unit| self.has(unit))
    }

    /// Adds units below the limit, and returns whether any was already in the set.
    pub(crate) fn take(&mut self, units: Range<u64>) -> bool {
        let mut was_any = false;
        for unit in units.start..units.end.min(MOST_UNITS) {
            was_any |= self.has(unit);
            self.put(unit);
        }
        was_any
    }

    /// Removes units.
    pub(crate) fn remove(&mut self, units: Range<u64>) {
        for unit in units {
            let page = self.pages.get_mut((unit / PAGE) as usize).and_then(Option::as_deref_mut);
            let word = page.map(|words| &mut words[(unit % PAGE / 64) as usize]);
            word.into_iter().for_each(|word| *word &= !(1 << (unit % 64)));
        }
    }

    /// The first unit in this range that is in the set.
    pub(crate) fn next(&self, units: Range<u64>) -> Option<u64> {
        self.first(units, |word| word)
    }

    /// The first unit in this range that is not in the set.
    pub(crate) fn next_absent(&self, units: Range<u64>) -> Option<u64> {
        self.first(units, |word| !word)
    }

    /// The number of units in this range that are in the set.
    pub(crate) fn count(&self, units: Range<u64>) -> u64 {
        let words = units.start / 64..units.end.div_ceil(64);
        let ones =
            words.map(|word| u64::from((self.word(word) & within(word, &units)).count_ones()));
        ones.sum()
    }

    fn first(&self, units: Range<u64>, look: impl Fn(u64) -> u64) -> Option<u64> {
        let mut words = units.start / 64..units.end.div_ceil(64);
        words.find_map(|word| {
            let found = look(self.word(word)) & within(word, &units);
            (found != 0).then(|| word * 64 + u64::from(found.trailing_zeros()))
        })
    }

    fn word(&self, word: u64) -> u64 {
        let page = self.pages.get((word / WORDS as u64) as usize).and_then(Option::as_deref);
        page.map_or(0, |words| words[(word % WORDS as u64) as usize])
    }

    /// Every `step`th unit below `end` that is in neither this set nor the other, starting with the first.
    pub(crate) fn every_neither<'a>(
        &'a self,
        other: &'a Self,
        end: u64,
        step: u64,
    ) -> impl Iterator<Item = u64> + 'a {
        let free = move |start: u64| {
            let of = |set: &Self| {
                let page = set.pages.get((start / PAGE) as usize).and_then(Option::as_deref);
                page.map_or(0, |words| words[(start % PAGE / 64) as usize])
            };
            let within = if end - start < 64 { (1 << (end - start)) - 1 } else { u64::MAX };
            !(of(self) | of(other)) & within
        };
        // The current word's start, its remaining units, and the number of units to skip before the next.
        let (mut start, mut word, mut skip) = (0, if end > 0 { free(0) } else { 0 }, 0);
        std::iter::from_fn(move || {
            while start < end {
                let left = u64::from(word.count_ones());
                if left <= skip {
                    skip -= left;
                    start += 64;
                    word = if start < end { free(start) } else { 0 };
                    continue;
                }
                for _ in 0..skip {
                    word &= word - 1;
                }
                let unit = start + u64::from(word.trailing_zeros());
                word &= word - 1;
                skip = step - 1;
                return Some(unit);
            }
            None
        })
    }

    /// The number of units below `end` that are in neither this set nor the other, and the first of them.
    pub(crate) fn neither(&self, other: &Self, end: u64) -> (u64, Option<u64>) {
        let (mut taken, mut first) = (0, None);
        for i in 0..self.pages.len().max(other.pages.len()) {
            for word in 0..WORDS {
                let start = i as u64 * PAGE + word as u64 * 64;
                if start >= end {
                    break;
                }
                let of = |set: &Self| {
                    let page = set.pages.get(i).and_then(Option::as_deref);
                    page.map_or(0, |words| words[word])
                };
                let within = if end - start < 64 { (1 << (end - start)) - 1 } else { u64::MAX };
                let both: u64 = (of(self) | of(other)) & within;
                taken += u64::from(both.count_ones());
                if both != within && first.is_none() {
                    first = Some(start + u64::from((!both).trailing_zeros()));
                }
            }
        }
        let looked_at = (self.pages.len().max(other.pages.len()) as u64 * PAGE).min(end);
        (end - taken, first.or((looked_at < end).then_some(looked_at)))
    }
}

/// The bits of a word whose units lie in this range.
fn within(word: u64, units: &Range<u64>) -> u64 {
    let first = units.start.saturating_sub(word * 64).min(64);
    let end = units.end.saturating_sub(word * 64).min(64);
    let below = |bit: u64| if bit < 64 { (1 << bit) - 1 } else { u64::MAX };
    below(end) & !below(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sets_are_those_of_a_tree(
            a in proptest::collection::vec(0_u64..3 * PAGE, 0..300),
            runs in proptest::collection::vec((0_u64..3 * PAGE, 1_u64..300), 0..20),
            end in 0_u64..4 * PAGE,
        ) {
            let (mut one, mut other) = (Units::default(), Units::default());
            let mut model = BTreeSet::new();
            for unit in &a {
                one.put(*unit);
                model.insert(*unit);
            }
            for unit in runs.iter().flat_map(|(start, len)| *start..start + len) {
                other.put(unit);
                model.insert(unit);
            }
            let free: Vec<u64> = (0..end).filter(|unit| !model.contains(unit)).collect();
            prop_assert_eq!(one.neither(&other, end), (free.len() as u64, free.first().copied()));
            for step in [1, 2, 7, 100] {
                let every: Vec<u64> = one.every_neither(&other, end, step).collect();
                let expected: Vec<u64> = free.iter().copied().step_by(step as usize).collect();
                prop_assert_eq!(every, expected);
            }
            for start in [0, 1, 63, 64, end / 3, end] {
                let range = start..end.max(start);
                let has = |unit: &u64| other.has(*unit);
                prop_assert_eq!(other.next(range.clone()), range.clone().find(has));
                prop_assert_eq!(other.next_absent(range.clone()), range.clone().find(|unit| !has(unit)));
                prop_assert_eq!(other.count(range.clone()), range.filter(has).count() as u64);
            }
            for unit in 0..end {
                prop_assert_eq!(one.has(unit) || other.has(unit), model.contains(&unit));
            }
            let cut = end / 3..end.max(end / 3 + 1);
            other.remove(cut.clone());
            for unit in 0..4 * PAGE {
                let is_in = runs.iter().any(|(start, len)| (*start..start + len).contains(&unit));
                prop_assert_eq!(other.has(unit), is_in && !cut.contains(&unit));
            }
        }
    }
}
