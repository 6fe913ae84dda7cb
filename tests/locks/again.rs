//! Facts established before a lock is held may change until it is: they are checked again afterwards,
//! and nothing is written if they have changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use avhdx::ops::{Check, Compact, Merge, Provision, Rebase, Relink, Reparent, Resize, Revert};
use avhdx::storage::{Host, LockMode};
use avhdx::{CreateOptions, Disk, ErrorKind, OpenOptions, PathSource};

use super::host::StrictHost;
use super::sim::{FOLDER, Files, SimHost};
use super::{MIB, bytes, file, layers, open, options, paths};

const NAMES: [&str; 4] = ["base.vhdx", "one.avhdx", "two.avhdx", "tip.avhdx"];

/// Runs this once, just before somebody locks the file exclusively.
fn when_locked(
    host: &StrictHost,
    name: &str,
    mode: LockMode,
    does: impl Fn(&SimHost) + Send + Sync + 'static,
) -> Arc<AtomicBool> {
    let is_done = Arc::new(AtomicBool::new(false));
    let (path, done) = (file(name), Arc::clone(&is_done));
    host.before_lock(move |host, locked, how| {
        if locked == path && how == mode && !done.swap(true, Ordering::SeqCst) {
            does(&host.sim);
        }
    });
    is_done
}

fn unlocked(host: &SimHost) -> OpenOptions {
    let host = Arc::new(host.clone());
    OpenOptions::new().host(host.clone()).parents(PathSource::new().host(host))
}

/// Another session writes to the file and ends.
fn written(host: &SimHost, name: &str) {
    let image = unlocked(host).writable(true).orphan_children(true);
    let image = image.open_image(file(name)).unwrap();
    image.write_at(&[0xEE; 4096], 5 * MIB).unwrap();
    image.close().unwrap();
}

/// A copy takes the name of the file, which gets another name.
fn swapped(host: &SimHost, name: &str) {
    let aside = format!("{name}.aside");
    host.rename(&file(name), &file(&aside)).unwrap();
    copied(host, &aside, name);
}

fn copied(host: &SimHost, name: &str, to: &str) {
    let files = host.files();
    let bytes = files.file(&file(name)).unwrap();
    let mut all = vec![0; bytes.len() as usize];
    bytes.read(0, &mut all);
    host.create_new(&file(to)).unwrap().write_at(&all, 0).unwrap();
}

/// A child of the file is created.
fn had_a_child(host: &SimHost, name: &str) {
    let parent = unlocked(host).open_image(file(name)).unwrap();
    let child = CreateOptions::child_of(&parent).unwrap();
    drop(child.create_on(Arc::new(host.clone()), file("late.avhdx")).unwrap());
}

/// The files as they were after the interference.
fn after(host: &StrictHost, does: impl Fn(&SimHost)) -> Files {
    let copy = SimHost::new(host.sim.files());
    does(&copy);
    copy.files()
}

/// Files and names are those after the interference, except for random identities.
fn untouched(host: &StrictHost, meddled: &Files, what: &str) {
    assert_eq!(host.sim.files().sum().plain, meddled.sum().plain, "{what}");
}

fn in_use(error: &avhdx::Error, codes: &[&str], what: &str) {
    assert_eq!(error.kind(), ErrorKind::InUse, "{what}: {error}");
    assert!(codes.contains(&error.code()), "{what}: {error}");
}

