//! Makes each step of each workload fail in turn, and counts the results.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::driver::Recorded;
use crate::explore::{Effort, explore};
use crate::faults::{EIO, ENOSPC, Kind, Plan, Steps, Tally, Way, count, fail};
use crate::is_long;
use crate::outcomes::Depth;
use crate::workloads::{self, Record, Workload};

/// Failing steps per workload in the short form: changes and reads.
const CHANGES: usize = 8;
const READS: usize = 3;
/// How many ways of failing are tried for each step.
const WAYS: usize = 2;

/// One in this many histories with a failure also gets crashes after it.
const CRASHES: usize = 40;
const CRASH: Effort = Effort {
    depth: Depth { exhaustive: 2, samples: 2, torn: 1 },
    each: 1,
    second: 0,
    first_only: false,
};

/// The minimum number of failing steps.
const SHORT: usize = 1_000;
const LONG: usize = 25_000;

#[test]
fn every_failed_operation_is_an_error_and_loses_nothing_flushed() {
    let only = std::env::var("AVHDX_WORKLOAD").unwrap_or_default();
    println!(
        "{:<52}{:>7}{:>7}{:>8}{:>7}{:>9}{:>7}{:>6}{:>9}{:>9}",
        "workload",
        "steps",
        "tried",
        "failed",
        "alone",
        "poisoned",
        "opens",
        "less",
        "crashes",
        "failures"
    );
    let mut all = Sum::default();
    for (n, workload) in workloads::all().enumerate().filter(|(_, it)| it.name.contains(&only)) {
        let started = std::time::Instant::now();
        let sum = run(workload, n);
        println!("{}  {:.1} s", sum.line(workload.name), started.elapsed().as_secs_f32());
        if !sum.tally.complaints.is_empty() && std::env::var_os("AVHDX_MUTANT").is_some() {
            println!("FOUND by \"{}\": {}", workload.name, sum.tally.complaints[0]);
            panic!("a mutant was found");
        }
        for complaint in sum.tally.complaints.iter().take(5) {
            println!("    {complaint}");
        }
        all.steps += sum.steps;
        all.tried += sum.tried;
        all.tally += sum.tally;
    }
    println!("{}", all.line("all"));
    let Tally { fired, complaints, .. } = all.tally;
    assert!(complaints.is_empty(), "{} failures: {:#?}", complaints.len(), &complaints[..1]);
    let enough = if is_long() { LONG } else { SHORT };
    assert!(!only.is_empty() || fired >= enough, "{fired} steps failed, not {enough}");
}

#[derive(Debug, Default)]
struct Sum {
    /// Steps of the histories.
    steps: usize,
    /// Steps that failed in at least one run.
    tried: usize,
    tally: Tally,
}

impl Sum {
    fn line(&self, name: &str) -> String {
        let Tally { fired, alone, poisoned, less, unopened, crashed, complaints } = &self.tally;
        format!(
            "{name:<52}{:>7}{:>7}{fired:>8}{alone:>7}{poisoned:>9}{unopened:>7}{less:>6}{crashed:>9}{:>9}",
            self.steps,
            self.tried,
            complaints.len()
        )
    }
}

fn run(workload: &Workload, number: usize) -> Sum {
    let mut sum = Sum::default();
    let records: Vec<Box<dyn Fn() -> Vec<Recorded> + Sync>> = match workload.record {
        Record::Once(record) => vec![Box::new(record)],
        Record::Seeded(record) => {
            let seeds = 1..=if is_long() { 8 } else { 2 };
            seeds.map(|seed| Box::new(move || record(seed)) as _).collect()
        }
    };
    for record in &records {
        let steps = count(|| drop(record()));
        let from = |steps: &Steps| if is_long() { 0 } else { steps.from };
        let chosen: Vec<Option<usize>> =
            steps.iter().map(|steps| steps.is_finished.then_some(from(steps))).collect();
        sum.steps +=
            steps.iter().filter(|it| it.is_finished).map(|it| it.kinds.len()).sum::<usize>();
        let (tried, plans) = plans(workload, number, &steps);
        sum.tried += tried;
        sum.tally += try_all(&plans, workload.is_large, &chosen, record);
    }
    sum
}

