//! VHD images, in and out.

use std::fs;
use std::process::Command;

use avhdx_testkit::vhd::{Image, Parent, seal};

use crate::common::{Folder, flats};

const MIB: u64 = 1 << 20;

fn fixed_of(folder: &Folder, name: &str) -> (Vec<u8>, Vec<u8>) {
    let file = fs::read(folder.file(name)).unwrap();
    let (disk, footer) = file.split_at(file.len() - 512);
    (disk.to_vec(), footer.to_vec())
}

/// Three images over each other, the tip in a folder of its own; what their disk reads as.
fn chain(folder: &Folder) -> Vec<u8> {
    fs::create_dir(folder.file("tips")).unwrap();
    let mut flat = Vec::new();
    for n in 0..3_u8 {
        let mut image = Image::new(if n == 0 { 3 } else { 4 }, 4 * MIB, 512 << 10, n + 1);
        image.runs = vec![(u64::from(n) * 5, vec![n + 1; 5120]), (3000, vec![9 - n; 512])];
        image.parent = (n > 0).then(|| Parent {
            id: [n; 16],
            stamp: 0,
            name: format!("{}.vhd", n - 1),
            relative: Some(format!(r"..\{}.vhd", n - 1)).filter(|_| n == 2),
            absolute: Some(format!(r"D:\vm\{}.vhd", n - 1)),
        });
        flat = image.flat(&flat);
        let name = if n == 2 { "tips/2.vhd".into() } else { format!("{n}.vhd") };
        fs::write(folder.file(&name), image.build()).unwrap();
    }
    flat
}

#[test]
fn a_chain_goes_out_to_vhd_and_comes_back() {
    let folder = Folder::with_chain();
    folder.run("convert l2.vhdx a.vhd --verify").expect(0).prints("read back and compared");
    folder.run("convert l2.vhdx -O vhd-fixed b.vhd").expect(0);
    assert!(fixed_of(&folder, "b.vhd").0 == flats()[2]);
    for name in ["a.vhd", "b.vhd"] {
        folder.run(&format!("compare l2.vhdx {name}")).expect(0).prints("the same");
        assert!(folder.run(&format!("read {name}")).expect(0).stdout == flats()[2]);
        folder.run(&format!("convert {name} {name}.vhdx")).expect(0);
        folder.run(&format!("compare l2.vhdx {name}.vhdx")).expect(0);
        folder.run(&format!("convert {name} {name}.raw")).expect(0);
        assert!(folder.read(&format!("{name}.raw")) == flats()[2]);
    }
    folder.run("convert a.vhd -O vhd-fixed c.vhd").expect(0);
    assert!(fixed_of(&folder, "c.vhd").0 == flats()[2]);
    let before = folder.names();
    folder.run("convert l2.vhdx a.vhd").expect(7).says("exists");
    folder.run("convert a.vhd a.vhd --overwrite").expect(7).says("the input");
    for (line, says) in [
        ("--log-size 1M", "nor a physical sector size"),
        ("--block 3M", "cannot have this size"),
        ("-O vhd-fixed --block 2M", "has no blocks"),
        ("--sector 4096", "have 512 bytes, not 4096"),
    ] {
        folder.run(&format!("convert l2.vhdx d.vhd {line}")).expect(2).says(says);
        assert_eq!(folder.names(), before, "{line}");
    }
    folder.run("convert l2.vhdx d.vhd --block 512K").expect(0).prints("block size 512 KiB");
    folder.run("compare l2.vhdx d.vhd").expect(0);
    folder.run_with("convert -f raw - e.vhd", b"bytes").expect(2).says("passed once");
}

#[test]
fn forecasts_of_vhd_are_what_is_made() {
    let folder = Folder::with_chain();
    for (to, options) in [("vhd", ""), ("vhd-fixed", ""), ("vhd", "--block 512K")] {
        let line = format!("convert l2.vhdx -O {to} {options} out.vhd");
        let forecast = folder.run(&format!("{line} --dry-run --json")).expect(0).json();
        folder.run(&line).expect(0);
        let len = fs::metadata(folder.file("out.vhd")).unwrap().len();
        assert!(len <= forecast["peak"].as_u64().unwrap(), "{to}: {len}, {forecast}");
        assert_eq!(forecast["copy"]["format"], *to);
        if to == "vhd-fixed" {
            assert_eq!(forecast["peak"], len);
        }
        fs::remove_file(folder.file("out.vhd")).unwrap();
    }
}

