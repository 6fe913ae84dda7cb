//! Two disks, looked up and read side by side.

use std::collections::HashMap;
use std::ops::Range;

use super::{DiskRuns, window_end};
use crate::chain::{DiffChain, Shown, UpperLayers};
use crate::disk::{Disk, LayerId, Source};
use crate::error::Result;
use crate::types::{FileOffset, len};

/// Two disks examined from front to back, with read buffers. What two chains share is alike without being looked up.
pub(super) struct DiskPair<'a> {
    sides: [Side<'a>; 2],
    bufs: [Vec<u8>; 2],
    /// Layers of the second disk whose files are those of layers of the first, with the latter.
    same_files: HashMap<LayerId, LayerId>,
}

struct Side<'a> {
    disk: &'a dyn Disk,
    size: u64,
    lookup: Lookup<'a>,
}

enum Lookup<'a> {
    Layers(UpperLayers),
    Extents(DiskRuns<'a>),
}

/// The source of a piece of one disk.
#[derive(Clone, Copy)]
enum Shows {
    Zeros,
    /// `None` if it lies at no place in a file, or at none that is known.
    Data(Option<(LayerId, FileOffset)>),
    /// Whatever the layers show that both disks have.
    Shared,
}

impl<'a> DiskPair<'a> {
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if files cannot be told apart.
    pub(super) fn new(a: &'a dyn Disk, b: &'a dyn Disk) -> Result<Self> {
        let mut sides = [Side::new(a), Side::new(b)];
        let same_files = match &mut sides {
            [Side { lookup: Lookup::Layers(a), .. }, Side { lookup: Lookup::Layers(b), .. }] => {
                UpperLayers::share(a, b)?
            }
            _ => HashMap::new(),
        };
        Ok(Self { sides, bufs: [Vec::new(), Vec::new()], same_files })
    }

    /// Returns how far from `at` on, up to `end`, the answer holds, and whether the tables leave it open that bytes
    /// differ. Either disk may end before: zeros follow. The range must not be empty.
    pub(super) fn look(&mut self, at: u64, end: u64) -> Result<(u64, bool)> {
        let [a, b] = &mut self.sides;
        let (a_end, of_a) = a.first(at, end)?;
        let (b_end, of_b) = b.first(at, end)?;
        let until = a_end.min(b_end);
        let unlike_zeros = |side: &mut Side<'_>| {
            let (until, are_zeros) = side.are_zeros(at, until)?;
            Ok((until, !are_zeros))
        };
        match (of_a, of_b) {
            (Shows::Zeros, Shows::Zeros) | (Shows::Shared, Shows::Shared) => Ok((until, false)),
            (Shows::Zeros, Shows::Shared) => unlike_zeros(b),
            (Shows::Shared, Shows::Zeros) => unlike_zeros(a),
            (Shows::Data(Some((one, x))), Shows::Data(Some((other, y)))) => {
                let other = self.same_files.get(&other).copied().unwrap_or(other);
                Ok((until, (one, x) != (other, y)))
            }
            _ => Ok((until, true)),
        }
    }

    /// Reads both disks from `at` on if bytes may differ there, as far as that is so, up to the end of a window.
    /// Returns how far it got, and whether it has read.
    pub(super) fn read(&mut self, at: u64, end: u64) -> Result<(u64, bool)> {
        let (until, may_differ) = self.stretch(at, end)?;
        if may_differ {
            self.read_all(at, until)?;
        }
        Ok((until, may_differ))
    }

    /// As [`read`](Self::read), in whole sectors: `at` and `end` are those of sectors. A sector that can be read in part
    /// alone, as where a file ends early, is an error.
    pub(super) fn read_sectors(&mut self, at: u64, end: u64, sector: u64) -> Result<(u64, bool)> {
        let (until, may_differ) = self.read(at, end)?;
        if until.is_multiple_of(sector) {
            return Ok((until, may_differ));
        }
        let whole = until.next_multiple_of(sector).min(end);
        self.read_all(at, whole)?;
        Ok((whole, true))
    }

    fn read_all(&mut self, at: u64, until: u64) -> Result<()> {
        for (side, buf) in self.sides.iter().zip(&mut self.bufs) {
            let there = side.size.clamp(at, until) - at;
            buf.clear();
            buf.resize((until - at) as usize, 0);
            side.disk.read_at(&mut buf[..there as usize], at.min(side.size))?;
        }
        Ok(())
    }

    /// What was read last of both disks. Zeros follow their ends.
    pub(super) fn bytes(&self) -> [&[u8]; 2] {
        [&self.bufs[0], &self.bufs[1]]
    }

    /// Returns how far [`read`](Self::read) gets, and how many bytes of data it reads.
    pub(super) fn predict(&mut self, at: u64, end: u64) -> Result<(u64, u64)> {
        let (until, may_differ) = self.stretch(at, end)?;
        let mut bytes = 0;
        for side in self.sides.iter_mut().filter(|_| may_differ) {
            bytes += side.data_within(at..until.min(side.size))?;
        }
        Ok((until, bytes))
    }

    /// As [`look`](Self::look). Bytes that may differ are followed through all that continue them, up to the end of a
    /// window.
    fn stretch(&mut self, at: u64, end: u64) -> Result<(u64, bool)> {
        let (mut until, may_differ) = self.look(at, end)?;
        if !may_differ {
            return Ok((until, false));
        }
        let end = window_end(at, end);
        while until < end {
            // What fails is met again from there.
            let Ok((next, true)) = self.look(until, end) else { break };
            until = next;
        }
        Ok((until.min(end), true))
    }

    /// Whether both disks are chains that have layers in common.
    pub(super) fn has_common_layers(&self) -> bool {
        matches!(&self.sides[0].lookup, Lookup::Layers(layers) if layers.has_shared())
    }

    /// The sizes of both disks.
    pub(super) fn sizes(&self) -> [u64; 2] {
        [self.sides[0].size, self.sides[1].size]
    }
}

