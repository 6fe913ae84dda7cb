//! What only NTFS has: streams, compressed and sparse files, parts that were never written, reparse points.
#![allow(clippy::disallowed_methods)] // the driver's files

use std::io::{Seek, SeekFrom, Write};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use avhdx_files::{ErrorKind, Kind, Time};
use avhdx_testkit::rng::pattern;

use crate::images::{MIB, Mounted, tree};

const SYMLINK: u32 = 0xA000_000C;
const MOUNT_POINT: u32 = 0xA000_0003;
const WOF: u32 = 0x8000_0017;
const DEDUP: u32 = 0x8000_0013;
const CLOUD: u32 = 0x9000_701A;
const UNKNOWN: u32 = 0x8000_7777;
/// `FILE_ATTRIBUTE_COMPRESSED` and archive, big-endian.
const COMPRESSED: [u8; 4] = [0, 0, 0x08, 0x20];

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(seed, 0, &mut bytes);
    bytes
}

/// Lines that compress well, with parts that do not.
fn text() -> Vec<u8> {
    let mut text: Vec<u8> =
        (0..30_000).flat_map(|n| format!("line {}\n", n * n).into_bytes()).collect();
    pattern(9, 0, &mut text[70_000..150_000]);
    text[200_000..300_000].fill(0);
    text
}

/// Many pieces with holes between them.
fn pieces() -> Vec<u8> {
    let mut pieces = vec![0; (159 << 16) + 5000];
    for (n, unit) in pieces.chunks_mut(1 << 16).enumerate() {
        pattern(1000 + n as u64, 0, &mut unit[..5000]);
    }
    pieces
}

fn reparse(tag: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u16).to_le_bytes();
    [&tag.to_le_bytes()[..], &len, &[0, 0], data].concat()
}

/// The data of a link: the name for the kernel and the one to print, and the flag of a symbolic link.
fn link(target: &str, flag: Option<u32>) -> Vec<u8> {
    let name: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = (name.len() as u16).to_le_bytes();
    let flag = flag.map_or(Vec::new(), |flag| flag.to_le_bytes().to_vec());
    [&[0, 0][..], &len, &len, &len, &flag, &name, &name].concat()
}

/// The image, and the times that the driver shows for `plain`.
pub fn image() -> Option<&'static (Vec<u8>, [Time; 2])> {
    static IMAGE: OnceLock<Option<(Vec<u8>, [Time; 2])>> = OnceLock::new();
    IMAGE.get_or_init(made).as_ref()
}

