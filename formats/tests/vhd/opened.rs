//! Images by QEMU and by the builder, read.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use avhdx::storage::MemStorage;
use avhdx::{Disk, DiskExt, ErrorKind, PathSource, Source};
use avhdx_formats::vhd::{Kind, OpenOptions, VhdDisk};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::conformance;
use avhdx_testkit::conformance::disk::Subject;
use avhdx_testkit::rng::{Rng, pattern};
use avhdx_testkit::vhd::{Image, Parent, seal};

use crate::disks::{MIB, flat};
use crate::tools::{libvhdi, name, run};

/// A time that children record of their parents, as the format and as the host has it.
const STAMP: u32 = 700_000_000;
const UNIX: u64 = 946_684_800 + 700_000_000;

fn open(bytes: Vec<u8>) -> avhdx::Result<VhdDisk> {
    OpenOptions::new().open_file(Arc::new(MemStorage::new(bytes)))
}

/// A run of sectors with bytes of its own.
fn run_of(seed: u64, first: u64, count: u64) -> (u64, Vec<u8>) {
    let mut bytes = vec![0; count as usize * 512];
    pattern(seed, first * 512, &mut bytes);
    (first, bytes)
}

/// Runs all over the disk, of whole units of so many sectors.
fn runs(rng: &mut Rng, size: u64, unit: u64) -> Vec<(u64, Vec<u8>)> {
    let units = size / 512 / unit;
    let run = |rng: &mut Rng| {
        let first = rng.below(units);
        let most = if rng.chance(1, 3) { 3000 / unit } else { 20 };
        let count = (1 + rng.below(most)).min(units - first);
        run_of(rng.next_u64(), first * unit, count * unit)
    };
    (0..12).map(|_| run(rng)).collect()
}

/// Three images over each other in a folder, written in units of so many sectors: what each one holds, and what its disk
/// reads as.
fn chain(folder: &Path, seed: u64, unit: u64) -> Vec<(Image, Vec<u8>)> {
    let mut rng = Rng::new(seed);
    let size = 7 * MIB + 512 * 80;
    let block = if unit == 1 { 1 << (17 + rng.below(4)) } else { 2 << 20 };
    let mut layers: Vec<(Image, Vec<u8>)> = Vec::new();
    for n in 0..3 {
        let kind = if n > 0 { 4 } else { 2 + rng.below(2) as u8 };
        let mut image = Image::new(kind, size, block, n + 1);
        image.runs = runs(&mut rng, size, unit);
        image.order = vec![5, 2];
        image.parent = (n > 0).then(|| Parent {
            id: [n; 16],
            stamp: STAMP,
            name: format!("{}.vhd", n - 1),
            relative: Some(format!(r".\{}.vhd", n - 1)),
            absolute: Some(format!(r"D:\vm\{}.vhd", n - 1)),
        });
        let below = layers.last().map_or(&[][..], |(_, flat)| flat);
        let flat = image.flat(below);
        let path = folder.join(format!("{n}.vhd"));
        fs::write(&path, image.build()).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(UNIX);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        layers.push((image, flat));
    }
    layers
}

#[test]
fn differencing_images_read_as_a_flat_model_and_as_libvhdi_has_them() {
    let mut compared = 0;
    for seed in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        // libvhdi takes whole bytes of bitmaps, and misreads images whose blocks do not have 2 MiB.
        let unit = if seed < 3 { 1 } else { 8 };
        let layers = chain(folder.path(), seed, unit);
        let paths: Vec<_> = (0..3).map(|n| folder.path().join(format!("{n}.vhd"))).collect();
        for n in 0..3 {
            let parents = PathSource::new().confined_to(folder.path());
            let disk = OpenOptions::new().parents(parents).open(&paths[n]).unwrap();
            assert_eq!(disk.warnings(), []);
            assert_eq!(disk.images().count(), n + 1);
            let wanted = &layers[n].1;
            assert!(flat(&disk) == *wanted, "seed {seed}, layer {n}");
            if unit == 1 {
                continue;
            }
            let chain: Vec<&Path> = paths[..=n].iter().map(|path| path.as_path()).collect();
            let Some(other) = libvhdi(&chain) else { continue };
            let at = difference(&other, wanted);
            assert_eq!(at, None, "seed {seed}, layer {n} by libvhdi");
            compared += 1;
        }
    }
    println!("layers that libvhdi read alike: {compared}");
}

