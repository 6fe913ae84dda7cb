//! A disk that was opened read-only takes no writes, whatever an operation does to the layers meanwhile.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::{Checkpoint, Merge, Pace, Revert};
use avhdx::storage::{LockMode, Storage};
use avhdx::{
    CreateOptions, DiffChain, Disk, DiskExt, ErrorKind, LayerId, OpenOptions, Planned,
    PlannedSource, VhdxFile, Zeroing,
};

use super::{MIB, base, bytes, naively, paths, writable};

const SIZE: u64 = 12 * MIB;

/// Three layers with shared and separate blocks, and the contents of the tip.
fn three(folder: &Path) -> Vec<u8> {
    let chain = base(folder, SIZE);
    let mut model = vec![0; SIZE as usize];
    for n in 0..3 {
        if n > 0 {
            Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
        }
        for (at, len) in [(n * MIB, 2 * MIB), (5 * MIB + n * 8192, 4096), (8 * MIB, 3 << 19)] {
            chain.write_at(&vec![n as u8 + 1; len as usize], at).unwrap();
            model[at as usize..(at + len) as usize].fill(n as u8 + 1);
        }
        chain.discard((9 + n) * MIB..(10 + n) * MIB).unwrap();
        model[((9 + n) * MIB) as usize..((10 + n) * MIB) as usize].fill(0);
    }
    chain.close().unwrap();
    std::fs::write(folder.join("tip"), paths(&chain)[0].to_str().unwrap()).unwrap();
    model
}

fn tip(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("tip")).unwrap()
}