fn made() -> Option<(Vec<u8>, [Time; 2])> {
    let mounted = Mounted::new(16 * MIB, "4096")?;
    let at = |name: &str| mounted.at.join(name);
    let write = |name: &str, bytes: &[u8]| std::fs::write(at(name), bytes).unwrap();
    std::fs::create_dir(at("packed")).unwrap();
    mounted.set("packed", "ntfs_attrib_be", &[0, 0, 0x08, 0x10]);
    write("packed/text", &text());
    write("packed/noise", &bytes(1, 100_000));
    write("packed/few", b"resident all the same");
    write("plain", &bytes(2, 10_000));
    write("plain:side", b"beside it");
    write("plain:large", &bytes(3, 50_000));
    let mut sparse = std::fs::File::create(at("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(3 * MIB)).unwrap();
    sparse.write_all(&bytes(4, 5000)).unwrap();
    write("begun", &bytes(5, 60_000));
    write("secret", &bytes(6, 60_000));
    // The runs of so many pieces and holes need records of their own.
    let (mut file, pieces) = (std::fs::File::create(at("pieces")).unwrap(), pieces());
    for (at, piece) in (0..).step_by(1 << 16).zip(pieces.chunks(1 << 16)) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&piece[..5000]).unwrap();
    }
    drop((sparse, file));
    for (name, tag, data) in [
        ("symlink", SYMLINK, link(r"packed\few", Some(1))),
        ("elsewhere", SYMLINK, link(r"C:\Windows", Some(0))),
        ("wof", WOF, vec![1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
        ("dedup", DEDUP, vec![0; 16]),
        ("unknown", UNKNOWN, vec![0; 4]),
        ("cloud", CLOUD, vec![0; 8]),
    ] {
        write(name, b"");
        mounted.set(name, "ntfs_reparse_data", &reparse(tag, &data));
    }
    std::fs::create_dir(at("junction")).unwrap();
    mounted.set("junction", "ntfs_reparse_data", &reparse(MOUNT_POINT, &link(r"\??\D:\x", None)));
    std::fs::hard_link(at("plain"), at("second name")).unwrap();
    let metadata = std::fs::metadata(at("plain")).unwrap();
    let times = [metadata.modified().unwrap(), metadata.accessed().unwrap()].map(|time| {
        let since = time.duration_since(UNIX_EPOCH).unwrap();
        Time { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() }
    });
    Some((mounted.finish(), times))
}

fn contents(image: &[u8], path: &str, stream: Option<&[u8]>) -> Vec<u8> {
    let tree = tree(image);
    let file = tree.lookup(path.as_bytes()).unwrap();
    tree.open(&file, stream).unwrap().read_to_end(16 * MIB).unwrap()
}

/// Where the record of a file lies in the image, found by the name in it.
fn record_of(image: &[u8], name: &str) -> usize {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let records = (0..image.len()).step_by(1024).filter(|at| image[*at..].starts_with(b"FILE"));
    let mut found = records.filter(|at| {
        let names = attributes(image, *at).into_iter().filter(|(kind, _)| *kind == 0x30);
        names.into_iter().any(|(_, at)| {
            let value = at + u16::from_le_bytes([image[at + 20], image[at + 21]]) as usize;
            let len = 2 * image[value + 64] as usize;
            image[value + 66..value + 66 + len] == name
        })
    });
    found.next().unwrap()
}

/// The kinds and the places of the attributes in a record.
pub fn attributes(image: &[u8], record: usize) -> Vec<(u32, usize)> {
    let u32_at = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let mut at = record + u16::from_le_bytes([image[record + 20], image[record + 21]]) as usize;
    let mut found = Vec::new();
    while u32_at(at) != u32::MAX {
        found.push((u32_at(at), at));
        at += u32_at(at + 4) as usize;
    }
    found
}

/// The place of the contents of a file in its record.
fn data_of(image: &[u8], name: &str) -> usize {
    let attributes = attributes(image, record_of(image, name));
    attributes.into_iter().find(|(kind, at)| *kind == 0x80 && image[at + 9] == 0).unwrap().1
}

#[test]
fn compressed_files_are_decoded() {
    let Some((image, _)) = image() else { return };
    // They are compressed on the volume.
    let at = data_of(image, "text");
    assert_eq!(image[at + 12..at + 14], [1, 0]);
    assert!(contents(image, "packed/text", None) == text());
    assert!(contents(image, "packed/noise", None) == bytes(1, 100_000));
    assert_eq!(contents(image, "packed/few", None), b"resident all the same");
    let tree = tree(image);
    let file = tree.lookup(b"packed/text").unwrap();
    assert_eq!(file.attributes().unwrap().to_be_bytes(), COMPRESSED);
    let mut file = tree.open(&file, None).unwrap();
    for at in [0, 65_530, 199_000, 299_990, 64_000] {
        let mut part = vec![0; 20_000];
        file.read_at(&mut part, at).unwrap();
        assert!(part == text()[at as usize..][..20_000], "at {at}");
    }
}

#[test]
fn a_compressed_file_that_is_damaged_is_an_error() {
    let Some((image, _)) = image() else { return };
    let mut image = image.clone();
    let packed =
        (0..image.len()).step_by(4096).find(|at| image[*at + 3..].starts_with(b"line 0\n"));
    // The first chunk says that it is longer than the unit.
    let at = packed.unwrap();
    image[at + 3..at + 4096].fill(0xFF);
    let tree = tree(&image);
    let file = tree.lookup(b"packed/text").unwrap();
    let error = tree.open(&file, None).unwrap().read_at(&mut [0; 10], 0).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "ntfs.compression"));
    assert_eq!(error.path(), Some("/packed/text"));
}

