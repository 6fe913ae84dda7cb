//! Disks that break one promise each, so that the suite is seen to fail.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use avhdx::{Disk, Error, ErrorKind, Extent, Geometry, Result, Source, Zeroing};
use avhdx_testkit::conformance::disk::{
    Make, OF_ALL, OF_READ_ONLY, OF_WRITABLE, Subject, failures_name_the_file,
};

use crate::disks::ram;
use crate::{base, ram::Ram};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// None: the disk is right.
    Right,
    /// A sector of 1024 bytes.
    Sector,
    /// Unaligned reads start at the sector.
    AlignedRead,
    /// All buffers are filled from the same offset.
    SameForAllBuffers,
    /// An empty range is refused.
    NoEmptyRange,
    /// A range over the end is read as far as it goes.
    ReadsOverEnd,
    /// The last byte of each extent is left out.
    Gap,
    /// Extents are not cut at the range's end.
    NotCut,
    /// The place of an extent is that of its sector.
    PlaceOfSector,
    /// The place of an extent is that of the sector behind it.
    PlaceBehind,
    /// All is said to be zeros.
    AllZero,
    /// A read goes through a buffer that all share.
    SharedBuffer,
    /// A write fills up its last sector with zeros.
    WholeSectors,
    /// Buffers are written in reverse.
    ReversedBuffers,
    /// An empty write is refused.
    NoEmptyWrite,
    /// A write over the end changes what lies before.
    WritesOverEnd,
    /// Zeroing that keeps the space does nothing.
    KeepsBytes,
    /// A discard does nothing.
    IgnoresDiscards,
    /// A flush does nothing.
    IgnoresFlushes,
    /// A write puts back the sectors that it read before, without a lock.
    Races,
    /// Every 40th write is lost.
    LosesWrites,
    /// A read-only disk that says so by the wrong kind.
    WrongKind,
    /// A read-only disk that refuses what it has done.
    ChangesAllTheSame,
    /// A read-only disk that refuses writes alone.
    Discards,
}

use Fault::*;

/// Each fault, and the promise that it breaks.
const FAULTS: &[(Fault, &str)] = &[
    (Sector, "its geometry is one that a disk can have"),
    (AlignedRead, "a read returns the bytes of its range"),
    (SameForAllBuffers, "a vectored read returns what a flat one does"),
    (NoEmptyRange, "an empty range within the disk succeeds"),
    (ReadsOverEnd, "a range past the end is refused"),
    (Gap, "extents cover a range in order"),
    (NotCut, "extents cover a range in order"),
    (PlaceOfSector, "the extents of a part are parts of the extents of the whole"),
    (PlaceBehind, "data extents name the place of the bytes"),
    (AllZero, "zero extents read as zeros"),
    (SharedBuffer, "readers do not disturb each other"),
    (WholeSectors, "a write changes its range and no other byte"),
    (ReversedBuffers, "a vectored write changes what a flat one does"),
    (NoEmptyWrite, "an empty change succeeds and changes nothing"),
    (WritesOverEnd, "a change past the end is refused and changes nothing"),
    (KeepsBytes, "zeroed bytes are zeros, space kept or not"),
    (IgnoresDiscards, "discarded bytes are zeros"),
    (IgnoresFlushes, "what is flushed survives a crash"),
    (Races, "writers side by side do not disturb each other"),
    (LosesWrites, "any sequence of calls does what it does to plain bytes"),
    (WrongKind, "a read-only disk refuses changes"),
    (ChangesAllTheSame, "a read-only disk refuses changes"),
    (Discards, "a read-only disk refuses changes"),
];

struct Broken<'a> {
    inner: Box<dyn Disk + 'a>,
    fault: Fault,
    shared: Mutex<Vec<u8>>,
    writes: Mutex<u64>,
}

impl Broken<'_> {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// The refusal of a read-only disk, if it is one.
    fn refusal(&self, is_discard: bool) -> Option<Error> {
        match self.fault {
            WrongKind => Some(Error::other("read-only")),
            ChangesAllTheSame => Some(Error::read_only()),
            Discards if !is_discard => Some(Error::read_only()),
            _ => None,
        }
    }
}

