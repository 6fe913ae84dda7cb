//! The life of a chain, from its first image to the last merge and a move: after every step a flat model, the
//! crate, the naive reader and, where they can read it, libvhdi and QEMU agree on the disk's past and present.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use avhdx::ops::{Checkpoint, Export, Merge, Reparent, Revert};
use avhdx::{CreateOptions, DiffChain, Disk, ErrorKind, Layer, LayerId, OpenOptions, PathSource};
use avhdx_testkit::build::braced;
use avhdx_testkit::images::{sha256_file, sha256_hex};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::qemu::Qemu;
use avhdx_testkit::rng::Rng;
use tempfile::TempDir;

use crate::common::MIB;
use crate::common::disk::flat;
use crate::common::tools::{LIBVHDI, python, said, skipped};

pub(super) const SIZE: u64 = 11 * MIB;
pub(super) const BLOCK: u32 = 1 << 20;
const DAYS: [&str; 5] = ["monday", "tuesday", "wednesday", "thursday", "friday"];

/// The expected disk at each point in time that a file holds.
pub(super) struct Story {
    folder: TempDir,
    pub(super) points: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) rng: Rng,
    /// Whether a child is longer than its parent, or has blocks of zeros: libvhdi misreads both.
    pub(super) is_beyond_libvhdi: bool,
    /// How many layers were compared with each reader.
    pub(super) compared: BTreeMap<&'static str, usize>,
}

