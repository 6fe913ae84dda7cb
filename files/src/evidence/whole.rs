//! Which files of a disk are whole although a part of it is lost.

use std::ops::Range;
use std::sync::Arc;

use avhdx::Disk;

use super::known::holding;
use crate::error::{Error, ErrorKind};
use crate::item::{Kind, Place};
use crate::tree::{Entry, FileSystem, Options};
use crate::volumes::{Volume, Volumes};

/// Bytes that are read of a volume to tell files of a folder apart of which a part is lost. Beyond, none of them is whole.
const MOST_LOOKED: u64 = 4 << 30;

/// A file, folder or link, or what cannot be read of the disk.
#[derive(Debug)]
#[non_exhaustive]
pub struct Whole {
    /// The number of the volume in the partition table.
    pub volume: Option<u32>,
    /// The path from the top of the volume; empty for a volume that cannot be read.
    pub path: Vec<u8>,
    /// What it is; `None` if that cannot be read.
    pub kind: Option<Kind>,
    /// The number of bytes of a file; 0 for others.
    pub size: u64,
    /// Whether every byte of it, and all that was read to find it, lies outside of what is lost.
    pub is_whole: bool,
    /// How many bytes of its contents are lost.
    pub lost: u64,
    /// What cannot be read, as of a damaged folder; the walk goes on behind it.
    pub error: Option<Error>,
}

/// The sectors of a partition table at either end of a disk: its header and 128 entries, and the MBR before.
const TABLE_SECTORS: u64 = 34;

/// Tells of each file of all volumes whether it is whole, with the ranges of the disk that are lost, in order. Each file
/// comes after the folder that it lies in. Contents are not read.
///
/// # Errors
/// [`ErrorKind::Disk`] if the disk cannot be read; [`ErrorKind::Damaged`] if no copy of its partition table is of use.
pub fn whole_files(
    disk: &Arc<dyn Disk>,
    lost: &[Range<u64>],
    each: &mut dyn FnMut(Whole),
) -> crate::Result<()> {
    let volumes = Volumes::of(Arc::clone(disk))?;
    // Either copy of a partition table will do; in what else was looked at for signatures, there are none if it is lost.
    let geometry = disk.geometry();
    let table = (TABLE_SECTORS * u64::from(geometry.logical_sector)).min(geometry.size);
    let is_there = |copy: Range<u64>| !meets_any(lost, std::slice::from_ref(&copy));
    let is_found = is_there(0..table) || is_there(geometry.size - table..geometry.size);
    for volume in volumes.iter().filter(|volume| volume.is_readable()) {
        walk(volume, lost, is_found, each);
    }
    Ok(())
}

fn walk(volume: &Volume, lost: &[Range<u64>], is_found: bool, each: &mut dyn FnMut(Whole)) {
    let number = volume.number();
    let failed = |path: &[u8], error: Error| Whole {
        volume: number,
        path: path.to_vec(),
        kind: None,
        size: 0,
        is_whole: false,
        lost: 0,
        error: Some(error),
    };
    let tree = match volume.open_with(Options::default().record(true)) {
        Ok(tree) => tree,
        Err(error) => return each(failed(b"", error)),
    };
    let root = match tree.root() {
        Ok(root) => root,
        Err(error) => return each(failed(b"", error)),
    };
    // What opens the volume decides all of its files.
    let is_found = is_found && !meets_any(lost, &tree.touched());
    // The folders on the way, with whether all of them were read from what is left.
    let mut way: Vec<(Vec<u8>, bool)> = vec![(Vec::new(), is_found)];
    let mut is_top_read = true;
    tree.bytes().record();
    for next in tree.walk(&root) {
        let touched = tree.bytes().touched();
        tree.bytes().record();
        let is_read = !meets_any(lost, &touched);
        let entry = match next {
            Ok(entry) => entry,
            Err(error) => {
                // A limit ends the walk.
                let path = error.path().map_or(Vec::new(), |path| path.as_bytes()[1..].to_vec());
                each(failed(&path, error));
                continue;
            }
        };
        let folder = entry.path().len().saturating_sub(entry.name().len() + 1);
        let folder = &entry.path()[..folder];
        while way.len() > 1 && way.last().is_some_and(|(path, _)| path != folder) {
            way.pop();
        }
        if way.last().is_none_or(|(path, _)| path != folder) {
            // What was read before its first entry is the folder itself, with the facts of all that it holds.
            way.push((folder.to_vec(), is_read && way.iter().all(|(_, is_read)| *is_read)));
        } else if let Some(last) = way.last_mut().filter(|_| !folder.is_empty()) {
            last.1 &= is_read;
        } else {
            is_top_read &= is_read;
        }
        let is_found = is_top_read && way.iter().all(|(_, is_read)| *is_read);
        let is_opened = way[0].1;
        each(judge(&tree, number, &entry, lost, (is_found, is_opened)));
        tree.bytes().record();
    }
}