fn files(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn refused(disk: &dyn Disk, what: &str) {
    let tries: [(&str, avhdx::Result<()>); 6] = [
        ("write", disk.write_at(&[0xBB; 4096], 5 * MIB)),
        ("a part of a sector", disk.write_at(&[0xBB; 7], MIB + 3)),
        ("several", disk.write_vectored_at(&[std::io::IoSlice::new(&[0xBB; 512])], 0)),
        ("zeros", disk.write_zeroes(0..MIB, Zeroing::MayUnmap)),
        ("zeros in place", disk.write_zeroes(MIB..2 * MIB, Zeroing::KeepSpace)),
        ("discard", disk.discard(0..SIZE)),
    ];
    for (how, tried) in tries {
        let error = tried.expect_err(&format!("{how} by {what}"));
        let found = (error.kind(), error.code());
        assert_eq!(found, (ErrorKind::ReadOnly, "disk.read-only"), "{how} by {what}: {error}");
    }
    // A read-only disk has nothing to make durable.
    disk.flush().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut cursor = disk.cursor();
    std::io::Write::write(&mut cursor, &[0xBB; 512]).expect_err(what);
}

fn storage_refused(storage: &dyn Storage, what: &str) {
    let denied = |error: std::io::Error, how: &str| {
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{how} by {what}");
    };
    denied(storage.write_at(&[0xBB; 512], 4 * MIB).unwrap_err(), "write");
    denied(storage.set_len(0).unwrap_err(), "length");
    denied(storage.reserve(1).unwrap_err(), "reserve");
    denied(storage.punch(0..MIB).unwrap_err(), "punch");
    denied(storage.zero(0..MIB).unwrap_err(), "zero");
    denied(storage.copy_from(storage, 0, MIB, 512).unwrap_err(), "copy");
    denied(storage.flush().unwrap_err(), "flush");
    denied(storage.unlock().unwrap_err(), "unlock");
    denied(storage.try_lock(LockMode::Shared).unwrap_err(), "lock");
}

/// Every path to an image of the chain, except through the chain itself.
fn all_ways_refused(chain: &DiffChain, held: &[Arc<VhdxFile>], when: &str) {
    refused(chain.tip().as_ref(), &format!("the tip's image {when}"));
    assert!(!chain.tip().is_writable());
    for layer in chain.layers() {
        // A merge in progress may have replaced the handle meanwhile.
        let Some(image) = chain.image(layer.id) else { continue };
        assert!(!image.is_writable(), "{} {when}", layer.name);
        refused(image.as_ref(), &format!("the image of {} {when}", layer.name));
        image.close().unwrap();
        // The target of an unfinished merge is not a point in time.
        if let Ok(view) = chain.view(layer.id) {
            refused(&view, &format!("a view of {} {when}", layer.name));
            refused(&view.clone(), &format!("a clone of the view of {} {when}", layer.name));
            refused(view.tip().as_ref(), &format!("the image of a view of {} {when}", layer.name));
            view.close().unwrap();
        }
    }
    for image in held {
        assert!(!image.is_writable(), "{} {when}", image.name());
        refused(image.as_ref(), &format!("a held image of {} {when}", image.name()));
    }
    let mut planned = chain.plan_read(0..SIZE).unwrap();
    let plan = loop {
        planned = match planned {
            Planned::Ready(plan) => break plan,
            Planned::Load(load) => {
                storage_refused(load.storage().as_ref(), &format!("a table to be read {when}"));
                load.load().unwrap()
            }
        };
    };
    for piece in plan.pieces() {
        if let PlannedSource::Data { storage, .. } = piece.source {
            storage_refused(storage.as_ref(), &format!("a plan {when}"));
        }
    }
}

/// Every path into a read-only chain.
fn nothing_is_taken(folder: &Path, chain: &DiffChain, held: &[Arc<VhdxFile>], when: &str) {
    let before = files(folder);
    refused(chain, &format!("the chain {when}"));
    refused(&chain.clone(), &format!("a clone {when}"));
    all_ways_refused(chain, held, when);
    chain.close().unwrap();
    assert!(files(folder) == before, "the files are others {when}");
}

fn images(chain: &DiffChain) -> Vec<Arc<VhdxFile>> {
    chain.layers().iter().map(|layer| chain.image(layer.id).unwrap()).collect()
}

fn ids(chain: &DiffChain) -> Vec<LayerId> {
    chain.layers().iter().map(|layer| layer.id).collect()
}

#[test]
fn a_chain_opened_for_reading_takes_no_write_before_during_and_after_a_merge() {
    for (child, parent, low_space) in [(0, 1, false), (0, 2, false), (1, 2, true), (0, 1, true)] {
        let folder = tempfile::tempdir().unwrap();
        let model = three(folder.path());
        let chain = OpenOptions::new().open(tip(folder.path())).unwrap();
        let held = images(&chain);
        let what = format!("a merge of {child} into {parent}");
        nothing_is_taken(folder.path(), &chain, &held, &format!("before {what}"));
        let ids = ids(&chain);
        let merge = Merge::new(ids[child]).into_layer(ids[parent]).low_space(low_space);
        let mut is_begun = false;
        let done = merge
            .on_progress(|_| {
                nothing_is_taken(folder.path(), &chain, &held, &format!("during {what}"));
                is_begun |= held.iter().any(|image| image.merge_mark().is_some());
                ControlFlow::Continue(())
            })
            .run(&chain);
        let done = done.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(is_begun && done.warnings.is_empty(), "{:?}", done.warnings);
        nothing_is_taken(folder.path(), &chain, &held, &format!("after {what}"));
        assert!(bytes(&chain) == model, "{what}");
        let left = paths(&chain);
        drop((chain, held));
        assert!(naively(&left) == model, "{what}");
    }
}

#[test]
fn a_chain_opened_for_reading_takes_no_write_while_a_merge_pauses_nor_after_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let model = three(folder.path());
    let chain = OpenOptions::new().open(tip(folder.path())).unwrap();
    let held = images(&chain);
    let pace = Pace::new();
    let (is_paused, gives_up) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let merge = Merge::new(chain.tip().id()).pace(pace.clone());
        let (chain, is_paused, gives_up) = (&chain, &is_paused, &gives_up);
        let merging = scope.spawn(move || {
            pace.pause();
            merge
                .on_progress(|_| {
                    // Reports during the pause, and before.
                    is_paused.store(true, Ordering::SeqCst);
                    match gives_up.load(Ordering::SeqCst) {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                })
                .run(chain)
        });
        while !is_paused.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // Its marks are written by now, or being written.
        for _ in 0..20 {
            refused(chain, "the chain while a merge pauses");
            all_ways_refused(chain, &held, "while a merge pauses");
        }
        gives_up.store(true, Ordering::SeqCst);
        assert_eq!(merging.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    });
    nothing_is_taken(folder.path(), &chain, &held, "after a merge was stopped");
    Merge::resume(chain.tip().id()).run(&chain).unwrap();
    nothing_is_taken(folder.path(), &chain, &held, "after it was completed");
    assert!(bytes(&chain) == model);
    drop(held);
    let left = paths(&chain);
    drop(chain);
    assert!(naively(&left) == model);
}

