//! Every seed of the corpus and inputs by chance, through every target. `AVHDX_LONG=1` runs a hundred times as many.

#![allow(clippy::disallowed_methods)] // reads the corpus

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use avhdx_testkit::rng::Rng;

/// Inputs by chance for each target in the short form.
const SHORT: u64 = 150;
/// Those of the light targets.
const LIGHT: u64 = 600;
const LONGEST: u64 = 300;

#[test]
fn this_binary_checks_overflows() {
    let most = std::hint::black_box(u64::MAX);
    let added = catch_unwind(|| most + std::hint::black_box(1));
    assert!(added.is_err(), "the targets run with overflow checks");
}

#[test]
fn every_seed_of_the_corpus() {
    let mut seeds = 0;
    for target in avhdx_fuzz::targets() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let files = std::fs::read_dir(&folder);
        let files = files.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for file in files {
            let path = file.expect("a file").path();
            run(target, &std::fs::read(&path).expect("a seed"), &path.display().to_string());
            seeds += 1;
        }
    }
    assert!(seeds > 0, "a corpus");
}

#[test]
fn inputs_by_chance() {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    for target in avhdx_fuzz::targets() {
        let count = if matches!(target, "chain" | "metadata" | "read") { LIGHT } else { SHORT };
        for seed in 0..count * if is_long { 100 } else { 1 } {
            let mut rng = Rng::new(seed);
            let mut input = vec![0; rng.below(LONGEST) as usize];
            rng.fill(&mut input);
            run(target, &input, &format!("the input of seed {seed}"));
        }
    }
}

/// Runs a target, and says which input it was that failed.
fn run(target: &str, input: &[u8], what: &str) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| avhdx_fuzz::run(target, input))) {
        eprintln!("{target} fails on {what}");
        resume_unwind(panic);
    }
}
