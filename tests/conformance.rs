//! A suite that every kind of disk passes, by value and behind every pointer.

mod common;

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use avhdx::storage::MemStorage;
use avhdx::{Cursor, Disk, DiskExt, ErrorKind, OpenOptions, RawDisk, Source};
use avhdx_testkit::build::{Block, Data, Image, Order, state};
use avhdx_testkit::rng::Rng;

use common::disk::{flat, keeps_its_bounds, reads_as, tiles};
use common::{MIB, in_memory, open_images};

/// The promises of every disk.
fn conforms(disk: &(impl Disk + ?Sized), expected: &[u8]) {
    let disk = &disk as &dyn Disk;
    let geometry = disk.geometry();
    assert_eq!(geometry.size, expected.len() as u64);
    assert!([512, 4096].contains(&geometry.logical_sector));
    assert!([512, 4096].contains(&geometry.physical_sector));
    reads_as(disk, expected);
    keeps_its_bounds(disk);
    buffers_of_all_sizes(disk, expected);
    extents_are_one_sequence(disk, expected);
    readers_do_not_disturb_each_other(disk, expected);
}

fn buffers_of_all_sizes(disk: &dyn Disk, expected: &[u8]) {
    let mut rng = Rng::new(7);
    for count in [0, 1, 2, 17, 600] {
        let lens: Vec<usize> = (0..count)
            .map(|_| if rng.chance(1, 4) { 0 } else { rng.below(900) as usize })
            .collect();
        let total: usize = lens.iter().sum();
        let at = rng.below((expected.len() - total) as u64 + 1) as usize;
        let mut bytes: Vec<Vec<u8>> = lens.iter().map(|len| vec![0xAA; *len]).collect();
        let mut bufs: Vec<IoSliceMut<'_>> = bytes.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        disk.read_vectored_at(&mut bufs, at as u64).unwrap();
        assert!(bytes.concat() == expected[at..at + total], "{count} buffers");
        // The same length again would extend beyond the end.
        let mut bytes = vec![0; expected.len()];
        let mut more = [0];
        let mut bufs = [IoSliceMut::new(&mut bytes), IoSliceMut::new(&mut more)];
        let error = disk.read_vectored_at(&mut bufs, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

/// The extents of parts of a range are parts of the extents of the whole.
fn extents_are_one_sequence(disk: &dyn Disk, expected: &[u8]) {
    let size = expected.len() as u64;
    let whole = tiles(disk, 0..size);
    for pair in whole.windows(2) {
        let len = pair[0].range.end - pair[0].range.start;
        let continues = match (pair[0].source, pair[1].source) {
            (Source::Data { layer: a, at: x }, Source::Data { layer: b, at: y }) => {
                a == b && x.get() + len == y.get()
            }
            (a, b) => a == b,
        };
        assert!(!continues, "{pair:?} are one extent");
    }
    let mut rng = Rng::new(size);
    for _ in 0..200 {
        let start = rng.below(size);
        let end = start + 1 + rng.below(size - start);
        let part = tiles(disk, start..end);
        for extent in &part {
            let around = whole
                .iter()
                .find(|e| e.range.contains(&extent.range.start))
                .expect("an extent of the whole");
            assert!(around.range.end >= extent.range.end, "{extent:?} in {around:?}");
            let into = extent.range.start - around.range.start;
            match (around.source, extent.source) {
                (Source::Data { layer: a, at: x }, Source::Data { layer: b, at: y }) => {
                    assert_eq!((a, x.get() + into), (b, y.get()), "{extent:?} in {around:?}");
                }
                (a, b) => assert_eq!(a, b, "{extent:?} in {around:?}"),
            }
        }
        let next = disk.next_extent(start..end).unwrap().expect("an extent");
        assert_eq!(next.range.start, start);
        assert!(
            next.range.end <= part[0].range.end,
            "one step is no longer than the joined extent"
        );
    }
    for extent in whole {
        if let Source::Zero { .. } = extent.source {
            let bytes = &expected[extent.range.start as usize..extent.range.end as usize];
            assert!(bytes.iter().all(|byte| *byte == 0), "{extent:?}");
        }
    }
}

fn readers_do_not_disturb_each_other(disk: &dyn Disk, expected: &[u8]) {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..100 {
                    let at = rng.below(expected.len() as u64) as usize;
                    let len = rng.below((expected.len() - at).min(40_000) as u64 + 1) as usize;
                    let mut bytes = vec![0xAA; len];
                    disk.read_at(&mut bytes, at as u64).unwrap();
                    assert!(bytes == expected[at..at + len], "{len} bytes at {at}");
                    let end = (at + len) as u64;
                    tiles(disk, at as u64..end);
                }
            });
        }
    });
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
