//! Which files differ: as the drivers of other systems show both points, compared file by file.
#![allow(clippy::disallowed_methods)] // the drivers' files

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use avhdx_files::{Change, Compare, FileChange, FileChanges, Totals, Unread};
use avhdx_testkit::rng::{Rng, pattern};

use crate::images::{self, MIB, Model, Mounted, debugfs, disk, ext_with, fat_of, run};

/// What a driver shows of a path.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    model: Model,
    /// The stream `side`, where there is one.
    side: Option<Vec<u8>>,
    facts: String,
}

type Tree = BTreeMap<String, Shown>;

/// Walks a mounted tree.
fn shown(top: &Path, has_streams: bool) -> Tree {
    let mut tree = Tree::new();
    let mut ahead = vec![PathBuf::new()];
    while let Some(folder) = ahead.pop() {
        for entry in std::fs::read_dir(top.join(&folder)).unwrap() {
            let name = entry.unwrap().file_name();
            let path = folder.join(&name);
            let full = top.join(&path);
            let metadata = std::fs::symlink_metadata(&full).unwrap();
            let model = if metadata.is_dir() {
                ahead.push(path.clone());
                Model::Folder
            } else if metadata.is_symlink() {
                Model::Link(std::fs::read_link(&full).unwrap().to_str().unwrap().to_owned())
            } else {
                Model::File(std::fs::read(&full).unwrap())
            };
            let side = format!("{}:side", full.display());
            let side = if has_streams { std::fs::read(side).ok() } else { None };
            let times = (metadata.mtime(), metadata.mtime_nsec());
            let changed = (metadata.ctime(), metadata.ctime_nsec());
            let owner = (metadata.mode(), metadata.uid(), metadata.gid());
            let links = if has_streams { 0 } else { metadata.nlink() };
            let facts = format!("{times:?} {changed:?} {owner:?} {links}");
            let path = path.to_str().unwrap().to_owned();
            tree.insert(path, Shown { model, side, facts });
        }
    }
    tree
}

/// What should be found, by the paths: nothing else is known of the two points than what drivers show, and which of the
/// names were given to a file that had another one in its folder.
fn expected(
    before: &Tree,
    after: &Tree,
    renamed: &BTreeMap<String, String>,
) -> BTreeMap<String, Change> {
    let mut all = BTreeMap::new();
    // The path before of a path after: folders on its way may have other names.
    let old = |path: &str| -> Option<String> {
        let mut old = String::new();
        let mut at = String::new();
        for name in path.split('/') {
            at += if at.is_empty() { "" } else { "/" };
            at += name;
            let name = renamed.get(&at).map_or(name, |old| old.rsplit('/').next().unwrap());
            old += if old.is_empty() { "" } else { "/" };
            old += name;
        }
        before.contains_key(&old).then_some(old)
    };
    let mut left: BTreeSet<&String> = before.keys().collect();
    for (path, new) in after {
        let Some(was) = old(path) else {
            all.insert(path.clone(), Change::Added);
            continue;
        };
        left.remove(&was);
        let old = &before[&was];
        let kind = |shown: &Shown| std::mem::discriminant(&shown.model);
        let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
        if kind(old) != kind(new) {
            all.insert(path.clone(), Change::Kind);
        } else if old.model != new.model || old.side != new.side {
            all.insert(path.clone(), Change::Content);
        } else if name(&was) != name(path) {
            all.insert(path.clone(), Change::Renamed);
        } else if old.facts != new.facts {
            all.insert(path.clone(), Change::Facts);
        }
    }
    all.extend(left.into_iter().map(|path| (path.clone(), Change::Removed)));
    all
}

/// Where two images differ, in units of so many bytes.
fn ranges(one: &[u8], other: &[u8], unit: usize) -> Vec<Range<u64>> {
    let mut all = Vec::new();
    let large = unit.max(4096);
    for (n, (one, other)) in one.chunks(large).zip(other.chunks(large)).enumerate() {
        if one == other {
            continue;
        }
        for (within, (one, other)) in one.chunks(unit).zip(other.chunks(unit)).enumerate() {
            if one != other {
                let at = (n * large + within * unit) as u64;
                all.push(at..at + unit as u64);
            }
        }
    }
    all
}

fn compared(
    compare: &Compare,
    one: &[u8],
    other: &[u8],
) -> (Vec<Result<FileChange, Unread>>, Totals) {
    let mut changes: FileChanges = compare.run(disk(one.to_vec()), disk(other.to_vec())).unwrap();
    let all = changes.by_ref().collect();
    (all, changes.totals())
}

