//! What is not read is refused by its name, with the place.

use std::fs;
use std::path::Path;

use avhdx::ErrorKind;
use avhdx_testkit::vmdk::{cowd, descriptor};

use super::opened::open;
use crate::disks::flat;
use crate::tools::{name, run};

/// The error of an image whose descriptor is this text.
fn error_of(folder: &Path, text: &str) -> avhdx::Error {
    let path = folder.join("x.vmdk");
    fs::write(&path, text).unwrap();
    let error = open(&path).unwrap_err();
    assert!(error.file().is_some(), "{error}");
    error
}

#[test]
fn descriptors_are_refused_by_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), [5; 4096]).unwrap();
    let sound = descriptor("monolithicFlat", 1, None, &["RW 8 FLAT \"a\" 0"]);
    fs::write(folder.path().join("x.vmdk"), &sound).unwrap();
    assert_eq!(flat(&open(&folder.path().join("x.vmdk")).unwrap()), [5; 4096]);
    let cases: &[(&str, &str, &str)] = &[
        ("# Disk DescriptorFile", "# Disk", "vmdk.signature"),
        ("version=1", "version=4", "vmdk.version"),
        ("version=1\n", "", "vmdk.descriptor"),
        ("createType=\"monolithicFlat\"", "createType=\"fullDevice\"", "vmdk.device"),
        ("createType=\"monolithicFlat\"", "createType=\"partitionedDevice\"", "vmdk.device"),
        ("createType=\"monolithicFlat\"", "createType=\"vmfsRDM\"", "vmdk.device"),
        (
            "createType=\"monolithicFlat\"",
            "createType=\"vmfsPassthroughRawDeviceMap\"",
            "vmdk.device",
        ),
        ("createType=\"monolithicFlat\"", "createType=\"other\"", "vmdk.create-type"),
        ("CID=00000001", "CID=x", "vmdk.descriptor"),
        ("parentCID=ffffffff", "parentCID=5", "vmdk.parent"),
        ("parentCID=ffffffff", "parentCID=ffffffff\nparentFileNameHint=\"b\"", "vmdk.parent"),
        ("RW 8 FLAT \"a\" 0", "", "vmdk.descriptor"),
        ("RW 8 FLAT \"a\" 0", "RW 8 FLAT \"a\"", "vmdk.extent-line"),
        ("RW 8 FLAT \"a\" 0", "RW 8 FLAT \"a", "vmdk.extent-line"),
        ("RW 8 FLAT \"a\" 0", "RW 0 FLAT \"a\" 0", "vmdk.extent-line"),
        ("RW 8 FLAT \"a\" 0", "RW -8 FLAT \"a\" 0", "vmdk.extent-line"),
        ("RW 8 FLAT \"a\" 0", "RW 8 OTHER \"a\" 0", "vmdk.extent-line"),
        ("RW 8 FLAT \"a\" 0", "RW 8 VMFSRDM \"a\"", "vmdk.device"),
        ("RW 8 FLAT \"a\" 0", "NOACCESS 8 FLAT \"a\" 0", "vmdk.no-access"),
        ("RW 8 FLAT \"a\" 0", "RW 9 FLAT \"a\" 0", "vmdk.extent-size"),
        ("RW 8 FLAT \"a\" 0", "RW 8 FLAT \"a\" 1", "vmdk.extent-size"),
        ("RW 8 FLAT \"a\" 0", "RW 8 FLAT \"a\" 36028797018963967", "vmdk.extent-size"),
        ("RW 8 FLAT \"a\" 0", "RW 36028797018963967 FLAT \"a\" 0", "vmdk.size"),
        ("RW 8 FLAT \"a\" 0", "RW 8 SPARSE \"a\"", "vmdk.signature"),
        ("RW 8 FLAT \"a\" 0", "RW 8 FLAT \"b\" 0", "vmdk.extent-missing"),
        ("RW 8 FLAT \"a\" 0", "RW 8 ZERO\nRW 18014398509481983 ZERO", "vmdk.size"),
        ("ddb.adapterType", "encryption.keySafe = \"x\"\nddb.adapterType", "vmdk.encrypted"),
        ("ddb.adapterType", "what is this\nddb.adapterType", "vmdk.descriptor"),
    ];
    for (old, new, code) in cases {
        let text = sound.replacen(old, new, 1);
        assert_ne!(text, sound);
        let error = error_of(folder.path(), &text);
        assert_eq!(error.code(), *code, "{new}: {error}");
    }
    let many = "RW 1 ZERO\n".repeat(4097);
    let error = error_of(folder.path(), &sound.replace("RW 8 FLAT \"a\" 0", &many));
    assert_eq!((error.code(), error.kind()), ("vmdk.extents", ErrorKind::Limit));
    let long = format!("{sound}{}", "\n".repeat(1 << 20));
    let error = error_of(folder.path(), &long);
    assert_eq!((error.code(), error.kind()), ("vmdk.descriptor-length", ErrorKind::Limit));
    fs::create_dir(folder.path().join("b")).unwrap();
    let error = error_of(folder.path(), &sound.replace("\"a\"", "\"b\""));
    assert_eq!(error.code(), "vmdk.extent-file");
    // The disk is as long as all extents are, as far as there is one.
    let text = sound.replace("RW 8 FLAT \"a\" 0", "RW 18014398509481983 ZERO");
    fs::write(folder.path().join("x.vmdk"), text).unwrap();
    let disk = open(&folder.path().join("x.vmdk")).unwrap();
    assert_eq!(disk.size(), (1 << 63) - 512);
}

