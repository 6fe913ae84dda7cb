//! Loops of parents, in several forms: every operation that follows parents ends, and names the loop.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::meddled::Meddled;
use avhdx::ops::forest::{Forest, ForestFinding};
use avhdx::ops::{Check, Rebase, Relink, Reparent};
use avhdx::storage::{Host, LocalHost};
use avhdx::{DiffChain, Error, ErrorKind, Linkage, OpenOptions, PathSource};
use avhdx_testkit::build::{Block, Data, Image, braced};
use tempfile::TempDir;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// Files some of which form a loop.
struct Ring {
    what: &'static str,
    folder: TempDir,
    /// Images to examine, in the loop or above it.
    tips: Vec<&'static str>,
    /// The images that form the loop.
    nodes: Vec<&'static str>,
    /// Whether parents are found by their paths.
    by_path: bool,
}

impl Ring {
    fn new(what: &'static str, tips: &[&'static str], nodes: &[&'static str]) -> Self {
        let folder = TempDir::new().unwrap();
        sound().write_to(folder.path().join("sound.vhdx"));
        Self { what, folder, tips: tips.into(), nodes: nodes.into(), by_path: true }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, image: &Image) {
        image.write_to(self.at(name));
    }

    fn source(&self, host: &Arc<dyn Host>) -> PathSource {
        let source = PathSource::new().host(Arc::clone(host));
        match self.by_path {
            true => source,
            false => source.folder(self.folder.path()),
        }
    }

    fn options(&self, host: &Arc<dyn Host>) -> OpenOptions {
        OpenOptions::new().host(Arc::clone(host)).parents(self.source(host))
    }

    fn bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }
}

/// A base that belongs to no loop.
fn sound() -> Image {
    let mut image = Image::dynamic(MIB);
    image.reseed(77).put(0, Block::full(Data::Pattern(7)));
    image
}

fn guid(n: u64) -> Uuid {
    node(n, n).data_write_guid()
}

/// Image number `n`, a child of image `parent`.
fn node(n: u64, parent: u64) -> Image {
    let identity = |n: u64| Uuid::from_u128(0x1000_4000_8000_0000 + u128::from(n));
    let mut image = Image::child(MIB, identity(parent));
    image.reseed(n).set_data_write_guid(identity(n));
    // Some sectors are the parent's.
    image.put(0, Block::partial_runs(Data::Pattern(n), &[(8, 8)]));
    image
}

fn rings() -> Vec<Ring> {
    let mut rings = Vec::new();

    let ring = Ring::new("its own parent", &["a.vhdx"], &["a.vhdx"]);
    ring.write("a.vhdx", node(1, 1).parent_path(".\\a.vhdx"));
    rings.push(ring);

    #[cfg(unix)]
    {
        let ring = Ring::new("its own parent by a hard link", &["a.vhdx"], &["a.vhdx"]);
        ring.write("a.vhdx", node(1, 1).parent_path(".\\b.vhdx"));
        fs::hard_link(ring.at("a.vhdx"), ring.at("b.vhdx")).unwrap();
        rings.push(ring);

        let ring = Ring::new("its own parent by a symbolic link", &["a.vhdx"], &["a.vhdx"]);
        ring.write("a.vhdx", node(1, 1).parent_path(".\\b.vhdx"));
        std::os::unix::fs::symlink("a.vhdx", ring.at("b.vhdx")).unwrap();
        rings.push(ring);

        let what = "two, one of them by another name of it";
        let ring = Ring::new(what, &["a.vhdx", "b.vhdx"], &["a.vhdx", "b.vhdx"]);
        ring.write("a.vhdx", node(1, 2).parent_path(".\\b.vhdx"));
        ring.write("b.vhdx", node(2, 1).parent_path(".\\c.vhdx"));
        fs::hard_link(ring.at("a.vhdx"), ring.at("c.vhdx")).unwrap();
        rings.push(ring);
    }

    let ring = Ring::new("two", &["a.vhdx", "b.vhdx"], &["a.vhdx", "b.vhdx"]);
    ring.write("a.vhdx", node(1, 2).parent_path(".\\b.vhdx"));
    ring.write("b.vhdx", node(2, 1).parent_path(".\\.\\A.VHDX"));
    rings.push(ring);

    let ring = Ring::new("two by a second identity", &["a.vhdx", "b.vhdx"], &["a.vhdx", "b.vhdx"]);
    let mut a = node(1, 9);
    a.locator.set("parent_linkage2", braced(guid(2)));
    ring.write("a.vhdx", a.parent_path(".\\b.vhdx"));
    ring.write("b.vhdx", node(2, 1).parent_path(".\\a.vhdx"));
    rings.push(ring);

    let what = "two by their identities alone";
    let mut ring = Ring::new(what, &["a.vhdx", "b.vhdx"], &["a.vhdx", "b.vhdx"]);
    ring.write("a.vhdx", node(1, 2).parent_path(".\\gone\\x.vhdx"));
    ring.write("b.vhdx", node(2, 1).parent_path(".\\gone\\y.vhdx"));
    ring.by_path = false;
    rings.push(ring);

    let nodes = ["a.vhdx", "b.vhdx", "c.vhdx"];
    let ring = Ring::new("three, and two above them", &["e.vhdx", "d.vhdx", "c.vhdx"], &nodes);
    ring.write("a.vhdx", node(1, 2).parent_path(".\\b.vhdx"));
    ring.write("b.vhdx", node(2, 3).parent_path(".\\c.vhdx"));
    ring.write("c.vhdx", node(3, 1).parent_path(".\\a.vhdx"));
    ring.write("d.vhdx", node(4, 1).parent_path(".\\a.vhdx"));
    ring.write("e.vhdx", node(5, 4).parent_path(".\\d.vhdx"));
    rings.push(ring);
    rings
}

