//! Images by QEMU, read.

use std::fs;
use std::path::{Path, PathBuf};

use avhdx::{Disk, ErrorKind};
use avhdx_formats::qcow2::{BackingFiles, OpenOptions, Qcow2Disk};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::conformance;
use avhdx_testkit::conformance::disk::Subject;

use crate::disks::{MIB, flat};
use crate::tools::{name, run};

fn open(path: &Path) -> avhdx::Result<Qcow2Disk> {
    let parents = BackingFiles::new().confined_to(path.parent().unwrap());
    OpenOptions::new().backing(parents).open(path)
}

/// Makes an image and writes to it here and there; none without QEMU.
fn image(path: &Path, size: u64, options: &str, backing: &[&str]) -> Option<()> {
    let size_text = size.to_string();
    let mut args = vec!["create", "-f", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend(backing);
    args.extend([name(path), &size_text]);
    run("qemu-img", &args)?;
    write(path, size, 1);
    Some(())
}

fn write(path: &Path, size: u64, seed: u64) {
    let commands = [
        format!("write -P {} {} 70000", 3 + seed, seed * 5000),
        format!("write -P {} {} 512", 4 + seed, (size / 2) & !511),
        format!("write -z {} 131072", (size / 3) & !0xFFFF),
        format!("write -z {} 4096", (size / 4) & !4095),
        format!("write -P {} {} 300000", 5 + seed, (size * 2 / 3) & !511),
        format!("discard {} 65536", (size / 5) & !0xFFFF),
        format!("write -P {} {} 1024", 6 + seed, size - 1024),
    ];
    let mut args = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| args.extend(["-c", command.as_str()]));
    args.push(name(path));
    run("qemu-io", &args).unwrap();
}

/// What QEMU reads.
fn by_qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", name(path), name(&raw)]).unwrap();
    fs::read(raw).unwrap()
}

fn check(path: &Path, what: &str) {
    let disk = open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(difference(&flat(&disk), &by_qemu(path)), None, "{what}");
}

#[test]
fn images_by_qemu_read_as_qemu_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let all = [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=4096",
        "cluster_size=1M",
        "cluster_size=2M",
        "cluster_size=512,compat=0.10",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "extended_l2=on",
        "extended_l2=on,cluster_size=128k",
        "extended_l2=on,preallocation=metadata",
        "compression_type=zstd",
        "extended_l2=on,compression_type=zstd",
    ];
    let mut compared = 0;
    for (n, options) in all.into_iter().enumerate() {
        for size in [9 * MIB, 33 * MIB + 512 * 7] {
            let path = folder.path().join(format!("{n}-{size}.qcow2"));
            if image(&path, size, options, &[]).is_none() {
                return;
            }
            check(&path, options);
            // The same, packed.
            let packed = path.with_extension("packed.qcow2");
            let kept: Vec<&str> =
                options.split(',').filter(|one| !one.starts_with("preallocation")).collect();
            let kept = kept.join(",");
            let mut args = vec!["convert", "-c", "-f", "qcow2", "-O", "qcow2"];
            if !kept.is_empty() {
                args.extend(["-o", &kept]);
            }
            args.extend([name(&path), name(&packed)]);
            run("qemu-img", &args).unwrap();
            check(&packed, &format!("{options}, packed"));
            write(&packed, size, 9);
            check(&packed, &format!("{options}, packed and written to"));
            compared += 3;
        }
    }
    println!("images by QEMU that read alike: {compared}");
}

/// A chain over a raw disk, an image shorter than the ones above it.
fn chain(folder: &Path) -> Option<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = (0..4).map(|n| folder.join(format!("{n}.qcow2"))).collect();
    let raw = folder.join("base.img");
    fs::write(&raw, vec![0x11; 3 << 20]).unwrap();
    let options = ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"];
    for (n, path) in paths.iter().enumerate() {
        let below = if n == 0 { raw.clone() } else { paths[n - 1].clone() };
        let format = if n == 0 { "raw" } else { "qcow2" };
        let below = below.file_name().unwrap().to_str().unwrap().to_owned();
        let size = (4 + n as u64) * MIB + 512 * 3;
        image(path, size, options[n], &["-b", &below, "-F", format])?;
        write(path, size, n as u64);
    }
    Some(paths)
}

