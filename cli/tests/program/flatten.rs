//! `avhdx flatten`: contents, what the image takes, refusals, and what a failure leaves.

use std::fs::{self, File};

use crate::common::{Folder, flats};
use avhdx_testkit::build::{Block, Data, Image};
use avhdx_testkit::naive;
use avhdx_testkit::qemu::Qemu;

const MIB: u64 = 1 << 20;

fn flat(folder: &Folder, name: &str) -> Vec<u8> {
    naive::Chain::open([folder.file(name)]).unwrap().flat(0).unwrap()
}

#[test]
fn each_point_becomes_one_image_that_reads_as_it_did() {
    let folder = Folder::with_chain();
    let (names, before) = (folder.names(), folder.read("l2.vhdx"));
    for (point, expected) in ["l2.vhdx@base", "l2.vhdx@-1", "l2.vhdx"].into_iter().zip(flats()) {
        let run = folder.run(&format!("flatten {point} flat.vhdx --block 1M --verify")).expect(0);
        run.prints(&format!("flat.vhdx: {} bytes (", expected.len()))
            .prints("block size 1 MiB, read back and compared");
        assert!(flat(&folder, "flat.vhdx") == expected, "{point}");
        let info = folder.run("info flat.vhdx --json").expect(0).json();
        assert_eq!(info["type"], "dynamic");
        // Blocks of zeros are left out of the tables; the file has no hole where a block is.
        let used =
            expected.chunks(MIB as usize).filter(|block| block.iter().any(|byte| *byte != 0));
        let used = used.count() as u64;
        assert_eq!(info["blocks"]["fully_present"], used, "{point}");
        assert!(fs::metadata(folder.file("flat.vhdx")).unwrap().len() <= (4 + used) * MIB);
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let held = fs::metadata(folder.file("flat.vhdx")).unwrap().blocks() * 512;
            assert!(held >= used * MIB, "{held} bytes on the volume for {used} blocks");
        }
        if let Some(qemu) = Qemu::find() {
            fs::write(folder.file("flat.raw"), &expected).unwrap();
            qemu.check(&folder.file("flat.vhdx"));
            qemu.compare(("vhdx", &folder.file("flat.vhdx")), ("raw", &folder.file("flat.raw")));
            fs::remove_file(folder.file("flat.raw")).unwrap();
        }
        fs::remove_file(folder.file("flat.vhdx")).unwrap();
    }
    assert_eq!(folder.names(), names);
    assert!(folder.read("l2.vhdx") == before, "the chain stays as it is");
}

/// Sixteen layers with blocks and runs of sectors of their own, and zeros over data.
#[test]
fn a_deep_chain_reads_as_the_model_has_it() {
    let folder = Folder::new();
    let mut image = Image::dynamic(16 * MIB);
    let mut model: Option<Vec<u8>> = None;
    for layer in 0..16_u64 {
        let name = |layer: u64| format!("d{layer}.avhdx");
        if layer > 0 {
            image = image.new_child();
            image.parent_path(&format!(".\\{}", name(layer - 1)));
            let run = (layer as usize * 100, 33 + layer as usize);
            image.put((layer + 5) % 16, Block::partial_runs(Data::Pattern(layer), &[run, (1, 7)]));
        }
        let block = match layer % 5 {
            4 => Block::full(Data::Zeros),
            _ => Block::full(Data::Pattern(50 + layer)),
        };
        image.put(layer, block);
        model = Some(image.flat(model.as_deref()));
        image.write_to(folder.file(&name(layer)));
    }
    let run = folder.run("flatten d15.avhdx flat.vhdx --verify --json").expect(0);
    assert!(flat(&folder, "flat.vhdx") == model.unwrap());
    let json = run.json();
    assert_eq!((&json["schema"], &json["verified"]), (&"avhdx.flatten/1".into(), &true.into()));
    assert_eq!((&json["image"], &json["block_size"]), (&"d15.avhdx".into(), &(32 * MIB).into()));
}

#[test]
fn the_json_is_stable() {
    let folder = Folder::with_chain();
    let run = folder.run("flatten l2.vhdx out.vhdx --block 2M --no-share --json").expect(0);
    let expected = r#"{
  "schema": "avhdx.flatten/1",
  "image": "l2.vhdx",
  "output": "out.vhdx",
  "virtual_size": 6291456,
  "written": 2097152,
  "handed_over": 0,
  "block_size": 2097152,
  "verified": false
}
"#;
    assert_eq!(run.text(), expected);
}

