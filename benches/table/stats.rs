//! Interleaved rounds, and their statistics.

use std::time::{Duration, Instant};

use crate::Result;

/// A contender: does the work of the round with that number, and returns the time it took.
pub type Contender<'a> = Box<dyn FnMut(usize) -> Result<Duration> + 'a>;

/// The time in seconds of each contender in each round.
pub struct Times(Vec<Vec<f64>>);

/// Runs all contenders one after the other in each round.
pub fn rounds(count: usize, mut contenders: Vec<Contender<'_>>) -> Result<Times> {
    let many = contenders.len();
    let mut times = Vec::new();
    for round in 0..count {
        let mut taken = vec![0.0; many];
        for place in 0..many {
            // Every contender starts as often as the others, and follows each neighbour as often.
            let turn = if (round / many).is_multiple_of(2) { place } else { many - 1 - place };
            let who = (turn + round) % many;
            taken[who] = contenders[who](round)?.as_secs_f64();
        }
        times.push(taken);
    }
    Ok(Times(times))
}

pub fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

impl Times {
    /// One figure for each round.
    pub fn each(&self, of: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        self.0.iter().map(|times| of(times)).collect()
    }

    /// The times per operation of some contenders, each given with its number of operations in a round.
    pub fn of(&self, who: &[(usize, usize)]) -> Self {
        let one =
            |times: &Vec<f64>| who.iter().map(|(who, ops)| times[*who] / *ops as f64).collect();
        Self(self.0.iter().map(one).collect())
    }

    /// For each round, the time of one contender divided by that of another.
    pub fn ratios(&self, of: usize, by: usize) -> Vec<f64> {
        self.each(|times| times[of] / times[by])
    }

    pub fn median(&self, who: usize) -> f64 {
        median(&self.each(|times| times[who]))
    }
}

pub fn median(values: &[f64]) -> f64 {
    let values = sorted(values);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

/// The lower bound of the 95 % confidence interval of the median, by order statistics: the largest
/// value above the median with a probability of at most 2.5 %, whatever the
/// distribution. `None` for fewer than six values.
pub fn low95(values: &[f64]) -> Option<f64> {
    // Of n values, fewer than k lie below the median with the probability that n tosses of a coin
    // show fewer than k heads.
    let n = values.len();
    let mut chance = 0.5_f64.powi(n as i32);
    let (mut sum, mut rank) = (0.0, 0);
    while rank < n && sum + chance <= 0.025 {
        sum += chance;
        chance *= (n - rank) as f64 / (rank + 1) as f64;
        rank += 1;
    }
    rank.checked_sub(1).map(|at| sorted(values)[at])
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}