#[test]
fn images_over_each_other_read_as_qemu_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let Some(paths) = chain(folder.path()) else { return };
    for (n, path) in paths.iter().enumerate() {
        check(path, &format!("layer {n}"));
        let disk = open(path).unwrap();
        assert_eq!((disk.images().count(), disk.warnings()), (n + 2, &[][..]));
    }
    let expected = by_qemu(&paths[3]);
    conformance::disk::keeps_every_promise(&|| {
        let disk = open(&paths[3]).unwrap();
        let images: Vec<_> = disk.images().collect();
        let mut subject = Subject::read_only(disk, expected.clone());
        subject.at_place = Some(Box::new(move |layer, at, buf| {
            let image = images.iter().find(|image| image.layer == layer).unwrap();
            let bytes = fs::read(image.path.as_ref().unwrap()).unwrap();
            let end = bytes.len().min(at as usize + buf.len());
            buf[..end - at as usize].copy_from_slice(&bytes[at as usize..end]);
        }));
        subject
    });
}

#[test]
fn backing_files_are_opened_only_where_asked_and_by_their_format() {
    let folder = tempfile::tempdir().unwrap();
    let Some(paths) = chain(folder.path()) else { return };
    let error = OpenOptions::new().open(&paths[1]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("qcow2.parent-required", ErrorKind::ParentRequired));
    assert!(error.to_string().contains("0.qcow2"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let confined = || BackingFiles::new().confined_to(elsewhere.path());
    let error = OpenOptions::new().backing(confined()).open(&paths[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
    // Another folder is searched by name alone: nothing else identifies the file.
    fs::rename(&paths[0], elsewhere.path().join("other.qcow2")).unwrap();
    let both = BackingFiles::new().folder(elsewhere.path());
    let error = OpenOptions::new().backing(both.clone()).open(&paths[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
    fs::rename(elsewhere.path().join("other.qcow2"), elsewhere.path().join("0.qcow2")).unwrap();
    fs::copy(folder.path().join("base.img"), elsewhere.path().join("base.img")).unwrap();
    let disk = OpenOptions::new().backing(both).open(&paths[1]).unwrap();
    assert_eq!(disk.images().count(), 3);
    fs::rename(elsewhere.path().join("0.qcow2"), &paths[0]).unwrap();
    // Too many, and a loop.
    let here = BackingFiles::new().confined_to(folder.path());
    let error = OpenOptions::new().backing(here).max_depth(3).open(&paths[3]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("qcow2.depth", ErrorKind::Limit));
    run("qemu-img", &["rebase", "-u", "-b", "3.qcow2", "-F", "qcow2", name(&paths[0])]).unwrap();
    let error = open(&paths[3]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("qcow2.backing-loop", ErrorKind::Limit));
    // A format that is not read, one that is not recorded, and names that are no paths.
    let tip = folder.path().join("tip.qcow2");
    let base = folder.path().join("base.img");
    run("qemu-img", &["create", "-f", "qcow2", "-F", "raw", "-b", "base.img", name(&tip)]).unwrap();
    for (backing, format, code, kind) in [
        ("base.img", "vmdk", "qcow2.backing-format", ErrorKind::Unsupported),
        ("json:{}", "raw", "qcow2.backing-name", ErrorKind::Unsupported),
        ("nbd://host/x", "raw", "qcow2.backing-name", ErrorKind::Unsupported),
        ("missing.img", "raw", "qcow2.parent-missing", ErrorKind::ParentMissing),
        ("../../../../../../etc/passwd", "raw", "qcow2.parent-missing", ErrorKind::ParentMissing),
        ("/etc/passwd", "raw", "qcow2.parent-missing", ErrorKind::ParentMissing),
    ] {
        run("qemu-img", &["rebase", "-u", "-b", backing, "-F", format, name(&tip)]).unwrap();
        let error = open(&tip).unwrap_err();
        assert_eq!((error.code(), error.kind()), (code, kind), "{backing}: {error}");
    }
    let mut file = fs::read(&tip).unwrap();
    let at = file.windows(4).position(|bytes| bytes == [0xE2, 0x79, 0x2A, 0xCA]).unwrap();
    // No known extension any more.
    file[at] = 0x12;
    let name_at = u64::from_be_bytes(file[8..16].try_into().unwrap()) as usize;
    file[name_at..name_at + 8].copy_from_slice(b"base.img");
    file[16..20].copy_from_slice(&8_u32.to_be_bytes());
    fs::write(&tip, &file).unwrap();
    let error = open(&tip).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("qcow2.backing-format", ErrorKind::Unsupported));
    // A guest of the raw disk below writes the header of an image: it is read as what is recorded.
    run("qemu-img", &["rebase", "-u", "-b", "base.img", "-F", "raw", name(&tip)]).unwrap();
    let mut bytes = fs::read(&base).unwrap();
    bytes[..4].copy_from_slice(b"QFI\xFB");
    fs::write(&base, &bytes).unwrap();
    assert!(flat(&open(&tip).unwrap())[..4] == *b"QFI\xFB");
}

#[test]
fn what_is_not_read_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.qcow2");
    let data = folder.path().join("data.raw");
    let create = |options: &str| {
        drop(fs::remove_file(&path));
        let secret = "secret,id=s,data=secret";
        run(
            "qemu-img",
            &["create", "--object", secret, "-f", "qcow2", "-o", options, name(&path), "1M"],
        )
    };
    if create(&format!("data_file={}", name(&data))).is_none() {
        return;
    }
    assert_eq!(open(&path).unwrap_err().code(), "qcow2.data-file");
    create("encrypt.format=luks,encrypt.key-secret=s").unwrap();
    assert_eq!(open(&path).unwrap_err().code(), "qcow2.encrypted");
    create("cluster_size=64k").unwrap();
    let sound = fs::read(&path).unwrap();
    let broken: [(usize, &[u8], &str); 8] = [
        (0, b"QFI\xFA", "qcow2.signature"),
        (4, &[0, 0, 0, 4], "qcow2.version"),
        (20, &[0, 0, 0, 8], "qcow2.cluster-size"),
        (24, &[0xFF; 8], "qcow2.size"),
        (36, &[0, 0, 0, 0], "qcow2.l1"),
        (40, &[0x7F; 8], "qcow2.l1"),
        (79, &[0x40], "qcow2.feature"),
        (100, &[0, 0, 0, 96], "qcow2.header"),
    ];
    for (at, bytes, code) in broken {
        let mut file = sound.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, file).unwrap();
        let error = open(&path).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("x.qcow2") && error.offset().is_some(), "{error}");
    }
    // A compression and its feature bit need each other.
    create("compression_type=zstd").unwrap();
    let zstd = fs::read(&path).unwrap();
    for (file, at, byte) in [(&zstd, 79, 0), (&zstd, 104, 0), (&sound, 79, 8)] {
        let mut file = file.clone();
        file[at] = byte;
        fs::write(&path, file).unwrap();
        let error = open(&path).unwrap_err();
        assert_eq!((error.code(), error.offset()), ("qcow2.header", Some(72)), "{error}");
        assert!(
            !std::process::Command::new("qemu-img")
                .args(["info", name(&path)])
                .output()
                .unwrap()
                .status
                .success()
        );
    }
    // Snapshots inside are passed over, and said.
    fs::write(&path, &sound).unwrap();
    run("qemu-img", &["snapshot", "-c", "old", name(&path)]).unwrap();
    assert_eq!(open(&path).unwrap().warnings()[0].code, "qcow2.snapshots");
}

/// Makes images over each other, and returns the disk of the last one as QEMU has it; none without QEMU.
fn over(folder: &Path, layers: &[(&str, &str, u8)]) -> Option<Vec<u8>> {
    let mut below: Option<&str> = None;
    for (name, size, byte) in layers {
        let path = folder.join(name);
        let mut args = vec!["create", "-u", "-f", "qcow2"];
        if let Some(below) = below {
            args.extend(["-b", below, "-F", "qcow2"]);
        }
        args.extend([crate::tools::name(&path), size]);
        run("qemu-img", &args)?;
        if *byte > 0 {
            let command = format!("write -P {byte} 0 {size}");
            run("qemu-io", &["-f", "qcow2", "-c", &command, crate::tools::name(&path)]).unwrap();
        }
        below = Some(name);
    }
    Some(by_qemu(&folder.join(layers.last()?.0)))
}

#[test]
fn a_shorter_image_hides_what_is_further_below() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [("0.qcow2", "3M", 0xAA), ("1.qcow2", "1M", 0), ("2.qcow2", "3M", 0)];
    let Some(wanted) = over(folder.path(), &layers) else { return };
    assert!(wanted[1 << 20..].iter().all(|byte| *byte == 0));
    let disk = open(&folder.path().join("2.qcow2")).unwrap();
    assert_eq!(difference(&flat(&disk), &wanted), None);
}

#[test]
fn names_of_backing_files_are_taken_as_qemu_takes_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, byte) in [("a\\b.raw", 0x33), ("base.raw", 0x11)] {
        fs::write(at(name), vec![byte; 1 << 20]).unwrap();
    }
    for sub in ["a", "v"] {
        fs::create_dir(at(sub)).unwrap();
    }
    fs::write(at("a/b.raw"), vec![0x22; 1 << 20]).unwrap();
    fs::write(at("v/base.raw"), vec![0x55; 1 << 20]).unwrap();
    let create = |backing: &str, name: &str| {
        run(
            "qemu-img",
            &[
                "create",
                "-u",
                "-f",
                "qcow2",
                "-F",
                "raw",
                "-b",
                backing,
                crate::tools::name(&at(name)),
                "1M",
            ],
        )
    };
    if create("a\\b.raw", "backslash.qcow2").is_none() {
        return;
    }
    create("BASE.RAW", "case.qcow2").unwrap();
    create("base.raw", "link.qcow2").unwrap();
    std::os::unix::fs::symlink("../link.qcow2", at("v/link.qcow2")).unwrap();
    let files = || BackingFiles::new().confined_to(folder.path());
    let open = |name: &str| OpenOptions::new().backing(files()).open(at(name));
    assert_eq!(flat(&open("backslash.qcow2").unwrap())[0], 0x33);
    assert_eq!(open("case.qcow2").unwrap_err().code(), "qcow2.parent-missing");
    assert_eq!(flat(&open("link.qcow2").unwrap())[0], 0x11);
    assert_eq!(flat(&open("v/link.qcow2").unwrap())[0], 0x55);
    assert_eq!(by_qemu(&at("v/link.qcow2"))[0], 0x55);
}

