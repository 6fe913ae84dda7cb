//! `DiffChain::track_changes`, compared with a model of what was written, and with copies kept by what it returns.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use avhdx::ops::{Checkpoint, Merge, Revert};
use avhdx::storage::Host;
use avhdx::{
    ChangeTracking, CreateOptions, DiffChain, Disk, ErrorKind, KnownChanges, Lock, OpenOptions,
    Since, TrackingOptions, TrackingPoint, UnknownReason, Zeroing,
};
use avhdx_testkit::rng::Rng;

use crate::common::MIB;
use crate::common::disk::flat;
use crate::sim::{Arrived, FOLDER, Refusal, SimHost, Step};

const SIZE: u64 = 12 * MIB;

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn options(host: &SimHost) -> OpenOptions {
    OpenOptions::new().host(Arc::new(host.clone())).writable(true)
}

/// A chain of one layer on a simulated host.
fn machine() -> (SimHost, DiffChain) {
    let host = SimHost::default();
    let create = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    drop(create.create_on(Arc::new(host.clone()) as Arc<dyn Host>, file("base.vhdx")).unwrap());
    let chain = options(&host).open(file("base.vhdx")).unwrap();
    (host, chain)
}

fn checkpoint(chain: &DiffChain, name: &str) {
    Checkpoint::new().path(file(name)).block_size(1 << 20).run(chain).unwrap();
}

fn track(chain: &DiffChain) -> ChangeTracking {
    chain.track_changes(TrackingOptions::new()).unwrap()
}

fn known(since: Since) -> KnownChanges {
    match since {
        Since::Known(changes) => changes,
        Since::Unknown(reason) => panic!("{reason}"),
    }
}

fn reason(since: Since) -> UnknownReason {
    match since {
        Since::Unknown(reason) => reason,
        Since::Known(changes) => panic!("{changes:?}"),
    }
}

/// A copy of the disk that is kept up to date by what is returned as changed.
struct Copied {
    bytes: Vec<u8>,
    point: TrackingPoint,
}

impl Copied {
    fn full(chain: &DiffChain, tracking: &ChangeTracking) -> Self {
        let point = tracking.mark();
        Self { bytes: flat(chain), point }
    }

    fn update(&mut self, chain: &DiffChain, tracking: &ChangeTracking) {
        let changes = known(tracking.changes_since(&self.point));
        assert_eq!(changes.from, self.point);
        for range in changes.ranges {
            let bytes = &mut self.bytes[range.start as usize..range.end as usize];
            chain.read_at(bytes, range.start).unwrap();
        }
        self.point = changes.until;
    }

    fn is_complete(&self, chain: &DiffChain) {
        assert!(self.bytes == flat(chain), "the copy lacks a change");
    }
}

/// Changes some bytes in one of several ways, and returns which.
fn change_something(chain: &DiffChain, rng: &mut Rng) -> Range<u64> {
    let size = chain.geometry().size;
    let most = [600, 9000, 300_000, 3 * MIB][rng.below(4) as usize];
    let len = 1 + rng.below(most);
    let at = rng.below(size);
    let range = at..size.min(at + len);
    match rng.below(6) {
        0 => chain.write_zeroes(range.clone(), Zeroing::KeepSpace).unwrap(),
        1 => chain.write_zeroes(range.clone(), Zeroing::MayUnmap).unwrap(),
        2 => chain.discard(range.clone()).unwrap(),
        _ => {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            rng.fill(&mut bytes);
            chain.write_at(&bytes, at).unwrap();
        }
    }
    range
}

