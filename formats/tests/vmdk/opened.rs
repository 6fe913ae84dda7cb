//! Images by QEMU, read.

use std::fs;
use std::path::{Path, PathBuf};

use avhdx::{ErrorKind, PathSource};
use avhdx_formats::vmdk::{ExtentKind, OpenOptions, VmdkDisk};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::conformance;
use avhdx_testkit::conformance::disk::Subject;

use crate::disks::{MIB, flat, sparse};
use crate::tools::{name, run};

pub fn open(path: &Path) -> avhdx::Result<VmdkDisk> {
    let parents = PathSource::new().confined_to(path.parent().unwrap());
    OpenOptions::new().parents(parents).open(path)
}

fn create(path: &Path, size: u64, options: &str, below: &[&str]) -> Option<()> {
    let size_text = size.to_string();
    let mut args = vec!["create", "-f", "vmdk"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend(below);
    args.extend([name(path), &size_text]);
    run("qemu-img", &args).map(drop)
}

/// Writes here and there.
fn write(path: &Path, size: u64, seed: u64) {
    let commands = [
        format!("write -P {} {} 70000", 3 + seed, seed * 5120),
        format!("write -P {} {} 512", 4 + seed, (size / 2) & !511),
        format!("write -z {} 131072", (size / 3) & !0xFFFF),
        format!("write -P {} {} 300032", 5 + seed, (size * 2 / 3) & !511),
        format!("write -z {} 65536", (size * 2 / 3 + 70_000) & !0xFFFF),
        format!("write -P {} {} 1024", 6 + seed, size - 1024),
        // Zeros over what is below.
        format!("write -z {} 65536", if seed % 2 == 1 { 65_536 } else { 1 << 20 }),
    ];
    let mut args = vec!["-f", "vmdk"];
    commands.iter().for_each(|command| args.extend(["-c", command.as_str()]));
    args.push(name(path));
    run("qemu-io", &args).unwrap();
}

/// What QEMU reads.
pub fn by_qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    run("qemu-img", &["convert", "-f", "vmdk", "-O", "raw", name(path), name(&raw)]).unwrap();
    fs::read(raw).unwrap()
}

pub fn check(path: &Path, what: &str) {
    let disk = open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(difference(&flat(&disk), &by_qemu(path)), None, "{what}");
}

#[test]
fn images_by_qemu_read_as_qemu_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let kinds =
        ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"];
    let others =
        ["", "adapter_type=lsilogic", "adapter_type=buslogic", "compat6=on", "hwversion=7"];
    let mut compared = 0;
    for (k, kind) in kinds.into_iter().enumerate() {
        for (n, other) in others.iter().chain(&["zeroed_grain=on"]).enumerate() {
            if *other == "zeroed_grain=on" && kind.ends_with("Flat") {
                continue;
            }
            let options = match *other {
                "" => format!("subformat={kind}"),
                other => format!("subformat={kind},{other}"),
            };
            // Whole grains, and none.
            for size in [9 * MIB, 33 * MIB + 512 * 7] {
                let path = folder.path().join(format!("{k}-{n}-{size}.vmdk"));
                if create(&path, size, &options, &[]).is_none() {
                    return;
                }
                write(&path, size, 1);
                check(&path, &options);
                compared += 1;
            }
        }
    }
    println!("images by QEMU that read alike: {compared}");
    assert!(compared >= 20);
}

#[test]
fn packed_images_by_qemu_read_as_qemu_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk");
    for (n, size) in [9 * MIB, 20 * MIB + 512 * 9].into_iter().enumerate() {
        let mut bytes = sparse(n as u64, size);
        bytes[size as usize - 700..].fill(7);
        fs::write(&raw, &bytes).unwrap();
        for kind in ["streamOptimized", "monolithicSparse", "twoGbMaxExtentSparse"] {
            let path = folder.path().join(format!("{kind}{n}.vmdk"));
            let options = format!("subformat={kind}");
            let args =
                ["convert", "-f", "raw", "-O", "vmdk", "-o", &options, name(&raw), name(&path)];
            if run("qemu-img", &args).is_none() {
                return;
            }
            check(&path, kind);
            assert_eq!(difference(&flat(&open(&path).unwrap()), &bytes), None, "{kind}");
        }
        let path = folder.path().join(format!("streamOptimized{n}.vmdk"));
        conformance::disk::keeps_every_promise(&|| {
            Subject::read_only(open(&path).unwrap(), bytes.clone())
        });
    }
}

