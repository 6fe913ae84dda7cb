//! `avhdx cp --to-tar`: archives, as other programs read them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::host::{Mounted, of_ext, of_much, set_mode, set_past, signal};
use super::{of, rename};
use crate::common::{Folder, NOTES, Run, volume};

/// What is known of a file by the host: kind and permissions, owner, size, time, names, device, and its bytes or target.
type Facts = (u32, (u32, u32), u64, (i64, i64), u64, u64, Vec<u8>);

/// All files below a folder.
fn facts(top: &Path) -> BTreeMap<Vec<u8>, Facts> {
    let mut all = BTreeMap::new();
    let mut folders = vec![top.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let (is_folder, is_file) = (stat.is_dir(), stat.is_file());
            if path.ends_with("lost+found") {
                continue;
            }
            let bytes = match () {
                () if stat.is_symlink() => {
                    fs::read_link(&path).unwrap().into_os_string().as_bytes().to_vec()
                }
                () if is_file && stat.len() < 100 << 20 => fs::read(&path).unwrap(),
                () => Vec::new(),
            };
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
            let facts = (
                stat.mode(),
                (stat.uid(), stat.gid()),
                if is_folder { 0 } else { stat.len() },
                (stat.mtime(), stat.mtime_nsec()),
                if is_folder { 0 } else { stat.nlink() },
                stat.rdev(),
                bytes,
            );
            all.insert(name, facts);
            if is_folder {
                folders.push(path);
            }
        }
    }
    all
}

/// Programs that unpack `all.tar` into the folder that they are started in.
const READERS: [&str; 3] = [
    "tar -xpf ../all.tar",
    "bsdtar -xpf ../all.tar",
    "python3 -c 'import tarfile; tarfile.open(\"../all.tar\").extractall(\".\", numeric_owner=True)'",
];

/// Unpacks `all.tar` by a program; `false` where it is not installed.
fn unpack(folder: &Folder, reader: &str, into: &str) -> bool {
    fs::create_dir(folder.file(into)).unwrap();
    let tool = reader.split(' ').next().unwrap();
    let is_there = Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_there {
        assert!(std::env::var_os("AVHDX_INTEROP").is_none(), "{tool} is missing");
        eprintln!("NOT TESTED: {tool} is not installed");
        return false;
    }
    let done = folder.in_shell(&format!("cd {into} && {reader}")).output().unwrap();
    assert!(done.status.success(), "{reader}: {done:?}");
    true
}

#[test]
fn an_archive_holds_what_the_volume_holds() {
    let mut expected = BTreeMap::new();
    let Some(folder) = of_ext(|top| {
        let deep = top.join("d".repeat(120)).join("e".repeat(120)).join("f".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "deep").unwrap();
        fs::write(top.join("little"), "little").unwrap();
        fs::write(top.join("much"), vec![7; 3_000_001]).unwrap();
        fs::write(top.join("ä 虛擬"), "").unwrap();
        fs::write(top.join(std::ffi::OsStr::from_bytes(b"not \xFF Unicode")), "x").unwrap();
        fs::write(top.join("a\nb\x1b[2J"), "y").unwrap();
        fs::hard_link(top.join("much"), top.join("again")).unwrap();
        symlink("little", top.join("link")).unwrap();
        symlink("l".repeat(150), top.join("long link")).unwrap();
        assert!(Command::new("mkfifo").arg(top.join("pipe")).status().unwrap().success());
        // Holes at the start, between, at the end, and nothing else.
        let sparse = fs::File::create(top.join("sparse")).unwrap();
        let at = |place: u64| std::os::unix::fs::FileExt::write_all_at(&sparse, b"here", place);
        at(5 << 20).unwrap();
        at(50_000_000).unwrap();
        sparse.set_len(70 << 20).unwrap();
        fs::File::create(top.join("hole")).unwrap().set_len((3 << 20) + 1).unwrap();
        set_mode(&top.join("little"), 0o4711);
        set_mode(&top.join("d".repeat(120)), 0o1750);
        set_past(&top.join("link"));
        let old = top.join("ä 虛擬");
        assert!(
            Command::new("touch")
                .args(["-d", "1965-02-03 04:05:06.123456789 UTC"])
                .arg(old)
                .status()
                .unwrap()
                .success()
        );
        expected = facts(top);
    }) else {
        return;
    };
    folder
        .run("cp -f raw pc.raw -r / --to-tar all.tar")
        .expect(0)
        .prints("copied 9 files, 4 folders, 2 links, 1 special file");
    // The same, whenever and however it is made; and much shorter than what it holds.
    let piped =
        Run::of(folder.in_shell("avhdx cp -f raw pc.raw -r / --to-tar - | cat").output().unwrap());
    let bytes = folder.read("all.tar");
    assert!(piped.stdout == bytes, "{}", piped.stderr);
    assert!(bytes.len() < 8 << 20, "{} bytes", bytes.len());
    for (n, reader) in READERS.iter().enumerate() {
        let into = format!("unpacked-{n}");
        if !unpack(&folder, reader, &into) {
            continue;
        }
        let mut found = facts(&folder.file(&into));
        let names = |of: &BTreeMap<Vec<u8>, Facts>| -> Vec<String> {
            of.keys().map(|name| name.escape_ascii().to_string()).collect()
        };
        assert_eq!(names(&found), names(&expected), "{reader}");
        for (name, facts) in &mut found {
            // The tool that made the volume leaves nanoseconds out, and Python the times of links.
            if !(reader.starts_with("python3") && name.ends_with(b"link")) {
                assert_eq!(
                    facts.3.0,
                    expected[name].3.0,
                    "{reader}: {}",
                    String::from_utf8_lossy(name)
                );
            }
            facts.3 = expected[name].3;
        }
        for (name, facts) in &found {
            assert!(*facts == expected[name], "{reader}: {}", String::from_utf8_lossy(name));
        }
    }
}

