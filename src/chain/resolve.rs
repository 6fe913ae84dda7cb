//! Which layer of a chain answers for which bytes, newest to oldest.

use std::io::IoSliceMut;
use std::ops::Range;

use super::{DiffChain, Link};
use crate::disk::{Disk, Extent, Geometry, Source, Zeroing, check_range};
use crate::error::Result;
use crate::image::{Owner, VhdxFile};
use crate::types::{DiskOffset, FileOffset};

/// Bytes in a row with one source.
pub(super) struct Found<'a> {
    pub(super) len: u64,
    pub(super) place: Place<'a>,
}

pub(super) enum Place<'a> {
    Data(&'a VhdxFile, FileOffset),
    /// Zeros, because that layer says so or because the search went past a layer's end.
    Zero(Option<&'a VhdxFile>),
}

/// The run that the `len` bytes at `at` start with, as these layers have it. They are not none.
pub(super) fn walk(layers: &[Link], at: DiskOffset, mut len: u64) -> Result<Found<'_>> {
    for image in layers.iter().map(|link| &link.image) {
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

impl DiffChain {
    /// Fills the buffers from the `len` bytes at `at`, which lie within the disk.
    fn read(&self, bufs: &mut [IoSliceMut<'_>], at: u64, len: u64) -> Result<()> {
        let _pin = self.tip().pin();
        let mut gather = Gather::new(bufs, len);
        let (mut at, end) = (DiskOffset(at), at + len);
        while at.0 < end {
            match self.gather(at, end - at.0, &mut gather) {
                Ok(len) => at = at + len,
                // What comes before is read all the same, for its error would be the first.
                Err(error) => return gather.finish().and(Err(error)),
            }
        }
        gather.finish()
    }

    /// Hands on some of the runs that the `len` bytes at `at` start with, and says how many bytes that was.
    fn gather<'a>(
        &'a self,
        at: DiskOffset,
        len: u64,
        gather: &mut Gather<'_, '_, 'a>,
    ) -> Result<u64> {
        let tip = self.tip();
        if !tip.is_writable() {
            return self.gather_below(self.tip, at, len, gather);
        }
        // What a writer may change is asked anew each time.
        let run = tip.resolve(at, len)?;
        match run.owner {
            Owner::Here(place) => gather.data(tip, place, run.len)?,
            Owner::Zero => gather.zeros(run.len)?,
            Owner::Parent => return self.gather_below(self.tip + 1, at, run.len, gather),
        }
        Ok(run.len)
    }
}

/// Fills buffers with runs of bytes, one read for as many as lie in one piece in a file.
pub(super) struct Gather<'a, 'b, 'c> {
    bufs: &'a mut [IoSliceMut<'b>],
    /// Bytes of the first buffer that are filled.
    filled: usize,
    /// Bytes for which no run came yet.
    left: u64,
    /// What is yet to be read: from where, and how many bytes.
    waiting: Option<(&'c VhdxFile, FileOffset, u64)>,
}

impl<'a, 'b, 'c> Gather<'a, 'b, 'c> {
    fn new(bufs: &'a mut [IoSliceMut<'b>], len: u64) -> Self {
        Self { bufs, filled: 0, left: len, waiting: None }
    }

    /// Takes the next run, and says how long it is.
    pub(super) fn found(&mut self, found: &Found<'c>) -> Result<u64> {
        match found.place {
            Place::Data(image, at) => self.data(image, at, found.len)?,
            Place::Zero(_) => self.zeros(found.len)?,
        }
        Ok(found.len)
    }

    /// Takes a run that this image has.
    #[inline]
    pub(super) fn data(&mut self, image: &'c VhdxFile, at: FileOffset, len: u64) -> Result<()> {
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

    /// Takes a run of zeros.
    pub(super) fn zeros(&mut self, len: u64) -> Result<()> {
        self.left -= len;
        self.finish()?;
        self.fill(len, |buf, _| {
            buf.fill(0);
            Ok(())
        })
    }

    fn queue(&mut self, image: &'c VhdxFile, at: FileOffset, len: u64) -> Result<()> {
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

    fn read_in(&mut self, image: &VhdxFile, at: FileOffset, len: u64) -> Result<()> {
        self.fill(len, |buf, done| image.read_payload(buf, at + done))
    }

    /// Has the next `len` bytes of the buffers filled, for each buffer with how many of them come before.
    fn fill(&mut self, len: u64, mut by: impl FnMut(&mut [u8], u64) -> Result<()>) -> Result<()> {
        let mut done = 0;
        while done < len {
            let Some((first, _)) = self.bufs.split_first_mut() else { break };
            let rest = &mut first[self.filled..];
            let now = (rest.len() as u64).min(len - done) as usize;
            if now > 0 {
                by(&mut rest[..now], done)?;
            }
            done += now as u64;
            self.filled += now;
            if self.filled == first.len() {
                self.bufs = &mut std::mem::take(&mut self.bufs)[1..];
                self.filled = 0;
            }
        }
        Ok(())
    }
}

impl Disk for DiffChain {
    fn geometry(&self) -> Geometry {
        self.tip().geometry()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if let [only] = self.links() {
            return only.image.read_at(buf, offset);
        }
        let len = buf.len() as u64;
        check_range(&self.geometry(), offset, len)?;
        self.read(&mut [IoSliceMut::new(buf)], offset, len)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        check_range(&self.geometry(), offset, len)?;
        self.read(bufs, offset, len)
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
        let found = walk(self.links(), DiskOffset(range.start), len)?;
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
