//! What is recognized by name and not read. The bytes are those of the published layouts.
#![allow(clippy::disallowed_methods)] // the tool works on files

use avhdx_files::{Content, ErrorKind, Volumes};

use crate::images::{self, MIB, disk, run};

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

/// ZFS and bcache leave alone what the beginning of their volume held before.
#[test]
fn what_lies_behind_an_old_boot_area_is_refused_by_its_name() {
    let bcache = b"\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81".as_slice();
    let cases = [
        ("ZFS", 128 << 10, b"\x0C\xB1\xBA\0\0\0\0\0".as_slice()),
        ("ZFS", 255 << 10, b"\0\0\0\0\0\xBA\xB1\x0C"),
        ("bcache", 4096 + 24, bcache),
    ];
    let old = [
        (Content::Empty, Some(vec![0; MIB as usize])),
        (Content::Unknown, Some(vec![7; MIB as usize])),
        (Content::Ntfs, images::ntfs().cloned()),
        (Content::Ext, images::ext("ext4", "1024")),
        (Content::Fat, images::fat("16")),
    ];
    let content = |bytes| Volumes::of(disk(bytes)).unwrap().iter().next().unwrap().content();
    for (kind, image) in old.into_iter().filter_map(|(kind, image)| Some((kind, image?))) {
        assert_eq!(content(image.clone()), kind);
        for (name, at, sign) in cases {
            let mut bytes = image.clone();
            bytes[at..at + sign.len()].copy_from_slice(sign);
            assert_eq!(content(bytes), Content::Refused(name), "{kind}, {at}");
        }
    }
    // Next to its places, and behind a table of partitions, it is nothing.
    let sign = cases[0].2;
    for at in [127 << 10, (128 << 10) + 512, 256 << 10] {
        let mut bytes = vec![0; MIB as usize];
        bytes[at..at + 8].copy_from_slice(sign);
        assert_eq!(content(bytes), Content::Empty, "{at}");
    }
    let Some(mut table) = images::table("label: dos\nstart=2048, size=24576\n") else { return };
    table[128 << 10..(128 << 10) + 8].copy_from_slice(sign);
    let volumes = Volumes::of(disk(table)).unwrap();
    assert_eq!(volumes.iter().next().unwrap().number(), Some(1));
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

/// What others make is refused by its name, where the tools for it are.
#[test]
fn what_its_own_tool_makes_is_refused_by_its_name() {
    let luks = |version| {
        [
            "luksFormat",
            "-q",
            "--type",
            version,
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
        ]
    };
    let cases: &[(&str, u64, &str, &[&str])] = &[
        ("exFAT", 16, "mkfs.exfat", &[]),
        ("XFS", 320, "mkfs.xfs", &["-q"]),
        ("btrfs", 128, "mkfs.btrfs", &["-q"]),
        ("LUKS", 32, "cryptsetup", &luks("luks1")),
        ("LUKS", 32, "cryptsetup", &luks("luks2")),
        ("LVM", 16, "pvcreate", &["-q", "-q", "-ff", "-y"]),
    ];
    for (name, mib, tool, args) in cases {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib * MIB).unwrap();
        let path = file.path().to_str().unwrap();
        // Volumes of LVM lie on devices alone.
        let line = match *tool {
            "pvcreate" => {
                "device=$(losetup -f --show \"$0\") && \"$@\" \"$device\"; code=$?; losetup -d \"$device\"; exit $code"
            }
            "cryptsetup" => "echo secret | \"$@\" \"$0\" -",
            _ => "\"$@\" \"$0\"",
        };
        let path_of_tools = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let mut command = std::process::Command::new("bash");
        command.args(["-c", line, path, tool]).args(*args).env("PATH", path_of_tools);
        let output = command.output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            eprintln!("NOT TESTED: {name} as {tool} makes it: {}", said.trim_end());
            continue;
        }
        // What tells the kind lies at the beginning.
        let mut bytes = std::fs::read(path).unwrap();
        bytes.truncate(MIB as usize);
        let volumes = Volumes::of(disk(bytes)).unwrap();
        let volume = volumes.select(None).unwrap();
        assert_eq!(volume.content(), Content::Refused(name));
        assert!(volume.open().unwrap_err().message().contains(name));
    }
}
