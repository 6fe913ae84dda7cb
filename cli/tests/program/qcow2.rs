//! qcow2 images, in and out.

use std::fs;
use std::process::Command;

use avhdx_testkit::build::{Block, Data, Image};

use crate::common::{Folder, flats};

/// What QEMU says; `None` if it is not there.
fn qemu(folder: &Folder, program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).current_dir(folder.file(".")).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(output.status.success(), "{program} {args:?}: {text}");
            Some(text)
        }
        Err(_) => {
            assert!(std::env::var_os("AVHDX_INTEROP").is_none(), "no {program} here");
            None
        }
    }
}

/// QEMU reads an image as these bytes, and finds it sound.
fn is_so(folder: &Folder, image: &str, bytes: &[u8]) {
    fs::write(folder.file("wanted"), bytes).unwrap();
    qemu(folder, "qemu-img", &["compare", "-f", "qcow2", "-F", "raw", image, "wanted"]);
    if let Some(said) = qemu(folder, "qemu-img", &["check", "-f", "qcow2", image]) {
        assert!(said.contains("No errors were found"), "{said}");
    }
}

#[test]
fn a_disk_goes_out_to_qcow2_and_comes_back() {
    let folder = Folder::with_chain();
    folder.run("convert l2.vhdx a.qcow2 --verify").expect(0).prints("read back and compared");
    is_so(&folder, "a.qcow2", &flats()[2]);
    folder.run("compare l2.vhdx a.qcow2").expect(0).prints("the same");
    assert!(folder.run("read a.qcow2").expect(0).stdout == flats()[2]);
    folder.run("convert a.qcow2 b.vhdx").expect(0);
    folder.run("compare b.vhdx a.qcow2").expect(0);
    folder.run("convert a.qcow2 c.vhd").expect(0);
    folder.run("compare c.vhd a.qcow2").expect(0);
    folder.run("convert l2.vhdx d.qcow2 --block 2M").expect(0).prints("block size 2 MiB");
    is_so(&folder, "d.qcow2", &flats()[2]);
    let forecast = folder.run("convert l2.vhdx e.qcow2 --dry-run --json").expect(0).json();
    let len = fs::metadata(folder.file("a.qcow2")).unwrap().len();
    assert!(forecast["peak"].as_u64().unwrap() >= len, "{forecast}");
    folder.run("convert l2.vhdx e.qcow2 --block 3M").expect(2).says("a size that they cannot have");
    folder.run("convert l2.vhdx e.qcow2 --sector 512").expect(2).says("neither a log nor");
    folder.run_with("convert -f raw - e.qcow2", b"x").expect(2).says("passed once");
    assert!(!folder.file("e.qcow2").exists());
    folder.run("info a.qcow2").expect(0).prints("qcow2, version 3").prints("64 KiB");
    folder.run("info a.qcow2@-1").expect(2).says("only images of VHDX have points in time");
}

#[test]
fn backing_files_are_opened_where_a_flag_says_so() {
    let folder = Folder::new();
    let args = ["create", "-q", "-f", "qcow2", "base.qcow2", "4M"];
    if qemu(&folder, "qemu-img", &args).is_none() {
        return;
    }
    qemu(&folder, "qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 128k", "base.qcow2"]);
    let args = ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "tip.qcow2"];
    qemu(&folder, "qemu-img", &args);
    qemu(&folder, "qemu-io", &["-f", "qcow2", "-c", "write -P 8 64k 64k", "tip.qcow2"]);
    let run = folder.run("convert tip.qcow2 out.vhdx").expect(5);
    run.says("opened only where asked").says("avhdx convert tip.qcow2 out.vhdx --confine .");
    folder.run("convert tip.qcow2 out.vhdx --confine .").expect(0);
    let bytes = folder.run("read out.vhdx").expect(0).stdout;
    assert!(bytes[..65_536].iter().all(|byte| *byte == 7));
    assert!(bytes[65_536..131_072].iter().all(|byte| *byte == 8));
    assert!(bytes[131_072..].iter().all(|byte| *byte == 0));
    folder.run("info tip.qcow2").expect(0).prints("base.qcow2");
    let info = folder.run("info tip.qcow2 --chain --confine . --json").expect(0).json();
    assert_eq!(info["images"].as_array().unwrap().len(), 2);
    let map = folder.run("map tip.qcow2 --confine . --json").expect(0).text();
    assert!(map.contains("base.qcow2") && map.contains("tip.qcow2"), "{map}");
}

