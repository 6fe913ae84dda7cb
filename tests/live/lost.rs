//! A child that loses bytes during its merge, or before the merge is resumed.

use std::ops::ControlFlow;
use std::path::Path;

use avhdx::ops::{AcceptLoss, Checkpoint, Label, LossKind, Merge, Merged, Pace};
use avhdx::{DiffChain, Disk, ErrorKind, MergeState, OpenOptions};
use avhdx_testkit::naive;

use super::{MIB, base, bytes, naively, paths, writable};

const SIZE: u64 = 12 * MIB;

/// A base of ones, and a tip with twos in blocks that lie in its file in this order, the last at its end.
fn two(folder: &Path, order: [u64; 8]) -> (DiffChain, Vec<u8>) {
    let chain = base(folder, SIZE);
    chain.write_at(&vec![1; SIZE as usize], 0).unwrap();
    Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
    let mut model = vec![1; SIZE as usize];
    for block in order {
        write(&chain, &mut model, 2, block);
    }
    chain.flush().unwrap();
    (chain, model)
}

fn write(chain: &DiffChain, model: &mut [u8], byte: u8, block: u64) {
    chain.write_at(&[byte; 1 << 20], block * MIB).unwrap();
    block_of(model, block).fill(byte);
}

fn block_of(model: &mut [u8], block: u64) -> &mut [u8] {
    &mut model[(block * MIB) as usize..((block + 1) * MIB) as usize]
}

/// Takes the last blocks from a file, which may have grown ahead of what is needed.
fn cut(file: &Path, blocks: u64) {
    let needed = naive::Layer::open(file).unwrap().needed_length();
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(needed - blocks * MIB).unwrap();
}

/// Merges 2 MiB at a time, and calls `on` after each move.
fn merge(
    chain: &DiffChain,
    low_space: bool,
    on: &mut (dyn FnMut(u64) -> ControlFlow<()> + Send),
) -> avhdx::Result<Merged> {
    let pace = Pace::new();
    pace.limit(Some(32 * MIB));
    let merge = Merge::new(chain.tip().id()).pace(pace).low_space(low_space);
    merge.on_progress(|progress| on(progress.done)).run(chain)
}

/// Accepts the losses of the tip, and completes its merge; the disk has the model's contents.
fn settled(tip: &Path, losses: &[(u64, LossKind)], model: &[u8]) {
    let found = AcceptLoss::new().run(tip, &mut |_| ControlFlow::Continue(())).unwrap();
    let found: Vec<_> = found.list.iter().map(|loss| (loss.range.clone(), loss.kind)).collect();
    let in_bytes = |(block, kind): &(u64, _)| (block * MIB..(block + 1) * MIB, *kind);
    assert_eq!(found, losses.iter().map(in_bytes).collect::<Vec<_>>());
    let mark = OpenOptions::new().open_image(tip).unwrap().merge_mark().unwrap();
    assert_eq!(mark.state, MergeState::Merging, "it is to be completed still");
    let chain = writable(tip);
    assert!(bytes(&chain) == model);
    assert!(naively(&paths(&chain)) == model);
    let merged = Merge::resume(chain.tip().id()).run(&chain).unwrap();
    assert!(merged.warnings.is_empty(), "{:?}", merged.warnings);
    assert!(bytes(&chain) == model);
    chain.close().unwrap();
    assert!(naively(&paths(&chain)) == model);
}

