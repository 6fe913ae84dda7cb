//! Writes a computed repair to the file.
//!
//! First comes what the file grows by, with all bits of its sector bitmaps; then the items of the metadata, then the tables, then everything else, then one header
//! and the other; each is durable before the next begins. The end is cut off last. Until its headers are written, the
//! image has the log that it had, and a replay of it leads back to a state that reads the same.

use std::io;
use std::ops::Range;

use super::undo::is_of_headers;
use super::work::headers_of;
use crate::error::{Error, Result};
use crate::format::header::Header;
use crate::format::metadata::MetadataTable;
use crate::format::region::{METADATA, RegionTable};
use crate::image::read_what_is_there;
use crate::ops::is_zero;
use crate::storage::{ChangedRange, Scratch, Storage};
use crate::types::MIB;

/// Writes the changes to the file, durably.
pub(super) fn apply(
    image: &Scratch,
    staged: &Scratch,
    changes: &[ChangedRange],
    file: &dyn Storage,
) -> Result<()> {
    let places = Places::of(image)?;
    let first = first_header(image.base().as_ref())?;
    let (old_len, new_len) = (image.base_len(), image.len().map_err(unreadable)?);
    let phase_of = |range: &Range<u64>| {
        if range.start >= old_len {
            0
        } else if is_of_headers(range) {
            4 + usize::from((range.start < Header::OFFSETS[1]) != (first == 0))
        } else if places.items.contains(&range.start) {
            1
        } else if range.start < MIB || places.regions.iter().any(|it| it.contains(&range.start)) {
            2
        } else {
            3
        }
    };
    if new_len > old_len {
        file.set_len(new_len).map_err(failed)?;
    }
    for phase in 0..6 {
        let is_it = |change: &&ChangedRange| phase_of(&change.range) == phase;
        let mut of_phase: Vec<_> = changes.iter().filter(is_it).collect();
        for change in &of_phase {
            let from = if phase == 0 { staged } else { image };
            write(from, change, file).map_err(failed)?;
        }
        if phase == 3 {
            // Bits of new sector bitmaps that no longer count.
            for change in changes.iter().filter(|change| phase_of(&change.range) == 0) {
                if read(image, &change.range)? != read(staged, &change.range)? {
                    write(image, change, file).map_err(failed)?;
                    of_phase.push(change);
                }
            }
        }
        if !of_phase.is_empty() || phase == 0 && new_len > old_len {
            file.flush().map_err(failed)?;
        }
    }
    if new_len < old_len {
        file.set_len(new_len).map_err(failed)?;
        file.flush().map_err(failed)?;
    }
    Ok(())
}

fn write(image: &Scratch, change: &ChangedRange, file: &dyn Storage) -> io::Result<()> {
    let range = &change.range;
    let bytes = read_range(image, range)?;
    if is_zero(&bytes) && file.zero(range.clone())? {
        return Ok(());
    }
    file.write_at(&bytes, range.start)
}

fn read(image: &Scratch, range: &Range<u64>) -> Result<Vec<u8>> {
    read_range(image, range).map_err(unreadable)
}

/// The bytes of a range, zeros behind the end.
fn read_range(image: &Scratch, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let there = image.len()?.saturating_sub(range.start).min(bytes.len() as u64);
    image.read_exact_at(&mut bytes[..there as usize], range.start)?;
    Ok(bytes)
}

/// Where the tables are.
#[derive(Default)]
struct Places {
    /// The items behind the metadata table.
    items: Range<u64>,
    regions: Vec<Range<u64>>,
}

impl Places {
    fn of(image: &Scratch) -> Result<Self> {
        let mut places = Self::default();
        for at in RegionTable::OFFSETS {
            let mut bytes = vec![0; RegionTable::LEN];
            read_what_is_there(image, &mut bytes, at)?;
            let Ok(table) = RegionTable::parse(&bytes, at) else { continue };
            for entry in table.entries {
                let range = entry.offset.get()..entry.end();
                if entry.guid == METADATA {
                    places.items = range.start + MetadataTable::LEN as u64..range.end;
                }
                places.regions.push(range);
            }
            break;
        }
        Ok(places)
    }
}

/// The number of the header that the file can do without.
fn first_header(file: &dyn Storage) -> Result<usize> {
    let (_, headers) = headers_of(file)?;
    Ok(headers.map_or(0, |headers| 1 - headers.current))
}

fn failed(error: io::Error) -> Error {
    let message = "the repair was interrupted; its undo file brings the image back";
    Error::io("repair.write", message, error)
}

fn unreadable(error: io::Error) -> Error {
    Error::io("file.read", "cannot read the file", error)
}
