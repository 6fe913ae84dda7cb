//! Operations on chains while the host may crash.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use avhdx::DiffChain;
use avhdx::ops::{Checkpoint, Delete, Merge, Merged, Revert};

use super::history::{BASE, History, Layer, MIDDLE, SIZE, Scene, TIP, Tip, model_of};
use super::resized;
use crate::driver::{GIB, KIB, MIB, path};
use crate::interleave::at_step;
use crate::is_long;
use crate::sim::Event;

/// The size of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Small,
    /// Many similar histories.
    Interleaved,
    /// Many cuts, each of which is costly to judge.
    Large,
}

pub struct Workload {
    pub name: &'static str,
    pub kind: Kind,
    pub record: fn() -> Vec<History>,
}

pub const ALL: &[Workload] = &[
    small("checkpoint", || vec![checkpoint(false)]),
    small("checkpoint of a tip without changes", || vec![checkpoint(true)]),
    small("revert", || vec![revert(false)]),
    small("revert, the newer deleted", || vec![revert(true)]),
    small("merge of the middle", || vec![merge(three(false), 1, false)]),
    small("merge of the middle, low space", || vec![merge(three(false), 1, true)]),
    small("merge of the tip", || vec![merge(three(false), 0, false)]),
    small("merge of the tip, low space", || vec![merge(three(false), 0, true)]),
    small("merge of a larger middle", || vec![merge(growing(), 1, false)]),
    small("merge of a larger tip into a child", || vec![merge(growing_tip(), 0, false)]),
    small("merge with logs pending", || {
        vec![merge(three(true), 1, false), merge(three(true), 0, true)]
    }),
    small("merge of two layers", || vec![merge_into_base(false)]),
    small("merge of two layers, the tip keeps its name", || vec![merge_into_base(true)]),
    small("resize of a base", || vec![resized::base()]),
    small("resize of a child", || vec![resized::child()]),
    small("delete of the newest point", || vec![delete()]),
    Workload { name: "merge stopped and resumed", kind: Kind::Interleaved, record: stopped },
    Workload {
        name: "checkpoint, a write meanwhile",
        kind: Kind::Interleaved,
        record: || interleaved(checkpoint_now),
    },
    Workload {
        name: "merge of the tip, a write meanwhile",
        kind: Kind::Interleaved,
        record: || interleaved(|scene, chain| merge_now(scene, chain, 0, false)),
    },
    Workload {
        name: "merge of the tip, a write that is mirrored",
        kind: Kind::Interleaved,
        record: mirrored,
    },
    Workload {
        name: "merge of the middle, a write meanwhile",
        kind: Kind::Interleaved,
        record: || interleaved(|scene, chain| merge_now(scene, chain, 1, false)),
    },
    Workload {
        name: "merge of more tables than one entry takes",
        kind: Kind::Large,
        record: || vec![many_tables()],
    },
    Workload {
        name: "merge whose end takes two entries",
        kind: Kind::Large,
        record: || vec![end_in_two_entries()],
    },
];

const fn small(name: &'static str, record: fn() -> Vec<History>) -> Workload {
    Workload { name, kind: Kind::Small, record }
}

fn three(killed: bool) -> Scene {
    Scene::new(&[BASE, MIDDLE, TIP], killed)
}

/// The layers above the base have a larger disk.
fn growing() -> Scene {
    let writes = &[(6 * KIB, 4 * KIB), (5 * MIB + 512, 2 * KIB)];
    let middle = Layer { size: SIZE + 2 * MIB, writes, ..MIDDLE };
    Scene::new(&[BASE, middle, Layer { size: SIZE + 2 * MIB, ..TIP }], false)
}

/// The tip has a larger disk than the middle layer, which ends within a block and before the base.
fn growing_tip() -> Scene {
    let middle = Layer { size: 3 * MIB + 85 * KIB, writes: &[(6 * KIB, 4 * KIB)], ..MIDDLE };
    Scene::new(&[BASE, middle, TIP], false)
}

/// Writes before an operation, the last of which are not flushed.
fn before(scene: &Scene, chain: &DiffChain) {
    scene.write(chain, 1, 9 * KIB, 2 * KIB);
    scene.flush(chain);
    scene.write(chain, 2, 10 * KIB, 2 * KIB);
    scene.write(chain, 3, 3 * MIB + 4 * KIB, KIB);
}

