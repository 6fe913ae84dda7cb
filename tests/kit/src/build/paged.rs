//! Layers for benchmarks, written page by page without being held in memory.

use super::{Block, Data, Image, Layout, state};
use crate::io::{ok, write_at};
use std::fs::File;
use std::path::Path;

/// How much is written in one call at most.
const RUN: usize = 1 << 20;

impl Image {
    /// Writes this image with payload chosen page by page (`page` bytes, a multiple of the
    /// sector size that divides the block size): `owner(page number)` returns whether the layer
    /// holds the page, `fill(page number, bytes)` its contents. Block states follow: with none,
    /// all or some pages owned, blocks are NOT_PRESENT, FULLY_PRESENT or (in a child)
    /// PARTIALLY_PRESENT. Pages not owned stay holes.
    ///
    /// Blocks that are in `blocks` already are kept, and `owner` is not called for their pages.
    pub fn write_paged(
        &self,
        path: impl AsRef<Path>,
        page: u32,
        mut owner: impl FnMut(u64) -> bool,
        mut fill: impl FnMut(u64, &mut [u8]),
    ) -> Layout {
        assert!(page.is_multiple_of(self.logical_sector) && self.block_size.is_multiple_of(page));
        let per_block = u64::from(self.block_size / page);
        let pages = self.size.div_ceil(page.into());
        let sectors_per_page = (page / self.logical_sector) as usize;
        let mut image = self.clone();
        let mut owned_blocks = Vec::new();
        let mut owned = Vec::new();
        for b in (0..self.block_count()).filter(|b| !self.blocks.contains_key(b)) {
            owned.clear();
            owned.extend((b * per_block..pages.min((b + 1) * per_block)).map(&mut owner));
            let count = owned.iter().filter(|o| **o).count();
            if count == 0 {
                continue;
            }
            let mut block = Block::full(Data::Zeros);
            if self.has_parent && count < owned.len() {
                block.state = state::PARTIALLY_PRESENT;
                block.bitmap =
                    owned.iter().flat_map(|o| std::iter::repeat_n(*o, sectors_per_page)).collect();
            }
            image.blocks.insert(b, block);
            owned_blocks.push((b, owned.clone()));
        }

        let path = path.as_ref();
        let layout = image.write_to(path);
        let mut file = ok(path, File::options().write(true).open(path));
        let mut run = Vec::with_capacity(RUN);
        for (b, owned) in owned_blocks {
            let at = layout.payload[&b];
            let mut end = 0;
            for (i, _) in owned.iter().enumerate().filter(|(_, o)| **o) {
                if i as u64 * u64::from(page) != end || run.len() >= RUN {
                    ok(path, write_at(&mut file, at + end - run.len() as u64, &run));
                    run.clear();
                    end = i as u64 * u64::from(page);
                }
                let start = run.len();
                run.resize(start + page as usize, 0);
                fill(b * per_block + i as u64, &mut run[start..]);
                end += u64::from(page);
            }
            ok(path, write_at(&mut file, at + end - run.len() as u64, &run));
            run.clear();
        }
        layout
    }
}
