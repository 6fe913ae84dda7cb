//! Error reports about unusable parents, invalid links and files of other formats, and the ways to
//! recover.

use std::fs;
use std::path::{Path, PathBuf};

use avhdx::ops::{Check, Reparent, Severity};
use avhdx::{Budget, Disk, Error, ErrorKind, Linkage, OpenOptions, PathSource, Result, VhdxFile};
use avhdx_testkit::build::{
    Block, Contents, Data, IS_REQUIRED, IS_USER, IS_VIRTUAL_DISK, Image, Item,
};
use tempfile::TempDir;
use uuid::{Uuid, uuid};

use crate::common::MIB;
use crate::common::disk::reads_as;

/// A base, and a child whose locator is edited by `locator`.
struct Pair {
    folder: TempDir,
    base: Image,
    flat: Vec<u8>,
}

impl Pair {
    fn new(change: impl FnOnce(&mut Image)) -> Self {
        let mut base = Image::dynamic(4 * MIB);
        base.put(0, Block::full(Data::Pattern(1)));
        base.put(2, Block::full(Data::Pattern(2)));
        let mut child = base.new_child();
        child.put(0, Block::partial_runs(Data::Pattern(3), &[(8, 16)]));
        child.put(1, Block::full(Data::Pattern(4)));
        child.parent_path(r".\base.vhdx");
        let flat = child.flat(Some(&base.flat(None)));
        change(&mut child);
        let folder = tempfile::tempdir().unwrap();
        base.write_to(folder.path().join("base.vhdx"));
        child.write_to(folder.path().join("tip.avhdx"));
        Self { folder, base, flat }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn base(&self) -> PathBuf {
        self.path("base.vhdx")
    }

    fn tip(&self) -> PathBuf {
        self.path("tip.avhdx")
    }

    fn refused(&self) -> Error {
        OpenOptions::new().open(self.tip()).expect_err("no parent to be had")
    }
}

/// The codes of errors and warnings with the files they concern.
fn findings(path: &Path) -> Vec<(String, &'static str)> {
    let report = Check::new().run(path).unwrap();
    let told = report.findings.iter().filter(|f| f.severity <= Severity::Warning);
    told.map(|f| {
        let name = Path::new(&f.layer).file_name().unwrap().to_string_lossy().into_owned();
        (name, f.code)
    })
    .collect()
}

#[test]
fn a_parent_in_trouble_tells_its_own_error() {
    type Harm = fn(&Pair);
    let harms: [(&str, Harm); 7] = [
        ("damaged headers", |pair| {
            let mut bytes = fs::read(pair.base()).unwrap();
            bytes[(64 << 10) + 8] ^= 1;
            bytes[(128 << 10) + 8] ^= 1;
            fs::write(pair.base(), bytes).unwrap();
        }),
        ("damaged regions", |pair| {
            let mut bytes = fs::read(pair.base()).unwrap();
            bytes[192 << 10] ^= 1;
            bytes[256 << 10] ^= 1;
            fs::write(pair.base(), bytes).unwrap();
        }),
        ("cut within its headers", |pair| {
            let bytes = fs::read(pair.base()).unwrap();
            fs::write(pair.base(), &bytes[..100 << 10]).unwrap();
        }),
        ("cut within its metadata", |pair| {
            let bytes = fs::read(pair.base()).unwrap();
            fs::write(pair.base(), &bytes[..5 << 19]).unwrap();
        }),
        ("empty", |pair| fs::write(pair.base(), "").unwrap()),
        ("a folder", |pair| {
            fs::remove_file(pair.base()).unwrap();
            fs::create_dir(pair.base()).unwrap();
        }),
        ("another version", |pair| {
            let mut base = pair.base.clone();
            base.headers.iter_mut().flatten().for_each(|header| header.version = 2);
            base.write_to(pair.base());
        }),
    ];
    for (what, harm) in harms {
        let pair = Pair::new(|_| {});
        harm(&pair);
        let own = OpenOptions::new().open(pair.base()).unwrap_err();
        let told = pair.refused();
        assert_eq!((told.kind(), told.code()), (own.kind(), own.code()), "{what}: {told}");
        assert_eq!((told.offset(), told.section()), (own.offset(), own.section()), "{what}");
        assert_eq!(told.file(), pair.base().to_str(), "{what}: {told}");
        assert_eq!(told.child(), pair.tip().to_str(), "{what}: {told}");
        for part in [own.message(), "tip.avhdx"] {
            assert!(told.to_string().contains(part), "{what}: no {part:?} in {told}");
        }
        // Consent to another identity does not help if the file is not an image.
        let ignoring = OpenOptions::new().linkage(Linkage::Ignore).open(pair.tip()).unwrap_err();
        assert_eq!(ignoring.code(), own.code(), "{what}: {ignoring}");
        // The check does not report a changed parent, and names the file.
        let findings = findings(&pair.tip());
        let of_parent = ("base.vhdx".to_owned(), own.code());
        assert!(findings.contains(&of_parent), "{what}: {findings:?}");
        assert!(findings.iter().all(|(_, code)| *code != "parent.mismatch"), "{findings:?}");
    }
}

#[test]
fn a_missing_parent_quotes_every_path() {
    let pair = Pair::new(|child| {
        child.locator.set("relative_path", r"..\vm\Base.vhdx");
        child
            .locator
            .set("volume_path", r"\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\vm\b.vhdx");
        child.locator.set("absolute_win32_path", r"\\?\D:\vm\Base.vhdx");
    });
    fs::create_dir(pair.path("pool")).unwrap();
    fs::write(pair.path("pool/one"), "no image").unwrap();
    let source = PathSource::new()
        .file(pair.path("given.vhdx"))
        .map(r"D:\vm", pair.path("mapped"))
        .folder(pair.path("pool"));
    let error = OpenOptions::new().parents(source).open(pair.tip()).unwrap_err();
    assert_eq!(error.code(), "parent.missing");
    let found = error.found().unwrap();
    for part in [
        r#"relative_path "..\\vm\\Base.vhdx" (nothing at "#,
        r#"volume_path "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\vm\\b.vhdx" (no path of this machine)"#,
        r#"absolute_win32_path "\\\\?\\D:\\vm\\Base.vhdx" (nothing at "#,
        "given.vhdx",
        "mapped",
        "one file of folders searched",
    ] {
        assert!(found.contains(part), "no {part} in {found}");
    }
    let none = Pair::new(|child| {
        child.locator.remove("relative_path");
    });
    assert!(none.refused().found().unwrap().contains("no recorded path"));
}

/// A fault of a locator, its code, and the edit that causes it.
type BrokenLocator = (&'static str, &'static str, fn(&mut Image));

fn broken_locators() -> Vec<BrokenLocator> {
    fn units(image: &mut Image, key: &str, change: impl Fn(&str) -> String) {
        let pair = image.locator.pairs.iter_mut().find(|(found, _)| found == key).unwrap();
        pair.1 = change(&pair.1);
    }
    vec![
        ("no braces", "locator.linkage", |child| {
            units(child, "parent_linkage", |text| text.trim_matches(['{', '}']).to_owned());
        }),
        ("no GUID", "locator.linkage", |child| {
            units(child, "parent_linkage", |_| "my parent".to_owned());
        }),
        ("no linkage", "locator.linkage-missing", |child| {
            child.locator.remove("parent_linkage");
        }),
        ("a NUL behind the linkage", "locator.string", |child| {
            units(child, "parent_linkage", |text| format!("{text}\0"));
        }),
        ("a NUL behind a path", "locator.string", |child| {
            units(child, "relative_path", |text| format!("{text}\0"));
        }),
        ("NULs behind a key", "locator.string", |child| {
            child.locator.pairs[0].0 += "\0\0";
        }),
        ("an unknown type", "locator.type", |child| {
            child.locator.kind = Uuid::from_u128(7);
        }),
        ("more entries than there are", "locator.count", |child| {
            child.locator.count = Some(999);
        }),
        ("a key twice", "locator.duplicate", |child| {
            let twice = child.locator.pairs[0].clone();
            child.locator.pairs.push(twice);
        }),
        ("an empty locator", "locator.length", |child| {
            child.item("locator").contents = Contents::Bytes(Vec::new());
        }),
        ("no locator at all", "metadata.missing", |child| {
            child.metadata.items.retain(|item| item.name != "locator");
        }),
    ]
}

#[test]
fn broken_locators_are_read_by_consent_and_repaired() {
    for (what, code, breaking) in broken_locators() {
        let pair = Pair::new(breaking);
        let given = || PathSource::new().file(pair.base());
        // Strict by default, wherever the parent comes from.
        let strict = OpenOptions::new().parents(given()).open(pair.tip()).unwrap_err();
        assert_eq!(strict.code(), code, "{what}: {strict}");

        let options = OpenOptions::new().linkage(Linkage::Ignore).parents(given());
        let chain = options.open(pair.tip()).unwrap_or_else(|error| panic!("{what}: {error}"));
        reads_as(&chain, &pair.flat);
        let warnings = chain.warnings();
        let told = warnings.iter().find(|warning| warning.code == code);
        let told = told.unwrap_or_else(|| panic!("{what}: {warnings:?}")).to_string();
        assert!(told.contains("tip.avhdx") && told.contains("LOCATOR IS BROKEN"), "{told}");
        drop(chain);

        // A proof needs the link; without a proof it is rewritten.
        let reparent = || Reparent::new(pair.base());
        let refused = reparent().run(pair.tip()).unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused}");
        let forecast = reparent().unproven(true).forecast(pair.tip());
        forecast.unwrap_or_else(|error| panic!("{what}: {error}"));
        let done = reparent().unproven(true).run(pair.tip());
        let done = done.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(done.linkage, pair.base.data_write_guid(), "{what}");
        assert!(done.warnings.iter().any(|w| w.code == code), "{what}: {:?}", done.warnings);
        let mended = OpenOptions::new().open(pair.tip());
        let mended = mended.unwrap_or_else(|error| panic!("{what}: {error}"));
        reads_as(&mended, &pair.flat);
        assert_eq!(mended.warnings(), [], "{what}");
        drop(mended);
        assert_eq!(findings(&pair.tip()), [], "{what}");
    }
}

