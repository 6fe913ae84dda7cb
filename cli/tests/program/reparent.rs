//! `avhdx reparent` and `avhdx relink`: corrected links, and refusals.

use std::fs;

use crate::common::{Folder, flats, guid};

#[test]
fn an_equal_copy_becomes_the_parent() {
    let folder = Folder::with_chain();
    // The disk of l0 under another identity.
    folder.run("convert l0.vhdx -O vhdx copy.vhdx").expect(0);
    let run = folder.run("reparent l1.vhdx --onto copy.vhdx --dry-run --json").expect(0).json();
    assert_eq!(run["schema"], "avhdx.forecast/1");
    let files = &run["files"];
    assert_eq!(*files, serde_json::json!([{ "image": "l1.vhdx", "change": "changed" }]));
    assert_eq!(
        folder.run("info l1.vhdx --json").expect(0).json()["chain"]["parent"]["image"],
        "l0.vhdx"
    );
    let run = folder.run("reparent l1.vhdx --onto copy.vhdx").expect(0);
    // All except 16 sectors.
    run.prints("l1.vhdx: the parent is now copy.vhdx, ")
        .prints(&format!("{}", (4 << 20) - 16 * 512));
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    let run = folder.run("read l2.vhdx --length 6M").expect(0);
    assert!(run.stdout == flats()[2]);
    assert_eq!(
        folder.run("info l1.vhdx --json").expect(0).json()["chain"]["parent"]["image"],
        "copy.vhdx"
    );
}

#[test]
fn a_different_parent_is_refused_and_a_lost_one_needs_unproven() {
    let folder = Folder::with_chain();
    folder.run("convert l0.vhdx -O vhdx copy.vhdx").expect(0);
    folder.run_with("write copy.vhdx --offset 3M", &[7; 512]).expect(0);
    let before = folder.read("l1.vhdx");
    let error = folder.run("reparent l1.vhdx --onto copy.vhdx --json").expect(7).error();
    assert_eq!((&error["code"], &error["kind"]), (&"reparent.differs".into(), &"unproven".into()));
    assert!(error["message"].as_str().unwrap().contains("from byte 3145728 on"));
    assert_eq!(error["next"][0], "avhdx rebase l1.vhdx --onto copy.vhdx");
    // The block that differs, in a file that has nothing in common with the parent.
    folder.run("reparent l1.vhdx --onto copy.vhdx").expect(7).says("rebase keeps the disk");
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    let run = folder.run("reparent l1.vhdx --onto copy.vhdx").expect(7).says("bytes of the disk");
    run.says("next: avhdx reparent l1.vhdx --onto copy.vhdx --unproven\n");
    assert!(folder.read("l1.vhdx") == before);
    let run = folder.run("reparent l1.vhdx --onto copy.vhdx --unproven --json").expect(0);
    assert_eq!(run.json()["schema"], "avhdx.reparent/1");
    assert_eq!(run.json()["unproven"], (4 << 20) - 16 * 512);
    let run = folder.run("read l2.vhdx --offset 3M --length 512").expect(0);
    // The tip has its own block there.
    assert!(run.stdout == flats()[2][3 << 20..(3 << 20) + 512]);
    let run = folder.run("read l1.vhdx --offset 3M --length 512").expect(0);
    assert!(run.stdout == [7; 512]);
}

#[test]
fn loops_are_refused() {
    let folder = Folder::with_chain();
    folder.run("reparent l1.vhdx --onto l2.vhdx").expect(2).says("its own ancestor");
    folder.run("reparent l1.vhdx --onto l1.vhdx").expect(2);
    folder.run("reparent l0.vhdx --onto l1.vhdx").expect(2);
    folder.run("reparent l2.vhdx --onto l2.vhdx@base").expect(7).says("l0.vhdx");
}

#[test]
fn moved_files_are_relinked() {
    let folder = Folder::with_chain();
    fs::create_dir(folder.file("bases")).unwrap();
    fs::rename(folder.file("l0.vhdx"), folder.file("bases/renamed.vhdx")).unwrap();
    folder.run("read l2.vhdx --length 1").expect(5);
    let before = folder.read("l1.vhdx");
    let run = folder.run("relink . --dry-run --json").expect(0).json();
    assert_eq!(run["schema"], "avhdx.relink/1");
    assert_eq!(run["images"].as_array().unwrap().len(), 1);
    assert_eq!(run["images"][0]["parent"], "./bases/renamed.vhdx");
    assert!(folder.read("l1.vhdx") == before);
    folder.run("relink .").expect(0).prints("./l1.vhdx: linked to ./bases/renamed.vhdx\n");
    let run = folder.run("read l2.vhdx --length 6M").expect(0);
    assert!(run.stdout == flats()[2]);
    folder.run("relink .").expect(0).prints("the recorded paths of 3 images lead to their parents");
    let l1 = folder.run("info l1.vhdx --json").expect(0).json();
    assert_eq!(l1["data_write_guid"], guid(1).to_string());
}

#[test]
fn images_with_an_ambiguous_or_lost_parent_are_reported_and_not_changed() {
    let folder = Folder::with_chain();
    let bytes = folder.read("l0.vhdx");
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    let run = folder.run("relink .").expect(7).says("l1.vhdx: no file has the identity");
    run.says("next: avhdx tree .  # ");
    fs::write(folder.file("a.vhdx"), &bytes).unwrap();
    fs::write(folder.file("b.vhdx"), &bytes).unwrap();
    folder.run("relink .").expect(7).says("several files").says("./a.vhdx and ./b.vhdx");
}
