//! The promises of [`Disk`].

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;

use avhdx::{Disk, DiskExt, ErrorKind, Extent, LayerId, Source, Zeroing};

use crate::rng::{Rng, pattern};

/// A disk to be looked at, and what is known of it.
pub struct Subject<'a> {
    /// The disk, of one byte or more.
    pub disk: Box<dyn Disk + 'a>,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Whether it takes changes.
    pub is_writable: bool,
    /// Reads the bytes at an offset of a layer's file, as an extent names them.
    pub at_place: Option<Box<AtPlace<'a>>>,
    /// Reads the whole disk as it is after a crash now, without the changes that are not durable.
    pub after_crash: Option<Box<dyn Fn() -> Vec<u8> + 'a>>,
}

/// Reads bytes of a layer's file.
pub type AtPlace<'a> = dyn Fn(LayerId, u64, &mut [u8]) + 'a;

/// Makes the disk, the same one each time.
pub type Make<'a> = &'a dyn Fn() -> Subject<'a>;

/// A promise by name, and the function that checks it.
pub type Promise = (&'static str, fn(Make<'_>));

/// The promises of every disk.
pub const OF_ALL: &[Promise] = &[
    ("its geometry is one that a disk can have", geometry),
    ("a read returns the bytes of its range", reads),
    ("a vectored read returns what a flat one does", vectored_reads),
    ("an empty range within the disk succeeds", empty_ranges),
    ("a range past the end is refused", past_the_end),
    ("extents cover a range in order", extents_cover),
    ("the extents of a part are parts of the extents of the whole", extents_of_parts),
    ("zero extents read as zeros", zero_extents),
    ("data extents name the place of the bytes", data_extents),
    ("readers do not disturb each other", readers),
];

/// The promises of disks that take changes.
pub const OF_WRITABLE: &[Promise] = &[
    ("a write changes its range and no other byte", writes),
    ("a vectored write changes what a flat one does", vectored_writes),
    ("an empty change succeeds and changes nothing", empty_changes),
    ("a change past the end is refused and changes nothing", changes_past_the_end),
    ("zeroed bytes are zeros, space kept or not", zeroes),
    ("discarded bytes are zeros", discards),
    ("what is flushed survives a crash", flushes),
    ("writers side by side do not disturb each other", writers),
    ("any sequence of calls does what it does to plain bytes", sequences),
];

/// The promises of disks that are read-only.
pub const OF_READ_ONLY: &[Promise] = &[("a read-only disk refuses changes", refusals)];

impl<'a> Subject<'a> {
    /// A read-only disk that holds `bytes`.
    pub fn read_only(disk: impl Disk + 'a, bytes: Vec<u8>) -> Self {
        Self { disk: Box::new(disk), bytes, is_writable: false, at_place: None, after_crash: None }
    }

