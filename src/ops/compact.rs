//! Makes the file of an image shorter, or gives its unused space back to the host.

mod parameters;
mod room;
mod survey;

use std::ops::ControlFlow;
use std::sync::Arc;

use super::pace::Pace;
use super::progress::{CallerPanic, Listener, Progress};
use crate::chain::{DiffChain, Operation};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::file::read_only;
use crate::image::Core;
use crate::read::HasLayers;
use crate::trace::operation;
use crate::write::Writer;

use survey::Survey;

pub use parameters::{Compact, CompactForecast, Compacted};

impl Compact<'_> {
    /// Predicts what [`run`](Self::run) will do, without changing anything. Reads all data if [content](Self::content)
    /// is asked for.
    ///
    /// # Errors
    /// Those of `run` that are found before anything is changed.
    pub fn forecast(&self, chain: &DiffChain) -> Result<CompactForecast> {
        let op = chain.operate()?;
        let image = self.check(&op)?;
        let stack = chain.stack_now();
        let mut panic = CallerPanic::default();
        let read = if self.content { survey::data_len(&image)? } else { 0 };
        let mut meter = Meter::new(self, read, &mut panic);
        let survey = Survey::of(&image, self, Some(stack.layers()), may_move(&op), &mut |bytes| {
            meter.wait(bytes)
        });
        panic.resume();
        let survey = survey?;
        CompactForecast::of(&op, &image, &survey, read)
    }

    /// Compacts the file of the tip, in this chain and all its clones.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::ReadOnly`] if the chain is not open for writing;
    /// [`ErrorKind::HasChildren`] if the tip has a child, which is named, or may have one that cannot be looked for,
    /// without [consent](Self::with_children); [`ErrorKind::InvalidInput`] for a fixed disk, whose blocks stay
    /// allocated, unless it is only [punched](Self::punch), and for ranges beyond the disk;
    /// [`ErrorKind::Unsupported`] for a host that cannot punch; [`ErrorKind::Unfinished`] for an image that is part of a merge;
    /// [`ErrorKind::Damaged`] if its tables are; [`ErrorKind::InUse`] while planned writes are open;
    /// [`ErrorKind::NoSpace`] if there is less space than the forecast says, unless [content](Self::content) is asked
    /// for: what moves is not known then before the data is read.
    ///
    /// Later: [`ErrorKind::Io`] if the host fails, [`ErrorKind::Cancelled`], and [`ErrorKind::InUse`] as before. The
    /// disk reads as before, and the operation can be repeated.
    pub fn run(self, chain: &DiffChain) -> Result<Compacted> {
        let _span = operation("compact", chain.stack().tip().name());
        let mut panic = CallerPanic::default();
        let compacted = self.compact(chain, &mut panic);
        panic.resume();
        compacted
    }

    fn compact(&self, chain: &DiffChain, panic: &mut CallerPanic) -> Result<Compacted> {
        let op = chain.operate()?;
        let image = self.check(&op)?;
        let writer = op.writer().ok_or_else(|| read_only(image.name()))?;
        writer.check_plans_ended()?;
        if self.punch {
            writer.check_punches()?;
        }
        let file_len_before = writer.file_len();
        let stack = chain.stack_now();
        let before = Survey::of(&image, self, None, may_move(&op), &mut |_| Ok(()))?;
        // What moves once data was dropped is not known before it is read.
        if !self.content {
            CompactForecast::of(&op, &image, &before, 0)?.check()?;
        }
        let read = if self.content { before.outcome.data } else { 0 };
        let mut meter = Meter::new(self, read + before.outcome.moved, panic);
        meter.report()?;
        for range in survey::whole_blocks(&image, &self.free) {
            meter.report()?;
            chain.discard(range)?;
        }
        let mut outcome = before.outcome;
        if self.content {
            let freed = writer.drop_content(stack.layers(), &mut |bytes| meter.wait(bytes));
            outcome.content = Some(freed?);
        }
        // From here on nobody is to read the stack that is there now.
        drop(stack);
        let dropped = outcome.content.unwrap_or_default() + outcome.free;
        let packed = match self.punch {
            true => self.punch_all(&writer, &image, read, &mut meter)?,
            false => self.pack(&op, writer, image, read, &mut meter)?,
        };
        outcome.tables = packed.tables.saturating_sub(dropped);
        (outcome.moved, outcome.punched) = (packed.moved, packed.punched);
        outcome.table = packed.table;
        outcome.file_len_before = file_len_before;
        outcome.file_len = op.writer().map_or(packed.file_len, |writer| writer.file_len());
        meter.end();
        Ok(outcome)
    }

    /// Moves the block allocation table and blocks, and cuts the file, if that makes it shorter.
    fn pack(
        &self,
        op: &Operation<'_>,
        mut writer: Arc<Writer>,
        image: Arc<Core>,
        read: u64,
        meter: &mut Meter<'_>,
    ) -> Result<Compacted> {
        let tables = Self::default();
        let may_move = may_move(op);
        let survey = Survey::of(&image, &tables, None, may_move, &mut |_| meter.report())?;
        drop(image);
        let outcome = survey.outcome;
        meter.total = read + outcome.moved;
        meter.done = read;
        if outcome.file_len >= writer.file_len() {
            writer.commit()?;
            return Ok(outcome);
        }
        let mut before = |bytes| meter.wait(bytes);
        writer.begin_hidden()?;
        writer.release_unused(&mut before)?;
        let mut table = 0;
        if survey.moves_table() {
            let put = |moved| op.put_reopened(&writer, moved);
            if let Some(reopened) = writer.move_table(&mut before, put)? {
                let image = reopened.done();
                let (old, new) = (writer.core().table_place(), image.core.table_place());
                table = if old.at == new.at { 0 } else { new.len };
                writer = image.writer.unwrap_or(writer);
            }
        }
        let moved = writer.pack(&mut before)?;
        Ok(Compacted { moved, table, ..outcome })
    }

    /// Gives unused space back to the host where it is.
    fn punch_all(
        &self,
        writer: &Writer,
        image: &Core,
        read: u64,
        meter: &mut Meter<'_>,
    ) -> Result<Compacted> {
        let tables = Self::default().punch(true);
        let survey = Survey::of(image, &tables, None, false, &mut |_| meter.report())?;
        let outcome = survey.outcome;
        meter.total = read + outcome.punched.unwrap_or_default();
        meter.done = read;
        let punched = writer.punch_unused(&mut |_| meter.report())?;
        Ok(Compacted { punched: Some(punched), ..outcome })
    }

    /// Refuses an image that must not be compacted, and returns it.
    fn check(&self, op: &Operation<'_>) -> Result<Arc<Core>> {
        let images = op.images();
        let image = Arc::clone(&images[0]);
        image.check_point()?;
        if let Some(mark) = image.merge_mark() {
            let message = "the image is part of a merge, which has to be completed first";
            return Err(Error::new(ErrorKind::Unfinished, "compact.merging", message)
                .in_file(image.name())
                .with_found(format_args!("the mark of a merge with {}", mark.name))
                .with_expected("an image without a merge mark"));
        }
        let is_kept = self.punch && !self.content && self.free.is_empty();
        if image.keeps_blocks() && !is_kept {
            let message = "the blocks of a fixed disk stay where they are";
            return Err(Error::new(ErrorKind::InvalidInput, "compact.fixed", message)
                .in_file(image.name())
                .with_section("2.6.2.1")
                .with_found("a fixed disk")
                .with_expected("a dynamic or differencing one, or to punch alone"));
        }
        for range in &self.free {
            let len = range.end.saturating_sub(range.start);
            image.geometry().check_range(range.start, len)?;
        }
        op.check_claims(0)?;
        image.check_states()?;
        if !self.with_children || !self.free.is_empty() {
            let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
            let seen = op.child_search(&self.folders).refuse_others(&image, &known);
            let seen = seen.map_err(|error| match error.code() {
                "image.children" if self.free.is_empty() => error
                    .with_message("the image has a child, under which its file would change")
                    .with_expected(
                        "no child, or consent to change the file: a child reads the same",
                    ),
                _ => error,
            })?;
            if let Some(unread) = seen.unread {
                let message = "the image may have a child";
                return Err(Error::new(
                    ErrorKind::HasChildren,
                    "compact.children-unknown",
                    message,
                )
                .in_file(image.name())
                .with_section("2.6.2.6.3")
                .with_found(unread)
                .with_expected("files that can be read, or consent to change the file"));
            }
        }
        Ok(image)
    }
}

