//! Images by other writers: each layer of each chain, opened as the tip, has the contents that other programs agreed
//! on.
//!
//! The images are in the folder named by `AVHDX_IMAGES`, or else in the project's own fixtures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::{
    Budget, DiffChain, Disk, ErrorKind, LogPolicy, LogState, OpenOptions, Source, VhdxFile,
};
use avhdx_testkit::images::{
    avhdx_images, expected, fixtures_dir, gunzip, sha256_file, unpack_tree,
};

use crate::common::disk::{extents_name_the_bytes, flat, keeps_its_bounds, reads_as, sum, tiles};
use crate::common::{Shelf, file, files_below};

/// A folder of unpacked images.
struct Unpacked {
    folder: tempfile::TempDir,
    /// Checksums and names of the flat disks, from the list that came with the images.
    sums: Vec<(String, String)>,
    before: Vec<(PathBuf, String)>,
}

impl Unpacked {
    fn new(packed: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = unpack_tree(packed, folder.path());
        let sums = expected(&packed.join("expected.sha256"));
        assert_eq!(files.len(), sums.len(), "a sum for each image");
        let before = hashes(folder.path());
        Self { folder, sums, before }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Nothing was changed, created or removed.
    fn is_unchanged(&self) {
        assert_eq!(hashes(self.folder.path()), self.before);
    }
}

fn hashes(folder: &Path) -> Vec<(PathBuf, String)> {
    let files = files_below(folder);
    files.into_iter().map(|path| (path.clone(), sha256_file(&path))).collect()
}

fn chains() -> Unpacked {
    let folder = avhdx_images().unwrap_or_else(fixtures_dir);
    Unpacked::new(&folder.join("chains"))
}

#[test]
fn every_layer_as_tip_has_the_sum_listed() {
    let chains = chains();
    assert_eq!(chains.sums.len(), 21);
    for (wanted, name) in &chains.sums {
        let chain = DiffChain::open(chains.path(name)).unwrap();
        assert_eq!(sum(&chain, 1 << 20), *wanted, "{name}");
        assert_eq!(sum(&chain, 4096 * 5 - 513), *wanted, "{name} in odd pieces");
        assert_eq!(chain.warnings(), [], "{name}");
        reads_as(&chain, &flat(&chain));
        keeps_its_bounds(&chain);
        let size = chain.geometry().size;
        extents_name_the_bytes(&chain, 0..size);
        extents_name_the_bytes(&chain, 1_000_001..size - 777);
    }
    chains.is_unchanged();
}

#[test]
fn views_are_the_layers_opened_as_tips() {
    let chains = chains();
    for tip in
        ["b1m-tail/l2", "s4096/l2", "deep6/l5", "dirs/users/tip", "fixed-base/l1", "states/l2"]
    {
        let chain = DiffChain::open(chains.path(&format!("{tip}.vhdx"))).unwrap();
        let layers = chain.layers();
        for (depth, layer) in layers.iter().enumerate() {
            let path = layer.path.as_ref().unwrap().canonicalize().unwrap();
            let root = chains.folder.path().canonicalize().unwrap();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            let (wanted, _) = chains.sums.iter().find(|(_, listed)| *listed == name).unwrap();
            let view = chain.view(layer.id).unwrap();
            assert_eq!(sum(&view, 65_537), *wanted, "{name} seen from {tip}");
            assert_eq!(view.layers(), layers[depth..], "{name} seen from {tip}");
            assert_eq!(view.geometry(), layer.geometry);
            extents_name_the_bytes(&view, 0..layer.geometry.size);
            if depth > 0 {
                let above = view.view(layers[depth - 1].id).unwrap_err();
                assert_eq!(above.kind(), ErrorKind::InvalidInput, "a view has no layer above it");
            }
        }
    }
    chains.is_unchanged();
}

#[test]
fn many_readers_at_once_in_the_smallest_budget() {
    let chains = chains();
    let budget = Budget::new(0);
    for (wanted, name) in &chains.sums {
        let options = OpenOptions::new().budget(budget.clone());
        let chain = Arc::new(options.open(chains.path(name)).unwrap());
        let reader = |piece| {
            let chain = Arc::clone(&chain);
            std::thread::spawn(move || sum(&chain, piece))
        };
        let sums = [reader(1 << 16), reader(12_345)].map(|thread| thread.join().unwrap());
        assert_eq!(sums, [wanted.clone(), wanted.clone()], "{name}");
    }
}

/// The data that each layer holds itself does not depend on the order of its parents' names: here they are
/// offered without paths.
#[test]
fn chains_without_paths() {
    let chains = chains();
    for (tip, layers) in
        [("b1m-tail", 3), ("s4096", 3), ("deep6", 6), ("fixed-base", 2), ("states", 3)]
    {
        let path = |n: usize| chains.path(&format!("{tip}/l{n}.vhdx"));
        let parents: Vec<_> = (0..layers - 1).map(|n| file(&path(n))).collect();
        let options = OpenOptions::new().parents(Shelf(parents));
        let chain =
            options.open_chain(options.open_file(file(&path(layers - 1))).unwrap()).unwrap();
        assert_eq!(chain.layers().len(), layers);
        let name = format!("{tip}/l{}.vhdx", layers - 1);
        let (wanted, _) = chains.sums.iter().find(|(_, listed)| *listed == name).unwrap();
        assert_eq!(sum(&chain, 1 << 20), *wanted, "{name}");
    }
}

/// A differencing image without its parents serves only what it holds.
#[test]
fn layers_alone_never_answer_for_their_parents() {
    let chains = chains();
    let mut asked = 0;
    for (_, name) in &chains.sums {
        let chain = DiffChain::open(chains.path(name)).unwrap();
        let alone = VhdxFile::open(chains.path(name)).unwrap();
        let disk = flat(&chain);
        for extent in tiles(&alone, 0..disk.len() as u64) {
            let range = extent.range.start as usize..extent.range.end as usize;
            let mut bytes = vec![0xAA; range.len()];
            let read = alone.read_at(&mut bytes, extent.range.start);
            if extent.source != Source::Parent {
                read.unwrap();
                assert!(bytes == disk[range], "{name}: {extent:?}");
                continue;
            }
            asked += 1;
            assert!(alone.has_parent(), "{name}");
            assert_eq!(read.unwrap_err().kind(), ErrorKind::ParentRequired, "{name}: {extent:?}");
            let one = alone.read_at(&mut bytes[..1], extent.range.end - 1).unwrap_err();
            assert_eq!(one.kind(), ErrorKind::ParentRequired, "{name}: {extent:?}");
        }
    }
    assert!(asked > 20, "{asked} runs of the parents'");
    chains.is_unchanged();
}

#[test]
fn images_by_qemu() {
    let images = Unpacked::new(&fixtures_dir().join("qemu"));
    for (wanted, name) in &images.sums {
        let path = images.path(name);
        let chain = OpenOptions::new()
            .open_chain(OpenOptions::new().open_file(file(&path)).unwrap())
            .unwrap();
        assert_eq!(sum(&chain, 1 << 20), *wanted, "{name}");
        assert_eq!(sum(&chain, 70_001), *wanted, "{name} in odd pieces");
        reads_as(&chain, &flat(&chain));
        extents_name_the_bytes(&chain, 0..chain.geometry().size);
    }
    let dirty = images.path("dirty-log.vhdx");
    let log = VhdxFile::open(&dirty).unwrap().info().log.state;
    assert!(matches!(log, LogState::Replayed { entries: 1, descriptors: 1, .. }), "{log:?}");
    let refused = OpenOptions::new().log(LogPolicy::Refuse).open(&dirty).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LogPending);
    let ignored = OpenOptions::new().log(LogPolicy::Ignore).open(&dirty).unwrap();
    let mut byte = [0xAA];
    ignored.read_at(&mut byte, 7 << 20).unwrap();
    assert_eq!(byte, [0], "the block that only the log knows");
    images.is_unchanged();
}

