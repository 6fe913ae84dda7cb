//! A verb changes nothing before it is known to succeed, and reports success even if its output is lost.

use std::fs;

use crate::common::{Folder, chain, guid, mark};
use avhdx_testkit::build::{Block, Data, Image, write_chain};

const MIB: u64 = 1 << 20;

/// Commands that the chain does not allow, with their exit codes.
const IMPOSSIBLE: &[(&str, i32)] = &[
    ("zero l2.vhdx --offset 64T --length 1", 2),
    ("discard l2.vhdx --offset 64T --length 1", 2),
    ("write l2.vhdx --offset 64T", 2),
    ("checkpoint l2.vhdx --path l0.vhdx", 7),
    ("checkpoint l2.vhdx --path none/x.avhdx", 3),
    ("checkpoint l2.vhdx@-1", 7),
    ("merge l2.vhdx@base", 2),
    ("merge l2.vhdx --into never", 2),
];

/// A chain whose tip has a pending log.
fn dirty() -> Folder {
    let folder = Folder::new();
    let mut images = chain();
    let mut tip = images.pop().unwrap();
    let before = tip.clone();
    tip.put(3, Block::full(Data::Pattern(6)));
    images.push(Image::dirty(&before, &tip, guid(8), 10));
    write_chain(folder.path(), &images);
    folder
}

/// A chain whose tip lost half of its last block.
fn cut() -> Folder {
    let folder = Folder::with_chain();
    let file = fs::File::options().write(true).open(folder.file("l2.vhdx")).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - MIB / 2).unwrap();
    folder
}

fn contents(folder: &Folder) -> Vec<(String, Vec<u8>)> {
    let names = folder.names().into_iter();
    let files = names.filter(|name| folder.file(name).is_file());
    files.map(|name| (name.clone(), folder.read(&name))).collect()
}

#[test]
fn a_dry_run_replays_no_log_and_removes_no_draft() {
    for line in [
        "checkpoint l2.vhdx --dry-run",
        "merge l2.vhdx --dry-run",
        "revert l2.vhdx@-1 --dry-run",
        "revert l2.vhdx@-1 --delete-newer --dry-run",
        "reparent l2.vhdx --onto l1.vhdx --dry-run",
        "rebase l2.vhdx --onto l0.vhdx --dry-run",
        "metadata l2.vhdx --disk-id new --dry-run",
        "relink . --dry-run",
        "repair l2.vhdx --dry-run",
        "resize l2.vhdx +1M --dry-run",
        "resize l2.vhdx 1M --shrink --dry-run",
    ] {
        let folder = dirty();
        let before = contents(&folder);
        folder.run(line).expect(0);
        assert!(contents(&folder) == before, "{line}");
    }
}

#[test]
fn a_verb_that_is_refused_replays_no_log() {
    let more = [
        ("merge --resume l2.vhdx", 2),
        ("revert l2.vhdx", 2),
        ("revert l2.vhdx@-1 --path l0.vhdx", 7),
        ("resize l2.vhdx 3M", 7),
        ("resize l2.vhdx@-1 3M", 7),
    ];
    for (line, code) in IMPOSSIBLE.iter().chain(&more) {
        let folder = dirty();
        let before = contents(&folder);
        folder.run(line).expect(*code);
        assert!(contents(&folder) == before, "{line}");
    }
    // Also if the tip's parent is missing.
    let folder = dirty();
    fs::remove_file(folder.file("l1.vhdx")).unwrap();
    let before = contents(&folder);
    folder.run("zero l2.vhdx --offset 0 --length 1M").expect(5);
    assert!(contents(&folder) == before);
    // A command that succeeds replays it.
    let folder = dirty();
    let before = contents(&folder);
    folder.run("zero l2.vhdx --offset 0 --length 1M").expect(0);
    assert!(contents(&folder) != before);
}

