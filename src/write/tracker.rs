//! What somebody who copies the disk elsewhere must know of the changes that others make meanwhile.
//!
//! A pass over the disk comes first. What changes behind it is marked, by grains; what changes before it, it comes to.
//! Then a *mirror* is named, which is the copy: from then on whoever changes something makes the same change there,
//! while the copier goes over the marks, of which there are no new ones. That ends, however fast others write.
//!
//! That the mirror is what the image is rests on two orders:
//!
//! - Who changes bytes holds them from before the change until it is made in the mirror too, and so does the copier
//!   from before it reads until it has written. Two that meet wait for each other: neither does a copy of older
//!   bytes come after newer ones, nor do two changes come in one order here and in the other there.
//! - Whoever holds bytes sees whether they are marked, or yet before the copier. Those are copied later, and
//!   need not be mirrored.
//!
//! A change that fails may have been made in part: it is marked. One that the mirror fails at is marked too, and
//! ends the mirroring: it is the copier who hears of it, never the one who made the change.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use crate::disk::Zeroing;
use crate::error::{Error, Result};
use crate::read::Layers;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// Changes are marked by so many bytes, as long as there is room for that.
pub(crate) const GRAIN: u64 = 64 << 10;
/// Words of 64 marks at the most, of no more than 2 MiB of memory. Where more are needed, all become half as many
/// of grains twice as large: 64 KiB do for changes all over 256 GiB, 16 MiB for those all over 64 TiB.
const MOST_WORDS: u64 = 1 << 16;

/// An image in which changes are made once more.
pub(crate) trait Mirror: Debug + Send + Sync {
    /// Writes what was written elsewhere; returns the number of bytes written. Of sectors that were written in part,
    /// all bytes are written, as the layers of the disk have them.
    fn write_again(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<u64>;

    /// Makes a range read as zeros that does so elsewhere.
    fn zero_again(&self, range: Range<u64>, how: Zeroing, disk: Layers<'_>) -> Result<()>;
}

/// Makes a change once more in a mirror, and says how many bytes of data that took.
pub(super) type Again<'a> = &'a dyn Fn(&dyn Mirror) -> Result<u64>;

/// Follows the changes of an image. See the module.
#[derive(Debug)]
pub(crate) struct ChangeTracker {
    sector: u64,
    marks: Mutex<Marks>,
    /// Bytes are no longer held.
    freed: Condvar,
    /// Named while all changes are kept out.
    mirror: OnceLock<Arc<dyn Mirror>>,
    mirrored: AtomicU64,
    is_broken: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Microseconds that each change waits when it is done.
    delay: AtomicU64,
}

/// What is to be copied, and who holds what.
#[derive(Debug)]
struct Marks {
    size: u64,
    grain: u64,
    words: BTreeMap<u64, u64>,
    /// Where the copier has not come to yet, on the way that it is going now.
    left: Range<u64>,
    held: Vec<Range<u64>>,
    /// What the copier waits for, and others do not take before it.
    wanted: Range<u64>,
}

/// Bytes that the copier reads and writes, alone where there is a mirror.
#[derive(Debug)]
pub(crate) struct HeldRange<'a> {
    tracker: &'a ChangeTracker,
    held: Option<Range<u64>>,
}

impl ChangeTracker {
    /// Of a disk of this size, before the pass over it.
    pub(crate) fn new(size: u64, sector: u64) -> Self {
        Self {
            sector,
            marks: Mutex::new(Marks::new(size)),
            freed: Condvar::new(),
            mirror: OnceLock::new(),
            mirrored: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            failure: Mutex::new(None),
            delay: AtomicU64::new(0),
        }
    }

    /// Leaves behind what is before `end`, to be copied while that is held: what changes there from now on is
    /// marked or mirrored.
    pub(crate) fn take(&self, end: u64) -> HeldRange<'_> {
        let mut marks = self.marks();
        let piece = marks.left.start..end.clamp(marks.left.start, marks.left.end);
        let mut held = None;
        let is_mirrored = self.mirror.get().is_some();
        if is_mirrored && !piece.is_empty() {
            marks.wanted = piece.clone();
            while marks.is_held(&piece) {
                marks = self.freed.wait(marks).unwrap_or_else(PoisonError::into_inner);
            }
            marks.wanted = 0..0;
            marks.held.push(piece.clone());
            held = Some(piece.clone());
        }
        marks.left.start = piece.end;
        drop(marks);
        HeldRange { tracker: self, held }
    }

