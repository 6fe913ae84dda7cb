//! Locks on blocks: shared to move payload, exclusive to change the state of a block.

use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::types::BlockIndex;

const SHARDS: usize = 32;

/// Locks on blocks. Each exists only while it is held or waited for.
#[derive(Debug, Default)]
pub(super) struct BlockLocks {
    shards: [Shard; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    /// Few at a time: a linear search is the fastest.
    held: Mutex<Vec<(u64, Held)>>,
    freed: Condvar,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Shared(usize),
    Exclusive,
}

/// A block that is locked until this is dropped.
#[derive(Debug)]
pub(super) struct BlockGuard<'a> {
    shard: &'a Shard,
    block: u64,
}

impl BlockLocks {
    /// Locks a block together with others that only move payload.
    pub(super) fn lock_shared(&self, block: BlockIndex) -> BlockGuard<'_> {
        self.hold(block, shared)
    }

    /// Locks a block exclusively.
    pub(super) fn lock_exclusive(&self, block: BlockIndex) -> BlockGuard<'_> {
        self.hold(block, exclusive)
    }

    /// Locks a block as [`lock_shared`](Self::lock_shared), unless that has to wait.
    pub(super) fn try_lock_shared(&self, block: BlockIndex) -> Option<BlockGuard<'_>> {
        self.try_hold(block, shared)
    }

    /// Locks a block exclusively, unless that has to wait.
    pub(super) fn try_lock_exclusive(&self, block: BlockIndex) -> Option<BlockGuard<'_>> {
        self.try_hold(block, exclusive)
    }

    fn try_hold(
        &self,
        BlockIndex(block): BlockIndex,
        acquire: impl Fn(Option<Held>) -> Option<Held>,
    ) -> Option<BlockGuard<'_>> {
        let shard = &self.shards[block as usize % SHARDS];
        let is_held = try_acquire(&mut shard.lock(), block, acquire);
        is_held.then(|| BlockGuard { shard, block })
    }

    fn hold(
        &self,
        BlockIndex(block): BlockIndex,
        acquire: impl Fn(Option<Held>) -> Option<Held>,
    ) -> BlockGuard<'_> {
        let shard = &self.shards[block as usize % SHARDS];
        let mut held = shard.lock();
        while !try_acquire(&mut held, block, &acquire) {
            held = shard.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        BlockGuard { shard, block }
    }
}

fn shared(held: Option<Held>) -> Option<Held> {
    match held {
        None => Some(Held::Shared(1)),
        Some(Held::Shared(others)) => Some(Held::Shared(others + 1)),
        Some(Held::Exclusive) => None,
    }
}

fn exclusive(held: Option<Held>) -> Option<Held> {
    held.is_none().then_some(Held::Exclusive)
}

/// Adds a holder of the block, if the present ones allow that.
fn try_acquire(
    held: &mut Vec<(u64, Held)>,
    block: u64,
    acquire: impl Fn(Option<Held>) -> Option<Held>,
) -> bool {
    let at = held.iter().position(|(held, _)| *held == block);
    match (acquire(at.map(|at| held[at].1)), at) {
        (Some(acquired), Some(at)) => held[at].1 = acquired,
        (Some(acquired), None) => held.push((block, acquired)),
        (None, _) => return false,
    }
    true
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Held)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlockGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.shard.lock();
        if let Some(at) = held.iter().position(|(block, _)| *block == self.block) {
            if let Held::Shared(others @ 2..) = &mut held[at].1 {
                *others -= 1;
                return;
            }
            held.swap_remove(at);
        }
        drop(held);
        self.shard.freed.notify_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_try_that_fails_leaves_the_lock_to_its_holder() {
        let (locks, block) = (BlockLocks::default(), BlockIndex(7));
        let exclusive = locks.lock_exclusive(block);
        for _ in 0..2 {
            assert!(locks.try_lock_exclusive(block).is_none());
            assert!(locks.try_lock_shared(block).is_none());
        }
        drop(exclusive);
        let shared = [locks.try_lock_shared(block), locks.try_lock_shared(block)];
        assert!(shared.iter().all(Option::is_some));
        for left in [2, 1] {
            assert!(locks.try_lock_exclusive(block).is_none(), "{left} have it");
        }
        let [first, second] = shared;
        drop(first);
        assert!(locks.try_lock_exclusive(block).is_none());
        drop(second);
        assert!(locks.try_lock_exclusive(block).is_some());
    }
}