#[test]
fn a_chain_opened_for_reading_takes_no_write_after_a_revert() {
    let folder = tempfile::tempdir().unwrap();
    three(folder.path());
    let chain = OpenOptions::new().open(tip(folder.path())).unwrap();
    let held = images(&chain);
    let point = chain.layers()[1].id;
    Revert::to(point).delete_newer(true).run(&chain).unwrap();
    nothing_is_taken(folder.path(), &chain, &held, "after a revert");
    let error = Checkpoint::new().run(&chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
}

/// In a writable chain only the chain itself takes writes, and keeps what was acknowledged.
#[test]
fn only_the_chain_itself_takes_writes_while_its_layers_are_merged() {
    for child in [0, 1] {
        let folder = tempfile::tempdir().unwrap();
        let mut model = three(folder.path());
        let chain = writable(tip(folder.path()).as_ref());
        let held = images(&chain);
        all_ways_refused(&chain, &held, "before");
        let (id, mut n, mut is_begun) = (ids(&chain)[child], 0_u64, false);
        let merged = Merge::new(id)
            .on_progress(|_| {
                n += 1;
                all_ways_refused(&chain, &held, "during a merge");
                is_begun |= held.iter().any(|image| image.merge_mark().is_some());
                let at = (3 * MIB + n * 1536).min(SIZE - MIB);
                chain.write_at(&[n as u8 | 0x80; 1536], at).unwrap();
                model[at as usize..at as usize + 1536].fill(n as u8 | 0x80);
                ControlFlow::Continue(())
            })
            .run(&chain);
        assert!(merged.unwrap().warnings.is_empty() && is_begun);
        all_ways_refused(&chain, &held, "after a merge");
        let made = Checkpoint::new().run(&chain).unwrap();
        all_ways_refused(&chain, &held, "after a checkpoint");
        assert_eq!(chain.tip().id(), made.tip);
        chain.write_at(&[7; 512], 0).unwrap();
        model[..512].fill(7);
        assert!(bytes(&chain) == model);
        chain.close().unwrap();
        assert!(naively(&paths(&chain)) == model);
    }
}

/// An image that is handed out to a second chain keeps its rights, and the first chain notices it.
#[test]
fn an_image_handed_out_gives_no_right_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let model = three(folder.path());
    let chain = writable(tip(folder.path()).as_ref());
    let image = Arc::into_inner(chain.tip()).unwrap();
    let other = OpenOptions::new().writable(true).open_chain(image).unwrap();
    all_ways_refused(&other, &[], "of a second chain");
    refused(&other, "a second chain");
    assert!(bytes(&other) == model);
    let image = Arc::into_inner(chain.tip()).unwrap();
    let followed = OpenOptions::new().writable(true).follow(image);
    for (layer, image) in &followed.layers {
        assert!(!image.is_writable());
        refused(image.as_ref(), &format!("what was followed of {}", layer.name));
    }
    drop(followed);
    let error = Merge::new(chain.layers()[1].id).run(&chain).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    drop(other);
    Merge::new(chain.layers()[1].id).run(&chain).unwrap();
    assert!(bytes(&chain) == model);
}

