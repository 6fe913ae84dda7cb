//! Images that lie: no panic, no endless search, no memory without bound, and an error that names the file.

use std::fs;
use std::sync::Arc;

use avhdx::storage::MemStorage;
use avhdx::{Disk, DiskExt};
use avhdx_formats::vmdk::{OpenOptions, VmdkDisk};
use avhdx_testkit::rng::Rng;
use avhdx_testkit::vmdk::{Grain, cowd, descriptor, se_sparse};

use super::opened::with_footer;
use crate::tools::{name, run};

fn look(disk: &VmdkDisk) -> usize {
    let size = disk.size();
    let (mut looked, mut buf) = (0, vec![0; 70_000]);
    for place in [0, size / 3, size - size.min(70_000)] {
        let len = (size - place).min(70_000) as usize;
        looked += usize::from(disk.read_at(&mut buf[..len], place).is_ok());
    }
    looked += disk.extents(0..size).take(3000).filter(Result::is_ok).count();
    looked + disk.warnings().len()
}

/// Images of one file.
fn alone(folder: &std::path::Path) -> Vec<Vec<u8>> {
    let raw = folder.join("raw");
    fs::write(&raw, [vec![3; 90_112], vec![0; 900_096], vec![4; 512]].concat()).unwrap();
    let mut all = Vec::new();
    for kind in ["monolithicSparse", "streamOptimized", "monolithicSparse,zeroed_grain=on"] {
        let (path, options) = (folder.join(kind), format!("subformat={kind}"));
        let args = ["convert", "-f", "raw", "-O", "vmdk", "-o", &options, name(&raw), name(&path)];
        if run("qemu-img", &args).is_some() {
            all.push(fs::read(path).unwrap());
        }
    }
    all.extend(all.get(1).map(|file| with_footer(file)));
    all
}

fn change(file: &mut Vec<u8>, rng: &mut Rng) {
    let len = file.len() as u64;
    let le = |file: &[u8], at: u64, len: u64| {
        let bytes = file.get(at as usize..(at + len) as usize).unwrap_or(&[]);
        bytes.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte)) & 0xFF_FFFF
    };
    for _ in 0..1 + rng.below(3) {
        let directory = (le(file, 56, 8) * 512).min(len - 8);
        let table = (le(file, directory, 4) * 512).min(len - 8);
        let grain = (le(file, table, 4) * 512).min(len - 8);
        // The header, the descriptor, the directory, a table, a grain, the footer.
        let at = match rng.below(7) {
            0 => rng.below(80),
            1 => 512 + rng.below(600),
            2 => directory + rng.below(16),
            3 => table + rng.below(80),
            4 => grain + rng.below(30),
            5 => len - 1024 + rng.below(80),
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
}

#[test]
fn mutated_images_are_read_or_refused() {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let count = if is_long { 20_000 } else { 1500 };
    let folder = tempfile::tempdir().unwrap();
    let all = alone(folder.path());
    // Extents of ESX have a descriptor beside them.
    let older = cowd(9000, 8, &[(0, vec![1; 4096]), (1100, vec![2; 4096])]);
    let grains = [(0, Grain::Data(vec![1; 4096])), (3, Grain::Zeros), (1100, Grain::Unmapped)];
    let newer = se_sparse(9000, &grains);
    let (tip, delta) = (folder.path().join("tip.vmdk"), folder.path().join("delta.vmdk"));
    let text = descriptor("vmfsSparse", 1, None, &["RW 9000 VMFSSPARSE \"delta.vmdk\""]);
    let mut rng = Rng::new(2026);
    let (mut read, mut refused) = (0, 0);
    for n in 0..count {
        let opened = if n % 3 == 0 || all.is_empty() {
            let mut file = if rng.chance(1, 2) { older.clone() } else { newer.clone() };
            let mut text = text.clone().into_bytes();
            if rng.chance(1, 4) {
                let at = rng.below(text.len() as u64) as usize;
                text[at] = rng.next_u64() as u8;
            } else {
                change(&mut file, &mut rng);
            }
            fs::write(&tip, text).unwrap();
            fs::write(&delta, file).unwrap();
            OpenOptions::new().open(&tip)
        } else {
            let mut file = all[rng.below(all.len() as u64) as usize].clone();
            change(&mut file, &mut rng);
            OpenOptions::new().open_file(Arc::new(MemStorage::new(file)))
        };
        match opened {
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
