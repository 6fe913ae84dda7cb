//! Planned flushes: what they take, and what becomes of them.

use std::io;
use std::sync::Arc;

use avhdx::ops::{Checkpoint, Merge};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, FlushPlan, OneFlush, PlannedFlush};

use crate::caller::at_once;
use crate::rules::{bytes, carry_out, disk, disk_with, flushes, places, reads};
use crate::sim::{FOLDER, SimHost};
use crate::{KIB, MIB, plan, verdict};

fn ready(chain: &DiffChain) -> FlushPlan {
    match at_once(|| chain.plan_flush()).unwrap() {
        PlannedFlush::Ready(plan) => plan,
        other => panic!("{other:?}"),
    }
}

/// Carries out a flush, and returns how often the file was flushed.
fn run(chain: &DiffChain) -> usize {
    let mut count = 0;
    let mut planned = at_once(|| chain.plan_flush()).unwrap();
    loop {
        planned = match planned {
            PlannedFlush::Done => return count,
            PlannedFlush::Wait(wait) => panic!("{wait:?}"),
            PlannedFlush::Ready(plan) => {
                let flight = at_once(|| plan.begin());
                for write in flight.writes() {
                    assert!(
                        write.at.get().is_multiple_of(4096)
                            && write.bytes.len().is_multiple_of(4096)
                    );
                    flight.storage().write_at(write.bytes, write.at.get()).unwrap();
                }
                if flight.has_flush() {
                    flight.storage().flush().unwrap();
                    count += 1;
                }
                at_once(|| flight.done()).unwrap()
            }
        };
    }
}

fn put(chain: &DiffChain, at: u64, text: &[u8]) {
    let flight = plan(chain, at, text.len() as u64).begin();
    carry_out(&flight, text);
    at_once(|| flight.commit()).unwrap();
}

/// The bytes at the start of the disk in the files as they are, read through the log.
fn in_files(host: &SimHost, len: u64) -> Vec<u8> {
    let files = host.files();
    let chain =
        verdict::open(&SimHost::new(files), &std::path::Path::new(FOLDER).join("base.vhdx"), false);
    let mut read = vec![0; len as usize];
    chain.unwrap().read_at(&mut read, 0).unwrap();
    read
}

#[test]
fn a_planned_flush_costs_what_a_flush_costs() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    assert_eq!(run(&chain), 0, "nothing changed");
    put(&chain, 0, &bytes(8 * KIB, 1));
    assert_eq!(run(&chain), 1, "a fresh block that read as zeros");
    assert_eq!(run(&chain), 0, "nothing changed since");
    put(&chain, 4 * KIB, &bytes(8 * KIB, 2));
    assert_eq!(run(&chain), 1, "in place");
    chain.discard(0..MIB).unwrap();
    assert_eq!(run(&chain), 1, "a discard");
    let host = SimHost::default();
    let (_, chain) = disk_with(&host, OneFlush::Never);
    put(&chain, 0, &bytes(8 * KIB, 1));
    assert_eq!(run(&chain), 2, "payload first");
}

#[test]
fn a_planned_flush_makes_durable_what_was_committed_before() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    let text = bytes(8 * KIB, 1);
    put(&chain, 0, &text);
    run(&chain);
    assert_eq!(in_files(&host, 8 * KIB), text, "the log of the file names it");
    // What is committed while a flush is in flight belongs to the next.
    put(&chain, MIB, &text);
    let flight = ready(&chain).begin();
    put(&chain, 2 * MIB, &text);
    for write in flight.writes() {
        flight.storage().write_at(write.bytes, write.at.get()).unwrap();
    }
    if flight.has_flush() {
        flight.storage().flush().unwrap();
    }
    let mut planned = at_once(|| flight.done()).unwrap();
    while let PlannedFlush::Ready(plan) = planned {
        plan.run().unwrap();
        planned = at_once(|| chain.plan_flush()).unwrap();
    }
    assert!(matches!(planned, PlannedFlush::Done), "{planned:?}");
    let files = host.files();
    let layer = verdict::layer(&files, &std::path::Path::new(FOLDER).join("base.vhdx")).unwrap();
    assert_eq!(layer.faults(), Vec::<String>::new());
    assert!(reads(&chain, 2 * MIB, &text));
}

