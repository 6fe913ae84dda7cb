//! Reads and writes a chain as a disk.

use std::any::Any;
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
use crate::file::read_only;
use crate::read::{self, HasLayers, Layers, Planned};
use crate::storage::FileId;
use crate::write::{self, FindTip, PlannedFlush, PlannedWrite, Tip};

impl Disk for DiffChain {
    fn geometry(&self) -> Geometry {
        self.stack().tip().geometry()
    }

    fn files(&self) -> Vec<FileId> {
        self.images().iter().flat_map(|image| image.files()).collect()
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
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

impl FindTip for DiffChain {
    fn tip(&self) -> Result<Tip> {
        let stack = self.stack_now();
        let writer = stack.writer.clone().ok_or_else(|| read_only(stack.tip().name()))?;
        Ok(Tip { of: stack, writer })
    }

    fn share(&self) -> Arc<dyn FindTip> {
        Arc::new(self.clone())
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

    /// Plans a write of a range, in bytes, for a caller that moves the bytes itself, many at a time. Never blocks,
    /// and reads and writes no file: the result says what must be read or waited for first. The range must consist
    /// of whole logical sectors.
    ///
    /// The caller writes the steps of the plan in any way and order, then [commits](crate::WriteInFlight::commit) it.
    /// Nothing is durable before the next flush. Reused space for a block without a parent is filled with zeros by a
    /// [`Wait`](crate::Wait), and the file grows in one.
    ///
    /// ```no_run
    /// use avhdx::{OpenOptions, PlannedWrite};
    ///
    /// let chain = OpenOptions::new().writable(true).open("web_1A2B.avhdx")?;
    /// let bytes = vec![7; 4096];
    /// let mut planned = chain.plan_write(8192..8192 + 4096)?;
    /// let plan = loop {
    ///     planned = match planned {
    ///         PlannedWrite::Ready(plan) => break plan,
    ///         PlannedWrite::Load(tables) => {
    ///             let mut bytes = vec![0; tables.len()];
    ///             tables.storage().read_exact_at(&mut bytes, tables.at().get()).unwrap();
    ///             tables.supply(&bytes)?
    ///         }
    ///         PlannedWrite::Wait(wait) => {
    ///             wait.run()?; // on a thread that may block
    ///             chain.plan_write(8192..8192 + 4096)?
    ///         }
    ///     };
    /// };
    /// let flight = plan.begin();
    /// for step in flight.steps() {
    ///     step.storage.write_at(&bytes[step.buffer.clone()], step.at.get()).unwrap();
    /// }
    /// flight.commit()?;
    /// # Ok::<(), avhdx::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] if the chain is not open for writing; [`ErrorKind::InvalidInput`] if the range is not
    /// within the disk or does not consist of whole sectors; [`ErrorKind::Poisoned`] and [`ErrorKind::Damaged`] as
    /// for [`Disk::write_at`].
    pub fn plan_write(&self, range: Range<u64>) -> Result<PlannedWrite> {
        write::plan_write(self, range)
    }

    /// Plans a flush, for a caller that moves the bytes itself: afterwards, everything is durable that was
    /// [committed](crate::WriteInFlight::commit) or written before. Never blocks, and reads and writes no file.
    ///
    /// ```no_run
    /// use avhdx::{OpenOptions, PlannedFlush};
    ///
    /// let chain = OpenOptions::new().writable(true).open("web_1A2B.avhdx")?;
    /// let mut planned = chain.plan_flush()?;
    /// loop {
    ///     planned = match planned {
    ///         PlannedFlush::Done => break,
    ///         PlannedFlush::Ready(plan) => {
    ///             let step = plan.begin();
    ///             for write in step.writes() {
    ///                 step.storage().write_at(write.bytes, write.at.get()).unwrap();
    ///             }
    ///             if step.has_flush() {
    ///                 step.storage().flush().unwrap();
    ///             }
    ///             step.done()?
    ///         }
    ///         PlannedFlush::Wait(wait) => {
    ///             wait.run()?; // on a thread that may block
    ///             chain.plan_flush()?
    ///         }
    ///     };
    /// }
    /// # Ok::<(), avhdx::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] if the chain is not open for writing; [`ErrorKind::Poisoned`] after a failed flush or
    /// metadata write.
    pub fn plan_flush(&self) -> Result<PlannedFlush> {
        write::plan_flush(self)
    }
}
