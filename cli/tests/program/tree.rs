//! `avhdx tree`: the forest, its faults, and confidential identities.
#![allow(clippy::disallowed_methods)] // stands outside the crate

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::common::{Folder, Run, chain, flats, guid, name};
use avhdx_testkit::build::{Block, Data, Image, braced, write_chain};
use avhdx_testkit::{images, mutate};
use serde_json::Value;
use uuid::Uuid;

/// The chains by another writer, unpacked; `None` if there are none.
fn foreign() -> Option<Folder> {
    let from = match images::image("chains") {
        Some(chains) => chains,
        None => images::fixtures_dir().join("chains"),
    };
    if !from.is_dir() {
        eprintln!("skipped: no chains by another writer; AVHDX_IMAGES names a folder with some");
        return None;
    }
    let folder = Folder::new();
    images::unpack_tree(&from, &folder.file("chains"));
    Some(folder)
}

/// The parent of each image, by path; `None` for roots.
fn edges(document: &Value) -> BTreeMap<String, Option<String>> {
    let images = document["images"].as_array().unwrap();
    let path = |image: &Value| image["image"].as_str().unwrap().to_owned();
    let parent = |image: &Value| image["parent_id"].as_u64().map(|i| path(&images[i as usize]));
    images.iter().map(|image| (path(image), parent(image))).collect()
}

fn codes(document: &Value) -> Vec<&str> {
    let findings = document["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["code"].as_str().unwrap()).collect()
}

/// The image of that path in the document.
#[track_caller]
fn image<'a>(document: &'a Value, path: &str) -> &'a Value {
    let images = document["images"].as_array().unwrap();
    let found = images.iter().find(|image| image["image"] == path);
    found.unwrap_or_else(|| panic!("no {path} in {document:#}"))
}

/// The number that refers to an image in the document.
fn number(document: &Value, path: &str) -> Value {
    image(document, path)["id"].clone()
}

#[track_caller]
fn finding<'a>(document: &'a Value, code: &str) -> &'a Value {
    let findings = document["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["code"] == code);
    found.unwrap_or_else(|| panic!("no {code} in {document:#}"))
}

fn json(folder: &Folder, line: &str, code: i32) -> Value {
    let run = folder.run(&format!("tree --json {line}")).expect(code);
    assert_eq!(run.stderr, "");
    run.json()
}