impl<'a> Side<'a> {
    fn new(disk: &'a dyn Disk) -> Self {
        let chain = disk.as_any().and_then(|disk| disk.downcast_ref::<DiffChain>());
        let lookup = match chain {
            Some(chain) => Lookup::Layers(UpperLayers::new(chain)),
            None => Lookup::Extents(DiskRuns::new(disk)),
        };
        Self { disk, size: disk.geometry().size, lookup }
    }

    /// The first piece from `at` on, up to `end`: where it ends, and what it shows.
    fn first(&mut self, at: u64, end: u64) -> Result<(u64, Shows)> {
        if at >= self.size {
            return Ok((end, Shows::Zeros));
        }
        let end = end.min(self.size);
        match &mut self.lookup {
            Lookup::Layers(layers) => {
                let (len, shown) = layers.first(at, end - at)?;
                let shows = match shown {
                    Shown::Data(layer, place) => Shows::Data(Some((layer, place))),
                    Shown::Zeros => Shows::Zeros,
                    Shown::Shared => Shows::Shared,
                };
                Ok((at + len, shows))
            }
            Lookup::Extents(runs) => {
                let run = runs.at(at)?;
                let shows = match run.source {
                    Some(Source::Zero { .. }) => Shows::Zeros,
                    Some(Source::Data { layer, at: place }) => {
                        Shows::Data(Some((layer, place + (at - run.start))))
                    }
                    Some(Source::Parent) | None => Shows::Data(None),
                };
                Ok((run.end.min(end), shows))
            }
        }
    }

    /// Whether the disk has zeros from `at` on, as the tables tell, and how far up to `end` that holds.
    fn are_zeros(&mut self, at: u64, end: u64) -> Result<(u64, bool)> {
        match (self.first(at, end)?, &mut self.lookup) {
            ((until, Shows::Shared), Lookup::Layers(layers)) => {
                let (len, are_zeros) = layers.are_zeros_below(at, until - at)?;
                Ok((at + len, are_zeros))
            }
            ((until, shows), _) => Ok((until, matches!(shows, Shows::Zeros))),
        }
    }

    /// Counts the bytes of a range, which lies within the disk, that are data.
    fn data_within(&mut self, range: Range<u64>) -> Result<u64> {
        let (mut at, mut bytes) = (range.start, 0);
        while at < range.end {
            let (until, are_zeros) = self.are_zeros(at, range.end)?;
            bytes += if are_zeros { 0 } else { len(&(at..until)) };
            at = until;
        }
        Ok(bytes)
    }
}
