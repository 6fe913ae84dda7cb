//! A layer taken out of a chain, its data kept in its parent.

mod copy;
mod foresee;
mod states;
mod step;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::child::place_of;
use super::pace::Pace;
use super::{CallerPanic, Forecast, Progress};
use crate::chain::{DiffChain, Operation, file_id, path_of};
use crate::disk::{Disk, LayerId};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, LinkPaths, MergeMark, MergeState, Warning};
use crate::mutants::planted;
use crate::write::{ItemEdit, OTHER_NAMES};

use copy::Meter;
use foresee::Patience;
use step::Step;

/// Merges a layer into its parent, or several into one ancestor: the points in between vanish, the disk reads the
/// same bytes as before, and the files of the merged layers are removed.
///
/// The chain may be in use, the tip that is merged included. Until the parent has everything, durably, the
/// child's data lies over it, so that whatever happens the chain reads right: after a crash or a failure it
/// opens, with a warning, and [`resume`](Self::resume) completes the merge. Marks in both files tell of it;
/// a child whose merge is complete is never opened over its parent again.
///
/// # A tip that is written to
///
/// A merge ends however fast its tip is written to, and whatever its [pace](Self::pace):
///
/// - First all that the tip holds is moved. What is written behind that is marked, by 64 KiB; the marks take 2 MiB of
///   memory at the most. That does for changes all over 256 GiB; beyond it all marks are of twice as many bytes each
///   time, up to 16 MiB for changes all over 64 TiB.
/// - From then on each write goes to the tip and then to the parent as well, and there are no new marks. What is marked
///   is moved at the same pace, 1 MiB at a time; a write waits while its own bytes are moved. A write to the parent
///   that fails is not the writer's trouble: it ends the merge, which can be resumed.
/// - At the end writers are kept waiting once, for as long as up to 4 MiB that may be left are moved and the files are
///   flushed up to nine times: three times the tip's, six times the parent's, and as a rule twice and four times. Both
///   are flushed right before.
///
/// Only writes that fail, of which a part may have been made, leave something more to be moved. After four such rounds
/// each write is made to wait 10 ms longer than in the round before, up to 100 ms, rather than to be kept out.
///
/// What is moved and what [writers brought to the parent](Merged::mirrored) is no more together than what the tip held
/// and what was written meanwhile, each write in whole marks.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use avhdx::OpenOptions;
/// use avhdx::ops::Merge;
///
/// let chain = OpenOptions::new().writable(true).open("web_3C4D.avhdx")?;
/// let child = chain.layers()[1].id;
/// let merged = Merge::new(child).run(&chain, &mut |_| ControlFlow::Continue(()))?;
/// println!("{} bytes are in the parent now", merged.moved);
/// # Ok::<(), avhdx::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Merge {
    child: LayerId,
    into: Option<LayerId>,
    resumes: bool,
    no_other_children: bool,
    folders: Vec<PathBuf>,
    low_space: bool,
    shrink: bool,
    share: bool,
    pace: Pace,
}

/// What a merge did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Merged {
    /// Where the tip lies now, when it was the tip that was merged. `None` also where its file was renamed or moved by
    /// somebody else meanwhile and is not found in its folder: the warning `op.renamed` says so.
    pub tip: Option<PathBuf>,
    /// The files that were removed.
    pub removed: Vec<PathBuf>,
    /// Bytes of the disk that were moved into a parent, zeros not counted.
    pub moved: u64,
    /// Bytes that others wrote to the tip meanwhile and to its parent at once, zeros not counted.
    pub mirrored: u64,
    /// Of those moved, the ones that the file system was asked to share or copy by itself.
    pub handed_over: u64,
    /// Bytes by which the parent's disk got shorter at its end.
    pub cut: u64,
    /// What could not be brought to its end, and does no harm to the chain.
    pub warnings: Vec<Warning>,
}

impl Merge {
    /// A merge of the layer `child` into its parent.
    pub fn new(child: LayerId) -> Self {
        Self {
            child,
            into: None,
            resumes: false,
            no_other_children: false,
            folders: Vec::new(),
            low_space: false,
            shrink: false,
            share: true,
            pace: Pace::new(),
        }
    }