fn set_identity(path: &Path, to: Uuid) {
    let mut bytes = fs::read(path).unwrap();
    // [MS-VHDX] 2.2.2: both headers.
    mutate::put_uuid(&mut bytes, 0x1_0000 + 32, to);
    mutate::put_uuid(&mut bytes, 0x2_0000 + 32, to);
    mutate::reseal_headers(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// An image of 4 MiB with the identity `n`.
fn base(n: u8) -> Image {
    let mut image = Image::dynamic(4 << 20);
    name(&mut image, n);
    image
}

/// A child of the image with the identity `parent`.
fn child(n: u8, parent: u8, path: &str) -> Image {
    let mut image = Image::child(4 << 20, guid(parent));
    name(&mut image, n);
    image.parent_path(path);
    image
}

fn write(folder: &Folder, path: &str, image: &Image) -> PathBuf {
    let path = folder.file(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.write_to(&path);
    path
}

fn touch(path: &Path, seconds: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

#[test]
fn without_a_folder_it_draws_this_one() {
    let folder = Folder::with_chain();
    assert_eq!(folder.run("tree").expect(0).stdout, folder.run("tree .").expect(0).stdout);
}

#[test]
fn chains_by_another_writer_are_six_sound_trees() {
    let Some(folder) = foreign() else { return };
    let document = json(&folder, "chains", 0);
    assert_eq!(document["schema"], "avhdx.tree/1");
    assert_eq!(document["root_ids"].as_array().unwrap().len(), 6);
    assert_eq!(codes(&document), [""; 0]);

    let mut expected: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut add = |folder: &str, layers: &[&str]| {
        let paths: Vec<String> =
            layers.iter().map(|layer| format!("chains/{folder}/{layer}.vhdx")).collect();
        expected.insert(paths[0].clone(), None);
        expected.extend(paths.windows(2).map(|pair| (pair[1].clone(), Some(pair[0].clone()))));
    };
    add("b1m-tail", &["l0", "l1", "l2"]);
    add("s4096", &["l0", "l1", "l2"]);
    add("states", &["l0", "l1", "l2"]);
    add("deep6", &["l0", "l1", "l2", "l3", "l4", "l5"]);
    add("fixed-base", &["l0", "l1"]);
    add("dirs", &["images/base/wurzel ä", "images/mid/one", "images/mid/sub/two", "users/tip"]);
    assert_eq!(edges(&document), expected);
    for (path, size) in
        [("b1m-tail/l2", 9_439_744), ("s4096/l1", 12 << 20), ("dirs/users/tip", 5 << 20)]
    {
        assert_eq!(image(&document, &format!("chains/{path}.vhdx"))["virtual_size"], size);
    }

    let text = folder.run("tree chains").expect(0).text();
    assert!(text.starts_with("chains: 21 images in 6 trees, all on one volume\n\n"), "{text}");
    for line in [
        "deep6/l0.vhdx ",
        "└─ l1.vhdx ",
        "   └─ l2.vhdx ",
        "            └─ l5.vhdx ",
        "dirs/images/base/wurzel ä.vhdx ",
        "└─ dirs/images/mid/one.vhdx ",
        "      └─ dirs/users/tip.vhdx ",
    ] {
        assert!(text.lines().any(|drawn| drawn.starts_with(line)), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("!!"), "{text}");

    let tips = folder.run("tree chains --tips").expect(0).text();
    assert_eq!(tips.matches("  complete, on one volume").count(), 6, "{tips}");
    // Nothing is to be done about them.
    assert!(!tips.contains("avhdx"), "{tips}");
}

#[test]
fn a_renamed_parent_and_a_changed_identity_are_both_reported() {
    let Some(folder) = foreign() else { return };
    fs::rename(folder.file("chains/deep6/l2.vhdx"), folder.file("chains/deep6/moved.bin")).unwrap();
    let expected = "c9b9bdb0-4e08-4df4-a013-504ad5aff47a";
    set_identity(&folder.file("chains/b1m-tail/l0.vhdx"), guid(7));

    let run = folder.run("tree chains").expect(1);
    run.prints("7 trees")
        .prints("!! broken link [1]")
        .prints("!! stale path [2]")
        .prints("2 faults:")
        .prints("broken link: b1m-tail/l1.vhdx\n")
        .prints("leads to b1m-tail/l0.vhdx\n")
        .prints(&format!("expected identity: {expected}\n"))
        .prints(&format!("found identity:    {}\n", guid(7)))
        .prints("no file here has the expected identity\n")
        .prints("stale path: deep6/l3.vhdx\n")
        .prints(r"recorded: .\l2.vhdx,")
        .prints("the parent by identity is deep6/moved.bin\n")
        .prints(
            "next: avhdx info --chain --with-parent chains/deep6/moved.bin chains/deep6/l3.vhdx\n",
        );

    let document = json(&folder, "chains", 1);
    assert_eq!(codes(&document), ["broken-link", "stale-path"]);
    let broken = finding(&document, "broken-link");
    assert_eq!(broken["image_id"], number(&document, "chains/b1m-tail/l1.vhdx"));
    assert_eq!(broken["leads_to"]["image_id"], number(&document, "chains/b1m-tail/l0.vhdx"));
    assert_eq!(broken["expected"][0], expected);
    assert_eq!(broken["leads_to"]["data_write_guid"], guid(7).to_string());
    assert_eq!(broken["match_ids"].as_array().unwrap().len(), 0);
    let stale = finding(&document, "stale-path");
    assert_eq!(stale["image_id"], number(&document, "chains/deep6/l3.vhdx"));
    assert_eq!(stale["match_ids"][0], number(&document, "chains/deep6/moved.bin"));

    // The command of --tips reads the disk.
    let tips = folder.run("tree chains --tips").expect(1);
    let convert = "convert -O raw --with-parent chains/deep6/moved.bin chains/deep6/l5.vhdx OUT";
    let tips = tips.prints(convert).prints("complete with --with-parent");
    let _ = tips.prints("broken: the parent of b1m-tail/l1.vhdx is missing");
    folder.run("convert -O raw chains/deep6/l5.vhdx OUT").expect(5);
    folder.run(convert).expect(0);
    let sums = images::image("chains/expected.sha256")
        .unwrap_or_else(|| images::fixtures_dir().join("chains/expected.sha256"));
    let sums = images::expected(&sums);
    let sum = sums.iter().find(|(_, path)| path.ends_with("deep6/l5.vhdx")).unwrap();
    assert_eq!(images::sha256_file(&folder.file("OUT")), sum.0);
}

#[test]
fn a_parent_that_was_replaced_is_found_in_another_folder() {
    let folder = Folder::new();
    write(&folder, "vm/parent.vhdx", &base(3));
    write(&folder, "vm/old/parent.vhdx", &base(1));
    write(&folder, "vm/tip.avhdx", &child(2, 1, ".\\parent.vhdx"));
    let document = json(&folder, "vm", 1);
    assert_eq!(codes(&document), ["broken-link"]);
    let broken = finding(&document, "broken-link");
    assert_eq!(broken["leads_to"]["data_write_guid"], guid(3).to_string());
    assert_eq!(broken["expected"][0], guid(1).to_string());
    assert_eq!(broken["match_ids"][0], number(&document, "vm/old/parent.vhdx"));
    assert_eq!(edges(&document)["vm/tip.avhdx"].as_deref(), Some("vm/old/parent.vhdx"));
    let _ = folder
        .run("tree vm")
        .prints("the expected identity is that of old/parent.vhdx\n")
        .prints("next: avhdx info --chain --with-parent vm/old/parent.vhdx vm/tip.avhdx\n");
}

#[test]
fn branches_are_sorted_by_time() {
    let folder = Folder::new();
    write(&folder, "vm/base.vhdx", &base(0));
    for (n, file, time) in [(1, "c", 1000), (2, "a", 3000), (3, "b", 2000), (4, "d", 1000)] {
        let file = format!("vm/{file}.avhdx");
        touch(&write(&folder, &file, &child(n, 0, ".\\base.vhdx")), time);
    }
    write(&folder, "vm/e.avhdx", &child(5, 1, ".\\c.avhdx"));
    let text = folder.run("tree vm --ascii").expect(0).text();
    let drawn: Vec<&str> =
        text.lines().skip(3).map(|line| line.split(".avhdx").next().unwrap()).collect();
    assert_eq!(drawn[1..], ["|- c", "|  `- e", "|- d", "|- b", "`- a"], "{text}");
    let boxes = folder.run("tree vm").expect(0);
    let _ = boxes.prints("├─ c.avhdx").prints("│  └─ e.avhdx").prints("└─ a.avhdx");
    let document = json(&folder, "vm", 0);
    assert_eq!(document["tips"].as_array().unwrap().len(), 4);
    assert_eq!(image(&document, "vm/c.avhdx")["modified"], "1970-01-01T00:16:40Z");
}

#[test]
fn the_duplicate_at_the_recorded_path_is_the_parent() {
    let folder = Folder::new();
    // In the order of names, copies come before and after the original.
    for file in ["vm/a/copy.vhdx", "vm/m/base.vhdx", "vm/z/copy.vhdx"] {
        write(&folder, file, &base(0));
    }
    write(&folder, "vm/tip.avhdx", &child(1, 0, ".\\m\\base.vhdx"));
    let document = json(&folder, "vm", 0);
    assert_eq!(edges(&document)["vm/tip.avhdx"].as_deref(), Some("vm/m/base.vhdx"));
    assert_eq!(codes(&document), ["duplicates"]);
    let found = finding(&document, "duplicates");
    assert_eq!(found["data_write_guid"], guid(0).to_string());
    assert_eq!(found["image_ids"].as_array().unwrap().len(), 3);
    assert_eq!(found["preferred_ids"], serde_json::json!([number(&document, "vm/m/base.vhdx")]));
    let run = folder.run("tree vm").expect(0);
    let run = run.prints("m/base.vhdx  (at a recorded path)\n").prints("1 note:");
    assert_eq!(run.text().matches("  duplicate [1]").count(), 3, "{}", run.text());
}

#[test]
fn hard_links_are_not_duplicates() {
    let folder = Folder::with_chain();
    fs::hard_link(folder.file("l1.vhdx"), folder.file("other.vhdx")).unwrap();
    let document = json(&folder, ". . l1.vhdx", 0);
    assert_eq!(document["images"].as_array().unwrap().len(), 3);
    assert_eq!(codes(&document), [""; 0]);
}

#[test]
fn loops_are_reported() {
    let folder = Folder::new();
    write(&folder, "vm/a.vhdx", &child(1, 2, ".\\b.vhdx"));
    write(&folder, "vm/b.vhdx", &child(2, 1, ".\\a.vhdx"));
    write(&folder, "vm/self.vhdx", &child(3, 3, ".\\self.vhdx"));
    write(&folder, "vm/tail.vhdx", &child(4, 2, ".\\b.vhdx"));
    let document = json(&folder, "vm", 1);
    assert_eq!(codes(&document), ["loop", "loop"]);
    let loops: Vec<&Value> = document["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| &finding["image_ids"])
        .collect();
    let number = |path| number(&document, path);
    assert_eq!(*loops[0], serde_json::json!([number("vm/a.vhdx"), number("vm/b.vhdx")]));
    assert_eq!(*loops[1], serde_json::json!([number("vm/self.vhdx")]));
    // Each image is drawn once, and every tip that leads into a loop is broken.
    assert_eq!(document["images"].as_array().unwrap().len(), 4);
    let tips = document["tips"].as_array().unwrap();
    assert_eq!(tips.len(), 2);
    assert!(tips.iter().all(|tip| tip["complete"] == false), "{tips:#?}");
    let _ = folder
        .run("tree vm")
        .expect(1)
        .prints("the parent of a.vhdx is b.vhdx\n")
        .prints("the parent of self.vhdx is self.vhdx\n");
    let _ =
        folder.run("tree vm --tips").expect(1).prints("broken: self.vhdx leads back to self.vhdx");
}

#[test]
fn an_image_with_its_parents_identity_is_not_its_own_parent() {
    // Some writers copy the parent's identity into the child.
    let folder = Folder::new();
    write(&folder, "vm/tip.avhdx", &child(1, 1, ".\\parent.vhdx"));
    let document = json(&folder, "vm", 1);
    assert_eq!(codes(&document), ["orphan"]);
    write(&folder, "vm/parent.vhdx", &base(1));
    let document = json(&folder, "vm", 0);
    assert_eq!(codes(&document), ["duplicates"]);
    assert_eq!(edges(&document)["vm/tip.avhdx"].as_deref(), Some("vm/parent.vhdx"));
}

#[test]
fn an_orphan_shows_the_expected_identity() {
    let folder = Folder::with_chain();
    fs::remove_file(folder.file("l1.vhdx")).unwrap();
    let run = folder.run("tree .").expect(1);
    let _ = run
        .prints("!! orphan [1]")
        .prints("orphan: l2.vhdx\n")
        .prints(&format!("expected parent identity: {}\n", guid(1)))
        .prints(r"recorded: .\l1.vhdx")
        .prints("tried l1.vhdx: no file\n");
    let document = json(&folder, ".", 1);
    let orphan = finding(&document, "orphan");
    assert_eq!(orphan["expected"], serde_json::json!([guid(1).to_string()]));
    assert_eq!(document["root_ids"].as_array().unwrap().len(), 2);
    let _ =
        folder.run("tree . --tips").expect(1).prints("broken: the parent of l2.vhdx is missing");
}

#[test]
fn the_second_linkage_is_followed() {
    let folder = Folder::new();
    write(&folder, "base.vhdx", &base(5));
    let mut tip = child(1, 9, ".\\base.vhdx");
    tip.locator.set("parent_linkage2", braced(guid(5)));
    write(&folder, "tip.avhdx", &tip);
    let document = json(&folder, ".", 0);
    assert_eq!(edges(&document)["./tip.avhdx"].as_deref(), Some("./base.vhdx"));
    fs::rename(folder.file("base.vhdx"), folder.file("moved.vhdx")).unwrap();
    let document = json(&folder, ".", 1);
    assert_eq!(codes(&document), ["stale-path"]);
    fs::remove_file(folder.file("moved.vhdx")).unwrap();
    let document = json(&folder, ".", 1);
    let expected = [guid(9).to_string(), guid(5).to_string()];
    assert_eq!(finding(&document, "orphan")["expected"], serde_json::json!(expected));
}

#[test]
fn images_are_found_by_their_signature() {
    let folder = Folder::new();
    let [bottom, middle, tip] = &chain()[..] else { unreachable!() };
    write(&folder, "vm/bottom.raw", bottom);
    write(&folder, "vm/middle", middle.clone().parent_path(".\\bottom.raw"));
    write(&folder, "vm/tip.txt", tip.clone().parent_path(".\\middle"));
    fs::write(folder.file("vm/notes.txt"), "no image").unwrap();
    fs::write(folder.file("vm/disk.vhd"), "conectix").unwrap();
    fs::write(folder.file("vm/empty"), "").unwrap();
    fs::write(folder.file("vm/zeros.bin"), [0; 1 << 17]).unwrap();
    let document = json(&folder, "vm", 0);
    assert_eq!(document["images"].as_array().unwrap().len(), 3);
    assert_eq!(edges(&document)["vm/tip.txt"].as_deref(), Some("vm/middle"));

    // A file named like an image without a signature is a fault: it may be a damaged image.
    fs::write(folder.file("vm/lost.AVHDX"), [0; 4096]).unwrap();
    fs::write(folder.file("vm/short.vhdx"), "vhdx").unwrap();
    let document = json(&folder, "vm", 1);
    assert_eq!(codes(&document), ["no-signature", "no-signature"]);
    let run = folder.run("tree vm").expect(1);
    let _ = run.prints("no signature: lost.AVHDX\n").prints("no signature: short.vhdx\n");
}

#[test]
fn damaged_images_are_listed_with_their_errors() {
    let folder = Folder::with_chain();
    // The base loses its regions but not its headers: its identity is still known.
    let mut bytes = folder.read("l0.vhdx");
    bytes[0x3_0000..0x5_0000].fill(0);
    fs::write(folder.file("l0.vhdx"), &bytes).unwrap();
    // One file is truncated within the headers, one right after the signature.
    fs::write(folder.file("cut.vhdx"), &bytes[..0x1_0800]).unwrap();
    fs::write(folder.file("stump.vhdx"), &bytes[..8]).unwrap();
    let document = json(&folder, ".", 1);
    assert_eq!(codes(&document), ["damaged", "damaged", "damaged"]);
    assert_eq!(edges(&document)["./l1.vhdx"].as_deref(), Some("./l0.vhdx"));
    let damaged = image(&document, "./l0.vhdx");
    assert_eq!(damaged["data_write_guid"], guid(0).to_string());
    assert_eq!(damaged["virtual_size"], Value::Null);
    assert_eq!(damaged["error"]["section"], "2.2.3.1");
    assert_eq!(image(&document, "./cut.vhdx")["data_write_guid"], Value::Null);
    assert_eq!(image(&document, "./stump.vhdx")["error"]["section"], "2.2.1");
    let run = folder.run("tree .").expect(1);
    let _ = run.prints("!! damaged [").prints("damaged: l0.vhdx\n").prints("[MS-VHDX 2.2.3.1]");
    let _ = folder.run("tree . --tips").expect(1).prints("broken: l0.vhdx: ");
}

#[test]
fn a_parent_outside_the_folders_is_shown() {
    let folder = Folder::new();
    write(&folder, "bases/base.vhdx", &base(0));
    write(&folder, "bases/mid.avhdx", &child(1, 0, ".\\base.vhdx"));
    write(&folder, "bases/stranger.vhdx", &base(8));
    write(&folder, "vm/tip.avhdx", &child(2, 1, "..\\bases\\mid.avhdx"));
    let document = json(&folder, "vm", 0);
    assert_eq!(codes(&document), [""; 0]);
    let outside: Vec<&Value> =
        document["images"].as_array().unwrap().iter().map(|image| &image["outside"]).collect();
    assert_eq!(outside, [true, true, false]);
    let tip = &document["tips"][0];
    assert_eq!((&tip["complete"], tip["layer_ids"].as_array().unwrap().len()), (&true.into(), 3));
    let run = folder.run("tree vm").expect(0).prints("2 of them outside").prints("(outside)");
    assert!(!run.text().contains("stranger"), "{}", run.text());
}

#[test]
fn the_identity_of_an_unrelated_file_outside_the_folders_is_not_shown() {
    let folder = Folder::new();
    write(&folder, "bases/base.vhdx", &base(8));
    write(&folder, "vm/tip.avhdx", &child(2, 1, "..\\bases\\base.vhdx"));
    let secret = &guid(8).to_string();
    // No output shows it, not even its first digits.
    let secrets = [secret.as_str(), &secret[..8], &secret.replace('-', "")];
    let check = |run: Run| {
        for secret in secrets {
            let all = run.text().to_lowercase() + &run.stderr.to_lowercase();
            assert!(!all.contains(secret), "{all}");
        }
        run
    };
    for line in [
        "tree vm --tips",
        "tree vm --json",
        "tree vm --with-parent bases/base.vhdx",
        "tree vm --json --parent-dir bases",
        "tree vm --json --confine vm",
    ] {
        check(folder.run(line).expect(1));
    }
    let _ = check(folder.run("tree vm").expect(1))
        .prints("broken link: tip.avhdx\n")
        .prints(&format!("expected identity: {}\n", guid(1)))
        .prints("found identity:    different or none; not shown for files outside");
    // A file that is not an image gives the same output.
    let before = json(&folder, "vm", 1);
    fs::write(folder.file("bases/base.vhdx"), "root:x:0:0").unwrap();
    let after = json(&folder, "vm", 1);
    assert_eq!(before["findings"], after["findings"]);
    // It is shown once its folder is given.
    write(&folder, "bases/base.vhdx", &base(8));
    let document = json(&folder, "vm bases", 1);
    assert_eq!(finding(&document, "broken-link")["leads_to"]["data_write_guid"], *secret);
}

#[test]
fn parents_outside_confine_are_not_opened() {
    let folder = Folder::new();
    write(&folder, "bases/base.vhdx", &base(1));
    write(&folder, "vm/tip.avhdx", &child(2, 1, "..\\bases\\base.vhdx"));
    json(&folder, "vm", 0);
    let document = json(&folder, "vm --confine vm", 1);
    assert_eq!(codes(&document), ["orphan"]);
    assert_eq!(document["images"].as_array().unwrap().len(), 1);
    assert_eq!(document["images"][0]["link"]["leads"][0]["leads_to"], "denied");
}

#[test]
fn the_flags_for_parents_find_them() {
    let folder = Folder::new();
    write(&folder, "attic/old name.vhdx", &base(1));
    let mut tip = child(2, 1, ".\\base.vhdx");
    tip.locator.set("absolute_win32_path", "\\\\?\\D:\\vm\\base.vhdx");
    write(&folder, "vm/tip.avhdx", &tip);
    assert_eq!(codes(&json(&folder, "vm", 1)), ["orphan"]);
    let by = |document: &Value| image(document, "vm/tip.avhdx")["link"]["found_by"].clone();
    assert_eq!(by(&json(&folder, "vm --parent-dir attic", 0)), "folder-search");
    fs::rename(folder.file("attic/old name.vhdx"), folder.file("attic/BASE.vhdx")).unwrap();
    assert_eq!(by(&json(&folder, "vm --parent-dir attic", 0)), "folder-name");
    assert_eq!(by(&json(&folder, "vm --with-parent attic/BASE.vhdx", 0)), "given");
    let mapped = json(&folder, "vm --path-map D:\\VM=attic", 0);
    assert_eq!(by(&mapped), "absolute_win32_path");
    // If its folder is scanned, the parent is found by identity, and the path is stale.
    assert_eq!(codes(&json(&folder, "vm attic", 1)), ["stale-path"]);
    // The command of --tips reads the disk.
    let commands = &mapped["tips"][0]["next"];
    let command = commands[1].as_str().unwrap().strip_prefix("avhdx ").unwrap();
    assert_eq!(fs::read(folder.file("vm/tip.avhdx")).unwrap().len(), 4 << 20);
    folder.run(command).expect(0);
    assert_eq!(folder.read("OUT"), vec![0; 4 << 20]);
}

#[test]
fn tips_show_pending_logs_and_images_in_use() {
    let folder = Folder::new();
    let [bottom, middle, tip] = &chain()[..] else { unreachable!() };
    let mut before = middle.clone();
    before.blocks.clear();
    let dirty = Image::dirty(&before, middle, Uuid::from_u128(77), 1);
    write_chain(folder.path(), &[bottom.clone(), dirty, tip.clone()]);
    let document = json(&folder, ".", 0);
    assert_eq!(image(&document, "./l1.vhdx")["log_pending"], true);
    let tip = &document["tips"][0];
    assert_eq!(tip["log_pending_ids"], serde_json::json!([number(&document, "./l1.vhdx")]));
    let row = folder.run("tree . --tips").expect(0).text();
    let row: Vec<&str> = row.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..5], ["l2.vhdx", "6", "MiB", "3", "pending"]);
    let _ = folder.run("tree .").expect(0).prints("(log pending)");
    assert_eq!(flats()[2].len(), 6 << 20);

    let held = File::open(folder.file("l2.vhdx")).unwrap();
    held.lock().unwrap();
    let document = json(&folder, ".", 0);
    assert_eq!(image(&document, "./l2.vhdx")["in_use"], true);
    let _ = folder.run("tree .").expect(0).prints("(in use)");
}

#[test]
fn a_log_without_entries_is_a_fault_of_its_image_only() {
    let folder = Folder::new();
    let mut images = chain();
    images[1].set_log_guid(Uuid::from_u128(5));
    write_chain(folder.path(), &images);
    let document = json(&folder, ".", 1);
    assert_eq!(codes(&document), ["damaged"]);
    assert_eq!(edges(&document)["./l2.vhdx"].as_deref(), Some("./l1.vhdx"));
}

#[test]
fn sector_sizes_must_agree() {
    let folder = Folder::new();
    write(&folder, "base.vhdx", &base(0));
    let mut tip = child(1, 0, ".\\base.vhdx");
    tip.logical_sector = 4096;
    write(&folder, "tip.avhdx", &tip);
    assert_eq!(codes(&json(&folder, ".", 1)), ["sector-sizes"]);
    let run = folder.run("tree .").expect(1);
    let _ = run.prints("4096 bytes in tip.avhdx\n").prints("512 bytes in base.vhdx\n");
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folders_and_circular_links_are_not_followed() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    fs::create_dir_all(folder.file("vm/a/b")).unwrap();
    for (n, image) in chain().iter_mut().enumerate() {
        write(
            &folder,
            &format!("vm/a/b/l{n}.vhdx"),
            image.parent_path(&format!(".\\l{}.vhdx", n.max(1) - 1)),
        );
    }
    write(&folder, "secret/other.vhdx", &base(8));
    symlink(folder.file("vm"), folder.file("vm/a/b/up")).unwrap();
    symlink("..", folder.file("vm/a/up")).unwrap();
    symlink("self", folder.file("vm/a/self")).unwrap();
    symlink("nowhere", folder.file("vm/a/dangling.vhdx")).unwrap();
    symlink("l2.vhdx", folder.file("vm/a/b/current.avhdx")).unwrap();
    symlink("../secret", folder.file("vm/secret")).unwrap();
    symlink("../secret/other.vhdx", folder.file("vm/bait.vhdx")).unwrap();
    let document = json(&folder, "vm", 0);
    assert_eq!(document["images"].as_array().unwrap().len(), 3);
    assert_eq!(codes(&document), ["link-outside", "link-outside"]);
    let run = folder.run("tree vm").expect(0).prints("link outside: bait.vhdx was not followed\n");
    assert!(!run.text().contains(&guid(8).to_string()[..8]), "{}", run.text());
    // A link given as an argument is followed.
    let document = json(&folder, "vm vm/bait.vhdx", 0);
    assert_eq!(image(&document, "vm/bait.vhdx")["data_write_guid"], guid(8).to_string());
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_opened() {
    let folder = Folder::with_chain();
    // Opening a pipe would wait for its other end.
    let made = std::process::Command::new("mkfifo").arg(folder.file("pipe.vhdx")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(folder.file("s")).unwrap();
    assert_eq!(json(&folder, ".", 0)["images"].as_array().unwrap().len(), 3);
    assert_eq!(codes(&json(&folder, "pipe.vhdx", 1)), ["unreadable"]);
    // No right to read would help.
    let told = folder.run("tree pipe.vhdx").expect(1).text();
    assert!(told.contains("this is a FIFO") && !told.contains("next:"), "{told}");
    fs::remove_file(folder.file("l1.vhdx")).unwrap();
    fs::rename(folder.file("pipe.vhdx"), folder.file("l1.vhdx")).unwrap();
    let told = folder.run("tree .").expect(1).text();
    assert!(told.contains("found identity:    none: this is a FIFO"), "{told}");
}

#[test]
fn no_command_of_a_tree_is_a_tree_of_the_same_folder() {
    let folder = Folder::new();
    fs::write(folder.file("page.vhdx"), "<!DOCTYPE html><html></html>").unwrap();
    fs::write(folder.file("zeros.vhdx"), [0; 1 << 20]).unwrap();
    let told = folder.run("tree .").expect(1).text();
    assert!(told.contains("HTML page") && told.contains("nothing but zeros"), "{told}");
    assert!(!told.contains("next: avhdx tree"), "{told}");
}

#[test]
fn deep_chains_and_deep_folders_are_shown() {
    let folder = Folder::new();
    let identity = |n: u32| Uuid::from_u128(0xabcd_0000 + u128::from(n));
    for n in 0..300 {
        let mut image = match n {
            0 => Image::dynamic(1 << 20),
            _ => Image::child(1 << 20, identity(n - 1)),
        };
        image.set_data_write_guid(identity(n));
        if n > 0 {
            image.parent_path(&format!(".\\l{}.avhdx", n - 1));
        }
        write(&folder, &format!("vm/l{n}.avhdx"), &image);
    }
    let mut deep = folder.file("vm");
    for _ in 0..900 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    base(1).write_to(deep.join("bottom.vhdx"));
    let document = json(&folder, "vm", 0);
    assert_eq!(document["root_ids"].as_array().unwrap().len(), 2);
    assert_eq!(image(&document, "vm/l299.avhdx")["level"], 299);
    let text = folder.run("tree vm").expect(0).text();
    assert!(text.lines().any(|line| line.contains("…299 └─ l299.avhdx")), "{text}");
    // Deeper than the default of --max-depth.
    let tips = folder.run("tree vm --tips").expect(0);
    let command = "convert -O raw --max-depth 300 vm/l299.avhdx OUT";
    let _ = tips.prints(command);
    folder.run(command).expect(0);
}

#[cfg(unix)]
#[test]
fn names_and_creators_are_escaped() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new();
    fs::create_dir(folder.file("vm")).unwrap();
    let mut image = child(1, 9, "\x1b]0;owned\x07.vhdx");
    image.creator = "\x1b[2J".encode_utf16().collect();
    let name = std::ffi::OsStr::from_bytes(b"a\x1b[31m\xff\n.vhdx");
    image.write_to(folder.file("vm").join(name));
    for line in ["tree vm", "tree vm --tips", "tree vm --json"] {
        let run = folder.run(line).expect(1);
        let is_raw = |byte: &u8| byte.is_ascii_control() && *byte != b'\n';
        assert!(!run.stdout.iter().any(is_raw), "{}", run.text());
    }
    let _ = folder.run("tree vm").prints(r"orphan: a\u{1b}[31m");
}

#[test]
fn missing_folders_are_errors() {
    let folder = Folder::with_chain();
    let _ = folder.run("tree . nowhere").expect(3).says("nowhere: cannot look there");
    fs::create_dir(folder.file("empty")).unwrap();
    let _ = folder.run("tree empty").expect(0).prints("empty: 0 images in 0 trees\n");
    assert_eq!(json(&folder, "l2.vhdx", 0)["images"].as_array().unwrap().len(), 3);
}

#[test]
fn tree_changes_nothing() {
    let folder = Folder::with_chain();
    let sums = || ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.read(name));
    let (before, names) = (sums(), folder.names());
    folder.run("tree . --tips").expect(0);
    assert!(sums() == before);
    assert_eq!(folder.names(), names);
}

#[test]
fn block_tables_are_not_read() {
    // Otherwise a base of 64 TiB would take long.
    let folder = Folder::new();
    let mut huge = Image::dynamic(64 << 40);
    name(&mut huge, 0);
    huge.put(1, Block::full(Data::Pattern(1)));
    write(&folder, "huge.vhdx", &huge);
    assert_eq!(image(&json(&folder, ".", 0), "./huge.vhdx")["virtual_size"], 64_u64 << 40);
}

#[test]
fn the_json_is_stable() {
    // Programs depend on it, so keys are only ever added.
    let folder = Folder::with_chain();
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    for file in ["l1.vhdx", "l2.vhdx"] {
        touch(&folder.file(file), 86_400);
    }
    let mut document = json(&folder, ".", 1);
    // These depend on the machine.
    for image in document["images"].as_array_mut().unwrap() {
        for key in ["file_allocated", "volume"] {
            assert!(image[key].is_u64() || image[key].is_null(), "{key}");
            image[key] = "its own".into();
        }
    }
    document["tips"][0]["volumes"] = "its own".into();
    let text = format!("{document:#}\n");
    assert_eq!(text, include_str!("tree.json"));
}
