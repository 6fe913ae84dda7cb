//! Arguments that name a file, or a point in time as `IMAGE@SEL`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use avhdx::storage::{Host, LocalHost};

/// An argument split into its parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) image: PathBuf,
    /// Selects a layer of the chain; `None` stands for the image itself.
    pub(crate) selector: Option<String>,
}

impl Point {
    /// Splits at the last `@` that follows the name of an existing file. An existing file of the whole name wins.
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

/// The folder of a file; a bare name lies in the current one.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn exists(path: &Path) -> bool {
    // A dangling link counts: opening it reports the better error.
    LocalHost.stat(path).is_ok() || LocalHost.is_link(path).unwrap_or(false)
}
