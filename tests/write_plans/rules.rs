//! Single rules of planned writes, each on a history of its own.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Checkpoint, Merge};
use avhdx::{
    ChangeTracking, CreateOptions, DiffChain, Disk, ErrorKind, OneFlush, PlannedWrite, Since,
    TrackingOptions, TrackingPoint, WriteInFlight,
};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::rng::Rng;

use crate::caller::{at_once, watch};
use crate::sim::{Event, FOLDER, SimHost};
use crate::{KIB, MIB, plan, verdict};

const SIZE: u64 = 64 * MIB;

pub fn disk(host: &SimHost) -> (PathBuf, DiffChain) {
    disk_with(host, OneFlush::ByHost)
}

pub fn disk_with(host: &SimHost, when: OneFlush) -> (PathBuf, DiffChain) {
    disk_of(host, SIZE, when)
}

fn disk_of(host: &SimHost, size: u64, when: OneFlush) -> (PathBuf, DiffChain) {
    let tip = Path::new(FOLDER).join("base.vhdx");
    let options = CreateOptions::dynamic(size).block_size(1 << 20);
    drop(options.create_on(Arc::new(host.clone()), &tip).unwrap());
    let options = verdict::options(host).writable(true).one_flush(when);
    let chain = options.open(&tip).unwrap();
    watch(host);
    host.record();
    // The session has begun, and there is room.
    chain.write_at(&[1; 512], size - MIB).unwrap();
    chain.flush().unwrap();
    (tip, chain)
}

pub fn bytes(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

pub fn carry_out(flight: &WriteInFlight, bytes: &[u8]) {
    for step in flight.steps() {
        step.storage.write_at(&bytes[step.buffer.clone()], step.at.get()).unwrap();
    }
}

pub fn reads(chain: &DiffChain, at: u64, expected: &[u8]) -> bool {
    let mut read = vec![0; expected.len()];
    chain.read_at(&mut read, at).unwrap();
    read == expected
}

/// The MiB of the file that a plan writes to.
pub fn places(flight: &WriteInFlight) -> BTreeSet<u64> {
    flight.steps().map(|step| step.at.get() / MIB).collect()
}

pub fn flushes(host: &SimHost) -> usize {
    host.events().iter().filter(|event| matches!(event, Event::FlushStart(_))).count()
}

#[test]
fn a_plan_dropped_before_its_steps_leaves_no_trace() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let events = host.events().len();
    let first = plan(&chain, 0, 4 * KIB);
    let place = format!("{first:?}");
    at_once(|| drop(first));
    assert_eq!(host.events().len(), events, "nothing was written");
    chain.close().unwrap();
    drop(chain);
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    at_once(|| drop(plan(&chain, 0, 4 * KIB)));
    let again = plan(&chain, 0, 4 * KIB);
    assert_eq!(format!("{again:?}"), place, "its space is used again");
    again.write(&bytes(4 * KIB, 1)).unwrap();
    let before = flushes(&host);
    chain.flush().unwrap();
    assert_eq!(flushes(&host) - before, 1, "as fresh as it was");
}

#[test]
fn plans_and_writes_share_the_space_that_is_reserved_for_a_block() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let texts: Vec<_> = (0..3).map(|n| bytes(8 * KIB, n)).collect();
    let first = plan(&chain, 0, 8 * KIB).begin();
    let second = plan(&chain, 512 * KIB, 8 * KIB).begin();
    assert_eq!(places(&first), places(&second));
    chain.write_at(&texts[2], 100 * KIB).unwrap();
    carry_out(&first, &texts[0]);
    assert!(reads(&chain, 100 * KIB, &texts[2]), "the write has returned");
    carry_out(&second, &texts[1]);
    at_once(|| second.commit()).unwrap();
    at_once(|| first.commit()).unwrap();
    for (text, at) in texts.iter().zip([0, 512 * KIB, 100 * KIB]) {
        assert!(reads(&chain, at, text));
    }
    chain.flush().unwrap();
    let layer = verdict::layer(&host.files(), &Path::new(FOLDER).join("base.vhdx")).unwrap();
    assert_eq!(layer.faults(), Vec::<String>::new());
}

