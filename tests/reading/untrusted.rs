//! Children by strangers, who choose the paths and the links beside them: no parent is opened outside of what the
//! caller allows, and no error tells what else lies on the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use avhdx::storage::Host;
use avhdx::{DiffChain, Error, OpenOptions, PathSource};
use avhdx_testkit::build::{Block, Data, Image};

use crate::common::MIB;
use crate::common::meddled::Meddled;

/// The folder that strangers may write to, beside one that they may not.
struct Place {
    _folder: tempfile::TempDir,
    root: PathBuf,
}

/// How a path gets into a child.
struct Attack {
    what: &'static str,
    key: &'static str,
    /// `OUT` stands for the folder outside.
    recorded: &'static str,
    /// What the stranger puts beside the child.
    plant: fn(&Place),
}

const RELATIVE: &str = "relative_path";
const ABSOLUTE: &str = "absolute_win32_path";
const VOLUME: &str = "volume_path";

fn attack(
    what: &'static str,
    key: &'static str,
    recorded: &'static str,
    plant: fn(&Place),
) -> Attack {
    Attack { what, key, recorded, plant }
}

fn nothing(_: &Place) {}

/// Paths that lead to `out/parent.vhdx`, if anywhere.
fn ways_out() -> Vec<Attack> {
    let file_link: fn(&Place) =
        |place| symlink(place.at("out/parent.vhdx"), place.at("in/link.vhdx")).unwrap();
    let folder_link: fn(&Place) = |place| symlink("../out", place.at("in/sub")).unwrap();
    let proc_link: fn(&Place) = |place| {
        let target = format!("/proc/self/root{}", place.at("out/parent.vhdx").display());
        symlink(target, place.at("in/link.vhdx")).unwrap();
    };
    let deep_link: fn(&Place) = |place| {
        fs::create_dir(place.at("out/deep")).unwrap_or_default();
        symlink("../out/deep", place.at("in/sub")).unwrap();
    };
    let link_of_links: fn(&Place) = |place| {
        symlink("b", place.at("in/a")).unwrap();
        symlink("../out", place.at("in/b")).unwrap();
    };
    vec![
        attack("an absolute path", RELATIVE, "OUT/parent.vhdx", nothing),
        attack("an absolute path of another key", ABSOLUTE, "OUT/parent.vhdx", nothing),
        attack("an absolute path of a volume", VOLUME, "OUT/parent.vhdx", nothing),
        attack("the folder above", RELATIVE, r"..\out\parent.vhdx", nothing),
        attack("the folder above, with slashes", RELATIVE, "../out/parent.vhdx", nothing),
        attack("the folder above, in the middle", RELATIVE, r".\x\..\..\out\parent.vhdx", nothing),
        attack("another case outside", RELATIVE, r"..\OUT\PARENT.VHDX", nothing),
        attack("dots and blanks", RELATIVE, r".\.. \out\parent.vhdx", nothing),
        attack("three dots", RELATIVE, r"...\out\parent.vhdx", nothing),
        attack("a link", RELATIVE, r".\link.vhdx", file_link),
        attack("a link in another case", RELATIVE, r".\LINK.vhdx", file_link),
        attack("a link to a folder", RELATIVE, r".\sub\parent.vhdx", folder_link),
        attack("another case behind a link", RELATIVE, r".\sub\PARENT.VHDX", folder_link),
        attack("another case of a link", RELATIVE, r".\SUB\Parent.vhdx", folder_link),
        attack("dots behind a link", RELATIVE, r".\sub\..\parent.vhdx", deep_link),
        attack("dots and case behind a link", RELATIVE, r".\sub\..\PARENT.vhdx", deep_link),
        attack("a link to a link", RELATIVE, r".\a\parent.vhdx", link_of_links),
        attack("a link through /proc", RELATIVE, r".\link.vhdx", proc_link),
        attack("the root in /proc", RELATIVE, "/proc/self/rootOUT/parent.vhdx", nothing),
        attack("a working folder", RELATIVE, "/proc/self/cwd/Cargo.toml", nothing),
        attack("a drive", RELATIVE, r"D:\out\parent.vhdx", nothing),
        attack("a drive, in a path from a folder", RELATIVE, r".\D:\parent.vhdx", nothing),
        attack("a long drive path", ABSOLUTE, r"\\?\D:\out\parent.vhdx", nothing),
        attack("dots in a long path", ABSOLUTE, r"\\?\D:\..\..\out\parent.vhdx", nothing),
        attack("another machine", RELATIVE, r"\\server\share\parent.vhdx", nothing),
        attack("another machine, with slashes", RELATIVE, "//server/share/parent.vhdx", nothing),
        attack("another machine, mixed", RELATIVE, r"\/server\share\parent.vhdx", nothing),
        attack("another machine, long", ABSOLUTE, r"\\?\UNC\server\share\parent.vhdx", nothing),
        attack("a device namespace", ABSOLUTE, r"\\.\PhysicalDrive0", nothing),
        attack("a global root", ABSOLUTE, r"\\?\GLOBALROOT\Device\Harddisk0\DR0", nothing),
        attack("an object", RELATIVE, r"\??\C:\out\parent.vhdx", nothing),
        attack("a stream", RELATIVE, r".\tip.avhdx:parent", nothing),
        attack("a NUL", RELATIVE, "..\\out\\parent.vhdx\0.txt", nothing),
        attack("a NUL in a link's name", RELATIVE, ".\\link.vhdx\0", file_link),
        attack("a volume", VOLUME, r"\\?\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\p", nothing),
        attack("no path", RELATIVE, "", nothing),
        attack("a dot", RELATIVE, ".", nothing),
        attack("two dots", RELATIVE, "..", nothing),
        attack("a root", RELATIVE, "/", nothing),
    ]
}

