use std::time::Duration;

use super::places::{pages, pieces};
use super::{ProgressMeter, median, row, statistics};

#[test]
fn pages_and_pieces_overlap_the_ranges() {
    let ranges = [512..1024, 1024..5000, 20_000..40_000, 3_099_000..3_100_000];
    let pages_found = pages(&ranges, 3_100_000, 1);
    assert_eq!(pages_found.len(), 4096);
    assert!(pages_found.iter().all(|page| page.end == 3_100_000.min(page.start + 4096)));
    let mut starts: Vec<u64> = pages_found.iter().map(|page| page.start / 4096).collect();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts, [0, 1, 4, 5, 6, 7, 8, 9, 756]);
    assert_eq!(pieces(&ranges, 3_100_000), [0..1 << 20, 2 << 20..3_100_000]);
    assert!(pages(&[], 0, 1).is_empty());
}

#[test]
fn the_bound_of_the_median_follows_the_sign_test() {
    let of = |n: u32| median((1..=n).rev().map(f64::from).collect());
    assert_eq!((of(5), of(6).0), ((3.0, None), 3.5));
    // From tables of the two-sided 5 % sign test: never above the rank there, and at most one below.
    for (n, rank) in [(6, 1.0), (8, 1.0), (10, 2.0), (20, 6.0), (50, 18.0), (100, 40.0)] {
        let low = of(n).1.unwrap_or_default();
        assert!(low <= rank && rank - low <= 1.0, "{n}: {low}, not {rank}");
    }
}

#[test]
fn every_contender_does_every_operation_once() {
    let mut done = [[0; 5]; 3];
    let meter = &mut ProgressMeter::Silent;
    let row = row((5, 1), (Duration::MAX, 25), 2, 3, meter, |contender, i| {
        done[contender][i] += 1;
        Ok(())
    });
    assert_eq!((row.unwrap().unwrap().operations, done), (25, [[5; 5]; 3]));
    let row = statistics(25, 4096, &[vec![1e-6; 3], vec![2e-6; 3], vec![2e-6; 3]]);
    assert_eq!((row.chain.median_us, row.chain.mb_per_s), (1.0, 4096.0));
    let beside = row.beside.unwrap();
    assert_eq!((beside.bare_median_us, beside.ratio), (2.0, 2.0));
    assert_eq!((beside.aa_ratio, beside.ratio_low95), (1.0, None));
}