/// This machine, and a host that cannot identify files.
fn hosts() -> [Arc<dyn Host>; 2] {
    let mut blind = Meddled::new(|_, _| {});
    blind.has_ids = false;
    [Arc::new(LocalHost), Arc::new(blind)]
}

/// Runs `look` for each ring, host and tip.
fn each(look: impl Fn(&Ring, &Arc<dyn Host>, &Path)) {
    for host in hosts() {
        for ring in rings() {
            let before = ring.bytes();
            for tip in &ring.tips {
                look(&ring, &host, &ring.at(tip));
            }
            assert!(ring.bytes() == before, "{}: nothing is changed", ring.what);
        }
    }
}

/// The error reports a loop and the file that it leads back to.
#[track_caller]
fn is_loop(ring: &Ring, error: &Error) {
    let what = format!("{}: {error}", ring.what);
    assert_eq!((error.kind(), error.code()), (ErrorKind::Damaged, "chain.loop"), "{what}");
    let file = error.file().expect("a file");
    // Some are in it under another name.
    let names = ring.nodes.iter().chain(&["b.vhdx", "c.vhdx"]);
    assert!(names.into_iter().any(|name| file.ends_with(name)), "{what}");
    assert!(error.offset().is_some() && error.found().is_some(), "{what}");
}

#[test]
fn no_chain_is_opened() {
    each(|ring, host, tip| {
        let options = ring.options(host);
        is_loop(ring, &options.open(tip).unwrap_err());
        is_loop(ring, &options.clone().linkage(Linkage::Ignore).open(tip).unwrap_err());
        is_loop(ring, &options.clone().unfinished(true).open(tip).unwrap_err());
        // If the limit is lower than the loop is long it is reported first, otherwise the loop.
        for depth in [3, 4, 5, 6] {
            let error = options.clone().max_depth(depth).open(tip).unwrap_err();
            assert!(["chain.loop", "limit.depth"].contains(&error.code()), "{error}");
        }
        let followed = options.follow(options.open_image(tip).unwrap());
        is_loop(ring, followed.broken.as_ref().expect("a broken chain"));
    });
    // With no options but the file itself.
    let ring = &rings()[0];
    is_loop(ring, &DiffChain::open(ring.at("a.vhdx")).unwrap_err());
}

/// The search for children comes before the search for parents.
#[test]
fn no_chain_is_opened_for_writing() {
    each(|ring, host, tip| {
        let options = ring.options(host).writable(true);
        is_loop(ring, &options.clone().orphan_children(true).open(tip).unwrap_err());
        let error = options.open(tip).unwrap_err();
        if error.kind() != ErrorKind::HasChildren {
            is_loop(ring, &error);
        }
    });
}

#[test]
fn a_check_finds_the_loop_once() {
    each(|ring, host, tip| {
        for linkage in [Linkage::Verify, Linkage::Ignore] {
            let options = ring.options(host).linkage(linkage);
            let report = Check::new().options(options).run(tip).unwrap();
            let found = report.findings.iter().filter(|finding| finding.code == "chain.loop");
            assert_eq!(found.count(), 1, "{}: {:?}", ring.what, report.findings);
            assert!(!report.is_sound());
            assert!(report.layers.len() <= 5, "{}", report.layers.len());
        }
    });
}

