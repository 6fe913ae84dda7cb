//! What ESX writes: `vmfs`, `COWD` and `SESPARSE`, built by the test kit, as QEMU reads them too.

use std::fs;
use std::path::Path;

use avhdx_testkit::bytes::difference;
use avhdx_testkit::rng::{Rng, pattern};
use avhdx_testkit::vmdk::{Grain, cowd, descriptor, se_sparse};

use super::opened::{check, open};
use crate::disks::{MIB, flat};
use crate::tools::run;

fn patterned(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(seed, 0, &mut bytes);
    bytes
}

/// Whether QEMU reads the same; true without QEMU.
fn by_qemu_too(path: &Path, what: &str) {
    if run("qemu-img", &["--version"]).is_some() {
        check(path, what);
    }
}

/// A base as it is, and children with tables over it.
fn over_base(folder: &Path, size: u64) -> Vec<u8> {
    let base = patterned(1, size as usize);
    fs::write(folder.join("base-flat.vmdk"), &base).unwrap();
    let line = format!("RW {} VMFS \"base-flat.vmdk\"", size / 512);
    fs::write(folder.join("base.vmdk"), descriptor("vmfs", 0xB, None, &[&line])).unwrap();
    base
}

#[test]
fn older_extents_of_esx_are_read() {
    let folder = tempfile::tempdir().unwrap();
    // Tables of 4096 entries: three of them, for grains of one sector and of eight.
    for (grain, size) in [(1_u32, 5 * MIB + 512), (8, 33 * MIB + 1024)] {
        let mut expected = over_base(folder.path(), size);
        let sectors = (size / 512) as u32;
        let count = sectors.div_ceil(grain) as usize;
        let mut rng = Rng::new(grain.into());
        let mut numbers = vec![count - 1, 0, 4095, 4096, 1];
        numbers.extend((0..40).map(|_| 4097 + rng.below(count as u64 - 4098) as usize));
        numbers.sort_unstable();
        numbers.dedup();
        numbers.reverse();
        let len = grain as usize * 512;
        let grains: Vec<(usize, Vec<u8>)> =
            numbers.iter().map(|n| (*n, patterned(*n as u64 + 9, len))).collect();
        for (n, bytes) in &grains {
            let end = ((n + 1) * len).min(size as usize);
            expected[n * len..end].copy_from_slice(&bytes[..end - n * len]);
        }
        fs::write(folder.path().join("tip-delta.vmdk"), cowd(sectors, grain, &grains)).unwrap();
        let line = format!("RW {sectors} VMFSSPARSE \"tip-delta.vmdk\"");
        let text = descriptor("vmfsSparse", 0xC, Some((0xB, "base.vmdk")), &[&line]);
        let tip = folder.path().join("tip.vmdk");
        fs::write(&tip, text).unwrap();
        let disk = open(&tip).unwrap();
        assert_eq!(disk.images().next().unwrap().extents[0].grain_size, Some(len as u64));
        assert_eq!(difference(&flat(&disk), &expected), None);
        by_qemu_too(&tip, "COWD");
    }
}

#[test]
fn newer_extents_of_esx_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let size = 40 * MIB + 1024;
    let mut expected = over_base(folder.path(), size);
    let count = (size as usize).div_ceil(4096);
    let mut grains = Vec::new();
    let mut put = |n: usize, grain: Grain| {
        let range = n * 4096..((n + 1) * 4096).min(size as usize);
        let len = range.len();
        match &grain {
            Grain::Data(bytes) => expected[range].copy_from_slice(&bytes[..len]),
            Grain::Zeros | Grain::Unmapped => expected[range].fill(0),
        }
        grains.push((n, grain));
    };
    put(count - 1, Grain::Data(patterned(7, 4096)));
    put(3, Grain::Zeros);
    put(4, Grain::Unmapped);
    // More than 4096 grains, whose numbers have two parts.
    for n in (100..5000).rev() {
        put(n, Grain::Data(patterned(n as u64, 4096)));
    }
    let file = se_sparse(size / 512, &grains);
    fs::write(folder.path().join("tip-sesparse.vmdk"), &file).unwrap();
    let line = format!("RW {} SESPARSE \"tip-sesparse.vmdk\"", size / 512);
    let text = descriptor("seSparse", 0xC, Some((0xB, "base.vmdk")), &[&line]);
    let tip = folder.path().join("tip.vmdk");
    fs::write(&tip, text).unwrap();
    assert_eq!(difference(&flat(&open(&tip).unwrap()), &expected), None);
    by_qemu_too(&tip, "SESPARSE");
    // What is not as it is known is refused.
    for (at, byte, what) in [
        (8, 2, "another version"),
        (24, 16, "another size of grains"),
        (40, 1, "another flags"),
        (512, 0, "no second header"),
        (512 + 24, 1, "changes in its journal"),
    ] {
        let mut file = file.clone();
        file[at] = byte;
        fs::write(folder.path().join("tip-sesparse.vmdk"), file).unwrap();
        let error = open(&tip).unwrap_err();
        assert_eq!(error.code(), "vmdk.se-sparse");
        assert!(error.to_string().contains(what), "{what}: {error}");
        assert!(error.file().unwrap().ends_with("tip-sesparse.vmdk") && error.offset().is_some());
    }
}
