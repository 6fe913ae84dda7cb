//! A chain with all its points in time as qcow2 images over each other.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use avhdx::storage::{FileKind, Host, LocalHost};
use avhdx::{DiffChain, Disk, DiskExt, ErrorKind, Extent, Source, VhdxFile, Zeroing};
use avhdx_formats::qcow2::{Backing, CreateOptions, NewQcow2};
use serde::Serialize;

use crate::args::{NewImageFlags, ReplaceFlags, u32_size};
use crate::failure::{Failure, Reply};
use crate::new_file::Place;
use crate::output::Console;
use crate::progress::ProgressMeter;
use crate::text::{count, size};
use crate::vocabulary::Answer;

const PIECE: u64 = 1 << 20;
/// The unit of a log, whose changes lie at no place in the file.
const LOG_UNIT: u64 = 4096;

/// Makes an image of each layer, the base first.
pub(super) fn run(
    chain: &DiffChain,
    folder: &Path,
    new_image: &NewImageFlags,
    replacing: &ReplaceFlags,
    console: &mut Console,
) -> Result<Reply, Failure> {
    let stat = LocalHost.stat(folder);
    if !stat.is_ok_and(|stat| stat.kind == FileKind::Folder) {
        let message = format!("{}: a chain goes to a folder, which this is not", folder.display());
        return Err(Failure::usage("convert.not-folder", message));
    }
    let mut layers = chain.layers();
    layers.reverse();
    let inputs: Vec<_> = layers.iter().filter_map(|layer| layer.path.clone()).collect();
    crate::qcow2::note_sector(chain.geometry().logical_sector, console);
    // All of it is looked at before anything is made.
    let mut names = Names::default();
    let mut planned = Vec::new();
    for layer in &layers {
        let name = names.free(layer.path.as_deref());
        let view = Arc::new(chain.view(layer.id)?);
        let mut options = CreateOptions::new(view.geometry().size);
        if let Some(block) = new_image.block {
            options = options.cluster_size(u32_size("--block", block)?);
        }
        options.check()?;
        let place = Place::find(&folder.join(&name), replacing, &inputs, console)?;
        let image = chain.image(layer.id).ok_or_else(|| {
            Failure::usage("convert.layer", format!("{}: the layer is gone", layer.name))
        })?;
        planned.push((layer, name, view, options, place, image));
    }
    let mut made: Vec<MadeImage> = Vec::new();
    let mut below: Option<(String, Arc<DiffChain>)> = None;
    let total: u64 = layers.len() as u64;
    let mut meter = ProgressMeter::of_steps(console, "copying layers");
    for (n, (layer, name, view, mut options, place, image)) in (0..).zip(planned) {
        meter.show(n, total);
        if let Some((name, disk)) = &below {
            let (name, disk) = (name.clone(), Arc::clone(disk));
            options = options.backing(Backing { name, format: "qcow2".into(), disk });
        }
        let file = place.start(console)?;
        let new =
            options.create(Arc::clone(file.storage())).map_err(|error| file.failure(error))?;
        let parent = below.as_ref().map(|(_, disk)| disk.as_ref());
        let written = copy_own(&image, &view, &new, parent)
            .and_then(|written| new.finish().map(|()| written))
            .map_err(|error| file.failure(error))?;
        file.publish(console)?;
        made.push(MadeImage {
            image: layer.name.clone(),
            output: folder.join(&name).display().to_string(),
            virtual_size: view.geometry().size,
            written,
        });
        below = Some((named_for_qemu(&name), view));
    }
    meter.show(total, total);
    drop(meter);
    console.done();
    if console.is_json() {
        console.document(&ConvertChainAnswer { images: made })?;
        return Ok(Reply::Yes);
    }
    for image in &made {
        let (disk, written) = (size(image.virtual_size), size(image.written));
        console.line(format!("{}: {disk}, {written} written", image.output))?;
    }
    console.line(format!("{} made, the last one is the tip", count(made.len(), "image")))?;
    Ok(Reply::Yes)
}

/// Copies what an image holds by itself over its parent, data and zeros, as its disk reads. Returns how many bytes of data that
/// are.
fn copy_own(
    image: &VhdxFile,
    view: &DiffChain,
    new: &NewQcow2,
    parent: Option<&DiffChain>,
) -> avhdx::Result<u64> {
    let size = view.geometry().size;
    let (mut at, mut written) = (0, 0);
    while at < size {
        let (range, source) = match image.next_extent(at..size) {
            Ok(Some(extent)) => (extent.range, Some(extent.source)),
            Ok(None) => break,
            // What waits in the log is data.
            Err(error) if error.kind() == ErrorKind::LogOverlay => {
                (at..((at / LOG_UNIT + 1) * LOG_UNIT).min(size), None)
            }
            Err(error) => return Err(error),
        };
        at = range.end;
        match source {
            Some(Source::Parent) => {}
            Some(Source::Zero { .. }) => zero(range, new, parent)?,
            Some(Source::Data { .. }) | None => written += copy_data(view, range, new, parent)?,
        }
    }
    Ok(written)
}

/// Records zeros where the parent has something else.
fn zero(range: Range<u64>, new: &NewQcow2, parent: Option<&DiffChain>) -> avhdx::Result<()> {
    let Some(parent) = parent else { return Ok(()) };
    let end = range.end.min(parent.geometry().size);
    for extent in parent.extents(range.start.min(end)..end) {
        match extent {
            Ok(Extent { source: Source::Zero { .. }, .. }) => {}
            Ok(Extent { range, .. }) => new.write_zeroes(range, Zeroing::MayUnmap)?,
            // What waits in a log has no place: all of it may be something else.
            Err(error) if error.kind() == ErrorKind::LogOverlay => {
                return new.write_zeroes(range.start..end, Zeroing::MayUnmap);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Copies data in pieces. Zeros take no space.
fn copy_data(
    view: &DiffChain,
    range: Range<u64>,
    new: &NewQcow2,
    parent: Option<&DiffChain>,
) -> avhdx::Result<u64> {
    let cluster = u64::from(new.cluster_size());
    let mut buf = vec![0; PIECE.max(cluster) as usize];
    let (mut at, mut written) = (range.start, 0);
    while at < range.end {
        // Pieces end with clusters.
        let end = ((at / PIECE + 1) * PIECE).min(range.end);
        let piece = &mut buf[..(end - at) as usize];
        view.read_at(piece, at)?;
        let mut start = at;
        for part in piece.chunks(cluster as usize) {
            let len = part.len() as u64;
            if part.iter().any(|byte| *byte != 0) {
                new.write_at(part, start)?;
                written += len;
            } else {
                zero(start..start + len, new, parent)?;
            }
            start += len;
        }
        at = end;
    }
    Ok(written)
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

/// The images made of a chain, the base first.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct ConvertChainAnswer {
    images: Vec<MadeImage>,
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
