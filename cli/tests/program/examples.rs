//! The examples in the help of every verb: each is run in a folder of its own, and is in the manual page too.
#![cfg(unix)] // they are run by a shell

use std::fs;

use crate::common::{Folder, Run};

/// The files that the examples are about.
const SET_UP: &str = "set -e
head -c 100000 /dev/urandom > data.bin
gzip -c data.bin > data.gz
mkdir archive kvm
avhdx create web.vhdx 8M
avhdx write web.vhdx --offset 1M < data.bin
avhdx checkpoint web.vhdx --label monday --path web_1.avhdx
avhdx write web_1.avhdx --offset 2M < data.bin
avhdx checkpoint web_1.avhdx --label tuesday --path web_2.avhdx
avhdx write web_2.avhdx --offset 3M < data.bin
avhdx convert web.vhdx -O raw disk.raw
avhdx convert web.vhdx -O vhdx copy.vhdx
avhdx seal web_2.avhdx";

/// The lines of the examples in the help of a verb.
fn examples(help: &str) -> Vec<String> {
    let Some((_, section)) = help.split_once("\nExamples:\n") else { return Vec::new() };
    let lines = section.lines().take_while(|line| line.starts_with("  "));
    lines.map(|line| line.trim().to_owned()).collect()
}

fn shell(folder: &Folder, line: &str) -> Run {
    Run::of(folder.in_shell(line).output().unwrap())
}

#[test]
fn the_examples_of_every_verb_work() {
    let scene = Folder::new();
    shell(&scene, SET_UP).expect(0);
    scene.with_files("pc.vhdx");
    let verbs = scene.verbs();
    assert!(verbs.len() > 20, "{verbs:?}");
    let mut wrong = Vec::new();
    for verb in verbs {
        let help = scene.run(&format!("{verb} -h")).expect(0).text();
        let examples = examples(&help);
        assert!((2..=4).contains(&examples.len()), "{verb}: {examples:?}");
        let page = scene.run(&format!("man {verb}")).expect(0).text();
        let page = page.replace(r"\-", "-").replace(r"\*(Aq", "'").replace(r"\&", "");
        for example in examples {
            assert!(example.len() + 2 <= 80, "longer than 80 columns: {example}");
            let (line, what) = example.split_once("  # ").unwrap();
            let line = line.trim();
            let in_page = format!("\\fB{line}\\fR\n{}\n", what.trim());
            assert!(page.contains(&in_page), "the page has no {in_page} in\n{page}");

            let folder = Folder::new();
            copy(&scene, &folder);
            for name in ["archive", "kvm"] {
                fs::create_dir(folder.file(name)).unwrap();
            }
            let run = shell(&folder, line);
            // Disks that differ are no failure.
            let is_right = run.code == Some(0) || verb == "compare" && run.code == Some(1);
            if !is_right {
                wrong.push(format!("{line}: {:?} {}", run.code, run.stderr));
            }
            // What goes to a file is there.
            if let Some((_, to)) = line.split_once(" > ") {
                assert!(!folder.read(to).is_empty(), "{line} has no output");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Copies the files of a folder, without its subfolders.
fn copy(from: &Folder, to: &Folder) {
    for entry in fs::read_dir(from.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
        }
    }
}
