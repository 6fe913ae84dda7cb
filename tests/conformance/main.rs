//! A suite that every kind of disk passes, by value and behind every pointer.
#![allow(clippy::disallowed_methods)] // a disk is put into a file from outside

#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/concatenation.rs"]
#[allow(dead_code)]
mod concatenation;

mod broken;
mod broken_files;
mod disks;
mod files;
mod ram;

use std::io::IoSlice;
use std::sync::Arc;

use avhdx::storage::MemStorage;
use avhdx::{Cursor, Disk, DiskExt, ErrorKind, OpenOptions, Part, RawDisk};
use avhdx_testkit::build::{Block, Data, Image, Order, state};
use avhdx_testkit::conformance::disk::{OF_ALL, Subject};
use avhdx_testkit::sim;

use common::disk::{flat, keeps_its_bounds, reads_as, tiles};
use common::{MIB, in_memory, open_images};

/// The promises of every disk.
fn conforms(disk: &(impl Disk + ?Sized), expected: &[u8]) {
    let disk = &disk as &dyn Disk;
    reads_as(disk, expected);
    keeps_its_bounds(disk);
    for (_, check) in OF_ALL {
        check(&|| Subject::read_only(disk, expected.to_vec()));
    }
}

/// A read-only disk refuses every write and stays unchanged.
fn refuses_writes(disk: &(impl Disk + ?Sized), expected: &[u8]) {
    for (buf, at) in [(&b"x"[..], 0), (b"", 0), (&[0; 5000], 1), (b"x", u64::MAX)] {
        let error = disk.write_at(buf, at).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::ReadOnly, "disk.read-only"));
        let error = disk.write_vectored_at(&[IoSlice::new(buf)], at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
    }
    disk.flush().unwrap();
    assert!(flat(&disk as &dyn Disk) == expected);
}

/// The disk is the same by value and behind every pointer.
fn conforms_everywhere<D: Disk + 'static>(make: impl Fn() -> D, expected: &[u8]) {
    conforms(&make(), expected);
    conforms(&&make(), expected);
    conforms(&Box::new(make()), expected);
    conforms(&Arc::new(make()), expected);
    conforms(&(Box::new(make()) as Box<dyn Disk>), expected);
    conforms(&(Arc::new(make()) as Arc<dyn Disk>), expected);
    conforms(&(&make() as &dyn Disk), expected);
    // And where any disk is accepted.
    let boxed: Box<dyn Disk> = Box::new(make());
    assert_eq!(
        boxed.extents(0..expected.len() as u64).count(),
        tiles(&make(), 0..expected.len() as u64).len()
    );
    assert_eq!(boxed.cursor().disk().geometry(), make().geometry());
    assert_eq!(Cursor::new(boxed).into_inner().geometry(), make().geometry());
}

fn base() -> Image {
    let mut base = Image::dynamic(5 * MIB - 1536);
    // Neighbours on the disk are not neighbours in the file.
    base.order = Order::Reversed;
    base.put(0, Block::full(Data::Pattern(1))).put(1, Block::full(Data::Pattern(2)));
    base.put(3, Block::full(Data::Pattern(3))).put(4, Block::full(Data::Pattern(4)));
    base
}

fn tip(base: &Image) -> Image {
    let mut tip = base.new_child();
    tip.size += MIB;
    tip.put(0, Block::partial_runs(Data::Pattern(5), &[(0, 3), (9, 1), (2047, 1)]));
    tip.put(1, Block::bare(state::ZERO));
    tip.put(2, Block::partial_runs(Data::Pattern(6), &[(100, 1000)]));
    tip.put(4, Block::partial_runs(Data::Pattern(7), &[(2040, 8)]));
    tip
}

#[test]
fn an_image() {
    let expected = base().flat(None);
    let make = || OpenOptions::new().open_file(in_memory(&[base()]).remove(0)).unwrap();
    conforms_everywhere(make, &expected);
    refuses_writes(&make(), &expected);
    refuses_writes(&(Box::new(make()) as Box<dyn Disk>), &expected);
}

