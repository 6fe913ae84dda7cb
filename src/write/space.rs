//! Space in the file: the places of new blocks, and their possible contents.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;

use crate::image::Generation;
use crate::storage::Storage;
use crate::types::{FileOffset, MIB};

/// Upper bound of the growth of the file beyond what is needed, in bytes.
const MOST_GROWTH: u64 = 64 * MIB;

/// How far the file grows ahead of what is needed, to make growing rare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// By a sixteenth of its length.
    Little,
    /// By as much as makes the flush of the growth rare too, but not beyond the claims of the tables at the start of the
    /// session by more than all blocks of the disk take up, in bytes.
    Far { blocks: u64 },
}

/// Space for blocks.
#[derive(Debug)]
pub(super) struct Space {
    /// Place of the next block that does not fit into freed space.
    end: u64,
    /// Length of the file, in bytes.
    file_len: u64,
    /// Length of the file before this session. It is never truncated below that.
    first_len: u64,
    /// End of the last claim of the tables before this session.
    claimed: u64,
    /// Reusable space by length, with arbitrary contents.
    free: BTreeMap<u64, Vec<FileOffset>>,
    /// Space that writes of unknown fate may still reach. It is never used again.
    lost: HashSet<FileOffset>,
    /// Reusable space that reads as zeros.
    zeroed: BTreeMap<u64, Vec<FileOffset>>,
    /// Freed space, not durably yet.
    freed: Vec<Freed>,
    /// Space that was freed, but that the log may still write to.
    retired: Vec<Freed>,
    /// Durably freed space with the last generation of pins that may know of it, in order.
    pinned: VecDeque<(Generation, Vec<Freed>)>,
    ahead: Ahead,
    /// Space from here on was beyond the end of the file when the session began.
    fresh_from: u64,
    /// Length of the file at the start of the last completed flush of the session, in bytes.
    durable_len: u64,
    /// Space behind `fresh_from` that may hold other bytes than those that the tables name.
    spoiled: HashSet<FileOffset>,
}

/// The former space of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    pub(super) at: FileOffset,
    pub(super) len: u64,
}

/// Space that the host gets back once no reader knows of it.
#[derive(Debug)]
pub(super) struct Released {
    /// The last generation of pins that may know of it.
    pub(super) generation: Generation,
    pub(super) freed: Vec<Freed>,
    /// Whether it is used again afterwards.
    pub(super) is_reused: bool,
}

/// Space for a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocated {
    pub(super) at: FileOffset,
    pub(super) len: u64,
    pub(super) contents: Contents,
}

/// Contents of newly allocated space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Zeros: the file grew by it in this session, and it was not used since.
    Zeros,
    /// Old bytes of another block.
    Foreign,
}

/// Lengths for the file to grow to, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grow {
    needed: u64,
    generous: u64,
}

impl Grow {
    /// Grows the file; returns its length.
    pub(super) fn carry_out(self, storage: &dyn Storage) -> io::Result<u64> {
        let Self { needed, generous } = self;
        // The host may have room for the needed length but not for more.
        Ok(match storage.set_len(generous) {
            Ok(()) => generous,
            Err(_) => storage.set_len(needed).map(|()| needed)?,
        })
    }
}

impl Space {
    /// Space behind a file of `file_len` bytes. [`start_after`](Self::start_after) is called with
    /// the end of all claims before the first allocation. Unused space inside the file is not
    /// searched for: that is the work of a check or a compaction.
    pub(super) fn new(file_len: u64, ahead: Ahead) -> Self {
        let end = file_len.next_multiple_of(MIB);
        Self {
            end,
            file_len,
            first_len: file_len,
            claimed: 0,
            free: BTreeMap::new(),
            lost: HashSet::new(),
            zeroed: BTreeMap::new(),
            freed: Vec::new(),
            retired: Vec::new(),
            pinned: VecDeque::new(),
            ahead,
            fresh_from: end,
            durable_len: 0,
            spoiled: HashSet::new(),
        }
    }

