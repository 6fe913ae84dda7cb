//! `avhdx checkpoint` and `avhdx revert`: their effect on the disk, and their output.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::common::Folder;
use serde_json::Value;

const SIZE: usize = 4 << 20;

/// A disk, and a model of its content.
struct Machine {
    folder: Folder,
    tip: String,
    now: Vec<u8>,
}

impl Machine {
    fn new() -> Self {
        let folder = Folder::new();
        folder.run("create web.vhdx --size 4M --block 1M").expect(0);
        Self { folder, tip: "web.vhdx".into(), now: vec![0; SIZE] }
    }

    fn write(&mut self, at: usize, byte: u8, len: usize) {
        self.folder
            .run_with(&format!("write {} --offset {at}", self.tip), &vec![byte; len])
            .expect(0);
        self.now[at..at + len].fill(byte);
    }

    /// Makes a checkpoint; `name` is the new tip.
    fn checkpoint(&mut self, label: &str, name: &str) -> Vec<u8> {
        let line = format!("checkpoint {} --label {label} --path {name}", self.tip);
        self.folder.run(&line).expect(0).prints(&format!("{name}: the new tip"));
        self.tip = name.into();
        self.now.clone()
    }

    #[track_caller]
    fn reads(&self, image: &str, expected: &[u8]) {
        let run = self.folder.run(&format!("read {image} --length {SIZE}")).expect(0);
        assert!(run.stdout == expected, "{image}");
    }
}

#[test]
fn checkpoints_and_reverts_restore_every_point_in_time() {
    let mut machine = Machine::new();
    machine.write(0, 1, 5000);
    let installed = machine.checkpoint("installed", "one.avhdx");
    machine.write(4096, 2, 2 << 20);
    let updated = machine.checkpoint("updated", "two.avhdx");
    machine.write(3 << 20, 3, 512);
    let tip = machine.now.clone();
    machine.reads("two.avhdx", &tip);
    machine.reads("two.avhdx@updated", &updated);
    machine.reads("two.avhdx@installed", &installed);
    machine.reads("two.avhdx@-1", &updated);
    machine.reads("web.vhdx", &installed);
    let tree = machine.folder.run("tree .").expect(0);
    let tree = tree.prints("@'installed'\n").prints("@'updated'\n");
    drop(tree);

    // Back to the first point, with the later layers kept as a branch.
    let run = machine.folder.run("revert two.avhdx@installed --path three.avhdx").expect(0);
    let run = run.says("two.avhdx@installed is web.vhdx, ");
    drop(run.prints("three.avhdx: the new tip, with the disk as in web.vhdx\n"));
    machine.reads("three.avhdx", &installed);
    machine.reads("two.avhdx", &tip);
    // The point keeps its label on the new branch.
    machine.reads("three.avhdx@installed", &installed);
    machine.tip = "three.avhdx".into();
    machine.now = installed.clone();
    machine.write(1 << 20, 4, 1 << 20);
    machine.reads("three.avhdx", &machine.now);
    machine.reads("two.avhdx", &tip);
    machine.folder.run("check three.avhdx").expect(0);
    machine.folder.run("check two.avhdx").expect(0);

    // Back to the last point of a branch, without the later layers: only the tip.
    let run = machine.folder.run("revert two.avhdx@updated --delete-newer --json").expect(0);
    let done = run.json();
    assert_eq!(done["schema"], "avhdx.revert/1");
    assert_eq!(done["removed"], serde_json::json!(["two.avhdx"]));
    let new = done["tip"].as_str().unwrap();
    assert!(Path::new(new).extension().is_some_and(|extension| extension == "avhdx"), "{new}");
    machine.reads(new, &updated);
    assert!(!machine.folder.names().contains(&"two.avhdx".to_owned()));
    machine.reads("three.avhdx", &machine.now);
}