fn after(scene: &Scene, chain: &DiffChain) {
    scene.write(chain, 4, 11 * KIB, 2 * KIB);
    scene.flush(chain);
    scene.write(chain, 5, MIB + 30 * KIB, KIB);
}

fn checkpoint(is_quiet: bool) -> History {
    let scene = Scene::new(&[BASE, TIP], false);
    let chain = scene.open();
    if !is_quiet {
        before(&scene, &chain);
    }
    checkpoint_now(&scene, &chain);
    after(&scene, &chain);
    scene.kill(chain)
}

/// Everything that was written before is durable afterwards.
fn checkpoint_now(scene: &Scene, chain: &DiffChain) {
    let new = path("new.avhdx");
    let old = scene.history().tips[0].path.clone();
    scene.history().made.push(new.clone());
    let begun = scene.host.mark();
    let checkpoint = Checkpoint::new().label("a point in time").path(&new).block_size(1 << 20);
    let made = scene.change(Some(&new), || checkpoint.run(chain).unwrap());
    assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    let done = scene.host.mark();
    let mut history = scene.history();
    history.model().flushed(begun, done);
    let frozen = history.now();
    history.points.push((old, frozen));
}

fn revert(deletes: bool) -> History {
    let scene = three(false);
    let chain = scene.open();
    before(&scene, &chain);
    let new = path("new.avhdx");
    let (point, watched) = {
        let mut history = scene.history();
        let now = history.now();
        let tip = history.tips[0].path.clone();
        history.points.push((tip, now));
        (history.points[0].1.clone(), history.models[0].segments())
    };
    let begun = scene.host.mark();
    {
        let mut history = scene.history();
        history.begun = Some(begun);
        history.models.push(model_of(&point, watched));
        history.tips.push(Tip { path: new.clone(), begun, done: usize::MAX, model: 1 });
    }
    let revert = Revert::to(chain.layers()[2].id).path(&new).delete_newer(deletes);
    let made = revert.run(&chain).unwrap();
    assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    let done = scene.host.mark();
    {
        let mut history = scene.history();
        history.tips[1].done = done;
        if !deletes {
            history.models[0].flushed(begun, done);
        }
    }
    scene.gone(made.removed);
    after(&scene, &chain);
    scene.kill(chain)
}

fn merge(scene: Scene, layer: usize, low_space: bool) -> History {
    let chain = scene.open();
    before(&scene, &chain);
    merge_now(&scene, &chain, layer, low_space);
    after(&scene, &chain);
    scene.kill(chain)
}

/// Records what a merge may make of its files, and returns the resulting tip.
fn prepare(scene: &Scene, layers: &[PathBuf], layer: usize) -> Option<PathBuf> {
    let mut history = scene.history();
    let (child, parent) = (layers[layer].clone(), layers[layer + 1].clone());
    history.targets.push(parent.clone());
    history.merged.push(child.clone());
    if layer == 0 {
        return Some(parent);
    }
    // The parent takes the child's place.
    let of_child = history.points.iter().find(|(path, _)| *path == child);
    let point = of_child.map(|(_, point)| point.clone()).unwrap();
    history.points.push((parent, point));
    None
}

fn merge_now(scene: &Scene, chain: &DiffChain, layer: usize, low_space: bool) {
    let mut layers = scene.layers.clone();
    layers.reverse();
    let tip = prepare(scene, &layers, layer);
    let begun = scene.host.mark();
    let merge = Merge::new(chain.layers()[layer].id).low_space(low_space);
    let done = scene.change(tip.as_deref(), || merge.run(chain).unwrap());
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    assert_eq!(done.removed, [layers[layer].clone()]);
    if layer == 0 {
        let end = scene.host.mark();
        scene.history().model().flushed(begun, end);
    }
    scene.gone(done.removed);
}

/// The point below the tip is given up. The disk is found under the tip's path at any time.
fn delete() -> History {
    let scene = three(false);
    let chain = scene.open();
    before(&scene, &chain);
    let mut layers = scene.layers.clone();
    layers.reverse();
    prepare(&scene, &layers, 0);
    let delete = Delete::point(chain.layers()[1].id);
    keeping(&scene, &layers[0], &layers[1], || delete.run(&chain).unwrap());
    after(&scene, &chain);
    scene.kill(chain)
}

