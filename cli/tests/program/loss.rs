//! `--accept-loss`: reports about a damaged image, and its repair.

use std::fs;

use crate::common::{Folder, chain};
use avhdx_testkit::build::{Block, Data, Image, write_chain};
use avhdx_testkit::loss::Why;
use avhdx_testkit::naive::{Chain, Layer};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A dynamic image of four blocks, truncated by 1.5 MiB.
fn cut(folder: &Folder) -> Layer {
    let mut image = Image::dynamic(4 * MIB);
    for block in 0..4 {
        image.put(block, Block::full(Data::Pattern(block + 1)));
    }
    image.file_length = Some(image.layout().needed_length - MIB - MIB / 2);
    image.write_to(folder.file("a.vhdx"));
    Layer::open(folder.file("a.vhdx")).unwrap()
}

/// The last command that a refusal suggests.
fn next(stderr: &str) -> String {
    let last = stderr.lines().last().unwrap();
    last.trim_start().strip_prefix("next: avhdx ").unwrap().to_owned()
}

fn what(name: &str) -> Why {
    match name {
        "lost" => Why::Lost,
        "rest-lost" => Why::Rest,
        "bits-lost" => Why::Bits,
        "shared" => Why::Shared,
        "unmapped" => Why::Unmapped,
        other => panic!("{other}"),
    }
}

#[test]
fn the_refusal_of_a_damaged_image_suggests_a_command_that_works() {
    let verbs = [
        "write a.vhdx --offset 0",
        "zero a.vhdx --offset 0 --length 1M",
        "discard a.vhdx --offset 0 --length 1M",
        "checkpoint a.vhdx --path b.avhdx",
    ];
    for verb in verbs {
        let folder = Folder::new();
        let was = cut(&folder);
        let before = folder.read("a.vhdx");
        let run = folder.run_with(verb, &[7; 512]).expect(4).says("lost bytes");
        assert!(folder.read("a.vhdx") == before && folder.names() == ["a.vhdx"], "{verb}");
        let command = next(&run.stderr);
        assert_eq!(command, format!("{verb} --accept-loss"));
        let run = folder.run_with(&command, &[7; 512]).expect(8).says("a.vhdx.lost has the list");
        run.prints("Losses").prints("the rest of a block; zeros from now on");
        // Half of one block and all of another.
        let text = fs::read_to_string(folder.file("a.vhdx.lost")).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            ["2621440\t524288\trest-lost\t0x600000", "3145728\t1048576\tlost\t0x700000"]
        );
        folder.run("check a.vhdx").expect(0);
        let mut expected = was.mended(None).bytes;
        match verb.split(' ').next().unwrap() {
            "write" => expected[..512].fill(7),
            "zero" | "discard" => expected[..MIB as usize].fill(0),
            _ => assert_eq!(folder.names(), ["a.vhdx", "a.vhdx.lost", "b.avhdx"]),
        }
        assert!(
            Chain::open([folder.file("a.vhdx")]).unwrap().flat(0).unwrap() == expected,
            "{verb}"
        );
        assert_ne!(
            Layer::open(folder.file("a.vhdx")).unwrap().data_write_guid,
            was.data_write_guid
        );
        // A second run has nothing to accept and reports nothing.
        if !verb.starts_with("checkpoint") {
            let run = folder.run_with(&command, &[7; 512]).expect(0);
            assert!(!run.text().contains("lost") && run.stderr.is_empty(), "{}", run.stderr);
            assert_eq!(folder.names(), ["a.vhdx", "a.vhdx.lost"]);
        }
    }
}

