//! Where parents are searched for, which files are accepted as parents, and how others are reported.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use avhdx::storage::{Access, FileId, FileKind, FileStorage, Host, Stat, Storage};
use avhdx::{
    DiffChain, Disk, Error, ErrorKind, FoundBy, Linkage, OpenOptions, PathSource, Result, VhdxFile,
};
use avhdx_testkit::build::{Block, Data, Image, braced};
use uuid::Uuid;

use crate::common::disk::reads_as;
use crate::common::{MIB, Shelf, in_memory, memory};

/// A folder with a parent and a child in subfolders, and the contents of the child's disk.
struct Place {
    folder: tempfile::TempDir,
    base: Image,
    child: Image,
    flat: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let mut base = Image::dynamic(MIB);
        base.put(0, Block::full(Data::Pattern(1)));
        let mut child = base.new_child();
        child.put(0, Block::partial_runs(Data::Pattern(2), &[(5, 5)]));
        child.locator.remove("relative_path");
        let flat = child.flat(Some(&base.flat(None)));
        Self { folder: tempfile::tempdir().unwrap(), base, child, flat }
    }

    /// The child at its usual place, with one recorded path.
    fn with(key: &str, path: &str) -> Self {
        let mut place = Self::new();
        place.child.locator.set(key, path);
        place.write_child("child/tip.avhdx");
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// The path, with its folders created.
    fn room(&self, below: &str) -> PathBuf {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write_base(&self, below: &str) {
        self.base.write_to(self.room(below));
    }

    fn write_child(&self, below: &str) {
        self.child.write_to(self.room(below));
    }

    /// Another image in a place where the parent could be.
    fn write_stranger(&self, below: &str) -> Uuid {
        let mut stranger = self.base.clone();
        stranger.reseed(0x57);
        stranger.write_to(self.room(below));
        stranger.data_write_guid()
    }

    fn open(&self, source: PathSource) -> Result<DiffChain> {
        OpenOptions::new().parents(source).open(self.path("child/tip.avhdx"))
    }

    /// The chain opens and reads correctly, and the parent was found in this way at this place.
    fn finds(&self, source: PathSource, by: FoundBy, at: &str) {
        let chain = self.open(source).unwrap_or_else(|error| panic!("{error}"));
        let layers = chain.layers();
        assert_eq!(layers.len(), 2);
        assert_eq!((layers[0].found_by, layers[1].found_by), (None, Some(by)));
        let found = layers[1].path.as_ref().unwrap().canonicalize().unwrap();
        assert_eq!(found, self.path(at).canonicalize().unwrap());
        assert_eq!(chain.warnings(), []);
        reads_as(&chain, &self.flat);
    }

    fn refused(&self, source: PathSource) -> Error {
        self.open(source).expect_err("no parent to be found")
    }
}

fn paths() -> PathSource {
    PathSource::new()
}

#[test]
fn relative_paths() {
    for (recorded, at) in [
        (r".\parent.vhdx", "child/parent.vhdx"),
        ("parent.vhdx", "child/parent.vhdx"),
        (r"..\base\parent.vhdx", "base/parent.vhdx"),
        (r"..\.\base\..\base\\parent.vhdx", "base/parent.vhdx"),
        ("../base/parent.vhdx", "base/parent.vhdx"),
        (r"..\a/b\.\c d\wurzel ä.vhdx", "a/b/c d/wurzel ä.vhdx"),
        (r"sub\日本語.vhdx", "child/sub/日本語.vhdx"),
        (r".\name.with.dots", "child/name.with.dots"),
    ] {
        let place = Place::with("relative_path", recorded);
        place.write_base(at);
        place.finds(paths(), FoundBy::RelativePath, at);
    }
    // Writers other than Windows record paths in the form of their own system.
    let mut place = Place::new();
    place.write_base("elsewhere/parent.vhdx");
    let path = place.path("elsewhere/parent.vhdx");
    place.child.locator.set("relative_path", path.to_str().unwrap());
    place.write_child("child/tip.avhdx");
    if cfg!(unix) {
        place.finds(paths(), FoundBy::RelativePath, "elsewhere/parent.vhdx");
    }
}

#[test]
fn a_child_named_without_its_folder() {
    // `tip.avhdx` in the current folder has an empty parent path.
    let place = Place::with("relative_path", r".\PARENT.vhdx");
    place.write_base("child/parent.vhdx");
    if std::env::var_os("AVHDX_TEST_BARE_NAME").is_some() {
        let chain = DiffChain::open("tip.avhdx").unwrap();
        assert_eq!(chain.layers().len(), 2);
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "locate::a_child_named_without_its_folder"])
        .env("AVHDX_TEST_BARE_NAME", "1")
        .current_dir(place.path("child"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success() && said.contains("1 passed"), "{said}");
}

const VOLUME: &str = r"\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}";

#[test]
fn mapped_paths() {
    let volume = format!(r"{VOLUME}\vm\base\parent.vhdx");
    for (key, recorded, from, by) in [
        ("volume_path", &*volume, VOLUME, FoundBy::VolumePath),
        ("volume_path", &volume, &VOLUME.to_uppercase(), FoundBy::VolumePath),
        ("absolute_win32_path", r"\\?\D:\vm\base\parent.vhdx", r"D:\", FoundBy::AbsoluteWin32Path),
        ("absolute_win32_path", r"\\?\D:\vm\base\parent.vhdx", "d:", FoundBy::AbsoluteWin32Path),
        ("absolute_win32_path", r"d:\vm\base\parent.vhdx", r"\\?\D:", FoundBy::AbsoluteWin32Path),
        (
            "absolute_win32_path",
            r"\\?\UNC\server\share\vm\base\parent.vhdx",
            r"\\SERVER\Share",
            FoundBy::AbsoluteWin32Path,
        ),
        (
            "absolute_win32_path",
            r"\\server\share\vm\base\parent.vhdx",
            r"\\?\UNC\server\share",
            FoundBy::AbsoluteWin32Path,
        ),
    ] {
        let place = Place::with(key, recorded);
        place.write_base("mnt/vm/base/parent.vhdx");
        let error = place.refused(paths());
        assert_eq!(error.kind(), ErrorKind::ParentMissing, "without a mapping: {error}");
        place.finds(paths().map(from, place.path("mnt")), by, "mnt/vm/base/parent.vhdx");
    }
    // The longest mapping applies, in whatever order they were given; part of a name is not a folder.
    let place = Place::with("absolute_win32_path", r"\\?\D:\vm\base\parent.vhdx");
    place.write_base("right/base/parent.vhdx");
    place.write_stranger("wrong/vm/base/parent.vhdx");
    place.write_stranger("wrong/m/base/parent.vhdx");
    let (long, short) = ((r"D:\vm", place.path("right")), ("D:", place.path("wrong")));
    let part = (r"D:\v", place.path("wrong"));
    for order in [[&long, &short, &part], [&part, &short, &long]] {
        let source = order.into_iter().fold(paths(), |source, (from, to)| source.map(from, to));
        place.finds(source, FoundBy::AbsoluteWin32Path, "right/base/parent.vhdx");
    }
}

#[test]
fn paths_are_tried_in_their_order() {
    let mut place = Place::new();
    place.child.locator.set("absolute_win32_path", r"\\?\D:\parent.vhdx");
    place.child.locator.set("volume_path", format!(r"{VOLUME}\parent.vhdx"));
    place.child.locator.set("relative_path", r"..\relative\parent.vhdx");
    place.write_child("child/tip.avhdx");
    let source = || {
        let source = paths().map("D:", place.path("absolute")).map(VOLUME, place.path("volume"));
        source.folder(place.path("folder"))
    };
    place.write_base("folder/another name");
    place.finds(source(), FoundBy::FolderSearch, "folder/another name");
    place.write_base("folder/parent.vhdx");
    place.finds(source(), FoundBy::FolderName, "folder/parent.vhdx");
    place.write_base("absolute/parent.vhdx");
    place.finds(source(), FoundBy::AbsoluteWin32Path, "absolute/parent.vhdx");
    place.write_base("volume/parent.vhdx");
    place.finds(source(), FoundBy::VolumePath, "volume/parent.vhdx");
    place.write_base("relative/parent.vhdx");
    place.finds(source(), FoundBy::RelativePath, "relative/parent.vhdx");
    place.write_base("given.vhdx");
    place.finds(source().file(place.path("given.vhdx")), FoundBy::Given, "given.vhdx");
    // Another image in a preferred place does not keep the parent from being found.
    place.write_stranger("given.vhdx");
    place.write_stranger("relative/parent.vhdx");
    std::fs::write(place.path("volume/parent.vhdx"), "no image").unwrap();
    std::fs::remove_file(place.path("absolute/parent.vhdx")).unwrap();
    std::fs::create_dir(place.path("absolute/parent.vhdx")).unwrap();
    let given = source().file(place.path("given.vhdx"));
    place.finds(given, FoundBy::FolderName, "folder/parent.vhdx");
}

#[test]
fn names_that_differ_in_case() {
    let place = Place::with("relative_path", r"..\Base\Wurzel Ä.VHDX");
    place.write_base("base/wurzel ä.vhdx");
    place.finds(paths(), FoundBy::RelativePath, "base/wurzel ä.vhdx");
    if !cfg!(target_os = "linux") {
        return; // elsewhere two such names may be one
    }
    // Of two candidates the identity decides, in one folder or in two.
    for (other, first) in
        [("base/WURZEL Ä.vhdx", true), ("base/wurzel Ä.VHDX", true), ("BASE/wurzel ä.vhdx", false)]
    {
        let place = Place::with("relative_path", r"..\Base\Wurzel Ä.VHDX");
        let (right, wrong) =
            if first { (other, "base/wurzel ä.vhdx") } else { ("base/wurzel ä.vhdx", other) };
        place.write_base(right);
        place.write_stranger(wrong);
        place.finds(paths(), FoundBy::RelativePath, right);
        std::fs::remove_file(place.path(right)).unwrap();
        assert_eq!(place.refused(paths()).kind(), ErrorKind::ParentMismatch);
    }
    // The exact name is preferred to all others.
    let place = Place::with("relative_path", r"..\base\parent.vhdx");
    place.write_base("base/Parent.vhdx");
    place.write_stranger("base/parent.vhdx");
    let error = place.refused(paths());
    assert_eq!(error.kind(), ErrorKind::ParentMismatch);
    assert!(error.file().unwrap().ends_with("base/parent.vhdx"), "{error}");
    // With mappings and folders, too.
    let place = Place::with("absolute_win32_path", r"\\?\D:\VM\PARENT.VHDX");
    place.write_base("mnt/vm/parent.vhdx");
    place.finds(
        paths().map("D:", place.path("mnt")),
        FoundBy::AbsoluteWin32Path,
        "mnt/vm/parent.vhdx",
    );
    place.finds(paths().folder(place.path("mnt/vm")), FoundBy::FolderName, "mnt/vm/parent.vhdx");
}

#[cfg(unix)]
#[test]
fn a_child_behind_a_link() {
    let place = Place::with("relative_path", r".\parent.vhdx");
    std::fs::rename(place.path("child"), place.path("real")).unwrap();
    std::os::unix::fs::symlink("../real/tip.avhdx", place.room("child/tip.avhdx")).unwrap();
    place.write_base("real/parent.vhdx");
    place.finds(paths(), FoundBy::RelativePath, "real/parent.vhdx");
    // The folder that holds the child comes first, whatever path it was opened by; then the folder of that path.
    place.write_base("child/parent.vhdx");
    place.finds(paths(), FoundBy::RelativePath, "real/parent.vhdx");
    let chain = place.open(paths()).unwrap();
    let tip = chain.tip();
    assert_eq!(tip.path(), Some(&*place.path("real/tip.avhdx").canonicalize().unwrap()));
    assert_eq!(tip.via(), Some(&*place.path("child/tip.avhdx")));
    assert_eq!(tip.name(), tip.path().unwrap().display().to_string());
    place.write_stranger("real/parent.vhdx");
    place.finds(paths(), FoundBy::RelativePath, "child/parent.vhdx");
    // The parent may be a link, too.
    let place = Place::with("relative_path", r".\parent.vhdx");
    place.write_base("pool/0001");
    std::os::unix::fs::symlink("../pool/0001", place.path("child/parent.vhdx")).unwrap();
    place.finds(paths(), FoundBy::RelativePath, "pool/0001");
}

#[test]
fn a_child_without_a_path() {
    let place = Place::with("relative_path", r".\parent.vhdx");
    place.write_base("child/parent.vhdx");
    let child = || {
        let file = std::fs::File::open(place.path("child/tip.avhdx")).unwrap();
        OpenOptions::new()
            .open_file(Arc::new(FileStorage::from_file(file, "descriptor 7")))
            .unwrap()
    };
    assert_eq!((child().name(), child().path()), ("descriptor 7", None));
    let error = OpenOptions::new().open_chain(child()).unwrap_err();
    assert_eq!((error.kind(), error.file()), (ErrorKind::ParentMissing, Some("descriptor 7")));
    for source in
        [paths().folder(place.path("child")), paths().file(place.path("child/parent.vhdx"))]
    {
        let chain = OpenOptions::new().parents(source).open_chain(child()).unwrap();
        reads_as(&chain, &place.flat);
    }
}

#[test]
fn a_missing_parent() {
    let place = Place::with("relative_path", r"..\base\parent.vhdx");
    let error = place.refused(paths());
    assert_eq!((error.kind(), error.code()), (ErrorKind::ParentMissing, "parent.missing"));
    assert!(error.file().unwrap().ends_with("tip.avhdx"), "{error}");
    assert!(error.found().unwrap().contains("parent.vhdx"), "where it was looked for: {error}");
    let guid = place.base.data_write_guid().to_string();
    assert!(error.expected().unwrap().contains(&guid), "{error}");
    assert!(error.offset().is_some() && error.section().is_some());
    // No path valid on this machine; an empty folder; a folder that does not exist; a folder of other images.
    let place = Place::with("absolute_win32_path", r"\\?\D:\parent.vhdx");
    std::fs::create_dir(place.path("empty")).unwrap();
    place.write_stranger("strangers/other.vhdx");
    std::fs::write(place.path("strangers/text"), "no image").unwrap();
    for source in [
        paths(),
        paths().folder(place.path("empty")),
        paths().folder(place.path("none")),
        paths().folder(place.path("strangers")),
        paths().file(place.path("none")),
    ] {
        assert_eq!(place.refused(source).kind(), ErrorKind::ParentMissing);
    }
    // Both linkages are reported if there are two.
    let mut place = Place::with("relative_path", r"..\base\parent.vhdx");
    place.child.locator.set("parent_linkage2", braced(Uuid::from_u128(77)));
    place.write_child("child/tip.avhdx");
    let error = place.refused(paths());
    assert!(error.expected().unwrap().contains(&Uuid::from_u128(77).to_string()), "{error}");
}

/// Everything that an error could reveal.
fn everything_said(error: &Error) -> String {
    let mut said = format!("{error}\n{error:?}\n{error:#?}\n{}\n{}", error.message(), error.code());
    for part in [error.file(), error.found(), error.expected(), error.section()] {
        said += &format!("\n{part:?}");
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        said += &format!("\n{cause}\n{cause:?}");
        source = cause.source();
    }
    said
}

/// Nothing about a file that is not the parent is revealed: its contents may be confidential, and with its
/// identity a forged child could read it.
#[test]
fn strangers_in_the_parents_place() {
    let place = Place::with("relative_path", r"..\base\parent.vhdx");
    let expected = place.base.data_write_guid();
    let path = place.room("base/parent.vhdx");
    let mut images = Vec::new();
    let mut stranger = place.base.clone();
    stranger.reseed(0x57);
    images.push(stranger.clone());
    // Damaged, of another version, with a log, or a child itself: it is above all not the parent.
    let mut broken = stranger.clone();
    broken.region_tables = [None, None];
    images.push(broken);
    let mut broken = stranger.clone();
    broken.headers.iter_mut().flatten().for_each(|header| header.version = 0x3039);
    images.push(broken);
    let mut pending = stranger.clone();
    pending.set_log_guid(Uuid::from_u128(0xA1B2_C3D4));
    images.push(pending);
    let mut equal = stranger.clone();
    equal.headers[0].as_mut().unwrap().sequence_number = 2;
    equal.headers[1].as_mut().unwrap().sequence_number = 2;
    equal.headers[1].as_mut().unwrap().data_write_guid = Uuid::from_u128(0xA1B2_C3D4);
    images.push(stranger.new_child());
    // It is unknown which of its headers is current: it may be the parent, and is reported as damaged.
    images.push(equal);
    let riddle = images.len() - 1;
    for (n, image) in images.iter().enumerate() {
        image.write_to(&path);
        let error = place.refused(paths());
        match n == riddle {
            true => assert_eq!(error.code(), "header.same-sequence"),
            false => assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::ParentMismatch, "parent.mismatch")
            ),
        }
        let said = everything_said(&error);
        assert!(said.contains(&*path.to_string_lossy()) || said.contains("parent.vhdx"), "{said}");
        assert!(said.contains(&expected.to_string()), "{said}");
        for header in image.headers.iter().flatten() {
            for guid in [header.data_write_guid, header.file_write_guid, header.log_guid] {
                let forms =
                    [guid.to_string(), guid.simple().to_string(), format!("{:?}", guid.as_bytes())];
                for form in forms.into_iter().filter(|_| !guid.is_nil()) {
                    assert!(!said.to_lowercase().contains(&form), "{form} in {said}");
                }
            }
        }
        for secret in ["12345", "3039", "region", "version", "checksum", "testkit"] {
            assert!(!said.contains(secret), "{secret} in {said}");
        }
    }
    // Short and long files that are not images.
    let cut = format!("vhdxfile{}", "\0 secret ".repeat(70));
    for (contents, kind, found) in [
        ("root:x:0:0:", ErrorKind::NotVhdx, "other bytes"),
        (&"top secret ".repeat(100_000), ErrorKind::NotVhdx, "other bytes"),
        ("", ErrorKind::NotVhdx, "other bytes"),
        // How much there is, as in any error about a file that ends too early.
        ("vhdxfile secret", ErrorKind::Damaged, "15 bytes"),
        (&cut, ErrorKind::Damaged, "0 bytes"),
    ] {
        std::fs::write(&path, contents).unwrap();
        let error = place.refused(paths());
        assert_eq!(error.kind(), kind);
        let said = everything_said(&error);
        assert!(said.contains("parent.vhdx") && said.contains(&expected.to_string()), "{said}");
        for secret in ["root", "secret", "x:0", "1100000"] {
            assert!(!said.contains(secret), "{secret} in {said}");
        }
        // The kind of file, and nothing that it holds.
        assert_eq!(error.found(), Some(found));
    }
    // Faults of the parent itself may be reported, because its identity matches.
    let mut broken = place.base.clone();
    broken.region_tables = [None, None];
    broken.write_to(&path);
    let error = place.refused(paths());
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "region.signature"));
}