/// Held images of the chain do not prevent a merge, and read what the files then hold.
#[test]
fn holding_an_image_of_a_layer_does_not_keep_it_from_being_merged() {
    for (child, parent, low_space) in [(1, 2, false), (0, 1, true), (0, 2, false), (1, 2, true)] {
        for writes in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let model = three(folder.path());
            let chain = OpenOptions::new().writable(writes).open(tip(folder.path())).unwrap();
            let held = images(&chain);
            // With their tables in memory.
            let own: Vec<_> = held.iter().map(|image| own_bytes(image)).collect();
            let ids = ids(&chain);
            let merge = Merge::new(ids[child]).into_layer(ids[parent]).low_space(low_space);
            let done = merge
                .on_progress(|_| {
                    held.iter().for_each(|image| drop(own_bytes(image)));
                    ControlFlow::Continue(())
                })
                .run(&chain);
            let what = format!("{child} into {parent}, {low_space}, {writes}");
            let done = done.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(done.warnings.is_empty(), "{what}: {:?}", done.warnings);
            chain.flush().unwrap();
            for (n, image) in held.iter().enumerate() {
                let path = image.path().unwrap().to_owned();
                if !path.exists() {
                    // It has left the chain, and is complete unless its space was freed.
                    assert!((child..parent).contains(&n));
                    assert!(low_space || own_bytes(image) == own[n], "{what}: {n}");
                    continue;
                }
                let alone = VhdxFile::open(&path);
                let expected = match &alone {
                    Ok(alone) => own_bytes(alone),
                    // In use by the chain that writes to it.
                    Err(error) => {
                        assert_eq!((error.kind(), writes), (ErrorKind::InUse, true), "{what}");
                        own_bytes(&unlocked(&path))
                    }
                };
                assert!(own_bytes(image) == expected, "{what}: {n}");
                assert!(
                    chain.image(image.id()).is_some(),
                    "{what}: its name is one of the chain's"
                );
            }
            assert!(bytes(&chain) == model, "{what}");
            // A held image that outlives the chain blocks nothing once it is dropped.
            let left = paths(&chain);
            drop((chain, held));
            assert!(naively(&left) == model, "{what}");
            drop(writable(&left[0]));
        }
    }
}

fn unlocked(path: &Path) -> VhdxFile {
    OpenOptions::new().lock(avhdx::Lock::None).open_image(path).unwrap()
}

/// What an image holds itself, sector by sector.
fn own_bytes(image: &VhdxFile) -> Vec<Option<Vec<u8>>> {
    let at = (0..SIZE).step_by(64 << 10);
    at.map(|at| {
        let mut some = vec![0; 4096];
        match image.read_at(&mut some, at) {
            Ok(()) => Some(some),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ParentRequired, "{error}");
                None
            }
        }
    })
    .collect()
}

/// A reader in another thread is waited for, and continues on the new handle.
#[test]
fn an_image_is_read_correctly_while_its_layer_is_reopened() {
    let folder = tempfile::tempdir().unwrap();
    three(folder.path());
    let chain = OpenOptions::new().open(tip(folder.path())).unwrap();
    let held = images(&chain);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for image in &held {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    // What its layers hold there, by block: none of it is ever zeros.
                    let mut some = [0; 4096];
                    match image.read_at(&mut some, 8 * MIB) {
                        Ok(()) => {
                            assert!((1..=3).contains(&some[0]), "{}", some[0]);
                            assert!(some.iter().all(|byte| (1..=3).contains(byte)));
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::ParentRequired, "{error}");
                        }
                    }
                }
            });
        }
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let _over = Over(&is_over);
        for low_space in [true, false] {
            let merge = Merge::new(chain.tip().id()).low_space(low_space);
            let done = merge.run(&chain).unwrap_or_else(|error| panic!("{error}"));
            assert!(done.warnings.is_empty(), "{:?}", done.warnings);
        }
    });
}