#[test]
fn a_merge_looks_again_at_each_layer_once_it_has_the_lock() {
    type Meddling = (&'static str, fn(&SimHost, &str));
    let kinds: [Meddling; 2] = [("written to", written), ("swapped", swapped)];
    for (how, meddle) in kinds {
        // The layer above, the child and the parent; and those of the merge of a tip.
        for (child, name) in [(1, 3), (1, 2), (1, 1), (0, 3), (0, 2)] {
            let (name, what) = (NAMES[name], format!("{} {how}", NAMES[name]));
            let host = StrictHost::default();
            layers(&host, &NAMES);
            let chain = open(&host, &file("tip.avhdx"), false);
            let meddled = after(&host, |host| meddle(host, name));
            let done = when_locked(&host, name, LockMode::Exclusive, move |h| meddle(h, name));
            let error = Merge::new(chain.layers()[child].id).run(&chain).unwrap_err();
            assert!(done.load(Ordering::SeqCst), "{what}");
            in_use(&error, &["chain.changed", "file.replaced"], &what);
            host.tell_nobody();
            untouched(&host, &meddled, &what);
            // Readers have their locks again.
            drop(chain);
            assert_eq!(host.locks(), 0);
        }
    }
}

#[test]
fn a_merge_looks_for_children_again_once_it_has_the_lock() {
    for name in ["one.avhdx", "two.avhdx"] {
        let host = StrictHost::default();
        let points = layers(&host, &NAMES);
        let chain = open(&host, &file("tip.avhdx"), false);
        let done = when_locked(&host, name, LockMode::Exclusive, move |h| had_a_child(h, name));
        let error = Merge::new(chain.layers()[1].id).run(&chain).unwrap_err();
        assert!(done.load(Ordering::SeqCst));
        assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
        assert!(error.to_string().contains("late.avhdx"), "{error}");
        assert!(bytes(&chain) == points[0]);
        let parent = if name == "one.avhdx" { &points[2] } else { &points[1] };
        assert!(bytes(&open(&host, &file("late.avhdx"), false)) == *parent);
        let marks = paths(&chain)
            .into_iter()
            .map(|path| options(&host).open_image(path).unwrap().merge_mark());
        assert!(marks.into_iter().all(|mark| mark.is_none()));
    }
}

#[test]
fn a_revert_looks_for_children_again_before_it_removes_a_layer() {
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    let chain = open(&host, &file("tip.avhdx"), false);
    let done = when_locked(&host, "new.avhdx", LockMode::Shared, |h| had_a_child(h, "two.avhdx"));
    let revert = Revert::to(chain.layers()[2].id).delete_newer(true).path(file("new.avhdx"));
    let made = revert.run(&chain).unwrap();
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(made.removed, [file("tip.avhdx")], "newest first, up to the one that has a child");
    assert!(made.warnings.iter().any(|w| w.code == "revert.kept"), "{:?}", made.warnings);
    assert!(bytes(&chain) == points[2]);
    assert!(bytes(&open(&host, &file("late.avhdx"), false)) == points[1]);
}

#[test]
fn an_image_is_looked_at_once_it_is_locked_for_writing() {
    // The opened contents include everything written until then.
    let host = StrictHost::default();
    layers(&host, &NAMES);
    let done = when_locked(&host, "tip.avhdx", LockMode::Exclusive, |h| written(h, "tip.avhdx"));
    let chain = open(&host, &file("tip.avhdx"), true);
    assert!(done.load(Ordering::SeqCst));
    let mut some = [0; 4096];
    chain.read_at(&mut some, 5 * MIB).unwrap();
    assert_eq!(some, [0xEE; 4096]);
    drop(chain);

    // A child created until then is found, and a name that another file got is noticed.
    let child = |host: &SimHost| had_a_child(host, "tip.avhdx");
    let swap = |host: &SimHost| swapped(host, "tip.avhdx");
    let meddled = after(&host, swap);
    when_locked(&host, "tip.avhdx", LockMode::Exclusive, swap);
    let error = options(&host).writable(true).open(file("tip.avhdx")).unwrap_err();
    in_use(&error, &["file.replaced"], "swapped");
    untouched(&host, &meddled, "swapped");
    let meddled = after(&host, child);
    when_locked(&host, "tip.avhdx", LockMode::Exclusive, child);
    let error = options(&host).writable(true).open(file("tip.avhdx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
    untouched(&host, &meddled, "a child");
}

/// A parent is not locked when it is found.
#[test]
fn a_parent_written_to_before_it_is_locked_is_refused() {
    for name in ["base.vhdx", "two.avhdx"] {
        let host = StrictHost::default();
        layers(&host, &NAMES);
        let done = when_locked(&host, name, LockMode::Shared, move |h| written(h, name));
        let error = options(&host).open(file("tip.avhdx")).unwrap_err();
        assert!(done.load(Ordering::SeqCst));
        let found = (error.kind(), error.code());
        assert_eq!(found, (ErrorKind::ParentMismatch, "parent.mismatch"), "{error}");

        let host = StrictHost::default();
        layers(&host, &NAMES);
        when_locked(&host, name, LockMode::Shared, move |h| written(h, name));
        let report = Check::new().options(options(&host)).run(file("tip.avhdx")).unwrap();
        let codes: Vec<_> = report.findings.iter().map(|finding| finding.code).collect();
        assert!(codes.contains(&"parent.mismatch"), "{name}: {codes:?}");
    }
}

/// Somebody else links it to this parent.
fn linked_to(host: &SimHost, name: &str, parent: &str) {
    let reparent = Reparent::new(file(parent)).unproven(true).options(unlocked(host));
    reparent.run(file(name)).unwrap();
}

fn moved(host: &StrictHost) {
    host.rename(&file("two.avhdx"), &file("moved.avhdx")).unwrap();
}

fn relinked(host: &StrictHost) -> avhdx::ops::Relinked {
    let source = PathSource::new().host(Arc::new(host.clone()));
    Relink::folder(FOLDER).parents(source).run().unwrap()
}

#[test]
fn a_relink_looks_again_once_it_has_the_lock() {
    type Meddling = (&'static str, fn(&SimHost));
    let kinds: [Meddling; 5] = [
        ("linked to a copy of its parent", |host| {
            copied(host, "moved.avhdx", "other.avhdx");
            linked_to(host, "tip.avhdx", "other.avhdx");
        }),
        ("linked to another", |host| linked_to(host, "tip.avhdx", "one.avhdx")),
        ("swapped", |host| swapped(host, "tip.avhdx")),
        ("its parent written to", |host| written(host, "moved.avhdx")),
        ("its parent replaced", |host| {
            host.rename(&file("moved.avhdx"), &file("aside.avhdx")).unwrap();
            host.rename(&file("one.avhdx"), &file("moved.avhdx")).unwrap();
        }),
    ];
    for (what, meddle) in kinds {
        let host = StrictHost::default();
        layers(&host, &NAMES);
        moved(&host);
        let meddled = after(&host, meddle);
        let done = when_locked(&host, "tip.avhdx", LockMode::Exclusive, meddle);
        let relinked = relinked(&host);
        assert!(done.load(Ordering::SeqCst), "{what}");
        assert!(relinked.images.is_empty(), "{what}");
        let [refused] = &relinked.refused[..] else { panic!("{what}: {:?}", relinked.refused) };
        in_use(refused, &["relink.changed", "file.replaced"], what);
        untouched(&host, &meddled, what);
        assert_eq!(host.locks(), 0);
    }
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    moved(&host);
    assert_eq!(relinked(&host).images.len(), 1);
    assert!(bytes(&open(&host, &file("tip.avhdx"), true)) == points[0]);
}

#[test]
fn a_reparent_looks_again_once_it_has_the_lock() {
    let reparent = |host: &StrictHost| {
        Reparent::new(file("copy.avhdx")).options(options(host)).run(file("tip.avhdx"))
    };
    let scene = || {
        let host = StrictHost::default();
        let points = layers(&host, &NAMES);
        // Another file with the parent's contents and another identity.
        let sim = SimHost::new(host.sim.files());
        let copy = CreateOptions::child_of(&unlocked(&sim).open_image(file("two.avhdx")).unwrap());
        drop(copy.unwrap().create_on(Arc::new(sim.clone()), file("copy.avhdx")).unwrap());
        (StrictHost::new(sim.files()), points)
    };
    // The name belongs to another file by then.
    let (host, _) = scene();
    let swap = |host: &SimHost| swapped(host, "tip.avhdx");
    let meddled = after(&host, swap);
    when_locked(&host, "tip.avhdx", LockMode::Exclusive, swap);
    in_use(&reparent(&host).unwrap_err(), &["file.replaced"], "swapped");
    untouched(&host, &meddled, "swapped");
    // It is written to or linked elsewhere: the proof applies to its state by then.
    let (host, points) = scene();
    when_locked(&host, "tip.avhdx", LockMode::Exclusive, |h| written(h, "tip.avhdx"));
    reparent(&host).unwrap();
    let mut model = points[0].clone();
    model[5 << 20..(5 << 20) + 4096].fill(0xEE);
    assert!(bytes(&open(&host, &file("tip.avhdx"), false)) == model);
    let (host, _) = scene();
    let link = |host: &SimHost| linked_to(host, "tip.avhdx", "base.vhdx");
    let meddled = after(&host, link);
    when_locked(&host, "tip.avhdx", LockMode::Exclusive, link);
    let error = reparent(&host).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unproven, "reparent.differs"), "{error}");
    untouched(&host, &meddled, "linked elsewhere");
    // The new parent is written to before it is locked.
    let (host, _) = scene();
    let write = |host: &SimHost| written(host, "copy.avhdx");
    let meddled = after(&host, write);
    when_locked(&host, "copy.avhdx", LockMode::Shared, write);
    let error = reparent(&host).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unproven, "reparent.differs"), "{error}");
    untouched(&host, &meddled, "the parent to be");
    // A rebase takes in what differs by then.
    let (host, points) = scene();
    when_locked(&host, "copy.avhdx", LockMode::Shared, |h| written(h, "copy.avhdx"));
    let rebase = Rebase::new(file("copy.avhdx")).options(options(&host));
    let done = rebase.run(file("tip.avhdx")).unwrap();
    assert!(done.written + done.zeroed > 0);
    assert!(bytes(&open(&host, &file("tip.avhdx"), false)) == points[0]);
}

