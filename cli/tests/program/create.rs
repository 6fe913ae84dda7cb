//! `avhdx create`: new images, and refusals.

use std::fs;

use crate::common::{Folder, flats, guid};
use avhdx_testkit::naive;
use avhdx_testkit::qemu::Qemu;
use serde_json::Value;

#[test]
fn a_dynamic_disk_has_the_defaults_of_windows() {
    let folder = Folder::new();
    let run = folder.run("create a.vhdx --size 64M").expect(0);
    run.prints("a.vhdx: a dynamic disk of 67108864 bytes (64 MiB), block size 32 MiB");
    assert_eq!(folder.names(), ["a.vhdx"]);
    let image = folder.run("info a.vhdx --json").expect(0).json().take();
    assert_eq!(image["type"], "dynamic");
    assert_eq!(image["logical_sector_size"], 512);
    assert_eq!(image["physical_sector_size"], 4096);
    assert_eq!(image["block_size"], 32 << 20);
    assert_eq!(image["blocks"]["not_present"], 2);
    assert_eq!(image["log"]["length"], 1 << 20);
    assert_eq!(image["log"]["state"], "empty");
    if let Some(qemu) = Qemu::find() {
        qemu.check(&folder.file("a.vhdx"));
        assert!(qemu.info(&folder.file("a.vhdx")).contains("\"virtual-size\": 67108864"));
    }
}

#[test]
fn sizes_are_read_as_people_type_them() {
    let folder = Folder::new();
    for (typed, size) in [
        ("1G", 1_u64 << 30),
        ("1GB", 1 << 30),
        ("1GiB", 1 << 30),
        ("1.5g", 3 << 29),
        ("--size 0x40000000", 1 << 30),
        ("--size 3TiB", 3 << 40),
    ] {
        folder.run(&format!("create a.vhdx {typed} --overwrite")).expect(0);
        assert_eq!(naive::Layer::open(folder.file("a.vhdx")).unwrap().size, size, "{typed}");
    }
    for (wrong, says) in [
        ("0.3G", "322122240 and 322122752"),
        ("-1", "no negative size"),
        ("--size -1", "no negative size"),
        ("0", "at least one sector, 512 bytes"),
        ("10x", "64M, 10GiB or 1.5T"),
        ("1e3", "64M, 10GiB or 1.5T"),
        ("1_000K", "64M, 10GiB or 1.5T"),
        ("1G --size 1G", "cannot be used with"),
    ] {
        folder.run(&format!("create b.vhdx {wrong}")).expect(2).says(says);
        assert_eq!(folder.names(), ["a.vhdx"], "{wrong}");
    }
}

#[test]
fn every_size_can_be_chosen() {
    let folder = Folder::new();
    folder
        .run("create a.vhdx --size 12M --block 2M --sector 4096 --physical-sector 4096 --log-size 3M")
        .expect(0);
    let layer = naive::Layer::open(folder.file("a.vhdx")).unwrap();
    assert_eq!((layer.size, layer.block_size, layer.sector), (12 << 20, 2 << 20, 4096));
    let image = folder.run("info a.vhdx --json").expect(0).json().take();
    assert_eq!(image["log"]["length"], 3 << 20);
    assert_eq!(image["physical_sector_size"], 4096);
    for wrong in [
        "--size 1000",
        "--size 0",
        "--size 65T",
        "--size 4M --block 3M",
        "--size 4M --block 8G",
        "--size 4M --sector 1024",
        "--size 4M --physical-sector 513",
        "--size 4M --log-size 1000",
        "--size 4M --log-size 0",
        "",
        "--size 4M --new-disk-id",
        r"--size 4M --absolute-win32-path D:\a.vhdx",
    ] {
        folder.run(&format!("create b.vhdx {wrong}")).expect(2);
        assert_eq!(folder.names(), ["a.vhdx"], "{wrong}");
    }
    // Errors show the final name, not the temporary one.
    folder.run("create b.vhdx --size 1000").expect(2).says("avhdx: b.vhdx: invalid disk size");
    let error = folder.run("create b.vhdx --size 1000 --json").expect(2).error();
    assert_eq!((&error["file"], &error["kind"]), (&"b.vhdx".into(), &"invalid-input".into()));
}

