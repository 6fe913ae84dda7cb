//! Images that lie: no panic, no endless search, no memory without bound, and an error that names the file.

use std::sync::Arc;

use avhdx::storage::{MemStorage, Storage};
use avhdx::{Disk, DiskExt};
use avhdx_formats::qcow2::{CreateOptions, OpenOptions, Qcow2Disk};
use avhdx_testkit::rng::Rng;

use crate::tools::{name, run};

fn look(disk: &Qcow2Disk) -> usize {
    let size = disk.size();
    let (mut looked, mut buf) = (0, vec![0; 70_000]);
    for place in [0, size / 3, size - size.min(70_000)] {
        let len = (size - place).min(70_000) as usize;
        looked += usize::from(disk.read_at(&mut buf[..len], place).is_ok());
    }
    looked += disk.extents(0..size).take(3000).filter(Result::is_ok).count();
    looked + disk.warnings().len()
}

#[test]
fn mutated_images_are_read_or_refused() {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let count = if is_long { 20_000 } else { 1500 };
    let folder = tempfile::tempdir().unwrap();
    let plain = Arc::new(MemStorage::new(Vec::new()));
    let new = CreateOptions::new(2 << 20).cluster_size(4096);
    let new = new.create(Arc::clone(&plain) as Arc<dyn Storage>).unwrap();
    new.write_at(&[7; 9000], 5000).unwrap();
    new.write_at(&[8; 512], 2_000_000).unwrap();
    new.finish().unwrap();
    let mut bytes = vec![0; plain.len().unwrap() as usize];
    plain.read_exact_at(&mut bytes, 0).unwrap();
    let mut all = vec![bytes];
    // Packed, and with parts of clusters.
    let raw = folder.path().join("raw");
    std::fs::write(&raw, [vec![3; 90_000], vec![0; 900_000], vec![4; 100]].concat()).unwrap();
    for options in ["cluster_size=4k", "compression_type=zstd", "extended_l2=on"] {
        let path = folder.path().join(options);
        let args =
            ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, name(&raw), name(&path)];
        if run("qemu-img", &args).is_some() {
            all.push(std::fs::read(path).unwrap());
        }
    }
    let mut rng = Rng::new(2026);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..count {
        let mut file = all[rng.below(all.len() as u64) as usize].clone();
        let len = file.len() as u64;
        let number = |file: &[u8], at: usize| {
            u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) & 0xFF_FFFF
        };
        for _ in 0..1 + rng.below(3) {
            let l1 = number(&file, 40).min(len - 8);
            let l2 = number(&file, l1 as usize).min(len - 8);
            // The header, the first table, a second one, packed bytes.
            let at = match rng.below(4) {
                0 => rng.below(160),
                1 => l1 + rng.below(16),
                2 => l2 + rng.below(512),
                _ => rng.below(len),
            };
            let bytes = match rng.below(4) {
                0 => vec![0xFF; 1 << rng.below(4)],
                1 => vec![0; 1 << rng.below(4)],
                2 => vec![0x7F, 0xFF, 0xFF, 0xFF],
                _ => vec![rng.next_u64() as u8],
            };
            let at = (at as usize).min(file.len() - bytes.len());
            file[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        if rng.chance(1, 10) {
            file.truncate(rng.below(len) as usize);
        }
        match OpenOptions::new().open_file(Arc::new(MemStorage::new(file))) {
            Ok(disk) => read += usize::from(look(&disk) > 0),
            Err(error) => {
                refused += 1;
                assert!(error.file().is_some(), "{error}");
            }
        }
    }
    println!("mutated images: {read} read, {refused} refused");
    assert!(read > count / 20 && refused > count / 20, "{read} read, {refused} refused");
}