#[test]
fn what_a_dropped_plan_may_still_write_harms_no_later_write() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let (lost, kept) = (bytes(8 * KIB, 1), bytes(8 * KIB, 2));
    let flight = plan(&chain, 0, 8 * KIB).begin();
    let steps: Vec<_> =
        flight.steps().map(|step| (Arc::clone(step.storage), step.at.get())).collect();
    let place = places(&flight);
    at_once(|| drop(flight));
    let mut others = BTreeSet::new();
    for block in 0..40 {
        let flight = plan(&chain, block * MIB, 8 * KIB).begin();
        others.extend(places(&flight));
        carry_out(&flight, &kept);
        at_once(|| flight.commit()).unwrap();
        chain.flush().unwrap();
        if block % 2 == 1 {
            chain.discard(block * MIB..(block + 1) * MIB).unwrap();
            chain.flush().unwrap();
        }
    }
    assert!(others.is_disjoint(&place), "{place:?} is used for something else");
    for (storage, at) in steps {
        storage.write_at(&lost, at).unwrap();
    }
    assert!((0..40).step_by(2).all(|block| reads(&chain, block * MIB, &kept)));
    let error = Checkpoint::new().run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "write.plans-lost"));
    chain.close().unwrap();
}

#[test]
fn discarded_space_is_not_used_again_while_a_plan_may_write_there() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    chain.write_at(&bytes(MIB, 1), 0).unwrap();
    chain.flush().unwrap();
    let flight = plan(&chain, 0, 8 * KIB).begin();
    let place = places(&flight);
    chain.discard(0..MIB).unwrap();
    chain.flush().unwrap();
    chain.flush().unwrap();
    let mut others = BTreeSet::new();
    for block in 2..20 {
        chain.write_at(&bytes(8 * KIB, 1), block * MIB).unwrap();
        let flight = plan(&chain, block * MIB, 512).begin();
        others.extend(places(&flight));
        at_once(|| flight.failed());
    }
    assert!(others.is_disjoint(&place));
    carry_out(&flight, &[7; 8 << 10]);
    at_once(|| flight.commit()).unwrap();
    assert!(reads(&chain, 0, &[0; 8 << 10]), "the discard came after the write");
}

#[test]
fn the_flush_after_a_commit_makes_it_durable() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    chain.write_at(&bytes(MIB, 1), 0).unwrap();
    chain.flush().unwrap();
    let flight = plan(&chain, 0, 8 * KIB).begin();
    carry_out(&flight, &bytes(8 * KIB, 2));
    at_once(|| flight.commit()).unwrap();
    let before = flushes(&host);
    chain.flush().unwrap();
    assert_eq!(flushes(&host) - before, 1, "in place");
}

#[test]
fn plans_go_on_in_the_tip_that_a_checkpoint_leaves() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let text = bytes(8 * KIB, 1);
    plan(&chain, 0, 8 * KIB).write(&text).unwrap();
    let kept = plan(&chain, MIB, 8 * KIB);
    let error = Checkpoint::new().run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "write.plans-open"));
    assert!(error.found().unwrap().starts_with("1 "), "{error}");
    assert_eq!(chain.layers().len(), 1);
    at_once(|| drop(kept));
    Checkpoint::new().run(&chain).unwrap();
    let other = bytes(4 * KIB, 2);
    plan(&chain, 2 * KIB, 4 * KIB).write(&other).unwrap();
    assert!(reads(&chain, 2 * KIB, &other) && reads(&chain, 0, &text[..2 << 10]));
    chain.flush().unwrap();
    let point = chain.view(chain.layers()[1].id).unwrap();
    assert!(reads(&point, 0, &text), "the point in time");
}

/// Writes are planned, carried out and committed while the tip is merged; some are in flight across many steps.
#[test]
fn a_merge_of_the_tip_takes_what_plans_commit_meanwhile() {
    for seed in 0..4 {
        let host = SimHost::default();
        let (_, chain) = disk(&host);
        let mut expected = vec![0; SIZE as usize];
        expected[(SIZE - MIB) as usize..][..512].fill(1);
        Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
        let mut put = |at: u64, text: &[u8]| {
            expected[at as usize..][..text.len()].copy_from_slice(text);
        };
        for block in 0..48 {
            let text = bytes(600 * KIB, block);
            chain.write_at(&text, block * MIB).unwrap();
            put(block * MIB, &text);
        }
        chain.flush().unwrap();
        let mut rng = Rng::new(seed);
        let mut flights: Vec<(WriteInFlight, u64, Vec<u8>)> = Vec::new();
        let mut calls = 0;
        let tip = chain.layers()[0].id;
        let merged = Merge::new(tip)
            .on_progress(|_| {
                calls += 1;
                if calls < 30 {
                    let at = rng.below(SIZE / KIB - 64) * KIB;
                    let text = bytes(8 * KIB, 1000 + calls);
                    let range = at..at + 8 * KIB;
                    let meets = |other: &(WriteInFlight, u64, Vec<u8>)| {
                        other.1 < range.end && range.start < other.1 + 8 * KIB
                    };
                    if !flights.iter().any(meets) {
                        flights.push((plan(&chain, at, 8 * KIB).begin(), at, text));
                    }
                }
                if calls >= 30 || flights.len() > 3 {
                    for (flight, at, text) in flights.drain(..) {
                        carry_out(&flight, &text);
                        at_once(|| flight.commit()).unwrap();
                        put(at, &text);
                    }
                }
                ControlFlow::Continue(())
            })
            .run(&chain);
        // Too few steps for all to have ended: then nothing but the last step is missing.
        if let Err(error) = merged {
            assert_eq!(error.code(), "write.plans-open", "{error}");
            for (flight, at, text) in flights.drain(..) {
                carry_out(&flight, &text);
                at_once(|| flight.commit()).unwrap();
                put(at, &text);
            }
            let tip = chain.layers()[0].id;
            Merge::resume(tip).run(&chain).unwrap();
        }
        assert!(calls > 5, "{calls}");
        assert_eq!(chain.layers().len(), 1);
        assert!(reads(&chain, 0, &expected), "seed {seed}");
        chain.close().unwrap();
    }
}

