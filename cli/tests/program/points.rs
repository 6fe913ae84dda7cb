//! `IMAGE@SEL`: valid, unknown and ambiguous selectors.

use std::fs;

use crate::common::{Folder, chain, flats, name};
use avhdx_testkit::build::write_chain;

const WHOLE: &str = "--length 4M";

#[track_caller]
fn reads(folder: &Folder, image: &str, layer: usize) {
    let run = folder.run(&format!("read {image} {WHOLE}")).expect(0);
    assert!(run.stdout == flats()[layer][..4 << 20], "{image} is not layer {layer}");
    let resolved = format!("is l{layer}.vhdx, {}", crate::common::guid(layer as u8));
    run.says(&resolved);
}

#[test]
fn every_form_of_selector_works() {
    let folder = Folder::with_chain();
    reads(&folder, "l2.vhdx@-0", 2);
    reads(&folder, "l2.vhdx@-1", 1);
    reads(&folder, "l2.vhdx@-2", 0);
    reads(&folder, "l1.vhdx@-1", 0);
    reads(&folder, "l2.vhdx@base", 0);
    reads(&folder, "l0.vhdx@base", 0);
    reads(&folder, "l2.vhdx@l1.vhdx", 1);
    reads(&folder, "l2.vhdx@1111", 1);
    reads(&folder, "l2.vhdx@1111AAAA-0000-4", 1);
    reads(&folder, "l2.vhdx@{0000aaaa-0000-4000-8000-000000000000}", 0);
    reads(&folder, "l2.vhdx@2222aaaa0000", 2);
}

#[test]
fn every_verb_takes_selectors() {
    let folder = Folder::with_chain();
    for verb in ["info", "ls --volumes", "map", "measure"] {
        folder.run(&format!("{verb} l2.vhdx@-1")).expect(0).says("l2.vhdx@-1 is l1.vhdx");
    }
    for verb in ["seal", "verify"] {
        folder.run(&format!("{verb} l2.vhdx@-1")).expect(0).says("l2.vhdx@-1 is l1.vhdx");
    }
    folder.run("explain l2.vhdx@-1 0").expect(0).says("l2.vhdx@-1 is l1.vhdx");
    folder.run("convert l2.vhdx@-1 -O raw out").expect(0).says("l2.vhdx@-1 is l1.vhdx");
    assert!(folder.read("out") == flats()[1]);
    folder.run("rescue l2.vhdx@-1 -O raw rescued").expect(0).says("l2.vhdx@-1 is l1.vhdx");
    assert!(folder.read("rescued") == flats()[1]);
    folder.run("flatten l2.vhdx@-1 out.vhdx").expect(0).says("l2.vhdx@-1 is l1.vhdx");
    folder.run("compare l2.vhdx@base l0.vhdx").expect(0).says("l2.vhdx@base is l0.vhdx");
    folder.run("diff l2.vhdx@base l0.vhdx").expect(0).says("l2.vhdx@base is l0.vhdx");
}

#[test]
fn unknown_and_short_selectors_are_refused() {
    let folder = Folder::with_chain();
    let unknown = |selector: &str| {
        let run = folder.run(&format!("read l2.vhdx@{selector} --length 1")).expect(2);
        assert!(run.stdout.is_empty());
        // The error lists the points in time.
        run.says("@-1   1111aaaa-0000-4000-8000-000000000001  l1.vhdx")
    };
    unknown("-3").says("its base is @-2");
    unknown("111").says("at least 4 digits");
    unknown("3333").says("no layer of the chain matches 3333");
    unknown("l9.vhdx");
    // Not a spelling of @-N.
    unknown("-");
    unknown("--1");
}

#[test]
fn ambiguous_selectors_are_refused() {
    let folder = Folder::new();
    let mut images = chain();
    // The base and the middle layer share eight digits.
    for (image, n) in images.iter_mut().zip([7, 7, 2]) {
        name(image, n);
    }
    let twin = uuid::Uuid::parse_str("7777aaaa-1111-4000-8000-000000000007").unwrap();
    images[1].set_data_write_guid(twin);
    images[1].locator.set("parent_linkage", format!("{{{}}}", crate::common::guid(7)));
    images[2].locator.set("parent_linkage", format!("{{{twin}}}"));
    write_chain(folder.path(), &images);
    let run = folder.run("read l2.vhdx@7777 --length 1 --json").expect(2);
    let error = run.error();
    assert_eq!(error["code"], "point.ambiguous");
    assert!(error["message"].as_str().unwrap().contains("2 layers match 7777"));
    // One more digit makes the selector unique.
    folder.run("read l2.vhdx@7777aaaa1 --length 1").expect(0).says("is l1.vhdx");
}

#[test]
fn a_file_called_base_that_is_not_the_base_is_ambiguous() {
    let folder = Folder::new();
    let mut images = chain();
    images[0].write_to(folder.file("root.vhdx"));
    images[1].parent_path(".\\root.vhdx");
    images[1].write_to(folder.file("base"));
    images[2].parent_path(".\\base");
    images[2].write_to(folder.file("tip.vhdx"));
    let error = folder.run("info tip.vhdx@base --json").expect(2).error();
    assert_eq!(error["code"], "point.ambiguous");
    folder.run("info tip.vhdx@-2").expect(0).says("is root.vhdx");
}

#[test]
fn an_existing_file_of_that_name_wins() {
    let folder = Folder::with_chain();
    fs::copy(folder.file("l0.vhdx"), folder.file("l2.vhdx@-1")).unwrap();
    let run = folder.run(&format!("read l2.vhdx@-1 {WHOLE}")).expect(0);
    assert!(run.stdout == flats()[0]);
    assert_eq!(run.stderr, "");
    // Its own points in time follow another @.
    folder.run("info l2.vhdx@-1@base").expect(0).says("l2.vhdx@-1@base is l2.vhdx@-1");
}

#[test]
fn names_of_raw_disks_have_no_selector() {
    let folder = Folder::with_chain();
    fs::write(folder.file("disk"), [1; 512]).unwrap();
    folder.run("read disk@-1 -f raw --length 1").expect(3).says("disk@-1: cannot open");
}

#[test]
fn a_log_above_the_point_does_not_matter() {
    let folder = Folder::new();
    let mut images = chain();
    let mut after = images[2].clone();
    after.put(2, avhdx_testkit::build::Block::bare(0));
    images[2] = avhdx_testkit::build::Image::dirty(&images[2], &after, crate::common::guid(9), 10);
    write_chain(folder.path(), &images);
    folder.run("read l2.vhdx --log refuse --length 1").expect(7);
    folder.run("read l2.vhdx@-1 --log refuse --length 1").expect(0);
}
