//! The places of a disk that are read and written.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use avhdx::storage::Storage;
use avhdx::{DiffChain, Disk, Planned, PlannedSource, Source};

use crate::failure::Failure;

/// The maximum number of random pages, and their size.
const PAGES: u64 = 1 << 12;
const PAGE: u64 = 4 << 10;
/// The maximum number of sequential pieces, and their size.
const PIECES: usize = 1 << 10;
const PIECE: u64 = 1 << 20;
/// The maximum number of ranges in memory; of a more fragmented disk, only the first part is measured.
const RANGES: usize = 1 << 20;

/// The ranges with data in any layer, or in the tip only, and the end of the part of the disk that was searched.
pub(super) fn data(chain: &DiffChain, tip_only: bool) -> Result<(Vec<Range<u64>>, u64), Failure> {
    let (tip, size) = (chain.tip().id(), chain.geometry().size);
    let (mut ranges, mut end) = (Vec::new(), 0);
    while ranges.len() < RANGES
        && let Some(extent) = chain.next_extent(end..size)?
    {
        end = extent.range.end;
        if matches!(extent.source, Source::Data { layer, .. } if layer == tip || !tip_only) {
            ranges.push(extent.range);
        }
    }
    Ok((ranges, end))
}

/// Random aligned pages with data, in proportion to the length of the ranges.
pub(super) fn pages(ranges: &[Range<u64>], size: u64, seed: u64) -> Vec<Range<u64>> {
    let mut total = 0;
    let add = |range: &Range<u64>| {
        total += range.end - range.start;
        total
    };
    // The amount of data up to the end of each range.
    let ends: Vec<u64> = ranges.iter().map(add).collect();
    let page = |n| {
        let byte = ((u128::from(random(seed, n)) * u128::from(total)) >> 64) as u64;
        let at = ends.partition_point(|end| *end <= byte);
        let start = (ranges[at].end - (ends[at] - byte)) / PAGE * PAGE;
        start..size.min(start + PAGE)
    };
    (0..if total == 0 { 0 } else { PAGES }).map(page).collect()
}

/// The `n`th number of splitmix64.
fn random(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The first aligned pieces with data.
pub(super) fn pieces(ranges: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let mut next = 0;
    let numbers = ranges.iter().flat_map(|range| {
        let first = next.max(range.start / PIECE);
        next = range.end.div_ceil(PIECE);
        first..next
    });
    numbers.take(PIECES).map(|n| n * PIECE..size.min((n + 1) * PIECE)).collect()
}

/// A range of the disk, and the parts of files that hold it.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) range: Range<u64>,
    /// Each part's range within the place, its file, and its offset there.
    parts: Vec<(Range<usize>, Arc<dyn Storage>, u64)>,
}

impl Sample {
    pub(super) fn len(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// Reads the parts from their files; zeros need no read.
    pub(super) fn read_bare(&self, buf: &mut [u8]) -> Result<(), Failure> {
        self.parts.iter().try_for_each(|(part, file, at)| {
            file.read_exact_at(&mut buf[part.clone()], *at).map_err(|error| {
                Failure::io("payload.read", format!("{}: cannot read", file.name()), &error)
            })
        })
    }
}

/// Reads all ranges once, by the chain and bare. Drops those that the time does not suffice for.
pub(super) fn warm(
    chain: &DiffChain,
    ranges: Vec<Range<u64>>,
    limit: Duration,
) -> Result<Vec<Sample>, Failure> {
    let (start, mut places, mut buf) = (Instant::now(), Vec::new(), vec![0; PIECE as usize]);
    for range in ranges {
        let mut planned = chain.plan_read(range.clone())?;
        let plan = loop {
            match planned {
                Planned::Load(tables) => planned = tables.load()?,
                Planned::Ready(plan) => break plan,
            }
        };
        let mut place = Sample { range: range.clone(), parts: Vec::new() };
        for piece in plan.pieces() {
            let within = |at: u64| (at - range.start) as usize;
            if let PlannedSource::Data { storage, at, .. } = piece.source {
                let part = within(piece.range.start)..within(piece.range.end);
                place.parts.push((part, Arc::clone(storage), at.get()));
            }
        }
        chain.read_at(&mut buf[..place.len()], range.start)?;
        place.read_bare(&mut buf)?;
        places.push(place);
        if start.elapsed() >= limit {
            break;
        }
    }
    Ok(places)
}
