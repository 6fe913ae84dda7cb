//! Read plans that are held while the disk changes.

use avhdx::{DiffChain, Disk, Planned, PlannedSource, ReadPlan};

use crate::held::{BLOCK, close_and_judge, pair, place, read, tag, write};
use crate::tags::{self, Says};
use crate::{MIB, SECTOR};

/// Plans a read of these sectors, and loads the tables that it needs.
pub fn plan(chain: &DiffChain, first: u64, sectors: u64) -> ReadPlan {
    let range = first * SECTOR..(first + sectors) * SECTOR;
    let mut planned = chain.plan_read(range).unwrap();
    loop {
        planned = match planned {
            Planned::Ready(plan) => return plan,
            Planned::Load(load) => {
                let mut bytes = vec![0; load.len()];
                load.storage().read_exact_at(&mut bytes, load.at().get()).unwrap();
                load.supply(&bytes).unwrap()
            }
        };
    }
}

/// The tags of the plan's sectors.
fn by(plan: &ReadPlan) -> Vec<Says> {
    let mut bytes = vec![0xAA; (plan.range().end - plan.range().start) as usize];
    plan.read(&mut bytes).unwrap();
    bytes.chunks(SECTOR as usize).map(tags::says).collect()
}

fn tags_of(turn: u64, first: u64, sectors: u64) -> Vec<Says> {
    (first..first + sectors).map(|sector| tag(turn, sector)).collect()
}

#[test]
fn a_plan_keeps_what_it_names_from_all_others_until_it_is_dropped() {
    let (_, pair, chain) = pair(16 * MIB);
    write(&chain, 1, 0, 4 * BLOCK);
    chain.flush().unwrap();
    let places = [0, 1, 2, 3].map(|block| place(&chain, block * MIB));
    let held = plan(&chain, 0, 4 * BLOCK);
    // It refers to the file of the tip.
    let named: Vec<_> = held.pieces().map(|piece| piece.source).collect();
    assert!(matches!(named[..], [PlannedSource::Data { layer, at, .. }]
            if layer == chain.tip().id() && at.get() == places[0]));

    chain.discard(0..4 * MIB).unwrap();
    chain.flush().unwrap();
    // Others continue, and none gets one of these places.
    for block in 4..8 {
        write(&chain, 2, block * BLOCK, BLOCK);
        chain.flush().unwrap();
        assert!(!places.contains(&place(&chain, block * MIB)));
    }
    assert_eq!(by(&held), tags_of(1, 0, 4 * BLOCK));
    // Nor is it cut off, although everything after it is.
    chain.discard(4 * MIB..8 * MIB).unwrap();
    chain.close().unwrap();
    assert_eq!(by(&held), tags_of(1, 0, 4 * BLOCK));
    // Also in the next session.
    write(&chain, 3, 8 * BLOCK, BLOCK);
    chain.flush().unwrap();
    assert_eq!(by(&held), tags_of(1, 0, 4 * BLOCK));

    drop(held);
    // Now it is available, before the file grows.
    let len = chain.layers()[0].file_len;
    for block in 9..13 {
        write(&chain, 4, block * BLOCK, BLOCK);
    }
    assert_eq!(chain.layers()[0].file_len, len);
    assert_eq!((read(&chain, 0), read(&chain, 9 * BLOCK)), (Says::Zero, tag(4, 9 * BLOCK)));
    close_and_judge(chain, &pair);
}

#[test]
fn a_plan_that_was_only_begun_keeps_what_it_found() {
    // Too little for a table: each step asks for one.
    let (_, pair, first) = pair(16 * MIB);
    write(&first, 1, 0, BLOCK);
    first.close().unwrap();
    drop(first);
    let chain = pair.open(true, 0);
    let at = place(&chain, 0);
    // The block, and sectors of the parents.
    let mut planned = chain.plan_read(0..2 * MIB).unwrap();
    let Planned::Load(load) = planned else { panic!("nothing to load") };
    planned = load.load().unwrap();
    let Planned::Load(load) = planned else { panic!("the parents' tables are at hand") };

    chain.discard(0..MIB).unwrap();
    chain.flush().unwrap();
    write(&chain, 2, 4 * BLOCK, BLOCK);
    chain.flush().unwrap();
    planned = load.load().unwrap();
    let plan = loop {
        planned = match planned {
            Planned::Ready(plan) => break plan,
            Planned::Load(load) => load.load().unwrap(),
        };
    };
    let found = by(&plan);
    assert_eq!(found[..BLOCK as usize], tags_of(1, 0, BLOCK));
    assert_ne!(place(&chain, 4 * MIB), at);
    drop(plan);
    write(&chain, 3, 5 * BLOCK, BLOCK);
    assert_eq!(place(&chain, 5 * MIB), at);
    close_and_judge(chain, &pair);
}

#[test]
fn what_is_written_in_place_shows_by_an_old_plan() {
    let (_, pair, chain) = pair(8 * MIB);
    write(&chain, 1, 0, BLOCK);
    let held = plan(&chain, 0, 16);
    write(&chain, 2, 8, 8);
    let found = by(&held);
    assert_eq!((&found[..8], &found[8..]), (&tags_of(1, 0, 8)[..], &tags_of(2, 8, 8)[..]));
    assert_eq!(by(&plan(&chain, 0, 16)), found);
    drop(held);
    close_and_judge(chain, &pair);
}

/// A plan may outlive everything else of a chain: the session ends with it.
#[test]
fn a_plan_outlives_its_chain() {
    let (_, pair, chain) = pair(8 * MIB);
    write(&chain, 1, 0, BLOCK);
    let held = plan(&chain, 0, BLOCK);
    drop(chain);
    assert_eq!(by(&held), tags_of(1, 0, BLOCK));
    let ended = std::thread::spawn(move || drop(held));
    ended.join().unwrap();
    let chain = pair.open(true, 64 << 20);
    assert_eq!(read(&chain, 5), tag(1, 5));
    close_and_judge(chain, &pair);
}
