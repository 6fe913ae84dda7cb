//! Labels of checkpoints, and unfinished merges, in selectors, `tree` and `info`.

use std::time::{Duration, UNIX_EPOCH};

use crate::common::{Folder, mark, name};
use avhdx::{CreateOptions, DiffChain};
use avhdx_testkit::build::{Descriptor, Image, LogEntry};

/// A disk with two checkpoints: first `before the upgrade`, then one whose label is `label`.
fn labelled(label: &str) -> Folder {
    let folder = Folder::new();
    folder.run("create base.vhdx --size 4M").expect(0);
    for (parent, child, label) in [("base", "one", "before the upgrade"), ("one", "two", label)] {
        let parent = DiffChain::open(folder.file(&format!("{parent}.vhdx"))).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(951_868_799);
        let options = CreateOptions::child_of(&parent.tip()).unwrap().checkpoint(label, time);
        options.create(folder.file(&format!("{child}.vhdx"))).unwrap();
    }
    folder
}

#[test]
fn a_label_selects_its_point_in_time() {
    let folder = labelled("after");
    let run = folder.run("info two.vhdx@after").expect(0);
    run.says("two.vhdx@after is one.vhdx, ").says(" (after)\n");
    let mut command = folder.command(["read", "two.vhdx@before the upgrade", "--length", "1"]);
    let run = crate::common::Run::of(command.output().unwrap()).expect(0);
    run.says("is base.vhdx, ").says(" (before the upgrade)");
    // The error lists all labels.
    let run = folder.run("read two.vhdx@never --length 1").expect(2);
    let run = run.says("one.vhdx  (after)\n").says("base.vhdx  (before the upgrade)\n");
    run.says("next: avhdx info --chain two.vhdx\n");
    // The label is stored in the child and names the layer below it.
    folder.run("read one.vhdx@after --length 1").expect(2);
}

#[test]
fn a_label_that_also_selects_another_layer_is_ambiguous() {
    for label in ["base", "-2", "two.vhdx"] {
        let folder = labelled(label);
        let run = folder.run(&format!("read two.vhdx@{label} --length 1")).expect(2);
        run.says(&format!("2 layers match {label}"));
    }
    // Two names of the same layer are not ambiguous.
    let folder = labelled("one.vhdx");
    folder.run("read two.vhdx@one.vhdx --length 1").expect(0);
}

#[test]
fn tree_and_info_show_labels() {
    let folder = labelled("after \u{1b}[2J");
    let tree = folder.run("tree .").expect(0).text();
    let line = |name: &str| tree.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(line("base.vhdx").ends_with("  @'before the upgrade'"), "{tree}");
    assert!(line("one.vhdx").ends_with("  @'after \\u{1b}[2J'"), "{tree}");
    assert!(!line("two.vhdx").contains('@'), "{tree}");
    let images = &folder.run("tree . --json").expect(0).json()["images"];
    assert_eq!(images[0]["labels"], serde_json::json!(["before the upgrade"]));
    assert_eq!(images[1]["checkpoint"]["label"], "before the upgrade");
    // From date -u -d @951868799.
    assert_eq!(images[1]["checkpoint"]["time"], "2000-02-29T23:59:59Z");
    let run = folder.run("info one.vhdx").expect(0);
    run.prints("before the upgrade, 2000-02-29T23:59:59Z: the point in time below");
    let info = folder.run("info one.vhdx --json").expect(0).json();
    assert_eq!(info["checkpoint"]["label"], "before the upgrade");
}