impl Story {
    pub(super) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("vm")).unwrap();
        fs::create_dir(folder.path().join("archive")).unwrap();
        Self {
            folder,
            points: BTreeMap::new(),
            rng: Rng::new(20),
            is_beyond_libvhdi: false,
            compared: BTreeMap::new(),
        }
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn point(&self, layer: &Layer) -> &[u8] {
        // The path to a parent may lead through another folder and back.
        &self.points[&fs::canonicalize(layer.path.as_ref().unwrap()).unwrap()]
    }

    /// One file takes over the point in time of another.
    pub(super) fn inherit(&mut self, to: &Path, from: &Path) {
        let point = self.points[from].clone();
        self.points.insert(to.to_path_buf(), point);
    }

    /// Writes to the disk and the model in pieces of 4 KiB, because libvhdi supports only whole bitmap bytes.
    pub(super) fn write(&mut self, chain: &DiffChain) {
        let path = chain.layers()[0].path.clone().unwrap();
        let point = self.points.get_mut(&path).unwrap();
        let (size, unit, most) = (point.len() as u64, 4096, 40);
        for _ in 0..12 {
            let len = (1 + self.rng.below(most)) * unit;
            let at = self.rng.below((size - len) / unit) * unit;
            let bytes = &mut point[at as usize..(at + len) as usize];
            self.rng.fill(bytes);
            chain.write_at(bytes, at).unwrap();
        }
        // And a whole block.
        let at = self.rng.below(size / MIB) * MIB;
        let bytes = &mut point[at as usize..(at + MIB) as usize];
        self.rng.fill(bytes);
        chain.write_at(bytes, at).unwrap();
        chain.flush().unwrap();
    }

    /// Compares all points in time through the open chain, and its files with the naive reader.
    pub(super) fn agree(&mut self, chain: &DiffChain, step: &str) {
        let layers = chain.layers();
        for layer in &layers {
            let view = chain.view(layer.id).unwrap();
            assert!(flat(&view) == self.point(layer), "{step}: {} by the crate", layer.name);
            *self.compared.entry("avhdx").or_default() += 1;
        }
        let paths: Vec<&PathBuf> = layers.iter().rev().filter_map(|l| l.path.as_ref()).collect();
        let naive = Chain::open(&paths).unwrap();
        for (n, layer) in layers.iter().rev().enumerate() {
            assert!(naive.flat(n).unwrap() == self.point(layer), "{step}: {}", layer.name);
            *self.compared.entry("the naive reader").or_default() += 1;
            let linkage = naive.0[n].locator.iter().find(|(key, _)| key == "parent_linkage");
            let below = n.checked_sub(1).map(|below| braced(naive.0[below].data_write_guid));
            assert_eq!(linkage.map(|(_, guid)| guid.clone()), below, "{step}: {}", layer.name);
        }
    }

    /// The same for a closed chain, with other programs too.
    pub(super) fn all_agree(&mut self, tip: &Path, step: &str) {
        let chain = DiffChain::open(tip).unwrap_or_else(|error| panic!("{step}: {error}"));
        assert_eq!(chain.warnings(), [], "{step}");
        self.agree(&chain, step);
        let layers: Vec<Layer> = chain.layers().into_iter().rev().collect();
        drop(chain);
        let paths: Vec<PathBuf> = layers.iter().filter_map(|layer| layer.path.clone()).collect();
        if !self.is_beyond_libvhdi
            && let Some(sums) = python("pyvhdi", LIBVHDI, &paths)
        {
            let wanted: Vec<String> = layers.iter().map(|l| sha256_hex(self.point(l))).collect();
            assert_eq!(sums, wanted, "{step}: {paths:?} by libvhdi");
            *self.compared.entry("libvhdi").or_default() += sums.len();
        }
        self.vhdiinfo(&layers, step);
        self.seven_zip(tip, step);
        let Some(qemu) = Qemu::find() else { return skipped("qemu-img") };
        let raw = self.at("raw");
        qemu.to_raw(&paths[0], &raw);
        let wanted = sha256_hex(self.point(&layers[0]));
        assert_eq!(sha256_file(&raw), wanted, "{step}: the base by QEMU");
        qemu.check(&paths[0]);
        *self.compared.entry("qemu-img").or_default() += 1;
    }

    fn vhdiinfo(&self, layers: &[Layer], step: &str) {
        for (n, layer) in layers.iter().enumerate() {
            let path = layer.path.as_ref().unwrap();
            let Ok(output) = Command::new("vhdiinfo").arg(path).output() else {
                return skipped("vhdiinfo");
            };
            let kind = if n == 0 { "Dynamic" } else { "Differential" };
            let size = self.point(layer).len();
            for fact in [format!("({size} bytes)"), format!("Disk type\t\t: {kind}")] {
                assert!(said(&output).contains(&fact), "{step}: {}: {fact}", path.display());
            }
        }
    }

    /// 7-Zip finds parents in the folder of the tip only.
    fn seven_zip(&mut self, tip: &Path, step: &str) {
        let layers = DiffChain::open(tip).unwrap().layers();
        let folder = |layer: &Layer| fs::canonicalize(layer.path.as_ref()?.parent()?).ok();
        if layers.iter().any(|layer| folder(layer) != folder(&layers[0])) {
            return;
        }
        let Ok(output) = Command::new("7z").args(["x", "-so"]).arg(tip).output() else {
            return skipped("7z");
        };
        assert!(output.status.success(), "{step}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == self.points[tip], "{step}: {} by 7-Zip", tip.display());
        *self.compared.entry("7-Zip").or_default() += 1;
    }

    /// Exports the whole disk to one new image, which QEMU reads.
    pub(super) fn flatten(&mut self, tip: &Path, step: &str) {
        let chain = DiffChain::open(tip).unwrap();
        let copy = self.at("flat.vhdx");
        let size = chain.geometry().size;
        let image = CreateOptions::dynamic(size).overwrite(true).create(&copy).unwrap();
        Export::new().onto(&chain, &image).unwrap();
        image.close().unwrap();
        drop(image);
        let Some(qemu) = Qemu::find() else { return skipped("qemu-img") };
        let raw = self.at("raw");
        qemu.to_raw(&copy, &raw);
        assert_eq!(sha256_file(&raw), sha256_hex(&self.points[tip][..]), "{step}: a copy by QEMU");
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.at("vm")).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub(super) fn open(tip: &Path) -> DiffChain {
    OpenOptions::new().writable(true).open(tip).unwrap()
}

/// The point in time with this label: the layer below the child that has it.
fn labelled(chain: &DiffChain, label: &str) -> LayerId {
    let layers = chain.layers();
    let has_it = |layer: &Layer| {
        let mark = chain.image(layer.id).unwrap().checkpoint();
        mark.is_some_and(|mark| mark.label == label)
    };
    let child = layers.iter().position(has_it).unwrap_or_else(|| panic!("no {label}"));
    layers[child + 1].id
}

pub(super) fn path_of(chain: &DiffChain, layer: LayerId) -> PathBuf {
    let layers = chain.layers();
    layers.into_iter().find(|l| l.id == layer).and_then(|l| l.path).unwrap()
}

#[test]
fn the_life_of_a_chain() {
    let mut story = Story::new();

    // A base.
    let base = story.at("vm/web.vhdx");
    let options = CreateOptions::dynamic(SIZE).block_size(BLOCK);
    options.create(&base).unwrap().close().unwrap();
    story.points.insert(base.clone(), vec![0; SIZE as usize]);
    let chain = open(&base);
    story.agree(&chain, "a new base");
    story.write(&chain);
    story.agree(&chain, "a base that was written");

    // Five checkpoints while the disk is in use.
    for day in DAYS {
        let before = chain.layers()[0].path.clone().unwrap();
        let made = Checkpoint::new().label(day).block_size(BLOCK).run(&chain).unwrap();
        assert!(made.warnings.is_empty(), "{:?}", made.warnings);
        assert_eq!(path_of(&chain, made.frozen), before);
        assert_eq!(chain.layers()[0].path, Some(made.path.clone()));
        story.inherit(&made.path, &before);
        story.agree(&chain, day);
        story.write(&chain);
        story.agree(&chain, &format!("after {day}"));
    }
    assert_eq!(chain.layers().len(), 6);
    let tip = chain.layers()[0].path.clone().unwrap();
    chain.close().unwrap();
    drop(chain);
    story.all_agree(&tip, "five checkpoints");

    // A branch from Wednesday for experiments.
    let trial = story.at("vm/trial.avhdx");
    let chain = DiffChain::open(&tip).unwrap();
    let wednesday = labelled(&chain, "wednesday");
    let image = chain.image(wednesday).unwrap();
    let options = CreateOptions::child_of(&image).unwrap().block_size(BLOCK);
    options.create(&trial).unwrap().close().unwrap();
    story.inherit(&trial, &path_of(&chain, wednesday));
    drop((image, chain));
    let branch = open(&trial);
    story.agree(&branch, "a branch");
    story.write(&branch);
    branch.close().unwrap();
    drop(branch);
    story.all_agree(&trial, "a branch that was written");
    story.all_agree(&tip, "the trunk beside a branch");

    // Back to Thursday; later points are no longer wanted.
    let chain = open(&tip);
    let thursday = labelled(&chain, "thursday");
    let old = path_of(&chain, thursday);
    let newer: Vec<PathBuf> = chain.layers()[..2].iter().filter_map(|l| l.path.clone()).collect();
    let revert = Revert::to(thursday).delete_newer(true);
    let reverted = revert.run(&chain).unwrap();
    assert!(reverted.warnings.is_empty(), "{:?}", reverted.warnings);
    let mut removed = reverted.removed.clone();
    removed.sort();
    let mut wanted = newer.clone();
    wanted.sort();
    assert_eq!(removed, wanted);
    newer.iter().for_each(|path| assert!(!path.exists(), "{}", path.display()));
    let tip = reverted.path;
    story.inherit(&tip, &old);
    story.agree(&chain, "back to thursday");
    story.write(&chain);
    story.agree(&chain, "another friday");
    chain.close().unwrap();
    drop(chain);
    story.all_agree(&tip, "after a revert");
    story.all_agree(&trial, "a branch after a revert");

    // Merge Monday's changes into the base, from the middle of the chain and while it is in use.
    let chain = open(&tip);
    let tuesday = labelled(&chain, "tuesday");
    let middle = path_of(&chain, tuesday);
    let merged = Merge::new(tuesday).run(&chain).unwrap();
    assert!(merged.warnings.is_empty(), "{:?}", merged.warnings);
    assert_eq!(merged.removed, std::slice::from_ref(&middle));
    assert!(!middle.exists());
    story.inherit(&base, &middle);
    story.agree(&chain, "a merge from the middle");
    story.write(&chain);
    story.agree(&chain, "written after a merge");
    assert_eq!(chain.layers().len(), 4);
    chain.close().unwrap();
    drop(chain);
    story.all_agree(&tip, "after a merge from the middle");
    story.all_agree(&trial, "a branch after a merge from the middle");

    // Merge the tip into Thursday, which becomes the tip.
    let chain = open(&tip);
    let merged = Merge::new(chain.layers()[0].id).run(&chain).unwrap();
    assert!(merged.warnings.is_empty(), "{:?}", merged.warnings);
    let below = merged.tip.clone().unwrap();
    assert_eq!((below.clone(), merged.removed), (old, vec![tip.clone()]));
    story.inherit(&below, &tip);
    story.agree(&chain, "a merge of the tip");
    story.write(&chain);
    story.agree(&chain, "written after a merge of the tip");
    chain.close().unwrap();
    drop(chain);
    let tip = below;
    story.all_agree(&tip, "after a merge of the tip");
    story.all_agree(&trial, "a branch after a merge of the tip");
    assert_eq!(story.files().len(), 4, "{:?}", story.files());

    // The base moves to another folder.
    let moved = story.at("archive/web.vhdx");
    fs::rename(&base, &moved).unwrap();
    let point = story.points.remove(&base).unwrap();
    story.points.insert(moved.clone(), point);
    assert_eq!(DiffChain::open(&tip).unwrap_err().kind(), ErrorKind::ParentMissing);
    let shared = {
        let options = OpenOptions::new().parents(PathSource::new().folder(story.at("archive")));
        let chain = options.open(&tip).unwrap();
        let layers = chain.layers();
        let lowest = layers[layers.len() - 2].path.clone().unwrap();
        drop(chain);
        let done = Reparent::new(&moved).options(options).run(&lowest).unwrap();
        assert!(done.proven > 0 && done.unproven == 0);
        lowest
    };
    let layers = DiffChain::open(&trial).unwrap().layers();
    assert_eq!(layers[layers.len() - 2].path, Some(shared));
    story.all_agree(&tip, "after a move");
    story.all_agree(&trial, "a branch after a move");
    story.flatten(&tip, "the end");
    story.flatten(&trial, "the end of the branch");
    println!("layers that agreed with the model: {:?}", story.compared);
}
