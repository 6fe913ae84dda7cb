//! Tracks changes of the disk for an operation that copies it while others write.
//!
//! The copier first makes one pass over the disk. Changes behind it are marked, by grains; it still
//! comes to those ahead of it. Then a *mirror* is set, which is the copy: from then on each change
//! is made there too, while the copier works off the marks, of which no new ones appear. This
//! terminates at any rate of writes.
//!
//! Two orders keep the mirror equal to the image:
//!
//! - A change holds its bytes until it is made in the mirror too; the copier holds its bytes from
//!   before the read until after the write. Overlapping holders wait for each other: no copy of
//!   older bytes follows newer ones, and no two changes are made in different orders in the image
//!   and in the mirror.
//! - A holder sees whether its bytes are marked or ahead of the copier. Those are copied later and
//!   need not be mirrored.
//!
//! A change that fails may have been made in part: it is marked. One that fails in the mirror is
//! marked too and ends the mirroring: the copier gets the error, the change itself succeeds.

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

/// Initial size of a grain, the unit of the marks, in bytes.
pub(crate) const GRAIN: u64 = 64 << 10;
/// Limit of words of 64 marks each, which bounds the memory to 2 MiB. If more are needed, the size
/// of the grains doubles: 64 KiB suffice for changes all over 256 GiB, 16 MiB for changes all over
/// 64 TiB.
const MOST_WORDS: u64 = 1 << 16;

/// An image that repeats the changes of another one.
pub(crate) trait Mirror: Debug + Send + Sync {
    /// Repeats a write; returns the number of bytes written. Partial sectors are written whole,
    /// completed from the layers of the disk.
    fn mirror_write(&self, buf: &[u8], offset: u64, disk: Layers<'_>) -> Result<u64>;

    /// Repeats a zeroing.
    fn mirror_zeroes(&self, range: Range<u64>, how: Zeroing, disk: Layers<'_>) -> Result<()>;
}

/// Repeats a change in a mirror; returns how many bytes of data that wrote.
pub(super) type MirrorOp<'a> = &'a dyn Fn(&dyn Mirror) -> Result<u64>;

/// Tracks the changes of an image. See the module.
#[derive(Debug)]
pub(crate) struct ChangeTracker {
    sector: u64,
    marks: Mutex<Marks>,
    /// Signals that a range was released.
    released: Condvar,
    /// Set while all changes are kept out.
    mirror: OnceLock<Arc<dyn Mirror>>,
    mirrored: AtomicU64,
    is_broken: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Microseconds that each change waits after it is done.
    delay: AtomicU64,
}

/// The bytes to be copied, and the ranges that are held.
#[derive(Debug)]
struct Marks {
    size: u64,
    grain: u64,
    words: BTreeMap<u64, u64>,
    /// What the present run of the copier has not reached yet.
    ahead: Range<u64>,
    held: Vec<Range<u64>>,
    /// The range that the copier waits for: no change may take it first.
    reserved: Range<u64>,
}

/// Bytes that the copier is copying, exclusively once there is a mirror.
#[derive(Debug)]
pub(crate) struct HeldRange<'a> {
    tracker: &'a ChangeTracker,
    held: Option<Range<u64>>,
}

impl ChangeTracker {
    /// Creates the tracker of a disk of `size` bytes, before the first pass.
    pub(crate) fn new(size: u64, sector: u64) -> Self {
        Self {
            sector,
            marks: Mutex::new(Marks::new(size)),
            released: Condvar::new(),
            mirror: OnceLock::new(),
            mirrored: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            failure: Mutex::new(None),
            delay: AtomicU64::new(0),
        }
    }

