//! Who may change the image, and what they did meanwhile.
//!
//! Every change goes through the gate. Whoever holds the gate alone has all changes either behind him or yet
//! to come, and may leave it closed for those. While changes are tracked, each notes the blocks that it went
//! to on its way out: whoever takes these notes and then reads the blocks misses no byte, for what is written
//! later is noted later.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;

use crate::error::{Error, ErrorKind, Result};
use crate::image::VhdxFile;
use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::types::BlockIndex;

/// Lets changes in, unless it is closed.
#[derive(Debug, Default)]
pub(super) struct Gate(RwLock<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    is_closed: bool,
    /// There while changes are tracked.
    changed: Option<Changed>,
}

/// The blocks that were changed, as bits of words.
#[derive(Debug)]
struct Changed {
    block_size: u64,
    words: Mutex<BTreeMap<u64, u64>>,
}

/// A change under way.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    state: RwLockReadGuard<'a, State>,
    /// The bytes of the disk that it is about.
    range: Range<u64>,
}

impl Gate {
    /// Lets in a change of these bytes of the disk, once nobody has the gate alone.
    pub(super) fn enter(&self, range: Range<u64>) -> Result<Entered<'_>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return Err(frozen());
        }
        Ok(Entered { state, range })
    }

    /// Lets in a change that nobody sees who reads the disk: also where others are refused.
    pub(super) fn enter_hidden(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_closed
    }

    /// Waits for all changes under way, and keeps others out until the guard is dropped.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all changes note their blocks of this length.
    pub(super) fn track(&self, block_size: u64) {
        self.write().changed = Some(Changed { block_size, words: Mutex::default() });
    }

    /// The blocks that were noted since this was last asked, in order.
    pub(super) fn take(&self) -> Vec<BlockIndex> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state.changed.as_ref().map_or_else(Vec::new, Changed::take)
    }
}

impl State {
    /// Whether changes are tracked, and this block was changed since that was last asked.
    pub(super) fn is_changed(&self, block: BlockIndex) -> bool {
        self.changed.as_ref().is_some_and(|changed| changed.has(block))
    }

    /// Refuses all changes to come, or lets them in again.
    pub(super) fn close(&mut self, yes: bool) {
        self.is_closed = yes;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // A change that failed may have been made in part.
        if let Some(changed) = &self.state.changed {
            changed.note(&self.range);
        }
    }
}

impl Changed {
    fn note(&self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (first, last) = (range.start / self.block_size, (range.end - 1) / self.block_size);
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        for word in first / 64..=last / 64 {
            let from = if word == first / 64 { first % 64 } else { 0 };
            let to = if word == last / 64 { last % 64 } else { 63 };
            *words.entry(word).or_default() |= (u64::MAX << from) & (u64::MAX >> (63 - to));
        }
    }

    fn has(&self, BlockIndex(block): BlockIndex) -> bool {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.get(&(block / 64)).is_some_and(|bits| bits >> (block % 64) & 1 == 1)
    }

    fn take(&self) -> Vec<BlockIndex> {
        let words = std::mem::take(&mut *self.words.lock().unwrap_or_else(PoisonError::into_inner));
        let blocks = words.into_iter().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 64 + bit)
        });
        blocks.map(BlockIndex).collect()
    }
}

fn frozen() -> Error {
    let message = "the image takes no writes any more: its contents are a point in time now";
    Error::new(ErrorKind::ReadOnly, "image.frozen", message)
}

#[allow(dead_code)] // for operations on chains that are in use
impl VhdxFile {
    /// Has the image stay as it is from here on: waits for the changes under way, makes all durable, calls
    /// `under` and, when that succeeds, refuses every later change with `image.frozen`, those that wait
    /// included. When it fails, all goes on as before. Reading, flushing and closing go on in any case.
    ///
    /// `under` may read the image and do what it likes with others, but would wait for ever for a change of
    /// this one, and for all that waits for changes to be over.
    pub(crate) fn freeze<R>(&self, under: impl FnOnce() -> Result<R>) -> Result<R> {
        self.freeze_alone(|_| under())
    }

    /// The same, with the blocks that were changed since changes are tracked or since this was last asked.
    pub(crate) fn freeze_with<R>(
        &self,
        under: impl FnOnce(Vec<BlockIndex>) -> Result<R>,
    ) -> Result<R> {
        self.freeze_alone(|state| {
            under(state.changed.as_ref().map_or_else(Vec::new, Changed::take))
        })
    }

    fn freeze_alone<R>(&self, under: impl FnOnce(&State) -> Result<R>) -> Result<R> {
        let writer = self.writer()?;
        let mut alone = writer.ops.write();
        if alone.is_closed {
            return Err(frozen().in_file(self.name()));
        }
        self.commit(writer)?;
        let done = under(&alone)?;
        alone.close(true);
        Ok(done)
    }

