//! Plans of writes, for callers that move the bytes themselves.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::planned::{Halt, Parts, Tip};
use super::wait::Wait;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::tables::{Carried, Missing};
use crate::types::FileOffset;

/// The result of planning a write, see [`DiffChain::plan_write`](crate::DiffChain::plan_write). Exhaustive on purpose:
/// a caller that moves the bytes has to handle every case.
#[derive(Debug)]
pub enum PlannedWrite {
    /// The plan is complete.
    Ready(WritePlan),
    /// Part of the tip's tables must be read first.
    Load(WriteLoad),
    /// Something has to be waited for, where blocking is allowed; then the write is planned again.
    Wait(Wait),
}

/// Locates the bytes of a write in the file of the tip, and reserves space for them.
///
/// [`begin`](Self::begin) hands out the steps. A plan that is dropped before that leaves no trace. Until it is dropped
/// or has ended, the file ranges that it names are not reused, truncated or returned to the host, and whatever needs
/// a tip without writes in progress is refused; see [`WriteInFlight`].
///
/// See [`DiffChain::plan_write`](crate::DiffChain::plan_write) for an example.
#[must_use = "nothing is written"]
pub struct WritePlan {
    range: Range<u64>,
    parts: Parts,
}

/// A planned write whose steps are being carried out.
///
/// When all of them have succeeded, [`commit`](Self::commit) has the disk read as written; before that, it reads as
/// before wherever the bytes are new to the tip. When some have failed and none is under way any more, call
/// [`failed`](Self::failed). Both return at once, and wait for neither I/O nor other writes.
///
/// The write is in progress until then, as one that another thread has called and that has not returned. Writes and
/// discards that overlap it are before or after it, sector by sector. A flush that begins later than the
/// commit makes it durable; an earlier one need not. Until then each sector of 512 bytes reads as
/// before or as written, after a crash too.
///
/// While plans are open, [`Checkpoint`](crate::ops::Checkpoint), [`Revert`](crate::ops::Revert), a resize, the last
/// step of a [`Merge`](crate::ops::Merge) of the tip, a new child of the open tip and
/// [`close`](crate::DiffChain::close) fail with [`ErrorKind::InUse`] and their number, and so do writes of a part of a
/// sector that a plan covers.
///
/// Dropping this value says that I/O may still be under way: the write stays in progress until the chain is dropped.
/// The space of its blocks is used for nothing else once it is freed, and the operations above are refused, except for
/// `close`.
///
/// A plan keeps the file of the tip open. If the chain is dropped first, the end of the last plan ends the session, as
/// dropping the chain would: that writes and flushes the file.
#[must_use = "dropped, the write stays in progress"]
pub struct WriteInFlight(WritePlan);

/// A run of bytes to be written to the file of the tip.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WriteStep<'a> {
    /// The range on the disk, in bytes. It consists of whole sectors.
    pub range: Range<u64>,
    /// The same range in the caller's buffer, whose first byte is the first of the plan.
    pub buffer: Range<usize>,
    /// The file. Nothing but the steps may be written to it. [`Storage::as_fd`] returns its descriptor if it is a file
    /// of this machine.
    pub storage: &'a Arc<dyn Storage>,
    /// Offset in the file.
    pub at: FileOffset,
}

/// Part of the tip's tables that a plan needs and that is not cached.
///
/// Read the bytes in any way and pass them to [`supply`](Self::supply), or call [`load`](Self::load) to do both.
/// Dropping this value abandons the plan.
pub struct WriteLoad {
    find: Arc<dyn FindTip>,
    tip: Tip,
    range: Range<u64>,
    carried: Carried,
    missing: Missing,
}

/// Finds the present tip of a chain: an operation may replace it between two attempts.
pub(crate) trait FindTip: Send + Sync {
    /// # Errors
    /// [`ErrorKind::ReadOnly`] if the chain is not open for writing.
    fn tip(&self) -> Result<Tip>;

    /// A handle that can be kept.
    fn share(&self) -> Arc<dyn FindTip>;
}

/// Plans the write of a range.
pub(crate) fn plan_write(find: &dyn FindTip, range: Range<u64>) -> Result<PlannedWrite> {
    let range = range.start..range.end.max(range.start);
    go_on(find, range, Carried::default())
}

fn go_on(find: &dyn FindTip, range: Range<u64>, mut carried: Carried) -> Result<PlannedWrite> {
    loop {
        let tip = find.tip()?;
        let (of, writer) = (Arc::clone(&tip.of), Arc::clone(&tip.writer));
        writer.check_plan(&range)?;
        let halt = match Parts::plan(tip, range.clone(), &carried) {
            Ok(parts) => {
                carried.share(|id| (id == writer.core().id()).then(|| &**writer.core()));
                return Ok(PlannedWrite::Ready(WritePlan { range, parts }));
            }
            Err(halt) => halt,
        };
        return match halt {
            Halt::Failed(error)
                if error.code() == "image.frozen" && !Arc::ptr_eq(&writer, &find.tip()?.writer) =>
            {
                continue;
            }
            Halt::Failed(error) => Err(error),
            Halt::Wait(cause) => Ok(PlannedWrite::Wait(Wait::new(&writer, cause))),
            Halt::Missing(missing) => {
                let tip = Tip { of, writer };
                let find = find.share();
                Ok(PlannedWrite::Load(WriteLoad { find, tip, range, carried, missing }))
            }
        };
    }
}

