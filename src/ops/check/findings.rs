//! What a check found, kept within bounds.

use std::collections::BTreeMap;

use super::meaning::meaning;
use crate::error::Error;

/// Characters of a value that a finding keeps: images may hold any text.
const MOST_TEXT: usize = 300;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// A rule of the format is broken: data is lost or in danger, or other programs refuse the image.
    Error,
    /// What reads right now but bodes ill, or departs from the format where readers must not care.
    Warning,
    /// Worth knowing.
    Info,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// A short, stable name, such as `bat.duplicate`; the same that errors of opening and reading have.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The file that it is about.
    pub layer: String,
    /// What is the case.
    pub message: String,
    /// The place in the file, in bytes from its start.
    pub offset: Option<u64>,
    /// What was found there.
    pub found: Option<String>,
    /// What the format expects there.
    pub expected: Option<String>,
    /// The section of \[MS-VHDX\] that has the rule.
    pub section: Option<&'static str>,
    /// What it means for the data, in one sentence.
    pub meaning: &'static str,
}

/// Findings that are counted only.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unlisted {
    /// As of a finding.
    pub code: &'static str,
    /// As of a finding.
    pub severity: Severity,
    /// As of a finding.
    pub layer: String,
    /// How many.
    pub count: u64,
}

/// Takes findings of one layer after the other.
#[derive(Debug)]
pub(super) struct Findings {
    layer: String,
    most: usize,
    list: Vec<Finding>,
    listed: BTreeMap<&'static str, usize>,
    unlisted: BTreeMap<(&'static str, Severity), u64>,
    done: Vec<Unlisted>,
}

impl Findings {
    pub(super) fn new(most: usize) -> Self {
        Self {
            layer: String::new(),
            most,
            list: Vec::new(),
            listed: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            done: Vec::new(),
        }
    }

    /// Goes on to the layer of that name.
    pub(super) fn enter(&mut self, layer: &str) {
        let unlisted = std::mem::take(&mut self.unlisted);
        self.done.extend(unlisted.into_iter().map(|((code, severity), count)| Unlisted {
            code,
            severity,
            layer: self.layer.clone(),
            count,
        }));
        self.layer = layer.to_owned();
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

    /// Adds a finding that is only put into words if it is listed: there may be millions.
    pub(super) fn add_with(
        &mut self,
        severity: Severity,
        code: &'static str,
        words: impl FnOnce() -> Error,
    ) {
        if self.is_full(code) {
            *self.unlisted.entry((code, severity)).or_default() += 1;
            return;
        }
        *self.listed.entry(code).or_default() += 1;
        let error = words();
        let host = std::error::Error::source(&error).map(ToString::to_string);
        let finding = Finding {
            code,
            severity,
            layer: self.layer.clone(),
            message: shortened(error.message()),
            offset: error.offset(),
            found: error.found().map(shortened).or(host),
            expected: error.expected().map(shortened),
            section: error.section(),
            meaning: meaning(code),
        };
        self.list.push(finding);
    }

    /// Counts findings that were not put into words.
    pub(super) fn skip(&mut self, severity: Severity, code: &'static str, count: u64) {
        if count > 0 {
            *self.unlisted.entry((code, severity)).or_default() += count;
        }
    }

    /// Whether no more findings of that code are listed.
    pub(super) fn is_full(&self, code: &'static str) -> bool {
        self.listed.get(code).is_some_and(|listed| *listed >= self.most)
    }

    pub(super) fn finish(mut self) -> (Vec<Finding>, Vec<Unlisted>) {
        self.enter("");
        (self.list, self.done)
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
