//! Disks that arrive as a stream.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use avhdx::ops::{Export, Import};
use avhdx::storage::{LocalHost, MemStorage};
use avhdx::{CreateOptions, Disk, ErrorKind, RawDisk, VhdxFile};

const MIB: u64 = 1 << 20;

fn image(options: &CreateOptions) -> VhdxFile {
    options.create_in(&LocalHost, Arc::new(MemStorage::new(Vec::new()))).unwrap()
}

/// A reader that claims more than it was asked for.
struct Liar;

impl Read for Liar {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(buf.len() + 1)
    }
}

#[test]
fn a_reader_that_claims_too_much_is_an_error() {
    let error = Import::new().run(&mut Liar, &MemStorage::new(Vec::new())).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Io, "import.read"));
}

#[test]
fn a_disk_larger_than_any_image_is_an_error() {
    let image = image(&CreateOptions::dynamic(MIB));
    let mut stream: &[u8] = &[1; 512];
    let error = Import::new().size(u64::MAX).into_image(&mut stream, image).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "import.too-long"));
}

#[test]
fn data_of_an_image_does_not_show_through_an_import() {
    let used = image(&CreateOptions::dynamic(4 * MIB));
    used.write_at(&[9; 4], 0).unwrap();
    let mut stream: &[u8] = &[0; 4 << 20];
    let error = Import::new().into_image(&mut stream, used).unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "import.not-new"));
    // The blocks of a fixed image are there, and zeros.
    let mut stream: &[u8] = &[7; 4 << 20];
    let fixed = image(&CreateOptions::fixed(4 * MIB));
    let (fixed, _) = Import::new().into_image(&mut stream, fixed).unwrap();
    let mut found = vec![0; 4 << 20];
    fixed.read_at(&mut found, 0).unwrap();
    assert!(found.iter().all(|byte| *byte == 7));
}

fn raw() -> RawDisk {
    RawDisk::new(Arc::new(MemStorage::new(vec![1; 9 << 20]))).unwrap()
}

#[test]
fn an_operation_within_its_own_callback_does_not_wait_for_itself() {
    let (asked, inner) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(None::<Export>)));
    let (count, again) = (Arc::clone(&asked), Arc::clone(&inner));
    let export = Export::new().on_progress(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        let again = again.lock().unwrap().take();
        if let Some(again) = again {
            again.run(&raw(), &MemStorage::new(Vec::new())).unwrap();
        }
        ControlFlow::Continue(())
    });
    *inner.lock().unwrap() = Some(export.clone());
    export.run(&raw(), &MemStorage::new(Vec::new())).unwrap();
    assert!(asked.load(Ordering::Relaxed) > 2);
}

#[test]
fn a_callback_that_panicked_is_not_called_by_a_clone() {
    let (disk, mut calls) = (raw(), 0);
    let export = Export::new().on_progress(|_| {
        calls += 1;
        std::panic::resume_unwind(Box::new("planned"))
    });
    let run = |export: Export<'_>| export.run(&disk, &MemStorage::new(Vec::new()));
    let first = export.clone();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(first))).unwrap_err();
    assert_eq!(run(export).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(calls, 1);
}
