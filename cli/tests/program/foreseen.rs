//! `convert --dry-run` and `flatten --dry-run`: what a copy takes, and what is refused.

use std::collections::BTreeMap;
use std::fs;

use avhdx_testkit::build::{Block, Data, Image, state};

use crate::common::Folder;

const MIB: u64 = 1 << 20;

/// Every file with its bytes.
fn all(folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    folder.names().into_iter().map(|name| (name.clone(), folder.read(&name))).collect()
}

/// A disk of 40 MiB with data in the blocks 0 and 9 and in a page of block 38, and zeros in block 20.
fn scattered(folder: &Folder) {
    let mut image = Image::dynamic(40 * MIB);
    image.put(0, Block::full(Data::Pattern(1)));
    image.put(9, Block::full(Data::Pattern(2)));
    image.put(20, Block::bare(state::ZERO));
    let mut child = image.new_child();
    child.put(38, Block::partial_runs(Data::Pattern(3), &[(8, 8)]));
    child.parent_path(r".\base.vhdx");
    image.write_to(folder.file("base.vhdx"));
    child.write_to(folder.file("tip.avhdx"));
}

/// The file that the copy becomes is as long as was foreseen, and nothing was there before.
#[test]
fn a_copy_takes_what_its_dry_run_says() {
    let folder = Folder::new();
    scattered(&folder);
    let data = 2 * MIB + 4096;
    for (line, format, blocks) in [
        ("flatten tip.avhdx o.vhdx", "vhdx", Some((32 * MIB, 2))),
        ("flatten tip.avhdx o.vhdx --block 1M", "vhdx", Some((MIB, 3))),
        ("flatten tip.avhdx o.vhdx --block 4M --log-size 5M", "vhdx", Some((4 * MIB, 3))),
        ("convert tip.avhdx o.vhdx --block 1M", "vhdx", Some((MIB, 3))),
        ("convert tip.avhdx o.vhdx -O vhdx-fixed --block 2M", "vhdx-fixed", Some((2 * MIB, 20))),
        ("convert tip.avhdx o.raw", "raw", None),
    ] {
        let before = all(&folder);
        let json = folder.run(&format!("{line} --dry-run --json")).expect(0).json();
        let run = folder.run(&format!("{line} --dry-run")).expect(0).prints("nothing is changed");
        run.prints(&format!("{format}, ")).prints("created");
        assert!(all(&folder) == before, "{line}");
        assert_eq!(json["schema"], "avhdx.forecast/1");
        let copy = &json["copy"];
        assert_eq!((&copy["format"], &copy["virtual_size"]), (&format.into(), &(40 * MIB).into()));
        let (block, count) = blocks.unzip();
        assert_eq!(
            (&copy["block_size"], &copy["blocks"]),
            (&block.into(), &count.into()),
            "{line}"
        );
        assert_eq!((&json["read"], &json["written"]), (&data.into(), &data.into()), "{line}");
        assert!(json["available"].as_u64().unwrap() > 0);
        assert_eq!(json["files"].as_array().unwrap().len(), 1);

        let written = folder.run(&format!("{line} --json")).expect(0).json();
        assert!(written["written"].as_u64().unwrap() <= data, "{line}: {written}");
        let (peak, made) = (json["peak"].as_u64().unwrap(), written["output"].as_str().unwrap());
        let meta = fs::metadata(folder.file(made)).unwrap();
        if format == "raw" {
            assert_eq!(peak, data);
            #[cfg(unix)]
            assert!(std::os::unix::fs::MetadataExt::blocks(&meta) * 512 <= peak);
        } else {
            assert_eq!(meta.len(), peak, "{line}");
        }
        // In place of that file.
        let json = folder.run(&format!("{line} --overwrite --dry-run --json")).expect(0).json();
        assert_eq!(json["freed"], meta.len(), "{line}");
        fs::remove_file(folder.file(made)).unwrap();
    }
    // Other sectors, and a raw disk.
    fs::write(folder.file("in.raw"), vec![7; MIB as usize + 1000]).unwrap();
    let line = "convert -f raw in.raw o.vhdx --sector 4096 --block 1M";
    let json = folder.run(&format!("{line} --dry-run --json")).expect(0).json();
    assert_eq!(json["copy"]["virtual_size"], MIB + 4096);
    folder.run(&format!("{line} --dry-run")).expect(0).says("the copy has");
    folder.run(line).expect(0);
    let len = fs::metadata(folder.file("o.vhdx")).unwrap().len();
    let peak = json["peak"].as_u64().unwrap();
    assert!((len..=len + MIB).contains(&peak), "{len} for {peak}");
}

