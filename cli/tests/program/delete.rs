//! `avhdx points`, `delete` and `label`: points in time as a user handles them.

use std::time::Duration;

use crate::common::{Folder, Run};
use serde_json::Value;

const WEEK: [&str; 4] = ["mon", "tue", "wed", "thu"];

/// A disk with four labelled points below its tip, and what it reads as at each, the tip's last.
fn week(bytes: usize) -> (Folder, Vec<Vec<u8>>) {
    let folder = Folder::new();
    folder.run("create base.vhdx 64M").expect(0);
    let (mut tip, mut disk, mut points) = ("base.vhdx".to_owned(), vec![0; 64 << 20], Vec::new());
    for n in 0..=WEEK.len() {
        let part = vec![n as u8 + 1; bytes];
        let at = n * 3_000_000;
        folder.run_with(&format!("write {tip} --offset {at}"), &part).expect(0);
        disk[at..at + bytes].copy_from_slice(&part);
        points.push(disk.clone());
        let Some(label) = WEEK.get(n) else { break };
        folder.run(&format!("checkpoint {tip} --label {label} --path {label}.avhdx")).expect(0);
        tip = format!("{label}.avhdx");
    }
    (folder, points)
}

fn json(run: Run) -> Value {
    serde_json::from_slice(&run.stdout).unwrap()
}

#[track_caller]
fn reads(folder: &Folder, image: &str, expected: &[u8]) {
    assert!(folder.run(&format!("read {image}")).expect(0).stdout == expected, "{image}");
}

#[test]
fn points_are_listed_with_labels_times_and_what_stands_in_the_way() {
    let (folder, _) = week(5000);
    let listed = json(folder.run("points thu.avhdx --json").expect(0));
    let points = listed["points"].as_array().unwrap();
    assert_eq!(points.len(), 5);
    let labels: Vec<_> = points.iter().map(|point| point["label"].as_str()).collect();
    assert_eq!(labels, [None, Some("thu"), Some("wed"), Some("tue"), Some("mon")]);
    assert!(points[1..].iter().all(|point| point["deletable"] == true));
    assert_eq!(points[0]["deletable"], false);
    assert!(points[1..].iter().all(|point| point["time"].is_string()));

    folder.run("revert thu.avhdx@wed --path other.avhdx").expect(0);
    let run = folder.run("points thu.avhdx").expect(0);
    let text = String::from_utf8(run.stdout).unwrap();
    let of_wed = text.lines().find(|line| line.contains("tue.avhdx")).unwrap();
    assert!(of_wed.contains("no: a branch: other.avhdx"), "{text}");
    assert!(text.lines().next().unwrap().contains("thu.avhdx"));
    assert!(folder.run("snapshots thu.avhdx").expect(0).stdout == text.as_bytes());
}

/// `points` and `delete --dry-run` agree on each point of an image; returns those that can be deleted.
#[track_caller]
fn deletable(folder: &Folder, image: &str) -> Vec<usize> {
    let listed = json(folder.run(&format!("points {image} --json")).expect(0));
    let points = listed["points"].as_array().unwrap();
    let can_be = |n: &usize| {
        let point = &points[*n];
        let run = folder.run(&format!("delete {image}@-{n} --dry-run"));
        let is_blocked = !point["blocked_by"].as_array().unwrap().is_empty();
        assert_eq!(point["deletable"], !is_blocked, "{point}");
        assert_eq!(run.code == Some(0), !is_blocked, "{image}@-{n}: {point}\n{}", run.stderr);
        !is_blocked
    };
    (0..points.len()).filter(can_be).collect()
}

#[test]
fn points_says_of_each_point_what_delete_says() {
    let (folder, _) = week(5000);
    assert_eq!(deletable(&folder, "thu.avhdx"), [1, 2, 3, 4]);
    // An image that others lie on is no tip.
    assert!(deletable(&folder, "wed.avhdx").is_empty());
    // A copy of the tip is another child of the point below.
    std::fs::copy(folder.file("thu.avhdx"), folder.file("copy.avhdx")).unwrap();
    assert_eq!(deletable(&folder, "thu.avhdx"), [3, 4]);
    std::fs::remove_file(folder.file("copy.avhdx")).unwrap();
    // A file that cannot be read may be a child of any.
    std::fs::write(folder.file("x.vhdx"), b"vhdxfile").unwrap();
    assert!(deletable(&folder, "thu.avhdx").is_empty());
    std::fs::remove_file(folder.file("x.vhdx")).unwrap();
    // A branch keeps the point it lies on, and the one below that.
    folder.run("create branch.avhdx --parent wed.avhdx").expect(0);
    assert_eq!(deletable(&folder, "thu.avhdx"), [3, 4]);
    std::fs::remove_file(folder.file("branch.avhdx")).unwrap();
    // A file that lost bytes takes part in no merge.
    let file = std::fs::File::options().write(true).open(folder.file("tue.avhdx")).unwrap();
    file.set_len(file.metadata().unwrap().len() - (1 << 20)).unwrap();
    assert_eq!(deletable(&folder, "thu.avhdx"), [1]);
}

