//! The requests that a merge leaves in its layers, so that it can be resumed as a whole.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::copy::Meter;
use super::parameters::{Merge, Merged};
use crate::chain::Operation;
use crate::error::Result;
use crate::image::{Core, MergeRequest};
use crate::storage::{Host, folder_of};
use crate::warning::Warning;
use crate::write::{ItemEdit, Writer};

/// The code of the warning that the tip does not keep its name.
pub(super) const NAME_NOT_KEPT: &str = "merge.name-not-kept";

/// The request that the merge leaves in a layer, if any: in each of several layers, and in a tip that is to keep its
/// name. The lowest gets it first, so that what a crash leaves of them is a part of the merge.
pub(super) fn of(
    merge: &Merge,
    steps: &[usize],
    layer: usize,
    (host, images): (&dyn Host, &[Arc<Core>]),
) -> Option<MergeRequest> {
    let name = kept_name(merge, steps, host, images).filter(|_| layer == 0);
    (name.is_some() || steps.len() > 1).then_some(MergeRequest { name })
}

/// The requests that a merge has left, each with the one that was there before.
#[derive(Default)]
pub(super) struct Left(Vec<(usize, Option<MergeRequest>)>);

impl Left {
    /// Leaves the requests, before the first layer is merged; those of an earlier merge that this one does not make are
    /// removed. After a failure all is as it was.
    pub(super) fn leave(
        op: &Operation<'_>,
        merge: &Merge,
        steps: &[usize],
        meter: &mut Meter<'_>,
        merged: &mut Merged,
    ) -> Result<Self> {
        let mut requests = Vec::new();
        {
            // Layers are opened for writing only if nobody else holds them.
            let images = op.images();
            let host = op.host().as_ref();
            let is_tip = steps.contains(&0);
            if merge.keep_name && is_tip && kept_name(merge, steps, host, &images).is_none() {
                let message = "the tip has the path of the layer below from now on: the two files do not lie in one \
                               folder";
                merged.warnings.push(not_kept(&images[0], message.into()));
            }
            for layer in steps.iter().copied() {
                let request = of(merge, steps, layer, (host, &images));
                let earlier = images[layer].merge_request();
                // A resumed merge finds the requests of the first one.
                let stays = earlier == request || merge.resumes && earlier.is_some();
                if !stays {
                    requests.push((layer, request, earlier));
                }
            }
        }
        let mut left = Self::default();
        for (layer, request, earlier) in requests {
            if let Err(error) = edit(op, layer, request.as_ref(), &mut || meter.notify()) {
                left.take_back(op);
                return Err(error);
            }
            left.0.push((layer, earlier));
        }
        Ok(left)
    }

    /// Takes the requests back, because nothing was merged. Best effort: one that stays is told as an unfinished merge.
    pub(super) fn take_back(self, op: &Operation<'_>) {
        let mut go_on = || ControlFlow::Continue(());
        for (layer, earlier) in self.0 {
            drop(edit(op, layer, earlier.as_ref(), &mut go_on));
        }
    }
}

/// The warning that the tip does not keep its name.
pub(super) fn not_kept(image: &Core, message: String) -> Warning {
    Warning::new(NAME_NOT_KEPT, image.name(), message).of_layer(image.id())
}

/// The file name that the tip keeps, if it is merged and that is possible.
fn kept_name(
    merge: &Merge,
    steps: &[usize],
    host: &dyn Host,
    images: &[Arc<Core>],
) -> Option<String> {
    if !merge.keep_name || steps[steps.len() - 1] != 0 {
        return None;
    }
    let (tip, parent) = (images[0].path()?, images[steps[0] + 1].path()?);
    // The same folder may be spelled in two ways.
    let folder = |path: &Path| {
        let folder = folder_of(path);
        host.canonical(folder).unwrap_or_else(|_| folder.to_path_buf())
    };
    let is_beside = folder(tip) == folder(parent);
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
    let name = |image: &Core| image.path().and_then(Path::file_name).map(ToOwned::to_owned);
    wanted.is_some_and(|wanted| {
        name(child).is_some_and(|name| name == *wanted)
            && name(parent).is_some_and(|name| name != *wanted)
    })
}

/// The warning that this host cannot exchange names.
pub(super) fn unsupported(parent: &Core) -> Warning {
    let message = "is the tip under this path: this host cannot exchange the names of two files";
    not_kept(parent, message.into())
}