fn by_path(all: Vec<Result<FileChange, Unread>>) -> BTreeMap<String, Change> {
    let mut found = BTreeMap::new();
    for change in all {
        let change = change.unwrap();
        let path = String::from_utf8(change.path().to_vec()).unwrap();
        assert!(found.insert(path.clone(), change.change).is_none(), "{path} is there twice");
    }
    found
}

#[track_caller]
fn assert_found(found: &BTreeMap<String, Change>, expected: &BTreeMap<String, Change>, what: &str) {
    for (path, change) in expected {
        assert_eq!(found.get(path), Some(change), "{what}: {path}");
    }
    let more = found.iter().find(|(path, _)| !expected.contains_key(*path));
    assert_eq!(more, None, "{what}");
}

/// Compares two images in all ways. Returns what was read of the second where only what differs may differ, and in full.
fn check(before: &[u8], after: &[u8], expected: &BTreeMap<String, Change>) -> [u64; 2] {
    let mut read = Vec::new();
    for (unit, content) in [(512, true), (512, false), (65_536, true), (0, true), (0, false)] {
        let mut compare = Compare::new().content(content);
        if unit > 0 {
            compare = compare.changed(ranges(before, after, unit));
        }
        let what = format!("{unit} {content}");
        let (all, totals) = compared(&compare, before, after);
        let paths: Vec<_> = all.iter().flatten().map(|change| change.path().to_vec()).collect();
        let names = |path: &Vec<u8>| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        assert!(paths.is_sorted_by_key(|path| -> Vec<Vec<u8>> { names(path) }), "{what}");
        let found = by_path(all);
        if content {
            assert_found(&found, expected, &what);
            read.push(totals.read_after);
            continue;
        }
        // What was written may have the same bytes.
        for (path, change) in expected {
            let is_so = |found: &Change| match change {
                Change::Facts | Change::Renamed => {
                    matches!(found, Change::Content) || found == change
                }
                _ => found == change,
            };
            assert!(found.get(path).is_some_and(is_so), "{what}: {path} {change:?}");
        }
    }
    [read[0], read[2]]
}

fn bytes(rng: &mut Rng, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    pattern(rng.next_u64(), 0, &mut bytes);
    bytes
}

/// Changes a mounted tree at random. Returns which new paths are of files that had another name.
fn change(top: &Path, rng: &mut Rng, count: usize, is_ext: bool) -> BTreeMap<String, String> {
    let mut renamed: BTreeMap<String, String> = BTreeMap::new();
    let before = shown(top, false);
    // A path is changed once: what became of it is then plain.
    let mut paths: Vec<String> = before.keys().cloned().collect();
    paths.retain(|path| path != "lost+found");
    rng.shuffle(&mut paths);
    for n in 0..count {
        let Some(path) = paths.pop() else { break };
        let full = top.join(&path);
        let metadata = std::fs::symlink_metadata(&full).unwrap();
        let beside = |name: &str| match path.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{name}"),
            None => name.to_owned(),
        };
        if !metadata.is_file() {
            if metadata.is_dir() && rng.chance(1, 4) {
                let new = beside(&format!("renamed {n}"));
                std::fs::rename(&full, top.join(&new)).unwrap();
                // What lies in it has another path now.
                let below = format!("{path}/");
                paths.retain(|path| !path.starts_with(&below));
                renamed.insert(new, path);
            }
            continue;
        }
        let mut content = std::fs::read(&full).unwrap();
        match rng.below(if is_ext { 9 } else { 8 }) {
            0 => std::fs::remove_file(&full).unwrap(),
            1 => {
                let new = beside(&format!("renamed {n}"));
                std::fs::rename(&full, top.join(&new)).unwrap();
                renamed.insert(new, path);
            }
            // The same bytes in another place.
            2 => {
                std::fs::remove_file(&full).unwrap();
                std::fs::write(&full, &content).unwrap();
            }
            3 | 4 if !content.is_empty() => {
                let at = rng.below(content.len() as u64) as usize;
                content[at] ^= 0x55;
                let file = std::fs::OpenOptions::new().write(true).open(&full).unwrap();
                std::os::unix::fs::FileExt::write_at(&file, &content[at..=at], at as u64).unwrap();
            }
            3..=5 => {
                let len = rng.below(30_000);
                std::fs::write(beside_top(top, &beside(&format!("new {n}"))), bytes(rng, len))
                    .unwrap();
            }
            6 => {
                content.extend(bytes(rng, 5000));
                std::fs::write(&full, &content).unwrap();
            }
            7 => {
                let file = std::fs::File::options().write(true).open(&full).unwrap();
                let time =
                    std::time::UNIX_EPOCH + std::time::Duration::from_secs(rng.below(1 << 30));
                file.set_modified(time).unwrap();
            }
            _ => {
                std::fs::remove_file(&full).unwrap();
                match rng.below(2) {
                    0 => std::fs::create_dir(&full).unwrap(),
                    _ => std::os::unix::fs::symlink("somewhere", &full).unwrap(),
                }
            }
        }
    }
    // Folders on the way may have got their names later.
    let is_there = |path: &String| top.join(path).symlink_metadata().is_ok();
    let last: Vec<(String, String)> = renamed.clone().into_iter().collect();
    let mut all = BTreeMap::new();
    for (mut new, old) in last {
        while !is_there(&new) {
            let moved = renamed.iter().find(|(_, old)| new.starts_with(&format!("{old}/")));
            let Some((to, from)) = moved else { break };
            new = format!("{to}{}", &new[from.len()..]);
        }
        all.insert(new, old);
    }
    all
}