#[test]
fn a_locator_without_any_path_is_read_and_repaired() {
    let pair = Pair::new(|child| {
        child.locator.remove("relative_path");
    });
    let options = OpenOptions::new().parents(PathSource::new().file(pair.base()));
    reads_as(&options.open(pair.tip()).unwrap(), &pair.flat);
    Reparent::new(pair.base()).unproven(true).run(pair.tip()).unwrap();
    reads_as(&OpenOptions::new().open(pair.tip()).unwrap(), &pair.flat);
}

/// An identity that can be parsed is used even if its form is wrong.
#[test]
fn consent_does_not_pass_by_the_parent_that_has_the_identity() {
    let pair = Pair::new(|child| {
        let bare = child.locator.pairs.iter().find(|(key, _)| key == "parent_linkage").unwrap();
        let bare = bare.1.trim_matches(['{', '}']).to_owned();
        child.locator.set("parent_linkage", bare);
    });
    let mut stranger = pair.base.clone();
    stranger.reseed(77);
    stranger.write_to(pair.path("stranger.vhdx"));
    let source = PathSource::new().file(pair.path("stranger.vhdx"));
    let chain = OpenOptions::new().linkage(Linkage::Ignore).parents(source).open(pair.tip());
    let chain = chain.unwrap();
    assert_eq!(chain.layers()[1].path, Some(pair.base()));
    let codes: Vec<_> = chain.warnings().iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["locator.linkage"]);
}

