//! What only NTFS has.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::changes::Time;
use crate::program::tool;
use crate::truth::{What, hex};

/// What the driver shows in a way of its own, as it is.
pub type Shown = BTreeMap<Vec<u8>, What>;

/// Sets what NTFS keeps of a file.
fn set(path: &Path, what: &str, bytes: &[u8]) {
    let (what, value) = (format!("system.{what}"), format!("0x{}", hex(bytes)));
    let args = ["-n".as_ref(), what.as_ref(), "-v".as_ref(), value.as_ref(), path.as_os_str()];
    tool("setfattr", &args);
}

fn reparse(tag: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u16).to_le_bytes();
    [&tag.to_le_bytes()[..], &len, &[0; 2], data].concat()
}

/// The data of a link: the name for the kernel, then the one to show.
fn names(for_kernel: &str, to_show: &str, flags: Option<u32>) -> Vec<u8> {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let (first, second) = (utf16(for_kernel), utf16(to_show));
    let (one, two) = (first.len() as u16, second.len() as u16);
    let head = [0, one, one + 2, two].into_iter().flat_map(u16::to_le_bytes);
    let flags = flags.into_iter().flat_map(u32::to_le_bytes);
    let names = [&first[..], &[0; 2], &second, &[0; 2]].concat();
    head.chain(flags).chain(names).collect()
}

/// When a file was changed, as its attribute has it: the driver rounds what was before 1970.
pub fn modified(at: &Path, path: &[u8]) -> Time {
    let mut times = [0; 32];
    let path = at.join(OsStr::from_bytes(path));
    let len = rustix::fs::lgetxattr(path, "system.ntfs_times", &mut times[..]).unwrap();
    assert_eq!(len, times.len());
    // Those of creation and of modification lead, in units of 100 ns since 1601.
    let units = i64::from_le_bytes(times[8..16].try_into().unwrap()) - 116_444_736_000_000_000;
    (units.div_euclid(10_000_000), units.rem_euclid(10_000_000) as u32 * 100)
}

/// Makes files of every kind; returns those that are shown otherwise than the driver does.
pub fn oddities(at: &Path, can_compress: bool) -> Shown {
    for name in [
        "ends with a space ",
        "ends with a dot.",
        "CON",
        "aux.txt",
        "que?st*on",
        "quo\"te",
        "Same",
        "same",
        "😀",
    ] {
        std::fs::write(at.join(name), name).unwrap();
    }
    // No host takes a name of so many bytes.
    std::fs::write(at.join("€".repeat(200)), "long").unwrap();
    std::fs::write(at.join("has streams"), "contents").unwrap();
    std::fs::write(at.join("has streams:Zone.Identifier"), "[ZoneTransfer]\r\nZoneId=3\r\n")
        .unwrap();
    std::fs::write(at.join("has streams:large"), vec![3; 70_000]).unwrap();
    std::fs::create_dir(at.join("folder with a stream")).unwrap();
    std::fs::write(at.join("folder with a stream:one"), "of a folder").unwrap();
    // So many names that its record has no room for them.
    std::fs::write(at.join("one of many"), "one").unwrap();
    for number in 0..100 {
        std::fs::hard_link(at.join("one of many"), at.join(format!("one of many {number}")))
            .unwrap();
    }
    // Resident, up to as long as they can be.
    for len in [0, 1, 500, 600, 700, 720, 800] {
        std::fs::write(at.join(format!("resident {len}")), vec![b'r'; len]).unwrap();
    }
    let holed = File::create(at.join("sparse")).unwrap();
    for at in [0u64, 1_000_003, 30_000_000] {
        holed.write_all_at(&[b's'; 5000], at).unwrap();
    }
    holed.set_len(40_000_000).unwrap();
    let short = File::create(at.join("short initialized")).unwrap();
    short.write_all_at(&[b'i'; 9000], 0).unwrap();
    short.set_len(300_000).unwrap();
    if can_compress {
        std::fs::create_dir(at.join("squeezed")).unwrap();
        set(&at.join("squeezed"), "ntfs_attrib_be", &[0, 0, 0x08, 0x10]);
        for (number, len) in [100, 4096, 65_536, 65_537, 200_000, 1_000_000].into_iter().enumerate()
        {
            let text = (0..len).map(|at: usize| (at / (3 + number) % 97) as u8).collect::<Vec<_>>();
            std::fs::write(at.join(format!("squeezed/{number}")), text).unwrap();
        }
        let holed = File::create(at.join("squeezed/holed")).unwrap();
        holed.write_all_at(&[b'h'; 70_000], 500_000).unwrap();
    }
    // As the driver makes them, those of Linux.
    tool("mkfifo", &[at.join("fifo")]);
    drop(std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap());
    tool("mknod", &[at.join("null").as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()]);
    points(at)
}

