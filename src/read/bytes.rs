//! Reads bytes of a disk into buffers.

use std::io::IoSliceMut;

use super::ask::{Run, Sink};
use super::layers::Layers;
use crate::answers::Answer;
use crate::error::Result;
use crate::tables::FromFile;
use crate::types::{DiskOffset, FileOffset};

/// Maximum number of buffers filled by one read.
const PARTS: usize = 16;

impl Layers<'_> {
    pub(crate) fn read_at(self, buf: &mut [u8], offset: u64) -> Result<()> {
        let tip = self.tip();
        let len = buf.len() as u64;
        tip.geometry.check_range(offset, len)?;
        let _pin = tip.pin();
        // Most reads lie in one cached run.
        match self.known(DiskOffset(offset), len) {
            Some(Answer::Here { layer, at }) => {
                let image = &self.layers[layer].image;
                let read = image.storage.read_exact_at(buf, at.get());
                read.map_err(|error| image.cannot_read(buf.len(), at, error))
            }
            Some(Answer::Zero { .. }) => {
                buf.fill(0);
                Ok(())
            }
            _ => self.read(&mut [IoSliceMut::new(buf)], offset, len),
        }
    }

    pub(crate) fn read_vectored_at(self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        let len = bufs.iter().map(|buf| buf.len() as u64).sum();
        self.tip().geometry.check_range(offset, len)?;
        let _pin = self.tip().pin();
        self.read(bufs, offset, len)
    }

    /// Fills the buffers from the `len` bytes at `at`, which must lie within the disk.
    fn read(self, bufs: &mut [IoSliceMut<'_>], at: u64, len: u64) -> Result<()> {
        let mut gather = Gather::new(self, bufs, len);
        let (mut at, end) = (DiskOffset(at), at + len);
        while at.0 < end {
            match self.ask(FromFile, at, end - at.0, &mut gather) {
                Ok(len) => at = at + len,
                // Earlier bytes are still read, because an error in them takes precedence.
                Err(error) => return gather.finish().and(Err(error)),
            }
        }
        gather.finish()
    }
}

/// Fills buffers with runs of bytes, using one read for runs that are contiguous in a file.
struct Gather<'a, 'b, 'c> {
    layers: Layers<'c>,
    bufs: &'a mut [IoSliceMut<'b>],
    /// Bytes of the first buffer that are filled.
    filled: usize,
    /// Bytes whose runs are still to come.
    left: u64,
    /// The pending read: layer, offset in its file, and length in bytes.
    waiting: Option<(usize, FileOffset, u64)>,
}

impl Sink for Gather<'_, '_, '_> {
    #[inline]
    fn take(&mut self, Run { at, len, answer }: Run) -> Result<()> {
        self.left -= len;
        match answer {
            Answer::Here { layer, at } => self.data(layer, at, len),
            Answer::Zero { .. } => self.zeros(len),
            Answer::Open { .. } => {
                self.finish().and_then(|()| Err(self.layers.parent_required(at)))
            }
        }
    }
}

impl<'a, 'b, 'c> Gather<'a, 'b, 'c> {
    fn new(layers: Layers<'c>, bufs: &'a mut [IoSliceMut<'b>], len: u64) -> Self {
        Self { layers, bufs, filled: 0, left: len, waiting: None }
    }

    #[inline]
    fn data(&mut self, layer: usize, at: FileOffset, len: u64) -> Result<()> {
        if self.left == 0
            && self.waiting.is_none()
            && let [last] = &mut *self.bufs
        {
            // Usually this is the whole read.
            let (image, buf) = (&self.layers.layers[layer].image, &mut last[self.filled..]);
            let read = image.storage().read_exact_at(buf, at.get());
            return read.map_err(|error| image.cannot_read(buf.len(), at, error));
        }
        if let Some((last, start, waiting)) = &mut self.waiting
            && *last == layer
            && *start + *waiting == at
        {
            *waiting += len;
            return Ok(());
        }
        self.finish()?;
        self.waiting = Some((layer, at, len));
        Ok(())
    }

    fn zeros(&mut self, len: u64) -> Result<()> {
        self.finish()?;
        self.fill(len, |bufs, _| {
            bufs.iter_mut().for_each(|buf| buf.fill(0));
            Ok(())
        })
    }

    /// Performs the pending read.
    #[inline]
    fn finish(&mut self) -> Result<()> {
        match self.waiting.take() {
            Some((layer, at, len)) => self.read_in(layer, at, len),
            None => Ok(()),
        }
    }

    fn read_in(&mut self, layer: usize, at: FileOffset, len: u64) -> Result<()> {
        let image = &self.layers.layers[layer].image;
        self.fill(len, |bufs, done| match bufs {
            [buf] => image.read_payload(buf, at + done),
            bufs => image.read_payload_vectored(bufs, at + done),
        })
    }

    /// Fills the next `len` bytes of the buffers, some buffers at a time. `by` also gets the number of bytes filled
    /// before.
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

    /// Moves past filled bytes.
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