#[test]
fn unfinished_merges_are_shown_with_the_command_to_resume() {
    let folder = Folder::new();
    let mut base = Image::dynamic(4 << 20);
    name(&mut base, 0);
    let mut child = base.new_child();
    name(&mut child, 1);
    child.parent_path(".\\base.vhdx");
    mark(&mut base, 3, crate::common::guid(1), "child.avhdx");
    mark(&mut child, 1, crate::common::guid(0), "base.vhdx");
    base.write_to(folder.file("base.vhdx"));
    child.write_to(folder.file("child.avhdx"));
    let run = folder.run("tree .").expect(1);
    let run = run.prints("1 fault:").prints("unfinished merge: child.avhdx\n");
    run.prints("next: avhdx merge --resume ./child.avhdx\n");
    let document = folder.run("tree . --json").expect(1).json();
    assert_eq!(document["images"][0]["merge"]["state"], "target");
    assert_eq!(document["images"][1]["merge"]["state"], "merging");
    assert_eq!(
        document["images"][1]["merge"]["other_data_write_guid"],
        crate::common::guid(0).to_string()
    );
    folder.run("info child.avhdx").expect(0).prints("unfinished, into base.vhdx, 0000aaaa-");

    // Without the child, the parent reports the merge.
    std::fs::remove_file(folder.file("child.avhdx")).unwrap();
    let run = folder.run("tree .").expect(1).prints("unfinished merge: base.vhdx\n");
    run.prints("next: avhdx tree . DIR  # DIR: a folder that may contain child.avhdx\n");
}

#[test]
fn what_a_merge_in_the_middle_left_behind_has_no_tip_and_is_no_branch() {
    let folder = Folder::new();
    let mut base = Image::dynamic(4 << 20);
    name(&mut base, 0);
    let mut tip = base.new_child();
    name(&mut tip, 1);
    tip.parent_path(".\\base.vhdx");
    let mut left = base.new_child();
    name(&mut left, 2);
    left.parent_path(".\\base.vhdx");
    mark(&mut left, 2, crate::common::guid(0), "base.vhdx");
    for (image, name) in [(&base, "base.vhdx"), (&tip, "tip.avhdx"), (&left, "left.avhdx")] {
        image.write_to(folder.file(name));
    }
    folder.run("points tip.avhdx").expect(0).prints("an unfinished merge: left.avhdx");
    let refused = folder.run("delete tip.avhdx@-1").expect(7);
    refused.says("next: avhdx merge --resume ./left.avhdx");
    let done = folder.run("merge --resume left.avhdx --json").expect(0).json();
    assert_eq!(done["tip"], serde_json::Value::Null, "{done}");
    folder.run("points tip.avhdx").expect(0).prints("yes");
    // Of a tip it is told: its machine is to be given the parent.
    let mut tip = base.new_child();
    name(&mut tip, 1);
    tip.parent_path(".\\base.vhdx");
    mark(&mut tip, 2, crate::common::guid(0), "base.vhdx");
    tip.write_to(folder.file("tip.avhdx"));
    let done = folder.run("merge --resume tip.avhdx --json").expect(0).json();
    assert!(done["tip"].as_str().unwrap().ends_with("base.vhdx"), "{done}");
}

#[test]
fn the_present_gets_no_label_and_its_log_stays() {
    let folder = Folder::new();
    let mut image = Image::dynamic(4 << 20);
    image.set_log_guid(crate::common::guid(9));
    image.log = vec![LogEntry::new(7, vec![Descriptor::zero(image.layout().needed_length, 4096)])];
    image.write_to(folder.file("a.vhdx"));
    let before = std::fs::read(folder.file("a.vhdx")).unwrap();
    folder.run("label a.vhdx@-0 x").expect(2).says("the tip is the present");
    assert!(before == std::fs::read(folder.file("a.vhdx")).unwrap(), "its log was replayed");
}

#[cfg(target_os = "linux")]
#[test]
fn an_answer_of_the_parser_that_nobody_can_be_given_ends_with_an_exit_code() {
    let folder = Folder::new();
    for (line, code) in [
        ("create x.vhdx nan 2>/dev/full", 2),
        ("create $'\\e' 2>/dev/full", 2),
        ("--help >/dev/full", 3),
        ("--version >/dev/full", 3),
        ("info --help >/dev/full", 3),
    ] {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &format!("\"$0\" {line}"), env!("CARGO_BIN_EXE_avhdx")]);
        let done = shell.current_dir(folder.path()).output().unwrap();
        assert_eq!(done.status.code(), Some(code), "{line}");
    }
}
