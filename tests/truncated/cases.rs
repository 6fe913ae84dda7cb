//! The images, and how they are damaged.

use std::path::{Path, PathBuf};

use avhdx_testkit::build::{Image, Order, random_chain};
use avhdx_testkit::images::{avhdx_images, fixtures_dir, gunzip, unpack_tree};
use avhdx_testkit::naive::Layer;
use avhdx_testkit::rng::Rng;

use crate::MIB;
use crate::sim::{Bytes, FOLDER, Files};

/// A chain of files, base first, the last of which is written to.
pub struct Case {
    pub name: String,
    pub layers: Vec<PathBuf>,
    pub files: Files,
}

/// One kind of damage to a file.
#[derive(Clone, Debug)]
pub enum Damage {
    /// Truncates the tip's file.
    Cut(u64),
    /// Truncates its parent's file.
    CutParent(u64),
    /// Writes this entry at this offset of the tip's file.
    Entry(u64, u64),
}

impl Case {
    /// An image of any kind: fixed, dynamic or differencing, with blocks of 1 to 32 MiB.
    pub fn random(seed: u64, with_large: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x6c6f_7373);
        if rng.chance(2, 5) {
            return Self::random_child(seed);
        }
        let block: u32 = match rng.below(20) {
            0 if with_large => 32 << 20,
            1 if with_large => 8 << 20,
            2..=3 => 4 << 20,
            4..=8 => 2 << 20,
            _ => 1 << 20,
        };
        let sector = if rng.chance(1, 3) { 4096 } else { 512 };
        let most = if block > 4 << 20 { 2 } else { 5 };
        let tail = rng.below(u64::from(block)) / 4096 * 4096;
        let tail = if rng.chance(1, 3) { 0 } else { tail };
        let size = (1 + rng.below(most)) * u64::from(block) + tail;
        let mut image = match rng.below(3) {
            0 => Image::fixed(size),
            _ => Image::dynamic(size),
        };
        (image.block_size, image.logical_sector) = (block, sector);
        image.order = match rng.below(3) {
            0 => Order::Sequential,
            1 => Order::Reversed,
            _ => Order::Shuffled(rng.next_u64()),
        };
        image.gap = rng.below(2) << 20;
        let is_fixed = image.leave_blocks_allocated;
        image.scatter(rng.next_u64());
        if is_fixed {
            image.blocks.retain(|_, block| block.state == 6);
        }
        Self::of(format!("image {seed}"), &[image])
    }

    /// A child over a chain.
    pub fn random_child(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let layers = 2 + rng.below(2) as usize;
        let mut images = random_chain(seed, layers);
        // So that more than one in five of the children's blocks is partially present.
        for image in &mut images[1..] {
            image.scatter(rng.next_u64());
        }
        Self::of(format!("chain {seed}"), &images)
    }

    fn of(name: String, images: &[Image]) -> Self {
        let mut files = Files::default();
        let mut layers = Vec::new();
        for (n, image) in images.iter().enumerate() {
            let mut image = image.clone();
            if n > 0 {
                image.parent_path(&format!(".\\l{}.vhdx", n - 1));
            }
            let path = Path::new(FOLDER).join(format!("l{n}.vhdx"));
            put(&mut files, &path, &image.to_bytes());
            layers.push(path);
        }
        Self { name, layers, files }
    }

    /// Fixtures, and the images in `AVHDX_IMAGES`.
    pub fn by_others() -> Vec<Self> {
        let mut cases = Vec::new();
        let folders = [Some(fixtures_dir()), avhdx_images()];
        for folder in folders.into_iter().flatten() {
            for chain in ["b1m-tail", "s4096", "deep6", "fixed-base", "states"] {
                let from = folder.join("chains").join(chain);
                let unpacked = tempfile::tempdir().unwrap();
                let paths = unpack_tree(&from, unpacked.path());
                // Each layer is the tip once.
                for depth in 1..=paths.len() {
                    cases.push(Self::from_files(format!("{chain} {depth}"), &paths[..depth]));
                }
            }
            for image in ["dynamic", "fixed"] {
                let from = folder.join("qemu").join(format!("{image}.vhdx.gz"));
                if from.exists() {
                    let unpacked = tempfile::tempdir().unwrap();
                    let to = unpacked.path().join("l0.vhdx");
                    gunzip(&from, &to);
                    cases.push(Self::from_files(format!("qemu {image}"), &[to]));
                }
            }
        }
        cases
    }

    /// A disk created by Windows.
    pub fn by_windows() -> Option<Self> {
        let from = avhdx_images()?.join("hyperv/swap.vhdx.gz");
        let unpacked = tempfile::tempdir().unwrap();
        let to = unpacked.path().join("l0.vhdx");
        gunzip(&from, &to);
        Some(Self::from_files("swap".into(), &[to]))
    }

    fn from_files(name: String, paths: &[PathBuf]) -> Self {
        let mut files = Files::default();
        let mut layers = Vec::new();
        for path in paths {
            let to = Path::new(FOLDER).join(path.file_name().unwrap());
            put(&mut files, &to, &std::fs::read(path).unwrap());
            layers.push(to);
        }
        Self { name, layers, files }
    }

    pub fn tip(&self) -> &Path {
        &self.layers[self.layers.len() - 1]
    }

    fn parent(&self) -> &Path {
        &self.layers[self.layers.len() - 2]
    }

    fn layer(&self, path: &Path) -> Layer {
        crate::judge::layer(&self.files, path).unwrap()
    }

    /// The files after this damage.
    pub fn damaged(&self, damage: &[Damage]) -> Files {
        let mut files = self.files.clone();
        for damage in damage {
            let (path, is_cut) = match damage {
                Damage::CutParent(_) => (self.parent(), true),
                Damage::Cut(_) => (self.tip(), true),
                Damage::Entry(..) => (self.tip(), false),
            };
            let number = files.names[path];
            let file = files.file_mut(number);
            match damage {
                Damage::Cut(at) | Damage::CutParent(at) if is_cut => file.set_len(*at),
                Damage::Entry(at, entry) => file.write(*at, &entry.to_le_bytes()),
                _ => unreachable!(),
            }
        }
        files
    }

    /// Where log and regions end; earlier cuts leave little of an image.
    pub fn structures_end(&self) -> u64 {
        self.layer(self.tip()).structures_end()
    }

    /// Where structures and blocks start and end.
    pub fn edges(&self) -> Vec<u64> {
        edges(&self.layer(self.tip()))
    }

    pub fn parent_edges(&self) -> Vec<u64> {
        edges(&self.layer(self.parent()))
    }

    /// Other offsets: any bytes, and starts and ends of sectors.
    pub fn places_between(&self, count: usize, seed: u64) -> Vec<u64> {
        between(self.files.file(self.tip()).unwrap().len(), count, seed)
    }

    pub fn parent_places_between(&self, count: usize, seed: u64) -> Vec<u64> {
        between(self.files.file(self.parent()).unwrap().len(), count, seed)
    }

    /// Entries that lead past the end, into each other, to the same offset, far out or into the structures.
    pub fn misplaced(&self, seed: u64) -> Vec<Damage> {
        let mut rng = Rng::new(seed);
        let layer = self.layer(self.tip());
        let len = self.files.file(self.tip()).unwrap().len();
        let held = entries(&layer);
        let mut damage = Vec::new();
        if held.is_empty() {
            return damage;
        }
        for _ in 0..1 + rng.below(3) {
            let (_, at, entry) = held[rng.below(held.len() as u64) as usize];
            let (_, _, other) = held[rng.below(held.len() as u64) as usize];
            let other = other >> 20 << 20;
            let place = match rng.below(12) {
                0 => len.next_multiple_of(MIB),
                1 => (len / MIB + 1 + rng.below(40)) * MIB,
                2 => ((1 << 44) - 1) * MIB,
                3 => ((1 << 44) - 1 - rng.below(1 << 20)) * MIB,
                4 => (1 << 34) * MIB,
                5..7 => other,
                7 => other + MIB,
                8 => other.saturating_sub(MIB),
                9 => rng.below(4) * MIB,
                10 => len / MIB * MIB - MIB,
                _ => rng.below(len / MIB) * MIB,
            };
            damage.push(Damage::Entry(at, place | (entry & 7)));
        }
        if rng.chance(1, 4) {
            damage.push(Damage::Cut(between(len, 1, rng.next_u64())[0]));
        }
        damage
    }
}

