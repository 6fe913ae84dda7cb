//! Crashes at every point of a history, losing any subset of the unflushed changes.
//!
//! A simulated host records what happens to its files (`sim`), `outcomes` derives from the record everything that
//! a crash can leave behind, `model` knows what the disk may contain then, and `verdict` asks the crate and
//! the naive reader. `AVHDX_LONG=1` explores further.
//!
//! The same workloads run on a host of which one step fails (`faults`, `failures`). `chains` does the same with
//! operations that change several files and their names, and `loss` with images that lost bytes.

mod chains;
mod compact;
mod driver;
mod explore;
mod failures;
mod faults;
mod growing;
mod interleave;
mod judged;
mod logs;
mod loss;
mod provision;
#[cfg(target_os = "linux")]
mod real;
mod rebase;
mod repair;
mod workloads;

use avhdx_testkit::{model, outcomes, sim, stale, verdict};

use driver::show_stale;
use explore::{Effort, Tally, explore};
use outcomes::Depth;
use workloads::{Record, Workload, all};

/// The minimum number of distinct outcomes.
const SHORT: usize = 10_000;
const LONG: usize = 1_000_000;

/// The number of random histories: this many in the short form, at most this many in the long one.
const SEEDS: u64 = 2;
const MOST_SEEDS: u64 = 2000;

fn is_long() -> bool {
    std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1")
}

fn effort(workload: &Workload) -> Effort {
    let is_hunt = std::env::var_os("AVHDX_MUTANT").is_some();
    let depth = match (is_long(), workload.is_large) {
        (_, false) if is_hunt => Depth { exhaustive: 8, samples: 12, torn: 60 },
        (false, false) => Depth { exhaustive: 5, samples: 4, torn: 4 },
        (false, true) if is_hunt => Depth { exhaustive: 4, samples: 2, torn: 1 },
        (false, true) => Depth { exhaustive: 2, samples: 1, torn: 1 },
        (true, false) => Depth { exhaustive: 12, samples: 1000, torn: 1200 },
        (true, true) => Depth { exhaustive: 10, samples: 40, torn: 20 },
    };
    let second = match (is_long(), workload.is_large) {
        (false, false) if is_hunt => 101,
        (false, false) => 251,
        (false, true) => 4001,
        (true, false) => 1010,
        (true, true) => 40_010,
    };
    // Each outcome of a large file takes its time.
    let each = if workload.is_large && !is_long() && !is_hunt { 3 } else { 1 };
    Effort { depth, each, second, first_only: is_hunt }
}

/// Explores a workload on one kind of host, and in case of random histories continues until there are `wanted` outcomes.
fn run(workload: &Workload, shows_stale: bool, effort: Effort, wanted: usize) -> Tally {
    show_stale(shows_stale);
    let mut tally = Tally::default();
    let rounds: Box<dyn Iterator<Item = Vec<_>>> = match workload.record {
        Record::Once(record) => Box::new(std::iter::once_with(record)),
        Record::Seeded(record) => Box::new((1..=MOST_SEEDS).map(record)),
    };
    for (seeds, recorded) in rounds.enumerate() {
        if seeds as u64 >= SEEDS && (!is_long() || tally.distinct() >= wanted) {
            break;
        }
        for recorded in recorded {
            explore(&recorded, effort, &mut tally);
        }
        if effort.first_only && !tally.failures.is_empty() {
            break;
        }
    }
    show_stale(false);
    tally
}

/// Explores one workload after the other; returns how many distinct outcomes there were, all of them sound.
fn explore_each<'a, W: 'a>(
    workloads: impl IntoIterator<Item = &'a W>,
    name: impl Fn(&W) -> &str,
    explore: impl Fn(&W) -> (usize, Vec<String>),
) -> usize {
    let (mut distinct, mut failures) = (0, Vec::new());
    for workload in workloads {
        let started = std::time::Instant::now();
        let (outcomes, failed) = explore(workload);
        let seconds = started.elapsed().as_secs_f32();
        let name = name(workload);
        println!("{name:<44}{outcomes:>8}{:>9}  {seconds:.1} s", failed.len());
        tell_failures(name, &failed);
        distinct += outcomes;
        failures.extend(failed);
    }
    assert!(failures.is_empty(), "{} outcomes are not sound", failures.len());
    distinct
}

/// Prints the first failures of a workload; for a planted bug, one of them is expected.
fn tell_failures(workload: &str, failures: &[String]) {
    if !failures.is_empty() && std::env::var_os("AVHDX_MUTANT").is_some() {
        println!("FOUND by \"{workload}\": {}", failures[0]);
        panic!("a mutant was found");
    }
    for failure in failures.iter().take(3) {
        println!("    {failure}");
    }
}

/// Whether the host shows stale bytes.
fn on_each_host(workload: &Workload) -> impl Iterator<Item = (&Workload, bool)> {
    let hosts: &[bool] = if workload.is_on_both { &[false, true] } else { &[false] };
    hosts.iter().map(move |shows_stale| (workload, *shows_stale))
}

#[test]
fn every_outcome_of_a_crash_is_sound() {
    let only = std::env::var("AVHDX_WORKLOAD").unwrap_or_default();
    println!(
        "{:<52}{:>7}{:>10}{:>14}{:>8}{:>9}",
        "workload", "cuts", "distinct", "payload only", "again", "failures"
    );
    let (mut cuts, mut distinct, mut payload, mut again, mut failures) = (0, 0, 0, 0, Vec::new());
    let workloads = all().filter(|workload| workload.name.contains(&only));
    for (workload, shows_stale) in workloads.flat_map(on_each_host) {
        let started = std::time::Instant::now();
        let wanted = LONG.saturating_sub(distinct);
        let tally = run(workload, shows_stale, effort(workload), wanted);
        println!(
            "{:<52}{:>7}{:>10}{:>14}{:>8}{:>9}  {:.1} s",
            format!("{}{}", workload.name, if shows_stale { " (stale)" } else { "" }),
            tally.cuts,
            tally.distinct(),
            tally.payload_only(),
            tally.second,
            tally.failures.len(),
            started.elapsed().as_secs_f32(),
        );
        tell_failures(workload.name, &tally.failures);
        cuts += tally.cuts;
        distinct += tally.distinct();
        payload += tally.payload_only();
        again += tally.second;
        failures.extend(tally.failures);
    }
    println!("{:<52}{cuts:>7}{distinct:>10}{payload:>14}{again:>8}{:>9}", "all", failures.len());
    assert!(failures.is_empty(), "{} outcomes are not sound", failures.len());
    let enough = if is_long() { LONG } else { SHORT };
    assert!(!only.is_empty() || distinct >= enough, "{distinct} outcomes, not {enough}");
}