#[test]
fn a_point_of_another_program_has_no_label_and_the_time_of_its_file() {
    let folder = Folder::with_chain();
    let listed = json(folder.run("points l2.vhdx --json").expect(0));
    let point = &listed["points"][1];
    assert_eq!((&point["label"], &point["time"]), (&Value::Null, &Value::Null));
    assert!(point["written"].is_string());
    folder.run("points l2.vhdx").expect(0).prints("* no time of a checkpoint is recorded");
}

#[test]
fn the_oldest_the_middle_and_the_newest_point_are_deleted() {
    let (folder, points) = week(1_500_000);
    let run = folder.run("delete thu.avhdx@mon").expect(0);
    assert!(String::from_utf8_lossy(&run.stdout).starts_with("mon: deleted, "));
    folder.run("delete thu.avhdx@wed --dry-run").expect(0).prints("space needed");
    folder.run("delete thu.avhdx@wed").expect(0);
    let done = json(folder.run("delete thu.avhdx@thu --json").expect(0));
    assert_eq!(done["tip"], "thu.avhdx", "the machine finds its disk where it was");
    assert_eq!(done["removed"].as_array().unwrap().len(), 1);
    assert_eq!(folder.names().len(), 2);
    reads(&folder, "thu.avhdx", &points[4]);
    reads(&folder, "thu.avhdx@tue", &points[1]);
    folder.run("check thu.avhdx").expect(0);

    let done = json(folder.run("delete thu.avhdx@tue --move-tip --json").expect(0));
    assert_eq!(done["tip"], "base.vhdx");
    assert_eq!(folder.names(), ["base.vhdx"]);
    reads(&folder, "base.vhdx", &points[4]);
}

#[test]
fn a_dry_run_foretells_a_tip_that_moves_to_another_folder() {
    let folder = Folder::with_chain();
    std::fs::create_dir(folder.file("tips")).unwrap();
    let run = folder.run("checkpoint l2.vhdx --label now --path tips/tip.avhdx").expect(0);
    assert!(!run.stderr.contains("name-not-kept"));
    let moves = "tips/tip.avhdx: the disk will be in";
    let run = folder.run("delete tips/tip.avhdx@now --dry-run").expect(0).says(moves);
    run.says("l2.vhdx from then on");
    folder.run("merge tips/tip.avhdx --keep-name --dry-run").expect(0).says(moves);
    // Where that was asked for, or does not happen, nothing is said.
    for line in [
        "delete tips/tip.avhdx@now --move-tip --dry-run",
        "merge tips/tip.avhdx --dry-run",
        "delete tips/tip.avhdx@-2 --dry-run",
        "delete l2.vhdx@-1 --dry-run",
    ] {
        let run = folder.run(line).expect(0);
        assert!(!run.stderr.contains("will be in"), "{line}: {}", run.stderr);
    }
    // What was foretold happens.
    let done = json(folder.run("delete tips/tip.avhdx@now --json").expect(0));
    assert!(done["tip"].as_str().unwrap().ends_with("l2.vhdx"), "{done}");
}

#[test]
fn what_is_no_point_to_give_up_is_refused_with_a_way_on() {
    let (folder, _) = week(5000);
    let before = folder.names();
    folder.run("delete thu.avhdx").expect(2).says("next: avhdx points thu.avhdx");
    let run = folder.run("delete thu.avhdx@-0").expect(2);
    run.says("avhdx revert --delete-newer thu.avhdx@-1");
    folder.run("delete thu.avhdx@nothing").expect(2);
    folder.run("delete thu.avhdx@base --subtree").expect(2).says("the base");
    folder.run("delete thu.avhdx@mon --resume").expect(2).says("no unfinished merge");
    folder.run("merge thu.avhdx@base").expect(2).says("nothing to merge it into");
    folder.run("checkpoint thu.avhdx --label tue --path fri.avhdx").expect(0);
    let run = folder.run("delete fri.avhdx@tue").expect(2);
    let listed = json(folder.run("points fri.avhdx --json").expect(0));
    let twice = listed["points"].as_array().unwrap().iter();
    for point in twice.filter(|point| point["label"] == "tue") {
        assert!(run.stderr.contains(point["data_write_guid"].as_str().unwrap()));
    }
    assert_eq!(folder.names().len(), before.len() + 1);
}