#[test]
fn holes_read_as_zeros_and_are_told() {
    let Some((image, _)) = image() else { return };
    let read = contents(image, "sparse", None);
    assert!(read[..3 * MIB as usize].iter().all(|byte| *byte == 0));
    assert!(read[3 * MIB as usize..] == bytes(4, 5000));
    let tree = tree(image);
    let file = tree.open(&tree.lookup(b"sparse").unwrap(), None).unwrap();
    assert_eq!(file.hole_end(5), 3 * MIB);
    assert_eq!(file.hole_end(3 * MIB + 1), 3 * MIB + 1);
}

#[test]
fn bytes_behind_those_that_were_written_are_zeros() {
    let Some((image, _)) = image() else { return };
    let mut image = image.clone();
    let at = data_of(&image, "begun");
    assert_eq!(image[at + 56..at + 64], 60_000u64.to_le_bytes());
    image[at + 56..at + 64].copy_from_slice(&12_345u64.to_le_bytes());
    let mut expected = bytes(5, 60_000);
    expected[12_345..].fill(0);
    assert!(contents(&image, "begun", None) == expected);
    let tree = tree(&image);
    let file = tree.open(&tree.lookup(b"begun").unwrap(), None).unwrap();
    assert_eq!((file.hole_end(12_344), file.hole_end(12_345)), (12_344, 60_000));
}

#[test]
fn streams_are_listed_and_read() {
    let Some((image, _)) = image() else { return };
    let tree = tree(image);
    let file = tree.lookup(b"plain").unwrap();
    let streams = tree.streams(&file).unwrap();
    let mut told: Vec<_> = streams.iter().map(|stream| (&stream.name[..], stream.size)).collect();
    told.sort();
    assert_eq!(told, [(&b"large"[..], 50_000), (b"side", 9)]);
    assert_eq!(contents(image, "plain", Some(b"SIDE")), b"beside it");
    assert!(contents(image, "plain", Some(b"large")) == bytes(3, 50_000));
    let error = tree.open(&file, Some(b"none")).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotFound, "files.stream"));
}

#[test]
fn times_have_a_hundred_nanoseconds_and_names_may_share_a_file() {
    let Some((image, times)) = image() else { return };
    let tree = tree(image);
    let (one, two) = (tree.lookup(b"plain").unwrap(), tree.lookup(b"second name").unwrap());
    assert_eq!([one.times().modified, one.times().accessed], times.map(Some));
    assert!(one.times().created.unwrap() <= one.times().changed.unwrap());
    assert!(times[0].nanoseconds % 100 == 0);
    assert_eq!((one.id(), one.links()), (two.id(), Some(2)));
}

#[test]
fn a_short_name_for_dos_is_no_further_name() {
    let Some(mounted) = Mounted::new(4 * MIB, "4096") else { return };
    let at = |name: &str| mounted.at.join(name);
    std::fs::write(at("a long name.text"), "one").unwrap();
    mounted.set("a long name.text", "ntfs_dos_name", b"ALONGN~1.TEX");
    let image = mounted.finish();
    let tree = tree(&image);
    let named = tree.lookup(b"a long name.text").unwrap();
    assert_eq!(named.links(), Some(1));
    // Its record says otherwise.
    let record = record_of(&image, "a long name.text");
    assert_eq!(image[record + 18..record + 20], [2, 0]);
}

#[test]
fn a_file_in_many_pieces_is_whole() {
    let Some((image, _)) = image() else { return };
    // Its record has no room for all of it: the name stands in one that continues it.
    let record = record_of(image, "pieces");
    assert!(image[record + 32..record + 38] != [0; 6]);
    assert!(contents(image, "pieces", None) == pieces());
}

