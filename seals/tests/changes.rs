//! What is found of images that are no longer as they were sealed.

use std::fs;

use avhdx::ops::{Compact, Label};
use avhdx::{Disk, OpenOptions};
use avhdx_seals::{LeftOut, Seal, Verify};
use avhdx_testkit::naive::{Chain, Says};
use avhdx_testkit::rng::Rng;

use crate::common::{Files, LEAF, codes, long, open, patch, seal_of};

#[test]
fn a_flipped_bit_is_found_in_each_layer_and_place() {
    let cases = if long() { 1000 } else { 240 };
    let (chains, mut rng) = (8, Rng::new(99));
    for seed in 100..100 + chains {
        let files = Files::random(seed, 3);
        Seal::new().run(&files.chain()).unwrap();
        let naive = Chain::open(&files.paths).unwrap();
        let mut left = cases / chains;
        while left > 0 {
            let n = rng.below(3) as usize;
            let layer = &naive.0[n];
            let sector = rng.below(layer.size / layer.sector);
            let Says::Data(at) = layer.says(sector).unwrap() else { continue };
            left -= 1;
            let byte = rng.below(layer.sector);
            let (place, bit) = ((at + byte) as usize, 1 << rng.below(8));
            patch(&files.paths[n], |bytes| bytes[place] ^= bit);
            let offset = sector * layer.sector + byte;
            let is_found = |verified: &avhdx_seals::Verified| {
                let [finding] = &verified.findings[..] else { return false };
                let leaf = offset / LEAF * LEAF;
                finding.code == "seal.changed"
                    && finding.file.ends_with(&format!("l{n}.vhdx"))
                    && finding.range == (leaf..(leaf + LEAF).min(layer.size))
            };
            let verified = Verify::new().run(&files.chain()).unwrap();
            assert!(is_found(&verified), "{seed}: {n} at {offset}: {:?}", verified.findings);
            // By its range alone, and not by another.
            let near = Verify::new().range(offset..offset + 1).run(&files.chain()).unwrap();
            assert!(is_found(&near));
            let beside = (offset / LEAF + 1) * LEAF;
            let far = Verify::new().range(beside..beside + 5 * LEAF).run(&files.chain()).unwrap();
            assert!(far.is_whole());
            patch(&files.paths[n], |bytes| bytes[place] ^= bit);
        }
        assert!(Verify::new().run(&files.chain()).unwrap().is_whole());
    }
}

#[test]
fn another_map_is_found_unless_the_disk_reads_the_same() {
    let (mut changed, mut same) = (0, 0);
    let mut rng = Rng::new(3);
    for seed in 200..if long() { 260 } else { 220 } {
        let files = Files::random(seed, 2);
        Seal::new().run(&files.chain()).unwrap();
        let naive = Chain::open(&files.paths).unwrap();
        let before = naive.flat(1).unwrap();
        let layer = naive.0[1].clone();
        let bitmaps = layer.bitmaps().unwrap();
        for _ in 0..20 {
            let sectors = layer.size / layer.sector;
            let sector = rng.below(sectors);
            let per_block = layer.block_size / layer.sector;
            let ratio = (layer.sector << 23) / layer.block_size;
            let (block, within) = (sector / per_block, sector % per_block);
            if layer.bat_entry(block + block / ratio).unwrap() & 7 != 7 {
                continue;
            }
            let bit = (block % ratio) * per_block + within;
            let at = (bitmaps[(block / ratio) as usize] + bit / 8) as usize;
            let was_parents = layer.says(sector).unwrap() == Says::NotHere;
            patch(files.tip(), |bytes| bytes[at] ^= 1 << (bit % 8));
            let now = Chain::open(&files.paths).unwrap().flat(1).unwrap();
            let verified = Verify::new().run(&files.chain()).unwrap();
            let offset = sector * layer.sector;
            if was_parents || now != before {
                changed += 1;
                assert_eq!(codes(&verified), ["seal.changed"], "{seed} at {offset}");
                assert!(verified.findings[0].range.contains(&offset));
                assert!(verified.findings[0].file.ends_with("l1.vhdx"));
            } else {
                same += 1;
                assert!(verified.is_whole(), "{seed} at {offset}: {:?}", verified.findings);
            }
            patch(files.tip(), |bytes| bytes[at] ^= 1 << (bit % 8));
        }
    }
    assert!(changed > 30, "{changed} changed, {same} read the same");
}