#[test]
fn a_fork_names_the_commands_that_clear_it() {
    let (folder, points) = week(5000);
    folder.run("revert thu.avhdx@tue --path other.avhdx").expect(0);
    folder.run_with("write other.avhdx --offset 20M", &[7; 4096]).expect(0);
    let run = folder.run("delete thu.avhdx@tue --json").expect(7);
    let error = run.error();
    assert_eq!(error["code"], "delete.fork");
    let next = error["next"].as_array().unwrap();
    let shows = next[0].as_str().unwrap().split("  # ").next().unwrap().to_owned();
    let clears = next[1].as_str().unwrap().split("  # ").next().unwrap().to_owned();
    let shown = folder.run(shows.strip_prefix("avhdx ").unwrap()).expect(0);
    shown.prints("4096 bytes (4 KiB), which no other point shows");
    let without = clears.replace(" --lose-branch", "");
    let run = folder.run(without.strip_prefix("avhdx ").unwrap()).expect(7);
    run.says("4096 bytes of data in 1 file,");
    assert!(folder.file("other.avhdx").exists());
    let run = folder.run(clears.strip_prefix("avhdx ").unwrap()).expect(0);
    run.prints("4096 bytes (4 KiB) lost").prints("  removed   other.avhdx\n");
    assert!(!folder.file("other.avhdx").exists());
    folder.run("delete thu.avhdx@tue").expect(0);
    reads(&folder, "thu.avhdx", &points[4]);
    reads(&folder, "thu.avhdx@wed", &points[2]);
}

#[test]
fn labels_change_without_cutting_off_a_child() {
    let (folder, points) = week(5000);
    folder.run("label thu.avhdx@thu newest").expect(0);
    let run = folder.run("label thu.avhdx@tue dienstag").expect(7);
    run.says("next: avhdx label thu.avhdx@tue dienstag --write-frozen");
    folder.run("label thu.avhdx@tue dienstag --write-frozen").expect(0);
    folder.run("label thu.avhdx@-0 now").expect(2).says("avhdx checkpoint --label");
    reads(&folder, "thu.avhdx@dienstag", &points[1]);
    reads(&folder, "thu.avhdx@newest", &points[3]);
    reads(&folder, "thu.avhdx", &points[4]);
    folder.run("check thu.avhdx").expect(0);
    let mut empty = folder.command(["label", "thu.avhdx@dienstag", "", "--write-frozen"]);
    Run::of(empty.output().unwrap()).expect(0);
    folder.run("read thu.avhdx@dienstag --length 1").expect(2);
}

/// Killed at any time, a deletion is completed by `--resume`, the tip's name included.
#[cfg(unix)]
#[test]
fn a_deletion_that_was_killed_or_interrupted_is_resumed() {
    for (line, signal, resumed) in [
        ("delete thu.avhdx@mon --rate 3M", "INT", "delete --resume thu.avhdx"),
        ("delete thu.avhdx@thu --rate 3M", "KILL", "merge --resume thu.avhdx"),
        (
            "merge thu.avhdx --into base.vhdx --keep-name --rate 3M",
            "INT",
            "delete --resume thu.avhdx",
        ),
        ("merge thu.avhdx@thu --into mon.avhdx --rate 3M", "KILL", "merge --resume mon.avhdx"),
    ] {
        let (folder, points) = week(2_900_000);
        let child = folder
            .command(line.split(' '))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(400));
        let id = child.id().to_string();
        let killed = std::process::Command::new("kill").args(["-s", signal, &id]).status().unwrap();
        assert!(killed.success());
        let run = Run::of(child.wait_with_output().unwrap());
        if signal == "INT" {
            assert_eq!(run.code, Some(130), "{}", run.stderr);
            let verb = line.split(' ').next().unwrap();
            run.says(&format!("next: avhdx {verb} --resume thu.avhdx"));
        }
        reads(&folder, "thu.avhdx", &points[4]);
        folder.run(resumed).expect(0);
        reads(&folder, "thu.avhdx", &points[4]);
        folder.run("check thu.avhdx").expect(0);
        let listed = json(folder.run("points thu.avhdx --json").expect(0));
        let left = listed["points"].as_array().unwrap().len();
        let expected = match line {
            line if line.contains("--into base") => 1,
            line if line.contains("--into mon") => 3,
            _ => 4,
        };
        assert_eq!(left, expected, "{line}");
        assert_eq!(folder.names().len(), left);
        folder.run(resumed).expect(2);
    }
}