/// Files in the folder itself that are none to open.
fn no_files() -> Vec<Attack> {
    vec![
        attack("a FIFO", RELATIVE, r".\p", |place| {
            assert!(Command::new("mkfifo").arg(place.at("in/p")).status().unwrap().success());
        }),
        attack("a socket", RELATIVE, r".\p", |place| {
            drop(UnixListener::bind(place.at("in/p")).unwrap());
        }),
        attack("a folder", RELATIVE, r".\p", |place| fs::create_dir(place.at("in/p")).unwrap()),
        attack("zeros", RELATIVE, r".\p", |place| symlink("/dev/zero", place.at("in/p")).unwrap()),
        attack("a terminal", RELATIVE, "/dev/tty", nothing),
        attack("memory", RELATIVE, "/proc/self/mem", nothing),
        attack("an endless file", RELATIVE, "/proc/kmsg", nothing),
        attack("a link to itself", RELATIVE, r".\p", |place| {
            symlink("p", place.at("in/p")).unwrap();
        }),
        attack("the child", RELATIVE, r".\tip.avhdx", nothing),
        attack("the child by a link", RELATIVE, r".\p", |place| {
            symlink("tip.avhdx", place.at("in/p")).unwrap();
        }),
        attack("the child in another case", RELATIVE, r".\TIP.AVHDX", nothing),
    ]
}

impl Place {
    /// The child with its path, what the stranger plants, and the file outside, if it is there.
    fn new(attack: &Attack, is_there: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let place = Self { _folder: folder, root };
        fs::create_dir(place.at("in")).unwrap();
        fs::create_dir(place.at("out")).unwrap();
        let (base, mut child) = images();
        if is_there {
            base.write_to(place.at("out/parent.vhdx"));
        }
        let recorded = attack.recorded.replace("OUT", place.at("out").to_str().unwrap());
        child.locator.set(attack.key, recorded);
        child.write_to(place.at("in/tip.avhdx"));
        (attack.plant)(&place);
        place
    }

    fn at(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Opens the child with parents from its folder alone. Returns the error, with the folder's own name left out, and
    /// what was opened and listed.
    fn confined(&self) -> (Error, String, Vec<PathBuf>) {
        let touched: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
        let touches = Arc::clone(&touched);
        let host: Arc<dyn Host> = Arc::new(Meddled::new(move |call, paths| {
            // Files are asked by their real path while they are read.
            if matches!(call, "open" | "list") {
                let path = paths[0];
                touches.lock().unwrap().push(path.canonicalize().unwrap_or(path.to_path_buf()));
            }
        }));
        let parents = PathSource::new().host(Arc::clone(&host)).confined_to(self.at("in"));
        let options = OpenOptions::new().host(host).parents(parents);
        let tip = self.at("in/tip.avhdx");
        let error = in_time(move || options.open(tip).map(|chain| chain.layers()).unwrap_err());
        let said = everything(&error).replace(self.root.to_str().unwrap(), "");
        let touched = touched.lock().unwrap().clone();
        (error, said, touched)
    }
}

/// A parent and its child without a recorded path.
fn images() -> (Image, Image) {
    let mut base = Image::dynamic(MIB);
    base.put(0, Block::full(Data::Pattern(1)));
    let mut child = base.new_child();
    child.locator.remove(RELATIVE);
    (base, child)
}

/// All that the error says, with its causes and the values.
fn everything(error: &Error) -> String {
    let mut text = format!("{error} {:?} {:?} {:?}", error.code(), error.found(), error.expected());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!("; {error}");
        cause = error.source();
    }
    text
}

