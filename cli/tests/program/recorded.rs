//! Recorded paths are tested before they are written, and files with children are not replaced.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::common::{Folder, Run};

/// Every file below a folder, with its inode and content.
fn all(folder: &Path) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(self::all(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            all.insert(path.clone(), (fs::metadata(path).unwrap().ino(), bytes));
        }
    }
    all
}

/// Runs the program with these arguments, which can contain spaces or bytes that are not Unicode.
fn run<S: AsRef<OsStr>>(folder: &Folder, words: impl IntoIterator<Item = S>) -> Run {
    let output = folder.command(words).output().unwrap();
    Run {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A base and its child, with the base renamed to a name that cannot be recorded.
fn astray(name: &str) -> Folder {
    let folder = Folder::new();
    folder.run("create base.vhdx --size 4M").expect(0);
    folder.run("create mid.avhdx --parent base.vhdx").expect(0);
    folder.run("create tip.avhdx --parent mid.avhdx").expect(0);
    fs::rename(folder.file("base.vhdx"), folder.file(name)).unwrap();
    folder
}

#[test]
fn a_name_with_a_backslash_is_not_recorded() {
    makes_no_link_to(r"a\b.vhdx");
}

/// A recorded name with a colon means a drive or a stream, which readers do not follow.
#[test]
fn a_name_with_a_colon_is_not_recorded() {
    makes_no_link_to("a:b.vhdx");
}

fn makes_no_link_to(name: &str) {
    let folder = astray(name);
    let before = all(folder.path());
    let with = ["--with-parent", name];
    for line in [
        &["create", "new.avhdx", "--parent", name][..],
        &["reparent", "tip.avhdx", "--onto", name, "--unproven"],
        &["reparent", "tip.avhdx", "--onto", name, "--unproven", "--dry-run"],
        // The merge would link the tip to it.
        &["merge", "tip.avhdx@-1", with[0], with[1]],
        &["merge", "tip.avhdx@-1", with[0], with[1], "--dry-run"],
        &["revert", "tip.avhdx@base", "--path", "new.avhdx", with[0], with[1]],
        &["revert", "tip.avhdx@base", "--path", "new.avhdx", with[0], with[1], "--dry-run"],
        &["relink", "."],
        &["relink", ".", "--dry-run"],
    ] {
        let refused = run(&folder, line).expect(7);
        let refused =
            refused.says(&format!("{name}: no path that can be recorded leads to the parent"));
        drop(refused.says("in recorded paths"));
        assert!(all(folder.path()) == before, "{line:?}");
    }
    fs::remove_file(folder.file("mid.avhdx")).unwrap();
    fs::remove_file(folder.file("tip.avhdx")).unwrap();
    let before = all(folder.path());
    for more in [&[][..], &["--dry-run"]] {
        let line = [&["checkpoint", name, "--path", "new.avhdx"], more].concat();
        drop(
            run(&folder, &line).expect(7).says("no path that can be recorded leads to the parent"),
        );
        assert!(all(folder.path()) == before, "{line:?}");
    }
}

#[test]
fn the_suggestion_for_a_name_that_cannot_be_recorded_works() {
    for (place, parent) in [
        (r"a\b.vhdx", r"a\b.vhdx"),
        (r"x\y", r"x\y/base.vhdx"),
        ("a:b.vhdx", "a:b.vhdx"),
        ("D:", "D:/base.vhdx"),
    ] {
        let folder = Folder::new();
        folder.run("create base.vhdx --size 4M").expect(0);
        if place != parent {
            fs::create_dir(folder.file(place)).unwrap();
        }
        fs::rename(folder.file("base.vhdx"), folder.file(parent)).unwrap();
        let refused = run(&folder, ["create", "new.avhdx", "--parent", parent, "--json"]).expect(7);
        let next = refused.error()["next"][0].as_str().unwrap().to_owned();
        let next = next.replace("&& avhdx ", &format!("&& {} ", env!("CARGO_BIN_EXE_avhdx")));
        let mut shell = std::process::Command::new("sh");
        let done = shell.args(["-c", &next]).current_dir(folder.path()).output().unwrap();
        assert!(done.status.success(), "{next}: {}", String::from_utf8_lossy(&done.stderr));
        folder.run("read new.avhdx --length 512").expect(0);
    }
}

#[test]
fn names_that_are_not_unicode_are_refused_and_unusual_ones_work() {
    let folder = Folder::new();
    let base = OsStr::from_bytes(b"b\xffd.vhdx");
    folder.run("create base.vhdx --size 4M").expect(0);
    fs::rename(folder.file("base.vhdx"), folder.path().join(base)).unwrap();
    let words = [OsStr::new("create"), OsStr::new("new.avhdx"), OsStr::new("--parent"), base];
    let refused = run(&folder, words).expect(7).says("a name that is not valid UTF-8");
    assert!(!folder.file("new.avhdx").exists(), "{}", refused.stderr);
    // Names that Windows does not allow work here.
    for odd in ["dot.", "blank .vhdx ", " blank.vhdx", "...", "wurzel ä.vhdx"] {
        run(&folder, ["create", odd, "--size", "4M"]).expect(0);
        run(&folder, ["create", "new.avhdx", "--parent", odd]).expect(0);
        folder.run("read new.avhdx --length 512").expect(0);
        fs::remove_file(folder.file("new.avhdx")).unwrap();
    }
    // The common folder is not recorded.
    fs::create_dir(folder.file(r"in\side")).unwrap();
    run(&folder, ["create", r"in\side/base.vhdx", "--size", "4M"]).expect(0);
    run(&folder, ["create", r"in\side/new.avhdx", "--parent", r"in\side/base.vhdx"]).expect(0);
    run(&folder, ["read", r"in\side/new.avhdx", "--length", "512"]).expect(0);
}

#[test]
fn parents_whose_names_differ_only_in_case_are_distinguished() {
    let folder = Folder::new();
    for (name, byte) in [("base.vhdx", b'l'), ("BASE.vhdx", b'U')] {
        folder.run(&format!("create {name} --size 4M")).expect(0);
        folder.run_with(&format!("write {name} --offset 0"), &[byte]).expect(0);
    }
    if folder.names().len() < 2 {
        println!("skipped: the file system takes both names for one");
        return;
    }
    for (name, byte) in [("base.vhdx", b'l'), ("BASE.vhdx", b'U')] {
        let child = format!("child-{}", char::from(byte));
        folder.run(&format!("create {child} --parent {name}")).expect(0);
        assert_eq!(folder.run(&format!("read {child} --length 1")).expect(0).stdout, [byte]);
    }
}

#[test]
fn a_path_that_is_too_long_to_follow_is_not_recorded() {
    let folder = Folder::new();
    // Folders with names of 200 letters, until the relative path exceeds the limit of a path.
    let mut deep = folder.path().canonicalize().unwrap();
    while deep.as_os_str().len() < 3400 {
        deep.push("n".repeat(200));
    }
    let below = deep.join("m/".repeat(150));
    fs::create_dir_all(&below).unwrap();
    let base = deep.join("base.vhdx");
    let words = |words: &[&OsStr]| -> Vec<OsString> { words.iter().map(Into::into).collect() };
    let create = OsStr::new("create");
    let size = ["--size", "4M"].map(OsStr::new);
    run(&folder, words(&[create, base.as_os_str(), size[0], size[1]])).expect(0);
    let child = below.join("child.avhdx");
    assert!(child.as_os_str().len() < 4096);
    let line = words(&[create, child.as_os_str(), OsStr::new("--parent"), base.as_os_str()]);
    drop(run(&folder, line).expect(7).says("no path that can be recorded leads to the parent"));
    assert!(!child.exists());
}

#[test]
fn an_output_does_not_replace_an_image_with_children() {
    let folder = Folder::new();
    fs::create_dir(folder.file("vm")).unwrap();
    fs::create_dir(folder.file("far")).unwrap();
    folder.run("create vm/base.vhdx --size 4M").expect(0);
    folder.run("create source.vhdx --size 1M").expect(0);
    let make = |place: &str| {
        vec![
            format!("create {place} --size 1M --overwrite"),
            format!("convert source.vhdx {place} -O raw --overwrite --any-name"),
            format!("convert source.vhdx {place} -O vhdx --overwrite"),
            format!("convert source.vhdx {place} -O vhdx-fixed --overwrite"),
        ]
    };
    std::os::unix::fs::symlink("vm/base.vhdx", folder.file("link")).unwrap();
    for (child, lines) in [
        ("vm/child.avhdx", [make("vm/base.vhdx"), make("link")].concat()),
        ("far/child.avhdx", make("vm/base.vhdx --children-in far")),
    ] {
        folder.run(&format!("create {child} --parent vm/base.vhdx")).expect(0);
        let before = all(folder.path());
        for line in lines {
            let refused = folder.run(&line).expect(7).says("child.avhdx as its child");
            drop(refused.says(" --orphan-children\n"));
            assert!(all(folder.path()) == before, "{line}");
        }
        if child.starts_with("far") {
            // The folder of the children is not given.
            folder.run("create vm/base.vhdx --size 1M --overwrite").expect(0);
        }
        drop(fs::remove_file(folder.file(child)));
    }
    folder.run("create vm/child.avhdx --parent vm/base.vhdx").expect(0);
    for line in make("vm/base.vhdx --orphan-children") {
        folder.run(&line).expect(0);
    }
    // A file without children, or that is not an image, is replaced.
    for line in make("vm/base.vhdx") {
        folder.run(&line).expect(0);
    }
}

#[test]
fn standard_output_must_not_be_an_input() {
    let folder = Folder::with_chain();
    let before = all(folder.path());
    fs::hard_link(folder.file("l0.vhdx"), folder.file("again")).unwrap();
    for (line, out) in [
        ("convert l2.vhdx -O raw -", "l2.vhdx"),
        ("convert l2.vhdx -O raw -", "again"),
        ("read l2.vhdx --length 4M", "l1.vhdx"),
    ] {
        let file = fs::OpenOptions::new().append(true).open(folder.file(out)).unwrap();
        let mut command = folder.command(line.split(' '));
        let output = command.stdout(file).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{line} >>{out}");
    }
    fs::remove_file(folder.file("again")).unwrap();
    assert!(all(folder.path()) == before);
}
