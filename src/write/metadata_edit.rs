//! Edits of the metadata of an image that is in use, \[MS-VHDX\] 2.6.
//!
//! All pages that an edit changes go to the log in one entry: a crash leaves all of the edit or
//! none. They are written to their places before the edit returns, because metadata is read from
//! the file.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::PoisonError;

use uuid::Uuid;

use super::writer::{Writer, most_dirty};
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::{ItemFlags, MetadataEntry, MetadataTable};
use crate::image::{Core, Metadata};
use crate::storage::Storage;
use crate::tables::{Order, PAGE, Page, PageKind};
use crate::types::FileOffset;

/// Alignment of items, in bytes.
const ALIGNMENT: u64 = 8;

/// A change of one metadata item. A user item and a system item may have the same GUID.
#[derive(Clone, Debug)]
pub(crate) enum ItemEdit {
    /// Adds the item or replaces it with its flags.
    Set { item: Uuid, flags: ItemFlags, bytes: Vec<u8> },
    /// Removes the item if it exists.
    Remove { item: Uuid, is_user: bool },
}

/// Changed pages by offset in the file.
pub(super) type Pages = BTreeMap<u64, Box<Page>>;

impl Writer {
    /// Edits the metadata atomically and durably, also during writes. The image keeps the identity
    /// that its children know. Items with the size and sectors of the disk take effect when the
    /// image is reopened.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the items do not fit into the region or the change not into
    /// the log; [`ErrorKind::Damaged`] if the items are inconsistent. Nothing is changed then.
    pub(crate) fn edit_metadata(&self, edits: &[ItemEdit]) -> Result<()> {
        let _change = self.change_lock.begin_hidden_change();
        self.edit_with(edits, Pages::new())
    }

    /// Makes an edit together with changes of other pages. The caller keeps the session from
    /// ending.
    pub(super) fn edit_with(&self, edits: &[ItemEdit], others: Pages) -> Result<()> {
        self.check()?;
        let _exclusive = self.edits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut edit = Edit::new(&self.core, others);
        let metadata = apply_and_check(&mut edit, edits)?;
        if edit.pages.is_empty() {
            return Ok(());
        }
        self.prepare_hidden_change()?;
        self.log_edit(edit.pages)?;
        *self.core.metadata.write().unwrap_or_else(PoisonError::into_inner) = metadata;
        Ok(())
    }

    /// Makes changed pages durable in the log and writes them to their places.
    fn log_edit(&self, pages: Pages) -> Result<()> {
        {
            let mut changed = self.feed.changed.write();
            // The pages may name a table that was written to new space.
            changed.require(Order::PayloadFirst);
            for (at, page) in pages {
                changed.add(at, page.clone(), PageKind::Metadata);
                if let Some(place) = changed.change(at) {
                    *place = *page;
                }
            }
        }
        self.commit()?;
        // The commit only logs the pages.
        let mut session = self.session();
        let applied = self.poison_on_panic(|| self.apply(&mut session));
        applied.map_err(|error| self.poisoned_by(error))
    }
}

/// Bytes that an edit writes to the metadata, in whole pages. Changes nothing.
pub(crate) fn edit_len(image: &Core, edits: &[ItemEdit]) -> Result<u64> {
    let mut edit = Edit::new(image, Pages::new());
    edit.apply(edits).map_err(|error| error.in_file(image.name()))?;
    Ok(edit.pages.len() as u64 * PAGE)
}

/// Fails if any of these successive edits would, without changing anything.
///
/// # Errors
/// Those of [`edit_metadata`](Writer::edit_metadata).
pub(crate) fn check_edits(image: &Core, all: &[Vec<ItemEdit>]) -> Result<()> {
    let mut edit = Edit::new(image, Pages::new());
    for edits in all {
        apply_and_check(&mut edit, edits)?;
        edit.before.append(&mut edit.pages);
    }
    Ok(())
}

/// Applies edits in memory and returns the resulting metadata.
fn apply_and_check(edit: &mut Edit<'_>, edits: &[ItemEdit]) -> Result<Metadata> {
    let image = edit.image;
    let named = |error: Error| error.in_file(image.name());
    edit.apply(edits).map_err(named)?;
    let metadata = Metadata::load(edit, &image.metadata_region, false).map_err(named)?;
    let most = most_dirty(image);
    if edit.pages.len() > most {
        let message = "the metadata change is larger than a log entry";
        return Err(Error::new(ErrorKind::Unsupported, "metadata.edit-size", message)
            .in_file(image.name())
            .with_section("2.3")
            .with_found(format_args!("{} pages of 4 KiB", edit.pages.len()))
            .with_expected(format_args!("at most {most}")));
    }
    Ok(metadata)
}

/// The file with the changed pages of an edit laid over it.
#[derive(Debug)]
struct Edit<'a> {
    image: &'a Core,
    table: MetadataTable,
    /// Pages of earlier edits, which the file does not have.
    before: Pages,
    pages: Pages,
}

impl<'a> Edit<'a> {
    fn new(image: &'a Core, pages: Pages) -> Self {
        let table = image.metadata().table.clone();
        Self { image, table, before: Pages::new(), pages }
    }

