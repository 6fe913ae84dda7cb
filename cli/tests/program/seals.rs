//! `avhdx seal` and `avhdx verify`, and what other verbs do about seals.

use std::fs;

use crate::common::{Folder, NOTES};
use serde_json::Value;

/// The chain with all layers sealed.
fn sealed() -> Folder {
    let folder = Folder::with_chain();
    folder.run("seal l2.vhdx").expect(0).prints("sealed, ").prints("root");
    folder
}

fn verify(folder: &Folder, line: &str, code: i32) -> Value {
    folder.run(&format!("verify {line} --json")).expect(code).json()
}

/// The code and the layer of each finding.
fn found(answer: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = answer["findings"].as_array().unwrap().iter();
    findings.map(|finding| (text(&finding["code"]), text(&finding["image"]))).collect()
}

fn finding(code: &str, layer: &str) -> Vec<(String, String)> {
    vec![(code.into(), layer.into())]
}

/// Flips a bit of the first data that a layer supplies to the disk. Returns where that is on the disk.
fn flip(folder: &Folder, layer: &str) -> u64 {
    let map = folder.run("map l2.vhdx --json").expect(0).text();
    let extents = map.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let own = extents.filter(|extent| extent["image"] == layer && extent["data"] == true);
    let own = own.collect::<Vec<_>>().swap_remove(0);
    let mut image = folder.read(layer);
    image[own["offset"].as_u64().unwrap() as usize] ^= 4;
    fs::write(folder.file(layer), image).unwrap();
    own["start"].as_u64().unwrap()
}

#[test]
fn a_chain_is_sealed_and_proven() {
    let folder = Folder::with_chain();
    let before: Vec<_> = folder.names().iter().map(|name| folder.read(name)).collect();
    folder.run("seal l2.vhdx --print").expect(1).prints("not sealed");
    let first = folder.run("seal l2.vhdx --json").expect(0).json();
    assert!(first["layers"].as_array().unwrap().iter().all(|layer| layer["outcome"] == "written"));
    let again = folder.run("seal l2.vhdx --json").expect(0).json();
    assert!(again["layers"].as_array().unwrap().iter().all(|layer| layer["outcome"] == "kept"));
    assert!(again["layers"].as_array().unwrap().iter().all(|layer| layer["read"] == 0));
    assert_eq!(first["root"], again["root"]);
    let root = first["root"].as_str().unwrap();
    folder.run("seal --print l2.vhdx").expect(0).prints(&format!("{root}  root"));
    folder.run(&format!("verify l2.vhdx --root {root}")).expect(0).prints("Whole: 0 findings");
    let images = folder.names().into_iter().filter(|name| name.ends_with(".vhdx"));
    let after: Vec<_> = images.map(|name| folder.read(&name)).collect();
    assert!(before == after, "no image changes");
    folder.run("verify l2.vhdx --root 12").expect(2);
    let other = root.replace(&root[..1], if root.starts_with('1') { "2" } else { "1" });
    let answer = verify(&folder, &format!("l2.vhdx --root {other}"), 1);
    assert_eq!(found(&answer), finding("seal.root", "l2.vhdx"));
    assert_eq!(answer["findings"][0]["expected"], other);
}

#[test]
fn a_change_is_told_with_its_layer_and_range() {
    let folder = sealed();
    let at = flip(&folder, "l1.vhdx");
    let answer = verify(&folder, "l2.vhdx", 1);
    assert_eq!(found(&answer), finding("seal.changed", "l1.vhdx"));
    assert_eq!(answer["findings"][0]["start"], at / 65536 * 65536);
    assert_eq!(answer["findings"][0]["length"], 65536);
    assert_eq!(answer["whole"], false);
    folder.run("verify l2.vhdx").expect(1).prints("NOT WHOLE").prints("seal.changed");
    verify(&folder, &format!("l2.vhdx --offset {at} --length 1"), 1);
    verify(&folder, "l2.vhdx --offset 3M --length 1M", 0);
    folder.run("verify l2.vhdx --offset 1").expect(2);
    folder.run("verify l2.vhdx --offset 6M --length 1").expect(2).says("do not lie within");
}

