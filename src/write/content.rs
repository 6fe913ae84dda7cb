//! Drops blocks whose data need not be in the file: zeros, and what the parent shows too.
//!
//! What the disk reads as does not change, so the image keeps its identity.

use super::compact::Before;
use super::space::Freed;
use super::writer::Writer;
use crate::answers::Owner;
use crate::error::Result;
use crate::format::bat::{BatEntry, PayloadState};
use crate::image::{Claim, Role, is_zero};
use crate::read::Layers;
use crate::tables::Order;
use crate::types::{BlockIndex, DiskOffset, FileOffset, MIB};

/// How many blocks are sorted by their place in the file, to be read in that order.
const MOST_SORTED: usize = 4096;
/// Bytes per read.
const PIECE: u64 = MIB;

/// What the data of a block is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    /// The disk reads as zeros there.
    Zeros,
    /// The parent shows the same bytes.
    Parents,
    /// The image needs it.
    Own,
}

/// Reads blocks to find out what they are worth.
#[derive(Debug)]
pub(crate) struct Appraiser<'a> {
    disk: Layers<'a>,
    own: Vec<u8>,
    other: Vec<u8>,
}

impl<'a> Appraiser<'a> {
    /// Reads the tip of these layers, and those below.
    pub(crate) fn new(disk: Layers<'a>) -> Self {
        let piece = || vec![0; PIECE as usize];
        Self { disk, own: piece(), other: piece() }
    }

    /// What the data of a block is worth. Stops reading where it is known.
    ///
    /// # Errors
    /// If the image or its parents cannot be read.
    pub(crate) fn worth(&mut self, block: BlockIndex) -> Result<Worth> {
        let image = self.disk.tip();
        let layout = image.layout();
        let start = layout.block_start(block);
        let end = (start.0 + layout.block_size()).min(layout.size());
        let (mut is_zero_so_far, mut is_parents) = (true, image.has_parent());
        let _pin = image.pin();
        let mut at = start;
        while at.0 < end && (is_zero_so_far || is_parents) {
            let run = image.resolve(at, (end - at.0).min(PIECE))?;
            match run.owner {
                Owner::Here(place) => {
                    image.read_payload(&mut self.own[..run.len as usize], place)?;
                    if is_parents {
                        self.read_below(at, run.len)?;
                        let (own, other) = (&self.own[..run.len as usize], &self.other);
                        is_parents = *own == other[..run.len as usize];
                    }
                    is_zero_so_far &= is_zero(&self.own[..run.len as usize]);
                }
                Owner::Parent if is_zero_so_far => {
                    self.read_below(at, run.len)?;
                    is_zero_so_far = is_zero(&self.other[..run.len as usize]);
                }
                Owner::Parent => {}
                Owner::Zero => is_parents = false,
            }
            at = at + run.len;
        }
        Ok(match (is_zero_so_far, is_parents) {
            (true, _) => Worth::Zeros,
            (_, true) => Worth::Parents,
            _ => Worth::Own,
        })
    }

    /// Reads what the layers below the tip show.
    fn read_below(&mut self, at: DiskOffset, len: u64) -> Result<()> {
        let Some(below) = self.disk.below_tip() else {
            return Err(self.disk.tip().parent_required(at));
        };
        // The parent's disk may be shorter: zeros follow.
        let there = below.tip().geometry().size.saturating_sub(at.0).min(len) as usize;
        let bytes = &mut self.other[..len as usize];
        bytes[there..].fill(0);
        if there == 0 { Ok(()) } else { below.read_at(&mut bytes[..there], at.0) }
    }
}

/// Whether a block has data, which may be worth nothing.
pub(crate) fn has_data(claim: &Claim) -> bool {
    let state = claim.entry.payload_state();
    matches!(claim.role, Role::Payload(_))
        && matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent)
}

impl Writer {
    /// Drops the blocks whose data is worth nothing; returns how many bytes of the file that frees. `disk` is the image
    /// with its parents.
    ///
    /// # Errors
    /// Those of `before`, of reading, and of a flush.
    pub(crate) fn drop_content(&self, disk: Layers<'_>, before: Before<'_>) -> Result<u64> {
        let mut appraiser = Appraiser::new(disk);
        let (mut claims, mut freed) = (Vec::new(), 0);
        let mut drop_all = |claims: &mut Vec<Claim>| {
            claims.sort_by_key(Claim::start);
            claims.drain(..).try_for_each(|claim| {
                before(claim.needed)?;
                freed += self.drop_if_worthless(&claim, &mut appraiser)?;
                self.limit_changes()
            })
        };
        self.core.each_claim(|claim| {
            if has_data(&claim) {
                claims.push(claim);
            }
            if claims.len() < MOST_SORTED { Ok(()) } else { drop_all(&mut claims) }
        })?;
        drop_all(&mut claims)?;
        Ok(freed)
    }

    fn drop_if_worthless(&self, claim: &Claim, appraiser: &mut Appraiser<'_>) -> Result<u64> {
        let Role::Payload(block) = claim.role else { return Ok(0) };
        let _change = self.change_lock.begin_hidden_change();
        let _locked = self.blocks.lock_exclusive(block);
        let start = self.core.layout.block_start(block).0;
        let is_planned = self.plans.meets(&(start..start + claim.len));
        if is_planned || self.core.bat_entry(claim.index)? != claim.entry {
            return Ok(0);
        }
        let state = match appraiser.worth(block)? {
            Worth::Own => return Ok(0),
            Worth::Zeros => 2,
            Worth::Parents => 0,
        };
        self.prepare_hidden_change()?;
        self.set_block(block, BatEntry::new(state, FileOffset::new(0)), Order::Any)?;
        self.space.free_later(Freed { at: claim.entry.offset(), len: claim.len });
        Ok(claim.len)
    }
}