#[test]
fn names_of_sparse_files_are_those_of_the_volume() {
    let mut expected = BTreeMap::new();
    let Some(folder) = of_ext(|top| {
        let long = top.join("d".repeat(120));
        fs::create_dir_all(&long).unwrap();
        fs::create_dir_all(top.join("虛擬")).unwrap();
        for name in ["short", "虛擬/short", "Größe"] {
            fs::File::create(top.join(name)).unwrap().set_len(3 << 20).unwrap();
        }
        fs::File::create(long.join("l".repeat(120))).unwrap().set_len(3 << 20).unwrap();
        let pieces = fs::File::create(long.join("pieces")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&pieces, b"here", 2 << 20).unwrap();
        expected = facts(top);
    }) else {
        return;
    };
    folder.run("cp -f raw pc.raw -r / --to-tar all.tar").expect(0);
    assert!(folder.read("all.tar").len() < 1 << 20);
    for (n, reader) in READERS.iter().enumerate() {
        let into = format!("unpacked-{n}");
        if !unpack(&folder, reader, &into) {
            continue;
        }
        let of = |facts: &BTreeMap<Vec<u8>, Facts>| -> Vec<(String, u64, Vec<u8>)> {
            let one = |(name, facts): (&Vec<u8>, &Facts)| {
                (name.escape_ascii().to_string(), facts.2, facts.6.clone())
            };
            facts.iter().map(one).collect()
        };
        assert!(of(&facts(&folder.file(&into))) == of(&expected), "{reader}");
    }
}

#[test]
fn owners_devices_and_large_numbers_are_in_an_archive() {
    let Some(folder) = of_ext(|top| {
        fs::write(top.join("file"), "").unwrap();
        fs::write(top.join("other"), "").unwrap();
    }) else {
        return;
    };
    let lines =
        "sif /file uid 3000000\nsif /file gid 3000001\nsif /other uid 12\nmknod disk b 259 7\n";
    fs::write(folder.file("commands"), lines).unwrap();
    let edit = Command::new("debugfs")
        .args(["-w", "-f", "commands", "pc.raw"])
        .current_dir(folder.path())
        .output();
    assert!(edit.unwrap().status.success());
    folder.run("cp -f raw pc.raw -r / --to-tar all.tar").expect(0);
    let list = folder.in_shell("tar --numeric-owner -tvf all.tar").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for part in ["3000000/3000001", "12/0", "259,7"] {
        assert!(list.contains(part), "no {part} in\n{list}");
    }
}

#[test]
fn an_archive_of_ntfs_is_without_streams_and_says_so() {
    let folder = Folder::new();
    let Some(mounted) = Mounted::new(&folder) else { return };
    fs::write(folder.file("top/file"), vec![3; 2_000_000]).unwrap();
    fs::write(folder.file("top/file:one"), "one").unwrap();
    fs::create_dir(folder.file("top/sub")).unwrap();
    fs::hard_link(folder.file("top/file"), folder.file("top/sub/again")).unwrap();
    let sparse = fs::File::create(folder.file("top/sub/sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (30 << 20) + 5).unwrap();
    drop(sparse);
    // Python's times are of less than nanoseconds.
    let bytes = |folder: &Path, with_nanoseconds: bool| -> BTreeMap<_, _> {
        let all = facts(folder).into_iter();
        let time = |(seconds, part)| (seconds, if with_nanoseconds { part } else { 0 });
        all.map(|(name, facts)| (name, (time(facts.3), facts.4, facts.6))).collect()
    };
    let expected = [false, true].map(|exact| bytes(&folder.file("top"), exact));
    assert_ne!(expected[0], expected[1]);
    drop(mounted);
    folder
        .run("cp -f raw pc.raw -r / --to-tar all.tar")
        .expect(0)
        .says("1 alternate data stream is not copied");
    for (n, reader) in READERS.iter().enumerate() {
        let into = format!("unpacked-{n}");
        if unpack(&folder, reader, &into) {
            let exact = !reader.starts_with("python3");
            let found = bytes(&folder.file(&into), exact);
            assert!(found == expected[usize::from(exact)], "{reader}");
        }
    }
}

#[test]
fn names_in_an_archive_lead_nowhere_and_are_there_once() {
    let mut lying = volume();
    rename(&mut lying, "notes", "../no");
    let folder = of(lying);
    folder.run("cp pc.vhdx -r / --to-tar all.tar").expect(8).says("no name for a file here");
    let list = folder.in_shell("tar -tf all.tar").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "logs/\nlogs/today.txt\n");
    // Two sources of one name: the first is there.
    let folder = of(volume());
    folder
        .run("cp pc.vhdx -r /logs/ notes.txt /logs /NOTES.TXT --to-tar all.tar")
        .expect(8)
        .says("logs: something else has this name in the archive");
    let list = folder.in_shell("tar -tf all.tar").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "logs/\nlogs/today.txt\nnotes.txt\n");
    // A name of one file alone.
    folder.run("cp pc.vhdx logs/today.txt --to-tar - --quiet").expect(0);
    folder.run("cp pc.vhdx logs --to-tar x.tar").expect(2).says("this is a folder");
    folder.run("cp pc.vhdx --to-tar all.tar notes.txt").expect(7).says("the file exists");
    folder.run("cp pc.vhdx --overwrite --to-tar all.tar notes.txt").expect(0);
    let text = folder.in_shell("tar -xOf all.tar notes.txt").output().unwrap();
    assert_eq!(text.stdout, NOTES);
    folder.run("cp pc.vhdx notes.txt").expect(2).says("DEST is missing");
    assert!(!folder.file("x.tar").exists());
}

