//! Names that others give to files of their own while the program runs, and programs that are killed.
#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods)]

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::{Folder, Run};

const MIB: usize = 1 << 20;

fn spawn(folder: &Folder, line: &str) -> Child {
    let mut command = folder.command(line.split(' '));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(process: &Child, signal: &str) {
    let kill = Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

/// Runs a line up to the moment that its draft is there and the program stands still; `None` where it was faster.
fn stopped(folder: &Folder, line: &str) -> Option<Child> {
    let mut process = spawn(folder, line);
    while process.try_wait().unwrap().is_none() {
        if folder.draft_of(&process).is_some() {
            signal(&process, "-STOP");
            // It may have come to its end all the same.
            if folder.draft_of(&process).is_some() {
                return Some(process);
            }
            signal(&process, "-CONT");
        }
    }
    process.wait().unwrap();
    None
}

/// A disk with so much in it that a copy takes a moment.
fn with_disk() -> Folder {
    let folder = Folder::new();
    folder.run("create web.vhdx --size 64M --block 1M").expect(0);
    let bytes: Vec<u8> = (0..48 * MIB).map(|at| (at / 512 % 251) as u8).collect();
    folder.run_with("write web.vhdx --offset 0", &bytes).expect(0);
    folder
}

#[test]
fn a_file_put_in_the_childs_place_while_it_is_merged_stays() {
    let folder = Folder::new();
    folder.run("create web.vhdx --size 16M --block 1M").expect(0);
    folder.run("checkpoint web.vhdx --path tip.avhdx").expect(0);
    folder.run_with("write tip.avhdx --offset 0", &[7; 8 * MIB]).expect(0);
    let before = fs::metadata(folder.file("web.vhdx")).unwrap().len();
    let merge = spawn(&folder, "merge tip.avhdx --rate 8M");
    while fs::metadata(folder.file("web.vhdx")).unwrap().len() == before {
        sleep(Duration::from_millis(5));
    }
    fs::rename(folder.file("tip.avhdx"), folder.file("moved")).unwrap();
    fs::write(folder.file("tip.avhdx"), "a stranger's").unwrap();
    let run = Run::of(merge.wait_with_output().unwrap()).expect(0);
    drop(
        run.says("tip.avhdx: another file has taken that name, and stays").says("is in the parent"),
    );
    assert_eq!(folder.read("tip.avhdx"), b"a stranger's");
    assert_eq!(folder.names(), ["moved", "tip.avhdx", "web.vhdx"]);
    let run = folder.run("read web.vhdx --length 8M").expect(0);
    assert!(run.stdout.iter().all(|byte| *byte == 7));
}

/// The child's content is in the parent: what has the parent's name is nothing to go on with.
#[test]
fn a_merge_whose_parent_lost_its_name_sends_nobody_to_the_file_that_took_it() {
    for is_elsewhere in [false, true] {
        let folder = Folder::new();
        folder.run("create web.vhdx --size 16M --block 1M").expect(0);
        folder.run("checkpoint web.vhdx --path tip.avhdx").expect(0);
        folder.run_with("write tip.avhdx --offset 0", &[7; 8 * MIB]).expect(0);
        let before = fs::metadata(folder.file("web.vhdx")).unwrap().len();
        let merge = spawn(&folder, "merge tip.avhdx --rate 8M");
        while fs::metadata(folder.file("web.vhdx")).unwrap().len() == before {
            sleep(Duration::from_millis(5));
        }
        fs::create_dir(folder.file("folder")).unwrap();
        let moved = if is_elsewhere { "folder/moved.vhdx" } else { "moved.vhdx" };
        fs::rename(folder.file("web.vhdx"), folder.file(moved)).unwrap();
        fs::write(folder.file("web.vhdx"), "a stranger's").unwrap();
        let run = Run::of(merge.wait_with_output().unwrap()).expect(7);
        let run = run.says("web.vhdx: another file has taken that name");
        let text = run.text();
        assert!(!text.contains("web.vhdx"), "{text}");
        let is_beside = folder.file("moved.vhdx").exists();
        assert_eq!(text.contains("the tip is moved.vhdx"), is_beside, "{text}");
        let next = if is_beside { "info --chain moved.vhdx" } else { "tree ." };
        drop(run.says(&format!("next: avhdx {next}")));
        assert_eq!(folder.read("web.vhdx"), b"a stranger's");
        let run = folder.run(&format!("read {moved} --length 8M")).expect(0);
        assert!(run.stdout.iter().all(|byte| *byte == 7));
        assert!(!folder.names().iter().any(|name| name == "tip.avhdx"));
    }
}

#[test]
fn a_file_put_in_the_place_of_the_one_to_be_replaced_stays() {
    let folder = with_disk();
    for format in ["raw", "vhdx"] {
        let mut met = false;
        for _ in 0..40 {
            fs::write(folder.file("out"), "what is to be replaced").unwrap();
            let line = format!("convert web.vhdx -O {format} out --overwrite");
            let Some(process) = stopped(&folder, &line) else { continue };
            fs::rename(folder.file("out"), folder.file("moved")).unwrap();
            fs::write(folder.file("out"), "a stranger's").unwrap();
            signal(&process, "-CONT");
            let run = Run::of(process.wait_with_output().unwrap()).expect(7);
            drop(run.says("out: nothing was replaced").says("next: avhdx convert "));
            assert_eq!(folder.read("out"), b"a stranger's");
            assert_eq!(folder.read("moved"), b"what is to be replaced");
            assert_eq!(folder.names(), ["moved", "out", "web.vhdx"]);
            met = true;
            break;
        }
        assert!(met, "{format}: the program was always faster");
        // What it says to do next does it.
        folder.run(&format!("convert web.vhdx -O {format} out --overwrite")).expect(0);
        fs::remove_file(folder.file("moved")).unwrap();
        fs::remove_file(folder.file("out")).unwrap();
    }
}

#[test]
fn a_name_that_is_taken_while_a_copy_is_made_is_not_taken_over() {
    let folder = with_disk();
    for _ in 0..40 {
        let Some(process) = stopped(&folder, "convert web.vhdx -O raw out") else {
            fs::remove_file(folder.file("out")).unwrap();
            continue;
        };
        std::os::unix::fs::symlink("web.vhdx", folder.file("out")).unwrap();
        signal(&process, "-CONT");
        drop(Run::of(process.wait_with_output().unwrap()).expect(7).says("out: the file exists"));
        assert!(folder.file("out").is_symlink());
        assert_eq!(folder.names(), ["out", "web.vhdx"]);
        return;
    }
    panic!("the program was always faster");
}

/// Whenever the program is killed, what it was making is there as a whole or not at all, and its base is written to.
#[test]
fn a_killed_program_leaves_nothing_that_blocks_a_base() {
    let folder = with_disk();
    let lines = [
        "create child.avhdx --parent web.vhdx",
        "checkpoint web.vhdx --path child.avhdx",
        "convert web.vhdx -O vhdx child.avhdx",
        "convert web.vhdx -O raw child.avhdx",
    ];
    for (n, line) in lines.iter().enumerate() {
        for kill in 0..12 {
            let mut process = spawn(&folder, line);
            sleep(Duration::from_micros(kill * 1500));
            process.kill().unwrap();
            process.wait().unwrap();
            let names = folder.names();
            assert!(!names.iter().any(|name| name.ends_with(".tmp")), "{line}: {names:?}");
            if folder.file("child.avhdx").exists() {
                if n < 3 {
                    folder.run("check child.avhdx").expect(0);
                }
                fs::remove_file(folder.file("child.avhdx")).unwrap();
            }
            folder.run_with("write web.vhdx --offset 0", &[1; 512]).expect(0);
        }
    }
    assert_eq!(folder.names(), ["web.vhdx"]);
}
