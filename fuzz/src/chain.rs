//! Sound chains of any shape: bytes, extents and views are the naive reader's.

use avhdx::Disk;
use avhdx_testkit::build::{Block, Data, Image, Layout, Order, state};
use avhdx_testkit::rng::pattern;
use avhdx_testkit::sim::Bytes;

use crate::compare::{Errors, agrees, ids};
use crate::image::bytes_of;
use crate::input::Input;
use crate::place::Place;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// The bytes at both ends of a block that are not zeros.
const END: u64 = 32 << 10;
const STATES: [u8; 7] = [
    state::FULLY_PRESENT,
    state::PARTIALLY_PRESENT,
    state::NOT_PRESENT,
    state::ZERO,
    state::UNMAPPED,
    state::UNDEFINED,
    state::FULLY_PRESENT,
];

pub fn run(input: &mut Input<'_>) {
    let is_large = input.chance(1, 4);
    let Sound { images, files, edges } = sound(is_large, input);
    let mut sectors: Vec<u64> = edges.iter().flat_map(|at| [at.saturating_sub(1), *at]).collect();
    sectors.sort_unstable();
    sectors.dedup();
    let files: Vec<Bytes> = files.into_iter().map(|(bytes, _)| bytes).collect();
    let place = Place::new(&files);
    let naive = place.naive(place.count).expect("sound images");
    let chain = place.open(&place.options()).unwrap_or_else(|error| panic!("{error}"));
    for (tip, id) in ids(&chain).into_iter().enumerate() {
        let view = chain.view(id).expect("a layer of the chain");
        assert_eq!(view.geometry().size, images[tip].size);
        agrees(&view, &naive, tip, &sectors, Errors::Refused, input);
    }
}

/// A sound chain, base first.
pub struct Sound {
    pub images: Vec<Image>,
    pub files: Vec<(Bytes, Layout)>,
    /// Sectors in front of which something changes.
    edges: Vec<u64>,
}

/// A chain of up to three layers. Large ones have blocks around the end of a chunk, which the next sector bitmap follows.
pub fn sound(is_large: bool, input: &mut Input<'_>) -> Sound {
    let sector = *input.pick(&[512, 4096]);
    let mut images: Vec<Image> = Vec::new();
    let mut edges = vec![0];
    for n in 0..1 + input.below(3) {
        let size = match (is_large, input.below(3)) {
            (true, _) => (sector << 23) + (input.below(8 << 20) / sector * sector),
            (false, 0) => input.below(6 << 20) / sector * sector,
            (false, _) => 4 * MIB,
        };
        let mut image = match images.last() {
            Some(parent) => parent.new_child(),
            None => Image::dynamic(size),
        };
        image.size = size.max(sector);
        image.logical_sector = sector as u32;
        image.block_size = 1 << (20 + input.below(if is_large { 6 } else { 3 }));
        image.order = match input.below(3) {
            0 => Order::Sequential,
            1 => Order::Reversed,
            _ => Order::Shuffled(input.below(9)),
        };
        image.gap = input.below(2) << 20;
        image.reseed(n + 1);
        put_blocks(&mut image, is_large, &mut edges, input);
        edges.push(image.size / sector);
        images.push(image);
    }
    let mut files = Vec::new();
    for (image, seed) in images.iter().zip(1..) {
        let (mut bytes, layout) = bytes_of(image);
        fill(image, &layout, seed, &mut bytes);
        files.push((bytes, layout));
    }
    Sound { images, files, edges }
}

fn put_blocks(image: &mut Image, is_large: bool, edges: &mut Vec<u64>, input: &mut Input<'_>) {
    let count = image.block_count();
    let per_block = image.sectors_per_block();
    let mut blocks = vec![0, 1, 2, 3, 4, 5];
    if is_large {
        let chunk = image.chunk_ratio();
        blocks = vec![0, chunk - 1, chunk, count - 1];
    }
    for block in blocks.into_iter().filter(|block| *block < count) {
        let state = *input.pick(&STATES);
        let is_partial = state == state::PARTIALLY_PRESENT;
        if is_partial && !image.has_parent || input.chance(1, 4) {
            continue;
        }
        edges.extend([block * per_block, (block + 1) * per_block]);
        let has_space = is_partial || state == state::FULLY_PRESENT || input.chance(1, 4);
        let mut made = Block::bare(state);
        if has_space {
            made.data = Data::Zeros;
        }
        if is_partial || image.has_parent && input.chance(1, 8) {
            made.bitmap = vec![false; per_block as usize];
            for _ in 0..=input.below(4) {
                let from = match input.below(3) {
                    0 => 0,
                    1 => per_block - 1 - input.below(70),
                    _ => input.below(per_block),
                };
                let most = 1 << input.below(9);
                let end = per_block.min(from + 1 + input.below(most));
                made.bitmap[from as usize..end as usize].fill(true);
                edges.extend([block * per_block + from, block * per_block + end]);
            }
        }
        image.put(block, made);
    }
}

/// Writes bytes at both ends of the blocks and of their runs of sectors; elsewhere they are zeros.
fn fill(image: &Image, layout: &Layout, seed: u64, file: &mut Bytes) {
    let block_size = u64::from(image.block_size);
    let sector = u64::from(image.logical_sector);
    for (block, at) in &layout.payload {
        let bits = &image.blocks[block].bitmap;
        let turns = (1..bits.len()).filter(|n| bits[*n] != bits[n - 1]).map(|n| n as u64 * sector);
        let around = turns.flat_map(|at| [(at - 1) / PAGE * PAGE, at / PAGE * PAGE]);
        let around = around.map(|start| start..start + PAGE);
        for range in [0..END, block_size - END..block_size].into_iter().chain(around) {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            pattern(seed, block * block_size + range.start, &mut bytes);
            file.write(at + range.start, &bytes);
        }
    }
}
