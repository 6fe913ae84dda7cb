//! New images, as others read them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use avhdx::ops::Export;
use avhdx::storage::{Host, LocalHost, MemStorage, Storage};
use avhdx::{Disk, ErrorKind, Geometry, RawDisk};
use avhdx_formats::vhd::{
    AzureRule, CreateOptions, MAX_SIZE, NewVhd, OpenOptions, azure_size, measure,
};
use avhdx_testkit::conformance;
use avhdx_testkit::conformance::disk::Subject;
use avhdx_testkit::rng::pattern;

use crate::disks::{MIB, disk_of, flat, sparse};
use crate::tools::{libvhdi, name, run};

fn copy(bytes: &[u8], options: &CreateOptions, path: &Path) {
    let new = options.create(LocalHost.create_new(path).unwrap()).unwrap();
    Export::new().onto(&disk_of(bytes.to_vec()), &new).unwrap();
    new.finish().unwrap();
}

#[test]
fn new_images_read_the_same_by_the_crate_by_qemu_and_by_libvhdi() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [512, MIB, 3 * MIB + 512, 20 * MIB, 65 * MIB + 4096];
    let mut compared = 0;
    for (n, size) in sizes.into_iter().enumerate() {
        let bytes = sparse(n as u64, size);
        let raw = folder.path().join(format!("{n}.raw"));
        fs::write(&raw, &bytes).unwrap();
        let all = [
            ("fixed", CreateOptions::fixed(size)),
            ("2m", CreateOptions::dynamic(size)),
            ("512k", CreateOptions::dynamic(size).block_size(512 << 10)),
            ("32m", CreateOptions::dynamic(size).block_size(32 << 20)),
        ];
        for (what, options) in all {
            let path = folder.path().join(format!("{n}-{what}.vhd"));
            copy(&bytes, &options, &path);
            let disk = OpenOptions::new().open(&path).unwrap();
            assert_eq!(disk.warnings(), []);
            assert!(flat(&disk) == bytes, "{what} of {size}");
            let block = disk.images().next().unwrap().block_size;
            let forecast = measure(&disk_of(bytes.clone()), block).unwrap().required;
            let len = fs::metadata(&path).unwrap().len();
            // A disk in memory has no holes to be told.
            assert!(len <= forecast, "{what} of {size}: {len}, {forecast}");
            assert_eq!(measure(&disk, block).unwrap().required, len, "{what} of {size}");
            if let Some(info) =
                run("qemu-img", &["info", "--output=json", "-f", "vpc", name(&path)])
            {
                assert!(info.contains(&format!("\"virtual-size\": {size},")), "{info}");
                let args = ["compare", "-f", "vpc", "-F", "raw", name(&path), name(&raw)];
                run("qemu-img", &args);
                compared += 1;
            }
            if let Some(other) = libvhdi(&[&path]) {
                assert!(other == bytes, "{what} of {size} by libvhdi");
            }
        }
    }
    println!("images that QEMU read alike, of the exact size: {compared}");
}

#[test]
fn a_new_image_keeps_the_promises_of_disks() {
    for options in [CreateOptions::dynamic(3 * MIB + 512), CreateOptions::fixed(MIB)] {
        let options = options.block_size(512 << 10);
        conformance::disk::keeps_every_promise(&|| {
            let storage = Arc::new(MemStorage::new(Vec::new()));
            let new = options.create(Arc::clone(&storage) as Arc<dyn Storage>).unwrap();
            let size = new.geometry().size;
            let mut bytes = vec![0; size as usize];
            let written = 512 * 100..512 * 1033;
            pattern(9, written.start, &mut bytes[written.start as usize..written.end as usize]);
            let part = &bytes[written.start as usize..written.end as usize];
            new.write_at(part, written.start).unwrap();
            Subject::writable(new, bytes)
        });
    }
}

#[test]
fn a_sparse_disk_stays_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let size = 512 * MIB;
    let raw = folder.path().join("raw");
    let file = LocalHost.create_new(&raw).unwrap();
    file.set_len(size).unwrap();
    file.write_at(&[7; 4096], 300 * MIB).unwrap();
    let disk = RawDisk::new(file).unwrap();
    for (what, options, most) in [
        ("fixed", CreateOptions::fixed(size), 64 << 10),
        ("dynamic", CreateOptions::dynamic(size), 3 * MIB),
    ] {
        let path = folder.path().join(what);
        let new = options.create(LocalHost.create_new(&path).unwrap()).unwrap();
        Export::new().onto(&disk, &new).unwrap();
        new.finish().unwrap();
        let allocated = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(allocated <= most, "{what}: {allocated}");
    }
}

#[test]
fn what_no_image_can_be_is_refused() {
    let create = |options: CreateOptions| -> avhdx::Result<NewVhd> {
        options.create(Arc::new(MemStorage::new(Vec::new())))
    };
    for (options, code) in [
        (CreateOptions::dynamic(0), "new-vhd.size"),
        (CreateOptions::dynamic(513), "new-vhd.size"),
        (CreateOptions::fixed(MAX_SIZE + 512), "new-vhd.too-large"),
        (CreateOptions::dynamic(MIB).block_size(3 << 20), "new-vhd.block-size"),
        (CreateOptions::dynamic(MIB).block_size(4096), "new-vhd.block-size"),
    ] {
        let error = create(options).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, code));
    }
    create(CreateOptions::dynamic(MAX_SIZE)).unwrap();
    let storage = Arc::new(MemStorage::new(vec![0; 512]));
    let error = CreateOptions::fixed(512).create(storage).unwrap_err();
    assert_eq!(error.code(), "new-vhd.not-empty");
}

#[test]
fn the_rules_of_azure_are_kept_one_by_one() {
    let of = |size, sector| Geometry::new(size, sector, sector);
    let gib = 1 << 30;
    let all = [
        (of(20 * MIB, 512), false, Ok(20 * MIB)),
        (of(20 * MIB, 4096), false, Err(AzureRule::Sector)),
        (of(20 * MIB, 4096), true, Err(AzureRule::Sector)),
        (of(20 * MIB + 512, 512), false, Err(AzureRule::WholeMiB)),
        (of(20 * MIB + 512, 512), true, Ok(21 * MIB)),
        (of(19 * MIB, 512), false, Err(AzureRule::Least)),
        (of(19 * MIB, 512), true, Ok(20 * MIB)),
        (of(512, 512), true, Ok(20 * MIB)),
        (of(2040 * gib, 512), false, Ok(2040 * gib)),
        (of(2040 * gib + MIB, 512), false, Err(AzureRule::Most)),
        (of(2040 * gib - 512, 512), true, Ok(2040 * gib)),
        (of(u64::MAX, 512), true, Err(AzureRule::Most)),
    ];
    for (geometry, pad, wanted) in all {
        assert_eq!(azure_size(geometry, pad), wanted, "{geometry:?} {pad}");
    }
}
