//! Merges a layer into its parent and removes it from the chain.

mod copy;
mod examined;
mod forecast;
mod parameters;
mod request;
mod states;
mod step;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::child::current_path;
use super::{CallerPanic, FileChangeKind, Forecast, Progress};
use crate::chain::{DiffChain, Operation, file_id, path_of};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Core, ImagePolicy, Lock, MergeMark, MergeState};
use crate::storage::{self, Access, Host, LockMode, LockOutcome, Removal, folder_of};
use crate::trace::operation;
use crate::warning::Warning;
use crate::write::ChildSearch;
use crate::write::check_edits;
use crate::write::check_size;
use crate::write::disk_edits;
use crate::write::locator_edit;
use crate::write::{ItemEdit, LinkPaths, OTHER_NAMES};

use copy::Meter;
use examined::{Checked, Examined};
use forecast::CancelCheck;
pub(super) use forecast::ParentModel;
use step::MergeStep;

pub use parameters::{Merge, Merged};

impl Merge<'_> {
    /// Predicts what [`run`](Self::run) will do at the present pace if nothing is written meanwhile, without changing
    /// anything.
    ///
    /// # Errors
    /// The errors of `run` that are found before anything is changed, except for those of [`Forecast::check`].
    pub fn forecast(&self, chain: &DiffChain) -> Result<Forecast> {
        let op = chain.operate()?;
        let steps = self.steps(&op)?;
        let mut examined = Examined::default();
        let Checked { spent, .. } = self.check(&op, &steps, &mut examined)?;
        check_allowed(&op, &steps, &mut examined)?;
        let mut go_on = || ControlFlow::Continue(());
        let mut forecast =
            forecast::forecast(&op, &steps, self, &mut CancelCheck::new(&mut go_on))?.0;
        for path in &spent {
            forecast.add(path, FileChangeKind::Removed);
        }
        Ok(forecast)
    }

    /// Merges the layers, in this chain and all its clones. Of several layers the lowest goes first, each as a whole.
    ///
    /// # Errors
    /// Before anything is changed: [`ErrorKind::InvalidInput`] if the layers are not in the chain or not above
    /// each other; [`ErrorKind::HasChildren`] if one of them has another child, which is named, or may have
    /// one that cannot be looked for; [`ErrorKind::WouldLose`] if data would be cut off without
    /// [consent](Self::shrink); [`ErrorKind::InUse`] if somebody else has one of the files open, or a view of a point
    /// that will disappear, or still reads a layer in an earlier state of the chain, for instance with a plan;
    /// [`ErrorKind::NoSpace`], with the number of missing bytes; [`ErrorKind::ReadOnly`] and
    /// [`ErrorKind::Io`] if the host does not allow the files to be written.
    ///
    /// Later: [`ErrorKind::Io`] if the host fails, and [`ErrorKind::Cancelled`]. The chain reads correctly, and the
    /// merge can be [resumed](Self::resume). [`ErrorKind::Damaged`] with the code `merge.child-lost` if the child's
    /// file lost bytes during the merge: they cannot be read, and the merge can be resumed once the loss is
    /// [accepted](super::AcceptLoss).
    pub fn run(self, chain: &DiffChain) -> Result<Merged> {
        let _span = operation("merge", chain.stack().tip().name());
        let mut panic = CallerPanic::default();
        let progress = self.progress.clone();
        let merged = self.merge(chain, &mut |now| panic.catch(|| progress.call(now)));
        panic.resume();
        merged
    }

    fn merge(
        self,
        chain: &DiffChain,
        on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Merged> {
        let op = chain.operate()?;
        let steps = self.steps(&op)?;
        let mut examined = Examined::default();
        let Checked { warnings, spent } = self.check(&op, &steps, &mut examined)?;
        // Found out after all data was moved, it would leave a file behind.
        steps.iter().try_for_each(|layer| examined.check_removable(&op, *layer))?;
        let is_rest = self.is_rest_of_another(&op, steps[steps.len() - 1]);
        // The total is not known yet.
        let mut ask = || on(Progress { done: 0, total: 0 });
        let mut cancel = CancelCheck::new(&mut ask);
        let (forecast, batch) = forecast::forecast(&op, &steps, &self, &mut cancel)?;
        forecast.check()?;
        let mut merged = Merged { warnings, cut: forecast.cut, ..Merged::default() };
        let child = steps[steps.len() - 1];
        let mut meter = Meter::new(&self.pace, forecast.read, on);
        meter.report()?;
        let mut left = Some(request::Left::leave(&op, &self, &steps, &mut meter, &mut merged)?);
        for path in spent {
            clear_spent(op.host().as_ref(), &path, &mut merged);
        }
        for layer in steps {
            let step = MergeStep { op: &op, merge: &self, layer, batch };
            let done = step.run(&mut meter, &mut merged);
            let left = left.take();
            if let Err(error) = done {
                // A merge that is refused when its files are locked must not happen later.
                let has_begun =
                    op.images().get(layer).is_some_and(|image| image.merge_mark().is_some());
                left.filter(|_| !has_begun).into_iter().for_each(|left| left.take_back(&op));
                return Err(error);
            }
        }
        // The new tip, or the layer above, refers to it by name.
        let parent = &op.images()[child];
        let place = current_path(op.host().as_ref(), parent, &mut merged.warnings);
        merged.tip = place.filter(|_| child == 0 && !is_rest);
        Ok(merged)
    }

    /// Whether each layer of the chain can be merged into the one below, from the tip down: what [`run`](Self::run) would
    /// refuse before it changes anything, except for a lack of space.
    pub(super) fn check_each(&self, chain: &DiffChain) -> Result<Vec<Result<()>>> {
        let op = chain.operate()?;
        let mut examined = Examined::default();
        let pairs = op.images().len().saturating_sub(1);
        let each = (0..pairs).map(|layer| {
            self.check(&op, &[layer], &mut examined)?;
            check_allowed(&op, &[layer], &mut examined)
        });
        Ok(each.collect())
    }

    /// The layers to merge into the next one below, in order: the lowest first, so that indexes stay valid.
    fn steps(&self, op: &Operation<'_>) -> Result<Vec<usize>> {
        let mut child = op.find(self.child)?;
        let images = op.images();
        let lowest = child;
        if self.resumes {
            // What was requested together is completed together.
            while child > 0 && images[child - 1].merge_request().is_some() {
                child -= 1;
            }
            return self.down_to(lowest + 1, child, &images);
        }
        let parent = match self.into {
            Some(ancestor) => op.find(ancestor)?,
            None => child + 1,
        };
        self.down_to(parent, child, &images)
    }

    fn down_to(&self, parent: usize, child: usize, images: &[Arc<Core>]) -> Result<Vec<usize>> {
        if parent >= images.len() || parent <= child {
            let message = "a layer can only be merged into one below it";
            return Err(Error::new(ErrorKind::InvalidInput, "merge.no-parent", message)
                .in_file(images[child].name())
                .with_found(match images.get(parent) {
                    Some(other) => other.name(),
                    None => "the base of the chain, which has no parent",
                })
                .with_expected("an ancestor of the layer"));
        }
        Ok((child..parent).rev().collect())
    }

    /// Refuses layers that must not be merged, or not while others depend on them.
    fn check(
        &self,
        op: &Operation<'_>,
        steps: &[usize],
        examined: &mut Examined,
    ) -> Result<Checked> {
        let mut checked = Checked::default();
        let images = op.images();
        let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
        let lowest = steps[0] + 1;
        for layer in steps.iter().copied().chain([lowest]) {
            path_of(&images[layer])?;
            // The parent of a spent layer is complete and does not change any more: it may have new children.
            let mark = images.get(layer.wrapping_sub(1)).and_then(|image| image.merge_mark());
            let is_below_spent = mark.is_some_and(|mark| mark.state == MergeState::Spent);
            if layer != lowest || !is_below_spent {
                let search = examined.search(|| op.child_search(&self.folders));
                let others = || self.refuse_others(search, &images[layer], &known);
                let seen = examined.others(layer, others)?;
                checked.warnings.extend(seen.warnings);
                checked.spent.extend(seen.spent);
            }
            if layer > steps[steps.len() - 1] {
                op.check_unseen(layer)?;
            }
        }
        refuse_unfinished(&images, steps)?;
        // Refused before anything changes rather than halfway.
        let highest = steps[steps.len() - 1].saturating_sub(1);
        for (layer, image) in images.iter().enumerate().take(lowest + 1).skip(highest) {
            // What a spent layer has lost is in its parent.
            if !is_spent(image) {
                examined.check_claims(op, layer)?;
            }
        }
        self.check_states(&images, steps)?;
        let file = file_id(images[lowest].bare_storage().as_ref())?;
        let paths =
            LinkPaths::To { host: op.host().as_ref(), parent: path_of(&images[lowest])?, file };
        self.check_edits(op.host().as_ref(), &images, steps, paths)?;
        for layer in steps {
            if self.resumes && !images[*layer].is_to_be_merged() {
                let message = "the layer has no merge to resume";
                return Err(Error::new(ErrorKind::InvalidInput, "merge.not-begun", message)
                    .in_file(images[*layer].name())
                    .with_found("a layer without a merge mark")
                    .with_expected("a layer whose merge was interrupted"));
            }
        }
        Ok(checked)
    }

    /// Whether the layer is all that is left of a finished merge in the middle of another chain: its file alone is still to
    /// be removed, and that chain's tip lies on the parent. Also where that cannot be excluded.
    fn is_rest_of_another(&self, op: &Operation<'_>, layer: usize) -> bool {
        let images = op.images();
        if layer > 0 || !is_spent(&images[layer]) {
            return false;
        }
        let known: Vec<&Core> = images.iter().map(|image| &**image).collect();
        let search = ChildSearch { ignores_spent: true, ..op.child_search(&self.folders) };
        let seen = search.refuse_others(&images[layer + 1], &known);
        !seen.is_ok_and(|seen| seen.unread.is_none())
    }

    /// Refuses layers with faults that would permanently block a merge once it has begun.
    fn check_states(&self, images: &[Arc<Core>], steps: &[usize]) -> Result<()> {
        let lowest = steps[0] + 1;
        let mut size = images[lowest].geometry().size;
        for layer in steps.iter().copied().filter(|layer| !is_spent(&images[*layer])) {
            images[layer].check_states()?;
            let own = images[layer].geometry().size;
            if own != size {
                check_size(&images[lowest], own)?;
            }
            size = own;
        }
        // A merge that has begun may still complete: the child may not touch the faulty part of its parent.
        let has_begun = |layer: &usize| images[*layer].merge_mark().is_some();
        if !steps.iter().all(has_begun) {
            images[lowest].check_states()?;
            // Writes during the merge may need a sector bitmap block too.
            images[lowest].check_bitmaps_fit()?;
        }
        Ok(())
    }

    /// Refuses layers whose metadata or log has no room for the edits that a merge makes.
    fn check_edits(
        &self,
        host: &dyn Host,
        images: &[Arc<Core>],
        steps: &[usize],
        paths: LinkPaths<'_>,
    ) -> Result<()> {
        let parent = &images[steps[0] + 1];
        let (old, next) = (parent.data_write_guid(), Uuid::new_v4());
        let mark = |state, of: &Core| ItemEdit::merge_mark(Some(&self.mark(state, next, of)));
        let mut of_parent = Vec::new();
        for (n, layer) in steps.iter().enumerate() {
            let child = &images[*layer];
            // Once the layers in between are gone, it is linked to the parent.
            let requested = request::of(self, steps, *layer, (host, images));
            let request = requested.map(|request| vec![ItemEdit::merge_request(Some(&request))]);
            let mut of_child = Vec::from_iter(request);
            let mut way = LinkPaths::Keep;
            if n > 0 {
                way = paths;
                of_child.push(vec![locator_edit(child, old, None, way)?]);
            }
            if !is_spent(child) {
                let link = locator_edit(child, old, Some(next), way)?;
                let noted = child.merge_mark().and_then(|mark| mark.moved);
                let mark_of_child =
                    MergeMark { moved: noted, ..self.mark(MergeState::Merging, next, parent) };
                of_child.push(vec![link, ItemEdit::merge_mark(Some(&mark_of_child))]);
                // By then the parent has the disk size of the layer below.
                let mut told = disk_edits(child, &images[layer + 1])?;
                told.push(mark(MergeState::Target, child));
                of_parent.extend([told, vec![ItemEdit::merge_mark(None)]]);
            }
            of_child.push(vec![mark(MergeState::Spent, parent)]);
            check_edits(child, &of_child)?;
        }
        check_edits(parent, &of_parent)?;
        match steps[steps.len() - 1].checked_sub(1).map(|above| &images[above]) {
            Some(above) => check_edits(above, &[vec![locator_edit(above, old, None, paths)?]]),
            None => Ok(()),
        }
    }

    /// Returns the merge mark of an image whose counterpart is `of`.
    fn mark(&self, state: MergeState, other: Uuid, of: &Core) -> MergeMark {
        let name = of.path().and_then(Path::file_name).unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        MergeMark { state, other, name, low_space: self.low_space, moved: None }
    }

    /// Refuses a layer that has, or may have, children outside the chain.
    fn refuse_others(&self, search: ChildSearch, image: &Core, known: &[&Core]) -> Result<Checked> {
        // A merge that is completed also removes what an earlier one of its merges left.
        let search = ChildSearch { ignores_spent: self.resumes, ..search };
        let seen = search.refuse_others(image, known)?;
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
                "files that can be read, or the assurance that there is no other child",
            )),
            _ => {
                let mut of_names = seen.warnings;
                of_names.retain(|warning| warning.code == OTHER_NAMES);
                let of_layer = |warning: Warning| warning.of_layer(image.id());
                let warnings = of_names.into_iter().map(of_layer).collect();
                Ok(Checked { warnings, spent: seen.spent })
            }
        }
    }
}