#[test]
fn a_given_file_stands_for_the_one_of_its_name_alone() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [("0.qcow2", "1M", 0xB0), ("1.qcow2", "1M", 0xB1), ("2.qcow2", "1M", 0)];
    if over(folder.path(), &layers).is_none() {
        return;
    }
    fs::create_dir(folder.path().join("moved")).unwrap();
    let moved = folder.path().join("moved/0.qcow2");
    fs::rename(folder.path().join("0.qcow2"), &moved).unwrap();
    let tip = folder.path().join("2.qcow2");
    let open = |files| OpenOptions::new().backing(files).open(&tip);
    // Alone, it does not stand for the image between.
    let files = BackingFiles::new().file(&moved);
    assert_eq!(open(files.clone()).unwrap_err().code(), "qcow2.parent-missing");
    let disk = open(files.file(folder.path().join("1.qcow2"))).unwrap();
    assert_eq!((disk.images().count(), flat(&disk)[0]), (3, 0xB1));
    // What is recorded elsewhere is not opened because of a folder or a file that was named.
    let other = tempfile::tempdir().unwrap();
    for files in [
        BackingFiles::new().folder(other.path()),
        BackingFiles::new().file(other.path().join("nothing")),
    ] {
        assert_eq!(open(files).unwrap_err().code(), "qcow2.parent-missing");
    }
    // Nor does a link in a folder that was named lead out of it.
    std::os::unix::fs::symlink(folder.path().join("1.qcow2"), other.path().join("1.qcow2"))
        .unwrap();
    let error = open(BackingFiles::new().folder(other.path())).unwrap_err();
    assert_eq!(error.code(), "qcow2.parent-missing");
}