#[test]
fn a_fixed_disk_is_fully_allocated() {
    let folder = Folder::new();
    folder.run("create a.vhdx --size 9M --fixed --block 1M").expect(0).prints("a fixed disk");
    let blocks = folder.run("info a.vhdx --json").expect(0).json()["blocks"].take();
    assert_eq!(blocks["fully_present"], 9);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(folder.file("a.vhdx")).unwrap();
        assert!(metadata.len() >= 9 << 20 && metadata.blocks() * 512 >= metadata.len());
    }
    if let Some(qemu) = Qemu::find() {
        qemu.check(&folder.file("a.vhdx"));
    }
    // No file system has space for this one.
    folder.run("create huge.vhdx --size 64T --fixed").expect(3).says("huge.vhdx");
    assert_eq!(folder.names(), ["a.vhdx"]);
}

#[test]
fn a_child_reads_as_the_point_in_time_it_was_made_from() {
    let folder = Folder::with_chain();
    fs::create_dir(folder.file("sub")).unwrap();
    for (number, point) in ["l2.vhdx@base", "l2.vhdx@-1", "l2.vhdx"].into_iter().enumerate() {
        let child = format!("sub/c{number}.avhdx");
        let run = folder.run(&format!("create {child} --parent {point} --json")).expect(0);
        let parent = format!("l{number}.vhdx");
        let facts = run.json();
        assert_eq!(facts["parent"]["image"], parent);
        assert_eq!(facts["parent"]["data_write_guid"], guid(number as u8).to_string());
        let read = folder.run(&format!("convert {child} -O raw -")).expect(0);
        assert!(read.stdout == flats()[number], "{point}");
        // By an independent reader.
        let below = (0..=number).map(|n| folder.file(&format!("l{n}.vhdx")));
        let layers = naive::Chain::open(below.chain([folder.file(&child)])).unwrap();
        assert!(layers.flat(number + 1).unwrap() == flats()[number]);
        let locator = &layers.0[number + 1].locator;
        let linkage = format!("{{{}}}", guid(number as u8));
        assert!(locator.contains(&("parent_linkage".into(), linkage)), "{locator:?}");
        assert!(locator.contains(&("relative_path".into(), format!("..\\{parent}"))));
        assert!(!locator.iter().any(|(key, _)| key == "absolute_win32_path"), "{locator:?}");
    }
    let run = folder.run("create gone.avhdx --parent l2.vhdx@-3").expect(2);
    run.says("its base is @-2");
}

#[test]
fn a_child_can_be_larger_and_have_its_own_disk_id() {
    let folder = Folder::with_chain();
    let id = |name: &str| {
        let info = folder.run(&format!("info {name} --json")).expect(0).json();
        info["disk_id"].as_str().unwrap().to_owned()
    };
    folder.run("create same.avhdx --parent l2.vhdx").expect(0);
    assert_eq!(id("same.avhdx"), id("l2.vhdx"));
    folder.run("create own.avhdx --parent l2.vhdx --new-disk-id --size 8M --block 4M").expect(0);
    assert_ne!(id("own.avhdx"), id("l2.vhdx"));
    let mut expected = flats()[2].clone();
    expected.resize(8 << 20, 0);
    assert!(folder.run("convert own.avhdx -O raw -").expect(0).stdout == expected);

    let smaller = folder.run("create small.avhdx --parent l2.vhdx --size 5M").expect(2);
    smaller.says("smaller than its parent").says("a size of 6291456 or more");
    folder.run("create fixed.avhdx --parent l2.vhdx --fixed").expect(2);
    folder.run("create s.avhdx --parent l2.vhdx --sector 4096").expect(2).says("the parent's 512");
    let names = ["l0.vhdx", "l1.vhdx", "l2.vhdx", "own.avhdx", "same.avhdx"];
    assert_eq!(folder.names(), names);
}