/// Reparse points of each kind.
fn points(at: &Path) -> Shown {
    let mut shown = Shown::new();
    let unknown = [&0x1234_u32.to_le_bytes()[..], &[7; 20]].concat();
    let link = |target: &str| What::Link(target.into());
    let absolute = names(r"\??\C:\Users\all", r"C:\Users\all", Some(0));
    let relative = names(r"..\has streams", r"..\has streams", Some(1));
    let linux = [&2_u32.to_le_bytes()[..], b"/usr/bin/env"].concat();
    for (name, tag, data, what) in [
        ("symlink", 0xA000_000C, absolute, Some(link(r"C:\Users\all"))),
        ("relative symlink", 0xA000_000C, relative, Some(link(r"..\has streams"))),
        ("link of Linux", 0xA000_001D, linux, Some(link("/usr/bin/env"))),
        ("wof", 0x8000_0017, vec![1; 16], Some(What::Refused("files.wof"))),
        ("dedup", 0x8000_0013, vec![1; 16], Some(What::Refused("files.dedup"))),
        ("hsm", 0xC000_0004, vec![1; 16], Some(What::Refused("files.offline"))),
        ("hsm of old", 0x8000_0006, vec![1; 16], Some(What::Refused("files.offline"))),
        ("unknown", 0x9000_0055, unknown, Some(What::Refused("files.reparse"))),
        ("app", 0x8000_001B, vec![3; 16], Some(What::Special("app execution link"))),
        ("cloud", 0x9000_301A, vec![4; 16], Some(What::File { size: 7, sha256: CONTENTS.into() })),
    ] {
        let path = at.join(name);
        std::fs::write(&path, "content").unwrap();
        set(&path, "ntfs_reparse_data", &reparse(tag, &data));
        shown.extend(what.map(|what| (name.into(), what)));
    }
    for (name, target) in [("junction", r"C:\Data"), ("mount point", r"\\?\Volume{1}\")] {
        std::fs::create_dir(at.join(name)).unwrap();
        let data = names(&format!(r"\??\{target}"), target, None);
        set(&at.join(name), "ntfs_reparse_data", &reparse(0xA000_0003, &data));
        shown.insert(name.into(), link(target));
    }
    shown
}

/// The SHA-256 of `content`.
const CONTENTS: &str = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";

/// Changes what has streams, holes and compressed bytes.
pub fn change(at: &Path, round: u64, can_compress: bool) {
    std::fs::write(at.join("has streams:large"), vec![round as u8; 1000 * round as usize]).unwrap();
    std::fs::write(at.join(format!("has streams:new {round}")), "new").unwrap();
    let open = |name: &str| OpenOptions::new().write(true).open(at.join(name)).unwrap();
    open("sparse").write_all_at(&[round as u8; 9000], 20_000_000 + 100_000 * round).unwrap();
    open("short initialized").write_all_at(&[round as u8; 100], 100_000 * round).unwrap();
    std::fs::write(at.join("resident 700"), vec![round as u8; 5000]).unwrap();
    if can_compress {
        open("squeezed/4").write_all_at(&[round as u8; 3000], 70_000 * round).unwrap();
        open("squeezed/5").set_len(1_000_000 - 300_000 * round).unwrap();
        std::fs::write(at.join(format!("squeezed/new {round}")), b"squeeze".repeat(9000)).unwrap();
    }
}

/// The streams there are after so many rounds, as their file and their name, with their sizes.
pub fn streams(round: u64) -> Vec<(&'static str, String, u64)> {
    let large = if round == 0 { 70_000 } else { 1000 * round };
    let mut streams = vec![
        ("folder with a stream", "one".into(), 11),
        ("has streams", "Zone.Identifier".into(), 26),
        ("has streams", "large".into(), large),
    ];
    streams.extend((1..=round).map(|round| ("has streams", format!("new {round}"), 3)));
    streams
}