fn judge(
    tree: &FileSystem,
    volume: Option<u32>,
    entry: &Entry,
    lost: &[Range<u64>],
    (is_found, is_opened): (bool, bool),
) -> Whole {
    let mut whole = Whole {
        volume,
        path: entry.path().to_vec(),
        kind: entry.kind(),
        size: entry.size(),
        is_whole: false,
        lost: 0,
        error: None,
    };
    let read = || -> crate::Result<u64> {
        let facts = entry.item().facts()?;
        match facts.kind {
            Kind::File => {
                // What lies elsewhere, as with deduplication, cannot be judged.
                facts.check_readable()?;
                let mut sum = stored(tree, entry, None, lost)?;
                for stream in tree.streams(entry)? {
                    sum += stored(tree, entry, Some(&stream.name), lost)?;
                }
                Ok(sum)
            }
            Kind::Link => tree.target(entry).map(|_| 0),
            Kind::Folder => tree.read_dir(entry).map(|_| 0),
            Kind::Other(_) => Ok(0),
        }
    };
    match read() {
        Ok(lost) => whole.lost = lost,
        Err(error) => whole.error = Some(error),
    }
    let is_read = !meets_any(lost, &tree.bytes().touched());
    whole.is_whole = (is_found || is_opened && finds(tree, entry, lost))
        && is_read
        && whole.lost == 0
        && whole.error.is_none();
    whole
}

/// Whether the file is found by what is left: what is lost of its folder may be of others.
fn finds(tree: &FileSystem, entry: &Entry, lost: &[Range<u64>]) -> bool {
    tree.bytes().record();
    let is_found = tree.bytes().count() < MOST_LOOKED && tree.lookup(entry.path()).is_ok();
    is_found && !meets_any(lost, &tree.bytes().touched())
}

/// How many bytes of the contents of a file, or of one of its streams, are lost.
fn stored(
    tree: &FileSystem,
    entry: &Entry,
    stream: Option<&[u8]>,
    lost: &[Range<u64>],
) -> crate::Result<u64> {
    let start = tree.bytes().start();
    let count = |place: Range<u64>| {
        let at = start + place.start..start + place.end;
        let first = lost.partition_point(|range| range.end <= at.start);
        let met = lost[first..].iter().take_while(|range| range.start < at.end);
        met.map(|range| range.end.min(at.end) - range.start.max(at.start)).sum::<u64>()
    };
    tree.task(entry.path(), |system| {
        let Some(mut stream) = system.stored(entry.item(), stream)? else { return Ok(0) };
        let (mut at, mut sum) = (0, 0);
        while at < stream.len() {
            let piece = stream.piece(at)?;
            let len = piece.len.min(stream.len() - at);
            if piece.len == 0 {
                let message = "the file has a piece of no bytes";
                return Err(Error::new(ErrorKind::Damaged, "files.piece", message));
            }
            sum += match piece.place {
                Place::Zeros | Place::Inside => 0,
                Place::At(place) => count(place..place.saturating_add(len)),
                Place::Packed(places, _) => places.into_iter().map(count).sum(),
            };
            at += len;
        }
        Ok(sum)
    })
}

fn meets_any(lost: &[Range<u64>], read: &[Range<u64>]) -> bool {
    read.iter().any(|range| {
        let first = lost.partition_point(|lost| lost.end <= range.start);
        lost.get(first).is_some_and(|lost| lost.start < range.end)
            || holding(lost, range.start).is_some()
    })
}