#[test]
fn parents_of_vhd_images_are_opened_where_a_flag_says_so() {
    let folder = Folder::new();
    let flat = chain(&folder);
    let run = folder.run("convert tips/2.vhd out.vhdx").expect(5);
    let run = run.says("parents are opened only where asked").says(r"..\\1.vhd");
    run.says("avhdx convert tips/2.vhd out.vhdx --confine tips");
    assert!(!folder.file("out.vhdx").exists());
    // The folder of the child alone is not enough here.
    folder.run("convert tips/2.vhd out.vhdx --confine tips").expect(5);
    // Times of parents are not those recorded.
    let run = folder.run("convert tips/2.vhd out.vhdx --confine . --parent-dir .").expect(0);
    run.says("1.vhd: the file has another time than its child recorded");
    assert!(folder.run("read out.vhdx").expect(0).stdout == flat);
    let map = folder.run("map tips/2.vhd --parent-dir . --json").expect(0).text();
    for (depth, name) in [(0, "2.vhd"), (1, "1.vhd"), (2, "0.vhd")] {
        let is_there = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["depth"] == depth
                && line["image"].as_str().is_some_and(|file| file.ends_with(name))
        };
        assert!(map.lines().any(is_there), "{name}: {map}");
    }
    // What an image says of itself needs no parent.
    let info = folder.run("info tips/2.vhd").expect(0);
    info.prints("VHD, differencing").prints("02020202-0202").prints(r"D:\vm\1.vhd");
    let info = folder.run("info tips/2.vhd --chain --parent-dir . --json").expect(0).json();
    let kinds: Vec<&str> = info["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["differencing", "differencing", "dynamic"]);
    folder.run("info tips/2.vhd@-1").expect(2).says("only images of VHDX have points in time");
    folder.run("read tips/2.vhd@-1 --parent-dir .").expect(2).says("points in time");
}

#[test]
fn what_azure_does_not_take_is_refused_or_padded() {
    let folder = Folder::new();
    folder.run("create a.vhdx 21M").expect(0);
    folder.run_with("write a.vhdx --offset 20M", &[7; 512]).expect(0);
    folder.run("convert a.vhdx a.vhd --azure").expect(0);
    let (disk, footer) = fixed_of(&folder, "a.vhd");
    assert_eq!((disk.len() as u64, &footer[..8]), (21 * MIB, &b"conectix"[..]));
    // The current size, and the kind: fixed.
    assert_eq!(footer[48..56], (21 * MIB).to_be_bytes());
    assert_eq!(footer[60..64], [0, 0, 0, 2]);
    for (size, rule, padded) in [
        ("19M", "at least 20 MiB", Some(20)),
        ("20971008", "whole number of MiB", Some(20)),
        ("22020608", "whole number of MiB", Some(22)),
        ("2041G", "at most 2,040 GiB", None),
    ] {
        folder.run(&format!("create x.vhdx {size} --overwrite")).expect(0);
        let run = folder.run("convert x.vhdx x.vhd --azure").expect(2).says(rule);
        assert_eq!(run.stderr.contains("--pad"), padded.is_some(), "{}", run.stderr);
        assert!(!folder.file("x.vhd").exists());
        let Some(padded) = padded else { continue };
        folder.run("convert x.vhdx x.vhd --azure --pad --verify").expect(0).says("zeros behind");
        let len = fs::metadata(folder.file("x.vhd")).unwrap().len();
        assert_eq!(len, padded * MIB + 512, "{size}");
        fs::remove_file(folder.file("x.vhd")).unwrap();
    }
    folder.run("create s.vhdx 20M --sector 4096").expect(0);
    folder.run("convert s.vhdx s.vhd --azure").expect(2).says("sectors of 512 bytes");
    folder.run("convert s.vhdx s.vhd").expect(2).says("sectors of 4096 bytes").says("--sector 512");
    folder.run("convert s.vhdx s.vhd --sector 512").expect(0).says("sector size changes");
    folder.run("convert a.vhdx b.vhd -O vhd --azure").expect(2).says("makes a vhd-fixed");
    folder.run("convert a.vhdx b.vhd --pad").expect(2).says("--azure");
    let formats = |name: &str| {
        let answer = folder.run(&format!("measure {name} --json")).expect(0).json();
        answer["copies"].as_array().unwrap().len()
    };
    assert_eq!((formats("a.vhdx"), formats("s.vhdx"), formats("x.vhdx")), (6, 4, 4));
}