/// Runs in a thread of its own, so that a hang is a failure.
fn in_time<R: Send + 'static>(what: &str, run: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(run()));
    receiver.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{what} hangs"))
}

#[cfg(unix)]
#[test]
fn parents_that_are_not_regular_files() {
    type Make = fn(&Path);
    let make: [(&str, Make); 6] = [
        ("a FIFO", |path| {
            let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
            assert!(made.success());
        }),
        ("a folder", |path| std::fs::create_dir(path).unwrap()),
        ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
        ("a terminal", |path| std::os::unix::fs::symlink("/dev/tty", path).unwrap()),
        ("a socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ("a link to itself", |path| std::os::unix::fs::symlink(path, path).unwrap()),
    ];
    for (what, make) in make {
        for linkage in [Linkage::Verify, Linkage::Ignore] {
            let place = Place::with("relative_path", r"..\base\parent.vhdx");
            make(&place.room("base/parent.vhdx"));
            let tip = place.path("child/tip.avhdx");
            let given = paths().file(place.path("base/parent.vhdx"));
            let folder = paths().folder(place.path("base"));
            for source in [paths(), given, folder] {
                let options = OpenOptions::new().linkage(linkage).parents(source);
                let tip = tip.clone();
                let error = in_time(what, move || options.open(tip).unwrap_err());
                let text = error.to_string();
                match what {
                    "a link to itself" => assert_eq!(error.kind(), ErrorKind::Io, "{text}"),
                    "a folder" => assert_eq!(error.code(), "file.folder", "{text}"),
                    "a terminal" => assert!(text.contains("this is a device"), "{text}"),
                    _ => {
                        assert_eq!(error.code(), "file.not-regular", "{what}: {text}");
                        assert!(text.contains(&format!("this is {what}")), "{text}");
                    }
                }
                assert!(text.contains("parent.vhdx"), "{text}");
            }
        }
    }
    // Other entries of a searched folder do not matter.
    let place = Place::with("absolute_win32_path", r"\\?\D:\parent.vhdx");
    for (n, (_, make)) in make.into_iter().enumerate() {
        make(&place.room(&format!("pool/{n}")));
    }
    place.write_base("pool/parent");
    place.finds(paths().folder(place.path("pool")), FoundBy::FolderSearch, "pool/parent");
}

#[test]
fn a_nil_identity_matches_nothing() {
    let mut place = Place::with("relative_path", r".\parent.vhdx");
    place.base.set_data_write_guid(Uuid::nil());
    place.write_base("child/parent.vhdx");
    for key in ["parent_linkage", "parent_linkage2"] {
        place.child.locator.set(key, braced(Uuid::nil()));
        place.write_child("child/tip.avhdx");
        assert_eq!(place.refused(paths()).kind(), ErrorKind::ParentMismatch, "{key}");
    }
    let link =
        VhdxFile::open(place.path("child/tip.avhdx")).unwrap().parent_link().unwrap().unwrap();
    assert!(!link.accepts(Uuid::nil()));
}

#[test]
fn linkage_ignored_by_name() {
    let place = Place::with("relative_path", r".\parent.vhdx");
    place.write_stranger("child/parent.vhdx");
    assert_eq!(place.refused(paths()).kind(), ErrorKind::ParentMismatch);
    let open = |source| {
        let options = OpenOptions::new().linkage(Linkage::Ignore).parents(source);
        options.open(place.path("child/tip.avhdx"))
    };
    let chain = open(paths()).unwrap();
    reads_as(&chain, &place.flat);
    let warnings = chain.warnings();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].code, "parent.linkage-ignored");
    assert_eq!(warnings[0].layer, Some(chain.layers()[0].id));
    assert_eq!(warnings[0].file, chain.layers()[0].name);
    for part in ["IGNORED", "tip.avhdx", "parent.vhdx"] {
        assert!(warnings[0].to_string().contains(part), "{}", warnings[0]);
    }
    assert_eq!(chain.write_at(&[0], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    // The parent with the right identity is preferred, wherever it is, and then nothing is ignored.
    place.write_base("pool/anything");
    let chain = open(paths().folder(place.path("pool"))).unwrap();
    assert_eq!(chain.layers()[1].found_by, Some(FoundBy::FolderSearch));
    assert_eq!(chain.warnings(), []);
    // Other images in a searched folder are never accepted, nor are files that are not images.
    std::fs::remove_file(place.path("child/parent.vhdx")).unwrap();
    std::fs::remove_file(place.path("pool/anything")).unwrap();
    place.write_stranger("pool/stranger");
    let error = open(paths().folder(place.path("pool"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
    std::fs::write(place.path("child/parent.vhdx"), "no image").unwrap();
    assert_eq!(open(paths()).unwrap_err().kind(), ErrorKind::NotVhdx);
    // What cannot be read is refused, whether or not the linkage is ignored.
    let mut other = place.base.clone();
    other.reseed(3).logical_sector = 4096;
    other.write_to(place.path("child/parent.vhdx"));
    assert_eq!(open(paths()).unwrap_err().code(), "chain.sector-size");
}

#[test]
fn parents_confined_to_folders() {
    for (recorded, at) in [
        (r"..\outside\parent.vhdx", "outside/parent.vhdx"),
        (r".\sub\..\..\outside\parent.vhdx", "outside/parent.vhdx"),
        (r"..\childish\parent.vhdx", "childish/parent.vhdx"),
        (r"..\..\parent.vhdx", "../parent.vhdx"),
    ] {
        let place = Place::with("relative_path", recorded);
        std::fs::create_dir(place.path("child/sub")).unwrap();
        let confined = || paths().confined_to(place.path("child"));
        let missing = place.refused(confined());
        assert_eq!(missing.kind(), ErrorKind::ParentDenied, "{recorded}: {missing}");
        if !at.starts_with("..") {
            // Whether a file exists there is not revealed either.
            place.write_base(at);
            let there = place.refused(confined());
            assert_eq!(there.kind(), ErrorKind::ParentDenied);
            assert_eq!(there.to_string(), missing.to_string());
            let folder = place.path(at).parent().unwrap().to_path_buf();
            place.finds(confined().confined_to(folder), FoundBy::RelativePath, at);
            place.finds(paths().confined_to(place.folder.path()), FoundBy::RelativePath, at);
            place.finds(paths(), FoundBy::RelativePath, at);
        }
    }
    // By another spelling, by a mapping, by a file or folder that the caller names.
    let mut place = Place::new();
    place.write_base("outside/parent.vhdx");
    let outside = place.path("outside/parent.vhdx");
    place.child.locator.set("relative_path", outside.to_str().unwrap());
    place.write_child("child/tip.avhdx");
    let confined = || paths().confined_to(place.path("child"));
    if cfg!(unix) {
        assert_eq!(place.refused(confined()).kind(), ErrorKind::ParentDenied);
    }
    assert_eq!(place.refused(confined().file(&outside)).kind(), ErrorKind::ParentDenied);
    let place = Place::with("absolute_win32_path", r"\\?\D:\..\outside\parent.vhdx");
    place.write_base("outside/parent.vhdx");
    std::fs::create_dir(place.path("inside")).unwrap();
    let mapped = paths().map("D:", place.path("inside"));
    place.finds(mapped.clone(), FoundBy::AbsoluteWin32Path, "outside/parent.vhdx");
    let error = place.refused(mapped.confined_to(place.path("inside")));
    assert_eq!((error.kind(), error.code()), (ErrorKind::ParentDenied, "parent.denied"));
    assert!(error.found().is_some() && error.expected().is_some(), "{error}");
    let searched = paths().folder(place.path("outside")).confined_to(place.path("inside"));
    assert_eq!(place.refused(searched).kind(), ErrorKind::ParentDenied);
}

#[test]
fn names_of_drives_machines_and_streams_are_followed_only_where_they_are_mapped() {
    for (recorded, at) in [
        (r"D:\vm\parent.vhdx", "child/D:/vm/parent.vhdx"),
        (r"D:parent.vhdx", "child/D:parent.vhdx"),
        (r".\D:\parent.vhdx", "child/D:/parent.vhdx"),
        (r"\\server\share\parent.vhdx", "child/server/share/parent.vhdx"),
        (r"\\?\UNC\server\share\parent.vhdx", "child/server/share/parent.vhdx"),
        (r".\parent.vhdx:stream", "child/parent.vhdx:stream"),
    ] {
        let place = Place::with("relative_path", recorded);
        // On Unix a file can have such a name, but it is refused all the same because of other systems.
        if cfg!(unix) {
            place.write_base(at);
        }
        let error = place.refused(paths());
        assert_eq!(error.kind(), ErrorKind::ParentDenied, "{recorded}: {error}");
        assert_eq!(error.code(), "parent.leads-away", "{recorded}: {error}");
        // The caller knows the folder, and may name it.
        place.write_base("inside/parent.vhdx");
        let mapped = paths()
            .map(r"D:\vm", place.path("inside"))
            .map(r"\\server\share", place.path("inside"));
        match recorded.ends_with(r"vm\parent.vhdx") || recorded.contains("server") {
            true => place.finds(mapped, FoundBy::RelativePath, "inside/parent.vhdx"),
            false => {
                assert_eq!(place.refused(mapped).kind(), ErrorKind::ParentDenied, "{recorded}")
            }
        }
        let folder = paths().folder(place.path("inside"));
        assert!(place.open(folder).is_ok(), "{recorded}");
    }
    // A mapping does not make them acceptable.
    let place = Place::with("absolute_win32_path", r"D:\vm\E:\parent.vhdx");
    place.write_base("inside/E:/parent.vhdx");
    let mapped = paths().map(r"D:\vm", place.path("inside"));
    assert_eq!(place.refused(mapped).kind(), ErrorKind::ParentDenied);
}

#[cfg(unix)]
#[test]
fn links_that_lead_out_of_their_folder() {
    use std::os::unix::fs::symlink;
    let place = Place::with("relative_path", r".\parent.vhdx");
    place.write_base("outside/parent.vhdx");
    let confined = || paths().confined_to(place.path("child"));
    symlink("../outside/parent.vhdx", place.path("child/parent.vhdx")).unwrap();
    assert_eq!(place.refused(confined()).kind(), ErrorKind::ParentDenied);
    place.finds(paths(), FoundBy::RelativePath, "outside/parent.vhdx");
    // A link that stays inside is accepted.
    std::fs::rename(place.path("outside/parent.vhdx"), place.path("child/real.vhdx")).unwrap();
    std::fs::remove_file(place.path("child/parent.vhdx")).unwrap();
    symlink("real.vhdx", place.path("child/parent.vhdx")).unwrap();
    place.finds(confined(), FoundBy::RelativePath, "child/real.vhdx");
    // A folder on the way is a link.
    let place = Place::with("relative_path", r".\sub\parent.vhdx");
    place.write_base("outside/parent.vhdx");
    symlink("../outside", place.path("child/sub")).unwrap();
    let confined = || paths().confined_to(place.path("child"));
    assert_eq!(place.refused(confined()).kind(), ErrorKind::ParentDenied);
    // `..` after a link leads elsewhere than it seems.
    let place = Place::with("relative_path", r".\sub\..\parent.vhdx");
    place.write_base("outside/parent.vhdx");
    std::fs::create_dir(place.path("outside/deep")).unwrap();
    symlink("../outside/deep", place.path("child/sub")).unwrap();
    let confined = || paths().confined_to(place.path("child"));
    assert_eq!(place.refused(confined()).kind(), ErrorKind::ParentDenied);
    place.finds(paths(), FoundBy::RelativePath, "outside/parent.vhdx");
    // The allowed folder is itself given by a link.
    let place = Place::with("relative_path", r".\parent.vhdx");
    place.write_base("child/parent.vhdx");
    symlink("child", place.path("alias")).unwrap();
    let confined = paths().confined_to(place.path("alias"));
    place.finds(confined, FoundBy::RelativePath, "child/parent.vhdx");
}

#[test]
fn loops() {
    // A file that is its own parent.
    let mut place = Place::new();
    let own = place.child.data_write_guid();
    place.child.locator.set("parent_linkage", braced(own));
    place.child.locator.set("relative_path", r".\tip.avhdx");
    place.write_child("child/tip.avhdx");
    let is_loop = |error: Error| {
        assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "chain.loop"), "{error}");
        assert!(error.file().is_some() && error.offset().is_some(), "{error}");
        assert!(error.found().is_some() && error.expected().is_some(), "{error}");
    };
    is_loop(place.refused(paths()));
    // Under another name, and through another link.
    #[cfg(unix)]
    {
        place.child.locator.set("relative_path", r".\alias.avhdx");
        place.write_child("child/tip.avhdx");
        std::fs::hard_link(place.path("child/tip.avhdx"), place.path("child/alias.avhdx")).unwrap();
        is_loop(place.refused(paths()));
        std::fs::remove_file(place.path("child/alias.avhdx")).unwrap();
        std::os::unix::fs::symlink("tip.avhdx", place.path("child/alias.avhdx")).unwrap();
        is_loop(place.refused(paths()));
    }
    // Two and three files in a loop, with the tip in it or above it.
    for (ring, above) in [(2, 0), (3, 0), (2, 2)] {
        let count = ring + above;
        let mut images: Vec<Image> = (0..count)
            .map(|n| {
                let mut image = place.base.new_child();
                image.reseed(n as u64);
                image
            })
            .collect();
        let guids: Vec<Uuid> = images.iter().map(Image::data_write_guid).collect();
        for (n, image) in images.iter_mut().enumerate() {
            let parent = if n == 0 { ring - 1 } else { n - 1 };
            image.locator.set("parent_linkage", braced(guids[parent]));
            image.parent_path(&format!(r".\{parent}.avhdx"));
            image.write_to(place.path(&format!("child/{n}.avhdx")));
        }
        is_loop(DiffChain::open(place.path(&format!("child/{}.avhdx", count - 1))).unwrap_err());
        // The same if storages can be identified only by their GUIDs.
        let files = in_memory(&images);
        let options = OpenOptions::new().parents(Shelf(files.clone()));
        let tip = options.open_file(Arc::clone(&files[count - 1])).unwrap();
        is_loop(options.open_chain(tip).unwrap_err());
    }
    // Two files with one identity are not a loop: one is a copy.
    let mut copy = place.base.clone();
    copy.has_parent = false;
    let place = Place::with("relative_path", r".\parent.vhdx");
    place.write_base("child/parent.vhdx");
    place.write_base("child/copy.vhdx");
    place.finds(paths().file(place.path("child/copy.vhdx")), FoundBy::Given, "child/copy.vhdx");
}

/// Run only by the test below, in a process with few descriptors.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_deep_chain_with_few_descriptors() {
    let Some(tip) = std::env::var_os("AVHDX_TEST_DEEP_TIP") else { return };
    let error = DiffChain::open(&tip).expect_err("descriptors to run out");
    assert_eq!((error.kind(), error.code()), (ErrorKind::Limit, "limit.open-files"));
    assert!(error.expected().unwrap().contains("open files"), "{error}");
    assert!(error.file().unwrap().contains(".vhdx"), "{error}");
    // Files opened on the way are closed again.
    let path = Path::new(&tip).with_file_name("l3.vhdx");
    assert_eq!(DiffChain::open(path).unwrap().layers().len(), 4);
    println!("the limit was named");
}

#[cfg(unix)]
#[test]
fn running_out_of_descriptors_names_the_limit() {
    let mut images = vec![Image::dynamic(MIB)];
    for n in 1..40 {
        let mut child = images[n - 1].new_child();
        child.put(0, Block::partial_runs(Data::Pattern(n as u64), &[(n, 1)]));
        images.push(child);
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = avhdx_testkit::build::write_chain(folder.path(), &images);
    assert_eq!(DiffChain::open(&paths[39]).unwrap().layers().len(), 40);
    let script = r#"ulimit -n 24 && exec "$0" --ignored --exact --nocapture --test-threads=1 "$1""#;
    let child = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg("locate::a_deep_chain_with_few_descriptors")
        .env("AVHDX_TEST_DEEP_TIP", &paths[39])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("the limit was named"), "the test ran: {said}");
}

/// A host whose folders are a map.
#[derive(Debug, Default)]
struct MapHost {
    files: BTreeMap<PathBuf, Arc<dyn Storage>>,
}

impl MapHost {
    fn plain(path: &Path) -> PathBuf {
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir => drop(plain.pop()),
                Component::Normal(name) => plain.push(name),
                _ => {}
            }
        }
        plain
    }

    fn put(&mut self, path: &str, image: &Image) {
        let file = MapFile {
            path: path.into(),
            inner: memory(path, image.to_bytes()),
            number: self.files.len() as u64,
        };
        self.files.insert(path.into(), Arc::new(file));
    }
}

