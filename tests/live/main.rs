//! Chains whose layers change while they are in use, compared with a flat model.
#![allow(clippy::disallowed_methods)] // real files

#[path = "../common/mod.rs"]
mod common;

mod busy;
mod compact;
mod deleted;
mod forecasts;
mod foreign;
mod foreseen;
mod full;
mod kept;
mod ledger;
mod load;
mod lost;
mod panics;
mod resized;
mod rights;
mod steps;
mod unfinished;
mod unsound;

use std::path::{Path, PathBuf};

use avhdx::{CreateOptions, DiffChain, Disk, OpenOptions};
use avhdx_testkit::naive;
use avhdx_testkit::sim;

const MIB: u64 = 1 << 20;

/// A new base of this size, open for writing as a chain of one.
fn base(folder: &Path, size: u64) -> DiffChain {
    let path = folder.join("web.vhdx");
    drop(CreateOptions::dynamic(size).block_size(1 << 20).create(&path).unwrap());
    writable(&path)
}

fn writable(path: &Path) -> DiffChain {
    OpenOptions::new().writable(true).open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// What the naive reader reads from the files of a chain, tip first.
fn naively(paths: &[PathBuf]) -> Vec<u8> {
    let files = paths.iter().rev().map(|path| std::fs::read(path).unwrap());
    let chain = naive::Chain::from_bytes(files).unwrap();
    chain.flat(paths.len() - 1).unwrap()
}

fn paths(chain: &DiffChain) -> Vec<PathBuf> {
    chain.layers().into_iter().map(|layer| layer.path.unwrap()).collect()
}

fn bytes(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xAA; disk.geometry().size as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}
