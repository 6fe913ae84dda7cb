//! Seals the points in time of a chain.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use avhdx::storage::{Host, LocalHost};
use avhdx::{DiffChain, Disk, LayerId, Result, VhdxFile};

use crate::build::{Tree, publish};
use crate::file::seal_path;
use crate::hash::{Hash, chain_hash};
use crate::layer::{LeftOut, check_same, identity_of, image_of, left_out, own_seal};
use crate::leaves::{Hashed, LeafHasher};
use crate::map::{FAN_OUT, GROUP, LEAF, LeafMap, State, uniform_groups};
use crate::work::{Listener, Next, default_threads, in_order};

/// Seals each layer of a chain that is a point in time and has no seal of its identity yet.
///
/// The chain is opened for reading; with [`Lock::Try`](avhdx::Lock::Try) its tip may be in use, and is left out.
#[derive(Debug)]
pub struct Seal<'a> {
    host: Arc<dyn Host>,
    threads: usize,
    again: bool,
    listener: Listener<'a>,
}

/// A chain and the seals of its layers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sealed {
    /// From the tip down.
    pub layers: Vec<SealedLayer>,
    /// The hash of the chain: of all layers from the newest sealed one down. `None` if one below that has no seal, or
    /// none has.
    pub root: Option<Hash>,
}

/// A layer and its seal.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SealedLayer {
    /// The layer.
    pub layer: LayerId,
    /// The name of its file.
    pub name: String,
    /// The seal file, if it has one.
    pub seal: Option<PathBuf>,
    /// What was done.
    pub outcome: Outcome,
    /// The hash of the layer, if it is sealed.
    pub hash: Option<Hash>,
    /// The bytes of the image's data that were read.
    pub read: u64,
    /// An older seal that was replaced and could not be removed.
    pub left: Option<PathBuf>,
}

/// What was done about a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It was read and sealed.
    Written,
    /// It has a seal of its identity already.
    Kept,
    /// It has none, for this reason.
    LeftOut(LeftOut),
}