#[test]
fn a_child_with_a_broken_locator_is_not_cut_off() {
    for what in ["no braces", "a NUL behind the linkage", "a NUL behind a path"] {
        let (_, _, breaking) = broken_locators().into_iter().find(|(n, ..)| *n == what).unwrap();
        let pair = Pair::new(breaking);
        let refused = OpenOptions::new().writable(true).open(pair.base()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HasChildren, "{what}: {refused}");
        assert!(refused.found().unwrap().contains("tip.avhdx"), "{refused}");
    }
}

/// Shared layers are not passed from a chain that tolerates a broken link to one that does not.
#[test]
fn the_consent_of_one_chain_does_not_apply_to_another() {
    let pair = Pair::new(|child| {
        child.locator.remove("parent_linkage");
    });
    let tip = VhdxFile::open(pair.base()).unwrap().geometry();
    let middle = {
        let bytes = fs::read(pair.tip()).unwrap();
        fs::write(pair.path("middle.avhdx"), bytes).unwrap();
        let image = OpenOptions::new().linkage(Linkage::Ignore);
        image.open_image(pair.path("middle.avhdx")).unwrap().data_write_guid()
    };
    let mut top = Image::child(tip.size, middle);
    top.parent_path(r".\middle.avhdx");
    top.write_to(pair.path("top.avhdx"));
    let budget = Budget::new(1 << 20);
    let options = OpenOptions::new().budget(budget);
    let lenient = options.clone().linkage(Linkage::Ignore).open(pair.path("top.avhdx")).unwrap();
    reads_as(&lenient, &pair.flat);
    let strict: Result<_> = options.open(pair.path("top.avhdx"));
    assert_eq!(strict.unwrap_err().code(), "locator.linkage-missing");
    // And it never gives the right to write.
    let writing =
        options.linkage(Linkage::Ignore).writable(true).orphan_children(true).open(pair.tip());
    assert_eq!(writing.unwrap_err().code(), "locator.linkage-missing");
}

