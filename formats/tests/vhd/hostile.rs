//! Images that lie: no panic, no endless search, no parent from outside, and an error that names the file.

use std::fs;
use std::sync::Arc;

use avhdx::storage::MemStorage;
use avhdx::{Disk, DiskExt, PathSource};
use avhdx_formats::vhd::{OpenOptions, VhdDisk};
use avhdx_testkit::rng::Rng;
use avhdx_testkit::vhd::{Image, Parent, seal};

/// Every look at an image that callers take.
fn look(disk: &VhdDisk) -> usize {
    let size = disk.size();
    let (mut looked, mut buf) = (0, vec![0; 5000]);
    for place in [0, size / 3, size - size.min(5000)] {
        let len = (size - place).min(5000) as usize;
        looked += usize::from(disk.read_at(&mut buf[..len], place).is_ok());
    }
    looked += disk.extents(0..size).take(10_000).filter(Result::is_ok).count();
    looked += disk.images().map(|image| image.parent_paths.len()).sum::<usize>();
    looked + disk.warnings().len()
}

#[test]
fn mutated_images_are_read_or_refused() {
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let count = if is_long { 20_000 } else { 1500 };
    let folder = tempfile::tempdir().unwrap();
    let mut base = Image::new(3, 3 << 20, 512 << 10, 1);
    base.runs = vec![(3, vec![1; 5120]), (4000, vec![2; 512])];
    fs::write(folder.path().join("base.vhd"), base.build()).unwrap();
    let mut child = Image::new(4, 3 << 20, 512 << 10, 2);
    child.runs = vec![(7, vec![3; 1024]), (1024, vec![4; 4096])];
    child.parent = Some(Parent {
        id: [1; 16],
        stamp: 0,
        name: "base.vhd".into(),
        relative: Some(r".\base.vhd".into()),
        absolute: Some(r"C:\base.vhd".into()),
    });
    let fixed = Image { runs: base.runs.clone(), ..Image::new(2, 3 << 20, 0, 3) };
    let all = [base.build(), child.build(), fixed.build()];
    let mut rng = Rng::new(2026);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..count {
        let mut file = all[rng.below(3) as usize].clone();
        let len = file.len() as u64;
        for _ in 0..1 + rng.below(3) {
            // Footers, header, table, locators, bitmaps.
            let at = match rng.below(4) {
                0 => len - 512 + rng.below(90),
                1 => rng.below(90),
                2 => 512 + rng.below(800),
                _ => 1536 + rng.below(2048),
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
        if rng.chance(3, 4) {
            seal(&mut file);
        }
        if rng.chance(1, 10) {
            file.truncate(rng.below(len) as usize);
        }
        let parents = PathSource::new().confined_to(folder.path()).folder(folder.path());
        let options = OpenOptions::new().parents(parents);
        match options.open_file(Arc::new(MemStorage::new(file))) {
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

#[test]
fn names_of_parents_lead_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let base = Image::new(3, 1 << 20, 512 << 10, 1);
    fs::write(folder.path().join("base.vhd"), base.build()).unwrap();
    std::os::unix::fs::symlink("../base.vhd", inside.join("link.vhd")).unwrap();
    let absolute = folder.path().join("base.vhd").display().to_string();
    for path in [r"..\base.vhd", "../base.vhd", r".\link.vhd", "link.vhd", &absolute] {
        for is_relative in [true, false] {
            let mut child = Image::new(4, 1 << 20, 512 << 10, 2);
            let path = Some(path.to_owned());
            child.parent = Some(Parent {
                id: [1; 16],
                stamp: 0,
                name: String::new(),
                relative: path.clone().filter(|_| is_relative),
                absolute: path.filter(|_| !is_relative),
            });
            let tip = inside.join("tip.vhd");
            fs::write(&tip, child.build()).unwrap();
            let confined = PathSource::new().confined_to(&inside);
            let error = OpenOptions::new().parents(confined).open(&tip).unwrap_err();
            assert_eq!(error.code(), "vhd.parent-missing", "{path:?} {error}", path = error);
        }
    }
    // Without the bounds, the same are found.
    let tip = inside.join("tip.vhd");
    let disk = OpenOptions::new().parents(PathSource::new()).open(&tip).unwrap();
    assert_eq!(disk.images().count(), 2);
}