/// Images written by Windows; they are not part of the project.
#[test]
fn images_by_windows() {
    let Some(folder) = avhdx_images() else {
        eprintln!("skipped: AVHDX_IMAGES is not set");
        return;
    };
    for (name, size, wanted) in [
        (
            "dirty-log",
            1_u64 << 30,
            "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e",
        ),
        ("swap", 10 << 30, "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49"),
    ] {
        let unpacked = tempfile::tempdir().unwrap();
        let path = unpacked.path().join("disk.vhdx");
        gunzip(&folder.join(format!("hyperv/{name}.vhdx.gz")), &path);
        let before = sha256_file(&path);
        let options = OpenOptions::new();
        let chain = options.open_chain(options.open_file(file(&path)).unwrap()).unwrap();
        assert_eq!(chain.geometry().size, size);
        assert_eq!(chain.tip().block_size(), 32 << 20);
        assert_eq!(sum(&chain, 1 << 20), wanted, "{name}");
        extents_name_the_bytes(&chain, 0..size);
        extents_name_the_bytes(&chain, 513..size - 1);
        keeps_its_bounds(&chain);
        let pending = name == "dirty-log";
        assert_eq!(chain.layers()[0].log_pending, pending);
        let refused = OpenOptions::new().log(LogPolicy::Refuse).open(&path);
        assert_eq!(
            refused.err().map(|error| error.kind()),
            pending.then_some(ErrorKind::LogPending)
        );
        drop(chain);
        assert_eq!(sha256_file(&path), before, "{name} was changed");
    }
}
