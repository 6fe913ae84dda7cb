//! Children that cannot be read or opened: they still count as children.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::common::meddled::Meddled;
use avhdx::ops::{Delete, DeleteBranch, Merge, Reparent, Revert};
use avhdx::{CreateOptions, DiffChain, Disk, Error, ErrorKind, OpenOptions, PathSource};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A base with two children, one of which has a child too.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        let base = CreateOptions::dynamic(4 * MIB).block_size(MIB as u32);
        let base = base.create(place.at("base.vhdx")).unwrap();
        base.write_at(&[1; 5000], MIB).unwrap();
        base.close().unwrap();
        drop(base);
        for (child, parent) in
            [("mid.avhdx", "base.vhdx"), ("tip.avhdx", "mid.avhdx"), ("other.avhdx", "mid.avhdx")]
        {
            let parent = DiffChain::open(place.at(parent)).unwrap();
            CreateOptions::child_of(&parent.tip()).unwrap().create(place.at(child)).unwrap();
        }
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bytes(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = fs::read_dir(self.0.path()).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    }

    /// Options for a host on which this folder cannot be listed.
    fn unlisted(&self) -> OpenOptions {
        let folder = self.0.path().to_path_buf();
        on(Meddled::new(|_, _| ()).denying(move |what, path| what == "list" && path == folder))
    }

    /// The same for a file that cannot be opened.
    fn unopened(&self, name: &str) -> OpenOptions {
        let file = self.at(name);
        on(Meddled::new(|_, _| ()).denying(move |what, path| what == "open" && path == file))
    }
}

fn on(host: Meddled) -> OpenOptions {
    OpenOptions::new().host(Arc::new(host))
}

fn unknown(error: &Error, place: &Path) {
    assert_eq!((error.kind(), error.code()), (ErrorKind::HasChildren, "image.children-unknown"));
    assert!(error.to_string().contains(&place.display().to_string()), "{error}");
}

#[test]
fn a_folder_that_may_not_be_listed_is_not_one_without_children() {
    let place = Place::new();
    let before = place.bytes();
    let options = place.unlisted();
    let error = options.clone().writable(true).open(place.at("mid.avhdx")).unwrap_err();
    unknown(&error, place.0.path());
    let file = avhdx::storage::Host::open(
        &avhdx::storage::LocalHost,
        &place.at("mid.avhdx"),
        avhdx::storage::Access::Read,
    );
    unknown(&options.check_childless(file.unwrap().as_ref()).unwrap_err(), place.0.path());
    assert!(place.bytes() == before);
    // With consent it is written to.
    let options = options.writable(true).orphan_children(true);
    options.open(place.at("mid.avhdx")).unwrap().write_at(&[2; 100], 0).unwrap();
    assert!(place.bytes() != before);
}

#[test]
fn an_image_that_may_not_be_opened_is_not_one_without_a_parent() {
    let place = Place::new();
    let before = place.bytes();
    let error =
        place.unopened("other.avhdx").writable(true).open(place.at("tip.avhdx")).unwrap_err();
    unknown(&error, &place.at("other.avhdx"));
    assert!(place.bytes() == before);
    // Files without an image's name are not considered.
    fs::rename(place.at("other.avhdx"), place.at("notes.txt")).unwrap();
    let options = place.unopened("notes.txt").writable(true);
    let chain = options.open(place.at("tip.avhdx")).unwrap();
    assert!(chain.warnings().iter().any(|w| w.file.ends_with("notes.txt")));
}

#[test]
fn a_revert_removes_nothing_that_may_have_a_child() {
    let place = Place::new();
    let options = place.unopened("other.avhdx");
    let chain = options.open(place.at("tip.avhdx")).unwrap();
    let before = place.bytes();
    let revert = Revert::to(chain.layers()[2].id).delete_newer(true);
    let error = revert.clone().run(&chain).unwrap_err();
    unknown(&error, &place.at("other.avhdx"));
    assert!(place.bytes() == before);
    let made = revert.orphan_children(true).run(&chain).unwrap();
    assert_eq!(made.removed.len(), 2);
}