#[test]
fn the_files_where_something_changed_are_told() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    folder.run("seal pc.vhdx").expect(0);
    let mut image = folder.read("pc.vhdx");
    let at = image.windows(NOTES.len()).position(|bytes| bytes == NOTES).unwrap();
    image[at] ^= 1;
    fs::write(folder.file("pc.vhdx"), image).unwrap();
    let answer = verify(&folder, "pc.vhdx", 1);
    let files = answer["findings"][0]["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file.as_str().unwrap().ends_with(": /notes.txt")), "{files:?}");
    folder.run("verify pc.vhdx").expect(1).prints("/notes.txt");
    let without = verify(&folder, "pc.vhdx --no-files", 1);
    assert_eq!(without["findings"][0]["files"].as_array().unwrap().len(), 0);
}

#[test]
fn stale_missing_and_damaged_seals_are_told() {
    let folder = sealed();
    folder.run("zero l2.vhdx --offset 0 --length 4K").expect(0);
    assert_eq!(found(&verify(&folder, "l2.vhdx", 1)), finding("seal.stale", "l2.vhdx"));
    // A check says so without reading data.
    folder.run("check l2.vhdx").expect(0).says("l2.vhdx.seal: is of an earlier state");
    folder.run("seal l2.vhdx").expect(0);
    let run = folder.run("check l2.vhdx").expect(0);
    assert!(!run.stderr.contains("seal"), "{}", run.stderr);
    fs::remove_file(folder.file("l0.vhdx.seal")).unwrap();
    assert_eq!(found(&verify(&folder, "l2.vhdx", 1)), finding("seal.missing", "l0.vhdx"));
    let mut seal = folder.read("l1.vhdx.seal");
    seal.truncate(100);
    fs::write(folder.file("l1.vhdx.seal"), seal).unwrap();
    let answer = verify(&folder, "l2.vhdx@-1", 1);
    assert_eq!(found(&answer)[..1], finding("seal.damaged", "l1.vhdx"));
    assert!(answer["findings"][0]["file"].as_str().unwrap().ends_with("l1.vhdx.seal"));
    folder.run("seal l2.vhdx").expect(4);
    folder.run("seal l2.vhdx --again").expect(0);
    verify(&folder, "l2.vhdx", 0);
}

#[test]
fn a_merge_carries_seals_and_refuses_what_changed() {
    let folder = sealed();
    let merged = folder.run("merge l2.vhdx@-1 --json").expect(0).json();
    assert!(merged["seal"].as_str().unwrap().ends_with("l0.vhdx.seal"));
    assert_eq!(folder.names(), ["l0.vhdx", "l0.vhdx.seal", "l2.vhdx", "l2.vhdx.seal"]);
    let whole = verify(&folder, "l2.vhdx", 0);
    let fresh = folder.run("seal l2.vhdx --again --json").expect(0).json();
    assert_eq!(fresh["root"], whole["root"]);

    let folder = sealed();
    flip(&folder, "l1.vhdx");
    let before: Vec<_> = folder.names().iter().map(|name| folder.read(name)).collect();
    folder.run("merge l2.vhdx@-1").expect(7).says("not as its seal says");
    folder.run("delete l2.vhdx@-2").expect(7).says("not as its seal says");
    let after: Vec<_> = folder.names().iter().map(|name| folder.read(name)).collect();
    assert!(before == after, "a refusal changes nothing");
    folder.run("merge l2.vhdx@-1 --ignore-seals").expect(0);
    assert_eq!(found(&verify(&folder, "l2.vhdx", 1)), finding("seal.stale", "l0.vhdx"));

    // What neither moves nor is mixed with what does is not read; its seal goes on to tell.
    let folder = sealed();
    flip(&folder, "l1.vhdx");
    folder.run("delete l2.vhdx@-1").expect(0);
    assert_eq!(found(&verify(&folder, "l2.vhdx", 1)), finding("seal.changed", "l2.vhdx"));
}