    /// A disk that holds `bytes` and takes changes.
    pub fn writable(disk: impl Disk + 'a, bytes: Vec<u8>) -> Self {
        Self { is_writable: true, ..Self::read_only(disk, bytes) }
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The disk holds what it should, and its extents agree.
    fn check(&self, what: &str) {
        let mut found = vec![0xAA; self.bytes.len()];
        self.disk.read_at(&mut found, 0).unwrap_or_else(|error| panic!("{what}: {error}"));
        if let Some(at) = (0..found.len()).find(|at| found[*at] != self.bytes[*at]) {
            panic!("{what}: byte {at} is {:#x}, not {:#x}", found[at], self.bytes[at]);
        }
    }

    fn fill(&mut self, range: Range<u64>, byte: u8) {
        self.bytes[range.start as usize..range.end as usize].fill(byte);
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// Checks every promise that applies.
pub fn keeps_every_promise(make: Make<'_>) {
    let of_kind = if make().is_writable { OF_WRITABLE } else { OF_READ_ONLY };
    for (_, check) in OF_ALL.iter().chain(of_kind) {
        check(make);
    }
}

/// A failure of the host names the file, and has the host's own error for its source. The disk is one whose file
/// cannot be read.
pub fn failures_name_the_file(disk: &dyn Disk, file: &str) {
    let mut buf = [0; 512];
    let errors = [
        disk.read_at(&mut buf, 0).expect_err("a failed read"),
        disk.read_vectored_at(&mut [IoSliceMut::new(&mut buf)], 0).expect_err("a failed read"),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert_eq!(error.file(), Some(file), "{error}");
        assert!(std::error::Error::source(&error).is_some(), "{error}");
    }
}

fn geometry(make: Make<'_>) {
    let made = make();
    let geometry = made.disk.geometry();
    assert_eq!(geometry.size, made.size());
    assert!([512, 4096].contains(&geometry.logical_sector), "{geometry:?}");
    assert!([512, 4096].contains(&geometry.physical_sector), "{geometry:?}");
}

fn reads(make: Make<'_>) {
    let made = make();
    made.check("in one piece");
    let mut rng = Rng::new(made.size());
    for range in ranges(&mut rng, made.size(), 200) {
        read(&made, range);
    }
    for piece in [4096 * 3 - 7, 70_001, 1 << 20] {
        let mut at = 0;
        while at < made.size() {
            let end = made.size().min(at + piece);
            read(&made, at..end);
            at = end;
        }
    }
}

fn vectored_reads(make: Make<'_>) {
    let made = make();
    let mut rng = Rng::new(7);
    for count in [0, 1, 2, 3, 17, 600] {
        for _ in 0..10 {
            let lens = lens(&mut rng, count, made.size());
            let total: usize = lens.iter().sum();
            let at = rng.below(made.size() - total as u64 + 1) as usize;
            let mut found: Vec<Vec<u8>> = lens.iter().map(|len| vec![0xAA; *len]).collect();
            let mut bufs: Vec<_> = found.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            made.disk.read_vectored_at(&mut bufs, at as u64).unwrap();
            assert!(found.concat() == made.bytes[at..at + total], "{lens:?} bytes at {at}");
        }
    }
}

fn empty_ranges(make: Make<'_>) {
    let made = make();
    let (disk, size) = (&made.disk, made.size());
    for at in [0, 1, size / 2, size] {
        disk.read_at(&mut [], at).unwrap();
        disk.read_vectored_at(&mut [], at).unwrap();
        disk.read_vectored_at(&mut [IoSliceMut::new(&mut []), IoSliceMut::new(&mut [])], at)
            .unwrap();
        assert_eq!(disk.next_extent(at..at).unwrap(), None);
        assert_eq!(disk.extents(at..at).count(), 0);
    }
}

fn past_the_end(make: Make<'_>) {
    let made = make();
    let (disk, size) = (&made.disk, made.size());
    let mut whole = vec![0; made.bytes.len() + 1];
    for (at, len) in outside(size) {
        let what = format!("{len} bytes at {at}");
        refused(disk.read_at(&mut whole[..len], at), &what);
        let (first, second) = whole[..len].split_at_mut(len / 2);
        let mut bufs = [IoSliceMut::new(first), IoSliceMut::new(second)];
        refused(disk.read_vectored_at(&mut bufs, at), &what);
        if let Some(end) = at.checked_add(len as u64) {
            refused(disk.next_extent(at..end).map(drop), &what);
            let found: Vec<_> = disk.extents(at..end).collect();
            assert!(found.iter().any(Result::is_err), "{what}: {found:?}");
        }
    }
    refused(disk.next_extent(0..u64::MAX).map(drop), "more than any disk has");
}

fn extents_cover(make: Make<'_>) {
    let made = make();
    let whole = tiles(&*made.disk, 0..made.size());
    for pair in whole.windows(2) {
        assert!(!continues(&pair[0], &pair[1]), "{pair:?} are one extent");
    }
    let mut rng = Rng::new(made.size());
    for range in ranges(&mut rng, made.size(), 200) {
        tiles(&*made.disk, range);
    }
}

fn extents_of_parts(make: Make<'_>) {
    let made = make();
    let whole = tiles(&*made.disk, 0..made.size());
    let mut rng = Rng::new(made.size() + 1);
    for range in ranges(&mut rng, made.size(), 200) {
        let first = made.disk.next_extent(range.clone()).unwrap().expect("an extent");
        let parts = tiles(&*made.disk, range);
        assert!(first.range.end <= parts[0].range.end, "{first:?} is longer than {:?}", parts[0]);
        for part in parts {
            let around = whole.iter().find(|extent| extent.range.contains(&part.range.start));
            let around = around.expect("an extent of the whole");
            assert!(around.range.end >= part.range.end, "{part:?} in {around:?}");
            let into = part.range.start - around.range.start;
            let expected = match around.source {
                Source::Data { layer, at } => Source::Data { layer, at: at + into },
                source => source,
            };
            assert_eq!(part.source, expected, "{part:?} in {around:?}");
        }
    }
}

fn zero_extents(make: Make<'_>) {
    let made = make();
    for extent in tiles(&*made.disk, 0..made.size()) {
        agrees(&made, &extent);
    }
}

fn data_extents(make: Make<'_>) {
    let made = make();
    let mut places = Vec::new();
    for extent in tiles(&*made.disk, 0..made.size()) {
        if let Source::Data { layer, at } = extent.source {
            places.push((layer, at.get(), at.get() + extent.range.end - extent.range.start));
        }
        agrees(&made, &extent);
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        let share = pair[0].0 == pair[1].0 && pair[0].2 > pair[1].1;
        assert!(!share, "{pair:?} share bytes of a file");
    }
}

fn readers(make: Make<'_>) {
    let made = make();
    let (disk, bytes, size) = (&*made.disk, &made.bytes, made.size());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for range in ranges(&mut rng, size, 150) {
                    let mut found = vec![0xAA; (range.end - range.start) as usize];
                    disk.read_at(&mut found, range.start).unwrap();
                    let expected = &bytes[range.start as usize..range.end as usize];
                    assert!(found == expected, "{range:?}");
                    tiles(disk, range);
                }
            });
        }
    });
}

