//! The flags for parents, and errors about missing ones.

use std::fs;

use crate::common::{Folder, chain, flats, guid};
use avhdx_testkit::build::write_chain;

const READ: &str = "read l2.vhdx --length 6M";

/// The chain with its base in `elsewhere/`.
fn moved() -> Folder {
    let folder = Folder::with_chain();
    fs::create_dir(folder.file("elsewhere")).unwrap();
    fs::rename(folder.file("l0.vhdx"), folder.file("elsewhere/moved.vhdx")).unwrap();
    folder
}

#[test]
fn a_missing_parent_is_reported() {
    let run = moved().run(READ).expect(5).says("the parent is missing").says("--parent-dir DIR");
    assert!(run.stdout.is_empty());
    run.says("next: avhdx tree .  #").says("--path-map").says("--with-parent");
}

#[test]
fn parents_are_found_by_the_flags() {
    let folder = moved();
    for flag in ["--parent-dir elsewhere", "--with-parent elsewhere/moved.vhdx"] {
        let run = folder.run(&format!("{READ} {flag}")).expect(0);
        assert!(run.stdout == flats()[2], "{flag}");
    }
    let by = |flag: &str| {
        let info = folder.run(&format!("info l1.vhdx --json {flag}")).expect(0).json();
        info["chain"]["parent"]["found_by"].clone()
    };
    assert_eq!(by("--parent-dir elsewhere"), "folder-search");
    assert_eq!(by("--with-parent elsewhere/moved.vhdx"), "given");
    let listed = std::env::join_paths(["nowhere", "elsewhere"]).unwrap();
    let mut command = folder.command(READ.split(' '));
    let output = command.env("AVHDX_PARENT_DIRS", listed).output().unwrap();
    assert!(crate::common::Run::of(output).expect(0).stdout == flats()[2]);
}

#[test]
fn windows_paths_are_mapped() {
    let folder = Folder::new();
    let mut images = chain();
    images[1].locator.pairs.retain(|(key, _)| key != "relative_path");
    images[1].locator.set("absolute_win32_path", r"\\?\D:\vm\Disks\moved.vhdx");
    write_chain(folder.path(), &images);
    fs::create_dir_all(folder.file("mnt/disks")).unwrap();
    fs::rename(folder.file("l0.vhdx"), folder.file("mnt/disks/Moved.vhdx")).unwrap();
    folder.run(READ).expect(5);
    let run = folder.run(&format!(r"{READ} --path-map D:\vm=mnt")).expect(0);
    assert!(run.stdout == flats()[2]);
    folder.run(&format!(r"{READ} --path-map D:\vm")).expect(2).says("FROM=TO");
}

#[test]
fn a_mismatch_shows_the_file_but_not_its_identity() {
    let folder = Folder::with_chain();
    let mut stranger = chain().remove(0);
    stranger.set_data_write_guid(guid(9));
    stranger.write_to(folder.file("l0.vhdx"));
    let run = folder.run(READ).expect(5).says("l0.vhdx").says(&guid(0).to_string());
    assert!(!run.stderr.contains(&guid(9).to_string()), "{}", run.stderr);
    run.says("--ignore-id-mismatch");

    let run = folder.run(&format!("{READ} --ignore-id-mismatch")).expect(0);
    assert!(run.stdout == flats()[2]);
    run.says("warning: l1.vhdx: THE LINKAGE IS IGNORED");
    let json = folder.run(&format!("{READ} --ignore-id-mismatch --json")).expect(0);
    assert_eq!(json.error()["schema"], "avhdx.warning/1");
    assert_eq!(json.error()["code"], "parent.linkage-ignored");
    assert_eq!(json.error()["file"], "l1.vhdx");
}

#[test]
fn confine_restricts_parents() {
    let folder = Folder::new();
    fs::create_dir(folder.file("in")).unwrap();
    let mut images = chain();
    images[0].write_to(folder.file("outside.vhdx"));
    images[1].parent_path(r"..\outside.vhdx");
    images[1].write_to(folder.file("in/l1.vhdx"));
    images[2].parent_path(r".\l1.vhdx");
    images[2].write_to(folder.file("in/l2.vhdx"));
    folder.run("read in/l2.vhdx --length 1").expect(0);
    let denied = folder.run("read in/l2.vhdx --length 1 --confine in --json").expect(5);
    assert_eq!(denied.error()["code"], "parent.denied");
    assert_eq!(denied.error()["kind"], "parent-denied");
    assert!(denied.error()["hints"][0].as_str().unwrap().contains("--confine"));
    folder.run("read in/l2.vhdx --length 1 --confine in --confine .").expect(0);
}

#[test]
fn a_path_to_another_machine_is_followed_only_if_it_is_mapped() {
    let folder = Folder::new();
    let mut images = chain();
    images[0].write_to(folder.file("l0.vhdx"));
    for path in [r"\\server\share\l0.vhdx", r"D:\vm\l0.vhdx", r".\l0.vhdx:stream"] {
        images[1].parent_path(path);
        images[1].write_to(folder.file("l1.vhdx"));
        let run = folder.run("read l1.vhdx --length 1").expect(5).says("--path-map");
        drop(run.says("next: avhdx read l1.vhdx --length 1 --parent-dir DIR"));
        let run = folder.run("read l1.vhdx --length 1 --json").expect(5);
        assert_eq!(run.error()["code"], "parent.leads-away");
        folder.run("info l1.vhdx").expect(0);
        folder.run("read l1.vhdx --length 1 --parent-dir .").expect(0);
    }
    images[1].parent_path(r"\\server\share\l0.vhdx").write_to(folder.file("l1.vhdx"));
    folder.run(r"read l1.vhdx --length 1 --path-map \\server\share=.").expect(0);
}

#[test]
fn the_error_for_a_deep_chain_suggests_max_depth() {
    let folder = Folder::with_chain();
    folder.run(&format!("{READ} --max-depth 2")).expect(7).says("--max-depth N");
    folder.run(&format!("{READ} --max-depth 3")).expect(0);
}

#[test]
fn info_shows_the_readable_part_of_a_broken_chain() {
    let folder = Folder::with_chain();
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    // The image itself is sound; its broken chain is a warning.
    let run = folder.run("info l2.vhdx").expect(0).prints("BROKEN");
    run.prints("parent        l1.vhdx (found by relative_path)")
        .says("warning: l1.vhdx: the parent is missing");

    let run = folder.run("info l2.vhdx --chain --json").expect(5);
    let info = run.json();
    assert_eq!(info["chain"]["complete"], false);
    assert_eq!(info["chain"]["error"]["code"], "parent.missing");
    assert_eq!(info["chain"]["layers"].as_array().unwrap().len(), 2);
    assert_eq!(info["chain"]["layers"][1]["image"], "l1.vhdx");
    assert_eq!(run.error()["code"], "parent.missing");
    folder.run("info l2.vhdx --chain").expect(5).prints("l1.vhdx").says("--parent-dir");
}