#[test]
fn a_tip_that_keeps_its_name_keeps_its_seal_true() {
    for line in
        ["delete l2.vhdx@-1", "merge l2.vhdx --keep-name", "merge l2.vhdx --keep-name --into @base"]
    {
        let folder = sealed();
        folder.run(line).expect(0).prints("l2.vhdx.seal");
        let answer = verify(&folder, "l2.vhdx", 0);
        let layers = answer["layers"].as_array().unwrap();
        assert!(layers.iter().all(|layer| layer["whole"] == true), "{line}: {answer}");
        assert_eq!(folder.names().len(), layers.len() * 2, "{line}: {:?}", folder.names());
    }
    // The tip itself is not sealed: the result is none either, and no seal is left that is of nothing.
    let folder = sealed();
    fs::remove_file(folder.file("l2.vhdx.seal")).unwrap();
    folder.run("delete l2.vhdx@-1").expect(0);
    assert_eq!(folder.names(), ["l0.vhdx", "l0.vhdx.seal", "l2.vhdx"]);
    verify(&folder, "l2.vhdx", 0);
}

#[test]
fn seals_of_removed_images_are_removed() {
    let folder = sealed();
    folder.run("revert l2.vhdx@-1 --delete-newer --path new.avhdx").expect(0);
    assert!(!folder.names().contains(&"l2.vhdx.seal".into()), "{:?}", folder.names());
    verify(&folder, "new.avhdx", 0);
    folder.run("delete new.avhdx@-1 --subtree --lose-branch").expect(0);
    assert_eq!(folder.names(), ["l0.vhdx", "l0.vhdx.seal"]);
}

#[test]
fn verbs_that_change_no_bytes_leave_seals_true() {
    let folder = sealed();
    let root = verify(&folder, "l2.vhdx", 0)["root"].clone();
    for line in ["label l2.vhdx@-1 then", "compact l2.vhdx --content", "check l2.vhdx", "tree ."] {
        folder.run(line).expect(0);
        assert_eq!(verify(&folder, "l2.vhdx", 0)["root"], root, "{line}");
    }
    // Found again elsewhere, and written down.
    fs::create_dir(folder.file("base")).unwrap();
    for name in ["l0.vhdx", "l0.vhdx.seal"] {
        fs::rename(folder.file(name), folder.file("base").join(name)).unwrap();
    }
    folder.run("relink . --parent-dir base").expect(0);
    assert_eq!(verify(&folder, "l2.vhdx", 0)["root"], root);
    // Another parent that shows the same bytes: the layers are true, and the chain is another one.
    folder.run("flatten l1.vhdx flat.vhdx").expect(0);
    folder.run("seal flat.vhdx").expect(0);
    folder.run("reparent l2.vhdx --onto flat.vhdx").expect(0);
    let answer = verify(&folder, "l2.vhdx", 0);
    assert_ne!(answer["root"], root);
}

#[test]
fn a_rebase_takes_away_the_seal_that_it_would_make_wrong() {
    let folder = sealed();
    folder.run("rebase l2.vhdx --onto l0.vhdx --dry-run").expect(0);
    folder.run("rebase l2.vhdx --onto missing.vhdx").expect(3);
    assert!(folder.file("l2.vhdx.seal").exists());
    folder.run("rebase l2.vhdx --onto l0.vhdx").expect(0).says("l2.vhdx.seal: removed");
    let answer = verify(&folder, "l2.vhdx", 0);
    assert_eq!(answer["layers"][0]["left_out"], "not-sealed");
    folder.run("seal l2.vhdx").expect(0);
    verify(&folder, "l2.vhdx", 0);
}

#[test]
fn seals_are_no_images() {
    let folder = sealed();
    let tree = folder.run("tree . --json").expect(0).text();
    assert!(!tree.contains(".seal"), "{tree}");
    // A search for children reads none of them.
    folder.run("write l2.vhdx --offset 0").expect(0);
    folder.run("checkpoint l2.vhdx --path l3.avhdx").expect(0);
    let run = folder.run("points l3.avhdx").expect(0);
    assert!(!run.text().contains(".seal"));
    // Another disk identity is another disk.
    folder.run("seal l3.avhdx").expect(0);
    folder.run("metadata l3.avhdx --disk-id new").expect(0);
    assert_eq!(found(&verify(&folder, "l3.avhdx", 1)), finding("seal.stale", "l3.avhdx"));
    folder.run("seal l3.avhdx").expect(0);
    verify(&folder, "l3.avhdx", 0);
}
