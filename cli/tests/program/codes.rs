//! Exit codes, locks, logs and pipes: the behaviour that scripts depend on.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use crate::common::{Folder, Run, flats, guid};
use avhdx_testkit::build::{Block, Checksum, Data, Image, LogEntry};
use avhdx_testkit::qemu::Qemu;
use serde_json::Value;
use uuid::Uuid;

#[test]
fn wrong_arguments_exit_with_2() {
    let folder = Folder::with_chain();
    folder.run("").expect(2);
    folder.run("merge --frob l2.vhdx").expect(2).says("\n  next: avhdx merge --help\n");
    folder.run("frob").expect(2).says("\n  next: avhdx --help\n");
    let run = folder.run("merge --frob l2.vhdx --json").expect(2);
    assert_eq!(run.error()["next"], serde_json::json!(["avhdx merge --help"]));
    folder.run("read").expect(2).says("<IMAGE>");
    folder.run("read l2.vhdx --offset 7M").expect(2).says("do not lie within the disk");
    folder.run("read l2.vhdx --length 1X").expect(2).says("64M, 10GiB or 1.5T");
    folder.run("read l2.vhdx --length 7M").expect(2).says("do not lie within the disk");
    folder.run("read l2.vhdx --offset 16777215T --length 16777215T").expect(2);
    folder.run("explain l2.vhdx 6M").expect(2).says("do not lie");
    folder.run("convert l2.vhdx -O vdi out").expect(2);
    folder.run("measure l2.vhdx --block-size 3M").expect(2).says("power of two");
    folder.run("--help").expect(0).prints("Exit codes:");
    folder.run("--version").expect(0).prints("avhdx ");
}

#[test]
fn read_takes_sizes_in_units() {
    let folder = Folder::with_chain();
    let flat = &flats()[2];
    let run = folder.run("read l2.vhdx --offset 4K --length 0x201").expect(0);
    assert!(run.stdout == flat[4096..4096 + 0x201]);
    let run = folder.run("read l2.vhdx --offset 1M --length 3M").expect(0);
    assert!(run.stdout == flat[1 << 20..4 << 20]);
    assert_eq!(folder.run("read l2.vhdx --offset 6M --length 0").expect(0).stdout, b"");
    assert!(folder.run("read l2.vhdx").expect(0).stdout == flats()[2]);
    assert!(folder.run("read l2.vhdx --offset 5M").expect(0).stdout == flats()[2][5 << 20..]);
    assert_eq!(folder.run("read l2.vhdx --offset 6M").expect(0).stdout, b"");
}

#[test]
fn files_that_cannot_be_opened() {
    let folder = Folder::new();
    folder.run("info nothing.vhdx").expect(3).says("nothing.vhdx");
    fs::write(folder.file("text"), "no image at all").unwrap();
    let run = folder.run("info text").expect(4).says("vhdxfile");
    assert!(!run.stderr.contains("-f raw"), "a text file is not a disk: {}", run.stderr);
    assert_eq!(folder.run("read text -f raw --offset 3 --length 5").expect(0).stdout, b"image");
    folder.run("read . -f raw --length 1").expect(2).says("a folder");
}

#[test]
fn raw_is_never_probed() {
    let folder = Folder::with_chain();
    let run = folder.run("read l0.vhdx -f raw --length 8").expect(0);
    assert_eq!(run.stdout, b"vhdxfile");
    let map = folder.run("map l0.vhdx -f raw --json").expect(0).text();
    let lines: Vec<Value> = map.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let length: u64 = lines.iter().map(|line| line["length"].as_u64().unwrap()).sum();
    assert_eq!(length, fs::metadata(folder.file("l0.vhdx")).unwrap().len());
    assert!(lines.iter().all(|line| line["image"] == "l0.vhdx"));
    // Nor is a raw disk read as such without -f raw or a name for one.
    fs::write(folder.file("disk.bin"), &flats()[2]).unwrap();
    folder.run("compare l2.vhdx disk.bin").expect(4);
    folder.run("compare l2.vhdx disk.bin -F raw").expect(0).prints("the same");
    folder.run("compare disk.bin l2.vhdx -f raw").expect(0);
    fs::rename(folder.file("disk.bin"), folder.file("disk.RAW")).unwrap();
    folder.run("compare disk.RAW l2.vhdx").expect(0).prints("the same");
    // Where name and bytes contradict each other, only the user knows.
    fs::copy(folder.file("l0.vhdx"), folder.file("l0.img")).unwrap();
    folder.run("read l0.img --length 8").expect(2).says("the name is for a raw disk");
    assert_eq!(folder.run("read l0.img -f raw --length 8").expect(0).stdout, b"vhdxfile");
    assert!(folder.run("read l0.img -f vhdx").expect(0).stdout == flats()[0]);
}

