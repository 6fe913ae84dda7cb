//! What is recognized by name and not read. The bytes are those of the published layouts.
#![allow(clippy::disallowed_methods)] // the tool works on files

use avhdx_files::{Content, ErrorKind, Volumes};

use crate::images::{MIB, disk, run};

#[test]
fn each_kind_is_refused_by_its_name() {
    let cases: &[(&str, usize, &[u8])] = &[
        ("BitLocker", 3, b"-FVE-FS-"),
        ("exFAT", 3, b"EXFAT   "),
        ("ReFS", 3, b"ReFS\0\0\0\0"),
        ("LUKS", 0, b"LUKS\xBA\xBE"),
        ("LVM", 512, b"LABELONE"),
        ("XFS", 0, b"XFSB"),
        ("APFS", 32, b"NXSB"),
        ("btrfs", 0x1_0040, b"_BHRfS_M"),
        ("swap", 4086, b"SWAPSPACE2"),
        ("LDM", 0, b"PRIVHEAD"),
        ("Storage Spaces", 0, b"SPACEDB "),
        ("Linux RAID", 4096, b"\xFC\x4E\x2B\xA9"),
    ];
    for (name, at, sign) in cases {
        let mut bytes = vec![0; MIB as usize];
        bytes[*at..at + sign.len()].copy_from_slice(sign);
        let volumes = Volumes::of(disk(bytes)).unwrap();
        let volume = volumes.select(None).unwrap();
        assert_eq!(volume.content(), Content::Refused(name));
        let error = volume.open().unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, "files.volume-kind"));
        assert!(error.message().contains(name), "{error}");
        assert_eq!(error.volume(), Some("the disk"));
    }
}

#[test]
fn swap_of_its_own_tool_is_refused_and_zeros_are_told() {
    let volumes = Volumes::of(disk(vec![0; MIB as usize])).unwrap();
    assert_eq!(volumes.iter().next().unwrap().content(), Content::Empty);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("swap");
    std::fs::write(&path, vec![0; MIB as usize]).unwrap();
    let Some(()) = run("mkswap", &[&path]) else { return };
    let volumes = Volumes::of(disk(std::fs::read(&path).unwrap())).unwrap();
    assert_eq!(volumes.iter().next().unwrap().content(), Content::Refused("swap"));
}
