//! Runs of unused units, as bitmaps and tables of file systems tell them.

use std::ops::Range;

/// Joins unused units to runs, and passes the runs on in bytes.
pub(crate) struct FreeRuns<'a> {
    /// Where the first unit begins, in bytes.
    start: u64,
    /// Bytes of a unit.
    unit: u64,
    /// The last run, which may go on.
    run: Range<u64>,
    each: &'a mut dyn FnMut(Range<u64>),
}

impl<'a> FreeRuns<'a> {
    pub(crate) fn new(start: u64, unit: u64, each: &'a mut dyn FnMut(Range<u64>)) -> Self {
        Self { start, unit, run: 0..0, each }
    }

    /// Takes units that nothing uses. They come in order.
    pub(crate) fn free(&mut self, units: Range<u64>) {
        if units.is_empty() {
            return;
        }
        if self.run.end != units.start {
            self.pass_on();
            self.run.start = units.start;
        }
        self.run.end = units.end;
    }

    /// Takes a part of a bitmap whose clear bits, the lowest of each byte first, are unused units.
    pub(crate) fn bits(&mut self, first: u64, bitmap: &[u8], count: u64) {
        for (byte, at) in bitmap.iter().zip((first..).step_by(8)) {
            let end = (at + 8).min(first + count);
            match byte {
                0xFF => {}
                0 => self.free(at..end.max(at)),
                _ => (at..end).filter(|unit| byte >> (unit - at) & 1 == 0).for_each(|unit| {
                    self.free(unit..unit + 1);
                }),
            }
        }
    }

    /// Passes on the last run.
    pub(crate) fn end(mut self) {
        self.pass_on();
    }

    fn pass_on(&mut self) {
        let run = std::mem::take(&mut self.run);
        if !run.is_empty() {
            (self.each)(self.start + run.start * self.unit..self.start + run.end * self.unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clear_bits_are_runs_of_free_units() {
        let mut found = Vec::new();
        let mut each = |run: Range<u64>| found.push(run);
        let mut runs = FreeRuns::new(1000, 10, &mut each);
        runs.bits(0, &[0b0000_0110, 0xFF, 0, 0b1000_0000], 32);
        runs.bits(32, &[0b0000_0001, 0], 11);
        runs.free(43..45);
        runs.end();
        assert_eq!(found, [1000..1010, 1030..1080, 1160..1310, 1330..1450]);
    }
}