const CHS: Uuid = uuid!("da02d7bc-3d3a-423c-ac88-2a36ab21479b");
const PMEM: Uuid = uuid!("10e1ae8a-4b7e-4169-a40f-cd70de928393");
const INCOMPLETE: Uuid = uuid!("71cc85f0-1b69-4e28-9558-c3bf83ae75d3");

#[test]
fn items_that_windows_writes_are_known_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    let mut image = Image::dynamic(4 * MIB);
    image.put(1, Block::full(Data::Pattern(1)));
    let flags = IS_REQUIRED | IS_VIRTUAL_DISK;
    let item = |id, flags, len| Item::new("windows", id, flags, Contents::Bytes(vec![1; len]));
    image.metadata.items.push(item(CHS, flags, 12));
    image.metadata.items.push(item(PMEM, IS_REQUIRED, 28));
    image.write_to(&path);
    let chain = OpenOptions::new().open(&path).unwrap();
    reads_as(&chain, &image.flat(None));
    let names = |image: &VhdxFile| {
        let items = image.info().metadata;
        items.into_iter().map(|item| (item.guid, item.name)).collect::<Vec<_>>()
    };
    let found = names(&chain.tip());
    assert!(found.contains(&(CHS, Some("Cylinders, Heads and Sectors"))), "{found:?}");
    assert!(found.contains(&(PMEM, Some("Persistent Memory Labels"))), "{found:?}");
    assert_eq!(findings(&path), []);
    // Items that describe the disk are copied to a child; items of the file are not.
    let child = folder.path().join("b.avhdx");
    avhdx::CreateOptions::child_of(&chain.tip()).unwrap().create(&child).unwrap();
    let of_child = names(&VhdxFile::open(&child).unwrap());
    assert!(of_child.iter().any(|(guid, _)| *guid == CHS), "{of_child:?}");
    assert!(of_child.iter().all(|(guid, _)| *guid != PMEM), "{of_child:?}");
    drop(chain);
    fs::remove_file(&child).unwrap();
    // It can be written to like any other image.
    let chain = OpenOptions::new().writable(true).open(&path).unwrap();
    chain.write_at(&[7; 4096], 0).unwrap();
    chain.close().unwrap();
    drop(chain);
    assert!(names(&VhdxFile::open(&path).unwrap()).contains(&found[5]));

    // An image that was never completed is refused, however the item is flagged.
    for flags in [IS_REQUIRED, 0] {
        let mut image = image.clone();
        image.metadata.items.push(Item::new("mark", INCOMPLETE, flags, Contents::Bytes(vec![])));
        image.write_to(&path);
        let error = OpenOptions::new().open(&path).unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Unsupported, "metadata.incomplete-file")
        );
        assert!(error.to_string().contains("Incomplete File"), "{error}");
        assert!(findings(&path).contains(&("a.vhdx".into(), "metadata.incomplete-file")));
    }
    // A user's item is not one of Windows, whatever its GUID.
    image.metadata.items.push(Item::new("user", INCOMPLETE, IS_USER, Contents::Bytes(vec![])));
    image.write_to(&path);
    reads_as(&OpenOptions::new().open(&path).unwrap(), &image.flat(None));
    // And unknown items are refused as before.
    let mut unknown = image.clone();
    unknown.metadata.items.push(item(Uuid::from_u128(3), IS_REQUIRED, 4));
    unknown.write_to(&path);
    assert_eq!(OpenOptions::new().open(&path).unwrap_err().code(), "metadata.unknown-required");
}