/// Whether the block allocation table may move: another chain that was given the tip would look for it in its old place.
fn may_move(op: &Operation<'_>) -> bool {
    op.writer().is_none_or(|writer| !writer.has_guests())
}

/// Tracks progress and pace.
struct Meter<'a> {
    pace: &'a Pace,
    progress: &'a Listener<'a>,
    panic: &'a mut CallerPanic,
    done: u64,
    total: u64,
}

impl<'a> Meter<'a> {
    fn new(compact: &'a Compact<'a>, total: u64, panic: &'a mut CallerPanic) -> Self {
        Self { pace: &compact.pace, progress: &compact.progress, panic, done: 0, total }
    }

    /// Waits until some bytes may be moved or read; what came before is done then.
    fn wait(&mut self, bytes: u64) -> Result<()> {
        let now = self.now();
        let Self { pace, progress, panic, .. } = self;
        let mut on = || panic.catch(|| progress.call(now));
        let on_way = on();
        let goes_on = match on_way {
            ControlFlow::Continue(()) => pace.wait(bytes, &mut on),
            stop => stop,
        };
        self.done += bytes;
        stop_if(goes_on)
    }

    fn report(&mut self) -> Result<()> {
        let now = self.now();
        stop_if(self.panic.catch(|| self.progress.call(now)))
    }

    /// Reports that all is done. It is too late to stop.
    fn end(&mut self) {
        self.done = self.total;
        drop(self.report());
    }

    fn now(&self) -> Progress {
        Progress::new(self.done.min(self.total), self.total)
    }
}

fn stop_if(goes_on: ControlFlow<()>) -> Result<()> {
    match goes_on {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled()),
    }
}