/// A child created from a handed-out image is a child of the disk at that time.
#[test]
fn a_child_is_made_of_an_image_that_was_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = three(folder.path());
    let chain = writable(tip(folder.path()).as_ref());
    chain.write_at(&[9; 512], 0).unwrap();
    model[..512].fill(9);
    let child = folder.path().join("child.avhdx");
    drop(CreateOptions::child_of(&chain.tip()).unwrap().create(&child).unwrap());
    let files: Vec<_> = [child.clone()].into_iter().chain(paths(&chain)).collect();
    assert!(naively(&files) == model);
    // The next write gives the parent a new identity.
    chain.write_at(&[8; 512], 0).unwrap();
    chain.close().unwrap();
    drop(chain);
    let error = OpenOptions::new().open(&child).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch);
}

#[test]
fn a_tip_that_was_opened_for_writing_by_other_options_gets_checkpoints_and_reverts() {
    let folder = tempfile::tempdir().unwrap();
    let path = paths(&base(folder.path(), SIZE)).remove(0);
    let tip = OpenOptions::new().writable(true).open_image(path);
    // These options say nothing of writing; the image that they are given does.
    let chain = OpenOptions::new().open_chain(tip.unwrap()).unwrap();
    chain.write_at(&[1; 4096], 0).unwrap();
    Checkpoint::new().run(&chain).unwrap();
    chain.write_at(&[2; 4096], 0).unwrap();
    Revert::to(ids(&chain)[1]).run(&chain).unwrap();
    assert_eq!(bytes(&chain)[..4096], [1; 4096]);
    chain.write_at(&[3; 4096], 0).unwrap();
    chain.flush().unwrap();
    assert_eq!(bytes(&chain)[..4096], [3; 4096]);
    assert_eq!(paths(&chain).len(), 2);
}

/// Each of these images is known through a handle of another chain, which has no right to write.
#[test]
fn a_child_made_of_an_image_that_came_through_another_chain_knows_it_until_it_changes() {
    type Through = fn(VhdxFile) -> Arc<VhdxFile>;
    let ways: [Through; 2] = [
        |tip| OpenOptions::new().open_chain(tip).unwrap().tip(),
        |tip| Arc::clone(&OpenOptions::new().follow(tip).layers[0].1),
    ];
    for (n, through) in ways.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = three(folder.path());
        let chain = writable(tip(folder.path()).as_ref());
        // The session has begun, and with it an identity that no child knows yet.
        chain.write_at(&[9; 512], 0).unwrap();
        model[..512].fill(9);
        let child = folder.path().join("child.avhdx");
        let parent = through(Arc::into_inner(chain.tip()).unwrap());
        drop(CreateOptions::child_of(&parent).unwrap().create(&child).unwrap());
        let files: Vec<_> = [child.clone()].into_iter().chain(paths(&chain)).collect();
        assert!(naively(&files) == model, "way {n}");
        chain.write_at(&[8; 512], 0).unwrap();
        chain.close().unwrap();
        drop((chain, parent));
        let error = OpenOptions::new().open(&child).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentMismatch, "way {n}");
    }
}

/// It has its own memory for answers, so that they are known by other names than the first chain's.
#[test]
fn another_chain_over_a_tip_sees_its_writes_after_a_merge_that_it_prevents() {
    let folder = tempfile::tempdir().unwrap();
    three(folder.path());
    let chain = writable(tip(folder.path()).as_ref());
    let options = OpenOptions::new().budget(avhdx::Budget::new(8 << 20));
    let other = options.open_chain(Arc::into_inner(chain.tip()).unwrap()).unwrap();
    // Often enough that the layer below the tip is known to have them.
    let mut found = [0; 4096];
    (0..20).for_each(|_| other.read_at(&mut found, 7 * MIB).unwrap());
    let merged = Merge::new(ids(&chain)[1]).run(&chain);
    assert_eq!(merged.map(drop).unwrap_err().kind(), ErrorKind::InUse);
    chain.write_at(&[0xCC; 4096], 7 * MIB).unwrap();
    other.read_at(&mut found, 7 * MIB).unwrap();
    assert_eq!(found, [0xCC; 4096]);
    // Once the chain that writes is gone, nothing speaks of it any more.
    drop(chain);
    let tip = ids(&other)[1];
    let error = Revert::to(tip).forecast(&other).map(drop);
    error.unwrap();
}
