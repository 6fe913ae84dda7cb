//! `avhdx write`, `zero` and `discard`: their effect on the disk, and refusals.

use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

use crate::common::{Folder, Run, flats};
use avhdx_testkit::naive;
use avhdx_testkit::rng::pattern;

const MIB: usize = 1 << 20;

fn bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(7, 0, &mut bytes);
    bytes
}

/// The tip's disk, by an independent reader.
fn flat(folder: &Folder) -> Vec<u8> {
    let layers = ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.file(name));
    naive::Chain::open(layers).unwrap().flat(2).unwrap()
}

/// The state of the log; `empty` if the image was closed.
fn log_state(folder: &Folder, name: &str) -> String {
    let info = folder.run(&format!("info {name} --json")).expect(0).json();
    info["log"]["state"].as_str().unwrap().to_owned()
}

#[test]
fn standard_input_is_written_to_the_tip_only() {
    let folder = Folder::with_chain();
    let before = [folder.read("l0.vhdx"), folder.read("l1.vhdx")];
    let mut expected = flats()[2].clone();
    // Unaligned, over blocks in all states; empty; and up to the end of the disk.
    for (offset, len) in [(1000, 4 * MIB + 77), (5, 0), (6 * MIB, 0), (6 * MIB - 3, 3)] {
        let input = bytes(len);
        let run = folder.run_with(&format!("write l2.vhdx --offset {offset}"), &input).expect(0);
        assert!(run.text().ends_with(&format!("written at {offset}\n")), "{}", run.text());
        expected[offset..offset + len].copy_from_slice(&input);
        assert!(flat(&folder) == expected, "{len} bytes at {offset}");
        assert_eq!(log_state(&folder, "l2.vhdx"), "empty");
    }
    assert!([folder.read("l0.vhdx"), folder.read("l1.vhdx")] == before);
    assert_eq!(folder.names(), ["l0.vhdx", "l1.vhdx", "l2.vhdx"]);
    // A selector can name the tip.
    folder.run_with("write l2.vhdx@-0 --offset 0", b"x").expect(0);
    assert_eq!(flat(&folder)[0], b'x');
}

#[test]
fn an_input_that_does_not_fit_is_not_written() {
    let folder = Folder::with_chain();
    let before = folder.read("l2.vhdx");
    // Shorter than one piece.
    let input = bytes(MIB + 1);
    let run = folder.run_with("write l2.vhdx --offset 5M --json", &input).expect(2);
    let error = run.error();
    assert_eq!((&error["code"], &error["written"]), (&"write.too-long".into(), &0.into()));
    // From a file with a known length, from its current position.
    fs::write(folder.file("input"), bytes(6 * MIB)).unwrap();
    let from_file = |line: &str| {
        let mut command = folder.command(line.split(' '));
        command.stdin(File::open(folder.file("input")).unwrap());
        Run::of(command.output().unwrap())
    };
    let run = from_file("write l2.vhdx --offset 512").expect(2);
    run.says("room for 6290944 bytes at 512, the input has 6291456");
    for offset in ["6291457", "64T"] {
        let run = folder.run(&format!("write l2.vhdx --offset {offset} --json")).expect(2);
        assert_eq!(run.error()["code"], "disk.out-of-range");
    }
    assert!(folder.read("l2.vhdx") == before);
    assert!(from_file("write l2.vhdx --offset 0").expect(0).text().starts_with("l2.vhdx: 6291456"));

    // A long stream: all but the last piece is written before the end is known.
    let input: Vec<u8> = bytes(6 * MIB).iter().map(|byte| byte ^ 0xFF).collect();
    let run = folder.run_with("write l2.vhdx --offset 1M --json", &input).expect(2);
    assert_eq!(run.error()["written"], 5 * MIB - 2 * MIB);
    let mut expected = bytes(6 * MIB);
    expected[MIB..4 * MIB].copy_from_slice(&input[..3 * MIB]);
    assert!(flat(&folder) == expected);
    assert_eq!(log_state(&folder, "l2.vhdx"), "empty");
}

