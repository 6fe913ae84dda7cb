//! The promises of [`Host`].

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Access, FileKind, Host, Storage};

use super::storage::contents;

/// A host, and an empty folder there.
pub struct Subject {
    /// The host.
    pub host: Arc<dyn Host>,
    /// The path of the folder, without links.
    pub folder: PathBuf,
    /// Kept for as long as the folder is in use.
    pub guard: Option<Box<dyn std::any::Any>>,
}

/// Makes a host with an empty folder, another one each time.
pub type Make<'a> = &'a dyn Fn() -> Subject;

/// A promise by name, and the function that checks it.
pub type Promise = (&'static str, fn(Make<'_>));

/// The promises of every host.
pub const OF_ALL: &[Promise] = &[
    ("a new file is empty and takes no other's name", creates),
    ("all handles of a file see the same bytes", opens),
    ("a read-only handle changes nothing", read_only),
    ("a folder lists the names in it", lists),
    ("a name stands for what its file is", stats),
    ("a rename takes no other file's name", renames),
    ("an exchange swaps two names, or changes nothing", exchanges),
    ("a removed name is gone, its open file is not", removes),
    ("a file without a name gets one that is free", links),
    ("nothing outside a folder is opened beneath it", beneath),
    ("a path without links is its own canonical form", canonical),
    ("names can be made durable", syncs),
];

/// Checks every promise.
pub fn keeps_every_promise(make: Make<'_>) {
    for (_, check) in OF_ALL {
        check(make);
    }
}

impl Subject {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Arc<dyn Storage> {
        let file = self.host.create_new(&self.at(name)).unwrap();
        file.write_at(bytes, 0).unwrap();
        file
    }

    fn contents(&self, name: &str) -> Vec<u8> {
        contents(&*self.host.open(&self.at(name), Access::Read).unwrap())
    }

    /// The names in the folder.
    fn names(&self) -> Vec<PathBuf> {
        let mut names = self.host.list(&self.folder).unwrap();
        names.sort();
        names
    }
}

fn fails<T>(result: io::Result<T>, kind: ErrorKind, what: &str) {
    assert_eq!(result.err().unwrap_or_else(|| panic!("{what}")).kind(), kind, "{what}");
}

fn creates(make: Make<'_>) {
    let made = make();
    assert!(made.host.create_new(&made.at("a")).unwrap().is_empty().unwrap());
    let file = made.put("b", b"held");
    assert_eq!(file.path(), Some(&*made.at("b")));
    fails(made.host.create_new(&made.at("b")), ErrorKind::AlreadyExists, "a name that is taken");
    assert_eq!(made.contents("b"), b"held");
}

fn opens(make: Make<'_>) {
    let made = make();
    fails(made.host.open(&made.at("a"), Access::Read), ErrorKind::NotFound, "no such file");
    let file = made.put("a", b"first");
    let other = made.host.open(&made.at("a"), Access::ReadWrite).unwrap();
    let reader = made.host.open(&made.at("a"), Access::Read).unwrap();
    other.write_at(b"second", 0).unwrap();
    for file in [&file, &other, &reader] {
        assert_eq!(contents(&**file), b"second");
        assert_eq!(file.id().unwrap(), reader.id().unwrap());
        assert_eq!(file.path(), Some(&*made.at("a")));
    }
}

fn read_only(make: Make<'_>) {
    let made = make();
    let other = made.put("other", &[7; 4096]);
    made.put("a", &[1; 4096]);
    let file = made.host.open(&made.at("a"), Access::Read).unwrap();
    fails(file.write_at(b"x", 0), ErrorKind::PermissionDenied, "a write");
    assert!(file.set_len(1).is_err() && file.set_len(9000).is_err());
    assert!(!matches!(file.punch(0..512), Ok(true)));
    assert!(!matches!(file.zero(0..512), Ok(true)));
    assert!(!matches!(file.copy_from(&*other, 0, 0, 512), Ok(true)));
    assert_eq!(made.contents("a"), [1; 4096]);
}

