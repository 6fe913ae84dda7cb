//! Sealing a disk beside hashing its bytes bare: by as many threads, from the same file, in turns.
//!
//! `cargo bench -p avhdx-seals`; `AVHDX_BENCH_QUICK=1` takes a small disk. The ratio is what is to be compared: 1.00 is
//! as fast as BLAKE3, or the disk, is here.
#![allow(clippy::disallowed_methods, missing_docs)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use avhdx::{CreateOptions, Disk, DiskExt, Extent, OpenOptions, Source};
use avhdx_seals::{Seal, Verify};
use avhdx_testkit::rng::Rng;

const PIECE: u64 = 1 << 20;

fn main() {
    let is_quick = std::env::var_os("AVHDX_BENCH_QUICK").is_some();
    let (size, rounds) = if is_quick { (64 << 20, 3) } else { (1 << 30, 7) };
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.vhdx");
    make(&image, size);
    let chain = OpenOptions::new().open(&image).unwrap();
    let extents: Vec<Extent> = chain.extents(0..size).collect::<Result<_, _>>().unwrap();
    for threads in [1, 2] {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            times[0].push(timed(|| bare(&image, &extents, threads)));
            times[1].push(timed(|| {
                let sealed = Seal::new().again(true).threads(threads).run(&chain).unwrap();
                assert_eq!(sealed.layers[0].read, size);
            }));
            times[2].push(timed(|| {
                assert!(Verify::new().threads(threads).run(&chain).unwrap().is_whole());
            }));
        }
        let [bare, seal, verify] = times.map(median);
        let rate = |time: Duration| size as f64 / time.as_secs_f64() / f64::from(1 << 20);
        println!(
            "{threads} thread(s): bare {:.0} MiB/s, seal {:.0} MiB/s (ratio {:.2}), verify {:.0} MiB/s (ratio {:.2})",
            rate(bare),
            rate(seal),
            rate(seal) / rate(bare),
            rate(verify),
            rate(verify) / rate(bare),
        );
    }
}

fn make(path: &Path, size: u64) {
    let image = CreateOptions::dynamic(size).create(path).unwrap();
    let mut rng = Rng::new(1);
    let mut buf = vec![0; PIECE as usize];
    for at in (0..size).step_by(PIECE as usize) {
        rng.fill(&mut buf);
        image.write_at(&buf, at).unwrap();
    }
    image.close().unwrap();
}

/// Reads and hashes the bytes of the disk from the file, in pieces.
fn bare(path: &Path, extents: &[Extent], threads: usize) {
    let pieces: Vec<(u64, u64)> = extents
        .iter()
        .filter_map(|extent| match extent.source {
            Source::Data { at, .. } => Some((at.get(), extent.range.end - extent.range.start)),
            _ => None,
        })
        .flat_map(|(at, len)| {
            (0..len).step_by(PIECE as usize).map(move |n| (at + n, PIECE.min(len - n)))
        })
        .collect();
    let file = &File::open(path).unwrap();
    thread::scope(|scope| {
        for part in pieces.chunks(pieces.len().div_ceil(threads)) {
            scope.spawn(move || {
                let mut hasher = blake3::Hasher::new();
                let mut buf = vec![0; PIECE as usize];
                for (at, len) in part {
                    let buf = &mut buf[..*len as usize];
                    file.read_exact_at(buf, *at).unwrap();
                    hasher.update(buf);
                }
                std::hint::black_box(hasher.finalize());
            });
        }
    });
}

fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