/// Runs a command that is refused; nothing changes.
fn refused(folder: &Folder, line: &str, exit: i32, code: &str) {
    let bytes = |folder: &Folder| -> Vec<(String, Vec<u8>)> {
        folder.names().into_iter().map(|name| (name.clone(), folder.read(&name))).collect()
    };
    let before = bytes(folder);
    let run = folder.run(&format!("{line} --json")).expect(exit);
    assert_eq!(run.error()["code"], code, "{line}: {}", run.stderr);
    assert!(bytes(folder) == before, "{line} changed the folder");
}

#[test]
fn refusals_change_nothing() {
    let folder = Folder::with_chain();
    fs::write(folder.file("there.vhdx"), "precious").unwrap();
    refused(&folder, "flatten l2.vhdx there.vhdx", 7, "output.exists");
    for name in ["l0.vhdx", "l1.vhdx", "l2.vhdx"] {
        refused(&folder, &format!("flatten l2.vhdx {name} --overwrite"), 7, "output.is-input");
    }
    // Not an input of that point, but the parent of an image.
    refused(&folder, "flatten l2.vhdx@base l1.vhdx --overwrite", 7, "image.children");
    refused(&folder, "flatten l2.vhdx flat.raw", 2, "output.ending");
    refused(&folder, "flatten l2.vhdx flat.avhdx", 2, "output.ending");
    refused(&folder, "flatten l2.vhdx flat.qcow2", 2, "output.ending");
    refused(&folder, "flatten l2.vhdx -", 2, "usage");
    refused(&folder, "flatten l2.vhdx flat.vhdx --block 3M", 2, "create.options");
    refused(&folder, "flatten l2.vhdx@-3 flat.vhdx", 2, "point.unknown");
    refused(&folder, "flatten l2.vhdx nowhere/flat.vhdx", 3, "output.create");
    for held in ["l0.vhdx", "l2.vhdx"] {
        let file = File::options().read(true).write(true).open(folder.file(held)).unwrap();
        file.try_lock().unwrap();
        refused(&folder, "flatten l2.vhdx flat.vhdx", 6, "lock.in-use");
    }
    let file = File::open(folder.file("there.vhdx")).unwrap();
    file.try_lock_shared().unwrap();
    refused(&folder, "flatten l2.vhdx there.vhdx --overwrite", 6, "output.in-use");
    drop(file);

    let cut = fs::metadata(folder.file("l0.vhdx")).unwrap().len() - MIB / 2;
    let whole = folder.read("l0.vhdx");
    File::options().write(true).open(folder.file("l0.vhdx")).unwrap().set_len(cut).unwrap();
    refused(&folder, "flatten l2.vhdx@base flat.vhdx", 4, "bat.payload-place");
    fs::write(folder.file("l0.vhdx"), whole).unwrap();
    fs::rename(folder.file("l1.vhdx"), folder.file("away")).unwrap();
    refused(&folder, "flatten l2.vhdx flat.vhdx", 5, "parent.missing");
    fs::rename(folder.file("away"), folder.file("l1.vhdx")).unwrap();
    folder.run("flatten l2.vhdx there.vhdx --overwrite").expect(0);
    assert!(flat(&folder, "there.vhdx") == flats()[2]);
}

#[test]
fn the_copy_cannot_be_compared_with_what_is_passed_once() {
    let folder = Folder::with_chain();
    refused(&folder, "convert l2.vhdx -O raw - --verify", 2, "usage");
    refused(&folder, "convert -f raw - out.vhdx --verify", 2, "usage");
    for format in ["raw", "vhdx", "vhdx-fixed"] {
        let line = format!("convert l2.vhdx -O {format} out --verify --json");
        assert_eq!(folder.run(&line).expect(0).json()["verified"], true);
        fs::remove_file(folder.file("out")).unwrap();
    }
}

/// At any length that the file may reach, down to none.
#[test]
#[cfg(unix)]
fn a_full_disk_leaves_nothing_behind() {
    use crate::common::Run;
    let folder = Folder::new();
    let mut image = Image::dynamic(8 * MIB);
    (0..8).for_each(|block| _ = image.put(block, Block::full(Data::Pattern(block + 1))));
    image.write_to(folder.file("a.vhdx"));
    for blocks in [0, 1, 64, 1024, 4096, 6000] {
        for line in ["flatten a.vhdx out.vhdx --block 1M", "convert a.vhdx out.raw"] {
            let limited = format!("trap '' XFSZ; ulimit -f {blocks}; avhdx {line} --json");
            let run = Run::of(folder.in_shell(&limited).output().unwrap()).expect(3);
            let error = run.error();
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("the unfinished file is removed"), "{blocks}: {message}");
            assert!(message.contains("out."), "{blocks}: {message}");
            assert_eq!(folder.names(), ["a.vhdx"], "{blocks}: {line}");
        }
    }
}
