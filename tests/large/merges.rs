//! Merges: copied by the host and through a buffer, with space freed on the way, of zeros, and of a tip that
//! is being written to.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use avhdx::ops::{Checkpoint, Merge, Pace, Progress};
use avhdx::storage::{Host, LocalHost};
use avhdx::{CreateOptions, DiffChain, Disk, Source, Zeroing};
use avhdx_testkit::naive;

use super::sim::SimHost;
use super::{MIB, Model, base, file, longest_run, writable};

/// How many bytes a merge moves between two checks of the pace.
const PIECE: u64 = 16 * MIB;
/// How many bytes it moves between reports, and makes durable at once if space is short.
const BATCH: u64 = 64 * MIB;
const SIZE: u64 = 88 * MIB + 512;
/// More than two pieces, across the end of a batch, starting within a block.
const RUN: Range<u64> = 46 * MIB + 512..84 * MIB + 1536;

/// A base, a middle layer, and a tip with one long run.
fn chain(host: &Arc<dyn Host>, folder: &Path, blocks: [u32; 3]) -> (DiffChain, Model) {
    let at = |name: &str| folder.join(name);
    let options = CreateOptions::dynamic(SIZE).block_size(blocks[0] << 20);
    let chain = base(host, &at("base.vhdx"), options);
    let mut model = Model::new(SIZE);
    for start in [3, 40, 62, 83] {
        model.write(&chain, 1, start * MIB..(start + 5) * MIB + 512);
    }
    for (n, name, parts) in [
        (1, "middle.avhdx", vec![44 * MIB..45 * MIB, 50 * MIB + 512..52 * MIB, 70 * MIB..75 * MIB]),
        (2, "tip.avhdx", vec![RUN]),
    ] {
        let made = Checkpoint::new().path(at(name)).block_size(blocks[n] << 20);
        made.run(&chain).unwrap();
        for part in parts {
            model.write(&chain, n as u64 + 1, part);
        }
    }
    chain.flush().unwrap();
    let tip = chain.tip();
    // A sector bitmap block may follow the first block.
    assert!(longest_run(&*tip) > PIECE + MIB, "{blocks:?}: in one piece");
    const { assert!(RUN.start < BATCH && RUN.end > BATCH) };
    (chain, model)
}

#[test]
fn a_run_longer_than_any_piece_is_merged_whole() {
    for (blocks, by_hand, low_space, free) in [
        ([1, 1, 1], false, false, None),
        ([1, 2, 32], true, false, None),
        ([32, 64, 1], true, true, None),
        ([2, 1, 2], false, true, Some(30 * MIB)),
    ] {
        let what = format!("{blocks:?}, {by_hand}, {low_space}, {free:?}");
        let sim = SimHost::default();
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        let folder = file("");
        let (chain, model) = chain(&host, &folder, blocks);
        if by_hand {
            sim.copy_by_hand();
        }
        let ids: Vec<_> = chain.layers().into_iter().map(|layer| layer.id).collect();
        sim.set_free_space(free);
        let merge = Merge::new(ids[0]).low_space(low_space);
        let merged = merge.run(&chain).unwrap();
        assert_eq!(merged.moved, RUN.end - RUN.start, "{what}");
        assert_eq!(merged.handed_over, if by_hand { 0 } else { merged.moved }, "{what}");
        model.reads(&chain, &what);
        chain.flush().unwrap();
        model.is_in(&sim, &["base.vhdx", "middle.avhdx"], &what);
        if low_space {
            continue;
        }
        // Merge the middle layer into the base as well.
        let layers = chain.layers();
        Merge::new(layers[0].id).low_space(low_space).run(&chain).unwrap();
        model.reads(&chain, &what);
        chain.close().unwrap();
        model.is_in(&sim, &["base.vhdx"], &what);
    }
}

/// The kernel copies in another way than a host in memory.
#[test]
fn a_long_run_is_merged_whole_on_this_machine_too() {
    for share in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let host: Arc<dyn Host> = Arc::new(LocalHost);
        let (chain, model) = chain(&host, &real, [32, 1, 1]);
        let ids: Vec<_> = chain.layers().into_iter().map(|layer| layer.id).collect();
        let merge = Merge::new(ids[0]).into_layer(ids[2]).share(share);
        merge.run(&chain).unwrap();
        model.reads(&chain, "as the chain has it");
        chain.close().unwrap();
        let naive = naive::Chain::open([real.join("base.vhdx")]).unwrap();
        model.is(&naive.flat(0).unwrap(), "as the file has it");
    }
}

/// With a limited pace, there are more and shorter pieces.
#[test]
fn a_long_run_is_merged_whole_at_a_pace() {
    let sim = SimHost::default();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let (chain, model) = chain(&host, &file(""), [2, 1, 2]);
    let pace = Pace::new();
    // A sixteenth of the limit at once: 5 MiB, of which the last is short.
    pace.limit(Some(80 * MIB));
    let tip = chain.layers()[0].id;
    let mut looks = 0;
    let merge = Merge::new(tip).pace(pace.clone());
    let merged = merge
        .on_progress(|_| {
            looks += 1;
            // The rest without a limit.
            if looks == 3 {
                pace.limit(None);
            }
            ControlFlow::Continue(())
        })
        .run(&chain);
    assert_eq!(merged.unwrap().moved, RUN.end - RUN.start);
    model.reads(&chain, "at a pace");
    chain.close().unwrap();
    model.is_in(&sim, &["base.vhdx", "middle.avhdx"], "at a pace");
}

