//! Proves that an image is as its seal says.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use avhdx::{DiffChain, Disk, Error, ErrorKind, LayerId, Result, VhdxFile};

use crate::file::{Group, SealFile};
use crate::format::Leaf;
use crate::hash::Hash;
use crate::leaves::{LeafHasher, hash_through};
use crate::map::{FAN_OUT, GROUP, LEAF, LeafMap, State, group_maps, span, uniform_groups};
use crate::work::{Next, in_order};

/// How many ranges are told of a layer.
const MOST: usize = 1000;

/// What is proven of a layer.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    /// Ranges that are not as the seal says, in order.
    pub(crate) found: Vec<Found>,
    /// How many more there are.
    pub(crate) unlisted: u64,
    /// The bytes of data that were read.
    pub(crate) read: u64,
}

/// A range of the disk that is not as the seal says.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) range: Range<u64>,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// Bytes are others.
    Contents,
    /// The layer answers for sectors for which it did not.
    Map,
    /// The image has no such part any more, or does not say what it holds.
    Unreadable(Error),
    /// The seal cannot be read there.
    Damaged(Error),
}

impl What {
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Contents, Self::Contents) | (Self::Map, Self::Map) => true,
            (Self::Unreadable(a), Self::Unreadable(b)) => a.code() == b.code(),
            (Self::Damaged(a), Self::Damaged(b)) => a.offset() == b.offset(),
            _ => false,
        }
    }
}

/// A layer, its seal, and the chain it is read through where it gave up sectors.
pub(crate) struct Subject<'a> {
    pub(crate) image: &'a VhdxFile,
    pub(crate) seal: &'a SealFile,
    pub(crate) chain: &'a DiffChain,
    pub(crate) layer: LayerId,
    view: OnceLock<DiffChain>,
}

/// A number of groups, what was found there, and how many bytes were read.
type Part = (u64, Vec<Found>, u64);
type Task = (u64, Vec<Leaf>, Wanted);

fn task(group: u64, leaves: Vec<Leaf>, wanted: Option<Wanted>) -> Next<Task, Part> {
    match wanted {
        Some(wanted) => Next::Task((group, leaves, wanted)),
        None => Next::Done((1, Vec::new(), 0)),
    }
}

/// Of a group, whether a leaf of it has to be proven.
pub(crate) type Wanted = Box<dyn Fn(usize) -> bool + Send>;

impl<'a> Subject<'a> {
    pub(crate) fn new(
        image: &'a Arc<VhdxFile>,
        seal: &'a SealFile,
        chain: &'a DiffChain,
        layer: LayerId,
    ) -> Self {
        Self { image, seal, chain, layer, view: OnceLock::new() }
    }

    /// Proves the range. `wanted` tells which leaves of a group are to be proven; `None` for none.
    pub(crate) fn prove(
        &self,
        range: Range<u64>,
        threads: usize,
        mut wanted: impl FnMut(u64) -> Result<Option<Wanted>>,
        mut report: impl FnMut(u64) -> Result<()>,
    ) -> Result<Proof> {
        let size = self.image.geometry().size;
        let end = range.end.min(size);
        let mut at = range.start.min(end) / GROUP;
        let groups = end.div_ceil(GROUP);
        let (mut proof, mut done) = (Proof::default(), 0);
        in_order(
            threads,
            || {
                if at >= groups {
                    return Ok(None);
                }
                let group = at;
                let (next, count) = match self.seal.group(group)? {
                    Group::Damaged(error, count) => {
                        let until = span(group + count - 1, GROUP, size).end.min(end);
                        let from = span(group, GROUP, size).start.max(range.start);
                        let found = Found { range: from..until, what: What::Damaged(error) };
                        (Next::Done((count, vec![found], 0)), count)
                    }
                    Group::Uniform(state, count) => match uniform_groups(self.image, group) {
                        Ok((now, others)) if now == state && others > 0 => {
                            let count = count.min(others);
                            (Next::Done((count, Vec::new(), 0)), count)
                        }
                        Err(error) if error.kind() != ErrorKind::Damaged => return Err(error),
                        _ => {
                            let leaves = self.seal.leaves_of(group)?;
                            (task(group, leaves, wanted(group)?), 1)
                        }
                    },
                    Group::Leaves(leaves) => (task(group, leaves, wanted(group)?), 1),
                };
                at += count;
                Ok(Some(next))
            },
            |(group, leaves, wanted): Task| {
                let (found, read) = self.group(group, &leaves, |leaf| {
                    let leaf_span = span(group * FAN_OUT + leaf as u64, LEAF, size);
                    leaf_span.start < end && range.start < leaf_span.end && wanted(leaf)
                })?;
                Ok::<Part, Error>((1, found, read))
            },
            |(count, found, read)| {
                proof.read += read;
                found.into_iter().for_each(|found| proof.add(found));
                done += count * GROUP;
                report(done.min(size))
            },
        )?;
        Ok(proof)
    }

