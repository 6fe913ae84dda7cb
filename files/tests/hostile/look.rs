//! A look at all that a disk shows, by the calls that the program makes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use avhdx::{Disk, Error, Extent, Geometry, Result};
use avhdx_files::{Entry, FileReader, FileSystem, Kind, Options, Seen, Volume, Volumes};

use crate::mutate::{Patches, apply};

const MOST_ENTRIES: usize = 4000;
/// How far a look goes into one file, at its beginning and as a copy does.
const MOST_OF_FILE: u64 = 1 << 20;
/// The pieces in which files are read.
const PIECE: u64 = 100_000;
/// A look that reads more often goes on without end, and one that reads more bytes. One at a sound disk reads a
/// hundredth of it.
const MOST_READS: u64 = 20_000;
const MOST_BYTES: u64 = 1 << 30;

/// A volume with other bytes in some places, which counts how much of it is read.
pub struct Patched {
    sound: Arc<Vec<u8>>,
    sector: u32,
    patches: Patches,
    pub reads: AtomicU64,
    pub bytes: AtomicU64,
}

impl Patched {
    pub fn new(sound: Arc<Vec<u8>>, sector: u32, patches: Patches) -> Self {
        let (reads, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { sound, sector, patches, reads, bytes }
    }

    /// Whether more was read than any look needs.
    pub fn is_exhausted(&self) -> bool {
        let (reads, bytes) = (&self.reads, &self.bytes);
        reads.load(Ordering::Relaxed) > MOST_READS || bytes.load(Ordering::Relaxed) > MOST_BYTES
    }
}

impl Disk for Patched {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.sound.len() as u64, self.sector, 4096)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.geometry().check_range(offset, buf.len() as u64)?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if self.is_exhausted() {
            return Err(Error::read_only());
        }
        let start = offset as usize;
        buf.copy_from_slice(&self.sound[start..start + buf.len()]);
        apply(buf, start, &self.patches);
        Ok(())
    }

    fn next_extent(&self, _: Range<u64>) -> Result<Option<Extent>> {
        Err(Error::read_only())
    }
}

/// What a look met: how many files it read whole, and the codes of errors.
#[derive(Default, PartialEq, Eq)]
pub struct Met {
    pub whole: usize,
    pub codes: BTreeSet<&'static str>,
}

impl Met {
    fn note<T>(&mut self, result: avhdx_files::Result<T>) -> Option<T> {
        result.map_err(|error| self.codes.insert(error.code())).ok()
    }
}

/// Looks at everything that a disk shows.
pub fn look(disk: &Arc<Patched>, touched: &mut Vec<Range<u64>>) -> Met {
    let mut met = Met::default();
    let disk = || Arc::clone(disk) as Arc<dyn Disk>;
    for (path, selector) in
        [(&b"SMALL.txt"[..], None), (b"to small", Some("1")), (b"many/../small.txt", Some("6"))]
    {
        let seen = Seen::look(disk(), selector, Options::default(), |tree| {
            let entry = tree.resolve(path)?;
            let mut file = tree.open(&entry, None)?;
            file.read_to_end(MOST_OF_FILE)
        });
        assert!(seen.touched().is_sorted_by(|one, next| one.end < next.start));
        met.note(seen.found);
    }
    let Some(volumes) = met.note(Volumes::of(disk())) else { return met };
    for selector in [None, Some("1"), Some("of NTFS"), Some("1234ABCD-05")] {
        met.note(volumes.select(selector).map(Volume::name));
    }
    for volume in volumes.iter() {
        volume.label();
        let options = Options::default().record(true).system(true);
        let Some(tree) = met.note(volume.open_with(options)) else { continue };
        of_tree(&tree, &mut met, touched);
        free(&tree, volume, &mut met);
        met.note(tree.check_clean());
        met.note(tree.verified_free(&mut |_| {}));
    }
    assert!(volumes.touched().is_sorted_by(|one, next| one.end < next.start));
    met
}

fn of_tree(tree: &FileSystem, met: &mut Met, touched: &mut Vec<Range<u64>>) {
    let mut found = Vec::new();
    if let Some(root) = met.note(tree.root()) {
        for entry in tree.walk(&root).take(MOST_ENTRIES) {
            found.extend(met.note(entry));
        }
        met.note(tree.read_dir(&root));
    }
    for path in [&b"SMALL.txt"[..], b"many/../a/level 0", b"to small", b"junction/x", b"circle/x"] {
        met.note(tree.resolve(path));
    }
    for entry in &found {
        let streams = met.note(tree.streams(entry)).unwrap_or_default();
        for stream in streams.iter().take(4) {
            if let Some(mut file) = met.note(tree.open(entry, Some(&stream.name))) {
                met.note(cat(&mut file));
            }
        }
        if entry.kind() == Some(Kind::Link) {
            met.note(tree.target(entry));
        }
        facts(entry);
    }
    // The bytes of files are no structures.
    touched.extend(tree.touched());
    for entry in found.iter().filter(|entry| entry.kind() == Some(Kind::File)) {
        let Some(mut file) = met.note(tree.open(entry, None)) else { continue };
        let catted = met.note(cat(&mut file)).is_some();
        let copied = met.note(copy(&mut file)).is_some();
        met.whole += usize::from(catted && copied);
    }
}

/// What lists show of an entry.
fn facts(entry: &Entry) {
    let times = entry.times();
    for time in [times.created, times.modified, times.changed, times.accessed].into_iter().flatten()
    {
        assert!(time.nanoseconds < 1_000_000_000, "{time:?}");
    }
    assert!(entry.path().ends_with(entry.name()));
    let _ = (entry.refusal(), entry.problem(), entry.mode(), entry.owner(), entry.attributes());
}

/// Reads a file from its beginning on, and its end.
fn cat(file: &mut FileReader<'_>) -> avhdx_files::Result<()> {
    let size = file.size();
    let mut piece = vec![0; size.min(PIECE) as usize];
    let mut at = 0;
    while at < size.min(MOST_OF_FILE) {
        let piece = &mut piece[..PIECE.min(size - at) as usize];
        file.read_at(piece, at)?;
        at += piece.len() as u64;
    }
    let len = piece.len() as u64;
    file.read_at(&mut piece, size - len)
}

/// Reads a file without its holes.
fn copy(file: &mut FileReader<'_>) -> avhdx_files::Result<()> {
    let size = file.size();
    let mut piece = vec![0; size.min(PIECE) as usize];
    let (mut at, mut left) = (0, MOST_OF_FILE / PIECE);
    while at < size && left > 0 {
        let behind = file.hole_end(at);
        assert!(behind >= at && behind <= size, "a hole from {at} to {behind} of {size}");
        if behind > at {
            at = behind;
            continue;
        }
        let piece = &mut piece[..PIECE.min(size - at) as usize];
        file.read_at(piece, at)?;
        at += piece.len() as u64;
        left -= 1;
    }
    Ok(())
}

/// What is free lies within the volume, in order, and is as much as is said.
fn free(tree: &FileSystem, volume: &Volume, met: &mut Met) {
    let (mut sum, mut end) = (0, volume.range().start);
    let free = tree.free(&mut |range| {
        assert!(range.start >= end && range.end <= volume.range().end, "{range:?} is free");
        (sum, end) = (sum + range.end - range.start, range.end);
    });
    if let Some(free) = met.note(free) {
        assert_eq!(free, sum);
    }
    tree.capacity();
}
