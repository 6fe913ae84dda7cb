//! `avhdx convert` to raw disks.

use std::fs;

use crate::common::{Folder, Run, flats, write_endless};
use avhdx_testkit::build::{Block, Data, Image};

#[test]
fn a_chain_becomes_a_sparse_file_or_a_stream() {
    let folder = Folder::with_chain();
    let before = folder.names();
    let run = folder.run("convert l2.vhdx -O raw out.raw --no-share").expect(0);
    run.prints("out.raw: 6291456 bytes (6 MiB), 2097152 bytes (2 MiB) written");
    assert!(folder.read("out.raw") == flats()[2]);
    let mut after = before.clone();
    after.push("out.raw".into());
    after.sort();
    assert_eq!(folder.names(), after);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let held = fs::metadata(folder.file("out.raw")).unwrap().blocks() * 512;
        assert!(held <= 3 << 20, "{held} bytes on the volume");
    }
    let run = folder.run("convert l2.vhdx -O raw -").expect(0);
    assert!(run.stdout == flats()[2]);
    assert_eq!(run.stderr, "");
}

#[test]
fn zeros_within_data_are_not_written() {
    let folder = Folder::new();
    let mut bytes = vec![0; 1 << 20];
    bytes[8192] = 1;
    bytes[(1 << 20) - 1] = 2;
    let mut image = Image::dynamic(2 << 20);
    image.put(0, Block::full(Data::Bytes(bytes)));
    image.put(1, Block::full(Data::Zeros));
    image.write_to(folder.file("a.vhdx"));
    let run = folder.run("convert a.vhdx -O raw a.raw --no-share --json").expect(0);
    assert_eq!(run.json()["written"], 2 * 4096);
    assert!(folder.read("a.raw") == image.flat(None));
}

#[test]
fn raw_disks_and_empty_disks_are_copied() {
    let folder = Folder::new();
    let mut bytes = vec![0; 100_000];
    bytes[99_999] = 1;
    fs::write(folder.file("in"), &bytes).unwrap();
    folder.run("convert in -f raw -O raw out").expect(0);
    assert!(folder.read("out") == bytes);
    fs::write(folder.file("none"), b"").unwrap();
    folder.run("convert none -f raw -O raw none.out").expect(0);
    assert_eq!(folder.read("none.out"), b"");
}

#[test]
fn an_existing_file_is_replaced_with_overwrite_only() {
    let folder = Folder::with_chain();
    fs::write(folder.file("out"), "precious").unwrap();
    folder.run("convert l2.vhdx -O raw out").expect(7).says("the file exists").says("--overwrite");
    assert_eq!(folder.read("out"), b"precious");
    folder.run("convert l2.vhdx -O raw out --overwrite").expect(0);
    assert!(folder.read("out") == flats()[2]);
    // A file in use is not replaced.
    let held = fs::File::open(folder.file("out")).unwrap();
    held.try_lock_shared().unwrap();
    folder.run("convert l2.vhdx -O raw out --overwrite").expect(6);
}

#[test]
fn the_input_is_never_replaced() {
    let folder = Folder::with_chain();
    let (tip, base) = (folder.read("l2.vhdx"), folder.read("l0.vhdx"));
    let mut names = vec!["l2.vhdx", "l0.vhdx"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("l0.vhdx", folder.file("link")).unwrap();
        fs::hard_link(folder.file("l0.vhdx"), folder.file("hard")).unwrap();
        names.extend(["link", "hard"]);
    }
    for out in names {
        let run = folder.run(&format!("convert l2.vhdx -O raw {out} --overwrite --json")).expect(7);
        assert_eq!(run.error()["code"], "output.is-input", "{out}");
    }
    assert!(folder.read("l2.vhdx") == tip && folder.read("l0.vhdx") == base);
}