/// Overwrites the file from `at` on.
fn damage(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_child_that_does_not_open_still_counts_as_a_child() {
    // A log GUID without entries: the child can be read only if the log is ignored.
    let place = Place::new();
    let child = place.at("tip.avhdx");
    for (sequence, at) in [(100u64, 64 << 10), (101, 128 << 10)] {
        let mut header = fs::read(&child).unwrap()[at..at + 4096].to_vec();
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[48..64].fill(7);
        header[4..8].fill(0);
        let sum = avhdx_testkit::crc::crc32c(&header);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
        damage(&child, at as u64, &header);
    }
    fs::remove_file(place.at("other.avhdx")).unwrap();
    let error = OpenOptions::new().open(&child).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LogWithoutEntries, "{error}");
    let error = OpenOptions::new().writable(true).open(place.at("mid.avhdx")).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::HasChildren, "image.children"));
    // A child that cannot be read at all is reported.
    for (at, len) in [(0, 2), (192 << 10, 128 << 10), (2 << 20, 8)] {
        let place = Place::new();
        damage(&place.at("other.avhdx"), at, &vec![0; len]);
        let chain = OpenOptions::new().writable(true).open(place.at("tip.avhdx")).unwrap();
        let error = Merge::new(chain.layers()[0].id).run(&chain).unwrap_err();
        assert_eq!(error.code(), "merge.children-unknown", "damaged at {at}: {error}");
        drop(chain);
        fs::remove_file(place.at("tip.avhdx")).unwrap();
        let image = OpenOptions::new().writable(true).open_image(place.at("mid.avhdx")).unwrap();
        let is_told = |w: &avhdx::Warning| {
            w.code == "image.children-unread" && w.file.ends_with("other.avhdx")
        };
        assert!(image.warnings().iter().any(is_told), "damaged at {at}: {:?}", image.warnings());
    }
}

#[test]
fn an_unproven_link_is_refused_for_an_image_with_children() {
    let place = Place::new();
    let solo = CreateOptions::dynamic(4 * MIB).create(place.at("solo.vhdx")).unwrap();
    solo.write_at(&[9; 5000], MIB).unwrap();
    solo.close().unwrap();
    drop(solo);
    let before = place.bytes();
    let (mid, solo) = (place.at("mid.avhdx"), place.at("solo.vhdx"));
    let reparent = Reparent::new(&solo).unproven(true);
    for error in [reparent.forecast(&mid).unwrap_err(), reparent.clone().run(&mid).unwrap_err()] {
        assert_eq!((error.kind(), error.code()), (ErrorKind::HasChildren, "image.children"));
    }
    assert!(place.bytes() == before);
    // With consent, its children no longer accept it as their parent.
    let options = OpenOptions::new().orphan_children(true);
    reparent.options(options).run(&mid).unwrap();
    let error = DiffChain::open(place.at("tip.avhdx")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch, "{error}");
    DiffChain::open(&mid).unwrap();
    // A parent with the recorded identity does not change the disk.
    let place = Place::new();
    let link = Reparent::new(place.at("base.vhdx")).unproven(true);
    link.run(place.at("mid.avhdx")).unwrap();
    DiffChain::open(place.at("tip.avhdx")).unwrap();
}

