//! `avhdx merge`: layers merged in long sequences of operations, and with the program killed.

use std::fs;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{Folder, Run, chain, guid, mark, name};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::rng::Rng;
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A disk with its checkpoints, and a model of every layer's content.
struct Machine {
    folder: Folder,
    /// The files and the content of the disk at each, base first.
    layers: Vec<(String, Vec<u8>)>,
    made: u32,
}

impl Machine {
    fn new(size: usize) -> Self {
        let folder = Folder::new();
        folder.run(&format!("create web.vhdx --size {size} --block 1M")).expect(0);
        Self { folder, layers: vec![("web.vhdx".into(), vec![0; size])], made: 0 }
    }

    fn tip(&self) -> &str {
        &self.layers.last().unwrap().0
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let (tip, disk) = self.layers.last_mut().unwrap();
        self.folder.run_with(&format!("write {tip} --offset {at}"), bytes).expect(0);
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn discard(&mut self, at: usize, len: usize) {
        let (tip, disk) = self.layers.last_mut().unwrap();
        self.folder.run(&format!("discard {tip} --offset {at} --length {len}")).expect(0);
        disk[at..at + len].fill(0);
    }

    /// Makes a checkpoint whose label is the name of the new tip.
    fn checkpoint(&mut self) {
        self.made += 1;
        let name = format!("c{}", self.made);
        let line = format!("checkpoint {} --label {name} --path {name}.avhdx", self.tip());
        self.folder.run(&line).expect(0);
        let disk = self.layers.last().unwrap().1.clone();
        self.layers.push((format!("{name}.avhdx"), disk));
    }

    /// Makes a checkpoint and a few random changes.
    fn checkpoint_and_write(&mut self, rng: &mut Rng) {
        self.checkpoint();
        let size = self.layers[0].1.len();
        for _ in 0..4 {
            let len = (1 + rng.below(2 * MIB as u64)) as usize;
            let at = rng.below((size - len) as u64) as usize;
            if rng.chance(1, 4) {
                self.discard(at, len);
            } else {
                let mut bytes = vec![0; len];
                bytes.iter_mut().for_each(|byte| *byte = rng.below(256) as u8);
                self.write(at, &bytes);
            }
        }
    }

    /// Checks the tip with the program.
    #[track_caller]
    fn reads(&self) {
        let (tip, disk) = self.layers.last().unwrap();
        let run = self.folder.run(&format!("read {tip} --length {}", disk.len())).expect(0);
        assert!(run.stdout == *disk, "{tip} does not read as it was written");
    }

    /// Checks every layer with the program and an independent reader, and runs `check`.
    #[track_caller]
    fn is_as_written(&self) {
        let paths = self.layers.iter().map(|(name, _)| self.folder.file(name));
        let naive = Chain::open(paths).unwrap();
        for (i, (name, disk)) in self.layers.iter().enumerate() {
            let run = self.folder.run(&format!("read {name} --length {}", disk.len())).expect(0);
            assert!(run.stdout == *disk, "{name}");
            assert!(naive.flat(i).unwrap() == *disk, "{name} to the naive reader");
        }
        self.folder.run(&format!("check {}", self.tip())).expect(0);
        let mut names: Vec<String> = self.layers.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        // A program killed during a removal leaves a file under a temporary name, which is not an image.
        let mut found = self.folder.names();
        found.retain(|name| !name.ends_with(".tmp"));
        assert_eq!(found, names);
    }

    /// Updates the model: the layer at `child` is merged into its parent.
    fn merged(&mut self, child: usize) {
        let (_, disk) = self.layers.remove(child);
        self.layers[child - 1].1 = disk;
    }

    fn spawn(&self, line: &str) -> Child {
        let mut command = self.folder.command(line.split(' '));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The state of an unfinished merge in an image.
    fn mark(&self, name: &str) -> Option<String> {
        let info = self.folder.run(&format!("info {name} --json"));
        let info: Value = serde_json::from_slice(&info.stdout).unwrap();
        info["merge"]["state"].as_str().map(str::to_owned)
    }
}

#[test]
fn layers_are_merged_in_the_middle_and_at_the_tip() {
    let mut machine = Machine::new(8 * MIB);
    let mut rng = Rng::new(5);
    machine.write(0, &[1; 5000]);
    for _ in 0..4 {
        machine.checkpoint_and_write(&mut rng);
    }
    machine.is_as_written();
    // A layer in the middle: the layer above is linked to the one below.
    let run = machine.folder.run("merge c4.avhdx@c3.avhdx").expect(0);
    drop(
        run.prints("c3.avhdx: merged, ")
            .prints("  removed   ")
            .says("c4.avhdx@c3.avhdx is c3.avhdx"),
    );
    machine.merged(3);
    machine.is_as_written();
    // By label: c2 is the layer below c2.avhdx.
    let run = machine.folder.run("merge c4.avhdx@c2 --dry-run --json").expect(0).json();
    assert_eq!(run["schema"], "avhdx.forecast/1");
    let files = run["files"].as_array().unwrap();
    assert!(
        files.iter().any(|file| file["change"] == "removed"
            && file["image"].as_str().unwrap().ends_with("c1.avhdx"))
    );
    machine.is_as_written();
    // The tip and all layers into the base at once.
    let run = machine.folder.run("commit c4.avhdx --into @base --json").expect(0);
    let done = run.json();
    assert!(done["tip"].as_str().unwrap().ends_with("web.vhdx"));
    assert_eq!(done["removed"].as_array().unwrap().len(), 3);
    let is_known = |line: &str| line.contains("avhdx.progress/1") || line.contains("avhdx.note/1");
    assert!(run.stderr.lines().all(is_known), "{}", run.stderr);
    for child in [3, 2, 1] {
        machine.merged(child);
    }
    machine.is_as_written();
    assert_eq!(machine.folder.names(), ["web.vhdx"]);
}

#[test]
fn low_space_and_no_share_give_the_same_result() {
    for flags in ["--low-space", "--no-share", "--low-space --no-share"] {
        let mut machine = Machine::new(8 * MIB);
        let mut rng = Rng::new(6);
        machine.checkpoint_and_write(&mut rng);
        machine.checkpoint_and_write(&mut rng);
        machine.folder.run(&format!("merge c2.avhdx@c1.avhdx {flags}")).expect(0);
        machine.merged(1);
        machine.is_as_written();
        machine.folder.run(&format!("merge c2.avhdx {flags} --into web.vhdx")).expect(0);
        machine.merged(1);
        machine.is_as_written();
    }
}

#[test]
fn refusals_change_nothing() {
    let mut machine = Machine::new(4 * MIB);
    machine.checkpoint();
    machine.write(0, &[1; 512]);
    let folder = &machine.folder;
    drop(folder.run("merge web.vhdx").expect(7).says("next: avhdx tree .  # "));
    drop(folder.run("merge c1.avhdx@base").expect(2).says("next: avhdx points c1.avhdx\n"));
    drop(folder.run("merge c1.avhdx --into @nowhere").expect(2).says("c1.avhdx"));
    drop(folder.run("merge --resume c1.avhdx").expect(2).says("next: avhdx points c1.avhdx\n"));
    // The base has a second child.
    fs::create_dir(folder.file("clones")).unwrap();
    folder.run("create clones/clone.vhdx --parent web.vhdx").expect(0);
    let run = folder.run("merge c1.avhdx --children-in clones").expect(7);
    drop(run.says("clone.vhdx as its child").says("merge or remove the other children first"));
    folder.run("merge c1.avhdx --children-in nowhere").expect(3);
    fs::remove_dir_all(folder.file("clones")).unwrap();
    machine.is_as_written();
}

#[test]
fn the_remains_of_a_killed_merge_are_removed() {
    let folder = Folder::new();
    let [base, mut spent, _] = chain().try_into().unwrap();
    // The layer above is already linked to the base, and the base is no longer marked.
    let mut tip = base.new_child();
    name(&mut tip, 2);
    tip.put(1, Block::full(Data::Pattern(9)));
    mark(&mut spent, 2, guid(0), "base.vhdx");
    base.write_to(folder.file("base.vhdx"));
    spent.parent_path(".\\base.vhdx").write_to(folder.file("spent.avhdx"));
    tip.parent_path(".\\base.vhdx").write_to(folder.file("tip.avhdx"));
    let disk = tip.flat(Some(&base.flat(None)));
    let base = folder.read("base.vhdx");

    let run = folder.run("read spent.avhdx --length 1").expect(7).says("base.vhdx");
    drop(run.says("next: avhdx merge --resume spent.avhdx\n"));
    drop(folder.run("tree .").expect(1).prints("next: avhdx merge --resume ./spent.avhdx\n"));
    folder.run("merge --resume spent.avhdx").expect(0);
    assert_eq!(folder.names(), ["base.vhdx", "tip.avhdx"]);
    assert!(folder.run("read tip.avhdx --length 4M").expect(0).stdout == disk);
    let file_writes = |bytes: &[u8]| bytes[1 << 20..].to_vec();
    assert!(file_writes(&folder.read("base.vhdx")) == file_writes(&base));
    folder.run("tree .").expect(0);
}

/// A rate that leaves time to kill the merge.
const RATE: &str = "--rate 24M";

#[test]
fn an_interruption_stops_where_the_merge_can_be_resumed() {
    let mut machine = Machine::new(16 * MIB);
    machine.checkpoint();
    machine.write(0, &vec![7; 12 * MIB]);
    let merge = machine.spawn("merge c1.avhdx --rate 4M --json");
    sleep(Duration::from_millis(700));
    let killed =
        std::process::Command::new("kill").args(["-INT", &merge.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let start = Instant::now();
    let run = Run::of(merge.wait_with_output().unwrap()).expect(130);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(run.error()["code"], "op.cancelled");
    assert_eq!(run.error()["next"][0], "avhdx merge --resume c1.avhdx");
    assert!(run.stderr.lines().next().unwrap().contains("avhdx.progress/1"), "{}", run.stderr);
    machine.reads();
    assert_eq!(machine.mark("c1.avhdx").as_deref(), Some("merging"));
    assert_eq!(machine.mark("web.vhdx").as_deref(), Some("target"));
    // The parent alone is inconsistent and refused.
    let run = machine.folder.run("read web.vhdx --length 1").expect(7);
    drop(run.says("next: avhdx merge --resume "));
    drop(machine.folder.run("tree .").expect(1).prints("next: avhdx merge --resume ./c1.avhdx\n"));
    machine.folder.run("merge --resume c1.avhdx").expect(0);
    machine.merged(1);
    machine.is_as_written();
}

/// How often a merge is killed; in the long form more often.
fn kills() -> u32 {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    if is_long { 60 } else { 12 }
}

#[test]
fn a_killed_merge_is_resumed() {
    let mut rng = Rng::new(u64::from(std::process::id()));
    let mut machine = Machine::new(16 * MIB);
    machine.checkpoint_and_write(&mut rng);
    // The number of kills before, during and after the merge.
    let (mut before, mut within, mut after) = (0, 0, 0);
    let kills = kills();
    for round in 0..4 * kills {
        // On a busy machine, few meet a merge.
        if round >= kills && within >= kills / 6 {
            break;
        }
        machine.checkpoint_and_write(&mut rng);
        machine.checkpoint_and_write(&mut rng);
        // The tip or the layer below it.
        let child = if rng.chance(1, 2) { 3 } else { 2 };
        let (tip, name) = (machine.tip().to_owned(), machine.layers[child].0.clone());
        let low_space = if rng.chance(1, 3) { " --low-space" } else { "" };
        let line = format!("merge {tip}@{name} {RATE}{low_space}");
        let mut merge = machine.spawn(&line);
        sleep(Duration::from_millis(rng.below(400)));
        merge.kill().unwrap();
        merge.wait().unwrap();
        let state = if machine.folder.file(&name).exists() { machine.mark(&name) } else { None };
        if !machine.folder.file(&name).exists() {
            after += 1;
        } else if state.is_none() {
            machine.reads();
            before += 1;
            machine.folder.run(&format!("merge {tip}@{name}")).expect(0);
        } else {
            within += 1;
            if state.as_deref() != Some("spent") {
                machine.reads();
            }
            // Sometimes killed again.
            if rng.chance(1, 3) {
                let mut again = machine.spawn(&format!("merge --resume {name} {RATE}"));
                sleep(Duration::from_millis(rng.below(300)));
                again.kill().unwrap();
                again.wait().unwrap();
            }
            if machine.folder.file(&name).exists() {
                let file = if rng.chance(1, 2) { &name } else { &machine.layers[child - 1].0 };
                machine.folder.run(&format!("merge --resume {file}")).expect(0);
            }
        }
        machine.merged(child);
        machine.is_as_written();
        machine.folder.run(&format!("merge {}", machine.tip())).expect(0);
        machine.merged(2);
        machine.reads();
    }
    println!("killed before {before}, within {within} and after {after} merges");
    assert!(within >= kills / 6, "{within} of {kills} kills met a merge");
}

/// A small file system, mounted until this is dropped.
struct Small(std::path::PathBuf);

impl Small {
    /// `None` without the right to mount.
    fn mount(path: std::path::PathBuf, size: &str) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        let options = format!("size={size}");
        mount.args(["-t", "tmpfs", "-o", &options, "none"]).arg(&path).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(path))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn a_merge_without_enough_space_changes_nothing() {
    let folder = Folder::new();
    let Some(_small) = Small::mount(folder.path().to_path_buf(), "180m") else {
        println!("skipped without_the_space_nothing_is_begun: no file system can be mounted");
        return;
    };
    folder.run("create base.vhdx --size 128M --block 1M").expect(0);
    folder.run("checkpoint base.vhdx --path tip.avhdx").expect(0);
    let disk: Vec<u8> = (0..96 * MIB).map(|i| 1 + (i % 251) as u8).collect();
    folder.run_with("write tip.avhdx --offset 0", &disk).expect(0);
    let (base, tip) = (folder.read("base.vhdx"), folder.read("tip.avhdx"));
    let run = folder
        .run("merge tip.avhdx")
        .expect(3)
        .says(" bytes of space are missing; nothing was changed");
    let next = ["avhdx merge tip.avhdx --low-space  # frees merged data step by step"];
    assert_eq!(run.next(), next);
    let run = folder.run("merge tip.avhdx --dry-run --json").expect(3);
    assert_eq!(run.error()["kind"], "no-space");
    let forecast = &run.json();
    assert!(forecast["peak"].as_u64().unwrap() > forecast["available"].as_u64().unwrap());
    assert!(folder.read("base.vhdx") == base && folder.read("tip.avhdx") == tip);
    // Not enough for a single block: no command helps.
    let fill = |left: u64| {
        let line = "merge tip.avhdx --low-space --dry-run --json";
        fs::write(folder.file("fill"), []).unwrap();
        let free = folder.run(line).expect(0).json()["available"].as_u64().unwrap();
        fs::write(folder.file("fill"), vec![1; (free - left) as usize]).unwrap();
    };
    fill(MIB as u64 / 2);
    for line in ["merge tip.avhdx", "merge tip.avhdx --low-space"] {
        let run =
            folder.run(line).expect(3).says(" bytes of space are missing; nothing was changed");
        let next = run.next();
        assert!(!next.is_empty() && next.iter().all(|next| !next.contains("merge")), "{next:?}");
        let first = next[0].split("  # ").next().unwrap().to_owned();
        folder.run(first.strip_prefix("avhdx ").unwrap()).expect(0);
    }
    assert!(folder.read("base.vhdx") == base && folder.read("tip.avhdx") == tip);
    // Enough for a few blocks: --low-space works.
    fill(6 * MIB as u64);
    let run = folder.run("merge tip.avhdx --low-space --dry-run --json").expect(0);
    assert_eq!(run.json()["peak"], 4 << 20);
    folder.run("merge tip.avhdx --low-space").expect(0);
    fs::remove_file(folder.file("fill")).unwrap();
    let run = folder.run("read base.vhdx --length 96M").expect(0);
    assert!(run.stdout == disk);
    assert_eq!(folder.names(), ["base.vhdx"]);
}

#[test]
fn a_merge_of_a_smaller_disk_reports_the_cut_and_needs_shrink_to_lose_data() {
    for (holds_data, cut_data) in [(false, 0), (true, 1 << 20)] {
        let folder = Folder::new();
        let mut base = Image::dynamic(8 << 20);
        base.put(0, Block::full(Data::Pattern(1))).put(1, Block::full(Data::Pattern(2)));
        if holds_data {
            // Past the end of the smaller disk.
            base.put(6, Block::full(Data::Pattern(3)));
        }
        let mut small = Image::child(5 << 20, base.data_write_guid());
        small.put(1, Block::full(Data::Pattern(4))).parent_path(r".\base.vhdx");
        base.write_to(folder.file("base.vhdx"));
        small.write_to(folder.file("small.avhdx"));
        let disk = small.flat(Some(&base.flat(None)));
        let files = || ["base.vhdx", "small.avhdx"].map(|name| folder.read(name));
        let before = files();

        let exit = if holds_data { 7 } else { 0 };
        let run = folder.run("merge small.avhdx --dry-run").expect(exit).prints("cut off");
        let run = run.prints("3145728 bytes (3 MiB) at the end of the disk, with");
        match holds_data {
            false => drop(run.prints("without data")),
            true => {
                let run = run.prints("1048576 bytes (1 MiB) of data, which are lost");
                assert_eq!(run.next(), ["avhdx merge small.avhdx --dry-run --shrink"]);
                folder.run("merge small.avhdx --dry-run --shrink").expect(0);
                let run = folder.run("merge small.avhdx --json").expect(7);
                let error = run.error();
                assert_eq!(error["code"], "merge.shrinks");
                assert_eq!(error["kind"], "would-lose");
                assert_eq!(run.next(), ["avhdx merge small.avhdx --json --shrink"]);
            }
        }
        let forecast = folder.run("merge small.avhdx --dry-run --json").expect(exit).json();
        assert_eq!(forecast["cut"], 3 << 20);
        assert_eq!(forecast["cut_data"], cut_data);
        assert!(files() == before);
        // The cut is reported in either case.
        match holds_data {
            false => {
                drop(folder.run("merge small.avhdx").expect(0).prints("  cut       3145728 bytes"))
            }
            true => {
                let done = folder.run("merge small.avhdx --json --shrink").expect(0).json();
                assert_eq!(done["cut"], 3 << 20);
            }
        }
        assert!(folder.run("read base.vhdx --length 5M").expect(0).stdout == disk);
        folder.run("read base.vhdx --offset 5M --length 1").expect(2);
        assert_eq!(folder.names(), ["base.vhdx"]);
        folder.run("check base.vhdx").expect(0);
    }
}
