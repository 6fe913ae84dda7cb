//! Limits the time and the memory of a case.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that a case may take in all: 64 MiB besides the images, which take less than 32.
const MOST_MEMORY: usize = 96 << 20;
const MOST_TIME: Duration = Duration::from_secs(10);

/// Runs a case, one at a time, because the allocator counts for the whole process.
pub fn watched(case: impl FnOnce()) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let (started, spent) = (Instant::now(), spent());
    case();
    let most = MEMORY.peak_usage().saturating_sub(before);
    assert!(most < MOST_MEMORY, "{most} bytes of memory");
    let took = match (spent, self::spent()) {
        (Some(before), Some(after)) => after.saturating_sub(before),
        _ => started.elapsed(),
    };
    assert!(took < MOST_TIME, "{took:?}");
}

/// The time for which this thread had a processor: others may have kept it waiting.
#[allow(clippy::disallowed_methods)] // no image
fn spent() -> Option<Duration> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(told.split(' ').next()?.parse().ok()?))
}
