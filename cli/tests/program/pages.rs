//! Manual pages in files.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Folder, Run};

/// What a page is called.
fn name(verb: &str) -> String {
    format!("avhdx-{verb}.1")
}

#[test]
fn all_pages_are_written_to_a_folder() {
    let folder = Folder::new();
    let mut expected: Vec<String> = folder.verbs().iter().map(|verb| name(verb)).collect();
    expected.push("avhdx.1".into());
    expected.sort();

    fs::create_dir(folder.file("man")).unwrap();
    folder.run("man --dir man").expect(0).prints(&format!("{} pages written", expected.len()));
    let mut names: Vec<String> = fs::read_dir(folder.file("man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, expected);
    for verb in folder.verbs() {
        let page = folder.run(&format!("man {verb}")).expect(0).stdout;
        assert!(folder.read(&format!("man/{}", name(&verb))) == page, "{verb}");
        let text = String::from_utf8(page).unwrap();
        let title = format!(".TH avhdx-{verb} 1  \"avhdx {}\"", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&title), "no {title} in\n{text}");
    }
    assert!(folder.read("man/avhdx.1") == folder.run("man").expect(0).stdout);

    let json = folder.run("man --dir man --json").expect(0).json();
    let pages: Vec<String> = json["pages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|page| page.as_str().unwrap().into())
        .collect();
    assert_eq!(pages.len(), expected.len());
    assert!(pages.contains(&"man/avhdx.1".to_owned()), "{pages:?}");
}

#[test]
fn pages_replace_pages_and_nothing_else_without_consent() {
    let folder = Folder::new();
    // Of another version.
    let page = folder.run("man merge").expect(0).text();
    let old = page.replace(concat!("\"avhdx ", env!("CARGO_PKG_VERSION")), "\"avhdx 0.0.1");
    assert_ne!(old, page);
    fs::write(folder.file("avhdx-merge.1"), &old).unwrap();
    folder.run("man --dir .").expect(0);
    assert_eq!(String::from_utf8(folder.read("avhdx-merge.1")).unwrap(), page);

    // Nothing is written where one name is taken by something else: a note, or the page of another verb.
    let of_other = folder.read("avhdx-info.1");
    for foreign in [&b"a note"[..], b"", &of_other] {
        let folder = Folder::new();
        fs::write(folder.file("avhdx-merge.1"), foreign).unwrap();
        let run = folder.run("man --dir .").expect(7).says("avhdx-merge.1: the file exists");
        assert_eq!(run.next(), ["avhdx man --dir . --overwrite  # replaces it"]);
        assert_eq!(folder.names(), ["avhdx-merge.1"]);
        assert_eq!(folder.read("avhdx-merge.1"), foreign);
        folder.run("man --dir . --overwrite").expect(0);
        assert_eq!(String::from_utf8(folder.read("avhdx-merge.1")).unwrap(), page);
    }
}

#[test]
fn no_page_is_written_where_one_cannot_be() {
    let make_folder = |path: &Path| fs::create_dir(path).unwrap();
    let make_link = |path: &Path| std::os::unix::fs::symlink("nowhere", path).unwrap();
    let make_fifo = |path: &Path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for (make, says) in [
        (&make_folder as &dyn Fn(&Path), "this is a folder"),
        (&make_link, "a dangling link"),
        (&make_fifo, "this is a FIFO"),
    ] {
        let folder = Folder::new();
        make(&folder.file("avhdx-write.1"));
        folder.run("man --dir . --overwrite").expect(7).says(says);
        assert_eq!(folder.names(), ["avhdx-write.1"], "{says}");
    }
}

#[test]
fn pages_go_to_a_folder_only() {
    let folder = Folder::new();
    let run = folder.run("man --dir new").expect(3).says("new: cannot find the folder");
    assert_eq!(run.next(), ["mkdir -p new && avhdx man --dir new"]);
    fs::write(folder.file("file"), "").unwrap();
    folder.run("man --dir file").expect(7).says("not a folder");
    let mut unnamed = folder.command(["man", "--dir", ""]);
    let elsewhere = ["avhdx man --dir OUT  # OUT: another name"];
    Run::of(unnamed.output().unwrap()).expect(2).says("next: avhdx man --help");
    std::os::unix::fs::symlink("nowhere", folder.file("link")).unwrap();
    // No folder can be made there.
    for name in ["link", "link/below", "file/below"] {
        assert_eq!(folder.run(&format!("man --dir {name}")).expect(3).next(), elsewhere, "{name}");
    }
    let run = folder.run("man --dir new/below").expect(3);
    assert_eq!(run.next(), ["mkdir -p new/below && avhdx man --dir new/below"]);
    folder.run("man merge --dir .").expect(2);
    folder.run("man --overwrite").expect(2);
}
