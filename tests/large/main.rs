//! Moves of more bytes than fit in any buffer on the way, contiguous in their source file. Every
//! sector records its offset and its writer, so that none can be mistaken for another.
#![allow(clippy::disallowed_methods)] // real files

mod copies;
mod direct;
mod merges;
mod rebases;
mod table_holes;
mod tables;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::storage::Host;
use avhdx::{CreateOptions, DiffChain, Disk, DiskExt, OpenOptions, Source};
use avhdx_testkit::naive;
use avhdx_testkit::rng::pattern;
use avhdx_testkit::sim;

use sim::{FOLDER, SimHost};

const MIB: u64 = 1 << 20;

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// The expected contents of a disk.
struct Model(Vec<u8>);

impl Model {
    fn new(size: u64) -> Self {
        Self(vec![0; size as usize])
    }

    /// Writes bytes that encode `seed` and their offset to the disk, in one call.
    fn write(&mut self, disk: &dyn Disk, seed: u64, range: Range<u64>) {
        let first = range.start / 512 * 512;
        let mut bytes = vec![0; (range.end - first) as usize];
        pattern(seed, first, &mut bytes);
        let bytes = &bytes[(range.start - first) as usize..];
        disk.write_at(bytes, range.start).unwrap();
        self.wrote(range.start, bytes);
    }

    fn wrote(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn zeroed(&mut self, range: Range<u64>) {
        self.0[range.start as usize..range.end as usize].fill(0);
    }

    /// The disk has these contents, read in one call.
    fn reads(&self, disk: &dyn Disk, what: &str) {
        let mut found = vec![0xAA; self.0.len()];
        disk.read_at(&mut found, 0).unwrap();
        self.is(&found, what);
    }

    fn is(&self, found: &[u8], what: &str) {
        assert_eq!(found.len(), self.0.len(), "{what}");
        let wrong = found.chunks(512).zip(self.0.chunks(512)).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{what}: the first sector that is not what it should be");
    }

    /// The files have these contents according to the naive reader; base first.
    fn is_in(&self, host: &SimHost, names: &[&str], what: &str) {
        let files = host.files();
        let layers = names.iter().map(|name| {
            let bytes = files.file(&file(name)).unwrap().clone();
            naive::Layer::from_source(Arc::new(bytes)).unwrap()
        });
        let chain = naive::Chain(layers.collect());
        self.is(&chain.flat(names.len() - 1).unwrap(), what);
    }
}

fn writable(host: &Arc<dyn Host>, path: &Path) -> DiffChain {
    let options = OpenOptions::new().host(Arc::clone(host)).writable(true);
    options.open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// A new image without a parent.
fn base(host: &Arc<dyn Host>, path: &Path, options: CreateOptions) -> DiffChain {
    drop(options.create_on(Arc::clone(host), path).unwrap());
    writable(host, path)
}

/// The longest run that is contiguous in a file.
fn longest_run(disk: &dyn Disk) -> u64 {
    let extents = disk.extents(0..disk.geometry().size).map(Result::unwrap);
    let data = extents.filter(|extent| matches!(extent.source, Source::Data { .. }));
    data.map(|extent| extent.range.end - extent.range.start).max().unwrap_or_default()
}
