//! `avhdx cp`: what it does to the machine that it copies to, and what that machine may refuse.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{of, rename};
use crate::common::{Folder, NOTES, Run, volume};

/// A time in the past, for files in volumes.
const PAST: &str = "@1000000000";

fn run(tool: &str, args: &[&str], folder: &Folder) -> Output {
    let output = Command::new(tool).args(args).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{tool}: {output:?}");
    output
}

/// A folder with a volume of ext4 as `pc.raw`, with what `fill` makes in its top; `None` without the tool for it.
pub(super) fn of_ext(fill: impl FnOnce(&Path)) -> Option<Folder> {
    let folder = Folder::new();
    let top = folder.file("tree");
    fs::create_dir(&top).unwrap();
    fill(&top);
    fs::File::create(folder.file("pc.raw")).unwrap().set_len(96 << 20).unwrap();
    let mut make = Command::new("mkfs.ext4");
    let made = make.args(["-q", "-F", "-d", "tree", "pc.raw"]).current_dir(folder.path()).output();
    if made.is_err() && std::env::var_os("AVHDX_INTEROP").is_none() {
        return None;
    }
    assert!(made.as_ref().unwrap().status.success(), "{made:?}");
    fs::remove_dir_all(top).unwrap();
    fs::create_dir(folder.file("out")).unwrap();
    Some(folder)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

pub(super) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(super) fn set_past(path: &Path) {
    let done = Command::new("touch").args(["-h", "-d", PAST]).arg(path).status().unwrap();
    assert!(done.success());
}

/// A volume with a folder `a` (mode 0750) that holds much, then little, a link, and a folder with a file.
pub(super) fn of_much() -> Option<Folder> {
    of_ext(|top| {
        fs::create_dir(top.join("a")).unwrap();
        fs::write(top.join("a/1 much"), vec![7; 64 << 20]).unwrap();
        fs::write(top.join("a/2 little"), "little").unwrap();
        symlink("2 little", top.join("a/3 link")).unwrap();
        fs::create_dir(top.join("a/4 sub")).unwrap();
        fs::write(top.join("a/4 sub/file"), "below").unwrap();
        set_mode(&top.join("a/2 little"), 0o640);
        for path in ["a/2 little", "a/3 link", "a"] {
            set_past(&top.join(path));
        }
        set_mode(&top.join("a"), 0o750);
    })
}

/// Starts a copy of `a` to `out`, and stops it while the first file is written.
fn stopped(folder: &Folder) -> Child {
    for _ in 0..30 {
        let mut command = folder.command(["cp", "-f", "raw", "pc.raw", "-r", "a", "out"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while !folder.file("out/a").exists() {
            assert!(Instant::now() < until, "no folder was made");
        }
        signal(&child, "STOP");
        if !folder.file("out/a/2 little").exists() {
            return child;
        }
        // A busy machine came to it too late.
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(folder.file("out")).unwrap();
    }
    panic!("it was too fast to be stopped, each time");
}

pub(super) fn signal(child: &Child, name: &str) {
    let name = format!("-{name}");
    assert!(
        Command::new("kill").args([&name, &child.id().to_string()]).status().unwrap().success()
    );
}

#[test]
fn folders_that_were_there_keep_their_permissions_and_times() {
    let Some(folder) = of_ext(|top| {
        for name in ["old", "new"] {
            fs::create_dir(top.join(name)).unwrap();
            fs::write(top.join(name).join("file"), name).unwrap();
            set_past(&top.join(name));
            set_mode(&top.join(name), 0o750);
        }
        set_mode(top, 0o700);
        set_past(top);
    }) else {
        return;
    };
    fs::create_dir(folder.file("out/old")).unwrap();
    set_mode(&folder.file("out"), 0o3755);
    set_mode(&folder.file("out/old"), 0o711);
    folder.run("cp -f raw pc.raw -r / out").expect(0).prints("2 folders");
    assert_eq!(mode(&folder.file("out")), 0o3755);
    assert_eq!(mode(&folder.file("out/old")), 0o711);
    for name in ["out", "out/old"] {
        assert_ne!(fs::metadata(folder.file(name)).unwrap().mtime(), 1_000_000_000, "{name}");
    }
    // Folders of the group of the one above belong to it too.
    assert_eq!(mode(&folder.file("out/new")), 0o2750);
    assert_eq!(fs::metadata(folder.file("out/new")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(folder.read("out/old/file"), b"old");
}

#[test]
fn a_folder_that_is_swapped_for_a_link_meanwhile_leads_nowhere() {
    let Some(folder) = of_much() else { return };
    fs::create_dir(folder.file("elsewhere")).unwrap();
    set_mode(&folder.file("elsewhere"), 0o711);
    fs::create_dir(folder.file("elsewhere/4 sub")).unwrap();
    let child = stopped(&folder);
    fs::rename(folder.file("out/a"), folder.file("moved")).unwrap();
    symlink("../elsewhere", folder.file("out/a")).unwrap();
    signal(&child, "CONT");
    Run::of(child.wait_with_output().unwrap()).expect(0);
    assert_eq!(fs::read_dir(folder.file("elsewhere")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(folder.file("elsewhere/4 sub")).unwrap().count(), 0);
    assert_eq!(folder.read("moved/4 sub/file"), b"below");
    assert_eq!(mode(&folder.file("elsewhere")), 0o711);
    assert_eq!(folder.read("moved/2 little"), b"little");
}

#[test]
fn what_takes_a_name_meanwhile_stays_as_it_is() {
    let Some(folder) = of_much() else { return };
    fs::write(folder.file("mine"), "mine").unwrap();
    set_mode(&folder.file("mine"), 0o604);
    let child = stopped(&folder);
    symlink("../../mine", folder.file("out/a/2 little")).unwrap();
    run("mkfifo", &["out/a/1 much"], &folder);
    signal(&child, "CONT");
    Run::of(child.wait_with_output().unwrap())
        .expect(8)
        .says("out/a/1 much: something else has this name")
        .says("out/a/2 little: something else has this name")
        .prints("copied 1 file, 2 folders, 1 link: 5 bytes");
    assert_eq!((folder.read("mine"), mode(&folder.file("mine"))), (b"mine".to_vec(), 0o604));
    assert_ne!(fs::metadata(folder.file("mine")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn files_folders_and_links_get_their_permissions_and_times() {
    let Some(folder) = of_much() else { return };
    folder.run("cp -f raw pc.raw -r a out").expect(0);
    let link = fs::symlink_metadata(folder.file("out/a/3 link")).unwrap();
    assert!(link.is_symlink());
    assert_eq!(mode(&folder.file("out/a")), 0o750);
    assert_eq!(mode(&folder.file("out/a/2 little")), 0o640);
    for name in ["a", "a/2 little", "a/3 link"] {
        let made = fs::symlink_metadata(folder.file("out").join(name)).unwrap();
        assert_eq!(made.mtime(), 1_000_000_000, "{name}");
    }
    // Without permissions in the volume, those that this user's files get.
    let folder = of(volume());
    let mut command = folder.in_shell("umask 027; avhdx cp pc.vhdx -r logs out");
    Run::of(command.output().unwrap()).expect(0);
    assert_eq!(mode(&folder.file("out")), 0o750);
    assert_eq!(mode(&folder.file("out/today.txt")), 0o640);
}

#[test]
fn what_is_incomplete_is_private_also_after_the_end() {
    let Some(folder) = of_much() else { return };
    let mut child = stopped(&folder);
    assert_eq!(mode(&folder.file("out/a")), 0o700);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(mode(&folder.file("out/a")), 0o700);

    // An end in order sets what is known.
    fs::remove_dir_all(folder.file("out/a")).unwrap();
    let child = stopped(&folder);
    signal(&child, "INT");
    signal(&child, "CONT");
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    run.says("files copied up to here stay");
    assert_eq!(mode(&folder.file("out/a")), 0o750);
    assert_eq!(fs::read_dir(folder.file("out/a")).unwrap().count(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn files_have_their_permissions_and_times_before_they_have_a_name() {
    let folder = of(volume());
    let line =
        "strace -o trace -e trace=/chmod,/utim,/chown,/link,/rename avhdx cp pc.vhdx -r logs out";
    let traced = folder.in_shell(line).output().unwrap();
    if !folder.file("trace").exists() {
        assert!(std::env::var_os("AVHDX_INTEROP").is_none(), "{traced:?}");
        eprintln!("NOT TESTED: strace is not installed");
        return;
    }
    Run::of(traced).expect(0);
    let trace = String::from_utf8(folder.read("trace")).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| line.ends_with("= 0")).collect();
    let named = calls.iter().position(|call| call.contains("\"today.txt\"")).unwrap();
    let fd = calls[named].split("/proc/self/fd/").nth(1).unwrap().split('"').next().unwrap();
    for call in ["utimensat", "fchmod"] {
        let of_file = format!("{call}({fd}, ");
        let places: Vec<usize> =
            (0..calls.len()).filter(|at| calls[*at].starts_with(&of_file)).collect();
        assert!(matches!(places[..], [at] if at < named), "{call}: {trace}");
    }
    // Nothing is set by a name, which may lead to another file by now.
    for call in calls.iter().filter(|call| call.contains("chmod") || call.contains("utim")) {
        assert!(!call.contains('"'), "{call}");
    }
}

#[test]
fn what_the_host_refuses_is_told_and_the_rest_is_copied() {
    // 255 characters, as FAT allows, can be more bytes than names here have.
    let mut disk = std::io::Cursor::new(volume());
    let fat = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
    let rest = "l".repeat(245);
    fat.root_dir().create_file(&format!("filed{rest}")).unwrap();
    fat.root_dir().create_dir(&format!("other{rest}")).unwrap();
    fat.unmount().unwrap();
    let mut disk = disk.into_inner();
    rename(&mut disk, "filed", "€€€€1");
    rename(&mut disk, "other", "€€€€2");
    let folder = of(disk);
    let run = folder.run("cp pc.vhdx -r / out --json").expect(8).says("cp.refused");
    assert_eq!((&run.json()["files"], &run.json()["left_out"]), (&2.into(), &2.into()));
    assert_eq!(run.json()["bytes"], 5021);
    assert_eq!(folder.read("out/notes.txt"), NOTES);
    // Alone, it is all that was asked for.
    let name = format!("€€€€1{rest}");
    Run::of(folder.command(["cp", "pc.vhdx", &name, "out"]).output().unwrap())
        .expect(3)
        .says("this machine refuses it");
    // Where it is DEST that is refused, nothing is left to go on with.
    Run::of(folder.command(["cp", "pc.vhdx", "notes.txt", &"l".repeat(256)]).output().unwrap())
        .expect(3)
        .says("nothing can be written there");
}

#[test]
fn a_file_that_is_too_long_for_the_host_is_told_with_the_limit() {
    let folder = of(volume());
    let line = "trap '' XFSZ; ulimit -f 2; avhdx cp pc.vhdx -r / out";
    Run::of(folder.in_shell(line).output().unwrap())
        .expect(8)
        .says("out/logs/today.txt: a file of 5000 bytes, and one there has at most 2048")
        .prints("copied 1 file, 2 folders, 0 links: 21 bytes");
    assert_eq!(fs::read_dir(folder.file("out/logs")).unwrap().count(), 0);
}

/// Runs a line as a user without rights.
fn as_other_user(folder: &Folder, line: &str) -> Run {
    set_mode(folder.path(), 0o755);
    let is_root = fs::metadata(folder.path()).unwrap().uid() == 0;
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups ";
    let line = if is_root { format!("{user}{line}") } else { line.to_owned() };
    Run::of(folder.in_shell(&line).output().unwrap())
}

#[test]
fn folders_of_others_are_told_and_the_rest_is_copied() {
    let folder = of(volume());
    fs::create_dir_all(folder.file("out/logs")).unwrap();
    set_mode(&folder.file("out"), 0o777);
    for mode in [0o555, 0o700] {
        if mode == 0o700 && fs::metadata(folder.path()).unwrap().uid() != 0 {
            break; // it is this user's own
        }
        set_mode(&folder.file("out/logs"), mode);
        as_other_user(&folder, "avhdx cp pc.vhdx -r / out")
            .expect(8)
            .says("out/logs/today.txt: this machine refuses it: Permission denied")
            .prints("copied 1 file, 0 folders, 0 links: 21 bytes");
        fs::remove_file(folder.file("out/notes.txt")).unwrap();
    }
    set_mode(&folder.file("out"), 0o555);
    let run = as_other_user(&folder, "avhdx cp pc.vhdx -r / out").expect(3);
    assert!(!run.stderr.contains("has to exist"), "{}", run.stderr);
    run.says("out: nothing can be written there").says("next: avhdx cp pc.vhdx -r / OUT");
}

#[test]
fn a_folder_that_is_not_there_is_made_first() {
    let folder = of(volume());
    let line = "cp pc.vhdx notes.txt new/";
    let next = folder.run(line).expect(2).says("there is no such folder").next();
    assert_eq!(next, [format!("mkdir -p -- new/ && avhdx {line}")]);
    let next = folder.run("cp pc.vhdx notes.txt no/such/x").expect(3).says("has to exist").next();
    assert_eq!(next, ["mkdir -p -- no/such && avhdx cp pc.vhdx notes.txt no/such/x"]);
    Run::of(folder.in_shell(&next[0]).output().unwrap()).expect(0);
    assert_eq!(folder.read("no/such/x"), NOTES);
}

#[test]
fn a_link_named_as_source_is_copied_as_one_unless_a_slash_follows() {
    let Some(folder) = of_ext(|top| {
        fs::create_dir(top.join("real")).unwrap();
        fs::write(top.join("real/file"), "in it").unwrap();
        symlink("real", top.join("to folder")).unwrap();
        symlink("real/file", top.join("to-file")).unwrap();
        symlink("real", top.join("to-folder")).unwrap();
    }) else {
        return;
    };
    folder.run("cp -f raw pc.raw to-file to-folder out").expect(0).prints("2 links");
    for (name, target) in [("to-file", "real/file"), ("to-folder", "real")] {
        let made = fs::read_link(folder.file("out").join(name)).unwrap();
        assert_eq!(made, Path::new(target));
    }
    fs::create_dir(folder.file("more")).unwrap();
    folder.run("cp -f raw pc.raw to-folder/ more").expect(2).says("this is a folder");
    folder.run("cp -f raw pc.raw -r to-folder/ more").expect(0);
    assert_eq!(folder.read("more/to-folder/file"), b"in it");
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    let Some(folder) = of_ext(|top| {
        fs::create_dir(top.join("a")).unwrap();
        fs::write(top.join("a/1"), vec![7; 100_000]).unwrap();
        for name in ["2", "a/3"] {
            fs::hard_link(top.join("a/1"), top.join(name)).unwrap();
        }
        set_mode(&top.join("2"), 0o640);
        set_past(&top.join("2"));
    }) else {
        return;
    };
    let file = |path: &str| fs::metadata(folder.file(path)).unwrap();
    folder.run("cp -f raw pc.raw 2 new").expect(0);
    assert_eq!(file("new").nlink(), 1);
    let run = folder.run("cp -f raw pc.raw -r / out").expect(0);
    run.prints("copied 3 files, 2 folders, 0 links: 100000 bytes");
    let first = file("out/a/1");
    for name in ["out/2", "out/a/3"] {
        let other = file(name);
        let of =
            |file: &fs::Metadata| (file.ino(), file.nlink(), file.mode() & 0o7777, file.mtime());
        assert_eq!(of(&other), (first.ino(), 3, 0o640, 1_000_000_000), "{name}");
    }
    assert_eq!(folder.read("out/2"), vec![7; 100_000]);
}

#[test]
fn another_file_in_the_place_of_the_first_name_is_not_taken_for_it() {
    let Some(folder) = of_ext(|top| {
        fs::create_dir(top.join("a")).unwrap();
        fs::write(top.join("a/0 first"), "first").unwrap();
        fs::write(top.join("a/1 much"), vec![7; 64 << 20]).unwrap();
        fs::hard_link(top.join("a/0 first"), top.join("a/2 little")).unwrap();
    }) else {
        return;
    };
    fs::write(folder.file("mine"), "mine!").unwrap();
    let child = stopped(&folder);
    fs::remove_file(folder.file("out/a/0 first")).unwrap();
    fs::hard_link(folder.file("mine"), folder.file("out/a/0 first")).unwrap();
    signal(&child, "CONT");
    Run::of(child.wait_with_output().unwrap()).expect(0).says("1 further name of files");
    assert_eq!(folder.read("out/a/2 little"), b"first");
    assert_eq!(fs::metadata(folder.file("mine")).unwrap().nlink(), 2);
}

#[test]
fn owners_special_permissions_and_devices_are_for_who_asks() {
    let Some(folder) = of_ext(|top| {
        fs::create_dir(top.join("a")).unwrap();
        fs::write(top.join("a/run"), "run").unwrap();
        symlink("run", top.join("a/link")).unwrap();
        run_in(top, "mkfifo a/pipe");
        set_mode(&top.join("a/run"), 0o4755);
        set_mode(&top.join("a"), 0o1777);
    }) else {
        return;
    };
    // As a volume of another machine has them; the tool for it needs no root.
    let lines = [
        "sif /a/run uid 70000",
        "sif /a/run gid 80000",
        "sif /a/link uid 70000",
        "cd /a",
        "mknod zero c 1 5",
    ];
    for line in lines {
        let line = format!("cd /a\n{line}\n");
        fs::write(folder.file("commands"), line).unwrap();
        run("debugfs", &["-w", "-f", "commands", "pc.raw"], &folder);
    }
    folder
        .run("cp -f raw pc.raw -r a out")
        .expect(8)
        .says("/a/pipe: a fifo is not copied without --devices")
        .says("/a/zero: a character device is not copied without --devices")
        .says("are not set without --owners");
    let own = fs::metadata(folder.file("out")).unwrap().uid();
    let facts = |path: &str| {
        let file = fs::symlink_metadata(folder.file(path)).unwrap();
        (file.uid(), file.gid(), file.mode() & 0o7777)
    };
    assert_eq!((facts("out/a/run").0, facts("out/a/run").2), (own, 0o755));
    assert_eq!(facts("out/a").2, 0o777);
    fs::create_dir(folder.file("all")).unwrap();
    let line = "cp -f raw pc.raw -r a all --owners --devices";
    if own == 0 {
        folder.run(line).expect(0).prints("1 file, 1 folder, 1 link, 2 special files");
        assert_eq!(facts("all/a/run"), (70_000, 80_000, 0o4755));
        assert_eq!(facts("all/a/link").0, 70_000);
        assert_eq!(facts("all/a").2, 0o1777);
        let zero = fs::symlink_metadata(folder.file("all/a/zero")).unwrap();
        assert!(zero.file_type().is_char_device());
        assert_eq!(zero.rdev(), 0x105);
        let pipe = fs::symlink_metadata(folder.file("all/a/pipe")).unwrap();
        assert!(pipe.file_type().is_fifo());
    }
    // Who may not give files away gives no special permissions in their own name.
    fs::create_dir(folder.file("others")).unwrap();
    set_mode(&folder.file("others"), 0o777);
    set_mode(&folder.file("pc.raw"), 0o644);
    as_other_user(&folder, "avhdx cp -f raw pc.raw -r a others --owners --devices")
        .expect(8)
        .says("cannot be set; the first: others/a")
        .says("others/a/zero: this machine refuses it");
    assert_eq!(facts("others/a/run").2, 0o755);
    assert!(folder.file("others/a/pipe").exists());
}

/// Runs a line of a shell in a folder.
fn run_in(folder: &Path, line: &str) {
    assert!(Command::new("sh").args(["-c", line]).current_dir(folder).status().unwrap().success());
}

/// A volume of NTFS, mounted as `top`.
pub(super) struct Mounted<'a>(&'a Folder);

impl<'a> Mounted<'a> {
    /// Makes the volume as `pc.raw`; `None` where nothing can be mounted.
    pub(super) fn new(folder: &'a Folder) -> Option<Self> {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("NOT TESTED: NTFS, because nothing can be mounted without /dev/fuse");
            return None;
        }
        fs::File::create(folder.file("pc.raw")).unwrap().set_len(8 << 20).unwrap();
        fs::create_dir(folder.file("top")).unwrap();
        let line = "mkfs.ntfs -q -F -Q pc.raw && ntfs-3g -o streams_interface=windows pc.raw top";
        let made = folder.in_shell(line).output().unwrap();
        let is_needed = std::env::var_os("AVHDX_INTEROP").is_some();
        assert!(made.status.success() || !is_needed, "{made:?}");
        made.status.success().then_some(Self(folder))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("top").current_dir(self.0.path()).status());
    }
}

#[test]
fn streams_that_are_not_copied_are_told_once() {
    let folder = Folder::new();
    let Some(mounted) = Mounted::new(&folder) else { return };
    for name in ["file", "file:one", "file:two", "plain"] {
        fs::write(folder.file("top").join(name), name).unwrap();
    }
    drop(mounted);
    let told = "2 alternate data streams are not copied";
    let done = folder.run("cp -f raw pc.raw -r / out").expect(0).says(told);
    assert_eq!(done.stderr.matches("alternate").count(), 1);
    let done = folder.run("cp -f raw pc.raw plain file:one out").expect(8);
    assert!(!done.stderr.contains("alternate"), "{}", done.stderr);
    assert_eq!(folder.read("out/file:one"), b"file:one");
    for (path, bytes) in [
        ("file", "file"),
        ("file::$DATA", "file"),
        ("file::$data", "file"),
        ("file:one", "file:one"),
        ("file:one:$DATA", "file:one"),
    ] {
        let run = Run::of(folder.command(["cat", "-f", "raw", "pc.raw", path]).output().unwrap());
        assert_eq!(run.expect(0).stdout, bytes.as_bytes(), "{path}");
    }
    folder.run("cat -f raw pc.raw file:one:$BITMAP").expect(2);
    fs::create_dir(folder.file("more")).unwrap();
    folder.run("cp -f raw pc.raw file::$DATA file:two:$DATA more").expect(0);
    assert_eq!(folder.read("more/file"), b"file");
    assert_eq!(folder.read("more/file:two"), b"file:two");
}

#[test]
fn a_host_without_permissions_and_unnamed_files_gets_whole_copies() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    let Some(_mounted) = Mounted::new(&folder) else { return };
    folder.run("cp pc.vhdx -r logs notes.txt top").expect(0).prints("2 files, 1 folder, 0 links");
    let names = |path: &str| {
        let entries = fs::read_dir(folder.file(path)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("top"), ["logs", "notes.txt"]);
    assert_eq!(names("top/logs"), ["today.txt"]);
    assert_eq!(folder.read("top/logs/today.txt"), [b'x'; 5000]);
    folder.run("cp pc.vhdx notes.txt top").expect(7).says("something else has this name");
    assert_eq!(names("top"), ["logs", "notes.txt"]);
}

#[test]
fn folders_that_differ_in_case_alone_do_not_become_one() {
    if !Path::new("/dev/fuse").exists() {
        eprintln!(
            "NOT TESTED: a host that ignores case, because nothing can be mounted without /dev/fuse"
        );
        return;
    }
    let Some(folder) = of_ext(|top| {
        for (name, file) in [("Logs", "one"), ("logs", "two")] {
            fs::create_dir(top.join(name)).unwrap();
            fs::write(top.join(name).join(file), name).unwrap();
        }
    }) else {
        return;
    };
    fs::File::create(folder.file("ntfs.raw")).unwrap().set_len(8 << 20).unwrap();
    fs::create_dir(folder.file("top")).unwrap();
    let line = "mkfs.ntfs -q -F -Q ntfs.raw && lowntfs-3g -o ignore_case ntfs.raw top";
    assert!(folder.in_shell(line).status().unwrap().success());
    let _mounted = Mounted(&folder);
    for n in 0..2 {
        // One of them may be there from before.
        let run = folder.run("cp -f raw pc.raw -r / top").expect(8);
        let run = run.says("top/logs: something else has this name");
        assert_eq!(run.stderr.matches("something else").count(), 1 + n, "{}", run.stderr);
        assert_eq!(folder.read("top/Logs/one"), b"Logs");
        assert!(!folder.file("top/Logs/two").exists());
    }
}

#[test]
fn a_umask_that_takes_all_away_is_for_files_alone_that_have_no_permissions() {
    let folder = of(volume());
    fs::create_dir(folder.file("out")).unwrap();
    set_mode(&folder.file("out"), 0o777);
    as_other_user(&folder, "sh -c 'umask 0777; avhdx cp pc.vhdx -r logs notes.txt out'").expect(0);
    assert_eq!(mode(&folder.file("out/logs")), 0);
    assert_eq!(mode(&folder.file("out/notes.txt")), 0);
    set_mode(&folder.file("out/logs"), 0o700);
    assert_eq!(fs::read_dir(folder.file("out/logs")).unwrap().count(), 1);
}

#[test]
fn two_copies_at_once_give_each_file_once() {
    let Some(folder) = of_much() else { return };
    let children = [stopped(&folder), {
        let args = ["cp", "-f", "raw", "pc.raw", "-r", "a", "out"];
        folder.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }];
    let [first, second] = children;
    Run::of(second.wait_with_output().unwrap()).expect(0).prints("copied 3 files, 1 folder");
    signal(&first, "CONT");
    Run::of(first.wait_with_output().unwrap()).expect(8).prints("copied 0 files, 1 folder");
    assert_eq!(folder.read("out/a/2 little"), b"little");
    assert_eq!(folder.read("out/a/4 sub/file"), b"below");
    let names = |path: &str| fs::read_dir(folder.file(path)).unwrap().count();
    assert_eq!((names("out"), names("out/a"), names("out/a/4 sub")), (1, 4, 1));
    assert_eq!(mode(&folder.file("out/a")), 0o750);
}

#[test]
fn a_lying_name_with_a_slash_does_not_meet_another_folder() {
    let mut disk = std::io::Cursor::new(volume());
    let fat = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
    fat.root_dir().create_dir("logs/b").unwrap();
    fat.root_dir().create_dir("logsXb and on").unwrap();
    fat.root_dir().create_file("logsXb and on/inner").unwrap();
    fat.unmount().unwrap();
    let mut lying = disk.into_inner();
    rename(&mut lying, "logsX", "logs/");
    let folder = of(lying);
    folder.run("cp pc.vhdx -r / out").expect(8).says("no name for a file here");
    assert_eq!(fs::read_dir(folder.file("out/logs")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(folder.file("out")).unwrap().count(), 2);
}
