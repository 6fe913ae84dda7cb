//! `avhdx ls`, `cat` and `cp`: files inside disks, at points in time, and what volumes that lie cannot do.

#[cfg(unix)]
mod archive;
#[cfg(unix)]
mod host;

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use crate::common::{Folder, NOTES, Run, volume};

/// The place of the entry with this part of a long name, of which the first characters are kept together.
fn long_entry(volume: &[u8], start: &str) -> usize {
    let units: Vec<u8> = start.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut entries = (0..volume.len()).step_by(32);
    entries.find(|at| volume[at + 11] == 0x0F && volume[at + 1..].starts_with(&units)).unwrap()
}

/// Changes the first characters of a long name.
fn rename(volume: &mut [u8], from: &str, to: &str) {
    let at = long_entry(volume, from) + 1;
    let units: Vec<u8> = to.encode_utf16().flat_map(u16::to_le_bytes).collect();
    volume[at..at + units.len()].copy_from_slice(&units);
}

/// A folder with an image of the volume.
fn of(volume: Vec<u8>) -> Folder {
    let folder = Folder::new();
    fs::write(folder.file("pc.raw"), volume).unwrap();
    folder.run("convert -f raw pc.raw -O vhdx pc.vhdx").expect(0);
    folder
}

#[test]
fn a_file_reads_as_it_was_at_each_point_in_time() {
    let folder = of(volume());
    folder.run("checkpoint pc.vhdx --label before --path tip.avhdx").expect(0);
    let mut changed = volume();
    let at = changed.windows(NOTES.len()).position(|bytes| bytes == NOTES).unwrap();
    changed[at..at + 4].copy_from_slice(b"WHAT");
    rename(&mut changed, "today", "after");
    folder.run_with("write tip.avhdx --offset 0", &changed).expect(0);
    let old = folder.run("cat tip.avhdx@before notes.txt").expect(0).says("is pc.vhdx");
    assert_eq!(old.stdout, NOTES);
    assert_eq!(folder.run("cat tip.avhdx /NOTES.TXT").expect(0).stdout, b"WHAT is in the notes\n");
    assert_eq!(folder.run(r"cat tip.avhdx logs\after.txt").expect(0).stdout, [b'x'; 5000]);
    folder.run("cat tip.avhdx logs/other.txt").expect(2).says("there is no \"other.txt\" here");
    folder.run("cat tip.avhdx@before logs/today.txt").expect(0);
    folder.run("cat pc.raw -f raw notes.txt").expect(0).prints("what is in the notes");
}

#[test]
fn lists_have_kinds_sizes_and_times() {
    let folder = of(volume());
    let run =
        folder.run("ls pc.vhdx").expect(0).prints("file                21").prints("notes.txt");
    assert!(!run.text().contains("today.txt"));
    let run = folder.run("ls pc.vhdx -R --json").expect(0);
    let lines: Vec<Value> =
        run.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["path"].as_str().unwrap(),
                line["kind"].as_str().unwrap(),
                line["size"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [("logs", "folder", 0), ("logs/today.txt", "file", 5000), ("notes.txt", "file", 21)]
    );
    assert!(lines[2]["modified"].as_str().unwrap().ends_with('Z'));
    folder.run("ls pc.vhdx --volumes").expect(0).prints("MY DISK").prints("FAT");
    let of_label = ["ls", "pc.vhdx", "-p", "MY DISK", "logs"];
    Run::of(folder.command(of_label).output().unwrap()).expect(0).prints("today.txt");
}

#[test]
fn copies_have_the_bytes_and_the_times() {
    let folder = of(volume());
    folder
        .run("cp pc.vhdx -r / out")
        .expect(0)
        .prints("copied 2 files, 2 folders, 0 links: 5021 bytes (4.9 KiB)");
    assert_eq!(folder.read("out/notes.txt"), NOTES);
    assert_eq!(folder.read("out/logs/today.txt"), [b'x'; 5000]);
    let list = folder.run("ls pc.vhdx notes.txt --json").expect(0).json();
    let modified = fs::metadata(folder.file("out/notes.txt")).unwrap().modified().unwrap();
    let seconds = modified.duration_since(UNIX_EPOCH).unwrap();
    assert!(seconds > Duration::from_secs(1_600_000_000), "{list} {seconds:?}");
    // Nothing is replaced.
    fs::write(folder.file("out/notes.txt"), "mine").unwrap();
    folder
        .run("extract pc.vhdx notes.txt logs out -r")
        .expect(8)
        .says("something else has this name");
    assert_eq!(folder.read("out/notes.txt"), b"mine");
    folder.run("cp pc.vhdx notes.txt other.txt").expect(0);
    assert_eq!(folder.read("other.txt"), NOTES);
}

#[test]
fn nothing_in_a_volume_makes_it_write_outside_of_the_target() {
    let mut lying = volume();
    rename(&mut lying, "notes", "../no");
    let folder = of(lying);
    folder.run("cp pc.vhdx -r / out/").expect(8).says("no name for a file here");
    assert_eq!(fs::read_dir(folder.file("out")).unwrap().count(), 1);
    assert!(!folder.file("no.txt").exists());

    // Two files of one name: the first stays.
    let mut lying = volume();
    rename(&mut lying, "logs", "noteX");
    let at = long_entry(&lying, "noteX") + 1;
    let name: Vec<u8> = "notes".encode_utf16().flat_map(u16::to_le_bytes).collect();
    lying[at..at + 10].copy_from_slice(&name);
    let end: Vec<u8> = ".txt\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    lying[at + 13..at + 23].copy_from_slice(&end);
    let folder = of(lying);
    folder.run("cp pc.vhdx -r / out").expect(8).says("something else has this name");
    assert_eq!(folder.names(), ["out", "pc.raw", "pc.vhdx"]);
}

