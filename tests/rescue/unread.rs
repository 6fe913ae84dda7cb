//! Files that the host cannot read everywhere, and disks that are too large to hold.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use avhdx::Disk;
use avhdx::ops::{Grade, Rescue};
use avhdx::storage::{MemStorage, Storage};
use avhdx_testkit::build::{Block, Data, Image};

use crate::judge::judge;

const MIB: u64 = 1 << 20;

/// A file of which some ranges fail.
#[derive(Debug)]
struct Failing {
    bytes: MemStorage,
    bad: Vec<Range<u64>>,
    failures: AtomicU64,
}

impl Storage for Failing {
    fn name(&self) -> &str {
        "failing"
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset + buf.len() as u64;
        if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(5));
        }
        self.bytes.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a rescue writes to its input")
    }

    fn flush(&self) -> io::Result<()> {
        panic!("a rescue flushes its input")
    }

    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a rescue changes the length of its input")
    }
}

#[test]
fn what_the_host_cannot_read_is_lost_and_no_more() {
    let mut image = Image::dynamic(16 * MIB);
    image.block_size = 2 << 20;
    for block in 0..6 {
        image.put(block, Block::full(Data::Pattern(block)));
    }
    let (flat, layout) = (image.flat(None), image.layout());
    let (first, second) = (layout.get("payload:1").start, layout.get("payload:4").start);
    let file = Arc::new(Failing {
        bytes: MemStorage::new(image.to_bytes()),
        // A header, and sectors of two blocks.
        bad: vec![64 << 10..68 << 10, first + 1024..first + 1536, second + 4096..second + 12288],
        failures: AtomicU64::new(0),
    });
    let ruin = Rescue::new().open_file(Arc::clone(&file) as _).unwrap();
    let mut all = vec![0; flat.len()];
    ruin.read_at(&mut all, 0).unwrap();
    let lost: Vec<Range<u64>> =
        ruin.pieces().filter(|piece| piece.grade == Grade::Lost).map(|piece| piece.range).collect();
    assert_eq!(lost, [2 * MIB + 1024..2 * MIB + 1536, 8 * MIB + 4096..8 * MIB + 12288]);
    let share = judge(&ruin, &flat, "failing sectors");
    assert_eq!(share.sure, share.all - 512 - 8192);
    // Each sector fails once by itself, and in the reads that were halved.
    let failures = file.failures.load(Ordering::Relaxed);
    assert!(failures < 200, "{failures} reads failed");
}

#[test]
fn a_table_that_the_host_cannot_read_is_lost() {
    let mut image = Image::dynamic(16 * MIB);
    image.put(3, Block::full(Data::Pattern(3)));
    let flat = image.flat(None);
    let file = Arc::new(Failing {
        bytes: MemStorage::new(image.to_bytes()),
        bad: vec![image.layout().get("bat")],
        failures: AtomicU64::new(0),
    });
    let ruin = Rescue::new().open_file(file).unwrap();
    judge(&ruin, &flat, "an unreadable table");
    assert!(ruin.pieces().all(|piece| piece.grade == Grade::Lost));
}

#[test]
fn a_file_of_which_nothing_can_be_read_ends() {
    let image = Image::dynamic(64 * MIB);
    let bytes = image.to_bytes();
    let all = 0..bytes.len() as u64;
    let file =
        Failing { bytes: MemStorage::new(bytes), bad: vec![all], failures: AtomicU64::new(0) };
    let error = Rescue::new().open_file(Arc::new(file)).unwrap_err();
    assert_eq!(error.code(), "rescue.nothing");
}

#[test]
fn a_disk_of_64_tib_takes_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.vhdx");
    let mut image = Image::dynamic(64 << 40);
    image.block_size = 2 << 20;
    image.put(0, Block::full(Data::Pattern(1)));
    image.put((32 << 20) - 1, Block::full(Data::Pattern(2)));
    image.write_to(&path);
    let begun = Instant::now();
    let ruin = Rescue::new().open(&path).unwrap();
    let pieces: Vec<_> = ruin.pieces().collect();
    println!("{} pieces of 64 TiB in {:?}", pieces.len(), begun.elapsed());
    assert!(pieces.iter().all(|piece| piece.grade == Grade::Sure));
    assert_eq!(ruin.geometry().size, 64 << 40);
    assert!(begun.elapsed().as_secs() < 60);
}
