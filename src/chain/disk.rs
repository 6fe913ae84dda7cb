//! Reads and writes a chain as a disk.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::Guard;

use super::DiffChain;
use super::stack::Stack;
use crate::disk::{Disk, Extent, Geometry, Zeroing};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::read::{self, HasLayers, Layers, Planned};
use crate::storage::FileId;

impl Disk for DiffChain {
    fn geometry(&self) -> Geometry {
        self.stack().tip().geometry()
    }

    fn files(&self) -> Vec<FileId> {
        self.images().iter().flat_map(|image| image.files()).collect()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.stack().layers().read_at(buf, offset)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        self.stack().layers().read_vectored_at(bufs, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.change(|writer, stack| writer.write_through(buf, offset, stack.layers()))
    }

    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.change(|writer, stack| writer.zero_through(range.clone(), how, stack.layers()))
    }

    fn flush(&self) -> Result<()> {
        self.stack().writer.as_ref().map_or(Ok(()), |writer| writer.commit())
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        self.stack().layers().next_extent(range)
    }
}

impl HasLayers for Stack {
    #[inline]
    fn layers(&self) -> Layers<'_> {
        Layers::new(&self.layers, self.is_counted.then_some(&*self.tally))
    }
}

impl DiffChain {
    /// The current layers, for a short time.
    #[inline]
    pub(crate) fn stack(&self) -> Guard<Arc<Stack>> {
        self.view.stack.load()
    }

    /// The current layers, to be held for long.
    pub(crate) fn stack_now(&self) -> Arc<Stack> {
        self.view.stack.load_full()
    }

    /// Plans the read of a range, in bytes, for a caller that moves the bytes itself. Never blocks and reads no file:
    /// if tables are needed that are not cached, the result says which bytes of which file must be read first. What
    /// the plan determines is cached as for [reads](Disk::read_at).
    ///
    /// The range needs no alignment. An empty range has an empty plan.
    ///
    /// ```no_run
    /// use avhdx::{DiffChain, Planned, PlannedSource};
    ///
    /// let chain = DiffChain::open("web_1A2B.avhdx")?;
    /// let mut planned = chain.plan_read(0..1 << 20)?;
    /// let plan = loop {
    ///     planned = match planned {
    ///         Planned::Ready(plan) => break plan,
    ///         Planned::Load(tables) => {
    ///             let mut bytes = vec![0; tables.len()];
    ///             tables.storage().read_exact_at(&mut bytes, tables.at().get()).unwrap();
    ///             tables.supply(&bytes)?
    ///         }
    ///     };
    /// };
    /// for piece in plan.pieces() {
    ///     match piece.source {
    ///         PlannedSource::Data { layer, at, .. } => println!("{:?}: {layer} at {at}", piece.range),
    ///         PlannedSource::Zero => println!("{:?}: zeros", piece.range),
    ///     }
    /// }
    /// # Ok::<(), avhdx::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the range is not within the disk; [`ErrorKind::LogOverlay`] if a pending log
    /// supplies some of the bytes, which [`Disk::read_at`] can still read; [`ErrorKind::Damaged`] if the tables give
    /// no valid location for them.
    pub fn plan_read(&self, range: Range<u64>) -> Result<Planned> {
        read::plan_read(self.stack_now(), range)
    }
}
