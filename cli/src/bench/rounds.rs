//! Interleaved rounds, and what they come to.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::exit::Failure;

/// How long a row is measured.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limit {
    Time(Duration),
    /// So many operations by each contender.
    Operations(u64),
}

/// One who takes part in every round: does the operations with these numbers, and says how long it took.
pub(super) type Contender<'a> = Box<dyn FnMut(Range<u64>) -> Result<Duration, Failure> + 'a>;

/// What the rounds of one kind of work came to.
#[derive(Debug)]
pub(super) struct Row {
    /// Operations of each contender.
    operations: u64,
    /// Bytes of one.
    bytes: u64,
    /// Seconds of one operation, by round, then by contender.
    seconds: Vec<Vec<f64>>,
}

/// Rates beside each other, and how far down the true one may lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    pub(super) median: f64,
    /// The lower bound of the 95 % confidence interval; fewer than six rounds have none.
    pub(super) low: Option<f64>,
}

impl Row {
    /// Has all contenders do the same operations, some at a time and in turn.
    pub(super) fn measure(
        limit: Limit,
        at_once: u64,
        bytes: u64,
        mut contenders: Vec<Contender<'_>>,
    ) -> Result<Self, Failure> {
        let start = Instant::now();
        let mut new = Self { operations: 0, bytes, seconds: Vec::new() };
        let many = contenders.len();
        loop {
            let now = match limit {
                Limit::Time(time) if start.elapsed() >= time && new.operations > 0 => break,
                Limit::Time(_) => at_once,
                Limit::Operations(count) => at_once.min(count - new.operations),
            };
            if now == 0 {
                break;
            }
            let round = new.seconds.len();
            let mut taken = vec![0.0; many];
            for place in 0..many {
                // Everyone starts as often as the others, and follows each neighbour as often.
                let turn = if (round / many).is_multiple_of(2) { place } else { many - 1 - place };
                let who = (turn + round) % many;
                let time = contenders[who](new.operations..new.operations + now)?;
                taken[who] = time.as_secs_f64() / now as f64;
            }
            new.operations += now;
            new.seconds.push(taken);
        }
        Ok(new)
    }

    /// Operations of each contender.
    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    /// The median time of an operation in microseconds.
    pub(super) fn micros(&self, who: usize) -> f64 {
        median(self.seconds.iter().map(|times| times[who]).collect()) * 1e6
    }

    /// Millions of bytes in a second.
    pub(super) fn rate(&self, who: usize) -> f64 {
        self.bytes as f64 / self.micros(who)
    }

    /// The rate of `who` by that of `by`.
    pub(super) fn ratio(&self, who: usize, by: usize) -> Ratio {
        // Of each round, so that what slows the machine down for a while slows both.
        let ratios: Vec<f64> = self.seconds.iter().map(|times| times[by] / times[who]).collect();
        Ratio { low: low95(ratios.clone()), median: median(ratios) }
    }

    pub(super) fn json(&self, who: usize) -> Value {
        json!({
            "operations": self.operations,
            "bytes": self.bytes,
            "median_us": rounded(self.micros(who)),
            "mb_per_s": rounded(self.rate(who)),
        })
    }
}

/// To three digits behind the point.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn median(values: Vec<f64>) -> f64 {
    let values = sorted(values);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// By order statistics, whatever the distribution: the largest value of which the median lies below with a
/// probability of no more than 2.5 %.
fn low95(values: Vec<f64>) -> Option<f64> {
    let n = values.len() as f64;
    let rank = match values.len() {
        0..6 => return None,
        // Fewer than k of n values lie below the median as n tosses of a coin show fewer than k heads.
        6..200 => {
            let mut chance = 0.5_f64.powf(n);
            let (mut sum, mut rank) = (0.0, 0.0);
            while sum + chance <= 0.025 {
                sum += chance;
                chance *= (n - rank) / (rank + 1.0);
                rank += 1.0;
            }
            rank
        }
        // As the normal distribution has it.
        _ => (n / 2.0 - 1.96 * n.sqrt() / 2.0).floor(),
    };
    sorted(values).get((rank as usize).checked_sub(1)?).copied()
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_the_median() {
        let values = |n: u32| (1..=n).rev().map(f64::from).collect::<Vec<_>>();
        assert_eq!((median(values(5)), median(values(6))), (3.0, 3.5));
        // The ranks that tables of the sign test have for 5 % on two sides.
        for (n, rank) in
            [(5, None), (6, Some(1.0)), (10, Some(2.0)), (20, Some(6.0)), (100, Some(40.0))]
        {
            assert_eq!(low95(values(n)), rank, "{n}");
        }
        let (below, above) = (low95(values(199)).unwrap(), low95(values(201)).unwrap());
        assert!(below <= above && above - below <= 2.0, "{below} and {above}");
    }

    #[test]
    fn everyone_does_everything_once() {
        let mut done = [Vec::new(), Vec::new(), Vec::new()];
        let contenders = done.iter_mut().map(|done| {
            Box::new(|operations: Range<u64>| {
                done.extend(operations);
                Ok(Duration::from_micros(10))
            }) as Contender<'_>
        });
        let row = Row::measure(Limit::Operations(25), 10, 4096, contenders.collect()).unwrap();
        assert_eq!((row.operations(), row.seconds.len()), (25, 3));
        assert!(done.iter().all(|done| done.iter().copied().eq(0..25)));
        // Ten microseconds for ten operations, twice, and for five.
        assert!((row.micros(1) - 1.0).abs() < 1e-9 && (row.rate(0) - 4096.0).abs() < 1e-6);
        assert!((row.ratio(0, 2).median - 1.0).abs() < 1e-9 && row.ratio(0, 2).low.is_none());
    }
}