#[test]
fn a_forest_names_all_that_is_in_the_loop() {
    for (n, host) in hosts().iter().enumerate() {
        for ring in rings() {
            let forest = Forest::scan([ring.folder.path()], &ring.source(host)).unwrap();
            let loops = forest.findings().iter().filter_map(|finding| match finding {
                ForestFinding::Loop { nodes, .. } => Some(nodes),
                _ => None,
            });
            let loops: Vec<_> = loops.collect();
            assert_eq!(loops.len(), 1, "{}: {:?}", ring.what, forest.findings());
            let of = |id| forest.node(id).path.file_name().unwrap().to_str().unwrap();
            let mut names: Vec<_> = loops[0].iter().map(|id| of(*id)).collect();
            names.sort_unstable();
            // A host that cannot identify files takes two names for two files.
            if n == 0 {
                assert_eq!(names, ring.nodes, "{}", ring.what);
            }
            // Each image is shown once, including those above the loop.
            let drawn = forest.nodes().map(|(_, node)| node.children.len()).sum::<usize>();
            assert_eq!(drawn + forest.trees().len(), forest.nodes().len(), "{}", ring.what);
            for (id, _) in forest.nodes() {
                assert!(forest.layers(id).len() <= forest.nodes().len());
            }
        }
    }
}

/// A reparent can lead out of a loop, but neither onto one of its images nor into one.
#[test]
fn a_reparent_can_lead_out_of_a_loop_but_not_into_one() {
    each(|ring, host, tip| {
        let to = |base: &Path| Reparent::new(base).options(ring.options(host)).unproven(true);
        is_loop(ring, &to(tip).run(ring.at("sound.vhdx")).unwrap_err());
        is_loop(ring, &to(tip).forecast(ring.at("sound.vhdx")).unwrap_err());
        is_loop(ring, &to(tip).run(tip).unwrap_err());
        let onto = |base: &Path| Rebase::new(base).options(ring.options(host));
        is_loop(ring, &onto(tip).run(ring.at("sound.vhdx")).unwrap_err());
        is_loop(ring, &onto(&ring.at("sound.vhdx")).run(tip).unwrap_err());
        // What shows through is unknown.
        let proven = Reparent::new(ring.at("sound.vhdx")).options(ring.options(host));
        let error = proven.run(tip).unwrap_err();
        assert_eq!(error.code(), "reparent.parent-lost", "{error}");
        assert!(error.to_string().contains("leads back to this file"), "{error}");
    });
    for host in hosts() {
        for ring in rings() {
            let tip = ring.at(ring.nodes[0]);
            let out = Reparent::new(ring.at("sound.vhdx")).options(ring.options(&host));
            out.unproven(true).run(&tip).unwrap();
            for tip in &ring.tips {
                let chain = ring.options(&host).open(ring.at(tip));
                let chain = chain.unwrap_or_else(|error| panic!("{}: {error}", ring.what));
                let base = chain.layers().pop().unwrap().path.unwrap();
                assert_eq!(base.file_name().unwrap(), "sound.vhdx", "{}", ring.what);
            }
            // Back into it: refused, because the new parent is a descendant of the image by now.
            let last = ring.at(ring.tips[0]);
            let back = Reparent::new(&last).options(ring.options(&host)).unproven(true);
            let error = back.run(&tip).unwrap_err();
            assert!(["link.loop", "link.self"].contains(&error.code()), "{error}");
        }
    }
}

/// By paths the links are right, and by identities the only way is the loop.
#[test]
fn a_relink_ends_and_closes_no_loop() {
    for host in hosts() {
        for ring in rings() {
            let before = ring.bytes();
            for recursive in [true, false] {
                let relink = Relink::folder(ring.folder.path()).parents(ring.source(&host));
                let done = relink.recursive(recursive).run().unwrap();
                assert!(done.images.is_empty(), "{}: {:?}", ring.what, done.images);
                let codes: Vec<_> = done.refused.iter().map(Error::code).collect();
                let expected = if ring.by_path { vec![] } else { vec!["relink.loop"; 2] };
                assert_eq!(codes, expected, "{}", ring.what);
                for error in &done.refused {
                    assert!(error.found().unwrap().contains("a.vhdx"), "{error}");
                }
            }
            assert!(ring.bytes() == before, "{}", ring.what);
        }
    }
}
