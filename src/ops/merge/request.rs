//! The requests that a merge leaves in the layers it reaches later, so that it can be resumed as a whole.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::copy::Meter;
use super::parameters::{Merge, Merged};
use crate::chain::Operation;
use crate::error::{Error, Result};
use crate::image::{Core, MergeRequest};
use crate::storage::folder_of;
use crate::warning::Warning;
use crate::write::{ItemEdit, Writer};

/// The code of the warning that the tip does not keep its name.
pub(super) const NAME_NOT_KEPT: &str = "merge.name-not-kept";

/// The request that the merge leaves in a layer, if any: in each layer but the lowest, and in a tip that is to keep its
/// name.
pub(super) fn of(
    merge: &Merge,
    steps: &[usize],
    layer: usize,
    images: &[Arc<Core>],
) -> Option<MergeRequest> {
    let name = kept_name(merge, steps, images).filter(|_| layer == 0);
    (name.is_some() || layer != steps[0]).then_some(MergeRequest { name })
}

/// Leaves the requests, before the first layer is merged. After a failure none is left.
pub(super) fn leave(
    op: &Operation<'_>,
    merge: &Merge,
    steps: &[usize],
    meter: &mut Meter<'_>,
    merged: &mut Merged,
) -> Result<()> {
    let mut requests = Vec::new();
    {
        // Layers are opened for writing only if nobody else holds them.
        let images = op.images();
        let is_tip = steps.contains(&0);
        if merge.keep_name && is_tip && kept_name(merge, steps, &images).is_none() {
            let message = "the tip has the path of the layer below from now on: the two files do not lie in one folder";
            merged.warnings.push(not_kept(&images[0], message.into()));
        }
        for layer in steps.iter().copied() {
            let Some(request) = of(merge, steps, layer, &images) else { continue };
            // A resumed merge finds the requests of the first one.
            let earlier = images[layer].merge_request();
            if earlier.as_ref().is_none_or(|earlier| !merge.resumes && *earlier != request) {
                requests.push((layer, request, earlier));
            }
        }
    }
    let mut marked = Vec::new();
    let mut left = Ok(());
    for (layer, request, earlier) in requests {
        left = edit(op, layer, Some(&request), &mut || meter.notify());
        if left.is_err() {
            break;
        }
        marked.push((layer, earlier));
    }
    if left.is_err() {
        let mut go_on = || ControlFlow::Continue(());
        for (layer, earlier) in marked {
            // Best effort: a request that stays only leads to what was asked for.
            drop(edit(op, layer, earlier.as_ref(), &mut go_on));
        }
    }
    left
}

/// The warning that the tip does not keep its name.
pub(super) fn not_kept(image: &Core, message: String) -> Warning {
    Warning::new(NAME_NOT_KEPT, image.name(), message).of_layer(image.id())
}

/// The file name that the tip keeps, if it is merged and that is possible.
fn kept_name(merge: &Merge, steps: &[usize], images: &[Arc<Core>]) -> Option<String> {
    if !merge.keep_name || steps[steps.len() - 1] != 0 {
        return None;
    }
    let (tip, parent) = (images[0].path()?, images[steps[0] + 1].path()?);
    let is_beside = folder_of(tip) == folder_of(parent);
    tip.file_name().and_then(|name| name.to_str()).filter(|_| is_beside).map(str::to_owned)
}

fn edit(
    op: &Operation<'_>,
    layer: usize,
    request: Option<&MergeRequest>,
    on: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<()> {
    let change = |writer: &Writer| writer.edit_metadata(&[ItemEdit::merge_request(request)]);
    let live = op.writer().filter(|writer| layer == 0 && writer.core().takes_writes());
    if let Some(writer) = live {
        return change(&writer);
    }
    let taken = op.take(&[layer], on)?;
    let done = taken.iter().try_for_each(|writer| change(writer));
    let settled = taken.iter().try_for_each(|writer| op.settle(writer));
    done.and(settled)
}

/// Whether the parent is to get the child's name, and does not have it yet.
pub(super) fn is_name_due(child: &Core, parent: &Core) -> bool {
    let wanted = child.merge_request().and_then(|request| request.name);
    let name = parent.path().and_then(Path::file_name);
    wanted.is_some_and(|wanted| name != Some(wanted.as_ref()))
}

/// The warning that a name could not be kept.
pub(super) fn failed(parent: &Core, error: Option<&Error>) -> Warning {
    let why = match error {
        Some(error) => error.to_string(),
        None => "this host cannot exchange the names of two files".into(),
    };
    not_kept(parent, format!("is the tip under this path: {why}"))
}