#[test]
fn a_backing_file_that_cannot_be_opened_is_not_replaced_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let tip = folder.path().join("tip.qcow2");
    let args = ["create", "-u", "-f", "qcow2", "-F", "raw", "-b", "base.raw", name(&tip), "1M"];
    if run("qemu-img", &args).is_none() {
        return;
    }
    run("mkfifo", &[name(&folder.path().join("base.raw"))]).unwrap();
    fs::create_dir(folder.path().join("other")).unwrap();
    fs::write(folder.path().join("other/base.raw"), vec![7; 1 << 20]).unwrap();
    let files = BackingFiles::new().confined_to(folder.path()).folder(folder.path().join("other"));
    let error = OpenOptions::new().backing(files).open(&tip).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("qcow2.parent-open", ErrorKind::Io));
    assert!(error.file().unwrap().ends_with("base.raw"), "{error}");
}

#[test]
fn the_last_cluster_of_a_file_may_have_some_parts_alone() {
    let folder = tempfile::tempdir().unwrap();
    for (n, cluster) in ["64k", "2M"].into_iter().enumerate() {
        let path = folder.path().join(format!("{n}.qcow2"));
        let options = format!("extended_l2=on,cluster_size={cluster}");
        let args = ["create", "-f", "qcow2", "-o", &options, name(&path), "10M"];
        if run("qemu-img", &args).is_none() {
            return;
        }
        run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 2k", name(&path)]).unwrap();
        check(&path, &options);
    }
}

