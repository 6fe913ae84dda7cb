//! New images, as QEMU reads them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use avhdx::ops::Export;
use avhdx::storage::{Host, LocalHost, MemStorage, Storage};
use avhdx::{Disk, ErrorKind, RawDisk, Zeroing};
use avhdx_formats::qcow2::{Backing, BackingFiles, CreateOptions, OpenOptions, measure};
use avhdx_testkit::bytes::difference;
use avhdx_testkit::conformance;
use avhdx_testkit::conformance::disk::Subject;
use avhdx_testkit::rng::{Rng, pattern};

use crate::disks::{MIB, disk_of, flat, sparse};
use crate::tools::{name, run};

fn copy(bytes: &[u8], options: &CreateOptions, path: &Path) {
    let new = options.create(LocalHost.create_new(path).unwrap()).unwrap();
    Export::new().onto(&disk_of(bytes.to_vec()), &new).unwrap();
    new.finish().unwrap();
}

/// QEMU finds the image sound, and of this size; `false` without QEMU.
fn is_sound(path: &Path, size: u64) -> bool {
    let Some(info) = run("qemu-img", &["info", "--output=json", "-f", "qcow2", name(path)]) else {
        return false;
    };
    assert!(info.contains(&format!("\"virtual-size\": {size},")), "{info}");
    let said = run("qemu-img", &["check", "-f", "qcow2", name(path)]).unwrap();
    assert!(said.contains("No errors were found"), "{said}");
    true
}

#[test]
fn new_images_read_the_same_by_the_crate_and_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    let sizes = [512, MIB, 3 * MIB + 512, 20 * MIB, 65 * MIB + 4096];
    for (n, size) in sizes.into_iter().enumerate() {
        let bytes = sparse(n as u64, size);
        let raw = folder.path().join(format!("{n}.raw"));
        fs::write(&raw, &bytes).unwrap();
        for cluster in [4096, 64 << 10, 1 << 20, 2 << 20] {
            let path = folder.path().join(format!("{n}-{cluster}.qcow2"));
            copy(&bytes, &CreateOptions::new(size).cluster_size(cluster), &path);
            let disk = OpenOptions::new().open(&path).unwrap();
            assert_eq!(disk.warnings(), []);
            assert_eq!(difference(&flat(&disk), &bytes), None, "{cluster} of {size}");
            let len = fs::metadata(&path).unwrap().len();
            assert_eq!(measure(&disk, cluster).unwrap().required, len, "{cluster} of {size}");
            if is_sound(&path, size) {
                let args = ["compare", "-f", "qcow2", "-F", "raw", name(&path), name(&raw)];
                run("qemu-img", &args).unwrap();
                compared += 1;
            }
        }
    }
    println!("images that QEMU found sound and equal: {compared}");
}

#[test]
fn images_over_others_read_the_same_by_the_crate_and_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let size = 9 * MIB + 512;
    let mut rng = Rng::new(5);
    let mut bytes = sparse(1, size);
    copy(&bytes, &CreateOptions::new(size), &folder.path().join("0.qcow2"));
    for n in 1..5 {
        let open = |n: i32| {
            let parents = BackingFiles::new().confined_to(folder.path());
            let path = folder.path().join(format!("{n}.qcow2"));
            OpenOptions::new().backing(parents).open(path).unwrap()
        };
        let backing = Backing {
            name: format!("./{}.qcow2", n - 1),
            format: "qcow2".into(),
            disk: Arc::new(open(n - 1)),
        };
        // A child may be longer or shorter than what is below.
        let size = size + 512 * 3000 - 512 * rng.below(6000);
        bytes.resize(size as usize, 0);
        let path = folder.path().join(format!("{n}.qcow2"));
        let options = CreateOptions::new(size).backing(backing).cluster_size(4096 << (2 * n));
        let new = options.create(LocalHost.create_new(&path).unwrap()).unwrap();
        for _ in 0..40 {
            let start = rng.below(size / 512) * 512;
            let len = (512 * (1 + rng.below(600))).min(size - start);
            let part = &mut bytes[start as usize..(start + len) as usize];
            if rng.chance(1, 2) {
                pattern(rng.next_u64(), start, part);
                new.write_at(part, start).unwrap();
            } else {
                part.fill(0);
                new.write_zeroes(start..start + len, Zeroing::MayUnmap).unwrap();
            }
        }
        assert_eq!(difference(&flat(&new), &bytes), None, "before it is finished");
        new.finish().unwrap();
        let error = new.write_at(&[1], 0).unwrap_err();
        assert_eq!((error.code(), error.kind()), ("new-qcow2.finished", ErrorKind::InvalidInput));
        assert_eq!(difference(&flat(&open(n)), &bytes), None, "layer {n}");
        let raw = folder.path().join("raw");
        fs::write(&raw, &bytes).unwrap();
        if is_sound(&path, size) {
            run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", name(&path), name(&raw)])
                .unwrap();
        }
    }
}

