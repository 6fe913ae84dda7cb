//! Which layer of a chain answers for which bytes, newest to oldest.

use std::io::IoSliceMut;
use std::ops::Range;

use crate::chain::{Link, Stack};
use crate::disk::{Disk, Extent, Geometry, Source};
use crate::error::Result;
use crate::image::{Core, Owner};
use crate::tables::{Load, Reach};
use crate::types::{DiskOffset, FileOffset};

/// Buffers that are filled by one read at the most.
const PARTS: usize = 16;

/// Bytes in a row with one source.
pub(crate) struct Found<'a> {
    pub(crate) len: u64,
    pub(crate) place: Place<'a>,
}

pub(crate) enum Place<'a> {
    Data(&'a Core, FileOffset),
    /// Zeros, because that layer says so or because the search went past a layer's end.
    Zero(Option<&'a Core>),
}

/// The run that the `len` bytes at `at` start with, as these layers have it. They are not none.
pub(crate) fn walk<R: Reach>(
    reach: R,
    layers: &[Link],
    at: DiskOffset,
    mut len: u64,
) -> Result<Found<'_>, R::Stop> {
    for image in layers.iter().map(|link| link.image.as_ref()) {
        let size = image.layout().size();
        if at.0 >= size {
            break;
        }
        len = len.min(size - at.0);
        let run = image.resolve_with(reach, at, len)?;
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

/// Takes the runs of a range in order.
pub(crate) trait Sink<'a> {
    /// Takes a run that this image has.
    fn data(&mut self, image: &'a Core, at: FileOffset, len: u64) -> Result<()>;

    /// Takes a run of zeros, which that image says or none.
    fn zeros(&mut self, by: Option<&'a Core>, len: u64) -> Result<()>;

    /// Takes a run, and says how long it is.
    fn found(&mut self, found: Found<'a>) -> Result<u64> {
        match found.place {
            Place::Data(image, at) => self.data(image, at, found.len)?,
            Place::Zero(image) => self.zeros(image, found.len)?,
        }
        Ok(found.len)
    }
}

impl Stack {
    /// Fills the buffers from the `len` bytes at `at`, which lie within the disk.
    fn read(&self, bufs: &mut [IoSliceMut<'_>], at: u64, len: u64) -> Result<()> {
        let mut gather = Gather::new(bufs, len);
        let (mut at, end) = (DiskOffset(at), at + len);
        while at.0 < end {
            match self.some_runs(Load, at, end - at.0, &mut gather) {
                Ok(len) => at = at + len,
                // What comes before is read all the same, for its error would be the first.
                Err(error) => return gather.finish().and(Err(error)),
            }
        }
        gather.finish()
    }
}

/// Fills buffers with runs of bytes, one read for as many as lie in one piece in a file.
pub(crate) struct Gather<'a, 'b, 'c> {
    bufs: &'a mut [IoSliceMut<'b>],
    /// Bytes of the first buffer that are filled.
    filled: usize,
    /// Bytes for which no run came yet.
    left: u64,
    /// What is yet to be read: from where, and how many bytes.
    waiting: Option<(&'c Core, FileOffset, u64)>,
}

impl<'c> Sink<'c> for Gather<'_, '_, 'c> {
    #[inline]
    fn data(&mut self, image: &'c Core, at: FileOffset, len: u64) -> Result<()> {
        self.left -= len;
        if self.left == 0
            && self.waiting.is_none()
            && let [last] = &mut *self.bufs
        {
            // All that is left: most reads are no more than this.
            return image.read_payload(&mut last[self.filled..], at);
        }
        self.queue(image, at, len)
    }

    fn zeros(&mut self, _: Option<&'c Core>, len: u64) -> Result<()> {
        self.left -= len;
        self.finish()?;
        self.fill(len, |bufs, _| {
            bufs.iter_mut().for_each(|buf| buf.fill(0));
            Ok(())
        })
    }
}

impl<'a, 'b, 'c> Gather<'a, 'b, 'c> {
    fn new(bufs: &'a mut [IoSliceMut<'b>], len: u64) -> Self {
        Self { bufs, filled: 0, left: len, waiting: None }
    }

    fn queue(&mut self, image: &'c Core, at: FileOffset, len: u64) -> Result<()> {
        if let Some((last, start, waiting)) = &mut self.waiting
            && std::ptr::eq(*last, image)
            && *start + *waiting == at
        {
            *waiting += len;
            return Ok(());
        }
        self.finish()?;
        self.waiting = Some((image, at, len));
        Ok(())
    }

    /// Reads what is yet to be read.
    #[inline]
    fn finish(&mut self) -> Result<()> {
        match self.waiting.take() {
            Some((image, at, len)) => self.read_in(image, at, len),
            None => Ok(()),
        }
    }

    fn read_in(&mut self, image: &Core, at: FileOffset, len: u64) -> Result<()> {
        self.fill(len, |bufs, done| match bufs {
            [buf] => image.read_payload(buf, at + done),
            bufs => image.read_payload_vectored(bufs, at + done),
        })
    }

    /// Has the next `len` bytes of the buffers filled, some buffers at a time, each time with how many bytes
    /// come before.
    fn fill(
        &mut self,
        len: u64,
        mut by: impl FnMut(&mut [IoSliceMut<'_>], u64) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let mut parts = [(); PARTS].map(|()| IoSliceMut::new(&mut []));
            let (mut used, mut sum) = (0, 0);
            let mut filled = self.filled;
            for (buf, part) in self.bufs.iter_mut().zip(&mut parts) {
                let rest = &mut buf[std::mem::take(&mut filled)..];
                let now = (rest.len() as u64).min(len - done - sum);
                *part = IoSliceMut::new(&mut rest[..now as usize]);
                (used, sum) = (used + 1, sum + now);
                if done + sum == len {
                    break;
                }
            }
            if used == 0 {
                break;
            }
            if sum > 0 {
                by(&mut parts[..used], done)?;
            }
            done += sum;
            self.advance(sum);
        }
        Ok(())
    }

    /// Leaves behind what is filled.
    fn advance(&mut self, bytes: u64) {
        self.filled += bytes as usize;
        while let Some(first) = self.bufs.first()
            && self.filled >= first.len()
        {
            self.filled -= first.len();
            self.bufs = &mut std::mem::take(&mut self.bufs)[1..];
        }
    }
}

impl Stack {
    pub(crate) fn geometry(&self) -> Geometry {
        self.tip().geometry()
    }

    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let tip = self.tip();
        if self.links().len() == 1 && !tip.is_written() {
            return tip.read_at(buf, offset);
        }
        let len = buf.len() as u64;
        self.geometry().check_range(offset, len)?;
        let _pin = tip.pin();
        // Nearly always, and without more ado.
        if len > 0
            && let Some(found) = self.known_run(DiskOffset(offset), len)
        {
            self.tally.hit();
            match found.place {
                Place::Data(image, at) => return image.read_payload(buf, at),
                Place::Zero(_) => buf.fill(0),
            }
            return Ok(());
        }
        self.read(&mut [IoSliceMut::new(buf)], offset, len)
    }

    pub(crate) fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.geometry().check_range(offset, len)?;
        let _pin = self.tip().pin();
        self.read(bufs, offset, len)
    }

    pub(crate) fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let len = range.end.saturating_sub(range.start);
        self.geometry().check_range(range.start, len)?;
        if len == 0 {
            return Ok(None);
        }
        let found = self.first_run(DiskOffset(range.start), len)?;
        let source = match found.place {
            Place::Data(image, at) => {
                image.check_no_overlay(at, found.len)?;
                Source::Data { layer: image.id(), at }
            }
            Place::Zero(image) => Source::Zero { layer: image.map(Core::id) },
        };
        Ok(Some(Extent { range: range.start..range.start + found.len, source }))
    }
}
