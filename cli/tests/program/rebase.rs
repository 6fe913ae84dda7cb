//! `avhdx rebase`: another base below the same disk, and refusals.

use std::fs;

use avhdx_testkit::qemu::Qemu;

use crate::common::{Folder, flats, guid};

#[test]
fn the_disk_stays_on_another_base_and_its_child_stays_valid() {
    let folder = Folder::with_chain();
    folder.run("convert l0.vhdx -O vhdx copy.vhdx").expect(0);
    folder.run_with("write copy.vhdx --offset 2M", &[7; 5000]).expect(0);
    folder.run_with("write copy.vhdx --offset 3M", &[7; 512]).expect(0);
    let before = folder.read("l1.vhdx");
    let run = folder.run("rebase l1.vhdx --onto copy.vhdx --dry-run --json").expect(0).json();
    assert_eq!(run["schema"], "avhdx.forecast/1");
    assert_eq!(run["files"], serde_json::json!([{ "image": "l1.vhdx", "change": "changed" }]));
    assert!(run["read"].as_u64().unwrap() > 0);
    assert!(folder.read("l1.vhdx") == before);
    let run = folder.run("rebase l1.vhdx --onto copy.vhdx").expect(0);
    run.prints("l1.vhdx: the parent is now copy.vhdx, ").prints("5120 bytes (5 KiB) written");
    // A block that the old parent does not have.
    let l1 = folder.run("info l1.vhdx --json").expect(0).json();
    assert_eq!(l1["blocks"]["zero"], 1);
    folder.run("rebase l1.vhdx --onto copy.vhdx").expect(0).prints("nothing to do");
    let json = folder.run("rebase l1.vhdx --onto copy.vhdx --json").expect(0).json();
    assert_eq!((&json["was_parent"], &json["written"]), (&true.into(), &0.into()));
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    for (name, flat) in [("l1.vhdx", &flats()[1]), ("l2.vhdx", &flats()[2])] {
        assert!(folder.run(&format!("read {name}")).expect(0).stdout == *flat, "{name}");
    }
    let l1 = folder.run("info l1.vhdx --json").expect(0).json();
    assert_eq!(l1["data_write_guid"], guid(1).to_string());
    folder.run("check l2.vhdx").expect(0);
}

#[test]
fn an_ancestor_takes_the_place_of_the_layers_between() {
    let folder = Folder::with_chain();
    let run = folder.run("rebase l2.vhdx --onto l2.vhdx@base --json").expect(0).json();
    assert_eq!((&run["parent"]["image"], &run["was_parent"]), (&"l0.vhdx".into(), &false.into()));
    fs::remove_file(folder.file("l1.vhdx")).unwrap();
    assert!(folder.run("read l2.vhdx").expect(0).stdout == flats()[2]);
    // Over a base of qemu-img, which reads one file: the image holds what that has not.
    if let Some(qemu) = Qemu::find() {
        let base = folder.file("empty.vhdx");
        qemu.create(&base, 6 << 20, &[]);
        folder.run("rebase l2.vhdx --onto empty.vhdx").expect(0);
        assert!(folder.run("read l2.vhdx").expect(0).stdout == flats()[2]);
        fs::write(folder.file("flat.raw"), &flats()[2]).unwrap();
        folder.run("convert l2.vhdx -O vhdx flat.vhdx").expect(0);
        qemu.compare(("vhdx", &folder.file("flat.vhdx")), ("raw", &folder.file("flat.raw")));
    }
}

#[test]
fn what_is_refused_says_what_to_do_and_changes_no_file() {
    let folder = Folder::with_chain();
    let files = ["l0.vhdx", "l1.vhdx", "l2.vhdx"];
    let before = files.map(|file| folder.read(file));
    let run = folder.run("rebase -u l1.vhdx --onto l0.vhdx").expect(2);
    run.says("next: avhdx reparent l1.vhdx --onto l0.vhdx --unproven");
    folder.run("rebase l1.vhdx --onto l1.vhdx").expect(2).says("its own ancestor");
    folder.run("rebase l1.vhdx --onto l2.vhdx").expect(2).says("its own ancestor");
    folder.run("rebase l0.vhdx --onto l2.vhdx").expect(2);
    folder.run("rebase l1.vhdx --onto none.vhdx").expect(3);
    folder.run("rebase l1.vhdx").expect(2);
    folder.run("rebase l1.vhdx --onto l0.vhdx --rate 0").expect(2);
    assert!(files.map(|file| folder.read(file)) == before);
    fs::rename(folder.file("l0.vhdx"), folder.file("kept")).unwrap();
    folder.run("rebase l1.vhdx --onto kept").expect(5).says("reparent --unproven");
    assert!(folder.read("l1.vhdx") == before[1]);
}
