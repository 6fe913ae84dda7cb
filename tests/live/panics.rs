//! Callbacks that panic, and callbacks that start another operation.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use avhdx::ops::{
    AcceptLoss, Check, Checkpoint, Compact, Compare, Export, Losses, Measure, Merge, Progress,
    Provision, Rebase, Relink, Reparent, Resize, Revert,
};
use avhdx::storage::{Draft, LocalHost, MemStorage};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, Lock, OpenOptions, RawDisk};

use super::{MIB, base, bytes, naively, paths};

const SIZE: u64 = 12 * MIB;

/// The panic of the callbacks.
struct Planned;

/// Three layers with separate and overlapping blocks, and the contents of the disk.
fn three(folder: &Path) -> (DiffChain, Vec<u8>) {
    let chain = base(folder, SIZE);
    let mut model = vec![0; SIZE as usize];
    for n in 0..3_u8 {
        if n > 0 {
            Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
        }
        let own = 9 * MIB + u64::from(n) * 8192;
        for (at, len) in [(u64::from(n) * MIB, MIB), (5 * MIB, 4096), (own, 4096)] {
            write(&chain, &mut model, n + 1, at, len);
        }
    }
    (chain, model)
}

fn write(chain: &DiffChain, model: &mut [u8], byte: u8, at: u64, len: u64) {
    chain.write_at(&vec![byte; len as usize], at).unwrap();
    model[at as usize..(at + len) as usize].fill(byte);
}

/// Runs an operation whose callback panics the `n`th time; returns whether it was called that often.
fn panics_at<T>(
    n: u64,
    run: impl FnOnce(&mut (dyn FnMut(Progress) -> ControlFlow<()> + Send)) -> avhdx::Result<T>,
) -> bool {
    let mut calls = 0;
    let done = catch_unwind(AssertUnwindSafe(|| {
        run(&mut |_| {
            calls += 1;
            assert!(calls <= n, "it is not called again");
            if calls == n {
                // Panics without printing a message.
                resume_unwind(Box::new(Planned));
            }
            ControlFlow::Continue(())
        })
    }));
    match done {
        Ok(done) => assert!(done.is_ok() && calls < n, "call {n}: {:?}", done.err()),
        Err(panic) => assert!(panic.is::<Planned>(), "the panic of the callback comes out"),
    }
    calls == n
}

#[test]
fn a_merge_whose_callback_panics_can_be_resumed_on_the_same_chain() {
    for (layer, low_space) in [(0, false), (0, true), (1, false), (1, true)] {
        for n in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let (chain, mut model) = three(folder.path());
            let (id, parent) = (chain.layers()[layer].id, paths(&chain).remove(layer + 1));
            if !panics_at(n, |on| Merge::new(id).low_space(low_space).on_progress(on).run(&chain)) {
                assert!(n > 2, "{n} calls");
                break;
            }
            let case = format!("call {n}, layer {layer}, low space: {low_space}");
            assert!(bytes(&chain) == model, "{case}");
            let is_done = chain.layers().len() == 2;
            if paths(&chain)[0] != parent {
                let read = OpenOptions::new().open_image(&parent);
                assert!(read.is_ok(), "others may read it again: {case}: {read:?}");
            }
            let before = std::fs::read(&parent).unwrap();
            write(&chain, &mut model, 40, 4 * MIB + 1000, 3 * MIB);
            chain.flush().unwrap();
            let is_same = std::fs::read(&parent).unwrap() == before;
            assert!(is_same || is_done, "nothing goes to the parent any more: {case}");
            if !is_done {
                // The handle may be a new one with another id.
                let id = chain.layers()[layer].id;
                let is_begun = chain.image(id).unwrap().merge_mark().is_some();
                let merge = if is_begun { Merge::resume(id) } else { Merge::new(id) };
                let merged = merge.low_space(low_space).run(&chain);
                let merged = merged.unwrap_or_else(|error| panic!("{case}: {error}"));
                assert!(merged.warnings.is_empty(), "{case}: {:?}", merged.warnings);
            }
            assert_eq!(chain.layers().len(), 2, "{case}");
            write(&chain, &mut model, 50, 8 * MIB, 2 * MIB);
            assert!(bytes(&chain) == model, "{case}");
            chain.close().unwrap();
            assert!(naively(&paths(&chain)) == model, "{case}");
        }
    }
}