#[test]
fn the_windows_path_is_given_or_mapped() {
    let folder = Folder::with_chain();
    let recorded = |name: &str| {
        let layer = naive::Layer::open(folder.file(name)).unwrap();
        let found = layer.locator.into_iter().find(|(key, _)| key == "absolute_win32_path");
        found.map(|(_, path)| path)
    };
    let given = r"create a.avhdx --parent l2.vhdx --absolute-win32-path E:\disks\l2.vhdx";
    folder.run(given).expect(0);
    assert_eq!(recorded("a.avhdx").as_deref(), Some(r"E:\disks\l2.vhdx"));
    let outer = folder.path().parent().unwrap().display().to_string();
    let map = |flags: &str, name: &str| {
        folder.run(&format!("create {name} --parent l2.vhdx {flags}")).expect(0);
        recorded(name)
    };
    // The mapping of the innermost folder applies, in any order.
    let flags = format!(r"--path-map D:\vm\web=. --path-map C:\={outer}");
    assert_eq!(map(&flags, "b.avhdx").as_deref(), Some(r"\\?\D:\vm\web\l2.vhdx"));
    let inner = folder.path().file_name().unwrap().to_str().unwrap();
    let flags = format!(r"--path-map //srv/share/={outer}");
    let expected = format!(r"\\?\UNC\srv\share\{inner}\l2.vhdx");
    assert_eq!(map(&flags, "c.avhdx"), Some(expected));
    assert_eq!(map(r"--path-map D:\vm=/proc", "d.avhdx"), None);
    // A path of this machine is never recorded as a Windows path.
    for path in ["/mnt/l2.vhdx", "l2.vhdx", r"\l2.vhdx"] {
        let line = format!("create e.avhdx --parent l2.vhdx --absolute-win32-path {path}");
        folder.run(&line).expect(2).says("not an absolute path with a drive");
    }
    // The recorded path leads back through the same mapping.
    fs::create_dir(folder.file("moved")).unwrap();
    fs::rename(folder.file("b.avhdx"), folder.file("moved/b.avhdx")).unwrap();
    folder.run("read moved/b.avhdx --length 1").expect(5);
    folder.run(r"read moved/b.avhdx --length 1 --path-map D:\vm\web=.").expect(0);
}

#[test]
fn nothing_is_overwritten_without_consent() {
    let folder = Folder::with_chain();
    fs::write(folder.file("out"), "precious").unwrap();
    folder.run("create out --size 4M").expect(7).says("the file exists").says("--overwrite");
    assert_eq!(folder.read("out"), b"precious");
    folder.run("create out --size 4M --overwrite").expect(0);
    assert_eq!(&folder.read("out")[..8], b"vhdxfile");
    // The child's own parents are never replaced.
    let before = folder.read("l0.vhdx");
    let run = folder.run("create l0.vhdx --parent l2.vhdx --overwrite --json").expect(7);
    assert_eq!(run.error()["code"], "output.is-input");
    assert!(folder.read("l0.vhdx") == before);
    folder.run("create nowhere/out --size 4M").expect(3).says("nowhere/out");
    assert_eq!(folder.names(), ["l0.vhdx", "l1.vhdx", "l2.vhdx", "out"]);
}

#[test]
fn a_parent_must_have_its_whole_chain_and_no_writer() {
    let folder = Folder::with_chain();
    let held = fs::File::open(folder.file("l2.vhdx")).unwrap();
    held.try_lock().unwrap();
    folder.run("create c.avhdx --parent l2.vhdx").expect(6).says("in use");
    held.unlock().unwrap();
    fs::remove_file(folder.file("l1.vhdx")).unwrap();
    folder.run("create c.avhdx --parent l2.vhdx").expect(5).says("l1.vhdx");
    folder.run("create c.avhdx --parent gone.vhdx").expect(3).says("gone.vhdx");
    assert_eq!(folder.names(), ["l0.vhdx", "l2.vhdx"]);
}

