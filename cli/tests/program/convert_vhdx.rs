//! `avhdx convert` to images: content, number of blocks, and cleanup after a failure.

use std::fs::{self, File};

use crate::common::{Folder, flats};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive;
use avhdx_testkit::qemu::Qemu;
use serde_json::Value;

const MIB: usize = 1 << 20;

fn flat(folder: &Folder, name: &str) -> Vec<u8> {
    naive::Chain::open([folder.file(name)]).unwrap().flat(0).unwrap()
}

fn image(folder: &Folder, name: &str) -> Value {
    folder.run(&format!("info {name} --json")).expect(0).json().take()
}

/// A sparse file of 64 MiB with these pieces.
fn sparse_file(folder: &Folder, name: &str, pieces: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 64 * MIB];
    let file = File::create(folder.file(name)).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (at, piece) in pieces {
        bytes[*at..at + piece.len()].copy_from_slice(piece);
        #[cfg(unix)]
        std::os::unix::fs::FileExt::write_all_at(&file, piece, *at as u64).unwrap();
        #[cfg(windows)]
        std::os::windows::fs::FileExt::seek_write(&file, piece, *at as u64).unwrap();
    }
    bytes
}

#[test]
fn a_chain_becomes_one_image() {
    let folder = Folder::with_chain();
    fs::write(folder.file("flat.raw"), &flats()[2]).unwrap();
    for (format, kind, blocks) in [("vhdx", "dynamic", 2), ("vhdx-fixed", "fixed", 6)] {
        let out = format!("{format}.vhdx");
        let line = format!("convert l2.vhdx -O {format} {out} --block 1M --log-size 2M --no-share");
        let run = folder.run(&line).expect(0);
        run.prints("6291456 bytes (6 MiB), 2097152 bytes (2 MiB) written, block size 1 MiB");
        assert!(flat(&folder, &out) == flats()[2]);
        let facts = image(&folder, &out);
        assert_eq!(facts["type"], kind);
        // Blocks 0 and 3 hold data, the others zeros.
        assert_eq!(facts["blocks"]["fully_present"], blocks);
        assert_eq!(facts["log"]["length"], 2 * MIB);
        assert_eq!(facts["log"]["state"], "empty");
        folder.run(&format!("compare l2.vhdx {out}")).expect(0);
        if let Some(qemu) = Qemu::find() {
            qemu.check(&folder.file(&out));
            qemu.compare(("vhdx", &folder.file(&out)), ("raw", &folder.file("flat.raw")));
        }
    }
    // A point in time, with the default block size.
    folder.run("convert l2.vhdx@base -O vhdx base.vhdx").expect(0).prints("block size 32 MiB");
    assert!(flat(&folder, "base.vhdx") == flats()[0]);
    let names =
        ["base.vhdx", "flat.raw", "l0.vhdx", "l1.vhdx", "l2.vhdx", "vhdx-fixed.vhdx", "vhdx.vhdx"];
    assert_eq!(folder.names(), names);
}

#[test]
fn holes_of_a_raw_disk_stay_holes() {
    let folder = Folder::new();
    let pieces: [(usize, &[u8]); 3] =
        [(3 * MIB, &[1; 4096]), (10 * MIB + 7, &[2; 70_000]), (64 * MIB - 1, &[3])];
    let bytes = sparse_file(&folder, "in", &pieces);
    let run =
        folder.run("convert in -f raw -O vhdx out.vhdx --block 1M --no-share --json").expect(0);
    // Pages of 4 KiB with data: 1, 18 and 1.
    assert_eq!(run.json()["written"], 20 * 4096);
    assert!(flat(&folder, "out.vhdx") == bytes);
    let facts = image(&folder, "out.vhdx");
    assert_eq!(facts["blocks"]["fully_present"], 3);
    assert_eq!(facts["blocks"]["not_present"], 61);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let held = fs::metadata(folder.file("out.vhdx")).unwrap().blocks() * 512;
        assert!(held < 2 << 20, "{held} bytes on the volume");
    }
    // A raw copy is sparse too.
    folder.run("convert out.vhdx -O raw back").expect(0);
    assert!(folder.read("back") == bytes);
    folder.run("compare in out.vhdx -f raw").expect(0);
}

