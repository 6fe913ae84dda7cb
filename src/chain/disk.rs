//! A chain as a disk.

use std::io::IoSliceMut;
use std::ops::Range;

use super::DiffChain;
use crate::disk::{Disk, Extent, Geometry, Zeroing};
use crate::error::Result;
use crate::storage::FileId;

impl Disk for DiffChain {
    fn geometry(&self) -> Geometry {
        self.stack().geometry()
    }

    fn files(&self) -> Vec<FileId> {
        self.images().iter().flat_map(|image| image.files()).collect()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.stack().read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.stack().read_vectored_at(bufs, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.change(|writer, stack| {
            writer.write_through(buf, offset, &|buf, at| stack.read_at(buf, at))
        })
    }

    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.change(|writer, stack| {
            writer.zero_through(range.clone(), how, &|buf, at| stack.read_at(buf, at))
        })
    }

    fn flush(&self) -> Result<()> {
        self.stack().writer.as_ref().map_or(Ok(()), |writer| writer.commit())
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        self.stack().next_extent(range)
    }
}
