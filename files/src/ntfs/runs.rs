//! Where the clusters of an attribute lie, and its bytes.

use std::ops::Range;

use crate::boundary::{Bytes, number};
use crate::error::{Error, Result};
use crate::item::{Piece, Place, Stream};
use crate::ntfs::lznt1;

/// A compression unit has no more bytes: NTFS compresses in 16 clusters of 4 KiB at most.
const MOST_UNIT: u64 = 1 << 20;

/// An attribute has no more clusters, holes included: with the largest clusters, these are 2^63 bytes.
const MOST_CLUSTERS: u64 = 1 << 42;

/// Clusters that follow each other, in the attribute and on the volume; without a place, a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) vcn: u64,
    pub(super) len: u64,
    pub(super) lcn: Option<u64>,
}

/// The bytes of an attribute that has clusters of its own.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    pub(super) bytes: Bytes,
    pub(super) cluster: u64,
    pub(super) runs: Vec<Run>,
    pub(super) size: u64,
    /// From here on, the bytes are zeros, whatever the clusters hold.
    pub(super) initialized: u64,
    /// The clusters of a compression unit.
    pub(super) unit: Option<u64>,
    /// The unit that was decoded last.
    pub(super) decoded: Option<(u64, Vec<u8>)>,
}

/// Reads a list of runs that begins with the cluster `vcn` of the attribute, on a volume of so many clusters.
pub(super) fn parse(mut list: &[u8], vcn: u64, clusters: u64) -> Result<Vec<Run>> {
    let damaged = |what: String| Error::damaged("ntfs.runs", what);
    let (mut runs, mut vcn, mut lcn) = (Vec::new(), vcn, 0i64);
    while let Some((header, rest)) = list.split_first() {
        if *header == 0 {
            break;
        }
        let (of_len, of_lcn) = (usize::from(header & 0xF), usize::from(header >> 4));
        if of_len == 0 || of_len > 8 || of_lcn > 8 || rest.len() < of_len + of_lcn {
            return Err(damaged(format!("a list of runs has the header {header:#04x}")));
        }
        let len = number(rest, 0, of_len);
        let place = &rest[of_len..of_len + of_lcn];
        list = &rest[of_len + of_lcn..];
        let end = vcn.checked_add(len).filter(|end| len > 0 && *end < MOST_CLUSTERS);
        let Some(end) = end else {
            return Err(damaged(format!("a run has {len} clusters from {vcn} on")));
        };
        let place = match place {
            [] => None,
            _ => {
                // The difference to the run before, with a sign.
                let shift = 64 - 8 * of_lcn as u32;
                let by = (number(place, 0, of_lcn) << shift) as i64 >> shift;
                lcn = lcn.checked_add(by).unwrap_or(-1);
                let start = u64::try_from(lcn).ok();
                let start =
                    start.filter(|start| start.checked_add(len).is_some_and(|end| end <= clusters));
                let Some(start) = start else {
                    let what =
                        format!("a run of {len} clusters at {lcn}, on a volume of {clusters}");
                    return Err(damaged(what));
                };
                Some(start)
            }
        };
        runs.push(Run { vcn, len, lcn: place });
        vcn = end;
    }
    Ok(runs)
}

impl Outside {
    /// The run that holds a cluster of the attribute.
    pub(super) fn run(&self, vcn: u64) -> Option<Run> {
        let next = self.runs.partition_point(|run| run.vcn <= vcn);
        let run = *self.runs.get(next.checked_sub(1)?)?;
        (vcn < run.vcn + run.len).then_some(run)
    }

    fn missing(&self, vcn: u64) -> Error {
        let message = format!("the attribute has no run for its cluster {vcn}");
        Error::damaged("ntfs.runs-missing", message)
    }

