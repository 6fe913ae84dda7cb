//! `avhdx convert -f raw -`: a disk from standard input.

use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

use crate::common::{Folder, Run};
use avhdx_testkit::naive;

const MIB: usize = 1 << 20;

/// Data at the start, in the middle and at the end, with zeros between.
fn input(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for at in [0, len / 2, len - 300] {
        bytes[at..at + 300].fill(7);
    }
    bytes
}

fn flat(folder: &Folder, name: &str) -> Vec<u8> {
    naive::Chain::open([folder.file(name)]).unwrap().flat(0).unwrap()
}

/// Runs the program with a file for standard input.
#[cfg(unix)]
fn run_from(folder: &Folder, line: &str, file: &str) -> Run {
    let mut command = folder.command(line.split(' '));
    command.stdin(File::open(folder.file(file)).unwrap());
    Run::of(command.output().unwrap())
}

#[test]
fn a_pipe_becomes_a_raw_disk_or_an_image() {
    let folder = Folder::new();
    let bytes = input(9 * MIB);
    folder.run_with("convert -f raw - out.raw", &bytes).expect(0);
    assert!(folder.read("out.raw") == bytes);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let held = fs::metadata(folder.file("out.raw")).unwrap().blocks() * 512;
        assert!(held <= 1 << 20, "{held} bytes on the volume");
    }
    let run = folder.run_with("convert -f raw - out.vhdx --block 1M --json", &bytes).expect(0);
    let answer = run.json();
    assert_eq!(answer["virtual_size"], 9 * MIB);
    assert_eq!(answer["block_size"], MIB);
    assert!(flat(&folder, "out.vhdx") == bytes);
    folder.run("check out.vhdx").expect(0);
    // Three blocks hold data.
    assert_eq!(folder.run("info out.vhdx --json").json()["blocks"]["fully_present"], 3);
}

#[test]
fn the_end_is_filled_up_to_a_whole_sector_and_said() {
    let folder = Folder::new();
    let mut bytes = input(4 * MIB - 100);
    let run = folder.run_with("convert -f raw - out.vhdx --sector 4096", &bytes).expect(0);
    run.says("100 more than the input");
    bytes.resize(4 * MIB, 0);
    assert!(flat(&folder, "out.vhdx") == bytes);
    // More likely a writer that failed than a disk of no bytes.
    for none in ["none.raw", "none.vhdx"] {
        let line = format!("convert -f raw - {none}");
        folder.run_with(&line, b"").expect(2).says("the input is empty");
        assert!(!folder.file(none).exists());
    }
}

#[test]
fn an_image_grows_with_an_input_beyond_its_first_size() {
    let folder = Folder::new();
    let mut command = folder.command("convert -f raw - out.vhdx --block 1M".split(' '));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(b"first").unwrap();
    let zeros = vec![0; MIB];
    pipe.write_all(&zeros[5..]).unwrap();
    for _ in 1..2200 {
        pipe.write_all(&zeros).unwrap();
    }
    pipe.write_all(b"last!").unwrap();
    pipe.write_all(&zeros[..507]).unwrap();
    drop(pipe);
    assert!(child.wait().unwrap().success());
    let facts = folder.run("info out.vhdx --json").expect(0).json();
    assert_eq!(facts["virtual_size"], (2200_u64 << 20) + 512);
    assert_eq!(facts["blocks"]["fully_present"], 2);
    folder.run("check out.vhdx").expect(0);
    assert_eq!(folder.run("read out.vhdx --offset 0 --length 5").expect(0).stdout, b"first");
    let last = folder.run("read out.vhdx --offset 2200M").expect(0).stdout;
    assert_eq!((last.len(), &last[..5]), (512, &b"last!"[..]));
}

#[test]
fn a_size_given_is_that_of_the_disk() {
    let folder = Folder::new();
    let mut bytes = input(3 * MIB);
    folder.run_with("convert -f raw - long.vhdx --size 4M", &bytes).expect(0);
    folder.run_with("convert -f raw - long.raw --size 4M", &bytes).expect(0);
    folder.run_with("convert -f raw - fixed.vhdx -O vhdx-fixed --size 4M", &bytes).expect(0);
    bytes.resize(4 * MIB, 0);
    for name in ["long.vhdx", "fixed.vhdx"] {
        assert!(flat(&folder, name) == bytes, "{name}");
    }
    assert!(folder.read("long.raw") == bytes);
    let before = folder.names();
    for line in ["short.vhdx --size 3M", "short.raw --size 3M"] {
        let run = folder.run_with(&format!("convert -f raw - {line}"), &bytes).expect(2);
        run.says("the input is longer");
        assert_eq!(folder.names(), before, "{line}");
    }
    let run = folder.run_with("convert -f raw - x.vhdx -O vhdx-fixed", &bytes).expect(2);
    run.says("a fixed image needs --size");
    folder.run("convert fixed.vhdx x.vhdx --size 8M").expect(2).says("a file has its own size");
    folder.run("convert -f raw - -").expect(2);
    let run = folder.run("convert - x.vhdx").expect(2).says("can only be a raw disk");
    run.says("next: avhdx convert - x.vhdx -f raw\n");
    assert_eq!(folder.names(), before);
}