    fn apply(&mut self, edits: &[ItemEdit]) -> Result<()> {
        let table = self.table.clone();
        let is_edited = |entry: &MetadataEntry| {
            let is_user = entry.flags.contains(ItemFlags::USER);
            edits.iter().any(|edit| edit.is_of(entry.item, is_user))
        };
        let mut kept: Vec<MetadataEntry> = table.entries.clone();
        kept.retain(|entry| !is_edited(entry));
        for edit in edits {
            let ItemEdit::Set { item, flags, bytes } = edit else { continue };
            let is_user = flags.contains(ItemFlags::USER);
            let old = |entry: &&MetadataEntry| {
                entry.item == *item && entry.flags.contains(ItemFlags::USER) == is_user
            };
            let old = table.entries.iter().find(old).map(|entry| entry.offset);
            let length = bytes.len() as u64;
            let offset = self.find_space(&kept, length, old)?;
            self.write(self.image.metadata_region.offset + offset, bytes)?;
            let (offset, length) = (offset as u32, length as u32);
            kept.push(MetadataEntry { item: *item, offset, length, flags: *flags });
        }
        if kept.len() > MetadataTable::MAX_ENTRIES {
            return Err(no_space("the metadata table has no room for another item")
                .with_found(kept.len())
                .with_expected(format_args!("at most {} items", MetadataTable::MAX_ENTRIES)));
        }
        // Existing items keep their order, for people who read the table.
        let place = |new: &MetadataEntry| {
            let is_same = |old: &MetadataEntry| {
                old.item == new.item && !(old.flags ^ new.flags).contains(ItemFlags::USER)
            };
            table.entries.iter().position(is_same).unwrap_or(usize::MAX)
        };
        kept.sort_by_key(place);
        if kept != table.entries {
            self.table = MetadataTable { entries: kept };
            let bytes = self.table.to_bytes();
            self.write(self.image.metadata_region.offset, &bytes)?;
        }
        Ok(())
    }

    /// A place in the region for an item of `length` bytes beside those that stay: its old place or
    /// the first free one.
    fn find_space(&self, kept: &[MetadataEntry], length: u64, old: Option<u32>) -> Result<u64> {
        if length == 0 {
            return Ok(0);
        }
        let region_len = u64::from(self.image.metadata_region.length);
        let first = MetadataTable::LEN as u64;
        let mut taken: Vec<Range<u64>> = kept.iter().filter_map(MetadataEntry::place).collect();
        taken.sort_unstable_by_key(|range| range.start);
        let is_free = |start: u64| {
            let end = start + length;
            let is_apart = |range: &Range<u64>| range.end <= start || end <= range.start;
            start >= first && end <= region_len && taken.iter().all(is_apart)
        };
        if let Some(old) = old.map(u64::from).filter(|old| is_free(*old)) {
            return Ok(old);
        }
        let ends = taken.iter().map(|range| range.end.next_multiple_of(ALIGNMENT));
        let starts = [first].into_iter().chain(ends);
        starts.clone().find(|start| is_free(*start)).ok_or_else(|| {
            let room = |start: u64| {
                let next = taken.iter().filter(|range| start < range.end).map(|range| range.start);
                next.min().unwrap_or(region_len).min(region_len).saturating_sub(start)
            };
            let longest = starts.map(room).max().unwrap_or(0);
            no_space("the item does not fit into the metadata region beside the table and the other items")
                .with_found(format_args!("{length} bytes"))
                .with_expected(format_args!("at most {longest}, in a region of {region_len}"))
        })
    }

    /// The page, if it differs from the file's.
    fn page(&self, start: u64) -> Option<&Page> {
        self.pages.get(&start).or_else(|| self.before.get(&start)).map(|page| &**page)
    }

    /// Changes bytes of the file. Unchanged pages do not become part of the edit.
    fn write(&mut self, at: FileOffset, bytes: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (at.get(), bytes);
        while !rest.is_empty() {
            let (start, within) = (at - at % PAGE, (at % PAGE) as usize);
            let (now, later) = rest.split_at(rest.len().min(PAGE as usize - within));
            let mut page = match self.page(start) {
                Some(page) => Box::new(*page),
                None => self.image.page_in_file(FileOffset::new(start))?,
            };
            let place = &mut page[within..within + now.len()];
            if place != now {
                place.copy_from_slice(now);
                self.pages.insert(start, page);
            }
            (at, rest) = (at + now.len() as u64, later);
        }
        Ok(())
    }
}

impl ItemEdit {
    fn is_of(&self, item: Uuid, is_user: bool) -> bool {
        match self {
            Self::Set { item: own, flags, .. } => {
                *own == item && flags.contains(ItemFlags::USER) == is_user
            }
            Self::Remove { item: own, is_user: own_user } => *own == item && *own_user == is_user,
        }
    }
}

fn no_space(message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "metadata.full", message).with_section("2.6.1")
}

/// Read-only.
impl Storage for Edit<'_> {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (start, within) = (offset - offset % PAGE, offset % PAGE);
        let len = (buf.len() as u64).min(PAGE - within) as usize;
        match self.page(start) {
            Some(page) => buf[..len].copy_from_slice(&page[within as usize..][..len]),
            None => return self.image.storage.read_at(&mut buf[..len], offset),
        }
        Ok(len)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.image.storage.len()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}