/// A file of that map, which knows its path and its number.
#[derive(Debug)]
struct MapFile {
    path: PathBuf,
    inner: Arc<dyn Storage>,
    number: u64,
}

impl Storage for MapFile {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a write")
    }
    fn flush(&self) -> io::Result<()> {
        panic!("a flush")
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a new length")
    }
    fn id(&self) -> io::Result<Option<FileId>> {
        Ok(Some(FileId::new(1, self.number.into())))
    }
}

impl Host for MapHost {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn Storage>> {
        assert_eq!(access, Access::Read);
        let found = self.files.get(&Self::plain(path));
        found.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let folder = Self::plain(folder);
        let below = self.files.keys().filter_map(|path| path.strip_prefix(&folder).ok());
        let mut names: Vec<PathBuf> =
            below.filter_map(|rest| Some(folder.join(rest.components().next()?))).collect();
        names.dedup();
        Ok(names)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let path = Self::plain(path);
        if let Some(file) = self.files.get(&path) {
            let mut stat = Stat::new(FileKind::File, file.len()?);
            stat.id = file.id()?;
            return Ok(stat);
        }
        match self.files.keys().any(|file| file.starts_with(&path)) {
            true => Ok(Stat::new(FileKind::Folder, 0)),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        self.stat(path).map(|_| Self::plain(path))
    }
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.stat(path).map(|_| false)
    }
    fn create_new(&self, _: &Path) -> io::Result<Arc<dyn Storage>> {
        panic!("a new file")
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        panic!("a new name")
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        panic!("a removal")
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        panic!("a flush")
    }
}