#[test]
fn zeros_hide_the_parent() {
    for verb in ["zero", "zero --keep-space", "discard"] {
        let folder = Folder::with_chain();
        let mut expected = flats()[2].clone();
        // Part of a partially present block, a whole block of the parent, parts of others, everything.
        for (offset, len) in [(5000, 100), (0, MIB), (2 * MIB + 9, 2 * MIB), (0, 6 * MIB)] {
            let (name, flags) = verb.split_once(' ').unwrap_or((verb, ""));
            let line = format!("{name} l2.vhdx {flags} --offset {offset} --length {len}");
            folder.run(&line).expect(0);
            expected[offset..offset + len].fill(0);
            assert!(flat(&folder) == expected, "{line}");
            assert_eq!(log_state(&folder, "l2.vhdx"), "empty");
        }
        let blocks = folder.run("info l2.vhdx --json").expect(0).json()["blocks"].take();
        // Only block 3 was in the tip at first.
        let kept = u64::from(verb.contains("keep"));
        assert_eq!(blocks["fully_present"].as_u64() > Some(0), kept == 1, "{verb}: {blocks}");
        let run = folder.run("discard l2.vhdx --offset 6M --length 1").expect(2);
        run.says("1 bytes at 6291456 do not lie within the disk of 6291456 bytes");
        folder.run("zero l2.vhdx --offset 0").expect(2).says("--length");
    }
}

/// A range is changed in pieces of 1 GiB; the first and the last are partial.
#[test]
fn ranges_longer_than_a_piece_are_zeroed_exactly() {
    for verb in ["zero", "zero --keep-space", "discard"] {
        let folder = Folder::new();
        folder.run("create d.vhdx --size 4G --block 1M").expect(0);
        let places: Vec<usize> = (0..32).map(|n| n * 128 * MIB + 512 * n).collect();
        for at in &places {
            folder.run_with(&format!("write d.vhdx --offset {at}"), &[7; 700]).expect(0);
        }
        let zeros = 128 * MIB + 600..3800 * MIB + 5;
        let (offset, len) = (zeros.start, zeros.end - zeros.start);
        let (name, flags) = verb.split_once(' ').unwrap_or((verb, ""));
        folder.run(&format!("{name} d.vhdx {flags} --offset {offset} --length {len}")).expect(0);
        let chain = naive::Chain::open([folder.file("d.vhdx")]).unwrap();
        for at in places {
            let expected: Vec<u8> =
                (at..at + 700).map(|at| if zeros.contains(&at) { 0 } else { 7 }).collect();
            assert!(chain.read(0, at as u64, 700).unwrap() == expected, "{verb}: {at}");
        }
    }
}

#[test]
fn a_fixed_disk_keeps_its_blocks() {
    let folder = Folder::new();
    folder.run("create f.vhdx --size 4M --fixed --block 1M").expect(0);
    folder.run_with("write f.vhdx --offset 0", &bytes(4 * MIB)).expect(0);
    folder.run("discard f.vhdx --offset 1M --length 2M").expect(0);
    let mut expected = bytes(4 * MIB);
    expected[MIB..3 * MIB].fill(0);
    let chain = naive::Chain::open([folder.file("f.vhdx")]).unwrap();
    assert!(chain.flat(0).unwrap() == expected);
    let blocks = folder.run("info f.vhdx --json").expect(0).json()["blocks"].take();
    assert_eq!(blocks["fully_present"], 4);
}

#[test]
fn an_image_with_a_child_is_refused_and_the_flag_is_suggested() {
    let folder = Folder::with_chain();
    let before = folder.read("l1.vhdx");
    let refused = |line: &str| {
        let run = folder.run_with(line, b"x").expect(7);
        assert!(folder.read("l1.vhdx") == before, "{line}");
        run
    };
    for line in [
        "write l1.vhdx --offset 0",
        "zero l1.vhdx --offset 0 --length 1",
        "discard l1.vhdx --offset 0 --length 1M",
    ] {
        refused(line).says("l2.vhdx as its child").says("--orphan-children allows it");
    }
    let error = refused("write l1.vhdx --offset 0 --json").error();
    assert_eq!((&error["kind"], &error["exit"]), (&"has-children".into(), &7.into()));

    // A point in time below the tip is refused with any flag.
    for line in ["write l2.vhdx@-1 --offset 0", "write l2.vhdx@base --offset 0 --orphan-children"] {
        let run = refused(line).says("a point in time below the tip cannot be written");
        run.says("avhdx create CHILD --parent l2.vhdx@");
    }

    // A child in another folder is found with --children-in.
    fs::create_dir(folder.file("elsewhere")).unwrap();
    fs::rename(folder.file("l2.vhdx"), folder.file("elsewhere/l2.vhdx")).unwrap();
    refused("write l1.vhdx --offset 0 --children-in elsewhere").says("elsewhere/l2.vhdx");
    folder
        .run_with("write l1.vhdx --offset 0 --children-in elsewere", b"x")
        .expect(3)
        .says("elsewere: cannot list the folder to find children");
    assert!(folder.read("l1.vhdx") == before);
    let line = "write l1.vhdx --offset 0 --children-in elsewhere --orphan-children";
    folder.run_with(line, b"x").expect(0);
    assert_eq!(folder.run("read l1.vhdx --length 1").expect(0).stdout, b"x");
    folder.run("read elsewhere/l2.vhdx --length 1 --with-parent l1.vhdx").expect(5);
}

