//! Operations while others read and write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use avhdx::Disk;
use avhdx::ops::Checkpoint;
use avhdx_testkit::rng::Rng;

use super::{MIB, base, bytes, go, naively, paths};

/// Each writer has sectors of its own and counts in them: what it was told is written is what it reads, and a
/// sector is never of two writes.
#[test]
fn no_write_is_lost_or_torn_between_the_layers() {
    const SECTORS: u64 = 2048;
    let folder = tempfile::tempdir().unwrap();
    let chain = base(folder.path(), 8 * MIB);
    let is_over = AtomicBool::new(false);
    let longest = AtomicU64::new(0);
    let told: Vec<AtomicU64> = (0..2 * SECTORS).map(|_| AtomicU64::new(0)).collect();
    let (chain, is_over, told, longest) = (&chain, &is_over, &told, &longest);
    std::thread::scope(|scope| {
        for writer in 0..2 {
            scope.spawn(move || {
                let mut rng = Rng::new(writer);
                let disk = chain.clone();
                for count in 1_u64.. {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    let sector = 2 * rng.below(SECTORS) + writer;
                    let mut data = [0; 512];
                    data.as_chunks_mut::<8>().0.fill(count.to_le_bytes());
                    let start = Instant::now();
                    disk.write_at(&data, sector * 512).unwrap();
                    let waited = start.elapsed().as_micros() as u64;
                    longest.fetch_max(waited, Ordering::Relaxed);
                    told[sector as usize].store(count, Ordering::SeqCst);
                    if rng.chance(1, 100) {
                        disk.flush().unwrap();
                    }
                }
            });
            scope.spawn(move || {
                let mut rng = Rng::new(10 + writer);
                let disk = chain.clone();
                while !is_over.load(Ordering::SeqCst) {
                    let sector = rng.below(2 * SECTORS);
                    let least = told[sector as usize].load(Ordering::SeqCst);
                    let mut data = [0; 512];
                    disk.read_at(&mut data, sector * 512).unwrap();
                    let (words, _) = data.as_chunks::<8>();
                    let found = u64::from_le_bytes(words[0]);
                    assert!(words.iter().all(|word| *word == words[0]), "torn");
                    assert!(found >= least, "sector {sector} has {found} after {least}");
                }
            });
        }
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(3));
            let made = Checkpoint::new().run(chain, &mut go).unwrap();
            assert!(made.warnings.is_empty(), "{:?}", made.warnings);
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let expected: Vec<u8> = told
        .iter()
        .flat_map(|count| count.load(Ordering::SeqCst).to_le_bytes().repeat(64))
        .collect();
    assert!(bytes(chain)[..expected.len()] == expected);
    chain.flush().unwrap();
    assert!(naively(&paths(chain))[..expected.len()] == expected);
    println!("the longest wait of a writer: {} us", longest.load(Ordering::Relaxed));
}