/// The same packed disk, as VMware's exports have it: the directory behind the grains, where a footer says.
#[test]
fn a_footer_tells_where_the_directory_is() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("disk"), folder.path().join("a.vmdk"));
    let bytes = sparse(5, 9 * MIB);
    fs::write(&raw, &bytes).unwrap();
    let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    if run("qemu-img", &[&args[..], &[name(&raw), name(&path)]].concat()).is_none() {
        return;
    }
    let sound = with_footer(&fs::read(&path).unwrap());
    fs::write(&path, &sound).unwrap();
    check(&path, "with a footer");
    assert_eq!(difference(&flat(&open(&path).unwrap()), &bytes), None);
    // Cut short, the footer is missing.
    fs::write(&path, &sound[..sound.len() - 1024]).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vmdk.footer", ErrorKind::Damaged));
}

/// Grains that are packed without markers, which QEMU reads too.
#[test]
fn markers_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("disk"), folder.path().join("a.vmdk"));
    // Without a marker, QEMU reads as many packed bytes as a grain has.
    let mut bytes: Vec<u8> = (0..9 * MIB).map(|at| (at / 1000) as u8).collect();
    bytes[1 << 20..3 << 20].fill(0);
    fs::write(&raw, &bytes).unwrap();
    let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    if run("qemu-img", &[&args[..], &[name(&raw), name(&path)]].concat()).is_none() {
        return;
    }
    let mut file = fs::read(&path).unwrap();
    let le = |file: &[u8], at: usize, len: usize| {
        file[at..at + len].iter().rev().fold(0_usize, |n, byte| n << 8 | usize::from(*byte))
    };
    let flags = le(&file, 8, 4) as u32 & !0x2_0000;
    file[8..12].copy_from_slice(&flags.to_le_bytes());
    file.resize(file.len() + 65_536, 0);
    let (directory, mut moved) = (le(&file, 56, 8) * 512, 0);
    for grain in 0..(9 * MIB / 65_536) as usize {
        let table = le(&file, directory + grain / 512 * 4, 4) * 512;
        let place = if table == 0 { 0 } else { le(&file, table + grain % 512 * 4, 4) * 512 };
        if place > 0 {
            let len = le(&file, place + 8, 4);
            file.copy_within(place + 12..place + 12 + len, place);
            moved += 1;
        }
    }
    assert!(moved > 5);
    fs::write(&path, file).unwrap();
    check(&path, "without markers");
    assert_eq!(difference(&flat(&open(&path).unwrap()), &bytes), None);
}

/// Moves the directory of an image to its end, with a footer.
pub fn with_footer(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    file.resize(file.len().next_multiple_of(512), 0);
    let le64 = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let directory = file[le64(56) * 512..][..512].to_vec();
    let marker = |kind: u32| {
        let mut marker = vec![0; 512];
        marker[12..16].copy_from_slice(&kind.to_le_bytes());
        marker
    };
    file.extend(marker(2));
    let at = (file.len() / 512) as u64;
    file.extend(directory);
    let mut footer = file[..512].to_vec();
    footer[56..64].copy_from_slice(&at.to_le_bytes());
    file[56..64].fill(0xFF);
    file.extend(marker(3));
    file.extend(footer);
    file.extend(marker(0));
    file
}

