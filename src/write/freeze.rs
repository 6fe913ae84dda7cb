//! Who may change the image, and who hears of it.
//!
//! Every change goes through the gate. Whoever holds the gate alone has all changes either behind him or yet
//! to come, and may leave it closed for those. While changes are [followed](Follow), each tells of the bytes that it
//! went to on its way out: whoever hears of it and then reads the bytes misses none.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::follow::Follow;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Lets changes in, unless it is closed.
#[derive(Debug, Default)]
pub(super) struct Gate(RwLock<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    is_closed: bool,
    /// There while changes are followed.
    follow: Option<Arc<Follow>>,
}

/// A change under way.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    state: RwLockReadGuard<'a, State>,
    /// The bytes of the disk that it is about.
    range: Range<u64>,
    /// Whether it has them for itself.
    is_held: bool,
    is_told: bool,
}

impl Gate {
    /// Lets in a change of these bytes of the disk, once nobody has the gate alone or holds the bytes.
    pub(super) fn enter(&self, range: Range<u64>) -> Result<Entered<'_>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if state.is_closed {
            return Err(frozen());
        }
        let is_held = state.follow.as_ref().is_some_and(|follow| follow.hold(&range));
        Ok(Entered { state, range, is_held, is_told: false })
    }

    /// Lets in a change that nobody sees who reads the disk: also where others are refused.
    pub(super) fn enter_hidden(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all changes under way, and keeps others out until the guard is dropped.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all changes to come tell of themselves.
    pub(super) fn follow(&self, follow: Option<Arc<Follow>>) {
        self.write().follow = follow;
    }
}

impl State {
    /// Whether changes are followed, and some of these bytes were changed since they were copied.
    pub(super) fn is_changed(&self, range: &Range<u64>) -> bool {
        self.follow.as_ref().is_some_and(|follow| follow.is_changed(range))
    }

    /// Refuses all changes to come, or lets them in again.
    pub(super) fn close(&mut self, yes: bool) {
        self.is_closed = yes;
    }
}

impl Entered<'_> {
    /// Ends a change, and has it made `again` where others are to have it too. What becomes of that is not what
    /// becomes of the change.
    pub(super) fn leave(
        mut self,
        done: Result<()>,
        again: &dyn Fn(&Writer) -> Result<u64>,
    ) -> Result<()> {
        self.is_told = true;
        let Some(follow) = &self.state.follow else { return done };
        let again = done.is_ok().then_some(again);
        let wait = follow.changed(&self.range, self.is_held, again);
        drop(self);
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        done
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // A change that failed may have been made in part.
        if let Some(follow) = self.state.follow.as_ref().filter(|_| !self.is_told) {
            follow.changed(&self.range, self.is_held, None);
        }
    }
}

fn frozen() -> Error {
    let message = "the image takes no writes any more: its contents are a point in time now";
    Error::new(ErrorKind::ReadOnly, "image.frozen", message)
}

impl Writer {
    /// Has the image stay as it is from here on: waits for the changes under way, makes all durable, calls
    /// `under` and, when that succeeds, refuses every later change with `image.frozen`, those that wait
    /// included. When it fails, all goes on as before. Reading, flushing and closing go on in any case.
    ///
    /// `under` may read the image and do what it likes with others, but would wait for ever for a change of
    /// this one, and for all that waits for changes to be over.
    pub(crate) fn freeze<R>(&self, under: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(done) = self.freeze_if(|| under().map(Some))? else { unreachable!("always some") };
        Ok(done)
    }

    /// The same, unless `under` finds that it is too early for that.
    pub(crate) fn freeze_if<R>(
        &self,
        under: impl FnOnce() -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        let mut alone = self.gate.write();
        if alone.is_closed {
            return Err(frozen().in_file(self.core.name()));
        }
        self.commit()?;
        let done = under()?;
        self.close_gate(&mut alone, done.is_some());
        Ok(done)
    }

    /// Lets changes in again after a [`freeze`](Self::freeze).
    #[cfg(all(test, not(loom)))]
    pub(crate) fn thaw(&self) {
        self.close_gate(&mut self.gate.write(), false);
    }

    /// Refuses all changes to come, or lets them in again.
    pub(super) fn close_gate(&self, state: &mut State, yes: bool) {
        state.close(yes);
        self.feed.freeze(yes);
    }

    /// Follows the changes from here on: of each that was under way all is done, of each that comes later all is
    /// told.
    pub(crate) fn follow_changes(&self) -> Arc<Follow> {
        let follow = Arc::new(Follow::new(self.core.layout.size(), self.core.layout.sector_size()));
        self.gate.follow(Some(Arc::clone(&follow)));
        follow
    }

    /// Has the changes that are followed be made in `mirror` as well, an image of a disk of the same size. What was
    /// under way is only told of.
    pub(crate) fn mirror_changes(&self, follow: &Follow, mirror: &Arc<Self>) {
        let _alone = self.gate.write();
        follow.name_mirror(Arc::clone(mirror));
    }

    /// Follows the changes no longer.
    pub(crate) fn stop_following(&self) {
        self.gate.follow(None);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

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
            .its_writer()
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
        assert!(is_frozen(image.its_writer().freeze(|| Ok(()))));
        image.flush().unwrap();
        image.close().unwrap();
        assert!(is_frozen(image.write_at(&[2], 0)), "closing does not thaw");
        image.its_writer().thaw();
        for change in changes {
            change().unwrap();
        }
    }

    #[test]
    fn what_fails_under_a_freeze_leaves_the_image_as_it_was() {
        let (storage, image) = image();
        let no = || Error::new(ErrorKind::Limit, "x", "no");
        let error = image.its_writer().freeze::<()>(|| Err(no())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        image.write_at(&[1], 0).unwrap();
        drop(image);
        let image = OpenOptions::new().open_file(storage).unwrap();
        assert!(image.writer().is_none(), "what is read alone cannot be frozen");
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
                .its_writer()
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
}
