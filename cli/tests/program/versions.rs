//! `avhdx versions` and `df`: a file at each point in time, and the space of file systems.

use std::io::{Read, Seek, Write};

use avhdx_testkit::images::sha256_hex as sha256;

use crate::common::{Folder, NOTES};

/// Changes the volume at the tip, and writes the pages that differ.
fn change(folder: &Folder, tip: &str, how: impl FnOnce(&mut std::io::Cursor<Vec<u8>>)) {
    let before = folder.run(&format!("read {tip}")).expect(0).stdout;
    let mut disk = std::io::Cursor::new(before.clone());
    how(&mut disk);
    let pages = before.chunks(4096).zip(disk.get_ref().chunks(4096)).enumerate();
    for (n, (_, page)) in pages.filter(|(_, (old, new))| old != new) {
        folder.run_with(&format!("write {tip} --offset {}", n * 4096), page).expect(0);
    }
}

fn fat<T: Read + Write + Seek>(disk: T) -> fatfs::FileSystem<T> {
    fatfs::FileSystem::new(disk, fatfs::FsOptions::new()).unwrap()
}

/// Five points: as it was, changed, untouched, changed back under the same name, and removed.
fn five_points() -> Folder {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    let mut image = String::from("pc.vhdx");
    let mut checkpoint = |label: &str| {
        let next = format!("{label}.avhdx");
        let line = format!("checkpoint {image} --label before-{label} --path {next} --block 1M");
        folder.run(&line).expect(0);
        image = next.clone();
        next
    };
    let tip = checkpoint("changed");
    change(&folder, &tip, |disk| {
        let volume = fat(disk);
        let mut file = volume.root_dir().open_file("notes.txt").unwrap();
        file.write_all(b"WHAT").unwrap();
    });
    let tip = checkpoint("untouched");
    folder.run_with(&format!("write {tip} --offset 7M"), &[7; 4096]).expect(0);
    let tip = checkpoint("back");
    change(&folder, &tip, |disk| {
        let volume = fat(disk);
        volume.root_dir().remove("notes.txt").unwrap();
        volume.root_dir().create_file("notes.txt").unwrap().write_all(NOTES).unwrap();
    });
    let tip = checkpoint("removed");
    change(&folder, &tip, |disk| fat(disk).root_dir().remove("notes.txt").unwrap());
    folder
}

#[test]
fn a_file_is_shown_as_it_was_at_each_point() {
    let folder = five_points();
    let all = folder.run("versions removed.avhdx notes.txt --json").expect(0).json();
    let versions = all["versions"].as_array().unwrap();
    let of =
        |key: &str| -> Vec<_> { versions.iter().map(|version| version[key].clone()).collect() };
    let changed = [&b"WHAT"[..], &NOTES[4..]].concat();
    let hashes = [NOTES, &changed].map(|bytes| serde_json::Value::from(sha256(bytes)));
    let [one, two] = [1, 2].map(serde_json::Value::from);
    let null = serde_json::Value::Null;
    assert_eq!(of("version"), [&null, &one, &two, &two, &one].map(Clone::clone));
    let [first, second] = hashes;
    assert_eq!(of("sha256"), [&null, &first, &second, &second, &first].map(Clone::clone));
    assert_eq!(of("selector"), ["@-0", "@-1", "@-2", "@-3", "@-4"]);
    assert_eq!(versions[1]["label"], "before-removed");
    assert_eq!(versions[4]["size"], NOTES.len());
    for (n, version) in versions.iter().enumerate().skip(1) {
        let line = format!("cat removed.avhdx@-{n} notes.txt");
        let bytes = folder.run(&line).expect(0).stdout;
        assert_eq!(version["sha256"], sha256(&bytes[..]), "{n}");
    }
    let run = folder.run("versions removed.avhdx NOTES.TXT").expect(0);
    run.prints("absent").prints("before-untouched");
    folder.run("versions removed.avhdx@-1 notes.txt").expect(2).says("versions --help");
    folder.run("versions removed.avhdx logs").expect(0).prints("folder");
    folder.run("versions removed.avhdx none.txt").expect(2).says("at any point in time");
}

#[test]
fn space_that_nothing_uses_is_told_with_what_the_image_holds_of_it() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    let df = |image: &str| folder.run(&format!("df {image} --json")).expect(0).json();
    let before = df("pc.vhdx");
    let volume = &before["volumes"][0];
    assert_eq!((&volume["file_system"], &volume["label"]), (&"FAT16".into(), &"MY DISK".into()));
    let bytes = |value: &serde_json::Value| value.as_u64().unwrap();
    let clusters = bytes(&volume["used"]) + bytes(&volume["free"]);
    assert!(clusters < 8 << 20 && clusters > 7 << 20, "{volume}");
    // The image has one block, of which files use a part; what the volume has behind its last cluster is not its own.
    assert_eq!((bytes(&volume["held"]), bytes(&volume["held_at_1m"])), (0, 6 << 20), "{volume}");
    // Bytes of no file, in the middle of two blocks.
    folder.run("checkpoint pc.vhdx --path tip.avhdx --block 2M").expect(0);
    for at in ["4100K", "2500K"] {
        folder.run_with(&format!("write tip.avhdx --offset {at}"), &[7; 5000]).expect(0);
    }
    let after = df("tip.avhdx");
    let volume = &after["volumes"][0];
    assert_eq!((bytes(&volume["held"]), bytes(&volume["held_at_1m"])), (4 << 20, 2 << 20));
    assert_eq!(volume["used"], before["volumes"][0]["used"]);
    folder.run("df tip.avhdx").expect(0).prints("4 MiB").prints("FAT16");
}