#[test]
fn only_regular_files_are_replaced() {
    let folder = Folder::with_chain();
    fs::create_dir(folder.file("dir")).unwrap();
    folder
        .run("convert l2.vhdx -O raw dir --overwrite")
        .expect(7)
        .says("this is a folder, not a file");
    folder.run("convert l2.vhdx -O raw nowhere/out").expect(3).says("nowhere/out");
    #[cfg(unix)]
    {
        folder.run("convert l2.vhdx -O raw /dev/null --overwrite").expect(7);
        std::os::unix::fs::symlink("gone", folder.file("link")).unwrap();
        folder.run("convert l2.vhdx -O raw link --overwrite").expect(7).says("a dangling link");
        // A valid link stays a link.
        fs::write(folder.file("real"), "old").unwrap();
        std::os::unix::fs::symlink("real", folder.file("to-real")).unwrap();
        folder.run("convert l2.vhdx -O raw to-real --overwrite").expect(0);
        assert!(fs::symlink_metadata(folder.file("to-real")).unwrap().is_symlink());
        assert!(folder.read("real") == flats()[2]);
    }
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = Folder::new();
    let mut image = Image::dynamic(8 << 20);
    image.put(0, Block::full(Data::Pattern(1)));
    image.bat_override.insert(7, 4);
    image.write_to(folder.file("bad.vhdx"));
    folder.run("convert bad.vhdx -O raw out").expect(4).says("state 4");
    assert_eq!(folder.names(), ["bad.vhdx"]);
    fs::write(folder.file("out"), "precious").unwrap();
    folder.run("convert bad.vhdx -O raw out --overwrite").expect(4);
    assert_eq!(folder.names(), ["bad.vhdx", "out"]);
    assert_eq!(folder.read("out"), b"precious");
}

#[test]
#[cfg(unix)]
fn an_interruption_leaves_nothing_behind() {
    use std::process::{Command, Stdio};
    let folder = Folder::new();
    write_endless(&folder.file("huge"));
    for signal in ["-INT", "-TERM"] {
        let mut command = folder.command("convert huge -O raw out --json".split(' '));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while !folder.is_written_to(&child) {
            std::thread::yield_now();
        }
        let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let run = Run::of(child.wait_with_output().unwrap()).expect(130);
        assert_eq!(run.error()["code"], "interrupted");
        assert_eq!(folder.names(), ["huge"]);
    }
}

#[test]
fn the_ending_of_the_name_decides_and_is_not_contradicted() {
    let folder = Folder::with_chain();
    let is_image = |name: &str| folder.read(name).starts_with(b"vhdxfile");
    for (name, image) in [("a.vhdx", true), ("B.VHDX", true), ("c.raw", false), ("D.Img", false)] {
        let run = folder.run(&format!("convert l2.vhdx {name}")).expect(0);
        assert_eq!(run.stderr, "", "{name}");
        assert_eq!(is_image(name), image, "{name}");
    }
    for name in ["plain", "web.v2", "disk.vhdx.bak"] {
        folder.run(&format!("convert l2.vhdx {name}")).expect(0).says("made as VHDX");
        assert!(is_image(name), "{name}");
    }
    assert!(folder.run("convert l2.vhdx -").expect(0).stdout == flats()[2]);
    let before = folder.names();
    for (line, says) in [
        ("-O raw x.vhdx", "a VHDX image"),
        ("-O vhdx x.raw", "a raw disk"),
        ("-O vhdx-fixed x.IMG", "a raw disk"),
        ("x.avhdx", "a child"),
        ("-O raw x.avhdx", "the file would be a raw disk"),
        ("-O vhdx x.vhd", "a VHD image"),
        ("-O vhd x.vhdx", "the file would be a VHD image"),
        ("-O vhd-fixed x.raw", "the file would be a VHD image"),
        ("x.vdi", "a VDI image"),
        ("x.qcow", "a qcow image"),
        ("x.qed", "a QED image"),
        ("x.hds", "a Parallels image"),
        ("-O raw x.QCOW2", "a qcow2 image"),
        ("-O qcow2 x.vhd", "the file would be a qcow2 image"),
        ("x.vmdk", "a VMDK image"),
        ("x.vhds", "a VHD set"),
    ] {
        folder.run(&format!("convert l2.vhdx {line}")).expect(2).says(says);
        assert_eq!(folder.names(), before, "{line}");
    }
    folder.run("convert l2.vhdx -O raw x.vhdx --any-name").expect(0);
    assert!(folder.read("x.vhdx") == flats()[2]);
    // A known ending still says what is made.
    folder.run("convert l2.vhdx y.raw --any-name").expect(0);
    assert!(folder.read("y.raw") == flats()[2]);
    folder.run("convert l2.vhdx y.avhdx --any-name").expect(0);
    assert!(is_image("y.avhdx"));
    // What exists or is read is the first concern.
    folder.run("convert l2.vhdx -O vhdx y.raw").expect(7).says("the file exists");
    folder.run("convert l2.vhdx -O raw l0.vhdx --overwrite").expect(7).says("the input");
    folder.run("convert l2.vhdx -O vhdx y.raw --overwrite").expect(2).says("a raw disk");
}

