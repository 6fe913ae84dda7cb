//! The exact JSON of every verb: programs depend on it, so keys are only ever added.

use std::collections::BTreeSet;

use crate::common::{Folder, NOTES, name, schemas};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::vmdk::descriptor;

#[test]
fn map() {
    let run = Folder::with_chain().run("map l2.vhdx --json").expect(0);
    let expected = r#"
{"schema":"avhdx.map/1","start":0,"length":4096,"depth":2,"present":true,"zero":false,"data":true,"offset":4194304,"image":"l0.vhdx"}
{"schema":"avhdx.map/1","start":4096,"length":8192,"depth":1,"present":true,"zero":false,"data":true,"offset":5246976,"image":"l1.vhdx"}
{"schema":"avhdx.map/1","start":12288,"length":1036288,"depth":2,"present":true,"zero":false,"data":true,"offset":4206592,"image":"l0.vhdx"}
{"schema":"avhdx.map/1","start":1048576,"length":1048576,"depth":2,"present":false,"zero":true,"data":false,"image":"l0.vhdx"}
{"schema":"avhdx.map/1","start":2097152,"length":1048576,"depth":0,"present":true,"zero":true,"data":false,"image":"l2.vhdx"}
{"schema":"avhdx.map/1","start":3145728,"length":1048576,"depth":0,"present":true,"zero":false,"data":true,"offset":4194304,"image":"l2.vhdx"}
{"schema":"avhdx.map/1","start":4194304,"length":2097152,"depth":3,"present":false,"zero":true,"data":false}
"#;
    let expected = expected.trim_start();
    assert_eq!(run.text(), expected);
    assert_eq!(run.stderr, "");
}

#[test]
fn explain() {
    let folder = Folder::with_chain();
    let run = folder.run("explain l2.vhdx 0x1200 --json").expect(0);
    let byte = crate::common::flats()[2][0x1200];
    let expected = r#"{
  "schema": "avhdx.explain/1",
  "offset": 4608,
  "value": BYTE,
  "layers": [
    {
      "depth": 0,
      "image": "l2.vhdx",
      "verdict": "parent",
      "block": {
        "block": 0,
        "within": 4608,
        "bat_entry": {
          "index": 0,
          "file_offset": 3145728,
          "raw": 0,
          "state": "PAYLOAD_BLOCK_NOT_PRESENT",
          "block_file_offset": 0,
          "log_entry": null
        },
        "bitmap": null
      },
      "file_offset": null,
      "log_entry": null,
      "error": null
    },
    {
      "depth": 1,
      "image": "l1.vhdx",
      "verdict": "data",
      "block": {
        "block": 0,
        "within": 4608,
        "bat_entry": {
          "index": 0,
          "file_offset": 3145728,
          "raw": 5242887,
          "state": "PAYLOAD_BLOCK_PARTIALLY_PRESENT",
          "block_file_offset": 5242880,
          "log_entry": null
        },
        "bitmap": {
          "chunk": 0,
          "bat_entry": {
            "index": 4096,
            "file_offset": 3178496,
            "raw": 4194310,
            "state": "SB_BLOCK_PRESENT",
            "block_file_offset": 4194304,
            "log_entry": null
          },
          "sector_bit": {
            "index": 9,
            "file_offset": 4194305,
            "bit": 1,
            "set": true,
            "log_entry": null
          }
        }
      },
      "file_offset": 5247488,
      "log_entry": null,
      "error": null
    }
  ]
}
"#;
    assert_eq!(run.text(), expected.replace("BYTE", &byte.to_string()));

    let past = folder.run("explain l2.vhdx 4M --json").expect(0).json();
    let verdicts: Vec<_> =
        past["layers"].as_array().unwrap().iter().map(|layer| layer["verdict"].clone()).collect();
    assert_eq!(verdicts, ["parent", "past-end"]);
    assert_eq!(past["value"], 0);
    let zero = folder.run("explain l2.vhdx 2M --json").expect(0).json();
    assert_eq!(zero["layers"][0]["verdict"], "zero");
    assert_eq!(zero["layers"].as_array().unwrap().len(), 1);
}