/// The ranges of whole grains that these changes touch.
fn grains(changes: &[Range<u64>], grain: u64, size: u64) -> Vec<Range<u64>> {
    let touched: BTreeSet<u64> =
        changes.iter().flat_map(|range| range.start / grain..range.end.div_ceil(grain)).collect();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for n in touched {
        let range = n * grain..size.min((n + 1) * grain);
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    ranges
}

#[test]
fn what_changed_since_each_point_is_returned_in_whole_grains() {
    for (seed, grain) in [(1, 512), (2, 4096), (3, 64 << 10), (4, 2 << 20), (5, 16 << 20)] {
        let (_, chain) = machine();
        let tracking = chain.track_changes(TrackingOptions::new().grain(grain)).unwrap();
        let clone = chain.clone();
        let mut rng = Rng::new(seed);
        let mut changes: Vec<Range<u64>> = Vec::new();
        let mut points = Vec::new();
        for round in 0..60 {
            if rng.chance(1, 3) {
                points.push((tracking.mark(), changes.len()));
            }
            let disk = if rng.chance(1, 2) { &chain } else { &clone };
            if round == 20 || round == 40 {
                checkpoint(&chain, &format!("{round}.avhdx"));
            } else if rng.chance(5, 6) {
                changes.push(change_something(disk, &mut rng));
            }
            if points.is_empty() {
                continue;
            }
            let (point, seen) = points[rng.below(points.len() as u64) as usize];
            let found = known(tracking.changes_since(&point));
            assert_eq!(found.grain, grain);
            assert_eq!(found.ranges, grains(&changes[seen..], grain, SIZE), "seed {seed}");
            points.push((found.until, changes.len()));
        }
        // An empty change is none, nor are a read and a flush.
        let point = tracking.mark();
        chain.write_at(&[], 5).unwrap();
        chain.discard(7..7).unwrap();
        chain.flush().unwrap();
        flat(&chain);
        assert_eq!(known(tracking.changes_since(&point)).ranges, []);
    }
}

/// Whoever reads after a point and then what changed since has every byte, also while the disk is written to all the
/// time and its tip is replaced.
#[test]
fn a_copy_of_a_disk_in_use_misses_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.vhdx");
    drop(CreateOptions::dynamic(SIZE).block_size(1 << 20).create(&path).unwrap());
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    let tracking = chain.track_changes(TrackingOptions::new().grain(4096)).unwrap();
    let is_over = AtomicBool::new(false);
    let mut copies: Vec<Copied> = Vec::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|n| {
                let (chain, is_over) = (chain.clone(), &is_over);
                scope.spawn(move || {
                    let mut rng = Rng::new(100 + n);
                    while !is_over.load(Ordering::SeqCst) {
                        change_something(&chain, &mut rng);
                    }
                })
            })
            .collect();
        for round in 0..12 {
            copies.push(Copied::full(&chain, &tracking));
            if round % 4 == 1 {
                let path = folder.path().join(format!("web_{round}.avhdx"));
                Checkpoint::new().path(path).run(&chain).unwrap();
            }
            copies.iter_mut().step_by(2).for_each(|copy| copy.update(&chain, &tracking));
        }
        is_over.store(true, Ordering::SeqCst);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    for copy in &mut copies {
        copy.update(&chain, &tracking);
        copy.is_complete(&chain);
    }
}

/// A write that a point finds under way counts as a change after it, also the part of it that has arrived before.
#[test]
fn a_write_under_way_belongs_to_the_later_period() {
    let (host, chain) = machine();
    chain.write_at(&[1; 4096], 0).unwrap();
    chain.flush().unwrap();
    let tracking = track(&chain);
    let start = tracking.mark();
    let (arrived, has_arrived) = channel::<()>();
    let (proceed, may_proceed) = channel::<()>();
    let gate = Mutex::new((arrived, may_proceed, 0));
    // It stops before the payload of its second block.
    host.hook(move |step| {
        if let Step::Write { at: 4_194_304.., len: 4096, .. } = step {
            let mut gate = gate.lock().unwrap();
            gate.2 += 1;
            if gate.2 == 2 {
                gate.0.send(()).unwrap();
                // The test is over if nobody sends.
                let _ = gate.1.recv();
            }
        }
        Ok(())
    });
    let border = 6 * MIB;
    let chain = &chain;
    std::thread::scope(|scope| {
        // Dropped by a panic, before the writer is waited for.
        let proceed = proceed;
        let writer = scope.spawn(move || chain.write_at(&[2; 8192], border - 4096).unwrap());
        has_arrived.recv().unwrap();
        let so_far = known(tracking.changes_since(&start));
        assert_eq!(so_far.ranges, [], "nothing has ended");
        let point = tracking.mark();
        let mut seen = [0; 8192];
        chain.read_at(&mut seen, border - 4096).unwrap();
        assert_eq!((seen[0], seen[4096]), (2, 0), "half of it shows");
        proceed.send(()).unwrap();
        writer.join().unwrap();
        for point in [start, so_far.until, point] {
            let changes = known(tracking.changes_since(&point));
            assert_eq!(changes.ranges, [border - (64 << 10)..border + (64 << 10)]);
        }
    });
    host.unhook();
    let point = tracking.mark();
    assert_eq!(known(tracking.changes_since(&point)).ranges, []);
}

