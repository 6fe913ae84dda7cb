//! Which layer of a chain answers for which bytes, newest to oldest.

use std::ops::Range;

use super::DiffChain;
use crate::disk::{Disk, Extent, Geometry, Source, Zeroing, check_range};
use crate::error::Result;
use crate::image::{Owner, VhdxFile};
use crate::types::{DiskOffset, FileOffset};

/// Bytes in a row with one source.
struct Found<'a> {
    len: u64,
    place: Place<'a>,
}

enum Place<'a> {
    Data(&'a VhdxFile, FileOffset),
    /// Zeros, because that layer says so or because the search went past a layer's end.
    Zero(Option<&'a VhdxFile>),
}

impl DiffChain {
    /// The run that the `len` bytes at `at` start with. They lie within the disk and are not none.
    fn resolve(&self, at: DiskOffset, mut len: u64) -> Result<Found<'_>> {
        for image in self.images() {
            let size = image.layout().size();
            if at.0 >= size {
                break;
            }
            len = len.min(size - at.0);
            let run = image.resolve(at, len)?;
            len = run.len;
            let place = match run.owner {
                Owner::Here(place) => Place::Data(image, place),
                Owner::Zero => Place::Zero(Some(image)),
                Owner::Parent => continue,
            };
            return Ok(Found { len, place });
        }
        Ok(Found { len, place: Place::Zero(None) })
    }
}

impl Disk for DiffChain {
    fn geometry(&self) -> Geometry {
        self.tip().geometry()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(&self.geometry(), offset, buf.len() as u64)?;
        let _pin = self.tip().pin();
        let mut at = DiskOffset(offset);
        let mut rest = buf;
        while !rest.is_empty() {
            let found = self.resolve(at, rest.len() as u64)?;
            let (now, later) = rest.split_at_mut(found.len as usize);
            match found.place {
                Place::Data(image, place) => image.read_payload(now, place)?,
                Place::Zero(_) => now.fill(0),
            }
            at = at + found.len;
            rest = later;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.tip().write_through(buf, offset, &|buf, at| self.read_at(buf, at))
    }

    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.tip().zero_through(range, how, &|buf, at| self.read_at(buf, at))
    }

    fn flush(&self) -> Result<()> {
        self.tip().flush()
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        check_range(&self.geometry(), range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let found = self.resolve(DiskOffset(range.start), len)?;
        let source = match found.place {
            Place::Data(image, at) => {
                image.check_no_overlay(at, found.len)?;
                Source::Data { layer: image.id(), at }
            }
            Place::Zero(image) => Source::Zero { layer: image.map(VhdxFile::id) },
        };
        Ok(Some(Extent { range: range.start..range.start + found.len, source }))
    }
}