#[test]
fn no_loss_is_accepted_for_a_command_that_is_refused() {
    for (line, code) in IMPOSSIBLE {
        let folder = cut();
        let before = contents(&folder);
        folder.run(&format!("{line} --accept-loss")).expect(*code);
        assert!(contents(&folder) == before, "{line}");
    }
    let folder = cut();
    folder.run("zero l2.vhdx --offset 0 --length 1 --accept-loss").expect(8);
}

#[test]
#[cfg(unix)]
fn the_loss_report_has_the_mode_of_the_image() {
    use std::os::unix::fs::PermissionsExt;
    let folder = cut();
    fs::set_permissions(folder.file("l2.vhdx"), fs::Permissions::from_mode(0o600)).unwrap();
    folder.run("zero l2.vhdx --offset 0 --length 1 --accept-loss").expect(8);
    let mode = fs::metadata(folder.file("l2.vhdx.lost")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
#[cfg(target_os = "linux")]
fn success_is_reported_even_if_the_output_is_lost() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    for line in [
        "checkpoint l2.vhdx --path new.avhdx",
        "merge l2.vhdx",
        "zero l2.vhdx --offset 0 --length 1M",
        "create new.vhdx --size 4M",
        "convert l2.vhdx -O raw new.raw",
        "flatten l2.vhdx new.vhdx",
    ] {
        let folder = Folder::with_chain();
        let mut command = folder.command(line.split(' '));
        let run = crate::common::Run::of(command.stdout(full()).output().unwrap()).expect(3);
        let run = run.says("the command succeeded, but its output was lost");
        assert!(!run.stderr.contains(&format!("next: avhdx {line}")), "{}", run.stderr);
    }
}

#[test]
fn an_image_in_an_unfinished_merge_is_not_reported_as_sound() {
    let merging = |child: u8, parent: u8| {
        let folder = Folder::new();
        let mut images = chain();
        mark(&mut images[0], parent, guid(1), "l1.vhdx");
        mark(&mut images[1], child, guid(0), "l0.vhdx");
        write_chain(folder.path(), &images);
        folder
    };
    let folder = merging(1, 3);
    folder.run("check l0.vhdx").expect(1).prints("merge.target").prints("holds a mixture");
    folder.run("check l1.vhdx").expect(0).prints("merge.unfinished");
    let folder = Folder::new();
    let mut images = chain();
    mark(&mut images[2], 2, guid(1), "l1.vhdx");
    write_chain(folder.path(), &images);
    folder.run("check l2.vhdx").expect(1).prints("merge.spent");
    // A target with an unreadable child has a finding of its own.
    let folder = merging(1, 3);
    let child = fs::File::options().write(true).open(folder.file("l1.vhdx")).unwrap();
    child.set_len(MIB + MIB / 2).unwrap();
    folder.run("tree . --json").expect(1).prints("unfinished-merge");
    folder.run("merge --resume l0.vhdx").expect(4).says("l1.vhdx").says("check --layer ./l1.vhdx");
}

#[test]
fn a_merge_whose_child_lost_data_resumes_with_accept_loss() {
    let folder = Folder::new();
    let mut images = chain();
    images.pop();
    mark(&mut images[0], 3, guid(1), "l1.vhdx");
    mark(&mut images[1], 1, guid(0), "l0.vhdx");
    write_chain(folder.path(), &images);
    let child = fs::File::options().write(true).open(folder.file("l1.vhdx")).unwrap();
    child.set_len(child.metadata().unwrap().len() - MIB - MIB / 2).unwrap();
    let run = folder.run("merge --resume l1.vhdx").expect(4).says("not complete");
    assert!(!run.stderr.contains("reads as before"), "{}", run.stderr);
    let last = run.stderr.lines().last().unwrap().trim_start().to_owned();
    let next = last.strip_prefix("next: avhdx ").unwrap();
    assert!(next.ends_with(" --accept-loss"), "{next}");
    folder.run(next).expect(8);
    assert_eq!(folder.names().iter().filter(|name| name.ends_with(".vhdx")).count(), 1);
    folder.run("read l0.vhdx --length 1").expect(0);
}

#[test]
#[cfg(unix)]
fn relink_reports_images_that_it_cannot_read() {
    let folder = Folder::new();
    folder.run("relink .").expect(0).prints("no images found");
    fs::write(folder.file("a.vhdx"), "no image").unwrap();
    folder.run("relink a.vhdx").expect(1).says("a.vhdx");
    folder.run("relink .").expect(1).prints("none of 1 images could be read").says("a.vhdx");
    let folder = Folder::with_chain();
    folder.run("relink .").expect(0).prints("3 images");
    // A damaged parent at the recorded path is reported as such, not as missing.
    fs::write(folder.file("l0.vhdx"), "cut").unwrap();
    let run = folder.run("relink .").expect(7).says("cannot be the parent of ");
    assert!(!run.stderr.contains("no file has the identity"), "{}", run.stderr);
}

#[test]
fn relink_respects_confine() {
    let folder = Folder::with_chain();
    for name in ["in", "out"] {
        fs::create_dir(folder.file(name)).unwrap();
    }
    fs::rename(folder.file("l0.vhdx"), folder.file("out/l0.vhdx")).unwrap();
    for name in ["l1.vhdx", "l2.vhdx"] {
        fs::rename(folder.file(name), folder.file("in").join(name)).unwrap();
    }
    let before = fs::read(folder.file("in/l1.vhdx")).unwrap();
    let run = folder.run("relink in --confine in --parent-dir out").expect(7);
    run.says("outside the folders that parents may come from");
    assert!(fs::read(folder.file("in/l1.vhdx")).unwrap() == before);
    folder.run("relink in --parent-dir out").expect(0);
    folder.run("read in/l2.vhdx --length 1").expect(0);
}

#[test]
fn ambiguous_labels_zero_rates_and_empty_names_are_refused() {
    let folder = Folder::with_chain();
    for label in ["--label=-1", "--label=base", "--label="] {
        folder.run(&format!("checkpoint l2.vhdx {label}")).expect(2);
        folder.run(&format!("revert l2.vhdx@-1 {label}")).expect(2);
    }
    folder.run("merge l2.vhdx --rate 0").expect(2);
    folder.run("reparent l1.vhdx --onto l0.vhdx --rate 0").expect(2);
    folder.run("convert l2.vhdx -O raw  ").expect(2);
    let empty = folder.command(["convert", "l2.vhdx", "-O", "raw", ""]).output().unwrap();
    assert_eq!(empty.status.code(), Some(2));
    assert_eq!(folder.names(), ["l0.vhdx", "l1.vhdx", "l2.vhdx"]);
}

#[test]
fn an_image_with_a_long_name_can_have_a_checkpoint() {
    let folder = Folder::new();
    let name = format!("{}.vhdx", "x".repeat(240));
    folder.run(&format!("create {name} --size 4M")).expect(0);
    folder.run(&format!("checkpoint {name}")).expect(0);
}

#[test]
#[cfg(unix)]
fn suggested_commands_quote_names_that_are_not_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::with_chain();
    let name = std::ffi::OsStr::from_bytes(b"non\xffutf.vhdx");
    fs::rename(folder.file("l2.vhdx"), folder.path().join(name)).unwrap();
    let mut command = folder.command(["checkpoint".as_ref(), name]);
    let run = crate::common::Run::of(command.output().unwrap());
    assert_eq!(run.code, Some(7), "{}", run.stderr);
    let next: Vec<_> = run.stderr.lines().filter(|line| line.contains("next: ")).collect();
    assert!(!next.is_empty() && next.iter().all(|line| !line.contains('\u{fffd}')), "{next:?}");
    let line = next[0].trim_start().strip_prefix("next: ").unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_avhdx")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", line]).env("PATH", path).current_dir(folder.path());
    let done = shell.output().unwrap();
    assert!(done.status.success(), "{line}: {done:?}");
}