/// Runs in a thread of its own, so that a hang is a failure.
fn in_time<R: Send + 'static>(run: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(run()));
    receiver.recv_timeout(Duration::from_secs(60)).expect("an end")
}

fn only_inside(attack: &Attack, place: &Place, touched: &[PathBuf]) {
    let inside = place.at("in");
    for path in touched {
        assert!(path.starts_with(&inside), "{}: {} was touched", attack.what, path.display());
    }
}

#[test]
fn confined_parents_are_opened_in_their_folder_alone_and_nothing_is_told_of_others() {
    for attack in ways_out() {
        let mut told = Vec::new();
        for is_there in [true, false] {
            let place = Place::new(&attack, is_there);
            let (_, said, touched) = place.confined();
            only_inside(&attack, &place, &touched);
            told.push(said);
        }
        assert_eq!(told[0], told[1], "{}: what lies outside shows", attack.what);
    }
}

#[test]
fn what_is_no_regular_file_is_never_opened() {
    for attack in no_files() {
        let place = Place::new(&attack, true);
        let (error, said, touched) = place.confined();
        only_inside(&attack, &place, &touched);
        let tip = place.at("in/tip.avhdx");
        let is_known = |path: &PathBuf| *path == tip || *path == place.at("in");
        assert!(touched.iter().all(is_known), "{}: {touched:?}", attack.what);
        assert!(error.file().is_some(), "{}: {said}", attack.what);
        // Without confines too, nothing but regular files is opened.
        let options = OpenOptions::new();
        let opened = in_time(move || options.open(tip).map(|chain| chain.layers()));
        opened.expect_err(attack.what);
    }
}

/// A source without confines follows paths, but shows of a file only whether it is the parent.
#[test]
fn of_a_file_that_is_not_the_parent_nothing_is_told() {
    let mut told = Vec::new();
    for n in 0..3 {
        let attack = attack("a file", RELATIVE, r"..\out\secret", nothing);
        let place = Place::new(&attack, false);
        let (base, _) = images();
        let mut stranger = base.clone();
        stranger.reseed(40 + n);
        stranger.put(0, Block::full(Data::Pattern(50 + n)));
        stranger.write_to(place.at("out/secret"));
        let error = DiffChain::open(place.at("in/tip.avhdx")).map(|c| c.layers()).unwrap_err();
        let said = everything(&error).replace(place.root.to_str().unwrap(), "");
        let identity = stranger.data_write_guid().to_string();
        assert!(!said.to_lowercase().contains(&identity), "{said}");
        told.push(said);
    }
    assert!(told.windows(2).all(|two| two[0] == two[1]), "{told:?}");
    // Nor of files that are no images, whatever they hold.
    let mut told = Vec::new();
    for contents in
        ["root:x:0:0:a secret", "-----BEGIN KEY-----", "vhdxfil", "PK\x03\x04 an archive"]
    {
        let attack = attack("a file", RELATIVE, r"..\out\secret", nothing);
        let place = Place::new(&attack, false);
        fs::write(place.at("out/secret"), contents).unwrap();
        let error = DiffChain::open(place.at("in/tip.avhdx")).map(|c| c.layers()).unwrap_err();
        told.push(everything(&error).replace(place.root.to_str().unwrap(), ""));
    }
    assert!(told.windows(2).all(|two| two[0] == two[1]), "{told:#?}");
}

/// A path of many parts, or of one that no file can have, ends in an error at once.
#[test]
fn paths_of_any_length_end_in_an_error() {
    let long = [
        "..\\".repeat(10_000) + "parent.vhdx",
        "x\\".repeat(10_000),
        "x".repeat(30_000),
        "\\".repeat(30_000),
        "\u{1F4A9}".repeat(10_000),
    ];
    for recorded in long {
        let place = Place::new(&attack("long", RELATIVE, "", nothing), true);
        let (_, mut child) = images();
        child.locator.set(RELATIVE, recorded);
        child.write_to(place.at("in/tip.avhdx"));
        for confined in [true, false] {
            let parents = match confined {
                true => PathSource::new().confined_to(place.at("in")),
                false => PathSource::new(),
            };
            let options = OpenOptions::new().parents(parents);
            let tip: &Path = &place.at("in/tip.avhdx");
            let tip = tip.to_path_buf();
            in_time(move || options.open(tip).map(|chain| chain.layers()).unwrap_err());
        }
    }
}
