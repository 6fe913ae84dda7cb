//! Other branches on the points of a chain.

use std::path::{Path, PathBuf};

use avhdx::ops::forest::{Forest, Node};
use avhdx::storage::{FileKind, Host, LocalHost};
use avhdx::{Layer, MergeState, PathSource};

use crate::args::OperationFlags;
use crate::failure::Failure;
use crate::operation::Subject;
use crate::point::folder_of;

/// A child of a layer that is not in its chain.
pub(crate) struct Other {
    pub(crate) path: PathBuf,
    /// Whether it is the rest of a merge that was interrupted before it removed the file.
    pub(crate) is_left_over: bool,
}

/// The children of a layer that are not in its chain, in the layer's folder, the tip's and those that the flags name.
pub(crate) fn others(
    subject: &Subject,
    point: &Layer,
    opening: &OperationFlags,
) -> Result<Vec<Other>, Failure> {
    let forest = forest(subject, opening)?;
    Ok(others_in(&forest, subject, point))
}

/// The images in the folders of all layers and in those that the flags name.
pub(crate) fn forest(subject: &Subject, opening: &OperationFlags) -> Result<Forest, Failure> {
    let mut folders = opening.children_in.clone();
    let mut files = Vec::new();
    for layer in subject.layers() {
        let Some(path) = &layer.path else { continue };
        let folder = folder_of(path).to_path_buf();
        if !folders.contains(&folder) {
            files.extend(files_beside(path, &[])?);
            folders.push(folder);
        }
    }
    for folder in &opening.children_in {
        files.extend(files_beside(&folder.join("-"), &[])?);
    }
    Ok(Forest::scan(files, &opening.source())?)
}

/// The same in a known forest.
pub(crate) fn others_in(forest: &Forest, subject: &Subject, point: &Layer) -> Vec<Other> {
    let own: Vec<_> = subject.layers().iter().map(|layer| layer.data_write_guid).collect();
    let children = forest.children_of(point.data_write_guid).map(|id| forest.node(id));
    let others =
        children.filter(|node| node.data_write_guid.is_none_or(|guid| !own.contains(&guid)));
    let other = |node: &Node| {
        let mark = node.image.as_ref().ok().and_then(|image| image.merge.as_ref());
        let is_left_over = mark.is_some_and(|mark| mark.state == MergeState::Spent);
        Other { path: node.path.clone(), is_left_over }
    };
    others.map(other).collect()
}

/// The images over these layers that are none of them, in the layers' folders. None if those cannot be looked at.
pub(crate) fn beside<'a>(layers: impl Iterator<Item = &'a Layer> + Clone) -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        layers.clone().filter_map(|layer| layer.path.as_deref()).map(folder_of).collect();
    folders.sort_unstable();
    folders.dedup();
    let files = folders.iter().filter_map(|folder| files_beside(&folder.join("-"), &[]).ok());
    let Ok(forest) = Forest::scan(files.flatten(), &PathSource::new()) else { return Vec::new() };
    let own: Vec<_> = layers.clone().map(|layer| layer.data_write_guid).collect();
    let children = layers.flat_map(|layer| forest.children_of(layer.data_write_guid));
    let nodes = children.map(|id| forest.node(id));
    let others = nodes.filter(|node| node.data_write_guid.is_none_or(|guid| !own.contains(&guid)));
    others.map(|node| node.path.clone()).collect()
}

/// The regular files of the folder of an image, and of further folders.
pub(crate) fn files_beside(file: &Path, folders: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let own = folder_of(file).to_path_buf();
    let mut files = Vec::new();
    for folder in [&own].into_iter().chain(folders) {
        let names = LocalHost.list(folder).map_err(|error| {
            let message =
                format!("{}: cannot list the folder to find the images", folder.display());
            Failure::io("children.folder", message, &error)
        })?;
        let is_file =
            |path: &PathBuf| LocalHost.stat(path).is_ok_and(|stat| stat.kind == FileKind::File);
        let names = names.into_iter().filter(|path| !is_temporary(path));
        files.extend(names.filter(is_file));
    }
    Ok(files)
}

/// Whether the file has the name of one that is incomplete or being removed: `.NAME.HEX.tmp`.
fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    let digits = inner.and_then(|inner| inner.rsplit_once('.'));
    digits.is_some_and(|(_, digits)| {
        digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}