#[test]
fn headers_are_refused_by_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.vmdk");
    if run("qemu-img", &["create", "-f", "vmdk", name(&path), "3M"]).is_none() {
        return;
    }
    run("qemu-io", &["-f", "vmdk", "-c", "write -P 7 0 128k", name(&path)]).unwrap();
    let sound = fs::read(&path).unwrap();
    let le = |at: usize, len: usize| {
        sound[at..at + len].iter().rev().fold(0_usize, |n, byte| n << 8 | usize::from(*byte))
    };
    let directory = le(56, 8) * 512;
    let table = le(directory, 4) * 512;
    let broken: &[(usize, &[u8], &str)] = &[
        (0, b"KDMX", "vmdk.signature"),
        (4, &[4], "vmdk.version"),
        (12, &[0xFF; 8], "vmdk.size"),
        (12, &[0, 0, 2], "vmdk.extent-size"),
        (20, &[0; 8], "vmdk.grain-size"),
        (20, &[0xFF; 8], "vmdk.grain-size"),
        (28, &[0; 8], "vmdk.extent-alone"),
        (28, &[0, 0, 9], "vmdk.signature"),
        (44, &[0, 0], "vmdk.table-length"),
        (44, &[0xFF, 0xFF], "vmdk.table-length"),
        (56, &[0; 8], "vmdk.directory"),
        (56, &[0xFF; 7], "vmdk.place"),
        (56, &[0xFF; 8], "vmdk.footer"),
        (56, &[0, 0, 0, 9], "vmdk.directory"),
        (73, b"\r", "vmdk.new-lines"),
        (77, &[2], "vmdk.compression"),
        (directory, &[0xFF; 4], "vmdk.place"),
        (table, &[0xFF; 4], "vmdk.place"),
        (table, &[1, 0, 0, 0], "vmdk.entry"),
    ];
    for (at, bytes, code) in broken {
        let mut file = sound.clone();
        file[*at..*at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, file).unwrap();
        let read = open(&path).and_then(|disk| avhdx::Disk::read_at(&disk, &mut [0; 512], 0));
        let error = read.unwrap_err();
        assert_eq!(error.code(), *code, "{at}: {error}");
        assert!(error.to_string().contains("x.vmdk") && error.offset().is_some(), "{error}");
    }
    // It was not closed.
    let mut file = sound.clone();
    file[72] = 1;
    fs::write(&path, file).unwrap();
    assert_eq!(open(&path).unwrap().warnings()[0].code, "vmdk.dirty");
    // An extent without its descriptor.
    fs::write(&path, cowd(4096, 8, &[])).unwrap();
    assert_eq!(open(&path).unwrap_err().code(), "vmdk.extent-alone");
}

#[test]
fn packed_grains_that_lie_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("disk"), folder.path().join("x.vmdk"));
    fs::write(&raw, [7; 300_032]).unwrap();
    let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    if run("qemu-img", &[&args[..], &[name(&raw), name(&path)]].concat()).is_none() {
        return;
    }
    let sound = fs::read(&path).unwrap();
    let le = |file: &[u8], at: usize, len: usize| {
        file[at..at + len].iter().rev().fold(0_usize, |n, byte| n << 8 | usize::from(*byte))
    };
    let grain = le(&sound, le(&sound, le(&sound, 56, 8) * 512, 4) * 512, 4) * 512;
    assert_eq!(le(&sound, grain, 8), 0);
    // A stream that becomes more than a grain, and one that becomes less.
    let packed = |len: usize| {
        let mut file = sound.clone();
        let mut stream = Vec::new();
        let mut packer = flate2::write::ZlibEncoder::new(&mut stream, flate2::Compression::best());
        std::io::Write::write_all(&mut packer, &vec![1; len]).unwrap();
        packer.finish().unwrap();
        let place = file.len().next_multiple_of(512);
        file.resize(place, 0);
        file.extend([0; 8]);
        file.extend((stream.len() as u32).to_le_bytes());
        file.extend(stream);
        let table = le(&sound, le(&sound, 56, 8) * 512, 4) * 512;
        file[table..table + 4].copy_from_slice(&((place / 512) as u32).to_le_bytes());
        file
    };
    let mut wrong_place = sound.clone();
    wrong_place[grain] = 128;
    let mut too_long = sound.clone();
    too_long[grain + 8..grain + 12].fill(0xFF);
    let mut no_stream = sound.clone();
    no_stream[grain + 12..grain + 20].fill(0);
    for (file, code) in [
        (packed(65_536), ""),
        (packed(65_537), "vmdk.packed"),
        (packed(50 << 20), "vmdk.packed"),
        (packed(65_000), "vmdk.packed"),
        (wrong_place, "vmdk.marker"),
        (too_long, "vmdk.marker"),
        (no_stream, "vmdk.packed"),
    ] {
        fs::write(&path, file).unwrap();
        let mut bytes = [0; 512];
        match avhdx::Disk::read_at(&open(&path).unwrap(), &mut bytes, 0) {
            Ok(()) => assert_eq!((code, bytes), ("", [1; 512])),
            Err(error) => {
                assert_eq!(error.code(), code, "{error}");
                assert!(error.file().is_some() && error.offset().is_some(), "{error}");
            }
        }
    }
}
