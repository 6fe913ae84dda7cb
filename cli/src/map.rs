//! `avhdx map`: lists the extents of the disk.

use std::collections::HashMap;

use avhdx::{DiskExt, Extent, LayerId, Source};
use serde::Serialize;

use crate::args::{Format, ImageArg, ReadFlags, range};
use crate::failure::{Failure, Reply};
use crate::input::Input;
use crate::output::Console;
use crate::values;
use crate::vocabulary::Answer;

/// List the extents of the disk, with the layer and the file offset of each.
///
/// With --json, one object per line with the keys of qemu-img map: depth counts from the tip; present means that a
/// layer determines the bytes, by holding data or by hiding its parent's.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArg,
    /// The offset on the disk.
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true, default_value = "0")]
    offset: u64,
    /// The number of bytes to list [default: to the end of the disk].
    #[arg(long, value_name = "N", value_parser = values::bytes, allow_negative_numbers = true)]
    length: Option<u64>,
    /// The format of the input [default: by the ending of its name, else VHDX].
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    opening: ReadFlags,
}

/// The layer that determines an extent.
#[derive(Clone, Debug)]
struct MapLayer {
    depth: usize,
    file: String,
    has_parent: bool,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let size = input.disk().geometry().size;
    let length = args.length.unwrap_or(size.saturating_sub(args.offset));
    let range = range(args.offset, length, size)?;
    let layers = layers(&input);
    let depth_of_none = layers.len();
    // Wide enough for every offset, so that lines can be printed as they come.
    let width = range.end.to_string().len().max("LENGTH".len());
    if !console.is_json() {
        let (start, length) = ("START", "LENGTH");
        console.line(format!(
            "{start:>width$}  {length:>width$}  DEPTH  KIND  {:>14}  FILE",
            "FILE OFFSET"
        ))?;
    }
    for extent in input.disk().extents(range) {
        let extent = extent?;
        let layer = match (&input, extent.source) {
            (Input::Raw { .. }, _) => layers.values().next(),
            (_, Source::Data { layer, .. } | Source::Zero { layer: Some(layer) }) => {
                layers.get(&Some(layer))
            }
            (_, Source::Zero { layer: None } | Source::Parent) => None,
        };
        if console.is_json() {
            console.object(&MapAnswer::of(&extent, layer, depth_of_none))?;
        } else {
            console.line(line(&extent, layer, width))?;
        }
    }
    Ok(Reply::Yes)
}

fn layers(input: &Input) -> HashMap<Option<LayerId>, MapLayer> {
    match input {
        Input::Raw { path, .. } => {
            let file = path.display().to_string();
            [(None, MapLayer { depth: 0, file, has_parent: false })].into()
        }
        Input::Chain(chain) => {
            let layers = chain.layers();
            let last = layers.len() - 1;
            let entry = |(depth, layer): (usize, avhdx::Layer)| {
                (Some(layer.id), MapLayer { depth, file: layer.name, has_parent: depth < last })
            };
            layers.into_iter().enumerate().map(entry).collect()
        }
        Input::Foreign(foreign) => {
            let mut layers = HashMap::new();
            for (depth, image) in foreign.images.iter().enumerate() {
                for file in &image.files {
                    let (name, has_parent) = (file.name.clone(), image.has_parent);
                    let layer = MapLayer { depth, file: name, has_parent };
                    layers.extend(file.ids.iter().map(|id| (Some(*id), layer.clone())));
                }
            }
            layers
        }
        // No argument of this verb opens one.
        Input::Ruin(_) | Input::Kept { .. } => HashMap::new(),
    }
}

/// An extent, with the keys of qemu-img map.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct MapAnswer<'a> {
    start: u64,
    length: u64,
    /// The number of layers above the one that determines the bytes.
    depth: usize,
    /// Whether a layer determines the bytes, by holding data or by hiding its parent's.
    present: bool,
    zero: bool,
    data: bool,
    /// Where the data lies in the file of `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// The layer that determines the bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<&'a str>,
}

impl Answer for MapAnswer<'_> {
    const SCHEMA: &'static str = "avhdx.map/1";
}

impl<'a> MapAnswer<'a> {
    fn of(extent: &Extent, layer: Option<&'a MapLayer>, depth_of_none: usize) -> Self {
        let offset = match extent.source {
            Source::Data { at, .. } => Some(at.get()),
            Source::Zero { .. } | Source::Parent => None,
        };
        Self {
            start: extent.range.start,
            length: extent.range.end - extent.range.start,
            depth: layer.map_or(depth_of_none, |layer| layer.depth),
            present: offset.is_some() || layer.is_some_and(|layer| layer.has_parent),
            zero: offset.is_none(),
            data: offset.is_some(),
            offset,
            image: layer.map(|layer| layer.file.as_str()),
        }
    }
}

fn line(extent: &Extent, layer: Option<&MapLayer>, width: usize) -> String {
    let (kind, offset) = match extent.source {
        Source::Data { at, .. } => ("data", at.to_string()),
        Source::Zero { .. } | Source::Parent => ("zero", "-".into()),
    };
    let (depth, file) = layer.map_or(("-".into(), "past the end of a layer"), |layer| {
        (layer.depth.to_string(), layer.file.as_str())
    });
    let (start, length) = (extent.range.start, extent.range.end - extent.range.start);
    format!("{start:>width$}  {length:>width$}  {depth:>5}  {kind}  {offset:>14}  {file}")
}