fn refusals(make: Make<'_>) {
    let made = make();
    let (disk, size) = (&made.disk, made.size());
    let refused = |result: avhdx::Result<()>, what: &str| {
        assert_eq!(result.expect_err(what).kind(), ErrorKind::ReadOnly, "{what}");
    };
    for range in [0..1, 0..size, size / 2..size / 2 + 1, size - 1..size] {
        let buf = vec![0xEE; (range.end - range.start) as usize];
        refused(disk.write_at(&buf, range.start), "a write");
        refused(disk.write_vectored_at(&[IoSlice::new(&buf)], range.start), "a vectored write");
        for how in [Zeroing::KeepSpace, Zeroing::MayUnmap] {
            refused(disk.write_zeroes(range.clone(), how), "zeroing");
        }
        refused(disk.discard(range), "a discard");
        made.check("after a refused change");
    }
    disk.flush().expect("there is nothing to be flushed");
}

fn writes(make: Make<'_>) {
    let mut made = make();
    let mut rng = Rng::new(1);
    for range in ranges(&mut rng, made.size(), 60) {
        let bytes = fresh(&mut rng, (range.end - range.start) as usize);
        made.disk.write_at(&bytes, range.start).unwrap();
        made.put(range.start, &bytes);
        around(&made, &range);
    }
    made.check("after all writes");
}

fn vectored_writes(make: Make<'_>) {
    let mut made = make();
    let mut rng = Rng::new(2);
    for count in [0, 1, 2, 3, 17, 600] {
        for _ in 0..4 {
            let lens = lens(&mut rng, count, made.size());
            let parts: Vec<Vec<u8>> = lens.iter().map(|len| fresh(&mut rng, *len)).collect();
            let total: usize = lens.iter().sum();
            let at = rng.below(made.size() - total as u64 + 1);
            let bufs: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            made.disk.write_vectored_at(&bufs, at).unwrap();
            made.put(at, &parts.concat());
            around(&made, &(at..at + total as u64));
        }
    }
    made.check("after all writes");
}

fn empty_changes(make: Make<'_>) {
    let made = make();
    for at in [0, 1, made.size() / 2, made.size()] {
        made.disk.write_at(&[], at).unwrap();
        made.disk.write_vectored_at(&[IoSlice::new(&[])], at).unwrap();
        for how in [Zeroing::KeepSpace, Zeroing::MayUnmap] {
            made.disk.write_zeroes(at..at, how).unwrap();
        }
        made.disk.discard(at..at).unwrap();
    }
    made.disk.flush().unwrap();
    made.check("after empty changes");
}

fn changes_past_the_end(make: Make<'_>) {
    let made = make();
    let (disk, buf) = (&made.disk, vec![0xEE; made.bytes.len() + 1]);
    for (at, len) in outside(made.size()) {
        let what = format!("{len} bytes at {at}");
        refused(disk.write_at(&buf[..len], at), &what);
        refused(disk.write_vectored_at(&[IoSlice::new(&buf[..len])], at), &what);
        if let Some(end) = at.checked_add(len as u64) {
            for how in [Zeroing::KeepSpace, Zeroing::MayUnmap] {
                refused(disk.write_zeroes(at..end, how), &what);
            }
            refused(disk.discard(at..end), &what);
        }
        made.check(&what);
    }
}

