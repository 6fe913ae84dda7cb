//! Who works on which block: those that only move bytes share it, those that change its state do not.

use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::types::BlockIndex;

const SHARDS: usize = 32;

/// Locks on blocks, each there only while somebody holds it or waits.
#[derive(Debug, Default)]
pub(super) struct BlockLocks {
    shards: [Shard; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    /// So few at a time that looking at each is quickest.
    held: Mutex<Vec<(u64, Held)>>,
    freed: Condvar,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Shared(usize),
    Alone,
}

/// A block that is held until this is dropped.
#[derive(Debug)]
pub(super) struct BlockGuard<'a> {
    shard: &'a Shard,
    block: u64,
}

impl BlockLocks {
    /// Holds a block together with others that only move bytes.
    pub(super) fn share(&self, block: BlockIndex) -> BlockGuard<'_> {
        self.hold(block, |held| match held {
            None => Some(Held::Shared(1)),
            Some(Held::Shared(others)) => Some(Held::Shared(others + 1)),
            Some(Held::Alone) => None,
        })
    }

    /// Holds a block alone.
    pub(super) fn claim(&self, block: BlockIndex) -> BlockGuard<'_> {
        self.hold(block, |held| held.is_none().then_some(Held::Alone))
    }

    fn hold(
        &self,
        BlockIndex(block): BlockIndex,
        enter: impl Fn(Option<Held>) -> Option<Held>,
    ) -> BlockGuard<'_> {
        let shard = &self.shards[block as usize % SHARDS];
        let mut held = shard.lock();
        loop {
            let at = held.iter().position(|(held, _)| *held == block);
            match (enter(at.map(|at| held[at].1)), at) {
                (Some(entered), Some(at)) => held[at].1 = entered,
                (Some(entered), None) => held.push((block, entered)),
                (None, _) => {
                    held = shard.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            return BlockGuard { shard, block };
        }
    }
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