#[test]
fn a_planned_flush_dropped_between_its_steps_leaves_all_to_the_next() {
    for steps in 0..3 {
        let host = SimHost::default();
        let (_, chain) = disk(&host);
        // Pages to write to their places, and a discard.
        put(&chain, 4 * MIB, &bytes(8 * KIB, 4));
        run(&chain);
        chain.discard(4 * MIB..5 * MIB).unwrap();
        let text = bytes(8 * KIB, 1);
        put(&chain, 0, &text);
        let mut planned = at_once(|| chain.plan_flush()).unwrap();
        let mut is_done = false;
        for _ in 0..steps {
            let PlannedFlush::Ready(plan) = planned else { break };
            let flight = plan.begin();
            for write in flight.writes() {
                flight.storage().write_at(write.bytes, write.at.get()).unwrap();
            }
            if flight.has_flush() {
                flight.storage().flush().unwrap();
            }
            planned = at_once(|| flight.done()).unwrap();
            is_done = matches!(planned, PlannedFlush::Done);
        }
        let events = host.events().len();
        at_once(|| drop(planned));
        assert_eq!(host.events().len(), events, "nothing was written");
        if !is_done {
            let before = flushes(&host);
            chain.flush().unwrap();
            assert!(flushes(&host) > before, "{steps} steps: something was left");
        }
        assert_eq!(in_files(&host, 8 * KIB), text, "{steps} steps");
        chain.close().unwrap();
        let layer =
            verdict::layer(&host.files(), &std::path::Path::new(FOLDER).join("base.vhdx")).unwrap();
        assert_eq!(layer.faults(), Vec::<String>::new());
    }
}

#[test]
fn space_freed_before_a_dropped_flush_is_used_again_after_the_next() {
    let host = SimHost::default();
    let (_, chain) = disk_with(&host, OneFlush::Never);
    chain.write_at(&bytes(8 * KIB, 4), 4 * MIB).unwrap();
    chain.flush().unwrap();
    let place = places(&plan(&chain, 4 * MIB, 512).begin());
    drop(chain);
    let tip = std::path::Path::new(FOLDER).join("base.vhdx");
    let chain =
        verdict::options(&host).writable(true).one_flush(OneFlush::Never).open(&tip).unwrap();
    chain.write_at(&[1; 512], 20 * MIB).unwrap();
    chain.flush().unwrap();
    chain.discard(4 * MIB..5 * MIB).unwrap();
    let planned = at_once(|| chain.plan_flush()).unwrap();
    // The snapshot is taken; it is not logged yet.
    assert!(matches!(planned, PlannedFlush::Ready(_)), "{planned:?}");
    at_once(|| drop(planned));
    chain.flush().unwrap();
    chain.write_at(&bytes(8 * KIB, 9), 9 * MIB).unwrap();
    let flight = plan(&chain, 9 * MIB, 512).begin();
    assert_eq!(places(&flight), place);
    flight.failed();
}

#[test]
fn a_planned_flush_dropped_in_flight_poisons_the_chain() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    put(&chain, 0, &bytes(8 * KIB, 1));
    at_once(|| drop(ready(&chain).begin()));
    let error =
        chain.write_at(&[1; 512], 0).map(|()| chain.flush()).and_then(|done| done).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
    assert!(error.found().unwrap().contains("dropped in flight"), "{error}");
    assert_eq!(at_once(|| chain.plan_flush()).unwrap_err().kind(), ErrorKind::Poisoned);
    assert!(reads(&chain, 0, &bytes(8 * KIB, 1)), "reads go on");
    assert_eq!(chain.close().unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn a_step_that_failed_poisons_the_chain_and_is_reported_with_its_cause() {
    let host = SimHost::default();
    let (tip, chain) = disk(&host);
    put(&chain, 0, &bytes(8 * KIB, 1));
    let flight = ready(&chain).begin();
    let error = at_once(|| flight.failed(io::Error::from(io::ErrorKind::StorageFull)));
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "flush.step"));
    assert!(error.to_string().contains(&*tip.to_string_lossy()), "{error}");
    let cause = std::error::Error::source(&error).unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::StorageFull);
    assert_eq!(chain.flush().unwrap_err().kind(), ErrorKind::Poisoned);
}