impl WritePlan {
    /// The range of the disk, in bytes.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Hands out the steps: from here on the plan is in flight.
    pub fn begin(mut self) -> WriteInFlight {
        self.parts.begin();
        WriteInFlight(self)
    }

    /// Carries out the plan with these bytes, which must be as long as the range.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `bytes` has another length; [`ErrorKind::Io`] if the host fails, and those of
    /// [`WriteInFlight::commit`].
    pub fn write(self, bytes: &[u8]) -> Result<()> {
        let expected = self.range.end - self.range.start;
        if bytes.len() as u64 != expected {
            let message = "a buffer that is not as long as the plan's range";
            return Err(Error::new(ErrorKind::InvalidInput, "plan.buffer-length", message)
                .with_found(format_args!("{} bytes", bytes.len()))
                .with_expected(format_args!("{expected} bytes")));
        }
        let flight = self.begin();
        let written = flight.steps().try_for_each(|step| {
            let bytes = &bytes[step.buffer];
            step.storage.write_at(bytes, step.at.get()).map_err(|error| {
                let message = format!("cannot write {} bytes", bytes.len());
                let error = Error::io("payload.write", message, error);
                error.in_file(step.storage.name()).at(step.at.get())
            })
        });
        match written {
            Ok(()) => flight.commit(),
            Err(error) => {
                flight.failed();
                Err(error)
            }
        }
    }
}

impl WriteInFlight {
    /// The range of the disk, in bytes.
    pub fn range(&self) -> Range<u64> {
        self.0.range()
    }

    /// The steps, in the order of the disk, which may be carried out in any order. Neighbours that continue each other
    /// in the file are joined.
    pub fn steps(&self) -> impl Iterator<Item = WriteStep<'_>> {
        let start = self.0.range.start;
        let storage = self.0.parts.writer().steps_storage();
        self.0.parts.moves().iter().map(move |piece| WriteStep {
            range: piece.range.clone(),
            buffer: (piece.range.start - start) as usize..(piece.range.end - start) as usize,
            storage,
            at: piece.at,
        })
    }

    /// Ends the write: all steps have succeeded, and the disk reads as written. It is durable after the next
    /// flush.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] after a failed flush or metadata write: what the disk holds is unknown.
    pub fn commit(self) -> Result<()> {
        self.0.parts.commit()
    }

    /// Ends the write: some steps have not succeeded, and none is under way any more. Each sector reads as before or as
    /// written, until it is written again.
    pub fn failed(self) {
        self.0.parts.failed();
    }
}

impl WriteLoad {
    /// The tip's file, for reading only.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        self.tip.writer.core().reader()
    }

    /// Offset of the bytes in the file.
    pub fn at(&self) -> FileOffset {
        self.missing.at
    }

    /// Number of bytes needed, never 0.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        Carried::PAGE
    }

    /// Continues with these bytes, which must be those of the file.
    ///
    /// The plan always advances, however small the [`Budget`](crate::Budget) is. The same bytes are requested again
    /// only after a flush.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the number of bytes differs from [`len`](Self::len), and as for
    /// [`DiffChain::plan_write`](crate::DiffChain::plan_write).
    pub fn supply(mut self, bytes: &[u8]) -> Result<PlannedWrite> {
        let core = self.tip.writer.core();
        if bytes.len() != self.len() {
            let message = "another number of bytes of a table than was asked for";
            return Err(Error::new(ErrorKind::InvalidInput, "plan.table-length", message)
                .in_file(core.name())
                .at(self.at().get())
                .with_found(format_args!("{} bytes", bytes.len()))
                .with_expected(format_args!("{} bytes", self.len())));
        }
        core.note_table_load();
        self.carried.take(self.missing, bytes);
        go_on(self.find.as_ref(), self.range, self.carried)
    }

    /// Reads the bytes and continues.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the host fails, and as for [`DiffChain::plan_write`](crate::DiffChain::plan_write).
    pub fn load(mut self) -> Result<PlannedWrite> {
        let page = self.tip.writer.core().page_in_file(self.at())?;
        self.carried.take(self.missing, &page[..]);
        go_on(self.find.as_ref(), self.range, self.carried)
    }
}

impl fmt::Debug for WritePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moves = self.parts.moves();
        f.debug_struct("WritePlan").field("range", &self.range).field("moves", &moves).finish()
    }
}

impl fmt::Debug for WriteInFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WriteInFlight").field(&self.0).finish()
    }
}

impl fmt::Debug for WriteLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteLoad")
            .field("at", &self.at())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