#[test]
fn what_is_damaged_is_left_out_of_a_file_and_ends_a_pipe() {
    let Some(folder) = of_ext(|top| {
        fs::write(top.join("1 first"), "first").unwrap();
        fs::write(top.join("3 last"), "last").unwrap();
        let parts = fs::File::create(top.join("2 parts")).unwrap();
        for at in [0, 3 << 20, 6 << 20] {
            std::os::unix::fs::FileExt::write_all_at(&parts, &[7; 2 << 20], at).unwrap();
        }
    }) else {
        return;
    };
    // The second of its three extents lies behind the end of the volume.
    fs::write(folder.file("commands"), "sif \"/2 parts\" block[8] 2147483647\n").unwrap();
    let edit = Command::new("debugfs")
        .args(["-w", "-f", "commands", "pc.raw"])
        .current_dir(folder.path())
        .output();
    assert!(edit.unwrap().status.success());
    folder
        .run("cp -f raw pc.raw -r / --to-tar all.tar")
        .expect(8)
        .says("warning: pc.raw: the disk: /2 parts: ")
        .prints("copied 2 files, 1 folder");
    let list =
        folder.in_shell("tar -xOf all.tar '1 first' '3 last' && tar -tf all.tar").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "firstlast1 first\n3 last\nlost+found/\n");
    // Nothing is left of what was written of the third.
    let line = "avhdx cp -f raw pc.raw -r '1 first' '3 last' lost+found --to-tar - --quiet";
    let others = folder.in_shell(line).output().unwrap().stdout;
    assert!(folder.read("all.tar") == others);
    let line = "avhdx cp -f raw pc.raw -r / --to-tar - > piped.tar";
    Run::of(folder.in_shell(line).output().unwrap())
        .expect(4)
        .says("pc.raw: the disk: /2 parts: ")
        .says("the archive ends within this file");
    // Who reads it sees that it is not whole.
    assert!(!folder.in_shell("tar -tf piped.tar").output().unwrap().status.success());
    let line = "avhdx cp -f raw pc.raw '2 parts' --to-tar one.tar";
    Run::of(folder.in_shell(line).output().unwrap()).expect(4);
    assert!(!folder.file("one.tar").exists());
    fs::remove_file(folder.file("piped.tar")).unwrap();
    assert_eq!(folder.names(), ["all.tar", "commands", "out", "pc.raw"]);
}

#[test]
fn an_archive_is_whole_or_not_there() {
    let Some(folder) = of_much() else { return };
    let mut command =
        folder.command(["cp", "-f", "raw", "pc.raw", "-r", "a", "--to-tar", "all.tar"]);
    for _ in 0..30 {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while !folder.is_written_to(&child) && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "no archive was begun");
        }
        signal(&child, "INT");
        let run = Run::of(child.wait_with_output().unwrap());
        if run.code == Some(130) {
            run.says("the unfinished file was removed");
            assert_eq!(folder.names(), ["out", "pc.raw"]);
            return;
        }
        // A busy machine came to it too late.
        fs::remove_file(folder.file("all.tar")).unwrap();
    }
    panic!("it was too fast to be stopped, each time");
}

#[test]
fn a_full_host_leaves_no_part_of_an_archive() {
    let folder = of(volume());
    let line = "trap '' XFSZ; ulimit -f 4; avhdx cp pc.vhdx -r / --to-tar all.tar";
    Run::of(folder.in_shell(line).output().unwrap())
        .expect(3)
        .says("all.tar: the archive cannot be written")
        .says("next: avhdx cp pc.vhdx -r / --to-tar OUT");
    assert_eq!(folder.names(), ["pc.raw", "pc.vhdx"]);
    Run::of(folder.in_shell("avhdx cp pc.vhdx -r / --to-tar - > /dev/full").output().unwrap())
        .expect(3)
        .says("cannot write to standard output");
}