#[test]
fn links_are_links_and_foreign_bytes_are_refused_by_name() {
    let Some((image, _)) = image() else { return };
    let tree = tree(image);
    for (name, target) in
        [("symlink", r"packed\few"), ("elsewhere", r"C:\Windows"), ("junction", r"\??\D:\x")]
    {
        let link = tree.lookup(name.as_bytes()).unwrap();
        assert_eq!(link.kind(), Some(Kind::Link), "{name}");
        assert_eq!(tree.target(&link).unwrap(), target.as_bytes());
    }
    assert_eq!(tree.resolve(b"symlink").unwrap().path(), b"packed/few");
    assert_eq!(tree.resolve(b"elsewhere").unwrap_err().code(), "files.link");
    for (name, code, word) in [
        ("wof", "files.wof", "CompactOS"),
        ("dedup", "files.dedup", "deduplicated"),
        ("unknown", "files.reparse", "0x80007777"),
    ] {
        let file = tree.lookup(name.as_bytes()).unwrap();
        assert_eq!(file.refusal().map(|(code, _)| code), Some(code), "{name}");
        let error = tree.open(&file, None).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, code));
        assert!(error.to_string().contains(word), "{error}");
    }
    // What a cloud left here is read, and what it keeps is not.
    assert!(tree.open(&tree.lookup(b"cloud").unwrap(), None).is_ok());
    let mut image = image.clone();
    let record = record_of(&image, "cloud");
    let (_, at) = attributes(&image, record)[0];
    image[at + 24 + 34] |= 0x40;
    let tree = crate::images::tree(&image);
    let error = tree.open(&tree.lookup(b"cloud").unwrap(), None).unwrap_err();
    assert_eq!(error.code(), "files.cloud");
}

#[test]
fn an_encrypted_file_is_refused_by_name() {
    let Some((image, _)) = image() else { return };
    let mut image = image.clone();
    let at = data_of(&image, "secret");
    image[at + 13] |= 0x40;
    let tree = tree(&image);
    let file = tree.lookup(b"secret").unwrap();
    assert_eq!(file.refusal().map(|(code, _)| code), Some("files.encrypted"));
    let error = tree.open(&file, None).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, "files.encrypted"));
}

#[test]
fn what_else_is_readable_is_still_served() {
    let Some((image, _)) = image() else { return };
    let mut image = image.clone();
    let at = record_of(&image, "begun");
    image[at..at + 4].copy_from_slice(b"BAAD");
    let tree = tree(&image);
    let entries = tree.read_dir(&tree.root().unwrap()).unwrap();
    let broken: Vec<_> = entries.iter().filter(|entry| entry.problem().is_some()).collect();
    let [broken] = &broken[..] else { panic!("{broken:?}") };
    assert_eq!((broken.name(), broken.problem().unwrap().code()), (&b"begun"[..], "ntfs.record"));
    assert!(entries.len() > 10);
}

#[test]
fn a_table_of_files_in_many_pieces_is_whole() {
    let Some(mounted) = Mounted::new(8 * MIB, "512") else { return };
    let at = |name: String| mounted.at.join(name);
    let bytes = |number: usize| vec![number as u8; 1024];
    // The volume is full, and then has room for one record of the table here and there.
    let full = (0..10_000)
        .find(|number| std::fs::write(at(format!("f{number}")), bytes(*number)).is_err());
    let full = full.unwrap();
    for number in (0..full).step_by(2) {
        std::fs::remove_file(at(format!("f{number}"))).unwrap();
    }
    let empty =
        (0..2500).take_while(|number| std::fs::write(at(format!("e{number}")), b"").is_ok());
    let empty = empty.count();
    // The file without room stays, with less than it should have.
    std::fs::remove_file(at(format!("f{full}"))).ok();
    let image = mounted.finish();
    let kinds: Vec<u32> = {
        let boot = u64::from_le_bytes(image[48..56].try_into().unwrap()) as usize * 512;
        attributes(&image, boot).into_iter().map(|(kind, _)| kind).collect()
    };
    assert!(kinds.contains(&0x20), "the table has one record: {kinds:x?}, {full}, {empty}");
    let tree = tree(&image);
    let mut found = 0;
    for entry in tree.walk(&tree.root().unwrap()) {
        let entry = entry.unwrap();
        let name = std::str::from_utf8(entry.name()).unwrap();
        let number: usize = name[1..].parse().unwrap();
        let read = tree.open(&entry, None).unwrap().read_to_end(MIB).unwrap();
        match name.starts_with('f') {
            true => assert!(read == bytes(number), "{name}"),
            // The last one may have had no room for its name.
            false => assert!(read.is_empty() && number <= empty, "{name}"),
        }
        found += 1;
    }
    assert!(found >= full / 2 + empty, "{found} of {} files", full / 2 + empty);
}
