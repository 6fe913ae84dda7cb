//! Seals through merges.

use std::path::Path;

use avhdx::ops::{Delete, Merge};
use avhdx::{ErrorKind, LayerId, OpenOptions};
use avhdx_seals::{Carried, Carry, Seal, SealFile, Verify, sweep};
use avhdx_testkit::naive::{Chain, Says};

use crate::common::{Files, long, naive_root, open, patch, seal_of};

/// Merges the layers `from..=to`, counted from the tip, and carries their seals.
fn merge(tip: &Path, from: usize, to: usize, keep_name: bool) -> Carried {
    let chain = OpenOptions::new().writable(true).open(tip).unwrap();
    let ids: Vec<LayerId> = chain.layers()[from..=to].iter().map(|layer| layer.id).collect();
    let seals = Carry::new().prove(&chain, &ids).unwrap();
    let merge = Merge::new(ids[0]).into_layer(*ids.last().unwrap()).keep_name(keep_name);
    let done = merge.shrink(true).run(&chain).unwrap();
    let tip = done.tip.unwrap_or(tip.to_owned());
    chain.close().unwrap();
    drop(chain);
    let chain = open(&tip);
    let result = chain.layers()[from].id;
    seals.seal(&chain, result).unwrap()
}

/// The files of a chain from the base up.
fn files_of(tip: &Path) -> Vec<std::path::PathBuf> {
    open(tip).layers().into_iter().rev().map(|layer| layer.path.unwrap()).collect()
}

#[test]
fn a_merge_leaves_the_seal_that_a_fresh_one_would_be() {
    for seed in 0..if long() { 60 } else { 12 } {
        let (from, to) = [(1, 2), (2, 3), (1, 3), (0, 1), (0, 3), (0, 2)][seed as usize % 6];
        let keep_name = from == 0 && seed % 4 < 2;
        let files = Files::random(300 + seed, 4);
        Seal::new().run(&files.chain()).unwrap();
        let fresh_read = |chain: &avhdx::DiffChain| {
            let sealed = Seal::new().again(true).run(chain).unwrap();
            (sealed.root, sealed.layers[from].read)
        };
        let carried = merge(files.tip(), from, to, keep_name);
        let tip = match (from, keep_name) {
            (0, false) => files.paths[3 - to].clone(),
            _ => files.tip().to_owned(),
        };
        let seed = format!("seed {seed}: {from} to {to}, {keep_name}");
        let chain = open(&tip);
        let verified = Verify::new().run(&chain).unwrap();
        assert!(verified.is_whole(), "{seed}: {:?}", verified.findings);
        assert_eq!(verified.root, Some(naive_root(&files_of(&tip))), "{seed}");
        let (path, hash) = carried.seal.unwrap();
        assert_eq!(Some(hash), verified.layers[from].hash, "{seed}");
        assert!(path.exists());
        let (root, read) = fresh_read(&chain);
        assert_eq!(root, verified.root, "{seed}");
        assert!(carried.read <= read, "{seed}: {} of {read}", carried.read);
        // No seal is left of a file that is no more.
        let seals = std::fs::read_dir(files.folder.path()).unwrap();
        let seals = seals.filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "seal")
        });
        assert_eq!(seals.count(), chain.layers().len(), "{seed}");
        assert!(carried.left.is_empty());
    }
}

#[test]
fn whole_leaves_are_taken_over_without_being_read() {
    let mut saved = 0;
    for seed in 400..410 {
        let files = Files::random(seed, 3);
        Seal::new().run(&files.chain()).unwrap();
        let carried = merge(files.tip(), 1, 2, false);
        let fresh = Seal::new().again(true).run(&files.chain()).unwrap();
        saved += fresh.layers[1].read - carried.read;
    }
    assert!(saved > 0);
}