/// `compact --free` gives nothing of it back.
#[test]
fn a_fixed_disk_holds_nothing_that_goes() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    folder.run("convert pc.vhdx fixed.vhdx -O vhdx-fixed --block 1M").expect(0);
    let df = folder.run("df fixed.vhdx --json").expect(0).json();
    let volume = &df["volumes"][0];
    assert_eq!(volume["held"], serde_json::Value::Null, "{volume}");
    assert!(volume["held_at_1m"].as_u64().unwrap() >= 6 << 20, "{volume}");
    let table = folder.run("df fixed.vhdx").expect(0).text();
    let line: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(line[line.len() - 3], "-", "{table}");
    let run = folder.run("compact fixed.vhdx --free --json").expect(2);
    assert_eq!(run.error()["code"], "compact.fixed");
    folder.run("convert fixed.vhdx dynamic.vhdx --block 1M").expect(0);
    let df = folder.run("df dynamic.vhdx --json").expect(0).json();
    assert!(df["volumes"][0]["held"].is_u64(), "{df}");
}

/// The names and hashes that `ls --hash` prints as JSON.
fn hashes(folder: &Folder, line: &str) -> Vec<(String, String)> {
    let text = folder.run(line).expect(0).text();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let files = lines.filter(|line| line["kind"] == "file");
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    files.map(|file| (text(&file["path"]), text(&file["hash"]["value"]))).collect()
}

#[test]
fn files_that_differ_between_two_points_are_listed() {
    let folder = five_points();
    let found = |line: &str| -> Vec<(String, String)> {
        let text = folder.run(line).expect(0).text();
        let lines =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let files = lines.filter(|line| line["schema"] == "avhdx.diff-file/1");
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        files.map(|file| (text(&file["change"]), text(&file["path"]))).collect()
    };
    let one = |change: &str| vec![(change.to_owned(), "notes.txt".to_owned())];
    // As it was, changed, untouched, changed back, removed.
    for content in ["", " --content"] {
        let diff = |a: u32, b: u32| {
            let line =
                format!("diff removed.avhdx@-{a} removed.avhdx@-{b} --files --json{content}");
            let mut found = found(&line);
            // It lies on the pages that were written, too.
            found.retain(|(_, path)| !content.is_empty() || path != "logs/today.txt");
            found
        };
        assert_eq!(diff(4, 3), one("content"), "{content}");
        assert_eq!(diff(3, 2), [], "{content}");
        assert_eq!(diff(2, 1), one("content"), "{content}");
        assert_eq!(diff(1, 0), one("removed"), "{content}");
        assert_eq!(diff(0, 1), one("added"), "{content}");
    }
    let back = "diff removed.avhdx@-4 removed.avhdx@-1 --files --json";
    assert!(found(back).contains(&one("content")[0]));
    // The same bytes under the same name: only the times of the new file may be others.
    let same = found(&format!("{back} --content"));
    assert!(same.is_empty() || same == one("facts"), "{same:?}");
    // Without common layers, the bytes tell.
    folder.run("convert removed.avhdx@-3 -O vhdx copy.vhdx").expect(0);
    assert_eq!(found("diff copy.vhdx removed.avhdx@-4 --files --content --json"), one("content"));
    folder.run("diff copy.vhdx removed.avhdx@-4 --files").expect(0).says("no layer in common");
    let text = folder.run("diff removed.avhdx@-1 --files --content").expect(0);
    text.prints("removed             21")
        .prints("1 change: 1 removed\n")
        .prints(" looked at; read ");
    folder.run("diff removed.avhdx@-4 --files -p none").expect(2).says("there is no volume");
    folder.run("diff removed.avhdx@-4 -p 1").expect(2).says("--files");
}

#[test]
fn files_are_hashed() {
    let folder = five_points();
    let of = |line: &str| hashes(&folder, &format!("ls {line} -R --json --hash sha256"));
    for point in [0, 3, 4] {
        for (path, hash) in of(&format!("removed.avhdx@-{point}")) {
            let bytes = folder.run(&format!("cat removed.avhdx@-{point} {path}")).expect(0).stdout;
            assert_eq!(hash, sha256(&bytes[..]), "{path}");
        }
    }
    assert_eq!(of("pc.vhdx").len(), 2);
    change(&folder, "removed.avhdx", |disk| {
        fat(disk).root_dir().create_file("abc.txt").unwrap().write_all(b"abc").unwrap();
    });
    // As the authors of the algorithm have it.
    let abc = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
    let blake = hashes(&folder, "ls removed.avhdx abc.txt --json --hash blake3");
    assert_eq!(blake, [("abc.txt".to_owned(), abc.to_owned())]);
    let run = folder.run("ls removed.avhdx --hash blake3").expect(0);
    run.prints("MODIFIED (UTC)    BLAKE3").prints(&format!("{abc} abc.txt"));
    folder.run("ls pc.vhdx --hash md5").expect(2).says("blake3, sha256");
}