#[test]
fn extents_name_the_place_of_bytes() {
    let folder = tempfile::tempdir().unwrap();
    // Extents of QEMU have 2 GiB: the descriptor is made for smaller ones.
    for kind in ["monolithicSparse", "monolithicFlat"] {
        let mut lines = Vec::new();
        let mut bytes = Vec::new();
        for n in 0..3_u64 {
            let (path, size) =
                (folder.path().join(format!("{kind}{n}.vmdk")), (4 + n) * MIB + 1536);
            if create(&path, size, &format!("subformat={kind}"), &[]).is_none() {
                return;
            }
            write(&path, size, n);
            bytes.extend(by_qemu(&path));
            let file = path.file_stem().unwrap().to_str().unwrap();
            lines.push(match kind {
                "monolithicFlat" => format!("RW {} FLAT \"{file}-flat.vmdk\" 0", size / 512),
                _ => format!("RW {} SPARSE \"{file}.vmdk\"", size / 512),
            });
            lines.push("RW 8 ZERO".into());
            bytes.resize(bytes.len() + 4096, 0);
            // A part of a file once more.
            if kind == "monolithicFlat" {
                lines.push(format!("RW 300 FLAT \"{file}-flat.vmdk\" 16"));
                let start = bytes.len() - 4096 - size as usize + 16 * 512;
                bytes.extend_from_within(start..start + 300 * 512);
            }
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let text = avhdx_testkit::vmdk::descriptor("custom", 1, None, &lines);
        let path = folder.path().join(format!("{kind}.vmdk"));
        fs::write(&path, text).unwrap();
        let image = open(&path).unwrap().images().next().unwrap();
        let kinds: Vec<_> = image.extents.iter().map(|extent| extent.kind).collect();
        assert_eq!((kinds.len(), kinds[1]), (lines.len(), ExtentKind::Zero));
        conformance::disk::keeps_every_promise(&|| {
            let disk = open(&path).unwrap();
            let image = disk.images().next().unwrap();
            let mut subject = Subject::read_only(disk, bytes.clone());
            subject.at_place = Some(Box::new(move |layer, at, buf| {
                let mut extents = image.extents.iter();
                let extent = extents.find(|extent| extent.layer == layer).unwrap();
                let bytes = fs::read(extent.path.as_ref().unwrap()).unwrap();
                let end = bytes.len().min(at as usize + buf.len());
                buf[..end - at as usize].copy_from_slice(&bytes[at as usize..end]);
            }));
            subject
        });
    }
}

/// Four images over each other, each longer than the one below.
fn chain(folder: &Path) -> Option<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = (0..4).map(|n| folder.join(format!("{n}.vmdk"))).collect();
    let options =
        ["", "zeroed_grain=on", "subformat=twoGbMaxExtentSparse", "zeroed_grain=on,compat6=on"];
    for (n, path) in paths.iter().enumerate() {
        let size = (4 + n as u64) * MIB + 512 * 3;
        let below = n.checked_sub(1).map(|below| format!("{below}.vmdk"));
        let below = below.as_deref().map(|below| vec!["-b", below, "-F", "vmdk"]);
        create(path, size, options[n], &below.unwrap_or_default())?;
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
        assert_eq!((disk.images().count(), disk.warnings()), (n + 1, &[][..]));
    }
    let expected = by_qemu(&paths[3]);
    conformance::disk::keeps_every_promise(&|| {
        Subject::read_only(open(&paths[3]).unwrap(), expected.clone())
    });
}

#[test]
fn images_below_are_opened_only_where_asked_and_if_they_are_the_ones() {
    let folder = tempfile::tempdir().unwrap();
    let Some(paths) = chain(folder.path()) else { return };
    let error = OpenOptions::new().open(&paths[1]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vmdk.parent-required", ErrorKind::ParentRequired));
    assert!(error.to_string().contains("0.vmdk"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let confined = PathSource::new().confined_to(elsewhere.path());
    let error = OpenOptions::new().parents(confined).open(&paths[1]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vmdk.parent-missing", ErrorKind::ParentMissing));
    let here = PathSource::new().confined_to(folder.path());
    let error = OpenOptions::new().parents(here).max_depth(3).open(&paths[3]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vmdk.depth", ErrorKind::Limit));
    // A folder is searched by name.
    fs::rename(&paths[0], elsewhere.path().join("0.vmdk")).unwrap();
    let search = PathSource::new().folder(elsewhere.path());
    assert_eq!(OpenOptions::new().parents(search).open(&paths[1]).unwrap().images().count(), 2);
    fs::rename(elsewhere.path().join("0.vmdk"), &paths[0]).unwrap();
    // The content of the parent changed since.
    let sound = fs::read(&paths[0]).unwrap();
    let at = sound.windows(4).position(|bytes| bytes == b"CID=").unwrap() + 4;
    let mut file = sound.clone();
    // QEMU may write fewer than eight digits.
    file[at] = if file[at] == b'1' { b'2' } else { b'1' };
    fs::write(&paths[0], &file).unwrap();
    let error = open(&paths[1]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vmdk.parent-mismatch", ErrorKind::ParentMismatch));
    let found = OpenOptions::new().inspect(&paths[0]).unwrap().0.content_id;
    assert!(error.to_string().contains(&format!("another CID, {found:08x}")), "{error}");
    // An image below itself: the base says that the tip is below.
    fs::write(&paths[0], &sound).unwrap();
    let tip = OpenOptions::new().inspect(&paths[3]).unwrap().0;
    let base = OpenOptions::new().inspect(&paths[0]).unwrap().0;
    let file = fs::read(&paths[0]).unwrap();
    let start = file.windows(21).position(|bytes| bytes == b"# Disk DescriptorFile").unwrap();
    let text = avhdx_testkit::vmdk::descriptor(
        "monolithicSparse",
        base.content_id,
        Some((tip.content_id, "3.vmdk")),
        &[&format!("RW {} SPARSE \"0.vmdk\"", base.size / 512)],
    );
    let mut looped = file.clone();
    looped[start..start + 2048].fill(0);
    looped[start..start + text.len()].copy_from_slice(text.as_bytes());
    fs::write(&paths[0], looped).unwrap();
    let error = open(&paths[3]).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vmdk.parent-loop", ErrorKind::Limit));
}
