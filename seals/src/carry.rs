//! Carries seals through a merge of layers.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::{Host, LocalHost, Storage};
use avhdx::uuid::Uuid;
use avhdx::{DiffChain, Error, ErrorKind, LayerId, Result};

use crate::build::publish;
use crate::file::{SealFile, seal_path};
use crate::format::Leaf;
use crate::hash::Hash;
use crate::layer::{check_same, identity_of, image_of, own_seal};
use crate::map::{FAN_OUT, GROUP, LeafMap, State};
use crate::prove::{Subject, Wanted, What};
use crate::sealing::{KnownLeaves, hash};
use crate::work::{Listener, default_threads};

/// Keeps the seals of a chain true through a merge: [`prove`](Self::prove) before it, [`CarriedSeals::seal`] after it.
#[derive(Debug)]
pub struct Carry<'a> {
    host: Arc<dyn Host>,
    threads: usize,
    listener: Listener<'a>,
}

/// The seals of layers that are about to be merged, which were proven.
#[derive(Debug)]
pub struct CarriedSeals {
    host: Arc<dyn Host>,
    threads: usize,
    /// From the newest layer down; `None` of one that has none of its identity.
    seals: Vec<Option<SealFile>>,
    paths: Vec<PathBuf>,
}

/// What became of the seals of layers that were merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Carried {
    /// The seal of the resulting layer, and the hash of the layer. `None` if not all layers were sealed.
    pub seal: Option<(PathBuf, Hash)>,
    /// The bytes of the resulting image that were read again.
    pub read: u64,
    /// The seals that were removed: of layers that are no more.
    pub removed: Vec<PathBuf>,
    /// Seals that should have been removed and could not be.
    pub left: Vec<PathBuf>,
}

