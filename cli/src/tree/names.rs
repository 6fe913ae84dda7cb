//! The names of images, as text and as arguments.

use std::path::{Path, PathBuf};

use avhdx::ops::forest::{Forest, NodeId};

use crate::shell::argument;
use crate::text::printable;

/// A forest, and the folders and files it was found in.
pub(super) struct Names<'a> {
    pub(super) forest: &'a Forest,
    pub(super) places: &'a [PathBuf],
}

impl<'a> Names<'a> {
    pub(super) fn new(forest: &'a Forest, places: &'a [PathBuf]) -> Self {
        Self { forest, places }
    }

    /// A node's path, relative to the place if there is only one.
    pub(super) fn of(&self, id: NodeId) -> String {
        self.path(&self.forest.node(id).path)
    }

    pub(super) fn path(&self, path: &Path) -> String {
        match self.places {
            [place] => match path.strip_prefix(place) {
                Ok(below) if !below.as_os_str().is_empty() => printable(&below.to_string_lossy()),
                _ => printable(&path.to_string_lossy()),
            },
            _ => printable(&path.to_string_lossy()),
        }
    }

    /// A node's name under its parent: the file name if both are in the same folder.
    pub(super) fn below(&self, id: NodeId, parent: NodeId) -> String {
        let (path, above) = (&self.forest.node(id).path, &self.forest.node(parent).path);
        match path.file_name() {
            Some(name) if path.parent() == above.parent() => printable(&name.to_string_lossy()),
            _ => self.of(id),
        }
    }

    /// A node's path as an argument.
    pub(super) fn argument(&self, id: NodeId) -> String {
        argument(&self.forest.node(id).path)
    }

    /// The places as arguments.
    pub(super) fn place_arguments(&self) -> String {
        let places: Vec<String> = self.places.iter().map(|place| argument(place)).collect();
        places.join(" ")
    }
}