/// Runs a merge of the tip into `parent`, which gets its name.
fn keeping(scene: &Scene, tip: &Path, parent: &Path, run: impl FnOnce() -> Merged) {
    {
        // For a moment, the spent file has the parent's name.
        let mut history = scene.history();
        history.targets.push(tip.to_owned());
        history.merged.push(parent.to_owned());
        history.keeping.push(parent.to_owned());
    }
    let begun = scene.host.mark();
    let done = scene.change(Some(parent), run);
    let end = scene.host.mark();
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    assert_eq!(done.tip.as_deref(), Some(tip));
    scene.history().model().flushed(begun, end);
    scene.history().tips.push(Tip { path: tip.to_owned(), begun, done: end, model: 0 });
    scene.gone(done.removed);
}

/// The tip and the middle into the base.
fn merge_into_base(keeps_name: bool) -> History {
    let scene = three(false);
    let chain = scene.open();
    before(&scene, &chain);
    let mut layers = scene.layers.clone();
    layers.reverse();
    prepare(&scene, &layers, 1);
    {
        let mut history = scene.history();
        history.targets.push(layers[2].clone());
        history.merged.push(layers[0].clone());
    }
    let begun = scene.host.mark();
    let ids = chain.layers();
    let merge = Merge::new(ids[0].id).into_layer(ids[2].id).keep_name(keeps_name);
    if keeps_name {
        keeping(&scene, &layers[0], &layers[2], || merge.run(&chain).unwrap());
        after(&scene, &chain);
        return scene.kill(chain);
    }
    let done = scene.change(Some(&layers[2]), || merge.run(&chain).unwrap());
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    let end = scene.host.mark();
    scene.history().model().flushed(begun, end);
    scene.gone(done.removed);
    after(&scene, &chain);
    scene.kill(chain)
}

/// Merges that stop at each of their reports, and are resumed after a kill.
fn stopped() -> Vec<History> {
    let mut histories = Vec::new();
    for (layer, low_space) in [(1, false), (1, true), (0, false), (0, true)] {
        for n in 1.. {
            let scene = three(false);
            let chain = scene.open();
            before(&scene, &chain);
            let mut layers = scene.layers.clone();
            layers.reverse();
            let tip = prepare(&scene, &layers, layer);
            let mut left = n;
            let is_done = scene.change(tip.as_deref(), || {
                let id = chain.layers()[layer].id;
                let stopped = Merge::new(id)
                    .low_space(low_space)
                    .on_progress(|_| {
                        left -= 1;
                        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })
                    .run(&chain);
                if stopped.is_ok() {
                    return true;
                }
                scene.flush(&chain);
                std::mem::forget(chain);
                let chain = crate::verdict::open(&scene.host, &layers[0], true).unwrap();
                let id = chain.layers()[layer].id;
                if Merge::resume(id).low_space(low_space).run(&chain).is_ok() {
                    std::mem::forget(chain);
                    let begun = scene.host.mark();
                    scene.history().model().flushed(begun, begun);
                    return false;
                }
                // It had not begun.
                Merge::new(id).low_space(low_space).run(&chain).unwrap();
                std::mem::forget(chain);
                false
            });
            scene.gone([layers[layer].clone()]);
            if is_done {
                break;
            }
            let end = if layer == 0 { &layers[1] } else { &layers[0] };
            let chain = crate::verdict::open(&scene.host, end, true).unwrap();
            histories.push(scene.kill(chain));
        }
    }
    histories
}

/// An operation with a concurrent write and flush at each of its steps.
fn interleaved(operation: fn(&Scene, &DiffChain)) -> Vec<History> {
    let mut histories = Vec::new();
    let is_hunt = std::env::var_os("AVHDX_MUTANT").is_some();
    let each = if is_long() || is_hunt { 1 } else { 9 };
    for step in (0..).step_by(each) {
        let scene = three(false);
        let chain = scene.open();
        let was_there = at_step(
            step,
            &scene.host,
            || operation(&scene, &chain),
            || {
                scene.write(&chain, 6, 9 * KIB, 2 * KIB);
                scene.write(&chain, 7, 3 * MIB + 4 * KIB, KIB);
                scene.flush(&chain);
            },
        );
        if !was_there {
            break;
        }
        scene.flush(&chain);
        histories.push(scene.kill(chain));
    }
    histories
}

