//! Every verb on a file that is named by a symbolic link, through a linked folder, or by a hard link.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::common::{Folder, Run, name};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive;

const SIZE: usize = 4 << 20;

/// How a path in `by` leads to a file in `real`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    File,
    Folder,
    /// Hard links to the files of the chain, but not to their other children.
    Hard,
}

const WAYS: [Way; 3] = [Way::File, Way::Folder, Way::Hard];

/// A base, a layer and a tip in the folder `real`, and optionally another child of the base and of the layer.
struct World {
    folder: Folder,
    way: Way,
    flats: [Vec<u8>; 3],
}

impl World {
    fn new(way: Way, with_children: bool) -> Self {
        let folder = Folder::new();
        fs::create_dir(folder.file("real")).unwrap();
        let mut base = Image::dynamic(SIZE as u64);
        name(&mut base, 0);
        base.put(0, Block::full(Data::Pattern(1)));
        let mut mid = base.new_child();
        name(&mut mid, 1);
        mid.put(1, Block::full(Data::Pattern(2)));
        let mut tip = mid.new_child();
        name(&mut tip, 2);
        tip.put(2, Block::full(Data::Pattern(3)));
        let flat = base.flat(None);
        let flat_mid = mid.flat(Some(&flat));
        let flats = [flat, flat_mid.clone(), tip.flat(Some(&flat_mid))];
        let (mut side, mut fork) = (base.new_child(), mid.new_child());
        name(&mut side, 3);
        name(&mut fork, 4);
        let write = |image: &mut Image, parent: Option<&str>, name: &str| {
            if let Some(parent) = parent {
                image.parent_path(parent);
            }
            image.write_to(folder.file(&format!("real/{name}")));
        };
        write(&mut base, None, "base.vhdx");
        write(&mut mid, Some(r".\base.vhdx"), "mid.avhdx");
        write(&mut tip, Some(r".\mid.avhdx"), "tip.avhdx");
        if with_children {
            write(&mut side, Some(r".\base.vhdx"), "side.avhdx");
            write(&mut fork, Some(r".\mid.avhdx"), "fork.avhdx");
        }
        let names = ["base.vhdx", "mid.avhdx", "tip.avhdx"];
        match way {
            Way::Folder => symlink("real", folder.file("by")).unwrap(),
            Way::File => {
                fs::create_dir(folder.file("by")).unwrap();
                for name in names {
                    symlink(format!("../real/{name}"), folder.file(&format!("by/{name}"))).unwrap();
                }
            }
            Way::Hard => {
                fs::create_dir(folder.file("by")).unwrap();
                for name in names {
                    let [from, to] = ["real", "by"].map(|of| folder.file(&format!("{of}/{name}")));
                    fs::hard_link(from, to).unwrap();
                }
            }
        }
        Self { folder, way, flats }
    }

    /// Every name below the folder, with the file's inode and content, or a link's target.
    fn all(&self) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let bytes = match metadata.file_type() {
                    kind if kind.is_symlink() => {
                        fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                    }
                    kind if kind.is_dir() => {
                        folders.push(path.clone());
                        Vec::new()
                    }
                    _ => fs::read(&path).unwrap(),
                };
                all.insert(path, (metadata.ino(), bytes));
            }
        }
        all
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.folder.file(name)).unwrap().ino()
    }

    /// Checks the disk of these files of `real`, base first, with an independent reader.
    #[track_caller]
    fn reads(&self, layers: &[&str], expected: &[u8]) {
        let paths: Vec<PathBuf> =
            layers.iter().map(|name| self.folder.file(&format!("real/{name}"))).collect();
        let flat = naive::Chain::open(paths).unwrap().flat(layers.len() - 1).unwrap();
        assert!(flat == expected, "{:?} {layers:?}", self.way);
        // By the recorded paths, from the real folder.
        let line = format!("read real/{} --length {SIZE}", layers[layers.len() - 1]);
        assert!(self.run(&line).expect(0).stdout == expected, "{:?} {layers:?}", self.way);
    }

    fn run(&self, line: &str) -> Run {
        self.folder.run_with(line, b"new")
    }

    /// The flag for the folder of the children, if no link leads there.
    fn children(&self) -> &'static str {
        if self.way == Way::Hard { " --children-in real" } else { "" }
    }

    /// The path that the program shows for a name in `by`.
    fn real(&self, name: &str) -> String {
        match self.way {
            Way::Hard => format!("by/{name}"),
            _ => self
                .folder
                .path()
                .canonicalize()
                .unwrap()
                .join("real")
                .join(name)
                .display()
                .to_string(),
        }
    }
}