#[test]
fn compare() {
    let folder = Folder::with_chain();
    let run = folder.run("compare l2.vhdx l2.vhdx@-1 --json").expect(1);
    let flats = crate::common::flats();
    // The first difference is in block 2, which is zero in the tip.
    let at = (0..4 << 20).find(|at| flats[2][*at] != flats[1][*at]).unwrap();
    assert!((2 << 20..2 << 20 | 512).contains(&at));
    let expected = format!(
        r#"{{
  "schema": "avhdx.compare/1",
  "equal": false,
  "same_contents": false,
  "same_size": false,
  "a": {{
    "image": "l2.vhdx",
    "virtual_size": 6291456
  }},
  "b": {{
    "image": "l2.vhdx@-1",
    "virtual_size": 4194304
  }},
  "first_difference": {{
    "offset": {at},
    "value_a": 0,
    "value_b": {}
  }}
}}
"#,
        flats[1][at]
    );
    assert_eq!(run.text(), expected);
    let note = r#"{"schema":"avhdx.note/1","code":"point.resolved","message":"l2.vhdx@-1 is l1.vhdx, 1111aaaa-0000-4000-8000-000000000001"}"#;
    assert_eq!(run.stderr.trim_end(), note);
}

#[test]
fn measure() {
    let run = Folder::with_chain().run("measure l2.vhdx --block-size 1M --json").expect(0);
    // Data: blocks 0 and 3, 1 MiB each. An image: 3 MiB of structures, 1 MiB of table, and the blocks.
    let expected = r#"{
  "schema": "avhdx.measure/1",
  "image": "l2.vhdx",
  "virtual_size": 6291456,
  "copies": [
    {
      "format": "raw",
      "required": 2097152,
      "fully_allocated": 6291456,
      "block_size": null
    },
    {
      "format": "vhdx",
      "required": 6291456,
      "fully_allocated": 10485760,
      "block_size": 1048576
    },
    {
      "format": "vhdx-fixed",
      "required": 10485760,
      "fully_allocated": 10485760,
      "block_size": 1048576
    },
    {
      "format": "vhd",
      "required": 2105856,
      "fully_allocated": 6316544,
      "block_size": 1048576
    },
    {
      "format": "vhd-fixed",
      "required": 6291968,
      "fully_allocated": 6291968,
      "block_size": null
    },
    {
      "format": "qcow2",
      "required": 2424832,
      "fully_allocated": 6619136,
      "block_size": 65536
    }
  ]
}
"#;
    assert_eq!(run.text(), expected);
}

#[test]
fn convert() {
    let folder = Folder::with_chain();
    let run = folder.run("convert l2.vhdx -O raw out.raw --no-share --json").expect(0);
    let expected = r#"{
  "schema": "avhdx.convert/1",
  "image": "l2.vhdx",
  "output": "out.raw",
  "format": "raw",
  "virtual_size": 6291456,
  "written": 2097152,
  "handed_over": 0,
  "block_size": null,
  "verified": false
}
"#;
    assert_eq!(run.text(), expected);
}