/// With the code of the run, before anything is changed.
#[test]
fn a_dry_run_refuses_what_the_copy_would_refuse() {
    let folder = Folder::with_chain();
    scattered(&folder);
    fs::create_dir(folder.file("folder")).unwrap();
    fs::write(folder.file("in.raw"), vec![7; 4096]).unwrap();
    let names = folder.names();
    for line in [
        "flatten tip.avhdx l0.vhdx",
        "convert l2.vhdx -O raw tip.avhdx --any-name",
        "flatten l2.vhdx l1.vhdx --overwrite",
        "convert l2.vhdx l0.vhdx --overwrite",
        "flatten tip.avhdx l1.vhdx --overwrite",
        "convert tip.avhdx -O raw folder",
        "convert tip.avhdx -O raw new.vhdx",
        "flatten tip.avhdx new.raw",
        "convert tip.avhdx new.vdi",
        "convert tip.avhdx new.qcow2 --block 3M",
        "convert tip.avhdx new.vhd --block 3M",
        "convert tip.avhdx new.vhd --log-size 1M",
        "flatten tip.avhdx nowhere/new.vhdx",
        "flatten tip.avhdx in.raw/new.vhdx",
        "flatten tip.avhdx new.vhdx --block 3M",
        "flatten tip.avhdx new.vhdx --block 8G",
        "convert tip.avhdx new.vhdx --sector 1000",
        "convert tip.avhdx new.vhdx -O vhdx-fixed --physical-sector 7",
        "convert tip.avhdx new.vhdx --log-size 1000",
        "convert tip.avhdx new.raw --block 1M",
        "flatten l2.vhdx@nobody new.vhdx",
        "flatten tip.avhdx -",
    ] {
        let run = folder.run(&format!("{line} --json"));
        let dry = folder.run(&format!("{line} --dry-run --json"));
        let (code, dry_code) = (run.error()["code"].clone(), dry.error()["code"].clone());
        assert_eq!((run.code, code), (dry.code, dry_code), "{line}: {}", dry.stderr);
        assert!(run.code > Some(1), "{line}");
        assert_eq!(folder.names(), names, "{line}");
    }
    folder.run_with("convert -f raw - new.vhdx --dry-run", b"x").expect(2).says("--dry-run is for");
    folder.run("convert tip.avhdx -O raw - --dry-run").expect(2).says("--dry-run is for");
    assert_eq!(folder.names(), names);
}

/// As other forecasts that do not fit: what it takes is printed, and the missing bytes are the refusal.
#[test]
fn a_dry_run_says_what_space_is_missing() {
    let folder = Folder::new();
    Image::dynamic(60 << 40).write_to(folder.file("huge.vhdx"));
    let before = folder.names();
    let run = folder.run("convert huge.vhdx -O vhdx-fixed o.vhdx --dry-run --json").expect(3);
    let error = run.error();
    assert_eq!(error["code"], "op.space");
    let json = run.json();
    let [peak, available] = ["peak", "available"].map(|key| json[key].as_u64().unwrap());
    assert!(peak > 60 << 40 && available < peak, "{json}");
    let missing = format!("o.vhdx: {} bytes of space are missing", peak - available);
    assert!(error["message"].as_str().unwrap().starts_with(&missing), "{error}");
    assert!(run.next()[0].contains("convert huge.vhdx -O vhdx-fixed OUT"), "{:?}", run.next());
    folder.run("convert huge.vhdx -O vhdx o.vhdx --dry-run").expect(0);
    assert_eq!(folder.names(), before);
}
