//! `avhdx resize --to-fit` and `--fix-gpt`, with the tables of other programs.

use std::fs;
use std::process::Command;

use crate::common::{Folder, Run};

const MIB: usize = 1 << 20;

/// What `sgdisk` prints; `None` where it is not installed.
fn sgdisk(folder: &Folder, line: &str) -> Option<String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sgdisk");
    command.args(line.split(' ')).env("PATH", path).current_dir(folder.path());
    let run = command.output().ok()?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "sgdisk {line}: {text}");
    Some(text)
}

/// A disk of 64 MiB with two partitions as an image.
fn with_gpt() -> Option<Folder> {
    let folder = Folder::new();
    fs::write(folder.file("disk.raw"), vec![0; 64 * MIB]).unwrap();
    let line = "-a 1 -n 1:100:+8M -c 1:one -n 2:40000:50000 -t 2:8300 disk.raw";
    if sgdisk(&folder, line).is_none() {
        let wanted = std::env::var_os("AVHDX_INTEROP").is_some();
        assert!(!wanted, "AVHDX_INTEROP, but sgdisk is not to be found");
        eprintln!("skipped: sgdisk is not to be found");
        return None;
    }
    folder.run("convert -f raw disk.raw disk.vhdx").expect(0);
    Some(folder)
}

/// The table as `sgdisk` sees it in the image: no problem, and what it says of both partitions.
fn verified(folder: &Folder) -> [String; 2] {
    folder.run("convert disk.vhdx -O raw now.raw --overwrite -q").expect(0);
    let said = sgdisk(folder, "-v now.raw").unwrap();
    assert!(said.contains("No problems found"), "{said}");
    [1, 2].map(|n| sgdisk(folder, &format!("-i {n} now.raw")).unwrap())
}

#[test]
fn a_gpt_follows_the_end_of_the_disk() {
    let Some(folder) = with_gpt() else { return };
    let partitions = verified(&folder);
    for size in ["96M", "+512", "-9K", "3T", "--to-fit", "+33K", "64M"] {
        let run = folder.run(&format!("resize disk.vhdx {size} --fix-gpt --json")).expect(0);
        let answer = run.json();
        assert_eq!(answer["gpt_moved"], true, "{size}");
        if size == "--to-fit" {
            // The last partition ends with sector 50000; behind it lie 32 sectors of entries and the header.
            assert_eq!(answer["virtual_size"], (50001 + 33) * 512);
        }
        if size == "3T" {
            continue;
        }
        assert_eq!(verified(&folder), partitions, "{size}");
    }
    // Without the flag. A refusal comes without a note on what will not be.
    let before = folder.read("disk.vhdx");
    for line in ["resize disk.vhdx 65T", "resize disk.vhdx 65T --dry-run"] {
        let run = folder.run(line).expect(2);
        assert!(run.stderr.starts_with("avhdx: disk.vhdx: invalid disk size"), "{}", run.stderr);
        assert!(!run.stderr.contains("second copy of the GPT"), "{}", run.stderr);
    }
    let run = folder.run("resize disk.vhdx 48M").expect(7).says("has a GPT");
    assert!(run.next().iter().any(|next| next.contains("--fix-gpt")), "{:?}", run.next());
    folder.run("resize disk.vhdx 20M --fix-gpt").expect(7).says("partition 2 would be cut");
    folder.run("resize disk.vhdx --to-fit").expect(7).says("has a GPT");
    let run = folder.run("resize disk.vhdx --to-fit --fix-gpt --dry-run --json").expect(0);
    assert_eq!(run.json()["resize"]["virtual_size"], (50001 + 33) * 512);
    assert!(folder.read("disk.vhdx") == before);
    folder.run("resize disk.vhdx +1M").expect(0).says("--fix-gpt");
    folder.run("convert disk.vhdx -O raw now.raw --overwrite -q").expect(0);
    let said = sgdisk(&folder, "-v now.raw").unwrap();
    assert!(!said.contains("No problems found"), "{said}");
    // And it is put right later, with the size as it is and to the sector.
    for (size, moves) in [("65M", true), ("65M", false), ("+512", true)] {
        let run = folder.run(&format!("resize disk.vhdx {size} --fix-gpt --json")).expect(0);
        assert_eq!(run.json()["gpt_moved"], moves, "{size}");
        assert_eq!(verified(&folder), partitions, "{size}");
    }
    // Where the second copy would go, nothing but zeros is replaced.
    folder.run_with("write disk.vhdx --offset 25605120", b"x").expect(0);
    let before = folder.read("disk.vhdx");
    let run = folder.run("resize disk.vhdx --to-fit --fix-gpt").expect(7);
    run.says("would replace a byte other than zero at 25605120");
    assert!(folder.read("disk.vhdx") == before);
    folder.run("zero disk.vhdx --offset 25605120 --length 1").expect(0);
    // Data behind the partitions is not cut off silently, and the table is not moved for it.
    folder.run_with("write disk.vhdx --offset 30M", b"data").expect(0);
    let before = folder.read("disk.vhdx");
    folder.run("resize disk.vhdx --to-fit --fix-gpt").expect(7).says("--shrink");
    assert!(folder.read("disk.vhdx") == before);
    folder.run("resize disk.vhdx --to-fit --fix-gpt --shrink").expect(0);
    assert_eq!(verified(&folder), partitions);
}

