//! What verbs that change chains do about seals.

use std::path::{Path, PathBuf};

use avhdx::ops::{CheckedLayer, Rebase};
use avhdx::storage::{Host, LocalHost};
use avhdx::{LayerId, OpenOptions};
use avhdx_seals::{CarriedSeals, Carry, LeftOut, SealFile, seal_path, sweep_removed};

use crate::failure::Failure;
use crate::operation::{self, Subject};
use crate::output::Console;

/// Proves the seals of layers that are about to be merged, from the newest down. `None` if none has one.
pub(crate) fn prove(
    subject: &Subject,
    merged: &[LayerId],
    console: &Console,
) -> Result<Option<CarriedSeals>, Failure> {
    let layers = subject.layers().iter().filter(|layer| merged.contains(&layer.id));
    let mut seals = layers.filter_map(|layer| layer.path.as_deref()).map(seal_path);
    if !seals.any(|seal| LocalHost.is_link(&seal).is_ok()) {
        return Ok(None);
    }
    operation::run_counted(console, |on| Carry::new().on_progress(on).prove(&subject.chain, merged))
        .map(Some)
}

/// After a merge, seals the layer at this depth, if all that went into it were sealed, and removes the seals of what is no
/// more. Returns the seal.
pub(crate) fn carry(
    seals: Option<CarriedSeals>,
    removed: &[PathBuf],
    tip: &Path,
    options: &OpenOptions,
    depth: usize,
    console: &mut Console,
) -> Result<Option<PathBuf>, Failure> {
    let mut seal = None;
    if let Some(seals) = seals {
        let chain = options.clone().writable(false).open(tip)?;
        let Some(layer) = chain.layers().into_iter().nth(depth) else { return Ok(None) };
        let carried = seals.seal(&chain, layer.id)?;
        seal = carried.seal.map(|(path, _)| path);
        warn_left(&carried.left, console);
    }
    sweep(removed, console);
    Ok(seal)
}

/// Removes the seals of removed images.
pub(crate) fn sweep(removed: &[PathBuf], console: &mut Console) {
    warn_left(&sweep_removed(&LocalHost, removed).left, console);
}

/// Warns of seals of nothing.
pub(crate) fn warn_left(left: &[PathBuf], console: &mut Console) {
    for path in left {
        let message = format!("{}: the seal cannot be removed, and is of no use", path.display());
        console.warn("seal.left", &message);
    }
}

/// Removes the seal of an image that is about to get bytes of its parent under the same identity.
pub(crate) fn before_rebase(
    rebase: &Rebase<'_>,
    image: &Path,
    console: &mut Console,
) -> Result<(), Failure> {
    let Ok(image) = LocalHost.canonical(image) else { return Ok(()) };
    let path = seal_path(&image);
    if LocalHost.is_link(&path).is_err() {
        return Ok(());
    }
    // What will be refused leaves it.
    if rebase.forecast(&image).is_ok_and(|forecast| forecast.written > 0)
        && SealFile::beside(&LocalHost, &image).is_ok_and(|seal| seal.is_some())
    {
        LocalHost.remove(&path).map_err(|error| {
            let message = format!("{}: cannot remove the seal", path.display());
            Failure::io("seal.remove", message, &error)
        })?;
        let message = format!(
            "{}: removed, because the image gets bytes of its parent; avhdx seal makes a new one",
            path.display()
        );
        console.note("seal.removed", &message);
    }
    Ok(())
}

/// Notes which layers have a seal that is not of what they are now. Hashes nothing.
pub(crate) fn note_stale(layers: &[CheckedLayer], console: &mut Console) {
    for layer in layers {
        let (Some(path), Some(guid)) = (&layer.path, layer.data_write_guid) else { continue };
        let (code, what) = match SealFile::beside(&LocalHost, path) {
            Ok(Some(seal)) if seal.identity().data_write_guid != guid => {
                ("seal.stale", "is of an earlier state of the image, or of another one".to_owned())
            }
            Err(error) if error.code() == "seal.damaged" => {
                ("seal.damaged", error.message().to_owned())
            }
            _ => continue,
        };
        console.note(code, &format!("{}: {what}", seal_path(path).display()));
    }
}

/// Why a layer is left out, in words.
pub(crate) fn left_out(why: LeftOut) -> &'static str {
    match why {
        LeftOut::InUse => "left out: in use",
        LeftOut::LogPending => "left out: its log is not empty",
        LeftOut::NoFolder => "left out: it lies in no folder",
        LeftOut::NotSealed => "not sealed",
        _ => "left out",
    }
}

/// Why a layer is left out, by its name in JSON.
pub(crate) fn left_out_name(why: LeftOut) -> &'static str {
    match why {
        LeftOut::InUse => "in-use",
        LeftOut::LogPending => "log-pending",
        LeftOut::NoFolder => "no-folder",
        LeftOut::NotSealed => "not-sealed",
        _ => "other",
    }
}