    /// Allocates only behind `end`, the end of the last claim of the tables.
    pub(super) fn start_after(&mut self, end: u64) {
        self.end = self.end.max(end.next_multiple_of(MIB));
        self.fresh_from = self.end;
        self.claimed = end;
    }

    /// Extends the file to hold everything that is claimed. Some writers omit the part of the last
    /// block that lies beyond the end of the disk: the block has that space nevertheless.
    pub(super) fn extend_to_claims(&mut self, storage: &dyn Storage) -> io::Result<()> {
        if self.file_len < self.claimed {
            storage.set_len(self.claimed)?;
            self.file_len = self.claimed;
        }
        Ok(())
    }

    pub(super) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Allocates `len` bytes of freed space or at the end; `None` if the file has to grow.
    pub(super) fn allocate(&mut self, len: u64) -> Option<Allocated> {
        if let Some(at) = self.free.get_mut(&len).and_then(Vec::pop) {
            return Some(Allocated { at, len, contents: Contents::Foreign });
        }
        self.allocate_zeros(len)
    }

    /// The same, of space that reads as zeros.
    pub(super) fn allocate_zeros(&mut self, len: u64) -> Option<Allocated> {
        if let Some(at) = self.zeroed.get_mut(&len).and_then(Vec::pop) {
            return Some(Allocated { at, len, contents: Contents::Zeros });
        }
        let end = self.end + len;
        if end > self.file_len {
            return None;
        }
        let at = FileOffset::new(self.end);
        self.end = end;
        Some(Allocated { at, len, contents: Contents::Zeros })
    }

    /// How many blocks of `len` bytes can be allocated before the file has to grow.
    pub(super) fn room_for(&self, len: u64, must_be_zeros: bool) -> u64 {
        let count = |free: &BTreeMap<u64, Vec<FileOffset>>| free.get(&len).map_or(0, Vec::len);
        let reused = count(&self.zeroed) + if must_be_zeros { 0 } else { count(&self.free) };
        reused as u64 + self.file_len.saturating_sub(self.end) / len
    }

    /// Allocates reused space with arbitrary contents.
    pub(super) fn take_foreign(&mut self, len: u64) -> Option<Allocated> {
        let at = self.free.get_mut(&len).and_then(Vec::pop)?;
        Some(Allocated { at, len, contents: Contents::Foreign })
    }

    /// The growth of the file that makes room for `len` more bytes.
    pub(super) fn growth(&self, len: u64) -> Grow {
        let needed = self.end + len;
        let ahead = match self.ahead {
            Ahead::Little => self.file_len + (self.file_len / 16).min(MOST_GROWTH),
            Ahead::Far { blocks } => (self.file_len + MOST_GROWTH).min(self.claimed + blocks),
        };
        Grow { needed, generous: needed.max(ahead).next_multiple_of(MIB) }
    }

    /// Records that the file grew to this length.
    pub(super) fn set_grown(&mut self, len: u64) {
        self.file_len = len;
    }

    /// Returns space that is as it was when it was allocated.
    pub(super) fn give_back_unused(&mut self, space: Allocated) {
        let free = match space.contents {
            Contents::Zeros => &mut self.zeroed,
            Contents::Foreign => &mut self.free,
        };
        free.entry(space.len).or_default().push(space.at);
    }

    /// Returns space that no durable or pending entry has named.
    pub(super) fn give_back(&mut self, space: Allocated) {
        self.reuse(vec![Freed { at: space.at, len: space.len }]);
    }

    /// Records that a flush that began when the file had `len` bytes has returned.
    pub(super) fn flushed(&mut self, len: u64) {
        self.durable_len = len;
    }

    /// Whether nothing but payload of its present block was ever written to this space, which the file durably grew by
    /// in this session.
    pub(super) fn is_fresh(&self, at: FileOffset, len: u64) -> bool {
        let is_within = self.fresh_from <= at.get() && (at + len).get() <= self.durable_len;
        is_within && !self.spoiled.contains(&at)
    }

    /// Records that the space at `at` may hold bytes that no table names.
    pub(super) fn spoil(&mut self, at: FileOffset) {
        if self.fresh_from <= at.get() {
            self.spoiled.insert(at);
        }
    }