#[test]
fn a_host_of_the_callers_own() {
    let mut place = Place::new();
    place.child.locator.set("relative_path", r"..\Base\parent.vhdx");
    let mut host = MapHost::default();
    host.put("vm/base/parent.vhdx", &place.base);
    host.put("vm/tips/tip.avhdx", &place.child);
    let host: Arc<dyn Host> = Arc::new(host);
    let options = OpenOptions::new().host(Arc::clone(&host));
    let chain = options.open("vm/tips/tip.avhdx").unwrap();
    reads_as(&chain, &place.flat);
    assert_eq!(chain.layers()[1].found_by, Some(FoundBy::RelativePath));
    assert_eq!(chain.layers()[1].name, "vm/base/parent.vhdx");
    // It cannot lock, which is only a warning.
    let codes: Vec<_> = chain.warnings().iter().map(|warning| warning.code).collect();
    assert_eq!(codes, ["lock.unsupported"; 2]);
    assert_eq!(options.open("vm/none").unwrap_err().kind(), ErrorKind::Io);
    // Confinement and folders use it, too.
    let open = |source: PathSource| {
        options.clone().parents(source.host(Arc::clone(&host))).open("vm/tips/tip.avhdx")
    };
    let error = open(paths().confined_to("vm/tips")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentDenied);
    reads_as(&open(paths().confined_to("vm")).unwrap(), &place.flat);
    // A source for this machine's paths finds nothing on the other host.
    let error = options.clone().parents(paths()).open("vm/tips/tip.avhdx").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMissing);
}

