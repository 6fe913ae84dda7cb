//! Backs up a disk in full, then only what changed since, and restores it.
//!
//! ```sh
//! cargo run --release --example backup
//! ```
//!
//! Every backup is taken from a checkpoint, so that the disk is written to meanwhile. What changed between two
//! checkpoints comes from their tables alone, without reading a byte of data. A checkpoint is given up as soon as its
//! successor is saved: the chain stays two layers long.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Checkpoint, Compare, Delete};
use avhdx::storage::FileStorage;
use avhdx::{ChangedSource, CreateOptions, DiffChain, Disk, LayerId, OpenOptions, Point, RawDisk};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// How much is moved at once: a range may be as long as the disk.
const PIECE: u64 = MIB;

/// What a backup holds: ranges whose bytes lie in a file, one behind the other, and ranges of zeros.
struct Backup {
    data: Vec<Range<u64>>,
    zeros: Vec<Range<u64>>,
    file: File,
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
    let [bytes, zeros] = [&backup.data, &backup.zeros]
        .map(|ranges| ranges.iter().map(|range| range.end - range.start).sum::<u64>());
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
fn save(point: &DiffChain, before: Option<LayerId>) -> Result<Backup, Box<dyn Error>> {
    let mut backup = Backup { data: Vec::new(), zeros: Vec::new(), file: tempfile::tempfile()? };
    let mut buffer = vec![0; PIECE as usize];
    for extent in point.changes(before)? {
        let extent = extent?;
        match extent.source {
            ChangedSource::Zero { .. } => backup.zeros.push(extent.range),
            ChangedSource::Data { .. } => {
                for piece in pieces(&extent.range) {
                    let bytes = &mut buffer[..(piece.end - piece.start) as usize];
                    point.read_at(bytes, piece.start)?;
                    backup.file.write_all(bytes)?;
                }
                backup.data.push(extent.range);
            }
        }
    }
    Ok(backup)
}

/// Puts a new disk together from all backups, oldest first.
fn restore(backups: &[Backup]) -> Result<RawDisk, Box<dyn Error>> {
    let file = tempfile::tempfile()?;
    file.set_len(SIZE)?;
    let disk = RawDisk::new(Arc::new(FileStorage::from_file(file, "restored")))?;
    let mut buffer = vec![0; PIECE as usize];
    for backup in backups {
        for range in &backup.zeros {
            disk.discard(range.clone())?;
        }
        let mut file = &backup.file;
        file.rewind()?;
        for piece in backup.data.iter().flat_map(pieces) {
            let bytes = &mut buffer[..(piece.end - piece.start) as usize];
            file.read_exact(bytes)?;
            disk.write_at(bytes, piece.start)?;
        }
    }
    Ok(disk)
}

/// The range in pieces that fit the buffer.
fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *range;
    (start..end).step_by(PIECE as usize).map(move |at| at..end.min(at + PIECE))
}
