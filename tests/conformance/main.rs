//! A suite that every kind of disk passes, by value and behind every pointer.
#![allow(clippy::disallowed_methods)] // a disk is put into a file from outside

#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/concatenation.rs"]
#[allow(dead_code)]
mod concatenation;
#[path = "../sim/mod.rs"]
#[allow(dead_code)] // shared with other tests; not all of it is used here
mod sim;

mod broken;
mod broken_files;
mod disks;
mod files;
mod ram;

use std::io::IoSlice;
use std::sync::Arc;

use avhdx::storage::MemStorage;
use avhdx::{Cursor, Disk, DiskExt, ErrorKind, OpenOptions, RawDisk};
use avhdx_testkit::build::{Block, Data, Image, Order, state};
use avhdx_testkit::conformance::disk::{OF_ALL, Subject};

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
