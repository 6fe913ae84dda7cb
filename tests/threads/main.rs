//! Many threads on one disk: everything read is complete and from the right place, and no thread waits for those
//! that work elsewhere.
#![allow(clippy::disallowed_methods)] // some of the files are real

mod held;
mod plans;
mod storm;
mod tags;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use avhdx::ops::{Check, Severity};
use avhdx::storage::{Access, Host};
use avhdx::{Budget, CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::naive::{self, Chain};
use avhdx_testkit::sim;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// A child over two parents; all sectors of the lower one are tagged, and some of the upper one.
#[derive(Clone)]
struct Pair {
    host: Arc<dyn Host>,
    /// Base first.
    paths: [PathBuf; 3],
    tip: PathBuf,
}

impl Pair {
    fn new(host: Arc<dyn Host>, folder: &Path, size: u64) -> Self {
        let paths = ["base.vhdx", "middle.avhdx", "child.avhdx"].map(|name| folder.join(name));
        let options = CreateOptions::dynamic(size).block_size(2 << 20);
        let parent = options.create_on(Arc::clone(&host), &paths[0]).unwrap();
        for at in (0..size).step_by(MIB as usize) {
            let sectors = at / SECTOR..(at + MIB).min(size) / SECTOR;
            parent.write_at(&tags::run(tags::PARENT, 0, sectors), at).unwrap();
        }
        parent.close().unwrap();
        let child = CreateOptions::child_of(&parent).unwrap().block_size(4 << 20);
        drop(parent);
        drop(child.create_on(Arc::clone(&host), &paths[1]).unwrap());
        let options = OpenOptions::new().host(Arc::clone(&host)).writable(true);
        let middle = options.open(&paths[1]).unwrap();
        // Some sectors here and there, and every seventh of these blocks completely.
        for at in (0..size).step_by(MIB as usize / 8) {
            let len = if at / (4 * MIB) % 7 == 3 { 256 } else { 5 };
            let sectors = at / SECTOR..(at / SECTOR + len).min(size / SECTOR);
            middle.write_at(&tags::run(tags::PARENT, 0, sectors), at).unwrap();
        }
        middle.close().unwrap();
        let child = CreateOptions::child_of(&middle.tip()).unwrap().block_size(1 << 20);
        drop(middle);
        let tip = paths[2].clone();
        drop(child.create_on(Arc::clone(&host), &tip).unwrap());
        Self { host, paths, tip }
    }

    fn open(&self, writable: bool, budget: usize) -> DiffChain {
        let options = OpenOptions::new().host(Arc::clone(&self.host)).writable(writable);
        options.budget(Budget::new(budget)).open(&self.tip).unwrap()
    }

    /// Checks the image with the crate and the testkit; returns the disk as read by the naive reader.
    fn judge(&self) -> Vec<u8> {
        let options = OpenOptions::new().host(Arc::clone(&self.host));
        let report = Check::new().options(options).run(&self.tip).unwrap();
        let bad = report.findings.iter().filter(|finding| finding.severity <= Severity::Warning);
        let bad: Vec<_> = bad.collect();
        assert!(bad.is_empty(), "{bad:#?}");

        let layer = |path: &Path| {
            let storage = self.host.open(path, Access::Read).unwrap();
            let mut bytes = vec![0; storage.len().unwrap() as usize];
            storage.read_exact_at(&mut bytes, 0).unwrap();
            let layer = naive::Layer::from_bytes(bytes).unwrap();
            assert_eq!(layer.faults(), [""; 0], "{}", path.display());
            layer
        };
        Chain(self.paths.iter().map(|path| layer(path)).collect()).flat(2).unwrap()
    }
}

fn flat(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xAA; disk.geometry().size as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}
