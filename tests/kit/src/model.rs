//! What the disk may contain after a crash, from its user's view: every write, and every flush that returned.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::sim::Bytes;

/// The unit that reaches the disk completely or not at all, in bytes.
pub const UNIT: u64 = 512;

/// Places that are compared in each block because something is written there in another.
const MOST_MIRRORED: usize = 300;

/// The user's view of a history. Times are positions in the record of the host.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The size of the virtual disk, in bytes.
    pub size: u64,
    /// The size of a payload block, in bytes.
    pub block_size: u64,
    /// The disk at the start of the record.
    pub base: Bytes,
    /// The disk once everything in progress has completed.
    pub now: Bytes,
    writes: Vec<UserWrite>,
    /// Start and end times.
    flushes: Vec<(usize, usize)>,
    sessions: Vec<Session>,
    /// When the image was created, unless it existed from the start.
    pub created: Option<usize>,
    /// Additional ranges to compare, besides those that are written.
    watched: Vec<Range<u64>>,
    /// Of longer segments only both ends are compared.
    longest: Option<u64>,
}

#[derive(Clone, Debug)]
struct UserWrite {
    begun: usize,
    /// When it succeeded; the maximum until then.
    done: usize,
    /// When it returned, failed or not; the maximum until then.
    returned: usize,
    start: u64,
    data: Arc<[u8]>,
}

/// The contents and identity of the image when it was opened for writing.
#[derive(Clone, Debug)]
struct Session {
    from: usize,
    start: Bytes,
    guid: Uuid,
}

/// The contents of the segments before a session, and the identity at that time.
pub type Before = (Arc<[Arc<[u8]>]>, Uuid);

/// The requirements on the outcomes of a cut.
#[derive(Clone, Debug)]
pub struct Expected {
    /// What each part of the disk may read as.
    pub segments: Vec<Segment>,
    /// Whether the image must exist.
    pub exists: bool,
    /// If the contents of the segments differ from these, the identity must differ, too.
    pub before: Option<Before>,
}

/// A range of the disk and its allowed contents: each 512 bytes equal those of one of them.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The place, in bytes of the disk.
    pub range: Range<u64>,
    /// What may be there.
    pub either: Vec<Arc<[u8]>>,
}

impl Model {
    /// A disk that reads as `base`, before anything is written.
    pub fn new(base: Bytes, size: u64, block_size: u64) -> Self {
        Self { size, block_size, now: base.clone(), base, ..Self::default() }
    }

    /// Compares a range even if it is not written to.
    pub fn watch(&mut self, range: Range<u64>) {
        self.watched.push(range);
    }

    /// Limits segments longer than this to both ends.
    pub fn look_at_most(&mut self, longest: u64) {
        self.longest = Some(longest);
    }

    /// Starts a session.
    pub fn opened(&mut self, at: usize, guid: Uuid) {
        self.sessions.push(Session { from: at, start: self.now.clone(), guid });
    }

    /// Starts a write; returns its index.
    pub fn begin(&mut self, at: usize, start: u64, data: &[u8]) -> usize {
        self.now.write(start, data);
        // Whole units: the rest of a partially written unit belongs to the write.
        let first = start / UNIT * UNIT;
        let end = (start + data.len() as u64).next_multiple_of(UNIT).min(self.size);
        let mut whole = vec![0; (end - first) as usize];
        self.now.read(first, &mut whole);
        self.writes.push(UserWrite {
            begun: at,
            done: usize::MAX,
            returned: usize::MAX,
            start: first,
            data: whole.into(),
        });
        self.writes.len() - 1
    }

    /// The write returned.
    pub fn done(&mut self, write: usize, at: usize) {
        self.writes[write].done = at;
        self.writes[write].returned = at;
    }

    /// The write returned with an error: each unit of it is old or new, until it is written again.
    pub fn failed(&mut self, write: usize, at: usize) {
        self.writes[write].returned = at;
    }

    /// The write was not made.
    #[allow(dead_code)] // by planned writes alone
    pub fn never(&mut self, write: usize) {
        self.writes[write].begun = usize::MAX;
    }

    /// The units of the disk that a write touches.
    pub fn range(&self, write: usize) -> Range<u64> {
        let write = &self.writes[write];
        write.start..write.start + write.data.len() as u64
    }

    /// After a failure, takes the contents read at `at` as the present ones.
    pub fn found(&mut self, at: u64, bytes: &[u8]) {
        self.now.write(at, bytes);
    }

    /// Records the start and the return of a flush.
    pub fn flushed(&mut self, begun: usize, done: usize) {
        self.flushes.push((begun, done));
    }

    /// Changes whenever the requirements on outcomes become stricter.
    pub fn epoch(&self, cut: usize) -> u64 {
        let session = self.sessions.iter().filter(|session| session.from < cut).count() as u64;
        let exists = self.created.is_none_or(|created| created < cut);
        let flushed = self.flushed_until(cut).map_or(0, |begun| begun as u64 + 1);
        flushed << 17 | session << 1 | u64::from(exists)
    }

    /// The start of the latest flush that returned.
    fn flushed_until(&self, cut: usize) -> Option<usize> {
        self.flushes.iter().filter(|(_, done)| *done < cut).map(|(begun, _)| *begun).max()
    }

