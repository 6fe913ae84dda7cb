//! Files that are replaced while the program runs, and a program that is killed.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::common::{Folder, Run};

const MIB: usize = 1 << 20;

fn spawn(folder: &Folder, line: &str) -> Child {
    let mut command = folder.command(line.split(' '));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(process: &Child, signal: &str) {
    let kill = Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

/// Runs a command and stops it once its temporary file exists; `None` if the program finished first.
fn stopped(folder: &Folder, line: &str) -> Option<Child> {
    let mut process = spawn(folder, line);
    while process.try_wait().unwrap().is_none() {
        if folder.draft_of(&process).is_some() {
            signal(&process, "-STOP");
            // The program may have finished meanwhile.
            if folder.draft_of(&process).is_some() {
                return Some(process);
            }
            signal(&process, "-CONT");
        }
    }
    process.wait().unwrap();
    None
}

/// A disk with enough data that a copy takes some time.
fn with_disk() -> Folder {
    let folder = Folder::new();
    folder.run("create web.vhdx --size 64M --block 1M").expect(0);
    let bytes: Vec<u8> = (0..48 * MIB).map(|at| (at / 512 % 251) as u8).collect();
    folder.run_with("write web.vhdx --offset 0", &bytes).expect(0);
    folder
}

#[test]
fn a_file_that_replaces_the_child_during_a_merge_stays() {
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

/// The data is in the renamed parent; the file with its old name must not be suggested.
#[test]
fn a_merge_does_not_suggest_a_file_that_took_the_parents_name() {
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
        assert_eq!(text.contains("  tip       moved.vhdx, "), is_beside, "{text}");
        let next = if is_beside { "info --chain moved.vhdx" } else { "tree ." };
        drop(run.says(&format!("next: avhdx {next}")));
        assert_eq!(folder.read("web.vhdx"), b"a stranger's");
        let run = folder.run(&format!("read {moved} --length 8M")).expect(0);
        assert!(run.stdout.iter().all(|byte| *byte == 7));
        assert!(!folder.names().iter().any(|name| name == "tip.avhdx"));
    }
}

#[test]
fn a_file_that_replaces_the_output_during_a_copy_stays() {
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
            drop(run.says("out: the file was not replaced").says("next: avhdx convert "));
            assert_eq!(folder.read("out"), b"a stranger's");
            assert_eq!(folder.read("moved"), b"what is to be replaced");
            assert_eq!(folder.names(), ["moved", "out", "web.vhdx"]);
            met = true;
            break;
        }
        assert!(met, "{format}: the program was always faster");
        // The suggested command works.
        folder.run(&format!("convert web.vhdx -O {format} out --overwrite")).expect(0);
        fs::remove_file(folder.file("moved")).unwrap();
        fs::remove_file(folder.file("out")).unwrap();
    }
}

#[test]
fn an_output_name_that_is_taken_during_a_copy_stays() {
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
    panic!("the program always finished first");
}

/// A killed program leaves a complete output or none, and its base can be written.
#[test]
fn a_killed_program_leaves_nothing_that_blocks_a_base() {
    let folder = with_disk();
    let lines = [
        "create child.avhdx --parent web.vhdx",
        "checkpoint web.vhdx --path child.avhdx",
        "convert web.vhdx -O vhdx child.avhdx --any-name",
        "convert web.vhdx -O raw child.avhdx --any-name",
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