#[test]
#[cfg(target_os = "linux")]
fn holes_are_not_read() {
    let folder = Folder::new();
    // Reading the holes would take longer than the test may run.
    let file = File::create(folder.file("in")).unwrap();
    if file.set_len(8 << 40).is_err() {
        return; // not on this file system
    }
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 5 << 40).unwrap();
    let map = folder.run("map in -f raw --json").expect(0).text();
    let kinds: Vec<Value> = map.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let data: Vec<_> = kinds.iter().filter(|line| line["data"] == true).collect();
    assert_eq!(data.len(), 1);
    assert_eq!(
        (&data[0]["start"], &data[0]["offset"]),
        (&(5_u64 << 40).into(), &(5_u64 << 40).into())
    );
    // The extent depends on the file system's block size.
    assert!((4096..=1 << 20).contains(&data[0]["length"].as_u64().unwrap()), "{map}");
    let length: u64 = kinds.iter().map(|line| line["length"].as_u64().unwrap()).sum();
    assert_eq!(length, 8 << 40);
    folder.run("convert in -f raw -O vhdx out.vhdx --block 256M").expect(0);
    assert_eq!(image(&folder, "out.vhdx")["blocks"]["fully_present"], 1);
    let read = folder.run("read out.vhdx --offset 5T --length 4096").expect(0);
    assert_eq!(read.stdout, [1; 4096]);
}

#[test]
fn zeros_that_are_data_get_no_blocks() {
    let folder = Folder::new();
    fs::write(folder.file("in"), vec![0; 5 * MIB]).unwrap();
    folder.run("convert in -f raw -O vhdx out.vhdx --block 1M").expect(0);
    assert_eq!(image(&folder, "out.vhdx")["blocks"]["not_present"], 5);
    assert!(flat(&folder, "out.vhdx") == vec![0; 5 * MIB]);
    let mut zeros = Image::dynamic(4 << 20);
    zeros.put(1, Block::full(Data::Zeros));
    zeros.write_to(folder.file("zeros.vhdx"));
    folder.run("convert zeros.vhdx -O vhdx none.vhdx --block 1M").expect(0);
    assert_eq!(image(&folder, "none.vhdx")["blocks"]["not_present"], 4);
}

#[test]
fn raw_is_never_probed() {
    let folder = Folder::with_chain();
    // A guest may write the header of an image to its disk.
    folder.run("convert l0.vhdx -f raw -O vhdx out.vhdx --block 1M").expect(0);
    let mut expected = folder.read("l0.vhdx");
    expected.resize(expected.len().next_multiple_of(512), 0);
    assert!(flat(&folder, "out.vhdx") == expected);
    folder.run("convert out.vhdx -O raw back").expect(0);
    folder.run("compare back l0.vhdx -f raw -F raw").expect(0);
    fs::write(folder.file("disk.bin"), &flats()[2]).unwrap();
    folder.run("convert disk.bin -O vhdx no.vhdx").expect(4);
}

#[test]
fn sector_sizes_are_kept_or_chosen() {
    let folder = Folder::new();
    let mut large = Image::dynamic(4 << 20);
    large.logical_sector = 4096;
    large.physical_sector = 4096;
    large.put(2, Block::full(Data::Pattern(9)));
    large.write_to(folder.file("large.vhdx"));
    let run = folder.run("convert large.vhdx -O vhdx same.vhdx").expect(0);
    assert_eq!(run.stderr, "");
    let facts = image(&folder, "same.vhdx");
    assert_eq!(
        (&facts["logical_sector_size"], &facts["physical_sector_size"]),
        (&4096.into(), &4096.into())
    );
    assert!(flat(&folder, "same.vhdx") == large.flat(None));
    let line = "convert large.vhdx -O vhdx small.vhdx --sector 512 --physical-sector 512";
    folder.run(line).expect(0).says("partition tables count in sectors");
    let facts = image(&folder, "small.vhdx");
    assert_eq!(
        (&facts["logical_sector_size"], &facts["physical_sector_size"]),
        (&512.into(), &512.into())
    );
    assert!(flat(&folder, "small.vhdx") == large.flat(None));

    // The size is rounded up to whole sectors.
    fs::write(folder.file("odd"), vec![7; 1000]).unwrap();
    let run = folder.run("convert odd -f raw -O vhdx odd.vhdx").expect(0);
    run.says("the copy has 1024 bytes, 24 more than the input");
    let mut expected = vec![7; 1000];
    expected.resize(1024, 0);
    assert!(flat(&folder, "odd.vhdx") == expected);
    folder.run("convert odd -f raw -O vhdx odd4.vhdx --sector 4096").expect(0).says("4096 bytes");
    assert_eq!(flat(&folder, "odd4.vhdx").len(), 4096);
}