fn names_of(world: &World, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(world.folder.file(folder)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn children_beside_the_real_file_keep_their_parent() {
    for way in WAYS {
        let world = World::new(way, true);
        fs::write(world.folder.file("disk.raw"), vec![5; 1 << 20]).unwrap();
        world.run("create source.vhdx --size 1M").expect(0);
        let before = world.all();
        for line in [
            "write by/base.vhdx --offset 0",
            "zero by/base.vhdx --offset 0 --length 512",
            "discard by/base.vhdx --offset 0 --length 1M",
            "checkpoint by/base.vhdx --path new.avhdx",
            "merge by/tip.avhdx",
            "merge by/tip.avhdx@-1",
            "merge by/tip.avhdx --into @base",
            "merge by/tip.avhdx@-1 --dry-run",
            "revert by/tip.avhdx@base --delete-newer --path new.avhdx",
        ] {
            let run = world.run(&format!("{line}{}", world.children())).expect(7);
            let run = run.says(" as its child");
            assert!(world.all() == before, "{way:?} {line}: {}", run.stderr);
        }
    }
}

#[test]
fn links_in_the_same_folder_are_not_children() {
    let world = World::new(Way::File, false);
    // Some writers copy the parent's identity into the child; a link to the file is still not another child.
    for (name, link) in [("tip.avhdx", "current"), ("base.vhdx", "base-link.vhdx")] {
        symlink(name, world.folder.file(&format!("real/{link}"))).unwrap();
    }
    fs::hard_link(world.folder.file("real/tip.avhdx"), world.folder.file("real/again")).unwrap();
    let run = world.run("write real/current --offset 0").expect(0);
    // All names of the file are known.
    assert!(!run.stderr.contains("hard link"), "{}", run.stderr);
    let mut flat = world.flats[2].clone();
    flat[..3].copy_from_slice(b"new");
    world.reads(&["base.vhdx", "mid.avhdx", "tip.avhdx"], &flat);
}

#[test]
fn a_hard_link_in_another_folder_gives_a_warning() {
    let world = World::new(Way::Hard, true);
    let run = world.run("write by/tip.avhdx --offset 0").expect(0);
    drop(run.says("by/tip.avhdx: has another name elsewhere (a hard link)"));
    let run = world.run("write by/tip.avhdx --offset 0 --children-in real").expect(0);
    assert!(!run.stderr.contains("hard link"), "{}", run.stderr);
}

#[test]
fn a_write_through_a_link_changes_the_real_file() {
    for way in WAYS {
        let world = World::new(way, false);
        let (before, inode) = (world.all(), world.inode("real/tip.avhdx"));
        world.run("write by/tip.avhdx --offset 7").expect(0);
        let mut flat = world.flats[2].clone();
        flat[7..10].copy_from_slice(b"new");
        world.reads(&["base.vhdx", "mid.avhdx", "tip.avhdx"], &flat);
        let after = world.all();
        assert!(before.keys().eq(after.keys()), "{way:?}");
        assert_eq!(world.inode("real/tip.avhdx"), inode);
        assert_eq!(world.inode("by/tip.avhdx"), inode);
    }
}

#[test]
fn a_checkpoint_through_a_link_records_the_real_parent() {
    for way in WAYS {
        for path in ["", " --path by/new.avhdx", " --path new.avhdx"] {
            let world = World::new(way, false);
            let before = world.all();
            let run = world.run(&format!("checkpoint by/tip.avhdx{path} --json")).expect(0);
            let made = run.json();
            let new = fs::canonicalize(world.folder.file(made["tip"].as_str().unwrap())).unwrap();
            assert_eq!(made["point"]["image"], world.real("tip.avhdx"), "{way:?}");
            let folder = match (path, way) {
                // The new file is beside the real one.
                ("", Way::Hard) => "by",
                ("", _) => "real",
                (" --path new.avhdx", _) => ".",
                (_, Way::Folder) => "real",
                _ => "by",
            };
            let folder = world.folder.file(folder).canonicalize().unwrap();
            assert_eq!(new.parent(), Some(&*folder), "{way:?}{path}");
            // Nothing else changed, and the chain does not need the link.
            let mut after = world.all();
            after.retain(|path, _| path.canonicalize().unwrap() != new);
            assert!(after == before, "{way:?}{path}");
            if way != Way::Hard {
                let links = world.folder.file("by");
                fs::rename(&links, world.folder.file("gone")).unwrap();
            }
            let new = match new.exists() {
                true => new,
                false => world.folder.file("gone/new.avhdx"),
            };
            let line = format!("read {} --length {SIZE}", new.display());
            assert!(world.run(&line).expect(0).stdout == world.flats[2], "{way:?}{path}");
        }
    }
}

#[test]
fn a_merge_through_a_link_removes_the_real_file() {
    for way in [Way::File, Way::Folder] {
        let world = World::new(way, false);
        let mid = world.inode("real/mid.avhdx");
        let run = world.run("merge by/tip.avhdx --dry-run --json").expect(0).json();
        let files = run["files"].as_array().unwrap();
        let removed = files.iter().find(|file| file["change"] == "removed").unwrap();
        assert_eq!(removed["image"], world.real("tip.avhdx"));
        let run = world.run("merge by/tip.avhdx --json").expect(0);
        let merged = run.json();
        assert_eq!(merged["removed"][0], world.real("tip.avhdx"), "{way:?}");
        assert_eq!(merged["tip"], world.real("mid.avhdx"), "{way:?}");
        assert_eq!(names_of(&world, "real"), ["base.vhdx", "mid.avhdx"]);
        assert_eq!(world.inode("real/mid.avhdx"), mid);
        world.reads(&["base.vhdx", "mid.avhdx"], &world.flats[2]);
        if way == Way::File {
            // The link stays.
            assert!(fs::symlink_metadata(world.folder.file("by/tip.avhdx")).unwrap().is_symlink());
            drop(run.says("by/tip.avhdx: leads nowhere now"));
        }
        world.run("write by/mid.avhdx --offset 0").expect(0);
    }
    // A layer below the tip; the layer above is linked to the base.
    for way in WAYS {
        let world = World::new(way, false);
        world.run("merge by/tip.avhdx@mid.avhdx").expect(0);
        let left = if way == Way::Hard { "by" } else { "real" };
        assert_eq!(names_of(&world, left), ["base.vhdx", "tip.avhdx"], "{way:?}");
        world.reads(&["base.vhdx", "tip.avhdx"], &world.flats[2]);
    }
}

#[test]
fn a_revert_through_a_link_removes_the_real_files() {
    for way in [Way::File, Way::Folder] {
        let world = World::new(way, false);
        let line = "revert by/tip.avhdx@base --delete-newer --json";
        let done = world.run(line).expect(0).json();
        let removed: Vec<&str> =
            done["removed"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
        assert_eq!(removed, [world.real("tip.avhdx"), world.real("mid.avhdx")], "{way:?}");
        let new = PathBuf::from(done["tip"].as_str().unwrap());
        assert_eq!(new.parent(), Path::new(&world.real("base.vhdx")).parent(), "{way:?}");
        let new = new.file_name().unwrap().to_str().unwrap().to_owned();
        let mut names = vec!["base.vhdx".to_owned(), new.clone()];
        names.sort();
        assert_eq!(names_of(&world, "real"), names, "{way:?}");
        world.reads(&["base.vhdx", &new], &world.flats[0]);
        // Only the new tip takes writes.
        world.run(&format!("write real/{new} --offset 0")).expect(0);
    }
}

#[test]
fn parents_are_recorded_by_their_real_paths() {
    for way in WAYS {
        let world = World::new(way, false);
        world.run("create by/new.avhdx --parent by/tip.avhdx").expect(0);
        let new = world.folder.file("by/new.avhdx").canonicalize().unwrap();
        let line = format!("read {} --length {SIZE}", new.display());
        assert!(world.run(&line).expect(0).stdout == world.flats[2], "{way:?}");
        fs::remove_file(new).unwrap();
        let before = world.inode("real/tip.avhdx");
        let run =
            world.run("reparent by/tip.avhdx --onto by/base.vhdx --unproven --json").expect(0);
        let done = run.json();
        assert_eq!(done["image"], world.real("tip.avhdx"), "{way:?}");
        assert_eq!(done["parent"]["image"], world.real("base.vhdx"), "{way:?}");
        assert_eq!(world.inode("real/tip.avhdx"), before);
        fs::rename(world.folder.file("real/mid.avhdx"), world.folder.file("mid")).unwrap();
        assert_eq!(
            world.run(&format!("read real/tip.avhdx --length {SIZE}")).expect(0).stdout.len(),
            SIZE
        );
        // The base gets another name.
        fs::rename(world.folder.file("real/base.vhdx"), world.folder.file("real/root.vhdx"))
            .unwrap();
        drop(fs::remove_file(world.folder.file("by/base.vhdx")));
        let folder = if way == Way::Folder { "by" } else { "real" };
        world.run(&format!("relink {folder}")).expect(0);
        world.run("read real/tip.avhdx --length 512").expect(0);
    }
}

#[test]
fn points_are_selected_by_the_real_name_and_by_the_links_name() {
    let world = World::new(Way::Folder, false);
    for (link, target) in [("now", "real/tip.avhdx"), ("real/alias.avhdx", "mid.avhdx")] {
        symlink(target, world.folder.file(link)).unwrap();
    }
    for (point, flat) in [
        ("now@tip.avhdx", 2),
        ("now@now", 2),
        ("now@mid.avhdx", 1),
        ("by/tip.avhdx@mid.avhdx", 1),
        ("by/tip.avhdx@base.vhdx", 0),
    ] {
        let run = world.run(&format!("read {point} --length {SIZE}")).expect(0);
        assert!(run.stdout == world.flats[flat], "{point}");
    }
}

#[test]
fn the_target_of_a_link_is_reported_once() {
    let world = World::new(Way::File, true);
    let real = world.real("base.vhdx");
    let run = world.run("write by/base.vhdx --offset 0").expect(7);
    let hint = format!("by/base.vhdx leads to {real}");
    assert_eq!(run.stderr.matches(&hint).count(), 1, "{}", run.stderr);
    let run = world.run("write by/tip.avhdx --offset 0").expect(0);
    let note = format!("by/tip.avhdx leads to {}", world.real("tip.avhdx"));
    assert_eq!(run.stderr.matches(&note).count(), 1, "{}", run.stderr);
    let run = world.run("write real/tip.avhdx --offset 0").expect(0);
    assert!(!run.stderr.contains("leads to"), "{}", run.stderr);
}

#[test]
fn a_hint_about_a_link_and_an_error_of_the_parser_escape_what_was_typed() {
    let folder = Folder::new();
    let (hostile, link) = ("t\u{1b}[5m\nnext: rm.vhdx", "l\u{1b}]0;x\u{7}.vhdx");
    std::fs::write(folder.file(hostile), [0; 3]).unwrap();
    std::os::unix::fs::symlink(hostile, folder.file(link)).unwrap();
    for words in [&["info", link][..], &["info", "a", link]] {
        let run = crate::common::Run::of(folder.command(words).output().unwrap());
        assert!(!run.stderr.contains('\u{1b}') && !run.stderr.contains("\nnext: rm"), "{run:?}");
    }
}