#[test]
fn a_dry_run_forecasts_what_is_done() {
    let mut machine = Machine::new();
    machine.write(0, 1, 5000);
    let before = machine.folder.read("web.vhdx");
    let line = "checkpoint web.vhdx --path new.avhdx --dry-run";
    let run = machine.folder.run(line).expect(0);
    drop(run.prints("Forecast (nothing is changed)\n").prints("  created       new.avhdx\n"));
    let forecast = machine.folder.run(&format!("{line} --json")).expect(0).json();
    assert_eq!(forecast["schema"], "avhdx.forecast/1");
    assert_eq!(
        forecast["files"],
        serde_json::json!([{ "image": "new.avhdx", "change": "created" }])
    );
    assert!(forecast["available"].as_u64().is_some_and(|bytes| bytes > 0));
    assert!(machine.folder.read("web.vhdx") == before);
    assert_eq!(machine.folder.names(), ["web.vhdx"]);

    let run = machine.folder.run("checkpoint web.vhdx --path new.avhdx --json").expect(0);
    let made = run.json();
    assert_eq!(made["tip"], "new.avhdx");
    assert_eq!(made["point"]["image"], "web.vhdx");
    let len = fs::metadata(machine.folder.file("new.avhdx")).unwrap().len();
    assert_eq!(forecast["written"], len);
    // Only progress is printed on standard error.
    let lines: Vec<Value> =
        run.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!lines.is_empty());
    assert!(lines.iter().all(|line| line["schema"] == "avhdx.progress/1"));

    let line = "revert new.avhdx@-1 --delete-newer --dry-run --json";
    let forecast = machine.folder.run(line).expect(0).json();
    let files = forecast["files"].as_array().unwrap();
    let changes: Vec<_> = files.iter().map(|file| file["change"].as_str().unwrap()).collect();
    assert_eq!(changes, ["created", "removed"]);
    assert_eq!(files[1]["image"], "new.avhdx");
    assert_eq!(machine.folder.names(), ["new.avhdx", "web.vhdx"]);
}

#[test]
fn refusals_change_nothing() {
    let mut machine = Machine::new();
    machine.checkpoint("first", "one.avhdx");
    let folder = &machine.folder;
    // Only the tip can get a checkpoint.
    let run = folder.run("checkpoint web.vhdx").expect(7).says("has a child");
    drop(run.says("next: avhdx create CHILD --parent web.vhdx  # "));
    let run = folder.run("checkpoint one.avhdx@first").expect(7);
    drop(run.says("next: avhdx create CHILD --parent one.avhdx@first  # "));
    drop(folder.run("checkpoint one.avhdx --path web.vhdx").expect(7));
    drop(folder.run("revert one.avhdx").expect(2).says("avhdx points one.avhdx"));
    drop(folder.run("revert one.avhdx@-0").expect(2).says("next: avhdx revert one.avhdx@-1"));
    drop(folder.run("revert one.avhdx@never").expect(2).says("(first)"));
    drop(folder.run("apply web.vhdx@-1").expect(2));
    assert_eq!(folder.names(), ["one.avhdx", "web.vhdx"]);

    // A later layer has another child, which keeps its parent without consent.
    fs::create_dir(folder.file("clones")).unwrap();
    folder.run("create clones/clone.vhdx --parent one.avhdx").expect(0);
    folder.run("checkpoint one.avhdx --path two.avhdx").expect(0);
    let line = "revert two.avhdx@base --delete-newer";
    let run = folder.run(&format!("{line} --children-in clones")).expect(7);
    let run = run.says("clone.vhdx as its child");
    drop(run.says(&format!("next: avhdx {line} --children-in clones --orphan-children\n")));
    assert_eq!(folder.names(), ["clones", "one.avhdx", "two.avhdx", "web.vhdx"]);
    folder.run(&format!("{line} --children-in clones --orphan-children")).expect(0);
    assert_eq!(folder.names().len(), 3);
}

#[test]
fn an_image_in_use_is_refused() {
    let machine = Machine::new();
    let mut command = machine.folder.command(["write", "web.vhdx", "--offset", "0"]);
    let mut writer = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = writer.stdin.take().unwrap();
    // More than a pipe holds: once this returns, the program is reading and has the image open.
    input.write_all(&[1; 256 << 10]).unwrap();
    let run = machine.folder.run("checkpoint web.vhdx --dry-run").expect(6);
    drop(run.says("next: avhdx info web.vhdx\n"));
    drop(input);
    assert!(writer.wait().unwrap().success());
}