#[test]
fn a_failed_write_counts_as_a_change() {
    for arrived in [Arrived::Nothing, Arrived::Half, Arrived::All] {
        let (host, chain) = machine();
        chain.write_at(&[1; 1 << 20], MIB).unwrap();
        let tracking = track(&chain);
        let mut copy = Copied::full(&chain, &tracking);
        host.refuse(move |_, step| match step {
            Step::Write { len: 100_000.., .. } => Some(Refusal { code: 28, arrived }),
            _ => None,
        });
        let error = chain.write_at(&[2; 200_704], MIB + 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        host.relent();
        let changes = known(tracking.changes_since(&copy.point));
        assert_eq!(changes.ranges, [MIB..MIB + (256 << 10)]);
        copy.update(&chain, &tracking);
        copy.is_complete(&chain);
    }
}

/// After a crash or a reopening, nothing is known, even if nothing changed.
#[test]
fn points_of_other_tracking_are_unknown() {
    let (host, chain) = machine();
    let tracking = track(&chain);
    let other = track(&chain);
    chain.write_at(&[1; 100], 0).unwrap();
    let point = tracking.mark();
    assert_eq!(point.session, tracking.session());
    assert_eq!(point.identity, chain.tip().data_write_guid());
    assert_eq!(reason(other.changes_since(&point)), UnknownReason::OtherSession);
    assert_eq!(known(tracking.changes_since(&point)).ranges, []);
    // As stored by the caller.
    let stored = TrackingPoint::new(point.session, point.number, point.identity);
    assert_eq!(known(tracking.changes_since(&stored)).ranges, []);
    for number in [0, point.number + 100, u64::MAX] {
        let made_up = TrackingPoint::new(point.session, number, point.identity);
        assert_eq!(reason(tracking.changes_since(&made_up)), UnknownReason::NoSuchPoint);
    }
    // A crash: the files as they are, and nothing in memory.
    chain.write_at(&[2; 100], 0).unwrap();
    chain.flush().unwrap();
    let crashed = SimHost::new(host.files());
    let chain = options(&crashed).open(file("base.vhdx")).unwrap();
    let after = track(&chain);
    assert_eq!(reason(after.changes_since(&stored)), UnknownReason::OtherSession);
    let mut copy = Copied::full(&chain, &after);
    chain.write_at(&[3; 100], MIB).unwrap();
    copy.update(&chain, &after);
    copy.is_complete(&chain);
    // A reopening.
    drop(after);
    chain.close().unwrap();
    drop(chain);
    let chain = options(&crashed).open(file("base.vhdx")).unwrap();
    assert_eq!(reason(track(&chain).changes_since(&copy.point)), UnknownReason::OtherSession);
}

/// The handle may outlive the chain that it was made of, and a close does not end it.
#[test]
fn tracking_goes_on_over_a_close() {
    let (_, chain) = machine();
    let tracking = track(&chain);
    let mut copy = Copied::full(&chain, &tracking);
    chain.write_at(&[1; 100], 0).unwrap();
    chain.close().unwrap();
    let clone = chain.clone();
    drop(chain);
    clone.write_at(&[2; 100], 3 * MIB).unwrap();
    assert_eq!(known(tracking.changes_since(&copy.point)).ranges.len(), 2);
    copy.update(&clone, &tracking);
    copy.is_complete(&clone);
}

#[test]
fn points_before_a_merge_are_unknown_and_later_ones_follow_the_tip() {
    // The tip, and a layer below it.
    for layer in [0, 1] {
        let (_, chain) = machine();
        chain.write_at(&[1; 1 << 20], 0).unwrap();
        checkpoint(&chain, "a.avhdx");
        chain.write_at(&[2; 1 << 20], MIB).unwrap();
        checkpoint(&chain, "b.avhdx");
        chain.write_at(&[3; 1 << 20], 2 * MIB).unwrap();
        let (tracking, other) = (track(&chain), track(&chain));
        let point = tracking.mark();
        chain.write_at(&[4; 100], 0).unwrap();
        Merge::new(chain.layers()[layer].id).run(&chain).unwrap();
        assert_eq!(reason(tracking.changes_since(&point)), UnknownReason::Merged);
        assert_eq!(reason(tracking.changes_since(&point)), UnknownReason::Merged, "for good");
        for tracking in [tracking, other] {
            let mut copy = Copied::full(&chain, &tracking);
            chain.write_at(&[5; 100], 4 * MIB).unwrap();
            chain.discard(0..MIB).unwrap();
            assert_eq!(known(tracking.changes_since(&copy.point)).ranges.len(), 2);
            copy.update(&chain, &tracking);
            copy.is_complete(&chain);
        }
    }
}

#[test]
fn points_before_a_revert_are_unknown_and_later_ones_follow_the_tip() {
    let (_, chain) = machine();
    chain.write_at(&[1; 1 << 20], 0).unwrap();
    let base = chain.layers()[0].id;
    checkpoint(&chain, "a.avhdx");
    let tracking = track(&chain);
    let point = tracking.mark();
    chain.write_at(&[2; 1 << 20], 0).unwrap();
    Revert::to(base).path(file("b.avhdx")).run(&chain).unwrap();
    assert_eq!(reason(tracking.changes_since(&point)), UnknownReason::Reverted);
    let mut copy = Copied::full(&chain, &tracking);
    chain.write_at(&[3; 100], 0).unwrap();
    copy.update(&chain, &tracking);
    copy.is_complete(&chain);
}

/// A point that is made while another thread reverts is one of the disk before, and unknown, or of the disk
/// after.
#[test]
fn a_point_made_during_a_revert_is_of_one_of_the_two_disks() {
    let (_, chain) = machine();
    chain.write_at(&[1; 1 << 20], 0).unwrap();
    let base = chain.layers()[0].id;
    let tracking = track(&chain);
    for round in 0..15 {
        checkpoint(&chain, &format!("a{round}.avhdx"));
        chain.write_at(&[2 + round; 1 << 20], 0).unwrap();
        let is_over = AtomicBool::new(false);
        let copies = std::thread::scope(|scope| {
            let copier = scope.spawn(|| {
                let mut copies = Vec::new();
                while !is_over.load(Ordering::SeqCst) {
                    let point = tracking.mark();
                    let mut bytes = vec![0; 16];
                    chain.read_at(&mut bytes, 0).unwrap();
                    copies.push((point, bytes));
                }
                copies
            });
            let path = file(&format!("b{round}.avhdx"));
            Revert::to(base).path(path).run(&chain).unwrap();
            is_over.store(true, Ordering::SeqCst);
            copier.join().unwrap()
        });
        for (point, bytes) in copies {
            if let Since::Known(changes) = tracking.changes_since(&point) {
                assert_eq!(changes.ranges, []);
                assert_eq!(bytes, [1; 16], "round {round}: the disk before the revert");
            }
        }
    }
}

#[test]
fn a_foreign_write_makes_earlier_points_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("web.vhdx");
    drop(CreateOptions::dynamic(SIZE).block_size(1 << 20).create(&base).unwrap());
    let open = |path: &Path| {
        let options = OpenOptions::new().writable(true).lock(Lock::None).orphan_children(true);
        options.open(path).unwrap()
    };
    let tip = folder.path().join("web_1.avhdx");
    let chain = open(&base);
    chain.write_at(&[1; 100], 0).unwrap();
    Checkpoint::new().path(&tip).run(&chain).unwrap();
    chain.close().unwrap();
    // The tip, and its parent.
    for path in [&tip, &base] {
        let chain = open(&tip);
        let tracking = track(&chain);
        let point = tracking.mark();
        assert_eq!(known(tracking.changes_since(&point)).ranges, []);
        let foreign = open(path);
        foreign.write_at(&[2; 100], 2 * MIB).unwrap();
        foreign.close().unwrap();
        assert_eq!(reason(tracking.changes_since(&point)), UnknownReason::ForeignWrite);
        let later = tracking.mark();
        assert_eq!(reason(tracking.changes_since(&later)), UnknownReason::ForeignWrite);
    }
}

