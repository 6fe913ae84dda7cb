//! Collects the findings of a check, within bounds.

use std::collections::BTreeMap;

use super::meaning::meaning;
use super::remedy::{Remedy, remedy};
use crate::error::Error;

/// How many characters of a value are kept: images may contain any text.
const MOST_TEXT: usize = 300;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Severity {
    /// A rule of the format is broken: data is lost or at risk, or other programs refuse the image.
    Error,
    /// The image reads correctly, but trouble is likely, or it departs from the format in a way that readers tolerate.
    Warning,
    /// A fact worth knowing.
    Info,
}

/// A finding of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Finding {
    /// A short, stable code, such as `bat.duplicate`; errors of opening and reading use the same codes.
    pub code: &'static str,
    /// The severity.
    pub severity: Severity,
    /// The name of the file concerned.
    pub layer: String,
    /// What is wrong.
    pub message: String,
    /// The offset in the file, in bytes.
    pub offset: Option<u64>,
    /// What was found there.
    pub found: Option<String>,
    /// What the format expects there.
    pub expected: Option<String>,
    /// The section of \[MS-VHDX\] with the rule.
    pub section: Option<&'static str>,
    /// The consequence for the data, in one sentence.
    pub meaning: &'static str,
    /// What puts it right; `None` if nothing needs to be done, or nothing of this crate does it.
    pub repaired_by: Option<Remedy>,
}

/// Findings that are only counted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Unlisted {
    /// The code of the findings.
    pub code: &'static str,
    /// Their severity.
    pub severity: Severity,
    /// The name of the file concerned.
    pub layer: String,
    /// Their number.
    pub count: u64,
}

/// Collects findings layer by layer.
#[derive(Debug)]
pub(super) struct Findings {
    /// The names of the layers that were entered.
    layers: Vec<String>,
    /// The layer that findings are added to, by index.
    layer: usize,
    most: usize,
    /// The findings with their layers.
    list: Vec<(usize, Finding)>,
    listed: BTreeMap<&'static str, usize>,
    unlisted: BTreeMap<(usize, &'static str, Severity), u64>,
}

impl Findings {
    pub(super) fn new(most: usize) -> Self {
        Self {
            layers: Vec::new(),
            layer: 0,
            most,
            list: Vec::new(),
            listed: BTreeMap::new(),
            unlisted: BTreeMap::new(),
        }
    }

    /// Continues with the layer named `layer`, which may have been entered before.
    pub(super) fn enter(&mut self, layer: &str) {
        let known = self.layers.iter().position(|known| known == layer);
        self.layer = known.unwrap_or_else(|| {
            self.layers.push(layer.to_owned());
            self.layers.len() - 1
        });
    }

    pub(super) fn error(&mut self, error: Error) {
        self.add(Severity::Error, error);
    }

    pub(super) fn warning(&mut self, error: Error) {
        self.add(Severity::Warning, error);
    }

    pub(super) fn info(&mut self, error: Error) {
        self.add(Severity::Info, error);
    }

    pub(super) fn add(&mut self, severity: Severity, error: Error) {
        self.add_with(severity, error.code(), || error);
    }

    /// Adds a finding that is formatted only if it is listed: there may be millions.
    pub(super) fn add_with(
        &mut self,
        severity: Severity,
        code: &'static str,
        words: impl FnOnce() -> Error,
    ) {
        if self.is_full(code) {
            *self.unlisted.entry((self.layer, code, severity)).or_default() += 1;
            return;
        }
        *self.listed.entry(code).or_default() += 1;
        let error = words();
        let host = std::error::Error::source(&error).map(ToString::to_string);
        let finding = Finding {
            code,
            severity,
            layer: self.layers[self.layer].clone(),
            message: shortened(error.message()),
            offset: error.offset(),
            found: error.found().map(shortened).or(host),
            expected: error.expected().map(shortened),
            section: error.section(),
            meaning: meaning(code),
            repaired_by: remedy(code, severity),
        };
        self.list.push((self.layer, finding));
    }

    /// Counts findings that were not formatted.
    pub(super) fn skip(&mut self, severity: Severity, code: &'static str, count: u64) {
        if count > 0 {
            *self.unlisted.entry((self.layer, code, severity)).or_default() += count;
        }
    }

    /// Whether the list has reached its limit for this code.
    pub(super) fn is_full(&self, code: &'static str) -> bool {
        self.listed.get(code).is_some_and(|listed| *listed >= self.most)
    }

    /// All findings, in the order in which the layers were entered first.
    pub(super) fn finish(mut self) -> (Vec<Finding>, Vec<Unlisted>) {
        self.list.sort_by_key(|(layer, _)| *layer);
        let layers = &self.layers;
        let unlisted = self.unlisted.into_iter().map(|((layer, code, severity), count)| Unlisted {
            code,
            severity,
            layer: layers[layer].clone(),
            count,
        });
        let unlisted = unlisted.collect();
        (self.list.into_iter().map(|(_, finding)| finding).collect(), unlisted)
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