#[test]
fn damaged_and_unsupported_images() {
    let folder = Folder::new();
    let mut image = Image::dynamic(4 << 20);
    image.put(0, Block::full(Data::Pattern(1)));
    image.bat_override.insert(3, 4);
    image.write_to(folder.file("state4.vhdx"));
    folder.run("read state4.vhdx --length 1M").expect(0);
    folder.run("read state4.vhdx --length 4M").expect(4).says("state 4");
    folder.run("map state4.vhdx").expect(4).prints("data").says("[MS-VHDX 2.5.1.1]");
    let run = folder.run("explain state4.vhdx 3M").expect(4);
    run.prints("4, reserved").prints("cannot be read").says("state 4");
    // The facts can still be shown.
    folder.run("info state4.vhdx").expect(0).prints("reserved");

    let mut image = Image::dynamic(1 << 20);
    image.add_region(Uuid::from_u128(77), true, vec![1]);
    image.write_to(folder.file("region.vhdx"));
    folder.run("read region.vhdx --length 1").expect(7).says(&Uuid::from_u128(77).to_string());

    let mut image = Image::dynamic(1 << 20);
    image.headers[0].as_mut().unwrap().signature = *b"dead";
    image.write_to(folder.file("header.vhdx"));
    let run = folder.run("info header.vhdx").expect(0).prints("header 1 is not valid");
    run.prints("2 at 0x20000, current");
}

#[test]
fn compare_exits_with_1_if_disks_differ() {
    let folder = Folder::with_chain();
    let mut flat = flats().remove(2);
    flat[5_000_000] ^= 0x40;
    fs::write(folder.file("other.raw"), &flat).unwrap();
    let run = folder.run("compare l2.vhdx other.raw -F raw").expect(1);
    run.prints("The disks differ at byte 5000000 (0x4c4b40):").prints("0x00").prints("0x40");

    flat[5_000_000] ^= 0x40;
    flat.resize(7 << 20, 0);
    fs::write(folder.file("longer.raw"), &flat).unwrap();
    let run = folder.run("compare l2.vhdx longer.raw -F raw").expect(1);
    run.prints("the same content; the rest of the longer one is zeros").prints("sizes differ");
    folder.run("compare l2.vhdx longer.raw -F raw --ignore-size").expect(0);
    folder.run("compare longer.raw l2.vhdx -f raw --ignore-size").expect(0);

    flat[(6 << 20) + 5] = 9;
    fs::write(folder.file("tail.raw"), &flat).unwrap();
    let run = folder.run("compare l2.vhdx tail.raw -F raw --ignore-size --json").expect(1);
    let difference = &run.json()["first_difference"];
    assert_eq!(difference["offset"], (6 << 20) + 5);
    assert!(difference["value_a"].is_null());
    assert_eq!(difference["value_b"], 9);
}

/// An image before and after block 1 gets pattern 6, and one with that change pending in the log.
fn dirty() -> (Image, Image, Image) {
    let mut before = Image::dynamic(4 << 20);
    crate::common::name(&mut before, 5);
    before.put(0, Block::full(Data::Pattern(5)));
    let mut after = before.clone();
    after.put(1, Block::full(Data::Pattern(6)));
    let dirty = Image::dirty(&before, &after, guid(8), 10);
    (before, after, dirty)
}

