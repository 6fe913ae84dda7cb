//! `avhdx check`: output and exit codes.

use crate::common::{Folder, chain, guid};
use avhdx_testkit::build::{Block, write_chain};
use avhdx_testkit::build::{Checksum, state};

#[test]
fn a_sound_chain_exits_with_0() {
    let folder = Folder::with_chain();
    let run = folder.run("check l2.vhdx").expect(0);
    let expected = "\
l1.vhdx (relative_path)
  info     chain.size: the disk is smaller than that of the child l2.vhdx at 0x200000 [MS-VHDX 2.6.2.2]
           found 4194304, expected 6291456
           The disk was resized between the two layers: data beyond the child's disk is hidden, and beyond the parent's disk are zeros.

Sound: 0 errors, 0 warnings and 1 remark in 3 layers
";
    assert_eq!(run.text(), expected);
    let run = folder.run("check l2.vhdx -v").expect(0);
    let expected = "\
l2.vhdx
  nothing to report

l1.vhdx (relative_path)
  info     chain.size: the disk is smaller than that of the child l2.vhdx at 0x200000 [MS-VHDX 2.6.2.2]
           found 4194304, expected 6291456
           The disk was resized between the two layers: data beyond the child's disk is hidden, and beyond the parent's disk are zeros.

l0.vhdx (relative_path)
  nothing to report

Sound: 0 errors, 0 warnings and 1 remark in 3 layers
";
    assert_eq!(run.text(), expected);
    assert_eq!(run.stderr, "");
    let alone = folder.run("check l2.vhdx --layer --verbose").expect(0);
    assert_eq!(
        alone.text(),
        "l2.vhdx\n  nothing to report\n\nSound: 0 errors, 0 warnings and 0 remarks in 1 layer\n"
    );
    let alone = folder.run("check l2.vhdx@base").expect(0);
    assert_eq!(alone.text(), "Sound: 0 errors, 0 warnings and 0 remarks in 1 layer\n");
    // The exit code and JSON do not depend on it.
    let json = folder.run("check l2.vhdx --json").expect(0).json();
    assert_eq!((&json["infos"], &json["findings"][0]["code"]), (&1.into(), &"chain.size".into()));
}

#[test]
fn findings_are_sorted_by_severity_and_set_the_exit_code() {
    let folder = Folder::new();
    let mut images = chain();
    images[2].headers[0].as_mut().unwrap().checksum = Checksum::Wrong;
    images[2].put(1, Block::bare(state::UNDEFINED).with_state(4));
    write_chain(folder.path(), &images);
    let run = folder.run("check l2.vhdx --layer").expect(1);
    let text = run.text();
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in\n{text}"));
    assert!(place("  error    bat.state: ") < place("  warning  header.checksum: "));
    assert!(text.ends_with("NOT SOUND: 1 error, 1 warning and 0 remarks in 1 layer\n"), "{text}");
    // The damaged block cannot be read, but the whole chain is checked.
    let whole = folder.run("check l2.vhdx").expect(1);
    assert!(whole.text().contains("in 3 layers"));
}

#[test]
fn json() {
    let folder = Folder::new();
    let mut base = chain().swap_remove(0);
    base.bat_override.insert(1, 5 << 20 | 1 << 4 | 6);
    base.write_to(folder.file("base.vhdx"));
    let run = folder.run("check base.vhdx --json").expect(1);
    let expected = r#"{
  "schema": "avhdx.check/1",
  "sound": false,
  "doubtful": false,
  "errors": 2,
  "warnings": 0,
  "infos": 0,
  "layers": [
    {
      "image": "base.vhdx",
      "found_by": null,
      "file_size": 6291456,
      "data_write_guid": "GUID",
      "virtual_size": 4194304,
      "allocated_blocks": 3,
      "unused_bytes": 0
    }
  ],
  "findings": [
    {
      "code": "bat.reserved-bits",
      "severity": "error",
      "image": "base.vhdx",
      "message": "block 1: reserved bits of its entry are set",
      "file_offset": 3145736,
      "found": "0x0000000000500016",
      "expected": "zeros in bits 3 to 19",
      "section": "2.5.1",
      "meaning": "The entry may be damaged: the block may read as data that it never held.",
      "repaired_by": "repair"
    },
    {
      "code": "bat.duplicate",
      "severity": "error",
      "image": "base.vhdx",
      "message": "block 2: it lies where another block lies",
      "file_offset": 3145744,
      "found": "block 2 at 0x500000 to 0x600000",
      "expected": "a place of its own: block 1 has it",
      "section": "2.5.1",
      "meaning": "Two blocks share their bytes: at least one of them reads as the other, and a write to one changes both.",
      "repaired_by": "repair"
    }
  ],
  "unlisted": []
}
"#;
    assert_eq!(run.text(), expected.replace("GUID", &guid(0).to_string()));
}

#[test]
fn space_without_use_is_told_in_one_line() {
    let folder = Folder::with_chain();
    for name in ["l0.vhdx", "l1.vhdx", "l2.vhdx"] {
        let file = std::fs::OpenOptions::new().write(true).open(folder.file(name)).unwrap();
        file.set_len(file.metadata().unwrap().len() + (3 << 20)).unwrap();
    }
    let run = folder.run("check l2.vhdx").expect(0);
    let expected = "\
Sound: 0 errors, 0 warnings and 4 remarks in 3 layers
  unused space in the files: 9437184 bytes (9 MiB)
  -v lists 3 remarks without consequences
";
    assert!(run.text().ends_with(expected), "{}", run.text());
}

#[test]
fn remarks_with_consequences_are_listed() {
    let folder = Folder::with_chain();
    std::fs::write(folder.file("l1.vhdx.rct"), "").unwrap();
    let text = folder.run("check l2.vhdx").expect(0).text();
    assert!(text.contains("  info     image.tracker: "), "{text}");
    assert!(!text.contains("l2.vhdx (") && !text.contains("l0.vhdx ("), "{text}");
}

#[test]
fn a_missing_parent_is_a_finding() {
    let folder = Folder::with_chain();
    std::fs::remove_file(folder.file("l0.vhdx")).unwrap();
    folder.run("check l2.vhdx").expect(1).prints("error    parent.missing: ");
    folder.run("check l2.vhdx --layer").expect(0);
}

#[test]
fn files_that_cannot_be_checked_are_refused() {
    let folder = Folder::new();
    std::fs::write(folder.file("text.vhdx"), "no image".repeat(9000)).unwrap();
    folder.run("check text.vhdx").expect(4).says("not a VHDX file");
    folder.run("check none.vhdx").expect(3);
}