    /// Records that writes may reach the space at `at` at any time from now on.
    pub(super) fn lose(&mut self, at: FileOffset) {
        self.lost.insert(at);
    }

    /// Records space that a change in memory stopped using.
    pub(super) fn free_later(&mut self, freed: Freed) {
        self.freed.push(freed);
    }

    /// Records space of tables that a change in memory stopped using. It is used again once the log is empty.
    pub(super) fn retire(&mut self, freed: Freed) {
        self.retired.push(freed);
    }

    /// Takes the space that no log writes to any more.
    pub(super) fn take_retired(&mut self) -> Vec<Freed> {
        std::mem::take(&mut self.retired)
    }

    /// Takes the space freed so far, for the commit that makes that durable.
    pub(super) fn take_freed(&mut self) -> Vec<Freed> {
        std::mem::take(&mut self.freed)
    }

    /// Records durably freed space that only pins of this generation or earlier may know of.
    pub(super) fn reuse_after(&mut self, generation: Generation, freed: Vec<Freed>) {
        self.pinned.push_back((generation, freed));
    }

    /// Makes space reusable that only pins of generations before `oldest` may know of.
    pub(super) fn unpin(&mut self, oldest: Generation) {
        while self.pinned.front().is_some_and(|(generation, _)| *generation < oldest) {
            let freed = self.pinned.pop_front().map(|(_, freed)| freed);
            self.reuse(freed.unwrap_or_default());
        }
    }

    /// Whether freed space is waiting for pins.
    pub(super) fn has_pinned(&self) -> bool {
        !self.pinned.is_empty()
    }

    /// Makes freed space reusable: its freeing is durable, and no remaining pin may name it.
    pub(super) fn reuse(&mut self, freed: Vec<Freed>) {
        for Freed { at, len } in freed {
            if self.lost.contains(&at) {
                continue;
            }
            self.spoil(at);
            self.free.entry(len).or_default().push(at);
        }
    }

    /// Leaves all space that is free to the caller, and returns what is neither free nor named by a table. The lost
    /// places are of blocks of `len` bytes.
    pub(super) fn hand_over(&mut self, len: u64) -> Vec<Freed> {
        self.set_aside(u64::MAX);
        self.kept(len)
    }

    /// Leaves the space that is free below `end` to the caller.
    pub(super) fn set_aside(&mut self, end: u64) {
        for places in self.free.values_mut().chain(self.zeroed.values_mut()) {
            places.retain(|at| at.get() >= end);
        }
    }

    /// What is neither free nor named by a table. The lost places are of blocks of `len` bytes.
    pub(super) fn kept(&self, len: u64) -> Vec<Freed> {
        let lost = self.lost.iter().map(|at| Freed { at: *at, len });
        let pinned = self.pinned.iter().flat_map(|(_, freed)| freed);
        lost.chain(pinned.chain(&self.freed).chain(&self.retired).copied()).collect()
    }

    /// Leaves all space that no table names: first what may be used again, then what never may.
    pub(super) fn leave(&mut self) -> (Vec<Freed>, Vec<FileOffset>) {
        let places = |free: BTreeMap<u64, Vec<FileOffset>>| {
            free.into_iter().flat_map(|(len, all)| all.into_iter().map(move |at| Freed { at, len }))
        };
        let free = places(std::mem::take(&mut self.free));
        let free = free.chain(places(std::mem::take(&mut self.zeroed)));
        let pinned = std::mem::take(&mut self.pinned).into_iter().flat_map(|(_, freed)| freed);
        let freed = self.freed.drain(..).chain(self.retired.drain(..));
        (free.chain(pinned).chain(freed).collect(), self.lost.drain().collect())
    }

    /// Lets the file be truncated to `end` bytes, behind which nothing is used: also to less than it was before this
    /// session.
    pub(super) fn end_at(&mut self, end: u64) {
        self.end = end;
        self.first_len = self.first_len.min(end);
        self.claimed = self.claimed.min(end);
        for places in self.free.values_mut().chain(self.zeroed.values_mut()) {
            places.retain(|at| at.get() < end);
        }
    }

