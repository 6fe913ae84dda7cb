//! The exact JSON of every verb: programs depend on it, so keys are only ever added.

use crate::common::{Folder, name};
use avhdx_testkit::build::{Block, Data, Image};

#[test]
fn map() {
    let run = Folder::with_chain().run("map l2.vhdx --json").expect(0);
    let expected = r#"
{"schema":"avhdx.map/1","start":0,"length":4096,"depth":2,"present":true,"zero":false,"data":true,"offset":4194304,"file":"l0.vhdx"}
{"schema":"avhdx.map/1","start":4096,"length":8192,"depth":1,"present":true,"zero":false,"data":true,"offset":5246976,"file":"l1.vhdx"}
{"schema":"avhdx.map/1","start":12288,"length":1036288,"depth":2,"present":true,"zero":false,"data":true,"offset":4206592,"file":"l0.vhdx"}
{"schema":"avhdx.map/1","start":1048576,"length":1048576,"depth":2,"present":false,"zero":true,"data":false,"file":"l0.vhdx"}
{"schema":"avhdx.map/1","start":2097152,"length":1048576,"depth":0,"present":true,"zero":true,"data":false,"file":"l2.vhdx"}
{"schema":"avhdx.map/1","start":3145728,"length":1048576,"depth":0,"present":true,"zero":false,"data":true,"offset":4194304,"file":"l2.vhdx"}
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
      "file": "l2.vhdx",
      "verdict": "parent",
      "block": {
        "block": 0,
        "within": 4608,
        "bat_entry": {
          "index": 0,
          "offset": 3145728,
          "raw": 0,
          "state": "PAYLOAD_BLOCK_NOT_PRESENT",
          "place": 0,
          "log_entry": null
        }
      }
    },
    {
      "depth": 1,
      "file": "l1.vhdx",
      "verdict": "data",
      "block": {
        "block": 0,
        "within": 4608,
        "bat_entry": {
          "index": 0,
          "offset": 3145728,
          "raw": 5242887,
          "state": "PAYLOAD_BLOCK_PARTIALLY_PRESENT",
          "place": 5242880,
          "log_entry": null
        },
        "bitmap": {
          "chunk": 0,
          "bat_entry": {
            "index": 4096,
            "offset": 3178496,
            "raw": 4194310,
            "state": "SB_BLOCK_PRESENT",
            "place": 4194304,
            "log_entry": null
          },
          "sector_bit": {
            "index": 9,
            "offset": 4194305,
            "bit": 1,
            "set": true,
            "log_entry": null
          }
        }
      },
      "offset": 5247488,
      "log_entry": null
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
  "size_a": 6291456,
  "size_b": 4194304,
  "first_difference": {{
    "offset": {at},
    "a": 0,
    "b": {}
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
  "virtual_size": 6291456,
  "copies": [
    {
      "format": "raw",
      "required": 2097152,
      "fully_allocated": 6291456
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
    }
  ]
}
"#;
    assert_eq!(run.text(), expected);
}

#[test]
fn convert() {
    let folder = Folder::with_chain();
    let run = folder.run("convert l2.vhdx -O raw out.raw --json").expect(0);
    let expected = r#"{
  "schema": "avhdx.convert/1",
  "output": "out.raw",
  "format": "raw",
  "size": 6291456,
  "written": 2097152
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
    assert_eq!(error["offset"], locator);
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
    assert!(info["image"]["file_allocated"].take().is_u64() || cfg!(not(unix)));
    let expected = include_str!("info.json");
    assert_eq!(format!("{info:#}\n"), expected);

    let chain = folder.run("info child.vhdx --chain --json").expect(0).json();
    let layers = chain["chain"]["layers"].as_array().unwrap();
    let files: Vec<_> = layers.iter().map(|layer| layer["file"].as_str().unwrap()).collect();
    assert_eq!(files, ["child.vhdx", "base.vhdx"]);
    assert_eq!(layers[1]["found_by"], "relative_path");
    assert_eq!(layers[1]["type"], "dynamic");
    assert_eq!(layers[1]["blocks"]["fully_present"], 1);
}
