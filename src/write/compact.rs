//! Moves blocks down in the file, so that it can be cut.
//!
//! What the disk reads as does not change, so the image keeps its identity. Readers and writers go on: a write waits only
//! for the block that is being moved, and for the moments in which all changes are kept out.
//!
//! 1. With all changes kept out, the session ends: the log is empty, and no replay writes to space that no table names.
//!    All free space leaves the allocator, and the file is cut behind the last claim.
//! 2. A block is copied to a hole, then its entry changes, in this order for a crash too. The old place is not used again:
//!    it is punched once the commit is durable and no reader may name it, and cut off in the end.
//! 3. Step 1 again. Blocks that were written behind the end meanwhile are moved in another round.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic;
use std::time::{Duration, Instant};

use super::payload::Copier;
use super::space::{Allocated, Contents, Freed, Released};
use super::writer::Writer;
use crate::error::Result;
use crate::format::bat::{BITMAP_BLOCK_LEN, BatEntry, PayloadState};
use crate::image::{Claim, Packing, Role, Target};
use crate::tables::{Order, PAGE};
use crate::types::{FileOffset, MIB};

/// Called before some bytes are moved or read, to wait until they may be, or to stop.
pub(crate) type Before<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// How often blocks are moved that were written behind the end during the round before.
const MOST_ROUNDS: usize = 4;
/// How many moves are planned at once, the highest blocks first.
const MOST_MOVES: usize = 1 << 16;
/// Bytes moved between two commits, after which their old space is returned to the host.
pub(crate) const BATCH: u64 = 64 * MIB;
/// How many holes are remembered for later writes.
const MOST_HOLES: usize = 1 << 16;
/// How long freed space waits for readers before the file is cut, and while changes are kept out.
const PATIENCE: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(50);

impl Writer {
    /// Moves blocks down and cuts the file; returns how many bytes were moved. `before` is called for each block.
    ///
    /// # Errors
    /// Those of `before`, of reading and writing payload, and of a flush. [`ErrorKind::InUse`](crate::ErrorKind::InUse)
    /// while planned writes are open. What was moved until then stays, and the file is cut as far as possible.
    pub(crate) fn pack(&self, before: Before<'_>) -> Result<u64> {
        let (mut packing, mut target) = self.take_stock(before)?;
        let mut moved = 0;
        let mut done = Ok(());
        for _ in 0..MOST_ROUNDS {
            if target.is_reached() {
                break;
            }
            done = self.move_down(&packing, target, &mut moved, before);
            // Cut also after a failure: what was moved until then is of use.
            let cut = self.take_stock(before);
            if done.is_err() && cut.is_err() {
                return done.map(|()| moved);
            }
            (packing, target) = cut?;
            if done.is_err() {
                break;
            }
        }
        self.give_holes_back(&packing);
        done.map(|()| moved)
    }

    /// Makes the change durable that precedes all others of a session.
    pub(crate) fn begin_hidden(&self) -> Result<()> {
        let _change = self.change_lock.begin_hidden_change();
        self.prepare_hidden_change()
    }

    /// Ends the session, cuts the file behind the last claim, and takes all free space out of the allocator.
    pub(super) fn take_stock(&self, before: Before<'_>) -> Result<(Packing, Target)> {
        self.commit()?;
        self.wait_for_readers(PATIENCE, before);
        let _alone = self.change_alone()?;
        self.end_session_alone()?;
        // The space of tables was freed by the end of the session.
        self.wait_for_readers(SHORT, &mut |_| Ok(()));
        drop(self.punch_released());
        let mut packing = self.core.packing(|_| Ok(true))?;
        let block_size = self.core.layout.block_size();
        let released = self.released().iter().flat_map(|released| released.freed.clone()).collect();
        for Freed { at, len } in [self.space.hand_over(block_size), released].concat() {
            packing.keep(at.get(), len);
        }
        self.space.end_at(packing.end());
        if self.truncate()? {
            // The next session must not name the old length as durable.
            self.sync(&mut self.session()).map_err(|error| self.poisoned_by(error))?;
            self.core.file_len.store(self.file_len(), atomic::Ordering::Release);
        }
        let target = packing.target();
        Ok((packing, target))
    }

    /// Leaves unused space to later writes.
    pub(super) fn give_holes_back(&self, packing: &Packing) {
        let mut room = packing.room(packing.end());
        let len = self.core.layout.block_size();
        let holes = std::iter::from_fn(|| room.for_payload()).take(MOST_HOLES);
        // Those that are given back last are used first.
        let holes: Vec<FileOffset> = holes.collect();
        for at in holes.into_iter().rev() {
            self.space.give_back(Allocated { at, len, contents: Contents::Foreign });
        }
    }

    fn move_down(
        &self,
        packing: &Packing,
        target: Target,
        moved: &mut u64,
        before: Before<'_>,
    ) -> Result<()> {
        let copier = Copier::new(true);
        let mut room = packing.room(target.end);
        let mut batch = Batch::default();
        let mut below = u64::MAX;
        let mut done = Ok(());
        while done.is_ok() {
            let claims =
                self.highest(target.end..below, |role| !matches!(role, Role::Bitmap(_)))?;
            let Some(last) = claims.last() else { break };
            below = last.start();
            done = claims.iter().try_for_each(|claim| {
                let Some(to) = room.for_payload() else { return Ok(()) };
                before(self.core.present_len(claim)?)?;
                batch.take(self.move_block(claim, to, &copier)?);
                self.limit_changes()?;
                if batch.bytes >= BATCH { self.settle(&mut batch, moved) } else { Ok(()) }
            });
        }
        self.settle(&mut batch, moved)?;
        done?;
        let mut room = room.for_bitmaps();
        let mut below = u64::MAX;
        loop {
            let claims = self.highest(target.end..below, |role| matches!(role, Role::Bitmap(_)))?;
            let Some(last) = claims.last() else { return Ok(()) };
            below = last.start();
            for claim in &claims {
                let Some(to) = room.next() else { return Ok(()) };
                before(claim.len)?;
                *moved += self.move_bitmap(claim, to)?;
            }
        }
    }