#[test]
fn headers_that_cannot_be_read_leave_it_unknown() {
    let (host, chain) = machine();
    let tracking = track(&chain);
    let mut copy = Copied::full(&chain, &tracking);
    chain.write_at(&[1; 100], 0).unwrap();
    host.hook(|step| match step {
        Step::Read { at, .. } if at < MIB => Err(std::io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    });
    assert_eq!(reason(tracking.changes_since(&copy.point)), UnknownReason::Unverified);
    // It is known again with the host.
    host.unhook();
    copy.update(&chain, &tracking);
    copy.is_complete(&chain);
}

/// With too little memory, more is returned, never less.
#[test]
fn a_record_without_memory_grows_coarse_and_loses_nothing() {
    for memory in [0, 5000, 20_000] {
        let (_, chain) = machine();
        let options = TrackingOptions::new().grain(512).memory(memory);
        let tracking = chain.track_changes(options).unwrap();
        let mut rng = Rng::new(memory as u64);
        let mut points = vec![(Copied::full(&chain, &tracking), 0)];
        let mut changes = Vec::new();
        for round in 0..40 {
            let at = rng.below(SIZE - 600);
            chain.write_at(&[round; 600], at).unwrap();
            changes.push(at..at + 600);
            if round % 10 == 9 {
                points.push((Copied::full(&chain, &tracking), changes.len()));
            }
        }
        for (mut copy, seen) in points {
            let found = known(tracking.changes_since(&copy.point));
            assert!(found.grain > 512 && found.grain <= 2 * SIZE, "{}", found.grain);
            let least = grains(&changes[seen..], 512, SIZE);
            let most = grains(&changes[seen..], found.grain, SIZE);
            let has = |all: &[Range<u64>], part: &Range<u64>| {
                all.iter().any(|range| range.start <= part.start && part.end <= range.end)
            };
            assert!(least.iter().all(|range| has(&found.ranges, range)));
            // A grain that earlier changes share is coarse for them too, and never more than that.
            assert!(found.ranges.iter().all(|range| has(&most, range)));
            copy.update(&chain, &tracking);
            copy.is_complete(&chain);
        }
    }
}

/// A change of a huge disk takes up no more memory than allowed.
#[test]
fn a_huge_disk_is_tracked_in_little_memory() {
    let host = SimHost::default();
    let size = 64 << 40;
    let create = CreateOptions::dynamic(size).block_size(256 << 20);
    drop(create.create_on(Arc::new(host.clone()) as Arc<dyn Host>, file("base.vhdx")).unwrap());
    let chain = options(&host).open(file("base.vhdx")).unwrap();
    let tracking = chain.track_changes(TrackingOptions::new().memory(100_000)).unwrap();
    let point = tracking.mark();
    chain.write_at(&[1; 512], 5 << 40).unwrap();
    let found = known(tracking.changes_since(&point));
    let start = 5 << 40;
    assert_eq!((found.grain, found.ranges), (64 << 10, vec![start..start + (64 << 10)]));
    chain.discard(0..size).unwrap();
    let found = known(tracking.changes_since(&point));
    assert_eq!(found.ranges, [0..size]);
    assert!(size / found.grain <= 100_000 / 4, "{}", found.grain);
}

#[test]
fn only_a_writable_chain_is_tracked_and_in_grains_that_exist() {
    let (host, chain) = machine();
    let of =
        |chain: &DiffChain, options: TrackingOptions| chain.track_changes(options).unwrap_err();
    for grain in [0, 256, 3000, 2 << 30] {
        let error = of(&chain, TrackingOptions::new().grain(grain));
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "tracking.grain"));
    }
    let view = chain.view(chain.layers()[0].id).unwrap();
    assert_eq!(of(&view, TrackingOptions::new()).kind(), ErrorKind::ReadOnly);
    drop((view, chain));
    let reader = OpenOptions::new().host(Arc::new(host)).open(file("base.vhdx")).unwrap();
    assert_eq!(of(&reader, TrackingOptions::new()).kind(), ErrorKind::ReadOnly);
}

/// The files are the same as without tracking: it lives in memory.
#[test]
fn tracking_leaves_no_trace_in_the_files() {
    let sums = [false, true].map(|is_tracked| {
        let (host, chain) = machine();
        let tracking = is_tracked.then(|| track(&chain));
        host.record();
        chain.write_at(&[1; 100], 0).unwrap();
        let changes = tracking.map(|tracking| {
            let point = tracking.mark();
            known(tracking.changes_since(&point))
        });
        drop(changes);
        chain.write_at(&[2; 100], MIB).unwrap();
        host.events().len()
    });
    assert_eq!(sums[0], sums[1]);
}
