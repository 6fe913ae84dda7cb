//! Two users of one disk, the second acting at each step of the first in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use avhdx::DiffChain;

use crate::driver::{Driver, Recorded};
use crate::sim::{SimHost, Step};

/// Some calls of the second user wait for the first, for instance growth during a commit: the
/// first then continues after this time.
const PATIENCE: Duration = Duration::from_millis(15);

/// Records `first` on a fresh disk, after `before`, once for each of its steps, at which `second` runs in
/// another thread. Finally everything is flushed, and the session ends without a close.
pub fn interleaved(
    setup: impl Fn() -> Driver,
    before: fn(&Driver, &DiffChain),
    first: fn(&Driver, &DiffChain),
    second: fn(&Driver, &DiffChain),
) -> Vec<Recorded> {
    let mut histories = Vec::new();
    for step in 0.. {
        let driver = setup();
        let chain = driver.open();
        before(&driver, &chain);
        driver.look_from_here();
        let was_there =
            at_step(step, &driver.host, || first(&driver, &chain), || second(&driver, &chain));
        if !was_there {
            break;
        }
        driver.flush(&chain);
        driver.kill(chain);
        histories.push(driver.finish());
    }
    histories
}

/// Runs `second` in another thread at this step of `first`; returns whether there is such a step.
pub fn at_step(
    step: usize,
    host: &SimHost,
    first: impl FnOnce(),
    second: impl FnOnce() + Send,
) -> bool {
    let (go, wait_to_go) = channel::<()>();
    let (done, wait_until_done) = channel::<()>();
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&steps);
    let me = std::thread::current().id();
    let wait_until_done = std::sync::Mutex::new(wait_until_done);
    let go = std::sync::Mutex::new(Some(go));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait_to_go.recv().is_ok() {
                second();
            }
            drop(done);
        });
        host.hook(move |now| {
            let is_step = !matches!(now, Step::Read { .. });
            if is_step
                && std::thread::current().id() == me
                && counted.fetch_add(1, Ordering::SeqCst) == step
                && let Some(go) = go.lock().unwrap().take()
            {
                go.send(()).unwrap();
                // Either it completes, which closes the channel, or it waits for us.
                let _ = wait_until_done.lock().unwrap().recv_timeout(PATIENCE);
            }
            Ok(())
        });
        // The sender is dropped with the hook, so that a thread that was never called ends, panic or not.
        let _unhook = Unhook(host);
        first();
    });
    steps.load(Ordering::SeqCst) > step
}

struct Unhook<'a>(&'a SimHost);

impl Drop for Unhook<'_> {
    fn drop(&mut self) {
        self.0.unhook();
    }
}
