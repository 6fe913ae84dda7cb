//! Compares the library with the naive reader.

use avhdx::{DiffChain, Disk, DiskExt, Extent, LayerId, Source};
use avhdx_testkit::bytes::{difference, is_zero};
use avhdx_testkit::naive::{Chain, Who};

use crate::input::Input;
use crate::reading::is_told;

/// Disks up to here are read in full, larger ones in pieces.
const MOST_READ: u64 = 8 << 20;
/// The part of a larger disk that is read.
const PIECE: u64 = 1 << 20;
const MOST_EXTENTS: usize = 20_000;

/// What an error means for the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errors {
    /// The image may be to blame.
    Allowed,
    /// The chain is sound.
    Refused,
}

/// Reads everything, or of a large disk many parts, and compares bytes and extents with the naive reader's: those of
/// each extent at its ends, and at the sectors that are given.
pub fn agrees(
    chain: &DiffChain,
    naive: &Chain,
    tip: usize,
    sectors: &[u64],
    errors: Errors,
    input: &mut Input<'_>,
) {
    let size = chain.geometry().size;
    assert_eq!(size, naive.0[tip].size, "the size of the disk");
    let mut pieces = vec![];
    if size <= MOST_READ {
        pieces.push(0..size);
    } else {
        let mut starts = vec![0, size - PIECE];
        starts.extend((0..3).map(|_| input.below((size - PIECE) / 512) * 512));
        pieces.extend(starts.into_iter().map(|start| start..start + PIECE));
    }
    let mut bytes = Vec::new();
    for piece in pieces {
        let mut at = piece.start;
        while at < piece.end {
            let end = piece.end.min(at + PIECE);
            bytes.resize((end - at) as usize, 0xAA);
            match chain.read_at(&mut bytes, at) {
                Ok(()) => piece_agrees(chain, naive, tip, at, &bytes, errors),
                Err(error) => errors.met(&error),
            }
            at = end;
        }
    }
    let mut last = 0;
    for extent in chain.extents(0..size).take(MOST_EXTENTS) {
        match extent {
            Ok(extent) => {
                let what = "extents follow each other";
                assert!(
                    extent.range.start >= last && extent.range.end <= size,
                    "{what}: {extent:?}"
                );
                assert!(
                    errors == Errors::Allowed || extent.range.start == last,
                    "{what}: {extent:?}"
                );
                last = extent.range.end;
            }
            Err(error) => errors.met(&error),
        }
    }
    let sector_size = naive.0[tip].sector;
    let some = (0..8).map(|_| input.below((size / sector_size).max(1))).collect::<Vec<_>>();
    for sector in
        sectors.iter().copied().chain(some).filter(|sector| (sector + 1) * sector_size <= size)
    {
        sector_agrees(chain, naive, tip, sector, errors);
    }
}

impl Errors {
    fn met(self, error: &avhdx::Error) {
        is_told(error);
        assert_eq!(self, Self::Allowed, "{error}");
    }
}

/// The extents of a piece that was read name its bytes.
fn piece_agrees(
    chain: &DiffChain,
    naive: &Chain,
    tip: usize,
    at: u64,
    bytes: &[u8],
    errors: Errors,
) {
    let ids = ids(chain);
    for extent in chain.extents(at..at + bytes.len() as u64) {
        let extent = match extent {
            Ok(extent) => extent,
            Err(error) if error.kind() == avhdx::ErrorKind::LogOverlay => continue,
            Err(error) => {
                errors.met(&error);
                continue;
            }
        };
        let from = (extent.range.start - at) as usize;
        let read = &bytes[from..from + (extent.range.end - extent.range.start) as usize];
        match extent.source {
            Source::Data { layer, at } => {
                let layer = ids.iter().position(|id| *id == layer).expect("a layer of the chain");
                let there = naive.0[layer].get(at.get(), read.len() as u64).expect("bytes");
                let differs = difference(read, &there);
                assert_eq!(differs, None, "bytes of {extent:?} are others than in its place");
            }
            Source::Zero { .. } => assert!(is_zero(read), "{extent:?} is not zero"),
            Source::Parent => panic!("{extent:?} of a chain"),
        }
        let size = naive.0[tip].sector;
        for sector in [extent.range.start / size, (extent.range.end - 1) / size] {
            source_agrees(&ids, naive, tip, sector, &extent);
        }
    }
}

fn sector_agrees(chain: &DiffChain, naive: &Chain, tip: usize, sector: u64, errors: Errors) {
    let size = naive.0[tip].sector;
    let range = sector * size..(sector + 1) * size;
    let mut read = vec![0xAA; size as usize];
    match chain.read_at(&mut read, range.start) {
        Ok(()) => match naive.read(tip, range.start, size as usize) {
            Ok(naive) => assert_eq!(difference(&read, &naive), None, "sector {sector}"),
            Err(why) => panic!("sector {sector} is read, but {why}"),
        },
        Err(error) => errors.met(&error),
    }
    match chain.next_extent(range) {
        Ok(extent) => {
            let extent = extent.expect("the sector is not empty");
            source_agrees(&ids(chain), naive, tip, sector, &extent);
        }
        Err(error) if error.kind() == avhdx::ErrorKind::LogOverlay => {}
        Err(error) => errors.met(&error),
    }
}

/// A sector of an extent is where the naive reader finds it.
fn source_agrees(ids: &[LayerId], naive: &Chain, tip: usize, sector: u64, extent: &Extent) {
    let size = naive.0[tip].sector;
    let position = |layer: LayerId| ids.iter().position(|id| *id == layer).expect("a layer");
    let found = match extent.source {
        Source::Data { layer, at } => {
            let at = at.get() + (sector * size) - extent.range.start;
            Who::Data { layer: position(layer), at }
        }
        Source::Zero { .. } => Who::Zero { layer: None },
        Source::Parent => panic!("{extent:?} of a chain"),
    };
    let expected = match naive.who(tip, sector) {
        Ok(Who::Zero { .. }) => Who::Zero { layer: None },
        Ok(who) => who,
        Err(why) => panic!("sector {sector} has {extent:?}, but {why}"),
    };
    let sizes: Vec<u64> = naive.0.iter().map(|layer| layer.size).collect();
    assert_eq!(found, expected, "sector {sector} of {extent:?}, the layers' sizes are {sizes:?}");
}

/// Whether the naive reader may look elsewhere: it takes the first region table with a right sum, whatever it says.
pub fn is_beyond_naive(chain: &DiffChain) -> bool {
    let mut images = chain.layers().into_iter().filter_map(|layer| chain.image(layer.id));
    images.any(|image| image.info().current_region_table != 0)
}

/// Whether the naive reader refuses an image for its parent locator alone.
pub fn is_of_locator(why: &str) -> bool {
    why.contains("locator") || why.contains("utf-16")
}

/// The layers from the base up, in the naive reader's order.
pub fn ids(chain: &DiffChain) -> Vec<LayerId> {
    chain.layers().iter().rev().map(|layer| layer.id).collect()
}