#[test]
#[cfg(unix)]
fn a_file_on_standard_input_says_how_long_it_is() {
    let folder = Folder::new();
    let bytes = input(2 * MIB);
    fs::write(folder.file("in"), &bytes).unwrap();
    run_from(&folder, "convert -f raw - out.vhdx -O vhdx-fixed", "in").expect(0);
    assert!(flat(&folder, "out.vhdx") == bytes);
    run_from(&folder, "convert -f raw - x.vhdx --size 1M", "in").expect(2).says("2097152 bytes");
    run_from(&folder, "convert -f raw - x.vhdx", ".").expect(3).says("standard input");
    assert_eq!(folder.names(), ["in", "out.vhdx"]);
}

#[test]
#[cfg(target_os = "linux")]
fn an_input_that_fails_leaves_nothing_behind() {
    let folder = Folder::new();
    // No memory lies at the start of an address space.
    std::os::unix::fs::symlink("/proc/self/mem", folder.file("broken")).unwrap();
    for out in ["out.raw", "out.vhdx"] {
        let run = run_from(&folder, &format!("convert -f raw - {out}"), "broken").expect(3);
        run.says("cannot read standard input");
        assert_eq!(folder.names(), ["broken"]);
    }
    fs::remove_file(folder.file("broken")).unwrap();
    for out in ["out.raw", "out.vhdx"] {
        let mut command = folder.command(format!("convert -f raw - {out}").split(' '));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(&input(MIB)).unwrap();
        while !folder.is_written_to(&child) {
            std::thread::yield_now();
        }
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        Run::of(child.wait_with_output().unwrap()).expect(130);
        drop(pipe);
        assert_eq!(folder.names(), [""; 0]);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_that_changes_on_standard_input_is_no_disk() {
    let folder = Folder::new();
    const LEN: u64 = 512 << 20;
    for (to, how) in [(1 << 20, "became shorter"), (LEN + 1, "became longer")] {
        for out in ["o.raw", "o.vhdx"] {
            let mut input = File::create(folder.file("in")).unwrap();
            for _ in 0..LEN >> 20 {
                input.write_all(&[7; 1 << 20]).unwrap();
            }
            let mut command = folder.command(["convert", "-f", "raw", "-", out]);
            let stdin = File::open(folder.file("in")).unwrap();
            command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
            let child = command.spawn().unwrap();
            // The length is known before anything is read.
            let position = format!("/proc/{}/fdinfo/0", child.id());
            while fs::read_to_string(&position).unwrap().starts_with("pos:\t0\n") {
                std::thread::yield_now();
            }
            input.set_len(to).unwrap();
            let run = Run::of(child.wait_with_output().unwrap()).expect(6);
            run.says(how);
            assert_eq!(folder.names(), ["in"]);
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_holes_of_a_file_on_standard_input_are_not_read() {
    use std::os::unix::fs::FileExt;
    let folder = Folder::new();
    // As zeros, they would take minutes.
    let file = File::create(folder.file("in")).unwrap();
    file.set_len(1 << 42).unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    file.write_all_at(&[9; 4096], 1 << 41).unwrap();
    for out in ["o.raw", "o.vhdx"] {
        let begun = std::time::Instant::now();
        run_from(&folder, &format!("convert -f raw - {out}"), "in").expect(0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    folder.run("compare -f raw in -F raw o.raw").expect(0);
    folder.run("compare -f raw in o.vhdx").expect(0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_on_standard_input_is_taken_from_its_offset_on() {
    let folder = Folder::new();
    let bytes = input(2 * MIB);
    fs::write(folder.file("in"), &bytes).unwrap();
    for out in ["o.raw", "o.vhdx"] {
        let line = format!(
            "{{ dd bs=700 count=1 of=start status=none; avhdx convert -f raw - {out}; cat; }} < in"
        );
        let run = Run::of(folder.in_shell(&line).output().unwrap()).expect(0);
        assert!(folder.read("start") == bytes[..700]);
        // Nothing is left for who reads next.
        assert!(run.text().ends_with("written\n") || run.text().contains("block size"));
        assert_eq!(run.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
    assert!(folder.read("o.raw") == bytes[700..]);
    assert!(flat(&folder, "o.vhdx")[..bytes.len() - 700] == bytes[700..]);
}
