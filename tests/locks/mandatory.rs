//! All operations on images and chains, on a host with mandatory locks.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::forest::Forest;
use avhdx::ops::{
    Check, Checkpoint, Compare, Explain, Export, Measure, Merge, Relink, Reparent, Revert, Severity,
};
use avhdx::storage::MemStorage;
use avhdx::{Budget, CreateOptions, DiffChain, Disk, ErrorKind, Lock, PathSource, VhdxFile};

use super::host::StrictHost;
use super::{MIB, SIZE, bytes, file, layers, naively, open, options, paths};

const NAMES: [&str; 3] = ["base.vhdx", "middle.avhdx", "tip.avhdx"];

fn source(host: &StrictHost) -> PathSource {
    PathSource::new().host(Arc::new(host.clone()))
}

/// The refusal says that the file is in use, and not that it is damaged or missing.
#[test]
fn files_that_another_handle_has_locked_are_in_use() {
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    let (base, middle, tip) = (file(NAMES[0]), file(NAMES[1]), file(NAMES[2]));
    let writer = open(&host, &tip, true);
    writer.write_at(&[7; 512], 0).unwrap();
    let in_use = |error: avhdx::Error| assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    for lock in [Lock::Shared, Lock::Try, Lock::None] {
        in_use(options(&host).lock(lock).open(&tip).unwrap_err());
        in_use(options(&host).lock(lock).open_image(&tip).unwrap_err());
        in_use(Check::new().options(options(&host).lock(lock)).run(&tip).unwrap_err());
    }
    in_use(options(&host).writable(true).open(&tip).unwrap_err());
    // Its parents can be read by everybody, and written by nobody.
    assert!(bytes(&open(&host, &middle, false)) == points[1]);
    in_use(options(&host).writable(true).open_image(&base).unwrap_err());
    drop(writer);

    // A parent in use: its child cannot be opened, but the link to the parent is not doubted.
    let writer = options(&host).writable(true).orphan_children(true).open_image(&base).unwrap();
    for path in [&middle, &tip] {
        in_use(options(&host).open(path).unwrap_err());
        let report = Check::new().options(options(&host)).run(path).unwrap();
        let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
        assert!(codes.contains(&"file.read"), "{:?}", report.findings);
        assert!(!codes.iter().any(|code| code.starts_with("parent.")), "{:?}", report.findings);
    }
    in_use(Reparent::new(&base).options(options(&host)).run(&tip).unwrap_err());
    in_use(Reparent::new(&middle).options(options(&host)).forecast(&tip).unwrap_err());
    drop(writer);
    assert_eq!(host.locks(), 0);
    assert!(bytes(&open(&host, &middle, false)) == points[1]);
}

/// The search for children meets files that cannot be read: a warning, neither a refusal nor silence.
#[test]
fn a_child_search_warns_of_files_that_are_locked() {
    let host = StrictHost::default();
    layers(&host, &["other.vhdx"]);
    layers(&host, &NAMES);
    let other = open(&host, &file("other.vhdx"), true);
    // The tip has no children that can be seen.
    let tip = open(&host, &file(NAMES[2]), true);
    let warned = tip.warnings();
    assert!(
        warned.iter().any(|w| w.code == "image.children-unread" && w.file.ends_with("other.vhdx")),
        "{warned:?}"
    );
    tip.write_at(&[5; 100], 9).unwrap();
    // A merge needs certainty: it asks for an assurance, and accepts it.
    let merge = Merge::new(tip.layers()[1].id);
    let error = merge.clone().run(&tip).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::HasChildren, "merge.children-unknown"));
    assert!(error.to_string().contains("other.vhdx"), "{error}");
    merge.no_other_children(true).run(&tip).unwrap();
    drop((tip, other));
    let tip = open(&host, &file(NAMES[2]), true);
    assert!(tip.warnings().is_empty(), "{:?}", tip.warnings());
    // Its child is open elsewhere and cannot be examined, so that it counts as a child.
    let base = options(&host).writable(true).open_image(file(NAMES[0])).unwrap_err();
    assert_eq!(base.kind(), ErrorKind::InUse, "{base}");
}