#[test]
#[cfg(unix)]
fn a_child_has_the_mode_of_its_parent() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::with_chain();
    fs::set_permissions(folder.file("l2.vhdx"), fs::Permissions::from_mode(0o640)).unwrap();
    folder.run("create c.avhdx --parent l2.vhdx").expect(0);
    let mode = fs::metadata(folder.file("c.avhdx")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn the_json_is_stable() {
    let folder = Folder::with_chain();
    let mut run = folder
        .run(r"create c.avhdx --parent l2.vhdx --absolute-win32-path D:\l2.vhdx --json")
        .expect(0)
        .json();
    // The GUIDs are new each time; compare them with the file.
    let layer = naive::Layer::open(folder.file("c.avhdx")).unwrap();
    assert_eq!(run["data_write_guid"], layer.data_write_guid.to_string());
    run["data_write_guid"] = Value::from("new");
    let id = folder.run("info l2.vhdx --json").expect(0).json()["disk_id"].take();
    assert_eq!(run["disk_id"], id);
    run["disk_id"] = Value::from("the parent's");
    let expected = r#"{
  "schema": "avhdx.create/1",
  "image": "c.avhdx",
  "type": "differencing",
  "virtual_size": 6291456,
  "block_size": 2097152,
  "logical_sector_size": 512,
  "physical_sector_size": PHYSICAL,
  "log_size": 1048576,
  "disk_id": "the parent's",
  "data_write_guid": "new",
  "parent": {
    "image": "l2.vhdx",
    "data_write_guid": "2222aaaa-0000-4000-8000-000000000002",
    "relative_path": ".\\l2.vhdx",
    "absolute_win32_path": "D:\\l2.vhdx"
  }
}"#;
    let physical = crate::common::chain()[2].physical_sector.to_string();
    assert_eq!(format!("{run:#}"), expected.replace("PHYSICAL", &physical));
    let base = folder.run("create d.vhdx --size 4M --json").expect(0).json();
    assert_eq!(base["parent"], Value::Null);
}

#[test]
fn the_ending_of_a_new_image_says_what_it_is() {
    let folder = Folder::with_chain();
    folder.run("create a.avhdx --parent l2.vhdx").expect(0);
    folder.run("create A.VHDX 4M").expect(0);
    folder.run("create plain 4M").expect(0).says("made as VHDX");
    let before = folder.names();
    for (line, says) in [
        ("x.avhdx 4M", "no parent"),
        ("x.raw 4M", "truncate -s"),
        ("x.img --parent l2.vhdx", "a child has the format of its parent"),
        ("x.vhd 4M", "a VHD image"),
        ("x.qcow2 4M", "a qcow2 image"),
    ] {
        folder.run(&format!("create {line}")).expect(2).says(says);
        assert_eq!(folder.names(), before, "{line}");
    }
    folder.run("create x.img 4M --any-name").expect(0);
    // --log is what to do with a log; its size has another name.
    folder.run("create y.vhdx 4M --log 2M").expect(2);
}

#[test]
fn a_new_tip_is_not_named_like_a_foreign_image() {
    let folder = Folder::with_chain();
    let before = folder.names();
    for name in ["new.vhd", "new.raw", "new.QCOW2", "new.vdi"] {
        for line in ["checkpoint l2.vhdx", "revert l2.vhdx@-1"] {
            let run = folder.run(&format!("{line} --path {name}")).expect(2);
            run.says("the name is for");
        }
    }
    assert_eq!(folder.names(), before);
    folder.run("checkpoint l2.vhdx --path new.vhd --any-name").expect(0);
}

#[test]
fn a_name_that_ends_like_a_folder_is_refused_before_anything_is_read() {
    let folder = Folder::with_chain();
    let before = folder.names();
    for line in ["convert l2.vhdx a.raw/", "create b.vhdx/ 1M", "convert -f raw - c.raw/"] {
        folder.run_with(line, b"bytes").expect(7).says("the name of a folder");
    }
    assert_eq!(folder.names(), before);
}