#[test]
fn a_log_that_is_damaged_before_intact_entries_is_told_everywhere() {
    let folder = Folder::new();
    let (_, _, mut image) = dirty();
    let first = image.log[0].clone();
    let number = first.sequence_number;
    for (n, checksum) in [(1, Checksum::Wrong), (2, Checksum::Right)] {
        let descriptors = first.descriptors.clone();
        let mut entry = LogEntry::new(number + n, descriptors);
        entry.checksum = checksum;
        image.log.push(entry);
    }
    image.write_to(folder.file("a.vhdx"));
    let at = format!("{:#x}", image.layout().get("log_entry:1").start);

    let damaged =
        "log.gap: the log is damaged where a replay needs it, and newer entries lie behind";
    let last = number + 2;
    folder
        .run("check a.vhdx")
        .expect(0)
        .prints("DOUBTFUL, although no rule is broken")
        .prints(&format!("{damaged} at {at}"))
        .prints(&format!("found 1 newer intact entry of this log behind it, up to {last}"))
        .prints(&format!("found 1 entry, {number} to {number}"))
        .prints("What was flushed after the damaged entry is lost once the log is replayed");
    let json = folder.run("check a.vhdx --json").expect(0).json();
    assert_eq!((&json["sound"], &json["doubtful"]), (&true.into(), &true.into()));
    folder.run("info a.vhdx").expect(0).prints(&at).prints("1 newer intact entry not replayed");
    let json = folder.run("info a.vhdx --json").expect(0).json();
    let gap = serde_json::json!({
        "file_offset": image.layout().get("log_entry:1").start,
        "newer_entries": 1,
        "newest_sequence": number + 2,
    });
    assert_eq!(json["log"]["gap"], gap);
    // Whoever writes replays the log, and is told.
    let write = folder.run_with("write a.vhdx --offset 0", b"x").expect(0);
    write.says("THE LOG IS DAMAGED at").says("is lost");
}

#[test]
fn log_policies() {
    let folder = Folder::new();
    let (before, after, dirty) = dirty();
    dirty.write_to(folder.file("dirty.vhdx"));
    let bytes = folder.read("dirty.vhdx");

    let run = folder.run("read dirty.vhdx --length 4M").expect(0);
    assert!(run.stdout == after.flat(None));
    let run = folder.run("read dirty.vhdx --length 4M --log refuse").expect(7).says("--log replay");
    assert!(run.stdout.is_empty());
    let run = folder.run("read dirty.vhdx --length 4M --log ignore").expect(0);
    assert!(run.stdout == before.flat(None));
    run.says("THE LOG IS IGNORED");

    let info = folder.run("info dirty.vhdx --json").expect(0).json();
    let log = &info["log"];
    let number = dirty.log[0].sequence_number;
    assert_eq!(log["state"], "replayed");
    assert_eq!(info["log_pending"], true);
    assert_eq!(log["entries"], 1);
    assert_eq!(log["tail_sequence"], number);
    assert_eq!(log["descriptors"], dirty.log[0].descriptors.len());
    folder.run("info dirty.vhdx").expect(0).prints("PENDING, replayed in memory");
    folder.run("info dirty.vhdx --log ignore").expect(0).prints("PENDING, ignored on request");

    // The table entry comes from the log, the payload does not.
    let explained = folder.run("explain dirty.vhdx 1M --json").expect(0).json();
    let layer = &explained["layers"][0];
    assert_eq!(layer["block"]["bat_entry"]["log_entry"], number);
    assert!(layer["log_entry"].is_null());
    assert_eq!(layer["verdict"], "data");
    assert_eq!(explained["value"], after.flat(None)[1 << 20]);
    folder.run("explain dirty.vhdx 1M").expect(0).prints(&format!("(from log entry {number})"));
    assert!(folder.read("dirty.vhdx") == bytes, "reading changed the file");
}

