//! Files inside disks.

use std::fs;

use super::{Case, case};
use crate::common::{Folder, volume};

pub fn inside() -> Vec<Case> {
    let with_files: fn(&Folder) = |folder| folder.with_files("pc.vhdx");
    vec![
        case("files.volume-unknown", 2, with_files, "cat pc.vhdx -p 7 notes.txt"),
        case("files.volume-ambiguous", 2, two_volumes, "ls pc.vhdx").filled(&[("VOLUME", "1")]),
        case("files.not-found", 2, with_files, "cat pc.vhdx nothing.txt"),
        case("files.not-found", 2, raw, "cat pc.raw -f raw nothing.txt"),
        case("files.not-found", 2, two_volumes, "cat pc.vhdx -p 2 nothing.txt"),
        case("files.*", 2, with_files, "cat pc.vhdx logs"),
        case("files.*", 7, |folder| of_bytes(folder, vec![0; 1 << 20]), "ls pc.vhdx"),
        case("fat.*", 4, without_clusters, "cat pc.vhdx logs/today.txt"),
        case("ext.*", 4, |folder| of_bytes(folder, with(1080, b"\x53\xEF")), "ls pc.vhdx"),
        case("ntfs.*", 4, |folder| of_bytes(folder, with(3, b"NTFS    ")), "ls pc.vhdx"),
        case("versions.image", 2, with_files, "versions -f raw pc.vhdx notes.txt"),
        case("versions.none", 2, with_files, "versions pc.vhdx nothing.txt"),
        case("cp.folder", 2, with_files, "cp pc.vhdx logs out"),
        case("cp.not-folder", 2, with_files, "cp pc.vhdx notes.txt logs/today.txt out"),
        case("cp.not-folder", 2, with_a_file, "cp pc.vhdx notes.txt logs/today.txt out")
            .filled(&[("DIR", "folder")]),
        case("cp.special", 7, with_a_pipe, "cp a.vhdx pipe out"),
        case("cp.*", 7, with_a_file, "cp pc.vhdx notes.txt out").filled(&[("OUT", "made")]),
        case("cp.*", 3, with_files, "cp pc.vhdx logs/today.txt out")
            .under("trap '' XFSZ; ulimit -f 2; ")
            .filled(&[("OUT", "made")]),
        case("output.exists", 7, with_a_file, "cp pc.vhdx notes.txt --to-tar out"),
        case("cp.*", 3, with_files, "cp pc.vhdx notes.txt no/such/folder/x"),
        case("cp.*", 3, with_a_file, "cp pc.vhdx notes.txt out/x").filled(&[("OUT", "made")]),
    ]
}

/// Files in a disk, and a file beside it where a folder would do.
fn with_a_file(folder: &Folder) {
    folder.with_files("pc.vhdx");
    fs::write(folder.file("out"), "").unwrap();
}

/// A volume of ext4 with a pipe, where its tool is installed.
fn with_a_pipe(folder: &Folder) {
    let line = "mkdir tree && mkfifo tree/pipe && truncate -s 4M pc.raw && mkfs.ext4 -q -F -d tree pc.raw && \
                avhdx convert -q -f raw pc.raw a.vhdx";
    drop(folder.in_shell(line).output().unwrap());
}

/// A disk of these bytes as `pc.vhdx`.
fn of_bytes(folder: &Folder, bytes: Vec<u8>) {
    fs::write(folder.file("pc.raw"), bytes).unwrap();
    folder.run("convert -f raw pc.raw -O vhdx pc.vhdx").expect(0);
}

/// A volume with files, without a format around it.
fn raw(folder: &Folder) {
    fs::write(folder.file("pc.raw"), volume()).unwrap();
}

/// A disk of zeros with a few bytes in one place.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[at..at + bytes.len()].copy_from_slice(bytes);
    disk
}

/// A disk with two partitions of an MBR.
fn two_volumes(folder: &Folder) {
    let volume = volume();
    let mut disk = vec![0; (1 << 20) + 2 * volume.len()];
    for n in 0..2 {
        let start = (1 << 20) + n * volume.len();
        disk[start..start + volume.len()].copy_from_slice(&volume);
        let record = 446 + 16 * n;
        disk[record + 4] = 0x0C;
        disk[record + 8..record + 12].copy_from_slice(&((start / 512) as u32).to_le_bytes());
        disk[record + 12..record + 16]
            .copy_from_slice(&((volume.len() / 512) as u32).to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    of_bytes(folder, disk);
}

/// A FAT volume whose tables say that no cluster is in use.
fn without_clusters(folder: &Folder) {
    let mut volume = volume();
    let u16_at =
        |bytes: &[u8], at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (start, len) = (512 * u16_at(&volume, 14), 512 * u16_at(&volume, 22));
    volume[start + 4..start + len].fill(0);
    of_bytes(folder, volume);
}
