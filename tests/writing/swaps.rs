//! Names that are given to other files during an operation: only the intended file is touched.
#![cfg(unix)]

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::meddled::Meddled;
use avhdx::ops::{Checkpoint, Compact, Merge, Provision, Rebase, Reparent, Resize, Revert};
use avhdx::storage::{Access, Host, LocalHost, Stat, Storage};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, PathSource, Warning};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Whether this user may give files away.
fn is_root(folder: &Path) -> bool {
    fs::metadata(folder).unwrap().uid() == 0
}

/// Owner, group and permissions.
fn owner(path: &Path) -> (u32, u32, u32) {
    let stat = fs::metadata(path).unwrap();
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

#[test]
fn owner_and_permissions_go_from_open_file_to_open_file() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("model"), "").unwrap();
    if is_root(folder.path()) {
        std::os::unix::fs::chown(at("model"), Some(12345), Some(23456)).unwrap();
    }
    // With a set-user-id bit, which must not be copied.
    fs::set_permissions(at("model"), Permissions::from_mode(0o4664)).unwrap();
    for name in ["victim", "other model"] {
        fs::write(at(name), "").unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(0o600)).unwrap();
    }
    let (uid, gid, _) = owner(&at("model"));
    let victim = owner(&at("victim"));
    let model = LocalHost.open(&at("model"), Access::Read).unwrap();
    let file = LocalHost.create_new(&at("file")).unwrap();
    // Both names lead elsewhere by now.
    fs::rename(at("file"), at("moved")).unwrap();
    symlink(at("victim"), at("file")).unwrap();
    fs::rename(at("other model"), at("model")).unwrap();
    file.copy_owner_from(model.as_ref()).unwrap();
    assert_eq!(owner(&at("moved")), (uid, gid, 0o664));
    assert_eq!(owner(&at("victim")), victim);
}

