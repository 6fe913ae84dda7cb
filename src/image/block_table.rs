//! Walks the block allocation table of a file, and determines the space that its entries claim.
//!
//! Checks and writers use the same rules for which entries take up space.

use std::ops::ControlFlow;

use crate::error::Error;
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, BlockLayout, ENTRY_LEN, PayloadState};
use crate::format::region::RegionEntry;
use crate::storage::Storage;
use crate::tables::Tables;
use crate::types::{BatIndex, BlockIndex, ChunkIndex, KIB, MIB};

/// Bytes of the table per read.
const PIECE: u64 = MIB;
/// Bytes of the table that are skipped at once if they are zeros.
const PAGE: usize = 4 * KIB as usize;

/// A table in a file, with the layout that gives its entries their roles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockTable<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) region: &'a RegionEntry,
    pub(crate) layout: BlockLayout,
    pub(crate) has_parent: bool,
    pub(crate) file_len: u64,
    /// Pages that count instead of those in the file.
    pub(crate) changed: Option<&'a Tables>,
}

/// The role of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Payload(BlockIndex),
    Bitmap(ChunkIndex),
    /// Unused, after the last entry that the disk needs.
    Slack,
}

/// The space in the file that an entry takes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) index: BatIndex,
    pub(crate) role: Role,
    pub(crate) entry: BatEntry,
    /// Length of the space in bytes.
    pub(crate) len: u64,
    /// The part of it that must be in the file: bytes beyond the end of the disk may be cut off.
    pub(crate) needed: u64,
}

impl BlockTable<'_> {
    /// Calls `each` for every entry before `end` that is not all zeros. Reads the table in large pieces, bypassing
    /// the page cache, and skips pieces in which the host stores no data. Skips unreadable pieces and returns the
    /// first such failure.
    pub(crate) fn entries(
        &self,
        end: BatIndex,
        mut each: impl FnMut(BatIndex, BatEntry),
    ) -> Option<Error> {
        self.entries_while(end, |index, entry| {
            each(index, entry);
            ControlFlow::Continue(())
        })
    }

    /// The same, until `each` breaks.
    pub(crate) fn entries_while(
        &self,
        end: BatIndex,
        mut each: impl FnMut(BatIndex, BatEntry) -> ControlFlow<()>,
    ) -> Option<Error> {
        let start = self.region.offset.get();
        let end = start.saturating_add(end.0.saturating_mul(ENTRY_LEN));
        let end = end.min(self.region.end()).min(self.file_len);
        let mut failed = None;
        let mut piece = Vec::new();
        let mut at = start;
        while at < end {
            let changed = self.changed.and_then(|changed| changed.read().first_in(at..end));
            // If the host cannot tell, the piece is read.
            let data = match self.storage.next_data(at) {
                Ok(data) => data.map(|data| data.start),
                Err(_) => Some(at),
            };
            let Some(next) = data.into_iter().chain(changed).min() else { break };
            at = at.max(next - next.saturating_sub(start) % PIECE);
            if at >= end {
                break;
            }
            let len = (end - at).min(PIECE);
            // Before the file is read: a page that is written to its place meanwhile counts either way.
            let changed = self.changed.map(|changed| changed.read().pages_in(at..at + len));
            piece.resize(len as usize, 0);
            if let Err(error) = self.storage.read_exact_at(&mut piece, at) {
                failed.get_or_insert_with(|| {
                    Error::io("table.read", "cannot read the block allocation table", error).at(at)
                });
            } else {
                for (place, page) in changed.into_iter().flatten() {
                    let within = (place - at) as usize;
                    let len = page.len().min(piece.len() - within);
                    piece[within..within + len].copy_from_slice(&page[..len]);
                }
                let first = (at - start) / ENTRY_LEN;
                if each_in(&piece, first, &mut each).is_break() {
                    break;
                }
            }
            at = at.saturating_add(PIECE);
        }
        failed
    }

    /// Offset of an entry in the file.
    pub(crate) fn place_of(&self, index: BatIndex) -> u64 {
        self.region.offset.get() + index.0 * ENTRY_LEN
    }

    /// The role of an entry.
    pub(crate) fn role(&self, index: BatIndex) -> Role {
        let layout = &self.layout;
        if index.0 >= layout.entries_reserved() {
            return Role::Slack;
        }
        if layout.is_bitmap_index(index) {
            return Role::Bitmap(layout.chunk_of_bitmap(index));
        }
        let block = layout.block_of_payload(index);
        if block.0 < layout.blocks() { Role::Payload(block) } else { Role::Slack }
    }

    /// Size in bytes of the block of an entry.
    pub(crate) fn len_of(&self, role: Role) -> u64 {
        match role {
            Role::Bitmap(_) => BITMAP_BLOCK_LEN,
            _ => self.layout.block_size(),
        }
    }

    /// The space that an entry claims exclusively, if any. Offsets that have no meaning in the entry's state claim
    /// nothing.
    pub(crate) fn claim(&self, index: BatIndex, entry: BatEntry) -> Option<Claim> {
        let role = self.role(index);
        let needed = match role {
            Role::Slack => return None,
            Role::Bitmap(_) if self.has_parent && entry.state_bits() == 6 => BITMAP_BLOCK_LEN,
            Role::Bitmap(_) => return None,
            Role::Payload(block) => {
                match entry.payload_state() {
                    PayloadState::FullyPresent | PayloadState::PartiallyPresent => {}
                    PayloadState::Unmapped if entry.offset().get() != 0 => {}
                    _ => return None,
                }
                let layout = &self.layout;
                layout.block_size().min(layout.size() - layout.block_start(block).0)
            }
        };
        Some(Claim { index, role, entry, len: self.len_of(role), needed })
    }

    /// Calls `each` for every claim, in table order.
    pub(crate) fn claims(&self, mut each: impl FnMut(Claim)) -> Option<Error> {
        self.entries(BatIndex(self.layout.entries_reserved()), |index, entry| {
            if let Some(claim) = self.claim(index, entry) {
                each(claim);
            }
        })
    }
}