#[test]
fn images_are_made_written_and_read() {
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    assert_eq!(host.locks(), 0);
    for writes in [false, true] {
        let chain = open(&host, &file(NAMES[2]), writes);
        assert!(bytes(&chain) == points[0]);
        let image = chain.image(chain.layers()[1].id).unwrap();
        image.read_at(&mut [0; 512], MIB).unwrap();
        let view = chain.view(chain.layers()[2].id).unwrap();
        assert!(bytes(&view) == points[2]);
        Export::new().run(&chain, &MemStorage::new(Vec::new())).unwrap();
        Measure::raw().run(&chain).unwrap();
        Explain::new(0).run(&chain).unwrap();
        assert!(Compare::new().run(&chain, &view).unwrap().first_difference.is_some());
    }
    for name in NAMES {
        let report = Check::new().options(options(&host)).run(file(name)).unwrap();
        assert!(report.is_sound() && report.count(Severity::Warning) == 0, "{:?}", report.findings);
    }
    let parent = options(&host).open_image(file(NAMES[2])).unwrap();
    let child = CreateOptions::child_of(&parent).unwrap();
    let child = child.create_on(Arc::new(host.clone()), file("new.avhdx")).unwrap();
    child.write_at(&[1; 512], 0).unwrap();
    drop((child, parent));
    // And over an existing one.
    let again = CreateOptions::dynamic(MIB).overwrite(true);
    drop(again.create_on(Arc::new(host.clone()), file("new.avhdx")).unwrap());
    assert_eq!(host.locks(), 0);
}

/// A log left by a crash is replayed under the same lock.
#[test]
fn a_pending_log_is_replayed_and_merged() {
    for child in [0, 1] {
        let host = StrictHost::default();
        layers(&host, &NAMES);
        let chain = open(&host, &file(NAMES[2]), true);
        chain.write_at(&[9; 3000], 2 * MIB + 77).unwrap();
        chain.flush().unwrap();
        let model = bytes(&chain);
        let files = host.sim.files();
        std::mem::forget(chain);
        let host = StrictHost::new(files);
        assert!(bytes(&open(&host, &file(NAMES[2]), false)) == model);
        let chain = open(&host, &file(NAMES[2]), child == 0);
        let id = chain.layers()[child].id;
        Merge::new(id).run(&chain).unwrap_or_else(|error| panic!("{error}"));
        assert!(bytes(&chain) == model);
        chain.close().unwrap();
        let left = paths(&chain);
        drop(chain);
        assert!(naively(&host, &left) == model);
        assert_eq!(host.locks(), 0);
    }
}

/// Others read the chain all the time, through the chain itself, views and handed-out images.
fn while_read(chain: &DiffChain, operation: impl FnOnce()) {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let is_over = AtomicBool::new(false);
    let images: Vec<Arc<VhdxFile>> =
        chain.layers().iter().map(|layer| chain.image(layer.id).unwrap()).collect();
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (chain, images, is_over) = (chain.clone(), &images, &is_over);
            scope.spawn(move || {
                let mut rng = avhdx_testkit::rng::Rng::new(seed);
                while !is_over.load(Ordering::SeqCst) {
                    let at = rng.below(SIZE - 9000);
                    chain.read_at(&mut [0; 9000], at).unwrap_or_else(|error| panic!("{error}"));
                    for image in images {
                        match image.read_at(&mut [0; 512], at / 512 * 512) {
                            Err(error) if error.kind() != ErrorKind::ParentRequired => {
                                panic!("{error}")
                            }
                            _ => {}
                        }
                    }
                }
            });
        }
        let _over = Over(&is_over);
        operation();
    });
}

