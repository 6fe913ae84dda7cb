//! `avhdx resize`: sizes as typed, what is refused, and what other programs see.

use std::fs;
use std::process::Command;

use avhdx_testkit::build::{Block, Data, Image, write_chain};
use avhdx_testkit::naive;

use crate::common::{Folder, chain, flats, mark};

const MIB: u64 = 1 << 20;

/// The disk of the chain's tip, by the naive reader.
fn flat(folder: &Folder) -> Vec<u8> {
    let files = ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.read(name));
    naive::Chain::from_bytes(files).unwrap().flat(2).unwrap()
}

#[test]
fn sizes_are_given_whole_or_as_a_difference() {
    let folder = Folder::with_chain();
    let mut expected = flats()[2].clone();
    for (typed, size) in [("8M", 8 * MIB), ("+1M", 9 * MIB), ("-2M", 7 * MIB), ("7340032", 7 * MIB)]
    {
        let run = folder.run(&format!("resize l2.vhdx {typed} --json")).expect(0);
        let answer = run.json();
        assert_eq!(answer["virtual_size"], size, "{typed}");
        assert_eq!(answer["virtual_size_before"], expected.len(), "{typed}");
        assert_eq!(answer["file_size"], folder.read("l2.vhdx").len(), "{typed}");
        expected.resize(size as usize, 0);
        assert!(flat(&folder) == expected, "{typed}");
        folder.run("check l2.vhdx").expect(0);
    }
    folder.run("resize l2.vhdx@-0 +512").expect(0);
    let run = folder.run("resize l2.vhdx 7M").expect(0);
    assert_eq!(
        run.text(),
        "l2.vhdx: the disk has 7340032 bytes (7 MiB), 7340544 bytes (7.0 MiB) before\n"
    );
    for line in ["resize l2.vhdx +0", "resize l2.vhdx -x", "resize l2.vhdx", "resize l2.vhdx 0"] {
        assert_eq!(folder.run(line).code, Some(2), "{line}");
    }
    // What is cut off, and what the dry run says of it.
    let before = folder.read("l2.vhdx");
    let run = folder.run("resize l2.vhdx 3M --json --dry-run").expect(7);
    let forecast = run.json();
    let first = (3 * MIB as usize..).find(|at| expected[*at] != 0).unwrap();
    assert_eq!(forecast["resize"]["first_cut"], first);
    assert_eq!((&forecast["cut"], &forecast["cut_data"]), (&(4 * MIB).into(), &MIB.into()));
    let run = folder.run("resize l2.vhdx 3M").expect(7);
    run.says(&format!("other than zero at {first} of the disk")).says("--shrink");
    assert!(folder.read("l2.vhdx") == before);
    folder.run("resize l2.vhdx 3M --shrink").expect(0);
    expected.truncate(3 * MIB as usize);
    assert!(flat(&folder) == expected);
}

/// Each refusal leaves every file as it is.
#[test]
fn what_cannot_be_resized_stays_as_it_is() {
    let folder = Folder::with_chain();
    let of_chain = |line: &str, code: i32, says: &str| {
        let before = ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.read(name));
        folder.run(line).expect(code).says(says);
        let after = ["l0.vhdx", "l1.vhdx", "l2.vhdx"].map(|name| folder.read(name));
        assert!(before == after, "{line}");
    };
    of_chain("resize l1.vhdx 8M", 7, "l2.vhdx");
    of_chain("resize l2.vhdx@-1 8M", 7, "below the tip");
    of_chain("resize l2.vhdx 1000", 2, "multiple of 512");
    of_chain("resize l2.vhdx 65T", 2, "64 TiB");
    of_chain("resize l2.vhdx -6M", 2, "6 MiB");
    // In use, and with a missing parent.
    let held = fs::File::options().read(true).write(true).open(folder.file("l2.vhdx")).unwrap();
    held.try_lock().unwrap();
    of_chain("resize l2.vhdx 8M", 6, "in use");
    held.unlock().unwrap();
    fs::rename(folder.file("l0.vhdx"), folder.file("elsewhere")).unwrap();
    folder.run("resize l2.vhdx 8M").expect(5).says("l0.vhdx");
    fs::rename(folder.file("elsewhere"), folder.file("l0.vhdx")).unwrap();
    // A file that lost bytes.
    let whole = folder.read("l2.vhdx");
    fs::write(folder.file("l2.vhdx"), &whole[..whole.len() - MIB as usize / 2]).unwrap();
    of_chain("resize l2.vhdx 8M", 4, "lost");
    // A merge that is to be resumed.
    let mut images = chain();
    let base = images[0].data_write_guid();
    mark(&mut images[1], 1, base, "l0.vhdx");
    let folder = Folder::new();
    write_chain(folder.path(), &images[..2]);
    folder.run("resize l1.vhdx 8M").expect(7).says("merge --resume");
}

#[test]
fn a_pending_log_is_replayed_before() {
    let folder = Folder::new();
    let before = Image::dynamic(4 * MIB);
    let mut after = before.clone();
    after.put(3, Block::full(Data::Pattern(6)));
    Image::dirty(&before, &after, uuid::Uuid::from_u128(8), 10).write_to(folder.file("a.vhdx"));
    let file = folder.read("a.vhdx");
    folder.run("resize a.vhdx 3M").expect(7).says("--shrink");
    folder.run("resize a.vhdx 9M --dry-run").expect(0);
    assert!(folder.read("a.vhdx") == file);
    folder.run("resize a.vhdx 9M").expect(0);
    let disk = naive::Chain::from_bytes([folder.read("a.vhdx")]).unwrap().flat(0).unwrap();
    let mut expected = after.flat(None);
    expected.resize(9 * MIB as usize, 0);
    assert!(disk == expected);
}

#[test]
fn qemu_reads_what_was_resized() {
    let qemu = |folder: &Folder, args: &[&str]| {
        let run = Command::new("qemu-img").args(args).current_dir(folder.path()).output();
        let Ok(run) = run else {
            let wanted = std::env::var_os("AVHDX_INTEROP").is_some();
            assert!(!wanted, "qemu-img is not to be found");
            return;
        };
        assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stdout));
    };
    for kind in ["", "--fixed"] {
        let folder = Folder::new();
        folder.run(&format!("create a.vhdx 5M --block 1M {kind}")).expect(0);
        let mut disk = vec![0; 5 * MIB as usize];
        avhdx_testkit::rng::pattern(1, 0, &mut disk[MIB as usize..4 * MIB as usize + 900]);
        folder.run_with("write a.vhdx --offset 0", &disk).expect(0);
        for size in ["13M", "4719104", "200G", "2097664", "6M"] {
            if size == "200G" && kind == "--fixed" {
                continue;
            }
            let run = folder.run(&format!("resize a.vhdx {size} --shrink --json")).expect(0);
            disk.resize(run.json()["virtual_size"].as_u64().unwrap().min(16 * MIB) as usize, 0);
            qemu(&folder, &["check", "-q", "-f", "vhdx", "a.vhdx"]);
            if size != "200G" {
                fs::write(folder.file("flat.raw"), &disk).unwrap();
                qemu(&folder, &["compare", "-q", "-f", "vhdx", "-F", "raw", "a.vhdx", "flat.raw"]);
            }
        }
    }
}
