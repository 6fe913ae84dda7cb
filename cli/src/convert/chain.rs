//! Chains with all their points in time as qcow2 images over each other.

mod layer;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{FileId, FileKind, Host, LocalHost};
use avhdx::{DiffChain, Disk, Layer, VhdxFile};
use avhdx_formats::qcow2::{Backing, BackingFiles, CreateOptions, OpenOptions};
use serde::Serialize;

use crate::args::u32_size;
use crate::copying::{self, CLUSTER, CopyFlags};
use crate::failure::{Failure, Reply};
use crate::forks;
use crate::new_file::{NewFile, Place};
use crate::operation::{self, CopyFacts, CopyForecast};
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{count, size};
use crate::vocabulary::Answer;

/// The name of the format, as images record it.
const FORMAT: &str = "qcow2";

/// Makes an image of each layer of the chains in a folder, those below before those above. A layer of several chains is made
/// once.
pub(super) fn run(
    chains: &[DiffChain],
    folder: &Path,
    flags: &CopyFlags,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let stat = LocalHost.stat(folder);
    if !stat.is_ok_and(|stat| stat.kind == FileKind::Folder) {
        let message = format!("{}: a chain goes to a folder, which this is not", folder.display());
        return Err(Failure::usage("convert.not-folder", message));
    }
    for chain in chains {
        crate::qcow2::note_sector(chain.geometry().logical_sector, console);
    }
    // All of it is looked at before anything is made.
    let planned = plan(chains, flags.new_image.block)?;
    let inputs: Vec<_> = planned.iter().filter_map(|image| image.layer.path.clone()).collect();
    let targets: Vec<_> = planned.iter().map(|image| folder.join(&image.name)).collect();
    let mut places = Vec::new();
    for target in &targets {
        places.push(Place::find(target, &flags.replacing, &inputs, console)?);
    }
    note_others(&planned, console);
    if flags.dry_run {
        return foresee(&planned, &places, folder, flags, console);
    }
    let mut files = Vec::new();
    let mut written = Vec::new();
    let total = planned.len() as u64;
    let mut meter = ProgressMeter::of_steps(console, "copying layers");
    for (n, (image, place)) in (0..).zip(planned.iter().zip(places)) {
        meter.show(n, total);
        let file = place.start(console)?;
        written.push(image.make(&planned, &file).map_err(|error| file.failure(error))?);
        files.push(file);
    }
    meter.show(total, total);
    drop(meter);
    if flags.verify {
        verify(&planned, &files, &targets, console)?;
    }
    // Each lies over what has its name already.
    for file in files {
        file.publish(console)?;
    }
    console.done();
    print(&planned, &targets, &written, flags.verify, console)
}

/// An image that is to be made of a layer.
struct Planned {
    layer: Layer,
    /// The name of the new file.
    name: String,
    image: Arc<VhdxFile>,
    /// The disk at the layer.
    view: Arc<DiffChain>,
    options: CreateOptions,
    /// The image below, by its place among those planned.
    below: Option<usize>,
}

/// The images to make, each after the one below.
fn plan(chains: &[DiffChain], block: Option<u64>) -> Result<Vec<Planned>, Failure> {
    let cluster = u32_size("--block", block.unwrap_or(CLUSTER))?;
    let mut names = Names::default();
    let mut planned: Vec<Planned> = Vec::new();
    let mut known: Vec<(FileId, usize)> = Vec::new();
    for chain in chains {
        let mut below = None;
        for layer in chain.layers().into_iter().rev() {
            let id = layer.path.as_ref().and_then(|path| LocalHost.stat(path).ok()?.id);
            if let Some((_, n)) = known.iter().find(|(known, _)| Some(known) == id.as_ref()) {
                below = Some(*n);
                continue;
            }
            let image = chain.image(layer.id).ok_or_else(|| {
                Failure::usage("convert.layer", format!("{}: the layer is gone", layer.name))
            })?;
            let view = Arc::new(chain.view(layer.id)?);
            let options = CreateOptions::new(view.geometry().size).cluster_size(cluster);
            options.check()?;
            let name = names.free(layer.path.as_deref());
            let n = planned.len();
            known.extend(id.map(|id| (id, n)));
            planned.push(Planned { layer, name, image, view, options, below });
            below = Some(n);
        }
    }
    Ok(planned)
}

impl Planned {
    /// Makes the image. Returns how many bytes of data it has.
    fn make(&self, planned: &[Self], file: &NewFile) -> avhdx::Result<u64> {
        let below = self.below.map(|below| &planned[below]);
        let mut options = self.options.clone();
        if let Some(below) = below {
            let disk: Arc<DiffChain> = Arc::clone(&below.view);
            options =
                options.backing(Backing { name: below.recorded(), format: FORMAT.into(), disk });
        }
        let new = options.create(Arc::clone(file.storage()))?;
        let below = below.map(|below| below.view.as_ref());
        let written = layer::copy(&self.image, &self.view, below, &new)?;
        new.finish().map(|()| written)
    }

    /// The name that the image above records.
    fn recorded(&self) -> String {
        named_for_qemu(&self.name)
    }
}

/// Notes images over the layers that are not among them: who wants all of a tree has to name them too.
fn note_others(planned: &[Planned], console: &mut Console) {
    let others = forks::beside(planned.iter().map(|image| &image.layer));
    if others.is_empty() {
        return;
    }
    let names: Vec<_> = others.iter().map(|path| path.display().to_string()).collect();
    let message =
        format!("other images lie over these layers, and stay here: {}", names.join(", "));
    console.note("convert.others", &message);
}