    /// Marked bytes that lie together, which are the way to go now and no longer marked; `None` where there are none.
    pub(crate) fn next(&self) -> Option<Range<u64>> {
        let mut marks = self.marks();
        let run = marks.take_run()?;
        marks.left = run.clone();
        Some(run)
    }

    /// Bytes that are marked or yet to be come to, in whole grains.
    pub(crate) fn to_copy(&self) -> u64 {
        let marks = self.marks();
        let set: u64 = marks.words.values().map(|bits| u64::from(bits.count_ones())).sum();
        set * marks.grain + (marks.left.end - marks.left.start)
    }

    /// Where the first of the marked bytes are, if there are any.
    pub(crate) fn first(&self) -> Option<u64> {
        let marks = self.marks();
        let (word, bits) = marks.words.first_key_value()?;
        Some((word * 64 + u64::from(bits.trailing_zeros())) * marks.grain)
    }

    /// Bytes that were written to the mirror by those who wrote them here.
    pub(crate) fn mirrored(&self) -> u64 {
        self.mirrored.load(Ordering::SeqCst)
    }

    /// Has each change from now on wait that long when it is done.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.delay.store(delay.as_micros() as u64, Ordering::SeqCst);
    }

    /// The first failure of the mirror, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }

    /// Whether any of these bytes changed behind the copier and were not copied again.
    pub(super) fn is_changed(&self, range: &Range<u64>) -> bool {
        let marks = self.marks();
        marks.masks(range).any(|(word, mask)| marks.word(word) & mask != 0)
    }

    /// The changes to come are made in `mirror` too. The caller keeps all changes out.
    pub(super) fn set_mirror(&self, mirror: Arc<dyn Mirror>) {
        // There is one for good.
        drop(self.mirror.set(mirror));
    }

    /// Holds bytes that are about to change, where that has to be; says whether they are held.
    pub(super) fn hold(&self, range: &Range<u64>) -> bool {
        if self.mirror.get().is_none() || range.is_empty() {
            return false;
        }
        let range = self.whole(range);
        let mut marks = self.marks();
        while marks.is_held(&range) || meet(&marks.wanted, &range) {
            marks = self.freed.wait(marks).unwrap_or_else(PoisonError::into_inner);
        }
        marks.held.push(range);
        true
    }

    /// A change is done, in whole or in part: has it made `again` in the mirror, or marks it. Says how long who made
    /// it is to wait.
    pub(super) fn changed(
        &self,
        range: &Range<u64>,
        is_held: bool,
        again: Option<Again<'_>>,
    ) -> Duration {
        let mirror =
            self.mirror.get().filter(|_| is_held && !self.is_broken.load(Ordering::SeqCst));
        let is_mirrored = match (mirror, again) {
            _ if range.is_empty() => true,
            (Some(mirror), Some(again)) => {
                self.marks().is_to_copy(&self.whole(range)) || self.mirror(mirror.as_ref(), again)
            }
            _ => false,
        };
        let mut marks = self.marks();
        if !is_mirrored {
            marks.note(range);
        }
        if is_held {
            marks.release(&self.whole(range));
            self.freed.notify_all();
        }
        Duration::from_micros(self.delay.load(Ordering::Relaxed))
    }

    fn mirror(&self, mirror: &dyn Mirror, again: Again<'_>) -> bool {
        match again(mirror) {
            Ok(bytes) => {
                self.mirrored.fetch_add(bytes, Ordering::SeqCst);
                true
            }
            Err(error) => {
                self.is_broken.store(true, Ordering::SeqCst);
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
                false
            }
        }
    }

    /// A change of a part of a sector writes all of it.
    fn whole(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.sector * self.sector..range.end.next_multiple_of(self.sector)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Marks {
    fn new(size: u64) -> Self {
        let (words, held) = (BTreeMap::new(), Vec::new());
        Self { size, grain: GRAIN, words, left: 0..size, held, wanted: 0..0 }
    }

    fn is_held(&self, range: &Range<u64>) -> bool {
        self.held.iter().any(|held| meet(held, range))
    }

    fn release(&mut self, range: &Range<u64>) {
        if let Some(at) = self.held.iter().position(|held| held == range) {
            self.held.swap_remove(at);
        }
    }

    /// Marks what the copier does not come to by itself.
    fn note(&mut self, range: &Range<u64>) {
        let parts = [
            range.start..range.end.min(self.left.start.max(range.start)),
            range.start.max(self.left.end.min(range.end))..range.end,
        ];
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let words = |grain: u64| (part.end - 1) / grain / 64 - part.start / grain / 64 + 1;
            while words(self.grain) > MOST_WORDS {
                self.coarsen();
            }
            let masks: Vec<(u64, u64)> = self.masks(part).collect();
            for (word, mask) in masks {
                *self.words.entry(word).or_default() |= mask;
            }
            while self.words.len() as u64 > MOST_WORDS {
                self.coarsen();
            }
        }
    }

    fn coarsen(&mut self) {
        self.grain *= 2;
        for (word, bits) in std::mem::take(&mut self.words) {
            let half =
                (0..32).fold(0, |half, bit| half | u64::from(bits >> (2 * bit) & 3 != 0) << bit);
            *self.words.entry(word / 2).or_default() |= half << (32 * (word % 2));
        }
    }

    /// Whether all of these bytes are going to be copied.
    fn is_to_copy(&self, range: &Range<u64>) -> bool {
        let is_left = self.left.start <= range.start && range.end <= self.left.end;
        is_left || self.masks(range).all(|(word, mask)| self.word(word) & mask == mask)
    }

    fn take_run(&mut self) -> Option<Range<u64>> {
        let (first, bits) = self.words.first_key_value().map(|(word, bits)| (*word, *bits))?;
        let start = first * 64 + u64::from(bits.trailing_zeros());
        let mut end = start;
        loop {
            let (word, bit) = (end / 64, (end % 64) as u32);
            let bits = self.word(word) >> bit;
            let run = bits.trailing_ones();
            if run == 0 {
                break;
            }
            let mask = (u64::MAX >> (64 - run)) << bit;
            match self.word(word) & !mask {
                0 => drop(self.words.remove(&word)),
                rest => drop(self.words.insert(word, rest)),
            }
            end += u64::from(run);
            if bit + run < 64 {
                break;
            }
        }
        Some(start * self.grain..self.size.min(end * self.grain))
    }

    fn word(&self, word: u64) -> u64 {
        self.words.get(&word).copied().unwrap_or_default()
    }

    /// The grains of a range, as bits of words.
    fn masks(&self, range: &Range<u64>) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (first, last) = (range.start / self.grain, range.end.max(1).div_ceil(self.grain) - 1);
        let words = if range.is_empty() { 1..1 } else { first / 64..last / 64 + 1 };
        words.map(move |word| {
            let from = if word == first / 64 { first % 64 } else { 0 };
            let to = if word == last / 64 { last % 64 } else { 63 };
            (word, (u64::MAX << from) & (u64::MAX >> (63 - to)))
        })
    }
}