/// Five layers with data, zeros over data, a longer and a shorter child.
fn five(folder: &Folder) -> Vec<Vec<u8>> {
    folder.run("create base.vhdx 9M --block 1M").expect(0);
    folder.run_with("write base.vhdx --offset 100K", &[1; 300_000]).expect(0);
    folder.run_with("write base.vhdx --offset 5M", &[2; 70_000]).expect(0);
    folder.run("checkpoint base.vhdx --path one.avhdx").expect(0);
    folder.run_with("write one.avhdx --offset 200000", &[3; 1000]).expect(0);
    folder.run("zero one.avhdx --offset 5M --length 1M").expect(0);
    folder.run("checkpoint one.avhdx --path two.avhdx").expect(0);
    folder.run("resize two.avhdx 12M").expect(0);
    folder.run_with("write two.avhdx --offset 11M", &[4; 513]).expect(0);
    folder.run("checkpoint two.avhdx --path odd.avhdx").expect(0);
    folder.run("discard odd.avhdx --offset 0 --length 2M").expect(0);
    folder.run("checkpoint odd.avhdx --path tip.avhdx").expect(0);
    folder.run_with("write tip.avhdx --offset 130000", &[5; 70_000]).expect(0);
    let at = |n: usize| folder.run(&format!("read tip.avhdx@-{n}")).expect(0).stdout;
    (0..5).rev().map(at).collect()
}

#[test]
fn a_chain_leaves_with_all_its_points() {
    let folder = Folder::new();
    let flats = five(&folder);
    fs::create_dir(folder.file("kvm")).unwrap();
    let run = folder.run("convert --chain tip.avhdx kvm").expect(0);
    run.prints("5 images made");
    let names = ["base", "one", "two", "odd", "tip"];
    for (name, flat) in names.iter().zip(&flats) {
        let image = format!("./kvm/{name}.qcow2");
        is_so(&folder, &image, flat);
        let bytes = folder.run(&format!("read {image} --confine kvm")).expect(0).stdout;
        assert!(bytes == *flat, "{name}");
    }
    if let Some(info) =
        qemu(&folder, "qemu-img", &["info", "--backing-chain", "--output=json", "kvm/tip.qcow2"])
    {
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let chain = info.as_array().unwrap();
        assert_eq!(chain.len(), 5);
        let backing: Vec<_> =
            chain.iter().map(|image| image["backing-filename"].as_str().unwrap_or("-")).collect();
        assert_eq!(backing, ["odd.qcow2", "two.qcow2", "one.qcow2", "base.qcow2", "-"]);
        let format = |image: &serde_json::Value| image["backing-filename-format"].clone();
        assert!(chain[..4].iter().all(|image| format(image) == "qcow2"));
        // A child holds what it changed, not what it shows.
        let sizes: Vec<u64> =
            chain.iter().map(|image| image["actual-size"].as_u64().unwrap()).collect();
        assert!(sizes[..4].iter().all(|size| *size < 1 << 20), "{sizes:?}");
    }
    // Nothing that is there is replaced.
    folder.run("convert --chain tip.avhdx kvm").expect(7).says("exists");
    folder.run("convert --chain tip.avhdx kvm --overwrite").expect(0);
    folder.run("convert --chain tip.avhdx kvm/tip.qcow2").expect(2).says("goes to a folder");
    folder.run("convert --chain tip.avhdx kvm -O vhd").expect(2).says("makes qcow2");
    folder.run("convert --chain kvm/tip.qcow2 .").expect(5);
    // From a point in time on, and names that meet.
    fs::create_dir(folder.file("more")).unwrap();
    fs::create_dir(folder.file("sub")).unwrap();
    folder.run("convert --chain tip.avhdx@-3 more").expect(0).prints("2 images");
    folder.run("create sub/one.avhdx --parent one.avhdx").expect(0);
    fs::create_dir(folder.file("twice")).unwrap();
    folder.run("convert --chain sub/one.avhdx twice").expect(0);
    is_so(&folder, "twice/one-2.qcow2", &flats[1]);
}

