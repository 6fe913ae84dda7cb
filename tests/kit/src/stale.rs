//! Stale bytes: what a host may show where a crash lost the first write to space that a file grew by.
//!
//! Such a host remembers the length of a file and where its bytes are to go before it has the bytes. It gives out
//! space in extents, and an extent is safe once any part of it is durable.

use std::collections::{BTreeMap, BTreeSet};

use crate::outcomes::{Torn, UNIT};
use crate::sim::{Event, Files, PAGE};

/// The unit in which the host writes, in bytes: all of it is stale if a write to any part of it is lost.
const HOST_BLOCK: u64 = PAGE as u64;
/// The unit in which the host gives out space, in bytes.
pub const EXTENT: u64 = 1 << 20;

/// The space that files grew by, and which of its extents are safe.
#[derive(Debug)]
pub struct Grown {
    shows_stale: bool,
    /// The length of each file that existed before.
    first: Vec<u64>,
    /// File and number.
    safe: BTreeSet<(usize, u64)>,
}

impl Grown {
    /// Nothing has grown yet.
    pub fn since(start: &Files) -> Self {
        let first = start.files.iter().map(|file| file.len()).collect();
        Self { shows_stale: start.shows_stale, first, safe: BTreeSet::new() }
    }

    /// A change became durable.
    pub fn settle(&mut self, event: &Event) {
        match event {
            _ if !self.shows_stale => {}
            Event::Write(file, chunk) => {
                let extents = chunk.at / EXTENT..chunk.end().div_ceil(EXTENT);
                self.safe.extend(extents.map(|extent| (*file, extent)));
            }
            Event::SetLen(file, len) => {
                if let Some(first) = self.first.get_mut(*file) {
                    *first = (*first).min(*len);
                }
                self.safe.retain(|(of, extent)| of != file || extent * EXTENT < *len);
            }
            _ => {}
        }
    }

    fn is_fresh(&self, file: usize, block: u64) -> bool {
        let at = block * HOST_BLOCK;
        at >= self.first.get(file).copied().unwrap_or(0)
            && !self.safe.contains(&(file, at / EXTENT))
    }

    /// The blocks that are stale if of the pending changes only those of `order` arrive, in that order, and some
    /// of them torn.
    pub fn stale(
        &self,
        events: &[Event],
        pending: &[usize],
        order: &[usize],
        torn: &[Torn],
        durable: &Files,
    ) -> Stale {
        let mut stale = Stale::default();
        if !self.shows_stale {
            return stale;
        }
        let kept: BTreeSet<usize> = order.iter().copied().collect();
        let mut lost = BTreeSet::new();
        for i in pending {
            if let Event::SetLen(file, len) = &events[*i]
                && kept.contains(i)
            {
                lost.retain(|(of, block)| of != file || block * HOST_BLOCK < *len);
            }
            let Event::Write(file, chunk) = &events[*i] else { continue };
            let torn = torn.iter().find(|(torn, _)| torn == i);
            let is_lost = |block: &u64| match torn {
                None => !kept.contains(i),
                Some((_, arrived)) => {
                    let first = chunk.at / UNIT as u64;
                    let units =
                        block * HOST_BLOCK / UNIT as u64..(block + 1) * HOST_BLOCK / UNIT as u64;
                    let missing = |(n, arrived): (usize, &bool)| {
                        !arrived && units.contains(&(first + n as u64))
                    };
                    arrived.iter().enumerate().any(missing)
                }
            };
            let blocks = blocks(event_range(&events[*i])).filter(is_lost);
            lost.extend(blocks.map(|block| (*file, block)).filter(|(f, b)| self.is_fresh(*f, *b)));
        }
        if lost.is_empty() {
            return stale;
        }
        stale.lens = lens(events, order, durable);
        // Before the first write to the block that arrives: what arrives shows. A cut takes the stale bytes away, and
        // growth after it brings others.
        let mut shown: BTreeSet<(usize, u64)> = BTreeSet::new();
        for i in order.iter().copied().chain([usize::MAX]) {
            let before: Vec<(usize, u64)> = match events.get(i) {
                Some(Event::Write(file, _)) => blocks(event_range(&events[i]))
                    .map(|block| (*file, block))
                    .filter(|place| lost.contains(place) && !shown.contains(place))
                    .collect(),
                Some(Event::SetLen(file, len)) => {
                    shown.retain(|(of, block)| of != file || block * HOST_BLOCK < *len);
                    continue;
                }
                Some(_) => continue,
                None => lost.difference(&shown).copied().collect(),
            };
            shown.extend(&before);
            if !before.is_empty() {
                stale.before.insert(i, before);
            }
        }
        stale
    }
}

/// The stale blocks of one outcome.
#[derive(Debug, Default)]
pub struct Stale {
    /// The blocks to fill before a change is made, after all changes for `usize::MAX`.
    before: BTreeMap<usize, Vec<(usize, u64)>>,
    /// The length of each file in the end: stale bytes make none longer.
    lens: Vec<u64>,
}

impl Stale {
    /// Fills the blocks that show before the change is made.
    pub fn show_before(&mut self, files: &mut Files, change: usize) {
        for (file, block) in self.before.remove(&change).unwrap_or_default() {
            let end = self.lens.get(file).copied().unwrap_or(0);
            files.file_mut(file).fill_stale(block, end);
        }
    }

