//! A disk is not written over its own sources, and parents of other images are not replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::Export;
use avhdx::storage::{Access, FileStorage, Host, LocalHost, Storage};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, OpenOptions, RawDisk};

const MIB: u64 = 1 << 20;

/// A base and a child of it, closed.
fn chain(folder: &Path) -> [PathBuf; 2] {
    let paths = ["base.vhdx", "child.avhdx"].map(|name| folder.join(name));
    let base = CreateOptions::dynamic(4 * MIB).block_size(MIB as u32).create(&paths[0]).unwrap();
    base.write_at(&[7; 4096], 0).unwrap();
    base.close().unwrap();
    let child = CreateOptions::child_of(&base).unwrap().create(&paths[1]).unwrap();
    child.close().unwrap();
    paths
}

fn bytes(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[cfg(unix)]
#[test]
fn a_disk_is_not_exported_onto_what_it_is_read_from() {
    let folder = tempfile::tempdir().unwrap();
    let paths = chain(folder.path());
    let before = bytes(&paths);
    let opened = |path: &Path| LocalHost.open(path, Access::ReadWrite).unwrap();
    let by_handle = |path: &Path| -> Arc<dyn Storage> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        Arc::new(FileStorage::from_file(file, "a descriptor"))
    };
    let (link, hard) = (folder.path().join("link"), folder.path().join("hard"));
    std::os::unix::fs::symlink(&paths[0], &link).unwrap();
    fs::hard_link(&paths[0], &hard).unwrap();
    let disk = DiffChain::open(&paths[1]).unwrap();
    assert_eq!(disk.files().len(), 2);
    let outputs = [
        opened(&paths[1]),
        opened(&paths[0]),
        opened(&link),
        opened(&hard),
        by_handle(&paths[1]),
        by_handle(&hard),
    ];
    for to in outputs {
        let error = Export::new().run(&disk, to.as_ref());
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "export.own-source"));
        assert!(bytes(&paths) == before, "{}", to.name());
    }
    // Each kind of disk knows its files, also behind a pointer.
    let raw = RawDisk::new(opened(&paths[0])).unwrap();
    let alone = OpenOptions::new().open_image(&paths[0]).unwrap();
    let boxed: Box<dyn Disk> = Box::new(alone);
    for disk in [&raw as &dyn Disk, &boxed] {
        let error = Export::new().run(disk, opened(&hard).as_ref());
        assert_eq!(error.unwrap_err().code(), "export.own-source");
        let error = Export::new().onto(disk, &raw);
        assert_eq!(error.unwrap_err().code(), "export.own-source");
    }
    assert!(bytes(&paths) == before);
    let other = by_handle(&{
        let path = folder.path().join("copy");
        fs::write(&path, b"").unwrap();
        path
    });
    Export::new().run(&disk, other.as_ref()).unwrap();
    assert_eq!(other.len().unwrap(), 4 * MIB);
}

#[test]
fn a_new_image_does_not_replace_a_parent_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let paths = chain(folder.path());
    let before = bytes(&paths);
    let new = CreateOptions::dynamic(MIB).overwrite(true);
    let error = new.create(&paths[0]).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::HasChildren, "image.children"));
    assert!(error.found().unwrap().contains("child.avhdx"), "{error}");
    let file = LocalHost.open(&paths[0], Access::Read).unwrap();
    let error = OpenOptions::new().check_childless(file.as_ref()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren);
    let consent = OpenOptions::new().orphan_children(true);
    assert!(consent.check_childless(file.as_ref()).unwrap().is_empty());
    // The child has no children itself, and must not replace its own parent as that parent's child.
    let child = LocalHost.open(&paths[1], Access::Read).unwrap();
    assert!(OpenOptions::new().check_childless(child.as_ref()).unwrap().is_empty());
    let parent = OpenOptions::new().open_image(&paths[1]).unwrap();
    let own = CreateOptions::child_of(&parent).unwrap().overwrite(true);
    let error = own.create(&paths[1]).unwrap_err();
    assert!(bytes(&paths) == before);
    if cfg!(unix) {
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "create.own-parent"));
    }
    // A child elsewhere is found if the caller names its folder.
    let far = tempfile::tempdir().unwrap();
    fs::rename(&paths[1], far.path().join("child.avhdx")).unwrap();
    let error = new.clone().children_in(far.path()).create(&paths[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren);
    assert!(fs::read(&paths[0]).unwrap() == before[0]);
    new.orphan_children(true).children_in(far.path()).create(&paths[0]).unwrap().close().unwrap();
    assert!(fs::read(&paths[0]).unwrap() != before[0]);
}
