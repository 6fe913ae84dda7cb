//! What a look found rests on the bytes that it says, and on no others.

use std::sync::Arc;

use avhdx::RawDisk;
use avhdx::storage::MemStorage;
use avhdx_files::{ErrorKind, Options, Seen};

use crate::images;

fn look(image: Vec<u8>, volume: Option<&str>, path: &str) -> Seen<(u64, Vec<u8>)> {
    let disk = RawDisk::new(Arc::new(MemStorage::new(image))).unwrap();
    Seen::look(Arc::new(disk), volume, Options::default(), |tree| {
        let file = tree.resolve(path.as_bytes())?;
        let bytes = tree.open(&file, None)?.read_to_end(1 << 20)?;
        Ok((file.size(), bytes))
    })
}

/// The image with all bytes changed that the look did not touch.
fn others_changed<T>(image: &[u8], seen: &Seen<T>) -> Vec<u8> {
    let mut changed = vec![0xA5; image.len()];
    for range in seen.touched().iter().map(|range| range.start as usize..range.end as usize) {
        changed[range.clone()].copy_from_slice(&image[range]);
    }
    changed
}

#[test]
fn bytes_that_a_look_did_not_touch_do_not_matter() {
    let images = [images::ntfs().cloned(), images::ext("ext4", "4096"), images::fat("12")];
    for image in images.into_iter().flatten() {
        for volume in [None, Some("of NTFS"), Some("of ext"), Some("OF FAT")] {
            for path in ["many/file number 250.dat", "a/level 0", "many/none"] {
                let seen = look(image.clone(), volume, path);
                let sum: u64 = seen.touched().iter().map(|range| range.end - range.start).sum();
                assert!(sum < image.len() as u64 / 2, "{path}: {sum} of {}", image.len());
                let again = look(others_changed(&image, &seen), volume, path);
                match (&seen.found, &again.found) {
                    (Ok(one), Ok(other)) => assert_eq!(one, other),
                    (Err(one), Err(other)) => {
                        assert_eq!((one.code(), one.path()), (other.code(), other.path()));
                        assert_ne!(one.kind(), ErrorKind::Damaged, "{one}");
                    }
                    (one, other) => panic!("{volume:?} {path}: {one:?}, then {other:?}"),
                }
                assert_eq!(seen.touched(), again.touched(), "{volume:?} {path}");
            }
        }
    }
}