fn zeroes(make: Make<'_>) {
    for how in [Zeroing::KeepSpace, Zeroing::MayUnmap] {
        let mut made = make();
        let mut rng = Rng::new(3);
        for range in ranges(&mut rng, made.size(), 40) {
            made.disk.write_zeroes(range.clone(), how).unwrap();
            made.fill(range.clone(), 0);
            around(&made, &range);
            for extent in tiles(&*made.disk, range) {
                agrees(&made, &extent);
            }
        }
        made.check("after all zeroing");
    }
}

fn discards(make: Make<'_>) {
    let mut made = make();
    let mut rng = Rng::new(4);
    for range in ranges(&mut rng, made.size(), 40) {
        made.disk.discard(range.clone()).unwrap();
        made.fill(range.clone(), 0);
        around(&made, &range);
    }
    made.check("after all discards");
}

fn flushes(make: Make<'_>) {
    let mut made = make();
    let Some(after_crash) = made.after_crash.take() else { return };
    let mut rng = Rng::new(5);
    for (n, range) in ranges(&mut rng, made.size(), 12).into_iter().enumerate() {
        change(&mut made, &mut rng, range);
        made.disk.flush().unwrap();
        assert!(after_crash() == made.bytes, "flush {n} kept not all");
    }
}

fn writers(make: Make<'_>) {
    const WRITERS: u64 = 4;
    // No multiple of a sector: neighbours share sectors.
    const CELL: u64 = 700;
    let mut made = make();
    let cells = (made.size() / CELL).min(400 * WRITERS);
    let disk = &*made.disk;
    let start = std::sync::Barrier::new(WRITERS as usize);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for round in 0..2 {
                    for cell in (writer..cells).step_by(WRITERS as usize) {
                        let bytes = cell_bytes(cell, round, CELL);
                        disk.write_at(&bytes, cell * CELL).unwrap();
                        let mut found = vec![0; bytes.len()];
                        disk.read_at(&mut found, cell * CELL).unwrap();
                        assert!(found == bytes, "cell {cell} of writer {writer}");
                    }
                }
            });
        }
    });
    for cell in 0..cells {
        made.put(cell * CELL, &cell_bytes(cell, 1, CELL));
    }
    made.check("after all writers");
}

fn sequences(make: Make<'_>) {
    for seed in 10..13 {
        let mut made = make();
        let mut rng = Rng::new(seed);
        for range in ranges(&mut rng, made.size(), 80) {
            change(&mut made, &mut rng, range.clone());
            match rng.below(4) {
                0 => made.disk.flush().unwrap(),
                1 => {
                    for extent in tiles(&*made.disk, range.clone()) {
                        agrees(&made, &extent);
                    }
                }
                _ => {}
            }
            around(&made, &range);
        }
        made.check(&format!("after the calls of seed {seed}"));
        for extent in tiles(&*made.disk, 0..made.size()) {
            agrees(&made, &extent);
        }
    }
}

/// Changes a range in one way or another.
fn change(made: &mut Subject<'_>, rng: &mut Rng, range: Range<u64>) {
    let len = (range.end - range.start) as usize;
    match rng.below(6) {
        0 => {
            made.disk.write_zeroes(range.clone(), Zeroing::KeepSpace).unwrap();
            made.fill(range, 0);
        }
        1 => {
            made.disk.write_zeroes(range.clone(), Zeroing::MayUnmap).unwrap();
            made.fill(range, 0);
        }
        2 => {
            made.disk.discard(range.clone()).unwrap();
            made.fill(range, 0);
        }
        3 => {
            let bytes = fresh(rng, len);
            let (first, second) = bytes.split_at(rng.below(len as u64 + 1) as usize);
            let bufs = [IoSlice::new(first), IoSlice::new(&[]), IoSlice::new(second)];
            made.disk.write_vectored_at(&bufs, range.start).unwrap();
            made.put(range.start, &bytes);
        }
        _ => {
            let bytes = fresh(rng, len);
            made.disk.write_at(&bytes, range.start).unwrap();
            made.put(range.start, &bytes);
        }
    }
}

