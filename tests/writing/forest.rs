//! Forests in folders, on hosts that refuse, that count, and that cannot identify files.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use avhdx::ops::forest::{Forest, ForestFinding, LeadsTo, NodeId};
use avhdx::storage::{Access, FileId, Host, LocalHost, LockMode, LockOutcome, Stat, Storage};
use avhdx::{ErrorKind, OpenOptions, PathSource};
use avhdx_testkit::build::{Image, write_chain};
use tempfile::TempDir;
use uuid::Uuid;

/// This machine with counters and faults.
#[derive(Debug, Default)]
struct Watched {
    /// Paths that cannot be listed or opened.
    forbidden: Vec<PathBuf>,
    /// Files and folders have no identity, as on Windows.
    nameless: bool,
    /// Opens by path, and all folder listings.
    opens: Mutex<HashMap<PathBuf, usize>>,
    lists: AtomicUsize,
    open_now: Arc<AtomicUsize>,
    open_most: AtomicUsize,
}

/// A file that is counted while it is open.
#[derive(Debug)]
struct Counted {
    file: Arc<dyn Storage>,
    nameless: bool,
    open_now: Arc<AtomicUsize>,
}

impl Watched {
    fn check(&self, path: &Path) -> io::Result<()> {
        match self.forbidden.iter().any(|forbidden| forbidden == path) {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }

    fn scan(self: &Arc<Self>, place: &Path) -> Forest {
        let source = PathSource::new().host(Arc::clone(self) as Arc<dyn Host>);
        let forest = Forest::scan([place], &source).unwrap();
        assert_eq!(self.open_now.load(Relaxed), 0, "files stay open");
        forest
    }
}

impl Host for Watched {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        self.check(path)?;
        assert_eq!(access, Access::Read);
        *self.opens.lock().unwrap().entry(path.to_path_buf()).or_default() += 1;
        let file = LocalHost.open(path, access)?;
        let now = self.open_now.fetch_add(1, Relaxed) + 1;
        self.open_most.fetch_max(now, Relaxed);
        let open_now = Arc::clone(&self.open_now);
        Ok(Arc::new(Counted { file, nameless: self.nameless, open_now }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        self.check(folder)?;
        self.lists.fetch_add(1, Relaxed);
        LocalHost.list(folder)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let mut stat = LocalHost.stat(path)?;
        if self.nameless {
            stat.id = None;
        }
        Ok(stat)
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        LocalHost.canonical(path)
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        LocalHost.is_link(path)
    }

    fn create_new(&self, _: &Path) -> io::Result<Arc<dyn Storage>> {
        unreachable!("a scan changes nothing")
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        unreachable!("a scan changes nothing")
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        unreachable!("a scan changes nothing")
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        unreachable!("a scan changes nothing")
    }
}

impl Storage for Counted {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn path(&self) -> Option<&Path> {
        self.file.path()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("a scan changes nothing")
    }

    fn flush(&self) -> io::Result<()> {
        unreachable!("a scan changes nothing")
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        unreachable!("a scan changes nothing")
    }

    fn id(&self) -> io::Result<Option<FileId>> {
        if self.nameless { Ok(None) } else { self.file.id() }
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.file.try_lock(mode)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open_now.fetch_sub(1, Relaxed);
    }
}

fn identity(n: u128) -> Uuid {
    Uuid::from_u128((0xfeed << 64) + n)
}

fn base(n: u128) -> Image {
    let mut image = Image::dynamic(1 << 20);
    image.set_data_write_guid(identity(n));
    image
}

fn child(n: u128, parent: u128, path: &str) -> Image {
    let mut image = Image::child(1 << 20, identity(parent));
    image.set_data_write_guid(identity(n)).parent_path(path);
    image
}

/// The node with this file name.
#[track_caller]
fn named(forest: &Forest, name: &str) -> NodeId {
    let found = forest.nodes().find(|(_, node)| node.path.ends_with(name));
    found.unwrap_or_else(|| panic!("no {name}")).0
}

fn codes(forest: &Forest) -> Vec<&'static str> {
    forest.findings().iter().map(ForestFinding::code).collect()
}

#[test]
fn what_cannot_be_read_is_a_finding() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("closed")).unwrap();
    base(0).write_to(at("base.vhdx"));
    base(1).write_to(at("closed.vhdx"));
    child(2, 1, ".\\closed.vhdx").write_to(at("tip.avhdx"));
    let forbidden = vec![at("closed"), at("closed.vhdx")];
    let host = Arc::new(Watched { forbidden, ..Watched::default() });
    let forest = host.scan(folder.path());
    assert_eq!(forest.nodes().len(), 2);
    assert_eq!(codes(&forest), ["orphan", "unreadable", "unreadable"]);
    for (finding, name) in forest.findings()[1..].iter().zip(["closed", "closed.vhdx"]) {
        let ForestFinding::Unreadable { path, error, .. } = finding else { panic!("{finding:?}") };
        assert_eq!((path, error.kind()), (&at(name), ErrorKind::Io));
        assert_eq!(error.file(), at(name).to_str());
    }
    let link = forest.node(named(&forest, "tip.avhdx")).link.as_ref().unwrap();
    assert_eq!(link.leads[0].to, LeadsTo::Denied);
}