    /// Reads clusters as they are stored, from the byte `offset` of the attribute on.
    pub(super) fn read_stored(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let vcn = offset / self.cluster;
            let run = self.run(vcn).ok_or_else(|| self.missing(vcn))?;
            let within = offset - run.vcn * self.cluster;
            let count = (buf.len() as u64).min(run.len * self.cluster - within) as usize;
            let (now, rest) = buf.split_at_mut(count);
            match run.lcn {
                Some(lcn) => self.bytes.read_at(now, lcn * self.cluster + within)?,
                None => now.fill(0),
            }
            (buf, offset) = (rest, offset + count as u64);
        }
        Ok(())
    }

    /// Reads bytes of one compression unit.
    fn read_unit(&mut self, unit: u64, clusters: u64, buf: &mut [u8], within: usize) -> Result<()> {
        let first = unit * clusters;
        let stored = self.stored(first, clusters)?;
        if stored == 0 {
            buf.fill(0);
            return Ok(());
        }
        if stored == clusters {
            return self.read_stored(buf, first * self.cluster + within as u64);
        }
        if self.decoded.as_ref().is_none_or(|(of, _)| *of != unit) {
            let mut packed = vec![0; (stored * self.cluster) as usize];
            self.read_stored(&mut packed, first * self.cluster)?;
            let mut plain = vec![0; (clusters * self.cluster) as usize];
            lznt1::decode(&packed, &mut plain).map_err(|what| {
                let at = first * self.cluster;
                Error::damaged("ntfs.compression", format!("the compressed bytes at {at}: {what}"))
            })?;
            self.decoded = Some((unit, plain));
        }
        if let Some((_, plain)) = &self.decoded {
            buf.copy_from_slice(&plain[within..][..buf.len()]);
        }
        Ok(())
    }

    /// How many of the clusters of the unit that begins with `first` are stored.
    fn stored(&self, first: u64, clusters: u64) -> Result<u64> {
        let mut stored = 0;
        while stored < clusters {
            let vcn = first + stored;
            let run = match self.run(vcn) {
                Some(run) => run,
                // The last unit may end early.
                None if stored > 0 => break,
                None => return Err(self.missing(vcn)),
            };
            if run.lcn.is_none() {
                break;
            }
            stored = (run.vcn + run.len - first).min(clusters);
        }
        Ok(stored)
    }

    /// Where clusters lie that are stored, in bytes of the volume.
    fn places(&self, first: u64, count: u64) -> Vec<Range<u64>> {
        let (mut vcn, end) = (first, first + count);
        let mut places = Vec::new();
        while vcn < end
            && let Some(run) = self.run(vcn)
        {
            let next = end.min(run.vcn + run.len);
            if let Some(lcn) = run.lcn {
                let lcn = lcn + vcn - run.vcn;
                places.push(lcn * self.cluster..(lcn + next - vcn) * self.cluster);
            }
            vcn = next;
        }
        places
    }

    /// Refuses units that are no sizes of NTFS.
    pub(super) fn check(&self) -> Result<()> {
        let unit = self.unit.unwrap_or(1);
        if unit.checked_mul(self.cluster).is_none_or(|bytes| bytes > MOST_UNIT) {
            let message = format!("a compression unit has {unit} clusters");
            return Err(Error::damaged("ntfs.compression", message));
        }
        Ok(())
    }
}

impl Stream for Outside {
    fn len(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        let held = self.initialized.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (mut buf, behind) = buf.split_at_mut(held);
        behind.fill(0);
        let Some(clusters) = self.unit else { return self.read_stored(buf, offset) };
        let (unit_len, mut offset) = (clusters * self.cluster, offset);
        while !buf.is_empty() {
            let within = offset % unit_len;
            let count = (buf.len() as u64).min(unit_len - within) as usize;
            let (now, rest) = buf.split_at_mut(count);
            self.read_unit(offset / unit_len, clusters, now, within as usize)?;
            (buf, offset) = (rest, offset + count as u64);
        }
        Ok(())
    }

    fn hole_end(&self, offset: u64) -> u64 {
        if offset >= self.initialized {
            return self.size;
        }
        let Some(run) = self.run(offset / self.cluster).filter(|run| run.lcn.is_none()) else {
            return offset;
        };
        // A hole within a compression unit is where its bytes got shorter.
        let unit = self.unit.unwrap_or(1);
        let (start, end) = (run.vcn.next_multiple_of(unit), (run.vcn + run.len) / unit * unit);
        if start * self.cluster <= offset { (end * self.cluster).max(offset) } else { offset }
    }

    fn piece(&mut self, offset: u64) -> Result<Piece> {
        if offset >= self.initialized {
            return Ok(Piece { len: (self.size - offset).max(1), place: Place::Zeros });
        }
        let (vcn, most) = (offset / self.cluster, self.initialized - offset);
        let Some(unit) = self.unit else {
            let run = self.run(vcn).ok_or_else(|| self.missing(vcn))?;
            let within = offset - run.vcn * self.cluster;
            let place = run.lcn.map_or(Place::Zeros, |lcn| Place::At(lcn * self.cluster + within));
            return Ok(Piece { len: (run.len * self.cluster - within).min(most), place });
        };
        let first = vcn / unit * unit;
        let place = match self.stored(first, unit)? {
            0 => Place::Zeros,
            stored => Place::Packed(self.places(first, stored), unit * self.cluster),
        };
        let behind = (first + unit) * self.cluster - offset;
        Ok(Piece { len: behind.min(most), place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_relative_and_may_be_holes() {
        // Three clusters at 0x5634, a hole of four, two clusters 0x5600 before the first run.
        let list = [0x21, 0x03, 0x34, 0x56, 0x01, 0x04, 0x21, 0x02, 0x00, 0xAA, 0x00, 0xFF];
        let run = |vcn, len, lcn| Run { vcn, len, lcn };
        let expected = [run(7, 3, Some(0x5634)), run(10, 4, None), run(14, 2, Some(0x34))];
        assert_eq!(parse(&list, 7, 0x6000).unwrap(), expected);
        assert!(parse(&list, 7, 0x5636).is_err());
        assert!(parse(&[0x21, 0x03, 0x34], 0, 1 << 40).is_err());
        assert!(parse(&[0x11, 0x03, 0x80], 0, 1 << 40).is_err());
        assert!(
            parse(&[0x08, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], 1, 1 << 40).is_err()
        );
    }
}
