//! Which sectors a layer answers for itself.

use std::ops::Range;

use avhdx::{Disk, Error, Result, Source, VhdxFile};

use crate::hash::{Domain, Hash};

/// The bytes of the disk that a leaf covers.
pub(crate) const LEAF: u64 = 64 << 10;
/// How many children a node has at most.
pub(crate) const FAN_OUT: u64 = 256;
/// The bytes of the disk that a node of leaves covers.
pub(crate) const GROUP: u64 = LEAF * FAN_OUT;

/// Who answers for a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Parent = 0,
    Zero = 1,
    Data = 2,
}

impl State {
    pub(crate) fn of(byte: u8) -> Option<Self> {
        [Self::Parent, Self::Zero, Self::Data].into_iter().find(|state| *state as u8 == byte)
    }

    fn of_source(source: Source) -> Self {
        match source {
            Source::Data { .. } => Self::Data,
            Source::Zero { .. } => Self::Zero,
            Source::Parent => Self::Parent,
        }
    }
}

/// So many sectors in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) state: State,
    pub(crate) sectors: u32,
}

/// The sectors of a leaf: runs, of which neighbours have different states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeafMap(Vec<Run>);

impl LeafMap {
    pub(crate) fn whole(state: State, sectors: u32) -> Self {
        Self(vec![Run { state, sectors }])
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.0
    }

    pub(crate) fn push(&mut self, state: State, sectors: u32) {
        match self.0.last_mut() {
            _ if sectors == 0 => {}
            Some(last) if last.state == state => last.sectors += sectors,
            _ => self.0.push(Run { state, sectors }),
        }
    }

    /// The state that all sectors have, if they have one.
    pub(crate) fn uniform(&self) -> Option<State> {
        match self.0[..] {
            [run] => Some(run.state),
            _ => None,
        }
    }

    pub(crate) fn has(&self, state: State) -> bool {
        self.0.iter().any(|run| run.state == state)
    }

    pub(crate) fn hash(&self) -> Hash {
        let mut bytes = Vec::with_capacity(self.0.len() * 5);
        for run in &self.0 {
            bytes.push(run.state as u8);
            bytes.extend(run.sectors.to_le_bytes());
        }
        Domain::Map.hash(&bytes)
    }

    /// The ranges of the disk that the runs of a leaf at `start` cover.
    pub(crate) fn ranges(
        &self,
        start: u64,
        sector: u32,
    ) -> impl Iterator<Item = (State, Range<u64>)> + '_ {
        let mut at = start;
        self.0.iter().map(move |run| {
            let from = at;
            at += u64::from(run.sectors) * u64::from(sector);
            (run.state, from..at)
        })
    }
}

/// The part of a disk that a leaf or a group of them covers.
pub(crate) fn span(index: u64, unit: u64, size: u64) -> Range<u64> {
    let start = index.saturating_mul(unit).min(size);
    start..start.saturating_add(unit).min(size)
}

/// The maps of the leaves in the group.
pub(crate) fn group_maps(image: &VhdxFile, group: u64) -> Result<Vec<LeafMap>> {
    let geometry = image.geometry();
    let sector = u64::from(geometry.logical_sector);
    let range = span(group, GROUP, geometry.size);
    let leaves = (range.end - range.start).div_ceil(LEAF);
    let mut maps = vec![LeafMap::default(); leaves as usize];
    let mut at = range.start;
    while at < range.end {
        let (state, end) = extent(image, at..range.end)?;
        while at < end {
            let leaf = (at - range.start) / LEAF;
            let until = end.min(range.start + (leaf + 1) * LEAF);
            maps[leaf as usize].push(state, ((until - at) / sector) as u32);
            at = until;
        }
    }
    Ok(maps)
}

/// Who answers at the start of a range, and until where.
pub(crate) fn extent(image: &VhdxFile, range: Range<u64>) -> Result<(State, u64)> {
    let sector = u64::from(image.geometry().logical_sector);
    let asked = range.clone();
    let extent = image.next_extent(range)?;
    match extent.map(|extent| (extent.range, extent.source)) {
        Some((range, source))
            if range.start == asked.start
                && range.end > range.start
                && range.end.is_multiple_of(sector) =>
        {
            Ok((State::of_source(source), range.end.min(asked.end)))
        }
        _ => Err(Error::other("an extent does not end with a sector").in_file(image.name())),
    }
}

/// The number of groups from `group` on that wholly have the state, at most up to the end of the disk.
pub(crate) fn uniform_groups(image: &VhdxFile, group: u64) -> Result<(State, u64)> {
    let size = image.geometry().size;
    let start = span(group, GROUP, size).start;
    let (state, mut end) = extent(image, start..size)?;
    if state == State::Data {
        return Ok((state, 0));
    }
    while end < size {
        let (next, until) = extent(image, end..size)?;
        if next != state {
            break;
        }
        end = until;
    }
    let whole = if end == size { size.div_ceil(GROUP) } else { end / GROUP };
    Ok((state, whole.saturating_sub(group)))
}