impl Default for Carry<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Carry<'a> {
    /// Works on the local host, with two threads or more.
    pub fn new() -> Self {
        Self {
            host: Arc::new(LocalHost),
            threads: default_threads(),
            listener: Listener::default(),
        }
    }

    /// The host that has the files.
    pub fn host(mut self, host: Arc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// How many threads read and hash.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Calls `on` with how many bytes of the layers' disks are done, and how many there are. A break stops the proof with
    /// [`ErrorKind::Cancelled`].
    pub fn on_progress(mut self, on: impl FnMut(u64, u64) -> ControlFlow<()> + Send + 'a) -> Self {
        self.listener = Listener::new(on);
        self
    }

    /// Proves what the merge of these layers, from the newest down, moves or mixes: all of those that go away, and of the
    /// lowest the leaves that partly stay. Nothing is changed. Layers without a seal of their identity are not proven.
    ///
    /// # Errors
    /// [`ErrorKind::Unproven`] with the code `seal.changed` if a layer is not as its seal says, with the first range;
    /// [`ErrorKind::Damaged`] with `seal.damaged`; as for [`Verify::run`](crate::Verify::run).
    pub fn prove(mut self, chain: &DiffChain, merged: &[LayerId]) -> Result<CarriedSeals> {
        let all = chain.layers();
        let layers = merged.iter().map(|id| {
            all.iter().find(|layer| layer.id == *id).ok_or_else(|| {
                let message = "a layer that is to be merged is not in the chain";
                Error::new(ErrorKind::InvalidInput, "seal.moved", message).with_found(id)
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let mut seals = Vec::new();
        for layer in &layers {
            let is = identity_of(&*image_of(chain, layer)?);
            let seal = match &layer.path {
                Some(path) => own_seal(self.host.as_ref(), path, is)?,
                None => None,
            };
            seals.push(seal);
        }
        let total = layers.iter().map(|layer| layer.geometry.size).sum();
        let mut done = 0;
        for (index, (layer, seal)) in layers.iter().zip(&seals).enumerate() {
            if let Some(seal) = seal {
                let image = image_of(chain, layer)?;
                let subject = Subject::new(&image, seal, chain, layer.id);
                let is_lowest = index > 0 && index + 1 == layers.len();
                let above = &seals[..index];
                let wanted = |group| {
                    if is_lowest { mixed(above, group).map(Some) } else { Ok(Some(every())) }
                };
                let listener = &mut self.listener;
                let report = |at| listener.report(done + at, total);
                let proof = subject.prove(0..layer.geometry.size, self.threads, wanted, report)?;
                if let Some(found) = proof.found.into_iter().next() {
                    return Err(refused(found.what, &found.range, &layer.name));
                }
            }
            done += layer.geometry.size;
            self.listener.report(done, total)?;
        }
        let paths = layers.iter().filter_map(|layer| layer.path.clone()).collect();
        Ok(CarriedSeals { host: self.host, threads: self.threads, seals, paths })
    }
}

impl CarriedSeals {
    /// Whether every layer that is merged has a seal, so that the result gets one.
    pub fn are_complete(&self) -> bool {
        self.seals.iter().all(Option::is_some)
    }

    /// After the merge, seals the resulting layer of the chain, which is opened anew for reading, under its new identity:
    /// leaves that come from one layer as a whole are taken over from its seal, others are read. Removes the seals of the
    /// layers that are no more.
    ///
    /// Stopped at any point, this leaves seals of identities that are no more, or none.
    ///
    /// # Errors
    /// As for [`Seal::run`](crate::Seal::run).
    pub fn seal(self, chain: &DiffChain, result: LayerId) -> Result<Carried> {
        let mut carried = Carried::default();
        let layers = chain.layers();
        let layer = layers.iter().find(|layer| layer.id == result);
        let path = layer.and_then(|layer| layer.path.as_deref());
        if let (Some(layer), Some(path), true) = (layer, path, self.are_complete()) {
            let image = image_of(chain, layer)?;
            let seals: Arc<[SealFile]> = self.seals.into_iter().flatten().collect();
            let known = |group| known(Arc::clone(&seals), group);
            let published = publish(
                self.host.as_ref(),
                path,
                identity_of(&image),
                |tree| {
                    carried.read = hash(&image, tree, self.threads, Some(&known), |_| Ok(()))?;
                    Ok(())
                },
                || check_same(self.host.as_ref(), path, &image),
            )?;
            carried.seal = Some((seal_path(path), published.hash));
            carried.left.extend(published.left);
        }
        let swept = sweep(self.host.as_ref(), &self.paths, chain);
        carried.removed = swept.removed;
        carried.left.extend(swept.left);
        Ok(carried)
    }
}

/// Removes the seals beside these images whose identity no layer of the chain has, and leaves what is no seal.
pub fn sweep(host: &dyn Host, images: &[PathBuf], chain: &DiffChain) -> Carried {
    let layers = chain.layers();
    let is_gone = |guid: Uuid| layers.iter().all(|layer| layer.data_write_guid != guid);
    let mut swept = Carried::default();
    for path in images {
        let seal = SealFile::beside(host, path).ok().flatten();
        let seal = seal.filter(|seal| is_gone(seal.identity().data_write_guid));
        swept.take(host, path, seal);
    }
    swept
}

impl Carried {
    /// Removes the seal of an image, if there is one.
    fn take(&mut self, host: &dyn Host, image: &Path, seal: Option<SealFile>) {
        let Some(seal) = seal else { return };
        let path = seal_path(image);
        match remove(host, &path, seal.storage().as_ref()) {
            true => self.removed.push(path),
            false => self.left.push(path),
        }
    }
}

/// Removes the seals of images that were removed: those beside which no file lies any more.
pub fn sweep_removed(host: &dyn Host, removed: &[PathBuf]) -> Carried {
    let mut swept = Carried::default();
    for image in removed {
        let is_gone =
            matches!(host.stat(image), Err(error) if error.kind() == io::ErrorKind::NotFound);
        let seal = SealFile::beside(host, image).ok().flatten().filter(|_| is_gone);
        swept.take(host, image, seal);
    }
    swept
}

/// Removes a file, unless another has its name by now.
fn remove(host: &dyn Host, path: &Path, file: &dyn Storage) -> bool {
    let id = file.id().ok().flatten();
    let is_same = host.stat(path).is_ok_and(|now| id.is_none() || now.id == id);
    is_same && host.remove(path).is_ok()
}

fn every() -> Wanted {
    Box::new(|_| true)
}

/// The leaves of a group that the layers above cover in part, or may.
fn mixed(above: &[Option<SealFile>], group: u64) -> Result<Wanted> {
    let mut is_mixed = vec![false; FAN_OUT as usize];
    let mut is_covered = is_mixed.clone();
    for seal in above {
        let Some(seal) = seal.as_ref() else {
            return Ok(every());
        };
        if group >= seal.identity().size.div_ceil(GROUP) {
            continue;
        }
        for (index, leaf) in seal.leaves_of(group)?.iter().enumerate() {
            let covers = match leaf {
                Leaf::Uniform(state) => *state != State::Parent,
                Leaf::Held { map, .. } => !map.has(State::Parent),
            };
            is_covered[index] |= covers;
            is_mixed[index] |= leaf.uniform() != Some(State::Parent) && !is_covered[index];
        }
    }
    let leaves = is_mixed.into_iter().zip(is_covered).map(|(mixed, covered)| mixed && !covered);
    let leaves: Vec<bool> = leaves.collect();
    Ok(Box::new(move |leaf| leaves[leaf]))
}

/// The hashes of leaves in a group that come from one layer as a whole.
fn known(seals: Arc<[SealFile]>, group: u64) -> Result<KnownLeaves> {
    let mut layers = Vec::new();
    for seal in seals.iter() {
        let has = group < seal.identity().size.div_ceil(GROUP);
        layers.push(if has { seal.leaves_of(group)? } else { Vec::new() });
    }
    Ok(Box::new(move |index, map: &LeafMap| {
        let is_parents =
            |leaf: Option<&Leaf>| leaf.is_some_and(|leaf| leaf.uniform() == Some(State::Parent));
        let mut below = layers.iter().map(|leaves| leaves.get(index));
        let owner = below.by_ref().find(|leaf| !is_parents(*leaf))??;
        let Leaf::Held { hash, map: sealed } = owner else { return None };
        let is_alone = !map.has(State::Parent) || below.all(is_parents);
        (sealed == map && is_alone).then_some(*hash)
    }))
}

fn refused(what: What, range: &std::ops::Range<u64>, name: &str) -> Error {
    let place = format!("at {} to {} of the disk", range.start, range.end);
    let unproven = |message: &str| {
        let message = format!("the layer is not as its seal says, {place}: {message}");
        Error::new(ErrorKind::Unproven, "seal.changed", message).in_file(name)
    };
    match what {
        What::Contents => unproven("the bytes are not those that were sealed"),
        What::Map => unproven("it answers for sectors for which it did not"),
        What::Unreadable(error) => unproven(error.message()),
        What::Damaged(error) => error,
    }
}