#[test]
fn a_disk_of_three_images_keeps_the_promises_of_disks() {
    let folder = tempfile::tempdir().unwrap();
    let layers = chain(folder.path(), 77, 1);
    let path = folder.path().join("2.vhd");
    conformance::disk::keeps_every_promise(&|| {
        let parents = PathSource::new().confined_to(folder.path());
        let disk = OpenOptions::new().parents(parents).open(&path).unwrap();
        let images: Vec<_> = disk.images().collect();
        let mut subject = Subject::read_only(disk, layers[2].1.clone());
        subject.at_place = Some(Box::new(move |layer, at, buf| {
            let image = images.iter().find(|image| image.layer == layer).unwrap();
            let bytes = fs::read(image.path.as_ref().unwrap()).unwrap();
            buf.copy_from_slice(&bytes[at as usize..][..buf.len()]);
        }));
        subject
    });
}

#[test]
fn images_by_qemu_read_as_qemu_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    let sizes = [4 * MIB, 20 * MIB + 512, 33 * MIB + 4096, 100 * MIB, 2 * MIB - 512];
    for size in sizes {
        for (kind, subformat) in [(Kind::Fixed, "fixed"), (Kind::Dynamic, "dynamic")] {
            for is_exact in [true, false] {
                let path = folder.path().join(format!("{size}-{subformat}-{is_exact}.vhd"));
                let options = match is_exact {
                    true => format!("subformat={subformat},force_size=on"),
                    false => format!("subformat={subformat}"),
                };
                let bytes = size.to_string();
                let made = ["create", "-f", "vpc", "-o", &options, name(&path), &bytes];
                let Some(_) = run("qemu-img", &made) else { return };
                let last = (size / 2) & !511;
                let writes = [
                    "write -P 7 1024 70000".to_owned(),
                    format!("write -P 9 {last} 512"),
                    format!("write -P 11 {} 4096", size - 8192),
                ];
                let mut args = vec!["-f", "vpc"];
                writes.iter().for_each(|write| args.extend(["-c", write]));
                args.push(name(&path));
                run("qemu-io", &args).unwrap();
                let raw = path.with_extension("raw");
                let args = ["convert", "-f", "vpc", "-O", "raw", name(&path), name(&raw)];
                run("qemu-img", &args).unwrap();
                let disk = OpenOptions::new().open(&path).unwrap();
                assert_eq!(disk.warnings(), []);
                let image = disk.images().next().unwrap();
                assert_eq!((image.kind, image.size), (kind, disk.size()));
                let (ours, wanted) = (flat(&disk), fs::read(&raw).unwrap());
                if is_exact {
                    assert_eq!(disk.size(), size);
                }
                // What the geometry cannot express is part of the disk all the same.
                assert!(ours.len() >= wanted.len() && ours[..wanted.len()] == wanted, "{options}");
                assert!(ours[wanted.len()..].iter().all(|byte| *byte == 0));
                compared += 1;
            }
        }
    }
    println!("images by QEMU that read alike: {compared}");
}

#[test]
fn holes_of_a_fixed_image_and_blocks_that_lie_nowhere_are_zeros_in_extents() {
    let mut image = Image::new(3, 8 * MIB, 1 << 20, 1);
    image.runs = vec![run_of(1, 2048 * 3 + 5, 1)];
    let disk = open(image.build()).unwrap();
    let extents: Vec<_> = disk.extents(0..8 * MIB).map(Result::unwrap).collect();
    let data = |extent: &avhdx::Extent| matches!(extent.source, Source::Data { .. });
    let ranges: Vec<_> =
        extents.iter().map(|extent| (extent.range.clone(), data(extent))).collect();
    let wanted = [(0..3 * MIB, false), (3 * MIB..4 * MIB, true), (4 * MIB..8 * MIB, false)];
    assert_eq!(ranges, wanted);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fixed.vhd");
    let file = fs::File::create(&path).unwrap();
    file.set_len(64 * MIB).unwrap();
    let mut image = Image::new(2, 64 * MIB, 0, 1).build();
    fs::File::options().append(true).open(&path).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(&image.split_off(64 << 20), 64 * MIB).unwrap();
    let disk = OpenOptions::new().open(&path).unwrap();
    let extent = disk.next_extent(0..64 * MIB).unwrap().unwrap();
    assert_eq!(extent, avhdx::Extent { range: 0..64 * MIB, source: Source::Zero { layer: None } });
}

/// An image of two blocks, with bytes in both.
fn small() -> Vec<u8> {
    let mut image = Image::new(3, 2 * MIB, 1 << 20, 1);
    image.runs = vec![run_of(1, 3, 9), run_of(2, 2050, 4)];
    image.build()
}