    /// What a disk that crashed at `cut` may read as.
    pub fn expected(&self, segments: &[Range<u64>], cut: usize) -> Expected {
        let flushed = self.flushed_until(cut).unwrap_or(0);
        let expected = segments.iter().map(|range| self.segment(range, cut, flushed)).collect();
        let session = self.sessions.iter().rev().find(|session| session.from < cut);
        let before = session.map(|session| {
            let start = segments.iter().map(|range| slice(&session.start, range)).collect();
            (start, session.guid)
        });
        let exists = self.created.is_none_or(|created| created < cut);
        Expected { segments: expected, exists, before }
    }

    /// What the disk may read now, durable or not: the last write, and for later writes that failed
    /// or are in progress, each unit old or new.
    pub fn live(&self, segments: &[Range<u64>], now: usize) -> Vec<Segment> {
        segments.iter().map(|range| self.segment(range, now, now)).collect()
    }

    fn segment(&self, range: &Range<u64>, cut: usize, flushed: usize) -> Segment {
        let meets = |write: &&UserWrite| {
            write.begun < cut
                && write.start <= range.start
                && range.end <= write.start + write.data.len() as u64
        };
        let is_flushed = |write: &UserWrite| write.done < flushed;
        let all: Vec<&UserWrite> = self.writes.iter().filter(meets).collect();
        let mut either = Vec::new();
        if !all.iter().any(|write| is_flushed(write)) {
            either.push(slice(&self.base, range));
        }
        for write in &all {
            // Hidden by a later write that is durable itself.
            let is_gone = all.iter().any(|later| is_flushed(later) && later.begun > write.returned);
            if !is_gone {
                let within = (range.start - write.start) as usize;
                let len = (range.end - range.start) as usize;
                either.push(write.data[within..within + len].into());
            }
        }
        either.dedup();
        Segment { range: range.clone(), either }
    }

    /// The parts of the disk to compare, split wherever a write starts or ends.
    pub fn segments(&self) -> Vec<Range<u64>> {
        let segments = self.whole_segments();
        let Some(longest) = self.longest else { return segments };
        let ends = |range: Range<u64>| match range.end - range.start {
            len if len <= longest => vec![range],
            _ => vec![range.start..range.start + longest / 2, range.end - longest / 2..range.end],
        };
        segments.into_iter().flat_map(ends).collect()
    }

    /// The same, each in full.
    pub fn whole_segments(&self) -> Vec<Range<u64>> {
        let mut looked_at: Vec<Range<u64>> = self.watched.clone();
        let blocks = self.size.div_ceil(self.block_size);
        let mut sentinels = std::collections::BTreeSet::from([0, blocks - 1]);
        let mut edges = std::collections::BTreeSet::new();
        for write in &self.writes {
            let end = write.start + write.data.len() as u64;
            looked_at.push(write.start.saturating_sub(4 * UNIT)..(end + 4 * UNIT).min(self.size));
            edges.extend([write.start, end]);
            let (first, last) = (write.start / self.block_size, (end - 1) / self.block_size);
            sentinels.extend(first.saturating_sub(1)..=(last + 1).min(blocks - 1));
        }
        // Bytes of one block that show in another do so at the same place within it.
        let within: std::collections::BTreeSet<u64> =
            edges.iter().map(|edge| edge % self.block_size).collect();
        let step = (within.len() * sentinels.len()).div_ceil(MOST_MIRRORED).max(1);
        let places =
            |block| within.iter().step_by(step).map(move |within| block * self.block_size + within);
        for at in sentinels.iter().copied().flat_map(places) {
            looked_at.push(at.saturating_sub(UNIT).min(self.size)..(at + UNIT).min(self.size));
        }
        for block in sentinels {
            let (start, end) = (block * self.block_size, (block + 1) * self.block_size);
            let end = end.min(self.size);
            looked_at.push(start..(start + 2 * UNIT).min(end));
            looked_at.push(
                (start + end) / 2 / UNIT * UNIT..end.min((start + end) / 2 / UNIT * UNIT + UNIT),
            );
            looked_at.push(end.saturating_sub(2 * UNIT)..end);
        }
        looked_at.sort_by_key(|range| range.start);
        let mut segments: Vec<Range<u64>> = Vec::new();
        let mut from = 0;
        for range in looked_at {
            let mut start = range.start.max(from);
            for edge in edges.range(start + 1..range.end.max(start + 1)) {
                segments.push(start..*edge);
                start = *edge;
            }
            if start < range.end {
                segments.push(start..range.end);
            }
            from = from.max(range.end);
        }
        segments.retain(|range| range.start < range.end);
        segments
    }
}

fn slice(bytes: &Bytes, range: &Range<u64>) -> Arc<[u8]> {
    let mut slice = vec![0; (range.end - range.start) as usize];
    bytes.read(range.start, &mut slice);
    slice.into()
}

impl Segment {
    /// Whether any part of it may be this unit.
    pub fn knows(&self, unit: &[u8]) -> bool {
        self.either.iter().any(|may| may.chunks(UNIT as usize).any(|known| known == unit))
    }

    /// The offset of the first 512 bytes read that are not allowed.
    pub fn refuses(&self, read: &[u8]) -> Option<u64> {
        if self.either.iter().any(|may| **may == *read) {
            return None;
        }
        let unit = UNIT as usize;
        let wrong = read.chunks(unit).enumerate().find(|(n, found)| {
            let place = n * unit..n * unit + found.len();
            !self.either.iter().any(|may| may[place.clone()] == **found)
        })?;
        Some(self.range.start + wrong.0 as u64 * UNIT)
    }
}
