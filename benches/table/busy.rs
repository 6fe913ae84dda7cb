//! Merges of a tip that is being written to: bytes moved, the longest wait of a writer, and the time.
//!
//! A full tip is merged into a full parent at up to 400 MiB a second, under 2,000 writes of 4 KiB a second all over the
//! disk. A writer that had to wait catches up, so that the load stays constant.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use avhdx::ops::{Merge, Pace};
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions, VhdxFile};

use crate::images::MIB;
use crate::report::{Fact, Report};
use crate::{Result, Run};

const BLOCKS_MIB: [u64; 3] = [2, 32, 256];
const RATE: u64 = 400 * MIB;
const PAGE: u64 = 4096;
/// The time between the starts of two writes.
const EVERY: Duration = Duration::from_micros(500);

pub fn run(run: &Run, report: &mut Report) -> Result<()> {
    report.section(
        "Merges of a tip under 2,000 scattered writes of 4 KiB a second, at up to 400 MiB/s",
    );
    for block in BLOCKS_MIB {
        let work = format!("merge under load, blocks of {block} MiB");
        if !report.wants(&work) {
            continue;
        }
        let folder = run.folder.path().join("busy");
        fs::create_dir(&folder)?;
        let busy = merge(&folder, run.options.mib * MIB, block * MIB)?;
        let bytes = |bytes: u64| (bytes / MIB) as f64;
        let meanwhile =
            format!("the tip held {} MiB, {} writes meanwhile", run.options.mib, busy.writes);
        report.fact(
            Fact::new(&format!("{work}: moved"), bytes(busy.moved), "MiB", None).note(meanwhile),
        );
        let longest = busy.longest.as_secs_f64() * 1e3;
        report.fact(Fact::new(&format!("{work}: longest write"), longest, "ms", None));
        report.fact(Fact::new(&format!("{work}: time"), busy.time.as_secs_f64(), "s", None));
        fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

struct Busy {
    moved: u64,
    writes: u64,
    longest: Duration,
    time: Duration,
}

fn merge(folder: &Path, size: u64, block: u64) -> Result<Busy> {
    let (base, tip) = (folder.join("base.vhdx"), folder.join("tip.avhdx"));
    let parent = CreateOptions::dynamic(size).block_size(block as u32).create(&base)?;
    fill(&parent, size, 1)?;
    parent.close()?;
    let child = CreateOptions::child_of(&parent)?.block_size(block as u32);
    drop(parent);
    drop(child.create(&tip)?);
    let chain = OpenOptions::new().writable(true).open(&tip)?;
    fill(&chain, size, 2)?;
    let pace = Pace::new();
    pace.limit(Some(RATE));
    let is_over = AtomicBool::new(false);
    let (merged, time, last) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&chain, size, &is_over));
        let start = Instant::now();
        let merge = Merge::new(chain.layers()[0].id).pace(pace);
        let merged = merge.run(&chain);
        let time = start.elapsed();
        is_over.store(true, Ordering::SeqCst);
        (merged, time, writer.join())
    });
    let (writes, longest, model) = last.map_err(|_| "the writer panicked")??;
    let moved = merged?.moved;
    chain.close()?;
    drop(chain);
    check(&base, size, &model)?;
    Ok(Busy { moved, writes, longest, time })
}

fn fill(disk: &dyn Disk, size: u64, with: u8) -> Result<()> {
    for at in (0..size).step_by(MIB as usize) {
        disk.write_at(&vec![with; MIB as usize], at)?;
    }
    Ok(disk.flush()?)
}

/// Writes until the merge is over; returns the number of writes, the longest one, and the contents of each page.
fn write(
    chain: &DiffChain,
    size: u64,
    is_over: &AtomicBool,
) -> avhdx::Result<(u64, Duration, Vec<u8>)> {
    let pages = size / PAGE;
    let mut model = vec![2; pages as usize];
    let (mut longest, mut writes, mut state) = (Duration::ZERO, 0, 0x9E37_79B9_7F4A_7C15_u64);
    let start = Instant::now();
    while !is_over.load(Ordering::SeqCst) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (page, with) = (state % pages, (state >> 56) as u8 | 1);
        let begun = Instant::now();
        chain.write_at(&[with; PAGE as usize], page * PAGE)?;
        longest = longest.max(begun.elapsed());
        model[page as usize] = with;
        writes += 1;
        std::thread::sleep((EVERY * writes as u32).saturating_sub(start.elapsed()));
    }
    Ok((writes, longest, model))
}

/// The parent holds what was written.
fn check(base: &Path, size: u64, model: &[u8]) -> Result<()> {
    let disk = VhdxFile::open(base)?;
    let mut found = vec![0; MIB as usize];
    for at in (0..size).step_by(MIB as usize) {
        disk.read_at(&mut found, at)?;
        let first = (at / PAGE) as usize;
        for (page, with) in found.chunks(PAGE as usize).zip(&model[first..]) {
            if page.iter().any(|byte| byte != with) {
                return Err(
                    format!("the parent does not hold what was written near {at:#x}").into()
                );
            }
        }
    }
    Ok(())
}