type Break = Box<dyn Fn(&mut Vec<u8>)>;
type Broken = (&'static str, ErrorKind, Option<u64>, Break);

#[test]
fn what_breaks_a_rule_is_refused_with_its_place() {
    let end = small().len() as u64;
    let put = |at: u64, bytes: &'static [u8]| -> Break {
        Box::new(move |file| {
            let len = file.len();
            for base in [0, len - 512] {
                if at < 512 {
                    file[base + at as usize..][..bytes.len()].copy_from_slice(bytes);
                }
            }
            if at >= 512 {
                file[at as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            seal(file);
        })
    };
    let footer = end - 512;
    let broken: Vec<Broken> = vec![
        ("vhd.footer", ErrorKind::Damaged, Some(footer), put(0, b"CONECTIX")),
        ("vhd.version", ErrorKind::Unsupported, Some(footer + 12), put(12, &[0, 2])),
        ("vhd.kind", ErrorKind::Unsupported, Some(footer + 60), put(60, &[0, 0, 0, 6])),
        ("vhd.size", ErrorKind::Damaged, Some(footer + 48), put(48, &[0; 8])),
        ("vhd.size", ErrorKind::Damaged, Some(footer + 48), put(55, &[1])),
        ("vhd.size", ErrorKind::Damaged, Some(footer + 48), put(48, &[0x80])),
        ("vhd.header", ErrorKind::Damaged, Some(16), put(16, &[0x7F; 8])),
        ("vhd.header", ErrorKind::Damaged, Some(512), put(512, b"cxSPARSE")),
        ("vhd.version", ErrorKind::Unsupported, Some(512 + 24), put(512 + 24, &[0, 2])),
        ("vhd.block-size", ErrorKind::Damaged, Some(512 + 32), put(512 + 32, &[0, 0, 1, 0])),
        ("vhd.block-size", ErrorKind::Damaged, Some(512 + 32), put(512 + 32, &[0, 0x18, 0, 0])),
        ("vhd.table", ErrorKind::Damaged, Some(512 + 28), put(512 + 28, &[0, 0, 0, 1])),
        ("vhd.table", ErrorKind::Damaged, Some(512 + 16), put(512 + 16, &[0xFF; 8])),
        ("vhd.block", ErrorKind::Damaged, Some(1536), put(1536, &[0, 0, 0, 0])),
        ("vhd.block", ErrorKind::Damaged, Some(1536), put(1536, &[0, 0, 0, 3])),
        ("vhd.table-length", ErrorKind::Unsupported, Some(512 + 28), {
            let size = put(48, &[0x7F, 0, 0, 0, 0, 0, 0, 0]);
            let entries = put(512 + 28, &[0xFF; 4]);
            let block = put(512 + 32, &[0x80, 0, 0, 0]);
            Box::new(move |file| [&size, &entries, &block].iter().for_each(|put| put(file)))
        }),
    ];
    for (code, kind, offset, break_it) in broken {
        let mut file = small();
        break_it(&mut file);
        let error = open(file).map(|disk| flat(&disk).len()).unwrap_err();
        assert_eq!((error.code(), error.kind(), error.offset()), (code, kind, offset), "{error}");
        assert!(error.file().is_some(), "{error}");
    }
    // A block on another one: the second entry is the first one's.
    let mut file = small();
    let first: [u8; 4] = file[1536..1540].try_into().unwrap();
    file[1540..1544].copy_from_slice(&first);
    let error = open(file).unwrap_err();
    assert_eq!((error.code(), error.offset()), ("vhd.block", Some(1540)));
    assert!(error.to_string().contains("block 1 lies on block 0"), "{error}");
    // Bits that flip are noticed.
    let mut file = small();
    file[600] ^= 1;
    assert_eq!(open(file).unwrap_err().code(), "vhd.checksum");
}

#[test]
fn a_lost_footer_is_replaced_by_its_copy_and_said() {
    let sound = small();
    for cut in [2, 511, 512] {
        let mut file = sound.clone();
        file.truncate(sound.len() - cut);
        let disk = open(file).unwrap();
        assert_eq!(disk.warnings()[0].code, "vhd.footer-lost");
        assert!(flat(&disk) == flat(&open(sound.clone()).unwrap()));
    }
    // An end that is gone is an error where it is read, not zeros.
    let mut file = sound.clone();
    file.truncate(sound.len() - 512 - 4096);
    let disk = open(file).unwrap();
    let error = disk.read_at(&mut [0; 512], 2 * MIB - 512).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vhd.truncated", ErrorKind::Damaged));
    disk.read_at(&mut [0; 512], 0).unwrap();
    // A fixed image has no copy.
    let sound = Image::new(2, MIB, 0, 1).build();
    assert_eq!(open(sound[..sound.len() - 2].to_vec()).unwrap_err().code(), "vhd.footer");
    assert_eq!(open(sound[512..].to_vec()).unwrap_err().code(), "vhd.truncated");
    // Virtual PC once wrote footers of 511 bytes.
    let disk = open(sound[..sound.len() - 1].to_vec()).unwrap();
    assert_eq!((disk.size(), disk.warnings()), (MIB, &[][..]));
    for (other, code) in [(b"vhdxfile".to_vec(), "vhd.is-vhdx"), (vec![0; 100], "vhd.footer")] {
        assert_eq!(open(other).unwrap_err().code(), code);
    }
}

#[test]
fn parents_are_opened_only_where_asked_and_only_the_right_ones() {
    let folder = tempfile::tempdir().unwrap();
    let layers = chain(folder.path(), 5, 1);
    let tip = folder.path().join("2.vhd");
    let error = OpenOptions::new().open(&tip).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vhd.parent-required", ErrorKind::ParentRequired));
    assert!(error.to_string().contains(r".\\1.vhd"), "{error}");
    let here = || PathSource::new().confined_to(folder.path());
    let with = |source| OpenOptions::new().parents(source).open(&tip);
    // A parent outside of the folder that is allowed.
    let other = tempfile::tempdir().unwrap();
    let error = with(PathSource::new().confined_to(other.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
    // One that was moved is found by its identity.
    fs::rename(folder.path().join("1.vhd"), other.path().join("moved.vhd")).unwrap();
    assert_eq!(with(here()).unwrap_err().code(), "vhd.parent-missing");
    let disk = with(PathSource::new().folder(other.path()).folder(folder.path())).unwrap();
    assert!(flat(&disk) == layers[2].1);
    // Another image by the recorded name is not taken.
    fs::copy(folder.path().join("0.vhd"), folder.path().join("1.vhd")).unwrap();
    let error = with(here()).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vhd.parent-mismatch", ErrorKind::ParentMismatch));
    assert!(error.found().unwrap().contains("01010101-0101"), "{error}");
    // The right one with another time is taken, and said.
    fs::remove_file(folder.path().join("1.vhd")).unwrap();
    fs::write(folder.path().join("1.vhd"), layers[1].0.build()).unwrap();
    let disk = with(here()).unwrap();
    assert_eq!(disk.warnings()[0].code, "vhd.parent-time");
    assert!(flat(&disk) == layers[2].1);
    // Too many, and a loop.
    let error = OpenOptions::new().parents(here()).max_depth(2).open(&tip).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vhd.depth", ErrorKind::Limit));
    let mut image = layers[1].0.clone();
    image.parent.as_mut().unwrap().id = [3; 16];
    image.parent.as_mut().unwrap().relative = Some(r".\2.vhd".into());
    fs::write(folder.path().join("1.vhd"), image.build()).unwrap();
    let error = with(here()).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("vhd.parent-loop", ErrorKind::Limit));
}

#[test]
fn a_shorter_image_hides_what_is_further_below() {
    let folder = tempfile::tempdir().unwrap();
    for (n, size) in [(0_u8, 4), (1, 2), (2, 4)] {
        let mut image = Image::new(if n == 0 { 3 } else { 4 }, size * MIB, 512 << 10, n + 1);
        if n == 0 {
            image.runs = vec![(0, vec![0xAA; 4 << 20])];
        }
        image.parent = (n > 0).then(|| Parent {
            id: [n; 16],
            stamp: STAMP,
            name: format!("{}.vhd", n - 1),
            relative: Some(format!(r".\{}.vhd", n - 1)),
            absolute: None,
        });
        fs::write(folder.path().join(format!("{n}.vhd")), image.build()).unwrap();
    }
    let parents = PathSource::new().confined_to(folder.path());
    let disk = OpenOptions::new().parents(parents).open(folder.path().join("2.vhd")).unwrap();
    let bytes = flat(&disk);
    assert!(bytes[..2 << 20].iter().all(|byte| *byte == 0xAA));
    assert!(bytes[2 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn another_file_of_a_folder_does_not_end_the_search() {
    let folder = tempfile::tempdir().unwrap();
    let layers = chain(folder.path(), 5, 1);
    let there = tempfile::tempdir().unwrap();
    fs::rename(folder.path().join("1.vhd"), there.path().join("zz.vhd")).unwrap();
    let mut damaged = small();
    damaged[512 + 35] = 1;
    seal(&mut damaged);
    fs::write(there.path().join("aa.vhd"), damaged).unwrap();
    let parents = PathSource::new().folder(there.path()).folder(folder.path());
    let disk = OpenOptions::new().parents(parents).open(folder.path().join("2.vhd")).unwrap();
    assert!(flat(&disk) == layers[2].1);
}