/// Images of QEMU before 1.0: the name of the backing file comes where extensions would.
#[test]
fn an_old_image_has_no_mark_at_the_end_of_its_extensions() {
    let folder = tempfile::tempdir().unwrap();
    let tip = folder.path().join("tip.qcow2");
    let args = ["create", "-f", "qcow2", "-o", "compat=0.10", name(&tip), "1M"];
    if run("qemu-img", &args).is_none() {
        return;
    }
    let mut file = fs::read(&tip).unwrap();
    file[8..16].copy_from_slice(&72_u64.to_be_bytes());
    file[16..20].copy_from_slice(&8_u32.to_be_bytes());
    file[72..80].copy_from_slice(b"base.raw");
    file[80..96].fill(b'x');
    fs::write(&tip, file).unwrap();
    // It is read as far as that its format is not recorded.
    assert_eq!(open(&tip).unwrap_err().code(), "qcow2.backing-format");
}

/// A frame of zstd may ask for 128 MiB of memory to unpack a cluster of 64 KiB.
#[test]
fn a_packed_cluster_takes_no_more_memory_than_clusters_need() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    fs::write(&raw, vec![5; 65_536]).unwrap();
    let path = folder.path().join("packed.qcow2");
    let options = "compression_type=zstd";
    let args =
        ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, name(&raw), name(&path)];
    if run("qemu-img", &args).is_none() {
        return;
    }
    let mut file = fs::read(&path).unwrap();
    let magic = [0x28, 0xB5, 0x2F, 0xFD];
    let at = file.windows(4).position(|bytes| bytes == magic).unwrap();
    // Not in one segment, with a window of 2^27 bytes.
    file[at + 4] = 0;
    file[at + 5] = 17 << 3;
    fs::write(&path, file).unwrap();
    let disk = open(&path).unwrap();
    let error = avhdx::Disk::read_at(&disk, &mut [0; 512], 0).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("qcow2.packed", ErrorKind::Damaged));
    assert!(error.to_string().contains("134217728"), "{error}");
}

#[test]
fn what_qemu_calls_corrupt_in_tables_is_refused_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.qcow2");
    // Of 4 KiB clusters, a second table covers 2 MiB.
    if run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", name(&path), "8M"],
    )
    .is_none()
    {
        return;
    }
    for at in ["0", "4M"] {
        run("qemu-io", &["-f", "qcow2", "-c", &format!("write -P 7 {at} 8k"), name(&path)])
            .unwrap();
    }
    let sound = fs::read(&path).unwrap();
    let be = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let l1 = be(40) as usize;
    let l2 = (be(l1) & 0x00FF_FFFF_FFFF_FE00) as usize;
    // Version 2 has no mark of zeros.
    let mut zeros = sound.clone();
    zeros[l2 + 8 + 7] |= 1;
    fs::write(&path, &zeros).unwrap();
    let disk = open(&path).unwrap();
    disk.read_at(&mut [0; 4096], 0).unwrap();
    for error in
        [disk.read_at(&mut [0; 4096], 4096).unwrap_err(), disk.next_extent(4096..8192).unwrap_err()]
    {
        assert_eq!((error.code(), error.offset()), ("qcow2.entry", Some(l2 as u64 + 8)), "{error}");
    }
    // Two entries of the first table name one second table: the later one is where.
    let mut shared = sound.clone();
    shared.copy_within(l1..l1 + 8, l1 + 24);
    fs::write(&path, &shared).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!((error.code(), error.offset()), ("qcow2.l1", Some(l1 as u64 + 24)), "{error}");
    // A size of no whole sectors ends with the last of them.
    let mut odd = sound.clone();
    odd[24..32].copy_from_slice(&((8_u64 << 20) - 100).to_be_bytes());
    fs::write(&path, &odd).unwrap();
    let disk = open(&path).unwrap();
    assert_eq!(disk.size(), (8 << 20) - 512);
    assert_eq!(disk.warnings()[0].code, "qcow2.part-of-sector");
    check(&path, "a part of a sector");
}