/// Entries in use: their index, their offset, and their value.
fn entries(layer: &Layer) -> Vec<(u64, u64, u64)> {
    let bat = layer.bat();
    let ratio = (layer.sector << 23) / layer.block_size;
    let blocks = layer.size.div_ceil(layer.block_size);
    let payload = (0..blocks).map(|block| block + block / ratio);
    let chunks = if layer.has_parent { blocks.div_ceil(ratio) } else { 0 };
    let bitmaps = (0..chunks).map(|chunk| chunk * (ratio + 1) + ratio);
    let all = payload.chain(bitmaps);
    let all = all.map(|index| (index, bat.start + 8 * index, layer.bat_entry(index).unwrap()));
    all.filter(|(_, _, entry)| matches!(entry & 7, 3 | 6 | 7) && entry >> 20 > 0).collect()
}

fn edges(layer: &Layer) -> Vec<u64> {
    let ratio = (layer.sector << 23) / layer.block_size;
    let mut edges = vec![0, 64 << 10, 128 << 10, 192 << 10, 256 << 10, 320 << 10, MIB];
    for place in layer.places() {
        edges.extend([place.start, place.end]);
    }
    for (index, _, entry) in entries(layer) {
        let at = entry >> 20 << 20;
        let is_bitmap = index % (ratio + 1) == ratio;
        edges.extend([at, at + if is_bitmap { MIB } else { layer.block_size }]);
        // Where the disk ends within its last block.
        let block = index - index / (ratio + 1);
        let start = block * layer.block_size;
        if !is_bitmap && start + layer.block_size > layer.size {
            edges.extend([at + layer.size - start, at + layer.size - start - 512]);
        }
    }
    edges.sort_unstable();
    edges.dedup();
    edges
}

fn between(len: u64, count: usize, seed: u64) -> Vec<u64> {
    let mut rng = Rng::new(seed ^ 0x6375_7473);
    let place = |_| {
        let at = rng.below(len);
        match rng.below(4) {
            0 => at,
            1 => at / 512 * 512,
            2 => at / 4096 * 4096,
            _ => at / MIB * MIB + rng.below(3),
        }
    };
    (0..count).map(place).collect()
}

fn put(files: &mut Files, path: &Path, bytes: &[u8]) {
    let number = files.files.len();
    let mut file = Bytes::default();
    for (n, page) in bytes.chunks(4096).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write(n as u64 * 4096, page);
        }
    }
    file.set_len(bytes.len() as u64);
    *files.file_mut(number) = file;
    files.names.insert(path.to_path_buf(), number);
}
