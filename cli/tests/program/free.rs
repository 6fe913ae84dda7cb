//! `avhdx compact --free`, with file systems that other programs make, fill, empty and read.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use avhdx_testkit::rng::pattern;
use serde_json::Value;

use crate::common::{Folder, volume};

const MIB: usize = 1 << 20;
/// Where the first volume lies in the disk, and one that is not read.
const FIRST: std::ops::Range<usize> = MIB..65 * MIB;
const SECOND: std::ops::Range<usize> = 66 * MIB..70 * MIB;
const DISK: usize = 72 * MIB;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ext4,
    Ntfs,
    Fat32,
}

/// Runs a tool of the administrator; `None` if it is missing where that is allowed.
fn tool(folder: &Folder, line: &str) -> Option<String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).env("PATH", path).current_dir(folder.path()).stdin(Stdio::null());
    let Ok(run) = command.output() else {
        let wanted = std::env::var_os("AVHDX_INTEROP").is_some_and(|value| value == "1");
        assert!(!wanted, "AVHDX_INTEROP=1, but this cannot be run: {line}");
        return None;
    };
    let text =
        format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{line}: {text}");
    Some(text)
}

/// A volume that is mounted on `m` until this is dropped.
struct Mounted<'f> {
    folder: &'f Folder,
    driver: Option<Child>,
}

impl<'f> Mounted<'f> {
    /// `None` where nothing can be mounted.
    fn new(folder: &'f Folder, kind: Kind, image: &str, options: &str) -> Option<Self> {
        let at = folder.file("m");
        fs::create_dir_all(&at).unwrap();
        let needed = if kind == Kind::Ext4 { "/dev/loop-control" } else { "/dev/fuse" };
        let is_possible = fs::File::options().read(true).write(true).open(needed).is_ok();
        if !is_possible {
            eprintln!("NOT TESTED: nothing can be mounted without {needed}");
            return None;
        }
        if kind == Kind::Ext4 {
            // The kernel takes a moment to let go of a file that was mounted before.
            let line = format!("mount -o loop,{options} {image} m 2>/dev/null");
            let start = Instant::now();
            while !folder.in_shell(&line).status().unwrap().success() {
                assert!(start.elapsed() < Duration::from_secs(20), "{line}");
                std::thread::sleep(Duration::from_millis(20));
            }
            return Some(Self { folder, driver: None });
        }
        let mut command = Command::new("ntfs-3g");
        command.args(["-o", &format!("no_detach,{options}"), image, "m"]);
        command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = command.spawn().ok()?;
        let start = Instant::now();
        while !fs::read_to_string("/proc/mounts").unwrap().contains(at.to_str().unwrap()) {
            assert!(start.elapsed() < Duration::from_secs(20), "ntfs-3g does not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { folder, driver: Some(driver) })
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // A program that is being started elsewhere has files open for a moment that this one had.
        let start = Instant::now();
        let unmount = || self.folder.in_shell("umount m 2>/dev/null").status().unwrap().success();
        while !unmount() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(driver) = &mut self.driver {
            let _ = driver.wait();
        }
    }
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(seed, 0, &mut bytes);
    bytes
}

fn make(folder: &Folder, kind: Kind, image: &str, len: usize) -> Option<()> {
    fs::File::create(folder.file(image)).unwrap().set_len(len as u64).unwrap();
    let line = match kind {
        Kind::Ext4 => format!("mkfs.ext4 -q -F {image}"),
        Kind::Ntfs => format!("mkntfs -q -F -f -p 2048 -H 16 -S 63 -s 512 {image}"),
        Kind::Fat32 => format!("mkfs.vfat -F 32 -s 1 {image}"),
    };
    tool(folder, &line).map(drop)
}

/// Writes files and removes others.
fn change(
    folder: &Folder,
    kind: Kind,
    image: &str,
    written: &BTreeMap<String, Vec<u8>>,
    removed: &[String],
) -> Option<()> {
    if kind == Kind::Fat32 {
        for name in removed {
            tool(folder, &format!("mdel -i {image} ::{name}"))?;
        }
        for (name, bytes) in written {
            fs::write(folder.file(name), bytes).unwrap();
            tool(folder, &format!("mcopy -o -i {image} {name} ::{name}"))?;
            fs::remove_file(folder.file(name)).unwrap();
        }
        return Some(());
    }
    let mounted = Mounted::new(folder, kind, image, "rw")?;
    let at = folder.file("m");
    removed.iter().for_each(|name| fs::remove_file(at.join(name)).unwrap());
    written.iter().for_each(|(name, bytes)| fs::write(at.join(name), bytes).unwrap());
    drop(mounted);
    Some(())
}

/// All files, as the kernel, the driver or the tools read them; the file system has to be sound.
fn files(folder: &Folder, kind: Kind, image: &str) -> Option<BTreeMap<String, Vec<u8>>> {
    match kind {
        Kind::Ext4 => tool(folder, &format!("e2fsck -fn {image}"))?,
        Kind::Ntfs => tool(folder, &format!("ntfsfix -n {image}"))?,
        Kind::Fat32 => tool(folder, &format!("fsck.vfat -n {image}"))?,
    };
    let of = |at: PathBuf| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.filter(|path| path.is_file());
        files
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read(path).unwrap())
            })
            .collect()
    };
    if kind == Kind::Fat32 {
        fs::create_dir_all(folder.file("out")).unwrap();
        tool(folder, &format!("mcopy -n -i {image} ::* out"))?;
        let found = of(folder.file("out"));
        fs::remove_dir_all(folder.file("out")).unwrap();
        return Some(found);
    }
    let mounted = Mounted::new(folder, kind, image, "ro")?;
    let found = of(folder.file("m"));
    drop(mounted);
    Some(found)
}