#[test]
fn what_waits_in_a_log_and_other_sectors_leave_too() {
    let folder = Folder::new();
    let mut base = Image::dynamic(4 << 20);
    base.logical_sector = 4096;
    base.put(0, Block::full(Data::Pattern(1)));
    base.write_to(folder.file("base.vhdx"));
    let flat = folder.run("read base.vhdx").expect(0).stdout;
    let note = folder.run("convert base.vhdx a.qcow2").expect(0);
    note.says("logical_block_size=4096,physical_block_size=4096");
    is_so(&folder, "a.qcow2", &flat);
    fs::create_dir(folder.file("kvm")).unwrap();
    folder.run("convert --chain base.vhdx kvm").expect(0).says("logical_block_size=4096");
    is_so(&folder, "kvm/base.qcow2", &flat);
}

#[test]
fn a_chain_is_refused_before_any_of_it_is_made() {
    let folder = Folder::new();
    five(&folder);
    fs::create_dir(folder.file("kvm")).unwrap();
    fs::write(folder.file("kvm/tip.qcow2"), "something else").unwrap();
    folder.run("convert --chain tip.avhdx kvm").expect(7).says("tip.qcow2: the file exists");
    assert_eq!(fs::read_dir(folder.file("kvm")).unwrap().count(), 1);
    fs::remove_file(folder.file("kvm/tip.qcow2")).unwrap();
    folder.run("convert --chain tip.avhdx kvm --block 3M").expect(2).says("a size that");
    assert_eq!(fs::read_dir(folder.file("kvm")).unwrap().count(), 0);
    // The base is small enough for such clusters, its child is not.
    folder.run("create small.vhdx 9M").expect(0);
    folder.run("checkpoint small.vhdx --path wide.avhdx").expect(0);
    folder.run("resize wide.avhdx 10T").expect(0);
    folder.run("convert --chain wide.avhdx kvm --block 4K").expect(2).says("too large");
    assert_eq!(fs::read_dir(folder.file("kvm")).unwrap().count(), 0);
}

#[test]
fn zeros_over_nothing_take_no_space_in_a_chain() {
    let folder = Folder::new();
    folder.run("create base.vhdx 16G").expect(0);
    folder.run_with("write base.vhdx --offset 1G", &[7; 4096]).expect(0);
    folder.run("checkpoint base.vhdx --path tip.avhdx").expect(0);
    folder.run("zero tip.avhdx --offset 0 --length 16G").expect(0);
    fs::create_dir(folder.file("kvm")).unwrap();
    folder.run("convert --chain tip.avhdx kvm").expect(0);
    let len = fs::metadata(folder.file("kvm/tip.qcow2")).unwrap().len();
    assert!(len <= 512 << 10, "{len}");
    folder.run("convert kvm/tip.qcow2 flat.qcow2 --confine kvm").expect(0).prints("0 bytes");
}

/// Two machines over one base: `web` and `mail` fork at `mid`, `old` at the base.
fn forked(folder: &Folder) {
    folder.run("create base.vhdx 9M --block 1M").expect(0);
    folder.run_with("write base.vhdx --offset 100K", &[1; 300_000]).expect(0);
    folder.run_with("write base.vhdx --offset 5M", &[2; 70_000]).expect(0);
    folder.run("create mid.avhdx --parent base.vhdx").expect(0);
    folder.run_with("write mid.avhdx --offset 200000", &[3; 1000]).expect(0);
    folder.run("create web.avhdx --parent mid.avhdx").expect(0);
    folder.run("zero web.avhdx --offset 5M --length 20000").expect(0);
    fs::create_dir(folder.file("sub")).unwrap();
    folder.run("create sub/WEB.avhdx --parent mid.avhdx").expect(0);
    folder.run_with("write sub/WEB.avhdx --offset 8M", &[5; 513]).expect(0);
    folder.run("create ab.avhdx --parent base.vhdx").expect(0);
    folder.run("create old.avhdx --parent ab.avhdx").expect(0);
    folder.run_with("write old.avhdx --offset 0", &[6; 70_000]).expect(0);
    fs::rename(folder.file("ab.avhdx"), folder.file("a:b.avhdx")).unwrap();
    fs::create_dir(folder.file("kvm")).unwrap();
}