impl Drop for HeldRange<'_> {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            self.tracker.marks().release(held);
            self.tracker.freed.notify_all();
        }
    }
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;
    use std::io;
    use std::sync::atomic::AtomicUsize;

    use avhdx_testkit::rng::Rng;

    use super::*;
    use crate::error::ErrorKind;
    use crate::storage::{LocalHost, MemStorage, Storage};
    use crate::types::MIB;
    use crate::{CreateOptions, Disk, OpenOptions, Zeroing};

    fn image(storage: Arc<dyn Storage>, size: u64) -> crate::VhdxFile {
        let options = CreateOptions::dynamic(size).block_size(1 << 20);
        drop(options.create_in(&LocalHost, Arc::clone(&storage)).unwrap());
        OpenOptions::new().writable(true).open_file(storage).unwrap()
    }

    fn memory() -> Arc<dyn Storage> {
        Arc::new(MemStorage::new(Vec::new()))
    }

    fn flat(image: &crate::VhdxFile) -> Vec<u8> {
        let mut bytes = vec![0; image.geometry().size as usize];
        image.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn runs(tracker: &ChangeTracker) -> Vec<Range<u64>> {
        let next = || {
            let run = tracker.next()?;
            drop(tracker.take(run.end));
            Some(run)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn what_changes_behind_the_copier_is_marked_and_no_more() {
        let size = 300 * GRAIN + 512;
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let tracker = ChangeTracker::new(size, 512);
            // As far as the copier has come, in any steps.
            let mut at = 0;
            let mut expected = BTreeSet::new();
            for _ in 0..rng.below(60) {
                if rng.chance(1, 4) {
                    at = (at + rng.below(size / 8)).min(size);
                    drop(tracker.take(at));
                }
                let start = rng.below(size);
                let end = start + rng.below((size - start).min(20 * GRAIN) + 1);
                assert!(!tracker.hold(&(start..end)), "there is no mirror");
                tracker.changed(&(start..end), false, None);
                expected.extend((start..end.min(at)).step_by(512).map(|at| at / GRAIN));
                if start < end.min(at) {
                    expected.insert((end.min(at) - 1) / GRAIN);
                }
            }
            drop(tracker.take(size));
            let marked = expected.len() as u64 * GRAIN;
            assert!(
                (marked.saturating_sub(GRAIN)..=marked).contains(&tracker.to_copy().min(marked))
            );
            let found = runs(&tracker);
            let of_runs = found.iter().flat_map(|run| run.start / GRAIN..run.end.div_ceil(GRAIN));
            assert_eq!(of_runs.collect::<BTreeSet<_>>(), expected, "seed {seed}");
            assert!(found.windows(2).all(|two| two[0].end < two[1].start), "neighbours are one");
            assert!(found.iter().all(|run| run.end <= size));
            assert_eq!(tracker.to_copy(), 0);
        }
    }

    #[test]
    fn marks_take_no_more_memory_than_they_may() {
        let size = 64 << 40;
        let tracker = ChangeTracker::new(size, 512);
        drop(tracker.take(size));
        let mut rng = Rng::new(3);
        let mut places = Vec::new();
        for _ in 0..200_000 {
            let at = rng.below(size / 4096) * 4096;
            tracker.changed(&(at..at + 4096), false, None);
            places.push(at);
        }
        let grain = {
            let marks = tracker.marks();
            assert!(marks.words.len() as u64 <= MOST_WORDS, "{}", marks.words.len());
            marks.grain
        };
        assert!((GRAIN..=16 * MIB).contains(&grain), "{grain}");
        // All of the disk at once.
        let whole = ChangeTracker::new(size, 512);
        drop(whole.take(size));
        whole.changed(&(0..size), false, None);
        assert!(whole.marks().words.len() as u64 <= MOST_WORDS);
        assert_eq!(runs(&whole), std::slice::from_ref(&(0..size)));
        places.sort_unstable();
        let mut runs = runs(&tracker).into_iter();
        let mut run = 0..0;
        for at in places {
            while run.end <= at {
                run = runs.next().unwrap();
            }
            assert!(run.start <= at && at + 4096 <= run.end, "{at:#x} is not in {run:?}");
        }
    }

    #[test]
    fn who_meets_the_copier_or_another_waits_and_others_do_not() {
        let image = image(memory(), 8 * MIB);
        let tracker = ChangeTracker::new(8 * MIB, 512);
        tracker.set_mirror(image.its_writer().clone());
        let held = tracker.take(MIB);
        assert!(tracker.hold(&(MIB..MIB + 1)));
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            // A part of the same sector, and a byte of the copier's.
            for range in [MIB + 7..MIB + 8, MIB - 1..MIB] {
                let (tracker, done) = (&tracker, &done);
                scope.spawn(move || {
                    assert!(tracker.hold(&range));
                    done.fetch_add(1, Ordering::SeqCst);
                    tracker.changed(&range, true, None);
                });
            }
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(done.load(Ordering::SeqCst), 0);
            assert!(tracker.hold(&(2 * MIB..2 * MIB + 1)), "nobody is there");
            drop(held);
            tracker.changed(&(MIB..MIB + 1), true, None);
        });
        assert_eq!(done.load(Ordering::SeqCst), 2);
    }

    /// Two writers of the same bytes, in parts of sectors too, and a copier: where they end, all have the same.
    #[test]
    fn the_mirror_is_what_the_image_is_whoever_writes_over_whom() {
        const SIZE: u64 = 6 * MIB + 512;
        for seed in 0..6 {
            let (image, mirror) = (image(memory(), SIZE), image(memory(), SIZE));
            let mut rng = Rng::new(seed);
            for _ in 0..20 {
                let at = rng.below(SIZE - 100_000);
                image.write_at(&[rng.next_u64() as u8; 100_000], at).unwrap();
            }
            let tracker = image.its_writer().track_changes();
            let copy = |range: Range<u64>| {
                let mut at = range.start;
                while at < range.end {
                    let end = range.end.min(at + 5 * 4096);
                    let _held = tracker.take(end);
                    let mut bytes = vec![0; (end - at) as usize];
                    image.read_at(&mut bytes, at).unwrap();
                    mirror.write_at(&bytes, at).unwrap();
                    at = end;
                }
            };
            std::thread::scope(|scope| {
                for writer in 0..2 {
                    let image = &image;
                    scope.spawn(move || {
                        let mut rng = Rng::new(10 * seed + writer);
                        loop {
                            // A hot set, so that they meet.
                            let at = rng.below(40) * 1000 + rng.below(3) * 2 * MIB;
                            let len = 1 + rng.below(9000);
                            let done = match rng.below(8) {
                                0 => image.discard(at / MIB * MIB..at / MIB * MIB + MIB),
                                1 => image.write_zeroes(at..at + len, Zeroing::KeepSpace),
                                byte => {
                                    let byte = (2 * byte + writer) as u8;
                                    image.write_at(&vec![byte; len as usize], at)
                                }
                            };
                            if let Err(error) = done {
                                return assert_eq!(error.code(), "image.frozen");
                            }
                        }
                    });
                }
                copy(0..SIZE);
                image.its_writer().mirror_changes(&tracker, mirror.its_writer());
                while let Some(run) = tracker.next() {
                    copy(run);
                }
                std::thread::sleep(Duration::from_millis(30));
                assert_eq!(tracker.to_copy(), 0, "nothing is left behind once it is mirrored");
                image.its_writer().freeze(|| Ok(())).unwrap();
            });
            tracker.check().unwrap();
            assert!(tracker.mirrored() > 0);
            assert!(flat(&image) == flat(&mirror), "seed {seed}");
        }
    }

    /// A file that takes no writes from some time on.
    #[derive(Debug)]
    struct Full(MemStorage, AtomicBool);

    impl Storage for Full {
        fn name(&self) -> &str {
            "full"
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            match self.1.load(Ordering::SeqCst) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => self.0.write_at(buf, offset),
            }
        }
        fn flush(&self) -> io::Result<()> {
            self.0.flush()
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
    }

    #[test]
    fn a_mirror_that_fails_is_the_copiers_trouble_alone() {
        let full = Arc::new(Full(MemStorage::new(Vec::new()), AtomicBool::new(false)));
        let (image, mirror) = (image(memory(), 8 * MIB), image(full.clone(), 8 * MIB));
        mirror.write_at(&[1], 0).unwrap();
        let tracker = image.its_writer().track_changes();
        drop(tracker.take(8 * MIB));
        image.its_writer().mirror_changes(&tracker, mirror.its_writer());
        image.write_at(&[2; 512], 0).unwrap();
        assert_eq!((tracker.to_copy(), tracker.mirrored()), (0, 512));
        full.1.store(true, Ordering::SeqCst);
        image.write_at(&[3; 512], 512).unwrap();
        image.write_at(&[4; 512], 3 * MIB).unwrap();
        assert_eq!(tracker.to_copy(), 2 * GRAIN);
        assert_eq!(tracker.check().unwrap_err().kind(), ErrorKind::Io);
        tracker.check().unwrap();
        // Nothing more is tried there.
        full.1.store(false, Ordering::SeqCst);
        image.write_at(&[5; 512], MIB).unwrap();
        assert_eq!((tracker.to_copy(), tracker.mirrored()), (3 * GRAIN, 512));
        image.its_writer().stop_tracking();
        image.write_at(&[5; 512], 2 * MIB).unwrap();
        assert_eq!(tracker.to_copy(), 3 * GRAIN);
    }

    /// Which parts of it were made is not known.
    #[test]
    fn a_change_that_fails_is_copied_again() {
        let full = Arc::new(Full(MemStorage::new(Vec::new()), AtomicBool::new(false)));
        let (image, mirror) = (image(full.clone(), 8 * MIB), image(memory(), 8 * MIB));
        image.write_at(&[1; 512], 0).unwrap();
        let tracker = image.its_writer().track_changes();
        drop(tracker.take(8 * MIB));
        image.its_writer().mirror_changes(&tracker, mirror.its_writer());
        full.1.store(true, Ordering::SeqCst);
        image.write_at(&[3; 512], 512).unwrap_err();
        assert_eq!(runs(&tracker), std::slice::from_ref(&(0..GRAIN)));
        tracker.check().unwrap();
    }
}