#[test]
fn a_checkpoint_and_a_revert_whose_callbacks_panic_can_be_done_again_on_the_same_chain() {
    for n in 1..=2 {
        let folder = tempfile::tempdir().unwrap();
        let (chain, mut model) = three(folder.path());
        assert!(panics_at(n, |on| Checkpoint::new().on_progress(on).run(&chain)));
        assert!(bytes(&chain) == model, "call {n}");
        write(&chain, &mut model, 9, 5 * MIB, 4096);
        Checkpoint::new().run(&chain).unwrap();
        write(&chain, &mut model, 10, 6 * MIB, 4096);
        assert!(bytes(&chain) == model, "call {n}");
        chain.close().unwrap();
        assert!(naively(&paths(&chain)) == model, "call {n}");
        assert!(
            !panics_at(3, |on| Checkpoint::new().on_progress(on).run(&chain)),
            "all calls were tried"
        );
    }
    for n in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let (chain, mut model) = three(folder.path());
        let point = chain.layers()[2].id;
        let mut back = bytes(&chain.view(point).unwrap());
        if !panics_at(n, |on| Revert::to(point).delete_newer(true).on_progress(on).run(&chain)) {
            assert_eq!(n, 5, "at the start, before each file, and at the end");
            break;
        }
        let is_back = chain.layers().len() == 2;
        assert_eq!(is_back, n > 1);
        let now = if is_back { &mut back } else { &mut model };
        assert!(bytes(&chain) == *now, "call {n}");
        write(&chain, now, 9, 5 * MIB, 4096);
        assert!(bytes(&chain) == *now, "call {n}");
        let point = chain.layers().pop().unwrap().id;
        let mut base = bytes(&chain.view(point).unwrap());
        Revert::to(point).delete_newer(true).run(&chain).unwrap();
        write(&chain, &mut base, 10, 6 * MIB, 4096);
        chain.close().unwrap();
        assert!(naively(&paths(&chain)) == base, "call {n}");
    }
}

#[test]
fn what_only_reads_leaves_nothing_behind_a_panic_of_its_callback() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, model) = three(folder.path());
    let other = RawDisk::new(Arc::new(MemStorage::new(model.clone()))).unwrap();
    let tip = paths(&chain).remove(0);
    for n in 1..=2 {
        let memory = MemStorage::new(Vec::new());
        assert!(panics_at(n, |on| Export::new().on_progress(on).run(&chain, &memory)));
        assert!(panics_at(n, |on| Export::new()
            .on_progress(on)
            .stream(&chain, &mut std::io::sink())));
        assert!(panics_at(n, |on| Compare::new().on_progress(on).run(&chain, &other)));
        assert!(panics_at(n, |on| Measure::raw().on_progress(on).run(&chain)));
        assert!(panics_at(n, |on| {
            Check::new().options(OpenOptions::new().lock(Lock::None)).on_progress(on).run(&tip)
        }));
        assert!(panics_at(n, |on| Relink::folder(folder.path()).on_progress(on).run()));
        Export::new().run(&chain, &memory).unwrap();
        assert!(memory.into_bytes() == model);
        let target = folder.path().join("copy.vhdx");
        let draft = Draft::new(&LocalHost, &target).unwrap();
        let image = CreateOptions::dynamic(SIZE).create_draft(&LocalHost, &draft).unwrap();
        assert!(panics_at(n, |on| Export::new().on_progress(on).onto(&chain, &image)));
        image.close().unwrap();
        drop((image, draft));
        assert_eq!(names(folder.path()).len(), 3, "nothing is left of the copy");
    }
    assert!(bytes(&chain) == model);
}