/// A disk with a partition table, this volume, and one that is not read.
fn disk_of(folder: &Folder, scheme: &str, first: &str) -> Option<Vec<u8>> {
    fs::File::create(folder.file("disk.raw")).unwrap().set_len(DISK as u64).unwrap();
    let script = format!(
        "label: {scheme}\nstart={}, size={}\nstart={}, size={}\n",
        FIRST.start / 512,
        FIRST.len() / 512,
        SECOND.start / 512,
        SECOND.len() / 512
    );
    fs::write(folder.file("script"), script).unwrap();
    let run = folder.in_shell("PATH=$PATH:/usr/sbin:/sbin sfdisk -q disk.raw < script").output();
    assert!(run.unwrap().status.success());
    let mut disk = fs::read(folder.file("disk.raw")).unwrap();
    disk[FIRST].copy_from_slice(&fs::read(folder.file(first)).unwrap());
    disk[SECOND].copy_from_slice(&bytes(99, SECOND.len()));
    disk[SECOND.start..][..6].copy_from_slice(b"LUKS\xBA\xBE");
    // Between the volumes, something may lie that no table tells.
    disk[FIRST.end + 4096..SECOND.start].fill(0x5A);
    Some(disk)
}

/// Writes to the image what differs.
fn write(folder: &Folder, image: &str, before: &[u8], now: &[u8]) {
    for (n, (old, new)) in before.chunks(MIB).zip(now.chunks(MIB)).enumerate() {
        if old != new {
            folder.run_with(&format!("write {image} --offset {}M", n), new).expect(0);
        }
    }
}

#[test]
fn every_file_stays_at_every_point_and_the_file_gets_as_short_as_foreseen() {
    for (kind, scheme) in [(Kind::Ext4, "gpt"), (Kind::Ntfs, "dos"), (Kind::Fat32, "gpt")] {
        let folder = Folder::new();
        if go_through(&folder, kind, scheme).is_none() {
            eprintln!("NOT TESTED: {kind:?}");
        }
    }
}