    /// Moves the copier on to `end`, and holds the range up to there while it is copied: changes to
    /// it are marked or mirrored from now on.
    pub(crate) fn advance(&self, end: u64) -> HeldRange<'_> {
        let mut marks = self.marks();
        let piece = marks.ahead.start..end.clamp(marks.ahead.start, marks.ahead.end);
        let mut held = None;
        let is_mirrored = self.mirror.get().is_some();
        if is_mirrored && !piece.is_empty() {
            marks.reserved = piece.clone();
            while marks.is_held(&piece) {
                marks = self.released.wait(marks).unwrap_or_else(PoisonError::into_inner);
            }
            marks.reserved = 0..0;
            marks.held.push(piece.clone());
            held = Some(piece.clone());
        }
        marks.ahead.start = piece.end;
        drop(marks);
        HeldRange { tracker: self, held }
    }

    /// Takes the first run of marked bytes as the next one to copy, and clears its marks; `None` if
    /// nothing is marked.
    pub(crate) fn next_marked(&self) -> Option<Range<u64>> {
        let mut marks = self.marks();
        let run = marks.take_run()?;
        marks.ahead = run.clone();
        Some(run)
    }

    /// Bytes that are marked or ahead of the copier, in whole grains.
    pub(crate) fn bytes_left(&self) -> u64 {
        let marks = self.marks();
        let set: u64 = marks.words.values().map(|bits| u64::from(bits.count_ones())).sum();
        set * marks.grain + (marks.ahead.end - marks.ahead.start)
    }

    /// Offset of the first marked byte, if there is any.
    pub(crate) fn first_marked(&self) -> Option<u64> {
        let marks = self.marks();
        let (word, bits) = marks.words.first_key_value()?;
        Some((word * 64 + u64::from(bits.trailing_zeros())) * marks.grain)
    }

    /// Bytes that changes wrote to the mirror.
    pub(crate) fn mirrored(&self) -> u64 {
        self.mirrored.load(Ordering::SeqCst)
    }

