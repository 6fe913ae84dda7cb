//! The bytes of a volume that may differ between two points in time.

use std::ops::Range;

/// More ranges are joined with what lies between them.
const MOST_RANGES: usize = 1 << 20;
/// What lies between is at least so much then.
const LEAST_GAP: u64 = 64 << 10;

/// Ranges in order that neither overlap nor touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changed(Vec<Range<u64>>);

impl Changed {
    /// Everything may differ.
    pub(crate) fn everything() -> Self {
        Self(vec![Range { start: 0, end: u64::MAX }])
    }

    pub(crate) fn is_everything(&self) -> bool {
        matches!(&self.0[..], [Range { start: 0, end: u64::MAX }])
    }

    /// The union of ranges in any order. Memory has a bound: of too many, it has a little more than they have.
    pub(crate) fn of(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut changed = Self::default();
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match changed.0.last_mut() {
                Some(last) if (last.start..=last.end).contains(&range.start) => {
                    last.end = last.end.max(range.end);
                }
                _ => changed.0.push(range),
            }
            if changed.0.len() > MOST_RANGES {
                changed.join(0);
                let mut gap = LEAST_GAP;
                while changed.0.len() > MOST_RANGES / 2 {
                    changed.join(gap);
                    gap *= 2;
                }
            }
        }
        changed.join(0);
        changed
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// The same and more.
    pub(crate) fn and(self, more: impl IntoIterator<Item = Range<u64>>) -> Self {
        Self::of(self.0.into_iter().chain(more))
    }

    /// Sorts the ranges and joins those with at most `gap` between them.
    fn join(&mut self, gap: u64) {
        self.0.sort_by_key(|range| range.start);
        self.0.dedup_by(|next, last| {
            let is_near = next.start <= last.end.saturating_add(gap);
            if is_near {
                last.end = last.end.max(next.end);
            }
            is_near
        });
    }

    /// The first part of `range` that may differ.
    pub(crate) fn first_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let next = self.0.partition_point(|own| own.end <= range.start);
        let own = self.0.get(next)?;
        let both = own.start.max(range.start)..own.end.min(range.end);
        (!both.is_empty()).then_some(both)
    }

    pub(crate) fn meets(&self, range: &Range<u64>) -> bool {
        self.first_in(range).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_any_order_are_joined() {
        let changed = Changed::of([30..40, 10..20, 20..25, 60..61, 39..50, 7..7]);
        assert_eq!(changed.0, [10..25, 30..50, 60..61]);
        assert_eq!(changed.first_in(&(0..100)), Some(10..25));
        assert_eq!(changed.first_in(&(24..35)), Some(24..25));
        assert_eq!(changed.first_in(&(25..30)), None);
        assert_eq!(changed.first_in(&(45..60)), Some(45..50));
        assert!(!changed.meets(&(61..90)) && !changed.meets(&(12..12)));
        assert!(Changed::everything().and([5..6, 9..20]).is_everything());
    }

    #[test]
    fn too_many_ranges_are_joined_and_none_is_lost() {
        let each = (0..3 << 20).map(|n: u64| n * 8192..n * 8192 + 512);
        let changed = Changed::of(each.clone());
        assert!(changed.0.len() <= MOST_RANGES, "{}", changed.0.len());
        for range in each.step_by(1001) {
            assert_eq!(changed.first_in(&range), Some(range));
        }
    }
}