/// Chooses how many steps fail, and how.
fn plans(workload: &Workload, number: usize, steps: &[Steps]) -> (usize, Vec<Plan>) {
    let finished = || steps.iter().filter(|steps| steps.is_finished);
    let rest = |steps: &Steps| match is_long() {
        true => steps.kinds.clone(),
        false => steps.kinds[steps.from..].to_vec(),
    };
    let kinds = finished().map(rest).max_by_key(Vec::len).unwrap_or_default();
    let (reads, changes): (Vec<usize>, Vec<usize>) =
        (0..kinds.len()).partition(|step| kinds[*step] == Kind::Read);
    // In several histories the same step may be of different kinds, and each gets one that fails.
    let is_one = finished().count() == 1;
    // A planted bug may show at a single step only.
    let is_hunt = std::env::var_os("AVHDX_MUTANT").is_some();
    let (some_changes, some_reads, some_ways) = match (is_long(), workload.is_large) {
        (false, false) if is_hunt => (usize::MAX, READS, 2 * WAYS),
        (true, false) if is_one => (usize::MAX, usize::MAX, usize::MAX),
        (true, false) => (usize::MAX, usize::MAX, 2 * WAYS),
        (true, true) => (usize::MAX, usize::MAX, WAYS),
        (false, false) if is_one => (CHANGES, READS, WAYS),
        (false, false) => (CHANGES, READS, 1),
        (false, true) => (CHANGES / 2, 1, 1),
    };
    let picked: Vec<usize> =
        evenly(&changes, some_changes).chain(evenly(&reads, some_reads)).collect();
    let mut plans = Vec::new();
    for step in &picked {
        let all = ways(kinds[*step], is_one);
        let first = (step * 7 + number * 5) % all.len();
        plans.extend((0..some_ways.min(all.len())).map(|n| {
            // Not neighbours, which differ only in the error.
            let (way, code, gives_up) = all[(first + n * 5) % all.len()];
            Plan { step: *step, code, way, gives_up }
        }));
    }
    let tried = finished().map(|steps| {
        let len = rest(steps).len();
        picked.iter().filter(|step| **step < len).count()
    });
    (tried.sum(), plans)
}

fn evenly(steps: &[usize], most: usize) -> impl Iterator<Item = usize> {
    let picked = steps.len().min(most);
    (0..picked).map(move |n| steps[n * steps.len() / picked])
}

fn ways(kind: Kind, is_one: bool) -> Vec<(Way, i32, bool)> {
    let ways: &[Way] = match kind {
        _ if !is_one => &[Way::Once, Way::Half, Way::All, Way::Lasting, Way::Losing],
        Kind::Write => &[Way::Once, Way::Half, Way::All, Way::Lasting],
        Kind::Length => &[Way::Once, Way::All, Way::Lasting],
        Kind::Flush => &[Way::Once, Way::Losing],
        Kind::Read | Kind::Names => &[Way::Once],
    };
    let each = ways.iter().flat_map(|way| {
        [(EIO, true), (ENOSPC, false), (EIO, false), (ENOSPC, true)]
            .map(|(code, gives_up)| (*way, code, gives_up))
    });
    each.collect()
}

/// Records with a failure, and crashes some of the histories after it.
fn try_one(
    number: usize,
    plan: Plan,
    is_large: bool,
    chosen: &[Option<usize>],
    record: &(dyn Fn() -> Vec<Recorded> + Sync),
) -> Tally {
    let mut outcomes = crate::explore::Tally::default();
    // Costly outcomes only in the long form.
    let goes_on = !is_large || is_long();
    let mut tally = fail(plan, chosen.to_vec(), || {
        for (n, recorded) in record().into_iter().enumerate() {
            if let Some(at) =
                recorded.failed_at.filter(|_| goes_on && (number + n).is_multiple_of(CRASHES))
            {
                let recorded = Recorded { from: recorded.from.max(at), ..recorded };
                explore(&recorded, CRASH, &mut outcomes);
            }
        }
    });
    tally.crashed += outcomes.distinct();
    let failures = outcomes.failures.into_iter();
    tally.complaints.extend(failures.map(|failure| format!("a crash after a failure: {failure}")));
    tally
}

fn try_all(
    plans: &[Plan],
    is_large: bool,
    chosen: &[Option<usize>],
    record: &(dyn Fn() -> Vec<Recorded> + Sync),
) -> Tally {
    let tally = Mutex::new(Tally::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(plan) = plans.get(number) else { break };
                    let tried =
                        AssertUnwindSafe(|| try_one(number, *plan, is_large, chosen, record));
                    let mut one = catch_unwind(tried).unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        Tally { complaints: vec![format!("panic: {text}")], ..Tally::default() }
                    });
                    for complaint in &mut one.complaints {
                        *complaint = format!("{plan:?}: {complaint}");
                    }
                    *tally.lock().unwrap() += one;
                }
            });
        }
    });
    tally.into_inner().unwrap()
}
