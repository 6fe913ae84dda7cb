//! Checks that apply to every disk.

use std::io::{IoSliceMut, Read, Seek, SeekFrom};
use std::ops::Range;

use avhdx::{Cursor, DiffChain, Disk, DiskExt, ErrorKind, Extent, Source};
use avhdx_testkit::images::sha256_hex;
use avhdx_testkit::rng::Rng;

/// Reads the whole disk in pieces of `piece` bytes and passes them on in order.
pub fn in_pieces(disk: &dyn Disk, piece: usize, mut each: impl FnMut(u64, &[u8])) {
    let size = disk.geometry().size;
    let mut buf = vec![0xAA; piece];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(piece as u64) as usize;
        disk.read_at(&mut buf[..len], at).unwrap_or_else(|error| panic!("at {at}: {error}"));
        each(at, &buf[..len]);
        at += len as u64;
    }
}

/// The contents of a whole disk, for small ones.
pub fn flat(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xAA; disk.geometry().size as usize];
    disk.read_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{error}"));
    bytes
}

/// The SHA-256 of the whole disk, read in pieces of `piece` bytes through a cursor.
pub fn sum(disk: &dyn Disk, piece: usize) -> String {
    struct Limited<'a>(Cursor<&'a dyn Disk>, usize);
    impl Read for Limited<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let len = buf.len().min(self.1);
            self.0.read(&mut buf[..len])
        }
    }
    sha256_hex(Limited(Cursor::new(disk), piece))
}

/// The disk's contents are `expected`, in whatever way they are read.
pub fn reads_as(disk: &dyn Disk, expected: &[u8]) {
    let size = disk.geometry().size;
    assert_eq!(size, expected.len() as u64);
    assert!(flat(disk) == expected, "in one piece");
    for piece in [4096 * 3 - 7, 70_001, 1 << 20] {
        in_pieces(disk, piece, |at, bytes| {
            let at = at as usize;
            assert!(bytes == &expected[at..at + bytes.len()], "{piece} bytes at {at}");
        });
    }
    if size == 0 {
        return;
    }
    let mut rng = Rng::new(size);
    for _ in 0..60 {
        let at = rng.below(size);
        let len = rng.below((size - at).min(9000) + 1) as usize;
        let want = &expected[at as usize..at as usize + len];

        let mut bytes = vec![0xAA; len];
        disk.read_at(&mut bytes, at).unwrap();
        assert!(bytes == want, "{len} bytes at {at}");

        // In three buffers, one of which may be empty.
        let mut bytes = vec![0xAA; len];
        let (first, rest) = bytes.split_at_mut(rng.below(len as u64 + 1) as usize);
        let (second, third) = rest.split_at_mut(rng.below(rest.len() as u64 + 1) as usize);
        let mut bufs = [first, second, third].map(IoSliceMut::new);
        disk.read_vectored_at(&mut bufs, at).unwrap();
        assert!(bytes == want, "{len} bytes at {at}, vectored");

        let mut cursor = Cursor::new(disk);
        cursor.seek(SeekFrom::End(at as i64 - size as i64)).unwrap();
        let mut bytes = vec![0xAA; len];
        cursor.read_exact(&mut bytes).unwrap();
        assert!(bytes == want, "{len} bytes at {at}, by cursor");
        assert_eq!(cursor.stream_position().unwrap(), at + len as u64);
    }
    let mut rest = Vec::new();
    let mut cursor = Cursor::new(disk);
    cursor.seek(SeekFrom::Start(size - 1)).unwrap();
    assert_eq!(cursor.read_to_end(&mut rest).unwrap(), 1, "a cursor ends with the disk");
    assert_eq!(rest, expected[expected.len() - 1..]);
}

/// Ranges that do not lie within the disk are refused; empty ranges that do are not.
pub fn keeps_its_bounds(disk: &dyn Disk) {
    let size = disk.geometry().size;
    let refused = |result: avhdx::Result<()>, what: &str| {
        assert_eq!(result.expect_err(what).kind(), ErrorKind::InvalidInput, "{what}");
    };
    disk.read_at(&mut [], 0).unwrap();
    disk.read_at(&mut [], size).unwrap();
    disk.read_vectored_at(&mut [], size).unwrap();
    assert_eq!(disk.next_extent(size..size).unwrap(), None);
    assert_eq!(disk.next_extent(0..0).unwrap(), None);
    assert_eq!(disk.extents(size..size).count(), 0);
    let mut two = [0; 2];
    refused(disk.read_at(&mut [], size + 1), "nothing past the end");
    refused(disk.read_at(&mut two[..1], size), "a byte past the end");
    refused(disk.read_at(&mut two[..1], u64::MAX), "a byte past the last number");
    refused(disk.read_at(&mut two, u64::MAX), "two bytes past the last number");
    if size > 0 {
        refused(disk.read_at(&mut two, size - 1), "over the end");
        let (a, b) = two.split_at_mut(1);
        let mut bufs = [IoSliceMut::new(a), IoSliceMut::new(b)];
        refused(disk.read_vectored_at(&mut bufs, size - 1), "over the end, vectored");
        refused(disk.next_extent(size - 1..size + 1).map(drop), "an extent over the end");
    }
    refused(disk.next_extent(size..size + 1).map(drop), "an extent past the end");
    assert!(disk.extents(0..size + 1).any(|extent| extent.is_err()));
}

/// The extents of a range, which are in order, adjacent and not empty.
pub fn tiles(disk: &dyn Disk, range: Range<u64>) -> Vec<Extent> {
    let mut at = range.start;
    let mut found = Vec::new();
    for extent in disk.extents(range.clone()) {
        let extent = extent.unwrap_or_else(|error| panic!("after {at}: {error}"));
        assert_eq!(extent.range.start, at, "{extent:?}");
        assert!(extent.range.end > at && extent.range.end <= range.end, "{extent:?}");
        at = extent.range.end;
        found.push(extent);
    }
    assert_eq!(at, range.end);
    found
}

/// The bytes at the place of each extent are those that a read returns. Of long runs of zeros
/// only the first and the last piece are read.
pub fn extents_name_the_bytes(chain: &DiffChain, range: Range<u64>) {
    const PIECE: u64 = 1 << 20;
    let layers = chain.layers();
    let known = |id| layers.iter().any(|layer| layer.id == id);
    for extent in tiles(chain, range) {
        let is_zero = matches!(extent.source, Source::Zero { .. });
        let mut at = extent.range.start;
        while at < extent.range.end {
            let len = (extent.range.end - at).min(PIECE) as usize;
            let mut read = vec![0xAA; len];
            chain.read_at(&mut read, at).unwrap();
            let mut named = vec![0; len];
            match extent.source {
                Source::Data { layer, at: place } => {
                    let layer = layers.iter().find(|l| l.id == layer).expect("a layer's id");
                    let path = layer.path.as_ref().expect("a layer with a path");
                    let mut file = std::fs::File::open(path).unwrap();
                    let start = place.get() + (at - extent.range.start);
                    file.seek(SeekFrom::Start(start)).unwrap();
                    file.read_exact(&mut named).unwrap();
                }
                Source::Zero { layer } => assert!(layer.is_none_or(known), "{extent:?}"),
                Source::Parent => panic!("a chain asks no parent: {extent:?}"),
            }
            assert!(read == named, "{extent:?} at {at}");
            at += len as u64;
            if is_zero && extent.range.end - at > PIECE {
                at = extent.range.end - PIECE;
            }
        }
    }
}
