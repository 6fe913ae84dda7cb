//! Points in time: `IMAGE@SEL`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use avhdx::storage::{Host, LocalHost};
use avhdx::{DiffChain, Layer, LayerId};

use crate::exit::Failure;
use crate::output::{Console, printable};

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

/// The points in time of a chain: its layers, and what each was called when it was made.
#[derive(Debug)]
pub(crate) struct Points {
    /// From the tip down.
    layers: Vec<Layer>,
    labels: Vec<Option<String>>,
}

impl Points {
    pub(crate) fn of(chain: &DiffChain) -> Self {
        let layers = chain.layers();
        // A label is kept in the child that the checkpoint made, and names what lies below.
        let label = |layer: &Layer| {
            let mark = chain.image(layer.id)?.checkpoint()?;
            Some(mark.label).filter(|label| !label.is_empty())
        };
        let mut labels = vec![None];
        labels.extend(layers.iter().map(label));
        labels.truncate(layers.len());
        Self { layers, labels }
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(crate) fn label(&self, id: LayerId) -> Option<&str> {
        let at = self.layers.iter().position(|layer| layer.id == id)?;
        self.labels[at].as_deref()
    }

    /// The layer that `selector` means, which is said.
    pub(crate) fn resolve(
        &self,
        selector: &str,
        argument: &str,
        console: &mut Console,
    ) -> Result<&Layer, Failure> {
        let layer = self.select(selector, argument)?;
        let called = self.label(layer.id).map_or_else(String::new, |label| format!(" ({label})"));
        let message = format!("{argument} is {}, {}{called}", layer.name, layer.data_write_guid);
        console.note("point.resolved", &message);
        Ok(layer)
    }

    /// The same, without a word.
    pub(crate) fn select(&self, selector: &str, argument: &str) -> Result<&Layer, Failure> {
        let layers = &self.layers;
        let unknown = |why: String| {
            Failure::usage("point.unknown", format!("{argument}: {why}")).hint(self.listing())
        };
        let is_label = |i: usize| self.labels[i].as_deref() == Some(selector);
        let below = selector.strip_prefix('-').and_then(|n| n.parse::<usize>().ok());
        // Every other reading counts, so that a file called `base` is never taken for another layer.
        let digits: String = selector.chars().filter(|c| !matches!(c, '-' | '{' | '}')).collect();
        let is_hex = below.is_none()
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let by_guid = |layer: &Layer| {
            let guid = layer.data_write_guid.to_string().replace('-', "");
            is_hex && digits.len() >= MIN_HEX && guid.starts_with(&digits.to_ascii_lowercase())
        };
        let by_name = |layer: &Layer| {
            let names = [&layer.path, &layer.via].into_iter().flatten();
            names.filter_map(|path| path.file_name()).any(|name| name == selector)
        };
        let is_meant = |i: usize, layer: &Layer| {
            (selector == "base" && i + 1 == layers.len())
                || below == Some(i)
                || by_name(layer)
                || by_guid(layer)
                || is_label(i)
        };
        let found: Vec<&Layer> = layers
            .iter()
            .enumerate()
            .filter(|(i, layer)| is_meant(*i, layer))
            .map(|(_, layer)| layer)
            .collect();
        match found[..] {
            [layer] => Ok(layer),
            [] if below.is_some() => Err(unknown(format!(
                "the chain has {} layers, so @-{} is its base",
                layers.len(),
                layers.len() - 1
            ))),
            [] if is_hex && digits.len() < MIN_HEX => Err(unknown(format!(
                "{selector} is no layer's label or file name, and too short for a DataWriteGuid: \
                 {MIN_HEX} digits or more"
            ))),
            [] => Err(unknown(format!("no layer of the chain is called {selector}"))),
            _ => Err(Failure::usage(
                "point.ambiguous",
                format!("{argument}: {} layers answer to {selector}", found.len()),
            )
            .hint(self.listing())),
        }
    }

    /// The points in time that there are.
    pub(crate) fn listing(&self) -> String {
        let mut text = String::from("the points in time are:");
        for (i, (layer, label)) in self.layers.iter().zip(&self.labels).enumerate() {
            text +=
                &format!("\n    @-{i:<3} {}  {}", layer.data_write_guid, printable(&layer.name));
            if let Some(label) = label {
                text += &format!("  ({})", printable(label));
            }
        }
        text
    }
}

fn exists(path: &Path) -> bool {
    // A link that leads nowhere is a name all the same, and one whose error should be told.
    LocalHost.stat(path).is_ok() || LocalHost.is_link(path).unwrap_or(false)
}