/// The merge may have passed what the plan writes, and is not resumed, which would copy all of it again.
#[test]
fn a_merge_takes_what_a_plan_commits_behind_it() {
    for word in 1.. {
        let host = SimHost::default();
        let (_, chain) = disk(&host);
        Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
        for block in 0..12 {
            chain.write_at(&bytes(MIB, block), block * MIB).unwrap();
        }
        chain.flush().unwrap();
        let (mut words, mut written) = (0, false);
        let tip = chain.layers()[0].id;
        Merge::new(tip)
            .on_progress(|_| {
                words += 1;
                // The last word comes when the tip is out of the chain.
                if words == word && chain.layers().len() == 2 {
                    let flight = plan(&chain, 2 * MIB, 8 * KIB).begin();
                    carry_out(&flight, &bytes(8 * KIB, 99));
                    at_once(|| flight.commit()).unwrap();
                    written = true;
                }
                ControlFlow::Continue(())
            })
            .run(&chain)
            .unwrap();
        if !written {
            assert!(word > 2, "{word} words");
            break;
        }
        assert_eq!(chain.layers().len(), 1);
        assert!(
            reads(&chain, 2 * MIB, &bytes(8 * KIB, 99)),
            "what the plan wrote at word {word} is lost"
        );
        chain.close().unwrap();
    }
}

#[test]
fn reused_space_shows_nothing_of_the_block_that_had_it() {
    for when in [OneFlush::ByHost, OneFlush::Never] {
        let host = SimHost::default();
        let (_, chain) = disk_with(&host, when);
        for block in 0..4 {
            chain.write_at(&bytes(MIB, block), block * MIB).unwrap();
        }
        chain.flush().unwrap();
        chain.discard(0..4 * MIB).unwrap();
        chain.flush().unwrap();
        let text = bytes(4 * KIB, 9);
        let mut used = BTreeSet::new();
        for block in 5..30 {
            let flight = plan(&chain, block * MIB + 8 * KIB, 4 * KIB).begin();
            used.extend(places(&flight));
            carry_out(&flight, &text);
            at_once(|| flight.commit()).unwrap();
            let mut expected = vec![0; MIB as usize];
            expected[8 << 10..][..4 << 10].copy_from_slice(&text);
            assert!(reads(&chain, block * MIB, &expected), "block {block}");
        }
        // The file grows by little: it needs no more than what is used.
        let (first, last) = (used.first().unwrap(), used.last().unwrap());
        assert_eq!(used.len(), 25, "{first} to {last}");
        if when == OneFlush::Never {
            assert_eq!(last - first, 24, "the freed space before that of other blocks is used");
        }
    }
}

#[test]
fn a_commit_finds_its_tables_after_flushes_by_others() {
    let host = SimHost::default();
    // Its table has two pages.
    let (_, chain) = disk_of(&host, 1024 * MIB, OneFlush::ByHost);
    let text = bytes(4 * KIB, 9);
    let flight = plan(&chain, 0, 4 * KIB).begin();
    carry_out(&flight, &text);
    chain.write_at(&[3; 512], MIB).unwrap();
    chain.flush().unwrap();
    // The first page is in its place by then, and nothing else keeps it in memory.
    for block in 520..540 {
        chain.write_at(&[3; 512], block * MIB).unwrap();
        chain.flush().unwrap();
    }
    at_once(|| flight.commit()).unwrap();
    assert!(reads(&chain, 0, &text));
    chain.close().unwrap();
    let layer = verdict::layer(&host.files(), &Path::new(FOLDER).join("base.vhdx")).unwrap();
    let naive = Chain(vec![layer]);
    assert_eq!(naive.read(0, 0, 512), Ok(text[..512].to_vec()));
}

