//! The points in time that can be read while another process has files of the chain.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use avhdx::storage::{Access, Host, LocalHost, LockMode, LockOutcome};
use avhdx::{DiffChain, Layer, Lock, MergeState, OpenOptions};

use crate::failure::Failure;
use crate::next;
use crate::shell::argument;
use crate::text::printable;
use crate::typed;

/// How many points are named.
const NAMED: usize = 3;

/// Adds to a failure the points below `image` that can be read now, and the command that reads the newest.
pub(super) fn named(failure: Failure, image: &Path, options: &OpenOptions) -> Failure {
    let options = options.clone().writable(false);
    // What is found is shown, not served: the files may be changing.
    let Ok(chain) = options.clone().lock(Lock::Try).unfinished(true).open(image) else {
        return failure;
    };
    let layers = chain.layers();
    let failure = match going_on(&chain, &layers) {
        Some(merge) => failure.also(&merge),
        None => failure,
    };
    let free = layers.iter().rev().take_while(|layer| is_free(layer)).count();
    let first = layers.len() - free;
    let opens = |path: &PathBuf| options.clone().lock(Lock::Shared).open(path).is_ok();
    if first == 0 {
        // Others only read: so can anybody.
        return failure;
    }
    if !layers.get(first).and_then(|layer| layer.path.as_ref()).is_some_and(opens) {
        return failure.also("no point in time can be read meanwhile");
    }
    // Numbers mean other points once the merge is done.
    let point = |at: usize| {
        let mut point = OsString::from(image);
        let name = layers[at].path.as_ref().and_then(|path| path.file_name()?.to_str());
        let name = name.filter(|name| printable(name) == *name && !name.contains('@'));
        match name {
            Some(name) => point.push(format!("@{name}")),
            None => point.push(format!("@{}", layers[at].data_write_guid)),
        }
        point
    };
    let mut names: Vec<String> = (first..layers.len().min(first + NAMED))
        .map(|at| point(at).display().to_string())
        .collect();
    if free > NAMED {
        names.push(format!("{} older", free - NAMED));
    }
    let failure = failure.also(&format!("can be read meanwhile: {}", names.join(", ")));
    let newest = point(first);
    let read = next::at_point(image, &newest).unwrap_or_else(|| {
        let copy = typed::with_parents("convert", Path::new(&newest));
        format!("{copy} OUT  # OUT: a copy of that point")
    });
    failure.then(read).then(format!("avhdx info {}", argument(image)))
}

/// The merge that the images are marked with.
fn going_on(chain: &DiffChain, layers: &[Layer]) -> Option<String> {
    let is_merged = |pair: &&[Layer]| {
        let mark = chain.image(pair[0].id).and_then(|image| image.merge_mark());
        mark.is_some_and(|mark| matches!(mark.state, MergeState::Merging | MergeState::Spent))
    };
    let pair = layers.windows(2).find(is_merged)?;
    Some(format!("{} is being merged into {}", file_name(&pair[0]), file_name(&pair[1])))
}

/// Whether nobody keeps others from reading the file.
fn is_free(layer: &Layer) -> bool {
    let Some(path) = &layer.path else { return false };
    let lock = LocalHost.open(path, Access::Read).and_then(|file| file.try_lock(LockMode::Shared));
    !matches!(lock, Ok(LockOutcome::InUse(_)))
}

fn file_name(layer: &Layer) -> String {
    let name = layer.path.as_ref().and_then(|path| path.file_name());
    name.map_or_else(|| layer.name.clone(), |name| name.to_string_lossy().into_owned())
}