#[test]
fn a_chain_is_read_while_its_layers_change() {
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    let chain = open(&host, &file(NAMES[2]), true);
    let mut model = points[0].clone();
    while_read(&chain, || {
        let made = Checkpoint::new().path(file("new.avhdx")).run(&chain).unwrap();
        assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    });
    chain.write_at(&[0x77; 100], 50).unwrap();
    model[50..150].fill(0x77);
    assert!(bytes(&chain) == model);
    // Of the tip, in use; of the middle; and of two at once with little space.
    let merges: [(usize, usize, bool); 2] = [(0, 1, false), (0, 2, true)];
    for (child, parent, low_space) in merges {
        while_read(&chain, || {
            let ids: Vec<_> = chain.layers().iter().map(|layer| layer.id).collect();
            let merge = Merge::new(ids[child]).into_layer(ids[parent]).low_space(low_space);
            let done = merge.run(&chain).unwrap_or_else(|error| panic!("{error}"));
            assert!(done.warnings.is_empty(), "{:?}", done.warnings);
        });
        assert!(bytes(&chain) == model);
        chain.write_at(&[child as u8; 100], 2000).unwrap();
        model[2000..2100].fill(child as u8);
    }
    chain.close().unwrap();
    assert_eq!(chain.layers().len(), 1);
    let left = paths(&chain);
    drop(chain);
    assert!(naively(&host, &left) == model);
    assert_eq!(host.locks(), 0);
}

#[test]
fn a_middle_is_merged_while_the_chain_is_read_or_written() {
    for writes in [false, true] {
        let host = StrictHost::default();
        let points = layers(&host, &["base.vhdx", "one.avhdx", "two.avhdx", "tip.avhdx"]);
        let chain = open(&host, &file("tip.avhdx"), writes);
        while_read(&chain, || {
            let ids: Vec<_> = chain.layers().iter().map(|layer| layer.id).collect();
            let done = Merge::new(ids[1]).into_layer(ids[3]).run(&chain).unwrap();
            assert!(done.warnings.is_empty(), "{:?}", done.warnings);
        });
        assert!(bytes(&chain) == points[0]);
        // Others may read what is left, and the tip if nobody writes to it.
        assert!(bytes(&open(&host, &file("base.vhdx"), false)) == points[1]);
        if !writes {
            assert!(bytes(&open(&host, &file("tip.avhdx"), false)) == points[0]);
        }
        drop(chain);
        assert_eq!(host.locks(), 0);
    }
}