fn go_through(folder: &Folder, kind: Kind, scheme: &str) -> Option<()> {
    make(folder, kind, "part", FIRST.len())?;
    let some = |letter: &str, count: u64, len: usize| -> BTreeMap<String, Vec<u8>> {
        let seed = u64::from(letter.as_bytes()[0]) * 1000;
        (0..count).map(|n| (format!("{letter}{n}"), bytes(seed + n, len + n as usize))).collect()
    };
    let names = |letter: &str, numbers: &mut dyn Iterator<Item = u64>| -> Vec<String> {
        numbers.map(|n| format!("{letter}{n}")).collect()
    };
    let phases = [
        (some("a", 20, MIB + MIB / 2), Vec::new()),
        (some("b", 8, MIB + MIB / 2), names("a", &mut (0..12))),
        (some("c", 10, MIB + MIB / 2), names("b", &mut (0..4))),
        // At the same point.
        (some("d", 3, 5000), [names("a", &mut (13..19)), names("c", &mut (0..8))].concat()),
    ];
    let (mut model, mut flats) = (BTreeMap::new(), Vec::<Vec<u8>>::new());
    for (n, (written, removed)) in phases.iter().enumerate() {
        change(folder, kind, "part", written, removed)?;
        removed.iter().for_each(|name| {
            model.remove(name);
        });
        model.extend(written.clone());
        let disk = disk_of(folder, scheme, "part")?;
        let disk = match flats.first() {
            None => disk,
            // The table has another identity each time it is made.
            Some(first) => {
                let mut now = first.clone();
                now[FIRST].copy_from_slice(&disk[FIRST]);
                now
            }
        };
        if n == 0 {
            fs::write(folder.file("disk.raw"), &disk).unwrap();
            folder.run("convert -f raw disk.raw -O vhdx web.vhdx --block 1M").expect(0);
        } else if n == 3 {
            write(folder, "web_2.avhdx", &flats[2], &disk);
            flats.pop();
        } else {
            let (below, tip) =
                (if n == 1 { "web.vhdx" } else { "web_1.avhdx" }, format!("web_{n}.avhdx"));
            folder
                .run(&format!("checkpoint {below} --path {tip} --label p{n} --block 1M"))
                .expect(0);
            write(folder, &tip, &flats[n - 1], &disk);
        }
        flats.push(disk);
    }
    // Of the tip alone, and then of the base alone.
    let mut shorter = Vec::new();
    for image in ["web_2.avhdx", "flat.vhdx"] {
        if image == "flat.vhdx" {
            folder.run("flatten web_2.avhdx@-1 flat.vhdx --block 1M").expect(0);
        }
        let before = folder.read(image);
        let df = folder.run(&format!("df {image} --json")).expect(0).json();
        assert_eq!(df["volumes"][0]["unclean"], Value::Null, "{kind:?}");
        let plan = folder.run(&format!("compact {image} --free --dry-run --json")).expect(0).json();
        assert!(folder.read(image) == before, "{kind:?}: a dry run");
        let held = df["volumes"][0]["held"].as_u64().unwrap();
        assert_eq!((&plan["free"], &plan["volumes"][0]["held"]), (&held.into(), &held.into()));
        assert!(plan["volumes"][1]["left_alone"].is_string(), "{plan}");
        let done = folder.run(&format!("compact {image} --free --json")).expect(0).json();
        for key in ["free", "file_len", "file_len_before", "tables", "moved", "volumes"] {
            assert_eq!(done[key], plan[key], "{kind:?}: {key}");
        }
        assert_eq!(folder.read(image).len() as u64, done["file_len"].as_u64().unwrap());
        shorter.push(before.len() as u64 - done["file_len"].as_u64().unwrap());
        let df = folder.run(&format!("df {image} --json")).expect(0).json();
        assert_eq!(df["volumes"][0]["held"], 0, "{kind:?}");
        let again = folder.run(&format!("compact {image} --free --json")).expect(0).json();
        assert_eq!((&again["free"], &again["file_len"]), (&0.into(), &done["file_len"]));
        folder.run(&format!("check {image}")).expect(0);
    }
    assert!(shorter.iter().all(|bytes| *bytes > 3 * MIB as u64), "{kind:?}: {shorter:?}");
    // Earlier points read as before, every byte of them.
    for (point, flat) in [("web_2.avhdx@-1", &flats[1]), ("web_2.avhdx@-2", &flats[0])] {
        assert!(
            folder.run(&format!("read {point}")).expect(0).stdout == *flat,
            "{kind:?}: {point}"
        );
    }
    // At the present all files do, and all that is no volume's free space.
    for (image, was, model) in
        [("web_2.avhdx", &flats[2], Some(&model)), ("flat.vhdx", &flats[1], None)]
    {
        let now = folder.run(&format!("read {image}")).expect(0).stdout;
        for same in [0..FIRST.start, FIRST.end..DISK] {
            assert!(now[same.clone()] == was[same.clone()], "{kind:?}: {image}: {same:?}");
        }
        let changed = was.chunks(4096).zip(now.chunks(4096)).filter(|(was, now)| was != now);
        assert!(changed.into_iter().all(|(_, now)| now.iter().all(|byte| *byte == 0)));
        fs::write(folder.file("now"), &now[FIRST]).unwrap();
        fs::write(folder.file("was"), &was[FIRST]).unwrap();
        let found = files(folder, kind, "now")?;
        match model {
            Some(model) => assert!(found == *model, "{kind:?}: {image}"),
            None => assert!(found == files(folder, kind, "was")?, "{kind:?}: {image}"),
        }
    }
    Some(())
}

