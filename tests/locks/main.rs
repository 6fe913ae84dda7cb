//! Mandatory locks, and checks that are repeated once a lock is held.

mod again;
mod host;
mod mandatory;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::Checkpoint;
use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions, PathSource};
use avhdx_testkit::naive;
use avhdx_testkit::sim;

use host::StrictHost;
use sim::FOLDER;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 6 * MIB;

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

fn options(host: &StrictHost) -> OpenOptions {
    let host = Arc::new(host.clone());
    OpenOptions::new().parents(PathSource::new().host(host.clone())).host(host)
}

fn open(host: &StrictHost, path: &Path, writes: bool) -> DiffChain {
    let opened = options(host).writable(writes).open(path);
    opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Layers with these names, base first, in closed sessions, and the contents of each point, tip first.
fn layers(host: &StrictHost, names: &[&str]) -> Vec<Vec<u8>> {
    let shared = Arc::new(host.clone());
    let base = CreateOptions::dynamic(SIZE).block_size(1 << 20);
    drop(base.create_on(shared, file(names[0])).unwrap());
    let chain = open(host, &file(names[0]), true);
    let mut points = Vec::new();
    for (n, name) in names.iter().enumerate() {
        if n > 0 {
            let made = Checkpoint::new().path(file(name)).block_size(1 << 20);
            let made = made.run(&chain).unwrap();
            assert!(made.warnings.is_empty(), "{:?}", made.warnings);
        }
        let n = n as u64;
        chain.write_at(&vec![n as u8 + 1; 1 << 20], n * MIB).unwrap();
        chain.write_at(&[n as u8 + 1; 5000], 4 * MIB + n * 4096).unwrap();
        chain.discard(3 * MIB + n * 512..4 * MIB).unwrap();
        points.insert(0, bytes(&chain));
    }
    chain.close().unwrap();
    points
}

fn bytes(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xAA; disk.geometry().size as usize];
    disk.read_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{error}"));
    bytes
}

fn paths(chain: &DiffChain) -> Vec<PathBuf> {
    chain.layers().into_iter().map(|layer| layer.path.unwrap()).collect()
}

/// What the naive reader reads from these files, tip first.
fn naively(host: &StrictHost, paths: &[PathBuf]) -> Vec<u8> {
    let files = host.sim.files();
    let layers = paths.iter().rev().map(|path| {
        let file = files.file(path).unwrap();
        let mut bytes = vec![0; file.len() as usize];
        file.read(0, &mut bytes);
        bytes
    });
    naive::Chain::from_bytes(layers).unwrap().flat(paths.len() - 1).unwrap()
}
