//! Volumes that lie: no reader panics past the boundary, goes on without end or takes memory without bound.
//!
//! Bytes that a whole look at a sound volume reads are where structures are; they are changed a few at a time. The look
//! makes every call that the program makes. The one test of this program measures the memory of the process.
//! `AVHDX_LONG=1` tries over 100,000 changes:
//! `AVHDX_LONG=1 cargo test -p avhdx-files --test hostile -- --nocapture`.

mod disks;
mod folders;
#[allow(dead_code)] // what the other program uses
#[path = "../images.rs"]
mod images;
mod look;
mod mutate;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use avhdx_files::silence_caught_panics;
use avhdx_testkit::rng::Rng;
use peak_alloc::PeakAlloc;

use look::{Patched, look};
use mutate::patches;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How much memory a look may take: pages that are kept, a list of a folder, a piece of a file.
const MOST_MEMORY: usize = 64 << 20;

#[test]
fn volumes_that_lie_are_errors_at_most() {
    silence_caught_panics();
    let is_long = std::env::var_os("AVHDX_LONG").is_some_and(|value| value == "1");
    let (mut rng, cases) = (Rng::new(20), if is_long { 10_000 } else { 100 });
    let (mut all, mut worst) = (0, (0, 0, 0, Duration::ZERO));
    for sound in disks::volumes().into_iter().chain(tables::tables()) {
        let disks::Sound { name, bytes, sector, places, seal } = sound;
        let sound = Arc::new(bytes);
        let disk = |patches| Arc::new(Patched::new(Arc::clone(&sound), sector, patches));
        let mut touched = Vec::new();
        let whole = disk(Vec::new());
        let all_of_it = look(&whole, &mut touched);
        assert!(all_of_it.whole >= 30, "{name}: {} files", all_of_it.whole);
        // Of a disk with a table, the table is what lies.
        let touched = if places.is_empty() { touched } else { places };
        assert!(touched.len() > 2, "{name}: {touched:?}");
        let in_order: BTreeSet<_> = [
            "files.link",
            "files.not-found",
            "files.not-folder",
            "files.stream",
            "files.volume-ambiguous",
            "files.volume-kind",
            "files.volume-unknown",
            "ntfs.record",
            "unclean.ext",
        ]
        .into();
        assert!(all_of_it.codes.is_subset(&in_order), "{name}: {:?}", all_of_it.codes);
        let (mut codes, mut changed, start) = (BTreeMap::<_, usize>::new(), 0, Instant::now());
        for case in 0..cases {
            let mut patches = patches(&mut rng, &sound, &touched);
            if let Some(seal) = seal.as_ref().filter(|_| rng.chance(9, 10)) {
                patches = seal.complete(&sound, patches);
            }
            let said = format!("{name}, case {case}: {patches:x?}");
            let disk = disk(patches);
            let (before, begun) = (ALLOCATOR.current_usage(), Instant::now());
            ALLOCATOR.reset_peak_usage();
            let met = look(&disk, &mut Vec::new());
            let taken = ALLOCATOR.peak_usage().saturating_sub(before);
            assert!(taken < MOST_MEMORY, "{said}: {taken} bytes of memory");
            assert!(!disk.is_exhausted(), "{said}: it goes on without end");
            assert!(!met.codes.contains("files.panic"), "{said}: a panic");
            let (reads, read) =
                (disk.reads.load(Ordering::Relaxed), disk.bytes.load(Ordering::Relaxed));
            let (most_reads, most_read, most_taken, longest) = worst;
            worst = (
                reads.max(most_reads),
                read.max(most_read),
                taken.max(most_taken),
                begun.elapsed().max(longest),
            );
            changed += usize::from(met != all_of_it);
            for code in met.codes {
                *codes.entry(code).or_default() += 1;
            }
            all += 1;
        }
        println!("{name}: {cases} cases in {:?}: {codes:?}", start.elapsed());
        assert!(changed > cases / 20, "{name}: only {changed} changes were noticed");
    }
    let (reads, read, taken, longest) = worst;
    folders_in_each_other_take_no_memory_for_their_paths();
    println!(
        "{all} cases: at most {reads} reads, {read} bytes read, {taken} of memory, {longest:?}"
    );
}

/// A part of the test, because no other may take memory meanwhile.
fn folders_in_each_other_take_no_memory_for_their_paths() {
    let Some(image) = folders::same_in_each_other() else { return };
    let tree = images::tree(&image);
    drop(image);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let root = tree.root().unwrap();
    let (mut deepest, mut count, mut codes) = (0, 0, BTreeSet::new());
    for entry in tree.walk(&root) {
        match entry {
            Ok(entry) => deepest = deepest.max(entry.path().split(|byte| *byte == b'/').count()),
            Err(error) => drop(codes.insert(error.code())),
        }
        count += 1;
    }
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    println!("folders in each other: {count} names, {deepest} deep, {taken} of memory");
    assert!(deepest >= 40 && count > 50_000 && codes == ["files.loop"].into());
    assert!(taken < MOST_MEMORY, "{taken} bytes of memory");
}