#[test]
fn a_new_image_keeps_the_promises_of_disks() {
    for with_backing in [false, true] {
        let size = MIB + 512 * 9;
        let below = sparse(3, MIB);
        conformance::disk::keeps_every_promise(&|| {
            let mut options = CreateOptions::new(size).cluster_size(16 << 10);
            let mut bytes = vec![0; size as usize];
            if with_backing {
                bytes[..below.len()].copy_from_slice(&below);
                let disk = Arc::new(disk_of(below.clone()));
                options = options.backing(Backing { name: "b".into(), format: "raw".into(), disk });
            }
            let storage = Arc::new(MemStorage::new(Vec::new()));
            let new = options.create(Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
            let written = 512 * 100..512 * 433;
            pattern(9, written.start, &mut bytes[written.start as usize..written.end as usize]);
            let part = &bytes[written.start as usize..written.end as usize];
            new.write_at(part, written.start).unwrap();
            Subject::writable(new, bytes)
        });
    }
}

/// More second tables than are kept.
#[test]
fn a_wide_disk_is_written_with_tables_that_were_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let size = 1 << 30;
    let raw = folder.path().join("raw");
    let file = LocalHost.create_new(&raw).unwrap();
    file.set_len(size).unwrap();
    let mut rng = Rng::new(1);
    // With clusters of 4 KiB, a table tells of 2 MiB.
    for _ in 0..900 {
        let at = rng.below(size / 512) * 512;
        let mut bytes = [0; 512];
        pattern(1, at, &mut bytes);
        file.write_at(&bytes, at).unwrap();
    }
    let disk = RawDisk::new(file).unwrap();
    let path = folder.path().join("wide.qcow2");
    let options = CreateOptions::new(size).cluster_size(4096);
    let new = options.create(LocalHost.create_new(&path).unwrap()).unwrap();
    Export::new().onto(&disk, &new).unwrap();
    new.finish().unwrap();
    let copy = OpenOptions::new().open(&path).unwrap();
    assert!(avhdx::ops::Compare::new().run(&disk, &copy).unwrap().first_difference.is_none());
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 16 * MIB);
    if is_sound(&path, size) {
        run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", name(&path), name(&raw)]).unwrap();
    }
}

#[test]
fn what_no_image_can_be_is_refused() {
    for (options, code) in [
        (CreateOptions::new(0), "new-qcow2.size"),
        (CreateOptions::new(513), "new-qcow2.size"),
        (CreateOptions::new(MIB).cluster_size(512), "new-qcow2.cluster-size"),
        (CreateOptions::new(MIB).cluster_size(3 << 20), "new-qcow2.cluster-size"),
        (CreateOptions::new(1 << 62).cluster_size(4096), "new-qcow2.too-large"),
    ] {
        let made = options.create(Arc::new(MemStorage::new(Vec::new())));
        let error = made.map(|_| ()).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, code));
    }
    let storage = Arc::new(MemStorage::new(vec![0; 512]));
    let error = CreateOptions::new(512).create(storage).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), "new-qcow2.not-empty");
}