    /// The highest blocks of some kind that reach beyond the start of this part of the file and begin before its end,
    /// the highest first.
    fn highest(&self, part: Range<u64>, of: impl Fn(Role) -> bool) -> Result<Vec<Claim>> {
        let mut found = BinaryHeap::new();
        self.core.each_claim(|claim| {
            if claim.end() > part.start && claim.start() < part.end && of(claim.role) {
                found.push(ByPlace(claim));
                if found.len() > MOST_MOVES {
                    found.pop();
                }
            }
            Ok(())
        })?;
        Ok(found.into_sorted_vec().into_iter().map(|ByPlace(claim)| claim).collect())
    }

    /// Moves a payload block to this space, unless it has changed since.
    fn move_block(&self, claim: &Claim, to: FileOffset, copier: &Copier) -> Result<Option<Move>> {
        let Role::Payload(block) = claim.role else { return Ok(None) };
        let _change = self.change_lock.begin_hidden_change();
        let _locked = self.blocks.lock_exclusive(block);
        let start = self.core.layout.block_start(block);
        // A plan that comes later looks the place up after this.
        if self.plans.meets(&(start.0..start.0 + claim.len)) {
            return Ok(None);
        }
        let entry = self.core.bat_entry(claim.index)?;
        let is_present = matches!(
            entry.payload_state(),
            PayloadState::FullyPresent | PayloadState::PartiallyPresent
        );
        if entry.offset() != claim.entry.offset() || !is_present {
            return Ok(None);
        }
        self.prepare_hidden_change()?;
        self.space.spoil(to);
        let mut bytes = 0;
        self.core.each_present(claim.index, entry, |run| {
            let (within, len) = (run.start, run.end - run.start);
            bytes += len;
            self.copy_payload(&self.core, entry.offset() + within, len, to + within, copier)
        })?;
        let entry = BatEntry::new(entry.state_bits(), to);
        self.set_block(block, entry, Order::PayloadFirst)?;
        Ok(Some(Move { from: Freed { at: claim.entry.offset(), len: claim.len }, bytes }))
    }

    /// Moves a sector bitmap block to this space, unless it has changed since; returns how many bytes were moved. All
    /// changes are kept out meanwhile, since bits change without a lock of their own.
    fn move_bitmap(&self, claim: &Claim, to: FileOffset) -> Result<u64> {
        let _alone = self.change_alone()?;
        let (index, from) = (claim.index, claim.entry.offset());
        if self.core.bat_entry(index)? != claim.entry {
            return Ok(0);
        }
        self.prepare_hidden_change()?;
        let mut bytes = Vec::with_capacity(BITMAP_BLOCK_LEN as usize);
        for page in (0..BITMAP_BLOCK_LEN).step_by(PAGE as usize) {
            let page = self.core.table_page(from + page, |page| page.to_page())?;
            bytes.extend_from_slice(&page[..]);
        }
        self.space.spoil(to);
        self.write_bytes(&bytes, to.get())?;
        for page in (0..BITMAP_BLOCK_LEN).step_by(PAGE as usize) {
            self.core.budget.drop_page(self.core.id, to + page);
        }
        self.change_tables([self.bat_page(index)], Order::PayloadFirst, |changed| {
            self.put_entry(changed, index, BatEntry::new(claim.entry.state_bits(), to));
        })?;
        // Changed bits may still be written to the old place, now or by a replay.
        self.space.retire(Freed { at: from, len: BITMAP_BLOCK_LEN });
        self.limit_changes()?;
        Ok(BITMAP_BLOCK_LEN)
    }

    /// Makes moves durable, and returns the old space to the host as far as no reader may name it.
    fn settle(&self, batch: &mut Batch, moved: &mut u64) -> Result<()> {
        if batch.freed.is_empty() {
            return Ok(());
        }
        self.commit()?;
        *moved += std::mem::take(&mut batch.bytes);
        let generation = self.pins().end_generation();
        let freed = std::mem::take(&mut batch.freed);
        self.released().push(Released { generation, freed, is_reused: false });
        // If this fails, the file takes up more space until it is cut.
        drop(self.punch_released());
        Ok(())
    }

    /// Waits for a while until freed space has no readers.
    pub(super) fn wait_for_readers(&self, patience: Duration, before: Before<'_>) {
        let until = Instant::now() + patience;
        let waits = || self.space.waits_for_readers() || !self.released().is_empty();
        while waits() && Instant::now() < until && before(0).is_ok() {
            drop(self.punch_released());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Moves that are not durable yet.
#[derive(Debug, Default)]
struct Batch {
    freed: Vec<Freed>,
    bytes: u64,
}

impl Batch {
    fn take(&mut self, done: Option<Move>) {
        let Some(Move { from, bytes }) = done else { return };
        self.freed.push(from);
        self.bytes += bytes;
    }
}

/// A move, and the space that it freed.
#[derive(Debug)]
struct Move {
    from: Freed,
    bytes: u64,
}

/// Orders claims by their place, the lowest last.
#[derive(Debug)]
struct ByPlace(Claim);

impl Ord for ByPlace {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.start().cmp(&self.0.start())
    }
}

impl PartialOrd for ByPlace {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByPlace {
    fn eq(&self, other: &Self) -> bool {
        self.0.start() == other.0.start()
    }
}

impl Eq for ByPlace {}
