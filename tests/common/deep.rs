//! Chains whose deep layers matter, and offsets to read from.

use avhdx_testkit::build::{Block, Data, Image, Order, state};
use avhdx_testkit::rng::Rng;

use super::MIB;

/// Nothing, too little to keep answers, some, and enough for everything.
pub const BUDGETS: [usize; 5] = [0, 2 << 10, 6 << 10, 64 << 10, 64 << 20];

/// The images of a chain, base first, whose deep layers matter: each holds a few blocks of the disk, in any
/// state, with its own block size.
pub fn deep_chain(seed: u64, layers: u64) -> Vec<Image> {
    let mut rng = Rng::new(seed);
    let sector = if rng.chance(1, 2) { 4096 } else { 512 };
    let sizes =
        |rng: &mut Rng| 2 * MIB + rng.below(3 * MIB) / u64::from(sector) * u64::from(sector);
    let mut images: Vec<Image> = Vec::new();
    for n in 0..layers {
        let size = sizes(&mut rng);
        let mut image = match images.last() {
            Some(parent) => {
                let mut child = parent.new_child();
                child.size = if rng.chance(1, 4) { size } else { parent.size };
                child
            }
            None => Image::dynamic(size),
        };
        image.logical_sector = sector;
        image.block_size = 1 << (20 + rng.below(3));
        image.order = match rng.below(3) {
            0 => Order::Sequential,
            1 => Order::Reversed,
            _ => Order::Shuffled(rng.next_u64()),
        };
        image.gap = rng.below(2) << 20;
        let sectors = image.sectors_per_block();
        for b in 0..image.block_count() {
            let data = Data::Pattern(rng.next_u64());
            let runs = |rng: &mut Rng| {
                let run = |rng: &mut Rng| {
                    let first = rng.below(sectors);
                    let most = (sectors - first).min(1 << rng.below(10));
                    (first as usize, 1 + rng.below(most) as usize)
                };
                (0..1 + rng.below(5)).map(|_| run(rng)).collect::<Vec<_>>()
            };
            let block = match rng.below(6 + 2 * layers.min(30)) {
                _ if n == 0 && rng.chance(3, 4) => Block::full(data),
                0 => Block::full(data),
                1 => Block::bare(state::ZERO),
                2 => Block::full(data).with_state(state::UNMAPPED),
                3 => Block::bare(state::UNDEFINED),
                k if k % 3 > 0 && image.has_parent => Block::partial_runs(data, &runs(&mut rng)),
                _ => continue,
            };
            image.put(b, block);
        }
        images.push(image);
    }
    images
}

/// A random read of one of several kinds: within a sector, over a few, over many spans.
pub fn somewhere(rng: &mut Rng, size: u64) -> (u64, usize) {
    let at = match rng.below(4) {
        0 => rng.below(size),
        1 => rng.below(size) / 4096 * 4096,
        // Around the boundaries of spans and blocks.
        _ => ((1 + rng.below(size.div_ceil(MIB))) * MIB - rng.below(5000)).min(size - 1),
    };
    let most = match rng.below(8) {
        0 => 3 * MIB,
        1 | 2 => 70_000,
        3 | 4 => 4096,
        _ => 700,
    };
    (at, (1 + rng.below(most)).min(size - at) as usize)
}
