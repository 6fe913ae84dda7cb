//! Moves many bytes with other threads' help: one reads ahead, one makes durable what is written.

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, Scope, ScopedJoinHandle, scope};

use crate::error::Result;
use crate::types::{KIB, MIB};

/// How many bytes are read at once. Larger pieces leave the processor's cache in between.
pub(crate) const PIECE: u64 = 512 * KIB;
/// How many pieces are in memory at once.
const PIECES: usize = 4;
/// How many bytes are written before they begin to be made durable.
const BEHIND: u64 = 64 * MIB;

/// Passes pieces to `take`, one after the other. `read` says what the next piece is and puts its bytes into the buffer;
/// it returns `None` at the end. It runs in a thread of its own, a few pieces ahead, if there can be one.
///
/// # Errors
/// The first of either. A failure to read comes after the pieces before it were taken. A panic of `read` resumes here.
pub(crate) fn read_ahead<P: Send>(
    mut read: impl FnMut(&mut Vec<u8>) -> Result<Option<P>> + Send,
    mut take: impl FnMut(P, &[u8]) -> Result<()>,
) -> Result<()> {
    let done = scope(|scope| {
        let (full, filled) = sync_channel(PIECES);
        let (empty, emptied) = sync_channel(PIECES);
        (0..PIECES).for_each(|_| _ = empty.send(Vec::new()));
        let read = &mut read;
        let ahead = move || {
            // Ends as well when nobody takes pieces any more.
            while let Ok(mut buf) = emptied.recv() {
                let piece = match read(&mut buf) {
                    Ok(Some(piece)) => Ok((piece, buf)),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let is_last = piece.is_err();
                if full.send(piece).is_err() || is_last {
                    return;
                }
            }
        };
        let reader = Builder::new().name("avhdx read".into()).spawn_scoped(scope, ahead).ok()?;
        let mut take_all = || {
            while let Ok(piece) = filled.recv() {
                let (piece, buf) = piece?;
                take(piece, &buf)?;
                // Nobody needs it after the last piece.
                drop(empty.send(buf));
            }
            Ok(())
        };
        let taken = take_all();
        drop((filled, empty));
        match reader.join() {
            Ok(()) => Some(taken),
            Err(panic) => resume_unwind(panic),
        }
    });
    done.unwrap_or_else(|| {
        let mut buf = Vec::new();
        while let Some(piece) = read(&mut buf)? {
            take(piece, &buf)?;
        }
        Ok(())
    })
}

/// Makes durable what is being written, from time to time, in a thread beside the writer: less is left for the end.
pub(crate) struct Behind<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    flush: &'env (dyn Fn() -> Result<()> + Sync),
    /// Bytes written since the last flush began.
    written: u64,
    running: Option<ScopedJoinHandle<'scope, Result<()>>>,
}

/// Runs `work`, which reports each write. `flush` runs beside it, never twice at a time. What was written last is not
/// flushed.
///
/// # Errors
/// Those of `work`, or else of `flush`. A panic of either resumes here.
pub(crate) fn flush_behind<T>(
    flush: &(dyn Fn() -> Result<()> + Sync),
    work: impl FnOnce(&mut Behind<'_, '_>) -> Result<T>,
) -> Result<T> {
    scope(|scope| {
        let mut behind = Behind { scope, flush, written: 0, running: None };
        let done = work(&mut behind);
        let flushed = behind.wait();
        done.and_then(|done| flushed.map(|()| done))
    })
}