/// Prints what would be made, by the tables alone.
fn foresee(
    planned: &[Planned],
    places: &[Place],
    folder: &Path,
    flags: &CopyFlags,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let cluster = u32_size("--block", flags.new_image.block.unwrap_or(CLUSTER))?;
    let (mut data, mut peak, mut clusters, mut files) = (0, 0, 0, Vec::new());
    let mut meter = ProgressMeter::of_steps(console, "measuring layers");
    let total = planned.len() as u64;
    for (n, (image, place)) in (0..).zip(planned.iter().zip(places)) {
        meter.show(n, total);
        copying::check_folder(place.target())?;
        let below = image.below.map(|below| planned[below].view.as_ref());
        let (own, needed) = layer::measure(&image.image, &image.view, below, cluster)?;
        data += own;
        peak += needed.required;
        clusters += needed.clusters;
        files.push((place.target().to_path_buf(), place.replaced_len()?));
    }
    drop(meter);
    let available = copying::available_for(&folder.join("-"), folder)?;
    let tip = planned.iter().map(|image| image.view.geometry().size).max();
    let facts = CopyFacts {
        format: FORMAT,
        virtual_size: tip.unwrap_or_default(),
        block_size: Some(cluster.into()),
        blocks: Some(clusters),
    };
    operation::print_copy_forecast(&CopyForecast { data, peak, available, files }, facts, console)?;
    copying::refuse_no_space(folder, peak, available)?;
    Ok(Reply::Yes)
}

/// Reads each image back over those below, before any of them has a name.
fn verify(
    planned: &[Planned],
    files: &[NewFile],
    targets: &[PathBuf],
    console: &Console,
) -> Result<(), Failure> {
    let backing = planned.iter().zip(files).fold(BackingFiles::new(), |backing, (image, file)| {
        backing.opened(image.recorded(), Arc::clone(file.storage()))
    });
    let opening = OpenOptions::new().backing(backing).max_depth(planned.len());
    for (image, (file, target)) in planned.iter().zip(files.iter().zip(targets)) {
        let copy = opening.open_file(Arc::clone(file.storage()));
        let copy = copy.map_err(|error| file.failure(error))?;
        copying::verify(image.view.as_ref(), &copy, file, target, console)?;
    }
    Ok(())
}

fn print(
    planned: &[Planned],
    targets: &[PathBuf],
    written: &[u64],
    verified: bool,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let is_tip = |n: usize| planned.iter().all(|image| image.below != Some(n));
    let made = planned.iter().zip(targets.iter().zip(written)).enumerate();
    let made = made.map(|(n, (image, (target, written)))| MadeImage {
        image: image.layer.name.clone(),
        output: target.display().to_string(),
        virtual_size: image.view.geometry().size,
        written: *written,
        backing: image.below.map(|below| planned[below].recorded()),
        is_tip: is_tip(n),
    });
    let images: Vec<_> = made.collect();
    if console.is_json() {
        console.document(&ConvertChainAnswer { images, verified })?;
        return Ok(Reply::Yes);
    }
    for image in &images {
        let (disk, written) = (size(image.virtual_size), size(image.written));
        console.line(format!("{}: {disk}, {written} written", image.output))?;
    }
    let verified = if verified { ", read back and compared" } else { "" };
    let tips: Vec<_> =
        images.iter().filter(|image| image.is_tip).map(|image| image.output.as_str()).collect();
    let tips = match tips[..] {
        [_] => "the last one is the tip".to_owned(),
        _ => format!("the tips are {}", tips.join(", ")),
    };
    console.line(format!("{} made{verified}, {tips}", count(images.len(), "image")))?;
    Ok(Reply::Yes)
}

/// Names of images, each once, also where names that differ only in case are one.
#[derive(Default)]
struct Names(HashSet<String>);

impl Names {
    /// A name for the image of a layer in this file.
    fn free(&mut self, path: Option<&Path>) -> String {
        let stem = path
            .and_then(Path::file_stem)
            .map_or_else(|| "layer".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let named = |n: usize| match n {
            1 => format!("{stem}.qcow2"),
            n => format!("{stem}-{n}.qcow2"),
        };
        let free = (1..).map(named).find(|name| self.0.insert(name.to_lowercase()));
        free.unwrap_or(stem)
    }
}

/// A name from the folder of the image. QEMU takes what is before a colon for a protocol.
fn named_for_qemu(name: &str) -> String {
    if name.contains(':') { format!("./{name}") } else { name.to_owned() }
}

/// The images made of chains, each after the one below.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConvertChainAnswer {
    images: Vec<MadeImage>,
    /// Whether each was read back and compared with the disk at its layer.
    verified: bool,
}

impl Answer for ConvertChainAnswer {
    const SCHEMA: &'static str = "avhdx.convert-chain/1";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MadeImage {
    /// The file of the layer.
    image: String,
    /// The file made.
    output: String,
    virtual_size: u64,
    /// The number of bytes of the disk that were written as data.
    written: u64,
    /// The name that it records of the image below.
    backing: Option<String>,
    /// Whether none of the others lies over it.
    is_tip: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_has_a_name_of_its_own_that_qemu_takes_for_a_path() {
        let mut names = Names::default();
        let mut free = |path: &str| names.free(Some(Path::new(path)));
        assert_eq!(free("vm/web.vhdx"), "web.qcow2");
        assert_eq!(free("vm/sub/WEB.avhdx"), "WEB-2.qcow2");
        assert_eq!(free("web.avhdx"), "web-3.qcow2");
        assert_eq!(names.free(None), "layer.qcow2");
        assert_eq!(named_for_qemu("nbd:web.qcow2"), "./nbd:web.qcow2");
        assert_eq!(named_for_qemu("web.qcow2"), "web.qcow2");
    }
}