#[test]
fn a_log_without_entries() {
    let folder = Folder::new();
    let mut image = dirty().0;
    image.set_log_guid(guid(8));
    image.write_to(folder.file("empty-log.vhdx"));
    folder.run("read empty-log.vhdx --length 1").expect(4).says("--log ignore");
    let run = folder.run("read empty-log.vhdx --length 4M --log ignore").expect(0);
    assert!(run.stdout == image.flat(None));
    // The facts that can be read are shown.
    let run = folder.run("info empty-log.vhdx").expect(4).prints("BROKEN, not replayed");
    run.prints("fully present").says("holds no valid entry");
    let run = folder.run("info empty-log.vhdx --json").expect(4);
    assert_eq!(run.json()["log"]["state"], "broken");
    assert_eq!(run.error()["code"], "log.no-entries");
}

#[test]
fn images_in_use() {
    let folder = Folder::with_chain();
    let held = File::options().read(true).write(true).open(folder.file("l2.vhdx")).unwrap();
    held.try_lock().unwrap();
    let run = folder.run("read l2.vhdx --length 1").expect(6);
    assert!(run.stdout.is_empty());
    run.says("avhdx info").says("read l2.vhdx@l1.vhdx --length 1\n");
    for line in
        ["map l2.vhdx", "explain l2.vhdx 0", "convert l2.vhdx -O raw out", "measure l2.vhdx"]
    {
        folder.run(line).expect(6);
    }
    folder.run("read l2.vhdx -f raw --length 1").expect(6);
    let run = folder.run("info l2.vhdx").expect(0).prints("IN USE").says("in use elsewhere");
    run.prints("complete      yes");
    assert_eq!(folder.run("info l2.vhdx --json").expect(0).json()["in_use"], true);
    // Layers below the tip do not change.
    folder.run("read l2.vhdx@-1 --length 1").expect(0);
    // A process that is just being started by another test may have the file too.
    held.unlock().unwrap();
    folder.run("read l2.vhdx --length 1").expect(0);
    assert_eq!(folder.run("info l2.vhdx --json").expect(0).json()["in_use"], false);

    // A writer of a parent counts too.
    let held = File::options().read(true).write(true).open(folder.file("l0.vhdx")).unwrap();
    held.try_lock().unwrap();
    folder.run("read l2.vhdx --length 1").expect(6).says("l0.vhdx");
    let info = folder.run("info l2.vhdx --chain --json").expect(0).json();
    let in_use: Vec<_> =
        info["chain"]["layers"].as_array().unwrap().iter().map(|l| l["in_use"].clone()).collect();
    assert_eq!(in_use, [false, false, true]);
}

#[test]
#[cfg(target_os = "linux")]
fn images_in_use_by_qemu() {
    let Some(qemu) = Qemu::find() else { return eprintln!("skipped: no qemu-io here") };
    let folder = Folder::new();
    qemu.create(&folder.file("disk.vhdx"), 64 << 20, &[]);
    let mut machine = Command::new("qemu-io")
        .args(["-f", "vhdx", "disk.vhdx"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = machine.stdin.take().unwrap();
    let mut screen = BufReader::new(machine.stdout.take().unwrap());
    writeln!(keys, "write -P 7 0 64k\nflush").unwrap();
    let mut line = String::new();
    while !line.contains("wrote 65536") {
        line.clear();
        assert_ne!(screen.read_line(&mut line).unwrap(), 0, "qemu-io ended");
    }
    folder.run("read disk.vhdx --length 1").expect(6).says("QEMU");
    folder.run("info disk.vhdx").expect(0).prints("IN USE").says("QEMU");
    writeln!(keys, "quit").unwrap();
    drop(keys);
    machine.wait().unwrap();
    assert_eq!(folder.run("read disk.vhdx --length 1").expect(0).stdout, [7]);
}

#[test]
fn a_closed_pipe_ends_the_program_silently() {
    let folder = Folder::with_chain();
    let image = Image::dynamic(8 << 30);
    image.write_to(folder.file("large.vhdx"));
    for line in ["read large.vhdx --length 8G", "convert large.vhdx -O raw -", "map l2.vhdx --json"]
    {
        let mut command = folder.command(line.split(' '));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 1];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let run = Run::of(child.wait_with_output().unwrap()).expect(0);
        assert_eq!(run.stderr, "", "{line}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let folder = Folder::with_chain();
    for line in ["read l2.vhdx --length 1M", "convert l2.vhdx -O raw -", "info l2.vhdx"] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = folder.command(line.split(' ')).stdout(full).output().unwrap();
        Run::of(output).expect(3).says("cannot write to standard output");
    }
}

#[test]
fn names_from_images_are_escaped() {
    let folder = Folder::new();
    let mut image = Image::dynamic(1 << 20);
    image.creator = "\u{1b}[2Jevil\u{202e}".encode_utf16().collect();
    image.write_to(folder.file("evil.vhdx"));
    let run = folder.run("info evil.vhdx").expect(0).prints(r"\u{1b}[2Jevil\u{202e}");
    assert!(!run.stdout.contains(&0x1b));
}

#[test]
fn completions_and_manual_pages() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        folder.run(&format!("completions {shell}")).expect(0).prints("measure");
    }
    folder.run("man").expect(0).prints(".TH avhdx 1").prints("IMAGE@SEL");
    folder.run("man convert").expect(0).prints(".TH avhdx-convert 1").prints("overwrite");
    folder.run("man frobnicate").expect(2);
}