#[test]
fn a_discard_puts_what_shares_reserved_space_before_it() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let flight = plan(&chain, 0, 4 * KIB).begin();
    carry_out(&flight, &bytes(4 * KIB, 1));
    chain.discard(0..MIB).unwrap();
    let later = bytes(4 * KIB, 2);
    chain.write_at(&later, 64 * KIB).unwrap();
    at_once(|| flight.commit()).unwrap();
    assert!(reads(&chain, 0, &[0; 4 << 10]) && reads(&chain, 64 * KIB, &later));
}

#[test]
fn zeros_written_after_a_failed_plan_stay() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let failed = plan(&chain, 0, 4 * KIB).begin();
    let other = plan(&chain, 64 * KIB, 4 * KIB).begin();
    carry_out(&failed, &bytes(4 * KIB, 1));
    at_once(|| failed.failed());
    chain.write_zeroes(0..4 * KIB, avhdx::Zeroing::KeepSpace).unwrap();
    let text = bytes(4 * KIB, 2);
    carry_out(&other, &text);
    at_once(|| other.commit()).unwrap();
    assert!(reads(&chain, 64 * KIB, &text) && reads(&chain, 0, &[0; 4 << 10]));
}

#[test]
fn a_part_of_a_sector_is_not_written_under_a_plan() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    chain.write_at(&bytes(MIB, 1), 0).unwrap();
    let flight = plan(&chain, 4 * KIB, 4 * KIB).begin();
    let error = chain.write_at(&[5; 10], 5 * KIB + 7).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "write.sector-planned"));
    chain.write_at(&[5; 512], 5 * KIB).unwrap();
    chain.write_at(&[5; 10], 8 * KIB + 1).unwrap();
    at_once(|| flight.failed());
    chain.write_at(&[5; 10], 5 * KIB + 7).unwrap();
}

#[test]
fn a_plan_of_several_blocks_has_room_after_a_wait() {
    for when in [OneFlush::ByHost, OneFlush::Never] {
        let host = SimHost::default();
        let (_, chain) = disk_with(&host, when);
        // One block, then a plan of two or three: in some, there is room for the first alone.
        let mut at = 0;
        for n in 0..20 {
            chain.write_at(&[1; 512], at * MIB).unwrap();
            let range = (at + 1) * MIB + 512..(at + 2 + n % 2) * MIB + 1024;
            at += 3 + n % 2;
            let mut waits = 0;
            while let PlannedWrite::Wait(wait) =
                at_once(|| chain.plan_write(range.clone())).unwrap()
            {
                waits += 1;
                assert!(waits < 4, "{range:?}: {wait:?}");
                wait.run().unwrap();
            }
            if at + 5 > SIZE / MIB {
                break;
            }
        }
    }
}

#[test]
fn a_plan_lost_in_flight_keeps_no_other_space_from_being_used_again() {
    let host = SimHost::default();
    let (tip, chain) = disk_with(&host, OneFlush::Never);
    let lost = plan(&chain, 0, 512).begin();
    let place = places(&lost);
    at_once(|| drop(lost));
    let mut used = BTreeSet::new();
    for _ in 0..20 {
        chain.write_at(&bytes(MIB, 1), 8 * MIB).unwrap();
        let flight = plan(&chain, 8 * MIB, 512).begin();
        used.extend(places(&flight));
        at_once(|| flight.failed());
        chain.flush().unwrap();
        chain.discard(8 * MIB..9 * MIB).unwrap();
        chain.flush().unwrap();
        chain.flush().unwrap();
    }
    assert!(used.len() < 5 && used.is_disjoint(&place), "{used:?}, not {place:?}");
    assert!(host.files().file(&tip).unwrap().len() < 16 * MIB);
}

#[test]
fn one_block_without_space_among_many_asks_for_room_for_one() {
    let host = SimHost::default();
    let (tip, chain) = disk_with(&host, OneFlush::Never);
    chain.write_at(&bytes(32 * MIB, 1), 0).unwrap();
    chain.flush().unwrap();
    chain.discard(0..MIB).unwrap();
    chain.flush().unwrap();
    let before = host.files().file(&tip).unwrap().len();
    at_once(|| drop(plan(&chain, 0, 32 * MIB)));
    let grown = host.files().file(&tip).unwrap().len() - before;
    assert!(grown <= 4 * MIB, "{grown} bytes");
}

