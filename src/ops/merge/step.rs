//! One layer merged into its parent.
//!
//! The order of what becomes durable is what keeps the chain readable at any moment, \[MS-VHDX\] 2.6.2.6.3:
//!
//! 1. the child takes the parent's next identity for a second one that it accepts, and the mark of a merge;
//! 2. the parent takes that identity and the mark that it is incomplete;
//! 3. the parent gets all that the child holds, while the child lies over it;
//! 4. the parent loses its mark, in one step with the last of the data;
//! 5. the child is marked as spent;
//! 6. the layer above, if there is one, is linked to the parent;
//! 7. the child's name is removed.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::copy::{BATCH, Copy, Meter};
use super::{Merge, Merged};
use crate::chain::{Operation, Retired, file_id, path_of};
use crate::disk::{Disk, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, LinkPaths, MergeMark, MergeState, Moved, Warning};
use crate::mutants::planted;
use crate::ops::child::{Removed, dangling, remove};
use crate::types::BlockIndex;
use crate::write::{Copier, Follow, ItemEdit};

/// So few bytes may be left for the writers to wait for.
const SHORT: u64 = 4 << 20;
/// Rounds after which writers are slowed down, by how much more in each, and up to how much.
const ROUNDS: u32 = 4;
const SLOWER: Duration = Duration::from_millis(10);
const SLOWEST: Duration = Duration::from_millis(100);

/// A layer that goes into the next one below.
pub(super) struct Step<'a> {
    pub(super) op: &'a Operation<'a>,
    pub(super) merge: &'a Merge,
    pub(super) layer: usize,
    /// Bytes that are made durable at once before their space is given back, or a block where that is larger.
    pub(super) batch: u64,
}

/// The files of a step, open for writing.
struct Handles {
    child: Arc<Core>,
    parent: Arc<Core>,
    above: Option<Arc<Core>>,
    /// Whether somebody may be writing to the child, which then is the tip.
    is_live: bool,
    /// Those that were opened here.
    opened: Vec<LayerId>,
}

/// The changes of a child are followed for as long as this is there.
struct Following<'a>(&'a Core);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.stop_following();
    }
}