    /// Whether the image may be written to, and is not frozen.
    pub(crate) fn takes_writes(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !writer.ops.is_closed())
    }

    /// Lets changes in again after a [`freeze`](Self::freeze).
    #[cfg(all(test, not(loom)))]
    pub(crate) fn thaw(&self) -> Result<()> {
        self.writer()?.ops.write().close(false);
        Ok(())
    }

    /// Has every change note its blocks from here on: of each that was under way all is done, of each that
    /// comes later all is noted. What was noted before is forgotten.
    pub(crate) fn track_changes(&self) -> Result<()> {
        self.writer()?.ops.track(self.layout.block_size());
        Ok(())
    }

    /// The blocks that were changed since changes are tracked or since this was last asked, in order and
    /// each once. A change notes its blocks when it is done, so that one that is under way, of which a part
    /// may be read already, is in a later answer; after a [`freeze`](Self::freeze) there is none.
    pub(crate) fn take_changed(&self) -> Vec<BlockIndex> {
        self.writer.as_ref().map_or_else(Vec::new, |writer| writer.ops.take())
    }

    /// Tracks changes no longer, and forgets what was noted.
    pub(crate) fn stop_tracking(&self) {
        if let Some(writer) = &self.writer {
            writer.ops.write().changed = None;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use avhdx_testkit::naive;

    use super::*;
    use crate::storage::{LocalHost, MemStorage, Storage};
    use crate::types::MIB;
    use crate::{CreateOptions, Disk, OpenOptions};

    const BLOCKS: u64 = 200;
    const SECTOR: u64 = 512;

    fn image() -> (Arc<dyn Storage>, crate::VhdxFile) {
        let storage: Arc<dyn Storage> = Arc::new(MemStorage::new(Vec::new()));
        let options = CreateOptions::dynamic(BLOCKS * MIB).block_size(1 << 20);
        drop(options.create_in(&LocalHost, Arc::clone(&storage)).unwrap());
        let image = OpenOptions::new().writable(true).open_file(Arc::clone(&storage)).unwrap();
        (storage, image)
    }

    fn changed(image: &VhdxFile) -> Vec<u64> {
        image.take_changed().into_iter().map(|block| block.0).collect()
    }

    fn is_frozen(done: Result<()>) -> bool {
        match done {
            Ok(()) => false,
            Err(error) => {
                assert_eq!((error.kind(), error.code()), (ErrorKind::ReadOnly, "image.frozen"));
                true
            }
        }
    }

    /// What the file holds, to a reader that knows nothing of the image that is open.
    fn naively(storage: &dyn Storage) -> Vec<u8> {
        let mut bytes = vec![0; storage.len().unwrap() as usize];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        let layer = naive::Layer::from_bytes(bytes).unwrap();
        naive::Chain(vec![layer]).flat(0).unwrap()
    }

    #[test]
    fn a_frozen_image_refuses_every_change_until_it_is_thawed() {
        let (storage, image) = image();
        image.write_at(&[1; 5000], 3).unwrap();
        let durable = image
            .freeze(|| Ok(naively(storage.as_ref())[3..5003].iter().all(|byte| *byte == 1)))
            .unwrap();
        assert!(durable, "committed before it is called");
        let changes: [&dyn Fn() -> Result<()>; 5] = [
            &|| image.write_at(&[2], 0),
            &|| image.write_at(&[2; 3 << 20], 512),
            &|| image.write_zeroes(0..MIB, crate::Zeroing::KeepSpace),
            &|| image.write_zeroes(5..9, crate::Zeroing::MayUnmap),
            &|| image.discard(0..7 * MIB),
        ];
        for change in changes {
            assert!(is_frozen(change()));
        }
        assert!(is_frozen(image.freeze(|| Ok(()))));
        image.flush().unwrap();
        image.close().unwrap();
        assert!(is_frozen(image.write_at(&[2], 0)), "closing does not thaw");
        image.thaw().unwrap();
        for change in changes {
            change().unwrap();
        }
    }

    #[test]
    fn what_fails_under_a_freeze_leaves_the_image_as_it_was() {
        let (storage, image) = image();
        let no = || Error::new(ErrorKind::Limit, "x", "no");
        let error = image.freeze::<()>(|| Err(no())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        image.write_at(&[1], 0).unwrap();
        drop(image);
        let image = OpenOptions::new().open_file(storage).unwrap();
        let error = image.freeze(|| Ok(())).unwrap_err();
        assert_eq!(error.code(), "disk.read-only");
    }

    /// Each thread counts in a sector of its own: what it was told is written, and no more, is what the
    /// image has when it is frozen and ever after.
    #[test]
    fn writes_are_before_a_freeze_or_refused() {
        let (storage, image) = image();
        let told: [AtomicU64; 3] = Default::default();
        let image = &image;
        std::thread::scope(|scope| {
            for (i, told) in told.iter().enumerate() {
                scope.spawn(move || {
                    for count in 1_u64.. {
                        // Ever new blocks beside the count, so that some wait for the file to grow.
                        let other = (3 + 3 * count + i as u64) % BLOCKS * MIB;
                        if is_frozen(image.write_at(&[7; 100], other))
                            || is_frozen(image.write_at(&count.to_le_bytes(), SECTOR * i as u64))
                        {
                            return;
                        }
                        told.store(count, Ordering::SeqCst);
                    }
                });
            }
            while told.iter().any(|told| told.load(Ordering::SeqCst) < 20) {
                std::thread::yield_now();
            }
            let (seen, there) = image
                .freeze(|| {
                    let seen = naively(storage.as_ref());
                    // Whoever comes now has to wait.
                    std::thread::sleep(Duration::from_millis(20));
                    Ok((seen, naively(storage.as_ref())))
                })
                .unwrap();
            assert!(seen == there);
            let mut after = vec![0; seen.len()];
            image.read_at(&mut after, 0).unwrap();
            assert!(after == seen);
            for (i, told) in told.iter().enumerate() {
                let at = i * SECTOR as usize;
                let count = u64::from_le_bytes(seen[at..at + 8].try_into().unwrap());
                let told = told.load(Ordering::SeqCst);
                // Who was in between had written and not said so yet.
                assert!(count == told || count == told + 1, "{count} and told {told}");
            }
        });
        let counts = told.map(AtomicU64::into_inner);
        let mut after = vec![0; 3 * SECTOR as usize];
        image.read_at(&mut after, 0).unwrap();
        for (i, told) in counts.into_iter().enumerate() {
            assert_eq!(after[i * SECTOR as usize..][..8], told.to_le_bytes(), "thread {i}");
        }
    }

    #[test]
    fn changes_note_their_blocks_and_no_others() {
        let (_, image) = image();
        image.write_at(&[1; 4 << 20], 0).unwrap();
        assert_eq!(changed(&image), [0; 0], "not tracked");
        image.track_changes().unwrap();
        image.write_at(&[1], 7 * MIB - 1).unwrap();
        image.write_at(&[1; 2], 127 * MIB - 1).unwrap();
        image.write_at(&[], 50 * MIB).unwrap();
        image.discard(60 * MIB..130 * MIB).unwrap();
        image.write_zeroes(MIB + 3..MIB + 4, crate::Zeroing::KeepSpace).unwrap();
        image.write_at(&[1; 2], BLOCKS * MIB - 1).unwrap_err();
        let expected: Vec<u64> = [1, 6].into_iter().chain(60..130).collect();
        assert_eq!(changed(&image), expected);
        assert_eq!(changed(&image), [0; 0], "taken");
        image.write_at(&[1; 3 << 20], 63 * MIB).unwrap();
        assert_eq!(changed(&image), [63, 64, 65]);
        image.write_at(&[1], 0).unwrap();
        image.track_changes().unwrap();
        assert_eq!(changed(&image), [0; 0], "a new start");
        image.write_at(&[1], 0).unwrap();
        image.stop_tracking();
        image.write_at(&[1], 0).unwrap();
        assert_eq!(changed(&image), [0; 0]);
    }

    /// A copy that is brought up to date by what is noted, while others write, is right when they are kept
    /// out and the rest is copied.
    #[test]
    fn a_copy_that_follows_the_notes_misses_nothing() {
        let (_, image) = image();
        let image = &image;
        image.track_changes().unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        let is_frozen_now = AtomicBool::new(false);
        let mut copy = vec![0; (BLOCKS * MIB) as usize];
        std::thread::scope(|scope| {
            for seed in 0..2 {
                let is_frozen_now = &is_frozen_now;
                scope.spawn(move || {
                    let mut rng = avhdx_testkit::rng::Rng::new(seed);
                    loop {
                        let at = rng.below(BLOCKS * MIB - 9000);
                        let len = rng.below(9000);
                        let done = match rng.below(8) {
                            0 => image.discard(at / MIB * MIB..at / MIB * MIB + MIB),
                            1 => image.write_zeroes(at..at + len, crate::Zeroing::MayUnmap),
                            byte => image.write_at(&vec![byte as u8; len as usize], at),
                        };
                        if is_frozen(done) {
                            return assert!(is_frozen_now.load(Ordering::SeqCst));
                        }
                    }
                });
            }
            let mut follow = |blocks: Vec<BlockIndex>| {
                for BlockIndex(block) in blocks {
                    let at = (block * MIB) as usize;
                    image.read_at(&mut copy[at..at + MIB as usize], block * MIB).unwrap();
                }
            };
            while Instant::now() < until {
                follow(image.take_changed());
            }
            image
                .freeze(|| {
                    is_frozen_now.store(true, Ordering::SeqCst);
                    Ok(())
                })
                .unwrap();
            follow(image.take_changed());
            assert_eq!(changed(image), [0; 0]);
        });
        let mut disk = vec![0; copy.len()];
        image.read_at(&mut disk, 0).unwrap();
        assert!(disk == copy);
    }
}