#[test]
fn a_range_that_ends_before_it_starts_is_empty() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let (from, to) = (4096, 512);
    let PlannedWrite::Ready(plan) = chain.plan_write(from..to).unwrap() else { panic!() };
    assert_eq!(plan.range(), 4096..4096);
    plan.write(&[]).unwrap();
}

#[test]
#[allow(clippy::single_range_in_vec_init)] // lists of ranges, of which there may be one
fn tracking_learns_of_a_plan_when_it_ends_and_of_one_that_never_ends_each_time() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let tracking = chain.track_changes(TrackingOptions::new().grain(4096)).unwrap();
    let since =
        |tracking: &ChangeTracking, point: &TrackingPoint| match tracking.changes_since(point) {
            Since::Known(known) => known.ranges,
            Since::Unknown(reason) => panic!("{reason}"),
        };
    let one = |at: u64| vec![at..at + 4 * KIB];
    let first = tracking.mark();
    at_once(|| drop(plan(&chain, 60 * KIB, 4 * KIB)));
    let flight = plan(&chain, 0, 4 * KIB).begin();
    let during = tracking.mark();
    carry_out(&flight, &bytes(4 * KIB, 1));
    at_once(|| flight.commit()).unwrap();
    assert_eq!(since(&tracking, &during), one(0), "committed after the point");
    let failed = plan(&chain, 0, 4 * KIB).begin();
    let point = tracking.mark();
    at_once(|| failed.failed());
    assert_eq!(since(&tracking, &point), one(0), "a part of it may have been written");
    let lost = plan(&chain, 8 * KIB, 4 * KIB).begin();
    at_once(|| drop(lost));
    for _ in 0..3 {
        let point = tracking.mark();
        assert_eq!(since(&tracking, &point), one(8 * KIB), "it may still arrive");
    }
    let later = chain.track_changes(TrackingOptions::new().grain(4096)).unwrap();
    let point = later.mark();
    assert_eq!(since(&later, &point), one(8 * KIB), "tracked from later on");
    assert_eq!(since(&tracking, &first), [0..4 * KIB, 8 * KIB..12 * KIB]);
}

/// Each thread has sectors of its own in blocks that all of them write to.
#[test]
fn threads_that_plan_and_write_in_the_same_blocks_lose_nothing() {
    const THREADS: u64 = 3;
    const BLOCKS: u64 = 12;
    for kind in [0, 1] {
        let host = SimHost::default();
        let (tip, chain) = disk(&host);
        if kind == 1 {
            chain.write_at(&bytes(20 * MIB, 77), 0).unwrap();
            Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
        }
        let mut expected = vec![0; (BLOCKS * MIB) as usize];
        chain.read_at(&mut expected, 0).unwrap();
        let expected = std::sync::Mutex::new(expected);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (chain, expected) = (&chain, &expected);
                scope.spawn(move || {
                    let mut rng = Rng::new(thread);
                    let mut open: Vec<(WriteInFlight, u64, Vec<u8>)> = Vec::new();
                    let mut ours = std::collections::HashMap::new();
                    for n in 0..400 {
                        let slot = rng.below(10) * THREADS + thread;
                        let at = rng.below(BLOCKS) * MIB + slot * 4 * KIB;
                        let text = bytes(4 * KIB, 1000 * thread + n);
                        let is_open = open.iter().any(|other| other.1 == at);
                        match rng.below(4) {
                            _ if is_open => {}
                            0 => {
                                chain.write_at(&text, at).unwrap();
                                ours.insert(at, text);
                            }
                            1 if rng.chance(1, 8) => chain.flush().unwrap(),
                            _ => open.push((plan(chain, at, 4 * KIB).begin(), at, text)),
                        }
                        while open.len() > 6 || (n == 399 && !open.is_empty()) {
                            let one = rng.below(open.len() as u64) as usize;
                            let (flight, at, text) = open.swap_remove(one);
                            carry_out(&flight, &text);
                            at_once(|| flight.commit()).unwrap();
                            ours.insert(at, text);
                        }
                    }
                    let mut expected = expected.lock().unwrap();
                    for (at, text) in ours {
                        expected[at as usize..][..text.len()].copy_from_slice(&text);
                    }
                });
            }
        });
        let expected = expected.into_inner().unwrap();
        assert!(reads(&chain, 0, &expected));
        chain.flush().unwrap();
        chain.close().unwrap();
        let tip = chain.layers()[0].path.clone().unwrap_or(tip);
        drop(chain);
        let chain = verdict::open(&host, &tip, false).unwrap();
        assert!(reads(&chain, 0, &expected), "opened again");
    }
}