#[test]
#[cfg(unix)]
fn an_interruption_exits_with_130() {
    let folder = Folder::new();
    File::create(folder.file("huge")).unwrap().set_len(1 << 40).unwrap();
    let mut command = folder.command("read huge -f raw --length 1T".split(' '));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Wait until the program is running; a full pipe then blocks it.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(text.contains("interrupted"), "{text}");
}

#[test]
fn vhd_sets_are_refused_by_name() {
    let folder = Folder::with_chain();
    fs::copy(folder.file("l0.vhdx"), folder.file("web.VHDS")).unwrap();
    for line in ["info web.VHDS", "read web.VHDS --length 1", "check web.VHDS", "tree web.VHDS"] {
        let run = folder.run(line);
        if line.starts_with("tree") {
            // A tree finds images by content, not by name.
            run.expect(0);
            continue;
        }
        let run = run.expect(7).says("VHD set").says("none lies beside it");
        run.says("next: avhdx tree --tips .");
    }
    for name in ["web_1.avhdx", "WEB_2.AVHDX", "other.avhdx", "web_3.vhdx"] {
        fs::copy(folder.file("l0.vhdx"), folder.file(name)).unwrap();
    }
    let run = folder.run("write web.VHDS --offset 0").expect(7);
    run.says("beside it: WEB_2.AVHDX, web_1.avhdx\n");
    let error = folder.run("read web.VHDS --length 1 --json").expect(7).error();
    assert_eq!(error["code"], "file.vhd-set");
    assert_eq!(error["kind"], "unsupported");
    assert_eq!(error["file"], "web.VHDS");
    // A missing file is reported as missing.
    folder.run("info nothing.vhds").expect(3).says("nothing.vhds: cannot open the file");
}

#[test]
fn refusals_suggest_commands_that_work() {
    let folder = Folder::with_chain();
    let run = folder.run_with("write l1.vhdx --offset 1M", &[1; 512]).expect(7);
    let run = run.says("next: avhdx create CHILD --parent l1.vhdx  # ");
    run.says("next: avhdx write l1.vhdx --offset 1M --orphan-children\n");
    // The printed command works.
    folder.run_with("write l1.vhdx --offset 1M --orphan-children", &[1; 512]).expect(0);
    let run = folder.run("read l2.vhdx --length 1 --parent-dir .").expect(5);
    let run = run.says("next: avhdx tree .  # ");
    run.says("next: avhdx read l2.vhdx --length 1 --parent-dir . --with-parent PARENT  # ");
    let run = folder.run("convert l0.vhdx -O vhdx l1.vhdx").expect(7);
    run.says("next: avhdx convert l0.vhdx -O vhdx l1.vhdx --overwrite  # ");
    let run = folder.run("convert l0.vhdx -O vhdx l0.vhdx --overwrite").expect(7);
    run.says("next: avhdx convert l0.vhdx -O vhdx OUT --overwrite  # OUT: another name");
}
