//! A chain to read from.

use std::path::{Path, PathBuf};

use avhdx::{CreateOptions, Disk, OpenOptions};

const SIZE: u64 = 256 << 20;
const CHILDREN: u64 = 3;
const PAGE: u64 = 4096;

/// Pseudorandom numbers (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Creates a disk with checkpoints that each changed a few pages, and returns the tip.
pub fn chain(folder: &Path) -> avhdx::Result<PathBuf> {
    let mut rng = Rng(7);
    let mut tip = folder.join("base.vhdx");
    let base = CreateOptions::dynamic(SIZE).create(&tip)?;
    let mut bytes = vec![0; 1 << 20];
    // The last part was never written.
    for at in (0..SIZE - (32 << 20)).step_by(bytes.len()) {
        fill(&mut bytes, &mut rng);
        base.write_at(&bytes, at)?;
    }
    base.close()?;
    drop(base);
    for n in 1..=CHILDREN {
        let parent = OpenOptions::new().open_image(&tip)?;
        let child = CreateOptions::child_of(&parent)?;
        drop(parent);
        tip = folder.join(format!("checkpoint{n}.avhdx"));
        drop(child.create(&tip)?);
        let disk = OpenOptions::new().writable(true).open(&tip)?;
        for _ in 0..4000 {
            let page = &mut bytes[..PAGE as usize];
            fill(page, &mut rng);
            disk.write_at(page, rng.below(SIZE / PAGE) * PAGE)?;
        }
        disk.discard(n << 24..(n << 24) + (4 << 20))?;
        disk.close()?;
    }
    Ok(tip)
}

fn fill(bytes: &mut [u8], rng: &mut Rng) {
    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.next().to_le_bytes()));
}