#[test]
fn a_child_never_gets_the_owner_of_another_file_with_its_parents_name() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let base = CreateOptions::dynamic(MIB).create(at("base.vhdx")).unwrap();
    base.close().unwrap();
    fs::set_permissions(at("base.vhdx"), Permissions::from_mode(0o600)).unwrap();
    let options = CreateOptions::child_of(&base).unwrap();
    drop(base);
    // The parent is closed, and found by its name again.
    drop(options.create(at("one.avhdx")).unwrap());
    assert_eq!(owner(&at("one.avhdx")).2, 0o600);
    fs::rename(at("base.vhdx"), at("moved.vhdx")).unwrap();
    fs::write(at("base.vhdx"), "another's").unwrap();
    fs::set_permissions(at("base.vhdx"), Permissions::from_mode(0o666)).unwrap();
    let error = options.create(at("two.avhdx")).unwrap_err();
    assert_eq!(error.code(), "parent.astray", "{error}");
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["base.vhdx", "moved.vhdx", "one.avhdx"]);
    // Nor while the parent is open: the recorded path would lead to the other file.
    let parent = OpenOptions::new().open_image(at("moved.vhdx")).unwrap();
    let options = CreateOptions::child_of(&parent).unwrap();
    fs::rename(at("moved.vhdx"), at("once more.vhdx")).unwrap();
    fs::write(at("moved.vhdx"), "another's").unwrap();
    fs::set_permissions(at("moved.vhdx"), Permissions::from_mode(0o666)).unwrap();
    assert_eq!(options.create(at("three.avhdx")).unwrap_err().code(), "parent.astray");
    assert!(!at("three.avhdx").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_without_a_name_is_invisible_and_gets_a_free_name() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let file = match LocalHost.create_unnamed(&at("file")) {
        // The file system does not support it.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
        file => file.unwrap(),
    };
    file.write_at(b"all of it", 0).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(file.path(), Some(at("file").as_path()));
    fs::write(at("file"), "another's").unwrap();
    let taken = LocalHost.link(file.as_ref(), &at("file")).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    LocalHost.link(file.as_ref(), &at("other")).unwrap();
    assert_eq!(LocalHost.stat(&at("other")).unwrap().id, file.id().unwrap());
    LocalHost.exchange(&at("file"), &at("other")).unwrap();
    assert_eq!(fs::read(at("file")).unwrap(), b"all of it");
    assert_eq!(fs::read(at("other")).unwrap(), b"another's");
    let gone = LocalHost.exchange(&at("file"), &at("none")).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    drop(LocalHost.create_unnamed(&at("third")).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// Contents of files that the operations do not know.
const STRANGERS: [&[u8]; 2] = [b"a stranger's", b"a second stranger's"];

/// A base with two children, data in each, and another image.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        let at = |name: &str| place.at(name);
        let size = |options: CreateOptions| options.block_size(MIB as u32);
        let base = size(CreateOptions::dynamic(2 * MIB)).create(at("base.vhdx")).unwrap();
        base.write_at(&[1; 5000], 0).unwrap();
        base.close().unwrap();
        let mid = size(CreateOptions::child_of(&base).unwrap()).create(at("mid.avhdx")).unwrap();
        mid.close().unwrap();
        drop((base, mid));
        let chain = OpenOptions::new().writable(true).open(at("mid.avhdx")).unwrap();
        chain.write_at(&[2; 5000], 2000).unwrap();
        chain.close().unwrap();
        drop(chain);
        let mid = OpenOptions::new().open(at("mid.avhdx")).unwrap();
        let tip = size(CreateOptions::child_of(&mid.tip()).unwrap()).create(at("tip.avhdx"));
        tip.unwrap().close().unwrap();
        drop(mid);
        let chain = OpenOptions::new().writable(true).open(at("tip.avhdx")).unwrap();
        chain.write_at(&[3; 5000], 4000).unwrap();
        chain.close().unwrap();
        fs::write(at("old.img"), "what is to be replaced").unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The file with this contents, whatever its name.
    fn holding(&self, bytes: &[u8]) -> Option<PathBuf> {
        let files = fs::read_dir(self.0.path()).unwrap().map(|file| file.unwrap().path());
        let mut files = files.filter(|path| !path.is_symlink());
        files.find(|path| fs::read(path).is_ok_and(|found| found == bytes))
    }

    fn chain(&self, host: &Arc<dyn Host>) -> avhdx::Result<DiffChain> {
        OpenOptions::new().host(Arc::clone(host)).writable(true).open(self.at("tip.avhdx"))
    }
}

/// Gives a file's name to another file before the `n`th call that concerns the name or a temporary form of
/// it. Whenever the name is free later, a second file may take it.
struct Swapper {
    name: PathBuf,
    at: usize,
    takes_again: bool,
    calls: AtomicUsize,
    busy: Mutex<bool>,
    /// Whether the file has been examined: before that, the swapped-in file is the intended one.
    is_looked_at: AtomicBool,
}

impl Swapper {
    fn before(&self, what: &str, paths: &[&Path]) {
        let own = self.name.file_name().unwrap().to_str().unwrap();
        let concerns = |path: &&&Path| {
            let name = path.file_name().unwrap_or_default().to_str().unwrap();
            name == own || name.starts_with(&format!(".{own}."))
        };
        let is_opened = what == "open" && paths[0] == self.name;
        if !self.is_looked_at.load(Ordering::SeqCst) || !paths.iter().any(|path| concerns(&path)) {
            self.is_looked_at.fetch_or(is_opened, Ordering::SeqCst);
            return;
        }
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let mut has_swapped = self.busy.lock().unwrap();
        if call == self.at {
            drop(fs::rename(&self.name, self.name.with_extension("moved")));
            fs::write(&self.name, STRANGERS[0]).unwrap();
            *has_swapped = true;
        } else if *has_swapped && self.takes_again && !self.name.exists() {
            fs::write(&self.name, STRANGERS[1]).unwrap();
        }
    }
}

/// Runs an operation with the name swapped at each step, on hosts of all kinds: the other file survives under the
/// name, or where a warning says. Returns how many steps there were.
fn swapped_at_each_step(
    name: &str,
    run: impl Fn(&Place, &Arc<dyn Host>) -> avhdx::Result<Vec<Warning>>,
) -> usize {
    let mut moments = 0;
    for (is_poor, takes_again) in [(false, false), (true, false), (true, true)] {
        for at in 0.. {
            let place = Place::new();
            let swapper = Arc::new(Swapper {
                name: place.at(name),
                at,
                takes_again,
                calls: AtomicUsize::new(0),
                busy: Mutex::new(false),
                is_looked_at: AtomicBool::new(name != "old.img"),
            });
            let meddler = Arc::clone(&swapper);
            let host = Meddled::new(move |what, paths| meddler.before(what, paths));
            let host: Arc<dyn Host> = Arc::new(if is_poor { host.poor() } else { host });
            let done = run(&place, &host);
            let context = format!("{name} at {at}, poor {is_poor}, again {takes_again}: {done:?}");
            if swapper.calls.load(Ordering::SeqCst) <= at {
                assert!(done.is_ok(), "{context}");
                break;
            }
            moments += 1;
            let said = match &done {
                Ok(warnings) => format!("{warnings:?}"),
                Err(error) => {
                    let cause = std::error::Error::source(error).map(ToString::to_string);
                    format!("{error} {cause:?}")
                }
            };
            let found = place.holding(STRANGERS[0]).unwrap_or_else(|| panic!("lost: {context}"));
            if found != place.at(name) {
                let found = found.file_name().unwrap().to_str().unwrap();
                assert!(said.contains(found), "nobody is told of {found}: {context}");
                assert!(place.at(name).exists(), "{context}");
            }
        }
    }
    moments
}

#[test]
fn a_merge_does_not_remove_a_file_that_took_the_childs_name() {
    let merged = |layer: usize| {
        move |place: &Place, host: &Arc<dyn Host>| {
            let chain = place.chain(host)?;
            let child = chain.layers()[layer].id;
            let merged = Merge::new(child).run(&chain)?;
            Ok(merged.warnings)
        }
    };
    assert!(swapped_at_each_step("tip.avhdx", merged(0)) > 10);
    assert!(swapped_at_each_step("mid.avhdx", merged(1)) > 10);
}

#[test]
fn a_revert_does_not_remove_a_file_that_took_a_layers_name() {
    for name in ["tip.avhdx", "mid.avhdx"] {
        let moments = swapped_at_each_step(name, |place, host| {
            let chain = place.chain(host)?;
            let base = chain.layers()[2].id;
            let reverted = Revert::to(base).delete_newer(true).run(&chain)?;
            Ok(reverted.warnings)
        });
        assert!(moments > 10);
    }
}

/// They change the file that they opened, and no other that takes its name.
#[test]
fn operations_in_place_do_not_change_a_file_that_took_the_images_name() {
    type InPlace = fn(&DiffChain) -> avhdx::Result<Vec<Warning>>;
    let in_use: [InPlace; 3] = [
        |chain| Compact::new().content(true).run(chain).map(|_| Vec::new()),
        |chain| Compact::new().punch(true).run(chain).map(|_| Vec::new()),
        |chain| Resize::to(4 * MIB).run(chain).map(|resized| resized.warnings),
    ];
    for run in in_use {
        let moments = swapped_at_each_step("tip.avhdx", |place, host| {
            let chain = place.chain(host)?;
            let warnings = run(&chain)?;
            chain.close()?;
            Ok(warnings)
        });
        assert!(moments > 5, "{moments}");
    }
    let moments = swapped_at_each_step("tip.avhdx", |place, host| {
        let options = OpenOptions::new().host(Arc::clone(host));
        let rebase = Rebase::new(place.at("base.vhdx")).options(options);
        Ok(rebase.run(place.at("tip.avhdx"))?.warnings)
    });
    assert!(moments > 5, "{moments}");
    let moments = swapped_at_each_step("base.vhdx", |place, host| {
        let options = OpenOptions::new().host(Arc::clone(host));
        Ok(Provision::fixed().options(options).run(place.at("base.vhdx"))?.warnings)
    });
    assert!(moments > 5, "{moments}");
}

#[test]
fn a_new_image_replaces_only_the_file_that_was_examined() {
    for name in ["new.vhdx", "old.img"] {
        let moments = swapped_at_each_step(name, |place, host| {
            let options = CreateOptions::dynamic(MIB).overwrite(name == "old.img");
            let image = options.create_on(Arc::clone(host), place.at(name))?;
            Ok(image.warnings().to_vec())
        });
        assert!(moments > 10);
    }
}

#[test]
fn a_failed_create_does_not_remove_a_file_that_took_the_new_name() {
    let place = Place::new();
    let name = place.at("new.vhdx");
    // The folder cannot be flushed, which is noticed only when the file is named.
    let swapped = name.clone();
    let host = Meddled::new(move |what, _| {
        if what == "sync" && swapped.exists() {
            fs::rename(&swapped, swapped.with_extension("moved")).unwrap();
            fs::write(&swapped, STRANGERS[0]).unwrap();
        }
    });
    let error = CreateOptions::dynamic(MIB).create_on(Arc::new(host), &name).unwrap_err();
    assert_eq!(error.code(), "create.swapped");
    assert_eq!(fs::read(&name).unwrap(), STRANGERS[0]);
}

/// A link in place of the child's draft does not redirect the change of owner.
#[test]
fn a_link_in_place_of_a_new_child_does_not_redirect_a_change_of_owner() {
    let place = Place::new();
    fs::write(place.at("secret"), "").unwrap();
    fs::set_permissions(place.at("secret"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(place.at("base.vhdx"), Permissions::from_mode(0o666)).unwrap();
    if is_root(place.0.path()) {
        std::os::unix::fs::chown(place.at("base.vhdx"), Some(12345), Some(12345)).unwrap();
    }
    let before = owner(&place.at("secret"));
    let base = OpenOptions::new().open_image(place.at("base.vhdx")).unwrap();
    let (folder, secret) = (place.0.path().to_path_buf(), place.at("secret"));
    let host = Meddled::new(move |what, paths| {
        if what == "owner" {
            // Under the temporary name, and under the final one.
            let temporary = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
            let temporary = temporary.filter(|path| path.extension().is_some_and(|e| e == "tmp"));
            for name in temporary.chain([folder.join("child.avhdx"), paths[0].to_path_buf()]) {
                drop(fs::remove_file(&name));
                symlink(&secret, &name).unwrap();
            }
        }
    });
    for host in [host.clone(), host.poor()] {
        let child = CreateOptions::child_of(&base).unwrap();
        child.create_on(Arc::new(host), place.at("child.avhdx")).unwrap_err();
        assert_eq!(owner(&place.at("secret")), before);
        assert!(place.at("child.avhdx").is_symlink());
    }
}

/// An operation's warnings, the reported path of the file, and the chain, whose closing is not among the steps.
type Named = (Vec<Warning>, Option<PathBuf>, Option<DiffChain>);

/// Runs an operation with the name of a surviving file swapped at each step: if it succeeds, a warning
/// names both files, and the reported path of the file, if any, is right.
fn renamed_at_each_step(name: &str, run: impl Fn(&Place, &Arc<dyn Host>) -> avhdx::Result<Named>) {
    let mut told = 0;
    for at in 0.. {
        let place = Place::new();
        let swapper = Arc::new(Swapper {
            name: place.at(name),
            at,
            takes_again: false,
            calls: AtomicUsize::new(0),
            busy: Mutex::new(false),
            is_looked_at: AtomicBool::new(false),
        });
        let meddler = Arc::clone(&swapper);
        let host = Meddled::new(move |what, paths| meddler.before(what, paths));
        let host: Arc<dyn Host> = Arc::new(host);
        let done = run(&place, &host);
        let is_over = swapper.calls.load(Ordering::SeqCst) <= at;
        let context = format!("{name} at {at}: {done:?}");
        let own = if is_over { place.at(name) } else { place.at(name).with_extension("moved") };
        if let Ok((warnings, said, _)) = &done {
            assert!(said.as_ref().is_none_or(|said| *said == own), "{context}");
            let mut renamed = warnings.iter().filter(|warning| warning.code == "op.renamed");
            match renamed.next() {
                None => assert!(is_over, "{context}"),
                Some(warning) => {
                    let both = [place.at(name), own];
                    let names = both.map(|path| path.display().to_string());
                    let is_both = names.iter().all(|name| warning.to_string().contains(name));
                    assert!(!is_over && is_both && renamed.next().is_none(), "{context}");
                    told += 1;
                }
            }
        }
        if is_over {
            assert!(done.is_ok(), "{context}");
            break;
        }
        assert_eq!(fs::read(place.at(name)).unwrap(), STRANGERS[0], "{context}");
    }
    assert!(told > 0, "{name}: {told} times");
}

#[test]
fn a_file_that_took_the_name_of_the_merged_parent_is_not_reported_as_the_tip() {
    for (layer, name) in [(0, "mid.avhdx"), (1, "base.vhdx")] {
        renamed_at_each_step(name, |place, host| {
            let chain = place.chain(host)?;
            let merged = Merge::new(chain.layers()[layer].id).run(&chain)?;
            assert_eq!(merged.tip.is_some(), layer == 0);
            Ok((merged.warnings, merged.tip, Some(chain)))
        });
    }
}

#[test]
fn a_file_that_took_the_name_of_a_new_tip_or_its_parent_is_not_reported_as_the_image() {
    for name in ["new.avhdx", "tip.avhdx"] {
        renamed_at_each_step(name, |place, host| {
            let chain = place.chain(host)?;
            let checkpoint = Checkpoint::new().path(place.at("new.avhdx"));
            let made = checkpoint.run(&chain)?;
            Ok((made.warnings, Some(made.path).filter(|_| name == "new.avhdx"), Some(chain)))
        });
    }
    for name in ["new.avhdx", "base.vhdx"] {
        renamed_at_each_step(name, |place, host| {
            let chain = place.chain(host)?;
            let revert = Revert::to(chain.layers()[2].id).path(place.at("new.avhdx"));
            let made = revert.run(&chain)?;
            Ok((made.warnings, Some(made.path).filter(|_| name == "new.avhdx"), Some(chain)))
        });
    }
}

#[test]
fn an_image_is_not_linked_to_a_file_that_took_its_new_parents_name() {
    for name in ["other.vhdx", "mid.avhdx"] {
        renamed_at_each_step(name, |place, host| {
            fs::copy(place.at("base.vhdx"), place.at("other.vhdx")).unwrap();
            let options = OpenOptions::new().host(Arc::clone(host));
            let reparent = Reparent::new(place.at("other.vhdx")).options(options);
            let done = reparent.run(place.at("mid.avhdx"))?;
            Ok((done.warnings, Some(done.path).filter(|_| name == "mid.avhdx"), None))
        });
    }
    for name in ["base.vhdx", "tip.avhdx"] {
        renamed_at_each_step(name, |place, host| {
            let options = OpenOptions::new().host(Arc::clone(host));
            let rebase = Rebase::new(place.at("base.vhdx")).options(options);
            let done = rebase.run(place.at("tip.avhdx"))?;
            Ok((done.warnings, Some(done.path).filter(|_| name == "tip.avhdx"), None))
        });
    }
}

/// Without identities a file is recognized by its headers.
#[test]
fn a_host_that_cannot_identify_files_compares_headers() {
    for is_swapped in [false, true] {
        let place = Place::new();
        let tip = place.at("tip.avhdx");
        let (name, other) = (tip.clone(), place.at("mid.avhdx"));
        let host = Meddled::new(move |what, paths| {
            // Just before it is renamed.
            if is_swapped && what == "rename" && paths[0] == name {
                fs::rename(&name, name.with_extension("moved")).unwrap();
                fs::copy(&other, &name).unwrap();
            }
        });
        let mut host = host;
        host.has_ids = false;
        let host: Arc<dyn Host> = Arc::new(host);
        let chain = place.chain(&host).unwrap();
        let tip_id = chain.layers()[0].id;
        let merged = Merge::new(tip_id).run(&chain).unwrap();
        let codes: Vec<_> = merged.warnings.iter().map(|warning| warning.code).collect();
        let expected: &[&str] = if is_swapped { &["op.swapped"] } else { &[] };
        assert_eq!((codes.as_slice(), tip.exists()), (expected, is_swapped), "{merged:?}");
    }
}

/// A host with only the mandatory methods.
#[derive(Debug)]
struct Plain(Meddled);

impl Host for Plain {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.0.open(path, access)
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn Storage>> {
        self.0.create_new(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.list(folder)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.0.stat(path)
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.0.canonical(path)
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.0.is_link(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.0.sync_dir(folder)
    }
}

/// Between the check of a parent's path and its opening, a folder on the way or the file itself becomes a link that
/// leads out.
#[test]
fn a_link_that_was_swapped_in_does_not_lead_out_of_the_confines() {
    for (swapped, target) in [("in/sub", "out"), ("in/sub/base.vhdx", "out/base.vhdx")] {
        // A host without file identities can only check the names.
        for (is_plain, has_ids) in [(false, true), (true, true), (true, false)] {
            let folder = TempDir::new().unwrap();
            let root = folder.path().canonicalize().unwrap();
            let at = |name: &str| root.join(name);
            fs::create_dir_all(at("in/sub")).unwrap();
            fs::create_dir(at("out")).unwrap();
            let base = CreateOptions::dynamic(MIB).create(at("in/sub/base.vhdx")).unwrap();
            base.close().unwrap();
            drop(CreateOptions::child_of(&base).unwrap().create(at("in/tip.avhdx")).unwrap());
            drop(base);
            // The same image, so that its identity is no obstacle.
            fs::copy(at("in/sub/base.vhdx"), at("out/base.vhdx")).unwrap();
            let (name, target) = (at(swapped), at(target));
            let is_swapped = AtomicUsize::new(0);
            let host = Meddled::new(move |what, paths| {
                if !paths[0].ends_with("in/sub/base.vhdx") && !paths[0].ends_with("in/sub") {
                    return;
                }
                // At the last moment: during the opening, after all checks.
                if what == "open" && is_swapped.fetch_add(1, Ordering::SeqCst) == 0 {
                    fs::rename(&name, name.with_extension("moved")).unwrap();
                    symlink(&target, &name).unwrap();
                }
            });
            let mut host = host;
            host.has_ids = has_ids;
            let host: Arc<dyn Host> = if is_plain { Arc::new(Plain(host)) } else { Arc::new(host) };
            let parents = PathSource::new().host(Arc::clone(&host)).confined_to(at("in"));
            let opened = OpenOptions::new().host(host).parents(parents).open(at("in/tip.avhdx"));
            let error = opened.map(|chain| chain.layers()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ParentDenied, "{swapped}: {error}");
            assert!(at(swapped).is_symlink());
        }
    }
}
