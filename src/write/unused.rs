//! Clears table entries that need no space, and releases the space that they name.
//!
//! What the disk reads as does not change: the states of payload blocks stay. A sector bitmap block is needed as long as
//! its chunk has a partially present block.

use super::compact::Before;
use super::space::Freed;
use super::writer::Writer;
use crate::error::Result;
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, PayloadState};
use crate::image::{Core, Role};
use crate::tables::Order;
use crate::types::{BatIndex, BlockIndex, ChunkIndex, FileOffset};

/// How many entries are cleared while changes are kept out.
const AT_ONCE: usize = 512;

/// Which entries of a table name space that they do not need. Asked for each entry in table order.
#[derive(Debug, Default)]
pub(crate) struct Unneeded {
    /// The last chunk with a partially present block.
    partial: Option<ChunkIndex>,
}

impl Unneeded {
    /// The entry that says the same without space; `None` if it is needed as it is.
    pub(crate) fn cleared(
        &mut self,
        image: &Core,
        index: BatIndex,
        entry: BatEntry,
    ) -> Option<BatEntry> {
        let nothing = FileOffset::new(0);
        match image.role_of(index) {
            Role::Payload(block) => match entry.payload_state() {
                PayloadState::PartiallyPresent => {
                    self.partial = Some(image.layout().chunk_of(block));
                    None
                }
                PayloadState::FullyPresent | PayloadState::Reserved => None,
                _ => {
                    (entry.offset() != nothing).then(|| BatEntry::new(entry.state_bits(), nothing))
                }
            },
            Role::Bitmap(chunk) => {
                let is_needed = image.has_parent() && self.partial == Some(chunk);
                (!is_needed && entry.0 != 0).then(|| BatEntry::new(0, nothing))
            }
            Role::Slack => None,
        }
    }
}

impl Writer {
    /// Clears the entries of the table that need no space.
    ///
    /// # Errors
    /// Those of `before` and of a flush; [`ErrorKind::InUse`](crate::ErrorKind::InUse) while planned writes are open.
    pub(crate) fn release_unused(&self, before: Before<'_>) -> Result<()> {
        let (mut unneeded, mut seen) = (Unneeded::default(), Vec::new());
        let mut done = Ok(());
        self.core.each_entry(|index, entry| {
            if unneeded.cleared(&self.core, index, entry).is_some() {
                seen.push((index, entry));
            }
            if seen.len() >= AT_ONCE {
                done = before(0).and_then(|()| self.clear_entries(&std::mem::take(&mut seen)));
            }
            std::mem::replace(&mut done, Ok(()))
        })?;
        self.clear_entries(&seen)
    }

    fn clear_entries(&self, seen: &[(BatIndex, BatEntry)]) -> Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        let _alone = self.change_alone()?;
        self.prepare_hidden_change()?;
        for (index, entry) in seen {
            if self.core.bat_entry(*index)? == *entry {
                self.clear_entry(*index, *entry)?;
                self.limit_changes()?;
            }
        }
        Ok(())
    }

    /// Clears an entry, unless it is needed by now.
    fn clear_entry(&self, index: BatIndex, entry: BatEntry) -> Result<()> {
        let role = self.core.role_of(index);
        if let Role::Bitmap(chunk) = role
            && self.core.has_parent()
            && self.has_partial_block(chunk)?
        {
            return Ok(());
        }
        let Some(cleared) = Unneeded::default().cleared(&self.core, index, entry) else {
            return Ok(());
        };
        let claim = self.core.claim_of(index, entry);
        self.change_tables([self.bat_page(index)], Order::Any, |changed| {
            self.put_entry(changed, index, cleared);
        })?;
        match (role, claim) {
            // Changed bits may still be written there, now or by a replay.
            (Role::Bitmap(_), Some(_)) => {
                self.space.retire(Freed { at: entry.offset(), len: BITMAP_BLOCK_LEN });
            }
            (_, Some(claim)) => {
                self.space.free_later(Freed { at: entry.offset(), len: claim.len });
            }
            _ => {}
        }
        Ok(())
    }

    fn has_partial_block(&self, chunk: ChunkIndex) -> Result<bool> {
        let first = chunk.0 * self.core.layout.chunk_ratio();
        let end = self.core.layout.blocks().min(first + self.core.layout.chunk_ratio());
        for block in (first..end).map(BlockIndex) {
            let entry = self.core.bat_entry(self.core.layout.payload_index(block))?;
            if entry.payload_state() == PayloadState::PartiallyPresent {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