fn beside_top(top: &Path, path: &str) -> PathBuf {
    top.join(path)
}

/// A volume of ext that the kernel has mounted.
struct Loop {
    at: PathBuf,
    image: PathBuf,
    _folder: tempfile::TempDir,
}

impl Loop {
    fn new(bytes: &[u8]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (at, image) = (folder.path().join("mounted"), folder.path().join("image"));
        std::fs::write(&image, bytes).unwrap();
        std::fs::create_dir(&at).unwrap();
        let mut command = std::process::Command::new(images::tool("mount")?);
        let output = command.args(["-o", "loop"]).args([&image, &at]).output().unwrap();
        if !output.status.success() {
            eprintln!("NOT TESTED: ext of the kernel, because nothing can be mounted here");
            return None;
        }
        Some(Self { at, image, _folder: folder })
    }

    /// The bytes of the volume as a power cut would leave it now.
    fn bytes(&self) -> Vec<u8> {
        run("sync", &["-f".as_ref(), self.at.as_os_str()]).unwrap();
        std::fs::read(&self.image).unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.at).output();
    }
}

#[test]
fn changes_on_ext_are_those_that_the_kernel_shows() {
    for (seed, block, count) in [(1, "4096", 30), (2, "1024", 5), (3, "4096", 200), (4, "1024", 60)]
    {
        let Some(image) = ext_with(&images::ext_model(), &["-t", "ext4", "-b", block]) else {
            return;
        };
        let Some(mounted) = Loop::new(&image) else { return };
        let mut rng = Rng::new(seed);
        // Something waits in the journal at both points, as in a live checkpoint.
        std::fs::write(mounted.at.join("large.bin"), bytes(&mut rng, 100_000)).unwrap();
        let (old, before) = (mounted.bytes(), shown(&mounted.at, false));
        let renamed = change(&mounted.at, &mut rng, count, true);
        let (new, after) = (mounted.bytes(), shown(&mounted.at, false));
        let expected = expected(&before, &after, &renamed);
        assert!(expected.len() > count / 3, "{expected:?}");
        let changes = Compare::new().run(disk(old.clone()), disk(new.clone())).unwrap();
        assert_eq!(changes.warnings().count(), 2, "both wait in a journal");
        let [pruned, all] = check(&old, &new, &expected);
        println!("ext {block}, {count}: {pruned} of {all} bytes read");
        if count < 10 {
            assert!(pruned < all / 3, "{pruned} of {all} bytes read");
        }
        // The same two in the other order: what was added is removed.
        let reversed = self::expected(
            &after,
            &before,
            &renamed.into_iter().map(|(new, old)| (old, new)).collect(),
        );
        check(&new, &old, &reversed);
        drop(mounted);
    }
}