#[test]
fn json_contains_the_list_of_losses() {
    let folder = Folder::new();
    let model = cut(&folder).losses();
    let line = "write a.vhdx --offset 0 --accept-loss --loss-report gone.txt --json";
    let run = folder.run_with(line, b"x").expect(8);
    let note: Value = serde_json::from_str(run.stderr.lines().next().unwrap()).unwrap();
    assert_eq!((&note["schema"], &note["code"]), (&"avhdx.note/1".into(), &"loss.accepted".into()));
    let answer = run.json();
    assert_eq!((&answer["schema"], &answer["written"]), (&"avhdx.write/1".into(), &1.into()));
    let loss = &answer["accepted_loss"];
    assert_eq!(loss["report"], "gone.txt");
    assert_eq!(loss["bytes"], MIB + MIB / 2);
    let list = loss["list"].as_array().unwrap().iter().map(|one| {
        let (offset, length) = (one["offset"].as_u64().unwrap(), one["length"].as_u64().unwrap());
        (offset..offset + length, what(one["what"].as_str().unwrap()))
    });
    assert_eq!(list.collect::<Vec<_>>(), model.list);
    assert_eq!(folder.names(), ["a.vhdx", "gone.txt"]);
    // An existing report is not overwritten.
    cut(&folder);
    let before = folder.read("a.vhdx");
    let run = folder.run_with(line, b"x").expect(3);
    let error = run.error();
    assert_eq!(error["code"], "loss.report");
    assert!(error["next"][0].as_str().unwrap().contains("--loss-report LIST"), "{error}");
    assert!(folder.read("a.vhdx") == before);
    let run = folder.run_with("write a.vhdx --offset 0", b"x").expect(4);
    assert!(run.stderr.contains("--accept-loss"));
}

#[test]
fn a_loss_under_a_child_is_not_accepted() {
    let folder = Folder::new();
    let mut images = chain();
    images[0].file_length = Some(images[0].layout().needed_length - MIB);
    write_chain(folder.path(), &images);
    let before = folder.read("l0.vhdx");
    let run = folder.run_with("write l0.vhdx --offset 0 --accept-loss", b"x").expect(7);
    run.says("the image has a child");
    // Nor in a merge; only commands that work are suggested.
    for line in ["merge l2.vhdx@-1", "merge l2.vhdx@-1 --accept-loss"] {
        let run = folder.run(line).expect(4).says("l0.vhdx");
        assert!(!run.stderr.contains("next: avhdx merge"), "{}", run.stderr);
        assert!(run.stderr.contains("next: avhdx check --layer l0.vhdx"), "{}", run.stderr);
    }
    assert!(folder.read("l0.vhdx") == before);
    assert_eq!(folder.names(), ["l0.vhdx", "l1.vhdx", "l2.vhdx"]);
    // --orphan-children allows it, as for every change.
    let line = "write l0.vhdx --offset 0 --accept-loss --orphan-children";
    folder.run_with(line, b"x").expect(8);
    folder.run("check l0.vhdx").expect(0);
}

#[test]
fn a_tip_is_repaired_before_it_is_merged() {
    let folder = Folder::new();
    let mut images = chain();
    images[2].file_length = Some(images[2].layout().needed_length - 300_000);
    write_chain(folder.path(), &images);
    let before: Vec<_> = ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.read(name)).into();
    let run = folder.run("merge l2.vhdx").expect(4).says("l2.vhdx");
    assert_eq!(next(&run.stderr), "merge l2.vhdx --accept-loss");
    let after: Vec<_> = ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.read(name)).into();
    assert!(before == after);
    folder.run("merge l2.vhdx --accept-loss").expect(8);
    assert_eq!(folder.names(), ["l0.vhdx", "l1.vhdx", "l2.vhdx.lost"]);
    folder.run("check l1.vhdx").expect(0);
    let flat =
        Chain::open([folder.file("l0.vhdx"), folder.file("l1.vhdx")]).unwrap().flat(1).unwrap();
    let mut expected = crate::common::flats().remove(2);
    let end = 4 << 20;
    expected[end - 300_000..end].fill(0);
    assert!(flat == expected);
}

#[test]
fn lost_structures_are_not_repaired() {
    let folder = Folder::new();
    cut(&folder);
    let file = fs::OpenOptions::new().write(true).open(folder.file("a.vhdx")).unwrap();
    file.set_len(3 * MIB + 4096).unwrap();
    let before = folder.read("a.vhdx");
    let run = folder.run_with("write a.vhdx --offset 0 --accept-loss", b"x").expect(4);
    run.says("reaches past the end of the file");
    assert!(folder.read("a.vhdx") == before && folder.names() == ["a.vhdx"]);
}
