//! Random chains, for tests that want many different ones.

use super::{Block, Data, Image, Order, state};
use crate::rng::Rng;

impl Image {
    /// Gives about two in three blocks a state, data and bits derived from `seed`; partially present
    /// ones only if the image has a parent.
    pub fn scatter(&mut self, seed: u64) -> &mut Self {
        let mut rng = Rng::new(seed);
        for b in 0..self.block_count() {
            let data = Data::Pattern(rng.next_u64());
            let block = match rng.below(9) {
                0..3 => continue,
                3 => Block::bare(state::ZERO),
                4 => Block::full(data).with_state(state::UNMAPPED),
                5..7 if self.has_parent => {
                    let bits = bits(&mut rng, self.sectors_per_block() as usize);
                    Block::partial(data, bits)
                }
                // The bits of a full block are ignored by readers, but set.
                7 if self.has_parent => {
                    let mut block = Block::full(data);
                    block.bitmap = bits(&mut rng, self.sectors_per_block() as usize);
                    block
                }
                _ => Block::full(data),
            };
            self.put(b, block);
        }
        self
    }
}

/// A few runs of sectors, including single ones and whole bytes of the bitmap.
fn bits(rng: &mut Rng, sectors: usize) -> Vec<bool> {
    let mut bits = vec![false; sectors];
    for _ in 0..=rng.below(6) {
        let from = rng.below(sectors as u64) as usize;
        let length = 1 << rng.below(9);
        bits[from..sectors.min(from + length)].fill(true);
    }
    bits
}

/// The images of a small random chain, base first, derived from `seed`: one sector size, various block
/// sizes and disk sizes, every state, any order of blocks.
pub fn random_chain(seed: u64, layers: usize) -> Vec<Image> {
    let mut rng = Rng::new(seed);
    let sector = if rng.chance(1, 3) { 4096 } else { 512 };
    let mut images: Vec<Image> = Vec::new();
    for n in 0..layers {
        let size = (2 << 20) + rng.below(6 << 20) / 4096 * 4096;
        let mut image = match images.last() {
            Some(parent) => {
                let mut child = parent.new_child();
                // Most children are as large as their parent.
                child.size = if rng.chance(1, 3) { size } else { parent.size };
                child
            }
            None => Image::dynamic(size),
        };
        image.logical_sector = sector;
        image.block_size = 1 << (20 + rng.below(2));
        image.order = match rng.below(3) {
            0 => Order::Sequential,
            1 => Order::Reversed,
            _ => Order::Shuffled(rng.next_u64()),
        };
        image.gap = rng.below(2) << 20;
        image.scatter(rng.next_u64() ^ n as u64);
        images.push(image);
    }
    images
}
