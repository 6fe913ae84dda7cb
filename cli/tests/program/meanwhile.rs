//! What can be read while another process merges.
#![cfg(unix)]

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Folder, Run};

const MIB: usize = 1 << 20;

/// A chain of four layers; each writes one byte value at its own place.
fn chain() -> Folder {
    let folder = Folder::new();
    folder.run("create a.vhdx 8M --block 1M").expect(0);
    folder.run_with("write a.vhdx --offset 0", &vec![1; MIB]).expect(0);
    folder.run("create b.avhdx --parent a.vhdx").expect(0);
    folder.run_with("write b.avhdx --offset 1M", &vec![2; MIB]).expect(0);
    folder.run("create c.avhdx --parent b.avhdx").expect(0);
    folder.run_with("write c.avhdx --offset 2M", &vec![3; 4 * MIB]).expect(0);
    folder.run("create d.avhdx --parent c.avhdx").expect(0);
    folder.run_with("write d.avhdx --offset 6M", &vec![4; 2 * MIB]).expect(0);
    folder
}

/// The disk with the first `n` values written.
fn flat(n: u8) -> Vec<u8> {
    let mut bytes = vec![0; 8 * MIB];
    for (value, range) in [(1, 0..1), (2, 1..2), (3, 2..6), (4, 6..8)] {
        if value <= n {
            bytes[range.start * MIB..range.end * MIB].fill(value);
        }
    }
    bytes
}

/// Starts a slow merge in another process, and waits until it is under way.
fn merging(folder: &Folder, line: &str) -> Child {
    let start = || {
        let mut command = folder.command(format!("merge {line} --rate 100K").split(' '));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let (mut child, started) = (start(), Instant::now());
    while !folder.run("read d.avhdx --length 1").stderr.contains("is being merged into") {
        assert!(started.elapsed() < Duration::from_secs(60), "the merge does not begin");
        // It is refused if it meets this reader.
        if child.try_wait().unwrap().is_some() {
            child = start();
        }
    }
    child
}

/// Runs the first command that a refusal suggests.
fn first_next(folder: &Folder, refused: &Run) -> Run {
    let next = refused.error()["next"][0].as_str().unwrap().to_owned();
    let words = next.split_once("  # ").map_or(next.as_str(), |(command, _)| command);
    let words = words.strip_prefix("avhdx ").unwrap().replace("OUT", "made.raw");
    folder.run(&words).expect(0)
}

#[test]
fn a_merge_in_another_process_leaves_the_points_below_it_to_readers() {
    for (line, merge, named, readable) in [
        ("d.avhdx@-1", "c.avhdx is being merged into b.avhdx", "d.avhdx@a.vhdx", &[(3, 1)][..]),
        (
            "d.avhdx",
            "d.avhdx is being merged into c.avhdx",
            "d.avhdx@b.avhdx, d.avhdx@a.vhdx",
            &[(2, 2), (3, 1)],
        ),
    ] {
        let folder = chain();
        let mut child = merging(&folder, line);
        let refused = folder.run("convert d.avhdx - --json").expect(6);
        let message = refused.error()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(merge), "{message}");
        assert!(message.ends_with(&format!("can be read meanwhile: {named}")), "{message}");
        // What is suggested works, and so does every point named.
        let (_, newest) = readable[0];
        assert!(first_next(&folder, &refused).stdout == flat(newest));
        for (below, n) in readable {
            let run = folder.run(&format!("convert d.avhdx@-{below} -")).expect(0);
            assert!(run.stdout == flat(*n), "@-{below}");
        }
        let refused = folder.run("write d.avhdx --offset 0 --json").expect(6);
        drop(first_next(&folder, &refused));
        assert!(folder.read("made.raw") == flat(newest));
        // The points above are refused, and nothing harms the merge.
        folder.run("read d.avhdx@-1 --length 1").expect(6);
        child.kill().unwrap();
        child.wait().unwrap();
        folder.run(&format!("merge --resume {}", &line[..7])).expect(0);
        assert!(folder.names().iter().filter(|name| name.ends_with("vhdx")).count() == 3);
    }
}

#[test]
fn a_merge_into_the_base_leaves_nothing_to_read_and_says_so() {
    let folder = chain();
    let mut child = merging(&folder, "d.avhdx --into a.vhdx");
    // The first of these merges is that of the lowest layers.
    let run = folder.run("read d.avhdx --length 1").expect(6);
    run.says("b.avhdx is being merged into a.vhdx").says("no point in time can be read meanwhile");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Another failure than that another program has the file ends the wait.
#[test]
fn a_wait_for_another_program_ends_when_the_file_is_gone() {
    let folder = Folder::new();
    std::fs::write(folder.file("disk"), [7; 4096]).unwrap();
    let held = std::fs::File::options().write(true).open(folder.file("disk")).unwrap();
    held.try_lock().unwrap();
    let next = folder.run("read -f raw disk --length 1").expect(6).next();
    let (wait, _) = next[0].split_once("  # ").unwrap();
    let waiting = |seconds: u32| {
        let mut command = folder.in_shell(&format!("timeout {seconds} sh -c '{wait}'"));
        Run::of(command.output().unwrap())
    };
    assert_eq!(waiting(3).code, Some(124), "it waits for the other program");
    std::fs::remove_file(folder.file("disk")).unwrap();
    waiting(30).expect(0).says("cannot open the file");
}