#[test]
fn other_formats_are_named() {
    let padded = |start: &[u8], len: usize| {
        let mut bytes = start.to_vec();
        bytes.resize(len, 0);
        bytes
    };
    let with = |at: usize, part: &[u8]| {
        let mut bytes = vec![7; 100 << 10];
        bytes[at..at + part.len()].copy_from_slice(part);
        bytes
    };
    let footer = |mut bytes: Vec<u8>, len: usize| {
        let mut footer = b"conectix".to_vec();
        footer.resize(len, 0);
        bytes.extend(footer);
        bytes
    };
    let mbr = {
        let mut bytes = vec![0; 1 << 20];
        bytes[446] = 0x80;
        bytes[450] = 7;
        bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
        bytes
    };
    let gpt = {
        let mut bytes = mbr.clone();
        bytes[512..520].copy_from_slice(b"EFI PART");
        bytes
    };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("a qcow2 image", "foreign.qcow2", padded(b"QFI\xfb\0\0\0\x03", 1 << 16)),
        ("a qcow2 image", "foreign.qcow2", padded(b"QFI\xfb\0\0\0\x02", 104)),
        ("a VHD image", "foreign.vhd", padded(b"conectix\0\0\0\x02", 3072)),
        ("a VHD image", "foreign.vhd", footer(mbr.clone(), 512)),
        ("a VHD image", "foreign.vhd", footer(vec![0; 1 << 20], 511)),
        ("a VMDK image", "foreign.vmdk", padded(b"KDMV\x01\0\0\0", 1 << 16)),
        ("a VMDK image", "foreign.vmdk", padded(b"COWD\x01\0\0\0", 1 << 16)),
        (
            "the description of a VMDK",
            "foreign.vmdk-text",
            b"# Disk DescriptorFile\nversion=1\n".to_vec(),
        ),
        ("a VDI image", "foreign.vdi", with(0x40, b"\x7f\x10\xda\xbe")),
        ("an ISO 9660 image", "foreign.iso", with(0x8001, b"CD001\x01")),
        ("packed by gzip", "foreign.gzip", padded(b"\x1f\x8b\x08\0", 99)),
        ("a zip archive", "foreign.zip", padded(b"PK\x03\x04", 99)),
        ("packed by xz", "foreign.xz", padded(b"\xfd7zXZ\0", 99)),
        ("packed by zstd", "foreign.zstd", padded(b"\x28\xb5\x2f\xfd", 99)),
        ("a 7z archive", "foreign.7z", padded(b"7z\xbc\xaf\x27\x1c", 99)),
        ("starts with a partition table", "foreign.disk", mbr),
        ("starts with a GPT", "foreign.disk", gpt),
        ("starts with an NTFS volume", "foreign.disk", with(3, b"NTFS    ")),
        ("starts with an ext file system", "foreign.disk", with(0x438, b"\x53\xef")),
        ("an empty file", "foreign.empty", Vec::new()),
        ("a file of 700 bytes that holds nothing but zeros", "foreign.zeros", vec![0; 700]),
        ("a text file", "foreign.text", b"a letter to the editor".to_vec()),
        // Text in UTF-8 whose last character is cut where the look at it ends.
        ("a text file", "foreign.text", "a\u{e4}".repeat(3000).into_bytes()),
        ("an HTML page", "foreign.html", b"\xef\xbb\xbf\r\n<!doctype HTML>\n<p>".to_vec()),
        ("an HTML page", "foreign.html", b"<HTML lang=de>".to_vec()),
        ("no signature", "identifier.signature", b"a letter\0to the editor".to_vec()),
        ("no signature", "identifier.signature", b"a letter in Latin 1: \xe4.".to_vec()),
        ("no signature", "identifier.signature", with(510, &[0x55, 0xAA])),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("thing.vhdx");
    for (what, code, bytes) in cases {
        fs::write(&path, &bytes).unwrap();
        let refused = |error: Error| {
            assert_eq!((error.kind(), error.code()), (ErrorKind::NotVhdx, code), "{error}");
            assert!(error.message().contains(what), "{error}");
            assert_eq!(error.section(), Some("2.2.1"));
        };
        refused(VhdxFile::open(&path).unwrap_err());
        refused(OpenOptions::new().open(&path).unwrap_err());
        refused(Check::new().run(&path).unwrap_err());
        assert!(fs::read(&path).unwrap() == bytes);
    }
    // As much of a large file as is examined.
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    drop(file);
    let error = VhdxFile::open(&path).unwrap_err();
    assert_eq!(error.code(), "foreign.zeros", "{error}");
    let error = VhdxFile::open(folder.path()).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NotVhdx, "file.folder"));
    // A file whose zeros were only partly examined is not said to hold nothing else.
    let mut bytes = vec![0; 20 << 20];
    bytes[19 << 20] = 1;
    fs::write(&path, &bytes).unwrap();
    let error = VhdxFile::open(&path).unwrap_err();
    assert!(error.message().contains("starts with nothing but zeros"), "{error}");
    bytes[1 << 20] = 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(VhdxFile::open(&path).unwrap_err().code(), "identifier.signature");
}

#[test]
fn a_copy_that_ends_in_zeros_is_called_incomplete() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.vhdx");
    let mut image = Image::dynamic(4 << 20);
    image.put(1, Block::full(Data::Pattern(3)));
    image.write_to(&path);
    let whole = fs::read(&path).unwrap();
    let message = |zeros: std::ops::Range<usize>| {
        let mut bytes = whole.clone();
        bytes[zeros].fill(0);
        fs::write(&path, bytes).unwrap();
        let error = VhdxFile::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        error.message().to_owned()
    };
    for start in [64 << 10, 192 << 10] {
        let message = message(start..whole.len());
        assert!(
            message.starts_with("nothing but zeros from here to the end of the file, "),
            "{message}"
        );
    }
    // Zeros with data behind them are other damage.
    let message = message(64 << 10..1 << 20);
    assert!(!message.contains("copy"), "{message}");
}