/// Refused with this code, in every way, and nothing changes.
#[track_caller]
fn refused(folder: &Folder, image: &str, exit: i32, code: &str) {
    let before = folder.read(image);
    for flags in ["", " --dry-run", " --content", " --punch"] {
        let run = folder.run(&format!("compact {image} --free{flags} --json")).expect(exit);
        assert_eq!(run.error()["code"], code, "{flags}");
        assert!(folder.read(image) == before, "{flags}");
    }
}

fn image_of(folder: &Folder, bytes: &[u8], image: &str) {
    fs::write(folder.file("some.raw"), bytes).unwrap();
    let line = format!("convert -f raw some.raw -O vhdx {image} --block 1M --overwrite");
    folder.run(&line).expect(0);
}

#[test]
fn a_file_system_that_is_in_use_is_refused_before_anything_changes() {
    let folder = Folder::new();
    let made = make(&folder, Kind::Ext4, "part", 32 * MIB);
    let mounted = made.and_then(|()| Mounted::new(&folder, Kind::Ext4, "part", "rw"));
    if let Some(mounted) = mounted {
        fs::write(folder.file("m").join("file"), bytes(1, 3 * MIB)).unwrap();
        let run = Command::new("sync").arg("-f").arg(folder.file("m").join("file")).status();
        assert!(run.unwrap().success());
        image_of(&folder, &folder.read("part"), "ext.vhdx");
        drop(mounted);
        refused(&folder, "ext.vhdx", 7, "unclean.ext");
        let df = folder.run("df ext.vhdx --json").expect(0).json();
        assert!(df["volumes"][0]["unclean"].as_str().unwrap().contains("journal"), "{df}");
        folder.run("df ext.vhdx").expect(0).says("journal");
        // Closed, it is not.
        image_of(&folder, &folder.read("part"), "ext.vhdx");
        folder.run("compact ext.vhdx --free").expect(0);
    }
    if make(&folder, Kind::Ntfs, "ntfs", 16 * MIB).is_some() {
        let mut ntfs = folder.read("ntfs");
        // The flags in the attribute of the kind 0x70 of the record of $Volume.
        let mft = u64::from_le_bytes(ntfs[48..56].try_into().unwrap()) as usize * 4096;
        let record = mft + 3 * 1024;
        let at =
            (record + 56..record + 1000).find(|at| ntfs[*at..].starts_with(&[0x70, 0, 0, 0, 0x28]));
        ntfs[at.unwrap() + 24 + 10] |= 1;
        image_of(&folder, &ntfs, "ntfs.vhdx");
        refused(&folder, "ntfs.vhdx", 7, "unclean.ntfs");
        // A bit of $Bitmap, whose place is in its record, for the cluster in which the table of files begins.
        let mut lies = folder.read("ntfs");
        let record = mft + 6 * 1024;
        let data =
            (record + 56..record + 1000).find(|at| lies[*at..].starts_with(&[0x80, 0, 0, 0, 0x48]));
        let run = data.unwrap() + 64;
        let of_len = usize::from(lies[run] & 15);
        let place = lies[run + 1 + of_len..].iter().take(usize::from(lies[run] >> 4)).rev();
        let bitmap = place.fold(0, |place, byte| place << 8 | usize::from(*byte)) * 4096;
        lies[bitmap + mft / 4096 / 8] &= !(1 << (mft / 4096 % 8));
        image_of(&folder, &lies, "lies.vhdx");
        refused(&folder, "lies.vhdx", 4, "ntfs.bitmap");
    }
    let mut fat = volume();
    fat[37] |= 1;
    image_of(&folder, &fat, "fat.vhdx");
    refused(&folder, "fat.vhdx", 7, "unclean.fat");
    folder.run("df fat.vhdx").expect(0).says("dirty");
    // A chain of which the table knows only the first cluster.
    let mut lies = volume();
    let (table, len) = (512 * usize::from(lies[14]), 512 * usize::from(lies[22]));
    (0..2).for_each(|copy| lies[table + copy * len + 4..table + copy * len + len].fill(0));
    image_of(&folder, &lies, "lies.vhdx");
    refused(&folder, "lies.vhdx", 4, "fat.cluster");
}