impl Disk for Broken<'_> {
    fn geometry(&self) -> Geometry {
        let right = self.inner.geometry();
        if self.has(Sector) { Geometry::new(right.size, 1024, 4096) } else { right }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let size = self.inner.geometry().size;
        match self.fault {
            AlignedRead if size >= offset + buf.len() as u64 => {
                self.inner.read_at(buf, offset / 512 * 512)
            }
            NoEmptyRange if buf.is_empty() => {
                Err(Error::new(ErrorKind::InvalidInput, "x", "empty"))
            }
            ReadsOverEnd if offset < size => {
                let len = buf.len().min((size - offset) as usize);
                self.inner.read_at(&mut buf[..len], offset)
            }
            SharedBuffer => {
                self.inner.geometry().check_range(offset, buf.len() as u64)?;
                self.shared.lock().unwrap().resize(buf.len(), 0);
                let mut bytes = vec![0; buf.len()];
                self.inner.read_at(&mut bytes, offset)?;
                let mut shared = self.shared.lock().unwrap();
                shared.clone_from(&bytes);
                drop(shared);
                std::thread::yield_now();
                let shared = self.shared.lock().unwrap();
                let len = shared.len().min(buf.len());
                buf[..len].copy_from_slice(&shared[..len]);
                Ok(())
            }
            _ => self.inner.read_at(buf, offset),
        }
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<()> {
        if self.has(SameForAllBuffers) {
            return bufs.iter_mut().try_for_each(|buf| self.inner.read_at(buf, offset));
        }
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let (size, end) = (self.inner.geometry().size, offset.saturating_add(buf.len() as u64));
        if self.has(ChangesAllTheSame) {
            self.inner.write_at(buf, offset)?;
        }
        if let Some(refusal) = self.refusal(false) {
            return Err(refusal);
        }
        match self.fault {
            WholeSectors if end < size => {
                let mut sectors = buf.to_vec();
                sectors.resize(buf.len() + (end.next_multiple_of(512).min(size) - end) as usize, 0);
                self.inner.write_at(&sectors, offset)
            }
            NoEmptyWrite if buf.is_empty() => {
                Err(Error::new(ErrorKind::InvalidInput, "x", "empty"))
            }
            WritesOverEnd if offset < size && end > size => {
                self.inner.write_at(&buf[..(size - offset) as usize], offset)?;
                self.inner.write_at(buf, offset)
            }
            Races if end <= size => {
                let start = offset / 4096 * 4096;
                let mut around = vec![0; (end.next_multiple_of(4096).min(size) - start) as usize];
                self.inner.read_at(&mut around, start)?;
                around[(offset - start) as usize..][..buf.len()].copy_from_slice(buf);
                std::thread::yield_now();
                self.inner.write_at(&around, start)
            }
            LosesWrites => {
                let mut writes = self.writes.lock().unwrap();
                *writes += 1;
                if writes.is_multiple_of(40) { Ok(()) } else { self.inner.write_at(buf, offset) }
            }
            _ => self.inner.write_at(buf, offset),
        }
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> Result<()> {
        if let Some(refusal) = self.refusal(false) {
            return Err(refusal);
        }
        let whole: Vec<u8> = match self.fault {
            ReversedBuffers => bufs.iter().rev().flat_map(|buf| buf.to_vec()).collect(),
            _ => bufs.iter().flat_map(|buf| buf.to_vec()).collect(),
        };
        self.write_at(&whole, offset)
    }

    fn write_zeroes(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        if let Some(refusal) = self.refusal(false) {
            return Err(refusal);
        }
        if self.has(KeepsBytes) && how == Zeroing::KeepSpace {
            return Ok(());
        }
        self.inner.write_zeroes(range, how)
    }

    fn discard(&self, range: Range<u64>) -> Result<()> {
        if let Some(refusal) = self.refusal(true) {
            return Err(refusal);
        }
        if self.has(IgnoresDiscards) { Ok(()) } else { self.inner.discard(range) }
    }

    fn flush(&self) -> Result<()> {
        if self.has(IgnoresFlushes) { Ok(()) } else { self.inner.flush() }
    }

    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        let Some(mut extent) = self.inner.next_extent(range.clone())? else { return Ok(None) };
        match (self.fault, extent.source) {
            (Gap, _) if extent.range.end - extent.range.start > 1 => {
                extent.range.end -= 1;
                extent.range.start += 1;
            }
            (NotCut, _) => extent.range.end += 1,
            (PlaceOfSector, Source::Data { layer, at }) => {
                let at = avhdx::FileOffset::new(at.get() / 512 * 512);
                extent.source = Source::Data { layer, at };
            }
            (PlaceBehind, Source::Data { layer, at }) => {
                extent.source = Source::Data { layer, at: at + 512 };
            }
            (AllZero, _) => extent.source = Source::Zero { layer: None },
            _ => {}
        }
        Ok(Some(extent))
    }
}

fn broken(bytes: &[u8], fault: Fault) -> Subject<'static> {
    let right = ram(bytes);
    let is_writable = !matches!(fault, WrongKind | ChangesAllTheSame | Discards);
    let (shared, writes) = (Mutex::default(), Mutex::default());
    let disk = Broken { inner: right.disk, fault, shared, writes };
    Subject { disk: Box::new(disk), is_writable, ..right }
}

fn fails(check: fn(Make<'_>), make: Make<'_>) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(make))).is_err()
}

#[test]
fn every_promise_fails_for_a_disk_that_breaks_it() {
    let bytes = base().flat(None);
    let promises = || OF_ALL.iter().chain(OF_WRITABLE).chain(OF_READ_ONLY);
    let mut seen = BTreeSet::new();
    for (fault, promise) in FAULTS {
        let (_, check) = promises().find(|(name, _)| name == promise).expect("a promise");
        assert!(fails(*check, &|| broken(&bytes, *fault)), "{fault:?} goes unseen: {promise}");
        seen.insert(promise);
    }
    for (promise, _) in promises() {
        assert!(seen.contains(promise), "nothing breaks it: {promise}");
    }
    for (promise, check) in OF_ALL.iter().chain(OF_WRITABLE) {
        assert!(!fails(*check, &|| broken(&bytes, Right)), "a right disk fails: {promise}");
    }
}

/// A disk whose failures say nothing.
struct Silent(Ram);

impl Disk for Silent {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn read_at(&self, _: &mut [u8], _: u64) -> Result<()> {
        Err(std::io::Error::other("no").into())
    }
    fn next_extent(&self, range: Range<u64>) -> Result<Option<Extent>> {
        self.0.next_extent(range)
    }
}

#[test]
fn a_failure_without_a_file_is_seen() {
    let disk = Silent(Ram::new(vec![1; 4096]));
    let check = || failures_name_the_file(&disk, "a.img");
    assert!(catch_unwind(AssertUnwindSafe(check)).is_err());
}