#[test]
fn a_chain_and_its_views() {
    let base = base();
    let tip = tip(&base);
    let expected = tip.flat(Some(&base.flat(None)));
    let make = || open_images(OpenOptions::new(), &[base.clone(), tip.clone()]).unwrap();
    conforms_everywhere(make, &expected);
    refuses_writes(&make(), &expected);
    refuses_writes(&Arc::new(make()), &expected);
    let lower = || {
        let chain = make();
        let base = chain.layers()[1].id;
        chain.view(base).unwrap()
    };
    conforms_everywhere(lower, &base.flat(None));
    refuses_writes(&lower(), &base.flat(None));
    // A view outlives its chain.
    let chain = make();
    let view = chain.view(chain.layers()[0].id).unwrap();
    drop(chain);
    conforms(&view, &expected);
}

#[test]
fn a_raw_disk() {
    let expected = base().flat(None);
    let make = || RawDisk::new(Arc::new(MemStorage::new(expected.clone()))).unwrap();
    conforms_everywhere(make, &expected);
    let disk = make();
    let mut expected = expected.clone();
    for (buf, at) in [(&b"x"[..], 0), (b"", 3), (&[9; 5000], 1001)] {
        disk.write_at(buf, at).unwrap();
        expected[at as usize..][..buf.len()].copy_from_slice(buf);
    }
    let size = expected.len() as u64;
    for (buf, at) in [(&b"xy"[..], size - 1), (b"x", size), (b"x", u64::MAX), (b"", size + 1)] {
        assert_eq!(disk.write_at(buf, at).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    disk.flush().unwrap();
    conforms(&disk, &expected);
}

#[test]
fn a_part_of_a_disk() {
    let base = base();
    let tip = tip(&base);
    let whole = tip.flat(Some(&base.flat(None)));
    let range = MIB - 512..5 * MIB + 1024;
    let expected = &whole[range.start as usize..range.end as usize];
    let make = || {
        let chain = open_images(OpenOptions::new(), &[base.clone(), tip.clone()]).unwrap();
        Part::new(chain, range.clone()).unwrap()
    };
    conforms_everywhere(make, expected);
    assert_eq!(make().range(), range);
    assert_eq!(make().disk().geometry().size, whole.len() as u64);
    // A part of a part lies where it lies in the whole.
    let inner = Part::new(make(), 1024..2048).unwrap();
    conforms(&inner, &expected[1024..2048]);
}

#[test]
fn a_part_lies_within_its_disk_and_consists_of_whole_sectors() {
    let disk = |sector| {
        let mut image = Image::dynamic(5 * MIB);
        image.logical_sector = sector;
        image.physical_sector = 4096;
        OpenOptions::new().open_file(in_memory(&[image]).remove(0)).unwrap()
    };
    let (small, large) = (disk(512), disk(4096));
    for (disk, range) in [(&small, 0..5 * MIB), (&small, 512..1024), (&large, 4096..8192)] {
        Part::new(disk, range).unwrap();
    }
    #[allow(clippy::reversed_empty_ranges)]
    let refused = [
        (&small, 512..512, "part.empty"),
        (&small, 1024..512, "part.empty"),
        (&small, 0..5 * MIB + 512, "disk.out-of-range"),
        (&small, 5 * MIB..5 * MIB + 512, "disk.out-of-range"),
        (&small, 0..u64::MAX, "disk.out-of-range"),
        (&small, 1..513, "part.unaligned"),
        (&small, 0..513, "part.unaligned"),
        (&large, 512..4608, "part.unaligned"),
        (&large, 0..512, "part.unaligned"),
    ];
    for (disk, range, code) in refused {
        let error = Part::new(disk, range.clone()).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, code), "{range:?}");
    }
}

#[test]
fn what_is_written_to_a_part_stays_within_it() {
    let bytes = vec![0x5A; 8192];
    let disk = RawDisk::new(Arc::new(MemStorage::new(bytes.clone()))).unwrap();
    let part = Part::new(&disk, 1024..4096).unwrap();
    part.write_at(b"first", 0).unwrap();
    part.write_at(b"last", 3068).unwrap();
    for (at, buf) in [(3069, &b"last"[..]), (3072, b"x"), (u64::MAX - 1023, b"x"), (3073, b"")] {
        let error = part.write_at(buf, at).unwrap_err();
        assert_eq!(error.code(), "disk.out-of-range", "{at}");
    }
    let mut expected = bytes;
    expected[1024..1029].copy_from_slice(b"first");
    expected[4092..4096].copy_from_slice(b"last");
    assert!(flat(&disk as &dyn Disk) == expected);
}