#[test]
fn one_volume_is_chosen_and_others_are_left_alone() {
    let folder = Folder::new();
    let (clean, mut dirty) = (volume(), volume());
    dirty[37] |= 1;
    let len = clean.len();
    let mut disk = vec![0; MIB + 2 * len];
    for (n, volume) in [&clean, &dirty].into_iter().enumerate() {
        let start = MIB + n * len;
        disk[start..start + len].copy_from_slice(volume);
        let record = 446 + 16 * n;
        disk[record + 4] = 0x0C;
        disk[record + 8..record + 12].copy_from_slice(&((start / 512) as u32).to_le_bytes());
        disk[record + 12..record + 16].copy_from_slice(&((len / 512) as u32).to_le_bytes());
        // What nothing uses, at the end.
        disk[start + len - 3 * MIB..start + len - MIB].fill(0x77);
    }
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    image_of(&folder, &disk, "pc.vhdx");
    refused(&folder, "pc.vhdx", 7, "unclean.fat");
    let before = folder.read("pc.vhdx");
    folder.run("compact pc.vhdx --free -p 2").expect(7);
    folder.run("compact pc.vhdx --free -p 7").expect(2);
    folder.run("compact pc.vhdx -p 1").expect(2);
    folder.run("compact pc.vhdx --free --with-children").expect(2);
    assert!(folder.read("pc.vhdx") == before);
    let done = folder.run("compact pc.vhdx --free -p 1 --json").expect(0).json();
    assert_eq!((&done["free"], done["volumes"].as_array().unwrap().len()), (&(2 * MIB).into(), 1));
    let mut expected = disk;
    expected[MIB + len - 3 * MIB..MIB + len - MIB].fill(0);
    assert!(folder.run("read pc.vhdx").expect(0).stdout == expected);
}

