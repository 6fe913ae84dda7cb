//! Plans of flushes, for callers that move the bytes themselves.

use std::sync::Arc;
use std::{fmt, io};

use super::commit::{Commit, Step, Turn};
use super::open_plans::{End, PlanId};
use super::plan::FindTip;
use super::planned::Tip;
use super::wait::{Cause, Wait};
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::trace;
use crate::types::FileOffset;

/// The result of planning a flush, see [`DiffChain::plan_flush`](crate::DiffChain::plan_flush). Exhaustive on purpose:
/// a caller that moves the bytes has to handle every case.
#[derive(Debug)]
#[must_use = "nothing is durable yet"]
pub enum PlannedFlush {
    /// Everything is durable.
    Done,
    /// There is a step to carry out.
    Ready(FlushPlan),
    /// Something has to be waited for, where blocking is allowed; then the flush is planned again.
    Wait(Wait),
}

/// The next step of a flush.
///
/// [`begin`](Self::begin) hands it out. A plan that is dropped before that leaves no trace: what is not durable yet is
/// left to the next flush.
///
/// See [`DiffChain::plan_flush`](crate::DiffChain::plan_flush) for an example.
#[must_use = "nothing is durable yet"]
pub struct FlushPlan(Open);

/// A step of a flush that is being carried out: [writes](Self::writes) in any order and, once all of them have
/// succeeded, a flush of the file if it [has one](Self::has_flush).
///
/// When all that has succeeded, [`done`](Self::done) returns the next step, or says that everything is durable. When
/// some of it has failed and none is under way any more, call [`failed`](Self::failed).
///
/// From the first step to the last, other flushes, the first change of a session and growth of the file wait for this
/// one, in the thread that they are called in: carry it on in another. Reads, planned writes and writes that need none
/// of that go on. Operations that are refused while planned writes are open are refused during a flush, too.
///
/// Dropping this value says that I/O may still be under way: the chain is poisoned, as by a flush that failed.
#[must_use = "dropped, the chain is poisoned"]
pub struct FlushInFlight(Open);

/// Bytes of the tables or the log to be written to the file of the tip.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FlushWrite<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Offset in the file, a multiple of 4096.
    pub at: FileOffset,
}

/// A planned flush that has not ended. It has the session reserved.
struct Open {
    tip: Tip,
    id: PlanId,
    commit: Commit,
    /// The step in flight.
    step: Option<Step>,
    is_done: bool,
}

/// Plans a flush.
pub(crate) fn plan_flush(find: &dyn FindTip) -> Result<PlannedFlush> {
    let tip = find.tip()?;
    let writer = Arc::clone(&tip.writer);
    writer.check()?;
    if !writer.session.try_reserve() {
        return Ok(PlannedFlush::Wait(Wait::new(&writer, Cause::Commit)));
    }
    let begun = match (writer.space.try_pause(), writer.check()) {
        (Some(pause), Ok(())) if writer.begin_commit() => {
            let (id, commit) = (writer.plans.add(0..0), Commit::new(pause));
            return Open { tip, id, commit, step: None, is_done: false }.next();
        }
        (Some(_), Ok(())) => Ok(PlannedFlush::Done),
        (None, Ok(())) => Ok(PlannedFlush::Wait(Wait::new(&writer, Cause::Growth))),
        (_, Err(error)) => Err(error),
    };
    writer.session.release();
    begun
}

impl FlushPlan {
    /// Hands out the step: from here on it is in flight.
    pub fn begin(self) -> FlushInFlight {
        let Self(mut open) = self;
        let writer = Arc::clone(&open.tip.writer);
        // A subscriber of events may panic.
        writer.poison_on_panic(|| {
            let step = open.commit.step(&writer, &mut writer.session.lock_reserved());
            if step.has_flush() {
                trace::flushing(writer.file.name());
                writer.tally.flushes.add(1);
            }
            open.step = Some(step);
        });
        FlushInFlight(open)
    }

    /// Carries out this step and all that follow, in this thread.
    ///
    /// # Errors
    /// Those of [`flush`](crate::Disk::flush).
    pub fn run(self) -> Result<()> {
        let mut plan = self;
        loop {
            let flight = plan.begin();
            let carried_out = flight
                .writes()
                .try_for_each(|write| flight.storage().write_at(write.bytes, write.at.get()));
            let flushed = carried_out.and_then(|()| match flight.has_flush() {
                true => flight.storage().flush(),
                false => Ok(()),
            });
            if let Err(error) = flushed {
                return Err(flight.failed(error));
            }
            match flight.done()? {
                PlannedFlush::Done => return Ok(()),
                PlannedFlush::Ready(next) => plan = next,
                PlannedFlush::Wait(wait) => return wait.run(),
            }
        }
    }
}

impl FlushInFlight {
    /// The file. Nothing but the steps may be written to it. [`Storage::as_fd`] returns its descriptor if it is a file
    /// of this machine.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.0.tip.writer.file
    }

    /// The writes, which may be carried out in any order. There may be none.
    pub fn writes(&self) -> impl Iterator<Item = FlushWrite<'_>> {
        let writes = self.0.step.iter().flat_map(Step::writes);
        writes.map(|(at, bytes)| FlushWrite { bytes, at: FileOffset::new(at) })
    }

    /// Whether the file is to be flushed after the writes, as [`Storage::flush`] does it.
    pub fn has_flush(&self) -> bool {
        self.0.step.as_ref().is_some_and(Step::has_flush)
    }

    /// Goes on to the next step: everything of this one has succeeded.
    ///
    /// # Errors
    /// [`ErrorKind::Poisoned`] after another failure that left the contents of the file unknown.
    pub fn done(self) -> Result<PlannedFlush> {
        let Self(mut open) = self;
        let writer = Arc::clone(&open.tip.writer);
        if let Some(step) = open.step.take() {
            step.done(&writer, &mut writer.session.lock_reserved());
        }
        writer.check()?;
        open.next()
    }

    /// Ends the flush: some of the step has failed by this error, and none of it is under way any more. The chain is
    /// poisoned, as by a flush that failed; returns the error to report.
    pub fn failed(self, error: io::Error) -> Error {
        let Self(mut open) = self;
        open.step = None;
        let error = Error::io("flush.step", "a step of a planned flush failed", error);
        open.tip.writer.poisoned_by(error)
    }
}

impl Open {
    fn next(mut self) -> Result<PlannedFlush> {
        let writer = Arc::clone(&self.tip.writer);
        let turn = self.commit.turn(&writer, &mut writer.session.lock_reserved(), false);
        Ok(match turn.map_err(|error| writer.poisoned_by(error))? {
            Turn::Step => PlannedFlush::Ready(FlushPlan(self)),
            Turn::Done => {
                self.is_done = true;
                PlannedFlush::Done
            }
            Turn::TooMany => PlannedFlush::Wait(Wait::new(&writer, Cause::Flush)),
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let writer = &self.tip.writer;
        if self.step.is_some() {
            writer.poisoned_because("a planned flush was dropped in flight");
        }
        if !self.is_done {
            self.commit.abandon(writer);
        }
        // The next commit finds all as it was before this one.
        self.commit.resume_growth();
        writer.plans.end(self.id, End::Unused);
        writer.session.release();
    }
}

impl fmt::Debug for FlushPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushPlan").finish_non_exhaustive()
    }
}

impl fmt::Debug for FlushInFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let writes = self.writes().count();
        let mut debug = f.debug_struct("FlushInFlight");
        debug.field("writes", &writes).field("has_flush", &self.has_flush());
        debug.finish_non_exhaustive()
    }
}
