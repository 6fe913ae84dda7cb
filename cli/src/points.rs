//! The points in time of a chain, and what a selector means among them.

use avhdx::{DiffChain, Layer, LayerId};

use crate::failure::Failure;
use crate::output::Console;
use crate::text::{count, printable};

/// The minimum number of digits in a prefix of a GUID.
const MIN_HEX: usize = 4;

/// The layers of a chain, each with the label of its checkpoint.
#[derive(Debug)]
pub(crate) struct Points {
    /// From the tip down.
    layers: Vec<Layer>,
    labels: Vec<Option<String>>,
}

impl Points {
    pub(crate) fn of(chain: &DiffChain) -> Self {
        let layers = chain.layers();
        // The child that a checkpoint makes holds the label; it names the layer below.
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

    /// The layer that `selector` means. Prints which one that is.
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

    /// The layer that `selector` means.
    pub(crate) fn select(&self, selector: &str, argument: &str) -> Result<&Layer, Failure> {
        let layers = &self.layers;
        let unknown = |why: String| {
            Failure::usage("point.unknown", format!("{argument}: {why}")).hint(self.listing())
        };
        let is_label = |i: usize| self.labels[i].as_deref() == Some(selector);
        let below = selector.strip_prefix('-').and_then(|n| n.parse::<usize>().ok());
        // All readings are tried, so that a selector with two meanings is refused rather than guessed.
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
                "the chain has {}; its base is @-{}",
                count(layers.len(), "layer"),
                layers.len() - 1
            ))),
            [] if is_hex && digits.len() < MIN_HEX => Err(unknown(format!(
                "no layer has the label or file name {selector}, and a DataWriteGuid prefix needs at least \
                 {MIN_HEX} digits"
            ))),
            [] => Err(unknown(format!("no layer of the chain matches {selector}"))),
            _ => Err(Failure::usage(
                "point.ambiguous",
                format!("{argument}: {} layers match {selector}", found.len()),
            )
            .hint(self.listing())),
        }
    }

    /// All points in time, one per line.
    pub(crate) fn listing(&self) -> String {
        let mut text = String::from("points in time:");
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
