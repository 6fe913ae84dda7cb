//! Chains on a simulated host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Access, Host};
use avhdx::{Budget, Candidate, DiffChain, FoundBy, OpenOptions, ParentLink, ParentSource};
use avhdx_testkit::naive::{Chain, Layer};
use avhdx_testkit::sim::{Bytes, FOLDER, Files, SimHost};

use crate::TABLES;

/// The files of a chain, base first, under the names `l0`, `l1` and so on.
#[derive(Clone, Debug)]
pub struct Place {
    pub host: SimHost,
    pub count: usize,
}

pub fn path(layer: usize) -> PathBuf {
    Path::new(FOLDER).join(format!("l{layer}"))
}

impl Place {
    pub fn new(files: &[Bytes]) -> Self {
        let names = (0..files.len()).map(|n| (path(n), n)).collect();
        let files = Files { files: files.to_vec(), names, shows_stale: false };
        Self { count: files.files.len(), host: SimHost::new(files) }
    }

    /// Options under which the parent of a layer is the one below it, whatever the layer says.
    pub fn options(&self) -> OpenOptions {
        OpenOptions::new()
            .host(Arc::new(self.host.clone()))
            .budget(Budget::new(TABLES))
            .orphan_children(true)
            .parents(Below(self.clone()))
    }

    pub fn open(&self, options: &OpenOptions) -> avhdx::Result<DiffChain> {
        options.open(path(self.count - 1))
    }

    /// The naive reader's view of the topmost files as they are.
    pub fn naive(&self, layers: usize) -> Result<Chain, String> {
        let files = self.host.files().files.into_iter().skip(self.count - layers);
        files.map(|file| Layer::from_source(Arc::new(file))).collect::<Result<_, _>>().map(Chain)
    }
}

#[derive(Clone, Debug)]
struct Below(Place);

impl ParentSource for Below {
    fn candidates<'a>(
        &'a self,
        link: &'a ParentLink,
        access: Access,
    ) -> Box<dyn Iterator<Item = Candidate> + 'a> {
        let child = (0..self.0.count).find(|n| path(*n) == Path::new(&link.child));
        let parent = child.and_then(|child| child.checked_sub(1)).map(path);
        Box::new(parent.into_iter().map(move |parent| {
            let opened = self.0.host.open(&parent, access);
            Candidate::new(parent.display().to_string(), FoundBy::Other, opened)
        }))
    }
}