#[test]
fn a_reparent_and_an_acceptance_whose_callbacks_panic_leave_all_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, model) = three(folder.path());
    let files = paths(&chain);
    chain.close().unwrap();
    drop(chain);
    let moved = folder.path().join("moved.vhdx");
    std::fs::copy(&files[2], &moved).unwrap();
    let before = std::fs::read(&files[1]).unwrap();
    for n in 1.. {
        if !panics_at(n, |on| Reparent::new(&moved).on_progress(on).run(&files[1])) {
            assert!(n > 2);
            break;
        }
        assert!(std::fs::read(&files[1]).unwrap() == before);
    }
    // A rebase keeps what it has taken in, and the disk reads the same.
    let empty = folder.path().join("empty.vhdx");
    drop(avhdx::CreateOptions::dynamic(model.len() as u64).create(&empty).unwrap());
    for n in 1.. {
        let has_panicked = panics_at(n, |on| Rebase::new(&empty).on_progress(on).run(&files[1]));
        assert!(bytes(&OpenOptions::new().open(&files[0]).unwrap()) == model);
        if !has_panicked {
            assert!(n > 2);
            break;
        }
    }
    assert!(bytes(&OpenOptions::new().open(&files[0]).unwrap()) == model);

    let tip = std::fs::OpenOptions::new().write(true).open(&files[0]).unwrap();
    tip.set_len(tip.metadata().unwrap().len() - MIB).unwrap();
    let (before, beside) = (std::fs::read(&files[0]).unwrap(), names(folder.path()));
    let done = catch_unwind(|| {
        AcceptLoss::new().run(&files[0], &mut |_: &Losses| resume_unwind(Box::new(Planned)))
    });
    assert!(done.unwrap_err().is::<Planned>());
    assert!(std::fs::read(&files[0]).unwrap() == before);
    assert_eq!(names(folder.path()), beside, "no list of what was not done");
    AcceptLoss::new().run(&files[0], &mut |_| ControlFlow::Continue(())).unwrap();
}

#[test]
fn a_compaction_whose_callback_panics_can_be_done_again_on_the_same_chain() {
    for punch in [false, true] {
        for n in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let (chain, mut model) = three(folder.path());
            // Zeros that take space, below blocks that move.
            write(&chain, &mut model, 0, 2 * MIB, MIB);
            for block in [6, 7, 8] {
                write(&chain, &mut model, 9, block * MIB, MIB);
            }
            chain.close().unwrap();
            let compact = Compact::new().content(true).punch(punch);
            let run = |on: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send)| {
                compact.clone().on_progress(on).run(&chain)
            };
            if !panics_at(n, run) {
                assert!(n > 3, "{n} calls");
                break;
            }
            let case = format!("call {n}, punch {punch}");
            assert!(bytes(&chain) == model, "{case}");
            write(&chain, &mut model, 40, 4 * MIB + 1000, 3000);
            let done = compact.clone().run(&chain).unwrap();
            assert!(punch || done.file_len <= done.file_len_before, "{case}: {done:?}");
            let again = compact.clone().run(&chain).unwrap();
            assert_eq!((again.moved, again.content), (0, Some(0)), "{case}");
            write(&chain, &mut model, 50, 10 * MIB, MIB);
            assert!(bytes(&chain) == model, "{case}");
            chain.close().unwrap();
            assert!(naively(&paths(&chain)) == model, "{case}");
        }
    }
}