#[test]
fn a_layer_that_cannot_be_removed_is_reported_and_the_new_tip_exists() {
    let place = Place::new();
    fs::remove_file(place.at("other.avhdx")).unwrap();
    let tip = place.at("tip.avhdx");
    let kept = tip.clone();
    let host = Meddled::new(|_, _| ()).denying(move |what, path| what == "rename" && path == kept);
    let chain = on(host.clone()).writable(true).open(&tip).unwrap();
    let revert = Revert::to(chain.layers()[2].id).delete_newer(true);
    let made = revert.run(&chain).unwrap();
    assert!(made.removed.is_empty(), "what lies below it is its parent: {made:?}");
    let codes: Vec<_> = made.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["revert.kept"]);
    assert_eq!(chain.layers()[0].path.as_deref(), Some(made.path.as_path()));
    drop(chain);
    DiffChain::open(&made.path).unwrap();
    DiffChain::open(&tip).unwrap();
}

#[test]
fn a_merge_in_a_folder_that_may_not_be_written_to_is_refused_before_it_begins() {
    let place = Place::new();
    fs::remove_file(place.at("other.avhdx")).unwrap();
    let before = place.bytes();
    let host = Meddled::new(|_, _| ()).denying(|what, _| what == "create");
    let chain = on(host).writable(true).open(place.at("tip.avhdx")).unwrap();
    let layers = chain.layers();
    let merge = Merge::new(layers[1].id);
    for error in [merge.forecast(&chain).unwrap_err(), merge.run(&chain).unwrap_err()] {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "op.remove"), "{error}");
        assert!(error.file().is_some_and(|file| file.ends_with("mid.avhdx")), "{error}");
    }
    let checked = Delete::point(layers[2].id).check_points(&chain).unwrap();
    let codes = checked.iter().map(|point| point.as_ref().unwrap_err().code());
    assert_eq!(codes.collect::<Vec<_>>(), ["delete.tip", "op.remove", "op.remove"]);
    drop(chain);
    let host = Meddled::new(|_, _| ()).denying(|what, _| what == "create");
    let branch = DeleteBranch::at(place.at("tip.avhdx")).lose(true);
    let branch = branch.parents(PathSource::new().host(Arc::new(host)));
    for error in [branch.forecast().unwrap_err(), branch.run().unwrap_err()] {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "op.remove"), "{error}");
    }
    assert!(place.bytes() == before);
    // What the host does not say is found out when the time comes.
    let host = Meddled::new(|_, _| ()).denying(|what, _| what == "create").poor();
    let chain = on(host).writable(true).open(place.at("tip.avhdx")).unwrap();
    Merge::new(chain.layers()[1].id).run(&chain).unwrap();
}

#[test]
fn a_file_that_may_not_be_written_to_is_foretold() {
    let place = Place::new();
    fs::remove_file(place.at("other.avhdx")).unwrap();
    let (base, is_denied) = (place.at("base.vhdx"), Arc::new(AtomicBool::new(false)));
    let denied = Arc::clone(&is_denied);
    let host = Meddled::new(|_, _| ()).denying(move |what, path| {
        what == "open" && path == base && denied.load(Ordering::Relaxed)
    });
    let chain = on(host).writable(true).open(place.at("tip.avhdx")).unwrap();
    let merge = Merge::new(chain.layers()[1].id);
    // Its children are looked for by reading all files but those of the chain.
    is_denied.store(true, Ordering::Relaxed);
    let error = merge.forecast(&chain).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "file.open"), "{error}");
    let checked = Delete::point(chain.layers()[2].id).check_points(&chain).unwrap();
    let codes: Vec<_> = checked.into_iter().map(|point| point.err().map(|e| e.code())).collect();
    // The layer above the one that is merged into the base is linked to it, the tip only to its parent.
    assert_eq!(codes, [Some("delete.tip"), None, Some("file.open")]);
    is_denied.store(false, Ordering::Relaxed);
    merge.run(&chain).unwrap();
}