#[test]
fn a_point_in_the_middle_is_deleted_and_the_chain_stays_sealed() {
    let files = Files::random(420, 4);
    Seal::new().run(&files.chain()).unwrap();
    let chain = OpenOptions::new().writable(true).open(files.tip()).unwrap();
    let ids: Vec<_> = chain.layers()[1..=2].iter().map(|layer| layer.id).collect();
    let seals = Carry::new().prove(&chain, &ids).unwrap();
    let done = Delete::point(ids[1]).shrink(true).run(&chain).unwrap();
    assert_eq!(done.removed.len(), 1);
    chain.close().unwrap();
    drop(chain);
    let chain = files.chain();
    seals.seal(&chain, chain.layers()[1].id).unwrap();
    let verified = Verify::new().run(&chain).unwrap();
    assert!(verified.is_whole(), "{:?}", verified.findings);
    assert_eq!(verified.root, Some(naive_root(&files_of(files.tip()))));
}

#[test]
fn a_changed_layer_is_not_merged() {
    let mut refused = [0, 0];
    for seed in 430..if long() { 470 } else { 440 } {
        let files = Files::random(seed, 3);
        Seal::new().run(&files.chain()).unwrap();
        let naive = Chain::open(&files.paths).unwrap();
        // Layer 1 moves into the base.
        for n in [0, 1] {
            let layer = &naive.0[n];
            let at = (0..layer.size / layer.sector).find_map(|s| match layer.says(s).unwrap() {
                Says::Data(at) if is_hashed(&naive, n, s) => Some(at as usize),
                _ => None,
            });
            let Some(at) = at else { continue };
            patch(&files.paths[n], |bytes| bytes[at] ^= 0x10);
            let chain = open(files.tip());
            let ids: Vec<_> = chain.layers()[1..=2].iter().map(|layer| layer.id).collect();
            let error = Carry::new().prove(&chain, &ids).unwrap_err();
            assert_eq!((error.code(), error.kind()), ("seal.changed", ErrorKind::Unproven));
            assert!(error.file().unwrap().ends_with(&format!("l{n}.vhdx")));
            refused[n] += 1;
            patch(&files.paths[n], |bytes| bytes[at] ^= 0x10);
        }
    }
    assert!(refused.iter().all(|n| *n > 0), "{refused:?}");
}

/// Whether a merge of layer 1 into the base hashes the sector anew or moves it.
fn is_hashed(naive: &Chain, n: usize, sector: u64) -> bool {
    if n == 1 {
        return true;
    }
    let (child, per_leaf) = (&naive.0[1], 65536 / naive.0[1].sector);
    let first = sector / per_leaf * per_leaf;
    let last = (first + per_leaf).min(child.size / child.sector);
    let says: Vec<_> = (first..last).map(|sector| child.says(sector).unwrap()).collect();
    let parents = says.iter().filter(|says| **says == Says::NotHere).count();
    parents > 0 && parents < says.len()
}

#[test]
fn layers_without_seals_are_merged_and_leave_none_that_is_wrong() {
    let files = Files::random(450, 3);
    Seal::new().run(&files.chain()).unwrap();
    std::fs::remove_file(seal_of(&files.paths[1])).unwrap();
    let carried = merge(files.tip(), 1, 2, false);
    assert_eq!(carried.seal, None);
    assert_eq!(carried.removed, [seal_of(&files.paths[0])]);
    let verified = Verify::new().run(&files.chain()).unwrap();
    assert_eq!(crate::common::codes(&verified), ["seal.missing"]);
}

#[test]
fn a_merge_without_carrying_leaves_seals_that_are_stale() {
    let files = Files::random(451, 3);
    Seal::new().run(&files.chain()).unwrap();
    let chain = OpenOptions::new().writable(true).open(files.tip()).unwrap();
    Merge::new(chain.layers()[1].id).shrink(true).run(&chain).unwrap();
    chain.close().unwrap();
    drop(chain);
    let verified = Verify::new().run(&files.chain()).unwrap();
    assert_eq!(crate::common::codes(&verified), ["seal.stale"]);
    // What is swept is what no layer has; other files stay.
    let foreign = seal_of(&files.folder.path().join("notes"));
    std::fs::write(&foreign, b"my own file").unwrap();
    let images =
        [files.paths[1].clone(), files.folder.path().join("notes"), files.paths[2].clone()];
    let swept = sweep(&avhdx::storage::LocalHost, &images, &files.chain());
    assert_eq!(swept.removed, [seal_of(&files.paths[1])]);
    assert!(foreign.exists());
    let host = avhdx::storage::LocalHost;
    assert!(SealFile::beside(&host, &files.paths[2]).unwrap().is_some());
}
