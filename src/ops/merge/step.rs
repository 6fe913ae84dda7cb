//! Merges one layer into its parent.
//!
//! The order in which changes become durable keeps the chain readable at any moment, \[MS-VHDX\] 2.6.2.6.3:
//!
//! 1. the child accepts the parent's next identity besides the present one, and is marked as merging;
//! 2. the parent takes that identity and is marked as incomplete;
//! 3. the parent receives all data of the child, which still covers it;
//! 4. the parent's mark is removed, in one step with the last of the data;
//! 5. a tip that keeps its name exchanges names with the parent;
//! 6. the child is marked as spent;
//! 7. the layer above, if any, is linked to the parent;
//! 8. the child's file is removed.

use std::cell::Cell;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::copy::{BATCH, LayerCopy, Meter, Places};
use super::parameters::{Merge, Merged};
use super::request;
use crate::chain::{Operation, Retired, file_id, path_of};
use crate::disk::LayerId;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, MergeMark, MergeState, Moved};
use crate::mover::flush_behind;
use crate::ops::child::{Removed, dangling_link, exchange_names, remove};
use crate::read::Layer;
use crate::types::BlockIndex;
use crate::warning::Warning;
use crate::write::OpenImage;
use crate::write::Writer;
use crate::write::disk_edits;
use crate::write::locator_edit;
use crate::write::{ChangeTracker, Copier, ItemEdit, LinkPaths};

/// How many bytes may remain for the final move, during which writers wait.
const SHORT: u64 = 4 << 20;
/// After this many rounds writers are slowed down, by `SLOWER` more in each round, up to `SLOWEST`.
const ROUNDS: u32 = 4;
const SLOWER: Duration = Duration::from_millis(10);
const SLOWEST: Duration = Duration::from_millis(100);

/// The merge of one layer into the next one below.
pub(super) struct MergeStep<'a> {
    pub(super) op: &'a Operation<'a>,
    pub(super) merge: &'a Merge<'a>,
    pub(super) layer: usize,
    /// How many bytes are made durable before their space is freed; at least one block.
    pub(super) batch: u64,
}

/// The files involved, open for writing.
struct Handles {
    child: Arc<Writer>,
    parent: Arc<Writer>,
    above: Option<Arc<Writer>>,
    /// Whether the child is the tip and may be written to meanwhile.
    is_live: bool,
    /// The layers that were opened for this step.
    opened: Vec<LayerId>,
}

/// Stops tracking the child's changes when dropped.
struct Tracking<'a>(&'a Writer);

impl Drop for Tracking<'_> {
    fn drop(&mut self) {
        self.0.stop_tracking();
    }
}

