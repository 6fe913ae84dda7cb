//! Checks the block states of an image before operations that must not stop half-way.

use super::Core;
use super::block_table::Role;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::PayloadState;
use crate::tables::FromFile;
use crate::types::{BatIndex, BlockIndex, ChunkIndex};

impl Core {
    /// Refuses an image with a block that can be neither read nor partially written: one in a reserved state, or a
    /// partially present one without a sector bitmap. Walks the table once and keeps none of it in memory. The
    /// positions of blocks are checked by [`check_claims`](Self::check_claims).
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], and [`ErrorKind::Io`] if the tables cannot be read.
    pub(crate) fn check_states(&self) -> Result<()> {
        let table = self.block_table();
        let mut refused = None;
        // The first partially present block of the current chunk. The chunk's last entry is that of its bitmap.
        let mut open: Option<BlockIndex> = None;
        let failed = table.entries(BatIndex(self.layout.entries_reserved()), |index, entry| {
            let role = table.role(index);
            let chunk = match role {
                Role::Payload(block) => self.layout.chunk_of(block),
                Role::Bitmap(chunk) => chunk,
                Role::Slack => return,
            };
            self.leave_chunk(&mut open, Some(chunk), &mut refused);
            match (role, entry.payload_state()) {
                (Role::Payload(block), PayloadState::PartiallyPresent) if self.has_parent() => {
                    open.get_or_insert(block);
                }
                (Role::Payload(block), PayloadState::PartiallyPresent | PayloadState::Reserved) => {
                    self.suspect(block, &mut refused)
                }
                (Role::Bitmap(_), PayloadState::FullyPresent) => open = None,
                _ => {}
            }
        });
        self.leave_chunk(&mut open, None, &mut refused);
        refused.or(failed.map(|error| error.in_file(self.name()))).map_or(Ok(()), Err)
    }

    /// Refuses an image with a parent whose table has no entry for the sector bitmap of its last blocks, which
    /// therefore cannot become partially present.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`], and [`ErrorKind::Io`] if the table cannot be read.
    pub(crate) fn check_bitmaps_fit(&self) -> Result<()> {
        match self.layout.chunks().checked_sub(1).filter(|_| self.has_parent()) {
            Some(last) => self.bat_entry(self.layout.bitmap_index(ChunkIndex(last))).map(drop),
            None => Ok(()),
        }
    }

    /// Checks the open block of a chunk that ended without an entry for its bitmap.
    fn leave_chunk(
        &self,
        open: &mut Option<BlockIndex>,
        next: Option<ChunkIndex>,
        refused: &mut Option<Error>,
    ) {
        if let Some(block) = open.take_if(|block| next != Some(self.layout.chunk_of(*block))) {
            self.suspect(block, refused);
        }
    }

    /// Checks a block with changes in memory included, which may have corrected its entry in the file.
    fn suspect(&self, block: BlockIndex, refused: &mut Option<Error>) {
        if refused.is_some() {
            return;
        }
        let start = self.layout.block_start(block);
        let Err(error) = self.resolve_with(FromFile, start, self.layout.sector_size()) else {
            return;
        };
        let place = self.bat_entry(self.layout.payload_index(block)).map(|entry| entry.offset());
        *refused = Some(match place {
            Ok(place) if error.kind() == ErrorKind::Damaged => {
                let message = format!(
                    "block {}, which the file has at {place}, cannot be told: {}",
                    block.0,
                    error.message()
                );
                error.with_message(message)
            }
            _ => error,
        });
    }
}
