//! Images by QEMU and those that Windows wrote.

use std::path::{Path, PathBuf};

use avhdx::ops::Rescue;
use avhdx_testkit::images::{fixtures_dir, unpack_tree};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::qemu::Qemu;
use avhdx_testkit::rng::Rng;

use crate::damaged::zero;
use crate::judge::{Share, judge};

const MIB: u64 = 1 << 20;
/// Where images by QEMU have them.
const METADATA: u64 = 3 * MIB;

#[test]
fn images_by_qemu_are_read_as_far_as_they_are_sound() {
    let Some(qemu) = Qemu::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    for block in [2 * MIB, 32 * MIB] {
        let (raw, path) = (dir.path().join("disk.raw"), dir.path().join("disk.vhdx"));
        let mut flat = vec![0; (96 * MIB) as usize];
        let mut rng = Rng::new(block);
        for _ in 0..20 {
            let at = rng.below(95 << 20) as usize / 512 * 512;
            rng.fill(&mut flat[at..][..600 << 10]);
        }
        std::fs::write(&raw, &flat).unwrap();
        qemu.from_raw(&raw, &path, &[("subformat", "dynamic"), ("block_size", &block.to_string())]);
        let whole = std::fs::read(&path).unwrap();
        let table = avhdx_testkit::naive::Layer::from_bytes(whole.clone()).unwrap().bat();
        let cut = whole.len() as u64 / 2;
        let cases: [(&str, Vec<std::ops::Range<u64>>, bool); 7] = [
            ("nothing", vec![], true),
            ("headers", vec![64 << 10..192 << 10], true),
            ("region tables", vec![192 << 10..320 << 10], true),
            ("both", vec![64 << 10..320 << 10], true),
            ("metadata", vec![METADATA..METADATA + MIB], false),
            ("table", vec![table.clone()], false),
            ("half", vec![cut..whole.len() as u64], false),
        ];
        for (what, lost, is_whole) in cases {
            let mut bytes = whole.clone();
            for range in lost {
                zero(&mut bytes, range);
            }
            if what == "half" {
                bytes.truncate(cut as usize);
            }
            std::fs::write(&path, &bytes).unwrap();
            let what = format!("{what} by QEMU, blocks of {block}");
            let ruin = match Rescue::new().open(&path) {
                Ok(ruin) => ruin,
                Err(error) => panic!("{what}: {error}"),
            };
            let share = judge(&ruin, &flat, &what);
            share.print(&what);
            if is_whole {
                assert_eq!(share.right, share.all, "{:#?}", ruin.traces());
            }
        }
        // 4 KiB of structures.
        let mut total = Share::default();
        for n in 0..30 {
            let mut bytes = whole.clone();
            let places = [0, METADATA, table.start];
            let start = places[rng.below(3) as usize];
            let at =
                start + rng.below(if start == table.start { 4096 } else { 320 << 10 }) / 512 * 512;
            zero(&mut bytes, at..at + 4096);
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(ruin) = Rescue::new().open(&path) {
                total.add(judge(&ruin, &flat, &format!("case {n}")));
            }
        }
        total.print("4 KiB of structures by QEMU");
    }
}

/// The tips of the fixtures' chains, whose parents lie beside them.
fn fixtures(dir: &Path) -> Vec<PathBuf> {
    let files = unpack_tree(&fixtures_dir(), dir);
    files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "avhdx" || e == "vhdx"))
        .collect()
}

#[test]
fn sound_images_are_sure() {
    let dir = tempfile::tempdir().unwrap();
    for path in fixtures(dir.path()) {
        let what = path.display().to_string();
        let Ok(chain) = avhdx::DiffChain::open(&path) else { continue };
        let size = avhdx::Disk::geometry(&chain).size;
        let mut layers: Vec<PathBuf> =
            chain.layers().into_iter().filter_map(|layer| layer.path).collect();
        layers.reverse();
        drop(chain);
        let ruin = Rescue::new().open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        let worst = ruin.pieces().find(|piece| piece.grade != avhdx::ops::Grade::Sure);
        assert!(worst.is_none(), "{what}: {worst:?}, {:#?}", ruin.traces());
        if size <= 256 * MIB {
            let naive = Chain::open(&layers).unwrap();
            judge(&ruin, &naive.flat(layers.len() - 1).unwrap(), &what);
        }
    }
}