impl MergeStep<'_> {
    pub(super) fn run(&self, meter: &mut Meter<'_>, merged: &mut Merged) -> Result<()> {
        self.op.let_vanish(self.layer + 1)?;
        let mut handles = self.open(meter)?;
        let done = self.merge(&mut handles, meter, merged);
        self.settle(handles, done.is_ok(), merged);
        done
    }

    fn open(&self, meter: &mut Meter<'_>) -> Result<Handles> {
        let live = self.op.writer().filter(|writer| writer.core().takes_writes());
        let is_live = self.layer == 0 && live.is_some();
        let above = self.layer.checked_sub(1);
        let is_above_live = above == Some(0) && live.is_some();
        let mut layers = vec![self.layer + 1];
        layers.extend((!is_live).then_some(self.layer));
        layers.extend(above.filter(|_| !is_above_live));
        let opened = self.op.take(&layers, &mut || meter.notify())?;
        let of = |layer: usize| {
            let taken = layers.iter().zip(&opened).find(|(taken, _)| **taken == layer);
            let writer = taken.map(|(_, writer)| writer).or(live.as_ref());
            Arc::clone(writer.unwrap_or_else(|| unreachable!("the layer was taken or is live")))
        };
        Ok(Handles {
            child: of(self.layer),
            parent: of(self.layer + 1),
            above: above.map(of),
            is_live,
            opened: opened.iter().map(|writer| writer.core().id()).collect(),
        })
    }

    fn merge(&self, on: &mut Handles, meter: &mut Meter<'_>, merged: &mut Merged) -> Result<()> {
        let state = on.child.core().merge_mark().map(|mark| mark.state);
        if state == Some(MergeState::Spent) {
            // The parent is complete; only the links and the file remain.
            return self.finish(on, merged);
        }
        self.recheck_children()?;
        let next = Uuid::new_v4();
        self.mark(on, next)?;
        let before = self.resize_parent(on, meter)?;
        // Keeps offsets in the parent's file that readers may know from being reused.
        let keep = self.op.keep(on.parent.core());
        before.iter().for_each(|before| on.parent.take_over(before));
        let done = self.copy(on, meter, merged).and_then(|()| self.finish(on, merged));
        keep.done(done.is_ok());
        done
    }

    /// Refuses layers that got another child before they were locked.
    fn recheck_children(&self) -> Result<()> {
        let images = self.op.images();
        let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
        let of_step = &images[self.layer..=self.layer + 1];
        of_step.iter().try_for_each(|image| {
            let search = self.op.child_search(&self.merge.folders);
            self.merge.refuse_others(search, image, &known).map(drop)
        })
    }

    /// Marks both files before anything else changes in them.
    fn mark(&self, on: &Handles, next: Uuid) -> Result<()> {
        let (child, parent) = (on.child.core(), on.parent.core());
        let tell = |state, other, of| ItemEdit::merge_mark(Some(&self.state(state, other, of)));
        let before = child.in_parent();
        let link = locator_edit(child, parent.data_write_guid(), Some(next), LinkPaths::Keep)?;
        let moved = Moved { end: before, child: child.data_write_guid() };
        let mark = MergeMark {
            moved: (before > 0).then_some(moved),
            ..self.state(MergeState::Merging, next, parent)
        };
        let mark = ItemEdit::merge_mark(Some(&mark));
        on.child.edit_metadata(&[link, mark])?;
        on.parent.set_next_identity(next);
        on.parent.begin_with_next_identity()?;
        let mut edits = disk_edits(child, parent)?;
        edits.push(tell(MergeState::Target, child.data_write_guid(), child));
        on.parent.edit_metadata(&edits)
    }

    /// Resizes the parent's disk to the child's size. Returns the writer that it replaced, if any.
    fn resize_parent(
        &self,
        on: &mut Handles,
        meter: &mut Meter<'_>,
    ) -> Result<Option<Arc<Writer>>> {
        let size = on.child.core().geometry().size;
        if size == on.parent.core().geometry().size {
            return Ok(None);
        }
        on.parent.resize(size)?;
        let old = on.parent.core().id();
        let parent = on.parent.reopen()?.shared();
        on.opened.iter_mut().filter(|id| **id == old).for_each(|id| *id = parent.core().id());
        let image =
            OpenImage { core: Arc::clone(parent.core()), writer: Some(Arc::clone(&parent)) };
        let retired = self.op.resized(self.layer + 1, &image);
        let before = std::mem::replace(&mut on.parent, parent);
        self.op.drained(retired, &mut || meter.notify())?;
        Ok(Some(before))
    }

    fn copy(&self, on: &Handles, meter: &mut Meter<'_>, merged: &mut Merged) -> Result<()> {
        let tracker = on.is_live.then(|| on.child.track_changes());
        let tracking = on.is_live.then(|| Tracking(&on.child));
        let copier = Copier::new(self.merge.share);
        let passed = Cell::new(0);
        let from = Layer::new(Arc::clone(on.child.core()));
        let read = &Places::default();
        let copy =
            LayerCopy { from, to: &on.parent, copier, tracker: tracker.clone(), passed, read };
        let size = on.child.core().geometry().size;
        let copied = (|| {
            let moved = match self.merge.low_space {
                true => self.copy_and_give_back(on, &copy, meter)?,
                false => pass_durably(on, &copy, size, meter)?,
            };
            let Some(tracker) = &tracker else {
                complete(&on.parent)?;
                return Ok((moved, None));
            };
            let (rest, retired) = self.converge(on, &copy, tracker, meter, merged)?;
            Ok((moved + rest, Some(retired)))
        })();
        let copied = copied.map_err(|error| self.stopped(error, on, &copy));
        drop(tracking);
        let (moved, retired) = copied?;
        if let Some(retired) = retired {
            self.wait_for_readers(retired, on, merged);
        }
        merged.moved += moved;
        merged.mirrored += tracker.map_or(0, |tracker| tracker.mirrored());
        merged.handed_over += copy.copier.shared();
        Ok(())
    }

    /// Records how far the copy got before `error`, and reports it as `merge.child-lost` if the child's file lost
    /// bytes.
    fn stopped(&self, error: Error, on: &Handles, copy: &LayerCopy<'_>) -> Error {
        let is_cancelled = error.kind() == ErrorKind::Cancelled;
        let lost =
            if is_cancelled { None } else { on.child.core().lost_meanwhile().unwrap_or_default() };
        if is_cancelled || lost.is_some() {
            // Best effort: only `AcceptLoss` uses the record, and nothing depends on it.
            drop(self.record_progress(on, copy));
        }
        let Some(lost) = lost else { return error };
        let message = format!("the file lost bytes during the merge: {}", lost.message());
        Error::new(ErrorKind::Damaged, "merge.child-lost", message)
            .in_file(on.child.core().name())
            .with_section("2.5.1")
            .with_found(error)
            .with_expected("the loss to be accepted, then the merge to be resumed")
    }

    /// Records in the child's mark up to where the parent holds all of its data.
    fn record_progress(&self, on: &Handles, copy: &LayerCopy<'_>) -> Result<()> {
        on.parent.commit()?;
        // Later writes to the child give it another identity, which invalidates the record; earlier ones left marks.
        let child = on.child.hand_out_identity()?;
        let changed = copy.tracker.as_ref().and_then(|tracker| tracker.first_marked());
        let end =
            copy.passed.get().min(changed.unwrap_or(u64::MAX)).max(on.child.core().in_parent());
        let Some(mark) = on.child.core().merge_mark().filter(|_| end > 0) else { return Ok(()) };
        let mark = MergeMark { moved: Some(Moved { end, child }), ..mark };
        on.child.edit_metadata(&[ItemEdit::merge_mark(Some(&mark))])
    }

    /// Moves one batch after the other, freeing its space in the child once it is durable in the parent.
    fn copy_and_give_back(
        &self,
        on: &Handles,
        copy: &LayerCopy<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<u64> {
        let size = on.child.core().geometry().size;
        let block = u64::from(on.child.core().block_size());
        let step = self.batch.max(block);
        let (mut moved, mut at) = (0, 0);
        while let Some(found) = copy.next_data(at..size)? {
            at = at.max(found / step * step);
            let end = size.min((at / step + 1) * step);
            let now = copy.pass(at..end, meter, &mut |_| Ok(()))?;
            moved += now;
            if now > 0 {
                on.parent.commit()?;
                let blocks: Vec<_> = (at / block..end.div_ceil(block)).map(BlockIndex).collect();
                // The space is reused only when no reader can know its offsets any more.
                let keep = self.op.keep(on.child.core());
                let released = on.child.release_blocks(&blocks).and_then(|_| {
                    self.op.drained(self.op.forget_places(self.layer), &mut || meter.notify())
                });
                keep.done(released.is_ok());
                released?;
                on.child.release_blocks(&[])?;
            }
            at = end;
        }
        Ok(moved)
    }

    /// Brings the parent up to date while the child is being written to, then replaces the child with it.
    ///
    /// From here on each write to the child goes to the parent too. The ranges that were written to before
    /// are moved, and become fewer and fewer.
    fn converge(
        &self,
        on: &Handles,
        copy: &LayerCopy<'_>,
        tracker: &ChangeTracker,
        meter: &mut Meter<'_>,
        merged: &mut Merged,
    ) -> Result<(u64, Retired)> {
        // Allocation in the parent waits for a flush, and the first flush takes the longest: do it now.
        on.parent.commit()?;
        // The marks are consumed from here on, so progress can no longer be derived from them.
        copy.passed.set(0);
        on.child.mirror_changes(tracker, &on.parent);
        let (mut moved, mut flushed) = (0, 0);
        for round in 1_u32.. {
            while let Some(run) = tracker.next_marked() {
                moved += copy.pass_while_held(run, meter)?;
                tracker.check()?;
                if moved - flushed >= BATCH {
                    on.parent.commit()?;
                    flushed = moved;
                }
            }
            on.child.commit()?;
            on.parent.commit()?;
            if tracker.bytes_left() <= SHORT {
                meter.report()?;
                if let Some((last, retired)) = self.switch_tip(on, copy, tracker, merged)? {
                    // Too late to stop.
                    _ = meter.notify();
                    return Ok((moved + last, retired));
                }
            }
            // Only writes that fail leave something for another round.
            let over = round.saturating_sub(ROUNDS);
            tracker.slow_down((SLOWER * over).min(SLOWEST));
            meter.report()?;
        }
        unreachable!("the loop ends only by returning")
    }

    /// Blocks writers, moves the rest and lets them continue in the parent; `None` if too much is left.
    fn switch_tip(
        &self,
        on: &Handles,
        copy: &LayerCopy<'_>,
        tracker: &ChangeTracker,
        merged: &mut Merged,
    ) -> Result<Option<(u64, Retired)>> {
        on.child.freeze_if(|| {
            tracker.check()?;
            if tracker.bytes_left() > SHORT {
                return Ok(None);
            }
            let mut moved = 0;
            while let Some(run) = tracker.next_marked() {
                moved += copy.copy_range(run)?;
            }
            complete(&on.parent)?;
            // The child accepts the parent's present identity: later writes need a new one.
            on.parent.hand_out_frozen_identity()?;
            // Before anything is written to the parent alone.
            self.keep_name(on, merged)?;
            Ok(Some((moved, self.op.take_out(self.layer, &on.parent))))
        })
    }

    /// The remaining steps once the parent is complete.
    fn finish(&self, on: &Handles, merged: &mut Merged) -> Result<()> {
        let is_switched = !self.op.images().iter().any(|image| image.id() == on.child.core().id());
        if !is_switched {
            self.keep_name(on, merged)?;
        }
        let spent =
            self.state(MergeState::Spent, on.parent.core().data_write_guid(), on.parent.core());
        let marked = on.child.edit_metadata(&[ItemEdit::merge_mark(Some(&spent))]);
        let rest = marked.and_then(|()| self.relink_above(on));
        if !is_switched {
            rest?;
            let retired = self.op.take_out(self.layer, &on.parent);
            self.wait_for_readers(retired, on, merged);
        } else if let Err(error) = rest {
            // The chain continues without the child, marked or not.
            let message = format!("was not marked as merged: {error}");
            merged.warnings.push(warning_of(on.child.core(), "merge.not-marked", message));
        }
        on.child.close().ok();
        let child_path = path_of(on.child.core())?.to_owned();
        match remove(self.op, on.child.core()) {
            Ok(Removed { is_gone: true, warning }) => {
                merged.warnings.extend(warning);
                merged.removed.push(child_path);
                merged.warnings.extend(dangling_link(self.op, on.child.core()));
            }
            Ok(Removed { warning, .. }) => {
                let what = "; all its data is in the parent";
                merged.warnings.extend(warning.map(|warning| warning.and(what)));
            }
            Err(error) => {
                let error = error.text_about(on.child.core().name());
                let message = format!("{error}: all its data is in the parent");
                merged.warnings.push(warning_of(on.child.core(), "merge.not-removed", message));
            }
        }
        Ok(())
    }

    /// Gives the new tip the name of the old one, if that was requested. The parent is complete and was not written to
    /// since: the path leads to the whole disk before and after. From here on the child's file has the name of its
    /// parent.
    fn keep_name(&self, on: &Handles, merged: &mut Merged) -> Result<()> {
        let (child, parent) = (on.child.core(), on.parent.core());
        if self.layer == 0
            && request::is_name_due(child, parent)
            && !exchange_names(self.op, child, parent)?
        {
            merged.warnings.push(request::unsupported(parent));
        }
        Ok(())
    }

    /// Waits for readers that still see the chain with the child, which has been taken out of it. Its file
    /// stays valid for those who take longer.
    fn wait_for_readers(&self, retired: Retired, on: &Handles, merged: &mut Merged) {
        if let Err(error) = self.op.drained(retired, &mut || ControlFlow::Continue(())) {
            let message = format!("was merged, but is still being read: {error}");
            merged.warnings.push(warning_of(on.child.core(), "merge.still-read", message));
        }
    }

    fn relink_above(&self, on: &Handles) -> Result<()> {
        let Some(above) = &on.above else { return Ok(()) };
        let host = self.op.host().as_ref();
        let (parent, file) =
            (path_of(on.parent.core())?, file_id(on.parent.core().bare_storage().as_ref())?);
        let paths = LinkPaths::To { host, parent, file };
        above.relink(on.parent.core().data_write_guid(), None, paths)
    }

    fn state(&self, state: MergeState, other: Uuid, of: &Core) -> MergeMark {
        self.merge.mark(state, other, of)
    }

    /// Returns the files to readers.
    fn settle(&self, on: Handles, is_done: bool, merged: &mut Merged) {
        // A new tip stays open for writing, even after a later failure.
        let stays_open = on.is_live.then(|| self.op.images()[0].id());
        for writer in
            [Some(on.parent), on.above, (!is_done).then_some(on.child)].into_iter().flatten()
        {
            let image = writer.core();
            if !on.opened.contains(&image.id()) || Some(image.id()) == stays_open {
                continue;
            }
            if let Err(error) = self.op.settle(&writer) {
                let message = format!("was not closed: {error}");
                merged.warnings.push(warning_of(image, "merge.not-closed", message));
            }
        }
    }
}

