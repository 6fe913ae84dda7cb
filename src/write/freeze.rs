//! Freezes an image and tracks its changes.

use std::sync::{Arc, Weak};

use super::change_lock::{ChangeState, frozen};
use super::record::ChangeRecord;
use super::tracker::{ChangeTracker, Mirror};
use super::writer::Writer;
use crate::error::Result;

impl Writer {
    /// Freezes the image: waits for the changes in progress, makes everything durable, calls
    /// `action` and, if that succeeds, refuses every later change with `image.frozen`, including
    /// those that wait. If it fails, changes continue as before. Reads, flushes and closes work
    /// throughout.
    ///
    /// `action` may read the image and use others, but deadlocks on a change of this image and on
    /// anything that waits for changes to finish.
    pub(crate) fn freeze<R>(&self, action: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(done) = self.freeze_if(|| action().map(Some))? else {
            unreachable!("always some")
        };
        Ok(done)
    }

    /// The same, but the image is frozen only if `action` returns a value.
    pub(crate) fn freeze_if<R>(
        &self,
        action: impl FnOnce() -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        let mut state = self.change_alone()?;
        if state.is_closed {
            return Err(frozen().in_file(self.core.name()));
        }
        self.commit()?;
        let done = action()?;
        self.set_frozen(&mut state, done.is_some());
        Ok(done)
    }

    /// Undoes a [`freeze`](Self::freeze).
    #[cfg(all(test, not(loom)))]
    pub(crate) fn thaw(&self) {
        self.set_frozen(&mut self.change_lock.write(), false);
    }

    /// Refuses all further changes, or allows them again.
    pub(super) fn set_frozen(&self, state: &mut ChangeState, yes: bool) {
        state.close(yes);
        self.feed.freeze(yes);
    }

    /// Tracks the changes from now on. Those in progress are finished first; each later one is
    /// reported.
    pub(crate) fn track_changes(&self) -> Arc<ChangeTracker> {
        let tracker =
            Arc::new(ChangeTracker::new(self.core.layout.size(), self.core.layout.sector_size()));
        self.change_lock.track(Some(Arc::clone(&tracker)));
        self.plans.track(Some(Arc::clone(&tracker)));
        tracker
    }

    /// Records all later changes in these, too. Changes in progress are finished first.
    pub(crate) fn record_changes(&self, records: &[Weak<ChangeRecord>]) {
        self.change_lock.record_in(records);
        self.plans.record_in(records);
    }

    /// Makes the tracked changes in `mirror` too, an image of a disk of the same size. Changes in
    /// progress are only marked.
    pub(crate) fn mirror_changes(&self, tracker: &ChangeTracker, mirror: &Arc<Self>) {
        let _exclusive = self.change_lock.write();
        let mirror: Arc<dyn Mirror> = mirror.clone();
        tracker.set_mirror(mirror);
    }

    /// Stops tracking changes.
    pub(crate) fn stop_tracking(&self) {
        self.plans.track(None);
        self.change_lock.track(None);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use avhdx_testkit::naive;

    use super::*;
    use crate::error::{Error, ErrorKind};
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

    /// The contents of the file, to a reader that knows nothing of the open image.
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
    fn a_freeze_whose_action_fails_leaves_the_image_writable() {
        let (storage, image) = image();
        let no = || Error::new(ErrorKind::Limit, "x", "no");
        let error = image.its_writer().freeze::<()>(|| Err(no())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        image.write_at(&[1], 0).unwrap();
        drop(image);
        let image = OpenOptions::new().open_file(storage).unwrap();
        assert!(image.writer().is_none(), "what is read alone cannot be frozen");
    }

    /// Each thread counts in a sector of its own: the frozen image holds exactly the counts that
    /// were reported as written.
    #[test]
    fn writes_are_before_a_freeze_or_refused() {
        let (storage, image) = image();
        let told: [AtomicU64; 3] = Default::default();
        let image = &image;
        std::thread::scope(|scope| {
            for (i, told) in told.iter().enumerate() {
                scope.spawn(move || {
                    for count in 1_u64.. {
                        // New blocks beside the count, so that some writes wait for the file to
                        // grow.
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
                    // Changes that begin now must wait.
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
                // The last write may not have been reported yet.
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