    /// The length to truncate the file to, in bytes: without the space that this session grew by
    /// and did not use. Space that pins may name stays. The state changes only once the file [was
    /// truncated](Self::set_truncated).
    pub(super) fn truncated_len(&self) -> Option<u64> {
        let mut end = self.end;
        // Freed space at the very end is truncated too, down to the first length.
        let behind = self.free.iter().chain(&self.zeroed).flat_map(|(len, places)| {
            let places = places.iter().map(|at| at.get()).filter(|at| *at >= self.first_len);
            places.map(|at| (at, *len))
        });
        let mut behind: Vec<(u64, u64)> = behind.collect();
        behind.sort_unstable();
        while let Some((at, _)) = behind.pop().filter(|(at, len)| at + len == end) {
            end = at;
        }
        let cut = end.max(self.first_len);
        (cut < self.file_len).then_some(cut)
    }

    pub(super) fn set_truncated(&mut self, len: u64) {
        self.end = len.next_multiple_of(MIB);
        self.file_len = len;
        let end = self.end;
        self.free.values_mut().for_each(|places| places.retain(|at| at.get() < end));
        self.zeroed.values_mut().for_each(|places| places.retain(|at| at.get() < end));
        self.spoiled.retain(|at| at.get() < end);
        self.durable_len = self.durable_len.min(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Space behind a file of `mib` MiB, each of whose MiB but the first is freed.
    fn freed(mib: u64) -> Space {
        let mut space = Space::new(mib * MIB, Ahead::Little);
        let freed = |at| Freed { at: FileOffset::new(at * MIB), len: MIB };
        space.reuse((1..mib).map(freed).collect());
        space
    }

    fn grown(space: &mut Space, mib: u64) {
        // A block of another length does not fit into freed space.
        space.file_len += mib * MIB;
        let got = space.allocate(mib * MIB).unwrap();
        assert_eq!(got.contents, Contents::Zeros);
        space.give_back(got);
    }

    fn kept(space: &Space) -> Vec<u64> {
        let mut kept: Vec<u64> = space.free.values().flatten().map(|at| at.get() / MIB).collect();
        kept.sort_unstable();
        kept
    }

    #[test]
    fn freed_space_that_is_not_cut_stays_to_be_used_again() {
        let mut space = freed(1000);
        assert_eq!(space.truncated_len(), None);
        assert_eq!(kept(&space), (1..1000).collect::<Vec<_>>(), "nothing is cut");
        for len in [2, 7, 3] {
            grown(&mut space, len);
        }
        assert_eq!(kept(&space).len(), 1002);
        // A failed truncation changes nothing.
        assert_eq!(
            (space.truncated_len(), space.truncated_len()),
            (Some(1000 * MIB), Some(1000 * MIB))
        );
        assert_eq!(kept(&space).len(), 1002);
        space.set_truncated(1000 * MIB);
        assert_eq!(kept(&space), (1..1000).collect::<Vec<_>>(), "what was there before stays");
        for _ in 1..1000 {
            assert!(space.allocate(MIB).is_some(), "without growth");
        }
        assert!(space.allocate(MIB).is_none());
    }

    #[test]
    fn what_is_used_at_the_end_keeps_all_before_it() {
        let mut space = freed(10);
        grown(&mut space, 2);
        grown(&mut space, 3);
        let used = space.allocate(3 * MIB).unwrap();
        assert_eq!(used.at.get(), 12 * MIB);
        assert_eq!(space.truncated_len(), None);
        space.file_len += 4 * MIB;
        assert_eq!(space.truncated_len(), Some(15 * MIB));
        space.set_truncated(15 * MIB);
        assert_eq!(kept(&space), (1..11).collect::<Vec<_>>());
        // The first length need not be the end of a block.
        space.give_back(used);
        space.first_len = 10 * MIB - 512;
        assert_eq!(space.truncated_len(), Some(10 * MIB));
        space.first_len = 12 * MIB + 512;
        assert_eq!(space.truncated_len(), None, "a part of a block is not cut off");
    }
}