#[test]
fn an_older_file_with_the_same_identity_is_found() {
    let files = Files::random(31, 2);
    let older = fs::read(files.tip()).unwrap();
    // Other bytes under the same identity, as a tool leaves them that knows no identities.
    let naive = Chain::open(&files.paths).unwrap();
    let layer = &naive.0[1];
    let data = (0..layer.size / layer.sector).find_map(|s| match layer.says(s).unwrap() {
        Says::Data(at) => Some((s, at)),
        _ => None,
    });
    let (sector, at) = data.unwrap();
    patch(files.tip(), |bytes| bytes[at as usize..][..16].fill(0x5A));
    Seal::new().run(&files.chain()).unwrap();
    assert!(Verify::new().run(&files.chain()).unwrap().is_whole());
    fs::write(files.tip(), older).unwrap();
    let verified = Verify::new().run(&files.chain()).unwrap();
    assert_eq!(codes(&verified), ["seal.changed"]);
    assert!(verified.findings[0].range.contains(&(sector * layer.sector)));
    // A seal of the identity is kept unless it is asked for again.
    Seal::new().run(&files.chain()).unwrap();
    assert_eq!(codes(&Verify::new().run(&files.chain()).unwrap()), ["seal.changed"]);
    Seal::new().again(true).run(&files.chain()).unwrap();
    assert!(Verify::new().run(&files.chain()).unwrap().is_whole());
}

#[test]
fn a_write_makes_a_seal_stale_and_a_lost_one_is_missed() {
    let files = Files::random(32, 3);
    Seal::new().run(&files.chain()).unwrap();
    let writer = OpenOptions::new().writable(true).open(files.tip()).unwrap();
    writer.write_at(&[1; 4096], 0).unwrap();
    writer.close().unwrap();
    drop(writer);
    fs::remove_file(seal_of(&files.paths[1])).unwrap();
    let verified = Verify::new().run(&files.chain()).unwrap();
    assert_eq!(codes(&verified), ["seal.stale", "seal.missing"]);
    assert!(verified.findings[0].file.ends_with("l2.vhdx"));
    assert!(verified.findings[1].file.ends_with("l1.vhdx"));
    assert_eq!(verified.root, None);
    // A tip that nobody sealed is no finding.
    fs::remove_file(seal_of(files.tip())).unwrap();
    let verified = Verify::new().run(&files.chain()).unwrap();
    assert_eq!(codes(&verified), ["seal.missing"]);
    assert_eq!(verified.layers[0].left_out, Some(LeftOut::NotSealed));
    Seal::new().run(&files.chain()).unwrap();
    assert!(Verify::new().run(&files.chain()).unwrap().is_whole());
}

#[test]
fn a_compaction_and_a_label_leave_a_seal_true() {
    let mut dropped = 0;
    // With 66, a block of zeros over the parent's zeros becomes zeros as a whole.
    for seed in (40..if long() { 80 } else { 52 }).chain([66]) {
        let files = Files::random(seed, 3);
        // Blocks that the parent has too, and blocks of zeros: a compaction drops them.
        let writer = OpenOptions::new().writable(true).open(files.tip()).unwrap();
        let mut block = vec![0; 2 << 20];
        writer.read_at(&mut block, 0).unwrap();
        writer.write_at(&block, 0).unwrap();
        writer.close().unwrap();
        drop(writer);
        let root = Seal::new().run(&files.chain()).unwrap().root;
        let identity = files.chain().tip().data_write_guid();
        let chain = OpenOptions::new().writable(true).open(files.tip()).unwrap();
        let done = Compact::new().content(true).run(&chain).unwrap();
        dropped += done.content.unwrap();
        let tip = chain.layers()[0].id;
        Label::new(tip, "now").run(&chain).map(drop).unwrap_or(());
        let point = chain.layers()[1].id;
        Label::new(point, "then").run(&chain).unwrap();
        chain.close().unwrap();
        drop(chain);
        assert_eq!(files.chain().tip().data_write_guid(), identity);
        let verified = Verify::new().run(&files.chain()).unwrap();
        assert!(verified.is_whole(), "{seed}: {:?}", verified.findings);
        assert_eq!(verified.root, root);
        // And what changes then is still found.
        let naive = Chain::open(&files.paths).unwrap();
        let layer = &naive.0[2];
        let own = (0..layer.size / layer.sector).find_map(|s| match layer.says(s).unwrap() {
            Says::Data(at) => Some(at),
            _ => None,
        });
        let Some(at) = own else { continue };
        patch(files.tip(), |bytes| bytes[at as usize] ^= 1);
        assert_eq!(codes(&Verify::new().run(&open(files.tip())).unwrap()), ["seal.changed"]);
    }
    assert!(dropped > 0);
}