#[cfg(unix)]
#[test]
fn a_link_in_the_target_is_not_followed() {
    let folder = of(volume());
    for name in ["out", "elsewhere"] {
        fs::create_dir(folder.file(name)).unwrap();
    }
    std::os::unix::fs::symlink("../elsewhere", folder.file("out/logs")).unwrap();
    std::os::unix::fs::symlink("../elsewhere/new", folder.file("out/notes.txt")).unwrap();
    folder.run("cp pc.vhdx -r logs notes.txt out").expect(8).says("something else has this name");
    assert_eq!(fs::read_dir(folder.file("elsewhere")).unwrap().count(), 0);
}

#[test]
fn what_is_damaged_is_told_and_the_rest_is_copied() {
    let mut damaged = volume();
    // The file in the folder says that it begins behind the end of the volume.
    let at = long_entry(&damaged, "today") + 32;
    damaged[at + 26..at + 28].copy_from_slice(&[0xF0, 0xFF]);
    let folder = of(damaged);
    let run = folder.run("cp pc.vhdx -r / out --json").expect(8);
    assert_eq!((&run.json()["files"], &run.json()["left_out"]), (&1.into(), &1.into()));
    assert!(run.stderr.contains("fat.cluster"), "{}", run.stderr);
    assert_eq!(folder.read("out/notes.txt"), NOTES);
    folder
        .run("cat pc.vhdx logs/today.txt")
        .expect(4)
        .says("avhdx: pc.vhdx: the disk: /logs/today.txt: cluster");
    folder
        .run("cp pc.vhdx logs/today.txt mine")
        .expect(4)
        .says("avhdx: pc.vhdx: the disk: /logs/today.txt: cluster");
    assert!(!folder.file("mine").exists());
}

#[test]
fn messages_name_image_volume_and_path_and_lead_to_a_list() {
    let folder = of(volume());
    for (line, next) in [
        ("cat pc.vhdx logs", "avhdx ls pc.vhdx logs  # lists what it holds"),
        ("cp pc.vhdx@-0 logs out", "avhdx ls pc.vhdx@-0 logs  # lists what it holds"),
    ] {
        let image = line.split(' ').nth(1).unwrap();
        let told = format!("avhdx: {image}: the disk: /logs: this is ");
        let run = folder.run(line).expect(2).says(&told);
        assert!(run.next().contains(&next.to_owned()), "{:?}", run.next());
        let command = next.strip_prefix("avhdx ").unwrap().split("  #").next().unwrap();
        folder.run(command).expect(0).prints("today.txt");
    }
    folder.run("ls pc.vhdx no").expect(2).says("avhdx: pc.vhdx: the disk: /no: there is no \"no\"");
    folder.run("ls pc.vhdx -p 7").expect(2).says("avhdx: pc.vhdx: there is no volume \"7\"");
    let run = folder.run("ls pc.vhdx logs/today.txt").expect(0).prints("logs/today.txt");
    assert_eq!(run.text().lines().count(), 2);
}

#[cfg(unix)]
#[test]
fn a_file_is_not_printed_over_the_image_that_holds_it() {
    let folder = of(volume());
    folder.run("checkpoint pc.vhdx --path tip.avhdx").expect(0);
    let before = (folder.read("pc.vhdx"), folder.read("tip.avhdx"));
    for line in [
        "avhdx cat tip.avhdx notes.txt >> pc.vhdx",
        "avhdx cat tip.avhdx notes.txt >> tip.avhdx",
        "avhdx cp tip.avhdx notes.txt --to-tar - >> pc.vhdx",
    ] {
        Run::of(folder.in_shell(line).output().unwrap()).expect(7).says("standard output is");
    }
    for name in ["pc.vhdx", "tip.avhdx"] {
        let line = format!("cp tip.avhdx notes.txt --to-tar {name} --overwrite");
        folder.run(&line).expect(7).says("the input or one of its parents");
    }
    assert_eq!((folder.read("pc.vhdx"), folder.read("tip.avhdx")), before);
}

#[test]
fn names_reach_no_terminal_as_commands() {
    // In a volume, a name may be anything.
    let mut lying = volume();
    rename(&mut lying, "notes", "\u{1b}[2J\n");
    let folder = of(lying);
    for line in [
        "ls pc.vhdx",
        "ls pc.vhdx nothing\u{1b}[2J",
        "cp pc.vhdx -r / out",
        "versions pc.vhdx \u{1b}[2J\n.txt",
    ] {
        let run = folder.run(line);
        let is_plain = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control());
        assert!(is_plain(&run.text()) && is_plain(&run.stderr), "{line}: {run:?}");
    }
    fs::write(folder.file("out/\u{1b}[2J\n.txt"), "mine").unwrap();
    let run =
        folder.run("cp pc.vhdx -r / out").expect(8).says(r"\u{1b}[2J\u{a}.txt: something else");
    assert!(!run.stderr.contains('\u{1b}'), "{}", run.stderr);
}