/// Merges of a tip that is written to behind the merge's position, and once more at each step: later writes go to the
/// parent too, while the ranges of earlier ones are moved.
fn mirrored() -> Vec<History> {
    let mut histories = Vec::new();
    let is_hunt = std::env::var_os("AVHDX_MUTANT").is_some();
    let each = if is_long() || is_hunt { 1 } else { 7 };
    for step in (0..).step_by(each) {
        let scene = three(false);
        let chain = scene.open();
        let mut layers = scene.layers.clone();
        layers.reverse();
        let tip = prepare(&scene, &layers, 0);
        let begun = scene.host.mark();
        let was_there = at_step(
            step,
            &scene.host,
            || {
                let merge = Merge::new(chain.layers()[0].id);
                let mut words = 0;
                let done = scene.change(tip.as_deref(), || {
                    merge
                        .on_progress(|_| {
                            words += 1;
                            // The second report comes after the whole disk was passed.
                            if words == 2 {
                                scene.write(&chain, 6, 9 * KIB, 2 * KIB);
                                scene.write(&chain, 7, 3 * MIB + 4 * KIB, KIB);
                            }
                            ControlFlow::Continue(())
                        })
                        .run(&chain)
                });
                let done = done.unwrap();
                assert!(words >= 2 && done.warnings.is_empty(), "{:?}", done.warnings);
                let end = scene.host.mark();
                scene.history().model().flushed(begun, end);
                scene.gone(done.removed);
            },
            || {
                // Over both, over half of one, and where nothing was.
                scene.write(&chain, 8, 10 * KIB, 2 * KIB);
                scene.write(&chain, 9, 3 * MIB + 4 * KIB + 100, 300);
                scene.write(&chain, 10, MIB + 40 * KIB, KIB);
                scene.flush(&chain);
            },
        );
        if !was_there {
            break;
        }
        scene.flush(&chain);
        histories.push(scene.kill(chain));
    }
    histories
}

/// A block in each of this many pages of the table.
const fn block_each<const PAGES: usize>() -> [u64; PAGES] {
    let mut blocks = [0; PAGES];
    let mut n = 0;
    while n < PAGES {
        let entry = n as u64 * 512 + 100;
        blocks[n] = entry - entry / 4097;
        n += 1;
    }
    blocks
}

/// Zeros in so many places that the parent's tables do not fit in one log entry: the end of the merge must
/// not become durable before all of them have.
fn many_tables() -> History {
    const BLOCKS: [u64; 256] = block_each();
    const WRITES: &[(u64, u64)] =
        &[(100 * MIB, 4 * KIB), (127_070 * MIB, 4 * KIB), (0, 4 * KIB), (130_529 * MIB, 4 * KIB)];
    let size = 132 * GIB;
    let base = Layer { size, writes: WRITES, ..BASE };
    let middle = Layer { size, writes: &[(4 * KIB, KIB)], discards: &[], ..MIDDLE };
    let tip = Layer { size, writes: &[(5 * KIB, KIB)], discards: &BLOCKS, ..TIP };
    let scene = Scene::new(&[base, middle, tip], false);
    let chain = scene.open();
    scene.write(&chain, 1, 6 * KIB, KIB);
    scene.flush(&chain);
    merge_now(&scene, &chain, 0, false);
    let mut history = scene.kill(chain);
    // What comes before is as in smaller merges.
    history.from = history.events.len() / 2;
    history
}

/// One changed page less than fits in an entry, and two metadata pages with the mark, which follows
/// many items: together they take two entries, with the mark in the first.
fn end_in_two_entries() -> History {
    const BLOCKS: [u64; 250] = block_each();
    const WRITES: &[(u64, u64)] = &[(0, 4 * KIB), (100 * MIB, 4 * KIB), (127_070 * MIB, 4 * KIB)];
    let size = 132 * GIB;
    let base = Layer { size, writes: WRITES, ..BASE };
    let (name, writes) = ("low.avhdx", &[(4 * KIB, KIB)]);
    let low = Layer { name, size, writes, discards: &[], items: 130 };
    let middle = Layer { size, writes: &[(5 * KIB, KIB)], discards: &BLOCKS, ..MIDDLE };
    let tip = Layer { size, writes: &[(6 * KIB, KIB)], discards: &[], ..TIP };
    let scene = Scene::new(&[base, low, middle, tip], false);
    let chain = scene.open();
    merge_now(&scene, &chain, 1, false);
    let mut history = scene.kill(chain);
    // The rest is as in smaller merges: the pages are logged in one piece, or two at its end.
    let is_entry =
        |event: &Event| matches!(event, Event::Write(_, chunk) if chunk.data.len() > 100 * 4096);
    let entry = history.events.iter().position(is_entry).unwrap();
    history.from = entry - 14;
    history.events.truncate(entry + 14);
    history
}
