//! Holes of raw disks, copies onto new images, and images in files that the caller opened.

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use avhdx::ops::Export;
use avhdx::storage::{Access, Host, LocalHost, MemStorage, Storage};
use avhdx::{CreateOptions, Disk, DiskExt, ErrorKind, RawDisk, Source};
use avhdx_testkit::naive;
use avhdx_testkit::rng::pattern;

const MIB: usize = 1 << 20;

fn disk(bytes: Vec<u8>) -> RawDisk {
    RawDisk::new(Arc::new(MemStorage::new(bytes))).unwrap()
}

/// Reading an image does not even change its access time.
#[test]
#[cfg(target_os = "linux")]
fn reading_leaves_the_time_of_access_alone() {
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, SystemTime};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    let file = File::create(&path).unwrap();
    std::io::Write::write_all(&mut &file, &[1; MIB]).unwrap();
    // Old enough for any read to update it.
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_times(std::fs::FileTimes::new().set_accessed(long_ago)).unwrap();
    let storage = LocalHost.open(&path, Access::Read).unwrap();
    storage.read_exact_at(&mut [0; 4096], 0).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().atime(), 1_000_000_000);
}

/// A host that can fill several buffers in one call is used that way.
#[test]
#[cfg(target_os = "linux")]
fn several_buffers_are_filled_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    let mut bytes = vec![0; 10_000];
    pattern(1, 0, &mut bytes);
    std::fs::write(&path, &bytes).unwrap();
    let storage = LocalHost.open(&path, Access::Read).unwrap();
    let mut parts = [vec![0; 100], vec![], vec![0; 4096], vec![0; 7000]];
    let mut bufs = parts.each_mut().map(|part| std::io::IoSliceMut::new(part));
    // Up to the end of the file, which comes before the end of the buffers.
    assert_eq!(storage.read_vectored_at(&mut bufs, 1000).unwrap(), 9000);
    assert_eq!(parts.concat()[..9000], bytes[1000..]);
}

#[test]
#[cfg(target_os = "linux")]
fn holes_of_a_file_are_zeros_of_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    let file = File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; MIB], 2 << 20).unwrap();
    let storage = LocalHost.open(&path, Access::Read).unwrap();
    assert_eq!(storage.next_data(0).unwrap(), Some(2 << 20..3 << 20));
    assert_eq!(storage.next_data((2 << 20) + 5).unwrap(), Some((2 << 20) + 5..3 << 20));
    for past in [3 << 20, 8 << 20, 9 << 20] {
        assert_eq!(storage.next_data(past).unwrap(), None);
    }
    let disk = RawDisk::new(storage).unwrap();
    let extents: Vec<_> = disk.extents(5..7 << 20).map(Result::unwrap).collect();
    let parts: Vec<_> = extents
        .iter()
        .map(|extent| (extent.range.clone(), matches!(extent.source, Source::Data { .. })))
        .collect();
    let (from, to) = (2 << 20, 3 << 20);
    assert_eq!(parts, [(5..from, false), (from..to, true), (to..7 << 20, false)]);
    assert!(matches!(extents[1].source, Source::Data { at, .. } if at.get() == from));
    assert_eq!(disk.next_extent(9..9).unwrap(), None);
    assert_eq!(disk.next_extent(0..9 << 20).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_storage_that_does_not_tell_is_all_data() {
    let storage = MemStorage::new(vec![0; 100]);
    assert_eq!(storage.next_data(10).unwrap(), Some(10..100));
    assert_eq!(storage.next_data(100).unwrap(), None);
}

#[test]
fn a_copy_onto_an_image_has_the_same_bytes_and_no_more_blocks() {
    let mut bytes = vec![0; 9 * MIB + 512];
    pattern(1, 0, &mut bytes[MIB + 77..2 * MIB]);
    pattern(2, 0, &mut bytes[4 * MIB - 3..4 * MIB + 3]);
    bytes[9 * MIB + 511] = 1;
    let file = Arc::new(MemStorage::new(Vec::new()));
    let image = CreateOptions::dynamic(bytes.len() as u64)
        .block_size(MIB as u32)
        .create_in(&LocalHost, Arc::clone(&file) as Arc<dyn Storage>)
        .unwrap();
    let mut reports = Vec::new();
    let exported = Export::new()
        .on_progress(|now| {
            reports.push((now.done, now.total));
            ControlFlow::Continue(())
        })
        .onto(&disk(bytes.clone()), &image)
        .unwrap();
    // The page at MIB + 77, two pages around 4 MiB, and the last 512 bytes.
    assert_eq!(exported.size, bytes.len() as u64);
    assert_eq!(exported.written, MIB as u64 + 2 * 4096 + 512);
    assert_eq!(reports.last(), Some(&(exported.size, exported.size)));
    assert_eq!(image.count_blocks().unwrap().fully_present, 4);
    image.close().unwrap();
    drop(image);
    let file = Arc::into_inner(file).unwrap().into_bytes();
    assert!(naive::Chain::from_bytes([file]).unwrap().flat(0).unwrap() == bytes);
}

#[test]
fn a_copy_is_refused_room_or_stopped() {
    let image = |size: u64| {
        let storage = Arc::new(MemStorage::new(Vec::new()));
        CreateOptions::dynamic(size).create_in(&LocalHost, storage).unwrap()
    };
    let small = Export::new().onto(&disk(vec![1; 1024]), &image(512)).unwrap_err();
    assert_eq!(small.kind(), ErrorKind::InvalidInput);
    let larger = image(4096);
    Export::new().onto(&disk(vec![1; 1000]), &larger).unwrap();
    let mut found = vec![9; 4096];
    larger.read_at(&mut found, 0).unwrap();
    assert!(found[..1000] == [1; 1000] && found[1000..].iter().all(|byte| *byte == 0));
    let stop = |_| ControlFlow::Break(());
    let stopped =
        Export::new().on_progress(stop).onto(&disk(vec![1; 1024]), &image(1024)).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Cancelled);
}

#[test]
fn an_image_in_a_file_of_the_callers() {
    let folder = tempfile::tempdir().unwrap();
    let base = CreateOptions::dynamic(4 << 20).create(folder.path().join("b.vhdx")).unwrap();
    let draft = folder.path().join("draft");
    let child = CreateOptions::child_of(&base)
        .unwrap()
        .create_in(&LocalHost, LocalHost.create_new(&draft).unwrap())
        .unwrap();
    let link = child.parent_link().unwrap().unwrap();
    assert_eq!(link.relative_path.as_deref(), Some(".\\b.vhdx"));
    assert!(child.is_writable());
    // Without a path of its own, no path leads to the parent.
    let nowhere = Arc::new(MemStorage::new(Vec::new()));
    let lost = CreateOptions::child_of(&base).unwrap().create_in(&LocalHost, nowhere).unwrap_err();
    assert_eq!((lost.kind(), lost.code()), (ErrorKind::InvalidInput, "create.parent-path"));
}
