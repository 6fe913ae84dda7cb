//! A second implementation of the hashes, over the test kit's naive reader.

use std::fs;
use std::path::{Path, PathBuf};

use avhdx::{DiffChain, Lock, OpenOptions};
use avhdx_seals::{Hash, Verified};
use avhdx_testkit::build::{Image, random_chain, write_chain};
use avhdx_testkit::naive::{Chain, Layer, Says};

pub const LEAF: u64 = 65536;

pub fn long() -> bool {
    std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1")
}

/// A random chain in a folder; the paths go from the base up.
pub struct Files {
    pub folder: tempfile::TempDir,
    pub paths: Vec<PathBuf>,
}

impl Files {
    pub fn random(seed: u64, layers: usize) -> Self {
        Self::of(&random_chain(seed, layers))
    }

    pub fn of(images: &[Image]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths = write_chain(folder.path(), images);
        Self { folder, paths }
    }

    pub fn tip(&self) -> &Path {
        self.paths.last().unwrap()
    }

    pub fn chain(&self) -> DiffChain {
        open(self.tip())
    }

    /// The hash of the chain by the second implementation.
    pub fn naive_root(&self) -> Hash {
        naive_root(&self.paths)
    }
}

pub fn open(tip: &Path) -> DiffChain {
    OpenOptions::new().lock(Lock::Try).open(tip).unwrap()
}

pub fn seal_of(image: &Path) -> PathBuf {
    PathBuf::from(format!("{}.seal", image.display()))
}

fn derive(context: &str, bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key(&format!("avhdx seal 1 {context}"), bytes)
}

/// 0 the parent, 1 zeros, 2 data.
fn state(layer: &Layer, sector: u64) -> u8 {
    match layer.says(sector).unwrap() {
        Says::Data(_) => 2,
        Says::Zero => 1,
        Says::NotHere if layer.has_parent => 0,
        Says::NotHere => 1,
    }
}

/// The kind and the hash of a part of the disk: recursive, from the documented rules.
fn node(chain: &Chain, n: usize, level: u32, index: u64) -> (u8, Vec<u8>) {
    let layer = &chain.0[n];
    if level == 0 {
        return leaf(chain, n, index);
    }
    let leaves = layer.size.div_ceil(LEAF);
    let unit = 256u64.pow(level - 1);
    let count = leaves.div_ceil(unit).saturating_sub(index * 256).min(256);
    let children: Vec<_> =
        (0..count).map(|child| node(chain, n, level - 1, index * 256 + child)).collect();
    if children[0].0 != 2 && children.iter().all(|child| child.0 == children[0].0) {
        return (children[0].0, vec![]);
    }
    let mut bytes = vec![level as u8];
    bytes.extend((count as u32).to_le_bytes());
    for (kind, hash) in children {
        bytes.push(kind);
        bytes.extend(hash);
    }
    (2, derive("node", &bytes).to_vec())
}

fn leaf(chain: &Chain, n: usize, index: u64) -> (u8, Vec<u8>) {
    let layer = &chain.0[n];
    let range = index * LEAF..((index + 1) * LEAF).min(layer.size);
    let sectors = range.start / layer.sector..range.end / layer.sector;
    let (mut runs, mut data) = (Vec::<(u8, u32)>::new(), Vec::new());
    for sector in sectors {
        let state = state(layer, sector);
        match runs.last_mut() {
            Some(last) if last.0 == state => last.1 += 1,
            _ => runs.push((state, 1)),
        }
        if state == 2 {
            data.extend(chain.read(n, sector * layer.sector, layer.sector as usize).unwrap());
        }
    }
    if let [(state @ (0 | 1), _)] = runs[..] {
        return (state, vec![]);
    }
    let mut map = Vec::new();
    for (state, count) in runs {
        map.push(state);
        map.extend(count.to_le_bytes());
    }
    data.extend(derive("map", &map));
    (2, derive("leaf", &data).to_vec())
}

/// The hash of one layer.
pub fn naive_layer(chain: &Chain, n: usize) -> Hash {
    let layer = &chain.0[n];
    let leaves = layer.size.div_ceil(LEAF);
    let level = (1..).find(|level| 256u64.pow(*level) >= leaves).unwrap();
    let (kind, mut hash) = node(chain, n, level, 0);
    hash.resize(32, 0);
    let disk_id = avhdx::uuid::uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
    let item = layer.items.iter().find(|(id, ..)| *id == disk_id).unwrap().2.clone();
    let mut bytes = layer.data_write_guid.to_bytes_le().to_vec();
    bytes.extend(item);
    bytes.extend(layer.size.to_le_bytes());
    bytes.extend((layer.sector as u32).to_le_bytes());
    bytes.extend((LEAF as u32).to_le_bytes());
    bytes.push(kind);
    bytes.extend(hash);
    Hash::new(derive("layer", &bytes))
}

/// The hash of a chain of files, from the base up.
pub fn naive_root(paths: &[PathBuf]) -> Hash {
    let chain = Chain::open(paths).unwrap();
    let mut bytes = (paths.len() as u32).to_le_bytes().to_vec();
    for n in (0..paths.len()).rev() {
        bytes.extend(naive_layer(&chain, n).as_bytes());
    }
    Hash::new(derive("chain", &bytes))
}

/// The codes of the findings.
pub fn codes(verified: &Verified) -> Vec<&'static str> {
    verified.findings.iter().map(|finding| finding.code).collect()
}

/// Changes bytes of a file in their place.
pub fn patch(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}
