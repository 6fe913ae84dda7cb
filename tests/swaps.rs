//! Names that come to stand for other files in the middle of things: only the file that was meant is touched.
#![cfg(unix)]
#![allow(clippy::disallowed_methods)] // the names are swapped from outside

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use avhdx::storage::{Access, Host, LocalHost};
use avhdx::{CreateOptions, OpenOptions};
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
    // With a right that is nobody else's to give on.
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
    // Nor while the parent is open: what would be recorded leads to the other.
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
fn a_file_without_a_name_is_met_by_nobody_and_gets_one_that_is_free() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let file = match LocalHost.create_unnamed(&at("file")) {
        // The file system here cannot.
        Err(error) if error.kind() == ErrorKind::Unsupported => return,
        file => file.unwrap(),
    };
    file.write_at(b"all of it", 0).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(file.path(), Some(at("file").as_path()));
    fs::write(at("file"), "another's").unwrap();
    let taken = LocalHost.link(file.as_ref(), &at("file")).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    LocalHost.link(file.as_ref(), &at("other")).unwrap();
    assert_eq!(LocalHost.stat(&at("other")).unwrap().id, file.id().unwrap());
    LocalHost.exchange(&at("file"), &at("other")).unwrap();
    assert_eq!(fs::read(at("file")).unwrap(), b"all of it");
    assert_eq!(fs::read(at("other")).unwrap(), b"another's");
    let gone = LocalHost.exchange(&at("file"), &at("none")).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    drop(LocalHost.create_unnamed(&at("third")).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}