#[test]
fn a_gpt_that_is_not_sound_stays_as_it_is() {
    let Some(folder) = with_gpt() else { return };
    let disk = fs::read(folder.file("disk.raw")).unwrap();
    let end = disk.len();
    for (at, bytes, says) in [
        (512 + 80, &u32::MAX.to_le_bytes()[..], "found"),
        (512 + 56, &[0xA5; 16], "the first, in sector 1, is damaged"),
        (
            end - 512 + 56,
            &[0xA5; 16],
            "the first, in sector 1, is whole; the second, in sector 131071",
        ),
        (1024, &[1], "the first, in sector 1, is damaged"),
        (466, &[7], "0xEE, 0x07"),
    ] {
        let says =
            if says == "found" { "a number of entries of 4294967295, expected" } else { says };
        let mut broken = disk.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(folder.file("broken.raw"), &broken).unwrap();
        folder.run("convert -f raw broken.raw disk.vhdx --overwrite").expect(0);
        let before = folder.read("disk.vhdx");
        folder.run("resize disk.vhdx +1M --fix-gpt").expect(7).says(says);
        folder.run("resize disk.vhdx --to-fit --fix-gpt").expect(7).says(says);
        assert!(folder.read("disk.vhdx") == before, "{says}");
    }
}

/// Partitions of an MBR, logical ones too, and disks without a table.
#[test]
fn a_disk_fits_what_is_on_it() {
    let folder = Folder::new();
    let entry = |disk: &mut [u8], n: usize, kind: u8, start: u32, count: u32| {
        let at = 446 + 16 * n;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    };
    let fits = |disk: &[u8], size: usize| {
        fs::write(folder.file("disk.raw"), disk).unwrap();
        folder.run("convert -f raw disk.raw disk.vhdx --overwrite").expect(0);
        let run = folder.run("resize disk.vhdx --to-fit --json").expect(0);
        assert_eq!(run.json()["virtual_size"], size);
        let read = folder.run("read disk.vhdx").expect(0).stdout;
        assert!(read == disk[..size]);
    };
    let mut disk = vec![0; 16 * MIB];
    disk[3 * MIB + 5] = 1;
    fits(&disk, 3 * MIB + 512);
    entry(&mut disk, 0, 7, 100, 3 * 2048);
    entry(&mut disk, 2, 0x83, 7000, 1);
    fits(&disk, 7001 * 512);
    // A list of two logical partitions; the last one leaves the container.
    entry(&mut disk, 3, 0x0F, 8000, 3000);
    fits(&disk, 11000 * 512);
    let of = |sector: usize| sector * 512..(sector + 1) * 512;
    entry(&mut disk[of(8000)], 0, 0x83, 63, 500);
    entry(&mut disk[of(8000)], 1, 0x05, 1000, 2500);
    entry(&mut disk[of(9000)], 0, 0x83, 63, 2400);
    fits(&disk, (9000 + 63 + 2400) * 512);
    let refused = |disk: &[u8], code: i32, says: &str| {
        fs::write(folder.file("disk.raw"), disk).unwrap();
        folder.run("convert -f raw disk.raw disk.vhdx --overwrite").expect(0);
        folder.run("resize disk.vhdx --to-fit").expect(code).says(says);
    };
    // A list that leads back to its start, and a partition that the disk does not have.
    let mut endless = disk.clone();
    entry(&mut endless[of(9000)], 1, 0x05, 0, 2500);
    refused(&endless, 7, "does not end");
    let mut outside = disk.clone();
    entry(&mut outside, 1, 7, 20_000, 20_000);
    refused(&outside, 7, "40000");
    refused(&vec![0; MIB], 2, "all zeros");
    // Entries without sectors are empty, whatever else is in them.
    let mut hollow = vec![0; 16 * MIB];
    entry(&mut hollow, 0, 7, 0, 0);
    entry(&mut hollow, 1, 0x0F, 9000, 0);
    hollow[2 * MIB] = 1;
    fits(&hollow, 2 * MIB + 512);
    entry(&mut hollow, 2, 0x83, 100, 4096);
    fits(&hollow, 4196 * 512);
}