#[test]
fn what_children_read_and_what_others_use_is_not_freed() {
    let folder = Folder::new();
    let mut used = volume();
    let len = used.len();
    used[len - 3 * MIB..len - MIB].fill(0x77);
    image_of(&folder, &used, "pc.vhdx");
    folder.run("checkpoint pc.vhdx --path pc_1.avhdx --block 1M").expect(0);
    refused(&folder, "pc.vhdx", 7, "compact.free-children");
    refused_with_next(&folder);
    // The tip holds nothing of it: it stays transparent, and as it was.
    let tip = folder.run("compact pc_1.avhdx --free --json").expect(0).json();
    assert_eq!((&tip["free"], tip["file_len"] == tip["file_len_before"]), (&0.into(), true));
    assert!(folder.run("read pc_1.avhdx").expect(0).stdout == used);
    // What it holds reads as zeros then, also over what its parent has.
    folder
        .run_with(&format!("write pc_1.avhdx --offset {}", len - 3 * MIB), &vec![0x33; MIB])
        .expect(0);
    let tip = folder.run("compact pc_1.avhdx --free --json").expect(0).json();
    assert_eq!(tip["free"], MIB);
    used[len - 3 * MIB..len - 2 * MIB].fill(0);
    assert!(folder.run("read pc_1.avhdx").expect(0).stdout == used);
    folder.run("check pc_1.avhdx").expect(0);
    // Fixed disks keep their blocks.
    folder.run("create fixed.vhdx 8M --fixed").expect(0);
    folder.run_with("write fixed.vhdx --offset 0", &used).expect(0);
    refused_of_fixed(&folder);
    // Somebody has the image open.
    let writer = || {
        let mut writer = folder.command(["write", "pc_1.avhdx", "--offset", "0"]);
        writer.stdin(Stdio::piped()).spawn().unwrap()
    };
    let mut held = writer();
    let start = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let run = folder.run("compact pc_1.avhdx --free");
        if run.code == Some(6) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{run:?}");
        // It came while the other one had the image.
        if held.try_wait().unwrap().is_some() {
            held = writer();
        }
    }
    held.kill().unwrap();
    held.wait().unwrap();
}

fn refused_with_next(folder: &Folder) {
    let run = folder.run("compact pc.vhdx --free").expect(7);
    assert!(run.next().iter().all(|next| !next.contains("--free")), "{:?}", run.next());
}

fn refused_of_fixed(folder: &Folder) {
    let before = folder.read("fixed.vhdx");
    for flags in ["--free", "--free --punch", "--free --dry-run"] {
        let run = folder.run(&format!("compact fixed.vhdx {flags} --json")).expect(2);
        assert_eq!(run.error()["code"], "compact.fixed", "{flags}");
    }
    assert!(folder.read("fixed.vhdx") == before);
}

#[test]
fn free_space_goes_in_every_way_of_compacting() {
    for flags in ["", " --content", " --punch", " --content --punch"] {
        let folder = Folder::new();
        let mut used = volume();
        let len = used.len();
        used[len - 3 * MIB..len - MIB].fill(0x77);
        image_of(&folder, &used, "pc.vhdx");
        let plan =
            folder.run(&format!("compact pc.vhdx --free{flags} --dry-run --json")).expect(0).json();
        let done = folder.run(&format!("compact pc.vhdx --free{flags} --json")).expect(0).json();
        assert_eq!(done["free"], 2 * MIB, "{flags}");
        for key in ["free", "content", "file_len", "moved"] {
            assert_eq!(done[key], plan[key], "{flags}: {key}");
        }
        used[len - 3 * MIB..len - MIB].fill(0);
        assert!(folder.run("read pc.vhdx").expect(0).stdout == used, "{flags}");
        let text = folder.run(&format!("compact pc.vhdx --free{flags}")).expect(0);
        text.prints("that no file system uses");
    }
}