#[test]
fn an_empty_file_makes_no_image() {
    let folder = Folder::new();
    fs::write(folder.file("empty"), "").unwrap();
    for format in ["vhdx", "vhdx-fixed"] {
        let run = folder.run(&format!("convert -f raw -O {format} empty o.vhdx")).expect(2);
        run.says("empty: the file is empty").says("next: avhdx convert --help");
    }
    assert_eq!(folder.names(), ["empty"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_that_tells_no_length_is_called_by_its_content() {
    let run = Folder::new().run("info /proc/version").expect(4).says("this is a text file");
    assert!(!run.stderr.contains("empty"), "{}", run.stderr);
}

#[test]
#[cfg(unix)]
fn a_name_of_a_folder_is_refused_before_anything_is_read() {
    let folder = Folder::with_chain();
    for line in ["convert -f raw - d.raw/", "convert l2.vhdx d.vhdx/", "create d.vhdx/ 4M"] {
        let run = folder.run_with(line, b"input").expect(7);
        run.says("the name of a folder, not of a file");
    }
}

#[test]
#[cfg(unix)]
fn what_is_no_file_is_called_by_its_name() {
    let folder = Folder::with_chain();
    fs::create_dir(folder.file("dir.vhdx")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(folder.file("fifo.vhdx")).status();
    assert!(made.unwrap().success());
    drop(std::os::unix::net::UnixListener::bind(folder.file("socket.vhdx")).unwrap());
    std::os::unix::fs::symlink("/dev/null", folder.file("device.vhdx")).unwrap();
    let before = folder.names();
    for (name, what) in [
        ("dir.vhdx", "this is a folder"),
        ("fifo.vhdx", "this is a FIFO"),
        ("socket.vhdx", "this is a socket"),
        ("device.vhdx", "this is a device"),
    ] {
        for line in [
            format!("info {name}"),
            format!("read {name} --length 1"),
            format!("write {name} --offset 0"),
            format!("check {name}"),
            format!("compare l0.vhdx {name}"),
            format!("merge {name}"),
            format!("reparent {name} --onto l1.vhdx"),
            format!("reparent l2.vhdx --onto {name}"),
            format!("label {name}@-1 text"),
            format!("revert {name}@-1"),
            format!("checkpoint {name}"),
            format!("create new.avhdx --parent {name}"),
        ] {
            folder.run(&line).expect(4).says(what);
        }
        for line in
            [format!("convert l0.vhdx {name} --overwrite"), format!("create {name} 4M --overwrite")]
        {
            folder.run(&line).expect(7).says(what);
        }
        let run = folder.run(&format!("checkpoint l2.vhdx --path {name}")).expect(7);
        run.says(&what.replace("this is", "found"));
        folder.run(&format!("read {name} -f raw --length 1")).expect(2).says(what);
        assert_eq!(folder.names(), before, "{name}");
    }
}

#[test]
#[cfg(unix)]
fn a_file_without_room_is_said_first_and_nothing_is_left() {
    let folder = Folder::with_chain();
    let before = folder.names();
    let program = env!("CARGO_BIN_EXE_avhdx");
    for out in ["out.raw", "out.vhdx"] {
        let line = format!("trap '' XFSZ; ulimit -f 64; '{program}' convert l2.vhdx {out}");
        let mut shell = std::process::Command::new("bash");
        let output = shell.args(["-c", &line]).current_dir(folder.path()).output().unwrap();
        let run = Run::of(output).expect(3);
        let first = run.stderr.lines().next().unwrap();
        assert!(
            first.starts_with(&format!("avhdx: {out}: the file may not be that long: ")),
            "{first}"
        );
        assert!(first.contains("the unfinished file is removed"), "{first}");
        assert_eq!(folder.names(), before, "{out}");
    }
}

/// Programs that write to a raw disk or to an image of another format need not look at our locks.
#[test]
fn a_file_that_changes_while_it_is_copied_is_no_copy() {
    let folder = Folder::new();
    fs::write(folder.file("in.raw"), vec![7; 64 << 20]).unwrap();
    let (input, reader) = (folder.file("in.raw"), folder.file("pipe"));
    let made = std::process::Command::new("mkfifo").arg(&reader).status().unwrap();
    assert!(made.success());
    let writer = std::thread::spawn(move || {
        use std::io::Read;
        let mut pipe = fs::File::open(reader).unwrap();
        let mut bytes = vec![0; 1 << 20];
        pipe.read_exact(&mut bytes).unwrap();
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().write(true).open(input).unwrap();
        file.write_all_at(b"new", 60 << 20).unwrap();
        pipe.read_to_end(&mut bytes).unwrap();
    });
    let run = Run::of(folder.in_shell("avhdx convert in.raw - > pipe").output().unwrap());
    writer.join().unwrap();
    run.expect(6).says("in.raw: the file changed while it was read");
}
