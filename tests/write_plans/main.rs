//! Planned writes: by a caller that plans many, carries out their steps late and in any order, drops, fails and
//! crashes, among other writes. A model knows what each 512 bytes may read as.
//!
//! No plan, commit or failure may touch a file: the simulated host panics if one does.

mod caller;
mod flushes;
mod rules;

use avhdx::{DiffChain, Disk, ErrorKind, PlannedWrite, WritePlan};
use avhdx_testkit::rng::Rng;
use avhdx_testkit::{model, outcomes, sim, verdict};

use caller::{Caller, Kind};
use outcomes::{Depth, Explorer};
use sim::Files;
use verdict::Judge;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn is_long() -> bool {
    std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1")
}

fn seeds(short: u64) -> u64 {
    if is_long() { 50 * short } else { short }
}

#[test]
fn a_disk_reads_as_some_order_of_what_overlapped() {
    for seed in 0..seeds(40) {
        for kind in [Kind::Base, Kind::Child] {
            let mut caller = Caller::new(kind, seed);
            for _ in 0..120 {
                caller.act();
            }
            caller.end_all();
            caller.compare();
            drop(caller.finish());
        }
    }
}

#[test]
fn a_crash_loses_nothing_flushed_and_shows_nothing_foreign() {
    for seed in 0..seeds(8) {
        for kind in [Kind::Base, Kind::Child] {
            crash(kind, 1000 + seed);
        }
    }
}

fn crash(kind: Kind, seed: u64) {
    let mut caller = Caller::new(kind, seed);
    let start: Files = caller.host.files();
    for _ in 0..60 {
        caller.act();
    }
    let recorded = caller.finish();
    let judge = Judge { tip: recorded.tip, parents: recorded.parents };
    let segments = recorded.model.segments();
    let depth = Depth { exhaustive: 2, samples: 3, torn: 1 };
    let mut rng = Rng::new(seed);
    let mut explorer = Explorer::new(start, &recorded.events, depth, seed);
    let mut judged = 0;
    explorer.run(0, &|cut| recorded.model.epoch(cut), &mut |outcome| {
        if !rng.chance(1, if is_long() { 3 } else { 8 }) {
            return;
        }
        judged += 1;
        let expected = recorded.model.expected(&segments, outcome.cut);
        if let Err(why) = judge.judge(&outcome.files, &expected) {
            let kept: Vec<_> =
                outcome.kept.iter().map(|i| outcomes::describe(&recorded.events[*i])).collect();
            panic!("{kind:?}, seed {seed}, cut {}, kept {kept:?}: {why}", outcome.cut);
        }
    });
    assert!(judged > 5, "{judged} outcomes");
}

/// Plans a write, and does what it needs.
fn plan(chain: &DiffChain, at: u64, len: u64) -> WritePlan {
    let mut planned = caller::at_once(|| chain.plan_write(at..at + len)).unwrap();
    loop {
        planned = match planned {
            PlannedWrite::Ready(plan) => return plan,
            PlannedWrite::Load(load) => {
                let mut bytes = vec![0; load.len()];
                load.storage().read_exact_at(&mut bytes, load.at().get()).unwrap();
                caller::at_once(|| load.supply(&bytes)).unwrap()
            }
            PlannedWrite::Wait(wait) => {
                wait.run().unwrap();
                caller::at_once(|| chain.plan_write(at..at + len)).unwrap()
            }
        };
    }
}

#[test]
fn a_range_that_cannot_be_planned_is_refused() {
    let caller = Caller::new(Kind::Base, 0);
    for (range, code) in [
        (1..513, "plan.alignment"),
        (0..513, "plan.alignment"),
        (0..caller.size() + 512, "disk.range"),
    ] {
        let error = caller.chain().plan_write(range.clone()).unwrap_err();
        if code == "plan.alignment" {
            assert!(error.expected().unwrap().contains("512 bytes"), "{error}");
            assert_eq!(error.code(), code);
        }
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let view = caller.chain().view(caller.chain().layers()[0].id).unwrap();
    let error = view.plan_write(0..512).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    let plan = plan(caller.chain(), 4 * KIB, 4 * KIB);
    assert_eq!(plan.range(), 4 * KIB..8 * KIB);
    let error = plan.write(&[0; 100]).unwrap_err();
    assert_eq!(error.code(), "plan.buffer-length");
    caller.chain().flush().unwrap();
}
