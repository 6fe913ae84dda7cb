//! What was found out about the layers of a chain before a merge.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::Arc;

use crate::chain::{Operation, path_of};
use crate::error::{Error, Result};
use crate::ops::forecast::check_removable;
use crate::storage::{Access, folder_of};
use crate::warning::Warning;
use crate::write::ChildSearch;

/// What is known about a merge that is possible.
#[derive(Clone, Default)]
pub(super) struct Checked {
    pub(super) warnings: Vec<Warning>,
    /// Files of earlier merges into these layers, which can be removed.
    pub(super) spent: Vec<PathBuf>,
}

/// What was found out about the layers of a chain that does not change meanwhile. Several merges may be examined with
/// it.
#[derive(Default)]
pub(super) struct Examined {
    search: Option<ChildSearch>,
    others: HashMap<usize, Result<Checked>>,
    claims: HashMap<usize, Result<()>>,
    writable: HashMap<usize, Result<()>>,
    folders: HashMap<PathBuf, Result<()>>,
}

impl Examined {
    /// The search for children, the same for all layers.
    pub(super) fn search(&mut self, make: impl FnOnce() -> ChildSearch) -> ChildSearch {
        let seen = || Some(Arc::default());
        self.search.get_or_insert_with(|| ChildSearch { seen: seen(), ..make() }).clone()
    }

    /// The children of a layer outside the chain.
    pub(super) fn others(
        &mut self,
        layer: usize,
        find: impl FnOnce() -> Result<Checked>,
    ) -> Result<Checked> {
        once(&mut self.others, layer, find)
    }

    /// As [`Operation::check_claims`].
    pub(super) fn check_claims(&mut self, op: &Operation<'_>, layer: usize) -> Result<()> {
        once(&mut self.claims, layer, || op.check_claims(layer))
    }

    /// Refuses a layer whose file the host does not allow to be written to.
    pub(super) fn check_writable(&mut self, op: &Operation<'_>, layer: usize) -> Result<()> {
        if layer == 0 && op.writer().is_some() {
            return Ok(());
        }
        once(&mut self.writable, layer, || {
            let images = op.images();
            let path = path_of(&images[layer])?;
            let opened = op.host().open(path, Access::ReadWrite).map_err(|error| {
                Error::io("file.open", "cannot open the file for writing", error).in_path(path)
            });
            opened.map(drop)
        })
    }

    /// Refuses a layer whose file the host does not allow to be removed.
    pub(super) fn check_removable(&mut self, op: &Operation<'_>, layer: usize) -> Result<()> {
        let images = op.images();
        let path = path_of(&images[layer])?;
        once(&mut self.folders, folder_of(path).to_path_buf(), || {
            check_removable(op.host().as_ref(), path)
        })
    }
}

/// Finds something once for each key.
fn once<K: Eq + Hash, T: Clone>(
    known: &mut HashMap<K, Result<T>>,
    key: K,
    find: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let copy = |found: &Result<T>| match found {
        Ok(found) => Ok(found.clone()),
        Err(error) => Err(error.same_again()),
    };
    if let Some(found) = known.get(&key) {
        return copy(found);
    }
    let found = find();
    known.insert(key, copy(&found));
    found
}
