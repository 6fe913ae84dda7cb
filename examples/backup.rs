//! Backs up a disk in full, then only what changed since, and restores it.
//!
//! ```sh
//! cargo run --release --example backup
//! ```
//!
//! Every backup is taken from a checkpoint, so that the disk is written to meanwhile. What changed between two
//! checkpoints comes from their tables alone, without reading a byte of data. A checkpoint is given up as soon as its
//! successor is saved: the chain stays two layers long.

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};

use avhdx::ops::{Checkpoint, Compare, Delete};
use avhdx::{ChangedSource, CreateOptions, DiffChain, Disk, LayerId, OpenOptions, Point, RawDisk};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// What a backup holds: ranges with their bytes, and ranges of zeros.
#[derive(Default)]
struct Backup {
    data: BTreeMap<u64, Vec<u8>>,
    zeros: Vec<Range<u64>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut tip = folder.path().join("web.vhdx");
    CreateOptions::dynamic(SIZE).block_size(MIB as u32).create(&tip)?.close()?;

    let mut backups = Vec::new();
    for day in 0..4 {
        tip = work_and_save(&tip, day, &mut backups)?;
    }

    let restored = restore(&backups)?;
    let now = DiffChain::open(&tip)?;
    let same = Compare::new().run(&now, &restored)?;
    match same.first_difference {
        None => println!("restored: the same {} MiB", SIZE / MIB),
        Some(difference) => return Err(format!("differs at {}", difference.offset).into()),
    }
    Ok(())
}

/// A day in the life of the disk, and its backup. Returns the new tip.
fn work_and_save(
    tip: &Path,
    day: u64,
    backups: &mut Vec<Backup>,
) -> Result<PathBuf, Box<dyn Error>> {
    let chain = OpenOptions::new().writable(true).open(tip)?;
    for write in 0..3 {
        let offset = (day * 7 + write * 13) % 60 * MIB + write * 4096;
        chain.write_at(&vec![(day * 3 + write + 1) as u8; 200_000], offset)?;
    }
    if day == 2 {
        chain.discard(7 * MIB..9 * MIB)?;
    }

    let made = Checkpoint::new().label(format!("backup {day}")).run(&chain)?;
    // The checkpoint of the last backup, found by its label.
    let labelled = |label: String| {
        move |point: &Point| (point.label.as_deref() == Some(&label)).then_some(point.layer)
    };
    let before = match day {
        0 => None,
        _ => chain.points().iter().find_map(labelled(format!("backup {}", day - 1))),
    };
    let point = chain.view(made.frozen)?;
    let backup = save(&point, before)?;
    let bytes: usize = backup.data.values().map(Vec::len).sum();
    let zeros: u64 = backup.zeros.iter().map(|range| range.end - range.start).sum();
    let kind = if before.is_none() { "full" } else { "changes" };
    println!("day {day}: {kind:8} {bytes:>8} bytes of data, {zeros:>8} of zeros");
    backups.push(backup);

    // A view keeps the layers that it shows from being merged.
    drop(point);
    if let Some(before) = before {
        Delete::point(before).run(&chain)?;
    }
    let layers = chain.layers().len();
    chain.close()?;
    println!("       the chain has {layers} layers");
    Ok(made.path)
}

/// Saves what changed since `before`, or everything.
fn save(point: &DiffChain, before: Option<LayerId>) -> avhdx::Result<Backup> {
    let mut backup = Backup::default();
    for extent in point.changes(before)? {
        let extent = extent?;
        match extent.source {
            ChangedSource::Zero { .. } => backup.zeros.push(extent.range),
            ChangedSource::Data { .. } => {
                let mut bytes = vec![0; (extent.range.end - extent.range.start) as usize];
                point.read_at(&mut bytes, extent.range.start)?;
                backup.data.insert(extent.range.start, bytes);
            }
        }
    }
    Ok(backup)
}

/// Puts a new disk together from all backups, oldest first.
fn restore(backups: &[Backup]) -> avhdx::Result<RawDisk> {
    let storage = avhdx::storage::MemStorage::new(vec![0; SIZE as usize]);
    let disk = RawDisk::new(std::sync::Arc::new(storage))?;
    for backup in backups {
        for range in &backup.zeros {
            disk.discard(range.clone())?;
        }
        for (offset, bytes) in &backup.data {
            disk.write_at(bytes, *offset)?;
        }
    }
    Ok(disk)
}