#[test]
fn a_child_cut_short_while_it_is_merged_is_said_to_be_and_loses_what_was_not_merged_alone() {
    for (is_live, low_space) in [(true, false), (true, true), (false, false), (false, true)] {
        let folder = tempfile::tempdir().unwrap();
        let (mut chain, mut model) = two(folder.path(), [8, 9, 3, 10, 0, 1, 6, 7]);
        let tip = paths(&chain).remove(0);
        if !is_live {
            chain.close().unwrap();
            drop(chain);
            chain = OpenOptions::new().open(&tip).unwrap();
        }
        let mut is_cut = false;
        let error = merge(&chain, low_space, &mut |done| {
            if done >= 2 * MIB && !is_cut {
                is_cut = true;
                cut(&tip, 3);
            }
            ControlFlow::Continue(())
        })
        .unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "merge.child-lost"));
        assert!(error.to_string().contains(tip.to_str().unwrap()), "{error}");
        chain.close().unwrap();
        drop(chain);
        let chain = writable(&tip);
        for block in [1, 6, 7] {
            chain.read_at(&mut [0; 512], block * MIB).unwrap_err();
        }
        let error = Merge::resume(chain.tip().id()).run(&chain).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "claim.lost"));
        drop(chain);
        for block in [6, 7] {
            block_of(&mut model, block).fill(0);
        }
        let losses = [(1, LossKind::Merged), (6, LossKind::Lost), (7, LossKind::Lost)];
        settled(&tip, &losses, &model);
    }
}

/// The entry of the block waits in the log.
#[test]
fn a_block_that_was_new_in_the_merge_is_lost_with_the_child_too() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, mut model) = two(folder.path(), [8, 9, 3, 10, 0, 1, 6, 7]);
    let tip = paths(&chain).remove(0);
    let mut is_cut = false;
    let error = merge(&chain, false, &mut |done| {
        if done >= 2 * MIB && !is_cut {
            is_cut = true;
            write(&chain, &mut model, 3, 11);
            chain.flush().unwrap();
            cut(&tip, 1);
        }
        ControlFlow::Continue(())
    })
    .unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "merge.child-lost"));
}

/// When the tip is written to after its first blocks were merged.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Newer {
    Never,
    BeforeTheStop,
    AfterTheStop,
}

#[test]
fn what_was_written_after_it_was_merged_is_lost_with_the_child_and_not_what_it_was_before() {
    use LossKind::{Lost, Merged};
    for (newer, kinds) in [
        (Newer::Never, [Merged, Merged]),
        (Newer::BeforeTheStop, [Merged, Lost]),
        (Newer::AfterTheStop, [Lost, Lost]),
    ] {
        for again in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let (chain, mut model) = two(folder.path(), [8, 9, 3, 10, 6, 7, 0, 1]);
            let tip = paths(&chain).remove(0);
            let stopped = merge(&chain, false, &mut |done| {
                if done < 4 * MIB {
                    return ControlFlow::Continue(());
                }
                if newer == Newer::BeforeTheStop {
                    write(&chain, &mut model, 3, 1);
                }
                ControlFlow::Break(())
            });
            assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
            if newer == Newer::AfterTheStop {
                write(&chain, &mut model, 3, 1);
            }
            chain.close().unwrap();
            drop(chain);
            if again {
                // Stopped again, at its start.
                let chain = writable(&tip);
                let stopped = merge(&chain, false, &mut |done| match done {
                    0 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(()),
                });
                assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
            }
            cut(&tip, 2);
            let kinds = match (again, newer) {
                // The second run got past both.
                (true, _) => [Merged, Merged],
                _ => kinds,
            };
            for (block, kind) in kinds.iter().enumerate() {
                if *kind == Lost {
                    block_of(&mut model, block as u64).fill(0);
                }
            }
            settled(&tip, &[(0, kinds[0]), (1, kinds[1])], &model);
        }
    }
}

#[test]
fn a_label_is_not_written_to_a_frozen_layer_that_lost_a_block() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, _) = two(folder.path(), [0, 1, 2, 3, 4, 5, 6, 7]);
    let frozen = paths(&chain)[0].clone();
    Checkpoint::new().run(&chain).unwrap();
    let tip = paths(&chain)[0].clone();
    chain.close().unwrap();
    drop(chain);
    cut(&frozen, 2);
    let before = std::fs::read(&frozen).unwrap();

    let chain = OpenOptions::new().writable(true).open(&tip).unwrap();
    let base = chain.layers()[2].id;
    let error = Label::new(base, "other").write_frozen(true).run(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "claim.lost"), "{error}");
    assert!(std::fs::read(&frozen).unwrap() == before);
}