#[test]
fn changes_on_ntfs_are_those_that_its_driver_shows() {
    for (seed, count) in [(1, 5), (2, 40), (3, 200)] {
        let Some(mounted) = Mounted::new(16 * MIB, "4096") else { return };
        mounted.fill(&images::model());
        let mut rng = Rng::new(seed);
        std::fs::create_dir(mounted.at.join("packed")).unwrap();
        mounted.set("packed", "ntfs_attrib_be", &[0, 0, 0x08, 0x10]);
        let text: Vec<u8> = (0..20_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        for name in ["packed/one", "packed/two", "three"] {
            std::fs::write(mounted.at.join(name), &text).unwrap();
            std::fs::write(mounted.at.join(format!("{name}:side")), &text[..9000]).unwrap();
        }
        let before = shown(&mounted.at, true);
        let old = mounted.finish();
        let Some(mounted) = Mounted::again(&old) else { return };
        let renamed = change(&mounted.at, &mut rng, count, false);
        for name in ["packed/two", "packed/new"] {
            if mounted.at.join(name).exists() || name.ends_with("new") {
                std::fs::write(mounted.at.join(name), &text[5..]).unwrap();
            }
        }
        if mounted.at.join("three").exists() {
            std::fs::write(mounted.at.join("three:side"), &text[..9001]).unwrap();
        }
        // The table of files grows.
        for n in 0..count * 3 {
            std::fs::write(mounted.at.join(format!("grown {n}")), n.to_string()).unwrap();
        }
        let after = shown(&mounted.at, true);
        let new = mounted.finish();
        let expected = expected(&before, &after, &renamed);
        let [pruned, all] = check(&old, &new, &expected);
        println!("NTFS {count}: {pruned} of {all} bytes read");
        if count < 10 {
            assert!(pruned < all / 3, "{pruned} of {all} bytes read");
        }
    }
}

#[test]
fn changes_on_fat_are_those_that_its_tools_show() {
    let Some(old) = fat_of(&images::model(), "32") else { return };
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::write(&image, &old).unwrap();
    let with_image = |name: &str, args: &[&str]| {
        let args = [&["-i", image.to_str().unwrap()][..], args].concat();
        run(name, &args).unwrap();
    };
    let extracted = |name: &str| {
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        with_image("mcopy", &["-s", "-m", "::/", to.to_str().unwrap()]);
        let mut tree = shown(&to, false);
        for shown in tree.values_mut() {
            // The time of the last change is all that the tool keeps; that of folders is not.
            let is_folder = shown.model == Model::Folder;
            shown.facts = if is_folder {
                String::new()
            } else {
                shown.facts.split(") (").next().unwrap().into()
            };
        }
        tree
    };
    let before = extracted("before");
    let file = folder.path().join("file");
    let mut rng = Rng::new(1);
    for n in (0..300).step_by(37) {
        std::fs::write(&file, bytes(&mut rng, 3000 + n)).unwrap();
        let target = format!("::/many/file number {n}.dat");
        match n % 4 {
            0 => with_image("mcopy", &["-o", file.to_str().unwrap(), &target]),
            1 => with_image("mdel", &[&target]),
            2 => with_image("mcopy", &[file.to_str().unwrap(), &format!("::/a/new {n}")]),
            _ => with_image("mren", &[&target, &format!("::/many/renamed {n}")]),
        }
    }
    let after = extracted("after");
    let new = std::fs::read(&image).unwrap();
    let mut expected = expected(&before, &after, &BTreeMap::new());
    expected.retain(|_, change| *change != Change::Facts);
    assert!(expected.len() > 8);
    let [pruned, all] = check(&old, &new, &expected);
    println!("FAT: {pruned} of {all} bytes read");
}

/// Everything that is said of a change, but for what costs.
fn said(all: Vec<Result<FileChange, Unread>>) -> (Vec<String>, BTreeSet<String>) {
    let (mut changes, mut unread) = (Vec::new(), BTreeSet::new());
    for change in all {
        match change {
            Ok(change) => {
                let of = |entry: &Option<avhdx_files::Entry>| {
                    entry.as_ref().map(|entry| {
                        let path = String::from_utf8_lossy(entry.path()).into_owned();
                        (path, entry.size(), entry.id(), entry.times(), entry.mode())
                    })
                };
                let FileChange { change: what, before, after, streams, .. } = &change;
                changes.push(format!("{what:?} {:?} {:?} {streams:?}", of(before), of(after)));
            }
            Err(error) => drop(unread.insert(error.to_string())),
        }
    }
    (changes, unread)
}

/// An image of ext in whose journal blocks of its tables wait.
fn waiting(image: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, image).unwrap();
    let said = debugfs(&path, "stats\nblocks a\nblocks many\nblocks large.bin\n")?;
    let table = said.split("inode table at ").nth(1).unwrap();
    let table: usize = table.split([' ', '\n', ',']).next().unwrap().parse().unwrap();
    let blocks = said.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_digit()));
    let blocks = blocks.flat_map(|line| line.split(' ')).filter_map(|text| text.parse().ok());
    let mut blocks: Vec<usize> = blocks.chain(table..table + 20).collect();
    rng.shuffle(&mut blocks);
    let mut commands = String::from("jo\n");
    for place in &blocks[..6] {
        let mut block = image[place * 1024..][..1024].to_vec();
        // What counts most in inodes.
        for _ in 0..8 {
            let at = rng.below(4) * 256 + rng.below(100);
            block[at as usize] ^= 1 << rng.below(8);
        }
        let new = folder.path().join(format!("new-{place}"));
        std::fs::write(&new, block).unwrap();
        commands += &format!("jw -b {place} {}\n", new.display());
    }
    debugfs(&path, &(commands + "jc\n"))?;
    Some(std::fs::read(&path).unwrap())
}