    /// Proves the leaves of a group that are wanted.
    fn group(
        &self,
        group: u64,
        leaves: &[Leaf],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<(Vec<Found>, u64)> {
        let skipped = Hash::new([0; 32]);
        let size = self.image.geometry().size;
        let first = group * FAN_OUT;
        let place = |leaf: usize| span(first + leaf as u64, LEAF, size);
        let is_as_mapped = |leaf: usize, map: &LeafMap| matches!(&leaves[leaf], Leaf::Held { map: sealed, .. } if sealed == map);
        let hashed = LeafHasher::new(self.image).group(group, |leaf, map| {
            (!wanted(leaf) || !is_as_mapped(leaf, map)).then_some(skipped)
        });
        let hashed = match hashed {
            Ok(hashed) => hashed,
            Err(error) if error.kind() == ErrorKind::Damaged => {
                return self.one_by_one(group, leaves, wanted);
            }
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        let mut read = hashed.read;
        for (index, (sealed, now)) in leaves.iter().zip(&hashed.leaves).enumerate() {
            if !wanted(index) {
                continue;
            }
            let what = match (sealed, now) {
                (Leaf::Uniform(sealed), Leaf::Uniform(now)) if sealed == now => None,
                (Leaf::Held { hash, map }, Leaf::Held { hash: now, map: same }) if map == same => {
                    (hash != now).then_some(What::Contents)
                }
                _ => self.otherwise(first + index as u64, sealed, now, &mut read)?,
            };
            found.extend(what.map(|what| Found { range: place(index), what }));
        }
        Ok((found, read))
    }

    /// Proves the leaves of a group of which some cannot be read.
    fn one_by_one(
        &self,
        group: u64,
        leaves: &[Leaf],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<(Vec<Found>, u64)> {
        let size = self.image.geometry().size;
        let sector = self.image.geometry().logical_sector;
        let first = group * FAN_OUT;
        let place = |leaf: u64| span(first + leaf, LEAF, size);
        let maps = match group_maps(self.image, group) {
            Ok(maps) => maps,
            Err(error) if error.kind() == ErrorKind::Damaged => {
                let range = span(group, GROUP, size);
                return Ok((vec![Found { range, what: What::Unreadable(error) }], 0));
            }
            Err(error) => return Err(error),
        };
        let (mut found, mut read, mut buf) = (Vec::new(), 0, Vec::new());
        for (index, (sealed, map)) in leaves.iter().zip(maps).enumerate() {
            if !wanted(index) {
                continue;
            }
            let leaf = first + index as u64;
            let now = match map.uniform() {
                Some(state @ (State::Parent | State::Zero)) => Leaf::Uniform(state),
                _ => match hash_through(self.image, leaf, &map, sector, &mut buf) {
                    Ok(hash) => Leaf::Held { hash, map },
                    Err(error) if error.kind() == ErrorKind::Damaged => {
                        let what = What::Unreadable(error);
                        found.push(Found { range: place(index as u64), what });
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            read += buf.len() as u64;
            if *sealed != now {
                let what = self.otherwise(leaf, sealed, &now, &mut read)?;
                found.extend(what.map(|what| Found { range: place(index as u64), what }));
            }
        }
        Ok((found, read))
    }

    /// What is wrong with a leaf that is not mapped as it was. A layer may give up sectors that read the same without
    /// them, and have zeros as data: then nothing is.
    fn otherwise(
        &self,
        leaf: u64,
        sealed: &Leaf,
        now: &Leaf,
        read: &mut u64,
    ) -> Result<Option<What>> {
        let geometry = self.image.geometry();
        let sector = geometry.logical_sector;
        let range = span(leaf, LEAF, geometry.size);
        let sectors = ((range.end - range.start) / u64::from(sector)) as u32;
        let map_of = |leaf: &Leaf| match leaf {
            Leaf::Uniform(state) => LeafMap::whole(*state, sectors),
            Leaf::Held { map, .. } => map.clone(),
        };
        let (was, is) = (map_of(sealed), map_of(now));
        let parents = was.ranges(range.start, sector).filter(|(state, _)| *state == State::Parent);
        let own = is.ranges(range.start, sector).filter(|(state, _)| *state != State::Parent);
        let own: Vec<(State, Range<u64>)> = own.collect();
        for (_, parents) in parents {
            for (state, own) in &own {
                let taken = own.start.max(parents.start)..own.end.min(parents.end);
                // A block of zeros over zeros may be zeros as a whole.
                if !taken.is_empty() && (*state == State::Data || !self.is_zero_below(taken)?) {
                    return Ok(Some(What::Map));
                }
            }
        }
        let view = self.view()?;
        let mut buf = Vec::new();
        let same = match sealed {
            Leaf::Held { hash, .. } => {
                hash_through(view, leaf, &was, sector, &mut buf).map(|now| now == *hash)
            }
            Leaf::Uniform(_) => Ok(true),
        };
        *read += buf.len() as u64;
        let zeros = was.ranges(range.start, sector).filter(|(state, _)| *state == State::Zero);
        let same = same.and_then(|same| {
            let mut zeros = zeros.into_iter();
            Ok(same
                && zeros.try_fold(true, |zeros, (_, range)| {
                    buf.resize((range.end - range.start) as usize, 0);
                    view.read_at(&mut buf, range.start)?;
                    Ok::<_, Error>(zeros && buf.iter().all(|byte| *byte == 0))
                })?)
        });
        match same {
            Ok(same) => Ok((!same).then_some(What::Contents)),
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(Some(What::Unreadable(error))),
            Err(error) => Err(error),
        }
    }

    /// Whether the layer below reads as zeros there, as it does behind its end.
    fn is_zero_below(&self, range: Range<u64>) -> Result<bool> {
        let layers = self.chain.layers();
        let mut below = layers.iter().skip_while(|layer| layer.id != self.layer).skip(1);
        let Some(below) = below.next() else { return Ok(true) };
        let below = self.chain.view(below.id)?;
        let end = range.end.min(below.geometry().size);
        let mut bytes = vec![0xFF; end.saturating_sub(range.start) as usize];
        match below.read_at(&mut bytes, range.start.min(end)) {
            Ok(()) => Ok(bytes.iter().all(|byte| *byte == 0)),
            Err(error) if error.kind() == ErrorKind::Damaged => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn view(&self) -> Result<&DiffChain> {
        if let Some(view) = self.view.get() {
            return Ok(view);
        }
        let view = self.chain.view(self.layer)?;
        Ok(self.view.get_or_init(|| view))
    }
}

impl Proof {
    fn add(&mut self, found: Found) {
        let is_full = self.found.len() == MOST;
        match self.found.last_mut() {
            Some(last) if last.range.end >= found.range.start && last.what.is_like(&found.what) => {
                last.range.end = last.range.end.max(found.range.end);
            }
            _ if is_full => self.unlisted += 1,
            _ => self.found.push(found),
        }
    }
}
