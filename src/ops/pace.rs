//! Limits the speed of an operation.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait between two calls of the callback.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// The longest delay for one piece: a century.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
/// How much unused time can be caught up on.
const CATCH_UP: Duration = Duration::from_millis(250);

/// The pace of an operation that runs beside other work: a limit in bytes per second, and a pause.
///
/// Clones share their state: keep one to change the pace while the operation runs in another thread.
///
/// ```
/// use avhdx::ops::Pace;
///
/// let pace = Pace::new();
/// pace.limit(Some(50 << 20));
/// pace.pause();
/// assert!(pace.clone().is_paused());
/// pace.resume();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<SharedPace>);

#[derive(Debug, Default)]
struct SharedPace {
    state: Mutex<PaceState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PaceState {
    /// Bytes per second.
    limit: Option<u64>,
    is_paused: bool,
    /// When the bytes moved so far would be done at the limit.
    due: Option<Instant>,
}

impl Pace {
    /// No limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the speed to `bytes` per second, or removes the limit. A limit of 0 counts as 1.
    pub fn limit(&self, bytes: Option<u64>) {
        let mut state = self.state();
        state.limit = bytes;
        state.due = None;
        self.0.changed.notify_all();
    }

    /// Pauses the operation, which keeps its locks and files.
    pub fn pause(&self) {
        self.state().is_paused = true;
    }

    /// Resumes the operation.
    pub fn resume(&self) {
        let mut state = self.state();
        state.is_paused = false;
        state.due = None;
        self.0.changed.notify_all();
    }

    /// Whether the operation is paused.
    pub fn is_paused(&self) -> bool {
        self.state().is_paused
    }

    /// Returns how many bytes to move at once, at most, to keep the limit within fractions of a second.
    pub(super) fn piece(&self, most: u64) -> u64 {
        let limit = self.state().limit;
        limit.map_or(most, |limit| most.min((limit / 16).next_multiple_of(1 << 16).max(1 << 16)))
    }

    /// Waits until `bytes` more bytes may be moved, calling `on` meanwhile to ask whether to continue.
    pub(super) fn wait(
        &self,
        bytes: u64,
        on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        loop {
            let state = self.state();
            let now = Instant::now();
            let until = match (state.is_paused, state.limit, state.due) {
                (true, ..) => now + CHECK_EVERY,
                (false, Some(_), Some(due)) if due > now => due.min(now + CHECK_EVERY),
                _ => {
                    self.count(state, now, bytes);
                    return ControlFlow::Continue(());
                }
            };
            let waited = self.0.changed.wait_timeout(state, until - now);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            on()?;
        }
    }

    fn count(&self, mut state: MutexGuard<'_, PaceState>, now: Instant, bytes: u64) {
        let Some(limit) = state.limit else { return };
        // A quotient beyond the range of `Duration` becomes the maximum.
        let takes = Duration::try_from_secs_f64(bytes as f64 / limit.max(1) as f64);
        let takes = takes.unwrap_or(LONGEST).min(LONGEST);
        let start = state.due.map_or(now, |due| due.max(now.checked_sub(CATCH_UP).unwrap_or(now)));
        state.due = start.checked_add(takes).or(Some(start));
    }

    fn state(&self) -> MutexGuard<'_, PaceState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_time_that_the_limit_gives_them() {
        let pace = Pace::new();
        pace.limit(Some(1_000_000));
        let start = Instant::now();
        for _ in 0..31 {
            assert!(pace.wait(10_000, &mut || ControlFlow::Continue(())).is_continue());
        }
        // The first piece needs no wait, and each other one waits for those before it.
        assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
        pace.limit(None);
        assert!(pace.wait(u64::MAX, &mut || unreachable!("nothing to wait for")).is_continue());
    }

    #[test]
    fn bytes_beyond_all_time_are_put_off_without_a_panic() {
        let pace = Pace::new();
        for _ in 0..2 {
            pace.limit(Some(0));
            assert!(
                pace.wait(u64::MAX, &mut || unreachable!("the first goes at once")).is_continue()
            );
            assert!(pace.wait(1, &mut || ControlFlow::Break(())).is_break());
        }
        let overflows = std::panic::catch_unwind(|| std::hint::black_box(u64::MAX) + 1);
        assert!(overflows.is_err(), "tests are run with overflow checks");
    }

    #[test]
    fn a_pause_lasts_until_it_ends_and_can_be_given_up() {
        let pace = Pace::new();
        pace.pause();
        let mut asked = 0;
        let stopped = pace.wait(1, &mut || {
            asked += 1;
            if asked < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(stopped.is_break() && asked == 3);
        let other = pace.clone();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pace.wait(1, &mut || ControlFlow::Continue(())));
            other.resume();
            assert!(waiting.join().unwrap().is_continue());
        });
    }
}