impl Step<'_> {
    pub(super) fn run(&self, meter: &mut Meter<'_>, merged: &mut Merged) -> Result<()> {
        self.op.let_vanish(self.layer + 1)?;
        let mut handles = self.open(meter)?;
        let done = self.merge(&mut handles, meter, merged);
        self.settle(handles, done.is_ok(), merged);
        done
    }

    fn open(&self, meter: &mut Meter<'_>) -> Result<Handles> {
        let images = self.op.images();
        let is_live = self.layer == 0 && images[0].takes_writes();
        let above = self.layer.checked_sub(1);
        let is_above_live = above == Some(0) && images[0].takes_writes();
        let mut layers = vec![self.layer + 1];
        layers.extend((!is_live).then_some(self.layer));
        layers.extend(above.filter(|_| !is_above_live));
        drop(images);
        self.op.take(&layers, &mut || meter.tell())?;
        let images = self.op.images();
        Ok(Handles {
            child: Arc::clone(&images[self.layer]),
            parent: Arc::clone(&images[self.layer + 1]),
            above: above.map(|layer| Arc::clone(&images[layer])),
            is_live,
            opened: layers.into_iter().map(|layer| images[layer].id()).collect(),
        })
    }

    fn merge(&self, on: &mut Handles, meter: &mut Meter<'_>, merged: &mut Merged) -> Result<()> {
        let state = on.child.merge_mark().map(|mark| mark.state);
        if state == Some(MergeState::Spent) {
            // All is in the parent, and only the names are left to be put right.
            return self.finish(on, merged);
        }
        self.look_again()?;
        if planted("grandchild-relinked-early") {
            self.relink_above(on)?;
        }
        let next = Uuid::new_v4();
        self.mark(on, next)?;
        self.fit(on, meter)?;
        // No place in the parent's file is given to others while readers may know it.
        let keep = self.op.keep(&on.parent);
        let done = self.copy(on, meter, merged).and_then(|()| self.finish(on, merged));
        keep.done(done.is_ok());
        done
    }

    /// Refuses layers that got another child before they were locked.
    fn look_again(&self) -> Result<()> {
        if planted("children-not-looked-for-again") {
            return Ok(());
        }
        let images = self.op.images();
        let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
        let of_step = &images[self.layer..=self.layer + 1];
        of_step
            .iter()
            .try_for_each(|image| self.merge.refuse_others(self.op, image, &known).map(drop))
    }

    /// Has both files say what is under way, each before anything of it is.
    fn mark(&self, on: &Handles, next: Uuid) -> Result<()> {
        let (child, parent) = (&on.child, &on.parent);
        let tell = |state, other, of| ItemEdit::merge_mark(Some(&self.state(state, other, of)));
        let before = child.in_parent();
        let swapped = planted("identity-order-swapped");
        if swapped {
            parent.set_next_identity(next)?;
            parent.begin_with_next_identity()?;
        }
        let link = child.locator_edit(parent.data_write_guid(), Some(next), LinkPaths::Keep)?;
        let moved = Moved { end: before, child: child.data_write_guid() };
        let mark = MergeMark {
            moved: (before > 0).then_some(moved),
            ..self.state(MergeState::Merging, next, parent)
        };
        let mark = ItemEdit::merge_mark(Some(&mark));
        match planted("merge-mark-left-out") {
            true => child.edit_metadata(&[link])?,
            false => child.edit_metadata(&[link, mark])?,
        }
        if !swapped {
            parent.set_next_identity(next)?;
            parent.begin_with_next_identity()?;
        }
        let mut edits = child.disk_edits(parent)?;
        edits.push(tell(MergeState::Target, child.data_write_guid(), child));
        parent.edit_metadata(&edits)
    }

    /// Makes the parent's disk as large as the child's.
    fn fit(&self, on: &mut Handles, meter: &mut Meter<'_>) -> Result<()> {
        let size = on.child.geometry().size;
        if size == on.parent.geometry().size {
            return Ok(());
        }
        on.parent.resize(size)?;
        let old = on.parent.id();
        let parent = Arc::new(on.parent.again()?);
        on.opened.iter_mut().filter(|id| **id == old).for_each(|id| *id = parent.id());
        let retired = self.op.resized(self.layer + 1, &parent);
        on.parent = parent;
        self.op.drained(retired, &mut || meter.tell())
    }

    fn copy(&self, on: &Handles, meter: &mut Meter<'_>, merged: &mut Merged) -> Result<()> {
        let follow = on.is_live.then(|| on.child.follow_changes()).transpose()?;
        let following = on.is_live.then(|| Following(&on.child));
        let copier = Copier::new(self.merge.share);
        let passed = Cell::new(0);
        let copy = Copy { from: &on.child, to: &on.parent, copier, follow: follow.clone(), passed };
        let size = on.child.geometry().size;
        let copied = (|| {
            let moved = match self.merge.low_space {
                true => self.copy_and_give_back(on, &copy, meter)?,
                false => copy.pass(0..size, meter)?,
            };
            let Some(follow) = &follow else {
                complete(&on.parent)?;
                return Ok((moved, None));
            };
            let (rest, retired) = self.converge(on, &copy, follow, meter)?;
            Ok((moved + rest, Some(retired)))
        })();
        let copied = copied.map_err(|error| self.stopped(error, on, &copy));
        drop(following);
        let (moved, retired) = copied?;
        if let Some(retired) = retired {
            self.wait_for_readers(retired, on, merged);
        }
        merged.moved += moved;
        merged.mirrored += follow.map_or(0, |follow| follow.mirrored());
        merged.handed_over += copy.copier.shared();
        Ok(())
    }

    /// Leaves word of how far the copy came that ends with this error, and says so where it is the child's file that
    /// lost bytes.
    fn stopped(&self, error: Error, on: &Handles, copy: &Copy<'_>) -> Error {
        let is_cancelled = error.kind() == ErrorKind::Cancelled;
        let lost = if is_cancelled { None } else { on.child.lost_meanwhile().unwrap_or_default() };
        if is_cancelled || lost.is_some() {
            // It serves who has to do without bytes of the child, and nothing else hangs on it.
            drop(self.note_moved(on, copy));
        }
        let Some(lost) = lost else { return error };
        let message = format!("the file lost bytes while it was merged: {}", lost.message());
        Error::new(ErrorKind::Damaged, "merge.child-lost", message)
            .in_file(on.child.name())
            .with_section("2.5.1")
            .with_found(error)
            .with_expected("the loss to be accepted, and the merge to be resumed then")
    }

    /// Notes in the child's mark how far the parent has all of it.
    fn note_moved(&self, on: &Handles, copy: &Copy<'_>) -> Result<()> {
        on.parent.flush()?;
        // Who writes to the child from here on gives it another identity, and who did before has left a mark.
        let child = on.child.hand_out_identity()?;
        let changed = copy.follow.as_ref().filter(|_| !planted("moved-past-newer-writes"));
        let changed = changed.and_then(|follow| follow.first());
        let end = copy.passed.get().min(changed.unwrap_or(u64::MAX)).max(on.child.in_parent());
        let Some(mark) = on.child.merge_mark().filter(|_| end > 0) else { return Ok(()) };
        let mark = MergeMark { moved: Some(Moved { end, child }), ..mark };
        on.child.edit_metadata(&[ItemEdit::merge_mark(Some(&mark))])
    }

    /// Moves a batch after the other, and gives back its space in the child once it is durable in the parent.
    fn copy_and_give_back(
        &self,
        on: &Handles,
        copy: &Copy<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<u64> {
        let size = on.child.geometry().size;
        let block = u64::from(on.child.block_size());
        let step = self.batch.max(block);
        let (mut moved, mut at) = (0, 0);
        while let Some(found) = copy.skip(at..size)? {
            at = at.max(found / step * step);
            let end = size.min((at / step + 1) * step);
            let now = copy.pass(at..end, meter)?;
            moved += now;
            if now > 0 {
                if !planted("given-back-before-durable") {
                    on.parent.flush()?;
                }
                let blocks: Vec<_> = (at / block..end.div_ceil(block)).map(BlockIndex).collect();
                // The places stay as they are until nobody reads or knows them any more.
                let keep = self.op.keep(&on.child);
                let released = on.child.release_blocks(&blocks).and_then(|_| {
                    self.op.drained(self.op.forget_places(self.layer), &mut || meter.tell())
                });
                keep.done(released.is_ok());
                released?;
                on.child.release_blocks(&[])?;
            }
            at = end;
        }
        Ok(moved)
    }

    /// Has the parent become what the child is while others write, and be written to in its place.
    ///
    /// From here on whoever writes to the child writes to the parent too. What was written before that is moved, of
    /// which there is less and less.
    fn converge(
        &self,
        on: &Handles,
        copy: &Copy<'_>,
        follow: &Follow,
        meter: &mut Meter<'_>,
    ) -> Result<(u64, Retired)> {
        // Who needs space in the parent waits for a flush: this one takes the longest.
        on.parent.flush()?;
        // What is taken from the marks is not noted any more.
        copy.passed.set(0);
        on.child.mirror_changes(follow, &on.parent)?;
        let (mut moved, mut flushed) = (0, 0);
        for round in 1_u32.. {
            while let Some(run) = follow.next().filter(|_| !planted("last-writes-not-merged")) {
                moved += copy.held(run, meter)?;
                follow.check()?;
                if moved - flushed >= BATCH {
                    on.parent.flush()?;
                    flushed = moved;
                }
            }
            on.child.flush()?;
            on.parent.flush()?;
            if follow.to_copy() <= SHORT {
                meter.report()?;
                if let Some((last, retired)) = self.switch_tip(on, copy, follow)? {
                    // That is done, whatever is said to it.
                    _ = meter.tell();
                    return Ok((moved + last, retired));
                }
            }
            // Only changes that fail leave something for another round.
            let over = round.saturating_sub(ROUNDS);
            follow.slow_down((SLOWER * over).min(SLOWEST));
            meter.report()?;
        }
        unreachable!("the rounds do not end by themselves")
    }

    /// Keeps the writers waiting for the rest, and has them go on in the parent; `None` if that is too much.
    fn switch_tip(
        &self,
        on: &Handles,
        copy: &Copy<'_>,
        follow: &Follow,
    ) -> Result<Option<(u64, Retired)>> {
        on.child.freeze_if(|| {
            follow.check()?;
            if follow.to_copy() > SHORT {
                return Ok(None);
            }
            let mut moved = 0;
            while let Some(run) = follow.next().filter(|_| !planted("last-writes-not-merged")) {
                moved += copy.run(run)?;
            }
            complete(&on.parent)?;
            // The child accepts this identity: what is written from now on needs another.
            on.parent.hand_out_frozen_identity()?;
            Ok(Some((moved, self.op.take_out(self.layer))))
        })
    }

    /// What is left when the parent has everything.
    fn finish(&self, on: &Handles, merged: &mut Merged) -> Result<()> {
        let child_path = path_of(&on.child)?.to_owned();
        if planted("removed-before-relink") {
            remove(self.op, &on.child)?;
        }
        let spent = self.state(MergeState::Spent, on.parent.data_write_guid(), &on.parent);
        let is_switched = !self.op.images().iter().any(|image| image.id() == on.child.id());
        let rest = (|| {
            if !planted("spent-mark-left-out") {
                on.child.edit_metadata(&[ItemEdit::merge_mark(Some(&spent))])?;
            }
            if !planted("grandchild-relinked-late") {
                self.relink_above(on)?;
            }
            Ok(())
        })();
        if !is_switched {
            rest?;
            let retired = self.op.take_out(self.layer);
            self.wait_for_readers(retired, on, merged);
        } else if let Err(error) = rest {
            // The chain goes on without it all the same.
            let message = format!("{}: was not marked as merged: {error}", on.child.name());
            merged.warnings.push(Warning { code: "merge.not-marked", message });
        }
        on.child.close().ok();
        match remove(self.op, &on.child) {
            Ok(Removed { is_gone: true, warning }) => {
                merged.warnings.extend(warning);
                merged.removed.push(child_path);
                merged.warnings.extend(dangling(self.op, on.child.via()));
            }
            Ok(Removed { .. }) if planted("removed-before-relink") => {}
            Ok(Removed { warning, .. }) => {
                merged.warnings.extend(warning.map(|Warning { code, message }| {
                    let message = format!("{message}; all that it held is in the parent");
                    Warning { code, message }
                }));
            }
            Err(error) => {
                let message = format!("{error}: all it held is in the parent");
                merged.warnings.push(Warning { code: "merge.not-removed", message });
            }
        }
        if planted("grandchild-relinked-late") {
            self.relink_above(on)?;
        }
        Ok(())
    }

    /// Waits for those who still look at the chain as it was with the child, which is out of it by now. Its file
    /// stays right for who goes on for long.
    fn wait_for_readers(&self, retired: Retired, on: &Handles, merged: &mut Merged) {
        if let Err(error) = self.op.drained(retired, &mut || ControlFlow::Continue(())) {
            let message = format!("{}: was merged all the same: {error}", on.child.name());
            merged.warnings.push(Warning { code: "merge.still-read", message });
        }
    }

    fn relink_above(&self, on: &Handles) -> Result<()> {
        let Some(above) = &on.above else { return Ok(()) };
        let host = self.op.host().as_ref();
        let (parent, file) = (path_of(&on.parent)?, file_id(on.parent.bare_storage().as_ref())?);
        let paths = LinkPaths::To { host, parent, file };
        above.relink(on.parent.data_write_guid(), None, paths)
    }

    fn state(&self, state: MergeState, other: Uuid, of: &Core) -> MergeMark {
        self.merge.mark(state, other, of)
    }

    /// Gives the files back to those who read them.
    fn settle(&self, on: Handles, is_done: bool, merged: &mut Merged) {
        // Once it is the tip it takes writes, whatever failed after that.
        let stays_open = on.is_live.then(|| self.op.images()[0].id());
        for image in
            [Some(on.parent), on.above, (!is_done).then_some(on.child)].into_iter().flatten()
        {
            if !on.opened.contains(&image.id()) || Some(image.id()) == stays_open {
                continue;
            }
            if let Err(error) = self.op.settle(&image) {
                let message = format!("{}: was not closed: {error}", image.name());
                merged.warnings.push(Warning { code: "merge.not-closed", message });
            }
        }
    }
}

/// Has the parent durably be what the child was.
fn complete(parent: &Core) -> Result<()> {
    // The mark goes when all else is durable: an entry that holds it may be the first of several.
    if !planted("target-mark-removed-early") {
        parent.flush()?;
    }
    parent.edit_metadata(&[ItemEdit::merge_mark(None)])
}