#[test]
fn wrong_arguments_are_refused() {
    let folder = Folder::with_chain();
    folder.run("convert l2.vhdx -O vhdx -").expect(2).says("only a raw disk");
    folder.run("convert l2.vhdx -O raw out --block 1M").expect(2).says("apply to images");
    folder.run("convert l2.vhdx -O raw out --log-size 1M").expect(2);
    folder.run("convert l2.vhdx -O vhdx out --block 3M").expect(2).says("out: invalid block size");
    folder.run("convert l2.vhdx -O vhdx out --sector 0").expect(2);
    folder.run("convert l2.vhdx -O vhdx out --log-size 100").expect(2);
    fs::write(folder.file("none"), b"").unwrap();
    folder.run("convert none -f raw -O vhdx out").expect(2).says("none: the file is empty");
    folder.run("convert l2.vhdx -O vhdx none").expect(7).says("--overwrite");
    let run = folder.run("convert l2.vhdx -O vhdx l0.vhdx --overwrite --json").expect(7);
    assert_eq!(run.error()["code"], "output.is-input");
    folder.run("convert l2.vhdx -O vhdx none --overwrite").expect(0);
    assert!(flat(&folder, "none") == flats()[2]);
    assert_eq!(folder.names(), ["l0.vhdx", "l1.vhdx", "l2.vhdx", "none"]);
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = Folder::new();
    let mut bad = Image::dynamic(8 << 20);
    bad.put(0, Block::full(Data::Pattern(1)));
    bad.bat_override.insert(7, 4);
    bad.write_to(folder.file("bad.vhdx"));
    folder.run("convert bad.vhdx -O vhdx out").expect(4).says("state 4");
    folder.run("convert bad.vhdx -O vhdx-fixed out").expect(4).says("bad.vhdx");
    assert_eq!(folder.names(), ["bad.vhdx"]);
    fs::write(folder.file("out"), "precious").unwrap();
    folder.run("convert bad.vhdx -O vhdx out --overwrite").expect(4);
    assert_eq!(folder.names(), ["bad.vhdx", "out"]);
    assert_eq!(folder.read("out"), b"precious");
}

#[test]
#[cfg(unix)]
fn an_interruption_leaves_nothing_behind() {
    use crate::common::{Run, write_endless};
    use std::process::{Command, Stdio};
    let folder = Folder::new();
    write_endless(&folder.file("huge"));
    let mut command = folder.command("convert huge -O vhdx out --json".split(' '));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !folder.is_written_to(&child) {
        std::thread::yield_now();
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let run = Run::of(child.wait_with_output().unwrap()).expect(130);
    assert_eq!(run.error()["message"], "interrupted; the unfinished file was removed");
    assert_eq!(folder.names(), ["huge"]);
}

#[test]
fn the_json_is_stable() {
    let folder = Folder::with_chain();
    let run = folder.run("convert l2.vhdx -O vhdx-fixed out.vhdx --block 2M --json").expect(0);
    let expected = r#"{
  "schema": "avhdx.convert/1",
  "image": "l2.vhdx",
  "output": "out.vhdx",
  "format": "vhdx-fixed",
  "virtual_size": 6291456,
  "written": 2097152,
  "handed_over": 0,
  "block_size": 2097152,
  "verified": false
}
"#;
    assert_eq!(run.text(), expected);
    assert_eq!(run.stderr, "");
}
