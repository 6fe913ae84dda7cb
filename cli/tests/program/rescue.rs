//! `avhdx rescue`, and `convert --keep-going`.

use std::fs;

use avhdx_testkit::build::{Block, Data, Image};

use crate::common::{Folder, flats};

const MIB: u64 = 1 << 20;

fn zero(folder: &Folder, name: &str, range: std::ops::Range<u64>) {
    let mut bytes = folder.read(name);
    bytes[range.start as usize..range.end as usize].fill(0);
    fs::write(folder.file(name), bytes).unwrap();
}

#[test]
fn a_sound_chain_is_copied_and_nothing_is_lost() {
    let folder = Folder::with_chain();
    folder.run("rescue l2.vhdx out.raw").expect(0).prints("all structures in their places");
    assert!(folder.read("out.raw") == flats()[2]);
    folder.run("rescue l2.vhdx@-1 out.vhdx --mapfile out.map").expect(0);
    folder.run("convert out.vhdx -O raw flat.raw").expect(0);
    assert!(folder.read("flat.raw") == flats()[1]);
    let map = String::from_utf8(folder.read("out.map")).unwrap();
    let rows: Vec<&str> = map.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rows, ["0x00000000     +               1", "0x00000000  0x00400000  +"]);
}

#[test]
fn an_image_without_headers_and_region_tables_is_copied() {
    let folder = Folder::new();
    let mut image = Image::dynamic(6 * MIB);
    image.put(1, Block::full(Data::Pattern(1))).put(4, Block::full(Data::Pattern(2)));
    image.write_to(folder.file("a.vhdx"));
    zero(&folder, "a.vhdx", 0..MIB);
    let before = folder.read("a.vhdx");
    folder.run("convert a.vhdx out.raw").expect(4);
    folder.run("rescue a.vhdx out.raw").expect(0).prints("found by its entries");
    assert!(folder.read("out.raw") == image.flat(None));
    assert!(folder.read("a.vhdx") == before);
    // What is there already stays.
    folder.run("rescue a.vhdx out.raw").expect(7);
    folder.run("rescue a.vhdx a.vhdx --overwrite").expect(7).says("the input");
    folder.run("rescue a.vhdx other.raw --mapfile a.vhdx --overwrite").expect(7).says("the input");
    folder.run("rescue a.vhdx other.raw --mapfile other.raw").expect(2);
    assert!(folder.read("a.vhdx") == before);
    assert_eq!(folder.names(), ["a.vhdx", "out.raw"]);
}

#[test]
fn a_missing_parent_is_mapped() {
    let folder = Folder::with_chain();
    fs::remove_file(folder.file("l0.vhdx")).unwrap();
    let answer = folder.run("rescue l2.vhdx out.raw --mapfile m --json").expect(8).json();
    assert_eq!(answer["schema"], "avhdx.rescue/1");
    let map = answer["map"].as_array().unwrap();
    let flat = &flats()[2];
    let out = folder.read("out.raw");
    let mut sure = 0;
    for piece in map {
        let (at, len) = (piece["offset"].as_u64().unwrap(), piece["length"].as_u64().unwrap());
        let range = at as usize..(at + len) as usize;
        match piece["grade"].as_str().unwrap() {
            "sure" => {
                assert!(out[range.clone()] == flat[range]);
                sure += len;
            }
            "parent-missing" => assert!(out[range].iter().all(|byte| *byte == 0)),
            other => panic!("{other}"),
        }
    }
    assert_eq!(answer["sure"], sure);
    assert!(sure > 0);
    assert!(String::from_utf8(folder.read("m")).unwrap().contains("  *\n"));
}

#[test]
fn a_size_is_asked_for_where_nothing_tells_it() {
    let folder = Folder::new();
    let mut image = Image::dynamic(6 * MIB);
    image.put(1, Block::full(Data::Pattern(1)));
    image.write_to(folder.file("a.vhdx"));
    let layout = image.layout();
    zero(&folder, "a.vhdx", layout.get("metadata"));
    zero(&folder, "a.vhdx", layout.get("bat"));
    folder.run("rescue a.vhdx out.raw").expect(4).says("size of the disk");
    folder.run("rescue a.vhdx out.raw --size 1000").expect(2);
    folder.run("rescue a.vhdx out.raw --size 6M --block 3M").expect(2);
    folder.run("rescue a.vhdx out.raw --size 6M").expect(8).prints("0 bytes sure");
    assert_eq!(folder.read("out.raw").len() as u64, 6 * MIB);
    fs::write(folder.file("zeros.vhdx"), vec![0; 4 << 20]).unwrap();
    fs::write(folder.file("empty.vhdx"), b"").unwrap();
    for name in ["zeros", "empty"] {
        folder.run(&format!("rescue {name}.vhdx {name}.raw")).expect(4).says("nothing of a VHDX");
    }
}

#[test]
fn a_conversion_that_keeps_going_lists_what_it_could_not_read() {
    let folder = Folder::new();
    let mut image = Image::dynamic(6 * MIB);
    for block in 0..6 {
        image.put(block, Block::full(Data::Pattern(block)));
    }
    let flat = image.flat(None);
    image.write_to(folder.file("a.vhdx"));
    let whole = folder.read("a.vhdx");
    let at = image.layout().get("payload:4").start + 4096;
    fs::write(folder.file("a.vhdx"), &whole[..at as usize]).unwrap();
    folder.run("convert a.vhdx out.raw").expect(4);
    let answer = folder.run("convert a.vhdx out.raw --keep-going --json").expect(8).json();
    let lost = answer["lost"].as_array().unwrap();
    assert_eq!(lost.len(), 1);
    let start = lost[0]["offset"].as_u64().unwrap() as usize;
    assert_eq!(lost[0]["length"], 6 * MIB - start as u64);
    assert!((4 << 20..=(4 << 20) + 4096).contains(&start));
    let out = folder.read("out.raw");
    assert!(out[..start] == flat[..start]);
    assert!(out[start..].iter().all(|byte| *byte == 0));
    folder.run("convert a.vhdx copy.vhdx --keep-going").expect(8).prints("Not read");
    fs::write(folder.file("a.vhdx"), whole).unwrap();
    folder.run("convert a.vhdx whole.raw --keep-going").expect(0);
    assert!(folder.read("whole.raw") == flat);
}