/// A failing host is reported, and not mistaken for a missing file.
#[test]
fn a_source_that_fails() {
    #[derive(Debug)]
    struct Failing(io::ErrorKind);
    impl avhdx::ParentSource for Failing {
        fn candidates<'a>(
            &'a self,
            _: &'a avhdx::ParentLink,
            _: Access,
        ) -> Box<dyn Iterator<Item = avhdx::Candidate> + 'a> {
            let error = io::Error::new(self.0, "as the host has it");
            let candidate = avhdx::Candidate::new("the store", FoundBy::Other, Err(error));
            Box::new(std::iter::once(candidate))
        }
    }
    let place = Place::with("relative_path", r".\parent.vhdx");
    for (host, kind) in [
        (io::ErrorKind::NotFound, ErrorKind::ParentMissing),
        (io::ErrorKind::PermissionDenied, ErrorKind::ParentDenied),
        (io::ErrorKind::TimedOut, ErrorKind::Io),
        (io::ErrorKind::InvalidInput, ErrorKind::NotVhdx),
        (io::ErrorKind::IsADirectory, ErrorKind::NotVhdx),
    ] {
        let options = OpenOptions::new().parents(Failing(host));
        let error = options.open(place.path("child/tip.avhdx")).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        if kind == ErrorKind::Io {
            let source = std::error::Error::source(&error).expect("the host's own error");
            assert_eq!(source.to_string(), "as the host has it");
            assert!(!error.to_string().contains("as the host has it"), "printed once: {error}");
            assert_eq!(io::Error::from(error).kind(), host);
        }
    }
}
