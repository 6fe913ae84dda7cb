//! Chains that form a loop: every verb terminates and reports the loop.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Folder, Run};
use avhdx_testkit::build::{Block, Data, Image};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Longer than any verb takes, however busy the machine is.
const LONG: Duration = Duration::from_secs(120);

/// Runs the program, which must terminate.
fn run(folder: &Folder, line: &str) -> Run {
    let mut command = folder.command(line.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = command.spawn().unwrap();
    let start = Instant::now();
    while program.try_wait().unwrap().is_none() {
        if start.elapsed() > LONG {
            program.kill().unwrap();
            panic!("{line}: does not terminate");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Run::of(program.wait_with_output().unwrap())
}

/// Image `n`, a child of image `parent`, which is recorded at `path`.
fn child(n: u128, parent: u128, path: &str) -> Image {
    let mut image = Image::child(MIB, Uuid::from_u128(0xA000 + parent));
    image.set_data_write_guid(Uuid::from_u128(0xA000 + n)).parent_path(path);
    image.put(0, Block::partial_runs(Data::Pattern(n as u64), &[(8, 8)]));
    image
}

/// An image that is its own parent, two that are each other's parent, a child of these, and a sound image.
fn folder() -> Folder {
    let folder = Folder::new();
    for (name, image) in [
        ("self.vhdx", child(1, 1, ".\\self.vhdx")),
        ("a.vhdx", child(2, 3, ".\\b.vhdx")),
        ("b.vhdx", child(3, 2, ".\\a.vhdx")),
        ("tip.vhdx", child(4, 2, ".\\a.vhdx")),
        ("sound.vhdx", Image::dynamic(MIB)),
    ] {
        image.write_to(folder.file(name));
    }
    fs::create_dir(folder.file("empty")).unwrap();
    folder
}

fn bytes(folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    let files = folder.names().into_iter().filter(|name| name != "empty");
    files.map(|name| (name.clone(), folder.read(&name))).collect()
}

#[test]
fn verbs_that_need_a_chain_report_the_loop_and_change_nothing() {
    let folder = folder();
    let before = bytes(&folder);
    for tip in ["self.vhdx", "a.vhdx", "b.vhdx", "tip.vhdx"] {
        for verb in [
            "read IMAGE --length 512",
            "map IMAGE",
            "explain IMAGE 4096",
            "measure IMAGE",
            "ls IMAGE",
            "cat IMAGE x",
            "cp IMAGE x empty/x",
            "versions IMAGE x",
            "df IMAGE",
            "compare IMAGE sound.vhdx",
            "compare sound.vhdx IMAGE",
            "convert IMAGE -O vhdx empty/new.vhdx",
            "convert IMAGE -O raw empty/new.raw",
            "flatten IMAGE empty/new.vhdx",
            "zero IMAGE --offset 0 --length 512 --orphan-children",
            "discard IMAGE --offset 0 --length 512 --orphan-children",
            "write IMAGE --offset 0 --orphan-children",
            "checkpoint IMAGE",
            "merge IMAGE",
            "merge IMAGE --into sound.vhdx",
            "reparent sound.vhdx --onto IMAGE --unproven",
            "reparent IMAGE --onto sound.vhdx",
            "rebase IMAGE --onto sound.vhdx",
            "bench IMAGE --seconds 1",
            "seal IMAGE",
            "verify IMAGE",
            "read IMAGE --length 512 --ignore-id-mismatch",
        ] {
            let line = verb.replace("IMAGE", tip);
            let run = run(&folder, &line);
            assert!(matches!(run.code, Some(3..=7)), "{line}: {:?} {}", run.code, run.stderr);
            let is_told = run.stderr.contains("leads back to this file");
            // These look for children before they open parents.
            let has_no_consent = verb.starts_with("checkpoint") || verb.starts_with("merge");
            let is_refused = has_no_consent && run.stderr.contains("the image has a child");
            assert!(is_told || is_refused, "{line}: {}", run.stderr);
        }
    }
    assert!(bytes(&folder) == before);
    assert_eq!(fs::read_dir(folder.file("empty")).unwrap().count(), 0);
}

#[test]
fn verbs_that_inspect_single_images_report_the_loop() {
    let folder = folder();
    for tip in ["self.vhdx", "a.vhdx", "b.vhdx", "tip.vhdx"] {
        let info = run(&folder, &format!("info {tip} --chain"));
        let said = format!("{}{}", info.text(), info.stderr);
        assert!(said.contains("leads back to this file"), "{tip}: {said}");
        let check = run(&folder, &format!("check {tip}")).expect(1);
        let found = check.text().matches("chain.loop").count();
        assert_eq!(found, 1, "{tip}: {}", check.text());
    }
    run(&folder, "tree .").expect(1).prints("the parent of a.vhdx is b.vhdx");
    // All recorded paths are right.
    let before = bytes(&folder);
    run(&folder, "relink .").expect(0);
    assert!(bytes(&folder) == before);
    // Reparenting breaks the loop.
    run(&folder, "reparent a.vhdx --onto sound.vhdx --unproven").expect(0);
    run(&folder, "reparent self.vhdx --onto sound.vhdx --unproven").expect(0);
    for tip in ["self.vhdx", "a.vhdx", "b.vhdx", "tip.vhdx"] {
        run(&folder, &format!("check {tip}")).expect(0);
    }
}
