//! The cost of a check in reads and memory, for any image.
#![allow(dead_code, clippy::disallowed_methods)] // the images are those of the other tests of the check, of which this needs a few

#[path = "check/corruptions.rs"]
mod corruptions;
#[path = "check/counting.rs"]
mod counting;

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use avhdx::ops::{Check, Report, Severity};
use avhdx::storage::{Access, Host, LocalHost, LockMode, LockOutcome, MemStorage, Storage};
use avhdx_testkit::build::{Block, Data, Image, random_chain, state};
use avhdx_testkit::mutate::reseal;
use corruptions::Start;
use counting::Counting;
use peak_alloc::PeakAlloc;
use proptest::prelude::*;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const MIB: u64 = 1 << 20;

/// A dynamic image of 64 TiB with blocks of 1 MiB, all present in order: longer than most file systems
/// allow.
#[derive(Debug)]
struct Full {
    inner: Arc<dyn Storage>,
    bat: Range<u64>,
    /// The number of blocks, of 1 MiB each.
    blocks: u64,
    /// A block that lies at the offset of the one before it.
    twin: u64,
}

impl Full {
    fn new(inner: Arc<dyn Storage>, bat: Range<u64>, blocks: u64, twin: u64) -> Self {
        Self { inner, bat, blocks, twin }
    }

    /// [MS-VHDX] 2.5: a bitmap entry follows every 4096 blocks.
    fn entry(&self, index: u64) -> u64 {
        let (chunk, within) = (index / 4097, index % 4097);
        let block = chunk * 4096 + within;
        if within == 4096 || block >= self.blocks {
            return 0;
        }
        let place = if block == self.twin { block - 1 } else { block };
        (self.bat.end + (place << 20)) | 6
    }
}

impl Storage for Full {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.bat.contains(&offset) {
            return self.inner.read_at(buf, offset);
        }
        let first = (offset - self.bat.start) / 8;
        for (bytes, index) in buf.chunks_exact_mut(8).zip(first..) {
            bytes.copy_from_slice(&self.entry(index).to_le_bytes());
        }
        Ok(buf.len())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a check writes nothing");
    }

    fn flush(&self) -> io::Result<()> {
        panic!("a check flushes nothing");
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bat.end + (self.blocks << 20))
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a check resizes nothing");
    }

    fn try_lock(&self, mode: LockMode) -> io::Result<LockOutcome> {
        self.inner.try_lock(mode)
    }
}

/// Memory is counted per process, so that one test runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of `run`, and the peak of additional memory.
fn measured<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let value = run();
    (value, MEMORY.peak_usage().saturating_sub(before))
}

/// The codes of findings with at least this severity.
fn codes(report: &Report, least: Severity) -> BTreeSet<&'static str> {
    report.findings.iter().filter(|f| f.severity <= least).map(|f| f.code).collect()
}

#[test]
fn a_full_disk_of_64_tib_is_gone_through_once() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.vhdx");
    let layout = Image::dynamic(64 << 40).write_to(&path);
    let inner = LocalHost.open(&path, Access::Read).unwrap();
    let full = Full::new(inner, layout.get("bat"), 1 << 26, u64::MAX);
    let full = Arc::new(Counting::new(Arc::new(full)));
    let (report, most) = measured(|| Check::new().run_file(full.clone()).unwrap());
    assert!(most < 24 << 20, "{most} bytes of memory"); // two bits for each MiB of the file
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.layers[0].allocated_blocks, Some(1 << 26));
    assert_eq!(report.layers[0].leaked, Some(0));
    let table = 513 * MIB;
    assert!(full.counts().1 < table + 8 * MIB, "{} bytes", full.counts().1);
}

#[test]
fn a_place_that_two_of_a_million_blocks_have_is_found() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.vhdx");
    let layout = Image::dynamic(1 << 40).write_to(&path);
    let inner = LocalHost.open(&path, Access::Read).unwrap();
    let full = Arc::new(Full::new(inner, layout.get("bat"), 1 << 20, 900_000));
    let report = Check::new().run_file(full).unwrap();
    assert_eq!(codes(&report, Severity::Warning), ["bat.duplicate"].into());
    assert!(report.findings[0].expected.as_ref().unwrap().contains("block 899999 has it"));
}

#[test]
fn findings_without_number_are_counted() {
    let mut image = Image::dynamic(50_000 * MIB);
    image.put(0, Block::full(Data::Zeros));
    let _alone = alone();
    let place = image.layout().payload[&0];
    for block in 1..50_000 {
        image.bat_override.insert(image.bat_index(block), place | 6);
    }
    let storage = Arc::new(MemStorage::new(image.to_bytes()));
    let (report, most) = measured(|| Check::new().run_file(storage).unwrap());
    assert!(most < 4 << 20, "{most} bytes of memory");
    assert_eq!(report.findings.len(), 1000);
    assert_eq!(report.count(Severity::Error), 49_999);
    let few = Check::new().most_per_code(3);
    let report = few.run_file(Arc::new(MemStorage::new(image.to_bytes()))).unwrap();
    assert_eq!(report.findings.len(), 3);
    assert_eq!(report.unlisted[0].code, "bat.duplicate");
    assert_eq!(report.count(Severity::Error), 49_999);
}

/// Small images of every kind, with a log, several layers of block states and a locator.
fn victims() -> Vec<Vec<u8>> {
    let mut child = Start::Child.image();
    child.put(2, Block::bare(state::ZERO));
    let random = random_chain(7, 2).pop().unwrap();
    [Start::Dynamic.image(), Start::Fixed.image(), Start::Dirty.image(), child, random]
        .map(|image| image.to_bytes())
        .into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_image_makes_it_panic_or_read_without_end(
        victim in 0_usize..5,
        changes in proptest::collection::vec(
            (0_usize..6, any::<u64>(), prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1_usize..9),
            1..12,
        ),
        sealed in any::<bool>(),
        cut in prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)],
    ) {
        let _alone = alone();
        let mut bytes = victims().swap_remove(victim);
        for (area, at, value, len) in changes {
            // The structures of these images: most of a file is payload.
            let (start, size) = [
                (0, 1 << 20), (64 << 10, 128 << 10), (1 << 20, 64 << 10),
                (2 << 20, 512), ((2 << 20) + (64 << 10), 512), (3 << 20, 40 << 10),
            ][area];
            let at = start + (at % size) as usize;
            bytes[at..at + len.min(8)].copy_from_slice(&value.to_le_bytes()[..len.min(8)]);
        }
        if sealed {
            reseal(&mut bytes);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize % bytes.len());
        }
        let len = bytes.len() as u64;
        let storage = Arc::new(Counting::new(Arc::new(MemStorage::new(bytes))));
        let (report, most) = measured(|| Check::new().run_file(storage.clone()));
        if let Ok(report) = report {
            prop_assert!(report.findings.len() < 20_000);
        }
        prop_assert!(most < 32 << 20, "{} bytes of memory", most);
        // The log is read a few times, everything else once or twice.
        let (_, read) = storage.counts();
        prop_assert!(read < 40 * len + (16 << 20), "{} of {}", read, len);
    }
}
