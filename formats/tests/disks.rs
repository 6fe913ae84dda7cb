//! Disks that tests copy and read.

use std::sync::Arc;

use avhdx::storage::MemStorage;
use avhdx::{Disk, RawDisk};
use avhdx_testkit::rng::{Rng, pattern};

pub const MIB: u64 = 1 << 20;

/// All bytes of a disk.
pub fn flat(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.geometry().size as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn disk_of(bytes: Vec<u8>) -> RawDisk {
    RawDisk::new(Arc::new(MemStorage::new(bytes))).unwrap()
}

/// A disk of which much is zeros.
pub fn sparse(seed: u64, size: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; size as usize];
    for _ in 0..9 {
        let first = rng.below(size / 512) * 512;
        let len = (512 * (1 + rng.below(900))).min(size - first);
        pattern(seed, first, &mut bytes[first as usize..][..len as usize]);
    }
    bytes
}
