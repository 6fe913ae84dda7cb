//! Merges of layers by other writers: with any states, block sizes and disk sizes.

use std::path::Path;

use avhdx::ops::{Check, Merge};
use avhdx::{ErrorKind, OpenOptions};
use avhdx_testkit::build::{random_chain, write_chain};
use avhdx_testkit::naive::Chain;
use avhdx_testkit::rng::Rng;

use super::common::deep::deep_chain;
use super::{bytes, naively, paths};

#[test]
fn layers_of_all_kinds_are_merged_and_every_other_point_stays() {
    let (mut grown, mut lost, mut kept) = (0, 0, 0);
    for seed in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = Rng::new(seed);
        let layers = 2 + rng.below(5);
        let images = if seed % 3 == 0 {
            random_chain(seed, layers as usize)
        } else {
            deep_chain(seed, layers)
        };
        let files = write_chain(folder.path(), &images);
        let naive =
            Chain::from_bytes(files.iter().map(|path| std::fs::read(path).unwrap())).unwrap();
        let count = images.len();
        let mut points: Vec<Vec<u8>> = (0..count).map(|tip| naive.flat(tip).unwrap()).collect();
        // From the tip down, in the chain's order.
        points.reverse();

        let chain = OpenOptions::new().open(files.last().unwrap()).unwrap();
        while points.len() > 1 {
            let child = rng.below(points.len() as u64 - 1) as usize;
            let parent = child + 1 + rng.below((points.len() - 1 - child) as u64) as usize;
            let layers = chain.layers();
            grown += usize::from(layers[child].geometry.size > layers[parent].geometry.size);
            let low_space = rng.chance(1, 3);
            let merge = Merge::new(layers[child].id)
                .into_layer(layers[parent].id)
                .low_space(low_space)
                .share(rng.chance(1, 2));
            let forecast = merge.forecast(&chain).unwrap();
            let of_layers = &layers[child..=parent];
            let sizes: Vec<u64> = of_layers.iter().rev().map(|l| l.geometry.size).collect();
            let shorter = sizes.windows(2).map(|two| two[0].saturating_sub(two[1]));
            assert_eq!(forecast.cut, shorter.sum::<u64>(), "seed {seed}");
            if forecast.cut_data > 0 {
                lost += 1;
                let error = merge.clone().run(&chain).unwrap_err();
                assert_eq!(
                    (error.kind(), error.code()),
                    (ErrorKind::WouldLose, "merge.shrinks"),
                    "seed {seed}"
                );
                assert!(bytes(&chain) == points[0], "seed {seed}");
            } else {
                kept += usize::from(forecast.cut > 0);
            }
            let merge = merge.shrink(forecast.cut_data > 0);
            let len = |path: &Path| std::fs::metadata(path).unwrap().len();
            let into = layers[parent].path.clone().unwrap();
            let gone: u64 = of_layers[..parent - child].iter().map(|layer| layer.file_len).sum();
            let before = len(&into);
            let done = merge.run(&chain).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert!(done.warnings.is_empty(), "seed {seed}: {:?}", done.warnings);
            assert_eq!((done.moved, done.cut), (forecast.read, forecast.cut), "seed {seed}");
            assert_eq!(gone, forecast.freed, "seed {seed}");
            // The file of a removed child leaves space for the next merge. Filled holes are extra.
            if parent == child + 1 && !low_space {
                let grown = len(&into) - before;
                assert!(grown <= forecast.peak, "seed {seed}: {child} into {parent}");
            }
            points.drain(child + 1..=parent);
            assert_eq!(chain.layers().len(), points.len());
            for (n, (layer, point)) in chain.layers().iter().zip(&points).enumerate() {
                assert_eq!(layer.geometry.size, point.len() as u64, "seed {seed}, point {n}");
                let found = bytes(&chain.view(layer.id).unwrap());
                assert!(found == *point, "seed {seed}, point {n}: {child} into {parent}");
                assert!(naively(&paths(&chain)[n..]) == *point, "seed {seed}, point {n}");
            }
            let tip = paths(&chain).remove(0);
            assert!(bytes(&OpenOptions::new().open(&tip).unwrap()) == points[0]);
            let report = Check::new().run(&tip);
            let report = report.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(report.is_sound(), "seed {seed}: {:?}", report.findings);
        }
        let layers = chain.layers();
        let error = Merge::new(layers[0].id).run(&chain).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "merge.no-parent"));
    }
    assert!(grown > 10 && lost > 5 && kept > 0, "{grown}, {lost}, {kept}");
}
