//! Whole file systems in chains of checkpoints: what `cp`, `ls` and `versions` show of each point in time is what other
//! readers have at that point.
//!
//! File systems are made, mounted and changed by their own tools, and each state is written to a chain by the program.
//! Needs root and loop devices. `AVHDX_LONG=1` takes 10,000 files for each file system instead of 300.
#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods)] // the tools work on files

mod changes;
mod disks;
mod fat;
mod hosted;
#[allow(dead_code)] // what the tests of the readers use
#[path = "../../../files/tests/images.rs"]
mod images;
#[allow(dead_code)]
#[path = "../../../files/tests/hostile/look.rs"]
mod look;
mod lying;
#[allow(dead_code)]
#[path = "../../../files/tests/hostile/mutate.rs"]
mod mutate;
mod ntfs;
mod program;
#[allow(dead_code)]
#[path = "../../../files/tests/hostile/disks.rs"]
mod sound;
mod truth;
mod windows;

use disks::{Kind, Made, Scheme};

/// Whether file systems can be mounted here. In the tests of CI, they can.
fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let has = |path| std::path::Path::new(path).exists();
    let can = is_root && has("/dev/loop-control") && has("/dev/fuse");
    if !can {
        eprintln!(
            "NOT TESTED: trees of file systems, which need root, /dev/loop-control and /dev/fuse"
        );
    }
    can
}

fn prove(scheme: Scheme, sector: u64, kinds: &[Kind]) {
    if !can_mount() {
        return;
    }
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let (count, looked) = if is_long { (10_000, 100) } else { (300, 8) };
    let mut made = Made::new(scheme, sector, kinds, count);
    for _ in 1..3 {
        made.checkpoint();
    }
    made.compare(looked);
}

#[test]
fn ntfs_ext4_and_fat32_on_a_gpt() {
    prove(Scheme::Gpt, 512, &[Kind::Ntfs { cluster: 4096 }, Kind::Ext("ext4", &[]), Kind::Fat(32)]);
}

#[test]
fn ntfs_fat16_ext2_and_ext3_on_an_mbr() {
    let old = &["-I", "128", "-b", "1024"];
    let kinds = [
        Kind::Fat(16),
        Kind::Ext("ext2", &["-b", "1024"]),
        Kind::Ntfs { cluster: 512 },
        Kind::Ext("ext3", old),
    ];
    prove(Scheme::Mbr, 512, &kinds);
}

#[test]
fn ntfs_fat16_and_ext4_on_a_gpt_of_4096() {
    prove(
        Scheme::Gpt,
        4096,
        &[Kind::Ntfs { cluster: 4096 }, Kind::Fat(16), Kind::Ext("ext4", &[])],
    );
}

#[test]
fn fat32_ext4_and_ntfs_on_an_mbr_of_4096() {
    let kinds = [
        Kind::Fat(32),
        Kind::Ext("ext4", &["-O", "^has_journal,large_dir,bigalloc"]),
        Kind::Ntfs { cluster: 65536 },
    ];
    prove(Scheme::Mbr, 4096, &kinds[..]);
}