#[test]
fn a_second_writer_is_refused() {
    let folder = Folder::with_chain();
    let before = folder.read("l2.vhdx");
    let mut first = folder.command("write l2.vhdx --offset 0".split(' '));
    let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut to_first = first.stdin.take().unwrap();
    // More than a pipe holds: once this returns, the first program is reading and has the image open.
    to_first.write_all(&bytes(MIB)).unwrap();
    for line in [
        "write l2.vhdx --offset 0 --json",
        "zero l2.vhdx --offset 0 --length 1 --json",
        "discard l2.vhdx --offset 0 --length 1 --json",
        "convert l2.vhdx -O raw out --json",
    ] {
        let error = folder.run_with(line, b"second").expect(6).error();
        assert_eq!(error["kind"], "in-use", "{line}");
    }
    // The parents of an open disk cannot be written either.
    folder.run_with("write l0.vhdx --offset 0 --orphan-children", b"x").expect(6);
    assert!(folder.read("l2.vhdx") == before);
    drop(to_first);
    assert!(first.wait().unwrap().success());
    assert!(flat(&folder)[..MIB] == bytes(MIB));
}

#[test]
fn a_file_that_is_not_an_image_is_not_written() {
    let folder = Folder::new();
    fs::write(folder.file("text"), vec![b'x'; MIB]).unwrap();
    folder.run_with("write text --offset 0", b"y").expect(4).says("vhdxfile");
    assert!(folder.read("text") == vec![b'x'; MIB]);
    folder.run_with("write gone --offset 0", b"y").expect(3);
    assert_eq!(folder.names(), ["text"]);
}

#[test]
fn stale_change_trackers_give_a_warning() {
    let folder = Folder::with_chain();
    fs::write(folder.file("l2.vhdx.rct"), "").unwrap();
    let run = folder.run_with("write l2.vhdx --offset 0", b"x").expect(0);
    run.says("warning: l2.vhdx.rct: does not record changes made here");
}

#[test]
#[cfg(unix)]
fn an_interruption_closes_the_image() {
    let folder = Folder::new();
    for (i, signal) in ["-INT", "-TERM"].into_iter().enumerate() {
        let name = format!("{i}.vhdx");
        folder.run(&format!("create {name} --size 8M --block 2M")).expect(0);
        let empty = fs::metadata(folder.file(&name)).unwrap().len();
        let mut command = folder.command(["write", &name, "--offset", "0", "--json"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&bytes(4 * MIB + MIB)).unwrap();
        // Two whole pieces are being written; the third waits for more input.
        while fs::metadata(folder.file(&name)).unwrap().len() < empty + 4 * MIB as u64 {
            std::thread::yield_now();
        }
        let id = child.id().to_string();
        let kill = std::process::Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(kill.success());
        let run = Run::of(child.wait_with_output().unwrap()).expect(130);
        assert_eq!(run.error()["code"], "interrupted");
        drop(input);
        assert_eq!(log_state(&folder, &name), "empty");
        let read = folder.run(&format!("read {name} --length 8M --log refuse")).expect(0).stdout;
        assert!(read[..4 * MIB] == bytes(5 * MIB)[..4 * MIB]);
        assert!(read[4 * MIB..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_json_is_stable() {
    let folder = Folder::with_chain();
    let run = folder.run_with("write l2.vhdx --offset 4K --json", b"12345").expect(0);
    let expected = r#"{
  "schema": "avhdx.write/1",
  "image": "l2.vhdx",
  "offset": 4096,
  "written": 5
}
"#;
    assert_eq!(run.text(), expected);
    let run = folder.run("zero l2.vhdx --offset 4K --length 1M --keep-space --json").expect(0);
    let expected = r#"{
  "schema": "avhdx.zero/1",
  "image": "l2.vhdx",
  "offset": 4096,
  "length": 1048576,
  "keep_space": true
}
"#;
    assert_eq!(run.text(), expected);
    let run = folder.run("discard l2.vhdx --offset 0 --length 2M --json").expect(0);
    let expected = r#"{
  "schema": "avhdx.discard/1",
  "image": "l2.vhdx",
  "offset": 0,
  "length": 2097152
}
"#;
    assert_eq!(run.text(), expected);
    assert_eq!(run.stderr, "");
}
