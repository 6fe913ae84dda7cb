//! `avhdx map`: which file holds which bytes.

use std::collections::HashMap;

use avhdx::{DiskExt, Extent, LayerId, Source};
use serde_json::{Value, json};

use crate::args::{self, Format, Opening};
use crate::exit::{Failure, Outcome};
use crate::input::Input;
use crate::output::Console;

/// List the extents of the disk with their layer and their place in its file.
///
/// With --json, one object per line with qemu-img's names: depth counts from the tip; present says that a
/// layer decides the bytes, by holding them or by hiding its parent's.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    image: args::Image,
    /// Where on the disk to start.
    #[arg(long, value_name = "N", value_parser = args::bytes, default_value = "0")]
    offset: u64,
    /// How many bytes to look at; without this flag, all the rest.
    #[arg(long, value_name = "N", value_parser = args::bytes)]
    length: Option<u64>,
    /// What the input is.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "vhdx")]
    format: Format,
    #[command(flatten)]
    opening: Opening,
}

/// What is known of the layer that decides an extent.
#[derive(Clone, Debug)]
struct Place {
    depth: usize,
    file: String,
    has_parent: bool,
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Outcome, Failure> {
    let input = Input::open(&args.image.image, args.format, &args.opening, console)?;
    let size = input.disk().geometry().size;
    let length = args.length.unwrap_or(size.saturating_sub(args.offset));
    let end = args.offset.checked_add(length).filter(|end| *end <= size).ok_or_else(|| {
        let message = format!(
            "{length} bytes at {} do not lie within the disk, which has {size}",
            args.offset
        );
        Failure::usage("disk.out-of-range", message)
    })?;
    let places = places(&input);
    let depth_of_nobody = places.len();
    // Wide enough for every number to come, so that lines can go out one by one.
    let width = end.to_string().len().max("LENGTH".len());
    if !console.is_json() {
        let (start, length) = ("START", "LENGTH");
        console.line(format!(
            "{start:>width$}  {length:>width$}  DEPTH  KIND  {:>14}  FILE",
            "FILE OFFSET"
        ))?;
    }
    for extent in input.disk().extents(args.offset..end) {
        let extent = extent?;
        let place = match (&input, extent.source) {
            (Input::Raw { .. }, _) => places.values().next(),
            (_, Source::Data { layer, .. } | Source::Zero { layer: Some(layer) }) => {
                places.get(&Some(layer))
            }
            (_, Source::Zero { layer: None } | Source::Parent) => None,
        };
        if console.is_json() {
            console.object(&object(&extent, place, depth_of_nobody))?;
        } else {
            console.line(line(&extent, place, width))?;
        }
    }
    Ok(Outcome::Yes)
}

fn places(input: &Input) -> HashMap<Option<LayerId>, Place> {
    match input {
        Input::Raw { path, .. } => {
            let file = path.display().to_string();
            [(None, Place { depth: 0, file, has_parent: false })].into()
        }
        Input::Chain(chain) => {
            let layers = chain.layers();
            let last = layers.len() - 1;
            let place = |(depth, layer): (usize, avhdx::Layer)| {
                (Some(layer.id), Place { depth, file: layer.name, has_parent: depth < last })
            };
            layers.into_iter().enumerate().map(place).collect()
        }
    }
}

fn object(extent: &Extent, place: Option<&Place>, depth_of_nobody: usize) -> Value {
    let is_data = matches!(extent.source, Source::Data { .. });
    let mut object = json!({
        "schema": "avhdx.map/1",
        "start": extent.range.start,
        "length": extent.range.end - extent.range.start,
        "depth": place.map_or(depth_of_nobody, |place| place.depth),
        "present": is_data || place.is_some_and(|place| place.has_parent),
        "zero": !is_data,
        "data": is_data,
    });
    if let Source::Data { at, .. } = extent.source {
        object["offset"] = at.get().into();
    }
    if let Some(place) = place {
        object["file"] = place.file.clone().into();
    }
    object
}

fn line(extent: &Extent, place: Option<&Place>, width: usize) -> String {
    let (kind, offset) = match extent.source {
        Source::Data { at, .. } => ("data", at.to_string()),
        Source::Zero { .. } | Source::Parent => ("zero", "-".into()),
    };
    let (depth, file) = place.map_or(("-".into(), "past the end of a layer"), |place| {
        (place.depth.to_string(), place.file.as_str())
    });
    let (start, length) = (extent.range.start, extent.range.end - extent.range.start);
    format!("{start:>width$}  {length:>width$}  {depth:>5}  {kind}  {offset:>14}  {file}")
}