#[test]
fn a_merge_that_was_stopped_is_resumed_and_one_that_is_refused_leaves_all_locks() {
    for n in 1_usize.. {
        let host = StrictHost::default();
        let points = layers(&host, &NAMES);
        let chain = open(&host, &file(NAMES[2]), false);
        let id = chain.layers()[1].id;
        let mut left = n;
        let done = Merge::new(id)
            .on_progress(|_| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .run(&chain);
        assert!(bytes(&chain) == points[0], "stop {n}");
        if done.is_ok() {
            assert!(n > 1);
            break;
        }
        // The chain continues under locks that exclude others.
        for name in NAMES {
            let error = options(&host).writable(true).open_image(file(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse, "stop {n}, {name}: {error}");
        }
        drop(chain);
        let chain = open(&host, &file(NAMES[2]), true);
        let id = chain.layers()[1].id;
        if Merge::resume(id).run(&chain).is_err() {
            Merge::new(id).run(&chain).unwrap();
        }
        assert!(bytes(&chain) == points[0], "stop {n}");
        drop(chain);
        assert_eq!(host.locks(), 0);
    }

    // Another process has one of the layers open: refused, and both continue as before.
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    let budget = Budget::new(8 << 20);
    for other in [options(&host), options(&host).budget(budget.clone())] {
        let chain = options(&host).budget(budget.clone()).open(file(NAMES[2])).unwrap();
        let other = other.open(file(NAMES[1])).unwrap();
        let error = Merge::new(chain.layers()[1].id).run(&chain).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(bytes(&chain) == points[0] && bytes(&other) == points[1]);
        drop(other);
        for name in &NAMES[..2] {
            let error = options(&host).writable(true).open_image(file(name)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse, "{name}: {error}");
        }
        drop(chain);
        assert_eq!(host.locks(), 0);
    }
}

#[test]
fn a_revert_and_the_removal_of_what_is_newer() {
    for (deletes, writes) in [(false, false), (false, true), (true, false), (true, true)] {
        let host = StrictHost::default();
        let points = layers(&host, &NAMES);
        let chain = open(&host, &file(NAMES[2]), writes);
        while_read(&chain, || {
            let point = chain.layers()[2].id;
            let revert = Revert::to(point).delete_newer(deletes).path(file("new.avhdx"));
            let made = revert.run(&chain).unwrap_or_else(|error| panic!("{error}"));
            assert!(made.warnings.is_empty(), "{:?}", made.warnings);
            assert_eq!(made.removed.len(), if deletes { 2 } else { 0 });
        });
        assert!(bytes(&chain) == points[2]);
        drop(chain);
        assert_eq!(host.locks(), 0);
        assert!(bytes(&open(&host, &file("new.avhdx"), true)) == points[2]);
    }
}

#[test]
fn links_are_proven_and_set_right() {
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    // A flat copy of the middle as the new parent.
    let flat = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    let flat = flat.create_on(Arc::new(host.clone()), file("flat.vhdx")).unwrap();
    Export::new().onto(&open(&host, &file(NAMES[1]), false), &flat).unwrap();
    drop(flat);
    let reparent = Reparent::new(file("flat.vhdx")).options(options(&host));
    reparent.forecast(file(NAMES[2])).unwrap();
    let done = reparent.run(file(NAMES[2])).unwrap_or_else(|error| panic!("{error}"));
    assert!(done.proven > 0);
    assert!(bytes(&open(&host, &file(NAMES[2]), true)) == points[0]);
    assert_eq!(host.locks(), 0);

    use avhdx::storage::Host;
    host.rename(&file("flat.vhdx"), &file("moved.vhdx")).unwrap();
    let relink = Relink::folder(super::FOLDER).parents(source(&host));
    let done = relink.clone().run().unwrap();
    assert!(done.refused.is_empty(), "{:?}", done.refused);
    assert_eq!(done.images.len(), 1);
    assert!(bytes(&open(&host, &file(NAMES[2]), true)) == points[0]);
    assert_eq!(host.locks(), 0);
}

/// A parent that cannot be examined is no reason to link its child to a copy.
#[test]
fn a_parent_that_is_in_use_is_not_taken_for_one_that_is_gone() {
    let host = StrictHost::default();
    layers(&host, &NAMES);
    let mut files = host.sim.files();
    let copy = files.file(&file(NAMES[0])).unwrap().clone();
    files.names.insert(file("copy.vhdx"), files.files.len());
    files.files.push(copy);
    let host = StrictHost::new(files);
    let writer = options(&host).writable(true).orphan_children(true);
    let writer = writer.open_image(file(NAMES[0])).unwrap();
    let before = host.sim.files().sum();
    let done = Relink::folder(super::FOLDER).parents(source(&host)).run().unwrap();
    assert!(done.images.is_empty(), "{:?}", done.images);
    let refused: Vec<_> = done.refused.iter().map(|error| (error.kind(), error.code())).collect();
    assert_eq!(refused, [(ErrorKind::InUse, "relink.unread")]);
    assert!(done.refused[0].to_string().contains("base.vhdx"), "{}", done.refused[0]);
    assert_eq!(host.sim.files().sum(), before);
    let forest = Forest::scan([super::FOLDER], &source(&host)).unwrap();
    let told = format!("{:?}", forest.findings());
    assert!(told.contains("base.vhdx"), "{told}");
    drop(writer);
    assert!(Relink::folder(super::FOLDER).parents(source(&host)).run().unwrap().refused.is_empty());
}