    /// The rest of a merge of the layer `child` into its parent that was interrupted.
    pub fn resume(child: LayerId) -> Self {
        Self { resumes: true, ..Self::new(child) }
    }

    /// The layer that `child` and all those between are merged into, instead of the next below.
    pub fn into_layer(mut self, ancestor: LayerId) -> Self {
        self.into = Some(ancestor);
        self
    }

    /// The caller's word that the layers have no other children, where that cannot be known because a file or a
    /// folder cannot be looked at.
    pub fn no_other_children(mut self, yes: bool) -> Self {
        self.no_other_children = yes;
        self
    }

    /// A folder to look for other children in, beside those of the layers. Each call adds one.
    pub fn children_in(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Whether the child's blocks give up their space as soon as they are durable in the parent. The chain reads
    /// right all the time, but the child holds less and less: there is no way but to complete the merge. It goes by
    /// 64 MiB, or by as little as a block of the child where there is not the space for that.
    pub fn low_space(mut self, yes: bool) -> Self {
        self.low_space = yes;
        self
    }

    /// The consent to lose data where a layer's disk is smaller than that of the layer below: that gets as small,
    /// whatever it holds behind the end. Where it holds nothing there, nobody is asked.
    pub fn shrink(mut self, yes: bool) -> Self {
        self.shrink = yes;
        self
    }

    /// Whether the host is asked to move bytes from file to file by itself, sharing them where its file system
    /// can; so it is unless told otherwise.
    pub fn share(mut self, yes: bool) -> Self {
        self.share = yes;
        self
    }

    /// How fast it may go, to be changed from other threads too.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// What [`run`](Self::run) is going to do, at the pace that is set now and with nothing written meanwhile. Nothing is
    /// changed.
    ///
    /// # Errors
    /// As those of `run` that are found before anything is done, but for those of [`Forecast::check`].
    pub fn forecast(&self, chain: &DiffChain) -> Result<Forecast> {
        let op = chain.operate()?;
        let steps = self.steps(&op)?;
        self.check(&op, &steps)?;
        let mut go_on = || ControlFlow::Continue(());
        Ok(foresee::forecast(&op, &steps, self, &mut Patience::new(&mut go_on))?.0)
    }

    /// Merges, on the chain itself and all its clones. The lowest of several layers goes first, each as a whole.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::InvalidInput`] when the layers are not in the chain or not above
    /// each other; [`ErrorKind::HasChildren`] when one of them has another child, which is named, or may have
    /// one where nobody can look; [`ErrorKind::WouldLose`] without the [consent](Self::shrink) where data would be cut
    /// off; [`ErrorKind::InUse`] when somebody else has a file open, or a view of a point
    /// that is to vanish, or still reads one of the layers as the chain was before, by a plan for instance; [`ErrorKind::NoSpace`], by how much; [`ErrorKind::ReadOnly`] and
    /// [`ErrorKind::Io`] when the host does not let the files be written.
    ///
    /// Later: [`ErrorKind::Io`] when the host fails, and [`ErrorKind::Cancelled`]. The chain reads right, and the
    /// merge is to be [resumed](Self::resume). [`ErrorKind::Damaged`] with the code `merge.child-lost` when the child's file
    /// lost bytes meanwhile: what is gone cannot be read, and the merge can be resumed when the loss is
    /// [accepted](super::AcceptLoss).
    pub fn run(
        self,
        chain: &DiffChain,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Merged> {
        let mut panic = CallerPanic::default();
        let merged = self.merge(chain, &mut |progress| panic.catch(|| on(progress)));
        panic.go_on();
        merged
    }

    fn merge(
        self,
        chain: &DiffChain,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Merged> {
        let op = chain.operate()?;
        let steps = self.steps(&op)?;
        let warnings = self.check(&op, &steps)?;
        // Nothing is known of how much it is yet.
        let mut ask = || on(Progress { done: 0, total: 0 });
        let mut patience = Patience::new(&mut ask);
        let (forecast, batch) = foresee::forecast(&op, &steps, &self, &mut patience)?;
        forecast.check()?;
        let mut merged = Merged { warnings, cut: forecast.cut, ..Merged::default() };
        let child = steps[steps.len() - 1];
        let mut meter = Meter::new(&self.pace, forecast.read, on);
        meter.report()?;
        for layer in steps {
            Step { op: &op, merge: &self, layer, batch }.run(&mut meter, &mut merged)?;
        }
        // By its name others go on with it, or the layer above does.
        let parent = &op.images()[child];
        let place = place_of(op.host().as_ref(), parent, &mut merged.warnings);
        merged.tip = place.filter(|_| child == 0);
        Ok(merged)
    }

    /// The layers that go into the next below them, in order. What is above them keeps its place meanwhile.
    fn steps(&self, op: &Operation<'_>) -> Result<Vec<usize>> {
        let child = op.find(self.child)?;
        let images = op.images();
        let parent = match self.into {
            Some(ancestor) => op.find(ancestor)?,
            None => child + 1,
        };
        if parent >= images.len() || parent <= child {
            let message = "a layer is merged into one below it";
            return Err(Error::new(ErrorKind::InvalidInput, "merge.no-parent", message)
                .in_file(images[child].name())
                .with_found(match images.get(parent) {
                    Some(other) => other.name(),
                    None => "the base of the chain, which has no parent",
                })
                .with_expected("an ancestor of it"));
        }
        Ok((child..parent).rev().collect())
    }

    /// Refuses what must not be merged, or not while others depend on it.
    fn check(&self, op: &Operation<'_>, steps: &[usize]) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        let images = op.images();
        let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
        let lowest = steps[0] + 1;
        for layer in steps.iter().copied().chain([lowest]) {
            path_of(&images[layer])?;
            // What is below a spent layer has it all already, and may have children again: it does not change.
            let mark = images.get(layer.wrapping_sub(1)).and_then(|image| image.merge_mark());
            let is_below_spent = mark.is_some_and(|mark| mark.state == MergeState::Spent);
            if layer != lowest || !is_below_spent {
                warnings.extend(self.refuse_others(op, &images[layer], &known)?);
            }
            if layer > steps[steps.len() - 1] {
                op.check_unseen(layer)?;
            }
        }
        refuse_unfinished(&images, steps)?;
        // Said before a byte of any of them changes, rather than on the way.
        let highest = steps[steps.len() - 1].saturating_sub(1);
        for image in &images[highest..=lowest] {
            // What a spent layer lost is in its parent.
            if !is_spent(image) {
                image.check_claims()?;
            }
        }
        self.check_states(&images, steps)?;
        let file = file_id(images[lowest].bare_storage().as_ref())?;
        let paths =
            LinkPaths::To { host: op.host().as_ref(), parent: path_of(&images[lowest])?, file };
        self.check_edits(&images, steps, paths)?;
        for layer in steps {
            let state = images[*layer].merge_mark().map(|mark| mark.state);
            let is_under_way = matches!(state, Some(MergeState::Merging | MergeState::Spent));
            if self.resumes && !is_under_way {
                let message = "no merge of this layer is under way";
                return Err(Error::new(ErrorKind::InvalidInput, "merge.not-begun", message)
                    .in_file(images[*layer].name())
                    .with_found("a layer without the mark of one")
                    .with_expected("one whose merge was interrupted"));
            }
        }
        Ok(warnings)
    }

    /// Refuses layers that something is wrong with that would stop a merge for good, once it has begun.
    fn check_states(&self, images: &[Arc<Core>], steps: &[usize]) -> Result<()> {
        if planted("states-not-looked-at") {
            return Ok(());
        }
        let lowest = steps[0] + 1;
        let mut size = images[lowest].geometry().size;
        for layer in steps.iter().copied().filter(|layer| !is_spent(&images[*layer])) {
            images[layer].check_states()?;
            let own = images[layer].geometry().size;
            if own != size {
                images[lowest].check_size(own)?;
            }
            size = own;
        }
        // What has begun may come to its end all the same: the child need not touch what is wrong with its parent.
        let has_begun = |layer: &usize| images[*layer].merge_mark().is_some();
        if !steps.iter().all(has_begun) {
            images[lowest].check_states()?;
            // Also what is written meanwhile may need one.
            images[lowest].check_bitmaps_fit()?;
        }
        Ok(())
    }

    /// Refuses layers whose metadata, or whose log, has no room for what a merge says there on its way.
    fn check_edits(
        &self,
        images: &[Arc<Core>],
        steps: &[usize],
        paths: LinkPaths<'_>,
    ) -> Result<()> {
        if planted("room-for-marks-not-foreseen") {
            return Ok(());
        }
        let parent = &images[steps[0] + 1];
        let (old, next) = (parent.data_write_guid(), Uuid::new_v4());
        let mark = |state, of: &Core| ItemEdit::merge_mark(Some(&self.mark(state, next, of)));
        let mut of_parent = Vec::new();
        for (n, layer) in steps.iter().enumerate() {
            let child = &images[*layer];
            // Once what lies between is gone, it is linked to the parent.
            let mut of_child = Vec::new();
            let mut way = LinkPaths::Keep;
            if n > 0 {
                way = paths;
                of_child.push(vec![child.locator_edit(old, None, way)?]);
            }
            if !is_spent(child) {
                let link = child.locator_edit(old, Some(next), way)?;
                let noted = child.merge_mark().and_then(|mark| mark.moved);
                let mark_of_child =
                    MergeMark { moved: noted, ..self.mark(MergeState::Merging, next, parent) };
                of_child.push(vec![link, ItemEdit::merge_mark(Some(&mark_of_child))]);
                // What the layer below says of the disk, the parent says by then.
                let mut told = child.disk_edits(&images[layer + 1])?;
                told.push(mark(MergeState::Target, child));
                of_parent.extend([told, vec![ItemEdit::merge_mark(None)]]);
            }
            of_child.push(vec![mark(MergeState::Spent, parent)]);
            child.check_edits(&of_child)?;
        }
        parent.check_edits(&of_parent)?;
        match steps[steps.len() - 1].checked_sub(1).map(|above| &images[above]) {
            Some(above) => above.check_edits(&[vec![above.locator_edit(old, None, paths)?]]),
            None => Ok(()),
        }
    }

    /// What an image says of a merge that concerns it, with that of another one.
    fn mark(&self, state: MergeState, other: Uuid, of: &Core) -> MergeMark {
        let name = of.path().and_then(Path::file_name).unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        MergeMark { state, other, name, low_space: self.low_space, moved: None }
    }

    /// Refuses a layer that another than those of the chain has for its parent, or may have.
    fn refuse_others(
        &self,
        op: &Operation<'_>,
        image: &Core,
        known: &[&Core],
    ) -> Result<Vec<Warning>> {
        let seen = op.child_search(&self.folders).refuse_others(image, known)?;
        match seen.unread {
            Some(unread) if !self.no_other_children => Err(Error::new(
                ErrorKind::HasChildren,
                "merge.children-unknown",
                "the layer may have another child",
            )
            .in_file(image.name())
            .with_section("2.6.2.6.3")
            .with_found(unread)
            .with_expected(
                "files that can be looked at, or the word that there is no other child",
            )),
            _ => {
                let mut of_names = seen.warnings;
                of_names.retain(|warning| warning.code == OTHER_NAMES);
                Ok(of_names)
            }
        }
    }
}

fn is_spent(image: &Core) -> bool {
    image.merge_mark().is_some_and(|mark| mark.state == MergeState::Spent)
}

/// Refuses what would take away the marks of another merge that is to be resumed first: of one into a layer that
/// is to be merged itself, or of one of the layer that others are to be merged into.
fn refuse_unfinished(images: &[Arc<Core>], steps: &[usize]) -> Result<()> {
    let lowest = steps[0] + 1;
    for layer in steps.iter().copied().chain([lowest]) {
        let image = &images[layer];
        let Some(mark) = image.merge_mark() else { continue };
        if (mark.state == MergeState::Target) != (layer == lowest) {
            let message = "another merge that the layer has part in is to be resumed first";
            return Err(Error::new(ErrorKind::Unfinished, "merge.other", message)
                .in_file(image.name())
                .with_section("2.6.2.6.3")
                .with_found(format_args!("the mark of a merge with {}", mark.name))
                .with_expected("a layer without one"));
        }
    }
    Ok(())
}