/// Whatever changed, it is found by reading again only what may rest on it.
#[test]
fn what_is_left_out_is_the_same() {
    let mut rng = Rng::new(11);
    let ext = ext_with(&images::ext_model(), &["-t", "ext4", "-b", "1024"]);
    let images = [
        images::ntfs().cloned(),
        ext.clone(),
        images::ext("ext2", "1024"),
        images::fat("12"),
        ext.as_ref().and_then(|image| waiting(image, &mut rng)),
        ext.as_ref().and_then(|image| waiting(image, &mut rng)),
    ];
    let images: Vec<Vec<u8>> = images.into_iter().flatten().collect();
    avhdx_files::silence_caught_panics();
    let (mut compared_points, mut found, mut pruned_read, mut all_read) = (0, 0, 0, 0);
    for (n, image) in images.iter().enumerate() {
        let seen = avhdx_files::Seen::look(
            disk(image.clone()),
            None,
            avhdx_files::Options::default(),
            |tree| {
                let root = tree.root()?;
                for entry in tree.walk(&root) {
                    tree.streams(&entry?)?;
                }
                Ok(())
            },
        );
        let places = seen.touched();
        for round in 0..24 {
            // Another journal over the same, or bytes where structures are, and anywhere.
            let mut other = match (n, round % 3) {
                (4, 0) => images[5].clone(),
                (5, 1) => images[1].clone(),
                _ => image.clone(),
            };
            for _ in 0..1 + rng.below(8) {
                let range = &places[rng.below(places.len() as u64) as usize];
                let at = match rng.chance(1, 4) {
                    true => rng.below(other.len() as u64),
                    false => range.start + rng.below(range.end - range.start),
                };
                // The partition and the boot sector are another matter.
                if at >= 1024 {
                    other[at as usize] ^= 1 << rng.below(8);
                }
            }
            let (one, two) = if rng.chance(1, 2) { (image, &other) } else { (&other, image) };
            let (first, second) = (disk(one.clone()), disk(two.clone()));
            for content in [true, false] {
                let whole = Compare::new().content(content);
                let pruned = whole.clone().changed(ranges(one, two, 1 << rng.below(13)));
                let run = |compare: &Compare| {
                    compare.run(first.clone(), second.clone()).map(|mut changes| {
                        let all: Vec<_> = changes.by_ref().collect();
                        (said(all), changes.totals())
                    })
                };
                match (run(&pruned), run(&whole)) {
                    (Ok(((changes, unread), cost)), Ok(((all, all_unread), whole_cost))) => {
                        if content {
                            assert_eq!(changes, all, "image {n}, round {round}");
                            assert!(unread.is_subset(&all_unread), "{unread:?} {all_unread:?}");
                        } else {
                            let is_left = |change: &String| !change.starts_with("Content");
                            let without = |changes: &[String]| {
                                changes
                                    .iter()
                                    .filter(|change| is_left(change))
                                    .cloned()
                                    .collect::<BTreeSet<_>>()
                            };
                            let more = without(&changes);
                            let other =
                                without(&all).difference(&more).cloned().collect::<Vec<_>>();
                            assert!(other.is_empty(), "image {n}, round {round}: {other:?}");
                        }
                        compared_points += 1;
                        found += changes.len();
                        pruned_read += cost.read_after;
                        all_read += whole_cost.read_after;
                    }
                    (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
                    (one, other) => panic!("image {n}, round {round}: {one:?}, in full {other:?}"),
                }
            }
        }
    }
    println!("{compared_points} pairs, {found} changes, {pruned_read} of {all_read} bytes read");
    if !images.is_empty() {
        assert!(compared_points > 200 && found > 150, "{compared_points} {found}");
        assert!(pruned_read < all_read / 4, "{pruned_read} of {all_read} bytes read");
    }
}

/// A table of files that was moved leaves its old bytes as they were.
#[test]
fn a_table_of_files_that_was_moved_is_read_where_it_is() {
    let Some(old) = images::ntfs() else { return };
    let (cluster, record) = (4096, 1024);
    let tree = images::tree(old);
    let number = |path: &str| tree.lookup(path.as_bytes()).unwrap().id().unwrap() as usize;
    let u64_at = |at: usize| u64::from_le_bytes(old[at..at + 8].try_into().unwrap());
    let start = u64_at(48) as usize * cluster;
    let data = crate::ntfs::attributes(old, start).into_iter().find(|(kind, _)| *kind == 0x80);
    let data = data.unwrap().1;
    let list = data + usize::from(u16::from_le_bytes([old[data + 32], old[data + 33]]));
    let (of_len, of_place) = (usize::from(old[list] & 15), usize::from(old[list] >> 4));
    let len = u64_at(list + 1) as usize & ((1 << (8 * of_len)) - 1);
    assert_eq!(old[list + 1 + of_len + of_place], 0, "the table is in one piece");
    let mut place = None;
    tree.free(&mut |range| {
        let has_room = range.end - range.start >= (len * cluster) as u64;
        place = place.or(has_room.then_some(range.start as usize / cluster));
    })
    .unwrap();
    let place = place.unwrap();
    let mut new = old.clone();
    new.copy_within(start..start + len * cluster, place * cluster);
    new[48..56].copy_from_slice(&(place as u64).to_le_bytes());
    // The same length at the other place, in two bytes.
    let moved = place * cluster + list - start;
    new[moved] = 0x20 | of_len as u8;
    new[moved + 1 + of_len..][..3].copy_from_slice(&[place as u8, (place >> 8) as u8, 0]);
    check(old, &new, &BTreeMap::new());
    let (path, other) = ("many/file number 7.dat", "large.bin");
    let of = |path: &str| place * cluster + number(path) * record;
    // The time of the last change, and how much of a file was ever written.
    let facts = crate::ntfs::attributes(&new, of(path))[0];
    assert_eq!(facts.0, 0x10);
    new[facts.1 + 24 + 8] ^= 0x40;
    let data = crate::ntfs::attributes(&new, of(other)).into_iter().find(|(kind, _)| *kind == 0x80);
    new[data.unwrap().1 + 56..][..8].copy_from_slice(&4096_u64.to_le_bytes());
    let expected = [(path, Change::Facts), (other, Change::Content)];
    check(old, &new, &expected.map(|(path, change)| (path.to_owned(), change)).into());
}

/// So does a table of inodes.
#[test]
fn a_table_of_inodes_that_was_moved_is_read_where_it_is() {
    let args = ["-t", "ext4", "-b", "1024", "-N", "1024", "-I", "256"];
    let Some(old) = ext_with(&images::ext_model(), &args) else { return };
    let tree = images::tree(&old);
    let number = tree.lookup(b"many/file number 7.dat").unwrap().id().unwrap() as usize;
    // The first descriptor of a group follows the superblock; a group has 512 inodes of 256 bytes.
    let (descriptor, len) = (2048 + 8, 512 * 256);
    let table = u32::from_le_bytes(old[descriptor..descriptor + 4].try_into().unwrap()) as usize;
    let mut place = None;
    tree.free(&mut |range| {
        let has_room = range.end - range.start >= len as u64;
        place = place.or(has_room.then_some(range.start as usize));
    })
    .unwrap();
    let place = place.unwrap();
    let mut new = old.clone();
    new.copy_within(table * 1024..table * 1024 + len, place);
    new[descriptor..descriptor + 4].copy_from_slice(&(place as u32 / 1024).to_le_bytes());
    check(&old, &new, &BTreeMap::new());
    assert!(number <= 512);
    // The time of the last change.
    new[place + (number - 1) * 256 + 16] ^= 1;
    let moved = images::tree(&new);
    let time = |tree: &avhdx_files::FileSystem| {
        tree.lookup(b"many/file number 7.dat").unwrap().times().modified
    };
    assert_ne!(time(&moved), time(&tree));
    let expected = BTreeMap::from([("many/file number 7.dat".to_owned(), Change::Facts)]);
    check(&old, &new, &expected);
}
