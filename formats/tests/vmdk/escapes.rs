//! Extents are opened in the folder of their image, and nowhere else unless the caller says so.

use std::fs;
use std::path::Path;

use avhdx::ErrorKind;
use avhdx_formats::vmdk::OpenOptions;
use avhdx_testkit::vmdk::descriptor;

use super::opened::open;
use crate::disks::flat;

fn image(folder: &Path, extent: &str) -> std::path::PathBuf {
    let path = folder.join("x.vmdk");
    let line = format!("RW 1 FLAT \"{extent}\" 0");
    fs::write(&path, descriptor("monolithicFlat", 1, None, &[&line])).unwrap();
    path
}

#[test]
fn no_extent_comes_from_outside_the_folder() {
    let around = tempfile::tempdir().unwrap();
    let folder = around.path().join("vm");
    fs::create_dir_all(folder.join("sub")).unwrap();
    for (place, byte) in [("secret", 1), ("vm/a", 2), ("vm/sub/b", 3)] {
        fs::write(around.path().join(place), [byte; 512]).unwrap();
    }
    let secret = around.path().join("secret");
    let outside = [
        "../secret",
        "sub/../../secret",
        r"..\secret",
        "/etc/passwd",
        r"C:\secret",
        r"\\server\share\secret",
        r"\\.\PhysicalDrive0",
        "/dev/zero",
        "../nothing-is-there",
        "a:stream",
        secret.to_str().unwrap(),
    ];
    for name in outside {
        let error = open(&image(&folder, name)).unwrap_err();
        assert_eq!(
            (error.code(), error.kind()),
            ("vmdk.extent-outside", ErrorKind::ParentDenied),
            "{name}: {error}"
        );
        assert!(error.offset().is_some() && error.to_string().contains("x.vmdk"), "{error}");
    }
    for (name, byte) in [("a", 2), ("./a", 2), ("sub/b", 3), (r"sub\b", 3), ("sub/../a", 2)] {
        assert_eq!(flat(&open(&image(&folder, name)).unwrap()), [byte; 512], "{name}");
    }
    // In a folder that the caller named, by links or not.
    let path = image(&folder, "../secret");
    let allowed = OpenOptions::new().extents_in(around.path());
    assert_eq!(flat(&allowed.open(&path).unwrap()), [1; 512]);
    let elsewhere = OpenOptions::new().extents_in(folder.join("sub"));
    assert_eq!(elsewhere.open(&path).unwrap_err().code(), "vmdk.extent-outside");
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_outside() {
    let around = tempfile::tempdir().unwrap();
    let folder = around.path().join("vm");
    fs::create_dir(&folder).unwrap();
    fs::write(around.path().join("secret"), [1; 512]).unwrap();
    fs::write(folder.join("a"), [2; 512]).unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
    link("../secret", "out");
    link("..", "up");
    link("a", "in");
    link("/etc/passwd", "passwd");
    for name in ["out", "up/secret", "passwd"] {
        let error = open(&image(&folder, name)).unwrap_err();
        assert_eq!(error.code(), "vmdk.extent-outside", "{name}: {error}");
    }
    assert_eq!(flat(&open(&image(&folder, "in")).unwrap()), [2; 512]);
    // The folder is the one where the image really lies.
    image(&folder, "a");
    std::os::unix::fs::symlink("vm/x.vmdk", around.path().join("x.vmdk")).unwrap();
    assert_eq!(flat(&open(&around.path().join("x.vmdk")).unwrap()), [2; 512]);
    // A pipe blocks nobody.
    let made = std::process::Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap();
    assert!(made.success());
    assert_eq!(open(&image(&folder, "pipe")).unwrap_err().code(), "vmdk.extent-file");
}
