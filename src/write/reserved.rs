//! Space that planned writes have reserved for blocks that have none.
//!
//! All writes to a block share its reserved space until one of them has it named by the tables, so that none has to
//! move bytes when it ends. That is sound because the space holds nothing that sharing exposes: it reads as zeros, or
//! bits tell which of its sectors count.
//!
//! A discard of the block *detaches* the reservation: the plans that share it are the earlier ones, and their bytes are
//! gone; later writes get other space. Reservations begin only under the exclusive lock of their block, but are named
//! and left at any time.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::open_plans::End;
use super::space::Allocated;
use crate::sync::{Mutex, MutexGuard};
use crate::types::BlockIndex;

/// All reservations.
#[derive(Debug, Default)]
pub(super) struct Reservations(Mutex<State>);

/// The reservations while none changes.
pub(super) type Locked<'a> = MutexGuard<'a, State>;

#[derive(Debug, Default)]
pub(super) struct State {
    /// Those that the next write to their block shares.
    of_block: HashMap<u64, u64>,
    all: HashMap<u64, Reservation>,
    next: u64,
}

#[derive(Debug)]
struct Reservation {
    block: u64,
    space: Allocated,
    shows_parent: bool,
    stage: Stage,
    users: usize,
    /// Whether anything may have been written to the space.
    is_used: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The block has no space yet.
    Open,
    /// The tables name the space, or did until the block was discarded.
    Named,
    /// The block was discarded first.
    Detached,
}

/// A share of reserved space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    id: u64,
    pub(super) block: BlockIndex,
    pub(super) space: Allocated,
    /// Whether the parent's bytes show in the block, so that bits tell which sectors of the space count.
    pub(super) shows_parent: bool,
}

/// Space that no table names and nobody uses any more.
#[derive(Clone, Copy, Debug)]
pub(super) enum GiveBack {
    Unused(Allocated),
    Used(Allocated),
}

impl Reservations {
    /// Reserves space for a block that has neither space nor a reservation and is locked exclusively.
    pub(super) fn reserve(&self, block: BlockIndex, space: Allocated, shows_parent: bool) -> Share {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.of_block.insert(block.0, id);
        let reservation = Reservation {
            block: block.0,
            space,
            shows_parent,
            stage: Stage::Open,
            users: 1,
            is_used: false,
        };
        state.all.insert(id, reservation);
        Share { id, block, space, shows_parent }
    }

    /// A share of the space that is reserved for a block and not named yet.
    pub(super) fn join(&self, block: BlockIndex) -> Option<Share> {
        let mut state = self.lock();
        let id = *state.of_block.get(&block.0)?;
        let reservation = state.all.get_mut(&id)?;
        reservation.users += 1;
        let (space, shows_parent) = (reservation.space, reservation.shows_parent);
        Some(Share { id, block, space, shows_parent })
    }

    /// Whether space is reserved for a block and not named yet.
    pub(super) fn has(&self, block: BlockIndex) -> bool {
        self.lock().of_block.contains_key(&block.0)
    }

    /// Cuts a block, locked exclusively, off from the space that is reserved for it.
    pub(super) fn detach(&self, block: BlockIndex) {
        let mut state = self.lock();
        let Some(id) = state.of_block.remove(&block.0) else { return };
        if let Some(reservation) = state.all.get_mut(&id) {
            reservation.stage = Stage::Detached;
        }
    }

    /// Leaves a share. Returns the space if nothing refers to it any more.
    pub(super) fn leave(&self, share: Share, how: End) -> Option<GiveBack> {
        let mut state = self.lock();
        let reservation = state.all.get_mut(&share.id)?;
        reservation.users -= 1;
        reservation.is_used |= how != End::Unused;
        if reservation.users > 0 {
            return None;
        }
        let ended = state.all.remove(&share.id)?;
        if state.of_block.get(&ended.block) == Some(&share.id) {
            state.of_block.remove(&ended.block);
        }
        match ended.stage {
            Stage::Named => None,
            _ if ended.is_used => Some(GiveBack::Used(ended.space)),
            _ => Some(GiveBack::Unused(ended.space)),
        }
    }

    /// Keeps all reservations in their stages.
    pub(super) fn lock(&self) -> Locked<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn stage(&self, share: Share) -> Stage {
        self.all.get(&share.id).map_or(Stage::Detached, |reservation| reservation.stage)
    }

    /// Records that the tables name the space.
    pub(super) fn set_named(&mut self, share: Share) {
        if self.of_block.get(&share.block.0) == Some(&share.id) {
            self.of_block.remove(&share.block.0);
        }
        if let Some(reservation) = self.all.get_mut(&share.id) {
            reservation.stage = Stage::Named;
        }
    }
}