impl Claim {
    pub(crate) fn start(&self) -> u64 {
        self.entry.offset().get()
    }

    pub(crate) fn end(&self) -> u64 {
        self.start().saturating_add(self.len)
    }

    /// Whether parts of its space may hold none of the block's bytes.
    pub(crate) fn may_have_gaps(&self) -> bool {
        let is_payload = matches!(self.role, Role::Payload(_));
        is_payload
            && match self.entry.payload_state() {
                PayloadState::FullyPresent => self.needed < self.len,
                state => state == PayloadState::PartiallyPresent,
            }
    }

    /// How many of the needed bytes lie within a file of this length. None do at offset 0.
    pub(crate) fn in_file(&self, file_len: u64) -> u64 {
        match self.start() {
            0 => 0,
            start => self.needed.min(file_len.saturating_sub(start)),
        }
    }

    /// Whether needed bytes lie beyond a file of this length.
    pub(crate) fn is_lost(&self, file_len: u64) -> bool {
        self.in_file(file_len) < self.needed
    }
}

impl Role {
    pub(crate) fn name(self, index: BatIndex) -> String {
        match self {
            Self::Payload(BlockIndex(block)) => format!("block {block}"),
            Self::Bitmap(ChunkIndex(chunk)) => format!("sector bitmap block {chunk}"),
            Self::Slack => format!("entry {}", index.0),
        }
    }
}

fn each_in(
    piece: &[u8],
    first: u64,
    each: &mut impl FnMut(BatIndex, BatEntry) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for (page, first) in piece.chunks(PAGE).zip((first..).step_by(PAGE / ENTRY_LEN as usize)) {
        if is_zero(page) {
            continue;
        }
        for (entry, index) in page.chunks_exact(ENTRY_LEN as usize).zip(first..) {
            let entry = BatEntry::read(entry);
            if entry.0 != 0 {
                each(BatIndex(index), entry)?;
            }
        }
    }
    ControlFlow::Continue(())
}

/// Whether all of these bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Wide chunks first, which the compiler turns into vector instructions.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