impl Behind<'_, '_> {
    /// Reports that `bytes` more were written.
    ///
    /// # Errors
    /// That of an earlier flush.
    pub(crate) fn wrote(&mut self, bytes: u64) -> Result<()> {
        self.written += bytes;
        let is_busy = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if self.written < BEHIND || is_busy {
            return Ok(());
        }
        self.wait()?;
        self.written = 0;
        // Where there can be no other thread, the flush at the end has to do.
        let thread = Builder::new().name("avhdx flush".into());
        self.running = thread.spawn_scoped(self.scope, self.flush).ok();
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        match self.running.take().map(ScopedJoinHandle::join) {
            Some(Err(panic)) => resume_unwind(panic),
            Some(Ok(done)) => done,
            None => Ok(()),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::error::{Error, ErrorKind};

    fn failure(at: usize) -> Error {
        Error::new(ErrorKind::Other, "test.failed", "as asked").at(at as u64)
    }

    /// Reads `pieces` pieces and fails or panics at `bad`.
    fn reader(
        pieces: usize,
        bad: Option<(usize, bool)>,
    ) -> impl FnMut(&mut Vec<u8>) -> Result<Option<usize>> + Send {
        let mut next = 0;
        move |buf| {
            match bad {
                Some((at, true)) if at == next => panic!("at {at}"),
                Some((at, false)) if at == next => return Err(failure(at)),
                _ => {}
            }
            buf.clear();
            buf.resize(next + 1, next as u8);
            next += 1;
            Ok((next <= pieces).then_some(next - 1))
        }
    }

    #[test]
    fn pieces_come_in_order_up_to_the_end_or_a_failure() {
        for pieces in [0, 1, 3, 4, 5, 40] {
            for bad in (0..=pieces).map(Some).chain([None]) {
                let mut taken = 0;
                let done = read_ahead(reader(pieces, bad.map(|at| (at, false))), |piece, bytes| {
                    assert_eq!((piece, bytes), (taken, &vec![taken as u8; taken + 1][..]));
                    taken += 1;
                    Ok(())
                });
                assert_eq!(taken, bad.unwrap_or(pieces));
                assert_eq!(done.err().and_then(|error| error.offset()), bad.map(|at| at as u64));
            }
        }
    }

    #[test]
    fn a_taker_that_fails_or_panics_ends_the_reader() {
        for at in [0, 1, 7, 39] {
            let done = read_ahead(reader(40, None), |piece, _| match piece == at {
                true => Err(failure(at)),
                false => Ok(()),
            });
            assert_eq!(done.unwrap_err().offset(), Some(at as u64));
            let mut taken = 0;
            let panic = catch_unwind(AssertUnwindSafe(|| {
                read_ahead(reader(usize::MAX, None), |piece, _| {
                    taken = piece;
                    assert_ne!(piece, at, "stop");
                    Ok(())
                })
            }));
            assert!(panic.is_err() && taken == at);
        }
    }

    #[test]
    fn a_panic_of_the_reader_is_the_caller_s() {
        for at in [0, 1, 7] {
            let mut taken = 0;
            let panic = catch_unwind(AssertUnwindSafe(|| {
                read_ahead(reader(9, Some((at, true))), |_, _| {
                    taken += 1;
                    Ok(())
                })
            }));
            assert_eq!(panic.unwrap_err().downcast_ref(), Some(&format!("at {at}")));
            assert_eq!(taken, at);
        }
    }

    #[test]
    fn flushes_run_beside_the_work_one_at_a_time() {
        let (running, flushes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let flush = || {
            assert_eq!(running.fetch_add(1, SeqCst), 0, "two at a time");
            flushes.fetch_add(1, SeqCst);
            std::thread::yield_now();
            running.fetch_sub(1, SeqCst);
            Ok(())
        };
        let work = |behind: &mut Behind<'_, '_>| {
            (0..1000).try_for_each(|_| behind.wrote(BEHIND / 2)).map(|()| 7)
        };
        assert_eq!(flush_behind(&flush, work).unwrap(), 7);
        assert!((1..=500).contains(&flushes.load(SeqCst)));
        assert_eq!(running.load(SeqCst), 0, "one goes on after the end");
        // Little is left to the end.
        let few = |behind: &mut Behind<'_, '_>| behind.wrote(BEHIND - 1);
        flush_behind(&|| panic!("too early"), few).unwrap();
    }

    #[test]
    fn a_failed_flush_stops_the_work_or_fails_it_at_the_end() {
        let once = |behind: &mut Behind<'_, '_>| behind.wrote(BEHIND);
        assert_eq!(flush_behind(&|| Err(failure(5)), once).unwrap_err().offset(), Some(5));
        let mut writes = 0;
        let endless = |behind: &mut Behind<'_, '_>| -> Result<()> {
            loop {
                behind.wrote(BEHIND)?;
                writes += 1;
                std::thread::yield_now();
            }
        };
        assert_eq!(flush_behind(&|| Err(failure(6)), endless).unwrap_err().offset(), Some(6));
        assert!(writes > 0);
        // The work's own failure comes first.
        let fails = |behind: &mut Behind<'_, '_>| -> Result<()> {
            behind.wrote(BEHIND)?;
            Err(failure(8))
        };
        assert_eq!(flush_behind(&|| Err(failure(7)), fails).unwrap_err().offset(), Some(8));
        let panic = catch_unwind(AssertUnwindSafe(|| flush_behind(&|| panic!("flush"), once)));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"flush"));
    }
}
