//! Space in the file: where new blocks go, and what that space may still contain.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use crate::image::Generation;
use crate::storage::Storage;
use crate::types::{FileOffset, MIB};

/// The file grows by a sixteenth of itself, within these bounds, so that growing stays rare.
const MOST_GROWTH: u64 = 64 * MIB;

/// Space for blocks.
#[derive(Debug)]
pub(super) struct Space {
    /// Where the next block goes that no freed space takes.
    end: u64,
    /// Length of the file.
    file_len: u64,
    /// Length of the file before this session, which is never cut.
    first_len: u64,
    /// Where the furthest claim ended before this session.
    claimed: u64,
    /// Reusable space by length; all of it may hold anything.
    free: BTreeMap<u64, Vec<FileOffset>>,
    /// Space whose freeing is not durable yet.
    freed: Vec<Freed>,
    /// Space whose freeing is durable, and the last generation of pins that may know of it, in order.
    pinned: VecDeque<(Generation, Vec<Freed>)>,
}

/// Space that a block gave up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    pub(super) at: FileOffset,
    pub(super) len: u64,
}

/// Space that was given up, and the last generation of pins that may know of it.
pub(super) type Released = (Generation, Vec<Freed>);

/// Space for a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocated {
    pub(super) at: FileOffset,
    pub(super) len: u64,
    pub(super) contents: Contents,
}

/// What newly allocated space may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Zeros: the file was grown for it in this session and it was not used since.
    Zeros,
    /// Another block's old bytes.
    Foreign,
}

impl Space {
    /// Space behind a file of `file_len` bytes, and before the first of it is given away
    /// [behind](Self::begin_behind) all that its tables claim. What lies unused in the file now is not looked
    /// for; that is work for a check or a compaction.
    pub(super) fn new(file_len: u64) -> Self {
        Self {
            end: file_len.next_multiple_of(MIB),
            file_len,
            first_len: file_len,
            claimed: 0,
            free: BTreeMap::new(),
            freed: Vec::new(),
            pinned: VecDeque::new(),
        }
    }

    /// Gives away nothing before `end`, which is where the furthest claim ends.
    pub(super) fn begin_behind(&mut self, end: u64) {
        self.end = self.end.max(end.next_multiple_of(MIB));
        self.claimed = end;
    }

    /// Has the file hold all that is claimed. A block whose end some writers leave out, behind the end of the
    /// disk, has that space all the same.
    pub(super) fn hold_claimed(&mut self, storage: &dyn Storage) -> io::Result<()> {
        if self.file_len < self.claimed {
            storage.set_len(self.claimed)?;
            self.file_len = self.claimed;
        }
        Ok(())
    }

    pub(super) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Freed space for `len` bytes, or space at the end; `None` when the file must grow for it.
    pub(super) fn allocate(&mut self, len: u64) -> Option<Allocated> {
        if let Some(at) = self.free.get_mut(&len).and_then(Vec::pop) {
            return Some(Allocated { at, len, contents: Contents::Foreign });
        }
        let end = self.end + len;
        if end > self.file_len {
            return None;
        }
        let at = FileOffset::new(self.end);
        self.end = end;
        Some(Allocated { at, len, contents: Contents::Zeros })
    }

    /// Grows the file so that `len` more bytes find space.
    pub(super) fn grow(&mut self, storage: &dyn Storage, len: u64) -> io::Result<()> {
        let needed = self.end + len;
        let step = (self.file_len / 16).min(MOST_GROWTH);
        let generous = needed.max(self.file_len + step).next_multiple_of(MIB);
        // Where there is no room for generosity there may still be for what is needed.
        let grown = match storage.set_len(generous) {
            Ok(()) => generous,
            Err(_) => storage.set_len(needed).map(|()| needed)?,
        };
        self.file_len = grown;
        Ok(())
    }

    /// Takes back space that no durable or pending entry ever named.
    pub(super) fn give_back(&mut self, space: Allocated) {
        self.free.entry(space.len).or_default().push(space.at);
    }

    /// Notes space that a change in memory no longer uses.
    pub(super) fn free_later(&mut self, freed: Freed) {
        self.freed.push(freed);
    }

    /// What was freed up to now, for the commit that makes it durable.
    pub(super) fn take_freed(&mut self) -> Vec<Freed> {
        std::mem::take(&mut self.freed)
    }

    /// Notes freed space whose freeing is durable, and that nobody finds who was not pinned in this
    /// generation or before.
    pub(super) fn reuse_after(&mut self, generation: Generation, freed: Vec<Freed>) {
        self.pinned.push_back((generation, freed));
    }

    /// Makes space reusable that only pins of generations before this one knew of.
    pub(super) fn unpin(&mut self, oldest: Generation) {
        while self.pinned.front().is_some_and(|(generation, _)| *generation < oldest) {
            let freed = self.pinned.pop_front().map(|(_, freed)| freed);
            self.reuse(freed.unwrap_or_default());
        }
    }

    /// Whether freed space waits for pins.
    pub(super) fn has_pinned(&self) -> bool {
        !self.pinned.is_empty()
    }

    /// Makes freed space reusable: its freeing is durable, and no pin is left that may name it.
    pub(super) fn reuse(&mut self, freed: Vec<Freed>) {
        for Freed { at, len } in freed {
            self.free.entry(len).or_default().push(at);
        }
    }

    /// The length to cut the file to: without what this session grew and did not use. What pins may name
    /// stays. Nothing is forgotten before the file [was cut](Self::was_cut).
    pub(super) fn cut_len(&self) -> Option<u64> {
        let mut end = self.end;
        // Freed space at the very end is no loss either; before the length that is never cut there is none.
        let behind = self.free.iter().flat_map(|(len, places)| {
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

    pub(super) fn was_cut(&mut self, len: u64) {
        self.end = len.next_multiple_of(MIB);
        self.file_len = len;
        let end = self.end;
        self.free.values_mut().for_each(|places| places.retain(|at| at.get() < end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Space behind a file of so many MiB, and of each MiB before its end that was freed.
    fn freed(mib: u64) -> Space {
        let mut space = Space::new(mib * MIB);
        let freed = |at| Freed { at: FileOffset::new(at * MIB), len: MIB };
        space.reuse((1..mib).map(freed).collect());
        space
    }

    fn grown(space: &mut Space, mib: u64) {
        // As a block of another length: no freed space takes it.
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
        assert_eq!(space.cut_len(), None);
        assert_eq!(kept(&space), (1..1000).collect::<Vec<_>>(), "nothing is cut");
        for len in [2, 7, 3] {
            grown(&mut space, len);
        }
        assert_eq!(kept(&space).len(), 1002);
        // A cut that failed is as none.
        assert_eq!((space.cut_len(), space.cut_len()), (Some(1000 * MIB), Some(1000 * MIB)));
        assert_eq!(kept(&space).len(), 1002);
        space.was_cut(1000 * MIB);
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
        assert_eq!(space.cut_len(), None);
        space.file_len += 4 * MIB;
        assert_eq!(space.cut_len(), Some(15 * MIB));
        space.was_cut(15 * MIB);
        assert_eq!(kept(&space), (1..11).collect::<Vec<_>>());
        // The end of the file before this session need be no end of a block.
        space.give_back(used);
        space.first_len = 10 * MIB - 512;
        assert_eq!(space.cut_len(), Some(10 * MIB));
        space.first_len = 12 * MIB + 512;
        assert_eq!(space.cut_len(), None, "a part of a block is not cut off");
    }
}