    /// Makes each change from now on wait for `delay` after it is done.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.delay.store(delay.as_micros() as u64, Ordering::SeqCst);
    }

    /// Returns the first failure of the mirror, once.
    pub(crate) fn check(&self) -> Result<()> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), Err)
    }

    /// Whether any of these bytes is marked: changed since it was copied.
    pub(super) fn is_changed(&self, range: &Range<u64>) -> bool {
        let marks = self.marks();
        marks.masks(range).any(|(word, mask)| marks.word(word) & mask != 0)
    }

    /// Sets the mirror of all later changes. The caller keeps changes out.
    pub(super) fn set_mirror(&self, mirror: Arc<dyn Mirror>) {
        // The mirror is never replaced.
        drop(self.mirror.set(mirror));
    }

    /// Holds bytes that are about to change, if there is a mirror; returns whether they are held.
    pub(super) fn hold(&self, range: &Range<u64>) -> bool {
        if self.mirror.get().is_none() || range.is_empty() {
            return false;
        }
        let range = self.whole_sectors(range);
        let mut marks = self.marks();
        while marks.is_held(&range) || overlap(&marks.reserved, &range) {
            marks = self.released.wait(marks).unwrap_or_else(PoisonError::into_inner);
        }
        marks.held.push(range);
        true
    }

    /// Ends a change, complete or in part: repeats it in the mirror with `op`, or marks it. Returns
    /// how long its caller must wait.
    pub(super) fn finish_change(
        &self,
        range: &Range<u64>,
        is_held: bool,
        op: Option<MirrorOp<'_>>,
    ) -> Duration {
        let mirror =
            self.mirror.get().filter(|_| is_held && !self.is_broken.load(Ordering::SeqCst));
        let is_mirrored = match (mirror, op) {
            _ if range.is_empty() => true,
            (Some(mirror), Some(op)) => {
                self.marks().will_be_copied(&self.whole_sectors(range))
                    || self.apply_to_mirror(mirror.as_ref(), op)
            }
            _ => false,
        };
        let mut marks = self.marks();
        if !is_mirrored {
            marks.mark(range);
        }
        if is_held {
            marks.release(&self.whole_sectors(range));
            self.released.notify_all();
        }
        Duration::from_micros(self.delay.load(Ordering::Relaxed))
    }

    fn apply_to_mirror(&self, mirror: &dyn Mirror, op: MirrorOp<'_>) -> bool {
        match op(mirror) {
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

    /// The whole sectors of a range: a change of a partial sector writes all of it.
    fn whole_sectors(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.sector * self.sector..range.end.next_multiple_of(self.sector)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Marks {
    fn new(size: u64) -> Self {
        let (words, held) = (BTreeMap::new(), Vec::new());
        Self { size, grain: GRAIN, words, ahead: 0..size, held, reserved: 0..0 }
    }

    fn is_held(&self, range: &Range<u64>) -> bool {
        self.held.iter().any(|held| overlap(held, range))
    }

    fn release(&mut self, range: &Range<u64>) {
        if let Some(at) = self.held.iter().position(|held| held == range) {
            self.held.swap_remove(at);
        }
    }

    /// Marks the parts of the range that are not ahead of the copier.
    fn mark(&mut self, range: &Range<u64>) {
        let parts = [
            range.start..range.end.min(self.ahead.start.max(range.start)),
            range.start.max(self.ahead.end.min(range.end))..range.end,
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

    /// Whether the copier is going to copy all of these bytes.
    fn will_be_copied(&self, range: &Range<u64>) -> bool {
        let is_left = self.ahead.start <= range.start && range.end <= self.ahead.end;
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

    /// The grains of a range, as words and masks.
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
            self.tracker.released.notify_all();
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
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
            let run = tracker.next_marked()?;
            drop(tracker.advance(run.end));
            Some(run)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn only_changes_behind_the_copier_are_marked() {
        let size = 300 * GRAIN + 512;
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let tracker = ChangeTracker::new(size, 512);
            // The position of the copier, moved in arbitrary steps.
            let mut at = 0;
            let mut expected = BTreeSet::new();
            for _ in 0..rng.below(60) {
                if rng.chance(1, 4) {
                    at = (at + rng.below(size / 8)).min(size);
                    drop(tracker.advance(at));
                }
                let start = rng.below(size);
                let end = start + rng.below((size - start).min(20 * GRAIN) + 1);
                assert!(!tracker.hold(&(start..end)), "there is no mirror");
                tracker.finish_change(&(start..end), false, None);
                expected.extend((start..end.min(at)).step_by(512).map(|at| at / GRAIN));
                if start < end.min(at) {
                    expected.insert((end.min(at) - 1) / GRAIN);
                }
            }
            drop(tracker.advance(size));
            let marked = expected.len() as u64 * GRAIN;
            assert!(
                (marked.saturating_sub(GRAIN)..=marked).contains(&tracker.bytes_left().min(marked))
            );
            let found = runs(&tracker);
            let of_runs = found.iter().flat_map(|run| run.start / GRAIN..run.end.div_ceil(GRAIN));
            assert_eq!(of_runs.collect::<BTreeSet<_>>(), expected, "seed {seed}");
            assert!(found.windows(2).all(|two| two[0].end < two[1].start), "neighbours are one");
            assert!(found.iter().all(|run| run.end <= size));
            assert_eq!(tracker.bytes_left(), 0);
        }
    }

    #[test]
    fn marks_stay_within_their_memory_limit() {
        let size = 64 << 40;
        let tracker = ChangeTracker::new(size, 512);
        drop(tracker.advance(size));
        let mut rng = Rng::new(3);
        let mut places = Vec::new();
        for _ in 0..200_000 {
            let at = rng.below(size / 4096) * 4096;
            tracker.finish_change(&(at..at + 4096), false, None);
            places.push(at);
        }
        let grain = {
            let marks = tracker.marks();
            assert!(marks.words.len() as u64 <= MOST_WORDS, "{}", marks.words.len());
            marks.grain
        };
        assert!((GRAIN..=16 * MIB).contains(&grain), "{grain}");
        // The whole disk at once.
        let whole = ChangeTracker::new(size, 512);
        drop(whole.advance(size));
        whole.finish_change(&(0..size), false, None);
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
    fn changes_that_overlap_the_copier_or_each_other_wait_and_others_do_not() {
        let image = image(memory(), 8 * MIB);
        let tracker = ChangeTracker::new(8 * MIB, 512);
        tracker.set_mirror(image.its_writer().clone());
        let held = tracker.advance(MIB);
        assert!(tracker.hold(&(MIB..MIB + 1)));
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            // A part of the same sector, and a byte that the copier holds.
            for range in [MIB + 7..MIB + 8, MIB - 1..MIB] {
                let (tracker, done) = (&tracker, &done);
                scope.spawn(move || {
                    assert!(tracker.hold(&range));
                    done.fetch_add(1, Ordering::SeqCst);
                    tracker.finish_change(&range, true, None);
                });
            }
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(done.load(Ordering::SeqCst), 0);
            assert!(tracker.hold(&(2 * MIB..2 * MIB + 1)), "this range is free");
            drop(held);
            tracker.finish_change(&(MIB..MIB + 1), true, None);
        });
        assert_eq!(done.load(Ordering::SeqCst), 2);
    }

    /// Two writers of the same bytes, also of partial sectors, and a copier: in the end all agree.
    #[test]
    fn the_mirror_equals_the_image_after_overlapping_writes() {
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
                    let _held = tracker.advance(end);
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
                            // A hot set, so that they overlap.
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
                while let Some(run) = tracker.next_marked() {
                    copy(run);
                }
                std::thread::sleep(Duration::from_millis(30));
                assert_eq!(tracker.bytes_left(), 0, "nothing is left behind once it is mirrored");
                image.its_writer().freeze(|| Ok(())).unwrap();
            });
            tracker.check().unwrap();
            assert!(tracker.mirrored() > 0);
            assert!(flat(&image) == flat(&mirror), "seed {seed}");
        }
    }

    /// A file that can be made to refuse writes.
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
    fn a_failing_mirror_fails_the_copy_and_no_write() {
        let full = Arc::new(Full(MemStorage::new(Vec::new()), AtomicBool::new(false)));
        let (image, mirror) = (image(memory(), 8 * MIB), image(full.clone(), 8 * MIB));
        mirror.write_at(&[1], 0).unwrap();
        let tracker = image.its_writer().track_changes();
        drop(tracker.advance(8 * MIB));
        image.its_writer().mirror_changes(&tracker, mirror.its_writer());
        image.write_at(&[2; 512], 0).unwrap();
        assert_eq!((tracker.bytes_left(), tracker.mirrored()), (0, 512));
        full.1.store(true, Ordering::SeqCst);
        image.write_at(&[3; 512], 512).unwrap();
        image.write_at(&[4; 512], 3 * MIB).unwrap();
        assert_eq!(tracker.bytes_left(), 2 * GRAIN);
        assert_eq!(tracker.check().unwrap_err().kind(), ErrorKind::Io);
        tracker.check().unwrap();
        // The broken mirror is not used again.
        full.1.store(false, Ordering::SeqCst);
        image.write_at(&[5; 512], MIB).unwrap();
        assert_eq!((tracker.bytes_left(), tracker.mirrored()), (3 * GRAIN, 512));
        image.its_writer().stop_tracking();
        image.write_at(&[5; 512], 2 * MIB).unwrap();
        assert_eq!(tracker.bytes_left(), 3 * GRAIN);
    }

    /// How much of a failed change was made is unknown.
    #[test]
    fn a_change_that_fails_is_copied_again() {
        let full = Arc::new(Full(MemStorage::new(Vec::new()), AtomicBool::new(false)));
        let (image, mirror) = (image(full.clone(), 8 * MIB), image(memory(), 8 * MIB));
        image.write_at(&[1; 512], 0).unwrap();
        let tracker = image.its_writer().track_changes();
        drop(tracker.advance(8 * MIB));
        image.its_writer().mirror_changes(&tracker, mirror.its_writer());
        full.1.store(true, Ordering::SeqCst);
        image.write_at(&[3; 512], 512).unwrap_err();
        assert_eq!(runs(&tracker), std::slice::from_ref(&(0..GRAIN)));
        tracker.check().unwrap();
    }
}