#[test]
fn errors() {
    let folder = Folder::with_chain();
    let run = folder.run("read l2.vhdx --offset 6M --length 1 --json").expect(2);
    let expected = r#"{"schema":"avhdx.error/1","exit":2,"code":"disk.out-of-range","message":"1 bytes at 6291456 do not lie within the disk of 6291456 bytes","hints":[],"next":["avhdx read --help"]}"#;
    assert_eq!(run.stderr.trim_end(), expected);

    std::fs::remove_file(folder.file("l0.vhdx")).unwrap();
    let error = folder.run("read l2.vhdx --length 1 --json").expect(5).error();
    // The locator of l1 follows five other items, 64 KiB into the metadata region at 2 MiB.
    let locator = (2 << 20) + (64 << 10) + 5 * 8 + 8;
    assert_eq!(error["schema"], "avhdx.error/1");
    assert_eq!(error["exit"], 5);
    assert_eq!(error["code"], "parent.missing");
    assert_eq!(error["kind"], "parent-missing");
    assert_eq!(error["file"], "l1.vhdx");
    assert_eq!(error["file_offset"], locator);
    assert_eq!(error["found"], r#"relative_path ".\\l0.vhdx" (nothing at l0.vhdx)"#);
    assert!(error["expected"].as_str().unwrap().contains("0000aaaa-0000-4000-8000-000000000000"));
    assert_eq!(error["section"], "2.6.2.6.3");
    assert!(error["hints"][0].as_str().unwrap().contains("--parent-dir"));

    let usage = folder.run("frobnicate --json").expect(2).error();
    assert_eq!(usage["code"], "usage");
    assert_eq!(usage["exit"], 2);
}

#[test]
fn info() {
    let folder = Folder::new();
    let mut base = Image::dynamic(4 << 20);
    name(&mut base, 0);
    base.put(0, Block::full(Data::Pattern(1)));
    base.write_to(folder.file("base.vhdx"));
    let mut child = base.new_child();
    name(&mut child, 1);
    child.parent_path(".\\base.vhdx");
    child.put(3, Block::partial_runs(Data::Pattern(2), &[(0, 1)]));
    child.write_to(folder.file("child.vhdx"));

    let mut info = folder.run("info child.vhdx --json").expect(0).json();
    // The allocated size depends on the file system.
    assert!(info["file_allocated"].take().is_u64() || cfg!(not(unix)));
    let expected = include_str!("info.json");
    assert_eq!(format!("{info:#}\n"), expected);

    let chain = folder.run("info child.vhdx --chain --json").expect(0).json();
    let layers = chain["chain"]["layers"].as_array().unwrap();
    let files: Vec<_> = layers.iter().map(|layer| layer["image"].as_str().unwrap()).collect();
    assert_eq!(files, ["child.vhdx", "base.vhdx"]);
    assert_eq!(layers[1]["found_by"], "relative_path");
    assert_eq!(layers[1]["type"], "dynamic");
    assert_eq!(layers[1]["blocks"]["fully_present"], 1);
}

/// `Run` checks each output against its schema; this test sees that there is an output for each.
#[test]
fn every_verb_answers_by_its_schema() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    let text =
        descriptor("custom", 1, Some((2, "older.vmdk")), &["RW 8 ZERO", "RW 8 FLAT \"a\" 0"]);
    std::fs::write(folder.file("old.vmdk"), text).unwrap();
    let mut other = crate::common::volume();
    let at = other.windows(NOTES.len()).position(|bytes| bytes == NOTES).unwrap();
    other[at] = b'W';
    std::fs::write(folder.file("other.raw"), other).unwrap();
    folder.run("convert -f raw other.raw -O vhdx other.vhdx").expect(0);
    let mut broken = Image::dynamic(4 << 20);
    broken.put(0, Block::full(Data::Pattern(1)));
    broken.bat_override.insert(1, 1 << 4);
    broken.write_to(folder.file("broken.vhdx"));
    // Each line with the exit code, its standard input and the schemas of its output.
    let lines: &[(&str, i32, &[u8], &[&str])] = &[
        ("create base.vhdx 8M --block 1M", 0, b"", &["create"]),
        ("write base.vhdx --offset 4K", 0, b"hello", &["write"]),
        ("checkpoint base.vhdx --path tip.avhdx --label x --dry-run", 0, b"", &["forecast"]),
        ("checkpoint base.vhdx --path tip.avhdx --label x", 0, b"", &["checkpoint", "progress"]),
        ("zero tip.avhdx --offset 8K --length 512", 0, b"", &["zero"]),
        ("discard tip.avhdx --offset 8K --length 512", 0, b"", &["discard"]),
        ("diff base.vhdx tip.avhdx", 0, b"", &["diff", "diff-total"]),
        ("compact tip.avhdx --content --dry-run", 0, b"", &["compact"]),
        ("compact tip.avhdx --content", 0, b"", &["compact", "progress"]),
        ("compact tip.avhdx --punch", 0, b"", &["compact", "progress"]),
        ("tree .", 0, b"", &["tree"]),
        ("tree --tips", 0, b"", &["tree"]),
        ("info tip.avhdx", 0, b"", &["info"]),
        ("info tip.avhdx@x --chain", 0, b"", &["info", "note"]),
        ("map tip.avhdx", 0, b"", &["map"]),
        ("explain tip.avhdx 4K", 0, b"", &["explain"]),
        ("check tip.avhdx", 0, b"", &["check"]),
        ("compare base.vhdx tip.avhdx", 0, b"", &["compare"]),
        ("convert base.vhdx old.vhd", 0, b"", &["convert"]),
        ("convert base.vhdx old.qcow2", 0, b"", &["convert"]),
        ("info old.qcow2", 0, b"", &["info-qcow2"]),
        ("convert --chain tip.avhdx .", 0, b"", &["convert-chain"]),
        ("info old.vhd", 0, b"", &["info-vhd"]),
        ("info old.vmdk", 0, b"", &["info-vmdk"]),
        ("measure tip.avhdx", 0, b"", &["measure"]),
        ("rescue tip.avhdx rescued.vhdx", 0, b"", &["rescue"]),
        ("bench tip.avhdx --reads 2 --write", 0, b"", &["bench", "note"]),
        ("read tip.avhdx --offset 4K --length 5", 0, b"", &["read"]),
        ("convert tip.avhdx -O vhdx copy.vhdx", 0, b"", &["convert"]),
        ("flatten tip.avhdx@x flat.vhdx --verify", 0, b"", &["flatten", "note"]),
        ("delete tip.avhdx@x --dry-run", 0, b"", &["forecast"]),
        ("points tip.avhdx", 0, b"", &["points"]),
        ("label tip.avhdx@x y", 0, b"", &["label", "note"]),
        ("label tip.avhdx@y x", 0, b"", &["label", "note"]),
        ("metadata tip.avhdx --disk-id new", 0, b"", &["metadata"]),
        ("metadata tip.avhdx 21898540-3963-47d4-a9ed-35ef1adeb3c0", 0, b"", &["metadata-item"]),
        ("revert tip.avhdx@x --path new.avhdx", 0, b"", &["note", "progress", "revert"]),
        ("rebase new.avhdx --onto base.vhdx", 0, b"", &["rebase"]),
        ("resize new.avhdx +1M --dry-run", 0, b"", &["forecast"]),
        ("resize new.avhdx +1M", 0, b"", &["resize"]),
        ("reparent new.avhdx --onto copy.vhdx --dry-run", 0, b"", &["forecast"]),
        ("reparent new.avhdx --onto copy.vhdx --unproven", 0, b"", &["reparent"]),
        ("relink . --dry-run", 0, b"", &["relink"]),
        ("repair broken.vhdx", 0, b"", &["repair"]),
        ("repair broken.vhdx --undo broken.vhdx.undo", 0, b"", &["repair-undo"]),
        ("delete new.avhdx@-1", 0, b"", &["delete", "note", "progress"]),
        ("merge tip.avhdx", 0, b"", &["merge", "progress"]),
        ("ls pc.vhdx -R", 0, b"", &["ls"]),
        ("ls pc.vhdx -R --hash sha256", 0, b"", &["ls"]),
        ("diff pc.vhdx pc.vhdx --files --content", 0, b"", &["diff-files-total"]),
        ("diff pc.vhdx other.vhdx --files --content", 0, b"", &["diff-file", "diff-files-total"]),
        ("ls pc.vhdx --volumes", 0, b"", &["volumes"]),
        ("cat pc.vhdx notes.txt", 0, b"", &["cat"]),
        ("cp pc.vhdx notes.txt copy.txt", 0, b"", &["cp"]),
        ("cp pc.vhdx -r / --to-tar all.tar", 0, b"", &["cp"]),
        ("versions pc.vhdx notes.txt", 0, b"", &["versions"]),
        ("df pc.vhdx", 0, b"", &["df"]),
        ("compact pc.vhdx --free", 0, b"", &["compact", "progress"]),
        ("seal pc.vhdx", 0, b"", &["progress", "seal"]),
        ("verify pc.vhdx", 0, b"", &["progress", "verify"]),
        ("completions bash", 0, b"", &["completions"]),
        ("man", 0, b"", &["man"]),
        ("man merge", 0, b"", &["man"]),
        ("man --dir .", 0, b"", &["man"]),
        ("info missing", 3, b"", &["error"]),
        ("frobnicate", 2, b"", &["error"]),
    ];
    let mut seen = BTreeSet::from(["avhdx.warning/1".to_owned()]);
    for &(line, code, input, expected) in lines {
        let run = folder.run_with(&format!("{line} --json"), input).expect(code);
        let mut found = BTreeSet::new();
        let whole: Option<serde_json::Value> = serde_json::from_slice(&run.stdout).ok();
        let text = run.text();
        let lines = text.lines().chain(run.stderr.lines());
        for object in lines.filter_map(|line| serde_json::from_str(line).ok()).chain(whole) {
            let name = object["schema"].as_str().map(str::to_owned);
            found.extend(name);
        }
        let expected = expected.iter().map(|name| format!("avhdx.{name}/1")).collect();
        assert_eq!(found, expected, "{line}");
        seen.extend(found);
    }
    assert_eq!(seen, schemas().into_iter().collect());
}

#[test]
fn bytes_are_read_as_hexadecimal_digits() {
    let folder = Folder::with_chain();
    let run = folder.run("read l2.vhdx --offset 0xffe --length 0x20000 --json").expect(0);
    let flat = &crate::common::flats()[2][0xffe..0x20ffe];
    let mut read = Vec::new();
    for line in run.text().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["offset"], 0xffe + read.len());
        let hex = line["hex"].as_str().unwrap().as_bytes();
        assert_eq!(line["length"], hex.len() / 2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        read.extend(hex.chunks(2).map(|pair| byte(pair).unwrap()));
    }
    assert!(read == flat);
}
