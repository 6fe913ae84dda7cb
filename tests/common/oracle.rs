//! Compares the crate with the testkit's naive reader.

use avhdx::{DiffChain, Disk, LayerId, OpenOptions, Source};
use avhdx_testkit::build::Image;
use avhdx_testkit::naive::{Chain, Who};

use super::disk::{flat, reads_as, tiles};
use super::open_images;

/// Opens these images, base first, and compares every view with the naive reader: bytes and extents.
pub fn agrees(images: &[Image]) -> DiffChain {
    agrees_with(OpenOptions::new(), images)
}

/// The same with options.
pub fn agrees_with(options: OpenOptions, images: &[Image]) -> DiffChain {
    let naive = Chain::from_bytes(images.iter().map(Image::to_bytes)).unwrap();
    let chain = open_images(options, images).unwrap_or_else(|error| panic!("{error}"));
    let ids = ids(&chain);
    assert_eq!(ids.len(), images.len());
    for (tip, id) in ids.iter().enumerate() {
        let view = chain.view(*id).unwrap();
        assert_eq!(view.geometry().size, naive.0[tip].size);
        assert_eq!(u64::from(view.geometry().logical_sector), naive.0[tip].sector);
        assert_eq!(view.tip().data_write_guid(), naive.0[tip].data_write_guid);
        assert!(flat(&view) == naive.flat(tip).unwrap(), "the disk as layer {tip} has it");
        extents_agree(&view, &naive, tip, 0..naive.0[tip].size);
    }
    reads_as(&chain, &naive.flat(images.len() - 1).unwrap());
    chain
}

/// The chain's layers from the base up, in the naive reader's order.
pub fn ids(chain: &DiffChain) -> Vec<LayerId> {
    chain.layers().iter().rev().map(|layer| layer.id).collect()
}

/// Each sector of the extents has the source that the naive reader finds; of runs longer than 4 MiB
/// only the ends and a few sectors between are compared.
pub fn extents_agree(view: &DiffChain, naive: &Chain, tip: usize, range: std::ops::Range<u64>) {
    let ids = ids(view);
    let sector = naive.0[tip].sector;
    let base = naive.0[..=tip].iter().rposition(|layer| !layer.has_parent).expect("a base");
    for extent in tiles(view, range) {
        let sectors = extent.range.start / sector..extent.range.end.div_ceil(sector);
        let step = ((sectors.end - sectors.start) / 8192).max(1);
        let between = sectors.clone().step_by(step as usize);
        for at in between.chain([sectors.end - 1]) {
            let found = match extent.source {
                Source::Data { layer, at: place } => {
                    let place = place.get() + at * sector - extent.range.start;
                    Who::Data { layer: ids.iter().position(|id| *id == layer).unwrap(), at: place }
                }
                Source::Zero { layer } => {
                    Who::Zero { layer: layer.map(|l| ids.iter().position(|id| *id == l).unwrap()) }
                }
                Source::Parent => panic!("{extent:?} of a chain"),
            };
            let expected = match naive.who(tip, at).unwrap() {
                // A block missing from a base is zero according to the base itself.
                Who::Zero { layer: None }
                    if naive.0[base..=tip].iter().all(|layer| at * sector < layer.size) =>
                {
                    Who::Zero { layer: Some(base) }
                }
                who => who,
            };
            assert_eq!(found, expected, "sector {at} of {extent:?}");
        }
    }
}