#[test]
fn what_needs_the_session_waits_for_a_planned_flush_or_is_refused() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    put(&chain, 0, &bytes(8 * KIB, 1));
    let flight = ready(&chain).begin();
    let second = at_once(|| chain.plan_flush()).unwrap();
    let PlannedFlush::Wait(wait) = second else { panic!("{second:?}") };
    for error in [chain.close().unwrap_err(), Checkpoint::new().run(&chain).map(drop).unwrap_err()]
    {
        assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "write.plans-open"));
    }
    let other = chain.clone();
    let (flusher, waiter) =
        (std::thread::spawn(move || other.flush()), std::thread::spawn(move || wait.run()));
    // Reads, and writes that find room, go on.
    put(&chain, MIB, &bytes(8 * KIB, 3));
    assert!(reads(&chain, MIB, &bytes(8 * KIB, 3)));
    std::thread::sleep(std::time::Duration::from_millis(30));
    assert!(!flusher.is_finished() && !waiter.is_finished());
    for write in flight.writes() {
        flight.storage().write_at(write.bytes, write.at.get()).unwrap();
    }
    if flight.has_flush() {
        flight.storage().flush().unwrap();
    }
    if let PlannedFlush::Ready(plan) = at_once(|| flight.done()).unwrap() {
        plan.run().unwrap();
    }
    waiter.join().unwrap().unwrap();
    flusher.join().unwrap().unwrap();
    chain.close().unwrap();
}

/// The commits of many planned writes may change more pages than one log entry holds: a commit that logs them in parts
/// has to read the file.
#[test]
fn more_pages_than_a_log_entry_holds_are_flushed_by_a_wait() {
    let host = SimHost::default();
    let tip = std::path::Path::new(FOLDER).join("wide.vhdx");
    let pages = 300;
    let size = pages * 512 * MIB;
    let options = CreateOptions::dynamic(size).block_size(1 << 20);
    drop(options.create_on(Arc::new(host.clone()), &tip).unwrap());
    let chain = verdict::options(&host).writable(true).open(&tip).unwrap();
    chain.write_at(&[1; 512], 0).unwrap();
    chain.flush().unwrap();
    let text = bytes(512, 3);
    let flights: Vec<_> = (0..pages).map(|n| plan(&chain, n * 512 * MIB, 512).begin()).collect();
    for flight in flights {
        carry_out(&flight, &text);
        at_once(|| flight.commit()).unwrap();
    }
    let mut waits = 0;
    let mut planned = at_once(|| chain.plan_flush()).unwrap();
    loop {
        planned = match planned {
            PlannedFlush::Done => break,
            PlannedFlush::Ready(plan) => {
                let flight = plan.begin();
                for write in flight.writes() {
                    flight.storage().write_at(write.bytes, write.at.get()).unwrap();
                }
                if flight.has_flush() {
                    flight.storage().flush().unwrap();
                }
                at_once(|| flight.done()).unwrap()
            }
            PlannedFlush::Wait(wait) => {
                waits += 1;
                wait.run().unwrap();
                at_once(|| chain.plan_flush()).unwrap()
            }
        };
    }
    assert_eq!(waits, 1);
    let layer = verdict::layer(&host.files(), &tip).unwrap();
    assert_eq!(layer.faults(), Vec::<String>::new());
    assert!((0..pages).all(|n| reads(&chain, n * 512 * MIB, &text)));
    chain.close().unwrap();
}

#[test]
fn what_is_kept_to_wait_for_holds_up_no_merge() {
    let host = SimHost::default();
    let (_, chain) = disk(&host);
    put(&chain, 0, &bytes(8 * KIB, 1));
    let first = ready(&chain);
    let PlannedFlush::Wait(wait) = at_once(|| chain.plan_flush()).unwrap() else {
        panic!("two flushes at a time");
    };
    first.run().unwrap();
    // The tip that is waited for becomes a parent, and takes the data of its child.
    Checkpoint::new().run(&chain).unwrap();
    put(&chain, 4 * KIB, &bytes(4 * KIB, 2));
    Merge::new(chain.layers()[0].id).run(&chain).unwrap();
    wait.run().unwrap();
    assert!(reads(&chain, 0, &bytes(8 * KIB, 1)[..4 << 10]));
    assert!(reads(&chain, 4 * KIB, &bytes(4 * KIB, 2)));
    chain.close().unwrap();
}
