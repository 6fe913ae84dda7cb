//! Limits the time and memory of a case.

use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::{MEMORY, MOST_MEMORY};

/// Runs a case under the limits of the watchdog and the allocator.
pub fn watched(what: impl Fn() -> String, case: impl FnOnce()) {
    struct Told<'a>(&'a dyn Fn() -> String);
    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("it was {}", (self.0)());
            }
        }
    }
    let _told = Told(&what);
    watch(Some(what()));
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    case();
    let most = MEMORY.peak_usage().saturating_sub(before);
    watch(None);
    assert!(most < MOST_MEMORY, "{most} bytes of memory for {}", what());
}

/// Records which case is running. A case that takes a minute is a hang and ends the process.
fn watch(case: Option<String>) {
    static CASE: Mutex<Option<(Instant, String)>> = Mutex::new(None);
    static START: Once = Once::new();
    START.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let case = CASE.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((since, what)) = &*case
                    && since.elapsed() > Duration::from_secs(60)
                {
                    eprintln!("still running after a minute: {what}");
                    std::process::abort();
                }
            }
        });
    });
    let case = case.map(|what| (Instant::now(), what));
    *CASE.lock().unwrap_or_else(PoisonError::into_inner) = case;
}

/// One test at a time: the allocator counts per process.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