#[test]
fn files_inside_vhd_images_are_listed_and_read() {
    let folder = Folder::new();
    folder.with_files("pc.vhdx");
    folder.run("convert pc.vhdx pc.vhd").expect(0);
    for verb in ["ls -R", "df"] {
        let (old, new) = (format!("{verb} pc.vhdx"), format!("{verb} pc.vhd"));
        if verb == "df" {
            folder.run(&new).expect(4);
            continue;
        }
        assert_eq!(folder.run(&old).expect(0).text(), folder.run(&new).expect(0).text());
    }
    let text = folder.run("cat pc.vhd notes.txt").expect(0).stdout;
    assert!(text == folder.run("cat pc.vhdx notes.txt").expect(0).stdout);
}

#[test]
fn images_of_other_formats_by_the_name_of_vhd_are_told_apart() {
    let folder = Folder::with_chain();
    fs::copy(folder.file("l0.vhdx"), folder.file("x.vhd")).unwrap();
    folder.run("read x.vhd").expect(7).says("this is a VHDX image").says("-f vhdx");
    assert!(folder.run("read x.vhd -f vhdx").expect(0).stdout == flats()[0]);
    folder.run("info x.vhd -f vhdx").expect(0).prints("Headers");
    fs::write(folder.file("y.vhd"), [1; 4096]).unwrap();
    folder.run("read y.vhd").expect(4).says("no footer of a VHD image");
    folder.run("info y.vhd").expect(4);
    fs::create_dir(folder.file("z.vhd")).unwrap();
    folder.run("read z.vhd").expect(7).says("a folder");
    // A VHD by another name is read where asked.
    folder.run("convert l0.vhdx a.vhd").expect(0);
    fs::rename(folder.file("a.vhd"), folder.file("old")).unwrap();
    folder.run("read old").expect(4).says("-f vhd");
    assert!(folder.run("read old -f vhd").expect(0).stdout == flats()[0]);
    // Damage.
    let mut image = Image::new(3, 4 * MIB, 512 << 10, 1);
    image.runs = vec![(9, vec![7; 512])];
    let mut file = image.build();
    file[512 + 32] = 0xFF;
    seal(&mut file);
    fs::write(folder.file("d.vhd"), &file).unwrap();
    folder.run("compare d.vhd a.vhd").expect(4).says("d.vhd: the size of the blocks");
}

#[test]
fn qemu_reads_what_is_made_at_its_exact_size() {
    let folder = Folder::with_chain();
    folder.run("convert l2.vhdx a.vhd").expect(0);
    let args = ["compare", "-f", "vpc", "-F", "raw", "a.vhd", "flat.raw"];
    fs::write(folder.file("flat.raw"), &flats()[2]).unwrap();
    let compared = Command::new("qemu-img").args(args).current_dir(folder.file(".")).output();
    match compared {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        Err(_) => assert!(std::env::var_os("AVHDX_INTEROP").is_none(), "no qemu-img here"),
    }
}

#[test]
fn formats_that_have_no_such_disk_are_left_out_of_a_measurement() {
    let folder = Folder::new();
    fs::write(folder.file("empty.raw"), "").unwrap();
    let answer = folder.run("measure empty.raw --json").expect(0).json();
    let copies = answer["copies"].as_array().unwrap();
    let formats: Vec<&str> = copies.iter().map(|copy| copy["format"].as_str().unwrap()).collect();
    assert_eq!(formats, ["raw", "vhdx", "vhdx-fixed"]);
    // One that is asked for is refused.
    folder.run("measure empty.raw -O vhd").expect(2).says("whole number of sectors");
}