fn lists(make: Make<'_>) {
    let made = make();
    assert!(made.names().is_empty());
    drop((made.put("b", b""), made.put("a", b"")));
    assert_eq!(made.names(), [made.at("a"), made.at("b")]);
    match made.host.list(&made.at("no")) {
        // A host may know folders by their files alone.
        Ok(names) => assert!(names.is_empty(), "{names:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
    }
}

fn stats(make: Make<'_>) {
    let made = make();
    let file = made.put("a", &[1; 777]);
    let stat = made.host.stat(&made.at("a")).unwrap();
    assert_eq!((stat.kind, stat.len), (FileKind::File, 777));
    assert_eq!(stat.id, file.id().unwrap());
    assert_eq!(made.host.stat(&made.folder).unwrap().kind, FileKind::Folder);
    assert!(!made.host.is_link(&made.at("a")).unwrap());
    fails(made.host.stat(&made.at("b")), ErrorKind::NotFound, "no such file");
    fails(made.host.is_link(&made.at("b")), ErrorKind::NotFound, "no such name");
}

fn renames(make: Make<'_>) {
    let made = make();
    let file = made.put("a", b"a");
    made.put("b", b"b");
    let taken = made.host.rename(&made.at("a"), &made.at("b"));
    fails(taken, ErrorKind::AlreadyExists, "a name that is taken");
    assert_eq!((made.contents("a"), made.contents("b")), (b"a".to_vec(), b"b".to_vec()));
    made.host.rename(&made.at("a"), &made.at("c")).unwrap();
    assert_eq!(made.names(), [made.at("b"), made.at("c")]);
    assert_eq!(made.host.stat(&made.at("c")).unwrap().id, file.id().unwrap());
    file.write_at(b"c", 0).unwrap();
    assert_eq!(made.contents("c"), b"c");
    fails(made.host.rename(&made.at("no"), &made.at("d")), ErrorKind::NotFound, "no such file");
}

fn exchanges(make: Make<'_>) {
    let made = make();
    drop((made.put("a", b"a"), made.put("b", b"b")));
    match made.host.exchange(&made.at("a"), &made.at("b")) {
        Ok(()) => assert_eq!((&*made.contents("a"), &*made.contents("b")), (&b"b"[..], &b"a"[..])),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!((&*made.contents("a"), &*made.contents("b")), (&b"a"[..], &b"b"[..]));
        }
    }
    assert!(made.host.exchange(&made.at("a"), &made.at("no")).is_err());
    assert_eq!(made.names(), [made.at("a"), made.at("b")]);
}

fn removes(make: Make<'_>) {
    let made = make();
    let file = made.put("a", b"still there");
    made.host.remove(&made.at("a")).unwrap();
    assert!(made.names().is_empty());
    assert_eq!(contents(&*file), b"still there");
    fails(made.host.open(&made.at("a"), Access::Read), ErrorKind::NotFound, "a removed file");
    fails(made.host.remove(&made.at("a")), ErrorKind::NotFound, "a removed name");
}

fn links(make: Make<'_>) {
    let made = make();
    made.put("b", b"b");
    let file = match made.host.create_unnamed(&made.at("a")) {
        Ok(file) => file,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Unsupported),
    };
    assert_eq!(made.names(), [made.at("b")]);
    file.write_at(b"a", 0).unwrap();
    let taken = made.host.link(&*file, &made.at("b"));
    fails(taken, ErrorKind::AlreadyExists, "a name that is taken");
    made.host.link(&*file, &made.at("a")).unwrap();
    assert_eq!((made.contents("a"), made.contents("b")), (b"a".to_vec(), b"b".to_vec()));
}

fn beneath(make: Make<'_>) {
    let made = make();
    let file = made.put("a", b"a");
    let open = |path: &str| made.host.open_beneath(&made.folder, Path::new(path), Access::Read);
    let opened = open("a").unwrap();
    assert_eq!((opened.id().unwrap(), contents(&*opened)), (file.id().unwrap(), b"a".to_vec()));
    let name = made.folder.file_name().unwrap().to_str().unwrap();
    for path in [format!("../{name}/a"), "..".into(), made.at("a").display().to_string()] {
        fails(open(&path), ErrorKind::PermissionDenied, &path);
    }
    fails(open("no"), ErrorKind::NotFound, "no such file");
}

fn canonical(make: Make<'_>) {
    let made = make();
    made.put("a", b"");
    assert_eq!(made.host.canonical(&made.at("a")).unwrap(), made.at("a"));
    let name = made.folder.file_name().unwrap();
    let around = made.folder.join("..").join(name).join(".").join("a");
    assert_eq!(made.host.canonical(&around).unwrap(), made.at("a"));
}

fn syncs(make: Make<'_>) {
    let made = make();
    made.put("a", b"a").flush().unwrap();
    made.host.sync_dir(&made.folder).unwrap();
    made.host.free_space(&made.folder).unwrap();
    assert_eq!(made.contents("a"), b"a");
}