/// Refuses layers whose files the host does not allow to be changed or removed.
fn check_allowed(op: &Operation<'_>, steps: &[usize], examined: &mut Examined) -> Result<()> {
    let (lowest, highest) = (steps[0] + 1, steps[steps.len() - 1]);
    // The layer above is linked to another parent.
    for layer in highest.saturating_sub(1)..=lowest {
        examined.check_writable(op, layer)?;
    }
    steps.iter().try_for_each(|layer| examined.check_removable(op, *layer))
}

/// Removes a file that was merged, but not removed.
fn clear_spent(host: &dyn Host, path: &Path, merged: &mut Merged) {
    match remove_spent(host, path) {
        Ok(()) => merged.removed.push(path.to_owned()),
        Err(error) => {
            let message = format!("{error}: all its data is in the parent");
            merged.warnings.push(Warning::new("merge.not-removed", path.display(), message));
        }
    }
}

fn remove_spent(host: &dyn Host, path: &Path) -> Result<()> {
    let failed = |error| Error::io("op.remove", "cannot remove the file", error).in_path(path);
    let file = host.open(path, Access::ReadWrite).map_err(failed)?;
    if let Ok(LockOutcome::InUse(by)) = file.try_lock(LockMode::Exclusive) {
        return Err(Error::in_use(by).in_path(path));
    }
    let policy = ImagePolicy { lock: Lock::None, ..ImagePolicy::default() };
    if !is_spent(&Core::open(Arc::clone(&file), &policy)?) {
        return Err(Error::in_use("another program, which replaced it").in_path(path));
    }
    let is_ours = |path: &Path| storage::is_file(host, path, file.as_ref());
    match storage::remove(host, path, &is_ours).map_err(failed)? {
        Removal::Removed | Removal::Gone => host.sync_dir(folder_of(path)).map_err(failed),
        _ => Err(Error::in_use("another program, which replaced it").in_path(path)),
    }
}

fn is_spent(image: &Core) -> bool {
    image.merge_mark().is_some_and(|mark| mark.state == MergeState::Spent)
}

/// Refuses to overwrite the marks of another merge that must be resumed first: a merge into a layer that
/// is to be merged itself, or a merge of the target layer.
fn refuse_unfinished(images: &[Arc<Core>], steps: &[usize]) -> Result<()> {
    let lowest = steps[0] + 1;
    for layer in steps.iter().copied().chain([lowest]) {
        let image = &images[layer];
        let Some(mark) = image.merge_mark() else { continue };
        if (mark.state == MergeState::Target) != (layer == lowest) {
            let message = "another merge that involves this layer must be resumed first";
            return Err(Error::new(ErrorKind::Unfinished, "merge.other", message)
                .in_file(image.name())
                .with_section("2.6.2.6.3")
                .with_found(format_args!("the mark of a merge with {}", mark.name))
                .with_expected("a layer without a merge mark"));
        }
    }
    Ok(())
}