/// The chain has had its locks since it was opened; the child came later.
#[test]
fn a_compaction_and_a_resize_look_for_children_that_came_since() {
    let host = StrictHost::default();
    let points = layers(&host, &NAMES);
    let chain = open(&host, &file("tip.avhdx"), true);
    had_a_child(&host.sim, "tip.avhdx");
    let before = host.sim.files().sum();
    let errors = [
        Compact::new().run(&chain).unwrap_err(),
        Compact::new().content(true).punch(true).run(&chain).unwrap_err(),
        Resize::to(super::SIZE + MIB).run(&chain).unwrap_err(),
        Resize::to(5 * MIB).shrink(true).run(&chain).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
        assert!(error.to_string().contains("late.avhdx"), "{error}");
    }
    assert!(host.sim.files().sum() == before, "refused, and changed");
    assert!(bytes(&chain) == points[0]);
    // A child reads the same below a parent that was compacted with consent.
    Compact::new().with_children(true).run(&chain).unwrap();
    chain.close().unwrap();
    drop(chain);
    assert!(bytes(&open(&host, &file("late.avhdx"), false)) == points[0]);
}

#[test]
fn a_rebase_and_a_change_of_the_type_look_again_once_they_have_the_lock() {
    type Change = (&'static str, fn(&StrictHost) -> avhdx::Result<()>);
    let changes: [Change; 2] = [
        ("tip.avhdx", |host| {
            let rebase = Rebase::new(file("base.vhdx")).options(options(host));
            rebase.run(file("tip.avhdx")).map(drop)
        }),
        ("base.vhdx", |host| {
            Provision::fixed().options(options(host)).run(file("base.vhdx")).map(drop)
        }),
    ];
    for (name, run) in changes {
        // The name belongs to another file by then.
        let host = StrictHost::default();
        layers(&host, &NAMES);
        let swap = move |host: &SimHost| swapped(host, name);
        let meddled = after(&host, swap);
        let done = when_locked(&host, name, LockMode::Exclusive, swap);
        in_use(&run(&host).unwrap_err(), &["file.replaced"], name);
        assert!(done.load(Ordering::SeqCst), "{name}");
        host.tell_nobody();
        untouched(&host, &meddled, name);
        // It is written to: the change is one of its state by then.
        let host = StrictHost::default();
        let points = layers(&host, &NAMES);
        when_locked(&host, name, LockMode::Exclusive, move |host| written(host, name));
        run(&host).unwrap();
        let mut model = points[if name == "tip.avhdx" { 0 } else { 3 }].clone();
        model[5 << 20..(5 << 20) + 4096].fill(0xEE);
        assert!(bytes(&open(&host, &file(name), false)) == model, "{name}");
    }
}

/// The images of an interrupted merge are checked in the same way.
#[test]
fn a_merge_that_is_resumed_looks_again_too() {
    for name in ["two.avhdx", "one.avhdx"] {
        let host = StrictHost::default();
        layers(&host, &NAMES);
        let chain = open(&host, &file("tip.avhdx"), false);
        let id = chain.layers()[1].id;
        let mut words = 0;
        let stopped = Merge::new(id)
            .on_progress(|_| {
                words += 1;
                match words {
                    3.. => std::ops::ControlFlow::Break(()),
                    _ => std::ops::ControlFlow::Continue(()),
                }
            })
            .run(&chain);
        drop(stopped);
        drop(chain);
        let chain = open(&host, &file("tip.avhdx"), false);
        let id = chain.layers()[1].id;
        if chain.image(id).unwrap().merge_mark().is_none() {
            continue;
        }
        let swap = move |host: &SimHost| swapped(host, name);
        let meddled = after(&host, swap);
        let done = when_locked(&host, name, LockMode::Exclusive, swap);
        let error = Merge::resume(id).run(&chain).unwrap_err();
        assert!(done.load(Ordering::SeqCst));
        in_use(&error, &["chain.changed", "file.replaced"], name);
        untouched(&host, &meddled, name);
    }
}
