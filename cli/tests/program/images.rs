//! Images by other writers: the chains in `fixtures` or in the folder `AVHDX_IMAGES`, and images made by QEMU during the
//! test.

use std::path::PathBuf;

use crate::common::Folder;
use avhdx_testkit::images::{
    avhdx_images, expected, fixtures_dir, gunzip, image, sha256_file, sha256_hex, unpack_tree,
};
use avhdx_testkit::qemu::Qemu;
use avhdx_testkit::rng::Rng;

/// The folder of the chains by DiscUtils, if there is one.
fn chains() -> Option<PathBuf> {
    let own = fixtures_dir().join("chains");
    if own.is_dir() { Some(own) } else { Some(avhdx_images()?.join("chains")) }
}

#[test]
fn every_layer_of_every_chain_has_the_expected_checksum() {
    let Some(packed) = chains() else { return eprintln!("skipped: no chains here") };
    let folder = Folder::new();
    let files = unpack_tree(&packed, folder.path());
    let before: Vec<String> = files.iter().map(|file| sha256_file(file)).collect();
    let sums = expected(&packed.join("expected.sha256"));
    assert_eq!(sums.len(), files.len());
    for (sum, name) in &sums {
        let verb = |args: &[&str]| {
            let args = args.iter().map(|arg| arg.replace("IMAGE", name));
            crate::common::Run::of(folder.command(args).output().unwrap()).expect(0)
        };
        verb(&["convert", "IMAGE", "-O", "raw", "flat.raw", "--overwrite"]);
        assert_eq!(&sha256_file(&folder.file("flat.raw")), sum, "{name}");
        let stream = verb(&["convert", "IMAGE", "-O", "raw", "-"]);
        assert_eq!(&sha256_hex(&stream.stdout[..]), sum, "{name}");
        verb(&["compare", "IMAGE", "flat.raw", "-F", "raw"]);
        let same = verb(&["diff", "IMAGE", "flat.raw", "-F", "raw", "--content"]).text();
        assert!(same.ends_with("\n0 ranges: 0 bytes\n"), "{same}");

        // Extents cover the disk without gaps, and agree with explain at their first byte.
        let map = verb(&["map", "IMAGE", "--json"]).text();
        let mut at = 0;
        for line in map.lines() {
            let extent: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(extent["start"], at, "{name}");
            let why = verb(&["explain", "IMAGE", &at.to_string(), "--json"]).json();
            let layers = why["layers"].as_array().unwrap();
            let last = &layers[layers.len() - 1];
            if extent["data"] == true {
                assert_eq!(extent["depth"], layers.len() - 1, "{name} at {at}");
                assert_eq!(
                    (&extent["image"], &extent["offset"]),
                    (&last["image"], &last["file_offset"])
                );
            } else {
                assert_ne!(last["verdict"], "data");
            }
            at += extent["length"].as_u64().unwrap();
        }
        let info = verb(&["info", "IMAGE", "--chain", "--json"]).json();
        assert_eq!(info["virtual_size"], at, "{name}");
        assert_eq!(info["chain"]["complete"], true, "{name}");
    }
    let after: Vec<String> = files.iter().map(|file| sha256_file(file)).collect();
    assert_eq!(before, after, "reading changed a file");
}

#[test]
fn points_in_time_of_a_real_chain() {
    let Some(packed) = chains() else { return eprintln!("skipped: no chains here") };
    let folder = Folder::new();
    unpack_tree(&packed, folder.path());
    let sums = expected(&packed.join("expected.sha256"));
    for below in 0..6 {
        let run = folder.run(&format!("read deep6/l5.vhdx@-{below} --length 6M")).expect(0);
        let name = format!("deep6/l{}.vhdx", 5 - below);
        let (sum, _) = sums.iter().find(|(_, layer)| *layer == name).unwrap();
        assert_eq!(&sha256_hex(&run.stdout[..]), sum);
        run.says(&format!("is {name}"));
    }
}

#[test]
fn a_pending_log_by_windows_is_replayed_in_memory() {
    let Some(packed) = image("hyperv/dirty-log.vhdx.gz") else {
        return eprintln!("skipped: AVHDX_IMAGES names no images by Windows");
    };
    let folder = Folder::new();
    gunzip(&packed, &folder.file("dirty.vhdx"));
    let before = sha256_file(&folder.file("dirty.vhdx"));
    folder.run("convert dirty.vhdx -O raw flat.raw").expect(0);
    let sum = "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e";
    assert_eq!(sha256_file(&folder.file("flat.raw")), sum);
    folder.run("info dirty.vhdx").expect(0).prints("PENDING, replayed in memory").prints("32 MiB");
    folder.run("read dirty.vhdx --length 1 --log refuse").expect(7);
    assert_eq!(sha256_file(&folder.file("dirty.vhdx")), before);
}

#[test]
fn conversions_equal_those_of_qemu() {
    let Some(qemu) = Qemu::find() else { return eprintln!("skipped: no qemu-img here") };
    const MIB: u64 = 1 << 20;
    // Sizes that are not multiples of the block size.
    let shapes = [(1, 9), (2, 17), (8, 35), (64, 150), (256, 300)];
    let mut images = 0;
    for (block, size) in shapes {
        for (subformat, fill) in [
            ("dynamic", "empty"),
            ("dynamic", "full"),
            ("dynamic", "scattered"),
            ("fixed", "scattered"),
        ] {
            let folder = Folder::new();
            let (disk, size) = (folder.file("disk.vhdx"), size * MIB + 512 * 1024);
            let block = (block * MIB).to_string();
            qemu.create(&disk, size, &[("subformat", subformat), ("block_size", &block)]);
            let mut rng = Rng::new(size);
            let commands: Vec<String> = match fill {
                "full" => vec![format!("write -P 0x5a 0 {size}")],
                "scattered" => (0..24)
                    .map(|i| {
                        let (at, len) = (rng.below(size / 512), 1 + rng.below(300));
                        let len = len.min(size / 512 - at);
                        format!("write -P {} {} {}", i + 1, at * 512, len * 512)
                    })
                    .collect(),
                _ => Vec::new(),
            };
            let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
            if !commands.is_empty() {
                qemu.io(&disk, &commands);
            }
            qemu.to_raw(&disk, &folder.file("theirs.raw"));
            folder.run("convert disk.vhdx -O raw ours.raw").expect(0);
            let length = |name| std::fs::metadata(folder.file(name)).unwrap().len();
            assert_eq!((length("ours.raw"), length("theirs.raw")), (size, size));
            let (ours, theirs) = (folder.file("ours.raw"), folder.file("theirs.raw"));
            qemu.compare(("raw", &ours), ("raw", &theirs));
            folder.run("compare disk.vhdx theirs.raw -F raw").expect(0);
            images += 1;
        }
    }
    assert_eq!(images, 20);
}