#[test]
fn a_tree_leaves_with_each_shared_layer_made_once() {
    let folder = Folder::new();
    forked(&folder);
    // What is made is what was foreseen at most, and nothing is made before.
    let tree = "convert --chain web.avhdx sub/WEB.avhdx old.avhdx kvm --with-parent a:b.avhdx";
    let forecast = folder.run(&format!("{tree} --dry-run --json")).expect(0).json();
    assert_eq!(fs::read_dir(folder.file("kvm")).unwrap().count(), 0);
    assert_eq!(forecast["files"].as_array().unwrap().len(), 6);
    folder.run(&format!("{tree} --dry-run")).expect(0).prints("old.qcow2");
    let run = folder.run(&format!("{tree} --verify --json")).expect(0);
    let made = run.json();
    assert_eq!(made["verified"], true);
    let images = made["images"].as_array().unwrap();
    let named = |image: &serde_json::Value, key: &str| {
        let name = image[key].as_str().unwrap_or("-");
        name.strip_prefix("kvm/").unwrap_or(name).to_owned()
    };
    let over: Vec<_> =
        images.iter().map(|image| [named(image, "output"), named(image, "backing")]).collect();
    let expected = [
        ["base.qcow2", "-"],
        ["mid.qcow2", "base.qcow2"],
        ["web.qcow2", "mid.qcow2"],
        ["WEB-2.qcow2", "mid.qcow2"],
        ["a:b.qcow2", "base.qcow2"],
        ["old.qcow2", "./a:b.qcow2"],
    ];
    assert_eq!(over, expected);
    let tips: Vec<_> = images.iter().map(|image| image["is_tip"] == true).collect();
    assert_eq!(tips, [false, false, true, true, false, true]);
    let mut len = 0;
    let flat =
        |point: &str| folder.run(&format!("read {point} --with-parent a:b.avhdx")).expect(0).stdout;
    let points = ["base.vhdx", "mid.avhdx", "web.avhdx", "sub/WEB.avhdx", "a:b.avhdx", "old.avhdx"];
    for ([name, _], point) in expected.iter().zip(points) {
        let image = format!("./kvm/{name}");
        len += fs::metadata(folder.file(&image)).unwrap().len();
        is_so(&folder, &image, &flat(point));
    }
    // By the tables, two blocks of 1 MiB have data, of which most are zeros.
    let peak = forecast["peak"].as_u64().unwrap();
    assert!((len..len + (2 << 20)).contains(&peak), "{peak} for {len}");
    let args = ["info", "--backing-chain", "--output=json", "kvm/old.qcow2"];
    if let Some(info) = qemu(&folder, "qemu-img", &args) {
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let names: Vec<_> =
            info.as_array().unwrap().iter().map(|image| named(image, "filename")).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }
    folder.run(tree).expect(7).says("base.qcow2: the file exists");
    folder.run(&format!("{tree} --overwrite")).expect(0).prints("the tips are kvm/web.qcow2");
}

#[test]
fn forks_that_stay_here_are_named() {
    let folder = Folder::new();
    forked(&folder);
    let run = folder.run("convert --chain web.avhdx kvm").expect(0);
    let run = run.prints("3 images made, the last one is the tip");
    let run = run.says("other images lie over these layers");
    run.says("a:b.avhdx");
    folder.run("convert web.avhdx old.avhdx kvm").expect(2).says("--chain makes images");
    folder.run("convert web.avhdx").expect(2).says("OUT is missing");
}