fn warning_of(image: &Core, code: &'static str, message: String) -> Warning {
    Warning::new(code, image.name(), message).of_layer(image.id())
}

/// Moves what the child holds, makes most of it durable meanwhile, and has the host let go of the child's bytes: at the
/// end its file is removed, which takes long while they are in memory.
fn pass_durably(
    on: &Handles,
    copy: &LayerCopy<'_>,
    size: u64,
    meter: &mut Meter<'_>,
) -> Result<u64> {
    let (parent, read) = (&on.parent, copy.read);
    let child = on.child.core().bare_storage();
    let let_go = |places: Vec<Range<u64>>| places.into_iter().for_each(|place| child.forget(place));
    let flush = || {
        let places = read.take();
        parent.commit()?;
        let_go(places);
        Ok(())
    };
    let moved =
        flush_behind(&flush, |behind| copy.pass(0..size, meter, &mut |bytes| behind.wrote(bytes)))?;
    // The rest is let go while what was moved last becomes durable.
    let rest = read.take();
    std::thread::scope(|scope| {
        // Where there can be no other thread, it stays in memory.
        _ = std::thread::Builder::new().spawn_scoped(scope, || let_go(rest));
        parent.commit()
    })?;
    Ok(moved)
}

/// Durably completes the parent.
fn complete(parent: &Writer) -> Result<()> {
    // The mark is removed last: the log entry that removes it may be the first of several.
    parent.commit()?;
    parent.edit_metadata(&[ItemEdit::merge_mark(None)])
}
