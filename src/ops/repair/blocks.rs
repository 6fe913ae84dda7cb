//! Repairs entries of the block allocation table, the blocks that they name, and the end of the file.

use std::collections::BTreeMap;

use super::work::{Deed, Outcome, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{BatEntry, PayloadState};
use crate::image::{Core, Role};
use crate::ops::is_zero;
use crate::storage::Storage;
use crate::types::{BatIndex, ChunkIndex, MIB, counted};

/// How many entries change in one pass.
const MOST_ENTRIES: usize = 1 << 20;
/// How many bytes are looked at or changed at once.
const PAGE: u64 = 4096;
const OF_BLOCKS: &[&str] =
    &["bat.duplicate", "bat.overlap", "bat.payload-place", "bat.bitmap-place", "bat.truncated"];

type Entries = BTreeMap<BatIndex, BatEntry>;

/// Clears bits and entries that no reader looks at.
pub(super) fn entries(work: &Work<'_>) -> Result<Outcome> {
    let image = work.open()?;
    let table = image.block_table();
    let (mut changed, mut partial) = (Entries::new(), Vec::new());
    let mut bitmaps: Vec<(ChunkIndex, BatIndex)> = Vec::new();
    let layout = *image.layout();
    let failed = table.entries(BatIndex(u64::MAX), |index, entry| {
        if changed.len() > MOST_ENTRIES {
            return;
        }
        let cleared = BatEntry(entry.0 & !entry.reserved_bits());
        let new = match table.role(index) {
            Role::Slack => BatEntry(0),
            Role::Bitmap(_) if !image.has_parent() && entry.state_bits() != 0 => BatEntry(0),
            Role::Bitmap(chunk) => {
                if !matches!(entry.state_bits(), 0 | 6) {
                    bitmaps.push((chunk, index));
                }
                cleared
            }
            Role::Payload(block) => {
                if entry.payload_state() == PayloadState::PartiallyPresent {
                    let chunk = layout.chunk_of(block);
                    if partial.last() != Some(&chunk) {
                        partial.push(chunk);
                    }
                }
                cleared
            }
        };
        if new != entry {
            changed.insert(index, new);
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    // No block of the chunk needs it.
    let unneeded = bitmaps
        .iter()
        .filter(|(chunk, _)| partial.binary_search_by_key(&chunk.0, |it| it.0).is_err());
    changed.extend(unneeded.map(|(_, index)| (*index, BatEntry(0))));
    put(work, &image, &changed, "of the block allocation table that no reader looks at")
}

/// Takes the offset from entries whose state does not use it.
pub(super) fn idle_places(work: &Work<'_>) -> Result<Outcome> {
    let image = work.open()?;
    if has_marks(&image) {
        return Ok(Outcome::refused(&["bat.idle-place"], UNFINISHED));
    }
    let table = image.block_table();
    let mut changed = Entries::new();
    let failed = table.entries(BatIndex(image.layout().entries_reserved()), |index, entry| {
        let is_idle = match table.role(index) {
            Role::Payload(_) => entry.state_bits() <= 2,
            Role::Bitmap(_) => entry.state_bits() == 0,
            Role::Slack => false,
        };
        if is_idle && entry.offset().get() != 0 && changed.len() <= MOST_ENTRIES {
            changed.insert(index, BatEntry(entry.state_bits().into()));
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    put(work, &image, &changed, "of blocks that use no space, which kept a place")
}

/// Why an image that is being merged stays as it is.
pub(super) const UNFINISHED: &str = "a merge of the image is unfinished and is completed first";

/// Whether a merge of the image is unfinished.
pub(super) fn has_marks(image: &Core) -> bool {
    let metadata = image.metadata();
    metadata.marks.merge.is_some() || metadata.marks.request.is_some()
}

fn put(work: &Work<'_>, image: &Core, changed: &Entries, which: &str) -> Result<Outcome> {
    if changed.is_empty() {
        return Ok(Outcome::Nothing);
    }
    if changed.len() > MOST_ENTRIES {
        let message = "more entries have to change than are kept in memory";
        return Err(Error::new(ErrorKind::Limit, "limit.repair", message)
            .with_found(format_args!("more than {MOST_ENTRIES}"))
            .with_expected(format_args!("at most {MOST_ENTRIES}")));
    }
    put_entries(work, image, changed.iter())?;
    let entries = counted(changed.len() as u64, "entry", "entries");
    Ok(Outcome::did(format!("{entries} {which}: put right")))
}

/// Writes entries, page by page.
pub(super) fn put_entries<'e>(
    work: &Work<'_>,
    image: &Core,
    entries: impl Iterator<Item = (&'e BatIndex, &'e BatEntry)>,
) -> Result<()> {
    let mut page: Option<(u64, Vec<u8>)> = None;
    for (index, entry) in entries {
        let at = image.bat_entry_at(*index).get();
        let start = at - at % PAGE;
        if page.as_ref().is_none_or(|(other, _)| *other != start) {
            if let Some((start, bytes)) = page.take() {
                work.write(&bytes, start)?;
            }
            let mut bytes = vec![0; PAGE as usize];
            work.read(&mut bytes, start)?;
            page = Some((start, bytes));
        }
        if let Some((start, bytes)) = &mut page {
            let within = (at - *start) as usize;
            bytes[within..within + 8].copy_from_slice(&entry.to_bytes());
        }
    }
    match page {
        Some((start, bytes)) => work.write(&bytes, start),
        None => Ok(()),
    }
}

/// Gives blocks that overlap a copy each, and lost blocks their zeros, if that is consented to.
pub(super) fn mend(work: &Work<'_>) -> Result<Outcome> {
    let image = work.open()?;
    let mend = match image.plan_mend() {
        Ok(Some(mend)) => mend,
        Ok(None) => return Ok(Outcome::Nothing),
        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
        Err(error) => return Ok(Outcome::refused(OF_BLOCKS, error.message())),
    };
    let lost = mend.losses.iter().filter(|loss| loss.kind.is_lost());
    let lost: u64 = lost.map(|loss| loss.range.end - loss.range.start).sum();
    if lost > 0 && !work.accepts_loss {
        let why = format!(
            "{lost} bytes of the disk are lost, and nobody consented to go on without them"
        );
        return Ok(Outcome::needs_consent(OF_BLOCKS, why));
    }
    if let Some(len) = mend.len {
        set_len(work, len)?;
    }
    put_entries(work, &image, mend.lost.iter())?;
    let copies: Entries = mend.copies.iter().map(|copy| (copy.index, copy.entry)).collect();
    put_entries(work, &image, mend.unmapped.iter())?;
    put_entries(work, &image, copies.iter())?;
    for copy in &mend.copies {
        work.image.copy(copy.from.get(), copy.entry.offset().get(), copy.len);
    }
    let end = work.image.len().map_err(unreadable)?.next_multiple_of(MIB);
    set_len(work, end)?;
    let mut what = Vec::new();
    if !mend.copies.is_empty() {
        let blocks = counted(mend.copies.len() as u64, "block gets", "blocks get");
        what.push(format!("{blocks} a copy of the bytes that were shared"));
    }
    if !mend.lost.is_empty() || !mend.unmapped.is_empty() {
        let count = (mend.lost.len() + mend.unmapped.len()) as u64;
        let entries = counted(count, "entry", "entries");
        what.push(format!("{entries} of blocks without bytes of their own: put right"));
    }
    if what.is_empty() {
        what.push("the file gets the length that its blocks need".into());
    }
    let is_visible = lost > 0;
    Ok(Outcome::Did(Deed { what: what.join("; "), is_visible, losses: mend.losses }))
}

/// Gives the file whole MiB, and the whole of the last block.
pub(super) fn tail(work: &Work<'_>) -> Result<Outcome> {
    let image = work.open()?;
    let claims = image.claims(1)?;
    let len = work.image.len().map_err(unreadable)?;
    let end = len.next_multiple_of(MIB).max(claims.end.next_multiple_of(MIB));
    if end == len {
        return Ok(Outcome::Nothing);
    }
    let codes = &["file.length", "bat.truncated"];
    if !claims.lost.is_empty() || !claims.lost_structures.is_empty() {
        return Ok(Outcome::refused(
            codes,
            "the file was cut short: bytes of the disk are missing",
        ));
    }
    if end - len > image.layout().block_size() + MIB {
        return Ok(Outcome::refused(codes, "more than one block is missing at the end"));
    }
    set_len(work, end)?;
    Ok(Outcome::did(format!("the file grows by {} zeros that it lacks at its end", end - len)))
}

/// Cuts off what no entry names at the end of the file, if it is zeros.
pub(super) fn cut(work: &Work<'_>) -> Result<Outcome> {
    let image = work.open()?;
    let claims = image.claims(1)?;
    let len = work.image.len().map_err(unreadable)?;
    let table = image.block_table();
    let mut end = claims.end.max(image.structures_end).max(MIB);
    // A place that an entry keeps without using it, too.
    let failed = table.entries(BatIndex(image.layout().entries_reserved()), |index, entry| {
        if entry.offset().get() != 0 {
            end = end.max(entry.offset().get().saturating_add(table.len_of(table.role(index))));
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    if end >= len {
        return Ok(Outcome::Nothing);
    }
    if has_marks(&image) {
        return Ok(Outcome::refused(&["space.leaked"], UNFINISHED));
    }
    if let Some(at) = first_byte(work, end..len)? {
        let why = format!("the space at the end of the file holds data, at {at:#x}");
        return Ok(Outcome::refused(&["space.leaked"], why));
    }
    set_len(work, end)?;
    Ok(Outcome::did(format!(
        "{} unused bytes are cut off the end of the file, all zeros",
        len - end
    )))
}

/// The place of the first byte in the range that is not zero.
pub(super) fn first_byte(work: &Work<'_>, range: std::ops::Range<u64>) -> Result<Option<u64>> {
    let mut bytes = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let Some(data) = work.image.next_data(at).map_err(unreadable)? else { break };
        at = data.start.max(at);
        if at >= range.end {
            break;
        }
        let len = data.end.min(range.end).saturating_sub(at).min(MIB);
        bytes.resize(len as usize, 0);
        work.read(&mut bytes, at)?;
        if !is_zero(&bytes) {
            let within = bytes.iter().position(|byte| *byte != 0).unwrap_or_default();
            return Ok(Some(at + within as u64));
        }
        at += len;
    }
    Ok(None)
}

fn set_len(work: &Work<'_>, len: u64) -> Result<()> {
    work.image.set_len(len).map_err(unreadable)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::io("file.read", "cannot read the file", error)
}
