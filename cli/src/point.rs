//! Points in time: `IMAGE@SEL`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use avhdx::Layer;
use avhdx::storage::{Host, LocalHost};

use crate::exit::Failure;
use crate::output::printable;

/// The digits that a prefix of a GUID must have.
const MIN_HEX: usize = 4;

/// An argument taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) image: PathBuf,
    /// Which layer of its chain; `None` for the image itself.
    pub(crate) selector: Option<String>,
}

impl Point {
    /// A file of exactly that name wins; else the longest file name that an `@` follows.
    pub(crate) fn parse(argument: &OsStr) -> Self {
        let whole = || Self { image: argument.into(), selector: None };
        if exists(Path::new(argument)) {
            return whole();
        }
        let Some(text) = argument.to_str() else { return whole() };
        let mut splits = text.rmatch_indices('@').map(|(at, _)| (&text[..at], &text[at + 1..]));
        let found =
            splits.find(|(image, selector)| !selector.is_empty() && exists(Path::new(image)));
        found.map_or_else(whole, |(image, selector)| Self {
            image: image.into(),
            selector: Some(selector.into()),
        })
    }
}

/// The layer that `selector` means, of `layers` from the tip down.
pub(crate) fn select<'a>(
    layers: &'a [Layer],
    selector: &str,
    argument: &str,
) -> Result<&'a Layer, Failure> {
    let unknown = |why: String| {
        Failure::usage("point.unknown", format!("{argument}: {why}")).hint(listing(layers))
    };
    if let Some(below) = selector.strip_prefix('-').and_then(|n| n.parse::<usize>().ok()) {
        return layers.get(below).ok_or_else(|| {
            unknown(format!(
                "the chain has {} layers, so @-{} is its base",
                layers.len(),
                layers.len() - 1
            ))
        });
    }
    // Every other reading counts, so that a file called `base` is never taken for another layer.
    let digits: String = selector.chars().filter(|c| !matches!(c, '-' | '{' | '}')).collect();
    let is_hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let by_guid = |layer: &Layer| {
        let guid = layer.data_write_guid.to_string().replace('-', "");
        is_hex && digits.len() >= MIN_HEX && guid.starts_with(&digits.to_ascii_lowercase())
    };
    let by_name = |layer: &Layer| {
        layer.path.as_deref().and_then(Path::file_name).is_some_and(|name| name == selector)
    };
    let found: Vec<&Layer> = layers
        .iter()
        .enumerate()
        .filter(|(i, layer)| {
            (selector == "base" && i + 1 == layers.len()) || by_name(layer) || by_guid(layer)
        })
        .map(|(_, layer)| layer)
        .collect();
    match found[..] {
        [layer] => Ok(layer),
        [] if is_hex && digits.len() < MIN_HEX => Err(unknown(format!(
            "{selector} is no layer's file name, and too short for a DataWriteGuid: {MIN_HEX} digits or more"
        ))),
        [] => Err(unknown(format!("no layer of the chain is called {selector}"))),
        _ => Err(Failure::usage(
            "point.ambiguous",
            format!("{argument}: {} layers answer to {selector}", found.len()),
        )
        .hint(listing(layers))),
    }
}

/// The points in time that there are.
fn listing(layers: &[Layer]) -> String {
    let mut text = String::from("the points in time are:");
    for (i, layer) in layers.iter().enumerate() {
        text += &format!("\n    @-{i:<3} {}  {}", layer.data_write_guid, printable(&layer.name));
    }
    text
}

fn exists(path: &Path) -> bool {
    // A link that leads nowhere is a name all the same, and one whose error should be told.
    LocalHost.stat(path).is_ok() || LocalHost.is_link(path).unwrap_or(false)
}