/// The bytes of an extent are what its source says.
fn agrees(made: &Subject<'_>, extent: &Extent) {
    let Range { start, end } = extent.range;
    let expected = &made.bytes[start as usize..end as usize];
    match (extent.source, &made.at_place) {
        (Source::Zero { .. }, _) => {
            assert!(expected.iter().all(|byte| *byte == 0), "{extent:?} is not zeros");
        }
        (Source::Data { layer, at }, Some(at_place)) => {
            let mut found = vec![0xAA; expected.len()];
            at_place(layer, at.get(), &mut found);
            assert!(found == expected, "{extent:?} lies elsewhere");
        }
        (Source::Data { .. }, None) => {}
        (Source::Parent, _) => panic!("the disk has all its bytes: {extent:?}"),
    }
}

/// The extents of a range, which start where it starts, follow each other and end where it ends.
fn tiles(disk: &dyn Disk, range: Range<u64>) -> Vec<Extent> {
    if let Some(first) = disk.next_extent(range.clone()).unwrap() {
        assert_eq!(first.range.start, range.start, "{first:?} of {range:?}");
        assert!(first.range.end <= range.end, "{first:?} of {range:?}");
    }
    let mut at = range.start;
    let mut found = Vec::new();
    for extent in disk.extents(range.clone()) {
        let extent = extent.unwrap_or_else(|error| panic!("after {at}: {error}"));
        assert_eq!(extent.range.start, at, "{extent:?} of {range:?}");
        assert!(extent.range.end > at && extent.range.end <= range.end, "{extent:?} of {range:?}");
        at = extent.range.end;
        found.push(extent);
    }
    assert_eq!(at, range.end, "{found:?} of {range:?}");
    found
}

fn continues(one: &Extent, next: &Extent) -> bool {
    match (one.source, next.source) {
        (Source::Data { layer: a, at: x }, Source::Data { layer: b, at: y }) => {
            a == b && x.get() + (one.range.end - one.range.start) == y.get()
        }
        (a, b) => a == b,
    }
}

fn read(made: &Subject<'_>, range: Range<u64>) {
    let mut found = vec![0xAA; (range.end - range.start) as usize];
    made.disk.read_at(&mut found, range.start).unwrap();
    assert!(found == made.bytes[range.start as usize..range.end as usize], "{range:?}");
}

/// What was changed, and two sectors of 4 KiB on each side, are as they should be.
fn around(made: &Subject<'_>, range: &Range<u64>) {
    let end = made.size().min(range.end + 8192);
    read(made, range.start.saturating_sub(8192)..end);
}

fn refused(result: avhdx::Result<()>, what: &str) {
    assert_eq!(result.expect_err(what).kind(), ErrorKind::InvalidInput, "{what}");
}

/// Ranges that do not lie within a disk, as offsets and lengths.
fn outside(size: u64) -> [(u64, usize); 8] {
    let whole = size as usize;
    [
        (size + 1, 0),
        (size, 1),
        (size - 1, 2),
        (0, whole + 1),
        (u64::MAX, 0),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - size + 1, whole),
    ]
}

/// Ranges within a disk: most short, some long, many at boundaries of sectors and blocks.
fn ranges(rng: &mut Rng, size: u64, count: usize) -> Vec<Range<u64>> {
    let mut found = vec![0..1, size - 1..size, 0..size.min(513)];
    while found.len() < count {
        let grain = [1, 512, 4096, 1 << 20][rng.below(4) as usize];
        let start = (rng.below(size) / grain * grain + rng.below(2)).min(size - 1);
        let longest = [600, 9000, 70_000, 2 << 20][rng.below(4) as usize];
        let mut end = size.min(start + 1 + rng.below(longest));
        if rng.chance(1, 2) && end / 512 * 512 > start {
            end = end / 512 * 512;
        }
        found.push(start..end);
    }
    found
}

/// Lengths of buffers, some of them 0, which together fit into a disk.
fn lens(rng: &mut Rng, count: usize, size: u64) -> Vec<usize> {
    let most = size / (count.max(1) as u64);
    let len = |rng: &mut Rng| match rng.chance(1, 4) {
        true => 0,
        false => {
            let longest = if rng.chance(1, 8) { 300_000 } else { 900 };
            rng.below(most.min(longest) + 1) as usize
        }
    };
    (0..count).map(|_| len(rng)).collect()
}

fn fresh(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(rng.next_u64(), 0, &mut bytes);
    bytes
}

fn cell_bytes(cell: u64, round: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    pattern(cell * 2 + round, 0, &mut bytes);
    bytes
}
