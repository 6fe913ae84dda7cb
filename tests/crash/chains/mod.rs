//! Crashes while the layers of a chain change, over all files and names at once.
//!
//! `history` records what was done and what each file may be from then on, `workloads` does it, and `verdict` opens
//! what a crash left, through each of its files, and completes it.

mod history;
mod resized;
mod verdict;
mod workloads;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use crate::explore::{guarded, story};
use crate::outcomes::{Depth, Explorer};
use crate::sim::Files;
use crate::{is_long, tell_failures};
use history::History;
use workloads::{ALL, Kind};

/// The minimum number of distinct outcomes.
const SHORT: usize = 4_000;
const LONG: usize = 100_000;

/// One in this many outcomes is completed, and one in this many completions crashes.
#[derive(Clone, Copy)]
struct Effort {
    depth: Depth,
    completed: u64,
    again: u64,
    first_only: bool,
}

#[derive(Default)]
struct Tally {
    distinct: HashSet<u64>,
    completed: usize,
    again: usize,
    failures: Vec<String>,
}

fn effort(kind: Kind) -> Effort {
    let first_only = std::env::var_os("AVHDX_MUTANT").is_some();
    let depth = match (is_long(), kind) {
        (false, Kind::Small) if first_only => Depth { exhaustive: 5, samples: 6, torn: 4 },
        (false, Kind::Small) => Depth { exhaustive: 3, samples: 2, torn: 1 },
        (false, Kind::Interleaved) => Depth { exhaustive: 1, samples: 1, torn: 0 },
        (false, Kind::Large) => Depth { exhaustive: 3, samples: 2, torn: 0 },
        (true, Kind::Small) => Depth { exhaustive: 11, samples: 600, torn: 300 },
        (true, Kind::Interleaved) => Depth { exhaustive: 6, samples: 20, torn: 10 },
        (true, Kind::Large) => Depth { exhaustive: 6, samples: 20, torn: 4 },
    };
    let (completed, again) = match (is_long(), kind) {
        (_, Kind::Large) => (31, 0),
        (false, _) => (4, 151),
        (true, _) => (2, 101),
    };
    Effort { depth, completed, again, first_only }
}

/// The distance between histories that are explored one after the other.
const STRIDE: usize = 16;

#[test]
fn a_crash_leaves_a_chain_that_reads_right_and_is_completed() {
    let only = std::env::var("AVHDX_WORKLOAD").unwrap_or_default();
    println!(
        "{:<44}{:>8}{:>10}{:>11}{:>8}{:>9}",
        "workload", "records", "distinct", "completed", "again", "failures"
    );
    let (mut distinct, mut completed, mut again, mut failures) = (0, 0, 0, Vec::new());
    for workload in ALL.iter().filter(|workload| workload.name.contains(&only)) {
        let started = std::time::Instant::now();
        let mut tally = Tally::default();
        let histories = (workload.record)();
        // Neighbours differ little: those far apart come first, which finds a planted bug sooner.
        let order = (0..STRIDE).flat_map(|first| histories.iter().skip(first).step_by(STRIDE));
        for history in order {
            explore(history, effort(workload.kind), &mut tally);
            if !tally.failures.is_empty() && effort(workload.kind).first_only {
                break;
            }
        }
        println!(
            "{:<44}{:>8}{:>10}{:>11}{:>8}{:>9}  {:.1} s",
            workload.name,
            histories.len(),
            tally.distinct.len(),
            tally.completed,
            tally.again,
            tally.failures.len(),
            started.elapsed().as_secs_f32(),
        );
        tell_failures(workload.name, &tally.failures);
        distinct += tally.distinct.len();
        completed += tally.completed;
        again += tally.again;
        failures.extend(tally.failures);
    }
    println!("all: {distinct} distinct, {completed} completed, {again} again");
    assert!(failures.is_empty(), "{} outcomes are not sound", failures.len());
    let enough = if is_long() { LONG } else { SHORT };
    assert!(!only.is_empty() || distinct >= enough, "{distinct} outcomes, not {enough}");
}

struct Job {
    files: Files,
    cut: usize,
    sum: u64,
    story: String,
}

/// Judges every outcome of a history.
fn explore(history: &History, effort: Effort, tally: &mut Tally) {
    let failures = Mutex::new(Vec::new());
    let (completed, again) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = AtomicBool::new(false);
    let (send, receive) = sync_channel::<Job>(64);
    let receive = Mutex::new(receive);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                let next = || receive.lock().ok()?.recv().ok();
                while let Some(job) = next() {
                    if is_over.load(Ordering::Relaxed) {
                        continue;
                    }
                    let judged = guarded(|| judge(history, &job, effort, &completed, &again));
                    if let Err(why) = judged {
                        failures.lock().unwrap().push(format!("{}: {why}", job.story));
                        is_over.fetch_or(effort.first_only, Ordering::Relaxed);
                    }
                }
            });
        }
        walk(history, effort.depth, &mut tally.distinct, &mut |job| {
            send.send(job).unwrap();
            !is_over.load(Ordering::Relaxed)
        });
        drop(send);
    });
    tally.failures.extend(failures.into_inner().unwrap());
    tally.completed += completed.into_inner();
    tally.again += again.into_inner();
}

/// Finds the outcomes that were not judged before.
fn walk(
    history: &History,
    depth: Depth,
    distinct: &mut HashSet<u64>,
    send: &mut dyn FnMut(Job) -> bool,
) {
    let mut explorer = Explorer::new(history.start.clone(), &history.events, depth, 42);
    let mut seen = HashSet::new();
    let mut goes_on = true;
    explorer.run(history.from, &|cut| history.epoch(cut), &mut |outcome| {
        let sum = outcome.files.sum();
        if !goes_on || !seen.insert((sum.exact, history.epoch(outcome.cut))) {
            return;
        }
        distinct.insert(sum.plain);
        let story = story(&history.events, &outcome);
        goes_on = send(Job { files: outcome.files, cut: outcome.cut, sum: sum.exact, story });
    });
}

fn judge(
    history: &History,
    job: &Job,
    effort: Effort,
    completed: &AtomicUsize,
    again: &AtomicUsize,
) -> Result<(), String> {
    let all = verdict::judge(history, &job.files, job.cut)?;
    for found in &all {
        if job.sum.is_multiple_of(effort.completed) {
            verdict::go_on(&job.files, found)?;
            completed.fetch_add(1, Ordering::Relaxed);
        }
        if effort.again == 0 || !job.sum.is_multiple_of(effort.again) {
            continue;
        }
        let Some(resumed) = verdict::resumed(history, &job.files, found, &all)? else { continue };
        let mut failure = None;
        let depth = Depth { exhaustive: 2, samples: 1, torn: 1 };
        walk(&resumed, depth, &mut HashSet::new(), &mut |job| {
            again.fetch_add(1, Ordering::Relaxed);
            let judged = guarded(|| {
                let all = verdict::judge(&resumed, &job.files, job.cut)?;
                all.iter().take(1).try_for_each(|found| verdict::go_on(&job.files, found))
            });
            failure = judged.err().map(|why| format!("crashed again: {}: {why}", job.story));
            failure.is_none()
        });
        failure.map_or(Ok(()), Err)?;
    }
    Ok(())
}