    /// Fills the blocks that show after all changes.
    pub fn show_rest(&mut self, files: &mut Files) {
        self.show_before(files, usize::MAX);
    }
}

fn lens(events: &[Event], order: &[usize], durable: &Files) -> Vec<u64> {
    let mut lens: Vec<u64> = durable.files.iter().map(|file| file.len()).collect();
    for i in order {
        let (file, len) = match &events[*i] {
            Event::Write(file, chunk) => {
                (*file, chunk.end().max(lens.get(*file).copied().unwrap_or(0)))
            }
            Event::SetLen(file, len) => (*file, *len),
            _ => continue,
        };
        lens.resize(lens.len().max(file + 1), 0);
        lens[file] = len;
    }
    lens
}

fn event_range(event: &Event) -> std::ops::Range<u64> {
    match event {
        Event::Write(_, chunk) => chunk.at..chunk.end(),
        _ => 0..0,
    }
}

fn blocks(range: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
    range.start / HOST_BLOCK..range.end.div_ceil(HOST_BLOCK)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::outcomes::{Depth, Explorer};
    use crate::sim::{Bytes, Chunk, STALE};

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn write(at: u64, len: u64) -> Event {
        Event::Write(0, Arc::new(Chunk::new(at, &vec![0x11; len as usize])))
    }

    /// What the file may be at the end of a history that starts with 1 MiB of zeros.
    fn outcomes(shows_stale: bool, events: &[Event]) -> Vec<Bytes> {
        let mut start = Files { shows_stale, ..Files::default() };
        start.file_mut(0).set_len(MIB);
        let depth = Depth { exhaustive: 12, samples: 0, torn: 40 };
        let mut files = Vec::new();
        Explorer::new(start, events, depth, 1).run(events.len(), &|_| 0, &mut |outcome| {
            files.push(outcome.files.files[0].clone());
        });
        files
    }

    /// The kinds of bytes in a unit, over all outcomes that have it: zeros, those written, stale ones.
    fn kinds(files: &[Bytes], at: u64) -> [bool; 3] {
        let mut kinds = [false; 3];
        for file in files.iter().filter(|file| file.len() >= at + UNIT as u64) {
            let mut unit = [0; UNIT];
            file.read(at, &mut unit);
            let found = [[0; 8], [0x11; 8], STALE].map(|word| unit.chunks(8).all(|it| *it == word));
            let kind = found.iter().position(|is_it| *is_it).expect("a unit of one kind");
            kinds[kind] = true;
        }
        kinds
    }

    fn grown_and_flushed() -> Vec<Event> {
        vec![Event::SetLen(0, 4 * MIB), Event::FlushStart(0), Event::FlushEnd(0, 1)]
    }

    #[test]
    fn a_lost_write_to_grown_space_leaves_stale_bytes() {
        let mut events = grown_and_flushed();
        events.push(write(2 * MIB + KIB, 2 * KIB));
        let stale = outcomes(true, &events);
        // Torn, too, it arrives in part.
        assert_eq!(kinds(&stale, 2 * MIB + KIB), [false, true, true]);
        // The rest of what the host writes at once; what arrived is as it was.
        assert_eq!(kinds(&stale, 2 * MIB), [true, false, true]);
        assert_eq!(kinds(&stale, 2 * MIB + 4 * KIB), [true, false, false], "not written");
        assert_eq!(kinds(&stale, MIB), [true, false, false], "not written");
        let zeros = outcomes(false, &events);
        assert_eq!(kinds(&zeros, 2 * MIB + KIB), [true, true, false]);
        assert_eq!(kinds(&zeros, 2 * MIB), [true, false, false]);
    }

    #[test]
    fn a_lost_write_to_what_is_durable_leaves_what_was_there() {
        let mut events = grown_and_flushed();
        events.extend([write(2 * MIB, KIB), Event::FlushStart(0), Event::FlushEnd(0, 4)]);
        events.extend([write(2 * MIB, KIB), write(2 * MIB + 8 * KIB, KIB), write(100, KIB)]);
        let stale = outcomes(true, &events);
        assert_eq!(kinds(&stale, 2 * MIB), [false, true, false]);
        assert_eq!(kinds(&stale, 2 * MIB + 8 * KIB), [true, true, false]);
        assert_eq!(kinds(&stale, 512), [true, true, false], "within the first length");
    }

    #[test]
    fn stale_bytes_lie_within_the_length() {
        let events = [Event::SetLen(0, 2 * MIB), write(MIB, KIB), write(0, KIB)];
        let stale = outcomes(true, &events);
        assert!(stale.iter().any(|file| file.len() == MIB), "the growth may be lost");
        assert_eq!(kinds(&stale, MIB), [false, true, true]);
        // A cut takes them away, and growth after it brings none.
        let mut events = events.to_vec();
        events.extend([Event::SetLen(0, MIB), Event::FlushStart(0), Event::FlushEnd(0, 4)]);
        events.push(Event::SetLen(0, 2 * MIB));
        assert_eq!(kinds(&outcomes(true, &events), MIB), [true, false, false]);
    }

    #[test]
    fn a_file_made_by_writes_alone_may_be_stale() {
        let stale = outcomes(true, &[Event::SetLen(0, 2 * MIB), write(MIB, 4 * KIB)]);
        assert_eq!(kinds(&stale, MIB + 2 * KIB), [false, true, true]);
    }
}