#[test]
fn hosts_without_file_identities() {
    let folder = TempDir::new().unwrap();
    let images = [base(0), child(1, 0, ".\\l0.vhdx"), child(2, 1, ".\\l1.vhdx")];
    write_chain(folder.path(), &images);
    fs::create_dir(folder.path().join("below")).unwrap();
    let host = Arc::new(Watched { nameless: true, ..Watched::default() });
    let source = PathSource::new().host(Arc::clone(&host) as Arc<dyn Host>);
    // Places that contain each other, and one given twice.
    let below = folder.path().join("below");
    let again = below.join("..");
    let file = folder.path().join("l1.vhdx");
    let places = [folder.path(), &below, &again, &file];
    let forest = Forest::scan(places, &source).unwrap();
    assert_eq!(forest.nodes().len(), 3);
    assert_eq!(host.lists.load(Relaxed), 2, "a folder is looked into once");
    assert_eq!(codes(&forest), [""; 0]);
    assert_eq!(forest.layers(named(&forest, "l2.vhdx")).len(), 3);
    assert_eq!(forest.nodes().map(|(_, node)| node.volume).collect::<Vec<_>>(), [None; 3]);
}

#[test]
fn children_are_found_by_their_linkage() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    base(0).write_to(at("base.vhdx"));
    child(1, 0, ".\\base.vhdx").write_to(at("a.avhdx"));
    child(2, 0, ".\\elsewhere.vhdx").write_to(at("b.avhdx"));
    let mut merging = child(3, 1, ".\\a.avhdx");
    merging.locator.set("parent_linkage2", avhdx_testkit::build::braced(identity(0)));
    merging.write_to(at("c.avhdx"));
    child(4, 0xdead, ".\\gone.vhdx").write_to(at("d.avhdx"));
    let mut nil = child(5, 0, ".\\base.vhdx");
    nil.locator.set("parent_linkage", avhdx_testkit::build::braced(Uuid::nil()));
    nil.write_to(at("e.avhdx"));
    let forest = Forest::scan([folder.path()], &PathSource::new()).unwrap();
    let children = |n| {
        let mut names: Vec<String> = forest
            .children_of(identity(n))
            .map(|id| forest.node(id).path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(children(0), ["a", "b", "c"]);
    assert_eq!(children(1), ["c"]);
    assert_eq!(children(0xdead), ["d"]);
    assert_eq!(forest.children_of(Uuid::nil()).count(), 0);
}

#[test]
fn many_orphans_of_one_parent_cost_a_look_each() {
    const MANY: u128 = 200;
    let folder = TempDir::new().unwrap();
    let images = folder.path().join("images");
    let attic = folder.path().join("attic");
    fs::create_dir(&images).unwrap();
    fs::create_dir(&attic).unwrap();
    for n in 0..MANY {
        child(1000 + n, 1, &format!(".\\{n}.vhdx")).write_to(images.join(format!("{n}.avhdx")));
        base(5000 + n).write_to(attic.join(format!("{n}.vhdx")));
    }
    let host = Arc::new(Watched::default());
    let forest = host.scan(&images);
    assert_eq!(codes(&forest), vec!["orphan"; MANY as usize]);
    assert_eq!(forest.children_of(identity(1)).count(), MANY as usize);
    assert_eq!(host.open_most.load(Relaxed), 1, "files open at once");
    assert!(host.opens.lock().unwrap().values().all(|opens| *opens == 1));
    // The folder itself, and once more for names that differ only in case.
    assert_eq!(host.lists.load(Relaxed), 2);

    // A folder to search is read once for all children.
    let host = Arc::new(Watched::default());
    let source = PathSource::new().host(Arc::clone(&host) as Arc<dyn Host>).folder(&attic);
    let forest = Forest::scan([&images], &source).unwrap();
    assert_eq!(codes(&forest).len(), MANY as usize);
    assert!(host.opens.lock().unwrap().values().all(|opens| *opens == 1));
    assert_eq!(host.lists.load(Relaxed), 3);
}

#[test]
fn a_place_that_does_not_exist_is_an_error() {
    let error = Forest::scan(["nowhere/at/all"], &PathSource::new()).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "forest.place"));
    assert_eq!(error.file(), Some("nowhere/at/all"));
}

#[test]
fn incomplete_files_are_neither_parents_nor_children() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let temporary = |name: &str| at(&format!(".{name}.{}.tmp", Uuid::from_u128(7).simple()));
    base(0).write_to(at("base.vhdx"));
    child(1, 0, ".\\base.vhdx").write_to(temporary("a.avhdx"));
    let forest = Forest::scan([folder.path()], &PathSource::new()).unwrap();
    assert_eq!(forest.nodes().map(|(_, node)| &node.path).collect::<Vec<_>>(), [&at("base.vhdx")]);
    assert_eq!(codes(&forest), [""; 0]);
    // Nor a child that keeps its parent from being written.
    drop(OpenOptions::new().writable(true).open_image(at("base.vhdx")).unwrap());
    fs::rename(temporary("a.avhdx"), at("a.avhdx")).unwrap();
    let refused = OpenOptions::new().writable(true).open_image(at("base.vhdx")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    // Nor a parent found by its identity.
    fs::rename(at("base.vhdx"), temporary("base.vhdx")).unwrap();
    let source = PathSource::new().folder(folder.path());
    let open = OpenOptions::new().parents(source.clone());
    assert_eq!(open.open(at("a.avhdx")).unwrap_err().kind(), ErrorKind::ParentMissing);
    assert_eq!(codes(&Forest::scan([folder.path()], &source).unwrap()), ["orphan"]);
    fs::rename(temporary("base.vhdx"), at("moved.vhdx")).unwrap();
    open.open(at("a.avhdx")).unwrap();
}
