//! Rounds of samples, and what they come to.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use avhdx::Disk;

use crate::images::{Images, Order, Reads, read_exact_at};
use crate::{Options, Result};

/// The contenders in a round, in the order of their times.
const CONTENDERS: [Contender; 4] =
    [Contender::Bare, Contender::Avhdx, Contender::Raw, Contender::BareAgain];

#[derive(Clone, Copy)]
enum Contender {
    Bare,
    Avhdx,
    /// One raw file with the disk's contents, at the disk's offsets.
    Raw,
    BareAgain,
}

/// What came of one list of reads from one chain.
pub struct Measured {
    pub size: u64,
    pub depth: usize,
    pub order: Order,
    pub reads_per_sample: usize,
    /// For each contender but the first: bare time / own time, one for each round.
    pub ratios: [Vec<f64>; 3],
    /// For each contender: the median time of one read in nanoseconds.
    pub times: [f64; 4],
}

pub fn measure(images: &Images, reads: &Reads, options: &Options) -> Result<Measured> {
    let len = reads.order.read_len();
    let count = reads.offsets.len();
    let per_sample = count.min((options.sample / len) as usize);
    let mut buf = vec![0; len as usize];
    let mut rounds = Vec::new();
    let mut start = 0;
    for round in 0..options.rounds {
        // Each round goes on in the list, so that all of the working set is read in turn.
        let which = start..start + per_sample;
        start = if which.end + per_sample <= count { which.end } else { 0 };
        let mut times = [0.0; 4];
        for place in 0..CONTENDERS.len() {
            // Everyone starts as often as the others, and follows each neighbour as often.
            let turn = if round / 4 % 2 == 0 { place } else { 3 - place };
            let who = (turn + round) % CONTENDERS.len();
            let taken = sample(CONTENDERS[who], images, reads, which.clone(), &mut buf)?;
            times[who] = taken.as_nanos() as f64 / per_sample as f64;
        }
        rounds.push(times);
    }
    let ratios = [1, 2, 3].map(|who| rounds.iter().map(|times| times[0] / times[who]).collect());
    let times = [0, 1, 2, 3].map(|who| median(rounds.iter().map(|times: &[f64; 4]| times[who])));
    let Images { size, depth, .. } = *images;
    Ok(Measured { size, depth, order: reads.order, reads_per_sample: per_sample, ratios, times })
}

fn sample(
    who: Contender,
    images: &Images,
    reads: &Reads,
    which: std::ops::Range<usize>,
    buf: &mut [u8],
) -> Result<Duration> {
    let offsets = &reads.offsets[which.clone()];
    let start = Instant::now();
    match who {
        Contender::Bare | Contender::BareAgain => images.read_bare(reads, which, buf)?,
        Contender::Avhdx => offsets.iter().try_for_each(|at| images.disk.read_at(buf, *at))?,
        Contender::Raw => offsets
            .iter()
            .try_for_each(|at| -> io::Result<()> { read_exact_at(&images.raw, buf, *at) })?,
    }
    let taken = start.elapsed();
    black_box(buf);
    Ok(taken)
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The smallest value that at least this share of all does not exceed.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil().max(1.0) as usize;
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}
