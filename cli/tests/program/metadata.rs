//! `avhdx metadata`: lists, reads, sets and removes items, and what other programs see.

use std::fs;
use std::process::Command;

use avhdx_testkit::naive::Layer;

use crate::common::Folder;

const NOTE: &str = "5ac1c0de-0000-4000-8000-000000000001";

#[test]
fn items_are_set_listed_read_and_removed() {
    let folder = Folder::new();
    folder.run("create web.vhdx 4M --block 1M").expect(0);
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n * 7) as u8).collect();
    let run = folder.run_with(&format!("metadata web.vhdx {NOTE} --write"), &bytes).expect(0);
    assert!(run.text().contains(&format!("{NOTE}  100000  no        file")), "{}", run.text());
    assert!(folder.run(&format!("metadata web.vhdx {{{NOTE}}}")).expect(0).stdout == bytes);
    let json = folder.run(&format!("metadata web.vhdx {NOTE} --json")).expect(0).json();
    assert_eq!((json["length"].as_u64(), &json["guid"]), (Some(100_000), &NOTE.into()));
    assert!(json["hex"].as_str().unwrap().starts_with("00070e15"));
    let json = folder.run("metadata web.vhdx --json").expect(0).json();
    assert_eq!(json["items"][0]["guid"], NOTE);
    // Another reader sees the same.
    let layer = Layer::open(folder.file("web.vhdx")).unwrap();
    let found = layer.items.iter().find(|(guid, ..)| guid.to_string() == NOTE).unwrap();
    assert!(found.1 == 1 && found.2 == bytes && !layer.log_is_pending());

    folder.run(&format!("metadata web.vhdx {NOTE} --delete")).expect(0);
    folder.run(&format!("metadata web.vhdx {NOTE}")).expect(2).says("no such item");
    folder.run(&format!("metadata web.vhdx {NOTE} --delete")).expect(2);
    folder.run("check web.vhdx").expect(0);
}

#[test]
fn the_identity_and_the_physical_sector_of_the_disk_are_set() {
    let folder = Folder::with_chain();
    let before = folder.run("metadata l2.vhdx --json").expect(0).json();
    let line = format!("metadata l2.vhdx --disk-id {NOTE} --physical-sector 512 --json");
    let after = folder.run(&line).expect(0).json();
    assert_eq!((&after["disk_id"], &after["physical_sector_size"]), (&NOTE.into(), &512.into()));
    assert_ne!(before["disk_id"], after["disk_id"]);
    let new = folder.run("metadata l2.vhdx --disk-id new --json").expect(0).json();
    assert!(new["disk_id"] != after["disk_id"] && new["disk_id"] != before["disk_id"]);
    // The disk reads as before, and its parents know nothing of it.
    let run = folder.run("read l2.vhdx").expect(0);
    assert!(run.stdout == crate::common::flats()[2]);
    assert_eq!(
        folder.run("metadata l1.vhdx --json").expect(0).json()["disk_id"],
        before["disk_id"]
    );
    folder.run("check l2.vhdx").expect(0);
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        folder.run("create alone.vhdx 4M").expect(0);
        folder.run("metadata alone.vhdx --disk-id new --physical-sector 512").expect(0);
        folder.run_with(&format!("metadata alone.vhdx {NOTE} --write"), b"a note").expect(0);
        let mut check = Command::new("qemu-img");
        check.args(["check", "-f", "vhdx", "alone.vhdx"]).current_dir(folder.path());
        let output = check.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn what_is_refused_changes_no_file() {
    let folder = Folder::with_chain();
    let files = ["l0.vhdx", "l1.vhdx", "l2.vhdx"];
    let before = files.map(|file| folder.read(file));
    for (line, exit) in [
        // They have children.
        ("metadata l0.vhdx --disk-id new".to_owned(), 7),
        (format!("metadata l1.vhdx {NOTE} --write"), 7),
        ("metadata l2.vhdx@-1 --disk-id new".to_owned(), 7),
        ("metadata l2.vhdx --physical-sector 1K".to_owned(), 2),
        ("metadata l2.vhdx --write".to_owned(), 2),
        (format!("metadata l2.vhdx {NOTE} --write --delete"), 2),
        (format!("metadata l2.vhdx {NOTE} --disk-id new"), 2),
        ("metadata l2.vhdx web --write".to_owned(), 2),
        ("metadata l2.vhdx --disk-id old".to_owned(), 2),
        ("metadata none.vhdx".to_owned(), 3),
    ] {
        folder.run(&line).expect(exit);
    }
    let long = vec![0; (1 << 20) + 1];
    folder.run_with(&format!("metadata l2.vhdx {NOTE} --write"), &long).expect(2);
    let full = vec![1; 1 << 20];
    for flag in ["", " --dry-run"] {
        let run =
            folder.run_with(&format!("metadata l2.vhdx {NOTE} --write{flag}"), &full).expect(7);
        let run = run.says("does not fit into the metadata region").says("found 1048576 bytes");
        assert!(run.stderr.contains("expected at most 98"), "{}", run.stderr);
        assert!(run.next()[0].starts_with("avhdx metadata l2.vhdx  # lists"), "{:?}", run.next());
        // A parent is not orphaned by a change that keeps its identity.
        let run =
            folder.run_with(&format!("metadata l1.vhdx {NOTE} --write{flag}"), b"x").expect(7);
        let run = run.says("has a child, and the metadata of a parent stays as it is");
        assert!(!run.stderr.contains("orphan"), "{}", run.stderr);
    }
    assert!(files.map(|file| folder.read(file)) == before);
    // A file without its parent can be changed.
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    folder.run_with(&format!("metadata l2.vhdx {NOTE} --write"), b"x").expect(0);
}

#[test]
fn an_image_becomes_fixed_and_dynamic_in_place_below_its_children() {
    let folder = Folder::with_chain();
    let before = folder.read("l0.vhdx");
    let json = folder.run("metadata l0.vhdx --fixed --dry-run --json").expect(0).json();
    assert_eq!(json["schema"], "avhdx.forecast/1");
    let peak = json["peak"].as_u64().unwrap();
    assert!(peak > 0 && folder.read("l0.vhdx") == before);
    let json = folder.run("metadata l0.vhdx --fixed --json").expect(0).json();
    assert_eq!(json["type"], "fixed");
    assert_eq!(folder.read("l0.vhdx").len() as u64, before.len() as u64 + peak);
    folder.run("metadata l0.vhdx --dynamic --dry-run").expect(0).prints("space needed");
    folder.run("metadata l0.vhdx --dynamic").expect(0).prints("dynamic");
    assert!(folder.run("read l2.vhdx").expect(0).stdout == crate::common::flats()[2]);
    folder.run("check l2.vhdx").expect(0);
    let all = ["l0.vhdx", "l2.vhdx"].map(|file| folder.read(file));
    let line = format!("metadata l2.vhdx {NOTE} --write --dry-run");
    folder.run_with(&line, b"a note").expect(0).prints("written");
    folder.run("metadata l2.vhdx --fixed").expect(2).says("neither fixed nor dynamic");
    folder.run("metadata l2.vhdx --dry-run").expect(2);
    folder.run("metadata l0.vhdx --fixed --dynamic").expect(2);
    folder.run("metadata l0.vhdx --fixed --disk-id new").expect(2);
    assert!(["l0.vhdx", "l2.vhdx"].map(|file| folder.read(file)) == all);
}
