//! Block allocation tables larger than what is read or written at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{Check, Merge};
use avhdx::storage::Host;
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::naive::{Layer, Says};

use super::sim::SimHost;
use super::{MIB, base, file};

/// How many entries of a table are written at once.
const PIECE: u64 = MIB / 8;
/// Two pieces and a part. With bitmap entries in between, pieces end at other blocks.
const BLOCKS: u64 = 2 * PIECE + 9 * 1024;

fn layer(sim: &SimHost, name: &str) -> Layer {
    let bytes = sim.files().file(&file(name)).unwrap().clone();
    Layer::from_source(Arc::new(bytes)).unwrap()
}

fn is_sound(host: &Arc<dyn Host>, path: &Path) {
    let options = OpenOptions::new().host(Arc::clone(host));
    let report = Check::new().options(options).run(path).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

/// Blocks around both ends of the table and around the ends of its pieces.
fn places(blocks: u64) -> BTreeSet<u64> {
    let around = |block: u64| block.saturating_sub(40)..(block + 40).min(blocks);
    [0, 4096, PIECE, PIECE - 32, 2 * PIECE, 2 * PIECE - 64, blocks]
        .into_iter()
        .flat_map(around)
        .step_by(3)
        .collect()
}

fn mark(chain: &DiffChain, block: u64, seed: u64) {
    chain.write_at(&(block ^ seed << 40).to_le_bytes(), block * MIB + 512).unwrap();
}

#[test]
fn a_fixed_image_has_a_place_for_each_block_of_a_long_table() {
    let sim = SimHost::default();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let options = CreateOptions::fixed(BLOCKS * MIB).block_size(1 << 20);
    let chain = base(&host, &file("base.vhdx"), options);
    assert_eq!(chain.tip().count_blocks().unwrap().fully_present, BLOCKS);
    for block in places(BLOCKS) {
        mark(&chain, block, 1);
    }
    chain.close().unwrap();
    let layer = layer(&sim, "base.vhdx");
    // [MS-VHDX] 2.5: a bitmap entry follows every 4096 block entries. Blocks are consecutive in the file.
    let first = layer.bat_entry(0).unwrap();
    for block in 0..BLOCKS {
        assert_eq!(layer.bat_entry(block + block / 4096).unwrap(), first + block * MIB, "{block}");
    }
    let bytes = sim.files().file(&file("base.vhdx")).unwrap().clone();
    for block in places(BLOCKS) {
        let Says::Data(at) = layer.says(block * MIB / 512 + 1).unwrap() else { panic!("{block}") };
        let mut found = [0; 8];
        bytes.read(at, &mut found);
        assert_eq!(u64::from_le_bytes(found), block ^ 1 << 40);
    }
    is_sound(&host, &file("base.vhdx"));
}

/// The parent's table moves with its size, and is several pieces long before and after.
#[test]
fn a_long_table_moves_whole_when_a_merge_makes_the_disk_larger() {
    const LARGE: u64 = 2 * BLOCKS;
    let sim = SimHost::default();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let options = CreateOptions::dynamic(BLOCKS * MIB).block_size(1 << 20);
    let chain = base(&host, &file("base.vhdx"), options);
    let before = places(BLOCKS);
    before.iter().for_each(|block| mark(&chain, *block, 1));
    chain.close().unwrap();
    let parent = OpenOptions::new().host(Arc::clone(&host)).open_image(file("base.vhdx")).unwrap();
    let child = CreateOptions::child_of(&parent).unwrap().block_size(1 << 20).size(LARGE * MIB);
    drop(child.create_on(Arc::clone(&host), file("tip.avhdx")).unwrap());
    drop((parent, chain));
    let chain = super::writable(&host, &file("tip.avhdx"));
    let mut after = places(LARGE);
    after.retain(|block| block % 2 == 0);
    after.iter().for_each(|block| mark(&chain, *block, 2));
    Merge::new(chain.layers()[0].id).run(&chain).unwrap();
    chain.close().unwrap();
    let layer = layer(&sim, "base.vhdx");
    assert!(layer.bat().end - layer.bat().start >= LARGE * 8);
    let bytes = sim.files().file(&file("base.vhdx")).unwrap().clone();
    let mut held = 0;
    for block in 0..LARGE {
        let expected = match (after.contains(&block), before.contains(&block)) {
            (true, _) => Some(block ^ 2 << 40),
            (false, true) => Some(block ^ 1 << 40),
            (false, false) => None,
        };
        match (layer.says(block * MIB / 512 + 1).unwrap(), expected) {
            (Says::Data(at), Some(expected)) => {
                let mut found = [0; 8];
                bytes.read(at, &mut found);
                assert_eq!(u64::from_le_bytes(found), expected, "{block}");
                held += 1;
            }
            (Says::Zero | Says::NotHere, None) => {}
            (says, _) => panic!("{block}: {says:?}"),
        }
    }
    assert_eq!(held, before.union(&after).count());
    is_sound(&host, &file("base.vhdx"));
}
