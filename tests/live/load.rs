//! Operations during concurrent reads and writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use avhdx::ops::{Checkpoint, Merge};
use avhdx::{DiffChain, Disk, Zeroing};
use avhdx_testkit::rng::Rng;

use super::{MIB, base, bytes, naively, paths};

/// Sectors of each writer, alternating with those of the other.
const SECTORS: u64 = 4096;
const SIZE: u64 = 2 * SECTORS * 512 + 4 * MIB;

/// Two writers and two readers.
///
/// Each writer counts in its own sectors: what was acknowledged as written is read from then on, and a
/// sector never mixes two writes.
/// on, and a sector is never of two writes.
struct Load<'a> {
    chain: &'a DiffChain,
    told: Vec<AtomicU64>,
    is_over: AtomicBool,
    longest: AtomicU64,
}

impl<'a> Load<'a> {
    fn new(chain: &'a DiffChain) -> Self {
        let told = (0..2 * SECTORS).map(|_| AtomicU64::new(0)).collect();
        Self { chain, told, is_over: AtomicBool::new(false), longest: AtomicU64::new(0) }
    }

    /// Runs `meanwhile` under load, and compares everything afterwards.
    fn run(self, meanwhile: impl FnOnce()) {
        struct Over<'b>(&'b AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        std::thread::scope(|scope| {
            let load = &self;
            for thread in 0..2 {
                scope.spawn(move || load.write(thread));
                scope.spawn(move || load.read(10 + thread));
            }
            let _over = Over(&self.is_over);
            meanwhile();
        });
        let counts = self.told.iter().map(|count| count.load(Ordering::SeqCst));
        let expected: Vec<u8> = counts.flat_map(|count| count.to_le_bytes().repeat(64)).collect();
        assert!(bytes(self.chain)[..expected.len()] == expected);
        self.chain.flush().unwrap();
        assert!(naively(&paths(self.chain))[..expected.len()] == expected);
        println!("the longest wait of a writer: {} us", self.longest.load(Ordering::Relaxed));
    }

    fn write(&self, writer: u64) {
        let mut rng = Rng::new(writer);
        let disk = self.chain.clone();
        for count in 1_u64.. {
            if self.is_over.load(Ordering::SeqCst) {
                break;
            }
            let sector = 2 * rng.below(SECTORS) + writer % 2;
            let (at, mut count) = (sector * 512, count);
            let start = Instant::now();
            if rng.chance(1, 20) {
                // Partial sectors, and zeros.
                count = 0;
                disk.write_zeroes(at..at + 512, Zeroing::MayUnmap).unwrap();
            } else if rng.chance(1, 4) {
                let half = count.to_le_bytes().repeat(32);
                disk.write_at(&half, at).unwrap();
                disk.write_at(&half, at + 256).unwrap();
            } else {
                disk.write_at(&count.to_le_bytes().repeat(64), at).unwrap();
            }
            self.longest.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
            self.told[sector as usize].store(count, Ordering::SeqCst);
            // Whole blocks after the sectors, allocated and freed in turn.
            let block = 2 * SECTORS * 512 + (2 * writer + count % 2) * MIB;
            match rng.below(400) {
                0..4 => disk.flush().unwrap(),
                4 => disk.write_at(&[writer as u8 + 1; 1 << 20], block).unwrap(),
                5 => disk.discard(block..block + MIB).unwrap(),
                _ => {}
            }
        }
    }

    fn read(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        let disk = self.chain.clone();
        while !self.is_over.load(Ordering::SeqCst) {
            let sector = rng.below(2 * SECTORS);
            let told = || self.told[sector as usize].load(Ordering::SeqCst);
            let before = told();
            let mut data = [0; 512];
            disk.read_at(&mut data, sector * 512).unwrap();
            let found = data.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            let (least, most) = (found.clone().min().unwrap(), found.max().unwrap());
            let after = told();
            // No write in between, except for one still in progress.
            if before == after && before > 0 {
                assert!(
                    least == before || least == 0 || least > before,
                    "{before}: {least}, {most}"
                );
                assert!(most == before || most == 0 || most > before, "{before}: {least}, {most}");
            }
        }
    }
}

#[test]
fn no_write_is_lost_or_torn_between_the_layers() {
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), SIZE);
    Load::new(&chain).run(|| {
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(3));
            let made = Checkpoint::new().run(&chain).unwrap();
            assert!(made.warnings.is_empty(), "{:?}", made.warnings);
        }
    });
}

#[test]
fn checkpoints_and_merges_of_a_chain_in_use() {
    let wanted =
        if std::env::var_os("AVHDX_LONG").is_some_and(|long| long == "1") { 400 } else { 60 };
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), SIZE);
    Load::new(&chain).run(|| {
        let mut rng = Rng::new(7);
        let (mut made, mut merged, mut tips) = (0, 0, 0);
        while made < wanted || merged < wanted {
            let depth = chain.layers().len() as u64;
            if made < wanted && (depth < 2 || rng.chance(8, 8 + depth)) {
                let done = Checkpoint::new().block_size(1 << 20).run(&chain).unwrap();
                assert!(done.warnings.is_empty(), "{:?}", done.warnings);
                made += 1;
            } else if depth > 1 {
                let child = rng.below(depth - 1) as usize;
                let merge = Merge::new(chain.layers()[child].id);
                let merge = merge.low_space(rng.chance(1, 4)).share(rng.chance(1, 2));
                let done = merge.run(&chain).unwrap_or_else(|error| panic!("{error}"));
                assert!(done.warnings.is_empty(), "{:?}", done.warnings);
                merged += 1;
                tips += u64::from(child == 0);
            }
        }
        println!("{made} checkpoints and {merged} merges, {tips} of them of the tip");
    });
}