/// A disk without a GPT is told so, and has the new size all the same.
#[test]
fn a_table_to_move_that_is_not_there_is_told() {
    let folder = Folder::new();
    folder.run("create a.vhdx 4M").expect(0);
    let says = "has no GPT: --fix-gpt has nothing to move";
    folder.run("resize a.vhdx 7M --fix-gpt --dry-run").expect(0).says(says);
    let run = folder.run("resize a.vhdx 7M --fix-gpt --json").expect(0).says(says);
    assert_eq!(run.json()["gpt_moved"], false);
    assert!(!folder.run("resize a.vhdx 8M").expect(0).stderr.contains("GPT"));
}

/// The disk has its new size then, and the command that is printed does the rest.
#[cfg(unix)]
#[test]
fn a_copy_that_could_not_be_moved_leads_to_the_command_that_moves_it() {
    let Some(folder) = with_gpt() else { return };
    let partitions = verified(&folder);
    // The file may not grow by the block that the copy needs.
    let line = "trap '' XFSZ; ulimit -f $(($(stat -c %s disk.vhdx) / 1024)); \
                avhdx resize disk.vhdx +32M --fix-gpt";
    let run = Run::of(folder.in_shell(line).output().unwrap()).expect(3);
    let run = run.says("the disk has 100663296 bytes now");
    let next = run.next();
    assert_eq!(next, ["avhdx resize disk.vhdx 100663296 --fix-gpt  # moves the copy"]);
    let words = next[0].strip_prefix("avhdx ").unwrap().split("  # ").next().unwrap();
    folder.run(words).expect(0);
    assert_eq!(verified(&folder), partitions);
}

/// What helps with a table that is not sound: another tool, or to leave it as it is.
#[test]
fn a_table_that_is_not_sound_leads_to_what_helps() {
    let Some(folder) = with_gpt() else { return };
    let mut disk = fs::read(folder.file("disk.raw")).unwrap();
    disk[512 + 56] ^= 1;
    fs::write(folder.file("broken.raw"), &disk).unwrap();
    folder.run("convert -f raw broken.raw disk.vhdx --overwrite").expect(0);
    let next = folder.run("resize disk.vhdx 96M --fix-gpt").expect(7).next();
    assert!(next[0].starts_with("avhdx convert -O raw disk.vhdx OUT"), "{next:?}");
    assert!(next[0].contains("sgdisk -v OUT"), "{next:?}");
    let without = "avhdx resize disk.vhdx 100663296  # leaves the GPT as it is";
    assert_eq!(next.last().unwrap(), without);
    let next = folder.run("resize disk.vhdx 32M --fix-gpt").expect(7).next();
    assert!(!next.iter().any(|next| next.contains("leaves the GPT")), "{next:?}");
    // A partition in the way leads to the smallest size.
    folder.run("convert -f raw disk.raw disk.vhdx --overwrite").expect(0);
    let next = folder.run("resize disk.vhdx 20M --fix-gpt").expect(7).next();
    assert!(next[0].starts_with("avhdx resize disk.vhdx --to-fit --fix-gpt --dry-run"), "{next:?}");
}