impl Default for Seal<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Seal<'a> {
    /// Seals on the local host, with two threads or more.
    pub fn new() -> Self {
        Self {
            host: Arc::new(LocalHost),
            threads: default_threads(),
            again: false,
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

    /// Whether layers are read and sealed again that have a seal already, be it damaged or of a newer version.
    pub fn again(mut self, yes: bool) -> Self {
        self.again = yes;
        self
    }

    /// Calls `on` with how many bytes of the layers' disks are done, and how many there are. A break stops the operation
    /// with [`ErrorKind::Cancelled`](avhdx::ErrorKind::Cancelled); seals that are complete stay.
    pub fn on_progress(mut self, on: impl FnMut(u64, u64) -> ControlFlow<()> + Send + 'a) -> Self {
        self.listener = Listener::new(on);
        self
    }

    /// Finds the seals that there are, and makes none.
    ///
    /// # Errors
    /// As for [`run`](Self::run), except for those of reading images and writing seals.
    pub fn look(self, chain: &DiffChain) -> Result<Sealed> {
        self.all(chain, false)
    }

    /// Seals the layers of the chain, the base first.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`](avhdx::ErrorKind::InUse) if an image changed meanwhile, whose seal stays as it was, or a parent
    /// is written to; [`ErrorKind::Unfinished`](avhdx::ErrorKind::Unfinished) with a merge that is not complete; as for
    /// [`SealFile::beside`](crate::SealFile::beside) for a seal that is damaged; and those of reading the images and
    /// writing the seals.
    pub fn run(self, chain: &DiffChain) -> Result<Sealed> {
        self.all(chain, true)
    }

    fn all(mut self, chain: &DiffChain, may_write: bool) -> Result<Sealed> {
        let layers = chain.layers();
        let total = layers.iter().map(|layer| layer.geometry.size).sum();
        let mut done = 0;
        let mut sealed = Vec::new();
        for (depth, layer) in layers.iter().enumerate().rev() {
            let image = image_of(chain, layer)?;
            let mut one = SealedLayer {
                layer: layer.id,
                name: layer.name.clone(),
                seal: None,
                outcome: Outcome::Kept,
                hash: None,
                read: 0,
                left: None,
            };
            let out = left_out(layer, &image, depth == 0)?;
            match (out, &layer.path) {
                (None, Some(path)) => {
                    let identity = identity_of(&image);
                    let old = match own_seal(self.host.as_ref(), path, identity) {
                        Ok(old) => old.filter(|_| !self.again),
                        Err(error)
                            if self.again
                                && matches!(error.code(), "seal.damaged" | "seal.version") =>
                        {
                            None
                        }
                        Err(error) => return Err(error),
                    };
                    match old {
                        Some(old) => one.hash = Some(old.hash()),
                        None if may_write => {
                            let mut read = 0;
                            let (threads, listener) = (self.threads, &mut self.listener);
                            let published = publish(
                                self.host.as_ref(),
                                path,
                                identity,
                                |tree| {
                                    let report = |at| listener.report(done + at, total);
                                    read = hash(&image, tree, threads, None, report)?;
                                    Ok(())
                                },
                                || check_same(self.host.as_ref(), path, &image),
                            )?;
                            one.outcome = Outcome::Written;
                            one.hash = Some(published.hash);
                            (one.read, one.left) = (read, published.left);
                        }
                        None => one.outcome = Outcome::LeftOut(LeftOut::NotSealed),
                    }
                    one.seal = one.hash.map(|_| seal_path(path));
                }
                (out, _) => one.outcome = Outcome::LeftOut(out.unwrap_or(LeftOut::NoFolder)),
            }
            done += layer.geometry.size;
            self.listener.report(done, total)?;
            sealed.push(one);
        }
        sealed.reverse();
        let root = root_of(sealed.iter().map(|layer| layer.hash));
        Ok(Sealed { layers: sealed, root })
    }
}

/// The hash of a chain whose layers, from the tip down, have these. A tip without one is left out.
pub(crate) fn root_of(layers: impl IntoIterator<Item = Option<Hash>>) -> Option<Hash> {
    let mut layers = layers.into_iter().peekable();
    layers.next_if(Option::is_none);
    let layers = layers.collect::<Option<Vec<Hash>>>()?;
    (!layers.is_empty()).then(|| chain_hash(&layers))
}

/// Whose hashes are taken over: of a group, those of its leaves that have this map.
pub(crate) type Known<'k> = dyn Fn(u64) -> Result<KnownLeaves> + Sync + 'k;
pub(crate) type KnownLeaves = Box<dyn FnMut(usize, &LeafMap) -> Option<Hash>>;

/// Hashes an image into a tree. Returns how many bytes were read.
pub(crate) fn hash(
    image: &VhdxFile,
    tree: &mut Tree<'_>,
    threads: usize,
    known: Option<&Known<'_>>,
    mut report: impl FnMut(u64) -> Result<()>,
) -> Result<u64> {
    enum Part {
        Uniform(State, u64),
        Hashed(Hashed),
    }
    let size = image.geometry().size;
    let groups = size.div_ceil(GROUP);
    let (mut at, mut added, mut read) = (0, 0, 0);
    in_order(
        threads,
        || {
            if at == groups {
                return Ok(None);
            }
            let (state, count) = uniform_groups(image, at)?;
            let next =
                if count > 0 { Next::Done(Part::Uniform(state, count)) } else { Next::Task(at) };
            at += count.max(1);
            Ok(Some(next))
        },
        |group| {
            let hasher = LeafHasher::new(image);
            let hashed = match known {
                Some(known) => hasher.group(group, known(group)?),
                None => hasher.group(group, |_, _| None),
            };
            hashed.map(Part::Hashed)
        },
        |part| {
            match part {
                Part::Uniform(state, count) => {
                    tree.add_uniform(state, count)?;
                    added += count;
                }
                Part::Hashed(hashed) => {
                    tree.add(&hashed.leaves)?;
                    read += hashed.read;
                    added += 1;
                }
            }
            report((added * FAN_OUT * LEAF).min(size))
        },
    )?;
    Ok(read)
}