/// A shorter disk is looked at behind its end, and a fixed one that grows is filled with zeros.
#[test]
fn a_resize_whose_callback_panics_leaves_the_disk_as_it_was() {
    for (is_fixed, size) in [(false, 10 * MIB), (true, SIZE + 5 * MIB)] {
        for n in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let (chain, mut model) = match is_fixed {
                false => three(folder.path()),
                true => {
                    let path = folder.path().join("web.vhdx");
                    let fixed = CreateOptions::fixed(SIZE).block_size(1 << 20);
                    drop(fixed.create(&path).unwrap());
                    (super::writable(&path), vec![0; SIZE as usize])
                }
            };
            write(&chain, &mut model, 7, 3 * MIB, 5000);
            let is_over = !panics_at(n, |on| Resize::to(size).on_progress(on).run(&chain));
            let case = format!("{size} bytes, call {n}");
            let now = if is_over { size } else { SIZE };
            assert_eq!(chain.geometry().size, now, "{case}");
            model.resize(now as usize, 0);
            assert!(bytes(&chain) == model, "{case}");
            write(&chain, &mut model, 40, 4 * MIB + 1000, 3000);
            Resize::to(size).run(&chain).unwrap();
            model.resize(size as usize, 0);
            assert!(bytes(&chain) == model, "{case}");
            chain.close().unwrap();
            assert!(naively(&paths(&chain)) == model, "{case}");
            if is_over {
                assert!(n > 1, "{size} bytes");
                break;
            }
        }
    }
}

#[test]
fn a_change_of_the_type_whose_callback_panics_can_be_done_again() {
    for n in 1.. {
        let folder = tempfile::tempdir().unwrap();
        let chain = base(folder.path(), SIZE);
        let mut model = vec![0; SIZE as usize];
        write(&chain, &mut model, 7, 2 * MIB, 2 * MIB + 4096);
        let path = paths(&chain).remove(0);
        chain.close().unwrap();
        drop(chain);
        let is_over = !panics_at(n, |on| Provision::fixed().on_progress(on).run(&path));
        assert!(naively(std::slice::from_ref(&path)) == model, "call {n}");
        assert_eq!(Provision::fixed().run(&path).unwrap().changed, !is_over, "call {n}");
        assert!(naively(std::slice::from_ref(&path)) == model, "call {n}");
        if is_over {
            assert!(n > 1);
            break;
        }
    }
}

/// It would wait for itself.
#[test]
fn an_operation_within_the_callback_of_another_is_refused() {
    let (over, is_over) = mpsc::channel();
    std::thread::spawn(move || {
        for kind in 0..4 {
            let folder = tempfile::tempdir().unwrap();
            let (chain, _) = three(folder.path());
            let (layers, mut calls) = (chain.layers(), 0);
            let on = |_: Progress| {
                calls += 1;
                let layers = chain.layers();
                let found = [
                    Merge::new(layers[0].id).run(&chain).unwrap_err(),
                    Merge::new(layers[1].id).forecast(&chain).unwrap_err(),
                    Checkpoint::new().run(&chain).unwrap_err(),
                    Revert::to(layers[1].id).run(&chain).unwrap_err(),
                ];
                for error in found {
                    assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "chain.busy"));
                }
                let files = paths(&chain);
                let lost = AcceptLoss::new().run(&files[0], &mut |_| ControlFlow::Continue(()));
                assert_eq!(lost.unwrap_err().kind(), ErrorKind::InUse);
                let linked = Reparent::new(&files[1]).run(&files[0]);
                assert_eq!(linked.unwrap_err().kind(), ErrorKind::InUse);
                // Everything else works.
                chain.write_at(&[calls; 4096], 7 * MIB).unwrap();
                chain.flush().unwrap();
                chain.read_at(&mut [0; 4096], 7 * MIB).unwrap();
                ControlFlow::Continue(())
            };
            match kind {
                0 => drop(Checkpoint::new().on_progress(on).run(&chain).unwrap()),
                1 => drop(Revert::to(layers[1].id).on_progress(on).run(&chain).unwrap()),
                n => drop(Merge::new(layers[n - 2].id).on_progress(on).run(&chain).unwrap()),
            }
            assert!(calls > 1);
        }
        over.send(()).unwrap();
    });
    is_over.recv_timeout(Duration::from_secs(60)).unwrap();
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}
