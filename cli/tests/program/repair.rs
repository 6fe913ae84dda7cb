//! `avhdx repair`: what it prints, its exit codes, and the way back.

use std::fs;

use avhdx_testkit::build::{Block, Checksum, Data, Image};

use crate::common::{Folder, chain};

const MIB: u64 = 1 << 20;

fn image() -> Image {
    let mut image = Image::dynamic(4 * MIB);
    for block in 0..4 {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    image
}

fn written(change: impl FnOnce(&mut Image)) -> Folder {
    let folder = Folder::new();
    let mut broken = image();
    change(&mut broken);
    broken.write_to(folder.file("a.vhdx"));
    folder
}

#[test]
fn a_sound_image_stays_as_it_is() {
    let folder = Folder::with_chain();
    let before = folder.read("l2.vhdx");
    let run = folder.run("repair l2.vhdx").expect(0);
    assert_eq!(run.text(), "l2.vhdx: nothing to repair\n");
    assert!(folder.read("l2.vhdx") == before);
    assert!(!folder.file("l2.vhdx.undo").exists());
}

#[test]
fn each_step_is_printed_and_undone_to_the_byte() {
    let folder = written(|i| {
        i.headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
        let place = i.layout().payload[&0];
        i.bat_override.insert(2, place | 6);
    });
    let before = folder.read("a.vhdx");
    let disk = folder.run("read a.vhdx").expect(0).stdout;
    let plan = folder.run("repair a.vhdx --dry-run").expect(0).text();
    assert!(folder.read("a.vhdx") == before && folder.names().len() == 1);
    assert!(plan.contains("a.vhdx: would be repaired\n"), "{plan}");
    assert!(plan.contains("an undo file of "), "{plan}");

    let run = folder.run("repair a.vhdx").expect(0);
    let text = run.text();
    let steps = [
        "the header at 0x10000 is written anew from the other\n  header.checksum: ",
        "1 block gets a copy of the bytes that were shared\n  bat.duplicate: ",
        "written, the disk reads the same\n",
        "a.vhdx: repaired\n  avhdx repair --undo a.vhdx.undo a.vhdx  # restores it\n",
    ];
    for step in steps {
        assert!(text.contains(step), "{step} in {text}");
    }
    folder.run("check a.vhdx").expect(0);
    assert!(folder.run("read a.vhdx").expect(0).stdout == disk);
    let run = folder.run("repair --undo a.vhdx.undo a.vhdx").expect(0);
    run.prints("a.vhdx: as before the repair; a.vhdx.undo is needed no more");
    assert!(folder.read("a.vhdx") == before);
    let again = folder.run("repair --undo a.vhdx.undo a.vhdx --json").expect(0).json();
    assert_eq!(again["repair"], "nothing");
}

#[test]
fn what_is_lost_needs_consent_and_ends_with_8() {
    let folder = written(|i| i.file_length = Some(i.layout().needed_length - MIB));
    let before = folder.read("a.vhdx");
    let run = folder.run("repair a.vhdx").expect(1);
    run.prints("because 1048576 bytes of the disk are lost, and nobody consented")
        .prints("next: avhdx repair --accept-loss a.vhdx\n")
        .prints("a.vhdx: nothing that can be repaired; not changed\n");
    assert!(folder.read("a.vhdx") == before);
    let run = folder.run("repair --accept-loss a.vhdx --undo-file way-back").expect(8);
    run.prints("the disk reads otherwise\n")
        .prints("lost: 1048576 bytes of the disk from 3145728 on\n")
        .prints("a.vhdx: repaired, 1048576 bytes (1 MiB) given up\n");
    folder.run("check a.vhdx").expect(0);
    folder.run("repair a.vhdx --undo way-back").expect(0);
    assert!(folder.read("a.vhdx") == before);
}

#[test]
fn json_has_the_steps_and_what_is_left() {
    let folder = written(|i| {
        i.bat_override.insert(1, 4);
        i.bat_override.insert(3, i.layout().payload[&3] | 6 | 1 << 5);
    });
    let run = folder.run("repair a.vhdx --json").expect(1).json();
    assert_eq!(run["schema"], "avhdx.repair/1");
    assert_eq!(run["steps"][0]["codes"], serde_json::json!(["bat.reserved-bits"]));
    assert_eq!(run["steps"][0]["changes_disk"], false);
    assert_eq!(run["undo_file"], "a.vhdx.undo");
    assert_eq!(run["undo_bytes"], fs::metadata(folder.file("a.vhdx.undo")).unwrap().len());
    let left = &run["left"][0];
    assert_eq!((&left["code"], &left["severity"]), (&"bat.state".into(), &"error".into()));
    assert_eq!(left["why"], "nothing in the file proves what belongs there");
}

#[test]
fn an_image_that_was_changed_is_not_undone() {
    let folder = written(|i| {
        i.bat_override.insert(3, i.layout().payload[&3] | 6 | 1 << 5);
    });
    folder.run("repair a.vhdx").expect(0);
    folder.run("zero a.vhdx --offset 0 --length 512").expect(0);
    let before = folder.read("a.vhdx");
    folder.run("repair --undo a.vhdx.undo a.vhdx").expect(7).says("changed since the repair");
    assert!(folder.read("a.vhdx") == before);
}

#[test]
fn a_check_says_what_repairs_each_finding() {
    let folder = Folder::new();
    let mut base = chain().swap_remove(0);
    base.bat_override.insert(1, 5 << 20 | 1 << 4 | 6);
    base.write_to(folder.file("base.vhdx"));
    folder.run("check base.vhdx").expect(1).prints("repaired by: avhdx repair\n");
    folder.run("repair base.vhdx").expect(0);
    folder.run("check base.vhdx").expect(0);
}