/// More blocks of zeros than are zeroed at once, and zeros in a block longer than a piece.
#[test]
fn zeros_longer_than_any_piece_are_merged_whole() {
    const SIZE: u64 = 200 * MIB;
    for (block, zeros) in [
        (1, [3 * MIB + 512..180 * MIB + 512, 190 * MIB..191 * MIB]),
        (128, [3 * MIB + 512..120 * MIB + 512, 128 * MIB..SIZE]),
    ] {
        let sim = SimHost::default();
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        let options = CreateOptions::dynamic(SIZE).block_size(block << 20);
        let chain = base(&host, &file("base.vhdx"), options);
        let mut model = Model::new(SIZE);
        for start in 0..SIZE / MIB {
            model.write(&chain, 1, start * MIB + 7 * 512..start * MIB + 9 * 512);
        }
        Checkpoint::new().path(file("tip.avhdx")).run(&chain).unwrap();
        for zeros in zeros {
            chain.write_zeroes(zeros.clone(), Zeroing::MayUnmap).unwrap();
            model.zeroed(zeros);
        }
        chain.flush().unwrap();
        model.reads(&chain, "before");
        Merge::new(chain.layers()[0].id).run(&chain).unwrap();
        model.reads(&chain, "after");
        chain.close().unwrap();
        model.is_in(&sim, &["base.vhdx"], "after");
    }
}

/// Thousands of blocks of zeros, which are examined one at a time.
#[test]
fn zeros_of_more_blocks_than_one_look_takes_are_merged_whole() {
    const SIZE: u64 = 5 << 30;
    let sim = SimHost::default();
    let host: Arc<dyn Host> = Arc::new(sim.clone());
    let options = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    let chain = base(&host, &file("base.vhdx"), options);
    let places: Vec<u64> = (0..40).map(|n| n * 128 * MIB + 512 * n).collect();
    for at in &places {
        chain.write_at(&at.to_le_bytes(), *at + 8).unwrap();
    }
    Checkpoint::new().path(file("tip.avhdx")).block_size(1 << 20).run(&chain).unwrap();
    let gone = 128 * MIB..SIZE - 128 * MIB;
    chain.discard(gone.clone()).unwrap();
    chain.write_at(&[7; 512], SIZE - 512).unwrap();
    Merge::new(chain.layers()[0].id).run(&chain).unwrap();
    for at in places {
        let mut found = [0; 8];
        chain.read_at(&mut found, at + 8).unwrap();
        assert_eq!(u64::from_le_bytes(found), if gone.contains(&at) { 0 } else { at });
    }
    let mut end = [0; 512];
    chain.read_at(&mut end, SIZE - 512).unwrap();
    assert_eq!(end, [7; 512]);
    let first = chain.next_extent(MIB..SIZE - MIB).unwrap().unwrap();
    assert!(matches!(first.source, Source::Zero { .. }), "{first:?}");
}

/// Each change is longer than what is moved while writers wait. Changes are made behind the copier's position, across
/// it, and ahead of it, and later are mirrored as well.
#[test]
fn long_changes_of_a_tip_get_into_its_parent_while_it_is_merged() {
    for (blocks, by_hand) in [([1, 1, 1], false), ([32, 2, 32], true)] {
        let sim = SimHost::default();
        let host: Arc<dyn Host> = Arc::new(sim.clone());
        let (chain, mut model) = chain(&host, &file(""), blocks);
        if by_hand {
            sim.copy_by_hand();
        }
        let changes = [
            vec![5 * MIB + 100..24 * MIB + 300, 50 * MIB..70 * MIB + 512],
            // Changes are mirrored by now.
            vec![7 * MIB + 7..25 * MIB + 3, 3 * MIB..3 * MIB + 1],
            vec![60 * MIB..77 * MIB + 512, 30 * MIB + 1..33 * MIB],
        ];
        let mut seed = 10;
        let mut changes = changes.into_iter();
        let tip = chain.layers()[0].id;
        let on = &mut |now: Progress| {
            if now.done > 0 {
                for range in changes.next().unwrap_or_default() {
                    seed += 1;
                    model.write(&chain, seed, range);
                }
            }
            ControlFlow::Continue(())
        };
        let merged = Merge::new(tip).on_progress(on).run(&chain).unwrap();
        assert!(merged.warnings.is_empty(), "{:?}", merged.warnings);
        assert!(merged.mirrored > 18 * MIB, "{blocks:?}: {} mirrored", merged.mirrored);
        assert!(merged.moved > RUN.end - RUN.start + 30 * MIB, "{blocks:?}: {}", merged.moved);
        assert_eq!(changes.next(), None, "all were made");
        model.reads(&chain, "merged");
        chain.close().unwrap();
        model.is_in(&sim, &["base.vhdx", "middle.avhdx"], "merged");
        drop(chain);
        model.reads(&writable(&host, &file("middle.avhdx")), "opened again");
    }
}