#[test]
fn a_chain_that_was_given_the_tip_of_another_changes_nothing_of_it() {
    let place = Place::new();
    fs::remove_file(place.at("other.avhdx")).unwrap();
    let own = OpenOptions::new().writable(true).open(place.at("tip.avhdx")).unwrap();
    own.write_at(&[4; 100], 0).unwrap();
    for writable in [false, true] {
        let tip = Arc::try_unwrap(own.tip()).unwrap();
        let guest = OpenOptions::new().writable(writable).open_chain(tip).unwrap();
        let point = guest.layers()[1].id;
        let refused = [
            Revert::to(point).run(&guest).unwrap_err(),
            Revert::to(point).delete_newer(true).run(&guest).unwrap_err(),
            avhdx::ops::Checkpoint::new().run(&guest).unwrap_err(),
            Merge::new(guest.layers()[0].id).run(&guest).unwrap_err(),
        ];
        for error in refused {
            assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "chain.others-tip"));
        }
    }
    // Nor can one that was opened without a lock, while another process writes.
    for lock in [avhdx::Lock::Try, avhdx::Lock::None] {
        let guest = OpenOptions::new().lock(lock).open(place.at("tip.avhdx")).unwrap();
        let revert = Revert::to(guest.layers()[1].id).delete_newer(true);
        let error = revert.run(&guest).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InUse, "lock.in-use"), "{lock:?}");
    }
    own.write_at(&[5; 100], 0).unwrap();
    own.close().unwrap();
    drop(own);
    let mut first = [0; 100];
    DiffChain::open(place.at("tip.avhdx")).unwrap().read_at(&mut first, 0).unwrap();
    assert_eq!(first, [5; 100]);
}

#[test]
fn a_file_keeps_its_owner_and_permissions_when_it_is_replaced() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("private.vhdx");
    fs::write(&path, "what is to be replaced").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let is_root = fs::metadata(&path).unwrap().uid() == 0;
    if is_root {
        std::os::unix::fs::chown(&path, Some(12345), Some(23456)).unwrap();
    }
    let owner = |path: &Path| {
        let stat = fs::metadata(path).unwrap();
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };
    let before = owner(&path);
    CreateOptions::dynamic(MIB).overwrite(true).create(&path).unwrap().close().unwrap();
    assert_eq!(owner(&path), before);
}

#[test]
fn nothing_is_replaced_in_a_folder_that_cannot_be_made_durable() {
    let place = Place::new();
    let before = place.bytes();
    let folder = place.0.path().to_path_buf();
    let host = Meddled::new(|_, _| ()).denying(move |what, path| what == "sync" && path == folder);
    let (old, new) = (place.at("other.avhdx"), place.at("new.vhdx"));
    for path in [&old, &new] {
        let options = CreateOptions::dynamic(MIB).overwrite(true);
        let error = options.create_on(Arc::new(host.clone()), path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(place.bytes() == before, "{}", path.display());
    }
}

/// The points of a long chain were once asked about with as many looks at the folder as pairs of layers.
#[test]
fn the_points_of_a_chain_are_checked_with_one_look_at_the_folder() {
    let calls = |layers: usize| {
        let folder = TempDir::new().unwrap();
        let path = |n| folder.path().join(format!("{n}.vhdx"));
        CreateOptions::dynamic(MIB).create(path(0)).unwrap();
        for n in 1..layers {
            let parent = DiffChain::open(path(n - 1)).unwrap();
            CreateOptions::child_of(&parent.tip()).unwrap().create(path(n)).unwrap();
        }
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let host = Meddled::new(move |what, _| {
            let is_look = ["list", "stat", "is_link"].contains(&what);
            counted.fetch_add(usize::from(is_look), Ordering::Relaxed);
        });
        let chain = on(host).open(path(layers - 1)).unwrap();
        calls.store(0, Ordering::Relaxed);
        let checked = Delete::point(chain.layers()[1].id).check_points(&chain).unwrap();
        assert!(checked[1..].iter().all(Result::is_ok), "{checked:?}");
        calls.load(Ordering::Relaxed)
    };
    let [few, many] = [calls(5), calls(20)];
    assert!(few > 5 && many < 6 * few, "{few} calls, then {many}");
}
