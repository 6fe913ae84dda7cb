//! Images whose file was cut, or whose blocks are misplaced or overlap, opened for writing.
//!
//! The testkit's model determines what can still be read, what a change must do, and what is lost once the loss is
//! accepted. Each image is written to, and cut or damaged in one way, a hundred times at random: only the written bytes
//! change, lost ranges stay errors, and refusals leave the file unchanged.
//! `AVHDX_LONG=1` takes all images and all cuts: `AVHDX_LONG=1 cargo test --release --test truncated -- --nocapture`.

#![allow(clippy::disallowed_methods)] // images by others are real files

mod cases;
mod judge;

use avhdx_testkit::rng::Rng;
use avhdx_testkit::sim;

use cases::{Case, Damage};
use judge::Tally;

const MIB: u64 = 1 << 20;

fn is_long() -> bool {
    std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1")
}

fn tell(what: &str, tally: &Tally, started: std::time::Instant) {
    println!(
        "{what}: {} images, {} files ({} sound, {} refused, {} not opened), {} changes made, {} refused, \
         {} mended with {} losses, {:.1} s",
        tally.images,
        tally.files,
        tally.sound,
        tally.damaged,
        tally.not_opened,
        tally.made,
        tally.refused,
        tally.mended,
        tally.losses,
        started.elapsed().as_secs_f32()
    );
}

/// A sample of all, or in the long form all of them.
fn sampled<T>(all: Vec<T>, most: usize, seed: u64) -> Vec<T> {
    if is_long() {
        return all;
    }
    let mut all = all;
    Rng::new(seed).shuffle(&mut all);
    all.truncate(most);
    all
}

#[test]
fn a_file_that_was_cut_changes_nothing_that_was_not_written() {
    let started = std::time::Instant::now();
    let mut tally = Tally::default();
    let images = if is_long() { 200 } else { 16 };
    for seed in 0..images {
        let case = Case::random(seed, is_long());
        tally.images += 1;
        let all = case.edges().into_iter().chain(case.places_between(20, seed));
        let (early, late): (Vec<u64>, Vec<u64>) = all.partition(|cut| *cut < case.structures_end());
        for cut in [sampled(early, 2, seed), sampled(late, 6, seed)].concat() {
            judge::all(&case, &[Damage::Cut(cut)], seed ^ cut, &mut tally);
        }
    }
    tell("cut", &tally, started);
    assert!(tally.sound > 5 && tally.damaged > 20 && tally.losses > 20, "{tally:?}");
}

#[test]
fn a_parent_that_was_cut_shows_nothing_else_through_its_child() {
    let started = std::time::Instant::now();
    let mut tally = Tally::default();
    let images = if is_long() { 40 } else { 4 };
    for seed in 1000..1000 + images {
        let case = Case::random_child(seed);
        tally.images += 1;
        let all =
            case.parent_edges().into_iter().chain(case.parent_places_between(5, seed)).collect();
        for cut in sampled(all, 5, seed) {
            judge::all(&case, &[Damage::CutParent(cut)], seed ^ cut, &mut tally);
        }
    }
    tell("cut parents", &tally, started);
    assert!(tally.sound > 5, "{tally:?}");
}

#[test]
fn entries_past_the_end_overlapping_doubled_and_far_out_change_nothing() {
    let started = std::time::Instant::now();
    let mut tally = Tally::default();
    let images = if is_long() { 200 } else { 10 };
    for seed in 2000..2000 + images {
        let case = Case::random(seed, is_long());
        tally.images += 1;
        for round in 0..if is_long() { 20 } else { 6 } {
            let damage = case.misplaced(seed * 100 + round);
            judge::all(&case, &damage, seed ^ round, &mut tally);
        }
    }
    tell("misplaced", &tally, started);
    assert!(tally.damaged > 20 && tally.losses > 20, "{tally:?}");
}

#[test]
fn images_by_other_writers_with_odd_ends_change_nothing() {
    let started = std::time::Instant::now();
    let mut tally = Tally::default();
    for (seed, case) in (3000..).zip(sampled(Case::by_others(), 5, 7)) {
        tally.images += 1;
        let all = case.edges().into_iter().chain(case.places_between(20, seed)).collect();
        for cut in sampled(all, 6, seed) {
            judge::all(&case, &[Damage::Cut(cut)], seed ^ cut, &mut tally);
        }
        for round in 0..if is_long() { 20 } else { 2 } {
            let damage = case.misplaced(seed * 100 + round);
            judge::all(&case, &damage, seed ^ round, &mut tally);
        }
    }
    tell("by others", &tally, started);
    assert!(tally.damaged > 5, "{tally:?}");
}

/// 10 GiB, of which the model holds no flat bytes.
#[test]
fn a_large_disk_by_windows_is_cut() {
    let Some(case) = Case::by_windows() else { return };
    let mut tally = Tally::default();
    for cut in case.edges().into_iter().chain(case.places_between(20, 1)) {
        judge::list_alone(&case, &[Damage::Cut(cut)], &mut tally);
    }
    assert!(tally.mended > 2, "{tally:?}");
}
