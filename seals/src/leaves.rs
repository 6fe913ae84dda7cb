//! Hashes of the leaves of an image.

use avhdx::{Disk, Result, VhdxFile};
use blake3::Hasher;

use crate::format::Leaf;
use crate::hash::{Domain, Hash};
use crate::map::{GROUP, LEAF, LeafMap, State, group_maps, span};

/// How many leaves are read at once where all of them are data.
const AT_ONCE: usize = 16;

/// Hashes leaves of one image.
pub(crate) struct LeafHasher<'i> {
    image: &'i VhdxFile,
    hasher: Hasher,
    /// The hash of the map of a leaf that is data throughout.
    full: (u32, Hash),
    buf: Vec<u8>,
    /// The bytes read so far.
    pub(crate) read: u64,
}

/// A group of leaves and what it took to hash them.
pub(crate) struct Hashed {
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) read: u64,
}

impl<'i> LeafHasher<'i> {
    pub(crate) fn new(image: &'i VhdxFile) -> Self {
        let sectors = (LEAF / u64::from(image.geometry().logical_sector)) as u32;
        Self {
            image,
            hasher: Domain::Leaf.hasher(),
            full: (sectors, LeafMap::whole(State::Data, sectors).hash()),
            buf: Vec::new(),
            read: 0,
        }
    }

    /// Hashes a group. `known` has leaves whose hash need not be computed.
    pub(crate) fn group(
        mut self,
        group: u64,
        mut known: impl FnMut(usize, &LeafMap) -> Option<Hash>,
    ) -> Result<Hashed> {
        let maps = group_maps(self.image, group)?;
        let first = group * (GROUP / LEAF);
        let mut leaves: Vec<Leaf> = Vec::with_capacity(maps.len());
        let hashes = maps.iter().enumerate().map(|(index, map)| match map.uniform() {
            Some(State::Parent | State::Zero) => None,
            _ => known(index, map),
        });
        let hashes = hashes.collect::<Vec<Option<Hash>>>();
        let needs =
            |index: usize| hashes[index].is_none() && maps[index].uniform() == Some(State::Data);
        while leaves.len() < maps.len() {
            let index = leaves.len();
            let map = &maps[index];
            match (map.uniform(), hashes[index]) {
                (Some(state @ (State::Parent | State::Zero)), _) => {
                    leaves.push(Leaf::Uniform(state));
                }
                (_, Some(hash)) => leaves.push(Leaf::Held { hash, map: map.clone() }),
                (Some(State::Data), None) => {
                    let most = maps.len().min(index + AT_ONCE);
                    let end = (index..most).find(|index| !needs(*index)).unwrap_or(most);
                    let start = (first + index as u64) * LEAF;
                    let until = span(first + end as u64 - 1, LEAF, self.image.geometry().size).end;
                    self.fill(start, (until - start) as usize)?;
                    for (map, bytes) in maps[index..end].iter().zip(0..) {
                        let from = bytes * LEAF as usize;
                        let to = self.buf.len().min(from + LEAF as usize);
                        let hash = self.finish(from..to, map);
                        leaves.push(Leaf::Held { hash, map: map.clone() });
                    }
                }
                (None, None) => {
                    let hash = self.mixed(first + index as u64, map)?;
                    leaves.push(Leaf::Held { hash, map: map.clone() });
                }
            }
        }
        Ok(Hashed { leaves, read: self.read })
    }

    /// The hash of one leaf, with the map that it has.
    fn mixed(&mut self, leaf: u64, map: &LeafMap) -> Result<Hash> {
        let image = self.image;
        let sector = image.geometry().logical_sector;
        let hash = hash_through(image, leaf, map, sector, &mut self.buf)?;
        self.read += self.buf.len() as u64;
        Ok(hash)
    }

    fn fill(&mut self, start: u64, len: usize) -> Result<()> {
        self.buf.resize(len, 0);
        self.image.read_at(&mut self.buf, start)?;
        self.read += len as u64;
        Ok(())
    }

    fn finish(&mut self, bytes: std::ops::Range<usize>, map: &LeafMap) -> Hash {
        let map = match map.runs() {
            [run] if run.state == State::Data && run.sectors == self.full.0 => self.full.1,
            _ => map.hash(),
        };
        self.hasher.reset().update(&self.buf[bytes]).update(map.as_bytes());
        Hash::new(*self.hasher.finalize().as_bytes())
    }
}

/// The hash of a leaf with this map, of which `disk` has the data. `buf` then has the data.
pub(crate) fn hash_through(
    disk: &dyn Disk,
    leaf: u64,
    map: &LeafMap,
    sector: u32,
    buf: &mut Vec<u8>,
) -> Result<Hash> {
    buf.clear();
    for (state, range) in map.ranges(leaf * LEAF, sector) {
        if state == State::Data {
            let from = buf.len();
            buf.resize(from + (range.end - range.start) as usize, 0);
            disk.read_at(&mut buf[from..], range.start)?;
        }
    }
    let mut hasher = Domain::Leaf.hasher();
    hasher.update(buf).update(map.hash().as_bytes());
    Ok(Hash::new(*hasher.finalize().as_bytes()))
}
